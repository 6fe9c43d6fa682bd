//! Disks by PIO, as SeaBIOS and Linux drive them.

mod common;

use common::{Byte, Dword, Pc, Word, disk_drive, numbered, sector, sectors, slow_engine};
use std::sync::Arc;
use trapline_disk::{Disk, RawDisk};
use trapline_ide::{Drive, DriveIdentity, Io};

fn word(data: &[u8], n: usize) -> u16 {
    u16::from_le_bytes([data[2 * n], data[2 * n + 1]])
}

#[test]
fn firmware_finds_a_drive_and_no_second() {
    let pc = Pc::with_disk();
    pc.control(0x06);
    assert_eq!(pc.alternate(), 0x80, "busy while SRST is set");
    pc.control(0x02);
    assert_eq!((pc.status(), pc.get(1)), (0x50, 0x01));
    assert_eq!([2, 3, 4, 5].map(|offset| pc.get(offset)), [1, 1, 0, 0], "the signature of a disk");
    pc.set(6, 0xb0);
    assert_eq!((pc.get(6), pc.status()), (0xb0, 0), "drive 1 is absent");
    assert_eq!([1, 2, 3, 4, 5].map(|offset| pc.get(offset)), [1, 1, 1, 0, 0], "drive 0 answers for it");
    let empty = Pc::new(None, None);
    assert_eq!([1, 2, 6, 7].map(|offset| empty.get(offset)), [0; 4]);
}

#[test]
fn identify_tells_size_modes_and_checksum() {
    let pc = Pc::with_disk();
    pc.set(6, 0xa0);
    pc.set(7, 0xec);
    assert!(pc.irq());
    assert_eq!(pc.status(), 0x58);
    assert!(!pc.irq(), "reading the status acknowledges");
    let data = pc.insw(512);
    assert_eq!(pc.status(), 0x50);
    assert_eq!(&data[20..24], b"NS1-", "characters are swapped");
    assert_eq!((word(&data, 60), word(&data, 100)), (4096, 4096));
    assert_eq!((word(&data, 63), word(&data, 88)), (0x0407, 0x003f), "multiword 2 is on");
    assert_eq!(data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    pc.set(1, 3);
    pc.set(2, 0x45);
    pc.set(7, 0xef);
    assert_eq!(pc.status(), 0x50);
    pc.set(7, 0xec);
    let data = pc.insw(512);
    assert_eq!((word(&data, 63), word(&data, 88)), (0x0007, 0x203f), "now Ultra DMA 5");
    pc.set(2, 0x46);
    pc.set(1, 3);
    pc.set(7, 0xef);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04), "there is no Ultra DMA 6");
}

#[test]
fn sectors_are_read_one_interrupt_each() {
    let pc = Pc::with_disk();
    pc.lba28(0x20, 7, 3);
    for lba in 7..10 {
        assert!(pc.irq());
        assert_eq!(pc.status(), 0x58);
        assert_eq!(pc.insw(512), sector(lba));
    }
    assert!(!pc.irq(), "none after the last block");
    assert_eq!((pc.status(), pc.get(3), pc.get(2)), (0x50, 10, 0));
    assert_eq!(pc.insw(4), [0; 4], "nothing is left");
}

#[test]
fn a_block_is_read_at_any_width() {
    let pc = Pc::with_disk();
    pc.lba28(0x20, 0x0102, 1);
    assert_eq!(pc.inp(pc.channel, 0, Word), 0x0102);
    assert_eq!(pc.inp(pc.channel, 0, Byte), 0xff, "the data port has no 8-bit form");
    pc.inp(pc.channel, 0, Word);
    assert_eq!(pc.inp(pc.channel, 0, Dword), 0);
    assert_eq!(pc.inp(pc.channel, 0, Dword), 0x0102);
}

#[test]
fn all_addressing_forms_reach_the_same_sector() {
    let pc = Pc::with_disk();
    let lba = 3 * 16 * 63 + 5 * 63 + 9; // cylinder 3, head 5, sector 10
    for (offset, value) in [(6, 0xa5), (2, 1), (3, 10), (4, 3), (5, 0), (7, 0x20)] {
        pc.set(offset, value);
    }
    assert_eq!(pc.insw(512), sector(lba));
    pc.lba28(0x20, lba as u32, 1);
    assert_eq!(pc.insw(512), sector(lba));
    pc.lba48(0x24, lba, 1);
    assert_eq!(pc.insw(512), sector(lba));
    // With another geometry: 4 heads, 32 sectors.
    for (offset, value) in
        [(6, 0xa3), (2, 32), (7, 0x91), (6, 0xa1), (2, 1), (3, 2), (4, 1), (5, 0), (7, 0x20)]
    {
        pc.set(offset, value);
    }
    assert_eq!(pc.insw(512), sector(4 * 32 + 32 + 1));
    pc.set(3, 0);
    pc.set(2, 1);
    pc.set(7, 0x20);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x10), "there is no sector 0");
}

