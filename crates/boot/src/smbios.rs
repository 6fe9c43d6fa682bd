//! SMBIOS tables (DMTF DSP0134 2.8 and 3.0): what `dmidecode` shows, and operating systems show as model and
//! serial number.
//!
//! Types 0 (firmware), 1 (system), 3 (chassis), 4 (processor, one a socket), 16 (memory array), 17 (memory
//! device, of 16 GiB each), 19 (memory address range), 32 (boot status) and 127 (end). [`write()`] puts
//! them where an operating system searches; [`firmware`] makes the files that SeaBIOS and OVMF look for.
//!
//! Left out: base board, caches, slots, connectors, OEM strings.
//!
//! ```
//! use trapline_boot::{RamRange, smbios::{self, SmbiosConfig}};
//!
//! let ram = vec![RamRange { base: 0, size: 512 << 20 }];
//! let config = SmbiosConfig { ram, ..SmbiosConfig::default() };
//! assert!(smbios::build(&config, 0xf_0000)?.starts_with(b"_SM_"));
//! # Ok::<(), trapline_boot::Error>(())
//! ```

use vm_memory::GuestMemory;

use crate::Error;
use crate::acpi::checksum;
use crate::ram::{self, RamRange, layout};

/// Name of the file of the entry point for firmware.
pub const ANCHOR_FILE: &str = "etc/smbios/smbios-anchor";
/// Name of the file of the tables for firmware.
pub const TABLES_FILE: &str = "etc/smbios/smbios-tables";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Size of a memory device, unless that makes more than [`MAX_DIMMS`].
const DIMM: u64 = 16 << 30;
const MAX_DIMMS: u64 = 1024;
/// "No such handle", and "not provided".
const NO_HANDLE: u16 = 0xfffe;

/// Which form the entry point has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Version {
    /// 2.8, with the 32-bit entry point `_SM_`: at most 64 KiB of tables, below 4 GiB.
    #[default]
    V2_8,
    /// 3.0, with the 64-bit entry point `_SM3_`. SeaBIOS 1.16 does not take it.
    V3_0,
}

/// What the tables tell. Empty strings are shown as not specified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosConfig {
    /// Form of the entry point.
    pub version: Version,
    /// Who made the firmware.
    pub firmware_vendor: String,
    /// The firmware's version.
    pub firmware_version: String,
    /// The firmware's date, MM/DD/YYYY.
    pub firmware_date: String,
    /// The firmware is UEFI.
    pub uefi: bool,
    /// Who made the machine.
    pub manufacturer: String,
    /// What it is called.
    pub product: String,
    /// Its version.
    pub system_version: String,
    /// Its serial number.
    pub serial: String,
    /// Its UUID, in the order of its textual form; `None`: all zeroes, not present.
    pub uuid: Option<[u8; 16]>,
    /// Processors.
    pub processors: Processors,
    /// RAM as the guest sees it.
    pub ram: Vec<RamRange>,
}

/// Processors, all alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processors {
    /// Sockets, each with a processor in it, 1 to 255.
    pub sockets: u16,
    /// Cores of each.
    pub cores: u16,
    /// Threads of each, over all its cores.
    pub threads: u16,
    /// Who made them.
    pub manufacturer: String,
    /// Brand.
    pub version: String,
    /// EAX of CPUID leaf 1: family, model and stepping.
    pub signature: u32,
    /// EDX of CPUID leaf 1: features.
    pub features: u32,
    /// MHz.
    pub speed: u16,
}

impl Default for SmbiosConfig {
    /// A machine called "Trapline PC" with one processor and no memory.
    fn default() -> Self {
        let text = |text: &str| text.to_owned();
        Self {
            version: Version::default(),
            firmware_vendor: text("Trapline"),
            firmware_version: text(env!("CARGO_PKG_VERSION")),
            firmware_date: text("01/01/2026"),
            uefi: false,
            manufacturer: text("Trapline"),
            product: text("Trapline PC"),
            system_version: text(env!("CARGO_PKG_VERSION")),
            serial: String::new(),
            uuid: None,
            processors: Processors {
                sockets: 1,
                cores: 1,
                threads: 1,
                manufacturer: text("Trapline"),
                version: text("virtual"),
                signature: 0,
                features: 0,
                speed: 1000,
            },
            ram: Vec::new(),
        }
    }
}

