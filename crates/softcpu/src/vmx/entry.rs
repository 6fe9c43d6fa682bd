//! VM entry (SDM vol. 3 chapter 27): VMLAUNCH and VMRESUME.

use std::sync::Arc;

use trapline_vmx::checks::{self, CheckError, Env};
use trapline_vmx::controls::{EntryControls, PinControls, PrimaryControls, SecondaryControls};
use trapline_vmx::exit::{InterruptionInfo, InterruptionType, VmInstructionError};
use trapline_vmx::{Capabilities, Field, LaunchState, Vmcs};

use super::apic::Apic;
use super::ept::Pml;
use super::intercept::PauseLoop;
use super::{Controls, VmFail, VmResult, reason};
use crate::cpu::{
    Activity, Cpu, Event, EventKind, ExitInfo, Segment, Signals, cr0, efer, seg, shadow, vector,
};

/// What an entry failed with after the guest state was looked at: exit reason and qualification.
type Refused = (u16, u64);

/// The segment registers in VMCS order: selector field, and the others by fixed distances.
pub(super) struct SegmentFields {
    pub selector: Field,
    pub base: Field,
    pub limit: Field,
    pub rights: Field,
}

macro_rules! segment_fields {
    ($($s:ident: $sel:ident $base:ident $limit:ident $ar:ident),* $(,)?) => {
        /// Fields of each segment register, by number.
        pub(super) const SEGMENTS: [SegmentFields; 8] = [$(SegmentFields {
            selector: Field::$sel, base: Field::$base, limit: Field::$limit, rights: Field::$ar,
        }),*];
    };
}

segment_fields! {
    es: GuestEsSelector GuestEsBase GuestEsLimit GuestEsAccessRights,
    cs: GuestCsSelector GuestCsBase GuestCsLimit GuestCsAccessRights,
    ss: GuestSsSelector GuestSsBase GuestSsLimit GuestSsAccessRights,
    ds: GuestDsSelector GuestDsBase GuestDsLimit GuestDsAccessRights,
    fs: GuestFsSelector GuestFsBase GuestFsLimit GuestFsAccessRights,
    gs: GuestGsSelector GuestGsBase GuestGsLimit GuestGsAccessRights,
    ldtr: GuestLdtrSelector GuestLdtrBase GuestLdtrLimit GuestLdtrAccessRights,
    tr: GuestTrSelector GuestTrBase GuestTrLimit GuestTrAccessRights,
}

impl Cpu {
    /// VMLAUNCH: enters non-root operation and returns after the VM exit, whose particulars are in the
    /// VMCS. An entry that fails after the checks of controls and host state is a VM exit too.
    ///
    /// # Errors
    /// VMfailInvalid without a current VMCS; VMfailValid 26 with blocking by MOV SS, 4 if the VMCS is
    /// launched already, 7 and 8 for bad controls and host state. A VMX abort (MSR areas of the exit that
    /// cannot be stored or loaded) is no error: the processor is shut down then, and the region tells why.
    pub fn vmlaunch(&mut self) -> VmResult {
        self.enter(LaunchState::Clear, VmInstructionError::VmlaunchNotClear)
    }

    /// VMRESUME, for a VMCS that was launched.
    ///
    /// # Errors
    /// As [`Cpu::vmlaunch`], with 5 if the VMCS is not launched.
    pub fn vmresume(&mut self) -> VmResult {
        self.enter(LaunchState::Launched, VmInstructionError::VmresumeNotLaunched)
    }

    /// Why the guest state of the current VMCS would be refused, for whoever wants to know more than
    /// exit reason 33 says.
    pub fn explain_entry(&self) -> Option<CheckError> {
        let vmcs = self.vmx.vmcs().ok()?;
        let caps = self.vmx.caps.clone();
        self.with_env(&caps, |env| {
            checks::controls(vmcs, env)
                .and_then(|()| checks::host_state(vmcs, env))
                .and_then(|()| checks::guest_state(vmcs, env))
                .err()
        })
    }

