//! Numbers with 128 bits of significand, for the inside of transcendental functions. Operations are
//! not rounded: each is off by at most a few units of its last place, some 60 bits below what an
//! 80-bit result keeps.

use super::num::{Exact, Num};

const TOP: u128 = 1 << 127;

/// `sig / 2^127 * 2^exp`, bit 127 of `sig` set; or zero, with `sig` zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide {
    pub sign: bool,
    pub exp: i32,
    pub sig: u128,
}

/// The upper half of a product.
#[inline]
pub(super) fn mul_high(a: u128, b: u128) -> u128 {
    let (a1, a0) = (a >> 64, a & u128::from(u64::MAX));
    let (b1, b0) = (b >> 64, b & u128::from(u64::MAX));
    let (m1, m2) = (a1 * b0, a0 * b1);
    let low = u128::from(m1 as u64) + u128::from(m2 as u64) + ((a0 * b0) >> 64);
    a1 * b1 + (m1 >> 64) + (m2 >> 64) + (low >> 64)
}

impl From<Num> for Wide {
    fn from(n: Num) -> Self {
        Self { sign: n.sign, exp: n.exp, sig: u128::from(n.sig) << 64 }
    }
}

impl Wide {
    pub const ZERO: Self = Self::new(0, 0);
    pub const ONE: Self = Self::new(0, TOP);
    pub const PI: Self = Self::new(1, 0xc90fdaa2_2168c234_c4c6628b_80dc1cd1);
    pub const HALF_PI: Self = Self::new(0, 0xc90fdaa2_2168c234_c4c6628b_80dc1cd1);
    pub const QUARTER_PI: Self = Self::new(-1, 0xc90fdaa2_2168c234_c4c6628b_80dc1cd1);
    pub const THREE_QUARTERS_PI: Self = Self::new(1, 0x96cbe3f9_990e91a7_9394c9e8_a0a5159d);
    pub const LN_2: Self = Self::new(-1, 0xb17217f7_d1cf79ab_c9e3b398_03f2f6af);
    pub const TWO_OVER_LN_2: Self = Self::new(1, 0xb8aa3b29_5c17f0bb_be87fed0_691d3e89);

    pub const fn new(exp: i32, sig: u128) -> Self {
        Self { sign: false, exp, sig }
    }

    /// `sig / 2^127 * 2^exp` with `sig` in any position.
    pub fn normalised(sign: bool, exp: i32, sig: u128) -> Self {
        let shift = sig.leading_zeros();
        match sig {
            0 => Self::ZERO,
            _ => Self { sign, exp: exp - shift as i32, sig: sig << shift },
        }
    }

    /// An integer, exactly.
    pub fn integer(v: i32) -> Self {
        Self::normalised(v < 0, 127, v.unsigned_abs().into())
    }

    /// With the sign flipped if `flip`.
    pub fn flip(self, flip: bool) -> Self {
        Self { sign: self.sign ^ flip, ..self }
    }

    /// As a fixed-point fraction of `2^128`; the magnitude must be below 1.
    pub fn fraction(self) -> u128 {
        self.sig.checked_shr((-1 - self.exp).max(0) as u32).unwrap_or(0)
    }

    pub fn mul(self, other: Self) -> Self {
        let product = mul_high(self.sig, other.sig);
        Self::normalised(self.sign ^ other.sign, self.exp.saturating_add(other.exp) + 1, product)
    }

    pub fn add(self, other: Self) -> Self {
        if self.sig == 0 {
            return other;
        }
        if other.sig == 0 {
            return self;
        }
        let swap = other.exp > self.exp || (other.exp == self.exp && other.sig > self.sig);
        let (big, small) = if swap { (other, self) } else { (self, other) };
        let x = big.sig >> 1;
        let y = (small.sig >> 1).checked_shr((big.exp - small.exp) as u32).unwrap_or(0);
        let sum = if self.sign == other.sign { x + y } else { x - y };
        Self::normalised(big.sign, big.exp + 1, sum)
    }

    /// Quotient; `other` must not be zero.
    pub fn div(self, other: Self) -> Self {
        // A 64-bit reciprocal as a fraction of 2^127, and one step of Newton's method.
        let estimate = (u128::MAX / (other.sig >> 64)) << 63;
        let error = TOP.wrapping_sub(mul_high(other.sig, estimate)) as i128;
        let step = mul_high(estimate, error.unsigned_abs()) << 1;
        let reciprocal = if error < 0 { estimate - step } else { estimate.saturating_add(step) };
        let quotient = mul_high(self.sig, reciprocal);
        Self::normalised(self.sign ^ other.sign, self.exp.saturating_sub(other.exp), quotient)
    }

    /// `self * (1 + part)`, `part` a fraction of `2^128`.
    pub fn grow(self, part: u128) -> Self {
        let (sum, carry) = self.sig.overflowing_add(mul_high(self.sig, part));
        if carry {
            Self { exp: self.exp + 1, sig: sum >> 1 | TOP, ..self }
        } else {
            Self { sig: sum, ..self }
        }
    }

    /// `self * (1 - part)`, `part` a fraction of `2^128`, and at least one unit less than `self`.
    pub fn shrink(self, part: u128) -> Self {
        Self::normalised(self.sign, self.exp, self.sig - mul_high(self.sig, part).max(1))
    }

    /// For rounding, as the inexact number it is.
    pub fn inexact(self) -> Exact {
        Exact { sign: self.sign, exp: self.exp, sig: (self.sig >> 64) as u64, rest: self.sig as u64 | 1 }
    }
}
