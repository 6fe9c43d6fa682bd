//! Submission to io_uring: buffers are handed to the kernel by address and kept here meanwhile.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};
use vmm_sys_util::eventfd::EventFd;

use crate::contract::Extent;
use crate::engine::{Op, Request};

/// A transfer that the kernel works on. Neither the buffer nor the file goes away before its
/// completion was seen.
struct InFlight {
    request: Request,
    _extent: Extent,
}

/// A ring and the requests in it.
pub struct Ring {
    ring: IoUring,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
}

/// Requests in flight at most.
const DEPTH: u32 = 128;

impl Ring {
    /// A ring that writes `event` at each completion; fails where the kernel has none to give.
    pub fn new(event: &EventFd) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let slots = (0..DEPTH).map(|_| None).collect();
        Ok(Self { ring, slots, free: (0..DEPTH as usize).collect() })
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Starts a read or write of `extent`; gives the request back if there is no room for it or it
    /// is neither.
    pub fn submit(&mut self, mut request: Request, extent: Extent) -> Result<(), Request> {
        let fd = types::Fd(extent.file.as_raw_fd());
        let entry = match &mut request.op {
            Op::Read { buffer, .. } if u32::try_from(buffer.len()).is_ok() => {
                opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).offset(extent.offset).build()
            }
            Op::Write { buffer, .. } if u32::try_from(buffer.len()).is_ok() => {
                opcode::Write::new(fd, buffer.as_ptr(), buffer.len() as u32).offset(extent.offset).build()
            }
            _ => return Err(request),
        };
        let Some(slot) = self.free.pop() else { return Err(request) };
        self.slots[slot] = Some(InFlight { request, _extent: extent });
        let entry = entry.user_data(slot as u64);
        // SAFETY: the entry names the file and the buffer that `slots` now owns. A buffer's bytes
        // lie on the heap and stay where they are when it moves; nobody can reach it until the
        // completion is taken in `reap`, and dropping the ring waits for it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // A failed push leaves the kernel without the entry. A failed submit leaves it in the ring:
        // the next submit or wait takes it along.
        if pushed.is_err() {
            self.free.push(slot);
            return Err(self.slots[slot]
                .take()
                .map(|flight| flight.request)
                .unwrap_or_else(|| unreachable!()));
        }
        if let Err(e) = self.ring.submit() {
            tracing::debug!("io_uring submit: {e}");
        }
        Ok(())
    }

    /// Takes what completed: each request with the bytes moved or the error.
    pub fn reap(&mut self, mut done: impl FnMut(Request, io::Result<usize>)) {
        // What a failed submit left behind.
        if !self.ring.submission().is_empty()
            && let Err(e) = self.ring.submit()
        {
            tracing::debug!("io_uring submit: {e}");
        }
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            let Some(flight) = self.slots.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let moved = usize::try_from(entry.result());
            done(flight.request, moved.map_err(|_| io::Error::from_raw_os_error(-entry.result())));
        }
    }

    /// Waits until something has completed.
    pub fn wait(&self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.is_idle() {
            if let Err(e) = self.wait() {
                tracing::error!(
                    "io_uring: cannot wait for transfers in flight, their buffers are leaked: {e}"
                );
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap(|_, _| {});
        }
    }
}
