//! Places: of functions in the topology, of registers in the address spaces.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Device and function number: a function's place on its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DevFn(u8);

impl DevFn {
    /// Function `function` (0 to 7) of device `device` (0 to 31).
    ///
    /// # Panics
    /// When a number is out of range, which is the caller's mistake: numbers that a guest chose go
    /// through [`DevFn::from_byte`].
    pub const fn new(device: u8, function: u8) -> Self {
        assert!(device < 32 && function < 8, "device numbers end at 31, function numbers at 7");
        Self(device << 3 | function)
    }

    /// From bits 15:8 of CONFIG_ADDRESS: the device number in bits 7:3, the function in bits 2:0.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// The device number in bits 7:3, the function in bits 2:0.
    pub const fn to_byte(self) -> u8 {
        self.0
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

/// Bus, device and function number, as configuration software sees them now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// Bus number. Software numbers all buses but the first, so that it may change.
    pub bus: u8,
    /// Device and function number.
    pub devfn: DevFn,
}

impl Bdf {
    /// Function `function` of device `device` on bus number `bus`.
    ///
    /// # Panics
    /// As [`DevFn::new`].
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self { bus, devfn: DevFn::new(device, function) }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{}", self.bus, self.devfn)
    }
}

/// An address space of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Space {
    /// Ports.
    Io,
    /// Memory.
    Memory,
}

/// A range of addresses that a function answers to. Never empty, never passes the end of its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddressRange {
    /// The address space.
    pub space: Space,
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl AddressRange {
    /// `len` ports from `start`; `None` where that is empty or passes port 0xffff.
    pub fn io(start: u64, len: u64) -> Option<Self> {
        let last = start.checked_add(len.checked_sub(1)?)?;
        (last <= 0xffff).then_some(Self { space: Space::Io, start, len })
    }

    /// `len` bytes of memory from `start`; `None` where that is empty or passes the last address.
    pub fn memory(start: u64, len: u64) -> Option<Self> {
        start.checked_add(len.checked_sub(1)?)?;
        Some(Self { space: Space::Memory, start, len })
    }

    /// The last address, inclusive.
    pub fn last(&self) -> u64 {
        self.start.saturating_add(self.len.saturating_sub(1))
    }

    /// Whether `other` lies inside as a whole.
    pub fn contains(&self, other: &Self) -> bool {
        self.space == other.space && self.start <= other.start && other.last() <= self.last()
    }
}

/// One range that a function claims: an access there is one to region `region` of the function's
/// [`PortIo`](trapline_device::PortIo) or [`MmioIo`](trapline_device::MmioIo).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The region: 0 to 5 for that BAR, [`ROM_REGION`](crate::ROM_REGION) for the expansion ROM,
    /// from [`FIRST_OWN_REGION`](crate::FIRST_OWN_REGION) on the function's own fixed ranges.
    pub region: usize,
    /// Where it is.
    pub range: AddressRange,
}
