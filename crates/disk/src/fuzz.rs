//! One entry for fuzzers.

use std::sync::Arc;

use crate::contract::Disk;
use crate::qcow2::{Qcow2Disk, Qcow2Options};
use crate::storage::{MemStorage, Storage};

/// Bytes of the disk that are read, from its beginning and its end.
const READ: u64 = 1 << 20;
/// What the file may grow to.
const LIMIT: u64 = 32 << 20;

/// Opens `image` from memory as qcow2, first for reading, with each of its snapshots, and then for
/// writing, and uses it as a guest would. Whatever the bytes are, it returns: nothing panics, and
/// time and memory are bounded by the length of the image.
pub fn fuzz_image(image: &[u8]) {
    let storage = || Arc::new(MemStorage::with_limit(image.to_vec(), LIMIT));
    let mut options = Qcow2Options { read_only: true, ..Default::default() };
    let Ok(disk) = Qcow2Disk::open(storage(), &options, None) else { return };
    read(&disk);
    for snapshot in disk.snapshots().iter().take(4) {
        options.snapshot = Some(snapshot.id.clone());
        if let Ok(disk) = Qcow2Disk::open(storage(), &options, None) {
            read(&disk);
        }
    }
    let storage: Arc<dyn Storage> = storage();
    let Ok(disk) = Qcow2Disk::open(storage, &Qcow2Options::default(), None) else { return };
    write(&disk);
    read(&disk);
    // Whatever it finds, it ends.
    let _ = disk.check();
}

fn read(disk: &dyn Disk) {
    let mut buf = vec![0; 8192];
    for start in [0, disk.size().saturating_sub(READ)] {
        let end = disk.size().min(start + READ);
        for at in (start..end).step_by(buf.len()) {
            let n = (end - at).min(buf.len() as u64) as usize;
            let _ = disk.read(at, &mut buf[..n]);
        }
    }
}

fn write(disk: &dyn Disk) {
    let size = disk.size();
    for at in [0, 700, size / 3, size / 2, size.saturating_sub(3000)] {
        let n = (size - at.min(size)).min(3000);
        let _ = disk.write(at, &vec![0xa5; n as usize]);
        let _ = disk.write_zeroes(at, n, at % 2 == 0);
        let _ = disk.discard(at, n);
    }
    let _ = disk.flush();
    if let Some(size) = size.checked_add(1 << 20) {
        let _ = disk.resize(size);
    }
    let _ = disk.flush();
}
