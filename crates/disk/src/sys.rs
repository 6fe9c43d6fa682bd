//! The system calls that the standard library does not have. With [`uring`](crate::uring) the only
//! module with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// The most buffers that the kernel takes in one call (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// One `preadv2`: how many bytes it moved.
fn preadv(file: &File, bufs: &mut [IoSliceMut<'_>], offset: u64, flags: i32) -> io::Result<usize> {
    let n = bufs.len().min(IOV_MAX) as i32;
    // SAFETY: `IoSliceMut` has the layout of `iovec` by its documentation; the first `n` of them
    // describe memory that this function may write for the time of the call.
    count(unsafe { libc::preadv2(file.as_raw_fd(), bufs.as_mut_ptr().cast(), n, offset as i64, flags) })
}

/// One `pwritev2`: how many bytes it moved.
fn pwritev(file: &File, bufs: &[IoSlice<'_>], offset: u64, flags: i32) -> io::Result<usize> {
    let n = bufs.len().min(IOV_MAX) as i32;
    // SAFETY: `IoSlice` has the layout of `iovec` by its documentation; the first `n` of them
    // describe memory that is valid for reads for the time of the call.
    count(unsafe { libc::pwritev2(file.as_raw_fd(), bufs.as_ptr().cast(), n, offset as i64, flags) })
}

/// Reads until the buffers are full or the file ends: how many bytes were read.
pub fn read_vectored(file: &File, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
    let total: usize = bufs.iter().map(|b| b.len()).sum();
    let first = match preadv(file, bufs, offset, 0) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
        result => result?,
    };
    if first == total {
        return Ok(total);
    }
    // Short: more buffers than one call takes, a signal, or the end of the file.
    let mut done = 0;
    for buf in bufs {
        let mut at = first.saturating_sub(done).min(buf.len());
        while at < buf.len() {
            match file.read_at(&mut buf[at..], offset + (done + at) as u64) {
                Ok(0) => return Ok(done + at),
                Ok(n) => at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        done += at;
    }
    Ok(done)
}

/// Writes everything.
pub fn write_vectored(file: &File, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
    let first = match pwritev(file, bufs, offset, 0) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
        result => result?,
    };
    let mut done = 0;
    for buf in bufs {
        let at = first.saturating_sub(done).min(buf.len());
        file.write_all_at(&buf[at..], offset + (done + at) as u64)?;
        done += buf.len();
    }
    Ok(())
}

/// How an attempt on the page cache went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// All bytes were moved.
    Done,
    /// It would have to wait; a part may have been moved.
    Waits,
    /// The file system cannot tell, and nothing was moved.
    Unknown,
}

fn cached(moved: io::Result<usize>, total: usize) -> io::Result<Cached> {
    match moved {
        Ok(n) if n == total => Ok(Cached::Done),
        Ok(_) => Ok(Cached::Waits),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(Cached::Waits),
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(Cached::Unknown),
            _ => Err(e),
        },
    }
}

/// Reads everything if it is in the page cache; what was read is not told.
pub fn read_cached(file: &File, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<Cached> {
    let total = bufs.iter().map(|b| b.len()).sum();
    cached(preadv(file, bufs, offset, libc::RWF_NOWAIT), total)
}

/// Writes everything to the page cache if that needs no waiting.
pub fn write_cached(file: &File, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<Cached> {
    let total = bufs.iter().map(|b| b.len()).sum();
    cached(pwritev(file, bufs, offset, libc::RWF_NOWAIT), total)
}

/// `fallocate` with `mode`: false where the file system or device has no such thing.
pub fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<bool> {
    loop {
        // SAFETY: no memory is handed over.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) } == 0 {
            return Ok(true);
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => return Ok(false),
            _ => return Err(e),
        }
    }
}
