//! Where the beam is: retrace, and what blinks.

use trapline_device::Nanos;

use crate::registers::Registers;

/// Dots a second, as clock select says.
const SLOW_CLOCK: u64 = 25_175_000;
const FAST_CLOCK: u64 = 28_322_000;

/// A frame's timing, in characters and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// Dots a second.
    clock: u64,
    /// Dots of a character.
    dots: u64,
    chars: (u64, u64),
    lines: (u64, u64),
    /// First line of vertical retrace and the first after it.
    retrace: (u64, u64),
}

/// 640 by 480 at 60 Hz.
const STANDARD: Timing =
    Timing { clock: SLOW_CLOCK, dots: 8, chars: (80, 100), lines: (480, 525), retrace: (490, 492) };

/// Where the beam is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beam {
    /// Nothing is drawn: retrace, or the border.
    pub blanking: bool,
    /// Vertical retrace.
    pub retrace: bool,
}

impl Timing {
    /// What the registers say; with VBE, which has no timing, or where they make no picture, the standard
    /// one: software waits for retrace to begin and to end.
    pub fn of(registers: &Registers, vbe: bool) -> Self {
        let (crtc, sequencer) = (&registers.crtc, &registers.sequencer);
        let (start, len) = crtc.retrace();
        let total = crtc.total_lines();
        let usable = crtc.lines() < total && crtc.chars() < crtc.total_chars() && start < total;
        if vbe || !usable || len >= total {
            return STANDARD;
        }
        let clock = if registers.fast_clock() { FAST_CLOCK } else { SLOW_CLOCK };
        Self {
            clock: if sequencer.half_clock() { clock / 2 } else { clock },
            dots: sequencer.dots() as u64,
            chars: (crtc.chars().into(), crtc.total_chars().into()),
            lines: (crtc.lines().into(), total.into()),
            retrace: (start.into(), (start + len).min(total).into()),
        }
    }

    fn dots(&self, now: Nanos) -> u64 {
        (u128::from(now) * u128::from(self.clock) / 1_000_000_000) as u64
    }

    fn dots_of_line(&self) -> u64 {
        (self.chars.1 * self.dots).max(1)
    }

    fn dots_of_frame(&self) -> u64 {
        self.dots_of_line() * self.lines.1.max(1)
    }

    /// Where the beam is at `now`.
    pub fn beam(&self, now: Nanos) -> Beam {
        let dot = self.dots(now) % self.dots_of_frame();
        let (line, dot) = (dot / self.dots_of_line(), dot % self.dots_of_line());
        let blanking = line >= self.lines.0 || dot >= self.chars.0 * self.dots;
        Beam { blanking, retrace: (self.retrace.0..self.retrace.1).contains(&line) }
    }

    /// What of the things that blink is seen at `now`: a cursor is for eight frames and is not for eight,
    /// a blinking character takes twice as long.
    pub fn phase(&self, now: Nanos) -> Phase {
        let frame = self.dots(now) / self.dots_of_frame();
        Phase { cursor: frame & 8 == 0, text: frame & 16 == 0 }
    }
}

/// What of the things that blink is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    /// The cursor.
    pub cursor: bool,
    /// Blinking characters.
    pub text: bool,
}
