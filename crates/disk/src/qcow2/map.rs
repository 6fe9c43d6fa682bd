//! From guest offsets to places in the file.

use super::compressed::Descriptor;
use super::snapshot::{COPIED, OFFSET_MASK, l2_offset};
use super::state::Inner;
use crate::contract::{DiskError, Result};

/// L2 entry bit 62: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// L2 entry bit 0, version 3: the cluster reads as zeroes.
pub const ZERO: u64 = 1;

/// What an L2 entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The backing file's bytes, or zeroes.
    Unallocated,
    /// Zeroes, perhaps with a host cluster kept for later.
    Zero { host: Option<u64> },
    /// A host cluster; if `copied`, its bytes may be changed in place.
    Data { host: u64, copied: bool },
    /// A compressed cluster.
    Compressed(Descriptor),
}

impl Mapping {
    /// Decodes and validates an entry.
    pub fn decode(entry: u64, version: u32, cluster_bits: u32) -> Result<Self> {
        if entry & COMPRESSED != 0 {
            return Ok(Self::Compressed(Descriptor::decode(entry, cluster_bits)));
        }
        let host = entry & OFFSET_MASK;
        let zero = version >= 3 && entry & ZERO != 0;
        let known = OFFSET_MASK | COPIED | if version >= 3 { ZERO } else { 0 };
        if entry & !known != 0 || host & ((1 << cluster_bits) - 1) != 0 {
            return Err(DiskError::corrupt(format!("L2 entry {entry:#x}")));
        }
        Ok(match host {
            _ if zero => Self::Zero { host: (host != 0).then_some(host) },
            0 => Self::Unallocated,
            host => Self::Data { host, copied: entry & COPIED != 0 },
        })
    }

    /// The host clusters that the entry holds a reference to.
    pub fn host_clusters(self, cluster_bits: u32) -> impl Iterator<Item = u64> {
        let range = match self {
            Self::Unallocated | Self::Zero { host: None } => None,
            Self::Zero { host: Some(host) } | Self::Data { host, .. } => {
                Some(host >> cluster_bits..=host >> cluster_bits)
            }
            Self::Compressed(descriptor) => Some(descriptor.clusters(cluster_bits)),
        };
        range.into_iter().flatten()
    }
}

/// Where a piece of a range is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The backing file, at the same offset as in this disk; zeroes without one.
    Backing,
    /// Nowhere: zeroes.
    Zero,
    /// The file, at this offset.
    File(u64),
    /// A compressed cluster, from this byte of it on.
    Compressed(Descriptor, u64),
}

/// A piece of a range, never empty.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub source: Source,
    pub len: u64,
}

/// How a range is to be written.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// Over what is there: the offset in the file, and the bytes.
    InPlace(u64, u64),
    /// To new clusters: so many bytes at most, under one L2 table.
    New(u64),
}

impl Inner {
    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// L2 entries in a table.
    pub fn l2_entries(&self) -> u64 {
        1 << (self.cluster_bits - 3)
    }

    /// L1 index and L2 index of a guest cluster.
    pub fn indices(&self, cluster: u64) -> (usize, usize) {
        let bits = self.cluster_bits - 3;
        ((cluster >> bits) as usize, (cluster & ((1 << bits) - 1)) as usize)
    }

    /// Makes room in the L2 cache, and flushes for it if need be.
    fn l2_room(&mut self) -> Result<()> {
        if !self.l2.make_room() {
            self.flush()?;
            self.l2.make_room();
        }
        Ok(())
    }

    fn load_l2(&mut self, offset: u64) -> Result<()> {
        if self.l2.contains(offset) {
            return Ok(());
        }
        self.l2_room()?;
        self.l2.load(&*self.storage, offset)
    }

    /// The L2 entry of a guest cluster, 0 without a table; `None` if its table is not in memory and
    /// `wait` is false.
    pub fn l2_entry(&mut self, cluster: u64, wait: bool) -> Result<Option<u64>> {
        let (l1_index, l2_index) = self.indices(cluster);
        let l1_entry = self.l1.get(l1_index).copied().unwrap_or(0);
        let Some(offset) = l2_offset(l1_entry, self.cluster_bits)? else { return Ok(Some(0)) };
        if !wait && !self.l2.contains(offset) {
            return Ok(None);
        }
        self.load_l2(offset)?;
        Ok(self.l2.get(offset).map(|table| super::header::be64(table, l2_index * 8)))
    }

    /// What the entry of a guest cluster says; `None` as for [`l2_entry`](Self::l2_entry).
    pub fn mapping(&mut self, cluster: u64, wait: bool) -> Result<Option<Mapping>> {
        let entry = self.l2_entry(cluster, wait)?;
        entry.map(|entry| Mapping::decode(entry, self.version, self.cluster_bits)).transpose()
    }

