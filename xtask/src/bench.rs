//! `cargo xtask bench-guest`: CPU seconds that Trapline and QEMU TCG spend on the same guest work.
//!
//! The guest prints a marker before and after each phase; what counts is the CPU time of the emulator's
//! process between them, for the guest's own clock is the emulator's to make. Speeds of shared machines
//! drift: the emulators run in turn, and the ratio is what to quote.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::console::{self, Line, Run};
use crate::initramfs::{self, BOOTED};
use crate::{debian, demo, table, tools};

/// Options of the benchmark.
#[derive(Parser)]
pub struct Args {
    /// Phases to run, separated by commas (all 22 if not given; "boot" for the boot alone)
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    only: Vec<String>,
    /// Amount of work in percent
    #[arg(long, value_name = "PCT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// What to run
    #[arg(long, value_enum, default_value_t = Which::Both)]
    emulator: Which,
    /// Kernel to boot instead of Debian's
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// How often each emulator runs; the fastest time of each phase counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Longest time for one run, in seconds
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the guests' consoles
    #[arg(long)]
    verbose: bool,
    /// More options for the microvm example
    #[arg(last = true, value_name = "MICROVM OPTIONS")]
    extra: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Trapline,
    Qemu,
    Both,
}

/// What one emulator needed for one phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Phase name; `boot` and `total` frame the rest.
    pub phase: String,
    /// CPU seconds, user and system.
    pub cpu: f64,
    /// Wall-clock seconds.
    pub wall: f64,
    /// The guest's result: checksum and output. Must agree between emulators.
    pub check: String,
}

/// The results of one emulator.
#[derive(Serialize)]
pub struct Results {
    /// `trapline` or `qemu`.
    pub emulator: &'static str,
    /// In the order they ran.
    pub samples: Vec<Sample>,
}

const APPEND: &str = "console=ttyS0 panic=-1 quiet";

