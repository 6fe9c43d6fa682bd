//! The HPET, read like its specification.

use std::sync::Arc;

use trapline_chipset::Hpet;
use trapline_chipset::hpet::{LegacyLines, TICK};
use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{Clock, Device, IrqLine, MmioIo, Nanos, Poll, SaveRestore};

use crate::through_a_file;

const CAPABILITIES: u64 = 0x000;
const CONFIG: u64 = 0x010;
const STATUS: u64 = 0x020;
const COUNTER: u64 = 0x0f0;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

const LEVEL: u64 = 1 << 1;
const INT_ENB: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const VAL_SET: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;
const fn route(line: u64) -> u64 {
    line << 9
}

/// Pins of the recorder for the legacy interrupts.
const IRQ0: u32 = 100;
const IRQ8: u32 = 108;

struct Bench {
    clock: Arc<FakeClock>,
    irqs: Arc<Recorder>,
    legacy: Arc<LegacyLines>,
    hpet: Hpet,
}

impl Bench {
    /// Lines 2, 20 and 21.
    fn new() -> Self {
        let (clock, irqs) = (Arc::new(FakeClock::default()), Arc::new(Recorder::default()));
        let line = |pin| IrqLine::new(irqs.clone(), pin);
        let legacy = LegacyLines::new(line(IRQ0), line(IRQ8));
        let routes = [2, 20, 21].map(|number: u8| (number, line(number.into()))).to_vec();
        let hpet = Hpet::new(clock.clone(), routes, legacy.clone());
        Self { clock, irqs, legacy, hpet }
    }

    fn read(&mut self, offset: u64) -> u64 {
        self.hpet.read(0, offset, Qword)
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.hpet.write(0, offset, Qword, value);
    }

    fn config(&mut self, timer: u64, value: u64) {
        self.write(0x100 + 0x20 * timer, value);
    }

    fn comparator(&mut self, timer: u64, value: u64) {
        self.write(0x108 + 0x20 * timer, value);
    }

    /// Time passes, and the board calls the device when its deadline has come.
    fn pass(&mut self, ticks: u64) {
        let end = self.clock.now() + ticks * TICK;
        while let Some(due) = self.hpet.deadline().filter(|due| *due <= end) {
            self.clock.advance(due.saturating_sub(self.clock.now()));
            Poll::poll(&mut self.hpet, self.clock.now());
        }
        self.clock.advance(end - self.clock.now());
    }

    fn edges(&self, pin: u32) -> usize {
        self.irqs.rising_edges(pin)
    }

    /// The deadline in ticks from now.
    fn due(&self) -> Option<Nanos> {
        self.hpet.deadline().map(|due| (due - self.clock.now()) / TICK)
    }
}

#[test]
fn capabilities_name_three_timers_of_64_bits() {
    let mut bench = Bench::new();
    // 10 ns in femtoseconds; Intel; legacy replacement, 64 bits, last timer 2, revision 1.
    assert_eq!(bench.read(CAPABILITIES), 10_000_000 << 32 | 0x8086_a201);
    assert_eq!(bench.hpet.read(0, CAPABILITIES + 4, Dword), 10_000_000);
    assert_eq!(bench.hpet.read(0, CAPABILITIES + 2, Word), 0x8086);
    assert_eq!(bench.hpet.read(0, CAPABILITIES, Byte), 1);
    for timer in 0..3 {
        // Lines 2, 20 and 21; 64 bits, periodic.
        assert_eq!(bench.read(0x100 + 0x20 * timer), 0x0030_0004_0000_0030);
    }
    // What is reserved, FSB routes, and a fourth timer.
    for offset in [0x008, 0x018, 0x028, 0x0e8, 0x0f8, 0x110, 0x118, 0x160, 0x168, 0x3f8] {
        bench.write(offset, u64::MAX);
        assert_eq!(bench.read(offset), 0, "{offset:#x}");
    }
    bench.write(CAPABILITIES, 0);
    assert_eq!(bench.hpet.read(0, CAPABILITIES, Dword), 0x8086_a201);
}

