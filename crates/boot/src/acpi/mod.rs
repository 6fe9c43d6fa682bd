//! ACPI tables (ACPI 6.5, chapters 4 and 5) for a board described by [`AcpiConfig`].
//!
//! [`build`] returns the tables as one block of bytes for a given address, the RSDP first; [`write()`] puts
//! them at [`layout::ACPI`], where an operating system searches. [`firmware`] returns the same as files for
//! firmware, which finds places for them itself. They are: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT, and on
//! request HPET and WAET. The hardware model is the classic one ("hardware-reduced" is not set): PM1a event
//! and control blocks, PM timer, GPE0, SCI. The power button is the fixed-feature one (`PWRBTN_STS`), so the
//! DSDT has no button device. With [`PciRoot`] the DSDT has a PCI root bus with its windows and interrupt
//! routes. Left out: PCI hot-plug, MCFG (an i440FX has no ECAM), SRAT, processor power states.
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
mod linked;
mod tables;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

pub(crate) use linked::checksum;
pub use linked::{FirmwareTables, LOADER_FILE, RSDP_FILE};

use crate::Error;
use crate::ram::{self, layout};
use linked::Tables;

pub(crate) const OEM_ID: [u8; 6] = *b"TRAPLN";
const OEM_TABLE_ID: [u8; 8] = *b"TRAPLINE";
const OEM_REVISION: u32 = 1;
/// Name of the file of the tables for firmware.
pub const TABLES_FILE: &str = "etc/acpi/tables";

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
    /// `SLP_TYP` value for S3 (suspend to RAM), if the board can do that.
    pub s3_sleep_type: Option<u8>,
    /// `SLP_TYP` value for S4 (suspend to disk), if the board can do that.
    pub s4_sleep_type: Option<u8>,
    /// There is an 8042 keyboard controller at ports 60h and 64h, with keyboard (IRQ 1) and mouse (IRQ 12).
    pub i8042: bool,
    /// There is a VGA.
    pub vga: bool,
    /// There is an MC146818 real-time clock at ports 70h and 71h, IRQ 8, with a century byte at this CMOS
    /// offset (0 for none).
    pub rtc: Option<u8>,
    /// 16550 serial ports: first port and IRQ; COM1 first.
    pub serial: Vec<(u16, u8)>,
    /// Parallel ports: first port and IRQ; LPT1 first.
    pub parallel: Vec<(u16, u8)>,
    /// Virtio devices on the MMIO transport.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// PCI. The devices with fixed ports are behind its ISA bridge.
    pub pci: Option<PciRoot>,
    /// There is an HPET, as `trapline-chipset`'s, at this physical address.
    pub hpet: Option<u32>,
    /// There is a firmware configuration device with DMA at this port and the following 11.
    pub fw_cfg: Option<u16>,
    /// Tell Windows, in a WAET, that the PM timer needs no work-around.
    pub waet: bool,
}

/// A PCI root bus of an i440FX and a PIIX3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciRoot {
    /// The last bus number there may be.
    pub last_bus: u8,
    /// Physical addresses that the bus decodes, first and last, beside the VGA's: each below 4 GiB or above
    /// it.
    pub windows: Vec<(u64, u64)>,
    /// Device number of the ISA bridge, whose function 0 has the PIRQ route registers.
    pub isa_bridge: u8,
    /// ISA interrupts, 0 to 15, that operating systems may route the PIRQ inputs to: level triggered, active
    /// high.
    pub link_irqs: Vec<u8>,
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
            s3_sleep_type: None,
            s4_sleep_type: None,
            i8042: false,
            vga: false,
            rtc: None,
            serial: Vec::new(),
            parallel: Vec::new(),
            virtio_mmio: Vec::new(),
            pci: None,
            hpet: None,
            fw_cfg: None,
            waet: false,
        }
    }
}

