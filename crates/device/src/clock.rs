//! Time, handed in.

use std::time::Instant;

/// Nanoseconds since the machine was made.
pub type Nanos = u64;

/// Where a device gets the time from. Boards hand in one clock for all devices of a machine; tests
/// hand in [`crate::test::FakeClock`].
pub trait Clock: Send + Sync {
    /// The time now. Never goes backwards.
    fn now(&self) -> Nanos;
}

/// The host's monotonic clock.
#[derive(Debug, Clone)]
pub struct HostClock(Instant);

impl HostClock {
    /// A clock that starts at zero now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }
}
