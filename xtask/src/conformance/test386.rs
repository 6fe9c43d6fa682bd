//! test386.asm: a ROM in the place of a BIOS. It says how far it came by codes on a diagnostic port, and prints
//! results of arithmetic, which are compared with its reference, on a serial port.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{Case, End, Report};
use super::{Args, Which};
use crate::tools;

/// The code that says the end.
const COMPLETE: u8 = 0xff;

/// Runs `test386.bin` of `--suite-dir`, assembled with `POST_PORT` at the debug console, 0x402, and `COM_PORT` 1.
pub fn run(args: &Args) -> Result<Vec<Report>> {
    let rom = args.suite_dir.join("test386.bin");
    let reference = args.suite_dir.join("test386-EE-reference.txt");
    let reference =
        std::fs::read_to_string(&reference).with_context(|| format!("cannot read {reference:?}"))?;
    std::fs::metadata(&rom).with_context(|| {
        format!("cannot find {rom:?}: assemble it with POST_PORT equ 0x402 and COM_PORT equ 1")
    })?;
    let mut reports = Vec::new();
    for which in &args.on {
        let file =
            |kind: &str| tools::cache().map(|cache| cache.join(format!("test386.{}.{kind}", which.name())));
        let (codes, text) = (file("codes")?, file("text")?);
        let start = Instant::now();
        watch(command(*which, &rom, &codes, &text)?, [&codes, &text], Duration::from_secs(args.timeout))?;
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {path:?}"));
        let mut case = judge(&read(&codes)?, &String::from_utf8_lossy(&read(&text)?), &reference);
        case.seconds = start.elapsed().as_secs_f64();
        reports.push(Report { emulator: which.name(), cases: vec![case] });
    }
    Ok(reports)
}

fn command(which: Which, rom: &Path, codes: &Path, text: &Path) -> Result<Command> {
    let file = format!("file:{}", text.display());
    let mut command = match which {
        Which::Trapline => {
            let mut command = Command::new(tools::build_example("pc")?);
            command.args(["--accel", "soft", "--memory", "16M", "--serial", &file]);
            command.arg("--firmware").arg(rom).arg("--debug-console").arg(codes);
            command
        }
        Which::Qemu => {
            let mut command = Command::new("qemu-system-i386");
            command.args(["-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults", "-no-reboot"]);
            command.arg("-bios").arg(rom).arg("-chardev");
            command.arg(format!("file,id=post,path={}", codes.display()));
            command.args(["-device", "isa-debugcon,iobase=0x402,chardev=post", "-serial", &file]);
            command
        }
        Which::Host => anyhow::bail!("test386 is firmware: it runs on trapline and qemu"),
    };
    command.stdin(std::process::Stdio::null());
    Ok(command)
}

/// Runs the machine until it says that it is done, ends, or says nothing for a while: where a test fails the
/// ROM halts.
fn watch(mut command: Command, [codes, text]: [&Path; 2], limit: Duration) -> Result<()> {
    const SILENCE: Duration = Duration::from_secs(20);
    for file in [codes, text] {
        std::fs::remove_file(file).ok();
    }
    let mut child = command.spawn().map_err(|error| tools::missing(&command, "qemu-system-x86", error))?;
    let start = Instant::now();
    let (mut length, mut changed) = (0, Instant::now());
    while child.try_wait()?.is_none() && start.elapsed() < limit && changed.elapsed() < SILENCE {
        std::thread::sleep(Duration::from_millis(100));
        let output = std::fs::read(codes).unwrap_or_default();
        if output.last() == Some(&COMPLETE) {
            break;
        }
        let now = output.len() as u64 + std::fs::metadata(text).map_or(0, |about| about.len());
        if now != length {
            (length, changed) = (now, Instant::now());
        }
    }
    child.kill().ok();
    child.wait()?;
    Ok(())
}

/// A code is passed when the next one comes; a line when it is the reference's.
fn judge(codes: &[u8], text: &str, reference: &str) -> Case {
    let mut case = Case { name: "test386".into(), ..Case::default() };
    let post = |code: &u8| format!("POST {code:02X}");
    let complete = codes.last() == Some(&COMPLETE);
    let (passed, failed) = codes.split_at(codes.len() - usize::from(!complete && !codes.is_empty()));
    case.passed = passed.iter().map(post).collect();
    case.failed = failed.iter().map(post).collect();
    let mut lines = text.lines();
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
        let case = judge(b"\x00\x01\x20\xee\xff", "a b \r\nc\n", "a b \nc\n");
        assert_eq!((case.passed.len(), case.failed.len(), case.end), (7, 0, End::Done));
        let case = judge(b"\x00\x01\xee\xff", "a\nX\n", "a\nc\n");
        assert_eq!(case.failed, ["line 2: c"]);
        let case = judge(b"\x00\x01\x20", "", "a\n");
        assert_eq!((case.passed.len(), &case.failed[0][..]), (2, "POST 20"));
        assert_ne!(case.end, End::Done);
    }
}
