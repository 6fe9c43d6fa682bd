//! The board `pc`: an i440FX and PIIX3 with IDE disks, started by firmware or straight at a kernel.
//!
//! | device | PCI | ports or address | interrupt |
//! |---|---|---|---|
//! | i440FX host bridge | 00:00.0 8086:1237 | 0xcf8, 0xcfc | |
//! | PIIX3 ISA bridge | 00:01.0 8086:7000 | | PIRQ A to D to the ISA interrupts that firmware chooses |
//! | PIIX3 IDE | 00:01.1 8086:7010 | 0x1f0, 0x3f6, 0x170, 0x376, BAR 4 | IRQ 14, IRQ 15 |
//! | PIIX4 power management | 00:01.3 8086:7113 | events, control, timer at PMBASE; SMBus without devices | IRQ 9 (SCI) |
//! | GPE0, SMI command | | 0xafe0, 0xb2 | |
//! | 8259A pair, ELCR | | 0x20, 0xa0, 0x4d0 | INTR to LINT0 of vCPU 0 |
//! | IOAPIC, 24 pins | | 0xfec0_0000 | by message |
//! | 8254 and port 0x61 | | 0x40, 0x61 | IRQ 0 (IOAPIC pin 2) |
//! | HPET | | 0xfed0_0000 | IRQ 0, IRQ 8; IOAPIC pins 16 to 23 |
//! | 8237A pair, registers only | | 0x00, 0xc0, 0x81 | |
//! | keyboard controller | | 0x60, 0x64 | IRQ 1, IRQ 12 |
//! | real-time clock with CMOS memory | | 0x70 | IRQ 8 |
//! | POST code, system control port A | | 0x80, 0x92 | |
//! | 16550A, COM1 | | 0x3f8 | IRQ 4 |
//! | parallel port, LPT1 | | 0x378 | IRQ 7 |
//! | debug console | | 0x402 | |
//! | exit port of test guests | | 0x501 | |
//! | fw_cfg | | 0x510, 0x514 | |
//! | reset control | | 0xcf9 | |
//! | with [`MachineConfig::testdev`](crate::MachineConfig::testdev): as on the board [`microvm`](crate::microvm) | | | |
//!
//! # Memory
//!
//! RAM begins at 0, leaves out 0xc000_0000 to 4 GiB, and goes on from there. The firmware ROM ends at 4 GiB;
//! its last 128 KiB are also seen below 1 MiB, until the PAM registers of the host bridge show RAM there: each
//! of their 13 segments is read from ROM or RAM, and written to RAM or nowhere. 0xa0000 to 0xbffff is not RAM
//! but where SMRAM is opened. Devices' DMA always reaches the RAM behind ROM and display.
//!
//! # What is not there
//!
//! System management mode: the power management function says, as QEMU's does without SMM, that it is set up
//! already. Floppy and super-I/O: their ports, like all that nobody claims, read all-ones and ignore writes. Address line 20 always works.

mod access;
mod address_map;
mod drives;
mod host;
pub(crate) mod legacy;
mod tables;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use trapline_boot::RamRange;
use trapline_chipset::{AcpiPmConfig, DebugCon, FwCfg, acpi_pm, fw_cfg};
use trapline_device::bus::Swap;
use trapline_device::{DmaMemory, IrqLine, IrqSink};
use trapline_ide::{IdeConfig, PiixIde};
use trapline_memory::{GuestRam, RamConfig};
use trapline_pci::{
    BusId, BusLayout, CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, DevFn, Effects, I440Fx, IntxRouter,
    PciRoot, Piix3, Piix4Pm, piix,
};

pub use access::GuestAccess;
pub use drives::{DRIVES, DriveConfig, DriveError, DriveKind};

