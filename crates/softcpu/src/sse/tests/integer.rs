//! Integer operations, with and without immediates, on XMM and MMX registers.

use iced_x86::{Code, Register};

use super::super::*;
use super::host::{Host, Operand, State, instruction};
use super::operands::Random;

const XMM: [Operand; 2] = [Operand::Reg(Register::XMM1), Operand::Reg(Register::XMM2)];
const MM: [Operand; 2] = [Operand::Reg(Register::MM1), Operand::Reg(Register::MM2)];
const ROUNDS: usize = 2000;

/// A state with random operands, and what the operation is given.
fn random_state(random: &mut Random) -> State {
    let mut state = State::default();
    state.xmm = std::array::from_fn(|_| random.integers());
    if random.below(8) == 0 {
        state.xmm[2] = state.xmm[1];
    }
    state.mm = std::array::from_fn(|i| u64::from_le_bytes(state.xmm[i][..8].try_into().unwrap()));
    state
}

fn check_xmm(code: Code, imm: Option<u8>, rounds: usize, op: impl Fn(Xmm, Xmm, Xmm) -> Xmm) {
    let mut operands = XMM.to_vec();
    operands.extend(imm.map(Operand::Imm));
    let host = Host::new(&instruction(code, &operands));
    let mut random = Random::new(code as u64);
    for _ in 0..rounds {
        let before = random_state(&mut random);
        let after = host.run(&before);
        let [x0, x1, x2] = before.xmm.map(Xmm);
        assert_eq!(op(x1, x2, x0), Xmm(after.xmm[1]), "{code:?} {imm:x?} {x1:x?} {x2:x?}");
    }
}

fn check_mm(code: Code, imm: Option<u8>, rounds: usize, op: impl Fn(Mm, Mm) -> Mm) {
    let mut operands = MM.to_vec();
    operands.extend(imm.map(Operand::Imm));
    let host = Host::new(&instruction(code, &operands));
    let mut random = Random::new(code as u64);
    for _ in 0..rounds {
        let before = random_state(&mut random);
        let after = host.run(&before);
        let (a, b) = (Mm::from(before.mm[1]), Mm::from(before.mm[2]));
        assert_eq!(op(a, b).get(), after.mm[1], "{code:?} {imm:x?} {a:x?} {b:x?}");
    }
}

macro_rules! on_xmm {
    ($($code:ident => $op:ident),* $(,)?) => {
        $(check_xmm(Code::$code, None, ROUNDS, |d, s, _| <$op as Op2<Xmm>>::op(d, s));)*
    };
}

macro_rules! on_mm {
    ($($code:ident => $op:ident),* $(,)?) => {
        $(check_mm(Code::$code, None, ROUNDS, <$op as Op2<Mm>>::op);)*
    };
}

