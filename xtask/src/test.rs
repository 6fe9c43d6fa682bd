//! `cargo xtask test`: every check there is.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;

use crate::{check_guest, demo, tools};

/// Options of the test run.
#[derive(Parser)]
pub struct Args {
    /// Leave out the boots of Debian, which download packages on their first run
    #[arg(long)]
    no_boot: bool,
}

/// A named check.
type Step = (&'static str, fn() -> Result<()>);

/// The error of a step that needs what this machine has not.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

// Tests run in the dev profile: it checks for overflows, and it optimises the processor all the same.
const STEPS: [Step; 7] = [
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
    (KERNEL, demo::boot_test),
    (DISK, check_guest::test),
];

const KERNEL: &str = "boot of Debian's kernel";
const DISK: &str = "Debian from disk and CD";

/// How many steps ended how.
#[derive(Debug, Default, PartialEq)]
pub struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs all steps, whatever fails, and ends with a summary.
pub fn run_steps(steps: &[Step]) -> Counts {
    let mut counts = Counts::default();
    let mut summary = String::new();
    for (name, step) in steps {
        println!("=== {name}");
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs();
        summary += &match result {
            Ok(()) => {
                counts.passed += 1;
                format!("passed {name} ({seconds} s)\n")
            }
            Err(error) if error.is::<Skipped>() => {
                counts.skipped += 1;
                format!("skipped {name}: {error}\n")
            }
            Err(error) => {
                counts.failed += 1;
                eprintln!("error: {error:#}");
                format!("FAILED {name} ({seconds} s)\n")
            }
        };
    }
    print!("=== summary\n{summary}");
    counts
}

/// Entry of the subcommand.
pub fn run(args: &Args) -> Result<ExitCode> {
    let boots = [KERNEL, DISK];
    let steps: Vec<Step> =
        STEPS.into_iter().filter(|step| !(args.no_boot && boots.contains(&step.0))).collect();
    let Counts { passed, failed, skipped } = run_steps(&steps);
    println!("{passed} passed, {failed} failed, {skipped} skipped");
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
        let steps: [Step; 4] = [
            ("fails", || anyhow::bail!("on purpose")),
            ("passes", || Ok(())),
            ("has no tool", || run_command(&mut Command::new("no-such-tool"))),
            ("is not for this machine", || Err(Skipped("no tool".into()).into())),
        ];
        assert_eq!(run_steps(&steps), Counts { passed: 1, failed: 2, skipped: 1 });
        assert_eq!(run_steps(&steps[1..2]), Counts { passed: 1, failed: 0, skipped: 0 });
    }
}
