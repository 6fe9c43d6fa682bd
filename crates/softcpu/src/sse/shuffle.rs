//! Moving lanes about: unpack, pack, shuffle, blend, extend, insert and extract.

use super::lanes::whole;
use super::{Lanes, Mm, Op2, Op2Imm, Op3, Xmm};

macro_rules! unpack {
    ($($low:ident, $high:ident: $t:ty;)*) => {$(
        #[doc = concat!("Interleaves the lower halves, in `", stringify!($t), "` lanes.")]
        #[derive(Clone, Copy, Debug)]
        pub struct $low;

        impl<V: Lanes<$t>> Op2<V> for $low {
            #[inline(always)]
            fn op(dst: V, src: V) -> V {
                let (a, b) = (dst.lanes(), src.lanes());
                whole(V::build(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] }))
            }
        }

        #[doc = concat!("Interleaves the upper halves, in `", stringify!($t), "` lanes.")]
        #[derive(Clone, Copy, Debug)]
        pub struct $high;

        impl<V: Lanes<$t>> Op2<V> for $high {
            #[inline(always)]
            fn op(dst: V, src: V) -> V {
                let (a, b) = (dst.lanes(), src.lanes());
                let half = V::LEN / 2;
                V::build(|i| if i % 2 == 0 { a[half + i / 2] } else { b[half + i / 2] })
            }
        }
    )*};
}

unpack! {
    Punpcklbw, Punpckhbw: u8;
    Punpcklwd, Punpckhwd: u16;
    Punpckldq, Punpckhdq: u32;
}

/// Interleaves the lower quadwords; also UNPCKLPD and MOVLHPS.
#[derive(Clone, Copy, Debug)]
pub struct Punpcklqdq;

impl Op2<Xmm> for Punpcklqdq {
    #[inline(always)]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        Xmm::from([dst.u64s()[0], src.u64s()[0]])
    }
}

/// Interleaves the upper quadwords; also UNPCKHPD.
#[derive(Clone, Copy, Debug)]
pub struct Punpckhqdq;

impl Op2<Xmm> for Punpckhqdq {
    #[inline(always)]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        Xmm::from([dst.u64s()[1], src.u64s()[1]])
    }
}

macro_rules! pack {
    ($($(#[$doc:meta])* $name:ident: $from:ty, $to:ty, $lane:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl<V: Lanes<$from> + Lanes<$lane>> Op2<V> for $name {
            #[inline(always)]
            fn op(dst: V, src: V) -> V {
                let (a, b) = (<V as Lanes<$from>>::lanes(dst), <V as Lanes<$from>>::lanes(src));
                let half = <V as Lanes<$from>>::LEN;
                V::build(|i| {
                    let x = if i < half { a[i] } else { b[i - half] };
                    x.clamp(<$to>::MIN as $from, <$to>::MAX as $from) as $lane
                })
            }
        }
    )*};
}

pack! {
    /// Narrows signed words to signed bytes, saturating.
    Packsswb: i16, i8, i8;
    /// Narrows signed doublewords to signed words, saturating.
    Packssdw: i32, i16, i16;
    /// Narrows signed words to unsigned bytes, saturating.
    Packuswb: i16, u8, u8;
    /// Narrows signed doublewords to unsigned words, saturating.
    Packusdw: i32, u16, u16;
}

macro_rules! extend {
    ($($(#[$doc:meta])* $name:ident: $from:ty, $to:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Op2<Xmm> for $name {
            #[inline(always)]
            fn op(_dst: Xmm, src: Xmm) -> Xmm {
                let lanes = <Xmm as Lanes<$from>>::lanes(src);
                Xmm::build(|i| <$to>::from(lanes[i]))
            }
        }
    )*};
}

extend! {
    /// Sign-extends bytes to words.
    Pmovsxbw: i8, i16;
    /// Sign-extends bytes to doublewords.
    Pmovsxbd: i8, i32;
    /// Sign-extends bytes to quadwords.
    Pmovsxbq: i8, i64;
    /// Sign-extends words to doublewords.
    Pmovsxwd: i16, i32;
    /// Sign-extends words to quadwords.
    Pmovsxwq: i16, i64;
    /// Sign-extends doublewords to quadwords.
    Pmovsxdq: i32, i64;
    /// Zero-extends bytes to words.
    Pmovzxbw: u8, u16;
    /// Zero-extends bytes to doublewords.
    Pmovzxbd: u8, u32;
    /// Zero-extends bytes to quadwords.
    Pmovzxbq: u8, u64;
    /// Zero-extends words to doublewords.
    Pmovzxwd: u16, u32;
    /// Zero-extends words to quadwords.
    Pmovzxwq: u16, u64;
    /// Zero-extends doublewords to quadwords.
    Pmovzxdq: u32, u64;
}

