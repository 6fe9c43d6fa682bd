//! What a VM exit reports: reason, qualification, interruption and instruction information (Intel SDM
//! vol. 3, 25.9 and 28.2).
//!
//! Every register here is a bit field with both directions: the processor builds it and takes
//! `into_bits()`, the hypervisor reads the VMCS and takes `from_bits(…)`. Any bits decode: a value that
//! the SDM reserves is `None` from the accessor that decodes it.

mod event;
mod instruction;
mod qualification;
mod reason;

pub use event::{InterruptionInfo, InterruptionType, vector};
pub use instruction::{
    AddressSize, DescriptorTableInstruction, InstructionInfo, MemoryOperand, SystemSegmentInstruction,
};
pub use qualification::{
    ApicAccess, ApicAccessKind, CrAccess, CrAccessKind, DebugException, EntryFailure, EptViolation, IoAccess,
    MovDr, TaskSwitch, TaskSwitchSource,
};
pub use reason::{BasicReason, ExitReason, VmInstructionError};
