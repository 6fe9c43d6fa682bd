//! `cargo xtask bench-disk`: CPU seconds for Debian's boot from an IDE disk, and for a GiB read and written in it,
//! on Trapline and on QEMU TCG.
//!
//! As in [`bench`](crate::bench), what counts is the CPU time of the emulator's process between two texts on
//! the guest's console. The transfers are `dd`'s in blocks of 1 MiB on a file, with the page cache dropped: a new
//! file is written and synchronised, read, then overwritten and read again with `O_DIRECT`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::bench::{Results, Sample};
use crate::pc::{Emulator, Pc};
use crate::session::Session;
use crate::{disk, table};

/// Options of the benchmark.
#[derive(Parser)]
pub struct Args {
    /// MiB to transfer with DMA
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=900))]
    dma: u32,
    /// MiB to transfer without DMA
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=900))]
    pio: u32,
    /// What to run, Trapline and then QEMU if not given
    #[arg(long, value_enum)]
    emulator: Option<Emulator>,
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the guests' consoles
    #[arg(long)]
    verbose: bool,
}

const LIMIT: Duration = Duration::from_secs(1800);
const MEMORY: &str = "512M";
/// Nothing of a file is left in the guest's memory after it.
const DROP_CACHES: &str = "sync; echo 3 >/proc/sys/vm/drop_caches";

/// Runs the emulators and prints the table.
pub fn run(args: &Args) -> Result<ExitCode> {
    let base = disk::debian()?;
    let emulators = match args.emulator {
        Some(one) => vec![one],
        None => vec![Emulator::Trapline, Emulator::Qemu],
    };
    let mut results = Vec::new();
    for emulator in emulators {
        let name = match emulator {
            Emulator::Trapline => "trapline",
            Emulator::Qemu => "qemu",
        };
        let mut samples = Vec::new();
        for (mode, choice, mib) in [("dma", "\r", args.dma), ("pio", "p", args.pio)] {
            eprintln!("{name}: {mode}, {mib} MiB");
            let mut stopwatch = Stopwatch::start(emulator, &base, args.verbose)?;
            stopwatch.measure(mode, choice, mib).with_context(|| format!("{name}, {mode}"))?;
            samples.extend(stopwatch.samples);
        }
        results.push(Results { emulator: name, samples });
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {path:?}"))?;
    }
    print!("{}", table::Table::new(&results));
    Ok(ExitCode::SUCCESS)
}

/// A guest and what it has cost so far.
struct Stopwatch {
    session: Session,
    last: (f64, f64),
    samples: Vec<Sample>,
}

impl Stopwatch {
    fn start(emulator: Emulator, base: &Path, verbose: bool) -> Result<Self> {
        let disk = Some((base.to_owned(), true));
        let pc = Pc { memory: MEMORY.into(), disk, cdrom: None, extra: Vec::new() };
        let session = Session::start(&mut pc.command(emulator)?, "qemu-system-x86", LIMIT, verbose)?;
        Ok(Self { session, last: (0.0, 0.0), samples: Vec::new() })
    }

    /// Boots, then writes and reads a file of `mib` MiB.
    fn measure(&mut self, mode: &str, choice: &str, mib: u32) -> Result<()> {
        self.session.expect("executed automatically")?;
        self.session.send(choice)?;
        self.session.expect("Linux version")?;
        self.note(&format!("loader/{mode}"), 1.0);
        self.session.log_in(disk::PASSWORD)?;
        self.note(&format!("login/{mode}"), 1.0);
        // What a boot starts must not fall into the measurement.
        self.command("systemctl is-system-running --wait; udevadm settle")?;

        // Through the guest's page cache, and past it: then the transfer is nearly all there is.
        let count = format!("bs=1M count={mib}");
        let transfers = [
            ("write", format!("dd if=/dev/zero of=/root/file {count} conv=fsync")),
            ("read", "dd if=/root/file of=/dev/null bs=1M".to_owned()),
            ("write-direct", format!("dd if=/dev/zero of=/root/file {count} conv=notrunc oflag=direct")),
            ("read-direct", "dd if=/root/file of=/dev/null bs=1M iflag=direct".to_owned()),
        ];
        for (name, dd) in transfers {
            self.command(DROP_CACHES)?;
            self.restart();
            self.command(&format!("{dd} 2>&1"))?;
            self.note(&format!("{name}/{mode}"), 1024.0 / f64::from(mib));
        }
        Ok(())
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let (output, status) = self.session.run(command)?;
        ensure!(status == 0, "{command} ended with status {status}: {}", output.trim());
        Ok(())
    }

    fn restart(&mut self) {
        self.last = (self.session.cpu(), self.session.wall());
    }

    /// Takes down what was used since the last note, times `scale`.
    fn note(&mut self, phase: &str, scale: f64) {
        let now = (self.session.cpu(), self.session.wall());
        let (cpu, wall) = ((now.0 - self.last.0) * scale, (now.1 - self.last.1) * scale);
        self.last = now;
        self.samples.push(Sample { phase: phase.into(), cpu, wall, check: String::new() });
    }
}
