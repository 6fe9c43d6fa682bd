//! DATA SET MANAGEMENT with TRIM (ATA8-ACS §7.10).

use trapline_disk::Op;

use crate::drive::{Drive, Job, SECTOR};
use crate::regs::Error;

/// Blocks of ranges that a command may bring, word 105 of IDENTIFY.
pub(crate) const TRIM_BLOCKS: u16 = 1;

impl Drive {
    pub(crate) fn data_set_management(&mut self) {
        let blocks = self.regs.count.wide();
        let trim = self.regs.features.current == 1;
        if !trim || blocks == 0 || blocks > TRIM_BLOCKS || self.read_only() {
            return self.fail(Error::ABRT);
        }
        let buffer = self.stage.take(usize::from(blocks) * SECTOR);
        self.stage.put(buffer);
        self.job = Job::TrimRanges;
        self.present(false, true, 0, false);
    }

    /// Trims the next staged range that is not empty; ends the command after the last.
    pub(crate) fn trim(&mut self, from: usize) {
        let ranges = self.stage.bytes().chunks_exact(8).enumerate().skip(from);
        let mut ranges = ranges.filter_map(|(i, entry)| {
            let entry = u64::from_le_bytes(entry.try_into().ok()?);
            let (lba, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
            (count > 0).then_some((i, lba, count))
        });
        match ranges.next() {
            None => self.finish(true),
            Some((_, lba, count)) if lba + count > self.sectors() => self.fail(Error::IDNF),
            Some((i, lba, count)) => {
                let (offset, len) = (lba * SECTOR as u64, count * SECTOR as u64);
                self.submit(Op::Discard { offset, len }, Job::Trim { next: i + 1 });
            }
        }
    }
}