    /// The pieces of a range; `None` if that is not known without waiting.
    pub fn segments(&mut self, offset: u64, len: u64, wait: bool) -> Result<Option<Vec<Segment>>> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let inside = at & (self.cluster_size() - 1);
            let n = (self.cluster_size() - inside).min(len - done);
            let Some(mapping) = self.mapping(at >> self.cluster_bits, wait)? else { return Ok(None) };
            let source = match mapping {
                Mapping::Unallocated => Source::Backing,
                Mapping::Zero { .. } => Source::Zero,
                Mapping::Data { host, .. } => Source::File(host + inside),
                Mapping::Compressed(descriptor) => Source::Compressed(descriptor, inside),
            };
            match segments.last_mut() {
                Some(last) if follows(last, source) => last.len += n,
                _ => segments.push(Segment { source, len: n }),
            }
            done += n;
        }
        Ok(Some(segments))
    }

    /// How the beginning of a range is to be written; `None` if that is not known without waiting.
    pub fn write_run(&mut self, offset: u64, len: u64, wait: bool) -> Result<Option<Run>> {
        let (mut place, mut done) = (None, 0);
        let first_table = self.indices(offset >> self.cluster_bits).0;
        while done < len {
            let at = offset + done;
            let inside = at & (self.cluster_size() - 1);
            let cluster = at >> self.cluster_bits;
            let Some(mapping) = self.mapping(cluster, wait)? else { return Ok(None) };
            let here = match mapping {
                Mapping::Data { host, copied: true } => Some(self.check_in_place(host)? + inside),
                _ => None,
            };
            let goes_on = match (place, here) {
                _ if done == 0 => true,
                (Some(start), Some(here)) => start + done == here,
                (None, None) => self.indices(cluster).0 == first_table,
                _ => false,
            };
            if !goes_on {
                break;
            }
            if done == 0 {
                place = here;
            }
            done += (self.cluster_size() - inside).min(len - done);
        }
        Ok(Some(place.map_or(Run::New(done), |host| Run::InPlace(host, done))))
    }

    /// Refuses a host cluster that guest data must not be written to.
    fn check_in_place(&mut self, host: u64) -> Result<u64> {
        if self.metadata.contains(&(host >> self.cluster_bits)) {
            return Err(self.damaged(format!("a data cluster at {host:#x} overlaps metadata")));
        }
        if host >= self.file_end {
            return Err(self.damaged(format!("a data cluster at {host:#x} lies behind the end of the file")));
        }
        Ok(host)
    }

    /// The L2 table for an L1 entry, in memory and ours alone.
    pub fn writable_l2(&mut self, l1_index: usize) -> Result<u64> {
        let entry = self.l1.get(l1_index).copied().unwrap_or(0);
        let old = l2_offset(entry, self.cluster_bits)?;
        let bytes = match old {
            Some(offset) if entry & COPIED != 0 => {
                self.load_l2(offset)?;
                return Ok(offset);
            }
            Some(offset) => {
                self.load_l2(offset)?;
                self.l2.get(offset).map(Box::from)
            }
            None => None,
        };
        let bytes = bytes.unwrap_or_else(|| vec![0; self.cluster_size() as usize].into_boxed_slice());
        self.l2_room()?;
        let (cluster, _) = self.allocate(1)?;
        let offset = cluster << self.cluster_bits;
        self.l2.insert(offset, bytes);
        self.set_l1(l1_index, offset | COPIED);
        self.metadata.insert(cluster);
        if let Some(old) = old {
            // A snapshot's table from now on.
            self.metadata.remove(&(old >> self.cluster_bits));
            self.release([old >> self.cluster_bits]);
        }
        Ok(offset)
    }

    /// Changes the entry of a guest cluster, and releases what it named before unless it still does.
    pub fn set_l2_entry(&mut self, cluster: u64, entry: u64) -> Result<()> {
        let (l1_index, l2_index) = self.indices(cluster);
        let table = self.writable_l2(l1_index)?;
        let Some(old) = self.mapping(cluster, true)? else { return Ok(()) };
        self.l2.update(table, l2_index * 8, &entry.to_be_bytes());
        let kept = Mapping::decode(entry, self.version, self.cluster_bits)?;
        if !old.host_clusters(self.cluster_bits).eq(kept.host_clusters(self.cluster_bits)) {
            self.release(old.host_clusters(self.cluster_bits));
        }
        Ok(())
    }
}

/// Whether a piece goes on where the last one ends.
fn follows(last: &Segment, source: Source) -> bool {
    match (last.source, source) {
        (Source::Backing, Source::Backing) | (Source::Zero, Source::Zero) => true,
        (Source::File(start), Source::File(next)) => start + last.len == next,
        _ => false,
    }
}
