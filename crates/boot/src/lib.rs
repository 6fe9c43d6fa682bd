//! Loads kernels into guest memory, and describes the machine to them.
//!
//! [`load`] takes a kernel, an optional initrd and a command line, finds out by content what the kernel is,
//! puts everything in guest memory and returns the [`EntryPoint`]: the register state to start with, as
//! plain data that any hypervisor can be given. [`acpi`], [`smbios`] and [`mptable`] build the firmware tables.
//!
//! | kernel | protocol ([`Protocol`]) | specification |
//! |---|---|---|
//! | bzImage | 64-bit entry (2.12 and later, `XLF_KERNEL_64`), 32-bit entry (2.04 and later) | Linux `Documentation/arch/x86/boot.rst` |
//! | Multiboot header in the first 8 KiB; ELF, or loaded by the header's addresses | Multiboot | Multiboot 0.6.96 |
//! | ELF with note `XEN_ELFNOTE_PHYS32_ENTRY` (vmlinux) | PVH | Xen `docs/misc/pvh.pandoc` |
//! | other ELF64, ELF32 (`ET_EXEC`) | straight at its entry, with a Linux zero page | System V ABI, ELF |
//!
//! Left out: zImage and kernels before boot protocol 2.04, the 16-bit real-mode entry, EFI handover,
//! relocation of position-independent ELF files (`ET_DYN`), compressed vmlinux files, Multiboot's
//! video modes, Multiboot 2.
//!
//! Files are not trusted: every size is checked against the file and guest RAM before anything is read, and
//! what is wrong comes back as an [`Error`] of one line.
//!
//! ```
//! use trapline_boot::{Mode, Protocol, RamRange, Request, load};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! # // A 32-bit ELF file with one segment at 1 MiB: a header, a program header, the code.
//! # let tiny_elf = |code: &[u8]| {
//! #     let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
//! #     elf.resize(16, 0);
//! #     for half in [2u16, 3] { elf.extend(half.to_le_bytes()) }
//! #     for word in [1u32, 0x10_0000, 52, 0, 0] { elf.extend(word.to_le_bytes()) }
//! #     for half in [52u16, 32, 1, 40, 0, 0] { elf.extend(half.to_le_bytes()) }
//! #     let size = code.len() as u32;
//! #     for word in [1u32, 84, 0x10_0000, 0x10_0000, size, size, 5, 4] { elf.extend(word.to_le_bytes()) }
//! #     elf.extend(code);
//! #     elf
//! # };
//! let dir = tempfile::tempdir()?;
//! let kernel = dir.path().join("kernel");
//! std::fs::write(&kernel, tiny_elf(&[0xf4]))?; // hlt
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)])?;
//! let ram = [RamRange { base: 0, size: 16 << 20 }];
//! let loaded = load(&memory, &ram, &Request::new(&kernel))?;
//! assert_eq!(loaded.protocol, Protocol::Elf);
//! assert_eq!((loaded.entry.mode, loaded.entry.rip), (Mode::Protected32, 0x10_0000));
//! assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_0000))?, 0xf4);
//!
//! std::fs::write(&kernel, "#!/bin/sh\n")?;
//! let error = load(&memory, &ram, &Request::new(&kernel)).unwrap_err();
//! assert!(error.to_string().contains("expected a Linux bzImage (vmlinuz), an x86 ELF executable"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod acpi;
mod bzimage;
mod elf;
mod entry;
mod error;
pub mod firmware;
mod linux;
pub mod mptable;
mod multiboot;
mod pvh;
mod ram;
pub mod smbios;
mod source;

use std::path::Path;

use vm_memory::GuestMemory;

pub use entry::{DescriptorTable, EntryPoint, Mode, Segment};
pub use error::Error;
pub use ram::{MapEntry, MapKind, RamRange, layout, memory_map};

