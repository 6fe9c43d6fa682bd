//! With shadow paging: what the guest does to the registers that steer paging and to cached translations, and its
//! page faults.

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use trapline_memory::paging::{Access, PageFaultCode, PagingFlags};
use trapline_memory::shadow::{Forget, ShadowAction};
use trapline_softcpu::cpu::{cr0, cr4, efer, shadow, vector};
use trapline_vmx::Field;
use trapline_vmx::exit::{CrAccess, CrAccessKind, InstructionInfo, InterruptionInfo, InterruptionType};
use trapline_vmx::state::AccessRights;

use super::io::{Fault, RFLAGS_AC};
use super::memory::Memory;
use super::msr::GeneralProtection;
use super::vcpu::SoftVcpu;
use crate::Exit;

/// Bits of CR0 that exist.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// Bits of CR0 whose change reloads the PDPTE registers.
const CR0_PDPTES: u64 = cr0::PG | cr0::CD | cr0::NW;
/// Bits of CR4 that do so.
const CR4_PDPTES: u64 = cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP;
/// Bit 63 of what is moved to CR3 with PCIDs: keep what is cached. Nothing has to be.
const CR3_KEEP: u64 = 1 << 63;
/// Bit 12 of the VM-exit interruption information: the instruction was an IRET that has ended blocking by NMI.
const NMI_UNBLOCKING: u64 = 1 << 12;

type Checked = Result<(), GeneralProtection>;

/// #GP unless.
fn check(ok: bool) -> Checked {
    if ok { Ok(()) } else { Err(GeneralProtection) }
}

impl SoftVcpu {
    /// An access to CR0, CR3 or CR4, on a machine with shadow paging.
    pub(super) fn paging_register(&mut self, access: CrAccess, memory: &Memory) {
        let value = self.reg(access.register());
        let value = if self.mode64() { value } else { value & 0xffff_ffff };
        let done = match (access.cr(), access.kind()) {
            (0, CrAccessKind::MovTo) => self.write_cr0(value, memory),
            (0, CrAccessKind::Lmsw) => {
                let old = self.guest_cr0();
                // PE cannot be cleared.
                let new = old & !0xe | u64::from(access.lmsw_source()) & 0xf;
                self.write_cr0(new, memory)
            }
            (3, CrAccessKind::MovTo) => self.write_cr3(value, memory),
            (3, CrAccessKind::MovFrom) => {
                let cr3 = self.guest_cr3();
                self.set_reg(access.register(), if self.mode64() { cr3 } else { cr3 & 0xffff_ffff });
                Ok(())
            }
            (4, CrAccessKind::MovTo) => self.write_cr4(value, memory),
            _ => Err(GeneralProtection),
        };
        match done {
            Ok(()) => self.skip_instruction(),
            Err(GeneralProtection) => self.inject_gp(),
        }
    }

    /// MOV to CR0 (SDM vol. 3 §2.5, §5.4.1, §11.8.5).
    fn write_cr0(&mut self, value: u64, memory: &Memory) -> Checked {
        check(value >> 32 == 0)?;
        check(value & (cr0::PG | cr0::PE) != cr0::PG && value & (cr0::NW | cr0::CD) != cr0::NW)?;
        let (old, cr4) = (self.guest_cr0(), self.guest_cr4());
        let new = value & CR0_BITS | cr0::ET;
        let changed = new ^ old;
        let mut efer = self.guest_efer();
        if changed & new & cr0::PG != 0 && efer & efer::LME != 0 {
            let rights = |field| AccessRights::from_bits(self.root.cpu.vmcs_read(field) as u32);
            let tss16 = rights(Field::GuestTrAccessRights).segment_type() & 0xd == 1;
            check(cr4 & cr4::PAE != 0 && !rights(Field::GuestCsAccessRights).long() && !tss16)?;
            efer |= efer::LMA;
        } else if changed & old & cr0::PG != 0 {
            check(!self.mode64() && cr4 & cr4::PCIDE == 0)?;
            efer &= !efer::LMA;
        }
        if changed & CR0_PDPTES != 0 && pae(new, cr4, efer) {
            check(self.load_pdptes(self.guest_cr3(), memory))?;
        }
        self.set_guest_efer(efer);
        self.set_guest_cr0(new);
        if changed & (CR0_PDPTES | cr0::WP | cr0::PE) != 0 {
            self.flush_translations(memory);
        }
        Ok(())
    }

    /// MOV to CR3.
    fn write_cr3(&mut self, value: u64, memory: &Memory) -> Checked {
        let (cr4, efer) = (self.guest_cr4(), self.guest_efer());
        let new = if cr4 & cr4::PCIDE != 0 { value & !CR3_KEEP } else { value };
        check(efer & efer::LMA == 0 || new >> self.root.cpu.model.phys_bits() == 0)?;
        if pae(self.guest_cr0(), cr4, efer) {
            check(self.load_pdptes(new, memory))?;
        }
        self.set_guest_cr3(new);
        self.flush_translations(memory);
        Ok(())
    }

