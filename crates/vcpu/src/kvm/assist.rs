//! Instructions that the kernel's emulator gives up on: `softcpu` executes them.
//!
//! Where the kernel emulates (device accesses, real mode on old processors, or everything, in some
//! sandboxes), it does not know every instruction, and exits with an emulation failure. Then the vCPU's
//! state goes to a vCPU of the soft engine on the same memory, which executes this one instruction; what
//! it changed goes back.

use std::collections::BTreeMap;

use iced_x86::{CpuidFeature as F, Instruction, Mnemonic};
use kvm_bindings::*;

use crate::soft::{Assistant, OneStep, Step, flushes_translations};
use crate::{Answer, Exit, Result, Vcpu};

/// What an instruction may read or write beside the registers.
const MSRS: [u32; 10] = [
    0x10, // IA32_TIME_STAMP_COUNTER: the first, goes one way only
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102, // IA32_KERNEL_GS_BASE
    0xc000_0103, // IA32_TSC_AUX
];
/// XSAVE components that `softcpu` has: x87 and SSE, the first 512 bytes.
const LEGACY: u32 = 3;
const LEGACY_WORDS: usize = 512 / 4;
/// The low word of XSTATE_BV.
const XSTATE_BV: usize = LEGACY_WORDS;
/// Bits of IA32_EFER that `softcpu` knows: SCE, LME, LMA, NXE. None of the others changes what an
/// instruction does here.
const EFER: u64 = 0xd01;
/// The XSAVE component of the protection-key rights.
const PKRU: u32 = 9;
const CR4_PGE: u64 = 1 << 7;
const CR4_PKE: u64 = 1 << 22;
const APIC_ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const UD: u8 = 6;
/// Instructions of these sets, and no others, leave x87 and vector registers alone.
const GENERAL: [F; 12] = [
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CX8,
    F::CMPXCHG16B,
    F::CMOV,
    F::POPCNT,
    F::INVPCID,
    F::SMAP,
];

/// What every instruction works on.
struct State {
    regs: kvm_regs,
    sregs: kvm_sregs,
    debugregs: kvm_debugregs,
    events: kvm_vcpu_events,
    more: More,
}

/// What only some do. Reading it takes time.
#[derive(Default)]
struct More {
    /// x87, SSE, XCR0.
    vectors: Option<Vectors>,
    msrs: Vec<kvm_msr_entry>,
}

impl State {
    fn of(vcpu: &dyn Vcpu) -> Result<Self> {
        let (regs, sregs) = (vcpu.regs()?, vcpu.sregs()?);
        let (debugregs, events) = (vcpu.debugregs()?, vcpu.events()?);
        Ok(Self { regs, sregs, debugregs, events, more: More::default() })
    }

    /// Hands the state to the soft vCPU, without what that one cannot have.
    fn load(&self, soft: &mut dyn Vcpu) -> Result<()> {
        let sregs = kvm_sregs { efer: self.sregs.efer & EFER, ..self.sregs };
        soft.set_sregs(&sregs)?;
        soft.set_regs(&self.regs)?;
        soft.set_debugregs(&self.debugregs)?;
        let mut events = self.events;
        if events.exception.nr == UD {
            // Some kernels leave one behind when they give up.
            (events.exception.injected, events.exception.pending) = (0, 0);
        }
        soft.set_events(&events)
    }
}

impl More {
    /// What `instruction` needs.
    fn of(vcpu: &dyn Vcpu, instruction: &Instruction) -> Result<Self> {
        use Mnemonic as M;
        let general = instruction.cpuid_features().iter().all(|feature| GENERAL.contains(feature));
        let vectors = if general { None } else { Some((vcpu.xsave()?, vcpu.xcrs()?)) };
        let msrs = match instruction.mnemonic() {
            M::Syscall
            | M::Sysret
            | M::Sysretq
            | M::Sysenter
            | M::Sysexit
            | M::Sysexitq
            | M::Swapgs
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpid => vcpu.msrs(&MSRS)?,
            _ => Vec::new(),
        };
        Ok(Self { vectors, msrs })
    }

    fn load(&self, soft: &mut dyn Vcpu) -> Result<()> {
        if let Some((xsave, xcrs)) = &self.vectors {
            let mut region = [0; 1024];
            region[..LEGACY_WORDS].copy_from_slice(&xsave.region[..LEGACY_WORDS]);
            region[XSTATE_BV] = xsave.region[XSTATE_BV] & LEGACY;
            soft.set_xcrs(xcrs)?;
            soft.set_xsave(&kvm_xsave { region, ..Default::default() })?;
        }
        soft.set_msrs(&self.msrs)
    }
}

