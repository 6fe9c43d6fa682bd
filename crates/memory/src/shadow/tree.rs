//! The shadow tables themselves: their pages, their leaves, and which leaf allows writes to which page.

use crate::arena::Arena;
use crate::paging::PageEntry;
use crate::table::{ADDRESS, PageAllocator, PageSize};
use std::collections::BTreeSet;
use std::sync::Arc;

const PRESENT: u64 = PageEntry::PRESENT.bits();
const WRITABLE: u64 = PageEntry::WRITABLE.bits();
/// An entry to another table restricts nothing: the leaf says it all.
const TABLE: u64 = PRESENT | WRITABLE | PageEntry::USER.bits() | PageEntry::ACCESSED.bits();
/// Ignored by the processor: the guest has one page where this entry stands for many.
const FROM_LARGE: u64 = 1 << 9;

/// The top of a hierarchy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Top {
    pub page: u64,
    /// 3 for PAE tables, whose top entries must not change while in use; 4 or 5.
    pub levels: usize,
}

/// All hierarchies. Pages once taken are kept until the end, so that an address in `writable` is always
/// that of a shadow entry.
#[derive(Debug)]
pub(super) struct Trees<A: PageAllocator> {
    mem: Arc<Arena>,
    pages: A,
    owned: Vec<u64>,
    free: Vec<u64>,
    limit: usize,
    /// Leaves that allow writes: page written, address of the entry.
    writable: BTreeSet<(u64, u64)>,
}

const fn span(level: usize) -> u64 {
    1 << (12 + 9 * level)
}

const fn slot(table: u64, level: usize, gva: u64) -> u64 {
    table + (gva / span(level) % 512) * 8
}

impl<A: PageAllocator> Trees<A> {
    pub fn new(mem: Arc<Arena>, pages: A, limit: usize) -> Self {
        Self { mem, pages, owned: Vec::new(), free: Vec::new(), limit, writable: BTreeSet::new() }
    }

    fn read(&self, pa: u64) -> u64 {
        self.mem.read_u64(pa).unwrap_or(0)
    }

    fn write(&self, pa: u64, value: u64) {
        // The address is in a page that the allocator said is there.
        let _ = self.mem.write_u64(pa, value);
    }

    fn alloc(&mut self) -> Option<u64> {
        let page = match self.free.pop() {
            Some(page) => page,
            None if self.owned.len() < self.limit => {
                let page = self.pages.alloc_page()?;
                self.owned.push(page);
                page
            }
            None => return None,
        };
        self.mem.write_bytes(page, &[0; 4096])?;
        Some(page)
    }

    /// An empty hierarchy, or `None` if there are not enough pages.
    pub fn new_top(&mut self, levels: usize) -> Option<Top> {
        let top = Top { page: self.alloc()?, levels };
        if levels == 3 {
            // The processor reads these four only once, and allows no rights in them.
            for index in 0..4 {
                match self.alloc() {
                    Some(page) => self.write(top.page + index * 8, page | PRESENT),
                    None => {
                        self.release(top);
                        return None;
                    }
                }
            }
        }
        Some(top)
    }

    /// Gives back all pages of a hierarchy.
    pub fn release(&mut self, top: Top) {
        self.free_table(top.page, top.levels - 1);
    }

    /// Maps the page of `gva` by `entry`, which has the address of the page. `guest_page`: the size that
    /// the guest gave it. `None` if there are not enough pages.
    pub fn map(&mut self, top: Top, gva: u64, entry: u64, guest_page: PageSize) -> Option<()> {
        let mut table = top.page;
        for level in (1..top.levels).rev() {
            let pa = slot(table, level, gva);
            let mut next = self.read(pa);
            if next & PRESENT == 0 {
                next = self.alloc()? | TABLE;
            }
            if guest_page.bytes() >= span(level) {
                next |= FROM_LARGE;
            }
            self.write(pa, next);
            table = next & ADDRESS;
        }
        let pa = slot(table, 0, gva);
        self.clear_leaf(pa);
        self.write(pa, entry);
        if entry & WRITABLE != 0 {
            self.writable.insert((entry & ADDRESS, pa));
        }
        Some(())
    }

    /// Removes what is mapped from `start` to `end`.
    pub fn zap(&mut self, top: Top, start: u64, end: u64) {
        self.zap_table(top.page, top.levels - 1, start, end, top.levels == 3);
    }

    fn zap_table(&mut self, table: u64, level: usize, start: u64, end: u64, keep_entries: bool) {
        let span = span(level);
        let mut gva = start & !(span - 1);
        while gva < end {
            let pa = slot(table, level, gva);
            let entry = self.read(pa);
            let next = gva.saturating_add(span);
            if level == 0 {
                self.clear_leaf(pa);
            } else if entry & PRESENT != 0 {
                if start <= gva && next <= end && !keep_entries {
                    self.write(pa, 0);
                    self.free_table(entry & ADDRESS, level - 1);
                } else {
                    self.zap_table(entry & ADDRESS, level - 1, start.max(gva), end.min(next), false);
                }
            }
            gva = next;
        }
    }

    /// Removes the translation of one linear address: the whole page that the guest had there.
    pub fn invalidate(&mut self, top: Top, gva: u64) {
        let mut table = top.page;
        for level in (1..top.levels).rev() {
            let pa = slot(table, level, gva);
            let entry = self.read(pa);
            // A page of 4 MiB is two entries of the lowest level but one, used apart or together.
            let (flags, size) = match level {
                1 => (entry | self.read(pa ^ 8), PageSize::Size4M.bytes()),
                _ => (entry, span(level)),
            };
            if flags & FROM_LARGE != 0 {
                let start = gva & !(size - 1);
                return self.zap(top, start, start + size);
            }
            if entry & PRESENT == 0 {
                return;
            }
            table = entry & ADDRESS;
        }
        self.clear_leaf(slot(table, 0, gva));
    }

    /// Takes the right to write to a host-physical page from every leaf. Whether any had it.
    pub fn strip_write(&mut self, hpa: u64) -> bool {
        let leaves: Vec<(u64, u64)> = self.writable.range((hpa, 0)..=(hpa, u64::MAX)).copied().collect();
        for leaf in &leaves {
            self.write(leaf.1, self.read(leaf.1) & !WRITABLE);
            self.writable.remove(leaf);
        }
        !leaves.is_empty()
    }

    fn clear_leaf(&mut self, pa: u64) {
        let old = self.read(pa);
        if old & WRITABLE != 0 {
            self.writable.remove(&(old & ADDRESS, pa));
        }
        self.write(pa, 0);
    }

    fn free_table(&mut self, table: u64, level: usize) {
        for index in 0..512 {
            let pa = table + index * 8;
            let entry = self.read(pa);
            if entry & PRESENT == 0 {
                continue;
            }
            if level == 0 {
                self.clear_leaf(pa);
            } else {
                self.free_table(entry & ADDRESS, level - 1);
            }
        }
        self.free.push(table);
    }
}

impl<A: PageAllocator> Drop for Trees<A> {
    fn drop(&mut self) {
        self.owned.iter().for_each(|&page| self.pages.free_page(page));
    }
}
