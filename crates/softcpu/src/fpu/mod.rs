//! Floating point: the x87 unit and the scalar operations that SSE is built from, in integer
//! arithmetic, with every IEEE and x86-specific detail of rounding, exceptions and NaNs.
//!
//! - [`X87`] is the whole x87 unit (Intel SDM volume 1, chapter 8): stack, control, status and tag
//!   words, one method an instruction, and the FSTENV, FSAVE and FXSAVE images. Memory operands
//!   come and go as values; the caller moves them.
//! - [`sse`] has the scalar operations of SSE and SSE2 (volume 1, chapters 10 and 11) on
//!   [`Mxcsr`], with the host's own arithmetic wherever it provably gives the same result and flags.
//! - [`ext`] computes on 80-bit numbers, [`soft`] on binary32 and binary64, [`convert`] moves
//!   between them and integers; [`Env`] says how they round and what they raised.
//!
//! Where Intel and AMD processors differ, the SDM is followed where it says. Transcendental instructions are
//! within one unit in the last place of the exact value (before the SDM's 66-bit pi is accounted
//! for), as the SDM promises, but are not bit for bit those of any one processor.
//!
//! Where the two vendors part: an unmasked invalid operation keeps FCOM and FCOMI from setting flags
//! (the SDM; AMD processors set them), FLD ST(i) of an empty register to a full stack is an underflow,
//! FCOMI and FCMOVcc leave C1 alone, and FFREE clears it (AMD; the SDM does not say).
//!
//! Left out: fused multiply-add, binary16.
//!
//! ```
//! use trapline_softcpu::fpu::{Arith, Constant, Flags, X87};
//!
//! let mut x87 = X87::default();
//! x87.fld_constant(Constant::One);
//! x87.arith_int(Arith::Div, 3);
//! assert_eq!(x87.fst_f64(), Some((1.0f64 / 3.0).to_bits()));
//! x87.pop();
//! // The division was inexact, which is masked.
//! assert_eq!(x87.status_word() & 0x3f, u16::from(Flags::PE));
//! assert!(!x87.pending_exception());
//! ```

pub mod convert;
mod env;
pub mod ext;
mod f80;
mod num;
mod poly;
pub mod soft;
pub mod sse;
mod transcendental;
mod wide;
mod x87;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

pub use env::{Compare, Env, Flags, Precision, Rounding};
pub use f80::F80;
pub use sse::{Mxcsr, SimdException};
pub use x87::{Arith, Constant, EnvForm, X87};