/// The instruction under way.
struct UnderWay {
    instruction: Instruction,
    /// How the kernel gave up.
    failure: Exit,
    /// The kernel's state then, and how the soft vCPU shows it: what differs in the end was changed.
    kernel: State,
    before: State,
}

/// The soft vCPU that helps one of the kernel's.
pub(super) struct Assist {
    soft: OneStep,
    under_way: Option<UnderWay>,
    counts: BTreeMap<Mnemonic, u64>,
}

impl Assist {
    /// `cpuid`: what the guest sees.
    pub fn new(assistant: &Assistant, id: u32, cpuid: &CpuId) -> Result<Self> {
        let soft = assistant.vcpu(id, cpuid)?;
        Ok(Self { soft, under_way: None, counts: BTreeMap::new() })
    }

    /// Instructions executed, by kind.
    pub fn counts(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.counts.iter().map(|(what, n)| (format!("{what:?} by softcpu").to_lowercase(), *n))
    }

    /// Whether an instruction waits for an answer.
    pub fn under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// See [`Vcpu::io_data`].
    pub fn io_data(&mut self) -> &mut [u8] {
        self.soft.vcpu().io_data()
    }

    /// Executes the instruction at which `kernel` gave up with `failure`. `None`: done.
    pub fn begin(
        &mut self,
        kernel: &mut dyn Vcpu,
        failure: Exit,
        debug: &kvm_guest_debug,
        local_apic: bool,
    ) -> Result<Option<Exit>> {
        let (id, mut state) = (kernel.id(), State::of(kernel)?);
        let (rip, base) = (state.regs.rip, state.sregs.apic_base);
        let mapped = local_apic && base & (APIC_ENABLED | X2APIC) == APIC_ENABLED;
        self.soft.begin(debug, mapped.then_some(base & !0xfff));
        if let Err(e) = state.load(self.soft.vcpu()) {
            tracing::error!("vcpu {id}: kvm gave up at {rip:#x}, and softcpu cannot be in this state: {e}");
            return Ok(Some(failure));
        }
        let Some(instruction) = self.soft.fetch() else {
            tracing::error!("vcpu {id}: there is no memory to run from at {rip:#x}");
            return Ok(Some(failure));
        };
        state.more = More::of(kernel, &instruction)?;
        if let Err(e) = state.more.load(self.soft.vcpu()) {
            tracing::error!(
                "vcpu {id}: kvm gave up on {instruction}, and softcpu cannot be in this state: {e}"
            );
            return Ok(Some(failure));
        }
        if state.sregs.cr4 & CR4_PKE != 0 {
            self.soft.set_pkru(pkru(kernel)?);
        }
        let count = self.counts.entry(instruction.mnemonic()).or_default();
        *count += 1;
        if *count == 1 {
            tracing::debug!("vcpu {id}: softcpu executes {instruction} at {rip:#x}, which kvm cannot");
        }
        let before = self.state(&instruction)?;
        self.under_way = Some(UnderWay { instruction, failure, kernel: state, before });
        let step = self.soft.start()?;
        self.after(kernel, step)
    }

    /// The soft vCPU's state, as far as `instruction` needs it.
    fn state(&mut self, instruction: &Instruction) -> Result<State> {
        let vcpu = self.soft.vcpu();
        Ok(State { more: More::of(vcpu, instruction)?, ..State::of(vcpu)? })
    }

    /// Goes on with the instruction under way. `None`: done.
    pub fn go_on(&mut self, kernel: &mut dyn Vcpu, answer: Answer) -> Result<Option<Exit>> {
        let step = self.soft.go_on(answer)?;
        self.after(kernel, step)
    }

    fn after(&mut self, kernel: &mut dyn Vcpu, step: Step) -> Result<Option<Exit>> {
        if let Step::Exit(exit) = step {
            return Ok(Some(exit));
        }
        let Some(UnderWay { instruction, failure, kernel: old, before }) = self.under_way.take() else {
            return Ok(None);
        };
        if let Step::Refused(why) = step {
            let (id, rip) = (kernel.id(), old.regs.rip);
            tracing::error!("vcpu {id}: kvm cannot execute {instruction} at {rip:#x}, and {why}");
            return Ok(Some(failure));
        }
        let after = self.state(&instruction)?;
        give_back(kernel, &old, &before, &after)?;
        if flushes_translations(&instruction) {
            flush_translations(kernel)?;
        }
        Ok(if let Step::DoneWith(exit) = step { Some(exit) } else { None })
    }
}

