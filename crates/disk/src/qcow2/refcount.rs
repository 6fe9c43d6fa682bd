//! Refcounts and the allocation of clusters.
//!
//! Refcount blocks in the cache never hold a decrement that is not yet safe (see
//! `Inner::release`), so that they may be written at any time: too high a count is a leak, never
//! damage.

use std::collections::HashSet;

use super::cache::TableCache;
use super::header::{Header, MAX_REFTABLE_BYTES, be64};
use super::state::Inner;
use crate::contract::{DiskError, Result};
use crate::storage::{read_exact, write};

/// Host offsets have 56 bits.
const MAX_OFFSET_BITS: u32 = 56;

/// The refcount structure of a writable image.
pub struct Refcounts {
    order: u32,
    cluster_bits: u32,
    /// Offsets of refcount blocks; 0 where there is none.
    table: Vec<u64>,
    table_offset: u64,
    pub cache: TableCache,
    /// No cluster below is free.
    hint: u64,
}

impl Refcounts {
    pub fn read(storage: &dyn crate::storage::Storage, header: &Header) -> Result<Self> {
        let bytes = (header.reftable_clusters as usize) << header.cluster_bits;
        let mut raw = vec![0; bytes];
        read_exact(storage, header.reftable_offset, &mut raw, "refcount table")?;
        let table: Vec<u64> = (0..bytes / 8).map(|i| be64(&raw, i * 8)).collect();
        let file_len = storage.len()?;
        for &block in table.iter().filter(|&&block| block != 0) {
            header.check_table("refcount block", block, header.cluster_size(), file_len)?;
        }
        Ok(Self {
            order: header.refcount_order,
            cluster_bits: header.cluster_bits,
            table,
            table_offset: header.reftable_offset,
            cache: TableCache::new(1 << header.cluster_bits, "refcount block"),
            hint: 0,
        })
    }

    /// None at all: for images that are only read.
    pub fn none(header: &Header) -> Self {
        Self {
            order: header.refcount_order,
            cluster_bits: header.cluster_bits,
            table: Vec::new(),
            table_offset: 0,
            cache: TableCache::new(1 << header.cluster_bits, "refcount block"),
            hint: 0,
        }
    }

    /// The offsets of the blocks there are.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|&block| block != 0)
    }

    /// The clusters of the refcount table itself.
    pub fn table_range(&self) -> std::ops::Range<u64> {
        let first = self.table_offset >> self.cluster_bits;
        first..first + ((self.table.len() as u64 * 8) >> self.cluster_bits)
    }

    /// Refcounts in a block.
    fn per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.order)
    }

    fn position(&self, cluster: u64) -> (usize, usize) {
        ((cluster / self.per_block()) as usize, (cluster % self.per_block()) as usize)
    }

    /// The lowest free cluster may now be this one.
    fn may_be_free(&mut self, cluster: u64) {
        self.hint = self.hint.min(cluster);
    }
}

/// The largest count of 2^`order` bits.
fn max_count(order: u32) -> u64 {
    u64::MAX >> (64 - (1u32 << order))
}

