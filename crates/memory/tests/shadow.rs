//! Shadow paging: a processor that runs on the shadow tables sees what the guest's tables say.

mod common;

use common::Random;
use proptest::prelude::*;
use std::convert::Infallible;
use trapline_memory::paging::{
    self, Access, PageFaultCode, PagingFlags, PagingKind, PagingMode, WalkError, load_pdptes,
};
use trapline_memory::shadow::{NoShadowPage, Shadow, ShadowAction};
use trapline_memory::{Arena, GuestRam, RamConfig, RootPages, TableMemory};

const MIB: u64 = 1 << 20;
const SUPERVISOR_WRITE: Access = Access::WRITE;

/// A guest of 2 MiB and a processor that has no EPT. Guest-physical is host-physical.
struct Machine {
    ram: GuestRam,
    shadow: Shadow<std::sync::Arc<RootPages>>,
    mode: PagingMode,
}

impl Machine {
    fn new(kind: PagingKind, max_pages: usize) -> Self {
        let ram = GuestRam::new(&RamConfig { root_area: MIB, ..RamConfig::new(2 * MIB) }).unwrap();
        let shadow = Shadow::new(ram.arena().clone(), ram.root_pages().clone(), max_pages);
        let flags = PagingFlags::WRITE_PROTECT | PagingFlags::PAGE_1G;
        let mode = PagingMode { kind, cr3: 0x1000, flags, phys_bits: 46, ..PagingMode::OFF };
        Self { ram, shadow, mode }
    }

    fn narrow(&self) -> bool {
        matches!(self.mode.kind, PagingKind::Bits32 { .. })
    }

    /// How the processor walks the shadow tables.
    fn hardware(&mut self) -> PagingMode {
        let cr3 = self.shadow.cr3(&self.mode).unwrap();
        let kind = match self.mode.kind {
            PagingKind::Level4 | PagingKind::Level5 => self.mode.kind,
            _ => PagingKind::Pae { pdptes: load_pdptes(&**self.ram.arena(), cr3).unwrap() },
        };
        let flags = self.mode.flags | PagingFlags::WRITE_PROTECT | PagingFlags::NXE;
        PagingMode { kind, cr3, flags, phys_bits: 52, ..self.mode }
    }

    /// What becomes of an access: a host-physical address, or what the engine must do.
    fn access(&mut self, gva: u64, access: Access) -> Result<u64, ShadowAction> {
        for _ in 0..4 {
            let hardware = self.hardware();
            if let PagingKind::Pae { pdptes } = hardware.kind {
                assert!(pdptes.iter().all(|&pdpte| PagingMode::pdpte_valid(pdpte, 52)));
            }
            match paging::walk(&**self.ram.arena(), &hardware, gva, access) {
                Ok(leaf) => return Ok(leaf.gpa),
                Err(WalkError::Memory(error)) => panic!("the shadow points to nowhere: {error}"),
                Err(WalkError::PageFault(_)) => {}
            }
            match self.shadow.handle_page_fault(&self.ram, &self.mode, gva, access).unwrap() {
                ShadowAction::Retry => {}
                action => return Err(action),
            }
        }
        panic!("the access to {gva:#x} does not get on");
    }

    /// What the guest's own tables say.
    fn expected(&self, gva: u64, access: Access) -> Result<u64, ShadowAction> {
        match paging::walk(&Ram(self.ram.arena()), &self.mode, gva, access) {
            Ok(leaf) if leaf.gpa >= 2 * MIB => Err(ShadowAction::Mmio(leaf.gpa)),
            Ok(leaf) => {
                let wp = self.mode.flags.contains(PagingFlags::WRITE_PROTECT);
                if access.write && !leaf.writable && !wp && leaf.user {
                    return Err(ShadowAction::EmulateWrite(leaf.gpa));
                }
                Ok(leaf.gpa)
            }
            Err(WalkError::PageFault(code)) => Err(ShadowAction::InjectPageFault(code)),
            Err(WalkError::Memory(never)) => match never {},
        }
    }

