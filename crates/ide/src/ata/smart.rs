//! SMART, as much as `smartctl -i` and `-H` ask for (ATA8-ACS §7.52, attribute tables ATA-3 §8.41).

use crate::drive::{Drive, SECTOR};
use crate::regs::Error;

/// The key that SMART commands carry in the LBA registers.
const KEY: u16 = 0xc24f;
/// RETURN STATUS answers with the key: no threshold is exceeded. The disk has none that could be.
const READ_DATA: u8 = 0xd0;
const READ_THRESHOLDS: u8 = 0xd1;
const AUTOSAVE: u8 = 0xd2;
const READ_LOG: u8 = 0xd5;
const ENABLE: u8 = 0xd8;
const DISABLE: u8 = 0xd9;
const RETURN_STATUS: u8 = 0xda;

impl Drive {
    pub(crate) fn smart(&mut self) {
        let sub = self.regs.features.current;
        if self.regs.byte_count() != KEY || !self.settings.smart && sub != ENABLE {
            return self.fail(Error::ABRT);
        }
        match sub {
            READ_DATA => self.reply_sector(&smart_data()),
            READ_THRESHOLDS => self.reply_sector(&sealed(&[(0, 1)])),
            // Log 0 is the directory; there is no other.
            READ_LOG if self.regs.low.current == 0 && self.regs.count.current == 1 => {
                let mut sector = [0; SECTOR];
                if let Some(version) = sector.first_mut() {
                    *version = 1;
                }
                self.reply_sector(&sector);
            }
            ENABLE | DISABLE => {
                self.settings.smart = sub == ENABLE;
                self.finish(true);
            }
            AUTOSAVE => self.finish(true), // there are no attributes to save
            RETURN_STATUS => {
                self.regs.set_byte_count(KEY);
                self.finish(true);
            }
            _ => self.fail(Error::ABRT),
        }
    }
}

/// SMART READ DATA: no attributes, no self-test, off-line collection never started.
fn smart_data() -> [u8; SECTOR] {
    // Revision 16; byte 368: attributes are saved on entering a power-saving mode.
    sealed(&[(0, 16), (368, 1)])
}

/// A sector whose bytes add up to zero.
fn sealed(bytes: &[(usize, u8)]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let sum = bytes.iter().fold(0_u8, |sum, (_, value)| sum.wrapping_add(*value));
    for (at, value) in bytes.iter().copied().chain([(SECTOR - 1, 0_u8.wrapping_sub(sum))]) {
        if let Some(byte) = sector.get_mut(at) {
            *byte = value;
        }
    }
    sector
}
