//! Page faults: how shadow tables come about.

use super::format::{Format, GuestEntry, Rights};
use super::sources::offset_in;
use super::tables::{ENTRIES, Full, Index, Key, Source, WRITABLE, place, span};
use super::watch::Watch;
use super::{Root, Shadow, ShadowAction, ShadowRam, Top};
use crate::paging::{self, Access, Leaf, PageEntry, PagingFlags, PagingMode, WalkError};
use crate::table::{PageAllocator, TableMemory};
use std::cell::Cell;
use std::convert::Infallible;

const PAGE: u64 = 4096;
/// So many neighbours, aligned, get their leaves with the one that was asked for.
const TOGETHER: usize = 32;

/// What is known of the access that faulted beside its address.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    write: bool,
    /// The guest's flags could not be set, as its tables lie in ROM.
    unflagged: bool,
}

impl<A: PageAllocator> Shadow<A> {
    /// See [`Shadow::handle_page_fault`].
    pub(super) fn fault(
        &mut self,
        ram: &impl ShadowRam,
        mode: &PagingMode,
        gva: u64,
        access: Access,
    ) -> Result<ShadowAction, Full> {
        let tables = GuestView { ram, refused: Cell::new(false) };
        let leaf = match paging::walk(&tables, mode, gva, access) {
            Ok(leaf) => leaf,
            Err(WalkError::PageFault(code)) => return Ok(ShadowAction::InjectPageFault(code)),
            Err(WalkError::Memory(never)) => match never {},
        };
        let Some(slot) = ram.slot_at(leaf.gpa).filter(|slot| !(access.write && slot.read_only)) else {
            return Ok(ShadowAction::Mmio(leaf.gpa));
        };
        if access.write {
            let rights = Rights::ALL.with(Rights::WRITE, leaf.writable).with(Rights::USER, leaf.user);
            if !Format::of(mode).may_write(rights) || only_without_wp(mode, leaf, access) {
                return Ok(ShadowAction::EmulateWrite(leaf.gpa));
            }
            let page = leaf.gpa & !(PAGE - 1);
            self.guest_writes(slot.hpa + (page - slot.gpa));
            if slot.log_dirty {
                ram.wrote(page);
            }
        }
        let wanted = Wanted { write: access.write, unflagged: tables.refused.get() };
        self.fill(ram, mode, gva, wanted)?;
        Ok(ShadowAction::Retry)
    }

    /// The guest is about to write to this page.
    fn guest_writes(&mut self, hpa: u64) {
        if !self.sources.open(hpa) {
            return;
        }
        // Nobody runs on these tables, and they are written to: the address space is probably gone.
        let dead = |root: &Root| {
            let Top::Table(top) = root.top else { return false };
            let source = self.tables.get(top).key.source;
            matches!(source, Source::Guest { hpa: other, .. } if other == hpa)
                && !self.tables.processors.run_on(root.id)
        };
        if let Some(at) = self.roots.iter().position(dead) {
            let root = self.roots.remove(at);
            self.release(&root);
        }
    }

    /// Makes the leaf for `gva`, and all tables on the way to it. If the guest's tables have changed since
    /// they were walked, less is made: the processor faults again.
    fn fill(
        &mut self,
        ram: &impl ShadowRam,
        mode: &PagingMode,
        gva: u64,
        wanted: Wanted,
    ) -> Result<(), Full> {
        let root = self.root(ram, mode)?;
        let Some(mut table) = root.first_table(gva) else { return Ok(()) };
        loop {
            let key = self.tables.get(table).key;
            let at = place(key.level, gva);
            let (seen, next) = match key.source {
                Source::Direct { .. } if key.level == 0 => {
                    self.fill_direct(ram, table, at, wanted.write);
                    return Ok(());
                }
                Source::Direct { gpa, protection_key } => {
                    let gpa = gpa + at as u64 * span(key.level);
                    let source = Source::Direct { gpa, protection_key };
                    (0, Key { level: key.level - 1, rights: key.rights, source })
                }
                Source::Guest { hpa, part, format } => {
                    let seen = raw_entry(ram, hpa, offset_in(format, key.level, part, at), format);
                    let Some(entry) = format.decode(key.level, seen) else { return Ok(()) };
                    if key.level == 0 {
                        self.fill_leaf(ram, table, at, (seen, &entry), wanted);
                        return Ok(());
                    }
                    let Some(next) = below(ram, &key, at, format, &entry, wanted) else { return Ok(()) };
                    (seen, next)
                }
            };
            table = self.descend(ram, table, at, seen, next)?;
        }
    }

