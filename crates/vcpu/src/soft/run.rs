//! The run loop: what is due before an entry, the entry, the wait of a halted processor.

use std::time::Duration;

use kvm_bindings::*;
use trapline_device::Nanos;
use trapline_irqchip::lapic::{Deadline, LocalApic, Time};
use trapline_softcpu::cpu::Signals;
use trapline_softcpu::vmx::VmFail;
use trapline_vmx::controls::PrimaryControls;
use trapline_vmx::exit::VmInstructionError;
use trapline_vmx::{Field, LaunchState};

use super::events::Due;
use super::mailbox::Inbox;
use super::memory::Memory;
use super::setup::failed;
use super::vcpu::{Pending, SoftVcpu};
use crate::{Entry, Error, Exit, Result};

/// What [`Entry`] asks for beside its answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// To be injected as soon as possible. Kept until it is.
    pub extint: Option<u8>,
    pub window: bool,
    pub deadline: Option<Nanos>,
}

/// Longest preemption-timer value: a little above two minutes. Afterwards the timer is set again.
const LONGEST_TIMER: u64 = u32::MAX as u64;

impl SoftVcpu {
    /// See [`Vcpu::run`](crate::Vcpu::run).
    pub(super) fn run_to_exit(&mut self, entry: Entry) -> Result<Exit> {
        self.answer(entry.answer)?;
        let Entry { answer: _, extint, want_window: window, deadline } = entry;
        self.wanted = Wanted { extint: extint.or(self.wanted.extint), window, deadline };
        if let Some(exit) = self.second.take() {
            return Ok(exit);
        }
        loop {
            if let Some(exit) = self.step()? {
                return Ok(exit);
            }
        }
    }

    /// Runs the instruction of the last exit to its end, and no other. `Some`: it goes on with another
    /// exit.
    pub(super) fn finish_instruction(&mut self) -> Result<Option<Exit>> {
        while self.replaying {
            // The processor finishes an instruction whose accesses were answered before it looks at
            // signals; this one is up already.
            self.mailbox.signals.raise(Signals::INTERRUPT);
            let exit = self.enter(None)?;
            if exit.is_some() {
                return Ok(exit);
            }
        }
        Ok(None)
    }

    /// One entry, or what comes instead of one.
    fn step(&mut self) -> Result<Option<Exit>> {
        self.mailbox.signals.clear(Signals::INTERRUPT);
        if self.mailbox.take_kick() {
            return self.interrupted();
        }
        if let Some(vector) = self.eoi {
            if let Some(exit) = self.finish_instruction()? {
                return Ok(Some(exit));
            }
            self.eoi = None;
            return Ok(Some(Exit::IoapicEoi { vector }));
        }
        let time = self.time();
        if self.deadline_passed(time) {
            if let Some(exit) = self.finish_instruction()? {
                return Ok(Some(exit));
            }
            return Ok(Some(Exit::Deadline));
        }
        if self.mp_state != KVM_MP_STATE_RUNNABLE {
            // STI and HLT: the window opens behind HLT.
            let halted = self.mp_state == KVM_MP_STATE_HALTED;
            if halted && self.wanted.window && crate::Vcpu::ready_for_extint(self) {
                return Ok(Some(Exit::InterruptWindow));
            }
            return self.wait();
        }
        if self.init_pending() {
            if let Some(exit) = self.finish_instruction()? {
                return Ok(Some(exit));
            }
            self.take_init();
            return Ok(None);
        }
        let due = self.prepare_events(time);
        if due == Due::WindowOpen {
            return Ok(Some(Exit::InterruptWindow));
        }
        self.write_windows(due);
        let timer = self.next_event(self.mailbox.inbox().lapic.as_ref(), time);
        self.enter(timer)
    }

    /// Reports a kick, once the instruction under way is finished.
    fn interrupted(&mut self) -> Result<Option<Exit>> {
        match self.finish_instruction()? {
            None => Ok(Some(Exit::Interrupted)),
            exit => {
                // Not yet: the board has to answer first.
                crate::vcpu::Kick::kick(&*self.mailbox);
                Ok(exit)
            }
        }
    }

    fn deadline_passed(&self, time: Time) -> bool {
        self.wanted.deadline.is_some_and(|deadline| time.ns >= deadline)
    }

