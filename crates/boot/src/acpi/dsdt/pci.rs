//! The PCI root bus: what it decodes, and how its interrupt pins are wired (ACPI 6.5, 6.2.13 and 6.4; PCI
//! Firmware 3.3, 4.1).
//!
//! Pins lead to the PIRQ inputs A to D of a PIIX3 as on every i440FX board (INTA# of device 1 on PIRQA, the
//! others rotated). Each input is a link device that can be set to some ISA interrupts, through the bridge's
//! PIRQ route registers. The interrupt arrives at the same pin of the I/O APIC, so routing is the same in
//! APIC mode. INTA# of the bridge's own device is the system control interrupt.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, LessThan, Method, Name, OpRegion,
    OpRegionSpace, Or, Package, Path, ResourceTemplate, Return, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::{Raw, isa};
use crate::acpi::{AcpiConfig, PciRoot};

/// Where the ports of configuration accesses are.
const CONFIG: u16 = 0xcf8;
const CONFIG_LEN: u8 = 8;
/// First of the four PIRQ route registers in the bridge's configuration space.
const PIRQRC: u8 = 0x60;
/// PIRQRC: not routed.
const DISABLED: u8 = 0x80;
/// Where an extended interrupt descriptor has its first interrupt.
const FIRST_NUMBER: u8 = 5;

/// The root bus with `isa_devices` behind its ISA bridge, and the link devices.
pub(super) fn root(out: &mut Vec<u8>, config: &AcpiConfig, pci: &PciRoot, isa_devices: Vec<u8>) {
    let resources = resources(config, pci);
    let mut children = Vec::new();
    Name::new("_HID".into(), &EISAName::new("PNP0A03")).to_aml_bytes(&mut children);
    Name::new("_UID".into(), &0u8).to_aml_bytes(&mut children);
    Name::new("_CRS".into(), &ResourceTemplate::new(resources.iter().map(|r| &**r).collect()))
        .to_aml_bytes(&mut children);
    routes(&mut children, pci);
    isa_bridge(&mut children, pci, isa_devices);
    // Ports that the windows above would otherwise offer to PCI.
    if let Some((port, length)) = config.gpe0.filter(|gpe0| gpe0.0 > CONFIG) {
        isa(&mut children, "GPE0", "PNP0C02", &[(port, length)], None);
    }
    Device::new("PCI0".into(), vec![&Raw(children)]).to_aml_bytes(out);
    for (uid, name) in (0u8..).zip(["A", "B", "C", "D"]) {
        link(out, uid, name, &pci.link_irqs);
    }
    sci_link(out, config.sci);
}

/// What the bus decodes: bus numbers, ports, memory.
fn resources(config: &AcpiConfig, pci: &PciRoot) -> Vec<Box<dyn Aml>> {
    use AddressSpaceCacheable::{Cacheable, NotCacheable};
    let mut out: Vec<Box<dyn Aml>> = vec![
        Box::new(AddressSpace::<u16>::new_bus_number(0, pci.last_bus.into())),
        Box::new(IO::new(CONFIG, CONFIG, 1, CONFIG_LEN)),
        Box::new(AddressSpace::<u16>::new_io(0, CONFIG - 1, None)),
        Box::new(AddressSpace::<u16>::new_io(CONFIG + u16::from(CONFIG_LEN), u16::MAX, None)),
    ];
    if config.vga {
        out.push(Box::new(AddressSpace::<u32>::new_memory(Cacheable, true, 0xa_0000, 0xb_ffff, None)));
    }
    for &(first, last) in &pci.windows {
        match (u32::try_from(first), u32::try_from(last)) {
            (Ok(first), Ok(last)) => {
                out.push(Box::new(AddressSpace::<u32>::new_memory(NotCacheable, true, first, last, None)));
            }
            _ => out.push(Box::new(AddressSpace::<u64>::new_memory(Cacheable, true, first, last, None))),
        }
    }
    out
}

