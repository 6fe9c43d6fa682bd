//! VMX operation, driven as root-mode software drives a processor: VMX instructions through the API, VMCS
//! fields, and guests assembled with iced-x86.

mod apic;
mod device;
mod entry;
mod ept;
mod events;
mod exits;
mod harness;
mod instructions;
mod random;
mod spaces;
mod timing;
