//! ACPI tables (ACPI 6.5, chapters 4 and 5) for a board described by [`AcpiConfig`].
//!
//! [`build`] returns the tables as one block of bytes for a given address, the RSDP first; [`write()`] puts
//! them at [`layout::ACPI`], where an operating system searches. They are: RSDP, RSDT, XSDT, FADT, FACS,
//! MADT and DSDT. The hardware model is the classic one ("hardware-reduced" is not set): PM1a event and
//! control blocks, PM timer, GPE0, SCI. The power button is the fixed-feature one (`PWRBTN_STS`), so the DSDT
//! has no button device. Left out: PCI host bridges and routing, HPET, SRAT, NUMA, processor power states.
//!
//! ```
//! use trapline_boot::acpi::{AcpiConfig, IoApic, build};
//!
//! let config = AcpiConfig {
//!     apic_ids: vec![0, 1],
//!     io_apic: Some(IoApic { id: 0, address: 0xfec0_0000, gsi_base: 0 }),
//!     ..AcpiConfig::default()
//! };
//! let blob = build(&config, 0xe_0000)?;
//! assert!(blob.starts_with(b"RSD PTR "));
//! # Ok::<(), trapline_boot::Error>(())
//! ```

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use vm_memory::GuestMemory;

use crate::Error;
use crate::ram::{self, layout};

pub(crate) const OEM_ID: [u8; 6] = *b"TRAPLN";
const OEM_TABLE_ID: [u8; 8] = *b"TRAPLINE";
const OEM_REVISION: u32 = 1;
/// Length of an RSDP of revision 2.
const RSDP_LEN: usize = 36;
/// First APIC ID that only an x2APIC structure can name (255 is the broadcast ID).
const FIRST_X2APIC_ID: u32 = 255;

/// What the tables tell about a board. Ports are I/O ports, interrupts are ISA IRQs (equal to global system
/// interrupts but for the timer) unless named GSI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Local APIC IDs of the processors, in the order of their ACPI UIDs (0, 1, …).
    pub apic_ids: Vec<u32>,
    /// Physical address of the local APICs.
    pub local_apic_address: u32,
    /// The I/O APIC.
    pub io_apic: Option<IoApic>,
    /// There are two 8259 PICs as well (MADT flag `PCAT_COMPAT`).
    pub pic: bool,
    /// ISA IRQ 0 (the PIT) arrives at GSI 2, as on every PC.
    pub timer_override: bool,
    /// System control interrupt; level triggered, active high.
    pub sci: u8,
    /// PM1a event block: 2 bytes status, 2 bytes enable.
    pub pm1a_event: u16,
    /// PM1a control block, 2 bytes.
    pub pm1a_control: u16,
    /// PM timer, 32 bits wide, 3.579545 MHz.
    pub pm_timer: Option<u16>,
    /// General-purpose event block 0: port and length in bytes (status and enable halves together).
    pub gpe0: Option<(u16, u8)>,
    /// How ACPI mode is switched on; without it the board is always in ACPI mode.
    pub smi: Option<SmiCommand>,
    /// Reset register: port, and the value that resets.
    pub reset: Option<(u16, u8)>,
    /// `SLP_TYP` value for S5 (soft off), 0–7.
    pub s5_sleep_type: u8,
    /// There is an 8042 keyboard controller at ports 60h and 64h, with keyboard (IRQ 1) and mouse (IRQ 12).
    pub i8042: bool,
    /// There is a VGA.
    pub vga: bool,
    /// There is an MC146818 real-time clock at ports 70h and 71h, IRQ 8, with a century byte at this CMOS
    /// offset (0 for none).
    pub rtc: Option<u8>,
    /// 16550 serial ports: first port and IRQ; COM1 first.
    pub serial: Vec<(u16, u8)>,
    /// Virtio devices on the MMIO transport.
    pub virtio_mmio: Vec<VirtioMmio>,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// I/O APIC ID.
    pub id: u8,
    /// Physical address.
    pub address: u32,
    /// GSI of its first pin.
    pub gsi_base: u32,
}

/// The SMI command port and the values that switch ACPI mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmiCommand {
    /// Port, B2h on a PC.
    pub port: u16,
    /// Value that switches ACPI mode on.
    pub enable: u8,
    /// Value that switches it off.
    pub disable: u8,
}

/// A virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Physical address of its registers.
    pub address: u32,
    /// Length of the register window in bytes.
    pub size: u32,
    /// Global system interrupt; level triggered, active high.
    pub gsi: u32,
}

