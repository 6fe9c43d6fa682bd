//! Parallel port, DMA registers and SMBus, as drivers and firmware probe them.

use std::io::ErrorKind;
use std::sync::Arc;

use trapline_chipset::{Dma, Parallel, Smbus, dma};
use trapline_device::test::Recorder;
use trapline_device::{AccessSize, Device, IrqLine, PortIo, SaveRestore};

use crate::{Broken, Ports, Screen, through_a_file};

const DATA: u16 = 0;
const STATUS: u16 = 1;
const CONTROL: u16 = 2;

const STROBE: u8 = 0x01;
const INIT: u8 = 0x04;
const SELECT: u8 = 0x08;
const INTERRUPT: u8 = 0x10;
const IDLE: u8 = INIT | SELECT;

fn parallel() -> (Parallel, Screen, Arc<Recorder>) {
    let (screen, irqs) = (Screen::default(), Arc::new(Recorder::default()));
    (Parallel::new("lpt1", IrqLine::new(irqs.clone(), 7), Box::new(screen.clone())), screen, irqs)
}

/// The driver's cycle of a byte.
fn print(port: &mut Parallel, byte: u8, control: u8) {
    port.outb(0, DATA, byte);
    assert_eq!(port.inb(0, STATUS) & 0x80, 0x80, "not busy");
    port.outb(0, CONTROL, control | STROBE);
    assert_eq!(port.inb(0, STATUS) & 0x80, 0, "busy");
    port.outb(0, CONTROL, control);
}

#[test]
fn a_byte_is_printed_when_strobe_rises() {
    let (mut port, screen, irqs) = parallel();
    for byte in *b"lp" {
        print(&mut port, byte, IDLE);
    }
    assert_eq!((screen.take(), irqs.rising_edges(7)), (b"lp".to_vec(), 0));
    print(&mut port, b'!', IDLE | INTERRUPT);
    assert_eq!((screen.take(), irqs.rising_edges(7)), (b"!".to_vec(), 1));
    // Held in reset, the printer takes nothing.
    port.outb(0, CONTROL, SELECT);
    port.outb(0, CONTROL, SELECT | STROBE);
    assert_eq!(screen.take(), b"");
    // Status: paper, selected, no error.
    port.outb(0, CONTROL, IDLE);
    assert_eq!(port.inb(0, STATUS), 0xdf);
}

#[test]
fn probes_find_a_standard_port_and_nothing_more() {
    let (mut port, screen, _) = parallel();
    // The latches read back.
    for pattern in [0x55, 0xaa] {
        port.outb(0, DATA, pattern);
        assert_eq!(port.inb(0, DATA), pattern);
    }
    port.outb(0, CONTROL, 0x0c);
    assert_eq!(port.inb(0, CONTROL), 0xcc);
    // PS/2: with the direction reversed, the latch would not be seen.
    port.outb(0, CONTROL, IDLE | 0x20);
    port.outb(0, DATA, 0x55);
    assert_eq!(port.inb(0, DATA), 0x55);
    // EPP: the time-out bit cannot be cleared, by reading, by a one, by a zero.
    port.outb(0, STATUS, 0xff);
    port.outb(0, STATUS, 0xfe);
    assert_eq!(port.inb(0, STATUS) & 1, 1);
    for offset in 3..8 {
        port.outb(0, offset, 0x12);
        assert_eq!(port.inb(0, offset), 0xff);
    }
    assert_eq!(screen.take(), b"");
}

#[test]
fn a_printer_out_of_order_on_the_host_is_none_of_the_guests_business() {
    let line = IrqLine::new(Arc::new(Recorder::default()), 7);
    let mut port = Parallel::new("lpt1", line, Box::new(Broken(ErrorKind::BrokenPipe)));
    print(&mut port, b'a', IDLE);
    assert_eq!((port.lost(), port.inb(0, STATUS)), (1, 0xdf));
}

#[test]
fn a_saved_parallel_port_keeps_its_latches() {
    let (mut here, ..) = parallel();
    here.outb(0, DATA, 0x77);
    here.outb(0, CONTROL, IDLE | STROBE);
    let (mut there, screen, _) = parallel();
    there.restore(through_a_file(&here.save())).unwrap();
    assert_eq!((there.inb(0, DATA), there.inb(0, STATUS) & 0x80), (0x77, 0));
    assert_eq!(screen.take(), b"");
    let state = postcard::from_bytes(&[0, 0x40]).unwrap();
    assert!(there.restore(state).is_err());
    there.reset();
    assert_eq!(there.inb(0, CONTROL), IDLE | 0xc0);
}

