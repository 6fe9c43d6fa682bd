//! Buffers that suit O_DIRECT.

use std::ops::{Deref, DerefMut};

/// Alignment of a [`Buffer`]'s address in bytes: the largest that Linux file systems and block
/// devices with sectors up to 4 KiB ask of O_DIRECT.
pub const BUFFER_ALIGN: usize = 4096;

/// Owned bytes at an address aligned to [`BUFFER_ALIGN`], zeroed when made. Moving it moves no bytes.
pub struct Buffer {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeroes.
    pub fn new(len: usize) -> Self {
        let store = vec![0; len + BUFFER_ALIGN - 1];
        // The vector is never resized, so that its heap block, and with it the alignment, stays.
        let start = store.as_ptr().align_offset(BUFFER_ALIGN);
        let start = if start < BUFFER_ALIGN { start } else { 0 };
        Self { store, start, len }
    }

    /// A copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> Self {
        let mut buffer = Self::new(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Shortens or lengthens the buffer within what it was made with: a device can keep one for
    /// requests of differing length. Returns whether `len` fits; if not nothing changes.
    pub fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.store.len() - self.start;
        if fits {
            self.len = len;
        }
        fits
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_aligned_whatever_the_length() {
        for len in [0, 1, 512, 4095, 4096, 65537] {
            let buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % BUFFER_ALIGN, 0);
        }
    }
}
