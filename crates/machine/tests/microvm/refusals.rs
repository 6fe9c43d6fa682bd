//! What a machine is not made from: one clear line each.

use crate::harness::*;
use trapline_machine::{MicrovmConfig, Serial};

fn config(kernel: impl Into<std::path::PathBuf>) -> MicrovmConfig {
    MicrovmConfig { memory: 16 * MIB, serial: Serial::Null, ..MicrovmConfig::new(kernel) }
}

#[test]
fn impossible_machines_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let good = kernel(&dir, |a| exit(a, 1));
    let text = dir.path().join("text");
    std::fs::write(&text, "#!/bin/sh\n").unwrap();
    let short = dir.path().join("short");
    std::fs::write(&short, &std::fs::read(&good).unwrap()[..90]).unwrap();
    let large = dir.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(64 * MIB).unwrap();

    let cases = [
        (config("/nowhere/vmlinuz"), "no such file"),
        (config(&text), "a script"),
        (config(&short), "truncated"),
        (config(dir.path()), "cannot open kernel"),
        (MicrovmConfig { initrd: Some(large), ..config(&good) }, "too large"),
        (MicrovmConfig { memory: 0, ..config(&good) }, "size is zero"),
        (MicrovmConfig { memory: 4096, ..config(&good) }, "too small"),
        (MicrovmConfig { memory: MIB + 1, ..config(&good) }, "not a multiple"),
        (MicrovmConfig { memory: 1 << 44, ..config(&good) }, "more than"),
        (MicrovmConfig { memory: 1 << 60, ..config(&good) }, "too large"),
        (MicrovmConfig { cpus: 0, ..config(&good) }, "processors"),
        (MicrovmConfig { cpus: 255, ..config(&good) }, "processors"),
        (MicrovmConfig { icount: Some(0), cpus: 2, ..config(&good) }, "one processor"),
        (MicrovmConfig { icount: Some(11), ..config(&good) }, "nanoseconds an instruction"),
        (MicrovmConfig { serial: Serial::File("/nowhere/log".into()), ..config(&good) }, "serial output"),
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
