//! The registers of a PC's two 8237A DMA controllers and their page registers (Intel 8237A datasheet; PIIX3
//! datasheet, DMA registers).
//!
//! | region | ports on a PC | registers |
//! |---|---|---|
//! | [`FIRST`] | 0x00, 16 ports | channels 0 to 3, 8 bits |
//! | [`SECOND`] | 0xc0, 32 ports | channels 4 to 7, 16 bits, each register at two ports |
//! | [`PAGES`] | 0x81, 15 ports | page registers; those of no channel are memory |
//!
//! Firmware and operating systems initialise these, and look whether they are there. Left out: transfers. No
//! device of this workspace asks for one, so that current and base registers are the same and no channel ever
//! reaches its terminal count; a request by software stays pending.

use serde::{Deserialize, Serialize};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::{byte_ports, check};

/// Region of the controller of channels 0 to 3.
pub const FIRST: usize = 0;
/// Region of the controller of channels 4 to 7.
pub const SECOND: usize = 1;
/// Region of the page registers, without the first of 16, whose port has the POST code.
pub const PAGES: usize = 2;

const PAGE_COUNT: usize = 15;

/// One channel's address and count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    address: u16,
    count: u16,
    mode: u8,
}

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Controller {
    channels: [Channel; 4],
    command: u8,
    /// Channels that software requests.
    request: u8,
    /// Channels that are masked.
    mask: u8,
    /// The next access to an address or count is to its upper half.
    upper: bool,
}

impl Controller {
    const fn new() -> Self {
        let channel = Channel { address: 0, count: 0, mode: 0 };
        Self { channels: [channel; 4], command: 0, request: 0, mask: 0xf, upper: false }
    }

    /// The address or count register at offsets 0 to 7.
    fn register(&mut self, offset: u16) -> Option<&mut u16> {
        let channel = self.channels.get_mut(usize::from(offset / 2))?;
        Some(if offset.is_multiple_of(2) { &mut channel.address } else { &mut channel.count })
    }

    /// Which half the flip-flop chooses now: its shift.
    fn flip(&mut self) -> u32 {
        self.upper = !self.upper;
        if self.upper { 0 } else { 8 }
    }

    fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0..8 => {
                let shift = self.flip();
                self.register(offset).map_or(0xff, |register| (*register >> shift) as u8)
            }
            8 => self.request << 4, // no terminal counts
            0xf => self.mask | 0xf0,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u16, value: u8) {
        let channel = 1 << (value & 3);
        match offset {
            0..8 => {
                let shift = self.flip();
                if let Some(register) = self.register(offset) {
                    *register = *register & !(0xff << shift) | u16::from(value) << shift;
                }
            }
            8 => self.command = value,
            9 => set(&mut self.request, channel, value & 4 != 0),
            0xa => set(&mut self.mask, channel, value & 4 != 0),
            0xb => {
                if let Some(channel) = self.channels.get_mut(usize::from(value & 3)) {
                    channel.mode = value & 0xfc;
                }
            }
            0xc => self.upper = false,
            // Master clear.
            0xd => *self = Self { channels: self.channels, ..Self::new() },
            0xe => self.mask = 0,
            0xf => self.mask = value & 0xf,
            _ => {}
        }
    }
}

fn set(bits: &mut u8, bit: u8, to: bool) {
    *bits = if to { *bits | bit } else { *bits & !bit };
}

/// The DMA controllers' registers.
pub struct Dma {
    controllers: [Controller; 2],
    pages: [u8; PAGE_COUNT],
}

impl Dma {
    /// Both controllers after a reset.
    pub fn new() -> Self {
        Self { controllers: [Controller::new(), Controller::new()], pages: [0; PAGE_COUNT] }
    }

    fn read_byte(&mut self, region: usize, offset: u16) -> u8 {
        let [first, second] = &mut self.controllers;
        match region {
            FIRST => first.read(offset),
            SECOND => second.read(offset / 2),
            PAGES => self.pages.get(usize::from(offset)).copied().unwrap_or(0xff),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, region: usize, offset: u16, value: u8) {
        let [first, second] = &mut self.controllers;
        match region {
            FIRST => first.write(offset, value),
            SECOND => second.write(offset / 2, value),
            _ => {
                let page = self.pages.get_mut(usize::from(offset)).filter(|_| region == PAGES);
                if let Some(page) = page {
                    *page = value;
                }
            }
        }
    }
}

impl Default for Dma {
    fn default() -> Self {
        Self::new()
    }
}

byte_ports!(Dma);

impl Device for Dma {
    fn name(&self) -> &str {
        "dma"
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

/// Saved state of a [`Dma`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaState {
    controllers: [Controller; 2],
    pages: [u8; PAGE_COUNT],
}

impl SaveRestore for Dma {
    type State = DmaState;

    fn save(&self) -> DmaState {
        let Self { controllers, pages } = self;
        DmaState { controllers: controllers.clone(), pages: *pages }
    }

    fn restore(&mut self, DmaState { controllers, pages }: DmaState) -> Result<(), RestoreError> {
        for controller in &controllers {
            let bits = controller.mask | controller.request;
            check("dma", bits <= 0xf, || "mask or request of channels that do not exist".to_owned())?;
            let modes = controller.channels.iter().all(|channel| channel.mode & 3 == 0);
            check("dma", modes, || "mode of a channel names a channel".to_owned())?;
        }
        *self = Self { controllers, pages };
        Ok(())
    }
}
