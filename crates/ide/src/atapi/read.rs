//! READ(10), READ(12), READ CD.

use serde::{Deserialize, Serialize};
use trapline_disk::{Buffer, Op};

use super::sense::Sense;
use super::{CdJob, Transport};
use crate::drive::{Drive, Job};

/// User data of a sector.
pub(crate) const DATA: usize = 2048;
/// A whole sector.
const RAW: usize = 2352;
/// Sectors of one operation.
const PIO_STAGE: u32 = 16;
const DMA_STAGE: u32 = 128;

/// Sectors to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frames {
    lba: u32,
    left: u32,
    raw: bool,
}

impl Frames {
    pub fn is_valid(&self) -> bool {
        self.lba.checked_add(self.left).is_some()
    }
}

/// Minute, second and frame of a sector, of which the first is at 00:02:00.
pub(crate) fn msf(lba: u32) -> [u8; 3] {
    let frame = lba.saturating_add(150);
    [(frame / 75 / 60).min(255) as u8, (frame / 75 % 60) as u8, (frame % 75) as u8]
}

/// A raw mode 1 sector. Its error detection and correction codes are zero.
fn raw_sector(lba: u32, data: &[u8], to: &mut [u8]) {
    let bcd = |n: u8| (n / 10 % 10) * 16 + n % 10;
    let [m, s, f] = msf(lba).map(bcd);
    let header = [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, m, s, f, 1];
    let tail = std::iter::repeat_n(&0, RAW - DATA - header.len());
    to.iter_mut().zip(header.iter().chain(data).chain(tail)).for_each(|(to, from)| *to = *from);
}

impl Drive {
    pub(super) fn cd_read(&mut self, lba: u32, left: u32, raw: bool, transport: Transport) {
        let Some(capacity) = self.cd_capacity() else { return self.cd_check(Sense::NO_DISC) };
        if lba.checked_add(left).is_none_or(|end| end > capacity) {
            return self.cd_check(Sense::OUT_OF_RANGE);
        }
        if left > 0 && self.no_limit(transport) {
            return;
        }
        self.cd_next(Frames { lba, left, raw }, transport);
    }

    /// READ CD (MMC-6 §6.20): user data or whole sectors of mode 1.
    pub(super) fn read_cd(&mut self, packet: &[u8; 12], transport: Transport) {
        let [_, kind, a, b, c, d, n2, n1, n0, fields, sub_channel, _] = *packet;
        let (lba, left) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, n2, n1, n0]));
        match (kind >> 2 & 7, fields, sub_channel & 7) {
            (0 | 2, 0x10, 0) => self.cd_read(lba, left, false, transport),
            (0 | 2, 0xf8, 0) => self.cd_read(lba, left, true, transport),
            (0 | 2, 0, 0) => self.cd_read(lba, 0, false, transport),
            (0 | 2, ..) => self.cd_check(Sense::BAD_FIELD),
            _ => self.cd_check(Sense::BAD_MODE),
        }
    }

    /// Reads what is left, or ends the command.
    pub(super) fn cd_next(&mut self, frames: Frames, transport: Transport) {
        if frames.left == 0 {
            return self.cd_finish();
        }
        let n = frames.left.min(if transport.dma { DMA_STAGE } else { PIO_STAGE });
        let buffer = self.stage.take(n as usize * DATA);
        let offset = u64::from(frames.lba) * DATA as u64;
        self.submit(Op::Read { offset, buffer }, Job::Cd(CdJob::Read(frames, transport)));
    }

    pub(crate) fn cd_read_done(&mut self, job: CdJob, ok: bool) {
        let CdJob::Read(mut frames, transport) = job else { return self.cd_finish() };
        if !ok {
            return self.cd_check(Sense::READ_ERROR);
        }
        let n = (self.stage.len() / DATA) as u32;
        if frames.raw {
            self.expand(frames.lba);
        }
        frames.lba = frames.lba.saturating_add(n);
        frames.left = frames.left.saturating_sub(n);
        self.cd_present(CdJob::Read(frames, transport), transport);
    }

    /// Makes whole sectors of the staged user data.
    fn expand(&mut self, first: u32) {
        let sectors = self.stage.bytes().chunks_exact(DATA);
        let mut whole = Buffer::new(sectors.len() * RAW);
        for ((lba, data), to) in (first..).zip(sectors).zip(whole.chunks_exact_mut(RAW)) {
            raw_sector(lba, data, to);
        }
        self.stage.put(whole);
    }
}
