//! `cargo xtask check-guest`: Debian from disk and CD, and what its programs say of the machine.
//!
//! | boot | from | what is looked at |
//! |---|---|---|
//! | CD | a rescue CD | kernel and initramfs come up |
//! | disk | GRUB's first entry | every [`Check`], reading and writing, the CD; then the image |
//! | disk without DMA | GRUB's second entry, `libata.dma=0` | the kernel's messages, reading and writing |
//!
//! While the guest writes, what a crash would leave of the image is looked at, see [`crash`].

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::initramfs::BOOTED;
use crate::pc::{Emulator, Pc};
use crate::session::Session;
use crate::test::Skipped;
use crate::{crash, disk, rescue, tools};

/// Options of the checks.
#[derive(Parser)]
pub struct Args {
    /// What runs the guest
    #[arg(long, value_enum, default_value_t = Emulator::Trapline)]
    emulator: Emulator,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// Boot so many times more, and kill the virtual machine while the guest writes
    #[arg(long, value_name = "N", default_value_t = 0)]
    kills: u32,
    /// Show the guests' consoles, and what their programs print
    #[arg(long)]
    verbose: bool,
}

/// Longest time for one boot.
pub const LIMIT: Duration = Duration::from_secs(900);

/// So many times the image is looked at while the guest writes.
const MOMENTS: u32 = 20;

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
            "SMBIOS 2.8 present",
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
    Check {
        name: "suspend to RAM",
        // From a terminal rtcwake would drop what is typed ahead.
        command: "rtcwake -m mem -s 3 </dev/null && dmesg",
        wanted: &["ACPI: PM: Waking up from system sleep state S3", "PM: suspend exit"],
        forbidden: &["suspend devices took"],
    },
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

/// Runs the boots.
pub fn run(args: &Args) -> Result<ExitCode> {
    let base = disk::debian()?;
    let cdrom = rescue::image()?;
    let guest = Guest { emulator: args.emulator, verbose: args.verbose };
    let mut pc = Pc { memory: args.memory.clone(), disk: None, cdrom: Some(cdrom), extra: Vec::new() };
    guest.cd(&pc)?;

    let overlay = disk::Overlay::new(&base)?;
    pc.disk = Some((overlay.path().into(), false));
    guest.disk(&pc, Some(&overlay))?;
    check_image(&overlay)?;
    guest.without_dma(&pc, &overlay)?;
    drop(overlay);

    for kill in 1..=args.kills {
        let overlay = disk::Overlay::new(&base)?;
        pc.disk = Some((overlay.path().into(), false));
        guest.kill(&format!("kill {kill} of {}", args.kills), &pc, &overlay)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The boots as a step of `cargo xtask test`: skipped where what builds disk and CD is not installed.
pub fn test() -> Result<()> {
    let qemu_img = || tools::output(Command::new("qemu-img").arg("--version"), "qemu-utils");
    let ready = disk::can_build().and_then(|()| rescue::can_build()).and_then(|()| qemu_img());
    ready.map_err(|error| Skipped(error.to_string()))?;
    let memory = "512M".to_owned();
    run(&Args { emulator: Emulator::Trapline, memory, kills: 0, verbose: false }).map(drop)
}

/// A way to run guests.
pub struct Guest {
    /// On what.
    pub emulator: Emulator,
    /// Show everything.
    pub verbose: bool,
}

impl Guest {
    /// Boots from disk by GRUB's first entry, checks the machine, looks at the overlay while the guest writes if
    /// there is one, and powers the guest off.
    pub fn disk(&self, pc: &Pc, overlay: Option<&disk::Overlay>) -> Result<()> {
        self.boot("disk", pc, |mut session| {
            self.log_in(&mut session, "\r")?;
            self.messages(&mut session)?;
            self.check(&mut session, CHECKS)?;
            if let Some(cdrom) = &pc.cdrom {
                self.check_cd(&mut session, cdrom)?;
            }
            if let Some(overlay) = overlay {
                crash::sample(&mut session, overlay, MOMENTS)?;
                self.report(&session, "the image was in order at every moment");
            }
            self.messages(&mut session)?;
            session.send("poweroff\n")?;
            end(session)
        })
    }

    /// Boots from disk by GRUB's second entry, and kills the virtual machine while the guest writes.
    fn without_dma(&self, pc: &Pc, overlay: &disk::Overlay) -> Result<()> {
        self.boot("disk without DMA", pc, |mut session| {
            self.log_in(&mut session, "p")?;
            self.check(&mut session, &[PIO, READ_BACK])?;
            self.messages(&mut session)?;
            crash::kill(session, overlay)
        })
    }

    /// Boots from disk, to a shell in the place of systemd, and kills the virtual machine while the guest writes.
    fn kill(&self, name: &str, pc: &Pc, overlay: &disk::Overlay) -> Result<()> {
        self.boot(name, pc, |mut session| {
            session.expect("executed automatically")?;
            session.send("c")?;
            let kernel = "linux /vmlinuz root=/dev/sda1 rw console=ttyS0 init=/bin/sh\r";
            for command in [kernel, "initrd /initrd.img\r", "boot\r"] {
                session.expect("grub>")?;
                session.send(command)?;
            }
            session.expect("job control turned off")?;
            session.take_shell()?;
            self.report(&session, "shell");
            crash::kill(session, overlay)
        })
    }

    fn cd(&self, pc: &Pc) -> Result<()> {
        self.boot("CD", pc, |mut session| {
            session.expect("Linux version")?;
            self.report(&session, "kernel");
            session.expect(BOOTED)?;
            self.report(&session, "user space");
            end(session)
        })
    }

    /// Starts the machine and has `dialogue` with it.
    fn boot(&self, name: &str, pc: &Pc, dialogue: impl FnOnce(Session) -> Result<()>) -> Result<()> {
        let mut command = pc.command(self.emulator)?;
        eprintln!("{name}: running {}", tools::line(&command));
        let session = Session::start(&mut command, "qemu-system-x86", LIMIT, self.verbose)?;
        dialogue(session).with_context(|| format!("boot from {name}"))?;
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

/// Waits for the machine's power-off.
fn end(session: Session) -> Result<()> {
    let status = session.finish()?;
    ensure!(status.success(), "the virtual machine ended with {status}, expected a power-off");
    Ok(())
}

/// What a clean end leaves: an image without errors or leaks that QEMU reads as we do, and a clean file system.
fn check_image(overlay: &disk::Overlay) -> Result<()> {
    let path = overlay.path();
    tools::output(Command::new("qemu-img").arg("check").arg(path), "qemu-utils")?;
    let raw = overlay.raw()?;
    tools::output(Command::new("qemu-img").args(["compare", "-F", "raw"]).arg(path).arg(&raw), "qemu-utils")
        .context("the image reads differently by QEMU and by Trapline")?;
    let mut command = disk::program("e2fsck");
    command.arg("-fn").arg(overlay.partition()?);
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
