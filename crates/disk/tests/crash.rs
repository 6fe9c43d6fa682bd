//! Crashes: what was done to the file is cut off at every point, with and without the changes since
//! the last barrier reordered, and the image must have lost nothing but clusters.

mod common;

use std::sync::Arc;

use common::{Change, Recorder, content, has_qemu_img, noise, qemu_img};
use proptest::prelude::*;
use trapline_disk::qcow2::{CreateOptions, Qcow2Options};
use trapline_disk::storage::MemStorage;
use trapline_disk::{Disk, Qcow2Disk, RawDisk};

const SECTOR: usize = 512;
const SECTORS: usize = 512;
const SIZE: usize = SECTOR * SECTORS;

/// What a guest does, in sectors.
#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, u64),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Flush,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = || (0..SECTORS, 1..80usize).prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    let op = prop_oneof![
        6 => (range(), any::<u64>()).prop_map(|((at, len), seed)| Op::Write(at, len, seed)),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Op::Zero(at, len, unmap)),
        2 => range().prop_map(|(at, len)| Op::Discard(at, len)),
        2 => Just(Op::Flush),
    ];
    prop::collection::vec(op, 1..24)
}

fn apply(disk: &dyn Disk, op: &Op) {
    match *op {
        Op::Write(at, len, seed) => disk.write((at * SECTOR) as u64, &noise(len * SECTOR, seed)).unwrap(),
        Op::Zero(at, len, unmap) => {
            disk.write_zeroes((at * SECTOR) as u64, (len * SECTOR) as u64, unmap).unwrap();
        }
        Op::Discard(at, len) => disk.discard((at * SECTOR) as u64, (len * SECTOR) as u64).unwrap(),
        Op::Flush => disk.flush().unwrap(),
    }
}

/// An image to begin with.
#[derive(Clone)]
struct Start {
    file: Vec<u8>,
    backing: Option<Vec<u8>>,
    /// Whether freed clusters are zeroed; if not, what they held must not show through.
    punch_holes: bool,
}

impl Start {
    fn backing(&self) -> Option<Arc<dyn Disk>> {
        let storage = Arc::new(MemStorage::new(self.backing.clone()?));
        Some(Arc::new(RawDisk::new(storage, true, false).unwrap()))
    }

    fn open(&self, file: Vec<u8>) -> (Arc<Recorder>, Qcow2Disk) {
        let recorder = Recorder::new(file);
        let options = Qcow2Options { punch_holes: self.punch_holes, ..Default::default() };
        let disk = Qcow2Disk::open(recorder.clone(), &options, self.backing()).unwrap();
        (recorder, disk)
    }

    fn made_here(version: u32, cluster_size: u64, refcount_bits: u32, backed: bool) -> Self {
        let recorder = Recorder::new(Vec::new());
        let mut create = CreateOptions::new(SIZE as u64);
        (create.version, create.cluster_size, create.refcount_bits) = (version, cluster_size, refcount_bits);
        create.backing = backed.then(|| ("base".into(), "raw".into()));
        let backing = backed.then(|| noise(SIZE - 70_000, 9));
        let start = Self { file: Vec::new(), backing, punch_holes: backed };
        let options = Qcow2Options::default();
        drop(Qcow2Disk::create(recorder.clone(), &create, &options, start.backing()).unwrap());
        Self { file: recorder.bytes(), ..start }
    }
}

/// What is known at a point of the list of changes.
struct Point {
    /// Changes recorded when the operation had returned.
    at: usize,
    content: Vec<u8>,
    durable: bool,
}

/// Asserts that a file left by a crash is consistent, and that each sector holds what was durable
/// then or what was written since.
fn survives(start: &Start, file: Vec<u8>, points: &[Point], at: usize) -> Result<(), TestCaseError> {
    let (_, disk) = start.open(file);
    let report = disk.check().unwrap();
    prop_assert_eq!(report.corruptions, 0, "after {} changes: {:?}", at, report.messages);
    let base = points.iter().rposition(|p| p.durable && p.at <= at).unwrap();
    // The operation under way when it was cut off counts as well.
    let last = points.iter().position(|p| p.at > at).unwrap_or(points.len() - 1);
    let now = content(&disk);
    for (i, sector) in now.chunks(SECTOR).enumerate() {
        let known = points[base..=last].iter().any(|p| p.content[i * SECTOR..][..SECTOR] == *sector);
        prop_assert!(known, "after {} changes sector {} holds what nobody wrote since", at, i);
    }
    Ok(())
}

