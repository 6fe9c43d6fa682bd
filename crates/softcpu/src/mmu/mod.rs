//! Linear-address translation and memory access.
//!
//! The fast path is one TLB look-up and one host access, inlined into the handlers. Everything else (a
//! miss, an access across pages, a page that holds decoded code, a device) is the slow path here, which
//! walks the guest's tables through EPT (`walk`) and fills the TLB.

mod host;
mod tlb;
mod walk;

pub use host::{HostPtr, Plain};
pub use tlb::View;

use std::mem::offset_of;

use trapline_memory::arena::Arena;
use trapline_memory::paging::PagingMode;

use crate::cpu::{Cpu, Stop, cr0, cr4, vector};
use crate::flags::bits;
use crate::int::Int;
use tlb::{Asids, Tlb};

pub(crate) const PAGE: u64 = 4096;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// An access to a guest-physical address without memory, for whoever emulates the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The value written, or `None` for a read.
    pub write: Option<u64>,
}

/// Device accesses of the instruction that is under way. An instruction exits at each, and starts over
/// when it is resumed; accesses that were answered are then taken from here.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    done: Vec<(DeviceAccess, u64)>,
    next: usize,
    /// The access of the last exit, until it is answered.
    asked: Option<DeviceAccess>,
    /// The instruction is to run with nothing after it.
    alone: bool,
    /// Linear pages whose data the instruction is to access as if a device were there, and the
    /// guest-physical pages that are then told.
    emulated: Vec<(u64, u64)>,
}

impl Replay {
    /// No instruction makes more device accesses than this (FXSAVE: 64 of 8 bytes).
    const LIMIT: usize = 600;
    /// Nor touches more pages than this (a task switch touches most).
    const EMULATED: usize = 16;

    /// Whether an instruction is under way, to be started over.
    #[inline(always)]
    pub fn pending(&self) -> bool {
        !self.done.is_empty() || self.alone || !self.emulated.is_empty()
    }

    /// The guest-physical address of `lin`, if its page is accessed as a device's.
    #[inline]
    fn emulated(&self, lin: u64) -> Option<u64> {
        let page = lin & !(PAGE - 1);
        self.emulated.iter().find(|(other, _)| *other == page).map(|(_, gpa)| gpa | lin & (PAGE - 1))
    }

    /// Whether the instruction runs alone because it asked for it.
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// The instruction is to start over and run alone.
    pub fn run_alone(&mut self) {
        self.alone = true;
    }

    /// The instruction starts over.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// The instruction (or one step of a repeated one) is complete.
    pub fn clear(&mut self) {
        self.done.clear();
        self.next = 0;
        self.asked = None;
        self.alone = false;
        self.emulated.clear();
    }
}

/// Translation state.
pub struct Mmu {
    tlb: Tlb,
    /// The current address space's number.
    asid: u64,
    asids: Asids,
    /// The number is only good with what it was given for.
    key: u32,
    /// The EPT pointer in force, 0 without EPT: translations under another one are others.
    ept: u64,
    /// The EPT pointer that `frames` is good for.
    frames_ept: u64,
    mode: PagingMode,
    /// Host address of host-physical address 0, and the length of that memory.
    base: u64,
    len: u64,
    /// Where slow-path reads leave their bytes.
    bounce: Box<[u64; 8]>,
    /// Guest-physical pages whose host-physical place is known, for table walks.
    frames: Box<walk::Frames>,
    /// The #GP that is pending is about an address that is not canonical. Where the stack segment formed it,
    /// it is a #SS: see [`Cpu::at_stack`].
    pub(crate) not_canonical: bool,
    pub(crate) replay: Replay,
    /// The PDPTE registers of PAE paging.
    pub(crate) pdptes: [u64; 4],
}

/// Where host code finds what it needs of the TLB: fields of [`Cpu`], and of an entry.
pub(crate) struct TlbPlaces;