    /// MOV to CR4.
    fn write_cr4(&mut self, value: u64, memory: &Memory) -> Checked {
        let (old, efer) = (self.guest_cr4(), self.guest_efer());
        let changed = value ^ old;
        let long = efer & efer::LMA != 0;
        check(value & !self.root.cpu.model.cr4_allowed() == 0)?;
        check(!long || value & cr4::PAE != 0 && changed & cr4::LA57 == 0)?;
        check(changed & value & cr4::PCIDE == 0 || long && self.guest_cr3() & 0xfff == 0)?;
        if changed & CR4_PDPTES != 0 && pae(self.guest_cr0(), value, efer) {
            check(self.load_pdptes(self.guest_cr3(), memory))?;
        }
        self.set_guest_cr4(value);
        if changed & super::paging::CR4_SHADOW != 0 {
            self.flush_translations(memory);
        }
        Ok(())
    }

    /// WRMSR to IA32_EFER. LMA is not writable.
    pub(super) fn write_guest_efer(&mut self, value: u64, memory: &Memory) -> Checked {
        let model = self.root.cpu.model.clone();
        let mut allowed = efer::LME | efer::LMA;
        for (feature, bit) in [("syscall", efer::SCE), ("nx", efer::NXE)] {
            if model.has(feature) {
                allowed |= bit;
            }
        }
        let old = self.guest_efer();
        let changed = value ^ old;
        check(value & !allowed == 0)?;
        check(changed & efer::LME == 0 || self.guest_cr0() & cr0::PG == 0)?;
        self.set_guest_efer(value & !efer::LMA | old & efer::LMA);
        if changed & efer::NXE != 0 {
            self.flush_translations(memory);
        }
        Ok(())
    }

    /// INVLPG.
    pub(super) fn invlpg(&mut self, memory: &Memory) {
        let linear = self.root.cpu.vmcs_read(Field::ExitQualification);
        let mode = self.paging();
        if let (Some(shadowing), Some(mut tables)) = (&mut self.shadowing, memory.shadow()) {
            let forget = tables.invlpg(memory, &mut shadowing.seat, &mode, linear);
            drop(tables);
            let vpid = self.root.cpu.vmcs_read(Field::Vpid) as u16;
            // 0: one address, 1: single context.
            let done = match forget {
                Forget::Nothing => Ok(()),
                Forget::Page => {
                    let cpu = &mut self.root.cpu;
                    cpu.invvpid(0, vpid, linear).or_else(|_| cpu.invvpid(1, vpid, 0))
                }
                Forget::Space => self.root.cpu.invvpid(1, vpid, 0),
            };
            if let Err(e) = done {
                tracing::error!("vcpu {}: INVVPID: {e}", self.mailbox.id);
            }
        }
        self.skip_instruction();
    }

    /// INVPCID.
    pub(super) fn invpcid(&mut self, memory: &Memory) {
        match self.invpcid_operands(memory) {
            Ok((kind, pcid, address)) => {
                let no_pcids = self.guest_cr4() & cr4::PCIDE == 0;
                let canonical = {
                    let unused = if self.guest_cr4() & cr4::LA57 != 0 { 7 } else { 16 };
                    ((address << unused) as i64 >> unused) as u64 == address
                };
                let bad = kind > 3
                    || pcid >> 12 != 0
                    || kind < 2 && no_pcids && pcid != 0
                    || kind == 0 && !canonical;
                if bad {
                    return self.inject_gp();
                }
                // More than asked for, which is allowed.
                self.flush_translations(memory);
                self.skip_instruction();
            }
            Err(fault) => self.inject(fault),
        }
    }

    /// Kind, PCID and address.
    fn invpcid_operands(&self, memory: &Memory) -> Result<(u64, u64, u64), Fault> {
        let cpu = &self.root.cpu;
        let info = InstructionInfo::from_bits(cpu.vmcs_read(Field::ExitInstructionInfo) as u32);
        let kind = self.reg(info.reg2());
        let kind = if self.mode64() { kind } else { kind & 0xffff_ffff };
        let gp = Fault::Vector(vector::GP);
        let operand = info.memory_operand().ok_or(gp)?;
        let displacement = cpu.vmcs_read(Field::ExitQualification);
        let offset = operand.effective_address(displacement, |register| self.reg(register));
        let (linear, _) = self.operand(operand.segment, offset, 16, false)?;
        let mut bytes = [0; 16];
        let mut at = 0;
        self.for_each_part(memory, linear, 16, false, |hpa, len| {
            if let Some(part) = bytes.get_mut(at..at + len) {
                memory.arena.read_bytes(hpa, part);
            }
            at += len;
        })?;
        let [pcid, address] = [0, 8].map(|at| {
            let word = bytes.iter().skip(at).take(8);
            word.rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
        });
        Ok((kind, pcid, address))
    }