/// The `i`th two-bit field of an immediate.
#[inline(always)]
fn field(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i)) & 3
}

/// Bytes of the destination chosen by the source; zero where its top bit is set.
#[derive(Clone, Copy, Debug)]
pub struct Pshufb;

impl<V: Lanes<u8> + Lanes<i8>> Op2<V> for Pshufb {
    #[inline(always)]
    fn op(dst: V, src: V) -> V {
        let (table, index) = (<V as Lanes<u8>>::lanes(dst), <V as Lanes<u8>>::lanes(src));
        let last = <V as Lanes<u8>>::LEN - 1;
        let chosen: V = V::build(|i| table[usize::from(index[i]) & last]);
        whole(chosen).zip(src, |c: i8, s: i8| c & !(s >> 7))
    }
}

/// Doublewords of the source chosen by the immediate.
#[derive(Clone, Copy, Debug)]
pub struct Pshufd;

impl Op2Imm<Xmm> for Pshufd {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let s = src.u32s();
        Xmm::build(|i| s[field(imm, i)])
    }
}

/// Words of the source's lower half chosen by the immediate.
#[derive(Clone, Copy, Debug)]
pub struct Pshuflw;

impl Op2Imm<Xmm> for Pshuflw {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let s = src.u64s();
        Xmm::from([shuffle_words(s[0], imm), s[1]])
    }
}

/// Words of the source's upper half chosen by the immediate.
#[derive(Clone, Copy, Debug)]
pub struct Pshufhw;

impl Op2Imm<Xmm> for Pshufhw {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let s = src.u64s();
        Xmm::from([s[0], shuffle_words(s[1], imm)])
    }
}

/// Words of the source chosen by the immediate (MMX).
#[derive(Clone, Copy, Debug)]
pub struct Pshufw;

impl Op2Imm<Mm> for Pshufw {
    #[inline(always)]
    fn op(_dst: Mm, src: Mm, imm: u8) -> Mm {
        Mm::from(shuffle_words(src.get(), imm))
    }
}

#[inline(always)]
fn shuffle_words(words: u64, imm: u8) -> u64 {
    (0..4).fold(0, |out, i| out | (words >> (16 * field(imm, i)) & 0xffff) << (16 * i))
}

/// Two doublewords of the destination, then two of the source.
#[derive(Clone, Copy, Debug)]
pub struct Shufps;

impl Op2Imm<Xmm> for Shufps {
    #[inline(always)]
    fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let (d, s) = (dst.u32s(), src.u32s());
        Xmm::from([d[field(imm, 0)], d[field(imm, 1)], s[field(imm, 2)], s[field(imm, 3)]])
    }
}

/// A quadword of the destination, then one of the source.
#[derive(Clone, Copy, Debug)]
pub struct Shufpd;

impl Op2Imm<Xmm> for Shufpd {
    #[inline(always)]
    fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        Xmm::from([dst.u64s()[usize::from(imm & 1)], src.u64s()[usize::from(imm >> 1 & 1)]])
    }
}

macro_rules! blend {
    ($($(#[$doc:meta])* $name:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Op2Imm<Xmm> for $name {
            #[inline(always)]
            fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
                let (d, s) = (<Xmm as Lanes<$t>>::lanes(dst), <Xmm as Lanes<$t>>::lanes(src));
                let imm = <$t>::from(imm);
                Xmm::build(|i| if imm & 1 << i != 0 { s[i] } else { d[i] })
            }
        }
    )*};
}

blend! {
    /// Words of the source where the immediate has ones.
    Pblendw: u16;
    /// Doublewords of the source where the immediate has ones.
    Blendps: u32;
    /// Quadwords of the source where the immediate has ones.
    Blendpd: u64;
}

