//! Conversions between formats, and to and from integers and packed BCD.

use super::env::{Env, Flags};
use super::ext::{self, from_magnitude, integral};
use super::f80::F80;
use super::num::{Class, Exact, Num};
use super::soft::{self, Binary32, Binary64, Format};

/// Widens to 80 bits, exactly, signaling NaNs still signaling. Also whether it was a denormal, which
/// the 80-bit number no longer shows.
#[inline]
pub fn widen<F: Format>(v: u64) -> (F80, bool) {
    let sign = v & F::SIGN != 0;
    match soft::classify::<F>(v) {
        Class::Zero => (F80::ZERO.with_sign(sign), false),
        Class::Finite(n, denormal) => (F80::pack(sign, n.exp + F80::BIAS, n.sig), denormal),
        Class::Inf => (F80::INFINITY.with_sign(sign), false),
        _ => (F80::pack(sign, 0x7fff, (v & F::FRACTION_MASK) << (63 - F::FRACTION) | 1 << 63), false),
    }
}

/// Widens a normal number or zero to 80 bits, which raises nothing.
#[inline]
pub fn widen_normal<F: Format>(v: u64) -> Option<F80> {
    let magnitude = v & !F::SIGN;
    let sign = v & F::SIGN != 0;
    if magnitude.wrapping_sub(F::FRACTION_MASK + 1) < F::INFINITY - (F::FRACTION_MASK + 1) {
        // The bias of binary32 and binary64 is half the all-ones exponent.
        let bias = (F::INFINITY >> F::FRACTION) as i32 >> 1;
        let exp = (magnitude >> F::FRACTION) as i32 - bias + F80::BIAS;
        let mantissa = (magnitude & F::FRACTION_MASK) << (63 - F::FRACTION) | 1 << 63;
        return Some(F80::pack(sign, exp, mantissa));
    }
    (magnitude == 0).then(|| F80::ZERO.with_sign(sign))
}

/// Widens to 80 bits. Raises invalid for a signaling NaN, which comes out quiet, and denormal for a
/// denormal.
#[inline]
pub fn to_f80<F: Format>(v: u64, env: &mut Env) -> F80 {
    let (wide, denormal) = widen::<F>(v);
    if denormal {
        env.raise(Flags::DE);
    }
    if wide.is_signaling() {
        env.raise(Flags::IE);
        return wide.quieted();
    }
    wide
}

/// binary32 to 80 bits.
pub fn f32_to_f80(v: u32, env: &mut Env) -> F80 {
    to_f80::<Binary32>(v.into(), env)
}

/// binary64 to 80 bits.
pub fn f64_to_f80(v: u64, env: &mut Env) -> F80 {
    to_f80::<Binary64>(v, env)
}

/// Rounds to a narrower format. Whether an 80-bit denormal raises the denormal exception is the
/// instruction's business: FST never does.
pub fn from_f80<F: Format>(v: F80, env: &mut Env) -> u64 {
    let sign = v.is_negative();
    match v.classify() {
        Class::Zero => soft::signed::<F>(sign, 0),
        Class::Finite(n, _) => soft::finish::<F>(n.into(), env),
        Class::Inf => soft::signed::<F>(sign, F::INFINITY),
        Class::Invalid => {
            env.raise(Flags::IE);
            F::INDEFINITE
        }
        class => {
            if matches!(class, Class::SignalingNan) {
                env.raise(Flags::IE);
            }
            let fraction = (v.mantissa >> (63 - F::FRACTION)) & F::FRACTION_MASK;
            soft::signed::<F>(sign, F::INFINITY | F::QUIET | fraction)
        }
    }
}

/// 80 bits to binary32.
pub fn f80_to_f32(v: F80, env: &mut Env) -> u32 {
    from_f80::<Binary32>(v, env) as u32
}

/// 80 bits to binary64.
pub fn f80_to_f64(v: F80, env: &mut Env) -> u64 {
    from_f80::<Binary64>(v, env)
}

