//! Host files and block devices, under QEMU's five cache modes.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::contract::{Access, DiskError, Result, len_mut, len_of};
use crate::storage::Storage;
use crate::sys::Cached;
use crate::{Buffer, sys};

/// How the host caches a disk.
///
/// | mode | page cache | [`flush`](crate::Disk::flush) | each write durable on return |
/// |---|---|---|---|
/// | `none` | bypassed (O_DIRECT) | fdatasync | no |
/// | `writeback` | used | fdatasync | no |
/// | `writethrough` | used | fdatasync | yes: a flush follows each |
/// | `directsync` | bypassed (O_DIRECT) | fdatasync | yes: a flush follows each |
/// | `unsafe` | used | writes metadata out, waits for nothing | no, and after a power failure the image may be lost |
///
/// "None" means no *host* page cache; the drive still has a write cache, which flushes empty.
/// A killed process loses nothing that a flush covered under any of the five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// O_DIRECT, with a volatile write cache.
    None,
    /// The page cache, with a volatile write cache.
    #[default]
    Writeback,
    /// The page cache, without a volatile write cache.
    Writethrough,
    /// O_DIRECT, without a volatile write cache.
    Directsync,
    /// The page cache; flushes are not waited for.
    Unsafe,
}

impl CacheMode {
    /// Whether the page cache is bypassed.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether each write is durable when it returns.
    pub fn is_write_through(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

impl std::str::FromStr for CacheMode {
    type Err = DiskError;

    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "none" => Self::None,
            "writeback" => Self::Writeback,
            "writethrough" => Self::Writethrough,
            "directsync" => Self::Directsync,
            "unsafe" => Self::Unsafe,
            _ => return Err(DiskError::InvalidOption(format!("{s}: no such cache mode"))),
        })
    }
}

/// Alignment assumed for O_DIRECT on regular files: no Linux file system asks for more, and the
/// kernel tells the true one only on some of them.
const FILE_ALIGN: u32 = 4096;

/// A regular file or block device as [`Storage`].
///
/// Under O_DIRECT, requests whose offset, length or addresses are not aligned go through a bounce
/// buffer; a write of part of a block then reads the block first, and excludes other writes.
pub struct HostFile {
    file: Arc<File>,
    path: PathBuf,
    cache: CacheMode,
    /// What offset, length and address must be multiples of; 1 with the page cache.
    align: u64,
    logical: u32,
    physical: u32,
    is_block: bool,
    /// Held for writing by a read-modify-write.
    blocks: RwLock<()>,
    at_once: AtOnce,
}

/// What is known of writes to the page cache that must not wait.
///
/// Some file systems can say that a write would wait (`RWF_NOWAIT`). On the others, ext4 among them, nothing
/// is left but to write: a small write of whole pages goes to the page cache and waits for no device, unless
/// the kernel makes writers wait because too much is dirty, or a journal is full. That shows in its time,
/// and then the next writes are refused: they are better off on another thread.
#[derive(Default)]
struct AtOnce {
    /// `RWF_NOWAIT` is not to be had for writes.
    untold: AtomicBool,
    /// Writes yet to be refused.
    refuse: AtomicU32,
}

/// The most bytes written on the guess that this need not wait.
const AT_ONCE: u64 = 256 << 10;
/// The unit of the page cache: a write of part of one may have to read the rest first.
const PAGE: u64 = 4096;
/// A write that took longer has waited; a copy of [`AT_ONCE`] bytes takes a tenth of a millisecond.
const WAITED: Duration = Duration::from_millis(5);
/// How many writes are refused then.
const REFUSED: u32 = 64;

