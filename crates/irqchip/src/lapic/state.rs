//! Saved state.

use serde::{Deserialize, Serialize};
use trapline_device::RestoreError;

use super::lvt::Lvt;
use super::regs::DIVIDE_WRITABLE;
use super::timer::{Run, Time, Timer};
use super::vectors::Vectors;
use super::{LocalApic, base, svr};

/// Saved state of a [`LocalApic`]. What the timer has left is relative to the moment of saving; a TSC
/// deadline is absolute, as the TSC is saved with the processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    id: u32,
    xapic_id: u8,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    esr: u32,
    esr_pending: u32,
    icr: u64,
    lvt: Lvt,
    timer: Timer,
    lint: [bool; 2],
}

impl LocalApic {
    /// Takes the state. Not `SaveRestore`: a local APIC has no clock of its own, so the time is
    /// handed in.
    pub fn save(&self, time: Time) -> LapicState {
        let Self {
            id,
            xapic_id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            mut timer,
            lint,
        } = self.clone();
        if let Run::Counting(expiry) = &mut timer.run {
            *expiry = expiry.saturating_sub(time.ns);
        }
        LapicState {
            id,
            xapic_id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            timer,
            lint,
        }
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// When the state is another local APIC's, or one that none can be in.
    pub fn restore(&mut self, state: LapicState, time: Time) -> Result<(), RestoreError> {
        if let Some(what) = state.invalid(self) {
            return Err(RestoreError { device: "lapic", what });
        }
        let LapicState {
            id,
            xapic_id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            mut timer,
            lint,
        } = state;
        if let Run::Counting(expiry) = &mut timer.run {
            *expiry = expiry.saturating_add(time.ns);
        }
        *self = Self {
            id,
            xapic_id,
            base,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            timer,
            lint,
        };
        Ok(())
    }
}

impl LapicState {
    fn invalid(&self, apic: &LocalApic) -> Option<String> {
        if self.id != apic.id {
            return Some(format!("is that of APIC ID {}, not {}", self.id, apic.id));
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
