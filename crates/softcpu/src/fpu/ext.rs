//! Arithmetic on 80-bit numbers as the x87 does it.
//!
//! NaN operands follow SDM volume 1, table 4-7: a signaling NaN raises invalid and is quieted, a
//! quiet one beats a signaling one, and of two alike the larger significand wins.

use super::env::{Compare, Env, Flags, Precision, Rounding};
use super::f80::F80;
use super::num::{self, Class, Exact, Num, Range};

/// What rounding an 80-bit result to `precision` needs to know.
#[inline]
fn range(precision: Precision) -> Range {
    Range { precision: precision.bits(), bias: F80::BIAS, max: 0x7fff, adjust: 24576 }
}

/// Rounds at the environment's precision.
#[inline]
pub(super) fn finish(x: Exact, env: &mut Env) -> F80 {
    let (biased, sig) = num::round(x, range(env.precision), env);
    F80::pack(x.sign, biased, sig)
}

/// Rounds to all 64 bits, whatever the precision control says.
#[inline]
pub(super) fn finish_extended(x: Exact, env: &mut Env) -> F80 {
    let (biased, sig) = num::round(x, range(Precision::Extended), env);
    F80::pack(x.sign, biased, sig)
}

/// The masked response to an invalid operation.
#[cold]
pub(super) fn invalid(env: &mut Env) -> F80 {
    env.raise(Flags::IE);
    F80::INDEFINITE
}

/// The zero that `x - x` gives.
fn cancelled(env: &Env) -> F80 {
    F80::ZERO.with_sign(env.rounding == Rounding::Down)
}

/// The NaN that an operation on `a` and `b`, one of them a NaN, gives.
pub(super) fn propagate(a: F80, b: F80, env: &mut Env) -> F80 {
    if a.is_signaling() || b.is_signaling() {
        env.raise(Flags::IE);
    }
    match (a.is_nan(), b.is_nan()) {
        (true, false) => a.quieted(),
        (false, true) => b.quieted(),
        _ if a.is_signaling() != b.is_signaling() => {
            if a.is_signaling() {
                b
            } else {
                a
            }
        }
        _ if a.mantissa != b.mantissa => {
            if a.mantissa > b.mantissa {
                a.quieted()
            } else {
                b.quieted()
            }
        }
        // Alike but for the sign: the positive one.
        _ => {
            if a.is_negative() {
                b.quieted()
            } else {
                a.quieted()
            }
        }
    }
}

/// Operands of a two-operand operation, NaNs and invalid encodings already dealt with.
pub(super) enum Pair {
    Done(F80),
    Operands(Operand, Operand),
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    Zero,
    Finite(Num),
    Inf,
}

/// Sorts two operands; gives the result at once if one is a NaN or invalid. `denormal` comes back
/// true if one is denormal, which the caller raises unless something of higher priority comes up.
pub(super) fn sort(a: F80, b: F80, env: &mut Env) -> (Pair, bool) {
    let (x, y) = (a.classify(), b.classify());
    if matches!(x, Class::Invalid) || matches!(y, Class::Invalid) {
        return (Pair::Done(invalid(env)), false);
    }
    let mut denormal = false;
    let mut operand = |c| match c {
        Class::Zero => Some(Operand::Zero),
        Class::Inf => Some(Operand::Inf),
        Class::Finite(n, d) => {
            denormal |= d;
            Some(Operand::Finite(n))
        }
        _ => None,
    };
    match (operand(x), operand(y)) {
        (Some(x), Some(y)) => (Pair::Operands(x, y), denormal),
        _ => (Pair::Done(propagate(a, b, env)), false),
    }
}

#[inline]
fn raise_denormal(denormal: bool, env: &mut Env) {
    if denormal {
        env.raise(Flags::DE);
    }
}

/// `a + b`.
#[inline]
pub fn add(a: F80, b: F80, env: &mut Env) -> F80 {
    match (a.normal(), b.normal()) {
        (Some(x), Some(y)) => add_finite(x, y, env),
        _ => add_special(a, b, false, env),
    }
}

