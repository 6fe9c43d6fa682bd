//! Disk back ends: the [`Disk`] contract, image formats, cache modes, I/O engines.
//!
//! A device model sees a disk as `Arc<dyn Disk>`, and runs its transfers on an [`Engine`]. What is
//! behind it is decided by [`open`]:
//!
//! - [`Storage`](storage::Storage): the file layer. [`HostFile`] is a regular file or block device
//!   under one of QEMU's five [cache modes](CacheMode); [`MemStorage`](storage::MemStorage) is
//!   memory.
//! - [`RawDisk`]: the file is the disk. [`Qcow2Disk`]: qcow2 versions 2 and 3, see [`qcow2`] for
//!   what is read, written and refused.
//! - [`Engine`]: page-cache hits and small writes to the page cache are served on the caller's thread,
//!   other transfers by io_uring, the rest by a few threads; completions are announced by an eventfd.
//! - [`OpenOptions`]: formats are named, or probed for reading only; which backing files an image
//!   may lead to is a policy; `snapshot` sends changes to a throw-away overlay.
//!
//! # Order of writes
//!
//! A crash of the host or of the process leaves a qcow2 image with leaked clusters at worst: data and
//! refcounts are durable before the L2 entries that name them, L2 tables before the L1 entries that
//! name them, and a cluster is freed, and may be used again, only after the last entry that named it
//! is durably gone and the last transfer that might use it has ended. Metadata is written when the
//! disk is flushed, when a cache is full, and when the disk is dropped.
//!
//! # Left out
//!
//! Other formats (VMDK, VDI, VHDX), protocols (NBD, iSCSI), encryption, image-to-image jobs
//! (commit, mirror, backup), throttling, taking internal snapshots, compressing, shrinking, SCSI
//! reservations, QEMU's image locks (this crate uses flock, which QEMU does not see).
//!
//! `unsafe` is in two modules: `sys` (`preadv2`, `pwritev2`, `fallocate`) and `uring` (handing
//! buffers to the kernel).
//!
//! ```
//! use std::sync::Arc;
//! use trapline_disk::qcow2::{CreateOptions, Qcow2Options};
//! use trapline_disk::{Buffer, CacheMode, Disk, Engine, EngineOptions, HostFile, Op, Qcow2Disk, Request};
//!
//! let file = tempfile::NamedTempFile::new()?;
//! let storage = Arc::new(HostFile::open(file.path(), false, CacheMode::Writeback, true)?);
//! let image = Qcow2Disk::create(storage, &CreateOptions::new(1 << 30), &Qcow2Options::default(), None)?;
//! let disk: Arc<dyn Disk> = Arc::new(image);
//!
//! // The blocking form.
//! disk.write(512, b"hello")?;
//! disk.flush()?;
//!
//! // The asynchronous form.
//! let engine = Engine::new(disk, EngineOptions::default())?;
//! let op = Op::Read { offset: 512, buffer: Buffer::new(512) };
//! let done = match engine.submit(Request { id: 1, op }) {
//!     Some(done) => done, // it was in the page cache
//!     None => {
//!         engine.wait_idle(); // a device model waits for `engine.event()` in its event loop
//!         engine.reap().remove(0)
//!     }
//! };
//! done.result?;
//! let Op::Read { buffer, .. } = done.request.op else { unreachable!() };
//! assert_eq!(&buffer[..5], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod buffer;
mod contract;
mod engine;
mod fuzz;
mod host;
mod open;
pub mod qcow2;
mod raw;
pub mod storage;
mod sys;
mod uring;

pub use buffer::{BUFFER_ALIGN, Buffer};
pub use contract::{Access, Disk, DiskError, DiskInfo, Extent, Result, SECTOR_SIZE};
pub use engine::{Completion, Engine, EngineOptions, Observer, Op, Request};
pub use fuzz::fuzz_image;
pub use host::{CacheMode, HostFile};
pub use open::{BackingPolicy, Format, MAX_CHAIN, OpenOptions, open, overlay};
pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;
