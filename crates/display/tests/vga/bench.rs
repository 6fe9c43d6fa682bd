//! A VGA on a bench, and the modes that a video BIOS sets (IBM VGA/XGA Technical Reference, mode tables).

use std::sync::{Arc, Mutex, MutexGuard};

use trapline_device::AccessSize::{self, Byte, Word};
use trapline_device::test::FakeClock;
use trapline_display::{Frame, Vga, VgaConfig};
use trapline_memory::DeviceMemory;
use trapline_pci::test::Bench;

pub const MEMORY: u64 = 4 << 20;
/// The memory window.
pub const WINDOW: u64 = 0xa_0000;

/// What a mode programs, in the order of the ports.
pub struct Mode {
    pub misc: u8,
    pub sequencer: [u8; 5],
    pub crtc: [u8; 25],
    pub graphics: [u8; 9],
    /// From register 0x10 on: mode control, overscan, plane enable, panning, colour select.
    pub attribute: [u8; 5],
    /// The sixteen palette registers.
    pub palette: [u8; 16],
}

const PALETTE: [u8; 16] = [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f];
const IDENTITY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// 0x03: text, 80 by 25, characters of 9 by 16 dots.
pub const TEXT: Mode = Mode {
    misc: 0x67,
    sequencer: [3, 0x00, 0x03, 0x00, 0x02],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, 0x9c,
        0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
    ],
    graphics: [0, 0, 0, 0, 0, 0x10, 0x0e, 0x00, 0xff],
    attribute: [0x0c, 0, 0x0f, 8, 0],
    palette: PALETTE,
};

/// 0x04: 320 by 200, four colours, as the CGA had it.
pub const CGA_FOUR: Mode = Mode {
    misc: 0x63,
    sequencer: [3, 0x09, 0x03, 0x00, 0x02],
    crtc: [
        0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0x00, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14,
        0x00, 0x96, 0xb9, 0xa2, 0xff,
    ],
    graphics: [0, 0, 0, 0, 0, 0x30, 0x0f, 0x0f, 0xff],
    attribute: [1, 0, 3, 0, 0],
    palette: IDENTITY,
};

/// 0x06: 640 by 200, two colours, as the CGA had it.
pub const CGA_TWO: Mode = Mode {
    misc: 0x63,
    sequencer: [3, 0x01, 0x01, 0x00, 0x06],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28,
        0x00, 0x96, 0xb9, 0xc2, 0xff,
    ],
    graphics: [0, 0, 0, 0, 0, 0x00, 0x0d, 0x0f, 0xff],
    attribute: [1, 0, 1, 0, 0],
    palette: IDENTITY,
};

/// 0x0d: 320 by 200, sixteen colours.
pub const EGA: Mode = Mode {
    misc: 0x63,
    sequencer: [3, 0x09, 0x0f, 0x00, 0x06],
    crtc: [
        0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0x00, 0xc0, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14,
        0x00, 0x96, 0xb9, 0xe3, 0xff,
    ],
    graphics: [0, 0, 0, 0, 0, 0x00, 0x05, 0x0f, 0xff],
    attribute: [1, 0, 0x0f, 0, 0],
    palette: IDENTITY,
};

/// 0x12: 640 by 480, sixteen colours.
pub const PLANAR: Mode = Mode {
    misc: 0xe3,
    sequencer: [3, 0x01, 0x0f, 0x00, 0x06],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0x00, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c, 0xdf, 0x28,
        0x00, 0xe7, 0x04, 0xe3, 0xff,
    ],
    graphics: [0, 0, 0, 0, 0, 0x00, 0x05, 0x0f, 0xff],
    attribute: [1, 0, 0x0f, 0, 0],
    palette: IDENTITY,
};

/// 0x13: 320 by 200, 256 colours.
pub const PACKED: Mode = Mode {
    misc: 0x63,
    sequencer: [3, 0x01, 0x0f, 0x00, 0x0e],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0x00, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28,
        0x40, 0x96, 0xb9, 0xa3, 0xff,
    ],
    graphics: [0, 0, 0, 0, 0, 0x40, 0x05, 0x0f, 0xff],
    attribute: [0x41, 0, 0x0f, 0, 0],
    palette: IDENTITY,
};

/// A VGA with 4 MiB, placed and enabled, and what is around it.
pub struct Card {
    pub bench: Bench,
    pub vga: Arc<Mutex<Vga>>,
    pub clock: Arc<FakeClock>,
}

impl Card {
    pub fn new() -> Self {
        let mut card = Self::unplaced(None);
        card.bench.place().unwrap();
        card
    }

    /// As it is before firmware has set it up.
    pub fn unplaced(rom: Option<Vec<u8>>) -> Self {
        let clock = Arc::new(FakeClock::default());
        let vga = Arc::new(Mutex::new(make(clock.clone(), rom)));
        let mut bench = Bench::new();
        bench.plug(vga.clone());
        Self { bench, vga, clock }
    }

