//! Shadow paging: guest linear to host-physical tables for processors that run without EPT.
//!
//! The shadow tables are filled by page faults and behave as one large TLB: they may hold what a TLB may
//! still hold, and forget what a TLB must forget. Each table of ours stands for one table of the guest, and
//! hierarchies that lead to the same guest table share it, so that what the address spaces of a guest have
//! in common is built once, and kept across CR3 loads.
//!
//! That is safe because of how the guest's tables are treated. A page of tables is *open* while the guest
//! writes to it: each event that makes a processor forget translations compares it with what was made of it.
//! Found unchanged a few times, it is *closed*: no leaf allows writes to it any more. The first write is then
//! a page fault, which opens it again.
//!
//! A processor that runs on shadow tables needs: CR0.PG and CR0.WP set (the guest reads its own values
//! back), CR4.PAE set, CR4.PCIDE clear, and CR4.SMEP, CR4.SMAP, CR4.PKE and IA32_EFER.NXE as the guest has
//! them. All page faults, MOV to CR0, CR3 and CR4, INVLPG and INVPCID must exit.
//!
//! Several processors run on the same tables at the same time, and go on while these change. Each has a
//! [`Seat`], on which it says when it enters and leaves the guest. What was taken out of the tables is used
//! for something else only when all who were in the guest at that moment have left it, and a page counts as
//! closed only then.
//!
//! | the guest's event | to do |
//! |---|---|
//! | page fault | [`Shadow::handle_page_fault`] |
//! | MOV to CR3, change of CR0, CR4 or IA32_EFER, INVPCID | [`Shadow::flush`] |
//! | INVLPG | [`Shadow::invlpg`] |
//! | before each VM entry | [`Shadow::enter`], or [`Seat::enter_again`] if neither mode nor CR3 has changed |
//! | after each VM exit | [`Seat::leave`] |
//!
//! Left out: large pages in the shadow (a guest's large page is built of 4 KiB ones, all at once), the
//! guest's memory types, supervisor protection keys.

mod fill;
mod format;
mod seat;
mod sources;
mod tables;
mod watch;

pub use seat::{Forget, Run, SPACES, Seat};
pub use watch::Watch;

use crate::arena::Arena;
use crate::layout::{GuestRam, Slot};
use crate::paging::{Access, PageFaultCode, PagingFlags, PagingKind, PagingMode};
use crate::table::{ADDRESS, PageAllocator, beyond};
use format::{Format, Rights};
use seat::{Age, Removed};
use sources::Sources;
use std::sync::Arc;
use tables::{Full, Index, Key, Source, Tables, place, span};

const PAGE: u64 = 4096;
/// How many address spaces are kept.
const MAX_ROOTS: usize = 128;

/// Guest-physical memory, as shadow tables need it.
pub trait ShadowRam {
    /// Where it lies.
    fn arena(&self) -> &Arena;

    /// The slot of a guest-physical address.
    fn slot_at(&self, gpa: u64) -> Option<&Slot>;

    /// A page of a slot that [logs](Slot::log_dirty) is written to, or may be from now on.
    fn wrote(&self, gpa: u64);
}

impl ShadowRam for GuestRam {
    fn arena(&self) -> &Arena {
        GuestRam::arena(self)
    }

    fn slot_at(&self, gpa: u64) -> Option<&Slot> {
        GuestRam::slot_at(self, gpa)
    }

    fn wrote(&self, gpa: u64) {
        self.dirty().mark(gpa, PAGE);
    }
}

/// What the engine must do about a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowAction {
    /// Enter again at the same instruction.
    Retry,
    /// The fault is the guest's own: inject it, with this error code.
    InjectPageFault(PageFaultCode),
    /// There is no RAM at this guest-physical address, or it is a write to ROM: emulate the access.
    Mmio(u64),
    /// Emulate the write to RAM at this guest-physical address, and report it to [`Watch::wrote`]: the
    /// guest, its CR0.WP clear, writes to a read-only user page, or to one whose protection key disables
    /// writes, which page tables used with CR0.WP set cannot allow.
    EmulateWrite(u64),
}

