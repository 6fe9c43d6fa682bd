//! VM exits, by reason.

use kvm_bindings::*;
use trapline_device::AccessSize;
use trapline_softcpu::cpu::{cr0, reg, shadow, vector};
use trapline_softcpu::mmu::DeviceAccess;
use trapline_vmx::Field;
use trapline_vmx::controls::EntryControls;
use trapline_vmx::exit::{
    BasicReason, CrAccess, CrAccessKind, ExitReason, InterruptionInfo, InterruptionType,
};
use trapline_vmx::state::AccessRights;

use super::memory::Memory;
use super::msr::GeneralProtection;
use super::pv;
use super::setup::CR0_HOST;
use super::vcpu::{Pending, SoftVcpu};
use crate::{Answer, Exit, IoEventAddress, Result};

impl SoftVcpu {
    /// Handles a VM exit. `None`: enter again.
    pub(super) fn handle_exit(&mut self, memory: &Memory) -> Result<Option<Exit>> {
        let reason = ExitReason::from_bits(self.root.cpu.vmcs_read(Field::ExitReason) as u32);
        if let Some(n) = self.reasons.get_mut(usize::from(reason.basic_number())) {
            *n += 1;
        }
        if reason.entry_failure() && self.retry_with_ept() {
            return Ok(None);
        }
        if reason.entry_failure() {
            let qualification = self.root.cpu.vmcs_read(Field::ExitQualification);
            let why = self.root.cpu.explain_entry();
            tracing::error!("vcpu {}: {reason} ({qualification}): {why:?}", self.mailbox.id);
            return Ok(Some(Exit::FailEntry { reason: reason.into_bits().into() }));
        }
        self.keep_vectoring();
        use BasicReason as R;
        let exit = match reason.basic() {
            Some(R::ExternalInterrupt | R::PreemptionTimer | R::InterruptWindow | R::NmiWindow) => None,
            Some(R::Io) => return Ok(self.io_exit(memory)),
            Some(R::EptViolation) => self.ept_violation(memory),
            Some(R::Hlt) => self.halt(),
            Some(R::Cpuid) => {
                self.execute_cpuid();
                None
            }
            Some(R::Rdmsr) => {
                self.execute_rdmsr();
                None
            }
            Some(R::Wrmsr) => {
                self.execute_wrmsr(memory);
                None
            }
            Some(R::CrAccess) => {
                self.cr_access(memory);
                None
            }
            Some(R::Invlpg) => {
                self.invlpg(memory);
                None
            }
            Some(R::Invpcid) => {
                self.invpcid(memory);
                None
            }
            Some(R::MonitorTrapFlag) => {
                self.stepped();
                None
            }
            Some(R::Xsetbv) => {
                self.execute_xsetbv();
                None
            }
            Some(R::MovDr) => {
                self.mov_dr();
                None
            }
            Some(R::Invd | R::Wbinvd) => {
                self.skip_instruction();
                None
            }
            Some(R::Pause) => {
                // It spins for what another processor does, which may wait for this one's core.
                std::thread::yield_now();
                self.skip_instruction();
                None
            }
            Some(R::TaskSwitch) => {
                self.task_switch();
                None
            }
            Some(R::Vmcall) if self.has_hypercalls() => {
                self.hypercall();
                None
            }
            Some(R::TripleFault) => Some(Exit::Shutdown),
            Some(R::ExceptionOrNmi) => self.exception_exit(memory),
            Some(
                R::Getsec
                | R::Vmcall
                | R::Vmclear
                | R::Vmlaunch
                | R::Vmptrld
                | R::Vmptrst
                | R::Vmread
                | R::Vmresume
                | R::Vmwrite
                | R::Vmxoff
                | R::Vmxon
                | R::Invept
                | R::Invvpid
                | R::Vmfunc
                | R::Rsm,
            ) => {
                self.inject_fault(vector::UD, None);
                None
            }
            _ => {
                tracing::error!("vcpu {}: unexpected VM exit: {reason}", self.mailbox.id);
                let data = [reason.basic_number().into(), self.rip(), 0, 0];
                Some(self.internal_error(KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, data))
            }
        };
        Ok(exit)
    }

