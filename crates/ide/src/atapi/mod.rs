//! CD-ROMs: the PACKET protocol (ATA/ATAPI-6 §8.23, SFF-8020i) and the commands of MMC.

mod inquiry;
mod mmc;
mod read;
mod sense;

pub(crate) use read::Frames;

use serde::{Deserialize, Serialize};

use crate::ata::Words;
use crate::drive::{Drive, Job, SECTOR};
use crate::io::Io;
use crate::regs::{Error, Status, cmd};
use sense::Sense;

/// Bytes in a command packet.
const PACKET_LEN: usize = 12;
/// Interrupt reason: command.
const REASON_COMMAND: u8 = 1;
/// Interrupt reason: data to the host.
const REASON_TO_HOST: u8 = 2;
/// Interrupt reason: done.
const REASON_DONE: u8 = 3;

/// What a CD-ROM has beyond a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cd {
    /// For REQUEST SENSE.
    sense: Sense,
    /// Reported once, by the next command that may report it.
    attention: Option<Sense>,
    locked: bool,
    /// The tray is out.
    open: bool,
    /// For GET EVENT STATUS NOTIFICATION.
    event: MediaEvent,
}

/// Media events (MMC-6 table 297).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum MediaEvent {
    None = 0,
    EjectRequest = 1,
    New = 2,
    Removed = 3,
}

/// How a PACKET command's data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transport {
    dma: bool,
    /// Bytes of a block at most, by PIO.
    limit: u16,
}

/// A PACKET command, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CdJob {
    /// The packet comes in.
    Packet(Transport),
    /// A prepared answer goes out.
    Reply(Transport),
    /// Sectors go out.
    Read(Frames, Transport),
}

impl CdJob {
    /// Whether a saved one is possible, with `staged` bytes.
    pub fn is_valid(&self, staged: usize) -> bool {
        match self {
            Self::Packet(_) => staged == PACKET_LEN,
            Self::Reply(_) => true,
            Self::Read(frames, _) => frames.is_valid(),
        }
    }
}

impl Cd {
    pub fn new() -> Self {
        let event = MediaEvent::None;
        Self { sense: Sense::NONE, attention: Some(Sense::RESET), locked: false, open: false, event }
    }

    pub fn power_on(&mut self) {
        *self = Self::new();
    }

    /// SRST and DEVICE RESET unlock nothing and announce nothing (SFF-8020i §5.9).
    pub fn soft_reset(&mut self) {
        self.sense = Sense::NONE;
    }
}

impl Drive {
    pub(crate) fn atapi_command(&mut self, code: u8) {
        match code {
            cmd::PACKET => self.start_packet(),
            cmd::IDENTIFY_PACKET => {
                let sector = self.identify_packet();
                self.reply_sector(&sector);
            }
            cmd::DEVICE_RESET => self.device_reset(),
            cmd::SET_FEATURES if self.regs.features.current == 3 => self.set_features(),
            cmd::IDENTIFY | cmd::READ_SECTORS => {
                // Aborted with the signature, so that hosts find a packet drive.
                let device = self.regs.device;
                self.diagnose();
                self.regs.device = device;
                self.fail(Error::ABRT);
            }
            _ => {
                if !self.power_command(code) {
                    self.fail(Error::ABRT);
                }
            }
        }
    }

    fn start_packet(&mut self) {
        let features = self.regs.features.current;
        if features & 2 != 0 {
            return self.fail(Error::ABRT); // overlapped
        }
        let transport = Transport { dma: features & 1 != 0, limit: self.regs.byte_count() };
        self.stage.fill(&[0; PACKET_LEN]);
        self.job = Job::Cd(CdJob::Packet(transport));
        self.regs.count.current = REASON_COMMAND;
        self.present(false, false, PACKET_LEN, false);
    }

    /// The host has moved a block.
    pub(crate) fn cd_block_done(&mut self, job: CdJob, more: bool) {
        match job {
            CdJob::Packet(transport) => {
                let mut packet = [0; PACKET_LEN];
                packet.iter_mut().zip(self.stage.bytes()).for_each(|(to, from)| *to = *from);
                self.settings.standby = false;
                self.packet(&packet, transport);
            }
            CdJob::Reply(transport) | CdJob::Read(_, transport) if more => self.cd_present(job, transport),
            CdJob::Read(frames, transport) => self.cd_next(frames, transport),
            CdJob::Reply(_) => self.cd_finish(),
        }
    }

