//! Single instructions for another engine: what that one's emulator gave up on.
//!
//! An [`Assistant`] is a machine on the same memory, without local APICs, whose vCPUs execute one
//! instruction at a time (monitor trap flag). What of the state matters to it goes in and out as on any
//! vCPU. Exceptions and software interrupts of the instruction are the processor's to deliver, or become
//! events in the state.
//!
//! Refused are instructions that act on what the other engine keeps: the local APIC's page, model-specific
//! registers, HLT, and XSAVE components beyond x87 and SSE.

use std::sync::{Arc, RwLock};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, kvm_guest_debug};
use trapline_memory::{Arena, DirtyTracker, Slot};
use trapline_softcpu::cpu::{Signals, vector};
use trapline_vmx::Field;
use trapline_vmx::controls::PrimaryControls;
use trapline_vmx::exit::{BasicReason, ExitReason};

use super::SoftVm;
use super::irqfd::IoEvents;
use super::vcpu::SoftVcpu;
use crate::{Answer, CpuModel, CpuModelError, Engine, Error, Exit, Result, Vcpu, Vm, VmConfig};

/// The middle of the vendor's name, in CPUID.0:EDX.
const AUTHENTIC_AMD: u32 = u32::from_le_bytes(*b"enti");
/// Longest instruction in bytes.
const LONGEST: usize = 15;
const PAGE: u64 = 4096;
/// Pending debug exceptions: B0 to B3 and BS, as in DR6.
const PENDING_DEBUG: u64 = 0xf | 1 << 14;

/// Bits of XCR0: what `softcpu` has.
const X87_AND_SSE: u64 = 3;
const WIDE: &str = "it handles registers that softcpu does not have";

/// What became of an instruction.
#[derive(Debug)]
pub(crate) enum Step {
    /// It is over: executed, or a fault of it is among the events.
    Done,
    /// It is over with this exit.
    DoneWith(Exit),
    /// It goes on, if only to its end, with the answer to this exit.
    Exit(Exit),
    /// It cannot be executed here, and was not.
    Refused(&'static str),
}

/// A machine that executes single instructions for another one.
pub(crate) struct Assistant(SoftVm);

impl Assistant {
    /// An assistant on this memory, whose processor knows all that there is. Its vendor and its physical
    /// addresses are those of `cpuid`, the leaves that the guest sees.
    pub fn new(
        arena: &Arc<Arena>,
        slots: &[Slot],
        cpuid: &CpuId,
        io_events: Arc<RwLock<IoEvents>>,
    ) -> Result<Self> {
        let cpu = Some(model_for(cpuid)?);
        let config = VmConfig { local_apic: false, cpu, ..VmConfig::default() };
        let vm = SoftVm::with_events(&config, io_events)?;
        vm.set_memory(arena, slots)?;
        Ok(Self(vm))
    }

    /// See [`Vm::set_memory`].
    pub fn set_memory(&self, arena: &Arc<Arena>, slots: &[Slot]) -> Result<()> {
        self.0.set_memory(arena, slots)
    }

    /// See [`Vm::collect_dirty`].
    pub fn collect_dirty(&self, tracker: &DirtyTracker) -> Result<()> {
        self.0.collect_dirty(tracker)
    }

    /// A vCPU that stands in for the other machine's number `id`, which it did not yet.
    /// `cpuid`: the leaves that the guest sees.
    pub fn vcpu(&self, id: u32, cpuid: &CpuId) -> Result<OneStep> {
        let none = Error::NotFound { what: "free vcpu number", id: id.into() };
        let mailbox = self.0.0.add_mailbox(id).ok_or(none)?;
        let mut vcpu = SoftVcpu::new(self.0.0.clone(), mailbox)?;
        let cpu = &mut vcpu.root.cpu;
        let primary = PrimaryControls::from_bits_retain(cpu.vmcs_read(Field::PrimaryControls) as u32);
        let primary = primary | PrimaryControls::MONITOR_TRAP_FLAG;
        cpu.vmcs_write(Field::PrimaryControls, primary.bits().into());
        vcpu.mp_state = KVM_MP_STATE_RUNNABLE;
        vcpu.set_cpuid(cpuid)?;
        let knows_all = crate::cpuid::within(cpuid.as_slice(), &self.0.0.model);
        Ok(OneStep { vcpu, knows_all, instruction: Instruction::default(), apic: None })
    }
}

/// A processor that knows all that there is, with the vendor and the physical addresses of `cpuid`.
fn model_for(cpuid: &CpuId) -> Result<CpuModel> {
    let leaf = |function| cpuid.as_slice().iter().find(|leaf| leaf.function == function);
    let amd = leaf(0).is_some_and(|leaf| leaf.edx == AUTHENTIC_AMD);
    let vendor = if amd { "amd" } else { "intel" };
    let bits = leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff).clamp(36, 48);
    // Hypercalls and their memory are the other engine's.
    let model = CpuModel::named(&format!("max,-kvm,vendor={vendor},phys-bits={bits}"));
    model.map_err(|e: CpuModelError| Error::Unavailable { engine: Engine::Soft, why: e.to_string() })
}

