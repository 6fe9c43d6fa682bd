//! Port and memory buses: which device answers to an address.
//!
//! A board registers regions with a builder; the frozen bus then finds the device of an access
//! without taking a lock, and locks only that device. Nothing is found for an unclaimed address: it
//! reads all-ones and ignores writes, as an undriven bus does.
//!
//! A device sees an access whole where it lies whole inside one region. Where it does not, the bus
//! halves it until each part lies in one region or nowhere, lowest address first.
//!
//! A layout that changes while the machine runs (a PCI BAR that moves) is a new bus: take
//! [`PioBus::to_builder`], change it, and hand the result to a [`Swap`].

mod mmio;
mod pio;
mod swap;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use mmio::{MmioBus, MmioBusBuilder};
pub use pio::{PioBus, PioBusBuilder};
pub use swap::{Swap, View};

use crate::Device;

/// A device on a bus. It is locked only for an access that was found to be its own.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

/// Locks a device. A device whose earlier user panicked is used on as it is.
pub fn lock(device: &SharedDevice) -> MutexGuard<'_, dyn Device + 'static> {
    device.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Why a region cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Two regions would answer to the same address.
    #[error("{new} at {new_start:#x}+{new_len:#x} overlaps {old} at {old_start:#x}+{old_len:#x}")]
    Conflict {
        /// The region that was refused.
        new: String,
        /// Its first address.
        new_start: u64,
        /// Its length.
        new_len: u64,
        /// The region that was there first.
        old: String,
        /// Its first address.
        old_start: u64,
        /// Its length.
        old_len: u64,
    },
    /// The region is empty or ends beyond the last address of the bus.
    #[error("{name} at {start:#x}+{len:#x} is empty or ends beyond the bus")]
    OutOfRange {
        /// The region that was refused.
        name: String,
        /// Its first address.
        start: u64,
        /// Its length.
        len: u64,
    },
    /// The device has no such face: its `pio()` or `mmio()` answers `None`.
    #[error("{name} does not answer to {space} accesses")]
    NoFace {
        /// The region that was refused.
        name: String,
        /// "port" or "memory".
        space: &'static str,
    },
    /// No region starts at the address given.
    #[error("no region starts at {start:#x}")]
    NotFound {
        /// The address given.
        start: u64,
    },
}

/// How often a region was accessed. Parts of a split access count one each, a block access counts
/// each of its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionStats {
    /// The name it was registered under.
    pub name: String,
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Reads so far.
    pub reads: u64,
    /// Writes so far.
    pub writes: u64,
}

/// Access counters; shared with the buses rebuilt from this one.
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
}

/// One registered region.
#[derive(Clone)]
struct Region {
    start: u64,
    /// The last address, inclusive: a region may end at the top of the address space.
    last: u64,
    device: SharedDevice,
    index: usize,
    name: Arc<str>,
    counts: Arc<Counts>,
}

impl Region {
    fn contains(&self, address: u64) -> bool {
        self.start <= address && address <= self.last
    }

    /// Whether `bytes` bytes at `address`, which is inside, end inside too.
    fn holds(&self, address: u64, bytes: usize) -> bool {
        bytes as u64 - 1 <= self.last - address
    }

    fn count_reads(&self, n: usize) {
        self.counts.reads.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn count_writes(&self, n: usize) {
        self.counts.writes.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn stats(&self) -> RegionStats {
        RegionStats {
            name: self.name.to_string(),
            start: self.start,
            len: (self.last - self.start).saturating_add(1),
            reads: self.counts.reads.load(Ordering::Relaxed),
            writes: self.counts.writes.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] at {:#x}..={:#x}", self.name, self.index, self.start, self.last)
    }
}

/// What both builders share: regions, sorted by address, none overlapping.
#[derive(Debug, Clone, Default)]
struct Regions(Vec<Region>);

impl Regions {
    fn insert(
        &mut self,
        (start, len): (u64, u64),
        top: u64,
        device: SharedDevice,
        index: usize,
        name: &str,
    ) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|rest| start.checked_add(rest));
        let Some(last) = last.filter(|last| *last <= top) else {
            return Err(BusError::OutOfRange { name: name.to_owned(), start, len });
        };
        let at = self.0.partition_point(|r| r.last < start);
        if let Some(old) = self.0.get(at).filter(|r| r.start <= last) {
            let old = old.stats();
            return Err(BusError::Conflict {
                new: name.to_owned(),
                new_start: start,
                new_len: len,
                old: old.name,
                old_start: old.start,
                old_len: old.len,
            });
        }
        let counts = Arc::default();
        self.0.insert(at, Region { start, last, device, index, name: name.into(), counts });
        Ok(())
    }

    fn remove(&mut self, start: u64) -> Result<(), BusError> {
        let at =
            self.0.binary_search_by_key(&start, |r| r.start).map_err(|_| BusError::NotFound { start })?;
        self.0.remove(at);
        Ok(())
    }
}
