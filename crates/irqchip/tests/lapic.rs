//! The local APIC, through its registers and MSRs.

use trapline_device::AccessSize;
use trapline_irqchip::lapic::{
    Deadline, Delivered, Effect, GeneralProtection, Ipi, IpiTarget, LocalApic, LvtEntry, Time, reg,
};
use trapline_irqchip::message::{ApicMode, BROADCAST, DeliveryMode, DestinationMode, lowest_priority};

const NOW: Time = Time { ns: 0, tsc: 0 };

fn at(ns: u64) -> Time {
    Time { ns, tsc: 2 * ns }
}

/// Software enabled, xAPIC mode.
fn enabled(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, id == 0);
    apic.write(reg::SVR, 0x1ff, NOW);
    apic
}

fn x2apic(id: u32) -> LocalApic {
    let mut apic = enabled(id);
    let base = apic.apic_base() | 1 << 10;
    apic.set_apic_base(base, 46).unwrap();
    apic
}

#[test]
fn power_on_state() {
    let mut apic = LocalApic::new(3, false);
    assert_eq!(apic.apic_base(), 0xfee0_0800);
    assert_eq!(apic.page(), Some(0xfee0_0000));
    assert_eq!(apic.read(reg::ID, NOW), 3 << 24);
    assert_eq!(apic.read(reg::VERSION, NOW), 0x0106_0014);
    assert_eq!(apic.read(reg::DFR, NOW), 0xffff_ffff);
    assert_eq!(apic.read(reg::SVR, NOW), 0xff);
    for lvt in (reg::LVT_TIMER..=reg::LVT_ERROR).step_by(16).chain([reg::LVT_CMCI]) {
        assert_eq!(apic.read(lvt, NOW), 1 << 16);
    }
    assert_eq!(LocalApic::new(0, true).apic_base(), 0xfee0_0900);
}

/// In xAPIC mode software may give the local APIC another ID; in x2APIC mode it has its own.
#[test]
fn the_id_can_be_changed_in_xapic_mode() {
    let mut apic = enabled(3);
    let physical = |apic: &LocalApic, id| apic.address().matches(id, DestinationMode::Physical);
    assert_eq!(apic.write(reg::ID, 0x5aff_ffff, NOW), Some(Effect::AddressChanged));
    assert_eq!(apic.read(reg::ID, NOW), 0x5a00_0000);
    assert!(physical(&apic, 0x5a) && !physical(&apic, 3));
    let (state, page) = (apic.save(NOW), apic.kvm_state(NOW, true));
    apic.init();
    assert_eq!(apic.read(reg::ID, NOW), 0x5a00_0000, "INIT leaves it alone");
    apic.reset();
    assert_eq!(apic.read(reg::ID, NOW), 3 << 24);
    apic.restore(state, NOW).unwrap();
    assert!(physical(&apic, 0x5a));
    let mut other = enabled(3);
    other.set_kvm_state(&page, NOW).unwrap();
    assert!(physical(&other, 0x5a));
    // x2APIC mode, and the way back through "disabled".
    let base = apic.apic_base();
    apic.set_apic_base(base | 1 << 10, 46).unwrap();
    assert!(physical(&apic, 3) && !physical(&apic, 0x5a));
    apic.set_apic_base(base & !(1 << 11), 46).unwrap();
    apic.set_apic_base(base, 46).unwrap();
    assert_eq!(apic.read(reg::ID, NOW), 3 << 24);
}

