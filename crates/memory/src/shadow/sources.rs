//! The guest's tables that shadow tables were made from, and how far they can be trusted.

use super::Shadow;
use super::format::{Format, stale};
use super::tables::{ENTRIES, Index, Key, Source};
use super::watch::Watch;
use super::{ShadowRam, fill};
use crate::table::PageAllocator;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// So many times an open page must be found unchanged, before it is closed.
const QUIET: u8 = 2;

/// Whether the guest can change a page of tables unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It can.
    Open,
    /// No leaf allows writes any more, but a processor that has not entered the guest since this epoch may
    /// still do so by what it has cached.
    Closing(u64),
    /// It cannot: the first write is a page fault, or is told by [`Watch::wrote`].
    Closed,
}

/// A page of the guest that holds tables.
#[derive(Debug)]
struct Page {
    tables: Vec<(Key, Index)>,
    state: State,
    /// How often it was found unchanged.
    quiet: u8,
}

/// All pages that hold tables, by host-physical address.
#[derive(Debug)]
pub(super) struct Sources {
    pages: HashMap<u64, Page>,
    /// Those that are not closed.
    open: BTreeSet<u64>,
    pub watch: Arc<Watch>,
}

impl Sources {
    pub fn new(watch: Arc<Watch>) -> Self {
        Self { pages: HashMap::new(), open: BTreeSet::new(), watch }
    }

    pub fn find(&self, hpa: u64, key: &Key) -> Option<Index> {
        let page = self.pages.get(&hpa)?;
        page.tables.iter().find(|(other, _)| other == key).map(|&(_, table)| table)
    }

    /// A table was made from the page. The first leaves the page open: it is probably being filled.
    pub fn add(&mut self, hpa: u64, key: Key, table: Index) {
        let open = &mut self.open;
        let page = self.pages.entry(hpa).or_insert_with(|| {
            open.insert(hpa);
            Page { tables: Vec::new(), state: State::Open, quiet: 0 }
        });
        page.tables.push((key, table));
    }

    /// A table has gone.
    pub fn forget(&mut self, table: Index, key: &Key) {
        let Source::Guest { hpa, .. } = key.source else { return };
        let Some(page) = self.pages.get_mut(&hpa) else { return };
        page.tables.retain(|&(_, other)| other != table);
        if page.tables.is_empty() {
            self.pages.remove(&hpa);
            self.open.remove(&hpa);
            self.watch.unprotect(hpa);
        }
    }

    /// The guest writes to a page, or has done so. Whether it holds tables and was trusted.
    pub fn open(&mut self, hpa: u64) -> bool {
        let Some(page) = self.pages.get_mut(&hpa).filter(|page| page.state != State::Open) else {
            return false;
        };
        (page.state, page.quiet) = (State::Open, 0);
        self.open.insert(hpa);
        self.watch.unprotect(hpa);
        true
    }

    /// From here on no page is trusted.
    pub fn open_all(&mut self) {
        for (&hpa, page) in &mut self.pages {
            if page.state != State::Open {
                (page.state, page.quiet) = (State::Open, 0);
                self.open.insert(hpa);
                self.watch.unprotect(hpa);
            }
        }
    }

    pub fn clear(&mut self) {
        for &hpa in self.pages.keys() {
            self.watch.unprotect(hpa);
        }
        self.pages.clear();
        self.open.clear();
    }

    fn state(&self, hpa: u64) -> Option<State> {
        self.pages.get(&hpa).map(|page| page.state)
    }

    fn set_state(&mut self, hpa: u64, state: State) {
        if let Some(page) = self.pages.get_mut(&hpa) {
            page.state = state;
        }
        if state == State::Closed {
            self.open.remove(&hpa);
        }
    }
}

