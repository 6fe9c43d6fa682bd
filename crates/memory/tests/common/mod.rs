//! Random tables for the walkers.
#![allow(dead_code)]

use trapline_memory::TableMemory;
use trapline_memory::test::Tables;

/// How many pages of tables there are. Entries mostly point to them.
pub const PAGES: u64 = 24;

/// A small generator of pseudo-random numbers (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        (self.next() >> 32).is_multiple_of(n)
    }

    /// `bits` with probability 1 − 1/n, else nothing.
    pub fn mostly(&mut self, bits: u64, n: u64) -> u64 {
        if self.one_in(n) { 0 } else { bits }
    }

    /// `bits` with probability 1/n, else nothing.
    pub fn rarely(&mut self, bits: u64, n: u64) -> u64 {
        if self.one_in(n) { bits } else { 0 }
    }
}

/// Memory in which every word is an entry made by `entry`.
pub fn fill(mut entry: impl FnMut() -> u64) -> Tables {
    let tables = Tables::new(PAGES as usize);
    for word in 0..PAGES * 512 {
        tables.write(word * 8, entry()).unwrap();
    }
    tables
}

/// All words.
pub fn dump(tables: &Tables) -> Vec<u64> {
    (0..PAGES * 512).map(|word| tables.read(word * 8).unwrap()).collect()
}

/// Bits `high` to `low` of a value.
pub fn bits(value: u64, high: u32, low: u32) -> u64 {
    (value >> low) & (u64::MAX >> (63 - (high - low)))
}

/// One bit of a value.
pub fn bit(value: u64, at: u32) -> bool {
    value >> at & 1 == 1
}