    /// Writes an entry with no processor: before the guest runs.
    fn poke(&self, table: u64, index: u64, entry: u64) {
        let size = if self.narrow() { 4 } else { 8 };
        let bytes = entry.to_le_bytes();
        self.ram.arena().write_bytes(table + index * size, &bytes[..size as usize]).unwrap();
    }

    /// Two address spaces, tops at 0x1000 and 0x2000, with guest-physical memory at linear 0.
    fn map_window(&self) {
        let entries = if self.narrow() { 1024 } else { 512 };
        for index in 0..entries.min(2 * MIB / 4096) {
            self.poke(0x5000, index, index << 12 | 3);
        }
        for top in [0x1000, 0x2000] {
            self.poke(top, 0, if self.narrow() { 0x5003 } else { 0x3003 });
        }
        if !self.narrow() {
            self.poke(0x3000, 0, 0x4003);
            self.poke(0x4000, 0, 0x5003);
        }
    }
}

/// Guest-physical memory. Outside of RAM, reads give all ones and writes are lost.
struct Ram<'a>(&'a Arena);

impl TableMemory for Ram<'_> {
    type Error = Infallible;
    fn read(&self, pa: u64) -> Result<u64, Infallible> {
        Ok(if pa < 2 * MIB { self.0.read_u64(pa).unwrap() } else { u64::MAX })
    }
    fn write(&self, _pa: u64, _value: u64) -> Result<(), Infallible> {
        unreachable!("walkers make no plain writes")
    }
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Infallible> {
        let in_ram = pa < 2 * MIB;
        Ok(if in_ram { self.0.compare_exchange_u64(pa, current, new).unwrap() } else { Ok(current) })
    }
    fn fetch_or(&self, _pa: u64, _bits: u64) -> Result<u64, Infallible> {
        unreachable!("nobody contends")
    }
}

/// What the guest does.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Changes an entry of a table, through the window.
    Change { table: u64, index: u64, seed: u64 },
    /// Loads CR3 with one of two tops.
    LoadCr3(bool),
    /// Accesses an address, after INVLPG or not.
    Access { indices: [u64; 4], invlpg: bool, access: Access },
    /// A device writes into a page.
    DeviceWrite { table: u64 },
}

fn ops() -> impl Strategy<Value = Op> {
    // Pages 16 to 23 are tables, at every level.
    let table =
        prop_oneof![3 => (16..24u64).prop_map(|page| page << 12), 1 => Just(0x1000), 1 => Just(0x2000)];
    let access = (0..3u8, any::<bool>()).prop_map(|(what, user)| Access {
        write: what == 1,
        fetch: what == 2,
        user,
        ..Access::READ
    });
    prop_oneof![
        6 => (table, 1..4u64, any::<u64>()).prop_map(|(table, index, seed)| Op::Change { table, index, seed }),
        1 => any::<bool>().prop_map(Op::LoadCr3),
        8 => ([1..4u64, 1..4, 1..4, 1..4], any::<bool>(), access)
            .prop_map(|(indices, invlpg, access)| Op::Access { indices, invlpg, access }),
        1 => (16..24u64).prop_map(|page| Op::DeviceWrite { table: page << 12 }),
    ]
}

/// An entry to a table, a page of data, a page beyond RAM, or a large page.
fn entry(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let flags = random.mostly(1, 12) | random.mostly(2, 4) | random.mostly(4, 3) | random.rarely(0x60, 3);
    match random.next() % 16 {
        0 => flags | 0x80,
        1 => flags | 2 << 20,
        2..5 => flags | (32 + random.next() % 8) << 12,
        _ => flags | (16 + random.next() % 8) << 12,
    }
}

