//! Scalar SSE operations. Packed instructions call them an element at a time and
//! [`Mxcsr::commit`] once, before writing their destination.
//!
//! The common case runs on the host's own floating point: rounding to nearest, operands normal or
//! zero, the result normal and clear of the smallest, so that precision is the only exception there
//! can be; and precision is either already recorded and masked, or the result is exact by a cheap
//! test. Everything else goes through [`soft`], which records precision, so that what follows is
//! fast again.

use super::convert;
use super::env::{Compare, Env, Flags, Precision, Rounding};
use super::soft::{self, Binary32, Binary64, Format};

/// MXCSR, and what the instruction under way has raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mxcsr {
    value: u32,
    raised: u8,
}

/// An unmasked SIMD floating-point exception: #XM, or #UD if CR4.OSXMMEXCPT is clear. The
/// destination must stay as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimdException;

impl Default for Mxcsr {
    /// As after reset: 1F80H.
    fn default() -> Self {
        Self::new(0x1f80)
    }
}

const DAZ: u32 = 1 << 6;
const FTZ: u32 = 1 << 15;
const ROUNDING: u32 = 3 << 13;
/// The precision exception and its mask.
const PRECISION: u32 = 1 << 5 | 1 << 12;

impl Mxcsr {
    /// The bits that can be set; setting others raises #GP in LDMXCSR and FXRSTOR.
    pub const MASK: u32 = 0xffff;

    /// Where the register's value lies, for host code.
    pub(crate) const VALUE: usize = std::mem::offset_of!(Self, value);
    /// What decides whether results can be rounded to nearest without a look at exceptions ([`Self::ROUNDS`]): the
    /// rounding control, and precision.
    pub(crate) const DECIDES: u32 = ROUNDING | PRECISION;
    /// See [`Self::DECIDES`]: to nearest, and precision is recorded and masked.
    pub(crate) const ROUNDS: u32 = PRECISION;

    /// From the register's value.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Self { value: value & Self::MASK, raised: 0 }
    }

    /// The register's value.
    #[inline]
    pub const fn value(self) -> u32 {
        self.value
    }

    /// The rounding control.
    #[inline]
    pub const fn rounding(self) -> Rounding {
        Rounding::from_bits(self.value >> 13)
    }

    /// Ends an instruction: what it raised goes into the register.
    #[inline]
    pub fn commit(&mut self) -> Result<(), SimdException> {
        if self.raised == 0 { Ok(()) } else { self.commit_raised() }
    }

    #[cold]
    fn commit_raised(&mut self) -> Result<(), SimdException> {
        let unmasked = self.raised & !((self.value >> 7) as u8);
        // Exceptions found before computing, unmasked, leave nothing computed.
        let flags = if unmasked & Flags::BEFORE != 0 { self.raised & Flags::BEFORE } else { self.raised };
        self.value |= u32::from(flags);
        self.raised = 0;
        if unmasked == 0 { Ok(()) } else { Err(SimdException) }
    }

    #[inline]
    const fn nearest(self) -> bool {
        self.value & ROUNDING == 0
    }

    /// Another precision exception would change nothing.
    #[inline]
    const fn precision_known(self) -> bool {
        self.value & PRECISION == PRECISION
    }

    /// Runs `f` in this environment and keeps what it raises.
    fn soft<T>(&mut self, f: impl FnOnce(&mut Env) -> T) -> T {
        let mut env = Env {
            rounding: self.rounding(),
            precision: Precision::Extended,
            masks: (self.value >> 7) as u8 & Flags::ALL,
            flags: 0,
            rounded_up: false,
            ftz: self.value & FTZ != 0,
            daz: self.value & DAZ != 0,
        };
        let result = f(&mut env);
        self.raised |= env.flags;
        result
    }
}

