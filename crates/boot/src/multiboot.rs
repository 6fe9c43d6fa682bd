//! Multiboot, version 1 (Multiboot Specification 0.6.96): the header in the kernel, the information for it.
//!
//! A kernel is an ELF file, or any file that gives its addresses in the header (flag 16, the "a.out kludge").
//! The initrd is its one module. The information is put where neither kernel nor module is, so that a kernel
//! may lie in low memory, too. What the board cannot give, a graphics mode, is not told of.

use vm_memory::GuestMemory;

use crate::ram::{self, MapEntry, MapKind, layout};
use crate::source::Source;
use crate::{Error, Kernel, Protocol, RamRange, Request, check_placement, elf, linux};

/// In the kernel's header.
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// In EAX at the kernel's entry.
pub(crate) const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies in so many bytes at the start of the file, on a multiple of 4.
const SEARCHED: u64 = 8192;
/// Flag 16: the header says where to load the file.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Flags 0 to 15 are requirements. Those known: modules on page boundaries, memory information, and a video
/// mode, which kernels ask for but look in the information for.
const REQUIREMENTS: u32 = 0xffff;
const KNOWN_REQUIREMENTS: u32 = 0b111;
/// Longest command line taken, the kernel's name included.
const COMMAND_LINE_LIMIT: usize = 64 << 10;

/// Bytes of the information structure, up to its VBE fields.
const INFO_SIZE: usize = 88;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

/// A Multiboot header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Its place in the file.
    offset: u64,
    flags: u32,
    /// `header_addr`, `load_addr`, `load_end_addr`, `bss_end_addr`, `entry_addr`; only with flag 16.
    addresses: [u32; 5],
}

/// Looks for the header.
pub(crate) fn find(source: &Source) -> Result<Option<Header>, Error> {
    let mut start = vec![0; source.len().min(SEARCHED) as usize];
    source.read("start", 0, &mut start)?;
    let words: Vec<u32> =
        start.chunks_exact(4).map(|word| word.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))).collect();
    let is_header = |w: &[u32]| matches!(w, &[HEADER_MAGIC, flags, sum] if HEADER_MAGIC.wrapping_add(flags).wrapping_add(sum) == 0);
    let Some(at) = words.windows(3).position(is_header) else { return Ok(None) };
    let word = |n: usize| words.get(at + n).copied();
    let flags = word(1).unwrap_or(0);
    let mut addresses = [0; 5];
    if flags & HAS_ADDRESSES != 0 {
        for (n, address) in (3..).zip(&mut addresses) {
            let Some(value) = word(n) else { return Ok(None) };
            *address = value;
        }
    }
    Ok(Some(Header { offset: at as u64 * 4, flags, addresses }))
}

/// Loads the kernel.
pub(crate) fn load<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    source: &mut Source,
    header: Header,
) -> Result<Kernel, Error> {
    let unknown = header.flags & REQUIREMENTS & !KNOWN_REQUIREMENTS;
    if unknown != 0 {
        return Err(unsupported(
            source,
            format!("its Multiboot header requires unknown features {unknown:#x}"),
        ));
    }
    if header.flags & HAS_ADDRESSES != 0 {
        return load_by_addresses(memory, ram, source, header);
    }
    let kernel = elf::load(memory, ram, source, Some(Protocol::Multiboot))?;
    if kernel.entry >> 32 != 0 {
        return Err(unsupported(source, format!("its entry {:#x} is not below 4 GiB", kernel.entry)));
    }
    Ok(kernel)
}

fn unsupported(source: &Source, reason: impl Into<String>) -> Error {
    Error::Unsupported { path: source.path().to_owned(), reason: reason.into() }
}

