//! Shadow paging: a processor that runs on the shadow tables sees what the guest's tables say.

mod common;
#[path = "common/shadow_machine.rs"]
mod shadow_machine;

use common::Random;
use proptest::prelude::*;
use shadow_machine::{Machine, Op, TABLES, TOPS};
use trapline_memory::paging::{self, Access, PageFaultCode, PagingFlags, PagingKind, PagingMode, WalkError};
use trapline_memory::shadow::{NoShadowPage, ShadowAction};

fn ops() -> impl Strategy<Value = (usize, Op)> {
    // At every level.
    let table = prop_oneof![
        3 => (0..8u64).prop_map(|page| TABLES + (page << 12)),
        1 => Just(TOPS[0]),
        1 => Just(TOPS[1])
    ];
    let access = (0..3u8, any::<bool>(), any::<bool>()).prop_map(|(what, user, ac)| Access {
        write: what == 1,
        fetch: what == 2,
        user,
        ac,
        ..Access::READ
    });
    let op = prop_oneof![
        6 => (table, 1..4u64, any::<u64>()).prop_map(|(table, index, seed)| {
            Op::Change { table, index, entry: entry(seed) }
        }),
        2 => any::<bool>().prop_map(Op::LoadCr3),
        8 => (any::<u8>(), any::<bool>(), access)
            .prop_map(|(place, invlpg, access)| Op::Access { gva: place.into(), invlpg, access }),
        1 => (0..8u64, any::<u64>()).prop_map(|(page, seed)| {
            Op::DeviceWrite { table: TABLES + (page << 12), index: 1, entry: entry(seed) }
        }),
        1 => Just(Op::Exit),
    ];
    (0..3usize, op)
}

/// An entry to a table, a page of data, a page beyond RAM, or a large page.
fn entry(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let flags = random.mostly(1, 12) | random.mostly(2, 4) | random.mostly(4, 3) | random.rarely(0x60, 3);
    let key = random.rarely(1 << 60, 8) | random.rarely(1 << 63, 8);
    match random.next() % 16 {
        0 => flags | 0x80,
        1 => flags | 2 << 20,
        2..5 => flags | key | (32 + random.next() % 8) << 12,
        _ => flags | (16 + random.next() % 8) << 12,
    }
}

/// One of 256 addresses outside the window, one to three from the beginning of each table.
fn address(kind: PagingKind, place: u64) -> u64 {
    let [a, b, c, d] = [0, 2, 4, 6].map(|shift| (place >> shift & 3).clamp(1, 3));
    match kind {
        PagingKind::Bits32 { .. } => a << 22 | b << 12 | 0x123,
        PagingKind::Pae { .. } => (a - 1) << 30 | b << 21 | c << 12 | 0x123,
        _ => a << 39 | b << 30 | c << 21 | d << 12 | 0x123,
    }
}

/// What of the processors is the same throughout.
#[derive(Clone, Copy, Debug)]
struct Setup {
    processors: usize,
    few_pages: bool,
    flags: u16,
    pkru: u32,
}

fn setup() -> impl Strategy<Value = Setup> {
    (1..4usize, any::<bool>(), any::<u16>(), any::<u32>())
        .prop_map(|(processors, few_pages, flags, pkru)| Setup { processors, few_pages, flags, pkru })
}

fn run(kind: PagingKind, setup: Setup, ops: &[(usize, Op)]) {
    // Three processors and what they may still be looking at.
    let mut machine = Machine::new(kind, setup.processors, if setup.few_pages { 12 } else { 200 });
    let optional = PagingFlags::WRITE_PROTECT | PagingFlags::SMEP | PagingFlags::SMAP | PagingFlags::PKE;
    for processor in &mut machine.processors {
        processor.mode.flags.remove(optional);
        processor.mode.flags |= optional & PagingFlags::from_bits_truncate(setup.flags);
        processor.mode.pkru = setup.pkru;
    }
    machine.start();
    for &(n, op) in ops {
        let op = match op {
            Op::Access { gva, invlpg, access } => Op::Access { gva: address(kind, gva), invlpg, access },
            // PDPTEs have no rights.
            Op::Change { table, index, entry } if TOPS.contains(&table) => match kind {
                PagingKind::Pae { .. } => Op::Change { table, index, entry: entry & 0x1f_f001 },
                _ => op,
            },
            op => op,
        };
        machine.perform(n, op);
    }
    machine.end();
}

