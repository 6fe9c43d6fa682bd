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
//! | with [`MachineConfig::testdev`]: exit port where QEMU's tests have it | 0xf4 | |
//! | the same: pc-testdev | 0xe0 to 0xeb, 0x2000 to 0x2017, 0xff00_0000 | each, on request |
//! | the same: fw_cfg, numbers of processors and size of RAM | 0x510 | |
//!
//! RAM begins at 0, leaves out 0xc000_0000 to 4 GiB, and goes on from there. Ports and addresses that nobody
//! claims read all-ones and ignore writes. Address line 20 always works. The processor starts as the
//! kernel's boot protocol says, the ACPI tables are at 0xe_0000.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use trapline_boot::acpi::{self, AcpiConfig};
use trapline_boot::{RamRange, Request};
use trapline_chipset::{AcpiPm, AcpiPmConfig, FwCfg, acpi_pm, fw_cfg, reset_control};
use trapline_device::bus::{MmioBus, PioBus, PioBusBuilder, Swap};
use trapline_memory::{GuestRam, RamConfig};
use trapline_pci::Effects;

use crate::chassis::{Chassis, Core, Wiring, lock, make_ram};
use crate::config::{KernelConfig, MachineConfig};
use crate::devices::{COM1, Devices, IOAPIC, IRQ_COM1, IRQ_SCI, LOCAL_APIC, shared};
use crate::remote::Remote;
use crate::run::{Board, Shared};
use crate::state::MachineState;
use crate::stats::Stats;
use crate::testdev::Testdev;
use crate::timers::Timed;
use crate::{Error, Outcome, Result, boot_state};

const PM1A_EVENT: u16 = 0x600;
const PM1A_CONTROL: u16 = 0x604;
const PM_TIMER: u16 = 0x608;
const GPE0: u16 = 0x60c;
const RESET: u16 = 0xcf9;
const CONFIG_ADDRESS: u16 = 0xcf8;
/// What makes the reset control register reset: SYS_RST and RST_CPU.
const RESET_VALUE: u8 = 0x06;
const SLP_TYP_S5: u8 = 5;

/// What a [`Microvm`] is made from.
#[derive(Debug)]
pub struct MicrovmConfig {
    /// Memory, processors, the engine, the serial port.
    pub machine: MachineConfig,
    /// What to start.
    pub kernel: KernelConfig,
}

impl MicrovmConfig {
    /// The kernel alone, on the default machine.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self { machine: MachineConfig::default(), kernel: KernelConfig::new(kernel) }
    }
}

/// A machine of the board `microvm`, loaded and ready to run.
pub struct Microvm {
    chassis: Chassis,
    ram: GuestRam,
}

impl Microvm {
    /// Makes the machine and loads the kernel.
    ///
    /// # Errors
    /// When the engine cannot be used, the memory cannot be had, or something is wrong with the files.
    pub fn new(config: MicrovmConfig) -> Result<Self> {
        let MicrovmConfig { machine, kernel: KernelConfig { kernel, initrd, cmdline } } = config;
        let (memory, cpus, testdev) = (machine.memory, machine.cpus, machine.testdev);
        let ram = make_ram(&machine, &RamConfig::new(memory))?;
        let rsdp = acpi::write(ram.memory(), &acpi_config(cpus))?;
        let request = Request {
            kernel: &kernel,
            initrd: initrd.as_deref(),
            command_line: &cmdline,
            rsdp: Some(rsdp),
            text_screen: false,
            protocol: None,
        };
        let ranges: Vec<_> =
            ram.slots().iter().map(|slot| RamRange { base: slot.gpa, size: slot.size }).collect();
        let loaded = trapline_boot::load(ram.memory(), &ranges, &request)?;

        let mut core = Core::new(machine, ram.arena(), ram.slots())?;
        boot_state::set_virtual_wire(core.vcpu0()?)?;
        boot_state::set_entry(core.vcpu0()?, &loaded.entry)?;
        let pm_config = AcpiPmConfig {
            timer_32bit: true,
            always_enabled: true,
            slp_typ_s5: SLP_TYP_S5,
            ..AcpiPmConfig::default()
        };
        let mut devices = Devices::new(&core, pm_config);
        if testdev {
            devices.testdev = Some(Testdev::new(devices.lines.clone()));
            devices.fw_cfg = Some(fw_cfg(memory, cpus));
        }
        devices.set_memory_size(&ranges);
        devices.set_up_pic();

        let (mut ports, mut mmio) = (PioBus::builder(), MmioBus::builder());
        devices.wire(&mut ports, &mut mmio)?;
        wire(&devices, &mut ports)?;
        let wiring = Wiring {
            ports: Arc::new(Swap::new(ports.build())),
            mmio: Arc::new(Swap::new(mmio.build())),
            effects: Effects::new(),
            board: Box::new(Sleepless(devices.pm.clone())),
            timed: Vec::new(),
            watches: Vec::new(),
        };
        Ok(Self { chassis: Chassis::new(core, devices, wiring)?, ram })
    }

