//! The Bochs VBE extensions: ports 0x1ce and 0x1cf (0x1d0), and a flat copy of the registers in BAR 2.

use serde::{Deserialize, Serialize};

/// What the interface is called: version 5, the newest.
const ID: u16 = 0xb0c5;
/// The version that is called oldest.
const ID_OLDEST: u16 = 0xb0c0;

/// Largest width and height in dots: what [`GETCAPS`] answers.
pub(crate) const MAX_SIZE: u16 = 4096;
const MAX_BPP: u16 = 32;

const INDEX_ID: u16 = 0;
const XRES: u16 = 1;
const YRES: u16 = 2;
const BPP: u16 = 3;
const ENABLE: u16 = 4;
const BANK: u16 = 5;
const VIRT_WIDTH: u16 = 6;
const VIRT_HEIGHT: u16 = 7;
const X_OFFSET: u16 = 8;
const Y_OFFSET: u16 = 9;
const VIDEO_MEMORY_64K: u16 = 10;
/// Registers, of 16 bits each, one behind the other in BAR 2.
pub(crate) const REGISTERS: u16 = 11;

/// Of [`ENABLE`]: the mode is on.
const ENABLED: u16 = 1;
/// Of [`ENABLE`]: size and depth read as the largest there are.
const GETCAPS: u16 = 2;
/// Of [`ENABLE`]: the colour table has eight bits a component.
const DAC_8BIT: u16 = 0x20;
/// Of [`ENABLE`]: turning the mode on leaves the memory as it is.
const NO_CLEAR: u16 = 0x80;

/// Bytes of a bank of the window.
const BANK_SIZE: u32 = 0x1_0000;

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vbe {
    index: u16,
    id: u16,
    xres: u16,
    yres: u16,
    bpp: u16,
    enable: u16,
    bank: u16,
    virt_width: u16,
    virt_height: u16,
    x_offset: u16,
    y_offset: u16,
    /// Bytes of video memory.
    memory: u32,
}

/// What the screen shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    pub width: u32,
    pub height: u32,
    /// Bits a dot: 4, 8, 15, 16, 24 or 32.
    pub bpp: u16,
    /// Bytes from line to line; with 4 bits a dot in each plane.
    pub pitch: u32,
    /// Where the upper left is; with 4 bits a dot in each plane.
    pub start: u32,
}

/// What a write asks for beside the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    None,
    /// The mode was turned on: this many bytes of memory are to be cleared.
    Enable {
        clear: u32,
    },
}

impl Vbe {
    /// Off, with `memory` bytes of video memory: a power of two from 256 KiB to 256 MiB.
    pub fn new(memory: u32) -> Self {
        Self {
            index: 0,
            id: ID,
            xres: 0,
            yres: 0,
            bpp: 0,
            enable: 0,
            bank: 0,
            virt_width: 0,
            virt_height: 0,
            x_offset: 0,
            y_offset: 0,
            memory,
        }
    }

    pub fn index(&self) -> u16 {
        self.index
    }

    pub fn set_index(&mut self, index: u16) {
        self.index = index;
    }

    pub fn enabled(&self) -> bool {
        self.enable & ENABLED != 0
    }

    /// Whether the colour table has eight bits a component.
    pub fn wide_dac(&self) -> bool {
        self.enable & DAC_8BIT != 0
    }

    /// What the screen shows, if the mode is on.
    pub fn mode(&self) -> Option<Mode> {
        self.enabled().then(|| Mode {
            width: self.xres.into(),
            height: self.yres.into(),
            bpp: self.bpp,
            pitch: self.pitch(),
            start: self.start(),
        })
    }

    /// Where the window's bank begins, in bytes of memory, or with 4 bits a dot of a plane.
    pub fn bank(&self) -> u32 {
        u32::from(self.bank) * BANK_SIZE
    }

    /// Whether dots are spread over the planes.
    pub fn planar(&self) -> bool {
        self.bpp == 4
    }

    /// Bits that a dot takes in memory; of a plane, with 4 bits a dot.
    fn bits(&self) -> u32 {
        match self.bpp {
            4 => 1,
            15 => 16,
            bpp => bpp.into(),
        }
    }

