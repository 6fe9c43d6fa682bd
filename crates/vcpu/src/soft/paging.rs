//! The registers that steer paging, as the guest has them and as the VMCS has them, and with shadow paging, what
//! the processor runs on.
//!
//! # Shadow paging
//!
//! Without EPT, the processor translates by the tables that CR3 of the VMCS points to: shadow tables, which
//! map linear addresses to host-physical ones ([`trapline_memory::shadow`]). The guest's own CR3, its CR0.PG,
//! CR0.WP and the paging bits of CR4 and IA32_EFER are what it reads back: reads come from read shadows or
//! exit, writes exit, and are done in [`super::control`] with the checks that the processor would make.
//!
//! | guest | the processor runs with |
//! |---|---|
//! | 4-level paging | 4-level shadow tables, IA-32e mode |
//! | 32-bit or PAE paging | PAE shadow tables |
//! | protected mode without paging | PAE shadow tables that map every address to itself |
//! | anything else | EPT and unrestricted guest mode |
//!
//! VT-x has a guest without paging or without protection only in unrestricted guest mode, and that only with
//! EPT (SDM vol. 3 §27.2.1.1). Hypervisors on the first processors with VT-x ran real mode as virtual-8086
//! tasks and executed by software what such a task cannot do: segments beyond 64 KiB, the first instructions
//! after a switch to protected mode, until all segments were loaded anew. Here the processor with EPT is that
//! software. It executes real mode, and in protected mode until the state is one that VM entry takes without
//! unrestricted guest mode. It also does task switches, one instruction each, because they load CR3.
//!
//! A processor with EPT writes past the shadow tables. The guest's tables are therefore not trusted while one
//! is in the guest ([`trapline_memory::shadow::Shadow::begin_unprotected`]).

use trapline_memory::ept::EptMode;
use trapline_memory::nested;
use trapline_memory::paging::{self, PagingFlags, PagingKind, PagingMode};
use trapline_memory::shadow::{NoShadowPage, SPACES, Seat};
use trapline_softcpu::cpu::{cr0, cr4, efer, vector};
use trapline_vmx::Field;
use trapline_vmx::checks::Rule;
use trapline_vmx::controls::{EntryControls, PrimaryControls, SecondaryControls};

use super::memory::Memory;
use super::setup::{CR0_HOST, CR4_HOST};
use super::vcpu::SoftVcpu;
use crate::Paging;

/// CR0 bits that the guest does not own either with shadow paging.
pub(super) const CR0_SHADOW: u64 = cr0::PE | cr0::PG | cr0::WP;
/// CR4 bits likewise.
pub(super) const CR4_SHADOW: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;
/// Those of them that are in force as the guest has them, while it pages.
const CR4_AS_GUEST: u64 = cr4::LA57 | cr4::SMEP | cr4::SMAP | cr4::PKE;
/// Those that are in force on shadow tables whatever the guest has.
const CR0_ON: u64 = cr0::PE | cr0::PG | cr0::WP;

const PDPTES: [Field; 4] = [Field::GuestPdpte0, Field::GuestPdpte1, Field::GuestPdpte2, Field::GuestPdpte3];

/// A vCPU's part in shadow paging.
pub(super) struct Shadowing {
    pub seat: Seat,
    /// The VMCS is set up for shadow tables; otherwise for EPT.
    pub on: bool,
    /// A register that steers paging has changed since the VMCS was set up.
    pub changed: bool,
    /// The next instruction is to be executed with EPT.
    pub by_ept: bool,
    /// VM entry has refused the state without unrestricted guest mode.
    pub refused: bool,
    /// What the guest has in CR3 and IA32_EFER, while the VMCS has something else there.
    pub cr3: u64,
    pub efer: u64,
    pub counts: FaultCounts,
}

/// What became of page faults.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FaultCounts {
    /// Tables were filled.
    pub filled: u64,
    /// They were the guest's.
    pub injected: u64,
    /// The access was emulated.
    pub emulated: u64,
}

impl FaultCounts {
    /// For [`Vcpu::detail`](crate::Vcpu::detail).
    pub fn named(self) -> [(String, u64); 3] {
        let Self { filled, injected, emulated } = self;
        [("filled", filled), ("injected", injected), ("emulated", emulated)]
            .map(|(name, count)| (format!("page faults on shadow tables: {name}"), count))
    }
}

