//! A guest with processors that have no EPT but a TLB that forgets nothing by itself. Used by the tests and by
//! the fuzz target.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use trapline_memory::paging::{
    self, Access, Leaf, PagingFlags, PagingKind, PagingMode, WalkError, load_pdptes,
};
use trapline_memory::shadow::{Forget, Run, Seat, Shadow, ShadowAction};
use trapline_memory::{Arena, GuestRam, RamConfig, RootPages, TableMemory};

const MIB: u64 = 1 << 20;
/// RAM. Guest-physical is host-physical.
pub const RAM: u64 = 2 * MIB;
/// Pages of the root area.
pub const ROOT_PAGES: usize = 256;
/// Tables that operations change: pages 16 to 23, used at every level.
pub const TABLES: u64 = 0x1_0000;
/// Two address spaces.
pub const TOPS: [u64; 2] = [0x1000, 0x2000];

/// A processor, with what it has cached.
pub struct Processor {
    seat: Seat,
    pub mode: PagingMode,
    tlb: HashMap<(usize, u64), Leaf>,
    /// What it runs on while it is in the guest.
    inside: Option<Run>,
    /// The tables have changed since it was last made to forget translations.
    stale: bool,
}

pub struct Machine {
    pub ram: GuestRam,
    pub shadow: Shadow<Arc<RootPages>>,
    pub processors: Vec<Processor>,
}

/// What the guest does.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Changes an entry of a table, through the window.
    Change { table: u64, index: u64, entry: u64 },
    /// Loads CR3 with one of two tops.
    LoadCr3(bool),
    /// Accesses an address, after INVLPG or not.
    Access { gva: u64, invlpg: bool, access: Access },
    /// A device writes an entry of a table.
    DeviceWrite { table: u64, index: u64, entry: u64 },
    /// Exits, for no reason that concerns the tables.
    Exit,
}

impl Machine {
    pub fn new(kind: PagingKind, processors: usize, max_pages: usize) -> Self {
        let ram = GuestRam::new(&RamConfig {
            root_area: ROOT_PAGES as u64 * 4096,
            device_area: MIB,
            ..RamConfig::new(RAM)
        })
        .unwrap();
        let mut shadow = Shadow::new(ram.arena().clone(), ram.root_pages().clone(), max_pages);
        let flags = PagingFlags::WRITE_PROTECT | PagingFlags::NXE | PagingFlags::PAGE_1G;
        let mode = PagingMode { kind, cr3: TOPS[0], flags, phys_bits: 46, ..PagingMode::OFF };
        let processors = (0..processors).map(|_| Processor {
            seat: shadow.join(),
            mode,
            tlb: HashMap::new(),
            inside: None,
            stale: false,
        });
        let processors = processors.collect();
        Self { ram, shadow, processors }
    }

    /// Whether entries have four bytes.
    pub fn narrow(&self) -> bool {
        matches!(self.processors[0].mode.kind, PagingKind::Bits32 { .. })
    }

    /// The processor enters the guest, unless it is there.
    fn enter(&mut self, n: usize) -> Run {
        let processor = &mut self.processors[n];
        if let Some(run) = processor.inside {
            return run;
        }
        let again = processor.seat.enter_again();
        let entered = match again {
            Some(run) => Ok(run),
            None => self.shadow.enter(&self.ram, &mut processor.seat, &processor.mode),
        };
        let run = entered.unwrap_or_else(|_| {
            self.start_over();
            let processor = &mut self.processors[n];
            self.shadow.enter(&self.ram, &mut processor.seat, &processor.mode).unwrap()
        });
        let processor = &mut self.processors[n];
        if run.forget {
            processor.tlb.retain(|(space, _), _| *space != run.space);
        }
        processor.inside = Some(run);
        run
    }

    fn leave(&mut self, n: usize) {
        self.processors[n].inside = None;
        self.processors[n].seat.leave();
    }

    /// Everybody leaves, and all tables are dropped.
    fn start_over(&mut self) {
        (0..self.processors.len()).for_each(|n| self.leave(n));
        self.shadow.flush_all();
    }

