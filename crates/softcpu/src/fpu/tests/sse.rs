//! SSE instructions on the host and in software: results and MXCSR, everything masked.

use std::arch::asm;

use super::random::Random;
use crate::fpu::sse::{self, Mxcsr, SimdException, double, single};

/// An instruction on XMM0 and XMM1, leaving its result in `{r}` or XMM0 (as 64 bits).
struct Case {
    name: &'static str,
    /// Operands are binary64, or integers, or else binary32.
    double: bool,
    integer: bool,
    host: fn(u64, u64, &mut u32) -> u64,
    soft: fn(u64, u64, &mut Mxcsr) -> u64,
}

macro_rules! case {
    ($asm:literal, $kind:ident, $soft:expr) => {
        Case {
            name: $asm,
            double: stringify!($kind) == "double",
            integer: stringify!($kind) == "integer",
            // SAFETY: registers only, and MXCSR is put back.
            host: |a, b, mxcsr| unsafe {
                let mut saved = 0u32;
                let mut out = 0u64;
                asm!(
                    "stmxcsr [{saved}]",
                    "ldmxcsr [{m}]",
                    "movq xmm0, {a}",
                    "movq xmm1, {b}",
                    "mov {r}, {a}",
                    $asm,
                    "stmxcsr [{m}]",
                    "ldmxcsr [{saved}]",
                    saved = in(reg) &raw mut saved,
                    m = in(reg) mxcsr,
                    a = in(reg) a,
                    b = in(reg) b,
                    r = inout(reg) out,
                    out("xmm0") _, out("xmm1") _,
                );
                out
            },
            soft: $soft,
        }
    };
}

fn operand(case: &Case, r: &mut Random) -> u64 {
    match (case.integer, case.double) {
        (true, _) => (r.bits() >> r.below(64)).wrapping_mul([1, u64::MAX][r.below(2) as usize]),
        (_, true) => r.float(11, 52),
        _ => r.float(8, 23),
    }
}

