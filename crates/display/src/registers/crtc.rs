//! The CRT controller: ports 0x3d4 and 0x3d5, or 0x3b4 and 0x3b5.

use serde::{Deserialize, Serialize};

const H_TOTAL: usize = 0x00;
const H_DISPLAY_END: usize = 0x01;
const V_TOTAL: usize = 0x06;
/// Ninth and tenth bits of vertical values.
const OVERFLOW: usize = 0x07;
const PRESET_ROW_SCAN: usize = 0x08;
const MAX_SCAN: usize = 0x09;
const CURSOR_START: usize = 0x0a;
const CURSOR_END: usize = 0x0b;
const START: usize = 0x0c;
const CURSOR: usize = 0x0e;
const V_RETRACE_START: usize = 0x10;
const V_RETRACE_END: usize = 0x11;
const V_DISPLAY_END: usize = 0x12;
const OFFSET: usize = 0x13;
const UNDERLINE: usize = 0x14;
const MODE: usize = 0x17;
const LINE_COMPARE: usize = 0x18;
const COUNT: usize = 0x19;

/// In `V_RETRACE_END`: registers 0 to 7 cannot be written, but for bit 4 of `OVERFLOW`.
const PROTECT: u8 = 0x80;
/// Bit 8 of line compare, in `OVERFLOW`.
const LINE_COMPARE_8: u8 = 0x10;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crtc {
    index: u8,
    registers: [u8; COUNT],
}

impl Crtc {
    pub fn index(&self) -> u8 {
        self.index
    }

    pub fn set_index(&mut self, index: u8) {
        self.index = index;
    }

    fn get(&self, at: usize) -> u8 {
        self.registers.get(at).copied().unwrap_or(0)
    }

    fn bit(&self, at: usize, bit: u32) -> u32 {
        u32::from(self.get(at) >> bit & 1)
    }

    pub fn read(&self) -> u8 {
        self.get(self.index.into())
    }

    pub fn write(&mut self, value: u8) {
        let at = usize::from(self.index);
        let protected = at <= OVERFLOW && self.get(V_RETRACE_END) & PROTECT != 0;
        let Some(register) = self.registers.get_mut(at) else { return };
        match (protected, at) {
            (false, _) => *register = value,
            (true, OVERFLOW) => *register = *register & !LINE_COMPARE_8 | value & LINE_COMPARE_8,
            (true, _) => {}
        }
    }

    /// Characters of a line, retrace and all.
    pub fn total_chars(&self) -> u32 {
        u32::from(self.get(H_TOTAL)) + 5
    }

    /// Characters of a line that are seen.
    pub fn chars(&self) -> u32 {
        u32::from(self.get(H_DISPLAY_END)) + 1
    }

    /// A vertical value of ten bits, the upper two at `ninth` and `tenth` of the overflow register.
    fn vertical(&self, at: usize, ninth: u32, tenth: u32) -> u32 {
        u32::from(self.get(at)) | self.bit(OVERFLOW, ninth) << 8 | self.bit(OVERFLOW, tenth) << 9
    }

    /// Lines of a frame, retrace and all.
    pub fn total_lines(&self) -> u32 {
        self.vertical(V_TOTAL, 0, 5) + 2
    }

    /// Lines that are seen, 1 to 1024, as they are counted: see [`Crtc::lines_doubled`].
    pub fn lines(&self) -> u32 {
        self.vertical(V_DISPLAY_END, 1, 6) + 1
    }

    /// Whether vertical values count two lines.
    pub fn lines_doubled(&self) -> bool {
        self.get(MODE) & 4 != 0
    }

    /// First line of vertical retrace, and how many there are.
    pub fn retrace(&self) -> (u32, u32) {
        let start = self.vertical(V_RETRACE_START, 2, 7);
        let len = u32::from(self.get(V_RETRACE_END)).wrapping_sub(start) & 0xf;
        (start, if len == 0 { 16 } else { len })
    }

    /// The line after which the screen starts again at address 0.
    pub fn line_compare(&self) -> u32 {
        let ninth = self.bit(OVERFLOW, 4) << 8;
        u32::from(self.get(LINE_COMPARE)) | ninth | self.bit(MAX_SCAN, 6) << 9
    }

    /// Lines of a row of characters, or repetitions of a line of graphics.
    pub fn row_height(&self) -> u32 {
        u32::from(self.get(MAX_SCAN) & 0x1f) + 1
    }

    /// Whether each line of a row is shown twice.
    pub fn double_scan(&self) -> bool {
        self.get(MAX_SCAN) & 0x80 != 0
    }

    /// The line of the first row that the screen begins with.
    pub fn preset_row_scan(&self) -> u32 {
        u32::from(self.get(PRESET_ROW_SCAN) & 0x1f)
    }

    /// By how many characters the screen is moved to the left.
    pub fn byte_panning(&self) -> u32 {
        u32::from(self.get(PRESET_ROW_SCAN) >> 5 & 3)
    }

    fn wide(&self, at: usize) -> u32 {
        u32::from(self.get(at)) << 8 | u32::from(self.get(at + 1))
    }

    /// The address counter's value at the upper left.
    pub fn start(&self) -> u32 {
        self.wide(START)
    }

    /// The address counter's value at the cursor.
    pub fn cursor(&self) -> u32 {
        self.wide(CURSOR)
    }

    /// The lines of a character that the cursor covers; `None` if it is off.
    pub fn cursor_lines(&self) -> Option<(u32, u32)> {
        let (start, end) = (self.get(CURSOR_START), self.get(CURSOR_END));
        let lines = (u32::from(start & 0x1f), u32::from(end & 0x1f));
        (start & 0x20 == 0 && lines.0 <= lines.1).then_some(lines)
    }

    /// By how much the address counter grows from row to row.
    pub fn pitch(&self) -> u32 {
        u32::from(self.get(OFFSET)) * 2
    }

    /// The line of a character that is its underline.
    pub fn underline(&self) -> u32 {
        u32::from(self.get(UNDERLINE) & 0x1f)
    }

    /// How many characters are shown for each step of the address counter, as a shift.
    pub fn count_shift(&self) -> u32 {
        match (self.get(UNDERLINE) & 0x20 != 0, self.get(MODE) & 8 != 0) {
            (true, _) => 2,
            (false, true) => 1,
            (false, false) => 0,
        }
    }

    /// The address in the planes, 16 bits, that is fetched when the address counter is `counter`, in line
    /// `row_scan` of a row.
    pub fn address(&self, counter: u32, row_scan: u32) -> u32 {
        let mode = self.get(MODE);
        let mut address = if self.get(UNDERLINE) & 0x40 != 0 {
            counter << 2 | counter >> 12 & 3
        } else if mode & 0x40 == 0 {
            counter << 1 | counter >> (if mode & 0x20 != 0 { 15 } else { 13 }) & 1
        } else {
            counter
        };
        // Compatibility with the CGA and with Hercules cards, whose lines are interleaved.
        for (select, bit) in [(1, 13), (2, 14)] {
            if mode & select == 0 {
                address = address & !(1 << bit) | (row_scan >> (bit - 13) & 1) << bit;
            }
        }
        address & 0xffff
    }

    /// Any bits can be in any register.
    pub fn possible(&self) -> bool {
        true
    }
}
