//! `cargo xtask check-guest`: Debian from disk and CD, and what its programs say of the machine.
//!
//! | boot | from | what is looked at |
//! |---|---|---|
//! | disk | GRUB's first entry | every [`Check`], reading and writing, the CD; then the image |
//! | no DMA | GRUB's second entry, `libata.dma=0` | the kernel's messages, reading and writing |
//! | cd | a rescue CD | kernel and initramfs come up |

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::initramfs::BOOTED;
use crate::pc::{Emulator, Pc};
use crate::session::Session;
use crate::{disk, rescue, tools};

/// Options of the checks.
#[derive(Parser)]
pub struct Args {
    /// What runs the guest
    #[arg(long, value_enum, default_value_t = Emulator::Trapline)]
    emulator: Emulator,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// Show the guests' consoles, and what their programs print
    #[arg(long)]
    verbose: bool,
}

/// Longest time for one boot.
pub const LIMIT: Duration = Duration::from_secs(900);

/// A command in the guest, and what its output must and must not have. Spaces count as one.
struct Check {
    name: &'static str,
    command: &'static str,
    wanted: &'static [&'static str],
    forbidden: &'static [&'static str],
}

const CHECKS: &[Check] = &[
    Check {
        name: "systemd",
        command: "systemctl is-system-running --wait",
        wanted: &["running"],
        forbidden: &[],
    },
    Check {
        name: "hdparm",
        command: "hdparm -I /dev/sda",
        wanted: &[
            "ATA device, with non-removable media",
            "Model Number: ",
            "Serial Number: ",
            "Firmware Revision: ",
            "LBA user addressable sectors: ",
            "LBA48 user addressable sectors: ",
            "Sector size: 512 bytes",
            "LBA, IORDY",
            "mdma0 mdma1 ",
            "udma4 ",
            "PIO: pio0 pio1 pio2 pio3 pio4",
            "* Write cache",
            "* 48-bit Address feature set",
            "* Mandatory FLUSH_CACHE",
            "* FLUSH_CACHE_EXT",
        ],
        forbidden: &["HDIO_"],
    },
    Check {
        name: "smartctl",
        command: "smartctl -i -H /dev/sda",
        wanted: &[
            "Device Model: ",
            "Serial Number: ",
            "User Capacity: ",
            " 512 bytes",
            "ATA Version is: ",
            "SMART support is: Available",
            "SMART support is: Enabled",
            "SMART overall-health self-assessment test result: PASSED",
        ],
        forbidden: &["failed", "mandatory SMART command"],
    },
    Check {
        name: "lspci",
        command: "lspci -vv -nn",
        wanted: &[
            "00:00.0 Host bridge [0600]: Intel Corporation 440FX",
            "00:01.0 ISA bridge [0601]: Intel Corporation 82371SB",
            "00:01.1 IDE interface [0101]: Intel Corporation 82371SB",
            "00:01.3 Bridge [0680]: Intel Corporation 82371AB/EB/MB PIIX4 ACPI",
            "Control: I/O+ Mem+ BusMaster+",
            "Kernel driver in use: ata_piix",
        ],
        forbidden: &["!!!", "<access denied>", "Unknown header", "rev ff"],
    },
    Check {
        name: "dmidecode",
        command: "dmidecode",
        wanted: &[
            "SMBIOS 2.",
            "BIOS Information",
            "System Information",
            "Manufacturer: ",
            "Product Name: ",
            "UUID: ",
            "Chassis Information",
            "Processor Information",
            "Physical Memory Array",
            "Memory Device",
            "Size: 512 MB",
            "End Of Table",
        ],
        forbidden: &["Wrong DMI", "BAD INDEX", "Invalid", "Truncated", "No SMBIOS"],
    },
    Check {
        name: "acpidump",
        command: "cd /run && acpidump -b && ls *.dat && iasl -d dsdt.dat 2>&1",
        wanted: &["dsdt.dat", "facp.dat", "facs.dat", "apic.dat", "Disassembly completed"],
        forbidden: &["rror", "arning"],
    },
    Check { name: "UDMA", command: "dmesg", wanted: &["ata1.00: ATA-", "max UDMA/"], forbidden: &[] },
    DMA,
    READ_BACK,
];

/// Writes random bytes and reads them back from the disk, not from the page cache.
const READ_BACK: Check = Check {
    name: "reading and writing",
    command: "dd if=/dev/urandom of=/run/data bs=1M count=4 status=none && cp /run/data /root/data && sync && \
              echo 3 >/proc/sys/vm/drop_caches && cmp /run/data /root/data && echo read as written",
    wanted: &["read as written"],
    forbidden: &[],
};

