//! The mouse: a PS/2 mouse (IBM PS/2 Hardware Interface Technical Reference, mouse) with Microsoft's
//! IntelliMouse extensions for a wheel and two more buttons.
//!
//! A movement packet is made when the controller asks for a byte, from all the movement since the last
//! one: packets never queue. The sample rate is kept and reported, but the host sets the pace.

use std::collections::VecDeque;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::RestoreError;

use crate::bytewise::check;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// Bytes that wait to be sent; a host that sends commands without reading loses the answers.
const MAX_OUTPUT: usize = 16;
/// Movement that adds up while nobody reads.
const MAX_MOVEMENT: i32 = 0x7fff;

const DEFAULT_RATE: u8 = 100;
/// 4 counts per millimetre.
const DEFAULT_RESOLUTION: u8 = 2;
const STANDARD: u8 = 0;
const WHEEL: u8 = 3;
const FIVE_BUTTONS: u8 = 4;

bitflags! {
    /// Mouse buttons that are down.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MouseButtons: u8 {
        /// The left (first) button.
        const LEFT = 1 << 0;
        /// The right (second) button.
        const RIGHT = 1 << 1;
        /// The middle (third) button, or wheel.
        const MIDDLE = 1 << 2;
        /// The fourth button, "back".
        const SIDE = 1 << 3;
        /// The fifth button, "forward".
        const EXTRA = 1 << 4;
    }
}

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Pending {
    SampleRate,
    Resolution,
}

pub(super) struct Mouse {
    output: VecDeque<u8>,
    pending: Option<Pending>,
    /// Device ID: [`STANDARD`], [`WHEEL`] or [`FIVE_BUTTONS`].
    id: u8,
    /// The last three sample rates, newest last: certain sequences change the ID.
    rates: [u8; 3],
    resolution: u8,
    double: bool,
    remote: bool,
    wrap: bool,
    reporting: bool,
    buttons: MouseButtons,
    reported: MouseButtons,
    dx: i32,
    dy: i32,
    dz: i32,
    last_sent: u8,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            output: VecDeque::new(),
            pending: None,
            id: STANDARD,
            rates: [0, 0, DEFAULT_RATE],
            resolution: DEFAULT_RESOLUTION,
            double: false,
            remote: false,
            wrap: false,
            reporting: false,
            buttons: MouseButtons::empty(),
            reported: MouseButtons::empty(),
            dx: 0,
            dy: 0,
            dz: 0,
            last_sent: 0,
        }
    }
}

impl Mouse {
    /// See [`super::I8042::move_mouse`].
    pub(super) fn move_by(&mut self, dx: i32, dy: i32, dz: i32) {
        if !self.reporting && !self.remote {
            return;
        }
        let add = |sum: i32, d: i32| sum.saturating_add(d).clamp(-MAX_MOVEMENT, MAX_MOVEMENT);
        self.dx = add(self.dx, dx);
        self.dy = add(self.dy, dy.saturating_neg()); // up is positive on the wire
        self.dz = add(self.dz, dz);
    }

    pub(super) fn set_buttons(&mut self, buttons: MouseButtons) {
        self.buttons = buttons;
    }

