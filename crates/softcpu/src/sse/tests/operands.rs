//! Operand values: random ones, and those where mistakes hide.

/// A xorshift generator, seeded.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.u64() >> 32) as usize) % n
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.u64().to_le_bytes());
        out[8..].copy_from_slice(&self.u64().to_le_bytes());
        out
    }

    /// A register for integer operations: random, of extreme bytes or words, or a small count.
    pub fn integers(&mut self) -> [u8; 16] {
        match self.below(5) {
            0 => std::array::from_fn(|_| self.pick(&[0, 1, 2, 0x7f, 0x80, 0x81, 0xfe, 0xff])),
            1 => {
                let words = [0u16, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0xff80, 0x7f];
                let mut out = [0; 16];
                out.chunks_mut(2).for_each(|c| c.copy_from_slice(&self.pick(&words).to_le_bytes()));
                out
            }
            2 => {
                let mut out = [0; 16];
                out[0] = self.below(70) as u8;
                out
            }
            _ => self.bytes(),
        }
    }

    /// A register for string operations: few different bytes, and zeros.
    pub fn text(&mut self) -> [u8; 16] {
        let zero_at = self.below(40);
        std::array::from_fn(|i| if i == zero_at { 0 } else { self.pick(b"aaab\x80\xff\x00cz") })
    }

    /// Four binary32 values.
    pub fn floats(&mut self) -> [u8; 16] {
        let mut out = [0; 16];
        out.chunks_mut(4).for_each(|c| c.copy_from_slice(&self.f32().to_le_bytes()));
        out
    }

    /// Two binary64 values.
    pub fn doubles(&mut self) -> [u8; 16] {
        let mut out = [0; 16];
        out.chunks_mut(8).for_each(|c| c.copy_from_slice(&self.f64().to_le_bytes()));
        out
    }

    pub fn f32(&mut self) -> u32 {
        let random = self.u64() as u32;
        match self.below(8) {
            0..=2 => self.pick(&F32) ^ (random & 0x8000_0000),
            3 => random,
            // Near one another: cancellation, exact sums, comparisons that hold.
            4 | 5 => random & 0x8000_000f | 0x3f80_0000,
            6 => ((random as i32 % 1000) as f32 / 4.0).to_bits(),
            // Exponents around the edges of the range.
            _ => random & 0x807f_ffff | self.pick(&[0, 1, 2, 23, 24, 64, 190, 253, 254]) << 23,
        }
    }

    pub fn f64(&mut self) -> u64 {
        let random = self.u64();
        match self.below(8) {
            0..=2 => self.pick(&F64) ^ (random & 1 << 63),
            3 => random,
            4 | 5 => random & (1 << 63 | 0xf) | 0x3ff << 52,
            6 => ((random as i32 % 1000) as f64 / 4.0).to_bits(),
            _ => {
                let exponents = [0, 1, 2, 52, 53, 500, 872, 873, 896, 897, 1150, 1151, 1500, 2045, 2046];
                random & !(0x7ff << 52) | self.pick(&exponents) << 52
            }
        }
    }
}

/// Zero, denormals, around the least normal, one, integers' limits, the greatest, infinity, NaNs.
const F32: [u32; 30] = [
    0,
    1,
    2,
    0x7f_ffff,
    0x80_0000,
    0x80_0001,
    0x100_0000,
    0x3f80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x3f00_0000,
    0x3fc0_0000,
    0x4020_0000,
    0x4b00_0000,
    0x4b00_0001,
    0x4aff_ffff,
    0x4eff_ffff,
    0x4f00_0000,
    0x5eff_ffff,
    0x5f00_0000,
    0x5f80_0000,
    0x7f00_0000,
    0x7f7f_fffe,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7fc0_0000,
    0x7fff_ffff,
    0x7f80_0001,
    0x7fbf_ffff,
    0x7fc0_1234,
];

const F64: [u64; 36] = [
    0,
    1,
    2,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x0010_0000_0000_0001,
    0x0020_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3fef_ffff_ffff_ffff,
    0x3fe0_0000_0000_0000,
    0x3ff8_0000_0000_0000,
    0x4004_0000_0000_0000,
    0x41df_ffff_ffc0_0000,
    0x41df_ffff_ffdf_ffff,
    0x41df_ffff_ffe0_0000,
    0x41e0_0000_0000_0000,
    0x41e0_0000_0010_0000,
    0x41e0_0000_0020_0000,
    0x43df_ffff_ffff_ffff,
    0x43e0_0000_0000_0000,
    0x4330_0000_0000_0000,
    0x4330_0000_0000_0001,
    0x36a0_0000_0000_0000,
    0x380f_ffff_ffff_ffff,
    0x380f_ffff_f000_0000,
    0x47ef_ffff_e000_0000,
    0x47ef_ffff_f000_0000,
    0x7fe0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x7ff0_0000_0000_0001,
    0x7ff7_ffff_ffff_ffff,
    0x7ff8_1234_5678_9abc,
];