/// The vCPU's protection-key rights: where the host's XSAVE area has them.
fn pkru(kernel: &dyn Vcpu) -> Result<u32> {
    let (cpuid, xsave) = (kernel.cpuid()?, kernel.xsave()?);
    let leaf = cpuid.as_slice().iter().find(|leaf| (leaf.function, leaf.index) == (0xd, PKRU));
    let in_use = xsave.region[XSTATE_BV] >> PKRU & 1 != 0;
    let value = leaf.and_then(|leaf| xsave.region.get(leaf.ebx as usize / 4));
    Ok(value.copied().filter(|_| in_use).unwrap_or(0))
}

/// Gives back to the kernel what has changed.
fn give_back(kernel: &mut dyn Vcpu, old: &State, before: &State, after: &State) -> Result<()> {
    if after.sregs != before.sregs {
        kernel.set_sregs(&changed_sregs(&old.sregs, &before.sregs, &after.sregs))?;
    }
    if let (Some(old), Some(before), Some(after)) =
        (&old.more.vectors, &before.more.vectors, &after.more.vectors)
    {
        give_back_vectors(kernel, old, before, after)?;
    }
    if after.debugregs != before.debugregs {
        kernel.set_debugregs(&after.debugregs)?;
    }
    let (msrs, same) = (&after.more.msrs, &before.more.msrs);
    let changed = msrs.iter().filter(|msr| msr.index != MSRS[0] && !same.contains(msr));
    kernel.set_msrs(&changed.copied().collect::<Vec<_>>())?;
    // This takes back an exception that the kernel has pending.
    kernel.set_regs(&after.regs)?;
    give_back_events(kernel, old, before, after)
}

type Vectors = (kvm_xsave, kvm_xcrs);

fn give_back_vectors(kernel: &mut dyn Vcpu, old: &Vectors, before: &Vectors, after: &Vectors) -> Result<()> {
    if after.1 != before.1 {
        kernel.set_xcrs(&after.1)?;
    }
    if after.0.region != before.0.region {
        let mut region = old.0.region;
        region[..LEGACY_WORDS].copy_from_slice(&after.0.region[..LEGACY_WORDS]);
        region[XSTATE_BV] |= LEGACY;
        kernel.set_xsave(&kvm_xsave { region, ..Default::default() })?;
    }
    Ok(())
}

fn give_back_events(kernel: &mut dyn Vcpu, old: &State, before: &State, after: &State) -> Result<()> {
    let exception = &old.events.exception;
    if after.events == before.events && (exception.injected, exception.pending) == (0, 0) {
        return Ok(());
    }
    let mut events = kernel.events()?;
    events.exception = after.events.exception;
    // One that was to be injected has been; what was queued in the meantime stays.
    if before.events.interrupt != after.events.interrupt {
        events.interrupt = after.events.interrupt;
    }
    if before.events.nmi.injected != after.events.nmi.injected {
        events.nmi.injected = after.events.nmi.injected;
    }
    events.nmi.masked = after.events.nmi.masked;
    // Not what other threads may make pending.
    events.flags = KVM_VCPUEVENT_VALID_SHADOW;
    kernel.set_events(&events)
}

/// The kernel's special registers with the changes that the soft vCPU made to its own.
fn changed_sregs(kernel: &kvm_sregs, before: &kvm_sregs, after: &kvm_sregs) -> kvm_sregs {
    let mut sregs = *kernel;
    macro_rules! take {
        ($($field:ident),*) => {$(if before.$field != after.$field { sregs.$field = after.$field; })*};
    }
    take!(cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8);
    sregs.efer = kernel.efer & !EFER | after.efer & EFER;
    // An interrupt to be injected is among the events.
    sregs.interrupt_bitmap = [0; 4];
    sregs
}

/// Makes the kernel forget the vCPU's translations, as a change of CR4.PGE does.
fn flush_translations(kernel: &mut dyn Vcpu) -> Result<()> {
    let sregs = kvm_sregs { interrupt_bitmap: [0; 4], ..kernel.sregs()? };
    kernel.set_sregs(&kvm_sregs { cr4: sregs.cr4 ^ CR4_PGE, ..sregs })?;
    kernel.set_sregs(&sregs)
}