#[test]
fn priorities() {
    let mut apic = enabled(0);
    assert_eq!(apic.accept(0x31, false), Delivered::Requested);
    let _ = apic.accept(0x45, false);
    assert_eq!(apic.pending(), Some(0x45));
    // TPR class 4 holds back class 4 and below.
    apic.write(reg::TPR, 0x40, NOW);
    assert_eq!((apic.pending(), apic.requested()), (None, Some(0x45)));
    apic.set_cr8(3);
    assert_eq!(apic.read(reg::TPR, NOW), 0x30);
    assert_eq!(apic.pending(), Some(0x45));
    apic.ack(0x45);
    assert_eq!(apic.read(reg::PPR, NOW), 0x40);
    assert_eq!(apic.pending(), None);
    // Another of the same class waits, one of a higher class nests.
    let _ = apic.accept(0x4f, false);
    assert_eq!(apic.pending(), None);
    let _ = apic.accept(0x50, false);
    assert_eq!(apic.pending(), Some(0x50));
    apic.ack(0x50);
    assert_eq!(apic.in_service(), Some(0x50));
    apic.write(reg::EOI, 0, NOW);
    assert_eq!(apic.read(reg::PPR, NOW), 0x40);
    apic.write(reg::EOI, 0, NOW);
    assert_eq!(apic.read(reg::PPR, NOW), 0x30);
    assert_eq!(apic.pending(), Some(0x4f));
    // A TPR above what is in service shows with its low bits.
    apic.write(reg::TPR, 0x57, NOW);
    assert_eq!(apic.read(reg::PPR, NOW), 0x57);
}

#[test]
fn vector_registers() {
    let mut apic = enabled(0);
    let _ = apic.accept(0x20, true);
    let _ = apic.accept(0xff, false);
    assert_eq!(apic.read(reg::IRR + 0x10, NOW), 1);
    assert_eq!(apic.read(reg::IRR + 0x70, NOW), 1 << 31);
    assert_eq!(apic.read(reg::TMR + 0x10, NOW), 1);
    assert_eq!(apic.read(reg::TMR + 0x70, NOW), 0);
    apic.ack(0xff);
    assert_eq!(apic.read(reg::ISR + 0x70, NOW), 1 << 31);
    assert_eq!(apic.read(reg::IRR + 0x70, NOW), 0);
}

#[test]
fn eoi_of_level_triggered_vectors_is_broadcast() {
    let mut apic = enabled(0);
    assert_eq!(apic.write(reg::EOI, 0, NOW), None, "nothing in service");
    for (level, suppress, effect) in
        [(false, false, None), (true, false, Some(Effect::Eoi(0x61))), (true, true, None)]
    {
        apic.write(reg::SVR, 0x1ff | u32::from(suppress) << 12, NOW);
        let _ = apic.accept(0x61, level);
        apic.ack(0x61);
        assert_eq!(apic.write(reg::EOI, 0, NOW), effect);
    }
}

#[test]
fn software_disabled_takes_no_interrupts_but_nmi() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_LINT0, 0x700, NOW);
    assert!(apic.accepts_extint());
    assert_eq!(apic.write(reg::SVR, 0xff, NOW), Some(Effect::AddressChanged));
    assert_eq!(apic.read(reg::LVT_LINT0, NOW), 0x1_0700);
    apic.write(reg::LVT_LINT0, 0x700, NOW);
    assert_eq!(apic.read(reg::LVT_LINT0, NOW), 0x1_0700, "the mask cannot be cleared");
    assert_eq!(apic.accept(0x40, false), Delivered::Dropped);
    assert_eq!(apic.deliver(DeliveryMode::ExtInt, 0, false), Delivered::Dropped);
    assert_eq!(apic.deliver(DeliveryMode::Nmi, 0, false), Delivered::Nmi);
    assert_eq!(apic.deliver(DeliveryMode::Init, 0, false), Delivered::Init);
    assert_eq!(apic.deliver(DeliveryMode::StartUp, 0x9a, false), Delivered::StartUp(0x9a));
    assert_eq!(apic.deliver(DeliveryMode::Smi, 0, false), Delivered::Smi);
}

#[test]
fn init_keeps_id_and_base() {
    let mut apic = x2apic(5);
    let _ = apic.accept(0x40, false);
    apic.msr_write(0x808, 0x20, NOW).unwrap();
    apic.init();
    assert_eq!((apic.id(), apic.mode(), apic.requested(), apic.cr8()), (5, ApicMode::X2Apic, None, 0));
    apic.reset();
    assert_eq!(apic.mode(), ApicMode::XApic);
}

