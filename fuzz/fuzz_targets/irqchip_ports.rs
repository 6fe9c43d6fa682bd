//! Any script on the 8259A pair, the IOAPIC, the 8254 and a local APIC.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trapline_fuzz::script::{Extent, Size, Step, run};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::lapic::{LocalApic, LvtEntry, Time};
use trapline_irqchip::message::{DeliveryMode, Message};
use trapline_irqchip::pic::PicPair;
use trapline_irqchip::pit::Pit;

#[derive(arbitrary::Arbitrary, Debug)]
enum Input {
    Pic(Vec<Step>),
    IoApic(Vec<Step>),
    Pit(Vec<Step>),
    Lapic(u32, Vec<ApicStep>),
    Message(u64, u32),
}

/// A step of a local APIC's script.
#[derive(arbitrary::Arbitrary, Clone, Debug)]
enum ApicStep {
    Mmio(u16, Size, Option<u64>),
    Register(u8, Option<u32>),
    Msr(u8, Option<u64>),
    Base(u64),
    Mode(u8),
    Deliver(u8, u8, bool),
    Lint(bool, bool),
    Raise(u8),
    Deadline(u64),
    Ack,
    Init,
    Reset,
    VirtualWire,
    Pass(u16, u8),
    Move,
    KvmPage,
}

fn pic(steps: &[Step]) {
    run(
        steps,
        Extent { regions: 4, offsets: 3 },
        |world| PicPair::new(world.line(0)),
        |pic, [what, pin, ..]| match what % 3 {
            0 => drop(pic.ack()),
            level => pic.line(u32::from(pin % 18)).set(level == 1),
        },
    );
}

fn ioapic(steps: &[Step]) {
    run(
        steps,
        Extent { regions: 1, offsets: 0x50 },
        |world| IoApic::new(world.outside.clone()),
        |ioapic, [what, pin, ..]| match what % 3 {
            0 => ioapic.end_of_interrupt(pin),
            level => ioapic.line(u32::from(pin % 26)).set(level == 1),
        },
    );
}

fn pit(steps: &[Step]) {
    let make = |world: &trapline_fuzz::script::World| Pit::new(world.clock.clone(), world.line(0));
    run(steps, Extent { regions: 3, offsets: 5 }, make, |_, _| {});
}

fn step(apic: &mut LocalApic, time: &mut Time, step: &ApicStep) {
    let t = *time;
    match *step {
        ApicStep::Mmio(offset, size, Some(value)) => {
            let _ = apic.mmio_write(u64::from(offset) & 0xfff, size.into(), value, t);
        }
        ApicStep::Mmio(offset, size, None) => drop(apic.mmio_read(u64::from(offset) & 0xfff, size.into(), t)),
        ApicStep::Register(index, Some(value)) => {
            let _ = apic.mmio_write(u64::from(index & 0x3f) << 4, Size::Dword.into(), value.into(), t);
        }
        ApicStep::Register(index, None) => {
            let _ = apic.mmio_read(u64::from(index & 0x3f) << 4, Size::Dword.into(), t);
        }
        ApicStep::Msr(index, Some(value)) => drop(apic.msr_write(0x800 + u32::from(index), value, t)),
        ApicStep::Msr(index, None) => drop(apic.msr_read(0x800 + u32::from(index), t)),
        ApicStep::Base(value) => drop(apic.set_apic_base(value, 40)),
        ApicStep::Mode(mode) => drop(apic.set_apic_base(0xfee0_0000 | u64::from(mode & 3) << 10, 40)),
        ApicStep::Deliver(mode, vector, level) => {
            let _ =
                DeliveryMode::from_bits(u32::from(mode % 8)).map(|mode| apic.deliver(mode, vector, level));
        }
        ApicStep::Lint(pin, level) => drop(apic.set_lint(pin.into(), level)),
        ApicStep::Raise(entry) => {
            let entries = [LvtEntry::Cmci, LvtEntry::Thermal, LvtEntry::Performance];
            let _ = apic.raise(entries[usize::from(entry % 3)]);
        }
        ApicStep::Deadline(tsc) => apic.set_tsc_deadline(tsc, t),
        ApicStep::Ack => apic.pending().into_iter().for_each(|vector| apic.ack(vector)),
        ApicStep::Init => apic.init(),
        ApicStep::Reset => apic.reset(),
        ApicStep::VirtualWire => apic.virtual_wire(),
        ApicStep::Pass(by, shift) => {
            time.ns = time.ns.saturating_add(u64::from(by) << (shift % 48)).min(1 << 62);
            time.tsc = time.ns;
            let _ = apic.tick(*time);
        }
        ApicStep::Move => {
            let state = postcard::to_stdvec(&apic.save(t)).expect("a state is plain data");
            let mut other = LocalApic::new(apic.id(), true);
            other.restore(postcard::from_bytes(&state).expect("as written"), t).expect("a valid state");
            assert_eq!(state, postcard::to_stdvec(&other.save(t)).expect("a state is plain data"));
            *apic = other;
        }
        ApicStep::KvmPage => {
            apic.tick(t);
            let page = apic.kvm_state(t, true);
            let mut other = apic.clone();
            other.set_kvm_state(&page, t).expect("a valid page");
            assert_eq!(other.kvm_state(t, true), page);
        }
    }
    // The invariants of any state.
    if let Some(vector) = apic.pending() {
        assert!(vector >= 16 && vector >> 4 > apic.ppr() >> 4);
    }
    assert!(apic.ppr() >= apic.cr8() << 4);
    let _ = (apic.deadline(), apic.address(), apic.arbitration_priority());
}

fuzz_target!(|input: Input| match input {
    Input::Pic(steps) => pic(&steps),
    Input::IoApic(steps) => ioapic(&steps),
    Input::Pit(steps) => pit(&steps),
    Input::Lapic(id, steps) => {
        let mut apic = LocalApic::new(id, true);
        let mut time = Time::default();
        steps.iter().for_each(|s| step(&mut apic, &mut time, s));
    }
    Input::Message(address, data) => {
        let _ = Message::from_msi(trapline_device::Msi { address, data });
    }
});
