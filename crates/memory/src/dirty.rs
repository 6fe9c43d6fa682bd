//! Which pages were written: one bit for each 4 KiB page of guest RAM.
//!
//! Three kinds of writers are merged into one [`DirtyTracker`]: processors, through EPT dirty flags
//! ([`DirtyTracker::harvest_ept`]) or a hypervisor's dirty log ([`DirtyTracker::merge`]); devices,
//! because the view of guest RAM that they are given marks what they write ([`DeviceWrites`]); and
//! whatever else calls [`DirtyTracker::mark`].
//!
//! What processors write to a device's own memory ([`DeviceMemory`](crate::DeviceMemory)) arrives by the
//! same ways, and is kept there.

use crate::arena::Arena;
use crate::ept::{EptBuilder, MapError};
use crate::table::{PageAllocator, PageSize, TableMemory};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use vm_memory::bitmap::{self, BitmapSlice, NewBitmap, WithBitmapSlice};

const PAGE: u64 = 4096;

/// One bit for each page of a range.
#[derive(Debug)]
struct Bitmap(Box<[AtomicU64]>);

impl Bitmap {
    /// For a range of `size` bytes.
    fn new(size: u64) -> Self {
        Self((0..size.div_ceil(PAGE).div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Shows each word that has pages of a range of offsets, which is not empty: the word, the bits that lie
    /// in the range, and the offset of the page of bit 0.
    #[inline]
    fn for_each_word(&self, Range { start, end }: Range<u64>, mut show: impl FnMut(&AtomicU64, u64, u64)) {
        let (first, last) = (start / PAGE, (end - 1) / PAGE);
        for index in first / 64..=last / 64 {
            let from = first.max(index * 64) - index * 64;
            let to = last.min(index * 64 + 63) - index * 64;
            let bits = (!0 << from) & (!0 >> (63 - to));
            if let Some(word) = self.0.get(index as usize) {
                show(word, bits, index * 64 * PAGE);
            }
        }
    }
}

/// A range of guest RAM with its bitmap.
#[derive(Debug)]
struct Tracked {
    gpa: Range<u64>,
    pages: Bitmap,
}

/// Written pages of a device's memory, and where that is now.
#[derive(Debug)]
pub(crate) struct DevicePages {
    size: u64,
    /// Guest-physical address, or [`NOWHERE`].
    gpa: AtomicU64,
    pages: Bitmap,
}

/// No address of a mapping: not aligned.
const NOWHERE: u64 = u64::MAX;

impl DevicePages {
    /// For memory of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size, gpa: AtomicU64::new(NOWHERE), pages: Bitmap::new(size) }
    }

    /// It is found at `gpa` from now on. What is still to come of writes at another address would be lost,
    /// so that after a move everything counts as written.
    pub fn place(&self, gpa: Option<u64>) {
        let gpa = gpa.unwrap_or(NOWHERE);
        if self.gpa.swap(gpa, Ordering::AcqRel) != gpa {
            self.mark(0, self.size);
        }
    }

    /// Records a write.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset < end {
            self.pages.for_each_word(offset..end, |word, bits, _| {
                if word.load(Ordering::Relaxed) & bits != bits {
                    word.fetch_or(bits, Ordering::AcqRel);
                }
            });
        }
    }

    /// Records what was written in a range of guest-physical addresses.
    fn mark_guest(&self, range: &Range<u64>) {
        let gpa = self.gpa.load(Ordering::Acquire);
        let start = range.start.max(gpa);
        if gpa != NOWHERE && start < range.end {
            self.mark(start - gpa, range.end - start);
        }
    }

    /// Takes the offsets of written pages.
    pub fn take(&self) -> Vec<u64> {
        let mut taken = Vec::new();
        self.pages.for_each_word(0..self.size, |word, bits, offset| {
            let mut rest = word.swap(0, Ordering::AcqRel) & bits;
            while rest != 0 {
                taken.push(offset + u64::from(rest.trailing_zeros()) * PAGE);
                rest &= rest - 1;
            }
        });
        taken
    }
}

