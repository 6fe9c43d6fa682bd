//! Opening a disk by its path: format, backing chain, overlay.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::contract::{Disk, DiskError, Result};
use crate::host::{CacheMode, HostFile};
use crate::qcow2::{self, CreateOptions, Qcow2Disk, Qcow2Info, Qcow2Options};
use crate::raw::RawDisk;

/// The most files in a backing chain.
pub const MAX_CHAIN: usize = 64;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file is the disk.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

impl std::str::FromStr for Format {
    type Err = DiskError;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "raw" | "file" | "host_device" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(DiskError::Unsupported(format!("image format {s:?}"))),
        }
    }
}

/// Which backing files an image may lead to. Whoever wrote the image chose the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingPolicy {
    /// Only files in the folder of the image that was opened, or below; links are followed first.
    #[default]
    SameFolder,
    /// Only files in this folder or below.
    Within(PathBuf),
    /// Any path that the process can open.
    Any,
    /// None.
    Refuse,
}

/// How to open a disk.
///
/// A format that is not named is probed, but only for reading: see
/// [`DiskError::FormatNeeded`]. An image whose format was only probed never leads on to a backing
/// file, because a guest may have written its header; the same holds for a backing file whose
/// format the image above does not record.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The image.
    pub path: PathBuf,
    /// Its format; may be `None` for reading only (and under `snapshot`).
    pub format: Option<Format>,
    /// Refuse every change.
    pub read_only: bool,
    /// How the host caches. Backing files are cached alike.
    pub cache: CacheMode,
    /// Send changes to a temporary overlay that is gone with the disk; the image is only read.
    pub snapshot: bool,
    /// Open the disk as it was at this internal snapshot of a qcow2 image, by identifier or name.
    /// Only with `read_only` or `snapshot`.
    pub internal_snapshot: Option<String>,
    /// Which backing files are allowed.
    pub backing: BackingPolicy,
    /// Lock the files against a second writer.
    pub lock: bool,
    /// Give the room of discarded qcow2 clusters back to the host.
    pub punch_holes: bool,
}

impl OpenOptions {
    /// A writable disk: format unknown yet, cache mode `writeback`, backing files in the same
    /// folder, locked.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            read_only: false,
            cache: CacheMode::default(),
            snapshot: false,
            internal_snapshot: None,
            backing: BackingPolicy::default(),
            lock: true,
            punch_holes: true,
        }
    }
}

/// Opens a disk.
pub fn open(options: &OpenOptions) -> Result<Arc<dyn Disk>> {
    let read_only = options.read_only || options.snapshot;
    if options.format.is_none() && !read_only {
        return Err(DiskError::FormatNeeded);
    }
    let root = match &options.backing {
        BackingPolicy::SameFolder => Some(folder(&real(&options.path)?)),
        BackingPolicy::Within(folder) => Some(real(folder)?),
        BackingPolicy::Any | BackingPolicy::Refuse => None,
    };
    let mut chain = Chain { options, root, seen: Vec::new() };
    let disk =
        chain.open(real(&options.path)?, options.format, read_only, options.internal_snapshot.as_deref())?;
    if options.snapshot && !options.read_only { overlay(disk) } else { Ok(disk) }
}

/// A throw-away overlay over any disk, which is only read: a qcow2 image in an unlinked file in the
/// temporary folder (`TMPDIR`).
pub fn overlay(base: Arc<dyn Disk>) -> Result<Arc<dyn Disk>> {
    let file = tempfile::tempfile().map_err(|e| DiskError::io("temporary overlay", e))?;
    let name = Path::new("temporary overlay");
    let storage = Arc::new(HostFile::from_file(file, name, false, CacheMode::Unsafe, false)?);
    let mut create = CreateOptions::new(base.size());
    create.backing = Some(("overlaid disk".into(), "raw".into()));
    let options = Qcow2Options { punch_holes: true, ..Qcow2Options::default() };
    Ok(Arc::new(Qcow2Disk::create(storage, &create, &options, Some(base))?))
}

/// The path without links.
fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(DiskError::Open)
}

fn folder(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// The way down a backing chain.
struct Chain<'a> {
    options: &'a OpenOptions,
    /// The folder that backing files must lie in.
    root: Option<PathBuf>,
    seen: Vec<PathBuf>,
}

impl Chain<'_> {
    fn open(
        &mut self,
        path: PathBuf,
        format: Option<Format>,
        read_only: bool,
        snapshot: Option<&str>,
    ) -> Result<Arc<dyn Disk>> {
        self.seen.push(path.clone());
        let OpenOptions { cache, lock, punch_holes, .. } = *self.options;
        let storage = Arc::new(HostFile::open(&path, read_only, cache, lock)?);
        let probed = match format {
            Some(format) => format,
            None if qcow2::is_qcow2(&*storage)? => Format::Qcow2,
            None => Format::Raw,
        };
        let write_through = cache.is_write_through() && !read_only;
        match probed {
            Format::Raw if snapshot.is_some() => {
                Err(DiskError::InvalidOption("a raw image has no internal snapshots".into()))
            }
            Format::Raw => Ok(Arc::new(RawDisk::new(storage, read_only, write_through)?)),
            Format::Qcow2 => {
                let info = Qcow2Info::read(&*storage)?;
                let backing = self.open_backing(&path, &info, format.is_some())?;
                let snapshot = snapshot.map(str::to_owned);
                let options = Qcow2Options { read_only, write_through, punch_holes, snapshot };
                Ok(Arc::new(Qcow2Disk::open(storage, &options, backing)?))
            }
        }
    }

    fn open_backing(&mut self, image: &Path, info: &Qcow2Info, named: bool) -> Result<Option<Arc<dyn Disk>>> {
        let Some(name) = &info.backing_file else { return Ok(None) };
        let refuse = |why: &str| Err(DiskError::BackingRefused(format!("backing file {name:?}: {why}")));
        if self.options.backing == BackingPolicy::Refuse {
            return refuse("backing files are not allowed");
        }
        if !named {
            return refuse("the image's format was only guessed; name it to follow its backing file");
        }
        if is_protocol(name) {
            return refuse("only paths are supported");
        }
        let format = info.backing_format.as_deref().map(str::parse).transpose()?;
        let path = folder(image).join(name);
        let path = real(&path).map_err(|e| in_backing(path, e))?;
        if self.root.as_ref().is_some_and(|root| !path.starts_with(root)) {
            return refuse("outside the folder that backing files may lie in");
        }
        if self.seen.contains(&path) || self.seen.len() >= MAX_CHAIN {
            return refuse(&format!("the backing chain is a loop or has more than {MAX_CHAIN} files"));
        }
        self.open(path.clone(), format, true, None).map(Some).map_err(|e| in_backing(path, e))
    }
}

/// Says which backing file is at fault; of a chain, the one that is.
fn in_backing(path: PathBuf, error: DiskError) -> DiskError {
    match error {
        DiskError::Backing { .. } => error,
        source => DiskError::Backing { path, source: Box::new(source) },
    }
}

/// Whether a name is of the form `protocol:...`, which is not a path.
fn is_protocol(name: &str) -> bool {
    name.split_once(':').is_some_and(|(protocol, _)| !protocol.contains('/'))
}
