//! Interruption information: of a VM exit (25.9.2), of an event whose delivery a VM exit cut short
//! (IDT-vectoring information, 25.9.3), and for event injection (25.8.3).

use core::fmt;

use bitfield_struct::bitfield;

/// Vectors of exceptions.
pub mod vector {
    /// #DE.
    pub const DIVIDE_ERROR: u8 = 0;
    /// #DB.
    pub const DEBUG: u8 = 1;
    /// NMI.
    pub const NMI: u8 = 2;
    /// #BP.
    pub const BREAKPOINT: u8 = 3;
    /// #OF.
    pub const OVERFLOW: u8 = 4;
    /// #BR.
    pub const BOUND: u8 = 5;
    /// #UD.
    pub const INVALID_OPCODE: u8 = 6;
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// #DF.
    pub const DOUBLE_FAULT: u8 = 8;
    /// #TS.
    pub const INVALID_TSS: u8 = 10;
    /// #NP.
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    /// #SS.
    pub const STACK_FAULT: u8 = 12;
    /// #GP.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// #PF.
    pub const PAGE_FAULT: u8 = 14;
    /// #MF.
    pub const X87_ERROR: u8 = 16;
    /// #AC.
    pub const ALIGNMENT_CHECK: u8 = 17;
    /// #MC.
    pub const MACHINE_CHECK: u8 = 18;
    /// #XM.
    pub const SIMD_ERROR: u8 = 19;
    /// #VE.
    pub const VIRTUALIZATION: u8 = 20;
    /// #CP.
    pub const CONTROL_PROTECTION: u8 = 21;

    /// Whether delivery of the hardware exception in protected mode pushes an error code.
    pub const fn has_error_code(vector: u8) -> bool {
        matches!(
            vector,
            DOUBLE_FAULT
                | INVALID_TSS
                | SEGMENT_NOT_PRESENT
                | STACK_FAULT
                | GENERAL_PROTECTION
                | PAGE_FAULT
                | ALIGNMENT_CHECK
                | CONTROL_PROTECTION
        )
    }
}

/// Interruption type: bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum InterruptionType {
    /// External interrupt.
    External = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception.
    HardwareException = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
    /// Other event: on VM entry with vector 0, a pending MTF VM exit.
    Other = 7,
}

impl InterruptionType {
    /// The type a 3-bit number names; 1 is reserved.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::External,
            2 => Self::Nmi,
            3 => Self::HardwareException,
            4 => Self::SoftwareInterrupt,
            5 => Self::PrivilegedSoftwareException,
            6 => Self::SoftwareException,
            7 => Self::Other,
            _ => return None,
        })
    }

    /// Whether an instruction raises the event: injection needs its length.
    pub const fn is_software(self) -> bool {
        matches!(self, Self::SoftwareInterrupt | Self::PrivilegedSoftwareException | Self::SoftwareException)
    }
}

/// VM-exit interruption information, IDT-vectoring information, or VM-entry interruption information:
/// the three have one format.
#[bitfield(u32, debug = false)]
#[derive(PartialEq, Eq)]
pub struct InterruptionInfo {
    /// Bits 7:0: vector.
    pub vector: u8,
    /// Bits 10:8: interruption type.
    #[bits(3)]
    pub type_number: u8,
    /// Bit 11: an error code comes with the event.
    pub error_code: bool,
    /// Bit 12: NMI unblocking due to IRET. VM-exit information only; reserved on VM entry.
    pub nmi_unblocking: bool,
    #[bits(18)]
    reserved_13: u32,
    /// Bit 31: valid.
    pub valid: bool,
}

impl InterruptionInfo {
    /// Valid information about an event without error code.
    pub const fn event(kind: InterruptionType, vector: u8) -> Self {
        Self::new().with_vector(vector).with_type_number(kind as u8).with_valid(true)
    }

    /// An external interrupt.
    pub const fn external(vector: u8) -> Self {
        Self::event(InterruptionType::External, vector)
    }

    /// A non-maskable interrupt.
    pub const fn nmi() -> Self {
        Self::event(InterruptionType::Nmi, vector::NMI)
    }

    /// A hardware exception, with an error code or without.
    pub const fn exception(vector: u8, error_code: bool) -> Self {
        Self::event(InterruptionType::HardwareException, vector).with_error_code(error_code)
    }

    /// The interruption type, if it is not the reserved one.
    pub const fn kind(self) -> Option<InterruptionType> {
        InterruptionType::from_number(self.type_number())
    }

    /// Whether bits 30:12 are zero, as VM entry demands.
    pub const fn reserved_is_zero(self) -> bool {
        self.reserved_13() == 0 && !self.nmi_unblocking()
    }
}

impl fmt::Display for InterruptionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.valid() {
            return f.write_str("none");
        }
        let kind = match self.kind() {
            Some(InterruptionType::External) => "external interrupt",
            Some(InterruptionType::Nmi) => "NMI",
            Some(InterruptionType::HardwareException) => "hardware exception",
            Some(InterruptionType::SoftwareInterrupt) => "software interrupt",
            Some(InterruptionType::PrivilegedSoftwareException) => "privileged software exception",
            Some(InterruptionType::SoftwareException) => "software exception",
            Some(InterruptionType::Other) => "other event",
            None => "reserved type",
        };
        write!(f, "{kind}, vector {}", self.vector())?;
        f.write_str(if self.error_code() { ", error code" } else { "" })?;
        f.write_str(if self.nmi_unblocking() { ", NMI unblocking" } else { "" })
    }
}

impl fmt::Debug for InterruptionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterruptionInfo({:#010x}: {self})", self.into_bits())
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn events_have_the_format_of_the_sdm() {
        let page_fault = InterruptionInfo::exception(vector::PAGE_FAULT, true);
        assert_eq!(page_fault.into_bits(), 0x8000_0b0e);
        assert_eq!(page_fault.to_string(), "hardware exception, vector 14, error code");
        assert_eq!(InterruptionInfo::external(0x20).into_bits(), 0x8000_0020);
        assert_eq!(InterruptionInfo::nmi().into_bits(), 0x8000_0202);
        assert_eq!(InterruptionInfo::new().to_string(), "none");
        assert!(!InterruptionInfo::from_bits(1 << 12).reserved_is_zero());
        assert!(!InterruptionInfo::from_bits(1 << 30).reserved_is_zero());
        assert!(InterruptionInfo::from_bits(0x8000_0fff).reserved_is_zero());
    }

    #[test]
    fn type_1_is_reserved() {
        for number in 0..=7 {
            let kind = InterruptionType::from_number(number);
            assert_eq!(kind.map(|kind| kind as u8), (number != 1).then_some(number));
        }
    }
}
