//! Whole x87 states through one instruction, on the host and in software.

use std::arch::asm;

use super::random::Random;
use crate::fpu::{Arith, Constant, EnvForm, X87};

/// What an instruction works on: FSAVE's image, a memory operand, ZF, PF and CF.
#[derive(Clone, Copy, PartialEq)]
#[repr(C, align(16))]
pub(super) struct Frame {
    pub(super) image: [u8; 108],
    pub(super) memory: [u8; 16],
    pub(super) flags: u64,
}

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) host: fn(&mut Frame),
    pub(super) soft: fn(&mut X87, &mut Frame),
}

pub(super) const FLAGS: u64 = 0x45;

/// Runs `$asm` on the host with the x87 state of the frame; `{m}` is the memory operand.
macro_rules! case {
    ($asm:literal, $soft:expr) => {
        Case {
            name: $asm,
            // SAFETY: FRSTOR and FNSAVE stay inside the image, the instruction inside the memory
            // operand, and FNSAVE leaves the unit initialised.
            host: |f| unsafe {
                let flags: u64;
                asm!(
                    "push {f}",
                    "popfq",
                    "frstor [{i}]",
                    $asm,
                    "fnsave [{i}]",
                    "pushfq",
                    "pop {f}",
                    "/* {m} */",
                    i = in(reg) f.image.as_mut_ptr(),
                    m = in(reg) f.memory.as_mut_ptr(),
                    f = inout(reg) f.flags | 0x202 => flags,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                );
                f.flags = flags & FLAGS;
            },
            soft: $soft,
        }
    };
}

pub(super) use case;

fn u32_of(f: &Frame) -> u32 {
    u32::from_le_bytes(f.memory[..4].try_into().unwrap())
}

fn u64_of(f: &Frame) -> u64 {
    u64::from_le_bytes(f.memory[..8].try_into().unwrap())
}

fn bytes10(f: &Frame) -> [u8; 10] {
    f.memory[..10].try_into().unwrap()
}

fn store<const N: usize>(x: &mut X87, f: &mut Frame, value: Option<[u8; N]>, pop: bool) {
    if let Some(value) = value {
        f.memory[..N].copy_from_slice(&value);
        if pop {
            x.pop();
        }
    }
}

fn store_int(x: &mut X87, f: &mut Frame, bits: u32, truncate: bool, pop: bool) {
    let value = x.fist(bits, truncate).map(i64::to_le_bytes);
    match bits {
        16 => store(x, f, value.map(|v| [v[0], v[1]]), pop),
        32 => store(x, f, value.map(|v| [v[0], v[1], v[2], v[3]]), pop),
        _ => store(x, f, value, pop),
    }
}

fn set_flags(f: &mut Frame, outcome: Option<crate::fpu::Compare>) {
    if let Some(outcome) = outcome {
        f.flags = outcome.eflags().into();
    }
}

pub(super) const FORM: EnvForm = EnvForm::Protected32;

/// A state in which nothing is pending, so that FRSTOR may be followed by a waiting instruction.
pub(super) fn frame(r: &mut Random) -> Frame {
    let masks = match r.below(3) {
        0 => r.below(64) as u16,
        _ => 0x3f,
    };
    let precision = [0u16, 1, 2, 3, 3, 3][r.below(6) as usize];
    let control = masks | precision << 8 | (r.below(4) as u16) << 10 | 0x40;
    let mut x = X87::default();
    x.set_control_word(control);
    x.set_status_word(r.bits() as u16 & (masks | 0x7f40));
    for i in 0..8 {
        x.set_st_raw(i, r.f80());
    }
    if r.below(4) == 0 {
        // Alike but for little: cancellation, ties, equal NaN payloads.
        let mut v = x.st(0);
        v.mantissa ^= [0, 1, 2, 1 << 62, 1 << 10][r.below(5) as usize];
        v.sign_exp ^= (r.below(2) as u16) << 15;
        x.set_st_raw(1, v);
    }
    let st7 = 1u8 << ((x.top() + 7) & 7);
    x.set_abridged_tag(match r.below(8) {
        0 => r.bits() as u8,
        1 => 0xff,
        _ => !st7,
    });
    let mut memory = [0; 16];
    let operand = match r.below(3) {
        0 => r.float(8, 23),
        1 => r.float(11, 52),
        _ => r.bits() >> r.below(64),
    };
    memory[..8].copy_from_slice(&operand.to_le_bytes());
    memory[8..].copy_from_slice(&r.bits().to_le_bytes());
    if r.below(4) == 0 {
        memory[..10].copy_from_slice(&r.f80().to_bytes());
    }
    Frame { image: x.save(FORM), memory, flags: r.bits() & FLAGS }
}