/// `_PRT`: each pin of each device leads to a link.
fn routes(out: &mut Vec<u8>, pci: &PciRoot) {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut entries = Vec::new();
    for device in 0..32u8 {
        for pin in 0..4u8 {
            let link = match (device == pci.isa_bridge, pin) {
                (true, 0) => "LNKS",
                _ => ["LNKA", "LNKB", "LNKC", "LNKD"][usize::from((pin + device + 3) & 3)],
            };
            let address = u32::from(device) << 16 | ANY_FUNCTION;
            let mut entry = Vec::new();
            Package::new(vec![&address, &pin, &Path::new(link), &ZERO]).to_aml_bytes(&mut entry);
            entries.push(Raw(entry));
        }
    }
    let entries = entries.iter().map(|entry| entry as &dyn Aml).collect();
    Name::new("_PRT".into(), &Package::new(entries)).to_aml_bytes(out);
}

/// The PIIX3: its PIRQ route registers, and the devices behind it.
fn isa_bridge(out: &mut Vec<u8>, pci: &PciRoot, devices: Vec<u8>) {
    let registers = [*b"PRQA", *b"PRQB", *b"PRQC", *b"PRQD"];
    Device::new(
        "ISA_".into(),
        vec![
            &Name::new("_ADR".into(), &(u32::from(pci.isa_bridge) << 16)),
            &OpRegion::new("PIRQ".into(), OpRegionSpace::PCIConfig, &PIRQRC, &4u8),
            &Field::new(
                "PIRQ".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                registers.map(|name| FieldEntry::Named(name, 8)).to_vec(),
            ),
            &Raw(devices),
        ],
    )
    .to_aml_bytes(out);
}

/// A PIRQ input, which can be set to any of `irqs`.
fn link(out: &mut Vec<u8>, uid: u8, letter: &str, irqs: &[u8]) {
    let register = Path::new(&format!("\\_SB_.PCI0.ISA_.PRQ{letter}"));
    let (current, number) = (Path::new("CURR"), Path::new("IRQN"));
    let disabled = And::new(&ZERO, &register, &DISABLED);
    Device::new(
        Path::new(&format!("LNK{letter}")),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0F")),
            &Name::new("_UID".into(), &uid),
            &Name::new("_PRS".into(), &ResourceTemplate::new(vec![&Interrupts(irqs)])),
            // What _CRS returns, with its interrupt filled in.
            &Name::new("CURR".into(), &ResourceTemplate::new(vec![&Interrupts(&[0])])),
            &CreateDWordField::new(&number, &current, &FIRST_NUMBER),
            &Method::new(
                "_STA".into(),
                0,
                false,
                vec![
                    &If::new(&Equal::new(&disabled, &ZERO), vec![&Return::new(&0x0bu8)]),
                    &Return::new(&0x09u8),
                ],
            ),
            &Method::new("_DIS".into(), 0, false, vec![&Or::new(&register, &register, &DISABLED)]),
            &Method::new(
                "_CRS".into(),
                0,
                false,
                vec![
                    &If::new(&LessThan::new(&register, &DISABLED), vec![&Store::new(&number, &register)]),
                    &Else::new(vec![&Store::new(&number, &ZERO)]),
                    &Return::new(&current),
                ],
            ),
            &Method::new(
                "_SRS".into(),
                1,
                true,
                vec![
                    &CreateDWordField::new(&Path::new("WANT"), &Arg(0), &FIRST_NUMBER),
                    &Store::new(&register, &Path::new("WANT")),
                ],
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// The system control interrupt as a link that cannot be changed.
fn sci_link(out: &mut Vec<u8>, sci: u8) {
    let irqs = [sci];
    Device::new(
        "LNKS".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0F")),
            &Name::new("_UID".into(), &4u8),
            &Name::new("_STA".into(), &0x0bu8),
            &Name::new("_PRS".into(), &ResourceTemplate::new(vec![&Interrupts(&irqs)])),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&Interrupts(&irqs)])),
            &Method::new("_DIS".into(), 0, false, vec![]),
            &Method::new("_SRS".into(), 1, false, vec![]),
        ],
    )
    .to_aml_bytes(out);
}

/// Extended interrupt descriptor of a consumer: one of these, level triggered, active high, shared.
struct Interrupts<'a>(&'a [u8]);

impl Aml for Interrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const TAG: u8 = 0x89;
        const CONSUMER: u8 = 1 << 0;
        const SHARED: u8 = 1 << 3;
        sink.byte(TAG);
        sink.word(2 + 4 * self.0.len() as u16);
        sink.byte(CONSUMER | SHARED);
        sink.byte(self.0.len() as u8);
        for &irq in self.0 {
            sink.dword(irq.into());
        }
    }
}
