//! Text screens: what they say, and what they look like.

use trapline_display::{Cell, Damage};

use crate::bench::{Card, PACKED, TEXT, colour};

/// Loads a glyph of 16 lines into font `font` of plane 2, as a video BIOS does.
fn load(card: &mut Card, font: u64, code: u8, glyph: [u8; 16]) {
    for (index, value) in [(2, 4), (4, 7)] {
        card.sequencer(index, value);
    }
    for (index, value) in [(4, 2), (5, 0), (6, 4)] {
        card.graphics(index, value);
    }
    for (line, bits) in (0..).zip(glyph) {
        card.poke(0xa_0000 + font + u64::from(code) * 32 + line, bits);
    }
    for (index, value) in [(2, 3), (4, 2)] {
        card.sequencer(index, value);
    }
    for (index, value) in [(4, 0), (5, 0x10), (6, 0x0e)] {
        card.graphics(index, value);
    }
}

/// A character's dots in a frame, `wide` each: true where they are not black.
fn dots(card: &Card, column: u32, row: u32, wide: u32) -> Vec<String> {
    let frame = card.frame();
    let line =
        |y| (0..wide).map(|x| frame.pixel(column * wide + x, y).unwrap() != [0; 3]).collect::<Vec<_>>();
    let text = |line: Vec<bool>| line.into_iter().map(|dot| if dot { '#' } else { '.' }).collect();
    (row * 16..row * 16 + 16).map(line).map(text).collect()
}

#[test]
fn the_screen_reads_as_text() {
    let mut card = Card::in_mode(&TEXT);
    card.print(3, 0, 0x1f, "Hello, world");
    card.print(79, 24, 7, "!");
    let screen = card.device().text().unwrap();
    assert_eq!((screen.columns(), screen.rows().len()), (80, 25));
    let lines: Vec<String> = screen.lines().collect();
    assert_eq!(lines[0], "   Hello, world");
    assert_eq!(lines[24].chars().count(), 80);
    assert!(screen.contains("Hello") && !screen.contains("hello"));
    assert_eq!(screen.cell(3, 0), Some(Cell { code: b'H', attribute: 0x1f }));
    assert_eq!((screen.cell(80, 0), screen.cell(0, 25)), (None, None));
    assert_eq!(screen.to_string().lines().count(), 25);
}

#[test]
fn the_pc_font_has_all_its_characters() {
    let character = |code| Cell { code, attribute: 7 }.character();
    assert_eq!(
        [0x00, 0x01, 0x1f, 0x41, 0x7f, 0x80, 0xb3, 0xc4, 0xdb, 0xfe, 0xff].map(character),
        [' ', '☺', '▼', 'A', '⌂', 'Ç', '│', '─', '█', '■', '\u{a0}']
    );
}

#[test]
fn the_cursor_is_where_the_crtc_says() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0e, 0);
    card.crtc(0x0f, 80 + 5);
    assert_eq!(card.device().text().unwrap().cursor(), Some((5, 1)));
    card.crtc(0x0a, 0x20);
    assert_eq!(card.device().text().unwrap().cursor(), None, "switched off");
    card.crtc(0x0a, 0x0f);
    card.crtc(0x0b, 0x0e);
    assert_eq!(card.device().text().unwrap().cursor(), None, "ends before it starts");
    card.crtc(0x0b, 0x0f);
    card.crtc(0x0e, 0x20);
    assert_eq!(card.device().text().unwrap().cursor(), None, "elsewhere");
}

#[test]
fn the_start_address_scrolls() {
    let mut card = Card::in_mode(&TEXT);
    card.print(0, 2, 7, "third");
    card.crtc(0x0d, 160);
    let screen = card.device().text().unwrap();
    assert_eq!(screen.lines().next().unwrap(), "third");
}

#[test]
fn below_the_line_compare_the_screen_starts_again() {
    let mut card = Card::in_mode(&TEXT);
    card.print(0, 0, 7, "status");
    card.print(0, 1, 7, "text");
    card.crtc(0x0d, 80);
    // After line 383 = 24 rows of 16 lines.
    card.crtc(0x18, (383 & 0xff) as u8);
    card.crtc(0x09, 0x0f);
    let lines: Vec<String> = card.device().text().unwrap().lines().collect();
    assert_eq!((lines.len(), lines[0].as_str(), lines[24].as_str()), (25, "text", "status"));
}

#[test]
fn a_graphics_mode_has_no_text() {
    let mut card = Card::in_mode(&TEXT);
    assert!(card.device().text().is_some());
    card.set_mode(&PACKED);
    assert!(card.device().text().is_none());
    card.set_mode(&TEXT);
    card.vbe_mode(640, 480, 32);
    assert!(card.device().text().is_none());
}

