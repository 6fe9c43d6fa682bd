//! The buses, against a naive model: a map from each address to the byte behind it.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use trapline_device::bus::{BusError, MmioBus, PioBus, SharedDevice, Swap};
use trapline_device::{AccessSize, Device, MmioIo, Poll, PortIo, read_each, write_each};

const SIZES: [AccessSize; 4] = [AccessSize::Byte, AccessSize::Word, AccessSize::Dword, AccessSize::Qword];

/// Memory, one block a region, that insists on the bus's promise: no access passes its end.
struct Scratch {
    regions: Vec<Vec<u8>>,
    faces: (bool, bool),
    /// The accesses seen, as offset and size.
    seen: Vec<(u64, usize)>,
}

impl Scratch {
    fn new(regions: Vec<Vec<u8>>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { regions, faces: (true, true), seen: Vec::new() }))
    }

    fn load(&mut self, region: usize, offset: u64, size: AccessSize) -> u64 {
        self.seen.push((offset, size.bytes()));
        let at = offset as usize;
        self.regions[region][at..at + size.bytes()].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
    }

    fn store(&mut self, region: usize, offset: u64, size: AccessSize, value: u64) {
        self.seen.push((offset, size.bytes()));
        let at = offset as usize;
        self.regions[region][at..at + size.bytes()].copy_from_slice(&value.to_le_bytes()[..size.bytes()]);
    }
}

impl Device for Scratch {
    fn name(&self) -> &str {
        "scratch"
    }
    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        self.faces.0.then_some(self)
    }
    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        self.faces.1.then_some(self)
    }
    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }
    fn reset(&mut self) {}
}

impl PortIo for Scratch {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        // Rubbish above the size: the bus masks it.
        self.load(region, offset.into(), size) as u32 | !(size.ones() as u32)
    }
    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        self.store(region, offset.into(), size, value.into());
    }
    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }
    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl MmioIo for Scratch {
    fn read(&mut self, region: usize, offset: u64, size: AccessSize) -> u64 {
        self.load(region, offset, size) | !size.ones()
    }
    fn write(&mut self, region: usize, offset: u64, size: AccessSize, value: u64) {
        self.store(region, offset, size, value);
    }
}

#[test]
fn a_conflict_names_both_regions() {
    let mut builder = PioBus::builder();
    builder.register(0x3f8, 8, Scratch::new(vec![vec![0; 8]]), 0, "serial0").unwrap();
    let error = builder.register(0x3fb, 1, Scratch::new(vec![vec![0; 1]]), 0, "floppy").unwrap_err();
    assert_eq!(error.to_string(), "floppy at 0x3fb+0x1 overlaps serial0 at 0x3f8+0x8");
    // A region that swallows the other conflicts too; its neighbours do not.
    assert!(matches!(
        builder.register(0x300, 0x200, Scratch::new(vec![vec![0; 0x200]]), 0, "all"),
        Err(BusError::Conflict { .. })
    ));
    builder.register(0x3f7, 1, Scratch::new(vec![vec![0; 1]]), 0, "below").unwrap();
    builder.register(0x400, 1, Scratch::new(vec![vec![0; 1]]), 0, "above").unwrap();
}

#[test]
fn a_region_must_lie_on_the_bus() {
    let device: SharedDevice = Scratch::new(vec![vec![]]);
    let refused = |r: Result<(), BusError>| matches!(r, Err(BusError::OutOfRange { .. }));
    let mut pio = PioBus::builder();
    assert!(refused(pio.register(0x80, 0, device.clone(), 0, "empty")));
    assert!(refused(pio.register(0xffff, 2, device.clone(), 0, "beyond")));
    pio.register(0xffff, 1, device.clone(), 0, "last").unwrap();
    let mut mmio = MmioBus::builder();
    assert!(refused(mmio.register(0, 0, device.clone(), 0, "empty")));
    assert!(refused(mmio.register(u64::MAX, 2, device.clone(), 0, "beyond")));
    mmio.register(u64::MAX, 1, device, 0, "last").unwrap();
}

#[test]
fn a_device_without_the_face_is_refused() {
    let device = Scratch::new(vec![vec![0; 4]]);
    device.lock().unwrap().faces = (false, false);
    assert!(matches!(
        PioBus::builder().register(0, 1, device.clone(), 0, "x"),
        Err(BusError::NoFace { space: "port", .. })
    ));
    assert!(matches!(
        MmioBus::builder().register(0, 1, device, 0, "x"),
        Err(BusError::NoFace { space: "memory", .. })
    ));
}

