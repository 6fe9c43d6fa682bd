//! VMX operation (SDM vol. 3 chapters 24 to 31): the VMX instructions as an API for root-mode software
//! in Rust, and what non-root operation intercepts.
//!
//! Software that runs in VMX root operation is the program that owns the [`Cpu`]: it executes VMXON,
//! VMCLEAR, VMPTRLD, VMREAD, VMWRITE, VMLAUNCH … by calling them. [`Cpu::vmlaunch`] returns after the VM
//! exit, as the instruction after it would be reached through the host RIP.
//!
//! Each level of software has a [`Context`]: its VMXON region and its current VMCS. The levels that
//! execute right now are a stack; today it is at most one deep, because guests have no VMX instructions
//! (they raise #UD, and CPUID hides VMX).
//!
//! # Left out
//!
//! Not advertised, so that a VM entry that asks for it fails: VMCS shadowing (which comes with nested
//! levels), APIC-register virtualization, virtual-interrupt delivery, posted interrupts, VM functions,
//! Intel PT, SGX, SPP, CET, FRED, tertiary controls, bus-lock detection, user wait instructions. System
//! management mode does not exist: there are no SMIs. A host in 32-bit mode has its PDPTEs not checked.
//!
//! Simplified: the preemption timer is looked at every few thousand instructions, and the TLB is exact only
//! where the SDM demands it (an INVLPG in a large page drops everything).

mod apic;
mod entry;
mod ept;
mod exit;
mod intercept;
pub mod reason;

use std::sync::Arc;

use trapline_vmx::controls::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use trapline_vmx::exit::VmInstructionError;
use trapline_vmx::{Capabilities, Field, LaunchState, REGION_SIZE, Vmcs};

use crate::cpu::{Cpu, attr, cr0, cr4, efer, seg, vector};
pub(crate) use ept::Pml;

/// How a VMX instruction fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmFail {
    /// VMfailInvalid: there is no current VMCS to hold an error number.
    #[error("vmx instruction failed: no current vmcs")]
    Invalid,
    /// VMfailValid.
    #[error("vmx instruction failed: {0}")]
    Valid(VmInstructionError),
    /// The instruction raises an exception instead (#UD, #GP).
    #[error("vmx instruction raised exception {0}")]
    Exception(u8),
}

/// Result of a VMX instruction.
pub type VmResult<T = ()> = Result<T, VmFail>;

/// What one level of software has set up with VMX instructions.
#[derive(Default)]
pub struct Context {
    /// Address of the VMXON region while in VMX operation.
    vmxon: Option<u64>,
    /// Address of the current VMCS, and the processor's copy of it.
    current: Option<(u64, Box<Vmcs>)>,
}

/// The controls of the level that executes, unpacked at VM entry.
#[derive(Clone, Copy, Debug)]
pub struct Controls {
    /// Pin-based.
    pub pin: PinControls,
    /// Primary processor-based.
    pub primary: PrimaryControls,
    /// Secondary processor-based.
    pub secondary: SecondaryControls,
    /// VM-exit controls.
    pub exit: ExitControls,
    /// VM-entry controls.
    pub entry: EntryControls,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            pin: PinControls::empty(),
            primary: PrimaryControls::empty(),
            secondary: SecondaryControls::empty(),
            exit: ExitControls::empty(),
            entry: EntryControls::empty(),
        }
    }
}

/// State of VMX operation.
pub struct Vmx {
    /// What the processor advertises.
    pub caps: Arc<Capabilities>,
    /// The contexts, root first.
    contexts: Vec<Context>,
    /// Unpacked controls, valid in non-root operation.
    pub ctl: Controls,
    /// Exception bitmap.
    pub exception_bitmap: u32,
    /// Page-fault error-code mask and match.
    pub page_fault: (u32, u32),
    /// Bits of CR0 that belong to the host, and what the guest reads there.
    pub cr0_mask: u64,
    /// See `cr0_mask`.
    pub cr0_shadow: u64,
    /// Bits of CR4 that belong to the host.
    pub cr4_mask: u64,
    /// See `cr4_mask`.
    pub cr4_shadow: u64,
    /// CR3 values that do not exit.
    pub cr3_targets: ([u64; 4], usize),
    /// Added to the time-stamp counter the guest reads.
    pub tsc_offset: u64,
    /// TSC multiplier, 48 fractional bits.
    pub tsc_multiplier: u64,
    /// VPID in force; 0 is the host's.
    pub vpid: u16,
    io_bitmaps: [u64; 2],
    msr_bitmap: u64,
    eptp: Option<u64>,
    /// Raw TSC value at which the preemption timer runs out.
    preemption_deadline: Option<u64>,
    /// Instruction count at which the timer is looked at next.
    next_look: u64,
    /// Something else than the timer must be looked at on every boundary.
    windows: bool,
    /// Monitor trap flag: one instruction at a time.
    pub(crate) monitor_trap: bool,
    /// An MTF VM exit is pending.
    pub(crate) trap_pending: bool,
    /// TPR shadow and APIC-access page.
    pub(crate) apic: apic::Apic,
    /// Page-modification log.
    pub(crate) pml: Option<ept::Pml>,
    /// Virtualization-exception information area.
    ve_area: Option<u64>,
    /// Spinning with PAUSE.
    pause_loop: intercept::PauseLoop,
}

