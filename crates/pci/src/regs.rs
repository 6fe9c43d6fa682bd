//! Offsets and bits of the standard headers (PCI Local Bus 3.0 §6.1 and §6.2, PCI-to-PCI Bridge 1.2
//! §3.2).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Offset of the vendor number.
pub const VENDOR_ID: u16 = 0x00;
/// Offset of the device number.
pub const DEVICE_ID: u16 = 0x02;
/// Offset of the command register.
pub const COMMAND: u16 = 0x04;
/// Offset of the status register.
pub const STATUS: u16 = 0x06;
/// Offset of the revision; the class code follows.
pub const REVISION: u16 = 0x08;
/// Offset of the cache line size.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Offset of the latency timer.
pub const LATENCY_TIMER: u16 = 0x0d;
/// Offset of the header type.
pub const HEADER_TYPE: u16 = 0x0e;
/// Offset of BAR 0.
pub const BAR0: u16 = 0x10;
/// Offset of the subsystem vendor number, type 0.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Offset of the subsystem number, type 0.
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// Offset of the expansion ROM base, type 0.
pub const ROM: u16 = 0x30;
/// Offset of the capabilities pointer.
pub const CAPABILITIES: u16 = 0x34;
/// Offset of the interrupt line: firmware's scratch pad for the operating system.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Offset of the interrupt pin.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Offset of the primary bus number, type 1.
pub const PRIMARY_BUS: u16 = 0x18;
/// Offset of the secondary bus number, type 1.
pub const SECONDARY_BUS: u16 = 0x19;
/// Offset of the subordinate bus number, type 1.
pub const SUBORDINATE_BUS: u16 = 0x1a;
/// Offset of the I/O base, type 1; the limit follows.
pub const IO_BASE: u16 = 0x1c;
/// Offset of the secondary status, type 1.
pub const SECONDARY_STATUS: u16 = 0x1e;
/// Offset of the memory base, type 1; the limit follows.
pub const MEMORY_BASE: u16 = 0x20;
/// Offset of the prefetchable memory base, type 1; the limit follows.
pub const PREFETCHABLE_BASE: u16 = 0x24;
/// Offset of the upper 32 bits of the prefetchable memory base, type 1.
pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
/// Offset of the upper 32 bits of the prefetchable memory limit, type 1.
pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
/// Offset of the upper 16 bits of the I/O base, type 1; the limit's follow.
pub const IO_BASE_UPPER: u16 = 0x30;
/// Offset of the expansion ROM base, type 1.
pub const ROM_TYPE1: u16 = 0x38;
/// Offset of the bridge control register, type 1.
pub const BRIDGE_CONTROL: u16 = 0x3e;

/// Header type: the device has several functions.
pub const MULTI_FUNCTION: u8 = 0x80;
/// Bridge control: reset the secondary bus.
pub const SECONDARY_BUS_RESET: u16 = 1 << 6;

bitflags! {
    /// The command register (§6.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Command: u16 {
        /// Answers to I/O accesses.
        const IO = 1 << 0;
        /// Answers to memory accesses.
        const MEMORY = 1 << 1;
        /// May master the bus: DMA, and messages.
        const BUS_MASTER = 1 << 2;
        /// Watches special cycles.
        const SPECIAL_CYCLES = 1 << 3;
        /// May use memory write and invalidate.
        const WRITE_INVALIDATE = 1 << 4;
        /// VGA palette snooping.
        const VGA_SNOOP = 1 << 5;
        /// Answers to parity errors.
        const PARITY = 1 << 6;
        /// May drive SERR#.
        const SERR = 1 << 8;
        /// Fast back-to-back transactions to different devices.
        const FAST_BACK_TO_BACK = 1 << 9;
        /// Does not drive its interrupt pin.
        const INTX_DISABLE = 1 << 10;
    }

    /// The status register (§6.2.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u16 {
        /// The function requests its pin.
        const INTERRUPT = 1 << 3;
        /// There is a list of capabilities.
        const CAPABILITIES = 1 << 4;
        /// Able to run at 66 MHz.
        const MHZ_66 = 1 << 5;
        /// Accepts fast back-to-back transactions.
        const FAST_BACK_TO_BACK = 1 << 7;
        /// Master data parity error.
        const MASTER_PARITY_ERROR = 1 << 8;
        /// DEVSEL timing medium; fast is zero.
        const DEVSEL_MEDIUM = 1 << 9;
        /// Signalled a target abort.
        const SIGNALED_TARGET_ABORT = 1 << 11;
        /// Received a target abort.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// Received a master abort.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// Signalled a system error.
        const SIGNALED_SYSTEM_ERROR = 1 << 14;
        /// Detected a parity error.
        const DETECTED_PARITY_ERROR = 1 << 15;
        /// The error bits, cleared by writing ones.
        const ERRORS = 0xf900;
    }
}
