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
//! Where Intel and AMD processors differ, the SDM is followed. Transcendental instructions are
//! within one unit in the last place of the exact value (before the SDM's 66-bit pi is accounted
//! for), as the SDM promises, but are not bit for bit those of any one processor.
//!
//! Left out: fused multiply-add, binary16.

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
