//! Many threads on one qcow2 disk, through the blocking calls and through the engine.

mod common;

use std::sync::Arc;

use common::{content, noise};
use trapline_disk::qcow2::{CreateOptions, Qcow2Options};
use trapline_disk::{Buffer, CacheMode, Disk, Engine, EngineOptions, HostFile, Op, Qcow2Disk, Request};

const SIZE: u64 = 8 << 20;

fn disk(cache: CacheMode) -> Option<(tempfile::NamedTempFile, Arc<Qcow2Disk>)> {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let storage = match HostFile::open(file.path(), false, cache, true) {
        Ok(storage) => Arc::new(storage),
        Err(e) => {
            eprintln!("skipped: {e}");
            return None;
        }
    };
    let mut create = CreateOptions::new(SIZE);
    create.cluster_size = 8192;
    let options = Qcow2Options { punch_holes: true, ..Default::default() };
    let disk = Qcow2Disk::create(storage, &create, &options, None).unwrap();
    Some((file, Arc::new(disk)))
}

/// Each thread owns every fourth sector, so that they meet in each cluster.
#[test]
fn threads_that_share_clusters() {
    let (_file, disk) = disk(CacheMode::Writeback).unwrap();
    let mut expected = vec![0; SIZE as usize];
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let disk: &dyn Disk = &*disk;
            scope.spawn(move || {
                for i in 0..1000 {
                    let sector = (i * 37 % 4000) * 4 + thread;
                    disk.write(sector * 512, &noise(512, sector)).unwrap();
                    let mut back = [0; 512];
                    disk.read(sector * 512, &mut back).unwrap();
                    assert!(back == noise(512, sector)[..]);
                    if i % 100 == thread {
                        disk.flush().unwrap();
                    }
                }
            });
        }
        // Meanwhile clusters behind all that come and go.
        let disk: &dyn Disk = &*disk;
        scope.spawn(move || {
            for i in 0..200 {
                let at = SIZE - 32768;
                disk.write(at, &vec![i as u8; 32768]).unwrap();
                disk.discard(at, 32768).unwrap();
                disk.flush().unwrap();
            }
        });
    });
    for thread in 0..4 {
        for i in 0..1000 {
            let sector = (i * 37 % 4000) * 4 + thread;
            expected[sector as usize * 512..][..512].copy_from_slice(&noise(512, sector));
        }
    }
    assert!(content(&*disk) == expected);
    assert_eq!(disk.check().unwrap(), Default::default());
}

/// Freed clusters are not given away while a transfer may still use them: a held place is only used
/// again when it was let go.
#[test]
fn a_held_extent_is_not_given_away() {
    let (_file, disk) = disk(CacheMode::Writeback).unwrap();
    let dynamic: &dyn Disk = &*disk;
    dynamic.write(0, &[1; 8192]).unwrap();
    let extent = dynamic.extent(trapline_disk::Access::Write, 0, 8192).expect("just written");
    dynamic.discard(0, 8192).unwrap();
    dynamic.flush().unwrap();
    for at in 1..4u64 {
        dynamic.write(at * 8192, &[2; 8192]).unwrap();
        let other = dynamic.extent(trapline_disk::Access::Read, at * 8192, 8192).unwrap();
        assert_ne!(other.offset, extent.offset);
    }
    let place = extent.offset;
    drop(extent);
    dynamic.flush().unwrap();
    dynamic.write(5 * 8192, &[3; 8192]).unwrap();
    assert_eq!(dynamic.extent(trapline_disk::Access::Read, 5 * 8192, 8192).unwrap().offset, place);
}

#[test]
fn the_engine_on_qcow2() {
    for cache in [CacheMode::Writeback, CacheMode::None, CacheMode::Writethrough] {
        for io_uring in [true, false] {
            let Some((_file, disk)) = disk(cache) else { continue };
            let options = EngineOptions { io_uring, ..Default::default() };
            let engine = Engine::new(disk.clone(), options).unwrap();
            let mut expected = vec![0; SIZE as usize];
            let mut left = 0;
            for round in 0..3u64 {
                for i in 0..50u64 {
                    let (offset, seed) = (i * 12288 + 4096, i + 100 * round);
                    let buffer = Buffer::copy_from(&noise(8192, seed));
                    expected[offset as usize..][..8192].copy_from_slice(&buffer);
                    let op = Op::Write { offset, buffer, fua: i % 10 == 0 };
                    left += usize::from(engine.submit(Request { id: i, op }).is_none());
                }
                engine.wait_idle();
                for completion in engine.reap() {
                    completion.result.unwrap();
                    left -= 1;
                }
                assert_eq!(left, 0);
            }
            for op in [Op::Flush, Op::Discard { offset: 7 << 20, len: 8192 }] {
                assert!(engine.submit(Request { id: 1, op }).is_none());
            }
            let op = Op::WriteZeroes { offset: 0, len: 100_000, unmap: true };
            assert!(engine.submit(Request { id: 2, op }).is_none());
            expected[..100_000].fill(0);
            engine.wait_idle();
            assert!(engine.reap().iter().all(|completion| completion.result.is_ok()));
            drop(engine);
            assert!(content(&*disk) == expected, "{cache:?}");
            assert_eq!(disk.check().unwrap(), Default::default());
        }
    }
}
