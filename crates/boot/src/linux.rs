//! The Linux zero page: `struct boot_params` of the Linux x86 boot protocol.

use linux_loader::loader::bootparam::{self, boot_e820_entry, boot_params};
use vm_memory::{ByteValued, GuestMemory};

use crate::ram::{self, MapEntry, layout};
use crate::{Error, Request};

pub(crate) type SetupHeader = bootparam::setup_header;

/// "HdrS".
pub(crate) const HEADER_MAGIC: u32 = 0x5372_6448;
/// "Undefined" boot loader type.
const LOADER_UNDEFINED: u8 = 0xff;
/// Boot flag at the end of the boot sector.
const BOOT_FLAG: u16 = 0xaa55;

/// Longest command line of an x86 kernel that has no header to tell: `COMMAND_LINE_SIZE` with its NUL.
pub(crate) const COMMAND_LINE_LIMIT: usize = 2047;

/// The header for a kernel that has none, as an ELF vmlinux.
pub(crate) fn default_header() -> SetupHeader {
    SetupHeader {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: 0x020c,
        loadflags: bootparam::LOADED_HIGH,
        kernel_alignment: 0x100_0000,
        cmdline_size: COMMAND_LINE_LIMIT as u32,
        ..Default::default()
    }
}

/// Fills in what a boot loader has to, and writes the zero page.
pub(crate) fn write_zero_page<M: GuestMemory>(
    memory: &M,
    map: &[MapEntry],
    mut header: SetupHeader,
    initrd: Option<(u64, u64)>,
    request: &Request,
) -> Result<(), Error> {
    let mut params = boot_params::default();
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = layout::COMMAND_LINE as u32;
    // A chain of setup_data in the file would be a list of pointers into guest memory.
    header.setup_data = 0;
    let (address, size) = initrd.unwrap_or((0, 0));
    header.ramdisk_image = address as u32;
    header.ramdisk_size = size as u32;
    params.ext_ramdisk_image = (address >> 32) as u32;
    params.ext_ramdisk_size = (size >> 32) as u32;
    params.acpi_rsdp_addr = request.rsdp.unwrap_or(0);
    if request.text_screen {
        let screen = &mut params.screen_info;
        (screen.orig_video_mode, screen.orig_video_isVGA) = (3, 1);
        (screen.orig_video_cols, screen.orig_video_lines) = (80, 25);
        (screen.orig_video_points, screen.orig_video_ega_bx) = (16, 3);
    }
    params.hdr = header;

    let mut table = params.e820_table;
    if map.len() > table.len() {
        return Err(Error::TooManyRanges(map.len()));
    }
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: entry.base, size: entry.size, r#type: entry.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    ram::write(memory, layout::ZERO_PAGE, params.as_slice())
}
