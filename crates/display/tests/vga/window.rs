//! The memory window: read and write modes, latches, addressing.

use trapline_device::AccessSize::{Byte, Dword, Qword, Word};

use crate::bench::{CGA_FOUR, Card, EGA, PACKED, PLANAR, TEXT, WINDOW};

#[test]
fn the_window_is_where_the_graphics_controller_says() {
    // Memory map select, and where the window is: 128 KiB, 64 KiB, 32 KiB at 0xb0000, 32 KiB at 0xb8000.
    for (select, start, len) in
        [(0, 0, 0x2_0000), (1, 0, 0x1_0000), (2, 0x1_0000, 0x8000), (3, 0x1_8000, 0x8000)]
    {
        let mut card = Card::in_mode(&PLANAR);
        card.graphics(6, select << 2 | 1);
        for offset in (0..0x2_0000).step_by(0x800) {
            let inside = (start..start + len).contains(&offset);
            card.poke(WINDOW + offset, 0x5a);
            assert_eq!(card.peek(WINDOW + offset) == 0x5a, inside, "{select}: {offset:#x}");
        }
    }
}

#[test]
fn without_the_ram_enable_bit_there_is_nothing() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW, 0x12);
    card.out(0x3c2, 0xe1);
    card.poke(WINDOW, 0x34);
    assert_eq!(card.peek(WINDOW), 0xff);
    card.out(0x3c2, 0xe3);
    assert_eq!(card.peek(WINDOW), 0x12);
}

#[test]
fn the_map_mask_chooses_the_planes_that_are_written() {
    let mut card = Card::in_mode(&PLANAR);
    for (mask, value) in [(0xf, 0x11), (0x4, 0x22), (0x9, 0x33)] {
        card.sequencer(2, mask);
        card.poke(WINDOW + 5, value);
    }
    assert_eq!(card.planes(5), [0x33, 0x11, 0x22, 0x33]);
    for (plane, value) in [(0, 0x33), (1, 0x11), (2, 0x22), (3, 0x33)] {
        card.graphics(4, plane);
        assert_eq!(card.peek(WINDOW + 5), value, "read map select {plane}");
    }
}

#[test]
fn write_mode_0_takes_set_reset_for_the_planes_that_it_is_enabled_for() {
    let mut card = Card::in_mode(&PLANAR);
    card.graphics(0, 0b0010); // set plane 1, reset the others
    card.graphics(1, 0b0011); // for planes 0 and 1
    card.poke(WINDOW, 0x55);
    assert_eq!(card.planes(0), [0x00, 0xff, 0x55, 0x55]);
}

#[test]
fn write_mode_0_rotates_combines_and_masks() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW, 0b1111_0000);
    // Function: replace, and, or, exclusive-or; all after a rotation by 3.
    for (function, expected) in [(0, 0b1010_0001), (1, 0b1010_0000), (2, 0b1111_0001), (3, 0b0101_0001)] {
        card.graphics(3, function << 3 | 3);
        card.peek(WINDOW); // latches
        card.poke(WINDOW + 1, 0b0000_1101);
        assert_eq!(card.planes(1), [expected; 4], "function {function}");
    }
    card.graphics(3, 0);
    card.graphics(8, 0b0011_1100);
    card.peek(WINDOW);
    card.poke(WINDOW + 2, 0b0101_0101);
    assert_eq!(card.planes(2), [0b1101_0100; 4], "outside of the bit mask the latches are written");
}

#[test]
fn write_mode_1_copies_all_planes_at_once() {
    let mut card = Card::in_mode(&PLANAR);
    for plane in 0..4 {
        card.sequencer(2, 1 << plane);
        card.poke(WINDOW + 7, 0x10 + plane);
    }
    card.sequencer(2, 0xf);
    card.graphics(5, 1);
    card.peek(WINDOW + 7);
    card.poke(WINDOW + 9, 0xff);
    assert_eq!(card.planes(9), [0x10, 0x11, 0x12, 0x13]);
}

#[test]
fn write_mode_2_writes_a_colour() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW, 0xff);
    card.graphics(5, 2);
    card.graphics(8, 0x0f);
    card.peek(WINDOW);
    card.poke(WINDOW, 0b0101);
    assert_eq!(card.planes(0), [0xff, 0xf0, 0xff, 0xf0]);
}

#[test]
fn write_mode_3_masks_set_reset_with_the_data() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW, 0x00);
    card.graphics(0, 0b1001);
    card.graphics(5, 3);
    card.graphics(8, 0x3f);
    card.graphics(3, 1); // rotate by one
    card.peek(WINDOW);
    card.poke(WINDOW, 0b0101_0101);
    // Rotated: 1010_1010; and the bit mask: 0010_1010.
    assert_eq!(card.planes(0), [0x2a, 0, 0, 0x2a]);
}

#[test]
fn read_mode_1_compares_colours() {
    let mut card = Card::in_mode(&PLANAR);
    for (plane, bits) in [(0, 0b1100_1100), (1, 0b1111_0000), (2, 0), (3, 0b1010_1010)] {
        card.sequencer(2, 1 << plane);
        card.poke(WINDOW, bits);
    }
    card.graphics(5, 8);
    card.graphics(2, 0b0011);
    card.graphics(7, 0b0111);
    assert_eq!(card.peek(WINDOW), 0b1100_0000, "colours x011");
    card.graphics(7, 0b1111);
    assert_eq!(card.peek(WINDOW), 0b0100_0000, "colour 0011");
    card.graphics(7, 0);
    assert_eq!(card.peek(WINDOW), 0xff, "no plane is looked at");
}

