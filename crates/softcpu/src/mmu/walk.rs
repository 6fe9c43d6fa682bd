//! The slow path: page walks, faults, device accesses, writes to pages that hold code.

use trapline_memory::arena::Arena;
use trapline_memory::ept::{
    self, EptAccess, EptEntry, EptFault, EptLeaf, EptMode, EptPerms, EptQualification,
};
use trapline_memory::paging::{self, Access, PagingFlags, PagingKind, PagingMode, WalkError};
use trapline_memory::table::{PageSize, TableMemory};
use trapline_vmx::controls::SecondaryControls;

use super::host::HostPtr;
use super::tlb::{Rights, View};
use super::{DeviceAccess, Kind, PAGE, Replay, Target};
use crate::cpu::{Cpu, Event, EventKind, ExitInfo, Pending, Stop, cr0, cr4, efer, vector};
use crate::vmx::{Pml, reason};

/// A table access outside memory.
#[derive(Clone, Copy, Debug)]
struct NoMemory;

/// Host-physical tables.
struct Host<'a>(&'a Arena);

impl TableMemory for Host<'_> {
    type Error = NoMemory;
    #[inline]
    fn read(&self, pa: u64) -> Result<u64, NoMemory> {
        self.0.read_u64(pa).ok_or(NoMemory)
    }
    fn write(&self, pa: u64, value: u64) -> Result<(), NoMemory> {
        self.0.write_u64(pa, value).ok_or(NoMemory)
    }
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, NoMemory> {
        self.0.compare_exchange_u64(pa, current, new).ok_or(NoMemory)
    }
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, NoMemory> {
        self.0.fetch_or_u64(pa, bits).ok_or(NoMemory)
    }
}

/// EPT tables while they translate `gpa`: a leaf that becomes dirty is logged.
struct Tables<'a> {
    host: &'a Host<'a>,
    pml: Option<&'a Pml>,
    gpa: u64,
}

impl Tables<'_> {
    /// The log, if this change sets the dirty flag of a leaf.
    fn logs(&self, old: u64, new: u64) -> Option<&Pml> {
        self.pml.filter(|_| new & !old & EptEntry::DIRTY.bits() != 0)
    }
}

impl TableMemory for Tables<'_> {
    type Error = NoMemory;
    #[inline]
    fn read(&self, pa: u64) -> Result<u64, NoMemory> {
        self.host.read(pa)
    }
    fn write(&self, pa: u64, value: u64) -> Result<(), NoMemory> {
        self.host.write(pa, value)
    }
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, NoMemory> {
        let log = self.logs(current, new);
        if log.is_some_and(|l| !l.has_room()) {
            return Err(NoMemory);
        }
        let done = self.host.compare_exchange(pa, current, new)?;
        if let (Some(log), Ok(_)) = (log, done) {
            log.log(self.host.0, self.gpa);
        }
        Ok(done)
    }
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, NoMemory> {
        let old = self.host.read(pa)?;
        let log = self.logs(old, bits);
        if log.is_some_and(|l| !l.has_room()) {
            return Err(NoMemory);
        }
        let old = self.host.fetch_or(pa, bits)?;
        if let Some(log) = log {
            log.log(self.host.0, self.gpa);
        }
        Ok(old)
    }
}

/// Where guest-physical pages that hold tables are, so that a walk does not translate them anew.
pub(super) struct Frames([(u64, u64); 512]);

impl Default for Frames {
    fn default() -> Self {
        Self([(u64::MAX, 0); 512])
    }
}

impl Frames {
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The guest's tables: at guest-physical addresses, behind EPT if it is on.
struct Guest<'a> {
    host: Host<'a>,
    ept: Option<EptMode>,
    pml: Option<&'a Pml>,
    frames: &'a std::cell::RefCell<&'a mut Frames>,
}

