//! The power-on self-test code at port 0x80.
//!
//! One region of one port, a latch: firmware writes where it has got to, and reads give it back. Linux
//! writes here for a delay of about a microsecond; nothing happens then.

use serde::{Deserialize, Serialize};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::byte_ports;

/// The diagnostic latch.
#[derive(Default)]
pub struct PostCode {
    code: u8,
}

impl PostCode {
    /// A latch that holds zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written last.
    pub fn code(&self) -> u8 {
        self.code
    }

    fn read_byte(&mut self, _region: usize, offset: u16) -> u8 {
        if offset == 0 { self.code } else { 0xff }
    }

    fn write_byte(&mut self, _region: usize, offset: u16, value: u8) {
        if offset == 0 {
            self.code = value;
        }
    }
}

byte_ports!(PostCode);

impl Device for PostCode {
    fn name(&self) -> &str {
        "post"
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
        self.code = 0;
    }
}

/// Saved state of a [`PostCode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostCodeState {
    code: u8,
}

impl SaveRestore for PostCode {
    type State = PostCodeState;

    fn save(&self) -> PostCodeState {
        let Self { code } = self;
        PostCodeState { code: *code }
    }

    fn restore(&mut self, state: PostCodeState) -> Result<(), RestoreError> {
        self.code = state.code;
        Ok(())
    }
}
