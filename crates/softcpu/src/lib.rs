//! An x86-64 processor with VT-x, in software.
//!
//! [`Cpu`] is one logical processor on an [`Arena`](trapline_memory::Arena) of host-physical memory. It
//! executes real, protected, virtual-8086, compatibility and 64-bit mode code (Intel SDM vol. 1–3), with
//! x87, MMX and SSE to SSE4.2, and it has VMX: a program in VMX root operation, which is the Rust program
//! that owns the `Cpu`, calls [`Cpu::vmxon`], [`Cpu::vmptrld`], [`Cpu::vmwrite`], [`Cpu::vmlaunch`] …
//! and gets VM exits, as a hypervisor does on hardware (vol. 3 chapters 24 to 31). What works is what
//! the CPU model ([`cpuid::Model`]) and the VMX capability MSRs say.
//!
//! # How it executes
//!
//! Instructions are decoded once (with iced-x86) into blocks of 32-byte operations ([`op`]), kept by
//! host-physical address and mode ([`code`]) and linked to each other; an operation's handler calls the
//! next one's as its last act. Blocks of 64-bit code that run often get host code on x86-64 hosts
//! ([`Cpu::translate_after`]). Memory goes through a software TLB ([`mmu`]); arithmetic flags are worked
//! out when somebody looks ([`flags`]). One word of [signals](cpu::Signals) is looked at between blocks.
//!
//! # What it leaves out
//!
//! AVX and everything else that needs VEX or EVEX (but for BMI), SMM, SGX, CET, Intel PT, performance counters,
//! 16-byte atomicity against other processes, caches (memory types have no effect), VMX instructions in
//! guests (#UD: nested virtualization is prepared by the stack of contexts, see [`vmx`]). What is not
//! implemented is not advertised and raises #UD.
//!
//! # Example
//!
//! Without VMX, a processor runs code until it halts:
//!
//! ```
//! use std::sync::Arc;
//! use trapline_memory::{Arena, ArenaOptions};
//! use trapline_softcpu::{Cpu, cpuid::Model};
//!
//! let arena = Arc::new(Arena::new(1 << 20, &ArenaOptions::default())?);
//! // mov ax, 6; mov cx, 7; mul cx; hlt
//! let program = [0xb8, 6, 0, 0xb9, 7, 0, 0xf7, 0xe1, 0xf4];
//! arena.write_bytes(0x1000, &program).expect("inside the arena");
//! let mut cpu = Cpu::new(arena, Arc::new(Model::default()));
//! cpu.seg[trapline_softcpu::cpu::seg::CS] = trapline_softcpu::cpu::Segment::real(0);
//! cpu.mode_changed();
//! cpu.rip = 0x1000;
//! cpu.run_for(1000);
//! assert_eq!(cpu.regs[0] & 0xffff, 42);
//! # Ok::<(), trapline_memory::ArenaError>(())
//! ```

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
mod native;
pub mod op;
mod ops;
mod seg;
mod shared;
pub mod sse;
pub mod vmx;

pub use cpu::Cpu;
pub use ops::fxsave::ImageError;
pub use shared::Shared;
