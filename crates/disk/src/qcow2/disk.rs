//! A qcow2 image as a [`Disk`].

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::compressed::{Decompressed, Descriptor, decompress};
use super::header::{COMPAT_LAZY_REFCOUNTS, Compression, Header, INCOMPAT_CORRUPT, INCOMPAT_DIRTY};
use super::map::{Mapping, Run, Segment, Source, ZERO};
use super::refcount::Refcounts;
use super::snapshot::{COPIED, Snapshot, Tables, read_l1, read_snapshots};
use super::state::Inner;
use crate::contract::{
    Access, Disk, DiskError, DiskInfo, Extent, Result, check_range, check_resize, len_mut, len_of,
};
use crate::storage::{Storage, write};

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct Qcow2Options {
    /// Refuse every change, and read no refcounts.
    pub read_only: bool,
    /// Flush after each write.
    pub write_through: bool,
    /// Give the room of discarded clusters back to the host file system.
    pub punch_holes: bool,
    /// Read the disk as it was at the internal snapshot with this identifier or name; needs
    /// `read_only`.
    pub snapshot: Option<String>,
}

/// What an image's header says, without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The backing file's name as the image has it.
    pub backing_file: Option<String>,
    /// The backing file's format as the image has it.
    pub backing_format: Option<String>,
    /// Whether the image was not closed since it was changed with lazy refcounts.
    pub dirty: bool,
    /// Whether the image was found to be damaged.
    pub corrupt: bool,
    /// Whether refcounts may be kept lazily.
    pub lazy_refcounts: bool,
}

impl Qcow2Info {
    /// Reads and validates the header of `storage`.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let header = Header::read(storage)?;
        Ok(Self {
            version: header.version,
            size: header.size,
            cluster_size: header.cluster_size(),
            refcount_bits: 1 << header.refcount_order,
            compression: header.compression,
            dirty: header.incompatible & INCOMPAT_DIRTY != 0,
            corrupt: header.incompatible & INCOMPAT_CORRUPT != 0,
            lazy_refcounts: header.compatible & COMPAT_LAZY_REFCOUNTS != 0,
            backing_file: header.backing,
            backing_format: header.backing_format,
        })
    }
}

/// An open qcow2 image.
pub struct Qcow2Disk {
    pub(super) storage: Arc<dyn Storage>,
    backing: Option<Arc<dyn Disk>>,
    cluster_bits: u32,
    compression: Compression,
    version: u32,
    size: AtomicU64,
    info: DiskInfo,
    snapshots: Vec<Snapshot>,
    pub(super) inner: Mutex<Inner>,
    decompressed: Mutex<Decompressed>,
}

impl Qcow2Disk {
    /// Opens the image in `storage` over `backing`, which the caller found by [`Qcow2Info`]; an
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

