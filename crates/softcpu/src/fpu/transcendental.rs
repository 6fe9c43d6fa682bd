//! The x87 transcendental instructions (SDM volume 1, section 8.3.8). Results keep 64 bits whatever
//! the precision control, and round as the rounding control says.

use super::env::{Env, Flags};
use super::ext::{Operand, Pair, finish_extended, invalid, propagate, sort};
use super::f80::F80;
use super::num::{self, Class, Num};
use super::poly;
use super::wide::Wide;

fn finish(x: Wide, env: &mut Env) -> F80 {
    finish_extended(x.inexact(), env)
}

/// The upper 66 bits of pi/2, all that the x87 reduces by, in units of `2^-65`.
const HALF_PI_66: u128 = 0x3_243f_6a88_85a3_08d3;

/// A reduced argument: `|r| <= pi/4` and the multiple of pi/2 taken off `|x|`.
struct Reduced {
    r: Wide,
    quadrant: u8,
}

/// Takes multiples of pi/2 off `|n|`, which must be below `2^63`.
fn reduce(n: Num) -> Reduced {
    let magnitude = Num { sign: false, ..n };
    if n.exp < -1 {
        return Reduced { r: magnitude.into(), quadrant: 0 };
    }
    let scaled = u128::from(n.sig) << (n.exp + 2);
    let (quotient, rest) = (scaled / HALF_PI_66, scaled % HALF_PI_66);
    let over = rest > HALF_PI_66 / 2;
    let rest = if over { HALF_PI_66 - rest } else { rest };
    let r = Wide::normalised(over, 127 - 65, rest);
    Reduced { r, quadrant: (quotient as u8).wrapping_add(over.into()) & 3 }
}

/// An argument of FSIN, FCOS, FSINCOS or FPTAN.
enum Angle {
    /// The result, where it does not take computing.
    Nan(F80),
    Zero,
    /// Out of range: C2.
    TooLarge,
    Finite(Num),
}

fn angle(x: F80, env: &mut Env) -> Angle {
    match x.classify() {
        Class::Zero => Angle::Zero,
        Class::Finite(n, _) if n.exp >= 63 => Angle::TooLarge,
        Class::Finite(n, denormal) => {
            if denormal {
                env.raise(Flags::DE);
            }
            Angle::Finite(n)
        }
        Class::QuietNan | Class::SignalingNan => Angle::Nan(propagate(x, x, env)),
        Class::Inf | Class::Invalid => Angle::Nan(invalid(env)),
    }
}

fn sin_finite(n: Num, reduced: &Reduced) -> Wide {
    let r = reduced.r;
    let value = if reduced.quadrant & 1 == 0 { poly::sin(r) } else { poly::cos(r) };
    value.flip((reduced.quadrant >= 2) ^ n.sign)
}

fn cos_finite(reduced: &Reduced) -> Wide {
    let r = reduced.r;
    let value = if reduced.quadrant & 1 == 0 { poly::cos(r) } else { poly::sin(r) };
    value.flip(matches!(reduced.quadrant, 1 | 2))
}

/// FSIN; `None` if `|x| >= 2^63`.
pub(super) fn sin(x: F80, env: &mut Env) -> Option<F80> {
    match angle(x, env) {
        Angle::Nan(result) => Some(result),
        Angle::Zero => Some(x),
        Angle::TooLarge => None,
        Angle::Finite(n) => Some(finish(sin_finite(n, &reduce(n)), env)),
    }
}

/// FCOS; `None` if `|x| >= 2^63`.
pub(super) fn cos(x: F80, env: &mut Env) -> Option<F80> {
    match angle(x, env) {
        Angle::Nan(result) => Some(result),
        Angle::Zero => Some(F80::ONE),
        Angle::TooLarge => None,
        Angle::Finite(n) => Some(finish(cos_finite(&reduce(n)), env)),
    }
}

