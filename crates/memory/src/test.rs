//! A test double: table memory of a few pages, for unit tests and examples.

use crate::table::{PageAllocator, TableMemory};
use core::sync::atomic::{AtomicU64, Ordering};

/// Physical memory from address 0 to a limit, with a page allocator that goes through it once.
#[derive(Debug)]
pub struct Tables {
    words: Box<[AtomicU64]>,
    next: AtomicU64,
}

/// There is no memory at this address, or it is not aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no table memory at {0:#x}")]
pub struct NoMemory(pub u64);

impl Tables {
    /// Zeroed memory of `pages` pages of 4 KiB. The first page handed out is at 0x1000.
    pub fn new(pages: usize) -> Self {
        Self { words: (0..pages * 512).map(|_| AtomicU64::new(0)).collect(), next: AtomicU64::new(0x1000) }
    }

    fn word(&self, pa: u64) -> Result<&AtomicU64, NoMemory> {
        if pa & 7 != 0 {
            return Err(NoMemory(pa));
        }
        usize::try_from(pa / 8).ok().and_then(|index| self.words.get(index)).ok_or(NoMemory(pa))
    }
}

impl TableMemory for Tables {
    type Error = NoMemory;

    fn read(&self, pa: u64) -> Result<u64, NoMemory> {
        Ok(self.word(pa)?.load(Ordering::Relaxed))
    }

    fn write(&self, pa: u64, value: u64) -> Result<(), NoMemory> {
        self.word(pa)?.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, NoMemory> {
        Ok(self.word(pa)?.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }

    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, NoMemory> {
        Ok(self.word(pa)?.fetch_or(bits, Ordering::AcqRel))
    }
}

impl PageAllocator for Tables {
    fn alloc_page(&self) -> Option<u64> {
        let page = self.next.fetch_add(0x1000, Ordering::Relaxed);
        self.word(page + 0xff8).is_ok().then_some(page)
    }

    /// Pages are not handed out again, so that a test sees a use after the page was given back.
    fn free_page(&self, pa: u64) {
        for index in 0..512 {
            if let Ok(word) = self.word(pa + index * 8) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}
