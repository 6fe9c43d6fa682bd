//! A qcow2 image as a [`Disk`].

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::compressed::{Decompressed, Descriptor, decompress};
use super::header::{Compression, Header, INCOMPAT_CORRUPT, INCOMPAT_DIRTY};
use super::info::Qcow2Options;
use super::map::{Mapping, Run, Segment, Source};
use super::refcount::Refcounts;
use super::snapshot::{Snapshot, Tables, read_l1, read_snapshots};
use super::state::Inner;
use super::write::Clear;
use crate::contract::{
    Access, Disk, DiskError, DiskInfo, Extent, Result, check_range, check_resize, len_mut, len_of,
};
use crate::storage::{Storage, write};

/// An open qcow2 image.
pub struct Qcow2Disk {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) backing: Option<Arc<dyn Disk>>,
    pub(super) cluster_bits: u32,
    compression: Compression,
    pub(super) version: u32,
    size: AtomicU64,
    info: DiskInfo,
    snapshots: Vec<Snapshot>,
    pub(super) inner: Mutex<Inner>,
    decompressed: Mutex<Decompressed>,
}

impl Qcow2Disk {
    /// Opens the image in `storage` over `backing`, which the caller found by [`Qcow2Info`](super::Qcow2Info); an
    /// image without a backing file must get `None`, and one with a name may get any disk.
    ///
    /// A writable image with the dirty bit set has its refcounts rebuilt first; one with the
    /// corrupt bit set is refused. Unknown autoclear features are cleared.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &Qcow2Options,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Self> {
        let header = Header::read(&*storage)?;
        if options.read_only {
            Self::open_read_only(storage, &header, options, backing)
        } else if options.snapshot.is_some() {
            Err(DiskError::InvalidOption("an internal snapshot can only be opened read-only".into()))
        } else {
            Self::open_writable(storage, &header, options, backing)
        }
    }

    fn open_read_only(
        storage: Arc<dyn Storage>,
        header: &Header,
        options: &Qcow2Options,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Self> {
        let mut header = header.clone();
        let (snapshots, _) = read_snapshots(&*storage, &header)?;
        if let Some(wanted) = &options.snapshot {
            let by_id = snapshots.iter().find(|s| s.id == *wanted);
            let found = by_id.or_else(|| snapshots.iter().find(|s| s.name == *wanted));
            let found =
                found.ok_or_else(|| DiskError::InvalidOption(format!("no internal snapshot {wanted:?}")))?;
            if !found.disk_size.is_multiple_of(512)
                || header.l1_entries(found.disk_size) > u64::from(found.l1_size)
            {
                return Err(DiskError::corrupt(format!("the L1 table of snapshot {wanted:?} is too short")));
            }
            header.size = found.disk_size;
            (header.l1_offset, header.l1_size) = (found.l1_offset, found.l1_size);
        }
        let l1 = read_l1(&*storage, header.l1_offset, header.l1_size)?;
        let tables = Tables { l1, metadata: Default::default(), snapshots };
        let refs = Refcounts::none(&header);
        Self::new(storage, &header, options, backing, tables, refs)
    }

    fn open_writable(
        storage: Arc<dyn Storage>,
        header: &Header,
        options: &Qcow2Options,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Self> {
        if header.incompatible & INCOMPAT_CORRUPT != 0 {
            return Err(DiskError::corrupt("marked so; it can be opened read-only, or repaired"));
        }
        if header.autoclear != 0 {
            write(&*storage, 88, &[0; 8])?;
        }
        let tables = Tables::read(&*storage, header)?;
        let refs = Refcounts::read(&*storage, header)?;
        let disk = Self::new(storage, header, options, backing, tables, refs)?;
        if header.incompatible & INCOMPAT_DIRTY != 0 {
            disk.rebuild_refcounts()?;
        }
        Ok(disk)
    }

    fn new(
        storage: Arc<dyn Storage>,
        header: &Header,
        options: &Qcow2Options,
        backing: Option<Arc<dyn Disk>>,
        tables: Tables,
        refs: Refcounts,
    ) -> Result<Self> {
        if header.backing.is_none() && backing.is_some() {
            return Err(DiskError::InvalidOption("the image has no backing file, but was given one".into()));
        }
        let (logical_sector, physical_sector) = storage.sectors();
        let snapshots = tables.snapshots.clone();
        let inner = Inner::new(storage.clone(), header, tables, refs, options.punch_holes)?;
        Ok(Self {
            storage,
            backing,
            cluster_bits: header.cluster_bits,
            compression: header.compression,
            version: header.version,
            size: AtomicU64::new(header.size),
            info: DiskInfo {
                logical_sector: logical_sector.min(512),
                physical_sector,
                discard_granularity: 1 << header.cluster_bits,
                read_only: options.read_only,
                volatile_cache: !options.write_through,
            },
            snapshots,
            inner: Mutex::new(inner),
            decompressed: Mutex::default(),
        })
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        match self.inner.try_lock() {
            Ok(inner) => Some(inner),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn check_read(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size())
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        self.check_read(offset, len)?;
        if self.info.read_only { Err(DiskError::ReadOnly) } else { Ok(()) }
    }

    fn written(&self) -> Result<()> {
        if self.info.volatile_cache { Ok(()) } else { self.flush() }
    }

    /// Reads one piece. With `wait` false it may answer that it cannot.
    fn read_segment(
        &self,
        segment: Segment,
        at: u64,
        bufs: &mut [IoSliceMut<'_>],
        wait: bool,
    ) -> Result<bool> {
        match segment.source {
            Source::Zero => bufs.iter_mut().for_each(|buf| buf.fill(0)),
            Source::File(host) if wait => self.storage.read_at(host, bufs)?,
            Source::File(host) => return self.storage.try_read_at(host, bufs),
            Source::Backing => return self.read_backing(at, bufs, wait),
            Source::Compressed(descriptor, from) => {
                let Some(data) = self.decompressed(descriptor, wait)? else { return Ok(false) };
                let mut data = data.get(from as usize..).unwrap_or_default();
                for buf in bufs {
                    let (now, later) = data.split_at(buf.len().min(data.len()));
                    buf[..now.len()].copy_from_slice(now);
                    data = later;
                }
            }
        }
        Ok(true)
    }

    /// Reads from the backing disk, zeroes behind its end.
    fn read_backing(&self, at: u64, bufs: &mut [IoSliceMut<'_>], wait: bool) -> Result<bool> {
        let len = len_mut(bufs);
        let valid = self.backing.as_ref().map_or(0, |b| b.size().saturating_sub(at).min(len));
        for buf in &mut cut_mut(bufs, valid, len - valid) {
            buf.fill(0);
        }
        let Some(backing) = self.backing.as_ref().filter(|_| valid > 0) else { return Ok(true) };
        let bufs = &mut cut_mut(bufs, 0, valid);
        if wait { backing.read_at(at, bufs).map(|()| true) } else { backing.try_read_at(at, bufs) }
    }

    fn decompressed(&self, at: Descriptor, wait: bool) -> Result<Option<Arc<Vec<u8>>>> {
        let lock = || self.decompressed.lock().unwrap_or_else(PoisonError::into_inner);
        let held = lock().get(at);
        if held.is_some() || !wait {
            return Ok(held);
        }
        let mut raw = vec![0; at.len as usize];
        self.storage.read_at(at.offset, &mut [IoSliceMut::new(&mut raw)])?;
        let data = Arc::new(decompress(self.compression, &raw, self.cluster_size() as usize)?);
        lock().put(at, data.clone());
        Ok(Some(data))
    }

    /// Reads with the lock held, for copy-on-write: behind the end of the disk there are zeroes.
    pub(super) fn read_locked(&self, inner: &mut Inner, offset: u64, buf: &mut [u8]) -> Result<()> {
        let valid = self.size().saturating_sub(offset).min(buf.len() as u64);
        buf[valid as usize..].fill(0);
        let Some(segments) = inner.segments(offset, valid, true)? else { return Ok(()) };
        let mut done = 0;
        for segment in segments {
            let piece = &mut buf[done as usize..(done + segment.len) as usize];
            self.read_segment(segment, offset + done, &mut [IoSliceMut::new(piece)], true)?;
            done += segment.len;
        }
        Ok(())
    }

    /// Whether a guest cluster reads as zeroes for all that its entry says.
    pub(super) fn is_zero(&self, inner: &mut Inner, cluster: u64) -> Result<bool> {
        Ok(match inner.mapping(cluster, true)? {
            Some(Mapping::Zero { .. }) => true,
            Some(Mapping::Unallocated) => {
                self.backing.as_ref().is_none_or(|b| b.size() <= cluster << self.cluster_bits)
            }
            _ => false,
        })
    }

    /// Makes the disk `size` bytes long. With `hide_backing`, what is added reads as zeroes even
    /// where the backing file is longer.
    pub(super) fn grow(&self, size: u64, hide_backing: bool) -> Result<()> {
        let old = self.size();
        let mut inner = self.lock();
        inner.check_sound()?;
        if self.version < 3 && !self.snapshots.is_empty() {
            let why = "resizing a version 2 image with snapshots: they do not record their size";
            return Err(DiskError::Unsupported(why.into()));
        }
        inner.grow_l1(size)?;
        drop(inner);
        let backing = self.backing.as_ref().map_or(0, |backing| backing.size());
        if hide_backing && backing > old {
            let end = size.min(backing);
            self.zero_range(old, end - old, true, end)?;
        }
        let mut inner = self.lock();
        inner.flush()?;
        write(&*self.storage, 24, &size.to_be_bytes())?;
        self.storage.flush()?;
        drop(inner);
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

impl Disk for Qcow2Disk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = len_mut(bufs);
        self.check_read(offset, len)?;
        let (segments, _hold) = {
            let mut inner = self.lock();
            (inner.segments(offset, len, true)?.unwrap_or_default(), inner.hold())
        };
        let mut done = 0;
        for segment in segments {
            self.read_segment(segment, offset + done, &mut cut_mut(bufs, done, segment.len), true)?;
            done += segment.len;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let len = len_of(bufs);
        self.check_write(offset, len)?;
        self.write_range(offset, bufs, len)?;
        self.written()
    }

    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool> {
        let len = len_mut(bufs);
        self.check_read(offset, len)?;
        let Some(mut inner) = self.try_lock() else { return Ok(false) };
        let Some(segments) = inner.segments(offset, len, false)? else { return Ok(false) };
        let _hold = inner.hold();
        drop(inner);
        let mut done = 0;
        for segment in segments {
            let bufs = &mut cut_mut(bufs, done, segment.len);
            if !self.read_segment(segment, offset + done, bufs, false)? {
                return Ok(false);
            }
            done += segment.len;
        }
        Ok(true)
    }

    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool> {
        let len = len_of(bufs);
        self.check_write(offset, len)?;
        let Some(extent) = self.in_place(Access::Write, offset, len) else { return Ok(false) };
        let (host, _hold) = extent;
        self.storage.try_write_at(host, bufs)
    }

    fn flush(&self) -> Result<()> {
        if self.info.read_only { Ok(()) } else { self.lock().flush() }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        let end = offset + len;
        let last =
            if end == self.size() { end.div_ceil(self.cluster_size()) } else { end >> self.cluster_bits };
        self.clear_clusters(offset.div_ceil(self.cluster_size()), last, Clear::Discard)?;
        self.written()
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, len)?;
        self.zero_range(offset, len, unmap, self.size())?;
        self.written()
    }

    fn resize(&self, size: u64) -> Result<()> {
        if self.info.read_only {
            return Err(DiskError::ReadOnly);
        }
        check_resize(self.size(), size)?;
        self.grow(size, true)
    }

    fn extent(&self, access: Access, offset: u64, len: u64) -> Option<Extent> {
        let (host, hold) = self.in_place(access, offset, len)?;
        let file = self.storage.direct(access, host, len)?;
        Some(Extent { file, offset: host, _hold: Some(hold) })
    }
}

impl Qcow2Disk {
    /// The place in the file of a range that lies there in one piece, if it is known now.
    fn in_place(&self, access: Access, offset: u64, len: u64) -> Option<(u64, Arc<()>)> {
        self.check_read(offset, len).ok().filter(|()| len > 0)?;
        let mut inner = self.try_lock()?;
        let host = match access {
            Access::Read => match inner.segments(offset, len, false).ok()??.as_slice() {
                [Segment { source: Source::File(host), .. }] => *host,
                _ => return None,
            },
            Access::Write => {
                if self.info.read_only || !self.info.volatile_cache || inner.check_sound().is_err() {
                    return None;
                }
                match inner.write_run(offset, len, false).ok()?? {
                    Run::InPlace(host, n) if n == len => host,
                    _ => return None,
                }
            }
        };
        Some((host, inner.hold()))
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        let dirty = !self.info.read_only && self.lock().check_sound().is_ok();
        // The first flush frees clusters, the second writes that down.
        if dirty && let Err(e) = self.flush().and_then(|()| self.flush()) {
            tracing::error!("{}: closing: {e}", self.storage.name());
        }
    }
}

/// The part of a vector from byte `skip` on, `len` bytes long.
pub(super) fn cut<'a>(bufs: &'a [IoSlice<'_>], mut skip: u64, mut len: u64) -> Vec<IoSlice<'a>> {
    let mut out = Vec::new();
    for buf in bufs {
        let from = skip.min(buf.len() as u64);
        let n = len.min(buf.len() as u64 - from);
        if n > 0 {
            out.push(IoSlice::new(&buf[from as usize..(from + n) as usize]));
        }
        skip -= from;
        len -= n;
    }
    out
}

/// As [`cut`], to be filled.
fn cut_mut<'a>(bufs: &'a mut [IoSliceMut<'_>], mut skip: u64, mut len: u64) -> Vec<IoSliceMut<'a>> {
    let mut out = Vec::new();
    for buf in bufs {
        let from = skip.min(buf.len() as u64);
        let n = len.min(buf.len() as u64 - from);
        if n > 0 {
            out.push(IoSliceMut::new(&mut buf[from as usize..(from + n) as usize]));
        }
        skip -= from;
        len -= n;
    }
    out
}