/// The registers and words of an image, without pointers.
fn essence(image: &[u8; 108]) -> [u8; 92] {
    let mut out = [0; 92];
    out[..12].copy_from_slice(&image[..12]);
    out[12..].copy_from_slice(&image[28..]);
    out
}

pub(super) fn describe(f: &Frame) -> String {
    let w = |at: usize| u16::from_le_bytes([f.image[at], f.image[at + 1]]);
    let mut x = X87::default();
    x.restore(&f.image, FORM);
    format!(
        "cw={:04x} sw={:04x} tw={:04x} st0={:?} st1={:?} st2={:?} st7={:?} mem={:02x?} fl={:x}",
        w(0),
        w(4),
        w(8),
        x.st(0),
        x.st(1),
        x.st(2),
        x.st(7),
        f.memory,
        f.flags
    )
}

/// What is wrong with `case` on `start`, if anything.
fn check(case: &Case, start: &Frame) -> Option<String> {
    let (mut host, mut soft) = (*start, *start);
    (case.host)(&mut host);
    let mut x = X87::default();
    x.restore(&soft.image, FORM);
    (case.soft)(&mut x, &mut soft);
    soft.image = x.save(FORM);
    // An unmasked invalid operation keeps a comparison from setting flags, says the SDM; AMD
    // processors set them.
    let compares = ["fcom", "fucom", "ficom", "ftst"].iter().any(|name| case.name.starts_with(name));
    if compares && host.image[4] & 1 & !host.image[0] != 0 {
        (host.image[5], host.flags) = (host.image[5] & !0x45 | start.image[5] & 0x45, start.flags);
    }
    let same = essence(&host.image) == essence(&soft.image)
        && host.memory == soft.memory
        && host.flags == soft.flags;
    (!same).then(|| {
        format!(
            "{}\n  start {}\n  host  {}\n  soft  {}",
            case.name,
            describe(start),
            describe(&host),
            describe(&soft)
        )
    })
}

