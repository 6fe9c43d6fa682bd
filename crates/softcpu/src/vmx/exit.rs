//! VM exits (SDM vol. 3 chapter 28): recording them, saving the guest's state, loading the host's.

use trapline_vmx::controls::{ExitControls, SecondaryControls};
use trapline_vmx::{Field, Vmcs};

use super::entry::SEGMENTS;
use super::reason;
use crate::cpu::{Cpu, EventKind, ExitInfo, Segment, Table, attr, cr0, cr4, efer, reg, seg, shadow, vector};
use crate::flags::bits;

/// VMX-abort indicators (§28.7): guest MSRs could not be saved, host MSRs could not be loaded.
const ABORT_STORE: u32 = 1;
const ABORT_LOAD: u32 = 4;

impl Cpu {
    /// A VM exit: fills in the VMCS and goes back to root operation.
    pub(super) fn leave_guest(&mut self, vmcs: &mut Vmcs, info: &ExitInfo) {
        self.save_guest(vmcs, info);
        self.record_exit(vmcs, info);
        // What the area holds are the registers themselves, without TSC offset.
        self.nonroot = false;
        if !self.store_msrs(vmcs) {
            self.abort(vmcs, ABORT_STORE);
            return;
        }
        self.load_host(vmcs);
    }

    /// An entry that failed in the guest state or MSR loading: an exit that saves nothing.
    pub(super) fn refuse_entry(&mut self, vmcs: &mut Vmcs, why: u16, qualification: u64) {
        vmcs.write(Field::ExitReason, u64::from(why) | 1 << 31);
        vmcs.write(Field::ExitQualification, qualification);
        self.load_host(vmcs);
    }

    /// The exit-information fields.
    fn record_exit(&mut self, vmcs: &mut Vmcs, info: &ExitInfo) {
        vmcs.write(Field::ExitReason, u64::from(info.reason));
        vmcs.write(Field::ExitQualification, info.qualification);
        vmcs.write(Field::GuestLinearAddress, info.linear);
        vmcs.write(Field::GuestPhysicalAddress, info.physical);
        let mut interruption = info.interruption;
        if std::mem::take(&mut self.nmi_unblocked) && self.delivering.is_none() {
            // The instruction was an IRET that had ended blocking by NMI.
            let ept = [reason::EPT_VIOLATION, reason::PML_FULL].contains(&info.reason);
            if ept {
                vmcs.write(Field::ExitQualification, info.qualification | 1 << 12);
            } else if interruption >> 31 != 0 && interruption as u8 != vector::DF {
                interruption |= 1 << 12;
            }
        }
        vmcs.write(Field::ExitInterruptionInfo, u64::from(interruption));
        vmcs.write(Field::ExitInterruptionErrorCode, u64::from(info.error));
        vmcs.write(Field::ExitInstructionInfo, u64::from(info.instruction_info));
        let mut len = if info.by_instruction { self.last_len } else { 0 };
        let mut vectoring = 0;
        if let Some(event) = self.delivering.take() {
            vectoring = u32::from(event.vector)
                | (event.kind as u32) << 8
                | u32::from(event.error.is_some()) << 11
                | 1 << 31;
            vmcs.write(Field::IdtVectoringErrorCode, u64::from(event.error.unwrap_or(0)));
            if event.len != 0 {
                len = event.len;
            }
        }
        vmcs.write(Field::IdtVectoringInfo, u64::from(vectoring));
        vmcs.write(Field::ExitInstructionLength, u64::from(len));
        // The injected event is spent.
        let injected = vmcs.read(Field::EntryInterruptionInfo);
        vmcs.write(Field::EntryInterruptionInfo, injected & !(1 << 31));
    }

