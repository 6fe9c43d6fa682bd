//! The state of the devices that a PC has beyond those of every board.

use serde::{Deserialize, Serialize};
use trapline_chipset::{DebugCon, Dma, Hpet, Parallel, Pflash, Smbus};
use trapline_device::SaveRestore;
use trapline_display::Vga;
use trapline_ide::PiixIde;
use trapline_pci::{ConfigPorts, I440Fx, Piix3, Piix4Pm};

use super::devices::PcDevices;
use crate::chassis::lock;
use crate::state::State;
use crate::{Error, Result};

/// One field for each device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PcStates {
    bridge: State<I440Fx>,
    isa_bridge: State<Piix3>,
    ide: State<PiixIde>,
    pm_function: State<Piix4Pm>,
    vga: Option<State<Vga>>,
    config_ports: State<ConfigPorts>,
    hpet: State<Hpet>,
    dma: State<Dma>,
    smbus: State<Smbus>,
    parallel: State<Parallel>,
    debug_console: State<DebugCon>,
    flash: Option<State<Pflash>>,
}

impl PcDevices {
    /// Takes the state of all devices. No disk operation must be under way.
    pub(crate) fn save(&self) -> PcStates {
        let Self {
            bridge,
            isa_bridge,
            ide,
            pm_function,
            vga,
            config_ports,
            hpet,
            dma,
            smbus,
            parallel,
            debug_console,
            flash,
        } = self;
        PcStates {
            bridge: lock(bridge).save(),
            isa_bridge: lock(isa_bridge).save(),
            ide: lock(ide).save(),
            pm_function: lock(pm_function).save(),
            vga: vga.as_ref().map(|vga| lock(vga).save()),
            config_ports: lock(config_ports).save(),
            hpet: lock(hpet).save(),
            dma: lock(dma).save(),
            smbus: lock(smbus).save(),
            parallel: lock(parallel).save(),
            debug_console: lock(debug_console).save(),
            flash: flash.as_ref().map(|flash| lock(&flash.chip).save()),
        }
    }

    /// Puts a state back. The topology has to be looked at anew then, and the lines that devices have driven
    /// meanwhile be forgotten.
    pub(crate) fn restore(&self, states: PcStates) -> Result<()> {
        let PcStates {
            bridge,
            isa_bridge,
            ide,
            pm_function,
            vga,
            config_ports,
            hpet,
            dma,
            smbus,
            parallel,
            debug_console,
            flash,
        } = states;
        match (&self.vga, vga) {
            (Some(here), Some(vga)) => lock(here).restore(vga)?,
            (None, None) => {}
            _ => return Err(Error::OtherDevices("vga")),
        }
        match (&self.flash, flash) {
            (Some(here), Some(flash)) => lock(&here.chip).restore(flash)?,
            (None, None) => {}
            _ => return Err(Error::OtherDevices("flash")),
        }
        lock(&self.bridge).restore(bridge)?;
        lock(&self.isa_bridge).restore(isa_bridge)?;
        lock(&self.ide).restore(ide)?;
        lock(&self.pm_function).restore(pm_function)?;
        lock(&self.config_ports).restore(config_ports)?;
        lock(&self.hpet).restore(hpet)?;
        lock(&self.dma).restore(dma)?;
        lock(&self.smbus).restore(smbus)?;
        lock(&self.parallel).restore(parallel)?;
        lock(&self.debug_console).restore(debug_console)?;
        Ok(())
    }
}