/// SMBIOS tables as files for firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareSmbios {
    /// The file [`ANCHOR_FILE`]: the entry point, without address and checksums.
    pub anchor: Vec<u8>,
    /// The file [`TABLES_FILE`].
    pub tables: Vec<u8>,
}

/// Writes entry point and tables to [`layout::SMBIOS`] and returns that address.
///
/// # Errors
/// If the description is not possible ([`Error::Tables`]) or there is no RAM at that place.
pub fn write<M: GuestMemory>(memory: &M, config: &SmbiosConfig) -> Result<u64, Error> {
    let tables = build(config, layout::SMBIOS)?;
    let room = layout::HIGH_MEMORY - layout::SMBIOS;
    if tables.len() as u64 > room {
        return Err(Error::Tables(format!(
            "{} bytes of smbios tables, there is room for {room}",
            tables.len()
        )));
    }
    ram::write(memory, layout::SMBIOS, &tables)?;
    Ok(layout::SMBIOS)
}

/// The entry point for `address`, a multiple of 16, and the tables 32 bytes further.
///
/// # Errors
/// [`Error::Tables`] names what cannot be described.
pub fn build(config: &SmbiosConfig, address: u64) -> Result<Vec<u8>, Error> {
    const DISTANCE: usize = 32;
    let tables = Tables::new(config)?;
    let end = address.checked_add((DISTANCE + tables.bytes.len()) as u64);
    let limit = if config.version == Version::V2_8 { 1 << 32 } else { u64::MAX };
    if !address.is_multiple_of(16) || end.is_none_or(|end| end > limit) {
        return Err(Error::Tables(format!(
            "smbios tables at {address:#x}, they must be 16-byte aligned and end below {limit:#x}"
        )));
    }
    let mut out = tables.entry_point(config.version, Some(address + DISTANCE as u64));
    out.resize(DISTANCE, 0);
    out.extend(tables.bytes);
    Ok(out)
}

/// The files for firmware.
///
/// # Errors
/// [`Error::Tables`] names what cannot be described.
pub fn firmware(config: &SmbiosConfig) -> Result<FirmwareSmbios, Error> {
    let tables = Tables::new(config)?;
    Ok(FirmwareSmbios { anchor: tables.entry_point(config.version, None), tables: tables.bytes })
}

/// Structures, one behind the other.
struct Tables {
    bytes: Vec<u8>,
    count: u16,
    largest: usize,
}

impl Tables {
    fn new(config: &SmbiosConfig) -> Result<Self, Error> {
        check(config)?;
        let mut this = Self { bytes: Vec::new(), count: 0, largest: 0 };
        this.add(firmware_information(config));
        this.add(system(config));
        this.add(chassis(config));
        for socket in 0..config.processors.sockets {
            this.add(processor(config, socket));
        }
        let size: u64 = config.ram.iter().map(|range| range.size).sum();
        let dimm = DIMM.max((size / MAX_DIMMS).next_power_of_two());
        let dimms = size.div_ceil(dimm) as u16; // at most MAX_DIMMS
        this.add(memory_array(size, dimms));
        for number in 0..dimms {
            this.add(memory_device(number, dimm.min(size - u64::from(number) * dimm)));
        }
        for (number, range) in (0..).zip(&config.ram) {
            this.add(memory_range(number, range));
        }
        this.add(Structure::new(32, 0x2000).bytes(&[0; 7])); // no error
        this.add(Structure::new(127, 0x7f00));
        if config.version == Version::V2_8 && this.bytes.len() > usize::from(u16::MAX) {
            let len = this.bytes.len();
            return Err(Error::Tables(format!("{len} bytes of smbios tables, version 2.8 allows 65535")));
        }
        Ok(this)
    }

    fn add(&mut self, structure: Structure) {
        let bytes = structure.finish();
        self.largest = self.largest.max(bytes.len());
        self.bytes.extend(bytes);
        self.count += 1;
    }

