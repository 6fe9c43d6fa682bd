//! Saved state.

use trapline_device::SaveRestore;
use trapline_display::VgaState;

use crate::bench::{Card, PACKED, PLANAR, TEXT, WINDOW};

/// Through the wire format, into another machine.
fn move_to_another(card: &Card) -> Card {
    let bytes = postcard::to_stdvec(&card.device().save()).unwrap();
    let other = Card::new();
    other.device().memory().write(0, &[0xee; 0x1_0000]).unwrap();
    other.device().restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
    assert_eq!(postcard::to_stdvec(&other.device().save()).unwrap(), bytes);
    other
}

#[test]
fn the_picture_is_the_same_in_another_machine() {
    let mut card = Card::in_mode(&TEXT);
    card.print(5, 5, 0x2e, "moved");
    let other = move_to_another(&card);
    assert_eq!((other.frame(), other.device().text()), (card.frame(), card.device().text()));
    card.set_mode(&PACKED);
    card.poke(WINDOW + 77, 9);
    assert_eq!(move_to_another(&card).frame(), card.frame());
    card.vbe_mode(1024, 768, 16);
    card.device().memory().write(0x1_2345, b"dots").unwrap();
    assert_eq!(move_to_another(&card).frame(), card.frame());
}

#[test]
fn a_command_under_way_goes_on() {
    let mut card = Card::in_mode(&PLANAR);
    card.poke(WINDOW, 0x5a);
    card.peek(WINDOW); // latches
    card.graphics(5, 1);
    card.inb(0x3da);
    card.out(0x3c0, 0x31); // the data is to come
    card.out(0x3c8, 9);
    card.out(0x3c9, 1); // green and blue too
    let mut other = move_to_another(&card);
    other.poke(WINDOW + 1, 0);
    assert_eq!(other.planes(1), [0x5a; 4]);
    other.out(0x3c0, 0x77);
    assert_eq!(other.inb(0x3c1), 0x77);
    other.out(0x3c9, 2);
    other.out(0x3c9, 3);
    other.out(0x3c7, 9);
    assert_eq!([(); 3].map(|()| other.inb(0x3c9)), [1, 2, 3]);
}

/// The state of a card as JSON has it, with a change, into the card again.
fn with_change(card: &Card, change: impl Fn(&mut serde_json::Value)) -> String {
    let mut state = serde_json::to_value(card.device().save()).unwrap();
    change(&mut state);
    let state: VgaState = serde_json::from_value(state).unwrap();
    card.device().restore(state).unwrap_err().to_string()
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut card = Card::in_mode(&TEXT);
    card.vbe_mode(640, 480, 32);
    let error = with_change(&card, |state| state["registers"]["misc"] = 0xff.into());
    assert_eq!(error, "saved state of vga: a register has bits that it does not have");
    for change in [
        ("sequencer", "index", 8),
        ("graphics", "index", 16),
        ("attribute", "index", 64),
        ("dac", "component", 3),
    ] {
        let error = with_change(&card, |state| state["registers"][change.0][change.1] = change.2.into());
        assert!(error.contains("register"), "{error}");
    }
    with_change(&card, |state| state["registers"]["dac"]["table"] = vec![0; 3].into());
    for (register, value) in [
        ("xres", 641),
        ("xres", 8192),
        ("yres", 0),
        ("bpp", 7),
        ("virt_width", 0),
        ("memory", 1),
        ("y_offset", 4000),
        ("bank", 999),
        ("id", 1),
    ] {
        let error = with_change(&card, |state| state["vbe"][register] = value.into());
        assert!(error.contains("vbe"), "{register}: {error}");
    }
    let error = with_change(&card, |state| state["memory"] = serde_json::json!([[1, vec![0; 4096]]]));
    assert!(error.contains("pages"), "{error}");
    with_change(&card, |state| state["config"]["bytes"] = vec![0; 256].into());
}