impl Shadowing {
    pub fn new(memory: &Memory) -> Option<Self> {
        let seat = memory.shadow()?.join();
        Some(Self {
            seat,
            on: false,
            changed: true,
            by_ept: false,
            refused: false,
            cr3: 0,
            efer: 0,
            counts: FaultCounts::default(),
        })
    }

    /// After RESET or INIT: the VMCS has the state of a guest with EPT.
    pub fn reset(&mut self) {
        (self.on, self.changed, self.by_ept, self.refused) = (false, true, false, false);
    }
}

impl SoftVcpu {
    fn field(&self, field: Field) -> u64 {
        self.root.cpu.vmcs_read(field)
    }

    fn put(&mut self, field: Field, value: u64) {
        self.root.cpu.vmcs_write(field, value);
    }

    /// While the VMCS is set up for shadow tables.
    fn on_shadow(&self) -> Option<&Shadowing> {
        self.shadowing.as_ref().filter(|shadowing| shadowing.on)
    }

    /// CR0 as the guest reads it.
    pub(super) fn guest_cr0(&self) -> u64 {
        let mask = self.field(Field::Cr0GuestHostMask);
        self.field(Field::GuestCr0) & !mask | self.field(Field::Cr0ReadShadow) & mask
    }

    /// CR4 as the guest reads it.
    pub(super) fn guest_cr4(&self) -> u64 {
        let mask = self.field(Field::Cr4GuestHostMask);
        self.field(Field::GuestCr4) & !mask | self.field(Field::Cr4ReadShadow) & mask
    }

    /// The guest's CR3.
    pub(super) fn guest_cr3(&self) -> u64 {
        self.on_shadow().map_or_else(|| self.field(Field::GuestCr3), |shadowing| shadowing.cr3)
    }

    /// The guest's IA32_EFER.
    pub(super) fn guest_efer(&self) -> u64 {
        self.on_shadow().map_or_else(|| self.field(Field::GuestEfer), |shadowing| shadowing.efer)
    }

    /// Sets CR0 without any check.
    pub(super) fn set_guest_cr0(&mut self, value: u64) {
        let on = if self.on_shadow().is_some() { CR0_ON } else { 0 };
        self.put(Field::GuestCr0, value | cr0::NE | cr0::ET | on);
        self.put(Field::Cr0ReadShadow, value | cr0::ET);
        self.paging_changed();
    }

    /// Sets CR4 without any check.
    pub(super) fn set_guest_cr4(&mut self, value: u64) {
        self.put(Field::GuestCr4, value | CR4_HOST);
        self.put(Field::Cr4ReadShadow, value);
        self.paging_changed();
    }

    /// Sets CR3 without any check.
    pub(super) fn set_guest_cr3(&mut self, value: u64) {
        match &mut self.shadowing {
            Some(shadowing) if shadowing.on => shadowing.cr3 = value,
            _ => self.put(Field::GuestCr3, value),
        }
    }

    /// Sets IA32_EFER, LMA included, without any check.
    pub(super) fn set_guest_efer(&mut self, value: u64) {
        match &mut self.shadowing {
            Some(shadowing) if shadowing.on => shadowing.efer = value,
            _ => self.write_efer(value),
        }
        self.paging_changed();
    }

    fn paging_changed(&mut self) {
        if let Some(shadowing) = &mut self.shadowing {
            shadowing.changed = true;
        }
    }

    /// IA32_EFER of the VMCS, and what VM entry wants to go with it.
    fn write_efer(&mut self, value: u64) {
        let ia32e = u64::from(EntryControls::IA32E_MODE_GUEST.bits());
        let entry = self.field(Field::EntryControls) & !ia32e;
        self.put(Field::EntryControls, if value & efer::LMA != 0 { entry | ia32e } else { entry });
        self.put(Field::GuestEfer, value);
    }

