//! Guests that do anything at all: no device panics, none grows, and what is saved goes on.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use trapline_chipset::hpet::LegacyLines;
use trapline_chipset::{
    A20Gate, AcpiPm, AcpiPmConfig, DebugCon, DebugExit, Dma, Hpet, I8042, Key, MouseButtons,
};
use trapline_chipset::{Parallel, Port92, PostCode, ResetControl, Rtc, Smbus, Uart};
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{AccessSize, Clock, Device, IrqLine, Nanos, SaveRestore};

use crate::Events;

/// A step of a script: the guest's, the host's, or time's.
#[derive(Clone, Debug)]
enum Step {
    Read { region: usize, offset: u16, size: AccessSize },
    Write { region: usize, offset: u16, size: AccessSize, value: u32 },
    ReadBlock { region: usize, offset: u16, size: AccessSize, len: usize },
    WriteBlock { region: usize, offset: u16, size: AccessSize, data: Vec<u8> },
    Host(Vec<u8>),
    Pass(Nanos),
    PassToDeadline,
    Reset,
}

/// Everything that a guest can see of a device.
#[derive(Debug, PartialEq)]
struct Seen {
    answers: Vec<u32>,
    levels: Vec<bool>,
    deadlines: Vec<Option<Nanos>>,
}

struct World {
    clock: Arc<FakeClock>,
    irqs: Arc<Recorder>,
    events: Arc<Events>,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(FakeClock::default());
        Self { clock, irqs: Arc::default(), events: Arc::default() }
    }

    fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(self.irqs.clone(), pin)
    }

    fn a20(&self) -> Arc<A20Gate> {
        Arc::new(A20Gate::new(self.events.clone()))
    }

    fn run<D: Device>(&self, device: &mut D, script: &[Step], host: fn(&mut D, &[u8])) -> Seen {
        let mut seen = Seen { answers: Vec::new(), levels: Vec::new(), deadlines: Vec::new() };
        for step in script {
            match step {
                Step::Read { region, offset, size } => {
                    seen.answers.push(read(device, *region, *offset, *size))
                }
                Step::Write { region, offset, size, value } => write(device, *region, *offset, *size, *value),
                Step::ReadBlock { region, offset, size, len } => {
                    let mut data = vec![0; len * size.bytes()];
                    if let Some(pio) = device.pio() {
                        pio.read_block(*region, *offset, *size, &mut data);
                    }
                    seen.answers.extend(data.into_iter().map(u32::from));
                }
                Step::WriteBlock { region, offset, size, data } => {
                    if let Some(pio) = device.pio() {
                        pio.write_block(*region, *offset, *size, data);
                    }
                }
                Step::Host(bytes) => host(device, bytes),
                Step::Pass(by) => self.pass(device, *by),
                Step::PassToDeadline => {
                    if let Some(at) = device.poll().and_then(|poll| poll.deadline()) {
                        self.pass(device, at.saturating_sub(self.clock.now()));
                        let next = device.poll().unwrap().deadline();
                        assert!(next.is_none_or(|next| next > at), "polled for nothing at {at}");
                    }
                }
                Step::Reset => device.reset(),
            }
            seen.levels.extend([1, 12].map(|pin| self.irqs.level(pin)));
            let now = self.clock.now();
            let deadline = device.poll().and_then(|poll| poll.deadline());
            seen.deadlines.push(deadline.map(|at| at.saturating_sub(now)));
        }
        seen
    }

    fn pass<D: Device>(&self, device: &mut D, by: Nanos) {
        self.clock.advance(by);
        if let Some(poll) = device.poll() {
            poll.poll(self.clock.now());
        }
    }
}

/// One read, through the face that the device has.
fn read<D: Device>(device: &mut D, region: usize, offset: u16, size: AccessSize) -> u32 {
    let value = match device.pio() {
        Some(pio) => pio.read(region, offset, size),
        None => device.mmio().unwrap().read(region, offset.into(), size) as u32,
    };
    value & size.ones() as u32
}

/// One write.
fn write<D: Device>(device: &mut D, region: usize, offset: u16, size: AccessSize, value: u32) {
    match device.pio() {
        Some(pio) => pio.write(region, offset, size, value),
        None => device.mmio().unwrap().write(region, offset.into(), size, value.into()),
    }
}

/// Runs a script whole, and again with a move to another machine in the middle: the guest must not
/// see a difference.
fn check<D: Device + SaveRestore>(
    script: &[Step],
    cut: usize,
    make: fn(&World) -> D,
    host: fn(&mut D, &[u8]),
) {
    let (head, tail) = script.split_at(cut.min(script.len()));
    let here = World::new();
    let mut device = make(&here);
    here.run(&mut device, head, host);
    let state = crate::through_a_file(&device.save());
    let expected = here.run(&mut device, tail, host);

    let there = World::new();
    there.clock.advance(999);
    let mut device = make(&there);
    device.restore(state).unwrap();
    assert_eq!(there.run(&mut device, tail, host), expected);
}

fn size() -> impl Strategy<Value = AccessSize> + Clone {
    prop_oneof![6 => Just(AccessSize::Byte), 1 => Just(AccessSize::Word), 1 => Just(AccessSize::Dword)]
}

