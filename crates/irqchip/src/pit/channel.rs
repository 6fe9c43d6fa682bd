//! One counter of the 8254.
//!
//! Nothing runs: the counting element is computed from the tick at which it was loaded. All times
//! here are ticks of the 1.193182 MHz input clock.

use serde::{Deserialize, Serialize};

/// Counting modes 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    InterruptOnTerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::InterruptOnTerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Counting starts with a rising edge of GATE, not with the count.
    fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// How the 16-bit count is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// The counting element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Counting {
    /// No count was written since the control word, or the trigger has not come: it stands still.
    Idle,
    /// It was loaded at this tick.
    Since(i64),
    /// GATE is low: it stands this many ticks after its loading.
    Paused(i64),
}

/// One counter. Saved state holds ticks relative to the moment of saving; see [`Channel::rebase`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    counting: Counting,
    /// The count in effect, 1 to 65,536 (in BCD up to 10,000, more if the digits are none).
    count: u32,
    /// A count written but not yet in effect, with the tick at which it takes effect; `None` while
    /// that is the next trigger.
    next: Option<(u32, Option<i64>)>,
    /// The first byte of two of a count being written.
    written_low: Option<u8>,
    /// The next live or latched byte is the high one.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// Rising edges of OUT since the count was loaded that were counted already.
    edges: u64,
    /// Edges counted and not taken.
    untaken: u64,
}

impl Channel {
    /// A counter after power-on, where the data sheet leaves everything undefined.
    pub fn new(gate: bool) -> Self {
        Self {
            mode: Mode::InterruptOnTerminalCount,
            access: Access::LowThenHigh,
            bcd: false,
            gate,
            counting: Counting::Idle,
            count: 0x1_0000,
            next: None,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            edges: 0,
            untaken: 0,
        }
    }

    /// Moves all ticks by `by`: from absolute to relative to the moment of saving, and back.
    pub fn rebase(&mut self, by: i64) {
        if let Counting::Since(at) = &mut self.counting {
            *at = at.saturating_add(by);
        }
        if let Some((_, Some(at))) = &mut self.next {
            *at = at.saturating_add(by);
        }
    }

    /// Why a counter cannot be in this state (ticks relative), if so.
    pub fn invalid(&self) -> Option<String> {
        // Ten thousand years of ticks: far from overflow in anything computed here.
        let bad_tick = |tick: i64| !(-(1 << 60)..=1 << 60).contains(&tick);
        let bad_count = |count: u32| !(1..=0x1_0000).contains(&count);
        if bad_count(self.count) || self.next.is_some_and(|(count, _)| bad_count(count)) {
            return Some(format!("count {} or {:?}", self.count, self.next));
        }
        match (self.counting, self.next) {
            (Counting::Since(tick) | Counting::Paused(tick), _) if bad_tick(tick) => {
                Some(format!("counting {:?}", self.counting))
            }
            (_, Some((_, Some(tick)))) if bad_tick(tick) => Some(format!("next count at {tick}")),
            _ => None,
        }
    }