/// A vCPU that executes one instruction at a time.
pub(crate) struct OneStep {
    vcpu: SoftVcpu,
    /// The guest was told of no instruction that this processor does not know.
    knows_all: bool,
    /// The one under way.
    instruction: Instruction,
    /// The page of the local APIC, which is not here.
    apic: Option<u64>,
}

impl OneStep {
    /// To put the state in, before [`OneStep::start`], and to take it out.
    pub fn vcpu(&mut self) -> &mut dyn Vcpu {
        &mut self.vcpu
    }

    /// What an earlier instruction has left is forgotten: memory and state have changed since.
    pub fn begin(&mut self, debug: &kvm_guest_debug, apic: Option<u64>) {
        let vcpu = &mut self.vcpu;
        vcpu.root.cpu.flush_code();
        vcpu.root.cpu.vmcs_write(Field::GuestPendingDebug, 0);
        vcpu.debug_with(debug);
        // #UD comes here first: it may mean that this processor does not know the instruction.
        let bitmap = vcpu.root.cpu.vmcs_read(Field::ExceptionBitmap) | 1 << vector::UD;
        vcpu.root.cpu.vmcs_write(Field::ExceptionBitmap, bitmap);
        self.apic = apic;
    }

    /// Sets the protection-key rights, which XSAVE areas have at different places.
    pub fn set_pkru(&mut self, pkru: u32) {
        self.vcpu.root.cpu.pkru = pkru;
    }

    /// Fetches the instruction at RIP, which may be an undefined one; `None`: there is no memory.
    pub fn fetch(&mut self) -> Option<Instruction> {
        let vcpu = &self.vcpu;
        let memory = vcpu.machine.gate.enter();
        let cpu = &vcpu.root.cpu;
        let (code, rip) = (cpu.vmcs_read(Field::GuestCsBase), vcpu.rip());
        let big = cpu.vmcs_read(Field::GuestCsAccessRights) & 1 << 14 != 0;
        let (bits, linear) = match (vcpu.mode64(), big) {
            (true, _) => (64, rip),
            (false, true) => (32, code.wrapping_add(rip) & 0xffff_ffff),
            (false, false) => (16, code.wrapping_add(rip) & 0xffff_ffff),
        };
        let mut bytes = [0; LONGEST];
        let first = ((PAGE - linear % PAGE) as usize).min(LONGEST);
        let (head, tail) = bytes.split_at_mut(first);
        memory.arena.read_bytes(vcpu.place(&memory, linear, false).ok()?, head)?;
        let mut fetched = head.len();
        if !tail.is_empty()
            && let Ok(hpa) = vcpu.place(&memory, linear.wrapping_add(first as u64), false)
            && memory.arena.read_bytes(hpa, tail).is_some()
        {
            fetched = LONGEST;
        }
        let mut decoder = Decoder::with_ip(bits, bytes.get(..fetched)?, rip, DecoderOptions::NONE);
        self.instruction = decoder.decode();
        Some(self.instruction)
    }

    /// Executes the instruction fetched.
    pub fn start(&mut self) -> Result<Step> {
        match self.refusal() {
            Some(why) => Ok(Step::Refused(why)),
            None => self.execute(),
        }
    }

    /// Goes on with the instruction of the last [`Step::Exit`].
    pub fn go_on(&mut self, answer: Answer) -> Result<Step> {
        self.vcpu.answer(answer)?;
        if let Some(exit) = self.vcpu.second.take() {
            return Ok(self.after_exit(exit));
        }
        if self.vcpu.replaying {
            return self.execute();
        }
        Ok(self.after_instruction())
    }

    fn execute(&mut self) -> Result<Step> {
        let start = self.vcpu.rip();
        loop {
            self.vcpu.mailbox.signals.clear(Signals::INTERRUPT);
            match self.vcpu.enter(None)? {
                Some(exit) => return Ok(self.after_exit(exit)),
                None if self.starts_over(start) => {}
                None => return Ok(self.after_instruction()),
            }
        }
    }