impl AtOnce {
    fn write(&self, file: &File, bufs: &[IoSlice<'_>], offset: u64, len: u64) -> io::Result<bool> {
        if !self.untold.load(Ordering::Relaxed) {
            match sys::write_cached(file, bufs, offset)? {
                Cached::Done => return Ok(true),
                Cached::Waits => return Ok(false),
                Cached::Unknown => self.untold.store(true, Ordering::Relaxed),
            }
        }
        let counted = self.refuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if counted.is_ok() || len > AT_ONCE || !(offset | len).is_multiple_of(PAGE) {
            return Ok(false);
        }
        let start = Instant::now();
        sys::write_vectored(file, bufs, offset)?;
        if start.elapsed() > WAITED {
            self.refuse.store(REFUSED, Ordering::Relaxed);
        }
        Ok(true)
    }
}

impl HostFile {
    /// Opens an existing file or block device. With `lock`, a regular file is locked (flock: shared
    /// for reading, exclusive for writing) until the value is dropped, so that no two disks of this
    /// crate write one image. QEMU's locks are of another kind and do not see these.
    pub fn open(path: &Path, read_only: bool, cache: CacheMode, lock: bool) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        if cache.is_direct() {
            options.custom_flags(libc::O_DIRECT);
        }
        // Before opening: to open a FIFO would wait for its other end.
        let meta = std::fs::metadata(path).map_err(DiskError::Open)?;
        check_type(&meta)?;
        let file = options.open(path).map_err(|e| open_error(cache, e))?;
        Self::from_file(file, path, read_only, cache, lock)
    }

    /// Takes over an open file, which must have been opened to suit `read_only` and `cache`.
    pub fn from_file(file: File, path: &Path, read_only: bool, cache: CacheMode, lock: bool) -> Result<Self> {
        let meta = file.metadata().map_err(DiskError::Open)?;
        let is_block = meta.file_type().is_block_device();
        check_type(&meta)?;
        if lock && !is_block {
            lock_file(&file, read_only)?;
        }
        let (logical, physical) = if is_block { block_sectors(meta.rdev()) } else { (512, FILE_ALIGN) };
        let align = match cache.is_direct() {
            true if is_block => logical.into(),
            true => FILE_ALIGN.into(),
            false => 1,
        };
        let (file, path) = (Arc::new(file), path.to_owned());
        let (blocks, at_once) = (RwLock::default(), AtOnce::default());
        Ok(Self { file, path, cache, align, logical, physical, is_block, blocks, at_once })
    }

    fn error(&self, doing: &str, e: io::Error) -> DiskError {
        if self.align > 1 && e.raw_os_error() == Some(libc::EINVAL) {
            return DiskError::Unsupported(format!(
                "{}: {doing} with O_DIRECT in units of {} bytes; use a cache mode with the page cache",
                self.path.display(),
                self.align
            ));
        }
        DiskError::io(format!("{doing} {}", self.path.display()), e)
    }

    fn aligned(&self, offset: u64, mut bufs: impl Iterator<Item = (usize, usize)>) -> bool {
        let mask = self.align - 1;
        offset & mask == 0 && bufs.all(|(address, len)| (address | len) as u64 & mask == 0)
    }

    /// The aligned range around a range.
    fn outer(&self, offset: u64, len: u64) -> Result<(u64, u64)> {
        let start = offset - offset % self.align;
        let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(self.align));
        match end {
            Some(end) if end <= i64::MAX as u64 => Ok((start, end)),
            _ => Err(DiskError::OutOfRange { offset, len, size: i64::MAX as u64 }),
        }
    }

    /// Reads into a bounce buffer piece by piece, zeroes behind the end of the file.
    fn read_bounced(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let mut at = offset;
        for buf in bufs {
            for piece in buf.chunks_mut(BOUNCE) {
                let (start, end) = self.outer(at, piece.len() as u64)?;
                let bounce = self.read_blocks(start, end)?;
                piece.copy_from_slice(&bounce[(at - start) as usize..][..piece.len()]);
                at += piece.len() as u64;
            }
        }
        Ok(())
    }

    fn read_blocks(&self, start: u64, end: u64) -> Result<Buffer> {
        let mut bounce = Buffer::new((end - start) as usize);
        let read = sys::read_vectored(&self.file, &mut [IoSliceMut::new(&mut bounce)], start);
        let n = read.map_err(|e| self.error("reading", e))?;
        bounce[n..].fill(0);
        Ok(bounce)
    }

    /// Reads, changes and writes whole blocks. Nobody else writes meanwhile.
    fn write_bounced(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let _blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let before = self.len()?;
        let mut at = offset;
        for piece in bufs.iter().flat_map(|buf| buf.chunks(BOUNCE)) {
            let (start, end) = self.outer(at, piece.len() as u64)?;
            let mut bounce = self.read_blocks(start, end)?;
            bounce[(at - start) as usize..][..piece.len()].copy_from_slice(piece);
            sys::write_vectored(&self.file, &[IoSlice::new(&bounce)], start)
                .map_err(|e| self.error("writing", e))?;
            at += piece.len() as u64;
        }
        // The last block may have made the file longer than the bytes asked for.
        if !self.is_block && self.len()? > before.max(at) {
            self.file.set_len(before.max(at)).map_err(|e| self.error("writing", e))?;
        }
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<bool> {
        let file_len = self.len()?;
        let end = offset.saturating_add(len).min(file_len);
        if offset >= end {
            return Ok(true);
        }
        let _blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        sys::fallocate(&self.file, mode, offset, end - offset).map_err(|e| self.error("freeing room in", e))
    }
}

