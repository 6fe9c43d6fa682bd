//! Two-dimensional walks: the same tables walked flat and through an EPT give the same translation.

mod common;

use common::{PAGES, Random};
use proptest::prelude::*;
use trapline_memory::ept::{
    EptAccess, EptAttributes, EptBuilder, EptFault, EptMode, EptPerms, EptQualification,
};
use trapline_memory::nested::{GuestTables, translate};
use trapline_memory::paging::{self, Access, PageFaultCode, PagingFlags, PagingKind, PagingMode, WalkError};
use trapline_memory::test::Tables;
use trapline_memory::{PageAllocator, PageSize, TableMemory};

/// Where guest-physical 0 lies in the memory below.
const OFFSET: u64 = 0x40_0000;

fn mode(cr3: u64) -> PagingMode {
    PagingMode {
        kind: PagingKind::Level4,
        cr3,
        flags: PagingFlags::NXE | PagingFlags::WRITE_PROTECT | PagingFlags::PAGE_1G,
        phys_bits: 46,
        ..PagingMode::OFF
    }
}

/// An EPT for 2 MiB of guest memory at [`OFFSET`], which lies above its own tables.
struct Guest {
    mem: Tables,
}

impl Guest {
    fn new() -> Self {
        Self { mem: Tables::new(2048) }
    }

    fn ept(&self, accessed_dirty: bool, max_page: PageSize) -> EptBuilder<&Tables, &Tables> {
        let mut ept = EptBuilder::new(&self.mem, &self.mem, accessed_dirty).unwrap();
        let attributes = EptAttributes { max_page, ..EptAttributes::new(EptPerms::RWX) };
        ept.map(0, OFFSET, 0x20_0000, attributes).unwrap();
        ept
    }

    fn write(&self, gpa: u64, entry: u64) {
        self.mem.write(OFFSET + gpa, entry).unwrap();
    }

    fn read(&self, gpa: u64) -> u64 {
        self.mem.read(OFFSET + gpa).unwrap()
    }

    /// Tables at 0x1000 to 0x4000 that map linear 0 to guest-physical 0x5000, user, writable.
    fn map_one_page(&self) {
        for level in 1..5 {
            self.write(level * 0x1000, (level + 1) << 12 | 7);
        }
    }
}

fn entry(random: &mut Random) -> u64 {
    let flags = random.mostly(1, 24) | random.mostly(2, 4) | random.mostly(4, 4) | random.mostly(0x60, 2);
    let page = (random.next() % PAGES) << 12;
    if random.one_in(8) { flags | 0x80 } else { flags | page }
}

proptest! {
    #[test]
    fn through_an_ept_as_if_flat(
        seed in any::<u64>(),
        tries in proptest::collection::vec((any::<u64>(), any::<bool>(), any::<bool>()), 1..24),
        small in any::<bool>(),
        accessed_dirty in any::<bool>(),
    ) {
        let (guest, flat) = (Guest::new(), Tables::new(PAGES as usize));
        let mut random = Random::new(seed);
        for word in 0..PAGES * 512 {
            let entry = entry(&mut random);
            guest.write(word * 8, entry);
            flat.write(word * 8, entry).unwrap();
        }
        let page_size = if small { PageSize::Size4K } else { PageSize::Size2M };
        let ept = EptMode::new(guest.ept(accessed_dirty, page_size).eptp(), 46);
        for (gva, write, user) in tries {
            let access = Access { write, user, ..Access::READ };
            let expected = paging::walk(&flat, &mode(0x1000), gva, access);
            match (translate(&guest.mem, &ept, &mode(0x1000), gva, access), expected) {
                (Ok(got), Ok(leaf)) => {
                    prop_assert_eq!((got.hpa, got.guest), (OFFSET + leaf.gpa, leaf));
                    prop_assert_eq!(got.page_size, leaf.page_size.min(page_size));
                    prop_assert!(got.ept.dirty || accessed_dirty && !write);
                }
                (Err(WalkError::PageFault(got)), Err(WalkError::PageFault(code))) => {
                    prop_assert_eq!(got, code);
                }
                // Large pages reach beyond the guest's memory.
                (Err(WalkError::Memory(EptFault::Violation { gpa, qualification })), Ok(leaf)) => {
                    prop_assert!(gpa >= 0x20_0000 && gpa == leaf.gpa);
                    let linear = EptQualification::LINEAR_VALID | EptQualification::FINAL;
                    prop_assert!(qualification.contains(linear));
                }
                (got, expected) => prop_assert!(false, "{got:?} instead of {expected:?}"),
            }
        }
        for word in 0..PAGES * 512 {
            prop_assert_eq!(guest.read(word * 8), flat.read(word * 8).unwrap());
        }
    }
}

