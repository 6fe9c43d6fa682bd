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

/// Where the guest's code is.
pub const CODE: u64 = MIB;
/// Where the guest may have its interrupt descriptor table, below its stack.
pub const IDT: u32 = 0x30_0000;
const STACK: u32 = 0x38_0000;
/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A 32-bit ELF file in `dir` whose code, starting with a stack and interrupts off, is what `code` says.
pub fn kernel(
    dir: &tempfile::TempDir,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> std::path::PathBuf {
    let mut asm = CodeAssembler::new(32).unwrap();
    asm.mov(esp, STACK).unwrap();
    code(&mut asm).unwrap();
    let code = asm.assemble(CODE).unwrap();

    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    let half = |elf: &mut Vec<u8>, values: &[u16]| elf.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, values: &[u32]| elf.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let (start, size) = (CODE as u32, code.len() as u32);
    half(&mut elf, &[2, 3]); // executable, 386
    word(&mut elf, &[1, start, 52, 0, 0]);
    half(&mut elf, &[52, 32, 1, 40, 0, 0]);
    word(&mut elf, &[1, 84, start, start, size, size, 5, 4]); // one segment to load
    elf.extend(code);
    let path = dir.path().join("kernel");
    std::fs::write(&path, elf).unwrap();
    path
}

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
    let mut config = MicrovmConfig::new(kernel(&dir, code));
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

/// Guest: sets the gate of `vector` to `handler` and loads IDTR.
pub fn gate(a: &mut CodeAssembler, vector: u32, handler: CodeLabel) -> AsmResult {
    let entry = IDT + 8 * vector;
    let mut after = a.create_label();
    a.call(after)?; // pushes the address of the jump
    a.jmp(handler)?;
    a.set_label(&mut after)?;
    a.pop(eax)?;
    a.mov(ebx, eax)?;
    a.and(ebx, 0xffff)?;
    a.or(ebx, 0x10 << 16)?; // the kernel's code segment
    a.mov(dword_ptr(entry), ebx)?;
    a.and(eax, 0xffff_0000_u32 as i32)?;
    a.or(eax, 0x8e00)?;
    a.mov(dword_ptr(entry + 4), eax)?;
    let pointer = IDT - 8;
    a.mov(word_ptr(pointer), 0x7ff)?;
    a.mov(dword_ptr(pointer + 2), IDT)?;
    a.lidt(dword_ptr(pointer))
}
