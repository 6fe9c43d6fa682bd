//! bzImage: real-mode setup code with a header, then the protected-mode kernel.

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64};
use vm_memory::{ByteValued, GuestMemory};

use crate::linux::SetupHeader;
use crate::ram::layout;
use crate::source::Source;
use crate::{Error, Kernel, Protocol, RamRange, check_placement};

/// Offset of the setup header in the file, and in the zero page.
const HEADER_OFFSET: u64 = 0x1f1;
/// The 64-bit entry lies this far into the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// 2.04: `syssize` is 32 bits wide; what comes before is too old to be worth a special case.
const OLDEST_VERSION: u16 = 0x0204;

/// Loads the protected-mode kernel where it wants to run.
pub(crate) fn load<M: GuestMemory>(
    memory: &M,
    ram: &[RamRange],
    source: &mut Source,
    wanted: Option<Protocol>,
) -> Result<Kernel, Error> {
    let header = read_header(source)?;
    let protocol = choose(source, &header, wanted)?;
    let setup_size = setup_size(&header);
    // Units of 16 bytes; kernels count up to the end of the last unit, which the file need not fill.
    let promised = (u64::from(header.syssize) * 16).saturating_sub(15);
    source.check("protected-mode kernel", setup_size, promised.max(ENTRY_64 + 1))?;
    let size = source.len() - setup_size;

    let address = place(ram, source, &header, size)?;
    source.load(memory, "protected-mode kernel", setup_size, size, address)?;

    let version = header.version;
    Ok(Kernel {
        protocol,
        entry: if protocol == Protocol::Linux64 { address + ENTRY_64 } else { address },
        long: protocol == Protocol::Linux64,
        taken: vec![(address, address + working_size(&header, size))],
        initrd_limit: u64::from(header.initrd_addr_max) + 1,
        command_line_limit: if version >= 0x0206 { header.cmdline_size as usize } else { 255 },
        header: SetupHeader { code32_start: address as u32, ..header },
    })
}

/// Length of the file's real-mode part in bytes.
pub(crate) fn setup_size(header: &SetupHeader) -> u64 {
    match header.setup_sects {
        0 => 5 * 512,
        sectors => (u64::from(sectors) + 1) * 512,
    }
}

/// Reads the part of the setup header that this kernel has; the rest is 0.
pub(crate) fn read_header(source: &Source) -> Result<SetupHeader, Error> {
    // A short jump over the header tells where it ends.
    let mut jump = [0; 2];
    source.read("setup header", 0x200, &mut jump)?;
    let end = 0x202 + u64::from(jump[1]);
    let mut header = SetupHeader::default();
    let bytes = header.as_mut_slice();
    let size = (end.saturating_sub(HEADER_OFFSET) as usize).min(bytes.len());
    source.read("setup header", HEADER_OFFSET, &mut bytes[..size])?;

    let fail = |reason: String| Err(Error::Unsupported { path: source.path().to_owned(), reason });
    let (version, loadflags) = (header.version, header.loadflags);
    if version < OLDEST_VERSION {
        return fail(format!(
            "boot protocol {}.{:02}, at least 2.04 is needed",
            version >> 8,
            version & 0xff
        ));
    }
    if loadflags & LOADED_HIGH == 0 {
        return fail("it is a zimage, loaded below 1 MiB; a bzimage is needed".into());
    }
    Ok(header)
}

/// The protocol to use.
fn choose(source: &Source, header: &SetupHeader, wanted: Option<Protocol>) -> Result<Protocol, Error> {
    let has_64 = header.version >= 0x020c && header.xloadflags & XLF_KERNEL_64 != 0;
    match wanted {
        None if has_64 => Ok(Protocol::Linux64),
        None | Some(Protocol::Linux32) => Ok(Protocol::Linux32),
        Some(Protocol::Linux64) if has_64 => Ok(Protocol::Linux64),
        Some(other) => Err(Error::NoSuchEntry {
            path: source.path().to_owned(),
            format: "bzImage",
            wanted: other.name(),
            offered: if has_64 { "64-bit Linux, 32-bit Linux" } else { "32-bit Linux" },
        }),
    }
}

/// Memory from its load address on that the kernel needs free: itself, and room to unpack.
fn working_size(header: &SetupHeader, size: u64) -> u64 {
    if header.version >= 0x020a { size.max(u64::from(header.init_size)) } else { size }
}

/// The preferred address if there is RAM, else 1 MiB (rounded up to the kernel's alignment) if the kernel
/// can run there.
fn place(ram: &[RamRange], source: &Source, header: &SetupHeader, size: u64) -> Result<u64, Error> {
    let working = working_size(header, size);
    let relocatable = header.version >= 0x0205 && header.relocatable_kernel != 0;
    let preferred = if header.version >= 0x020a { header.pref_address } else { layout::HIGH_MEMORY };
    let check = |start: u64| {
        let end = start.saturating_add(working);
        if end > 1 << 32 {
            let reason = format!("it wants to be loaded at {start:#x}, above 4 GiB");
            return Err(Error::Unsupported { path: source.path().to_owned(), reason });
        }
        check_placement(
            ram,
            source.path(),
            "kernel and room to unpack",
            start,
            end,
            layout::LOW_BOOT_DATA_END,
        )
        .map(|()| start)
    };
    let first = check(preferred);
    let alignment = u64::from(header.kernel_alignment);
    if first.is_err() && relocatable && alignment.is_power_of_two() {
        let lowest = layout::HIGH_MEMORY.next_multiple_of(alignment);
        return check(lowest).or(first);
    }
    first
}
