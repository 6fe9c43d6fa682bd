//! What the host sets: SET FEATURES, SET MULTIPLE MODE, INITIALIZE DEVICE PARAMETERS.

use serde::{Deserialize, Serialize};
use trapline_disk::Op;

use super::sectors::Addressing;
use crate::drive::{Drive, Job};
use crate::regs::Error;

/// Sectors in a block of READ and WRITE MULTIPLE at most.
pub(crate) const MULTIPLE_MAX: u8 = 16;

/// How data is transferred, as set by SET FEATURES subcommand 03h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DmaMode {
    /// Multiword DMA, mode 0 to 2.
    Multiword(u8),
    /// Ultra DMA, mode 0 to 5.
    Ultra(u8),
}

/// What the host can set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub heads: u8,
    pub sectors_per_track: u8,
    pub cylinders: u16,
    /// Zero: not set.
    pub multiple: u8,
    pub write_cache: bool,
    pub look_ahead: bool,
    pub dma: DmaMode,
    pub smart: bool,
    pub standby: bool,
    pub asleep: bool,
    /// A soft reset leaves the settings alone; otherwise MULTIPLE reverts.
    pub keep_on_reset: bool,
}

impl Settings {
    /// Power-on values of a drive of `sectors`.
    pub fn new(sectors: u64, write_cache: bool) -> Self {
        let mut settings = Self {
            heads: 16,
            sectors_per_track: 63,
            cylinders: 0,
            multiple: MULTIPLE_MAX,
            write_cache,
            look_ahead: true,
            dma: DmaMode::Multiword(2),
            smart: true,
            standby: false,
            asleep: false,
            keep_on_reset: false,
        };
        settings.cylinders = settings.cylinders_of(sectors);
        settings
    }

    /// Cylinders at most that the geometry needs; 16,383 stands for larger disks.
    fn cylinders_of(&self, sectors: u64) -> u16 {
        let per_cylinder = u64::from(self.heads) * u64::from(self.sectors_per_track);
        sectors.checked_div(per_cylinder).unwrap_or(0).min(16383) as u16
    }

    /// What SRST does to them.
    pub fn soft_reset(&mut self) {
        // From Sleep to Standby.
        self.standby |= std::mem::take(&mut self.asleep);
        if !self.keep_on_reset {
            self.multiple = MULTIPLE_MAX;
        }
    }

    /// Whether a saved one is possible.
    pub fn is_valid(&self) -> bool {
        let mode = match self.dma {
            DmaMode::Multiword(n) => n <= 2,
            DmaMode::Ultra(n) => n <= 5,
        };
        let geometry = (1..=16).contains(&self.heads) && self.sectors_per_track > 0;
        mode && geometry && multiple_is_valid(self.multiple)
    }
}

fn multiple_is_valid(n: u8) -> bool {
    n == 0 || n <= MULTIPLE_MAX && n.is_power_of_two()
}

impl Drive {
    /// SET FEATURES (ATA8-ACS §7.49).
    pub(crate) fn set_features(&mut self) {
        match self.regs.features.current {
            0x02 => self.settings.write_cache = true,
            0x82 => {
                self.settings.write_cache = false;
                return self.submit(Op::Flush, Job::Flush);
            }
            0x03 => {
                if !self.set_transfer_mode(self.regs.count.current) {
                    return self.fail(Error::ABRT);
                }
            }
            0xaa => self.settings.look_ahead = true,
            0x55 => self.settings.look_ahead = false,
            // Whether a soft reset reverts to power-on defaults. The write cache never does: who switched it off
            // relies on that.
            0x66 => self.settings.keep_on_reset = true,
            0xcc => self.settings.keep_on_reset = false,
            _ => return self.fail(Error::ABRT),
        }
        self.finish(true);
    }

    pub(crate) fn set_transfer_mode(&mut self, mode: u8) -> bool {
        match (mode >> 3, mode & 7) {
            // PIO: default, and flow control modes.
            (0, 0 | 1) | (1, 0..=4) => {}
            (4, n @ 0..=2) => self.settings.dma = DmaMode::Multiword(n),
            (8, n @ 0..=5) => self.settings.dma = DmaMode::Ultra(n),
            _ => return false,
        }
        true
    }

    /// SET MULTIPLE MODE (ATA8-ACS §7.50).
    pub(crate) fn set_multiple(&mut self) {
        let n = self.regs.count.current;
        if !multiple_is_valid(n) {
            return self.fail(Error::ABRT);
        }
        self.settings.multiple = n;
        self.finish(true);
    }

    /// INITIALIZE DEVICE PARAMETERS (ATA/ATAPI-5 §8.16): the geometry of CHS addresses.
    pub(crate) fn initialize_parameters(&mut self) {
        let sectors_per_track = self.regs.count.current;
        if sectors_per_track == 0 {
            return self.fail(Error::ABRT);
        }
        self.settings.sectors_per_track = sectors_per_track;
        self.settings.heads = (self.regs.device & 0xf) + 1;
        self.settings.cylinders = self.settings.cylinders_of(self.sectors());
        self.finish(true);
    }

    /// READ NATIVE MAX ADDRESS (ATA8-ACS §7.32): the last sector.
    pub(crate) fn read_native_max(&mut self, addressing: Addressing) {
        let last = self.sectors().saturating_sub(1);
        let last = if addressing == Addressing::Bits28 { last.min(0x0fff_ffff) } else { last };
        self.show_lba(addressing, last);
        self.finish(true);
    }
}