#[test]
fn illegal_vectors_and_registers_are_errors() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_ERROR, 0xfe, NOW);
    assert_eq!(apic.accept(0x0f, false), Delivered::Dropped);
    assert_eq!(apic.read(reg::ESR, NOW), 0, "a write latches");
    assert_eq!(apic.pending(), Some(0xfe));
    apic.write(reg::ESR, 0, NOW);
    assert_eq!(apic.read(reg::ESR, NOW), 0x40);
    assert_eq!(apic.write(reg::ICR, 0x05, NOW), None);
    apic.write(reg::ESR, 0, NOW);
    assert_eq!(apic.read(reg::ESR, NOW), 0x20);
    assert_eq!(apic.read(0x3f0, NOW), 0);
    apic.write(0x010, 0, NOW);
    apic.write(reg::ESR, 0, NOW);
    assert_eq!(apic.read(reg::ESR, NOW), 0x80);
    apic.write(reg::ESR, 0, NOW);
    assert_eq!(apic.read(reg::ESR, NOW), 0);
    // An error vector that is itself illegal ends there.
    apic.write(reg::LVT_ERROR, 0x03, NOW);
    let _ = apic.accept(0, false);
    apic.write(reg::ESR, 0, NOW);
    assert_eq!(apic.read(reg::ESR, NOW), 0x40);
}