/// `a - b`.
#[inline]
pub fn sub(a: F80, b: F80, env: &mut Env) -> F80 {
    match (a.normal(), b.negate().normal()) {
        (Some(x), Some(y)) => add_finite(x, y, env),
        _ => add_special(a, b, true, env),
    }
}

#[inline]
fn add_finite(x: Num, y: Num, env: &mut Env) -> F80 {
    match num::add(x, y) {
        Some(sum) => finish(sum, env),
        None => cancelled(env),
    }
}

#[cold]
fn add_special(a: F80, b: F80, subtract: bool, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(a, b, env);
    let (x, y) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(x, y) => (x, y),
    };
    let b = if subtract { b.negate() } else { b };
    if let (Operand::Inf, Operand::Inf) = (x, y)
        && a.is_negative() != b.is_negative()
    {
        return invalid(env);
    }
    raise_denormal(denormal, env);
    match (x, y) {
        (Operand::Inf, _) => a,
        (_, Operand::Inf) => b,
        (Operand::Zero, Operand::Zero) if a.is_negative() == b.is_negative() => a,
        (Operand::Zero, Operand::Zero) => cancelled(env),
        (Operand::Finite(x), Operand::Zero) => finish(x.into(), env),
        (Operand::Zero, Operand::Finite(y)) => finish(Num { sign: b.is_negative(), ..y }.into(), env),
        (Operand::Finite(x), Operand::Finite(y)) => add_finite(x, Num { sign: b.is_negative(), ..y }, env),
    }
}

/// `a * b`.
#[inline]
pub fn mul(a: F80, b: F80, env: &mut Env) -> F80 {
    match (a.normal(), b.normal()) {
        (Some(x), Some(y)) => finish(num::mul(x, y), env),
        _ => mul_special(a, b, env),
    }
}

#[cold]
fn mul_special(a: F80, b: F80, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(a, b, env);
    let (x, y) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(x, y) => (x, y),
    };
    let sign = a.is_negative() ^ b.is_negative();
    if matches!((x, y), (Operand::Inf, Operand::Zero) | (Operand::Zero, Operand::Inf)) {
        return invalid(env);
    }
    raise_denormal(denormal, env);
    match (x, y) {
        (Operand::Finite(x), Operand::Finite(y)) => finish(num::mul(x, y), env),
        (Operand::Zero, _) | (_, Operand::Zero) => F80::ZERO.with_sign(sign),
        _ => F80::INFINITY.with_sign(sign),
    }
}

/// `a / b`.
#[inline]
pub fn div(a: F80, b: F80, env: &mut Env) -> F80 {
    match (a.normal(), b.normal()) {
        (Some(x), Some(y)) => finish(num::div(x, y), env),
        _ => div_special(a, b, env),
    }
}

#[cold]
fn div_special(a: F80, b: F80, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(a, b, env);
    let (x, y) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(x, y) => (x, y),
    };
    let sign = a.is_negative() ^ b.is_negative();
    match (x, y) {
        (Operand::Inf, Operand::Inf) | (Operand::Zero, Operand::Zero) => return invalid(env),
        (Operand::Finite(_), Operand::Zero) => {
            env.raise(Flags::ZE);
            return F80::INFINITY.with_sign(sign);
        }
        _ => raise_denormal(denormal, env),
    }
    match (x, y) {
        (Operand::Finite(x), Operand::Finite(y)) => finish(num::div(x, y), env),
        (Operand::Inf, _) => F80::INFINITY.with_sign(sign),
        _ => F80::ZERO.with_sign(sign),
    }
}

/// Square root.
pub fn sqrt(a: F80, env: &mut Env) -> F80 {
    match a.classify() {
        Class::Finite(n, denormal) if !n.sign => {
            raise_denormal(denormal, env);
            finish(num::sqrt(n), env)
        }
        Class::Zero => a,
        Class::Inf if !a.is_negative() => a,
        Class::QuietNan | Class::SignalingNan => propagate(a, a, env),
        _ => invalid(env),
    }
}

