//! Shadow paging: guest linear to host-physical tables for a processor that runs without EPT.
//!
//! The shadow tables are filled by page faults and behave as one large TLB: they may hold what a TLB may
//! still hold, and forget what a TLB must forget. Hierarchies are kept across CR3 loads. That is safe
//! because pages that the guest uses as tables are write-protected: a write to one faults, and from then
//! on the page is *out of sync*, writable until the next CR3 load, which drops everything that was ever
//! derived from it, in every hierarchy.
//!
//! A processor that runs on shadow tables needs: CR0.PG and CR0.WP set (the guest reads its own values
//! back), CR4.PAE set, and CR4.SMEP, CR4.SMAP, CR4.PKE and IA32_EFER.NXE as the guest has them. All page
//! faults, MOV to CR0, CR3 and CR4, INVLPG and INVPCID must exit. Before each entry it loads
//! [`Shadow::cr3`], and drops cached translations if [`Shadow::take_flush`] says so. If there are several
//! processors, none may be in the guest while a method runs, as tables are reused at once.
//!
//! Left out: large pages in the shadow (a guest's large page is built of 4 KiB ones), the guest's memory
//! types, global pages (an address space has a hierarchy of its own), supervisor protection keys.

mod tree;

use crate::arena::Arena;
use crate::layout::GuestRam;
use crate::paging::{
    self, Access, Leaf, PageEntry, PageFaultCode, PagingFlags, PagingKind, PagingMode, WalkError,
};
use crate::table::{PageAllocator, TableMemory};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use tree::{Top, Trees};

const PAGE: u64 = 4096;
/// How many address spaces are kept.
const MAX_ROOTS: usize = 32;
/// How much is remembered about who uses which table. Then everything is built anew.
const MAX_USES: usize = 1 << 16;

/// What the engine must do about a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowAction {
    /// Enter again at the same instruction, with [`Shadow::cr3`].
    Retry,
    /// The fault is the guest's own: inject it, with this error code.
    InjectPageFault(PageFaultCode),
    /// There is no RAM at this guest-physical address, or it is a write to ROM: emulate the access.
    Mmio(u64),
    /// Emulate the write to RAM at this guest-physical address, and report it with
    /// [`Shadow::note_write`]: the guest, its CR0.WP clear, writes to a read-only user page, which page
    /// tables used with CR0.WP set cannot allow.
    EmulateWrite(u64),
}

/// There are too few pages for the tables of even one translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no page left for a shadow table")]
pub struct NoShadowPage;

/// One address space.
#[derive(Debug)]
struct Root {
    id: u64,
    key: PagingMode,
    top: Top,
}

/// A page of the guest that is a table of an address space, for a range of linear addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    gpa: u64,
    root: u64,
    start: u64,
    end: u64,
}

/// The shadow tables of a machine.
#[derive(Debug)]
pub struct Shadow<A: PageAllocator> {
    trees: Trees<A>,
    /// The one used last is the last.
    roots: Vec<Root>,
    next_id: u64,
    uses: BTreeSet<Use>,
    /// Tables that the guest may have changed since the last CR3 load.
    out_of_sync: BTreeSet<u64>,
    flush: bool,
}

impl<A: PageAllocator> Shadow<A> {
    /// Shadow tables in pages of `mem` that come from `pages`, not more than `max_pages`. They are given
    /// back when the value is dropped.
    pub fn new(mem: Arc<Arena>, pages: A, max_pages: usize) -> Self {
        Self {
            trees: Trees::new(mem, pages, max_pages),
            roots: Vec::new(),
            next_id: 0,
            uses: BTreeSet::new(),
            out_of_sync: BTreeSet::new(),
            flush: false,
        }
    }

    /// The guest loaded CR3, or changed CR0, CR4 or IA32_EFER, or executed INVPCID: `mode` is how it
    /// translates from now on. Returns the CR3 to run with: the top of 4-level or 5-level tables if the
    /// guest uses such, else of PAE tables.
    ///
    /// # Errors
    /// Too few pages.
    pub fn set_cr3(&mut self, mode: &PagingMode) -> Result<u64, NoShadowPage> {
        for gpa in std::mem::take(&mut self.out_of_sync) {
            self.drop_derived(gpa);
        }
        self.flush = true;
        self.cr3(mode)
    }

    /// The CR3 to run with, if the guest translates by `mode`. Changes when tables were dropped.
    ///
    /// # Errors
    /// Too few pages.
    pub fn cr3(&mut self, mode: &PagingMode) -> Result<u64, NoShadowPage> {
        self.root(mode).map(|(_, top)| top.page)
    }

