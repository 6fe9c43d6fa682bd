//! The EPT walker. It runs on every TLB miss.

use super::{EptAccess, EptEntry, EptFault, EptLeaf, EptMode, EptPerms, EptQualification, LEVELS};
use crate::table::{PageSize, RETRIES, TableMemory, beyond, set_bits};

/// Translates a guest-physical address through the tables of `mode`.
///
/// If the EPTP enables accessed and dirty flags, they are set in the entries used, once the access is
/// known to be allowed, atomically and only where they are not set already.
///
/// # Errors
/// A violation with the access and permission bits of its qualification, a misconfiguration, or what
/// `mem` returned for the access to a table.
#[inline]
pub fn walk<M: TableMemory>(
    mem: &M,
    mode: &EptMode,
    gpa: u64,
    access: EptAccess,
) -> Result<EptLeaf, EptFault<M::Error>> {
    match try_walk::<M, false>(mem, mode, gpa, access, false)? {
        Some(leaf) => Ok(leaf),
        None => walk_setting_flags(mem, mode, gpa, access),
    }
}

/// The walk once more, now setting flags.
#[cold]
fn walk_setting_flags<M: TableMemory>(
    mem: &M,
    mode: &EptMode,
    gpa: u64,
    access: EptAccess,
) -> Result<EptLeaf, EptFault<M::Error>> {
    let mut attempt = 0;
    loop {
        if let Some(leaf) = try_walk::<M, true>(mem, mode, gpa, access, attempt == RETRIES)? {
            return Ok(leaf);
        }
        attempt += 1;
    }
}

/// One walk; `None` if there are flags to set and this walk is not to `SET` them, or if an entry changed
/// before its flags were set.
#[inline]
fn try_walk<M: TableMemory, const SET: bool>(
    mem: &M,
    mode: &EptMode,
    gpa: u64,
    access: EptAccess,
    force: bool,
) -> Result<Option<EptLeaf>, EptFault<M::Error>> {
    // With four levels, a guest-physical address has 48 bits.
    if gpa >> 48 != 0 {
        return Err(violation(mode, gpa, access, 0));
    }
    let mut table = EptEntry::from_bits_retain(mode.eptp).address();
    let mut all = !0;
    let mut used = [(0u64, 0u64); LEVELS];
    let mut level = LEVELS - 1;
    let leaf = loop {
        let pa = table | (gpa >> (12 + 9 * level) & 0x1ff) << 3;
        let bits = mem.read(pa).map_err(EptFault::Memory)?;
        let entry = EptEntry::from_bits_retain(bits);
        if !present(mode, bits) {
            return Err(violation(mode, gpa, access, 0));
        }
        let is_leaf = level == 0 || entry.contains(EptEntry::LARGE) && level < 3;
        if misconfigured(mode, entry, level, is_leaf) {
            return Err(EptFault::Misconfig { gpa, entry: bits, level: level as u8 + 1 });
        }
        all &= bits;
        if SET {
            used[level] = (pa, bits);
        }
        if is_leaf {
            break entry;
        }
        table = entry.address();
        level -= 1;
    };
    if !allowed(mode, all, access) {
        return Err(violation(mode, gpa, access, all));
    }

    let mut dirty = true;
    if mode.accessed_dirty() {
        let write = access.contains(EptAccess::WRITE);
        dirty = leaf.contains(EptEntry::DIRTY);
        if all & EptEntry::ACCESSED.bits() == 0 || write && !dirty {
            if !SET {
                return Ok(None);
            }
            for (at, &(pa, seen)) in used.iter().enumerate().skip(level).rev() {
                let leaf_bits = if at == level && write { EptEntry::DIRTY.bits() } else { 0 };
                let bits = EptEntry::ACCESSED.bits() | leaf_bits;
                if !set_bits(mem, pa, seen, bits, force).map_err(EptFault::Memory)? {
                    return Ok(None);
                }
            }
            dirty |= write;
        }
    }
    let page_size = PageSize::at_level(level);
    let Some(memory_type) = leaf.memory_type() else {
        return Err(EptFault::Misconfig { gpa, entry: leaf.bits(), level: level as u8 + 1 });
    };
    Ok(Some(EptLeaf {
        hpa: leaf.address() & !page_size.offset_mask() | gpa & page_size.offset_mask(),
        page_size,
        perms: EptPerms::from_bits_truncate(all),
        memory_type,
        ignore_pat: leaf.contains(EptEntry::IGNORE_PAT),
        dirty,
    }))
}

#[inline]
fn present(mode: &EptMode, bits: u64) -> bool {
    bits & 7 != 0 || mode.mode_based_execute && bits & EptEntry::USER_EXECUTE.bits() != 0
}

/// The conditions of "EPT Misconfigurations" for a present entry.
#[inline]
fn misconfigured(mode: &EptMode, entry: EptEntry, level: usize, is_leaf: bool) -> bool {
    let bits = entry.bits();
    if bits & EptPerms::READ.bits() == 0 {
        // Not readable: then not writable, and executable only if that is supported.
        if bits & EptPerms::WRITE.bits() != 0 || !mode.execute_only {
            return true;
        }
    }
    let reserved = match (is_leaf, level) {
        (true, _) => PageSize::at_level(level).offset_mask() & !0xfff,
        // The top table has no leaves.
        (false, 3) => 0xf8,
        (false, _) => 0x78,
    };
    bits & (reserved | beyond(mode.phys_bits)) != 0 || is_leaf && entry.memory_type().is_none()
}

#[inline]
fn allowed(mode: &EptMode, perms: u64, access: EptAccess) -> bool {
    let mut needed = access.bits() & 7;
    if mode.mode_based_execute && access.contains(EptAccess::FETCH | EptAccess::USER) {
        needed = needed & !EptPerms::EXECUTE.bits() | EptPerms::USER_EXECUTE.bits();
    }
    needed & !perms == 0
}

#[cold]
fn violation<E>(mode: &EptMode, gpa: u64, access: EptAccess, perms: u64) -> EptFault<E> {
    let mut qualification = access.bits() & 7 | (perms & 7) << 3;
    if mode.mode_based_execute && perms & EptPerms::USER_EXECUTE.bits() != 0 {
        qualification |= EptQualification::USER_EXECUTABLE.bits();
    }
    EptFault::Violation { gpa, qualification: EptQualification::from_bits_truncate(qualification) }
}
