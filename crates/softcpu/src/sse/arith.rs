//! Packed integer arithmetic, comparison and logic.

use super::lanes::whole;
use super::{Lanes, Mm, Op2, Xmm};

/// One operation a line: its lanes, and what becomes of a pair of them.
macro_rules! lanewise {
    ($($(#[$doc:meta])* $name:ident: $t:ty, |$a:ident, $b:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl<V: Lanes<$t>> Op2<V> for $name {
            #[inline(always)]
            fn op(dst: V, src: V) -> V {
                dst.zip(src, |$a: $t, $b: $t| $value)
            }
        }
    )*};
}

lanewise! {
    /// Adds bytes.
    Paddb: u8, |a, b| a.wrapping_add(b);
    /// Adds words.
    Paddw: u16, |a, b| a.wrapping_add(b);
    /// Adds doublewords.
    Paddd: u32, |a, b| a.wrapping_add(b);
    /// Adds quadwords.
    Paddq: u64, |a, b| a.wrapping_add(b);
    /// Adds signed bytes, saturating.
    Paddsb: i8, |a, b| a.saturating_add(b);
    /// Adds signed words, saturating.
    Paddsw: i16, |a, b| a.saturating_add(b);
    /// Adds unsigned bytes, saturating.
    Paddusb: u8, |a, b| a.saturating_add(b);
    /// Adds unsigned words, saturating.
    Paddusw: u16, |a, b| a.saturating_add(b);
    /// Subtracts bytes.
    Psubb: u8, |a, b| a.wrapping_sub(b);
    /// Subtracts words.
    Psubw: u16, |a, b| a.wrapping_sub(b);
    /// Subtracts doublewords.
    Psubd: u32, |a, b| a.wrapping_sub(b);
    /// Subtracts quadwords.
    Psubq: u64, |a, b| a.wrapping_sub(b);
    /// Subtracts signed bytes, saturating.
    Psubsb: i8, |a, b| a.saturating_sub(b);
    /// Subtracts signed words, saturating.
    Psubsw: i16, |a, b| a.saturating_sub(b);
    /// Subtracts unsigned bytes, saturating.
    Psubusb: u8, |a, b| a.saturating_sub(b);
    /// Subtracts unsigned words, saturating.
    Psubusw: u16, |a, b| a.saturating_sub(b);

    /// Low half of the product of words.
    Pmullw: i16, |a, b| a.wrapping_mul(b);
    /// High half of the product of signed words.
    Pmulhw: i16, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    /// High half of the product of unsigned words.
    Pmulhuw: u16, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16;
    /// High half of the product of signed words, rounded and scaled.
    Pmulhrsw: i16, |a, b| ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16;
    /// Low half of the product of doublewords.
    Pmulld: u32, |a, b| a.wrapping_mul(b);
    /// Product of the low unsigned doublewords of each quadword.
    Pmuludq: u64, |a, b| u64::from(a as u32) * u64::from(b as u32);
    /// Product of the low signed doublewords of each quadword.
    Pmuldq: i64, |a, b| i64::from(a as i32) * i64::from(b as i32);

    /// Average of unsigned bytes, rounded up.
    Pavgb: u8, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8;
    /// Average of unsigned words, rounded up.
    Pavgw: u16, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16;
    /// Lesser of unsigned bytes.
    Pminub: u8, |a, b| a.min(b);
    /// Lesser of signed bytes.
    Pminsb: i8, |a, b| a.min(b);
    /// Lesser of unsigned words.
    Pminuw: u16, |a, b| a.min(b);
    /// Lesser of signed words.
    Pminsw: i16, |a, b| a.min(b);
    /// Lesser of unsigned doublewords.
    Pminud: u32, |a, b| a.min(b);
    /// Lesser of signed doublewords.
    Pminsd: i32, |a, b| a.min(b);
    /// Greater of unsigned bytes.
    Pmaxub: u8, |a, b| a.max(b);
    /// Greater of signed bytes.
    Pmaxsb: i8, |a, b| a.max(b);
    /// Greater of unsigned words.
    Pmaxuw: u16, |a, b| a.max(b);
    /// Greater of signed words.
    Pmaxsw: i16, |a, b| a.max(b);
    /// Greater of unsigned doublewords.
    Pmaxud: u32, |a, b| a.max(b);
    /// Greater of signed doublewords.
    Pmaxsd: i32, |a, b| a.max(b);

    /// All ones where bytes are equal.
    Pcmpeqb: u8, |a, b| if a == b { !0 } else { 0 };
    /// All ones where words are equal.
    Pcmpeqw: u16, |a, b| if a == b { !0 } else { 0 };
    /// All ones where doublewords are equal.
    Pcmpeqd: u32, |a, b| if a == b { !0 } else { 0 };
    /// All ones where quadwords are equal.
    Pcmpeqq: u64, |a, b| if a == b { !0 } else { 0 };
    /// All ones where the signed destination byte is greater.
    Pcmpgtb: i8, |a, b| if a > b { !0 } else { 0 };
    /// All ones where the signed destination word is greater.
    Pcmpgtw: i16, |a, b| if a > b { !0 } else { 0 };
    /// All ones where the signed destination doubleword is greater.
    Pcmpgtd: i32, |a, b| if a > b { !0 } else { 0 };
    /// All ones where the signed destination quadword is greater.
    Pcmpgtq: i64, |a, b| if a > b { !0 } else { 0 };

    /// Bitwise AND; also ANDPS and ANDPD.
    Pand: u64, |a, b| a & b;
    /// Bitwise AND of the inverted destination; also ANDNPS and ANDNPD.
    Pandn: u64, |a, b| !a & b;
    /// Bitwise OR; also ORPS and ORPD.
    Por: u64, |a, b| a | b;
    /// Bitwise exclusive OR; also XORPS and XORPD.
    Pxor: u64, |a, b| a ^ b;

    /// Absolute value of the source's bytes.
    Pabsb: i8, |_a, b| b.wrapping_abs();
    /// Absolute value of the source's words.
    Pabsw: i16, |_a, b| b.wrapping_abs();
    /// Absolute value of the source's doublewords.
    Pabsd: i32, |_a, b| b.wrapping_abs();
    /// Destination bytes with the signs of the source's applied; zero where the source is.
    Psignb: i8, |a, b| a.wrapping_mul(b.signum());
    /// Destination words with the signs of the source's applied.
    Psignw: i16, |a, b| a.wrapping_mul(b.signum());
    /// Destination doublewords with the signs of the source's applied.
    Psignd: i32, |a, b| a.wrapping_mul(b.signum());
}

