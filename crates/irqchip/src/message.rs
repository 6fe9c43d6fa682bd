//! Interrupt messages: what an MSI or a redirection entry says, and which local APICs it reaches
//! (Intel SDM vol. 3 §11.6.2 "Determining IPI Destination", §11.11 "Message Signalled Interrupts").

use serde::{Deserialize, Serialize};
use trapline_device::Msi;

/// The destination that every local APIC takes for its own. In messages with 8-bit destinations 0xff
/// stands for it.
pub const BROADCAST: u32 = u32::MAX;

/// What a message does to the processors that it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeliveryMode {
    /// The vector, at each processor addressed.
    Fixed,
    /// The vector, at the one of the processors addressed that has the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up; the vector is bits 19:12 of the address to start at. Only in IPIs.
    StartUp,
    /// As if the 8259A had raised INTR: the processor asks it for the vector.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the three-bit field; `None` for the reserved value 3.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// Whether the vector field is an interrupt vector.
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// How a destination names local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationMode {
    /// By APIC ID.
    Physical,
    /// By logical ID: a set of local APICs.
    Logical,
}

/// A decoded interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who is addressed; [`BROADCAST`] for all.
    pub destination: u32,
    /// How `destination` is to be read.
    pub mode: DestinationMode,
    /// What the message does.
    pub delivery: DeliveryMode,
    /// The vector.
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the I/O APICs.
    pub level: bool,
    /// The message goes to the one processor of lowest priority among those addressed: lowest
    /// priority delivery, or the redirection hint of the address.
    pub lowest_priority: bool,
}

impl Message {
    /// Decodes a message. Address bits 63:40 extend the destination to 32 bits, as KVM has it for
    /// x2APIC destinations. `None` where no local APIC would accept the write: an address outside
    /// 0xfee0_0000–0xfeef_ffff or a delivery mode that messages do not have.
    pub fn from_msi(msi: Msi) -> Option<Self> {
        if msi.address & 0xfff0_0000 != 0xfee0_0000 {
            return None;
        }
        let delivery = DeliveryMode::from_bits(msi.data >> 8)?;
        if delivery == DeliveryMode::StartUp {
            return None;
        }
        let low = (msi.address >> 12) as u32 & 0xff;
        let high = (msi.address >> 32) as u32 & 0xffff_ff00;
        let destination = if high == 0 && low == 0xff { BROADCAST } else { high | low };
        let logical = msi.address & 1 << 2 != 0;
        let hint = msi.address & 1 << 3 != 0;
        Some(Self {
            destination,
            mode: if logical { DestinationMode::Logical } else { DestinationMode::Physical },
            delivery,
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0 && delivery.has_vector(),
            lowest_priority: delivery == DeliveryMode::LowestPriority
                || hint && delivery == DeliveryMode::Fixed,
        })
    }
}

/// In which mode a local APIC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Off by `IA32_APIC_BASE`: nothing reaches it.
    Disabled,
    /// Registers in memory, 8-bit IDs.
    XApic,
    /// Registers in MSRs, 32-bit IDs.
    X2Apic,
}

/// All of a local APIC that decides what reaches it. Small and `Copy`, so that an engine can keep a
/// table of them beside the local APICs and match without locking any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicAddress {
    /// The mode it is in.
    pub mode: ApicMode,
    /// The APIC ID.
    pub id: u32,
    /// The logical ID: bits 31:24 of the LDR in xAPIC mode, all of it in x2APIC mode.
    pub logical_id: u32,
    /// DFR says cluster model (xAPIC mode only).
    pub cluster: bool,
    /// Enabled by SVR bit 8. Otherwise only NMI, SMI, INIT and start-up are accepted.
    pub software_enabled: bool,
}

impl ApicAddress {
    /// Whether `destination` names this local APIC.
    pub fn matches(&self, destination: u32, mode: DestinationMode) -> bool {
        match (self.mode, mode) {
            (ApicMode::Disabled, _) => false,
            (_, _) if destination == BROADCAST => true,
            (ApicMode::XApic, _) if destination == 0xff => true,
            (_, DestinationMode::Physical) => destination == self.id,
            (ApicMode::X2Apic, DestinationMode::Logical) => {
                destination >> 16 == self.logical_id >> 16 && destination & self.logical_id & 0xffff != 0
            }
            (ApicMode::XApic, DestinationMode::Logical) => self.matches_xapic_logical(destination),
        }
    }

    fn matches_xapic_logical(&self, destination: u32) -> bool {
        if destination > 0xff {
            return false;
        }
        if !self.cluster {
            return destination & self.logical_id != 0;
        }
        let cluster = destination >> 4;
        (cluster == 0xf || cluster == self.logical_id >> 4) && destination & self.logical_id & 0xf != 0
    }

    /// Whether a message with this delivery mode would be accepted once it has arrived.
    pub fn accepts(&self, delivery: DeliveryMode) -> bool {
        let always =
            !matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::ExtInt);
        self.mode != ApicMode::Disabled && (self.software_enabled || always)
    }
}

/// Chooses the receiver of a lowest-priority message among `(candidate, priority)` pairs, the
/// priority as [`LocalApic::arbitration_priority`](crate::lapic::LocalApic::arbitration_priority)
/// tells it. Of equals the first is taken.
pub fn lowest_priority<T>(candidates: impl IntoIterator<Item = (T, u8)>) -> Option<T> {
    candidates.into_iter().min_by_key(|(_, priority)| *priority).map(|(candidate, _)| candidate)
}
