//! The Bochs VBE extensions.

use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_display::{Damage, FRAMEBUFFER, REGISTERS};

use crate::bench::{Card, MEMORY, PLANAR, TEXT, WINDOW, colour};

const XRES: u16 = 1;
const YRES: u16 = 2;
const BPP: u16 = 3;
const ENABLE: u16 = 4;
const BANK: u16 = 5;
const VIRT_WIDTH: u16 = 6;
const VIRT_HEIGHT: u16 = 7;
const X_OFFSET: u16 = 8;
const Y_OFFSET: u16 = 9;

#[test]
fn it_is_found_by_its_id() {
    let mut card = Card::new();
    assert_eq!(card.read_vbe(0), 0xb0c5);
    for (value, id) in [(0xb0c0, 0xb0c0), (0xb0c4, 0xb0c4), (0xb0c6, 0xb0c4), (0, 0xb0c4)] {
        card.vbe(0, value);
        assert_eq!(card.read_vbe(0), id);
    }
    assert_eq!(card.read_vbe(10), (MEMORY >> 16) as u16, "video memory in 64 KiB");
    assert_eq!((card.read_vbe(11), card.read_vbe(0xffff)), (0, 0));
    assert_eq!(card.bench.io_read(0x1ce, Word), 0xffff, "the index reads back");
    card.bench.io_write(0x1ce, Word, 0);
    assert_eq!(card.bench.io_read(0x1d0, Word), 0xb0c4, "the data port is doubled");
    assert_eq!(card.bench.io_read(0x1cf, Byte), 0xff, "words only");
}

#[test]
fn a_mode_is_set_by_size_depth_and_enable() {
    let mut card = Card::new();
    card.vbe_mode(800, 600, 32);
    let registers = [XRES, YRES, BPP, ENABLE, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET];
    let lines = (MEMORY / (800 * 4)) as u16;
    assert_eq!(registers.map(|index| card.read_vbe(index)), [800, 600, 32, 0x41, 800, lines, 0, 0]);
    card.vbe(ENABLE, 0x43);
    assert_eq!([XRES, YRES, BPP].map(|index| card.read_vbe(index)), [4096, 4096, 32], "capabilities");
    card.vbe(ENABLE, 0x41);
    assert_eq!(card.read_vbe(XRES), 800);
}

#[test]
fn what_cannot_be_becomes_the_nearest_that_can() {
    let mut card = Card::new();
    card.vbe_mode(1023, 0, 7);
    assert_eq!([XRES, YRES, BPP].map(|index| card.read_vbe(index)), [1016, 1, 8]);
    card.vbe_mode(0, 0xffff, 4);
    assert_eq!([XRES, YRES, VIRT_WIDTH].map(|index| card.read_vbe(index)), [8, 4096, 8]);
    card.vbe_mode(0xffff, 0xffff, 32);
    let lines = (MEMORY / (4096 * 4)) as u16;
    assert_eq!([XRES, YRES, VIRT_WIDTH].map(|index| card.read_vbe(index)), [4096, lines, 4096]);
    card.vbe_mode(640, 480, 16);
    card.vbe(VIRT_WIDTH, 100);
    assert_eq!(card.read_vbe(VIRT_WIDTH), 640, "not narrower than the screen");
    card.vbe(Y_OFFSET, 0xffff);
    assert_eq!(card.read_vbe(Y_OFFSET), 0, "what does not fit is not shown");
}

#[test]
fn every_depth_has_its_layout() {
    // Bytes of a dot, and what it looks like.
    let cases: [(u16, u64, &[u8], [u8; 3]); 5] = [
        (8, 1, &[0x2a], colour(0x2a)),
        (15, 2, &[0x1f, 0x42], [0x84, 0x84, 0xff]),
        (16, 2, &[0x1f, 0x84], [0x84, 0x82, 0xff]),
        (24, 3, &[0x10, 0x20, 0x30], [0x30, 0x20, 0x10]),
        (32, 4, &[0x10, 0x20, 0x30, 0xff], [0x30, 0x20, 0x10]),
    ];
    for (bpp, bytes, dot, expected) in cases {
        let mut card = Card::in_mode(&TEXT);
        card.vbe_mode(640, 480, bpp);
        card.device().memory().write((3 * 640 + 5) * bytes, dot).unwrap();
        let frame = card.frame();
        assert_eq!((frame.width(), frame.height()), (640, 480));
        assert_eq!(frame.pixel(5, 3), Some(expected), "{bpp} bits");
        assert_eq!(frame.pixels().iter().filter(|byte| **byte != 0).count(), 3, "{bpp} bits");
    }
}

