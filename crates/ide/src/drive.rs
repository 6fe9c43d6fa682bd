//! What disks and CD-ROMs have in common: registers, the data phase, operations on the disk.

use serde::{Deserialize, Serialize};
use trapline_disk::{Buffer, Completion, Op, Request, Result};

use crate::ata::{Sectors, Settings};
use crate::atapi::{Cd, CdJob};
use crate::io::Io;
use crate::regs::{Control, Error, Status, cmd};
use crate::taskfile::TaskFile;

/// Bytes a drive stages at most: one operation on the disk.
pub(crate) const STAGE_MAX: usize = 1 << 20;
/// Bytes in a sector of a disk.
pub(crate) const SECTOR: usize = 512;

/// What the drive is doing with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Nothing.
    Idle,
    /// An operation on the disk is under way.
    Busy,
    /// The host transfers the staged bytes.
    Data { to_host: bool, dma: bool },
}

/// The command being carried out, as far as it goes on after its first step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    None,
    /// Sectors are read, written or verified.
    Sectors(Sectors),
    /// A prepared answer goes to the host: IDENTIFY, SMART data.
    Reply,
    /// Ranges to be trimmed come in.
    TrimRanges,
    /// Ranges are trimmed; entry `next` of the staged ones comes next.
    Trim {
        next: usize,
    },
    /// FLUSH CACHE.
    Flush,
    /// PACKET.
    Cd(CdJob),
}

/// The drive's buffer. The host transfers `pos..block_end`, then the next block up to the end.
#[derive(Default)]
pub(crate) struct Stage {
    buffer: Option<Buffer>,
    pub pos: usize,
    pub block_end: usize,
}

impl Stage {
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or(&[])
    }

    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// What is left of the present block.
    pub fn rest(&mut self) -> &mut [u8] {
        let (pos, end) = (self.pos, self.block_end);
        self.buffer.as_deref_mut().and_then(|bytes| bytes.get_mut(pos..end)).unwrap_or(&mut [])
    }

    /// A buffer of `len` bytes, at most [`STAGE_MAX`], with any content.
    pub fn take(&mut self, len: usize) -> Buffer {
        let len = len.min(STAGE_MAX);
        (self.pos, self.block_end) = (0, 0);
        if let Some(mut buffer) = self.buffer.take()
            && buffer.set_len(len)
        {
            return buffer;
        }
        let mut buffer = Buffer::new(len.next_power_of_two().max(1 << 16));
        buffer.set_len(len);
        buffer
    }

    /// The buffer, to be written.
    pub fn take_filled(&mut self) -> Option<Buffer> {
        (self.pos, self.block_end) = (0, 0);
        self.buffer.take()
    }

    pub fn put(&mut self, buffer: Buffer) {
        (self.pos, self.block_end) = (0, 0);
        self.buffer = Some(buffer);
    }

    pub fn fill(&mut self, bytes: &[u8]) {
        let mut buffer = self.take(bytes.len());
        for (to, from) in buffer.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.put(buffer);
    }
}

/// A drive: a hard disk or a CD-ROM.
pub struct Drive {
    pub(crate) regs: TaskFile,
    /// INTRQ before nIEN.
    pub(crate) intrq: bool,
    pub(crate) phase: Phase,
    pub(crate) job: Job,
    pub(crate) stage: Stage,
    pub(crate) settings: Settings,
    pub(crate) cd: Option<Cd>,
    pub(crate) identity: DriveIdentity,
    /// `None`: a CD-ROM without a disc.
    pub(crate) io: Option<Io>,
    pub(crate) in_flight: Option<u64>,
    pub(crate) next_id: u64,
}

/// What a drive says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveIdentity {
    /// Serial number, 20 ASCII characters at most.
    pub serial: String,
    /// Model, 40 ASCII characters at most.
    pub model: String,
    /// Firmware revision, 8 ASCII characters at most.
    pub firmware: String,
}

