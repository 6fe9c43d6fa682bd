//! Tiny guests on the board `microvm`.

#[path = "../common/mod.rs"]
mod common;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use common::*;
use iced_x86::code_asm::*;
use trapline_machine::{Error, MachineConfig, Microvm, MicrovmConfig, Serial};
use trapline_vcpu::Accel;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with one processor and 4 MiB, and the output of its serial port.
pub fn machine(
    accel: Accel,
    input: Option<OwnedFd>,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> (Microvm, Output) {
    machine_with_cpus(1, accel, input, code)
}

/// The same with any number of processors.
pub fn machine_with_cpus(
    cpus: u32,
    accel: Accel,
    input: Option<OwnedFd>,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> (Microvm, Output) {
    let dir = tempfile::tempdir().unwrap();
    let output = Output::default();
    let mut config = MicrovmConfig::new(kernel(dir.path(), code));
    config.machine = MachineConfig {
        memory: 4 * MIB,
        cpus,
        accel,
        serial: Serial::Custom { output: Box::new(output.clone()), input },
        ..MachineConfig::default()
    };
    (Microvm::new(config).unwrap(), output)
}

/// Runs a guest to its end.
pub fn run(accel: Accel, code: impl FnOnce(&mut CodeAssembler) -> AsmResult) -> Ran {
    let (machine, output) = machine(accel, None, code);
    finish(machine, output)
}

/// Runs a guest that is fed `input`.
pub fn run_with_input(accel: Accel, input: &[u8], code: impl FnOnce(&mut CodeAssembler) -> AsmResult) -> Ran {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let (machine, output) = machine(accel, Some(File::into(file)), code);
    finish(machine, output)
}

/// Runs a machine to its end, or until patience ends, which is a failure.
pub fn finish(mut machine: Microvm, output: Output) -> Ran {
    let (outcome, late) = watched(machine.remote(), PATIENCE, || machine.run());
    assert!(!late, "the guest hangs; it said {:?}\n{}", output.text(), machine.stats());
    Ran { outcome: outcome.unwrap(), output: output.text(), stats: machine.stats() }
}

/// What can be wrong with a configuration.
pub fn refusal(config: MicrovmConfig) -> Error {
    match Microvm::new(config) {
        Ok(_) => panic!("accepted"),
        Err(e) => e,
    }
}