/// How often and at what distance a lock is asked for.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The most bytes in one bounce buffer.
const BOUNCE: usize = 1 << 20;

/// Locks a file, or leaves it where the file system has no locks.
fn lock_file(file: &File, shared: bool) -> Result<()> {
    // A child that this process is about to start holds copies of its files, and with them locks
    // that were given up here, until it has called exec. So a short patience.
    for _ in 0..LOCK_TRIES {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(_)) | Ok(()) => return Ok(()),
        }
    }
    Err(DiskError::InUse)
}

fn check_type(meta: &Metadata) -> Result<()> {
    if meta.is_file() || meta.file_type().is_block_device() {
        return Ok(());
    }
    Err(DiskError::Unsupported("neither a regular file nor a block device".into()))
}

fn open_error(cache: CacheMode, e: io::Error) -> DiskError {
    if cache.is_direct() && e.raw_os_error() == Some(libc::EINVAL) {
        let why = "its file system has no O_DIRECT, which the cache modes none and directsync need";
        return DiskError::Unsupported(why.into());
    }
    DiskError::Open(e)
}

/// Logical and physical sector size of a block device, from sysfs.
fn block_sectors(rdev: u64) -> (u32, u32) {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let read = |name: &str| {
        // A partition's limits are its disk's, one folder up.
        ["queue", "../queue"].iter().find_map(|queue| {
            let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        })
    };
    let valid = |n: &u32| n.is_power_of_two() && (512..=1 << 16).contains(n);
    let logical = read("logical_block_size").filter(valid).unwrap_or(4096);
    (logical, read("physical_block_size").filter(valid).unwrap_or(logical).max(logical))
}

impl Storage for HostFile {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> Result<u64> {
        let len = if self.is_block {
            (&*self.file).seek(SeekFrom::End(0))
        } else {
            self.file.metadata().map(|meta| meta.len())
        };
        len.map_err(|e| self.error("measuring", e))
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        if !self.aligned(offset, bufs.iter().map(|b| (b.as_ptr() as usize, b.len()))) {
            return self.read_bounced(offset, bufs);
        }
        let read = sys::read_vectored(&self.file, bufs, offset);
        let mut valid = read.map_err(|e| self.error("reading", e))?;
        for buf in bufs {
            let n = valid.min(buf.len());
            buf[n..].fill(0);
            valid -= n;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        if !self.aligned(offset, bufs.iter().map(|b| (b.as_ptr() as usize, b.len()))) {
            return self.write_bounced(offset, bufs);
        }
        let _blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        sys::write_vectored(&self.file, bufs, offset).map_err(|e| self.error("writing", e))
    }

    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool> {
        if self.align > 1 || len_mut(bufs) == 0 {
            return Ok(false);
        }
        let read = sys::read_cached(&self.file, bufs, offset).map_err(|e| self.error("reading", e))?;
        Ok(read == Cached::Done)
    }

    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool> {
        let len = len_of(bufs);
        if self.align > 1 || len == 0 {
            return Ok(false);
        }
        self.at_once.write(&self.file, bufs, offset, len).map_err(|e| self.error("writing", e))
    }

