//! A Debian disk that boots by itself, built from packages without a loop device: mmdebstrap makes the system,
//! `mke2fs -d` the file system, [`grub`] what is before it, and the qcow2 image is written by `trapline-disk`.
//!
//! What is in it is decided by [`PACKAGES`] and the files in `xtask/guest/`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use trapline_disk::qcow2::{CreateOptions, Qcow2Options};
use trapline_disk::{CacheMode, Disk, Format, HostFile, OpenOptions, Qcow2Disk};

use crate::{grub, tools};

/// Beside the essential packages and apt: systemd with logins, kernel and boot loader, and programs that show
/// what machine this is.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "libpam-systemd",
    "kmod",
    "initramfs-tools",
    "linux-image-cloud-amd64",
    "grub-pc-bin",
    "iproute2",
    "hdparm",
    "smartmontools",
    "pciutils",
    "dmidecode",
    "acpica-tools",
];
const SUITE: &str = "bookworm";
const GRUB_CFG: &str = include_str!("../guest/grub.cfg");
const INITRAMFS_HOOK: &str = include_str!("../guest/initramfs.sh");
const PARTITION_SCRIPT: &str = include_str!("../guest/partition.sh");
/// Files that nobody reads in a machine without people.
const EXCLUDED: &[&str] = &["doc", "man", "info", "locale", "lintian", "bug"];

/// Size of the root partition in KiB; the image only takes what is used.
const PARTITION_KIB: u64 = 1536 << 10;
const UUID: &str = "7261706c-696e-4500-8000-00000000da7a";
/// Time stamps of what the packages do not bring: a fixed one, so that images differ less.
const EPOCH: &str = "1750000000";
/// Images are copied in pieces of this size: a cluster.
const PIECE: usize = 64 << 10;
/// What to install where a program is missing.
const TOOLS: &str = "mmdebstrap e2fsprogs tar";

/// The disk as a qcow2 image in the cache, built if it is not there.
pub fn debian() -> Result<PathBuf> {
    let cache = tools::cache()?;
    let target = cache.join(format!("debian-{}.qcow2", recipe_key()));
    if target.is_file() {
        return Ok(target);
    }
    can_build()?;
    let work = tools::Scratch::new("debian")?;
    let image = build(work.path())?;
    // Within the cache, so that the image is there whole or not at all.
    fs::rename(image, &target).with_context(|| format!("cannot write {target:?}"))?;
    Ok(target)
}

/// Root's password in the image, as `partition.sh` sets it.
pub const PASSWORD: &str = "trapline";

/// A program that may lie in a folder that only root has in its path.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", search_path());
    command
}

/// Where a program is looked for: mke2fs is in a folder that only root has in its path.
fn search_path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Whether all is there that builds a disk.
pub fn can_build() -> Result<()> {
    ["mmdebstrap", "mke2fs", "tar"].into_iter().try_for_each(require)
}

fn require(program: &str) -> Result<()> {
    let found = search_path().split(':').any(|folder| Path::new(folder).join(program).is_file());
    ensure!(found, "{program} is missing; install what builds the disk (Debian: apt-get install {TOOLS})");
    Ok(())
}