    /// The guest's RIP.
    pub(super) fn rip(&self) -> u64 {
        self.root.cpu.vmcs_read(Field::GuestRip)
    }

    /// Goes on behind the instruction that exited.
    pub(super) fn skip_instruction(&mut self) {
        let cpu = &mut self.root.cpu;
        let len = cpu.vmcs_read(Field::ExitInstructionLength);
        let mut rip = cpu.vmcs_read(Field::GuestRip).wrapping_add(len);
        if !self.mode64() {
            rip &= 0xffff_ffff;
        }
        let blocking = self.blocking() & !(shadow::STI | shadow::MOV_SS);
        let cpu = &mut self.root.cpu;
        cpu.vmcs_write(Field::GuestRip, rip);
        cpu.vmcs_write(Field::GuestInterruptibility, blocking.into());
        self.trap_after_exit();
    }

    /// Whether the guest executes 64-bit code.
    pub(super) fn mode64(&self) -> bool {
        let entry = EntryControls::from_bits_retain(self.root.cpu.vmcs_read(Field::EntryControls) as u32);
        let code = AccessRights::from_bits(self.root.cpu.vmcs_read(Field::GuestCsAccessRights) as u32);
        entry.contains(EntryControls::IA32E_MODE_GUEST) && code.long()
    }

    /// Current privilege level: SS.DPL.
    pub(super) fn cpl(&self) -> u8 {
        AccessRights::from_bits(self.root.cpu.vmcs_read(Field::GuestSsAccessRights) as u32).dpl()
    }

    /// A general register.
    pub(super) fn reg(&self, n: u8) -> u64 {
        if n == reg::RSP {
            return self.root.cpu.vmcs_read(Field::GuestRsp);
        }
        self.root.cpu.regs.get(usize::from(n & 15)).copied().unwrap_or(0)
    }

    /// Sets a general register.
    pub(super) fn set_reg(&mut self, n: u8, value: u64) {
        if n == reg::RSP {
            self.root.cpu.vmcs_write(Field::GuestRsp, value);
        } else if let Some(place) = self.root.cpu.regs.get_mut(usize::from(n & 15)) {
            *place = value;
        }
    }

    /// EDX:EAX.
    fn edx_eax(&self) -> u64 {
        self.reg(reg::RAX) & 0xffff_ffff | self.reg(reg::RDX) << 32
    }

    fn halt(&mut self) -> Option<Exit> {
        self.skip_instruction();
        if !self.machine.config.local_apic {
            return Some(Exit::Halt);
        }
        self.mp_state = KVM_MP_STATE_HALTED;
        None
    }

    /// The CPUID entry of a leaf.
    pub(super) fn leaf(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.cpuid.iter().find(|leaf| {
            let indexed = leaf.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            leaf.function == function && (!indexed || leaf.index == index)
        })
    }

    fn execute_cpuid(&mut self) {
        let (function, index) = (self.reg(reg::RAX) as u32, self.reg(reg::RCX) as u32);
        let [eax, ebx, ecx, edx] = self.cpuid_values(function, index);
        for (n, value) in [(reg::RAX, eax), (reg::RBX, ebx), (reg::RCX, ecx), (reg::RDX, edx)] {
            self.set_reg(n, value.into());
        }
        self.skip_instruction();
    }

