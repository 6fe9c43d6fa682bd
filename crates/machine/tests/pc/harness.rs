//! Machines with firmware, or with a kernel and without.

#[path = "../common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use common::*;
use iced_x86::code_asm::*;
use tempfile::TempDir;
use trapline_disk::{Format, OpenOptions};
use trapline_machine::pc::{DriveConfig, Firmware, Start};
use trapline_machine::{KernelConfig, MachineConfig, Pc, PcConfig, Serial};
use trapline_vcpu::Accel;

pub const SECTOR: usize = 512;
/// Where the firmware loads a boot sector.
pub const BOOT: u64 = 0x7c00;
/// Longer than any guest takes, even where the kernel emulates it.
const PATIENCE: Duration = Duration::from_secs(180);

/// A machine, what it is made of, and the outputs of its serial port and debug console.
pub struct Machine {
    pub pc: Pc,
    pub serial: Output,
    pub log: Output,
    /// Its files: a reset loads a kernel again.
    _dir: TempDir,
}

/// Debian's SeaBIOS, or a word on why there is no test.
pub fn seabios() -> Option<Start> {
    let firmware: Firmware = "seabios".parse().unwrap();
    let there = firmware.image.exists();
    if !there {
        eprintln!("skipped: no {} (package seabios)", firmware.image.display());
    }
    there.then_some(Start::Firmware(firmware))
}

/// A disk image in `dir` that begins with a boot sector, and goes on with `rest`.
pub fn disk(dir: &Path, code: impl FnOnce(&mut CodeAssembler) -> AsmResult, rest: &[u8]) -> PathBuf {
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
pub fn raw(path: impl Into<PathBuf>) -> DriveConfig {
    DriveConfig::disk(OpenOptions { format: Some(Format::Raw), ..OpenOptions::new(path) })
}

/// A machine that starts with what `start` makes in a folder, and has what `change` gives it.
pub fn machine(
    accel: Accel,
    start: impl FnOnce(&Path) -> Start,
    change: impl FnOnce(&mut PcConfig, &Path),
) -> Machine {
    let (serial, log, dir) = (Output::default(), Output::default(), tempfile::tempdir().unwrap());
    let mut config = PcConfig::new(start(dir.path()));
    config.machine = MachineConfig {
        memory: 32 * MIB,
        accel,
        serial: Serial::Custom { output: Box::new(serial.clone()), input: None },
        ..MachineConfig::default()
    };
    config.debug_console = Some(Box::new(log.clone()));
    change(&mut config, dir.path());
    Machine { pc: Pc::new(config).unwrap(), serial, log, _dir: dir }
}

/// What starts `code` without firmware: as on the board `microvm`.
pub fn direct(code: impl FnOnce(&mut CodeAssembler) -> AsmResult) -> impl FnOnce(&Path) -> Start {
    |dir| Start::Kernel(KernelConfig::new(kernel(dir, code)))
}

/// Size of a [`rom`], and what fills it where no code is.
pub const ROM_SIZE: usize = 0x2_0000;
pub const ROM_FILL: u8 = 0xcc;

/// What starts a firmware ROM of 128 KiB whose code is executed after power-on, in real mode.
pub fn rom(code: impl FnOnce(&mut CodeAssembler) -> AsmResult) -> impl FnOnce(&Path) -> Start {
    /// In the last 64 KiB.
    const CODE: usize = 0xe000;
    |dir| {
        let mut asm = CodeAssembler::new(16).unwrap();
        code(&mut asm).unwrap();
        let code = asm.assemble(CODE as u64).unwrap();
        let mut image = vec![ROM_FILL; ROM_SIZE];
        let segment = &mut image[ROM_SIZE - 0x1_0000..];
        segment[CODE..CODE + code.len()].copy_from_slice(&code);
        let distance = (CODE as i32 - (0xfff0 + 3)) as i16;
        segment[0xfff0] = 0xe9; // jmp
        segment[0xfff1..0xfff3].copy_from_slice(&distance.to_le_bytes());
        let image_path = dir.join("rom");
        std::fs::write(&image_path, image).unwrap();
        Start::Firmware(Firmware::new(image_path))
    }
}

/// Runs a machine to its end, or until patience ends, which is a failure.
pub fn finish(machine: Machine) -> Ran {
    let Machine { mut pc, serial, log, _dir } = machine;
    let (outcome, late) = watched(pc.remote(), PATIENCE, || pc.run());
    let said = || format!("it said {:?}\n{}\n{}", serial.text(), log.text(), pc.stats());
    assert!(!late, "the guest hangs; {}", said());
    Ran { outcome: outcome.unwrap(), output: serial.text(), stats: pc.stats() }
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

/// Guest in real mode: ends with `(value << 1) | 1`.
pub fn exit16(a: &mut CodeAssembler, value: u32) -> AsmResult {
    a.mov(dx, DEBUG_EXIT)?;
    a.mov(ax, value)?;
    a.out(dx, al)
}

/// Guest: points CONFIG_DATA at the doubleword of a register of a function on the first bus. DX becomes the
/// port of the register's byte.
pub fn config(a: &mut CodeAssembler, function: u32, register: u32) -> AsmResult {
    a.mov(dx, 0xcf8)?;
    a.mov(eax, 1 << 31 | function << 8 | register & !3)?;
    a.out(dx, eax)?;
    a.mov(dx, 0xcfc + (register & 3))
}

/// The ISA bridge; its functions follow.
pub const SOUTH: u32 = 1 << 3;
pub const PM: u32 = SOUTH | 3;
/// PAM0 of the host bridge, and its bits for 0xf0000.
pub const PAM0: u32 = 0x59;
pub const PAM_ROM: u32 = 0;
pub const PAM_RAM: u32 = 0x30;
