//! What a PC is made from.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::drives::DriveConfig;
use super::flash::Variables;
use crate::config::{KernelConfig, MachineConfig};

/// What the machine starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Firmware, which boots from a drive.
    Firmware(Firmware),
    /// A kernel, without firmware.
    Kernel(KernelConfig),
}

/// Firmware that starts the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The image: a ROM that ends at 4 GiB.
    pub image: PathBuf,
    /// Flash right below the image, in which UEFI firmware keeps its variables.
    pub variables: Option<Variables>,
    /// A Linux kernel that the firmware finds in fw_cfg and starts before anything else.
    pub kernel: Option<KernelConfig>,
}

impl Firmware {
    /// An image without variables.
    pub fn new(image: impl Into<PathBuf>) -> Self {
        Self { image: image.into(), variables: None, kernel: None }
    }

    /// The same with variables that are kept in a file.
    pub fn keeping_variables(self, path: impl Into<PathBuf>) -> Self {
        let template = match self.variables {
            Some(Variables::Volatile(template)) => Some(template),
            Some(Variables::File { template, .. }) => template,
            None => None,
        };
        Self { variables: Some(Variables::File { path: path.into(), template }), ..self }
    }
}

impl FromStr for Firmware {
    type Err = std::convert::Infallible;

    /// `seabios` and `ovmf` are the files of Debian's packages, the latter with a copy of its variables that is
    /// not kept; everything else is a path.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(match name {
            "seabios" => Self::new("/usr/share/seabios/bios-256k.bin"),
            "ovmf" => Self {
                variables: Some(Variables::Volatile("/usr/share/OVMF/OVMF_VARS_4M.fd".into())),
                ..Self::new("/usr/share/OVMF/OVMF_CODE_4M.fd")
            },
            path => Self::new(path),
        })
    }
}

/// What firmware boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootDevice {
    /// The hard disks.
    Disk,
    /// The CD-ROMs.
    Cdrom,
}

/// A display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgaOptions {
    /// The video BIOS. Without one the screen stays blank until a driver sets a mode.
    pub bios: Option<PathBuf>,
    /// Video memory in bytes: a power of two from 256 KiB to 32 MiB.
    pub memory: u64,
    /// The resolution that the monitor asks for, in dots.
    pub resolution: (u16, u16),
}

impl Default for VgaOptions {
    /// 16 MiB, 1024 by 768, and the video BIOS of Debian's package `seabios`, if that is installed.
    fn default() -> Self {
        let bios = Path::new("/usr/share/seabios/vgabios-stdvga.bin");
        let bios = bios.exists().then(|| bios.to_owned());
        Self { bios, memory: 16 << 20, resolution: (1024, 768) }
    }
}

/// What a [`Pc`](super::Pc) is made from.
pub struct PcConfig {
    /// Memory, processors, the engine, the serial port.
    pub machine: MachineConfig,
    /// What the processor starts with.
    pub start: Start,
    /// Disks and CD-ROMs: at most [`DRIVES`](super::DRIVES).
    pub drives: Vec<DriveConfig>,
    /// What the firmware tries, best first.
    pub boot: Vec<BootDevice>,
    /// The display, if there is one.
    pub vga: Option<VgaOptions>,
    /// Takes what firmware writes to its debug console; dropped otherwise.
    pub debug_console: Option<Box<dyn Write + Send>>,
    /// Takes what the guest prints on its parallel port; dropped otherwise.
    pub printer: Option<Box<dyn Write + Send>>,
    /// Whether a reset by the guest starts the machine again, and does not end the run.
    pub reboot: bool,
}

impl PcConfig {
    /// The default machine without drives, which boots from disks before CD-ROMs.
    pub fn new(start: Start) -> Self {
        Self {
            machine: MachineConfig::default(),
            start,
            drives: Vec::new(),
            boot: vec![BootDevice::Disk, BootDevice::Cdrom],
            vga: Some(VgaOptions::default()),
            debug_console: None,
            printer: None,
            reboot: true,
        }
    }
}

impl fmt::Debug for PcConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, start, drives, boot, vga, debug_console: _, printer: _, reboot } = self;
        f.debug_struct("PcConfig")
            .field("machine", machine)
            .field("start", start)
            .field("drives", drives)
            .field("boot", boot)
            .field("vga", vga)
            .field("reboot", reboot)
            .finish_non_exhaustive()
    }
}