/// Builds the guest, runs the emulators, prints the table.
pub fn run(args: &Args) -> Result<ExitCode> {
    let phases = select(&args.only)?;
    let kernel = match &args.kernel {
        Some(path) => debian::given(path)?,
        None => debian::kernel()?,
    };
    let initrd = initramfs::bench(&phases, args.scale, &build_programs()?)?;
    let initrd = demo::write_initrd("bench", &initrd)?;

    let mut emulators: Vec<(&str, Command)> = Vec::new();
    if args.emulator != Which::Qemu {
        let mut microvm = demo::microvm(&kernel, &initrd, APPEND, "512M")?;
        microvm.args(&args.extra);
        emulators.push(("trapline", microvm));
    }
    if args.emulator != Which::Trapline {
        emulators.push(("qemu", qemu(&kernel, &initrd)?));
    }
    let mut results: Vec<Results> =
        emulators.iter().map(|(emulator, _)| Results { emulator, samples: Vec::new() }).collect();
    for round in 1..=args.rounds {
        for ((name, command), results) in emulators.iter_mut().zip(&mut results) {
            eprintln!("round {round} of {}: {name}", args.rounds);
            let limit = Duration::from_secs(args.timeout);
            let run = console::watch(command, "qemu-system-x86", limit, args.verbose)?;
            let samples = samples(&run).with_context(|| format!("{name} gave no result"))?;
            merge(&mut results.samples, samples).with_context(|| format!("{name} disagrees with itself"))?;
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {path:?}"))?;
    }
    let table = table::Table::new(&results);
    print!("{table}");
    let complete =
        results.iter().all(|one| phases.iter().all(|phase| one.samples.iter().any(|s| s.phase == *phase)));
    if !complete {
        eprintln!("error: not every phase has a result");
    }
    Ok(if complete && table.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The phases asked for, which must exist.
fn select(only: &[String]) -> Result<Vec<&'static str>> {
    let known = |name: &String| name == "boot" || initramfs::phases().any(|phase| phase == name);
    if let Some(name) = only.iter().find(|name| !known(name)) {
        let all: Vec<_> = initramfs::phases().collect();
        bail!("no phase {name:?}; there are boot, {}", all.join(", "));
    }
    Ok(initramfs::phases().filter(|phase| only.is_empty() || only.iter().any(|name| name == phase)).collect())
}

/// Compiles the guest programs for any x86-64 processor and returns their folder.
fn build_programs() -> Result<PathBuf> {
    let source = tools::root().join("benches/guest");
    let folder = tools::cache()?.join("guest");
    std::fs::create_dir_all(&folder)?;
    for (name, options, libraries) in [
        ("gbench", &["-O2", "-march=x86-64", "-fno-math-errno", "-static"][..], &["-lm"][..]),
        ("gtrue", &["-O2", "-static", "-nostdlib"], &[]),
    ] {
        let mut gcc = Command::new("gcc");
        gcc.args(options)
            .arg("-o")
            .arg(folder.join(name))
            .arg(source.join(format!("{name}.c")))
            .args(libraries);
        tools::run(&mut gcc, "gcc libc6-dev")?;
    }
    Ok(folder)
}

/// QEMU with its translator, on one thread, with the processor that needs the least.
fn qemu(kernel: &Path, initrd: &Path) -> Result<Command> {
    let program = "qemu-system-x86_64";
    tools::output(Command::new(program).arg("--version"), "qemu-system-x86")?;
    let mut command = Command::new(program);
    command.args(["-accel", "tcg,thread=single", "-cpu", "qemu64", "-m", "512"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command.args(["-append", APPEND, "-nographic", "-no-reboot"]);
    Ok(command)
}

/// Reads the phases out of a console.
fn samples(run: &Run) -> Result<Vec<Sample>> {
    let mut out = Vec::new();
    let mut open: Option<(String, &Line)> = None;
    let mut output = String::new();
    for line in &run.lines {
        // Firmware and kernel may have left something before the marker.
        let Some(marker) = line.text.find("@@").and_then(|at| line.text.get(at..)) else {
            // Kernel messages carry times; everything else is the guest's answer.
            if open.is_some() && !line.text.starts_with('[') {
                output += &format!(" {}", line.text);
            }
            continue;
        };
        if marker.starts_with(BOOTED) {
            out.push(Sample { phase: "boot".into(), cpu: line.cpu, wall: line.wall, check: String::new() });
        } else if let Some(name) = marker.strip_prefix("@@BEGIN ") {
            open = Some((name.trim().to_owned(), line));
            output.clear();
        } else if let Some(end) = marker.strip_prefix("@@END ") {
            let Some((phase, begin)) =
                open.take().filter(|open| end.split_whitespace().next() == Some(&open.0))
            else {
                bail!("the console has an end without its beginning: {marker:?}");
            };
            let check = end.split_whitespace().find_map(|word| word.strip_prefix("chk=")).unwrap_or_default();
            let check = format!("{check}{output}");
            out.push(Sample { phase, cpu: line.cpu - begin.cpu, wall: line.wall - begin.wall, check });
        }
    }
    let last = || run.lines.last().map_or("nothing", |line| line.text.as_str());
    if out.is_empty() {
        bail!("the guest never reached user space; the console ended with {:?}", last());
    }
    if !run.lines.iter().any(|line| line.text.contains("@@DONE")) {
        eprintln!("warning: the guest did not finish; the console ended with {:?}", last());
    }
    match run.status {
        None => eprintln!("warning: stopped after {:.0} s", run.wall),
        Some(status) if !status.success() => eprintln!("warning: the emulator ended with {status}"),
        Some(_) => {}
    }
    out.push(Sample { phase: "total".into(), cpu: run.cpu, wall: run.wall, check: String::new() });
    Ok(out)
}

/// Keeps the fastest of each phase.
fn merge(best: &mut Vec<Sample>, new: Vec<Sample>) -> Result<()> {
    for sample in new {
        match best.iter_mut().find(|old| old.phase == sample.phase) {
            None => best.push(sample),
            Some(old) if old.check != sample.check => {
                bail!("{} gave {:?}, then {:?}", sample.phase, old.check, sample.check)
            }
            Some(old) if sample.cpu < old.cpu => *old = sample,
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn console(text: &[(&str, f64)]) -> Run {
        let line = |&(text, cpu): &(&str, f64)| Line { text: text.into(), cpu, wall: cpu * 2.0 };
        let status = Some(std::process::ExitStatus::from_raw(0));
        Run { lines: text.iter().map(line).collect(), status, cpu: 9.0, wall: 18.0 }
    }

    #[test]
    fn phases_are_read_between_their_markers() {
        let run = console(&[
            ("SeaBIOS \u{1b}[2J@@BOOTED", 2.0),
            ("@@BEGIN sha256", 3.0),
            ("[    5.0] a kernel message", 3.5),
            ("abc  -", 4.0),
            ("@@END sha256 tsc=1 ns=2 chk=0000", 5.0),
            ("@@DONE", 6.0),
        ]);
        let sample = |phase: &str, cpu: f64, check: &str| Sample {
            phase: phase.into(),
            cpu,
            wall: cpu * 2.0,
            check: check.into(),
        };
        let expected =
            [sample("boot", 2.0, ""), sample("sha256", 2.0, "0000 abc  -"), sample("total", 9.0, "")];
        assert_eq!(samples(&run).unwrap(), expected);
    }

    #[test]
    fn a_console_without_a_boot_is_an_error() {
        let error = samples(&console(&[("Kernel panic - not syncing", 1.0)])).unwrap_err();
        assert!(error.to_string().contains("Kernel panic"));
        assert!(samples(&console(&[("@@BOOTED", 1.0), ("@@END int chk=1", 2.0)])).is_err());
    }

    #[test]
    fn rounds_keep_the_fastest_and_must_agree() {
        let sample = |cpu, check: &str| Sample { phase: "int".into(), cpu, wall: cpu, check: check.into() };
        let mut best = Vec::new();
        for cpu in [3.0, 1.0, 2.0] {
            merge(&mut best, vec![sample(cpu, "a")]).unwrap();
        }
        assert_eq!(best, [sample(1.0, "a")]);
        assert!(merge(&mut best, vec![sample(1.0, "b")]).is_err());
    }

    #[test]
    fn phases_are_selected_by_name() {
        assert_eq!(select(&[]).unwrap().len(), 22);
        assert_eq!(select(&["boot".into()]).unwrap(), Vec::<&str>::new());
        assert_eq!(select(&["smc".into(), "int".into()]).unwrap(), ["int", "smc"]);
        assert!(select(&["nope".into()]).unwrap_err().to_string().contains("no phase \"nope\""));
    }
}
