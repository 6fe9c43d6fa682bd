//! The guest page walker against a model that is written down from the tables of the SDM, slowly.

mod common;

use common::{PAGES, Random, bit, bits, dump, fill};
use proptest::prelude::*;
use trapline_memory::paging::{
    Access, Leaf, PageFaultCode, PagingFlags, PagingKind, PagingMode, WalkError, load_pdptes, walk,
};
use trapline_memory::test::{NoMemory, Tables};
use trapline_memory::{PageSize, TableMemory};

/// What the model says: the leaf, and the flags to be set as (word, bits).
type Modelled = Result<(Leaf, Vec<(u64, u64)>), WalkError<NoMemory>>;

/// One paging-structure entry as the model sees it.
struct Entry {
    value: u64,
    /// Where its flags are: address of the eight bytes and shift in them.
    word: u64,
    shift: u32,
}

fn read_entry(tables: &Tables, narrow: bool, pa: u64) -> Result<Entry, WalkError<NoMemory>> {
    let word = tables.read(pa - pa % 8).map_err(WalkError::Memory)?;
    let shift = (pa % 8) as u32 * 8;
    let value = if narrow { bits(word, shift + 31, shift) } else { word };
    Ok(Entry { value, word: pa - pa % 8, shift })
}

/// The linear-address bits that index each level, from the top.
fn indices(kind: &PagingKind) -> &'static [(u32, u32)] {
    match kind {
        PagingKind::Off => &[],
        PagingKind::Bits32 { .. } => &[(31, 22), (21, 12)],
        PagingKind::Pae { .. } => &[(29, 21), (20, 12)],
        PagingKind::Level4 => &[(47, 39), (38, 30), (29, 21), (20, 12)],
        PagingKind::Level5 => &[(56, 48), (47, 39), (38, 30), (29, 21), (20, 12)],
    }
}

/// Whether a present entry whose index ends at bit `low` has a reserved bit set.
fn has_reserved(mode: &PagingMode, value: u64, low: u32, is_page: bool) -> bool {
    let width = u32::from(mode.phys_bits);
    let flags = mode.flags;
    if let PagingKind::Bits32 { pse36, .. } = mode.kind {
        if low == 22 && is_page {
            let from = if pse36 { 13 + width.min(40) - 32 } else { 13 };
            return bits(value, 21, from) != 0;
        }
        return false;
    }
    let high_end = if matches!(mode.kind, PagingKind::Pae { .. }) { 62 } else { 51 };
    if width <= high_end && bits(value, high_end, width) != 0 {
        return true;
    }
    if bit(value, 63) && !flags.contains(PagingFlags::NXE) {
        return true;
    }
    match low {
        12 => false,
        21 => is_page && bits(value, 20, 13) != 0,
        30 => is_page && (!flags.contains(PagingFlags::PAGE_1G) || bits(value, 29, 13) != 0),
        _ => is_page,
    }
}

