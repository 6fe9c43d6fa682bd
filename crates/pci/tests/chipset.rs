//! The i440FX, the PIIX3 and the PIIX4 function as their datasheets have them.

mod common;

use std::sync::{Arc, Mutex};

use common::Example;
use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_device::test::Recorder;
use trapline_device::{Device, IrqLine, SaveRestore};
use trapline_pci::test::Bench;
use trapline_pci::{
    Bdf, BusId, DevFn, Effect, I440Fx, IntxPin, IntxRouter, Piix3, Piix4Pm, Shadow, Smram, piix, regs,
};

const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

fn with_host_bridge() -> (Bench, Arc<Mutex<I440Fx>>) {
    let mut bench = Bench::new();
    let host = Arc::new(Mutex::new(I440Fx::new(SUBSYSTEM, bench.effects())));
    bench.plug(host.clone());
    bench.take_effects();
    (bench, host)
}

fn shadow(start: u64, len: u64, read_ram: bool, write_ram: bool) -> Effect {
    Effect::Shadow(Shadow { start, len, read_ram, write_ram })
}

#[test]
fn the_host_bridge_says_who_it_is() {
    let (mut bench, _) = with_host_bridge();
    assert_eq!(bench.read(0, Dword), 0x1237_8086);
    assert_eq!(bench.read(4, Dword), 0x0280_0006);
    assert_eq!(bench.read(8, Dword), 0x0600_0002);
    assert_eq!(bench.read(0x2c, Dword), 0x1100_1af4);
    assert_eq!(bench.read(0x72, Byte), 0x02);
    bench.write(4, Word, 0);
    assert_eq!(bench.read(4, Word), 0x0006, "memory and bus mastering cannot be turned off");
}

#[test]
fn pam_registers_make_ram_of_rom() {
    let (mut bench, host) = with_host_bridge();
    // PAM0: only the upper half, 64 KiB at 0xf0000.
    bench.write(0x59, Byte, 0xff);
    assert_eq!(bench.read(0x59, Byte), 0x30);
    assert_eq!(bench.take_effects(), [shadow(0xf_0000, 0x1_0000, true, true)]);
    // PAM1 to PAM6: 16 KiB each half, from 0xc0000.
    bench.write(0x5a, Byte, 0x12);
    assert_eq!(
        bench.take_effects(),
        [shadow(0xc_0000, 0x4000, false, true), shadow(0xc_4000, 0x4000, true, false)]
    );
    bench.write(0x5f, Byte, 0x30);
    assert_eq!(bench.take_effects(), [shadow(0xe_c000, 0x4000, true, true)]);
    // The same again changes nothing; nor do reserved bits.
    bench.write(0x5f, Byte, 0xfc);
    assert!(bench.take_effects().is_empty());
    // SeaBIOS writes a doubleword at 0x5c.
    bench.write(0x5c, Dword, 0x3333_3333);
    assert_eq!(bench.take_effects().len(), 7);
    assert_eq!(host.lock().unwrap().shadows().filter(|s| s.read_ram && s.write_ram).count(), 9);
    // All of 0xc0000 to 0xfffff is covered, once.
    let mut all: Vec<_> = host.lock().unwrap().shadows().collect();
    all.sort();
    assert!(all.windows(2).all(|pair| pair[0].start + pair[0].len == pair[1].start));
    assert_eq!((all[0].start, all[12].start + all[12].len), (0xc_0000, 0x10_0000));
}

#[test]
fn smram_locks_until_reset() {
    let (mut bench, host) = with_host_bridge();
    bench.write(0x72, Byte, 0x4a);
    let open = Smram { enabled: true, open: true, ..Smram::default() };
    assert_eq!(bench.take_effects(), [Effect::Smram(open)]);
    // Locking closes it, and then only D_CLS can change.
    bench.write(0x72, Byte, 0x5a);
    let locked = Smram { enabled: true, locked: true, ..Smram::default() };
    assert_eq!(bench.take_effects(), [Effect::Smram(locked)]);
    assert_eq!(bench.read(0x72, Byte), 0x1a);
    bench.write(0x72, Byte, 0x40);
    assert!(bench.take_effects().is_empty());
    bench.write(0x72, Byte, 0x62);
    assert_eq!(bench.read(0x72, Byte), 0x3a);
    assert_eq!(bench.take_effects(), [Effect::Smram(Smram { closed: true, ..locked })]);
    let state = host.lock().unwrap().save();
    host.lock().unwrap().reset();
    bench.settle();
    assert_eq!(bench.take_effects(), [Effect::Smram(Smram::default())]);
    host.lock().unwrap().restore(state).unwrap();
    bench.settle();
    assert_eq!(bench.take_effects(), [Effect::Smram(Smram { closed: true, ..locked })]);
}

#[test]
fn effects_merge_until_taken() {
    let (mut bench, host) = with_host_bridge();
    let effects = bench.effects();
    let mut root = bench.root().lock().unwrap();
    for value in [0x10, 0x20, 0x30] {
        root.config_write(Bench::PLACE, 0x59, Byte, value);
    }
    assert_eq!(effects.take(), [shadow(0xf_0000, 0x1_0000, true, true)]);
    drop(root);
    drop(host);
    bench.settle();
    assert!(!effects.pending());
}