    /// In a mode, with colour `n` of the colour table (n, 2n, 3n), all in six bits.
    pub fn in_mode(mode: &Mode) -> Self {
        let mut card = Self::new();
        card.set_mode(mode);
        for index in 0..=255u8 {
            card.set_colour(index, [index, index.wrapping_mul(2), index.wrapping_mul(3)].map(|c| c & 0x3f));
        }
        card
    }

    pub fn device(&self) -> MutexGuard<'_, Vga> {
        self.vga.lock().unwrap()
    }

    pub fn out(&mut self, port: u16, value: u8) {
        self.bench.io_write(port, Byte, value.into());
    }

    pub fn inb(&mut self, port: u16) -> u8 {
        self.bench.io_read(port, Byte) as u8
    }

    /// Index and data in one word, as software does it.
    pub fn indexed(&mut self, port: u16, index: u8, value: u8) {
        self.bench.io_write(port, Word, u32::from(index) | u32::from(value) << 8);
    }

    pub fn read_indexed(&mut self, port: u16, index: u8) -> u8 {
        self.out(port, index);
        self.inb(port + 1)
    }

    pub fn sequencer(&mut self, index: u8, value: u8) {
        self.indexed(0x3c4, index, value);
    }

    pub fn graphics(&mut self, index: u8, value: u8) {
        self.indexed(0x3ce, index, value);
    }

    pub fn crtc(&mut self, index: u8, value: u8) {
        self.indexed(0x3d4, index, value);
    }

    /// An attribute register; the picture stays on.
    pub fn attribute(&mut self, index: u8, value: u8) {
        self.inb(0x3da);
        self.out(0x3c0, index | 0x20);
        self.out(0x3c0, value);
    }

    pub fn set_colour(&mut self, index: u8, [r, g, b]: [u8; 3]) {
        self.out(0x3c8, index);
        [r, g, b].into_iter().for_each(|component| self.out(0x3c9, component));
    }

    pub fn set_mode(&mut self, mode: &Mode) {
        self.out(0x3c2, mode.misc);
        for (index, value) in (0..).zip(mode.sequencer) {
            self.sequencer(index, value);
        }
        self.crtc(0x11, 0); // registers 0 to 7 can be written
        for (index, value) in (0..).zip(mode.crtc) {
            self.crtc(index, value);
        }
        for (index, value) in (0..).zip(mode.graphics) {
            self.graphics(index, value);
        }
        for (index, value) in (0..).zip(mode.palette.into_iter().chain(mode.attribute)) {
            self.attribute(index, value);
        }
    }

    pub fn vbe(&mut self, index: u16, value: u16) {
        self.bench.io_write(0x1ce, Word, index.into());
        self.bench.io_write(0x1cf, Word, value.into());
    }

    pub fn read_vbe(&mut self, index: u16) -> u16 {
        self.bench.io_write(0x1ce, Word, index.into());
        self.bench.io_read(0x1cf, Word) as u16
    }

    /// Turns on a VBE mode, and the picture.
    pub fn vbe_mode(&mut self, width: u16, height: u16, bpp: u16) {
        for (index, value) in [(4, 0), (1, width), (2, height), (3, bpp), (4, 0x41)] {
            self.vbe(index, value);
        }
        self.out(0x3c2, 0x63);
        self.inb(0x3da);
        self.out(0x3c0, 0x20);
    }

    pub fn poke(&mut self, address: u64, byte: u8) {
        self.bench.memory_write(address, Byte, byte.into());
    }

    pub fn peek(&mut self, address: u64) -> u8 {
        self.bench.memory_read(address, Byte) as u8
    }

    pub fn write(&mut self, address: u64, size: AccessSize, value: u64) {
        self.bench.memory_write(address, size, value);
    }

    /// Writes text with an attribute at a place of the text window.
    pub fn print(&mut self, column: u64, row: u64, attribute: u8, text: &str) {
        for (at, byte) in (0xb_8000 + 2 * (80 * row + column)..).step_by(2).zip(text.bytes()) {
            self.write(at, Word, u64::from(byte) | u64::from(attribute) << 8);
        }
    }

    pub fn frame(&self) -> Frame {
        self.device().render()
    }

    /// A byte of each plane of the VGA's memory.
    pub fn planes(&self, address: u64) -> [u8; 4] {
        self.device().memory().read_u32(address * 4).unwrap().to_le_bytes()
    }
}

pub fn make(clock: Arc<FakeClock>, rom: Option<Vec<u8>>) -> Vga {
    let memory = DeviceMemory::standalone(MEMORY).unwrap();
    Vga::new(VgaConfig { memory, rom, monitor: (1280, 800), clock }).unwrap()
}

/// What entry `n` of [`Card::in_mode`]'s colour table looks like.
pub fn colour(n: u8) -> [u8; 3] {
    [n, n.wrapping_mul(2), n.wrapping_mul(3)].map(|c| (c & 0x3f) << 2 | c >> 4 & 3)
}
