//! Memory that belongs to devices: where it lies, who sees it, which of it was written.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use trapline_memory::ept::{self, EptAccess, EptAttributes, EptBuilder, EptMode, EptPerms};
use trapline_memory::{DeviceMemory, GuestRam, LayoutError, PageSize, RamConfig};
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const BAR: u64 = 0xe000_0000;

fn ram(device_area: u64) -> GuestRam {
    GuestRam::new(&RamConfig { device_area, ..RamConfig::new(16 * MIB) }).unwrap()
}

#[test]
fn it_is_no_ram_and_in_no_slot() {
    let mut ram = ram(16 * MIB);
    let (slots, size) = (ram.slots().to_vec(), ram.size());
    let video = ram.add_device_memory(8 * MIB).unwrap();
    assert_eq!((ram.slots(), ram.size()), (&*slots, size));
    let slot = video.map(BAR);
    assert_eq!((slot.gpa, slot.size, slot.read_only, slot.log_dirty), (BAR, 8 * MIB, false, false));
    assert!(slot.hpa >= 16 * MIB && slot.hpa + slot.size <= ram.arena().len());
    assert!(ram.memory().read_obj::<u8>(GuestAddress(BAR)).is_err(), "not for DMA");
    assert!(ram.hpa(BAR).is_none());
}

#[test]
fn roms_and_devices_share_an_area() {
    let mut ram = ram(4 * MIB);
    ram.add_rom(0xf000_0000, &[1; 0x1001]).unwrap();
    let flash = ram.add_device_memory(0x1000).unwrap();
    let video = ram.add_device_memory(2 * MIB).unwrap();
    let rom = ram.slot_at(0xf000_0000).unwrap().hpa;
    assert_eq!(flash.map(0).hpa, rom + 0x2000, "packed");
    assert_eq!(video.map(0).hpa, rom + 2 * MIB, "aligned for large pages");
    assert!(matches!(ram.add_device_memory(PAGE), Err(LayoutError::DeviceArea { size: PAGE, left: 0 })));
    assert!(matches!(ram.add_rom(MIB << 10, &[1]), Err(LayoutError::DeviceArea { .. })));
    assert!(matches!(ram.add_device_memory(1), Err(LayoutError::Misaligned { value: 1, .. })));
    assert!(matches!(ram.add_device_memory(0), Err(LayoutError::Arena(_))));
    assert!(matches!(ram.add_device_memory(!0xfff), Err(LayoutError::DeviceArea { .. })));
}

#[test]
fn guest_and_device_see_the_same_bytes_wherever_it_is_mapped() {
    let mut ram = ram(16 * MIB);
    let video = ram.add_device_memory(4 * MIB).unwrap();
    let mut tables = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), true).unwrap();
    let mode = EptMode::new(tables.eptp(), 46);
    video.write(0x1234, b"dots").unwrap();
    for gpa in [BAR, 0xd000_0000] {
        let slot = video.map(gpa);
        tables.map(slot.gpa, slot.hpa, slot.size, EptAttributes::new(EptPerms::RWX)).unwrap();
        let leaf = ept::walk(ram.arena(), &mode, gpa + 0x1234, EptAccess::WRITE).unwrap();
        assert_eq!(leaf.page_size, PageSize::Size2M);
        let mut bytes = [0; 4];
        ram.arena().read_bytes(leaf.hpa, &mut bytes).unwrap();
        assert_eq!(&bytes, b"dots");
    }
}

#[test]
fn accesses_beyond_the_end_do_nothing() {
    let mut ram = ram(4 * MIB);
    let (memory, next) = (ram.add_device_memory(PAGE).unwrap(), ram.add_device_memory(PAGE).unwrap());
    next.write(0, &[0x55; 8]).unwrap();
    let mut four = [7; 4];
    assert_eq!(memory.read(PAGE - 3, &mut four), None);
    assert_eq!(memory.read(u64::MAX, &mut four), None);
    assert_eq!(four, [7; 4]);
    assert_eq!(memory.write(PAGE - 3, &four), None);
    assert_eq!(memory.write(u64::MAX - 1, &four), None);
    assert_eq!((memory.read_u32(PAGE), memory.write_u32(PAGE, 1)), (None, None));
    assert_eq!((memory.read_u32(2), memory.write_u32(2, 1)), (None, None), "not aligned");
    assert_eq!(memory.take_dirty(), [0; 0]);
    assert_eq!((memory.save(), next.read_u32(0)), (Vec::new(), Some(0x5555_5555)));
    assert_eq!(memory.write(PAGE, &[]), Some(()), "nothing fits everywhere");
}

#[test]
fn words_are_little_endian() {
    let memory = DeviceMemory::standalone(PAGE).unwrap();
    memory.write_u32(8, 0x4433_2211).unwrap();
    let mut bytes = [0; 4];
    memory.read(8, &mut bytes).unwrap();
    assert_eq!((bytes, memory.read_u32(8)), ([0x11, 0x22, 0x33, 0x44], Some(0x4433_2211)));
}

#[test]
fn writes_of_the_device_are_recorded_and_taken_once() {
    let memory = DeviceMemory::standalone(200 * PAGE).unwrap();
    assert_eq!(memory.take_dirty(), [0; 0]);
    memory.write(PAGE - 1, &[1, 2]).unwrap();
    memory.write_u32(199 * PAGE, 0).unwrap();
    let other = memory.clone();
    other.write(64 * PAGE, &[0]).unwrap();
    memory.read(5 * PAGE, &mut [0; 1]).unwrap();
    assert_eq!(memory.take_dirty(), [0, PAGE, 64 * PAGE, 199 * PAGE]);
    assert_eq!(other.take_dirty(), [0; 0]);
}