#[test]
fn sse2_arithmetic() {
    on_xmm! {
        Paddb_xmm_xmmm128 => Paddb, Paddw_xmm_xmmm128 => Paddw, Paddd_xmm_xmmm128 => Paddd,
        Paddq_xmm_xmmm128 => Paddq, Paddsb_xmm_xmmm128 => Paddsb, Paddsw_xmm_xmmm128 => Paddsw,
        Paddusb_xmm_xmmm128 => Paddusb, Paddusw_xmm_xmmm128 => Paddusw,
        Psubb_xmm_xmmm128 => Psubb, Psubw_xmm_xmmm128 => Psubw, Psubd_xmm_xmmm128 => Psubd,
        Psubq_xmm_xmmm128 => Psubq, Psubsb_xmm_xmmm128 => Psubsb, Psubsw_xmm_xmmm128 => Psubsw,
        Psubusb_xmm_xmmm128 => Psubusb, Psubusw_xmm_xmmm128 => Psubusw,
        Pmullw_xmm_xmmm128 => Pmullw, Pmulhw_xmm_xmmm128 => Pmulhw, Pmulhuw_xmm_xmmm128 => Pmulhuw,
        Pmuludq_xmm_xmmm128 => Pmuludq, Pmaddwd_xmm_xmmm128 => Pmaddwd, Psadbw_xmm_xmmm128 => Psadbw,
        Pavgb_xmm_xmmm128 => Pavgb, Pavgw_xmm_xmmm128 => Pavgw,
        Pminub_xmm_xmmm128 => Pminub, Pmaxub_xmm_xmmm128 => Pmaxub,
        Pminsw_xmm_xmmm128 => Pminsw, Pmaxsw_xmm_xmmm128 => Pmaxsw,
        Pcmpeqb_xmm_xmmm128 => Pcmpeqb, Pcmpeqw_xmm_xmmm128 => Pcmpeqw,
        Pcmpeqd_xmm_xmmm128 => Pcmpeqd, Pcmpgtb_xmm_xmmm128 => Pcmpgtb,
        Pcmpgtw_xmm_xmmm128 => Pcmpgtw, Pcmpgtd_xmm_xmmm128 => Pcmpgtd,
        Pand_xmm_xmmm128 => Pand, Pandn_xmm_xmmm128 => Pandn, Por_xmm_xmmm128 => Por,
        Pxor_xmm_xmmm128 => Pxor, Andps_xmm_xmmm128 => Pand, Andnpd_xmm_xmmm128 => Pandn,
        Orpd_xmm_xmmm128 => Por, Xorps_xmm_xmmm128 => Pxor,
    }
}

#[test]
fn sse2_unpack_and_pack() {
    on_xmm! {
        Punpcklbw_xmm_xmmm128 => Punpcklbw, Punpckhbw_xmm_xmmm128 => Punpckhbw,
        Punpcklwd_xmm_xmmm128 => Punpcklwd, Punpckhwd_xmm_xmmm128 => Punpckhwd,
        Punpckldq_xmm_xmmm128 => Punpckldq, Punpckhdq_xmm_xmmm128 => Punpckhdq,
        Punpcklqdq_xmm_xmmm128 => Punpcklqdq, Punpckhqdq_xmm_xmmm128 => Punpckhqdq,
        Unpcklps_xmm_xmmm128 => Punpckldq, Unpckhps_xmm_xmmm128 => Punpckhdq,
        Unpcklpd_xmm_xmmm128 => Punpcklqdq, Unpckhpd_xmm_xmmm128 => Punpckhqdq,
        Packsswb_xmm_xmmm128 => Packsswb, Packssdw_xmm_xmmm128 => Packssdw,
        Packuswb_xmm_xmmm128 => Packuswb,
    }
}

