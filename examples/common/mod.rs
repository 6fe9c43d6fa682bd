//! What the examples with a command line have in common: the options of every board, and how to end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser};
use trapline::machine::{MachineConfig, Outcome, Serial};
use trapline::vcpu::{Accel, CpuModel, Paging};

/// Options of every board.
#[derive(Args)]
pub struct MachineOptions {
    /// RAM, with K, M, G or T; a number alone is in MiB
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// What executes the guest: auto, kvm or soft
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    accel: Accel,
    /// Processor that the guest sees, with features switched: MODEL[,+FEATURE][,-FEATURE][,vendor=amd|intel]
    /// [,phys-bits=N] (models: default, max, x86-64-v1, x86-64-v2); on KVM, the host's without what the model does
    /// not have
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// How guest addresses are translated: ept, or shadow (soft engine)
    #[arg(long, value_name = "WAY", default_value = "ept")]
    paging: Paging,
    /// Interpret all of the guest's code, instead of making host code of what runs often (soft engine)
    #[arg(long)]
    interpret: bool,
    /// Time counts instructions, 2^N ns each, so that two runs are equal: one processor, soft engine
    #[arg(long, value_name = "N")]
    icount: Option<u8>,
    /// Where the serial port leads to: stdio, file:PATH, pty, unix:PATH (a socket that
    /// somebody listens at) or null
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = serial)]
    serial: String,
    /// Add the devices that bare-metal test kernels for QEMU expect: isa-debug-exit, pc-testdev, fw_cfg
    #[arg(long)]
    testdev: bool,
    /// Write each exit and what devices do to a file that Perfetto opens: exits=FILE
    #[arg(long, value_name = "exits=FILE", value_parser = trace)]
    trace: Option<PathBuf>,
    /// Say at the end what it has cost: exits by reason and device, with their share of time
    #[arg(long)]
    pub stats: bool,
}

impl MachineOptions {
    /// What they ask for.
    pub fn config(&self) -> anyhow::Result<MachineConfig> {
        Ok(MachineConfig {
            memory: self.memory,
            cpus: self.cpus,
            accel: self.accel,
            cpu: self.cpu.as_deref().map(CpuModel::named).transpose()?,
            paging: self.paging,
            interpret: self.interpret,
            icount: self.icount,
            serial: self.serial.parse()?,
            testdev: self.testdev,
            trace: self.trace.clone(),
            profile: self.stats,
        })
    }
}

/// A kernel's files and its command line.
#[derive(Args)]
pub struct KernelOptions {
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "console=ttyS0",
        allow_hyphen_values = true,
        requires = "kernel"
    )]
    pub append: String,
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

/// Reads what is to be traced.
fn trace(text: &str) -> Result<PathBuf, String> {
    let file = text.strip_prefix("exits=").filter(|file| !file.is_empty());
    file.map(PathBuf::from).ok_or_else(|| "expected exits=FILE".to_owned())
}

/// Checks the name of a serial port; clap wants values that can be cloned.
fn serial(text: &str) -> Result<String, String> {
    text.parse::<Serial>().map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// The first paragraph of what clap has to say, in one line.
fn complaint(error: &clap::Error) -> String {
    let text = error.render().to_string();
    text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Reads the command line and runs a machine; the exit code is how the guest ended.
pub fn main<C: Parser>(run: fn(C) -> anyhow::Result<Outcome>) -> ExitCode {
    let cli = match C::try_parse() {
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
            eprintln!("error: {}", line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes. The messages of some errors tell their cause themselves.
fn line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
