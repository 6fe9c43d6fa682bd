//! Random scripts: no guest makes a device panic, and a device restored from saved state in the
//! middle of a script answers the rest of it as the one that went on does.

use std::sync::Arc;

use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{AccessSize, Clock, Device, IrqLine, Msi, SaveRestore};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::lapic::{LocalApic, LvtEntry, Time};
use trapline_irqchip::message::{DeliveryMode, DestinationMode, Message};
use trapline_irqchip::pic::PicPair;
use trapline_irqchip::pit::Pit;

fn size() -> impl Strategy<Value = AccessSize> + Clone {
    prop::sample::select(vec![AccessSize::Byte, AccessSize::Word, AccessSize::Dword, AccessSize::Qword])
}

/// One step of a script.
#[derive(Clone, Debug)]
enum Step {
    Read(usize, u64, AccessSize),
    Write(usize, u64, AccessSize, u64),
    Line(u32, bool),
    Ack,
    Eoi(u8),
    Pass(u64),
    Poll,
}

fn steps(regions: usize, offsets: u64) -> impl Strategy<Value = Vec<Step>> {
    let place = (0..regions, 0..offsets, size());
    let step = prop_oneof![
        3 => place.clone().prop_map(|(r, o, s)| Step::Read(r, o, s)),
        6 => (place, any::<u64>()).prop_map(|((r, o, s), v)| Step::Write(r, o, s, v)),
        2 => (0_u32..26, any::<bool>()).prop_map(|(pin, level)| Step::Line(pin, level)),
        1 => Just(Step::Ack),
        1 => any::<u8>().prop_map(Step::Eoi),
        2 => prop_oneof![0_u64..100_000, any::<u64>().prop_map(|t| t >> 16)].prop_map(Step::Pass),
        1 => Just(Step::Poll),
    ];
    prop::collection::vec(step, 0..80)
}

/// Through serde and back, as a snapshot goes.
fn thaw<T: Serialize + DeserializeOwned>(state: &T) -> T {
    postcard::from_bytes(&postcard::to_stdvec(state).unwrap()).unwrap()
}

/// What a step brought to light.
type Answer = (u64, bool, Vec<Msi>);

/// A port device with what is around it.
struct Rig<D> {
    device: D,
    clock: Arc<FakeClock>,
    outside: Arc<Recorder>,
    line: fn(&D, u32, bool),
    ack: fn(&D, u8) -> u64,
}

impl<D: Device + SaveRestore> Rig<D> {
    fn run(&mut self, step: &Step) -> Answer {
        let mut value = 0;
        match *step {
            Step::Read(region, offset, size) => {
                if let Some(pio) = self.device.pio() {
                    value = pio.read(region, offset as u16, size.min(AccessSize::Dword)).into();
                } else if let Some(mmio) = self.device.mmio() {
                    value = mmio.read(region, offset, size);
                }
            }
            Step::Write(region, offset, size, data) => {
                if let Some(pio) = self.device.pio() {
                    pio.write(region, offset as u16, size.min(AccessSize::Dword), data as u32);
                } else if let Some(mmio) = self.device.mmio() {
                    mmio.write(region, offset, size, data);
                }
            }
            Step::Line(pin, level) => (self.line)(&self.device, pin, level),
            Step::Ack => value = (self.ack)(&self.device, 0),
            Step::Eoi(vector) => value = (self.ack)(&self.device, vector),
            Step::Pass(ns) => self.clock.advance(ns.min((1 << 60) - self.clock.now())),
            Step::Poll => {
                let now = self.clock.now();
                if let Some(poll) = self.device.poll() {
                    poll.poll(now);
                    value = poll.deadline().unwrap_or(0);
                }
            }
        }
        (value, self.outside.level(0), self.outside.take_messages())
    }
}

/// Runs the script on one rig, saves, restores into the other, and runs the rest on both.
fn compare<D: Device + SaveRestore>(mut a: Rig<D>, mut b: Rig<D>, before: &[Step], after: &[Step]) {
    for step in before {
        a.run(step);
    }
    b.clock.advance(a.clock.now());
    b.device.restore(thaw(&a.device.save())).unwrap();
    for step in after {
        assert_eq!(a.run(step), b.run(step), "{step:?}");
    }
}

