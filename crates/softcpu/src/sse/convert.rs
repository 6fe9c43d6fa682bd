//! Conversions between floating-point formats and integers.
//!
//! A floating-point number that has no integer of the wanted size becomes the integer indefinite, the most
//! negative one, and raises invalid.

use super::{FpOp2, Mm, Mxcsr, Op2, SimdException, Xmm, commit};
use crate::fpu::sse::{double, double_to_single, single, single_to_double};

macro_rules! conversions {
    ($($(#[$doc:meta])* $name:ident: |$dst:pat_param, $src:ident, $m:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl FpOp2 for $name {
            #[inline]
            fn op($dst: Xmm, $src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                commit(mxcsr, |$m| $value)
            }
        }
    )*};
}

conversions! {
    /// The low binary32 lane to binary64.
    Cvtss2sd: |dst, src, m| dst.with_low64(single_to_double(src.low32(), m));
    /// The low binary64 lane to binary32.
    Cvtsd2ss: |dst, src, m| dst.with_low32(double_to_single(src.low64(), m));
    /// The lower two binary32 lanes to binary64.
    Cvtps2pd: |_, src, m| {
        let s = src.u32s();
        Xmm::from([single_to_double(s[0], m), single_to_double(s[1], m)])
    };
    /// Two binary64 lanes to binary32; the upper half is zero.
    Cvtpd2ps: |_, src, m| {
        let s = src.u64s();
        Xmm::from([double_to_single(s[0], m), double_to_single(s[1], m), 0, 0])
    };
    /// Signed doublewords to binary32.
    Cvtdq2ps: |_, src, m| {
        let s = src.u32s();
        Xmm::from(std::array::from_fn(|i| single::from_int((s[i] as i32).into(), m)))
    };
    /// binary32 lanes to signed doublewords, rounding as MXCSR says.
    Cvtps2dq: |_, src, m| {
        let s = src.u32s();
        Xmm::from(std::array::from_fn(|i| single::to_int(s[i], 32, false, m) as u32))
    };
    /// binary32 lanes to signed doublewords, truncating.
    Cvttps2dq: |_, src, m| {
        let s = src.u32s();
        Xmm::from(std::array::from_fn(|i| single::to_int(s[i], 32, true, m) as u32))
    };
    /// binary64 lanes to signed doublewords, rounding as MXCSR says; the upper half is zero.
    Cvtpd2dq: |_, src, m| Xmm::from([doublewords(src, false, m), 0]);
    /// binary64 lanes to signed doublewords, truncating; the upper half is zero.
    Cvttpd2dq: |_, src, m| Xmm::from([doublewords(src, true, m), 0]);
}

/// Two binary64 lanes to two signed doublewords in one quadword.
#[inline(always)]
fn doublewords(src: Xmm, truncate: bool, m: &mut Mxcsr) -> u64 {
    let s = src.u64s();
    let low = double::to_int(s[0], 32, truncate, m) as u32;
    let high = double::to_int(s[1], 32, truncate, m) as u32;
    u64::from(low) | u64::from(high) << 32
}

/// The lower two signed doublewords to binary64, exactly.
#[derive(Clone, Copy, Debug)]
pub struct Cvtdq2pd;

impl Op2<Xmm> for Cvtdq2pd {
    #[inline(always)]
    fn op(_dst: Xmm, src: Xmm) -> Xmm {
        let s = src.u32s();
        Xmm::from([f64::from(s[0] as i32).to_bits(), f64::from(s[1] as i32).to_bits()])
    }
}

/// CVTPI2PD: signed doublewords of an MMX register to binary64, exactly.
#[inline(always)]
pub fn cvtpi2pd(src: Mm) -> Xmm {
    Cvtdq2pd::op(Xmm::default(), Xmm::from([src.get(), 0]))
}

/// CVTPI2PS: signed doublewords of an MMX register to the lower two binary32 lanes.
#[inline]
pub fn cvtpi2ps(dst: Xmm, src: Mm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
    let s = src.get();
    commit(mxcsr, |m| {
        let low = single::from_int((s as i32).into(), m);
        let high = single::from_int(((s >> 32) as i32).into(), m);
        dst.with_low64(u64::from(low) | u64::from(high) << 32)
    })
}

/// CVTPS2PI and CVTTPS2PI: the lower two binary32 lanes to signed doublewords.
#[inline]
pub fn cvtps2pi(src: Xmm, truncate: bool, mxcsr: &mut Mxcsr) -> Result<Mm, SimdException> {
    let s = src.u32s();
    commit(mxcsr, |m| {
        let low = single::to_int(s[0], 32, truncate, m) as u32;
        let high = single::to_int(s[1], 32, truncate, m) as u32;
        Mm::from([low, high])
    })
}

/// CVTPD2PI and CVTTPD2PI: two binary64 lanes to signed doublewords.
#[inline]
pub fn cvtpd2pi(src: Xmm, truncate: bool, mxcsr: &mut Mxcsr) -> Result<Mm, SimdException> {
    commit(mxcsr, |m| Mm::from(doublewords(src, truncate, m)))
}

/// CVTSI2SS: a signed integer, of 32 or 64 bits, to the low binary32 lane.
#[inline(always)]
pub fn cvtsi2ss(dst: Xmm, value: i64, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
    commit(mxcsr, |m| dst.with_low32(single::from_int(value, m)))
}

/// CVTSI2SD: a signed integer, of 32 or 64 bits, to the low binary64 lane.
#[inline(always)]
pub fn cvtsi2sd(dst: Xmm, value: i64, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
    commit(mxcsr, |m| dst.with_low64(double::from_int(value, m)))
}

/// CVTSS2SI and CVTTSS2SI: the low binary32 lane to a signed integer of `bits` (32 or 64), sign-extended.
#[inline(always)]
pub fn cvtss2si(src: Xmm, bits: u32, truncate: bool, mxcsr: &mut Mxcsr) -> Result<i64, SimdException> {
    commit(mxcsr, |m| single::to_int(src.low32(), bits, truncate, m))
}

/// CVTSD2SI and CVTTSD2SI: the low binary64 lane to a signed integer of `bits` (32 or 64), sign-extended.
#[inline(always)]
pub fn cvtsd2si(src: Xmm, bits: u32, truncate: bool, mxcsr: &mut Mxcsr) -> Result<i64, SimdException> {
    commit(mxcsr, |m| double::to_int(src.low64(), bits, truncate, m))
}
