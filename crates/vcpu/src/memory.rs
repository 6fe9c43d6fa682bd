//! Memory slots: which host memory stands behind which guest-physical range.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use crate::{Error, Result};

/// Slots begin and end on this.
pub const PAGE_SIZE: u64 = 4096;

/// A range of host memory that stays mapped as long as this value (or a clone) lives.
#[derive(Clone)]
pub struct HostMemory {
    addr: usize,
    len: u64,
    /// Keeps the mapping alive; never looked into.
    owner: Arc<dyn Any + Send + Sync>,
}

impl HostMemory {
    /// A whole mapping.
    pub fn from_mapping<B: Bitmap + Send + Sync + 'static>(mapping: Arc<MmapRegion<B>>) -> Self {
        Self { addr: mapping.as_ptr() as usize, len: mapping.size() as u64, owner: mapping }
    }

    /// The `len` bytes of `memory` at guest-physical address `at`; `None` unless they lie in one region.
    pub fn from_memory<B: Bitmap + Send + Sync + 'static>(
        memory: &GuestMemoryMmap<B>,
        at: GuestAddress,
        len: u64,
    ) -> Option<Self> {
        let region = memory.find_region(at)?;
        let offset = at.checked_offset_from(region.start_addr())?;
        Self::from_mapping(region.get_mmap()).slice(offset, len)
    }

    /// A part of it; `None` if it reaches past the end.
    pub fn slice(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self {
            addr: self.addr + offset as usize,
            len,
            owner: Arc::clone(&self.owner),
        })
    }

    /// Where it is mapped in this process.
    pub fn host_address(&self) -> usize {
        self.addr
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({:#x}+{:#x})", self.addr, self.len)
    }
}

impl PartialEq for HostMemory {
    fn eq(&self, other: &Self) -> bool {
        self.addr == other.addr && self.len == other.len && Arc::ptr_eq(&self.owner, &other.owner)
    }
}

/// One range of guest-physical memory.
#[derive(Clone, Debug, PartialEq)]
pub struct MemorySlot {
    /// The slot's number: unique, below [`Vm::max_slots`](crate::Vm::max_slots). It names the slot in
    /// [`Vm::take_dirty`](crate::Vm::take_dirty).
    pub id: u32,
    /// First guest-physical address; a multiple of [`PAGE_SIZE`].
    pub guest: GuestAddress,
    /// What stands behind it; its length is the slot's, a multiple of [`PAGE_SIZE`].
    pub host: HostMemory,
    /// Guest writes become [`Exit::MmioWrite`](crate::Exit::MmioWrite) instead of changing the memory.
    pub read_only: bool,
    /// Keep track of the pages the guest writes.
    pub log_dirty: bool,
}

impl MemorySlot {
    /// Plain RAM.
    pub fn ram(id: u32, guest: GuestAddress, host: HostMemory) -> Self {
        Self { id, guest, host, read_only: false, log_dirty: false }
    }

    /// ROM: reads and execution only.
    pub fn rom(id: u32, guest: GuestAddress, host: HostMemory) -> Self {
        Self { id, guest, host, read_only: true, log_dirty: false }
    }

    /// One past the last guest-physical address, in a type that holds 2^64.
    pub(crate) fn end(&self) -> u128 {
        u128::from(self.guest.0) + u128::from(self.host.len())
    }
}

/// Refuses a layout that no engine can take: unaligned, empty, overlapping or doubly numbered slots.
pub(crate) fn check_layout(slots: &[MemorySlot], max_slots: u32) -> Result<()> {
    let bad = |slot: &MemorySlot, what| Err(Error::Slot { id: slot.id, what });
    for (i, slot) in slots.iter().enumerate() {
        if slot.id >= max_slots {
            return bad(slot, "number is beyond what the engine offers");
        }
        if slot.host.is_empty() {
            return bad(slot, "is empty");
        }
        if !slot.guest.0.is_multiple_of(PAGE_SIZE)
            || !slot.host.len().is_multiple_of(PAGE_SIZE)
            || !(slot.host.host_address() as u64).is_multiple_of(PAGE_SIZE)
        {
            return bad(slot, "is not page-aligned");
        }
        if slot.end() > 1 << 52 {
            return bad(slot, "ends beyond 52 bits of physical address");
        }
        for other in slots.iter().take(i) {
            if other.id == slot.id {
                return bad(slot, "number is used twice");
            }
            if u128::from(slot.guest.0) < other.end() && u128::from(other.guest.0) < slot.end() {
                return bad(slot, "overlaps another slot");
            }
        }
    }
    Ok(())
}
