//! Bus master transfers (SFF-8038i §3), as Linux drives them.

mod common;

use common::{Byte, Dword, Pc, disk_drive, numbered, sector, sectors, slow_engine};
use std::sync::Arc;
use trapline_disk::{Disk, RawDisk};
use trapline_ide::{BUS_MASTER, Drive, DriveIdentity, Io};
use trapline_pci::PciFunction;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_read_fills_scattered_regions() {
    let pc = Pc::with_disk();
    pc.table(&[(0x10_0000, 512, false), (0x20_0002, 1022, false), (0x30_0000, 514, true)]);
    pc.lba28(0xc8, 40, 4);
    assert_eq!((pc.status(), pc.bmis()), (0x58, 0), "nothing moves before the bus master starts");
    pc.start(true);
    assert!(pc.irq());
    assert_eq!(pc.bmis(), 0x04, "interrupt, and the table was used up");
    assert_eq!(pc.status(), 0x50);
    pc.out(BUS_MASTER, 0, Byte, 0);
    pc.out(BUS_MASTER, 2, Byte, 0x64);
    assert_eq!(pc.bmis(), 0x60, "drive bits stay, the interrupt is cleared");
    let all = [pc.ram(0x10_0000, 512), pc.ram(0x20_0002, 1022), pc.ram(0x30_0000, 514)].concat();
    assert_eq!(all, sectors(40, 4));
    assert_eq!(pc.ram(0x20_0000, 2), [0, 0]);
}

#[test]
fn the_bus_master_may_start_before_the_command() {
    let pc = Pc::with_disk();
    pc.table(&[(0x10_0000, 512, true)]);
    pc.start(true);
    assert_eq!(pc.bmis(), 0x01);
    pc.lba28(0xc8, 3, 1);
    assert_eq!(pc.bmis(), 0x04);
    assert_eq!(pc.ram(0x10_0000, 512), sector(3));
}

#[test]
fn writes_reach_the_disk_in_all_forms() {
    let disk = Arc::new(RawDisk::in_memory(1 << 20).unwrap());
    let pc = Pc::new(Some(disk_drive(disk.clone())), None);
    for (command, lba) in [(0xca, 10), (0x35, 20), (0x3d, 30)] {
        pc.memory.write_slice(&sectors(lba, 2), GuestAddress(0x10_0000)).unwrap();
        pc.table(&[(0x10_0000, 1024, true)]);
        if command == 0xca {
            pc.lba28(command, lba as u32, 2)
        } else {
            pc.lba48(command, lba, 2)
        }
        pc.start(false);
        assert_eq!((pc.bmis(), pc.status()), (0x04, 0x50), "{command:#x}");
        pc.out(BUS_MASTER, 0, Byte, 0);
        let mut raw = vec![0; 1024];
        (disk.as_ref() as &dyn Disk).read(lba * 512, &mut raw).unwrap();
        assert_eq!(raw, sectors(lba, 2));
    }
}

#[test]
fn a_count_of_zero_is_64_kib_and_long_transfers_go_in_steps() {
    let pc = Pc::with_disk();
    let regions: Vec<_> = (0..24).map(|i| (0x10_0000 + 0x1_0000 * i, 0, i == 23)).collect();
    pc.table(&regions);
    pc.lba48(0x25, 100, 24 * 128);
    pc.start(true);
    assert_eq!((pc.bmis(), pc.status()), (0x04, 0x50));
    assert_eq!(pc.ram(0x10_0000, 24 << 16), sectors(100, 24 * 128));
}

#[test]
fn a_long_table_leaves_active_set() {
    let pc = Pc::with_disk();
    pc.table(&[(0x10_0000, 1024, true)]);
    pc.lba28(0xc8, 0, 1);
    pc.start(true);
    assert_eq!((pc.bmis(), pc.status()), (0x05, 0x50));
    pc.out(BUS_MASTER, 0, Byte, 0);
    assert_eq!(pc.bmis(), 0x04);
}

#[test]
fn a_short_table_stops_without_interrupt() {
    let pc = Pc::with_disk();
    pc.table(&[(0x10_0000, 512, true)]);
    pc.lba28(0xc8, 0, 2);
    pc.start(true);
    assert!(!pc.irq());
    assert_eq!((pc.bmis(), pc.status()), (0x00, 0x58), "the drive waits");
    pc.control(4);
    pc.control(0);
    assert_eq!(pc.status(), 0x50);
}

