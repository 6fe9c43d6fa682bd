//! The host side of a device that sends bytes.

use std::io::{ErrorKind, Write};

/// How often an interrupted host write is tried again before its bytes are dropped.
const RETRIES: u32 = 16;

/// A writer whose errors never reach the guest: bytes that it does not take are counted and dropped.
pub(crate) struct Output {
    writer: Box<dyn Write + Send>,
    lost: u64,
}

impl Output {
    pub(crate) fn new(writer: Box<dyn Write + Send>) -> Self {
        Self { writer, lost: 0 }
    }

    /// Bytes dropped so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes and flushes, or drops.
    pub(crate) fn send(&mut self, mut bytes: &[u8]) {
        let mut retries = RETRIES;
        while !bytes.is_empty() {
            match self.writer.write(bytes) {
                Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted && retries > 0 => retries -= 1,
                outcome => return self.lose(bytes.len(), outcome.err()),
            }
        }
        if let Err(e) = self.writer.flush() {
            self.lose(0, Some(e));
        }
    }

    #[cold]
    fn lose(&mut self, bytes: usize, error: Option<std::io::Error>) {
        // Once is enough: a closed pipe would otherwise fill the log at the guest's pace.
        if self.lost == 0 && bytes > 0 {
            tracing::warn!(?error, "host output takes no more bytes: dropping");
        }
        self.lost = self.lost.saturating_add(bytes as u64);
    }
}