impl Default for AcpiConfig {
    /// One processor and the power management block at 600h; no devices.
    fn default() -> Self {
        Self {
            apic_ids: vec![0],
            local_apic_address: 0xfee0_0000,
            io_apic: None,
            pic: false,
            timer_override: false,
            sci: 9,
            pm1a_event: 0x600,
            pm1a_control: 0x604,
            pm_timer: Some(0x608),
            gpe0: None,
            smi: None,
            reset: None,
            s5_sleep_type: 5,
            i8042: false,
            vga: false,
            rtc: None,
            serial: Vec::new(),
            virtio_mmio: Vec::new(),
        }
    }
}

/// Writes the tables to [`layout::ACPI`] and returns the address of the RSDP.
///
/// # Errors
/// If the description is not possible ([`Error::Tables`]) or there is no RAM at that place.
pub fn write<M: GuestMemory>(memory: &M, config: &AcpiConfig) -> Result<u64, Error> {
    let tables = build(config, layout::ACPI)?;
    let room = layout::HIGH_MEMORY - layout::ACPI;
    if tables.len() as u64 > room {
        let reason = format!("{} bytes of acpi tables, there is room for {room}", tables.len());
        return Err(Error::Tables(reason));
    }
    ram::write(memory, layout::ACPI, &tables)?;
    Ok(layout::ACPI)
}

/// The tables for `address`, which must be below 4 GiB and aligned to 64 bytes. The RSDP comes first.
///
/// # Errors
/// [`Error::Tables`] names what cannot be described.
pub fn build(config: &AcpiConfig, address: u64) -> Result<Vec<u8>, Error> {
    let base = check(config, address)?;
    let mut blob = vec![0; RSDP_LEN];
    // Each table knows the addresses of those it points to, so that pointers come last.
    let facs = place(&mut blob, base, &bytes(&FACS::new()));
    let dsdt = place(&mut blob, base, &table(*b"DSDT", 2, &dsdt::body(config)));
    let fadt = place(&mut blob, base, &bytes(&fadt(config, facs, dsdt)));
    let madt = place(&mut blob, base, &table(*b"APIC", 5, &madt(config)));
    let entries = [fadt, madt];
    let rsdt = place(&mut blob, base, &table(*b"RSDT", 1, &entries.map(u32::to_le_bytes).concat()));
    let wide = entries.map(|entry| u64::from(entry).to_le_bytes()).concat();
    let xsdt = place(&mut blob, base, &table(*b"XSDT", 1, &wide));
    blob[..RSDP_LEN].copy_from_slice(&rsdp(rsdt, xsdt));
    Ok(blob)
}

/// Refuses what the tables cannot express.
fn check(config: &AcpiConfig, address: u64) -> Result<u32, Error> {
    let fail = |reason: String| Err(Error::Tables(reason));
    if config.apic_ids.is_empty() || config.apic_ids.len() > 4096 {
        return fail(format!("{} processors, 1 to 4096 can be described", config.apic_ids.len()));
    }
    if config.virtio_mmio.len() > 256 || config.serial.len() > 4 {
        return fail("at most 256 virtio-mmio devices and 4 serial ports can be described".into());
    }
    if config.s5_sleep_type > 7 {
        return fail(format!("s5 sleep type {} does not fit in 3 bits", config.s5_sleep_type));
    }
    match u32::try_from(address) {
        Ok(base) if address.is_multiple_of(64) && base < 0xff00_0000 => Ok(base),
        _ => fail(format!("acpi tables at {address:#x}, they must be below 4 GiB and 64-byte aligned")),
    }
}