impl TlbPlaces {
    const TLB: usize = offset_of!(Cpu, mmu) + offset_of!(Mmu, tlb);
    /// The address of the current view's entries.
    pub const PART: usize = Self::TLB + Tlb::PART;
    /// [`Tlb::era`].
    pub const ERA: usize = Self::TLB + Tlb::ERA;
    /// The current address space's number.
    pub const ASID: usize = offset_of!(Cpu, mmu) + offset_of!(Mmu, asid);
    pub const ENTRIES: usize = tlb::SETS;
    /// Bytes of an entry.
    pub const ENTRY: usize = size_of::<tlb::TlbEntry>();
    pub const READ: usize = offset_of!(tlb::TlbEntry, r);
    pub const WRITE: usize = offset_of!(tlb::TlbEntry, w);
    pub const EXECUTE: usize = offset_of!(tlb::TlbEntry, x);
    pub const ADDEND: usize = offset_of!(tlb::TlbEntry, addend);
}

/// Where a translated access goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    Ram {
        ptr: HostPtr,
        hpa: u64,
    },
    Device {
        gpa: u64,
    },
    /// The APIC-access page.
    Apic {
        gpa: u64,
    },
}

impl Mmu {
    pub(crate) fn new(arena: &Arena) -> Self {
        Self {
            tlb: Tlb::new(),
            asid: 0,
            asids: Asids::new(),
            key: 0,
            ept: 0,
            frames_ept: 0,
            mode: PagingMode::OFF,
            base: arena.base() as u64,
            len: arena.len(),
            bounce: Box::new([0; 8]),
            frames: Box::default(),
            not_canonical: false,
            replay: Replay::default(),
            pdptes: [0; 4],
        }
    }

    /// Forgets every translation.
    pub fn flush_all(&mut self) {
        self.tlb.clear();
        self.asids = Asids::new();
        self.frames.clear();
        self.select(self.key, true);
    }

    /// Forgets the translations of guest-physical addresses and what was derived from them.
    pub fn flush_physical(&mut self) {
        self.flush_all();
    }

    /// Makes `key` (VPID and PCID) the current address space; `fresh` forgets what was known of it.
    pub(crate) fn select(&mut self, key: u32, fresh: bool) {
        self.key = key;
        self.asid = match self.asids.get((key, self.ept), fresh) {
            Some(n) => n,
            None => {
                self.tlb.clear();
                self.asids.get((key, self.ept), true).unwrap_or(0)
            }
        };
    }

    /// Makes `ept` the EPT pointer in force; [`Mmu::select`] must follow.
    pub(crate) fn set_ept(&mut self, ept: Option<u64>) {
        self.ept = ept.unwrap_or(0);
        if self.ept != 0 && self.ept != self.frames_ept {
            self.frames_ept = self.ept;
            self.frames.clear();
        }
    }

    /// INVEPT of a single context: the tables that `ept` points to.
    pub(crate) fn forget_ept(&mut self, ept: u64) {
        let same = |other: u64| other != 0 && (other ^ ept) & !(PAGE - 1) == 0;
        self.asids.forget(|_, e| same(e));
        if same(self.frames_ept) {
            self.frames.clear();
        }
        self.select(self.key, false);
    }

    /// INVLPG.
    pub fn forget_page(&mut self, lin: u64) {
        if self.tlb.forget(lin) {
            self.tlb.clear();
        }
    }

    /// Forgets the address spaces whose keys `which` selects.
    pub(crate) fn forget_spaces(&mut self, which: impl Fn(u32) -> bool) {
        self.asids.forget(|key, _| which(key));
        self.select(self.key, false);
    }

    /// Takes all write tags for the page of `hpa`; says whether there were any.
    pub(crate) fn protect(&mut self, hpa: u64) -> bool {
        self.tlb.protect(self.base.wrapping_add(hpa & !(PAGE - 1)))
    }