fn run(kind: PagingKind, max_pages: usize, write_protect: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(kind, max_pages);
    machine.mode.flags.set(PagingFlags::WRITE_PROTECT, write_protect);
    machine.map_window();
    let narrow = machine.narrow();
    machine.shadow.set_cr3(&machine.mode).unwrap();
    let mut stale = false;
    for &op in ops {
        match op {
            Op::Change { table, index, seed } => {
                // The processor's write to the table, at its address in the window.
                let hpa = machine.access(table, SUPERVISOR_WRITE).unwrap();
                prop_assert_eq!(hpa, table);
                machine.poke(table, index, entry(seed));
                stale = true;
            }
            Op::LoadCr3(second) => {
                machine.mode.cr3 = if second { 0x2000 } else { 0x1000 };
                machine.shadow.set_cr3(&machine.mode).unwrap();
                prop_assert!(machine.shadow.take_flush());
                stale = false;
            }
            Op::DeviceWrite { table } => {
                machine.poke(table, 1, entry(table));
                machine.shadow.note_write(table + 8);
                stale = true;
            }
            Op::Access { indices: [a, b, c, d], invlpg, access } => {
                let gva = match narrow {
                    true => a << 22 | b << 12 | 0x123,
                    false => a << 39 | b << 30 | c << 21 | d << 12 | 0x123,
                };
                if invlpg {
                    machine.shadow.invlpg(&machine.mode, gva);
                }
                let got = machine.access(gva, access);
                // Without INVLPG, a translation may be as old as the last CR3 load.
                if invlpg || !stale {
                    prop_assert_eq!(got, machine.expected(gva, access), "at {:#x}", gva);
                }
            }
        }
    }
    drop(machine.shadow);
    let left = std::iter::from_fn(|| machine.ram.root_pages().alloc_page()).count();
    prop_assert_eq!(left, 256, "all pages are given back");
    Ok(())
}

proptest! {
    #[test]
    fn four_levels_stay_in_sync(
        ops in proptest::collection::vec(ops(), 1..120),
        few_pages in any::<bool>(),
        write_protect in any::<bool>(),
    ) {
        run(PagingKind::Level4, if few_pages { 9 } else { 200 }, write_protect, &ops)?;
    }

    #[test]
    fn two_levels_stay_in_sync(
        ops in proptest::collection::vec(ops(), 1..120),
        few_pages in any::<bool>(),
        write_protect in any::<bool>(),
        pse in any::<bool>(),
    ) {
        let kind = PagingKind::Bits32 { pse, pse36: false };
        run(kind, if few_pages { 9 } else { 200 }, write_protect, &ops)?;
    }
}

#[test]
fn a_page_that_becomes_a_table_is_write_protected() {
    let mut machine = Machine::new(PagingKind::Level4, 64);
    machine.map_window();
    // The guest fills a table while it is plain memory, then uses it.
    assert_eq!(machine.access(0x1_0000, Access::WRITE), Ok(0x1_0000));
    machine.poke(0x1_0000, 0, 0x2_0003);
    machine.access(0x4008, Access::WRITE).unwrap();
    machine.poke(0x4000, 1, 0x1_0003);
    assert_eq!(machine.access(0x20_0000, Access::READ), Ok(0x2_0000));
    let denied = WalkError::PageFault(PageFaultCode::PRESENT | PageFaultCode::WRITE);
    for invlpg in [false, true] {
        // Also when it is mapped again, for a read, with the guest's dirty flag set.
        if invlpg {
            machine.shadow.invlpg(&machine.mode, 0x1_0000);
            assert_eq!(machine.access(0x1_0000, Access::READ), Ok(0x1_0000));
        }
        let hardware = machine.hardware();
        let write = paging::walk(&**machine.ram.arena(), &hardware, 0x1_0000, Access::WRITE);
        assert_eq!(write.unwrap_err(), denied);
    }
    // In another address space, long after, the change is seen.
    machine.mode.cr3 = 0x2000;
    machine.shadow.set_cr3(&machine.mode).unwrap();
    machine.access(0x1_0000, Access::WRITE).unwrap();
    machine.poke(0x1_0000, 0, 0x3_0003);
    machine.mode.cr3 = 0x1000;
    machine.shadow.set_cr3(&machine.mode).unwrap();
    assert_eq!(machine.access(0x20_0000, Access::READ), Ok(0x3_0000));
}

