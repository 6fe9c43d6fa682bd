//! What a drive reports when its disk fails.

mod common;

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use common::{BUS_MASTER_COMMAND, Byte, Pc, disk_drive, numbered, sector, sectors};
use trapline_disk::{Access, Disk, DiskError, DiskInfo, Extent, RawDisk, Result};
use trapline_ide::{BUS_MASTER, Drive, DriveIdentity, Io};

/// Sector 1,000 cannot be read or written, and a flush fails.
struct Scratched(Arc<RawDisk>);

const BAD: u64 = 1000;

fn check(offset: u64, len: usize) -> Result<()> {
    let bad = (offset..offset + len as u64).contains(&(BAD * 512));
    if bad { Err(DiskError::io("scratch", io::ErrorKind::Other.into())) } else { Ok(()) }
}

impl Disk for Scratched {
    fn info(&self) -> DiskInfo {
        self.0.info()
    }
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        check(offset, bufs.iter().map(|buf| buf.len()).sum())?;
        self.0.read_at(offset, bufs)
    }
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        check(offset, bufs.iter().map(|buf| buf.len()).sum())?;
        self.0.write_at(offset, bufs)
    }
    fn try_read_at(&self, _offset: u64, _bufs: &mut [IoSliceMut<'_>]) -> Result<bool> {
        Ok(false)
    }
    fn try_write_at(&self, _offset: u64, _bufs: &[IoSlice<'_>]) -> Result<bool> {
        Ok(false)
    }
    fn flush(&self) -> Result<()> {
        Err(DiskError::io("flush", io::ErrorKind::Other.into()))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.0.write_zeroes(offset, len, unmap)
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.0.resize(size)
    }
    fn extent(&self, _access: Access, _offset: u64, _len: u64) -> Option<Extent> {
        None
    }
}

fn scratched() -> Pc {
    Pc::new(Some(disk_drive(Arc::new(Scratched(numbered(4096))))), None)
}

fn failing_lba(pc: &Pc) -> u64 {
    assert!(pc.irq());
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x40), "uncorrectable");
    u64::from(pc.get(3)) | u64::from(pc.get(4)) << 8 | u64::from(pc.get(5)) << 16
}

#[test]
fn pio_reads_give_every_sector_before_the_bad_one() {
    let pc = scratched();
    pc.lba28(0x20, 990, 20);
    for lba in 990..1000 {
        assert_eq!(pc.status(), 0x58);
        assert_eq!(pc.insw(512), sector(lba));
    }
    assert_eq!(failing_lba(&pc), BAD);
}

#[test]
fn dma_reads_and_verify_name_the_bad_sector() {
    let pc = scratched();
    pc.table(&[(0x10_0000, 0, false), (0x11_0000, 0, true)]);
    pc.start(true);
    pc.lba28(0xc8, 900, 200);
    assert_eq!(pc.bmis() & 0x04, 0x04);
    assert_eq!(failing_lba(&pc), BAD);
    assert_eq!(pc.ram(0x10_0000, 100 * 512), sectors(900, 100));
    pc.out(BUS_MASTER, BUS_MASTER_COMMAND, Byte, 0);
    pc.lba48(0x42, 0, 4096);
    assert_eq!(failing_lba(&pc), BAD);
}

#[test]
fn failed_writes_and_flushes_are_aborted() {
    let pc = scratched();
    pc.lba48(0x34, 999 - 512, 514);
    for lba in 999 - 512..1001 {
        assert_eq!(pc.status(), 0x58);
        pc.outsw(&sector(lba));
    }
    assert!(pc.irq());
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04));
    assert_eq!((pc.get(3), pc.get(4)), (0xe7, 0x03), "the first of the sectors that were written at once");
    pc.set(7, 0xe7);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04));
}

#[test]
fn what_must_be_durable_ends_with_the_flush() {
    let pc = scratched(); // flushes fail
    let write = |command| {
        pc.lba48(command, 5, 2);
        pc.outsw(&sectors(7, 2));
        (pc.status(), pc.get(1))
    };
    assert_eq!(write(0x34).0, 0x50);
    assert_eq!(write(0xce), (0x51, 0x04), "WRITE MULTIPLE FUA EXT");
    pc.set(1, 0x82);
    pc.set(7, 0xef); // without a write cache
    assert_eq!(write(0x34), (0x51, 0x04));
}

#[test]
fn a_scratched_disc_is_a_medium_error() {
    let disc = Some(Io::Blocking(Arc::new(Scratched(numbered(4096)))));
    let pc = Pc::new(Some(Drive::cdrom(disc, DriveIdentity::new("CD"))), None);
    pc.sense();
    let read = [0x28, 0, 0, 0, 0, 250, 0, 0, 1];
    assert!(pc.ask(&read, 2048).is_empty());
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x30));
    assert_eq!(pc.sense(), (3, 0x11, 0));
}