/// There are too few pages for the tables, or too few that no processor looks at: call
/// [`Shadow::flush_all`] with no processor in the guest, and try again. If that fails as well, there are too
/// few for even one translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no page left for a shadow table")]
pub struct NoShadowPage;

/// The top of a hierarchy.
#[derive(Clone, Copy, Debug)]
enum Top {
    Table(Index),
    /// The processor reads the four entries of this page only once, and allows no rights in them.
    Pae {
        page: u64,
        tables: [Option<Index>; 4],
    },
}

/// One address space.
#[derive(Clone, Copy, Debug)]
struct Root {
    id: u64,
    key: PagingMode,
    top: Top,
}

impl Root {
    /// The table in which to begin with a linear address.
    fn first_table(&self, gva: u64) -> Option<Index> {
        match self.top {
            Top::Table(table) => Some(table),
            Top::Pae { tables, .. } => tables[(gva >> 30) as usize & 3],
        }
    }
}

/// The shadow tables of a machine.
#[derive(Debug)]
pub struct Shadow<A: PageAllocator> {
    tables: Tables<A>,
    sources: Sources,
    /// The one used last is the last.
    roots: Vec<Root>,
    next_root: u64,
    removals: u64,
    flush_epoch: u64,
    /// How many write to memory past the tables.
    unprotected: u32,
}

impl<A: PageAllocator> Shadow<A> {
    /// Shadow tables in pages of `mem` that come from `pages`, not more than `max_pages`. They are given
    /// back when the value is dropped.
    pub fn new(mem: Arc<Arena>, pages: A, max_pages: usize) -> Self {
        let watch = Arc::new(Watch::new(mem.len()));
        Self {
            tables: Tables::new(mem, pages, max_pages),
            sources: Sources::new(watch),
            roots: Vec::new(),
            next_root: 0,
            removals: 0,
            flush_epoch: 0,
            unprotected: 0,
        }
    }