#[test]
fn sixteen_colours_are_in_planes() {
    let mut card = Card::in_mode(&PLANAR);
    card.vbe_mode(800, 600, 4);
    card.graphics(8, 0x10); // the fourth dot
    card.graphics(5, 2);
    card.poke(WINDOW + 100 * 2, 0x0b);
    assert_eq!(card.frame().pixel(3, 2), Some(colour(11)));
    // The last line lies beyond 32 KiB, the second screen in another bank.
    card.vbe(BANK, 1);
    card.poke(WINDOW, 0x05);
    card.vbe(Y_OFFSET, 600);
    assert_eq!(card.frame().pixel(3 + 0x1_0000 % 100 * 8, 0x1_0000 / 100 - 600), Some(colour(5)));
}

#[test]
fn the_screen_is_a_window_into_a_larger_one() {
    let mut card = Card::new();
    card.vbe_mode(640, 480, 32);
    card.vbe(VIRT_WIDTH, 1024);
    assert_eq!(card.read_vbe(VIRT_HEIGHT), 1024);
    card.device().memory().write_u32((500 * 1024 + 700) * 4, 0x0012_3456).unwrap();
    card.vbe(X_OFFSET, 384);
    card.vbe(Y_OFFSET, 30);
    assert_eq!(card.frame().pixel(700 - 384, 500 - 30), Some([0x12, 0x34, 0x56]));
    // Enabled anew, it starts at the upper left.
    card.vbe_mode(640, 480, 32);
    assert_eq!([VIRT_WIDTH, X_OFFSET, Y_OFFSET].map(|index| card.read_vbe(index)), [640, 0, 0]);
}

#[test]
fn enabling_clears_the_screen_unless_told_not_to() {
    let mut card = Card::new();
    let memory = card.device().memory().clone();
    let last = 640 * 480 * 4 - 4;
    for at in [0, last, last + 4] {
        memory.write_u32(at, 0xffff_ffff).unwrap();
    }
    for (index, value) in [(XRES, 640), (YRES, 480), (BPP, 32), (ENABLE, 0xc1)] {
        card.vbe(index, value);
    }
    assert_eq!(memory.read_u32(last), Some(0xffff_ffff));
    card.vbe(ENABLE, 0x41);
    assert_eq!(memory.read_u32(last), Some(0xffff_ffff), "it is on already");
    card.vbe(ENABLE, 0);
    card.vbe(ENABLE, 0x41);
    assert_eq!([0, last, last + 4].map(|at| memory.read_u32(at)), [Some(0), Some(0), Some(0xffff_ffff)]);
}

#[test]
fn the_window_shows_a_bank_of_the_framebuffer() {
    let mut card = Card::new();
    card.vbe_mode(1024, 768, 32);
    let memory = card.device().memory().clone();
    card.vbe(BANK, 3);
    card.write(WINDOW + 0x10, Qword, 0x8877_6655_4433_2211);
    assert_eq!(memory.read_u32(0x3_0010), Some(0x4433_2211));
    assert_eq!(card.bench.memory_read(WINDOW + 0x14, Dword), 0x8877_6655);
    card.vbe(BANK, 0xffff);
    assert_eq!(card.read_vbe(BANK), (MEMORY / 0x1_0000 - 1) as u16);
    card.write(WINDOW + 0xffff, Byte, 0x77);
    assert_eq!(memory.read_u32(MEMORY - 4), Some(0x7700_0000));
    card.write(WINDOW + 0x1_0000, Dword, 1);
    assert_eq!(card.bench.memory_read(WINDOW + 0xfffe, Dword), 0xffff_ffff, "the window has 64 KiB");
    card.vbe(ENABLE, 0);
    assert_eq!(card.read_vbe(BANK), 0);
}

#[test]
fn the_colour_table_can_have_eight_bits() {
    let mut card = Card::new();
    card.vbe_mode(640, 480, 8);
    card.set_colour(0, [0xff, 0x80, 0x3f]);
    assert_eq!(card.frame().pixel(0, 0), Some([0xff, 0, 0xff]), "six bits");
    card.vbe(ENABLE, 0x61);
    card.set_colour(0, [0xff, 0x80, 0x3f]);
    assert_eq!(card.frame().pixel(0, 0), Some([0xff, 0x80, 0x3f]));
    card.out(0x3c7, 0);
    assert_eq!([(); 3].map(|()| card.inb(0x3c9)), [0xff, 0x80, 0x3f]);
}