    /// How long until something has to be looked at: the local APIC's timer or the board's deadline.
    fn next_event(&self, lapic: Option<&LocalApic>, time: Time) -> Option<Nanos> {
        let timer = lapic.and_then(LocalApic::deadline).map(|deadline| match deadline {
            Deadline::Nanos(at) => at.saturating_sub(time.ns),
            Deadline::Tsc(at) => self.tsc.nanos(at.saturating_sub(time.tsc)),
        });
        let deadline = self.wanted.deadline.map(|at| at.saturating_sub(time.ns));
        [timer, deadline].into_iter().flatten().min()
    }

    /// Enters the guest for at most `timer` nanoseconds, and handles the VM exit.
    pub(super) fn enter(&mut self, timer: Option<Nanos>) -> Result<Option<Exit>> {
        let machine = self.machine.clone();
        if std::mem::take(&mut self.starved) {
            machine.gate.change(|| machine.expel(), super::memory::Memory::drop_shadow);
        }
        let memory = machine.gate.enter();
        self.follow_memory(&memory)?;
        self.enter_paravirtual(&memory);
        if self.enter_paging(&memory).is_err() {
            self.starved = true;
            return Ok(None);
        }
        let shift = self.root.cpu.vmx.caps.preemption_timer_shift();
        let timer = timer.map_or(LONGEST_TIMER, |ns| (ns >> shift).saturating_add(1).min(LONGEST_TIMER));
        self.write_injection();
        let cpu = &mut self.root.cpu;
        cpu.vmcs_write(Field::PreemptionTimer, timer);
        self.debugger.before_entry(cpu);
        let launched = cpu.current_vmcs().is_some_and(|v| v.launch_state == LaunchState::Launched);
        let entered = if launched { cpu.vmresume() } else { cpu.vmlaunch() };
        self.debugger.after_exit(cpu);
        self.leave_paging(&memory);
        self.leave_paravirtual(&memory);
        let cpu = &mut self.root.cpu;
        if let Some(clock) = &machine.config.icount {
            clock.set(cpu.raw_tsc());
        }
        cpu.task_switch_granted = false;
        self.replaying = false;
        match entered {
            Ok(()) => self.handle_exit(&memory),
            Err(VmFail::Valid(
                e @ (VmInstructionError::InvalidControls | VmInstructionError::InvalidHostState),
            )) => {
                tracing::error!("vcpu {}: {e}: {:?}", self.mailbox.id, self.root.cpu.explain_entry());
                Ok(Some(Exit::FailEntry { reason: e.number().into() }))
            }
            Err(e) => Err(failed("VM entry", e)),
        }
    }

    /// Takes over what was changed about the memory.
    fn follow_memory(&mut self, memory: &Memory) -> Result<()> {
        if !std::sync::Arc::ptr_eq(&memory.arena, &self.root.cpu.arena) {
            self.move_to(memory)?;
        }
        if self.epoch != memory.epoch {
            self.epoch = memory.epoch;
            self.root.cpu.vmcs_write(Field::EptPointer, memory.eptp());
            // 2: all contexts.
            self.root.cpu.invept(2, 0).map_err(|e| failed("INVEPT", e))?;
        }
        Ok(())
    }

    /// Asks for exits when an interrupt or an NMI can be injected.
    fn write_windows(&mut self, due: Due) {
        let cpu = &mut self.root.cpu;
        let old = cpu.vmcs_read(Field::PrimaryControls);
        let mut new = PrimaryControls::from_bits_retain(old as u32);
        let Due::Enter { interrupt_window, nmi_window } = due else { return };
        new.set(PrimaryControls::INTERRUPT_WINDOW_EXITING, interrupt_window);
        new.set(PrimaryControls::NMI_WINDOW_EXITING, nmi_window);
        if u64::from(new.bits()) != old {
            cpu.vmcs_write(Field::PrimaryControls, new.bits().into());
        }
    }

