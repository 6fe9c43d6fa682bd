//! The PS/2 controller, keyboard and mouse, as firmware and Linux's i8042, atkbd and psmouse drive
//! them.

use std::sync::Arc;

use trapline_chipset::i8042::{COMMAND, DATA};
use trapline_chipset::{A20Gate, I8042, Key, MouseButtons, SystemEvent};
use trapline_device::test::Recorder;
use trapline_device::{Device, IrqLine, SaveRestore};

use crate::{Events, Ports, through_a_file};

const OBF: u8 = 0x01;
const SYS: u8 = 0x04;
const CMD: u8 = 0x08;
const AUX: u8 = 0x20;
const KBD_INT: u8 = 0x01;
const AUX_INT: u8 = 0x02;
const XLATE: u8 = 0x40;
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

struct Bench {
    ps2: I8042,
    pic: Arc<Recorder>,
    events: Arc<Events>,
    gate: Arc<A20Gate>,
}

impl Bench {
    fn new() -> Self {
        let pic = Arc::new(Recorder::default());
        let events = Arc::new(Events::default());
        let gate = Arc::new(A20Gate::new(events.clone()));
        let (irq1, irq12) = (IrqLine::new(pic.clone(), 1), IrqLine::new(pic.clone(), 12));
        let ps2 = I8042::new(irq1, irq12, gate.clone(), events.clone());
        events.take();
        Self { ps2, pic, events, gate }
    }

    /// Both devices on, no translation.
    fn raw() -> Self {
        let mut bench = Self::new();
        bench.set_mode(KBD_INT | AUX_INT | SYS);
        bench
    }

    fn status(&mut self) -> u8 {
        self.ps2.inb(COMMAND, 0)
    }

    fn command(&mut self, command: u8) {
        self.ps2.outb(COMMAND, 0, command);
    }

    fn data(&mut self, data: u8) {
        self.ps2.outb(DATA, 0, data);
    }

    fn set_mode(&mut self, mode: u8) {
        self.command(0x60);
        self.data(mode);
    }

    fn mode(&mut self) -> u8 {
        self.command(0x20);
        self.read()
    }

    fn read(&mut self) -> u8 {
        assert_eq!(self.status() & OBF, OBF, "nothing to read");
        self.ps2.inb(DATA, 0)
    }

    /// Everything that waits, keyboard and mouse apart.
    fn drain(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut keyboard, mut mouse) = (Vec::new(), Vec::new());
        while self.status() & OBF != 0 {
            let to = if self.status() & AUX != 0 { &mut mouse } else { &mut keyboard };
            to.push(self.ps2.inb(DATA, 0));
        }
        (keyboard, mouse)
    }

    /// Sends bytes to the keyboard, and gives its answer.
    fn keyboard(&mut self, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|&byte| self.data(byte));
        self.drain().0
    }

    /// Sends bytes to the mouse, and gives its answers, each after its byte.
    fn mouse(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        for &byte in bytes {
            self.command(0xd4);
            self.data(byte);
            answers.extend(self.drain().1);
        }
        answers
    }

    fn key(&mut self, set1: u16, pressed: bool) -> bool {
        self.ps2.key(Key::from_set1(set1).unwrap(), pressed)
    }
}

#[test]
fn self_and_interface_tests() {
    let mut b = Bench::new();
    for (command, answer) in [(0xaa, 0x55), (0xab, 0x00), (0xa9, 0x00), (0xa4, 0xf1), (0xc0, 0x80)] {
        b.command(command);
        assert_eq!(b.status() & (OBF | CMD | AUX), OBF | CMD);
        assert_eq!(b.read(), answer, "command {command:#x}");
        assert_eq!(b.status() & OBF, 0);
    }
    assert_eq!(b.status() & SYS, SYS);
}

#[test]
fn command_byte_and_memory() {
    let mut b = Bench::new();
    assert_eq!(b.mode(), KBD_INT | SYS | XLATE);
    b.set_mode(0x77);
    assert_eq!(b.mode(), 0x77);
    assert_eq!(b.status() & CMD, CMD);
    for n in 1..32 {
        b.command(0x60 + n);
        b.data(n * 3);
        assert_eq!(b.status() & CMD, 0);
    }
    for n in 1..32 {
        b.command(0x20 + n);
        assert_eq!(b.read(), n * 3);
    }
}

#[test]
fn interfaces_are_disabled_and_enabled() {
    let mut b = Bench::new();
    for (off, on, bit) in [(0xad, 0xae, 0x10), (0xa7, 0xa8, 0x20)] {
        b.command(off);
        assert_eq!(b.mode() & bit, bit);
        b.command(on);
        assert_eq!(b.mode() & bit, 0);
    }
    b.command(0xad);
    assert!(b.key(0x1e, true));
    assert_eq!(b.status() & OBF, 0, "the key waits in the keyboard");
    b.command(0xae);
    assert_eq!(b.read(), 0x1e);
}

