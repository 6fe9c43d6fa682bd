//! The high precision event timer (Intel IA-PC HPET specification 1.0a).
//!
//! One memory region of [`SIZE`] bytes, at 0xfed0_0000 on a PC:
//!
//! | offset | register |
//! |---|---|
//! | 0x000 | capabilities: revision 1, three timers, 64 bits, legacy replacement, vendor 8086h, 10 ns a tick |
//! | 0x010 | configuration: ENABLE_CNF, LEG_RT_CNF |
//! | 0x020 | interrupt status of level-triggered timers; writing ones clears |
//! | 0x0f0 | main counter |
//! | 0x100 + 0x20 n | timer n: configuration and capabilities |
//! | 0x108 + 0x20 n | timer n: comparator |
//!
//! Registers are read at any width, and written with 32 or 64 bits at their own alignment; other writes are
//! ignored. Each timer is one-shot or periodic, 64 bits wide or forced to 32, edge or level triggered, and
//! interrupts on one of the lines that it was given. With LEG_RT_CNF set, timers 0 and 1 take over interrupts
//! 0 and 8 from the PIT and the RTC: see [`LegacyLines`].
//!
//! A timer interrupts when the counter becomes equal to its comparator, also after an overflow of 32 bits, or is
//! equal to it when that is written. A comparator set in the past is therefore missed, as on the chip.
//!
//! An edge is a line that falls and rises; it stays high until the timer's next one, or until it can no longer
//! interrupt. Interrupts that a machine is too slow for merge into one. Deviations: periods below 10 µs
//! interrupt every 10 µs; the counter cannot be written while it runs, which the specification leaves undefined.
//!
//! Left out: interrupts as messages (FSB).

mod legacy;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Clock, Device, IrqLine, MmioIo, Nanos, Poll, PortIo, RestoreError, SaveRestore,
};

pub use legacy::LegacyLines;

use crate::bytewise::check;
use crate::stopwatch::{LONGEST, Stopwatch};

/// Bytes of the register block.
pub const SIZE: u64 = 0x400;
/// Nanoseconds a tick.
pub const TICK: Nanos = 10;
/// How many timers there are.
pub const TIMERS: usize = 3;

const FEMTOSECONDS: u64 = 1_000_000;
/// Vendor, legacy replacement, 64 bits, last timer, revision.
const CAPABILITIES: u64 =
    (TICK * FEMTOSECONDS) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;

const CAPABILITIES_REG: u64 = 0x000;
const CONFIG: u64 = 0x010;
const STATUS: u64 = 0x020;
const COUNTER: u64 = 0x0f0;
const FIRST_TIMER: u64 = 0x100;
const TIMER_LEN: u64 = 0x20;

const ENABLE_CNF: u64 = 1 << 0;
const LEG_RT_CNF: u64 = 1 << 1;

// Timer configuration.
const INT_TYPE: u32 = 1 << 1;
const INT_ENB: u32 = 1 << 2;
const PERIODIC: u32 = 1 << 3;
const PER_INT_CAP: u32 = 1 << 4;
const SIZE_CAP: u32 = 1 << 5;
const VAL_SET: u32 = 1 << 6;
const MODE_32: u32 = 1 << 8;
const ROUTE_SHIFT: u32 = 9;
const ROUTE: u32 = 0x1f << ROUTE_SHIFT;
const WRITABLE: u32 = INT_TYPE | INT_ENB | PERIODIC | VAL_SET | MODE_32 | ROUTE;

/// The shortest time between interrupts of a periodic timer, in ticks.
const SHORTEST: u64 = 10_000 / TICK;

/// One timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    /// The writable bits.
    config: u32,
    comparator: u64,
    /// What a periodic timer adds to its comparator at each match: what was last written to it.
    period: u64,
    /// It has raised its line, edge triggered.
    raised: bool,
}

impl Timer {
    fn is(self, bit: u32) -> bool {
        self.config & bit != 0
    }

    /// All ones of its width.
    fn mask(self) -> u64 {
        if self.is(MODE_32) { u32::MAX.into() } else { u64::MAX }
    }

    fn route(self) -> u8 {
        ((self.config & ROUTE) >> ROUTE_SHIFT) as u8
    }

    /// Ticks from a counter of `seen` to the next match, one at least; `None` if they are 2^64.
    fn distance(self, seen: u64) -> Option<u64> {
        match (self.comparator.wrapping_sub(seen) & self.mask(), self.is(MODE_32)) {
            (0, true) => Some(1 << 32),
            (0, false) => None,
            (distance, _) => Some(distance),
        }
    }

