//! Disk back ends: the [`Disk`] contract, image formats, cache modes, I/O engines.
//!
//! ```
//! use trapline_disk::{Disk, RawDisk};
//!
//! let disk: &dyn Disk = &RawDisk::in_memory(1 << 20)?;
//! disk.write(512, b"hello")?;
//! let mut sector = [0; 512];
//! disk.read(512, &mut sector)?;
//! assert_eq!(&sector[..5], b"hello");
//! # Ok::<(), trapline_disk::DiskError>(())
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
pub use engine::{Completion, Engine, EngineOptions, Op, Request};
pub use fuzz::fuzz_image;
pub use host::{CacheMode, HostFile};
pub use open::{BackingPolicy, Format, MAX_CHAIN, OpenOptions, open, overlay};
pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;
