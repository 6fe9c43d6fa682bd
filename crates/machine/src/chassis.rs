//! What boards have in common: the engine with its processors, the host's side, and the run.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use trapline_device::bus::{MmioBus, PioBus, SharedDevice, Swap};
use trapline_device::{Clock, HostClock, IrqSink, MsiSink};
use trapline_memory::{Arena, GuestRam, RamConfig, Slot};
use trapline_pci::Effects;
use trapline_vcpu::{Accel, Engine, InstructionClock, Paging, Vcpu, Vm, VmConfig, choose, cpuid, create_vm};

use crate::config::{ICOUNT_START, MachineConfig};
use crate::console::{Console, Input, InputFile, Port};
use crate::control::{Control, Outcome};
use crate::devices::Devices;
use crate::event_loop::{self, Watch};
use crate::irq::Intr;
use crate::profile::Profile;
use crate::remote::Remote;
use crate::run::{Board, Routes, Shared, run_vcpu};
use crate::stats::{self, Stats};
use crate::timers::{Timers, Touched};
use crate::trace::{TracedLines, TracedMessages, Tracks};
use crate::{Error, OutputFile, Result, host};

/// Locks; a device whose earlier user panicked is used on as it is.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is there before the devices, which are connected to it.
pub(crate) struct Core {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    /// The engine, and why it was chosen.
    pub(crate) why: String,
    pub(crate) clock: Arc<dyn Clock>,
    /// What the real-time clock starts at, since 1970.
    pub(crate) today: Duration,
    pub(crate) control: Arc<Control>,
    pub(crate) touched: Touched,
    pub(crate) intr: Arc<Intr>,
    pub(crate) console: Console,
    profile: bool,
    pub(crate) tracks: Option<Tracks>,
    input: Option<InputFile>,
    serial_file: Option<OutputFile>,
    serial_path: Option<String>,
    serial_peer: Option<File>,
}

impl Core {
    /// Processors in their power-on state, which see `slots` of the memory.
    pub(crate) fn new(config: MachineConfig, arena: &Arc<Arena>, slots: &[Slot]) -> Result<Self> {
        let MachineConfig {
            memory: _,
            cpus,
            accel,
            cpu,
            paging,
            interpret,
            icount,
            serial,
            testdev: _,
            profile,
            trace,
        } = config;
        let icount = icount.map(InstructionClock::new).transpose()?.map(Arc::new);
        let (clock, today): (Arc<dyn Clock>, _) = match &icount {
            Some(icount) => (icount.clone(), ICOUNT_START),
            None => (Arc::new(HostClock::new()), since_epoch()),
        };
        // What only the soft engine has decides for it.
        let soft_only = icount.is_some() || paging == Paging::Shadow;
        let choice = choose(if accel == Accel::Auto && soft_only { Accel::Soft } else { accel })?;
        if choice.engine == Engine::Soft {
            let bits = cpu.clone().unwrap_or_default().phys_bits();
            let end = slots.iter().map(Slot::end).max().unwrap_or(0);
            if end > 1 << bits {
                return Err(Error::PhysBits { end, bits });
            }
        }
        let wall_clock = icount.as_ref().map(|_| ICOUNT_START);
        let vm_config = VmConfig {
            clock: clock.clone(),
            paging,
            interpret,
            cpu,
            wall_clock,
            icount,
            ..VmConfig::default()
        };
        let vm = create_vm(choice.engine, &vm_config)?;
        vm.set_memory(arena, slots)?;
        let vcpus = make_vcpus(&*vm, cpus)?;
        let control = Control::new()?;
        control.set_kickers(vcpus.iter().map(|vcpu| vcpu.kicker()).collect());
        let tracks = trace.map(|path| Tracks::open(&path, clock.clone(), cpus)).transpose()?;
        let Port { output, input, file, path, peer } = serial.open()?;
        let touched = Touched::default();
        let console = Console::new(output, control.clone(), clock.clone(), touched.clone());
        let intr = Arc::new(Intr::default());
        if let Some(vcpu0) = vcpus.first() {
            intr.connect(vcpu0.kicker());
        }
        Ok(Self {
            vm,
            vcpus,
            why: choice.why,
            clock,
            today,
            control,
            touched,
            intr,
            console,
            profile,
            tracks,
            input,
            serial_file: file,
            serial_path: path,
            serial_peer: peer,
        })
    }

