//! The KVM engine.
//!
//! 8259A, IOAPIC and 8254 stay outside (`KVM_CAP_SPLIT_IRQCHIP`). The four pages from guest-physical
//! `0xfeff_c000` are the kernel's, for processors that cannot run real mode natively.
//!
//! Instructions that the kernel's emulator does not know are executed by `softcpu` ([`assist`]).

mod assist;
mod irq;
mod kick;
mod memory;
mod run;
mod sys;
mod vcpu;
mod vm;

pub(crate) use vm::KvmVm;
