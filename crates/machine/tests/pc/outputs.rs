//! Files for output: what was in them stays until the machine runs.

use std::fs;
use std::path::Path;

use trapline_machine::pc::Start;
use trapline_machine::{KernelConfig, Outcome, Pc, PcConfig, Serial};
use trapline_vcpu::Accel;

use crate::harness::*;

const OLD: &str = "the log of another run, longer than what this one says\n";

/// The serial port and the trace go to files in `dir`, where something is already.
fn to_files(config: &mut PcConfig, dir: &Path) {
    let old = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, OLD).unwrap();
        path
    };
    config.machine.memory = 32 * MIB;
    config.machine.accel = Accel::Soft;
    config.machine.serial = Serial::File(old("serial"));
    config.machine.trace = Some(old("trace"));
}

fn contents(dir: &Path) -> [String; 2] {
    ["serial", "trace"].map(|name| fs::read_to_string(dir.join(name)).unwrap())
}

/// The kernel's file is looked for when all else is there.
#[test]
fn a_machine_that_cannot_be_made_leaves_old_files_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = PcConfig::new(Start::Kernel(KernelConfig::new("/nowhere/vmlinuz")));
    to_files(&mut config, dir.path());
    let error = Pc::new(config).err().expect("there is no kernel");
    assert!(error.to_string().contains("vmlinuz"), "{error}");
    assert_eq!(contents(dir.path()), [OLD, OLD]);
}

#[test]
fn the_first_run_empties_old_files_and_the_next_goes_on_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = machine(
        Accel::Soft,
        direct(|a| {
            for byte in *b"ok" {
                out(a, COM1, byte.into())?;
                exit(a, 1)?;
            }
            Ok(())
        }),
        |config, _| to_files(config, dir.path()),
    );
    assert_eq!(contents(dir.path()), [OLD, OLD]);
    for said in ["o", "ok"] {
        assert_eq!(machine.pc.run().unwrap(), Outcome::DebugExit(3));
        assert_eq!(contents(dir.path())[0], said);
    }
    drop(machine);
    let [_, trace] = contents(dir.path());
    assert!(trace.starts_with("[\n{\"name\":\"thread_name\"") && trace.ends_with("}\n]\n"), "{trace}");
    assert!(trace.matches("\"port\":\"0x3f8\"").count() == 2 && !trace.contains("another run"), "{trace}");
}
