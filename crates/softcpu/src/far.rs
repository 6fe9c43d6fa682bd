//! Far transfers: JMP, CALL, RET and IRET between segments, call gates, task switches.

use crate::cpu::{Cpu, Event, Stop};

impl Cpu {
    /// An interrupt through a task gate.
    pub(crate) fn enter_task(&mut self, selector: u16, event: &Event) -> Result<(), Stop> {
        let _ = (selector, event);
        Err(self.ud())
    }
}
