//! The memory window at 0xa0000: how accesses of the processor reach the planes.
//!
//! Byte `n` of plane `p` is byte `4 * n + p` of video memory, so that the four planes are read and written
//! as one 32-bit word: what the VGA's latches hold.

use trapline_memory::DeviceMemory;

use crate::registers::{Registers, WriteMode};

/// Bytes of a plane that the VGA's own modes can reach.
const PLANE: u32 = 0x1_0000;

/// For each set of planes, their bytes in a word.
const PLANES: [u32; 16] = {
    let mut words = [0; 16];
    let mut set = 0;
    while set < 16 {
        let mut plane = 0;
        while plane < 4 {
            if set >> plane & 1 != 0 {
                words[set] |= 0xff << (8 * plane);
            }
            plane += 1;
        }
        set += 1;
    }
    words
};

/// A word of which the planes in `set` are all ones.
fn planes(set: u8) -> u32 {
    PLANES.get(usize::from(set & 0xf)).copied().unwrap_or(0)
}

/// The same byte in all planes.
fn all(byte: u8) -> u32 {
    u32::from(byte) * 0x0101_0101
}

/// The byte of a plane.
fn plane(word: u32, plane: u32) -> u8 {
    (word >> (8 * (plane & 3))) as u8
}

/// The planes as the processor sees them.
pub(crate) struct Planes<'a> {
    pub memory: &'a DeviceMemory,
    pub registers: &'a Registers,
    pub latches: &'a mut u32,
    /// What the VBE adds to addresses: bytes of a plane. Zero in the VGA's own modes.
    pub bank: Option<u32>,
}

impl Planes<'_> {
    /// Where in video memory the word of an address in the planes is.
    fn word(&self, address: u32) -> u64 {
        match self.bank {
            None => u64::from(address % PLANE) * 4,
            Some(bank) => (u64::from(bank) + u64::from(address % PLANE)) * 4 % self.memory.size(),
        }
    }

    /// The address in the planes of an offset, and, in the modes where the offset chooses it, the plane or
    /// the parity of the planes.
    fn address(&self, offset: u32, odd_even: bool) -> (u32, Select) {
        if self.registers.sequencer.chain4() {
            // The two address bits that choose the plane are replaced by the two highest ones.
            let address = if self.bank.is_some() { offset >> 2 } else { offset & 0xfffc | offset >> 14 & 3 };
            (address, Select::Plane(offset & 3))
        } else {
            let chain = self.registers.graphics.chain_odd_even();
            let address = if chain { offset & 0xfffe | offset >> 16 & 1 } else { offset };
            (address, if odd_even { Select::Parity(offset & 1) } else { Select::All })
        }
    }

    /// A byte read at an offset from 0xa0000.
    pub fn read(&mut self, offset: u32) -> u8 {
        let graphics = &self.registers.graphics;
        let Some(offset) = graphics.map(offset) else { return 0xff };
        let (address, select) = self.address(offset, graphics.odd_even());
        let word = self.memory.read_u32(self.word(address)).unwrap_or(u32::MAX);
        *self.latches = word;
        if graphics.compares() {
            let differ = (word ^ planes(graphics.colour_compare())) & planes(graphics.colour_care());
            return !(0..4).fold(0, |bits, p| bits | plane(differ, p));
        }
        let map = u32::from(graphics.read_map());
        plane(
            word,
            match select {
                Select::Plane(plane) => plane,
                Select::Parity(odd) => map & 2 | odd,
                Select::All => map,
            },
        )
    }

    /// A byte written at an offset from 0xa0000.
    pub fn write(&mut self, offset: u32, byte: u8) {
        let (graphics, sequencer) = (&self.registers.graphics, &self.registers.sequencer);
        let Some(offset) = graphics.map(offset) else { return };
        let (address, select) = self.address(offset, sequencer.odd_even());
        let mask = sequencer.map_mask()
            & match select {
                Select::Plane(plane) => 1 << plane,
                Select::Parity(odd) => 0b0101 << odd,
                Select::All => 0xf,
            };
        let (latches, at) = (*self.latches, self.word(address));
        let rotated = byte.rotate_right(graphics.rotate());
        let through = |data: u32, mask: u8| {
            let mask = all(mask);
            graphics.combine(data, latches) & mask | latches & !mask
        };
        let value = match graphics.write_mode() {
            WriteMode::Data => {
                let set = planes(graphics.set_reset_enable());
                let data = all(rotated) & !set | planes(graphics.set_reset()) & set;
                through(data, graphics.bit_mask())
            }
            WriteMode::Latches => latches,
            WriteMode::Colour => through(planes(byte), graphics.bit_mask()),
            WriteMode::Masked => through(planes(graphics.set_reset()), graphics.bit_mask() & rotated),
        };
        let mask = planes(mask);
        let value = match mask {
            0 => return,
            u32::MAX => value,
            // A processor that writes to the framebuffer at the same time may lose: it does on hardware.
            _ => value & mask | self.memory.read_u32(at).unwrap_or(0) & !mask,
        };
        // Always within the memory, which is a power of two of at least four planes of 64 KiB.
        let _ = self.memory.write_u32(at, value);
    }
}

/// What the address says of the plane.
enum Select {
    /// Which it is.
    Plane(u32),
    /// 0: an even one, 1: an odd one.
    Parity(u32),
    /// Nothing.
    All,
}