#[test]
fn sse3_to_sse4() {
    on_xmm! {
        Movsldup_xmm_xmmm128 => Movsldup, Movshdup_xmm_xmmm128 => Movshdup, Movddup_xmm_xmmm64 => Movddup,
        Pabsb_xmm_xmmm128 => Pabsb, Pabsw_xmm_xmmm128 => Pabsw, Pabsd_xmm_xmmm128 => Pabsd,
        Psignb_xmm_xmmm128 => Psignb, Psignw_xmm_xmmm128 => Psignw, Psignd_xmm_xmmm128 => Psignd,
        Phaddw_xmm_xmmm128 => Phaddw, Phaddd_xmm_xmmm128 => Phaddd, Phaddsw_xmm_xmmm128 => Phaddsw,
        Phsubw_xmm_xmmm128 => Phsubw, Phsubd_xmm_xmmm128 => Phsubd, Phsubsw_xmm_xmmm128 => Phsubsw,
        Pmaddubsw_xmm_xmmm128 => Pmaddubsw, Pmulhrsw_xmm_xmmm128 => Pmulhrsw,
        Pshufb_xmm_xmmm128 => Pshufb,
        Pmulld_xmm_xmmm128 => Pmulld, Pmuldq_xmm_xmmm128 => Pmuldq,
        Pminsb_xmm_xmmm128 => Pminsb, Pminsd_xmm_xmmm128 => Pminsd, Pminuw_xmm_xmmm128 => Pminuw,
        Pminud_xmm_xmmm128 => Pminud, Pmaxsb_xmm_xmmm128 => Pmaxsb, Pmaxsd_xmm_xmmm128 => Pmaxsd,
        Pmaxuw_xmm_xmmm128 => Pmaxuw, Pmaxud_xmm_xmmm128 => Pmaxud,
        Packusdw_xmm_xmmm128 => Packusdw, Pcmpeqq_xmm_xmmm128 => Pcmpeqq,
        Pcmpgtq_xmm_xmmm128 => Pcmpgtq, Phminposuw_xmm_xmmm128 => Phminposuw,
        Pmovsxbw_xmm_xmmm64 => Pmovsxbw, Pmovsxbd_xmm_xmmm32 => Pmovsxbd,
        Pmovsxbq_xmm_xmmm16 => Pmovsxbq, Pmovsxwd_xmm_xmmm64 => Pmovsxwd,
        Pmovsxwq_xmm_xmmm32 => Pmovsxwq, Pmovsxdq_xmm_xmmm64 => Pmovsxdq,
        Pmovzxbw_xmm_xmmm64 => Pmovzxbw, Pmovzxbd_xmm_xmmm32 => Pmovzxbd,
        Pmovzxbq_xmm_xmmm16 => Pmovzxbq, Pmovzxwd_xmm_xmmm64 => Pmovzxwd,
        Pmovzxwq_xmm_xmmm32 => Pmovzxwq, Pmovzxdq_xmm_xmmm64 => Pmovzxdq,
    }
}

#[test]
fn aes_and_sha() {
    assert!(is_x86_feature_detected!("aes"), "the host cannot check this");
    on_xmm! {
        Aesenc_xmm_xmmm128 => Aesenc, Aesenclast_xmm_xmmm128 => Aesenclast,
        Aesdec_xmm_xmmm128 => Aesdec, Aesdeclast_xmm_xmmm128 => Aesdeclast,
        Aesimc_xmm_xmmm128 => Aesimc,
    }
    if is_x86_feature_detected!("sha") {
        on_xmm! {
            Sha1nexte_xmm_xmmm128 => Sha1nexte, Sha1msg1_xmm_xmmm128 => Sha1msg1,
            Sha1msg2_xmm_xmmm128 => Sha1msg2, Sha256msg1_xmm_xmmm128 => Sha256msg1,
            Sha256msg2_xmm_xmmm128 => Sha256msg2,
        }
        check_xmm(Code::Sha256rnds2_xmm_xmmm128, None, ROUNDS, Sha256rnds2::op);
        for imm in 0..8 {
            check_xmm(Code::Sha1rnds4_xmm_xmmm128_imm8, Some(imm), 300, |d, s, _| Sha1rnds4::op(d, s, imm));
        }
    }
}

