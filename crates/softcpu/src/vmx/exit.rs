//! VM exits (SDM vol. 3 chapter 28): recording them, saving the guest's state, loading the host's.

use trapline_vmx::controls::{ExitControls, PinControls, SecondaryControls};
use trapline_vmx::{Field, Vmcs};

use super::entry::SEGMENTS;
use super::reason;
use crate::cpu::{Cpu, EventKind, ExitInfo, Segment, Table, attr, cr0, cr4, efer, reg, seg};
use crate::flags::bits;

impl Cpu {
    /// A VM exit: fills in the VMCS and goes back to root operation.
    pub(super) fn leave_guest(&mut self, vmcs: &mut Vmcs, info: &ExitInfo) {
        self.record_exit(vmcs, info);
        self.save_guest(vmcs, info);
        self.store_msrs(vmcs);
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
        vmcs.write(Field::ExitInterruptionInfo, u64::from(info.interruption));
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
            if event.kind == EventKind::Nmi && !self.vmx.ctl.pin.contains(PinControls::VIRTUAL_NMIS) {
                self.shadow |= crate::cpu::shadow::NMI;
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
        self.guest_cr0_kept = self.cr0;
        vmcs.write(Field::GuestCr0, self.cr0);
        vmcs.write(Field::GuestCr3, self.cr3);
        vmcs.write(Field::GuestCr4, self.cr4);
        if exit.contains(ExitControls::SAVE_DEBUG_CONTROLS) {
            vmcs.write(Field::GuestDr7, self.dr[7]);
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
        vmcs.write(Field::GuestRflags, self.get_rflags());
        vmcs.write(Field::GuestInterruptibility, u64::from(self.shadow));
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
        self.pending_debug = 0;
    }

    /// The VM-exit MSR-store area; an entry that cannot be stored would be a VMX abort, and is skipped.
    fn store_msrs(&mut self, vmcs: &Vmcs) {
        let area = vmcs.read(Field::ExitMsrStoreAddress);
        for i in 0..u64::from(vmcs.read32(Field::ExitMsrStoreCount)) {
            let at = area.wrapping_add(i * 16);
            let Some(head) = self.arena.read_u64(at) else { return };
            if let Ok(value) = self.read_msr(head as u32) {
                self.arena.write_u64(at + 8, value);
            }
        }
    }

    /// Loads the host state (§28.5) and the VM-exit MSR-load area.
    fn load_host(&mut self, vmcs: &mut Vmcs) {
        let read = |f: Field| vmcs.read(f);
        let exit = vmcs.exit_controls();
        let long = exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        self.nonroot = false;
        self.vmx.disarm();
        (self.vmx.eptp, self.vmx.vpid) = (None, 0);
        // ET, CD, NW and some others keep their values.
        let kept = cr0::CD | cr0::NW | cr0::ET;
        self.cr0 = read(Field::HostCr0) & !kept | self.cr0 & kept;
        self.cr3 = read(Field::HostCr3);
        self.cr4 = read(Field::HostCr4) | if long { cr4::PAE } else { 0 };
        self.dr[7] = 0x400;
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
        self.paging_changed();
        self.mode_changed();
        // The host has VPID 0: its own address space.
        self.select_address_space(false);
        let (area, count) = (vmcs.read(Field::ExitMsrLoadAddress), vmcs.read32(Field::ExitMsrLoadCount));
        if self.load_msrs(area, count).is_err() {
            // VMX abort 4: the processor would shut down.
            vmcs.abort = 4;
            self.activity = crate::cpu::Activity::Shutdown;
        }
    }
}
