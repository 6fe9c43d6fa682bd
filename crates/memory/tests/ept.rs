//! The EPT walker against a model written down from the SDM, and the builder against the walker.

mod common;

use common::{PAGES, Random, bit, bits, dump, fill};
use proptest::prelude::*;
use std::sync::Arc;
use trapline_memory::ept::{
    EptAccess, EptAttributes, EptBuilder, EptFault, EptLeaf, EptMode, EptPerms, EptQualification, MapError,
    MemoryType, eptp, eptp_valid, walk,
};
use trapline_memory::test::{NoMemory, Tables};
use trapline_memory::{GuestRam, PageSize, RamConfig, TableMemory};

type Modelled = Result<(EptLeaf, Vec<(u64, u64)>), EptFault<NoMemory>>;

fn model(tables: &Tables, mode: &EptMode, gpa: u64, access: EptAccess) -> Modelled {
    let has = |flag| access.contains(flag);
    let fault = |readable: bool, writable: bool, executable: bool, user: bool| {
        let mut q = EptQualification::empty();
        q.set(EptQualification::READ, has(EptAccess::READ));
        q.set(EptQualification::WRITE, has(EptAccess::WRITE));
        q.set(EptQualification::FETCH, has(EptAccess::FETCH));
        q.set(EptQualification::READABLE, readable);
        q.set(EptQualification::WRITABLE, writable);
        q.set(EptQualification::EXECUTABLE, executable);
        q.set(EptQualification::USER_EXECUTABLE, user && mode.mode_based_execute);
        Err(EptFault::Violation { gpa, qualification: q })
    };
    if bits(gpa, 63, 48) != 0 {
        return fault(false, false, false, false);
    }
    let mut table = bits(mode.eptp, 51, 12) << 12;
    let mut path = Vec::new();
    for (level, high, low) in [(4u8, 47, 39), (3, 38, 30), (2, 29, 21), (1, 20, 12)] {
        let pa = table + bits(gpa, high, low) * 8;
        let entry = tables.read(pa).map_err(EptFault::Memory)?;
        let is_present = bits(entry, 2, 0) != 0 || mode.mode_based_execute && bit(entry, 10);
        if !is_present {
            return fault(false, false, false, false);
        }
        let width = u32::from(mode.phys_bits);
        let misconfig = Err(EptFault::Misconfig { gpa, entry, level });
        if !bit(entry, 0) && (bit(entry, 1) || !mode.execute_only) {
            return misconfig;
        }
        if width < 52 && bits(entry, 51, width) != 0 {
            return misconfig;
        }
        let is_page = level == 1 || level < 4 && bit(entry, 7);
        let reserved = match (level, is_page) {
            (4, _) => bits(entry, 7, 3),
            (3, true) => bits(entry, 29, 12),
            (2, true) => bits(entry, 20, 12),
            (1, _) => 0,
            _ => bits(entry, 6, 3),
        };
        if reserved != 0 || is_page && matches!(bits(entry, 5, 3), 2 | 3 | 7) {
            return misconfig;
        }
        path.push((pa, entry));
        if !is_page {
            table = bits(entry, 51, 12) << 12;
            continue;
        }
        let all = |at| path.iter().all(|&(_, entry)| bit(entry, at));
        let (readable, writable, executable, user) = (all(0), all(1), all(2), all(10));
        let may_fetch = if mode.mode_based_execute && has(EptAccess::USER) { user } else { executable };
        let denied = has(EptAccess::READ) && !readable
            || has(EptAccess::WRITE) && !writable
            || has(EptAccess::FETCH) && !may_fetch;
        if denied {
            return fault(readable, writable, executable, user);
        }
        let mut set = Vec::new();
        if bit(mode.eptp, 6) {
            set.extend(path.iter().map(|&(pa, _)| (pa, 1 << 8)));
            if has(EptAccess::WRITE) {
                set.push((pa, 1 << 9));
            }
        }
        let mut perms = EptPerms::empty();
        perms.set(EptPerms::READ, readable);
        perms.set(EptPerms::WRITE, writable);
        perms.set(EptPerms::EXECUTE, executable);
        perms.set(EptPerms::USER_EXECUTE, user);
        let leaf = EptLeaf {
            hpa: (bits(entry, 51, low) << low) + bits(gpa, low - 1, 0),
            page_size: [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][usize::from(level) - 1],
            perms,
            memory_type: MemoryType::from_bits(bits(entry, 5, 3) as u8).unwrap(),
            ignore_pat: bit(entry, 6),
            dirty: !bit(mode.eptp, 6) || bit(entry, 9) || has(EptAccess::WRITE),
        };
        return Ok((leaf, set));
    }
    unreachable!("level 1 is a page")
}

