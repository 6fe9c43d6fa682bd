//! The VGA's own graphics modes: 2, 4, 16 and 256 colours.

use trapline_memory::DeviceMemory;

use super::{Rows, sixteen};
use crate::frame::Frame;
use crate::registers::{Registers, Rgb, ShiftMode};

/// Dots that are made of the four bytes that a character's time fetches.
const DOTS: usize = 8;

pub(super) fn render(memory: &DeviceMemory, registers: &Registers, wide: bool, frame: &mut Frame) {
    let Registers { crtc, sequencer, graphics, attribute, dac, .. } = registers;
    let shift_mode = graphics.shift_mode();
    let colours: Vec<Rgb> = match shift_mode {
        ShiftMode::Packed => dac.colours(wide).to_vec(),
        _ => sixteen(registers, wide).to_vec(),
    };
    let width = crtc.chars() as usize * sequencer.dots();
    let repeat = if sequencer.half_clock() { 2 } else { 1 };
    let lines = if crtc.lines_doubled() { 2 } else { 1 };
    // Nine dots a character are eight and a gap; the gap continues the last dot.
    let gap = sequencer.dots() - DOTS;
    let mut dots = Vec::with_capacity(width + 2 * DOTS);
    for line in Rows::new(crtc) {
        let panned = !(line.split && attribute.split_unpanned());
        let pan = if panned { attribute.panning(sequencer.dots()) } else { 0 };
        dots.clear();
        for char in 0..=crtc.chars() {
            let counter = line.counter + (char >> crtc.count_shift());
            let at = u64::from(crtc.address(counter, line.row_scan)) * 4;
            let eight = dots_of(memory.read_u32(at).unwrap_or(0), shift_mode);
            dots.extend_from_slice(&eight);
            dots.extend(eight.last().filter(|_| gap != 0));
        }
        for _ in 0..lines {
            for dot in dots.iter().skip(pan).take(width) {
                let colour = colours.get(usize::from(*dot)).copied().unwrap_or_default();
                (0..repeat).for_each(|_| frame.push(colour));
            }
        }
    }
}

/// The dots that four bytes make.
fn dots_of(word: u32, mode: ShiftMode) -> [u8; DOTS] {
    let planes = word.to_le_bytes();
    let mut dots = [0; DOTS];
    for (x, dot) in dots.iter_mut().enumerate() {
        let [p0, p1, p2, p3] = planes;
        *dot = match mode {
            ShiftMode::Planar => {
                let bit = |plane: u8| plane >> (7 - x) & 1;
                bit(p0) | bit(p1) << 1 | bit(p2) << 2 | bit(p3) << 3
            }
            ShiftMode::Interleaved => {
                let (low, high) = if x < 4 { (p0, p2) } else { (p1, p3) };
                let bits = |plane: u8| plane >> (6 - 2 * (x % 4)) & 3;
                bits(low) | bits(high) << 2
            }
            // Each takes two dots' time.
            ShiftMode::Packed => planes.into_iter().nth(x / 2).unwrap_or(0),
        };
    }
    dots
}