#[test]
fn mmx() {
    on_mm! {
        Paddb_mm_mmm64 => Paddb, Paddw_mm_mmm64 => Paddw, Paddd_mm_mmm64 => Paddd, Paddq_mm_mmm64 => Paddq,
        Paddsb_mm_mmm64 => Paddsb, Paddsw_mm_mmm64 => Paddsw, Paddusb_mm_mmm64 => Paddusb,
        Paddusw_mm_mmm64 => Paddusw, Psubb_mm_mmm64 => Psubb, Psubw_mm_mmm64 => Psubw,
        Psubd_mm_mmm64 => Psubd, Psubq_mm_mmm64 => Psubq, Psubsb_mm_mmm64 => Psubsb,
        Psubsw_mm_mmm64 => Psubsw, Psubusb_mm_mmm64 => Psubusb, Psubusw_mm_mmm64 => Psubusw,
        Pmullw_mm_mmm64 => Pmullw, Pmulhw_mm_mmm64 => Pmulhw, Pmulhuw_mm_mmm64 => Pmulhuw,
        Pmuludq_mm_mmm64 => Pmuludq, Pmaddwd_mm_mmm64 => Pmaddwd, Psadbw_mm_mmm64 => Psadbw,
        Pavgb_mm_mmm64 => Pavgb, Pavgw_mm_mmm64 => Pavgw, Pminub_mm_mmm64 => Pminub,
        Pmaxub_mm_mmm64 => Pmaxub, Pminsw_mm_mmm64 => Pminsw, Pmaxsw_mm_mmm64 => Pmaxsw,
        Pcmpeqb_mm_mmm64 => Pcmpeqb, Pcmpeqw_mm_mmm64 => Pcmpeqw, Pcmpeqd_mm_mmm64 => Pcmpeqd,
        Pcmpgtb_mm_mmm64 => Pcmpgtb, Pcmpgtw_mm_mmm64 => Pcmpgtw, Pcmpgtd_mm_mmm64 => Pcmpgtd,
        Pand_mm_mmm64 => Pand, Pandn_mm_mmm64 => Pandn, Por_mm_mmm64 => Por, Pxor_mm_mmm64 => Pxor,
        Punpcklbw_mm_mmm32 => Punpcklbw, Punpckhbw_mm_mmm64 => Punpckhbw,
        Punpcklwd_mm_mmm32 => Punpcklwd, Punpckhwd_mm_mmm64 => Punpckhwd,
        Punpckldq_mm_mmm32 => Punpckldq, Punpckhdq_mm_mmm64 => Punpckhdq,
        Packsswb_mm_mmm64 => Packsswb, Packssdw_mm_mmm64 => Packssdw, Packuswb_mm_mmm64 => Packuswb,
        Pabsb_mm_mmm64 => Pabsb, Pabsw_mm_mmm64 => Pabsw, Pabsd_mm_mmm64 => Pabsd,
        Psignb_mm_mmm64 => Psignb, Psignw_mm_mmm64 => Psignw, Psignd_mm_mmm64 => Psignd,
        Phaddw_mm_mmm64 => Phaddw, Phaddd_mm_mmm64 => Phaddd, Phaddsw_mm_mmm64 => Phaddsw,
        Phsubw_mm_mmm64 => Phsubw, Phsubd_mm_mmm64 => Phsubd, Phsubsw_mm_mmm64 => Phsubsw,
        Pmaddubsw_mm_mmm64 => Pmaddubsw, Pmulhrsw_mm_mmm64 => Pmulhrsw, Pshufb_mm_mmm64 => Pshufb,
    }
}

/// Every shift by register and by immediate, on both register files.
#[test]
fn shifts() {
    macro_rules! shifts {
        ($($op:ident: $xmm:ident, $xmm_imm:ident, $mm:ident, $mm_imm:ident;)*) => {$(
            check_xmm(Code::$xmm, None, ROUNDS, |d, s, _| $op::shift(d, s.low64()));
            check_mm(Code::$mm, None, ROUNDS, |d, s| $op::shift(d, s.get()));
            for imm in (0..=70).chain([0x80, 0xff]) {
                check_shift_imm(Code::$xmm_imm, imm, $op::shift);
                check_shift_imm_mm(Code::$mm_imm, imm, $op::shift);
            }
        )*};
    }
    shifts! {
        Psllw: Psllw_xmm_xmmm128, Psllw_xmm_imm8, Psllw_mm_mmm64, Psllw_mm_imm8;
        Pslld: Pslld_xmm_xmmm128, Pslld_xmm_imm8, Pslld_mm_mmm64, Pslld_mm_imm8;
        Psllq: Psllq_xmm_xmmm128, Psllq_xmm_imm8, Psllq_mm_mmm64, Psllq_mm_imm8;
        Psrlw: Psrlw_xmm_xmmm128, Psrlw_xmm_imm8, Psrlw_mm_mmm64, Psrlw_mm_imm8;
        Psrld: Psrld_xmm_xmmm128, Psrld_xmm_imm8, Psrld_mm_mmm64, Psrld_mm_imm8;
        Psrlq: Psrlq_xmm_xmmm128, Psrlq_xmm_imm8, Psrlq_mm_mmm64, Psrlq_mm_imm8;
        Psraw: Psraw_xmm_xmmm128, Psraw_xmm_imm8, Psraw_mm_mmm64, Psraw_mm_imm8;
        Psrad: Psrad_xmm_xmmm128, Psrad_xmm_imm8, Psrad_mm_mmm64, Psrad_mm_imm8;
    }
    for imm in (0..=20).chain([0x80, 0xff]) {
        check_shift_imm(Code::Pslldq_xmm_imm8, imm, Pslldq::shift);
        check_shift_imm(Code::Psrldq_xmm_imm8, imm, Psrldq::shift);
    }
}

