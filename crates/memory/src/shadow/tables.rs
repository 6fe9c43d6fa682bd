//! The shadow tables themselves: their pages, which table each stands for, who leads to it, and which leaf
//! allows writes to which page.

use super::format::{Format, Rights};
use super::watch::Processors;
use crate::arena::Arena;
use crate::paging::PageEntry;
use crate::table::{ADDRESS, PageAllocator};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

const PRESENT: u64 = PageEntry::PRESENT.bits();
pub(super) const WRITABLE: u64 = PageEntry::WRITABLE.bits();
/// An entry to another table restricts nothing: the leaf says it all.
const TABLE: u64 = PRESENT | WRITABLE | PageEntry::USER.bits() | PageEntry::ACCESSED.bits();
pub(super) const ENTRIES: usize = 512;

/// So many tables, and each leaf has a number of 32 bits.
const MOST_TABLES: usize = 1 << 22;

/// The number of a table.
pub(super) type Index = u32;
/// No table, no leaf.
const NONE: u32 = u32::MAX;

/// What a table stands for. Two places in the guest's hierarchies that say the same share one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// 0 for the lowest.
    pub level: u8,
    /// What all entries on the way here allow.
    pub rights: Rights,
    pub source: Source,
}

/// See [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A table of the guest, in the host-physical page `hpa`. An entry of four bytes has less reach than one
    /// of ours, or more: `part` says which part of the table, or of the whole, is meant.
    Guest { hpa: u64, part: u8, format: Format },
    /// No table of the guest: guest-physical addresses from `gpa` on, one after the other. Part of a large
    /// page, or of everything where paging is off.
    Direct { gpa: u64, protection_key: u8 },
}

/// Where a leaf stands in the list of those that allow writes to the same page.
#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    previous: u32,
}

/// What the entries lead to.
#[derive(Debug)]
enum Below {
    Tables(Box<[Index; ENTRIES]>),
    Pages(Box<[Link; ENTRIES]>),
}

/// A shadow table.
#[derive(Debug)]
pub(super) struct Table {
    pub hpa: u64,
    pub key: Key,
    /// How many entries and roots lead here. Without any it does not live.
    references: u32,
    /// The guest's entry that each present entry was made from; 0 where none is.
    pub seen: Box<[u64; ENTRIES]>,
    below: Below,
}

/// Pages of the tables, and the tables in them.
#[derive(Debug)]
pub(super) struct Tables<A: PageAllocator> {
    mem: Arc<Arena>,
    pages: A,
    limit: usize,
    /// Pages taken from the allocator. They are kept until the end.
    owned: Vec<u64>,
    free: Vec<u64>,
    /// Pages that processors may still be looking at, with the epoch in which they were taken out.
    retired: VecDeque<(u64, u64)>,
    all: Vec<Table>,
    unused: Vec<Index>,
    direct: HashMap<Key, Index>,
    /// The first leaf that allows writes, for each host-physical page.
    writers: Box<[u32]>,
    pub processors: Processors,
}

/// Bytes of linear address that an entry at `level` covers.
pub(super) const fn span(level: u8) -> u64 {
    1 << (12 + 9 * level)
}

/// The place of `gva` in a table at `level`.
pub(super) const fn place(level: u8, gva: u64) -> usize {
    (gva >> (12 + 9 * level)) as usize % ENTRIES
}

/// No page is left.
pub(super) struct Full;

/// Is told which tables have gone.
pub(super) type Gone<'a> = dyn FnMut(Index, &Key) + 'a;

impl<A: PageAllocator> Tables<A> {
    pub fn new(mem: Arc<Arena>, pages: A, limit: usize) -> Self {
        let writers = vec![NONE; mem.len().div_ceil(4096) as usize].into_boxed_slice();
        Self {
            mem,
            pages,
            limit: limit.min(MOST_TABLES),
            owned: Vec::new(),
            free: Vec::new(),
            retired: VecDeque::new(),
            all: Vec::new(),
            unused: Vec::new(),
            direct: HashMap::new(),
            writers,
            processors: Processors::default(),
        }
    }