    /// Lets the counter go on by `ticks` from `seen`, and says whether it matched.
    fn pass(&mut self, seen: u64, ticks: u64) -> bool {
        let Some(distance) = self.distance(seen).filter(|distance| *distance <= ticks) else { return false };
        let period = self.period & self.mask();
        if self.is(PERIODIC) && period != 0 {
            let matches = 1 + (ticks - distance) / period;
            self.comparator = self.comparator.wrapping_add(matches.wrapping_mul(period)) & self.mask();
        }
        true
    }

    /// Ticks from a counter of `seen` to the next match that is worth an interrupt.
    fn due(self, seen: u64) -> Option<u64> {
        let distance = self.distance(seen)?;
        let often = self.is(PERIODIC) && (1..SHORTEST).contains(&(self.period & self.mask()));
        Some(if often { distance.max(SHORTEST) } else { distance })
    }

    fn write_comparator(&mut self, shift: u32, mask: u64, value: u64) {
        let width = self.mask();
        let merge = |old: u64| (old & !(mask << shift) | (value & mask) << shift) & width;
        if !self.is(PERIODIC) || self.is(VAL_SET) {
            self.comparator = merge(self.comparator);
        }
        if self.is(PERIODIC) {
            self.period = merge(self.period);
        }
        self.config &= !VAL_SET;
    }
}

/// A high precision event timer.
pub struct Hpet {
    clock: Arc<dyn Clock>,
    /// By their number in the timers' configuration.
    routes: Vec<(u8, IrqLine)>,
    legacy: Arc<LegacyLines>,
    enabled: bool,
    legacy_mode: bool,
    status: u8,
    timers: [Timer; TIMERS],
    /// The counter when `running` showed zero, or while it is halted.
    base: u64,
    running: Stopwatch,
    /// The counter up to which matches have been looked for.
    seen: u64,
    /// Lines that are asserted: those of `routes`, then the legacy ones.
    asserted: u64,
}

impl Hpet {
    /// A halted timer block. `routes` are the lines that timers can interrupt on, with the numbers that
    /// software knows them by, which are I/O APIC inputs 0 to 31; lines with larger numbers cannot be chosen.
    pub fn new(clock: Arc<dyn Clock>, routes: Vec<(u8, IrqLine)>, legacy: Arc<LegacyLines>) -> Self {
        Self {
            clock,
            routes,
            legacy,
            enabled: false,
            legacy_mode: false,
            status: 0,
            timers: [Timer::default(); TIMERS],
            base: 0,
            running: Stopwatch::showing(0, 0),
            seen: 0,
            asserted: 0,
        }
    }

    /// The counter at `now`.
    fn counter(&self, now: Nanos) -> u64 {
        let ticks = if self.enabled { self.running.elapsed(now) / TICK } else { 0 };
        self.base.wrapping_add(ticks)
    }

    /// What INT_ROUTE_CAP says.
    fn route_capabilities(&self) -> u32 {
        self.routes.iter().fold(0, |all, (number, _)| all | 1u32.checked_shl((*number).into()).unwrap_or(0))
    }

    /// Handles the matches since the last look.
    fn catch_up(&mut self, now: Nanos) {
        let counter = self.counter(now);
        let (seen, ticks) = (self.seen, counter.wrapping_sub(self.seen));
        self.seen = counter;
        if ticks == 0 {
            return;
        }
        for n in 0..TIMERS {
            if self.timers.get_mut(n).is_some_and(|timer| timer.pass(seen, ticks)) {
                self.matched(n);
            }
        }
    }

    /// The counter and timer `n`'s comparator are equal.
    fn matched(&mut self, n: usize) {
        let Some(timer) = self.timers.get_mut(n) else { return };
        if timer.is(INT_TYPE) {
            self.status |= 1 << n;
        } else if timer.is(INT_ENB) {
            timer.raised = false;
            self.drive();
            if let Some(timer) = self.timers.get_mut(n) {
                timer.raised = true;
            }
        }
        self.drive();
    }

    /// The lines that timers hold, as bits: those of `routes`, then the legacy ones.
    fn held(&self) -> u64 {
        let mut held = 0;
        if !self.enabled {
            return held;
        }
        for (n, timer) in self.timers.iter().enumerate().filter(|(_, timer)| timer.is(INT_ENB)) {
            let asserts = if timer.is(INT_TYPE) { self.status >> n & 1 != 0 } else { timer.raised };
            let line = match n {
                0 | 1 if self.legacy_mode => Some(self.routes.len() + n),
                _ => self.routes.iter().position(|(number, _)| *number == timer.route()),
            };
            if let Some(line) = line.filter(|_| asserts) {
                held |= 1u64.checked_shl(line as u32).unwrap_or(0);
            }
        }
        held
    }

