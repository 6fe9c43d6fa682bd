//! Registers behind ports 0x3b0 to 0x3df.

use trapline_device::AccessSize::{Byte, Dword, Word};

use crate::bench::{Card, TEXT};

#[test]
fn registers_keep_the_bits_that_they_have() {
    let mut card = Card::in_mode(&TEXT);
    let sequencer = [0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0x00, 0x00, 0x00];
    for (index, mask) in (0..).zip(sequencer) {
        card.sequencer(index, 0xff);
        assert_eq!(card.read_indexed(0x3c4, index), mask, "sequencer {index}");
    }
    let graphics = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff, 0x00];
    for (index, mask) in (0..).zip(graphics) {
        card.graphics(index, 0xff);
        assert_eq!(card.read_indexed(0x3ce, index), mask, "graphics {index}");
    }
    for (index, mask) in [(0x00, 0x3f), (0x0f, 0x3f), (0x10, 0xef), (0x11, 0xff), (0x12, 0x3f), (0x13, 0x0f)]
    {
        card.attribute(index, 0xff);
        card.inb(0x3da);
        card.out(0x3c0, index | 0x20);
        assert_eq!(card.inb(0x3c1), mask, "attribute {index:#x}");
    }
    card.out(0x3c2, 0xff);
    assert_eq!(card.inb(0x3cc), 0xef);
    card.crtc(0x18, 0xa5);
    assert_eq!(card.read_indexed(0x3d4, 0x18), 0xa5);
    card.crtc(0x19, 0xa5);
    assert_eq!(card.read_indexed(0x3d4, 0x19), 0, "there are 25");
}

#[test]
fn index_ports_read_back() {
    let mut card = Card::in_mode(&TEXT);
    for (port, index) in [(0x3c4, 0x02), (0x3ce, 0x05), (0x3d4, 0x0e)] {
        card.out(port, index);
        assert_eq!(card.inb(port), index);
    }
    assert_eq!(card.bench.io_read(0x3d4, Word), 0x000e, "index and data");
}

#[test]
fn the_crtc_is_where_the_miscellaneous_output_register_says() {
    let mut card = Card::new();
    card.out(0x3c2, 0x00);
    card.indexed(0x3b4, 0x0c, 0x12);
    assert_eq!((card.inb(0x3b5), card.inb(0x3d5), card.inb(0x3da)), (0x12, 0xff, 0xff));
    card.indexed(0x3d4, 0x0c, 0x34);
    assert_eq!(card.inb(0x3b5), 0x12);
    card.out(0x3c2, 0x01);
    assert_eq!((card.inb(0x3b5), card.inb(0x3d5), card.inb(0x3ba)), (0xff, 0x12, 0xff));
}

#[test]
fn crtc_registers_0_to_7_are_protected() {
    let mut card = Card::in_mode(&TEXT);
    assert_eq!(card.read_indexed(0x3d4, 0x11) & 0x80, 0x80);
    card.crtc(0x00, 0x11);
    card.crtc(0x07, 0xff ^ 0x10);
    card.crtc(0x08, 0x11);
    assert_eq!(card.read_indexed(0x3d4, 0x00), 0x5f);
    assert_eq!(card.read_indexed(0x3d4, 0x07), 0x0f, "bit 4, line compare, is not protected");
    assert_eq!(card.read_indexed(0x3d4, 0x08), 0x11);
    card.crtc(0x11, 0x0e);
    card.crtc(0x00, 0x11);
    assert_eq!(card.read_indexed(0x3d4, 0x00), 0x11);
}

#[test]
fn index_and_data_of_the_attribute_controller_take_turns() {
    let mut card = Card::in_mode(&TEXT);
    card.inb(0x3da);
    card.out(0x3c0, 0x31);
    assert_eq!(card.inb(0x3c0), 0x31);
    card.out(0x3c0, 0x55); // data
    assert_eq!((card.inb(0x3c0), card.inb(0x3c1)), (0x31, 0x55));
    card.out(0x3c0, 0x32); // index again
    card.inb(0x3da); // and once more
    card.out(0x3c0, 0x31);
    assert_eq!(card.inb(0x3c1), 0x55);
}

