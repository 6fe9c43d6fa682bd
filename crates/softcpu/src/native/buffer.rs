//! Memory that host code is written to and runs from.
#![allow(unsafe_code)]

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use crate::op::Handler;

/// One mapping, writable and executable: what is written at an address is fetched from the same address, so that
/// the processor keeps both in step by itself (SDM vol. 3 §12.6). A host that forbids such mappings leaves its
/// guests to the interpreter.
pub(super) struct Buffer {
    region: MmapRegion,
    used: usize,
}

impl Buffer {
    /// `size` bytes; the host gives memory to those that are used. `None` if it refuses.
    pub fn new(size: usize) -> Option<Self> {
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .inspect_err(|e| tracing::warn!("no memory for host code, guests are interpreted: {e}"))
            .ok()?;
        Some(Self { region, used: 0 })
    }

    /// Where the next code will lie.
    pub fn next(&self) -> u64 {
        self.region.as_ptr() as u64 + self.used as u64
    }

    /// Bytes left.
    pub fn left(&self) -> usize {
        self.region.size() - self.used
    }

    /// Bytes used.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Forgets all but the first `used` bytes. None of the rest may be running.
    pub fn truncate(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    /// Appends `code`, which was made for [`Buffer::next`]. Says whether there was room.
    pub fn append(&mut self, code: &[u8]) -> bool {
        if code.len() > self.left() {
            return false;
        }
        // SAFETY: the destination is inside the mapping, which this struct owns and lends to nobody; nothing
        // runs there yet.
        unsafe {
            let to = self.region.as_ptr().add(self.used);
            to.copy_from_nonoverlapping(code.as_ptr(), code.len());
        }
        self.used += code.len();
        true
    }
}

/// The code at `address` as a handler.
///
/// # Safety
/// There is code of a whole block at `address`, made by [`super::emit`], that stays there for as long as the
/// handler is used.
pub(super) unsafe fn handler(address: u64) -> Handler {
    // SAFETY: by the contract it is code for this very signature; a function pointer is as wide as an address on
    // the hosts that there is code for.
    unsafe { std::mem::transmute::<usize, Handler>(address as usize) }
}
