//! Time since a device's own beginning.

use trapline_device::Nanos;

/// Measures time on a machine's clock, and can be saved on one clock and restored on another.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch {
    start: Nanos,
    /// What had passed already at `start`.
    lead: Nanos,
}

/// The longest time a saved stopwatch may show, about 146 years: sums with it cannot overflow.
pub(crate) const LONGEST: Nanos = Nanos::MAX / 4;

impl Stopwatch {
    /// A stopwatch that shows `lead` at `now`.
    pub(crate) fn showing(lead: Nanos, now: Nanos) -> Self {
        Self { start: now, lead }
    }

    /// What it shows at `now`.
    pub(crate) fn elapsed(self, now: Nanos) -> Nanos {
        now.saturating_sub(self.start).saturating_add(self.lead)
    }

    /// When it will show `elapsed`; now-or-earlier moments come out as its start.
    pub(crate) fn when(self, elapsed: Nanos) -> Nanos {
        self.start.saturating_add(elapsed.saturating_sub(self.lead))
    }
}
