//! The PS/2 controller (Intel 8042 with the IBM PS/2 keyboard controller program; IBM PS/2 Hardware
//! Interface Technical Reference, keyboard and auxiliary device controller), with a keyboard and a
//! mouse on it.
//!
//! | region | port on a PC | read | write |
//! |---|---|---|---|
//! | [`DATA`] | 0x60 | output buffer | input buffer: data |
//! | [`COMMAND`] | 0x64 | status | input buffer: command |
//!
//! Commands: 0x20–0x3f and 0x60–0x7f (memory; byte 0 is the command byte), 0xa4, 0xa7–0xab, 0xad, 0xae,
//! 0xc0, 0xd0–0xd4, 0xdd and 0xdf (A20), 0xe0, 0xf0–0xff (pulses; bit 0 resets). Others do nothing.
//!
//! Bytes of the keyboard (set 2) are translated to set 1 while the command byte says so. A byte that
//! waits in a device comes into the output buffer as soon as the buffer is read; the controller's own
//! answers first, then the keyboard, then the mouse. IRQ 1 and IRQ 12 are the output buffer's state as
//! levels, with an edge for each byte.
//!
//! At power-on the command byte is as firmware leaves it (translation and keyboard interrupt on), so
//! that a kernel booted without firmware finds a keyboard.
//!
//! Left out: passwords, multiplexing of several mice, the diagnostic dump, time-outs and parity errors.

use std::collections::VecDeque;
use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{Device, IrqLine, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::{byte_ports, check};
use crate::events::{A20Gate, A20Source, SystemEvent, SystemEvents};

mod keyboard;
mod mouse;
mod scancode;

use keyboard::{Keyboard, KeyboardState};
use mouse::{Mouse, MouseState};

pub use mouse::MouseButtons;
pub use scancode::Key;

/// Region index of the data port.
pub const DATA: usize = 0;
/// Region index of the status and command port.
pub const COMMAND: usize = 1;

const RAM_SIZE: usize = 32;
/// Answers the controller holds while the guest does not read; more are lost.
const MAX_REPLIES: usize = 16;

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Status: u8 {
        const OUTPUT_FULL = 1 << 0;
        const SYSTEM = 1 << 2;
        const COMMAND = 1 << 3;
        const UNLOCKED = 1 << 4;
        const AUX = 1 << 5;
    }

    /// The command byte.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Mode: u8 {
        const KEYBOARD_INT = 1 << 0;
        const MOUSE_INT = 1 << 1;
        const SYSTEM = 1 << 2;
        const KEYBOARD_DISABLED = 1 << 4;
        const MOUSE_DISABLED = 1 << 5;
        const TRANSLATE = 1 << 6;
        const _ = !0;
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    struct OutputPort: u8 {
        const NOT_RESET = 1 << 0;
        const A20 = 1 << 1;
        const KEYBOARD_FULL = 1 << 4;
        const MOUSE_FULL = 1 << 5;
        /// Keyboard clock and data, idle.
        const IDLE = 3 << 6;
    }
}

const POWER_ON: Mode = Mode::KEYBOARD_INT.union(Mode::SYSTEM).union(Mode::TRANSLATE);

/// Who put a byte into the output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    /// The keyboard or the controller.
    Keyboard,
    Mouse,
}

/// A controller command that waits for its data byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Pending {
    Ram(u8),
    OutputPort,
    KeyboardOutput,
    MouseOutput,
    Mouse,
}

/// A PS/2 controller with a keyboard and a mouse.
pub struct I8042 {
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
    a20: Arc<A20Gate>,
    events: Arc<dyn SystemEvents>,
    keyboard: Keyboard,
    mouse: Mouse,
    /// The controller's memory; byte 0 is the command byte.
    ram: [u8; RAM_SIZE],
    pending: Option<Pending>,
    /// The last write was to the command port.
    last_was_command: bool,
    /// The output buffer, while full.
    output: Option<(u8, Source)>,
    /// What the data port reads once the output buffer is empty.
    last_output: u8,
    replies: VecDeque<(u8, Source)>,
    /// Translation has swallowed a break prefix.
    break_seen: bool,
    a20_open: bool,
    keyboard_level: bool,
    mouse_level: bool,
}

impl I8042 {
    /// A controller that interrupts on `keyboard_irq` (1 on a PC) and `mouse_irq` (12), works the gate
    /// `a20`, and reports resets to `events`.
    pub fn new(
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        a20: Arc<A20Gate>,
        events: Arc<dyn SystemEvents>,
    ) -> Self {
        let mut controller = Self {
            keyboard_irq,
            mouse_irq,
            a20,
            events,
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            ram: [0; RAM_SIZE],
            pending: None,
            last_was_command: false,
            output: None,
            last_output: 0,
            replies: VecDeque::new(),
            break_seen: false,
            a20_open: true,
            keyboard_level: false,
            mouse_level: false,
        };
        controller.power_on();
        controller
    }

