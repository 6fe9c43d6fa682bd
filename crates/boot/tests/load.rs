//! Kernels, initrds and command lines: what the guest finds in memory, and what is refused.

mod common;

use common::*;
use trapline_boot::{Error, Mode, Protocol, RamRange, Request, layout, load};
use vm_memory::{Bytes, GuestAddress};

fn message(result: Result<trapline_boot::Loaded, Error>) -> String {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains('\n') && text.chars().next().unwrap().is_lowercase(), "{text}");
    text
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry_with_a_zero_page() {
    let files = Files::new();
    let (memory, ram) = memory(64 * MIB);
    let kernel = files.file("vmlinuz", &bzimage());
    let initrd = files.file("initrd", &[0x5a; 5000]);
    let request = Request {
        initrd: Some(&initrd),
        command_line: "console=ttyS0",
        rsdp: Some(0xe_0000),
        text_screen: true,
        ..Request::new(&kernel)
    };
    let loaded = load(&memory, &ram, &request).unwrap();

    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!(loaded.kernel, (0x20_0000, 0x10_0000));
    assert_eq!(loaded.entry.mode, Mode::Long64);
    assert_eq!(loaded.entry.rip, 0x20_0200);
    assert_eq!((loaded.entry.rsi, loaded.entry.cr3), (layout::ZERO_PAGE, layout::PAGE_TABLES));
    assert_eq!(read::<u64>(&memory, 0x20_0000), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(read::<u64>(&memory, 0x20_1000), 0);

    let (address, size) = loaded.initrd.unwrap();
    assert_eq!((address, size), (64 * MIB - 8192, 5000));
    assert_eq!(read::<u8>(&memory, address + 4999), 0x5a);

    let zero_page = layout::ZERO_PAGE;
    assert_eq!(read::<u64>(&memory, zero_page + 0x70), 0xe_0000); // acpi_rsdp_addr
    // screen_info: mode 3, 80 columns, 25 lines, a VGA, characters of 16 lines.
    assert_eq!(read::<[u8; 2]>(&memory, zero_page + 0x06), [3, 80]);
    assert_eq!(read::<[u8; 3]>(&memory, zero_page + 0x0e), [25, 1, 16]);
    assert_eq!(read::<u8>(&memory, zero_page + 0x1e8), 3); // e820_entries
    assert_eq!(read::<[u8; 4]>(&memory, zero_page + 0x202), *b"HdrS");
    assert_eq!(read::<u8>(&memory, zero_page + 0x210), 0xff); // type_of_loader
    assert_eq!(read::<u32>(&memory, zero_page + 0x218), address as u32);
    assert_eq!(read::<u32>(&memory, zero_page + 0x21c), 5000);
    let command_line = read::<u32>(&memory, zero_page + 0x228);
    assert_eq!(read::<[u8; 14]>(&memory, command_line.into()), *b"console=ttyS0\0");
    let e820: Vec<(u64, u64, u32)> = (0..3)
        .map(|n| zero_page + 0x2d0 + n * 20)
        .map(|at| (read(&memory, at), read(&memory, at + 8), read(&memory, at + 16)))
        .collect();
    assert_eq!(e820, [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, 63 * MIB, 1)]);
}

#[test]
fn a_bzimage_without_64_bit_entry_starts_in_protected_mode() {
    let mut image = bzimage();
    image[0x236] = 0;
    let loaded = load_bytes(&image).unwrap();
    assert_eq!(loaded.protocol, Protocol::Linux32);
    assert_eq!((loaded.entry.mode, loaded.entry.rip), (Mode::Protected32, 0x20_0000));
    assert_eq!((loaded.entry.rsi, loaded.entry.cr3), (layout::ZERO_PAGE, 0));

    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    let kernel = files.file("vmlinuz", &image);
    let request = Request { protocol: Some(Protocol::Linux64), ..Request::new(&kernel) };
    assert!(
        message(load(&memory, &ram, &request)).ends_with("has no 64-bit Linux entry; it offers 32-bit Linux")
    );
}

#[test]
fn a_relocatable_bzimage_moves_when_its_place_is_no_ram() {
    let mut image = bzimage();
    image[0x258..0x260].copy_from_slice(&(1u64 << 30).to_le_bytes());
    assert_eq!(load_bytes(&image).unwrap().kernel.0, 0x20_0000);
    image[0x234] = 0;
    let text = message(load_bytes(&image));
    assert!(text.contains("needs guest memory 0x40000000-0x40100000"), "{text}");
    assert!(text.ends_with("that is not all RAM; the guest has 32 MiB"), "{text}");
}