impl Guest<'_> {
    /// Walks EPT.
    #[inline]
    fn ept(&self, mode: &EptMode, gpa: u64, access: EptAccess) -> Result<EptLeaf, EptFault<NoMemory>> {
        if self.pml.is_none() {
            return ept::walk(&self.host, mode, gpa, access);
        }
        ept::walk(&Tables { host: &self.host, pml: self.pml, gpa }, mode, gpa, access)
    }

    /// Where a table entry is that is read, or (`write`) has a flag set.
    #[inline]
    fn hpa(&self, gpa: u64, write: bool) -> Result<u64, EptFault<NoMemory>> {
        let Some(mode) = &self.ept else { return Ok(gpa) };
        let page = gpa & !(PAGE - 1);
        let mut frames = self.frames.borrow_mut();
        let slot = &mut frames.0[(gpa >> 12) as usize % 512];
        if slot.0 == page {
            return Ok(slot.1 | gpa & (PAGE - 1));
        }
        // With accessed and dirty flags, every access to a table counts as a write (SDM vol. 3
        // §29.3.3.2, on accesses to guest paging-structure entries).
        let write = write || mode.accessed_dirty();
        let access = if write { EptAccess::READ | EptAccess::WRITE } else { EptAccess::READ };
        let leaf = self.ept(mode, gpa, access)?;
        if leaf.perms.contains(EptPerms::RW) {
            *slot = (page, leaf.hpa & !(PAGE - 1));
        }
        Ok(leaf.hpa)
    }
}

impl TableMemory for Guest<'_> {
    type Error = EptFault<NoMemory>;
    #[inline]
    fn read(&self, pa: u64) -> Result<u64, Self::Error> {
        self.host.read(self.hpa(pa, false)?).map_err(EptFault::Memory)
    }
    fn write(&self, pa: u64, value: u64) -> Result<(), Self::Error> {
        self.host.write(self.hpa(pa, true)?, value).map_err(EptFault::Memory)
    }
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Self::Error> {
        self.host.compare_exchange(self.hpa(pa, true)?, current, new).map_err(EptFault::Memory)
    }
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, Self::Error> {
        self.host.fetch_or(self.hpa(pa, true)?, bits).map_err(EptFault::Memory)
    }
}

impl Cpu {
    /// What the control registers say of paging.
    pub(super) fn paging_mode(&self) -> PagingMode {
        let kind = if self.cr0 & cr0::PG == 0 {
            PagingKind::Off
        } else if self.efer & efer::LMA != 0 {
            if self.cr4 & cr4::LA57 != 0 { PagingKind::Level5 } else { PagingKind::Level4 }
        } else if self.cr4 & cr4::PAE != 0 {
            PagingKind::Pae { pdptes: self.mmu.pdptes }
        } else {
            PagingKind::Bits32 { pse: self.cr4 & cr4::PSE != 0, pse36: true }
        };
        let mut flags = PagingFlags::PAGE_1G;
        flags.set(PagingFlags::WRITE_PROTECT, self.cr0 & cr0::WP != 0);
        flags.set(PagingFlags::NXE, self.efer & efer::NXE != 0);
        flags.set(PagingFlags::SMEP, self.cr4 & cr4::SMEP != 0);
        flags.set(PagingFlags::SMAP, self.cr4 & cr4::SMAP != 0);
        flags.set(PagingFlags::PKE, self.cr4 & cr4::PKE != 0);
        flags.set(PagingFlags::PKS, self.cr4 & cr4::PKS != 0);
        let (pkru, pkrs) = (self.pkru, self.msr.pkrs);
        PagingMode { kind, cr3: self.cr3, flags, phys_bits: self.model.phys_bits(), pkru, pkrs }
    }

    /// EPT, if the guest runs behind it.
    fn ept_mode(&self) -> Option<EptMode> {
        let mode_based_execute = self.vmx.ctl.secondary.contains(SecondaryControls::MODE_BASED_EPT_EXECUTE);
        let phys_bits = self.model.phys_bits();
        self.vmx.eptp().map(|eptp| EptMode { mode_based_execute, ..EptMode::new(eptp, phys_bits) })
    }