    /// The guest's paging mode.
    pub(super) fn paging(&self) -> PagingMode {
        let (cr0, cr4, efer) = (self.guest_cr0(), self.guest_cr4(), self.guest_efer());
        let kind = if cr0 & cr0::PG == 0 {
            PagingKind::Off
        } else if efer & efer::LMA != 0 {
            if cr4 & cr4::LA57 != 0 { PagingKind::Level5 } else { PagingKind::Level4 }
        } else if cr4 & cr4::PAE != 0 {
            PagingKind::Pae { pdptes: PDPTES.map(|field| self.field(field)) }
        } else {
            PagingKind::Bits32 { pse: cr4 & cr4::PSE != 0, pse36: true }
        };
        let mut flags = PagingFlags::PAGE_1G;
        flags.set(PagingFlags::WRITE_PROTECT, cr0 & cr0::WP != 0);
        flags.set(PagingFlags::NXE, efer & efer::NXE != 0);
        flags.set(PagingFlags::SMEP, cr4 & cr4::SMEP != 0);
        flags.set(PagingFlags::SMAP, cr4 & cr4::SMAP != 0);
        flags.set(PagingFlags::PKE, cr4 & cr4::PKE != 0);
        flags.set(PagingFlags::PKS, cr4 & cr4::PKS != 0);
        let cpu = &self.root.cpu;
        let phys_bits = cpu.model.phys_bits();
        PagingMode { kind, cr3: self.guest_cr3(), flags, phys_bits, pkru: cpu.pkru, pkrs: cpu.msr.pkrs }
    }

    /// The page-directory-pointer entries of PAE paging, as MOV to CR3 reads them. `false`: they cannot be
    /// loaded, and nothing has changed.
    pub(super) fn load_pdptes(&mut self, cr3: u64, memory: &Memory) -> bool {
        let bits = self.root.cpu.model.phys_bits();
        let ept = EptMode::new(memory.eptp(), bits);
        let tables = nested::GuestTables::without_linear(&memory.arena, &ept);
        let Ok(values) = paging::load_pdptes(&tables, cr3) else { return false };
        if !values.iter().all(|&pdpte| PagingMode::pdpte_valid(pdpte, bits)) {
            return false;
        }
        for (field, value) in PDPTES.into_iter().zip(values) {
            self.put(field, value);
        }
        true
    }

    /// Drops what the processor has cached of the guest's translations with EPT, and sees to it that shadow
    /// tables say what the guest's own do.
    pub(super) fn flush_translations(&mut self, memory: &Memory) {
        match &mut self.shadowing {
            Some(shadowing) if shadowing.on => {
                if let Some(mut tables) = memory.shadow() {
                    tables.flush(memory, &mut shadowing.seat);
                }
            }
            _ => self.forget_space(0),
        }
    }

    /// Drops cached translations of an address space.
    pub(super) fn forget_space(&mut self, space: usize) {
        let vpid = self.vpid(space);
        // 1: single context. The VPID is not zero, so this does not fail.
        let _ = self.root.cpu.invvpid(1, vpid, 0);
    }

    /// The VPID of one of the processor's address spaces; the first is also that of a guest with EPT.
    fn vpid(&self, space: usize) -> u16 {
        first_vpid(self.mailbox.id) + space as u16
    }

    /// Before VM entry: sets the VMCS up for how the guest translates now.
    ///
    /// # Errors
    /// There is no room for shadow tables: they must all be dropped.
    pub(super) fn enter_paging(&mut self, memory: &Memory) -> Result<(), NoShadowPage> {
        let Some(shadowing) = &self.shadowing else { return Ok(()) };
        // With EPT, an exit may have come just when the state has become a better one.
        if shadowing.changed || !shadowing.on && self.guest_cr0() & cr0::PE != 0 {
            self.choose_paging(memory);
        }
        let mode = self.on_shadow().map(|shadowing| shadowing.seat.enter_again());
        let run = match mode {
            None => {
                if let Some(mut tables) = memory.shadow() {
                    tables.begin_unprotected();
                }
                return Ok(());
            }
            Some(Some(run)) => run,
            Some(None) => {
                let mode = self.paging();
                let (Some(shadowing), Some(mut tables)) = (&mut self.shadowing, memory.shadow()) else {
                    return Ok(());
                };
                tables.enter(memory, &mut shadowing.seat, &mode)?
            }
        };
        if run.forget {
            self.forget_space(run.space);
        }
        self.put(Field::GuestCr3, run.cr3);
        self.put(Field::Vpid, self.vpid(run.space).into());
        Ok(())
    }