fn sent(apic: &mut LocalApic, high: u32, low: u32) -> Option<Ipi> {
    apic.write(reg::ICR_HIGH, high, NOW);
    match apic.write(reg::ICR, low, NOW) {
        Some(Effect::Ipi(ipi)) => Some(ipi),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn interprocessor_interrupts() {
    let mut apic = enabled(0);
    let physical = |id| IpiTarget::Destination(id, DestinationMode::Physical);
    let ipi = |target, delivery, vector| Some(Ipi { target, delivery, vector });
    // INIT, its level de-assert, start-up: how Linux starts a processor.
    assert_eq!(sent(&mut apic, 1 << 24, 0xc500), ipi(physical(1), DeliveryMode::Init, 0));
    assert_eq!(sent(&mut apic, 1 << 24, 0x8500), None);
    assert_eq!(sent(&mut apic, 1 << 24, 0x69a), ipi(physical(1), DeliveryMode::StartUp, 0x9a));
    let logical = IpiTarget::Destination(6, DestinationMode::Logical);
    assert_eq!(sent(&mut apic, 6 << 24, 0x8f0), ipi(logical, DeliveryMode::Fixed, 0xf0));
    assert_eq!(sent(&mut apic, 0, 0x1fb), ipi(physical(0), DeliveryMode::LowestPriority, 0xfb));
    assert_eq!(sent(&mut apic, 0xff << 24, 0x400), ipi(physical(BROADCAST), DeliveryMode::Nmi, 0));
    assert_eq!(sent(&mut apic, 0, 0x4_0040), ipi(IpiTarget::Myself, DeliveryMode::Fixed, 0x40));
    assert_eq!(sent(&mut apic, 0, 0x8_0040), ipi(IpiTarget::All, DeliveryMode::Fixed, 0x40));
    assert_eq!(sent(&mut apic, 0, 0xc_0200), ipi(IpiTarget::Others, DeliveryMode::Smi, 0));
    assert_eq!(sent(&mut apic, 0, 0x340), None, "reserved delivery mode");
    assert_eq!(sent(&mut apic, 0, 0x740), None, "no ExtINT by IPI");
    apic.write(reg::ICR_HIGH, u32::MAX, NOW);
    assert_eq!(apic.read(reg::ICR_HIGH, NOW), 0xff00_0000);
}

#[test]
fn shorthands_reach() {
    let me = enabled(0).address();
    let other = enabled(1).address();
    let off = LocalApic::new(2, false).address();
    let reach = |target, delivery| {
        let ipi = Ipi { target, delivery, vector: 0x40 };
        (ipi.reaches(&me, true), ipi.reaches(&other, false), ipi.reaches(&off, false))
    };
    assert_eq!(reach(IpiTarget::Myself, DeliveryMode::Fixed), (true, false, false));
    assert_eq!(reach(IpiTarget::All, DeliveryMode::Fixed), (true, true, false));
    assert_eq!(reach(IpiTarget::Others, DeliveryMode::Init), (false, true, true));
    let to_2 = IpiTarget::Destination(2, DestinationMode::Physical);
    assert_eq!(reach(to_2, DeliveryMode::StartUp), (false, false, true));
    assert_eq!(reach(to_2, DeliveryMode::Fixed), (false, false, false));
}

#[test]
fn logical_destinations() {
    let mut apic = enabled(1);
    assert_eq!(apic.write(reg::LDR, 0x02ff_ffff, NOW), Some(Effect::AddressChanged));
    assert_eq!(apic.read(reg::LDR, NOW), 0x0200_0000);
    let logical = |apic: &LocalApic, d| apic.address().matches(d, DestinationMode::Logical);
    // Flat model.
    for (destination, matches) in [(0x02, true), (0x06, true), (0x01, false), (0xff, true), (0, false)] {
        assert_eq!(logical(&apic, destination), matches, "{destination:#x}");
    }
    // Cluster model: cluster 3, member bit 2.
    apic.write(reg::DFR, 0, NOW);
    assert_eq!(apic.read(reg::DFR, NOW), 0x0fff_ffff);
    apic.write(reg::LDR, 0x3400_0000, NOW);
    for (destination, matches) in [(0x34, true), (0x3f, true), (0x24, false), (0x38, false), (0xf4, true)] {
        assert_eq!(logical(&apic, destination), matches, "{destination:#x}");
    }
    let physical = |d| apic.address().matches(d, DestinationMode::Physical);
    assert!(physical(1) && physical(0xff) && physical(BROADCAST) && !physical(2));
    // x2APIC: cluster in the upper half, from the ID.
    let mut apic = x2apic(0x25);
    assert_eq!(apic.msr_read(0x80d, NOW), Ok(0x0002_0020));
    for (destination, matches) in [
        (0x0002_0020, true),
        (0x0002_ffff, true),
        (0x0002_0010, false),
        (0x0003_0020, false),
        (BROADCAST, true),
    ] {
        assert_eq!(logical(&apic, destination), matches, "{destination:#x}");
    }
    assert!(!apic.address().matches(0xff, DestinationMode::Physical));
}

#[test]
fn the_lowest_priority_is_chosen() {
    let mut apics = [enabled(0), enabled(1), enabled(2)];
    apics[0].set_cr8(4);
    let _ = apics[1].accept(0x31, false);
    apics[1].ack(0x31);
    let _ = apics[1].accept(0x33, false);
    let chosen =
        |apics: &[LocalApic]| lowest_priority(apics.iter().map(|a| (a.id(), a.arbitration_priority())));
    assert_eq!(chosen(&apics), Some(2));
    apics[2].set_cr8(5);
    assert_eq!(chosen(&apics), Some(1));
    assert_eq!(apics[1].read(reg::APR, NOW), 0x30);
    assert_eq!(lowest_priority::<u32>([]), None);
}

#[test]
fn one_shot_timer() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_TIMER, 0xec, NOW);
    assert_eq!(apic.deadline(), None);
    apic.write(reg::DIVIDE, 0x3, NOW); // by 16
    assert_eq!(apic.write(reg::INITIAL_COUNT, 1000, at(5)), Some(Effect::TimerChanged));
    assert_eq!(apic.deadline(), Some(Deadline::Nanos(16_005)));
    assert_eq!(apic.read(reg::CURRENT_COUNT, at(5 + 160)), 990);
    assert!(!apic.tick(at(16_004)));
    assert!(apic.tick(at(16_005)));
    assert_eq!(apic.pending(), Some(0xec));
    assert_eq!((apic.deadline(), apic.read(reg::CURRENT_COUNT, at(17_000))), (None, 0));
    assert_eq!(apic.read(reg::INITIAL_COUNT, at(17_000)), 1000);
    // Zero stops it.
    apic.write(reg::INITIAL_COUNT, 1000, at(20_000));
    apic.write(reg::INITIAL_COUNT, 0, at(20_001));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn divide_configuration() {
    for (bits, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut apic = enabled(0);
        apic.write(reg::LVT_TIMER, 0xec, NOW);
        apic.write(reg::DIVIDE, bits | 4, NOW);
        assert_eq!(apic.read(reg::DIVIDE, NOW), bits);
        apic.write(reg::INITIAL_COUNT, 10, NOW);
        assert_eq!(apic.deadline(), Some(Deadline::Nanos(10 * divisor)));
    }
    // A change while it runs counts on at the new pace.
    let mut apic = enabled(0);
    apic.write(reg::LVT_TIMER, 0xec, NOW);
    apic.write(reg::INITIAL_COUNT, 10, NOW);
    apic.write(reg::DIVIDE, 0xb, at(8));
    assert_eq!(apic.deadline(), Some(Deadline::Nanos(14)));
}

#[test]
fn periodic_timer() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_TIMER, 0x2_00ec, NOW);
    apic.write(reg::DIVIDE, 0xb, NOW);
    apic.write(reg::INITIAL_COUNT, 1000, NOW);
    assert!(apic.tick(at(1000)));
    assert_eq!(apic.deadline(), Some(Deadline::Nanos(2000)));
    // Late: missed periods are one interrupt, the phase is kept.
    assert!(apic.tick(at(5300)));
    assert_eq!(apic.deadline(), Some(Deadline::Nanos(6000)));
    assert_eq!(apic.read(reg::CURRENT_COUNT, at(5300)), 700);
    // Masked it runs on in silence.
    apic.write(reg::LVT_TIMER, 0x3_00ec, at(5300));
    assert_eq!(apic.deadline(), None);
    assert!(!apic.tick(at(6500)));
    apic.write(reg::LVT_TIMER, 0x2_00ec, at(7500));
    assert_eq!(apic.deadline(), Some(Deadline::Nanos(8000)));
}

