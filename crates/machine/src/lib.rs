//! Boards: where devices are wired to buses, and the loop that runs a guest on them.
//!
//! [`Microvm`] is a machine with few devices that starts a kernel, [`Pc`] one that firmware and operating
//! systems take for a PC: see [`microvm`] and [`pc`] for their devices and addresses.
//!
//! # Threads
//!
//! Running gives each vCPU a thread. An exit is served there, inline: the buses find the device
//! without a lock, and lock only that one. Devices that time drives are called from the loop of vCPU 0 where
//! the engine keeps deadlines, else by a timer. The calling thread serves the host's side: input, the timer,
//! the end of the run.
//!
//! Left out: virtio, pausing while the guest runs on other threads.
//!
//! ```no_run
//! use trapline_machine::{Microvm, MicrovmConfig, Outcome};
//!
//! let mut config = MicrovmConfig::new("/boot/vmlinuz");
//! config.kernel.cmdline = "console=ttyS0".into();
//! let outcome = Microvm::new(config)?.run()?;
//! assert_eq!(outcome, Outcome::PowerOff);
//! # Ok::<(), trapline_machine::Error>(())
//! ```
#![deny(unsafe_code)]

mod boot_state;
mod chassis;
mod config;
mod console;
mod control;
mod devices;
mod error;
mod event_loop;
mod host;
mod irq;
pub mod microvm;
mod output_file;
pub mod pc;
mod profile;
mod remote;
mod run;
mod state;
mod stats;
mod testdev;
mod timers;
pub mod trace;

pub use config::{ICOUNT_START, KernelConfig, MAX_CPUS, MAX_MEMORY, MachineConfig};
pub use console::{Serial, UnknownSerial};
pub use control::Outcome;
pub use error::{Error, Result};
pub use microvm::{Microvm, MicrovmConfig};
pub use output_file::OutputFile;
pub use pc::{Pc, PcConfig};
pub use profile::{Profile, ProfileRow};
pub use remote::Remote;
pub use state::MachineState;
pub use stats::Stats;
pub use trapline_chipset::Key;
