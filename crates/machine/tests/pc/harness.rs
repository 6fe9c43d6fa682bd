//! Machines with SeaBIOS and a boot sector.

#[path = "../common/mod.rs"]
mod common;

use std::path::Path;
use std::time::Duration;

pub use common::*;
use iced_x86::code_asm::*;
use trapline_disk::{Format, OpenOptions};
use trapline_machine::pc::{DriveConfig, Firmware, Start};
use trapline_machine::{MachineConfig, Pc, PcConfig, Serial};
use trapline_vcpu::Accel;

pub const SECTOR: usize = 512;
/// Where the firmware loads a boot sector.
pub const BOOT: u64 = 0x7c00;
/// Longer than any guest takes, even where the kernel emulates it.
const PATIENCE: Duration = Duration::from_secs(180);

/// Debian's SeaBIOS, or a word on why there is no test.
pub fn seabios() -> Option<Firmware> {
    let firmware: Firmware = "seabios".parse().unwrap();
    let there = firmware.image.exists();
    if !there {
        eprintln!("skipped: no {} (package seabios)", firmware.image.display());
    }
    there.then_some(firmware)
}

/// A disk image in `dir` that begins with a boot sector, and goes on with `rest`.
pub fn disk(
    dir: &Path,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
    rest: &[u8],
) -> std::path::PathBuf {
    let mut asm = CodeAssembler::new(16).unwrap();
    code(&mut asm).unwrap();
    let mut image = asm.assemble(BOOT).unwrap();
    assert!(image.len() <= SECTOR - 2, "the boot sector has {} bytes", image.len());
    image.resize(SECTOR - 2, 0);
    image.extend([0x55, 0xaa]);
    image.extend(rest);
    image.resize(image.len().next_multiple_of(SECTOR).max(1 << 20), 0);
    let path = dir.join("disk.img");
    std::fs::write(&path, image).unwrap();
    path
}

/// A raw disk at the first free place.
pub fn raw(path: impl Into<std::path::PathBuf>) -> DriveConfig {
    DriveConfig::disk(OpenOptions { format: Some(Format::Raw), ..OpenOptions::new(path) })
}

/// A machine with its firmware, and the outputs of its serial port and debug console.
pub fn machine(accel: Accel, firmware: Firmware, change: impl FnOnce(&mut PcConfig)) -> (Pc, Output, Output) {
    let (serial, log) = (Output::default(), Output::default());
    let mut config = PcConfig::new(Start::Firmware(firmware));
    config.machine = MachineConfig {
        memory: 32 * MIB,
        accel,
        serial: Serial::Custom { output: Box::new(serial.clone()), input: None },
        ..MachineConfig::default()
    };
    config.debug_console = Some(Box::new(log.clone()));
    change(&mut config);
    (Pc::new(config).unwrap(), serial, log)
}

/// Runs a machine to its end, or until patience ends, which is a failure.
pub fn finish((mut machine, serial, log): (Pc, Output, Output)) -> Ran {
    let (outcome, late) = watched(machine.remote(), PATIENCE, || machine.run());
    let said = || format!("it said {:?}\n{}\n{}", serial.text(), log.text(), machine.stats());
    assert!(!late, "the guest hangs; {}", said());
    Ran { outcome: outcome.unwrap(), output: serial.text(), stats: machine.stats() }
}

/// Guest in real mode: sends the bytes at DS:SI up to a zero to COM1. Changes AX, DX and SI.
pub fn print(a: &mut CodeAssembler) -> AsmResult {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.mov(dx, COM1)?;
    a.cld()?;
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(end)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.nop()
}
