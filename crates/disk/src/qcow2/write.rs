//! Changing what a guest sees: writes, zeroes, discards.

use std::io::IoSlice;

use super::disk::{Qcow2Disk, cut};
use super::map::{Mapping, Run, ZERO};
use super::snapshot::COPIED;
use super::state::Inner;
use crate::contract::{DiskError, Result};

/// How clusters are cleared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Clear {
    /// They read as zeroes and keep their room.
    Zero,
    /// They read as zeroes.
    Unmap,
    /// They may read as zeroes.
    Discard,
}

impl Qcow2Disk {
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
    pub(super) fn write_range(&self, offset: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
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
    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool, size: u64) -> Result<()> {
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
    pub(super) fn clear_clusters(&self, first: u64, last: u64, how: Clear) -> Result<()> {
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
}