/// Appends a table at the next 64-byte boundary (which the FACS needs) and returns its address.
fn place(blob: &mut Vec<u8>, base: u32, table: &[u8]) -> u32 {
    blob.resize(blob.len().next_multiple_of(64), 0);
    let address = base + blob.len() as u32;
    blob.extend_from_slice(table);
    address
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

/// A table of a common header and `body`.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Root pointer, revision 2 (ACPI 6.5, 5.2.5.3).
fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_LEN] {
    let mut out = [0; RSDP_LEN];
    out[..8].copy_from_slice(b"RSD PTR ");
    out[9..15].copy_from_slice(&OEM_ID);
    out[15] = 2;
    out[16..20].copy_from_slice(&rsdt.to_le_bytes());
    out[20..24].copy_from_slice(&(RSDP_LEN as u32).to_le_bytes());
    out[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    out[8] = checksum(&out[..20]);
    out[32] = checksum(&out);
    out
}

/// The byte that makes the sum of `bytes` and itself 0.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Fixed hardware (ACPI 6.5, 5.2.9).
fn fadt(config: &AcpiConfig, facs: u32, dsdt: u32) -> acpi_tables::fadt::FADT {
    /// IA-PC boot architecture flags (ACPI 6.5, table 5.11).
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

    let port =
        |port: u16, bytes: u8, access| GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    fadt.firmware_ctrl = facs.into();
    // Both DSDT fields must agree; of the FACS fields only one may be set.
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(config.sci).into();
    if let Some(smi) = config.smi {
        fadt.smi_cmd = u32::from(smi.port).into();
        fadt.acpi_enable = smi.enable;
        fadt.acpi_disable = smi.disable;
    }
    fadt.pm1a_evt_blk = u32::from(config.pm1a_event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(config.pm1a_event, 4, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(config.pm1a_control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(config.pm1a_control, 2, AccessSize::WordAccess);
    if let Some(timer) = config.pm_timer {
        fadt.pm_tmr_blk = u32::from(timer).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = port(timer, 4, AccessSize::DwordAccess);
    }
    if let Some((gpe0, length)) = config.gpe0 {
        fadt.gpe0_blk = u32::from(gpe0).into();
        fadt.gpe0_blk_len = length;
        // Register width is 8 bits in the field: longer blocks are found through GPE0_BLK alone.
        if length < 32 {
            fadt.x_gpe0_blk = port(gpe0, length, AccessSize::ByteAccess);
        }
    }
    // No C2 and C3 states: latencies beyond what ACPI allows for them.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = config.rtc.unwrap_or(0);
    let devices = !config.serial.is_empty() || config.i8042;
    let arch = [
        (LEGACY_DEVICES, devices),
        (HAS_8042, config.i8042),
        (VGA_NOT_PRESENT, !config.vga),
        (CMOS_RTC_NOT_PRESENT, config.rtc.is_none()),
    ];
    fadt.iapc_boot_arch = arch.iter().filter(|flag| flag.1).fold(0, |all, flag| all | flag.0).into();
    // Fixed hardware has the power button, but neither a sleep button nor an RTC alarm bit.
    for flag in [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::FixRtc, Flags::TmrValExt] {
        fadt = fadt.flag(flag);
    }
    if let Some((reset, value)) = config.reset {
        fadt.reset_reg = port(reset, 1, AccessSize::ByteAccess);
        fadt.reset_value = value;
        fadt = fadt.flag(Flags::ResetRegSup);
    }
    fadt.finalize()
}

/// Interrupt controllers (ACPI 6.5, 5.2.12).
fn madt(config: &AcpiConfig) -> Vec<u8> {
    const ENABLED: u32 = 1;
    /// MPS INTI flags: polarity in bits 0–1, trigger mode in bits 2–3; 0 follows the bus.
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    const LINT1: u8 = 1;

    let mut out = Vec::new();
    out.extend(config.local_apic_address.to_le_bytes());
    out.extend(u32::from(config.pic).to_le_bytes()); // PCAT_COMPAT
    for (uid, &id) in (0u32..).zip(&config.apic_ids) {
        if id < FIRST_X2APIC_ID && uid < 256 {
            out.extend([0, 8, uid as u8, id as u8]); // processor local APIC
            out.extend(ENABLED.to_le_bytes());
        } else {
            out.extend([9, 16, 0, 0]); // processor local x2APIC
            for word in [id, ENABLED, uid] {
                out.extend(word.to_le_bytes());
            }
        }
    }
    if let Some(io_apic) = config.io_apic {
        out.extend([1, 12, io_apic.id, 0]);
        out.extend(io_apic.address.to_le_bytes());
        out.extend(io_apic.gsi_base.to_le_bytes());
        let mut override_source = |irq: u8, gsi: u32, flags: u16| {
            out.extend([2, 10, 0, irq]); // ISA bus
            out.extend(gsi.to_le_bytes());
            out.extend(flags.to_le_bytes());
        };
        if config.timer_override {
            override_source(0, 2, 0);
        }
        override_source(config.sci, config.sci.into(), ACTIVE_HIGH_LEVEL);
    }
    // NMI at LINT1 of all processors.
    out.extend([4, 6, 0xff, 0, 0, LINT1]);
    if config.apic_ids.iter().any(|&id| id >= FIRST_X2APIC_ID) {
        out.extend([0xa, 12, 0, 0]);
        out.extend(u32::MAX.to_le_bytes());
        out.extend([LINT1, 0, 0, 0]);
    }
    out
}
