//! The devices that a PC has beyond those of every board.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use trapline_chipset::{DebugCon, Dma, Hpet, Parallel, Smbus, acpi_pm, dma, fw_cfg, hpet, parallel};
use trapline_device::bus::{PioBusBuilder, SharedDevice};
use trapline_device::{Device, DmaMemory, IrqLine, IrqSink};
use trapline_display::{Vga, VgaConfig};
use trapline_ide::{IdeConfig, PiixIde};
use trapline_memory::GuestRam;
use trapline_pci::{
    BusId, BusLayout, CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, DevFn, Effects, I440Fx, IntxRouter,
    PciRoot, Piix3, Piix4Pm, SharedRoot, piix,
};

use super::drives::Drives;
use super::flash::Flash;
use super::{
    DEBUG_CONSOLE, DISPLAY, FW_CFG_DMA, GPE0, HPET, IDE_FUNCTION, LPT1, PM_FUNCTION, SMI_CMD, SOUTH,
    SUBSYSTEM, VgaOptions,
};
use crate::chassis::{Core, lock};
use crate::devices::{Devices, IRQ_SCI, shared};
use crate::timers::Timed;
use crate::{Error, Result};

const IRQ_IDE: [u32; 2] = [14, 15];
pub(crate) const IRQ_LPT1: u32 = 7;
/// IOAPIC pins that the HPET's timers can interrupt on: those that nobody else has.
const HPET_PINS: std::ops::Range<u8> = 16..24;

/// The devices, for those who know them by their kind.
pub(crate) struct PcDevices {
    pub(crate) bridge: Arc<Mutex<I440Fx>>,
    pub(crate) isa_bridge: Arc<Mutex<Piix3>>,
    pub(crate) ide: Arc<Mutex<PiixIde>>,
    pub(crate) pm_function: Arc<Mutex<Piix4Pm>>,
    pub(crate) vga: Option<Arc<Mutex<Vga>>>,
    pub(crate) config_ports: Arc<Mutex<ConfigPorts>>,
    pub(crate) hpet: Arc<Mutex<Timed<Hpet>>>,
    pub(crate) dma: Arc<Mutex<Dma>>,
    pub(crate) smbus: Arc<Mutex<Smbus>>,
    pub(crate) parallel: Arc<Mutex<Parallel>>,
    pub(crate) debug_console: Arc<Mutex<DebugCon>>,
    pub(crate) flash: Option<Flash>,
}

/// Takes what a device sends.
type Output = Option<Box<dyn Write + Send>>;

/// What the devices are made of.
pub(crate) struct Parts<'a> {
    pub(crate) bridge: I440Fx,
    /// The one that `bridge` reports to.
    pub(crate) effects: Effects,
    pub(crate) vga: Option<Vga>,
    pub(crate) flash: Option<Flash>,
    pub(crate) drives: &'a Drives,
    /// RAM for DMA.
    pub(crate) memory: Arc<dyn DmaMemory>,
    pub(crate) debug_console: Output,
    pub(crate) printer: Output,
}

