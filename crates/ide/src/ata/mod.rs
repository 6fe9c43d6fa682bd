//! Commands of disks (ATA8-ACS §7; obsolete ones ATA-3).

mod features;
mod identify;
mod sectors;
mod smart;
mod trim;

pub(crate) use features::Settings;
pub(crate) use identify::{Words, put_text};
pub(crate) use sectors::Sectors;

use trapline_disk::Op;

use crate::drive::{Drive, Job};
use crate::regs::{Error, cmd};
use sectors::{Addressing, Kind};

impl Drive {
    pub(crate) fn ata_command(&mut self, code: u8) {
        if self.settings.asleep {
            return; // only a reset wakes it
        }
        if !self.transfer_command(code) && !self.other_command(code) {
            self.fail(Error::ABRT);
        }
    }

    /// Commands that move sectors. False: it is none.
    fn transfer_command(&mut self, code: u8) -> bool {
        use Addressing::{Bits28, Bits48};
        use Kind::{Read, Verify, Write};
        let multiple = u32::from(self.settings.multiple);
        let fua = Write { fua: true };
        let write = Write { fua: !self.settings.write_cache };
        let (kind, addressing, block, dma) = match code {
            cmd::READ_SECTORS | cmd::READ_SECTORS_NO_RETRY => (Read, Bits28, 1, false),
            cmd::READ_SECTORS_EXT => (Read, Bits48, 1, false),
            cmd::READ_MULTIPLE => (Read, Bits28, multiple, false),
            cmd::READ_MULTIPLE_EXT => (Read, Bits48, multiple, false),
            cmd::READ_DMA | cmd::READ_DMA_NO_RETRY => (Read, Bits28, 1, true),
            cmd::READ_DMA_EXT => (Read, Bits48, 1, true),
            cmd::WRITE_SECTORS | cmd::WRITE_SECTORS_NO_RETRY => (write, Bits28, 1, false),
            cmd::WRITE_SECTORS_EXT => (write, Bits48, 1, false),
            cmd::WRITE_MULTIPLE => (write, Bits28, multiple, false),
            cmd::WRITE_MULTIPLE_EXT => (write, Bits48, multiple, false),
            cmd::WRITE_MULTIPLE_FUA_EXT => (fua, Bits48, multiple, false),
            cmd::WRITE_DMA | cmd::WRITE_DMA_NO_RETRY => (write, Bits28, 1, true),
            cmd::WRITE_DMA_EXT => (write, Bits48, 1, true),
            cmd::WRITE_DMA_FUA_EXT => (fua, Bits48, 1, true),
            cmd::READ_VERIFY | cmd::READ_VERIFY_NO_RETRY => (Verify, Bits28, 1, false),
            cmd::READ_VERIFY_EXT => (Verify, Bits48, 1, false),
            _ => return false,
        };
        if block == 0 {
            self.fail(Error::ABRT); // MULTIPLE before SET MULTIPLE MODE
        } else {
            self.start_sectors(kind, addressing, block, dma);
        }
        true
    }

    /// Commands that do not. False: unknown.
    fn other_command(&mut self, code: u8) -> bool {
        match code {
            cmd::IDENTIFY => {
                let sector = self.identify();
                self.reply_sector(&sector);
            }
            cmd::SET_FEATURES => self.set_features(),
            cmd::SET_MULTIPLE => self.set_multiple(),
            cmd::FLUSH_CACHE | cmd::FLUSH_CACHE_EXT => self.submit(Op::Flush, Job::Flush),
            cmd::SEEK..=cmd::SEEK_LAST => match self.start_lba(Addressing::Bits28) {
                Some(lba) if lba < self.sectors() => self.finish(true),
                _ => self.fail(Error::IDNF),
            },
            cmd::RECALIBRATE..=cmd::RECALIBRATE_LAST => self.finish(true),
            cmd::INITIALIZE_PARAMETERS => self.initialize_parameters(),
            cmd::READ_NATIVE_MAX => self.read_native_max(Addressing::Bits28),
            cmd::READ_NATIVE_MAX_EXT => self.read_native_max(Addressing::Bits48),
            cmd::SMART => self.smart(),
            cmd::DATA_SET_MANAGEMENT => self.data_set_management(),
            _ => return self.power_command(code),
        }
        true
    }

    /// Power management, the same for disks and CD-ROMs. False: it is none.
    pub(crate) fn power_command(&mut self, code: u8) -> bool {
        match code {
            cmd::IDLE_IMMEDIATE | cmd::IDLE_IMMEDIATE_OLD | cmd::IDLE | cmd::IDLE_OLD => {
                self.settings.standby = false;
            }
            cmd::STANDBY_IMMEDIATE | cmd::STANDBY_IMMEDIATE_OLD | cmd::STANDBY | cmd::STANDBY_OLD => {
                self.settings.standby = true;
                if self.cd.is_none() {
                    // What is cached goes to the disk first (ATA8-ACS §7.53).
                    self.submit(Op::Flush, Job::Flush);
                    return true;
                }
            }
            cmd::SLEEP | cmd::SLEEP_OLD => self.settings.asleep = true,
            cmd::CHECK_POWER_MODE | cmd::CHECK_POWER_MODE_OLD => {
                self.regs.count.current = if self.settings.standby { 0x00 } else { 0xff };
            }
            _ => return false,
        }
        self.finish(true);
        true
    }
}
