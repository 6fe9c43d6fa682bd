//! What can go wrong on the host's side.

use std::io;
use std::path::PathBuf;

/// Why a machine could not be made or could not go on. Every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Guest memory is not possible.
    #[error(transparent)]
    Memory(#[from] trapline_memory::LayoutError),
    /// Guest memory is too small for the board.
    #[error("guest memory of {size} bytes is too small, the board needs at least 1 MiB")]
    MemoryTooSmall {
        /// Size asked for, in bytes.
        size: u64,
    },
    /// Guest memory is larger than the board can address.
    #[error("guest memory of {size} bytes is too large, the board takes at most {max}", max = crate::config::MAX_MEMORY)]
    MemoryTooLarge {
        /// Size asked for, in bytes.
        size: u64,
    },
    /// The number of processors is out of range.
    #[error("{0} processors, the board takes 1 to {max}", max = crate::config::MAX_CPUS)]
    Cpus(u32),
    /// Deterministic mode has one processor.
    #[error("icount counts the instructions of one processor, not of {0}")]
    IcountCpus(u32),
    /// The kernel, its initrd or its command line.
    #[error(transparent)]
    Boot(#[from] trapline_boot::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] trapline_vcpu::Error),
    /// Two devices at one address: a mistake of the board.
    #[error(transparent)]
    Bus(#[from] trapline_device::bus::BusError),
    /// A PCI function has no place: a mistake of the board.
    #[error(transparent)]
    Topology(#[from] trapline_pci::TopologyError),
    /// A PCI function is not possible: a mistake of the board.
    #[error(transparent)]
    Function(#[from] trapline_pci::ConfigError),
    /// There is no room for a BAR.
    #[error(transparent)]
    Assign(#[from] trapline_pci::AssignError),
    /// The display.
    #[error(transparent)]
    Vga(#[from] trapline_display::VgaError),
    /// The trace's file cannot be made.
    #[error("cannot write the trace to {}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Firmware configuration.
    #[error(transparent)]
    FwCfg(#[from] trapline_chipset::fw_cfg::FwCfgError),
    /// The firmware's image.
    #[error("cannot use firmware {}: {why}", path.display())]
    Firmware {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file that keeps the firmware's variables.
    #[error("cannot use variables {}: {why}", path.display())]
    Variables {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A disk cannot be opened.
    #[error("cannot open disk {}: {source}", path.display())]
    Disk {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: trapline_disk::DiskError,
    },
    /// What the guest has written could not be made durable.
    #[error("cannot flush a disk: {0}")]
    Flush(trapline_disk::DiskError),
    /// Memory that the processor cannot address.
    #[error(
        "memory ends at {end:#x}, the processor has {bits} bits of physical address: give it more with --cpu default,phys-bits=N"
    )]
    PhysBits {
        /// The end of memory.
        end: u64,
        /// The width of its addresses.
        bits: u8,
    },
    /// Two drives want one place.
    #[error("two drives have index {0}")]
    DriveIndex(usize),
    /// More drives than the controller has places for.
    #[error("the ide controller has places for {max} drives", max = crate::pc::DRIVES)]
    TooManyDrives,
    /// The operating system refused.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The host's event loop.
    #[error("event loop: {0}")]
    Events(event_manager::Error),
    /// A saved state that does not fit.
    #[error(transparent)]
    Restore(#[from] trapline_device::RestoreError),
    /// A saved state of another machine.
    #[error("the saved state has {saved} processors, this machine {here}")]
    OtherMachine {
        /// Processors in the state.
        saved: usize,
        /// Processors of the machine.
        here: usize,
    },
    /// A saved state of a machine with other devices.
    #[error("either the saved state or this machine has the device {0}, not both")]
    OtherDevices(&'static str),
    /// A thread of the machine panicked: a bug.
    #[error("the thread of vcpu {0} panicked")]
    Panicked(u32),
}

impl Error {
    /// Wraps the error of a system request.
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }
}

impl From<event_manager::Error> for Error {
    fn from(error: event_manager::Error) -> Self {
        Self::Events(error)
    }
}

/// Result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;