/// The operations that both formats have, and what decides whether the host can do them.
macro_rules! scalar {
    ($module:ident, $float:ty, $bits:ty, $format:ty, $name:literal) => {
        #[doc = concat!("Operations on ", $name, ", as bit patterns.")]
        pub mod $module {
            use super::*;

            const FRACTION: u32 = <$format>::FRACTION;
            const EXPONENTS: $bits = (1 << <$format>::EXPONENT) - 1;

            #[inline]
            fn biased(v: $bits) -> $bits {
                v >> FRACTION & EXPONENTS
            }

            /// Normal or zero.
            #[inline]
            fn plain(v: $bits) -> bool {
                biased(v).wrapping_sub(1) < EXPONENTS - 1 || v << 1 == 0
            }

            /// Normal and above the smallest, so that nothing was near overflow or underflow.
            #[inline]
            fn clear(v: $bits) -> bool {
                biased(v).wrapping_sub(2) < EXPONENTS - 2
            }

            /// Trailing zeros of the significand.
            #[inline]
            fn zeros(v: $bits) -> u32 {
                (v | 1 << FRACTION).trailing_zeros()
            }

            /// Whether the product of two normal numbers takes no more bits than there are.
            #[inline]
            fn product_is_exact(a: $bits, b: $bits) -> bool {
                zeros(a) + zeros(b) > FRACTION || zeros(a) == FRACTION || zeros(b) == FRACTION
            }

            /// `a + b`.
            #[inline]
            pub fn add(a: $bits, b: $bits, m: &mut Mxcsr) -> $bits {
                let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
                let sum = x + y;
                let r = sum.to_bits();
                if m.nearest() && plain(a) && plain(b) && (clear(r) || r << 1 == 0) {
                    let exact = || {
                        let y_part = sum - x;
                        (x - (sum - y_part)) + (y - y_part) == 0.0
                    };
                    if m.precision_known() || exact() {
                        return r;
                    }
                }
                m.soft(|env| soft::add::<$format>(a.into(), b.into(), env)) as $bits
            }

            /// `a - b`.
            #[inline]
            pub fn sub(a: $bits, b: $bits, m: &mut Mxcsr) -> $bits {
                const SIGN: $bits = <$format>::SIGN as $bits;
                if plain(b) {
                    return add(a, b ^ SIGN, m);
                }
                m.soft(|env| soft::sub::<$format>(a.into(), b.into(), env)) as $bits
            }

            /// `a * b`.
            #[inline]
            pub fn mul(a: $bits, b: $bits, m: &mut Mxcsr) -> $bits {
                let r = (<$float>::from_bits(a) * <$float>::from_bits(b)).to_bits();
                if m.nearest() && plain(a) && plain(b) {
                    if a << 1 == 0 || b << 1 == 0 {
                        return r;
                    }
                    if clear(r) && (m.precision_known() || product_is_exact(a, b)) {
                        return r;
                    }
                }
                m.soft(|env| soft::mul::<$format>(a.into(), b.into(), env)) as $bits
            }

            /// `a / b`.
            #[inline]
            pub fn div(a: $bits, b: $bits, m: &mut Mxcsr) -> $bits {
                let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
                let quotient = x / y;
                let r = quotient.to_bits();
                if m.nearest() && plain(a) && plain(b) && b << 1 != 0 {
                    if a << 1 == 0 {
                        return r;
                    }
                    let exact = || product_is_exact(r, b) && quotient * y == x;
                    if clear(r) && (m.precision_known() || exact()) {
                        return r;
                    }
                }
                m.soft(|env| soft::div::<$format>(a.into(), b.into(), env)) as $bits
            }

            /// Square root.
            #[inline]
            pub fn sqrt(a: $bits, m: &mut Mxcsr) -> $bits {
                let x = <$float>::from_bits(a);
                if m.nearest() && plain(a) && x >= 0.0 {
                    let root = x.sqrt();
                    let r = root.to_bits();
                    let exact = || a << 1 == 0 || (product_is_exact(r, r) && root * root == x);
                    if m.precision_known() || exact() {
                        return r;
                    }
                }
                m.soft(|env| soft::sqrt::<$format>(a.into(), env)) as $bits
            }

            /// MIN: the second operand if either is a NaN or both are zeros.
            #[inline]
            pub fn min(a: $bits, b: $bits, m: &mut Mxcsr) -> $bits {
                if plain(a) && plain(b) {
                    return if <$float>::from_bits(a) < <$float>::from_bits(b) { a } else { b };
                }
                m.soft(|env| soft::min::<$format>(a.into(), b.into(), env)) as $bits
            }

            /// MAX: the second operand if either is a NaN or both are zeros.
            #[inline]
            pub fn max(a: $bits, b: $bits, m: &mut Mxcsr) -> $bits {
                if plain(a) && plain(b) {
                    return if <$float>::from_bits(a) > <$float>::from_bits(b) { a } else { b };
                }
                m.soft(|env| soft::max::<$format>(a.into(), b.into(), env)) as $bits
            }

            /// Compares: COMIS and the signaling CMP predicates if `signal_quiet`, UCOMIS and the
            /// others if not.
            #[inline]
            pub fn compare(a: $bits, b: $bits, signal_quiet: bool, m: &mut Mxcsr) -> Compare {
                if plain(a) && plain(b) {
                    let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
                    return match () {
                        _ if x < y => Compare::Less,
                        _ if x > y => Compare::Greater,
                        _ => Compare::Equal,
                    };
                }
                m.soft(|env| soft::compare::<$format>(a.into(), b.into(), signal_quiet, env))
            }

            /// The outcome of CMPPS, CMPSD and their kin for predicate `predicate` (low 3 bits).
            #[inline]
            pub fn predicate(a: $bits, b: $bits, predicate: u8, m: &mut Mxcsr) -> bool {
                // LT, LE, NLT and NLE signal quiet NaNs; EQ, UNORD, NEQ and ORD do not.
                let outcome = compare(a, b, matches!(predicate & 3, 1 | 2), m);
                let holds = match predicate & 3 {
                    0 => outcome == Compare::Equal,
                    1 => outcome == Compare::Less,
                    2 => matches!(outcome, Compare::Less | Compare::Equal),
                    _ => outcome == Compare::Unordered,
                };
                holds ^ (predicate & 4 != 0)
            }

            /// To a signed integer of 32 or 64 `bits`, sign-extended: CVT…2SI as MXCSR rounds, CVTT…2SI
            /// if `truncate`. The most negative number if it does not fit.
            #[inline]
            pub fn to_int(a: $bits, bits: u32, truncate: bool, m: &mut Mxcsr) -> i64 {
                let x = <$float>::from_bits(a);
                // Small enough for any of the widths, and for the rounding below.
                const LIMIT: $float = (1u64 << (FRACTION - 2)) as $float;
                if plain(a) && x.abs() < LIMIT && x.abs() < 2147483646.0 {
                    const INTEGERS: $float = 3.0 * LIMIT * 2.0;
                    let rounded = if truncate { x } else { (x + INTEGERS) - INTEGERS };
                    let v = rounded as i64;
                    let same = v as $float == x;
                    if same || (m.precision_known() && (truncate || m.nearest())) {
                        return v;
                    }
                }
                m.soft(|env| {
                    if truncate {
                        env.rounding = Rounding::Zero;
                    }
                    convert::float_to_int::<$format>(a.into(), bits, env)
                })
            }

            /// From a signed integer.
            #[inline]
            pub fn from_int(v: i64, m: &mut Mxcsr) -> $bits {
                let x = v as $float;
                if v.unsigned_abs() >> FRACTION >> 1 == 0 || (m.nearest() && m.precision_known()) {
                    return x.to_bits();
                }
                m.soft(|env| convert::int_to_float::<$format>(v < 0, v.unsigned_abs(), env)) as $bits
            }

            /// ROUNDSS, ROUNDSD and their packed forms, as the immediate says.
            pub fn round(a: $bits, immediate: u8, m: &mut Mxcsr) -> $bits {
                m.soft(|env| {
                    if immediate & 4 == 0 {
                        env.rounding = Rounding::from_bits(immediate.into());
                    }
                    let result = soft::round_to_integral::<$format>(a.into(), env);
                    if immediate & 8 != 0 {
                        env.flags &= !Flags::PE;
                    }
                    result
                }) as $bits
            }
        }
    };
}