    /// The guest executed INVLPG.
    pub fn invlpg(&mut self, mode: &PagingMode, gva: u64) {
        let key = key(mode);
        if let Some(root) = self.roots.iter().find(|root| root.key == key) {
            self.trees.invalidate(root.top, translated_bits(mode, gva));
            self.flush = true;
        }
    }

    /// Somebody else than the processor on its shadow tables wrote to guest memory: an emulated write, a
    /// device. Writes to pages that are no tables need not be reported.
    pub fn note_write(&mut self, gpa: u64) {
        let gpa = gpa & !(PAGE - 1);
        if self.is_table(gpa) {
            self.out_of_sync.insert(gpa);
        }
    }

    /// Drops everything: slots changed, or writes to guest memory are to be recorded (again).
    pub fn flush_all(&mut self) {
        for root in std::mem::take(&mut self.roots) {
            self.trees.release(root.top);
        }
        self.uses.clear();
        self.out_of_sync.clear();
        self.flush = true;
    }

    /// Whether processors must drop their cached translations before they run on; asked once.
    pub fn take_flush(&mut self) -> bool {
        std::mem::take(&mut self.flush)
    }

    /// A page fault happened at `gva`; `access` is what the error code and EFLAGS.AC say.
    ///
    /// A page that becomes writable is recorded in the [dirty tracker](GuestRam::dirty) of `ram`.
    ///
    /// # Errors
    /// Too few pages.
    pub fn handle_page_fault(
        &mut self,
        ram: &GuestRam,
        mode: &PagingMode,
        gva: u64,
        access: Access,
    ) -> Result<ShadowAction, NoShadowPage> {
        let tables = GuestView { ram, path: Cell::new(Path::default()) };
        // The first walk sets flags, and may have to start again; the second takes one path.
        match paging::walk(&tables, mode, gva, access) {
            Ok(_) => tables.path.set(Path::default()),
            Err(WalkError::PageFault(code)) => return Ok(ShadowAction::InjectPageFault(code)),
            Err(WalkError::Memory(never)) => match never {},
        }
        let Ok(leaf) = paging::walk(&tables, mode, gva, access) else {
            return Ok(ShadowAction::Retry);
        };
        let path = tables.path.get();
        let Some(path) = path.pages.get(..path.len) else {
            return Ok(ShadowAction::Retry);
        };
        let Some(slot) = ram.slot_at(leaf.gpa).filter(|slot| !(access.write && slot.read_only)) else {
            return Ok(ShadowAction::Mmio(leaf.gpa));
        };
        let may_write = leaf.writable || !leaf.user && !mode.flags.contains(PagingFlags::WRITE_PROTECT);
        if access.write && !may_write {
            return Ok(ShadowAction::EmulateWrite(leaf.gpa));
        }

        let page = leaf.gpa & !(PAGE - 1);
        // If there is no room, then once more after everything was dropped.
        for last in [false, true] {
            // The root first: making room for it may drop everything.
            let (root, top) = self.root(mode)?;
            self.record_path(ram, mode, root, translated_bits(mode, gva), path);
            if access.write {
                self.note_write(page);
            }
            let protected = slot.read_only || self.is_table(page) && !self.out_of_sync.contains(&page);
            let write = may_write && leaf.dirty && !protected;
            let entry = shadow_entry(&leaf, slot.hpa + (page - slot.gpa), write);
            if self.trees.map(top, translated_bits(mode, gva), entry, leaf.page_size).is_some() {
                if write {
                    ram.dirty().mark(page, PAGE);
                }
                break;
            }
            self.flush_all();
            if last {
                return Err(NoShadowPage);
            }
        }
        Ok(ShadowAction::Retry)
    }

    /// The hierarchy for `mode`, made if there is none.
    fn root(&mut self, mode: &PagingMode) -> Result<(u64, Top), NoShadowPage> {
        if self.uses.len() > MAX_USES {
            self.flush_all();
        }
        let key = key(mode);
        if let Some(at) = self.roots.iter().position(|root| root.key == key) {
            let root = self.roots.remove(at);
            let found = (root.id, root.top);
            self.roots.push(root);
            return Ok(found);
        }
        if self.roots.len() == MAX_ROOTS {
            let oldest = self.roots.remove(0);
            self.trees.release(oldest.top);
        }
        let levels = match mode.kind {
            PagingKind::Off | PagingKind::Bits32 { .. } | PagingKind::Pae { .. } => 3,
            PagingKind::Level4 => 4,
            PagingKind::Level5 => 5,
        };
        let mut top = self.trees.new_top(levels);
        if top.is_none() {
            self.flush_all();
            top = self.trees.new_top(levels);
        }
        let top = top.ok_or(NoShadowPage)?;
        let id = self.next_id;
        self.next_id += 1;
        self.roots.push(Root { id, key, top });
        Ok((id, top))
    }

