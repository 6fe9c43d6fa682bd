//! The guest's own paging: modes, access rights, and the walker (SDM volume 3, chapter "Paging").
//!
//! Modelled: 32-bit paging with 4 MiB pages and PSE-36, PAE paging, 4-level and 5-level paging;
//! CR0.WP, SMEP, SMAP, execute-disable, protection keys for user and supervisor pages; accessed and dirty
//! flags; every reserved bit; the error code. Left out: shadow-stack pages, HLAT paging, linear-address
//! masking. Whether an address is canonical is for the caller to check: the walker looks at the bits
//! that its mode translates, no others.

mod walk;

pub use walk::{load_pdptes, walk};

use crate::table::{PageSize, beyond};
use bitflags::bitflags;

bitflags! {
    /// The bits of a paging-structure entry that hold in every mode.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageEntry: u64 {
        /// The entry translates.
        const PRESENT = 1 << 0;
        /// Writes are allowed.
        const WRITABLE = 1 << 1;
        /// User-mode accesses are allowed.
        const USER = 1 << 2;
        /// Page-level write-through.
        const WRITE_THROUGH = 1 << 3;
        /// Page-level cache disable.
        const CACHE_DISABLE = 1 << 4;
        /// The entry was used.
        const ACCESSED = 1 << 5;
        /// Leaf: the page was written.
        const DIRTY = 1 << 6;
        /// Above the lowest level: this is a leaf.
        const LARGE = 1 << 7;
        /// Leaf: the translation is global.
        const GLOBAL = 1 << 8;
        /// Fetches are not allowed; reserved unless IA32_EFER.NXE is set.
        const NO_EXECUTE = 1 << 63;
        // The address and the protection key are fields, not flags.
        const _ = !0;
    }
}

bitflags! {
    /// Page-fault error code (SDM volume 3, "Page-Fault Exceptions").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PageFaultCode: u32 {
        /// P: a translation exists and does not allow the access; clear: there is none.
        const PRESENT = 1 << 0;
        /// W/R: the access was a write.
        const WRITE = 1 << 1;
        /// U/S: the access was a user-mode one.
        const USER = 1 << 2;
        /// RSVD: a reserved bit was set in an entry.
        const RESERVED = 1 << 3;
        /// I/D: the access was an instruction fetch, and SMEP or execute-disable is on.
        const FETCH = 1 << 4;
        /// PK: the protection key does not allow the access.
        const PROTECTION_KEY = 1 << 5;
    }
}

/// The shape of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingKind {
    /// CR0.PG is clear: linear addresses are physical addresses, cut to 32 bits.
    Off,
    /// 32-bit paging: CR4.PAE is clear.
    Bits32 {
        /// CR4.PSE: 4 MiB pages.
        pse: bool,
        /// PSE-36: 4 MiB pages have address bits above 31.
        pse36: bool,
    },
    /// PAE paging.
    Pae {
        /// The PDPTE registers, as loaded by MOV to CR3 ([`load_pdptes`]).
        pdptes: [u64; 4],
    },
    /// 4-level paging: linear addresses of 48 bits.
    Level4,
    /// 5-level paging: linear addresses of 57 bits.
    Level5,
}

bitflags! {
    /// The control bits that steer a walk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PagingFlags: u16 {
        /// CR0.WP: supervisor-mode writes obey read-only pages.
        const WRITE_PROTECT = 1 << 0;
        /// IA32_EFER.NXE: bit 63 of an entry disables fetches.
        const NXE = 1 << 1;
        /// CR4.SMEP: no supervisor-mode fetches from user pages.
        const SMEP = 1 << 2;
        /// CR4.SMAP: no supervisor-mode data accesses to user pages unless EFLAGS.AC is set.
        const SMAP = 1 << 3;
        /// CR4.PKE: protection keys for user pages, by PKRU.
        const PKE = 1 << 4;
        /// CR4.PKS: protection keys for supervisor pages, by IA32_PKRS.
        const PKS = 1 << 5;
        /// 1 GiB pages are supported (CPUID.80000001H:EDX.Page1GB).
        const PAGE_1G = 1 << 6;
    }
}

/// Everything about the processor that steers a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingMode {
    /// The shape of the tables.
    pub kind: PagingKind,
    /// CR3. The bits that are no part of the address of the top table are not looked at.
    pub cr3: u64,
    /// Control bits.
    pub flags: PagingFlags,
    /// Physical-address width (MAXPHYADDR), 32 to 52. Address bits from here up are reserved.
    pub phys_bits: u8,
    /// PKRU: two bits a key, access-disable and write-disable. Looked at with [`PagingFlags::PKE`].
    pub pkru: u32,
    /// IA32_PKRS, likewise. Looked at with [`PagingFlags::PKS`].
    pub pkrs: u32,
}

impl PagingMode {
    /// Paging switched off.
    pub const OFF: Self =
        Self { kind: PagingKind::Off, cr3: 0, flags: PagingFlags::empty(), phys_bits: 52, pkru: 0, pkrs: 0 };

    /// Whether MOV to CR3 (or whatever else loads it) accepts this PDPTE: a present one must not have
    /// reserved bits set.
    pub const fn pdpte_valid(pdpte: u64, phys_bits: u8) -> bool {
        pdpte & 1 == 0 || pdpte & (0x1e6 | beyond(phys_bits) | 0xfff0_0000_0000_0000) == 0
    }