    /// The guest-state area (§28.3).
    fn save_guest(&mut self, vmcs: &mut Vmcs, info: &ExitInfo) {
        let exit = self.vmx.ctl.exit;
        vmcs.write(Field::GuestCr0, self.cr0);
        vmcs.write(Field::GuestCr3, self.cr3);
        vmcs.write(Field::GuestCr4, self.cr4);
        if exit.contains(ExitControls::SAVE_DEBUG_CONTROLS) {
            vmcs.write(Field::GuestDr7, self.dr[7]);
            vmcs.write(Field::GuestDebugctl, self.msr.debugctl);
        }
        if exit.contains(ExitControls::SAVE_EFER) {
            vmcs.write(Field::GuestEfer, self.efer);
        }
        if exit.contains(ExitControls::SAVE_PAT) {
            vmcs.write(Field::GuestPat, self.msr.pat);
        }
        // IA32_VMX_MISC bit 5: the IA-32e mode guest control follows EFER.LMA.
        let entry = vmcs.read(Field::EntryControls) & !(1 << 9);
        vmcs.write(Field::EntryControls, entry | u64::from(self.lma()) << 9);
        vmcs.write(Field::GuestSysenterCs, self.msr.sysenter_cs);
        vmcs.write(Field::GuestSysenterEsp, self.msr.sysenter_esp);
        vmcs.write(Field::GuestSysenterEip, self.msr.sysenter_eip);
        for (s, f) in SEGMENTS.iter().enumerate() {
            let mut d = self.seg[s];
            if s == seg::SS {
                // The privilege level is SS.DPL, whatever descriptor was loaded.
                d.attr = d.attr & !0x60 | u32::from(self.cpl) << 5;
            }
            vmcs.write(f.selector, u64::from(d.selector));
            vmcs.write(f.base, d.base);
            vmcs.write(f.limit, u64::from(d.limit));
            vmcs.write(f.rights, u64::from(d.attr));
        }
        vmcs.write(Field::GuestGdtrBase, self.gdtr.base);
        vmcs.write(Field::GuestGdtrLimit, u64::from(self.gdtr.limit));
        vmcs.write(Field::GuestIdtrBase, self.idtr.base);
        vmcs.write(Field::GuestIdtrLimit, u64::from(self.idtr.limit));
        vmcs.write(Field::GuestRsp, self.regs[usize::from(reg::RSP)]);
        vmcs.write(Field::GuestRip, self.rip);
        vmcs.write(Field::GuestRflags, self.exit_rflags(info));
        let mut blocking = self.shadow;
        if self.delivering.is_some_and(|e| e.kind == EventKind::Nmi) {
            // An NMI whose delivery did not come to its end blocks others all the same.
            blocking |= shadow::NMI;
        }
        vmcs.write(Field::GuestInterruptibility, u64::from(blocking));
        vmcs.write(Field::GuestActivity, self.activity as u64);
        vmcs.write(Field::GuestPendingDebug, self.pending_debug);
        if self.vmx.ctl.secondary.contains(SecondaryControls::ENABLE_EPT) {
            let pdptes = [Field::GuestPdpte0, Field::GuestPdpte1, Field::GuestPdpte2, Field::GuestPdpte3];
            for (f, v) in pdptes.into_iter().zip(self.mmu.pdptes) {
                vmcs.write(f, v);
            }
        }
        if exit.contains(ExitControls::SAVE_PREEMPTION_TIMER)
            && let Some(deadline) = self.vmx.preemption_deadline
        {
            let expired = info.reason == reason::PREEMPTION_TIMER;
            let left = if expired { 0 } else { deadline.saturating_sub(self.raw_tsc()) };
            vmcs.write(Field::PreemptionTimer, left >> self.vmx.caps.preemption_timer_shift());
        }
        if let Some(pml) = &self.vmx.pml {
            vmcs.write(Field::PmlIndex, u64::from(pml.index()));
        }
        self.pending_debug = 0;
    }

    /// RFLAGS as a VM exit saves it: RF is set where it would be in the image that delivery of the event
    /// pushes, and for EPT violations and their like, which restart the instruction (§28.3.3).
    fn exit_rflags(&self, info: &ExitInfo) -> u64 {
        let restarts = [reason::EPT_VIOLATION, reason::EPT_MISCONFIG, reason::PML_FULL, reason::APIC_ACCESS];
        let exception = info.interruption >> 31 != 0 && info.interruption >> 8 & 7 == 3;
        let rf = match self.delivering {
            _ if exception => info.interruption as u8 != vector::DB,
            Some(event) => event.is_fault(),
            None => restarts.contains(&info.reason),
        };
        self.get_rflags() | if rf { bits::RF } else { 0 }
    }

    /// A VMX abort: the processor shuts down.
    fn abort(&mut self, vmcs: &mut Vmcs, why: u32) {
        vmcs.abort = why;
        self.vmx.disarm();
        (self.vmx.eptp, self.vmx.vpid, self.vmx.pml) = (None, 0, None);
        self.activity = crate::cpu::Activity::Shutdown;
    }

