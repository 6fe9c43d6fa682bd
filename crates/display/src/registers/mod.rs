//! The VGA's registers, a module for each of its parts.

mod attribute;
mod crtc;
mod dac;
mod graphics;
mod sequencer;

use serde::{Deserialize, Serialize};

pub(crate) use attribute::Attribute;
pub(crate) use crtc::Crtc;
pub(crate) use dac::{Dac, Rgb};
pub(crate) use graphics::{Graphics, ShiftMode, WriteMode};
pub(crate) use sequencer::Sequencer;

/// Miscellaneous output: registers of the CRTC and status register 1 are at 0x3dx, not at 0x3bx.
const MISC_COLOUR: u8 = 1 << 0;
/// Miscellaneous output: the processor can access the memory.
const MISC_RAM: u8 = 1 << 1;
/// Miscellaneous output: clock select, in bits 3:2.
const MISC_CLOCK: u8 = 3 << 2;
/// Bits of the miscellaneous output register that there are.
const MISC_BITS: u8 = 0xef;
/// Bits of the feature control register that there are.
const FEATURE_BITS: u8 = 0x0b;

/// Everything behind ports 0x3b0 to 0x3df.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub misc: u8,
    pub feature: u8,
    pub sequencer: Sequencer,
    pub crtc: Crtc,
    pub graphics: Graphics,
    pub attribute: Attribute,
    pub dac: Dac,
}

impl Registers {
    /// Whether CRTC, feature control and status 1 are at the addresses of a colour adapter.
    pub fn colour(&self) -> bool {
        self.misc & MISC_COLOUR != 0
    }

    /// Whether the processor reaches the memory.
    pub fn ram_enabled(&self) -> bool {
        self.misc & MISC_RAM != 0
    }

    /// Whether dots come at 28.322 MHz, not 25.175.
    pub fn fast_clock(&self) -> bool {
        self.misc & MISC_CLOCK == 1 << 2
    }

    /// Whether the picture is switched off.
    pub fn blank(&self) -> bool {
        !self.attribute.enabled() || self.sequencer.screen_off()
    }

    pub fn write_misc(&mut self, value: u8) {
        self.misc = value & MISC_BITS;
    }

    pub fn write_feature(&mut self, value: u8) {
        self.feature = value & FEATURE_BITS;
    }

    /// Whether no register has bits that it does not have.
    pub fn possible(&self) -> bool {
        let Self { misc, feature, sequencer, crtc, graphics, attribute, dac } = self;
        misc & !MISC_BITS == 0
            && feature & !FEATURE_BITS == 0
            && sequencer.possible()
            && crtc.possible()
            && graphics.possible()
            && attribute.possible()
            && dac.possible()
    }
}

/// Whether no register has bits outside its mask.
fn within(registers: &[u8], masks: &[u8]) -> bool {
    registers.iter().zip(masks).all(|(register, mask)| register & !mask == 0)
}