    /// A control word for this counter, but no latch command.
    pub fn control(&mut self, value: u8) {
        *self = Self {
            mode: Mode::from_bits(value >> 1),
            access: match value >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::LowThenHigh,
            },
            bcd: value & 1 != 0,
            count: self.count,
            ..Self::new(self.gate)
        };
    }

    /// Counter latch command: ignored while an earlier latch was not read.
    pub fn latch_count(&mut self, now: i64) {
        self.advance(now);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now));
            self.read_high = self.access == Access::High;
        }
    }

    /// Read-back command with STATUS: ignored while an earlier status was not read.
    pub fn latch_status(&mut self, now: i64) {
        self.advance(now);
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        let status = u8::from(self.out(now)) << 7
            | u8::from(self.is_null(now)) << 6
            | access << 4
            | (self.mode as u8) << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// The count last written has not reached the counting element.
    fn is_null(&self, now: i64) -> bool {
        let loading = matches!(self.counting, Counting::Since(at) if now < at);
        self.next.is_some() || loading || self.counting == Counting::Idle
    }

    /// Reads the counter's port.
    pub fn read(&mut self, now: i64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        self.advance(now);
        let [low, high] = self.latched_count.unwrap_or_else(|| self.value(now)).to_le_bytes();
        match self.access {
            Access::Low | Access::High => {
                self.latched_count = None;
                if self.access == Access::Low { low } else { high }
            }
            Access::LowThenHigh if self.read_high => {
                self.read_high = false;
                self.latched_count = None;
                high
            }
            Access::LowThenHigh => {
                self.read_high = true;
                low
            }
        }
    }

    /// Writes the counter's port.
    pub fn write(&mut self, value: u8, now: i64) {
        self.advance(now);
        let value = u16::from(value);
        match (self.access, self.written_low.take()) {
            (Access::Low, _) => self.load(value, now),
            (Access::High, _) => self.load(value << 8, now),
            (Access::LowThenHigh, Some(low)) => self.load(value << 8 | u16::from(low), now),
            (Access::LowThenHigh, None) => {
                self.written_low = Some(value as u8);
                // In mode 0 the first byte stops the counting, and OUT is low.
                if self.mode == Mode::InterruptOnTerminalCount {
                    self.counting = Counting::Idle;
                    self.edges = 0;
                }
            }
        }
    }

    /// A count was written. It is loaded with the next input clock, but where the mode has it wait
    /// for the end of the current cycle or for a trigger.
    fn load(&mut self, value: u16, now: i64) {
        let count = if self.bcd {
            let digit = |shift: u32| u32::from(value >> shift & 0xf);
            digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)
        } else {
            value.into()
        };
        let count = if count == 0 { self.modulus() } else { count };
        match self.counting {
            _ if self.mode.is_triggered() => self.next = Some((count, None)),
            Counting::Since(at) if self.mode.is_periodic() && now >= at => {
                self.next = Some((count, Some(self.cycle_end(now - at).saturating_add(at))));
            }
            Counting::Paused(_) if self.mode.is_periodic() => self.next = Some((count, None)),
            _ => {
                self.count = count;
                self.start(now + 1);
            }
        }
    }

    /// The counting element is loaded with the count in effect at tick `at`.
    fn start(&mut self, at: i64) {
        self.counting =
            if self.gate || self.mode.is_triggered() { Counting::Since(at) } else { Counting::Paused(0) };
        self.edges = 0;
    }

    /// Ticks from the loading to the end of the cycle (in mode 3: half cycle) that `elapsed` is in.
    fn cycle_end(&self, elapsed: i64) -> i64 {
        let count = i64::from(self.count);
        let (begin, phase) = (elapsed - elapsed % count, elapsed % count);
        let half = high_half(count);
        if self.mode == Mode::SquareWave && phase < half { begin + half } else { begin + count }
    }

    /// Puts a waiting count into effect when its time has come.
    fn advance(&mut self, now: i64) {
        let (Some((count, Some(at))), Counting::Since(since)) = (self.next, self.counting) else { return };
        if now < at {
            return;
        }
        // A half cycle of mode 3 that ends in the middle is followed by the low half.
        let ends_high_half = (at - since) % i64::from(self.count) != 0;
        self.count_edges(at);
        self.next = None;
        self.count = count;
        self.counting = Counting::Since(if ends_high_half { at - high_half(count.into()) } else { at });
        self.edges = 0;
    }

    /// Drives GATE.
    pub fn set_gate(&mut self, gate: bool, now: i64) {
        self.advance(now);
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        match (gate, self.counting) {
            (true, _) if self.mode.is_triggered() => {
                if let Some((count, _)) = self.next.take() {
                    self.count = count;
                } else if self.counting == Counting::Idle {
                    return; // no count was ever written
                }
                self.start(now + 1);
            }
            (true, Counting::Paused(_)) if self.mode.is_periodic() => {
                if let Some((count, _)) = self.next.take() {
                    self.count = count;
                }
                self.start(now + 1);
            }
            (true, Counting::Paused(elapsed)) => self.counting = Counting::Since(now - elapsed),
            (false, Counting::Since(at)) if !self.mode.is_triggered() => {
                self.counting = Counting::Paused((now - at).max(0));
                if let Some((_, at)) = &mut self.next {
                    *at = None;
                }
            }
            _ => {}
        }
    }

    /// Ticks since the counting element was loaded; negative for the tick before.
    fn elapsed(&self, now: i64) -> Option<i64> {
        match self.counting {
            Counting::Idle => None,
            Counting::Since(at) => Some(now - at),
            Counting::Paused(elapsed) => Some(elapsed),
        }
    }

    /// The level of OUT.
    pub fn out(&mut self, now: i64) -> bool {
        self.advance(now);
        let Some(elapsed) = self.elapsed(now).filter(|elapsed| *elapsed >= 0) else {
            return self.mode != Mode::InterruptOnTerminalCount;
        };
        let count = i64::from(self.count);
        let paused = matches!(self.counting, Counting::Paused(_));
        match self.mode {
            Mode::InterruptOnTerminalCount | Mode::OneShot => elapsed >= count,
            Mode::RateGenerator => paused || elapsed % count != count - 1,
            Mode::SquareWave => paused || elapsed % count < high_half(count),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != count,
        }
    }

    /// What the counting element reads as.
    fn value(&self, now: i64) -> u16 {
        let count = i64::from(self.count);
        let elapsed = self.elapsed(now).unwrap_or(0).max(0);
        let value = match self.mode {
            Mode::RateGenerator => count - elapsed % count,
            Mode::SquareWave => {
                let (phase, half) = (elapsed % count, high_half(count));
                let in_half = if phase < half { phase } else { phase - half };
                (count & !1) - 2 * in_half
            }
            // The others go on from zero to the highest count.
            _ => (count - elapsed).rem_euclid(self.modulus().into()),
        };
        let value = (value % i64::from(self.modulus())) as u16;
        if !self.bcd {
            return value;
        }
        let digit = |unit: u16| value / unit % 10;
        digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
    }

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Rising edges of OUT from the last loading to `now`.
    fn edges_until(&self, now: i64) -> u64 {
        let (Counting::Since(at), count) = (self.counting, i64::from(self.count)) else { return 0 };
        let elapsed = (now - at).max(0);
        match self.mode {
            Mode::InterruptOnTerminalCount | Mode::OneShot => u64::from(elapsed >= count),
            // A count of one is illegal in these modes: OUT has no edges.
            Mode::RateGenerator | Mode::SquareWave if count == 1 => 0,
            Mode::RateGenerator | Mode::SquareWave => (elapsed / count) as u64,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => u64::from(elapsed > count),
        }
    }

    fn count_edges(&mut self, until: i64) {
        let edges = self.edges_until(until);
        self.untaken = self.untaken.saturating_add(edges.saturating_sub(self.edges));
        self.edges = edges;
    }

    /// Takes the number of rising edges of OUT since the last call.
    pub fn take_edges(&mut self, now: i64) -> u64 {
        self.advance(now);
        self.count_edges(now);
        std::mem::take(&mut self.untaken)
    }

    /// The tick of the first rising edge of OUT that was not taken.
    pub fn next_edge(&self) -> Option<i64> {
        let Counting::Since(at) = self.counting else { return None };
        let count = i64::from(self.count);
        let edge = match self.mode {
            _ if self.mode.is_periodic() => {
                let edge = count.checked_mul(i64::try_from(self.edges).ok()?.checked_add(1)?)?;
                (count > 1).then_some(edge)
            }
            _ if self.edges > 0 => None,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => Some(count + 1),
            _ => Some(count),
        };
        let edge = edge.map(|edge| at.saturating_add(edge));
        match self.next {
            // A shorter cycle may begin before: look again then.
            Some((_, Some(switch))) => Some(edge.map_or(switch, |edge| edge.min(switch))),
            _ => edge,
        }
    }

    /// The length of a cycle, in ticks, while OUT is periodic.
    pub fn period(&self) -> Option<u32> {
        self.mode.is_periodic().then_some(self.count)
    }
}

/// How long OUT is high in each cycle of mode 3.
fn high_half(count: i64) -> i64 {
    (count + 1) / 2
}
