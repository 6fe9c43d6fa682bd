//! A device with every kind of BAR, behind which are bytes.
#![allow(dead_code, reason = "each test uses its part")]

use std::sync::{Arc, Mutex};

use trapline_device::{
    AccessSize, Device, IrqLine, MmioIo, MsiSink, Poll, PortIo, RestoreError, SaveRestore, read_each,
    write_each,
};
use trapline_pci::test::Bench;
use trapline_pci::{
    BarKind, ClassCode, ConfigSpace, ConfigState, Identity, IntxPin, MsiConfig, MsixLayout, PciFunction,
};

pub const ID: Identity = Identity {
    vendor: 0x1af4,
    device: 0x10ff,
    revision: 0x42,
    class: ClassCode::new(0xff, 0x12, 0x34),
    subsystem: (0xcafe, 0xbabe),
};

/// BAR 0: 32 ports; BAR 1: 4 KiB of memory; BAR 2 and 3: 64 KiB of 64-bit prefetchable memory; BAR
/// 4: MSI-X; ROM of 64 KiB. The last value written to each region reads back at every offset.
pub struct Example {
    pub config: ConfigSpace,
    pub latches: [u64; 16],
    pub resets: usize,
}

pub const MSI: MsiConfig = MsiConfig { vectors: 8, wide: true, maskable: true };
pub const MSIX_VECTORS: u16 = 70;

impl Example {
    pub fn new(line: IrqLine, sink: Arc<dyn MsiSink>) -> Self {
        let mut config = ConfigSpace::new(ID);
        config.add_bar(0, BarKind::Io, 32).unwrap();
        config.add_bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000).unwrap();
        config.add_bar(2, BarKind::Memory64 { prefetchable: true }, 0x1_0000).unwrap();
        config.add_bar(4, BarKind::Memory32 { prefetchable: false }, MsixLayout::bar_size(70)).unwrap();
        config.add_rom(0x1_0000).unwrap();
        config.wire_intx(IntxPin::B, line);
        config.add_power_management().unwrap();
        config.add_msi(MSI, sink.clone()).unwrap();
        config.add_msix(MsixLayout::in_bar(4, MSIX_VECTORS), sink).unwrap();
        config.add_vendor_capability(&[0xaa, 0x55, 0], &[0, 0x0f]).unwrap();
        Self { config, latches: [0; 16], resets: 0 }
    }
}

impl PciFunction for Example {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

impl Device for Example {
    fn name(&self) -> &str {
        "example"
    }
    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }
    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }
    fn reset(&mut self) {
        self.config.reset();
        self.latches = [0; 16];
        self.resets += 1;
    }
}

impl PortIo for Example {
    fn read(&mut self, region: usize, _: u16, _: AccessSize) -> u32 {
        self.latches[region] as u32
    }
    fn write(&mut self, region: usize, _: u16, _: AccessSize, value: u32) {
        self.latches[region] = value.into();
    }
    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }
    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl MmioIo for Example {
    fn read(&mut self, region: usize, offset: u64, size: AccessSize) -> u64 {
        self.config.msix_read(region, offset, size).unwrap_or(self.latches[region])
    }
    fn write(&mut self, region: usize, offset: u64, size: AccessSize, value: u64) {
        if !self.config.msix_write(region, offset, size, value) {
            self.latches[region] = value;
        }
    }
}

impl SaveRestore for Example {
    type State = (ConfigState, Vec<u64>);
    fn save(&self) -> Self::State {
        let Self { config, latches, resets: _ } = self;
        (config.save(), latches.to_vec())
    }
    fn restore(&mut self, (config, latches): Self::State) -> Result<(), RestoreError> {
        self.config.restore(config)?;
        self.latches.copy_from_slice(&latches);
        Ok(())
    }
}

pub fn plugged() -> (Bench, Arc<Mutex<Example>>) {
    let mut bench = Bench::new();
    let device = Arc::new(Mutex::new(Example::new(bench.line(), bench.sink())));
    bench.plug(device.clone());
    (bench, device)
}

pub fn placed() -> (Bench, Arc<Mutex<Example>>) {
    let (mut bench, device) = plugged();
    bench.place().unwrap();
    (bench, device)
}
