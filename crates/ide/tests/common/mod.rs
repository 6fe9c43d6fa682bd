//! A controller with memory, and a driver's steps.
#![allow(dead_code)]

use std::sync::{Arc, Mutex};

use trapline_device::test::Recorder;
use trapline_device::{AccessSize, Device, IrqLine};
use trapline_disk::{Disk, Engine, EngineOptions, RawDisk};
use trapline_ide::{
    BUS_MASTER, Drive, DriveIdentity, IDETIM, IdeConfig, Io, PRIMARY_COMMAND, PRIMARY_CONTROL, PiixIde,
};
use trapline_pci::PciFunction;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use trapline_device::AccessSize::{Byte, Dword, Word};

/// Offset of BMIC.
pub const BUS_MASTER_COMMAND: u16 = 0;
pub const RAM: usize = 4 << 20;
/// Where tests put their descriptors.
pub const TABLE: u64 = 0x1000;

pub struct Pc {
    pub ide: Arc<Mutex<PiixIde>>,
    pub memory: Arc<GuestMemoryMmap<()>>,
    pub irqs: Arc<Recorder>,
    /// Region of the channel's command block.
    pub channel: usize,
}

/// A disk in memory whose every sector says its number.
pub fn numbered(sectors: u64) -> Arc<RawDisk> {
    let disk = RawDisk::in_memory(sectors * 512).unwrap();
    for lba in 0..sectors {
        (&disk as &dyn Disk).write(lba * 512, &sector(lba)).unwrap();
    }
    Arc::new(disk)
}

pub fn sector(lba: u64) -> Vec<u8> {
    lba.to_le_bytes().repeat(64)
}

pub fn sectors(lba: u64, n: u64) -> Vec<u8> {
    (lba..lba + n).flat_map(sector).collect()
}

pub fn disk_drive(disk: Arc<dyn Disk>) -> Drive {
    Drive::disk(Io::Blocking(disk), DriveIdentity::new("SN-1"))
}

/// An engine that serves nothing at once.
pub fn slow_engine(disk: Arc<dyn Disk>) -> Arc<Engine> {
    Arc::new(
        Engine::new(disk, EngineOptions { blocking: false, inline: false, io_uring: false, threads: 1 })
            .unwrap(),
    )
}

