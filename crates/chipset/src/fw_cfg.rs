//! Firmware configuration through ports: how many processors there are, how much memory, and so on, as QEMU's
//! `fw_cfg` (QEMU `docs/specs/fw_cfg.rst`).
//!
//! One region of two ports: a 16-bit selector, and data, read byte by byte. Behind an item's end, and from
//! items that do not exist, reads give zero. Left out: the DMA interface, writing to items.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

/// Key of the signature, the four letters "QEMU".
pub const SIGNATURE: u16 = 0x00;
/// Key of the interface version, 32 bits: 1 is the traditional interface.
pub const ID: u16 = 0x01;
/// Key of the size of RAM in bytes, 64 bits.
pub const RAM_SIZE: u16 = 0x03;
/// Key of the number of processors, 16 bits.
pub const NB_CPUS: u16 = 0x05;
/// Key of the largest number of processors there may be, 16 bits.
pub const MAX_CPUS: u16 = 0x0f;

const SELECTOR: u16 = 0;

/// A firmware configuration device.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    selected: u16,
    position: usize,
}

impl FwCfg {
    /// A device with signature and version alone.
    pub fn new() -> Self {
        let mut this = Self { items: BTreeMap::new(), selected: SIGNATURE, position: 0 };
        this.add(SIGNATURE, *b"QEMU");
        this.add(ID, 1u32.to_le_bytes());
        this
    }

    /// Adds or replaces an item.
    pub fn add(&mut self, key: u16, data: impl Into<Vec<u8>>) {
        self.items.insert(key, data.into());
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.items.get(&self.selected).and_then(|item| item.get(self.position).copied());
        self.position = self.position.saturating_add(1);
        byte.unwrap_or(0)
    }
}

impl Default for FwCfg {
    fn default() -> Self {
        Self::new()
    }
}

impl PortIo for FwCfg {
    fn read(&mut self, _region: usize, offset: u16, size: AccessSize) -> u32 {
        match (offset, size) {
            (SELECTOR, _) => 0,
            (_, AccessSize::Byte) => self.next_byte().into(),
            _ => size.ones() as u32,
        }
    }

    fn write(&mut self, _region: usize, offset: u16, size: AccessSize, value: u32) {
        if offset == SELECTOR && size == AccessSize::Word {
            (self.selected, self.position) = (value as u16, 0);
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl Device for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        (self.selected, self.position) = (SIGNATURE, 0);
    }
}

/// Saved state of a [`FwCfg`]: not the items, which the machine's configuration gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    selected: u16,
    position: u64,
}

impl SaveRestore for FwCfg {
    type State = FwCfgState;

    fn save(&self) -> FwCfgState {
        let Self { items: _, selected, position } = self;
        FwCfgState { selected: *selected, position: *position as u64 }
    }

    fn restore(&mut self, state: FwCfgState) -> Result<(), RestoreError> {
        let FwCfgState { selected, position } = state;
        // A position is good wherever it is: behind the end there are zeros.
        (self.selected, self.position) = (selected, usize::try_from(position).unwrap_or(usize::MAX));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(dev: &mut FwCfg, key: u16, count: usize) -> Vec<u8> {
        dev.write(0, 0, AccessSize::Word, key.into());
        (0..count).map(|_| dev.read(0, 1, AccessSize::Byte) as u8).collect()
    }

    #[test]
    fn an_item_is_read_from_its_start_and_ends_in_zeros() {
        let mut dev = FwCfg::new();
        dev.add(NB_CPUS, 4u16.to_le_bytes());
        assert_eq!(bytes(&mut dev, SIGNATURE, 5), b"QEMU\0");
        assert_eq!(bytes(&mut dev, NB_CPUS, 4), [4, 0, 0, 0]);
        assert_eq!(bytes(&mut dev, NB_CPUS, 1), [4]);
        assert_eq!(bytes(&mut dev, 0x1234, 2), [0, 0]);
    }

    #[test]
    fn a_saved_state_goes_on_in_the_middle_of_an_item() {
        let mut dev = FwCfg::new();
        bytes(&mut dev, SIGNATURE, 2);
        let mut other = FwCfg::new();
        other.restore(dev.save()).unwrap();
        assert_eq!(other.read(0, 1, AccessSize::Byte), u32::from(b'M'));
    }
}