fn model(tables: &Tables, mode: &PagingMode, gva: u64, access: Access) -> Modelled {
    let narrow = matches!(mode.kind, PagingKind::Bits32 { .. });
    let entry_size = if narrow { 4 } else { 8 };
    let user_access = access.user && !access.implicit;
    let mut code = 0;
    code |= if access.write { 2 } else { 0 };
    code |= if user_access { 4 } else { 0 };
    let fetch_shows =
        mode.flags.contains(PagingFlags::SMEP) || !narrow && mode.flags.contains(PagingFlags::NXE);
    code |= if access.fetch && fetch_shows { 16 } else { 0 };
    let fault = |code: u32| Err(WalkError::PageFault(PageFaultCode::from_bits(code).unwrap()));

    let mut table = match mode.kind {
        PagingKind::Bits32 { .. } => bits(mode.cr3, 31, 12) << 12,
        PagingKind::Pae { pdptes } => {
            let pdpte = pdptes[bits(gva, 31, 30) as usize];
            if !bit(pdpte, 0) {
                return fault(code);
            }
            bits(pdpte, u32::from(mode.phys_bits) - 1, 12) << 12
        }
        _ => bits(mode.cr3, u32::from(mode.phys_bits) - 1, 12) << 12,
    };
    let mut path: Vec<Entry> = Vec::new();
    let mut page_low = 0;
    for &(high, low) in indices(&mode.kind) {
        let entry = read_entry(tables, narrow, table + bits(gva, high, low) * entry_size)?;
        if !bit(entry.value, 0) {
            return fault(code);
        }
        let large_on = !matches!(mode.kind, PagingKind::Bits32 { pse: false, .. });
        let is_page = low == 12 || bit(entry.value, 7) && large_on;
        if has_reserved(mode, entry.value, low, is_page && low != 12) {
            return fault(code | 8 | 1);
        }
        table = bits(entry.value, if narrow { 31 } else { 51 }, 12) << 12;
        path.push(entry);
        if is_page {
            page_low = low;
            break;
        }
    }
    let last = path.last().unwrap();
    let base = if narrow && page_low == 22 {
        let high = if matches!(mode.kind, PagingKind::Bits32 { pse36: true, .. }) {
            bits(last.value, 20, 13)
        } else {
            0
        };
        high << 32 | bits(last.value, 31, 22) << 22
    } else {
        bits(last.value, if narrow { 31 } else { 51 }, page_low) << page_low
    };
    let long = matches!(mode.kind, PagingKind::Level4 | PagingKind::Level5);
    let leaf = Leaf {
        gpa: base + bits(gva, page_low - 1, 0),
        page_size: match page_low {
            12 => PageSize::Size4K,
            21 => PageSize::Size2M,
            22 => PageSize::Size4M,
            _ => PageSize::Size1G,
        },
        writable: path.iter().all(|entry| bit(entry.value, 1)),
        user: path.iter().all(|entry| bit(entry.value, 2)),
        executable: narrow || !path.iter().any(|entry| bit(entry.value, 63)),
        global: bit(last.value, 8),
        dirty: bit(last.value, 6) || access.write,
        pkey: if long { bits(last.value, 62, 59) as u8 } else { 0 },
    };
    let (allowed, key_denies) = model_rights(mode, &leaf, access, user_access);
    if !allowed || key_denies {
        return fault(code | 1 | if key_denies { 32 } else { 0 });
    }
    let mut set = Vec::new();
    for entry in &path {
        set.push((entry.word, 1 << 5 << entry.shift));
    }
    if access.write {
        set.push((last.word, 1 << 6 << last.shift));
    }
    Ok((leaf, set))
}

/// "Determination of Access Rights" and "Protection Keys": rights by U/S, R/W, XD; denial by key.
fn model_rights(mode: &PagingMode, leaf: &Leaf, access: Access, user_access: bool) -> (bool, bool) {
    let on = |flag| mode.flags.contains(flag);
    let allowed = match (user_access, leaf.user, access.fetch, access.write) {
        (true, false, _, _) => false,
        (true, true, true, _) => leaf.executable,
        (true, true, false, true) => leaf.writable,
        (true, true, false, false) => true,
        (false, true, true, _) => leaf.executable && !on(PagingFlags::SMEP),
        (false, false, true, _) => leaf.executable,
        (false, true, false, write) => {
            let smap_allows = !on(PagingFlags::SMAP) || access.ac && !access.implicit;
            smap_allows && (!write || leaf.writable || !on(PagingFlags::WRITE_PROTECT))
        }
        (false, false, false, write) => !write || leaf.writable || !on(PagingFlags::WRITE_PROTECT),
    };
    let long = matches!(mode.kind, PagingKind::Level4 | PagingKind::Level5);
    let (keys_on, register) =
        if leaf.user { (PagingFlags::PKE, mode.pkru) } else { (PagingFlags::PKS, mode.pkrs) };
    let access_disable = bit(register.into(), u32::from(leaf.pkey) * 2);
    let write_disable = bit(register.into(), u32::from(leaf.pkey) * 2 + 1);
    let write_obeys = user_access || on(PagingFlags::WRITE_PROTECT);
    let denies = access_disable || write_disable && access.write && write_obeys;
    (allowed, long && on(keys_on) && !access.fetch && denies)
}

fn kinds() -> impl Strategy<Value = PagingKind> {
    prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(pse, pse36)| PagingKind::Bits32 { pse, pse36 }),
        proptest::array::uniform4((0..PAGES, 0..8u64)).prop_map(|entries| PagingKind::Pae {
            pdptes: entries.map(|(p, at)| p << 12 | (at != 0) as u64)
        }),
        Just(PagingKind::Level4),
        Just(PagingKind::Level5),
    ]
}

fn modes() -> impl Strategy<Value = PagingMode> {
    let width = prop_oneof![Just(32u8), Just(36), Just(39), Just(46), Just(52)];
    (kinds(), 0..PAGES, 0..0x80u16, width, any::<u32>(), any::<u32>()).prop_map(
        |(kind, page, flags, phys_bits, pkru, pkrs)| PagingMode {
            kind,
            cr3: page << 12 | 0x18,
            flags: PagingFlags::from_bits_truncate(flags),
            phys_bits,
            pkru,
            pkrs: pkrs & pkru,
        },
    )
}

fn accesses() -> impl Strategy<Value = Access> {
    (0..3u8, any::<bool>(), 0..4u8, any::<bool>()).prop_map(|(what, user, implicit, ac)| Access {
        write: what == 1,
        fetch: what == 2,
        user,
        implicit: implicit == 0 && what != 2,
        ac,
    })
}

