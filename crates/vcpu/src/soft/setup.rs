//! The processor in root operation, its VMCS, and the guest state after RESET and INIT.

use std::sync::Arc;

use trapline_memory::{Arena, PageAllocator};
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::{Time, cr0, efer};
use trapline_softcpu::vmx::VmFail;
use trapline_vmx::controls::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use trapline_vmx::state::Segment;
use trapline_vmx::{Field, Vmcs};

use super::mailbox::Mailbox;
use super::memory::Memory;
use super::msr;
use super::paging::{first_vpid, host_masks};
use super::vm::Machine;
use crate::{Engine, Error, Result};

/// CR0 bits that the guest does not own: it sees them in the read shadow. NE must be one in VMX operation;
/// CD and NW are not loaded at VM entry.
pub(super) const CR0_HOST: u64 = cr0::NE | cr0::CD | cr0::NW;
/// CR4 bits that the guest does not own: VMXE must be one in VMX operation.
pub(super) const CR4_HOST: u64 = trapline_softcpu::cpu::cr4::VMXE;

/// The VMCS fields of a segment register.
#[derive(Clone, Copy)]
pub(super) struct SegmentFields {
    pub selector: Field,
    pub base: Field,
    pub limit: Field,
    pub rights: Field,
}

/// See [`SegmentFields`].
pub(super) const fn segment_fields(segment: Segment) -> SegmentFields {
    macro_rules! fields {
        ($($s:ident: $sel:ident $base:ident $limit:ident $rights:ident),* $(,)?) => {
            match segment {
                $(Segment::$s => SegmentFields {
                    selector: Field::$sel, base: Field::$base, limit: Field::$limit, rights: Field::$rights,
                }),*
            }
        };
    }
    fields! {
        Es: GuestEsSelector GuestEsBase GuestEsLimit GuestEsAccessRights,
        Cs: GuestCsSelector GuestCsBase GuestCsLimit GuestCsAccessRights,
        Ss: GuestSsSelector GuestSsBase GuestSsLimit GuestSsAccessRights,
        Ds: GuestDsSelector GuestDsBase GuestDsLimit GuestDsAccessRights,
        Fs: GuestFsSelector GuestFsBase GuestFsLimit GuestFsAccessRights,
        Gs: GuestGsSelector GuestGsBase GuestGsLimit GuestGsAccessRights,
        Ldtr: GuestLdtrSelector GuestLdtrBase GuestLdtrLimit GuestLdtrAccessRights,
        Tr: GuestTrSelector GuestTrBase GuestTrLimit GuestTrAccessRights,
    }
}

/// The pages that a processor's VMX operation needs.
struct Pages {
    arena: Arc<Arena>,
    vmxon: u64,
    vmcs: u64,
    msr_bitmap: u64,
}

impl Pages {
    fn new(arena: &Arc<Arena>) -> Result<Self> {
        let page = || {
            let none =
                Error::NotFound { what: "free page in the arena's root area of bytes", id: arena.len() };
            arena.alloc_page().ok_or(none)
        };
        Ok(Self { vmxon: page()?, vmcs: page()?, msr_bitmap: page()?, arena: arena.clone() })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for page in [self.vmxon, self.vmcs, self.msr_bitmap] {
            self.arena.free_page(page);
        }
    }
}

/// PAUSEs at most so far apart belong to one loop, in ticks of the TSC, which are nanoseconds.
const PLE_GAP: u64 = 2_000;
/// How long the kernel of a guest spins before another thread gets the core, in the same unit.
const PLE_WINDOW: u64 = 20_000;

/// A processor in VMX root operation with a current VMCS, all of whose controls and host state are set.
pub(super) struct Root {
    /// The processor. Dropped before the pages are given back.
    pub cpu: Cpu,
    _pages: Pages,
}

