//! What a text screen says.

use std::fmt;

use trapline_memory::DeviceMemory;

use crate::registers::Registers;
use crate::render::Rows;

/// Characters 0x00 to 0x1f and 0x7f of code page 437 as the PC shows them.
const LOW: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
const DELETE: char = '⌂';
/// Characters 0x80 to 0xff of code page 437.
const HIGH: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»\
                    ░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                    αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// A character on the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Its number in the font.
    pub code: u8,
    /// Colours: foreground in bits 3:0 (bit 3 can also choose the second font), background in bits 6:4, and
    /// in bit 7 blinking or a bright background.
    pub attribute: u8,
}

impl Cell {
    /// The character, if the font is that of code page 437, the PC's.
    pub fn character(self) -> char {
        match self.code {
            0x20..=0x7e => self.code.into(),
            0x7f => DELETE,
            0x80.. => HIGH.chars().nth(usize::from(self.code - 0x80)).unwrap_or(' '),
            _ => LOW.chars().nth(self.code.into()).unwrap_or(' '),
        }
    }
}

/// A text screen: rows of [`Cell`]s, and the cursor.
///
/// It displays as its lines, without the space at their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextScreen {
    columns: usize,
    cells: Vec<Cell>,
    cursor: Option<(usize, usize)>,
}

impl TextScreen {
    pub(crate) fn read(memory: &DeviceMemory, registers: &Registers) -> Self {
        let crtc = &registers.crtc;
        let columns = crtc.chars() as usize;
        let cursor = crtc.cursor_lines().map(|_| crtc.cursor());
        let mut screen = Self { columns, ..Self::default() };
        let mut row = 0;
        // A row is where a row of characters begins, at the top also where it has begun already.
        let mut above = None;
        for line in Rows::new(crtc) {
            if above.replace((line.counter, line.split)) == Some((line.counter, line.split)) {
                continue;
            }
            for column in 0..crtc.chars() {
                let counter = line.counter + (column >> crtc.count_shift());
                let at = u64::from(crtc.address(counter, 0)) * 4;
                let [code, attribute, ..] = memory.read_u32(at).unwrap_or(0).to_le_bytes();
                screen.cells.push(Cell { code, attribute });
                if cursor == Some(counter) && screen.cursor.is_none() {
                    screen.cursor = Some((column as usize, row));
                }
            }
            row += 1;
        }
        screen
    }

    /// Characters of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows, from the top.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Cell]> {
        self.cells.chunks_exact(self.columns.max(1))
    }

    /// The character at a place, counted from 0.
    pub fn cell(&self, column: usize, row: usize) -> Option<Cell> {
        self.rows().nth(row)?.get(column).copied()
    }

    /// Column and row of the cursor; `None` if it is off or not on the screen.
    pub fn cursor(&self) -> Option<(usize, usize)> {
        self.cursor
    }

    /// The rows as text, without the space at their ends.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = String> {
        self.rows().map(|row| {
            let line: String = row.iter().map(|cell| cell.character()).collect();
            line.trim_end().to_owned()
        })
    }

    /// Whether a line contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.lines().any(|line| line.contains(text))
    }
}

impl fmt::Display for TextScreen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().try_for_each(|line| writeln!(f, "{line}"))
    }
}
