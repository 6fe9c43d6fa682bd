//! Tables that point to each other, before it is known where they will be: one set, two outputs.
//!
//! A direct boot relocates them to an address. Firmware gets them as files and a script that makes the
//! firmware do the same (the `etc/table-loader` of QEMU, `hw/acpi/bios-linker-loader.c`): ALLOCATE a file,
//! ADD_POINTER to another file, ADD_CHECKSUM.

use std::ops::Range;

use super::{AcpiConfig, OEM_ID, TABLES_FILE, dsdt, tables};

/// Length of an RSDP of revision 2.
pub(super) const RSDP_LEN: usize = 36;
/// Length of the part that revision 0 has, with a checksum of its own.
const RSDP_V1_LEN: usize = 20;
/// The FACS needs 64 bytes.
const ALIGNMENT: usize = 64;
/// Where the FACS is in a relocated set: it is the first table behind the RSDP.
pub(super) const FACS: u64 = ALIGNMENT as u64;
/// Where the header of a table has its checksum.
const CHECKSUM: usize = 9;

/// A field that holds an address: the offset of what it points to, until that is placed.
#[derive(Clone, Copy)]
struct Pointer {
    at: usize,
    size: usize,
}

/// All tables but the RSDP.
pub(super) struct Tables {
    bytes: Vec<u8>,
    pointers: Vec<Pointer>,
    /// Those that have a checksum; it is zero.
    checked: Vec<Range<usize>>,
    rsdt: u32,
    xsdt: u32,
}

impl Tables {
    pub(super) fn new(config: &AcpiConfig) -> Self {
        /// Where the FADT has its pointers: to the FACS, and twice to the DSDT.
        const FADT_POINTERS: [(usize, usize); 3] = [(36, 4), (40, 4), (140, 8)];

        let mut this =
            Self { bytes: Vec::new(), pointers: Vec::new(), checked: Vec::new(), rsdt: 0, xsdt: 0 };
        let facs = this.place(tables::facs());
        let dsdt = this.add(tables::table(*b"DSDT", 2, &dsdt::body(config)), &[]);
        let mut entries = vec![this.add(tables::fadt(config, facs, dsdt), &FADT_POINTERS)];
        entries.push(this.add(tables::table(*b"APIC", 5, &tables::madt(config)), &[]));
        if let Some(address) = config.hpet {
            entries.push(this.add(tables::table(*b"HPET", 1, &tables::hpet(address)), &[]));
        }
        if config.waet {
            entries.push(this.add(tables::table(*b"WAET", 1, &tables::waet()), &[]));
        }
        let narrow: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let wide: Vec<u8> = entries.iter().flat_map(|entry| u64::from(*entry).to_le_bytes()).collect();
        let fields = |size| (0..entries.len()).map(|i| (36 + i * size, size)).collect::<Vec<_>>();
        this.rsdt = this.add(tables::table(*b"RSDT", 1, &narrow), &fields(4));
        this.xsdt = this.add(tables::table(*b"XSDT", 1, &wide), &fields(8));
        this
    }