    /// Reads the four PDPTEs that CR3 points to, for PAE paging. `None`: no memory, or an EPT violation.
    pub(crate) fn read_pdptes(&mut self, cr3: u64) -> Option<[u64; 4]> {
        let ept = self.ept_mode();
        let frames = std::cell::RefCell::new(&mut *self.mmu.frames);
        let guest = Guest { host: Host(&self.arena), ept, pml: self.vmx.pml.as_ref(), frames: &frames };
        match paging::load_pdptes(&guest, cr3) {
            Ok(pdptes) => Some(pdptes),
            Err(e) => {
                self.pdptes_refused(e);
                None
            }
        }
    }

    /// Walks, checks, fills the TLB.
    fn translate(&mut self, lin: u64, kind: Kind) -> Result<Target, Stop> {
        let long = self.efer & efer::LMA != 0 && self.cr0 & cr0::PG != 0;
        let lin = if long { lin } else { lin & 0xffff_ffff };
        if long && !self.canonical(lin) {
            self.mmu.not_canonical = kind != Kind::Fetch;
            return Err(self.gp(0));
        }
        if kind != Kind::Fetch
            && let Some(gpa) = self.mmu.replay.emulated(lin)
        {
            self.pending = Pending::None;
            return Ok(Target::Device { gpa });
        }
        let view = self.mmu.tlb.view();
        let user = matches!(view, View::User | View::Checked);
        let access = Access {
            write: kind == Kind::Write,
            fetch: kind == Kind::Fetch,
            user,
            implicit: false,
            ac: view == View::SupervisorAc,
        };
        let mode = self.mmu.mode;
        let ept = self.ept_mode();
        let frames = std::cell::RefCell::new(&mut *self.mmu.frames);
        let guest = Guest { host: Host(&self.arena), ept, pml: self.vmx.pml.as_ref(), frames: &frames };
        let leaf = match paging::walk(&guest, &mode, lin, access) {
            Ok(leaf) => leaf,
            Err(WalkError::PageFault(code)) => return Err(self.page_fault(lin, code.bits())),
            Err(WalkError::Memory(fault)) => return Err(self.table_fault(lin, fault)),
        };
        let (hpa, mut perms, dirty) = match &ept {
            None => (leaf.gpa, EptPerms::RWX, true),
            Some(ept) => {
                let want = match kind {
                    Kind::Read => EptAccess::READ,
                    Kind::Write => EptAccess::WRITE,
                    Kind::Fetch if leaf.user => EptAccess::FETCH | EptAccess::USER,
                    Kind::Fetch => EptAccess::FETCH,
                };
                match guest.ept(ept, leaf.gpa, want) {
                    Ok(e) => {
                        let mut perms = e.perms;
                        if ept.mode_based_execute && leaf.user {
                            perms.set(EptPerms::EXECUTE, e.perms.contains(EptPerms::USER_EXECUTE));
                        }
                        (e.hpa, perms, e.dirty)
                    }
                    Err(fault) => return self.final_fault(lin, leaf.gpa, fault),
                }
            }
        };
        if self.in_apic_page(hpa) {
            self.pending = Pending::Exit(self.apic_exit(hpa, kind));
            return Ok(Target::Apic { gpa: leaf.gpa });
        }
        let Some(ptr) = self.mmu.host(hpa, 1) else {
            self.pending = Pending::None;
            return Ok(Target::Device { gpa: leaf.gpa });
        };
        if self.shared.has_code(hpa) {
            perms.remove(EptPerms::WRITE);
        }
        if view != View::Checked && self.dr[7] & 0xff == 0 {
            let r = leaf.rights(&mode, user, access.ac);
            let rights = Rights {
                read: r.read && perms.contains(EptPerms::READ),
                write: r.write && leaf.dirty && dirty && perms.contains(EptPerms::WRITE),
                execute: r.execute && perms.contains(EptPerms::EXECUTE),
            };
            let large = (leaf.page_size > PageSize::Size4K && self.cr0 & cr0::PG != 0)
                .then(|| leaf.page_size.shift());
            let host_page = self.mmu.base.wrapping_add(hpa & !(PAGE - 1));
            let addend = host_page.wrapping_sub(lin & !(PAGE - 1));
            let asid = self.mmu.asid;
            self.mmu.tlb.fill(lin, view, asid, addend, rights, large);
        }
        Ok(Target::Ram { ptr, hpa })
    }

