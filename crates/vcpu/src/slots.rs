//! What every engine asks of memory slots.

use trapline_memory::{Arena, Slot};

use crate::{Error, Result};

/// Slots begin and end on this.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// Refuses what no engine could take: unaligned, empty or overlapping slots, and ones out of the arena.
pub(crate) fn check_layout(arena: &Arena, slots: &[Slot]) -> Result<()> {
    let bad = |slot: &Slot, what| Err(Error::Slot { gpa: slot.gpa, what });
    for (i, slot) in slots.iter().enumerate() {
        if slot.size == 0 || [slot.gpa, slot.size, slot.hpa].iter().any(|n| !n.is_multiple_of(PAGE_SIZE)) {
            return bad(slot, "is empty or not whole pages");
        }
        if slot.gpa.checked_add(slot.size).is_none_or(|end| end > 1 << 52) {
            return bad(slot, "ends beyond 52 bits of physical address");
        }
        if slot.hpa.checked_add(slot.size).is_none_or(|end| end > arena.len()) {
            return bad(slot, "is not in the arena");
        }
        if slots.iter().take(i).any(|other| slot.gpa < other.end() && other.gpa < slot.end()) {
            return bad(slot, "overlaps another one");
        }
    }
    Ok(())
}