    fn cluster_size(&self) -> u64 {
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
    fn read_locked(&self, inner: &mut Inner, offset: u64, buf: &mut [u8]) -> Result<()> {
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
    fn is_zero(&self, inner: &mut Inner, cluster: u64) -> Result<bool> {
        Ok(match inner.mapping(cluster, true)? {
            Some(Mapping::Zero { .. }) => true,
            Some(Mapping::Unallocated) => {
                self.backing.as_ref().is_none_or(|b| b.size() <= cluster << self.cluster_bits)
            }
            _ => false,
        })
    }

    /// The old bytes of a range inside one cluster, for copy-on-write; empty if they are zeroes and
    /// `fresh` says that the new place is zero as well.
    fn old_bytes(&self, inner: &mut Inner, range: std::ops::Range<u64>, fresh: bool) -> Result<Vec<u8>> {
        if range.is_empty() || (fresh && self.is_zero(inner, range.start >> self.cluster_bits)?) {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read_locked(inner, range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes the beginning of a range to new clusters; how many bytes of it were written.
    fn write_new(&self, inner: &mut Inner, offset: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<u64> {
        let (bits, mask) = (self.cluster_bits, self.cluster_size() - 1);
        let first = offset >> bits;
        let wanted = ((offset + len - 1) >> bits) - first + 1;
        inner.writable_l2(inner.indices(first).0)?;
        let old_end = inner.file_end;
        let (start, count) = inner.allocate(wanted)?;
        let host = start << bits;
        let end = (offset + len).min((first + count) << bits);
        let result = (|| {
            let fresh = host >= old_end;
            let head = self.old_bytes(inner, offset & !mask..offset, fresh)?;
            let tail = self.old_bytes(inner, end..end.next_multiple_of(mask + 1), fresh)?;
            let mut vector = vec![IoSlice::new(&head)];
            vector.extend(cut(bufs, 0, end - offset));
            vector.push(IoSlice::new(&tail));
            let at = host + (offset & mask) - head.len() as u64;
            self.storage.write_at(at, &vector)
        })();
        if let Err(e) = result {
            inner.give_back(start, count)?;
            return Err(e);
        }
        for i in 0..count {
            inner.set_l2_entry(first + i, ((start + i) << bits) | COPIED)?;
        }
        if inner.must_flush() {
            inner.flush()?;
        }
        Ok(end - offset)
    }

    /// Writes without looking at the size.
    fn write_range(&self, offset: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let mut inner = self.lock();
            inner.check_sound()?;
            match inner.write_run(offset + done, len - done, true)? {
                Some(Run::InPlace(host, n)) => {
                    let _hold = inner.hold();
                    drop(inner);
                    self.storage.write_at(host, &cut(bufs, done, n))?;
                    done += n;
                }
                Some(Run::New(n)) => {
                    done += self.write_new(&mut inner, offset + done, &cut(bufs, done, n), n)?;
                }
                None => return Err(DiskError::corrupt("an L2 table went away")),
            }
        }
        Ok(())
    }

    /// Writes zeroes to part of a cluster.
    fn zero_part(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 || self.is_zero(&mut self.lock(), offset >> self.cluster_bits)? {
            return Ok(());
        }
        self.write_range(offset, &[IoSlice::new(&vec![0; len as usize])], len)
    }

    /// Zeroes a range, whole clusters by their entries; `size` is where the last cluster may be cut.
    fn zero_range(&self, offset: u64, len: u64, unmap: bool, size: u64) -> Result<()> {
        let (bits, mask) = (self.cluster_bits, self.cluster_size() - 1);
        let end = offset + len;
        let first = offset.div_ceil(mask + 1);
        let last = if end == size { end.div_ceil(mask + 1) } else { end >> bits };
        if first >= last {
            // Inside one cluster, or across the border of two.
            let border = (first << bits).clamp(offset, end);
            self.zero_part(offset, border - offset)?;
            return self.zero_part(border, end - border);
        }
        self.zero_part(offset, (first << bits) - offset)?;
        self.clear_clusters(first, last, if unmap { Clear::Unmap } else { Clear::Zero })?;
        self.zero_part((last << bits).min(end), end.saturating_sub(last << bits))
    }

    /// Zeroes or discards whole clusters, one L2 table at a time.
    fn clear_clusters(&self, first: u64, last: u64, how: Clear) -> Result<()> {
        let mut at = first;
        while at < last {
            let mut inner = self.lock();
            inner.check_sound()?;
            let end = (at + 1).next_multiple_of(inner.l2_entries()).min(last);
            let empty = inner.l1.get(inner.indices(at).0).is_none_or(|&entry| entry == 0);
            if !(empty && (self.backing.is_none() || how == Clear::Discard)) {
                for cluster in at..end {
                    self.clear_cluster(&mut inner, cluster, how)?;
                }
            }
            if inner.must_flush() {
                inner.flush()?;
            }
            at = end;
        }
        Ok(())
    }

    fn clear_cluster(&self, inner: &mut Inner, cluster: u64, how: Clear) -> Result<()> {
        let Some(mapping) = inner.mapping(cluster, true)? else { return Ok(()) };
        let backed = self.backing.is_some();
        let entry = match mapping {
            Mapping::Unallocated if !backed || how == Clear::Discard => return Ok(()),
            Mapping::Zero { host: None } => return Ok(()),
            Mapping::Zero { .. } if how == Clear::Zero => return Ok(()),
            Mapping::Data { host, copied: true } if how == Clear::Zero && self.version >= 3 => {
                host | COPIED | ZERO
            }
            _ if !backed => 0,
            _ if self.version >= 3 => ZERO,
            // Version 2 has no way to hide the backing file but to write over it.
            _ if how == Clear::Discard => return Ok(()),
            _ => {
                let (offset, zeroes) = (cluster << self.cluster_bits, vec![0; self.cluster_size() as usize]);
                if let Mapping::Data { host, copied: true } = mapping {
                    return self.storage.write_at(host, &[IoSlice::new(&zeroes)]);
                }
                return self
                    .write_new(inner, offset, &[IoSlice::new(&zeroes)], self.cluster_size())
                    .map(|_| ());
            }
        };
        inner.set_l2_entry(cluster, entry)
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

/// How clusters are cleared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clear {
    /// They read as zeroes and keep their room.
    Zero,
    /// They read as zeroes.
    Unmap,
    /// They may read as zeroes.
    Discard,
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
fn cut<'a>(bufs: &'a [IoSlice<'_>], mut skip: u64, mut len: u64) -> Vec<IoSlice<'a>> {
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