/// The count at `index` of a block of 2^`order`-bit counts.
fn decode(order: u32, block: &[u8], index: usize) -> u64 {
    if order < 3 {
        let bit = index << order;
        return u64::from(block[bit / 8] >> (bit % 8)) & max_count(order);
    }
    let bytes = 1 << (order - 3);
    block[index * bytes..][..bytes].iter().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// The bytes that store a count, and their place in the block.
pub fn encode(order: u32, block: &[u8], index: usize, count: u64) -> (usize, Vec<u8>) {
    if order < 3 {
        let (at, shift) = ((index << order) / 8, (index << order) % 8);
        let mask = (max_count(order) as u8) << shift;
        return (at, vec![block[at] & !mask | (count as u8) << shift]);
    }
    let bytes = 1 << (order - 3);
    (index * bytes, count.to_be_bytes()[8 - bytes..].to_vec())
}

impl Inner {
    /// The refcount of a cluster.
    pub fn refcount(&mut self, cluster: u64) -> Result<u64> {
        let (block, index) = self.refs.position(cluster);
        let Some(&offset) = self.refs.table.get(block).filter(|&&offset| offset != 0) else {
            return Ok(0);
        };
        self.load_block(offset)?;
        Ok(self.refs.cache.get(offset).map_or(0, |bytes| decode(self.refs.order, bytes, index)))
    }

    /// Sets the refcount of a cluster whose block exists.
    pub fn set_refcount(&mut self, cluster: u64, count: u64) -> Result<()> {
        let order = self.refs.order;
        let (block, index) = self.refs.position(cluster);
        let offset = self.refs.table.get(block).copied().unwrap_or(0);
        if offset == 0 || count > max_count(order) {
            return Err(DiskError::corrupt(format!(
                "cluster {cluster:#x} cannot have a refcount of {count}"
            )));
        }
        self.load_block(offset)?;
        if let Some(bytes) = self.refs.cache.get(offset) {
            let (at, bytes) = encode(order, bytes, index, count);
            self.refs.cache.update(offset, at, &bytes);
        }
        if count == 0 {
            self.refs.may_be_free(cluster);
        }
        Ok(())
    }

    fn load_block(&mut self, offset: u64) -> Result<()> {
        if self.refs.cache.contains(offset) {
            return Ok(());
        }
        if !self.refs.cache.make_room() {
            self.refs.cache.write_dirty(&*self.storage)?;
            self.refs.cache.make_room();
        }
        self.refs.cache.load(&*self.storage, offset)
    }

    /// Takes up to `max` free clusters that lie side by side: the first one's number and how many,
    /// at least one. They have refcount 1.
    pub fn allocate(&mut self, max: u64) -> Result<(u64, u64)> {
        let order = self.refs.order;
        let per_block = self.refs.per_block();
        loop {
            let (block, index) = self.refs.position(self.refs.hint);
            self.ensure_block(block)?;
            let offset = self.refs.table[block];
            self.load_block(offset)?;
            let Some(bytes) = self.refs.cache.get(offset) else { continue };
            let is_free = |&i: &usize| decode(order, bytes, i) == 0;
            let Some(first) = (index..per_block as usize).find(is_free) else {
                self.refs.hint = (block as u64 + 1) * per_block;
                continue;
            };
            let end =
                (first..per_block as usize).take(max as usize).take_while(is_free).last().unwrap_or(first);
            let (start, count) = (block as u64 * per_block + first as u64, (end - first) as u64 + 1);
            self.take(start, count)?;
            self.refs.hint = start + count;
            return Ok((start, count));
        }
    }

    /// Takes `count` clusters side by side at the end of the file.
    pub fn allocate_at_end(&mut self, count: u64) -> Result<u64> {
        let mut start = self.file_end >> self.cluster_bits;
        loop {
            let (first, last) = (self.refs.position(start).0, self.refs.position(start + count - 1).0);
            for block in first..=last {
                self.ensure_block(block)?;
            }
            let mut used = None;
            for cluster in start..start + count {
                if self.refcount(cluster)? != 0 {
                    used = Some(cluster);
                }
            }
            match used {
                Some(cluster) => start = cluster + 1,
                None => break,
            }
        }
        self.take(start, count)?;
        Ok(start)
    }

    /// Counts clusters that were free as used.
    fn take(&mut self, start: u64, count: u64) -> Result<()> {
        for cluster in start..start + count {
            if self.metadata.contains(&cluster) {
                return Err(self.damaged(format!("cluster {cluster:#x} holds metadata but counts as free")));
            }
        }
        for cluster in start..start + count {
            self.set_refcount(cluster, 1)?;
        }
        self.file_end = self.file_end.max((start + count) << self.cluster_bits);
        Ok(())
    }

    /// Gives clusters back that nothing in the file refers to yet.
    pub fn give_back(&mut self, start: u64, count: u64) -> Result<()> {
        (start..start + count).try_for_each(|cluster| self.set_refcount(cluster, 0))
    }

    /// Lowers the refcount of a cluster that nothing durable refers to any more; true if it is free.
    pub fn decrement(&mut self, cluster: u64) -> Result<bool> {
        if self.metadata.contains(&cluster) {
            return Err(self.damaged(format!("cluster {cluster:#x} is both metadata and data")));
        }
        match self.refcount(cluster)? {
            0 => Err(self.damaged(format!("cluster {cluster:#x} is in use but counts as free"))),
            count => {
                self.set_refcount(cluster, count - 1)?;
                Ok(count == 1)
            }
        }
    }

    /// Makes sure that a refcount block exists. A new one stands in the first cluster of those it
    /// counts: without a block they are all free. Durable before anything can refer to it.
    fn ensure_block(&mut self, block: usize) -> Result<()> {
        if block >= self.refs.table.len() {
            return self.grow_table(block);
        }
        if self.refs.table[block] != 0 {
            return Ok(());
        }
        let cluster = block as u64 * self.refs.per_block();
        self.check_new(cluster, 1)?;
        let offset = cluster << self.cluster_bits;
        let bytes = self.new_block(cluster..cluster + 1, cluster);
        write(&*self.storage, offset, &bytes)?;
        self.storage.flush()?;
        write(&*self.storage, self.refs.table_offset + 8 * block as u64, &offset.to_be_bytes())?;
        self.refs.table[block] = offset;
        self.metadata.insert(cluster);
        self.file_end = self.file_end.max(offset + (1 << self.cluster_bits));
        Ok(())
    }

    /// A refcount block whose counts begin at `first`, with `used` counted once.
    fn new_block(&self, used: std::ops::Range<u64>, first: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 << self.cluster_bits];
        let end = used.end.min(first + self.refs.per_block());
        for cluster in used.start.max(first)..end {
            let (at, value) = encode(self.refs.order, &bytes, (cluster - first) as usize, 1);
            bytes[at..at + value.len()].copy_from_slice(&value);
        }
        bytes
    }

    fn check_new(&mut self, cluster: u64, count: u64) -> Result<()> {
        if (cluster + count) >> (MAX_OFFSET_BITS - self.cluster_bits) != 0 {
            return Err(DiskError::io("qcow2 image", std::io::ErrorKind::StorageFull.into()));
        }
        if let Some(hit) = (cluster..cluster + count).find(|c| self.metadata.contains(c)) {
            return Err(self.damaged(format!("cluster {hit:#x} holds metadata but counts as free")));
        }
        Ok(())
    }

    /// Moves the refcount table to a larger place behind all that it counted, with the blocks that
    /// count that place; durable before the header names it.
    fn grow_table(&mut self, block: usize) -> Result<()> {
        let per_block = self.refs.per_block();
        let old_len = self.refs.table.len();
        let cluster_size = 1u64 << self.cluster_bits;
        let entries = ((block + 1).max(old_len * 2) as u64 * 8).next_multiple_of(cluster_size) / 8;
        let table_clusters = entries * 8 / cluster_size;
        if entries * 8 > MAX_REFTABLE_BYTES {
            return Err(DiskError::io("qcow2 refcount table", std::io::ErrorKind::StorageFull.into()));
        }
        let start = old_len as u64 * per_block;
        let mut blocks = 1;
        while blocks * per_block < blocks + table_clusters {
            blocks += 1;
        }
        let used = start..start + blocks + table_clusters;
        self.check_new(start, blocks + table_clusters)?;
        let mut table = self.refs.table.clone();
        table.extend((0..blocks).map(|i| (start + i) << self.cluster_bits));
        table.resize(entries as usize, 0);
        for i in 0..blocks {
            let bytes = self.new_block(used.clone(), start + i * per_block);
            write(&*self.storage, (start + i) << self.cluster_bits, &bytes)?;
        }
        let table_offset = (start + blocks) << self.cluster_bits;
        let raw: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        write(&*self.storage, table_offset, &raw)?;
        self.storage.flush()?;
        let mut field = table_offset.to_be_bytes().to_vec();
        field.extend_from_slice(&(table_clusters as u32).to_be_bytes());
        write(&*self.storage, 48, &field)?;
        let old: HashSet<u64> = self.refs.table_range().collect();
        self.refs.table = table;
        self.refs.table_offset = table_offset;
        self.metadata.retain(|cluster| !old.contains(cluster));
        self.metadata.extend(used.clone());
        self.file_end = self.file_end.max(used.end << self.cluster_bits);
        self.release(old);
        Ok(())
    }
}
