//! Files for output.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A file for output, which keeps what is in it until there will be some.
///
/// It is opened before the machine is made, so that what cannot be written is said at once. Whoever owns it
/// [empties](Self::empty) it when the machine is there: if there is none, nothing is lost.
#[derive(Debug)]
pub struct OutputFile(File);

impl OutputFile {
    /// Opens it, or makes it.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options().write(true).create(true).truncate(false).open(path).map(Self)
    }

    /// The same file, for somebody else to write to.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Drops what was in it. Pipes and devices have nothing to drop.
    pub fn empty(&self) -> io::Result<()> {
        if self.0.metadata()?.is_file() { self.0.set_len(0) } else { Ok(()) }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
