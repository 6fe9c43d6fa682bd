//! New images.

use std::sync::Arc;

use super::disk::Qcow2Disk;
use super::header::{COMPAT_LAZY_REFCOUNTS, Compression, Header, INCOMPAT_COMPRESSION};
use super::info::Qcow2Options;
use crate::contract::{Disk, DiskError, Result};
use crate::storage::{Storage, write};

/// What a new image is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk in bytes, a multiple of 512.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a refcount: a power of two from 1 to 64; 16 in version 2.
    pub refcount_bits: u32,
    /// The backing file's name and format (`raw`, `qcow2`), to be written into the header.
    pub backing: Option<(String, String)>,
    /// Allow other programs to keep refcounts lazily; version 3.
    pub lazy_refcounts: bool,
    /// How other programs are to compress clusters; zstd needs version 3.
    pub compression: Compression,
}

impl CreateOptions {
    /// An image of `size` bytes: version 3, clusters of 64 KiB, refcounts of 16 bits.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            backing: None,
            lazy_refcounts: false,
            compression: Compression::Zlib,
        }
    }

    fn header(&self) -> Result<Header> {
        let refuse = |why: String| Err(DiskError::InvalidOption(why));
        if !(2..=3).contains(&self.version) {
            return refuse(format!("there is no qcow2 version {}", self.version));
        }
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return refuse(format!("clusters of {} bytes", self.cluster_size));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refuse(format!("refcounts of {} bits", self.refcount_bits));
        }
        if !self.size.is_multiple_of(512) {
            return refuse(format!("a disk of {} bytes: not whole sectors", self.size));
        }
        let zstd = self.compression == Compression::Zstd;
        if self.version == 2 && (self.refcount_bits != 16 || self.lazy_refcounts || zstd) {
            return refuse("refcount width, lazy refcounts and zstd need qcow2 version 3".into());
        }
        let (backing, backing_format) = self.backing.clone().unzip();
        Ok(Header {
            version: self.version,
            cluster_bits: self.cluster_size.trailing_zeros(),
            size: 0,
            l1_size: 0,
            l1_offset: 3 * self.cluster_size,
            reftable_offset: self.cluster_size,
            reftable_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: if zstd { INCOMPAT_COMPRESSION } else { 0 },
            compatible: if self.lazy_refcounts { COMPAT_LAZY_REFCOUNTS } else { 0 },
            autoclear: 0,
            refcount_order: self.refcount_bits.trailing_zeros(),
            compression: self.compression,
            backing,
            backing_format,
        })
    }
}

impl Qcow2Disk {
    /// Makes an image in `storage`, whose content is lost, and opens it over `backing` with
    /// `options` (which cannot be read-only). `backing` is needed where
    /// [`CreateOptions::backing`] names one.
    pub fn create(
        storage: Arc<dyn Storage>,
        create: &CreateOptions,
        options: &Qcow2Options,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Self> {
        if options.read_only {
            return Err(DiskError::InvalidOption("a new image cannot be read-only".into()));
        }
        let header = create.header()?;
        let raw = header.encode()?;
        storage.set_len(0)?;
        // An empty disk: header, refcount table, and one refcount block that counts these three.
        let cluster = create.cluster_size;
        let mut first = vec![0; 3 * cluster as usize];
        first[cluster as usize..][..8].copy_from_slice(&(2 * cluster).to_be_bytes());
        for i in 0..3 {
            let block = &mut first[2 * cluster as usize..];
            let (at, value) = super::refcount::encode(header.refcount_order, block, i, 1);
            block[at..at + value.len()].copy_from_slice(&value);
        }
        // The header comes last, so that a file that was cut off is no image.
        write(&*storage, cluster, &first[cluster as usize..])?;
        storage.flush()?;
        first[..raw.len()].copy_from_slice(&raw);
        write(&*storage, 0, &first[..cluster as usize])?;
        let disk = Self::open(storage, options, backing)?;
        disk.grow(create.size, false)?;
        Ok(disk)
    }
}
