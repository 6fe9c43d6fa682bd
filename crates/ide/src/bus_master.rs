//! The bus master of a channel (SFF-8038i; Intel 82371SB §2.7): BMIC, BMIS, BMIDTP and the physical
//! region descriptors.

use serde::{Deserialize, Serialize};
use trapline_device::DmaMemory;

use crate::regs::{BusMasterCommand, BusMasterStatus};

/// Where in its descriptors a transfer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// The next descriptor.
    next: u32,
    /// The present region: address, bytes left.
    address: u32,
    left: u32,
    /// The present region is the last.
    last: bool,
}

/// How a transfer between the drive and memory went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// All bytes of the drive.
    All,
    /// The descriptors ended before. Bytes moved.
    Short(usize),
    /// Memory could not be reached.
    Fault,
}

/// The registers of one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BusMaster {
    command: BusMasterCommand,
    status: BusMasterStatus,
    table: u32,
    cursor: Cursor,
}

impl BusMaster {
    pub fn new() -> Self {
        let (command, status) = (BusMasterCommand::empty(), BusMasterStatus::empty());
        Self { command, status, table: 0, cursor: Cursor::default() }
    }

    /// Whether a transfer may go on.
    pub fn is_active(&self) -> bool {
        self.command.contains(BusMasterCommand::START) && self.status.contains(BusMasterStatus::ACTIVE)
    }

    pub fn read(&self, offset: u16) -> u8 {
        match offset {
            0 => self.command.bits(),
            2 => self.status.bits(),
            4..=7 => self.table.to_le_bytes().get(usize::from(offset) - 4).copied().unwrap_or(0),
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 => self.write_command(BusMasterCommand::from_bits_truncate(value)),
            2 => self.write_status(value),
            4..=7 => {
                let mut bytes = self.table.to_le_bytes();
                if let Some(byte) = bytes.get_mut(usize::from(offset) - 4) {
                    *byte = value;
                }
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
    }

    fn write_command(&mut self, command: BusMasterCommand) {
        let was = self.command.contains(BusMasterCommand::START);
        let is = command.contains(BusMasterCommand::START);
        self.command = command;
        if is && !was {
            self.cursor = Cursor { next: self.table, ..Cursor::default() };
            self.status.insert(BusMasterStatus::ACTIVE);
        } else if was && !is {
            self.status.remove(BusMasterStatus::ACTIVE);
        }
    }

    fn write_status(&mut self, value: u8) {
        let value = BusMasterStatus::from_bits_truncate(value);
        self.status.remove(value & (BusMasterStatus::ERROR | BusMasterStatus::INTERRUPT));
        let drives = BusMasterStatus::DRIVE0_DMA | BusMasterStatus::DRIVE1_DMA;
        self.status = self.status.difference(drives) | value & drives;
    }

    /// The drive's interrupt has risen.
    pub fn interrupt(&mut self) {
        self.status.insert(BusMasterStatus::INTERRUPT);
    }

    /// Moves `data` to or from memory, as far as the descriptors go.
    pub fn transfer(&mut self, memory: &dyn DmaMemory, to_memory: bool, data: &mut [u8]) -> Moved {
        let mut moved = 0;
        while let Some(rest) = data.get_mut(moved..).filter(|rest| !rest.is_empty()) {
            match self.region(memory) {
                Ok(true) => {}
                Ok(false) => {
                    self.status.remove(BusMasterStatus::ACTIVE);
                    return Moved::Short(moved);
                }
                Err(()) => return self.fault(),
            }
            let n = rest.len().min(self.cursor.left as usize);
            let Some(part) = rest.get_mut(..n) else { return self.fault() };
            let address = self.cursor.address.into();
            let ok = if to_memory { memory.write(address, part) } else { memory.read(address, part) };
            if !ok {
                return self.fault();
            }
            self.cursor.address = self.cursor.address.wrapping_add(n as u32);
            self.cursor.left -= n as u32;
            moved += n;
        }
        Moved::All
    }

    /// The drive has no more data: active stays set where the descriptors promise more.
    pub fn drive_done(&mut self) {
        if self.cursor.left == 0 && self.cursor.last {
            self.status.remove(BusMasterStatus::ACTIVE);
        }
    }

    /// Makes sure that there is a region with bytes left. `Ok(false)`: the table is used up.
    fn region(&mut self, memory: &dyn DmaMemory) -> Result<bool, ()> {
        if self.cursor.left > 0 {
            return Ok(true);
        }
        let first = self.cursor.next == self.table;
        // A table does not cross a 64 KiB boundary: it ends there, marked or not. That also bounds
        // what a hostile one can cost.
        let used_up = self.cursor.next & 0xffff == 0 && !first;
        if self.cursor.last || used_up || self.cursor.next > u32::MAX - 8 {
            return Ok(false);
        }
        let mut descriptor = [0; 8];
        if !memory.read(self.cursor.next.into(), &mut descriptor) {
            return Err(());
        }
        let [a, b, c, d, count_low, count_high, _, flags] = descriptor;
        let count = u32::from(u16::from_le_bytes([count_low & !1, count_high]));
        self.cursor = Cursor {
            next: self.cursor.next + 8,
            address: u32::from_le_bytes([a & !1, b, c, d]),
            left: if count == 0 { 0x1_0000 } else { count },
            last: flags & 0x80 != 0,
        };
        Ok(true)
    }

    fn fault(&mut self) -> Moved {
        self.status.insert(BusMasterStatus::ERROR);
        self.status.remove(BusMasterStatus::ACTIVE);
        Moved::Fault
    }

    /// Whether a saved one is possible.
    pub fn is_valid(&self) -> bool {
        self.table & 3 == 0 && self.cursor.left <= 0x1_0000
    }
}
