//! Reading, writing and verifying sectors, by PIO and by DMA.

use serde::{Deserialize, Serialize};
use trapline_disk::Op;

use crate::drive::{Drive, Job, SECTOR, STAGE_MAX};
use crate::regs::Error;

/// Sectors of one operation: reads and writes by PIO, and whatever goes by DMA. More at once is cheaper, and
/// the guest waits longer for the first block of a read.
const PIO_READ_STAGE: u32 = 128;
const PIO_WRITE_STAGE: u32 = 512;
const DMA_STAGE: u32 = (STAGE_MAX / SECTOR) as u32;

/// How a command addresses sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Addressing {
    /// CHS or LBA by the device register, 8-bit count.
    Bits28,
    /// LBA in two writes, 16-bit count.
    Bits48,
}

/// What is done with the sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Read,
    Write { fua: bool },
    Verify,
}

/// A command on sectors, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sectors {
    kind: Kind,
    addressing: Addressing,
    dma: bool,
    /// The next sector that is not yet read from, or written to, the disk.
    lba: u64,
    /// How many there are from there on.
    left: u32,
    /// Sectors between two interrupts.
    block: u32,
    /// Sectors of an operation: fewer after an error, to find the sector that fails.
    step: u32,
}

/// How many sectors to read or write at once.
fn full_step(kind: Kind, dma: bool, block: u32) -> u32 {
    match (dma, kind) {
        (true, _) | (_, Kind::Verify) => DMA_STAGE,
        // Whole blocks: their number is a power of two up to 16.
        (false, Kind::Read) => PIO_READ_STAGE.max(block),
        (false, Kind::Write { .. }) => PIO_WRITE_STAGE.max(block),
    }
}

impl Sectors {
    /// Whether a saved one is possible on a disk of `sectors`, with `staged` bytes.
    pub fn is_valid(&self, sectors: u64, staged: usize) -> bool {
        let end = self.lba.checked_add(self.left.into());
        let write = matches!(self.kind, Kind::Write { .. });
        if write && staged != self.left.min(self.step) as usize * SECTOR {
            return false;
        }
        let limits = self.left <= 0x1_0000 && (1..=128).contains(&self.block);
        limits && (1..=DMA_STAGE).contains(&self.step) && end.is_some_and(|end| end <= sectors)
    }
}

impl Drive {
    /// The first sector of a command. `None`: there is no such cylinder, head or sector.
    pub(crate) fn start_lba(&self, addressing: Addressing) -> Option<u64> {
        let regs = &self.regs;
        match addressing {
            Addressing::Bits48 => Some(regs.lba48()),
            Addressing::Bits28 if regs.is_lba() => Some(regs.lba28()),
            Addressing::Bits28 => {
                let (heads, per_track) = (self.settings.heads, self.settings.sectors_per_track);
                let (head, sector) = (regs.device & 0xf, regs.low.current);
                let on_track = (1..=per_track).contains(&sector) && head < heads;
                let track = u64::from(regs.byte_count()) * u64::from(heads) + u64::from(head);
                on_track.then(|| track * u64::from(per_track) + u64::from(sector) - 1)
            }
        }
    }

    /// Shows a sector in the registers, in the form in which the command gave its own.
    pub(crate) fn show_lba(&mut self, addressing: Addressing, lba: u64) {
        match addressing {
            Addressing::Bits48 => self.regs.set_lba48(lba),
            Addressing::Bits28 if self.regs.is_lba() => self.regs.set_lba28(lba),
            Addressing::Bits28 => {
                let (heads, per_track) = (self.settings.heads.max(1), self.settings.sectors_per_track.max(1));
                let track = lba / u64::from(per_track);
                let cylinder = (track / u64::from(heads)).min(0xffff) as u16;
                let head = (track % u64::from(heads)) as u8;
                self.regs.set_chs(cylinder, head, (lba % u64::from(per_track)) as u8 + 1);
            }
        }
    }

    pub(crate) fn start_sectors(&mut self, kind: Kind, addressing: Addressing, block: u32, dma: bool) {
        self.settings.standby = false; // access to the medium wakes it
        let left = match addressing {
            Addressing::Bits28 => self.regs.count28(),
            Addressing::Bits48 => self.regs.count48(),
        };
        let first = self.start_lba(addressing);
        let end = first.and_then(|lba| lba.checked_add(left.into()));
        let Some(lba) = first.filter(|_| end.is_some_and(|end| end <= self.sectors())) else {
            return self.fail(Error::IDNF);
        };
        if matches!(kind, Kind::Write { .. }) && self.read_only() {
            return self.fail(Error::ABRT);
        }
        let step = full_step(kind, dma, block);
        self.next_sectors(Sectors { kind, addressing, dma, lba, left, block, step }, false);
    }

    /// Goes on with the sectors that are left: asks the disk for them, or the host.
    fn next_sectors(&mut self, job: Sectors, interrupt: bool) {
        let len = job.left.min(job.step) as usize * SECTOR;
        let buffer = self.stage.take(len);
        if matches!(job.kind, Kind::Write { .. }) {
            self.stage.put(buffer);
            self.present_sectors(job, interrupt);
        } else {
            let offset = job.lba * SECTOR as u64;
            self.submit(Op::Read { offset, buffer }, Job::Sectors(job));
        }
    }

    /// The next block is the host's, to take or to fill.
    pub(crate) fn present_sectors(&mut self, job: Sectors, interrupt: bool) {
        let (to_host, dma, block) = (job.kind == Kind::Read, job.dma, job.block as usize * SECTOR);
        self.job = Job::Sectors(job);
        self.present(to_host, dma, block, interrupt);
    }

    /// The host has moved all that was staged.
    pub(crate) fn sectors_moved(&mut self, job: Sectors) {
        match job.kind {
            Kind::Write { fua } => {
                let offset = job.lba * SECTOR as u64;
                let Some(buffer) = self.stage.take_filled() else { return self.fail(Error::ABRT) };
                self.submit(Op::Write { offset, buffer, fua }, Job::Sectors(job));
            }
            Kind::Read | Kind::Verify if job.left > 0 => self.next_sectors(job, false),
            Kind::Read | Kind::Verify => self.end_sectors(&job),
        }
    }

    /// The disk has done its part.
    pub(crate) fn sectors_done(&mut self, mut job: Sectors, ok: bool) {
        let n = job.left.min(job.step);
        let write = matches!(job.kind, Kind::Write { .. });
        if !ok {
            let least = if job.dma || job.kind == Kind::Verify { 1 } else { job.block };
            if n > least && !write {
                job.step = (n / 8).max(least);
                return self.next_sectors(job, false);
            }
            self.show_lba(job.addressing, job.lba);
            return self.fail(if write { Error::ABRT } else { Error::UNC });
        }
        job.lba += u64::from(n);
        job.left -= n;
        job.step = full_step(job.kind, job.dma, job.block);
        match job.kind {
            Kind::Read => self.present_sectors(job, true),
            _ if job.left > 0 => self.next_sectors(job, true),
            _ => self.end_sectors(&job),
        }
    }

    fn end_sectors(&mut self, job: &Sectors) {
        self.show_lba(job.addressing, job.lba);
        self.regs.count = crate::taskfile::Register::default();
        // The last block of a PIO read has had its interrupt when it was ready.
        self.finish(job.dma || job.kind != Kind::Read);
    }
}