macro_rules! blend_variable {
    ($($(#[$doc:meta])* $name:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Op3 for $name {
            #[inline(always)]
            fn op(dst: Xmm, src: Xmm, xmm0: Xmm) -> Xmm {
                let d = <Xmm as Lanes<$t>>::lanes(dst);
                let (s, m) = (<Xmm as Lanes<$t>>::lanes(src), <Xmm as Lanes<$t>>::lanes(xmm0));
                Xmm::build(|i| if m[i] < 0 { s[i] } else { d[i] })
            }
        }
    )*};
}

blend_variable! {
    /// Bytes of the source where XMM0's are negative.
    Pblendvb: i8;
    /// Doublewords of the source where XMM0's are negative.
    Blendvps: i32;
    /// Quadwords of the source where XMM0's are negative.
    Blendvpd: i64;
}

/// Sums of absolute differences of four bytes of the source with each of eight places of the destination.
#[derive(Clone, Copy, Debug)]
pub struct Mpsadbw;

impl Op2Imm<Xmm> for Mpsadbw {
    #[inline(always)]
    fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let block = usize::from(imm & 3) * 4;
        let from = usize::from(imm >> 2 & 1) * 4;
        Xmm::build(|i| (0..4).map(|j| u16::from(dst.0[from + i + j].abs_diff(src.0[block + j]))).sum::<u16>())
    }
}

/// INSERTPS from a register: a doubleword of the source into the destination, and zeros by mask.
///
/// The memory form takes its one doubleword whatever the source field says: load it, and clear
/// immediate bits 7:6.
#[derive(Clone, Copy, Debug)]
pub struct Insertps;

impl Op2Imm<Xmm> for Insertps {
    #[inline(always)]
    fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let mut d = dst.u32s();
        d[field(imm, 2)] = src.u32s()[field(imm, 3)];
        Xmm::build(|i| if imm >> i & 1 != 0 { 0 } else { d[i] })
    }
}

/// The source's even doublewords, each twice.
#[derive(Clone, Copy, Debug)]
pub struct Movsldup;

impl Op2<Xmm> for Movsldup {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm) -> Xmm {
        let s = src.u32s();
        Xmm::from([s[0], s[0], s[2], s[2]])
    }
}

/// The source's odd doublewords, each twice.
#[derive(Clone, Copy, Debug)]
pub struct Movshdup;

impl Op2<Xmm> for Movshdup {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm) -> Xmm {
        let s = src.u32s();
        Xmm::from([s[1], s[1], s[3], s[3]])
    }
}

/// The source's low quadword, twice.
#[derive(Clone, Copy, Debug)]
pub struct Movddup;

impl Op2<Xmm> for Movddup {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm) -> Xmm {
        Xmm::from([src.low64(), src.low64()])
    }
}

macro_rules! lane_access {
    ($($(#[$doc:meta])* $reg:ident, $t:ty, $insert:ident, $extract:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $insert(dst: $reg, lane: $t, imm: u8) -> $reg {
            let mut lanes = <$reg as Lanes<$t>>::lanes(dst);
            lanes[usize::from(imm) % <$reg as Lanes<$t>>::LEN] = lane;
            $reg::from(lanes)
        }

        /// The lane that the immediate chooses.
        #[inline(always)]
        pub fn $extract(src: $reg, imm: u8) -> $t {
            <$reg as Lanes<$t>>::lanes(src)[usize::from(imm) % <$reg as Lanes<$t>>::LEN]
        }
    )*};
}

lane_access! {
    /// Replaces a byte.
    Xmm, u8, pinsrb, pextrb;
    /// Replaces a word.
    Xmm, u16, pinsrw, pextrw;
    /// Replaces a doubleword. Its counterpart is also EXTRACTPS.
    Xmm, u32, pinsrd, pextrd;
    /// Replaces a quadword.
    Xmm, u64, pinsrq, pextrq;
    /// Replaces a word of an MMX register.
    Mm, u16, pinsrw_mm, pextrw_mm;
}

/// The byte enables of MASKMOVDQU and MASKMOVQ: a byte is stored where its mask byte's top bit is set.
#[inline(always)]
pub fn mask_bytes<const N: usize>(mask: [u8; N]) -> [bool; N] {
    mask.map(|m| m & 0x80 != 0)
}
