//! VMX operation.

pub(crate) mod reason;

use crate::cpu::{Cpu, Event, ExitInfo};

/// State of VMX operation.
#[derive(Debug, Default)]
pub struct Vmx {}

impl Vmx {
    /// The EPT pointer, in non-root operation with EPT on.
    pub fn eptp(&self) -> Option<u64> {
        None
    }
    /// Whether something must be looked at on every instruction boundary.
    #[inline(always)]
    pub fn watches(&self) -> bool {
        false
    }
}

impl Cpu {
    /// The VM exit that an event causes instead of being delivered (exception bitmap, NMI exiting).
    pub(crate) fn intercept_event(&mut self, event: &Event) -> Option<ExitInfo> {
        let _ = event;
        None
    }

    /// NMIs, interrupts, windows and timers that are due before the next instruction.
    pub(crate) fn asynchronous(&mut self) -> Option<ExitInfo> {
        None
    }
}