    /// How a processor walks the shadow tables.
    pub fn hardware(&mut self, n: usize) -> PagingMode {
        let run = self.enter(n);
        let mode = self.processors[n].mode;
        let kind = match mode.kind {
            PagingKind::Level4 | PagingKind::Level5 => mode.kind,
            _ => PagingKind::Pae { pdptes: load_pdptes(&**self.ram.arena(), run.cr3).unwrap() },
        };
        if let PagingKind::Pae { pdptes } = kind {
            assert!(pdptes.iter().all(|&pdpte| PagingMode::pdpte_valid(pdpte, 46)));
        }
        let mut flags = mode.flags | PagingFlags::WRITE_PROTECT;
        if matches!(mode.kind, PagingKind::Off) {
            flags = PagingFlags::WRITE_PROTECT;
        }
        PagingMode { kind, cr3: run.cr3, flags, phys_bits: 46, ..mode }
    }

    /// What becomes of an access: a host-physical address, or what the engine must do.
    pub fn access(&mut self, n: usize, gva: u64, access: Access) -> Result<u64, ShadowAction> {
        let page = gva & !0xfff;
        let mut starts = 0;
        for _ in 0..8 {
            let hardware = self.hardware(n);
            let run = self.enter(n);
            let tlb = &mut self.processors[n].tlb;
            if let Some(leaf) = tlb.get(&(run.space, page))
                && leaf.permits(&hardware, access).is_ok()
            {
                return Ok(leaf.gpa | gva & 0xfff);
            }
            match paging::walk(&**self.ram.arena(), &hardware, gva, access) {
                Ok(leaf) => {
                    tlb.insert((run.space, page), Leaf { gpa: leaf.gpa & !0xfff, ..leaf });
                    return Ok(leaf.gpa);
                }
                Err(WalkError::Memory(error)) => panic!("the shadow points to nowhere: {error}"),
                Err(WalkError::PageFault(_)) => {}
            }
            self.leave(n);
            let mode = self.processors[n].mode;
            match self.shadow.handle_page_fault(&self.ram, &mode, gva, access) {
                Ok(ShadowAction::Retry) => {}
                Ok(action) => return Err(action),
                Err(_) => {
                    starts += 1;
                    assert!(starts < 3, "too few pages for one translation");
                    self.start_over();
                }
            }
        }
        panic!("the access to {gva:#x} does not get on");
    }

    /// What the guest's own tables say.
    pub fn expected(&self, n: usize, gva: u64, access: Access) -> Result<u64, ShadowAction> {
        let mode = &self.processors[n].mode;
        match paging::walk(&Ram(self.ram.arena()), mode, gva, access) {
            Ok(leaf) if leaf.gpa >= RAM => Err(ShadowAction::Mmio(leaf.gpa)),
            Ok(leaf) => {
                let wp = mode.flags.contains(PagingFlags::WRITE_PROTECT);
                let strict = PagingMode { flags: mode.flags | PagingFlags::WRITE_PROTECT, ..*mode };
                let key = Leaf { writable: true, ..leaf }.permits(&strict, access).is_err();
                if access.write && !wp && (!leaf.writable && leaf.user || key) {
                    return Err(ShadowAction::EmulateWrite(leaf.gpa));
                }
                Ok(leaf.gpa)
            }
            Err(WalkError::PageFault(code)) => Err(ShadowAction::InjectPageFault(code)),
            Err(WalkError::Memory(never)) => match never {},
        }
    }

    pub fn load_cr3(&mut self, n: usize, cr3: u64) {
        self.leave(n);
        let processor = &mut self.processors[n];
        if let PagingKind::Pae { .. } = processor.mode.kind {
            let pdptes = load_pdptes(&Ram(self.ram.arena()), cr3).unwrap_or_else(|never| match never {});
            if !pdptes.iter().all(|&pdpte| PagingMode::pdpte_valid(pdpte, 46)) {
                return;
            }
            processor.mode.kind = PagingKind::Pae { pdptes };
        }
        processor.mode.cr3 = cr3;
        processor.stale = false;
        self.shadow.flush(&self.ram, &mut processor.seat);
    }

