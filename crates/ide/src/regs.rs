//! Registers of the command block: bits, offsets, command codes (ATA8-ACS §6 and §7, SFF-8038i §2).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Offset of the data port in the command block.
pub const DATA: u16 = 0;
/// Offset of the error register (read) and the features register (write).
pub const ERROR: u16 = 1;
/// Offset of the sector count; for PACKET the interrupt reason.
pub const COUNT: u16 = 2;
/// Offset of LBA bits 7:0, the sector number.
pub const LBA_LOW: u16 = 3;
/// Offset of LBA bits 15:8, the low byte of the cylinder or of the byte count.
pub const LBA_MID: u16 = 4;
/// Offset of LBA bits 23:16, the high byte of the cylinder or of the byte count.
pub const LBA_HIGH: u16 = 5;
/// Offset of the device register.
pub const DEVICE: u16 = 6;
/// Offset of the status (read) and the command register (write).
pub const COMMAND: u16 = 7;

/// Device register: LBA addressing.
pub const DEVICE_LBA: u8 = 0x40;
/// Device register: drive 1 is selected.
pub const DEVICE_DEV: u8 = 0x10;
/// Device register: bits that always read one.
pub const DEVICE_ONES: u8 = 0xa0;

bitflags! {
    /// The status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Status: u8 {
        /// The command failed: see the error register. For PACKET: CHK.
        const ERR = 0x01;
        /// The drive wants to transfer data.
        const DRQ = 0x08;
        /// Seek complete; for PACKET: service.
        const DSC = 0x10;
        /// Device fault.
        const DF = 0x20;
        /// The drive accepts commands.
        const DRDY = 0x40;
        /// The drive owns the registers.
        const BSY = 0x80;
    }

    /// The error register after a command.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Error: u8 {
        /// Command aborted: unknown, not allowed, or wrong parameters.
        const ABRT = 0x04;
        /// The address is not on the medium.
        const IDNF = 0x10;
        /// Data could not be read.
        const UNC = 0x40;
    }

    /// The device control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Control: u8 {
        /// Interrupts are off.
        const NIEN = 0x02;
        /// Software reset.
        const SRST = 0x04;
        /// Register reads give the previous content.
        const HOB = 0x80;
    }

    /// BMIC, the bus master command register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct BusMasterCommand: u8 {
        /// Transfer.
        const START = 0x01;
        /// Towards memory.
        const TO_MEMORY = 0x08;
    }

    /// BMIS, the bus master status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct BusMasterStatus: u8 {
        /// A transfer is under way, or the table was longer than the transfer.
        const ACTIVE = 0x01;
        /// Memory could not be reached.
        const ERROR = 0x02;
        /// The drive interrupted.
        const INTERRUPT = 0x04;
        /// Firmware says that drive 0 can do DMA.
        const DRIVE0_DMA = 0x20;
        /// Firmware says that drive 1 can do DMA.
        const DRIVE1_DMA = 0x40;
    }
}

/// Command codes (ATA8-ACS table 17, and the obsolete ones of ATA-3).
#[allow(missing_docs)]
pub mod cmd {
    pub const NOP: u8 = 0x00;
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const DEVICE_RESET: u8 = 0x08;
    pub const RECALIBRATE: u8 = 0x10;
    pub const RECALIBRATE_LAST: u8 = 0x1f;
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_NO_RETRY: u8 = 0x21;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_NO_RETRY: u8 = 0x31;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub const READ_VERIFY: u8 = 0x40;
    pub const READ_VERIFY_NO_RETRY: u8 = 0x41;
    pub const READ_VERIFY_EXT: u8 = 0x42;
    pub const SEEK: u8 = 0x70;
    pub const SEEK_LAST: u8 = 0x7f;
    pub const EXECUTE_DIAGNOSTIC: u8 = 0x90;
    pub const INITIALIZE_PARAMETERS: u8 = 0x91;
    pub const STANDBY_IMMEDIATE_OLD: u8 = 0x94;
    pub const IDLE_IMMEDIATE_OLD: u8 = 0x95;
    pub const STANDBY_OLD: u8 = 0x96;
    pub const IDLE_OLD: u8 = 0x97;
    pub const CHECK_POWER_MODE_OLD: u8 = 0x98;
    pub const SLEEP_OLD: u8 = 0x99;
    pub const PACKET: u8 = 0xa0;
    pub const IDENTIFY_PACKET: u8 = 0xa1;
    pub const SMART: u8 = 0xb0;
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const SET_MULTIPLE: u8 = 0xc6;
    pub const READ_DMA: u8 = 0xc8;
    pub const READ_DMA_NO_RETRY: u8 = 0xc9;
    pub const WRITE_DMA: u8 = 0xca;
    pub const WRITE_DMA_NO_RETRY: u8 = 0xcb;
    pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const STANDBY: u8 = 0xe2;
    pub const IDLE: u8 = 0xe3;
    pub const CHECK_POWER_MODE: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const FLUSH_CACHE_EXT: u8 = 0xea;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
    pub const READ_NATIVE_MAX: u8 = 0xf8;
}
