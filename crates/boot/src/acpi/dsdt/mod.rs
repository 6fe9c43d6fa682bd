//! The differentiated system description: the devices no bus can enumerate, in AML.

mod pci;

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};

use super::{AcpiConfig, VirtioMmio};

/// All AML of the table.
pub(super) fn body(config: &AcpiConfig) -> Vec<u8> {
    let mut out = Vec::new();
    let states = [(*b"_S3_", config.s3_sleep_type), (*b"_S4_", config.s4_sleep_type)];
    for (name, sleep) in states.into_iter().chain([(*b"_S5_", Some(config.s5_sleep_type))]) {
        if let Some(sleep) = sleep {
            let values = Package::new(vec![&sleep, &sleep, &0u8, &0u8]);
            Name::new(Path::new(&String::from_utf8_lossy(&name)), &values).to_aml_bytes(&mut out);
        }
    }

    let mut devices = Vec::new();
    for uid in (0u32..).take(config.apic_ids.len()) {
        processor(&mut devices, uid);
    }
    match &config.pci {
        Some(root) => pci::root(&mut devices, config, root, isa_devices(config)),
        None => devices.extend(isa_devices(config)),
    }
    if let Some(address) = config.hpet {
        hpet(&mut devices, address);
    }
    for (uid, device) in (0u32..).zip(&config.virtio_mmio) {
        virtio_mmio(&mut devices, uid, device);
    }
    Scope::new("\\_SB_".into(), vec![&Raw(devices)]).to_aml_bytes(&mut out);
    out
}

/// AML that is encoded already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// A name of a letter and three hexadecimal digits.
fn numbered(letter: char, number: u32) -> Path {
    Path::new(&format!("{letter}{number:03X}"))
}

/// Processor device (ACPI 6.5, 8.4): the UID ties it to its MADT structure.
fn processor(out: &mut Vec<u8>, uid: u32) {
    Device::new(
        numbered('C', uid),
        vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &uid)],
    )
    .to_aml_bytes(out);
}

/// The devices that have fixed ports: on an ISA bus, or on none that the guest knows of.
fn isa_devices(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::new();
    for (number, &(port, irq)) in (1u8..).zip(&config.serial) {
        numbered_port(&mut devices, "COM", "PNP0501", number, port, irq);
    }
    for (number, &(port, irq)) in (1u8..).zip(&config.parallel) {
        numbered_port(&mut devices, "LPT", "PNP0400", number, port, irq);
    }
    if config.rtc.is_some() {
        isa(&mut devices, "RTC_", "PNP0B00", &[(0x70, 2)], Some(8));
    }
    if config.i8042 {
        isa(&mut devices, "KBD_", "PNP0303", &[(0x60, 1), (0x64, 1)], Some(1));
        isa(&mut devices, "MOU_", "PNP0F13", &[], Some(12));
    }
    if let Some(port) = config.fw_cfg {
        fw_cfg(&mut devices, port);
    }
    devices
}

/// ISA interrupts are edge triggered, active high, exclusive.
fn isa_interrupt(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, irq.into())
}

/// A device with fixed ports and an ISA interrupt.
fn isa(out: &mut Vec<u8>, name: &str, id: &str, ports: &[(u16, u8)], irq: Option<u8>) {
    let ports: Vec<IO> = ports.iter().map(|&(port, length)| IO::new(port, port, 1, length)).collect();
    let irq = irq.map(isa_interrupt);
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    resources.extend(irq.iter().map(|irq| irq as &dyn Aml));
    Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(out);
}

/// A serial or parallel port: eight ports and an interrupt.
fn numbered_port(out: &mut Vec<u8>, kind: &str, id: &str, number: u8, port: u16, irq: u8) {
    Device::new(
        Path::new(&format!("{kind}{number}")),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &number),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(port, port, 1, 8), &isa_interrupt(irq)]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// The firmware configuration device (QEMU `docs/specs/fw_cfg.rst`), for drivers but not for users: "shown in
/// UI" is not set.
fn fw_cfg(out: &mut Vec<u8>, port: u16) {
    const PORTS: u8 = 12;
    Device::new(
        "FWCF".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0002"),
            &Name::new("_STA".into(), &0x0bu8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, PORTS)])),
        ],
    )
    .to_aml_bytes(out);
}

/// The HPET (IA-PC HPET specification 1.0a, 3.2.5.1): read-only memory, so that nobody gives it away.
fn hpet(out: &mut Vec<u8>, address: u32) {
    const SIZE: u32 = 0x400;
    Device::new(
        "HPET".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0103")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(false, address, SIZE)]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// Virtio over MMIO: `LNRO0005` is the identifier that guests' drivers look for.
fn virtio_mmio(out: &mut Vec<u8>, uid: u32, device: &VirtioMmio) {
    Device::new(
        numbered('V', uid),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, device.address, device.size),
                    &Interrupt::new(true, false, false, false, device.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
}
