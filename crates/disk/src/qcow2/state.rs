//! What changes while a writable image is open, and the order in which it reaches the file.
//!
//! Metadata is cached and written when the disk is flushed, in an order that leaves the image
//! consistent wherever it is cut off:
//!
//! 1. data (written at once, when the guest writes) and refcounts, then a barrier;
//! 2. L2 tables, then a barrier if L1 entries changed;
//! 3. L1 entries, then a barrier;
//! 4. only now are clusters that lost their last reference counted down, and may be used again once
//!    every transfer that began before has ended.
//!
//! A crash between them leaves clusters counted that nothing refers to: leaks.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::cache::TableCache;
use super::header::{Header, INCOMPAT_CORRUPT, MAX_L1_BYTES};
use super::refcount::Refcounts;
use super::snapshot::Tables;
use crate::contract::{DiskError, Result};
use crate::storage::{Storage, write};

/// Clusters waiting to be freed before a metadata flush is forced.
const MAX_RELEASED: usize = 1 << 16;

/// L1, L2 and refcounts of an open image.
pub struct Inner {
    pub storage: Arc<dyn Storage>,
    pub cluster_bits: u32,
    pub version: u32,
    pub l1: Vec<u64>,
    pub l1_offset: u64,
    /// L1 entries that differ from the file.
    pub l1_dirty: Range<usize>,
    pub l2: TableCache,
    pub refs: Refcounts,
    /// Clusters that hold metadata: never given to data, never freed as data.
    pub metadata: HashSet<u64>,
    /// The end of the last cluster that may hold anything.
    pub file_end: u64,
    incompatible: u64,
    damaged: Option<String>,
    punch: bool,
    /// Clusters whose references are gone from memory but perhaps not from the file.
    released: Vec<u64>,
    /// Clusters whose references are gone from the file, with the transfers that may still use them.
    leaving: VecDeque<(Arc<()>, Vec<u64>)>,
    /// Held by each transfer that began since the last release.
    epoch: Arc<()>,
}

impl Inner {
    /// Takes over an image whose header and tables were read. `punch`: give the host the room of
    /// freed clusters.
    pub fn new(
        storage: Arc<dyn Storage>,
        header: &Header,
        tables: Tables,
        refs: Refcounts,
        punch: bool,
    ) -> Result<Self> {
        let cluster_size = header.cluster_size();
        let mut metadata = tables.metadata;
        metadata.insert(0);
        metadata.extend(refs.table_range());
        metadata.extend(refs.blocks().map(|block| block >> header.cluster_bits));
        Ok(Self {
            file_end: storage.len()?.next_multiple_of(cluster_size),
            storage,
            cluster_bits: header.cluster_bits,
            version: header.version,
            l1: tables.l1,
            l1_offset: header.l1_offset,
            l1_dirty: 0..0,
            l2: TableCache::new(cluster_size as usize, "L2 table"),
            refs,
            metadata,
            incompatible: header.incompatible,
            damaged: None,
            punch,
            released: Vec::new(),
            leaving: VecDeque::new(),
            epoch: Arc::new(()),
        })
    }

    /// To be held while data is transferred without the lock.
    pub fn hold(&self) -> Arc<()> {
        self.epoch.clone()
    }

    /// Notes that the image is damaged: it is marked so, and no more changes are accepted.
    pub fn damaged(&mut self, why: String) -> DiskError {
        if self.damaged.is_none() {
            tracing::error!("{}: the image is corrupt: {why}", self.storage.name());
            if self.version >= 3 {
                self.incompatible |= INCOMPAT_CORRUPT;
                let marked = self.write_features();
                if let Err(e) = marked {
                    tracing::error!("cannot mark the image as corrupt: {e}");
                }
            }
            self.damaged = Some(why.clone());
        }
        DiskError::Corrupt(why)
    }

    /// Refuses changes to a damaged image.
    pub fn check_sound(&self) -> Result<()> {
        self.damaged.as_ref().map_or(Ok(()), |why| Err(DiskError::Corrupt(why.clone())))
    }

    /// Changes the incompatible feature bits.
    pub fn set_incompatible(&mut self, bits: u64) -> Result<()> {
        self.incompatible = bits;
        self.write_features()
    }