#[test]
fn an_expiry_while_masked_is_lost() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_TIMER, 0x1_00ec, NOW);
    apic.write(reg::INITIAL_COUNT, 10, NOW);
    apic.write(reg::LVT_TIMER, 0xec, at(100));
    assert!(!apic.tick(at(100)));
    assert_eq!(apic.requested(), None);
}

#[test]
fn tsc_deadline_timer() {
    let mut apic = enabled(0);
    apic.set_tsc_deadline(1000, NOW);
    assert_eq!(apic.tsc_deadline(), 0, "ignored in another mode");
    apic.write(reg::LVT_TIMER, 0x4_00ec, NOW);
    apic.write(reg::INITIAL_COUNT, 1000, NOW);
    assert_eq!(apic.read(reg::CURRENT_COUNT, NOW), 0);
    apic.set_tsc_deadline(1000, NOW);
    assert_eq!((apic.deadline(), apic.tsc_deadline()), (Some(Deadline::Tsc(1000)), 1000));
    assert!(!apic.tick(at(499)));
    assert!(apic.tick(at(500)));
    assert_eq!((apic.tsc_deadline(), apic.pending()), (0, Some(0xec)));
    apic.ack(0xec);
    apic.eoi();
    apic.set_tsc_deadline(7, at(500));
    assert_eq!((apic.tsc_deadline(), apic.pending()), (0, Some(0xec)), "one in the past fires at once");
    // Zero disarms, and so does leaving the mode.
    apic.set_tsc_deadline(5000, at(500));
    apic.set_tsc_deadline(0, at(500));
    assert_eq!(apic.deadline(), None);
    apic.set_tsc_deadline(5000, at(500));
    apic.write(reg::LVT_TIMER, 0xec, at(500));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn local_interrupt_pins() {
    let mut apic = enabled(0);
    assert_eq!(apic.set_lint(1, true), Delivered::Dropped, "masked");
    let _ = apic.set_lint(1, false);
    apic.virtual_wire();
    assert_eq!(apic.set_lint(0, true), Delivered::ExtInt);
    assert_eq!(apic.set_lint(0, true), Delivered::Dropped, "no edge");
    assert!(apic.extint_pending());
    apic.write(reg::LVT_LINT0, 0x1_0700, NOW);
    assert!(!apic.extint_pending());
    assert_eq!(apic.set_lint(1, true), Delivered::Nmi);
    assert_eq!(apic.set_lint(2, true), Delivered::Dropped, "no such pin");
    // A fixed level: again and again until the line falls.
    let _ = apic.set_lint(0, false);
    apic.write(reg::LVT_LINT0, 0x8050, NOW);
    assert_eq!(apic.set_lint(0, true), Delivered::Requested);
    apic.ack(0x50);
    assert_eq!(apic.read(reg::LVT_LINT0, NOW), 0xc050);
    assert_eq!(apic.pending(), None);
    apic.write(reg::EOI, 0, NOW);
    assert_eq!(apic.pending(), Some(0x50));
    apic.ack(0x50);
    let _ = apic.set_lint(0, false);
    apic.write(reg::EOI, 0, NOW);
    assert_eq!(apic.requested(), None);
    assert_eq!(apic.read(reg::LVT_LINT0, NOW), 0x8050);
}

#[test]
fn local_sources() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_PERFORMANCE, 0x400, NOW);
    assert_eq!(apic.raise(LvtEntry::Performance), Delivered::Nmi);
    assert_eq!(apic.raise(LvtEntry::Performance), Delivered::Dropped, "it masks itself");
    apic.write(reg::LVT_THERMAL, 0xfa, NOW);
    assert_eq!(apic.raise(LvtEntry::Thermal), Delivered::Requested);
    apic.write(reg::LVT_CMCI, 0x100, NOW);
    assert_eq!(apic.raise(LvtEntry::Cmci), Delivered::Dropped, "lowest priority is not for these");
}

