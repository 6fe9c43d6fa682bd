//! Images made to do harm: opening and using them ends in an error or in bytes, never in a panic,
//! a hang or a large allocation, and never reaches a file that was not allowed.

mod common;

use std::sync::Arc;

use common::{content, noise};
use proptest::prelude::*;
use trapline_disk::qcow2::{CreateOptions, Qcow2Options};
use trapline_disk::storage::MemStorage;
use trapline_disk::{BackingPolicy, Disk, DiskError, Format, OpenOptions, Qcow2Disk, fuzz_image, open};

/// A small image with a bit of everything.
fn image() -> Vec<u8> {
    let storage = Arc::new(MemStorage::new(Vec::new()));
    let mut create = CreateOptions::new(1 << 20);
    create.cluster_size = 512;
    let disk = Qcow2Disk::create(storage.clone(), &create, &Qcow2Options::default(), None).unwrap();
    let dynamic: &dyn Disk = &disk;
    dynamic.write(3000, &noise(20_000, 1)).unwrap();
    dynamic.write_zeroes(8192, 2048, false).unwrap();
    dynamic.write(900_000, &noise(70_000, 2)).unwrap();
    drop(disk);
    storage.snapshot()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn changed_anywhere(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = image();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz_image(&bytes);
    }

    #[test]
    fn changed_in_the_header(at in 0usize..112, value: u32, cut in 0usize..200_000) {
        let mut bytes = image();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        bytes.truncate(bytes.len().max(cut + 1) - cut);
        fuzz_image(&bytes);
    }

    #[test]
    fn tables_changed(at in 64usize..2000, value in prop_oneof![
        any::<u64>(),
        (0u64..500).prop_map(|cluster| cluster << 9 | 1 << 63),
        (0u64..500).prop_map(|cluster| cluster << 9 | 1 << 62),
        (0u64..500).prop_map(|cluster| cluster << 9 | 1),
    ]) {
        let mut bytes = image();
        if let Some(entry) = bytes.get_mut(at * 8..at * 8 + 8) {
            entry.copy_from_slice(&value.to_be_bytes());
        }
        fuzz_image(&bytes);
    }
}