use crate::chassis::{Chassis, Core, Wiring, lock, make_ram};
use crate::config::MachineConfig;
use crate::control::Outcome;
use crate::devices::{Devices, IRQ_SCI, isa_lines, shared};
use crate::event_loop::Watch;
use crate::remote::Remote;
use crate::stats::Stats;
use crate::testdev::Testdev;
use crate::{Error, Result};
use address_map::AddressMap;
use drives::Drives;
use host::Host;
use legacy::Legacy;

/// Subsystem vendor and number of the chipset's functions: firmware knows a virtual machine by it.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// Device 1 of the first bus: the PIIX3 with its functions.
const SOUTH: u8 = 1;
const IDE_FUNCTION: u8 = 1;
const PM_FUNCTION: u8 = 3;
/// Where firmware puts the power management registers.
const PM1A_EVENT: u16 = 0x600;
const PM1A_CONTROL: u16 = 0x604;
const PM_TIMER: u16 = 0x608;
const GPE0: u16 = 0xafe0;
const SMI_CMD: u16 = 0xb2;
const FW_CFG: u16 = 0x510;
const FW_CFG_DMA: u16 = 0x514;
const DEBUG_CONSOLE: u16 = 0x402;
const IRQ_IDE: [u32; 2] = [14, 15];
/// SLP_TYP of S5, as the tables of this chipset's firmware have it.
const SLP_TYP_S5: u8 = 0;
/// Largest firmware: below it are the devices under 4 GiB.
const MAX_FIRMWARE: u64 = 8 << 20;

/// Firmware that starts the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The image: a ROM that ends at 4 GiB.
    pub image: PathBuf,
}

impl FromStr for Firmware {
    type Err = std::convert::Infallible;

    /// `seabios` is the file of Debian's package, everything else a path.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let image = match name {
            "seabios" => "/usr/share/seabios/bios-256k.bin",
            path => path,
        };
        Ok(Self { image: image.into() })
    }
}

/// What firmware boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootDevice {
    /// The hard disks.
    Disk,
    /// The CD-ROMs.
    Cdrom,
}

/// What a [`Pc`] is made from.
pub struct PcConfig {
    /// Memory, processors, the engine, the serial port.
    pub machine: MachineConfig,
    /// What the processor starts with.
    pub firmware: Firmware,
    /// Disks and CD-ROMs: at most [`DRIVES`].
    pub drives: Vec<DriveConfig>,
    /// What the firmware tries, best first.
    pub boot: Vec<BootDevice>,
    /// Takes what firmware writes to its debug console; dropped otherwise.
    pub debug_console: Option<Box<dyn Write + Send>>,
    /// Takes what the guest prints on its parallel port; dropped otherwise.
    pub printer: Option<Box<dyn Write + Send>>,
}

impl PcConfig {
    /// The default machine without drives, which boots from disks before CD-ROMs.
    pub fn new(firmware: Firmware) -> Self {
        Self {
            machine: MachineConfig::default(),
            firmware,
            drives: Vec::new(),
            boot: vec![BootDevice::Disk, BootDevice::Cdrom],
            debug_console: None,
            printer: None,
        }
    }
}

impl fmt::Debug for PcConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, firmware, drives, boot, debug_console: _, printer: _ } = self;
        f.debug_struct("PcConfig")
            .field("machine", machine)
            .field("firmware", firmware)
            .field("drives", drives)
            .field("boot", boot)
            .finish_non_exhaustive()
    }
}

/// A machine of the board `pc`, ready to run.
pub struct Pc {
    chassis: Chassis,
    ram: GuestRam,
    host: Arc<Host>,
    ide: Arc<Mutex<PiixIde>>,
    drives: Drives,
}

