//! The run loop of a vCPU: from an exit to the device it concerns, and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use trapline_device::bus::{MmioBus, PioBus};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::pic::PicPair;
use trapline_vcpu::{Answer, Engine, Entry, Exit, Vcpu, Vm};

use crate::Result;
use crate::control::{Control, Outcome};
use crate::irq::{self, Intr};
use crate::timers::Timers;

/// What the vCPU threads of a machine share. Nothing here is locked as a whole: the buses find a device
/// without a lock, and lock only that.
pub(crate) struct Shared {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) ports: PioBus,
    pub(crate) mmio: MmioBus,
    pub(crate) pic: PicPair,
    pub(crate) intr: Arc<Intr>,
    pub(crate) ioapic: IoApic,
    pub(crate) routes: Routes,
    pub(crate) timers: Timers,
    pub(crate) control: Arc<Control>,
    /// Wakes the guest from a sleeping state.
    pub(crate) wake: Box<dyn Fn() + Send + Sync>,
}

/// What the engine was told about the IOAPIC's pins.
#[derive(Default)]
pub(crate) struct Routes {
    told: AtomicU64,
    telling: Mutex<()>,
}

impl Routes {
    /// Tells `vm` if the guest has changed an entry.
    fn sync(&self, ioapic: &IoApic, vm: &dyn Vm) -> Result<()> {
        if self.told.load(Ordering::Acquire) == ioapic.routes_generation() {
            return Ok(());
        }
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = ioapic.routes_generation();
        for (pin, msi) in (0..).zip(ioapic.routes()) {
            vm.set_ioapic_route(pin, msi)?;
        }
        self.told.store(generation, Ordering::Release);
        Ok(())
    }

    /// Tells `vm`, whatever it was told before.
    pub(crate) fn tell(&self, ioapic: &IoApic, vm: &dyn Vm) -> Result<()> {
        self.told.store(u64::MAX, Ordering::Release);
        self.sync(ioapic, vm)
    }
}

/// Runs a vCPU until the machine stops.
pub(crate) fn run_vcpu(shared: &Shared, vcpu: &mut dyn Vcpu) -> Result<()> {
    let boots = vcpu.id() == 0;
    if boots {
        irq::this_thread_runs_vcpu0();
    }
    let keeps_time = boots && vcpu.engine() == Engine::Soft;
    let mut answer = Answer::None;
    let mut ran = false;
    while !shared.control.stopping() {
        let mut entry = Entry::from(answer);
        if keeps_time {
            entry.deadline = shared.timers.deadline_for_entry();
        } else {
            shared.timers.settle();
        }
        if boots && shared.intr.asserted() {
            if ran && vcpu.ready_for_extint() {
                entry.extint = Some(shared.pic.ack());
            }
            entry.want_window = shared.intr.asserted();
        }
        let exit = vcpu.run(entry)?;
        ran = true;
        answer = shared.serve(vcpu, exit)?;
    }
    finish_exit(shared, vcpu, answer)
}

/// Lets the instruction of the last exit retire, so that the state of the vCPU is whole.
fn finish_exit(shared: &Shared, vcpu: &mut dyn Vcpu, mut answer: Answer) -> Result<()> {
    while let Some(exit) = vcpu.complete(answer)? {
        answer = shared.serve(vcpu, exit)?;
    }
    Ok(())
}

impl Shared {
    /// Does what an exit asks for.
    fn serve(&self, vcpu: &mut dyn Vcpu, exit: Exit) -> Result<Answer> {
        match exit {
            Exit::PioRead { port, size } => return Ok(Answer::Value(self.ports.read(port, size).into())),
            Exit::PioWrite { port, size, value } => {
                self.ports.write(port, size, value);
                if self.control.take_sleep() {
                    (self.wake)();
                }
            }
            Exit::PioReadBlock { port, size, .. } => {
                self.ports.read_block(port, size, vcpu.io_data());
                return Ok(Answer::Block);
            }
            Exit::PioWriteBlock { port, size, .. } => self.ports.write_block(port, size, vcpu.io_data()),
            Exit::MmioRead { addr, size } => return Ok(Answer::Value(self.mmio.read(addr, size))),
            Exit::MmioWrite { addr, size, value } => {
                self.mmio.write(addr, size, value);
                self.routes.sync(&self.ioapic, &*self.vm)?;
            }
            Exit::IoapicEoi { vector } => self.ioapic.end_of_interrupt(vector),
            Exit::Deadline => self.timers.poll_due(),
            // Whoever kicked has left word elsewhere, and a new entry looks there.
            Exit::Interrupted | Exit::InterruptWindow => {}
            Exit::Shutdown => self.end(Outcome::Shutdown),
            // Kinds 1 and 2 are shutdown and reset, whatever brought the kernel to say so.
            Exit::SystemEvent { kind: 1 } => self.end(Outcome::PowerOff),
            Exit::SystemEvent { kind: 2 } => self.end(Outcome::Reset),
            Exit::Halt
            | Exit::Debug { .. }
            | Exit::FailEntry { .. }
            | Exit::InternalError { .. }
            | Exit::SystemEvent { .. } => {
                let rip = vcpu.regs().map(|regs| format!(" at rip {:#x}", regs.rip)).unwrap_or_default();
                self.end(Outcome::Stuck(format!("{exit:x?}{rip}")));
            }
        }
        Ok(Answer::None)
    }

    fn end(&self, how: Outcome) {
        self.control.finish(Ok(how));
    }
}
