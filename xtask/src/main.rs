//! Developer tasks: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench-guest`, `cargo xtask
//! conformance`.
#![forbid(unsafe_code)]

mod bench;
mod conformance;
mod console;
mod cpio;
mod debian;
mod demo;
mod initramfs;
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
    /// Run every check: formatting, lints, documentation, tests, and the boot of a Debian kernel
    Test(test::Args),
    /// Measure guest work on Trapline and on QEMU TCG, in CPU seconds of the emulator
    BenchGuest(bench::Args),
    /// Run a public test suite on the soft engine, and on QEMU TCG beside it
    Conformance(conformance::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::BenchGuest(args) => bench::run(&args),
        Task::Conformance(args) => conformance::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
