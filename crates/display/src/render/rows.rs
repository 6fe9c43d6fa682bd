//! Which address each line of the screen begins with.

use crate::registers::Crtc;

/// A line of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The address counter at its left.
    pub counter: u32,
    /// Which line of its row it is.
    pub row_scan: u32,
    /// It lies below the line compare.
    pub split: bool,
}

/// The lines of a frame, from the top.
pub(crate) struct Rows<'a> {
    crtc: &'a Crtc,
    line: Line,
    /// The line's number, and how many there are.
    number: u32,
    count: u32,
    /// Whether it has been shown once, where each is shown twice.
    repeated: bool,
}

impl<'a> Rows<'a> {
    pub fn new(crtc: &'a Crtc) -> Self {
        let counter = crtc.start() + crtc.byte_panning();
        let line = Line { counter, row_scan: crtc.preset_row_scan(), split: false };
        Self { crtc, line, number: 0, count: crtc.lines(), repeated: false }
    }
}

impl Iterator for Rows<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        if self.number == self.count {
            return None;
        }
        let line = self.line;
        if self.number == self.crtc.line_compare() {
            self.line = Line { counter: 0, row_scan: 0, split: true };
            self.repeated = false;
        } else if self.crtc.double_scan() && !self.repeated {
            self.repeated = true;
        } else {
            self.repeated = false;
            if line.row_scan + 1 == self.crtc.row_height() {
                self.line.row_scan = 0;
                self.line.counter = line.counter + self.crtc.pitch();
            } else {
                // One that begins beyond its height goes round.
                self.line.row_scan = (line.row_scan + 1) & 0x1f;
            }
        }
        self.number += 1;
        Some(line)
    }
}