/// An entry that mostly lets a walk go on.
fn random_entry(random: &mut Random) -> u64 {
    let mut entry = random.mostly(1, 12) | random.mostly(2, 8) | random.mostly(4, 8);
    entry |= random.mostly(1 << 10, 6) | random.rarely(1 << 8, 2) | random.rarely(1 << 9, 2);
    let high_bit = 1 << (32 + random.next() % 32);
    entry |= random.rarely(high_bit, 40);
    if random.one_in(3) {
        // A leaf, if at the right level; usually aligned, usually with a memory type that exists.
        let types = if random.one_in(6) { random.next() & 7 } else { 6 };
        let mask = if random.one_in(8) { 0xffff_f000 } else { 0xc000_0000 };
        let large = random.mostly(0x80, 4);
        return entry | large | types << 3 | random.next() & (mask | 0x40);
    }
    let table = (random.next() % PAGES) << 12;
    entry | table
}

fn accesses() -> impl Strategy<Value = EptAccess> {
    (1..16u64).prop_map(EptAccess::from_bits_truncate)
}

proptest! {
    #[test]
    fn random_tables_agree_with_the_model(
        seed in any::<u64>(),
        (execute_only, mode_based_execute, accessed_dirty) in any::<(bool, bool, bool)>(),
        phys_bits in prop_oneof![Just(32u8), Just(36), Just(46), Just(52)],
        root in 0..PAGES,
        tries in proptest::collection::vec((0..1u64 << 49, accesses()), 1..32),
    ) {
        let mut random = Random::new(seed);
        let tables = fill(|| random_entry(&mut random));
        let mode = EptMode {
            eptp: eptp(root << 12, accessed_dirty),
            phys_bits,
            execute_only,
            mode_based_execute,
        };
        for (gpa, access) in tries {
            let gpa = if gpa >> 48 != 0 && gpa % 8 != 0 { gpa & 0xffff_ffff_ffff } else { gpa };
            let mut expected = dump(&tables);
            let modelled = model(&tables, &mode, gpa, access);
            let walked = walk(&tables, &mode, gpa, access);
            match modelled {
                Ok((leaf, set)) => {
                    prop_assert_eq!(walked, Ok(leaf));
                    for (pa, bits) in set {
                        expected[(pa / 8) as usize] |= bits;
                    }
                }
                Err(fault) => prop_assert_eq!(walked, Err(fault)),
            }
            prop_assert!(dump(&tables) == expected, "accessed and dirty flags differ");
        }
    }
}

/// A change of a range.
#[derive(Clone, Copy, Debug)]
enum Op {
    Map { hpa: u64, attributes: EptAttributes },
    Unmap,
    Protect(EptPerms),
    Split(PageSize),
}

fn perms() -> impl Strategy<Value = EptPerms> {
    prop_oneof![Just(EptPerms::RWX), Just(EptPerms::RW), Just(EptPerms::RX), Just(EptPerms::EXECUTE)]
}

fn page_sizes() -> impl Strategy<Value = PageSize> {
    prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M), Just(PageSize::Size1G)]
}

/// Ranges of every size in the first 8 GiB, aligned such that they take few tables.
fn ops() -> impl Strategy<Value = (u64, u64, Op)> {
    let unit = prop_oneof![Just(12u32), Just(21), Just(30)];
    (unit, any::<[u64; 3]>(), 0..5u8, perms(), page_sizes()).prop_map(
        |(unit, [gpa, hpa, count], what, perms, page)| {
            let size = (1 + count % if unit == 30 { 4 } else { 700 }) << unit;
            let at = |random: u64| (random % (8 << 30)) >> unit << unit;
            // Pages of 4 KiB in a large range would take too many tables for a test.
            let smallest = [PageSize::Size4K, PageSize::Size2M][usize::from(unit == 30)];
            let max_page = if unit == 12 { page } else { page.max(PageSize::Size2M) };
            let attributes = EptAttributes { max_page, ..EptAttributes::new(perms) };
            let op = match what {
                0..=1 => Op::Map { hpa: at(hpa), attributes },
                2 => Op::Unmap,
                3 => Op::Protect(perms),
                _ if unit == 21 => Op::Split(PageSize::Size2M),
                _ => Op::Split(page.max(smallest)),
            };
            (at(gpa), size, op)
        },
    )
}

/// What a history of changes makes of one address.
fn expected(history: &[(u64, u64, Op)], gpa: u64) -> Option<(u64, EptPerms)> {
    history.iter().filter(|(start, size, _)| (*start..start + size).contains(&gpa)).fold(
        None,
        |state, (start, _, op)| match op {
            Op::Map { hpa, attributes } => Some((hpa + (gpa - start), attributes.perms)),
            Op::Unmap => None,
            Op::Protect(perms) => state.map(|(hpa, _)| (hpa, *perms)),
            Op::Split(_) => state,
        },
    )
}

