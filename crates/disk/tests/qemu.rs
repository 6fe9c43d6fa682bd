//! Images that QEMU made are read as QEMU reads them, and QEMU accepts what was written to them.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{content, has_qemu_img, noise, qemu_img};
use trapline_disk::qcow2::{Compression, CreateOptions, Qcow2Info, Qcow2Options};
use trapline_disk::{
    BackingPolicy, CacheMode, Disk, DiskError, Format, HostFile, OpenOptions, Qcow2Disk, open,
};

fn writable(path: &Path) -> Arc<dyn Disk> {
    let mut options = OpenOptions::new(path);
    options.format = Some(Format::Qcow2);
    open(&options).unwrap()
}

fn readable(path: &Path) -> Arc<dyn Disk> {
    let mut options = OpenOptions::new(path);
    (options.format, options.read_only) = (Some(Format::Qcow2), true);
    open(&options).unwrap()
}

/// The image's content as QEMU sees it.
fn by_qemu(folder: &Path, image: &str) -> Vec<u8> {
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image, "by-qemu.raw"], folder);
    std::fs::read(folder.join("by-qemu.raw")).unwrap()
}

/// Writes, zeroes and discards here and there, and keeps the same in `expected`.
fn scribble(disk: &dyn Disk, expected: &mut [u8], seed: u64) {
    let size = expected.len() as u64;
    let dice = noise(64 * 8, seed);
    for (i, roll) in dice.chunks_exact(8).enumerate() {
        let roll = u64::from_le_bytes(roll.try_into().unwrap());
        let offset = (roll >> 16) % size;
        let len = (1 + (roll >> 40) % 150_000).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match roll % 8 {
            0..=3 => {
                let bytes = noise(len as usize, roll);
                disk.write(offset, &bytes).unwrap();
                expected[range].copy_from_slice(&bytes);
            }
            4 | 5 => {
                disk.write_zeroes(offset, len, roll & 8 != 0).unwrap();
                expected[range].fill(0);
            }
            6 => {
                disk.discard(offset, len).unwrap();
                let mut now = vec![0; len as usize];
                disk.read(offset, &mut now).unwrap();
                let old = &mut expected[range];
                assert!(old.iter().zip(&now).all(|(old, now)| now == old || *now == 0));
                old.copy_from_slice(&now);
            }
            _ => disk.flush().unwrap(),
        }
        if i % 16 == 15 {
            assert!(content(disk) == expected, "after operation {i}");
        }
    }
}

#[test]
fn every_geometry_is_read_and_written() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let geometries = [
        "cluster_size=512",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=1024,refcount_bits=2",
        "cluster_size=4096,refcount_bits=4",
        "cluster_size=65536,refcount_bits=8",
        "cluster_size=65536,compat=0.10",
        "cluster_size=2M,refcount_bits=32",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=65536,lazy_refcounts=on",
        "cluster_size=65536,preallocation=metadata",
        "cluster_size=4096,preallocation=falloc",
    ];
    for (seed, options) in (1..).zip(geometries) {
        let (path, mut expected) = (folder.path().join("disk.qcow2"), noise(3 << 20, seed));
        expected[1 << 20..2 << 20].fill(0);
        expected.resize(5 << 20, 0);
        std::fs::write(folder.path().join("source.raw"), &expected).unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "5M"], folder.path());
        let copy = ["convert", "-n", "-f", "raw", "-O", "qcow2", "source.raw", "disk.qcow2"];
        qemu_img(&copy, folder.path());
        let disk = writable(&path);
        assert!(content(&*disk) == expected, "{options}");
        scribble(&*disk, &mut expected, seed);
        drop(disk);
        qemu_img(&["check", "-q", "disk.qcow2"], folder.path());
        assert!(by_qemu(folder.path(), "disk.qcow2") == expected, "{options}");
    }
}

#[test]
fn compressed_clusters_are_read_and_overwritten() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for kind in ["zlib", "zstd"] {
        for cluster in ["512", "4096", "65536", "2M"] {
            if kind == "zstd" && cluster == "512" {
                continue;
            }
            let options = format!("compression_type={kind},cluster_size={cluster}");
            let mut expected: Vec<u8> =
                (0..4u32 << 20).map(|i| (i / 97 % 251) as u8 & (i >> 9) as u8).collect();
            std::fs::write(folder.path().join("source.raw"), &expected).unwrap();
            let args =
                ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, "source.raw", "disk.qcow2"];
            qemu_img(&args, folder.path());
            let disk = writable(&folder.path().join("disk.qcow2"));
            assert!(content(&*disk) == expected, "{options}");
            scribble(&*disk, &mut expected, 77);
            drop(disk);
            qemu_img(&["check", "-q", "disk.qcow2"], folder.path());
            assert!(by_qemu(folder.path(), "disk.qcow2") == expected, "{options}");
        }
    }
}

