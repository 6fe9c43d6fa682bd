//! The sequencer: ports 0x3c4 and 0x3c5.

use serde::{Deserialize, Serialize};

/// Reset, clocking mode, map mask, character map select, memory mode.
const MASKS: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];

/// Where the eight fonts are in plane 2.
const FONTS: [u32; 8] = [0x0000, 0x4000, 0x8000, 0xc000, 0x2000, 0x6000, 0xa000, 0xe000];

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequencer {
    index: u8,
    registers: [u8; 5],
}

impl Sequencer {
    pub fn index(&self) -> u8 {
        self.index
    }

    pub fn set_index(&mut self, index: u8) {
        self.index = index & 7;
    }

    pub fn read(&self) -> u8 {
        self.registers.get(usize::from(self.index)).copied().unwrap_or(0)
    }

    pub fn write(&mut self, value: u8) {
        let at = usize::from(self.index);
        if let (Some(register), Some(mask)) = (self.registers.get_mut(at), MASKS.get(at)) {
            *register = value & mask;
        }
    }

    /// Dots of a character: 8 or 9.
    pub fn dots(&self) -> usize {
        let [_, clocking, ..] = self.registers;
        if clocking & 1 != 0 { 8 } else { 9 }
    }

    /// Whether each dot takes two of the clock: 320 instead of 640.
    pub fn half_clock(&self) -> bool {
        let [_, clocking, ..] = self.registers;
        clocking & 8 != 0
    }

    pub fn screen_off(&self) -> bool {
        let [_, clocking, ..] = self.registers;
        clocking & 0x20 != 0
    }

    /// The planes that are written.
    pub fn map_mask(&self) -> u8 {
        let [_, _, mask, ..] = self.registers;
        mask
    }

    /// Addresses in plane 2 of the fonts of characters whose attribute bit 3 is clear, and set.
    pub fn fonts(&self) -> [u32; 2] {
        let [_, _, _, select, _] = self.registers;
        let b = select & 3 | select >> 2 & 4;
        let a = select >> 2 & 3 | select >> 3 & 4;
        [b, a].map(|font| FONTS.get(usize::from(font)).copied().unwrap_or(0))
    }

    /// Whether odd addresses are written to odd planes, even ones to even planes.
    pub fn odd_even(&self) -> bool {
        let [.., mode] = self.registers;
        mode & 4 == 0
    }

    /// Whether the low two address bits choose the plane.
    pub fn chain4(&self) -> bool {
        let [.., mode] = self.registers;
        mode & 8 != 0
    }

    pub fn possible(&self) -> bool {
        self.index < 8 && super::within(&self.registers, &MASKS)
    }
}