proptest! {
    #[test]
    fn four_levels_stay_in_sync(ops in proptest::collection::vec(ops(), 1..200), setup in setup()) {
        run(PagingKind::Level4, setup, &ops);
    }

    #[test]
    fn pae_stays_in_sync(ops in proptest::collection::vec(ops(), 1..200), setup in setup()) {
        run(PagingKind::Pae { pdptes: [0; 4] }, setup, &ops);
    }

    #[test]
    fn two_levels_stay_in_sync(
        ops in proptest::collection::vec(ops(), 1..200),
        setup in setup(),
        pse in any::<bool>(),
    ) {
        run(PagingKind::Bits32 { pse, pse36: false }, setup, &ops);
    }
}

/// INVLPG in an address space that shares a table with another and was not entered since CR3 was loaded.
#[test]
fn invlpg_before_the_first_entry() {
    let access = Access { write: false, fetch: false, user: false, implicit: false, ac: false };
    // Linear 0x4020_1123, as `address` makes it.
    let through = |invlpg, gva| Op::Access { gva, invlpg, access };
    let ops = [
        Op::Change { table: 0x1_5000, index: 1, entry: 0x1_0003 },
        Op::DeviceWrite { table: 0x1_0000, index: 1, entry: 0x1_5063 },
        Op::Change { table: TOPS[0], index: 1, entry: 0x1_5001 },
        Op::LoadCr3(false),
        through(false, 214),
        Op::Change { table: TOPS[0], index: 2, entry: 0x1_0003 },
        Op::LoadCr3(false),
        Op::DeviceWrite { table: 0x1_5000, index: 1, entry: 0x2_2004 },
        through(true, 86),
    ];
    let setup = Setup { processors: 1, few_pages: false, flags: 0, pkru: 0 };
    run(PagingKind::Pae { pdptes: [0; 4] }, setup, &ops.map(|op| (0, op)));
}

/// Two entries lead to the same table: INVLPG of one address must not hide that the other is cached as well.
#[test]
fn invlpg_of_two_addresses_that_one_entry_translates() {
    let access = Access { write: false, fetch: false, user: false, implicit: false, ac: false };
    // Linear 0x4020_1123 and 0x8020_1123, as `address` makes them.
    let through = |invlpg, gva| Op::Access { gva, invlpg, access };
    let ops = [
        Op::DeviceWrite { table: 0x1_7000, index: 1, entry: 0x1_5067 },
        Op::Change { table: TOPS[1], index: 2, entry: 0x1_4001 },
        Op::Change { table: TOPS[1], index: 1, entry: 0x1_4001 },
        Op::DeviceWrite { table: 0x1_4000, index: 1, entry: 0x1_7005 },
        Op::LoadCr3(true),
        through(false, 210),
        Op::Change { table: 0x1_7000, index: 1, entry: 0x1_2002 },
        through(true, 195),
        through(true, 66),
    ];
    let setup = Setup { processors: 1, few_pages: false, flags: 0, pkru: 0 };
    run(PagingKind::Pae { pdptes: [0; 4] }, setup, &ops.map(|op| (0, op)));
}

/// CR0.WP is clear, and the page's protection key disables writes: only for those that obey CR0.WP.
#[test]
fn a_supervisor_write_that_the_protection_key_would_deny_is_emulated() {
    let access = Access { ac: true, ..Access::WRITE };
    let ops = [
        Op::DeviceWrite { table: 0x1_5000, index: 1, entry: 0x1_5007 },
        Op::Change { table: TOPS[0], index: 3, entry: 0x1_3067 },
        Op::Change { table: 0x1_5000, index: 2, entry: 0x1_1067 },
        Op::Change { table: 0x1_3000, index: 1, entry: 0x1_5007 },
        Op::Access { gva: 147, invlpg: true, access },
    ];
    let setup = Setup { processors: 1, few_pages: false, flags: PagingFlags::PKE.bits(), pkru: 2 };
    run(PagingKind::Level4, setup, &ops.map(|op| (0, op)));
}

/// One processor, with the window.
fn machine(kind: PagingKind) -> Machine {
    let mut machine = Machine::new(kind, 1, 64);
    machine.start();
    machine
}

