//! Operations with integer registers or flags for operands or results.

use iced_x86::{Code, Register};

use super::super::*;
use super::host::{FLAGS, Host, Operand, State, instruction};
use super::operands::Random;

const EAX: Operand = Operand::Reg(Register::EAX);
const RAX: Operand = Operand::Reg(Register::RAX);
const XMM1: Operand = Operand::Reg(Register::XMM1);
const XMM2: Operand = Operand::Reg(Register::XMM2);
const MM1: Operand = Operand::Reg(Register::MM1);

fn random_state(random: &mut Random) -> State {
    let mut state = State::default();
    state.xmm = std::array::from_fn(|_| random.integers());
    state.mm = std::array::from_fn(|_| random.u64());
    state.rax = random.u64();
    state
}

fn check(code: Code, operands: &[Operand], test: impl Fn(&State, &State)) {
    let host = Host::new(&instruction(code, operands));
    let mut random = Random::new(code as u64);
    for _ in 0..200 {
        let before = random_state(&mut random);
        test(&before, &host.run(&before));
    }
}

#[test]
fn sign_masks() {
    check(Code::Pmovmskb_r32_xmm, &[EAX, XMM1], |b, a| assert_eq!(u64::from(pmovmskb(Xmm(b.xmm[1]))), a.rax));
    check(Code::Pmovmskb_r32_mm, &[EAX, MM1], |b, a| {
        assert_eq!(u64::from(pmovmskb_mm(Mm::from(b.mm[1]))), a.rax)
    });
    check(Code::Movmskps_r32_xmm, &[EAX, XMM1], |b, a| assert_eq!(u64::from(movmskps(Xmm(b.xmm[1]))), a.rax));
    check(Code::Movmskpd_r32_xmm, &[EAX, XMM1], |b, a| assert_eq!(u64::from(movmskpd(Xmm(b.xmm[1]))), a.rax));
}

#[test]
fn insertion_and_extraction() {
    for imm in (0..=16).chain([0x7f, 0x80, 0xff]) {
        let i = Operand::Imm(imm);
        let x1 = |s: &State| Xmm(s.xmm[1]);
        check(Code::Pinsrb_xmm_r32m8_imm8, &[XMM1, EAX, i], |b, a| {
            assert_eq!(pinsrb(x1(b), b.rax as u8, imm), x1(a))
        });
        check(Code::Pinsrw_xmm_r32m16_imm8, &[XMM1, EAX, i], |b, a| {
            assert_eq!(pinsrw(x1(b), b.rax as u16, imm), x1(a))
        });
        check(Code::Pinsrd_xmm_rm32_imm8, &[XMM1, EAX, i], |b, a| {
            assert_eq!(pinsrd(x1(b), b.rax as u32, imm), x1(a))
        });
        check(Code::Pinsrq_xmm_rm64_imm8, &[XMM1, RAX, i], |b, a| {
            assert_eq!(pinsrq(x1(b), b.rax, imm), x1(a))
        });
        check(Code::Pinsrw_mm_r32m16_imm8, &[MM1, EAX, i], |b, a| {
            assert_eq!(pinsrw_mm(Mm::from(b.mm[1]), b.rax as u16, imm).get(), a.mm[1])
        });
        check(Code::Pextrb_r32m8_xmm_imm8, &[EAX, XMM1, i], |b, a| {
            assert_eq!(u64::from(pextrb(x1(b), imm)), a.rax)
        });
        check(Code::Pextrw_r32_xmm_imm8, &[EAX, XMM1, i], |b, a| {
            assert_eq!(u64::from(pextrw(x1(b), imm)), a.rax)
        });
        check(Code::Pextrd_rm32_xmm_imm8, &[EAX, XMM1, i], |b, a| {
            assert_eq!(u64::from(pextrd(x1(b), imm)), a.rax)
        });
        check(Code::Extractps_rm32_xmm_imm8, &[EAX, XMM1, i], |b, a| {
            assert_eq!(u64::from(pextrd(x1(b), imm)), a.rax)
        });
        check(Code::Pextrq_rm64_xmm_imm8, &[RAX, XMM1, i], |b, a| assert_eq!(pextrq(x1(b), imm), a.rax));
        check(Code::Pextrw_r32_mm_imm8, &[EAX, MM1, i], |b, a| {
            assert_eq!(u64::from(pextrw_mm(Mm::from(b.mm[1]), imm)), a.rax)
        });
    }
}