/// A bit for each page of guest RAM. Shared by every thread; all operations are atomic.
///
/// Nothing is recorded until it is [enabled](Self::set_enabled).
#[derive(Debug)]
pub struct DirtyTracker {
    enabled: AtomicBool,
    /// Sorted by address.
    ranges: Box<[Tracked]>,
    devices: RwLock<Vec<Arc<DevicePages>>>,
}

impl DirtyTracker {
    /// A tracker for ranges of guest-physical addresses, in ascending order and a whole number of pages
    /// each. Addresses outside them are ignored.
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let tracked = |gpa: Range<u64>| {
            let pages = Bitmap::new(gpa.end - gpa.start);
            Tracked { gpa, pages }
        };
        let ranges = ranges.into_iter().map(tracked).collect();
        Self { enabled: AtomicBool::new(false), ranges, devices: RwLock::default() }
    }

    /// From now on, passes on what is written to a device's memory.
    pub(crate) fn add_device(&self, pages: Arc<DevicePages>) {
        self.devices.write().unwrap_or_else(PoisonError::into_inner).push(pages);
    }

    /// Turns recording on or off. What was recorded stays.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    /// Whether writes are recorded.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Records a write of `len` bytes at a guest-physical address, if recording is on.
    #[inline]
    pub fn mark(&self, gpa: u64, len: u64) {
        if self.enabled() && len != 0 {
            self.mark_pages(gpa, gpa.saturating_add(len));
        }
    }

    fn mark_pages(&self, start: u64, end: u64) {
        self.for_each_word(start..end, |word, bits, _| {
            word.fetch_or(bits, Ordering::AcqRel);
        });
        for device in self.devices.read().unwrap_or_else(PoisonError::into_inner).iter() {
            device.mark_guest(&(start..end));
        }
    }

    /// Whether the page of a guest-physical address is recorded as written.
    pub fn is_dirty(&self, gpa: u64) -> bool {
        let mut dirty = false;
        self.for_each_word(gpa..gpa.saturating_add(1), |word, bits, _| {
            dirty |= word.load(Ordering::Acquire) & bits != 0;
        });
        dirty
    }

    /// Records a dirty log: bit n of word m is page 64 × m + n from `gpa` on (a multiple of 4 KiB). For
    /// what KVM_GET_DIRTY_LOG returns; recorded even if recording is off.
    pub fn merge(&self, gpa: u64, log: &[u64]) {
        for (index, &word) in log.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let page = index as u64 * 64 + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                let start = gpa.saturating_add(page.saturating_mul(PAGE));
                self.mark_pages(start, start.saturating_add(PAGE));
            }
        }
    }

    /// Takes what was recorded for a range of guest-physical addresses, and forgets it: the addresses of
    /// the written pages, in ascending order. A page counts as a whole, also if the range cuts it.
    ///
    /// A write recorded at the same time is either in this harvest or in the next.
    pub fn take(&self, range: Range<u64>) -> DirtyPages {
        let mut words = Vec::new();
        self.for_each_word(range, |word, bits, gpa| {
            if word.load(Ordering::Relaxed) & bits != 0 {
                let taken = word.fetch_and(!bits, Ordering::AcqRel) & bits;
                words.push((gpa, taken));
            }
        });
        DirtyPages { words: words.into_iter(), current: (0, 0) }
    }

    /// Collects and clears the dirty flags of the EPT leaves of a range. Whoever calls it must drop the
    /// processors' cached translations of the range before they run on, or they would not set the flags
    /// again.
    ///
    /// A large leaf dirties all its pages: [split](EptBuilder::split) the range to 4 KiB when recording
    /// is turned on.
    ///
    /// # Errors
    /// What the tables' memory returned.
    pub fn harvest_ept<M: TableMemory, A: PageAllocator>(
        &self,
        ept: &EptBuilder<M, A>,
        gpa: u64,
        size: u64,
    ) -> Result<(), MapError<M::Error>> {
        ept.take_dirty(gpa, size, |leaf| self.mark_pages(leaf.gpa, leaf.gpa + leaf.page_size.bytes()))
    }

    /// Turns recording on for a range mapped by an EPT: splits its leaves to 4 KiB and forgets both what
    /// was recorded and the dirty flags. Cached translations must be dropped afterwards.
    ///
    /// # Errors
    /// No page left for the split tables, or what the tables' memory returned.
    pub fn start_ept<M: TableMemory, A: PageAllocator>(
        &self,
        ept: &mut EptBuilder<M, A>,
        gpa: u64,
        size: u64,
    ) -> Result<(), MapError<M::Error>> {
        ept.split(gpa, size, PageSize::Size4K)?;
        ept.take_dirty(gpa, size, |_| {})?;
        self.take(gpa..gpa.saturating_add(size));
        self.set_enabled(true);
        Ok(())
    }

    /// Shows each bitmap word that has pages of `range`: the word, the bits that lie in the range, and
    /// the address of the page of bit 0.
    #[inline]
    fn for_each_word(&self, range: Range<u64>, mut show: impl FnMut(&AtomicU64, u64, u64)) {
        for tracked in &self.ranges {
            let start = range.start.max(tracked.gpa.start);
            let end = range.end.min(tracked.gpa.end);
            if start >= end {
                continue;
            }
            let base = tracked.gpa.start;
            tracked.pages.for_each_word(start - base..end - base, |word, bits, offset| {
                show(word, bits, base + offset);
            });
        }
    }
}

