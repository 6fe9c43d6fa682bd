//! Raw images: the file is the disk.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::contract::{
    Access, Disk, DiskError, DiskInfo, Extent, Result, SECTOR_SIZE, check_range, check_resize, len_mut,
    len_of,
};
use crate::storage::{MemStorage, Storage, zero};

/// A raw disk on a [`Storage`]. A length that is not a multiple of 512 is rounded up: the missing
/// bytes read as zeroes, and the first write to the last sector adds them.
pub struct RawDisk {
    storage: Arc<dyn Storage>,
    size: AtomicU64,
    info: DiskInfo,
}

impl RawDisk {
    /// The disk whose bytes are those of `storage`. With `write_through` each write is flushed.
    pub fn new(storage: Arc<dyn Storage>, read_only: bool, write_through: bool) -> Result<Self> {
        let len = storage.len()?;
        let size = len.checked_next_multiple_of(SECTOR_SIZE).filter(|&size| size <= i64::MAX as u64);
        let size = size.ok_or_else(|| DiskError::Unsupported(format!("a raw disk of {len} bytes")))?;
        let (logical_sector, physical_sector) = storage.sectors();
        let info = DiskInfo {
            logical_sector,
            physical_sector,
            discard_granularity: physical_sector.max(4096),
            read_only,
            volatile_cache: !write_through,
        };
        Ok(Self { storage, size: AtomicU64::new(size), info })
    }

    /// A writable disk of `size` zeroes in memory, for tests and scratch disks.
    pub fn in_memory(size: u64) -> Result<Self> {
        let storage = MemStorage::with_limit(Vec::new(), size.max(1 << 30));
        storage.set_len(size)?;
        Self::new(Arc::new(storage), false, false)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size())
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        if self.info.read_only { Err(DiskError::ReadOnly) } else { Ok(()) }
    }

    fn written(&self) -> Result<()> {
        if self.info.volatile_cache { Ok(()) } else { self.storage.flush() }
    }
}

impl Disk for RawDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check(offset, len_mut(bufs))?;
        self.storage.read_at(offset, bufs)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.check_write(offset, len_of(bufs))?;
        self.storage.write_at(offset, bufs)?;
        self.written()
    }

    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool> {
        self.check(offset, len_mut(bufs))?;
        self.storage.try_read_at(offset, bufs)
    }

    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool> {
        self.check_write(offset, len_of(bufs))?;
        if self.info.volatile_cache { self.storage.try_write_at(offset, bufs) } else { Ok(false) }
    }

    fn flush(&self) -> Result<()> {
        if self.info.read_only { Ok(()) } else { self.storage.flush() }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        self.storage.punch_hole(offset, len)?;
        self.written()
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, len)?;
        if !(unmap && self.storage.punch_hole(offset, len)?) {
            zero(&*self.storage, offset, len)?;
        }
        self.written()
    }

    fn resize(&self, size: u64) -> Result<()> {
        if self.info.read_only {
            return Err(DiskError::ReadOnly);
        }
        check_resize(self.size(), size)?;
        self.storage.set_len(size)?;
        self.storage.flush()?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn extent(&self, access: Access, offset: u64, len: u64) -> Option<Extent> {
        match access {
            Access::Read => self.check(offset, len).ok()?,
            Access::Write if !self.info.volatile_cache => return None,
            Access::Write => self.check_write(offset, len).ok()?,
        }
        let file = self.storage.direct(access, offset, len)?;
        Some(Extent { file, offset, _hold: None })
    }
}
