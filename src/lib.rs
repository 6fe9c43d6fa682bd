//! Trapline: reusable VMM crates in Rust. This package re-exports them all.
#![forbid(unsafe_code)]

pub use trapline_boot as boot;
pub use trapline_chipset as chipset;
pub use trapline_device as device;
pub use trapline_irqchip as irqchip;
pub use trapline_machine as machine;
pub use trapline_memory as memory;
pub use trapline_softcpu as softcpu;
pub use trapline_vcpu as vcpu;
pub use trapline_vmx as vmx;

pub use kvm_bindings;
pub use vm_memory;