    /// Whether `lin` is canonical under the current paging mode.
    pub(crate) fn canonical(&self, lin: u64) -> bool {
        let shift = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((lin << shift) as i64 >> shift) as u64 == lin
    }

    /// Whether registers that hold addresses (bases of segments and tables, entry points in MSRs) take `v`, and
    /// invalidations: what is canonical with five-level paging, if the processor has it, whatever the current
    /// mode (SDM vol. 1 §3.3.7.1; Intel's 5-level paging white paper, section 2.5).
    pub fn canonical_in_register(&self, v: u64) -> bool {
        let shift = 64 - self.model.linear_bits();
        ((v << shift) as i64 >> shift) as u64 == v
    }

    #[cold]
    fn page_fault(&mut self, lin: u64, code: u32) -> Stop {
        self.pending = Pending::Event(Event {
            vector: vector::PF,
            kind: EventKind::HardwareException,
            error: Some(code),
            len: 0,
            payload: lin,
        });
        Stop
    }

    /// EPT did not let the access through, or has no memory there.
    #[cold]
    fn final_fault(&mut self, lin: u64, gpa: u64, fault: EptFault<NoMemory>) -> Result<Target, Stop> {
        if self.pml_full(&fault) {
            return Err(Stop);
        }
        if let EptFault::Violation { .. } = fault {
            let exit = self.ept_exit(lin, gpa, fault, true);
            if let Some(mode) = self.ept_mode()
                && self.virtualization_exception(&mode, &exit)
            {
                return Err(Stop);
            }
            // Whether this is a device is not the processor's to know; the access is described to
            // whoever handles the exit, and taken from the replay log when it was answered.
            self.mmu.replay.asked = None;
            self.pending = Pending::Exit(exit);
            return Ok(Target::Device { gpa });
        }
        self.pending = Pending::Exit(self.ept_exit(lin, gpa, fault, true));
        Err(Stop)
    }

    /// PDPTEs could not be read: a VM exit is pending if EPT is the reason.
    #[cold]
    fn pdptes_refused(&mut self, fault: EptFault<NoMemory>) {
        let (EptFault::Violation { gpa, .. } | EptFault::Misconfig { gpa, .. }) = fault else {
            let _ = self.pml_full(&fault);
            return;
        };
        let mut exit = self.ept_exit(0, gpa, fault, false);
        // There is no linear address.
        exit.qualification &= !EptQualification::LINEAR_VALID.bits();
        self.mmu.replay.asked = None;
        self.pending = Pending::Exit(exit);
    }

    /// Whether the walk was stopped by a full page-modification log; the VM exit is pending then.
    fn pml_full(&mut self, fault: &EptFault<NoMemory>) -> bool {
        let full = matches!(fault, EptFault::Memory(_)) && self.vmx.pml.as_ref().is_some_and(Pml::take_full);
        if full {
            self.pending = Pending::Exit(self.pml_exit());
        }
        full
    }

    /// The walk of the guest's own tables did not come to its end.
    #[cold]
    fn table_fault(&mut self, lin: u64, fault: EptFault<NoMemory>) -> Stop {
        if self.pml_full(&fault) {
            return Stop;
        }
        let gpa = match fault {
            EptFault::Violation { gpa, .. } | EptFault::Misconfig { gpa, .. } => gpa,
            // A table where there is no memory reads as all-ones on a bus: reserved bits.
            EptFault::Memory(NoMemory) => return self.page_fault(lin, 0x9),
        };
        let exit = self.ept_exit(lin, gpa, fault, false);
        if let Some(mode) = self.ept_mode()
            && exit.reason == reason::EPT_VIOLATION
            && self.virtualization_exception(&mode, &exit)
        {
            return Stop;
        }
        // No device access: what is asked for is the table.
        self.mmu.replay.asked = None;
        self.pending = Pending::Exit(exit);
        Stop
    }