#[test]
fn the_counter_runs_while_it_is_enabled() {
    let mut bench = Bench::new();
    bench.pass(1000);
    assert_eq!(bench.read(COUNTER), 0);
    bench.write(COUNTER, 5_000_000_000);
    bench.write(CONFIG, ENABLE);
    bench.pass(1000);
    assert_eq!(bench.read(COUNTER), 5_000_001_000);
    assert_eq!(bench.hpet.read(0, COUNTER + 4, Dword), 1);
    assert_eq!(bench.hpet.read(0, COUNTER, Dword), 5_000_001_000 & 0xffff_ffff);
    // Not written while it runs; halted it keeps its value.
    bench.write(COUNTER, 0);
    assert_eq!(bench.read(COUNTER), 5_000_001_000);
    bench.write(CONFIG, 0);
    bench.pass(1000);
    assert_eq!(bench.read(COUNTER), 5_000_001_000);
    bench.hpet.write(0, COUNTER + 4, Dword, 7);
    bench.hpet.write(0, COUNTER, Dword, 3);
    assert_eq!(bench.read(COUNTER), 7 << 32 | 3);
}

#[test]
fn writes_that_are_narrow_or_misaligned_are_ignored() {
    let mut bench = Bench::new();
    bench.hpet.write(0, CONFIG, Byte, ENABLE);
    bench.hpet.write(0, CONFIG, Word, ENABLE);
    bench.hpet.write(0, CONFIG - 2, Dword, ENABLE << 16);
    bench.hpet.write(0, CONFIG - 4, Qword, ENABLE << 32);
    assert_eq!(bench.read(CONFIG), 0);
    bench.hpet.write(0, CONFIG, Dword, u64::MAX);
    assert_eq!(bench.read(CONFIG), ENABLE | LEGACY);
    bench.hpet.write(0, CONFIG + 4, Dword, 0);
    assert_eq!(bench.read(CONFIG), ENABLE | LEGACY);
}

#[test]
fn a_one_shot_timer_interrupts_once() {
    let mut bench = Bench::new();
    bench.config(0, INT_ENB | route(2));
    bench.comparator(0, 500);
    assert_eq!(bench.due(), None); // halted
    bench.write(CONFIG, ENABLE);
    assert_eq!(bench.due(), Some(500));
    bench.pass(499);
    assert_eq!(bench.edges(2), 0);
    bench.pass(1);
    assert_eq!(bench.edges(2), 1);
    assert_eq!(bench.read(STATUS), 0); // edge triggered
    bench.pass(1_000_000);
    assert_eq!((bench.edges(2), bench.due()), (1, None));
    // Equal to the counter when it is written.
    let now = bench.read(COUNTER);
    bench.comparator(0, now);
    assert_eq!(bench.edges(2), 2);
    // In the past: missed.
    bench.comparator(0, now - 1);
    assert_eq!((bench.edges(2), bench.due()), (2, None));
}

#[test]
fn a_timer_of_32_bits_matches_again_after_each_overflow() {
    let mut bench = Bench::new();
    bench.write(COUNTER, 9 << 32 | 0xffff_ff00);
    bench.config(1, INT_ENB | MODE_32 | route(20));
    bench.comparator(1, 0xdead_beef_0000_0010);
    assert_eq!(bench.read(0x128), 0x10);
    bench.write(CONFIG, ENABLE);
    assert_eq!(bench.due(), Some(0x110));
    bench.pass(0x110);
    assert_eq!(bench.edges(20), 1);
    assert_eq!(bench.due(), Some(1 << 32));
    bench.pass(1 << 32);
    assert_eq!(bench.edges(20), 2);
}

#[test]
fn a_level_triggered_timer_asserts_until_its_status_is_cleared() {
    let mut bench = Bench::new();
    bench.config(2, INT_ENB | LEVEL | route(21));
    bench.comparator(2, 100);
    bench.write(CONFIG, ENABLE);
    bench.pass(100);
    assert!(bench.irqs.level(21));
    assert_eq!(bench.read(STATUS), 0b100);
    bench.write(STATUS, 0b011);
    assert!(bench.irqs.level(21));
    bench.write(STATUS, 0b100);
    assert!(!bench.irqs.level(21));
    assert_eq!(bench.read(STATUS), 0);
    // Without INT_ENB there is a status, but no interrupt.
    bench.config(2, LEVEL | route(21));
    bench.comparator(2, 200);
    bench.pass(100);
    assert_eq!((bench.read(STATUS), bench.edges(21)), (0b100, 1));
    bench.config(2, INT_ENB | LEVEL | route(21));
    assert!(bench.irqs.level(21));
    // Halting the counter holds interrupts back.
    bench.write(CONFIG, 0);
    assert!(!bench.irqs.level(21));
    bench.write(CONFIG, ENABLE);
    assert!(bench.irqs.level(21));
    // Becoming edge triggered drops it.
    bench.config(2, INT_ENB | route(21));
    assert_eq!((bench.irqs.level(21), bench.read(STATUS)), (false, 0));
}

