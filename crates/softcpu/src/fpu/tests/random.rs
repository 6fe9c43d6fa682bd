//! Reproducible operands that favour the corners.

use crate::fpu::F80;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 33) % n
    }

    /// A significand of `bits` bits with runs and sparse patterns among the random ones.
    fn fraction(&mut self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let v = match self.below(8) {
            0 => 0,
            1 => mask,
            2 => 1 << self.below(bits.into()),
            3 => mask ^ (1 << self.below(bits.into())),
            4 => mask << self.below(bits.into()),
            5 => self.bits() << self.below(64),
            6 => self.bits() >> self.below(64),
            _ => self.bits(),
        };
        v & mask
    }

    /// A number in an interchange format, right-aligned.
    pub fn float(&mut self, exponent_bits: u32, fraction_bits: u32) -> u64 {
        let max = (1u64 << exponent_bits) - 1;
        let exponent = match self.below(12) {
            0 => 0,
            1 => max,
            2 => 1 + self.below(3),
            3 => max - 1 - self.below(3),
            4 => self.below(max + 1),
            5 => max / 2 + fraction_bits as u64 - 2 + self.below(6),
            6 => (max / 4) + self.below(6),
            7 => max / 4 * 3 + self.below(6),
            _ => max / 2 - 3 + self.below(8),
        };
        let sign = self.below(2) << (exponent_bits + fraction_bits);
        sign | exponent << fraction_bits | self.fraction(fraction_bits)
    }

    /// Any 80-bit pattern.
    pub fn f80(&mut self) -> F80 {
        let exponent = match self.below(16) {
            0 => 0,
            1 => 0x7fff,
            2 => 1 + self.below(4),
            3 => 0x7ffe - self.below(4),
            4 => self.below(0x8000),
            5 => 0x3fff + 60 + self.below(6),
            6 => 0x3fff + [13, 29, 51, 21, 125, 1021][self.below(6) as usize] + self.below(6),
            7 => 0x3fff - [125, 1021, 148, 1073, 70][self.below(5) as usize] - self.below(6),
            8 => 0x1fff + self.below(3),
            _ => 0x3fff - 6 + self.below(14),
        };
        let fraction = match self.below(3) {
            0 => self.fraction(24) << 39,
            1 => self.fraction(53) << 10,
            _ => self.fraction(63),
        };
        // Integer bit: as it should be, mostly.
        let integer = if self.below(20) == 0 { self.below(2) } else { u64::from(exponent != 0) };
        let sign = (self.below(2) as u16) << 15;
        F80::new(exponent as u16 | sign, fraction & (u64::MAX >> 1) | integer << 63)
    }
}