    /// What CPUID says: the leaves that were set, and what depends on the state.
    fn cpuid_values(&self, function: u32, index: u32) -> [u32; 4] {
        let max = |first: u32| self.leaf(first, 0).map_or(0, |leaf| leaf.eax);
        let beyond = function > max(function & 0x8000_0000);
        let intel = self.leaf(0, 0).is_some_and(|leaf| leaf.ebx == u32::from_le_bytes(*b"Genu"));
        let hypervisor = self.leaf(function, index).is_some();
        // Beyond the last leaf Intel processors answer as for the last basic one.
        let function = if beyond && intel && !hypervisor { max(0) } else { function };
        let Some(leaf) = self.leaf(function, index) else {
            // A subleaf that is not there: zeros, but for the topology leaf's own number.
            let edx = self.leaf(function, 0).map_or(0, |leaf| leaf.edx);
            return if function == 0xb { [0, 0, index & 0xff, edx] } else { [0; 4] };
        };
        let mut values = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
        let cr4 = self.guest_cr4();
        let mut follow = |word: usize, bit: u32, on: bool| {
            if let Some(v) = values.get_mut(word) {
                *v = *v & !(1 << bit) | u32::from(on) << bit;
            }
        };
        match function {
            1 => {
                follow(2, 27, cr4 & 1 << 18 != 0);
                follow(3, 9, leaf.edx & 1 << 9 != 0 && self.apic_base() & 1 << 11 != 0);
            }
            7 if index == 0 => follow(2, 4, cr4 & 1 << 22 != 0),
            // The size of the XSAVE area with the components that are enabled, in either format.
            0xd if index <= 1 => {
                let xcr0 = self.root.cpu.xcr0;
                let enabled = (2..63).filter(|n| xcr0 >> n & 1 != 0).filter_map(|n| self.leaf(0xd, n));
                let end = match index {
                    0 => enabled.map(|component| component.ebx.saturating_add(component.eax)).max(),
                    _ => enabled
                        .map(|component| component.eax)
                        .reduce(u32::saturating_add)
                        .map(|sum| sum.saturating_add(576)),
                };
                values[1] = end.unwrap_or(576);
            }
            _ => {}
        }
        values
    }

    fn execute_rdmsr(&mut self) {
        let index = self.reg(reg::RCX) as u32;
        match self.read_msr(index) {
            Ok(value) => {
                self.set_reg(reg::RAX, value & 0xffff_ffff);
                self.set_reg(reg::RDX, value >> 32);
                self.skip_instruction();
            }
            Err(_) => {
                tracing::debug!("rdmsr {index:#x} at {:#x}: no such register", self.rip());
                self.inject_gp();
            }
        }
    }

    fn execute_wrmsr(&mut self, memory: &Memory) {
        let (index, value) = (self.reg(reg::RCX) as u32, self.edx_eax());
        let written = match index {
            super::msr::EFER => self.write_guest_efer(value, memory),
            pv::msr::EOI if !pv::eoi_in_memory(value, memory) => Err(GeneralProtection),
            pv::msr::WALL_CLOCK | pv::msr::WALL_CLOCK_OLD => {
                self.write_msr(index, value).map(|()| self.write_wall_clock(value, memory))
            }
            _ => self.write_msr(index, value),
        };
        match written {
            Ok(()) => self.skip_instruction(),
            Err(_) => {
                tracing::debug!("wrmsr {index:#x}, {value:#x} at {:#x}: refused", self.rip());
                self.inject_gp();
            }
        }
    }

    /// Whether XCR0 can have this value (SDM vol. 1 §13.3).
    pub(super) fn xcr0_valid(&self, value: u64) -> bool {
        let supported = self.leaf(0xd, 0).map_or(1, |leaf| u64::from(leaf.eax) | u64::from(leaf.edx) << 32);
        let avx_without_sse = value & 0b100 != 0 && value & 0b10 == 0;
        value & 1 != 0 && value & !(supported | 1) == 0 && !avx_without_sse
    }

    fn execute_xsetbv(&mut self) {
        let value = self.edx_eax();
        if self.cpl() != 0 || self.reg(reg::RCX) as u32 != 0 || !self.xcr0_valid(value) {
            return self.inject_gp();
        }
        self.root.cpu.xcr0 = value;
        self.skip_instruction();
    }

