//! The memory mapping that everything else stands on: the one module with `unsafe` code.
#![allow(unsafe_code)]

use crate::dirty::DeviceWrites;
use crate::root::FreePages;
use crate::table::{PageAllocator, TableMemory};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Bytes, FileOffset, VolatileSlice};

/// How an [`Arena`] is backed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaOptions {
    /// Back the memory by reserved huge pages of 2 MiB (hugetlbfs). Fails if the host has too few.
    /// Otherwise the host is only advised to use transparent huge pages.
    pub huge_pages: bool,
}

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A size of zero.
    #[error("memory size is zero")]
    Empty,
    /// The size is no multiple of the page size, or larger than the address space.
    #[error("memory size {size:#x} is not a usable multiple of the page size {page:#x}")]
    Size {
        /// What was asked for, in bytes.
        size: u64,
        /// The page size that backs the memory, in bytes.
        page: u64,
    },
    /// The host refused.
    #[error("cannot back {size:#x} bytes of memory: {what} failed")]
    Host {
        /// What was asked for, in bytes.
        size: u64,
        /// The call that failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// There is no memory at this address of the arena, or it is not aligned to the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory at host-physical address {pa:#x}")]
pub struct OutOfArena {
    /// The address accessed.
    pub pa: u64,
}

/// "Host-physical" memory: one shared mapping of an anonymous file, addressed from 0 to its length.
///
/// Pages are zero at first, and take host memory only once they are touched. Guests, devices and
/// processors on other threads access it at the same time, so it is never lent out as a slice: accesses
/// of eight bytes are atomic, others are copies.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    len: usize,
    file: Arc<File>,
    /// The hypervisor's own pages.
    root: FreePages,
    watcher: Watcher,
}

/// Is told the address and length of a device's write.
type Watch = dyn Fn(u64, u64) + Send + Sync;