impl<A: PageAllocator> Shadow<A> {
    /// Compares all tables that the guest may have changed with what was made of them, and brings that up to
    /// date: what an event must do that makes a processor forget translations.
    pub(super) fn bring_up_to_date(&mut self, ram: &impl ShadowRam) {
        for hpa in self.sources.watch.take_written() {
            self.sources.open(hpa);
        }
        let open: Vec<u64> = self.sources.open.iter().copied().collect();
        for hpa in open {
            match self.sources.state(hpa) {
                Some(State::Open) => {
                    let changed = self.compare(ram, hpa);
                    let Some(page) = self.sources.pages.get_mut(&hpa) else { continue };
                    page.quiet = if changed { 0 } else { page.quiet + 1 };
                    if page.quiet >= QUIET && self.unprotected == 0 {
                        self.close(ram, hpa);
                    }
                }
                Some(State::Closing(epoch)) => self.settle(ram, hpa, epoch),
                Some(State::Closed) | None => {}
            }
        }
    }

    /// Begins to trust a page: takes the right to write to it from everybody.
    fn close(&mut self, ram: &impl ShadowRam, hpa: u64) {
        self.sources.watch.protect(hpa);
        let stripped = self.tables.strip_write(hpa);
        let mut epoch = self.tables.processors.epoch();
        // One processor has dropped what it cached when leaves were taken away; of several, another may not.
        if stripped || self.tables.processors.several() {
            epoch = self.tables.processors.next_epoch();
            self.flush_epoch = epoch;
        }
        self.sources.set_state(hpa, State::Closing(epoch));
        self.settle(ram, hpa, epoch);
    }

    /// Trusts a page that is closing, if nobody can write to it any more.
    fn settle(&mut self, ram: &impl ShadowRam, hpa: u64, epoch: u64) {
        let passed = self.tables.processors.have_passed(epoch);
        self.compare(ram, hpa);
        if passed {
            self.sources.set_state(hpa, State::Closed);
        }
    }

    /// Compares one page with what was made of it. Whether there was a difference.
    fn compare(&mut self, ram: &impl ShadowRam, hpa: u64) -> bool {
        let mut bytes = [0; 4096];
        if ram.arena().read_bytes(hpa, &mut bytes).is_none() {
            return false;
        }
        let Some(page) = self.sources.pages.get(&hpa) else { return false };
        let mut changed = Vec::new();
        for &(key, table) in &page.tables {
            let Source::Guest { part, format, .. } = key.source else { continue };
            for (at, &seen) in self.tables.get(table).seen.iter().enumerate() {
                if seen != 0 {
                    let now = word(&bytes, offset_in(format, key.level, part, at), format);
                    if stale(seen, now) {
                        changed.push((table, at, now));
                    }
                }
            }
        }
        for &(table, at, now) in &changed {
            // An earlier one may have taken this table away.
            let key = self.tables.get(table).key;
            if self.sources.find(hpa, &key) == Some(table) {
                self.renew(ram, table, at, now);
            }
        }
        !changed.is_empty()
    }

    /// Sets an entry anew that was made from a guest entry that reads as `now`.
    pub(super) fn renew(&mut self, ram: &impl ShadowRam, table: Index, at: usize, now: u64) {
        self.removals += 1;
        let Key { level, rights, source } = self.tables.get(table).key;
        if let Source::Guest { format, .. } = source
            && level == 0
            && let Some(entry) = format.decode(0, now).filter(|entry| entry.accessed)
            && let Some(leaf) = fill::leaf(ram, &self.sources.watch, format, rights, &entry, None)
        {
            self.tables.set_leaf(table, at, leaf, now);
            return;
        }
        let sources = &mut self.sources;
        self.tables.clear(table, at, &mut |table, key| sources.forget(table, key));
    }
}

/// Where in its page the guest entry is that an entry of a shadow table is made from.
pub(super) fn offset_in(format: Format, level: u8, part: u8, at: usize) -> usize {
    match (format.narrow(), level) {
        (false, _) => at * 8,
        (true, 0) => (usize::from(part) * ENTRIES + at) * 4,
        // Two of ours for one of the guest's.
        (true, _) => (usize::from(part) * ENTRIES + at) / 2 * 4,
    }
}

/// The entry at an offset in a page.
fn word(bytes: &[u8; 4096], offset: usize, format: Format) -> u64 {
    let size = if format.narrow() { 4 } else { 8 };
    let mut word = [0; 8];
    word.iter_mut().zip(bytes.iter().skip(offset).take(size)).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}
