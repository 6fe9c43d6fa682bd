//! A vCPU of the soft engine.

use std::sync::Arc;

use kvm_bindings::*;
use trapline_device::{AccessSize, Nanos};
use trapline_irqchip::lapic::{Effect, Time};
use trapline_vmx::Field;

use super::debug::Debugger;
use super::events::Injection;
use super::mailbox::Mailbox;
use super::paging::Shadowing;
use super::pv::Paravirtual;
use super::run::Wanted;
use super::setup::Root;
use super::vm::Machine;
use crate::fpu;
use crate::{Answer, Engine, Entry, Error, Exit, ExitStats, Kicker, Result, Vcpu};

/// What the last exit left to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pending {
    /// Nothing: the instruction has retired, or will start over.
    #[default]
    Nothing,
    /// IN to the accumulator.
    In { size: AccessSize },
    /// INS of `count` elements to a host-physical address (or two, where it crosses a page).
    Ins { size: AccessSize, count: u32, single: bool },
    /// The data of OUTS is still to be seen.
    Outs,
    /// One element of INS that goes to a device's memory.
    InsToDevice { size: AccessSize, gpa: u64 },
    /// One element of OUTS that comes from a device's memory.
    OutsFromDevice { size: AccessSize, port: u16 },
    /// A memory access is to be answered, and the instruction to be run on.
    Mmio { read: bool },
}

impl Pending {
    /// What the next entry must bring.
    pub fn expects(&self) -> Answer {
        match self {
            Self::In { .. }
            | Self::Ins { single: true, .. }
            | Self::InsToDevice { .. }
            | Self::OutsFromDevice { .. }
            | Self::Mmio { read: true } => Answer::Value(0),
            Self::Ins { .. } => Answer::Block,
            _ => Answer::None,
        }
    }
}

/// The guest's time-stamp counter: processor ticks × `khz` / 1,000,000 + `offset`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tsc {
    pub khz: u32,
    pub offset: u64,
    /// IA32_TSC_ADJUST.
    pub adjust: u64,
}

/// Frequency of the processor's own counter.
pub(super) const TSC_KHZ: u32 = 1_000_000;

/// A vCPU of the soft engine.
pub(super) struct SoftVcpu {
    pub machine: Arc<Machine>,
    pub mailbox: Arc<Mailbox>,
    pub root: Root,
    /// The memory layout that the processor's caches are good for.
    pub epoch: u64,
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// `KVM_MP_STATE_*`.
    pub mp_state: u32,
    pub pending: Pending,
    /// The second exit of an instruction that moves data between two devices.
    pub second: Option<Exit>,
    /// Data of string I/O.
    pub block: Vec<u8>,
    /// To be injected at the next entry.
    pub injection: Option<Injection>,
    /// A device access was answered: the instruction has to be run on before anything else happens.
    pub replaying: bool,
    /// The end of a level-triggered interrupt is to be reported.
    pub eoi: Option<u8>,
    /// What the present run asks for.
    pub wanted: Wanted,
    pub tsc: Tsc,
    pub debugger: Debugger,
    /// On a machine with shadow paging.
    pub shadowing: Option<Shadowing>,
    /// What KVM's guests have beyond a processor.
    pub pv: Paravirtual,
    /// There was no page for another shadow table.
    pub starved: bool,
    /// Address, error code and time (in instructions) of the last page fault on shadow tables.
    pub last_fault: Option<(u64, u32, u64)>,
    pub stats: ExitStats,
    /// VM exits by basic reason.
    pub reasons: Box<[u64; 128]>,
}

impl SoftVcpu {
    pub(super) fn new(machine: Arc<Machine>, mailbox: Arc<Mailbox>) -> Result<Self> {
        let (root, shadowing) = {
            let memory = machine.gate.enter();
            (Root::new(&machine, &mailbox, &memory)?, Shadowing::new(&memory))
        };
        let runnable = mailbox.id == 0;
        Ok(Self {
            machine,
            mailbox,
            root,
            // Not what it is good for: the first entry takes the EPT pointer.
            epoch: u64::MAX,
            cpuid: Vec::new(),
            mp_state: if runnable { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED },
            pending: Pending::Nothing,
            second: None,
            block: Vec::new(),
            injection: None,
            replaying: false,
            eoi: None,
            wanted: Wanted::default(),
            tsc: Tsc { khz: TSC_KHZ, offset: 0, adjust: 0 },
            debugger: Debugger::default(),
            shadowing,
            pv: Paravirtual::default(),
            starved: false,
            last_fault: None,
            stats: ExitStats::default(),
            reasons: Box::new([0; 128]),
        })
    }

