//! Multiboot kernels: what is found, where it goes, what the kernel is told.

mod common;

use common::*;
use trapline_boot::{Loaded, Mode, Protocol, Request, layout, load};
use vm_memory::{Bytes, GuestAddress};

fn text(memory: &Memory, address: u32) -> String {
    let bytes = (u64::from(address)..).map(|at| read::<u8>(memory, at)).take_while(|byte| *byte != 0);
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn a_flat_file_goes_where_its_header_says() {
    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    memory.write_slice(&[0xff; 8192], GuestAddress(MIB)).unwrap(); // left by an earlier boot
    let kernel = files.file("kernel.bin", &multiboot_flat());
    let loaded = load(&memory, &ram, &Request::new(&kernel)).unwrap();
    assert_eq!(loaded.protocol, Protocol::Multiboot);
    assert_eq!(loaded.kernel, (MIB, 0x1040));
    assert_eq!((loaded.entry.mode, loaded.entry.rip), (Mode::Protected32, MIB));
    assert_eq!(loaded.entry.rax, 0x2bad_b002);
    assert_eq!(read::<[u8; 16]>(&memory, MIB), [0x90; 16]);
    assert_eq!(read::<u8>(&memory, MIB + 63), 0xcc);
    assert_eq!(read::<u8>(&memory, MIB + 64), 0);
    assert_eq!(read::<u8>(&memory, MIB + 0x103f), 0);
    assert_eq!(read::<u8>(&memory, MIB + 0x1040), 0xff);
}

#[test]
fn an_elf_file_with_the_header_starts_in_protected_mode_whatever_its_class() {
    let loaded = load_bytes(&multiboot_elf()).unwrap();
    assert_eq!(loaded.protocol, Protocol::Multiboot);
    assert_eq!((loaded.entry.mode, loaded.entry.rip), (Mode::Protected32, 0x20_000c));
}

#[test]
fn the_kernel_is_told_of_memory_command_line_and_module() {
    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    let kernel = files.file("kernel", &multiboot_elf());
    let initrd = files.file("initrd", b"module");
    let request = Request { initrd: Some(&initrd), command_line: "a b", ..Request::new(&kernel) };
    let loaded = load(&memory, &ram, &request).unwrap();

    let info = loaded.entry.rbx;
    let word = |offset: u64| read::<u32>(&memory, info + offset);
    assert_eq!(word(0) & 0b1001101, 0b1001101); // memory, command line, modules, memory map
    assert_eq!((word(4), word(8)), (639, 31 << 10));
    assert_eq!(text(&memory, word(16)), format!("{} a b", kernel.display()));
    assert_eq!(word(20), 1);
    let module = read::<[u32; 4]>(&memory, word(24).into());
    let (address, size) = loaded.initrd.unwrap();
    assert_eq!((u64::from(module[0]), u64::from(module[1])), (address, address + size));
    assert_eq!(address % 4096, 0);
    assert_eq!(read::<[u8; 6]>(&memory, address), *b"module");
    assert_eq!(text(&memory, module[2]), initrd.display().to_string());
    assert_eq!(text(&memory, word(64)), "Trapline");

    let map: Vec<(u32, u64, u64, u32)> = (0..u64::from(word(44)) / 24)
        .map(|n| u64::from(word(48)) + n * 24)
        .map(|at| (read(&memory, at), read(&memory, at + 4), read(&memory, at + 12), read(&memory, at + 20)))
        .collect();
    assert_eq!(map, [(20, 0, 0x9_fc00, 1), (20, 0x9_fc00, 0x6_0400, 2), (20, MIB, 31 * MIB, 1)]);
}

#[test]
fn a_kernel_may_lie_where_others_have_their_boot_data() {
    let mut image = multiboot_flat();
    for (at, value) in [(28, 0x4010u32), (32, 0x4000), (36, 0x4040), (40, 0x9_0000), (44, 0x4000)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let Loaded { kernel, entry, .. } = load_bytes(&image).unwrap();
    assert_eq!((kernel, entry.rip), ((0x4000, 0x9_0000 - 0x4000), 0x4000));
    assert!(entry.rbx >= layout::HIGH_MEMORY);
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let refused = |change: fn(&mut Vec<u8>), what: &str| {
        let mut image = multiboot_flat();
        change(&mut image);
        let text = load_bytes(&image).unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    };
    refused(|i| i[28..32].copy_from_slice(&0u32.to_le_bytes()), "header_addr is below load_addr");
    refused(|i| i[28..32].copy_from_slice(&0x10_0020u32.to_le_bytes()), "before the file's start");
    refused(|i| i[36..40].copy_from_slice(&1u32.to_le_bytes()), "load_end_addr is below load_addr");
    refused(|i| i[36..40].copy_from_slice(&0x10_0080u32.to_le_bytes()), "truncated");
    refused(|i| i[40..44].copy_from_slice(&0x10_0001u32.to_le_bytes()), "bss_end_addr");
    refused(|i| i[44..48].copy_from_slice(&0u32.to_le_bytes()), "entry_addr");
    refused(|i| i[40..44].copy_from_slice(&u32::MAX.to_le_bytes()), "not all RAM");
    refused(|i| i[16..28].copy_from_slice(&multiboot_header(1 << 5)), "unknown features 0x20");
    refused(|i| i[24] ^= 1, "no known kernel format"); // the checksum
}

#[test]
fn the_header_counts_in_the_first_8_kib_on_a_multiple_of_4() {
    let flat = |at: usize| {
        let mut image = vec![0; at];
        image.extend(multiboot_header(1 << 16));
        let load = 0x10_0000u32;
        image.extend([load + at as u32, load, 0, 0, load].map(u32::to_le_bytes).concat());
        image.resize(image.len().max(12 << 10), 0);
        load_bytes(&image).map(|loaded| loaded.protocol)
    };
    assert_eq!(flat(8192 - 32).unwrap(), Protocol::Multiboot);
    flat(8192).unwrap_err();
    flat(18).unwrap_err();
}

#[test]
fn asking_for_multiboot_takes_a_header() {
    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    let kernel = files.file("kernel", &vmlinux(None));
    let request = Request { protocol: Some(Protocol::Multiboot), ..Request::new(&kernel) };
    let text = load(&memory, &ram, &request).unwrap_err().to_string();
    assert!(text.ends_with("it has no Multiboot header in its first 8 KiB"), "{text}");
    let kernel = files.file("kernel", &multiboot_elf());
    let request = Request { protocol: Some(Protocol::Elf), ..Request::new(&kernel) };
    assert_eq!(load(&memory, &ram, &request).unwrap().protocol, Protocol::Elf);
}