/// FSINCOS: sine and cosine; `None` if `|x| >= 2^63`.
pub(super) fn sincos(x: F80, env: &mut Env) -> Option<(F80, F80)> {
    match angle(x, env) {
        Angle::Nan(result) => Some((result, result)),
        Angle::Zero => Some((x, F80::ONE)),
        Angle::TooLarge => None,
        Angle::Finite(n) => {
            let reduced = reduce(n);
            let cos = finish(cos_finite(&reduced), env);
            Some((finish(sin_finite(n, &reduced), env), cos))
        }
    }
}

/// FPTAN: the tangent and the 1 that is pushed on it (a NaN is pushed on a NaN); `None` if
/// `|x| >= 2^63`.
pub(super) fn tan(x: F80, env: &mut Env) -> Option<(F80, F80)> {
    match angle(x, env) {
        Angle::Nan(result) => Some((result, result)),
        Angle::Zero => Some((x, F80::ONE)),
        Angle::TooLarge => None,
        Angle::Finite(n) => {
            let Reduced { r, quadrant } = reduce(n);
            let odd = quadrant & 1 != 0;
            let value = if odd { poly::cos(r).div(poly::sin(r)) } else { poly::sin(r).div(poly::cos(r)) };
            Some((finish(value.flip(odd ^ n.sign), env), F80::ONE))
        }
    }
}

/// FPATAN: the angle of the point `(x, y)`.
pub(super) fn atan2(y: F80, x: F80, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(y, x, env);
    let (b, a) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(b, a) => (b, a),
    };
    if denormal {
        env.raise(Flags::DE);
    }
    let left = x.is_negative();
    let zero = matches!(b, Operand::Zero) || matches!((b, a), (Operand::Finite(_), Operand::Inf));
    let angle = match (b, a) {
        (Operand::Inf, Operand::Inf) if left => Wide::THREE_QUARTERS_PI,
        (Operand::Inf, Operand::Inf) => Wide::QUARTER_PI,
        _ if zero && !left => return F80::ZERO.with_sign(y.is_negative()),
        _ if zero => Wide::PI,
        (Operand::Finite(b), Operand::Finite(a)) => {
            let (b, a) = (Wide::from(Num { sign: false, ..b }), Wide::from(Num { sign: false, ..a }));
            let steep = (b.exp, b.sig) > (a.exp, a.sig);
            let base = if steep { poly::atan_ratio(a, b) } else { poly::atan_ratio(b, a) };
            match (steep, left) {
                (false, false) => base,
                (false, true) => Wide::PI.add(base.flip(true)),
                (true, _) => Wide::HALF_PI.add(base.flip(!left)),
            }
        }
        _ => Wide::HALF_PI,
    };
    finish(angle.flip(y.is_negative()), env)
}

/// F2XM1: `2^x - 1` for `-1 <= x <= 1`; other finite operands come back unchanged.
pub(super) fn exp2_m1(x: F80, env: &mut Env) -> F80 {
    match x.classify() {
        Class::Zero => x,
        Class::Inf if x.is_negative() => F80::ONE.negate(),
        Class::Inf => x,
        Class::Finite(n, denormal) => {
            if denormal {
                env.raise(Flags::DE);
            }
            match n.exp {
                0 if n.sig == 1 << 63 => {
                    // Exact, but processors raise precision all the same.
                    env.raise(Flags::PE);
                    if n.sign { F80::new(0xbffe, 1 << 63) } else { x }
                }
                0.. => x,
                _ => finish(poly::exp_m1(Wide::from(n).mul(Wide::LN_2)), env),
            }
        }
        Class::QuietNan | Class::SignalingNan => propagate(x, x, env),
        Class::Invalid => invalid(env),
    }
}

/// `y` times a logarithm that is an infinity, `negative` or not.
fn times_infinity(y: F80, negative: bool, env: &mut Env) -> F80 {
    if y.is_zero() { invalid(env) } else { F80::INFINITY.with_sign(y.is_negative() ^ negative) }
}