    pub fn incompatible(&self) -> u64 {
        self.incompatible
    }

    fn write_features(&self) -> Result<()> {
        write(&*self.storage, 72, &self.incompatible.to_be_bytes())?;
        self.storage.flush()
    }

    /// Notes that one reference to each of these clusters is gone.
    pub fn release(&mut self, clusters: impl IntoIterator<Item = u64>) {
        self.released.extend(clusters);
    }

    /// Whether so many clusters wait to be freed that a flush is due.
    pub fn must_flush(&self) -> bool {
        self.released.len() > MAX_RELEASED
    }

    /// Writes all metadata in order and makes it and all data durable.
    pub fn flush(&mut self) -> Result<()> {
        self.check_sound()?;
        self.refs.cache.write_dirty(&*self.storage)?;
        if self.l2.is_dirty() {
            self.storage.flush()?;
            self.l2.write_dirty(&*self.storage)?;
        }
        if !self.l1_dirty.is_empty() {
            self.storage.flush()?;
            let range = self.l1_dirty.clone();
            let raw: Vec<u8> = self.l1[range.clone()].iter().flat_map(|entry| entry.to_be_bytes()).collect();
            write(&*self.storage, self.l1_offset + 8 * range.start as u64, &raw)?;
            self.l1_dirty = 0..0;
        }
        self.storage.flush()?;
        if !self.released.is_empty() {
            let epoch = std::mem::replace(&mut self.epoch, Arc::new(()));
            self.leaving.push_back((epoch, std::mem::take(&mut self.released)));
        }
        self.free_left()
    }

    /// Frees the clusters that no transfer can still use.
    fn free_left(&mut self) -> Result<()> {
        while let Some((epoch, _)) = self.leaving.front() {
            if Arc::strong_count(epoch) > 1 {
                break;
            }
            let Some((_, clusters)) = self.leaving.pop_front() else { break };
            for cluster in clusters {
                if self.decrement(cluster)? {
                    self.l2.forget(cluster << self.cluster_bits);
                    if self.punch {
                        self.storage.punch_hole(cluster << self.cluster_bits, 1 << self.cluster_bits)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Changes an L1 entry.
    pub fn set_l1(&mut self, index: usize, entry: u64) {
        self.l1[index] = entry;
        self.l1_dirty = match self.l1_dirty.is_empty() {
            true => index..index + 1,
            false => self.l1_dirty.start.min(index)..self.l1_dirty.end.max(index + 1),
        };
    }

    /// Moves the L1 table to a larger place if a disk of `size` bytes needs it.
    pub fn grow_l1(&mut self, size: u64) -> Result<()> {
        let needed = size.div_ceil(1 << (2 * self.cluster_bits - 3));
        if needed * 8 > MAX_L1_BYTES {
            return Err(DiskError::InvalidOption(format!("{size} bytes are too many for these clusters")));
        }
        if needed <= self.l1.len() as u64 {
            return Ok(());
        }
        // So that the copy begins as what the file holds.
        self.flush()?;
        let cluster_size = 1u64 << self.cluster_bits;
        let clusters = (needed * 8).div_ceil(cluster_size);
        let start = self.allocate_at_end(clusters)?;
        let mut raw: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        raw.resize((clusters * cluster_size) as usize, 0);
        let offset = start << self.cluster_bits;
        write(&*self.storage, offset, &raw)?;
        self.flush()?;
        let mut field = (needed as u32).to_be_bytes().to_vec();
        field.extend_from_slice(&offset.to_be_bytes());
        write(&*self.storage, 36, &field)?;
        self.storage.flush()?;
        let old_bytes = 8 * self.l1.len() as u64;
        let old = self.l1_offset >> self.cluster_bits;
        let old: Vec<u64> = (old..old + old_bytes.div_ceil(cluster_size)).collect();
        self.metadata.retain(|cluster| !old.contains(cluster));
        self.metadata.extend(start..start + clusters);
        self.l1.resize(needed as usize, 0);
        self.l1_offset = offset;
        self.release(old);
        Ok(())
    }
}
