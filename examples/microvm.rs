//! Boots a kernel on the board `microvm`, with its console here.
//!
//! ```text
//! cargo run --release --example microvm -- --kernel vmlinuz --initrd initrd.gz --append console=ttyS0
//! ```
//!
//! Ctrl-A X ends the guest, Ctrl-A Ctrl-A sends it one Ctrl-A.
//!
//! | exit code | the guest |
//! |---|---|
//! | 0 | powered off |
//! | 1 | did not run, or the host failed: one line on standard error says why |
//! | 2 | asked for a reset |
//! | 4 | had a triple fault |
//! | 6 | was ended by the user or a signal, or nobody read its output any more |
//! | 8 | did something the engine cannot go on with |
//! | odd | wrote `v` to port 0x501, or with `--testdev` 0xf4: `(v << 1) \| 1`, cut to 8 bits |

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::{KernelOptions, MachineOptions};
use trapline::machine::{KernelConfig, Microvm, MicrovmConfig, Outcome};

/// Boots a kernel on the board "microvm". Ctrl-A X ends it.
#[derive(Parser)]
#[command(name = "microvm", version)]
struct Cli {
    /// Linux bzImage (vmlinuz), ELF or Multiboot kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    #[command(flatten)]
    kernel_options: KernelOptions,
    #[command(flatten)]
    machine: MachineOptions,
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let KernelOptions { initrd, append } = cli.kernel_options;
    let mut machine = Microvm::new(MicrovmConfig {
        machine: cli.machine.config()?,
        kernel: KernelConfig { kernel: cli.kernel, initrd, cmdline: append },
    })?;
    machine.remote().quit_on_signals()?;
    if let Some(path) = machine.serial_path() {
        eprintln!("serial port: {path}");
    }
    let outcome = machine.run()?;
    if cli.machine.stats {
        eprint!("{}", machine.stats());
    }
    if outcome != Outcome::PowerOff {
        eprintln!("{outcome}");
    }
    Ok(outcome)
}

fn main() -> ExitCode {
    common::main(run)
}