    /// A page of zeroes that no processor looks at.
    pub fn take_page(&mut self) -> Result<u64, Full> {
        if let Some(&(epoch, page)) = self.retired.front()
            && self.free.is_empty()
            && self.processors.have_passed(epoch)
        {
            self.retired.pop_front();
            self.free.push(page);
        }
        let page = match self.free.pop() {
            Some(page) => page,
            None if self.owned.len() < self.limit => {
                let page = self.pages.alloc_page().ok_or(Full)?;
                self.owned.push(page);
                page
            }
            None => return Err(Full),
        };
        self.mem.write_bytes(page, &[0; 4096]).ok_or(Full)?;
        Ok(page)
    }

    /// Gives back a page of [`Self::take_page`], once no processor looks at it any more.
    pub fn retire_page(&mut self, page: u64) {
        self.retired.push_back((self.processors.next_epoch(), page));
    }

    pub fn get(&self, table: Index) -> &Table {
        // Numbers come from here, and tables are never moved.
        &self.all[table as usize]
    }

    fn get_mut(&mut self, table: Index) -> &mut Table {
        &mut self.all[table as usize]
    }

    pub fn entry(&self, table: Index, at: usize) -> u64 {
        self.mem.read_u64(self.get(table).hpa + 8 * at as u64).unwrap_or(0)
    }

    /// Puts an entry where processors see it, after all that it leads to.
    pub fn put(&self, table_hpa: u64, at: usize, entry: u64) {
        fence(Ordering::Release);
        // The address is in a page that the allocator said is there.
        let _ = self.mem.write_u64(table_hpa + 8 * at as u64, entry);
    }

    /// A new table, to which nobody leads yet.
    pub fn make(&mut self, key: Key) -> Result<Index, Full> {
        let hpa = self.take_page()?;
        let below = if key.level == 0 {
            Below::Pages(Box::new([Link { next: NONE, previous: NONE }; ENTRIES]))
        } else {
            Below::Tables(Box::new([NONE; ENTRIES]))
        };
        let table = Table { hpa, key, references: 0, seen: Box::new([0; ENTRIES]), below };
        let index = match self.unused.pop() {
            Some(index) => {
                *self.get_mut(index) = table;
                index
            }
            None => {
                self.all.push(table);
                (self.all.len() - 1) as Index
            }
        };
        if let Source::Direct { .. } = key.source {
            self.direct.insert(key, index);
        }
        Ok(index)
    }

    /// The table of consecutive pages for `key`, if there is one.
    pub fn direct(&self, key: &Key) -> Option<Index> {
        self.direct.get(key).copied()
    }

    /// Somebody leads to `table` now.
    pub fn hold(&mut self, table: Index) {
        self.get_mut(table).references += 1;
    }

    /// Whether more than one entry or root leads to `table`.
    pub fn is_shared(&self, table: Index) -> bool {
        self.get(table).references > 1
    }

    /// Somebody does not lead to `table` any more. If nobody does, it goes, and with it what only it led
    /// to; `gone` is told which.
    pub fn drop_hold(&mut self, table: Index, gone: &mut Gone<'_>) {
        let held = self.get_mut(table);
        held.references -= 1;
        if held.references > 0 {
            return;
        }
        let Table { hpa, key, .. } = *self.get(table);
        // The entries themselves stay: a processor may be looking at them.
        for at in 0..ENTRIES {
            let old = self.entry(table, at);
            if old & PRESENT != 0 {
                self.unlink(table, at, old, gone);
            }
        }
        gone(table, &key);
        if let Source::Direct { .. } = key.source {
            self.direct.remove(&key);
        }
        self.retire_page(hpa);
        self.unused.push(table);
    }

    /// Empties an entry. Whether it was present.
    pub fn clear(&mut self, table: Index, at: usize, gone: &mut Gone<'_>) -> bool {
        let old = self.entry(table, at);
        if old & PRESENT != 0 {
            self.put(self.get(table).hpa, at, 0);
            self.unlink(table, at, old, gone);
        }
        old & PRESENT != 0
    }

    /// Forgets what `old`, the entry at this place, leads to.
    fn unlink(&mut self, table: Index, at: usize, old: u64, gone: &mut Gone<'_>) {
        let held = self.get_mut(table);
        held.seen[at] = 0;
        if let Below::Tables(below) = &mut held.below {
            let below = std::mem::replace(&mut below[at], NONE);
            self.drop_hold(below, gone);
        } else if old & WRITABLE != 0 {
            self.forget_writer(table, at, old & ADDRESS);
        }
    }