    /// The host-physical address of code at `lin`, if the TLB knows it.
    #[inline(always)]
    pub(crate) fn cached_fetch(&self, lin: u64) -> Option<u64> {
        let e = self.tlb.entry(lin);
        ((lin & !(PAGE - 1)) ^ e.x == self.asid).then(|| lin.wrapping_add(e.addend).wrapping_sub(self.base))
    }

    /// What a link to `lin` must say to be good now: page and address space, and [`Tlb::era`].
    #[inline(always)]
    pub(crate) fn link_key(&self, lin: u64) -> (u64, u16) {
        (lin & !(PAGE - 1) | self.asid, self.tlb.era())
    }

    /// A link to `lin` is being made: what it must say. `None`: no more can be made.
    pub(crate) fn new_link(&mut self, lin: u64) -> Option<(u64, u16)> {
        self.tlb.note_link(lin);
        Some(self.link_key(lin)).filter(|key| key.1 != 0)
    }

    /// Whether links have to be dropped before new ones can be made; after that, [`Mmu::links_dropped`].
    #[inline(always)]
    pub(crate) fn links_worn(&self) -> bool {
        self.tlb.links_worn()
    }

    /// See [`Mmu::links_worn`].
    pub(crate) fn links_dropped(&mut self) {
        self.tlb.new_links();
    }

    #[inline(always)]
    fn bounce_ptr(&mut self) -> HostPtr {
        HostPtr::bounce(&mut self.bounce)
    }

    /// Where host-physical memory at `hpa` is, if all `size` bytes exist.
    fn host(&self, hpa: u64, size: u64) -> Option<HostPtr> {
        (hpa.checked_add(size)? <= self.len).then(|| HostPtr::in_arena(self.base, hpa))
    }
}

impl Cpu {
    /// The view that explicit accesses have now.
    fn wanted_view(&self) -> View {
        let ac = self.rflags & bits::AC != 0;
        if self.cpl < 3 {
            if ac && self.cr4 & cr4::SMAP != 0 { View::SupervisorAc } else { View::Supervisor }
        } else if ac && self.cr0 & cr0::AM != 0 {
            View::Checked
        } else {
            View::User
        }
    }

    /// To be called when CPL or RFLAGS.AC changed.
    pub(crate) fn mmu_context_changed(&mut self) {
        let view = self.wanted_view();
        self.mmu.tlb.set_view(view);
    }

    /// To be called when an access through the stack segment failed: #SS where others are #GP (SDM vol. 3
    /// §6.15, interrupt 12).
    #[cold]
    pub(crate) fn at_stack(&mut self, s: Stop) -> Stop {
        if std::mem::take(&mut self.mmu.not_canonical) { self.raise(vector::SS, Some(0)) } else { s }
    }

    /// To be called when PKRU or IA32_PKRS changed: rights are part of cached translations.
    pub(crate) fn protection_keys_changed(&mut self) {
        self.paging_changed();
        if self.cr4 & (cr4::PKE | cr4::PKS) != 0 {
            self.mmu.forget_spaces(|_| true);
        }
    }

    /// Writes PKRU.
    pub fn set_pkru(&mut self, v: u32) {
        if v != self.pkru {
            self.pkru = v;
            self.protection_keys_changed();
        }
    }

    /// To be called when CR0, CR3, CR4, EFER or PKRU changed; flushing is the caller's decision.
    pub(crate) fn paging_changed(&mut self) {
        self.mmu.mode = self.paging_mode();
        self.mmu_context_changed();
    }

    /// The host address of a `T` at `lin`, if the TLB has it for reading.
    #[inline(always)]
    pub(crate) fn hit_read<T: Plain>(&self, lin: u64) -> Option<HostPtr> {
        let e = self.mmu.tlb.entry(lin);
        let last = lin.wrapping_add(size_of::<T>() as u64 - 1) & !(PAGE - 1);
        (last ^ e.r == self.mmu.asid).then(|| HostPtr::mapped(lin, e.addend))
    }

