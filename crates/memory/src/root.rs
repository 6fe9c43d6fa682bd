//! Which pages of the root area are free.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

const PAGE: u64 = 4096;

/// The free pages of a range of addresses.
#[derive(Debug)]
pub(crate) struct FreePages {
    area: Range<u64>,
    free: Mutex<Free>,
}

/// Pages given back, and the first that was never handed out.
#[derive(Debug)]
struct Free {
    returned: BTreeSet<u64>,
    next: u64,
}

impl FreePages {
    /// All pages of `area`.
    pub fn new(area: Range<u64>) -> Self {
        let free = Mutex::new(Free { returned: BTreeSet::new(), next: area.start });
        Self { area, free }
    }

    /// How many there are, free or not.
    pub fn len(&self) -> u64 {
        self.area.end.saturating_sub(self.area.start) / PAGE
    }

    /// Takes a page, if one is left.
    pub fn take(&self) -> Option<u64> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = free.returned.pop_last() {
            return Some(page);
        }
        let page = free.next;
        (page < self.area.end).then(|| {
            free.next += PAGE;
            page
        })
    }

    /// Gives a page back. One that was not taken is ignored.
    pub fn give(&self, pa: u64) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if pa.is_multiple_of(PAGE) && (self.area.start..free.next).contains(&pa) {
            free.returned.insert(pa);
        }
    }
}
