//! Disks and CD-ROMs of the IDE controller, from their configuration.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use trapline_disk::{CacheMode, Disk, DiskError, Engine, EngineOptions, Format, OpenOptions};
use trapline_ide::{Drive, DriveIdentity, Io};
use vmm_sys_util::eventfd::EventFd;

use crate::trace::Tracks;
use crate::{Error, Result};

/// Places for drives: primary master and slave, secondary master and slave.
pub const DRIVES: usize = 4;
/// Where a CD-ROM goes unless it is told otherwise: secondary master.
const CDROM_INDEX: usize = 2;

/// A drive of the IDE controller.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    /// A disk, or a CD-ROM.
    pub kind: DriveKind,
    /// Which place: 0 to 3 for primary master and slave, secondary master and slave. `None`: a free one,
    /// for a CD-ROM the third if that is free.
    pub index: Option<usize>,
    /// Its serial number, at most 20 ASCII characters; `None`: one that follows from its place.
    pub serial: Option<String>,
}

/// What a drive is, and what is in it.
#[derive(Clone, Debug)]
pub enum DriveKind {
    /// A hard disk.
    Disk(OpenOptions),
    /// A CD-ROM with this disc, an ISO image, or without one.
    Cdrom(Option<PathBuf>),
}

impl DriveConfig {
    /// A hard disk at a free place.
    pub fn disk(options: OpenOptions) -> Self {
        Self { kind: DriveKind::Disk(options), index: None, serial: None }
    }

    /// A CD-ROM with a disc.
    pub fn cdrom(disc: impl Into<PathBuf>) -> Self {
        Self { kind: DriveKind::Cdrom(Some(disc.into())), index: None, serial: None }
    }
}

/// Why the text of an option describes no drive.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// An option without a value or without a name.
    #[error("{0:?} is not of the form NAME=VALUE")]
    Form(String),
    /// A name that means nothing.
    #[error(
        "no drive option is called {0:?}: file, if, media, format, cache, readonly, snapshot, index, serial"
    )]
    Unknown(String),
    /// A value that the option does not take.
    #[error("{name}={value:?}: expected {expected}")]
    Value {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// There is no file.
    #[error("a disk needs file=PATH")]
    NoFile,
}

/// As QEMU's `-drive`: `file=PATH,if=ide,media=disk|cdrom,format=raw|qcow2,cache=MODE,readonly=on|off,`
/// `snapshot=on|off,index=N,serial=TEXT`. A comma in a value is written twice.
impl FromStr for DriveConfig {
    type Err = DriveError;

    fn from_str(text: &str) -> Result<Self, DriveError> {
        let (mut file, mut cdrom, mut index, mut serial) = (None, false, None, None);
        let mut options = OpenOptions::new("");
        for option in split(text) {
            let (name, value) = option.split_once('=').ok_or_else(|| DriveError::Form(option.clone()))?;
            let bad = |name, expected| DriveError::Value { name, value: value.to_owned(), expected };
            match name {
                "file" => file = Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty()),
                "if" if value == "ide" => {}
                "if" => return Err(bad("if", "ide")),
                "media" => {
                    let of = |value| {
                        if value == "cdrom" { Some(true) } else { (value == "disk").then_some(false) }
                    };
                    cdrom = of(value).ok_or_else(|| bad("media", "disk or cdrom"))?;
                }
                "format" => {
                    let format: Result<Format, _> = value.parse();
                    options.format = Some(format.map_err(|_| bad("format", "raw or qcow2"))?);
                }
                "cache" => {
                    let expected = "none, writeback, writethrough, directsync or unsafe";
                    let cache: Result<CacheMode, DiskError> = value.parse();
                    options.cache = cache.map_err(|_| bad("cache", expected))?;
                }
                "readonly" => {
                    options.read_only = on_off(value).ok_or_else(|| bad("readonly", "on or off"))?
                }
                "snapshot" => options.snapshot = on_off(value).ok_or_else(|| bad("snapshot", "on or off"))?,
                "index" => {
                    let place = value.parse().ok().filter(|index| *index < DRIVES);
                    index = Some(place.ok_or_else(|| bad("index", "0 to 3"))?);
                }
                "serial" => {
                    let fits = value.len() <= 20 && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
                    let fits = fits.then(|| value.to_owned());
                    serial = Some(fits.ok_or_else(|| bad("serial", "at most 20 ascii characters"))?);
                }
                _ => return Err(DriveError::Unknown(name.to_owned())),
            }
        }
        let kind = match (cdrom, file) {
            (true, disc) => DriveKind::Cdrom(disc),
            (false, Some(path)) => DriveKind::Disk(OpenOptions { path, ..options }),
            (false, None) => return Err(DriveError::NoFile),
        };
        Ok(Self { kind, index, serial })
    }
}

fn on_off(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// The parts between single commas, with double commas made one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match parts.last_mut() {
            Some(part) if letter != ',' || letters.next_if_eq(&',').is_some() => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts
}

/// The opened drives of a machine, in their places.
#[derive(Default)]
pub(crate) struct Drives {
    pub(crate) places: [Option<OpenDrive>; DRIVES],
}

/// A drive whose disk is open.
pub(crate) struct OpenDrive {
    pub(crate) cdrom: bool,
    /// `None`: a CD-ROM without a disc.
    pub(crate) engine: Option<Arc<Engine>>,
    serial: Option<String>,
}