#[test]
fn apic_base_transitions() {
    const EN: u64 = 0xfee0_0800;
    const X2: u64 = 0xfee0_0c00;
    const OFF: u64 = 0xfee0_0000;
    let gp = Err(GeneralProtection);
    let mut apic = enabled(0);
    assert_eq!(apic.set_apic_base(EN | 1, 46), gp);
    assert_eq!(apic.set_apic_base(EN | 1 << 9, 46), gp);
    assert_eq!(apic.set_apic_base(EN | 1 << 46, 46), gp);
    assert_eq!(apic.set_apic_base(0xfee0_0400, 46), gp, "x2APIC without enable");
    // The page moves.
    assert_eq!(apic.set_apic_base(0x1000_0800, 46), Ok(Some(Effect::AddressChanged)));
    assert_eq!(apic.page(), Some(0x1000_0000));
    assert_eq!(apic.apic_base() & 1 << 8, 1 << 8, "the boot processor stays it");
    apic.set_apic_base(X2, 46).unwrap();
    assert_eq!(apic.page(), None);
    assert_eq!(apic.set_apic_base(EN, 46), gp, "not back to xAPIC");
    let _ = apic.accept(0x40, false);
    apic.set_apic_base(OFF, 46).unwrap();
    assert_eq!(apic.accept(0x40, false), Delivered::Dropped);
    assert_eq!(apic.deliver(DeliveryMode::Nmi, 0, false), Delivered::Dropped);
    assert!(apic.accepts_extint(), "LINT0 is INTR now");
    assert_eq!((apic.set_lint(0, true), apic.set_lint(1, true)), (Delivered::ExtInt, Delivered::Nmi));
    assert_eq!(apic.set_apic_base(X2, 46), gp, "not straight to x2APIC");
    apic.set_apic_base(EN, 46).unwrap();
    assert_eq!((apic.requested(), apic.read(reg::SVR, NOW)), (None, 0xff), "all was reset");
}

#[test]
fn x2apic_msrs() {
    let gp = Err(GeneralProtection);
    assert_eq!(enabled(0).msr_read(0x802, NOW), gp, "xAPIC mode");
    let mut apic = x2apic(0x123);
    assert_eq!(apic.msr_read(0x802, NOW), Ok(0x123));
    assert_eq!(apic.mmio_read(0x20, AccessSize::Dword, NOW), 0xffff_ffff);
    // Registers that x2APIC does not have, or not to read.
    for msr in [0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x831, 0x83f, 0x840, 0x8ff, 0x900] {
        assert_eq!(apic.msr_read(msr, NOW), gp, "{msr:#x}");
    }
    for (msr, value) in
        [(0x802, 0), (0x80a, 0), (0x80b, 1), (0x80d, 0), (0x80f, 0x2000), (0x828, 1), (0x832, 1 << 19)]
    {
        assert_eq!(apic.msr_write(msr, value, NOW).err(), Some(GeneralProtection), "{msr:#x}");
    }
    // ICR is one register of 64 bits; the self IPI has one of its own.
    let to = IpiTarget::Destination(0x456, DestinationMode::Physical);
    let ipi = Ipi { target: to, delivery: DeliveryMode::Fixed, vector: 0x40 };
    assert_eq!(apic.msr_write(0x830, 0x456_0000_0040, NOW), Ok(Some(Effect::Ipi(ipi))));
    assert_eq!(apic.msr_read(0x830, NOW), Ok(0x456_0000_0040));
    let ipi = Ipi { target: IpiTarget::Myself, delivery: DeliveryMode::Fixed, vector: 0x41 };
    assert_eq!(apic.msr_write(0x83f, 0x41, NOW), Ok(Some(Effect::Ipi(ipi))));
    let _ = apic.accept(0x50, true);
    apic.ack(0x50);
    assert_eq!(apic.msr_write(0x80b, 0, NOW), Ok(Some(Effect::Eoi(0x50))));
}