#[test]
fn ptest_sets_zf_and_cf() {
    let host = Host::new(&instruction(Code::Ptest_xmm_xmmm128, &[XMM1, XMM2]));
    let mut random = Random::new(1);
    for _ in 0..2000 {
        let mut before = random_state(&mut random);
        // Often disjoint, or one within the other.
        let mask = random.bytes();
        for (i, mask) in mask.into_iter().enumerate() {
            match mask % 4 {
                0 => before.xmm[1][i] = !before.xmm[2][i],
                1 => before.xmm[2][i] = 0,
                2 => before.xmm[2][i] &= before.xmm[1][i],
                _ => {}
            }
        }
        if random.below(2) == 0 {
            before.xmm[2] = if random.below(2) == 0 { before.xmm[1] } else { before.xmm[1].map(|b| !b) };
        }
        let after = host.run(&before);
        let (zero, carry) = ptest(Xmm(before.xmm[1]), Xmm(before.xmm[2]));
        assert_eq!(u64::from(zero) << 6 | u64::from(carry), after.rflags & FLAGS);
    }
}

/// All 128 meaningful immediates, with random texts and lengths: index, mask and flags.
#[test]
fn string_comparison() {
    let mut random = Random::new(2);
    for imm in 0..=255 {
        let operands = [XMM1, XMM2, Operand::Imm(imm)];
        let host = |code| Host::new(&instruction(code, &operands));
        let istri = host(Code::Pcmpistri_xmm_xmmm128_imm8);
        let istrm = host(Code::Pcmpistrm_xmm_xmmm128_imm8);
        let estri = host(Code::Pcmpestri_xmm_xmmm128_imm8);
        let estri64 = host(Code::Pcmpestri64_xmm_xmmm128_imm8);
        let estrm = host(Code::Pcmpestrm_xmm_xmmm128_imm8);
        for _ in 0..200 {
            let mut before = random_state(&mut random);
            before.xmm[1] = random.text();
            before.xmm[2] = random.text();
            if random.below(4) == 0 {
                // A needle that is there.
                let (from, len) = (random.below(14), random.below(3));
                let text = before.xmm[2];
                before.xmm[1] = std::array::from_fn(|i| if i < len { text[from + i] } else { 0 });
            }
            before.rax = length(&mut random);
            before.rdx = length(&mut random);
            let (x1, x2) = (Xmm(before.xmm[1]), Xmm(before.xmm[2]));
            let implicit = pcmpistr(x1, x2, imm);
            let explicit = pcmpestr(x1, x2, imm, before.rax as i32 as i64, before.rdx as i32 as i64);
            let wide = pcmpestr(x1, x2, imm, before.rax as i64, before.rdx as i64);
            for (host, ours, mask) in [
                (&istri, implicit, false),
                (&istrm, implicit, true),
                (&estri, explicit, false),
                (&estri64, wide, false),
                (&estrm, explicit, true),
            ] {
                let after = host.run(&before);
                let what = format!("{imm:#x} {x1:x?} {x2:x?} {:x} {:x}", before.rax, before.rdx);
                if mask {
                    assert_eq!(ours.mask(), Xmm(after.xmm[0]), "{what}");
                } else {
                    assert_eq!(u64::from(ours.index()), after.rcx, "{what}");
                }
                let flags = u64::from(ours.carry)
                    | u64::from(ours.zero) << 6
                    | u64::from(ours.sign) << 7
                    | u64::from(ours.overflow) << 11;
                assert_eq!(flags, after.rflags & FLAGS, "{what}");
            }
        }
    }
}

fn length(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.u64(),
        1 => (random.below(20) as u64).wrapping_neg(),
        2 => 1 << 31,
        3 => 1 << 63,
        4 => random.below(20) as u64 | 1 << 32,
        _ => random.below(20) as u64,
    }
}
