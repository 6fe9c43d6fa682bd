//! The header and its extensions.

use crate::contract::{DiskError, Result};
use crate::storage::{Storage, read_exact};

pub const MAGIC: u32 = 0x5146_49fb;
const EXT_END: u32 = 0;
pub const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
pub const EXT_FEATURE_NAMES: u32 = 0x6803_f857;

pub const INCOMPAT_DIRTY: u64 = 1 << 0;
pub const INCOMPAT_CORRUPT: u64 = 1 << 1;
const INCOMPAT_EXTERNAL_DATA: u64 = 1 << 2;
pub const INCOMPAT_COMPRESSION: u64 = 1 << 3;
const INCOMPAT_EXTENDED_L2: u64 = 1 << 4;
const INCOMPAT_KNOWN: u64 = INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_COMPRESSION;
pub const COMPAT_LAZY_REFCOUNTS: u64 = 1 << 0;

/// Bytes of an L1 table at most: 4 million entries, as other implementations have it.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Bytes of a refcount table at most.
pub const MAX_REFTABLE_BYTES: u64 = 8 << 20;
pub const MAX_SNAPSHOTS: u32 = 65536;
const MAX_BACKING_NAME: u32 = 1023;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate streams.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// The header's fields, validated, and what its extensions say.
#[derive(Clone, Debug)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_size: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression: Compression,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Header {
    /// Whether the storage begins as a qcow2 image of any version does.
    pub fn is_qcow2(storage: &dyn Storage) -> Result<bool> {
        let mut magic = [0; 4];
        storage.read_at(0, &mut [std::io::IoSliceMut::new(&mut magic)])?;
        Ok(u32::from_be_bytes(magic) == MAGIC)
    }

    /// Reads and validates header and extensions.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let mut raw = [0; 112];
        storage.read_at(0, &mut [std::io::IoSliceMut::new(&mut raw)])?;
        if be32(&raw, 0) != MAGIC {
            return Err(DiskError::WrongFormat("qcow2"));
        }
        let version = be32(&raw, 4);
        if !(2..=3).contains(&version) {
            return Err(DiskError::Unsupported(format!("qcow2 version {version}")));
        }
        let v3 = version == 3;
        let cluster_bits = be32(&raw, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(DiskError::corrupt(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let header_length = if v3 { be32(&raw, 100) } else { 72 };
        if v3
            && (header_length < 104 || !header_length.is_multiple_of(8) || header_length >> cluster_bits != 0)
        {
            return Err(DiskError::corrupt(format!("a header of {header_length} bytes")));
        }
        let mut header = Self {
            version,
            cluster_bits,
            size: be64(&raw, 24),
            l1_size: be32(&raw, 36),
            l1_offset: be64(&raw, 40),
            reftable_offset: be64(&raw, 48),
            reftable_clusters: be32(&raw, 56),
            snapshots: be32(&raw, 60),
            snapshots_offset: be64(&raw, 64),
            incompatible: if v3 { be64(&raw, 72) } else { 0 },
            compatible: if v3 { be64(&raw, 80) } else { 0 },
            autoclear: if v3 { be64(&raw, 88) } else { 0 },
            refcount_order: if v3 { be32(&raw, 96) } else { 4 },
            compression: Compression::Zlib,
            backing: None,
            backing_format: None,
        };
        let mut first = vec![0; 1 << cluster_bits];
        storage.read_at(0, &mut [std::io::IoSliceMut::new(&mut first)])?;
        header.read_backing_name(storage, &raw)?;
        let names = header.read_extensions(&first[header_length as usize..])?;
        header.check_features(&names)?;
        if header.incompatible & INCOMPAT_COMPRESSION != 0 {
            header.compression = match raw[104] {
                _ if header_length < 105 => {
                    return Err(DiskError::corrupt("no compression type in the header"));
                }
                0 => Compression::Zlib,
                1 => Compression::Zstd,
                n => return Err(DiskError::Unsupported(format!("qcow2 compression type {n}"))),
            };
        }
        header.check(be32(&raw, 32), storage.len()?)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(1 << (2 * self.cluster_bits - 3))
    }

    fn read_backing_name(&mut self, storage: &dyn Storage, raw: &[u8]) -> Result<()> {
        let (offset, len) = (be64(raw, 8), be32(raw, 16));
        if offset == 0 {
            return Ok(());
        }
        let end = offset.checked_add(len.into());
        if len == 0 || len > MAX_BACKING_NAME || end.is_none_or(|end| end > self.cluster_size()) {
            return Err(DiskError::corrupt("the backing file's name does not lie in the first cluster"));
        }
        let mut name = vec![0; len as usize];
        read_exact(storage, offset, &mut name, "backing file name")?;
        let name = String::from_utf8(name).ok().filter(|name| !name.contains('\0'));
        self.backing = Some(name.ok_or_else(|| DiskError::corrupt("the backing file's name is not UTF-8"))?);
        Ok(())
    }

    /// Reads the extensions; gives the names of incompatible features by bit.
    fn read_extensions(&mut self, mut rest: &[u8]) -> Result<Vec<(u8, String)>> {
        let mut names = Vec::new();
        while rest.len() >= 8 {
            let (kind, len) = (be32(rest, 0), be32(rest, 4) as usize);
            if kind == EXT_END {
                break;
            }
            let data = rest.get(8..).and_then(|r| r.get(..len));
            let data =
                data.ok_or_else(|| DiskError::corrupt("a header extension leaves the first cluster"))?;
            match kind {
                EXT_BACKING_FORMAT => self.backing_format = Some(String::from_utf8_lossy(data).into_owned()),
                EXT_FEATURE_NAMES => {
                    for entry in data.chunks_exact(48).filter(|entry| entry[0] == 0) {
                        let name = entry[2..].split(|&b| b == 0).next().unwrap_or_default();
                        names.push((entry[1], String::from_utf8_lossy(name).into_owned()));
                    }
                }
                _ => {}
            }
            rest = rest.get(8 + len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(names)
    }

    fn check_features(&self, names: &[(u8, String)]) -> Result<()> {
        let unknown = self.incompatible & !INCOMPAT_KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let bit = unknown.trailing_zeros();
        let name = match 1 << bit {
            INCOMPAT_EXTERNAL_DATA => "an external data file",
            INCOMPAT_EXTENDED_L2 => "extended L2 entries (subclusters)",
            _ => {
                names.iter().find(|(b, _)| u32::from(*b) == bit).map_or("unnamed", |(_, name)| name.as_str())
            }
        };
        Err(DiskError::Unsupported(format!("qcow2 incompatible feature bit {bit}: {name:?}")))
    }

    fn check(&self, crypt: u32, file_len: u64) -> Result<()> {
        if crypt != 0 {
            return Err(DiskError::Unsupported("encrypted qcow2 images".into()));
        }
        if self.refcount_order > 6 {
            return Err(DiskError::corrupt(format!("refcounts of 2^{} bits", self.refcount_order)));
        }
        if !self.size.is_multiple_of(512) {
            return Err(DiskError::Unsupported(format!("a disk of {} bytes: not whole sectors", self.size)));
        }
        let l1_bytes = u64::from(self.l1_size) * 8;
        let needed = self.l1_entries(self.size);
        if l1_bytes > MAX_L1_BYTES || needed > u64::from(self.l1_size) {
            let size = self.size;
            return Err(DiskError::corrupt(format!("{} L1 entries for {size} bytes", self.l1_size)));
        }
        self.check_table("L1 table", self.l1_offset, l1_bytes, file_len)?;
        let reftable_bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable_bytes > MAX_REFTABLE_BYTES || reftable_bytes == 0 {
            return Err(DiskError::corrupt(format!("a refcount table of {reftable_bytes} bytes")));
        }
        self.check_table("refcount table", self.reftable_offset, reftable_bytes, file_len)?;
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(DiskError::corrupt(format!("{} snapshots", self.snapshots)));
        }
        if self.snapshots > 0 {
            self.check_table(
                "snapshot table",
                self.snapshots_offset,
                40 * u64::from(self.snapshots),
                file_len,
            )?;
        }
        Ok(())
    }

    /// Refuses a table that is not aligned to clusters or not inside the file.
    pub fn check_table(&self, what: &str, offset: u64, bytes: u64, file_len: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let end = offset.checked_add(bytes);
        if offset == 0 || offset & (self.cluster_size() - 1) != 0 || end.is_none_or(|end| end > file_len) {
            return Err(DiskError::corrupt(format!("{what} of {bytes} bytes at {offset:#x}")));
        }
        Ok(())
    }

    /// The header as it stands in the file, extensions and backing name included.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let v3 = self.version == 3;
        let header_length: u32 = if v3 { 112 } else { 72 };
        let mut extensions = Vec::new();
        let mut extension = |kind: u32, data: &[u8]| {
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend_from_slice(&(data.len() as u32).to_be_bytes());
            extensions.extend_from_slice(data);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            extension(EXT_BACKING_FORMAT, format.as_bytes());
        }
        extension(EXT_END, &[]);
        let name = self.backing.as_deref().unwrap_or_default();
        let name_offset = if name.is_empty() { 0 } else { header_length as usize + extensions.len() };
        for word in [MAGIC, self.version] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&(name_offset as u64).to_be_bytes());
        out.extend_from_slice(&(name.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.cluster_bits.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.reftable_offset.to_be_bytes());
        out.extend_from_slice(&self.reftable_clusters.to_be_bytes());
        out.extend_from_slice(&self.snapshots.to_be_bytes());
        out.extend_from_slice(&self.snapshots_offset.to_be_bytes());
        if v3 {
            for word in [self.incompatible, self.compatible, self.autoclear] {
                out.extend_from_slice(&word.to_be_bytes());
            }
            out.extend_from_slice(&self.refcount_order.to_be_bytes());
            out.extend_from_slice(&header_length.to_be_bytes());
            out.push(u8::from(self.compression == Compression::Zstd));
            out.resize(header_length as usize, 0);
        }
        out.extend_from_slice(&extensions);
        out.extend_from_slice(name.as_bytes());
        if out.len() as u64 > self.cluster_size() || name.len() > MAX_BACKING_NAME as usize {
            return Err(DiskError::InvalidOption("the backing file's name is too long".into()));
        }
        Ok(out)
    }
}