    /// Bytes of memory, or of a plane.
    fn room(&self) -> u32 {
        if self.planar() { self.memory / 4 } else { self.memory }
    }

    fn pitch(&self) -> u32 {
        u32::from(self.virt_width) * self.bits() / 8
    }

    fn start(&self) -> u32 {
        u32::from(self.y_offset) * self.pitch() + u32::from(self.x_offset) * self.bits() / 8
    }

    /// Register `index` as it reads.
    pub fn read(&self, index: u16) -> u16 {
        let caps = self.enable & GETCAPS != 0;
        match index {
            INDEX_ID => self.id,
            XRES | YRES if caps => MAX_SIZE,
            BPP if caps => MAX_BPP,
            XRES => self.xres,
            YRES => self.yres,
            BPP => self.bpp,
            ENABLE => self.enable,
            BANK => self.bank,
            VIRT_WIDTH => self.virt_width,
            VIRT_HEIGHT => self.virt_height,
            X_OFFSET => self.x_offset,
            Y_OFFSET => self.y_offset,
            VIDEO_MEMORY_64K => (self.memory >> 16) as u16,
            _ => 0,
        }
    }

    /// Writes register `index`.
    pub fn write(&mut self, index: u16, value: u16) -> Action {
        match index {
            INDEX_ID if (ID_OLDEST..=ID).contains(&value) => self.id = value,
            XRES => self.xres = value,
            YRES => self.yres = value,
            BPP => self.bpp = value,
            ENABLE => return self.write_enable(value),
            BANK => self.bank = value & ((self.room() / BANK_SIZE).saturating_sub(1)) as u16,
            VIRT_WIDTH => self.virt_width = value,
            X_OFFSET => self.x_offset = value,
            Y_OFFSET => self.y_offset = value,
            _ => {}
        }
        self.fix();
        Action::None
    }

    fn write_enable(&mut self, value: u16) -> Action {
        let on = value & ENABLED != 0 && !self.enabled();
        self.enable = value;
        if value & ENABLED == 0 {
            self.bank = 0;
        }
        if !on {
            return Action::None;
        }
        (self.virt_width, self.x_offset, self.y_offset) = (0, 0, 0);
        self.fix();
        let planes = if self.planar() { 4 } else { 1 };
        let bytes = u32::from(self.yres) * self.pitch() * planes;
        Action::Enable { clear: if value & NO_CLEAR == 0 { bytes } else { 0 } }
    }

    /// Makes the nearest possible mode of the registers, for there is no way to report an error.
    fn fix(&mut self) {
        if !self.enabled() {
            return;
        }
        if !matches!(self.bpp, 4 | 8 | 15 | 16 | 24 | 32) {
            self.bpp = 8;
        }
        self.xres = (self.xres & !7).clamp(8, MAX_SIZE);
        self.virt_width = (self.virt_width & !7).clamp(self.xres, MAX_SIZE.max(self.xres));
        // At most 16 KiB a line, and at least 64 KiB of memory: some lines fit.
        let rows = u16::try_from(self.room() / self.pitch().max(1)).unwrap_or(u16::MAX);
        self.virt_height = rows;
        self.yres = self.yres.clamp(1, MAX_SIZE).min(rows);
        let fits = |vbe: &Self| {
            let end = u64::from(vbe.start()) + u64::from(vbe.yres) * u64::from(vbe.pitch());
            end <= u64::from(vbe.room())
        };
        (self.x_offset, self.y_offset) = (self.x_offset.min(MAX_SIZE), self.y_offset.min(rows));
        if !fits(self) {
            self.y_offset = 0;
        }
        if !fits(self) {
            self.x_offset = 0;
        }
    }

    /// Whether the registers are such as a guest can bring about, with `memory` bytes of video memory.
    pub fn possible(&self, memory: u32) -> bool {
        let mut fixed = self.clone();
        fixed.fix();
        let bank = u32::from(self.bank) < (self.memory / BANK_SIZE).max(1);
        self.memory == memory && fixed == *self && bank && (ID_OLDEST..=ID).contains(&self.id)
    }
}