/// Who is told of devices' writes.
#[derive(Default)]
struct Watcher(RwLock<Option<Box<Watch>>>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

// SAFETY: the mapping is not tied to a thread, and it lives until the arena is dropped.
unsafe impl Send for Arena {}
// SAFETY: all accesses through `&self` are atomic or volatile copies.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `size` bytes, without a root area.
    ///
    /// # Errors
    /// A size of zero or that is no whole number of pages; the host cannot back it.
    pub fn new(size: u64, options: &ArenaOptions) -> Result<Self, ArenaError> {
        Self::with_root_area(size, 0..0, options)
    }

    /// Maps `size` bytes, of which `root` belongs to the hypervisor: [`PageAllocator`] hands out its pages.
    ///
    /// # Errors
    /// As for [`Arena::new`].
    pub fn with_root_area(size: u64, root: Range<u64>, options: &ArenaOptions) -> Result<Self, ArenaError> {
        let page = if options.huge_pages { 2 << 20 } else { 4 << 10 };
        if size == 0 {
            return Err(ArenaError::Empty);
        }
        if !size.is_multiple_of(page) || size > isize::MAX as u64 {
            return Err(ArenaError::Size { size, page });
        }
        let host = |what| ArenaError::Host { size, what, source: io::Error::last_os_error() };
        let huge = if options.huge_pages { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
        // SAFETY: the name is a NUL-terminated string; the call touches no other memory.
        let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC | huge) };
        if fd < 0 {
            return Err(host("memfd_create"));
        }
        // SAFETY: `fd` was just returned to us and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size).map_err(|source| ArenaError::Host { size, what: "ftruncate", source })?;
        let len = size as usize;
        // Huge pages are reserved here and now: better an error than a SIGBUS later.
        let reserve = if options.huge_pages { 0 } else { libc::MAP_NORESERVE };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | reserve,
                file.as_raw_fd(),
                0,
            )
        };
        let base = match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => base,
            _ => return Err(host("mmap")),
        };
        if !options.huge_pages {
            // Advice only: hosts without transparent huge pages refuse it and that is fine.
            // SAFETY: the range is the mapping just made; the advice does not change its contents.
            unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { base, len, file: Arc::new(file), root: FreePages::new(root), watcher: Watcher::default() })
    }

    /// Where address 0 is mapped. Valid for [`len`](Self::len) bytes while the arena lives. The memory
    /// is shared: whoever uses the pointer must make atomic or volatile accesses.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The size in bytes, a multiple of 4 KiB.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Always false: an arena has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pages of 4 KiB its root area has, free or not.
    pub fn root_pages(&self) -> u64 {
        self.root.len()
    }

    /// The anonymous file behind the mapping; address 0 is its offset 0.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The eight bytes at `pa` as an atomic, if they are aligned and within the arena.
    #[inline]
    fn atomic(&self, pa: u64) -> Option<&AtomicU64> {
        // The length is a multiple of 8, so an aligned address within it has all eight bytes.
        if pa & 7 != 0 || pa >= self.len as u64 {
            return None;
        }
        // SAFETY: aligned and within the mapping, which outlives the reference. All accesses through
        // this type are atomic; guests' own accesses are made by machine instructions or volatile.
        Some(unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(pa as usize).cast()) })
    }

    /// The eight bytes at `pa`, little-endian; `None` if not aligned or out of range.
    #[inline]
    pub fn read_u64(&self, pa: u64) -> Option<u64> {
        Some(u64::from_le(self.atomic(pa)?.load(Ordering::Relaxed)))
    }

    /// Replaces the eight bytes at `pa`; `None` if not aligned or out of range.
    #[inline]
    pub fn write_u64(&self, pa: u64, value: u64) -> Option<()> {
        self.atomic(pa)?.store(value.to_le(), Ordering::Relaxed);
        Some(())
    }

    /// The four bytes at `pa` as an atomic, if they are aligned and within the arena.
    #[inline]
    fn atomic_u32(&self, pa: u64) -> Option<&AtomicU32> {
        if pa & 3 != 0 || pa >= self.len as u64 {
            return None;
        }
        // SAFETY: as for `atomic`; guests' accesses of other widths overlap these on hardware too.
        Some(unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(pa as usize).cast()) })
    }

    /// The four bytes at `pa`, little-endian; `None` if not aligned or out of range.
    #[inline]
    pub fn read_u32(&self, pa: u64) -> Option<u32> {
        Some(u32::from_le(self.atomic_u32(pa)?.load(Ordering::Relaxed)))
    }

    /// Replaces the four bytes at `pa`; `None` if not aligned or out of range.
    #[inline]
    pub fn write_u32(&self, pa: u64, value: u32) -> Option<()> {
        self.atomic_u32(pa)?.store(value.to_le(), Ordering::Relaxed);
        Some(())
    }

    /// Replaces the eight bytes at `pa` by `new` if they are `current`; the inner result holds what was
    /// there. `None` if not aligned or out of range.
    #[inline]
    pub fn compare_exchange_u64(&self, pa: u64, current: u64, new: u64) -> Option<Result<u64, u64>> {
        let cell = self.atomic(pa)?;
        let result = cell.compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire);
        Some(result.map(u64::from_le).map_err(u64::from_le))
    }

    /// Sets bits of the eight bytes at `pa` and returns what was there; `None` if not aligned or out of
    /// range.
    #[inline]
    pub fn fetch_or_u64(&self, pa: u64, bits: u64) -> Option<u64> {
        Some(u64::from_le(self.atomic(pa)?.fetch_or(bits.to_le(), Ordering::AcqRel)))
    }

    /// The range as a slice for volatile copies.
    fn slice(&self, pa: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let end = pa.checked_add(len as u64)?;
        if end > self.len as u64 {
            return None;
        }
        // SAFETY: within the mapping, which outlives the slice; its accesses are volatile.
        Some(unsafe { VolatileSlice::new(self.base.as_ptr().add(pa as usize), len) })
    }

    /// Copies bytes out; `None` if the range is not within the arena.
    pub fn read_bytes(&self, pa: u64, buf: &mut [u8]) -> Option<()> {
        self.slice(pa, buf.len())?.read_slice(buf, 0).ok()
    }

    /// Copies bytes in; `None` if the range is not within the arena.
    pub fn write_bytes(&self, pa: u64, buf: &[u8]) -> Option<()> {
        self.slice(pa, buf.len())?.write_slice(buf, 0).ok()
    }

    /// From now on `watcher` is told, with address and length, what devices have written through the
    /// vm-memory view of guest RAM: for processors that keep decoded code. One watcher at a time; writes
    /// through the arena itself are not reported.
    pub fn watch_device_writes(&self, watcher: impl Fn(u64, u64) + Send + Sync + 'static) {
        *self.watcher.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(watcher));
    }

    #[inline]
    pub(crate) fn device_wrote(&self, pa: u64, len: u64) {
        if let Some(watcher) = &*self.watcher.0.read().unwrap_or_else(PoisonError::into_inner) {
            watcher(pa, len);
        }
    }

    /// A view of `len` bytes at `pa` for vm-memory, marking writes through `writes`; `None` if the range
    /// is not within the arena or `pa` is not aligned to 4 KiB.
    pub(crate) fn region(
        self: &Arc<Self>,
        pa: u64,
        len: u64,
        writes: DeviceWrites,
    ) -> Option<MmapRegion<DeviceWrites>> {
        let slice = self.slice(pa, usize::try_from(len).ok()?)?;
        let pointer = slice.ptr_guard_mut().as_ptr();
        let builder = MmapRegionBuilder::new_with_bitmap(slice.len(), writes.keeping(self.clone(), pa))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(self.file.clone(), pa));
        // SAFETY: the pointer and the length are a range of our mapping. The region keeps the arena
        // alive, because its bitmap holds a reference to it.
        unsafe { builder.with_raw_mmap_pointer(pointer) }.build().ok()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that borrows or counts on it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The pages of the root area: VMCS, EPT tables, bitmaps of the hypervisor.
impl PageAllocator for Arena {
    /// The pages come zeroed.
    fn alloc_page(&self) -> Option<u64> {
        let page = self.root.take()?;
        self.write_bytes(page, &[0; 4096])?;
        Some(page)
    }

    /// A page that was not handed out is ignored.
    fn free_page(&self, pa: u64) {
        self.root.give(pa);
    }
}

impl TableMemory for Arena {
    type Error = OutOfArena;

    #[inline]
    fn read(&self, pa: u64) -> Result<u64, OutOfArena> {
        self.read_u64(pa).ok_or(OutOfArena { pa })
    }

    #[inline]
    fn write(&self, pa: u64, value: u64) -> Result<(), OutOfArena> {
        self.write_u64(pa, value).ok_or(OutOfArena { pa })
    }

    #[inline]
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, OutOfArena> {
        self.compare_exchange_u64(pa, current, new).ok_or(OutOfArena { pa })
    }

    #[inline]
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, OutOfArena> {
        self.fetch_or_u64(pa, bits).ok_or(OutOfArena { pa })
    }
}
