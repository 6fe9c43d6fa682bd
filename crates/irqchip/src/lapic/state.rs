//! Saved state.

use serde::{Deserialize, Serialize};
use trapline_device::RestoreError;

use super::regs::DIVIDE_WRITABLE;
use super::timer::{Run, Time};
use super::{LocalApic, base, svr};

/// Saved state of a [`LocalApic`]: all of it. What the timer has left is relative to the moment of saving; a TSC
/// deadline is absolute, as the TSC is saved with the processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState(LocalApic);

impl LocalApic {
    /// Takes the state. Not `SaveRestore`: a local APIC has no clock of its own, so the time is
    /// handed in.
    pub fn save(&self, time: Time) -> LapicState {
        // All of it: a new field does not compile until somebody has decided on it.
        let Self {
            id: _,
            xapic_id: _,
            base: _,
            tpr: _,
            ldr: _,
            dfr: _,
            svr: _,
            isr: _,
            tmr: _,
            irr: _,
            esr: _,
            esr_pending: _,
            icr: _,
            lvt: _,
            timer: _,
            lint: _,
        } = self;
        let mut apic = self.clone();
        if let Run::Counting(expiry) = &mut apic.timer.run {
            *expiry = expiry.saturating_sub(time.ns);
        }
        LapicState(apic)
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// When the state is another local APIC's, or one that none can be in.
    pub fn restore(&mut self, state: LapicState, time: Time) -> Result<(), RestoreError> {
        let LapicState(mut apic) = state;
        if let Some(what) = apic.invalid(self.id) {
            return Err(RestoreError { device: "lapic", what });
        }
        if let Run::Counting(expiry) = &mut apic.timer.run {
            *expiry = expiry.saturating_add(time.ns);
        }
        *self = apic;
        Ok(())
    }

    /// Why the local APIC with this ID cannot be in this state, if so.
    fn invalid(&self, id: u32) -> Option<String> {
        if self.id != id {
            return Some(format!("is that of APIC ID {}, not {id}", self.id));
        }
        if base::mode(self.base).is_none() {
            return Some(format!("IA32_APIC_BASE {:#x} has a mode that does not exist", self.base));
        }
        if self.svr & !svr::WRITABLE != 0 || self.timer.divide & !DIVIDE_WRITABLE != 0 {
            return Some(format!("SVR {:#x}, divide configuration {:#x}", self.svr, self.timer.divide));
        }
        if self.irr.has_illegal() || self.isr.has_illegal() {
            return Some("a vector below 16 is requested or in service".to_owned());
        }
        self.lvt.invalid().map(|(entry, value)| format!("LVT entry {entry:?} is {value:#x}"))
    }
}
