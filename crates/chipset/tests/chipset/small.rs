//! The devices of one port: debug exit and console, POST code, port 0x92, reset control.

use std::io::ErrorKind;
use std::sync::Arc;

use trapline_chipset::{A20Gate, DebugCon, DebugExit, Port92, PostCode, ResetControl, SystemEvent};
use trapline_device::{AccessSize, Device, PortIo, SaveRestore};

use crate::{Broken, Events, Ports, Screen, through_a_file};

#[test]
fn debug_exit_codes_are_odd() {
    let events = Arc::new(Events::default());
    let mut exit = DebugExit::new(events.clone());
    for (size, value, code) in [
        (AccessSize::Byte, 0, 1),
        (AccessSize::Byte, 0x110, 0x21), // only the byte that is written
        (AccessSize::Word, 0x8000, 0x1_0001),
        (AccessSize::Dword, 0x8000_0001, 3), // the top bit has nowhere to go
    ] {
        exit.write(0, 0, size, value);
        assert_eq!(events.take(), [SystemEvent::DebugExit(code)]);
    }
    assert_eq!(exit.read(0, 0, AccessSize::Dword), 0);
    assert_eq!(events.take(), []);
}

#[test]
fn debug_console_says_that_it_is_there() {
    let screen = Screen::default();
    let mut con = DebugCon::new(Box::new(screen.clone()));
    assert_eq!(con.inb(0, 0), 0xe9);
    con.outb(0, 0, b'a');
    con.write_block(0, 0, AccessSize::Byte, b"bc");
    con.write(0, 0, AccessSize::Word, 0x6564);
    con.write_block(0, 0, AccessSize::Word, b"fg");
    assert_eq!(screen.take(), b"abcdefg");
    let mut data = [0; 3];
    con.read_block(0, 0, AccessSize::Byte, &mut data);
    assert_eq!(data, [0xe9; 3]);

    let mut broken = DebugCon::new(Box::new(Broken(ErrorKind::BrokenPipe)));
    broken.outb(0, 0, b'a');
    assert_eq!(broken.lost_bytes(), 1);
}

#[test]
fn post_code_is_latched() {
    let mut post = PostCode::new();
    post.outb(0, 0, 0xaa);
    assert_eq!((post.inb(0, 0), post.code()), (0xaa, 0xaa));
    let mut other = PostCode::new();
    other.restore(through_a_file(&post.save())).unwrap();
    assert_eq!(other.code(), 0xaa);
    post.reset();
    assert_eq!(post.code(), 0);
}

#[test]
fn port_92_opens_a20_and_resets() {
    let events = Arc::new(Events::default());
    let gate = Arc::new(A20Gate::new(events.clone()));
    let mut port = Port92::new(gate.clone(), events.clone());
    assert!(!gate.is_open());
    port.outb(0, 0, 0x02);
    assert!(gate.is_open());
    assert_eq!(events.take(), [SystemEvent::A20(true)]);
    assert_eq!(port.inb(0, 0), 0x02);

    let mut other = Port92::new(Arc::new(A20Gate::new(events.clone())), events.clone());
    other.restore(through_a_file(&port.save())).unwrap();
    assert_eq!(events.take(), [SystemEvent::A20(true)]);
    assert_eq!(other.inb(0, 0), 0x02);

    port.outb(0, 0, 0x03);
    assert_eq!(events.take(), [SystemEvent::Reset]);
    port.outb(0, 0, 0x03);
    assert_eq!(events.take(), [], "only the edge resets");
    port.reset();
    assert_eq!(events.take(), [SystemEvent::A20(false)]);
}

#[test]
fn linux_reboots_by_cf9() {
    let events = Arc::new(Events::default());
    let mut control = ResetControl::new(events.clone());
    let old = control.inb(0, 0) & !0x0e;
    control.outb(0, 0, old | 0x02);
    assert_eq!(events.take(), []);
    assert_eq!(control.inb(0, 0), 0x02);
    control.outb(0, 0, old | 0x0e);
    assert_eq!(events.take(), [SystemEvent::Reset]);
    control.reset();
    // ACPI writes the reset value at once.
    control.outb(0, 0, 0x06);
    assert_eq!(events.take(), [SystemEvent::Reset]);

    let mut other = ResetControl::new(events.clone());
    other.restore(through_a_file(&control.save())).unwrap();
    assert_eq!(other.inb(0, 0), 0x06);
    assert_eq!(events.take(), [], "restoring resets nothing");
}