impl Pc {
    /// Makes the machine.
    ///
    /// # Errors
    /// When the engine cannot be used, the memory cannot be had, or something is wrong with the files.
    pub fn new(config: PcConfig) -> Result<Self> {
        let PcConfig { machine, firmware, drives, boot, debug_console, printer } = config;
        let (memory, cpus, testdev) = (machine.memory, machine.cpus, machine.testdev);
        let mut ram = make_ram(&machine, &RamConfig::new(memory))?;
        let ranges: Vec<_> =
            ram.slots().iter().map(|slot| RamRange { base: slot.gpa, size: slot.size }).collect();
        add_firmware(&mut ram, &firmware.image)?;
        let drives = Drives::open(drives)?;

        let dma: Arc<dyn DmaMemory> = Arc::new(ram.memory().clone());
        let map = AddressMap::new(ram.slots(), dma.clone());
        let effects = Effects::new();
        let bridge = I440Fx::new(SUBSYSTEM, effects.clone());
        let slots = map.slots(&bridge.shadows().collect::<Vec<_>>(), bridge.smram(), &[]);
        let core = Core::new(machine, ram.arena(), &slots)?;

        let pm = AcpiPmConfig {
            timer_32bit: true,
            always_enabled: true,
            slp_typ_s5: SLP_TYP_S5,
            ..AcpiPmConfig::default()
        };
        let mut devices = Devices::new(&core, pm);
        let lines = isa_lines(&devices.pic, &devices.ioapic);
        if testdev {
            devices.testdev = Some(Testdev::new(lines.clone()));
        }
        let printer = printer.unwrap_or_else(|| Box::new(std::io::sink()));
        devices.legacy = Some(Legacy::new(&core, &devices, printer));
        devices.set_memory_size(&ranges);
        tables::set_cmos(&devices, &drives, &boot, cpus);
        let mut fw_cfg = FwCfg::with_dma(dma.clone());
        fw_cfg.add_pc(&tables::pc_items(cpus, memory, &ranges, &drives, &boot))?;
        tables::add_acpi(&mut fw_cfg, &tables::acpi_config(cpus, &ranges))?;
        tables::add_smbios(&mut fw_cfg, &tables::smbios_config(cpus, &ranges))?;
        devices.fw_cfg = Some(shared(fw_cfg));

        let ide = shared(PiixIde::new(IdeConfig {
            subsystem: SUBSYSTEM,
            memory: dma,
            irqs: IRQ_IDE.map(|irq| IrqLine::new(lines.clone(), irq)),
            drives: drives.devices(),
        })?);
        let bridge = shared(bridge);
        let root = pci_root(&effects, bridge.clone(), &devices, &lines, ide.clone())?;
        let mut layout = BusLayout::default();
        devices.wire(&mut layout.pio, &mut layout.mmio)?;
        map.wire(&mut layout.mmio)?;
        let root = Arc::new(Mutex::new(root));
        wire(&mut layout, &devices, ConfigPorts::new(root.clone()), debug_console)?;

        let arena = ram.arena().clone();
        let host = Arc::new(Host { root, bridge, layout, map, arena, applying: Mutex::default() });
        effects.take(); // the buses are built with all of it
        let (ports, mmio) = host.buses();
        let watches = drives.events()?.into_iter().map(|event| {
            let ide = ide.clone();
            Watch { event, ready: Box::new(move || lock(&ide).complete()) }
        });
        let wiring = Wiring {
            ports: Arc::new(Swap::new(ports)),
            mmio: Arc::new(Swap::new(mmio)),
            effects,
            board: Box::new(host.clone()),
            watches: watches.collect(),
        };
        Ok(Self { chassis: Chassis::new(core, devices, wiring)?, ram, host, ide, drives })
    }

    /// Runs the guest until it ends, or somebody ends it. The calling thread serves the host's side; each
    /// processor gets a thread of its own. At the end everything that the guest has written is on its disks.
    ///
    /// After [`Outcome::UserQuit`] the machine can be run on.
    ///
    /// # Errors
    /// When the host fails. The state of the guest is then undefined.
    pub fn run(&mut self) -> Result<Outcome> {
        let outcome = self.chassis.run();
        lock(&self.ide).quiesce();
        let flushed = self.drives.flush();
        outcome.and_then(|outcome| flushed.map(|()| outcome))
    }