impl DriveIdentity {
    /// A serial number with this project's model name.
    pub fn new(serial: &str) -> Self {
        Self { serial: serial.into(), model: "TRAPLINE DISK".into(), firmware: "1.0".into() }
    }
}

impl Drive {
    /// A hard disk.
    pub fn disk(io: Io, identity: DriveIdentity) -> Self {
        let volatile = io.disk().info().volatile_cache;
        let sectors = io.disk().size() / SECTOR as u64;
        Self::new(Some(io), identity, None, Settings::new(sectors, volatile))
    }

    /// A CD-ROM, with a disc or without. The disc's size is rounded down to 2,048-byte sectors.
    pub fn cdrom(disc: Option<Io>, identity: DriveIdentity) -> Self {
        Self::new(disc, identity, Some(Cd::new()), Settings::new(0, false))
    }

    fn new(io: Option<Io>, identity: DriveIdentity, cd: Option<Cd>, settings: Settings) -> Self {
        let mut drive = Self {
            regs: TaskFile::new(),
            intrq: false,
            phase: Phase::Idle,
            job: Job::None,
            stage: Stage::default(),
            settings,
            cd,
            identity,
            io,
            in_flight: None,
            next_id: 0,
        };
        drive.power_on();
        drive
    }

    /// Power-on and hardware reset.
    pub(crate) fn power_on(&mut self) {
        self.soft_reset();
        self.settings = Settings::new(self.sectors(), self.volatile_cache());
        if let Some(cd) = &mut self.cd {
            cd.power_on();
        }
    }

    /// Size in sectors of 512 bytes.
    pub(crate) fn sectors(&self) -> u64 {
        // Beyond 48 bits nothing can be addressed.
        self.io.as_ref().map_or(0, |io| (io.disk().size() / SECTOR as u64).min(1 << 48))
    }

    pub(crate) fn volatile_cache(&self) -> bool {
        self.io.as_ref().is_some_and(|io| io.disk().info().volatile_cache)
    }

    pub(crate) fn read_only(&self) -> bool {
        self.io.as_ref().is_none_or(|io| io.disk().info().read_only)
    }

    /// What SRST and DEVICE RESET leave: nothing under way, the signature in the registers.
    pub(crate) fn soft_reset(&mut self) {
        self.cancel();
        self.diagnose();
        self.settings.soft_reset();
        if let Some(cd) = &mut self.cd {
            cd.soft_reset();
        }
    }

    /// The registers after a reset or EXECUTE DEVICE DIAGNOSTIC: passed.
    pub(crate) fn diagnose(&mut self) {
        let atapi = self.cd.is_some();
        self.regs.signature(if atapi { (0x14, 0xeb) } else { (0, 0) });
        self.regs.error = 1;
        // A packet drive is not ready for commands of disks (ATA/ATAPI-6 §9.12).
        self.regs.status = if atapi { Status::empty() } else { Status::DRDY | Status::DSC };
    }

    /// Forgets the command. An operation that is under way is waited for, so that what comes next
    /// is behind it.
    pub(crate) fn cancel(&mut self) {
        if self.in_flight.take().is_some()
            && let Some(io) = &self.io
        {
            io.wait_idle();
            drop(io.reap());
        }
        self.phase = Phase::Idle;
        self.job = Job::None;
        self.intrq = false;
    }

    /// A write to the command register by the selected drive's owner.
    pub(crate) fn command(&mut self, code: u8) {
        if self.regs.status.intersects(Status::BSY | Status::DRQ) {
            if code == cmd::DEVICE_RESET && self.cd.is_some() {
                self.device_reset();
            }
            return;
        }
        self.intrq = false;
        self.regs.error = 0;
        self.phase = Phase::Idle;
        self.job = Job::None;
        if self.cd.is_some() { self.atapi_command(code) } else { self.ata_command(code) }
    }

    pub(crate) fn device_reset(&mut self) {
        let device = self.regs.device;
        self.soft_reset();
        self.regs.device = device & 0x10;
    }