/// The addresses of written pages: see [`DirtyTracker::take`].
#[derive(Debug)]
pub struct DirtyPages {
    /// Address of the page of bit 0, and the bits.
    words: std::vec::IntoIter<(u64, u64)>,
    current: (u64, u64),
}

impl Iterator for DirtyPages {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.current.1 == 0 {
            self.current = self.words.next()?;
        }
        let (gpa, bits) = &mut self.current;
        let page = *gpa + u64::from(bits.trailing_zeros()) * PAGE;
        *bits &= *bits - 1;
        Some(page)
    }
}

/// The bitmap of a vm-memory region: hands writes on to a [`DirtyTracker`] and to whoever
/// [watches](Arena::watch_device_writes) the arena, and keeps the memory of the region mapped.
///
/// The default one tracks nothing, for regions that vm-memory maps itself.
#[derive(Clone, Debug, Default)]
pub struct DeviceWrites {
    tracker: Option<Arc<DirtyTracker>>,
    /// Guest-physical address of the region.
    gpa: u64,
    /// Held for as long as the region is, and where in it the region lies.
    arena: Option<(Arc<Arena>, u64)>,
}

impl DeviceWrites {
    /// Marks writes to a region at `gpa`.
    pub(crate) fn new(tracker: Arc<DirtyTracker>, gpa: u64) -> Self {
        Self { tracker: Some(tracker), gpa, arena: None }
    }

    pub(crate) fn keeping(self, arena: Arc<Arena>, hpa: u64) -> Self {
        Self { arena: Some((arena, hpa)), ..self }
    }

    #[inline]
    fn at(&self, offset: usize) -> DeviceWritesSlice<'_> {
        DeviceWritesSlice { writes: self, offset: offset as u64 }
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceWrites {
    type S = DeviceWritesSlice<'a>;
}

impl bitmap::Bitmap for DeviceWrites {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.at(offset).mark_dirty(0, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.at(offset).dirty_at(0)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> DeviceWritesSlice<'_> {
        self.at(offset)
    }
}

impl NewBitmap for DeviceWrites {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// A part of a [`DeviceWrites`].
#[derive(Clone, Copy, Debug)]
pub struct DeviceWritesSlice<'a> {
    writes: &'a DeviceWrites,
    offset: u64,
}

impl WithBitmapSlice<'_> for DeviceWritesSlice<'_> {
    type S = Self;
}

impl BitmapSlice for DeviceWritesSlice<'_> {}

impl bitmap::Bitmap for DeviceWritesSlice<'_> {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        let offset = self.offset.wrapping_add(offset as u64);
        if let Some(tracker) = &self.writes.tracker {
            tracker.mark(self.writes.gpa.wrapping_add(offset), len as u64);
        }
        if let Some((arena, hpa)) = &self.writes.arena {
            arena.device_wrote(hpa.wrapping_add(offset), len as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let gpa = self.writes.gpa.wrapping_add(self.offset).wrapping_add(offset as u64);
        self.writes.tracker.as_ref().is_some_and(|tracker| tracker.is_dirty(gpa))
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> Self {
        Self { offset: self.offset.wrapping_add(offset as u64), ..*self }
    }
}