fn first_l2(bytes: &[u8]) -> usize {
    let at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    (at(at(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize
}

fn writable(bytes: Vec<u8>) -> (Arc<MemStorage>, Result<Qcow2Disk, DiskError>) {
    let storage = Arc::new(MemStorage::new(bytes));
    (storage.clone(), Qcow2Disk::open(storage, &Qcow2Options::default(), None))
}

#[test]
fn data_over_metadata_is_not_written_and_marks_the_image() {
    let bytes = image();
    let l2 = first_l2(&bytes);
    // The guest's first cluster would be the header, the L2 table itself, or the refcount table.
    for target in [0x200u64, l2 as u64, 0x400, 1 << 40] {
        let mut bytes = bytes.clone();
        bytes[l2..l2 + 8].copy_from_slice(&(target | 1 << 63).to_be_bytes());
        let (storage, disk) = writable(bytes.clone());
        let disk = disk.unwrap();
        let dynamic: &dyn Disk = &disk;
        assert!(matches!(dynamic.write(0, &[0xff; 512]), Err(DiskError::Corrupt(_))), "{target:#x}");
        assert!(matches!(dynamic.write(500_000, &[1]), Err(DiskError::Corrupt(_))));
        drop(disk);
        let after = storage.snapshot();
        assert_eq!(after[79] & 2, 2, "the corrupt bit is set");
        bytes[79] |= 2;
        assert!(after == bytes, "and nothing else");
        assert!(matches!(writable(after.clone()).1, Err(DiskError::Corrupt(_))));
        let options = Qcow2Options { read_only: true, ..Default::default() };
        assert!(Qcow2Disk::open(Arc::new(MemStorage::new(after)), &options, None).is_ok());
    }
}

#[test]
fn a_dirty_image_has_its_refcounts_rebuilt() {
    let mut bytes = image();
    let expected = content(&writable(bytes.clone()).1.unwrap());
    // Counts of data clusters set to nonsense, as a crash with lazy refcounts leaves them.
    for i in 20..60 {
        bytes[1024 + 2 * i + 1] = (i % 3) as u8;
    }
    let (_, broken) = writable(bytes.clone());
    assert!(broken.unwrap().check().unwrap().corruptions > 0);
    bytes[79] |= 1;
    let (storage, disk) = writable(bytes);
    let disk = disk.unwrap();
    assert_eq!(disk.check().unwrap(), Default::default());
    assert!(content(&disk) == expected);
    drop(disk);
    assert_eq!(storage.snapshot()[79] & 1, 0);
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_writers_only() {
    let mut bytes = image();
    bytes[95] = 0x80;
    let options = Qcow2Options { read_only: true, ..Default::default() };
    let storage = Arc::new(MemStorage::new(bytes.clone()));
    drop(Qcow2Disk::open(storage.clone(), &options, None).unwrap());
    assert_eq!(storage.snapshot()[95], 0x80);
    let (storage, disk) = writable(bytes);
    drop(disk.unwrap());
    assert_eq!(storage.snapshot()[95], 0);
}

/// Writes an image with a backing file's name into a folder.
fn with_backing(path: &std::path::Path, backing: &str) {
    std::fs::File::create(path).unwrap();
    let cache = trapline_disk::CacheMode::Writeback;
    let storage = Arc::new(trapline_disk::HostFile::open(path, false, cache, true).unwrap());
    let mut create = CreateOptions::new(1 << 20);
    create.backing = Some((backing.into(), "qcow2".into()));
    drop(Qcow2Disk::create(storage, &create, &Qcow2Options::default(), None).unwrap());
}

fn named(path: std::path::PathBuf) -> OpenOptions {
    let mut options = OpenOptions::new(path);
    options.format = Some(Format::Qcow2);
    options
}

#[test]
fn backing_files_only_where_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.path().join("base.qcow2"), image()).unwrap();
    with_backing(&inside.join("top.qcow2"), "../base.qcow2");
    let mut options = named(inside.join("top.qcow2"));
    assert!(matches!(open(&options), Err(DiskError::BackingRefused(_))));
    options.backing = BackingPolicy::Refuse;
    assert!(matches!(open(&options), Err(DiskError::BackingRefused(_))));
    options.backing = BackingPolicy::Within(folder.path().into());
    assert!(open(&options).is_ok());
    options.backing = BackingPolicy::Any;
    assert!(open(&options).is_ok());
    // A link out of the folder is followed before it is judged.
    std::os::unix::fs::symlink("../base.qcow2", inside.join("link.qcow2")).unwrap();
    with_backing(&inside.join("top.qcow2"), "link.qcow2");
    options.backing = BackingPolicy::SameFolder;
    assert!(matches!(open(&options), Err(DiskError::BackingRefused(_))));
    // What was only probed leads nowhere.
    (options.format, options.read_only, options.backing) = (None, true, BackingPolicy::Any);
    assert!(matches!(open(&options), Err(DiskError::BackingRefused(_))));
    with_backing(&inside.join("top.qcow2"), "nbd:localhost:10809");
    let mut options = named(inside.join("top.qcow2"));
    options.backing = BackingPolicy::Any;
    assert!(matches!(open(&options), Err(DiskError::BackingRefused(_))));
}

#[test]
fn a_chain_that_bites_its_tail() {
    let folder = tempfile::tempdir().unwrap();
    with_backing(&folder.path().join("a.qcow2"), "b.qcow2");
    with_backing(&folder.path().join("b.qcow2"), "a.qcow2");
    let mut options = named(folder.path().join("a.qcow2"));
    options.read_only = true;
    let error = open(&options).err().expect("a loop");
    assert!(
        matches!(&error, DiskError::Backing { source, .. } if matches!(**source, DiskError::BackingRefused(_)))
    );
    assert!(error.to_string().contains("loop"), "{error}");
}

/// Whoever opens a disk knows its name, and says it; of a backing file only the disk knows.
#[test]
fn errors_name_the_file_at_fault_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("text"), "#!/bin/sh\n").unwrap();
    with_backing(&file("orphan"), "nobody");
    with_backing(&file("top"), "orphan");
    with_backing(&file("wrong"), "text");
    with_backing(&file("base"), "wrong");
    with_backing(&file("far"), "/dev/zero");
    let base = folder.path().canonicalize().unwrap();
    let of = |name: &str, why: &str| format!("backing file {}: {why}", base.join(name).display());
    let gone = "No such file or directory (os error 2)";
    let outside = "backing file \"/dev/zero\": outside the folder that backing files may lie in";
    for (name, expected) in [
        ("nobody", gone.to_owned()),
        ("", "not supported: neither a regular file nor a block device".into()),
        ("text", "not a qcow2 image".into()),
        ("orphan", of("nobody", gone)),
        ("top", of("nobody", gone)),
        ("wrong", of("text", "not a qcow2 image")),
        ("base", of("text", "not a qcow2 image")),
        ("far", outside.into()),
    ] {
        assert_eq!(open(&named(file(name))).err().expect(name).to_string(), expected, "{name}");
    }
    std::fs::write(file("good"), image()).unwrap();
    let _first = open(&named(file("good"))).unwrap();
    assert_eq!(open(&named(file("good"))).err().unwrap().to_string(), "in use by another disk");
    let unnamed = open(&OpenOptions::new(file("good"))).err().unwrap().to_string();
    assert_eq!(unnamed, "the format of a writable disk must be named (raw or qcow2)");
}

#[test]
fn a_raw_disk_with_an_image_header_stays_raw() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut options = OpenOptions::new(&path);
    assert!(matches!(open(&options), Err(DiskError::FormatNeeded)));
    options.format = Some(Format::Raw);
    let disk = open(&options).unwrap();
    disk.write(0, &image()[..4096]).unwrap();
    drop(disk);
    let disk = open(&options).unwrap();
    assert_eq!(disk.size(), 1 << 20);
    assert!(content(&*disk)[..4096] == image()[..4096]);
    drop(disk);
    options.format = None;
    assert!(matches!(open(&options), Err(DiskError::FormatNeeded)));
}
