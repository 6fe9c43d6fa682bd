//! What the board tells about itself: CMOS memory, fw_cfg, ACPI tables.

use std::sync::{Arc, Mutex};

use trapline_boot::acpi::{self, AcpiConfig};
use trapline_boot::firmware::{self, FirmwareKernel};
use trapline_boot::smbios::{self, FirmwareSmbios, SmbiosConfig};
use trapline_boot::{RamRange, Request};
use trapline_chipset::fw_cfg::{self, BootDevice as FwBootDevice, E820Entry, E820Kind, FwCfg, PcItems};
use trapline_chipset::rtc::{BootClass, DiskTranslation};
use trapline_pci::Piix4Pm;

use super::devices::IRQ_LPT1;
use super::drives::Drives;
use super::suspend::SLP_TYP_S3;
use super::{BootDevice, FW_CFG, GPE0, HPET, IDE_FUNCTION, LPT1, PM_BASE, SLP_TYP_S5, SOUTH};
use crate::Result;
use crate::chassis::lock;
use crate::config::KernelConfig;
use crate::devices::{COM1, Devices, IOAPIC, IRQ_COM1, IRQ_SCI, LOCAL_APIC};

/// Size in bytes up to which a disk's cylinders fit in INT 13h: larger ones are translated (LBA assisted).
const LARGEST_UNTRANSLATED: u64 = 1024 * 16 * 63 * 512;
const RESET: u16 = 0xcf9;
/// What makes the reset control register reset: SYS_RST and RST_CPU.
const RESET_VALUE: u8 = 0x06;
/// ISA interrupts for PIRQs.
pub(crate) const LINK_IRQS: [u8; 3] = [5, 10, 11];
/// The last address for BARs below 4 GiB.
pub(crate) const PCI_MEMORY_END: u64 = 0xfebf_ffff;

/// What the tables are about.
pub(crate) struct Board {
    pub(crate) cpus: u32,
    /// There is a display.
    pub(crate) vga: bool,
    /// The guest can suspend itself to RAM.
    pub(crate) s3: bool,
    pub(crate) ram: Vec<RamRange>,
}

/// What the ACPI tables tell, with the power management registers at `pm_base`.
pub(crate) fn acpi_config(board: &Board, pm_base: u16) -> AcpiConfig {
    let Board { cpus, vga, s3, ram } = board;
    let low = (pci_memory_start(ram), PCI_MEMORY_END);
    AcpiConfig {
        apic_ids: (0..*cpus).collect(),
        local_apic_address: LOCAL_APIC,
        io_apic: Some(acpi::IoApic { id: 0, address: IOAPIC, gsi_base: 0 }),
        pic: true,
        timer_override: true,
        sci: IRQ_SCI as u8,
        pm1a_event: pm_base,
        pm1a_control: pm_base + 4,
        pm_timer: Some(pm_base + 8),
        gpe0: Some((GPE0, 4)),
        reset: Some((RESET, RESET_VALUE)),
        s5_sleep_type: SLP_TYP_S5,
        s3_sleep_type: s3.then_some(SLP_TYP_S3),
        i8042: true,
        rtc: Some(0x32),
        vga: *vga,
        serial: vec![(COM1, IRQ_COM1 as u8)],
        parallel: vec![(LPT1, IRQ_LPT1 as u8)],
        hpet: Some(HPET),
        pci: Some(acpi::PciRoot {
            last_bus: 0xff,
            windows: [Some(low), high_window(ram)].into_iter().flatten().collect(),
            isa_bridge: SOUTH,
            link_irqs: LINK_IRQS.to_vec(),
        }),
        fw_cfg: Some(FW_CFG),
        waet: true,
        ..AcpiConfig::default()
    }
}

/// Where BARs below 4 GiB begin: where the firmware puts the first one.
pub(crate) fn pci_memory_start(ram: &[RamRange]) -> u64 {
    const LOW: u64 = 0x8000_0000;
    let end = ram.iter().map(|range| range.base + range.size).filter(|end| *end < 1 << 32).max();
    if end.unwrap_or(0) <= LOW { LOW } else { 0xc000_0000 }
}

/// Addresses for 64-bit BARs: what is left above RAM of what every processor with 64-bit mode can address.
fn high_window(ram: &[RamRange]) -> Option<(u64, u64)> {
    const LAST: u64 = (1 << 36) - 1;
    const GIB: u64 = 1 << 30;
    let end = ram.iter().map(|range| range.base + range.size).max()?.max(1 << 32);
    Some((end.next_multiple_of(GIB), LAST)).filter(|(first, last)| first < last)
}

