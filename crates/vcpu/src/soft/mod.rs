//! The soft engine: to `softcpu` what a kernel's hypervisor is to a processor with VT-x.
//!
//! Each vCPU owns a processor in VMX root operation, with a VMXON region, a VMCS and an MSR bitmap in the
//! root area of the arena. [`Vcpu::run`](crate::Vcpu::run) writes what changed into the VMCS, enters with
//! VMLAUNCH or VMRESUME, and handles the VM exit or hands it up. All vCPUs share one EPT hierarchy with
//! accessed and dirty flags ([`memory`]).
//!
//! The guest owns what it can: its exceptions, CR0 and CR4 but for a few bits, most MSRs, debug registers.
//! I/O instructions, HLT, CPUID, memory without RAM and the local APIC's registers exit.
//!
//! What other threads want of a vCPU goes through its [`mailbox`]: the local APIC, pending NMI, INIT and
//! SIPI, the wait of a halted processor. [`irqfd`]s are watched by one thread a machine.
//!
//! Time: the time-stamp counter ticks at 1 GHz since the machine was made, and runs as
//! [`VmConfig::clock`](crate::VmConfig::clock) does if that is the host's clock. With
//! [`VmConfig::icount`](crate::VmConfig::icount) both are the instructions executed so far, and what HLT
//! has skipped.
//!
//! Left out: nested virtualization, system management mode, fetches from memory without RAM (an internal
//! error), INS to memory without RAM (the data is lost), dirty rings. Where RAM lies at the local APIC's
//! page, RAM wins.

mod assist;
mod control;
mod debug;
mod events;
mod exits;
mod io;
mod irqfd;
mod mailbox;
mod memory;
mod msr;
mod paging;
mod pv;
mod run;
mod setup;
mod state;
mod vcpu;
mod vm;

pub(crate) use assist::{Assistant, OneStep, Step, flushes_translations};
pub(crate) use irqfd::IoEvents;
pub(crate) use vm::SoftVm;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The data stays consistent at every step, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
