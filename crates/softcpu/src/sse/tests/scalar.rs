//! Floating point: results, flags and exceptions, under every control setting.

use iced_x86::{Code, Register};

use super::super::*;
use super::host::{FLAGS, Host, MXCSR_DEFAULT, Operand, State, instruction};
use super::operands::Random;

const XMM1: Operand = Operand::Reg(Register::XMM1);
const XMM2: Operand = Operand::Reg(Register::XMM2);
const MM1: Operand = Operand::Reg(Register::MM1);
const EAX: Operand = Operand::Reg(Register::EAX);
const RAX: Operand = Operand::Reg(Register::RAX);
const ROUNDS: usize = 20_000;

/// What lanes the operands are made of.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Single,
    Double,
    Integer,
}
use Kind::{Double, Integer, Single};

fn random_state(random: &mut Random, kind: Kind) -> State {
    let mut state = State::default();
    state.xmm = std::array::from_fn(|_| match kind {
        Single => random.floats(),
        Double => random.doubles(),
        Integer => random.integers(),
    });
    match random.below(12) {
        0 => state.xmm[1] = state.xmm[2],
        1 => state.xmm[2] = [0; 16],
        _ => {}
    }
    state.rax = match random.below(3) {
        0 => random.u64(),
        1 => random.u64() >> random.below(64),
        _ => ((random.u64() as i64) >> random.below(64)) as u64,
    };
    state.mm = std::array::from_fn(|_| ((random.u64() as i64) >> random.below(64)) as u64);
    state.mxcsr = MXCSR_DEFAULT;
    // Rounding, DAZ, FTZ, flags that are up already, and what is unmasked.
    if random.below(2) == 0 {
        state.mxcsr |= (random.below(4) as u32) << 13;
    }
    if random.below(4) == 0 {
        state.mxcsr |= random.pick(&[0x40, 0x8000, 0x8040]);
    }
    if random.below(2) == 0 {
        state.mxcsr |= 0x20;
    }
    if random.below(8) == 0 {
        state.mxcsr |= random.below(64) as u32;
    }
    if random.below(4) == 0 {
        state.mxcsr &= !((random.below(64) as u32) << 7);
    }
    state
}

/// Runs ours and the host's on random operands. `ours` gives the state afterwards, or the exception.
fn check(
    code: Code,
    operands: &[Operand],
    kind: Kind,
    rounds: usize,
    ours: impl Fn(&mut State, &mut Mxcsr) -> Result<(), SimdException>,
) {
    let host = Host::new(&instruction(code, operands));
    let mut random = Random::new(code as u64);
    for _ in 0..rounds {
        let before = random_state(&mut random, kind);
        let theirs = host.run(&before);
        let mut expected = before;
        let mut mxcsr = Mxcsr::new(before.mxcsr);
        let faulted = ours(&mut expected, &mut mxcsr).is_err();
        if faulted {
            expected = before;
        }
        let what = format!("{code:?} {operands:?} {before:x?}\n{theirs:x?}");
        assert_eq!(faulted, theirs.faulted != 0, "exception: {what}");
        assert_eq!(mxcsr.value() & 0x3f, theirs.mxcsr & 0x3f, "flags: {what}");
        assert_eq!(expected.xmm.map(Xmm), theirs.xmm.map(Xmm), "registers: {what}");
        assert_eq!((expected.rax, expected.mm), (theirs.rax, theirs.mm), "registers: {what}");
        assert_eq!(expected.rflags & FLAGS, theirs.rflags & FLAGS, "rflags: {what}");
    }
}

fn check_op2<O: FpOp2>(code: Code, kind: Kind, _: O) {
    check(code, &[XMM1, XMM2], kind, ROUNDS, |s, mxcsr| {
        s.xmm[1] = O::op(Xmm(s.xmm[1]), Xmm(s.xmm[2]), mxcsr)?.0;
        Ok(())
    });
}

