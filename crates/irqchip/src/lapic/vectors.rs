//! A set of interrupt vectors: IRR, ISR or TMR.

use serde::{Deserialize, Serialize};

/// 256 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    fn word(&mut self, vector: u8) -> &mut u64 {
        let [a, b, c, d] = &mut self.0;
        match vector >> 6 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    pub fn set(&mut self, vector: u8) {
        *self.word(vector) |= 1 << (vector & 63);
    }

    pub fn clear(&mut self, vector: u8) {
        *self.word(vector) &= !(1 << (vector & 63));
    }

    pub fn get(mut self, vector: u8) -> bool {
        *self.word(vector) >> (vector & 63) & 1 != 0
    }

    /// The highest vector in the set.
    #[inline]
    pub fn highest(&self) -> Option<u8> {
        let [a, b, c, d] = self.0;
        let (word, base) = match () {
            () if d != 0 => (d, 192),
            () if c != 0 => (c, 128),
            () if b != 0 => (b, 64),
            () if a != 0 => (a, 0),
            () => return None,
        };
        Some(base + (63 - word.leading_zeros()) as u8)
    }

    /// Register `index` of the eight 32-bit registers that show the set.
    pub fn register(mut self, index: u8) -> u32 {
        let word = *self.word((index & 7) << 5);
        (word >> (32 * (index & 1))) as u32
    }

    /// Sets one of the eight registers.
    pub fn set_register(&mut self, index: u8, value: u32) {
        let shift = 32 * (index & 1);
        let word = self.word((index & 7) << 5);
        *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    /// Vectors below 16 cannot be requested or served.
    pub fn has_illegal(&self) -> bool {
        let [low, ..] = self.0;
        low & 0xffff != 0
    }
}
