//! The PCI function: what firmware and lspci see.

mod common;

use std::sync::{Arc, Mutex};

use common::{Byte, Dword, Word, disk_drive, numbered};
use trapline_device::{IrqLine, test::Recorder};
use trapline_ide::{IDETIM, IdeConfig, PiixIde};
use trapline_pci::{regs, test::Bench};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn bench() -> Bench {
    bench_with(|ide| ide)
}

fn bench_with(change: impl FnOnce(PiixIde) -> PiixIde) -> Bench {
    let irqs = Arc::new(Recorder::default());
    let ide = PiixIde::new(IdeConfig {
        subsystem: (0x1af4, 0x1100),
        memory: Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()),
        irqs: [IrqLine::new(irqs.clone(), 14), IrqLine::new(irqs, 15)],
        drives: [[Some(disk_drive(numbered(8))), None], [Some(disk_drive(numbered(8))), None]],
    });
    let mut bench = Bench::new();
    bench.plug(Arc::new(Mutex::new(change(ide.unwrap()))));
    bench
}

#[test]
fn identity_and_bar() {
    let mut bench = bench();
    assert_eq!(bench.read(regs::VENDOR_ID, Dword), 0x7010_8086);
    assert_eq!(
        bench.read(regs::REVISION, Dword),
        0x0101_8000,
        "IDE that masters the bus, compatibility mode"
    );
    assert_eq!(bench.read(regs::INTERRUPT_PIN, Byte), 0);
    bench.write(0x20, Dword, u32::MAX);
    assert_eq!(bench.read(0x20, Dword), 0xffff_fff1 | 0xfff0, "16 ports");
    assert_eq!(bench.read(0x10, Dword), 0);
}

#[test]
fn ports_follow_the_decode_enable_bits() {
    let mut bench = bench();
    bench.write(regs::COMMAND, Word, 1);
    assert_eq!(bench.io_read(0x1f7, Byte), 0xff);
    bench.write(IDETIM, Word, 0x8000);
    assert_eq!((bench.io_read(0x1f7, Byte), bench.io_read(0x3f6, Byte)), (0x50, 0x50));
    assert_eq!((bench.io_read(0x177, Byte), bench.io_read(0x3f7, Byte)), (0xff, 0xff));
    bench.write(IDETIM + 2, Word, 0xa307);
    assert_eq!((bench.io_read(0x177, Byte), bench.io_read(0x376, Byte)), (0x50, 0x50));
    assert_eq!(bench.read(IDETIM, Dword), 0xa307_8000);
    bench.write(regs::COMMAND, Word, 0);
    assert_eq!(bench.io_read(0x1f7, Byte), 0xff);
}

#[test]
fn a_controller_for_virtual_machines_decodes_from_reset_on() {
    let mut bench = bench_with(PiixIde::with_decode_enabled);
    assert_eq!(bench.read(IDETIM, Dword), 0x8000_8000);
    assert_eq!(bench.io_read(0x1f7, Byte), 0xff, "not before the function decodes ports");
    bench.write(regs::COMMAND, Word, 1);
    assert_eq!((bench.io_read(0x1f7, Byte), bench.io_read(0x177, Byte)), (0x50, 0x50));
    bench.write(IDETIM, Word, 0);
    assert_eq!((bench.io_read(0x1f7, Byte), bench.io_read(0x177, Byte)), (0xff, 0x50));
}

#[test]
fn the_channels_bus_masters_are_apart() {
    let mut bench = bench();
    bench.place().unwrap();
    bench.bar_write(4, 4, Dword, 0x1234_5677);
    bench.bar_write(4, 12, Dword, 0x8765_4320);
    bench.bar_write(4, 10, Byte, 0x20);
    assert_eq!(bench.bar_read(4, 4, Dword), 0x1234_5674);
    assert_eq!(bench.bar_read(4, 12, Dword), 0x8765_4320);
    assert_eq!((bench.bar_read(4, 2, Byte), bench.bar_read(4, 10, Byte)), (0x00, 0x20));
}