#[test]
fn a_vmlinux_with_the_note_starts_by_pvh() {
    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    memory.write_slice(&[0xff; 8192], GuestAddress(0x20_0000)).unwrap(); // left by an earlier boot
    let kernel = files.file("vmlinux", &vmlinux(Some(0x20_0004)));
    let initrd = files.file("initrd", b"initrd");
    let request = Request {
        initrd: Some(&initrd),
        command_line: "quiet",
        rsdp: Some(0xe_0000),
        ..Request::new(&kernel)
    };
    let loaded = load(&memory, &ram, &request).unwrap();

    assert_eq!(loaded.protocol, Protocol::Pvh);
    assert_eq!((loaded.entry.mode, loaded.entry.rip), (Mode::Protected32, 0x20_0004));
    assert_eq!(read::<[u8; 16]>(&memory, 0x20_0000), [0x90; 16]);
    assert_eq!(read::<[u8; 16]>(&memory, 0x20_0010), [0; 16]);
    assert_eq!(read::<u8>(&memory, 0x20_100f), 0);
    assert_eq!(read::<u8>(&memory, 0x20_1010), 0xff);

    let info = loaded.entry.rbx;
    assert_eq!(read::<[u32; 4]>(&memory, info), [0x336e_c578, 1, 0, 1]);
    let [modules, command_line, rsdp, map] = read::<[u64; 4]>(&memory, info + 16);
    assert_eq!(read::<[u64; 2]>(&memory, modules), [loaded.initrd.unwrap().0, 6]);
    assert_eq!(read::<[u8; 6]>(&memory, command_line), *b"quiet\0");
    assert_eq!(rsdp, 0xe_0000);
    assert_eq!(read::<u32>(&memory, info + 48), 3);
    assert_eq!(read::<[u64; 3]>(&memory, map), [0, 0x9_fc00, 1]);
}

#[test]
fn a_plain_elf_starts_at_its_entry_physical_or_virtual() {
    let mut elf = vmlinux(None);
    assert_eq!(load_bytes(&elf).unwrap().entry.rip, 0x20_0008);
    elf[24..32].copy_from_slice(&0xffff_ffff_8020_000cu64.to_le_bytes());
    let loaded = load_bytes(&elf).unwrap();
    assert_eq!((loaded.protocol, loaded.entry.mode), (Protocol::Elf, Mode::Long64));
    assert_eq!(loaded.entry.rip, 0x20_000c);
    elf[24..32].copy_from_slice(&0x1234u64.to_le_bytes());
    assert!(message(load_bytes(&elf)).ends_with("its entry 0x1234 lies outside its loadable segments"));
}

#[test]
fn what_is_no_kernel_is_named() {
    for (content, found) in [
        (&b""[..], "is an empty file"),
        (b"\x1f\x8b\x08\0", "is gzip-compressed data"),
        (b"070701", "is a cpio archive (an initrd?)"),
        (b"hello", "is no known kernel format"),
    ] {
        let text = message(load_bytes(content));
        assert!(text.contains(found) && text.contains("expected a Linux bzImage"), "{text}");
    }
    let (memory, ram) = memory(MIB);
    assert!(
        message(load(&memory, &ram, &Request::new("/nonexistent/vmlinuz".as_ref())))
            .ends_with("no such file")
    );
    assert!(
        message(load(&memory, &ram, &Request::new("/dev/zero".as_ref()))).ends_with("not a regular file")
    );
}

#[test]
fn truncated_files_are_refused_with_both_lengths() {
    let image = bzimage();
    let text = message(load_bytes(&image[..2000]));
    assert!(text.ends_with("its protected-mode kernel ends at byte 5105, the file has 2000 bytes"), "{text}");
    let elf = vmlinux(Some(0x20_0004));
    let text = message(load_bytes(&elf[..180]));
    assert!(text.ends_with("its segment ends at byte 192, the file has 180 bytes"), "{text}");
    assert!(message(load_bytes(&elf[..100])).contains("program header table"));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_with_numbers() {
    let files = Files::new();
    let (memory, ram) = memory(4 * MIB);
    let kernel = files.file("vmlinuz", &bzimage());
    let initrd = files.file("initrd", &vec![1; 2 << 20]);
    let request = Request { initrd: Some(&initrd), ..Request::new(&kernel) };
    let text = message(load(&memory, &ram, &request));
    assert!(text.contains("2097152 bytes, but only 1048576 bytes of guest RAM are free"), "{text}");
    // A hole as large as a disk costs nothing: the size is checked before anything is read.
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(load(&memory, &ram, &request), Err(Error::InitrdTooLarge { .. })));
}

#[test]
fn command_lines_have_the_limit_of_the_kernel() {
    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    let kernel = files.file("vmlinuz", &bzimage());
    let line = "x".repeat(2048);
    let request = Request { command_line: &line[..2047], ..Request::new(&kernel) };
    load(&memory, &ram, &request).unwrap();
    let text = message(load(&memory, &ram, &Request { command_line: &line, ..request }));
    assert_eq!(text, "kernel command line is 2048 bytes long; this kernel takes at most 2047");
    assert!(message(load(&memory, &ram, &Request { command_line: "a\0b", ..request })).contains("offset 1"));
}

#[test]
fn segments_may_not_touch_boot_data_or_leave_ram() {
    let place = |address: u64| {
        let mut elf = vmlinux(None);
        elf[88..96].copy_from_slice(&address.to_le_bytes());
        elf[24..32].copy_from_slice(&address.to_le_bytes());
        load_bytes(&elf)
    };
    place(0x3_0000).unwrap();
    place(32 * MIB - 4112).unwrap();
    for address in [0, 0x2_ffff, 0x9_f000, 0xf_ffff, 32 * MIB - 4111, u64::MAX, u64::MAX - 5000] {
        assert!(matches!(place(address), Err(Error::KernelPlacement { .. })), "{address:#x}");
    }
}

#[test]
fn low_memory_must_be_ram() {
    let files = Files::new();
    let (memory, _) = memory(32 * MIB);
    let ram = [RamRange { base: MIB, size: 31 * MIB }];
    let kernel = files.file("vmlinuz", &bzimage());
    assert!(matches!(load(&memory, &ram, &Request::new(&kernel)), Err(Error::NoRam { .. })));
}
