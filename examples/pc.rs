//! A PC: firmware that boots from disks and CD-ROMs, or a kernel alone.
//!
//! ```text
//! cargo run --release --example pc -- --disk file=debian.qcow2,format=qcow2
//! cargo run --release --example pc -- --cdrom rescue.iso --boot cdrom
//! cargo run --release --example pc -- --firmware ovmf --vars debian.vars --disk file=debian.qcow2,format=qcow2
//! cargo run --release --example pc -- --kernel vmlinuz --initrd initrd.gz --append console=ttyS0
//! ```
//!
//! Ctrl-A X ends the guest, Ctrl-A Ctrl-A sends it one Ctrl-A. The exit codes are those of the example
//! `microvm`; a reset starts the machine again, unless `--no-reboot` is given.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use common::{KernelOptions, MachineOptions};
use trapline::machine::pc::{BootDevice, DriveConfig, Firmware, Start, VgaOptions};
use trapline::machine::{KernelConfig, Outcome, OutputFile, Pc, PcConfig};

/// Starts a PC. Ctrl-A X ends it.
#[derive(Parser)]
#[command(name = "pc", version)]
struct Cli {
    /// What the processor starts with: seabios, ovmf, or the path of a ROM image [default: seabios]
    #[arg(long, value_name = "WHAT")]
    firmware: Option<String>,
    /// Keep the variables of UEFI firmware in this file; if it does not exist, it is made
    #[arg(long, value_name = "FILE", requires = "firmware")]
    vars: Option<PathBuf>,
    /// A kernel to start without firmware: Linux bzImage (vmlinuz), ELF or Multiboot. With --firmware, a bzImage
    /// that the firmware starts
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    #[command(flatten)]
    kernel_options: KernelOptions,
    /// A disk: file=PATH,format=raw|qcow2[,if=ide][,media=disk|cdrom][,cache=none|writeback|writethrough|directsync|unsafe][,readonly=on][,snapshot=on][,index=0..3][,serial=TEXT]
    #[arg(long, value_name = "OPTIONS")]
    disk: Vec<DriveConfig>,
    /// A CD-ROM with this disc
    #[arg(long, value_name = "FILE")]
    cdrom: Option<PathBuf>,
    /// What the firmware boots from, or kernel: what --kernel says
    #[arg(long, value_name = "WHAT", value_enum)]
    boot: Option<Boot>,
    /// The display
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = VgaModel::Std)]
    vga: VgaModel,
    /// Write what the screen shows at the end to this PNG file
    #[arg(long, value_name = "FILE")]
    screen_dump: Option<PathBuf>,
    /// Where the firmware's debug console (port 0x402) goes
    #[arg(long, value_name = "FILE")]
    debug_console: Option<PathBuf>,
    /// What the parallel port prints goes to this file
    #[arg(long, value_name = "FILE")]
    parallel: Option<PathBuf>,
    /// End when the guest resets the machine
    #[arg(long)]
    no_reboot: bool,
    #[command(flatten)]
    machine: MachineOptions,
}

/// What to boot from first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Boot {
    Disk,
    Cdrom,
    Kernel,
}

/// Which display.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VgaModel {
    /// VGA with the Bochs VBE extensions
    Std,
    None,
}

/// What the machine starts with.
fn start(cli: &Cli) -> anyhow::Result<Start> {
    let KernelOptions { initrd, append } = &cli.kernel_options;
    let kernel = cli.kernel.as_ref().map(|kernel| KernelConfig {
        kernel: kernel.clone(),
        initrd: initrd.clone(),
        cmdline: append.clone(),
    });
    match (kernel, cli.boot, &cli.firmware) {
        (Some(kernel), None | Some(Boot::Kernel), None) => Ok(Start::Kernel(kernel)),
        (None, Some(Boot::Kernel), _) => anyhow::bail!("--boot kernel needs --kernel FILE"),
        (Some(_), Some(Boot::Disk | Boot::Cdrom), _) => anyhow::bail!("--kernel is booted; leave --boot out"),
        (kernel, _, firmware) => {
            let name = firmware.as_deref().unwrap_or("seabios");
            let firmware: Firmware = name.parse()?;
            let image = firmware.image.display();
            if matches!(name, "seabios" | "ovmf") && !firmware.image.exists() {
                anyhow::bail!(
                    "there is no {image}: install Debian's package {name}, or name a file by --firmware"
                );
            }
            let firmware = Firmware { kernel, ..firmware };
            Ok(Start::Firmware(match &cli.vars {
                Some(path) => firmware.keeping_variables(path),
                None => firmware,
            }))
        }
    }
}

/// A file for output.
fn output(path: Option<&Path>) -> anyhow::Result<Option<OutputFile>> {
    let open = |path| OutputFile::open(path).with_context(|| format!("cannot write to {}", path.display()));
    path.map(open).transpose()
}

/// The same as something that a device writes to.
fn writer(file: &Option<OutputFile>) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
    Ok(match file {
        Some(file) => Some(Box::new(file.try_clone()?)),
        None => None,
    })
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let mut config = PcConfig::new(start(&cli)?);
    config.machine = cli.machine.config()?;
    if cli.screen_dump.is_some() && cli.vga == VgaModel::None {
        anyhow::bail!("--screen-dump needs a display; leave --vga none out");
    }
    let screen_dump = output(cli.screen_dump.as_deref())?;
    let debug_console = output(cli.debug_console.as_deref())?;
    let parallel = output(cli.parallel.as_deref())?;
    config.debug_console = writer(&debug_console)?;
    config.printer = writer(&parallel)?;
    config.drives = cli.disk;
    config.drives.extend(cli.cdrom.map(DriveConfig::cdrom));
    if cli.boot == Some(Boot::Cdrom) {
        config.boot = vec![BootDevice::Cdrom, BootDevice::Disk];
    }
    config.vga = (cli.vga == VgaModel::Std).then(VgaOptions::default);
    config.reboot = !cli.no_reboot;
    let mut machine = Pc::new(config)?;
    for file in [&screen_dump, &debug_console, &parallel].into_iter().flatten() {
        file.empty().context("cannot empty a file for output")?;
    }
    machine.remote().quit_on_signals()?;
    if let Some(path) = machine.serial_path() {
        eprintln!("serial port: {path}");
    }
    let outcome = machine.run()?;
    if let (Some(file), Some(screen)) = (screen_dump, machine.screen()) {
        screen.picture().write_png(std::io::BufWriter::new(file)).context("cannot write the screen dump")?;
    }
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
