//! Delivery of exceptions and interrupts.

use crate::cpu::{Cpu, Event, ExitInfo, Stop};
use crate::op::Op;

impl Cpu {
    /// Delivers an event through the IDT (SDM vol. 3 chapter 6), or says which VM exit it causes.
    pub(crate) fn deliver(&mut self, event: Event) -> Option<ExitInfo> {
        let _ = event;
        None
    }

    /// INT n in virtual-8086 mode with IOPL below 3: VME redirection, or #GP.
    pub(crate) fn int_v86(&mut self, _op: &Op, _vector: u8) -> Result<(), Stop> {
        Err(self.gp(0))
    }
}