/// An L, and its rightmost dot set in one line.
const GLYPH: [u8; 16] = [0x80, 0x80, 0x80, 0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01];

#[test]
fn characters_are_drawn_with_the_loaded_font() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20); // no cursor
    load(&mut card, 0, b'L', GLYPH);
    load(&mut card, 0, 0xc4, GLYPH);
    card.print(1, 1, 0x07, "L");
    assert_eq!((card.frame().width(), card.frame().height()), (720, 400));
    let shape = dots(&card, 1, 1, 9);
    assert_eq!(
        (shape[0].as_str(), shape[4].as_str(), shape[5].as_str(), shape[15].as_str()),
        ("#........", "########.", ".........", ".......#.")
    );

    // Characters that draw lines have their eighth dot repeated.
    card.poke(0xb_8000 + 2 * 81, 0xc4);
    assert_eq!(dots(&card, 1, 1, 9)[4], "#########");
    card.attribute(0x10, 0x08);
    assert_eq!(dots(&card, 1, 1, 9)[4], "########.");
    // Characters of eight dots.
    card.sequencer(1, 1);
    assert_eq!(card.frame().width(), 640);
    assert_eq!(dots(&card, 1, 1, 8)[4], "########");
}

#[test]
fn colours_go_through_palette_and_colour_table() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20);
    load(&mut card, 0, b'L', GLYPH);
    card.print(0, 0, 0x4e, "L");
    let frame = card.frame();
    assert_eq!((frame.pixel(0, 0), frame.pixel(1, 0)), (Some(colour(0x3e)), Some(colour(0x04))));
    // Colour select gives the upper bits of the index.
    card.attribute(0x14, 0x04);
    assert_eq!(card.frame().pixel(1, 0), Some(colour(0x44)));
    card.attribute(0x10, 0x8c);
    card.attribute(0x14, 0x09);
    assert_eq!(card.frame().pixel(0, 0), Some(colour(0x9e)));
    // Plane enable takes bits away, the colour table's mask others.
    card.attribute(0x12, 0x06);
    assert_eq!(card.frame().pixel(0, 0), Some(colour(0x94)), "palette register 6 is 0x14");
    card.out(0x3c6, 0x0f);
    assert_eq!(card.frame().pixel(0, 0), Some(colour(0x04)));
}

/// Eight frames of 449 lines.
const EIGHT_FRAMES: u64 = 8 * 449 * 900 * 1_000_000_000 / 28_322_000;

#[test]
fn attribute_bit_7_blinks_or_brightens() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20);
    load(&mut card, 0, b'L', GLYPH);
    card.print(0, 0, 0x87, "L");
    let seen: Vec<bool> = (0..8)
        .map(|_| {
            let seen = card.frame().pixel(0, 0) == Some(colour(7));
            card.clock.advance(EIGHT_FRAMES + 1000);
            seen
        })
        .collect();
    assert_eq!(seen, [true, true, false, false, true, true, false, false]);
    card.attribute(0x10, 0x04);
    assert_eq!(card.frame().pixel(1, 0), Some(colour(0x38)), "bright black is the background");
}

#[test]
fn the_cursor_blinks_twice_as_fast() {
    let mut card = Card::in_mode(&TEXT);
    card.print(0, 0, 0x07, " ");
    card.crtc(0x0a, 13);
    card.crtc(0x0b, 14);
    assert_eq!(dots(&card, 0, 0, 9)[12..], [".........", "#########", "#########", "........."]);
    card.clock.advance(EIGHT_FRAMES + 1000);
    assert_eq!(dots(&card, 0, 0, 9)[13], ".........");
    card.clock.advance(EIGHT_FRAMES + 1000);
    assert_eq!(dots(&card, 0, 0, 9)[13], "#########");
}

#[test]
fn attribute_1_is_underlined_where_the_crtc_has_an_underline() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20);
    card.print(0, 0, 0x01, " ");
    card.print(1, 0, 0x09, " ");
    card.print(2, 0, 0x02, " ");
    card.crtc(0x14, 12);
    let line = |column| dots(&card, column, 0, 9)[12].clone();
    assert_eq!([line(0), line(1), line(2)], ["#########", "#########", "........."]);
    card.crtc(0x14, 0x1f);
    assert_eq!(dots(&card, 0, 0, 9)[12], ".........");
}

