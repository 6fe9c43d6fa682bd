//! An x86-64 processor with VT-x, in software.

pub mod code;
pub mod cpu;
pub mod cpuid;
mod exc;
mod exec;
mod far;
pub mod flags;
pub mod fpu;
pub mod int;
mod lower;
pub mod mmu;
pub mod msr;
pub mod op;
mod ops;
mod seg;
mod shared;
pub mod sse;
pub mod vmx;

pub use cpu::Cpu;
pub use ops::fxsave::ImageError;
pub use shared::Shared;