#[test]
fn the_colour_table_is_written_and_read_in_threes() {
    let mut card = Card::in_mode(&TEXT);
    card.out(0x3c8, 0xff);
    for value in [0x3f, 0x80, 0xc1, 1, 2, 3] {
        card.out(0x3c9, value);
    }
    assert_eq!((card.inb(0x3c7), card.inb(0x3c8)), (0, 1), "writing, and the index went round");
    card.out(0x3c7, 0xff);
    assert_eq!(card.inb(0x3c7), 3, "reading");
    let values = [(); 6].map(|()| card.inb(0x3c9));
    assert_eq!(values, [0x3f, 0x00, 0x01, 1, 2, 3], "six bits each");

    // An entry changes when its blue is written.
    card.out(0x3c8, 7);
    card.out(0x3c9, 0x11);
    card.out(0x3c9, 0x11);
    card.out(0x3c7, 7);
    assert_eq!([(); 3].map(|()| card.inb(0x3c9)), [7, 14, 21]);
    card.out(0x3c6, 0x0f);
    assert_eq!(card.inb(0x3c6), 0x0f);
}

#[test]
fn a_string_of_colours_can_be_written() {
    let mut card = Card::new();
    card.out(0x3c8, 0);
    card.device().pio_write_block(&[1, 2, 3, 4, 5, 6]);
    card.out(0x3c7, 0);
    assert_eq!([(); 6].map(|()| card.inb(0x3c9)), [1, 2, 3, 4, 5, 6]);
}

/// REP OUTSB to port 0x3c9.
trait Block {
    fn pio_write_block(&mut self, data: &[u8]);
}

impl Block for trapline_display::Vga {
    fn pio_write_block(&mut self, data: &[u8]) {
        use trapline_device::{Device, PortIo};
        let ports: &mut dyn PortIo = self.pio().unwrap();
        ports.write_block(trapline_display::PORTS, 9, Byte, data);
    }
}

#[test]
fn feature_control_and_status_0() {
    let mut card = Card::in_mode(&TEXT);
    card.out(0x3da, 0xff);
    assert_eq!(card.inb(0x3ca), 0x0b);
    assert_eq!(card.inb(0x3c2) & 0x10, 0x10, "a colour monitor");
}

#[test]
fn ports_without_a_register_read_all_ones() {
    let mut card = Card::in_mode(&TEXT);
    for port in [0x3cb, 0x3cd, 0x3d0, 0x3d6, 0x3db, 0x3df] {
        card.out(port, 0x12);
        assert_eq!(card.inb(port), 0xff, "{port:#x}");
    }
    assert_eq!(card.bench.io_read(0x3c4, Dword) >> 24, 0x00, "0x3c7 is the colour table's state");
}

/// 28.322 MHz, 100 characters of 9 dots a line, 449 lines: 14.27 ms a frame.
const LINE: f64 = 900.0 / 28.322e6 * 1e9;

#[test]
fn status_1_follows_the_beam() {
    let mut card = Card::in_mode(&TEXT);
    let mut at = 0u64;
    let mut status = |line: f64| {
        let nanos = (line * LINE) as u64;
        card.clock.advance(nanos - at);
        at = nanos;
        card.inb(0x3da)
    };
    assert_eq!(status(0.1), 0, "in the first line");
    assert_eq!(status(0.9), 1, "horizontal retrace: 80 of 100 characters are seen");
    assert_eq!(status(399.5), 0, "the last line");
    assert_eq!(status(400.1), 1, "below it");
    assert_eq!(status(412.1), 9, "vertical retrace");
    assert_eq!(status(413.9), 9);
    assert_eq!(status(414.1), 1, "which takes two lines");
    assert_eq!(status(449.1), 0, "the next frame");
}

#[test]
fn retrace_comes_and_goes_whatever_is_programmed() {
    let wait = |card: &mut Card| {
        let mut seen = [false; 2];
        for _ in 0..2000 {
            card.clock.advance(16_000);
            seen[usize::from(card.inb(0x3da) & 8 != 0)] = true;
        }
        seen
    };
    let mut card = Card::new();
    card.out(0x3c2, 0x01);
    assert_eq!(wait(&mut card), [true; 2], "after reset");
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x11, 0);
    card.crtc(0x10, 0xff); // retrace after the end of the frame
    card.crtc(0x07, 0xff);
    assert_eq!(wait(&mut card), [true; 2]);
    card.vbe_mode(800, 600, 32);
    assert_eq!(wait(&mut card), [true; 2]);
}
