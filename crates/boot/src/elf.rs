//! ELF executables: program headers, and the note that names a PVH entry.

use vm_memory::GuestMemory;

use crate::ram::{self, layout};
use crate::source::Source;
use crate::{Error, Kernel, Protocol, RamRange, check_placement, linux};

const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Owner "Xen", type 18: physical address of the 32-bit PVH entry.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Notes are read whole; a vmlinux has a few hundred bytes of them.
const NOTES_LIMIT: u64 = 64 << 10;

/// The fields of the ELF header that matter here.
struct Header {
    wide: bool,
    entry: u64,
    program_headers: u64,
    entry_size: u64,
    count: u64,
}

/// The fields of a program header that matter here.
#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    virtual_address: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// Loads all segments at their physical addresses.
pub(crate) fn load<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    source: &mut Source,
    wanted: Option<Protocol>,
) -> Result<Kernel, Error> {
    let header = read_header(source)?;
    let segments = read_segments(source, &header)?;
    let loads: Vec<Segment> = segments
        .iter()
        .copied()
        .filter(|segment| segment.kind == PT_LOAD && segment.memory_size > 0)
        .collect();
    // Only Multiboot has its boot data elsewhere.
    let first = match wanted {
        Some(Protocol::Multiboot) => layout::GDT_END,
        _ => layout::LOW_BOOT_DATA_END,
    };
    check_segments(ram, source, &loads, first)?;
    let pvh = find_pvh_entry(source, &segments)?;
    let protocol = choose(source, wanted, pvh.is_some())?;
    let entry = match pvh {
        Some(entry) if protocol == Protocol::Pvh => {
            physical_entry(source, &loads, entry.into(), "PVH entry")?
        }
        _ => physical_entry(source, &loads, header.entry, "entry")?,
    };
    for segment in &loads {
        source.load(memory, "segment", segment.offset, segment.file_size, segment.address)?;
        ram::zero(memory, segment.address + segment.file_size, segment.memory_size - segment.file_size)?;
    }
    Ok(Kernel {
        protocol,
        entry,
        long: header.wide,
        taken: loads.iter().map(|segment| (segment.address, segment.address + segment.memory_size)).collect(),
        initrd_limit: 1 << 32,
        command_line_limit: linux::COMMAND_LINE_LIMIT,
        header: linux::default_header(),
    })
}

fn unsupported(source: &Source, reason: impl Into<String>) -> Error {
    Error::Unsupported { path: source.path().to_owned(), reason: reason.into() }
}

fn read_header(source: &Source) -> Result<Header, Error> {
    let mut ident = [0; 20];
    source.read("ELF header", 0, &mut ident)?;
    if ident[5] != 1 {
        return Err(unsupported(source, "it is a big-endian ELF file, x86 is little-endian"));
    }
    let wide = match (ident[4], le(&ident, 18, 2) as u16) {
        (1, EM_386) => false,
        (2, EM_X86_64) => true,
        (class, machine) => {
            let reason = format!(
                "ELF class {class} for machine {machine}, expected class 1 for machine 3 (i386) or class 2 for \
                 machine 62 (x86-64)"
            );
            return Err(unsupported(source, reason));
        }
    };
    if le(&ident, 16, 2) as u16 != ET_EXEC {
        return Err(unsupported(
            source,
            "it is an ELF object or shared object, expected an executable (ET_EXEC)",
        ));
    }
    let mut raw = [0; 64];
    let size = if wide { 64 } else { 52 };
    source.read("ELF header", 0, &mut raw[..size])?;
    let header = match wide {
        true => Header {
            wide,
            entry: le(&raw, 24, 8),
            program_headers: le(&raw, 32, 8),
            entry_size: le(&raw, 54, 2),
            count: le(&raw, 56, 2),
        },
        false => Header {
            wide,
            entry: le(&raw, 24, 4),
            program_headers: le(&raw, 28, 4),
            entry_size: le(&raw, 42, 2),
            count: le(&raw, 44, 2),
        },
    };
    let expected = if wide { 56 } else { 32 };
    if header.entry_size != expected {
        let reason = format!("ELF program headers of {} bytes, expected {expected}", header.entry_size);
        return Err(unsupported(source, reason));
    }
    Ok(header)
}

fn read_segments(source: &Source, header: &Header) -> Result<Vec<Segment>, Error> {
    let size = header.entry_size * header.count; // at most 65,535 times 56
    source.check("program header table", header.program_headers, size)?;
    let mut raw = vec![0; size as usize];
    source.read("program header table", header.program_headers, &mut raw)?;
    let wide = |raw: &[u8]| Segment {
        kind: le(raw, 0, 4) as u32,
        offset: le(raw, 8, 8),
        virtual_address: le(raw, 16, 8),
        address: le(raw, 24, 8),
        file_size: le(raw, 32, 8),
        memory_size: le(raw, 40, 8),
        alignment: le(raw, 48, 8),
    };
    let narrow = |raw: &[u8]| Segment {
        kind: le(raw, 0, 4) as u32,
        offset: le(raw, 4, 4),
        virtual_address: le(raw, 8, 4),
        address: le(raw, 12, 4),
        file_size: le(raw, 16, 4),
        memory_size: le(raw, 20, 4),
        alignment: le(raw, 28, 4),
    };
    Ok(raw
        .chunks_exact(header.entry_size as usize)
        .map(|raw| if header.wide { wide(raw) } else { narrow(raw) })
        .collect())
}