#[test]
fn a_violation_says_whether_it_hit_a_table_or_the_page() {
    let guest = Guest::new();
    guest.map_one_page();
    let mut builder = guest.ept(false, PageSize::Size1G);
    let ept = EptMode::new(builder.eptp(), 46);
    let write = |expected: Result<u64, (u64, EptQualification)>| {
        let got = translate(&guest.mem, &ept, &mode(0x1000), 0x123, Access::WRITE);
        match (got, expected) {
            (Ok(got), Ok(hpa)) => assert_eq!(got.hpa, hpa),
            (Err(WalkError::Memory(EptFault::Violation { gpa, qualification })), Err(expected)) => {
                assert_eq!((gpa, qualification), expected);
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    };
    // The page is not mapped.
    builder.unmap(0x5000, 0x1000).unwrap();
    let linear = EptQualification::LINEAR_VALID;
    write(Err((0x5123, linear | EptQualification::FINAL | EptQualification::WRITE)));
    // The page is read-only: the permission bits show it.
    let attributes = EptAttributes::new(EptPerms::RX);
    builder.map(0x5000, OFFSET + 0x5000, 0x1000, attributes).unwrap();
    let rx = EptQualification::READABLE | EptQualification::EXECUTABLE;
    write(Err((0x5123, linear | rx | EptQualification::FINAL | EptQualification::WRITE)));
    // A table is read-only: walks that set no flag go through it, others do not.
    builder.map(0x5000, OFFSET + 0x5000, 0x1000, EptAttributes::new(EptPerms::RWX)).unwrap();
    guest.write(0x4000, 0x5007);
    builder.protect(0x4000, 0x1000, EptPerms::RX).unwrap();
    write(Err((0x4000, linear | rx | EptQualification::READ | EptQualification::WRITE)));
    guest.write(0x4000, 0x5067);
    write(Ok(OFFSET + 0x5123));
    // A table is not mapped.
    builder.unmap(0x3000, 0x1000).unwrap();
    write(Err((0x3000, linear | EptQualification::READ)));
}

#[test]
fn with_ept_dirty_flags_table_accesses_count_as_writes() {
    let guest = Guest::new();
    guest.map_one_page();
    let mut builder = guest.ept(true, PageSize::Size4K);
    let ept = EptMode::new(builder.eptp(), 46);
    let got = translate(&guest.mem, &ept, &mode(0x1000), 0, Access::READ).unwrap();
    assert!(!got.dirty(), "neither the guest's nor the EPT's entry of the page");
    let mut dirty = Vec::new();
    builder.take_dirty(0, 0x20_0000, |leaf| dirty.push(leaf.gpa)).unwrap();
    assert_eq!(dirty, [0x1000, 0x2000, 0x3000, 0x4000]);
    // So a read-only table cannot even be read for a walk; but it can by a plain access.
    builder.protect(0x2000, 0x1000, EptPerms::RX).unwrap();
    let fault = translate(&guest.mem, &ept, &mode(0x1000), 0, Access::READ).unwrap_err();
    let expected = EptQualification::READ
        | EptQualification::WRITE
        | EptQualification::READABLE
        | EptQualification::EXECUTABLE
        | EptQualification::LINEAR_VALID;
    assert_eq!(fault, WalkError::Memory(EptFault::Violation { gpa: 0x2000, qualification: expected }));
    assert_eq!(GuestTables::without_linear(&guest.mem, &ept).read(0x2000), Ok(guest.read(0x2000)));
}

#[test]
fn without_a_linear_address_the_qualification_has_none() {
    let guest = Guest::new();
    let ept = EptMode::new(guest.ept(false, PageSize::Size1G).eptp(), 46);
    let tables = GuestTables::without_linear(&guest.mem, &ept);
    let fault = EptFault::Violation { gpa: 0x20_0000, qualification: EptQualification::READ };
    assert_eq!(paging::load_pdptes(&tables, 0x20_0000), Err(fault));
}

#[test]
fn rights_are_those_of_both_levels() {
    let guest = Guest::new();
    guest.map_one_page();
    let mut builder = guest.ept(false, PageSize::Size1G);
    builder.protect(0x5000, 0x1000, EptPerms::READ | EptPerms::USER_EXECUTE).unwrap();
    let mut ept = EptMode::new(builder.eptp(), 46);
    let paging = mode(0x1000);
    let got = translate(&guest.mem, &ept, &paging, 0, Access::READ.as_user()).unwrap();
    let rights = got.rights(&paging, &ept, true, false);
    assert_eq!((rights.read, rights.write, rights.execute), (true, false, false));
    ept.mode_based_execute = true;
    assert!(got.rights(&paging, &ept, true, false).execute, "a user page, executable as such");
    assert!(translate(&guest.mem, &ept, &paging, 0, Access::FETCH.as_user()).is_ok());
    // The guest's own page fault comes first.
    guest.write(0x4000, 0x5003);
    let code = PageFaultCode::PRESENT | PageFaultCode::USER;
    assert_eq!(
        translate(&guest.mem, &ept, &paging, 0, Access::READ.as_user()),
        Err(WalkError::PageFault(code))
    );
}

/// L2 linear → L2 physical → L1 physical → memory: each level is a `TableMemory` over the one below.
#[test]
fn levels_stack() {
    let guest = Guest::new();
    let builder = guest.ept(true, PageSize::Size2M);
    let ept01 = EptMode::new(builder.eptp(), 46);
    let l1 = GuestTables::without_linear(&guest.mem, &ept01);

    // L1 builds an EPT in its own memory: L2's first 32 KiB lie at 0x10_0000.
    struct Pages(std::cell::Cell<u64>);
    impl PageAllocator for Pages {
        fn alloc_page(&self) -> Option<u64> {
            self.0.set(self.0.get() + 0x1000);
            Some(self.0.get())
        }
        fn free_page(&self, _pa: u64) {}
    }
    let mut builder12 = EptBuilder::new(&l1, Pages(0x8_0000.into()), false).unwrap();
    builder12.map(0, 0x10_0000, 0x8000, EptAttributes::new(EptPerms::RWX)).unwrap();
    let ept12 = EptMode::new(builder12.eptp(), 46);

    for level in 1..5 {
        guest.write(0x10_0000 + level * 0x1000, (level + 1) << 12 | 7);
    }
    let got = translate(&l1, &ept12, &mode(0x1000), 0x321, Access::WRITE).unwrap();
    assert_eq!((got.guest.gpa, got.hpa), (0x5321, 0x10_5321), "in L1's memory");
    assert_eq!(guest.read(0x10_4000), 0x5067);
    let below = trapline_memory::ept::walk(&guest.mem, &ept01, got.hpa, EptAccess::WRITE).unwrap();
    assert_eq!(below.hpa, OFFSET + 0x10_5321);

    // L1 took a table of L2's away: its violation. The level below took L1's EPT away: that one's.
    builder12.unmap(0x3000, 0x1000).unwrap();
    let inner = translate(&l1, &ept12, &mode(0x1000), 0, Access::READ).unwrap_err();
    assert!(matches!(inner, WalkError::Memory(EptFault::Violation { gpa: 0x3000, .. })));
    let mut builder = builder;
    builder.unmap(0x8_1000, 0x1000).unwrap();
    let outer = translate(&l1, &ept12, &mode(0x1000), 0, Access::READ).unwrap_err();
    let WalkError::Memory(EptFault::Memory(EptFault::Violation { gpa, .. })) = outer else {
        panic!("{outer:?}");
    };
    assert_eq!(gpa, 0x8_1000);
}
