//! The MSI-X table and its pending bits (PCI Local Bus 3.0 §6.8.2).

use trapline_device::{AccessSize, Msi, MsiSink};

const ENTRY: usize = 16;
const CONTROL: usize = 12;
const MASKED: u8 = 1;

/// Where the MSI-X table and the pending bit array lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// Vectors, 1 to 2,048.
    pub vectors: u16,
    /// The memory BAR that holds the table.
    pub table_bar: u8,
    /// The table's offset in it, a multiple of 8. It is 16 bytes a vector long.
    pub table_offset: u32,
    /// The memory BAR that holds the pending bits.
    pub pba_bar: u8,
    /// Their offset in it, a multiple of 8. They are 8 bytes for each 64 vectors long.
    pub pba_offset: u32,
}

impl MsixLayout {
    /// Table and pending bits in one BAR: the table at its start, the pending bits in its upper
    /// half. [`MsixLayout::bar_size`] is the smallest BAR for that.
    pub const fn in_bar(bar: u8, vectors: u16) -> Self {
        let half = (Self::bar_size(vectors) / 2) as u32;
        Self { vectors, table_bar: bar, table_offset: 0, pba_bar: bar, pba_offset: half }
    }

    /// The size of a BAR of its own for `vectors` vectors: at least a page.
    pub const fn bar_size(vectors: u16) -> u64 {
        let table = (vectors as u64 * ENTRY as u64).next_power_of_two();
        if table < 0x800 { 0x1000 } else { 2 * table }
    }

    /// Length of the table in bytes.
    pub const fn table_len(&self) -> u64 {
        self.vectors as u64 * ENTRY as u64
    }

    /// Length of the pending bits in bytes.
    pub const fn pba_len(&self) -> u64 {
        (self.vectors as u64).div_ceil(64) * 8
    }
}

pub(crate) struct MsixTable {
    layout: MsixLayout,
    table: Vec<u8>,
    pending: Vec<u8>,
    enabled: bool,
    function_mask: bool,
}

impl MsixTable {
    pub(crate) fn new(layout: MsixLayout) -> Self {
        let table = vec![0; layout.table_len() as usize];
        let pending = vec![0; layout.pba_len() as usize];
        let mut new = Self { layout, table, pending, enabled: false, function_mask: false };
        new.reset();
        new
    }

    /// All vectors masked, none pending.
    pub(crate) fn reset(&mut self) {
        self.table.fill(0);
        self.table.iter_mut().skip(CONTROL).step_by(ENTRY).for_each(|control| *control = MASKED);
        self.pending.fill(0);
        self.enabled = false;
        self.function_mask = false;
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn set_control(&mut self, enabled: bool, function_mask: bool) {
        if !enabled {
            self.pending.fill(0);
        }
        self.enabled = enabled;
        self.function_mask = function_mask;
    }

    /// Marks a vector; false where there is no such vector.
    pub(crate) fn set_pending(&mut self, vector: u16) -> bool {
        if vector >= self.layout.vectors {
            return false;
        }
        match self.pending.get_mut(usize::from(vector / 8)) {
            Some(byte) => *byte |= 1 << (vector % 8),
            None => return false,
        }
        true
    }

    fn entry(&self, vector: u16) -> Option<&[u8]> {
        let start = usize::from(vector) * ENTRY;
        self.table.get(start..start + ENTRY)
    }

    pub(crate) fn masked(&self, vector: u16) -> bool {
        let control = self.entry(vector).and_then(|entry| entry.get(CONTROL));
        !self.enabled || self.function_mask || control.is_none_or(|control| control & MASKED != 0)
    }

    pub(crate) fn message(&self, vector: u16) -> Option<Msi> {
        let entry = self.entry(vector)?;
        let (address, rest) = entry.split_first_chunk::<8>()?;
        let data = rest.first_chunk::<4>()?;
        Some(Msi { address: u64::from_le_bytes(*address), data: u32::from_le_bytes(*data) })
    }

    /// Sends what is pending and not masked.
    pub(crate) fn deliver(&mut self, sink: &dyn MsiSink) {
        if !self.enabled || self.function_mask {
            return;
        }
        for at in 0..self.pending.len() {
            let Some(bits) = self.pending.get(at).copied().filter(|bits| *bits != 0) else { continue };
            for bit in (0..8).filter(|bit| bits >> bit & 1 != 0) {
                let vector = (at * 8 + bit) as u16;
                if self.masked(vector) {
                    continue;
                }
                if let Some(byte) = self.pending.get_mut(at) {
                    *byte &= !(1 << bit);
                }
                if let Some(message) = self.message(vector) {
                    sink.signal(message);
                }
            }
        }
    }

    /// Where in the table or in the pending bits an access of `region` lies.
    fn at(&self, region: usize, offset: u64) -> Option<(bool, usize)> {
        let inside = |bar: u8, start: u32, len: u64| {
            let at = offset.checked_sub(start.into())?;
            (region == usize::from(bar) && at < len).then_some(at as usize)
        };
        let MsixLayout { table_bar, table_offset, pba_bar, pba_offset, .. } = self.layout;
        let table = inside(table_bar, table_offset, self.layout.table_len()).map(|at| (true, at));
        table.or_else(|| inside(pba_bar, pba_offset, self.layout.pba_len()).map(|at| (false, at)))
    }

    /// Reads; `None` where the access is to neither the table nor the pending bits.
    pub(crate) fn read(&self, region: usize, offset: u64, size: AccessSize) -> Option<u64> {
        let (table, at) = self.at(region, offset)?;
        let bytes = if table { &self.table } else { &self.pending };
        let bytes = bytes.iter().skip(at).take(size.bytes());
        Some(bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Writes; false where the access is to neither. The pending bits are read-only.
    pub(crate) fn write(&mut self, region: usize, offset: u64, size: AccessSize, value: u64) -> bool {
        let Some((table, at)) = self.at(region, offset) else { return false };
        if table {
            let value = value.to_le_bytes();
            for (i, (byte, new)) in (at..).zip(self.table.iter_mut().skip(at).zip(value)).take(size.bytes()) {
                // Of the control doubleword only the mask bit exists; address bits 1:0 are zero.
                *byte = match i % ENTRY {
                    0 => new & !3,
                    CONTROL => new & MASKED,
                    13..ENTRY => 0,
                    _ => new,
                };
            }
        }
        true
    }

    pub(crate) fn save(&self) -> (Vec<u8>, Vec<u8>) {
        // What is enabled is in the capability's control register.
        let Self { layout: _, table, pending, enabled: _, function_mask: _ } = self;
        (table.clone(), pending.clone())
    }

    pub(crate) fn accepts(&self, (table, pending): &(Vec<u8>, Vec<u8>)) -> bool {
        table.len() == self.table.len() && pending.len() == self.pending.len()
    }

    pub(crate) fn restore(&mut self, (table, pending): (Vec<u8>, Vec<u8>)) {
        self.table = table;
        self.pending = pending;
    }
}
