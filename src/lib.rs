//! Trapline: reusable VMM crates in Rust, with an x86-64 processor with VT-x in software.
//!
//! This package is a facade: it re-exports the crates, so that a program that uses several of them meets one
//! version of each. Each can be depended on alone, as `trapline-<name>`.
//!
//! | module | what it is |
//! |---|---|
//! | [`machine`] | boards, and the loop that runs a guest on them |
//! | [`boot`] | kernel loading, ACPI tables |
//! | [`vcpu`] | virtual machines and processors on either engine: KVM, or `soft` |
//! | [`softcpu`] | the processor in software |
//! | [`chipset`], [`irqchip`], [`ide`], [`display`] | the devices of a PC |
//! | [`pci`] | configuration space, BARs, capabilities, bridges |
//! | [`disk`] | disk images, cache modes, asynchronous I/O |
//! | [`device`] | what a device is: traits, buses, interrupt lines, clocks |
//! | [`memory`] | guest memory, EPT, page-table walkers, dirty tracking |
//! | [`vmx`] | the VMCS as data |
//!
//! [`vm_memory`] and [`kvm_bindings`] are re-exported too: their types are part of the crates' own interfaces.
//!
//! A kernel, with its console on standard output:
//!
//! ```no_run
//! use trapline::machine::{Microvm, MicrovmConfig};
//!
//! let mut config = MicrovmConfig::new("vmlinuz");
//! config.kernel.initrd = Some("initrd.gz".into());
//! config.kernel.cmdline = "console=ttyS0".into();
//! let outcome = Microvm::new(config)?.run()?;
//! eprintln!("{outcome}");
//! # Ok::<(), trapline::machine::Error>(())
//! ```
#![forbid(unsafe_code)]

pub use trapline_boot as boot;
pub use trapline_chipset as chipset;
pub use trapline_device as device;
pub use trapline_disk as disk;
pub use trapline_display as display;
pub use trapline_ide as ide;
pub use trapline_irqchip as irqchip;
pub use trapline_machine as machine;
pub use trapline_memory as memory;
pub use trapline_pci as pci;
pub use trapline_softcpu as softcpu;
pub use trapline_vcpu as vcpu;
pub use trapline_vmx as vmx;

pub use kvm_bindings;
pub use vm_memory;