    fn with_env<R>(&self, caps: &Capabilities, f: impl FnOnce(&Env<'_>) -> R) -> R {
        let read = |pa: u64| self.arena.read_u64(pa).unwrap_or(u64::MAX);
        let mut env = Env::new(caps, self.model.phys_bits(), &read);
        env.ia32e_mode = self.lma();
        env.linear_width = self.model.linear_bits();
        env.current_vmcs = self.vmx.current_pointer();
        f(&env)
    }

    fn enter(&mut self, state: LaunchState, wrong_state: VmInstructionError) -> VmResult {
        self.in_vmx_root()?;
        let Some((pointer, vmcs)) = self.vmx.root().current.take() else { return Err(VmFail::Invalid) };
        let caps: Arc<Capabilities> = self.vmx.caps.clone();
        let refused = if self.shadow & shadow::MOV_SS != 0 {
            Some(VmInstructionError::EntryBlockedByMovSs)
        } else if vmcs.launch_state != state {
            Some(wrong_state)
        } else {
            self.with_env(&caps, |env| {
                checks::controls(&vmcs, env).and_then(|()| checks::host_state(&vmcs, env))
            })
            .err()
            .map(|e| e.instruction_error().unwrap_or(VmInstructionError::InvalidControls))
        };
        if let Some(error) = refused {
            self.vmx.root().current = Some((pointer, vmcs));
            return Err(self.fail(error));
        }
        let guest = self.with_env(&caps, |env| checks::guest_state(&vmcs, env));
        let mut vmcs = vmcs;
        let exit = match guest {
            Err(e) => Err((reason::INVALID_GUEST_STATE, e.entry_failure().qualification())),
            Ok(()) => self.load_guest(&vmcs).map(|()| {
                vmcs.launch_state = LaunchState::Launched;
                let info = self.run_injected(&vmcs);
                // What the guest wrote before it asked for something (an IPI) is known before that happens.
                if self.signals.get() & Signals::CODE != 0 {
                    self.read_notes();
                }
                info
            }),
        };
        match exit {
            Ok(info) => self.leave_guest(&mut vmcs, &info),
            Err((why, qualification)) => self.refuse_entry(&mut vmcs, why, qualification),
        }
        self.vmx.root().current = Some((pointer, vmcs));
        Ok(())
    }

    /// Injects the event of the entry fields, and runs the guest.
    fn run_injected(&mut self, vmcs: &Vmcs) -> ExitInfo {
        let info = InterruptionInfo::from_bits(vmcs.read32(Field::EntryInterruptionInfo));
        if info.valid() && info.type_number() == InterruptionType::Other as u8 {
            self.vmx.trap_pending = true;
            self.vmx.arm(self.icount);
        } else if info.valid() {
            let event = self.entry_event(vmcs, info);
            self.mmu.replay.clear();
            if let Some(exit) = self.inject(event) {
                return exit;
            }
        }
        self.check_threshold_on_entry();
        self.run_guest()
    }

    /// Loads the guest state (SDM vol. 3 §27.3.2) and the MSR-load area. The state has been checked.
    fn load_guest(&mut self, vmcs: &Vmcs) -> Result<(), Refused> {
        self.load_controls(vmcs);
        let read = |f: Field| vmcs.read(f);
        let entry = self.vmx.ctl.entry;
        // CD, NW, ET and the reserved bits are not loaded.
        let kept = cr0::CD | cr0::NW | cr0::ET;
        self.cr0 = read(Field::GuestCr0) & !kept | self.cr0 & kept | cr0::ET;
        self.cr3 = read(Field::GuestCr3);
        self.cr4 = read(Field::GuestCr4);
        if entry.contains(EntryControls::LOAD_DEBUG_CONTROLS) {
            self.dr[7] = read(Field::GuestDr7) & !0xd000 | 0x400;
            self.msr.debugctl = read(Field::GuestDebugctl);
            if self.dr[7] & 0xff != 0 {
                // With breakpoints on, every access takes the slow path, which looks for them.
                self.mmu.flush_all();
            }
        }
        if entry.contains(EntryControls::LOAD_EFER) {
            self.efer = read(Field::GuestEfer);
        } else {
            let long = entry.contains(EntryControls::IA32E_MODE_GUEST);
            let lma = if long { efer::LMA } else { 0 };
            self.efer = self.efer & !efer::LMA | lma;
            if self.cr0 & cr0::PG != 0 {
                self.efer = self.efer & !efer::LME | if long { efer::LME } else { 0 };
            }
        }
        if entry.contains(EntryControls::LOAD_PAT) {
            self.msr.pat = read(Field::GuestPat);
        }
        self.msr.sysenter_cs = read(Field::GuestSysenterCs);
        self.msr.sysenter_esp = read(Field::GuestSysenterEsp);
        self.msr.sysenter_eip = read(Field::GuestSysenterEip);
        for (s, f) in SEGMENTS.iter().enumerate() {
            self.seg[s] = Segment {
                selector: read(f.selector) as u16,
                base: read(f.base),
                limit: vmcs.read32(f.limit),
                attr: vmcs.read32(f.rights),
            };
        }
        (self.gdtr.base, self.gdtr.limit) = (read(Field::GuestGdtrBase), read(Field::GuestGdtrLimit) as u16);
        (self.idtr.base, self.idtr.limit) = (read(Field::GuestIdtrBase), read(Field::GuestIdtrLimit) as u16);
        self.regs[usize::from(crate::cpu::reg::RSP)] = read(Field::GuestRsp);
        self.rip = read(Field::GuestRip);
        self.cpl = self.seg[seg::SS].dpl();
        self.nonroot = true;
        // MAXPHYADDR and paging decide what PDPTEs are: with EPT they come from the VMCS.
        let pdptes = [Field::GuestPdpte0, Field::GuestPdpte1, Field::GuestPdpte2, Field::GuestPdpte3];
        if self.vmx.ctl.secondary.contains(SecondaryControls::ENABLE_EPT) {
            self.mmu.pdptes = pdptes.map(read);
        } else if let Some(p) = self.read_pdptes(self.cr3) {
            self.mmu.pdptes = p;
        }
        self.shadow = vmcs.read32(Field::GuestInterruptibility) & 0xf;
        (self.shadow_is_new, self.nmi_unblocked) = (false, false);
        self.step_pending = false;
        self.pending_debug = read(Field::GuestPendingDebug);
        self.delivering = None;
        self.activity = match vmcs.read32(Field::GuestActivity) {
            1 => Activity::Hlt,
            2 => Activity::Shutdown,
            3 => Activity::WaitForSipi,
            _ => Activity::Active,
        };
        self.rflags = crate::flags::bits::FIXED;
        self.set_rflags(read(Field::GuestRflags));
        self.paging_changed();
        self.mode_changed();
        self.mmu.set_ept(self.vmx.eptp);
        // Without VPIDs, entries and exits flush VPID 0.
        let fresh = !self.vmx.ctl.secondary.contains(SecondaryControls::ENABLE_VPID);
        if fresh {
            self.mmu.forget_spaces(|key| key >> 12 == 0);
        }
        self.select_address_space(fresh);
        self.mmu.replay.rewind();
        self.load_msrs(read(Field::EntryMsrLoadAddress), vmcs.read32(Field::EntryMsrLoadCount))
            .map_err(|index| (reason::MSR_LOADING, u64::from(index) + 1))?;
        self.vmx.arm(self.icount);
        Ok(())
    }

    /// The TLB's number for the address space that CR3, CR4.PCIDE and the VPID name.
    pub(crate) fn select_address_space(&mut self, fresh: bool) {
        let pcid = if self.cr4 & crate::cpu::cr4::PCIDE != 0 { self.cr3 & 0xfff } else { 0 };
        self.mmu.select(u32::from(self.vmx.vpid) << 12 | pcid as u32, fresh);
    }

    /// Unpacks the controls.
    fn load_controls(&mut self, vmcs: &Vmcs) {
        let (secondary, primary) = (vmcs.secondary_controls(), vmcs.primary_controls());
        let v = &mut self.vmx;
        v.ctl = Controls {
            pin: vmcs.pin_controls(),
            primary,
            secondary,
            exit: vmcs.exit_controls(),
            entry: vmcs.entry_controls(),
        };
        v.exception_bitmap = vmcs.read32(Field::ExceptionBitmap);
        v.page_fault =
            (vmcs.read32(Field::PageFaultErrorCodeMask), vmcs.read32(Field::PageFaultErrorCodeMatch));
        v.cr0_mask = vmcs.read(Field::Cr0GuestHostMask);
        v.cr0_shadow = vmcs.read(Field::Cr0ReadShadow);
        v.cr4_mask = vmcs.read(Field::Cr4GuestHostMask);
        v.cr4_shadow = vmcs.read(Field::Cr4ReadShadow);
        let targets = [Field::Cr3Target0, Field::Cr3Target1, Field::Cr3Target2, Field::Cr3Target3];
        v.cr3_targets = (targets.map(|f| vmcs.read(f)), vmcs.read32(Field::Cr3TargetCount).min(4) as usize);
        v.tsc_offset = vmcs.read(Field::TscOffset);
        v.tsc_multiplier = vmcs.read(Field::TscMultiplier);
        v.io_bitmaps = [vmcs.read(Field::IoBitmapA), vmcs.read(Field::IoBitmapB)];
        v.msr_bitmap = vmcs.read(Field::MsrBitmap);
        let has = |c: SecondaryControls| secondary.contains(c);
        v.eptp = has(SecondaryControls::ENABLE_EPT).then(|| vmcs.read(Field::EptPointer));
        v.vpid = if has(SecondaryControls::ENABLE_VPID) { vmcs.read(Field::Vpid) as u16 } else { 0 };
        v.apic = Apic::new(vmcs, &v.ctl);
        v.pml = Pml::new(vmcs, &v.ctl);
        v.ve_area = has(SecondaryControls::EPT_VIOLATION_VE)
            .then(|| vmcs.read(Field::VirtualizationExceptionAddress));
        let limits = (vmcs.read(Field::PleGap), vmcs.read(Field::PleWindow));
        v.pause_loop = PauseLoop::new(has(SecondaryControls::PAUSE_LOOP_EXITING).then_some(limits));
        v.monitor_trap = primary.contains(PrimaryControls::MONITOR_TRAP_FLAG);
        v.trap_pending = false;
        let timer = v.ctl.pin.contains(PinControls::PREEMPTION_TIMER);
        let value = u64::from(vmcs.read32(Field::PreemptionTimer)) << v.caps.preemption_timer_shift();
        v.preemption_deadline = None;
        if timer {
            let now = self.raw_tsc();
            self.vmx.preemption_deadline = Some(now.wrapping_add(value));
        }
        debug_assert!(primary.contains(PrimaryControls::SECONDARY_CONTROLS) || secondary.is_empty());
    }

    /// Loads MSRs from an area of 16-byte entries; fails with the index of the first bad one.
    pub(super) fn load_msrs(&mut self, area: u64, count: u32) -> Result<(), u32> {
        for i in 0..count {
            let at = area.wrapping_add(u64::from(i) * 16);
            let (Some(head), Some(value)) = (self.arena.read_u64(at), self.arena.read_u64(at + 8)) else {
                return Err(i);
            };
            let index = head as u32;
            // FS.base, GS.base, x2APIC registers and the SMM ones may not be loaded this way.
            let barred = matches!(index, 0xc000_0100 | 0xc000_0101 | 0x800..=0x8ff | 0x9b | 0x9e);
            if head >> 32 != 0 || barred || self.write_msr(index, value).is_err() {
                return Err(i);
            }
        }
        Ok(())
    }

    /// The event that the VM-entry interruption-information field describes. Unlike one that comes about
    /// in the guest, it leaves CR2 and DR6 alone (§27.6.1.1).
    fn entry_event(&self, vmcs: &Vmcs, info: InterruptionInfo) -> Event {
        let kind = match info.type_number() {
            0 => EventKind::External,
            2 => EventKind::Nmi,
            4 => EventKind::SoftwareInterrupt,
            5 => EventKind::PrivilegedSoftwareException,
            6 => EventKind::SoftwareException,
            _ => EventKind::HardwareException,
        };
        let software = matches!(
            kind,
            EventKind::SoftwareInterrupt
                | EventKind::PrivilegedSoftwareException
                | EventKind::SoftwareException
        );
        Event {
            vector: info.vector(),
            kind,
            error: info.error_code().then(|| vmcs.read32(Field::EntryExceptionErrorCode)),
            len: if software { vmcs.read32(Field::EntryInstructionLength) as u8 } else { 0 },
            payload: if info.vector() == vector::PF { self.cr2 } else { 0 },
        }
    }
}