#[test]
fn reset_pulses() {
    let mut b = Bench::new();
    for command in [0xfe, 0xf0] {
        b.command(command);
        assert_eq!(b.events.take(), [SystemEvent::Reset]);
    }
    for command in [0xff, 0xfd] {
        b.command(command);
        assert_eq!(b.events.take(), [], "bit 0 is not pulsed");
    }
    b.command(0xd1);
    b.data(0x02);
    assert_eq!(b.events.take(), [SystemEvent::Reset], "held low by the output port");
}

#[test]
fn output_port_and_a20() {
    let mut b = Bench::new();
    assert!(b.gate.is_open());
    b.command(0xd0);
    assert_eq!(b.read() & 0x03, 0x03);
    b.command(0xd1);
    b.data(0xdd);
    assert_eq!(b.events.take(), [SystemEvent::A20(false)]);
    b.command(0xd0);
    assert_eq!(b.read() & 0x03, 0x01);
    b.command(0xdf);
    assert_eq!(b.events.take(), [SystemEvent::A20(true)]);
    b.command(0xdd);
    assert!(!b.gate.is_open());
    b.ps2.reset();
    assert!(b.gate.is_open());
}

/// What Linux does to find the AUX port (i8042_check_aux) and to rule out a multiplexer.
#[test]
fn linux_finds_the_aux_port() {
    let mut b = Bench::new();
    b.command(0xa7);
    for byte in [0x5a, 0xf0, 0x56, 0xa4] {
        b.command(0xd3);
        b.data(byte);
        assert_eq!(b.status() & (OBF | AUX), OBF | AUX);
        assert_eq!(b.read(), byte, "the loop gives back what it got: no multiplexer");
    }
    b.command(0xa9);
    assert_eq!(b.read(), 0);
    b.command(0xa8);
    let mode = b.mode();
    assert_eq!(mode & 0x20, 0);
    b.set_mode(mode | AUX_INT);
    let before = b.pic.rising_edges(12);
    b.command(0xd3);
    b.data(0xa5);
    assert_eq!(b.pic.rising_edges(12), before + 1, "IRQ 12 arrives");
    assert_eq!(b.read(), 0xa5);
    assert!(!b.pic.level(12));
    b.command(0xd2);
    b.data(0x3c);
    assert_eq!(b.status() & (OBF | AUX), OBF);
    assert_eq!(b.read(), 0x3c);
}

#[test]
fn keyboard_commands() {
    let mut b = Bench::raw();
    for (bytes, answer) in [
        (&[0xff][..], &[ACK, 0xaa][..]), // reset and basic assurance test
        (&[0xf2], &[ACK, 0xab, 0x83]),   // identify
        (&[0xee], &[0xee]),              // echo
        (&[0xed, 0x05], &[ACK, ACK]),    // lights
        (&[0xf3, 0x20], &[ACK, ACK]),    // typematic rate
        (&[0xf0, 0x00], &[ACK, ACK, 2]), // which scan code set?
        (&[0xf0, 0x01], &[ACK, ACK]),
        (&[0xf0, 0x00], &[ACK, ACK, 1]),
        (&[0xf0, 0x03], &[ACK, RESEND]), // set 3 is left out
        (&[0xf6], &[ACK]),               // defaults
        (&[0xf0, 0x00], &[ACK, ACK, 2]),
        (&[0xf5], &[ACK]),
        (&[0xf4], &[ACK]),
        (&[0xfe], &[ACK]),            // resend
        (&[0xfa], &[ACK]),            // all keys typematic, make and break
        (&[0xf1], &[RESEND]),         // no command
        (&[0xed, 0xf4], &[ACK, ACK]), // a command instead of a parameter
        (&[0x12], &[RESEND]),         // so that this is no parameter
    ] {
        assert_eq!(b.keyboard(bytes), answer, "{bytes:x?}");
    }
    assert_eq!(b.ps2.leds(), 0x05);
}

#[test]
fn identify_is_translated_too() {
    let mut b = Bench::new();
    assert_eq!(b.keyboard(&[0xf2]), [ACK, 0xab, 0x41]);
    assert_eq!(b.keyboard(&[0xf0, 0x00]), [ACK, ACK, 0x41]);
}