#[test]
fn previous_contents_are_read_with_hob() {
    let pc = Pc::with_disk();
    pc.lba48(0x27, 0, 0);
    assert_eq!([3, 4, 5].map(|offset| pc.get(offset)), [0xff, 0x0f, 0]);
    pc.set(3, 0x12);
    pc.set(3, 0x34);
    assert_eq!(pc.get(3), 0x34);
    pc.control(0x80);
    assert_eq!(pc.get(3), 0x12);
    pc.set(2, 1);
    assert_eq!(pc.get(3), 0x34, "a write ends it");
}

#[test]
fn written_sectors_are_read_back_in_blocks() {
    let disk = Arc::new(RawDisk::in_memory(1 << 20).unwrap());
    let pc = Pc::new(Some(disk_drive(disk.clone())), None);
    pc.set(2, 4);
    pc.set(7, 0xc6);
    assert_eq!(pc.status(), 0x50);
    pc.lba28(0xc5, 100, 6);
    assert!(!pc.irq(), "none before the first block");
    pc.outsw(&sectors(100, 4));
    assert!(pc.irq());
    assert_eq!(pc.status(), 0x58);
    pc.outsw(&sectors(104, 2));
    assert!(pc.irq());
    assert_eq!(pc.status(), 0x50);
    pc.lba48(0x29, 100, 6);
    assert_eq!(pc.insw(4 * 512), sectors(100, 4));
    assert!(pc.irq());
    pc.status();
    assert_eq!(pc.insw(2 * 512), sectors(104, 2));
    let mut raw = vec![0; 512];
    (disk.as_ref() as &dyn Disk).read(105 * 512, &mut raw).unwrap();
    assert_eq!(raw, sector(105));
}

#[test]
fn the_blocks_of_a_write_are_gathered() {
    let disk = numbered(2048);
    let engine = slow_engine(disk.clone());
    let pc = Pc::new(Some(Drive::disk(Io::Engine(engine.clone()), DriveIdentity::new("E"))), None);
    pc.lba48(0x39, 100, 520); // multiple mode is 16
    for block in 0..33 {
        assert_eq!(pc.irq(), block != 0, "none before the first block");
        assert_eq!(pc.status(), 0x58);
        let lba = 1100 + block * 16;
        pc.outsw(&sectors(lba, if block == 32 { 8 } else { 16 }));
        if block >= 31 {
            assert!(!pc.irq());
            assert_eq!(pc.status(), 0x80, "256 KiB, and what is left, go to the disk at once");
            engine.wait_idle();
            pc.ide.lock().unwrap().complete();
        }
    }
    assert!(pc.irq());
    assert_eq!(pc.status(), 0x50);
    let mut raw = vec![0; 522 * 512];
    (disk.as_ref() as &dyn Disk).read(99 * 512, &mut raw).unwrap();
    assert!(raw == [sector(99), sectors(1100, 520), sector(620)].concat());
}

#[test]
fn a_reset_drops_what_was_gathered() {
    let disk = numbered(1024);
    let pc = Pc::new(Some(disk_drive(disk.clone())), None);
    pc.lba48(0x34, 100, 600);
    pc.outsw(&sectors(1100, 513)); // 512 are written at once
    pc.control(4);
    pc.control(0);
    assert_eq!(pc.status(), 0x50);
    pc.lba28(0x30, 99, 1); // nothing of the old command is written with the new one
    pc.outsw(&sector(1099));
    assert_eq!(pc.status(), 0x50);
    let mut raw = vec![0; 515 * 512];
    (disk.as_ref() as &dyn Disk).read(98 * 512, &mut raw).unwrap();
    assert!(raw == [sector(98), sectors(1099, 513), sector(612)].concat());
}

#[test]
fn a_soft_reset_reverts_multiple_mode_unless_told_not_to() {
    let pc = Pc::with_disk();
    let blocks = |pc: &Pc| {
        pc.set(6, 0xa0);
        pc.set(7, 0xec);
        word(&pc.insw(512), 59)
    };
    for (feature, after) in [(0xcc, 0x0110), (0x66, 0x0104)] {
        pc.set(1, feature);
        pc.set(7, 0xef);
        pc.set(2, 4);
        pc.set(7, 0xc6);
        assert_eq!(blocks(&pc), 0x0104);
        pc.control(4);
        pc.control(0);
        assert_eq!(blocks(&pc), after, "{feature:#x}");
    }
    pc.set(7, 0xe6);
    pc.control(4);
    pc.control(0);
    assert_eq!(blocks(&pc), 0x0104, "SRST wakes a drive that sleeps");
}