    /// After VM exit.
    pub(super) fn leave_paging(&mut self, memory: &Memory) {
        match &self.shadowing {
            Some(shadowing) if shadowing.on => shadowing.seat.leave(),
            Some(_) => {
                if let Some(mut tables) = memory.shadow() {
                    tables.end_unprotected();
                }
            }
            None => {}
        }
    }

    /// Shadow tables, if VM entry takes the guest's state without unrestricted guest mode; else EPT.
    fn choose_paging(&mut self, memory: &Memory) {
        let protected = self.guest_cr0() & cr0::PE != 0;
        let Some(shadowing) = &self.shadowing else { return };
        let was_on = shadowing.on;
        let mut on = protected && !shadowing.by_ept && !shadowing.refused;
        self.set_up_paging(on);
        // PDPTEs are looked at where CR3 points to, which is still to be set.
        if on && self.root.cpu.explain_entry().is_some_and(|error| error.rule != Rule::Pdpte) {
            on = false;
            self.set_up_paging(on);
        }
        let Some(shadowing) = &mut self.shadowing else { return };
        (shadowing.changed, shadowing.refused) = (false, false);
        if on != was_on {
            // What was cached or built before is not kept up to date meanwhile.
            self.flush_translations(memory);
        }
    }

    /// Writes the VMCS: controls, and registers as the processor must have them.
    fn set_up_paging(&mut self, on: bool) {
        let (cr0, cr3, cr4, efer) = (self.guest_cr0(), self.guest_cr3(), self.guest_cr4(), self.guest_efer());
        let Some(shadowing) = &mut self.shadowing else { return };
        (shadowing.on, shadowing.cr3, shadowing.efer) = (on, cr3, efer);
        let pages = cr0 & cr0::PG != 0;
        let cr0 = cr0 | cr0::NE | cr0::ET;
        if on {
            let as_guest = if pages { cr4 & CR4_AS_GUEST } else { 0 };
            self.put(Field::GuestCr0, cr0 | CR0_ON);
            self.put(Field::GuestCr4, cr4 & !CR4_SHADOW | CR4_HOST | cr4::PAE | as_guest);
            self.write_efer(if pages { efer } else { efer & !(efer::LME | efer::LMA) });
        } else {
            self.put(Field::GuestCr0, cr0);
            self.put(Field::GuestCr3, cr3);
            self.put(Field::GuestCr4, cr4 | CR4_HOST);
            self.write_efer(efer);
            self.put(Field::Vpid, self.vpid(0).into());
        }
        self.switch_controls(on);
    }

    /// Unrestricted guest mode with EPT, or exits of all that concerns shadow tables.
    fn switch_controls(&mut self, on: bool) {
        let mut secondary = SecondaryControls::from_bits_retain(self.field(Field::SecondaryControls) as u32);
        secondary.set(SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST, !on);
        let mut primary = PrimaryControls::from_bits_retain(self.field(Field::PrimaryControls) as u32);
        primary.set(PrimaryControls::CR3_LOAD_EXITING | PrimaryControls::CR3_STORE_EXITING, on);
        primary.set(PrimaryControls::INVLPG_EXITING, on);
        let by_ept = self.shadowing.as_ref().is_some_and(|shadowing| shadowing.by_ept);
        primary.set(PrimaryControls::MONITOR_TRAP_FLAG, by_ept);
        self.put(Field::SecondaryControls, secondary.bits().into());
        self.put(Field::PrimaryControls, primary.bits().into());
        self.write_exceptions();
    }

    /// What the exception bitmap must have for shadow tables.
    pub(super) fn paging_exceptions(&self) -> u64 {
        if self.on_shadow().is_some() { 1 << vector::PF } else { 0 }
    }
}

/// The first of the VPIDs of a vCPU.
pub(super) const fn first_vpid(id: u32) -> u16 {
    // IDs are below 255.
    (id as usize * SPACES) as u16 + 1
}

/// The bits of CR0 and CR4 that the guest does not own.
pub(super) const fn host_masks(paging: Paging) -> (u64, u64) {
    match paging {
        Paging::Ept => (CR0_HOST, CR4_HOST),
        Paging::Shadow => (CR0_HOST | CR0_SHADOW, CR4_HOST | CR4_SHADOW),
    }
}
