//! PVH start information: `hvm_start_info` version 1 with its module list and memory map.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemory};

use crate::Error;
use crate::ram::{self, MapEntry, layout};

/// Writes the structures; their address is [`layout::PVH_START_INFO`].
pub(crate) fn write_start_info<M: GuestMemory>(
    memory: &M,
    map: &[MapEntry],
    initrd: Option<(u64, u64)>,
    rsdp: Option<u64>,
) -> Result<(), Error> {
    let room = (layout::ZERO_PAGE - layout::PVH_MEMORY_MAP) as usize / size_of::<hvm_memmap_table_entry>();
    if map.len() > room {
        return Err(Error::TooManyRanges(map.len()));
    }
    let entries: Vec<u8> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.base,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .flat_map(|entry| entry.as_slice().to_vec())
        .collect();
    ram::write(memory, layout::PVH_MEMORY_MAP, &entries)?;

    let module_address = layout::PVH_START_INFO + size_of::<hvm_start_info>() as u64;
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 };
        ram::write(memory, module_address, module.as_slice())?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { module_address } else { 0 },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    ram::write(memory, layout::PVH_START_INFO, info.as_slice())
}
