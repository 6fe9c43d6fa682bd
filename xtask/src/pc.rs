//! A PC with an IDE disk and a CD drive: on Trapline's example `pc`, or on QEMU to compare with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{debian, tools};

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Emulator {
    /// Trapline's example `pc`
    Trapline,
    /// qemu-system-x86_64 with TCG
    Qemu,
}

/// What is in the machine.
#[derive(Clone, Debug)]
pub struct Pc {
    /// Guest memory.
    pub memory: String,
    /// A qcow2 image, and whether it stays as it is: changes then go to a throw-away overlay.
    pub disk: Option<(PathBuf, bool)>,
    /// The disc in the CD drive.
    pub cdrom: Option<PathBuf>,
    /// More options for the emulator.
    pub extra: Vec<String>,
}

impl Pc {
    /// The command that runs it, with the first serial port at standard input and output. It starts from the
    /// disk if there is one, else from the disc.
    pub fn command(&self, emulator: Emulator) -> Result<Command> {
        match emulator {
            Emulator::Trapline => self.trapline(),
            Emulator::Qemu => self.qemu(),
        }
    }

    fn trapline(&self) -> Result<Command> {
        let mut command = Command::new(tools::build_example("pc")?);
        command.arg("--firmware").arg(debian::seabios()?);
        command.args(["--memory", &self.memory, "--serial", "stdio"]);
        if let Some((path, keep)) = &self.disk {
            command.arg("--disk").arg(drive(path, *keep)?);
        }
        if let Some(path) = &self.cdrom {
            command.arg("--cdrom").arg(path);
        }
        command.args(["--boot", if self.disk.is_some() { "disk" } else { "cdrom" }]);
        command.args(&self.extra);
        Ok(command)
    }

    fn qemu(&self) -> Result<Command> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=single", "-cpu", "qemu64,-svm,+rdrand", "-machine", "pc"]);
        command.args(["-m", &self.memory, "-display", "none", "-net", "none", "-no-reboot"]);
        command.args(["-serial", "stdio", "-monitor", "none"]);
        if let Some((path, keep)) = &self.disk {
            command.arg("-drive").arg(drive(path, *keep)?);
        }
        if let Some(path) = &self.cdrom {
            command.arg("-cdrom").arg(path);
        }
        command.args(["-boot", if self.disk.is_some() { "c" } else { "d" }]);
        command.args(&self.extra);
        Ok(command)
    }
}

/// The option's value, which both programs write alike.
fn drive(path: &Path, keep: bool) -> Result<String> {
    let path = path.to_str().context("the path of the disk is no text")?;
    if path.contains(',') {
        bail!("{path:?} has a comma in it, which ends the name in a list of options");
    }
    Ok(format!("file={path},if=ide,format=qcow2{}", if keep { ",snapshot=on" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_comes_before_a_disc() {
        let mut pc = Pc {
            memory: "512M".into(),
            disk: Some(("/a".into(), true)),
            cdrom: Some("/b".into()),
            extra: vec!["-x".into()],
        };
        let line = tools::line(&pc.command(Emulator::Qemu).unwrap());
        assert!(
            line.contains("-drive file=/a,if=ide,format=qcow2,snapshot=on -cdrom /b -boot c -x"),
            "{line}"
        );
        pc.disk = None;
        assert!(tools::line(&pc.command(Emulator::Qemu).unwrap()).ends_with("-cdrom /b -boot d -x"));
        pc.disk = Some(("/a,b".into(), false));
        assert!(pc.command(Emulator::Qemu).unwrap_err().to_string().contains("comma"));
    }
}
