//! The graphics controller: ports 0x3ce and 0x3cf.

use serde::{Deserialize, Serialize};

/// Set/reset, enable set/reset, colour compare, data rotate, read map select, mode, miscellaneous, colour
/// don't care, bit mask.
const MASKS: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];

/// What a write of the processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteMode {
    /// 0: rotated data, or set/reset, through function and bit mask.
    Data,
    /// 1: the latches.
    Latches,
    /// 2: each of the low four bits fills a plane.
    Colour,
    /// 3: set/reset, with rotated data as a second bit mask.
    Masked,
}

/// How bytes of the planes become dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShiftMode {
    /// Each plane gives a bit of eight dots.
    Planar,
    /// Planes 0 and 1 give the low two bits of four dots each, planes 2 and 3 the upper two.
    Interleaved,
    /// Each plane gives a dot of 256 colours.
    Packed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Graphics {
    index: u8,
    registers: [u8; 9],
}

impl Graphics {
    pub fn index(&self) -> u8 {
        self.index
    }

    pub fn set_index(&mut self, index: u8) {
        self.index = index & 0xf;
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

    /// A bit for each plane.
    pub fn set_reset(&self) -> u8 {
        let [value, ..] = self.registers;
        value
    }

    /// The planes that set/reset goes to in write mode 0.
    pub fn set_reset_enable(&self) -> u8 {
        let [_, enable, ..] = self.registers;
        enable
    }

    pub fn colour_compare(&self) -> u8 {
        let [_, _, compare, ..] = self.registers;
        compare
    }

    /// The planes that colour compare looks at.
    pub fn colour_care(&self) -> u8 {
        let [.., care, _] = self.registers;
        care
    }

    /// How far written data is rotated to the right.
    pub fn rotate(&self) -> u32 {
        let [_, _, _, rotate, ..] = self.registers;
        u32::from(rotate & 7)
    }

    /// Combines data with the latches: the function select bits of data rotate.
    pub fn combine(&self, data: u32, latches: u32) -> u32 {
        let [_, _, _, rotate, ..] = self.registers;
        match rotate >> 3 {
            0 => data,
            1 => data & latches,
            2 => data | latches,
            _ => data ^ latches,
        }
    }

    /// The plane that is read.
    pub fn read_map(&self) -> u8 {
        let [_, _, _, _, map, ..] = self.registers;
        map
    }

    fn mode(&self) -> u8 {
        let [_, _, _, _, _, mode, ..] = self.registers;
        mode
    }

    pub fn write_mode(&self) -> WriteMode {
        match self.mode() & 3 {
            0 => WriteMode::Data,
            1 => WriteMode::Latches,
            2 => WriteMode::Colour,
            _ => WriteMode::Masked,
        }
    }

    /// Whether reads compare colours (read mode 1).
    pub fn compares(&self) -> bool {
        self.mode() & 8 != 0
    }

    /// Whether odd addresses are read from odd planes, even ones from even planes.
    pub fn odd_even(&self) -> bool {
        self.mode() & 0x10 != 0
    }

    pub fn shift_mode(&self) -> ShiftMode {
        match self.mode() >> 5 {
            0 => ShiftMode::Planar,
            1 => ShiftMode::Interleaved,
            _ => ShiftMode::Packed,
        }
    }

    fn miscellaneous(&self) -> u8 {
        let [.., misc, _, _] = self.registers;
        misc
    }

    pub fn graphics_mode(&self) -> bool {
        self.miscellaneous() & 1 != 0
    }

    /// Whether address bit 0 chooses the plane only, and a higher bit takes its place.
    pub fn chain_odd_even(&self) -> bool {
        self.miscellaneous() & 2 != 0
    }

    /// The offset in display memory of an offset from 0xa0000; `None` where none is mapped.
    pub fn map(&self, offset: u32) -> Option<u32> {
        let (start, len) = match self.miscellaneous() >> 2 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        offset.checked_sub(start).filter(|offset| *offset < len)
    }

    /// The bits that come from the data, not from the latches.
    pub fn bit_mask(&self) -> u8 {
        let [.., mask] = self.registers;
        mask
    }

    pub fn possible(&self) -> bool {
        self.index < 16 && super::within(&self.registers, &MASKS)
    }
}
