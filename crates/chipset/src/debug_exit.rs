//! The exit port by which a test guest ends its machine with a result, as QEMU's `isa-debug-exit`.
//!
//! One region, usually of four ports. A write of `v`, of any width at any offset, raises
//! [`SystemEvent::DebugExit`] with `(v << 1) | 1`, which is never zero: zero is for a guest that
//! powers off. Reads give zero.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

use crate::events::{SystemEvent, SystemEvents};

/// An exit port.
pub struct DebugExit {
    events: Arc<dyn SystemEvents>,
}

impl DebugExit {
    /// An exit port that reports to `events`.
    pub fn new(events: Arc<dyn SystemEvents>) -> Self {
        Self { events }
    }
}

impl PortIo for DebugExit {
    fn read(&mut self, _region: usize, _offset: u16, _size: AccessSize) -> u32 {
        0
    }

    fn write(&mut self, _region: usize, _offset: u16, size: AccessSize, value: u32) {
        let value = value & size.ones() as u32;
        self.events.raise(SystemEvent::DebugExit(value << 1 | 1));
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl Device for DebugExit {
    fn name(&self) -> &str {
        "debug-exit"
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
        // It has no state.
    }
}

/// Saved state of a [`DebugExit`]: none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugExitState {}

impl SaveRestore for DebugExit {
    type State = DebugExitState;

    fn save(&self) -> DebugExitState {
        let Self { events: _ } = self;
        DebugExitState {}
    }

    fn restore(&mut self, DebugExitState {}: DebugExitState) -> Result<(), RestoreError> {
        Ok(())
    }
}
