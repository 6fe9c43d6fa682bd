//! ACPI tables of a PC: the files for firmware do what a direct boot does, and the AML is what ACPICA takes for
//! a PCI machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use trapline_boot::Error;
use trapline_boot::acpi::{self, AcpiConfig, FirmwareTables, IoApic, PciRoot, SmiCommand};

fn pc() -> AcpiConfig {
    AcpiConfig {
        apic_ids: vec![0, 1],
        io_apic: Some(IoApic { id: 0, address: 0xfec0_0000, gsi_base: 0 }),
        pic: true,
        timer_override: true,
        gpe0: Some((0xafe0, 4)),
        smi: Some(SmiCommand { port: 0xb2, enable: 0xf1, disable: 0xf0 }),
        reset: Some((0xcf9, 6)),
        s5_sleep_type: 0,
        i8042: true,
        vga: true,
        rtc: Some(0x32),
        serial: vec![(0x3f8, 4)],
        parallel: vec![(0x378, 7)],
        pci: Some(PciRoot {
            last_bus: 0xff,
            windows: vec![(0xc000_0000, 0xfebf_ffff), (0x1_0000_0000, 0x7f_ffff_ffff)],
            isa_bridge: 1,
            link_irqs: vec![5, 10, 11],
        }),
        hpet: Some(0xfed0_0000),
        fw_cfg: Some(0x510),
        waet: true,
        ..AcpiConfig::default()
    }
}

/// What firmware does with the script: files at the addresses given, by name.
fn execute(files: &FirmwareTables, places: &BTreeMap<&str, u32>) -> BTreeMap<String, Vec<u8>> {
    let mut placed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let name =
        |bytes: &[u8]| String::from_utf8(bytes.iter().copied().take_while(|b| *b != 0).collect()).unwrap();
    for command in files.loader.chunks(128) {
        let number = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap());
        let file = name(&command[4..60]);
        match number(0) {
            1 => {
                let (content, zone) = match &*file {
                    "etc/acpi/rsdp" => (&files.rsdp, 2),
                    "etc/acpi/tables" => (&files.tables, 1),
                    other => panic!("{other}"),
                };
                assert_eq!(command[64], zone);
                assert!(places[&*file].is_multiple_of(number(60)));
                assert!(placed.insert(file, content.clone()).is_none());
            }
            2 => {
                let target = places[&*name(&command[60..116])];
                let (at, size) = (number(116) as usize, usize::from(command[120]));
                let field = &mut placed.get_mut(&file).unwrap()[at..at + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let value = (u64::from_le_bytes(value) + u64::from(target)).to_le_bytes();
                field.copy_from_slice(&value[..size]);
            }
            3 => {
                let [at, start, len] = [60, 64, 68].map(|field| number(field) as usize);
                let content = placed.get_mut(&file).unwrap();
                assert_eq!(content[at], 0);
                content[at] = content[start..start + len].iter().fold(0, |sum: u8, b| sum.wrapping_sub(*b));
            }
            other => panic!("command {other}"),
        }
    }
    assert_eq!(files.loader.len() % 128, 0);
    placed
}

#[test]
fn firmware_makes_what_a_direct_boot_is_given() {
    let files = acpi::firmware(&pc()).unwrap();
    let direct = acpi::build(&pc(), 0xe_0000).unwrap();
    let places = BTreeMap::from([(acpi::RSDP_FILE, 0xe_0000), (acpi::TABLES_FILE, 0xe_0040)]);
    let placed = execute(&files, &places);
    assert_eq!(placed[acpi::RSDP_FILE], direct[..36]);
    assert_eq!(placed[acpi::TABLES_FILE], direct[64..]);
    // Elsewhere, too, everything adds up: only the RSDP is found by searching.
    let places = BTreeMap::from([(acpi::RSDP_FILE, 0xf_6230), (acpi::TABLES_FILE, 0xbffe_0000)]);
    let placed = execute(&files, &places);
    let (rsdp, tables) = (&placed[acpi::RSDP_FILE], &placed[acpi::TABLES_FILE]);
    let number = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap());
    let at = |address: u32| &tables[(address - 0xbffe_0000) as usize..];
    let rsdt = at(number(&rsdp[16..]));
    let found: Vec<&[u8]> =
        (36..number(&rsdt[4..]) as usize).step_by(4).map(|entry| &at(number(&rsdt[entry..]))[..4]).collect();
    assert_eq!(found, [b"FACP", b"APIC", b"HPET", b"WAET"]);
}

fn table<'a>(blob: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
    let at = (0..blob.len()).step_by(64).find(|&at| blob[at..].starts_with(signature)).unwrap();
    let len = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap());
    &blob[at..at + len as usize]
}

#[test]
fn interrupts_that_links_can_be_set_to_are_level_triggered() {
    let blob = acpi::build(&pc(), 0xe_0000).unwrap();
    let madt = table(&blob, b"APIC");
    for irq in [5, 9, 10, 11] {
        let entry = [2, 10, 0, irq, irq, 0, 0, 0, 0b1101, 0];
        assert!(madt.windows(10).any(|window| window == entry), "{irq}");
    }
}