    /// Appends a table without checksum, and returns its offset.
    fn place(&mut self, table: Vec<u8>) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let offset = self.bytes.len();
        self.bytes.extend(table);
        offset as u32
    }

    /// Appends a table with pointers (offset and size of the field), and returns its offset.
    fn add(&mut self, mut table: Vec<u8>, pointers: &[(usize, usize)]) -> u32 {
        table[CHECKSUM] = 0;
        let len = table.len();
        let offset = self.place(table);
        let start = offset as usize;
        self.checked.push(start..start + len);
        self.pointers.extend(pointers.iter().map(|&(at, size)| Pointer { at: start + at, size }));
        offset
    }

    /// The RSDP, and behind it the tables, for this address.
    pub(super) fn relocated(mut self, base: u32) -> Vec<u8> {
        let start = RSDP_LEN.next_multiple_of(ALIGNMENT);
        let tables = base + start as u32;
        for Pointer { at, size } in self.pointers {
            // The targets are below 4 GiB: the upper half of a wide pointer is zero.
            let field = &mut self.bytes[at..at + size.min(4)];
            let mut offset = [0; 4];
            offset.copy_from_slice(field);
            field.copy_from_slice(&(u32::from_le_bytes(offset) + tables).to_le_bytes());
        }
        for table in self.checked {
            let at = table.start + CHECKSUM;
            self.bytes[at] = checksum(&self.bytes[table]);
        }
        let mut out = rsdp(self.rsdt + tables, self.xsdt + tables).to_vec();
        for (at, len) in RSDP_CHECKSUMS {
            out[at] = checksum(&out[..len]);
        }
        out.resize(start, 0);
        out.extend(self.bytes);
        out
    }

    /// The files for firmware.
    pub(super) fn files(self) -> FirmwareTables {
        let mut script = Script::default();
        script.allocate(RSDP_FILE, 16, ZONE_FSEG);
        script.allocate(TABLES_FILE, ALIGNMENT as u32, ZONE_HIGH);
        for Pointer { at, size } in self.pointers {
            script.add_pointer(TABLES_FILE, at, size);
        }
        for table in self.checked {
            script.add_checksum(TABLES_FILE, table.start + CHECKSUM, table);
        }
        script.add_pointer(RSDP_FILE, RSDP_RSDT, 4);
        script.add_pointer(RSDP_FILE, RSDP_XSDT, 8);
        for (at, len) in RSDP_CHECKSUMS {
            script.add_checksum(RSDP_FILE, at, 0..len);
        }
        let rsdp = rsdp(self.rsdt, self.xsdt).to_vec();
        FirmwareTables { rsdp, tables: self.bytes, loader: script.0 }
    }
}

/// ACPI tables as files for firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareTables {
    /// The file [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// The file [`TABLES_FILE`].
    pub tables: Vec<u8>,
    /// The file [`LOADER_FILE`].
    pub loader: Vec<u8>,
}

/// Name of the file of the root pointer.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// Name of the file of the script that puts the others in their places.
pub const LOADER_FILE: &str = "etc/table-loader";

const RSDP_RSDT: usize = 16;
const RSDP_XSDT: usize = 24;
/// Where the two checksums are and how many bytes they are for; the second one covers the first.
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, RSDP_V1_LEN), (32, RSDP_LEN)];

/// Root pointer, revision 2 (ACPI 6.5, 5.2.5.3), without checksums.
fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_LEN] {
    let mut out = [0; RSDP_LEN];
    out[..8].copy_from_slice(b"RSD PTR ");
    out[9..15].copy_from_slice(&OEM_ID);
    out[15] = 2;
    out[RSDP_RSDT..20].copy_from_slice(&rsdt.to_le_bytes());
    out[20..24].copy_from_slice(&(RSDP_LEN as u32).to_le_bytes());
    out[RSDP_XSDT..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    out
}

/// The byte that makes the sum of `bytes` and itself 0.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Allocate below 4 GiB.
const ZONE_HIGH: u8 = 1;
/// Allocate where legacy systems search for anchors, 0xf_0000 to 0xf_ffff.
const ZONE_FSEG: u8 = 2;

/// Commands for firmware, of 128 bytes each; numbers are little-endian.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, number: u32, fields: &[&[u8]]) {
        const LEN: usize = 128;
        let end = self.0.len() + LEN;
        self.0.extend(number.to_le_bytes());
        self.0.extend(fields.concat());
        self.0.resize(end, 0);
    }

    /// A file's name, NUL-terminated.
    fn name(file: &str) -> [u8; 56] {
        let mut name = [0; 56];
        name[..file.len()].copy_from_slice(file.as_bytes());
        name
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        self.command(1, &[&Self::name(file), &alignment.to_le_bytes(), &[zone]]);
    }

    /// Adds the address of the file of tables to the field of `size` bytes at `at` of `file`.
    fn add_pointer(&mut self, file: &str, at: usize, size: usize) {
        let at = (at as u32).to_le_bytes();
        self.command(2, &[&Self::name(file), &Self::name(TABLES_FILE), &at, &[size as u8]]);
    }

    /// Makes the sum of the bytes of `range`, of which the one at `at` is zero, zero by that byte.
    fn add_checksum(&mut self, file: &str, at: usize, range: Range<usize>) {
        let numbers = [at, range.start, range.len()].map(|n| (n as u32).to_le_bytes()).concat();
        self.command(3, &[&Self::name(file), &numbers]);
    }
}
