//! Where guest RAM is, the memory map told to the guest, and the places boot data goes.

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::Error;

/// Fixed places of boot data below 1 MiB. All of it may be reused by the guest once it has read it.
pub mod layout {
    /// Global descriptor table of [`EntryPoint`](crate::EntryPoint).
    pub const GDT: u64 = 0x500;
    /// First byte after the descriptor table. A Multiboot kernel may occupy all from here.
    pub const GDT_END: u64 = 0x600;
    /// PVH `hvm_start_info`, followed by its one module entry.
    pub const PVH_START_INFO: u64 = 0x6000;
    /// PVH memory map, up to one page.
    pub const PVH_MEMORY_MAP: u64 = 0x6100;
    /// Linux zero page (`struct boot_params`), one page.
    pub const ZERO_PAGE: u64 = 0x8000;
    /// Identity page tables: PML4, PDPT and four page directories, six pages.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Kernel command line, up to 64 KiB with its NUL.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// First byte that a kernel segment below 640 KiB may occupy.
    pub const LOW_BOOT_DATA_END: u64 = 0x3_0000;
    /// Last KiB of conventional memory: the extended BIOS data area, searched for an MP table.
    pub const EBDA: u64 = 0x9_fc00;
    /// BIOS area searched for the ACPI RSDP; the tables lie here.
    pub const ACPI: u64 = 0xe_0000;
    /// BIOS area searched for SMBIOS: end of [`ACPI`]; the tables lie here.
    pub const SMBIOS: u64 = 0xf_0000;
    /// First byte of high memory: end of [`SMBIOS`], where kernels start.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
}

/// A range of guest-physical addresses backed by RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRange {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl RamRange {
    /// First byte after the range.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// Kind of a [`MapEntry`], with the numbers of ACPI's address range types (ACPI 6.5, table 15.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum MapKind {
    /// Free for the guest.
    Usable = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One line of the memory map ("e820").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
    /// What the guest may do with it.
    pub kind: MapKind,
}

/// The memory map of a PC with this RAM: usable, but for the range from the extended BIOS data area to
/// 1 MiB, where tables and firmware live. Overlapping and touching ranges are merged.
pub fn memory_map(ram: &[RamRange]) -> Vec<MapEntry> {
    let hole = RamRange { base: layout::EBDA, size: layout::HIGH_MEMORY - layout::EBDA };
    let mut map = vec![MapEntry { base: hole.base, size: hole.size, kind: MapKind::Reserved }];
    for range in merged(ram) {
        for (start, end) in
            [(range.base, range.end().min(hole.base)), (range.base.max(hole.end()), range.end())]
        {
            if start < end {
                map.push(MapEntry { base: start, size: end - start, kind: MapKind::Usable });
            }
        }
    }
    map.sort_by_key(|entry| entry.base);
    map
}

/// `ram` in ascending order, with no two ranges overlapping or touching.
pub(crate) fn merged(ram: &[RamRange]) -> Vec<RamRange> {
    let mut sorted: Vec<RamRange> = ram.iter().copied().filter(|range| range.size > 0).collect();
    sorted.sort_by_key(|range| range.base);
    let mut out: Vec<RamRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match out.last_mut() {
            Some(last) if range.base <= last.end() => last.size = last.end().max(range.end()) - last.base,
            _ => out.push(range),
        }
    }
    out
}

/// Whether all of `start..end` is RAM.
pub(crate) fn is_ram(ram: &[RamRange], start: u64, end: u64) -> bool {
    start <= end && merged(ram).iter().any(|range| range.base <= start && end <= range.end())
}

/// The highest 4 KiB-aligned address at or above 1 MiB where `size` bytes fit below `limit` without
/// touching `taken`; or, if there is none, the size of the largest hole.
pub(crate) fn highest_fit(ram: &[RamRange], size: u64, limit: u64, taken: &[(u64, u64)]) -> Result<u64, u64> {
    let mut largest = 0;
    for range in merged(ram).iter().rev() {
        let bottom = align_up(range.base.max(layout::HIGH_MEMORY));
        let mut top = range.end().min(limit);
        // Each turn looks at the hole under `top`, then goes below the taken range that bounds it.
        while bottom < top {
            let below = taken.iter().filter(|(start, end)| *start < top && *end > bottom).max_by_key(|t| t.1);
            let floor = below.map_or(bottom, |(_, end)| align_up((*end).min(top)));
            if floor <= top {
                if top - floor >= size {
                    return Ok(((top - size) & !0xfff).max(floor));
                }
                largest = largest.max(top - floor);
            }
            match below {
                Some((start, _)) => top = *start,
                None => break,
            }
        }
    }
    Err(largest)
}

/// Rounds up to a page.
fn align_up(address: u64) -> u64 {
    address.saturating_add(0xfff) & !0xfff
}

/// Writes boot data, which must lie in RAM.
pub(crate) fn write<M: GuestMemory>(memory: &M, address: u64, data: &[u8]) -> Result<(), Error> {
    memory.write_slice(data, GuestAddress(address)).map_err(|source| Error::Memory { address, source })
}

/// Clears guest memory, which need not be fresh.
pub(crate) fn zero<M: GuestMemory>(memory: &M, address: u64, size: u64) -> Result<(), Error> {
    let zeros = [0; 4096];
    let end = address + size;
    let mut at = address;
    while at < end {
        let count = (end - at).min(zeros.len() as u64) as usize;
        memory
            .write_slice(&zeros[..count], GuestAddress(at))
            .map_err(|source| Error::Memory { address: at, source })?;
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram(list: &[(u64, u64)]) -> Vec<RamRange> {
        list.iter().map(|&(base, size)| RamRange { base, size }).collect()
    }

    #[test]
    fn the_map_reserves_the_bios_area_and_keeps_the_pci_hole() {
        let map = memory_map(&ram(&[(0, 3 << 30), (4 << 30, 1 << 30)]));
        let usable = |base, size| MapEntry { base, size, kind: MapKind::Usable };
        assert_eq!(
            map,
            [
                usable(0, 0x9_fc00),
                MapEntry { base: 0x9_fc00, size: 0x6_0400, kind: MapKind::Reserved },
                usable(MIB, (3 << 30) - MIB),
                usable(4 << 30, 1 << 30),
            ]
        );
    }

    #[test]
    fn touching_ranges_count_as_one() {
        let ram = ram(&[(MIB, MIB), (0, MIB), (MIB / 2, MIB)]);
        assert_eq!(merged(&ram), [RamRange { base: 0, size: 2 * MIB }]);
        assert!(is_ram(&ram, 0, 2 * MIB));
        assert!(!is_ram(&ram, 0, 2 * MIB + 1));
    }

    #[test]
    fn an_initrd_goes_below_the_limit_and_beside_the_kernel() {
        let ram = ram(&[(0, 128 * MIB)]);
        assert_eq!(highest_fit(&ram, MIB, u64::MAX, &[]), Ok(127 * MIB));
        assert_eq!(highest_fit(&ram, MIB, 64 * MIB, &[]), Ok(63 * MIB));
        assert_eq!(highest_fit(&ram, MIB, u64::MAX, &[(100 * MIB, 128 * MIB)]), Ok(99 * MIB));
        assert_eq!(highest_fit(&ram, 1, u64::MAX, &[]), Ok(128 * MIB - 4096));
        assert_eq!(highest_fit(&ram, 90 * MIB, u64::MAX, &[(16 * MIB, 64 * MIB)]), Err(64 * MIB));
        assert_eq!(highest_fit(&ram, u64::MAX, u64::MAX, &[]), Err(127 * MIB));
    }
}