    /// A key goes down (or repeats), or up. Returns false, with no effect, when the keyboard's buffer
    /// has no room: the guest has to read first. A keyboard that the guest has switched off takes all
    /// keys and forgets them.
    #[must_use]
    pub fn key(&mut self, key: Key, pressed: bool) -> bool {
        let taken = self.keyboard.key(key, pressed);
        self.update();
        taken
    }

    /// The mouse moves: `dx` to the right, `dy` down, `dz` by wheel notches towards the user. Movement
    /// adds up until the guest reads it.
    pub fn move_mouse(&mut self, dx: i32, dy: i32, dz: i32) {
        self.mouse.move_by(dx, dy, dz);
        self.update();
    }

    /// These mouse buttons are down, others are up.
    pub fn set_mouse_buttons(&mut self, buttons: MouseButtons) {
        self.mouse.set_buttons(buttons);
        self.update();
    }

    /// The keyboard's lights: bit 0 scroll lock, bit 1 num lock, bit 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.keyboard.leds()
    }

    fn power_on(&mut self) {
        self.keyboard = Keyboard::default();
        self.mouse = Mouse::default();
        self.ram = [0; RAM_SIZE];
        self.set_mode(POWER_ON);
        self.pending = None;
        self.last_was_command = false;
        self.output = None;
        self.last_output = 0;
        self.replies.clear();
        self.break_seen = false;
        self.set_a20(true);
        self.update();
    }

    fn mode(&self) -> Mode {
        Mode::from_bits_retain(self.ram[0])
    }

    fn set_mode(&mut self, mode: Mode) {
        self.ram[0] = mode.bits();
    }

    fn change_mode(&mut self, bit: Mode, value: bool) {
        let mut mode = self.mode();
        mode.set(bit, value);
        self.set_mode(mode);
    }

    fn set_a20(&mut self, open: bool) {
        self.a20_open = open;
        self.a20.set(A20Source::Keyboard, open);
    }

    fn reply(&mut self, byte: u8, source: Source) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back((byte, source));
        }
    }

    /// The next byte from the keyboard, as the guest shall see it.
    fn keyboard_byte(&mut self) -> Option<u8> {
        while let Some(byte) = self.keyboard.next() {
            if !self.mode().contains(Mode::TRANSLATE) {
                return Some(byte);
            }
            if byte == scancode::BREAK {
                self.break_seen = true; // becomes bit 7 of the next
                continue;
            }
            let released = if std::mem::take(&mut self.break_seen) { 0x80 } else { 0 };
            return Some(scancode::translate(byte) | released);
        }
        None
    }

    /// Fills the output buffer if it is empty and something waits, and drives the interrupts.
    fn update(&mut self) {
        if self.output.is_none() {
            self.output = self.replies.pop_front();
        }
        if self.output.is_none() && !self.mode().contains(Mode::KEYBOARD_DISABLED) {
            self.output = self.keyboard_byte().map(|byte| (byte, Source::Keyboard));
        }
        if self.output.is_none() && !self.mode().contains(Mode::MOUSE_DISABLED) {
            self.output = self.mouse.next().map(|byte| (byte, Source::Mouse));
        }
        self.update_irqs();
    }

    fn update_irqs(&mut self) {
        let source = self.output.map(|(_, source)| source);
        let keyboard = source == Some(Source::Keyboard) && self.mode().contains(Mode::KEYBOARD_INT);
        if keyboard != self.keyboard_level {
            self.keyboard_level = keyboard;
            self.keyboard_irq.set(keyboard);
        }
        let mouse = source == Some(Source::Mouse) && self.mode().contains(Mode::MOUSE_INT);
        if mouse != self.mouse_level {
            self.mouse_level = mouse;
            self.mouse_irq.set(mouse);
        }
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last_output = byte;
            // The line falls before the next byte raises it: each byte has its edge.
            self.update_irqs();
            self.update();
        }
        self.last_output
    }

    fn status(&self) -> u8 {
        let mut status = Status::UNLOCKED;
        status.set(Status::OUTPUT_FULL, self.output.is_some());
        status.set(Status::AUX, matches!(self.output, Some((_, Source::Mouse))));
        status.set(Status::SYSTEM, self.mode().contains(Mode::SYSTEM));
        status.set(Status::COMMAND, self.last_was_command);
        status.bits()
    }

    fn output_port(&self) -> u8 {
        let mut port = OutputPort::NOT_RESET | OutputPort::IDLE;
        port.set(OutputPort::A20, self.a20_open);
        port.set(OutputPort::KEYBOARD_FULL, matches!(self.output, Some((_, Source::Keyboard))));
        port.set(OutputPort::MOUSE_FULL, matches!(self.output, Some((_, Source::Mouse))));
        port.bits()
    }

    fn command(&mut self, command: u8) {
        self.last_was_command = true;
        self.pending = None;
        let slot = command % RAM_SIZE as u8;
        match command {
            0x20..=0x3f => {
                let byte = self.ram.get(usize::from(slot)).copied().unwrap_or(0);
                self.reply(byte, Source::Keyboard);
            }
            0x60..=0x7f => self.pending = Some(Pending::Ram(slot)),
            0xa4 => self.reply(0xf1, Source::Keyboard), // no password
            0xa7 => self.change_mode(Mode::MOUSE_DISABLED, true),
            0xa8 => self.change_mode(Mode::MOUSE_DISABLED, false),
            0xa9 | 0xab => self.reply(0x00, Source::Keyboard), // clock and data lines are good
            0xaa => {
                self.change_mode(Mode::SYSTEM, true);
                self.reply(0x55, Source::Keyboard);
            }
            0xad => self.change_mode(Mode::KEYBOARD_DISABLED, true),
            0xae => self.change_mode(Mode::KEYBOARD_DISABLED, false),
            0xc0 => self.reply(0x80, Source::Keyboard), // input port: not locked
            0xd0 => self.reply(self.output_port(), Source::Keyboard),
            0xd1 => self.pending = Some(Pending::OutputPort),
            0xd2 => self.pending = Some(Pending::KeyboardOutput),
            0xd3 => self.pending = Some(Pending::MouseOutput),
            0xd4 => self.pending = Some(Pending::Mouse),
            0xdd => self.set_a20(false),
            0xdf => self.set_a20(true),
            0xe0 => self.reply(0x00, Source::Keyboard), // test inputs: both clocks low
            0xf0..=0xff if command & 1 == 0 => self.events.raise(SystemEvent::Reset),
            _ => {}
        }
        self.update();
    }

    fn write_data(&mut self, byte: u8) {
        self.last_was_command = false;
        match self.pending.take() {
            None => {
                // Talking to the keyboard needs its clock.
                self.change_mode(Mode::KEYBOARD_DISABLED, false);
                self.keyboard.command(byte);
            }
            Some(Pending::Ram(slot)) => {
                if let Some(to) = self.ram.get_mut(usize::from(slot)) {
                    *to = byte;
                }
            }
            Some(Pending::OutputPort) => {
                let port = OutputPort::from_bits_truncate(byte);
                self.set_a20(port.contains(OutputPort::A20));
                if !port.contains(OutputPort::NOT_RESET) {
                    self.events.raise(SystemEvent::Reset);
                }
            }
            Some(Pending::KeyboardOutput) => self.reply(byte, Source::Keyboard),
            Some(Pending::MouseOutput) => self.reply(byte, Source::Mouse),
            Some(Pending::Mouse) => {
                self.change_mode(Mode::MOUSE_DISABLED, false);
                self.mouse.command(byte);
            }
        }
        self.update();
    }

    fn read_byte(&mut self, region: usize, offset: u16) -> u8 {
        match (region, offset) {
            (DATA, 0) => self.read_data(),
            (COMMAND, 0) => self.status(),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, region: usize, offset: u16, value: u8) {
        match (region, offset) {
            (DATA, 0) => self.write_data(value),
            (COMMAND, 0) => self.command(value),
            _ => {}
        }
    }
}