#[test]
fn paging_off_and_on() {
    let mut machine = Machine::new(PagingKind::Level4, 64);
    machine.map_window();
    machine.poke(0x4000, 1, 0x83);
    let on = machine.mode;
    machine.mode = PagingMode::OFF;
    machine.shadow.set_cr3(&PagingMode::OFF).unwrap();
    assert_eq!(machine.access(0x1f_fff8, Access::WRITE.as_user()), Ok(0x1f_fff8));
    assert_eq!(machine.access(0xfee0_0020, Access::READ), Err(ShadowAction::Mmio(0xfee0_0020)));
    machine.mode = on;
    machine.shadow.set_cr3(&on).unwrap();
    assert_eq!(machine.access(0x20_1234, Access::READ), Ok(0x1234));
    let code = PageFaultCode::WRITE;
    assert_eq!(machine.access(0x40_0000, Access::WRITE), Err(ShadowAction::InjectPageFault(code)));
}

#[test]
fn pae_and_five_levels() {
    let mut machine = Machine::new(PagingKind::Pae { pdptes: [0, 0, 0, 0x1_0001] }, 64);
    machine.poke(0x1_0000, 511, 0x1_1003);
    machine.poke(0x1_1000, 511, 0x2_0003);
    assert_eq!(machine.access(0xffff_ffff, Access::WRITE), Ok(0x2_0fff));
    assert!(matches!(machine.access(0, Access::READ), Err(ShadowAction::InjectPageFault(_))));

    let mut machine = Machine::new(PagingKind::Level5, 64);
    for level in 1..6 {
        machine.poke(0x1_0000 + level * 0x1000, 256, (0x11 + level) << 12 | 3);
    }
    machine.mode.cr3 = 0x1_1000;
    let gva = [48, 39, 30, 21, 12].iter().fold(0xfe00_0000_0000_0000, |gva, shift| gva | 256 << shift);
    assert_eq!(machine.access(gva | 5, Access::WRITE), Ok(0x1_6005));
}

#[test]
fn a_large_page_is_invalidated_as_a_whole() {
    let kind = PagingKind::Bits32 { pse: true, pse36: false };
    let mut machine = Machine::new(kind, 64);
    machine.map_window();
    machine.poke(0x1000, 4, 0x83);
    assert_eq!(machine.access(0x100_0000, Access::READ), Ok(0));
    machine.access(0x1000, Access::WRITE).unwrap();
    machine.poke(0x1000, 4, 0);
    // The other half of the page, never touched before.
    machine.shadow.invlpg(&machine.mode, 0x120_0000);
    assert!(matches!(machine.access(0x100_0000, Access::READ), Err(ShadowAction::InjectPageFault(_))));
}

#[test]
fn roms_are_not_written_and_writes_are_recorded() {
    let mut machine = Machine::new(PagingKind::Level4, 64);
    machine.map_window();
    machine.ram.set_read_only(0x10_0000, 0x1000, true).unwrap();
    machine.ram.dirty().set_enabled(true);
    assert_eq!(machine.access(0x10_0010, Access::WRITE), Err(ShadowAction::Mmio(0x10_0010)));
    assert_eq!(machine.access(0x10_0010, Access::READ), Ok(0x10_0010));
    assert_eq!(machine.access(0x10_1010, Access::READ), Ok(0x10_1010));
    assert!(!machine.ram.dirty().is_dirty(0x10_1000));
    assert_eq!(machine.access(0x10_1010, Access::WRITE), Ok(0x10_1010));
    assert!(machine.ram.dirty().is_dirty(0x10_1000));
    assert!(machine.ram.dirty().is_dirty(0x5000), "the guest's dirty flag is in its table");
}

#[test]
fn too_few_pages_is_an_error_and_not_a_loop() {
    let mut machine = Machine::new(PagingKind::Level4, 3);
    machine.map_window();
    let fault = machine.shadow.handle_page_fault(&machine.ram, &machine.mode, 0, Access::READ);
    assert_eq!(fault, Err(NoShadowPage));
    let mut none = Machine::new(PagingKind::Level4, 0);
    assert_eq!(none.shadow.set_cr3(&none.mode), Err(NoShadowPage));
}
