//! IDENTIFY DEVICE (ATA8-ACS §7.12).

use super::features::{DmaMode, MULTIPLE_MAX};
use super::trim::TRIM_BLOCKS;
use crate::drive::{Drive, SECTOR};
use crate::regs::DEVICE_DEV;

/// A sector of words, numbered as in the standard.
pub(crate) struct Words(pub [u8; SECTOR]);

impl Words {
    pub fn new() -> Self {
        Self([0; SECTOR])
    }

    pub fn set(&mut self, word: usize, value: u16) {
        for (to, from) in self.0.iter_mut().skip(2 * word).zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn set_wide(&mut self, word: usize, value: u64, words: usize) {
        for i in 0..words {
            self.set(word + i, (value >> (16 * i)) as u16);
        }
    }

    /// ASCII in `words` words, the first character of each in the high byte, filled with blanks.
    pub fn text(&mut self, word: usize, words: usize, text: &str) {
        let mut bytes = [b' '; 40];
        put_text(&mut bytes, text);
        for (i, pair) in bytes.chunks_exact(2).take(words).enumerate() {
            if let [first, second] = pair {
                self.set(word + i, u16::from_be_bytes([*first, *second]));
            }
        }
    }

    /// The integrity word: signature and checksum (§7.12.7.77).
    pub fn seal(mut self) -> [u8; SECTOR] {
        self.set(255, 0x00a5);
        let sum = self.0.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        self.set(255, u16::from(0_u8.wrapping_sub(sum)) << 8 | 0xa5);
        self.0
    }
}

/// Copies printable ASCII over blanks, as much as there is room for.
pub(crate) fn put_text(to: &mut [u8], text: &str) {
    for (to, from) in to.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
}

impl Drive {
    /// Words 49, 51, 53, 62 to 68, 80 and 88, which disks and CD-ROMs share: transfer modes.
    pub(crate) fn identify_modes(&self, words: &mut Words) {
        words.set(51, 0x0200); // PIO timing of mode 2, the highest without IORDY
        words.set(53, 0x0006); // words 64 to 70 and 88 are valid
        let (multiword, ultra) = match self.settings.dma {
            DmaMode::Multiword(n) => (1_u16 << 8 << n.min(2), 0),
            DmaMode::Ultra(n) => (0, 1_u16 << 8 << n.min(5)),
        };
        words.set(63, 0x0007 | multiword); // modes 0 to 2
        words.set(64, 0x0003); // PIO modes 3 and 4
        for word in 65..=68 {
            words.set(word, 120); // cycle times in nanoseconds
        }
        words.set(80, 0x00f0); // ATA-4 to ATA-7
        words.set(88, 0x003f | ultra); // modes 0 to 5
    }

    pub(crate) fn identify(&self) -> [u8; SECTOR] {
        let mut words = Words::new();
        let total = self.sectors();
        words.set(0, 0x0040); // a fixed disk
        // The default geometry: INITIALIZE DEVICE PARAMETERS changes words 54 to 58 alone.
        words.set(1, (total / (16 * 63)).min(16383) as u16);
        words.set(3, 16);
        words.set(6, 63);
        words.text(10, 10, &self.identity.serial);
        words.text(23, 4, &self.identity.firmware);
        words.text(27, 20, &self.identity.model);
        words.set(47, 0x8000 | u16::from(MULTIPLE_MAX));
        words.set(48, 1); // 32-bit PIO, as hosts of old read it
        words.set(49, 0x2f00); // standby timer values, IORDY (may be disabled), LBA, DMA
        words.set(50, 0x4000);
        self.identify_modes(&mut words);
        self.identify_geometry(&mut words, total);
        words.set_wide(60, total.min(0x0fff_ffff), 2);
        self.identify_features(&mut words);
        // An 80-conductor cable; which drive this is, it knows from its jumper; diagnostics passed.
        words.set(93, if self.regs.device & DEVICE_DEV == 0 { 0x600b } else { 0x6b00 });
        words.set_wide(100, total, 4);
        self.identify_sector_size(&mut words);
        words.set(217, 1); // does not rotate
        if self.trims() {
            words.set(105, TRIM_BLOCKS);
            words.set(169, 1);
        }
        words.seal()
    }

    fn identify_geometry(&self, words: &mut Words, total: u64) {
        let settings = &self.settings;
        let (c, h, s) = (settings.cylinders, settings.heads, settings.sectors_per_track);
        words.set(53, 0x0007); // these are valid too
        words.set(54, c);
        words.set(55, h.into());
        words.set(56, s.into());
        let capacity = u64::from(c) * u64::from(h) * u64::from(s);
        words.set_wide(57, capacity.min(total), 2);
        words.set(59, if settings.multiple == 0 { 0 } else { 0x0100 | u16::from(settings.multiple) });
    }

    /// Words 82 to 87: what is supported, what is on.
    fn identify_features(&self, words: &mut Words) {
        let settings = &self.settings;
        // NOP is left out: look-ahead, write cache, power management, SMART.
        words.set(82, 1 << 6 | 1 << 5 | 1 << 3 | 1);
        // FLUSH CACHE (EXT), 48-bit addresses.
        let flush = 0x4000 | 1 << 13 | 1 << 12 | 1 << 10;
        words.set(83, flush);
        words.set(84, 0x4000 | 1 << 6); // FUA
        let on = |bit: u16, on: bool| if on { 1 << bit } else { 0 };
        words.set(
            85,
            on(6, settings.look_ahead) | on(5, settings.write_cache) | 1 << 3 | on(0, settings.smart),
        );
        words.set(86, flush & 0x3fff);
        words.set(87, 0x4000 | 1 << 6);
    }

    /// Word 106: several logical sectors in a physical one.
    fn identify_sector_size(&self, words: &mut Words) {
        let physical = self.io.as_ref().map_or(512, |io| io.disk().info().physical_sector);
        let exponent = (physical / SECTOR as u32).checked_ilog2().unwrap_or(0).min(15) as u16;
        if exponent > 0 {
            words.set(106, 0x6000 | exponent);
        }
    }

    fn trims(&self) -> bool {
        let info = self.io.as_ref().map(|io| io.disk().info());
        info.is_some_and(|info| info.discard_granularity > 0 && !info.read_only)
    }
}
