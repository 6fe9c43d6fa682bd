//! binary32 and binary64 in integer arithmetic, as SSE computes: numbers are bit patterns, binary32
//! in the low half. NaN operands follow SDM volume 1, table 4-7 for SSE: the first NaN, quieted.

use super::env::{Compare, Env, Flags, Rounding};
use super::num::{self, Class, Exact, Num, Range};

/// A binary interchange format that fits 64 bits.
pub trait Format {
    /// Bits of fraction.
    const FRACTION: u32;
    /// Bits of exponent.
    const EXPONENT: u32;
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::FRACTION + Self::EXPONENT);
    /// The fraction's bits.
    const FRACTION_MASK: u64 = (1 << Self::FRACTION) - 1;
    /// Positive infinity: all exponent bits.
    const INFINITY: u64 = ((1 << Self::EXPONENT) - 1) << Self::FRACTION;
    /// The fraction bit that tells quiet NaNs from signaling ones.
    const QUIET: u64 = 1 << (Self::FRACTION - 1);
    /// The NaN that a masked invalid operation gives.
    const INDEFINITE: u64 = Self::SIGN | Self::INFINITY | Self::QUIET;
    /// Exponent bias.
    const BIAS: i32 = (1 << (Self::EXPONENT - 1)) - 1;
}

/// binary32, single precision.
#[derive(Clone, Copy, Debug)]
pub struct Binary32;

impl Format for Binary32 {
    const FRACTION: u32 = 23;
    const EXPONENT: u32 = 8;
}

/// binary64, double precision.
#[derive(Clone, Copy, Debug)]
pub struct Binary64;

impl Format for Binary64 {
    const FRACTION: u32 = 52;
    const EXPONENT: u32 = 11;
}

/// Whether `v` is a NaN.
#[inline]
pub fn is_nan<F: Format>(v: u64) -> bool {
    v & !F::SIGN > F::INFINITY
}

/// Whether `v` is a signaling NaN.
#[inline]
pub fn is_signaling<F: Format>(v: u64) -> bool {
    is_nan::<F>(v) && v & F::QUIET == 0
}

/// Whether `v` is a zero of either sign.
#[inline]
pub fn is_zero<F: Format>(v: u64) -> bool {
    v & !F::SIGN == 0
}

/// Whether `v` is denormal.
#[inline]
pub fn is_denormal<F: Format>(v: u64) -> bool {
    v & F::INFINITY == 0 && v & F::FRACTION_MASK != 0
}

/// Sorts any bit pattern, taking no notice of DAZ.
#[inline]
pub(super) fn classify<F: Format>(v: u64) -> Class {
    let fraction = v & F::FRACTION_MASK;
    let biased = ((v & F::INFINITY) >> F::FRACTION) as i32;
    let sign = v & F::SIGN != 0;
    if v & F::INFINITY == F::INFINITY {
        return match fraction {
            0 => Class::Inf,
            f if f & F::QUIET != 0 => Class::QuietNan,
            _ => Class::SignalingNan,
        };
    }
    let left = 63 - F::FRACTION;
    if biased != 0 {
        let n = Num { sign, exp: biased - F::BIAS, sig: (fraction << left) | 1 << 63 };
        return Class::Finite(n, false);
    }
    if fraction == 0 {
        return Class::Zero;
    }
    let shift = fraction.leading_zeros();
    let exp = 1 - F::BIAS - (shift - left) as i32;
    Class::Finite(Num { sign, exp, sig: fraction << shift }, true)
}

/// Rounds into the format.
#[inline]
pub(super) fn finish<F: Format>(x: Exact, env: &mut Env) -> u64 {
    let range = Range {
        precision: F::FRACTION + 1,
        bias: F::BIAS,
        max: (1 << F::EXPONENT) - 1,
        adjust: 3 << (F::EXPONENT - 2),
    };
    let (biased, sig) = num::round(x, range, env);
    let fraction = (sig >> (63 - F::FRACTION)) & F::FRACTION_MASK;
    signed::<F>(x.sign, (biased as u64) << F::FRACTION | fraction)
}