    pub fn invlpg(&mut self, n: usize, gva: u64) {
        self.leave(n);
        let processor = &mut self.processors[n];
        let run = processor.seat.enter_again();
        processor.seat.leave();
        match self.shadow.invlpg(&self.ram, &mut processor.seat, &processor.mode, gva) {
            Forget::Nothing => {}
            // Of the page, other address spaces forget as well.
            Forget::Page => processor.tlb.retain(|(_, page), _| *page != gva & !0xfff),
            Forget::Space => {
                let space = run.map(|run| run.space);
                processor.tlb.retain(|(other, _), _| space.is_some_and(|space| space != *other));
            }
        }
    }

    /// Writes an entry with no processor: before the guest runs.
    pub fn poke(&self, table: u64, index: u64, entry: u64) {
        let size = if self.narrow() { 4 } else { 8 };
        let bytes = entry.to_le_bytes();
        self.ram.arena().write_bytes(table + index * size, &bytes[..size as usize]).unwrap();
    }

    /// Both tops lead to guest-physical memory at linear 0.
    pub fn map_window(&self) {
        let entries = if self.narrow() { 1024 } else { 512 };
        for index in 0..entries.min(RAM / 4096) {
            self.poke(0x5000, index, index << 12 | 3);
        }
        let kind = self.processors[0].mode.kind;
        for top in TOPS {
            let first = match kind {
                PagingKind::Bits32 { .. } => 0x5003,
                PagingKind::Pae { .. } => 0x4001,
                PagingKind::Level5 => 0x6003,
                _ => 0x3003,
            };
            self.poke(top, 0, first);
        }
        if let PagingKind::Level5 = kind {
            self.poke(0x6000, 0, 0x3003);
        }
        if !self.narrow() {
            self.poke(0x3000, 0, 0x4003);
            self.poke(0x4000, 0, 0x5003);
        }
    }

    /// Begins to use the window.
    pub fn start(&mut self) {
        self.map_window();
        (0..self.processors.len()).for_each(|n| self.load_cr3(n, TOPS[0]));
    }

    /// One processor does something. Fails if what it sees is not what the guest's tables say.
    pub fn perform(&mut self, n: usize, op: Op) {
        let n = n % self.processors.len();
        let touch = |machine: &mut Self| machine.processors.iter_mut().for_each(|p| p.stale = true);
        match op {
            Op::Change { table, index, entry } => {
                // The window itself is never changed.
                let hpa = self.access(n, table, Access { ac: true, ..Access::WRITE });
                assert_eq!(hpa, Ok(table));
                self.poke(table, index, entry);
                touch(self);
            }
            Op::DeviceWrite { table, index, entry } => {
                self.poke(table, index, entry);
                self.shadow.watch().wrote(table + index * if self.narrow() { 4 } else { 8 }, 4);
                touch(self);
            }
            Op::LoadCr3(second) => self.load_cr3(n, TOPS[usize::from(second)]),
            Op::Exit => self.leave(n),
            Op::Access { gva, invlpg, access } => {
                if invlpg {
                    self.invlpg(n, gva);
                }
                let got = self.access(n, gva, access);
                // Without INVLPG, a translation may be as old as the last CR3 load.
                if invlpg || !self.processors[n].stale {
                    assert_eq!(got, self.expected(n, gva, access), "at {gva:#x}");
                }
            }
        }
    }

    /// All pages must have been given back.
    pub fn end(self) {
        drop(self.shadow);
        let left = std::iter::from_fn(|| self.ram.root_pages().alloc_page()).count();
        assert_eq!(left, ROOT_PAGES, "all pages are given back");
    }
}

/// Guest-physical memory. Outside of RAM, reads give all ones and writes are lost.
struct Ram<'a>(&'a Arena);

impl TableMemory for Ram<'_> {
    type Error = Infallible;
    fn read(&self, pa: u64) -> Result<u64, Infallible> {
        Ok(if pa < RAM { self.0.read_u64(pa).unwrap() } else { u64::MAX })
    }
    fn write(&self, _pa: u64, _value: u64) -> Result<(), Infallible> {
        unreachable!("walkers make no plain writes")
    }
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Infallible> {
        let in_ram = pa < RAM;
        Ok(if in_ram { self.0.compare_exchange_u64(pa, current, new).unwrap() } else { Ok(current) })
    }
    fn fetch_or(&self, _pa: u64, _bits: u64) -> Result<u64, Infallible> {
        unreachable!("nobody contends")
    }
}
