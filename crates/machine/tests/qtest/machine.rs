//! What scripts run on, and what they see of it.

use std::path::Path;

pub use trapline_device::AccessSize::{self, Byte, Dword, Word};

/// A machine without processors: ours or QEMU's.
pub trait Machine {
    /// IN.
    fn inp(&mut self, port: u16, size: AccessSize) -> u32;
    /// OUT.
    fn out(&mut self, port: u16, size: AccessSize, value: u32);
    /// Reads guest memory.
    fn read(&mut self, address: u64, data: &mut [u8]);
    /// Writes guest memory.
    fn write(&mut self, address: u64, data: &[u8]);
    /// The levels of ISA interrupts 0 to 15.
    fn lines(&mut self) -> u32;
    /// Puts a disc into the CD-ROM, or takes it out.
    fn change_disc(&mut self, disc: Option<&Path>);

    fn inb(&mut self, port: u16) -> u8 {
        self.inp(port, Byte) as u8
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.out(port, Byte, value.into());
    }

    /// A configuration read through ports 0xcf8 and 0xcfc. `function` is device and function number.
    fn config_read(&mut self, function: u8, offset: u8, size: AccessSize) -> u32 {
        self.out(0xcf8, Dword, config_address(function, offset));
        self.inp(0xcfc + u16::from(offset & 3), size)
    }

    /// A configuration write through ports 0xcf8 and 0xcfc.
    fn config_write(&mut self, function: u8, offset: u8, size: AccessSize, value: u32) {
        self.out(0xcf8, Dword, config_address(function, offset));
        self.out(0xcfc + u16::from(offset & 3), size, value);
    }
}

fn config_address(function: u8, offset: u8) -> u32 {
    1 << 31 | u32::from(function) << 8 | u32::from(offset & !3)
}

/// Something a script saw.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub what: &'static str,
    /// Which of them: a port, an offset.
    pub index: u32,
    pub value: u64,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:#x}: {:#x}", self.what, self.index, self.value)
    }
}

/// Everything a step of a script saw.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Log(pub Vec<Seen>);

impl Log {
    pub fn see(&mut self, what: &'static str, index: impl Into<u32>, value: impl Into<u64>) {
        self.0.push(Seen { what, index: index.into(), value: value.into() });
    }

    /// Bytes, eight at a time.
    pub fn see_bytes(&mut self, what: &'static str, bytes: &[u8]) {
        for (at, part) in (0_u32..).step_by(8).zip(bytes.chunks(8)) {
            let value = part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.see(what, at, value);
        }
    }
}
