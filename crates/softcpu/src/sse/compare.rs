//! Floating-point comparison.

use super::{Compare, FpOp2Imm, Mxcsr, SimdException, Xmm, commit};
use crate::fpu::sse::{double, single};

#[inline(always)]
fn mask32(predicate: u8, a: u32, b: u32, m: &mut Mxcsr) -> u32 {
    if single::predicate(a, b, predicate, m) { !0 } else { 0 }
}

#[inline(always)]
fn mask64(predicate: u8, a: u64, b: u64, m: &mut Mxcsr) -> u64 {
    if double::predicate(a, b, predicate, m) { !0 } else { 0 }
}

/// All ones where a predicate holds; four binary32 lanes.
#[derive(Clone, Copy, Debug)]
pub struct Cmpps;

impl FpOp2Imm for Cmpps {
    #[inline]
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        let (d, s) = (dst.u32s(), src.u32s());
        commit(mxcsr, |m| Xmm::from(std::array::from_fn(|i| mask32(imm, d[i], s[i], m))))
    }
}

/// All ones where a predicate holds; two binary64 lanes.
#[derive(Clone, Copy, Debug)]
pub struct Cmppd;

impl FpOp2Imm for Cmppd {
    #[inline]
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        let (d, s) = (dst.u64s(), src.u64s());
        commit(mxcsr, |m| Xmm::from([mask64(imm, d[0], s[0], m), mask64(imm, d[1], s[1], m)]))
    }
}

/// All ones if a predicate holds; the low binary32 lane.
#[derive(Clone, Copy, Debug)]
pub struct Cmpss;

impl FpOp2Imm for Cmpss {
    #[inline]
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        commit(mxcsr, |m| dst.with_low32(mask32(imm, dst.low32(), src.low32(), m)))
    }
}

/// All ones if a predicate holds; the low binary64 lane.
#[derive(Clone, Copy, Debug)]
pub struct Cmpsd;

impl FpOp2Imm for Cmpsd {
    #[inline]
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        commit(mxcsr, |m| dst.with_low64(mask64(imm, dst.low64(), src.low64(), m)))
    }
}

/// UCOMISS (`signal` false) and COMISS (`signal` true: quiet NaNs are invalid too) of the low lanes. ZF, PF
/// and CF of the result: [`Compare::eflags`]; OF, SF and AF are cleared.
#[inline]
pub fn comiss(dst: Xmm, src: Xmm, signal: bool, mxcsr: &mut Mxcsr) -> Result<Compare, SimdException> {
    commit(mxcsr, |m| single::compare(dst.low32(), src.low32(), signal, m))
}

/// UCOMISD and COMISD: as [`comiss`].
#[inline]
pub fn comisd(dst: Xmm, src: Xmm, signal: bool, mxcsr: &mut Mxcsr) -> Result<Compare, SimdException> {
    commit(mxcsr, |m| double::compare(dst.low64(), src.low64(), signal, m))
}
