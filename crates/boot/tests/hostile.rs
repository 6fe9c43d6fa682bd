//! Kernel files are not trusted: whatever the bytes, loading ends with an answer.

mod common;

use common::*;
use proptest::prelude::*;
use trapline_boot::{Protocol, Request, load};

/// Bytes to overwrite: position in the first 1.5 KiB, value. Header fields lie there.
fn mutations() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let value = prop_oneof![Just(0u8), Just(0xff), Just(0x80), any::<u8>()];
    prop::collection::vec((0usize..0x600, value), 1..24)
}

/// Loads a damaged kernel in every way there is; what loads must lie in RAM.
fn try_all(content: &[u8]) -> Result<(), TestCaseError> {
    let files = Files::new();
    let (memory, ram) = memory(16 * MIB);
    let kernel = files.file("kernel", content);
    let initrd = files.file("initrd", &[0; 4096]);
    for protocol in [None, Some(Protocol::Linux32), Some(Protocol::Elf), Some(Protocol::Multiboot)] {
        let request = Request { initrd: Some(&initrd), protocol, ..Request::new(&kernel) };
        match load(&memory, &ram, &request) {
            Ok(loaded) => {
                let (start, size) = loaded.kernel;
                prop_assert!(start + size <= 16 * MIB);
                prop_assert!((start..start + size).contains(&loaded.entry.rip));
                let (at, length) = loaded.initrd.unwrap();
                prop_assert!(at >= MIB && at + length <= 16 * MIB);
            }
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_bzimages(changes in mutations(), cut in prop::option::of(0usize..6000)) {
        let mut image = bzimage();
        for (at, value) in changes {
            image[at] = value;
        }
        image.truncate(cut.unwrap_or(usize::MAX));
        try_all(&image)?;
    }

    #[test]
    fn mutated_multiboot_files(changes in mutations(), cut in prop::option::of(0usize..200), elf in any::<bool>()) {
        let mut image = if elf { multiboot_elf() } else { multiboot_flat() };
        let len = image.len();
        for (at, value) in changes {
            image[at % len] = value;
        }
        image.truncate(cut.unwrap_or(usize::MAX));
        try_all(&image)?;
    }

    #[test]
    fn mutated_elf_files(changes in mutations(), cut in prop::option::of(0usize..300)) {
        let mut elf = vmlinux(Some(0x20_0004));
        let len = elf.len();
        for (at, value) in changes {
            elf[at % len] = value;
        }
        elf.truncate(cut.unwrap_or(usize::MAX));
        try_all(&elf)?;
    }

    #[test]
    fn random_bytes_behind_a_magic(kind in 0..3, mut content in prop::collection::vec(any::<u8>(), 0..2048)) {
        let (at, magic): (usize, &[u8]) = match kind {
            0 => (0, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0"),
            1 => (0, b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0"),
            _ => (0x202, b"HdrS\x0f\x02"),
        };
        if let Some(place) = content.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
        try_all(&content)?;
    }
}
