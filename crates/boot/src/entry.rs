//! With which registers a loaded kernel starts.

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use crate::Error;
use crate::ram::{self, layout};

/// Processor mode at the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// 32-bit protected mode, flat segments, paging off.
    Protected32,
    /// 64-bit mode, the low 4 GiB mapped one to one.
    Long64,
}

/// A segment register with its hidden part, in the terms of the SDM's segment descriptor (vol. 3, 3.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes (already scaled by the granularity).
    pub limit: u32,
    /// Type field, 4 bits.
    pub type_: u8,
    /// S: code or data (true) or system (false).
    pub code_or_data: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit default size.
    pub default_big: bool,
    /// G: limit counts 4 KiB units.
    pub granularity: bool,
}

impl Segment {
    /// The 8-byte descriptor: present, DPL 0.
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.granularity { self.limit >> 12 } else { self.limit });
        let access = u64::from(self.type_ & 0xf) | u64::from(self.code_or_data) << 4 | 1 << 7;
        let flags =
            u64::from(self.long) << 1 | u64::from(self.default_big) << 2 | u64::from(self.granularity) << 3;
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// The state of the boot processor at its first instruction. Registers not named here are zero, RFLAGS is 2
/// (interrupts off), the interrupt descriptor table is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryPoint {
    /// Processor mode; the control registers below agree with it.
    pub mode: Mode,
    /// First instruction.
    pub rip: u64,
    /// Multiboot: the loader's magic number; otherwise 0.
    pub rax: u64,
    /// PVH: physical address of `hvm_start_info`; Multiboot: of the information structure; otherwise 0.
    pub rbx: u64,
    /// Linux: physical address of the zero page; otherwise 0.
    pub rsi: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3: root of the identity page tables, or 0.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// GDTR; the table is in guest memory.
    pub gdt: DescriptorTable,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Execute/read, accessed.
const TYPE_CODE: u8 = 0xb;
/// Read/write, accessed.
const TYPE_DATA: u8 = 0x3;
/// Busy 32-bit TSS; also the busy 64-bit TSS.
const TYPE_TSS: u8 = 0xb;

impl EntryPoint {
    /// 32-bit protected mode, as the Linux 32-bit boot protocol, PVH and Multiboot ask for.
    pub fn protected32(rip: u64, rsi: u64, rbx: u64) -> Self {
        let (cr0, efer) = (CR0_PE | CR0_ET, 0);
        Self::new(Mode::Protected32, rip, rsi, rbx, cr0, 0, 0, efer)
    }

    /// 64-bit mode on identity page tables, as the Linux 64-bit boot protocol asks for.
    pub fn long64(rip: u64, rsi: u64) -> Self {
        let cr0 = CR0_PE | CR0_ET | CR0_PG;
        Self::new(Mode::Long64, rip, rsi, 0, cr0, layout::PAGE_TABLES, CR4_PAE, EFER_LME | EFER_LMA)
    }

    #[allow(clippy::too_many_arguments)]
    fn new(mode: Mode, rip: u64, rsi: u64, rbx: u64, cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Self {
        let long = mode == Mode::Long64;
        let flat = Segment {
            selector: 0x10,
            base: 0,
            limit: u32::MAX,
            type_: TYPE_CODE,
            code_or_data: true,
            long,
            default_big: !long,
            granularity: true,
        };
        Self {
            mode,
            rip,
            rax: 0,
            rbx,
            rsi,
            cr0,
            cr3,
            cr4,
            efer,
            gdt: DescriptorTable { base: layout::GDT, limit: 6 * 8 - 1 },
            code: flat,
            data: Segment { selector: 0x18, type_: TYPE_DATA, long: false, default_big: true, ..flat },
            task: Segment {
                selector: 0x20,
                limit: 0x67,
                type_: TYPE_TSS,
                code_or_data: false,
                long: false,
                default_big: false,
                granularity: false,
                ..flat
            },
        }
    }

    /// Puts the descriptor table, and in 64-bit mode the page tables, into guest memory.
    pub(crate) fn write_tables<M: GuestMemory>(&self, memory: &M) -> Result<(), Error> {
        // A 64-bit TSS descriptor takes two slots, the upper half of its base is 0.
        let gdt = [0, 0, self.code.descriptor(), self.data.descriptor(), self.task.descriptor(), 0];
        ram::write(memory, self.gdt.base, &gdt.map(u64::to_le_bytes).concat())?;
        if self.mode == Mode::Long64 {
            write_identity_map(memory, self.cr3)?;
        }
        Ok(())
    }
}

/// Maps the low 4 GiB one to one with 2 MiB pages: a PML4, a PDPT and four page directories at `root`.
fn write_identity_map<M: GuestMemory>(memory: &M, root: u64) -> Result<(), Error> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const PAGE_SIZE_BIT: u64 = 1 << 7;
    let pdpt = root + 0x1000;
    let directories = root + 0x2000;
    let mut tables = vec![0u8; 6 * 0x1000];
    let mut put = |address: u64, entry: u64| {
        let at = (address - root) as usize;
        tables[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(root, pdpt | PRESENT_WRITABLE);
    for gib in 0..4 {
        put(pdpt + gib * 8, (directories + gib * 0x1000) | PRESENT_WRITABLE);
    }
    for page in 0..4 * 512 {
        put(directories + page * 8, page << 21 | PRESENT_WRITABLE | PAGE_SIZE_BIT);
    }
    ram::write(memory, root, &tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    type Memory = vm_memory::GuestMemoryMmap<()>;

    #[test]
    fn descriptors_are_the_well_known_flat_ones() {
        let entry = EntryPoint::protected32(0x10_0000, 0, 0);
        assert_eq!(entry.code.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(entry.data.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(entry.task.descriptor(), 0x0000_8b00_0000_0067);
        assert_eq!(EntryPoint::long64(0, 0).code.descriptor(), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn page_tables_map_the_low_4_gib_one_to_one() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let entry = EntryPoint::long64(0x20_0000, 0x8000);
        entry.write_tables(&memory).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        for address in [0u64, 0x1f_ffff, 0x20_0000, 0x4000_0000, 0xfee0_0000, 0xffff_ffff] {
            let table = |entry: u64| entry & !0xfff;
            let pml4e = read(entry.cr3 + (address >> 39) * 8);
            let pdpte = read(table(pml4e) + (address >> 30 & 511) * 8);
            let pde = read(table(pdpte) + (address >> 21 & 511) * 8);
            assert_eq!(pde & 0x83, 0x83);
            assert_eq!(table(pde) + (address & 0x1f_ffff), address);
        }
        assert_eq!(read(entry.cr3 + 8), 0);
        assert_eq!(read(entry.gdt.base + 0x10), entry.code.descriptor());
    }
}
