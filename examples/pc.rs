//! A PC with its console here: firmware, disks, CD-ROMs.
//!
//! ```text
//! cargo run --release --example pc -- --disk file=debian.qcow2,format=qcow2
//! ```
mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::MachineOptions;
use trapline::machine::pc::{BootDevice, DriveConfig};
use trapline::machine::{Outcome, Pc, PcConfig};

/// Starts a PC. Ctrl-A X ends it.
#[derive(Parser)]
#[command(name = "pc", version)]
struct Cli {
    /// What the processor starts with: seabios, or the path of an image
    #[arg(long, value_name = "WHAT", default_value = "seabios")]
    firmware: String,
    /// A disk: file=PATH,format=raw|qcow2[,if=ide][,cache=MODE][,readonly=on][,snapshot=on][,index=N]
    #[arg(long, value_name = "OPTIONS")]
    disk: Vec<DriveConfig>,
    /// A CD-ROM with this disc
    #[arg(long, value_name = "FILE")]
    cdrom: Option<PathBuf>,
    /// What the firmware boots from first: disk or cdrom
    #[arg(long, value_name = "WHAT", default_value = "disk")]
    boot: String,
    /// Where the firmware's debug console (port 0x402) goes
    #[arg(long, value_name = "FILE")]
    debug_console: Option<PathBuf>,
    /// Where the parallel port's printer writes
    #[arg(long, value_name = "FILE")]
    parallel: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineOptions,
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let mut config = PcConfig::new(cli.firmware.parse()?);
    config.machine = cli.machine.config()?;
    config.drives = cli.disk;
    config.drives.extend(cli.cdrom.map(DriveConfig::cdrom));
    config.boot = match cli.boot.as_str() {
        "disk" => vec![BootDevice::Disk, BootDevice::Cdrom],
        "cdrom" => vec![BootDevice::Cdrom, BootDevice::Disk],
        other => anyhow::bail!("--boot {other}: expected disk or cdrom"),
    };
    if let Some(path) = cli.debug_console {
        config.debug_console = Some(Box::new(std::fs::File::create(path)?));
    }
    if let Some(path) = cli.parallel {
        config.printer = Some(Box::new(std::fs::File::create(path)?));
    }
    let mut machine = Pc::new(config)?;
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