    /// Where interrupt controllers and devices send their messages.
    pub(crate) fn msi_sink(&self) -> Arc<dyn MsiSink> {
        let sink = self.vm.msi_sink();
        match &self.tracks {
            Some(tracks) => Arc::new(TracedMessages { sink, track: tracks.interrupts.clone() }),
            None => sink,
        }
    }

    /// `lines`, seen by the trace if there is one.
    pub(crate) fn traced_lines(&self, lines: Arc<dyn IrqSink>) -> Arc<dyn IrqSink> {
        match &self.tracks {
            Some(tracks) => Arc::new(TracedLines::new(lines, tracks.interrupts.clone())),
            None => lines,
        }
    }

    /// The boot processor.
    pub(crate) fn vcpu0(&mut self) -> Result<&mut dyn Vcpu> {
        Ok(&mut **self.vcpus.first_mut().ok_or(Error::Cpus(0))?)
    }
}

fn make_vcpus(vm: &dyn Vm, cpus: u32) -> Result<Vec<Box<dyn Vcpu>>> {
    let leaves = vm.supported_cpuid()?;
    let topology = cpuid::Topology::flat(cpus);
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let mut vcpu = vm.create_vcpu(id)?;
        vcpu.set_cpuid(&cpuid::for_vcpu(&leaves, &topology, id)?)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// The host's time of day.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// How a board has put its devices together.
pub(crate) struct Wiring {
    pub(crate) ports: Arc<Swap<PioBus>>,
    pub(crate) mmio: Arc<Swap<MmioBus>>,
    pub(crate) effects: Effects,
    pub(crate) board: Box<dyn Board>,
    /// Devices of the board's own that time drives.
    pub(crate) timed: Vec<SharedDevice>,
    /// What the event loop looks after for the board.
    pub(crate) watches: Vec<Watch>,
}

/// A machine, whichever the board.
pub(crate) struct Chassis {
    pub(crate) shared: Arc<Shared>,
    pub(crate) devices: Devices,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    watches: Vec<Watch>,
    console: Console,
    input: Option<Input>,
    /// Until the first run.
    serial_file: Option<OutputFile>,
    serial_path: Option<String>,
    /// See [`Port::peer`].
    _serial_peer: Option<File>,
    /// One for each vCPU, if it is wanted.
    profiles: Vec<Option<Profile>>,
    engine: String,
    wall: Duration,
    cpu: Duration,
}

impl Chassis {
    pub(crate) fn new(core: Core, devices: Devices, wiring: Wiring) -> Result<Self> {
        let Core {
            vm,
            vcpus,
            why,
            clock,
            today: _,
            control,
            touched,
            intr,
            console,
            profile,
            tracks,
            input,
            serial_file,
            serial_path,
            serial_peer,
        } = core;
        let Wiring { ports, mmio, effects, board, timed, watches } = wiring;
        let timed = [devices.timed(), timed].concat();
        let input = input.map(|file| Input::new(file, devices.uart.clone())).transpose()?;
        let timers = match (vm.engine(), vcpus.first()) {
            (Engine::Soft, Some(vcpu0)) => Timers::on_vcpu0(clock, timed, touched, vcpu0.kicker()),
            _ => Timers::on_timer(clock, timed, touched)?,
        };
        let timers = timers.traced(tracks.as_ref().map(|tracks| tracks.timers.clone()));
        let (pic, ioapic) = (devices.pic.clone(), devices.ioapic.clone());
        let routes = Routes::default();
        routes.tell(&ioapic, &*vm)?;
        let profiles = vcpus.iter().map(|_| profile.then(Profile::default)).collect();
        let shared =
            Shared { vm, ports, mmio, pic, intr, ioapic, routes, timers, control, effects, board, tracks };
        Ok(Self {
            shared: Arc::new(shared),
            devices,
            vcpus,
            watches,
            console,
            input,
            serial_file,
            serial_path,
            _serial_peer: serial_peer,
            profiles,
            engine: why,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
        })
    }

    /// Runs the guest until it ends, or somebody ends it. The calling thread serves the host's side; each
    /// processor gets a thread of its own.
    pub(crate) fn run(&mut self) -> Result<Outcome> {
        self.start_outputs()?;
        // Restored when this function is left, in whichever way.
        let _raw = self.input.as_ref().map(Input::raw_mode).transpose()?;
        let (start, cpu) = (Instant::now(), host::cpu_time());
        let shared = &*self.shared;
        let panicked = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (vcpu, profile) in self.vcpus.iter_mut().zip(&mut self.profiles) {
                let id = vcpu.id();
                let run = move || {
                    // A panic, too, must end the run.
                    let _end = EndOfThread(&shared.control);
                    if let Err(e) = run_vcpu(shared, &mut **vcpu, profile.as_mut()) {
                        shared.control.finish(Err(e));
                    }
                };
                match thread::Builder::new().name(format!("vcpu{id}")).spawn_scoped(scope, run) {
                    Ok(thread) => threads.push((id, thread)),
                    Err(e) => shared.control.finish(Err(Error::host("thread of a vcpu")(e))),
                }
            }
            let served =
                event_loop::serve(&shared.control, &shared.timers, &self.watches, self.input.as_mut());
            if let Err(e) = served {
                shared.control.finish(Err(e));
            }
            let joined = threads.into_iter().filter_map(|(id, thread)| thread.join().err().map(|_| id));
            joined.collect::<Vec<_>>()
        });
        self.console.flush_now();
        self.wall += start.elapsed();
        self.cpu += host::cpu_time().saturating_sub(cpu);
        let ended = self.shared.control.take();
        match (panicked.first(), ended) {
            (Some(&id), _) => Err(Error::Panicked(id)),
            (None, Some(ended)) => ended,
            (None, None) => Ok(Outcome::UserQuit),
        }
    }

    /// Empties the files for output, when the machine first runs.
    fn start_outputs(&mut self) -> Result<()> {
        if let Some(file) = self.serial_file.take() {
            file.empty().map_err(Error::host("cannot empty the file of the serial port"))?;
        }
        self.shared.tracks.as_ref().map_or(Ok(()), Tracks::start)
    }

    /// Serves the host's side while no processor runs, until somebody ends that.
    pub(crate) fn serve_without_vcpus(&mut self, watches: &[Watch]) -> Result<Outcome> {
        let _raw = self.input.as_ref().map(Input::raw_mode).transpose()?;
        let shared = &*self.shared;
        event_loop::serve(&shared.control, &shared.timers, watches, self.input.as_mut())?;
        shared.control.take().unwrap_or(Ok(Outcome::UserQuit))
    }

    /// The boot processor.
    pub(crate) fn vcpu0(&mut self) -> Result<&mut dyn Vcpu> {
        Ok(&mut **self.vcpus.first_mut().ok_or(Error::Cpus(0))?)
    }

    pub(crate) fn remote(&self) -> Remote {
        let devices = &self.devices;
        Remote::new(
            self.shared.control.clone(),
            self.shared.clone(),
            devices.pm.clone(),
            devices.i8042.clone(),
        )
    }

    pub(crate) fn serial_path(&self) -> Option<&str> {
        self.serial_path.as_deref()
    }

    pub(crate) fn engine(&self) -> &str {
        &self.engine
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            engine: self.engine.clone(),
            wall: self.wall,
            cpu: self.cpu,
            exits: self.vcpus.iter().map(|vcpu| vcpu.stats().clone()).collect(),
            detail: stats::detail(&self.vcpus),
            ports: self.shared.ports.load().stats().collect(),
            mmio: self.shared.mmio.load().stats().collect(),
            profile: self.profile(),
        }
    }
}

impl Chassis {
    /// What all vCPUs did, if that was wanted.
    fn profile(&self) -> Option<Profile> {
        let mut profiles = self.profiles.iter().flatten();
        let mut sum = profiles.next()?.clone();
        profiles.for_each(|profile| sum.merge(profile));
        Some(sum)
    }
}

impl Drop for Chassis {
    fn drop(&mut self) {
        if let Some(tracks) = &self.shared.tracks {
            tracks.close();
        }
    }
}

/// Ends the run when the thread of a vCPU ends, for whatever reason.
struct EndOfThread<'a>(&'a Control);

impl Drop for EndOfThread<'_> {
    fn drop(&mut self) {
        // The first to say how it ended is believed; this is the last.
        self.0.finish(Ok(Outcome::UserQuit));
    }
}

/// Checks a configuration and gets the memory that it asks for.
pub(crate) fn make_ram(config: &MachineConfig, ram: &RamConfig) -> Result<GuestRam> {
    config.check()?;
    let ram = GuestRam::new(ram)?;
    if config.memory < crate::config::MIN_MEMORY {
        return Err(Error::MemoryTooSmall { size: config.memory });
    }
    Ok(ram)
}