    /// The table that an entry leads to.
    pub fn below(&self, table: Index, at: usize) -> Option<Index> {
        match &self.get(table).below {
            Below::Tables(below) => Some(below[at]).filter(|&below| below != NONE),
            Below::Pages(_) => None,
        }
    }

    /// Lets an empty entry lead to another table.
    pub fn link(&mut self, table: Index, at: usize, below: Index, seen: u64) {
        self.hold(below);
        let entry = self.get(below).hpa | TABLE;
        let held = self.get_mut(table);
        held.seen[at] = seen;
        if let Below::Tables(tables) = &mut held.below {
            tables[at] = below;
        }
        let hpa = held.hpa;
        self.put(hpa, at, entry);
    }

    /// Remembers what guest entry an entry was made from.
    pub fn set_seen(&mut self, table: Index, at: usize, seen: u64) {
        self.get_mut(table).seen[at] = seen;
    }

    /// Sets a leaf, in place of what was there. Whether that took anything away but nothing.
    pub fn set_leaf(&mut self, table: Index, at: usize, entry: u64, seen: u64) -> bool {
        let old = self.entry(table, at);
        let hpa = self.get(table).hpa;
        self.get_mut(table).seen[at] = seen;
        if old == entry {
            return false;
        }
        if old & WRITABLE != 0 {
            self.forget_writer(table, at, old & ADDRESS);
        }
        self.put(hpa, at, entry);
        if entry & WRITABLE != 0 {
            self.remember_writer(table, at, entry & ADDRESS);
        }
        old & PRESENT != 0 && old | WRITABLE != entry
    }

    /// Takes the right to write to a host-physical page from every leaf. Whether any had it.
    pub fn strip_write(&mut self, page: u64) -> bool {
        let mut any = false;
        while let Some(&leaf) = self.writers.get((page / 4096) as usize).filter(|&&leaf| leaf != NONE) {
            let (table, at) = (leaf / ENTRIES as u32, leaf as usize % ENTRIES);
            let entry = self.entry(table, at);
            self.put(self.get(table).hpa, at, entry & !WRITABLE);
            self.forget_writer(table, at, page);
            any = true;
        }
        any
    }

    fn link_of(&mut self, leaf: u32) -> Option<&mut Link> {
        let table = self.all.get_mut(leaf as usize / ENTRIES)?;
        match &mut table.below {
            Below::Pages(links) => Some(&mut links[leaf as usize % ENTRIES]),
            Below::Tables(_) => None,
        }
    }

    /// Puts a leaf that allows writes to `page` in the list.
    fn remember_writer(&mut self, table: Index, at: usize, page: u64) {
        let leaf = table * ENTRIES as u32 + at as u32;
        let Some(first) = self.writers.get_mut((page / 4096) as usize) else { return };
        let next = std::mem::replace(first, leaf);
        if let Some(link) = self.link_of(next) {
            link.previous = leaf;
        }
        if let Some(link) = self.link_of(leaf) {
            *link = Link { next, previous: NONE };
        }
    }

    /// Takes it out.
    fn forget_writer(&mut self, table: Index, at: usize, page: u64) {
        let leaf = table * ENTRIES as u32 + at as u32;
        let Some(link) = self.link_of(leaf) else { return };
        let Link { next, previous } = std::mem::replace(link, Link { next: NONE, previous: NONE });
        if let Some(link) = self.link_of(next) {
            link.previous = previous;
        }
        match self.link_of(previous) {
            Some(link) => link.next = next,
            None => {
                if let Some(first) = self.writers.get_mut((page / 4096) as usize) {
                    *first = next;
                }
            }
        }
    }

    /// Drops all tables. No processor may be looking, and no root hold any.
    pub fn clear_all(&mut self) {
        self.all.clear();
        self.unused.clear();
        self.direct.clear();
        self.writers.fill(NONE);
        self.retired.clear();
        self.free.clone_from(&self.owned);
    }
}

impl<A: PageAllocator> Drop for Tables<A> {
    fn drop(&mut self) {
        self.owned.iter().for_each(|&page| self.pages.free_page(page));
    }
}