impl Default for Vmx {
    fn default() -> Self {
        Self {
            caps: Arc::new(capabilities()),
            contexts: vec![Context::default()],
            ctl: Controls::default(),
            exception_bitmap: 0,
            page_fault: (0, 0),
            cr0_mask: 0,
            cr0_shadow: 0,
            cr4_mask: 0,
            cr4_shadow: 0,
            cr3_targets: ([0; 4], 0),
            tsc_offset: 0,
            tsc_multiplier: 1 << 48,
            vpid: 0,
            io_bitmaps: [0; 2],
            msr_bitmap: 0,
            eptp: None,
            preemption_deadline: None,
            next_look: u64::MAX,
            windows: false,
            monitor_trap: false,
            trap_pending: false,
            apic: apic::Apic::default(),
            pml: None,
            ve_area: None,
            pause_loop: intercept::PauseLoop::default(),
        }
    }
}

/// The VMX features of this processor: what is not modelled is not advertised.
fn capabilities() -> Capabilities {
    use SecondaryControls as S;
    Capabilities::software().with_secondary(S::MODE_BASED_EPT_EXECUTE).without_secondary(S::VMCS_SHADOWING)
}

impl Vmx {
    /// The EPT pointer, in non-root operation with EPT on.
    #[inline]
    pub fn eptp(&self) -> Option<u64> {
        self.eptp
    }

    /// Whether something must be looked at on this instruction boundary.
    #[inline(always)]
    pub(crate) fn watches(&self, icount: u64) -> bool {
        self.windows || icount >= self.next_look
    }

    /// The VMCS that root software works on.
    fn vmcs(&self) -> VmResult<&Vmcs> {
        self.contexts.first().and_then(|c| c.current.as_ref()).map(|c| &*c.1).ok_or(VmFail::Invalid)
    }

    fn vmcs_mut(&mut self) -> VmResult<&mut Vmcs> {
        self.contexts.first_mut().and_then(|c| c.current.as_mut()).map(|c| &mut *c.1).ok_or(VmFail::Invalid)
    }

    fn root(&mut self) -> &mut Context {
        // There is always a root context.
        &mut self.contexts[0]
    }

    fn current_pointer(&self) -> u64 {
        self.contexts.first().and_then(|c| c.current.as_ref()).map_or(u64::MAX, |c| c.0)
    }
}