    /// Runs the guest until it ends, or somebody ends it. The calling thread serves the host's side; each
    /// processor gets a thread of its own.
    ///
    /// After [`Outcome::UserQuit`] the machine can be run on.
    ///
    /// # Errors
    /// When the host fails. The state of the guest is then undefined.
    pub fn run(&mut self) -> Result<Outcome> {
        self.chassis.run()
    }

    /// A handle to end the run, or press the power button, from elsewhere.
    pub fn remote(&self) -> Remote {
        self.chassis.remote()
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The path of the pseudo-terminal, for [`Serial::Pty`](crate::Serial::Pty).
    pub fn serial_path(&self) -> Option<&str> {
        self.chassis.serial_path()
    }

    /// The engine, and why it was chosen, in one line.
    pub fn engine(&self) -> &str {
        self.chassis.engine()
    }

    /// What the guest has cost so far.
    pub fn stats(&self) -> Stats {
        self.chassis.stats()
    }

    /// Takes the state, between two runs.
    ///
    /// # Errors
    /// When the engine cannot tell a part of it.
    pub fn save(&self) -> Result<MachineState> {
        self.chassis.save()
    }

    /// Puts a state into a machine that was made from the same configuration and has not run yet. The
    /// contents of memory are the caller's to restore.
    ///
    /// # Errors
    /// When the state is not one that this machine can be in; it is of no use then.
    pub fn restore(&mut self, mut state: MachineState) -> Result<()> {
        if state.take_pc().is_some() {
            return Err(Error::OtherDevices("pci"));
        }
        self.chassis.restore(state)
    }
}

/// What test kernels ask for: numbers of processors and the size of RAM.
fn fw_cfg(memory: u64, cpus: u32) -> Arc<Mutex<FwCfg>> {
    let mut fw_cfg = FwCfg::new();
    fw_cfg.add(fw_cfg::RAM_SIZE, memory.to_le_bytes());
    for key in [fw_cfg::NB_CPUS, fw_cfg::MAX_CPUS] {
        fw_cfg.add(key, (cpus as u16).to_le_bytes()); // at most MAX_CPUS
    }
    shared(fw_cfg)
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
        ..AcpiConfig::default()
    }
}

/// Puts on the bus what this board has in places of its own.
fn wire(devices: &Devices, ports: &mut PioBusBuilder) -> Result<()> {
    let pm = &devices.pm;
    ports.register(PM1A_EVENT, 4, pm.clone(), acpi_pm::PM1A_EVT, "pm1a-event")?;
    ports.register(PM1A_CONTROL, 2, pm.clone(), acpi_pm::PM1A_CNT, "pm1a-control")?;
    ports.register(PM_TIMER, 4, pm.clone(), acpi_pm::PM_TMR, "pm-timer")?;
    ports.register(GPE0, 4, pm.clone(), acpi_pm::GPE0, "gpe0")?;
    // No PCI: probing for it must not reach the byte in its middle.
    ports.register(CONFIG_ADDRESS, 4, devices.reset.clone(), reset_control::CONFIG_ADDRESS, "reset")?;
    Ok(())
}

/// A board whose address map never changes, and which wakes from every sleeping state at once.
struct Sleepless(Arc<Mutex<Timed<AcpiPm>>>);

impl Board for Sleepless {
    fn apply_effects(&self, shared: &Shared) -> Result<()> {
        shared.effects.take();
        Ok(())
    }

    fn sleep(&self, _shared: &Shared, _slp_typ: u8) {
        lock(&self.0).wake();
    }
}