#[test]
fn text_is_in_even_and_odd_planes() {
    let mut card = Card::in_mode(&TEXT);
    card.write(0xb_8000, Word, 0x0741);
    card.write(0xb_8002, Dword, 0x1f43_1f42);
    assert_eq!(
        (card.planes(0), card.planes(2), card.planes(4)),
        ([0x41, 7, 0, 0], [0x42, 0x1f, 0, 0], [0x43, 0x1f, 0, 0])
    );
    assert_eq!(card.planes(1), [0; 4], "bit 0 chooses the plane, not the address");
    assert_eq!(card.bench.memory_read(0xb_8000, Qword), 0x0000_1f43_1f42_0741);
}

#[test]
fn odd_and_even_planes_take_128_kib_together() {
    let mut card = Card::in_mode(&TEXT);
    card.graphics(6, 0x02); // 0xa0000 to 0xbffff
    card.write(WINDOW, Word, 0x2211);
    card.write(WINDOW + 0x1_0000, Word, 0x4433);
    assert_eq!((card.planes(0), card.planes(1)), ([0x11, 0x22, 0, 0], [0x33, 0x44, 0, 0]));
    assert_eq!(card.bench.memory_read(WINDOW + 0x1_0000, Word), 0x4433);
}

#[test]
fn fonts_are_loaded_into_plane_2_as_video_bioses_do() {
    let mut card = Card::in_mode(&TEXT);
    card.print(0, 0, 7, "A");
    for (index, value) in [(2, 4), (4, 7)] {
        card.sequencer(index, value);
    }
    for (index, value) in [(4, 2), (5, 0), (6, 4)] {
        card.graphics(index, value);
    }
    card.poke(WINDOW + 0x41 * 32, 0x18);
    assert_eq!(card.peek(WINDOW + 0x41 * 32), 0x18);
    assert_eq!(card.planes(0x41 * 32), [0, 0, 0x18, 0]);
    assert_eq!(card.planes(0), [0x41, 7, 0, 0], "the text is still there");
}

#[test]
fn chain_4_spreads_bytes_over_the_planes() {
    let mut card = Card::in_mode(&PACKED);
    card.write(WINDOW, Dword, 0x4433_2211);
    card.poke(WINDOW + 0x4005, 0x55);
    assert_eq!(card.planes(0), [0x11, 0x22, 0x33, 0x44]);
    // Copies of address bits 15:14 take the place of those that choose the plane.
    assert_eq!(card.planes(0x4004 | 1), [0, 0x55, 0, 0]);
    assert_eq!(card.bench.memory_read(WINDOW, Dword), 0x4433_2211);
    assert_eq!(card.peek(WINDOW + 0x4005), 0x55);
    card.sequencer(2, 0b0001);
    card.write(WINDOW, Dword, 0xffff_ffff);
    assert_eq!(card.planes(0), [0xff, 0x22, 0x33, 0x44], "the map mask holds");
}

#[test]
fn every_byte_of_a_64_kib_window_is_its_own() {
    for mode in [&PACKED, &PLANAR, &EGA] {
        let mut card = Card::in_mode(mode);
        for offset in (0..0x1_0000u64).step_by(8) {
            card.write(WINDOW + offset, Qword, offset.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        for offset in (0..0x1_0000u64).step_by(8) {
            let value = card.bench.memory_read(WINDOW + offset, Qword);
            assert_eq!(value, offset.wrapping_mul(0x9e37_79b9_7f4a_7c15), "{offset:#x}");
        }
    }
}

#[test]
fn cga_memory_is_a_plain_16_kib() {
    let mut card = Card::in_mode(&CGA_FOUR);
    for offset in 0..0x4000u64 {
        card.poke(0xb_8000 + offset, (offset * 7 / 8) as u8);
    }
    for offset in 0..0x4000u64 {
        assert_eq!(card.peek(0xb_8000 + offset), (offset * 7 / 8) as u8);
    }
}

#[test]
fn wide_accesses_are_bytes_one_after_the_other() {
    let mut card = Card::in_mode(&PLANAR);
    card.write(WINDOW + 3, Qword, 0x8877_6655_4433_2211);
    let bytes = [(); 8].iter().zip(0..).map(|(_, at)| card.peek(WINDOW + 3 + at)).collect::<Vec<_>>();
    assert_eq!(bytes, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    card.graphics(5, 1);
    card.bench.memory_read(WINDOW + 3, Dword);
    card.write(WINDOW + 0x100, Byte, 0);
    assert_eq!(card.planes(0x100), [0x44; 4], "the latches hold the last");
    // Beyond the window's 64 KiB there is nothing.
    card.graphics(5, 0);
    card.write(WINDOW + 0xfffe, Dword, 0x4433_2211);
    assert_eq!(card.bench.memory_read(WINDOW + 0xfffe, Dword), 0xffff_2211);
}