fn check_imm<O: FpOp2Imm>(code: Code, imm: u8, kind: Kind, rounds: usize, _: O) {
    check(code, &[XMM1, XMM2, Operand::Imm(imm)], kind, rounds, |s, mxcsr| {
        s.xmm[1] = O::op(Xmm(s.xmm[1]), Xmm(s.xmm[2]), imm, mxcsr)?.0;
        Ok(())
    });
}

macro_rules! op2_tests {
    ($($test:ident: $($code:ident $op:ident $kind:ident),*;)*) => {$(
        #[test]
        fn $test() {
            $(check_op2(Code::$code, $kind, $op);)*
        }
    )*};
}

op2_tests! {
    addition: Addps_xmm_xmmm128 Addps Single, Addpd_xmm_xmmm128 Addpd Double,
        Addss_xmm_xmmm32 Addss Single, Addsd_xmm_xmmm64 Addsd Double;
    subtraction: Subps_xmm_xmmm128 Subps Single, Subpd_xmm_xmmm128 Subpd Double,
        Subss_xmm_xmmm32 Subss Single, Subsd_xmm_xmmm64 Subsd Double;
    multiplication: Mulps_xmm_xmmm128 Mulps Single, Mulpd_xmm_xmmm128 Mulpd Double,
        Mulss_xmm_xmmm32 Mulss Single, Mulsd_xmm_xmmm64 Mulsd Double;
    division: Divps_xmm_xmmm128 Divps Single, Divpd_xmm_xmmm128 Divpd Double,
        Divss_xmm_xmmm32 Divss Single, Divsd_xmm_xmmm64 Divsd Double;
    minimum: Minps_xmm_xmmm128 Minps Single, Minpd_xmm_xmmm128 Minpd Double,
        Minss_xmm_xmmm32 Minss Single, Minsd_xmm_xmmm64 Minsd Double;
    maximum: Maxps_xmm_xmmm128 Maxps Single, Maxpd_xmm_xmmm128 Maxpd Double,
        Maxss_xmm_xmmm32 Maxss Single, Maxsd_xmm_xmmm64 Maxsd Double;
    square_root: Sqrtps_xmm_xmmm128 Sqrtps Single, Sqrtpd_xmm_xmmm128 Sqrtpd Double,
        Sqrtss_xmm_xmmm32 Sqrtss Single, Sqrtsd_xmm_xmmm64 Sqrtsd Double;
    addition_and_subtraction: Addsubps_xmm_xmmm128 Addsubps Single, Addsubpd_xmm_xmmm128 Addsubpd Double;
    horizontal: Haddps_xmm_xmmm128 Haddps Single, Haddpd_xmm_xmmm128 Haddpd Double,
        Hsubps_xmm_xmmm128 Hsubps Single, Hsubpd_xmm_xmmm128 Hsubpd Double;
    formats: Cvtss2sd_xmm_xmmm32 Cvtss2sd Single, Cvtsd2ss_xmm_xmmm64 Cvtsd2ss Double,
        Cvtps2pd_xmm_xmmm64 Cvtps2pd Single, Cvtpd2ps_xmm_xmmm128 Cvtpd2ps Double;
    integers: Cvtdq2ps_xmm_xmmm128 Cvtdq2ps Integer, Cvtps2dq_xmm_xmmm128 Cvtps2dq Single,
        Cvttps2dq_xmm_xmmm128 Cvttps2dq Single, Cvtpd2dq_xmm_xmmm128 Cvtpd2dq Double,
        Cvttpd2dq_xmm_xmmm128 Cvttpd2dq Double;
}