#[test]
fn backing_chains() {
    if !has_qemu_img() {
        return;
    }
    for compat in ["1.1", "0.10"] {
        let folder = tempfile::tempdir().unwrap();
        let (dir, base) = (folder.path(), noise(1_500_160, 5));
        std::fs::write(dir.join("base.raw"), &base).unwrap();
        let options = format!("compat={compat}");
        let create = |backing: &str, format: &str, image: &str, size: &str| {
            let args =
                ["create", "-q", "-f", "qcow2", "-o", &options, "-b", backing, "-F", format, image, size];
            qemu_img(&args, dir);
        };
        create("base.raw", "raw", "middle.qcow2", "2M");
        create("middle.qcow2", "qcow2", "top.qcow2", "3M");
        let mut expected = base.clone();
        expected.resize(2 << 20, 0);
        scribble(&*writable(&dir.join("middle.qcow2")), &mut expected, 8);
        qemu_img(&["check", "-q", "middle.qcow2"], dir);
        assert!(by_qemu(dir, "middle.qcow2") == expected);
        expected.resize(3 << 20, 0);
        let disk = writable(&dir.join("top.qcow2"));
        scribble(&*disk, &mut expected, 9);
        drop(disk);
        qemu_img(&["check", "-q", "top.qcow2"], dir);
        assert!(by_qemu(dir, "top.qcow2") == expected);
        assert!(content(&*readable(&dir.join("top.qcow2"))) == expected);
        assert_eq!(std::fs::read(dir.join("base.raw")).unwrap(), base);
    }
}

#[test]
fn what_a_disk_grows_by_is_zero_over_a_longer_backing_file() {
    if !has_qemu_img() {
        return;
    }
    for compat in ["1.1", "0.10"] {
        let folder = tempfile::tempdir().unwrap();
        let (dir, base) = (folder.path(), noise(4 << 20, 5));
        std::fs::write(dir.join("base.raw"), &base).unwrap();
        let options = format!("compat={compat},cluster_size=4096");
        let args = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            "-b",
            "base.raw",
            "-F",
            "raw",
            "top.qcow2",
            "1000960",
        ];
        qemu_img(&args, dir);
        let disk = writable(&dir.join("top.qcow2"));
        disk.resize(300 << 20).unwrap();
        assert!(disk.resize(1 << 20).is_err());
        let mut expected = base[..1_000_960].to_vec();
        expected.resize(300 << 20, 0);
        assert!(content(&*disk) == expected);
        drop(disk);
        qemu_img(&["check", "-q", "top.qcow2"], dir);
        assert!(by_qemu(dir, "top.qcow2") == expected);
    }
}

#[test]
fn snapshots_are_kept_and_readable() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let path = dir.join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", "disk.qcow2", "4M"], dir);
    let mut expected = vec![0; 4 << 20];
    scribble(&*writable(&path), &mut expected, 3);
    let first = expected.clone();
    qemu_img(&["snapshot", "-c", "first", "disk.qcow2"], dir);
    scribble(&*writable(&path), &mut expected, 4);
    let second = expected.clone();
    qemu_img(&["snapshot", "-c", "second", "disk.qcow2"], dir);
    scribble(&*writable(&path), &mut expected, 5);
    qemu_img(&["check", "-q", "disk.qcow2"], dir);
    assert!(by_qemu(dir, "disk.qcow2") == expected);
    let at = |snapshot: &str| {
        let mut options = OpenOptions::new(&path);
        (options.format, options.read_only) = (Some(Format::Qcow2), true);
        options.internal_snapshot = Some(snapshot.into());
        open(&options)
    };
    assert!(content(&*at("first").unwrap()) == first);
    assert!(content(&*at("2").unwrap()) == second);
    assert!(matches!(at("third"), Err(DiskError::InvalidOption(_))));
    let storage = Arc::new(HostFile::open(&path, true, CacheMode::Writeback, true).unwrap());
    let options = Qcow2Options { read_only: true, ..Default::default() };
    let disk = Qcow2Disk::open(storage, &options, None).unwrap();
    let names: Vec<_> = disk.snapshots().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    drop(disk);
    qemu_img(&["snapshot", "-a", "first", "disk.qcow2"], dir);
    qemu_img(&["check", "-q", "disk.qcow2"], dir);
    assert!(content(&*readable(&path)) == first);
}