byte_ports!(I8042);

impl Device for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        self.power_on();
    }
}

/// Saved state of an [`I8042`], its keyboard and its mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    keyboard: KeyboardState,
    mouse: MouseState,
    ram: [u8; RAM_SIZE],
    pending: Option<Pending>,
    last_was_command: bool,
    output: Option<(u8, Source)>,
    last_output: u8,
    replies: VecDeque<(u8, Source)>,
    break_seen: bool,
    a20_open: bool,
}

impl SaveRestore for I8042 {
    type State = I8042State;

    fn save(&self) -> I8042State {
        let Self {
            keyboard_irq: _,
            mouse_irq: _,
            a20: _,
            events: _,
            keyboard,
            mouse,
            ram,
            pending,
            last_was_command,
            output,
            last_output,
            replies,
            break_seen,
            a20_open,
            keyboard_level: _, // these follow from the rest
            mouse_level: _,
        } = self;
        I8042State {
            keyboard: keyboard.save(),
            mouse: mouse.save(),
            ram: *ram,
            pending: *pending,
            last_was_command: *last_was_command,
            output: *output,
            last_output: *last_output,
            replies: replies.clone(),
            break_seen: *break_seen,
            a20_open: *a20_open,
        }
    }

    fn restore(&mut self, state: I8042State) -> Result<(), RestoreError> {
        check("i8042", state.replies.len() <= MAX_REPLIES, || {
            format!("{} answers wait, at most {MAX_REPLIES}", state.replies.len())
        })?;
        if let Some(Pending::Ram(slot)) = state.pending {
            check("i8042", usize::from(slot) < RAM_SIZE, || format!("no memory byte {slot}"))?;
        }
        let keyboard = Keyboard::restored(state.keyboard)?;
        self.mouse = Mouse::restored(state.mouse)?;
        self.keyboard = keyboard;
        self.ram = state.ram;
        self.pending = state.pending;
        self.last_was_command = state.last_was_command;
        self.output = state.output;
        self.last_output = state.last_output;
        self.replies = state.replies;
        self.break_seen = state.break_seen;
        self.set_a20(state.a20_open);
        self.update();
        Ok(())
    }
}