/// Loads a file whose header says what goes where (section 3.1.3).
fn load_by_addresses<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    source: &mut Source,
    header: Header,
) -> Result<Kernel, Error> {
    let [header_address, start, load_end, bss_end, entry] = header.addresses.map(u64::from);
    let wrong = |reason: &str| unsupported(source, format!("in its Multiboot header, {reason}"));
    let before = header_address.checked_sub(start).ok_or_else(|| wrong("header_addr is below load_addr"))?;
    let offset =
        header.offset.checked_sub(before).ok_or_else(|| wrong("load_addr lies before the file's start"))?;
    let size = match load_end {
        0 => source.len() - offset, // the header is at or after `offset`
        end => end.checked_sub(start).ok_or_else(|| wrong("load_end_addr is below load_addr"))?,
    };
    let end = match bss_end {
        0 => start + size,
        end if end < start + size => return Err(wrong("bss_end_addr lies in the loaded part")),
        end => end,
    };
    if !(start..end).contains(&entry) {
        return Err(wrong("entry_addr lies outside what is loaded"));
    }
    check_placement(ram, source.path(), "image", start, end, layout::GDT_END)?;
    source.load(memory, "image", offset, size, start)?;
    ram::zero(memory, start + size, end - start - size)?;
    Ok(Kernel {
        protocol: Protocol::Multiboot,
        entry,
        long: false,
        taken: vec![(start, end)],
        initrd_limit: 1 << 32,
        command_line_limit: COMMAND_LINE_LIMIT,
        header: linux::default_header(),
    })
}

/// Writes the information structure with all it points to, and returns its address (section 3.3).
pub(crate) fn write_info<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    map: &[MapEntry],
    request: &Request<'_>,
    initrd: Option<(u64, u64)>,
    taken: &[(u64, u64)],
) -> Result<u64, Error> {
    let mut taken = taken.to_vec();
    taken.extend(initrd.map(|(address, size)| (address, address + size)));
    // By custom the kernel's own name comes first.
    let command_line = format!("{} {}\0", request.kernel.display(), request.command_line);
    let module_name = request.initrd.map_or_else(String::new, |path| format!("{}\0", path.display()));
    let loader_name = "Trapline\0";

    // Information, memory map, module, and the three texts, one behind the other.
    let map_at = INFO_SIZE;
    let module_at = map_at + map.len() * 24;
    let texts_at = module_at + 16;
    let size = texts_at + command_line.len() + module_name.len() + loader_name.len();
    let base = ram::highest_fit(ram, size as u64, 1 << 32, &taken).map_err(|_| Error::NoRam {
        start: layout::HIGH_MEMORY,
        end: layout::HIGH_MEMORY + size as u64,
        what: "Multiboot information",
    })?;
    let address = |at: usize| (base + at as u64) as u32; // below 4 GiB by the fit
    let command_line_at = texts_at;
    let module_name_at = command_line_at + command_line.len();
    let loader_name_at = module_name_at + module_name.len();

    let (lower, upper) = memory_sizes(map);
    let mut info = [0u32; INFO_SIZE / 4];
    info[0] = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    info[1] = lower;
    info[2] = upper;
    info[4] = address(command_line_at);
    info[5] = u32::from(initrd.is_some());
    info[6] = address(module_at);
    info[11] = (map.len() * 24) as u32;
    info[12] = address(map_at);
    info[16] = address(loader_name_at);
    let (start, length) = initrd.unwrap_or((0, 0));
    let module = [start as u32, (start + length) as u32, address(module_name_at), 0];

    let mut bytes = info.map(u32::to_le_bytes).concat();
    for entry in map {
        // The size of an entry does not count itself.
        bytes.extend(20u32.to_le_bytes());
        bytes.extend([entry.base, entry.size].map(u64::to_le_bytes).concat());
        bytes.extend((entry.kind as u32).to_le_bytes());
    }
    bytes.extend(module.map(u32::to_le_bytes).concat());
    for text in [&command_line, &module_name, loader_name] {
        bytes.extend(text.as_bytes());
    }
    ram::write(memory, base, &bytes)?;
    Ok(base)
}

/// KiB of usable memory from 0, and from 1 MiB up to the first hole.
fn memory_sizes(map: &[MapEntry]) -> (u32, u32) {
    let usable_from = |base: u64| {
        let range = map.iter().find(|entry| entry.kind == MapKind::Usable && entry.base == base);
        range.map_or(0, |entry| u32::try_from(entry.size >> 10).unwrap_or(u32::MAX))
    };
    (usable_from(0), usable_from(layout::HIGH_MEMORY))
}