#[inline]
pub(super) fn signed<F: Format>(sign: bool, magnitude: u64) -> u64 {
    if sign { magnitude | F::SIGN } else { magnitude }
}

fn invalid<F: Format>(env: &mut Env) -> u64 {
    env.raise(Flags::IE);
    F::INDEFINITE
}

/// The NaN that an operation on `a` and `b`, one of them a NaN, gives.
fn propagate<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    if is_signaling::<F>(a) || is_signaling::<F>(b) {
        env.raise(Flags::IE);
    }
    (if is_nan::<F>(a) { a } else { b }) | F::QUIET
}

/// With a denormal made zero if DAZ says so.
#[inline]
fn settle<F: Format>(v: u64, env: &Env) -> u64 {
    if env.daz && is_denormal::<F>(v) { v & F::SIGN } else { v }
}

/// Operands after DAZ. Raises nothing.
#[derive(Clone, Copy)]
struct Pair {
    a: u64,
    b: u64,
    x: Class,
    y: Class,
}

impl Pair {
    fn new<F: Format>(a: u64, b: u64, env: &Env) -> Self {
        let (a, b) = (settle::<F>(a, env), settle::<F>(b, env));
        Self { a, b, x: classify::<F>(a), y: classify::<F>(b) }
    }

    fn has_nan<F: Format>(self) -> bool {
        is_nan::<F>(self.a) || is_nan::<F>(self.b)
    }

    /// Raises a denormal operand.
    fn note_denormal(self, env: &mut Env) {
        if matches!(self.x, Class::Finite(_, true)) || matches!(self.y, Class::Finite(_, true)) {
            env.raise(Flags::DE);
        }
    }
}

/// `a + b`.
pub fn add<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    add_signed::<F>(a, b, 0, env)
}

/// `a - b`.
pub fn sub<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    add_signed::<F>(a, b, F::SIGN, env)
}

/// `a + b` with `flip` applied to the sign of `b` if it is no NaN.
fn add_signed<F: Format>(a: u64, b: u64, flip: u64, env: &mut Env) -> u64 {
    let p = Pair::new::<F>(a, b, env);
    if p.has_nan::<F>() {
        return propagate::<F>(p.a, p.b, env);
    }
    let (a, b) = (p.a, p.b ^ flip);
    let (sign_a, sign_b) = (a & F::SIGN != 0, b & F::SIGN != 0);
    if matches!((p.x, p.y), (Class::Inf, Class::Inf)) && sign_a != sign_b {
        return invalid::<F>(env);
    }
    p.note_denormal(env);
    let cancelled = signed::<F>(env.rounding == Rounding::Down, 0);
    match (p.x, p.y) {
        (Class::Inf, _) => a,
        (_, Class::Inf) => b,
        (Class::Zero, Class::Zero) if sign_a == sign_b => a,
        (Class::Zero, Class::Zero) => cancelled,
        (Class::Finite(x, _), Class::Finite(y, _)) => match num::add(x, Num { sign: sign_b, ..y }) {
            Some(sum) => finish::<F>(sum, env),
            None => cancelled,
        },
        (Class::Finite(x, _), _) => finish::<F>(x.into(), env),
        (_, Class::Finite(y, _)) => finish::<F>(Num { sign: sign_b, ..y }.into(), env),
        _ => cancelled,
    }
}

/// `a * b`.
pub fn mul<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let p = Pair::new::<F>(a, b, env);
    if p.has_nan::<F>() {
        return propagate::<F>(p.a, p.b, env);
    }
    let sign = (a ^ b) & F::SIGN != 0;
    if matches!((p.x, p.y), (Class::Inf, Class::Zero) | (Class::Zero, Class::Inf)) {
        return invalid::<F>(env);
    }
    p.note_denormal(env);
    match (p.x, p.y) {
        (Class::Finite(x, _), Class::Finite(y, _)) => finish::<F>(num::mul(x, y), env),
        (Class::Zero, _) | (_, Class::Zero) => signed::<F>(sign, 0),
        _ => signed::<F>(sign, F::INFINITY),
    }
}

