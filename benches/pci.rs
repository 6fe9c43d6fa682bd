//! Configuration space through ports 0xcf8 and 0xcfc, and memory behind a BAR, as a vCPU's thread reaches them: by
//! a view of the port or memory bus. Four functions, as on an i440FX.

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use criterion::Criterion;
use trapline::device::AccessSize::{self, Byte, Dword};
use trapline::device::bus::Swap;
use trapline::device::{Device, MmioIo, Poll, PortIo};
use trapline::pci::{
    AddressWindows, BarKind, BusId, BusLayout, CONFIG_PORTS, CONFIG_PORTS_LEN, ClassCode, ConfigPorts,
    ConfigSpace, DevFn, Effects, I440Fx, Identity, IntxRouter, PciFunction, PciRoot, Piix3,
};

const ADDRESS: u16 = CONFIG_PORTS;
const DATA: u16 = CONFIG_PORTS + 4;
/// Device 3, register 0x40: one that only stores.
const LATCH: u32 = 1 << 31 | 3 << 11 | 0x40;

/// A function with a register behind a BAR.
struct Function {
    config: ConfigSpace,
    register: u64,
}

impl Function {
    fn new() -> Self {
        let id = Identity {
            vendor: 0x1b36,
            device: 5,
            revision: 0,
            class: ClassCode::OTHER_BRIDGE,
            subsystem: (0, 0),
        };
        let mut config = ConfigSpace::new(id);
        let bar = BarKind::Memory32 { prefetchable: false };
        config.add_bar(0, bar, 4096).expect("bar 0 is free");
        config.define(0x40, Dword, 0, u32::MAX);
        Self { config, register: 0 }
    }
}

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

impl Device for Function {
    fn name(&self) -> &str {
        "function"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        self.config.reset();
    }
}

impl MmioIo for Function {
    fn read(&mut self, _: usize, _: u64, _: AccessSize) -> u64 {
        self.register
    }

    fn write(&mut self, _: usize, _: u64, _: AccessSize, value: u64) {
        self.register = value;
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();

    let effects = Effects::new();
    let mut root = PciRoot::new(effects.clone());
    let host = I440Fx::new((0, 0), effects);
    let router = IntxRouter::new(Vec::new());
    root.add(BusId::ROOT, DevFn::new(0, 0), Arc::new(Mutex::new(host))).expect("free");
    root.add(BusId::ROOT, DevFn::new(1, 0), Arc::new(Mutex::new(Piix3::new((0, 0), router)))).expect("free");
    for device in [2, 3] {
        root.add(BusId::ROOT, DevFn::new(device, 0), Arc::new(Mutex::new(Function::new()))).expect("free");
    }
    let windows =
        AddressWindows { io: (0xc000, 0x1000), memory: (0xe000_0000, 0x1000_0000), memory_high: None };
    root.assign_addresses(&windows).expect("there is room");
    let mappings = root.mappings();
    let bar = mappings.first().expect("both functions decode").range.start;
    let root = Arc::new(Mutex::new(root));
    let mut layout = BusLayout::default();
    let ports = Arc::new(Mutex::new(ConfigPorts::new(root)));
    layout.pio.register(CONFIG_PORTS, CONFIG_PORTS_LEN, ports, 0, "pci").expect("free");
    let mut ports = Arc::new(Swap::new(layout.build_pio(&mappings))).view();
    let mut memory = Arc::new(Swap::new(layout.build_mmio(&mappings))).view();

    let mut group = criterion.benchmark_group("pci");
    group.bench_function("config/read", |b| {
        b.iter(|| {
            let ports = ports.get();
            ports.write(ADDRESS, Dword, black_box(LATCH));
            ports.read(DATA, Dword)
        });
    });
    group.bench_function("config/write", |b| {
        b.iter(|| {
            let ports = ports.get();
            ports.write(ADDRESS, Dword, black_box(LATCH));
            ports.write(DATA, Dword, black_box(1));
        });
    });
    group.bench_function("config/read-byte-of-nobody", |b| {
        b.iter(|| {
            let ports = ports.get();
            ports.write(ADDRESS, Dword, black_box(1 << 31 | 17 << 11));
            ports.read(DATA, Byte)
        });
    });
    group.bench_function("bar/read", |b| b.iter(|| memory.get().read(black_box(bar), Dword)));
    group.bench_function("bar/write", |b| b.iter(|| memory.get().write(black_box(bar), Dword, 1)));
    group.finish();

    criterion.final_summary();
}
