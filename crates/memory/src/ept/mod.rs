//! Extended page tables: the formats, the walker and a builder (SDM volume 3, "The Extended Page Table
//! Mechanism (EPT)").
//!
//! Modelled: 4-level EPT with 4 KiB, 2 MiB and 1 GiB leaves, execute-only translations, mode-based
//! execute control, accessed and dirty flags, every misconfiguration. Left out: 5-level EPT,
//! sub-page write permissions, supervisor shadow-stack and paging-write control, conversion of
//! violations to virtualization exceptions (entry bit 63 is carried but not looked at).

mod builder;
mod walk;

pub use builder::{EptAttributes, EptBuilder, EptLeafEntry, MapError};
pub use walk::walk;

use crate::table::{ADDRESS, PageSize, beyond};
use bitflags::bitflags;

/// The number of levels walked.
pub(crate) const LEVELS: usize = 4;

bitflags! {
    /// The bits of an EPT paging-structure entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptEntry: u64 {
        /// Reads are allowed.
        const READ = 1 << 0;
        /// Writes are allowed.
        const WRITE = 1 << 1;
        /// Fetches are allowed; with mode-based execute control, from supervisor-mode addresses.
        const EXECUTE = 1 << 2;
        /// Leaf: the guest's PAT is ignored, the memory type is that of this entry alone.
        const IGNORE_PAT = 1 << 6;
        /// In a page-directory-pointer-table or page-directory entry: this is a leaf.
        const LARGE = 1 << 7;
        /// The entry was used, if the EPTP enables the flag.
        const ACCESSED = 1 << 8;
        /// Leaf: the page was written, if the EPTP enables the flag.
        const DIRTY = 1 << 9;
        /// With mode-based execute control: fetches from user-mode addresses are allowed.
        const USER_EXECUTE = 1 << 10;
        /// Leaf: a violation is not turned into a virtualization exception.
        const SUPPRESS_VE = 1 << 63;
        // The address and the memory type are fields, not flags.
        const _ = !0;
    }
}

impl EptEntry {
    /// Bits 51:12, the address of the next table or of the page.
    #[inline]
    pub const fn address(self) -> u64 {
        self.bits() & ADDRESS
    }

    /// Bits 5:3 of a leaf, or `None` if they hold a reserved type.
    #[inline]
    pub const fn memory_type(self) -> Option<MemoryType> {
        MemoryType::from_bits((self.bits() >> 3 & 7) as u8)
    }
}

bitflags! {
    /// What an EPT translation allows, at the bit positions of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptPerms: u64 {
        /// Reads.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Fetches.
        const EXECUTE = 1 << 2;
        /// Fetches from user-mode addresses; counts only with mode-based execute control.
        const USER_EXECUTE = 1 << 10;
    }
}

impl EptPerms {
    /// Reads, writes and every fetch.
    pub const RWX: Self = Self::all();
    /// Reads and writes.
    pub const RW: Self = Self::READ.union(Self::WRITE);
    /// Reads and every fetch: read-only memory.
    pub const RX: Self = Self::READ.union(Self::EXECUTE).union(Self::USER_EXECUTE);
}

bitflags! {
    /// An access to a guest-physical address. Bits 2:0 stand as in an exit qualification.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptAccess: u64 {
        /// A data read.
        const READ = 1 << 0;
        /// A data write.
        const WRITE = 1 << 1;
        /// An instruction fetch.
        const FETCH = 1 << 2;
        /// The linear address is a user-mode address; looked at only for a fetch with mode-based
        /// execute control.
        const USER = 1 << 3;
    }
}

bitflags! {
    /// Exit qualification of an EPT violation (SDM volume 3, table "Exit Qualification for EPT
    /// Violations"), as far as a walk knows it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct EptQualification: u64 {
        /// The access was a data read.
        const READ = 1 << 0;
        /// The access was a data write.
        const WRITE = 1 << 1;
        /// The access was an instruction fetch.
        const FETCH = 1 << 2;
        /// Every entry used allows reads.
        const READABLE = 1 << 3;
        /// Every entry used allows writes.
        const WRITABLE = 1 << 4;
        /// Every entry used allows fetches.
        const EXECUTABLE = 1 << 5;
        /// With mode-based execute control: every entry used allows fetches from user-mode addresses.
        const USER_EXECUTABLE = 1 << 6;
        /// The guest linear-address field is valid.
        const LINEAR_VALID = 1 << 7;
        /// The access was to the translation of the linear address; clear: to a table on the way.
        /// Meaningful only with [`LINEAR_VALID`](Self::LINEAR_VALID).
        const FINAL = 1 << 8;
        /// NMI unblocking due to IRET; set by the processor, not by the walk.
        const NMI_UNBLOCKING = 1 << 12;
    }
}