fn pic() -> Rig<PicPair> {
    let outside = Arc::new(Recorder::default());
    Rig {
        device: PicPair::new(IrqLine::new(outside.clone(), 0)),
        clock: Arc::default(),
        outside,
        line: |pic, pin, level| pic.line(pin).set(level),
        ack: |pic, _| pic.ack().into(),
    }
}

fn ioapic() -> Rig<IoApic> {
    let outside = Arc::new(Recorder::default());
    Rig {
        device: IoApic::new(outside.clone()),
        clock: Arc::default(),
        outside,
        line: |ioapic, pin, level| ioapic.line(pin).set(level),
        ack: |ioapic, vector| {
            ioapic.end_of_interrupt(vector);
            0
        },
    }
}

fn pit() -> Rig<Pit> {
    let outside = Arc::new(Recorder::default());
    let clock = Arc::new(FakeClock::default());
    Rig {
        device: Pit::new(clock.clone(), IrqLine::new(outside.clone(), 0)),
        clock,
        outside,
        line: |_, _, _| {},
        ack: |_, _| 0,
    }
}

/// One step of a local APIC's script.
#[derive(Clone, Debug)]
enum ApicStep {
    Mmio(u64, AccessSize, Option<u64>),
    Msr(u32, Option<u64>),
    Base(u64),
    Deliver(u32, u8, bool),
    Lint(u32, bool),
    Raise(usize),
    Deadline(u64),
    Ack,
    Init,
    Pass(u64),
}

fn apic_steps() -> impl Strategy<Value = Vec<ApicStep>> {
    let value = || prop_oneof![any::<u64>(), 0_u64..0x2_0000, Just(0x1ff)];
    let offset = prop_oneof![4 => (0_u64..0x40).prop_map(|r| r << 4), 1 => 0_u64..0x1000];
    let step = prop_oneof![
        6 => (offset, prop_oneof![4 => Just(AccessSize::Dword), 1 => size()], prop::option::of(value()))
            .prop_map(|(o, s, v)| ApicStep::Mmio(o, s, v)),
        4 => (0x800_u32..0x842, prop::option::of(value())).prop_map(|(m, v)| ApicStep::Msr(m, v)),
        1 => prop::sample::select(vec![0xfee0_0000, 0xfee0_0800, 0xfee0_0c00, 0xfee0_0400, !0])
            .prop_map(ApicStep::Base),
        3 => (0_u32..8, any::<u8>(), any::<bool>()).prop_map(|(d, v, l)| ApicStep::Deliver(d, v, l)),
        1 => (0_u32..3, any::<bool>()).prop_map(|(pin, level)| ApicStep::Lint(pin, level)),
        1 => (0_usize..3).prop_map(ApicStep::Raise),
        1 => value().prop_map(ApicStep::Deadline),
        3 => Just(ApicStep::Ack),
        1 => Just(ApicStep::Init),
        2 => prop_oneof![0_u64..1_000_000, any::<u64>().prop_map(|t| t >> 16)].prop_map(ApicStep::Pass),
    ];
    prop::collection::vec(step, 0..80)
}

