//! Bus dispatch with 40 regions, about what a PC has: from an address to the device's method and back.
//!
//! It is paid on every access of a guest to a device, on top of the VM exit. The device does nothing, so what
//! is measured is finding it and locking it. *Same* accesses one region over and over, as a driver does that
//! polls a status register; *round* goes through all regions, which no cache of the last hit helps; *nobody*
//! is an address that no device answers to.

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use criterion::Criterion;
use trapline::device::bus::{MmioBus, PioBus};
use trapline::device::{AccessSize, Device, MmioIo, Poll, PortIo};

const REGIONS: u16 = 40;

/// A device with one register.
struct Register(u32);

impl Device for Register {
    fn name(&self) -> &str {
        "register"
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

    fn reset(&mut self) {}
}

impl PortIo for Register {
    fn read(&mut self, _: usize, _: u16, _: AccessSize) -> u32 {
        self.0
    }

    fn write(&mut self, _: usize, _: u16, _: AccessSize, value: u32) {
        self.0 = value;
    }

    fn read_block(&mut self, _: usize, _: u16, _: AccessSize, data: &mut [u8]) {
        data.fill(self.0 as u8);
    }

    fn write_block(&mut self, _: usize, _: u16, _: AccessSize, data: &[u8]) {
        self.0 = data.last().copied().unwrap_or(0).into();
    }
}

impl MmioIo for Register {
    fn read(&mut self, _: usize, _: u64, _: AccessSize) -> u64 {
        self.0.into()
    }

    fn write(&mut self, _: usize, _: u64, _: AccessSize, value: u64) {
        self.0 = value as u32;
    }
}

fn port(n: u16) -> u16 {
    n * 0x100
}

fn address(n: u16) -> u64 {
    0xe000_0000 + u64::from(n) * 0x1_0000
}

fn ports(c: &mut Criterion) {
    let mut builder = PioBus::builder();
    for n in 0..REGIONS {
        let device = Arc::new(Mutex::new(Register(n.into())));
        builder.register(port(n), 8, device, 0, "register").expect("no two overlap");
    }
    let bus = builder.build();
    let mut group = c.benchmark_group("pio, 40 regions");
    group.bench_function("read, same", |b| b.iter(|| bus.read(black_box(port(7)), AccessSize::Byte)));
    group.bench_function("write, same", |b| b.iter(|| bus.write(black_box(port(7)), AccessSize::Byte, 1)));
    let mut n = 0;
    group.bench_function("read, round", |b| {
        b.iter(|| {
            n = (n + 1) % REGIONS;
            bus.read(black_box(port(n)), AccessSize::Byte)
        });
    });
    group.bench_function("read, nobody", |b| b.iter(|| bus.read(black_box(0xfff0), AccessSize::Byte)));
    group.finish();
}

fn memory(c: &mut Criterion) {
    let mut builder = MmioBus::builder();
    for n in 0..REGIONS {
        let device = Arc::new(Mutex::new(Register(n.into())));
        builder.register(address(n), 0x1000, device, 0, "register").expect("no two overlap");
    }
    let bus = builder.build();
    let mut group = c.benchmark_group("mmio, 40 regions");
    group.bench_function("read, same", |b| b.iter(|| bus.read(black_box(address(7)), AccessSize::Dword)));
    group
        .bench_function("write, same", |b| b.iter(|| bus.write(black_box(address(7)), AccessSize::Dword, 1)));
    let mut n = 0;
    group.bench_function("read, round", |b| {
        b.iter(|| {
            n = (n + 1) % REGIONS;
            bus.read(black_box(address(n)), AccessSize::Dword)
        });
    });
    group.bench_function("read, nobody", |b| b.iter(|| bus.read(black_box(0xf000_0000), AccessSize::Dword)));
    group.finish();
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    ports(&mut c);
    memory(&mut c);
    c.final_summary();
}
