//! Reading kernels and initrds: every length is checked against the file before it is believed, and data
//! goes from the file straight into guest memory.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::Error;
use crate::error::io_reason;

/// An opened regular file and what it is for.
#[derive(Debug)]
pub(crate) struct Source {
    file: File,
    role: &'static str,
    path: PathBuf,
    len: u64,
}

impl Source {
    /// Opens `path`, which must be a regular file: a device or pipe has no length to check against.
    pub fn open(role: &'static str, path: &Path) -> Result<Self, Error> {
        let fail = |reason| Error::Open { role, path: path.to_owned(), reason };
        // O_NONBLOCK: opening a pipe must not wait for its writer. It changes nothing for regular files.
        let file = File::options()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open(path)
            .map_err(|error| fail(io_reason(&error)))?;
        let metadata = file.metadata().map_err(|error| fail(io_reason(&error)))?;
        if !metadata.is_file() {
            return Err(fail("not a regular file".into()));
        }
        Ok(Self { file, role, path: path.to_owned(), len: metadata.len() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes at the time of opening.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fails unless the file holds `offset..offset + size`.
    pub fn check(&self, part: &'static str, offset: u64, size: u64) -> Result<(), Error> {
        let need = offset.saturating_add(size);
        if need > self.len {
            return Err(Error::Truncated {
                role: self.role,
                path: self.path.clone(),
                part,
                need,
                have: self.len,
            });
        }
        Ok(())
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&self, part: &'static str, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.check(part, offset, buffer.len() as u64)?;
        self.file.read_exact_at(buffer, offset).map_err(|error| self.read_error(io_reason(&error)))
    }

    /// Copies `offset..offset + size` to guest-physical `address`.
    pub fn load<M: GuestMemory>(
        &mut self,
        memory: &M,
        part: &'static str,
        offset: u64,
        size: u64,
        address: u64,
    ) -> Result<(), Error> {
        self.check(part, offset, size)?;
        let count = usize::try_from(size).map_err(|_| self.read_error("too large for this host".into()))?;
        self.file.seek(SeekFrom::Start(offset)).map_err(|error| self.read_error(io_reason(&error)))?;
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut self.file, count)
            .map_err(|error| self.read_error(error.to_string().to_lowercase()))
    }

    fn read_error(&self, reason: String) -> Error {
        Error::Read { role: self.role, path: self.path.clone(), reason }
    }
}

/// `O_NONBLOCK` of the x86-64 Linux ABI.
const O_NONBLOCK: i32 = 0o4000;
