//! The VGA's own graphics modes.

use trapline_device::AccessSize::Word;

use crate::bench::{CGA_FOUR, CGA_TWO, Card, EGA, Mode, PACKED, PLANAR, TEXT, WINDOW, colour};

/// Checks that each dot of a mode's picture, found at every `step`s, is where `place` says.
fn dots(card: &Card, (width, height): (u32, u32), step: (u32, u32), expected: impl Fn(u32, u32) -> u8) {
    let frame = card.frame();
    assert_eq!((frame.width(), frame.height()), (width * step.0, height * step.1));
    for y in 0..height * step.1 {
        for x in 0..width * step.0 {
            let (dot_x, dot_y) = (x / step.0, y / step.1);
            assert_eq!(frame.pixel(x, y), Some(colour(expected(dot_x, dot_y))), "{dot_x}, {dot_y}");
        }
    }
}

/// A pattern of `colours` colours without symmetry.
fn pattern(colours: u32) -> impl Fn(u32, u32) -> u8 {
    move |x, y| ((x * 7 + y * 13 + x * y / 5) % colours) as u8
}

#[test]
fn mode_13_shows_256_colours() {
    let mut card = Card::in_mode(&PACKED);
    let pattern = pattern(256);
    for y in 0..200 {
        for x in 0..320 {
            card.poke(WINDOW + u64::from(y * 320 + x), pattern(x, y));
        }
    }
    dots(&card, (320, 200), (2, 2), pattern);
}

#[test]
fn mode_x_is_mode_13_unchained() {
    let mut card = Card::in_mode(&PACKED);
    card.sequencer(4, 0x06);
    card.crtc(0x14, 0x00);
    card.crtc(0x17, 0xe3);
    let pattern = pattern(256);
    for plane in 0..4 {
        card.sequencer(2, 1 << plane);
        for y in 0..200 {
            for x in (plane..320).step_by(4) {
                card.poke(WINDOW + u64::from(y * 80 + x / 4), pattern(x, y));
            }
        }
    }
    dots(&card, (320, 200), (2, 2), &pattern);
    // The second page, 16,000 addresses further, is empty.
    card.crtc(0x0c, 0x3e);
    card.crtc(0x0d, 0x80);
    dots(&card, (320, 200), (2, 2), |_, _| 0);
    // Panned by two dots and an address: in 256 colours a dot takes two.
    card.crtc(0x0c, 0);
    card.crtc(0x0d, 1);
    card.attribute(0x13, 4);
    assert_eq!(card.frame().pixel(0, 0), Some(colour(pattern(6, 0))));
}

fn planar(mode: &Mode, (width, height): (u32, u32), step: (u32, u32)) {
    let mut card = Card::in_mode(mode);
    let pattern = pattern(16);
    for y in 0..height {
        for x in (0..width).step_by(8) {
            for plane in 0..4 {
                let byte = (x..x + 8).fold(0, |byte, x| byte << 1 | pattern(x, y) >> plane & 1);
                card.sequencer(2, 1 << plane);
                card.poke(WINDOW + u64::from((y * width + x) / 8), byte);
            }
        }
    }
    dots(&card, (width, height), step, pattern);
}

#[test]
fn mode_d_shows_16_colours() {
    planar(&EGA, (320, 200), (2, 2));
}

#[test]
fn mode_12_shows_16_colours() {
    planar(&PLANAR, (640, 480), (1, 1));
}

#[test]
fn mode_4_shows_four_colours_in_interleaved_lines() {
    let mut card = Card::in_mode(&CGA_FOUR);
    let pattern = pattern(4);
    for y in 0..200 {
        for x in (0..320).step_by(4) {
            let byte = (x..x + 4).fold(0, |byte, x| byte << 2 | pattern(x, y));
            card.poke(0xb_8000 + u64::from(y % 2 * 0x2000 + y / 2 * 80 + x / 4), byte);
        }
    }
    dots(&card, (320, 200), (2, 2), pattern);
}

#[test]
fn mode_6_shows_two_colours_in_interleaved_lines() {
    let mut card = Card::in_mode(&CGA_TWO);
    let pattern = pattern(2);
    for y in 0..200 {
        for x in (0..640).step_by(8) {
            let byte = (x..x + 8).fold(0, |byte, x| byte << 1 | pattern(x, y));
            card.poke(0xb_8000 + u64::from(y % 2 * 0x2000 + y / 2 * 80 + x / 8), byte);
        }
    }
    dots(&card, (640, 200), (1, 2), pattern);
}

#[test]
fn hercules_lines_are_interleaved_by_four() {
    // Bits 0 and 1 of the line's number in its row are address bits 13 and 14.
    let mut card = Card::in_mode(&CGA_TWO);
    card.crtc(0x09, 0x43);
    card.crtc(0x17, 0xc0);
    for scan in 0..4 {
        card.poke(0xb_8000 + scan * 0x2000, 0x80 >> scan);
    }
    let frame = card.frame();
    let first = |y| (0..8).find(|x| frame.pixel(*x, y) == Some(colour(1)));
    assert_eq!([0, 1, 2, 3, 4].map(first), [Some(0), Some(1), Some(2), Some(3), None]);
}

#[test]
fn the_screen_splits_and_the_lower_part_is_not_panned() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW, 0x80); // the first dot of the memory
    card.poke(WINDOW + 0x1000, 0x01); // the eighth of where the screen starts
    card.crtc(0x0c, 0x10);
    card.attribute(0x13, 3);
    card.crtc(0x18, 99);
    card.crtc(0x07, 0x3e & !0x10);
    card.crtc(0x09, 0x00);
    let find = |card: &Card, y| (0..8).find(|x| card.frame().pixel(*x, y) == Some(colour(15)));
    assert_eq!((find(&card, 0), find(&card, 99), find(&card, 100)), (Some(4), None, None));
    card.attribute(0x10, 0x21);
    assert_eq!((find(&card, 0), find(&card, 100)), (Some(4), Some(0)));
}

#[test]
fn addresses_go_round_after_64_kib() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW + 9, 0xff);
    card.crtc(0x0c, 0xff);
    card.crtc(0x0d, 0xff);
    assert_eq!(card.frame().pixel(80, 0), Some(colour(15)));
}

#[test]
fn the_largest_picture_has_an_end() {
    let mut card = Card::in_mode(&TEXT);
    for index in 0..=0x18 {
        card.crtc(0x11, 0);
        card.crtc(index, 0xff);
    }
    for misc in [0x0e, 0x0f] {
        card.graphics(6, misc);
        card.sequencer(1, 0x08);
        let frame = card.frame();
        assert_eq!((frame.width(), frame.height()), (256 * 9 * 2, 1024 * 2));
        assert_eq!(frame.pixels().len(), 4608 * 2048 * 3);
    }
}

#[test]
fn a_frame_is_a_png_file() {
    let mut card = Card::in_mode(&PACKED);
    card.write(WINDOW, Word, 0x0201);
    let frame = card.frame();
    let mut file = Vec::new();
    frame.write_png(&mut file).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (640, 400, png::ColorType::Rgb));
    assert_eq!(pixels, frame.pixels());
    assert_eq!(pixels[..3], colour(1));
    assert!(trapline_display::Frame::default().write_png(Vec::new()).is_err(), "no picture");
}
