//! `cargo xtask conformance`: public test suites against the soft engine, and against QEMU TCG in the same
//! run.
//!
//! The suites are not part of this repository: `docs/conformance.md` says where they are from. What is
//! counted is the suite's own verdicts; what is looked for is a test that the peer passes and we do not.

mod fex;
mod kvm_unit_tests;
mod linux;
mod programs;
mod report;
mod test386;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::console::Run;
use report::Report;

/// Options of a conformance run.
#[derive(Parser)]
pub struct Args {
    /// The suite
    #[arg(value_enum)]
    suite: Suite,
    /// Where the suite lies, fetched and, where it has to be, built
    #[arg(long, value_name = "DIR")]
    suite_dir: PathBuf,
    /// What to run it on, ours first; suites of user programs also run on the host's processor
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["trapline", "qemu"])]
    on: Vec<Which>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Longest time for one test (or the whole suite, where one guest runs all of it), in seconds
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Keep the guests' consoles in this folder
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// kvm-unit-tests' x86 tests other than VMX and SVM
    KvmUnitTests,
    /// FEX's instruction tests with expected registers
    Fex,
    /// QEMU's tests/tcg programs, statically linked, compared with the host's processor
    QemuTcg,
    /// test386.asm, a ROM
    Test386,
}

/// What a suite runs on.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The soft engine.
    Trapline,
    /// QEMU with its translator.
    Qemu,
    /// No emulator.
    Host,
}

impl Which {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Which::Trapline => "trapline",
            Which::Qemu => "qemu",
            Which::Host => "host",
        }
    }
}

impl Args {
    /// What to run on.
    fn emulators(&self) -> impl Iterator<Item = Which> {
        self.on.iter().copied()
    }
}

/// Keeps a console.
fn write_log(folder: &Path, name: &str, which: Which, run: &Run) -> Result<()> {
    let text: String = run.lines.iter().map(|line| line.text.clone() + "\n").collect();
    let path = folder.join(format!("{name}.{}.log", which.name()));
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| format!("cannot write {path:?}"))
}

/// Runs the suite, prints its counts and what the peer passes and we do not.
pub fn run(args: &Args) -> Result<ExitCode> {
    let reports: Vec<Report> = match args.suite {
        Suite::KvmUnitTests => kvm_unit_tests::run(args)?,
        Suite::Fex => fex::run(args)?,
        Suite::QemuTcg => programs::run(args)?,
        Suite::Test386 => test386::run(args)?,
    };
    print!("{}", report::Table(&reports));
    let behind = report::behind(&reports);
    for line in &behind {
        println!("behind: {line}");
    }
    Ok(if behind.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