/// `n` rounded to an integer: magnitude, which must be below `2^64`, and whether it was inexact
/// and rounded up. `None` if it is out of range.
pub(super) fn integral(n: Num, rounding: Rounding) -> Option<(u64, bool, bool)> {
    if n.exp > 63 {
        return None;
    }
    let shift = (63 - n.exp) as u32;
    let v = num::shift_right_sticky(u128::from(n.sig) << 64, shift);
    let (whole, fraction) = ((v >> 64) as u64, v as u64);
    let up = fraction != 0
        && match rounding {
            Rounding::Nearest => fraction > 1 << 63 || (fraction == 1 << 63 && whole & 1 != 0),
            Rounding::Down => n.sign,
            Rounding::Up => !n.sign,
            Rounding::Zero => false,
        };
    Some((whole.checked_add(up.into())?, fraction != 0, up))
}

/// FRNDINT.
pub fn round_to_integral(a: F80, env: &mut Env) -> F80 {
    match a.classify() {
        Class::Finite(n, denormal) => {
            raise_denormal(denormal, env);
            if n.exp >= 63 {
                return a;
            }
            let Some((whole, inexact, up)) = integral(n, env.rounding) else { return a };
            if inexact {
                env.raise(Flags::PE);
                env.rounded_up = up;
            }
            from_magnitude(n.sign, whole)
        }
        Class::Zero | Class::Inf => a,
        Class::QuietNan | Class::SignalingNan => propagate(a, a, env),
        Class::Invalid => invalid(env),
    }
}

/// An integer, exactly.
#[inline]
pub(super) fn from_magnitude(sign: bool, magnitude: u64) -> F80 {
    if magnitude == 0 {
        return F80::ZERO.with_sign(sign);
    }
    let shift = magnitude.leading_zeros();
    F80::pack(sign, F80::BIAS + 63 - shift as i32, magnitude << shift)
}

/// Compares. Signaling NaNs and invalid encodings raise invalid; quiet NaNs do if `signal_quiet`
/// (FCOM, FTST and FCOMI, against FUCOM and FUCOMI).
#[inline]
pub fn compare(a: F80, b: F80, signal_quiet: bool, env: &mut Env) -> Compare {
    if a.normal().is_none() || b.normal().is_none() {
        return compare_special(a, b, signal_quiet, env);
    }
    ordered(a, b)
}

/// Compares two numbers that have no denormal or zero among them, or are denormals alike.
#[inline]
fn ordered(a: F80, b: F80) -> Compare {
    if a.is_negative() != b.is_negative() {
        return if a.is_negative() { Compare::Less } else { Compare::Greater };
    }
    let magnitudes = (a.biased(), a.mantissa).cmp(&(b.biased(), b.mantissa));
    match if a.is_negative() { magnitudes.reverse() } else { magnitudes } {
        std::cmp::Ordering::Less => Compare::Less,
        std::cmp::Ordering::Equal => Compare::Equal,
        std::cmp::Ordering::Greater => Compare::Greater,
    }
}

#[cold]
fn compare_special(a: F80, b: F80, signal_quiet: bool, env: &mut Env) -> Compare {
    if a.is_invalid() || b.is_invalid() {
        env.raise(Flags::IE);
        return Compare::Unordered;
    }
    if a.is_nan() || b.is_nan() {
        if signal_quiet || a.is_signaling() || b.is_signaling() {
            env.raise(Flags::IE);
        }
        return Compare::Unordered;
    }
    raise_denormal(a.is_denormal() || b.is_denormal(), env);
    if a.is_zero() && b.is_zero() {
        return Compare::Equal;
    }
    // A pseudo-denormal has the value of exponent 1.
    let settle = |x: F80| {
        let pseudo = x.is_denormal() && x.mantissa >> 63 != 0;
        if pseudo { F80::new(x.sign_exp | 1, x.mantissa) } else { x }
    };
    ordered(settle(a), settle(b))
}

/// What FPREM and FPREM1 give.
#[derive(Clone, Copy, Debug)]
pub struct Remainder {
    /// The remainder, or a partial one.
    pub value: F80,
    /// The low three bits of the quotient.
    pub quotient: u8,
    /// The exponents were too far apart: `value` is only partly reduced.
    pub partial: bool,
}

