//! Arena, RAM layout, ROMs, root pages.

use trapline_memory::ept::{self, EptAccess, EptBuilder, EptMode};
use trapline_memory::{
    Arena, ArenaError, ArenaOptions, GuestRam, LayoutError, OutOfArena, RamConfig, Slot, TableMemory,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ranges(ram: &GuestRam) -> Vec<(u64, u64, u64)> {
    ram.slots().iter().map(|slot| (slot.gpa, slot.size, slot.hpa)).collect()
}

#[test]
fn an_arena_has_its_size_and_nothing_beyond() {
    let arena = Arena::new(0x2000, &ArenaOptions::default()).unwrap();
    assert_eq!((arena.len(), arena.file().metadata().unwrap().len()), (0x2000, 0x2000));
    assert_eq!(arena.write_u64(0x1ff8, 0x1122_3344_5566_7788), Some(()));
    let mut bytes = [0; 2];
    assert_eq!(arena.read_bytes(0x1ffe, &mut bytes), Some(()));
    assert_eq!(bytes, [0x22, 0x11], "little-endian");
    assert_eq!(arena.fetch_or_u64(0x1ff8, 1 << 63), Some(0x1122_3344_5566_7788));
    assert_eq!(arena.compare_exchange_u64(0x1ff8, 0, 1), Some(Err(0x9122_3344_5566_7788)));
    assert_eq!(arena.compare_exchange_u64(0x1ff8, 0x9122_3344_5566_7788, 1), Some(Ok(0x9122_3344_5566_7788)));
    for outside in [0x2000, 0x1ffc, 1, u64::MAX, u64::MAX - 7] {
        assert_eq!(arena.read_u64(outside), None, "{outside:#x}");
        assert_eq!(arena.write_u64(outside, 0), None);
        assert_eq!(arena.fetch_or_u64(outside, 0), None);
        assert_eq!(arena.compare_exchange_u64(outside, 0, 0), None);
        assert_eq!(TableMemory::read(&arena, outside), Err(OutOfArena { pa: outside }));
    }
    assert_eq!(arena.write_bytes(0x1ffe, &[0; 3]), None);
    assert_eq!(arena.read_bytes(u64::MAX, &mut bytes), None);
    assert_eq!(arena.write_bytes(0x2000, &[]), Some(()), "no bytes are anywhere");
}

#[test]
fn an_arena_that_cannot_be_is_an_error() {
    let options = ArenaOptions::default();
    assert!(matches!(Arena::new(0, &options), Err(ArenaError::Empty)));
    assert!(matches!(Arena::new(0x1001, &options), Err(ArenaError::Size { page: 0x1000, .. })));
    assert!(matches!(Arena::new(1 << 63, &options), Err(ArenaError::Size { .. })));
    let error = Arena::new(1 << 60, &options).unwrap_err();
    assert!(matches!(error, ArenaError::Host { size, .. } if size == 1 << 60));
    let huge = ArenaOptions { huge_pages: true };
    assert!(matches!(Arena::new(0x1000, &huge), Err(ArenaError::Size { page: 0x20_0000, .. })));
    // Whether the host has a terabyte of huge pages reserved: it has not.
    assert!(matches!(Arena::new(1 << 40, &huge), Err(ArenaError::Host { .. })));
}

#[test]
fn ram_leaves_the_hole_free() {
    let small = GuestRam::new(&RamConfig::new(256 * MIB)).unwrap();
    assert_eq!(ranges(&small), [(0, 256 * MIB, 0)]);
    let exact = GuestRam::new(&RamConfig::new(3 * GIB)).unwrap();
    assert_eq!(ranges(&exact), [(0, 3 * GIB, 0)]);
    let large = GuestRam::new(&RamConfig::new(5 * GIB)).unwrap();
    assert_eq!(ranges(&large), [(0, 3 * GIB, 0), (4 * GIB, 2 * GIB, 3 * GIB)]);
    assert_eq!(large.hpa(4 * GIB + 5), Some(3 * GIB + 5));
    assert_eq!(large.hpa(3 * GIB), None);
    assert_eq!(large.hpa(6 * GIB), None);
    let low_hole = GuestRam::new(&RamConfig { hole_start: 2 * GIB, ..RamConfig::new(3 * GIB) }).unwrap();
    assert_eq!(ranges(&low_hole), [(0, 2 * GIB, 0), (4 * GIB, GIB, 2 * GIB)]);
    let no_hole = GuestRam::new(&RamConfig { hole_start: 4 * GIB, ..RamConfig::new(5 * GIB) }).unwrap();
    assert_eq!(ranges(&no_hole), [(0, 5 * GIB, 0)]);
    let regions: Vec<_> = large.memory().iter().map(|region| (region.start_addr().0, region.len())).collect();
    assert_eq!(regions, [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
}

#[test]
fn impossible_layouts_are_errors() {
    let new = |config: RamConfig| GuestRam::new(&config).map(|_| ()).unwrap_err();
    assert!(matches!(new(RamConfig::new(0)), LayoutError::Empty));
    assert!(matches!(new(RamConfig::new(4097)), LayoutError::Misaligned { value: 4097, .. }));
    assert!(matches!(new(RamConfig { hole_start: 0, ..RamConfig::new(MIB) }), LayoutError::HoleStart(0)));
    assert!(matches!(
        new(RamConfig { hole_start: 5 * GIB, ..RamConfig::new(MIB) }),
        LayoutError::HoleStart(_)
    ));
    assert!(matches!(
        new(RamConfig { device_area: 1, ..RamConfig::new(MIB) }),
        LayoutError::Misaligned { .. }
    ));
    assert!(matches!(new(RamConfig::new(1 << 50)), LayoutError::Overlap { .. }));
    assert!(matches!(new(RamConfig { root_area: !0xfff, ..RamConfig::new(MIB) }), LayoutError::Arena(_)));
    let error = new(RamConfig::new(1 << 46));
    assert!(matches!(error, LayoutError::ExceedsHost { .. }));
    let text = error.to_string();
    assert!(text.starts_with("guest memory of 67108864 MiB is more than the "), "{text}");
}

#[test]
fn devices_and_processors_see_the_same_pages() {
    let ram = GuestRam::new(&RamConfig { hole_start: MIB, ..RamConfig::new(2 * MIB) }).unwrap();
    ram.memory().write_slice(b"trap", GuestAddress(4 * GIB + 0x10)).unwrap();
    let mut bytes = [0; 4];
    ram.arena().read_bytes(MIB + 0x10, &mut bytes).unwrap();
    assert_eq!(&bytes, b"trap");
    assert!(ram.memory().write_slice(b"trap", GuestAddress(MIB - 2)).is_err(), "into the hole");

    // The view keeps the pages mapped; its file offsets are those of the arena.
    let memory = ram.memory().clone();
    drop(ram);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(4 * GIB + 0x10)).unwrap(), b't');
    let offsets: Vec<u64> = memory.iter().map(|region| region.file_offset().unwrap().start()).collect();
    assert_eq!(offsets, [0, MIB]);
}

#[test]
fn a_rom_is_mapped_without_write_permission() {
    let mut ram = GuestRam::new(&RamConfig::new(16 * MIB)).unwrap();
    let image = vec![0xea; 0x1_0001];
    ram.add_rom(4 * GIB - 0x1_1000, &image).unwrap();
    let rom = *ram.slots().last().unwrap();
    assert_eq!((rom.gpa, rom.size, rom.read_only), (0xfffe_f000, 0x1_1000, true));
    let mut tables = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), false).unwrap();
    ram.map_ept(&mut tables).unwrap();
    let mode = EptMode::new(tables.eptp(), 40);
    let leaf = ept::walk(ram.arena(), &mode, 0xffff_f000, EptAccess::FETCH).unwrap();
    assert_eq!(ram.arena().read_u64(leaf.hpa), Some(0xea));
    assert!(ept::walk(ram.arena(), &mode, 0xffff_f000, EptAccess::WRITE).is_err());
    assert!(ram.memory().read_obj::<u8>(GuestAddress(0xffff_f000)).is_err(), "not for DMA");
}

