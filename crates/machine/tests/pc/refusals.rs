//! What a machine is not made from: one clear line each.

use std::path::Path;

use trapline_disk::OpenOptions;
use trapline_machine::pc::{DriveConfig, Firmware, Start, VgaOptions};
use trapline_machine::{KernelConfig, Pc, PcConfig, Serial};

use crate::harness::*;

fn with(start: Start, change: impl FnOnce(&mut PcConfig)) -> PcConfig {
    let mut config = PcConfig::new(start);
    (config.machine.memory, config.machine.serial) = (16 * MIB, Serial::Null);
    change(&mut config);
    config
}

#[test]
fn impossible_machines_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, size: u64| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let firmware = |image: &Path| Start::Firmware(Firmware::new(image));
    let good = || firmware(&file("rom", 0x1_0000));
    let image = file("disk.img", MIB);
    let drives = |drives: Vec<DriveConfig>| with(good(), move |config| config.drives = drives);
    let cdrom = |index| DriveConfig { index: Some(index), ..DriveConfig::cdrom(&image) };
    let vga = |options| with(good(), move |config| config.vga = Some(options));

    let cases = [
        (with(firmware(Path::new("/nowhere/bios")), |_| {}), "cannot use firmware /nowhere/bios"),
        (with(firmware(&file("odd", 100)), |_| {}), "100 bytes; expected a multiple of 4 KiB"),
        (with(firmware(&file("empty", 0)), |_| {}), "0 bytes; expected a multiple of 4 KiB"),
        (with(firmware(&file("large", 16 << 20)), |_| {}), "at most 8 MiB"),
        (with(Start::Kernel(KernelConfig::new("/nowhere/vmlinuz")), |_| {}), "no such file"),
        (drives(vec![raw("/nowhere/disk")]), "cannot open disk /nowhere/disk: No such file or directory"),
        (drives(vec![DriveConfig::disk(OpenOptions::new(&image))]), "the format of a writable disk"),
        (drives(vec![raw(&image), raw(&image)]), "disk.img"),
        (drives(vec![cdrom(1), cdrom(1)]), "two drives have index 1"),
        (drives((0..5).map(|_| DriveConfig::cdrom(&image)).collect()), "places for 4 drives"),
        (vga(VgaOptions { bios: Some("/nowhere/vgabios".into()), ..Default::default() }), "/nowhere/vgabios"),
        (vga(VgaOptions { memory: 3 << 20, ..Default::default() }), "not a power of two"),
        (vga(VgaOptions { memory: 64 << 20, ..Default::default() }), "device area"),
        (with(good(), |config| config.machine.memory = 4096), "too small"),
        (with(good(), |config| config.machine.cpus = 0), "processors"),
    ];
    for (config, expected) in cases {
        let what = format!("{config:?}");
        let line = match Pc::new(config) {
            Ok(_) => panic!("accepted: {what}"),
            Err(e) => e.to_string(),
        };
        assert!(line.contains(expected), "{what}: {line}");
        assert!(!line.contains('\n'), "{line}");
    }
}
