//! The power series behind the transcendental functions, in 128-bit fixed point.

use super::wide::{Wide, mul_high};

/// `2^128 / n`.
const fn over(n: u128) -> u128 {
    u128::MAX / n
}

/// `1/first!`, `1/(first + step)!`, … as fractions of `2^128`.
const fn factorials<const N: usize>(first: u128, step: u128) -> [u128; N] {
    let mut table = [0; N];
    let (mut i, mut n, mut factorial) = (0, 1, 1u128);
    while i < N {
        while n < first + step * i as u128 {
            n += 1;
            factorial *= n;
        }
        table[i] = over(factorial);
        i += 1;
    }
    table
}

/// `1/3`, `1/5`, … as fractions of `2^128`.
const fn odds<const N: usize>() -> [u128; N] {
    let mut table = [0; N];
    let mut i = 0;
    while i < N {
        table[i] = over(2 * i as u128 + 3);
        i += 1;
    }
    table
}

static SIN: [u128; 12] = factorials(3, 2);
static COS: [u128; 12] = factorials(2, 2);
static EXP: [u128; 20] = factorials(2, 1);
static ATAN: [u128; 9] = odds();
static ATANH: [u128; 17] = odds();

/// `atan(i / 16)`, i = 1 to 16, as fractions of `2^128`.
static ATAN_16THS: [u128; 16] = [
    0x0ffaaddb_967ef4e3_6cb2792d_c0e2e0d5,
    0x1fd5ba9a_ac2f6dc6_5912f313_e7d111df,
    0x2f72f697_9cb6044d_1ec2d3e2_07271d22,
    0x3eb6ebf2_5901bac5_5b71e7bd_7de885f9,
    0x4d89dcdc_1faf2f34_e2d5da4c_693d7994,
    0x5bd86507_937bc239_c5519091_6e7f2242,
    0x6993bb0f_308ff2db_213e4af4_800f389b,
    0x76b19c15_86ed3da2_b7f222f6_5e1d4682,
    0x832bf4a6_d9867e2a_4b6a09cb_61a515c1,
    0x8f005d5e_f7f59f9b_5c835e16_65c43748,
    0x9a2f80e6_71bdda20_4226f8e2_204ff3bd,
    0xa4bc7d19_34f70924_19a87f2a_457dac9f,
    0xaeac4c38_b4d8c080_14725e2f_3e52070a,
    0xb8053e2b_c2319e73_cb2da552_10a4443d,
    0xc0ce85b8_ac526640_89dd62c4_6e92fa25,
    0xc90fdaa2_2168c234_c4c6628b_80dc1cd1,
];

/// `z*c0 - z^2*c1 + z^3*c2 …`
fn alternating(z: u128, coefficients: &[u128]) -> u128 {
    mul_high(z, coefficients.iter().rev().fold(0, |acc, c| c - mul_high(z, acc)))
}

/// `z*c0 + z^2*c1 + z^3*c2 …`
fn series(z: u128, coefficients: &[u128]) -> u128 {
    mul_high(z, coefficients.iter().rev().fold(0, |acc, c| c + mul_high(z, acc)))
}

/// `sin(r)`, `|r| < 0.8`.
pub(super) fn sin(r: Wide) -> Wide {
    r.shrink(alternating(r.mul(r).fraction(), &SIN))
}

/// `cos(r)`, `|r| < 0.8`.
pub(super) fn cos(r: Wide) -> Wide {
    Wide::ONE.shrink(alternating(r.mul(r).fraction(), &COS))
}

/// `e^t - 1`, `|t| < 0.7`.
pub(super) fn exp_m1(t: Wide) -> Wide {
    // (1 + u)^2 - 1 = u * (u + 2) halves the argument, and with it the number of terms.
    let half = Wide { exp: t.exp - 1, ..t };
    let part = half.fraction();
    let u = if t.sign { half.shrink(alternating(part, &EXP)) } else { half.grow(series(part, &EXP)) };
    u.mul(u.add(Wide::integer(2)))
}

/// `atanh(s)`, `|s| < 0.18`.
pub(super) fn atanh(s: Wide) -> Wide {
    s.grow(series(s.mul(s).fraction(), &ATANH))
}

/// `atan(y / x)` for `0 < y <= x`.
pub(super) fn atan_ratio(y: Wide, x: Wide) -> Wide {
    // To the nearest sixteenth: atan(y/x) = atan(c) + atan((y - c*x) / (x + c*y)).
    let near = (y.sig >> 64) as u64 as f64 / (x.sig >> 64) as u64 as f64;
    let near = if y.exp - x.exp < -8 { 0.0 } else { near * 2f64.powi(y.exp - x.exp) };
    let index = (near * 16.0).round() as usize;
    let c = Wide::integer(index.min(16) as i32);
    let c = if index == 0 { c } else { Wide { exp: c.exp - 4, ..c } };
    let t = if index == 0 { y.div(x) } else { y.add(x.mul(c).flip(true)).div(x.add(y.mul(c))) };
    if t.sig == 0 {
        return Wide::normalised(false, -1, ATAN_16THS[index.clamp(1, 16) - 1]);
    }
    let small = t.shrink(alternating(t.mul(t).fraction(), &ATAN));
    match index {
        0 => small,
        _ => Wide::normalised(false, -1, ATAN_16THS[index.min(16) - 1]).add(small),
    }
}