    /// Waits in HLT, or for INIT and SIPI. `None`: there is something to do, or nothing yet.
    fn wait(&mut self) -> Result<Option<Exit>> {
        self.mark_preempted();
        let mailbox = self.mailbox.clone();
        let mut inbox = mailbox.inbox();
        loop {
            let time = self.time();
            if let Some(lapic) = &mut inbox.lapic {
                lapic.tick(time);
            }
            if self.wakes(&mut inbox) {
                return Ok(None);
            }
            // Each of these is looked at by the caller.
            let noticed = mailbox.signals.get() & Signals::INTERRUPT != 0;
            if noticed || self.deadline_passed(time) {
                return Ok(None);
            }
            let most = self.next_event(inbox.lapic.as_ref(), time);
            if let Some(ns) = most
                && self.skip_time(ns)
            {
                continue;
            }
            let most = most.map_or(Duration::from_secs(60), Duration::from_nanos);
            inbox = mailbox.wait(inbox, most);
        }
    }

    /// Where time counts instructions, none of which is executed now: lets `ns` go by.
    fn skip_time(&mut self, ns: Nanos) -> bool {
        let Some(clock) = &self.machine.config.icount else { return false };
        let time = &mut self.root.cpu.time;
        time.offset = time.offset.wrapping_add(ns);
        clock.set(self.root.cpu.raw_tsc());
        true
    }

    /// Whether a processor that does not run does so now.
    fn wakes(&mut self, inbox: &mut Inbox) -> bool {
        if std::mem::take(&mut inbox.init) {
            self.init(inbox);
        }
        match self.mp_state {
            KVM_MP_STATE_RUNNABLE => {}
            KVM_MP_STATE_HALTED => {
                let interrupt = inbox.lapic.as_ref().is_some_and(|lapic| lapic.pending().is_some());
                let open = self.interrupts_open();
                let debug = self.root.cpu.vmcs_read(Field::GuestPendingDebug) != 0;
                let unhalted = std::mem::take(&mut inbox.unhalted);
                let event = self.injection.is_some() || inbox.nmi > 0 || debug || unhalted;
                if event || open && (interrupt || self.wanted.extint.is_some()) {
                    self.mp_state = KVM_MP_STATE_RUNNABLE;
                }
            }
            KVM_MP_STATE_INIT_RECEIVED => {
                if let Some(page) = inbox.sipi.take() {
                    self.start_up(page);
                }
            }
            // A SIPI is heard after INIT only.
            _ => inbox.sipi = None,
        }
        self.mp_state == KVM_MP_STATE_RUNNABLE
    }

    fn init_pending(&self) -> bool {
        let mut inbox = self.mailbox.inbox();
        if !inbox.init {
            inbox.sipi = None;
        }
        inbox.init
    }

    fn take_init(&mut self) {
        let mailbox = self.mailbox.clone();
        let mut inbox = mailbox.inbox();
        if std::mem::take(&mut inbox.init) {
            self.init(&mut inbox);
        }
    }

    /// INIT: the bootstrap processor starts at the reset vector, others wait for a SIPI.
    fn init(&mut self, inbox: &mut Inbox) {
        self.root.reset(true);
        if let Some(shadowing) = &mut self.shadowing {
            shadowing.reset();
        }
        self.injection = None;
        (self.pending, self.second, self.replaying) = (Pending::Nothing, None, false);
        (inbox.nmi, inbox.unhalted) = (0, false);
        self.reset_paravirtual();
        let bootstrap = inbox.lapic.as_ref().is_none_or(|lapic| lapic.apic_base() & 1 << 8 != 0);
        if let Some(lapic) = &mut inbox.lapic {
            lapic.init();
        }
        self.mp_state = if bootstrap { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_INIT_RECEIVED };
    }

    /// SIPI: real mode at this page.
    fn start_up(&mut self, page: u8) {
        let cpu = &mut self.root.cpu;
        cpu.vmcs_write(Field::GuestCsSelector, u64::from(page) << 8);
        cpu.vmcs_write(Field::GuestCsBase, u64::from(page) << 12);
        cpu.vmcs_write(Field::GuestRip, 0);
        self.mp_state = KVM_MP_STATE_RUNNABLE;
    }

    /// An error that ends the run but is the guest's doing.
    pub(super) fn internal_error(&self, suberror: u32, data: [u64; 4]) -> Exit {
        Exit::InternalError { suberror, data }
    }

    /// Refuses an answer of the wrong kind.
    pub(super) fn check_answer(&self, answer: crate::Answer) -> Result<()> {
        let expected = self.pending.expects();
        if std::mem::discriminant(&expected) != std::mem::discriminant(&answer) {
            return Err(Error::Answer { expected: expected.name(), got: answer.name() });
        }
        Ok(())
    }
}
