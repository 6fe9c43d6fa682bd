//! Checking refcounts against references, and rebuilding them.

use super::disk::Qcow2Disk;
use super::header::{INCOMPAT_DIRTY, be64};
use super::map::Mapping;
use super::snapshot::{COPIED, l2_offset, read_l1};
use super::state::Inner;
use crate::contract::{DiskError, Result};
use crate::storage::read_exact;

/// Clusters of a file that can be checked at most: 4 bytes of memory each.
const MAX_CLUSTERS: u64 = 1 << 27;
const MAX_MESSAGES: usize = 20;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Damage: too low a refcount, a wrong "copied" flag, an invalid entry.
    pub corruptions: u64,
    /// Clusters that count as used more often than they are: lost room, no damage.
    pub leaks: u64,
    /// The first findings in words.
    pub messages: Vec<String>,
}

impl CheckReport {
    fn corruption(&mut self, message: String) {
        self.corruptions += 1;
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(message);
        }
    }
}

/// References counted, by cluster.
struct References {
    counts: Vec<u32>,
    report: CheckReport,
}

impl References {
    fn add(&mut self, cluster: u64) {
        match self.counts.get_mut(cluster as usize) {
            Some(count) => *count += 1,
            None => self.report.corruption(format!("a reference to cluster {cluster:#x} behind the end")),
        }
    }
}

impl Inner {
    /// Counts the references that an L1 table makes. For the active one (`active`), the copied flags
    /// are checked as well.
    fn count_l1(&mut self, l1: &[u64], active: bool, refs: &mut References) -> Result<()> {
        let mut table = vec![0; 1 << self.cluster_bits];
        for &l1_entry in l1 {
            let offset = match l2_offset(l1_entry, self.cluster_bits) {
                Ok(Some(offset)) => offset,
                Ok(None) => continue,
                Err(e) => {
                    refs.report.corruption(e.to_string());
                    continue;
                }
            };
            refs.add(offset >> self.cluster_bits);
            if active {
                self.check_copied(offset >> self.cluster_bits, l1_entry & COPIED != 0, refs)?;
            }
            if let Err(e) = read_exact(&*self.storage, offset, &mut table, "L2 table") {
                refs.report.corruption(e.to_string());
                continue;
            }
            for entry in (0..table.len()).step_by(8).map(|at| be64(&table, at)) {
                match Mapping::decode(entry, self.version, self.cluster_bits) {
                    Ok(mapping) => {
                        mapping.host_clusters(self.cluster_bits).for_each(|cluster| refs.add(cluster));
                        if active && let Mapping::Data { host, copied } = mapping {
                            self.check_copied(host >> self.cluster_bits, copied, refs)?;
                        }
                    }
                    Err(e) => refs.report.corruption(e.to_string()),
                }
            }
        }
        Ok(())
    }

    fn check_copied(&mut self, cluster: u64, copied: bool, refs: &mut References) -> Result<()> {
        let count = self.refcount(cluster)?;
        if copied != (count == 1) {
            let message = format!("cluster {cluster:#x}: copied flag {copied}, refcount {count}");
            refs.report.corruption(message);
        }
        Ok(())
    }
}

impl Qcow2Disk {
    /// Compares refcounts with references. The image must be open for writing; what is cached is
    /// flushed first.
    pub fn check(&self) -> Result<CheckReport> {
        let mut inner = self.lock();
        inner.flush()?;
        let References { counts, mut report } = self.count_references(&mut inner)?;
        for (cluster, expected) in counts.into_iter().enumerate() {
            let count = inner.refcount(cluster as u64)?;
            if count > expected.into() {
                report.leaks += 1;
            } else if count < expected.into() {
                report.corruption(format!("cluster {cluster:#x}: refcount {count}, references {expected}"));
            }
        }
        Ok(report)
    }

    fn count_references(&self, inner: &mut Inner) -> Result<References> {
        let clusters = inner.file_end >> inner.cluster_bits;
        if clusters > MAX_CLUSTERS {
            return Err(DiskError::Unsupported(format!("checking an image of {clusters} clusters")));
        }
        let mut refs = References { counts: vec![0; clusters as usize], report: CheckReport::default() };
        let l1 = inner.l1.clone();
        inner.count_l1(&l1, true, &mut refs)?;
        for snapshot in self.snapshots() {
            let l1 = read_l1(&*self.storage, snapshot.l1_offset, snapshot.l1_size)?;
            inner.count_l1(&l1, false, &mut refs)?;
        }
        // All other metadata; active L2 tables were just counted.
        let mut metadata = inner.metadata.clone();
        for &entry in &l1 {
            if let Ok(Some(offset)) = l2_offset(entry, inner.cluster_bits) {
                metadata.remove(&(offset >> inner.cluster_bits));
            }
        }
        metadata.into_iter().for_each(|cluster| refs.add(cluster));
        Ok(refs)
    }

    /// Sets all refcounts to what the references say, and clears the dirty bit.
    pub(super) fn rebuild_refcounts(&self) -> Result<()> {
        let mut inner = self.lock();
        tracing::warn!("{}: not closed cleanly, counting references anew", self.storage.name());
        let refs = self.count_references(&mut inner)?;
        for (cluster, expected) in refs.counts.into_iter().enumerate() {
            let (cluster, expected) = (cluster as u64, u64::from(expected));
            if inner.refcount(cluster)? != expected {
                inner.set_refcount(cluster, expected)?;
            }
        }
        inner.flush()?;
        let features = inner.incompatible() & !INCOMPAT_DIRTY;
        inner.set_incompatible(features)
    }
}