/// Memory types of EPT leaves and of the EPTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uncacheable = 0,
    /// Write combining.
    WriteCombining = 1,
    /// Write through.
    WriteThrough = 4,
    /// Write protected.
    WriteProtected = 5,
    /// Write back.
    WriteBack = 6,
}

impl MemoryType {
    /// The type with this encoding, if it is not reserved.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Uncacheable),
            1 => Some(Self::WriteCombining),
            4 => Some(Self::WriteThrough),
            5 => Some(Self::WriteProtected),
            6 => Some(Self::WriteBack),
            _ => None,
        }
    }
}

/// EPTP bit 6: accessed and dirty flags are enabled.
pub const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;

/// An EPTP for 4-level tables whose top one is at `root`, walked with memory type write back.
pub const fn eptp(root: u64, accessed_dirty: bool) -> u64 {
    let flags = MemoryType::WriteBack as u64 | (LEVELS as u64 - 1) << 3;
    root & ADDRESS | flags | if accessed_dirty { EPTP_ACCESSED_DIRTY } else { 0 }
}

/// Whether VM entry accepts `eptp`: memory type 0 or 6, four levels, no reserved bit set. `phys_bits` is
/// the physical-address width.
pub const fn eptp_valid(eptp: u64, phys_bits: u8) -> bool {
    let memory_type = eptp & 7;
    let reserved = 0xf80 | beyond(phys_bits) | 0xfff0_0000_0000_0000;
    (memory_type == 0 || memory_type == 6) && eptp >> 3 & 7 == LEVELS as u64 - 1 && eptp & reserved == 0
}

/// What steers an EPT walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptMode {
    /// The EPTP: address of the top table, and whether accessed and dirty flags are enabled.
    pub eptp: u64,
    /// Physical-address width (MAXPHYADDR), 32 to 52. Address bits from here up are reserved.
    pub phys_bits: u8,
    /// Execute-only translations are supported.
    pub execute_only: bool,
    /// Mode-based execute control for EPT is on.
    pub mode_based_execute: bool,
}

impl EptMode {
    /// Execute-only translations supported, no mode-based execute control.
    #[inline]
    pub const fn new(eptp: u64, phys_bits: u8) -> Self {
        Self { eptp, phys_bits, execute_only: true, mode_based_execute: false }
    }

    /// Whether accessed and dirty flags are enabled.
    #[inline]
    pub const fn accessed_dirty(&self) -> bool {
        self.eptp & EPTP_ACCESSED_DIRTY != 0
    }
}

/// The result of an EPT walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptLeaf {
    /// The translation of the very address asked for.
    pub hpa: u64,
    /// The size of the page it lies in.
    pub page_size: PageSize,
    /// What all entries on the way allow.
    pub perms: EptPerms,
    /// The memory type of the leaf.
    pub memory_type: MemoryType,
    /// The guest's PAT is ignored.
    pub ignore_pat: bool,
    /// A write needs no further walk to have the dirty flag set: it is set already, or not enabled.
    pub dirty: bool,
}

/// Why an EPT walk gave no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EptFault<E> {
    /// The access is not allowed, or there is no translation.
    #[error("ept violation at guest-physical address {gpa:#x}, qualification {qualification:?}")]
    Violation {
        /// The address accessed.
        gpa: u64,
        /// Access and permission bits; a two-dimensional walk adds those about the linear address.
        qualification: EptQualification,
    },
    /// An entry holds what the processor does not support.
    #[error("ept misconfiguration at guest-physical address {gpa:#x}: entry {entry:#x} at level {level}")]
    Misconfig {
        /// The address accessed.
        gpa: u64,
        /// The entry.
        entry: u64,
        /// Its level: 4 for the top table to 1 for the lowest.
        level: u8,
    },
    /// A table could not be accessed.
    #[error("ept table access failed")]
    Memory(E),
}
