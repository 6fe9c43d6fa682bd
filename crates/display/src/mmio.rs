//! Memory accesses: the window, the framebuffer where it is not mapped, registers, the ROM.

use trapline_device::{AccessSize, MmioIo};

use crate::vbe;
use crate::vga::{FRAMEBUFFER, REGISTERS, ROM, Vga, WINDOW};
use crate::window::Planes;

/// In BAR 2: the monitor's description.
const EDID_END: u64 = 0x400;
/// In BAR 2: ports 0x3c0 to 0x3df.
const PORTS: u64 = 0x400;
const PORTS_END: u64 = 0x420;
/// In BAR 2: the registers of the VBE extensions, of 16 bits each.
const VBE: u64 = 0x500;
const VBE_END: u64 = VBE + 2 * vbe::REGISTERS as u64;
/// In BAR 2: length of the extended registers.
const EXTENDED: u64 = 0x600;
const EXTENDED_LEN: u32 = 8;
/// In BAR 2: the byte order of the framebuffer.
const BYTE_ORDER: u64 = 0x604;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

/// Bytes of the VBE's window.
const BANK: u64 = 0x1_0000;

impl Vga {
    /// Where in video memory `size` bytes of the window are, in the modes in which it is a part of the
    /// framebuffer.
    fn linear(&self, offset: u64, size: AccessSize) -> Option<Option<u64>> {
        if !self.vbe.enabled() || self.vbe.planar() {
            return None;
        }
        let inside = offset + size.bytes() as u64 <= BANK;
        Some(inside.then(|| u64::from(self.vbe.bank()) + offset))
    }

    fn planes(&mut self) -> Planes<'_> {
        let bank = self.vbe.enabled().then(|| self.vbe.bank());
        let Self { memory, registers, latches, .. } = self;
        Planes { memory, registers, latches, bank }
    }

    fn window_read(&mut self, offset: u64, size: AccessSize) -> u64 {
        if !self.registers.ram_enabled() {
            return u64::MAX;
        }
        if let Some(at) = self.linear(offset, size) {
            return at.map_or(u64::MAX, |at| self.framebuffer_read(at, size));
        }
        let mut planes = self.planes();
        gather(offset, size, |at| planes.read(at as u32))
    }

    fn window_write(&mut self, offset: u64, size: AccessSize, value: u64) {
        if !self.registers.ram_enabled() {
            return;
        }
        if let Some(at) = self.linear(offset, size) {
            if let Some(at) = at {
                self.framebuffer_write(at, size, value);
            }
            return;
        }
        let mut planes = self.planes();
        for (i, byte) in value.to_le_bytes().into_iter().enumerate().take(size.bytes()) {
            planes.write((offset + i as u64) as u32, byte);
        }
    }

    fn framebuffer_read(&self, offset: u64, size: AccessSize) -> u64 {
        let mut value = [0xff; 8];
        if let Some(bytes) = value.get_mut(..size.bytes()) {
            // Beyond the end it stays all-ones.
            let _ = self.memory.read(offset, bytes);
        }
        u64::from_le_bytes(value)
    }

    fn framebuffer_write(&self, offset: u64, size: AccessSize, value: u64) {
        if let Some(bytes) = value.to_le_bytes().get(..size.bytes()) {
            // Beyond the end there is nothing.
            let _ = self.memory.write(offset, bytes);
        }
    }

    /// A part of BAR 2 that is bytes.
    fn register_byte(&mut self, offset: u64) -> u8 {
        match offset {
            0..EDID_END => self.edid.byte(offset),
            PORTS..PORTS_END => self.port_read(0x3c0 + (offset - PORTS) as u16),
            VBE..VBE_END => {
                let word = self.vbe.read(((offset - VBE) / 2) as u16).to_le_bytes();
                word.into_iter().nth((offset & 1) as usize).unwrap_or(0)
            }
            EXTENDED..BYTE_ORDER => byte_of(EXTENDED_LEN, offset),
            BYTE_ORDER..0x608 => byte_of(LITTLE_ENDIAN, offset),
            _ => 0xff,
        }
    }

    fn registers_write(&mut self, offset: u64, size: AccessSize, value: u64) {
        match offset {
            PORTS..PORTS_END => {
                let bytes = value.to_le_bytes().into_iter().take(size.bytes());
                for (port, byte) in (offset - PORTS..PORTS_END - PORTS).zip(bytes) {
                    self.port_write(0x3c0 + port as u16, byte);
                }
            }
            VBE..VBE_END if offset & 1 == 0 && size != AccessSize::Byte => {
                for i in 0..(size.bytes() / 2) as u64 {
                    self.vbe_write((((offset - VBE) / 2) + i) as u16, (value >> (16 * i)) as u16);
                }
            }
            // The framebuffer is little-endian, whatever is asked for.
            _ => {}
        }
    }

    fn rom_byte(&self, offset: u64) -> u8 {
        usize::try_from(offset).ok().and_then(|at| self.rom.get(at)).copied().unwrap_or(0xff)
    }
}

/// `size` bytes from `offset` on.
fn gather(offset: u64, size: AccessSize, mut byte: impl FnMut(u64) -> u8) -> u64 {
    (0..size.bytes() as u64).fold(0, |value, i| value | u64::from(byte(offset + i)) << (8 * i))
}

/// The byte of a register of 32 bits that lies at `offset`.
fn byte_of(register: u32, offset: u64) -> u8 {
    (register >> (8 * (offset & 3))) as u8
}

impl MmioIo for Vga {
    fn read(&mut self, region: usize, offset: u64, size: AccessSize) -> u64 {
        match region {
            WINDOW => self.window_read(offset, size),
            FRAMEBUFFER => self.framebuffer_read(offset, size),
            REGISTERS => gather(offset, size, |at| self.register_byte(at)),
            ROM => gather(offset, size, |at| self.rom_byte(at)),
            _ => u64::MAX,
        }
    }

    fn write(&mut self, region: usize, offset: u64, size: AccessSize, value: u64) {
        match region {
            WINDOW => self.window_write(offset, size, value),
            FRAMEBUFFER => self.framebuffer_write(offset, size, value),
            REGISTERS => self.registers_write(offset, size, value),
            _ => {}
        }
    }
}
