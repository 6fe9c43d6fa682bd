//! Test doubles for device tests, here and in other crates.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Clock, IrqSink, Msi, MsiSink, Nanos};

/// A clock that moves only when told.
#[derive(Debug, Default)]
pub struct FakeClock(AtomicU64);

impl FakeClock {
    /// Moves time forward by `by` nanoseconds.
    pub fn advance(&self, by: Nanos) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Nanos {
        self.0.load(Ordering::SeqCst)
    }
}

/// Records what was driven and signalled.
#[derive(Debug, Default)]
pub struct Recorder {
    edges: Mutex<Vec<(u32, bool)>>,
    messages: Mutex<Vec<Msi>>,
}

impl Recorder {
    /// The last level driven on `pin`; false if it never was.
    pub fn level(&self, pin: u32) -> bool {
        let edges = self.edges.lock().unwrap_or_else(|e| e.into_inner());
        edges.iter().rev().find(|e| e.0 == pin).is_some_and(|e| e.1)
    }

    /// How often `pin` went from deasserted to asserted.
    pub fn rising_edges(&self, pin: u32) -> usize {
        let edges = self.edges.lock().unwrap_or_else(|e| e.into_inner());
        let mut level = false;
        let mut count = 0;
        for &(_, new) in edges.iter().filter(|e| e.0 == pin) {
            count += usize::from(new && !level);
            level = new;
        }
        count
    }

    /// Takes the messages signalled so far.
    pub fn take_messages(&self) -> Vec<Msi> {
        std::mem::take(&mut self.messages.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl IrqSink for Recorder {
    fn set(&self, pin: u32, level: bool) {
        self.edges.lock().unwrap_or_else(|e| e.into_inner()).push((pin, level));
    }
}

impl MsiSink for Recorder {
    fn signal(&self, msi: Msi) {
        self.messages.lock().unwrap_or_else(|e| e.into_inner()).push(msi);
    }
}
