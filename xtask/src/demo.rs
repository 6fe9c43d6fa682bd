//! `cargo xtask demo`: Debian's kernel in a virtual machine.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::console::{self, Run};
use crate::initramfs::{self, BOOTED};
use crate::pc::{Emulator, Pc};
use crate::{check_guest, debian, disk, tools};

/// Options of the demonstration.
#[derive(Parser)]
pub struct Args {
    /// Kernel to boot (bzImage or ELF) instead of Debian's
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Boot Debian from a disk instead: SeaBIOS, GRUB, systemd; then check what it says of the machine
    #[arg(long, conflicts_with = "kernel")]
    disk: bool,
    /// Give a shell on the guest's console; the machine powers off when it ends (with --disk: log in as root,
    /// password "trapline", and say "poweroff")
    #[arg(long)]
    shell: bool,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// More options for the example that runs the guest: microvm, or pc with --disk
    #[arg(last = true, value_name = "OPTIONS")]
    extra: Vec<String>,
}

/// Longest time for a boot without a shell.
const LIMIT: Duration = Duration::from_secs(600);

/// Prepares the guest, runs it, and passes its exit code on.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.disk {
        return run_disk(args);
    }
    let kernel = match &args.kernel {
        Some(path) => debian::given(path)?,
        None => debian::kernel()?,
    };
    let initrd = write_initrd("demo", &initramfs::demo(args.shell)?)?;
    let mut command = microvm(&kernel, &initrd, "console=ttyS0 panic=-1", &args.memory)?;
    command.args(&args.extra);
    eprintln!("running {}", tools::line(&command));

    let status = if args.shell {
        command.status().map_err(|error| tools::missing(&command, "cargo", error))?
    } else {
        let run = console::watch(&mut command, "cargo", LIMIT, true)?;
        if let Err(error) = check(&run) {
            // A code of its own says more than that the text was missing.
            match run.status.filter(|status| !status.success()) {
                Some(status) => return Ok(exit_code(status)),
                None => return Err(error),
            }
        }
        eprintln!("the guest booted and powered off: {:.1} s, {:.1} s of CPU time", run.wall, run.cpu);
        run.status.context("no exit status")?
    };
    if !status.success() {
        eprintln!(
            "error: the virtual machine ended with {status}, expected an ACPI power-off (exit status 0)"
        );
    }
    Ok(exit_code(status))
}

/// Debian from disk. The image stays as it is.
fn run_disk(args: &Args) -> Result<ExitCode> {
    let disk = Some((disk::debian()?, true));
    let pc = Pc { memory: args.memory.clone(), disk, cdrom: None, extra: args.extra.clone() };
    if !args.shell {
        check_guest::Guest { emulator: Emulator::Trapline, verbose: true }.disk(&pc, None)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = pc.command(Emulator::Trapline)?;
    eprintln!("running {}", tools::line(&command));
    let status = command.status().map_err(|error| tools::missing(&command, "cargo", error))?;
    Ok(exit_code(status))
}

/// The example VMM, built, with its options.
pub fn microvm(kernel: &Path, initrd: &Path, append: &str, memory: &str) -> Result<Command> {
    let mut command = Command::new(tools::build_example("microvm")?);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    command.args(["--append", append, "--memory", memory]);
    Ok(command)
}

/// Puts an initramfs in the cache, replacing an older one in one step.
pub fn write_initrd(name: &str, content: &[u8]) -> Result<PathBuf> {
    let path = tools::cache()?.join(format!("{name}.cpio.gz"));
    let new = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&new, content)
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(|| format!("cannot write {path:?}"))?;
    Ok(path)
}

/// Boots Debian's kernel as a test: the console must show the boot, the machine must power itself off. Then once
/// more, with time that counts instructions, by the interpreter and with host code.
pub fn boot_test() -> Result<()> {
    let kernel = debian::kernel()?;
    let initrd = write_initrd("demo", &initramfs::demo(false)?)?;
    let boot = |options: &[&str], show: bool| -> Result<()> {
        let mut command = microvm(&kernel, &initrd, "console=ttyS0 panic=-1", "512M")?;
        check(&console::watch(command.args(options), "cargo", LIMIT, show)?)
    };
    boot(&[], true)?;

    let scratch = tools::Scratch::new("boot")?;
    let traced = |name: &str, options: &[&str]| -> Result<Vec<u8>> {
        let path = scratch.path().join(name);
        let trace = format!("exits={}", path.to_str().context("the path of the trace is no text")?);
        boot(&[&["--accel", "soft", "--icount", "2", "--trace", &trace], options].concat(), false)?;
        std::fs::read(&path).with_context(|| format!("cannot read {path:?}"))
    };
    same(&traced("interpreted", &["--interpret"])?, &traced("translated", &[])?)
}

/// Whether two traces of the same guest are equal: every exit, and the count of instructions at it.
fn same(interpreted: &[u8], translated: &[u8]) -> Result<()> {
    let lines = |trace: &[u8]| trace.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (a, b) = (lines(interpreted), lines(translated));
    let differ = a.iter().zip(&b).position(|(a, b)| a != b);
    if let Some(at) = differ.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len()))) {
        let line =
            |of: &[Vec<u8>]| of.get(at).map_or("the end".into(), |l| String::from_utf8_lossy(l).into_owned());
        bail!("interpreter and host code part at event {at}: {} against {}", line(&a), line(&b));
    }
    eprintln!("interpreter and host code agree in {} events", a.len());
    Ok(())
}

/// What a complete boot looks like.
fn check(run: &Run) -> Result<()> {
    let has = |text: &str| run.lines.iter().any(|line| line.text.contains(text));
    for wanted in ["Linux version", BOOTED, "x86_64 GNU/Linux", "model name", "MemTotal"] {
        if !has(wanted) {
            bail!(
                "the console never showed {wanted:?}, the virtual machine ended with {}",
                describe(run.status)
            );
        }
    }
    match run.status {
        Some(status) if status.success() => Ok(()),
        status => bail!(
            "the virtual machine ended with {}, expected an ACPI power-off (exit status 0)",
            describe(status)
        ),
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| format!("no answer within {} s", LIMIT.as_secs()), |status| status.to_string())
}

/// The code of a child as our own; the shells' convention for signals.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Line;
    use std::os::unix::process::ExitStatusExt;

    fn finished(text: &[&str], status: i32) -> Run {
        let line = |text: &&str| Line { text: text.to_string(), cpu: 0.0, wall: 0.0 };
        let status = Some(ExitStatus::from_raw(status));
        Run { lines: text.iter().map(line).collect(), status, cpu: 0.0, wall: 0.0 }
    }

    #[test]
    fn traces_are_compared_line_by_line() {
        same(b"a\nb\n", b"a\nb\n").unwrap();
        assert!(same(b"a\nb\n", b"a\nc\n").unwrap_err().to_string().contains("event 1: b against c"));
        assert!(same(b"a\nb", b"a").unwrap_err().to_string().contains("event 1: b against the end"));
    }

    #[test]
    fn only_a_whole_boot_with_a_power_off_passes() {
        let text = [
            "[    0.000000] Linux version 6.1.0",
            "@@BOOTED",
            "Linux (none) 6.1.0 x86_64 GNU/Linux",
            "model name\t: x",
            "MemTotal:  500000 kB",
        ];
        check(&finished(&text, 0)).unwrap();
        assert!(
            check(&finished(&text, 1 << 8)).unwrap_err().to_string().contains("expected an ACPI power-off")
        );
        assert!(check(&finished(&text[..1], 0)).unwrap_err().to_string().contains("@@BOOTED"));
    }
}
