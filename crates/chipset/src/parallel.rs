//! A parallel port with a printer behind it (IBM PC AT Technical Reference, printer adapter; IEEE 1284-1994,
//! compatibility mode).
//!
//! One region of eight ports, at 0x378 on a PC:
//!
//! | offset | register |
//! |---|---|
//! | 0 | data: what was last written |
//! | 1 | status: not busy, not acknowledging, paper, selected, no error; bits 2:0 read as ones |
//! | 2 | control: strobe, automatic line feed, INIT#, select, interrupt enable, direction; bits 7:6 read as ones |
//! | 3 to 7 | EPP registers that are not there: all-ones |
//!
//! A byte goes to the printer when strobe rises while INIT# is inactive. The printer is busy while strobe is
//! active, and acknowledges when it falls: with the interrupt enabled, that is an edge on the line.
//!
//! It is a standard port. Drivers that probe for more find nothing: bit 0 of the status, EPP's time-out, cannot
//! be cleared; data reads back as written whatever the direction; ECP's registers are not decoded.

use std::io::Write;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{Device, IrqLine, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::{byte_ports, check};
use crate::output::Output;

/// Ports that the device decodes.
pub const PORTS: u32 = 8;

/// Status of a printer that waits: BUSY# and ACK# are inactive (1), SELECT and ERROR# too; reserved bits.
const READY: u8 = 0xdf;
/// BUSY# is inactive.
const NOT_BUSY: u8 = 1 << 7;

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Control: u8 {
        const STROBE = 1 << 0;
        const AUTO_FEED = 1 << 1;
        /// INIT# is inactive.
        const RUN = 1 << 2;
        const SELECT = 1 << 3;
        const INTERRUPT = 1 << 4;
        const DIRECTION = 1 << 5;
    }
}

/// What the control register has at power-on.
const DEFAULT_CONTROL: Control = Control::RUN.union(Control::SELECT);
/// Bits of the control register that read as ones.
const CONTROL_ONES: u8 = 0xc0;

/// A parallel port.
pub struct Parallel {
    name: &'static str,
    irq: IrqLine,
    output: Output,
    data: u8,
    control: Control,
}

impl Parallel {
    /// A port that prints to `output` and acknowledges on `irq`. `name` is for logs and saved states.
    pub fn new(name: &'static str, irq: IrqLine, output: Box<dyn Write + Send>) -> Self {
        Self { name, irq, output: Output::new(output), data: 0, control: DEFAULT_CONTROL }
    }

    /// Bytes that the output did not take.
    pub fn lost(&self) -> u64 {
        self.output.lost()
    }

    fn read_byte(&mut self, _region: usize, offset: u16) -> u8 {
        match offset {
            0 => self.data,
            1 if self.control.contains(Control::STROBE) => READY & !NOT_BUSY,
            1 => READY,
            2 => self.control.bits() | CONTROL_ONES,
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, _region: usize, offset: u16, value: u8) {
        match offset {
            0 => self.data = value,
            2 => self.write_control(Control::from_bits_truncate(value)),
            _ => {}
        }
    }

    fn write_control(&mut self, control: Control) {
        let changed = control ^ self.control;
        self.control = control;
        if !changed.contains(Control::STROBE) || !control.contains(Control::RUN) {
            return;
        }
        if control.contains(Control::STROBE) {
            self.output.send(&[self.data]);
        } else if control.contains(Control::INTERRUPT) {
            self.irq.pulse();
        }
    }
}

byte_ports!(Parallel);

impl Device for Parallel {
    fn name(&self) -> &str {
        self.name
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
        (self.data, self.control) = (0, DEFAULT_CONTROL);
    }
}

/// Saved state of a [`Parallel`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParallelState {
    data: u8,
    control: u8,
}

impl SaveRestore for Parallel {
    type State = ParallelState;

    fn save(&self) -> ParallelState {
        let Self { name: _, irq: _, output: _, data, control } = self;
        ParallelState { data: *data, control: control.bits() }
    }

    fn restore(&mut self, ParallelState { data, control }: ParallelState) -> Result<(), RestoreError> {
        let bits = Control::from_bits(control);
        check("parallel", bits.is_some(), || {
            format!("control register {control:#x} has bits that do not exist")
        })?;
        (self.data, self.control) = (data, bits.unwrap_or(DEFAULT_CONTROL));
        Ok(())
    }
}