impl Pc {
    pub fn new(first: Option<Drive>, second: Option<Drive>) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let irqs = Arc::new(Recorder::default());
        let mut ide = PiixIde::new(IdeConfig {
            subsystem: (0, 0),
            memory: memory.clone(),
            irqs: [IrqLine::new(irqs.clone(), 14), IrqLine::new(irqs.clone(), 15)],
            drives: [[first, second], [None, None]],
        })
        .unwrap();
        ide.config_write(IDETIM, Word, 0x8000);
        ide.config_write(4, Word, 5);
        Self { ide: Arc::new(Mutex::new(ide)), memory, irqs, channel: PRIMARY_COMMAND }
    }

    /// A disk of 4,096 numbered sectors.
    pub fn with_disk() -> Self {
        Self::new(Some(disk_drive(numbered(4096))), None)
    }

    pub fn with_disc(sectors: u64) -> Self {
        let io = Io::Blocking(numbered(sectors * 4));
        Self::new(Some(Drive::cdrom(Some(io), DriveIdentity::new("CD-1"))), None)
    }

    pub fn inp(&self, region: usize, offset: u16, size: AccessSize) -> u32 {
        self.ide.lock().unwrap().pio().unwrap().read(region, offset, size)
    }

    pub fn out(&self, region: usize, offset: u16, size: AccessSize, value: u32) {
        self.ide.lock().unwrap().pio().unwrap().write(region, offset, size, value);
    }

    /// A command block register of the primary channel.
    pub fn get(&self, offset: u16) -> u8 {
        self.inp(self.channel, offset, Byte) as u8
    }

    pub fn set(&self, offset: u16, value: u8) {
        self.out(self.channel, offset, Byte, value.into());
    }

    pub fn status(&self) -> u8 {
        self.get(7)
    }

    pub fn alternate(&self) -> u8 {
        self.inp(PRIMARY_CONTROL, 0, Byte) as u8
    }

    pub fn control(&self, value: u8) {
        self.out(PRIMARY_CONTROL, 0, Byte, value.into());
    }

    pub fn irq(&self) -> bool {
        self.irqs.level(14)
    }

    /// REP INSW.
    pub fn insw(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xee; bytes];
        self.ide.lock().unwrap().pio().unwrap().read_block(self.channel, 0, Word, &mut data);
        data
    }

    /// REP OUTSW.
    pub fn outsw(&self, data: &[u8]) {
        self.ide.lock().unwrap().pio().unwrap().write_block(self.channel, 0, Word, data);
    }

    /// A 28-bit LBA command; drive 0.
    pub fn lba28(&self, command: u8, lba: u32, count: u8) {
        let [low, mid, high, top] = lba.to_le_bytes();
        for (offset, value) in [(6, 0xe0 | top), (2, count), (3, low), (4, mid), (5, high), (7, command)] {
            self.set(offset, value);
        }
    }

    /// A 48-bit LBA command; drive 0.
    pub fn lba48(&self, command: u8, lba: u64, count: u16) {
        let (l, [count_low, count_high]) = (lba.to_le_bytes(), count.to_le_bytes());
        let first = [(2, count_high), (3, l[3]), (4, l[4]), (5, l[5])];
        let second = [(2, count_low), (3, l[0]), (4, l[1]), (5, l[2])];
        for (offset, value) in [(6, 0x40)].into_iter().chain(first).chain(second).chain([(7, command)]) {
            self.set(offset, value);
        }
    }

    /// Writes descriptors (address, count, last) and points the bus master at them.
    pub fn table(&self, regions: &[(u32, u16, bool)]) {
        for (i, (address, count, last)) in regions.iter().enumerate() {
            let entry = u64::from(*address) | u64::from(*count) << 32 | u64::from(*last) << 63;
            self.memory.write_obj(entry, GuestAddress(TABLE + 8 * i as u64)).unwrap();
        }
        self.out(BUS_MASTER, 4, Dword, TABLE as u32);
        self.out(BUS_MASTER, 2, Byte, 0x06);
    }

    /// Starts the bus master.
    pub fn start(&self, to_memory: bool) {
        self.out(BUS_MASTER, 0, Byte, if to_memory { 9 } else { 1 });
    }

    /// BMIS.
    pub fn bmis(&self) -> u8 {
        self.inp(BUS_MASTER, 2, Byte) as u8
    }

    pub fn ram(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    /// Sends a command packet by PIO or DMA.
    pub fn packet(&self, packet: &[u8], dma: bool, limit: u16) {
        let [low, high] = limit.to_le_bytes();
        for (offset, value) in [(6, 0xa0), (1, dma.into()), (4, low), (5, high), (7, 0xa0)] {
            self.set(offset, value);
        }
        assert_eq!((self.alternate() & 0x88, self.get(2) & 3), (0x08, 1), "the drive wants the packet");
        let mut bytes = packet.to_vec();
        bytes.resize(12, 0);
        self.outsw(&bytes);
    }

    /// A packet and its answer by PIO, as a driver's interrupt handler takes it.
    pub fn ask(&self, packet: &[u8], limit: u16) -> Vec<u8> {
        self.packet(packet, false, limit);
        let mut answer = Vec::new();
        loop {
            assert!(self.irq(), "an interrupt for each block and the end");
            if self.status() & 8 == 0 {
                assert_eq!(self.get(2) & 3, 3);
                return answer;
            }
            assert_eq!(self.get(2) & 3, 2);
            let n = usize::from(u16::from_le_bytes([self.get(4), self.get(5)]));
            assert!(n > 0 && n <= usize::from(limit));
            let mut block = self.insw(n.next_multiple_of(2));
            block.truncate(n);
            answer.extend(block);
        }
    }

    /// Sense key, code and qualifier.
    pub fn sense(&self) -> (u8, u8, u8) {
        let data = self.ask(&[3, 0, 0, 0, 18], 18);
        (data[2], data[12], data[13])
    }
}