scalar!(single, f32, u32, Binary32, "binary32");
scalar!(double, f64, u64, Binary64, "binary64");

/// CVTSS2SD.
#[inline]
pub fn single_to_double(a: u32, m: &mut Mxcsr) -> u64 {
    let x = f32::from_bits(a);
    if x.is_normal() || x == 0.0 && a << 1 == 0 {
        return f64::from(x).to_bits();
    }
    m.soft(|env| convert::float_to_float::<Binary32, Binary64>(a.into(), env))
}

/// CVTSD2SS.
#[inline]
pub fn double_to_single(a: u64, m: &mut Mxcsr) -> u32 {
    let x = f64::from_bits(a);
    let y = x as f32;
    if a << 1 == 0 {
        return y.to_bits();
    }
    let clear = y.is_normal() && y.abs() > f32::MIN_POSITIVE;
    if clear && (f64::from(y) == x || (m.nearest() && m.precision_known())) {
        return y.to_bits();
    }
    m.soft(|env| convert::float_to_float::<Binary64, Binary32>(a, env)) as u32
}

/// What RCPSS and RSQRTSS make of operands that are not positive normal numbers: denormals are
/// zeros, and nothing is ever raised.
fn approximate_special(a: u32, root: bool) -> u32 {
    let sign = a & 0x8000_0000;
    match a & 0x7fff_ffff {
        v if v > 0x7f80_0000 => a | 0x0040_0000,
        v if v < 0x0080_0000 => sign | 0x7f80_0000,
        _ if root && sign != 0 => Binary32::INDEFINITE as u32,
        0x7f80_0000 => sign,
        _ => a,
    }
}

/// Rounds an approximation to twelve bits of significand, flushing tiny ones to zero.
fn twelve_bits(v: f64) -> u32 {
    let v = v as f32;
    let bits = v.to_bits().wrapping_add(0x400) & !0x7ff;
    if v.abs() < f32::MIN_POSITIVE { bits & 0x8000_0000 } else { bits }
}

/// RCPSS: a reciprocal within `1.5 * 2^-12`, relatively.
pub fn reciprocal(a: u32) -> u32 {
    let x = f32::from_bits(a);
    if x.is_normal() { twelve_bits(1.0 / f64::from(x)) } else { approximate_special(a, false) }
}

/// RSQRTSS: a reciprocal square root within `1.5 * 2^-12`, relatively.
pub fn reciprocal_sqrt(a: u32) -> u32 {
    let x = f32::from_bits(a);
    if x.is_normal() && x > 0.0 {
        twelve_bits(1.0 / f64::from(x).sqrt())
    } else {
        approximate_special(a, true)
    }
}