/// Multiplies signed words, and adds the products pair by pair into doublewords.
#[derive(Clone, Copy, Debug)]
pub struct Pmaddwd;

impl<V: Lanes<i32>> Op2<V> for Pmaddwd {
    #[inline(always)]
    fn op(dst: V, src: V) -> V {
        // Halves are cut out of the doublewords: this form vectorizes.
        let product = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16);
        dst.zip(src, |a, b| product(a, b).wrapping_add(product(a >> 16, b >> 16)))
    }
}

/// Multiplies unsigned destination bytes with signed source bytes, and adds the products pair by pair
/// into words, saturating.
#[derive(Clone, Copy, Debug)]
pub struct Pmaddubsw;

impl<V: Lanes<i16>> Op2<V> for Pmaddubsw {
    #[inline(always)]
    fn op(dst: V, src: V) -> V {
        let product = |a: i16, b: i16| i16::from(a as u8) * i16::from(b as i8);
        dst.zip(src, |a, b| product(a, b).saturating_add(product((a >> 8) & 0xff, b >> 8)))
    }
}

/// Sum of absolute differences of eight unsigned bytes, for each quadword.
#[derive(Clone, Copy, Debug)]
pub struct Psadbw;

impl<V: Lanes<u8> + Lanes<u64>> Op2<V> for Psadbw {
    #[inline(always)]
    fn op(dst: V, src: V) -> V {
        let differences: V = dst.zip(src, |a: u8, b: u8| a.abs_diff(b));
        // Pairs, then pairs of pairs: the sum of eight bytes fits 16 bits.
        whole(differences).map(|d: u64| {
            let pairs = (d & 0x00ff_00ff_00ff_00ff) + ((d >> 8) & 0x00ff_00ff_00ff_00ff);
            pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48
        })
    }
}

