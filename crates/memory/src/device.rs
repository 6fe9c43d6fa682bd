//! Memory that is a device's and no RAM: video memory, flash.

use crate::arena::{Arena, ArenaError, ArenaOptions};
use crate::dirty::DevicePages;
use crate::layout::Slot;
use std::sync::Arc;

const PAGE: u64 = 4 << 10;

/// A range of the arena that belongs to a device: the device reads and writes it through this handle, and a
/// board shows it to the guest as a [`Slot`], at an address that may change (a BAR) or nowhere.
///
/// Offsets are bytes from its beginning. Clones are handles to the same memory, for any thread. It is zero
/// at first.
///
/// Its written pages are recorded apart from those of RAM, by offset, for one reader
/// ([`take_dirty`](Self::take_dirty)). What is written through a handle is always recorded. What the guest
/// writes is, where its slot has [`log_dirty`](Slot::log_dirty) set, whenever an engine's dirty log is
/// collected into the [`DirtyTracker`](crate::DirtyTracker) of the [`GuestRam`](crate::GuestRam) that the
/// memory comes from.
///
/// ```
/// use trapline_memory::{GuestRam, RamConfig};
///
/// let mut ram = GuestRam::new(&RamConfig::new(16 << 20))?;
/// let video = ram.add_device_memory(8 << 20)?;
/// // Firmware has set the BAR: this slot goes to the engine, with those of `ram`.
/// let slot = video.map(0xe000_0000);
/// assert_eq!((slot.gpa, slot.size), (0xe000_0000, 8 << 20));
/// // The device's own accesses do not depend on where that is.
/// video.take_dirty();
/// video.write(0x1234, b"pixels").ok_or("beyond the end")?;
/// assert_eq!(video.take_dirty(), [0x1000]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    arena: Arc<Arena>,
    hpa: u64,
    size: u64,
    pages: Arc<DevicePages>,
}

impl DeviceMemory {
    /// Memory in an arena of its own, for a device without a machine: tests. `size` is in bytes.
    ///
    /// # Errors
    /// A size of zero or that is no whole number of 4 KiB pages; the host cannot back it.
    pub fn standalone(size: u64) -> Result<Self, ArenaError> {
        let arena = Arc::new(Arena::new(size, &ArenaOptions::default())?);
        Ok(Self::new(arena, 0, size))
    }

    /// A range of `arena`, in whole pages.
    pub(crate) fn new(arena: Arc<Arena>, hpa: u64, size: u64) -> Self {
        Self { arena, hpa, size, pages: Arc::new(DevicePages::new(size)) }
    }

    pub(crate) fn pages(&self) -> &Arc<DevicePages> {
        &self.pages
    }

    /// Size in bytes: a multiple of 4 KiB.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Notes that the guest finds it at `gpa` from now on, and returns the slot that shows it there:
    /// writable and not logged, which the caller may change. If it was elsewhere before, all of it counts
    /// as written.
    pub fn map(&self, gpa: u64) -> Slot {
        self.pages.place(Some(gpa));
        Slot { gpa, size: self.size, hpa: self.hpa, read_only: false, log_dirty: false }
    }

    /// Notes that the guest finds it nowhere from now on.
    pub fn unmap(&self) {
        self.pages.place(None);
    }

    /// The address in the arena of `len` bytes at `offset`.
    #[inline]
    fn at(&self, offset: u64, len: u64) -> Option<u64> {
        (offset.checked_add(len)? <= self.size).then(|| self.hpa + offset)
    }

    /// Copies bytes out; `None` if they are not all within the memory.
    #[inline]
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Option<()> {
        self.arena.read_bytes(self.at(offset, buf.len() as u64)?, buf)
    }

    /// Copies bytes in; `None`, and nothing is written, if they are not all within the memory.
    #[inline]
    pub fn write(&self, offset: u64, buf: &[u8]) -> Option<()> {
        self.arena.write_bytes(self.at(offset, buf.len() as u64)?, buf)?;
        self.wrote(offset, buf.len() as u64);
        Some(())
    }

    /// The four bytes at `offset`, little-endian, in one atomic access; `None` if not aligned or beyond the
    /// end.
    #[inline]
    pub fn read_u32(&self, offset: u64) -> Option<u32> {
        self.arena.read_u32(self.at(offset, 4)?)
    }

    /// Replaces the four bytes at `offset` in one atomic access; `None` if not aligned or beyond the end.
    #[inline]
    pub fn write_u32(&self, offset: u64, value: u32) -> Option<()> {
        self.arena.write_u32(self.at(offset, 4)?, value)?;
        self.wrote(offset, 4);
        Some(())
    }

    #[inline]
    fn wrote(&self, offset: u64, len: u64) {
        self.pages.mark(offset, len);
        self.arena.device_wrote(self.hpa + offset, len);
    }

    /// Takes the offsets of the pages that were written, in ascending order, and forgets them. A write
    /// recorded at the same time is either in this list or in the next.
    pub fn take_dirty(&self) -> Vec<u64> {
        self.pages.take()
    }

    /// The pages that are not zero, by offset: for saved states.
    pub fn save(&self) -> Vec<(u64, Vec<u8>)> {
        let mut pages = Vec::new();
        let mut page = vec![0; PAGE as usize];
        for offset in (0..self.size).step_by(PAGE as usize) {
            if self.read(offset, &mut page).is_some() && page.iter().any(|byte| *byte != 0) {
                pages.push((offset, page.clone()));
            }
        }
        pages
    }

    /// Puts pages back that [`save`](Self::save) returned; all others become zero. `None`, with nothing
    /// changed, if they are not such pages of a memory of this size.
    pub fn restore(&self, pages: &[(u64, Vec<u8>)]) -> Option<()> {
        let fits = |(at, page): &(u64, Vec<u8>)| {
            at.is_multiple_of(PAGE) && page.len() as u64 == PAGE && *at < self.size
        };
        if !pages.iter().all(fits) || !pages.is_sorted_by(|(one, _), (next, _)| one < next) {
            return None;
        }
        let mut saved = pages.iter().peekable();
        let (zeroes, mut old) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
        for offset in (0..self.size).step_by(PAGE as usize) {
            let new = saved.next_if(|(at, _)| *at == offset).map_or(&zeroes, |(_, page)| page);
            self.read(offset, &mut old)?;
            // Host memory is touched only where something changes.
            if old != *new {
                self.write(offset, new)?;
            }
        }
        Some(())
    }
}