    /// Drives the lines whose level changes.
    fn drive(&mut self) {
        let held = self.held();
        let changed = held ^ self.asserted;
        self.asserted = held;
        let bit = |bits: u64, line: usize| bits.checked_shr(line as u32).is_some_and(|bits| bits & 1 != 0);
        for (line, (_, irq)) in self.routes.iter().enumerate().filter(|(line, _)| bit(changed, *line)) {
            irq.set(bit(held, line));
        }
        for timer in 0..2 {
            let line = self.routes.len() + timer;
            if bit(changed, line) {
                self.legacy.set_hpet(timer, bit(held, line));
            }
        }
    }

    /// The 64-bit register that `offset` lies in.
    fn register(&self, offset: u64) -> u64 {
        match offset & !7 {
            CAPABILITIES_REG => CAPABILITIES,
            CONFIG => {
                let bit = |set: bool, bit: u64| if set { bit } else { 0 };
                bit(self.enabled, ENABLE_CNF) | bit(self.legacy_mode, LEG_RT_CNF)
            }
            STATUS => self.status.into(),
            COUNTER => self.counter(self.clock.now()),
            at => match self.timer_at(at) {
                Some((timer, 0x00)) => {
                    let fixed = PER_INT_CAP | SIZE_CAP;
                    u64::from(self.route_capabilities()) << 32 | u64::from(timer.config | fixed)
                }
                Some((timer, 0x08)) => timer.comparator,
                _ => 0,
            },
        }
    }

    /// The timer whose block `offset` lies in, and the offset in that.
    fn timer_at(&self, offset: u64) -> Option<(Timer, u64)> {
        let offset = offset.checked_sub(FIRST_TIMER)?;
        let timer = self.timers.get(usize::try_from(offset / TIMER_LEN).ok()?)?;
        Some((*timer, offset % TIMER_LEN))
    }

    /// Writes the bits of `mask`, shifted, of the register at `offset`.
    fn write_register(&mut self, offset: u64, shift: u32, mask: u64, value: u64) {
        let bits = (value & mask) << shift;
        match offset {
            CONFIG if shift == 0 => self.write_config(bits),
            STATUS if shift == 0 => self.status &= !(bits as u8),
            COUNTER if !self.enabled => {
                self.base = self.base & !(mask << shift) | bits;
                self.seen = self.base;
            }
            _ => {
                let Some(at) = offset.checked_sub(FIRST_TIMER) else { return };
                let n = (at / TIMER_LEN) as usize;
                match at % TIMER_LEN {
                    0x00 if shift == 0 => self.write_timer_config(n, bits as u32),
                    0x08 => self.write_comparator(n, shift, mask, value),
                    _ => {}
                }
            }
        }
    }

    fn write_config(&mut self, bits: u64) {
        let now = self.clock.now();
        let enable = bits & ENABLE_CNF != 0;
        if enable != self.enabled {
            self.base = self.counter(now);
            (self.seen, self.running) = (self.base, Stopwatch::showing(0, now));
            self.enabled = enable;
        }
        let legacy = bits & LEG_RT_CNF != 0;
        if legacy != self.legacy_mode {
            // Let go of the lines first, so that none stays asserted where nobody drives it.
            self.legacy_mode = legacy;
            self.drive();
            self.legacy.set_replaced(legacy);
        }
    }

    fn write_timer_config(&mut self, n: usize, bits: u32) {
        let routable = self.route_capabilities();
        let Some(timer) = self.timers.get_mut(n) else { return };
        let mut config = bits & WRITABLE;
        if routable >> ((config & ROUTE) >> ROUTE_SHIFT) & 1 == 0 {
            config = config & !ROUTE | timer.config & ROUTE;
        }
        // A line that was raised falls when its timer can no longer interrupt, or not by an edge.
        timer.raised &= config & INT_ENB != 0 && config & INT_TYPE == 0;
        timer.config = config;
        timer.comparator &= timer.mask();
        timer.period &= timer.mask();
        if config & INT_TYPE == 0 {
            self.status &= !(1 << n);
        }
    }

    fn write_comparator(&mut self, n: usize, shift: u32, mask: u64, value: u64) {
        let Some(timer) = self.timers.get_mut(n) else { return };
        timer.write_comparator(shift, mask, value);
        if self.enabled && timer.comparator == self.seen & timer.mask() {
            self.matched(n);
        }
    }
}