#[test]
fn unclaimed_addresses_read_all_ones() {
    let pio = PioBus::builder().build();
    pio.write(0x80, AccessSize::Dword, 0);
    assert_eq!(pio.read(0x80, AccessSize::Byte), 0xff);
    assert_eq!(pio.read(0x80, AccessSize::Dword), 0xffff_ffff);
    let mut block = [0; 5];
    pio.read_block(0x80, AccessSize::Word, &mut block);
    assert_eq!(block, [0xff, 0xff, 0xff, 0xff, 0]);
    let mmio = MmioBus::builder().build();
    mmio.write(0, AccessSize::Qword, 0);
    assert_eq!(mmio.read(u64::MAX, AccessSize::Qword), u64::MAX);
    assert!(!mmio.claims(0));
}

#[test]
fn accesses_do_not_wrap_at_the_top() {
    let device = Scratch::new(vec![vec![0x11], vec![0x22]]);
    let mut builder = PioBus::builder();
    builder.register(0, 1, device.clone(), 0, "first").unwrap();
    builder.register(0xffff, 1, device.clone(), 1, "last").unwrap();
    let pio = builder.build();
    assert_eq!(pio.read(0xffff, AccessSize::Dword), 0xffff_ff22);
    pio.write(0xffff, AccessSize::Word, 0x5533);
    assert_eq!(pio.read(0, AccessSize::Byte), 0x11);
    assert_eq!(pio.read(0xffff, AccessSize::Byte), 0x33);

    let mut builder = MmioBus::builder();
    builder.register(0, 1, device.clone(), 0, "first").unwrap();
    builder.register(u64::MAX, 1, device, 1, "last").unwrap();
    let mmio = builder.build();
    assert_eq!(mmio.read(u64::MAX, AccessSize::Word), 0xff33);
    mmio.write_bytes(u64::MAX, &[1, 2, 3]);
    assert_eq!(mmio.read(0, AccessSize::Byte), 0x11);
    let mut bytes = [0; 3];
    mmio.read_bytes(u64::MAX, &mut bytes);
    assert_eq!(bytes, [1, 0xff, 0xff]);
}

#[test]
fn a_straddling_access_is_halved() {
    let device = Scratch::new(vec![vec![1, 2, 3, 4, 5, 6]]);
    let mut builder = PioBus::builder();
    builder.register(0x10, 6, device.clone(), 0, "six").unwrap();
    let bus = builder.build();
    assert_eq!(bus.read(0x12, AccessSize::Dword), 0x0605_0403);
    assert_eq!(bus.read(0x13, AccessSize::Dword), 0xff06_0504);
    assert_eq!(device.lock().unwrap().seen, [(2, 4), (3, 2), (5, 1)]);
}

#[test]
fn a_block_is_one_port_again_and_again() {
    let device = Scratch::new(vec![vec![1, 2, 3]]);
    let mut builder = PioBus::builder();
    builder.register(0x1f0, 3, device, 0, "data").unwrap();
    let bus = builder.build();
    let mut block = [0; 6];
    bus.read_block(0x1f0, AccessSize::Word, &mut block);
    assert_eq!(block, [1, 2, 1, 2, 1, 2]);
    bus.read_block(0x1f2, AccessSize::Word, &mut block);
    assert_eq!(block, [3, 0xff, 3, 0xff, 3, 0xff]);
    bus.write_block(0x1f2, AccessSize::Word, &[7, 8, 9, 10]);
    assert_eq!(bus.read(0x1f2, AccessSize::Byte), 9);
}

#[test]
fn accesses_are_counted() {
    let mut builder = PioBus::builder();
    builder.register(0x1f0, 8, Scratch::new(vec![vec![0; 8]]), 0, "ide").unwrap();
    let bus = builder.build();
    bus.read(0x1f7, AccessSize::Byte);
    bus.read_block(0x1f0, AccessSize::Word, &mut [0; 512]);
    bus.write(0x1f7, AccessSize::Byte, 0xec);
    bus.read(0x170, AccessSize::Byte);
    let count = |bus: &PioBus| bus.stats().map(|s| (s.name, s.reads, s.writes)).collect::<Vec<_>>();
    assert_eq!(count(&bus), [("ide".to_owned(), 257, 1)]);
    // A rebuilt bus counts on.
    let rebuilt = bus.to_builder().build();
    rebuilt.read(0x1f7, AccessSize::Byte);
    assert_eq!(count(&rebuilt), [("ide".to_owned(), 258, 1)]);
}