    /// The VM-exit MSR-store area; `false` if an entry cannot be stored.
    fn store_msrs(&mut self, vmcs: &Vmcs) -> bool {
        let area = vmcs.read(Field::ExitMsrStoreAddress);
        (0..u64::from(vmcs.read32(Field::ExitMsrStoreCount))).all(|i| {
            let at = area.wrapping_add(i * 16);
            let Some(head) = self.arena.read_u64(at) else { return false };
            let index = head as u32;
            // x2APIC registers and IA32_SMBASE cannot be stored this way.
            let barred = matches!(index, 0x800..=0x8ff | 0x9e);
            if head >> 32 != 0 || barred {
                return false;
            }
            let stored = self.read_msr(index).ok().and_then(|v| self.arena.write_u64(at + 8, v));
            stored.is_some()
        })
    }

    /// Loads the host state (§28.5) and the VM-exit MSR-load area.
    fn load_host(&mut self, vmcs: &mut Vmcs) {
        let read = |f: Field| vmcs.read(f);
        let exit = vmcs.exit_controls();
        let long = exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        self.nonroot = false;
        self.vmx.disarm();
        let vpids = vmcs.secondary_controls().contains(SecondaryControls::ENABLE_VPID);
        (self.vmx.eptp, self.vmx.vpid, self.vmx.pml) = (None, 0, None);
        // ET, CD, NW and some others keep their values.
        let kept = cr0::CD | cr0::NW | cr0::ET;
        self.cr0 = read(Field::HostCr0) & !kept | self.cr0 & kept;
        self.cr3 = read(Field::HostCr3);
        self.cr4 = read(Field::HostCr4) | if long { cr4::PAE } else { 0 };
        self.dr[7] = 0x400;
        self.msr.debugctl = 0;
        if exit.contains(ExitControls::LOAD_EFER) {
            self.efer = read(Field::HostEfer);
        } else {
            let bits = efer::LME | efer::LMA;
            self.efer = self.efer & !bits | if long { bits } else { 0 };
        }
        if exit.contains(ExitControls::LOAD_PAT) {
            self.msr.pat = read(Field::HostPat);
        }
        self.msr.sysenter_cs = read(Field::HostSysenterCs);
        self.msr.sysenter_esp = read(Field::HostSysenterEsp);
        self.msr.sysenter_eip = read(Field::HostSysenterEip);
        let data = |selector: Field, base: u64| {
            let selector = read(selector) as u16;
            let unusable = if selector == 0 { attr::UNUSABLE } else { 0 };
            Segment { selector, base, limit: u32::MAX, attr: 0xc093 | unusable }
        };
        let mode = if long { attr::L } else { attr::DB };
        self.seg[seg::CS] = Segment {
            selector: read(Field::HostCsSelector) as u16,
            base: 0,
            limit: u32::MAX,
            attr: 0x809b | mode,
        };
        self.seg[seg::SS] = data(Field::HostSsSelector, 0);
        self.seg[seg::DS] = data(Field::HostDsSelector, 0);
        self.seg[seg::ES] = data(Field::HostEsSelector, 0);
        self.seg[seg::FS] = data(Field::HostFsSelector, read(Field::HostFsBase));
        self.seg[seg::GS] = data(Field::HostGsSelector, read(Field::HostGsBase));
        let tr = read(Field::HostTrSelector) as u16;
        self.seg[seg::TR] = Segment { selector: tr, base: read(Field::HostTrBase), limit: 0x67, attr: 0x8b };
        self.seg[seg::LDTR] = Segment { attr: attr::UNUSABLE, ..Segment::default() };
        self.gdtr = Table { base: read(Field::HostGdtrBase), limit: 0xffff };
        self.idtr = Table { base: read(Field::HostIdtrBase), limit: 0xffff };
        self.regs[usize::from(reg::RSP)] = read(Field::HostRsp);
        self.rip = read(Field::HostRip);
        self.rflags = bits::FIXED;
        self.flags = crate::flags::Flags::default();
        self.flags.set(0);
        self.cpl = 0;
        self.activity = crate::cpu::Activity::Active;
        // There is no blocking by STI or MOV SS after a VM exit; root software has no NMIs to block.
        (self.shadow, self.shadow_is_new, self.step_pending) = (0, false, false);
        (self.delivering, self.pending_debug) = (None, 0);
        self.paging_changed();
        self.mode_changed();
        // The host has VPID 0: its own address space.
        self.mmu.set_ept(None);
        if !vpids {
            self.mmu.forget_spaces(|key| key >> 12 == 0);
        }
        self.select_address_space(false);
        let (area, count) = (vmcs.read(Field::ExitMsrLoadAddress), vmcs.read32(Field::ExitMsrLoadCount));
        if self.load_msrs(area, count).is_err() {
            self.abort(vmcs, ABORT_LOAD);
        }
    }
}
