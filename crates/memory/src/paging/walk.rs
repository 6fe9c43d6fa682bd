//! The guest page walker. It runs on every TLB miss.

use super::{
    Access, Leaf, PageEntry, PageFaultCode, PagingFlags, PagingKind, PagingMode, WalkError, fault_code,
};
use crate::table::{ADDRESS, PageSize, RETRIES, TableMemory, beyond, set_bits};

const PRESENT: u64 = PageEntry::PRESENT.bits();
const WRITABLE: u64 = PageEntry::WRITABLE.bits();
const USER: u64 = PageEntry::USER.bits();
const ACCESSED: u64 = PageEntry::ACCESSED.bits();
const DIRTY: u64 = PageEntry::DIRTY.bits();
const LARGE: u64 = PageEntry::LARGE.bits();
const GLOBAL: u64 = PageEntry::GLOBAL.bits();
const NO_EXECUTE: u64 = PageEntry::NO_EXECUTE.bits();

/// One walk: `None` if an entry changed before its flags were set.
type Attempt<E> = Result<Option<Leaf>, WalkError<E>>;

/// Translates a linear address.
///
/// Accessed flags, and the dirty flag for a write, are set once the access is known to be allowed,
/// atomically and only where they are not set already.
///
/// # Errors
/// A page fault, or what `mem` returned for the access to a table.
#[inline]
pub fn walk<M: TableMemory>(
    mem: &M,
    mode: &PagingMode,
    gva: u64,
    access: Access,
) -> Result<Leaf, WalkError<M::Error>> {
    let mut attempt = 0;
    loop {
        let force = attempt == RETRIES;
        let leaf = match mode.kind {
            PagingKind::Off => Some(identity(gva)),
            PagingKind::Bits32 { pse, pse36 } => narrow(mem, mode, gva, access, (pse, pse36), force)?,
            PagingKind::Pae { pdptes } => pae(mem, mode, pdptes, gva, access, force)?,
            PagingKind::Level4 => wide::<M, 4>(mem, mode, mode.cr3, gva, access, force)?,
            PagingKind::Level5 => wide::<M, 5>(mem, mode, mode.cr3, gva, access, force)?,
        };
        if let Some(leaf) = leaf {
            return Ok(leaf);
        }
        attempt += 1;
    }
}

/// Reads the four page-directory-pointer-table entries that CR3 points to, for PAE paging. Whether they
/// are acceptable is [`PagingMode::pdpte_valid`]'s to say.
///
/// # Errors
/// What `mem` returned for the access.
pub fn load_pdptes<M: TableMemory>(mem: &M, cr3: u64) -> Result<[u64; 4], M::Error> {
    let base = cr3 & 0xffff_ffe0;
    Ok([mem.read(base)?, mem.read(base + 8)?, mem.read(base + 16)?, mem.read(base + 24)?])
}

/// Paging is off.
#[inline]
fn identity(gva: u64) -> Leaf {
    Leaf {
        gpa: gva & 0xffff_ffff,
        page_size: PageSize::Size1G,
        writable: true,
        user: true,
        executable: true,
        global: false,
        dirty: true,
        pkey: 0,
    }
}

#[inline]
fn not_present<E>(mode: &PagingMode, access: Access) -> WalkError<E> {
    WalkError::PageFault(fault_code(mode, access))
}

#[inline]
fn reserved<E>(mode: &PagingMode, access: Access) -> WalkError<E> {
    WalkError::PageFault(fault_code(mode, access) | PageFaultCode::PRESENT | PageFaultCode::RESERVED)
}

#[inline]
fn pae<M: TableMemory>(
    mem: &M,
    mode: &PagingMode,
    pdptes: [u64; 4],
    gva: u64,
    access: Access,
    force: bool,
) -> Attempt<M::Error> {
    let pdpte = pdptes[(gva >> 30 & 3) as usize];
    if pdpte & PRESENT == 0 {
        return Err(not_present(mode, access));
    }
    wide::<M, 2>(mem, mode, pdpte, gva, access, force)
}

