//! The tables of an image as a whole: L1 tables, and internal snapshots.

use std::collections::HashSet;

use super::header::{Header, MAX_L1_BYTES, be32, be64};
use crate::contract::{DiskError, Result};
use crate::storage::{Storage, read_exact};

/// Bits 9 to 55 of L1 and L2 entries: the offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly one, so that what the entry names may be changed in place.
pub const COPIED: u64 = 1 << 63;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identifier, unique in the image.
    pub id: String,
    /// Its name, not always unique.
    pub name: String,
    /// When it was taken: seconds since 1970.
    pub seconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub guest_nanos: u64,
    /// Bytes of saved machine state that belong to it.
    pub vm_state_size: u64,
    /// Size of the disk at that time, in bytes.
    pub disk_size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_size: u32,
}

/// The most clusters of metadata in a writable image, before refcounts.
const MAX_METADATA: u64 = 1 << 24;
/// The most bytes of extra data that a snapshot may have.
const MAX_EXTRA: u32 = 1024;

/// Reads the snapshot table; also its length in bytes.
pub fn read_snapshots(storage: &dyn Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let mut at = header.snapshots_offset;
    let mut snapshots = Vec::new();
    let file_len = storage.len()?;
    for _ in 0..header.snapshots {
        let mut fixed = [0; 40];
        read_exact(storage, at, &mut fixed, "snapshot table")?;
        let (id_len, name_len) = (be32(&fixed, 12) >> 16, be32(&fixed, 12) & 0xffff);
        let extra_len = be32(&fixed, 36);
        if extra_len > MAX_EXTRA {
            return Err(DiskError::corrupt(format!("{extra_len} bytes of extra data in a snapshot")));
        }
        let mut rest = vec![0; (extra_len + id_len + name_len) as usize];
        read_exact(storage, at + 40, &mut rest, "snapshot table")?;
        let (extra, names) = rest.split_at(extra_len as usize);
        let (id, name) = names.split_at(id_len as usize);
        let snapshot = Snapshot {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            seconds: be32(&fixed, 16),
            guest_nanos: be64(&fixed, 24),
            vm_state_size: if extra.len() >= 8 { be64(extra, 0) } else { be32(&fixed, 32).into() },
            disk_size: if extra.len() >= 16 { be64(extra, 8) } else { header.size },
            l1_offset: be64(&fixed, 0),
            l1_size: be32(&fixed, 8),
        };
        let l1_bytes = 8 * u64::from(snapshot.l1_size);
        if l1_bytes > MAX_L1_BYTES {
            return Err(DiskError::corrupt(format!("an L1 table of {l1_bytes} bytes in a snapshot")));
        }
        header.check_table("snapshot's L1 table", snapshot.l1_offset, l1_bytes, file_len)?;
        snapshots.push(snapshot);
        at += (40 + rest.len() as u64).next_multiple_of(8);
    }
    Ok((snapshots, at - header.snapshots_offset))
}

/// Reads an L1 table.
pub fn read_l1(storage: &dyn Storage, offset: u64, entries: u32) -> Result<Vec<u64>> {
    let mut raw = vec![0; entries as usize * 8];
    if !raw.is_empty() {
        read_exact(storage, offset, &mut raw, "L1 table")?;
    }
    Ok((0..entries as usize).map(|i| be64(&raw, i * 8)).collect())
}

/// The L2 table that an L1 entry names, if any.
pub fn l2_offset(entry: u64, cluster_bits: u32) -> Result<Option<u64>> {
    let offset = entry & OFFSET_MASK;
    if entry & !(OFFSET_MASK | COPIED) != 0 || offset & ((1 << cluster_bits) - 1) != 0 {
        return Err(DiskError::corrupt(format!("L1 entry {entry:#x}")));
    }
    Ok((offset != 0).then_some(offset))
}

/// The active L1 table, and the clusters that are not data.
pub struct Tables {
    pub l1: Vec<u64>,
    pub metadata: HashSet<u64>,
    pub snapshots: Vec<Snapshot>,
}

impl Tables {
    /// Reads the tables of an image that is to be written.
    pub fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let bits = header.cluster_bits;
        let l1 = read_l1(storage, header.l1_offset, header.l1_size)?;
        let (snapshots, snapshots_len) = read_snapshots(storage, header)?;
        let mut metadata = HashSet::new();
        let mut total = 0;
        let mut range = |offset: u64, len: u64| {
            if len > 0 && total < MAX_METADATA {
                let clusters = offset >> bits..((offset + len - 1) >> bits) + 1;
                total += clusters.end - clusters.start;
                metadata.extend(clusters);
            }
            if total < MAX_METADATA {
                Ok(())
            } else {
                Err(DiskError::Unsupported("writing an image with this many snapshots".into()))
            }
        };
        range(header.l1_offset, 8 * l1.len() as u64)?;
        range(header.snapshots_offset, snapshots_len)?;
        for snapshot in &snapshots {
            range(snapshot.l1_offset, 8 * u64::from(snapshot.l1_size))?;
        }
        for &entry in &l1 {
            if let Some(offset) = l2_offset(entry, bits)? {
                range(offset, 1)?;
            }
        }
        Ok(Self { l1, metadata, snapshots })
    }
}
