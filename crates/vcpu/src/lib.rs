//! The vCPU and VM traits, and the engines behind them.
//!
//! [`Vm`] and [`Vcpu`] are what a board drives: memory slots, interrupts by message, exits by value,
//! state as KVM's structures. Two engines implement them: the kernel's KVM (`kvm`), and `softcpu` (`soft`),
//! the processor in software. A board is written once; [`choose`] picks the engine at run time. `softcpu` also
//! executes what KVM's instruction emulator does not know.
//!
//! The local APICs belong to the engine; 8259A, IOAPIC and 8254 belong to the board (KVM's split
//! irqchip). An interrupt of the IOAPIC is a message ([`Vm::signal_msi`]), one of the 8259A an
//! [`Entry::extint`].
//!
//! Left out: more than 255 vCPUs (32-bit x2APIC IDs), system management mode, AMX state (the CPUID
//! leaves are filtered), exits for unknown MSRs (the guest gets #GP), and the state of a guest's own guests
//! (`KVM_GET_NESTED_STATE`).
//!
//! ```
//! # use std::sync::Arc;
//! use trapline_vcpu::{Answer, Entry, Exit, Vcpu};
//!
//! /// Runs until the guest halts; every port reads as all-ones.
//! fn run(vcpu: &mut dyn Vcpu) -> trapline_vcpu::Result<()> {
//!     let mut entry = Entry::default();
//!     loop {
//!         let exit = vcpu.run(entry)?;
//!         entry = match exit {
//!             Exit::Halt | Exit::Shutdown => return Ok(()),
//!             Exit::PioRead { size, .. } | Exit::MmioRead { size, .. } => Answer::Value(size.ones()).into(),
//!             Exit::PioReadBlock { .. } => {
//!                 vcpu.io_data().fill(0xff);
//!                 Answer::Block.into()
//!             }
//!             _ => Entry::default(),
//!         };
//!     }
//! }
//! ```

mod accel;
pub mod cpuid;
mod error;
mod exit;
mod fpu;
mod gate;
mod icount;
mod kvm;
mod slots;
mod soft;
mod state;
mod vcpu;
mod vm;

pub use accel::{Accel, Choice, UnknownAccel, choose, create_vm};
pub use error::{Error, Result};
pub use exit::{Answer, Entry, Exit, ExitKind, ExitStats};
pub use icount::InstructionClock;
pub use state::VcpuState;
pub use trapline_softcpu::cpuid::{Model as CpuModel, ModelError as CpuModelError};
pub use vcpu::{Kicker, Vcpu};
pub use vm::{Engine, IOAPIC_PINS, IoEvent, IoEventAddress, IrqfdId, Paging, UnknownPaging, Vm, VmConfig};