#[test]
fn the_isa_bridge_routes() {
    let recorder = Arc::new(Recorder::default());
    let router = IntxRouter::new((0..16).map(|pin| IrqLine::new(recorder.clone(), pin)).collect());
    let mut bench = Bench::new();
    let piix3 = Arc::new(Mutex::new(Piix3::new(SUBSYSTEM, router.clone())));
    bench.plug(piix3.clone());
    assert_eq!(bench.read(0, Dword), 0x7000_8086);
    assert_eq!(bench.read(8, Dword), 0x0601_0000);
    assert_eq!(bench.read(0x60, Dword), 0x8080_8080, "nothing is routed after reset");
    assert_eq!(bench.read(4, Word), 0x0007);

    let line = router.line(&[3], IntxPin::A);
    line.set(true);
    bench.write(0x62, Byte, 0x7b);
    assert_eq!(bench.read(0x62, Byte), 0x0b, "bits 6:4 are reserved");
    assert!(recorder.level(11));
    bench.write(0x60, Dword, 0x0a0a_0b0b);
    assert!(!recorder.level(11) && recorder.level(10));
    let state = piix3.lock().unwrap().save();
    piix3.lock().unwrap().reset();
    assert!(!recorder.level(10));
    piix3.lock().unwrap().restore(state).unwrap();
    assert!(recorder.level(10));
}

#[test]
fn the_power_management_function_says_where_acpi_is() {
    let mut bench = Bench::new();
    let pm = Arc::new(Mutex::new(Piix4Pm::new(SUBSYSTEM, bench.line())));
    bench.plug(pm.clone());
    assert_eq!(bench.read(0, Dword), 0x7113_8086);
    assert_eq!(bench.read(8, Dword), 0x0680_0003);
    assert_eq!(bench.read(0x3c, Word), 0x0109);
    let acpi = Arc::new(Mutex::new(Example::new(bench.line(), bench.sink())));
    let at = (BusId::ROOT, Bench::PLACE.devfn);
    let root = bench.root().clone();
    for (region, index) in [(piix::PM_EVENT, 0), (piix::PM_CONTROL, 1), (piix::PM_TIMER, 2)] {
        root.lock().unwrap().redirect(at, region, acpi.clone(), index).unwrap();
    }
    acpi.lock().unwrap().latches[..3].copy_from_slice(&[0x11, 0x22, 0x33]);

    bench.write(0x80, Byte, 1);
    assert_eq!(bench.io_read(0x0008, Dword), 0xffff_ffff, "there is no base yet");
    bench.write(0x80, Byte, 0);
    bench.write(0x40, Dword, 0xffff_0600);
    assert_eq!(bench.read(0x40, Dword), 0x0000_0601);
    assert_eq!(bench.io_read(0x608, Dword), 0xffff_ffff, "not enabled");
    bench.write(0x80, Byte, 1);
    assert_eq!(bench.io_read(0x600, Word), 0x11);
    assert_eq!(bench.io_read(0x604, Word), 0x22);
    assert_eq!(bench.io_read(0x608, Dword), 0x33);
    assert_eq!(bench.take_effects().len(), 3);
    bench.write(0x40, Dword, 0xb000);
    assert_eq!(bench.io_read(0x608, Dword), 0xffff_ffff);
    assert_eq!(bench.io_read(0xb008, Dword), 0x33);
    // The SMBus host controller; nobody stands behind it.
    bench.write(0x90, Dword, 0xb10f);
    bench.write(0xd2, Byte, 1);
    assert_eq!(bench.read(0x90, Dword), 0xb101);
    assert_eq!(bench.range(piix::SMBUS).unwrap().start, 0xb100);
    assert_eq!(bench.io_read(0xb100, Byte), 0xff);
    let state = pm.lock().unwrap().save();
    root.lock().unwrap().reset();
    bench.settle();
    assert_eq!(bench.io_read(0xb008, Dword), 0xffff_ffff);
    pm.lock().unwrap().restore(state).unwrap();
    root.lock().unwrap().refresh();
    bench.settle();
    assert_eq!(bench.io_read(0xb008, Dword), 0x33);
}

#[test]
fn function_0_alone_tells_of_the_others() {
    let mut bench = Bench::new();
    let router = IntxRouter::new(Vec::new());
    {
        let mut root = bench.root().lock().unwrap();
        root.add(BusId::ROOT, DevFn::new(1, 0), Arc::new(Mutex::new(Piix3::new((0, 0), router)))).unwrap();
        let pm = Piix4Pm::new((0, 0), bench.line());
        root.add(BusId::ROOT, DevFn::new(1, 3), Arc::new(Mutex::new(pm))).unwrap();
    }
    let header =
        |bench: &mut Bench, function| bench.read_of(Bdf::new(0, 1, function), regs::HEADER_TYPE, Byte);
    assert_eq!((header(&mut bench, 0), header(&mut bench, 3)), (0x80, 0x00));
}

#[test]
fn the_host_bridge_has_five_bits_of_latency_timer() {
    let mut bench = Bench::new();
    let bridge = I440Fx::new((0, 0), bench.effects());
    bench.plug(Arc::new(Mutex::new(bridge)));
    bench.write(regs::CACHE_LINE_SIZE, Word, 0xffff);
    assert_eq!(bench.read(regs::CACHE_LINE_SIZE, Word), 0xf800);
}