#[test]
fn the_page_takes_aligned_dwords() {
    let mut apic = enabled(0);
    assert_eq!(apic.mmio_write(0x80, AccessSize::Byte, 0x50, NOW), None);
    assert_eq!(apic.mmio_read(0x80, AccessSize::Dword, NOW), 0);
    apic.mmio_write(0x80, AccessSize::Dword, 0x50, NOW);
    assert_eq!(apic.mmio_read(0x80, AccessSize::Byte, NOW), 0x50);
    assert_eq!(apic.mmio_read(0x32, AccessSize::Byte, NOW), 0x06);
    assert_eq!(apic.mmio_read(0x84, AccessSize::Dword, NOW), 0);
}

#[test]
fn kvm_page_round_trip() {
    for mut apic in [enabled(7), x2apic(7)] {
        let _ = apic.accept(0x71, true);
        apic.ack(0x71);
        let _ = apic.accept(0x91, false);
        let x2 = apic.mode() == ApicMode::X2Apic;
        if x2 {
            apic.msr_write(0x832, 0xec, NOW).unwrap();
            apic.msr_write(0x838, 1000, NOW).unwrap();
        } else {
            apic.write(reg::LVT_TIMER, 0xec, NOW);
            apic.write(reg::INITIAL_COUNT, 1000, NOW);
            apic.write(reg::LDR, 0x0200_0000, NOW);
        }
        let page = apic.kvm_state(at(500), true);
        let word = |offset: usize| u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap());
        assert_eq!(word(0x20), if x2 { 7 } else { 7 << 24 });
        assert_eq!((word(0x130), word(0x240), word(0x390)), (1 << 17, 1 << 17, 750));
        let mut copy = LocalApic::new(7, false);
        copy.set_apic_base(0xfee0_0800, 46).unwrap();
        copy.set_apic_base(apic.apic_base(), 46).unwrap();
        copy.set_kvm_state(&page, at(10_000)).unwrap();
        assert_eq!(copy.kvm_state(at(10_000), true), page);
        assert_eq!(copy.deadline(), Some(Deadline::Nanos(11_500)));
        assert_eq!(copy.address(), apic.address());
        // The form of the ID without 32-bit IDs is taken too; another ID is not in x2APIC mode.
        copy.set_kvm_state(&apic.kvm_state(at(500), false), NOW).unwrap();
        let mut other = LocalApic::new(8, false);
        other.set_apic_base(apic.apic_base(), 46).unwrap();
        assert_eq!(other.set_kvm_state(&page, NOW).is_err(), x2);
    }
}

#[test]
fn saved_time_is_relative() {
    let mut apic = enabled(0);
    apic.write(reg::LVT_TIMER, 0x2_00ec, NOW);
    apic.write(reg::INITIAL_COUNT, 1000, at(0));
    let state = postcard::from_bytes(&postcard::to_stdvec(&apic.save(at(500))).unwrap()).unwrap();
    let mut copy = LocalApic::new(0, true);
    copy.restore(state, at(1_000_000)).unwrap();
    assert_eq!(copy.deadline(), Some(Deadline::Nanos(1_001_500)));
    let error = LocalApic::new(1, false).restore(apic.save(NOW), NOW).unwrap_err();
    assert_eq!(error.to_string(), "saved state of lapic: is that of APIC ID 0, not 1");
}