#[test]
fn a_page_of_tables_that_rests_is_write_protected() {
    let mut machine = machine(PagingKind::Level4);
    // The guest fills a table while it is plain memory, then uses it.
    assert_eq!(machine.access(0, 0x1_0000, Access::WRITE), Ok(0x1_0000));
    machine.poke(0x1_0000, 0, 0x2_0003);
    machine.access(0, 0x4008, Access::WRITE).unwrap();
    machine.poke(0x4000, 1, 0x1_0003);
    assert_eq!(machine.access(0, 0x20_0000, Access::READ), Ok(0x2_0000));
    let write = |machine: &mut Machine| {
        let hardware = machine.hardware(0);
        paging::walk(&**machine.ram.arena(), &hardware, 0x1_0000, Access::WRITE)
    };
    assert!(write(&mut machine).is_ok(), "a new table may be written");
    // Looked at a few times without a change.
    (0..3).for_each(|_| machine.load_cr3(0, TOPS[0]));
    let denied = WalkError::PageFault(PageFaultCode::PRESENT | PageFaultCode::WRITE);
    for invlpg in [false, true] {
        // Also when it is mapped again, for a read, with the guest's dirty flag set.
        if invlpg {
            machine.invlpg(0, 0x1_0000);
            assert_eq!(machine.access(0, 0x1_0000, Access::READ), Ok(0x1_0000));
        }
        assert_eq!(write(&mut machine).unwrap_err(), denied);
    }
    // In another address space, long after, the change is seen.
    machine.load_cr3(0, TOPS[1]);
    machine.access(0, 0x1_0000, Access::WRITE).unwrap();
    machine.poke(0x1_0000, 0, 0x3_0003);
    machine.load_cr3(0, TOPS[0]);
    assert_eq!(machine.access(0, 0x20_0000, Access::READ), Ok(0x3_0000));
}

/// A processor that does not leave the guest can go on writing by what it has cached: so long the page is not
/// trusted.
#[test]
fn a_page_is_closed_when_everybody_has_been_out() {
    let mut machine = Machine::new(PagingKind::Level4, 2, 64);
    machine.start();
    machine.poke(0x4000, 1, 0x1_0003);
    machine.poke(0x1_0000, 0, 0x2_0003);
    assert_eq!(machine.access(0, 0x20_0000, Access::READ), Ok(0x2_0000));
    assert_eq!(machine.access(1, 0x1_0000, Access::WRITE), Ok(0x1_0000));
    for entry in [0x3_0003, 0x4_0003] {
        (0..4).for_each(|_| machine.load_cr3(0, TOPS[0]));
        // The second one has it cached.
        assert_eq!(machine.access(1, 0x1_0000, Access::WRITE), Ok(0x1_0000));
        machine.poke(0x1_0000, 0, entry);
        machine.load_cr3(0, TOPS[0]);
        assert_eq!(machine.access(0, 0x20_0000, Access::READ), Ok(entry & !3));
    }
}