impl MmioIo for Hpet {
    fn read(&mut self, _region: usize, offset: u64, size: AccessSize) -> u64 {
        // Guests poll the counter in loops: nothing else is looked at on this path.
        if offset & !7 != COUNTER {
            self.catch_up(self.clock.now());
        }
        // What lies in the next register reads as zeroes.
        self.register(offset) >> (8 * (offset & 7)) & size.ones()
    }

    fn write(&mut self, _region: usize, offset: u64, size: AccessSize, value: u64) {
        if size < AccessSize::Dword || offset & (size.bytes() as u64 - 1) != 0 {
            return;
        }
        self.catch_up(self.clock.now());
        self.write_register(offset & !7, 8 * (offset & 7) as u32, size.ones(), value);
        self.drive();
    }
}

impl Poll for Hpet {
    fn poll(&mut self, now: Nanos) {
        self.catch_up(now);
    }

    fn deadline(&self) -> Option<Nanos> {
        if !self.enabled {
            return None;
        }
        let waits = |(n, timer): (usize, &Timer)| {
            // A status bit that is set already can wait for the next access.
            let asserted = timer.is(INT_TYPE) && self.status >> n & 1 != 0;
            let due = timer.due(self.seen).filter(|_| timer.is(INT_ENB) && !asserted)?;
            let ticks = self.seen.wrapping_sub(self.base).checked_add(due)?;
            Some(self.running.when(ticks.checked_mul(TICK)?))
        };
        self.timers.iter().enumerate().filter_map(waits).min()
    }
}

impl Device for Hpet {
    fn name(&self) -> &str {
        "hpet"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        Some(self)
    }

    fn reset(&mut self) {
        (self.enabled, self.status, self.base, self.seen) = (false, 0, 0, 0);
        self.timers = [Timer::default(); TIMERS];
        self.write_config(0);
        self.drive();
    }
}

/// Saved state of an [`Hpet`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetState {
    enabled: bool,
    legacy_mode: bool,
    status: u8,
    timers: [Timer; TIMERS],
    /// The counter when it was last looked at.
    counter: u64,
    /// How long it has run since, in nanoseconds.
    elapsed: Nanos,
}

impl SaveRestore for Hpet {
    type State = HpetState;

    fn save(&self) -> HpetState {
        let Self {
            clock,
            routes: _,
            legacy: _,
            enabled,
            legacy_mode,
            status,
            timers,
            base,
            running,
            seen,
            asserted: _, // follows from the rest
        } = self;
        let elapsed = if *enabled { running.elapsed(clock.now()) } else { 0 };
        HpetState {
            enabled: *enabled,
            legacy_mode: *legacy_mode,
            status: *status,
            timers: *timers,
            counter: *seen,
            elapsed: elapsed.saturating_sub(seen.wrapping_sub(*base).saturating_mul(TICK)),
        }
    }

    /// The counter goes on from where it was saved, however the clock stands.
    fn restore(&mut self, state: HpetState) -> Result<(), RestoreError> {
        let HpetState { enabled, legacy_mode, status, timers, counter, elapsed } = state;
        let refuse = |ok, what: &str| check("hpet", ok, || what.to_owned());
        refuse(elapsed <= LONGEST, "counter has run for centuries")?;
        refuse(status >> TIMERS == 0, "interrupt status of timers that do not exist")?;
        let routable = self.route_capabilities();
        for (n, timer) in timers.iter().enumerate() {
            refuse(timer.config & !WRITABLE == 0, "timer configuration has bits that do not exist")?;
            let route = timer.route();
            let routed = route == 0 || routable >> route & 1 != 0;
            refuse(routed, "timer has a line that it cannot be routed to")?;
            let fits = (timer.comparator | timer.period) & !timer.mask() == 0;
            refuse(fits, "32-bit timer has a comparator or period of more")?;
            let level = timer.is(INT_TYPE);
            refuse(level || status >> n & 1 == 0, "edge-triggered timer has interrupt status")?;
            refuse(
                !timer.raised || timer.is(INT_ENB) && !level,
                "timer has raised a line that it does not drive",
            )?;
        }
        self.running = Stopwatch::showing(elapsed, self.clock.now());
        (self.enabled, self.status, self.timers) = (enabled, status, timers);
        (self.base, self.seen) = (counter, counter);
        self.legacy_mode = legacy_mode;
        self.legacy.set_replaced(legacy_mode);
        self.drive();
        Ok(())
    }
}