    /// The next block for the host.
    fn cd_present(&mut self, job: CdJob, transport: Transport) {
        let rest = self.stage.len().saturating_sub(self.stage.pos);
        let limit = usize::from(transport.limit.min(0xfffe));
        let block = if rest <= limit { rest } else { (limit & !1).max(2) };
        self.job = Job::Cd(job);
        self.regs.count.current = REASON_TO_HOST;
        if !transport.dma {
            self.regs.set_byte_count(block.min(0xfffe) as u16);
        }
        self.present(true, transport.dma, block, true);
    }

    /// Answers with `data`, cut to the allocation length.
    fn cd_reply(&mut self, data: &[u8], allocated: usize, transport: Transport) {
        let data = data.get(..allocated).unwrap_or(data);
        if data.is_empty() {
            return self.cd_finish();
        }
        if self.no_limit(transport) {
            return;
        }
        self.stage.fill(data);
        self.cd_present(CdJob::Reply(transport), transport);
    }

    /// Data by PIO in blocks of no bytes: aborted (ATA8-ACS §7.19).
    fn no_limit(&mut self, transport: Transport) -> bool {
        let none = !transport.dma && transport.limit == 0;
        if none {
            self.fail(Error::ABRT);
        }
        none
    }

    fn cd_finish(&mut self) {
        self.finish(true);
        self.regs.count.current = REASON_DONE;
    }

    /// CHECK CONDITION.
    fn cd_check(&mut self, sense: Sense) {
        if let Some(cd) = &mut self.cd {
            cd.sense = sense;
        }
        self.cd_finish();
        self.regs.error = sense.key << 4;
        self.regs.status = Status::DRDY | Status::DSC | Status::ERR;
    }

    /// Sectors of 2,048 bytes on the disc in the drive; `None`: there is none, or the tray is out.
    fn cd_capacity(&self) -> Option<u32> {
        self.cd.as_ref().filter(|cd| !cd.open)?;
        let sectors = self.io.as_ref()?.disk().size() / read::DATA as u64;
        Some(u32::try_from(sectors).unwrap_or(u32::MAX))
    }

    pub(crate) fn change_disc(&mut self, disc: Option<Io>) -> bool {
        if self.cd.is_none() {
            return false;
        }
        let under_way = self.phase != crate::drive::Phase::Idle;
        self.cancel();
        let present = disc.is_some();
        self.io = disc;
        if let Some(cd) = &mut self.cd {
            cd.event = if present { MediaEvent::New } else { MediaEvent::Removed };
            cd.open = false;
            cd.attention = present.then_some(Sense::CHANGED).or(cd.attention);
        }
        if under_way {
            self.cd_check(Sense::NO_DISC);
        }
        true
    }

    pub(crate) fn tray_locked(&self) -> bool {
        self.cd.as_ref().is_some_and(|cd| cd.locked)
    }

    /// IDENTIFY PACKET DEVICE (ATA8-ACS §7.13).
    fn identify_packet(&self) -> [u8; SECTOR] {
        let mut words = Words::new();
        words.set(0, 0x85c0); // CD-ROM, removable, DRQ within 50 µs, 12-byte packets
        words.text(10, 10, &self.identity.serial);
        words.text(23, 4, &self.identity.firmware);
        words.text(27, 20, &self.identity.model);
        words.set(49, 0x0b00); // IORDY, LBA, DMA
        self.identify_modes(&mut words);
        words.set(71, 30); // microseconds to release the bus, and to clear BSY after SERVICE
        words.set(72, 30);
        let features = 1 << 9 | 1 << 4 | 1 << 3; // DEVICE RESET, PACKET, power management
        words.set(82, features);
        words.set(83, 0x4000);
        words.set(84, 0x4000);
        words.set(85, features);
        words.set(87, 0x4000);
        words.seal()
    }
}
