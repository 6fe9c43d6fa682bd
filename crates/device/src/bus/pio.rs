//! The port bus: 65,536 ports.

use super::{BusError, Region, RegionStats, Regions, SharedDevice, lock};
use crate::{AccessSize, PortIo, read_each, write_each};

const PORTS: usize = 0x1_0000;

/// Collects the regions of a [`PioBus`].
#[derive(Debug, Clone, Default)]
pub struct PioBusBuilder(Regions);

impl PioBusBuilder {
    /// Places region `index` of `device` at the `len` ports from `start`. Locks the device for a
    /// moment.
    ///
    /// # Errors
    /// When the region is empty, reaches beyond port 0xffff or overlaps another, or when the device
    /// has no port face.
    pub fn register(
        &mut self,
        start: u16,
        len: u32,
        device: SharedDevice,
        index: usize,
        name: &str,
    ) -> Result<(), BusError> {
        if lock(&device).pio().is_none() {
            return Err(BusError::NoFace { name: name.to_owned(), space: "port" });
        }
        self.0.insert((start.into(), len.into()), 0xffff, device, index, name)
    }

    /// Takes away the region that starts at `start`.
    ///
    /// # Errors
    /// When there is none.
    pub fn unregister(&mut self, start: u16) -> Result<(), BusError> {
        self.0.remove(start.into())
    }

    /// Freezes the layout.
    pub fn build(self) -> PioBus {
        let regions = self.0.0;
        let mut table = vec![0_u32; PORTS];
        for (slot, region) in (1_u32..).zip(&regions) {
            let ports = table.iter_mut().skip(region.start as usize);
            for entry in ports.take((region.last - region.start) as usize + 1) {
                *entry = slot;
            }
        }
        PioBus { table: table.into_boxed_slice(), regions }
    }
}

/// The frozen port bus. A port's device is found by one look into a flat table.
#[derive(Debug)]
pub struct PioBus {
    /// For each port 0 (unclaimed) or the index of its region plus one.
    table: Box<[u32]>,
    regions: Vec<Region>,
}

impl PioBus {
    /// A builder without regions.
    pub fn builder() -> PioBusBuilder {
        PioBusBuilder::default()
    }

    /// A builder that holds the regions of this bus; their counters go on counting.
    pub fn to_builder(&self) -> PioBusBuilder {
        PioBusBuilder(Regions(self.regions.clone()))
    }

    /// What was registered, in order of address, and how often it was accessed.
    pub fn stats(&self) -> impl Iterator<Item = RegionStats> + '_ {
        self.regions.iter().map(Region::stats)
    }

    /// The name and the first port of the region that claims `port`.
    pub fn region_of(&self, port: u16) -> Option<(&str, u16)> {
        self.find(port).map(|region| (&*region.name, region.start as u16))
    }

    fn find(&self, port: u16) -> Option<&Region> {
        let slot = *self.table.get(usize::from(port))?;
        self.regions.get(slot.checked_sub(1)? as usize)
    }

    /// The region that an access lies in as a whole, with the offset in it.
    fn whole(&self, port: u16, size: AccessSize) -> Option<(&Region, u16)> {
        let region = self.find(port)?;
        let fits = region.holds(port.into(), size.bytes());
        fits.then(|| (region, (u64::from(port) - region.start) as u16))
    }

    /// IN: reads `size` bytes (at most four) at `port`. Bytes that nobody claims, those beyond port
    /// 0xffff among them, read 0xff; bits above the size are zero.
    pub fn read(&self, port: u16, size: AccessSize) -> u32 {
        let size = size.min(AccessSize::Dword);
        if let Some((region, offset)) = self.whole(port, size) {
            region.count_reads(1);
            let value = match lock(&region.device).pio() {
                Some(device) => device.read(region.index, offset, size),
                None => u32::MAX,
            };
            return value & size.ones() as u32;
        }
        let Some((half, bytes)) = half(size) else { return 0xff };
        let low = self.read(port, half);
        let high = match port.checked_add(bytes) {
            Some(port) => self.read(port, half),
            None => half.ones() as u32,
        };
        low | high << (8 * bytes)
    }

    /// OUT: writes the low `size` bytes (at most four) of `value` to `port`.
    pub fn write(&self, port: u16, size: AccessSize, value: u32) {
        let size = size.min(AccessSize::Dword);
        if let Some((region, offset)) = self.whole(port, size) {
            region.count_writes(1);
            if let Some(device) = lock(&region.device).pio() {
                device.write(region.index, offset, size, value & size.ones() as u32);
            }
            return;
        }
        let Some((half, bytes)) = half(size) else { return };
        self.write(port, half, value);
        if let Some(port) = port.checked_add(bytes) {
            self.write(port, half, value >> (8 * bytes));
        }
    }

    /// REP INS: fills `data` with reads of `size` (at most four bytes) from the one port. A rest of
    /// `data` shorter than `size` is left alone.
    pub fn read_block(&self, port: u16, size: AccessSize, data: &mut [u8]) {
        let size = size.min(AccessSize::Dword);
        let Some((region, offset)) = self.whole(port, size) else {
            return read_each(&mut Split { bus: self, port }, 0, 0, size, data);
        };
        region.count_reads(data.len() / size.bytes());
        match lock(&region.device).pio() {
            Some(device) => device.read_block(region.index, offset, size, data),
            None => data.fill(0xff),
        }
    }

    /// REP OUTS: the writing counterpart of [`PioBus::read_block`].
    pub fn write_block(&self, port: u16, size: AccessSize, data: &[u8]) {
        let size = size.min(AccessSize::Dword);
        let Some((region, offset)) = self.whole(port, size) else {
            return write_each(&mut Split { bus: self, port }, 0, 0, size, data);
        };
        region.count_writes(data.len() / size.bytes());
        if let Some(device) = lock(&region.device).pio() {
            device.write_block(region.index, offset, size, data);
        }
    }
}

/// Half a port access and its length in bytes.
fn half(size: AccessSize) -> Option<(AccessSize, u16)> {
    match size {
        AccessSize::Byte => None,
        AccessSize::Word => Some((AccessSize::Byte, 1)),
        AccessSize::Dword | AccessSize::Qword => Some((AccessSize::Word, 2)),
    }
}

/// A block access to a port at which no region holds it whole, element by element.
struct Split<'a> {
    bus: &'a PioBus,
    port: u16,
}

impl PortIo for Split<'_> {
    fn read(&mut self, _: usize, _: u16, size: AccessSize) -> u32 {
        self.bus.read(self.port, size)
    }

    fn write(&mut self, _: usize, _: u16, size: AccessSize, value: u32) {
        self.bus.write(self.port, size, value);
    }

    fn read_block(&mut self, _: usize, _: u16, size: AccessSize, data: &mut [u8]) {
        self.bus.read_block(self.port, size, data);
    }

    fn write_block(&mut self, _: usize, _: u16, size: AccessSize, data: &[u8]) {
        self.bus.write_block(self.port, size, data);
    }
}
