//! The reset control register at 0xcf9 (PIIX3 and ICH datasheets, RST_CNT).
//!
//! Region 0 is the port alone. Region [`CONFIG_ADDRESS`] is for boards without PCI: the four ports from 0xcf8,
//! where this device takes byte accesses to 0xcf9 and nothing else. Bit 1 (SYS_RST) chooses between a soft and a hard reset, bit 2 (RST_CPU)
//! resets when it goes from 0 to 1, bit 3 (FULL_RST) asks for a power cycle. Every kind is the same
//! [`SystemEvent::Reset`] here.
//!
//! The port lies inside the PCI configuration address register at 0xcf8, which only decodes accesses
//! of 32 bits: a board with PCI gives byte accesses at 0xcf9 to region 0 of this device. For the FADT, the reset register is
//! system I/O 0xcf9 of 8 bits and the reset value is 0x06.

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

use crate::bytewise::{self, check};
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

    fn read_byte(&mut self, offset: u16) -> u8 {
        if offset == 0 { self.control.bits() } else { 0xff }
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
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

/// The region of four ports from 0xcf8.
pub const CONFIG_ADDRESS: usize = 1;

impl PortIo for ResetControl {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        match (region, offset, size) {
            (CONFIG_ADDRESS, 1, AccessSize::Byte) => self.read_byte(0).into(),
            (CONFIG_ADDRESS, ..) => size.ones() as u32,
            _ => bytewise::read(offset, size, |offset| self.read_byte(offset)),
        }
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        match (region, offset, size) {
            (CONFIG_ADDRESS, 1, AccessSize::Byte) => self.write_byte(0, value as u8),
            (CONFIG_ADDRESS, ..) => {}
            _ => bytewise::write(offset, size, value, |offset, byte| self.write_byte(offset, byte)),
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Events(Mutex<Vec<SystemEvent>>);

    impl SystemEvents for Events {
        fn raise(&self, event: SystemEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn a_pci_configuration_address_is_no_reset() {
        let events = Arc::new(Events::default());
        let mut control = ResetControl::new(events.clone());
        // Function 6 of device 0: 0x06 is what 0xcf9 would see.
        control.write(CONFIG_ADDRESS, 0, AccessSize::Dword, 0x8000_0604);
        control.write(CONFIG_ADDRESS, 1, AccessSize::Word, 0x0006);
        assert_eq!(control.read(CONFIG_ADDRESS, 0, AccessSize::Dword), u32::MAX);
        assert!(events.0.lock().unwrap().is_empty());
        control.write(CONFIG_ADDRESS, 1, AccessSize::Byte, 0x06);
        assert_eq!(*events.0.lock().unwrap(), [SystemEvent::Reset]);
        assert_eq!(control.read(CONFIG_ADDRESS, 1, AccessSize::Byte), 0x06);
    }
}
