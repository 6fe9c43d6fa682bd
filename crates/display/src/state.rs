//! Saved state.

use serde::{Deserialize, Serialize};
use trapline_device::{RestoreError, SaveRestore};
use trapline_pci::ConfigState;

use crate::registers::Registers;
use crate::vbe::Vbe;
use crate::vga::Vga;

/// Saved state of a [`Vga`], video memory and all: of that, the pages that are not zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VgaState {
    config: ConfigState,
    registers: Registers,
    vbe: Vbe,
    latches: u32,
    memory: Vec<(u64, Vec<u8>)>,
}

impl SaveRestore for Vga {
    type State = VgaState;

    fn save(&self) -> VgaState {
        // The ROM and the monitor are wiring; what was seen last is the host's.
        let Self { config, memory, rom: _, edid: _, clock: _, registers, vbe, latches, seen: _ } = self;
        VgaState {
            config: config.save(),
            registers: registers.clone(),
            vbe: vbe.clone(),
            latches: *latches,
            memory: memory.save(),
        }
    }

    fn restore(&mut self, state: VgaState) -> Result<(), RestoreError> {
        let VgaState { config, registers, vbe, latches, memory } = state;
        let refuse = |what: &str| RestoreError { device: "vga", what: what.to_owned() };
        if !registers.possible() {
            return Err(refuse("a register has bits that it does not have"));
        }
        if !vbe.possible(self.memory.size() as u32) {
            return Err(refuse("a vbe mode that cannot be with this video memory"));
        }
        self.config.restore(config)?;
        self.memory.restore(&memory).ok_or_else(|| refuse("pages that the video memory does not have"))?;
        self.claim();
        (self.registers, self.vbe, self.latches, self.seen) = (registers, vbe, latches, None);
        Ok(())
    }
}
