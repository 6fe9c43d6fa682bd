//! The board `microvm`: the devices of a PC's south bridge and no PCI, started straight at a kernel.
//!
//! | device | ports or address | interrupt |
//! |---|---|---|
//! | 8259A pair, ELCR | 0x20, 0xa0, 0x4d0 | INTR to LINT0 of vCPU 0 |
//! | IOAPIC, 24 pins | 0xfec0_0000 | by message |
//! | 8254 and port 0x61 | 0x40, 0x61 | IRQ 0 (IOAPIC pin 2) |
//! | keyboard controller | 0x60, 0x64 | IRQ 1, IRQ 12 |
//! | real-time clock | 0x70 | IRQ 8 |
//! | POST code | 0x80 | |
//! | system control port A | 0x92 | |
//! | 16550A, COM1 | 0x3f8 | IRQ 4 |
//! | exit port of test guests | 0x501 | |
//! | ACPI PM block: events, control, timer, GPE0 | 0x600, 0x604, 0x608, 0x60c | IRQ 9 (SCI) |
//! | reset control | 0xcf9 | |
//! | with [`MicrovmConfig::testdev`]: exit port where QEMU's tests have it | 0xf4 | |
//! | the same: pc-testdev | 0xe0 to 0xeb, 0x2000 to 0x2017, 0xff00_0000 | each, on request |
//! | the same: fw_cfg, numbers of processors and size of RAM | 0x510 | |
//!
//! RAM begins at 0, leaves out 0xc000_0000 to 4 GiB, and goes on from there. Ports and addresses that nobody
//! claims read all-ones and ignore writes. Address line 20 always works. The processor starts as the
//! kernel's boot protocol says, the ACPI tables are at 0xe_0000.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use trapline_boot::acpi::{self, AcpiConfig};
use trapline_boot::{RamRange, Request};
use trapline_chipset::{
    A20Gate, AcpiPm, AcpiPmConfig, DebugExit, FwCfg, I8042, PcTestdev, Port92, PostCode, ResetControl, Rtc,
    SystemEvents, Uart, acpi_pm, fw_cfg, i8042, pc_testdev, reset_control,
};
use trapline_device::bus::{MmioBus, PioBus, PioBusBuilder, SharedDevice};
use trapline_device::{AccessSize, Clock, HostClock, IrqLine, IrqSink, PortIo};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::pic::PicPair;
use trapline_irqchip::pit::Pit;
use trapline_memory::{GuestRam, RamConfig};
use trapline_vcpu::{
    Accel, CpuModel, Engine, InstructionClock, Kicker, Vcpu, Vm, VmConfig, choose, cpuid, create_vm,
};

use crate::console::{Console, Flusher, Input, Port, Serial};
use crate::control::{Control, Outcome};
use crate::irq::{Intr, IsaLines};
use crate::remote::Remote;
use crate::run::{Routes, Shared, run_vcpu};
use crate::stats::Stats;
use crate::timers::{Timed, Timers, Touched};
use crate::{Error, Result, boot_state, event_loop, host};

/// The most processors: xAPIC IDs 0 to 253, and one for the IOAPIC.
pub const MAX_CPUS: u32 = 254;
/// The most memory in bytes: 64 TiB, within the 46 physical address bits that processors commonly have.
pub const MAX_MEMORY: u64 = 1 << 46;
/// The least memory in bytes: all of the first MiB, where boot data and tables are.
const MIN_MEMORY: u64 = 1 << 20;

/// What the real-time clock of a machine with [`MicrovmConfig::icount`] starts at, since 1970:
/// 1 January 2000, 00:00.
pub const ICOUNT_START: Duration = Duration::from_secs(946_684_800);

const IOAPIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
const TESTDEV: u64 = 0xff00_0000;
const COM1: u16 = 0x3f8;
const PM1A_EVENT: u16 = 0x600;
const PM1A_CONTROL: u16 = 0x604;
const PM_TIMER: u16 = 0x608;
const GPE0: u16 = 0x60c;
const RESET: u16 = 0xcf9;
const CONFIG_ADDRESS: u16 = 0xcf8;
/// What makes the reset control register reset: SYS_RST and RST_CPU.
const RESET_VALUE: u8 = 0x06;
const SLP_TYP_S5: u8 = 5;

const IRQ_TIMER: u32 = 0;
const IRQ_KEYBOARD: u32 = 1;
const IRQ_COM1: u32 = 4;
const IRQ_RTC: u32 = 8;
const IRQ_SCI: u32 = 9;
const IRQ_MOUSE: u32 = 12;