/// The levels of tables with 512 entries of eight bytes: 4 or 5 from CR3, 2 from a PDPTE register.
#[inline]
fn wide<M: TableMemory, const LEVELS: usize>(
    mem: &M,
    mode: &PagingMode,
    root: u64,
    gva: u64,
    access: Access,
    force: bool,
) -> Attempt<M::Error> {
    let nx_reserved = if mode.flags.contains(PagingFlags::NXE) { 0 } else { NO_EXECUTE };
    let pae_reserved = if LEVELS == 2 { 0x7ff0_0000_0000_0000 } else { 0 };
    let always_reserved = beyond(mode.phys_bits) | nx_reserved | pae_reserved;
    let mut table = root & ADDRESS & !beyond(mode.phys_bits);
    let (mut all, mut any) = (!0, 0);
    let mut used = [(0u64, 0u64); LEVELS];
    let mut level = LEVELS - 1;
    let entry = loop {
        let pa = table | (gva >> (12 + 9 * level) & 0x1ff) << 3;
        let entry = mem.read(pa).map_err(WalkError::Memory)?;
        if entry & PRESENT == 0 {
            return Err(not_present(mode, access));
        }
        let large = level != 0 && entry & LARGE != 0;
        let large_allowed = level == 1 || level == 2 && mode.flags.contains(PagingFlags::PAGE_1G);
        // Address bits below the page's size are reserved, but for bit 12, which is PAT.
        let low = if large { PageSize::at_level(level).offset_mask() & !0x1fff } else { 0 };
        if entry & (always_reserved | low) != 0 || large && !large_allowed {
            return Err(reserved(mode, access));
        }
        all &= entry;
        any |= entry;
        used[level] = (pa, entry);
        if large || level == 0 {
            break entry;
        }
        table = entry & ADDRESS;
        level -= 1;
    };
    let page_size = PageSize::at_level(level);
    let mut leaf = Leaf {
        gpa: entry & ADDRESS & !page_size.offset_mask() | gva & page_size.offset_mask(),
        page_size,
        writable: all & WRITABLE != 0,
        // PDPTEs have no rights: all of them allow everything.
        user: all & USER != 0,
        executable: any & NO_EXECUTE == 0,
        global: entry & GLOBAL != 0,
        dirty: entry & DIRTY != 0,
        pkey: if LEVELS == 2 { 0 } else { (entry >> 59 & 0xf) as u8 },
    };
    leaf.permits(mode, access).map_err(WalkError::PageFault)?;
    if all & ACCESSED == 0 || access.write && !leaf.dirty {
        for (at, &(pa, seen)) in used.iter().enumerate().skip(level).rev() {
            let bits = if at == level && access.write { ACCESSED | DIRTY } else { ACCESSED };
            if !set_bits(mem, pa, seen, bits, force).map_err(WalkError::Memory)? {
                return Ok(None);
            }
        }
        leaf.dirty |= access.write;
    }
    Ok(Some(leaf))
}

/// An entry of four bytes, within the eight that hold it.
struct Narrow {
    pa: u64,
    word: u64,
    shift: u32,
}

impl Narrow {
    #[inline]
    fn read<M: TableMemory>(mem: &M, pa: u64) -> Result<Self, WalkError<M::Error>> {
        let aligned = pa & !7;
        let word = mem.read(aligned).map_err(WalkError::Memory)?;
        Ok(Self { pa: aligned, word, shift: if pa & 4 == 0 { 0 } else { 32 } })
    }

    #[inline]
    fn value(&self) -> u64 {
        self.word >> self.shift & 0xffff_ffff
    }

    /// See [`set_bits`]. A change of the neighbour counts as one of this entry.
    #[inline]
    fn set<M: TableMemory>(&self, mem: &M, bits: u64, force: bool) -> Result<bool, WalkError<M::Error>> {
        set_bits(mem, self.pa, self.word, bits << self.shift, force).map_err(WalkError::Memory)
    }
}

/// 32-bit paging: two levels of 1,024 entries of four bytes.
#[inline]
fn narrow<M: TableMemory>(
    mem: &M,
    mode: &PagingMode,
    gva: u64,
    access: Access,
    (pse, pse36): (bool, bool),
    force: bool,
) -> Attempt<M::Error> {
    let pde = Narrow::read(mem, mode.cr3 & 0xffff_f000 | (gva >> 22 & 0x3ff) << 2)?;
    let directory = pde.value();
    if directory & PRESENT == 0 {
        return Err(not_present(mode, access));
    }
    let (page, table_entry) = if pse && directory & LARGE != 0 {
        // Bits 20:13 are address bits 39:32 as far as the processor has them; the rest is reserved.
        let high_bits = if pse36 { mode.phys_bits.clamp(32, 40) - 32 } else { 0 };
        let high = (1u64 << high_bits) - 1;
        if directory & 0x3f_e000 & !(high << 13) != 0 {
            return Err(reserved(mode, access));
        }
        (directory & 0xffc0_0000 | (directory >> 13 & high) << 32, None)
    } else {
        let pte = Narrow::read(mem, directory & 0xffff_f000 | (gva >> 12 & 0x3ff) << 2)?;
        if pte.value() & PRESENT == 0 {
            return Err(not_present(mode, access));
        }
        (pte.value() & 0xffff_f000, Some(pte))
    };
    let (last, page_size) = match &table_entry {
        Some(pte) => (pte.value(), PageSize::Size4K),
        None => (directory, PageSize::Size4M),
    };
    let all = directory & last;
    let mut leaf = Leaf {
        gpa: page | gva & page_size.offset_mask(),
        page_size,
        writable: all & WRITABLE != 0,
        user: all & USER != 0,
        executable: true,
        global: last & GLOBAL != 0,
        dirty: last & DIRTY != 0,
        pkey: 0,
    };
    leaf.permits(mode, access).map_err(WalkError::PageFault)?;
    let last_bits = if access.write { ACCESSED | DIRTY } else { ACCESSED };
    // If both entries lie in the same eight bytes, the first update makes the second start again, once.
    let done = match &table_entry {
        Some(pte) => pde.set(mem, ACCESSED, force)? && pte.set(mem, last_bits, force)?,
        None => pde.set(mem, last_bits, force)?,
    };
    leaf.dirty |= access.write;
    Ok(done.then_some(leaf))
}
