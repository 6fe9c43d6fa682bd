//! The keyboard (IBM PS/2 Hardware Interface Technical Reference, 101- and 102-key keyboards).
//!
//! Scan code sets 1 and 2. Left out: set 3 (refused with RESEND, as are its per-key commands 0xfb to
//! 0xfd), and repeating keys by itself: the host repeats, and the typematic rate is only kept.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use trapline_device::RestoreError;

use super::scancode::Key;
use crate::bytewise::check;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// The buffer for key codes, in bytes.
const KEY_BUFFER: usize = 16;
/// Answers that wait; a host that sends more without reading loses them.
const MAX_REPLIES: usize = 8;
/// 10.9 characters a second after 500 ms.
const DEFAULT_TYPEMATIC: u8 = 0x2b;

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Pending {
    Leds,
    ScanCodeSet,
    Typematic,
}

pub(super) struct Keyboard {
    replies: VecDeque<u8>,
    keys: VecDeque<u8>,
    pending: Option<Pending>,
    /// 1 or 2.
    set: u8,
    scanning: bool,
    leds: u8,
    typematic: u8,
    last_sent: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            replies: VecDeque::new(),
            keys: VecDeque::new(),
            pending: None,
            set: 2,
            scanning: true,
            leds: 0,
            typematic: DEFAULT_TYPEMATIC,
            last_sent: 0,
        }
    }
}

impl Keyboard {
    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    /// The next byte on the wire: answers before keys.
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.keys.pop_front())?;
        self.last_sent = byte;
        Some(byte)
    }

    /// See [`super::I8042::key`].
    pub(super) fn key(&mut self, key: Key, pressed: bool) -> bool {
        if !self.scanning {
            return true;
        }
        let (bytes, len) = key.sequence(self.set, pressed);
        let fits = self.keys.len() + len <= KEY_BUFFER;
        if fits {
            self.keys.extend(bytes.iter().take(len));
        }
        fits
    }

    fn reply(&mut self, byte: u8) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(byte);
        }
    }

    /// Default settings, an empty buffer; the lights are not among the settings.
    fn set_defaults(&mut self) {
        self.keys.clear();
        self.set = 2;
        self.typematic = DEFAULT_TYPEMATIC;
    }

    /// The host sends a byte.
    pub(super) fn command(&mut self, byte: u8) {
        match self.pending.take() {
            // A parameter is below the commands; a command instead of it is taken as one.
            Some(pending) if byte < 0xed => self.parameter(pending, byte),
            _ => self.start(byte),
        }
    }

    fn parameter(&mut self, pending: Pending, byte: u8) {
        match pending {
            Pending::Leds => {
                self.leds = byte & 0x07;
                self.reply(ACK);
            }
            Pending::Typematic => {
                self.typematic = byte & 0x7f;
                self.reply(ACK);
            }
            Pending::ScanCodeSet => match byte {
                0 => {
                    self.reply(ACK);
                    self.reply(self.set);
                }
                1 | 2 => {
                    self.set = byte;
                    self.keys.clear();
                    self.reply(ACK);
                }
                _ => self.reply(RESEND),
            },
        }
    }

    fn start(&mut self, command: u8) {
        match command {
            0xed => self.expect(Pending::Leds),
            0xee => self.reply(0xee), // echo
            0xf0 => self.expect(Pending::ScanCodeSet),
            0xf2 => [ACK, 0xab, 0x83].into_iter().for_each(|byte| self.reply(byte)),
            0xf3 => self.expect(Pending::Typematic),
            0xf4 => {
                self.keys.clear();
                self.scanning = true;
                self.reply(ACK);
            }
            0xf5 | 0xf6 => {
                self.set_defaults();
                self.scanning = command == 0xf6;
                self.reply(ACK);
            }
            0xf7..=0xfa => self.reply(ACK), // how all keys repeat in set 3: kept by nobody
            0xfe => self.reply(self.last_sent),
            0xff => {
                *self = Self::default();
                self.reply(ACK);
                self.reply(SELF_TEST_PASSED);
            }
            _ => self.reply(RESEND),
        }
    }

    fn expect(&mut self, parameter: Pending) {
        self.pending = Some(parameter);
        self.reply(ACK);
    }

    pub(super) fn save(&self) -> KeyboardState {
        let Self { replies, keys, pending, set, scanning, leds, typematic, last_sent } = self;
        KeyboardState {
            replies: replies.clone(),
            keys: keys.clone(),
            pending: *pending,
            set: *set,
            scanning: *scanning,
            leds: *leds,
            typematic: *typematic,
            last_sent: *last_sent,
        }
    }

    pub(super) fn restored(state: KeyboardState) -> Result<Self, RestoreError> {
        let KeyboardState { replies, keys, pending, set, scanning, leds, typematic, last_sent } = state;
        check("keyboard", replies.len() <= MAX_REPLIES && keys.len() <= KEY_BUFFER, || {
            format!("{} answers and {} key bytes wait, too many", replies.len(), keys.len())
        })?;
        check("keyboard", set == 1 || set == 2, || format!("no scan code set {set}"))?;
        check("keyboard", leds < 8 && typematic < 0x80, || {
            format!("lights {leds:#x}, typematic {typematic:#x}")
        })?;
        Ok(Self { replies, keys, pending, set, scanning, leds, typematic, last_sent })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyboardState {
    replies: VecDeque<u8>,
    keys: VecDeque<u8>,
    pending: Option<Pending>,
    set: u8,
    scanning: bool,
    leds: u8,
    typematic: u8,
    last_sent: u8,
}
