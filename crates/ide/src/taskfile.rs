//! The task file: a drive's command block registers.

use serde::{Deserialize, Serialize};

use crate::regs::{COUNT, DEVICE, DEVICE_LBA, DEVICE_ONES, ERROR, Error, LBA_HIGH, LBA_LOW, LBA_MID, Status};

/// A register that keeps the content before the last write, for 48-bit commands (ATA8-ACS §6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Register {
    pub current: u8,
    pub previous: u8,
}

impl Register {
    fn write(&mut self, value: u8) {
        *self = Self { current: value, previous: self.current };
    }

    fn read(self, hob: bool) -> u8 {
        if hob { self.previous } else { self.current }
    }

    /// Both bytes.
    pub fn wide(self) -> u16 {
        u16::from_be_bytes([self.previous, self.current])
    }

    fn set_wide(&mut self, value: u16) {
        let [previous, current] = value.to_be_bytes();
        *self = Self { current, previous };
    }
}

/// The registers of one drive. Both drives of a channel see every write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskFile {
    pub features: Register,
    pub count: Register,
    pub low: Register,
    pub mid: Register,
    pub high: Register,
    pub device: u8,
    /// Not [`Error`]: after a reset it is a diagnostic code, after PACKET it holds a sense key.
    pub error: u8,
    pub status: Status,
}

impl TaskFile {
    pub fn new() -> Self {
        let zero = Register::default();
        Self {
            features: zero,
            count: zero,
            low: zero,
            mid: zero,
            high: zero,
            device: 0,
            error: 0,
            status: Status::empty(),
        }
    }

    /// A write to one of the registers between data and command.
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            ERROR => self.features.write(value),
            COUNT => self.count.write(value),
            LBA_LOW => self.low.write(value),
            LBA_MID => self.mid.write(value),
            LBA_HIGH => self.high.write(value),
            DEVICE => self.device = value,
            _ => {}
        }
    }

    pub fn read(&self, offset: u16, hob: bool) -> u8 {
        match offset {
            ERROR => self.error,
            COUNT => self.count.read(hob),
            LBA_LOW => self.low.read(hob),
            LBA_MID => self.mid.read(hob),
            LBA_HIGH => self.high.read(hob),
            DEVICE => self.device | DEVICE_ONES,
            _ => self.status.bits(),
        }
    }

    /// What a drive shows after a reset and EXECUTE DEVICE DIAGNOSTIC (ATA8-ACS table 206).
    pub fn signature(&mut self, (mid, high): (u8, u8)) {
        self.count.set_wide(1);
        self.low.set_wide(1);
        self.mid.set_wide(mid.into());
        self.high.set_wide(high.into());
        self.device = 0;
    }

    /// Whether the command addresses by LBA, not by cylinder, head and sector.
    pub fn is_lba(&self) -> bool {
        self.device & DEVICE_LBA != 0
    }

    pub fn lba28(&self) -> u64 {
        let bytes = [self.low.current, self.mid.current, self.high.current, self.device & 0xf];
        u32::from_le_bytes(bytes).into()
    }

    pub fn lba48(&self) -> u64 {
        let (l, m, h) = (self.low, self.mid, self.high);
        let bytes = [l.current, m.current, h.current, l.previous, m.previous, h.previous, 0, 0];
        u64::from_le_bytes(bytes)
    }

    /// Sectors of a 28-bit command: zero means 256.
    pub fn count28(&self) -> u32 {
        match self.count.current {
            0 => 256,
            n => n.into(),
        }
    }

    /// Sectors of a 48-bit command: zero means 65,536.
    pub fn count48(&self) -> u32 {
        match self.count.wide() {
            0 => 0x1_0000,
            n => n.into(),
        }
    }

    pub fn set_lba28(&mut self, lba: u64) {
        let [low, mid, high, top, ..] = lba.to_le_bytes();
        (self.low.current, self.mid.current, self.high.current) = (low, mid, high);
        self.device = self.device & 0xf0 | top & 0xf;
    }

    pub fn set_lba48(&mut self, lba: u64) {
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        self.low = Register { current: a, previous: d };
        self.mid = Register { current: b, previous: e };
        self.high = Register { current: c, previous: f };
    }

    pub fn set_chs(&mut self, cylinder: u16, head: u8, sector: u8) {
        let [low, high] = cylinder.to_le_bytes();
        (self.mid.current, self.high.current, self.low.current) = (low, high, sector);
        self.device = self.device & 0xf0 | head & 0xf;
    }

    /// The byte count that a PACKET command is given, and gives back.
    pub fn byte_count(&self) -> u16 {
        u16::from_le_bytes([self.mid.current, self.high.current])
    }

    pub fn set_byte_count(&mut self, bytes: u16) {
        [self.mid.current, self.high.current] = bytes.to_le_bytes();
    }

    pub fn fail(&mut self, error: Error) {
        self.error = error.bits();
        self.status = Status::DRDY | Status::DSC | Status::ERR;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writes_make_a_wide_register() {
        let mut regs = TaskFile::new();
        for (offset, first, second) in
            [(COUNT, 0x12, 0x34), (LBA_LOW, 4, 1), (LBA_MID, 5, 2), (LBA_HIGH, 6, 3)]
        {
            regs.write(offset, first);
            regs.write(offset, second);
            assert_eq!((regs.read(offset, true), regs.read(offset, false)), (first, second));
        }
        assert_eq!(regs.count48(), 0x1234);
        assert_eq!(regs.lba48(), 0x0605_0403_0201);
        regs.set_lba48(0xa1a2_a3a4_a5a6);
        assert_eq!(regs.lba48(), 0xa1a2_a3a4_a5a6);
    }

    #[test]
    fn zero_means_the_most_sectors() {
        let regs = TaskFile::new();
        assert_eq!((regs.count28(), regs.count48()), (256, 65536));
    }
}