/// FYL2X: `y * log2(x)`.
pub(super) fn y_log2(y: F80, x: F80, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(x, y, env);
    let (a, b) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(a, b) => (a, b),
    };
    let n = match a {
        Operand::Zero => {
            if matches!(b, Operand::Finite(_)) {
                env.raise(Flags::ZE);
            }
            return times_infinity(y, true, env);
        }
        _ if x.is_negative() => return invalid(env),
        Operand::Inf => {
            let result = times_infinity(y, false, env);
            if denormal {
                env.raise(Flags::DE);
            }
            return result;
        }
        Operand::Finite(n) => n,
    };
    let one = x == F80::ONE;
    if one && matches!(b, Operand::Inf) {
        return invalid(env);
    }
    if denormal {
        env.raise(Flags::DE);
    }
    let sign = y.is_negative() ^ (n.exp < 0);
    match b {
        Operand::Inf => F80::INFINITY.with_sign(sign),
        Operand::Zero => F80::ZERO.with_sign(sign),
        Operand::Finite(_) if one => F80::ZERO.with_sign(sign),
        Operand::Finite(b) if n.sig == 1 << 63 => {
            // A power of two: the logarithm is an integer and the product can be exact.
            let k = n.exp.unsigned_abs();
            let shift = k.leading_zeros();
            let k = Num { sign: n.exp < 0, exp: 31 - shift as i32, sig: u64::from(k << shift) << 32 };
            let result = finish_extended(num::mul(b, k), env);
            // Processors take it for inexact all the same.
            env.raise(if result.is_denormal() { Flags::UE | Flags::PE } else { Flags::PE });
            result
        }
        Operand::Finite(b) => finish(log2(n.into()).mul(b.into()), env),
    }
}

/// FYL2XP1: `y * log2(x + 1)`.
pub(super) fn y_log2_p1(y: F80, x: F80, env: &mut Env) -> F80 {
    let (pair, denormal) = sort(x, y, env);
    let (a, b) = match pair {
        Pair::Done(result) => return result,
        Pair::Operands(a, b) => (a, b),
    };
    let sign = y.is_negative() ^ x.is_negative();
    let n = match a {
        Operand::Zero if matches!(b, Operand::Inf) => return invalid(env),
        Operand::Inf if x.is_negative() => return invalid(env),
        Operand::Inf => return times_infinity(y, false, env),
        Operand::Finite(n) if n.sign && n.exp >= 0 => return invalid(env),
        Operand::Zero => None,
        Operand::Finite(n) => Some(n),
    };
    if denormal {
        env.raise(Flags::DE);
    }
    match (n, b) {
        (_, Operand::Inf) => F80::INFINITY.with_sign(sign),
        (None, _) | (_, Operand::Zero) => F80::ZERO.with_sign(sign),
        (Some(n), Operand::Finite(b)) => {
            let x = Wide::from(n);
            let log = if n.exp < -2 {
                poly::atanh(x.div(x.add(Wide::integer(2)))).mul(Wide::TWO_OVER_LN_2)
            } else {
                log2(x.add(Wide::ONE))
            };
            if log.sig == 0 {
                return F80::ZERO.with_sign(sign);
            }
            finish(log.mul(b.into()), env)
        }
    }
}

/// `log2(n)`, n positive.
fn log2(n: Wide) -> Wide {
    // A significand between sqrt(1/2) and sqrt(2).
    let high = n.sig > 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let m = Wide { sign: false, exp: -i32::from(high), sig: n.sig };
    let s = m.add(Wide::ONE.flip(true)).div(m.add(Wide::ONE));
    let fraction = if s.sig == 0 { s } else { poly::atanh(s).mul(Wide::TWO_OVER_LN_2) };
    fraction.add(Wide::integer(n.exp + i32::from(high)))
}
