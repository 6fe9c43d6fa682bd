//! Transcendental instructions: results within an ulp or so of the host's, specials exactly alike.

use std::arch::asm;

use super::random::Random;
use super::x87::{Case, FLAGS, FORM, Frame, case, describe, frame};
use crate::fpu::{F80, X87};

const C1: u8 = 0x02;

/// Units in the last place between two numbers, if both are finite and of one sign.
fn distance(a: F80, b: F80) -> Option<u64> {
    let ordinal = |x: F80| (i128::from((x.biased() - 1).max(0)) << 63) + i128::from(x.mantissa);
    let finite = a.biased() != 0x7fff && b.biased() != 0x7fff;
    let alike = finite && a.is_negative() == b.is_negative() && !a.is_invalid() && !b.is_invalid();
    alike.then(|| (ordinal(a) - ordinal(b)).unsigned_abs().min(1 << 60) as u64)
}

/// A state with ST(0) and ST(1) from `operands`.
fn start(r: &mut Random, operands: fn(&mut Random) -> (F80, F80), masked: bool) -> Frame {
    let mut f = frame(r);
    let mut x = X87::default();
    x.restore(&f.image, FORM);
    if masked {
        x.set_control_word(x.control_word() | 0x3f);
    }
    let (st0, st1) = operands(r);
    x.set_st_raw(0, st0);
    x.set_st_raw(1, st1);
    f.image = x.save(FORM);
    f
}

/// How far the soft result is from the host's, or what differs otherwise.
fn compare(case: &Case, start: &Frame) -> Result<u64, String> {
    let (mut host, mut soft) = (*start, *start);
    (case.host)(&mut host);
    let mut x = X87::default();
    x.restore(&start.image, FORM);
    (case.soft)(&mut x, &mut soft);
    soft.image = x.save(FORM);
    let mut y = X87::default();
    y.restore(&host.image, FORM);
    let mut worst = 0;
    for i in 0..8 {
        if x.st(i) != y.st(i) {
            worst = worst.max(distance(x.st(i), y.st(i)).unwrap_or(u64::MAX));
        }
    }
    // C1 depends on the last bit, and so do the tag and flags of results on a boundary.
    let words = |f: &Frame| (f.image[4], f.image[5] & !C1, f.image[8], f.image[9]);
    if worst == u64::MAX || words(&host) != words(&soft) {
        return Err(format!(
            "{}\n  start {}\n  host  {}\n  soft  {}",
            case.name,
            describe(start),
            describe(&host),
            describe(&soft)
        ));
    }
    Ok(worst)
}

fn check(case: &Case, operands: fn(&mut Random) -> (F80, F80), masked: bool, limit: u64) {
    const ROUNDS: u64 = 40_000;
    let mut r = Random::new(99);
    let (mut failures, mut worst, mut different) = (Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let f = start(&mut r, operands, masked);
        match compare(case, &f) {
            Ok(ulps) => {
                different += u64::from(ulps > 0);
                worst = worst.max(ulps);
                if ulps > limit {
                    failures.push(format!("{}: {ulps} ulps\n  start {}", case.name, describe(&f)));
                }
            }
            Err(message) => failures.push(message),
        }
    }
    eprintln!("{}: at most {worst} ulps, {different} of {ROUNDS} not bit for bit", case.name);
    let count = failures.len();
    failures.truncate(6);
    assert!(count == 0, "{count} wrong\n{}", failures.join("\n"));
}

fn number(r: &mut Random, lowest: i32, highest: i32) -> F80 {
    let exponent = lowest + r.below((highest - lowest + 1) as u64) as i32 + 16383;
    F80::new(exponent as u16 | (r.below(2) as u16) << 15, r.bits() | 1 << 63)
}

fn moderate(r: &mut Random) -> (F80, F80) {
    (number(r, -20, 20), number(r, -20, 20))
}

fn angles(r: &mut Random) -> (F80, F80) {
    (number(r, -40, 62), F80::ONE)
}

fn fractions(r: &mut Random) -> (F80, F80) {
    (number(r, -70, -1), number(r, -20, 20))
}

fn positive(r: &mut Random) -> (F80, F80) {
    let (x, y) = moderate(r);
    let near_one = F80::new(0x3fff - r.below(2) as u16, r.bits() >> r.below(60) | 1 << 63);
    (if r.below(2) == 0 { x.abs() } else { near_one }, y)
}

/// The range that the SDM promises FYL2XP1 works in.
fn near_zero(r: &mut Random) -> (F80, F80) {
    (number(r, -70, -3), number(r, -20, 20))
}

fn any(r: &mut Random) -> (F80, F80) {
    let simple = [F80::ZERO, F80::ONE, F80::INFINITY, F80::new(0x4000, 1 << 63), F80::new(0x3ffe, 1 << 63)];
    let mut pick = || {
        let x = if r.below(2) == 0 { simple[r.below(5) as usize] } else { r.f80() };
        if r.below(2) == 0 { x.negate() } else { x }
    };
    (pick(), pick())
}

/// The range of F2XM1, and specials.
fn up_to_one(r: &mut Random) -> (F80, F80) {
    let (x, y) = any(r);
    let beyond = x.biased() > 0x3fff || (x.biased() == 0x3fff && x.mantissa != 1 << 63);
    (if beyond && x.biased() != 0x7fff { F80::ONE.with_sign(x.is_negative()) } else { x }, y)
}

#[test]
fn sines() {
    for (case, limit) in [
        (case!("fsin", |x, _| x.fsin()), 1),
        (case!("fcos", |x, _| x.fcos()), 1),
        (case!("fsincos", |x, _| x.fsincos()), 1),
        (case!("fptan", |x, _| x.fptan()), 1),
    ] {
        check(&case, angles, true, limit);
        check(&case, any, false, limit);
    }
}

#[test]
fn arctangent() {
    let case = case!("fpatan", |x, _| x.fpatan());
    check(&case, moderate, true, 1);
    check(&case, any, false, 1);
}

#[test]
fn exponential() {
    let case = case!("f2xm1", |x, _| x.f2xm1());
    check(&case, up_to_one, false, 1);
    check(&case, fractions, true, 1);
}

#[test]
fn logarithms() {
    let case = case!("fyl2x", |x, _| x.fyl2x());
    check(&case, positive, true, 1);
    check(&case, any, false, 1);
    let case = case!("fyl2xp1", |x, _| x.fyl2xp1());
    check(&case, near_zero, true, 1);
}