#[test]
fn comparison() {
    for imm in 0..8 {
        check_imm(Code::Cmpps_xmm_xmmm128_imm8, imm, Single, 5000, Cmpps);
        check_imm(Code::Cmppd_xmm_xmmm128_imm8, imm, Double, 5000, Cmppd);
        check_imm(Code::Cmpss_xmm_xmmm32_imm8, imm, Single, 5000, Cmpss);
        check_imm(Code::Cmpsd_xmm_xmmm64_imm8, imm, Double, 5000, Cmpsd);
    }
    type Comis = fn(Xmm, Xmm, bool, &mut Mxcsr) -> Result<Compare, SimdException>;
    for (code, signal, kind, op) in [
        (Code::Comiss_xmm_xmmm32, true, Single, comiss as Comis),
        (Code::Ucomiss_xmm_xmmm32, false, Single, comiss),
        (Code::Comisd_xmm_xmmm64, true, Double, comisd),
        (Code::Ucomisd_xmm_xmmm64, false, Double, comisd),
    ] {
        check(code, &[XMM1, XMM2], kind, ROUNDS, |s, mxcsr| {
            let outcome = op(Xmm(s.xmm[1]), Xmm(s.xmm[2]), signal, mxcsr)?;
            s.rflags = u64::from(outcome.eflags());
            Ok(())
        });
    }
}

#[test]
fn rounding() {
    for imm in 0..16 {
        check_imm(Code::Roundps_xmm_xmmm128_imm8, imm, Single, 3000, Roundps);
        check_imm(Code::Roundpd_xmm_xmmm128_imm8, imm, Double, 3000, Roundpd);
        check_imm(Code::Roundss_xmm_xmmm32_imm8, imm, Single, 3000, Roundss);
        check_imm(Code::Roundsd_xmm_xmmm64_imm8, imm, Double, 3000, Roundsd);
    }
}

#[test]
fn dot_products() {
    for imm in 0..=255 {
        check_imm(Code::Dpps_xmm_xmmm128_imm8, imm, Single, 500, Dpps);
        check_imm(Code::Dppd_xmm_xmmm128_imm8, imm, Double, 500, Dppd);
    }
}

#[test]
fn scalar_integers() {
    check(Code::Cvtsi2ss_xmm_rm32, &[XMM1, EAX], Single, ROUNDS, |s, mxcsr| {
        s.xmm[1] = cvtsi2ss(Xmm(s.xmm[1]), s.rax as i32 as i64, mxcsr)?.0;
        Ok(())
    });
    check(Code::Cvtsi2ss_xmm_rm64, &[XMM1, RAX], Single, ROUNDS, |s, mxcsr| {
        s.xmm[1] = cvtsi2ss(Xmm(s.xmm[1]), s.rax as i64, mxcsr)?.0;
        Ok(())
    });
    check(Code::Cvtsi2sd_xmm_rm32, &[XMM1, EAX], Double, ROUNDS, |s, mxcsr| {
        s.xmm[1] = cvtsi2sd(Xmm(s.xmm[1]), s.rax as i32 as i64, mxcsr)?.0;
        Ok(())
    });
    check(Code::Cvtsi2sd_xmm_rm64, &[XMM1, RAX], Double, ROUNDS, |s, mxcsr| {
        s.xmm[1] = cvtsi2sd(Xmm(s.xmm[1]), s.rax as i64, mxcsr)?.0;
        Ok(())
    });
    for (code32, code64, truncate) in [
        (Code::Cvtss2si_r32_xmmm32, Code::Cvtss2si_r64_xmmm32, false),
        (Code::Cvttss2si_r32_xmmm32, Code::Cvttss2si_r64_xmmm32, true),
    ] {
        check(code32, &[EAX, XMM1], Single, ROUNDS, |s, mxcsr| {
            s.rax = cvtss2si(Xmm(s.xmm[1]), 32, truncate, mxcsr)? as u32 as u64;
            Ok(())
        });
        check(code64, &[RAX, XMM1], Single, ROUNDS, |s, mxcsr| {
            s.rax = cvtss2si(Xmm(s.xmm[1]), 64, truncate, mxcsr)? as u64;
            Ok(())
        });
    }
    for (code32, code64, truncate) in [
        (Code::Cvtsd2si_r32_xmmm64, Code::Cvtsd2si_r64_xmmm64, false),
        (Code::Cvttsd2si_r32_xmmm64, Code::Cvttsd2si_r64_xmmm64, true),
    ] {
        check(code32, &[EAX, XMM1], Double, ROUNDS, |s, mxcsr| {
            s.rax = cvtsd2si(Xmm(s.xmm[1]), 32, truncate, mxcsr)? as u32 as u64;
            Ok(())
        });
        check(code64, &[RAX, XMM1], Double, ROUNDS, |s, mxcsr| {
            s.rax = cvtsd2si(Xmm(s.xmm[1]), 64, truncate, mxcsr)? as u64;
            Ok(())
        });
    }
}

