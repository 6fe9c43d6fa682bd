//! The APIC timer (SDM vol. 3 §11.5.4): one-shot, periodic, TSC-deadline.

use serde::{Deserialize, Serialize};
use trapline_device::Nanos;

use super::lvt::MASKED;
use super::{LocalApic, LvtEntry};

/// Frequency of the bus clock that the timer divides.
pub const BUS_HZ: u64 = 1_000_000_000;

/// Now, on both of the clocks that drive a timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Nanoseconds of the machine's [`Clock`](trapline_device::Clock).
    pub ns: Nanos,
    /// The time-stamp counter of the processor that owns the local APIC.
    pub tsc: u64,
}

/// When the timer interrupts next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// At this time of [`Time::ns`].
    Nanos(Nanos),
    /// At this value of [`Time::tsc`].
    Tsc(u64),
}

/// What the timer is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Run {
    #[default]
    Stopped,
    /// The count goes down and reaches zero at this time.
    Counting(Nanos),
    /// TSC-deadline mode, armed.
    Until(u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    pub initial: u32,
    pub divide: u32,
    pub run: Run,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    /// The mode of an LVT timer entry; the reserved value 3 counts as one-shot.
    pub fn of(entry: u32) -> Self {
        match entry >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

impl Timer {
    /// Nanoseconds a count. Divide configuration bits 3, 1 and 0: 0b111 is one, others 2 to 128.
    fn divisor(&self) -> u64 {
        let bits = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((bits + 1) & 7)
    }

    /// The current count.
    pub fn count(&self, now: Nanos) -> u32 {
        let Run::Counting(expiry) = self.run else { return 0 };
        u32::try_from(expiry.saturating_sub(now).div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    pub fn start(&mut self, from: u32, now: Nanos) {
        self.run = if from == 0 {
            Run::Stopped
        } else {
            Run::Counting(now.saturating_add(u64::from(from) * self.divisor()))
        };
    }

    /// Counts on from here with another divisor.
    pub fn set_divide(&mut self, divide: u32, now: Nanos) {
        let count = self.count(now);
        self.divide = divide;
        if matches!(self.run, Run::Counting(_)) {
            self.start(count, now);
        }
    }

    /// Whether the timer expired by now. A periodic timer goes on: periods that passed unseen are
    /// one expiry together, and the phase is kept.
    fn expire(&mut self, mode: Mode, time: Time) -> bool {
        match self.run {
            Run::Until(deadline) if deadline <= time.tsc => self.run = Run::Stopped,
            Run::Counting(expiry) if expiry <= time.ns => {
                let period = u64::from(self.initial) * self.divisor();
                self.run = if mode == Mode::Periodic && period > 0 {
                    Run::Counting(time.ns.saturating_add(period - (time.ns - expiry) % period))
                } else {
                    Run::Stopped
                };
            }
            _ => return false,
        }
        true
    }
}

impl LocalApic {
    /// When to call [`LocalApic::tick`] next; `None` while no timer interrupt is to come. For a
    /// periodic timer with a period of a few nanoseconds the moment may always lie in the past: the
    /// owner decides how often it follows.
    pub fn deadline(&self) -> Option<Deadline> {
        if self.lvt.get(LvtEntry::Timer) & MASKED != 0 {
            return None;
        }
        match self.timer.run {
            Run::Stopped => None,
            Run::Counting(expiry) => Some(Deadline::Nanos(expiry)),
            Run::Until(tsc) => Some(Deadline::Tsc(tsc)),
        }
    }

    /// Requests the timer interrupt if the timer has expired, and says whether it did.
    pub fn tick(&mut self, time: Time) -> bool {
        let entry = self.lvt.get(LvtEntry::Timer);
        if !self.timer.expire(Mode::of(entry), time) || entry & MASKED != 0 {
            return false;
        }
        let _ = self.accept(entry as u8, false);
        true
    }

    /// IA32_TSC_DEADLINE: zero while the timer is not armed.
    pub fn tsc_deadline(&self) -> u64 {
        if let Run::Until(tsc) = self.timer.run { tsc } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE: arms the timer, or disarms it with zero. Ignored outside
    /// TSC-deadline mode. A deadline that has passed interrupts at once.
    pub fn set_tsc_deadline(&mut self, value: u64, time: Time) {
        if Mode::of(self.lvt.get(LvtEntry::Timer)) == Mode::TscDeadline {
            self.tick(time);
            self.timer.run = if value == 0 { Run::Stopped } else { Run::Until(value) };
            self.tick(time);
        }
    }

    /// Writes the LVT timer entry. A change to or from TSC-deadline mode disarms the timer.
    pub(super) fn set_timer_entry(&mut self, value: u32, time: Time) {
        // What has expired belongs to the old entry.
        self.tick(time);
        let deadline = |entry| Mode::of(entry) == Mode::TscDeadline;
        if deadline(self.lvt.get(LvtEntry::Timer)) != deadline(value) {
            self.timer.run = Run::Stopped;
        }
        self.lvt.set(LvtEntry::Timer, value);
    }

    /// Writes the initial count, which starts the timer; zero stops it. Ignored in TSC-deadline
    /// mode.
    pub(super) fn set_initial_count(&mut self, value: u32, time: Time) {
        if Mode::of(self.lvt.get(LvtEntry::Timer)) != Mode::TscDeadline {
            self.tick(time);
            self.timer.initial = value;
            self.timer.start(value, time.ns);
        }
    }
}
