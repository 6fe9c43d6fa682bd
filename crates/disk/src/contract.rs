//! The contract between a disk and those who use it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::Arc;

/// The unit in which guests address disks unless a disk says otherwise, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// Why a disk could not do what was asked.
///
/// When a disk cannot be opened the image is not named, as the caller knows it, but a backing file is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The range does not lie inside the disk, or `offset + len` overflows. Nothing was transferred.
    #[error("range of {len} bytes at {offset} is outside the disk of {size} bytes")]
    OutOfRange {
        /// First byte of the range.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// The disk is read-only. Nothing was changed.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The host refused or failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the file's name where it is known.
        what: String,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The host does not let the file be opened.
    #[error(transparent)]
    Open(io::Error),
    /// Another disk has the file locked.
    #[error("in use by another disk")]
    InUse,
    /// The image is damaged or was made to look so; it says where.
    #[error("the image is corrupt: {0}")]
    Corrupt(String),
    /// The image or the request needs something this crate does not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The file is not an image of the format it was opened as.
    #[error("not a {0} image")]
    WrongFormat(&'static str),
    /// A writable file was given without naming its format: to guess would let a guest that writes
    /// an image header into its raw disk choose what the host opens next time.
    #[error("the format of a writable disk must be named (raw or qcow2)")]
    FormatNeeded,
    /// The image names a backing file that the options do not allow.
    #[error("{0}")]
    BackingRefused(String),
    /// A backing file cannot be opened.
    #[error("backing file {}: {source}", path.display())]
    Backing {
        /// The file that is at fault.
        path: PathBuf,
        /// Why.
        source: Box<DiskError>,
    },
    /// An option makes no sense: the message says which.
    #[error("{0}")]
    InvalidOption(String),
}

impl DiskError {
    /// A host error with what was being done.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    pub(crate) fn corrupt(why: impl Into<String>) -> Self {
        Self::Corrupt(why.into())
    }

    /// Whether the cause is that the host has no room left: a device may wish to pause its guest.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Result of a disk operation.
pub type Result<T, E = DiskError> = std::result::Result<T, E>;

/// What does not change while a disk is open, but for [`Disk::resize`]'s size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Smallest unit a guest should address, in bytes: 512 or 4096.
    pub logical_sector: u32,
    /// Unit the host can write without reading first, in bytes: a power of two, at least
    /// `logical_sector`.
    pub physical_sector: u32,
    /// Unit in which [`Disk::discard`] frees room, in bytes; 0 where discard has no effect.
    pub discard_granularity: u32,
    /// Whether every change is refused with [`DiskError::ReadOnly`].
    pub read_only: bool,
    /// Whether a write may be lost by a power failure until [`Disk::flush`] returns. False under
    /// the cache modes `writethrough` and `directsync`: a device should then report its write cache
    /// as off.
    pub volatile_cache: bool,
}

/// What an [`Extent`] is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The bytes will be read.
    Read,
    /// The bytes will be overwritten in place.
    Write,
}

/// A range of a disk that lies in one piece in a host file, so that an engine can transfer it
/// without going through the disk. The disk does not give that place to anything else while the
/// value lives.
#[derive(Debug, Clone)]
pub struct Extent {
    /// The host file.
    pub file: Arc<File>,
    /// Where in the file the range begins, in bytes.
    pub offset: u64,
    pub(crate) _hold: Option<Arc<()>>,
}