#[test]
fn what_is_not_on_the_disk_is_not_found() {
    let pc = Pc::with_disk();
    pc.lba28(0x20, 4095, 2);
    assert!(pc.irq());
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x10));
    pc.lba48(0x24, u64::MAX >> 16, 0);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x10));
    pc.lba28(0x40, 4000, 96);
    assert_eq!(pc.status(), 0x50);
    pc.lba28(0x70, 4096, 0);
    assert_eq!(pc.status(), 0x51);
}

#[test]
fn unknown_commands_and_packet_are_aborted() {
    let pc = Pc::with_disk();
    for command in [0x00, 0xa0, 0xa1, 0x08, 0xff] {
        pc.set(6, 0xa0);
        pc.set(7, command);
        assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04), "{command:#x}");
    }
}

#[test]
fn interrupts_wait_while_nien_is_set() {
    let pc = Pc::with_disk();
    pc.control(2);
    pc.lba28(0x20, 0, 1);
    assert!(!pc.irq());
    assert_eq!(pc.alternate(), 0x58);
    pc.control(0);
    assert!(pc.irq());
    assert_eq!(pc.alternate(), 0x58);
    assert!(pc.irq(), "the alternate status acknowledges nothing");
    pc.control(4);
    assert!(!pc.irq());
    pc.control(0);
    assert_eq!((pc.status(), pc.get(3)), (0x50, 1), "SRST ends the command");
}

#[test]
fn diagnostic_goes_to_both_drives() {
    let second = Drive::cdrom(None, DriveIdentity::new("CD"));
    let pc = Pc::new(Some(disk_drive(numbered(8))), Some(second));
    pc.set(6, 0xb0);
    pc.set(7, 0x90);
    assert!(pc.irq());
    assert_eq!((pc.status(), pc.get(1), pc.get(6)), (0x50, 1, 0xa0));
    pc.set(6, 0xb0);
    assert_eq!([2, 3, 4, 5].map(|offset| pc.get(offset)), [1, 1, 0x14, 0xeb]);
}

#[test]
fn power_flush_smart() {
    let pc = Pc::with_disk();
    for (command, count) in [(0xe5, 0xff), (0xe0, 0xff), (0xe5, 0x00), (0xe1, 0), (0xe5, 0xff)] {
        pc.set(7, command);
        assert_eq!((pc.status(), pc.get(2)), (0x50, count), "{command:#x}");
    }
    pc.set(7, 0xe2);
    pc.lba28(0x20, 0, 1);
    pc.insw(512);
    pc.set(7, 0xe5);
    assert_eq!(pc.get(2), 0xff, "a read wakes it");
    for flush in [0xe7, 0xea] {
        pc.set(7, flush);
        assert_eq!(pc.status(), 0x50);
    }
    for (offset, value) in [(1, 0xda), (4, 0x4f), (5, 0xc2), (7, 0xb0)] {
        pc.set(offset, value);
    }
    assert_eq!((pc.status(), pc.get(4), pc.get(5)), (0x50, 0x4f, 0xc2), "healthy");
    pc.set(4, 0);
    pc.set(7, 0xb0);
    assert_eq!(pc.status(), 0x51, "without the key");
    pc.set(7, 0xe6);
    pc.set(7, 0xec);
    assert_eq!(pc.status() & 8, 0, "asleep");
}

#[test]
fn a_read_only_disk_aborts_writes() {
    let storage = trapline_disk::storage::MemStorage::new(vec![0; 4096]);
    let disk = RawDisk::new(Arc::new(storage), true, false).unwrap();
    let pc = Pc::new(Some(disk_drive(Arc::new(disk))), None);
    pc.lba28(0x30, 0, 1);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04));
}

#[test]
fn an_engine_leaves_the_drive_busy_until_it_is_done() {
    let engine = slow_engine(numbered(64));
    let pc = Pc::new(Some(Drive::disk(Io::Engine(engine.clone()), DriveIdentity::new("E"))), None);
    pc.lba28(0x20, 5, 1);
    assert_eq!(pc.status(), 0x80);
    assert!(!pc.irq());
    engine.wait_idle();
    pc.ide.lock().unwrap().complete();
    assert!(pc.irq());
    assert_eq!(pc.insw(512), sector(5));
    // A reset while an operation is under way leaves nothing behind.
    pc.lba28(0x20, 6, 1);
    pc.control(4);
    pc.control(0);
    pc.ide.lock().unwrap().complete();
    assert_eq!(pc.status(), 0x50);
    assert_eq!(pc.insw(2), [0; 2]);
}
