//! Guest state as the VMCS holds it: segment access rights, activity, interruptibility, pending debug
//! exceptions (Intel SDM vol. 3, 25.4).

use bitfield_struct::bitfield;
use bitflags::bitflags;

/// A segment register, numbered as its VMCS fields are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Segment {
    /// ES.
    Es = 0,
    /// CS.
    Cs = 1,
    /// SS.
    Ss = 2,
    /// DS.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
    /// LDTR.
    Ldtr = 6,
    /// TR.
    Tr = 7,
}

impl Segment {
    /// All eight, in the order of their fields.
    pub const ALL: [Segment; 8] = [
        Segment::Es,
        Segment::Cs,
        Segment::Ss,
        Segment::Ds,
        Segment::Fs,
        Segment::Gs,
        Segment::Ldtr,
        Segment::Tr,
    ];
}

/// Access rights of a guest segment register (table 25-2): a descriptor's bits 55:40, and whether the
/// register is unusable.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AccessRights {
    /// Segment type.
    #[bits(4)]
    pub segment_type: u8,
    /// S: code or data, not system.
    pub code_or_data: bool,
    /// Descriptor privilege level.
    #[bits(2)]
    pub dpl: u8,
    /// P: present.
    pub present: bool,
    #[bits(4)]
    reserved_8: u8,
    /// AVL: for software.
    pub available: bool,
    /// L: 64-bit code; CS only.
    pub long: bool,
    /// D/B: default operation size is 32 bits.
    pub default_big: bool,
    /// G: the limit was in pages.
    pub granularity: bool,
    /// The segment register is unusable: null selector.
    pub unusable: bool,
    #[bits(15)]
    reserved_17: u16,
}

impl AccessRights {
    /// Whether bits 11:8 and 31:17 are zero.
    pub const fn reserved_is_zero(self) -> bool {
        self.reserved_8() == 0 && self.reserved_17() == 0
    }

    /// Whether the register is usable.
    pub const fn usable(self) -> bool {
        !self.unusable()
    }

    /// Whether the type is a code segment's (bit 3); meaningful with [`AccessRights::code_or_data`].
    pub const fn is_code(self) -> bool {
        self.segment_type() & 8 != 0
    }
}

/// What a logical processor does: the guest activity state field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Activity {
    /// Executes instructions.
    Active = 0,
    /// Executed HLT.
    Hlt = 1,
    /// Triple fault or another serious error.
    Shutdown = 2,
    /// Waits for a startup IPI.
    WaitForSipi = 3,
}

impl Activity {
    /// The state a field value names.
    pub const fn from_u32(value: u32) -> Option<Activity> {
        Some(match value {
            0 => Activity::Active,
            1 => Activity::Hlt,
            2 => Activity::Shutdown,
            3 => Activity::WaitForSipi,
            _ => return None,
        })
    }
}

bitflags! {
    /// Events blocked for a time: the guest interruptibility-state field (table 25-3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Interruptibility: u32 {
        /// Blocking by STI.
        const STI = 1 << 0;
        /// Blocking by MOV SS or POP SS.
        const MOV_SS = 1 << 1;
        /// Blocking by SMI.
        const SMI = 1 << 2;
        /// Blocking by NMI, or virtual-NMI blocking.
        const NMI = 1 << 3;
        /// Enclave interruption.
        const ENCLAVE = 1 << 4;
    }

    /// Debug exceptions recognised but not yet delivered: the guest pending-debug-exceptions field
    /// (table 25-4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PendingDebug: u64 {
        /// Breakpoint 0 met.
        const B0 = 1 << 0;
        /// Breakpoint 1 met.
        const B1 = 1 << 1;
        /// Breakpoint 2 met.
        const B2 = 1 << 2;
        /// Breakpoint 3 met.
        const B3 = 1 << 3;
        /// A bus lock was asserted.
        const BUS_LOCK = 1 << 11;
        /// At least one data or I/O breakpoint that DR7 enables was met.
        const ENABLED_BREAKPOINT = 1 << 12;
        /// Single step.
        const BS = 1 << 14;
        /// Debug exception or breakpoint inside an RTM region.
        const RTM = 1 << 16;
    }
}
