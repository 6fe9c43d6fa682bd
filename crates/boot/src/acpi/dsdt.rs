//! The differentiated system description: the devices no bus can enumerate, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};

use super::{AcpiConfig, VirtioMmio};

/// All AML of the table.
pub(super) fn body(config: &AcpiConfig) -> Vec<u8> {
    let mut out = Vec::new();
    let sleep = config.s5_sleep_type;
    Name::new("_S5_".into(), &Package::new(vec![&sleep, &sleep, &0u8, &0u8])).to_aml_bytes(&mut out);

    let mut devices = Vec::new();
    for uid in (0u32..).take(config.apic_ids.len()) {
        processor(&mut devices, uid);
    }
    for (number, &(port, irq)) in (1u8..).zip(&config.serial) {
        serial(&mut devices, number, port, irq);
    }
    if config.rtc.is_some() {
        isa(&mut devices, "RTC_", "PNP0B00", &[(0x70, 2)], Some(8));
    }
    if config.i8042 {
        isa(&mut devices, "KBD_", "PNP0303", &[(0x60, 1), (0x64, 1)], Some(1));
        isa(&mut devices, "MOU_", "PNP0F13", &[], Some(12));
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

/// 16550A-compatible serial port.
fn serial(out: &mut Vec<u8>, number: u8, port: u16, irq: u8) {
    Device::new(
        Path::new(&format!("COM{number}")),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &number),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(port, port, 1, 8), &isa_interrupt(irq)]),
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
