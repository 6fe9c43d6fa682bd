//! The 80-bit double extended-precision format (SDM volume 1, section 4.2.2).

use std::fmt;

use super::num::{Class, Num};

/// An 80-bit floating-point number, any bit pattern.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct F80 {
    /// The significand, with its explicit integer bit (bit 63).
    pub mantissa: u64,
    /// Sign (bit 15) and exponent, biased by 16,383.
    pub sign_exp: u16,
}

impl fmt::Debug for F80 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:016x}", self.sign_exp, self.mantissa)
    }
}

const INTEGER: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;

impl F80 {
    /// Exponent bias.
    pub const BIAS: i32 = 16383;
    /// +0.
    pub const ZERO: Self = Self::new(0, 0);
    /// 1.
    pub const ONE: Self = Self::new(0x3fff, INTEGER);
    /// Positive infinity.
    pub const INFINITY: Self = Self::new(0x7fff, INTEGER);
    /// The real indefinite: the quiet NaN that a masked invalid operation gives.
    pub const INDEFINITE: Self = Self::new(0xffff, INTEGER | QUIET);

    /// From sign and exponent word and significand.
    #[inline]
    pub const fn new(sign_exp: u16, mantissa: u64) -> Self {
        Self { mantissa, sign_exp }
    }

    /// From its ten bytes in memory.
    #[inline]
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Self::new(u16::from_le_bytes([i, j]), u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Its ten bytes in memory.
    #[inline]
    pub fn to_bytes(self) -> [u8; 10] {
        let [a, b, c, d, e, f, g, h] = self.mantissa.to_le_bytes();
        let [i, j] = self.sign_exp.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j]
    }

    /// Whether the sign bit is set.
    #[inline]
    pub const fn is_negative(self) -> bool {
        self.sign_exp & 0x8000 != 0
    }

    /// With the sign bit flipped.
    #[inline]
    pub const fn negate(self) -> Self {
        Self::new(self.sign_exp ^ 0x8000, self.mantissa)
    }

    /// With the sign bit clear.
    #[inline]
    pub const fn abs(self) -> Self {
        Self::new(self.sign_exp & 0x7fff, self.mantissa)
    }

    /// With the sign bit as given.
    #[inline]
    pub const fn with_sign(self, negative: bool) -> Self {
        Self::new(self.sign_exp & 0x7fff | (negative as u16) << 15, self.mantissa)
    }

    /// The biased exponent.
    #[inline]
    pub const fn biased(self) -> i32 {
        (self.sign_exp & 0x7fff) as i32
    }

    /// A zero of either sign.
    #[inline]
    pub const fn is_zero(self) -> bool {
        self.sign_exp & 0x7fff == 0 && self.mantissa == 0
    }

    /// An infinity of either sign.
    #[inline]
    pub const fn is_infinite(self) -> bool {
        self.sign_exp & 0x7fff == 0x7fff && self.mantissa == INTEGER
    }

    /// A NaN, quiet or signaling.
    #[inline]
    pub const fn is_nan(self) -> bool {
        self.sign_exp & 0x7fff == 0x7fff && self.mantissa > INTEGER
    }

    /// A signaling NaN.
    #[inline]
    pub const fn is_signaling(self) -> bool {
        self.is_nan() && self.mantissa & QUIET == 0
    }

    /// A NaN made quiet.
    #[inline]
    pub const fn quieted(self) -> Self {
        Self::new(self.sign_exp, self.mantissa | QUIET)
    }

    /// Neither a valid number nor a NaN: unnormal, pseudo-infinity or pseudo-NaN.
    #[inline]
    pub const fn is_invalid(self) -> bool {
        self.sign_exp & 0x7fff != 0 && self.mantissa & INTEGER == 0
    }

    /// A denormal or pseudo-denormal.
    #[inline]
    pub const fn is_denormal(self) -> bool {
        self.sign_exp & 0x7fff == 0 && self.mantissa != 0
    }

    /// Packs a biased exponent (0 to 0x7fff) and a significand.
    #[inline]
    pub(super) const fn pack(sign: bool, biased: i32, mantissa: u64) -> Self {
        Self::new(biased as u16 | (sign as u16) << 15, mantissa)
    }

    /// The number, if it is normal: the common case of every operation.
    #[inline]
    pub(super) fn normal(self) -> Option<Num> {
        let biased = self.biased();
        let normal = (biased as u32).wrapping_sub(1) < 0x7ffe && self.mantissa & INTEGER != 0;
        normal.then(|| Num { sign: self.is_negative(), exp: biased - Self::BIAS, sig: self.mantissa })
    }

    /// Sorts any encoding.
    #[inline]
    pub(super) fn classify(self) -> Class {
        if let Some(n) = self.normal() {
            return Class::Finite(n, false);
        }
        let sign = self.is_negative();
        match self.biased() {
            0 if self.mantissa == 0 => Class::Zero,
            0 => {
                let shift = self.mantissa.leading_zeros();
                let n = Num { sign, exp: 1 - Self::BIAS - shift as i32, sig: self.mantissa << shift };
                Class::Finite(n, true)
            }
            0x7fff if self.mantissa == INTEGER => Class::Inf,
            0x7fff if self.mantissa & INTEGER == 0 => Class::Invalid,
            0x7fff if self.mantissa & QUIET != 0 => Class::QuietNan,
            0x7fff => Class::SignalingNan,
            _ => Class::Invalid,
        }
    }
}
