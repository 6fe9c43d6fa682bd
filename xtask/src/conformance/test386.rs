//! test386.asm: a ROM in the place of a BIOS. It says how far it came by codes on a diagnostic port, and then
//! prints results of arithmetic that are compared with its reference.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{Case, End, Report};
use super::{Args, Which};
use crate::tools;

/// The code before the results, and the one that says the end.
const RESULTS: u8 = 0xee;
const COMPLETE: u8 = 0xff;

/// Runs `test386.bin` of `--suite-dir`, assembled with `POST_PORT` and `OUT_PORT` at the debug console, 0x402.
pub fn run(args: &Args) -> Result<Vec<Report>> {
    let rom = args.suite_dir.join("test386.bin");
    let reference = args.suite_dir.join("test386-EE-reference.txt");
    let reference =
        std::fs::read_to_string(&reference).with_context(|| format!("cannot read {reference:?}"))?;
    std::fs::metadata(&rom)
        .with_context(|| format!("cannot find {rom:?}: assemble it with POST_PORT and OUT_PORT equ 0x402"))?;
    let mut reports = Vec::new();
    for which in &args.on {
        let console = tools::cache()?.join(format!("test386.{}", which.name()));
        let start = Instant::now();
        watch(command(*which, &rom, &console)?, &console, Duration::from_secs(args.timeout))?;
        let output = std::fs::read(&console).with_context(|| format!("cannot read {console:?}"))?;
        let mut case = judge(&output, &reference);
        case.seconds = start.elapsed().as_secs_f64();
        reports.push(Report { emulator: which.name(), cases: vec![case] });
    }
    Ok(reports)
}

fn command(which: Which, rom: &Path, console: &PathBuf) -> Result<Command> {
    let mut command = match which {
        Which::Trapline => {
            let mut command = Command::new(tools::build_example("pc")?);
            command.args(["--accel", "soft", "--memory", "16M", "--serial", "null"]);
            command.arg("--firmware").arg(rom).arg("--debug-console").arg(console);
            command
        }
        Which::Qemu => {
            let mut command = Command::new("qemu-system-i386");
            command.args(["-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults", "-no-reboot"]);
            command.arg("-bios").arg(rom).arg("-chardev");
            command.arg(format!("file,id=post,path={}", console.display()));
            command.args(["-device", "isa-debugcon,iobase=0x402,chardev=post"]);
            command
        }
        Which::Host => anyhow::bail!("test386 is firmware: it runs on trapline and qemu"),
    };
    command.stdin(std::process::Stdio::null());
    Ok(command)
}

/// Runs the machine until it says that it is done, ends, or says nothing for a while: where a test fails the
/// ROM halts.
fn watch(mut command: Command, console: &Path, limit: Duration) -> Result<()> {
    const SILENCE: Duration = Duration::from_secs(10);
    std::fs::remove_file(console).ok();
    let mut child = command.spawn().map_err(|error| tools::missing(&command, "qemu-system-x86", error))?;
    let start = Instant::now();
    let (mut length, mut changed) = (0, Instant::now());
    while child.try_wait()?.is_none() && start.elapsed() < limit && changed.elapsed() < SILENCE {
        std::thread::sleep(Duration::from_millis(100));
        let output = std::fs::read(console).unwrap_or_default();
        if output.last() == Some(&COMPLETE) {
            break;
        }
        if output.len() != length {
            (length, changed) = (output.len(), Instant::now());
        }
    }
    child.kill().ok();
    child.wait()?;
    Ok(())
}

/// A code is passed when the next one comes; a line when it is the reference's.
fn judge(output: &[u8], reference: &str) -> Case {
    let mut case = Case { name: "test386".into(), ..Case::default() };
    let codes = output.iter().position(|code| *code == RESULTS).unwrap_or(output.len());
    let (codes, results) = output.split_at(codes);
    let post = |code: &u8| format!("POST {code:02X}");
    let complete = output.last() == Some(&COMPLETE);
    // The last code without results behind it is where it halted.
    let (passed, failed) = codes.split_at(codes.len() - usize::from(results.is_empty() && !codes.is_empty()));
    case.passed = passed.iter().map(post).collect();
    case.failed = failed.iter().map(post).collect();
    let text = String::from_utf8_lossy(results.get(1..).unwrap_or_default());
    let mut lines = text.trim_end_matches('\u{fffd}').lines();
    for (n, line) in reference.lines().enumerate() {
        let verdict = format!("line {}: {line}", n + 1);
        match lines.next() {
            Some(same) if same.trim_end() == line.trim_end() => case.passed.push(verdict),
            other => {
                if let Some(other) = other {
                    println!("test386 {other:?} not {line:?}");
                }
                case.failed.push(verdict);
            }
        }
    }
    if !complete {
        case.end = End::Failed("halted".into());
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_results_are_told_apart() {
        let case = judge(b"\x00\x01\x20\xeea b \nc\n\xff", "a b \nc\n");
        assert_eq!((case.passed.len(), case.failed.len(), case.end), (5, 0, End::Done));
        let case = judge(b"\x00\x01\xeea\nX\n\xff", "a\nc\n");
        assert_eq!(case.failed, ["line 2: c"]);
        let case = judge(b"\x00\x01\x20", "a\n");
        assert_eq!((case.passed.len(), &case.failed[0][..]), (2, "POST 20"));
        assert_ne!(case.end, End::Done);
    }
}