#[test]
fn writes_of_the_guest_come_with_the_dirty_log_of_where_it_is_now() {
    let mut ram = ram(16 * MIB);
    let video = ram.add_device_memory(2 * MIB).unwrap();
    let log = |gpa, words: &[u64]| ram.dirty().merge(gpa, words);
    log(BAR, &[1]);
    assert_eq!(video.take_dirty(), [0; 0], "it is nowhere");
    video.map(BAR);
    assert_eq!(video.take_dirty().len(), 512, "a move counts as a write of everything");
    log(BAR, &[0b101, 0, 1 << 63]);
    log(BAR - 2 * PAGE, &[0b1000]);
    log(BAR + 2 * MIB, &[1]);
    assert_eq!(video.take_dirty(), [0, PAGE, 2 * PAGE, 191 * PAGE]);
    video.map(BAR);
    assert_eq!(video.take_dirty(), [0; 0], "it has not moved");
    video.map(0x8000_0000);
    video.take_dirty();
    log(BAR, &[1]);
    log(0x8000_0000, &[0b10]);
    assert_eq!(video.take_dirty(), [PAGE]);
    video.unmap();
    video.take_dirty();
    log(u64::MAX - 0xfff, &[1]);
    assert_eq!(video.take_dirty(), [0; 0]);
}

#[test]
fn writes_to_it_are_none_to_ram() {
    let mut ram = ram(16 * MIB);
    ram.dirty().set_enabled(true);
    let video = ram.add_device_memory(2 * MIB).unwrap();
    video.map(BAR);
    video.write(0, &[1]).unwrap();
    ram.dirty().merge(BAR, &[2]);
    assert_eq!(ram.dirty().take(0..u64::MAX).count(), 0);
    ram.dirty().mark(0x3000, 1);
    assert_eq!(ram.dirty().take(0..u64::MAX).collect::<Vec<_>>(), [0x3000]);
}

#[test]
fn processors_writes_come_from_ept_dirty_flags() {
    let mut ram = ram(16 * MIB);
    let video = ram.add_device_memory(2 * MIB).unwrap();
    let slot = video.map(BAR);
    let mut tables = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), true).unwrap();
    tables.map(slot.gpa, slot.hpa, slot.size, EptAttributes::new(EptPerms::RWX)).unwrap();
    ram.dirty().start_ept(&mut tables, slot.gpa, slot.size).unwrap();
    video.take_dirty();
    let mode = EptMode::new(tables.eptp(), 46);
    ept::walk(ram.arena(), &mode, BAR + 0x7123, EptAccess::WRITE).unwrap();
    ram.dirty().harvest_ept(&tables, slot.gpa, slot.size).unwrap();
    assert_eq!(video.take_dirty(), [0x7000]);
}

#[test]
fn whoever_watches_the_arena_sees_the_devices_writes() {
    let mut ram = ram(4 * MIB);
    let memory = ram.add_device_memory(PAGE).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watcher = seen.clone();
    ram.arena().watch_device_writes(move |hpa, len| watcher.lock().unwrap().push((hpa, len)));
    memory.write(0x10, &[1, 2, 3]).unwrap();
    memory.write_u32(0x20, 1).unwrap();
    let hpa = memory.map(0).hpa;
    assert_eq!(*seen.lock().unwrap(), [(hpa + 0x10, 3), (hpa + 0x20, 4)]);
}

#[test]
fn only_pages_that_are_not_zero_are_saved() {
    let memory = DeviceMemory::standalone(64 * PAGE).unwrap();
    memory.write(3 * PAGE + 5, &[9]).unwrap();
    memory.write(5 * PAGE, &[0; 4096]).unwrap();
    let saved = memory.save();
    assert_eq!(saved.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [3 * PAGE]);

    let other = DeviceMemory::standalone(64 * PAGE).unwrap();
    other.write(0, &[1; 8192]).unwrap();
    other.take_dirty();
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    assert_eq!(other.take_dirty(), [0, PAGE, 3 * PAGE], "what changed");
}

#[test]
fn saved_pages_that_cannot_be_are_refused() {
    let memory = DeviceMemory::standalone(4 * PAGE).unwrap();
    memory.write(0, &[1]).unwrap();
    let page = || vec![2; PAGE as usize];
    for wrong in [
        vec![(4 * PAGE, page())],
        vec![(1, page())],
        vec![(0, vec![2; 5])],
        vec![(PAGE, page()), (0, page())],
        vec![(0, page()), (0, page())],
    ] {
        assert_eq!(memory.restore(&wrong), None);
    }
    assert_eq!(memory.read_u32(0), Some(1));
}

proptest! {
    #[test]
    fn recorded_pages_agree_with_a_set(
        writes in proptest::collection::vec((any::<bool>(), 0..131 * PAGE, 1..9 * PAGE), 1..40),
    ) {
        let mut ram = ram(2 * MIB);
        let memory = ram.add_device_memory(130 * PAGE).unwrap();
        memory.map(BAR);
        memory.take_dirty();
        let mut set = BTreeSet::new();
        for (guest, offset, len) in writes {
            let pages = offset / PAGE..(offset + len).div_ceil(PAGE);
            if guest {
                let first = pages.start;
                let bits = pages.clone().fold(0, |bits, page| bits | 1u64 << (page - first));
                ram.dirty().merge(BAR + first * PAGE, &[bits]);
            } else if memory.write(offset, &vec![1; len as usize]).is_none() {
                continue;
            }
            set.extend(pages.filter(|page| *page < 130).map(|page| page * PAGE));
        }
        prop_assert_eq!(memory.take_dirty(), set.into_iter().collect::<Vec<_>>());
    }
}
