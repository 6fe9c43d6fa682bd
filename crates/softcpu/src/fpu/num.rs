//! Arithmetic on finite numbers with unbounded exponent, and rounding into a format. All formats
//! share it: an operation unpacks to [`Num`], computes an [`Exact`] and rounds once.

use super::env::{Env, Flags, Rounding};

const HALF: u64 = 1 << 63;

/// A finite number other than zero: `sig / 2^63 * 2^exp`, bit 63 of `sig` set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Num {
    pub sign: bool,
    pub exp: i32,
    pub sig: u64,
}

/// A result before rounding: a [`Num`] with 64 more bits, the lowest of them sticky.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exact {
    pub sign: bool,
    pub exp: i32,
    pub sig: u64,
    pub rest: u64,
}

impl From<Num> for Exact {
    #[inline]
    fn from(n: Num) -> Self {
        Self { sign: n.sign, exp: n.exp, sig: n.sig, rest: 0 }
    }
}

/// An operand, sorted by what special handling it needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Zero,
    /// Finite; true if denormal.
    Finite(Num, bool),
    Inf,
    QuietNan,
    SignalingNan,
    /// An 80-bit encoding that no processor since the 80287 accepts.
    Invalid,
}

/// Shifts right, or-ing what falls out into the lowest bit.
#[inline]
pub(super) fn shift_right_sticky(v: u128, n: u32) -> u128 {
    match n {
        0 => v,
        1..=127 => (v >> n) | u128::from(v << (128 - n) != 0),
        _ => u128::from(v != 0),
    }
}

/// Normalises `v` (not zero), whose bit 127 has weight `2^exp`.
#[inline]
pub(super) fn normalise(sign: bool, exp: i32, v: u128) -> Exact {
    let shift = v.leading_zeros();
    let v = v << shift;
    Exact { sign, exp: exp - shift as i32, sig: (v >> 64) as u64, rest: v as u64 }
}

/// Sum; `None` is an exact zero.
#[inline]
pub(super) fn add(a: Num, b: Num) -> Option<Exact> {
    let swap = b.exp > a.exp || (b.exp == a.exp && b.sig > a.sig);
    let (big, small) = if swap { (b, a) } else { (a, b) };
    let distance = (big.exp - small.exp) as u32;
    // One bit of headroom above; 63 below, so that only shifts past 63 need the sticky bit.
    let x = u128::from(big.sig) << 63;
    let y = u128::from(small.sig) << 63;
    let y = if distance < 64 { y >> distance } else { shift_right_sticky(y, distance) };
    if a.sign == b.sign {
        let sum = x + y;
        let carry = (sum >> 127) as u32;
        let sum = sum << (1 - carry);
        let (sig, rest) = ((sum >> 64) as u64, sum as u64);
        return Some(Exact { sign: big.sign, exp: big.exp + carry as i32, sig, rest });
    }
    let difference = x - y;
    if difference == 0 { None } else { Some(normalise(big.sign, big.exp + 1, difference)) }
}

/// Product.
#[inline]
pub(super) fn mul(a: Num, b: Num) -> Exact {
    let product = u128::from(a.sig) * u128::from(b.sig);
    let carry = (product >> 127) as u32;
    let product = product << (1 - carry);
    Exact {
        sign: a.sign ^ b.sign,
        exp: a.exp + b.exp + carry as i32,
        sig: (product >> 64) as u64,
        rest: product as u64,
    }
}

/// Quotient.
#[inline]
pub(super) fn div(a: Num, b: Num) -> Exact {
    let below = a.sig < b.sig;
    let dividend = u128::from(a.sig) << if below { 64 } else { 63 };
    // Its upper half is below the divisor: the quotient fits.
    let sig = (dividend / u128::from(b.sig)) as u64;
    let rem = dividend - u128::from(sig) * u128::from(b.sig);
    // Only whether the remainder is below, at or above half the divisor matters.
    let twice = rem << 1;
    let divisor = u128::from(b.sig);
    let rest = u64::from(twice >= divisor) << 63 | u64::from((rem != 0) & (twice != divisor));
    Exact { sign: a.sign ^ b.sign, exp: a.exp - b.exp - i32::from(below), sig, rest }
}

/// Square root of a positive number.
pub(super) fn sqrt(a: Num) -> Exact {
    let odd = a.exp & 1 != 0;
    let square = u128::from(a.sig) << if odd { 64 } else { 63 };
    let estimate = ((square >> 64) as u64 as f64).sqrt() * 4294967296.0;
    let mut root = (estimate as u64).max(HALF);
    let rest = square.wrapping_sub(u128::from(root) * u128::from(root)) as i128;
    let step = ((rest >> 16) as i64 as f64 * 32768.0 / root as f64) as i64;
    root = root.saturating_add_signed(step);
    let mut rest = square.wrapping_sub(u128::from(root) * u128::from(root)) as i128;
    while rest < 0 {
        root -= 1;
        rest += 2 * i128::from(root) + 1;
    }
    while rest > 2 * i128::from(root) {
        rest -= 2 * i128::from(root) + 1;
        root += 1;
    }
    // (root + 1/2)^2 = root^2 + root + 1/4: a tie is impossible.
    let rest = match rest {
        0 => 0,
        r if r > i128::from(root) => HALF | 1,
        _ => 1,
    };
    Exact { sign: false, exp: (a.exp - i32::from(odd)) / 2, sig: root, rest }
}

