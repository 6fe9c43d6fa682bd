//! What the tests share: running qemu-img, and a storage that records what is done to it.
#![allow(dead_code)]

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use trapline_disk::storage::{MemStorage, Storage};
use trapline_disk::{Access, Disk, Result};

/// Whether qemu-img can be run; if not, says that the test is skipped.
pub fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("skipped: qemu-img is not on the path");
    }
    found
}

/// Runs a tool that must succeed; its output.
pub fn run(tool: &str, args: &[&str], folder: &Path) -> String {
    let out = Command::new(tool).args(args).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{tool} {args:?}: {text}");
    text
}

/// Runs qemu-img.
pub fn qemu_img(args: &[&str], folder: &Path) -> String {
    run("qemu-img", args, folder)
}

/// Everything on a disk.
pub fn content(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    for (i, chunk) in bytes.chunks_mut(100_000).enumerate() {
        disk.read(i as u64 * 100_000, chunk).unwrap();
    }
    bytes
}

/// Bytes that look alike nowhere.
pub fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    seed = seed.wrapping_mul(2).wrapping_add(1);
    let step = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    std::iter::repeat_with(step).take(len).collect()
}

/// One change to a file, or a barrier.
#[derive(Clone, Debug)]
pub enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    SetLen(u64),
    Flush,
}

impl Change {
    /// Makes the change to a copy of the file.
    pub fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => {
                let end = *offset as usize + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset as usize..end].copy_from_slice(bytes);
            }
            Self::Zero(offset, len) => {
                let end = ((offset + len) as usize).min(file.len());
                file[(*offset as usize).min(end)..end].fill(0);
            }
            Self::SetLen(len) => file.resize(*len as usize, 0),
            Self::Flush => {}
        }
    }
}

/// Memory that keeps a list of what was done to it.
pub struct Recorder {
    memory: MemStorage,
    pub changes: Mutex<Vec<Change>>,
}

impl Recorder {
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { memory: MemStorage::new(bytes), changes: Mutex::default() })
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.memory.snapshot()
    }

    fn note(&self, change: Change) {
        self.changes.lock().unwrap().push(change);
    }
}

impl Storage for Recorder {
    fn name(&self) -> String {
        "recorder".into()
    }
    fn len(&self) -> Result<u64> {
        self.memory.len()
    }
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.memory.read_at(offset, bufs)
    }
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.note(Change::Write(offset, bufs.iter().flat_map(|buf| buf.iter().copied()).collect()));
        self.memory.write_at(offset, bufs)
    }
    fn try_read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool> {
        self.memory.try_read_at(offset, bufs)
    }
    fn try_write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool> {
        self.write_at(offset, bufs).map(|()| true)
    }
    fn flush(&self) -> Result<()> {
        self.note(Change::Flush);
        Ok(())
    }
    fn punch_hole(&self, offset: u64, len: u64) -> Result<bool> {
        self.note(Change::Zero(offset, len));
        self.memory.punch_hole(offset, len)
    }
    fn zero_range(&self, offset: u64, len: u64) -> Result<bool> {
        self.note(Change::Zero(offset, len));
        self.memory.zero_range(offset, len)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.note(Change::SetLen(len));
        self.memory.set_len(len)
    }
    fn direct(&self, _access: Access, _offset: u64, _len: u64) -> Option<Arc<File>> {
        None
    }
    fn sectors(&self) -> (u32, u32) {
        (512, 512)
    }
}
