//! The run loop of a vCPU: from an exit to the device it concerns, and back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use trapline_device::AccessSize;
use trapline_device::bus::{MmioBus, PioBus, Swap, View};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::pic::PicPair;
use trapline_pci::Effects;
use trapline_vcpu::{Answer, Engine, Entry, Exit, Vcpu, Vm};

use crate::control::{Control, Outcome};
use crate::irq::{self, Intr};
use crate::profile::{self, Profile};
use crate::timers::Timers;
use crate::trace::{Arg, Track, Tracks};
use crate::{Result, host};

/// What the vCPU threads of a machine share. Nothing here is locked as a whole: the buses find a device
/// without a lock, and lock only that.
pub(crate) struct Shared {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) ports: Arc<Swap<PioBus>>,
    pub(crate) mmio: Arc<Swap<MmioBus>>,
    pub(crate) pic: PicPair,
    pub(crate) intr: Arc<Intr>,
    pub(crate) ioapic: IoApic,
    pub(crate) routes: Routes,
    pub(crate) timers: Timers,
    pub(crate) control: Arc<Control>,
    /// What accesses have changed of the address map; [`Board::apply_effects`] carries it out.
    pub(crate) effects: Effects,
    pub(crate) board: Box<dyn Board>,
    /// The trace, if one is wanted.
    pub(crate) tracks: Option<Tracks>,
}

/// What a board does that the others do otherwise.
pub(crate) trait Board: Send + Sync {
    /// Carries out what the last access left in [`Shared::effects`]. Called by a vCPU's thread between two
    /// entries, with no device locked.
    fn apply_effects(&self, shared: &Shared) -> Result<()>;

    /// The guest has entered the sleeping state `slp_typ`, which is not S5.
    fn sleep(&self, shared: &Shared, slp_typ: u8);
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

/// One thread's way to the devices: an access, and what follows from it.
pub(crate) struct Access<'a> {
    shared: &'a Shared,
    ports: View<PioBus>,
    mmio: View<MmioBus>,
}

impl<'a> Access<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self { shared, ports: shared.ports.view(), mmio: shared.mmio.view() }
    }

    pub(crate) fn pio_read(&mut self, port: u16, size: AccessSize) -> u32 {
        self.ports.get().read(port, size)
    }

    pub(crate) fn pio_write(&mut self, port: u16, size: AccessSize, value: u32) -> Result<()> {
        self.ports.get().write(port, size, value);
        self.written()
    }

    pub(crate) fn pio_read_block(&mut self, port: u16, size: AccessSize, data: &mut [u8]) {
        self.ports.get().read_block(port, size, data);
    }

    pub(crate) fn pio_write_block(&mut self, port: u16, size: AccessSize, data: &[u8]) -> Result<()> {
        self.ports.get().write_block(port, size, data);
        self.written()
    }

    pub(crate) fn mmio_read(&mut self, addr: u64, size: AccessSize) -> u64 {
        self.mmio.get().read(addr, size)
    }

    pub(crate) fn mmio_write(&mut self, addr: u64, size: AccessSize, value: u64) -> Result<()> {
        self.mmio.get().write(addr, size, value);
        self.shared.routes.sync(&self.shared.ioapic, &*self.shared.vm)?;
        self.written()
    }

    /// Carries out what a write has changed beyond the device.
    fn written(&self) -> Result<()> {
        let shared = self.shared;
        if shared.effects.pending() {
            shared.board.apply_effects(shared)?;
        }
        if let Some(slp_typ) = shared.control.take_sleep() {
            shared.board.sleep(shared, slp_typ);
        }
        Ok(())
    }
}

/// Runs a vCPU until the machine stops. `profile` is told where its time goes.
pub(crate) fn run_vcpu(
    shared: &Shared,
    vcpu: &mut dyn Vcpu,
    mut profile: Option<&mut Profile>,
) -> Result<()> {
    let mut access = Access::new(shared);
    let boots = vcpu.id() == 0;
    if boots {
        irq::this_thread_runs_vcpu0();
    }
    let tracks = shared.tracks.as_ref();
    let track = tracks.and_then(|tracks| tracks.vcpu(vcpu.id()));
    let observed = profile.is_some() || track.is_some();
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
                let vector = shared.pic.ack();
                entry.extint = Some(vector);
                if let Some(tracks) = tracks {
                    tracks.interrupts.instant("8259a", &[("vector", Arg::Hex(vector.into()))]);
                }
            }
            entry.want_window = shared.intr.asserted();
        }
        let exit = vcpu.run(entry)?;
        ran = true;
        answer = if observed {
            access.serve_observed(vcpu, exit, profile.as_deref_mut(), track)?
        } else {
            access.serve(vcpu, exit)?
        };
    }
    if let Some(profile) = profile {
        profile.add_cpu(host::thread_cpu_time());
    }
    access.finish_exit(vcpu, answer)
}

impl Access<'_> {
    /// Lets the instruction of the last exit retire, so that the state of the vCPU is whole.
    fn finish_exit(&mut self, vcpu: &mut dyn Vcpu, mut answer: Answer) -> Result<()> {
        while let Some(exit) = vcpu.complete(answer)? {
            answer = self.serve(vcpu, exit)?;
        }
        Ok(())
    }

    /// As [`Access::serve`], for the profile and the trace.
    fn serve_observed(
        &mut self,
        vcpu: &mut dyn Vcpu,
        exit: Exit,
        profile: Option<&mut Profile>,
        track: Option<&Track>,
    ) -> Result<Answer> {
        let (start, at) = (Instant::now(), track.map(Track::now));
        // The buses on which the access is served: it may replace them.
        let (ports, mmio) = (self.ports.current(), self.mmio.current());
        let answer = self.serve(vcpu, exit);
        if let Some(profile) = profile {
            profile.record(&exit, start, &ports, &mmio);
        }
        if let (Some(track), Some(at), Ok(answer)) = (track, at, &answer) {
            let region = profile::accessed(&exit, &ports, &mmio);
            track.exit(at, &exit, *answer, region.map(|(name, _)| name));
        }
        answer
    }

    /// Does what an exit asks for.
    fn serve(&mut self, vcpu: &mut dyn Vcpu, exit: Exit) -> Result<Answer> {
        match exit {
            Exit::PioRead { port, size } => return Ok(Answer::Value(self.pio_read(port, size).into())),
            Exit::PioWrite { port, size, value } => self.pio_write(port, size, value)?,
            Exit::PioReadBlock { port, size, .. } => {
                self.pio_read_block(port, size, vcpu.io_data());
                return Ok(Answer::Block);
            }
            Exit::PioWriteBlock { port, size, .. } => self.pio_write_block(port, size, vcpu.io_data())?,
            Exit::MmioRead { addr, size } => return Ok(Answer::Value(self.mmio_read(addr, size))),
            Exit::MmioWrite { addr, size, value } => self.mmio_write(addr, size, value)?,
            Exit::IoapicEoi { vector } => self.shared.ioapic.end_of_interrupt(vector),
            Exit::Deadline => self.shared.timers.poll_due(),
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
        self.shared.control.finish(Ok(how));
    }
}
