//! What a video BIOS does, for a board that starts a kernel without firmware.

use font8x8::{BASIC_FONTS, BLOCK_FONTS, BOX_FONTS, GREEK_FONTS, LATIN_FONTS, MISC_FONTS, UnicodeFonts};

use crate::text::Cell;
use crate::vga::Vga;

/// Mode 0x03 (IBM VGA/XGA Technical Reference, mode tables): 80 by 25 characters of 9 by 16 dots.
const MISC: u8 = 0x67;
const SEQUENCER: [u8; 5] = [3, 0x00, 0x03, 0x00, 0x02];
const CRTC: [u8; 25] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, 0x9c,
    0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
const GRAPHICS: [u8; 9] = [0, 0, 0, 0, 0, 0x10, 0x0e, 0x00, 0xff];
const ATTRIBUTE: [u8; 21] =
    [0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c, 0, 0x0f, 8, 0];
/// The attribute index that leaves the palette to the display.
const ON: u8 = 0x20;

/// The planes of a cell: a space, light grey on black.
const BLANK: u32 = 0x0720;
/// Characters that the text window holds.
const CELLS: u64 = 0x4000;
/// Bytes of a character in a font.
const GLYPH: u64 = 32;

impl Vga {
    /// Puts it into the text mode that a PC starts in: 80 by 25 characters, the sixteen colours, an empty
    /// screen and a font with the characters of code page 437, as far as the public-domain font of the crate
    /// `font8x8` has them.
    ///
    /// For a board without firmware: the video BIOS does this otherwise.
    pub fn start_text(&mut self) {
        self.port_write(0x3c2, MISC);
        let indexed = |vga: &mut Self, port: u16, values: &[u8]| {
            for (index, value) in (0..).zip(values) {
                vga.port_write(port, index);
                vga.port_write(port + 1, *value);
            }
        };
        indexed(self, 0x3c4, &SEQUENCER);
        indexed(self, 0x3d4, &[0; 0x12]); // takes write protection away
        indexed(self, 0x3d4, &CRTC);
        indexed(self, 0x3ce, &GRAPHICS);
        self.port_read(0x3da);
        for (index, value) in (0..).zip(ATTRIBUTE) {
            self.port_write(0x3c0, index);
            self.port_write(0x3c0, value);
        }
        self.port_write(0x3c0, ON);
        self.port_write(0x3c6, 0xff);
        self.port_write(0x3c8, 0);
        // Index bits: blue, green, red at two thirds of the intensity, and the same at one third.
        for index in 0..64u8 {
            for (strong, weak) in [(4, 0x20), (2, 0x10), (1, 0x08)] {
                let part = |bit: u8, value: u8| if index & bit != 0 { value } else { 0 };
                self.port_write(0x3c9, part(strong, 0x2a) + part(weak, 0x15));
            }
        }
        self.load_font();
        for cell in 0..CELLS {
            self.put_planes(2 * cell, 0x0000_ffff, BLANK);
        }
    }

    /// Loads the font: each line of a character of 8 by 8 dots twice.
    fn load_font(&mut self) {
        for code in 0..=255u8 {
            let shape = glyph(Cell { code, attribute: 0 }.character()).unwrap_or([0; 8]);
            for (line, bits) in (0..).zip(shape.into_iter().flat_map(|bits| [bits, bits])) {
                // The font's leftmost dot is its lowest bit.
                let bits = u32::from(bits.reverse_bits());
                self.put_planes(u64::from(code) * GLYPH + line, 0x00ff_0000, bits << 16);
            }
        }
    }

    /// Replaces the bits of `mask` in the word of four planes at an address.
    fn put_planes(&self, address: u64, mask: u32, value: u32) {
        let word = self.memory.read_u32(4 * address).unwrap_or(0);
        // The smallest memory has all addresses of text and fonts.
        let _ = self.memory.write_u32(4 * address, word & !mask | value);
    }
}

fn glyph(character: char) -> Option<[u8; 8]> {
    let fonts: [&dyn UnicodeFonts; 6] =
        [&BASIC_FONTS, &LATIN_FONTS, &BOX_FONTS, &BLOCK_FONTS, &GREEK_FONTS, &MISC_FONTS];
    fonts.iter().find_map(|font| font.get(character))
}
