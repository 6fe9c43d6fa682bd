//! qcow2 images, versions 2 and 3, after QEMU's `docs/interop/qcow2.txt`.
//!
//! Read and written: clusters of 512 bytes to 2 MiB, refcounts of 1 to 64 bits, backing files,
//! zero clusters, images with internal snapshots (what they share is copied before it is changed).
//! Read: clusters compressed with zlib and zstd, and the disk as it was at a snapshot. Refused with
//! [`Unsupported`](crate::DiskError::Unsupported): external data files, extended L2 entries,
//! encryption, unknown incompatible features. Not done: compressing, taking or deleting snapshots,
//! shrinking; persistent bitmaps are invalidated by clearing their autoclear bit, as the
//! specification has it. With lazy refcounts allowed, refcounts are kept strictly all the same.
//!
//! The host may not trust an image: tables must lie inside the file, and their sizes have limits
//! (L1 32 MiB, refcount table 8 MiB, 65,536 snapshots). A write that would hit metadata, and a
//! reference to a cluster that counts as free, mark the image as corrupt, and end all writing.

mod cache;
mod check;
mod compressed;
mod create;
mod disk;
mod header;
mod info;
mod map;
mod refcount;
mod snapshot;
mod state;
mod write;

pub use check::CheckReport;
pub use create::CreateOptions;
pub use disk::Qcow2Disk;
pub use header::Compression;
pub use info::{Qcow2Info, Qcow2Options};
pub use snapshot::Snapshot;

/// Whether the storage begins as a qcow2 image does.
pub fn is_qcow2(storage: &dyn crate::storage::Storage) -> crate::Result<bool> {
    header::Header::is_qcow2(storage)
}
