//! The house of `docs/architecture.md`: dependencies point down only.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The storeys, from the top. A crate may depend on those below its own, not on its own or above.
const HOUSE: &[&[&str]] = &[
    &["trapline", "xtask"],
    &["trapline-machine"],
    &["trapline-boot", "trapline-qmp", "trapline-vnc"],
    &["trapline-vcpu"],
    &["trapline-softcpu"],
    &["trapline-ide", "trapline-virtio", "trapline-chipset", "trapline-irqchip", "trapline-display"],
    &["trapline-pci"],
    &["trapline-disk", "trapline-net"],
    &["trapline-device"],
    &["trapline-memory"],
    &["trapline-vmx"],
];

/// Arrows that point down but are not wanted either: the processor is no part of a PC, the devices know no
/// processor.
const NEVER: &[(&str, &[&str])] = &[
    ("trapline-softcpu", &["trapline-device", "trapline-irqchip", "trapline-pci", "trapline-chipset"]),
    // Of the device families the soft engine needs one: its local APICs are irqchip's.
    (
        "trapline-vcpu",
        &["trapline-chipset", "trapline-pci", "trapline-ide", "trapline-virtio", "trapline-disk"],
    ),
    ("trapline-boot", &["trapline-vcpu", "trapline-softcpu"]),
    ("trapline-chipset", &["trapline-memory", "trapline-vmx", "trapline-pci", "trapline-disk"]),
    ("trapline-irqchip", &["trapline-memory", "trapline-vmx", "trapline-pci", "trapline-disk"]),
    ("trapline-disk", &["trapline-device"]),
];

/// Packages that may hold no hypervisor: only the engine knows one.
const ONLY_VCPU: &str = "kvm-ioctls";

#[test]
fn dependencies_point_down() {
    let metadata = MetadataCommand::new().no_deps().other_options(["--offline".to_owned()]).exec().unwrap();
    let storey: BTreeMap<&str, usize> = HOUSE
        .iter()
        .enumerate()
        .flat_map(|(level, names)| names.iter().map(move |name| (*name, level)))
        .collect();

    let mut wrong = Vec::new();
    let mut arrows = 0;
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some(&level) = storey.get(name) else {
            wrong.push(format!("{name} has no place in the house"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let below = dependency.name.as_str();
            if below == ONLY_VCPU && name != "trapline-vcpu" {
                wrong.push(format!("{name} depends on {below}"));
            }
            let Some(&other) = storey.get(below) else { continue };
            arrows += 1;
            if other <= level {
                wrong.push(format!("{name} depends on {below}, which is not below it"));
            }
            if NEVER.iter().any(|(from, to)| *from == name && to.contains(&below)) {
                wrong.push(format!("{name} must not depend on {below}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(arrows > 10, "only {arrows} dependencies found");
}