/// A disk: an array of bytes, [`size`](Disk::size) long, that can be read and written from any
/// number of threads.
///
/// # Ranges
///
/// Offsets and lengths are in bytes and need no alignment; whole, aligned physical sectors are
/// fastest. A range must lie inside the disk: otherwise, and where `offset + len` overflows, the
/// answer is [`DiskError::OutOfRange`] and no byte has moved. The empty range at any offset up to
/// the size is valid and does nothing. The buffers of a vector are filled or written in order, and
/// their total length is the length of the range; an operation transfers all of it or fails.
///
/// # Failure
///
/// A read that failed may have changed any part of its buffers. A write, discard or write-zeroes
/// that failed may have changed any part of its range, and nothing outside it. A file that is
/// shorter than the disk (a sparse or truncated image) reads as zeroes behind its end; a *metadata*
/// table behind the end is [`DiskError::Corrupt`].
///
/// # Order and overlap
///
/// A read sees every write that returned before it began. Operations that run at the same time are
/// in no order: where a write overlaps another operation, each byte of the physical sectors that both
/// touch is what it was or what it becomes, and nothing else is affected, whatever the format.
/// Operations that share a sector or a cluster without overlapping do not disturb each other.
///
/// # Durability
///
/// When [`flush`](Disk::flush) returns `Ok`, every write, discard and write-zeroes that *returned*
/// before the flush began is on stable storage, metadata included, unless the cache mode is
/// `unsafe`. If a flush fails, it is unknown which of them are. Without a flush any subset of the
/// writes may survive a crash, but the image stays consistent: at worst it has lost clusters
/// (leaks). Where [`DiskInfo::volatile_cache`] is false each write is durable when it returns.
///
/// Dropping a disk writes out cached metadata as a flush does, errors being logged.
pub trait Disk: Send + Sync {
    /// Sector sizes and what the disk can do.
    fn info(&self) -> DiskInfo;

    /// Size in bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Fills `bufs` from `offset` on.
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()>;

    /// Writes `bufs` from `offset` on.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()>;

    /// [`read_at`](Disk::read_at) if that can be done without waiting for a device or a lock (the
    /// bytes are in the page cache). `Ok(false)`: it cannot, and the buffers may be partly changed.
    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool>;

    /// [`write_at`](Disk::write_at) if that can be done without waiting (the page cache takes the
    /// bytes). `Ok(false)`: it cannot; a part may be written, and the caller is to write all of it
    /// again. Never where [`DiskInfo::volatile_cache`] is false: a durable write waits.
    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool>;

    /// Makes everything that was written durable; see *Durability*.
    fn flush(&self) -> Result<()>;

    /// Tells that the range's content is no longer needed. Afterwards each sector of it reads as it
    /// was or as zeroes, and stays so until written. Parts that are not whole
    /// [`DiskInfo::discard_granularity`] units, and disks that cannot free room, keep theirs: a
    /// hint, not an erasure.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes the range read as zeroes, as writing zeroes would; `unmap` allows to free the room
    /// behind it.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;

    /// Grows the disk; what is added reads as zeroes and is durable when this returns. A size that
    /// is not a multiple of 512, or smaller than now, is [`DiskError::InvalidOption`]. A block
    /// device cannot grow ([`DiskError::Unsupported`]).
    fn resize(&self, size: u64) -> Result<()>;

    /// Where the range lies in a host file, if it lies there in one piece and is to be had without
    /// waiting; `None` is always a valid answer. For [`Access::Write`], only if overwriting that
    /// place is all that a write has to do. Both offset and length suit the file's O_DIRECT
    /// alignment, and so do the addresses and lengths of [`Buffer`](crate::Buffer)s.
    fn extent(&self, access: Access, offset: u64, len: u64) -> Option<Extent>;
}

impl dyn Disk + '_ {
    /// [`read_at`](Disk::read_at) with one buffer.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, &mut [IoSliceMut::new(buf)])
    }

    /// [`write_at`](Disk::write_at) with one buffer.
    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_at(offset, &[IoSlice::new(buf)])
    }
}

/// Refuses a range that is not inside `size` bytes.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange { offset, len, size }),
    }
}

/// Total length of a read vector.
pub(crate) fn len_mut(bufs: &[IoSliceMut<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// Total length of a write vector.
pub(crate) fn len_of(bufs: &[IoSlice<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// What a resize must satisfy, whatever the format.
pub(crate) fn check_resize(now: u64, size: u64) -> Result<()> {
    if !size.is_multiple_of(SECTOR_SIZE) || size > i64::MAX as u64 {
        return Err(DiskError::InvalidOption(format!("{size} is not a disk size: not a multiple of 512")));
    }
    if size < now {
        return Err(DiskError::InvalidOption(format!("a disk of {now} bytes cannot shrink to {size}")));
    }
    Ok(())
}
