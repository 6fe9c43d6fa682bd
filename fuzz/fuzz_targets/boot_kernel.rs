//! Any file as a kernel in 16 MiB of memory: loaded, or refused with one line.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trapline_boot::{Protocol, RamRange, Request, load};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const RAM: u64 = 16 << 20;

/// A file to start from, changes to it, and where it ends.
#[derive(arbitrary::Arbitrary, Debug)]
struct Input<'a> {
    template: u8,
    protocol: u8,
    changes: Vec<(u16, u8)>,
    fields: Vec<(u8, u32)>,
    cut: Option<u16>,
    command_line: &'a str,
    initrd: bool,
    raw: &'a [u8],
}

/// A folder for the files; libFuzzer gives no moment to remove it at, so there is one by process.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("trapline-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the temporary folder is writable");
    fs::write(folder.join("initrd"), [0; 4096]).expect("likewise");
    folder
});

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage of protocol 2.15 with one setup sector and a 4 KiB kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 4096];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &256u32.to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut image, 0x234, &[1, 0, 3, 0]);
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x20_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x10_0000u32.to_le_bytes());
    image
}

/// An ELF64 file with a segment at 2 MiB and a PVH note.
fn elf64() -> Vec<u8> {
    let mut elf = vec![0; 256];
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    put(&mut elf, 16, &[2, 0, 62, 0, 1]);
    put(&mut elf, 24, &0x20_0008u64.to_le_bytes());
    put(&mut elf, 32, &[64]);
    put(&mut elf, 52, &[64, 0, 56, 0, 2]);
    put(&mut elf, 64, &[1, 0, 0, 0, 7]);
    let load = [192u64, 0x20_0000, 0x20_0000, 16, 4112, 4096];
    put(&mut elf, 72, &load.map(u64::to_le_bytes).concat());
    put(&mut elf, 120, &[4, 0, 0, 0, 4]);
    put(&mut elf, 128, &[208u64, 0, 0, 20, 20, 4].map(u64::to_le_bytes).concat());
    put(&mut elf, 208, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 4, 0, 0x20]);
    elf
}

/// An ELF32 file with a segment at 1 MiB.
fn elf32() -> Vec<u8> {
    let mut elf = vec![0; 128];
    put(&mut elf, 0, b"\x7fELF\x01\x01\x01");
    put(&mut elf, 16, &[2, 0, 3, 0, 1]);
    put(&mut elf, 24, &[0x10_0000u32, 52].map(u32::to_le_bytes).concat());
    put(&mut elf, 40, &[52, 0, 32, 0, 1]);
    let load = [1u32, 84, 0x10_0000, 0x10_0000, 16, 64, 5, 4];
    put(&mut elf, 52, &load.map(u32::to_le_bytes).concat());
    elf
}

fn file(input: &Input<'_>) -> Vec<u8> {
    let mut file = match input.template % 4 {
        0 => bzimage(),
        1 => elf64(),
        2 => elf32(),
        _ => input.raw.to_vec(),
    };
    let len = file.len().min(0x600);
    if len >= 4 {
        for &(at, value) in &input.changes {
            file[usize::from(at) % len] = value;
        }
        for &(word, value) in &input.fields {
            let at = usize::from(word) * 4 % (len - 3);
            put(&mut file, at, &value.to_le_bytes());
        }
    }
    file.truncate(input.cut.map_or(usize::MAX, usize::from));
    file
}

fuzz_target!(|input: Input<'_>| {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("16 MiB");
    let ram = [RamRange { base: 0, size: RAM }];
    let (kernel, initrd) = (FOLDER.join("kernel"), FOLDER.join("initrd"));
    fs::write(&kernel, file(&input)).expect("the temporary folder is writable");
    let protocols =
        [None, Some(Protocol::Linux64), Some(Protocol::Linux32), Some(Protocol::Pvh), Some(Protocol::Elf)];
    let request = Request {
        kernel: &kernel,
        initrd: input.initrd.then_some(&*initrd),
        command_line: input.command_line,
        rsdp: None,
        text_screen: input.initrd,
        protocol: protocols[usize::from(input.protocol) % protocols.len()],
    };
    match load(&memory, &ram, &request) {
        Ok(loaded) => {
            let (start, size) = loaded.kernel;
            assert!(start + size <= RAM);
            assert!((start..start + size).contains(&loaded.entry.rip));
            if let Some((at, length)) = loaded.initrd {
                assert!(at >= 1 << 20 && at + length <= RAM);
                assert!(at + length <= start || start + size <= at);
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
