//! `cargo xtask test`: every check there is.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;

use crate::{demo, tools};

/// Options of the test run.
#[derive(Parser)]
pub struct Args {
    /// Leave out the boot of Debian's kernel, which downloads two packages on its first run
    #[arg(long)]
    no_boot: bool,
}

/// A named check.
type Step = (&'static str, fn() -> Result<()>);

// Tests run in the dev profile: it checks for overflows, and it optimises the processor all the same.
const STEPS: [Step; 6] = [
    ("formatting", || cargo(&["fmt", "--all", "--check"])),
    ("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("documentation", || {
        let mut command = tools::cargo(&["doc", "--workspace", "--no-deps"]);
        run_command(command.env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("tests", || {
        cargo(&["test", "--workspace", "--lib", "--bins", "--tests", "--examples", "--no-fail-fast"])
    }),
    ("documentation tests", || cargo(&["test", "--workspace", "--doc", "--no-fail-fast"])),
    (BOOT, demo::boot_test),
];

const BOOT: &str = "boot of Debian's kernel";

/// Runs all steps, whatever fails, and ends with a summary.
pub fn run_steps(steps: &[Step]) -> (usize, usize) {
    let mut results = Vec::new();
    for (name, step) in steps {
        println!("=== {name}");
        let start = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("error: {error:#}");
        }
        results.push((name, result.is_ok(), start.elapsed().as_secs()));
    }
    println!("=== summary");
    for (name, passed, seconds) in &results {
        println!("{} {name} ({seconds} s)", if *passed { "passed" } else { "FAILED" });
    }
    let passed = results.iter().filter(|result| result.1).count();
    (passed, results.len() - passed)
}

/// Entry of the subcommand.
pub fn run(args: &Args) -> Result<ExitCode> {
    let steps: Vec<Step> = STEPS.into_iter().filter(|step| !(args.no_boot && step.0 == BOOT)).collect();
    let (passed, failed) = run_steps(&steps);
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(args: &[&str]) -> Result<()> {
    run_command(&mut tools::cargo(args))
}

fn run_command(command: &mut Command) -> Result<()> {
    tools::run(command, "rustup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_runs_and_failures_are_counted() {
        let steps: [Step; 3] = [
            ("fails", || anyhow::bail!("on purpose")),
            ("passes", || Ok(())),
            ("has no tool", || run_command(&mut Command::new("no-such-tool"))),
        ];
        assert_eq!(run_steps(&steps), (1, 2));
        assert_eq!(run_steps(&steps[1..2]), (1, 0));
    }
}
