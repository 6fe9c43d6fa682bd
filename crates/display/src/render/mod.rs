//! From registers and memory to a picture.
//!
//! In the VGA's own modes the picture is what a monitor shows, without the border: each line that is
//! scanned, and as many dots as there would be at the full dot clock. So a 320 by 200 mode, whose dots and
//! lines are doubled, is 640 by 400. The largest is 4,608 by 2,048.

mod legacy;
mod linear;
mod rows;
mod text;

pub(crate) use rows::Rows;

use crate::frame::Frame;
use crate::registers::{Registers, Rgb};
use crate::vga::Vga;

/// Renders what `vga` shows.
pub(crate) fn render(vga: &Vga, frame: &mut Frame) {
    let (registers, mode) = (&vga.registers, vga.vbe.mode());
    match mode {
        Some(mode) => frame.start(mode.width, mode.height),
        None => {
            let width = registers.crtc.chars() * registers.sequencer.dots() as u32;
            let lines = registers.crtc.lines() << u32::from(registers.crtc.lines_doubled());
            frame.start(width << u32::from(registers.sequencer.half_clock()), lines);
        }
    }
    if !registers.blank() {
        let wide = vga.vbe.wide_dac();
        match mode {
            Some(mode) => linear::render(&vga.memory, registers, wide, mode, frame),
            None if registers.graphics.graphics_mode() => {
                legacy::render(&vga.memory, registers, wide, frame);
            }
            None => text::render(&vga.memory, registers, wide, vga.phase(), frame),
        }
    }
    frame.finish();
}

/// What the sixteen colours look like.
fn sixteen(registers: &Registers, wide: bool) -> [Rgb; 16] {
    let mut colour = 0;
    [(); 16].map(|()| {
        let rgb = registers.dac.colour(registers.attribute.colour(colour), wide);
        colour += 1;
        rgb
    })
}
