//! The attribute controller: ports 0x3c0 and 0x3c1.

use serde::{Deserialize, Serialize};

/// Sixteen palette registers, mode control, overscan, plane enable, panning, colour select.
const MASKS: [u8; 21] = {
    let mut masks = [0x3f; 21];
    masks[MODE] = 0xef;
    masks[OVERSCAN] = 0xff;
    masks[PANNING] = 0x0f;
    masks[COLOUR_SELECT] = 0x0f;
    masks
};

const MODE: usize = 0x10;
const OVERSCAN: usize = 0x11;
const PLANE_ENABLE: usize = 0x12;
const PANNING: usize = 0x13;
const COLOUR_SELECT: usize = 0x14;

/// Of the index: the palette is the display's, not the processor's; without it the screen is blank.
const PALETTE_SOURCE: u8 = 0x20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attribute {
    index: u8,
    registers: [u8; 21],
    /// The next write to 0x3c0 is data.
    data: bool,
}

impl Attribute {
    pub fn index(&self) -> u8 {
        self.index
    }

    /// A write to 0x3c0: index and data take turns.
    pub fn write(&mut self, value: u8) {
        if self.data {
            let at = usize::from(self.index & 0x1f);
            if let (Some(register), Some(mask)) = (self.registers.get_mut(at), MASKS.get(at)) {
                *register = value & mask;
            }
        } else {
            self.index = value & 0x3f;
        }
        self.data = !self.data;
    }

    /// A read of status register 1: the next write to 0x3c0 is an index.
    pub fn reset_flip_flop(&mut self) {
        self.data = false;
    }

    /// A read of 0x3c1.
    pub fn read(&self) -> u8 {
        self.get(usize::from(self.index & 0x1f))
    }

    fn get(&self, at: usize) -> u8 {
        self.registers.get(at).copied().unwrap_or(0)
    }

    pub fn enabled(&self) -> bool {
        self.index & PALETTE_SOURCE != 0
    }

    /// Whether the ninth dot of line-drawing characters repeats the eighth.
    pub fn line_graphics(&self) -> bool {
        self.get(MODE) & 4 != 0
    }

    /// Whether attribute bit 7 blinks, rather than that it brightens the background.
    pub fn blink(&self) -> bool {
        self.get(MODE) & 8 != 0
    }

    /// Whether what lies below the line compare is not panned.
    pub fn split_unpanned(&self) -> bool {
        self.get(MODE) & 0x20 != 0
    }

    /// By how many dots the picture is moved to the left, in characters of `dots` dots.
    pub fn panning(&self, dots: usize) -> usize {
        match (dots, usize::from(self.get(PANNING))) {
            (9, 8..) => 0,
            (9, pan) => pan + 1,
            (_, pan) => pan & 7,
        }
    }

    /// The index into the colour table of a colour of four bits.
    pub fn colour(&self, colour: u8) -> u8 {
        let palette = self.get(usize::from(colour & 0xf & self.get(PLANE_ENABLE)));
        let select = self.get(COLOUR_SELECT);
        if self.get(MODE) & 0x80 != 0 { palette & 0x0f | select << 4 } else { palette | select << 4 & 0xc0 }
    }

    pub fn possible(&self) -> bool {
        self.index < 0x40 && super::within(&self.registers, &MASKS)
    }
}