    /// The next byte on the wire.
    pub(super) fn next(&mut self) -> Option<u8> {
        if self.output.is_empty() && self.reporting && !self.remote && !self.wrap && self.has_news() {
            self.packet(self.double);
        }
        let byte = self.output.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    fn has_news(&self) -> bool {
        let wheel = self.id != STANDARD && self.dz != 0;
        self.dx != 0 || self.dy != 0 || wheel || self.buttons != self.reported
    }

    fn forget_movement(&mut self) {
        (self.dx, self.dy, self.dz) = (0, 0, 0);
        self.reported = self.buttons;
    }

    fn send(&mut self, byte: u8) {
        if self.output.len() < MAX_OUTPUT {
            self.output.push_back(byte);
        }
    }

    /// Sends a movement packet; what does not fit in it stays for the next.
    fn packet(&mut self, double: bool) {
        let scale = |d: i32| if double { scale_2_to_1(d) } else { d };
        let take = |sum: &mut i32, limit: i32| {
            let part = (*sum).clamp(-limit, limit);
            *sum -= part;
            part
        };
        let limit = if double { 127 } else { 255 };
        let (dx, dy) = (scale(take(&mut self.dx, limit)), scale(take(&mut self.dy, limit)));
        let signs = u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        self.send(0x08 | signs | self.buttons.bits() & 0x07);
        self.send(dx as u8);
        self.send(dy as u8);
        match self.id {
            WHEEL => {
                let dz = take(&mut self.dz, 127);
                self.send(dz as u8);
            }
            FIVE_BUTTONS => {
                let dz = take(&mut self.dz, 7);
                self.send(dz as u8 & 0x0f | (self.buttons.bits() & 0x18) << 1);
            }
            _ => self.dz = 0,
        }
        self.reported = self.buttons;
    }

    /// The host sends a byte.
    pub(super) fn command(&mut self, byte: u8) {
        self.output.clear(); // a command interrupts what was being sent
        if self.wrap && byte != 0xff && byte != 0xec {
            return self.send(byte);
        }
        match self.pending.take() {
            Some(Pending::SampleRate) if byte < 0xe6 => {
                self.rates = [self.rates[1], self.rates[2], byte];
                self.id = match (self.id, self.rates) {
                    (STANDARD, [200, 100, 80]) => WHEEL,
                    (WHEEL, [200, 200, 80]) => FIVE_BUTTONS,
                    (id, _) => id,
                };
                self.send(ACK);
            }
            Some(Pending::Resolution) if byte < 4 => {
                self.resolution = byte;
                self.send(ACK);
            }
            Some(_) if byte < 0xe6 => self.send(RESEND),
            _ => self.start(byte),
        }
    }

    fn start(&mut self, command: u8) {
        if command == 0xfe {
            return self.send(self.last_sent);
        }
        let known = matches!(command, 0xe6..=0xec | 0xee | 0xf0 | 0xf2..=0xf6 | 0xff);
        self.send(if known { ACK } else { RESEND });
        match command {
            0xe6 => self.double = false,
            0xe7 => self.double = true,
            0xe8 => self.pending = Some(Pending::Resolution),
            0xe9 => self.send_status(),
            0xea => {
                self.remote = false;
                self.forget_movement();
            }
            0xeb => self.packet(false), // the scaling is for stream mode
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => {
                self.remote = true;
                self.forget_movement();
            }
            0xf2 => self.send(self.id),
            0xf3 => self.pending = Some(Pending::SampleRate),
            0xf4 => {
                self.reporting = true;
                self.forget_movement();
            }
            0xf5 => self.reporting = false,
            0xf6 => self.set_defaults(),
            0xff => {
                self.set_defaults();
                self.id = STANDARD;
                self.send(SELF_TEST_PASSED);
                self.send(STANDARD);
            }
            _ => {}
        }
    }

    /// Everything but the ID, the buttons and what is being sent.
    fn set_defaults(&mut self) {
        let defaults = Self::default();
        self.rates = defaults.rates;
        self.resolution = defaults.resolution;
        self.double = false;
        self.remote = false;
        self.wrap = false;
        self.reporting = false;
        self.forget_movement();
    }

    fn send_status(&mut self) {
        let b = self.buttons;
        let buttons = u8::from(b.contains(MouseButtons::RIGHT))
            | u8::from(b.contains(MouseButtons::MIDDLE)) << 1
            | u8::from(b.contains(MouseButtons::LEFT)) << 2;
        let modes = u8::from(self.double) << 4 | u8::from(self.reporting) << 5 | u8::from(self.remote) << 6;
        self.send(buttons | modes);
        self.send(self.resolution);
        self.send(self.rates[2]);
    }

    pub(super) fn save(&self) -> MouseState {
        let Self {
            output,
            pending,
            id,
            rates,
            resolution,
            double,
            remote,
            wrap,
            reporting,
            buttons,
            reported,
            dx,
            dy,
            dz,
            last_sent,
        } = self;
        MouseState {
            output: output.clone(),
            pending: *pending,
            id: *id,
            rates: *rates,
            resolution: *resolution,
            double: *double,
            remote: *remote,
            wrap: *wrap,
            reporting: *reporting,
            buttons: buttons.bits(),
            reported: reported.bits(),
            movement: [*dx, *dy, *dz],
            last_sent: *last_sent,
        }
    }

    pub(super) fn restored(state: MouseState) -> Result<Self, RestoreError> {
        let refuse = |ok, what: &str| check("mouse", ok, || what.to_owned());
        refuse(state.output.len() <= MAX_OUTPUT, "too many bytes wait")?;
        refuse(matches!(state.id, STANDARD | WHEEL | FIVE_BUTTONS), "unknown device id")?;
        refuse(state.resolution < 4, "resolution is above 3")?;
        let range = -MAX_MOVEMENT..=MAX_MOVEMENT;
        refuse(state.movement.iter().all(|d| range.contains(d)), "movement is out of range")?;
        let buttons = MouseButtons::from_bits(state.buttons);
        let (Some(buttons), Some(reported)) = (buttons, MouseButtons::from_bits(state.reported)) else {
            return Err(RestoreError { device: "mouse", what: "buttons that do not exist".to_owned() });
        };
        let [dx, dy, dz] = state.movement;
        Ok(Self {
            output: state.output,
            pending: state.pending,
            id: state.id,
            rates: state.rates,
            resolution: state.resolution,
            double: state.double,
            remote: state.remote,
            wrap: state.wrap,
            reporting: state.reporting,
            buttons,
            reported,
            dx,
            dy,
            dz,
            last_sent: state.last_sent,
        })
    }
}

/// 2:1 scaling, which grows with speed.
fn scale_2_to_1(d: i32) -> i32 {
    let scaled = match d.abs() {
        0 => 0,
        1 | 2 => 1,
        3 => 3,
        4 => 6,
        5 => 9,
        n => 2 * n,
    };
    scaled * d.signum()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MouseState {
    output: VecDeque<u8>,
    pending: Option<Pending>,
    id: u8,
    rates: [u8; 3],
    resolution: u8,
    double: bool,
    remote: bool,
    wrap: bool,
    reporting: bool,
    buttons: u8,
    reported: u8,
    /// Right, up, wheel.
    movement: [i32; 3],
    last_sent: u8,
}
