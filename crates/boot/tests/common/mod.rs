//! Small kernels made by hand.
#![allow(dead_code)]

use std::path::PathBuf;

use trapline_boot::{Error, Loaded, RamRange, Request, load};
use vm_memory::{Bytes, GuestAddress};

pub type Memory = vm_memory::GuestMemoryMmap<()>;

pub const MIB: u64 = 1 << 20;

pub fn memory(size: u64) -> (Memory, Vec<RamRange>) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
    (memory, vec![RamRange { base: 0, size }])
}

/// A folder of files for one test.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Loads `content` as a kernel into 32 MiB.
pub fn load_bytes(content: &[u8]) -> Result<Loaded, Error> {
    let files = Files::new();
    let (memory, ram) = memory(32 * MIB);
    load(&memory, &ram, &Request::new(&files.file("kernel", content)))
}

pub fn read<T: vm_memory::ByteValued>(memory: &Memory, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A bzImage of protocol 2.15 with one setup sector; the kernel part is 4 KiB of AAh, wants 2 MiB, needs 1 MiB.
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    put(&mut image, 0x1f1, &[1]); // setup_sects
    put(&mut image, 0x1f4, &256u32.to_le_bytes()); // syssize
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]); // boot flag, jump over the header
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20fu16.to_le_bytes());
    put(&mut image, 0x211, &[1]); // loadflags: LOADED_HIGH
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(&mut image, 0x234, &[1]); // relocatable
    put(&mut image, 0x236, &3u16.to_le_bytes()); // xloadflags
    put(&mut image, 0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(&mut image, 0x258, &0x20_0000u64.to_le_bytes()); // pref_address
    put(&mut image, 0x260, &0x10_0000u32.to_le_bytes()); // init_size
    image.resize(1024 + 4096, 0xaa);
    image
}

/// An ELF64 at 2 MiB (virtual ffffffff80200000h) with 16 bytes of code and 4 KiB of BSS, and with a PVH note.
pub fn vmlinux(pvh_entry: Option<u32>) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([0x20_0008u64, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend([1u32, 7].map(u32::to_le_bytes).concat());
    elf.extend([176u64, 0xffff_ffff_8020_0000, 0x20_0000, 16, 4112, 4096].map(u64::to_le_bytes).concat());
    let note_size = if pvh_entry.is_some() { 20 } else { 0 };
    elf.extend([4u32, 4].map(u32::to_le_bytes).concat());
    elf.extend([192u64, 0, 0, note_size, note_size, 4].map(u64::to_le_bytes).concat());
    elf.extend([0x90; 16]);
    if let Some(entry) = pvh_entry {
        elf.extend([4u32, 4, 18].map(u32::to_le_bytes).concat());
        elf.extend(b"Xen\0");
        elf.extend(entry.to_le_bytes());
    }
    elf
}

/// A Multiboot header with checksum.
pub fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)].map(u32::to_le_bytes).concat()
}

/// A flat Multiboot file of 64 bytes, with its header at byte 16 and its addresses in it: loaded at 1 MiB, 4 KiB
/// of BSS behind it, entered at its first byte.
pub fn multiboot_flat() -> Vec<u8> {
    let mut image = vec![0x90; 16];
    image.extend(multiboot_header(1 << 16 | 0b11));
    image.extend([0x10_0010u32, 0x10_0000, 0x10_0040, 0x10_1040, 0x10_0000].map(u32::to_le_bytes).concat());
    image.resize(64, 0xcc);
    image
}

/// [`vmlinux`] without PVH, with a Multiboot header for its 16 bytes of code, entered at the last 4.
pub fn multiboot_elf() -> Vec<u8> {
    let mut elf = vmlinux(None);
    let at = elf.len() - 16;
    put(&mut elf, at, &multiboot_header(0));
    put(&mut elf, 24, &0x20_000cu64.to_le_bytes());
    elf
}