fn check_all(cases: &[Case]) {
    const ROUNDS: u64 = 60_000;
    let mut failures = Vec::new();
    for (seed, case) in cases.iter().enumerate() {
        let mut r = Random::new(seed as u64 + 1000);
        let mut wrong = 0;
        for _ in 0..ROUNDS {
            let a = operand(case, &mut r);
            let b = if r.below(4) == 0 { a ^ r.below(4) } else { operand(case, &mut r) };
            // Half the time as programs run: to nearest, without FTZ and DAZ.
            let modes = if r.below(2) == 0 { 0 } else { r.bits() as u32 & 0xe040 };
            let start = 0x1f80 | modes | r.bits() as u32 & 0x3f;
            let mut host_mxcsr = start;
            let host = (case.host)(a, b, &mut host_mxcsr);
            let mut mxcsr = Mxcsr::new(start);
            let soft = (case.soft)(a, b, &mut mxcsr);
            assert_eq!(mxcsr.commit(), Ok(()));
            if (host, host_mxcsr) != (soft, mxcsr.value()) {
                wrong += 1;
                if wrong <= 4 {
                    failures.push(format!(
                        "{}\n  {a:016x} {b:016x} mxcsr {start:04x}\n  host {host:016x} {host_mxcsr:04x}\n  soft {soft:016x} {:04x}",
                        case.name, mxcsr.value()
                    ));
                }
            }
        }
        if wrong > 0 {
            eprintln!("{}: {wrong} of {ROUNDS} wrong", case.name);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn arithmetic() {
    check_all(&[
        case!("addss xmm0, xmm1\nmovd {r:e}, xmm0", single, |a, b, m| {
            single::add(a as u32, b as u32, m).into()
        }),
        case!("addsd xmm0, xmm1\nmovq {r}, xmm0", double, |a, b, m| double::add(a, b, m)),
        case!("subss xmm0, xmm1\nmovd {r:e}, xmm0", single, |a, b, m| {
            single::sub(a as u32, b as u32, m).into()
        }),
        case!("subsd xmm0, xmm1\nmovq {r}, xmm0", double, |a, b, m| double::sub(a, b, m)),
        case!("mulss xmm0, xmm1\nmovd {r:e}, xmm0", single, |a, b, m| {
            single::mul(a as u32, b as u32, m).into()
        }),
        case!("mulsd xmm0, xmm1\nmovq {r}, xmm0", double, |a, b, m| double::mul(a, b, m)),
        case!("divss xmm0, xmm1\nmovd {r:e}, xmm0", single, |a, b, m| {
            single::div(a as u32, b as u32, m).into()
        }),
        case!("divsd xmm0, xmm1\nmovq {r}, xmm0", double, |a, b, m| double::div(a, b, m)),
        case!("minss xmm0, xmm1\nmovd {r:e}, xmm0", single, |a, b, m| {
            single::min(a as u32, b as u32, m).into()
        }),
        case!("minsd xmm0, xmm1\nmovq {r}, xmm0", double, |a, b, m| double::min(a, b, m)),
        case!("maxss xmm0, xmm1\nmovd {r:e}, xmm0", single, |a, b, m| {
            single::max(a as u32, b as u32, m).into()
        }),
        case!("maxsd xmm0, xmm1\nmovq {r}, xmm0", double, |a, b, m| double::max(a, b, m)),
        case!("sqrtss xmm0, xmm1\nmovd {r:e}, xmm0", single, |_, b, m| single::sqrt(b as u32, m).into()),
        case!("sqrtsd xmm0, xmm1\nmovq {r}, xmm0", double, |_, b, m| double::sqrt(b, m)),
    ]);
}

#[test]
fn comparison() {
    check_all(&[
        case!("cmpss xmm0, xmm1, 0\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 0, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 0\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 0, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 1\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 1, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 1\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 1, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 2\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 2, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 2\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 2, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 3\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 3, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 3\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 3, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 4\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 4, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 4\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 4, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 5\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 5, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 5\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 5, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 6\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 6, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 6\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 6, m)) * u64::MAX
        }),
        case!("cmpss xmm0, xmm1, 7\nmovd {r:e}, xmm0", single, |a, b, m| {
            u64::from(single::predicate(a as u32, b as u32, 7, m)) * 0xffff_ffff
        }),
        case!("cmpsd xmm0, xmm1, 7\nmovq {r}, xmm0", double, |a, b, m| {
            u64::from(double::predicate(a, b, 7, m)) * u64::MAX
        }),
        case!("ucomiss xmm0, xmm1\npushfq\npop {r}\nand {r}, 0x8d5", single, |a, b, m| {
            single::compare(a as u32, b as u32, false, m).eflags().into()
        }),
        case!("ucomisd xmm0, xmm1\npushfq\npop {r}\nand {r}, 0x8d5", double, |a, b, m| {
            double::compare(a, b, false, m).eflags().into()
        }),
        case!("comiss xmm0, xmm1\npushfq\npop {r}\nand {r}, 0x8d5", single, |a, b, m| {
            single::compare(a as u32, b as u32, true, m).eflags().into()
        }),
        case!("comisd xmm0, xmm1\npushfq\npop {r}\nand {r}, 0x8d5", double, |a, b, m| {
            double::compare(a, b, true, m).eflags().into()
        }),
    ]);
}

#[test]
fn conversion() {
    check_all(&[
        case!("cvtss2si {r:e}, xmm0", single, |a, _, m| {
            single::to_int(a as u32, 32, false, m) as u32 as u64
        }),
        case!("cvtss2si {r}, xmm0", single, |a, _, m| { single::to_int(a as u32, 64, false, m) as u64 }),
        case!("cvtsd2si {r:e}, xmm0", double, |a, _, m| { double::to_int(a, 32, false, m) as u32 as u64 }),
        case!("cvtsd2si {r}, xmm0", double, |a, _, m| { double::to_int(a, 64, false, m) as u64 }),
        case!("cvttss2si {r:e}, xmm0", single, |a, _, m| {
            single::to_int(a as u32, 32, true, m) as u32 as u64
        }),
        case!("cvttss2si {r}, xmm0", single, |a, _, m| { single::to_int(a as u32, 64, true, m) as u64 }),
        case!("cvttsd2si {r:e}, xmm0", double, |a, _, m| { double::to_int(a, 32, true, m) as u32 as u64 }),
        case!("cvttsd2si {r}, xmm0", double, |a, _, m| { double::to_int(a, 64, true, m) as u64 }),
        case!("cvtsi2ss xmm0, {a:e}\nmovd {r:e}, xmm0", integer, |a, _, m| {
            single::from_int((a as i32).into(), m).into()
        }),
        case!("cvtsi2ss xmm0, {a}\nmovd {r:e}, xmm0", integer, |a, _, m| {
            single::from_int(a as i64, m).into()
        }),
        case!("cvtsi2sd xmm0, {a:e}\nmovq {r}, xmm0", integer, |a, _, m| {
            double::from_int((a as i32).into(), m)
        }),
        case!("cvtsi2sd xmm0, {a}\nmovq {r}, xmm0", integer, |a, _, m| { double::from_int(a as i64, m) }),
        case!("cvtss2sd xmm0, xmm0\nmovq {r}, xmm0", single, |a, _, m| sse::single_to_double(a as u32, m)),
        case!("cvtsd2ss xmm0, xmm0\nmovd {r:e}, xmm0", double, |a, _, m| sse::double_to_single(a, m).into()),
    ]);
}

#[test]
fn rounding() {
    check_all(&[
        case!("roundss xmm0, xmm1, 0\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 0, m).into()
        }),
        case!("roundsd xmm0, xmm1, 0\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 0, m)),
        case!("roundss xmm0, xmm1, 1\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 1, m).into()
        }),
        case!("roundsd xmm0, xmm1, 1\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 1, m)),
        case!("roundss xmm0, xmm1, 2\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 2, m).into()
        }),
        case!("roundsd xmm0, xmm1, 2\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 2, m)),
        case!("roundss xmm0, xmm1, 3\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 3, m).into()
        }),
        case!("roundsd xmm0, xmm1, 3\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 3, m)),
        case!("roundss xmm0, xmm1, 4\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 4, m).into()
        }),
        case!("roundsd xmm0, xmm1, 4\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 4, m)),
        case!("roundss xmm0, xmm1, 8\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 8, m).into()
        }),
        case!("roundsd xmm0, xmm1, 8\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 8, m)),
        case!("roundss xmm0, xmm1, 12\nmovd {r:e}, xmm0", single, |_, b, m| {
            single::round(b as u32, 12, m).into()
        }),
        case!("roundsd xmm0, xmm1, 12\nmovq {r}, xmm0", double, |_, b, m| double::round(b, 12, m)),
    ]);
}

#[test]
fn approximations_are_close_enough() {
    let mut r = Random::new(7);
    let mut check = |approximate: fn(u32) -> u32, exact: fn(f64) -> f64| {
        for _ in 0..100_000 {
            let bits = r.float(8, 23) as u32;
            let x = f32::from_bits(bits);
            if !x.is_normal() {
                continue;
            }
            let (got, want) = (f64::from(f32::from_bits(approximate(bits))), exact(f64::from(x)));
            if want.is_nan() {
                assert_eq!(approximate(bits), 0xffc0_0000);
            } else if want.abs() < f64::from(f32::MIN_POSITIVE) {
                assert_eq!(got, 0.0);
            } else {
                assert!((got / want - 1.0).abs() <= 1.5 / 4096.0, "{x}: {got} for {want}");
            }
        }
    };
    check(sse::reciprocal, |x| 1.0 / x);
    check(sse::reciprocal_sqrt, |x| 1.0 / x.sqrt());
    for (x, reciprocal, root) in [
        (0x0000_0000, 0x7f80_0000, 0x7f80_0000),
        (0x8000_0001, 0xff80_0000, 0xff80_0000),
        (0x7f80_0000, 0x0000_0000, 0x0000_0000),
        (0xff80_0000, 0x8000_0000, 0xffc0_0000),
        (0x7f80_0001, 0x7fc0_0001, 0x7fc0_0001),
    ] {
        assert_eq!((sse::reciprocal(x), sse::reciprocal_sqrt(x)), (reciprocal, root), "{x:08x}");
    }
}

#[test]
fn unmasked_exceptions_are_reported_once_and_hide_later_ones() {
    // Overflow unmasked: reported, and recorded with precision.
    let mut m = Mxcsr::new(0x1f80 & !(1 << 10));
    double::mul(f64::MAX.to_bits(), f64::MAX.to_bits(), &mut m);
    assert_eq!(m.commit(), Err(SimdException));
    assert_eq!(m.value() & 0x3f, 0x28);
    // The sticky flag alone raises nothing.
    assert_eq!(double::add(1f64.to_bits(), 1f64.to_bits(), &mut m), 2f64.to_bits());
    assert_eq!(m.commit(), Ok(()));
    // A denormal operand unmasked: underflow and precision are never looked for.
    let mut m = Mxcsr::new(0x1f80 & !(1 << 8));
    double::mul(3, 0.3f64.to_bits(), &mut m);
    assert_eq!(m.commit(), Err(SimdException));
    assert_eq!(m.value() & 0x3f, 0x02);
    // Underflow unmasked: an exact tiny result raises it too.
    let mut m = Mxcsr::new(0x1f80 & !(1 << 11));
    double::mul(f64::MIN_POSITIVE.to_bits(), 0.5f64.to_bits(), &mut m);
    assert_eq!(m.commit(), Err(SimdException));
    assert_eq!(m.value() & 0x3f, 0x10);
}