#[test]
fn a_bar_moves_under_a_running_view() {
    let device: SharedDevice = Scratch::new(vec![vec![0xaa; 0x1000]]);
    let mut builder = MmioBus::builder();
    builder.register(0xc000_0000, 0x1000, device.clone(), 0, "bar0").unwrap();
    let swap = Arc::new(Swap::new(builder.build()));
    let mut view = swap.view();
    assert_eq!(view.get().read(0xc000_0000, AccessSize::Byte), 0xaa);

    let mut builder = swap.load().to_builder();
    assert!(matches!(builder.unregister(0xc000_0001), Err(BusError::NotFound { .. })));
    builder.unregister(0xc000_0000).unwrap();
    builder.register(0xd000_0000, 0x1000, device, 0, "bar0").unwrap();
    swap.replace(builder.build());
    assert_eq!(view.get().read(0xc000_0000, AccessSize::Byte), 0xff);
    assert_eq!(view.get().read(0xd000_0000, AccessSize::Byte), 0xaa);
}

/// Regions as (start, length), some of which overlap.
fn layout() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((any::<u8>(), 0_u8..12), 0..20)
}

/// Accesses as (address, size, value to write).
fn accesses() -> impl Strategy<Value = Vec<(u8, usize, Option<u64>)>> {
    prop::collection::vec((any::<u8>(), 0_usize..4, any::<Option<u64>>()), 1..60)
}

/// What is behind each of 256 addresses.
#[derive(Default)]
struct Model {
    bytes: Vec<Option<u8>>,
}

impl Model {
    /// Whether a region could be placed: the naive way, byte by byte.
    fn place(&mut self, start: u8, len: u8) -> bool {
        let range = usize::from(start)..usize::from(start) + usize::from(len);
        let free = |at: usize| at < 0x100 && self.bytes.get(at).copied().flatten().is_none();
        let room = range.clone().all(free);
        if len == 0 || !room {
            return false;
        }
        self.bytes.resize(self.bytes.len().max(range.end), None);
        self.bytes[range].fill(Some(0));
        true
    }

    fn read(&self, at: u8, size: AccessSize) -> u64 {
        let byte = |i: usize| self.bytes.get(usize::from(at) + i).copied().flatten().unwrap_or(0xff);
        (0..size.bytes()).rev().fold(0, |v, i| v << 8 | u64::from(byte(i)))
    }

    fn write(&mut self, at: u8, size: AccessSize, value: u64) {
        for (i, byte) in value.to_le_bytes().into_iter().take(size.bytes()).enumerate() {
            if let Some(Some(cell)) = self.bytes.get_mut(usize::from(at) + i) {
                *cell = byte;
            }
        }
    }
}

proptest! {
    #[test]
    fn ports_act_like_the_model(layout in layout(), accesses in accesses()) {
        // The last 256 ports, so that the end of the space takes part.
        let mut model = Model::default();
        let mut builder = PioBus::builder();
        for (start, len) in layout {
            let device = Scratch::new(vec![vec![0; len.into()]]);
            let placed = builder.register(0xff00 + u16::from(start), len.into(), device, 0, "r");
            prop_assert_eq!(placed.is_ok(), model.place(start, len));
        }
        let bus = builder.build();
        for (at, size, value) in accesses {
            let size = SIZES[size].min(AccessSize::Dword);
            let port = 0xff00 + u16::from(at);
            if let Some(value) = value {
                bus.write(port, size, value as u32);
                model.write(at, size, value);
            }
            prop_assert_eq!(u64::from(bus.read(port, size)), model.read(at, size));
        }
    }

    #[test]
    fn memory_acts_like_the_model(top in any::<bool>(), layout in layout(), accesses in accesses()) {
        let base = if top { u64::MAX - 0xff } else { 0xfee0_0000 };
        let mut model = Model::default();
        let mut builder = MmioBus::builder();
        for (start, len) in layout {
            // What passes the end of the model is no subject here unless it is the bus's end too.
            if !top && usize::from(start) + usize::from(len) > 0x100 {
                continue;
            }
            let device = Scratch::new(vec![vec![0; len.into()]]);
            let placed = builder.register(base + u64::from(start), len.into(), device, 0, "r");
            prop_assert_eq!(placed.is_ok(), model.place(start, len));
        }
        let bus = builder.build();
        for (at, size, value) in accesses {
            let size = SIZES[size];
            let address = base + u64::from(at);
            if let Some(value) = value {
                bus.write(address, size, value);
                model.write(at, size, value);
            }
            prop_assert_eq!(bus.read(address, size), model.read(at, size));
            let mut bytes = [0; 7];
            bus.read_bytes(address, &mut bytes);
            for (i, byte) in bytes.into_iter().enumerate() {
                let expected = at.checked_add(i as u8).map_or(0xff, |at| model.read(at, AccessSize::Byte));
                prop_assert_eq!(u64::from(byte), expected);
            }
        }
    }
}
