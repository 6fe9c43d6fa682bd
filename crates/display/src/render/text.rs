//! Text modes, with the fonts that the guest has loaded.

use trapline_memory::DeviceMemory;

use super::{Rows, sixteen};
use crate::frame::Frame;
use crate::registers::Registers;
use crate::timing::Phase;

/// Bytes of a character in a font.
const GLYPH: u32 = 32;
/// Attribute: the character blinks, or its background is bright.
const BLINK: u8 = 0x80;
/// Attribute: the second font.
const FONT: u8 = 0x08;

pub(super) fn render(
    memory: &DeviceMemory,
    registers: &Registers,
    wide: bool,
    phase: Phase,
    frame: &mut Frame,
) {
    let Registers { crtc, sequencer, attribute, .. } = registers;
    let colours = sixteen(registers, wide);
    let (dots, fonts) = (sequencer.dots(), sequencer.fonts());
    let width = crtc.chars() as usize * dots;
    let repeat = if sequencer.half_clock() { 2 } else { 1 };
    let lines = if crtc.lines_doubled() { 2 } else { 1 };
    let cursor = crtc.cursor_lines().filter(|_| phase.cursor);
    let mut line_dots: Vec<u8> = Vec::with_capacity(width + 2 * dots);
    for line in Rows::new(crtc) {
        let panned = !(line.split && attribute.split_unpanned());
        let pan = if panned { attribute.panning(dots) } else { 0 };
        let in_cursor = cursor.is_some_and(|(first, last)| (first..=last).contains(&line.row_scan));
        line_dots.clear();
        for char in 0..=crtc.chars() {
            let counter = line.counter + (char >> crtc.count_shift());
            let at = u64::from(crtc.address(counter, line.row_scan)) * 4;
            let [code, attributes, ..] = memory.read_u32(at).unwrap_or(0).to_le_bytes();
            let font = if attributes & FONT == 0 { fonts[0] } else { fonts[1] };
            let glyph = font + u32::from(code) * GLYPH + line.row_scan;
            let [_, _, bits, _] = memory.read_u32(u64::from(glyph & 0xffff) * 4).unwrap_or(0).to_le_bytes();

            let mut shape = u16::from(bits) << 1;
            if attribute.line_graphics() && (0xc0..=0xdf).contains(&code) {
                shape |= u16::from(bits & 1);
            }
            let (ink, mut paper) = (attributes & 0xf, attributes >> 4);
            if attribute.blink() {
                paper &= 7;
                if attributes & BLINK != 0 && !phase.text {
                    shape = 0;
                }
            }
            // Blue on black is how a monochrome adapter says underlined.
            let underlined = attributes & 0x77 == 1 && line.row_scan == crtc.underline();
            if underlined || in_cursor && counter == crtc.cursor() {
                shape = 0x1ff;
            }
            line_dots.extend((0..dots).map(|x| if shape >> (8 - x) & 1 != 0 { ink } else { paper }));
        }
        for _ in 0..lines {
            for dot in line_dots.iter().skip(pan).take(width) {
                let colour = colours.get(usize::from(*dot)).copied().unwrap_or_default();
                (0..repeat).for_each(|_| frame.push(colour));
            }
        }
    }
}