    fn ept_exit(&self, lin: u64, gpa: u64, fault: EptFault<NoMemory>, last: bool) -> ExitInfo {
        let (reason, qualification) = match fault {
            EptFault::Violation { qualification, .. } => {
                let mut q = qualification | EptQualification::LINEAR_VALID;
                q.set(EptQualification::FINAL, last);
                (reason::EPT_VIOLATION, q.bits())
            }
            _ => (reason::EPT_MISCONFIG, 0),
        };
        ExitInfo { reason, qualification, linear: lin, physical: gpa, ..ExitInfo::default() }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn fetch_slow(&mut self, lin: u64) -> Result<u64, Stop> {
        match self.translate(lin, Kind::Fetch)? {
            Target::Ram { hpa, .. } => Ok(hpa),
            // The APIC-access page: its VM exit is pending.
            Target::Apic { .. } => Err(Stop),
            Target::Device { gpa } => {
                self.mmu.replay.asked = None;
                if !matches!(self.pending, Pending::Exit(_)) {
                    let known = EptQualification::LINEAR_VALID | EptQualification::FINAL;
                    self.pending = Pending::Exit(ExitInfo {
                        reason: reason::EPT_VIOLATION,
                        qualification: (EptQualification::FETCH | known).bits(),
                        linear: lin,
                        physical: gpa,
                        ..ExitInfo::default()
                    });
                }
                Err(Stop)
            }
        }
    }

    /// #AC for an unaligned access that must be checked.
    fn check_alignment(&mut self, lin: u64, size: u64) -> Result<(), Stop> {
        let checked = self.mmu.tlb.view() == View::Checked;
        if checked && size.is_power_of_two() && size <= 8 && lin & (size - 1) != 0 {
            return Err(self.raise(vector::AC, Some(0)));
        }
        Ok(())
    }

    /// Reads into the bounce buffer, or finds a host address after all.
    #[cold]
    #[inline(never)]
    pub(super) fn read_slow(&mut self, lin: u64, size: u64) -> Result<HostPtr, Stop> {
        self.check_alignment(lin, size)?;
        self.note_data_breakpoint(lin, size, false);
        let first = (PAGE - lin % PAGE).min(size);
        match self.translate(lin, Kind::Read)? {
            Target::Ram { ptr, .. } if first == size => Ok(ptr),
            target => {
                let mut bytes = [0u8; 64];
                let (a, b) = bytes.split_at_mut(first as usize);
                self.read_part(target, a)?;
                if first < size {
                    let target = self.translate(lin.wrapping_add(first), Kind::Read)?;
                    self.read_part(target, &mut b[..(size - first) as usize])?;
                }
                let p = self.mmu.bounce_ptr();
                p.write_bytes(&bytes[..size as usize]);
                Ok(p)
            }
        }
    }

    fn read_part(&mut self, target: Target, to: &mut [u8]) -> Result<(), Stop> {
        match target {
            Target::Ram { ptr, .. } => ptr.read_bytes(to),
            Target::Apic { gpa } if to.len() <= 4 && self.read_apic_page(gpa % PAGE, to.len()).is_some() => {
                let v = self.read_apic_page(gpa % PAGE, to.len()).unwrap_or(0).to_le_bytes();
                to.copy_from_slice(&v[..to.len()]);
            }
            Target::Apic { gpa } | Target::Device { gpa } => {
                let mut at = gpa;
                let mut rest = to;
                while !rest.is_empty() {
                    let n = piece(at, rest.len());
                    let (part, tail) = rest.split_at_mut(n);
                    let v = self.device(DeviceAccess { gpa: at, size: n as u8, write: None })?;
                    part.copy_from_slice(&v.to_le_bytes()[..n]);
                    at += n as u64;
                    rest = tail;
                }
            }
        }
        Ok(())
    }

    /// Stores the first `size` bytes of the bounce buffer.
    #[cold]
    #[inline(never)]
    pub(super) fn store_bounced(&mut self, lin: u64, size: u64) -> Result<(), Stop> {
        self.check_alignment(lin, size)?;
        self.note_data_breakpoint(lin, size, true);
        let mut bytes = [0u8; 64];
        let bytes = &mut bytes[..size as usize];
        self.mmu.bounce_ptr().read_bytes(bytes);
        let first = (PAGE - lin % PAGE).min(size);
        let a = self.translate(lin, Kind::Write)?;
        if first == size {
            return self.write_part(a, bytes);
        }
        let exit_a = self.pending;
        let b = self.translate(lin.wrapping_add(first), Kind::Write)?;
        let exit_b = std::mem::replace(&mut self.pending, exit_a);
        let (head, tail) = bytes.split_at(first as usize);
        self.write_part(a, head)?;
        self.pending = exit_b;
        self.write_part(b, tail)
    }

    fn write_part(&mut self, target: Target, from: &[u8]) -> Result<(), Stop> {
        match target {
            Target::Ram { ptr, hpa } => {
                ptr.write_bytes(from);
                self.written(hpa, from.len());
            }
            Target::Apic { gpa } if self.write_apic_page(gpa % PAGE, from)? => {}
            Target::Apic { gpa } | Target::Device { gpa } => {
                let mut at = gpa;
                let mut rest = from;
                while !rest.is_empty() {
                    let n = piece(at, rest.len());
                    let (part, tail) = rest.split_at(n);
                    let mut v = [0; 8];
                    v[..n].copy_from_slice(part);
                    let write = Some(u64::from_le_bytes(v));
                    self.device(DeviceAccess { gpa: at, size: n as u8, write })?;
                    at += n as u64;
                    rest = tail;
                }
            }
        }
        Ok(())
    }

    /// Reads for a read-modify-write: fails if the write would.
    pub(super) fn load_for_write(&mut self, lin: u64, size: u64) -> Result<u64, Stop> {
        let first = (PAGE - lin % PAGE).min(size);
        self.translate(lin, Kind::Write)?;
        if first < size {
            self.translate(lin.wrapping_add(first), Kind::Write)?;
        }
        let p = self.read_slow(lin, size)?;
        let mut v = [0; 8];
        p.read_bytes(&mut v[..size as usize]);
        Ok(u64::from_le_bytes(v))
    }

    /// Checks that `size` bytes at `lin` could be written now, without writing.
    ///
    /// # Errors
    /// What the write would raise.
    pub(crate) fn probe_write(&mut self, lin: u64, size: u64) -> Result<(), Stop> {
        let first = (PAGE - lin % PAGE).min(size);
        self.translate(lin, Kind::Write)?;
        if first < size {
            self.translate(lin.wrapping_add(first), Kind::Write)?;
        }
        Ok(())
    }

    /// For atomic operations: the host address, unless it is no single piece of memory, and the
    /// host-physical one. [`Cpu::written`] is to be called when the write is done.
    pub(super) fn writable_ram(&mut self, lin: u64, size: u64) -> Result<Option<(HostPtr, u64)>, Stop> {
        self.check_alignment(lin, size)?;
        if PAGE - lin % PAGE < size {
            return Ok(None);
        }
        match self.translate(lin, Kind::Write)? {
            Target::Ram { ptr, hpa } => Ok(Some((ptr, hpa))),
            Target::Apic { .. } | Target::Device { .. } => Ok(None),
        }
    }

    /// A device access: from the replay log if it was answered, else a VM exit.
    fn device(&mut self, access: DeviceAccess) -> Result<u64, Stop> {
        let replay = &mut self.mmu.replay;
        if let Some((done, value)) = replay.done.get(replay.next) {
            if *done == access {
                replay.next += 1;
                // The exit that the translation had made ready is not taken.
                self.pending = Pending::None;
                return Ok(*value);
            }
            // The instruction is not the one that was exited from after all (its code was changed).
            replay.done.truncate(replay.next);
        }
        if !self.nonroot {
            // No hypervisor: nothing answers on the bus.
            return Ok(u64::MAX);
        }
        if replay.done.len() >= Replay::LIMIT {
            replay.clear();
        }
        replay.asked = Some(access);
        if !matches!(self.pending, Pending::Exit(_)) {
            self.pending = Pending::Exit(ExitInfo {
                reason: reason::EPT_VIOLATION,
                qualification: u64::from(access.write.is_some()) + 1,
                physical: access.gpa,
                ..ExitInfo::default()
            });
        }
        if let Pending::Exit(info) = &mut self.pending {
            info.physical = access.gpa;
            info.by_instruction = self.delivering.is_none();
        }
        Err(Stop)
    }

    /// The device access that the last EPT-violation exit is about, beside what the VMCS says: width and
    /// data, which software would otherwise have to decode the instruction for.
    pub fn device_access(&self) -> Option<DeviceAccess> {
        self.mmu.replay.asked
    }

    /// Answers [`Cpu::device_access`] (a write with any value). At the next VM entry the instruction
    /// goes on as if the access had been made.
    pub fn complete_device_access(&mut self, value: u64) {
        if let Some(access) = self.mmu.replay.asked.take() {
            self.mmu.replay.done.push((access, value));
        }
    }

    /// Lets the next instruction access the data of the page of `lin` as if a device were there: each access is
    /// an EPT-violation exit (though EPT may be off) at the page of `gpa`, as [`Cpu::device_access`] describes.
    /// For hypervisors that keep a page out of the guest's reach and do what it does there. It holds for the
    /// one instruction, and for as many pages as are told.
    pub fn emulate_page(&mut self, lin: u64, gpa: u64) {
        let (lin, gpa) = (lin & !(PAGE - 1), gpa & !(PAGE - 1));
        // What is cached of it must not get past.
        self.mmu.forget_page(lin);
        let pages = &mut self.mmu.replay.emulated;
        pages.retain(|(other, _)| *other != lin);
        if pages.len() < Replay::EMULATED {
            pages.push((lin, gpa));
        }
    }

    /// Whether the next instruction has made device accesses already that were answered: an event injected now
    /// would make it ask again.
    pub fn device_accesses_made(&self) -> bool {
        !self.mmu.replay.done.is_empty()
    }

    /// Drops the answers: the instruction will not be resumed (an event is injected instead, or other
    /// state was loaded).
    pub fn drop_device_accesses(&mut self) {
        self.mmu.replay.clear();
    }

    /// Translates without faulting, for debuggers and for the hypervisor: guest-physical address.
    pub fn translate_for_debug(&mut self, lin: u64) -> Option<u64> {
        let mode = self.mmu.mode;
        let ept = self.ept_mode();
        let frames = std::cell::RefCell::new(&mut *self.mmu.frames);
        let guest = Guest { host: Host(&self.arena), ept, pml: None, frames: &frames };
        paging::walk(&guest, &mode, lin, Access { ac: true, ..Access::READ }).ok().map(|l| l.gpa)
    }

    /// Data breakpoints (SDM vol. 3 §18.2.4): remembers the hit; the trap comes after the instruction.
    fn note_data_breakpoint(&mut self, lin: u64, size: u64, write: bool) {
        if self.dr[7] & 0xff == 0 {
            return;
        }
        for i in 0..4 {
            let (enabled, control) = (self.dr[7] >> (2 * i) & 3, self.dr[7] >> (16 + 4 * i) & 15);
            let wanted = match control & 3 {
                1 => write,
                3 => true,
                _ => false,
            };
            let len = [1, 2, 8, 4][(control >> 2) as usize & 3];
            let base = self.dr[i as usize] & !(len - 1);
            if enabled != 0 && wanted && lin < base.wrapping_add(len) && base < lin.wrapping_add(size) {
                self.pending_debug |= 1 << i | 1 << 12;
            }
        }
    }
}

/// How much of a device access at `gpa` goes at once: a power of two, naturally aligned unless the whole
/// is one of the ordinary widths.
fn piece(gpa: u64, len: usize) -> usize {
    if matches!(len, 1 | 2 | 4 | 8) {
        return len;
    }
    let align = 1 << gpa.trailing_zeros().min(3);
    let mut n = 8.min(align);
    while n > len {
        n /= 2;
    }
    n
}