    /// The table of `key`, to which the entry at this place leads from now on.
    fn descend(
        &mut self,
        ram: &impl ShadowRam,
        table: Index,
        at: usize,
        seen: u64,
        key: Key,
    ) -> Result<Index, Full> {
        if let Some(below) = self.tables.below(table, at) {
            if self.tables.get(below).key == key {
                self.tables.set_seen(table, at, seen);
                return Ok(below);
            }
            self.removals += 1;
            self.clear(table, at);
        }
        let below = self.table_for(ram, key)?;
        self.tables.link(table, at, below, seen);
        Ok(below)
    }

    /// The table for a key, new or not. Of consecutive pages, all leaves are made at once.
    pub(super) fn table_for(&mut self, ram: &impl ShadowRam, key: Key) -> Result<Index, Full> {
        let known = match key.source {
            Source::Guest { hpa, .. } => self.sources.find(hpa, &key),
            Source::Direct { .. } => self.tables.direct(&key),
        };
        if let Some(table) = known {
            return Ok(table);
        }
        let table = self.tables.make(key)?;
        match key.source {
            Source::Guest { hpa, .. } => self.sources.add(hpa, key, table),
            Source::Direct { .. } if key.level == 0 => {
                (0..ENTRIES).for_each(|at| self.fill_direct(ram, table, at, false));
            }
            Source::Direct { .. } => {}
        }
        Ok(table)
    }

    /// Empties an entry.
    pub(super) fn clear(&mut self, table: Index, at: usize) {
        let sources = &mut self.sources;
        self.tables.clear(table, at, &mut |table, key| sources.forget(table, key));
    }

    /// Sets a leaf from a guest entry, and those of its neighbours that the guest uses.
    fn fill_leaf(
        &mut self,
        ram: &impl ShadowRam,
        table: Index,
        at: usize,
        (seen, entry): (u64, &GuestEntry),
        wanted: Wanted,
    ) {
        let Key { rights, source, .. } = self.tables.get(table).key;
        let Source::Guest { hpa, part, format } = source else { return };
        if let Some(leaf) = leaf(ram, &self.sources.watch, format, rights, entry, Some(wanted)) {
            self.set_leaf(table, at, leaf, seen);
        }
        let first = at & !(TOGETHER - 1);
        for neighbour in first..first + TOGETHER {
            if self.tables.get(table).seen[neighbour] != 0 {
                continue;
            }
            let seen = raw_entry(ram, hpa, offset_in(format, 0, part, neighbour), format);
            let entry = format.decode(0, seen).filter(|entry| entry.accessed);
            let leaf = entry.and_then(|entry| leaf(ram, &self.sources.watch, format, rights, &entry, None));
            if let Some(leaf) = leaf {
                self.set_leaf(table, neighbour, leaf, seen);
            }
        }
    }

    fn set_leaf(&mut self, table: Index, at: usize, leaf: u64, seen: u64) {
        if self.tables.set_leaf(table, at, leaf, seen) {
            self.removals += 1;
        }
    }

    /// Sets a leaf of a table of consecutive pages, where there is memory. `written`: it is the one that the
    /// guest writes to, which has been recorded.
    fn fill_direct(&mut self, ram: &impl ShadowRam, table: Index, at: usize, written: bool) {
        let Key { rights, source, .. } = self.tables.get(table).key;
        let Source::Direct { gpa, protection_key } = source else { return };
        let gpa = gpa + at as u64 * PAGE;
        let Some(slot) = ram.slot_at(gpa) else { return };
        let hpa = slot.hpa + (gpa - slot.gpa);
        let write = rights.has(Rights::WRITE)
            && !slot.read_only
            && (written || !slot.log_dirty)
            && !self.sources.watch.is_protected(hpa);
        self.set_leaf(table, at, bits(hpa, rights, write, protection_key), 0);
    }
}

/// Whether a protection key would deny the write if CR0.WP were set, as it is on shadow tables.
fn only_without_wp(mode: &PagingMode, leaf: Leaf, access: Access) -> bool {
    let strict = PagingMode { flags: mode.flags | PagingFlags::WRITE_PROTECT, ..*mode };
    Leaf { writable: true, ..leaf }.permits(&strict, access).is_err()
}