#[test]
fn a_periodic_timer_goes_on_by_itself() {
    let mut bench = Bench::new();
    bench.write(CONFIG, ENABLE);
    bench.pass(50);
    // As Linux sets it up: the first match with VAL_SET, then the period.
    bench.config(0, INT_ENB | PERIODIC | VAL_SET | MODE_32 | route(2));
    bench.comparator(0, 10_050);
    assert_eq!(bench.read(0x100) & VAL_SET, 0);
    bench.comparator(0, 10_000);
    assert_eq!(bench.read(0x108), 10_050);
    for n in 1..=5 {
        bench.pass(9_999);
        assert_eq!(bench.edges(2), n - 1);
        bench.pass(1);
        assert_eq!(bench.edges(2), n);
        assert_eq!(bench.read(0x108), 10_050 + 10_000 * n as u64);
    }
    // A machine that was away gets one interrupt; the timer has kept its beat.
    bench.clock.advance(1_005_000 * TICK);
    Poll::poll(&mut bench.hpet, bench.clock.now());
    assert_eq!(bench.edges(2), 6);
    assert_eq!(bench.due(), Some(5_000));
}

#[test]
fn short_periods_are_held_back() {
    let mut bench = Bench::new();
    bench.config(0, INT_ENB | PERIODIC | VAL_SET | route(2));
    bench.comparator(0, 1);
    bench.write(CONFIG, ENABLE);
    bench.pass(100_000); // one millisecond
    assert_eq!(bench.edges(2), 100);
    assert_eq!(bench.read(0x108), 100_001);
}

#[test]
fn legacy_replacement_takes_interrupts_0_and_8_over() {
    let mut bench = Bench::new();
    let (pit, rtc) = (bench.legacy.line(0), bench.legacy.line(1));
    pit.set(true);
    assert!(bench.irqs.level(IRQ0));
    for timer in 0..3 {
        bench.config(timer, INT_ENB | LEVEL | route(20));
        bench.comparator(timer, 100 * (timer + 1));
    }
    bench.write(CONFIG, ENABLE | LEGACY);
    assert!(!bench.irqs.level(IRQ0)); // the PIT is cut off
    rtc.set(true);
    assert!(!bench.irqs.level(IRQ8));
    bench.pass(100);
    assert_eq!([IRQ0, IRQ8, 20].map(|pin| bench.irqs.level(pin)), [true, false, false]);
    bench.pass(100);
    assert_eq!([IRQ0, IRQ8, 20].map(|pin| bench.irqs.level(pin)), [true, true, false]);
    bench.pass(100);
    assert_eq!([IRQ0, IRQ8, 20].map(|pin| bench.irqs.level(pin)), [true, true, true]);
    bench.write(STATUS, 0b111);
    assert_eq!([IRQ0, IRQ8, 20].map(|pin| bench.irqs.level(pin)), [false; 3]);
    // Given back, the lines show what their owners drive.
    bench.write(CONFIG, ENABLE);
    assert_eq!([IRQ0, IRQ8].map(|pin| bench.irqs.level(pin)), [true, true]);
    // And timer 0 is on its own line.
    let soon = bench.read(COUNTER) + 10;
    bench.comparator(0, soon);
    bench.pass(10);
    assert!(bench.irqs.level(20));
}

#[test]
fn lines_that_are_not_there_cannot_be_chosen() {
    let mut bench = Bench::new();
    bench.config(0, INT_ENB | route(20));
    for line in [0, 1, 3, 19, 22, 31] {
        bench.config(0, INT_ENB | route(line));
        assert_eq!(bench.read(0x100) as u32, 0x34 | route(20) as u32, "{line}");
    }
    bench.config(0, INT_ENB | route(21));
    assert_eq!(bench.read(0x100) as u32, 0x34 | route(21) as u32);
}

