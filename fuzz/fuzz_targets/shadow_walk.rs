//! Any tables, changes to them, CR3 loads, INVLPG and accesses, by up to three processors with TLBs that forget
//! nothing by themselves: what they see on shadow tables is what the guest's tables say.
#![no_main]

#[path = "../../crates/memory/tests/common/shadow_machine.rs"]
mod shadow_machine;

use libfuzzer_sys::fuzz_target;
use shadow_machine::{Machine, Op, TABLES, TOPS};
use trapline_memory::paging::{Access, PagingFlags, PagingKind};

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    kind: u8,
    processors: u8,
    few_pages: bool,
    flags: u16,
    keys: (u32, u32),
    steps: Vec<(u8, Step)>,
}

#[derive(arbitrary::Arbitrary, Clone, Copy, Debug)]
enum Step {
    Change { device: bool, table: u8, index: u8, entry: Entry },
    LoadCr3(bool),
    Access { place: [u8; 4], offset: u16, how: u8, invlpg: bool },
    Exit,
}

#[derive(arbitrary::Arbitrary, Clone, Copy, Debug)]
enum Entry {
    /// Any.
    Raw(u64),
    /// To one of the tables, with these low bits and a protection key.
    Table(u8, u8),
    /// To a page of data, or beyond RAM.
    Page(u8, u8, u8),
}

impl Entry {
    fn bits(self) -> u64 {
        match self {
            Self::Raw(bits) => bits,
            Self::Table(page, low) => TABLES + (u64::from(page % 8) << 12) | u64::from(low),
            Self::Page(page, low, high) => {
                // RAM has 512 pages.
                (32 + u64::from(page) * 2) << 12 | u64::from(low) | u64::from(high) << 56
            }
        }
    }
}

/// The top itself is changed as well, but for what maps the window.
fn table(n: u8) -> u64 {
    match n % 10 {
        8 => TOPS[0],
        9 => TOPS[1],
        n => TABLES + (u64::from(n) << 12),
    }
}

/// An address outside the window, four entries of each table at most.
fn address(kind: PagingKind, place: [u8; 4], offset: u16) -> u64 {
    let [a, b, c, d] = place.map(|n| u64::from(n % 4));
    let offset = u64::from(offset & 0xff8);
    match kind {
        PagingKind::Bits32 { .. } => (a.max(1)) << 22 | (b * 4 + c) << 12 | offset,
        PagingKind::Pae { .. } => a << 30 | (b.max(1)) << 21 | c << 12 | offset,
        PagingKind::Level5 => (a.max(1)) << 48 | b << 39 | c << 30 | d << 21 | offset,
        _ => (a.max(1)) << 39 | b << 30 | c << 21 | d << 12 | offset,
    }
}

fn op(kind: PagingKind, step: Step) -> Op {
    match step {
        Step::Change { device, table: n, index, entry } => {
            let table = table(n);
            let mut entry = entry.bits();
            if TOPS.contains(&table) && matches!(kind, PagingKind::Pae { .. }) {
                entry &= 0x1f_f001;
            }
            // Entry 0 of the tops leads to the window.
            let index = u64::from(index % 8).max(u64::from(TOPS.contains(&table)));
            if device { Op::DeviceWrite { table, index, entry } } else { Op::Change { table, index, entry } }
        }
        Step::LoadCr3(second) => Op::LoadCr3(second),
        Step::Access { place, offset, how, invlpg } => {
            let [write, fetch, user, implicit, ac] = [1, 2, 4, 8, 16].map(|bit| how & bit != 0);
            let access = Access { write: write && !fetch, fetch, user, implicit: implicit && !fetch, ac };
            Op::Access { gva: address(kind, place, offset), invlpg, access }
        }
        Step::Exit => Op::Exit,
    }
}

fuzz_target!(|input: Input| {
    let kind = match input.kind % 5 {
        0 => PagingKind::Bits32 { pse: false, pse36: false },
        1 => PagingKind::Bits32 { pse: true, pse36: input.kind & 0x80 != 0 },
        2 => PagingKind::Pae { pdptes: [0; 4] },
        3 => PagingKind::Level4,
        _ => PagingKind::Level5,
    };
    let mut machine =
        Machine::new(kind, usize::from(input.processors % 3) + 1, if input.few_pages { 14 } else { 200 });
    let optional = PagingFlags::all() - PagingFlags::PAGE_1G;
    for processor in &mut machine.processors {
        processor.mode.flags.remove(optional);
        processor.mode.flags |= optional & PagingFlags::from_bits_truncate(input.flags);
        (processor.mode.pkru, processor.mode.pkrs) = input.keys;
    }
    // Key 0 is the window's.
    for processor in &mut machine.processors {
        processor.mode.pkrs &= !3;
    }
    machine.start();
    for &(n, step) in input.steps.iter().take(400) {
        machine.perform(usize::from(n), op(kind, step));
    }
    machine.end();
});
