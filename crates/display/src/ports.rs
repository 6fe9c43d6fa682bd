//! Port accesses.

use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_device::{PortIo, read_each, write_each};

use crate::timing::Timing;
use crate::vbe::Action;
use crate::vga::{MONO_PORTS, PORTS, VBE_PORTS, Vga};

const MONO_BASE: u16 = 0x3b0;
const BASE: u16 = 0x3c0;

/// Status 0: the monitor is a colour one.
const SENSE: u8 = 0x10;
/// Status 1: nothing is drawn.
const DISPLAY_DISABLED: u8 = 1 << 0;
/// Status 1: vertical retrace.
const VERTICAL_RETRACE: u8 = 1 << 3;

impl Vga {
    /// A byte read from a port from 0x3b0 to 0x3df.
    pub(crate) fn port_read(&mut self, port: u16) -> u8 {
        let registers = &mut self.registers;
        match port {
            0x3c0 => registers.attribute.index(),
            0x3c1 => registers.attribute.read(),
            0x3c2 => SENSE,
            0x3c3 => 1, // the adapter is enabled
            0x3c4 => registers.sequencer.index(),
            0x3c5 => registers.sequencer.read(),
            0x3c6 => registers.dac.mask(),
            0x3c7 => registers.dac.state(),
            0x3c8 => registers.dac.write_index(),
            0x3c9 => registers.dac.read(),
            0x3ca => registers.feature,
            0x3cc => registers.misc,
            0x3ce => registers.graphics.index(),
            0x3cf => registers.graphics.read(),
            0x3b0..=0x3bf | 0x3d0..=0x3df if self.decodes(port) => match port & 0xf {
                0x4 => self.registers.crtc.index(),
                0x5 => self.registers.crtc.read(),
                0xa => self.read_status(),
                _ => 0xff,
            },
            _ => 0xff,
        }
    }

    /// A byte written to a port from 0x3b0 to 0x3df.
    pub(crate) fn port_write(&mut self, port: u16, value: u8) {
        let (wide, registers) = (self.vbe.wide_dac(), &mut self.registers);
        match port {
            0x3c0 => registers.attribute.write(value),
            0x3c2 => registers.write_misc(value),
            0x3c4 => registers.sequencer.set_index(value),
            0x3c5 => registers.sequencer.write(value),
            0x3c6 => registers.dac.set_mask(value),
            0x3c7 => registers.dac.set_read_index(value),
            0x3c8 => registers.dac.set_write_index(value),
            0x3c9 => registers.dac.write(value, wide),
            0x3ce => registers.graphics.set_index(value),
            0x3cf => registers.graphics.write(value),
            0x3b0..=0x3bf | 0x3d0..=0x3df if self.decodes(port) => match port & 0xf {
                0x4 => self.registers.crtc.set_index(value),
                0x5 => self.registers.crtc.write(value),
                0xa => self.registers.write_feature(value),
                _ => {}
            },
            _ => {}
        }
    }

    /// Whether a port of the CRTC's is where the miscellaneous output register says.
    fn decodes(&self, port: u16) -> bool {
        self.registers.colour() == (port >= 0x3d0)
    }

    fn read_status(&mut self) -> u8 {
        self.registers.attribute.reset_flip_flop();
        let beam = Timing::of(&self.registers, self.vbe.enabled()).beam(self.clock.now());
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(beam.blanking, DISPLAY_DISABLED) | bit(beam.retrace, VERTICAL_RETRACE)
    }

    /// A word read from a port of the VBE extensions. The data port is doubled: there are drivers that
    /// want it aligned.
    fn vbe_port_read(&mut self, offset: u16) -> u16 {
        match offset {
            0 => self.vbe.index(),
            1 | 2 => self.vbe.read(self.vbe.index()),
            _ => u16::MAX,
        }
    }

    fn vbe_port_write(&mut self, offset: u16, value: u16) {
        match offset {
            0 => self.vbe.set_index(value),
            1 | 2 => self.vbe_write(self.vbe.index(), value),
            _ => {}
        }
    }

    /// Writes a register of the VBE extensions.
    pub(crate) fn vbe_write(&mut self, index: u16, value: u16) {
        match self.vbe.write(index, value) {
            Action::None => {}
            Action::Enable { clear } => {
                let zeroes = [0; 4096];
                let mut at = 0;
                while let Some(part) = zeroes.get(..(clear as usize - at).min(zeroes.len()))
                    && !part.is_empty()
                    && self.memory.write(at as u64, part).is_some()
                {
                    at += part.len();
                }
            }
        }
    }
}

impl PortIo for Vga {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        let base = match region {
            MONO_PORTS => MONO_BASE,
            PORTS => BASE,
            VBE_PORTS => {
                return match size {
                    Word => self.vbe_port_read(offset).into(),
                    Dword => u32::from(self.vbe_port_read(offset)) | u32::from(u16::MAX) << 16,
                    _ => u32::MAX,
                };
            }
            _ => return u32::MAX,
        };
        (0..size.bytes().min(4) as u16).fold(0, |value, i| {
            value | u32::from(self.port_read(base.wrapping_add(offset).wrapping_add(i))) << (8 * i)
        })
    }

    /// Wide accesses are bytes one after the other, lowest first: an index and its data in one.
    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        let base = match region {
            MONO_PORTS => MONO_BASE,
            PORTS => BASE,
            VBE_PORTS => {
                if size != Byte {
                    self.vbe_port_write(offset, value as u16);
                }
                return;
            }
            _ => return,
        };
        for (i, byte) in value.to_le_bytes().into_iter().enumerate().take(size.bytes()) {
            self.port_write(base.wrapping_add(offset).wrapping_add(i as u16), byte);
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}