/// `a / b`.
pub fn div<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let p = Pair::new::<F>(a, b, env);
    if p.has_nan::<F>() {
        return propagate::<F>(p.a, p.b, env);
    }
    let sign = (a ^ b) & F::SIGN != 0;
    match (p.x, p.y) {
        (Class::Inf, Class::Inf) | (Class::Zero, Class::Zero) => return invalid::<F>(env),
        (Class::Finite(..), Class::Zero) => {
            env.raise(Flags::ZE);
            return signed::<F>(sign, F::INFINITY);
        }
        _ => p.note_denormal(env),
    }
    match (p.x, p.y) {
        (Class::Finite(x, _), Class::Finite(y, _)) => finish::<F>(num::div(x, y), env),
        (Class::Inf, _) => signed::<F>(sign, F::INFINITY),
        _ => signed::<F>(sign, 0),
    }
}

/// Square root.
pub fn sqrt<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = settle::<F>(a, env);
    match classify::<F>(a) {
        Class::Zero => a,
        Class::Finite(n, denormal) if !n.sign => {
            if denormal {
                env.raise(Flags::DE);
            }
            finish::<F>(num::sqrt(n), env)
        }
        Class::Inf if a & F::SIGN == 0 => a,
        Class::QuietNan | Class::SignalingNan => propagate::<F>(a, a, env),
        _ => invalid::<F>(env),
    }
}

/// MIN: the second operand if either is a NaN or both are zeros.
pub fn min<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (settle::<F>(a, env), settle::<F>(b, env));
    if compare::<F>(a, b, true, env) == Compare::Less { a } else { b }
}

/// MAX: the second operand if either is a NaN or both are zeros.
pub fn max<F: Format>(a: u64, b: u64, env: &mut Env) -> u64 {
    let (a, b) = (settle::<F>(a, env), settle::<F>(b, env));
    if compare::<F>(a, b, true, env) == Compare::Greater { a } else { b }
}

/// Compares. Signaling NaNs raise invalid; quiet ones do if `signal_quiet`.
pub fn compare<F: Format>(a: u64, b: u64, signal_quiet: bool, env: &mut Env) -> Compare {
    let p = Pair::new::<F>(a, b, env);
    if p.has_nan::<F>() {
        if signal_quiet || is_signaling::<F>(a) || is_signaling::<F>(b) {
            env.raise(Flags::IE);
        }
        return Compare::Unordered;
    }
    p.note_denormal(env);
    // Sign and magnitude, as integers in order.
    let key = |v: u64| {
        let magnitude = (v & !F::SIGN) as i64;
        if v & F::SIGN != 0 { -magnitude } else { magnitude }
    };
    match key(p.a).cmp(&key(p.b)) {
        std::cmp::Ordering::Less => Compare::Less,
        std::cmp::Ordering::Equal => Compare::Equal,
        std::cmp::Ordering::Greater => Compare::Greater,
    }
}

/// ROUND: to an integer in the format. Denormal operands raise nothing.
pub fn round_to_integral<F: Format>(a: u64, env: &mut Env) -> u64 {
    let a = settle::<F>(a, env);
    match classify::<F>(a) {
        Class::Finite(n, _) if n.exp < F::FRACTION as i32 => {
            let Some((whole, inexact, up)) = super::ext::integral(n, env.rounding) else { return a };
            if inexact {
                env.raise(Flags::PE);
                env.rounded_up = up;
            }
            super::convert::int_to_float::<F>(n.sign, whole, env)
        }
        Class::QuietNan | Class::SignalingNan => propagate::<F>(a, a, env),
        _ => a,
    }
}