    /// The entry point (DSP0134 3.0, 5.2); for firmware without address and checksums.
    fn entry_point(&self, version: Version, address: Option<u64>) -> Vec<u8> {
        let at = address.unwrap_or(0);
        let mut out = match version {
            Version::V2_8 => {
                let mut out = b"_SM_\0\x1f\x02\x08".to_vec();
                out.extend((self.largest as u16).to_le_bytes());
                out.extend([0; 6]); // revision of the entry point, and nothing
                out.extend(b"_DMI_\0");
                out.extend((self.bytes.len() as u16).to_le_bytes());
                out.extend((at as u32).to_le_bytes());
                out.extend(self.count.to_le_bytes());
                out.push(0x28);
                out
            }
            Version::V3_0 => {
                let mut out = b"_SM3_\0\x18\x03\x00\x00\x01\x00".to_vec();
                out.extend((self.bytes.len() as u32).to_le_bytes());
                out.extend(at.to_le_bytes());
                out
            }
        };
        if address.is_some() {
            match version {
                Version::V2_8 => {
                    out[0x15] = checksum(&out[0x10..]);
                    out[4] = checksum(&out);
                }
                Version::V3_0 => out[5] = checksum(&out),
            }
        }
        out
    }
}

/// Refuses what the tables cannot express.
fn check(config: &SmbiosConfig) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Tables(reason));
    let SmbiosConfig { firmware_vendor, firmware_version, firmware_date, .. } = config;
    let SmbiosConfig { manufacturer, product, system_version, serial, processors, .. } = config;
    let strings = [firmware_vendor, firmware_version, firmware_date, manufacturer, product, system_version];
    let strings = strings.into_iter().chain([serial, &processors.manufacturer, &processors.version]);
    for text in strings {
        if text.len() > 255 || text.bytes().any(|byte| byte.is_ascii_control()) {
            return fail(format!(
                "smbios text {text:?}: at most 255 bytes without control characters are possible"
            ));
        }
    }
    if !(1..=255).contains(&processors.sockets)
        || processors.cores == 0
        || processors.threads < processors.cores
    {
        let Processors { sockets, cores, threads, .. } = processors;
        return fail(format!(
            "{sockets} sockets of {cores} cores and {threads} threads: 1 to 255 sockets, and no fewer threads than cores, are possible"
        ));
    }
    let size = config.ram.iter().try_fold(0u64, |sum, range| sum.checked_add(range.size));
    if config.ram.len() > 64 || size.is_none_or(|size| size > 1 << 52) {
        return fail("at most 64 ranges of ram, of 4 PiB together, can be described".to_owned());
    }
    match config.ram.iter().find(|range| range.size < KIB || range.base.checked_add(range.size).is_none()) {
        Some(range) => {
            fail(format!("{:#x} bytes of ram at {:#x} cannot be described", range.size, range.base))
        }
        None => Ok(()),
    }
}

/// A structure: a formatted area and strings, which it refers to by number.
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { formatted: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend(bytes);
        self
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn string(mut self, text: &str) -> Self {
        let number = match text {
            "" => 0,
            _ => {
                self.strings.extend(text.bytes().chain([0]));
                self.count += 1;
                self.count
            }
        };
        self.bytes(&[number])
    }

    fn finish(mut self) -> Vec<u8> {
        self.formatted[1] = self.formatted.len() as u8;
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.formatted.extend(self.strings);
        self.formatted.push(0);
        self.formatted
    }
}

/// Type 0.
fn firmware_information(config: &SmbiosConfig) -> Structure {
    /// No characteristics are told.
    const CHARACTERISTICS: u64 = 1 << 3;
    const UEFI: u8 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let uefi = if config.uefi { UEFI } else { 0 };
    Structure::new(0, 0)
        .string(&config.firmware_vendor)
        .string(&config.firmware_version)
        .word(0xe800)
        .string(&config.firmware_date)
        .bytes(&[0]) // 64 KiB
        .qword(CHARACTERISTICS)
        .bytes(&[0, VIRTUAL_MACHINE | uefi])
        .bytes(&[0, 0, 0xff, 0xff]) // release; no embedded controller
}

/// Type 1.
fn system(config: &SmbiosConfig) -> Structure {
    const POWER_SWITCH: u8 = 6;
    let mut uuid = config.uuid.unwrap_or_default();
    // The first three fields of a UUID are little-endian numbers here.
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Structure::new(1, 0x100)
        .string(&config.manufacturer)
        .string(&config.product)
        .string(&config.system_version)
        .string(&config.serial)
        .bytes(&uuid)
        .bytes(&[POWER_SWITCH, 0, 0])
}