    /// Moves to another arena: a new processor in the old one's state.
    pub(super) fn move_to(&mut self, memory: &super::memory::Memory) -> Result<()> {
        let root = Root::new(&self.machine, &self.mailbox, memory)?;
        let (regs, sregs, xsave) = (self.regs()?, self.sregs()?, self.xsave()?);
        let (xcrs, debugregs, events) = (self.xcrs()?, self.debugregs()?, self.events()?);
        let msrs = self.msrs(&super::msr::IN_PROCESSOR)?;
        // Time goes on where it was.
        let ticks = self.root.cpu.raw_tsc();
        self.root = root;
        self.shadowing = Shadowing::new(memory);
        if self.machine.config.icount.is_some() {
            self.root.cpu.time.offset = ticks;
        }
        self.epoch = u64::MAX;
        self.write_exceptions();
        self.root.cpu.vmcs_write(Field::TscOffset, self.tsc.offset);
        self.root.cpu.vmcs_write(Field::TscMultiplier, self.tsc.multiplier());
        self.set_special(&sregs, memory)?;
        self.set_regs(&regs)?;
        self.set_xcrs(&xcrs)?;
        self.set_xsave(&xsave)?;
        self.set_debugregs(&debugregs)?;
        self.set_msrs(&msrs)?;
        self.set_events(&events)
    }

    /// Now, on the clocks of this vCPU's local APIC.
    pub(super) fn time(&self) -> Time {
        let ticks = self.root.cpu.raw_tsc();
        Time { ns: self.machine.now(), tsc: self.tsc.at(ticks) }
    }

    /// Performs what a register write of the local APIC asks for. The inbox must be free.
    pub(super) fn perform(&mut self, effect: Option<Effect>) {
        match effect {
            Some(Effect::Ipi(ipi)) => self.machine.send_ipi(self.mailbox.id, &ipi),
            Some(Effect::Eoi(vector)) if self.machine.is_ioapic_level(vector) => self.eoi = Some(vector),
            // Looked at before each entry, and under the lock.
            Some(Effect::Eoi(_) | Effect::TimerChanged | Effect::AddressChanged) | None => {}
        }
    }

    pub(super) fn count(&mut self, exit: Exit) -> Exit {
        self.stats.record(exit.kind());
        exit
    }

    pub(super) fn unsupported<T>(what: &'static str) -> Result<T> {
        Err(Error::Unsupported { engine: Engine::Soft, what })
    }
}

impl Tsc {
    /// The guest's counter at this reading of the processor's.
    pub fn at(&self, ticks: u64) -> u64 {
        let scaled = (u128::from(ticks) * u128::from(self.multiplier())) >> 48;
        (scaled as u64).wrapping_add(self.offset)
    }

    /// The TSC multiplier of the VMCS.
    pub fn multiplier(&self) -> u64 {
        ((u128::from(self.khz) << 48) / u128::from(TSC_KHZ)) as u64
    }