impl PcDevices {
    /// The devices, and the topology with the functions among them.
    pub(crate) fn new(core: &Core, devices: &Devices, parts: Parts<'_>) -> Result<(Self, SharedRoot)> {
        let Parts { bridge, effects, vga, flash, drives, memory, debug_console, printer } = parts;
        let lines = &devices.lines;
        let irq = |pin| IrqLine::new(lines.clone(), pin);
        let isa = (0..16).map(irq).collect();
        let bridge = shared(bridge);
        let isa_bridge = shared(Piix3::new(SUBSYSTEM, IntxRouter::new(isa)));
        let ide = PiixIde::new(IdeConfig {
            subsystem: SUBSYSTEM,
            memory,
            irqs: IRQ_IDE.map(irq),
            drives: drives.devices(),
        })?;
        let ide = shared(ide.with_decode_enabled());
        let pm_function = shared(Piix4Pm::without_smm(SUBSYSTEM, irq(IRQ_SCI)));
        let vga = vga.map(shared);
        let smbus = shared(Smbus::new());

        let mut root = PciRoot::new(effects);
        let pm_at = DevFn::new(SOUTH, PM_FUNCTION);
        root.add(BusId::ROOT, DevFn::new(0, 0), bridge.clone())?;
        root.add(BusId::ROOT, DevFn::new(SOUTH, 0), isa_bridge.clone())?;
        root.add(BusId::ROOT, DevFn::new(SOUTH, IDE_FUNCTION), ide.clone())?;
        root.add(BusId::ROOT, pm_at, pm_function.clone())?;
        if let Some(vga) = &vga {
            root.add(BusId::ROOT, DevFn::new(DISPLAY, 0), vga.clone())?;
        }
        let pm = &devices.pm;
        let at = (BusId::ROOT, pm_at);
        root.redirect(at, piix::PM_EVENT, pm.clone(), acpi_pm::PM1A_EVT)?;
        root.redirect(at, piix::PM_CONTROL, pm.clone(), acpi_pm::PM1A_CNT)?;
        root.redirect(at, piix::PM_TIMER, pm.clone(), acpi_pm::PM_TMR)?;
        root.redirect(at, piix::SMBUS, smbus.clone(), 0)?;
        let root = Arc::new(Mutex::new(root));
        let mut config_ports = ConfigPorts::new(root.clone());
        config_ports.set_reset_control(devices.reset.clone(), 0);

        let ioapic: Arc<dyn IrqSink> = devices.ioapic.sink();
        let pins = HPET_PINS.map(|pin| (pin, IrqLine::new(ioapic.clone(), pin.into()))).collect();
        let hpet = Hpet::new(core.clock.clone(), pins, devices.legacy.clone());
        let output = |output: Output| output.unwrap_or_else(|| Box::new(std::io::sink()));
        let this = Self {
            bridge,
            isa_bridge,
            ide,
            pm_function,
            vga,
            config_ports: shared(config_ports),
            hpet: Timed::new(hpet, &core.touched),
            dma: shared(Dma::new()),
            smbus,
            parallel: shared(Parallel::new("parallel0", irq(IRQ_LPT1), output(printer))),
            debug_console: shared(DebugCon::new(output(debug_console))),
            flash,
        };
        Ok((this, root))
    }

    /// Puts on the buses what no PCI function claims.
    pub(crate) fn wire(&self, layout: &mut BusLayout, devices: &Devices) -> Result<()> {
        let Self { config_ports, hpet, dma, parallel, debug_console, .. } = self;
        let ports: &mut PioBusBuilder = &mut layout.pio;
        ports.register(CONFIG_PORTS, CONFIG_PORTS_LEN, config_ports.clone(), 0, "pci-config")?;
        ports.register(GPE0, 4, devices.pm.clone(), acpi_pm::GPE0, "gpe0")?;
        ports.register(SMI_CMD, 2, devices.pm.clone(), acpi_pm::SMI_CMD, "smi-command")?;
        ports.register(DEBUG_CONSOLE, 1, debug_console.clone(), 0, "debug-console")?;
        ports.register(LPT1, parallel::PORTS, parallel.clone(), 0, "parallel0")?;
        ports.register(0x00, 16, dma.clone(), dma::FIRST, "dma0")?;
        ports.register(0xc0, 32, dma.clone(), dma::SECOND, "dma1")?;
        ports.register(0x81, 15, dma.clone(), dma::PAGES, "dma-pages")?;
        if let Some(fw_cfg) = &devices.fw_cfg {
            ports.register(FW_CFG_DMA, 8, fw_cfg.clone(), fw_cfg::DMA, "fw-cfg-dma")?;
        }
        layout.mmio.register(HPET.into(), hpet::SIZE, hpet.clone(), 0, "hpet")?;
        self.flash.as_ref().map_or(Ok(()), |flash| flash.wire(layout))
    }

    /// The devices that time drives.
    pub(crate) fn timed(&self) -> Vec<SharedDevice> {
        vec![self.hpet.clone()]
    }

    /// Puts every device that is no PCI function into its power-on state; the topology resets those.
    pub(crate) fn reset(&self) {
        let Self {
            bridge: _,
            isa_bridge: _,
            ide: _,
            pm_function: _,
            vga: _,
            config_ports,
            hpet,
            dma,
            smbus,
            parallel,
            debug_console,
            flash,
        } = self;
        lock(config_ports).reset();
        lock(hpet).reset();
        lock(dma).reset();
        lock(smbus).reset();
        lock(parallel).reset();
        lock(debug_console).reset();
        if let Some(flash) = flash {
            lock(&flash.chip).reset();
        }
    }
}

/// The display, with its memory.
pub(crate) fn make_vga(options: &VgaOptions, core: &Core, ram: &mut GuestRam) -> Result<Vga> {
    let VgaOptions { bios, memory, resolution } = options;
    let rom = bios.as_deref().map(read_bios).transpose()?;
    let memory = ram.add_device_memory(*memory)?;
    Ok(Vga::new(VgaConfig { memory, rom, monitor: *resolution, clock: core.clock.clone() })?)
}

fn read_bios(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::Firmware { path: path.to_owned(), why: e.to_string() })
}