#[test]
fn attribute_bit_3_chooses_the_font() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20);
    // Fonts 1 and 5 of 8.
    load(&mut card, 0x4000, b'L', GLYPH);
    load(&mut card, 0x6000, b'L', [0xff; 16]);
    card.sequencer(3, 0x01 | 0x20 | 0x04);
    card.print(0, 0, 0x07, "L");
    card.print(1, 0, 0x0f, "L");
    assert_eq!(
        (dots(&card, 0, 0, 9)[0].as_str(), dots(&card, 1, 0, 9)[0].as_str()),
        ("#........", "########.")
    );
}

#[test]
fn text_of_40_columns_has_dots_twice_as_wide() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20);
    load(&mut card, 0, b'L', GLYPH);
    card.crtc(0x11, 0);
    for (index, value) in [(0x00, 0x2d), (0x01, 0x27), (0x13, 0x14)] {
        card.crtc(index, value);
    }
    card.sequencer(1, 0x08);
    card.print(0, 0, 0x07, "L");
    let frame = card.frame();
    assert_eq!((frame.width(), card.device().text().unwrap().columns()), (720, 40));
    let seen = (0..4).map(|x| frame.pixel(x, 0).unwrap() != [0; 3]).collect::<Vec<_>>();
    assert_eq!(seen, [true, true, false, false]);
}

#[test]
fn panning_moves_the_picture_by_dots() {
    let mut card = Card::in_mode(&TEXT);
    card.crtc(0x0a, 0x20);
    load(&mut card, 0, b'L', GLYPH);
    card.print(1, 0, 0x07, "L");
    let left_edge = |card: &Card| (0..20).find(|x| card.frame().pixel(*x, 0).unwrap() != [0; 3]);
    assert_eq!(left_edge(&card), Some(9), "8: not at all");
    card.attribute(0x13, 0);
    assert_eq!(left_edge(&card), Some(8));
    card.attribute(0x13, 7);
    assert_eq!(left_edge(&card), Some(1));
    card.crtc(0x08, 0x21); // and by a character, and a line
    card.attribute(0x13, 8);
    assert_eq!(left_edge(&card), Some(0));
    assert_eq!(card.frame().pixel(1, 3), card.frame().pixel(0, 3), "the fifth line of the L is its foot");
}

#[test]
fn a_blank_screen_is_black() {
    let mut card = Card::in_mode(&TEXT);
    card.print(0, 0, 0x70, "    ");
    let black = |card: &Card| card.frame().pixels().iter().all(|byte| *byte == 0);
    assert!(!black(&card));
    card.sequencer(1, 0x20);
    assert!(black(&card), "screen off");
    card.sequencer(1, 0);
    card.inb(0x3da);
    card.out(0x3c0, 0x00);
    assert!(black(&card), "the palette is the processor's");
    assert_eq!(card.frame().pixels().len(), 720 * 400 * 3);
    assert!(card.device().text().unwrap().rows().next().unwrap()[0].attribute == 0x70, "it can be read");
}

#[test]
fn damage_is_what_was_written_and_what_blinks() {
    let mut card = Card::in_mode(&TEXT);
    assert_eq!(card.device().take_damage(), Damage::All);
    assert_eq!(card.device().take_damage(), Damage::None);
    card.print(0, 0, 7, "x");
    assert_eq!(card.device().take_damage(), Damage::All);
    card.set_colour(1, [1, 1, 1]);
    assert_eq!(card.device().take_damage(), Damage::All);
    card.clock.advance(EIGHT_FRAMES + 1000);
    assert_eq!(card.device().take_damage(), Damage::All, "the cursor");
    assert_eq!(card.device().take_damage(), Damage::None);
}

#[test]
fn a_board_without_firmware_starts_it_in_text_mode() {
    let mut card = Card::in_mode(&PACKED);
    card.device().start_text();
    card.print(0, 0, 0x1e, "Ab");
    card.poke(0xb_8000 + 4, 0xdb); // a full block
    let screen = card.device().text().unwrap();
    assert_eq!((screen.columns(), screen.rows().len(), screen.cursor()), (80, 25, Some((0, 0))));
    assert_eq!(screen.lines().next().unwrap(), "Ab█");
    let frame = card.frame();
    let colours: Vec<_> = (0..9).map(|x| frame.pixel(9 + x, 2).unwrap()).collect();
    assert!(colours.contains(&[0xff, 0xff, 0x55]) && colours.contains(&[0, 0, 0xaa]), "{colours:?}");
    let block: Vec<_> = (0..16).map(|y| frame.pixel(2 * 9 + y % 8, y).unwrap()).collect();
    assert_eq!(block, [[0xaa; 3]; 16]);
    assert_eq!(frame.pixel(719, 399), Some([0; 3]));
    // And as often as it is reset.
    card.device().start_text();
    assert_eq!(card.device().text().unwrap().lines().next().unwrap(), "");
}
