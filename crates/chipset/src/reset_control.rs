//! The reset control register at 0xcf9 (PIIX3 and ICH datasheets, RST_CNT).
//!
//! One region of one port. Bit 1 (SYS_RST) chooses between a soft and a hard reset, bit 2 (RST_CPU)
//! resets when it goes from 0 to 1, bit 3 (FULL_RST) asks for a power cycle. Every kind is the same
//! [`SystemEvent::Reset`] here.
//!
//! The port lies inside the PCI configuration address register at 0xcf8, which only decodes accesses
//! of 32 bits: a board gives byte accesses at 0xcf9 to this device. For the FADT, the reset register is
//! system I/O 0xcf9 of 8 bits and the reset value is 0x06.

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::{byte_ports, check};
use crate::events::{SystemEvent, SystemEvents};

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Control: u8 {
        const SYS_RST = 1 << 1;
        const RST_CPU = 1 << 2;
        const FULL_RST = 1 << 3;
    }
}

/// The reset control register.
pub struct ResetControl {
    events: Arc<dyn SystemEvents>,
    control: Control,
}

impl ResetControl {
    /// A register that reports resets to `events`.
    pub fn new(events: Arc<dyn SystemEvents>) -> Self {
        Self { events, control: Control::empty() }
    }

    fn read_byte(&mut self, _region: usize, offset: u16) -> u8 {
        if offset == 0 { self.control.bits() } else { 0xff }
    }

    fn write_byte(&mut self, _region: usize, offset: u16, value: u8) {
        if offset != 0 {
            return;
        }
        let control = Control::from_bits_truncate(value);
        let rising = control - self.control;
        self.control = control;
        if rising.contains(Control::RST_CPU) {
            self.events.raise(SystemEvent::Reset);
        }
    }
}

byte_ports!(ResetControl);

impl Device for ResetControl {
    fn name(&self) -> &str {
        "reset-control"
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
        self.control = Control::empty();
    }
}

/// Saved state of a [`ResetControl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    control: u8,
}

impl SaveRestore for ResetControl {
    type State = ResetControlState;

    fn save(&self) -> ResetControlState {
        let Self { events: _, control } = self;
        ResetControlState { control: control.bits() }
    }

    fn restore(&mut self, state: ResetControlState) -> Result<(), RestoreError> {
        let control = Control::from_bits(state.control);
        check("reset-control", control.is_some(), || format!("register is {:#x}", state.control))?;
        self.control = control.unwrap_or(Control::empty());
        Ok(())
    }
}
