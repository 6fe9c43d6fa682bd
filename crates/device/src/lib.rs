//! The device contract.
//!
//! A device is a plain struct with `&mut self` methods. It says what it answers to through the
//! capability queries of [`Device`]; it acts on the world through handles that were given to it:
//! an [`IrqLine`] for an interrupt pin, an [`MsiSink`] for messages, [`DmaMemory`] for what it masters
//! the bus for, a [`Clock`] for time. It never knows an interrupt number, an address it was placed at,
//! or a hypervisor.
//!
//! A guest's mistake is device state (an error bit, an all-ones read), never a Rust error and never
//! a panic. Errors are for the host.
//!
//! What this crate leaves out: PCI (`trapline-pci`), guest memory itself (`trapline-memory`), and anything
//! that schedules: a board decides which thread calls a device.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use trapline_device::bus::PioBus;
//! use trapline_device::{AccessSize, Device, MmioIo, Poll, PortIo, read_each, write_each};
//!
//! /// A latch: what was written is read back.
//! struct Latch(u8);
//!
//! impl Device for Latch {
//!     fn name(&self) -> &str {
//!         "latch"
//!     }
//!     fn pio(&mut self) -> Option<&mut dyn PortIo> {
//!         Some(self)
//!     }
//!     fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
//!         None
//!     }
//!     fn poll(&mut self) -> Option<&mut dyn Poll> {
//!         None
//!     }
//!     fn reset(&mut self) {
//!         self.0 = 0;
//!     }
//! }
//!
//! impl PortIo for Latch {
//!     fn read(&mut self, _region: usize, _offset: u16, _size: AccessSize) -> u32 {
//!         u32::from(self.0)
//!     }
//!     fn write(&mut self, _region: usize, _offset: u16, _size: AccessSize, value: u32) {
//!         self.0 = value as u8;
//!     }
//!     fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
//!         read_each(self, region, offset, size, data);
//!     }
//!     fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
//!         write_each(self, region, offset, size, data);
//!     }
//! }
//!
//! let mut builder = PioBus::builder();
//! builder.register(0x80, 1, Arc::new(Mutex::new(Latch(0))), 0, "latch")?;
//! let bus = builder.build();
//! bus.write(0x80, AccessSize::Byte, 0x55);
//! assert_eq!(bus.read(0x80, AccessSize::Byte), 0x55);
//! assert_eq!(bus.read(0x80, AccessSize::Word), 0xff55); // nobody answers at 0x81
//! # Ok::<(), trapline_device::bus::BusError>(())
//! ```
#![forbid(unsafe_code)]

pub mod bus;
mod clock;
mod dma;
mod irq;
pub mod test;

pub use clock::{Clock, HostClock, Nanos};
pub use dma::DmaMemory;
pub use irq::{IrqLine, IrqSink, Msi, MsiSink};

/// Width of one port or memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum AccessSize {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Dword = 4,
    /// 64 bits; memory accesses only.
    Qword = 8,
}

impl AccessSize {
    /// The width in bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// The width of `n` bytes, if there is one.
    pub const fn from_bytes(n: usize) -> Option<Self> {
        match n {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// All-ones of this width: what an unclaimed address reads.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// A device on a board. Each query says whether the device has that capability; a device without
/// one returns `None` in so many words, so that nothing is ignored silently.
pub trait Device: Send {
    /// A short stable name for logs, traces and saved state, such as `"serial0"`.
    fn name(&self) -> &str;
    /// The port I/O face.
    fn pio(&mut self) -> Option<&mut dyn PortIo>;
    /// The memory-mapped face.
    fn mmio(&mut self) -> Option<&mut dyn MmioIo>;
    /// The time-driven face.
    fn poll(&mut self) -> Option<&mut dyn Poll>;
    /// Puts the device into its power-on state.
    fn reset(&mut self);
}

/// Answers port accesses. `region` is the index of the region under which the board registered the
/// device (a device may have several, such as IDE's command and control blocks); `offset` is relative
/// to that region. An access never reaches past the end of its region: the bus splits or refuses it.
pub trait PortIo {
    /// Reads `size` (at most 4 bytes) at `offset`. Bits above the size are ignored.
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32);
    /// REP INS: fills `data` with consecutive reads of `size` from the same port. Devices with a data
    /// port move the whole block at once; others call [`read_each`].
    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]);
    /// REP OUTS: the writing counterpart of [`PortIo::read_block`]; see [`write_each`].
    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]);
}

/// [`PortIo::read_block`] as single reads.
pub fn read_each(
    dev: &mut (impl PortIo + ?Sized),
    region: usize,
    offset: u16,
    size: AccessSize,
    data: &mut [u8],
) {
    for chunk in data.chunks_exact_mut(size.bytes()) {
        let value = dev.read(region, offset, size).to_le_bytes();
        for (to, from) in chunk.iter_mut().zip(value) {
            *to = from;
        }
    }
}

/// [`PortIo::write_block`] as single writes.
pub fn write_each(
    dev: &mut (impl PortIo + ?Sized),
    region: usize,
    offset: u16,
    size: AccessSize,
    data: &[u8],
) {
    for chunk in data.chunks_exact(size.bytes()) {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(chunk) {
            *to = *from;
        }
        dev.write(region, offset, size, u32::from_le_bytes(value));
    }
}

/// Answers memory-mapped accesses; `region` and `offset` as for [`PortIo`].
pub trait MmioIo {
    /// Reads `size` at `offset`. Bits above the size are ignored.
    fn read(&mut self, region: usize, offset: u64, size: AccessSize) -> u64;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&mut self, region: usize, offset: u64, size: AccessSize, value: u64);
}

/// A device that time drives (PIT, RTC, UART time-outs).
pub trait Poll {
    /// Does everything that is due at `now`, and says when it must be called next, if ever. A register
    /// access may bring that moment forward: the board asks [`Poll::deadline`] again after each access.
    fn poll(&mut self, now: Nanos);
    /// The next moment at which something is due; `None` while nothing is.
    fn deadline(&self) -> Option<Nanos>;
}

/// A device whose state can be saved. `save` destructures every field of `self` without `..`, so that
/// a field that nobody decided on does not compile; `restore` validates.
pub trait SaveRestore {
    /// The device's saved state: a plain serde type of its own.
    type State: serde::Serialize + serde::de::DeserializeOwned;
    /// Takes the state.
    fn save(&self) -> Self::State;
    /// Puts a state back.
    ///
    /// # Errors
    /// When a value in `state` is one that the device cannot be in.
    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError>;
}

/// A saved state that a device refuses.
#[derive(Debug, thiserror::Error)]
#[error("saved state of {device}: {what}")]
pub struct RestoreError {
    /// Which device refused.
    pub device: &'static str,
    /// What was wrong, such as "fifo holds 20 bytes, at most 16".
    pub what: String,
}