/// FNV-1a over all that the image is made from.
fn recipe_key() -> String {
    let packages = PACKAGES.join(" ");
    let excluded = EXCLUDED.join(" ");
    let size = PARTITION_KIB.to_string();
    let parts = [SUITE, &packages, &excluded, GRUB_CFG, INITRAMFS_HOOK, PARTITION_SCRIPT, &size, UUID, EPOCH];
    let hash = parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn build(work: &Path) -> Result<PathBuf> {
    eprintln!("building a Debian disk (some minutes; only once)");
    bootstrap(work)?;
    let partition = make_partition(work)?;
    let head = grub::head(
        &read(&work.join("boot.img"))?,
        &read(&work.join("core.img"))?,
        u32::try_from(PARTITION_KIB * 2)?,
    )?;
    let image = work.join("disk.qcow2");
    write_image(&image, &head, &partition).with_context(|| format!("cannot write {image:?}"))?;
    Ok(image)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {path:?}"))
}

/// Makes `root.tar`.
fn bootstrap(work: &Path) -> Result<()> {
    let hook = work.join("initramfs.sh");
    fs::write(&hook, INITRAMFS_HOOK)?;
    let mut command = Command::new("mmdebstrap");
    command.env("PATH", search_path()).env("SOURCE_DATE_EPOCH", EPOCH).env("TMPDIR", work).current_dir(work);
    command.args(["--quiet", "--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.args(EXCLUDED.iter().map(|folder| format!("--dpkgopt=path-exclude=/usr/share/{folder}/*")));
    command.arg(format!("--essential-hook=sh '{}' \"$1\"", hook.display()));
    command.args([SUITE, "root.tar"]);
    command.args(host_sources());
    tools::run(&mut command, TOOLS).context(
        "the Debian system could not be made; as an ordinary user it needs user namespaces \
         (/etc/subuid, kernel.unprivileged_userns_clone), as root nothing",
    )
}

/// The host's own package sources of this Debian release, as lines of a sources.list. Where it has none,
/// mmdebstrap's default serves.
fn host_sources() -> Vec<String> {
    let mut command = Command::new("apt-get");
    let format = "$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)";
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let text = tools::output(&mut command, "apt").unwrap_or_default();
    let mut lines: Vec<_> = text.lines().filter_map(source_line).collect();
    lines.sort();
    lines.dedup();
    lines
}

fn source_line(target: &str) -> Option<String> {
    let [origin, codename, uri, release, component] = target.split(' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    let wanted = codename == SUITE || codename.strip_prefix(SUITE).is_some_and(|rest| rest.starts_with('-'));
    (origin == "Debian" && wanted && component == "main").then(|| format!("deb {uri} {release} {component}"))
}

/// Makes the partition's image from `root.tar`.
fn make_partition(work: &Path) -> Result<PathBuf> {
    fs::write(work.join("grub.cfg"), GRUB_CFG)?;
    fs::write(work.join("partition.sh"), PARTITION_SCRIPT)?;
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    // The owners of the files must be as in the archive.
    let mut command = if root { Command::new("sh") } else { Command::new("mmdebstrap") };
    if !root {
        command.args(["--unshare-helper", "sh"]);
    }
    let size = PARTITION_KIB.to_string();
    command.args(["partition.sh", "partition.img", &size, UUID]);
    command
        .env("PATH", search_path())
        .env("E2FSPROGS_FAKE_TIME", EPOCH)
        .env("TMPDIR", work)
        .current_dir(work);
    // Not to our own output, which is the image's path.
    tools::output(&mut command, TOOLS).context("the root partition could not be made")?;
    Ok(work.join("partition.img"))
}

/// Writes a qcow2 image of `head` followed by the partition; what is zero takes no room.
fn write_image(path: &Path, head: &[u8], partition: &Path) -> Result<()> {
    let mut source = File::open(partition)?;
    let length = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let disk = create(path, head.len() as u64 + length, None)?;
    let put = |offset: u64, piece: &[u8]| -> Result<()> {
        if piece.iter().any(|byte| *byte != 0) {
            disk.write(offset, piece)?;
        }
        Ok(())
    };
    for (number, piece) in head.chunks(PIECE).enumerate() {
        put((number * PIECE) as u64, piece)?;
    }
    let mut piece = vec![0; PIECE];
    let mut offset = head.len() as u64;
    while offset < head.len() as u64 + length {
        let count = PIECE.min((head.len() as u64 + length - offset) as usize);
        source.read_exact(&mut piece[..count])?;
        put(offset, &piece[..count])?;
        offset += count as u64;
    }
    disk.flush()?;
    Ok(())
}

/// A writable image over one that stays as it is; gone with the value.
pub struct Overlay {
    folder: tools::Scratch,
    path: PathBuf,
}

impl Overlay {
    /// Makes an empty one over `base`, which lies in the cache.
    pub fn new(base: &Path) -> Result<Self> {
        let folder = tools::Scratch::new("overlay")?;
        // Backing files are looked for in the image's folder.
        let link = folder.path().join("base.qcow2");
        fs::hard_link(base, &link).with_context(|| format!("cannot link {base:?}"))?;
        let backing = open(&link)?;
        let path = folder.path().join("disk.qcow2");
        create(&path, backing.size(), Some((&link, backing)))?.flush()?;
        Ok(Self { folder, path })
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk as a raw image beside it.
    pub fn raw(&self) -> Result<PathBuf> {
        self.copy_from(0, "disk.raw")
    }

    /// The root partition as a raw image beside it, as e2fsprogs need it: they know an offset into a disk, but
    /// e2fsck forgets it once it has replayed the journal.
    pub fn partition(&self) -> Result<PathBuf> {
        self.copy_from(u64::from(grub::PARTITION) * grub::SECTOR as u64, "partition.raw")
    }

    fn copy_from(&self, start: u64, name: &str) -> Result<PathBuf> {
        let disk = open(&self.path)?;
        let path = self.folder.path().join(name);
        let raw = File::create(&path)?;
        raw.set_len(disk.size() - start)?;
        let mut piece = vec![0; PIECE];
        for offset in (start..disk.size()).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min((disk.size() - offset) as usize)];
            disk.read(offset, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                raw.write_all_at(piece, offset - start)?;
            }
        }
        Ok(path)
    }
}

/// An image for reading.
fn open(path: &Path) -> Result<Arc<dyn Disk>> {
    let mut options = OpenOptions::new(path);
    (options.format, options.read_only) = (Some(Format::Qcow2), true);
    trapline_disk::open(&options).with_context(|| format!("cannot open {path:?}"))
}

/// A new image, over `backing` if there is one, which must lie in the same folder and be qcow2.
fn create(path: &Path, size: u64, backing: Option<(&Path, Arc<dyn Disk>)>) -> Result<Arc<dyn Disk>> {
    File::create_new(path)?;
    let storage = Arc::new(HostFile::open(path, false, CacheMode::Writeback, true)?);
    let mut options = CreateOptions::new(size);
    let backing = match backing {
        Some((base, disk)) => {
            let name = base.file_name().context("the backing file has no name")?.to_string_lossy();
            options.backing = Some((name.into_owned(), "qcow2".into()));
            Some(disk)
        }
        None => None,
    };
    Ok(Arc::new(Qcow2Disk::create(storage, &options, &Qcow2Options::default(), backing)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_sources_of_the_release_are_taken() {
        let line = |text| source_line(text);
        assert_eq!(
            line("Debian bookworm http://mirror.example/debian/ bookworm main").as_deref(),
            Some("deb http://mirror.example/debian/ bookworm main")
        );
        assert_eq!(
            line("Debian bookworm-security http://mirror.example/s/ bookworm-security main").as_deref(),
            Some("deb http://mirror.example/s/ bookworm-security main")
        );
        assert_eq!(line("Debian trixie http://mirror.example/debian/ trixie main"), None);
        assert_eq!(line("Debian bookworm http://mirror.example/debian/ bookworm non-free"), None);
        assert_eq!(line("Other bookworm http://mirror.example/x/ bookworm main"), None);
        assert_eq!(line("nonsense"), None);
    }

    #[test]
    fn the_image_is_head_and_partition_and_holds_no_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let (partition, image) = (dir.path().join("p"), dir.path().join("i.qcow2"));
        let mut content = vec![0; 10 << 20];
        content[9 << 20] = 7;
        fs::write(&partition, &content).unwrap();
        write_image(&image, &[3; 1 << 20], &partition).unwrap();

        let disk = open(&image).unwrap();
        assert_eq!(disk.size(), 11 << 20);
        let mut byte = [0; 1];
        for (offset, value) in [(0, 3), ((1 << 20) - 1, 3), (1 << 20, 0), (10 << 20, 7)] {
            disk.read(offset, &mut byte).unwrap();
            assert_eq!(byte[0], value, "at {offset:#x}");
        }
        assert!(fs::metadata(&image).unwrap().len() < 2 << 20);
    }

    #[test]
    fn a_missing_tool_names_all_packages() {
        let error = require("no-such-tool").unwrap_err().to_string();
        assert!(error.contains("apt-get install mmdebstrap e2fsprogs tar"), "{error}");
        require("sh").unwrap();
    }
}
