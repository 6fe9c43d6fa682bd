//! What the board tells about itself: CMOS memory, fw_cfg, ACPI tables.

use trapline_boot::RamRange;
use trapline_boot::acpi::{self, AcpiConfig};
use trapline_chipset::fw_cfg::{BootDevice as FwBootDevice, E820Entry, E820Kind, FwCfg, PcItems};

use super::drives::{DRIVES, Drives};
use super::{BootDevice, FW_CFG, GPE0, IDE_FUNCTION, PM_TIMER, PM1A_CONTROL, PM1A_EVENT, SLP_TYP_S5, SOUTH};
use crate::Result;
use crate::chassis::lock;
use crate::devices::{COM1, Devices, IOAPIC, IRQ_COM1, IRQ_SCI, LOCAL_APIC};

/// Size in bytes up to which a disk's cylinders fit in INT 13h: larger ones are translated (LBA assisted).
const LARGEST_UNTRANSLATED: u64 = 1024 * 16 * 63 * 512;
const RESET: u16 = 0xcf9;
/// What makes the reset control register reset: SYS_RST and RST_CPU.
const RESET_VALUE: u8 = 0x06;
/// ISA interrupts for PIRQs.
const LINK_IRQS: [u8; 3] = [5, 10, 11];
/// The last address for BARs below 4 GiB.
const PCI_MEMORY_END: u64 = 0xfebf_ffff;

/// What the tables tell about the board.
pub(crate) fn acpi_config(cpus: u32, ram: &[RamRange]) -> AcpiConfig {
    AcpiConfig {
        apic_ids: (0..cpus).collect(),
        local_apic_address: LOCAL_APIC,
        io_apic: Some(acpi::IoApic { id: 0, address: IOAPIC, gsi_base: 0 }),
        pic: true,
        timer_override: true,
        sci: IRQ_SCI as u8,
        pm1a_event: PM1A_EVENT,
        pm1a_control: PM1A_CONTROL,
        pm_timer: Some(PM_TIMER),
        gpe0: Some((GPE0, 4)),
        reset: Some((RESET, RESET_VALUE)),
        s5_sleep_type: SLP_TYP_S5,
        i8042: true,
        rtc: Some(0x32),
        serial: vec![(COM1, IRQ_COM1 as u8)],
        pci: Some(acpi::PciRoot {
            last_bus: 0xff,
            windows: vec![(pci_memory_start(ram), PCI_MEMORY_END)],
            isa_bridge: SOUTH,
            link_irqs: LINK_IRQS.to_vec(),
        }),
        fw_cfg: Some(FW_CFG),
        waet: true,
        ..AcpiConfig::default()
    }
}

/// Where BARs below 4 GiB begin: where the firmware puts the first one.
fn pci_memory_start(ram: &[RamRange]) -> u64 {
    const LOW: u64 = 0x8000_0000;
    let end = ram.iter().map(|range| range.base + range.size).filter(|end| *end < 1 << 32).max();
    if end.unwrap_or(0) <= LOW { LOW } else { 0xc000_0000 }
}

/// The ACPI tables for the firmware to put in place.
pub(crate) fn add_acpi(fw_cfg: &mut FwCfg, config: &AcpiConfig) -> Result<()> {
    let acpi::FirmwareTables { rsdp, tables, loader } = acpi::firmware(config)?;
    for (name, data) in [(acpi::RSDP_FILE, rsdp), (acpi::TABLES_FILE, tables), (acpi::LOADER_FILE, loader)] {
        fw_cfg.add_file(name, data)?;
    }
    Ok(())
}

/// Fills in what firmware looks for in CMOS memory, beside the size of RAM.
pub(crate) fn set_cmos(devices: &Devices, drives: &Drives, boot: &[BootDevice], cpus: u32) {
    /// Equipment: mathematics coprocessor, PS/2 pointing device.
    const EQUIPMENT: u8 = 0x06;
    let code = |at: usize| match boot.get(at) {
        Some(BootDevice::Disk) => 2,
        Some(BootDevice::Cdrom) => 3,
        None => 0,
    };
    let translation = (0..DRIVES).fold(0, |all, at| {
        let large = drives.disk(at).is_some_and(|disk| disk.size() > LARGEST_UNTRANSLATED);
        all | u8::from(large) << (2 * at)
    });
    let mut rtc = lock(&devices.rtc);
    rtc.set_cmos(0x14, EQUIPMENT);
    rtc.set_cmos(0x38, code(2) << 4 | 1); // and: do not look for a boot signature on a floppy disk
    rtc.set_cmos(0x39, translation);
    rtc.set_cmos(0x3d, code(1) << 4 | code(0));
    rtc.set_cmos(0x5f, (cpus - 1).min(u8::MAX.into()) as u8);
}

/// What firmware learns of the machine.
pub(crate) fn pc_items(
    cpus: u32,
    memory: u64,
    ram: &[RamRange],
    drives: &Drives,
    boot: &[BootDevice],
) -> PcItems {
    let of_kind = |kind: BootDevice| {
        drives.places.iter().enumerate().filter(move |(_, drive)| {
            drive.as_ref().is_some_and(|drive| drive.cdrom == (kind == BootDevice::Cdrom))
        })
    };
    let boot_order = boot.iter().flat_map(|kind| of_kind(*kind)).map(|(at, _)| FwBootDevice::Ide {
        device: SOUTH,
        function: IDE_FUNCTION,
        channel: at as u8 / 2,
        drive: at as u8 % 2,
    });
    let e820 = |range: &RamRange| E820Entry { address: range.base, length: range.size, kind: E820Kind::Ram };
    PcItems {
        boot_order: boot_order.collect(),
        e820: ram.iter().map(e820).collect(),
        graphics: false,
        ..PcItems::new(cpus as u16, memory) // at most MAX_CPUS
    }
}