#[test]
fn dma_addresses_and_counts_are_two_bytes_at_one_port() {
    let mut dma = Dma::new();
    for (region, stride) in [(dma::FIRST, 1), (dma::SECOND, 2)] {
        dma.outb(region, 0xd * stride, 0); // master clear
        for register in 0..8 {
            dma.outb(region, register * stride, 0x10 + register as u8);
            dma.outb(region, register * stride, 0x80 + register as u8);
        }
        for register in 0..8 {
            assert_eq!(dma.inb(region, register * stride), 0x10 + register as u8);
            assert_eq!(dma.inb(region, register * stride), 0x80 + register as u8);
        }
        // Clearing the flip-flop starts with the low byte again.
        dma.outb(region, 0, 0x11);
        dma.outb(region, 0xc * stride, 0);
        dma.outb(region, 0, 0x22);
        dma.outb(region, 0, 0x33);
        assert_eq!([dma.inb(region, 0), dma.inb(region, 0)], [0x22, 0x33]);
    }
}

#[test]
fn dma_masks_and_requests_are_set_by_channel() {
    let mut dma = Dma::new();
    let mask = 0xf;
    assert_eq!(dma.inb(dma::FIRST, mask), 0xff); // all masked after reset
    dma.outb(dma::FIRST, 0xa, 2);
    assert_eq!(dma.inb(dma::FIRST, mask), 0xfb);
    dma.outb(dma::FIRST, 0xe, 0);
    assert_eq!(dma.inb(dma::FIRST, mask), 0xf0);
    dma.outb(dma::FIRST, mask, 5);
    assert_eq!(dma.inb(dma::FIRST, mask), 0xf5);
    dma.outb(dma::FIRST, 9, 4 | 3);
    assert_eq!(dma.inb(dma::FIRST, 8), 0x80); // request pending, no terminal count
    dma.outb(dma::FIRST, 0xd, 0);
    assert_eq!((dma.inb(dma::FIRST, 8), dma.inb(dma::FIRST, mask)), (0, 0xff));
    // As firmware does: cascade mode on channel 4.
    dma.outb(dma::SECOND, 0xb << 1, 0xc0);
    dma.outb(dma::SECOND, 0xa << 1, 0);
    assert_eq!(dma.inb(dma::SECOND, mask << 1), 0xfe);
}

#[test]
fn dma_page_registers_are_memory() {
    let mut dma = Dma::new();
    for page in 0..15 {
        dma.outb(dma::PAGES, page, 0xa0 + page as u8);
    }
    for page in 0..15 {
        assert_eq!(dma.inb(dma::PAGES, page), 0xa0 + page as u8);
    }
    assert_eq!(dma.inb(dma::PAGES, 15), 0xff);
    let mut there = Dma::new();
    there.restore(through_a_file(&dma.save())).unwrap();
    assert_eq!(there.read(dma::PAGES, 0, AccessSize::Dword), 0xa3a2_a1a0);
    dma.reset();
    assert_eq!(dma.inb(dma::PAGES, 3), 0);
}

#[test]
fn nobody_answers_on_the_smbus() {
    let mut bus = Smbus::new();
    let (status, control, command, address) = (0, 2, 3, 4);
    assert_eq!(bus.inb(0, status), 0);
    for slave in 0x03..0x78u8 {
        bus.outb(0, address, slave << 1 | 1);
        bus.outb(0, command, 0);
        bus.outb(0, control, 0x40 | 0x08); // start: byte data
        // Not busy, device error; and nothing else.
        assert_eq!(bus.inb(0, status), 0x04);
        assert_eq!(bus.inb(0, control), 0x08);
        bus.outb(0, status, 0x04);
        assert_eq!(bus.inb(0, status), 0);
    }
    bus.outb(0, control, 0x02); // kill
    assert_eq!(bus.inb(0, status), 0x10);
}

#[test]
fn smbus_block_data_begins_anew_after_control_is_read() {
    let mut bus = Smbus::new();
    let (control, block) = (2, 7);
    bus.inb(0, control);
    for byte in 0..32 {
        bus.outb(0, block, byte);
    }
    bus.inb(0, control);
    let mut there = Smbus::new();
    assert_eq!([bus.inb(0, block), bus.inb(0, block)], [0, 1]);
    there.restore(through_a_file(&bus.save())).unwrap();
    assert_eq!([there.inb(0, block), there.inb(0, block)], [2, 3]);
    for offset in 3..=15 {
        if offset != block {
            bus.outb(0, offset, 0x50 + offset as u8);
            assert_eq!(bus.inb(0, offset), 0x50 + offset as u8);
        }
    }
    bus.reset();
    assert_eq!(bus.inb(0, 3), 0);
}