    /// The host address of a `T` at `lin`, if the TLB has it for writing.
    #[inline(always)]
    pub(crate) fn hit_write<T: Plain>(&self, lin: u64) -> Option<HostPtr> {
        let e = self.mmu.tlb.entry(lin);
        let last = lin.wrapping_add(size_of::<T>() as u64 - 1) & !(PAGE - 1);
        (last ^ e.w == self.mmu.asid).then(|| HostPtr::mapped(lin, e.addend))
    }

    /// Host address for reading `T` at `lin`, or the bounce buffer with a copy of it.
    #[inline(always)]
    pub(crate) fn read_ptr(&mut self, lin: u64, size: u64) -> Result<HostPtr, Stop> {
        let e = self.mmu.tlb.entry(lin);
        if (lin.wrapping_add(size - 1) & !(PAGE - 1)) ^ e.r == self.mmu.asid {
            return Ok(HostPtr::mapped(lin, e.addend));
        }
        self.read_slow(lin, size)
    }

    /// Loads a `T` from linear address `lin`.
    ///
    /// # Errors
    /// A page fault, general protection, or VM exit is pending.
    #[inline(always)]
    pub fn load<T: Plain>(&mut self, lin: u64) -> Result<T, Stop> {
        Ok(self.read_ptr(lin, size_of::<T>() as u64)?.read())
    }

    /// Stores a `T` at linear address `lin`.
    ///
    /// # Errors
    /// See [`Cpu::load`]; nothing was stored then.
    #[inline(always)]
    pub fn store<T: Plain>(&mut self, lin: u64, v: T) -> Result<(), Stop> {
        let size = size_of::<T>() as u64;
        let e = self.mmu.tlb.entry(lin);
        if (lin.wrapping_add(size - 1) & !(PAGE - 1)) ^ e.w == self.mmu.asid {
            HostPtr::mapped(lin, e.addend).write(v);
            return Ok(());
        }
        self.mmu.bounce_ptr().write(v);
        self.store_bounced(lin, size)
    }

    /// Reads a `T`, and writes what `f` makes of it. Nothing happens unless both are allowed.
    ///
    /// # Errors
    /// See [`Cpu::load`].
    #[inline(always)]
    pub fn modify<T: Plain + Int>(&mut self, lin: u64, f: impl FnOnce(&mut Cpu, T) -> T) -> Result<(), Stop> {
        let size = size_of::<T>() as u64;
        let e = self.mmu.tlb.entry(lin);
        if (lin.wrapping_add(size - 1) & !(PAGE - 1)) ^ e.w == self.mmu.asid {
            let p = HostPtr::mapped(lin, e.addend);
            let v = f(self, p.read());
            p.write(v);
            return Ok(());
        }
        let old = self.load_for_write(lin, size)?;
        let flags = self.flags;
        let v = f(self, T::of(old));
        // A device may have to be asked first: then the instruction starts over, with the flags it had.
        self.store(lin, v).inspect_err(|_| self.flags = flags)
    }

