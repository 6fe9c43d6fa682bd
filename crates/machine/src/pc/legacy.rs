//! What a PC has beside the devices of every board: HPET, DMA controllers, SMBus, parallel port.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use trapline_chipset::{Dma, Hpet, Parallel, Smbus, dma, hpet, parallel};
use trapline_device::bus::SharedDevice;
use trapline_device::{IrqLine, SaveRestore};
use trapline_pci::BusLayout;

use crate::Result;
use crate::chassis::{Core, lock};
use crate::devices::{Devices, isa_lines, shared};
use crate::timers::Timed;

pub(crate) const HPET: u32 = 0xfed0_0000;
/// First port and interrupt of the parallel port.
pub(crate) const LPT1: (u16, u8) = (0x378, 7);
/// The inputs of the I/O APIC that the HPET's timers can be routed to: those that no other device has.
const HPET_PINS: std::ops::Range<u8> = 16..24;

/// The devices.
pub(crate) struct Legacy {
    pub(crate) hpet: Arc<Mutex<Timed<Hpet>>>,
    pub(crate) smbus: Arc<Mutex<Smbus>>,
    dma: Arc<Mutex<Dma>>,
    parallel: Arc<Mutex<Parallel>>,
}

/// Saved states of [`Legacy`], one field for each device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LegacyStates {
    hpet: <Hpet as SaveRestore>::State,
    smbus: <Smbus as SaveRestore>::State,
    dma: <Dma as SaveRestore>::State,
    parallel: <Parallel as SaveRestore>::State,
}

impl Legacy {
    /// The parallel port's printer is `printer`.
    pub(crate) fn new(core: &Core, devices: &Devices, printer: Box<dyn Write + Send>) -> Self {
        let ioapic = devices.ioapic.sink();
        let routes = HPET_PINS.map(|pin| (pin, IrqLine::new(ioapic.clone(), pin.into()))).collect();
        let timers = Hpet::new(core.clock.clone(), routes, devices.legacy_lines.clone());
        let irq = IrqLine::new(isa_lines(&devices.pic, &devices.ioapic), LPT1.1.into());
        Self {
            hpet: Timed::new(timers, &core.touched),
            smbus: shared(Smbus::new()),
            dma: shared(Dma::new()),
            parallel: shared(Parallel::new("parallel0", irq, printer)),
        }
    }

    /// Those that time drives.
    pub(crate) fn timed(&self) -> SharedDevice {
        self.hpet.clone()
    }

    /// Puts them on the buses, but for the SMBus, whose place a PCI function has.
    pub(crate) fn wire(&self, layout: &mut BusLayout) -> Result<()> {
        let ports = &mut layout.pio;
        ports.register(0x00, 16, self.dma.clone(), dma::FIRST, "dma0")?;
        ports.register(0xc0, 32, self.dma.clone(), dma::SECOND, "dma1")?;
        ports.register(0x81, 15, self.dma.clone(), dma::PAGES, "dma-pages")?;
        ports.register(LPT1.0, parallel::PORTS, self.parallel.clone(), 0, "parallel0")?;
        layout.mmio.register(HPET.into(), hpet::SIZE, self.hpet.clone(), 0, "hpet")?;
        Ok(())
    }

    pub(crate) fn save(&self) -> LegacyStates {
        let Self { hpet, smbus, dma, parallel } = self;
        LegacyStates {
            hpet: lock(hpet).save(),
            smbus: lock(smbus).save(),
            dma: lock(dma).save(),
            parallel: lock(parallel).save(),
        }
    }

    pub(crate) fn restore(&self, states: LegacyStates) -> Result<()> {
        let LegacyStates { hpet, smbus, dma, parallel } = states;
        lock(&self.hpet).restore(hpet)?;
        lock(&self.smbus).restore(smbus)?;
        lock(&self.dma).restore(dma)?;
        lock(&self.parallel).restore(parallel)?;
        Ok(())
    }
}
