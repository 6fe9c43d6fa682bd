//! What boards are made from, as far as they have it in common.

use std::path::PathBuf;
use std::time::Duration;

use trapline_vcpu::{Accel, CpuModel, Paging};

use crate::console::Serial;
use crate::{Error, Result};

/// The most processors: xAPIC IDs 0 to 253, and one for the IOAPIC.
pub const MAX_CPUS: u32 = 254;
/// The most memory in bytes: 64 TiB, within the 46 physical address bits that processors commonly have.
pub const MAX_MEMORY: u64 = 1 << 46;
/// The least memory in bytes: all of the first MiB, where boot data and tables are.
pub(crate) const MIN_MEMORY: u64 = 1 << 20;

/// What the real-time clock of a machine with [`MachineConfig::icount`] starts at, since 1970:
/// 1 January 2000, 00:00.
pub const ICOUNT_START: Duration = Duration::from_secs(946_684_800);

/// What every board is made from.
#[derive(Debug)]
pub struct MachineConfig {
    /// RAM in bytes; a multiple of 4 KiB, at least 1 MiB.
    pub memory: u64,
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// What executes the guest.
    pub accel: Accel,
    /// The processor that the guest sees; `None`: the soft engine's default, and the host's on KVM. See
    /// [`VmConfig::cpu`](trapline_vcpu::VmConfig::cpu).
    pub cpu: Option<CpuModel>,
    /// How guest addresses are translated. Shadow paging is the soft engine's.
    pub paging: Paging,
    /// Whether the soft engine only interprets: see [`VmConfig::interpret`](trapline_vcpu::VmConfig::interpret).
    pub interpret: bool,
    /// Deterministic mode: time is 2^`icount` nanoseconds for each instruction executed, so that two runs
    /// with the same files and no input are equal. One processor, on the soft engine. The real-time clock
    /// starts at [`ICOUNT_START`].
    pub icount: Option<u8>,
    /// Where COM1 leads to.
    pub serial: Serial,
    /// Whether there are the devices that bare-metal test kernels written for QEMU expect: isa-debug-exit at
    /// port 0xf4, pc-testdev, and fw_cfg with what they ask for.
    pub testdev: bool,
    /// Whether [`Stats::profile`](crate::Stats::profile) says where time goes, which takes time itself.
    pub profile: bool,
    /// A file for what the machine does, exit by exit, in the Chrome trace event format: see
    /// [`trace`](crate::trace). It costs time.
    pub trace: Option<PathBuf>,
}

impl Default for MachineConfig {
    /// One processor, 512 MiB, the engine chosen automatically, COM1 on standard input and output.
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            cpus: 1,
            accel: Accel::Auto,
            cpu: None,
            paging: Paging::default(),
            interpret: false,
            icount: None,
            serial: Serial::Stdio,
            testdev: false,
            profile: false,
            trace: None,
        }
    }
}

impl MachineConfig {
    /// Refuses what no board can be, before anything is made.
    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(Error::Cpus(self.cpus));
        }
        if self.memory > MAX_MEMORY {
            return Err(Error::MemoryTooLarge { size: self.memory });
        }
        if self.icount.is_some() && self.cpus > 1 {
            return Err(Error::IcountCpus(self.cpus));
        }
        Ok(())
    }
}

/// A kernel that a board starts without firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// The kernel: see [`trapline_boot`] for what it can be.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
}

impl KernelConfig {
    /// The kernel alone.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self { kernel: kernel.into(), initrd: None, cmdline: String::new() }
    }
}
