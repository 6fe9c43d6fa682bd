//! Pins, MSI and MSI-X (PCI Local Bus 3.0 §6.8), and the PIIX3's routing.

mod common;

use std::sync::Arc;

use common::placed;
use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_device::test::Recorder;
use trapline_device::{IrqLine, Msi};
use trapline_pci::test::Bench;
use trapline_pci::{InterruptMode, IntxPin, IntxRouter, MsixLayout, capability::id, regs};

fn vector(data: u32) -> Msi {
    Msi { address: 0xfee0_1000, data }
}

#[test]
fn the_pin_follows_request_and_disable() {
    let (mut bench, device) = placed();
    let interrupts = device.lock().unwrap().config.interrupts().clone();
    interrupts.set_intx(true);
    assert!(bench.intx());
    assert_eq!(bench.read(regs::STATUS, Word) & 1 << 3, 1 << 3);
    // Disabled, the status bit still says so.
    bench.write(regs::COMMAND, Word, 0x0407);
    assert!(!bench.intx());
    assert_eq!(bench.read(regs::STATUS, Word) & 1 << 3, 1 << 3);
    bench.write(regs::COMMAND, Word, 0x0007);
    assert!(bench.intx());
    interrupts.set_intx(false);
    assert!(!bench.intx());
    assert_eq!(bench.read(regs::STATUS, Byte) & 1 << 3, 0);
    assert!(!interrupts.signal(0), "no messages are enabled");
}

fn enable_msi(bench: &mut Bench, allowed: u32) -> u16 {
    let msi = bench.capability(id::MSI).unwrap();
    bench.write(msi + 4, Dword, 0xfee0_1003);
    bench.write(msi + 8, Dword, 0);
    bench.write(msi + 12, Word, 0x4047);
    bench.write(msi + 2, Word, 1 | allowed << 4);
    msi
}

#[test]
fn msi_sends_the_vectors_that_were_allowed() {
    let (mut bench, device) = placed();
    let interrupts = device.lock().unwrap().config.interrupts().clone();
    let msi = bench.capability(id::MSI).unwrap();
    assert_eq!(bench.read(msi + 2, Word), 0x0186, "eight vectors, 64 bits, maskable");
    enable_msi(&mut bench, 2);
    assert_eq!(interrupts.mode(), InterruptMode::Msi);
    assert_eq!(bench.read(msi + 4, Dword), 0xfee0_1000, "the low two bits are zero");
    assert!(interrupts.signal(2));
    assert_eq!(bench.take_messages(), [vector(0x4046)], "the low two bits are the vector");
    interrupts.signal(5);
    assert_eq!(bench.take_messages(), [vector(0x4045)], "folded");
    // Sixteen or more cannot be allowed where eight were asked for.
    bench.write(msi + 2, Word, 1 | 7 << 4);
    interrupts.signal(7);
    assert_eq!(bench.take_messages(), [vector(0x4047)]);
    // While messages are enabled the pin is not driven.
    interrupts.set_intx(true);
    assert!(!bench.intx());
    bench.write(msi + 2, Word, 0);
    assert!(bench.intx());
}

#[test]
fn a_masked_msi_waits() {
    let (mut bench, device) = placed();
    let interrupts = device.lock().unwrap().config.interrupts().clone();
    let msi = enable_msi(&mut bench, 3);
    let (mask, pending) = (msi + 16, msi + 20);
    bench.write(mask, Dword, 0xffff_ffff);
    assert_eq!(bench.read(mask, Dword), 0xff);
    interrupts.signal(1);
    interrupts.signal(1);
    interrupts.signal(6);
    assert_eq!(bench.read(pending, Dword), 1 << 1 | 1 << 6);
    bench.write(pending, Dword, 0);
    assert_eq!(bench.read(pending, Byte), 1 << 1 | 1 << 6, "read-only");
    assert!(bench.take_messages().is_empty());
    bench.write(mask, Dword, 1 << 6);
    assert_eq!(bench.take_messages(), [vector(0x4041)]);
    assert_eq!(bench.read(pending, Dword), 1 << 6);
    // What waits when MSI is disabled is forgotten.
    bench.write(msi + 2, Word, 0);
    assert_eq!(bench.read(pending, Dword), 0);
}

#[test]
fn messages_wait_for_bus_mastering() {
    let (mut bench, device) = placed();
    let interrupts = device.lock().unwrap().config.interrupts().clone();
    enable_msi(&mut bench, 0);
    bench.write(regs::COMMAND, Word, 0b011);
    interrupts.signal(0);
    assert!(bench.take_messages().is_empty());
    bench.write(regs::COMMAND, Word, 0b111);
    assert_eq!(bench.take_messages(), [vector(0x4047)]);
}

