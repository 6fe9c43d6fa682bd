//! Any tables in a small memory, in any mode: the guest walker, the EPT walker, and both together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trapline_memory::TableMemory;
use trapline_memory::ept::{self, EptAccess, EptFault, EptMode};
use trapline_memory::nested::translate;
use trapline_memory::paging::{self, Access, PagingFlags, PagingKind, PagingMode};
use trapline_memory::test::Tables;

const PAGES: usize = 8;

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    kind: u8,
    cr3: u64,
    flags: u16,
    phys_bits: u8,
    keys: (u32, u32),
    eptp: u64,
    ept_flags: (bool, bool),
    /// Some at 4 KiB and 2 MiB leaves, so that walks get far.
    entries: Vec<(u8, u16, Entry)>,
    accesses: Vec<(u64, u8)>,
}

#[derive(arbitrary::Arbitrary, Clone, Copy, Debug)]
enum Entry {
    /// Any.
    Raw(u64),
    /// Points to a page of the memory, with these low bits.
    Near(u8, u16),
    /// Two of them, as 32-bit paging has them.
    Narrow([(u8, u16); 2]),
}

impl Entry {
    fn bits(self) -> u64 {
        let near =
            |(page, low): (u8, u16)| u64::from(page % (PAGES as u8 + 1)) << 12 | u64::from(low & 0xfff);
        match self {
            Entry::Raw(bits) => bits,
            Entry::Near(page, low) => near((page, low)) | u64::from(low >> 15) << 63,
            Entry::Narrow([even, odd]) => near(even) | near(odd) << 32,
        }
    }
}

fn mode(input: &Input, tables: &Tables) -> PagingMode {
    let cr3 = input.cr3 & 0x7fff;
    let kind = match input.kind % 5 {
        0 => PagingKind::Off,
        1 => PagingKind::Bits32 { pse: input.kind & 0x40 != 0, pse36: input.kind & 0x80 != 0 },
        2 => PagingKind::Pae { pdptes: paging::load_pdptes(tables, cr3).unwrap_or([!0; 4]) },
        3 => PagingKind::Level4,
        _ => PagingKind::Level5,
    };
    let flags = PagingFlags::from_bits_truncate(input.flags);
    let phys_bits = 32 + input.phys_bits % 21;
    PagingMode { kind, cr3, flags, phys_bits, pkru: input.keys.0, pkrs: input.keys.1 }
}

fuzz_target!(|input: Input| {
    let tables = Tables::new(PAGES);
    for &(page, index, entry) in &input.entries {
        let at = u64::from(page) % PAGES as u64 * 0x1000 + u64::from(index % 512) * 8;
        tables.write(at, entry.bits()).expect("inside");
    }
    let paging = mode(&input, &tables);
    let (execute_only, mode_based_execute) = input.ept_flags;
    let eptp = ept::eptp(input.eptp & 0x7000, input.eptp & 1 != 0);
    let ept = EptMode { eptp, phys_bits: paging.phys_bits, execute_only, mode_based_execute };
    for &(address, how) in &input.accesses {
        let [write, fetch, user, implicit, ac] = [1, 2, 4, 8, 16].map(|bit| how & bit != 0);
        let access = Access { write: write && !fetch, fetch, user, implicit, ac };
        if let Ok(leaf) = paging::walk(&tables, &paging, address, access) {
            assert_eq!(leaf.permits(&paging, access), Ok(()));
            assert_eq!((leaf.gpa ^ address) & leaf.page_size.offset_mask() & 0xffff_ffff, 0);
            assert!(!access.write || leaf.dirty);
            // Setting flags in the entries does not change where they lead.
            assert_eq!(paging::walk(&tables, &paging, address, access), Ok(leaf));
        }
        let wanted = EptAccess::from_bits_truncate(u64::from(how));
        match ept::walk(&tables, &ept, address, wanted) {
            Ok(leaf) => {
                assert_eq!(leaf.hpa & leaf.page_size.offset_mask(), address & leaf.page_size.offset_mask());
                assert_eq!(ept::walk(&tables, &ept, address, wanted), Ok(leaf));
            }
            Err(EptFault::Violation { gpa, .. } | EptFault::Misconfig { gpa, .. }) => {
                assert_eq!(gpa, address)
            }
            Err(_) => {}
        }
        if let Ok(both) = translate(&tables, &ept, &paging, address, access) {
            assert_eq!(both.guest.permits(&paging, access), Ok(()));
            let _ = (both.dirty(), both.rights(&paging, &ept, user, ac));
        }
    }
});
