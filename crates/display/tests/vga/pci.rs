//! The PCI function.

use std::sync::Arc;

use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_device::test::FakeClock;
use trapline_display::{FRAMEBUFFER, PORTS, REGISTERS, ROM, Vga, VgaConfig, VgaError, WINDOW};
use trapline_memory::DeviceMemory;
use trapline_pci::regs;

use crate::bench::{Card, MEMORY};

#[test]
fn it_is_the_standard_vga() {
    let mut card = Card::unplaced(None);
    assert_eq!(card.bench.read(regs::VENDOR_ID, Dword), 0x1111_1234);
    assert_eq!(card.bench.read(regs::REVISION, Dword), 0x0300_0002, "VGA, with the extended registers");
    assert_eq!(card.bench.read(regs::SUBSYSTEM_VENDOR_ID, Dword), 0x1100_1af4);
    assert_eq!(card.bench.read(regs::INTERRUPT_PIN, Byte), 0);
    for (bar, size_and_kind) in [(0, !(MEMORY as u32 - 1) | 8), (1, 0), (2, 0xffff_f000), (3, 0)] {
        card.bench.write(regs::BAR0 + 4 * bar, Dword, 0xffff_ffff);
        assert_eq!(card.bench.read(regs::BAR0 + 4 * bar, Dword), size_and_kind, "bar {bar}");
    }
    card.bench.write(regs::ROM, Dword, 0xffff_ffff);
    assert_eq!(card.bench.read(regs::ROM, Dword), 0, "no rom");
}

#[test]
fn ports_and_window_answer_while_they_are_enabled() {
    let mut card = Card::unplaced(None);
    assert_eq!(card.inb(0x3cc), 0xff);
    card.bench.write(regs::COMMAND, Word, 1);
    card.out(0x3c2, 0x03);
    assert_eq!((card.inb(0x3cc), card.read_vbe(0)), (0x03, 0xb0c5));
    assert_eq!((card.bench.range(PORTS).map(|r| r.start), card.bench.range(WINDOW)), (Some(0x3c0), None));
    card.bench.write(regs::COMMAND, Word, 2);
    assert_eq!((card.inb(0x3cc), card.bench.range(WINDOW).map(|r| r.start)), (0xff, Some(0xa_0000)));
}

#[test]
fn the_rom_is_read_through_its_bar() {
    let image: Vec<u8> = (0..3000u32).map(|n| (n * 7) as u8).collect();
    let mut card = Card::unplaced(Some(image.clone()));
    card.bench.write(regs::ROM, Dword, 0xffff_ffff);
    assert_eq!(card.bench.read(regs::ROM, Dword), 0xffff_f001, "4 KiB");
    card.bench.write(regs::ROM, Dword, 0xc000_0001);
    card.bench.write(regs::COMMAND, Word, 2);
    let read: Vec<u8> = (0..3000).map(|at| card.bench.bar_read(ROM, at, Byte) as u8).collect();
    assert_eq!(read, image);
    assert_eq!(card.bench.bar_read(ROM, 8, Qword).to_le_bytes(), image[8..16]);
    assert_eq!(card.bench.bar_read(ROM, 3000, Dword), 0, "the rest is zero");
    card.bench.bar_write(ROM, 0, Dword, 0x1234_5678);
    assert_eq!(card.bench.bar_read(ROM, 0, Byte), u64::from(image[0]));
}

#[test]
fn the_framebuffer_works_without_being_mapped() {
    let mut card = Card::new();
    card.bench.bar_write(FRAMEBUFFER, 0x1234, Qword, 0x1122_3344_5566_7788);
    assert_eq!(card.device().memory().read_u32(0x1234), Some(0x5566_7788));
    assert_eq!(card.bench.bar_read(FRAMEBUFFER, 0x1236, Word), 0x5566);
    card.bench.bar_write(FRAMEBUFFER, MEMORY - 1, Byte, 0x99);
    assert_eq!(card.bench.bar_read(FRAMEBUFFER, MEMORY - 1, Byte), 0x99);
}

#[test]
fn reset_switches_it_off_and_keeps_the_memory() {
    let mut card = Card::new();
    card.vbe_mode(640, 480, 32);
    card.bench.bar_write(FRAMEBUFFER, 0, Dword, 0x1234_5678);
    card.bench.root().lock().unwrap().reset();
    card.bench.settle();
    assert_eq!((card.bench.range(PORTS), card.bench.range(REGISTERS)), (None, None));
    assert_eq!(card.device().memory().read_u32(0), Some(0x1234_5678));
    card.bench.place().unwrap();
    assert_eq!((card.read_vbe(4), card.inb(0x3cc)), (0, 0));
}

#[test]
fn what_cannot_be_made_is_refused_in_one_line() {
    let make = |size, rom, monitor| {
        let memory = DeviceMemory::standalone(size).unwrap();
        let clock = Arc::new(FakeClock::default());
        Vga::new(VgaConfig { memory, rom, monitor, clock }).map(|_| ()).unwrap_err()
    };
    assert_eq!(make(0x2_0000, None, (1024, 768)), VgaError::Memory(0x2_0000));
    assert_eq!(
        make(0x30_0000, None, (1024, 768)).to_string(),
        "video memory of 0x300000 bytes is not a power of two from 256 KiB to 256 MiB"
    );
    let large = vec![1; (16 << 20) + 1];
    assert_eq!(make(1 << 20, Some(large), (1024, 768)), VgaError::Rom((16 << 20) + 1));
    assert_eq!(make(1 << 20, Some(Vec::new()), (1024, 768)), VgaError::Rom(0));
    for monitor in [(0, 0), (1023, 768), (8192, 768), (640, 4096)] {
        assert_eq!(make(1 << 20, None, monitor), VgaError::Monitor(monitor.0, monitor.1));
    }
}