/// Writes the tables to [`layout::ACPI`] and returns the address of the RSDP.
///
/// # Errors
/// If the description is not possible ([`Error::Tables`]) or there is no RAM at that place.
pub fn write<M: GuestMemory>(memory: &M, config: &AcpiConfig) -> Result<u64, Error> {
    let tables = build(config, layout::ACPI)?;
    let room = layout::SMBIOS - layout::ACPI;
    if tables.len() as u64 > room {
        let reason = format!("{} bytes of acpi tables, there is room for {room}", tables.len());
        return Err(Error::Tables(reason));
    }
    ram::write(memory, layout::ACPI, &tables)?;
    Ok(layout::ACPI)
}

/// Where an operating system that has suspended itself (S3) wants to go on: the real-mode address in the FACS of
/// the tables that [`write()`] has put in place (ACPI 6.5, 5.2.10). What firmware would jump to.
///
/// # Errors
/// If there is no RAM at that place.
pub fn waking_vector<M: GuestMemory>(memory: &M) -> Result<u32, Error> {
    const FIRMWARE_WAKING_VECTOR: u64 = 12;
    let at = layout::ACPI + linked::FACS + FIRMWARE_WAKING_VECTOR;
    let no_ram = Error::NoRam { start: at, end: at + 4, what: "acpi tables" };
    memory.read_obj(GuestAddress(at)).map_err(|_| no_ram)
}

/// The tables for `address`, which must be below 4 GiB and aligned to 64 bytes. The RSDP comes first.
///
/// # Errors
/// [`Error::Tables`] names what cannot be described.
pub fn build(config: &AcpiConfig, address: u64) -> Result<Vec<u8>, Error> {
    let base = match u32::try_from(address) {
        Ok(base) if address.is_multiple_of(64) && base < 0xff00_0000 => base,
        _ => {
            let reason = format!("acpi tables at {address:#x}, they must be below 4 GiB and 64-byte aligned");
            return Err(Error::Tables(reason));
        }
    };
    check(config)?;
    Ok(Tables::new(config).relocated(base))
}

/// The tables as files for SeaBIOS, OVMF and others that read them from fw_cfg.
///
/// # Errors
/// [`Error::Tables`] names what cannot be described.
pub fn firmware(config: &AcpiConfig) -> Result<FirmwareTables, Error> {
    check(config)?;
    Ok(Tables::new(config).files())
}

/// Refuses what the tables cannot express.
fn check(config: &AcpiConfig) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Tables(reason));
    if config.apic_ids.is_empty() || config.apic_ids.len() > 4096 {
        return fail(format!("{} processors, 1 to 4096 can be described", config.apic_ids.len()));
    }
    if config.virtio_mmio.len() > 256 || config.serial.len() > 4 || config.parallel.len() > 3 {
        return fail(
            "at most 256 virtio-mmio devices, 4 serial and 3 parallel ports can be described".into(),
        );
    }
    let sleep_types = [Some(config.s5_sleep_type), config.s3_sleep_type, config.s4_sleep_type];
    if let Some(sleep_type) = sleep_types.into_iter().flatten().find(|&sleep_type| sleep_type > 7) {
        return fail(format!("sleep type {sleep_type} does not fit in 3 bits"));
    }
    let Some(pci) = &config.pci else { return Ok(()) };
    if pci.isa_bridge > 31 {
        return fail(format!("isa bridge is pci device {}, 0 to 31 are possible", pci.isa_bridge));
    }
    if !(1..=16).contains(&pci.link_irqs.len()) || pci.link_irqs.iter().any(|&irq| irq > 15) {
        return fail(format!(
            "pci interrupts {:?}, they must be 1 to 16 of isa interrupts 0 to 15",
            pci.link_irqs
        ));
    }
    for &(first, last) in &pci.windows {
        let low = last < 1 << 32;
        if first >= last || !low && first < 1 << 32 || (first, last) == (0, u64::MAX) {
            return fail(format!("pci window {first:#x}-{last:#x} is empty or crosses 4 GiB"));
        }
    }
    if pci.windows.len() > 16 {
        return fail(format!("{} pci windows, at most 16 can be described", pci.windows.len()));
    }
    Ok(())
}
