//! The SMBus host controller of the PIIX4, with nothing on the bus (Intel 82371AB datasheet, SMBus I/O
//! registers).
//!
//! One region of 16 ports:
//!
//! | offset | register |
//! |---|---|
//! | 0 | host status: failed, device error; writing ones clears |
//! | 1 | slave status: nothing |
//! | 2 | host control: start, protocol, kill, interrupt enable |
//! | 3 to 6 | host command, address, data 0, data 1 |
//! | 7 | block data: 32 bytes, of which reading host control chooses the first |
//! | 8 to 15 | slave registers |
//!
//! No address acknowledges: a transaction ends at once with a device error, a killed one as failed. Drivers
//! find an empty bus and need not time out. Left out: the interrupt, which polling drivers do not ask for, and
//! alerts and transactions from slaves.

use serde::{Deserialize, Serialize};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::{byte_ports, check};

/// Ports that the device decodes.
pub const PORTS: u32 = 16;

const BLOCK: usize = 32;

// Host status.
const DEVICE_ERROR: u8 = 1 << 2;
const FAILED: u8 = 1 << 4;
// Host control.
const KILL: u8 = 1 << 1;
const START: u8 = 1 << 6;
/// What host control keeps: interrupt enable, kill, protocol.
const CONTROL: u8 = 0x1f;

const HOST_STATUS: u16 = 0;
const HOST_CONTROL: u16 = 2;
const BLOCK_DATA: u16 = 7;

/// An SMBus host controller.
#[derive(Default)]
pub struct Smbus {
    status: u8,
    control: u8,
    /// Host command, address, data 0, data 1.
    host: [u8; 4],
    block: [u8; BLOCK],
    block_index: u8,
    /// Slave control, shadow command, event and data.
    slave: [u8; 8],
}

impl Smbus {
    /// An idle controller.
    pub fn new() -> Self {
        Self::default()
    }

    /// The byte of the block that is next.
    fn next_of_block(&mut self) -> Option<&mut u8> {
        let at = usize::from(self.block_index) % BLOCK;
        self.block_index = (self.block_index + 1) % BLOCK as u8;
        self.block.get_mut(at)
    }

    fn read_byte(&mut self, _region: usize, offset: u16) -> u8 {
        match offset {
            HOST_STATUS => self.status,
            1 => 0,
            HOST_CONTROL => {
                self.block_index = 0;
                self.control
            }
            3..7 => self.host.get(usize::from(offset - 3)).copied().unwrap_or(0xff),
            BLOCK_DATA => self.next_of_block().map_or(0xff, |byte| *byte),
            _ => self.slave.get(usize::from(offset - 8)).copied().unwrap_or(0xff),
        }
    }

    fn write_byte(&mut self, _region: usize, offset: u16, value: u8) {
        match offset {
            HOST_STATUS => self.status &= !value,
            1 => {}
            HOST_CONTROL => self.write_control(value),
            BLOCK_DATA => {
                if let Some(byte) = self.next_of_block() {
                    *byte = value;
                }
            }
            _ => {
                let slave = offset.checked_sub(8).and_then(|at| self.slave.get_mut(usize::from(at)));
                let host = offset.checked_sub(3).and_then(|at| self.host.get_mut(usize::from(at)));
                if let Some(byte) = host.or(slave) {
                    *byte = value;
                }
            }
        }
    }

    fn write_control(&mut self, value: u8) {
        self.control = value & CONTROL;
        if value & KILL != 0 {
            self.status |= FAILED;
        } else if value & START != 0 {
            self.status |= DEVICE_ERROR;
        }
    }
}

byte_ports!(Smbus);

impl Device for Smbus {
    fn name(&self) -> &str {
        "smbus"
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
        *self = Self::new();
    }
}

/// Saved state of a [`Smbus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmbusState {
    status: u8,
    control: u8,
    host: [u8; 4],
    block: [u8; BLOCK],
    block_index: u8,
    slave: [u8; 8],
}

impl SaveRestore for Smbus {
    type State = SmbusState;

    fn save(&self) -> SmbusState {
        let Self { status, control, host, block, block_index, slave } = self;
        SmbusState {
            status: *status,
            control: *control,
            host: *host,
            block: *block,
            block_index: *block_index,
            slave: *slave,
        }
    }

    fn restore(&mut self, state: SmbusState) -> Result<(), RestoreError> {
        let SmbusState { status, control, host, block, block_index, slave } = state;
        let known = status & !(DEVICE_ERROR | FAILED) == 0 && control & !CONTROL == 0;
        check("smbus", known, || "status or control has bits that are never set".to_owned())?;
        check("smbus", usize::from(block_index) < BLOCK, || format!("byte {block_index} of 32 is next"))?;
        *self = Self { status, control, host, block, block_index, slave };
        Ok(())
    }
}