impl Cpu {
    /// Puts the processor into the state in which system software in 64-bit mode would execute VMXON:
    /// IA-32e mode at privilege level 0, CR4.VMXE set, paging on (at `cr3`, which only has to be valid if
    /// code is to be executed in root mode).
    pub fn enter_root_mode(&mut self, cr3: u64) {
        self.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::ET | cr0::WP | cr0::MP;
        self.cr4 = cr4::PAE | cr4::VMXE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        self.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        self.cr3 = cr3;
        let data = crate::cpu::Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xc093 };
        for s in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.seg[s] = data;
        }
        let code = crate::cpu::Segment { selector: 8, base: 0, limit: u32::MAX, attr: 0xa09b };
        debug_assert!(code.attr & attr::L != 0);
        self.seg[seg::CS] = code;
        self.seg[seg::TR].selector = 0x18;
        self.cpl = 0;
        self.paging_changed();
        self.mode_changed();
    }

    fn fail(&mut self, error: VmInstructionError) -> VmFail {
        match self.vmx.vmcs_mut() {
            Ok(vmcs) => {
                vmcs.write(Field::InstructionError, u64::from(error.number()));
                VmFail::Valid(error)
            }
            Err(e) => e,
        }
    }

    fn in_vmx_root(&self) -> VmResult {
        let on = self.vmx.contexts.first().is_some_and(|c| c.vmxon.is_some());
        if !on || self.nonroot || !self.vmx_mode() {
            return Err(VmFail::Exception(vector::UD));
        }
        self.need_root_cpl0()
    }

    /// Protected or 64-bit mode: VMX instructions do not exist in real, virtual-8086 and compatibility
    /// mode.
    fn vmx_mode(&self) -> bool {
        self.protected() && (!self.lma() || self.long64)
    }

    fn need_root_cpl0(&self) -> VmResult {
        if self.cpl == 0 { Ok(()) } else { Err(VmFail::Exception(vector::GP)) }
    }

    fn region(&self, pa: u64) -> Option<[u8; REGION_SIZE]> {
        let mut bytes = [0; REGION_SIZE];
        self.arena.read_bytes(pa, &mut bytes)?;
        Some(bytes)
    }

    fn valid_region(&self, pa: u64) -> bool {
        pa & 0xfff == 0 && pa >> self.model.phys_bits() == 0
    }

    fn revision_at(&self, pa: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.arena.read_bytes(pa, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// VMXON: enters VMX root operation with the VMXON region at host-physical `pa`.
    ///
    /// # Errors
    /// #UD without CR4.VMXE, in a mode without VMX, or in non-root operation; #GP if CR0 or CR4 lack a
    /// fixed bit; VMfailInvalid for a bad region; VMfail 15 if already in VMX operation.
    pub fn vmxon(&mut self, pa: u64) -> VmResult {
        if self.cr4 & cr4::VMXE == 0 || !self.vmx_mode() || self.nonroot {
            return Err(VmFail::Exception(vector::UD));
        }
        if self.vmx.root().vmxon.is_some() {
            self.need_root_cpl0()?;
            return Err(self.fail(VmInstructionError::VmxonInRoot));
        }
        let caps = &self.vmx.caps;
        let fixed = |v: u64, f0: u64, f1: u64| v & f0 == f0 && v & !f1 == 0;
        if self.cpl != 0
            || !fixed(self.cr0, caps.cr0_fixed0, caps.cr0_fixed1)
            || !fixed(self.cr4, caps.cr4_fixed0, caps.cr4_fixed1)
        {
            return Err(VmFail::Exception(vector::GP));
        }
        if !self.valid_region(pa) || self.revision_at(pa) != Some(caps.revision) {
            return Err(VmFail::Invalid);
        }
        *self.vmx.root() = Context { vmxon: Some(pa), current: None };
        Ok(())
    }

    /// VMXOFF.
    ///
    /// # Errors
    /// #UD outside VMX root operation.
    pub fn vmxoff(&mut self) -> VmResult {
        self.in_vmx_root()?;
        self.store_current();
        *self.vmx.root() = Context::default();
        Ok(())
    }

    /// Writes the processor's copy of the current VMCS back to memory.
    fn store_current(&mut self) {
        let Some((pa, vmcs)) = self.vmx.root().current.take() else { return };
        if let Some(mut bytes) = self.region(pa) {
            vmcs.store(&mut bytes);
            // The region was readable, so it is writable.
            let _ = self.arena.write_bytes(pa, &bytes);
        }
    }

    /// VMCLEAR: the VMCS at `pa` becomes clear, inactive and not current, with its data in memory.
    ///
    /// # Errors
    /// VMfailValid 2 for a bad address, 3 for the VMXON region.
    pub fn vmclear(&mut self, pa: u64) -> VmResult {
        self.in_vmx_root()?;
        if !self.valid_region(pa) || self.region(pa).is_none() {
            return Err(self.fail(VmInstructionError::VmclearInvalidAddress));
        }
        if self.vmx.root().vmxon == Some(pa) {
            return Err(self.fail(VmInstructionError::VmclearVmxonPointer));
        }
        if self.vmx.current_pointer() == pa {
            self.store_current();
        }
        if let Some(mut bytes) = self.region(pa) {
            let mut vmcs = Vmcs::load(&bytes);
            vmcs.launch_state = LaunchState::Clear;
            vmcs.store(&mut bytes);
            let _ = self.arena.write_bytes(pa, &bytes);
        }
        Ok(())
    }

    /// VMPTRLD: the VMCS at `pa` becomes the current one.
    ///
    /// # Errors
    /// VMfailValid 9 for a bad address, 10 for the VMXON region, 11 for a wrong revision identifier.
    pub fn vmptrld(&mut self, pa: u64) -> VmResult {
        self.in_vmx_root()?;
        if !self.valid_region(pa) {
            return Err(self.fail(VmInstructionError::VmptrldInvalidAddress));
        }
        if self.vmx.root().vmxon == Some(pa) {
            return Err(self.fail(VmInstructionError::VmptrldVmxonPointer));
        }
        if self.vmx.current_pointer() == pa {
            return Ok(());
        }
        let Some(bytes) = self.region(pa) else {
            return Err(self.fail(VmInstructionError::VmptrldInvalidAddress));
        };
        let vmcs = Vmcs::load(&bytes);
        if vmcs.revision != self.vmx.caps.revision || vmcs.shadow {
            return Err(self.fail(VmInstructionError::VmptrldIncorrectRevision));
        }
        self.store_current();
        self.vmx.root().current = Some((pa, Box::new(vmcs)));
        Ok(())
    }

    /// VMPTRST: the current-VMCS pointer, all-ones if there is none.
    ///
    /// # Errors
    /// #UD outside VMX root operation.
    pub fn vmptrst(&self) -> VmResult<u64> {
        self.in_vmx_root()?;
        Ok(self.vmx.current_pointer())
    }

    /// VMREAD by encoding.
    ///
    /// # Errors
    /// VMfailInvalid without a current VMCS, VMfailValid 12 for an encoding that does not exist.
    pub fn vmread(&mut self, encoding: u64) -> VmResult<u64> {
        self.in_vmx_root()?;
        let caps = self.vmx.caps.clone();
        let value = self.vmx.vmcs()?.vmread(encoding, &caps);
        value.map_err(|e| self.fail(e))
    }

    /// VMWRITE by encoding.
    ///
    /// # Errors
    /// As [`Cpu::vmread`].
    pub fn vmwrite(&mut self, encoding: u64, value: u64) -> VmResult {
        self.in_vmx_root()?;
        let caps = self.vmx.caps.clone();
        let done = self.vmx.vmcs_mut()?.vmwrite(encoding, value, &caps);
        done.map_err(|e| self.fail(e))
    }

    /// VMREAD of a field that exists, without decoding its encoding: 0 without a current VMCS.
    #[inline]
    pub fn vmcs_read(&self, field: Field) -> u64 {
        self.vmx.vmcs().map_or(0, |v| v.read(field))
    }

    /// VMWRITE of a field that exists; nothing without a current VMCS.
    #[inline]
    pub fn vmcs_write(&mut self, field: Field, value: u64) {
        if let Ok(v) = self.vmx.vmcs_mut() {
            v.write(field, value);
        }
    }

    /// The current VMCS, for dumps.
    pub fn current_vmcs(&self) -> Option<&Vmcs> {
        self.vmx.vmcs().ok()
    }

    /// INVEPT.
    ///
    /// # Errors
    /// VMfailValid 28 for a type that does not exist, or an EPT pointer that VM entry would refuse.
    pub fn invept(&mut self, kind: u64, eptp: u64) -> VmResult {
        self.in_vmx_root()?;
        match kind {
            1 if trapline_memory::ept::eptp_valid(eptp, self.model.phys_bits()) => {
                self.mmu.forget_ept(eptp);
            }
            2 => self.mmu.flush_physical(),
            _ => return Err(self.fail(VmInstructionError::InvalidOperand)),
        }
        Ok(())
    }

    /// INVVPID: `kind` 0 address, 1 single context, 2 all contexts, 3 all but globals.
    ///
    /// # Errors
    /// VMfailValid 28 for a bad type, VPID or address.
    pub fn invvpid(&mut self, kind: u64, vpid: u16, address: u64) -> VmResult {
        self.in_vmx_root()?;
        if kind > 3 || kind != 2 && vpid == 0 || kind == 0 && !self.canonical_in_register(address) {
            return Err(self.fail(VmInstructionError::InvalidOperand));
        }
        match kind {
            0 => self.mmu.forget_page(address),
            2 => self.mmu.flush_all(),
            _ => self.mmu.forget_spaces(|key| key >> 12 == u32::from(vpid)),
        }
        Ok(())
    }

    /// The time-stamp counter as the running software reads it.
    pub fn tsc(&self) -> u64 {
        let raw = self.raw_tsc();
        if !self.nonroot || !self.vmx.ctl.primary.contains(PrimaryControls::TSC_OFFSETTING) {
            return raw;
        }
        let scaled = if self.vmx.ctl.secondary.contains(SecondaryControls::TSC_SCALING) {
            ((u128::from(raw) * u128::from(self.vmx.tsc_multiplier)) >> 48) as u64
        } else {
            raw
        };
        scaled.wrapping_add(self.vmx.tsc_offset)
    }
}