    /// Remembers that the translation of `gva` depends on these tables, from the top down, and takes the
    /// right to write to them from all leaves.
    fn record_path(&mut self, ram: &GuestRam, mode: &PagingMode, root: u64, gva: u64, path: &[u64]) {
        // Bits of linear address that each table translates.
        let widths: &[u32] = match mode.kind {
            PagingKind::Off => &[],
            PagingKind::Bits32 { .. } => &[32, 22],
            PagingKind::Pae { .. } => &[30, 21],
            PagingKind::Level4 => &[48, 39, 30, 21],
            PagingKind::Level5 => &[57, 48, 39, 30, 21],
        };
        for (&page, &width) in path.iter().zip(widths) {
            if !self.is_table(page)
                && let Some(hpa) = ram.hpa(page)
            {
                self.flush |= self.trees.strip_write(hpa);
            }
            let start = gva >> width << width;
            self.uses.insert(Use { gpa: page, root, start, end: start + (1 << width) });
        }
    }

    /// The range of `uses` that is about one page of the guest.
    fn uses_of(&self, gpa: u64) -> impl Iterator<Item = &Use> {
        let first = Use { gpa, root: 0, start: 0, end: 0 };
        self.uses.range(first..).take_while(move |found| found.gpa == gpa)
    }

    fn is_table(&self, gpa: u64) -> bool {
        self.uses_of(gpa).next().is_some()
    }

    /// Drops all translations that depend on a table.
    fn drop_derived(&mut self, gpa: u64) {
        let derived: Vec<Use> = self.uses_of(gpa).copied().collect();
        for used in derived {
            self.uses.remove(&used);
            if let Some(root) = self.roots.iter().find(|root| root.id == used.root) {
                self.trees.zap(root.top, used.start, used.end);
            }
        }
    }
}

/// What tells address spaces apart: all that steers a walk but protection keys, which the processor
/// itself looks at.
fn key(mode: &PagingMode) -> PagingMode {
    let cr3 = match mode.kind {
        PagingKind::Off | PagingKind::Pae { .. } => 0,
        _ => mode.cr3 & crate::table::ADDRESS,
    };
    PagingMode { cr3, pkru: 0, pkrs: 0, ..*mode }
}

/// The bits of a linear address that `mode` translates.
const fn translated_bits(mode: &PagingMode, gva: u64) -> u64 {
    match mode.kind {
        PagingKind::Level4 => gva & 0xffff_ffff_ffff,
        PagingKind::Level5 => gva & 0x1ff_ffff_ffff_ffff,
        _ => gva & 0xffff_ffff,
    }
}

/// The leaf entry for a page. Accessed and dirty are set: the guest's own flags were dealt with.
fn shadow_entry(leaf: &Leaf, hpa: u64, write: bool) -> u64 {
    let mut entry = PageEntry::PRESENT | PageEntry::ACCESSED | PageEntry::DIRTY;
    entry.set(PageEntry::WRITABLE, write);
    entry.set(PageEntry::USER, leaf.user);
    entry.set(PageEntry::NO_EXECUTE, !leaf.executable);
    entry.bits() | hpa | u64::from(leaf.pkey) << 59
}

/// The pages of the tables that a walk went through. `len` goes beyond the array if there were more.
#[derive(Clone, Copy, Default)]
struct Path {
    pages: [u64; 5],
    len: usize,
}

/// Guest-physical memory for the guest's walk. Outside of RAM, reads give all ones and writes are lost.
struct GuestView<'a> {
    ram: &'a GuestRam,
    path: Cell<Path>,
}

impl GuestView<'_> {
    /// Where an entry can be changed; its page is then recorded as written.
    fn writable(&self, gpa: u64) -> Option<u64> {
        let slot = self.ram.slot_at(gpa).filter(|slot| !slot.read_only)?;
        self.ram.dirty().mark(gpa, 8);
        Some(slot.hpa + (gpa - slot.gpa))
    }
}

impl TableMemory for GuestView<'_> {
    type Error = Infallible;

    fn read(&self, pa: u64) -> Result<u64, Infallible> {
        let mut path = self.path.get();
        if let Some(page) = path.pages.get_mut(path.len) {
            *page = pa & !(PAGE - 1);
        }
        path.len += 1;
        self.path.set(path);
        Ok(self.ram.hpa(pa).and_then(|hpa| self.ram.arena().read_u64(hpa)).unwrap_or(u64::MAX))
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
