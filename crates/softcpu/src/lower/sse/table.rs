//! What executes the instructions of one register destination and one register or memory source.

use iced_x86::Code;

use crate::op::Handler;
use crate::ops::sse::{self, mmx};

/// A memory source: its width, and whether its address must be aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    M128,
    U128,
    M64,
    M32,
    M16,
}

/// How to lay down an instruction.
pub(super) struct Plan {
    /// The handler for registers.
    pub run: Handler,
    /// What a memory source is loaded as.
    pub from: From,
    /// Handlers that read memory themselves, by the form of the address.
    pub direct: Option<[Handler; 3]>,
    /// It can raise a floating-point exception.
    pub raises: bool,
    /// The instruction is an MMX one.
    pub mmx: bool,
}

/// `shape operation width: codes;` for SSE registers, then for MMX registers.
macro_rules! table {
    (xmm { $($shape:ident $op:ident $from:ident: $($code:ident)+;)* }
     mmx { $($mshape:ident $mop:ident $mfrom:ident: $($mcode:ident)+;)* }) => {
        /// The plan for an instruction, if it is one of these.
        pub(super) fn plan(code: Code) -> Option<Plan> {
            use crate::sse as o;
            Some(match code {
                $($(Code::$code)|+ => table!(@plan $shape o::$op, $from),)*
                $($(Code::$mcode)|+ => Plan {
                    mmx: true,
                    ..Plan::new(mmx::$mshape::<o::$mop>, From::$mfrom)
                },)*
                _ => return None,
            })
        }
    };
    (@plan op2_hot $op:path, $from:ident) => {
        Plan {
            direct: Some([sse::op2_m::<$op, 0>, sse::op2_m::<$op, 1>, sse::op2_m::<$op, 2>]),
            ..Plan::new(sse::op2::<$op>, From::$from)
        }
    };
    (@plan fp2_hot $op:path, $from:ident) => {
        Plan {
            direct: Some([
                sse::fp2_m::<$op, sse::$from, 0>,
                sse::fp2_m::<$op, sse::$from, 1>,
                sse::fp2_m::<$op, sse::$from, 2>,
            ]),
            raises: true,
            ..Plan::new(sse::fp2::<$op>, From::$from)
        }
    };
    (@plan fp2 $op:path, $from:ident) => {
        Plan { raises: true, ..Plan::new(sse::fp2::<$op>, From::$from) }
    };
    (@plan fp2_imm $op:path, $from:ident) => {
        Plan { raises: true, ..Plan::new(sse::fp2_imm::<$op>, From::$from) }
    };
    (@plan $shape:ident $op:path, $from:ident) => { Plan::new(sse::$shape::<$op>, From::$from) };
}

impl Plan {
    fn new(run: Handler, from: From) -> Self {
        Self { run, from, direct: None, raises: false, mmx: false }
    }
}