impl Root {
    /// A processor on this memory.
    pub fn new(machine: &Machine, mailbox: &Mailbox, memory: &Memory) -> Result<Self> {
        let pages = Pages::new(&memory.arena)?;
        let (arena, model) = (memory.arena.clone(), machine.model.clone());
        let mut cpu = Cpu::with_signals(arena, model, memory.shared.clone(), mailbox.signals.clone());
        if machine.config.interpret {
            cpu.translate_after(None);
        }
        cpu.time = Time::since(machine.start);
        cpu.time.icount_shift = machine.config.icount.as_ref().map(|clock| clock.shift());
        // Nothing is ever executed in root operation: CR3 only has to be an address.
        cpu.enter_root_mode(pages.vmxon);
        for page in [pages.vmxon, pages.vmcs] {
            pages.arena.write_bytes(page, &Vmcs::REVISION.to_le_bytes());
        }
        let begun = cpu.vmxon(pages.vmxon).and_then(|()| cpu.vmclear(pages.vmcs));
        begun.and_then(|()| cpu.vmptrld(pages.vmcs)).map_err(|e| failed("VMXON", e))?;
        msr::write_bitmap(&pages.arena, pages.msr_bitmap, machine.config.paging);
        let mut root = Self { cpu, _pages: pages };
        root.write_controls(machine, mailbox.id);
        root.write_host_state();
        root.reset(false);
        Ok(root)
    }

    fn write_controls(&mut self, machine: &Machine, id: u32) {
        let caps = self.cpu.vmx.caps.clone();
        let mut primary = PrimaryControls::UNCONDITIONAL_IO_EXITING
            | PrimaryControls::HLT_EXITING
            | PrimaryControls::TSC_OFFSETTING
            | PrimaryControls::MSR_BITMAPS
            | PrimaryControls::SECONDARY_CONTROLS;
        if machine.config.local_apic {
            // CR8 is the local APIC's task priority.
            primary |= PrimaryControls::CR8_LOAD_EXITING | PrimaryControls::CR8_STORE_EXITING;
        }
        let pin = PinControls::EXTERNAL_INTERRUPT_EXITING
            | PinControls::NMI_EXITING
            | PinControls::VIRTUAL_NMIS
            | PinControls::PREEMPTION_TIMER;
        let mut secondary = SecondaryControls::ENABLE_EPT
            | SecondaryControls::ENABLE_VPID
            | SecondaryControls::UNRESTRICTED_GUEST
            | SecondaryControls::ENABLE_RDTSCP
            | SecondaryControls::ENABLE_INVPCID
            | SecondaryControls::ENABLE_XSAVES
            | SecondaryControls::TSC_SCALING;
        if machine.config.icount.is_none() {
            // With it there is one processor, which waits for nobody.
            secondary |= SecondaryControls::PAUSE_LOOP_EXITING;
        }
        let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE
            | ExitControls::SAVE_DEBUG_CONTROLS
            | ExitControls::SAVE_PAT
            | ExitControls::LOAD_PAT
            | ExitControls::SAVE_EFER
            | ExitControls::LOAD_EFER;
        let entry = EntryControls::LOAD_DEBUG_CONTROLS | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
        let (cr0_mask, cr4_mask) = host_masks(machine.config.paging);
        for (field, value) in [
            (Field::PinControls, caps.pin.adjust(pin.bits()).into()),
            (Field::PrimaryControls, caps.primary.adjust(primary.bits()).into()),
            (Field::SecondaryControls, caps.secondary.adjust(secondary.bits()).into()),
            (Field::ExitControls, caps.exit.adjust(exit.bits()).into()),
            (Field::EntryControls, caps.entry.adjust(entry.bits()).into()),
            (Field::Vpid, first_vpid(id).into()),
            (Field::MsrBitmap, self._pages.msr_bitmap),
            (Field::VmcsLinkPointer, u64::MAX),
            (Field::TscMultiplier, 1 << 48),
            (Field::PleGap, PLE_GAP),
            (Field::PleWindow, PLE_WINDOW),
            (Field::Cr0GuestHostMask, cr0_mask),
            (Field::Cr4GuestHostMask, cr4_mask),
        ] {
            self.cpu.vmcs_write(field, value);
        }
    }

