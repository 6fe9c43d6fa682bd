//! Keeps vCPUs out of the guest while its memory changes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

/// Lets vCPUs into the guest, and keeps them out while `T`, such as its memory, changes.
pub(crate) struct Gate<T> {
    guarded: RwLock<T>,
    /// Changes wanted or under way.
    changes: AtomicU32,
    /// Held by whoever changes it.
    turn: Mutex<()>,
}

impl<T> Gate<T> {
    pub fn new(guarded: T) -> Self {
        Self { guarded: RwLock::new(guarded), changes: AtomicU32::new(0), turn: Mutex::new(()) }
    }

    /// Keeps everything as it is while the result lives. A vCPU must have cleared its signals before: it
    /// is told by a signal when it has to give way.
    pub fn enter(&self) -> RwLockReadGuard<'_, T> {
        loop {
            let inside = self.guarded.read().unwrap_or_else(PoisonError::into_inner);
            if self.changes.load(Ordering::SeqCst) == 0 {
                return inside;
            }
            drop(inside);
            drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Changes it. `expel` makes vCPUs that are inside leave; the caller must not be inside.
    pub fn change<R>(&self, expel: impl FnOnce(), change: impl FnOnce(&mut T) -> R) -> R {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch_add(1, Ordering::SeqCst);
        expel();
        let result = change(&mut self.guarded.write().unwrap_or_else(PoisonError::into_inner));
        self.changes.fetch_sub(1, Ordering::SeqCst);
        result
    }
}
