//! The local vector table and the pins LINT0 and LINT1 (SDM vol. 3 §11.5.1).

use serde::{Deserialize, Serialize};

use super::{Delivered, LocalApic};
use crate::message::{ApicMode, DeliveryMode};

/// Entry bits.
pub(super) const MASKED: u32 = 1 << 16;
pub(super) const LEVEL: u32 = 1 << 15;
pub(super) const REMOTE_IRR: u32 = 1 << 14;
/// Writable bits: the vector and the mask; delivery mode; polarity and trigger mode; timer mode.
const VECTOR: u32 = MASKED | 0xff;
const DELIVERY: u32 = 0x700;
const PIN: u32 = 1 << 13 | LEVEL;
const TIMER_MODE: u32 = 3 << 17;

/// The entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LvtEntry {
    /// Corrected machine check.
    Cmci,
    /// Timer.
    Timer,
    /// Thermal sensor.
    Thermal,
    /// Performance-monitoring counter.
    Performance,
    /// Pin LINT0.
    Lint0,
    /// Pin LINT1.
    Lint1,
    /// Internal error.
    Error,
}

impl LvtEntry {
    pub(super) const ALL: [Self; 7] =
        [Self::Cmci, Self::Timer, Self::Thermal, Self::Performance, Self::Lint0, Self::Lint1, Self::Error];

    pub(super) const fn writable(self) -> u32 {
        match self {
            Self::Timer => VECTOR | TIMER_MODE,
            Self::Error => VECTOR,
            Self::Lint0 | Self::Lint1 => VECTOR | DELIVERY | PIN,
            Self::Cmci | Self::Thermal | Self::Performance => VECTOR | DELIVERY,
        }
    }
}

/// The table, in the order of [`LvtEntry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lvt([u32; 7]);

impl Default for Lvt {
    fn default() -> Self {
        Self([MASKED; 7])
    }
}

impl Lvt {
    pub fn get(&self, entry: LvtEntry) -> u32 {
        self.0.get(entry as usize).copied().unwrap_or(MASKED)
    }

    pub fn set(&mut self, entry: LvtEntry, value: u32) {
        if let Some(to) = self.0.get_mut(entry as usize) {
            *to = value;
        }
    }

    /// What software disabling does.
    pub fn mask_all(&mut self) {
        self.0.iter_mut().for_each(|entry| *entry |= MASKED);
    }

    pub fn virtual_wire(&mut self) {
        self.set(LvtEntry::Lint0, 0x700);
        self.set(LvtEntry::Lint1, 0x400);
    }

    /// An entry with bits that do not exist, if there is one.
    pub fn invalid(&self) -> Option<(LvtEntry, u32)> {
        let pin = |e| matches!(e, LvtEntry::Lint0 | LvtEntry::Lint1);
        LvtEntry::ALL
            .into_iter()
            .map(|entry| (entry, self.get(entry)))
            .find(|(e, value)| value & !(e.writable() | if pin(*e) { REMOTE_IRR } else { 0 }) != 0)
    }
}

impl LocalApic {
    /// Whether the 8259A's INTR at LINT0 interrupts this processor: LINT0 is unmasked in ExtINT
    /// mode, or the local APIC is disabled and the pin is INTR.
    pub fn accepts_extint(&self) -> bool {
        let entry = self.lvt.get(LvtEntry::Lint0);
        let extint = DeliveryMode::from_bits(entry >> 8) == Some(DeliveryMode::ExtInt);
        self.mode() == ApicMode::Disabled || extint && entry & MASKED == 0
    }

    /// INTR is asserted at LINT0 and interrupts this processor: it is to ask the 8259A for the vector
    /// once it takes interrupts.
    pub fn extint_pending(&self) -> bool {
        let [asserted, _] = self.lint;
        asserted && self.accepts_extint()
    }

    /// A local source other than timer, pins and errors asks for its interrupt: thermal sensor,
    /// performance counters (which masks itself, as the SDM has it), CMCI.
    pub fn raise(&mut self, entry: LvtEntry) -> Delivered {
        let value = self.lvt.get(entry);
        let delivered = self.deliver_local(value, false);
        if entry == LvtEntry::Performance {
            self.lvt.set(entry, value | MASKED);
        }
        delivered
    }

    /// Drives pin LINT0 (`pin` 0) or LINT1 (1). A disabled local APIC passes the pins through: LINT0
    /// is INTR, LINT1 is NMI.
    pub fn set_lint(&mut self, pin: u32, level: bool) -> Delivered {
        let entry = if pin == 0 { LvtEntry::Lint0 } else { LvtEntry::Lint1 };
        let Some(line) = self.lint.get_mut(pin as usize) else { return Delivered::Dropped };
        let rises = level && !*line;
        *line = level;
        if !rises {
            return Delivered::Dropped;
        }
        if self.mode() == ApicMode::Disabled {
            return if pin == 0 { Delivered::ExtInt } else { Delivered::Nmi };
        }
        self.deliver_pin(entry)
    }

    /// The interrupt of an asserted pin, if it is not masked and not in service already.
    fn deliver_pin(&mut self, entry: LvtEntry) -> Delivered {
        let value = self.lvt.get(entry);
        let fixed = DeliveryMode::from_bits(value >> 8) == Some(DeliveryMode::Fixed);
        // LINT1 has no level-triggered interrupts.
        let level = fixed && value & LEVEL != 0 && entry == LvtEntry::Lint0;
        if level && value & REMOTE_IRR != 0 {
            return Delivered::Dropped;
        }
        let delivered = self.deliver_local(value, level);
        if level && delivered == Delivered::Requested {
            self.lvt.set(entry, value | REMOTE_IRR);
        }
        delivered
    }

    pub(super) fn deliver_local(&mut self, entry: u32, level: bool) -> Delivered {
        let Some(mode) = DeliveryMode::from_bits(entry >> 8) else { return Delivered::Dropped };
        let refused = matches!(mode, DeliveryMode::LowestPriority | DeliveryMode::StartUp);
        if entry & MASKED != 0 || refused {
            return Delivered::Dropped;
        }
        self.deliver(mode, entry as u8, level)
    }

    /// The level-triggered interrupt of LINT0 was served: it comes again if the pin is still
    /// asserted.
    pub(super) fn end_lint(&mut self, vector: u8) {
        let value = self.lvt.get(LvtEntry::Lint0);
        if value & REMOTE_IRR != 0 && value as u8 == vector {
            self.lvt.set(LvtEntry::Lint0, value & !REMOTE_IRR);
            self.reassert_lint0();
        }
    }

    /// Requests LINT0's interrupt again where its level asks for it.
    pub(super) fn reassert_lint0(&mut self) {
        let value = self.lvt.get(LvtEntry::Lint0);
        let fixed = DeliveryMode::from_bits(value >> 8) == Some(DeliveryMode::Fixed);
        let [asserted, _] = self.lint;
        if asserted && fixed && value & LEVEL != 0 {
            // A fixed interrupt means nothing to the processor beyond its request.
            let _ = self.deliver_pin(LvtEntry::Lint0);
        }
    }
}
