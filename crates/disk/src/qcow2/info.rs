//! What callers say and learn about an image before it is open.

use super::header::{COMPAT_LAZY_REFCOUNTS, Compression, Header, INCOMPAT_CORRUPT, INCOMPAT_DIRTY};
use crate::contract::Result;
use crate::storage::Storage;

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct Qcow2Options {
    /// Refuse every change, and read no refcounts.
    pub read_only: bool,
    /// Flush after each write.
    pub write_through: bool,
    /// Give the room of discarded clusters back to the host file system.
    pub punch_holes: bool,
    /// Read the disk as it was at the internal snapshot with this identifier or name; needs
    /// `read_only`.
    pub snapshot: Option<String>,
}

/// What an image's header says, without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The backing file's name as the image has it.
    pub backing_file: Option<String>,
    /// The backing file's format as the image has it.
    pub backing_format: Option<String>,
    /// Whether the image was not closed since it was changed with lazy refcounts.
    pub dirty: bool,
    /// Whether the image was found to be damaged.
    pub corrupt: bool,
    /// Whether refcounts may be kept lazily.
    pub lazy_refcounts: bool,
}

impl Qcow2Info {
    /// Reads and validates the header of `storage`.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let header = Header::read(storage)?;
        Ok(Self {
            version: header.version,
            size: header.size,
            cluster_size: header.cluster_size(),
            refcount_bits: 1 << header.refcount_order,
            compression: header.compression,
            dirty: header.incompatible & INCOMPAT_DIRTY != 0,
            corrupt: header.incompatible & INCOMPAT_CORRUPT != 0,
            lazy_refcounts: header.compatible & COMPAT_LAZY_REFCOUNTS != 0,
            backing_file: header.backing,
            backing_format: header.backing_format,
        })
    }
}