proptest! {
    #[test]
    fn what_was_built_is_walked(
        history in proptest::collection::vec(ops(), 1..12),
        probes in proptest::collection::vec(0..16u64 << 30, 32),
    ) {
        let tables = Tables::new(2048);
        let mut ept = EptBuilder::new(&tables, &tables, false).unwrap();
        for &(gpa, size, op) in &history {
            match op {
                Op::Map { hpa, attributes } => ept.map(gpa, hpa, size, attributes).unwrap(),
                Op::Unmap => ept.unmap(gpa, size).unwrap(),
                Op::Protect(perms) => ept.protect(gpa, size, perms).unwrap(),
                Op::Split(page) => {
                    ept.split(gpa, size, page).unwrap();
                    let mut largest = PageSize::Size4K;
                    ept.for_each_leaf(gpa, size, |leaf| largest = largest.max(leaf.page_size)).unwrap();
                    prop_assert!(largest <= page);
                }
            }
        }
        let mode = EptMode { mode_based_execute: true, ..EptMode::new(ept.eptp(), 40) };
        let edges = history.iter().flat_map(|(gpa, size, _)| {
            [gpa.saturating_sub(1), *gpa, gpa + 4096, gpa + size - 1, gpa + size]
        });
        for gpa in edges.chain(probes.iter().copied()) {
            let walked = [EptAccess::READ, EptAccess::FETCH]
                .iter()
                .find_map(|&access| walk(&tables, &mode, gpa, access).ok());
            let walked = walked.map(|leaf| (leaf.hpa, leaf.perms));
            prop_assert_eq!(walked, expected(&history, gpa), "at {:#x}", gpa);
        }
    }
}

fn ram() -> GuestRam {
    GuestRam::new(&RamConfig { root_area: 1 << 20, ..RamConfig::new(64 << 20) }).unwrap()
}

/// How many root pages are left. Takes none.
fn pages_left(ram: &GuestRam) -> usize {
    let taken: Vec<u64> = std::iter::from_fn(|| ram.root_pages().alloc_page()).collect();
    taken.iter().for_each(|&page| ram.root_pages().free_page(page));
    taken.len()
}

#[test]
fn unmapping_gives_every_table_back() {
    let ram = ram();
    let mut ept = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), true).unwrap();
    let left = pages_left(&ram);
    ept.map(0x1000, 0, 0x3000_0000, EptAttributes::new(EptPerms::RWX)).unwrap_err();
    ept.unmap(0, 1 << 40).unwrap();
    assert_eq!(pages_left(&ram), left, "a failed change leaks nothing that unmapping does not find");
    ept.map(0x20_0000, 0, 0x4000_0000, EptAttributes::new(EptPerms::RWX)).unwrap();
    ept.protect(0x30_0000, 0x1000, EptPerms::RX).unwrap();
    assert!(pages_left(&ram) < left);
    ept.unmap(0x30_0000, 0x2000).unwrap();
    ept.map(0, 0, 1 << 30, EptAttributes::new(EptPerms::RWX)).unwrap();
    ept.unmap(0, 2 << 30).unwrap();
    assert_eq!(pages_left(&ram), left);
}

#[test]
fn leaves_are_as_large_as_fits() {
    let tables = Tables::new(32);
    let mut ept = EptBuilder::new(&tables, &tables, false).unwrap();
    let rwx = EptAttributes::new(EptPerms::RWX);
    ept.map(0x3fff_f000, 0x7fff_f000, 0x1000 + (1 << 30) + 0x20_1000, rwx).unwrap();
    let mut sizes = Vec::new();
    ept.for_each_leaf(0, 1 << 40, |leaf| sizes.push((leaf.gpa, leaf.page_size))).unwrap();
    assert_eq!(
        sizes,
        [
            (0x3fff_f000, PageSize::Size4K),
            (0x4000_0000, PageSize::Size1G),
            (0x8000_0000, PageSize::Size2M),
            (0x8020_0000, PageSize::Size4K)
        ]
    );
    // Addresses that differ below 2 MiB leave only small pages.
    ept.unmap(0, 1 << 40).unwrap();
    ept.map(0x20_0000, 0x1000, 0x20_0000, rwx).unwrap();
    let mode = EptMode::new(ept.eptp(), 40);
    let leaf = walk(&tables, &mode, 0x20_0123, EptAccess::READ).unwrap();
    assert_eq!((leaf.hpa, leaf.page_size), (0x1123, PageSize::Size4K));
}