#[test]
fn the_hpet_is_described() {
    let blob = acpi::build(&pc(), 0xe_0000).unwrap();
    let hpet = table(&blob, b"HPET");
    assert_eq!(hpet.len(), 56);
    // Revision 1, three comparators, 64 bits, legacy replacement, Intel.
    assert_eq!(hpet[36..40], [0x01, 0xa2, 0x86, 0x80]);
    assert_eq!(hpet[40..52], [0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0]);
    let waet = table(&blob, b"WAET");
    assert_eq!((waet.len(), waet[36]), (40, 2));
}

#[test]
fn impossible_pci_machines_are_refused() {
    let refused = |change: fn(&mut PciRoot)| {
        let mut config = pc();
        change(config.pci.as_mut().unwrap());
        match acpi::firmware(&config) {
            Err(Error::Tables(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|pci| pci.isa_bridge = 32), "isa bridge is pci device 32, 0 to 31 are possible");
    refused(|pci| pci.link_irqs = vec![]);
    refused(|pci| pci.link_irqs = vec![16]);
    refused(|pci| pci.windows = vec![(0xc000_0000, 0x1_0000_0000)]);
    refused(|pci| pci.windows = vec![(0, u64::MAX)]);
    refused(|pci| pci.windows = vec![(2, 1)]);
    refused(|pci| pci.windows = vec![(0, 1); 17]);
    assert!(acpi::firmware(&AcpiConfig { s3_sleep_type: Some(8), ..pc() }).is_err());
}

/// Runs a tool of ACPICA in `folder`, or says that it is not there. Returns what it prints.
fn acpica(folder: &Path, tool: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(tool).args(arguments).current_dir(folder).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(output.status.success(), "{tool} {arguments:?}: {text}");
            Some(text)
        }
        Err(error) => {
            eprintln!("skipped: {tool} cannot be started ({error}); it is in Debian's acpica-tools");
            None
        }
    }
}

#[test]
fn iasl_disassembles_the_aml_and_compiles_it_again() {
    let folder = tempfile::tempdir().unwrap();
    for (name, config) in [("pc", pc()), ("bare", AcpiConfig::default())] {
        let blob = acpi::build(&config, 0xe_0000).unwrap();
        std::fs::write(folder.path().join(format!("{name}.aml")), table(&blob, b"DSDT")).unwrap();
        let Some(_) = acpica(folder.path(), "iasl", &["-d", &format!("{name}.aml")]) else { return };
        let source = format!("{name}.dsl");
        let text = std::fs::read_to_string(folder.path().join(&source)).unwrap();
        assert!(!text.contains("Unresolved") && !text.contains("Error"), "{text}");
        let report = acpica(folder.path(), "iasl", &["-p", "again", &source]).unwrap();
        assert!(report.contains("0 Errors, 0 Warnings"), "{report}");
    }
    for signature in [b"FACP", b"APIC", b"HPET", b"WAET"] {
        let name = String::from_utf8_lossy(signature);
        let blob = acpi::build(&pc(), 0xe_0000).unwrap();
        std::fs::write(folder.path().join(format!("{name}.aml")), table(&blob, signature)).unwrap();
        let report = acpica(folder.path(), "iasl", &["-d", &format!("{name}.aml")]).unwrap();
        assert!(!report.contains("rror") && !report.contains("arning"), "{report}");
    }
}

#[test]
fn acpica_executes_the_links() {
    let folder = tempfile::tempdir().unwrap();
    let blob = acpi::build(&pc(), 0xe_0000).unwrap();
    std::fs::write(folder.path().join("pc.aml"), table(&blob, b"DSDT")).unwrap();
    let evaluate = |commands: &str| acpica(folder.path(), "acpiexec", &["-b", commands, "pc.aml"]);
    let Some(text) = evaluate("resources \\_SB.LNKB") else { return };
    for failed in ["Could not", "failed", "Error"] {
        assert!(!text.contains(failed), "{text}");
    }
    assert!(text.contains("Evaluating _SRS"), "{text}");
    let text = evaluate(
        "execute \\_SB.LNKB._STA;execute \\_SB.LNKB._DIS;execute \\_SB.LNKB._STA;execute \\_SB.LNKB._CRS",
    )
    .unwrap();
    // Present, decoding, functioning; then no longer decoding, and without an interrupt.
    let (enabled, disabled) = text.split_once("LNKB._DIS").unwrap();
    assert!(enabled.contains("[Integer] = 000000000000000B"), "{text}");
    assert!(disabled.contains("[Integer] = 0000000000000009"), "{text}");
    assert!(disabled.contains("89 06 00 09 01 00 00 00 00 79"), "{text}");
    let text = evaluate("resources \\_SB.PCI0").unwrap();
    for line in ["Address Maximum : FEBFFFFF", "Address Maximum : 0000007FFFFFFFFF", "Address Length : F300"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
}