#[test]
fn images_made_here() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for (cluster_size, refcount_bits, version, size) in [
        (512, 64, 3, 64 << 20),
        (512, 1, 3, 3 << 20),
        (4096, 16, 2, 1 << 30),
        (65536, 16, 3, 1 << 40),
        (2 << 20, 2, 3, 0),
    ] {
        let path = dir.join("disk.qcow2");
        std::fs::File::create(&path).unwrap();
        let storage = Arc::new(HostFile::open(&path, false, CacheMode::Unsafe, true).unwrap());
        let mut create = CreateOptions::new(size);
        (create.cluster_size, create.refcount_bits, create.version) = (cluster_size, refcount_bits, version);
        let disk = Qcow2Disk::create(storage.clone(), &create, &Qcow2Options::default(), None).unwrap();
        let disk: &dyn Disk = &disk;
        for at in [0, size / 3, size.saturating_sub(40_000)] {
            disk.write(at, &noise(40_000.min(size as usize), at)).unwrap();
        }
        disk.flush().unwrap();
        qemu_img(&["check", "-q", "-U", "disk.qcow2"], dir);
        let info = Qcow2Info::read(&*storage).unwrap();
        assert_eq!((info.size, info.cluster_size, info.refcount_bits), (size, cluster_size, refcount_bits));
        if size > 0 && size <= 1 << 30 {
            let copy = ["convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "copy.raw"];
            qemu_img(&copy, dir);
            let compare = ["compare", "-q", "-f", "raw", "-F", "qcow2", "copy.raw", "disk.qcow2"];
            qemu_img(&compare, dir);
            let copy = std::fs::read(dir.join("copy.raw")).unwrap();
            assert!(copy[size as usize / 3..][..40_000] == noise(40_000, size / 3) || size < 80_000);
        }
    }
}

#[test]
fn a_refcount_table_grows() {
    if !has_qemu_img() {
        return;
    }
    // 512-byte clusters with 64-bit refcounts: a block counts 64 clusters, a table of one cluster
    // 64 blocks, so that 2 MiB of data need a second one.
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let options = "cluster_size=512,refcount_bits=64";
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "32M"], dir);
    let disk = writable(&dir.join("disk.qcow2"));
    let mut expected = vec![0; 32 << 20];
    for at in (0..20 << 20).step_by(100_000) {
        let bytes = noise(100_000, at as u64);
        disk.write(at as u64, &bytes).unwrap();
        expected[at..at + 100_000].copy_from_slice(&bytes);
    }
    drop(disk);
    qemu_img(&["check", "-q", "disk.qcow2"], dir);
    assert!(by_qemu(dir, "disk.qcow2") == expected);
}

#[test]
fn every_cache_mode() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let dir = folder.path();
    for cache in ["none", "writeback", "writethrough", "directsync", "unsafe"] {
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", "disk.qcow2", "2M"], dir);
        let mut options = OpenOptions::new(dir.join("disk.qcow2"));
        options.format = Some(Format::Qcow2);
        options.cache = cache.parse().unwrap();
        let disk = open(&options).unwrap();
        assert_eq!(disk.info().volatile_cache, !matches!(cache, "writethrough" | "directsync"));
        let mut expected = vec![0; 2 << 20];
        scribble(&*disk, &mut expected, 6);
        if !disk.info().volatile_cache {
            // Nothing was flushed by hand: QEMU sees it all the same.
            qemu_img(&["check", "-q", "-U", "disk.qcow2"], dir);
        }
        drop(disk);
        qemu_img(&["check", "-q", "disk.qcow2"], dir);
        assert!(by_qemu(dir, "disk.qcow2") == expected, "{cache}");
    }
}

#[test]
fn snapshot_on_leaves_the_image_alone() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "4M"], dir);
    let mut expected = vec![0; 4 << 20];
    scribble(&*writable(&dir.join("disk.qcow2")), &mut expected, 1);
    let before = std::fs::read(dir.join("disk.qcow2")).unwrap();
    let mut options = OpenOptions::new(dir.join("disk.qcow2"));
    options.snapshot = true;
    let disk = open(&options).unwrap();
    scribble(&*disk, &mut expected, 2);
    drop(disk);
    assert_eq!(std::fs::read(dir.join("disk.qcow2")).unwrap(), before);
}

#[test]
fn unsupported_images_say_why() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for (options, word) in [("data_file=data.raw", "external data"), ("extended_l2=on", "subclusters")] {
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "1M"], dir);
        let mut options = OpenOptions::new(dir.join("disk.qcow2"));
        (options.format, options.backing) = (Some(Format::Qcow2), BackingPolicy::Any);
        let Err(error) = open(&options) else { panic!("{word}") };
        assert!(matches!(&error, DiskError::Unsupported(why) if why.contains(word)), "{error}");
    }
}

#[test]
fn zstd_images_made_here_are_qemus() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    std::fs::File::create(&path).unwrap();
    let storage = Arc::new(HostFile::open(&path, false, CacheMode::Writeback, true).unwrap());
    let mut create = CreateOptions::new(1 << 20);
    create.compression = Compression::Zstd;
    create.lazy_refcounts = true;
    drop(Qcow2Disk::create(storage, &create, &Qcow2Options::default(), None).unwrap());
    let info = qemu_img(&["info", "disk.qcow2"], folder.path());
    assert!(info.contains("compression type: zstd") && info.contains("lazy refcounts: true"), "{info}");
}