#[test]
fn mmx_integers() {
    check(Code::Cvtpi2ps_xmm_mmm64, &[XMM1, MM1], Single, ROUNDS, |s, mxcsr| {
        s.xmm[1] = cvtpi2ps(Xmm(s.xmm[1]), Mm::from(s.mm[1]), mxcsr)?.0;
        Ok(())
    });
    check(Code::Cvtpi2pd_xmm_mmm64, &[XMM1, MM1], Double, ROUNDS, |s, _| {
        s.xmm[1] = cvtpi2pd(Mm::from(s.mm[1])).0;
        Ok(())
    });
    check(Code::Cvtdq2pd_xmm_xmmm64, &[XMM1, XMM2], Integer, ROUNDS, |s, _| {
        s.xmm[1] = <Cvtdq2pd as Op2<Xmm>>::op(Xmm(s.xmm[1]), Xmm(s.xmm[2])).0;
        Ok(())
    });
    for (code, truncate) in [(Code::Cvtps2pi_mm_xmmm64, false), (Code::Cvttps2pi_mm_xmmm64, true)] {
        check(code, &[MM1, XMM1], Single, ROUNDS, |s, mxcsr| {
            s.mm[1] = cvtps2pi(Xmm(s.xmm[1]), truncate, mxcsr)?.get();
            Ok(())
        });
    }
    for (code, truncate) in [(Code::Cvtpd2pi_mm_xmmm128, false), (Code::Cvttpd2pi_mm_xmmm128, true)] {
        check(code, &[MM1, XMM1], Double, ROUNDS, |s, mxcsr| {
            s.mm[1] = cvtpd2pi(Xmm(s.xmm[1]), truncate, mxcsr)?.get();
            Ok(())
        });
    }
}

/// The approximations are within the SDM's error bound, and their special values the host's.
#[test]
fn approximations() {
    let mut random = Random::new(7);
    let rcp = Host::new(&instruction(Code::Rcpps_xmm_xmmm128, &[XMM1, XMM2]));
    let rsqrt = Host::new(&instruction(Code::Rsqrtps_xmm_xmmm128, &[XMM1, XMM2]));
    for _ in 0..ROUNDS {
        let before = random_state(&mut random, Single);
        let source = Xmm(before.xmm[2]);
        for (host, ours, exact) in [
            (&rcp, <Rcpps as Op2<Xmm>>::op(source, source), (|x| 1.0 / x) as fn(f64) -> f64),
            (&rsqrt, <Rsqrtps as Op2<Xmm>>::op(source, source), |x| 1.0 / x.sqrt()),
        ] {
            let theirs = Xmm(host.run(&before).xmm[1]);
            for i in 0..4 {
                let (ours, theirs) = (ours.u32s()[i], theirs.u32s()[i]);
                let exact = exact(f32::from_bits(source.u32s()[i]).into());
                let close = (f64::from(f32::from_bits(ours)) / exact - 1.0).abs() <= 1.5 / 4096.0;
                assert!(ours == theirs || close, "{:x}: {ours:x} {theirs:x}", source.u32s()[i]);
            }
        }
    }
}