/// Steps on `regions` regions of `ports` ports.
fn step(regions: usize, ports: u16) -> impl Strategy<Value = Step> {
    let place = (0..regions, 0..ports, size());
    let time = prop_oneof![0..5_000_000u64, 0..5_000_000_000u64, 0..1_000_000_000_000_000u64];
    prop_oneof![
        12 => place.clone().prop_map(|(region, offset, size)| Step::Read { region, offset, size }),
        12 => (place.clone(), prop_oneof![any::<u32>(), 0..256u32])
            .prop_map(|((region, offset, size), value)| Step::Write { region, offset, size, value }),
        1 => (place.clone(), 0..20usize)
            .prop_map(|((region, offset, size), len)| Step::ReadBlock { region, offset, size, len }),
        1 => (place, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|((region, offset, size), data)| Step::WriteBlock { region, offset, size, data }),
        2 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(Step::Host),
        2 => time.prop_map(Step::Pass),
        2 => Just(Step::PassToDeadline),
        1 => Just(Step::Reset),
    ]
}

fn script(regions: usize, ports: u16) -> impl Strategy<Value = (Vec<Step>, usize)> {
    (proptest::collection::vec(step(regions, ports), 0..120), 0..120usize)
}

/// Steps on 32-bit registers at these offsets.
fn registers<const N: usize>(offsets: [u16; N]) -> impl Strategy<Value = (Vec<Step>, usize)> {
    let place = move |step| match step {
        Step::Read { region, offset, .. } => {
            Step::Read { region, offset: offsets[usize::from(offset)], size: AccessSize::Dword }
        }
        Step::Write { region, offset, value, .. } => {
            Step::Write { region, offset: offsets[usize::from(offset)], size: AccessSize::Dword, value }
        }
        other => other,
    };
    let steps = proptest::collection::vec(step(1, N as u16).prop_map(place), 0..120);
    (steps, 0..120usize)
}

proptest! {
    #[test]
    fn uart((script, cut) in script(1, 8)) {
        check(
            &script,
            cut,
            |world| Uart::new("serial0", world.line(1), Box::new(std::io::sink())),
            |uart, bytes| match bytes {
                [0..0x20, ..] => drop(uart.receive_break()),
                _ => assert!(uart.receive(bytes) <= bytes.len()),
            },
        );
    }

    #[test]
    fn rtc((script, cut) in script(1, 2)) {
        check(
            &script,
            cut,
            |world| Rtc::new(world.line(1), world.clock.clone(), Duration::new(1_795_392_000, 999_999_999)),
            |rtc, bytes| {
                if let [index, value, ..] = *bytes {
                    rtc.set_cmos(index, value);
                    rtc.set_memory_size(u64::from(value) << 26, u64::from(index) << 40);
                    rtc.set_time(Duration::from_secs(u64::from(value) << (index % 64)));
                }
            },
        );
    }

    #[test]
    fn i8042((script, cut) in script(2, 1)) {
        check(
            &script,
            cut,
            |world| I8042::new(world.line(1), world.line(12), world.a20(), world.events.clone()),
            |ps2, bytes| match *bytes {
                [button] => ps2.set_mouse_buttons(MouseButtons::from_bits_truncate(button)),
                [dx, dy, dz] => {
                    let scale = |d: u8| (i32::from(d) - 128) << (d % 24);
                    ps2.move_mouse(scale(dx), scale(dy), scale(dz));
                }
                [code, extended, ..] => {
                    let prefix = if extended & 1 == 0 { 0 } else { 0xe000 };
                    let key = Key::from_set1(u16::from(code) | prefix).unwrap_or(Key::PAUSE);
                    let _ = ps2.key(key, extended & 2 == 0);
                }
                [] => {}
            },
        );
    }

    #[test]
    fn acpi_pm((script, cut) in script(5, 4)) {
        check(
            &script,
            cut,
            |world| {
                let config = AcpiPmConfig::default();
                AcpiPm::new(config, world.line(1), world.clock.clone(), world.events.clone())
            },
            |pm, bytes| match bytes {
                [] => pm.press_power_button(),
                [0..100, ..] => pm.press_sleep_button(),
                [gpe, ..] => pm.raise_gpe(*gpe),
            },
        );
    }

    #[test]
    fn hpet((script, cut) in registers([0x000, 0x010, 0x020, 0x0f0, 0x0f4, 0x100, 0x108, 0x10c, 0x120, 0x128])) {
        check(
            &script,
            cut,
            |world| {
                let routes = [1, 12].map(|line: u8| (line, world.line(line.into()))).to_vec();
                Hpet::new(world.clock.clone(), routes, LegacyLines::new(world.line(1), world.line(12)))
            },
            |_, _| {},
        );
    }

    #[test]
    fn dma((script, cut) in script(3, 32)) {
        check(&script, cut, |_| Dma::new(), |_, _| {});
    }

    #[test]
    fn smbus((script, cut) in script(1, 16)) {
        check(&script, cut, |_| Smbus::new(), |_, _| {});
    }

    #[test]
    fn small_ports((script, cut) in script(1, 4)) {
        check(&script, cut, |_| PostCode::new(), |_, _| {});
        check(
            &script,
            cut,
            |world| Parallel::new("lpt1", world.line(1), Box::new(std::io::sink())),
            |_, _| {},
        );
        check(&script, cut, |_| DebugCon::new(Box::new(std::io::sink())), |_, _| {});
        check(&script, cut, |world| DebugExit::new(world.events.clone()), |_, _| {});
        check(&script, cut, |world| ResetControl::new(world.events.clone()), |_, _| {});
        check(&script, cut, |world| Port92::new(world.a20(), world.events.clone()), |_, _| {});
    }
}