fn check_all(cases: &[Case], rounds: u64) {
    let mut failures = Vec::new();
    for (seed, case) in cases.iter().enumerate() {
        let mut r = Random::new(seed as u64 + 1);
        let wrong: Vec<String> = (0..rounds).filter_map(|_| check(case, &frame(&mut r))).collect();
        if !wrong.is_empty() {
            eprintln!("{}: {} of {rounds} wrong", case.name, wrong.len());
            failures.extend(wrong.into_iter().take(4));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const ROUNDS: u64 = 40_000;

#[test]
fn arithmetic_on_registers() {
    check_all(
        &[
            case!("fadd st(0), st(1)", |x, _| x.arith_st(Arith::Add, 0, 1, false)),
            case!("fmul st(0), st(1)", |x, _| x.arith_st(Arith::Mul, 0, 1, false)),
            case!("fsub st(0), st(1)", |x, _| x.arith_st(Arith::Sub, 0, 1, false)),
            case!("fsubr st(0), st(1)", |x, _| x.arith_st(Arith::SubR, 0, 1, false)),
            case!("fdiv st(0), st(1)", |x, _| x.arith_st(Arith::Div, 0, 1, false)),
            case!("fdivr st(0), st(1)", |x, _| x.arith_st(Arith::DivR, 0, 1, false)),
            // DE E1 and DE E9: the encodings, since assemblers disagree on the mnemonics.
            case!(".byte 0xde, 0xe1", |x, _| x.arith_st(Arith::SubR, 1, 0, true)),
            case!(".byte 0xde, 0xe9", |x, _| x.arith_st(Arith::Sub, 1, 0, true)),
            case!(".byte 0xdc, 0xf1", |x, _| x.arith_st(Arith::DivR, 1, 0, false)),
            case!(".byte 0xdc, 0xf9", |x, _| x.arith_st(Arith::Div, 1, 0, false)),
            case!("faddp st(1), st(0)", |x, _| x.arith_st(Arith::Add, 1, 0, true)),
            case!("fmulp st(2), st(0)", |x, _| x.arith_st(Arith::Mul, 2, 0, true)),
            case!("fadd st(0), st(0)", |x, _| x.arith_st(Arith::Add, 0, 0, false)),
        ],
        ROUNDS,
    );
}

#[test]
fn arithmetic_on_memory() {
    check_all(
        &[
            case!("fadd dword ptr [{m}]", |x, f| x.arith_f32(Arith::Add, u32_of(f))),
            case!("fmul dword ptr [{m}]", |x, f| x.arith_f32(Arith::Mul, u32_of(f))),
            case!("fdivr dword ptr [{m}]", |x, f| x.arith_f32(Arith::DivR, u32_of(f))),
            case!("fdiv dword ptr [{m}]", |x, f| x.arith_f32(Arith::Div, u32_of(f))),
            case!("fsub qword ptr [{m}]", |x, f| x.arith_f64(Arith::Sub, u64_of(f))),
            case!("fsubr qword ptr [{m}]", |x, f| x.arith_f64(Arith::SubR, u64_of(f))),
            case!("fdiv qword ptr [{m}]", |x, f| x.arith_f64(Arith::Div, u64_of(f))),
            case!("fiadd word ptr [{m}]", |x, f| {
                x.arith_int(Arith::Add, i16::from_le_bytes([f.memory[0], f.memory[1]]).into())
            }),
            case!("fidiv dword ptr [{m}]", |x, f| x.arith_int(Arith::Div, u32_of(f) as i32)),
        ],
        ROUNDS,
    );
}

#[test]
fn comparison() {
    check_all(
        &[
            case!("fcom st(1)", |x, _| x.fcom_st(1, false, 0)),
            case!("fcomp st(1)", |x, _| x.fcom_st(1, false, 1)),
            case!("fcompp", |x, _| x.fcom_st(1, false, 2)),
            case!("fucom st(1)", |x, _| x.fcom_st(1, true, 0)),
            case!("fucomp st(1)", |x, _| x.fcom_st(1, true, 1)),
            case!("fucompp", |x, _| x.fcom_st(1, true, 2)),
            case!("fcom dword ptr [{m}]", |x, f| x.fcom_f32(u32_of(f), false)),
            case!("fcomp qword ptr [{m}]", |x, f| x.fcom_f64(u64_of(f), true)),
            case!("ficomp dword ptr [{m}]", |x, f| x.fcom_int(u32_of(f) as i32, true)),
            case!("ftst", |x, _| x.ftst()),
            case!("fxam", |x, _| x.fxam()),
            case!("fcomi st(0), st(1)", |x, f| set_flags(f, x.fcomi(1, false, false))),
            case!("fcompi st(0), st(1)", |x, f| set_flags(f, x.fcomi(1, false, true))),
            case!("fucomi st(0), st(1)", |x, f| set_flags(f, x.fcomi(1, true, false))),
            case!("fucompi st(0), st(1)", |x, f| set_flags(f, x.fcomi(1, true, true))),
        ],
        ROUNDS,
    );
}

#[test]
fn one_operand() {
    check_all(
        &[
            case!("fchs", |x, _| x.fchs()),
            case!("fabs", |x, _| x.fabs()),
            case!("fsqrt", |x, _| x.fsqrt()),
            case!("frndint", |x, _| x.frndint()),
            case!("fscale", |x, _| x.fscale()),
            case!("fprem", |x, _| x.fprem(false)),
            case!("fprem1", |x, _| x.fprem(true)),
            case!("fxtract", |x, _| x.fxtract()),
        ],
        ROUNDS,
    );
}

#[test]
fn loads() {
    check_all(
        &[
            case!("fld dword ptr [{m}]", |x, f| x.fld_f32(u32_of(f))),
            case!("fld qword ptr [{m}]", |x, f| x.fld_f64(u64_of(f))),
            case!("fld tbyte ptr [{m}]", |x, f| x.fld_f80(bytes10(f))),
            case!("fld st(0)", |x, _| x.fld_st(0)),
            case!("fld st(3)", |x, _| x.fld_st(3)),
            case!("fld st(7)", |x, _| x.fld_st(7)),
            case!("fild word ptr [{m}]", |x, f| {
                x.fild(i16::from_le_bytes([f.memory[0], f.memory[1]]).into())
            }),
            case!("fild dword ptr [{m}]", |x, f| x.fild((u32_of(f) as i32).into())),
            case!("fild qword ptr [{m}]", |x, f| x.fild(u64_of(f) as i64)),
            case!("fld1", |x, _| x.fld_constant(Constant::One)),
            case!("fldl2t", |x, _| x.fld_constant(Constant::Log2Of10)),
            case!("fldl2e", |x, _| x.fld_constant(Constant::Log2OfE)),
            case!("fldpi", |x, _| x.fld_constant(Constant::Pi)),
            case!("fldlg2", |x, _| x.fld_constant(Constant::Log10Of2)),
            case!("fldln2", |x, _| x.fld_constant(Constant::LnOf2)),
            case!("fldz", |x, _| x.fld_constant(Constant::Zero)),
            case!("fbld tbyte ptr [{m}]", |x, f| x.fbld(bytes10(f))),
        ],
        ROUNDS,
    );
}

#[test]
fn stores() {
    check_all(
        &[
            case!("fst dword ptr [{m}]", |x, f| {
                let v = x.fst_f32().map(u32::to_le_bytes);
                store(x, f, v, false)
            }),
            case!("fstp dword ptr [{m}]", |x, f| {
                let v = x.fst_f32().map(u32::to_le_bytes);
                store(x, f, v, true)
            }),
            case!("fst qword ptr [{m}]", |x, f| {
                let v = x.fst_f64().map(u64::to_le_bytes);
                store(x, f, v, false)
            }),
            case!("fstp qword ptr [{m}]", |x, f| {
                let v = x.fst_f64().map(u64::to_le_bytes);
                store(x, f, v, true)
            }),
            case!("fstp tbyte ptr [{m}]", |x, f| {
                let v = x.fst_f80();
                store(x, f, v, true)
            }),
            case!("fist word ptr [{m}]", |x, f| store_int(x, f, 16, false, false)),
            case!("fistp word ptr [{m}]", |x, f| store_int(x, f, 16, false, true)),
            case!("fist dword ptr [{m}]", |x, f| store_int(x, f, 32, false, false)),
            case!("fistp qword ptr [{m}]", |x, f| store_int(x, f, 64, false, true)),
            case!("fisttp word ptr [{m}]", |x, f| store_int(x, f, 16, true, true)),
            case!("fisttp dword ptr [{m}]", |x, f| store_int(x, f, 32, true, true)),
            case!("fisttp qword ptr [{m}]", |x, f| store_int(x, f, 64, true, true)),
            case!("fbstp tbyte ptr [{m}]", |x, f| {
                let v = x.fbst();
                store(x, f, v, true)
            }),
            case!("fst st(3)", |x, _| x.fst_st(3, false)),
            case!("fstp st(0)", |x, _| x.fst_st(0, true)),
            case!("fstp st(2)", |x, _| x.fst_st(2, true)),
        ],
        ROUNDS,
    );
}

#[test]
fn stack_and_control() {
    check_all(
        &[
            case!("fxch st(1)", |x, _| x.fxch(1)),
            case!("fxch st(5)", |x, _| x.fxch(5)),
            case!("fincstp", |x, _| x.fincstp()),
            case!("fdecstp", |x, _| x.fdecstp()),
            case!("ffree st(2)", |x, _| x.ffree(2, false)),
            case!("ffreep st(2)", |x, _| x.ffree(2, true)),
            case!("fcmovb st(0), st(1)", |x, f| x.fcmov(1, f.flags & 1 != 0)),
            case!("fcmovne st(0), st(2)", |x, f| x.fcmov(2, f.flags & 0x40 == 0)),
            case!("fcmovu st(0), st(2)", |x, f| x.fcmov(2, f.flags & 4 != 0)),
            case!("fninit", |x, _| x.fninit()),
            case!("fnclex", |x, _| x.fnclex()),
            case!("emms", |x, _| x.emms()),
            case!("movq mm3, [{m}]", |x, f| {
                x.enter_mmx();
                x.set_mmx(3, u64_of(f));
            }),
            case!("fldcw [{m}]", |x, f| x.set_control_word(u32_of(f) as u16)),
            case!("fnstcw [{m}]", |x, f| f.memory[..2].copy_from_slice(&x.control_word().to_le_bytes())),
            case!("fnstsw [{m}]", |x, f| f.memory[..2].copy_from_slice(&x.status_word().to_le_bytes())),
        ],
        ROUNDS / 4,
    );
}