/// What an entry of a guest table above the lowest leads to. `None`: to no memory.
fn below(
    ram: &impl ShadowRam,
    key: &Key,
    at: usize,
    format: Format,
    entry: &GuestEntry,
    wanted: Wanted,
) -> Option<Key> {
    let level = key.level - 1;
    let rights = key.rights.and(entry.rights);
    if !entry.large {
        let slot = ram.slot_at(entry.target)?;
        let hpa = slot.hpa + (entry.target - slot.gpa);
        let part = if format.narrow() { (at & 1) as u8 } else { 0 };
        return Some(Key { level, rights, source: Source::Guest { hpa, part, format } });
    }
    // Half of 4 MiB, or the whole page.
    let gpa = if format.narrow() { entry.target | (at as u64 & 1) << 21 } else { entry.target };
    let dirty = entry.dirty || wanted.write && wanted.unflagged;
    let rights = rights.with(Rights::WRITE, format.may_write(rights) && dirty);
    Some(Key { level, rights, source: Source::Direct { gpa, protection_key: entry.key } })
}

/// The leaf for a guest entry of the lowest level; `None` if there is no memory. `rights` are those of the
/// entries above it. `wanted`: it is the one that was accessed, and a write has been recorded.
pub(super) fn leaf(
    ram: &impl ShadowRam,
    watch: &Watch,
    format: Format,
    rights: Rights,
    entry: &GuestEntry,
    wanted: Option<Wanted>,
) -> Option<u64> {
    let slot = ram.slot_at(entry.target)?;
    let hpa = slot.hpa + (entry.target - slot.gpa);
    let rights = rights.and(entry.rights);
    let written = wanted.is_some_and(|wanted| wanted.write);
    let dirty = entry.dirty || wanted.is_some_and(|wanted| wanted.write && wanted.unflagged);
    let write = format.may_write(rights)
        && dirty
        && !slot.read_only
        && (written || !slot.log_dirty)
        && !watch.is_protected(hpa);
    Some(bits(hpa, rights, write, entry.key))
}

/// A leaf. Accessed and dirty are set: the guest's own flags were dealt with.
fn bits(hpa: u64, rights: Rights, write: bool, key: u8) -> u64 {
    let mut entry = PageEntry::PRESENT | PageEntry::ACCESSED | PageEntry::DIRTY;
    entry.set(PageEntry::USER, rights.has(Rights::USER));
    entry.set(PageEntry::NO_EXECUTE, !rights.has(Rights::EXECUTE));
    let write = if write { WRITABLE } else { 0 };
    entry.bits() | write | hpa | u64::from(key) << 59
}

/// A guest entry as it is now.
pub(super) fn raw_entry(ram: &impl ShadowRam, hpa: u64, offset: usize, format: Format) -> u64 {
    let at = hpa + offset as u64;
    let entry =
        if format.narrow() { ram.arena().read_u32(at).map(u64::from) } else { ram.arena().read_u64(at) };
    // The page is in a slot, and so in the arena.
    entry.unwrap_or(0)
}

/// Guest-physical memory for the guest's walk. Outside of RAM, reads give all ones and writes are lost.
struct GuestView<'a, R> {
    ram: &'a R,
    /// A flag could not be set.
    refused: Cell<bool>,
}

impl<R: ShadowRam> GuestView<'_, R> {
    /// Where an entry can be changed; its page is then recorded as written.
    fn writable(&self, gpa: u64) -> Option<u64> {
        let Some(slot) = self.ram.slot_at(gpa).filter(|slot| !slot.read_only) else {
            self.refused.set(true);
            return None;
        };
        if slot.log_dirty {
            self.ram.wrote(gpa & !(PAGE - 1));
        }
        Some(slot.hpa + (gpa - slot.gpa))
    }
}

impl<R: ShadowRam> TableMemory for GuestView<'_, R> {
    type Error = Infallible;

    fn read(&self, pa: u64) -> Result<u64, Infallible> {
        let slot = self.ram.slot_at(pa);
        let entry = slot.and_then(|slot| self.ram.arena().read_u64(slot.hpa + (pa - slot.gpa)));
        Ok(entry.unwrap_or(u64::MAX))
    }

    fn write(&self, pa: u64, value: u64) -> Result<(), Infallible> {
        let _ = self.writable(pa).and_then(|hpa| self.ram.arena().write_u64(hpa, value));
        Ok(())
    }

    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Infallible> {
        let done = self.writable(pa).and_then(|hpa| self.ram.arena().compare_exchange_u64(hpa, current, new));
        Ok(done.unwrap_or(Ok(current)))
    }

    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, Infallible> {
        let old = self.writable(pa).and_then(|hpa| self.ram.arena().fetch_or_u64(hpa, bits));
        Ok(old.unwrap_or(u64::MAX))
    }
}