impl OpenDrive {
    fn open(config: DriveConfig, how: EngineOptions) -> Result<Self> {
        let DriveConfig { kind, index: _, serial } = config;
        let engine = |options: &OpenOptions| -> Result<_> {
            let failed = |source| Error::Disk { path: options.path.clone(), source };
            let disk = trapline_disk::open(options).map_err(failed)?;
            Ok(Some(Arc::new(Engine::new(disk, how).map_err(failed)?)))
        };
        let (cdrom, engine) = match kind {
            DriveKind::Disk(options) => (false, engine(&options)?),
            DriveKind::Cdrom(None) => (true, None),
            DriveKind::Cdrom(Some(path)) => {
                let format = Some(Format::Raw);
                (true, engine(&OpenOptions { format, read_only: true, ..OpenOptions::new(path) })?)
            }
        };
        Ok(Self { cdrom, engine, serial })
    }

    /// The device for the controller's place `index`.
    fn device(&self, index: usize) -> Drive {
        let serial = self.serial.clone().unwrap_or_else(|| format!("TL{:05}", index + 1));
        let io = self.engine.clone().map(Io::Engine);
        match (self.cdrom, io) {
            (false, Some(io)) => Drive::disk(io, DriveIdentity::new(&serial)),
            (_, io) => {
                let identity = DriveIdentity::new(&serial);
                Drive::cdrom(io, DriveIdentity { model: "TRAPLINE CD-ROM".into(), ..identity })
            }
        }
    }
}

impl Drives {
    /// Opens everything, and finds a place for each. `counted`: time counts instructions, so that how long a
    /// transfer takes must not show.
    pub(crate) fn open(configs: Vec<DriveConfig>, counted: bool) -> Result<Self> {
        let how = EngineOptions { blocking: counted, ..EngineOptions::default() };
        let mut drives = Self::default();
        // Those that say where they want to be go first.
        let (placed, free): (Vec<_>, Vec<_>) = configs.into_iter().partition(|config| config.index.is_some());
        for config in placed.into_iter().chain(free) {
            let is_free = |index: &usize| matches!(drives.places.get(*index), Some(None));
            let place = match (config.index, &config.kind) {
                (Some(index), _) => Some(index).filter(is_free).ok_or(Error::DriveIndex(index))?,
                (None, DriveKind::Cdrom(_)) if is_free(&CDROM_INDEX) => CDROM_INDEX,
                (None, _) => (0..DRIVES).find(is_free).ok_or(Error::TooManyDrives)?,
            };
            let opened = OpenDrive::open(config, how)?;
            if let Some(place) = drives.places.get_mut(place) {
                *place = Some(opened);
            }
        }
        Ok(drives)
    }

    /// What the controller is given.
    pub(crate) fn devices(&self) -> [[Option<Drive>; 2]; 2] {
        let [a, b, c, d] = &self.places;
        let device = |drive: &Option<OpenDrive>, index| drive.as_ref().map(|drive| drive.device(index));
        [[device(a, 0), device(b, 1)], [device(c, 2), device(d, 3)]]
    }

    fn engines(&self) -> impl Iterator<Item = &Arc<Engine>> {
        self.places.iter().flatten().filter_map(|drive| drive.engine.as_ref())
    }

    /// Each disk's transfers go to a track of its own.
    pub(crate) fn trace(&self, tracks: &Tracks) {
        for (index, drive) in self.places.iter().enumerate() {
            if let Some(engine) = drive.as_ref().and_then(|drive| drive.engine.as_ref()) {
                engine.observe(Arc::new(tracks.drive(index)));
            }
        }
    }

    /// The events that tell of completions.
    pub(crate) fn events(&self) -> Result<Vec<EventFd>> {
        let events = self.engines().map(|engine| engine.event().try_clone());
        events.collect::<std::io::Result<_>>().map_err(Error::host("eventfd"))
    }

    /// Makes everything that was written durable.
    pub(crate) fn flush(&self) -> Result<()> {
        self.engines().try_for_each(|engine| {
            engine.wait_idle();
            engine.disk().flush().map_err(Error::Flush)
        })
    }

    /// The disk at a place.
    pub(crate) fn disk(&self, index: usize) -> Option<&Arc<dyn Disk>> {
        let drive = self.places.get(index)?.as_ref().filter(|drive| !drive.cdrom)?;
        Some(drive.engine.as_ref()?.disk())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_read_from_its_option() {
        let text = "file=a,,b.img,if=ide,format=qcow2,cache=none,readonly=on,snapshot=on,index=3,serial=X 1";
        let drive: DriveConfig = text.parse().unwrap();
        let DriveKind::Disk(options) = drive.kind else { panic!("{drive:?}") };
        assert_eq!(options.path.to_str(), Some("a,b.img"));
        assert_eq!((options.format, options.cache), (Some(Format::Qcow2), CacheMode::None));
        assert!(options.read_only && options.snapshot);
        assert_eq!((drive.index, drive.serial.as_deref()), (Some(3), Some("X 1")));
        let drive: DriveConfig = "file=x.iso,media=cdrom".parse().unwrap();
        assert!(matches!(drive.kind, DriveKind::Cdrom(Some(path)) if path.to_str() == Some("x.iso")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("", "NAME=VALUE"),
            ("x.img", "NAME=VALUE"),
            ("format=raw", "file=PATH"),
            ("file=,format=raw", "file=PATH"),
            ("file=x,if=virtio", "expected ide"),
            ("file=x,format=vmdk", "expected raw or qcow2"),
            ("file=x,cache=fast", "expected none, writeback"),
            ("file=x,readonly=yes", "expected on or off"),
            ("file=x,index=4", "expected 0 to 3"),
            ("file=x,serial=123456789012345678901", "at most 20"),
            ("file=x,bus=1", "no drive option is called"),
        ] {
            let line = text.parse::<DriveConfig>().unwrap_err().to_string();
            assert!(line.contains(expected), "{text}: {line}");
        }
    }
}