    /// Accesses as a processor of the guest makes them, to a machine that does not run.
    pub fn access(&mut self) -> GuestAccess<'_> {
        GuestAccess::new(&self.chassis.shared, &self.host, &self.ide)
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
}

/// Puts the firmware in front of 4 GiB.
fn add_firmware(ram: &mut GuestRam, path: &Path) -> Result<()> {
    let failed = |why: String| Error::Firmware { path: path.to_owned(), why };
    let image = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    let size = image.len() as u64;
    if size == 0 || size > MAX_FIRMWARE || !size.is_multiple_of(4096) {
        return Err(failed(format!("{size} bytes; expected a multiple of 4 KiB, at most 8 MiB")));
    }
    Ok(ram.add_rom((1 << 32) - size, &image)?)
}

/// The functions on the first bus.
fn pci_root(
    effects: &Effects,
    bridge: Arc<Mutex<I440Fx>>,
    devices: &Devices,
    lines: &Arc<dyn IrqSink>,
    ide: Arc<Mutex<PiixIde>>,
) -> Result<PciRoot> {
    let isa = (0..16).map(|irq| IrqLine::new(lines.clone(), irq)).collect();
    let pm_at = DevFn::new(SOUTH, PM_FUNCTION);
    let pm = Piix4Pm::without_smm(SUBSYSTEM, IrqLine::new(lines.clone(), IRQ_SCI));
    let mut root = PciRoot::new(effects.clone());
    root.add(BusId::ROOT, DevFn::new(0, 0), bridge)?;
    root.add(BusId::ROOT, DevFn::new(SOUTH, 0), shared(Piix3::new(SUBSYSTEM, IntxRouter::new(isa))))?;
    root.add(BusId::ROOT, DevFn::new(SOUTH, IDE_FUNCTION), ide)?;
    root.add(BusId::ROOT, pm_at, shared(pm))?;
    for (region, index) in [
        (piix::PM_EVENT, acpi_pm::PM1A_EVT),
        (piix::PM_CONTROL, acpi_pm::PM1A_CNT),
        (piix::PM_TIMER, acpi_pm::PM_TMR),
    ] {
        root.redirect((BusId::ROOT, pm_at), region, devices.pm.clone(), index)?;
    }
    if let Some(legacy) = &devices.legacy {
        root.redirect((BusId::ROOT, pm_at), piix::SMBUS, legacy.smbus.clone(), 0)?;
    }
    Ok(root)
}

/// Puts on the buses what this board has in places of its own and no PCI function claims.
fn wire(
    layout: &mut BusLayout,
    devices: &Devices,
    mut config_ports: ConfigPorts,
    debug_console: Option<Box<dyn Write + Send>>,
) -> Result<()> {
    let ports = &mut layout.pio;
    config_ports.set_reset_control(devices.reset.clone(), 0);
    ports.register(CONFIG_PORTS, CONFIG_PORTS_LEN, shared(config_ports), 0, "pci-config")?;
    ports.register(GPE0, 4, devices.pm.clone(), acpi_pm::GPE0, "gpe0")?;
    ports.register(SMI_CMD, 2, devices.pm.clone(), acpi_pm::SMI_CMD, "smi-command")?;
    let output = debug_console.unwrap_or_else(|| Box::new(std::io::sink()));
    ports.register(DEBUG_CONSOLE, 1, shared(DebugCon::new(output)), 0, "debug-console")?;
    if let Some(legacy) = &devices.legacy {
        legacy.wire(layout)?;
    }
    if let Some(fw_cfg) = &devices.fw_cfg {
        let ports = &mut layout.pio;
        ports.register(FW_CFG_DMA, 8, fw_cfg.clone(), fw_cfg::DMA, "fw-cfg-dma")?;
    }
    Ok(())
}