/// Between binary32 and binary64, as CVTSS2SD and CVTSD2SS do.
pub fn float_to_float<F: Format, T: Format>(v: u64, env: &mut Env) -> u64 {
    let sign = v & F::SIGN != 0;
    match soft::classify::<F>(v) {
        Class::Finite(_, true) if env.daz => soft::signed::<T>(sign, 0),
        Class::Zero => soft::signed::<T>(sign, 0),
        Class::Finite(n, denormal) => {
            if denormal {
                env.raise(Flags::DE);
            }
            soft::finish::<T>(n.into(), env)
        }
        Class::Inf => soft::signed::<T>(sign, T::INFINITY),
        class => {
            if matches!(class, Class::SignalingNan) {
                env.raise(Flags::IE);
            }
            let fraction = (v & F::FRACTION_MASK) << (63 - F::FRACTION) >> (63 - T::FRACTION);
            soft::signed::<T>(sign, T::INFINITY | T::QUIET | fraction)
        }
    }
}

/// An integer given as sign and magnitude, rounded to a format.
pub fn int_to_float<F: Format>(sign: bool, magnitude: u64, env: &mut Env) -> u64 {
    if magnitude == 0 {
        return soft::signed::<F>(sign, 0);
    }
    let shift = magnitude.leading_zeros();
    let x = Exact { sign, exp: 63 - shift as i32, sig: magnitude << shift, rest: 0 };
    soft::finish::<F>(x, env)
}

/// A signed integer to 80 bits, exactly.
#[inline]
pub fn int_to_f80(v: i64) -> F80 {
    from_magnitude(v < 0, v.unsigned_abs())
}

/// Rounds to a signed integer of `bits` bits, sign-extended. Out of range, infinite or NaN raises
/// invalid and gives the integer indefinite, the most negative number.
fn class_to_int(class: Class, bits: u32, env: &mut Env) -> i64 {
    let indefinite = i64::MIN >> (64 - bits);
    let n = match class {
        Class::Zero => return 0,
        Class::Finite(n, _) => n,
        _ => {
            env.raise(Flags::IE);
            return indefinite;
        }
    };
    match integral(n, env.rounding) {
        Some((whole, inexact, up)) if fits(n, whole, bits) => {
            if inexact {
                env.raise(Flags::PE);
                env.rounded_up = up;
            }
            if n.sign { (whole as i64).wrapping_neg() } else { whole as i64 }
        }
        _ => {
            env.raise(Flags::IE);
            indefinite
        }
    }
}

fn fits(n: Num, whole: u64, bits: u32) -> bool {
    whole < 1 << (bits - 1) || (n.sign && whole == 1 << (bits - 1))
}

/// An 80-bit number to a signed integer of 16, 32 or 64 bits.
pub fn f80_to_int(v: F80, bits: u32, env: &mut Env) -> i64 {
    class_to_int(v.classify(), bits, env)
}

/// binary32 or binary64 to a signed integer of 32 or 64 bits. Denormals raise only precision.
pub fn float_to_int<F: Format>(v: u64, bits: u32, env: &mut Env) -> i64 {
    let v = if env.daz && soft::is_denormal::<F>(v) { 0 } else { v };
    class_to_int(soft::classify::<F>(v), bits, env)
}

/// FBLD: eighteen packed decimal digits and a sign. Digits above nine count as they stand.
pub fn bcd_to_f80(bytes: [u8; 10]) -> F80 {
    let [digits @ .., sign] = bytes;
    let value = digits
        .iter()
        .rev()
        .fold(0u64, |v, d| v.wrapping_mul(100).wrapping_add(u64::from(d >> 4) * 10 + u64::from(d & 15)));
    from_magnitude(sign & 0x80 != 0, value)
}

/// The packed BCD indefinite.
pub const BCD_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];

/// FBSTP: rounds to eighteen packed decimal digits; the packed BCD indefinite if it does not fit.
pub fn f80_to_bcd(v: F80, env: &mut Env) -> [u8; 10] {
    let whole = match v.classify() {
        Class::Zero => Some((0, false, false)),
        Class::Finite(n, _) => integral(n, env.rounding),
        _ => None,
    };
    let Some((mut whole, inexact, up)) = whole.filter(|w| w.0 < 1_000_000_000_000_000_000) else {
        ext::invalid(env);
        return BCD_INDEFINITE;
    };
    if inexact {
        env.raise(Flags::PE);
        env.rounded_up = up;
    }
    let mut bytes = [0; 10];
    for byte in &mut bytes[..9] {
        *byte = (whole % 10) as u8 | ((whole / 10 % 10) as u8) << 4;
        whole /= 100;
    }
    bytes[9] = u8::from(v.is_negative()) << 7;
    bytes
}