    /// MOV to CR0 or CR4 that changes a bit which the guest does not own; CR8; with shadow paging, CR3 too.
    fn cr_access(&mut self, memory: &Memory) {
        let access = CrAccess::from_bits(self.root.cpu.vmcs_read(Field::ExitQualification));
        match (access.cr(), access.kind()) {
            (0 | 3 | 4, _) if self.shadowing.is_some() => self.paging_register(access, memory),
            (0, CrAccessKind::MovTo) => self.host_bits_of_cr0(self.reg(access.register())),
            // VMXE and bits that do not exist.
            (4, CrAccessKind::MovTo) => self.inject_gp(),
            (8, CrAccessKind::MovTo) => {
                let value = self.reg(access.register());
                if value > 15 {
                    return self.inject_gp();
                }
                if let Some(lapic) = &mut self.mailbox.inbox().lapic {
                    lapic.set_cr8(value as u8);
                }
                self.skip_instruction();
            }
            (8, CrAccessKind::MovFrom) => {
                self.set_reg(access.register(), self.cr8());
                self.skip_instruction();
            }
            (cr, kind) => {
                tracing::warn!("unexpected access to CR{cr} ({kind:?}) at {:#x}", self.rip());
                self.inject_gp();
            }
        }
    }

    /// CR8: the local APIC's task priority.
    pub(super) fn cr8(&self) -> u64 {
        self.mailbox.inbox().lapic.as_ref().map_or(self.root.cpu.cr8, |lapic| lapic.cr8().into())
    }

    /// Lets the guest see its own value of CR0's host-owned bits. The instruction then starts over: it
    /// does not exit any more, and the processor does the rest with all its checks.
    fn host_bits_of_cr0(&mut self, value: u64) {
        let (has, lacks) = (|bit: u64| value & bit != 0, |bit: u64| value & bit == 0);
        let impossible = has(cr0::PG) && lacks(cr0::PE) || has(cr0::NW) && lacks(cr0::CD);
        if impossible || value >> 32 != 0 {
            return self.inject_gp();
        }
        let shadow = self.root.cpu.vmcs_read(Field::Cr0ReadShadow) & !CR0_HOST;
        self.root.cpu.vmcs_write(Field::Cr0ReadShadow, shadow | value & CR0_HOST);
    }

    /// An exception that the debugger asked for, a page fault on shadow tables, or an NMI of the host's, of
    /// which there are none.
    fn exception_exit(&mut self, memory: &Memory) -> Option<Exit> {
        let info = InterruptionInfo::from_bits(self.root.cpu.vmcs_read(Field::ExitInterruptionInfo) as u32);
        if info.kind() == Some(InterruptionType::Nmi) {
            return None;
        }
        if info.vector() == vector::PF {
            return self.page_fault(memory);
        }
        if info.vector() == vector::UD && self.traps_vmmcall() {
            if self.at_vmmcall(memory) {
                self.root.cpu.vmcs_write(Field::ExitInstructionLength, 3);
                self.hypercall();
            } else {
                self.inject_fault(vector::UD, None);
            }
            return None;
        }
        self.debug_exit(info.vector())
    }

