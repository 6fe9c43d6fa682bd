//! Developer tasks: `cargo xtask help` lists them.
#![forbid(unsafe_code)]

mod bench;
mod bench_disk;
mod check_guest;
mod conformance;
mod console;
mod cpio;
mod crash;
mod debian;
mod demo;
mod disk;
mod grub;
mod initramfs;
mod pc;
mod rescue;
mod session;
mod table;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of Trapline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot Debian's kernel in a virtual machine and show its console
    Demo(demo::Args),
    /// Build the Debian disk that `demo --disk` boots, if it is not there, and print where it is
    Disk,
    /// Run every check: formatting, lints, documentation, tests, and the boot of a Debian kernel
    Test(test::Args),
    /// Boot Debian from disk, without DMA and from CD, and check what it says of the machine
    CheckGuest(check_guest::Args),
    /// Measure guest work on Trapline and on QEMU TCG, in CPU seconds of the emulator
    BenchGuest(bench::Args),
    /// Measure Debian's boot from disk, and reading and writing in it, in CPU seconds of the emulator
    BenchDisk(bench_disk::Args),
    /// Run a public test suite on the soft engine, and on QEMU TCG beside it
    Conformance(conformance::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Disk => disk::debian().map(|path| {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }),
        Task::Test(args) => test::run(&args),
        Task::CheckGuest(args) => check_guest::run(&args),
        Task::BenchGuest(args) => bench::run(&args),
        Task::BenchDisk(args) => bench_disk::run(&args),
        Task::Conformance(args) => conformance::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