    /// Ends the command without an error.
    pub(crate) fn finish(&mut self, interrupt: bool) {
        self.phase = Phase::Idle;
        self.job = Job::None;
        self.regs.status = Status::DRDY | Status::DSC;
        self.intrq |= interrupt;
    }

    /// Ends the command with an error.
    pub(crate) fn fail(&mut self, error: Error) {
        self.finish(true);
        self.regs.fail(error);
    }

    /// Hands the host the staged bytes in blocks of `block`.
    pub(crate) fn present(&mut self, to_host: bool, dma: bool, block: usize, interrupt: bool) {
        self.phase = Phase::Data { to_host, dma };
        let len = self.stage.len();
        let block = if dma { len } else { block.max(1) };
        self.stage.block_end = self.stage.pos.saturating_add(block).min(len);
        self.regs.status = Status::DRDY | Status::DSC | Status::DRQ;
        self.intrq |= interrupt && !dma;
    }

    /// An answer of one sector.
    pub(crate) fn reply_sector(&mut self, sector: &[u8; SECTOR]) {
        self.stage.fill(sector);
        self.job = Job::Reply;
        self.present(true, false, SECTOR, true);
    }

    /// The host has moved `n` bytes of the present block.
    pub(crate) fn moved(&mut self, n: usize) {
        self.stage.pos = self.stage.pos.saturating_add(n).min(self.stage.block_end);
        if self.stage.pos == self.stage.block_end {
            self.block_done();
        }
    }

    fn block_done(&mut self) {
        let Phase::Data { dma, .. } = self.phase else { return };
        let more = self.stage.pos < self.stage.len();
        match std::mem::replace(&mut self.job, Job::None) {
            Job::Sectors(job) if more => self.present_sectors(job, true),
            Job::Sectors(job) => self.sectors_moved(job),
            Job::TrimRanges => self.trim(0),
            Job::Cd(job) => self.cd_block_done(job, more),
            Job::Reply | Job::Flush | Job::Trim { .. } | Job::None => self.finish(dma),
        }
    }

    /// Starts an operation; `job` goes on when it is done.
    pub(crate) fn submit(&mut self, op: Op, job: Job) {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.phase = Phase::Busy;
        self.job = job;
        self.regs.status = Status::BSY;
        let Some(io) = &self.io else { return self.fail(Error::ABRT) };
        self.in_flight = Some(id);
        if let Some(done) = io.submit(Request { id, op }) {
            self.completed(done);
        }
    }

    /// Takes what the engine has done.
    pub(crate) fn complete(&mut self) {
        let done = self.io.as_ref().map_or_else(Vec::new, Io::reap);
        for completion in done {
            self.completed(completion);
        }
    }

    /// Waits until no operation is under way.
    pub(crate) fn quiesce(&mut self) {
        while self.in_flight.is_some() {
            if let Some(io) = &self.io {
                io.wait_idle();
            }
            self.complete();
        }
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    fn completed(&mut self, completion: Completion) {
        if self.in_flight != Some(completion.request.id) {
            return;
        }
        self.in_flight = None;
        let Completion { request, result } = completion;
        if let Err(error) = &result {
            tracing::warn!(serial = self.identity.serial, "disk: {error}");
        }
        if let Op::Read { buffer, .. } | Op::Write { buffer, .. } = request.op {
            self.stage.put(buffer);
        }
        self.go_on(result);
    }

    fn go_on(&mut self, result: Result<()>) {
        match std::mem::replace(&mut self.job, Job::None) {
            Job::Sectors(job) => self.sectors_done(job, result.is_ok()),
            Job::Trim { next } if result.is_ok() => self.trim(next),
            Job::Cd(job) => self.cd_read_done(job, result.is_ok()),
            Job::Trim { .. } | Job::TrimRanges | Job::Flush | Job::Reply | Job::None => match result {
                Ok(()) => self.finish(true),
                Err(_) => self.fail(Error::ABRT),
            },
        }
    }

    /// The level of INTRQ under a channel's device control register.
    pub(crate) fn drives_intrq(&self, control: Control) -> bool {
        self.intrq && !control.contains(Control::NIEN)
    }
}
