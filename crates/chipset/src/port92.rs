//! System control port A (IBM PS/2 Technical Reference; PIIX3 datasheet, port 92 register).
//!
//! One region of one port. Bit 0 resets the machine when it goes from 0 to 1, bit 1 opens the A20
//! gate. The other bits (disk activity lights, password lock) are latched and do nothing.

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::byte_ports;
use crate::events::{A20Gate, A20Source, SystemEvent, SystemEvents};

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Control: u8 {
        const FAST_RESET = 1 << 0;
        const FAST_A20 = 1 << 1;
        const _ = !0;
    }
}

/// System control port A.
pub struct Port92 {
    a20: Arc<A20Gate>,
    events: Arc<dyn SystemEvents>,
    control: Control,
}

impl Port92 {
    /// A port that works the gate `a20`, which it shares with the keyboard controller, and reports
    /// resets to `events`.
    pub fn new(a20: Arc<A20Gate>, events: Arc<dyn SystemEvents>) -> Self {
        Self { a20, events, control: Control::empty() }
    }

    fn set(&mut self, control: Control) {
        self.control = control;
        self.a20.set(A20Source::Port92, control.contains(Control::FAST_A20));
    }

    fn read_byte(&mut self, _region: usize, offset: u16) -> u8 {
        if offset == 0 { self.control.bits() } else { 0xff }
    }

    fn write_byte(&mut self, _region: usize, offset: u16, value: u8) {
        if offset != 0 {
            return;
        }
        let control = Control::from_bits_retain(value);
        let rising = control - self.control;
        self.set(control);
        if rising.contains(Control::FAST_RESET) {
            self.events.raise(SystemEvent::Reset);
        }
    }
}

byte_ports!(Port92);

impl Device for Port92 {
    fn name(&self) -> &str {
        "port92"
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
        self.set(Control::empty());
    }
}

/// Saved state of a [`Port92`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port92State {
    control: u8,
}

impl SaveRestore for Port92 {
    type State = Port92State;

    fn save(&self) -> Port92State {
        let Self { a20: _, events: _, control } = self;
        Port92State { control: control.bits() }
    }

    fn restore(&mut self, state: Port92State) -> Result<(), RestoreError> {
        self.set(Control::from_bits_retain(state.control));
        Ok(())
    }
}