    /// A page fault of a processor on shadow tables.
    pub(super) fn page_fault(&mut self, memory: &Memory) -> Option<Exit> {
        self.block_nmis_again();
        let cpu = &self.root.cpu;
        let linear = cpu.vmcs_read(Field::ExitQualification);
        let bits = cpu.vmcs_read(Field::ExitInterruptionErrorCode) as u32;
        let code = PageFaultCode::from_bits_truncate(bits);
        let access = self.faulting_access(linear, code);
        let mode = self.paging();
        let action = memory.shadow()?.handle_page_fault(memory, &mode, linear, access);
        if let Some(shadowing) = &mut self.shadowing {
            *match action {
                Ok(ShadowAction::InjectPageFault(_)) => &mut shadowing.counts.injected,
                Ok(ShadowAction::Mmio(_) | ShadowAction::EmulateWrite(_)) => &mut shadowing.counts.emulated,
                Ok(ShadowAction::Retry) | Err(_) => &mut shadowing.counts.filled,
            } += 1;
        }
        match action {
            Ok(ShadowAction::Retry) => {}
            Ok(ShadowAction::InjectPageFault(code)) => return self.inject_page_fault(linear, code.bits()),
            Ok(ShadowAction::Mmio(gpa)) if access.fetch => {
                let rip = self.rip();
                tracing::error!("vcpu {}: no memory at {gpa:#x} to run from (rip {rip:#x})", self.mailbox.id);
                let data = [gpa, rip, bits.into(), 0];
                return Some(self.internal_error(KVM_INTERNAL_ERROR_EMULATION, data));
            }
            // The processor tells what is accessed, as it does with EPT.
            Ok(ShadowAction::Mmio(gpa) | ShadowAction::EmulateWrite(gpa)) => {
                self.root.cpu.emulate_page(linear, gpa);
            }
            Err(_) => self.starved = true,
        }
        // No event may come between an instruction's accesses to devices.
        self.replaying = self.root.cpu.device_accesses_made();
        None
    }

    /// What the error code, RFLAGS and the privilege level say of the access that faulted.
    fn faulting_access(&mut self, linear: u64, code: PageFaultCode) -> Access {
        let has = |flag| code.contains(flag);
        let (write, fetch, user) =
            (has(PageFaultCode::WRITE), has(PageFaultCode::FETCH), has(PageFaultCode::USER));
        let cpu = &self.root.cpu;
        let level3 = self.cpl() == 3;
        let ac = !level3 && cpu.vmcs_read(Field::GuestRflags) & RFLAGS_AC != 0;
        // Nothing tells an access to a descriptor table from others, which SMAP lets through with RFLAGS.AC
        // set. But one that a page allows and that faults all the same, for the second time if it is a write,
        // must be such.
        let this = Some((linear, code.bits(), cpu.icount));
        let again = std::mem::replace(&mut self.last_fault, this) == this;
        let smap = self.paging().flags.contains(PagingFlags::SMAP);
        let kept_out = smap && ac && has(PageFaultCode::PRESENT) && !fetch && (!write || again);
        let implicit = !user && !fetch && (level3 || kept_out);
        Access { write, fetch, user, implicit, ac }
    }

    /// IRET ends blocking by NMI even if it faults; but this fault is none of the guest's (SDM vol. 3
    /// §28.2.3).
    fn block_nmis_again(&mut self) {
        let cpu = &self.root.cpu;
        let unblocking = cpu.vmcs_read(Field::ExitInterruptionInfo) & NMI_UNBLOCKING != 0;
        let delivering = cpu.vmcs_read(Field::IdtVectoringInfo) >> 31 & 1 != 0;
        if unblocking && !delivering {
            let blocking = self.blocking() | shadow::NMI;
            self.root.cpu.vmcs_write(Field::GuestInterruptibility, blocking.into());
        }
    }

    /// Makes the guest see a page fault: alone, or with the exception during whose delivery it came about
    /// (SDM vol. 3 table 6-5).
    fn inject_page_fault(&mut self, linear: u64, code: u32) -> Option<Exit> {
        self.root.cpu.cr2 = linear;
        let exception = |info: &InterruptionInfo| info.kind() == Some(InterruptionType::HardwareException);
        let first = self.injection.map(|injection| injection.info).filter(exception);
        match first.map(|info| info.vector()) {
            Some(vector::DF) => return Some(Exit::Shutdown),
            Some(vector::PF) => self.inject_fault(vector::DF, Some(0)),
            _ => self.inject_fault(vector::PF, Some(code)),
        }
        None
    }

    /// A task switch: the processor does it itself, with EPT, because it loads CR3.
    pub(super) fn task_switch(&mut self) {
        self.root.cpu.task_switch_granted = true;
        if let Some(shadowing) = &mut self.shadowing {
            (shadowing.by_ept, shadowing.changed) = (true, true);
        }
    }

    /// VM entry has refused the guest's state. Whether it may take it with unrestricted guest mode.
    pub(super) fn retry_with_ept(&mut self) -> bool {
        let Some(shadowing) = self.shadowing.as_mut().filter(|shadowing| shadowing.on) else { return false };
        (shadowing.refused, shadowing.changed) = (true, true);
        true
    }

    /// The monitor trap flag: the one instruction with EPT is over.
    pub(super) fn stepped(&mut self) {
        if let Some(shadowing) = &mut self.shadowing {
            (shadowing.by_ept, shadowing.changed) = (false, true);
        }
    }
}

/// Whether PAE paging is in force, so that there are PDPTE registers.
fn pae(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}