/// What a [`Microvm`] is made from.
#[derive(Debug)]
pub struct MicrovmConfig {
    /// RAM in bytes; a multiple of 4 KiB, at least 1 MiB.
    pub memory: u64,
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// What executes the guest.
    pub accel: Accel,
    /// The processor that the soft engine shows to the guest; `None`: its default.
    pub cpu: Option<CpuModel>,
    /// Deterministic mode: time is 2^`icount` nanoseconds for each instruction executed, so that two runs
    /// with the same files and no input are equal. One processor, on the soft engine. The real-time clock
    /// starts at [`ICOUNT_START`].
    pub icount: Option<u8>,
    /// The kernel: see [`trapline_boot`] for what it can be.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Where COM1 leads to.
    pub serial: Serial,
    /// Whether there are the devices that bare-metal test kernels written for QEMU expect: isa-debug-exit at
    /// port 0xf4, pc-testdev, and fw_cfg with what they ask for.
    pub testdev: bool,
}

impl MicrovmConfig {
    /// One processor, 512 MiB, the engine chosen automatically, COM1 on standard input and output.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            memory: 512 << 20,
            cpus: 1,
            accel: Accel::Auto,
            cpu: None,
            icount: None,
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            serial: Serial::Stdio,
            testdev: false,
        }
    }
}

/// The devices, for those who know them by their kind.
pub(crate) struct Devices {
    pub(crate) pic: PicPair,
    pub(crate) ioapic: IoApic,
    pub(crate) pit: Arc<Mutex<Timed<Pit>>>,
    pub(crate) rtc: Arc<Mutex<Timed<Rtc>>>,
    pub(crate) pm: Arc<Mutex<Timed<AcpiPm>>>,
    pub(crate) uart: Arc<Mutex<Uart>>,
    pub(crate) i8042: Arc<Mutex<I8042>>,
    pub(crate) port92: Arc<Mutex<Port92>>,
    pub(crate) reset: Arc<Mutex<ResetControl>>,
    pub(crate) debug_exit: Arc<Mutex<DebugExit>>,
    pub(crate) post: Arc<Mutex<PostCode>>,
    pub(crate) console: Arc<Mutex<Flusher>>,
    pub(crate) testdev: Option<Testdev>,
}

/// What test kernels expect.
pub(crate) struct Testdev {
    pub(crate) dev: Arc<Mutex<PcTestdev>>,
    pub(crate) fw_cfg: Arc<Mutex<FwCfg>>,
}

/// A machine of the board `microvm`, loaded and ready to run.
pub struct Microvm {
    pub(crate) shared: Arc<Shared>,
    pub(crate) devices: Devices,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) ram: GuestRam,
    console: Console,
    input: Option<Input>,
    serial_path: Option<String>,
    /// See [`Port::peer`].
    _serial_peer: Option<std::fs::File>,
    engine: String,
    wall: Duration,
    cpu: Duration,
}

