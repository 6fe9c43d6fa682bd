//! The colour table: ports 0x3c6 to 0x3c9.

use serde::{Deserialize, Serialize};

/// Red, green, blue, of eight bits each.
pub(crate) type Rgb = [u8; 3];

const BYTES: usize = 256 * 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dac {
    /// As written: six bits each, or eight.
    table: Vec<u8>,
    mask: u8,
    read_index: u8,
    write_index: u8,
    /// Which of the three is next.
    component: u8,
    /// The components of an entry that is not complete.
    entry: Rgb,
    reading: bool,
}

impl Default for Dac {
    fn default() -> Self {
        Self {
            table: vec![0; BYTES],
            mask: 0xff,
            read_index: 0,
            write_index: 0,
            component: 0,
            entry: [0; 3],
            reading: false,
        }
    }
}

impl Dac {
    pub fn mask(&self) -> u8 {
        self.mask
    }

    pub fn set_mask(&mut self, mask: u8) {
        self.mask = mask;
    }

    /// 0x3c7 read: 3 after a read index was set, 0 after a write index.
    pub fn state(&self) -> u8 {
        if self.reading { 3 } else { 0 }
    }

    pub fn write_index(&self) -> u8 {
        self.write_index
    }

    pub fn set_read_index(&mut self, index: u8) {
        (self.read_index, self.component, self.reading) = (index, 0, true);
    }

    pub fn set_write_index(&mut self, index: u8) {
        (self.write_index, self.component, self.reading) = (index, 0, false);
    }

    /// 0x3c9 read: red, green, blue, and the next entry.
    pub fn read(&mut self) -> u8 {
        let at = usize::from(self.read_index) * 3 + usize::from(self.component);
        let value = self.table.get(at).copied().unwrap_or(0);
        if self.advance() {
            self.read_index = self.read_index.wrapping_add(1);
        }
        value
    }

    /// 0x3c9 write: an entry changes when its blue is written. `wide`: of eight bits, not six.
    pub fn write(&mut self, value: u8, wide: bool) {
        if let Some(component) = self.entry.get_mut(usize::from(self.component)) {
            *component = if wide { value } else { value & 0x3f };
        }
        if self.advance() {
            let at = usize::from(self.write_index) * 3;
            for (to, from) in self.table.iter_mut().skip(at).zip(self.entry) {
                *to = from;
            }
            self.write_index = self.write_index.wrapping_add(1);
        }
    }

    /// Goes on to the next component; true after the last.
    fn advance(&mut self) -> bool {
        self.component = (self.component + 1) % 3;
        self.component == 0
    }

    /// What the display shows for an index. `wide`: entries have eight bits, not six.
    pub fn colour(&self, index: u8, wide: bool) -> Rgb {
        let at = usize::from(index & self.mask) * 3;
        let mut entry = self.table.iter().skip(at);
        [0; 3].map(|_| {
            let value = entry.next().copied().unwrap_or(0);
            // Six bits: the highest two fill the lowest, so that white is white.
            if wide { value } else { (value & 0x3f) << 2 | value >> 4 & 3 }
        })
    }

    /// All colours.
    pub fn colours(&self, wide: bool) -> [Rgb; 256] {
        let mut index = 0u8;
        [(); 256].map(|()| {
            let colour = self.colour(index, wide);
            index = index.wrapping_add(1);
            colour
        })
    }

    pub fn possible(&self) -> bool {
        self.table.len() == BYTES && self.component < 3
    }
}
