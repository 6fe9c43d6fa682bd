//! What is shared with those who do not hold the shadow tables: processors that run on them, and devices that
//! write to memory.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

const PAGE: u64 = 4096;

/// Writes by processors are not allowed: the page is a table in use.
const PROTECTED: u8 = 1;
/// It was written by somebody else since.
const WRITTEN: u8 = 2;

/// Which host-physical pages hold guest tables that nobody may change unseen.
#[derive(Debug)]
pub struct Watch {
    flags: Box<[AtomicU8]>,
    /// Some page has just become [`WRITTEN`].
    any: AtomicBool,
    written: Mutex<Vec<u64>>,
}

impl Watch {
    /// For an arena of `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        let flags = (0..bytes.div_ceil(PAGE)).map(|_| AtomicU8::new(0)).collect();
        Self { flags, any: AtomicBool::new(false), written: Mutex::default() }
    }

    fn flag(&self, hpa: u64) -> Option<&AtomicU8> {
        self.flags.get((hpa / PAGE) as usize)
    }

    /// Somebody else than a processor on the shadow tables wrote `len` bytes at host-physical `hpa`. To be
    /// called when the bytes are there. Cheap where no tables are.
    pub fn wrote(&self, hpa: u64, len: u64) {
        // Who protects a page reads it afterwards.
        fence(Ordering::SeqCst);
        let last = hpa.saturating_add(len.max(1) - 1);
        for page in hpa / PAGE..=last / PAGE {
            let Some(flag) = self.flags.get(page as usize) else { return };
            if flag.load(Ordering::SeqCst) == PROTECTED
                && flag.fetch_or(WRITTEN, Ordering::SeqCst) == PROTECTED
            {
                self.written.lock().unwrap_or_else(PoisonError::into_inner).push(page * PAGE);
                self.any.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Takes the pages that were written.
    pub(super) fn take_written(&self) -> Vec<u64> {
        if !self.any.load(Ordering::SeqCst) || !self.any.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_protected(&self, hpa: u64) -> bool {
        self.flag(hpa).is_some_and(|flag| flag.load(Ordering::Relaxed) & PROTECTED != 0)
    }

    /// From here on writes are noticed: what is read afterwards is good until then.
    pub(super) fn protect(&self, hpa: u64) {
        if let Some(flag) = self.flag(hpa) {
            flag.store(PROTECTED, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    pub(super) fn unprotect(&self, hpa: u64) {
        if let Some(flag) = self.flag(hpa) {
            flag.store(0, Ordering::SeqCst);
        }
    }
}

/// Not in the guest.
const OUTSIDE: u64 = u64::MAX;
/// Has never run.
const NO_ROOT: u64 = u64::MAX;

/// Moments that processors must have left the guest after.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// Goes up when something was taken out of the tables that a processor may still be looking at.
    now: AtomicU64,
}

/// A processor's place among those who run on shadow tables.
#[derive(Debug)]
pub(super) struct Presence {
    epochs: Arc<Epochs>,
    /// The epoch in which it entered the guest, or [`OUTSIDE`].
    entered: AtomicU64,
    /// The root that it runs on, or has run on last.
    root: AtomicU64,
}

impl Presence {
    pub fn run_on(&self, root: u64) {
        self.root.store(root, Ordering::SeqCst);
    }

    /// Enters the guest if no epoch has begun since this one.
    pub fn try_enter(&self, epoch: u64) -> bool {
        self.entered.store(epoch, Ordering::SeqCst);
        let same = self.epochs.now.load(Ordering::SeqCst) == epoch;
        if !same {
            self.leave();
        }
        same
    }

    pub fn leave(&self) {
        self.entered.store(OUTSIDE, Ordering::SeqCst);
    }
}

/// All processors that run on the tables.
#[derive(Debug, Default)]
pub(super) struct Processors {
    epochs: Arc<Epochs>,
    all: Vec<Arc<Presence>>,
}

impl Processors {
    pub fn join(&mut self) -> Arc<Presence> {
        self.all.retain(|presence| Arc::strong_count(presence) > 1);
        let presence = Arc::new(Presence {
            epochs: self.epochs.clone(),
            entered: AtomicU64::new(OUTSIDE),
            root: AtomicU64::new(NO_ROOT),
        });
        self.all.push(presence.clone());
        presence
    }

    /// Whether there are several.
    pub fn several(&self) -> bool {
        self.all.len() > 1
    }

    /// Whether any of them runs on this root, or will do so again unless it is told otherwise.
    pub fn run_on(&self, root: u64) -> bool {
        self.all.iter().any(|presence| presence.root.load(Ordering::SeqCst) == root)
    }

    pub fn epoch(&self) -> u64 {
        self.epochs.now.load(Ordering::SeqCst)
    }

    /// Something was taken out: begins an epoch.
    pub fn next_epoch(&self) -> u64 {
        self.epochs.now.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether every processor that is in the guest has entered in this epoch or later.
    pub fn have_passed(&self, epoch: u64) -> bool {
        self.all.iter().all(|presence| presence.entered.load(Ordering::SeqCst) >= epoch)
    }
}