#[test]
fn what_is_no_memory_is_a_bus_master_error() {
    let pc = Pc::with_disk();
    for regions in [&[(0x7000_0000, 512, true)][..], &[(0x10_0000, 256, false), (0xffff_fff0, 256, true)]] {
        pc.table(regions);
        pc.lba28(0xc8, 0, 1);
        pc.start(true);
        assert!(!pc.irq());
        assert_eq!(pc.bmis(), 0x02);
        pc.out(BUS_MASTER, 0, Byte, 0);
        pc.control(4);
        pc.control(0);
    }
    pc.out(BUS_MASTER, 4, Dword, 0xffff_fff8);
    pc.lba28(0xc8, 0, 1);
    pc.start(true);
    assert!(!pc.irq(), "a table that is not in memory");
    assert_eq!(pc.bmis() & 1, 0);
}

#[test]
fn a_table_ends_at_64_kib() {
    let pc = Pc::with_disk();
    for i in 0..3_u64 {
        let entry = (0x10_0000 + 512 * i) | (512 << 32);
        pc.memory.write_obj(entry, GuestAddress(0x1_fff0 + 8 * i)).unwrap();
    }
    pc.out(BUS_MASTER, 4, Dword, 0x1_fff0);
    pc.lba28(0xc8, 0, 3);
    pc.start(true);
    assert_eq!((pc.bmis(), pc.status()), (0x00, 0x58));
    assert_eq!(pc.ram(0x10_0000, 1536), [sectors(0, 2), vec![0; 512]].concat());
}

#[test]
fn nothing_moves_while_the_function_may_not_master_the_bus() {
    let pc = Pc::with_disk();
    pc.ide.lock().unwrap().config_write(4, common::Word, 1);
    pc.table(&[(0x10_0000, 512, true)]);
    pc.lba28(0xc8, 9, 1);
    pc.start(true);
    assert_eq!((pc.bmis(), pc.status()), (0x01, 0x58));
    pc.ide.lock().unwrap().config_write(4, common::Word, 5);
    assert_eq!(pc.bmis(), 0x04);
    assert_eq!(pc.ram(0x10_0000, 512), sector(9));
}

#[test]
fn trimmed_sectors_read_as_zeroes_or_as_before() {
    let disk = numbered(4096);
    let pc = Pc::new(Some(disk_drive(disk)), None);
    let trim = |pc: &Pc, lba: u64, count: u64| {
        pc.memory.write_slice(&[0; 512], GuestAddress(0x10_0000)).unwrap();
        pc.memory.write_obj(lba | count << 48, GuestAddress(0x10_0008)).unwrap();
        pc.table(&[(0x10_0000, 512, true)]);
        for (offset, value) in [(6, 0x40), (1, 1), (2, 0), (2, 1), (7, 0x06)] {
            pc.set(offset, value);
        }
        pc.start(false);
        pc.out(BUS_MASTER, 0, Byte, 0);
        (pc.status(), pc.get(1))
    };
    assert_eq!(trim(&pc, 1024, 64).0, 0x50);
    pc.lba28(0x20, 1024, 1);
    assert_eq!(pc.insw(512), vec![0; 512]);
    pc.lba28(0x20, 1023, 1);
    assert_eq!(pc.insw(512), sector(1023));
    assert_eq!(trim(&pc, 4090, 64), (0x51, 0x10));
}

#[test]
fn an_engine_moves_data_when_it_is_done() {
    let engine = slow_engine(numbered(4096));
    let pc = Pc::new(Some(Drive::disk(Io::Engine(engine.clone()), DriveIdentity::new("E"))), None);
    pc.table(&[(0x10_0000, 0, false), (0x20_0000, 0, true)]);
    pc.lba28(0xc8, 0, 0);
    pc.start(true);
    assert_eq!((pc.bmis(), pc.status()), (0x01, 0x80));
    pc.ide.lock().unwrap().quiesce();
    assert!(pc.irq());
    assert_eq!((pc.bmis(), pc.status()), (0x04, 0x50));
    assert_eq!([pc.ram(0x10_0000, 1 << 16), pc.ram(0x20_0000, 1 << 16)].concat(), sectors(0, 256));
    // A write: active stays set until the disk has it.
    pc.table(&[(0x10_0000, 512, true)]);
    pc.out(BUS_MASTER, 0, Byte, 0);
    pc.lba28(0xca, 77, 1);
    pc.start(false);
    assert_eq!(pc.bmis(), 0x01);
    pc.ide.lock().unwrap().quiesce();
    assert_eq!((pc.bmis(), pc.status()), (0x04, 0x50));
    let mut raw = vec![0; 512];
    engine.disk().read(77 * 512, &mut raw).unwrap();
    assert_eq!(raw, sector(0));
}