/// The transfer mode in use. A PIIX3 has timings for multi-word DMA only, whatever the disk can do.
const DMA: Check = Check {
    name: "DMA",
    command: "cat /sys/class/ata_device/dev1.0/xfer_mode",
    wanted: &["XFER_MW_DMA_2"],
    forbidden: &[],
};
/// The same with `libata.dma=0`.
const PIO: Check = Check { name: "PIO", wanted: &["XFER_PIO_4"], ..DMA };

/// Words that no line of the kernel's messages may have if it also has one of [`SUBJECTS`].
const TROUBLE: &[&str] =
    &["error", "fail", "reset", "timeout", "timed out", "frozen", "exception", "lost", "invalid", "bug"];
const SUBJECTS: &[&str] = &["ata", "sd ", "sr ", "scsi", "ext4", "i/o", "acpi", "pci", "firmware", "irq"];
/// What a healthy kernel says with such words.
const HARMLESS: &[&str] = &[
    // Options.
    "errors=remount-ro",
    "command line:",
    // What every PC with this chip set hears.
    "if necessary, use \"pci=nocrs\" and report a bug",
    "fail to add mmconfig information",
];

/// Runs the three boots.
pub fn run(args: &Args) -> Result<ExitCode> {
    let base = disk::debian()?;
    let cdrom = rescue::image()?;
    let overlay = disk::Overlay::new(&base)?;
    let mut pc = Pc {
        memory: args.memory.clone(),
        disk: Some((overlay.path().into(), false)),
        cdrom: Some(cdrom),
        extra: Vec::new(),
    };

    let guest = Guest { emulator: args.emulator, verbose: args.verbose };
    guest.disk(&pc)?;
    check_image(&overlay)?;
    pc.disk = Some((base, true));
    guest.without_dma(&pc)?;
    pc.disk = None;
    guest.cd(&pc)?;
    Ok(ExitCode::SUCCESS)
}

/// A way to run guests.
pub struct Guest {
    /// On what.
    pub emulator: Emulator,
    /// Show everything.
    pub verbose: bool,
}

impl Guest {
    /// Boots from disk by GRUB's first entry, checks the machine, powers it off.
    pub fn disk(&self, pc: &Pc) -> Result<()> {
        self.boot("disk", pc, |guest, session| {
            guest.log_in(session, "\r")?;
            guest.messages(session)?;
            guest.check(session, CHECKS)?;
            if let Some(cdrom) = &pc.cdrom {
                guest.check_cd(session, cdrom)?;
            }
            guest.messages(session)?;
            power_off(session)
        })
    }

    fn without_dma(&self, pc: &Pc) -> Result<()> {
        self.boot("disk without DMA", pc, |guest, session| {
            guest.log_in(session, "p")?;
            guest.check(session, &[PIO, READ_BACK])?;
            guest.messages(session)?;
            power_off(session)
        })
    }

    fn cd(&self, pc: &Pc) -> Result<()> {
        self.boot("CD", pc, |guest, session| {
            session.expect("Linux version")?;
            guest.report(session, "kernel");
            session.expect(BOOTED)?;
            guest.report(session, "user space");
            Ok(())
        })
    }

    /// Starts the machine, has `dialogue` with it, and waits for its power-off.
    fn boot(
        &self,
        name: &str,
        pc: &Pc,
        dialogue: impl FnOnce(&Self, &mut Session) -> Result<()>,
    ) -> Result<()> {
        let mut command = pc.command(self.emulator)?;
        eprintln!("{name}: running {}", tools::line(&command));
        let mut session = Session::start(&mut command, "qemu-system-x86", LIMIT, self.verbose)?;
        let talk = dialogue(self, &mut session).and_then(|()| session.finish());
        let status = talk.with_context(|| format!("boot from {name}"))?;
        ensure!(
            status.success(),
            "boot from {name}: the virtual machine ended with {status}, expected a power-off"
        );
        eprintln!("{name}: passed");
        Ok(())
    }

    /// Chooses in GRUB's menu, and logs in.
    fn log_in(&self, session: &mut Session, choice: &str) -> Result<()> {
        session.expect("executed automatically")?;
        self.report(session, "GRUB's menu");
        session.send(choice)?;
        session.expect("Linux version")?;
        self.report(session, "kernel");
        session.log_in(disk::PASSWORD)?;
        self.report(session, "login");
        Ok(())
    }

    fn report(&self, session: &Session, what: &str) {
        eprintln!("  {what}: {:.1} s of CPU time, {:.1} s", session.cpu(), session.wall());
    }

    /// Runs the commands; fails, after all of them, with everything that was not as it should be.
    fn check(&self, session: &mut Session, checks: &[Check]) -> Result<()> {
        let mut complaints = Vec::new();
        for check in checks {
            let (output, status) = session.run(check.command)?;
            let wrong = check.complaints(&output, status);
            if wrong.is_empty() {
                self.report(session, &format!("{} passed", check.name));
            } else {
                eprintln!("$ {}\n{}", check.command, output.trim_end());
                complaints.extend(wrong.into_iter().map(|text| format!("{}: {text}", check.name)));
            }
        }
        ensure!(complaints.is_empty(), "{}", complaints.join("; "));
        Ok(())
    }