/// Every segment must lie in the file, in RAM, and beside the others.
fn check_segments(ram: &[RamRange], source: &Source, loads: &[Segment], first: u64) -> Result<(), Error> {
    if loads.is_empty() {
        return Err(unsupported(source, "it has no loadable segment"));
    }
    for segment in loads {
        if segment.file_size > segment.memory_size {
            return Err(unsupported(source, "a segment is larger in the file than in memory"));
        }
        source.check("segment", segment.offset, segment.file_size)?;
        let end = segment.address.saturating_add(segment.memory_size);
        check_placement(ram, source.path(), "segment", segment.address, end, first)?;
    }
    // Beside being wrong, overlaps would let a small file ask for any amount of copying.
    let mut sorted: Vec<(u64, u64)> = loads.iter().map(|s| (s.address, s.address + s.memory_size)).collect();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(unsupported(source, "its segments overlap in physical memory"));
    }
    Ok(())
}

/// The physical address of an entry given as physical or as virtual address.
fn physical_entry(source: &Source, loads: &[Segment], entry: u64, what: &str) -> Result<u64, Error> {
    let within =
        |start: u64, segment: &Segment| entry.checked_sub(start).filter(|&at| at < segment.memory_size);
    if loads.iter().any(|segment| within(segment.address, segment).is_some()) {
        return Ok(entry);
    }
    loads
        .iter()
        .find_map(|segment| within(segment.virtual_address, segment).map(|at| segment.address + at))
        .ok_or_else(|| {
            unsupported(source, format!("its {what} {entry:#x} lies outside its loadable segments"))
        })
}

fn choose(source: &Source, wanted: Option<Protocol>, has_pvh: bool) -> Result<Protocol, Error> {
    match wanted {
        None if has_pvh => Ok(Protocol::Pvh),
        Some(Protocol::Pvh) if has_pvh => Ok(Protocol::Pvh),
        None | Some(Protocol::Elf) => Ok(Protocol::Elf),
        // The caller has seen the header.
        Some(Protocol::Multiboot) => Ok(Protocol::Multiboot),
        Some(other) => Err(Error::NoSuchEntry {
            path: source.path().to_owned(),
            format: "ELF",
            wanted: other.name(),
            offered: if has_pvh { "PVH, plain ELF" } else { "plain ELF" },
        }),
    }
}

/// Looks for the PVH entry in all note segments.
fn find_pvh_entry(source: &Source, segments: &[Segment]) -> Result<Option<u32>, Error> {
    let mut budget = NOTES_LIMIT;
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        if segment.file_size > budget {
            return Err(unsupported(source, format!("it has more than {} KiB of notes", NOTES_LIMIT >> 10)));
        }
        budget -= segment.file_size;
        let mut notes = vec![0; segment.file_size as usize];
        source.read("note segment", segment.offset, &mut notes)?;
        let alignment = if segment.alignment == 8 { 8 } else { 4 };
        if let Some(entry) = pvh_note(&notes, alignment) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Walks notes: name size, descriptor size, type, then name and descriptor, each padded.
fn pvh_note(notes: &[u8], alignment: usize) -> Option<u32> {
    let mut at = 0usize;
    loop {
        let raw = notes.get(at..at.checked_add(12)?)?;
        let (name_size, size) = (le(raw, 0, 4) as usize, le(raw, 4, 4) as usize);
        let name_at = at + 12;
        let name = notes.get(name_at..name_at.checked_add(name_size)?)?;
        let data_at = (name_at + name_size).next_multiple_of(alignment);
        let data = notes.get(data_at..data_at.checked_add(size)?)?;
        if name == b"Xen\0" && le(raw, 8, 4) as u32 == XEN_ELFNOTE_PHYS32_ENTRY && size >= 4 {
            return Some(le(data, 0, 4) as u32);
        }
        at = (data_at + size).next_multiple_of(alignment);
    }
}

/// Little-endian number of `size` bytes at `at`; callers have checked the length.
fn le(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes.iter().skip(at).take(size).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [name.len() as u32, data.len() as u32, kind] {
            out.extend(word.to_le_bytes());
        }
        for part in [name, data] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn the_pvh_note_is_found_behind_others() {
        let notes = [
            note(b"GNU\0", 3, &[1; 20]),
            note(b"Xen\0", 6, b"linux\0"),
            note(b"Xen\0", 18, &[0x10, 0, 0, 1]),
        ]
        .concat();
        assert_eq!(pvh_note(&notes, 4), Some(0x0100_0010));
        assert_eq!(pvh_note(&notes[..notes.len() - 1], 4), None);
        assert_eq!(pvh_note(&[], 4), None);
    }
}