    fn after_exit(&mut self, exit: Exit) -> Step {
        match exit {
            Exit::MmioRead { addr, .. } | Exit::MmioWrite { addr, .. }
                if self.apic == Some(addr & !(PAGE - 1)) =>
            {
                Step::Refused("it accesses the local APIC")
            }
            Exit::Debug { exception, .. } if exception == u32::from(vector::UD) => {
                if !self.knows_all && !self.vcpu.machine.model.supports(&self.instruction) {
                    return Step::Refused("softcpu does not know it either");
                }
                self.vcpu.inject_fault(vector::UD, None);
                Step::Done
            }
            Exit::FailEntry { .. } => Step::Refused("softcpu cannot be in this state"),
            Exit::InternalError { .. } | Exit::Halt => Step::Refused("softcpu cannot execute it"),
            Exit::Debug { .. } | Exit::Shutdown => Step::DoneWith(exit),
            _ => Step::Exit(exit),
        }
    }

    /// A single step or a breakpoint is for the host to see, or for the guest.
    fn after_instruction(&mut self) -> Step {
        let vcpu = &mut self.vcpu;
        let pending = vcpu.root.cpu.vmcs_read(Field::GuestPendingDebug) & PENDING_DEBUG;
        if pending == 0 || vcpu.injection.is_some() {
            return Step::Done;
        }
        if vcpu.debugger.sees_debug_exceptions() {
            vcpu.root.cpu.vmcs_write(Field::ExitQualification, pending);
            return vcpu.debug_exit(vector::DB).map_or(Step::Done, Step::DoneWith);
        }
        vcpu.root.cpu.dr[6] |= pending;
        vcpu.inject_fault(vector::DB, None);
        Step::Done
    }

    /// Whether the instruction has not been executed although there was nothing to report.
    fn starts_over(&self, start: u64) -> bool {
        let vcpu = &self.vcpu;
        let reason = ExitReason::from_bits(vcpu.root.cpu.vmcs_read(Field::ExitReason) as u32);
        use BasicReason as R;
        vcpu.replaying
            || match reason.basic() {
                Some(R::ExternalInterrupt | R::PreemptionTimer | R::TaskSwitch) => true,
                Some(R::CrAccess) => vcpu.injection.is_none() && vcpu.rip() == start,
                _ => false,
            }
    }

    /// Why the instruction must not be executed here.
    fn refusal(&self) -> Option<&'static str> {
        use Mnemonic as M;
        let wide = self.vcpu.root.cpu.xcr0 & !X87_AND_SSE != 0;
        match self.instruction.mnemonic() {
            M::Rdmsr | M::Wrmsr => Some("it accesses a model-specific register"),
            M::Hlt | M::Mwait => Some("it waits"),
            M::Wrpkru => Some("it sets protection-key rights"),
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 if wide => Some(WIDE),
            M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 if wide => Some(WIDE),
            _ => None,
        }
    }
}

/// Whether an instruction makes the processor forget translations.
pub(crate) fn flushes_translations(instruction: &Instruction) -> bool {
    let to_control = instruction.op_kind(0) == OpKind::Register && instruction.op0_register().is_cr();
    matches!(instruction.mnemonic(), Mnemonic::Invlpg | Mnemonic::Invpcid)
        || instruction.mnemonic() == Mnemonic::Mov && to_control
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;
    use trapline_softcpu::cpuid::Vendor;

    use super::*;

    /// Reserved bits of page tables, and what only one vendor's processors do, are as the guest was told.
    #[test]
    fn the_processor_is_like_the_one_that_the_guest_sees() {
        let leaves = |vendor: &[u8; 12], bits: u32| {
            let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
            let (ebx, edx, ecx) = (word(0), word(4), word(8));
            let leaf = |function| kvm_cpuid_entry2 { function, ..Default::default() };
            let first = kvm_cpuid_entry2 { ebx, ecx, edx, ..leaf(0) };
            let last = kvm_cpuid_entry2 { eax: 48 << 8 | bits, ..leaf(0x8000_0008) };
            CpuId::from_entries(&[first, last]).unwrap()
        };
        let model = model_for(&leaves(b"AuthenticAMD", 46)).unwrap();
        assert_eq!((model.vendor, model.phys_bits()), (Vendor::Amd, 46));
        assert!(!model.has("kvm") && model.has("aes"));
        let model = model_for(&leaves(b"GenuineIntel", 52)).unwrap();
        assert_eq!((model.vendor, model.phys_bits()), (Vendor::Intel, 48), "as many as there are");
        let none = CpuId::from_entries(&[]).unwrap();
        assert_eq!(model_for(&none).unwrap().phys_bits(), 36, "a processor without the leaf");
    }
}