#[test]
fn a_rom_that_does_not_fit_is_an_error() {
    let mut ram = GuestRam::new(&RamConfig { device_area: 0x2000, ..RamConfig::new(MIB) }).unwrap();
    assert!(matches!(ram.add_rom(MIB - 0x1000, &[1; 0x1001]), Err(LayoutError::Overlap { .. })));
    assert!(matches!(ram.add_rom(MIB + 1, &[1]), Err(LayoutError::Misaligned { .. })));
    assert!(matches!(ram.add_rom(MIB, &[]), Err(LayoutError::Overlap { .. })));
    assert!(matches!(ram.add_rom(u64::MAX - 0xfff, &[1]), Err(LayoutError::Overlap { .. })));
    ram.add_rom(MIB, &[1]).unwrap();
    assert!(matches!(ram.add_rom(MIB, &[1]), Err(LayoutError::Overlap { .. })));
    assert!(matches!(
        ram.add_rom(2 * MIB, &[1; 0x1001]),
        Err(LayoutError::DeviceArea { size: 0x2000, left: 0x1000 })
    ));
}

#[test]
fn slots_are_split_and_joined_again() {
    let mut ram = GuestRam::new(&RamConfig::new(16 * MIB)).unwrap();
    let before = ram.slots().to_vec();
    ram.set_read_only(0xf_0000, 0x1_0000, true).unwrap();
    assert_eq!(ranges(&ram), [(0, 0xf_0000, 0), (0xf_0000, 0x1_0000, 0xf_0000), (MIB, 15 * MIB, MIB)]);
    let shadow = Slot { gpa: 0xf_0000, size: 0x1_0000, hpa: 0xf_0000, read_only: true, log_dirty: false };
    assert_eq!(ram.slot_at(0xf_ffff), Some(&shadow));
    ram.set_log_dirty(0, 32 * MIB, true).unwrap();
    assert_eq!(ram.slots().iter().filter(|slot| slot.log_dirty).count(), 3);
    ram.set_log_dirty(0, 32 * MIB, false).unwrap();
    ram.set_read_only(0xf_0000, 0x1_0000, false).unwrap();
    assert_eq!(ram.slots(), before);
    assert!(ram.set_read_only(0xf_0000, 1, true).is_err());
    ram.set_read_only(MIB, 0, true).unwrap();
    assert_eq!(ram.slots(), before, "an empty range changes nothing");
}

#[test]
fn root_pages_are_zeroed_and_outside_the_guest() {
    let config = RamConfig { root_area: 0x3000, device_area: 0, ..RamConfig::new(MIB) };
    let ram = GuestRam::new(&config).unwrap();
    let pages: Vec<u64> = std::iter::from_fn(|| ram.root_pages().alloc_page()).collect();
    assert_eq!(pages.len(), 3);
    for &page in &pages {
        assert!(ram.slots().iter().all(|slot| page >= slot.hpa + slot.size), "{page:#x}");
        ram.arena().write_u64(page, u64::MAX).unwrap();
    }
    ram.root_pages().free_page(pages[1]);
    ram.root_pages().free_page(pages[1]);
    ram.root_pages().free_page(0);
    assert_eq!(ram.root_pages().alloc_page(), Some(pages[1]));
    assert_eq!(ram.arena().read_u64(pages[1]), Some(0));
    assert_eq!(ram.root_pages().alloc_page(), None);
}