/// An entry of eight bytes that mostly lets a walk go on.
fn wide_entry(random: &mut Random, pae: bool) -> u64 {
    let mut entry = random.mostly(1, 32) | random.mostly(2, 6) | random.mostly(4, 4);
    entry |= random.mostly(0x20, 3) | random.rarely(0x40, 2) | random.rarely(0x100, 3);
    // With PAE paging, the bits of the protection key are reserved.
    entry |= if pae { 0 } else { random.next() & 0x7800_0000_0000_0000 } | random.rarely(1 << 63, 24);
    let high_bit = 1 << (32 + random.next() % 31);
    entry |= random.rarely(high_bit, 40);
    if random.one_in(6) {
        // A large page: usually aligned.
        let mask = if random.one_in(8) { 0xffff_f000 } else { 0xc000_0000 };
        return entry | 0x80 | random.next() & mask;
    }
    let table = (random.next() % PAGES) << 12;
    entry | random.mostly(table, 64)
}

/// Two entries of four bytes.
fn narrow_entries(random: &mut Random) -> u64 {
    let mut one = || {
        let mut entry = random.mostly(1, 32) | random.mostly(2, 6) | random.mostly(4, 4);
        entry |= random.mostly(0x20, 3) | random.rarely(0x40, 2) | random.rarely(0x100, 3);
        let at = if random.one_in(4) { random.next() & 0xffc0_0000 } else { (random.next() % PAGES) << 12 };
        let address_bit = 1 << (12 + random.next() % 20);
        entry | random.rarely(0x80, 4) | at | random.rarely(address_bit, 12)
    };
    one() | one() << 32
}

fn random_tables(random: &mut Random, mode: &PagingMode) -> Tables {
    match mode.kind {
        PagingKind::Bits32 { .. } => fill(|| narrow_entries(random)),
        PagingKind::Pae { .. } => fill(|| wide_entry(random, true)),
        _ => fill(|| wide_entry(random, false)),
    }
}

proptest! {
    #[test]
    fn random_tables_agree_with_the_model(
        seed in any::<u64>(),
        mode in modes(),
        tries in proptest::collection::vec((any::<u64>(), accesses()), 1..24),
    ) {
        let mut random = Random::new(seed);
        let tables = random_tables(&mut random, &mode);
        for (gva, access) in tries {
            let mut expected = dump(&tables);
            let modelled = model(&tables, &mode, gva, access);
            let walked = walk(&tables, &mode, gva, access);
            match modelled {
                Ok((leaf, set)) => {
                    prop_assert_eq!(walked, Ok(leaf));
                    for (word, bits) in set {
                        expected[(word / 8) as usize] |= bits;
                    }
                }
                Err(error) => prop_assert_eq!(walked, Err(error)),
            }
            prop_assert!(dump(&tables) == expected, "accessed and dirty flags differ");
        }
    }

    #[test]
    fn rights_are_what_walks_allow(seed in any::<u64>(), mode in modes(), gva in any::<u64>(), ac in any::<bool>()) {
        let mut random = Random::new(seed);
        let tables = random_tables(&mut random, &mode);
        for user in [false, true] {
            let read = Access { user, ac, ..Access::READ };
            let Ok(leaf) = walk(&tables, &mode, gva, read) else { continue };
            let rights = leaf.rights(&mode, user, ac);
            prop_assert!(rights.read);
            let write = Access { write: true, ..read };
            prop_assert_eq!(rights.write, walk(&tables, &mode, gva, write).is_ok());
            let fetch = Access { fetch: true, ..read };
            prop_assert_eq!(rights.execute, walk(&tables, &mode, gva, fetch).is_ok());
        }
    }
}

fn long_mode(cr3: u64) -> PagingMode {
    PagingMode {
        kind: PagingKind::Level4,
        cr3,
        flags: PagingFlags::NXE | PagingFlags::WRITE_PROTECT,
        phys_bits: 46,
        ..PagingMode::OFF
    }
}

#[test]
fn paging_off_is_identity_of_32_bits() {
    let tables = Tables::new(1);
    let leaf = walk(&tables, &PagingMode::OFF, 0x1_2345_6789, Access::WRITE.as_user()).unwrap();
    assert_eq!(leaf.gpa, 0x2345_6789);
    assert!(leaf.dirty);
    assert_eq!(leaf.rights(&PagingMode::OFF, true, false), leaf.rights(&PagingMode::OFF, false, false));
}