#[test]
fn msix_masks_vectors_and_the_function() {
    let (mut bench, device) = placed();
    let interrupts = device.lock().unwrap().config.interrupts().clone();
    let msix = bench.capability(id::MSIX).unwrap();
    let layout = MsixLayout::in_bar(4, common::MSIX_VECTORS);
    assert_eq!(bench.read(msix + 2, Word), 69);
    assert_eq!(bench.read(msix + 4, Dword), 4);
    assert_eq!(bench.read(msix + 8, Dword), layout.pba_offset | 4);

    let entry = 16 * 65;
    assert_eq!(bench.bar_read(4, entry + 12, Dword), 1, "masked after reset");
    bench.bar_write(4, entry, Dword, 0xfee0_1003);
    bench.bar_write(4, entry + 8, Qword, 0xffff_fffe_0000_4099);
    assert_eq!(bench.bar_read(4, entry, Qword), 0xfee0_1000);
    assert_eq!(bench.bar_read(4, entry + 8, Qword), 0x4099);
    assert!(!interrupts.signal(65), "not enabled yet");

    // Enabled, with the function masked: it waits.
    bench.write(msix + 2, Word, 0xc000);
    assert_eq!(interrupts.mode(), InterruptMode::Msix);
    assert!(interrupts.signal(65));
    assert!(interrupts.signal(3));
    let pba = u64::from(layout.pba_offset);
    assert_eq!(bench.bar_read(4, pba, Qword), 1 << 3);
    assert_eq!(bench.bar_read(4, pba + 8, Dword), 1 << 1);
    bench.bar_write(4, pba, Qword, 0);
    assert_eq!(bench.bar_read(4, pba, Qword), 1 << 3, "read-only");
    assert_eq!(interrupts.msix_message(65), None);

    bench.write(msix + 2, Word, 0x8000);
    assert_eq!(bench.take_messages(), [vector(0x4099)]);
    assert_eq!(interrupts.msix_message(65), Some(vector(0x4099)));
    assert_eq!(bench.bar_read(4, pba + 8, Qword), 0);
    // Vector 3 is masked by itself.
    bench.bar_write(4, 16 * 3 + 8, Dword, 0x4033);
    bench.bar_write(4, 16 * 3, Qword, 0xfee0_1000);
    assert!(bench.take_messages().is_empty());
    bench.bar_write(4, 16 * 3 + 12, Dword, 0);
    assert_eq!(bench.take_messages(), [vector(0x4033)]);
    assert!(!interrupts.signal(70), "there is no such vector");
    assert!(bench.take_messages().is_empty());
}

fn isa(recorder: &Arc<Recorder>) -> Vec<IrqLine> {
    (0..16).map(|pin| IrqLine::new(recorder.clone(), pin)).collect()
}

#[test]
fn pins_are_routed_and_wired_together() {
    let recorder = Arc::new(Recorder::default());
    let direct = (16..20).map(|pin| IrqLine::new(recorder.clone(), pin)).collect();
    let router = IntxRouter::with_direct(isa(&recorder), direct);
    router.set_route(0, 10);
    router.set_route(1, 11);
    // INTA# of device 1 is PIRQA, of device 2 PIRQB; INTB# of device 1 PIRQB too.
    let a = router.line(&[1], IntxPin::A);
    let b = router.line(&[2], IntxPin::A);
    let c = router.line(&[1], IntxPin::B);
    a.set(true);
    assert!(recorder.level(10) && recorder.level(16) && !recorder.level(11));
    b.set(true);
    c.set(true);
    c.set(true);
    assert!(recorder.level(11));
    b.set(false);
    assert!(recorder.level(11), "the other still holds it");
    c.set(false);
    assert!(!recorder.level(11));
    assert_eq!(recorder.rising_edges(11), 1);

    // Two PIRQs on one interrupt; a route that moves takes its level along.
    b.set(true);
    router.set_route(1, 10);
    assert!(!recorder.level(11));
    a.set(false);
    assert!(recorder.level(10));
    router.set_route(1, 0x80);
    assert!(!recorder.level(10));
    // Interrupts 0, 1, 2, 8 and 13 are reserved.
    for reserved in [0, 1, 2, 8, 13] {
        router.set_route(1, reserved);
        assert!(!recorder.level(reserved.into()));
        assert_eq!(router.route(1), None);
    }
    assert!(recorder.level(17), "the direct line follows all the time");
    // A function that is unplugged lets go.
    router.set_route(1, 5);
    assert!(recorder.level(5));
    drop(b);
    assert!(!recorder.level(5) && !recorder.level(17));
}

#[test]
fn bridges_swizzle() {
    let recorder = Arc::new(Recorder::default());
    let router = IntxRouter::new(isa(&recorder));
    for (pirq, irq) in [3, 4, 5, 6].into_iter().enumerate() {
        router.set_route(pirq as u8, irq);
    }
    // INTB# of device 3 behind the bridge at device 1: INTA# of the bridge, PIRQA.
    assert_eq!(IntxPin::B.swizzle(3), IntxPin::A);
    router.line(&[1, 3], IntxPin::B).set(true);
    assert_eq!(recorder.rising_edges(3), 1);
    // Two bridges: device 6 INTD# is B at bridge 2, D at bridge 4, PIRQC.
    router.line(&[4, 2, 6], IntxPin::D).set(true);
    assert_eq!(recorder.rising_edges(5), 1);
}