/// The machine as its operating system shows it to users.
pub(crate) fn smbios_config(board: &Board) -> SmbiosConfig {
    let mut config = SmbiosConfig { ram: board.ram.clone(), ..SmbiosConfig::default() };
    config.processors.sockets = board.cpus as u16; // at most MAX_CPUS
    config
}

/// The tables for the firmware to put in place. ACPI's say where it has put the registers of `pm` by the time that
/// it reads them.
pub(crate) fn add_tables(fw_cfg: &mut FwCfg, board: Board, pm: Arc<Mutex<Piix4Pm>>) -> Result<()> {
    let FirmwareSmbios { anchor, tables } = smbios::firmware(&smbios_config(&board))?;
    fw_cfg.add_file(smbios::ANCHOR_FILE, anchor)?;
    fw_cfg.add_file(smbios::TABLES_FILE, tables)?;
    let files = move |base| acpi::firmware(&acpi_config(&board, base));
    let acpi::FirmwareTables { rsdp, tables, loader } = files(PM_BASE)?;
    fw_cfg.add_file(acpi::RSDP_FILE, rsdp)?;
    fw_cfg.add_file(acpi::LOADER_FILE, loader)?;
    let mut told = PM_BASE;
    fw_cfg.add_generated_file(acpi::TABLES_FILE, tables, move || {
        let base = lock(&pm).pm_base().filter(|base| *base != told)?;
        told = base;
        files(base).ok().map(|files| files.tables)
    })?;
    Ok(())
}

/// A kernel for the firmware to start, and what the firmware is to boot from for that.
pub(crate) fn add_kernel(
    fw_cfg: &mut FwCfg,
    config: &KernelConfig,
    ram: &[RamRange],
) -> Result<FwBootDevice> {
    let KernelConfig { kernel, initrd, cmdline } = config;
    let mut request = Request::new(kernel);
    (request.initrd, request.command_line) = (initrd.as_deref(), cmdline);
    let FirmwareKernel { setup, kernel, initrd, command_line } = FirmwareKernel::load(&request, ram)?;
    for (item, address, size, data) in [
        (setup, fw_cfg::SETUP_ADDR, fw_cfg::SETUP_SIZE, fw_cfg::SETUP_DATA),
        (kernel, fw_cfg::KERNEL_ADDR, fw_cfg::KERNEL_SIZE, fw_cfg::KERNEL_DATA),
        (initrd, fw_cfg::INITRD_ADDR, fw_cfg::INITRD_SIZE, fw_cfg::INITRD_DATA),
        (command_line, fw_cfg::CMDLINE_ADDR, fw_cfg::CMDLINE_SIZE, fw_cfg::CMDLINE_DATA),
    ] {
        fw_cfg.add(address, item.address.to_le_bytes());
        fw_cfg.add(size, (item.data.len() as u32).to_le_bytes());
        fw_cfg.add(data, item.data);
    }
    fw_cfg.add_file(firmware::OPTION_ROM_FILE, firmware::option_rom())?;
    let name = firmware::OPTION_ROM_FILE.trim_start_matches("genroms/");
    Ok(FwBootDevice::Rom(name.to_owned()))
}

/// Fills in what firmware looks for in CMOS memory, beside the size of RAM.
pub(crate) fn set_cmos(devices: &Devices, drives: &Drives, boot: &[BootDevice], cpus: u32) {
    /// Equipment: mathematics coprocessor, PS/2 pointing device.
    const EQUIPMENT: u8 = 0x06;
    let class = |device: &BootDevice| match device {
        BootDevice::Disk => BootClass::Disk,
        BootDevice::Cdrom => BootClass::Cdrom,
    };
    let classes: Vec<_> = boot.iter().map(class).collect();
    let translation = |index| match drives.disk(index) {
        Some(disk) if disk.size() > LARGEST_UNTRANSLATED => DiskTranslation::Lba,
        _ => DiskTranslation::None,
    };
    let mut rtc = lock(&devices.rtc);
    rtc.set_cmos(0x14, EQUIPMENT);
    rtc.set_boot_order(&classes);
    rtc.set_disk_translations([0, 1, 2, 3].map(translation));
    rtc.set_processors(cpus);
}

/// What firmware learns of the machine.
pub(crate) fn pc_items(board: &Board, drives: &Drives, boot: &[BootDevice]) -> PcItems {
    let Board { cpus, vga, s3, ram } = board;
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
        graphics: *vga,
        s3: *s3,
        ..PcItems::new(*cpus as u16, ram.iter().map(|range| range.size).sum()) // at most MAX_CPUS
    }
}