#[test]
fn a_first_write_sets_dirty_and_a_read_does_not() {
    let tables = Tables::new(8);
    for (level, entry) in [0x2003u64, 0x3003, 0x4003, 0x5003].into_iter().enumerate() {
        tables.write(0x1000 * (level as u64 + 1), entry).unwrap();
    }
    let mode = long_mode(0x1000);
    assert!(!walk(&tables, &mode, 0x123, Access::READ).unwrap().dirty);
    assert_eq!(tables.read(0x4000), Ok(0x5023));
    assert!(walk(&tables, &mode, 0x123, Access::WRITE).unwrap().dirty);
    assert_eq!(tables.read(0x4000), Ok(0x5063));
    assert_eq!(tables.read(0x1000), Ok(0x2023));
}

#[test]
fn a_table_that_maps_itself_is_walked_to_the_end() {
    for kind in [PagingKind::Level4, PagingKind::Level5] {
        let tables = Tables::new(2);
        tables.write(0x1000 + 511 * 8, 0x1003).unwrap();
        let mode = PagingMode { kind, ..long_mode(0x1000) };
        let leaf = walk(&tables, &mode, u64::MAX, Access::WRITE).unwrap();
        assert_eq!((leaf.gpa, leaf.dirty), (0x1fff, true));
        assert_eq!(tables.read(0x1ff8), Ok(0x1063));
    }
    // 32-bit: directory entry 1023 is also page-table entry 1023.
    let tables = Tables::new(2);
    tables.write(0x1ff8, 0x1003 << 32).unwrap();
    let mode = PagingMode { kind: PagingKind::Bits32 { pse: false, pse36: false }, ..long_mode(0x1000) };
    assert_eq!(walk(&tables, &mode, 0xffff_f010, Access::WRITE).unwrap().gpa, 0x1010);
    assert_eq!(tables.read(0x1ff8), Ok(0x1063 << 32));
}

#[test]
fn all_ones_fault_with_reserved_bits() {
    let tables = fill(|| u64::MAX);
    let reserved = PageFaultCode::PRESENT | PageFaultCode::RESERVED;
    for kind in [PagingKind::Bits32 { pse: true, pse36: false }, PagingKind::Level4, PagingKind::Level5] {
        let mode = PagingMode { kind, ..long_mode(0x1000) };
        assert_eq!(walk(&tables, &mode, 0, Access::READ), Err(WalkError::PageFault(reserved)));
    }
    let pae = PagingKind::Pae { pdptes: [u64::MAX; 4] };
    let mode = PagingMode { kind: pae, ..long_mode(u64::MAX) };
    // The table lies at the top of physical memory, where there is none.
    assert!(matches!(walk(&tables, &mode, 0, Access::READ), Err(WalkError::Memory(_))));
}

/// Memory that another processor changes before every update.
struct Contended(Tables);

impl TableMemory for Contended {
    type Error = NoMemory;
    fn read(&self, pa: u64) -> Result<u64, NoMemory> {
        self.0.read(pa)
    }
    fn write(&self, pa: u64, value: u64) -> Result<(), NoMemory> {
        self.0.write(pa, value)
    }
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, NoMemory> {
        // Bit 9 is the guest's own to use.
        self.0.write(pa, self.0.read(pa)? ^ 0x200)?;
        self.0.compare_exchange(pa, current, new)
    }
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, NoMemory> {
        self.0.fetch_or(pa, bits)
    }
}

#[test]
fn a_contended_entry_does_not_hold_the_walk_up() {
    let tables = Tables::new(8);
    for (level, entry) in [0x2003u64, 0x3003, 0x4003, 0x5003].into_iter().enumerate() {
        tables.write(0x1000 * (level as u64 + 1), entry).unwrap();
    }
    let contended = Contended(tables);
    assert_eq!(walk(&contended, &long_mode(0x1000), 0xabc, Access::WRITE).unwrap().gpa, 0x5abc);
    assert_eq!(contended.read(0x4000).map(|entry| entry & 0x60), Ok(0x60));
}

#[test]
fn pdptes_are_loaded_from_cr3_and_checked() {
    let tables = Tables::new(2);
    for index in 0..4 {
        tables.write(0x1020 + index * 8, (0x1000 * index) | 1).unwrap();
    }
    assert_eq!(load_pdptes(&tables, 0x1020 | 0x18), Ok([1, 0x1001, 0x2001, 0x3001]));
    assert_eq!(load_pdptes(&tables, 0x8000_0000), Err(NoMemory(0x8000_0000)));
    assert!(PagingMode::pdpte_valid(0x1019, 36));
    assert!(PagingMode::pdpte_valid(!1, 36), "only a present one is looked at");
    for reserved in [1 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 36, 1 << 63] {
        assert!(!PagingMode::pdpte_valid(0x1001 | reserved, 36), "{reserved:#x}");
    }
}