#[test]
fn an_edge_holds_its_line_until_it_moves_or_is_disabled() {
    let mut bench = Bench::new();
    bench.config(0, INT_ENB | route(20));
    bench.comparator(0, 10);
    bench.write(CONFIG, ENABLE);
    bench.pass(10);
    assert!(bench.irqs.level(20));
    bench.config(0, INT_ENB | route(21));
    assert_eq!((bench.irqs.level(20), bench.irqs.level(21)), (false, true));
    bench.config(0, route(21));
    assert!(!bench.irqs.level(21));
}

#[test]
fn reset_halts_and_gives_the_lines_back() {
    let mut bench = Bench::new();
    bench.legacy.line(0).set(true);
    bench.config(0, INT_ENB | PERIODIC | VAL_SET | route(2));
    bench.comparator(0, 5000);
    bench.write(CONFIG, ENABLE | LEGACY);
    bench.pass(20_000);
    bench.hpet.reset();
    assert!(bench.irqs.level(IRQ0));
    assert_eq!((bench.read(CONFIG), bench.read(COUNTER), bench.read(0x108), bench.due()), (0, 0, 0, None));
    assert_eq!(bench.read(0x100) as u32, 0x30);
}

#[test]
fn a_saved_timer_goes_on_in_another_machine() {
    let (mut here, mut there) = (Bench::new(), Bench::new());
    here.config(0, INT_ENB | PERIODIC | VAL_SET);
    here.comparator(0, 5000);
    here.config(1, INT_ENB | LEVEL | route(20));
    here.comparator(1, 100);
    here.write(CONFIG, ENABLE | LEGACY);
    here.pass(4000);
    there.clock.advance(123_456_789);
    there.hpet.restore(through_a_file(&here.hpet.save())).unwrap();
    assert!(there.irqs.level(IRQ8));
    assert_eq!(there.due(), Some(1000));
    there.pass(1000);
    assert_eq!((there.edges(IRQ0), there.read(COUNTER)), (1, 5000));
}

#[test]
fn a_machine_that_has_run_for_centuries_can_be_saved() {
    let (mut here, mut there) = (Bench::new(), Bench::new());
    here.config(0, INT_ENB | route(2));
    here.comparator(0, 1 << 60);
    here.write(CONFIG, ENABLE);
    here.pass(1 << 60);
    assert_eq!(here.edges(2), 1);
    there.hpet.restore(through_a_file(&here.hpet.save())).unwrap();
    assert_eq!(there.read(COUNTER), 1 << 60);
}

/// The fields of a saved state, in order; of a timer, its configuration, comparator, period and line.
#[derive(Default, serde::Serialize)]
struct State {
    enabled: bool,
    legacy_mode: bool,
    status: u8,
    timers: [(u32, u64, u64, bool); 3],
    counter: u64,
    elapsed: u64,
}

#[test]
fn states_that_cannot_be_are_refused() {
    let restore = |change: fn(&mut State)| {
        let mut state = State::default();
        change(&mut state);
        let bytes = postcard::to_stdvec(&state).unwrap();
        Bench::new().hpet.restore(postcard::from_bytes(&bytes).unwrap()).map_err(|error| error.to_string())
    };
    let wrong = |what: &str| Err(format!("saved state of hpet: {what}"));
    restore(|_| ()).unwrap();
    restore(|state| state.timers[1] = ((INT_ENB | route(21)) as u32, 1, 2, true)).unwrap();
    let status = "interrupt status of timers that do not exist";
    assert_eq!(restore(|state| state.status = 8), wrong(status));
    assert_eq!(restore(|state| state.status = 1), wrong("edge-triggered timer has interrupt status"));
    assert_eq!(restore(|state| state.elapsed = u64::MAX), wrong("counter has run for centuries"));
    let bits = "timer configuration has bits that do not exist";
    assert_eq!(restore(|state| state.timers[0].0 = 1), wrong(bits));
    let line = "timer has a line that it cannot be routed to";
    assert_eq!(restore(|state| state.timers[0].0 = route(3) as u32), wrong(line));
    let raised = "timer has raised a line that it does not drive";
    assert_eq!(restore(|state| state.timers[0].3 = true), wrong(raised));
    let narrow = "32-bit timer has a comparator or period of more";
    assert_eq!(restore(|state| state.timers[2] = (MODE_32 as u32, 0, 1 << 32, false)), wrong(narrow));
}