/// Horizontal operations: neighbours of the destination into the lower half, of the source into the upper.
macro_rules! horizontal {
    ($($(#[$doc:meta])* $name:ident: $t:ty, |$a:ident, $b:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl<V: Lanes<$t>> Op2<V> for $name {
            #[inline(always)]
            fn op(dst: V, src: V) -> V {
                let (low, high) = (dst.lanes(), src.lanes());
                V::build(|i| {
                    let pair = (2 * i) % V::LEN;
                    let half = if i < V::LEN / 2 { &low } else { &high };
                    let ($a, $b): ($t, $t) = (half[pair], half[pair + 1]);
                    $value
                })
            }
        }
    )*};
}

horizontal! {
    /// Adds neighbouring words.
    Phaddw: i16, |a, b| a.wrapping_add(b);
    /// Adds neighbouring doublewords.
    Phaddd: i32, |a, b| a.wrapping_add(b);
    /// Adds neighbouring signed words, saturating.
    Phaddsw: i16, |a, b| a.saturating_add(b);
    /// Subtracts the upper of neighbouring words from the lower.
    Phsubw: i16, |a, b| a.wrapping_sub(b);
    /// Subtracts the upper of neighbouring doublewords from the lower.
    Phsubd: i32, |a, b| a.wrapping_sub(b);
    /// Subtracts the upper of neighbouring signed words from the lower, saturating.
    Phsubsw: i16, |a, b| a.saturating_sub(b);
}

/// The least unsigned word of the source in word 0 and its index in word 1; the rest is zero.
#[derive(Clone, Copy, Debug)]
pub struct Phminposuw;

impl Op2<Xmm> for Phminposuw {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm) -> Xmm {
        let words = <Xmm as Lanes<u16>>::lanes(src);
        // The index below the value: the least key is the least value's first place.
        let key = (0..8).map(|i| u32::from(words[i]) << 16 | i as u32).min().unwrap_or(0);
        Xmm::from([key.rotate_left(16), 0, 0, 0])
    }
}

/// PTEST: `(ZF, CF)`: whether `dst AND src` is zero, and `NOT dst AND src`.
#[inline(always)]
pub fn ptest(dst: Xmm, src: Xmm) -> (bool, bool) {
    let (d, s) = (dst.u64s(), src.u64s());
    ((d[0] & s[0]) | (d[1] & s[1]) == 0, (!d[0] & s[0]) | (!d[1] & s[1]) == 0)
}

/// PMOVMSKB: the top bits of the bytes.
#[inline(always)]
pub fn pmovmskb(src: Xmm) -> u32 {
    let [low, high] = src.u64s();
    byte_signs(low) | byte_signs(high) << 8
}

/// PMOVMSKB of an MMX register.
#[inline(always)]
pub fn pmovmskb_mm(src: Mm) -> u32 {
    byte_signs(src.get())
}

/// Gathers the top bit of each of eight bytes by one multiplication.
#[inline(always)]
fn byte_signs(x: u64) -> u32 {
    ((((x >> 7) & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080)) >> 56) as u32
}

/// MOVMSKPS: the signs of the four lanes.
#[inline(always)]
pub fn movmskps(src: Xmm) -> u32 {
    let s = src.u32s();
    s[0] >> 31 | s[1] >> 31 << 1 | s[2] >> 31 << 2 | s[3] >> 31 << 3
}

/// MOVMSKPD: the signs of the two lanes.
#[inline(always)]
pub fn movmskpd(src: Xmm) -> u32 {
    let [low, high] = src.u64s();
    (low >> 63 | high >> 63 << 1) as u32
}