    #[inline]
    fn is_long(&self) -> bool {
        matches!(self.kind, PagingKind::Level4 | PagingKind::Level5)
    }

    /// The access-disable and write-disable bits that hold for this page, for data accesses.
    #[inline]
    fn key_rights(&self, leaf: &Leaf) -> u32 {
        let (on, register) =
            if leaf.user { (PagingFlags::PKE, self.pkru) } else { (PagingFlags::PKS, self.pkrs) };
        if self.is_long() && self.flags.contains(on) { register >> (u32::from(leaf.pkey) * 2) & 3 } else { 0 }
    }
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A write; clear: a read (or a fetch).
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// Made with CPL 3. Not looked at if [`implicit`](Self::implicit) is set.
    pub user: bool,
    /// An implicit supervisor-mode access, at any CPL: to a descriptor table, a TSS.
    pub implicit: bool,
    /// EFLAGS.AC: SMAP lets explicit supervisor-mode accesses through.
    pub ac: bool,
}

impl Access {
    /// A supervisor-mode read, EFLAGS.AC clear.
    pub const READ: Self = Self { write: false, fetch: false, user: false, implicit: false, ac: false };
    /// A supervisor-mode write, EFLAGS.AC clear.
    pub const WRITE: Self = Self { write: true, ..Self::READ };
    /// A supervisor-mode fetch.
    pub const FETCH: Self = Self { fetch: true, ..Self::READ };

    /// The same access made with CPL 3.
    pub const fn as_user(self) -> Self {
        Self { user: true, ..self }
    }

    /// Whether it counts as a user-mode access.
    #[inline]
    pub const fn is_user(&self) -> bool {
        self.user && !self.implicit
    }
}

/// The translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The guest-physical address of the very linear address asked for.
    pub gpa: u64,
    /// The size of the page.
    pub page_size: PageSize,
    /// R/W is set in all entries.
    pub writable: bool,
    /// U/S is set in all entries: a user-mode address.
    pub user: bool,
    /// No entry disables fetches.
    pub executable: bool,
    /// The leaf is global.
    pub global: bool,
    /// The dirty flag is set. A write through a clean leaf must be walked, to set it.
    pub dirty: bool,
    /// Protection key: 0 in the modes that have none.
    pub pkey: u8,
}

/// What a processor in one privilege mode may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Data reads.
    pub read: bool,
    /// Data writes, whatever the dirty flag.
    pub write: bool,
    /// Fetches.
    pub execute: bool,
}

impl Leaf {
    /// Whether `mode` lets `access` through to this page.
    ///
    /// # Errors
    /// The error code of the page fault.
    #[inline]
    pub fn permits(&self, mode: &PagingMode, access: Access) -> Result<(), PageFaultCode> {
        let key = if access.fetch { 0 } else { mode.key_rights(self) };
        let protect = access.is_user() || mode.flags.contains(PagingFlags::WRITE_PROTECT);
        let key_denies = key & 1 != 0 || key & 2 != 0 && access.write && protect;
        if !key_denies && self.rights_allow(mode, access, protect) {
            return Ok(());
        }
        let mut code = fault_code(mode, access) | PageFaultCode::PRESENT;
        code.set(PageFaultCode::PROTECTION_KEY, key_denies);
        Err(code)
    }

    /// What this page allows in user or supervisor mode, with EFLAGS.AC as given (explicit accesses).
    #[inline]
    pub fn rights(&self, mode: &PagingMode, user: bool, ac: bool) -> Rights {
        let access = Access { user, ac, ..Access::READ };
        Rights {
            read: self.permits(mode, access).is_ok(),
            write: self.permits(mode, Access { write: true, ..access }).is_ok(),
            execute: self.permits(mode, Access { fetch: true, ..access }).is_ok(),
        }
    }

    /// Everything but protection keys. `protect`: writes obey R/W.
    #[inline]
    fn rights_allow(&self, mode: &PagingMode, access: Access, protect: bool) -> bool {
        if matches!(mode.kind, PagingKind::Off) {
            return true;
        }
        if access.is_user() {
            if !self.user {
                return false;
            }
        } else if self.user {
            let smap = mode.flags.contains(PagingFlags::SMAP);
            if access.fetch {
                if mode.flags.contains(PagingFlags::SMEP) {
                    return false;
                }
            } else if smap && (access.implicit || !access.ac) {
                return false;
            }
        }
        if access.fetch { self.executable } else { !access.write || self.writable || !protect }
    }
}

/// The bits of the error code that only the access and the mode decide.
#[inline]
pub(crate) fn fault_code(mode: &PagingMode, access: Access) -> PageFaultCode {
    let nx = mode.flags.contains(PagingFlags::NXE) && !matches!(mode.kind, PagingKind::Bits32 { .. });
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::WRITE, access.write);
    code.set(PageFaultCode::USER, access.is_user());
    code.set(PageFaultCode::FETCH, access.fetch && (nx || mode.flags.contains(PagingFlags::SMEP)));
    code
}

/// Why a walk gave no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError<E> {
    /// A page fault with this error code; its address is the linear address asked for.
    #[error("page fault, error code {0:?}")]
    PageFault(PageFaultCode),
    /// A table could not be accessed.
    #[error("page-table access failed")]
    Memory(E),
}
