//! Interprocessor interrupts: the interrupt command register (SDM vol. 3 §11.6, §11.12.9).

use super::{Effect, LocalApic, error};
use crate::message::{ApicAddress, ApicMode, BROADCAST, DeliveryMode, DestinationMode};

/// Whom an IPI is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpiTarget {
    /// Those that the destination names.
    Destination(u32, DestinationMode),
    /// The sender.
    Myself,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

/// An IPI to send. All are edges: INIT level de-assert, the one that is none, does nothing on
/// processors since the Pentium 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// Whom it is for.
    pub target: IpiTarget,
    /// What it does; with [`DeliveryMode::LowestPriority`] one of those that it reaches is chosen
    /// with [`lowest_priority`](crate::message::lowest_priority).
    pub delivery: DeliveryMode,
    /// The vector.
    pub vector: u8,
}

impl Ipi {
    /// Whether the IPI reaches a local APIC, which is the sender or another.
    pub fn reaches(&self, address: &ApicAddress, is_sender: bool) -> bool {
        let named = match self.target {
            IpiTarget::Destination(destination, mode) => address.matches(destination, mode),
            IpiTarget::Myself => is_sender,
            IpiTarget::All => true,
            IpiTarget::Others => !is_sender,
        };
        named && address.accepts(self.delivery)
    }
}

impl LocalApic {
    /// Writes ICR as a whole: sends.
    pub(super) fn write_icr(&mut self, value: u64) -> Option<Effect> {
        // Delivery is immediate: the status bit always reads idle.
        self.icr = value & !(1 << 12);
        let low = value as u32;
        let delivery = DeliveryMode::from_bits(low >> 8)?;
        let vector = low as u8;
        let (level, assert) = (low & 1 << 15 != 0, low & 1 << 14 != 0);
        if delivery == DeliveryMode::ExtInt || delivery == DeliveryMode::Init && level && !assert {
            return None;
        }
        if delivery.has_vector() && vector < 16 {
            self.raise_error(error::SEND_ILLEGAL_VECTOR);
            return None;
        }
        let logical = low & 1 << 11 != 0;
        let mode = if logical { DestinationMode::Logical } else { DestinationMode::Physical };
        let target = match low >> 18 & 3 {
            0 => IpiTarget::Destination(self.icr_destination(), mode),
            1 => IpiTarget::Myself,
            2 => IpiTarget::All,
            _ => IpiTarget::Others,
        };
        Some(Effect::Ipi(Ipi { target, delivery, vector }))
    }

    fn icr_destination(&self) -> u32 {
        if self.mode() == ApicMode::X2Apic {
            return (self.icr >> 32) as u32;
        }
        match (self.icr >> 56) as u32 {
            0xff => BROADCAST,
            destination => destination,
        }
    }
}