/// Locks; a device whose earlier user panicked is used on as it is.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Microvm {
    /// Makes the machine and loads the kernel.
    ///
    /// # Errors
    /// When the engine cannot be used, the memory cannot be had, or something is wrong with the files.
    pub fn new(config: MicrovmConfig) -> Result<Self> {
        let MicrovmConfig { memory, cpus, accel, cpu, icount, kernel, initrd, cmdline, serial, testdev } =
            config;
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(Error::Cpus(cpus));
        }
        if memory > MAX_MEMORY {
            return Err(Error::MemoryTooLarge { size: memory });
        }
        if icount.is_some() && cpus > 1 {
            return Err(Error::IcountCpus(cpus));
        }
        let ram = GuestRam::new(&RamConfig::new(memory))?;
        if memory < MIN_MEMORY {
            return Err(Error::MemoryTooSmall { size: memory });
        }
        let rsdp = acpi::write(ram.memory(), &acpi_config(cpus))?;
        let request = Request {
            kernel: &kernel,
            initrd: initrd.as_deref(),
            command_line: &cmdline,
            rsdp: Some(rsdp),
            protocol: None,
        };
        let ranges: Vec<_> =
            ram.slots().iter().map(|slot| RamRange { base: slot.gpa, size: slot.size }).collect();
        let loaded = trapline_boot::load(ram.memory(), &ranges, &request)?;

        let icount = icount.map(InstructionClock::new).transpose()?.map(Arc::new);
        let (clock, today): (Arc<dyn Clock>, _) = match &icount {
            Some(icount) => (icount.clone(), ICOUNT_START),
            None => (Arc::new(HostClock::new()), since_epoch()),
        };
        // What only the soft engine has decides for it.
        let soft_only = cpu.is_some() || icount.is_some();
        let choice = choose(if accel == Accel::Auto && soft_only { Accel::Soft } else { accel })?;
        let vm_config = VmConfig { clock: clock.clone(), cpu, icount, ..VmConfig::default() };
        let vm = create_vm(choice.engine, &vm_config)?;
        vm.set_memory(ram.arena(), ram.slots())?;
        let mut vcpus = make_vcpus(&*vm, cpus)?;
        let control = Control::new()?;
        control.set_kickers(vcpus.iter().map(|vcpu| vcpu.kicker()).collect());
        let Some(vcpu0) = vcpus.first_mut() else { return Err(Error::Cpus(cpus)) };
        boot_state::set_virtual_wire(&mut **vcpu0)?;
        boot_state::set_entry(&mut **vcpu0, &loaded.entry)?;

        let Port { output, input, path, peer } = serial.open()?;
        let touched = Touched::default();
        let console = Console::new(output, control.clone(), clock.clone(), touched.clone());
        let intr = Arc::new(Intr::default());
        intr.connect(vcpu0.kicker());
        let mut devices = Devices::new(&*vm, &intr, &clock, today, &control, &console, &touched);
        if testdev {
            devices.testdev = Some(Testdev::new(isa_lines(&devices.pic, &devices.ioapic), memory, cpus));
        }
        devices.set_memory_size(&ranges);
        devices.set_up_pic();
        let input = input.map(|file| Input::new(file, devices.uart.clone())).transpose()?;
        let timers = devices.timers(vcpu0.kicker(), choice.engine, clock, touched)?;
        let shared = Arc::new(devices.wire(vm, intr, timers, control)?);
        shared.routes.tell(&shared.ioapic, &*shared.vm)?;
        Ok(Self {
            shared,
            devices,
            vcpus,
            ram,
            console,
            input,
            serial_path: path,
            _serial_peer: peer,
            engine: choice.why,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
        })
    }

    /// Runs the guest until it ends, or somebody ends it. The calling thread serves the host's side; each
    /// processor gets a thread of its own.
    ///
    /// After [`Outcome::UserQuit`] the machine can be run on.
    ///
    /// # Errors
    /// When the host fails. The state of the guest is then undefined.
    pub fn run(&mut self) -> Result<Outcome> {
        // Restored when this function is left, in whichever way.
        let _raw = self.input.as_ref().map(Input::raw_mode).transpose()?;
        let (start, cpu) = (Instant::now(), host::cpu_time());
        let shared = &*self.shared;
        let panicked = thread::scope(|scope| {
            let mut threads = Vec::new();
            for vcpu in &mut self.vcpus {
                let id = vcpu.id();
                let run = move || {
                    // A panic, too, must end the run.
                    let _end = EndOfThread(&shared.control);
                    if let Err(e) = run_vcpu(shared, &mut **vcpu) {
                        shared.control.finish(Err(e));
                    }
                };
                match thread::Builder::new().name(format!("vcpu{id}")).spawn_scoped(scope, run) {
                    Ok(thread) => threads.push((id, thread)),
                    Err(e) => shared.control.finish(Err(Error::host("thread of a vcpu")(e))),
                }
            }
            if let Err(e) = event_loop::serve(&shared.control, &shared.timers, self.input.as_mut()) {
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

    /// A handle to end the run, or press the power button, from elsewhere.
    pub fn remote(&self) -> Remote {
        Remote::new(self.shared.control.clone(), self.shared.clone(), self.devices.pm.clone())
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The path of the pseudo-terminal, for [`Serial::Pty`].
    pub fn serial_path(&self) -> Option<&str> {
        self.serial_path.as_deref()
    }

    /// The engine, and why it was chosen, in one line.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// What the guest has cost so far.
    pub fn stats(&self) -> Stats {
        Stats {
            engine: self.engine.clone(),
            wall: self.wall,
            cpu: self.cpu,
            exits: self.vcpus.iter().map(|vcpu| vcpu.stats().clone()).collect(),
            ports: self.shared.ports.stats().collect(),
            mmio: self.shared.mmio.stats().collect(),
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

/// What the tables tell about the board.
fn acpi_config(cpus: u32) -> AcpiConfig {
    AcpiConfig {
        apic_ids: (0..cpus).collect(),
        local_apic_address: LOCAL_APIC,
        io_apic: Some(acpi::IoApic { id: 0, address: IOAPIC, gsi_base: 0 }),
        pic: true,
        timer_override: true,
        sci: IRQ_SCI as u8,
        pm1a_event: PM1A_EVENT,
        pm1a_control: PM1A_CONTROL,
        pm_timer: Some(PM_TIMER),
        gpe0: Some((GPE0, 4)),
        smi: None,
        reset: Some((RESET, RESET_VALUE)),
        s5_sleep_type: SLP_TYP_S5,
        i8042: true,
        vga: false,
        rtc: Some(0x32),
        serial: vec![(COM1, IRQ_COM1 as u8)],
        virtio_mmio: Vec::new(),
    }
}

/// The host's time of day.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A device that is on a bus and known by its kind.
fn shared<D>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

/// The ISA interrupt lines of a pair of 8259A and an IOAPIC.
fn isa_lines(pic: &PicPair, ioapic: &IoApic) -> Arc<dyn IrqSink> {
    Arc::new(IsaLines { pic: pic.sink(), ioapic: ioapic.sink() })
}

impl Testdev {
    fn new(lines: Arc<dyn IrqSink>, memory: u64, cpus: u32) -> Self {
        let mut fw_cfg = FwCfg::new();
        fw_cfg.add(fw_cfg::RAM_SIZE, memory.to_le_bytes());
        for key in [fw_cfg::NB_CPUS, fw_cfg::MAX_CPUS] {
            fw_cfg.add(key, (cpus as u16).to_le_bytes()); // at most MAX_CPUS
        }
        Self { dev: shared(PcTestdev::new(lines)), fw_cfg: shared(fw_cfg) }
    }

    fn wire_ports(&self, ports: &mut PioBusBuilder) -> Result<()> {
        ports.register(0xe0, 4, self.dev.clone(), pc_testdev::LATCH, "testdev-latch")?;
        ports.register(0xe4, 4, self.dev.clone(), pc_testdev::FLUSH, "testdev-flush")?;
        ports.register(0xe8, 4, self.dev.clone(), pc_testdev::BYTES, "testdev-bytes")?;
        ports.register(
            0x2000,
            pc_testdev::LINE_COUNT.into(),
            self.dev.clone(),
            pc_testdev::LINES,
            "testdev-lines",
        )?;
        ports.register(0x510, 2, self.fw_cfg.clone(), 0, "fw-cfg")?;
        Ok(())
    }
}

impl Devices {
    fn new(
        vm: &dyn Vm,
        intr: &Arc<Intr>,
        clock: &Arc<dyn Clock>,
        today: Duration,
        control: &Arc<Control>,
        console: &Console,
        touched: &Touched,
    ) -> Self {
        let pic = PicPair::new(IrqLine::new(intr.clone(), 0));
        let ioapic = IoApic::new(vm.msi_sink());
        let lines = isa_lines(&pic, &ioapic);
        let irq = |pin| IrqLine::new(lines.clone(), pin);
        let events: Arc<dyn SystemEvents> = control.clone();
        let a20 = Arc::new(A20Gate::new(events.clone()));
        let pm_config = AcpiPmConfig {
            timer_32bit: true,
            always_enabled: true,
            slp_typ_s5: SLP_TYP_S5,
            ..AcpiPmConfig::default()
        };
        let pm = AcpiPm::new(pm_config, irq(IRQ_SCI), clock.clone(), events.clone());
        let output = Box::new(console.clone());
        Self {
            pit: Timed::new(Pit::new(clock.clone(), irq(IRQ_TIMER)), touched),
            rtc: Timed::new(Rtc::new(irq(IRQ_RTC), clock.clone(), today), touched),
            pm: Timed::new(pm, touched),
            uart: shared(Uart::new("serial0", irq(IRQ_COM1), output)),
            i8042: shared(I8042::new(irq(IRQ_KEYBOARD), irq(IRQ_MOUSE), a20.clone(), events.clone())),
            port92: shared(Port92::new(a20, events.clone())),
            reset: shared(ResetControl::new(events.clone())),
            debug_exit: shared(DebugExit::new(events)),
            post: shared(PostCode::new()),
            console: shared(console.flusher()),
            testdev: None,
            pic,
            ioapic,
        }
    }

    /// Initialises the 8259A pair as a PC's firmware does: IRQ 0 to 7 at vectors 08h to 0fh, IRQ 8 to 15 at 70h
    /// to 77h. None is masked, but no device asks before it was set up.
    fn set_up_pic(&self) {
        const MASTER: [u8; 4] = [0x11, 0x08, 1 << 2, 0x01]; // ICW1 to ICW4: cascade at pin 2
        const SLAVE: [u8; 4] = [0x11, 0x70, 2, 0x01];
        let mut pic = self.pic.clone();
        for (region, words) in [(0, MASTER), (1, SLAVE)] {
            for (offset, word) in [0, 1, 1, 1].into_iter().zip(words) {
                pic.write(region, offset, AccessSize::Byte, word.into());
            }
        }
    }

    /// Tells the CMOS memory how much RAM there is.
    fn set_memory_size(&self, ram: &[RamRange]) {
        let (low, high): (Vec<_>, Vec<_>) = ram.iter().partition(|range| range.base < 1 << 32);
        let sum = |ranges: Vec<&RamRange>| ranges.iter().map(|range| range.size).sum();
        lock(&self.rtc).set_memory_size(sum(low), sum(high));
    }

    /// The devices that time drives, and who looks after them.
    fn timers(
        &self,
        vcpu0: Kicker,
        engine: Engine,
        clock: Arc<dyn Clock>,
        touched: Touched,
    ) -> Result<Timers> {
        let devices: Vec<SharedDevice> =
            vec![self.pit.clone(), self.rtc.clone(), self.pm.clone(), self.console.clone()];
        match engine {
            Engine::Soft => Ok(Timers::on_vcpu0(clock, devices, touched, vcpu0)),
            Engine::Kvm => Timers::on_timer(clock, devices, touched),
        }
    }

    /// Puts the devices on their buses.
    fn wire(
        &self,
        vm: Arc<dyn Vm>,
        intr: Arc<Intr>,
        timers: Timers,
        control: Arc<Control>,
    ) -> Result<Shared> {
        let pic: SharedDevice = shared(self.pic.clone());
        let mut ports = PioBus::builder();
        ports.register(0x20, 2, pic.clone(), 0, "pic0")?;
        ports.register(0xa0, 2, pic.clone(), 1, "pic1")?;
        ports.register(0x4d0, 2, pic, 2, "elcr")?;
        ports.register(0x40, 4, self.pit.clone(), 0, "pit")?;
        ports.register(0x61, 1, self.pit.clone(), 1, "port61")?;
        ports.register(0x60, 1, self.i8042.clone(), i8042::DATA, "i8042-data")?;
        ports.register(0x64, 1, self.i8042.clone(), i8042::COMMAND, "i8042-cmd")?;
        ports.register(0x70, 2, self.rtc.clone(), 0, "rtc")?;
        ports.register(0x80, 1, self.post.clone(), 0, "post")?;
        ports.register(0x92, 1, self.port92.clone(), 0, "port92")?;
        ports.register(COM1, 8, self.uart.clone(), 0, "serial0")?;
        ports.register(0x501, 4, self.debug_exit.clone(), 0, "debug-exit")?;
        ports.register(PM1A_EVENT, 4, self.pm.clone(), acpi_pm::PM1A_EVT, "pm1a-event")?;
        ports.register(PM1A_CONTROL, 2, self.pm.clone(), acpi_pm::PM1A_CNT, "pm1a-control")?;
        ports.register(PM_TIMER, 4, self.pm.clone(), acpi_pm::PM_TMR, "pm-timer")?;
        ports.register(GPE0, 4, self.pm.clone(), acpi_pm::GPE0, "gpe0")?;
        // No PCI: probing for it must not reach the byte in its middle.
        ports.register(CONFIG_ADDRESS, 4, self.reset.clone(), reset_control::CONFIG_ADDRESS, "reset")?;
        if let Some(testdev) = &self.testdev {
            ports.register(0xf4, 4, self.debug_exit.clone(), 0, "isa-debug-exit")?;
            testdev.wire_ports(&mut ports)?;
        }
        let mut mmio = MmioBus::builder();
        mmio.register(IOAPIC.into(), 0x1000, shared(self.ioapic.clone()), 0, "ioapic")?;
        if let Some(testdev) = &self.testdev {
            let size = pc_testdev::MEMORY_SIZE as u64;
            mmio.register(TESTDEV, size, testdev.dev.clone(), pc_testdev::MEMORY, "testdev-memory")?;
        }
        let pm = self.pm.clone();
        Ok(Shared {
            vm,
            ports: ports.build(),
            mmio: mmio.build(),
            pic: self.pic.clone(),
            intr,
            ioapic: self.ioapic.clone(),
            routes: Routes::default(),
            timers,
            control,
            wake: Box::new(move || lock(&pm).wake()),
        })
    }
}