#[test]
fn neighbours_come_together() {
    let mut machine = machine(PagingKind::Level4);
    machine.poke(0x4000, 1, 0x1_0003);
    for page in 0..512 {
        // The guest has used them all.
        machine.poke(0x1_0000, page, 0x2_0063);
    }
    machine.access(0, 0x20_0000, Access::WRITE).unwrap();
    let hardware = machine.hardware(0);
    let reachable = |page: u64| {
        let gva = 0x20_0000 + page * 4096;
        paging::walk(&**machine.ram.arena(), &hardware, gva, Access::WRITE).is_ok()
    };
    assert_eq!((0..512).filter(|&page| reachable(page)).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
}

/// What a processor with EPT writes past the tables is seen after the next CR3 load.
#[test]
fn unprotected_writes_are_found() {
    let mut machine = machine(PagingKind::Level4);
    machine.poke(0x4000, 1, 0x1_0003);
    machine.poke(0x1_0000, 0, 0x2_0003);
    assert_eq!(machine.access(0, 0x20_0000, Access::READ), Ok(0x2_0000));
    (0..4).for_each(|_| machine.load_cr3(0, TOPS[0]));
    machine.shadow.begin_unprotected();
    (0..4).for_each(|_| machine.load_cr3(0, TOPS[0]));
    machine.poke(0x1_0000, 0, 0x3_0003);
    machine.shadow.end_unprotected();
    machine.load_cr3(0, TOPS[0]);
    assert_eq!(machine.access(0, 0x20_0000, Access::READ), Ok(0x3_0000));
}

#[test]
fn paging_off_and_on() {
    let mut machine = machine(PagingKind::Level4);
    machine.poke(0x4000, 1, 0x83);
    let on = machine.processors[0].mode;
    machine.processors[0].mode = PagingMode::OFF;
    machine.load_cr3(0, 0);
    assert_eq!(machine.access(0, 0x1f_fff8, Access::WRITE.as_user()), Ok(0x1f_fff8));
    assert_eq!(machine.access(0, 0xfee0_0020, Access::READ), Err(ShadowAction::Mmio(0xfee0_0020)));
    machine.processors[0].mode = on;
    machine.load_cr3(0, TOPS[0]);
    assert_eq!(machine.access(0, 0x20_1234, Access::READ), Ok(0x1234));
    let code = PageFaultCode::WRITE;
    assert_eq!(machine.access(0, 0x40_0000, Access::WRITE), Err(ShadowAction::InjectPageFault(code)));
}

#[test]
fn pae_and_five_levels() {
    let mut machine = Machine::new(PagingKind::Pae { pdptes: [0, 0, 0, 0x1_0001] }, 1, 64);
    machine.poke(0x1_0000, 511, 0x1_1003);
    machine.poke(0x1_1000, 511, 0x2_0003);
    assert_eq!(machine.access(0, 0xffff_ffff, Access::WRITE), Ok(0x2_0fff));
    assert!(matches!(machine.access(0, 0, Access::READ), Err(ShadowAction::InjectPageFault(_))));

    let mut machine = Machine::new(PagingKind::Level5, 1, 64);
    for level in 1..6 {
        machine.poke(0x1_0000 + level * 0x1000, 256, (0x11 + level) << 12 | 3);
    }
    machine.load_cr3(0, 0x1_1000);
    let gva = [48, 39, 30, 21, 12].iter().fold(0xfe00_0000_0000_0000, |gva, shift| gva | 256 << shift);
    assert_eq!(machine.access(0, gva | 5, Access::WRITE), Ok(0x1_6005));
}

#[test]
fn a_large_page_is_invalidated_as_a_whole() {
    let mut machine = machine(PagingKind::Bits32 { pse: true, pse36: false });
    machine.poke(0x1000, 4, 0x83);
    assert_eq!(machine.access(0, 0x100_0000, Access::READ), Ok(0));
    machine.access(0, 0x1000, Access::WRITE).unwrap();
    machine.poke(0x1000, 4, 0);
    // The other half of the page, never touched before.
    machine.invlpg(0, 0x120_0000);
    assert!(matches!(machine.access(0, 0x100_0000, Access::READ), Err(ShadowAction::InjectPageFault(_))));
}

#[test]
fn roms_are_not_written_and_writes_are_recorded() {
    let mut machine = machine(PagingKind::Level4);
    machine.ram.set_read_only(0x10_0000, 0x1000, true).unwrap();
    machine.ram.set_log_dirty(0, 0x10_0000, true).unwrap();
    machine.ram.set_log_dirty(0x10_1000, 0xf_f000, true).unwrap();
    machine.ram.dirty().set_enabled(true);
    assert_eq!(machine.access(0, 0x10_0010, Access::WRITE), Err(ShadowAction::Mmio(0x10_0010)));
    assert_eq!(machine.access(0, 0x10_0010, Access::READ), Ok(0x10_0010));
    assert_eq!(machine.access(0, 0x10_1010, Access::READ), Ok(0x10_1010));
    assert!(!machine.ram.dirty().is_dirty(0x10_1000));
    assert_eq!(machine.access(0, 0x10_1010, Access::WRITE), Ok(0x10_1010));
    assert!(machine.ram.dirty().is_dirty(0x10_1000));
    assert!(machine.ram.dirty().is_dirty(0x5000), "the guest's dirty flag is in its table");
    // Once more, after it was taken.
    machine.ram.dirty().take(0..0x20_0000);
    machine.shadow.write_protect(0x10_1000);
    machine.load_cr3(0, TOPS[0]);
    assert_eq!(machine.access(0, 0x10_1010, Access::WRITE), Ok(0x10_1010));
    assert!(machine.ram.dirty().is_dirty(0x10_1000));
}

#[test]
fn too_few_pages_is_an_error_and_not_a_loop() {
    let machine = Machine::new(PagingKind::Level4, 1, 3);
    machine.map_window();
    let Machine { ram, mut shadow, processors } = machine;
    let mode = processors[0].mode;
    for _ in 0..3 {
        assert_eq!(shadow.handle_page_fault(&ram, &mode, 0, Access::READ), Err(NoShadowPage));
        shadow.flush_all();
    }
    let Machine { ram, mut shadow, .. } = Machine::new(PagingKind::Level4, 1, 0);
    let mut seat = shadow.join();
    assert_eq!(shadow.enter(&ram, &mut seat, &mode), Err(NoShadowPage));
}
