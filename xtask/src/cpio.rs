//! Initramfs archives: the "newc" cpio format (Linux `Documentation/driver-api/early-userspace/
//! buffer-format.rst`), gzip-compressed. The same content always gives the same bytes.

use std::io::Write;

use flate2::{Compression, GzBuilder};

/// An archive that grows by appending.
pub struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    pub fn new() -> Self {
        Self { bytes: Vec::new(), inodes: 0 }
    }

    /// Adds a directory, mode 755.
    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds an executable file, mode 755.
    pub fn executable(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(name, FILE | 0o755, (0, 0), content)
    }

    /// Adds a character device, mode 600.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive and compresses it.
    pub fn finish(mut self) -> std::io::Result<Vec<u8>> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
        encoder.write_all(&self.bytes)?;
        encoder.finish()
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> &mut Self {
        self.inodes += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // Inode, mode, user, group, links, time, size, device of the file, device it names, name size, check.
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        self
    }

    /// Names and contents are padded to 4 bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn build() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("dev").device("dev/console", 5, 1).executable("init", b"#!/bin/sh\n");
        archive.finish().unwrap()
    }

    /// Name, mode, device and content of an entry.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Every entry, read by the format's own lengths.
    fn entries(mut archive: &[u8]) -> Vec<Entry> {
        let mut out = Vec::new();
        while !archive.is_empty() {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| {
                u32::from_str_radix(std::str::from_utf8(&archive[6 + n * 8..14 + n * 8]).unwrap(), 16)
                    .unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let data = (110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(archive[110..109 + name_size].to_vec()).unwrap();
            out.push((name, field(1), (field(9), field(10)), archive[data..data + size].to_vec()));
            archive = &archive[(data + size).next_multiple_of(4)..];
        }
        out
    }

    #[test]
    fn an_archive_reads_back() {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&build()[..]).read_to_end(&mut plain).unwrap();
        let entry =
            |name: &str, mode, device, content: &[u8]| (name.to_string(), mode, device, content.to_vec());
        assert_eq!(
            entries(&plain),
            [
                entry("dev", 0o040_755, (0, 0), b""),
                entry("dev/console", 0o020_600, (5, 1), b""),
                entry("init", 0o100_755, (0, 0), b"#!/bin/sh\n"),
                entry("TRAILER!!!", 0, (0, 0), b""),
            ]
        );
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(build(), build());
    }
}