    fn write_host_state(&mut self) {
        let (cr0, cr3, cr4) = (self.cpu.cr0, self.cpu.cr3, self.cpu.cr4);
        for (field, value) in [
            (Field::HostCr0, cr0),
            (Field::HostCr3, cr3),
            (Field::HostCr4, cr4),
            (Field::HostEfer, efer::LME | efer::LMA | efer::NXE),
            (Field::HostPat, msr::POWER_ON_PAT),
            (Field::HostCsSelector, 0x08),
            (Field::HostSsSelector, 0x10),
            (Field::HostDsSelector, 0x10),
            (Field::HostEsSelector, 0x10),
            (Field::HostTrSelector, 0x18),
        ] {
            self.cpu.vmcs_write(field, value);
        }
    }

    /// The guest state after RESET, or after INIT, which leaves the vector and x87 registers, TSC and most
    /// MSRs alone (SDM vol. 3 table 10-1).
    pub fn reset(&mut self, init: bool) {
        let cpu = &mut self.cpu;
        let kept = cpu.vmcs_read(Field::Cr0ReadShadow) & (cr0::CD | cr0::NW);
        let caches = if init { kept } else { cr0::CD | cr0::NW };
        cpu.regs[..16].fill(0);
        if let Some(rdx) = cpu.regs.get_mut(2) {
            *rdx = cpu.model.signature().into();
        }
        (cpu.cr2, cpu.cr8) = (0, 0);
        cpu.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        if !init {
            cpu.x87 = Default::default();
            cpu.xmm = Default::default();
            cpu.mxcsr = Default::default();
            cpu.msr = Default::default();
            cpu.xcr0 = 1;
            cpu.pkru = 0;
            cpu.vmcs_write(Field::GuestPat, msr::POWER_ON_PAT);
            for field in [Field::GuestSysenterCs, Field::GuestSysenterEsp, Field::GuestSysenterEip] {
                cpu.vmcs_write(field, 0);
            }
        }
        for segment in Segment::ALL {
            let (selector, base, rights) = match segment {
                Segment::Cs => (0xf000, 0xffff_0000, 0x9b),
                Segment::Ldtr => (0, 0, 0x82),
                Segment::Tr => (0, 0, 0x8b),
                _ => (0, 0, 0x93),
            };
            let fields = segment_fields(segment);
            cpu.vmcs_write(fields.selector, selector);
            cpu.vmcs_write(fields.base, base);
            cpu.vmcs_write(fields.limit, 0xffff);
            cpu.vmcs_write(fields.rights, rights);
        }
        let entry = cpu.vmcs_read(Field::EntryControls);
        let entry = entry & !u64::from(EntryControls::IA32E_MODE_GUEST.bits());
        for (field, value) in [
            (Field::GuestCr0, caches | cr0::ET | cr0::NE),
            (Field::Cr0ReadShadow, caches | cr0::ET),
            (Field::GuestCr3, 0),
            (Field::GuestCr4, CR4_HOST),
            (Field::Cr4ReadShadow, 0),
            (Field::GuestEfer, 0),
            (Field::EntryControls, entry),
            (Field::GuestDr7, 0x400),
            (Field::GuestGdtrBase, 0),
            (Field::GuestGdtrLimit, 0xffff),
            (Field::GuestIdtrBase, 0),
            (Field::GuestIdtrLimit, 0xffff),
            (Field::GuestRip, 0xfff0),
            (Field::GuestRsp, 0),
            (Field::GuestRflags, 2),
            (Field::GuestInterruptibility, 0),
            (Field::GuestPendingDebug, 0),
            (Field::EntryInterruptionInfo, 0),
        ] {
            cpu.vmcs_write(field, value);
        }
        cpu.drop_device_accesses();
        cpu.mmu.flush_all();
    }
}

/// A VMX instruction that cannot fail did.
pub(super) fn failed(what: &'static str, error: VmFail) -> Error {
    Error::Unavailable { engine: Engine::Soft, why: format!("{what}: {error}") }
}