    /// How many nanoseconds so many ticks take, rounded up.
    pub fn nanos(&self, ticks: u64) -> Nanos {
        let ns = (u128::from(ticks) * u128::from(TSC_KHZ)).div_ceil(u128::from(self.khz.max(1)));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

impl Vcpu for SoftVcpu {
    fn id(&self) -> u32 {
        self.mailbox.id
    }

    fn engine(&self) -> Engine {
        Engine::Soft
    }

    fn run(&mut self, entry: Entry) -> Result<Exit> {
        let exit = self.run_to_exit(entry)?;
        Ok(self.count(exit))
    }

    fn complete(&mut self, answer: Answer) -> Result<Option<Exit>> {
        self.answer(answer)?;
        let exit = match self.second.take() {
            None => self.finish_instruction()?,
            exit => exit,
        };
        Ok(exit.map(|exit| self.count(exit)))
    }

    fn io_data(&mut self) -> &mut [u8] {
        match self.pending {
            Pending::Ins { single: false, .. } | Pending::Outs => &mut self.block,
            _ => &mut [],
        }
    }

    fn ready_for_extint(&self) -> bool {
        self.interrupts_open() && self.wanted.extint.is_none() && self.accepts_extint()
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.mailbox.clone())
    }

    fn stats(&self) -> &ExitStats {
        &self.stats
    }

    fn detail(&self) -> Vec<(String, u64)> {
        self.reason_counts()
    }

    fn inject_nmi(&mut self) -> Result<()> {
        let mut inbox = self.mailbox.inbox();
        inbox.nmi = (inbox.nmi + 1).min(2);
        Ok(())
    }

    fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> Result<()> {
        self.debug_with(debug);
        Ok(())
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>> {
        let memory = self.machine.gate.enter();
        Ok(self.guest_physical(&memory, linear))
    }

    fn regs(&self) -> Result<kvm_regs> {
        Ok(self.general())
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<()> {
        self.set_general(regs);
        Ok(())
    }

    fn sregs(&self) -> Result<kvm_sregs> {
        Ok(self.special())
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<()> {
        let machine = self.machine.clone();
        let memory = machine.gate.enter();
        self.set_special(sregs, &memory)
    }

    fn fpu(&self) -> Result<kvm_fpu> {
        Ok(fpu::from_xsave(&self.xsave_area()))
    }

    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result<()> {
        let mut xsave = self.xsave_area();
        fpu::to_xsave(fpu, &mut xsave);
        self.set_xsave_area(&xsave)
    }

    fn xsave(&self) -> Result<kvm_xsave> {
        Ok(self.xsave_area())
    }

    fn set_xsave(&mut self, xsave: &kvm_xsave) -> Result<()> {
        self.set_xsave_area(xsave)
    }

    fn xcrs(&self) -> Result<kvm_xcrs> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: self.root.cpu.xcr0, ..Default::default() };
        Ok(xcrs)
    }

    fn set_xcrs(&mut self, xcrs: &kvm_xcrs) -> Result<()> {
        for xcr in xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).filter(|xcr| xcr.xcr == 0) {
            if !self.xcr0_valid(xcr.value) {
                return Self::unsupported("this value of XCR0");
            }
            self.root.cpu.xcr0 = xcr.value;
        }
        Ok(())
    }

    fn debugregs(&self) -> Result<kvm_debugregs> {
        Ok(self.debug_registers())
    }

    fn set_debugregs(&mut self, debugregs: &kvm_debugregs) -> Result<()> {
        self.set_debug_registers(debugregs);
        Ok(())
    }

    fn msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
        let read = indices.iter().filter_map(|&index| {
            let data = self.read_msr(index).ok()?;
            Some(kvm_msr_entry { index, data, ..Default::default() })
        });
        Ok(read.collect())
    }

    fn set_msrs(&mut self, msrs: &[kvm_msr_entry]) -> Result<()> {
        for msr in msrs {
            self.set_msr(msr.index, msr.data).map_err(|_| Error::Msr { index: msr.index })?;
        }
        Ok(())
    }

    fn events(&self) -> Result<kvm_vcpu_events> {
        Ok(self.event_state())
    }

    fn set_events(&mut self, events: &kvm_vcpu_events) -> Result<()> {
        self.set_event_state(events);
        Ok(())
    }

    fn lapic(&self) -> Result<kvm_lapic_state> {
        self.machine.need_local_apic()?;
        Ok(self.apic_page())
    }

    fn set_lapic(&mut self, lapic: &kvm_lapic_state) -> Result<()> {
        self.machine.need_local_apic()?;
        self.set_apic_page(lapic)
    }

    fn mp_state(&self) -> Result<kvm_mp_state> {
        let woken = self.mp_state == KVM_MP_STATE_HALTED && self.mailbox.inbox().unhalted;
        Ok(kvm_mp_state { mp_state: if woken { KVM_MP_STATE_RUNNABLE } else { self.mp_state } })
    }

    fn set_mp_state(&mut self, mp_state: kvm_mp_state) -> Result<()> {
        match mp_state.mp_state {
            KVM_MP_STATE_RUNNABLE => {}
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_HALTED => {
                self.machine.need_local_apic()?;
            }
            _ => return Self::unsupported("this mp_state"),
        }
        self.mp_state = mp_state.mp_state;
        Ok(())
    }

    fn cpuid(&self) -> Result<CpuId> {
        CpuId::from_entries(&self.cpuid)
            .map_err(|_| Error::NotFound { what: "room for cpuid leaf", id: self.cpuid.len() as u64 })
    }

    fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<()> {
        self.cpuid = cpuid.as_slice().to_vec();
        self.paravirtual_leaves_set();
        self.write_exceptions();
        Ok(())
    }

    fn tsc_khz(&self) -> Result<u32> {
        Ok(self.tsc.khz)
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        if khz == 0 {
            return Self::unsupported("a time-stamp counter that stands still");
        }
        // The counter reads on from where it is.
        let ticks = self.root.cpu.raw_tsc();
        let before = self.tsc.at(ticks);
        self.tsc.khz = khz;
        self.tsc.offset = self.tsc.offset.wrapping_add(before.wrapping_sub(self.tsc.at(ticks)));
        self.root.cpu.vmcs_write(Field::TscMultiplier, self.tsc.multiplier());
        self.root.cpu.vmcs_write(Field::TscOffset, self.tsc.offset);
        self.clock_changed();
        Ok(())
    }
}
