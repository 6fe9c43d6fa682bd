//! Guest files from Debian packages, unpacked into the cache without installing anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tools;

/// Debian's kernel for virtual machines (`vmlinuz`).
pub fn kernel() -> Result<PathBuf> {
    cached("vmlinuz", || {
        let package = match concrete_kernel() {
            Ok(package) => package,
            Err(_) => {
                update()?;
                concrete_kernel()?
            }
        };
        Ok((package, vec!["boot"], "vmlinuz-"))
    })
}

/// A statically linked busybox.
pub fn busybox() -> Result<PathBuf> {
    cached("busybox", || Ok(("busybox-static".into(), vec!["bin", "usr/bin"], "busybox")))
}

/// SeaBIOS for machines of 256 KiB ROM: the installed one, or else from its package.
pub fn seabios() -> Result<PathBuf> {
    const FOLDER: &str = "usr/share/seabios";
    const FILE: &str = "bios-256k.bin";
    let installed = Path::new("/").join(FOLDER).join(FILE);
    if installed.is_file() {
        return Ok(installed);
    }
    cached(FILE, || Ok(("seabios".into(), vec![FOLDER], FILE)))
}

/// The package that `linux-image-cloud-amd64` depends on.
fn concrete_kernel() -> Result<String> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--important", "linux-image-cloud-amd64"]).env("LC_ALL", "C");
    let text = tools::output(&mut command, "apt")?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .context("apt knows no kernel package behind linux-image-cloud-amd64")
}

/// Fetches the package lists, which a fresh machine or container lacks.
fn update() -> Result<()> {
    eprintln!("fetching package lists");
    let mut command = Command::new("apt-get");
    command.args(["update", "-qq"]);
    tools::run(&mut command, "apt").context("the package lists are needed; run 'apt-get update' as root")
}

/// The cached file `name`, or else the one that the package named by `find` has in one of the folders under
/// a name with this prefix.
fn cached(
    name: &str,
    find: impl FnOnce() -> Result<(String, Vec<&'static str>, &'static str)>,
) -> Result<PathBuf> {
    let cache = tools::cache()?;
    let target = cache.join(name);
    if target.is_file() {
        return Ok(target);
    }
    let (package, folders, prefix) = find()?;
    let work = tools::Scratch::new(name)?;
    let tree = unpack(&package, work.path())?;
    let found = folders.iter().find_map(|folder| first_file(&tree.join(folder), prefix));
    let found = found.with_context(|| format!("package {package} has no {prefix} file"))?;
    // Within the cache, so that the file is there whole or not at all.
    fs::rename(found, &target).with_context(|| format!("cannot write {target:?}"))?;
    Ok(target)
}

/// Downloads a package and unpacks it below `work`.
fn unpack(package: &str, work: &Path) -> Result<PathBuf> {
    eprintln!("downloading {package}");
    if download(package, work).is_err() {
        update()?;
        download(package, work)?;
    }
    let deb = first_file(work, package).with_context(|| format!("apt-get downloaded no {package}"))?;
    let tree = work.join("tree");
    tools::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree), "dpkg")?;
    Ok(tree)
}

fn download(package: &str, folder: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    // As root apt drops to a user that cannot write into the cache.
    command.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]).current_dir(folder);
    tools::output(&mut command, "apt").map(drop)
}

/// The regular file whose name starts with `prefix`; the last one by name if there are several.
fn first_file(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .max()
}

/// A file the user named, which must exist.
pub fn given(path: &Path) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{path:?} is no file; give the path of a kernel (bzImage or ELF)");
    }
    Ok(path.canonicalize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_prefix_and_folders_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vmlinuz-6.1.0-1", "vmlinuz-6.1.0-2", "config-6.1.0-2"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("vmlinuz-9")).unwrap();
        assert_eq!(first_file(dir.path(), "vmlinuz-"), Some(dir.path().join("vmlinuz-6.1.0-2")));
        assert_eq!(first_file(dir.path(), "initrd"), None);
        assert_eq!(first_file(&dir.path().join("none"), "x"), None);
    }

    #[test]
    fn a_kernel_that_is_not_there_is_named() {
        assert!(
            given(Path::new("/nonexistent/vmlinuz"))
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/vmlinuz")
        );
    }
}
