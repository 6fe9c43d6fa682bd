//! The file layer under the image formats: a growing array of bytes. Formats see only this trait,
//! so that tests run them on memory, record their writes, and cut them short as a crash would.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::contract::{Access, DiskError, Result, len_mut, len_of};

/// What an image is kept in.
///
/// Reads behind the end give zeroes; writes behind the end make the storage longer, with zeroes
/// between. Order and durability are as in [`Disk`](crate::Disk).
pub trait Storage: Send + Sync {
    /// For messages: the file's path.
    fn name(&self) -> String;
    /// Length in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `bufs` from `offset` on.
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()>;
    /// Writes `bufs` from `offset` on.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()>;
    /// [`read_at`](Storage::read_at) if it need not wait.
    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool>;
    /// [`write_at`](Storage::write_at) inside the present length, if it need not wait.
    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool>;
    /// Makes everything written durable.
    fn flush(&self) -> Result<()>;
    /// Frees the room of a range inside the length, which then reads as zeroes. `Ok(false)`: the
    /// storage cannot, and nothing changed.
    fn punch_hole(&self, offset: u64, len: u64) -> Result<bool>;
    /// Makes a range inside the length read as zeroes without freeing it. `Ok(false)`: it has no
    /// better way than writing them, and nothing changed.
    fn zero_range(&self, offset: u64, len: u64) -> Result<bool>;
    /// Cuts or grows (with zeroes) to `len` bytes.
    fn set_len(&self, len: u64) -> Result<()>;
    /// The host file to transfer the range with, if a kernel engine may do so.
    fn direct(&self, access: Access, offset: u64, len: u64) -> Option<Arc<File>>;
    /// Logical and physical sector size in bytes.
    fn sectors(&self) -> (u32, u32);
}

/// Storage in memory: for tests, fuzzing, and small scratch disks.
#[derive(Debug, Default)]
pub struct MemStorage {
    bytes: Mutex<Vec<u8>>,
    limit: u64,
}

impl MemStorage {
    /// Storage that begins with `bytes` and grows up to 1 GiB.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::with_limit(bytes, 1 << 30)
    }

    /// Storage that begins with `bytes` and refuses, as a full file system would, to grow past
    /// `limit` bytes.
    pub fn with_limit(bytes: Vec<u8>, limit: u64) -> Self {
        Self { bytes: Mutex::new(bytes), limit }
    }

    /// A copy of the content.
    pub fn snapshot(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, bytes: &mut Vec<u8>, end: Option<u64>) -> Result<()> {
        match end {
            Some(end) if end <= self.limit => {
                if end > bytes.len() as u64 {
                    bytes.resize(end as usize, 0);
                }
                Ok(())
            }
            _ => Err(DiskError::io("memory storage", std::io::ErrorKind::StorageFull.into())),
        }
    }
}

impl Storage for MemStorage {
    fn name(&self) -> String {
        "memory".into()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let bytes = self.lock();
        let mut from = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        for buf in bufs {
            let n = buf.len().min(from.len());
            buf[..n].copy_from_slice(&from[..n]);
            buf[n..].fill(0);
            from = &from[n..];
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let len = len_of(bufs);
        if len == 0 {
            return Ok(());
        }
        let mut bytes = self.lock();
        self.grow(&mut bytes, offset.checked_add(len))?;
        let mut at = offset as usize;
        for buf in bufs {
            bytes[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        Ok(())
    }

    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool> {
        debug_assert!(len_mut(bufs) <= isize::MAX as u64);
        self.read_at(offset, bufs).map(|()| true)
    }

    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool> {
        self.write_at(offset, bufs).map(|()| true)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<bool> {
        self.zero_range(offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> Result<bool> {
        let mut bytes = self.lock();
        let end = offset.saturating_add(len).min(bytes.len() as u64);
        if let Some(range) = bytes.get_mut(offset.min(end) as usize..end as usize) {
            range.fill(0);
        }
        Ok(true)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut bytes = self.lock();
        self.grow(&mut bytes, Some(len))?;
        bytes.truncate(len as usize);
        Ok(())
    }

    fn direct(&self, _access: Access, _offset: u64, _len: u64) -> Option<Arc<File>> {
        None
    }

    fn sectors(&self) -> (u32, u32) {
        (512, 512)
    }
}

/// Reads `len` bytes that must lie inside the storage.
pub(crate) fn read_exact(storage: &dyn Storage, offset: u64, buf: &mut [u8], what: &str) -> Result<()> {
    let end = offset.checked_add(buf.len() as u64);
    if end.is_none_or(|end| end > storage.len().unwrap_or(0)) {
        return Err(DiskError::corrupt(format!("{what} at {offset:#x} lies behind the end of the file")));
    }
    storage.read_at(offset, &mut [IoSliceMut::new(buf)])
}

/// Writes one buffer.
pub(crate) fn write(storage: &dyn Storage, offset: u64, buf: &[u8]) -> Result<()> {
    storage.write_at(offset, &[IoSlice::new(buf)])
}

/// Zeroes a range by the cheapest way the storage has.
pub(crate) fn zero(storage: &dyn Storage, offset: u64, len: u64) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    if storage.zero_range(offset, len)? {
        return Ok(());
    }
    let zeroes = crate::Buffer::new(CHUNK.min(len as usize));
    let mut done = 0;
    while done < len {
        let n = (len - done).min(CHUNK as u64) as usize;
        write(storage, offset + done, &zeroes[..n])?;
        done += n as u64;
    }
    Ok(())
}