#[test]
fn the_screen_can_be_blank() {
    let mut card = Card::new();
    card.vbe_mode(640, 480, 32);
    card.device().memory().write_u32(0, 0x00ff_ffff).unwrap();
    card.inb(0x3da);
    card.out(0x3c0, 0x00);
    assert_eq!(card.frame().pixel(0, 0), Some([0; 3]));
    card.inb(0x3da);
    card.out(0x3c0, 0x20);
    assert_eq!(card.frame().pixel(0, 0), Some([0xff; 3]));
}

#[test]
fn registers_are_in_bar_2_as_well() {
    let mut card = Card::new();
    let read = |card: &mut Card, offset, size| card.bench.bar_read(REGISTERS, offset, size);
    assert_eq!(read(&mut card, 0x500, Word), 0xb0c5);
    for (index, value) in [(XRES, 1280), (YRES, 720), (BPP, 16), (ENABLE, 0x41)] {
        card.bench.bar_write(REGISTERS, 0x500 + 2 * u64::from(index), Word, value);
    }
    assert_eq!(read(&mut card, 0x502, Dword), 720 << 16 | 1280);
    assert_eq!(card.read_vbe(VIRT_WIDTH), 1280);
    // The VGA's ports from 0x3c0 on, an index and its data in one word.
    card.bench.bar_write(REGISTERS, 0x402, Byte, 0x01);
    card.bench.bar_write(REGISTERS, 0x404, Word, 0x0f02);
    assert_eq!((card.inb(0x3cc), card.read_indexed(0x3c4, 2)), (0x01, 0x0f));
    assert_eq!(read(&mut card, 0x405, Byte), 0x0f);
    // Extended registers: their length, and a framebuffer that is little-endian.
    assert_eq!((read(&mut card, 0x600, Dword), read(&mut card, 0x604, Dword)), (8, 0x1e1e_1e1e));
    card.bench.bar_write(REGISTERS, 0x604, Dword, 0xbebe_bebe);
    assert_eq!(read(&mut card, 0x604, Dword), 0x1e1e_1e1e);
    assert_eq!(read(&mut card, 0x608, Dword), 0xffff_ffff);
    assert_eq!(read(&mut card, 0xff8, Qword), u64::MAX);
}

#[test]
fn the_monitor_describes_itself() {
    let mut card = Card::new();
    let edid: Vec<u8> = (0..128).map(|at| card.bench.bar_read(REGISTERS, at, Byte) as u8).collect();
    assert_eq!(edid[..8], [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    assert_eq!(edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
    assert_eq!(edid[18..20], [1, 4], "version 1.4");
    // The first detailed timing: 1280 by 800, 160 by 35 blank, at 60 Hz.
    let timing = &edid[54..72];
    let clock = u64::from(u16::from_le_bytes([timing[0], timing[1]])) * 10_000;
    assert_eq!((timing[2], timing[4] >> 4, timing[5], timing[7] >> 4), (0x00, 0x5, 0x20, 0x3));
    assert_eq!((clock as f64 / (1440.0 * 835.0)).round(), 60.0);
    assert_eq!(card.bench.bar_read(REGISTERS, 128, Qword), 0, "no further blocks");
}

#[test]
fn damage_is_the_lines_that_were_written() {
    let mut card = Card::new();
    card.vbe_mode(1024, 768, 32); // a page is a line
    card.device().take_damage();
    assert_eq!(card.device().take_damage(), Damage::None);
    card.bench.bar_write(FRAMEBUFFER, 10 * 4096, Dword, 1);
    card.bench.bar_write(FRAMEBUFFER, 13 * 4096 + 8, Dword, 1);
    assert_eq!(card.device().take_damage(), Damage::Lines(10..14));
    card.bench.bar_write(FRAMEBUFFER, 800 * 4096, Dword, 1);
    assert_eq!(card.device().take_damage(), Damage::None, "below the screen");
    card.vbe(Y_OFFSET, 100);
    assert_eq!(card.device().take_damage(), Damage::All);
    card.bench.bar_write(FRAMEBUFFER, 99 * 4096, Dword, 1);
    assert_eq!(card.device().take_damage(), Damage::None, "above the screen");
    card.bench.bar_write(FRAMEBUFFER, 867 * 4096, Dword, 1);
    assert_eq!(card.device().take_damage(), Damage::Lines(767..768));
}