/// The remainder of `a / b`, whose quotient is truncated (FPREM) or, if `nearest`, rounded to
/// nearest (FPREM1).
pub fn remainder(a: F80, b: F80, nearest: bool, env: &mut Env) -> Remainder {
    let whole = |value| Remainder { value, quotient: 0, partial: false };
    let (pair, denormal) = sort(a, b, env);
    let (x, y) = match pair {
        Pair::Done(result) => return whole(result),
        Pair::Operands(x, y) => (x, y),
    };
    if matches!(x, Operand::Inf) || matches!(y, Operand::Zero) {
        return whole(invalid(env));
    }
    raise_denormal(denormal, env);
    match (x, y) {
        (Operand::Finite(x), Operand::Finite(y)) => remainder_finite(x, y, nearest, env),
        (Operand::Finite(x), _) => whole(finish_extended(x.into(), env)),
        _ => whole(a),
    }
}

fn remainder_finite(x: Num, y: Num, nearest: bool, env: &mut Env) -> Remainder {
    let distance = x.exp - y.exp;
    if distance < -1 || (distance < 0 && !nearest) {
        let value = finish_extended(x.into(), env);
        return Remainder { value, quotient: 0, partial: false };
    }
    // A partial step takes 32 to 63 bits off, so that the last comes out even.
    let partial = distance >= 64;
    let bits = if partial { 32 + distance % 32 } else { distance };
    let scaled = if bits < 0 { u128::from(x.sig) } else { u128::from(x.sig) << bits };
    let divisor = if bits < 0 { u128::from(y.sig) << 1 } else { u128::from(y.sig) };
    let (mut quotient, mut rest) = (scaled / divisor, scaled % divisor);
    // The weight of bit 127 of `rest`.
    let top = if partial { x.exp - bits } else { x.exp.min(y.exp) } + 64;
    let mut sign = x.sign;
    let twice = rest << 1;
    if nearest && !partial && (twice > divisor || (twice == divisor && quotient & 1 != 0)) {
        quotient += 1;
        rest = divisor - rest;
        sign = !sign;
    }
    let value = if rest == 0 {
        F80::ZERO.with_sign(x.sign)
    } else {
        finish_extended(num::normalise(sign, top, rest), env)
    };
    Remainder { value, quotient: if partial { 0 } else { quotient as u8 & 7 }, partial }
}

/// FSCALE: `a * 2^trunc(b)`.
pub fn scale(a: F80, b: F80, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(a, b, env);
    let (x, y) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(x, y) => (x, y),
    };
    match (x, y) {
        (Operand::Zero, Operand::Inf) if !b.is_negative() => return invalid(env),
        (Operand::Inf, Operand::Inf) if b.is_negative() => return invalid(env),
        _ => raise_denormal(denormal, env),
    }
    match (x, y) {
        (Operand::Zero | Operand::Inf, _) => a,
        (_, Operand::Inf) if b.is_negative() => F80::ZERO.with_sign(a.is_negative()),
        (_, Operand::Inf) => F80::INFINITY.with_sign(a.is_negative()),
        (Operand::Finite(x), Operand::Zero) => finish_extended(x.into(), env),
        (Operand::Finite(x), Operand::Finite(y)) => {
            // Beyond 2^16 either way the result is the same: out of range even when moved.
            let by = if y.exp > 16 { 1 << 17 } else { integral(y, Rounding::Zero).map_or(0, |i| i.0 as i32) };
            let by = if y.sign { -by } else { by };
            finish_extended(Num { exp: x.exp + by, ..x }.into(), env)
        }
    }
}

/// FXTRACT: exponent and significand of `a`.
pub fn extract(a: F80, env: &mut Env) -> (F80, F80) {
    match a.classify() {
        Class::Finite(n, denormal) => {
            raise_denormal(denormal, env);
            let exponent = from_magnitude(n.exp < 0, u64::from(n.exp.unsigned_abs()));
            (exponent.with_sign(n.exp < 0), F80::pack(n.sign, F80::BIAS, n.sig))
        }
        Class::Zero => {
            env.raise(Flags::ZE);
            (F80::INFINITY.with_sign(true), a)
        }
        Class::Inf => (F80::INFINITY, a),
        Class::QuietNan | Class::SignalingNan => {
            let nan = propagate(a, a, env);
            (nan, nan)
        }
        Class::Invalid => (invalid(env), F80::INDEFINITE),
    }
}