/// What of a format matters to rounding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// Bits of significand, with the integer bit.
    pub precision: u32,
    /// Exponent bias.
    pub bias: i32,
    /// The biased exponent of infinities.
    pub max: i32,
    /// What an unmasked overflow or underflow moves the exponent by.
    pub adjust: i32,
}

/// A significand rounded to fewer bits.
struct Rounded {
    sig: u64,
    carry: bool,
    inexact: bool,
    up: bool,
}

/// Rounds `sig` and the `rest` below it, dropping `drop` (0..=63) bits of `sig`.
#[inline]
fn round_bits(sign: bool, sig: u64, rest: u64, drop: u32, rounding: Rounding) -> Rounded {
    let (keep, lost) = if drop == 0 {
        (sig, rest)
    } else {
        (sig >> drop << drop, sig << (64 - drop) | u64::from(rest != 0))
    };
    if lost == 0 {
        return Rounded { sig: keep, carry: false, inexact: false, up: false };
    }
    let up = match rounding {
        Rounding::Nearest => lost > HALF || (lost == HALF && keep >> drop & 1 != 0),
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    let (sig, carry) = keep.overflowing_add(u64::from(up) << drop);
    Rounded { sig: if carry { HALF } else { sig }, carry, inexact: true, up }
}

/// Rounds into `range`, raising what that raises. Gives the biased exponent (0 for denormals and
/// zero) and the significand with its integer bit at bit 63; an infinity is `(max, 1 << 63)`.
#[inline(always)]
pub(super) fn round(x: Exact, range: Range, env: &mut Env) -> (i32, u64) {
    let biased = x.exp.wrapping_add(range.bias);
    let inside = (biased as u32).wrapping_sub(1) < range.max as u32 - 2;
    if !inside || range.precision != 64 || env.rounding != Rounding::Nearest {
        return round_general(x, range, env);
    }
    // By far the commonest on the x87, without a branch that depends on the numbers.
    let up = x.rest.overflowing_add(HALF - 1 + (x.sig & 1)).1;
    let (sig, carry) = x.sig.overflowing_add(up.into());
    if x.rest != 0 {
        env.raise(Flags::PE);
    }
    env.rounded_up = up;
    (biased + i32::from(carry), sig | u64::from(carry) << 63)
}

/// [`round`] to any precision in any direction.
#[inline(never)]
fn round_general(x: Exact, range: Range, env: &mut Env) -> (i32, u64) {
    let biased = x.exp.saturating_add(range.bias);
    if biased < 1 || biased >= range.max - 1 {
        return round_edge(x, range, env);
    }
    let r = round_bits(x.sign, x.sig, x.rest, 64 - range.precision, env.rounding);
    note(&r, env);
    (biased + i32::from(r.carry), r.sig)
}

/// [`round`] where overflow or underflow is possible.
#[cold]
fn round_edge(x: Exact, range: Range, env: &mut Env) -> (i32, u64) {
    let drop = 64 - range.precision;
    // As if the exponent were unbounded: x86 detects tininess after rounding.
    let r = round_bits(x.sign, x.sig, x.rest, drop, env.rounding);
    let biased = x.exp.saturating_add(range.bias).saturating_add(i32::from(r.carry));
    if biased >= range.max {
        return overflow(x.sign, (biased, r), range, env);
    }
    if biased >= 1 {
        note(&r, env);
        return (biased, r.sig);
    }
    if !env.masked(Flags::UE) {
        env.raise(Flags::UE);
        // FSCALE can be so far out that even the moved exponent is out of range: zero.
        let moved = biased.saturating_add(range.adjust);
        if moved >= 1 {
            note(&r, env);
            return (moved, r.sig);
        }
        beyond(&r, range, env);
        return (0, 0);
    }
    if env.ftz {
        env.raise(Flags::UE | Flags::PE);
        return (0, 0);
    }
    let shift = 1i32.saturating_sub(x.exp.saturating_add(range.bias)) as u32;
    let v = shift_right_sticky(u128::from(x.sig) << 64 | u128::from(x.rest), shift);
    let r = round_bits(x.sign, (v >> 64) as u64, v as u64, drop, env.rounding);
    if r.inexact {
        env.raise(Flags::UE);
    }
    note(&r, env);
    (i32::from(r.sig & HALF != 0), r.sig)
}

fn note(r: &Rounded, env: &mut Env) {
    if r.inexact {
        env.raise(Flags::PE);
        env.rounded_up = r.up;
    }
}

/// Unmasked, and even the moved exponent is out of range. FSCALE, alone in the 80-bit format, then gives zero
/// or infinity, which are inexact; a conversion to a narrower format gives nothing.
fn beyond(r: &Rounded, range: Range, env: &mut Env) {
    if range.max == 0x7fff {
        env.raise(Flags::PE);
    } else {
        note(r, env);
    }
}

/// `(biased, r)` is past the range: raises overflow and gives what takes its place.
fn overflow(sign: bool, (biased, r): (i32, Rounded), range: Range, env: &mut Env) -> (i32, u64) {
    env.raise(Flags::OE);
    if !env.masked(Flags::OE) {
        let moved = biased - range.adjust;
        if moved < range.max {
            note(&r, env);
            return (moved, r.sig);
        }
        beyond(&r, range, env);
        env.rounded_up = true;
        return (range.max, HALF);
    }
    env.raise(Flags::PE);
    let to_infinity = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    env.rounded_up = to_infinity;
    if to_infinity { (range.max, HALF) } else { (range.max - 1, u64::MAX << (64 - range.precision)) }
}