table! {
    xmm {
    op2 Movsldup M128: Movsldup_xmm_xmmm128;
    op2 Movddup M64: Movddup_xmm_xmmm64;
    op2_far Punpckldq M128: Unpcklps_xmm_xmmm128 Punpckldq_xmm_xmmm128;
    op2 Punpcklqdq M128: Unpcklpd_xmm_xmmm128 Punpcklqdq_xmm_xmmm128;
    op2 Punpckhdq M128: Unpckhps_xmm_xmmm128 Punpckhdq_xmm_xmmm128;
    op2 Punpckhqdq M128: Unpckhpd_xmm_xmmm128 Punpckhqdq_xmm_xmmm128;
    op2 Movshdup M128: Movshdup_xmm_xmmm128;
    fp2 Sqrtps M128: Sqrtps_xmm_xmmm128;
    fp2 Sqrtpd M128: Sqrtpd_xmm_xmmm128;
    fp2 Sqrtss M32: Sqrtss_xmm_xmmm32;
    fp2 Sqrtsd M64: Sqrtsd_xmm_xmmm64;
    op2_far Rsqrtps M128: Rsqrtps_xmm_xmmm128;
    op2_far Rsqrtss M32: Rsqrtss_xmm_xmmm32;
    op2_far Rcpps M128: Rcpps_xmm_xmmm128;
    op2_far Rcpss M32: Rcpss_xmm_xmmm32;
    op2_hot Pand M128: Andps_xmm_xmmm128 Andpd_xmm_xmmm128 Pand_xmm_xmmm128;
    op2_hot Pandn M128: Andnps_xmm_xmmm128 Andnpd_xmm_xmmm128 Pandn_xmm_xmmm128;
    op2_hot Por M128: Orps_xmm_xmmm128 Orpd_xmm_xmmm128 Por_xmm_xmmm128;
    op2_hot Pxor M128: Xorps_xmm_xmmm128 Xorpd_xmm_xmmm128 Pxor_xmm_xmmm128;
    fp2_hot Addps M128: Addps_xmm_xmmm128;
    fp2_hot Addpd M128: Addpd_xmm_xmmm128;
    fp2_hot Addss M32: Addss_xmm_xmmm32;
    fp2_hot Addsd M64: Addsd_xmm_xmmm64;
    fp2_hot Mulps M128: Mulps_xmm_xmmm128;
    fp2_hot Mulpd M128: Mulpd_xmm_xmmm128;
    fp2_hot Mulss M32: Mulss_xmm_xmmm32;
    fp2_hot Mulsd M64: Mulsd_xmm_xmmm64;
    fp2 Cvtps2pd M64: Cvtps2pd_xmm_xmmm64;
    fp2 Cvtpd2ps M128: Cvtpd2ps_xmm_xmmm128;
    fp2_hot Cvtss2sd M32: Cvtss2sd_xmm_xmmm32;
    fp2_hot Cvtsd2ss M64: Cvtsd2ss_xmm_xmmm64;
    fp2 Cvtdq2ps M128: Cvtdq2ps_xmm_xmmm128;
    fp2 Cvtps2dq M128: Cvtps2dq_xmm_xmmm128;
    fp2 Cvttps2dq M128: Cvttps2dq_xmm_xmmm128;
    fp2_hot Subps M128: Subps_xmm_xmmm128;
    fp2_hot Subpd M128: Subpd_xmm_xmmm128;
    fp2_hot Subss M32: Subss_xmm_xmmm32;
    fp2_hot Subsd M64: Subsd_xmm_xmmm64;
    fp2 Minps M128: Minps_xmm_xmmm128;
    fp2 Minpd M128: Minpd_xmm_xmmm128;
    fp2 Minss M32: Minss_xmm_xmmm32;
    fp2 Minsd M64: Minsd_xmm_xmmm64;
    fp2 Divps M128: Divps_xmm_xmmm128;
    fp2 Divpd M128: Divpd_xmm_xmmm128;
    fp2_hot Divss M32: Divss_xmm_xmmm32;
    fp2_hot Divsd M64: Divsd_xmm_xmmm64;
    fp2 Maxps M128: Maxps_xmm_xmmm128;
    fp2 Maxpd M128: Maxpd_xmm_xmmm128;
    fp2 Maxss M32: Maxss_xmm_xmmm32;
    fp2 Maxsd M64: Maxsd_xmm_xmmm64;
    op2_far Punpcklbw M128: Punpcklbw_xmm_xmmm128;
    op2_far Punpcklwd M128: Punpcklwd_xmm_xmmm128;
    op2 Packsswb M128: Packsswb_xmm_xmmm128;
    op2 Pcmpgtb M128: Pcmpgtb_xmm_xmmm128;
    op2 Pcmpgtw M128: Pcmpgtw_xmm_xmmm128;
    op2 Pcmpgtd M128: Pcmpgtd_xmm_xmmm128;
    op2 Packuswb M128: Packuswb_xmm_xmmm128;
    op2 Punpckhbw M128: Punpckhbw_xmm_xmmm128;
    op2 Punpckhwd M128: Punpckhwd_xmm_xmmm128;
    op2 Packssdw M128: Packssdw_xmm_xmmm128;
    op2_imm Pshufd M128: Pshufd_xmm_xmmm128_imm8;
    op2_imm Pshufhw M128: Pshufhw_xmm_xmmm128_imm8;
    op2_imm Pshuflw M128: Pshuflw_xmm_xmmm128_imm8;
    shift_i Psrlw M128: Psrlw_xmm_imm8;
    shift_i Psraw M128: Psraw_xmm_imm8;
    shift_i Psllw M128: Psllw_xmm_imm8;
    shift_i Psrld M128: Psrld_xmm_imm8;
    shift_i Psrad M128: Psrad_xmm_imm8;
    shift_i Pslld M128: Pslld_xmm_imm8;
    shift_i Psrlq M128: Psrlq_xmm_imm8;
    shift_i Psrldq M128: Psrldq_xmm_imm8;
    shift_i Psllq M128: Psllq_xmm_imm8;
    shift_i Pslldq M128: Pslldq_xmm_imm8;
    op2_hot Pcmpeqb M128: Pcmpeqb_xmm_xmmm128;
    op2_hot Pcmpeqw M128: Pcmpeqw_xmm_xmmm128;
    op2_hot Pcmpeqd M128: Pcmpeqd_xmm_xmmm128;
    fp2 Haddpd M128: Haddpd_xmm_xmmm128;
    fp2 Haddps M128: Haddps_xmm_xmmm128;
    fp2 Hsubpd M128: Hsubpd_xmm_xmmm128;
    fp2 Hsubps M128: Hsubps_xmm_xmmm128;
    fp2_imm Cmpps M128: Cmpps_xmm_xmmm128_imm8;
    fp2_imm Cmppd M128: Cmppd_xmm_xmmm128_imm8;
    fp2_imm Cmpss M32: Cmpss_xmm_xmmm32_imm8;
    fp2_imm Cmpsd M64: Cmpsd_xmm_xmmm64_imm8;
    op2_imm Shufps M128: Shufps_xmm_xmmm128_imm8;
    op2_imm Shufpd M128: Shufpd_xmm_xmmm128_imm8;
    fp2 Addsubpd M128: Addsubpd_xmm_xmmm128;
    fp2 Addsubps M128: Addsubps_xmm_xmmm128;
    shift_r Psrlw M128: Psrlw_xmm_xmmm128;
    shift_r Psrld M128: Psrld_xmm_xmmm128;
    shift_r Psrlq M128: Psrlq_xmm_xmmm128;
    op2_hot Paddq M128: Paddq_xmm_xmmm128;
    op2 Pmullw M128: Pmullw_xmm_xmmm128;
    op2 Psubusb M128: Psubusb_xmm_xmmm128;
    op2 Psubusw M128: Psubusw_xmm_xmmm128;
    op2_hot Pminub M128: Pminub_xmm_xmmm128;
    op2 Paddusb M128: Paddusb_xmm_xmmm128;
    op2 Paddusw M128: Paddusw_xmm_xmmm128;
    op2_hot Pmaxub M128: Pmaxub_xmm_xmmm128;
    op2 Pavgb M128: Pavgb_xmm_xmmm128;
    shift_r Psraw M128: Psraw_xmm_xmmm128;
    shift_r Psrad M128: Psrad_xmm_xmmm128;
    op2 Pavgw M128: Pavgw_xmm_xmmm128;
    op2 Pmulhuw M128: Pmulhuw_xmm_xmmm128;
    op2 Pmulhw M128: Pmulhw_xmm_xmmm128;
    fp2 Cvttpd2dq M128: Cvttpd2dq_xmm_xmmm128;
    op2 Cvtdq2pd M64: Cvtdq2pd_xmm_xmmm64;
    fp2 Cvtpd2dq M128: Cvtpd2dq_xmm_xmmm128;
    op2 Psubsb M128: Psubsb_xmm_xmmm128;
    op2 Psubsw M128: Psubsw_xmm_xmmm128;
    op2 Pminsw M128: Pminsw_xmm_xmmm128;
    op2 Paddsb M128: Paddsb_xmm_xmmm128;
    op2 Paddsw M128: Paddsw_xmm_xmmm128;
    op2 Pmaxsw M128: Pmaxsw_xmm_xmmm128;
    shift_r Psllw M128: Psllw_xmm_xmmm128;
    shift_r Pslld M128: Pslld_xmm_xmmm128;
    shift_r Psllq M128: Psllq_xmm_xmmm128;
    op2 Pmuludq M128: Pmuludq_xmm_xmmm128;
    op2_far Pmaddwd M128: Pmaddwd_xmm_xmmm128;
    op2_far Psadbw M128: Psadbw_xmm_xmmm128;
    op2_hot Psubb M128: Psubb_xmm_xmmm128;
    op2_hot Psubw M128: Psubw_xmm_xmmm128;
    op2_hot Psubd M128: Psubd_xmm_xmmm128;
    op2_hot Psubq M128: Psubq_xmm_xmmm128;
    op2_hot Paddb M128: Paddb_xmm_xmmm128;
    op2_hot Paddw M128: Paddw_xmm_xmmm128;
    op2_hot Paddd M128: Paddd_xmm_xmmm128;
    op2_far Pshufb M128: Pshufb_xmm_xmmm128;
    op2_far Phaddw M128: Phaddw_xmm_xmmm128;
    op2 Phaddd M128: Phaddd_xmm_xmmm128;
    op2_far Phaddsw M128: Phaddsw_xmm_xmmm128;
    op2_far Pmaddubsw M128: Pmaddubsw_xmm_xmmm128;
    op2_far Phsubw M128: Phsubw_xmm_xmmm128;
    op2 Phsubd M128: Phsubd_xmm_xmmm128;
    op2_far Phsubsw M128: Phsubsw_xmm_xmmm128;
    op2 Psignb M128: Psignb_xmm_xmmm128;
    op2 Psignw M128: Psignw_xmm_xmmm128;
    op2 Psignd M128: Psignd_xmm_xmmm128;
    op2_far Pmulhrsw M128: Pmulhrsw_xmm_xmmm128;
    op3 Pblendvb M128: Pblendvb_xmm_xmmm128;
    op3 Blendvps M128: Blendvps_xmm_xmmm128;
    op3 Blendvpd M128: Blendvpd_xmm_xmmm128;
    op2 Pabsb M128: Pabsb_xmm_xmmm128;
    op2 Pabsw M128: Pabsw_xmm_xmmm128;
    op2 Pabsd M128: Pabsd_xmm_xmmm128;
    op2 Pmovsxbw M64: Pmovsxbw_xmm_xmmm64;
    op2 Pmovsxbd M32: Pmovsxbd_xmm_xmmm32;
    op2 Pmovsxbq M16: Pmovsxbq_xmm_xmmm16;
    op2 Pmovsxwd M64: Pmovsxwd_xmm_xmmm64;
    op2 Pmovsxwq M32: Pmovsxwq_xmm_xmmm32;
    op2 Pmovsxdq M64: Pmovsxdq_xmm_xmmm64;
    op2 Pmuldq M128: Pmuldq_xmm_xmmm128;
    op2 Pcmpeqq M128: Pcmpeqq_xmm_xmmm128;
    op2_far Packusdw M128: Packusdw_xmm_xmmm128;
    op2 Pmovzxbw M64: Pmovzxbw_xmm_xmmm64;
    op2 Pmovzxbd M32: Pmovzxbd_xmm_xmmm32;
    op2 Pmovzxbq M16: Pmovzxbq_xmm_xmmm16;
    op2 Pmovzxwd M64: Pmovzxwd_xmm_xmmm64;
    op2 Pmovzxwq M32: Pmovzxwq_xmm_xmmm32;
    op2 Pmovzxdq M64: Pmovzxdq_xmm_xmmm64;
    op2 Pcmpgtq M128: Pcmpgtq_xmm_xmmm128;
    op2 Pminsb M128: Pminsb_xmm_xmmm128;
    op2 Pminsd M128: Pminsd_xmm_xmmm128;
    op2 Pminuw M128: Pminuw_xmm_xmmm128;
    op2 Pminud M128: Pminud_xmm_xmmm128;
    op2 Pmaxsb M128: Pmaxsb_xmm_xmmm128;
    op2 Pmaxsd M128: Pmaxsd_xmm_xmmm128;
    op2 Pmaxuw M128: Pmaxuw_xmm_xmmm128;
    op2 Pmaxud M128: Pmaxud_xmm_xmmm128;
    op2 Pmulld M128: Pmulld_xmm_xmmm128;
    op2_far Phminposuw M128: Phminposuw_xmm_xmmm128;
    op2_far Sha1nexte M128: Sha1nexte_xmm_xmmm128;
    op2_far Sha1msg1 M128: Sha1msg1_xmm_xmmm128;
    op2_far Sha1msg2 M128: Sha1msg2_xmm_xmmm128;
    op3 Sha256rnds2 M128: Sha256rnds2_xmm_xmmm128;
    op2_far Sha256msg1 M128: Sha256msg1_xmm_xmmm128;
    op2_far Sha256msg2 M128: Sha256msg2_xmm_xmmm128;
    op2_far Aesimc M128: Aesimc_xmm_xmmm128;
    op2_far Aesenc M128: Aesenc_xmm_xmmm128;
    op2_far Aesenclast M128: Aesenclast_xmm_xmmm128;
    op2_far Aesdec M128: Aesdec_xmm_xmmm128;
    op2_far Aesdeclast M128: Aesdeclast_xmm_xmmm128;
    fp2_imm Roundps M128: Roundps_xmm_xmmm128_imm8;
    fp2_imm Roundpd M128: Roundpd_xmm_xmmm128_imm8;
    fp2_imm Roundss M32: Roundss_xmm_xmmm32_imm8;
    fp2_imm Roundsd M64: Roundsd_xmm_xmmm64_imm8;
    op2_imm Blendps M128: Blendps_xmm_xmmm128_imm8;
    op2_imm Blendpd M128: Blendpd_xmm_xmmm128_imm8;
    op2_imm Pblendw M128: Pblendw_xmm_xmmm128_imm8;
    op2_imm Palignr M128: Palignr_xmm_xmmm128_imm8;
    op2_imm Insertps M32: Insertps_xmm_xmmm32_imm8;
    fp2_imm Dpps M128: Dpps_xmm_xmmm128_imm8;
    fp2_imm Dppd M128: Dppd_xmm_xmmm128_imm8;
    op2_imm Mpsadbw M128: Mpsadbw_xmm_xmmm128_imm8;
    op2_imm Pclmulqdq M128: Pclmulqdq_xmm_xmmm128_imm8;
    op2_imm Sha1rnds4 M128: Sha1rnds4_xmm_xmmm128_imm8;
    op2_imm Aeskeygenassist M128: Aeskeygenassist_xmm_xmmm128_imm8;
    }
    mmx {
    op2 Punpcklbw M32: Punpcklbw_mm_mmm32;
    op2 Punpcklwd M32: Punpcklwd_mm_mmm32;
    op2 Punpckldq M32: Punpckldq_mm_mmm32;
    op2 Packsswb M64: Packsswb_mm_mmm64;
    op2 Pcmpgtb M64: Pcmpgtb_mm_mmm64;
    op2 Pcmpgtw M64: Pcmpgtw_mm_mmm64;
    op2 Pcmpgtd M64: Pcmpgtd_mm_mmm64;
    op2 Packuswb M64: Packuswb_mm_mmm64;
    op2 Punpckhbw M64: Punpckhbw_mm_mmm64;
    op2 Punpckhwd M64: Punpckhwd_mm_mmm64;
    op2 Punpckhdq M64: Punpckhdq_mm_mmm64;
    op2 Packssdw M64: Packssdw_mm_mmm64;
    op2_imm Pshufw M64: Pshufw_mm_mmm64_imm8;
    shift_i Psrlw M64: Psrlw_mm_imm8;
    shift_i Psraw M64: Psraw_mm_imm8;
    shift_i Psllw M64: Psllw_mm_imm8;
    shift_i Psrld M64: Psrld_mm_imm8;
    shift_i Psrad M64: Psrad_mm_imm8;
    shift_i Pslld M64: Pslld_mm_imm8;
    shift_i Psrlq M64: Psrlq_mm_imm8;
    shift_i Psllq M64: Psllq_mm_imm8;
    op2 Pcmpeqb M64: Pcmpeqb_mm_mmm64;
    op2 Pcmpeqw M64: Pcmpeqw_mm_mmm64;
    op2 Pcmpeqd M64: Pcmpeqd_mm_mmm64;
    shift_r Psrlw M64: Psrlw_mm_mmm64;
    shift_r Psrld M64: Psrld_mm_mmm64;
    shift_r Psrlq M64: Psrlq_mm_mmm64;
    op2 Paddq M64: Paddq_mm_mmm64;
    op2 Pmullw M64: Pmullw_mm_mmm64;
    op2 Psubusb M64: Psubusb_mm_mmm64;
    op2 Psubusw M64: Psubusw_mm_mmm64;
    op2 Pminub M64: Pminub_mm_mmm64;
    op2 Pand M64: Pand_mm_mmm64;
    op2 Paddusb M64: Paddusb_mm_mmm64;
    op2 Paddusw M64: Paddusw_mm_mmm64;
    op2 Pmaxub M64: Pmaxub_mm_mmm64;
    op2 Pandn M64: Pandn_mm_mmm64;
    op2 Pavgb M64: Pavgb_mm_mmm64;
    shift_r Psraw M64: Psraw_mm_mmm64;
    shift_r Psrad M64: Psrad_mm_mmm64;
    op2 Pavgw M64: Pavgw_mm_mmm64;
    op2 Pmulhuw M64: Pmulhuw_mm_mmm64;
    op2 Pmulhw M64: Pmulhw_mm_mmm64;
    op2 Psubsb M64: Psubsb_mm_mmm64;
    op2 Psubsw M64: Psubsw_mm_mmm64;
    op2 Pminsw M64: Pminsw_mm_mmm64;
    op2 Por M64: Por_mm_mmm64;
    op2 Paddsb M64: Paddsb_mm_mmm64;
    op2 Paddsw M64: Paddsw_mm_mmm64;
    op2 Pmaxsw M64: Pmaxsw_mm_mmm64;
    op2 Pxor M64: Pxor_mm_mmm64;
    shift_r Psllw M64: Psllw_mm_mmm64;
    shift_r Pslld M64: Pslld_mm_mmm64;
    shift_r Psllq M64: Psllq_mm_mmm64;
    op2 Pmuludq M64: Pmuludq_mm_mmm64;
    op2 Pmaddwd M64: Pmaddwd_mm_mmm64;
    op2 Psadbw M64: Psadbw_mm_mmm64;
    op2 Psubb M64: Psubb_mm_mmm64;
    op2 Psubw M64: Psubw_mm_mmm64;
    op2 Psubd M64: Psubd_mm_mmm64;
    op2 Psubq M64: Psubq_mm_mmm64;
    op2 Paddb M64: Paddb_mm_mmm64;
    op2 Paddw M64: Paddw_mm_mmm64;
    op2 Paddd M64: Paddd_mm_mmm64;
    op2 Pshufb M64: Pshufb_mm_mmm64;
    op2 Phaddw M64: Phaddw_mm_mmm64;
    op2 Phaddd M64: Phaddd_mm_mmm64;
    op2 Phaddsw M64: Phaddsw_mm_mmm64;
    op2 Pmaddubsw M64: Pmaddubsw_mm_mmm64;
    op2 Phsubw M64: Phsubw_mm_mmm64;
    op2 Phsubd M64: Phsubd_mm_mmm64;
    op2 Phsubsw M64: Phsubsw_mm_mmm64;
    op2 Psignb M64: Psignb_mm_mmm64;
    op2 Psignw M64: Psignw_mm_mmm64;
    op2 Psignd M64: Psignd_mm_mmm64;
    op2 Pmulhrsw M64: Pmulhrsw_mm_mmm64;
    op2 Pabsb M64: Pabsb_mm_mmm64;
    op2 Pabsw M64: Pabsw_mm_mmm64;
    op2 Pabsd M64: Pabsd_mm_mmm64;
    op2_imm Palignr M64: Palignr_mm_mmm64_imm8;
    }
}