    /// Where others report their writes to memory.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.sources.watch
    }

    /// A place for another processor.
    pub fn join(&mut self) -> Seat {
        Seat::new(self.tables.processors.join())
    }

    /// The processor of `seat` is about to enter the guest, which translates by `mode`.
    ///
    /// # Errors
    /// Too few pages.
    pub fn enter(
        &mut self,
        ram: &impl ShadowRam,
        seat: &mut Seat,
        mode: &PagingMode,
    ) -> Result<Run, NoShadowPage> {
        let root = self.with_room(mode, |shadow| shadow.root(ram, mode))?;
        let cr3 = match root.top {
            Top::Table(table) => self.tables.get(table).hpa,
            Top::Pae { page, .. } => page,
        };
        Ok(seat.enter(root.id, cr3, self.age(), self.tables.processors.epoch()))
    }

    /// The guest of this processor loaded CR3, or changed CR0, CR4 or IA32_EFER, or executed INVPCID: what
    /// its tables do not say any more is forgotten.
    pub fn flush(&mut self, ram: &impl ShadowRam, seat: &mut Seat) {
        self.bring_up_to_date(ram);
        seat.flush();
    }

    /// The guest of this processor executed INVLPG. Says what the processor must forget of the address space
    /// that it ran on last.
    pub fn invlpg(&mut self, ram: &impl ShadowRam, seat: &mut Seat, mode: &PagingMode, gva: u64) -> Forget {
        let before = self.age();
        let removed = self.invalidate(ram, mode, gva);
        seat.invlpg(removed, before, self.age())
    }

    fn age(&self) -> Age {
        Age { flush_epoch: self.flush_epoch, removals: self.removals }
    }

    fn invalidate(&mut self, ram: &impl ShadowRam, mode: &PagingMode, gva: u64) -> Removed {
        let key = key(mode);
        let Some(root) = self.roots.iter().find(|root| root.key == key) else {
            // Not entered yet since CR3 was loaded: its top will be made of tables that others have made.
            self.bring_up_to_date(ram);
            return Removed::Nothing;
        };
        let Some(mut table) = root.first_table(gva) else { return Removed::Nothing };
        // The same entry may translate other addresses of this address space.
        let mut shared = false;
        loop {
            shared |= self.tables.is_shared(table);
            let Key { level, source, .. } = self.tables.get(table).key;
            let Source::Guest { hpa, part, format } = source else { return Removed::Nothing };
            let at = place(level, gva);
            let now = fill::raw_entry(ram, hpa, sources::offset_in(format, level, part, at), format);
            // 4 MiB are two entries of ours.
            let twin = if format.narrow() && level == 1 { at ^ 1 } else { at };
            let changed =
                self.renew_if_stale(ram, table, at, now) | self.renew_if_stale(ram, table, twin, now);
            match self.tables.below(table, at) {
                _ if changed && level == 0 && !shared => return Removed::Page,
                _ if changed => return Removed::More,
                Some(below) => table = below,
                None => return Removed::Nothing,
            }
        }
    }

    fn renew_if_stale(&mut self, ram: &impl ShadowRam, table: Index, at: usize, now: u64) -> bool {
        let seen = self.tables.get(table).seen[at];
        let stale = seen != 0 && format::stale(seen, now);
        if stale {
            self.renew(ram, table, at, now);
        }
        stale
    }

    /// From now on somebody writes to memory past the tables: a processor with EPT. Ends with
    /// [`Self::end_unprotected`].
    pub fn begin_unprotected(&mut self) {
        self.unprotected += 1;
        self.sources.open_all();
    }

    /// See [`Self::begin_unprotected`].
    pub fn end_unprotected(&mut self) {
        self.unprotected = self.unprotected.saturating_sub(1);
    }

    /// Takes the right to write to a host-physical page, until the next page fault: writes are to be
    /// recorded again.
    pub fn write_protect(&mut self, hpa: u64) {
        if self.tables.strip_write(hpa) {
            self.removals += 1;
            self.flush_epoch = self.tables.processors.next_epoch();
        }
    }

    /// Drops everything: slots changed. No processor may be in the guest.
    pub fn flush_all(&mut self) {
        self.roots.clear();
        self.sources.clear();
        self.tables.clear_all();
        self.removals += 1;
        self.flush_epoch = self.tables.processors.next_epoch();
    }

    /// A page fault happened at `gva`; `access` is what the error code and EFLAGS.AC say.
    ///
    /// # Errors
    /// Too few pages.
    pub fn handle_page_fault(
        &mut self,
        ram: &impl ShadowRam,
        mode: &PagingMode,
        gva: u64,
        access: Access,
    ) -> Result<ShadowAction, NoShadowPage> {
        self.with_room(mode, |shadow| shadow.fault(ram, mode, gva, access))
    }

    /// Does something; if pages run out, drops address spaces that nobody runs on, and does it again.
    fn with_room<T>(
        &mut self,
        mode: &PagingMode,
        mut act: impl FnMut(&mut Self) -> Result<T, Full>,
    ) -> Result<T, NoShadowPage> {
        loop {
            if let Ok(done) = act(self) {
                return Ok(done);
            }
            if !self.drop_oldest(Some(key(mode))) {
                return Err(NoShadowPage);
            }
        }
    }

    /// Drops an address space that is not `but`, and that nobody runs on.
    fn drop_oldest(&mut self, but: Option<PagingMode>) -> bool {
        let processors = &self.tables.processors;
        let free = |root: &Root| Some(root.key) != but && !processors.run_on(root.id);
        let Some(at) = self.roots.iter().position(free) else { return false };
        let root = self.roots.remove(at);
        self.release(&root);
        true
    }

    fn release(&mut self, root: &Root) {
        let sources = &mut self.sources;
        let mut drop_hold =
            |table| self.tables.drop_hold(table, &mut |table, key| sources.forget(table, key));
        match root.top {
            Top::Table(table) => drop_hold(table),
            Top::Pae { page, tables } => {
                tables.into_iter().flatten().for_each(drop_hold);
                self.tables.retire_page(page);
            }
        }
    }

    /// The hierarchy for `mode`, made if there is none.
    fn root(&mut self, ram: &impl ShadowRam, mode: &PagingMode) -> Result<Root, Full> {
        let key = key(mode);
        if let Some(at) = self.roots.iter().rposition(|root| root.key == key) {
            self.roots[at..].rotate_left(1);
        } else {
            if self.roots.len() >= MAX_ROOTS {
                self.drop_oldest(None);
            }
            let top = self.make_top(ram, &key)?;
            self.roots.push(Root { id: self.next_root, key, top });
            self.next_root += 1;
        }
        self.roots.last().copied().ok_or(Full)
    }

    fn make_top(&mut self, ram: &impl ShadowRam, mode: &PagingMode) -> Result<Top, Full> {
        let source = |address: u64, part: u8| {
            let slot = ram.slot_at(address)?;
            let hpa = slot.hpa + (address - slot.gpa);
            Some(Source::Guest { hpa, part, format: Format::of(mode) })
        };
        let sources = match mode.kind {
            PagingKind::Level4 | PagingKind::Level5 => {
                let level = if matches!(mode.kind, PagingKind::Level4) { 3 } else { 4 };
                // A table without memory behind it has no entries: the guest's walk fails.
                let source = source(mode.cr3, 0).unwrap_or(Source::Direct { gpa: 0, protection_key: 0 });
                let table = self.table_for(ram, Key { level, rights: Rights::ALL, source })?;
                self.tables.hold(table);
                return Ok(Top::Table(table));
            }
            PagingKind::Off => {
                [0, 1, 2, 3].map(|part| Some(Source::Direct { gpa: part * span(2), protection_key: 0 }))
            }
            PagingKind::Bits32 { .. } => [0, 1, 2, 3].map(|part| source(mode.cr3, part)),
            PagingKind::Pae { pdptes } => {
                pdptes.map(|pdpte| (pdpte & 1 != 0).then(|| source(pdpte & ADDRESS, 0)).flatten())
            }
        };
        let page = self.tables.take_page()?;
        let mut tables = [None; 4];
        for (at, source) in sources.into_iter().enumerate() {
            let Some(source) = source else { continue };
            match self.table_for(ram, Key { level: 1, rights: Rights::ALL, source }) {
                Ok(table) => {
                    self.tables.hold(table);
                    tables[at] = Some(table);
                    self.tables.put(page, at, self.tables.get(table).hpa | 1);
                }
                Err(full) => {
                    self.release(&Root { id: 0, key: *mode, top: Top::Pae { page, tables } });
                    return Err(full);
                }
            }
        }
        Ok(Top::Pae { page, tables })
    }
}

/// What tells address spaces apart: all that steers how tables are read.
fn key(mode: &PagingMode) -> PagingMode {
    let tables = ADDRESS & !beyond(mode.phys_bits);
    let (kind, cr3) = match mode.kind {
        PagingKind::Off => return PagingMode::OFF,
        PagingKind::Pae { pdptes } => (PagingKind::Pae { pdptes: pdptes.map(|p| p & (tables | 1)) }, 0),
        PagingKind::Bits32 { .. } => (mode.kind, mode.cr3 & 0xffff_f000),
        PagingKind::Level4 | PagingKind::Level5 => (mode.kind, mode.cr3 & tables),
    };
    let flags = PagingFlags::WRITE_PROTECT | PagingFlags::NXE | PagingFlags::PAGE_1G;
    PagingMode { kind, cr3, flags: mode.flags & flags, phys_bits: mode.phys_bits, pkru: 0, pkrs: 0 }
}