#[test]
fn keys_in_set_2_and_translated_to_set_1() {
    for (key, set2, set1) in [
        (0x1e, &[0x1c, 0xf0, 0x1c][..], &[0x1e, 0x9e][..]), // A
        (0xe048, &[0xe0, 0x75, 0xe0, 0xf0, 0x75], &[0xe0, 0x48, 0xe0, 0xc8]), // up
        (0x41, &[0x83, 0xf0, 0x83], &[0x41, 0xc1]),         // F7
        (0x45, &[0x77, 0xf0, 0x77], &[0x45, 0xc5]),         // num lock
    ] {
        let mut raw = Bench::raw();
        let mut translated = Bench::new();
        for b in [&mut raw, &mut translated] {
            assert!(b.key(key, true) && b.key(key, false));
        }
        assert_eq!(raw.drain().0, set2);
        assert_eq!(translated.drain().0, set1);
        // The keyboard speaks set 1 itself, if asked.
        raw.keyboard(&[0xf0, 0x01]);
        assert!(raw.key(key, true) && raw.key(key, false));
        assert_eq!(raw.drain().0, set1);
    }
}

#[test]
fn pause_has_no_release() {
    let mut b = Bench::new();
    assert!(b.ps2.key(Key::PAUSE, true));
    assert!(b.ps2.key(Key::PAUSE, false));
    assert_eq!(b.drain().0, [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    b.set_mode(KBD_INT);
    assert!(b.ps2.key(Key::PAUSE, true));
    assert_eq!(b.drain().0, [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
}

#[test]
fn each_key_byte_has_its_interrupt() {
    let mut b = Bench::new();
    assert!(b.key(0xe048, true));
    assert_eq!(b.pic.rising_edges(1), 1);
    assert_eq!(b.read(), 0xe0);
    assert_eq!(b.pic.rising_edges(1), 2);
    assert!(b.pic.level(1));
    assert_eq!(b.read(), 0x48);
    assert!(!b.pic.level(1));
    assert_eq!(b.ps2.inb(DATA, 0), 0x48, "an empty buffer reads as before");
    b.set_mode(XLATE);
    assert!(b.key(0x1e, true));
    assert!(!b.pic.level(1), "the command byte masks it");
}

#[test]
fn a_full_keyboard_takes_whole_keys_or_none() {
    let mut b = Bench::raw();
    let mut taken = 0;
    while b.key(0xe048, true) {
        taken += 1;
        assert!(taken < 100);
    }
    assert!(b.key(0x1e, true), "a shorter one still fits");
    let (keys, _) = b.drain();
    assert_eq!(keys.len(), 2 * taken + 1);
    assert!(keys.len() <= 17, "16, and one in the output buffer");
    assert!(b.key(0xe048, true));
}

#[test]
fn a_keyboard_that_is_off_forgets_keys() {
    let mut b = Bench::raw();
    assert_eq!(b.keyboard(&[0xf5]), [ACK]);
    assert!(b.key(0x1e, true));
    assert_eq!(b.status() & OBF, 0);
    assert_eq!(b.keyboard(&[0xf4]), [ACK]);
    assert!(b.key(0x1e, true));
    assert_eq!(b.read(), 0x1c);
}

#[test]
fn answers_come_before_keys() {
    let mut b = Bench::raw();
    b.command(0xad);
    assert!(b.key(0x1e, true));
    b.data(0xed); // also switches the interface on again
    assert_eq!(b.drain().0, [ACK, 0x1c]);
}

#[test]
fn mouse_commands() {
    let mut b = Bench::raw();
    for (bytes, answer) in [
        (&[0xff][..], &[ACK, 0xaa, 0x00][..]),
        (&[0xf2], &[ACK, 0x00]),
        (&[0xe9], &[ACK, 0x00, 2, 100]), // status: off, 4 counts/mm, 100 samples/s
        (&[0xe8, 3, 0xf3, 40, 0xe7, 0xf4], &[ACK; 6]),
        (&[0xe9], &[ACK, 0x30, 3, 40]),
        (&[0xe8, 4], &[ACK, RESEND]),
        (&[0xee], &[ACK]), // wrap mode gives everything back
        (&[0xf2, 0x12], &[0xf2, 0x12]),
        (&[0xec], &[ACK]),
        (&[0xf6], &[ACK]),
        (&[0xe9], &[ACK, 0x00, 2, 100]),
        (&[0xe1], &[RESEND]),
        (&[0xfe], &[RESEND]),
    ] {
        assert_eq!(b.mouse(bytes), answer, "{bytes:x?}");
    }
}

#[test]
fn movement_packets() {
    let mut b = Bench::raw();
    b.ps2.move_mouse(1, 1, 0);
    assert_eq!(b.status() & OBF, 0, "it is off");
    assert_eq!(b.mouse(&[0xf4]), [ACK]);
    b.ps2.move_mouse(5, -3, 7);
    assert!(b.pic.level(12));
    assert_eq!(b.drain().1, [0x08, 5, 3]);
    b.ps2.move_mouse(-5, 3, 0);
    assert_eq!(b.drain().1, [0x38, 0xfb, 0xfd], "signs are bits 8 of two's complements");
    b.ps2.set_mouse_buttons(MouseButtons::LEFT | MouseButtons::MIDDLE);
    assert_eq!(b.drain().1, [0x0d, 0, 0]);
    b.ps2.set_mouse_buttons(MouseButtons::empty());
    assert_eq!(b.drain().1, [0x08, 0, 0]);
    assert_eq!(b.mouse(&[0xf5]), [ACK]);
    b.ps2.move_mouse(1, 0, 0);
    assert_eq!(b.drain().1, []);
}

#[test]
fn movement_adds_up_and_overflows_into_further_packets() {
    let mut b = Bench::raw();
    b.mouse(&[0xf4]);
    b.command(0xa7);
    (0..30).for_each(|_| b.ps2.move_mouse(10, 0, 0));
    b.command(0xa8);
    assert_eq!(b.drain().1, [0x08, 255, 0, 0x08, 45, 0]);
    b.ps2.move_mouse(i32::MAX, i32::MIN, i32::MIN);
    b.ps2.move_mouse(i32::MAX, i32::MIN, i32::MIN);
    assert!(b.drain().1.len() <= 3 * 130, "movement is bounded");
}

#[test]
fn intellimouse_knocks() {
    let mut b = Bench::raw();
    b.mouse(&[0xf3, 200, 0xf3, 100, 0xf3, 80]);
    assert_eq!(b.mouse(&[0xf2]), [ACK, 3]);
    b.mouse(&[0xf4]);
    b.ps2.move_mouse(0, 0, -1);
    assert_eq!(b.drain().1, [0x08, 0, 0, 0xff]);
    b.mouse(&[0xf3, 200, 0xf3, 200, 0xf3, 80]);
    assert_eq!(b.mouse(&[0xf2]), [ACK, 4]);
    b.ps2.set_mouse_buttons(MouseButtons::SIDE);
    b.ps2.move_mouse(0, 0, 9);
    // The button at once; then the wheel, 7 notches at most in a packet.
    assert_eq!(b.drain().1, [0x08, 0, 0, 0x10, 0x08, 0, 0, 0x17, 0x08, 0, 0, 0x12]);
    assert_eq!(b.mouse(&[0xff, 0xf2]), [ACK, 0xaa, 0, ACK, 0]);
}

#[test]
fn remote_mode_and_scaling() {
    let mut b = Bench::raw();
    assert_eq!(b.mouse(&[0xf0]), [ACK]);
    b.ps2.move_mouse(3, 0, 0);
    assert_eq!(b.drain().1, [], "in remote mode the host asks");
    assert_eq!(b.mouse(&[0xeb]), [ACK, 0x08, 3, 0]);
    assert_eq!(b.mouse(&[0xea, 0xe7, 0xf4]), [ACK; 3]);
    for (moved, sent) in [(1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12), (-4, -6)] {
        b.ps2.move_mouse(moved, 0, 0);
        assert_eq!(b.drain().1[1], sent as u8);
    }
}

#[test]
fn the_keyboard_goes_before_the_mouse() {
    let mut b = Bench::raw();
    b.mouse(&[0xf4]);
    b.command(0xaa); // its answer holds the buffer
    b.ps2.move_mouse(1, 0, 0);
    assert!(b.key(0x1e, true));
    assert_eq!((b.read(), b.read()), (0x55, 0x1c));
    assert_eq!(b.drain().1, [0x08, 1, 0]);
}

#[test]
fn unread_answers_are_bounded() {
    let mut b = Bench::raw();
    (0..1000).for_each(|_| b.command(0xaa));
    (0..1000).for_each(|_| b.data(0xf2));
    let (answers, _) = b.drain();
    assert!(answers.len() <= 1 + 16 + 8, "{}", answers.len());
}

#[test]
fn a_saved_controller_goes_on_elsewhere() {
    let mut b = Bench::new();
    b.set_mode(KBD_INT | AUX_INT | XLATE);
    b.mouse(&[0xf4]);
    assert!(b.key(0xe048, false));
    b.read();
    b.ps2.move_mouse(4, 5, 6);
    b.command(0xd4);
    let mut other = Bench::new();
    other.ps2.restore(through_a_file(&b.ps2.save())).unwrap();
    assert!(other.pic.level(1));
    for b in [&mut b, &mut other] {
        assert_eq!(b.read(), 0xc8);
        b.data(0xf2); // goes to the mouse
        assert_eq!(b.status() & (OBF | AUX), OBF | AUX);
    }
    assert_eq!(other.drain(), b.drain());
    assert_eq!(other.ps2.save(), b.ps2.save());
}
