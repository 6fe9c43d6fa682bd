//! The tables themselves, as they are where all addresses are offsets.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// First APIC ID that only an x2APIC structure can name (255 is the broadcast ID).
const FIRST_X2APIC_ID: u32 = 255;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

/// A table of a common header and `body`.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Firmware control structure (ACPI 6.5, 5.2.10).
pub(super) fn facs() -> Vec<u8> {
    bytes(&FACS::new())
}

/// Fixed hardware (ACPI 6.5, 5.2.9).
pub(super) fn fadt(config: &AcpiConfig, facs: u32, dsdt: u32) -> Vec<u8> {
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
    let devices = !config.serial.is_empty() || !config.parallel.is_empty() || config.i8042;
    let arch = [
        (LEGACY_DEVICES, devices),
        (HAS_8042, config.i8042),
        (VGA_NOT_PRESENT, !config.vga),
        (CMOS_RTC_NOT_PRESENT, config.rtc.is_none()),
    ];
    fadt.iapc_boot_arch = arch.iter().filter(|flag| flag.1).fold(0, |all, flag| all | flag.0).into();
    // Fixed hardware has the power button, no sleep button, and an RTC alarm bit where there is a sleep that it
    // could end.
    for flag in [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::TmrValExt] {
        fadt = fadt.flag(flag);
    }
    if config.s3_sleep_type.is_none() {
        fadt = fadt.flag(Flags::FixRtc);
    }
    if let Some((reset, value)) = config.reset {
        fadt.reset_reg = port(reset, 1, AccessSize::ByteAccess);
        fadt.reset_value = value;
        fadt = fadt.flag(Flags::ResetRegSup);
    }
    bytes(&fadt.finalize())
}

/// Interrupt controllers (ACPI 6.5, 5.2.12).
pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
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
        // What PCI interrupts can be routed to.
        let links = config.pci.as_ref().map_or(&[][..], |pci| &pci.link_irqs);
        for &irq in links.iter().filter(|&&irq| irq != config.sci) {
            override_source(irq, irq.into(), ACTIVE_HIGH_LEVEL);
        }
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

/// High precision event timer (IA-PC HPET specification 1.0a, 3.2.4): as many comparators and bits as
/// `trapline-chipset`'s has.
pub(super) fn hpet(address: u32) -> Vec<u8> {
    /// Low half of the capabilities register: revision 1, three timers, 64 bits, legacy replacement, Intel.
    const BLOCK_ID: u32 = 0x8086_a201;
    let mut out = BLOCK_ID.to_le_bytes().to_vec();
    out.extend([0, 64, 0, 0]); // in memory, 64 bits wide
    out.extend(u64::from(address).to_le_bytes());
    out.push(0); // the first one
    out.extend([0; 2]); // no lower limit of periods
    out.push(0); // no page protection
    out
}

/// Windows ACPI emulated devices table: what need not be worked around.
pub(super) fn waet() -> Vec<u8> {
    /// A read of the PM timer is good the first time.
    const PM_TIMER_GOOD: u32 = 1 << 1;
    PM_TIMER_GOOD.to_le_bytes().to_vec()
}