use source::Source;

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux 64-bit boot protocol: 64-bit mode, zero page in RSI.
    Linux64,
    /// Linux 32-bit boot protocol: protected mode, zero page in ESI.
    Linux32,
    /// PVH: protected mode, `hvm_start_info` in EBX.
    Pvh,
    /// Multiboot version 1: protected mode, magic number in EAX, information structure in EBX.
    Multiboot,
    /// The entry of the ELF header: 64-bit mode for ELF64, protected mode for ELF32; zero page in RSI.
    Elf,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Linux64 => "64-bit Linux",
            Protocol::Linux32 => "32-bit Linux",
            Protocol::Pvh => "PVH",
            Protocol::Multiboot => "Multiboot",
            Protocol::Elf => "plain ELF",
        }
    }
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel file.
    pub kernel: &'a Path,
    /// Initial RAM disk, in any format the kernel knows.
    pub initrd: Option<&'a Path>,
    /// Kernel command line.
    pub command_line: &'a str,
    /// Guest-physical address of the ACPI RSDP, if there is one to tell about.
    pub rsdp: Option<u64>,
    /// There is a VGA that shows text of 80 by 25 characters (mode 3): a Linux kernel is told, and uses it as
    /// a console.
    pub text_screen: bool,
    /// The protocol to use; without one the best the kernel offers: 64-bit Linux before 32-bit,
    /// Multiboot before PVH before the plain ELF entry.
    pub protocol: Option<Protocol>,
}

impl<'a> Request<'a> {
    /// The kernel alone, without initrd, command line or ACPI.
    pub fn new(kernel: &'a Path) -> Self {
        Self { kernel, initrd: None, command_line: "", rsdp: None, text_screen: false, protocol: None }
    }
}

/// What was loaded where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// With which state the boot processor starts.
    pub entry: EntryPoint,
    /// The protocol used.
    pub protocol: Protocol,
    /// First byte and length of the memory the kernel was put in (the hull of its segments).
    pub kernel: (u64, u64),
    /// First byte and length of the initrd.
    pub initrd: Option<(u64, u64)>,
}

/// A kernel that lies in guest memory and waits for its boot data.
struct Kernel {
    protocol: Protocol,
    entry: u64,
    /// ELF64 or 64-bit Linux.
    long: bool,
    /// Ranges `start..end` taken, for the time until the kernel has set up its own memory management.
    taken: Vec<(u64, u64)>,
    /// First address the kernel cannot take an initrd at.
    initrd_limit: u64,
    /// Longest command line in bytes, without NUL.
    command_line_limit: usize,
    /// The setup header of a bzImage.
    header: linux::SetupHeader,
}

/// Loads a kernel, its initrd and its boot data into guest memory.
///
/// `ram` names the ranges of `memory` that are RAM in the guest's eyes. Below 1 MiB the places in [`layout`]
/// must be RAM.
///
/// # Errors
/// Whatever is wrong with the files, or does not fit; guest memory may have been written in part then.
pub fn load<M: GuestMemory>(memory: &M, ram: &[RamRange], request: &Request<'_>) -> Result<Loaded, Error> {
    if !ram::is_ram(ram, 0, layout::LOW_BOOT_DATA_END) {
        return Err(Error::NoRam { start: 0, end: layout::LOW_BOOT_DATA_END, what: "boot data" });
    }
    let mut source = Source::open("kernel", request.kernel)?;
    let kernel = load_kernel(memory, ram, &mut source, request.protocol)?;
    check_command_line(request.command_line, kernel.command_line_limit)?;
    let initrd = match request.initrd {
        Some(path) => Some(load_initrd(memory, ram, path, &kernel)?),
        None => None,
    };

    let map = memory_map(ram);
    let entry = match kernel.protocol {
        Protocol::Multiboot => {
            let info = multiboot::write_info(memory, ram, &map, request, initrd, &kernel.taken)?;
            let entry = EntryPoint::protected32(kernel.entry, 0, info);
            EntryPoint { rax: multiboot::LOADER_MAGIC.into(), ..entry }
        }
        Protocol::Pvh => {
            write_command_line(memory, request.command_line)?;
            pvh::write_start_info(memory, &map, initrd, request.rsdp)?;
            EntryPoint::protected32(kernel.entry, 0, layout::PVH_START_INFO)
        }
        Protocol::Linux64 | Protocol::Linux32 | Protocol::Elf => {
            write_command_line(memory, request.command_line)?;
            linux::write_zero_page(memory, &map, kernel.header, initrd, request)?;
            match kernel.long {
                true => EntryPoint::long64(kernel.entry, layout::ZERO_PAGE),
                false => EntryPoint::protected32(kernel.entry, layout::ZERO_PAGE, 0),
            }
        }
    };
    entry.write_tables(memory)?;

    let start = kernel.taken.iter().map(|range| range.0).min().unwrap_or(0);
    let end = kernel.taken.iter().map(|range| range.1).max().unwrap_or(0);
    Ok(Loaded { entry, protocol: kernel.protocol, kernel: (start, end - start), initrd })
}

