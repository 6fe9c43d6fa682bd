//! A rescue CD: GRUB by El Torito, and on it Debian's kernel with the initramfs of the demonstration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{debian, initramfs, tools};

const GRUB_CFG: &str = include_str!("../guest/rescue.cfg");
/// GRUB's files for BIOS machines.
const MODULES: &str = "/usr/lib/grub/i386-pc";
/// What to install where a program is missing.
const TOOLS: &str = "grub-common grub-pc-bin xorriso";

/// Where the kernel lies on the CD.
const KERNEL: &str = "boot/vmlinuz";

/// Makes the CD and returns its image in the cache.
pub fn image() -> Result<PathBuf> {
    let target = tools::cache()?.join("rescue.iso");
    let work = tools::Scratch::new("rescue")?;
    fs::rename(build(work.path())?, &target).with_context(|| format!("cannot write {target:?}"))?;
    Ok(target)
}

/// Whether all is there that builds the CD.
pub fn can_build() -> Result<()> {
    // grub-mkrescue's own words for a missing module folder or xorriso are many.
    for path in [MODULES, "/usr/bin/grub-mkrescue", "/usr/bin/xorriso"] {
        if !Path::new(path).exists() {
            bail!("{path} is missing; install what builds the CD (Debian: apt-get install {TOOLS})");
        }
    }
    Ok(())
}

fn build(work: &Path) -> Result<PathBuf> {
    can_build()?;
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("boot/grub")).with_context(|| format!("cannot create {tree:?}"))?;
    fs::write(tree.join("boot/grub/grub.cfg"), GRUB_CFG)?;
    fs::write(tree.join("boot/initrd"), initramfs::demo(false)?)?;
    fs::copy(debian::kernel()?, tree.join(KERNEL)).context("cannot copy the kernel")?;

    let image = work.join("rescue.iso");
    let mut command = Command::new("grub-mkrescue");
    command.args(["-d", MODULES, "--fonts=", "--locales=", "--themes=", "-o"]).arg(&image).arg(&tree);
    tools::output(command.env("TMPDIR", work), TOOLS)?;
    Ok(image)
}