    fn flush(&self) -> Result<()> {
        if self.cache == CacheMode::Unsafe {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| self.error("flushing", e))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<bool> {
        self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> Result<bool> {
        self.allocate(libc::FALLOC_FL_ZERO_RANGE, offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.is_block {
            if len <= self.len()? {
                return Ok(());
            }
            return Err(DiskError::Unsupported(format!("{}: a block device cannot grow", self.name())));
        }
        self.file.set_len(len).map_err(|e| self.error("resizing", e))
    }

    fn direct(&self, _access: Access, offset: u64, len: u64) -> Option<Arc<File>> {
        (offset | len).is_multiple_of(self.align).then(|| self.file.clone())
    }

    fn sectors(&self) -> (u32, u32) {
        (self.logical, self.physical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage;

    fn file(cache: CacheMode, content: &[u8]) -> Option<(tempfile::NamedTempFile, HostFile)> {
        let named = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(named.path(), content).unwrap();
        match HostFile::open(named.path(), false, cache, true) {
            Ok(host) => Some((named, host)),
            Err(e) => {
                assert!(cache.is_direct() && matches!(e, DiskError::Unsupported(_)), "{e}");
                eprintln!("skipped: {e}");
                None
            }
        }
    }

    #[test]
    fn every_mode_reads_back_unaligned_writes_and_keeps_the_length() {
        use CacheMode::*;
        for cache in [None, Writeback, Writethrough, Directsync, Unsafe] {
            let Some((named, host)) = file(cache, &[7; 5000]) else { continue };
            storage::write(&host, 4000, &[1; 600]).unwrap();
            storage::write(&host, 4990, &[2; 20]).unwrap();
            host.flush().unwrap();
            assert_eq!(host.len().unwrap(), 5010, "{cache:?}");
            let mut back = [9; 1200];
            let (left, right) = back.split_at_mut(333);
            host.read_at(3990, &mut [IoSliceMut::new(left), IoSliceMut::new(right)]).unwrap();
            let mut expected = [0; 1200];
            expected[..10].fill(7);
            expected[10..610].fill(1);
            expected[610..1000].fill(7);
            expected[1000..1020].fill(2);
            assert_eq!(back, expected, "{cache:?}");
            assert_eq!(std::fs::read(named.path()).unwrap().len(), 5010);
        }
    }

    #[test]
    fn a_second_writer_is_refused() {
        let (named, host) = file(CacheMode::Writeback, b"x").unwrap();
        assert!(HostFile::open(named.path(), true, CacheMode::Writeback, true).is_err());
        drop(host);
        let reader = HostFile::open(named.path(), true, CacheMode::Writeback, true).unwrap();
        assert!(HostFile::open(named.path(), true, CacheMode::Writeback, true).is_ok());
        assert!(HostFile::open(named.path(), false, CacheMode::Writeback, true).is_err());
        drop(reader);
    }

    #[test]
    fn small_writes_of_whole_pages_are_done_at_once() {
        let (named, host) = file(CacheMode::Writeback, &[0; 3 * PAGE as usize]).unwrap();
        let at_once = |offset, bytes: &[u8]| host.try_write_at(offset, &[IoSlice::new(bytes)]).unwrap();
        // As on a file system that cannot tell.
        host.at_once.untold.store(true, Ordering::Relaxed);
        assert!(at_once(PAGE, &[1; PAGE as usize]));
        assert!(!at_once(512, &[2; PAGE as usize]) && !at_once(0, &[2; 512]), "parts of pages");
        assert!(!at_once(0, &vec![2; (AT_ONCE + PAGE) as usize]), "too much");
        host.at_once.refuse.store(2, Ordering::Relaxed);
        assert!(!at_once(0, &[2; PAGE as usize]) && !at_once(0, &[2; PAGE as usize]), "one has waited");
        assert!(at_once(0, &[3; PAGE as usize]));
        let expected = [[3; PAGE as usize], [1; PAGE as usize], [0; PAGE as usize]].concat();
        assert!(std::fs::read(named.path()).unwrap() == expected);
    }

    #[test]
    fn more_buffers_than_one_call_takes() {
        let (_named, host) = file(CacheMode::Writeback, &[]).unwrap();
        let bytes: Vec<u8> = (0..3000).map(|i| i as u8).collect();
        host.write_at(0, &bytes.chunks(1).map(IoSlice::new).collect::<Vec<_>>()).unwrap();
        let mut back = vec![0; 3000];
        let mut bufs: Vec<_> = back.chunks_mut(2).map(IoSliceMut::new).collect();
        host.read_at(0, &mut bufs).unwrap();
        assert_eq!(back, bytes);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let error = HostFile::open(Path::new("/dev/null"), true, CacheMode::Writeback, true);
        assert!(matches!(error, Err(DiskError::Unsupported(_))));
    }
}