    /// As [`Cpu::modify`], atomically with respect to other processors and devices (LOCK prefix). `f`
    /// may be called several times.
    ///
    /// # Errors
    /// See [`Cpu::load`].
    pub fn modify_atomic<T: Plain + Int>(
        &mut self,
        lin: u64,
        mut f: impl FnMut(&mut Cpu, T) -> T,
    ) -> Result<(), Stop> {
        let size = size_of::<T>() as u64;
        let e = self.mmu.tlb.entry(lin);
        let mut ptr = HostPtr::mapped(lin, e.addend);
        let mut watched = None;
        if (lin.wrapping_add(size - 1) & !(PAGE - 1)) ^ e.w != self.mmu.asid {
            match self.writable_ram(lin, size)? {
                Some((p, hpa)) => (ptr, watched) = (p, Some(hpa)),
                // Across pages, or a device: not atomic, as on a bus without lock support.
                None => return self.modify(lin, f),
            }
        }
        if !ptr.aligned::<T>() {
            let v = f(self, ptr.read());
            ptr.write(v);
        } else {
            let mut old: T = ptr.read();
            loop {
                let new = f(self, old);
                match ptr.compare_exchange(old, new) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
        if let Some(hpa) = watched {
            self.written(hpa, size as usize);
        }
        Ok(())
    }

    /// Atomically replaces 16 bytes at `lin` (aligned) by `new` if they are `expected`; says what was
    /// there. They are written either way.
    ///
    /// # Errors
    /// See [`Cpu::load`].
    pub(crate) fn compare_exchange_128(&mut self, lin: u64, expected: u128, new: u128) -> Result<u128, Stop> {
        match self.writable_ram(lin, 16)? {
            Some((ptr, hpa)) => {
                let old = ptr.compare_exchange(expected, new).unwrap_or_else(|old| old);
                self.written(hpa, 16);
                Ok(old)
            }
            None => {
                self.probe_write(lin, 16)?;
                let old: u128 = self.load(lin)?;
                self.store(lin, if old == expected { new } else { old })?;
                Ok(old)
            }
        }
    }

    /// 16 bytes.
    ///
    /// # Errors
    /// See [`Cpu::load`].
    #[inline(always)]
    pub fn load128(&mut self, lin: u64) -> Result<u128, Stop> {
        self.load(lin)
    }

    /// Loads with supervisor rights whatever the CPL: descriptor tables, the TSS.
    ///
    /// # Errors
    /// See [`Cpu::load`].
    pub fn load_system<T: Plain>(&mut self, lin: u64) -> Result<T, Stop> {
        self.as_supervisor(|cpu| cpu.load(lin))
    }

    /// Stores with supervisor rights whatever the CPL.
    ///
    /// # Errors
    /// See [`Cpu::load`].
    pub fn store_system<T: Plain>(&mut self, lin: u64, v: T) -> Result<(), Stop> {
        self.as_supervisor(|cpu| cpu.store(lin, v))
    }

    fn as_supervisor<R>(&mut self, f: impl FnOnce(&mut Cpu) -> R) -> R {
        let view = self.mmu.tlb.view();
        self.mmu.tlb.set_view(View::Supervisor);
        let r = f(self);
        self.mmu.tlb.set_view(view);
        r
    }

    /// Host pointer for instruction bytes at `lin` and the host-physical address.
    #[inline(always)]
    pub(crate) fn fetch_hpa(&mut self, lin: u64) -> Result<u64, Stop> {
        let e = self.mmu.tlb.entry(lin);
        if (lin & !(PAGE - 1)) ^ e.x == self.mmu.asid {
            return Ok(lin.wrapping_add(e.addend).wrapping_sub(self.mmu.base));
        }
        self.fetch_slow(lin)
    }

    /// Copies instruction bytes of one page at host-physical `hpa`.
    pub(crate) fn code_bytes(&self, hpa: u64, to: &mut [u8]) {
        let n = to.len().min((PAGE - hpa % PAGE) as usize);
        if let Some(p) = self.mmu.host(hpa, n as u64) {
            p.read_bytes(&mut to[..n]);
        }
    }

    /// For string instructions: the host pointer at `lin` for `kind`, if it is plain memory that the TLB
    /// knows (after trying once to make it so), valid up to the page's end.
    pub(crate) fn span(&mut self, lin: u64, kind: Kind) -> Option<HostPtr> {
        let e = self.mmu.tlb.entry(lin);
        let tag = if kind == Kind::Write { e.w } else { e.r };
        ((lin & !(PAGE - 1)) ^ tag == self.mmu.asid).then(|| HostPtr::mapped(lin, e.addend))
    }
}

/// Block operations on spans, for string instructions. The caller has kept both inside their pages.
pub(crate) fn copy_span(from: HostPtr, to: HostPtr, n: usize, unit: usize) {
    from.copy_to(to, n, unit);
}

/// See [`copy_span`].
pub(crate) fn fill_span(to: HostPtr, n: usize, pattern: u64, unit: usize) {
    to.fill(n, pattern, unit);
}
