//! Guest entries, decoded one at a time: what a shadow entry is made from.

use crate::paging::{PageEntry, PagingFlags, PagingKind, PagingMode};
use crate::table::{ADDRESS, PageSize, beyond};

const PRESENT: u64 = PageEntry::PRESENT.bits();
const LARGE: u64 = PageEntry::LARGE.bits();
const NO_EXECUTE: u64 = PageEntry::NO_EXECUTE.bits();
const ACCESSED: u64 = PageEntry::ACCESSED.bits();
const DIRTY: u64 = PageEntry::DIRTY.bits();

/// What the entries on the way to a page allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Rights(u8);

impl Rights {
    pub const WRITE: Self = Self(1);
    pub const USER: Self = Self(2);
    pub const EXECUTE: Self = Self(4);
    pub const ALL: Self = Self(7);

    pub const fn has(self, right: Self) -> bool {
        self.0 & right.0 == right.0
    }

    /// What both allow.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// With or without a right.
    pub const fn with(self, right: Self, on: bool) -> Self {
        if on { Self(self.0 | right.0) } else { Self(self.0 & !right.0) }
    }
}

/// How tables are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Shape {
    /// Entries of four bytes.
    Narrow { pse: bool, pse36: bool },
    /// Entries of eight bytes, without protection keys.
    Pae,
    /// Entries of eight bytes.
    Long,
}

/// All of a paging mode that steers how one table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Format {
    shape: Shape,
    phys_bits: u8,
    nxe: bool,
    page_1g: bool,
    write_protect: bool,
}

/// A guest entry that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GuestEntry {
    /// Guest-physical address of the table or page.
    pub target: u64,
    /// It is a page, above the lowest level.
    pub large: bool,
    pub rights: Rights,
    pub accessed: bool,
    pub dirty: bool,
    pub key: u8,
}

impl Format {
    pub fn of(mode: &PagingMode) -> Self {
        let shape = match mode.kind {
            PagingKind::Bits32 { pse, pse36 } => Shape::Narrow { pse, pse36 },
            PagingKind::Pae { .. } => Shape::Pae,
            // Off: there are no tables to read.
            PagingKind::Off | PagingKind::Level4 | PagingKind::Level5 => Shape::Long,
        };
        Self {
            shape,
            phys_bits: mode.phys_bits,
            nxe: mode.flags.contains(PagingFlags::NXE),
            page_1g: mode.flags.contains(PagingFlags::PAGE_1G),
            write_protect: mode.flags.contains(PagingFlags::WRITE_PROTECT),
        }
    }

    pub fn narrow(&self) -> bool {
        matches!(self.shape, Shape::Narrow { .. })
    }

    /// Whether supervisor writes get through: obeying CR0.WP. A user page that is read-only for user mode
    /// is never writable.
    pub fn may_write(&self, rights: Rights) -> bool {
        rights.has(Rights::WRITE) || !self.write_protect && !rights.has(Rights::USER)
    }

    /// The entry at `level` (0 the lowest), or `None` if it is not present or has reserved bits set.
    pub fn decode(&self, level: u8, entry: u64) -> Option<GuestEntry> {
        if entry & PRESENT == 0 {
            return None;
        }
        let (target, large) = match self.shape {
            Shape::Narrow { pse, pse36 } => self.narrow_target(level, entry, pse, pse36)?,
            shape => self.wide_target(level, entry, shape == Shape::Pae)?,
        };
        let rights = Rights((entry >> 1 & 3) as u8).with(Rights::EXECUTE, entry & NO_EXECUTE == 0);
        Some(GuestEntry {
            target,
            large,
            rights,
            accessed: entry & ACCESSED != 0,
            dirty: entry & DIRTY != 0,
            key: if self.shape == Shape::Long { (entry >> 59 & 15) as u8 } else { 0 },
        })
    }

    fn narrow_target(&self, level: u8, entry: u64, pse: bool, pse36: bool) -> Option<(u64, bool)> {
        if level == 0 || !pse || entry & LARGE == 0 {
            return Some((entry & 0xffff_f000, false));
        }
        let high_bits = if pse36 { self.phys_bits.clamp(32, 40) - 32 } else { 0 };
        let high = (1u64 << high_bits) - 1;
        let reserved = entry & 0x3f_e000 & !(high << 13) != 0;
        (!reserved).then_some((entry & 0xffc0_0000 | (entry >> 13 & high) << 32, true))
    }

    fn wide_target(&self, level: u8, entry: u64, pae: bool) -> Option<(u64, bool)> {
        let large = level != 0 && entry & LARGE != 0;
        let mut reserved = beyond(self.phys_bits);
        if !self.nxe {
            reserved |= NO_EXECUTE;
        }
        if pae {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        let mut address = ADDRESS;
        if large {
            if level > 2 || level == 2 && !self.page_1g {
                return None;
            }
            let offset = PageSize::at_level(level.into()).offset_mask();
            // Bit 12 is PAT.
            reserved |= offset & !0x1fff;
            address &= !offset;
        }
        (entry & reserved == 0).then_some((entry & address, large))
    }
}

/// Whether an entry that was read as `seen` may no longer be used once it reads as `now`: that flags were set
/// in it does not matter, that they were cleared does.
pub(super) const fn stale(seen: u64, now: u64) -> bool {
    const FLAGS: u64 = ACCESSED | DIRTY;
    (seen ^ now) & !FLAGS != 0 || seen & !now & FLAGS != 0
}
