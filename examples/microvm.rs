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

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use trapline::machine::{Microvm, MicrovmConfig, Outcome, Serial};
use trapline::vcpu::{Accel, CpuModel};

/// Boots a kernel on the board "microvm". Ctrl-A X ends it.
#[derive(Parser)]
#[command(name = "microvm", version)]
struct Cli {
    /// Linux bzImage (vmlinuz), ELF or Multiboot kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    append: String,
    /// RAM, with K, M, G or T; a number alone is in MiB
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// What executes the guest: auto, kvm or soft
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    accel: Accel,
    /// Processor of the soft engine, with features switched: MODEL[,+FEATURE][,-FEATURE][,vendor=amd|intel]
    /// (models: default, max, x86-64-v1, x86-64-v2)
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Time counts instructions, 2^N ns each, so that two runs are equal: one processor, soft engine
    #[arg(long, value_name = "N")]
    icount: Option<u8>,
    /// Where the serial port leads to: stdio, file:PATH, pty or null
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = serial)]
    serial: String,
    /// Add the devices that bare-metal test kernels for QEMU expect: isa-debug-exit, pc-testdev, fw_cfg
    #[arg(long)]
    testdev: bool,
    /// Say at the end what it has cost
    #[arg(long)]
    stats: bool,
}

/// Reads a size such as 512M.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 20),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size such as 512M or 2G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Checks the name of a serial port; clap wants values that can be cloned.
fn serial(text: &str) -> Result<String, String> {
    text.parse::<Serial>().map(|_| text.to_owned()).map_err(|e| e.to_string())
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let mut machine = Microvm::new(MicrovmConfig {
        memory: cli.memory,
        cpus: cli.cpus,
        accel: cli.accel,
        cpu: cli.cpu.as_deref().map(CpuModel::named).transpose()?,
        icount: cli.icount,
        kernel: cli.kernel,
        initrd: cli.initrd,
        cmdline: cli.append,
        serial: cli.serial.parse()?,
        testdev: cli.testdev,
    })?;
    machine.remote().quit_on_signals()?;
    if let Some(path) = machine.serial_path() {
        eprintln!("serial port: {path}");
    }
    let outcome = machine.run()?;
    if cli.stats {
        eprint!("{}", machine.stats());
    }
    if outcome != Outcome::PowerOff {
        eprintln!("{outcome}");
    }
    Ok(outcome)
}

/// The first paragraph of what clap has to say, in one line.
fn complaint(error: &clap::Error) -> String {
    let text = error.render().to_string();
    text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ")
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) if matches!(help.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = help.print(); // nobody may be there to read it
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", complaint(&error));
            return ExitCode::FAILURE;
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli) {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