    /// The CD's content must be what the host has.
    fn check_cd(&self, session: &mut Session, cdrom: &Path) -> Result<()> {
        let mut command = Command::new("cksum");
        let wanted = tools::output(command.arg(cdrom), "coreutils")?;
        let wanted = wanted.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let (output, _) =
            session.run("cksum </dev/sr0; mount -o ro /dev/sr0 /mnt && ls /mnt/boot && umount /mnt")?;
        ensure!(
            output.contains(&wanted),
            "the CD reads as {:?}, expected checksum and length {wanted}",
            output.trim()
        );
        ensure!(output.contains("vmlinuz"), "the CD shows {:?}, expected a kernel", output.trim());
        self.report(session, "the CD reads as it should");
        Ok(())
    }

    /// The kernel's messages, which must tell of no trouble with the machine.
    fn messages(&self, session: &mut Session) -> Result<()> {
        let (messages, status) = session.run("dmesg")?;
        ensure!(status == 0, "dmesg ended with status {status}");
        let trouble: Vec<_> = messages.lines().filter(|line| is_trouble(line)).collect();
        ensure!(trouble.is_empty(), "the kernel has complaints:\n{}", trouble.join("\n"));
        Ok(())
    }
}

impl Check {
    /// What is wrong with the output, a line each.
    fn complaints(&self, output: &str, status: i32) -> Vec<String> {
        let output = output.split_whitespace().collect::<Vec<_>>().join(" ");
        let missing = self.wanted.iter().filter(|text| !output.contains(text.trim()));
        let unwanted = self.forbidden.iter().filter(|text| output.contains(**text));
        let mut complaints: Vec<_> = missing.map(|text| format!("{text:?} is missing")).collect();
        complaints.extend(unwanted.map(|text| format!("{text:?} is in the output")));
        if status != 0 {
            complaints.push(format!("the exit status is {status}"));
        }
        complaints
    }
}

fn is_trouble(line: &str) -> bool {
    let line = line.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| line.contains(word));
    any(TROUBLE) && any(SUBJECTS) && !any(HARMLESS)
}

fn power_off(session: &mut Session) -> Result<()> {
    session.send("poweroff\n")
}

/// What a clean end leaves: an image without errors or leaks that QEMU reads as we do, and a clean file system.
fn check_image(overlay: &disk::Overlay) -> Result<()> {
    let path = overlay.path();
    tools::output(Command::new("qemu-img").arg("check").arg(path), "qemu-utils")?;
    let raw = overlay.flatten()?;
    tools::output(Command::new("qemu-img").args(["compare", "-F", "raw"]).arg(path).arg(&raw), "qemu-utils")
        .context("the image reads differently by QEMU and by Trapline")?;
    let offset = u64::from(crate::grub::PARTITION) * crate::grub::SECTOR as u64;
    let mut command = disk::program("e2fsck");
    command.arg("-fn").arg(format!("{}?offset={offset}", raw.display()));
    tools::output(&mut command, "e2fsprogs").context("the guest's file system is damaged")?;
    eprintln!("disk: the image is in order");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_unwanted_text_and_the_status_are_complaints() {
        let check = Check { name: "x", command: "x", wanted: &["a b", "c "], forbidden: &["bad"] };
        assert!(check.complaints("\ta   b\n c\n", 0).is_empty());
        assert_eq!(
            check.complaints("bad", 2),
            ["\"a b\" is missing", "\"c \" is missing", "\"bad\" is in the output", "the exit status is 2"]
        );
    }

    #[test]
    fn trouble_is_told_from_news() {
        for line in [
            "[    2.1] ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen",
            "[    2.1] ata1: soft resetting link",
            "[    2.1] ACPI BIOS Error (bug): Could not resolve symbol [\\_SB.PCI0]",
            "[    2.1] Buffer I/O error on dev sr0, logical block 0",
            "[    2.1] EXT4-fs error (device sda1): ext4_lookup",
            "[    2.1] irq 15: nobody cared (try booting with the \"irqpoll\" option): handler lost",
        ] {
            assert!(is_trouble(line), "{line}");
        }
        for line in [
            "[    2.1] ata1.00: configured for MWDMA2",
            "[    2.1] Kernel command line: root=/dev/sda1 rootflags=errors=remount-ro",
            "[    2.1] PCI: Using host bridge windows from ACPI; if necessary, use \"pci=nocrs\" and report a bug",
            "[    2.1] RAS: Correctable Errors collector initialized.",
        ] {
            assert!(!is_trouble(line), "{line}");
        }
    }
}
