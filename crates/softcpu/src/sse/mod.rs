//! MMX and SSE: what the instructions compute, from MMX to SSE4.2, AES-NI, PCLMULQDQ and SHA.
//!
//! One type an operation, implementing a trait for its shape, so that the core can make a handler of each:
//!
//! | trait | shape |
//! |---|---|
//! | [`Op2`] | `dst = op(dst, src)`, on [`Xmm`], [`Mm`] or both |
//! | [`Op2Imm`] | the same with an immediate |
//! | [`Op3`] | the same with XMM0 as the third operand |
//! | [`Shift`] | every lane by one count, from a register or an immediate |
//! | [`FpOp2`], [`FpOp2Imm`] | floating point: flags into MXCSR, and [`SimdException`] if one is unmasked |
//!
//! Scalar operations take their operand in the low lane of `src` and keep the rest of `dst`. What has an
//! integer register or flags for its result is a plain function ([`pmovmskb`], [`ptest`], `comis`, …).
//!
//! The reference is the Intel SDM, volumes 1 (chapters 9 to 12) and 2. RCPPS, RSQRTPS and their scalar
//! forms are approximations, whose error the SDM bounds and whose bits no two processors agree on: here
//! they are the exact value rounded to twelve bits.
//!
//! Left out: VEX and EVEX encodings, SSE4a, 3DNow!.

mod aes;
mod arith;
mod clmul;
mod compare;
mod convert;
mod float;
mod lanes;
mod sha;
mod shift;
mod shuffle;
mod string;

#[cfg(all(test, target_arch = "x86_64", unix))]
pub(crate) mod tests;

pub use crate::fpu::{Compare, Mxcsr, SimdException};
pub use aes::*;
pub use arith::*;
pub use clmul::*;
pub use compare::*;
pub use convert::*;
pub use float::*;
pub use lanes::{Lanes, Mm, Xmm};
pub use sha::*;
pub use shift::*;
pub use shuffle::*;
pub use string::*;

/// An operation on two registers.
pub trait Op2<V> {
    /// What becomes of `dst`.
    fn op(dst: V, src: V) -> V;
}

/// An operation on two registers and an immediate.
pub trait Op2Imm<V> {
    /// What becomes of `dst`.
    fn op(dst: V, src: V, imm: u8) -> V;
}

/// An operation on two registers and XMM0.
pub trait Op3 {
    /// What becomes of `dst`.
    fn op(dst: Xmm, src: Xmm, xmm0: Xmm) -> Xmm;
}

/// A floating-point operation on two registers.
pub trait FpOp2 {
    /// What becomes of `dst`. Flags are added to `mxcsr`, also when an unmasked exception keeps `dst` as it
    /// was.
    fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException>;
}

/// A floating-point operation on two registers and an immediate.
pub trait FpOp2Imm {
    /// As [`FpOp2::op`].
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException>;
}

/// Runs an instruction's lanes, then settles what they raised (SDM volume 1, section 11.5): into `mxcsr`,
/// and whether that is an exception.
#[inline(always)]
fn commit<T>(mxcsr: &mut Mxcsr, lanes: impl FnOnce(&mut Mxcsr) -> T) -> Result<T, SimdException> {
    let value = lanes(mxcsr);
    mxcsr.commit()?;
    Ok(value)
}
