//! Disks in files that the page cache holds: read through the `Disk` contract, and by the IDE controller's PIO and
//! DMA. What the guest executes and what its accesses cost to get here is not in it.
//!
//! *PIO* is READ SECTORS (4 KiB) or READ MULTIPLE (1 MiB, 16 sectors a block), a status read and a REP INSW for
//! each block, as Linux does it. *DMA* is a table of 4 KiB pages, all over guest memory.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use tempfile::TempDir;
use trapline::device::AccessSize::{Byte, Dword, Word};
use trapline::device::test::Recorder;
use trapline::device::{IrqLine, PortIo};
use trapline::disk::qcow2::{CreateOptions, Qcow2Options};
use trapline::disk::{CacheMode, Disk, Engine, EngineOptions, HostFile, Qcow2Disk, RawDisk};
use trapline::ide::{BUS_MASTER, Drive, DriveIdentity, IDETIM, IdeConfig, Io, PRIMARY_COMMAND, PiixIde};
use trapline::pci::PciFunction;
use trapline::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: usize = 64 << 20;
const KIB4: usize = 4 << 10;
const MIB: usize = 1 << 20;
const TABLE: u64 = 0x1000;
const DATA: u64 = 16 << 20;

/// The disks that are read.
fn disks(folder: &Path) -> [(&'static str, Arc<dyn Disk>); 2] {
    let raw = folder.join("raw");
    let content: Vec<u8> = (0..SIZE).map(|i| (i / 512) as u8).collect();
    File::create(&raw).and_then(|mut file| file.write_all(&content)).expect("room for the raw image");
    let open =
        |path: &Path| Arc::new(HostFile::open(path, false, CacheMode::Writeback, false).expect("an image"));
    let image = folder.join("qcow2");
    File::create(&image).expect("room for the qcow2 image");
    let create = CreateOptions::new(SIZE as u64);
    let qcow2 =
        Qcow2Disk::create(open(&image), &create, &Qcow2Options::default(), None).expect("a new image");
    let qcow2: Arc<dyn Disk> = Arc::new(qcow2);
    qcow2.write(0, &content).expect("room in the image");
    qcow2.flush().expect("a flush");
    let raw = RawDisk::new(open(&raw), false, false).expect("a raw image");
    [("raw", Arc::new(raw)), ("qcow2", qcow2)]
}

/// A controller with a disk, and its driver.
struct Pc {
    ide: PiixIde,
    memory: Arc<GuestMemoryMmap<()>>,
}

impl Pc {
    fn new(disk: Arc<dyn Disk>) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).expect("memory"));
        let irqs = Arc::new(Recorder::default());
        let engine = Arc::new(Engine::new(disk, EngineOptions::default()).expect("an engine"));
        let drive = Drive::disk(Io::Engine(engine), DriveIdentity::new("1"));
        let mut ide = PiixIde::new(IdeConfig {
            subsystem: (0, 0),
            memory: memory.clone(),
            // Interrupts are acknowledged, and lead nowhere.
            irqs: [IrqLine::new(Arc::new(Nowhere), 14), IrqLine::new(irqs, 15)],
            drives: [[Some(drive), None], [None, None]],
        })
        .expect("a controller");
        ide.config_write(IDETIM, Word, 0x8000);
        ide.config_write(4, Word, 5);
        for page in 0..256_u32 {
            // Scattered: each page's place is its number with the bits in another order.
            let place = (page & 15) << 4 | page >> 4;
            let entry = u64::from(DATA as u32 + place * KIB4 as u32) | (KIB4 as u64) << 32;
            memory.write_obj(entry, GuestAddress(TABLE + u64::from(page) * 8)).expect("room for the table");
        }
        Self { ide, memory }
    }

    fn set(&mut self, offset: u16, value: u8) {
        self.ide.write(PRIMARY_COMMAND, offset, Byte, value.into());
    }

    /// A command of 48 bits.
    fn command(&mut self, command: u8, lba: u64, sectors: usize) {
        let (l, n) = (lba.to_le_bytes(), (sectors as u16).to_le_bytes());
        let registers = [(2, n[1]), (3, l[3]), (4, 0), (5, 0), (2, n[0]), (3, l[0]), (4, l[1]), (5, l[2])];
        self.set(6, 0x40);
        registers.into_iter().for_each(|(offset, value)| self.set(offset, value));
        self.set(7, command);
    }

    fn status(&mut self) -> u32 {
        self.ide.read(PRIMARY_COMMAND, 7, Byte)
    }

    fn pio(&mut self, lba: u64, data: &mut [u8]) {
        let (command, block) = if data.len() == KIB4 { (0x24, 512) } else { (0x29, 16 * 512) };
        self.command(command, lba, data.len() / 512);
        for block in data.chunks_mut(block) {
            assert_eq!(self.status(), 0x58);
            self.ide.read_block(PRIMARY_COMMAND, 0, Word, block);
        }
        assert_eq!(self.status(), 0x50);
    }

    fn dma(&mut self, lba: u64, len: usize) {
        // Where the table ends.
        let last = GuestAddress(TABLE + (len / KIB4) as u64 * 8 - 1);
        self.memory.write_obj(0x80_u8, last).expect("in the table");
        self.ide.write(BUS_MASTER, 4, Dword, TABLE as u32);
        self.ide.write(BUS_MASTER, 2, Byte, 6);
        self.command(0x25, lba, len / 512);
        self.ide.write(BUS_MASTER, 0, Byte, 9);
        assert_eq!(self.ide.read(BUS_MASTER, 2, Byte), 4);
        assert_eq!(self.status(), 0x50);
        self.ide.write(BUS_MASTER, 0, Byte, 0);
        self.memory.write_obj(0_u8, last).expect("in the table");
    }
}

/// An interrupt controller that does not care.
struct Nowhere;

impl trapline::device::IrqSink for Nowhere {
    fn set(&self, _: u32, _: bool) {}
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let folder = TempDir::new().expect("a folder for the images");
    let disks = disks(folder.path());
    let sizes = [("4KiB", KIB4), ("1MiB", MIB)];
    // Another place each time, in an order that read-ahead does not help.
    let place = |n: u64, len: usize| n.wrapping_mul(0x9e37_79b9) % (SIZE / len) as u64 * len as u64;

    let mut group = criterion.benchmark_group("disk");
    for (name, disk) in &disks {
        for (size, len) in sizes {
            let (mut n, mut data) = (0, vec![0; len]);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new(*name, size), |b| {
                b.iter(|| {
                    n += 1;
                    disk.read(place(n, len), black_box(&mut data)).expect("a read");
                });
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("ide");
    for (name, disk) in disks {
        let mut pc = Pc::new(disk);
        for (size, len) in sizes {
            let (mut n, mut data) = (0, vec![0; len]);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new(format!("pio-{name}"), size), |b| {
                b.iter(|| {
                    n += 1;
                    pc.pio(place(n, len) / 512, black_box(&mut data));
                });
            });
            group.bench_function(BenchmarkId::new(format!("dma-{name}"), size), |b| {
                b.iter(|| {
                    n += 1;
                    pc.dma(place(n, len) / 512, len);
                });
            });
        }
    }
    group.finish();

    criterion.final_summary();
}