const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Finds out what the kernel is and loads it.
fn load_kernel<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    source: &mut Source,
    protocol: Option<Protocol>,
) -> Result<Kernel, Error> {
    let mut start = [0; 0x206];
    let have = source.len().min(start.len() as u64) as usize;
    source.read("start", 0, &mut start[..have])?;
    let start = &start[..have];
    if start.get(0x202..0x206) == Some(b"HdrS") && !start.starts_with(ELF_MAGIC) {
        return bzimage::load(memory, ram, source, protocol);
    }
    if matches!(protocol, None | Some(Protocol::Multiboot)) {
        match multiboot::find(source)? {
            Some(header) => return multiboot::load(memory, ram, source, header),
            None if protocol.is_none() => {}
            None => {
                let reason = "it has no Multiboot header in its first 8 KiB".into();
                return Err(Error::Unsupported { path: source.path().to_owned(), reason });
            }
        }
    }
    if start.starts_with(ELF_MAGIC) {
        elf::load(memory, ram, source, protocol)
    } else {
        Err(Error::NotAKernel { path: source.path().to_owned(), found: describe(start) })
    }
}

/// Names what a file that is no kernel looks like.
fn describe(start: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 10] = [
        (b"\x1f\x8b", "gzip-compressed data"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
        (b"\xfd7zXZ\0", "xz-compressed data"),
        (b"\x04\x22\x4d\x18", "lz4-compressed data"),
        (b"\x02\x21\x4c\x18", "lz4-compressed data"),
        (b"!<arch>\n", "a package or archive"),
        (b"07070", "a cpio archive (an initrd?)"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"#!", "a script"),
        (b"MZ", "an EFI or DOS executable without a Linux setup header"),
    ];
    if start.is_empty() {
        return "an empty file";
    }
    if let Some((_, name)) = KNOWN.iter().find(|(magic, _)| start.starts_with(magic)) {
        return name;
    }
    match start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        true => "a boot sector or disk image without a Linux setup header",
        false => "no known kernel format",
    }
}

/// Fails if the command line is too long.
fn check_command_line(text: &str, limit: usize) -> Result<(), Error> {
    let room = (layout::LOW_BOOT_DATA_END - layout::COMMAND_LINE) as usize - 1;
    let limit = limit.min(room);
    if text.len() > limit {
        return Err(Error::CommandLineTooLong { length: text.len(), limit });
    }
    if let Some(offset) = text.bytes().position(|byte| byte == 0) {
        return Err(Error::CommandLineNul(offset));
    }
    Ok(())
}

/// Puts the command line, NUL-terminated, in its place.
fn write_command_line<M: GuestMemory>(memory: &M, text: &str) -> Result<(), Error> {
    let mut line = text.as_bytes().to_vec();
    line.push(0);
    ram::write(memory, layout::COMMAND_LINE, &line)
}

/// Puts the initrd as high as it may go.
fn load_initrd<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    path: &Path,
    kernel: &Kernel,
) -> Result<(u64, u64), Error> {
    let mut source = Source::open("initrd", path)?;
    let size = source.len();
    if size == 0 {
        return Err(Error::Open {
            role: "initrd",
            path: path.to_owned(),
            reason: "the file is empty".into(),
        });
    }
    let limit = kernel.initrd_limit;
    let address = ram::highest_fit(ram, size, limit, &kernel.taken)
        .map_err(|available| Error::InitrdTooLarge { path: path.to_owned(), size, available, limit })?;
    source.load(memory, "content", 0, size, address)?;
    Ok((address, size))
}

/// Fails unless `start..end` is RAM and keeps clear of boot data, which ends at `low_end`, and tables.
fn check_placement(
    ram: &[RamRange],
    path: &Path,
    what: &'static str,
    start: u64,
    end: u64,
    low_end: u64,
) -> Result<(), Error> {
    let fail = |reason: String| Error::KernelPlacement { path: path.to_owned(), what, start, end, reason };
    if !ram::is_ram(ram, start, end) {
        let total: u64 = ram::merged(ram).iter().map(|range| range.size).sum();
        return Err(fail(format!("that is not all RAM; the guest has {} MiB", total >> 20)));
    }
    for (first, after) in [(0, low_end), (layout::EBDA, layout::HIGH_MEMORY)] {
        if start < after && first < end {
            return Err(fail(format!("{first:#x}-{after:#x} is taken by boot data and firmware tables")));
        }
    }
    Ok(())
}
