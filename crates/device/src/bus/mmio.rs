//! The memory bus: 64-bit addresses.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{BusError, Region, RegionStats, Regions, SharedDevice, lock};
use crate::AccessSize;

/// Collects the regions of an [`MmioBus`].
#[derive(Debug, Clone, Default)]
pub struct MmioBusBuilder(Regions);

impl MmioBusBuilder {
    /// Places region `index` of `device` at the `len` bytes from `start`. Locks the device for a
    /// moment.
    ///
    /// # Errors
    /// When the region is empty, reaches beyond the last address or overlaps another, or when the
    /// device has no memory-mapped face.
    pub fn register(
        &mut self,
        start: u64,
        len: u64,
        device: SharedDevice,
        index: usize,
        name: &str,
    ) -> Result<(), BusError> {
        if lock(&device).mmio().is_none() {
            return Err(BusError::NoFace { name: name.to_owned(), space: "memory" });
        }
        self.0.insert((start, len), u64::MAX, device, index, name)
    }

    /// Takes away the region that starts at `start`.
    ///
    /// # Errors
    /// When there is none.
    pub fn unregister(&mut self, start: u64) -> Result<(), BusError> {
        self.0.remove(start)
    }

    /// Freezes the layout.
    pub fn build(self) -> MmioBus {
        MmioBus { regions: self.0.0, hit: AtomicUsize::new(0) }
    }
}

/// The frozen memory bus: a sorted table, searched only where the last access went to another
/// region.
#[derive(Debug)]
pub struct MmioBus {
    regions: Vec<Region>,
    /// The region of the last access; any value is valid, it is only where to look first.
    hit: AtomicUsize,
}

impl MmioBus {
    /// A builder without regions.
    pub fn builder() -> MmioBusBuilder {
        MmioBusBuilder::default()
    }

    /// A builder that holds the regions of this bus; their counters go on counting.
    pub fn to_builder(&self) -> MmioBusBuilder {
        MmioBusBuilder(Regions(self.regions.clone()))
    }

    /// What was registered, in order of address, and how often it was accessed.
    pub fn stats(&self) -> impl Iterator<Item = RegionStats> + '_ {
        self.regions.iter().map(Region::stats)
    }

    /// Whether a device claims `address`.
    pub fn claims(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    /// The name and the first address of the region that claims `address`.
    pub fn region_of(&self, address: u64) -> Option<(&str, u64)> {
        self.find(address).map(|region| (&*region.name, region.start))
    }

    fn find(&self, address: u64) -> Option<&Region> {
        let hit = self.hit.load(Ordering::Relaxed);
        if let Some(region) = self.regions.get(hit).filter(|r| r.contains(address)) {
            return Some(region);
        }
        let at = self.regions.partition_point(|r| r.last < address);
        let region = self.regions.get(at).filter(|r| r.contains(address))?;
        self.hit.store(at, Ordering::Relaxed);
        Some(region)
    }

    /// The region that an access lies in as a whole.
    fn whole(&self, address: u64, size: AccessSize) -> Option<&Region> {
        self.find(address).filter(|region| region.holds(address, size.bytes()))
    }

    /// Reads `size` bytes at `address`. Bytes that nobody claims, those beyond the last address
    /// among them, read 0xff; bits above the size are zero.
    pub fn read(&self, address: u64, size: AccessSize) -> u64 {
        if let Some(region) = self.whole(address, size) {
            region.count_reads(1);
            let value = match lock(&region.device).mmio() {
                Some(device) => device.read(region.index, address - region.start, size),
                None => u64::MAX,
            };
            return value & size.ones();
        }
        let Some(half) = AccessSize::from_bytes(size.bytes() / 2) else { return 0xff };
        let low = self.read(address, half);
        let high = match address.checked_add(half.bytes() as u64) {
            Some(address) => self.read(address, half),
            None => half.ones(),
        };
        low | high << (8 * half.bytes())
    }

    /// Writes the low `size` bytes of `value` at `address`.
    pub fn write(&self, address: u64, size: AccessSize, value: u64) {
        if let Some(region) = self.whole(address, size) {
            region.count_writes(1);
            if let Some(device) = lock(&region.device).mmio() {
                let offset = address - region.start;
                device.write(region.index, offset, size, value & size.ones());
            }
            return;
        }
        let Some(half) = AccessSize::from_bytes(size.bytes() / 2) else { return };
        self.write(address, half, value);
        if let Some(address) = address.checked_add(half.bytes() as u64) {
            self.write(address, half, value >> (8 * half.bytes()));
        }
    }

    /// Reads any number of bytes, as the widest accesses of 8, 4, 2 and 1 bytes in this order: what
    /// an exit with three or seven bytes comes to.
    pub fn read_bytes(&self, address: u64, data: &mut [u8]) {
        let mut at = Some(address);
        let mut rest = data;
        while !rest.is_empty() {
            let size = widest(rest.len());
            let (part, behind) = rest.split_at_mut(size.bytes());
            let value = at.map_or(u64::MAX, |at| self.read(at, size)).to_le_bytes();
            part.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            at = at.and_then(|at| at.checked_add(size.bytes() as u64));
            rest = behind;
        }
    }

    /// Writes any number of bytes; see [`MmioBus::read_bytes`].
    pub fn write_bytes(&self, address: u64, data: &[u8]) {
        let mut at = Some(address);
        let mut rest = data;
        while let (Some(address), false) = (at, rest.is_empty()) {
            let size = widest(rest.len());
            let (part, behind) = rest.split_at(size.bytes());
            let value = part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.write(address, size, value);
            at = address.checked_add(size.bytes() as u64);
            rest = behind;
        }
    }
}

/// The widest access of at most `len` bytes, which is not zero.
fn widest(len: usize) -> AccessSize {
    match len {
        8.. => AccessSize::Qword,
        4.. => AccessSize::Dword,
        2.. => AccessSize::Word,
        _ => AccessSize::Byte,
    }
}