fn check_shift_imm(code: Code, imm: u8, op: impl Fn(Xmm, u64) -> Xmm) {
    let host = Host::new(&instruction(code, &[XMM[0], Operand::Imm(imm)]));
    let mut random = Random::new(u64::from(imm));
    for _ in 0..50 {
        let before = random_state(&mut random);
        let after = host.run(&before);
        assert_eq!(op(Xmm(before.xmm[1]), imm.into()).0, after.xmm[1], "{code:?} {imm}");
    }
}

fn check_shift_imm_mm(code: Code, imm: u8, op: impl Fn(Mm, u64) -> Mm) {
    let host = Host::new(&instruction(code, &[MM[0], Operand::Imm(imm)]));
    let mut random = Random::new(u64::from(imm));
    for _ in 0..50 {
        let before = random_state(&mut random);
        let after = host.run(&before);
        assert_eq!(op(Mm::from(before.mm[1]), imm.into()).get(), after.mm[1], "{code:?} {imm}");
    }
}

/// Every immediate of the operations that have one.
#[test]
fn immediates() {
    macro_rules! immediates {
        ($($code:ident => $op:ident),* $(,)?) => {$(
            for imm in 0..=255 {
                check_xmm(Code::$code, Some(imm), 20, |d, s, _| $op::op(d, s, imm));
            }
        )*};
    }
    immediates! {
        Pshufd_xmm_xmmm128_imm8 => Pshufd, Pshuflw_xmm_xmmm128_imm8 => Pshuflw,
        Pshufhw_xmm_xmmm128_imm8 => Pshufhw, Shufps_xmm_xmmm128_imm8 => Shufps,
        Shufpd_xmm_xmmm128_imm8 => Shufpd, Palignr_xmm_xmmm128_imm8 => Palignr,
        Pblendw_xmm_xmmm128_imm8 => Pblendw, Blendps_xmm_xmmm128_imm8 => Blendps,
        Blendpd_xmm_xmmm128_imm8 => Blendpd, Mpsadbw_xmm_xmmm128_imm8 => Mpsadbw,
        Insertps_xmm_xmmm32_imm8 => Insertps, Aeskeygenassist_xmm_xmmm128_imm8 => Aeskeygenassist,
        Pclmulqdq_xmm_xmmm128_imm8 => Pclmulqdq,
    }
    for imm in 0..=255 {
        check_mm(Code::Pshufw_mm_mmm64_imm8, Some(imm), 20, |d, s| Pshufw::op(d, s, imm));
        check_mm(Code::Palignr_mm_mmm64_imm8, Some(imm), 20, |d, s| Palignr::op(d, s, imm));
    }
}

#[test]
fn variable_blends() {
    check_xmm(Code::Pblendvb_xmm_xmmm128, None, ROUNDS, Pblendvb::op);
    check_xmm(Code::Blendvps_xmm_xmmm128, None, ROUNDS, Blendvps::op);
    check_xmm(Code::Blendvpd_xmm_xmmm128, None, ROUNDS, Blendvpd::op);
}