fn crash(start: &Start, ops: &[Op], dice: u64) -> Result<(), TestCaseError> {
    let (recorder, disk) = start.open(start.file.clone());
    let mut points = vec![Point { at: 0, content: content(&disk), durable: true }];
    for op in ops {
        apply(&disk, op);
        let (at, durable) = (recorder.changes.lock().unwrap().len(), matches!(op, Op::Flush));
        points.push(Point { at, content: content(&disk), durable });
    }
    drop(disk);
    let changes = recorder.changes.lock().unwrap().clone();
    points.push(Point { at: changes.len(), content: points.last().unwrap().content.clone(), durable: true });
    let mut file = start.file.clone();
    let (mut barrier, mut barrier_file) = (0, file.clone());
    let mut dice = noise(changes.len() * (changes.len() + 1), dice).into_iter();
    for at in 0..=changes.len() {
        survives(start, file.clone(), &points, at)?;
        // A crash that lost some changes since the last barrier, whichever.
        let mut torn = barrier_file.clone();
        for change in &changes[barrier..at] {
            if dice.next().unwrap() & 1 == 0 {
                change.apply(&mut torn);
            }
        }
        survives(start, torn, &points, at)?;
        if let Some(change) = changes.get(at) {
            change.apply(&mut file);
            if matches!(change, Change::Flush) {
                (barrier, barrier_file) = (at + 1, file.clone());
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn version_3_small_clusters(ops in ops(), dice: u64) {
        crash(&Start::made_here(3, 512, 64, false), &ops, dice)?;
    }

    #[test]
    fn version_3_with_backing(ops in ops(), dice: u64) {
        crash(&Start::made_here(3, 4096, 1, true), &ops, dice)?;
    }

    #[test]
    fn version_2_with_backing(ops in ops(), dice: u64) {
        crash(&Start::made_here(2, 512, 16, true), &ops, dice)?;
    }

    #[test]
    fn with_a_snapshot_and_compressed_clusters(ops in ops(), before in ops(), dice: u64) {
        if !has_qemu_img() {
            return Ok(());
        }
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let source: Vec<u8> = (0..SIZE as u32).map(|i| (i / 700) as u8).collect();
        std::fs::write(dir.join("source.raw"), source).unwrap();
        let options = "cluster_size=2048,refcount_bits=8";
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "source.raw", "disk.qcow2"];
        qemu_img(&convert, dir);
        let read = || std::fs::read(dir.join("disk.qcow2")).unwrap();
        let start = Start { file: read(), backing: None, punch_holes: true };
        let (recorder, disk) = start.open(start.file.clone());
        before.iter().for_each(|op| apply(&disk, op));
        drop(disk);
        std::fs::write(dir.join("disk.qcow2"), recorder.bytes()).unwrap();
        qemu_img(&["snapshot", "-c", "one", "disk.qcow2"], dir);
        crash(&Start { file: read(), backing: None, punch_holes: true }, &ops, dice)?;
    }

    #[test]
    fn qemu_agrees_after_a_crash(ops in ops(), cut: prop::sample::Index) {
        if !has_qemu_img() {
            return Ok(());
        }
        let start = Start::made_here(3, 1024, 32, false);
        let (recorder, disk) = start.open(start.file.clone());
        ops.iter().for_each(|op| apply(&disk, op));
        drop(disk);
        let changes = recorder.changes.lock().unwrap().clone();
        let mut file = start.file.clone();
        changes[..cut.index(changes.len() + 1)].iter().for_each(|change| change.apply(&mut file));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk.qcow2"), file).unwrap();
        let mut check = std::process::Command::new("qemu-img");
        check.args(["check", "-q", "disk.qcow2"]).current_dir(folder.path());
        let status = check.output().unwrap().status;
        // 0: clean; 3: leaks only.
        prop_assert!(matches!(status.code(), Some(0 | 3)), "{:?}", status);
    }
}

#[test]
fn growing_is_safe_at_every_point() {
    let start = Start::made_here(3, 512, 16, true);
    let (recorder, disk) = start.open(start.file.clone());
    apply(&disk, &Op::Write(100, 300, 1));
    disk.flush().unwrap();
    let before = content(&disk);
    let flushed = recorder.changes.lock().unwrap().len();
    disk.resize(40 << 20).unwrap();
    drop(disk);
    let changes = recorder.changes.lock().unwrap().clone();
    let mut file = start.file.clone();
    for (i, change) in changes.iter().enumerate() {
        change.apply(&mut file);
        if i >= flushed {
            let (_, disk) = start.open(file.clone());
            assert_eq!(disk.check().unwrap().corruptions, 0);
            let now = content(&disk);
            assert!(now.starts_with(&before) && now[SIZE..].iter().all(|&b| b == 0), "after change {i}");
        }
    }
    let (_, disk) = start.open(file);
    assert_eq!((disk.size(), disk.check().unwrap()), (40 << 20, Default::default()));
}

#[test]
fn what_a_reused_cluster_held_does_not_show() {
    let start = Start::made_here(3, 4096, 16, false);
    let (recorder, disk) = start.open(start.file.clone());
    apply(&disk, &Op::Write(0, SECTORS, 1));
    disk.flush().unwrap();
    let full = recorder.bytes().len();
    apply(&disk, &Op::Discard(0, SECTORS));
    disk.flush().unwrap();
    let mut expected = vec![0; SIZE];
    for at in (3..SECTORS).step_by(8) {
        apply(&disk, &Op::Write(at, 1, 2));
        expected[at * SECTOR..][..SECTOR].copy_from_slice(&noise(SECTOR, 2));
    }
    assert_eq!(recorder.bytes().len(), full, "the same clusters were used again");
    assert!(content(&disk) == expected);
}
