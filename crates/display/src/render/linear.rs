//! The modes of the VBE extensions.

use trapline_memory::DeviceMemory;

use super::sixteen;
use crate::frame::Frame;
use crate::registers::Registers;
use crate::vbe::Mode;

pub(super) fn render(
    memory: &DeviceMemory,
    registers: &Registers,
    wide: bool,
    mode: Mode,
    frame: &mut Frame,
) {
    let width = mode.width as usize;
    let planes = if mode.bpp == 4 { 4 } else { 1 };
    let bytes = match mode.bpp {
        // A byte of each plane for eight dots.
        4 => width / 8 * planes,
        8 => width,
        15 | 16 => width * 2,
        24 => width * 3,
        _ => width * 4,
    };
    let (sixteen, colours) = (sixteen(registers, wide), registers.dac.colours(wide));
    let of = |colours: &[[u8; 3]], index: u8| colours.get(usize::from(index)).copied().unwrap_or_default();
    let mut line = vec![0; bytes];
    for y in 0..mode.height {
        let at = u64::from(mode.start) + u64::from(y) * u64::from(mode.pitch);
        if memory.read(at * planes as u64, &mut line).is_none() {
            break;
        }
        match mode.bpp {
            4 => frame.push_bytes(line.chunks_exact(4).flat_map(|word| {
                (0..8).rev().flat_map(move |bit| {
                    let index = word.iter().rev().fold(0, |index, plane| index << 1 | plane >> bit & 1);
                    of(&sixteen, index)
                })
            })),
            8 => frame.push_bytes(line.iter().flat_map(|index| of(&colours, *index))),
            15 => frame.push_bytes(words(&line).flat_map(|dot| [five(dot >> 10), five(dot >> 5), five(dot)])),
            16 => frame.push_bytes(words(&line).flat_map(|dot| {
                let green = (dot >> 5 & 0x3f) as u8;
                [five(dot >> 11), green << 2 | green >> 4, five(dot)]
            })),
            // Blue comes first.
            24 => frame.push_bytes(line.chunks_exact(3).flat_map(|dot| dot.iter().rev().copied())),
            _ => frame.push_bytes(line.chunks_exact(4).flat_map(|dot| dot.iter().rev().skip(1).copied())),
        }
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = u16> + '_ {
    line.chunks_exact(2).map(|word| word.iter().rev().fold(0, |value, byte| value << 8 | u16::from(*byte)))
}

/// The lowest five bits as eight.
fn five(value: u16) -> u8 {
    let value = (value & 0x1f) as u8;
    value << 3 | value >> 2
}