fn run_apic(apic: &mut LocalApic, time: &mut Time, step: &ApicStep) -> String {
    let t = *time;
    let answer = match *step {
        ApicStep::Mmio(offset, size, Some(value)) => {
            format!("{:?}", apic.mmio_write(offset, size, value, t))
        }
        ApicStep::Mmio(offset, size, None) => format!("{:x}", apic.mmio_read(offset, size, t)),
        ApicStep::Msr(msr, Some(value)) => format!("{:?}", apic.msr_write(msr, value, t)),
        ApicStep::Msr(msr, None) => format!("{:?}", apic.msr_read(msr, t)),
        ApicStep::Base(value) => format!("{:?}", apic.set_apic_base(value, 40)),
        ApicStep::Deliver(mode, vector, level) => {
            format!("{:?}", DeliveryMode::from_bits(mode).map(|mode| apic.deliver(mode, vector, level)))
        }
        ApicStep::Lint(pin, level) => format!("{:?}", apic.set_lint(pin, level)),
        ApicStep::Raise(index) => {
            let entry = [LvtEntry::Cmci, LvtEntry::Thermal, LvtEntry::Performance][index];
            format!("{:?}", apic.raise(entry))
        }
        ApicStep::Deadline(tsc) => {
            apic.set_tsc_deadline(tsc, t);
            format!("{:x}", apic.tsc_deadline())
        }
        ApicStep::Ack => {
            let vector = apic.pending();
            vector.into_iter().for_each(|vector| apic.ack(vector));
            format!("{vector:?}")
        }
        ApicStep::Init => {
            apic.init();
            String::new()
        }
        ApicStep::Pass(ns) => {
            time.ns = time.ns.saturating_add(ns).min(1 << 62);
            time.tsc = time.ns;
            format!("{}", apic.tick(*time))
        }
    };
    // The invariants of any state.
    if let Some(vector) = apic.pending() {
        assert!(vector >= 16 && vector >> 4 > apic.ppr() >> 4);
    }
    assert!(apic.ppr() >= apic.cr8() << 4);
    format!("{answer} {:?} {:?} {:?}", apic.pending(), apic.deadline(), apic.address())
}

proptest! {
    #[test]
    fn pic_scripts(before in steps(4, 3), after in steps(4, 3)) {
        compare(pic(), pic(), &before, &after);
    }

    #[test]
    fn ioapic_scripts(before in steps(1, 0x50), after in steps(1, 0x50)) {
        compare(ioapic(), ioapic(), &before, &after);
    }

    #[test]
    fn ioapic_table_scripts(writes in prop::collection::vec((0_u64..0x48, any::<u32>()), 0..60),
                            after in steps(1, 0x50)) {
        let before: Vec<_> = writes
            .into_iter()
            .flat_map(|(register, value)| [
                Step::Write(0, 0, AccessSize::Byte, register),
                // Delivery modes and vectors among few, masks rarely, so that messages fly.
                Step::Write(0, 0x10, AccessSize::Dword, u64::from(value & !0x1_0000)),
                Step::Line(value >> 24 & 31, value & 1 != 0),
                Step::Eoi(value as u8),
            ])
            .collect();
        compare(ioapic(), ioapic(), &before, &after);
    }

    #[test]
    fn pit_scripts(before in steps(3, 5), after in steps(3, 5)) {
        compare(pit(), pit(), &before, &after);
    }

    #[test]
    fn lapic_scripts(before in apic_steps(), after in apic_steps()) {
        let (mut a, mut b) = (LocalApic::new(5, true), LocalApic::new(5, true));
        let mut time = Time::default();
        for step in &before {
            run_apic(&mut a, &mut time, step);
        }
        b.restore(thaw(&a.save(time)), time).unwrap();
        let mut time_b = time;
        for step in &after {
            prop_assert_eq!(run_apic(&mut a, &mut time, step), run_apic(&mut b, &mut time_b, step));
        }
    }

    /// What KVM's page holds survives it from any state.
    #[test]
    fn lapic_kvm_pages(before in apic_steps()) {
        let mut a = LocalApic::new(5, true);
        let mut time = Time::default();
        for step in &before {
            run_apic(&mut a, &mut time, step);
        }
        a.tick(time);
        let mut b = a.clone();
        b.set_kvm_state(&a.kvm_state(time, true), time).unwrap();
        prop_assert_eq!(b.kvm_state(time, true), a.kvm_state(time, true));
        prop_assert_eq!((b.pending(), b.address()), (a.pending(), a.address()));
    }

    #[test]
    fn messages_decode(address in any::<u64>(), data in any::<u32>(), id in any::<u32>()) {
        let mut apic = LocalApic::new(id, false);
        apic.virtual_wire();
        for address in [address, address & 0xf_ffff | 0xfee0_0000] {
            if let Some(message) = Message::from_msi(Msi { address, data }) {
                prop_assert_eq!(message.vector, data as u8);
                let hit = apic.address().matches(message.destination, DestinationMode::Physical);
                prop_assert_eq!(hit, [id & 0xff, 0xff, u32::MAX].contains(&message.destination));
            }
        }
    }
}
