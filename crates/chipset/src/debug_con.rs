//! The debug console of Bochs and QEMU: firmware writes its log here, a byte at a time.
//!
//! One region of any length, every port of it the same: what is written goes to the output, and a read
//! gives 0xe9, by which a guest knows that the console is there. The bytes of a wide write go out
//! lowest first.

use std::io::Write;

use serde::{Deserialize, Serialize};
use trapline_device::{AccessSize, Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore, write_each};

use crate::output::Output;

/// What each port reads.
const PRESENT: u8 = 0xe9;

/// A debug console.
pub struct DebugCon {
    output: Output,
}

impl DebugCon {
    /// A console that writes to `output`; see [`crate::Uart::new`] on writers that fail or block.
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self { output: Output::new(output) }
    }

    /// Bytes the output refused so far.
    pub fn lost_bytes(&self) -> u64 {
        self.output.lost()
    }
}

impl PortIo for DebugCon {
    fn read(&mut self, _region: usize, _offset: u16, _size: AccessSize) -> u32 {
        u32::from_le_bytes([PRESENT; 4])
    }

    fn write(&mut self, _region: usize, _offset: u16, size: AccessSize, value: u32) {
        let bytes = value.to_le_bytes();
        self.output.send(bytes.get(..size.bytes()).unwrap_or(&bytes));
    }

    fn read_block(&mut self, _region: usize, _offset: u16, _size: AccessSize, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        if size == AccessSize::Byte {
            self.output.send(data);
        } else {
            write_each(self, region, offset, size, data);
        }
    }
}

impl Device for DebugCon {
    fn name(&self) -> &str {
        "debugcon"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        // Nothing that a guest can see has a state.
    }
}

/// Saved state of a [`DebugCon`]: none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugConState {}

impl SaveRestore for DebugCon {
    type State = DebugConState;

    fn save(&self) -> DebugConState {
        let Self { output: _ } = self;
        DebugConState {}
    }

    fn restore(&mut self, DebugConState {}: DebugConState) -> Result<(), RestoreError> {
        Ok(())
    }
}