/// Type 3.
fn chassis(config: &SmbiosConfig) -> Structure {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Structure::new(3, 0x300)
        .string(&config.manufacturer)
        .bytes(&[OTHER])
        .string(&config.system_version)
        .bytes(&[0, 0]) // serial number, asset tag
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        .dword(0)
        .bytes(&[0; 5]) // height, power cords, contained elements, SKU
}

/// Type 4.
fn processor(config: &SmbiosConfig, socket: u16) -> Structure {
    const CENTRAL_PROCESSOR: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_AND_ENABLED: u8 = 0x41;
    const SIXTY_FOUR_BIT: u16 = 1 << 2;
    const NO_CACHE: u16 = 0xffff;
    let Processors { cores, threads, manufacturer, version, signature, features, speed, .. } =
        &config.processors;
    /// A count that does not fit says so.
    fn narrow(count: u16) -> u8 {
        u8::try_from(count).unwrap_or(0xff)
    }
    let structure = Structure::new(4, 0x400 + socket)
        .string(&format!("CPU {socket}"))
        .bytes(&[CENTRAL_PROCESSOR, OTHER])
        .string(manufacturer)
        .dword(*signature)
        .dword(*features)
        .string(version)
        .bytes(&[0]) // voltage
        .word(0) // external clock
        .word(*speed)
        .word(*speed)
        .bytes(&[POPULATED_AND_ENABLED, OTHER])
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .bytes(&[0; 3]) // serial number, asset tag, part number
        .bytes(&[narrow(*cores), narrow(*cores), narrow(*threads)])
        .word(SIXTY_FOUR_BIT)
        .word(OTHER.into());
    match config.version {
        Version::V2_8 => structure,
        Version::V3_0 => structure.word(*cores).word(*cores).word(*threads),
    }
}

/// Handle of the only memory array.
const ARRAY: u16 = 0x1000;

/// Type 16.
fn memory_array(size: u64, dimms: u16) -> Structure {
    const OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// The size, in KiB, is in the extended field.
    const EXTENDED: u32 = 1 << 31;
    let kib = u32::try_from(size / KIB).unwrap_or(EXTENDED);
    let (kib, extended) = if kib < EXTENDED { (kib, 0) } else { (EXTENDED, size) };
    Structure::new(16, ARRAY)
        .bytes(&[OTHER, SYSTEM_MEMORY, NO_CORRECTION])
        .dword(kib)
        .word(NO_HANDLE)
        .word(dimms)
        .qword(extended)
}

/// Type 17.
fn memory_device(number: u16, size: u64) -> Structure {
    const UNKNOWN_WIDTH: u16 = 0xffff;
    const DIMM_FORM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER_DETAIL: u16 = 1 << 1;
    /// Sizes in MiB up to here have 15 bits; bit 15 says that the unit is KiB.
    const EXTENDED: u16 = 0x7fff;
    let (short, extended) = match size {
        ..MIB => ((size / KIB) as u16 | 1 << 15, 0),
        _ => match u16::try_from(size / MIB) {
            Ok(mib) if mib < EXTENDED => (mib, 0),
            _ => (EXTENDED, (size / MIB) as u32),
        },
    };
    Structure::new(17, 0x1100 + number)
        .word(ARRAY)
        .word(NO_HANDLE)
        .word(UNKNOWN_WIDTH)
        .word(UNKNOWN_WIDTH)
        .word(short)
        .bytes(&[DIMM_FORM, 0])
        .string(&format!("DIMM {number}"))
        .bytes(&[0, RAM])
        .word(OTHER_DETAIL)
        .word(0) // speed
        .bytes(&[0; 5]) // manufacturer, serial number, asset tag, part number, attributes
        .dword(extended)
        .bytes(&[0; 8]) // configured speed, voltages
}

/// Type 19.
fn memory_range(number: u16, range: &RamRange) -> Structure {
    let last = range.base + (range.size - 1);
    let extended = last / KIB >= u64::from(u32::MAX);
    let narrow = |address: u64| if extended { u32::MAX } else { (address / KIB) as u32 };
    let wide = |address: u64| if extended { address } else { 0 };
    Structure::new(19, 0x1800 + number)
        .dword(narrow(range.base))
        .dword(narrow(last))
        .word(ARRAY)
        .bytes(&[1]) // devices a row
        .qword(wide(range.base))
        .qword(wide(last))
}