    /// Memory that is not there, or read-only.
    fn ept_violation(&mut self, memory: &Memory) -> Option<Exit> {
        let Some(access) = self.root.cpu.device_access() else {
            // A fetch, or a paging structure outside memory: nothing that a device could answer.
            let gpa = self.root.cpu.vmcs_read(Field::GuestPhysicalAddress);
            let qualification = self.root.cpu.vmcs_read(Field::ExitQualification);
            let rip = self.rip();
            tracing::error!("vcpu {}: no memory at {gpa:#x} to run from (rip {rip:#x})", self.mailbox.id);
            let data = [gpa, rip, qualification, 0];
            return Some(self.internal_error(KVM_INTERNAL_ERROR_EMULATION, data));
        };
        let DeviceAccess { gpa, size, write } = access;
        let Some(size) = AccessSize::from_bytes(size.into()) else {
            return Some(self.internal_error(KVM_INTERNAL_ERROR_EMULATION, [gpa, size.into(), 0, 0]));
        };
        if let Some(value) = memory.emulate(gpa, size, write) {
            self.go_on(value);
            return None;
        }
        if let Some(value) = self.apic_access(gpa, size, write) {
            self.go_on(value);
            return None;
        }
        match write {
            Some(value) => {
                let value = value & size.ones();
                if self.signal_io_event(IoEventAddress::Mmio(gpa), size, value) {
                    self.go_on(0);
                    return None;
                }
                self.pending = Pending::Mmio { read: false };
                Some(Exit::MmioWrite { addr: gpa, size, value })
            }
            None => {
                self.pending = Pending::Mmio { read: true };
                Some(Exit::MmioRead { addr: gpa, size })
            }
        }
    }

    /// The instruction goes on with this answer to its device access.
    fn go_on(&mut self, value: u64) {
        self.root.cpu.complete_device_access(value);
        self.replaying = true;
    }

    /// An access to the local APIC's page, if it is one.
    pub(super) fn apic_access(&mut self, gpa: u64, size: AccessSize, write: Option<u64>) -> Option<u64> {
        let time = self.time();
        let (value, effect) = {
            let mut inbox = self.mailbox.inbox();
            let lapic = inbox.lapic.as_mut()?;
            if lapic.page() != Some(gpa & !0xfff) {
                return None;
            }
            match write {
                Some(value) => (0, lapic.mmio_write(gpa & 0xfff, size, value, time)),
                None => (lapic.mmio_read(gpa & 0xfff, size, time), None),
            }
        };
        self.perform(effect);
        Some(value)
    }

    /// Signals the eventfd that listens for this write, if there is one.
    pub(super) fn signal_io_event(&self, address: IoEventAddress, size: AccessSize, value: u64) -> bool {
        let events = self.machine.io_events.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        events.signal(address, size, value)
    }

    /// Takes in the answer to the last exit.
    pub(super) fn answer(&mut self, answer: Answer) -> Result<()> {
        self.check_answer(answer)?;
        let value = if let Answer::Value(value) = answer { value } else { 0 };
        match std::mem::take(&mut self.pending) {
            Pending::Nothing | Pending::Outs => {}
            Pending::In { size } => {
                let rax = self.reg(reg::RAX);
                // A 32-bit IN clears the upper half.
                let kept = if size == AccessSize::Dword { 0 } else { rax & !size.ones() };
                self.set_reg(reg::RAX, kept | value & size.ones());
                self.skip_instruction();
            }
            Pending::Ins { size, count, single } => {
                if single {
                    let bytes = value.to_le_bytes();
                    self.block.clear();
                    self.block.extend_from_slice(bytes.get(..size.bytes()).unwrap_or_default());
                }
                self.finish_ins(size, count);
            }
            Pending::Mmio { .. } => self.go_on(value),
            Pending::InsToDevice { size, gpa } => self.second = self.store_ins(size, gpa, value),
            Pending::OutsFromDevice { size, port } => self.second = self.send_outs(size, port, value),
        }
        Ok(())
    }

    /// VM exits by basic reason, those that happened, and page faults on shadow tables.
    pub(super) fn reason_counts(&self) -> Vec<(String, u64)> {
        let happened = self.reasons.iter().enumerate().filter(|(_, n)| **n > 0);
        let reasons = happened.map(|(reason, &n)| {
            let name = BasicReason::from_number(reason as u16).map(BasicReason::name);
            (name.map_or_else(|| format!("reason {reason}"), str::to_owned), n)
        });
        let faults = self.shadowing.iter().flat_map(|shadowing| shadowing.counts.named());
        reasons.chain(faults).collect()
    }
}
