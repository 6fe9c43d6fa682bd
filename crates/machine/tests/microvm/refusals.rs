//! What a machine is not made from: one clear line each.

use crate::harness::*;
use trapline_machine::{MachineConfig, MicrovmConfig, Serial};

fn config(kernel: impl Into<std::path::PathBuf>) -> MicrovmConfig {
    with(kernel, |_| {})
}

/// A machine that differs from a good one.
fn with(kernel: impl Into<std::path::PathBuf>, change: impl FnOnce(&mut MachineConfig)) -> MicrovmConfig {
    let mut config = MicrovmConfig::new(kernel);
    (config.machine.memory, config.machine.serial) = (16 * MIB, Serial::Null);
    change(&mut config.machine);
    config
}

#[test]
fn impossible_machines_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let good = kernel(dir.path(), |a| exit(a, 1));
    let text = dir.path().join("text");
    std::fs::write(&text, "#!/bin/sh\n").unwrap();
    let short = dir.path().join("short");
    std::fs::write(&short, &std::fs::read(&good).unwrap()[..90]).unwrap();
    let large = dir.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(64 * MIB).unwrap();

    let mut with_initrd = config(&good);
    with_initrd.kernel.initrd = Some(large);
    let cases = [
        (config("/nowhere/vmlinuz"), "no such file"),
        (config(&text), "a script"),
        (config(&short), "truncated"),
        (config(dir.path()), "cannot open kernel"),
        (with_initrd, "too large"),
        (with(&good, |m| m.memory = 0), "size is zero"),
        (with(&good, |m| m.memory = 4096), "too small"),
        (with(&good, |m| m.memory = MIB + 1), "not a multiple"),
        (with(&good, |m| m.memory = 1 << 44), "more than"),
        (with(&good, |m| m.memory = 1 << 60), "too large"),
        (with(&good, |m| m.cpus = 0), "processors"),
        (with(&good, |m| m.cpus = 255), "processors"),
        (
            with(&good, |m| {
                m.icount = Some(0);
                m.cpus = 2;
            }),
            "one processor",
        ),
        (with(&good, |m| m.icount = Some(11)), "nanoseconds an instruction"),
        (with(&good, |m| m.serial = Serial::File("/nowhere/log".into())), "serial output"),
        (
            with(&good, |m| m.serial = Serial::Unix("/nowhere/socket".into())),
            "serial port to /nowhere/socket",
        ),
    ];
    for (config, expected) in cases {
        let what = format!("{config:?}");
        let line = refusal(config).to_string();
        // Without any engine, that is what is said at the end.
        let no_engine = line.contains("engine is not available") && expected == "serial output";
        assert!(line.contains(expected) || no_engine, "{what}: {line}");
        assert!(!line.contains('\n'), "{line}");
    }
}