#[test]
fn splitting_keeps_flags_and_attributes() {
    let tables = Tables::new(32);
    let mut ept = EptBuilder::new(&tables, &tables, true).unwrap();
    let attributes = EptAttributes {
        memory_type: MemoryType::WriteThrough,
        ignore_pat: true,
        ..EptAttributes::new(EptPerms::RWX)
    };
    ept.map(0, 0x4000_0000, 1 << 30, attributes).unwrap();
    let mode = EptMode::new(ept.eptp(), 40);
    walk(&tables, &mode, 0x1234, EptAccess::WRITE).unwrap();
    ept.split(0, 0x1000, PageSize::Size4K).unwrap();
    for (gpa, page_size) in [(0x1f_f000, PageSize::Size4K), (0x20_0000, PageSize::Size2M)] {
        let leaf = walk(&tables, &mode, gpa, EptAccess::READ).unwrap();
        assert_eq!((leaf.hpa, leaf.page_size), (0x4000_0000 + gpa, page_size));
        assert_eq!((leaf.memory_type, leaf.ignore_pat), (MemoryType::WriteThrough, true));
        assert!(leaf.dirty, "the dirty flag is handed down");
    }
}

#[test]
fn what_ept_cannot_express_is_refused() {
    let tables = Tables::new(2);
    let mut ept = EptBuilder::new(&tables, &tables, false).unwrap();
    let rwx = EptAttributes::new(EptPerms::RWX);
    assert!(matches!(ept.map(0x800, 0, 0x1000, rwx), Err(MapError::Misaligned { .. })));
    assert!(matches!(ept.map(0, 0x800, 0x1000, rwx), Err(MapError::Misaligned { .. })));
    assert!(matches!(ept.unmap(0, 0x800), Err(MapError::Misaligned { .. })));
    assert!(matches!(ept.map(1 << 48, 0, 0x1000, rwx), Err(MapError::TooHigh { .. })));
    assert!(matches!(ept.map(0, 1 << 52, 0x1000, rwx), Err(MapError::TooHigh { .. })));
    assert!(matches!(ept.map(u64::MAX - 0xfff, 0, 0x1000, rwx), Err(MapError::TooHigh { .. })));
    let write_only = EptAttributes::new(EptPerms::WRITE);
    assert!(matches!(ept.map(0, 0, 0x1000, write_only), Err(MapError::Perms(_))));
    assert!(matches!(ept.protect(0, 0x1000, EptPerms::empty()), Err(MapError::Perms(_))));
    // One page is taken by the top table; there is no other.
    assert_eq!(ept.map(0, 0, 0x1000, rwx), Err(MapError::NoPage));
}

#[test]
fn hostile_tables_end_the_walk() {
    // Every entry points to its own table; as a leaf, the last has memory type 0.
    let tables = fill(|| 0x1007);
    let mode = EptMode::new(eptp(0x1000, true), 46);
    assert_eq!(walk(&tables, &mode, 0x123, EptAccess::WRITE).map(|leaf| leaf.hpa), Ok(0x1123));
    assert_eq!(tables.read(0x1000), Ok(0x1307));
    let ones = fill(|| u64::MAX);
    assert_eq!(
        walk(&ones, &mode, 0, EptAccess::READ),
        Err(EptFault::Misconfig { gpa: 0, entry: u64::MAX, level: 4 })
    );
    let outside = EptMode::new(eptp(1 << 40, false), 46);
    assert_eq!(walk(&ones, &outside, 0, EptAccess::READ), Err(EptFault::Memory(NoMemory(1 << 40))));
}

#[test]
fn eptp_is_checked_as_by_vm_entry() {
    assert!(eptp_valid(eptp(0x1000, true), 46));
    assert!(eptp_valid(0x1018, 46), "uncacheable");
    for wrong in [0x1019, 0x1016, 0x1026, 0x109e, 0x119e, 0x181e, 1 << 46 | 0x101e, 1 << 63 | 0x101e] {
        assert!(!eptp_valid(wrong, 46), "{wrong:#x}");
    }
}

/// A processor that dirties a page at the moment its leaf is split or cleaned loses nothing.
#[test]
fn dirty_flags_survive_concurrent_splits() {
    let ram = Arc::new(ram());
    let mut ept = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), true).unwrap();
    let attributes = EptAttributes::new(EptPerms::RWX);
    for _ in 0..200 {
        ept.map(0, 0, 2 << 20, attributes).unwrap();
        let mode = EptMode::new(ept.eptp(), 46);
        let writer = {
            let ram = ram.clone();
            std::thread::spawn(move || walk(ram.arena(), &mode, 0x5000, EptAccess::WRITE).is_ok())
        };
        ept.split(0, 2 << 20, PageSize::Size4K).unwrap();
        assert!(writer.join().unwrap());
        let mut dirty = false;
        ept.take_dirty(0x5000, 0x1000, |_| dirty = true).unwrap();
        assert!(dirty);
    }
}
