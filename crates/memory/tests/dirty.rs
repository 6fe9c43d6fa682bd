//! Dirty tracking against a plain set of pages, and its three sources.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use trapline_memory::ept::{self, EptAccess, EptBuilder, EptMode};
use trapline_memory::{DirtyTracker, GuestMemory, GuestRam, PageSize, RamConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const PAGE: u64 = 4096;

/// Two ranges; the second does not fill its last word.
const RANGES: [Range<u64>; 2] = [0..200 * PAGE, 0x1000_0000..0x1000_0000 + 67 * PAGE];

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..201 * PAGE, 0x1000_0000 - PAGE..0x1000_0000 + 68 * PAGE, any::<u64>()]
}

fn pages(range: Range<u64>) -> impl Iterator<Item = u64> {
    RANGES.into_iter().flat_map(move |tracked| {
        let start = range.start.max(tracked.start) / PAGE;
        let end = range.end.min(tracked.end).div_ceil(PAGE);
        (start..end).map(|page| page * PAGE)
    })
}

proptest! {
    #[test]
    fn agrees_with_a_set(
        ops in proptest::collection::vec((any::<bool>(), address(), 0..80 * PAGE), 1..60),
    ) {
        let tracker = DirtyTracker::new(RANGES);
        tracker.set_enabled(true);
        let mut set = BTreeSet::new();
        for (mark, gpa, len) in ops {
            let range = gpa..gpa.saturating_add(len);
            if mark {
                tracker.mark(gpa, len);
                set.extend(pages(range));
            } else {
                let expected: Vec<u64> = pages(range.clone()).filter(|page| set.remove(page)).collect();
                prop_assert_eq!(tracker.take(range).collect::<Vec<_>>(), expected);
            }
            prop_assert_eq!(tracker.is_dirty(gpa), set.contains(&(gpa & !(PAGE - 1))));
        }
        let rest: Vec<u64> = tracker.take(0..u64::MAX).collect();
        prop_assert_eq!(rest, set.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn nothing_is_recorded_until_enabled() {
    let tracker = DirtyTracker::new(RANGES);
    tracker.mark(0, PAGE);
    assert_eq!(tracker.take(0..u64::MAX).count(), 0);
}

#[test]
fn a_log_of_kvm_is_merged() {
    let tracker = DirtyTracker::new(RANGES);
    tracker.merge(0x1000_0000, &[1 << 63 | 1, 0b101, u64::MAX]);
    let taken: Vec<u64> = tracker.take(0..u64::MAX).map(|gpa| (gpa - 0x1000_0000) / PAGE).collect();
    assert_eq!(taken, [0, 63, 64, 66], "pages that do not exist are left out");
}

#[test]
fn device_writes_are_recorded_and_reads_are_not() {
    let ram = GuestRam::new(&RamConfig { hole_start: 1 << 20, ..RamConfig::new(2 << 20) }).unwrap();
    ram.dirty().set_enabled(true);
    let mut buf = [0; 8];
    ram.memory().read_slice(&mut buf, GuestAddress(0x3000)).unwrap();
    ram.memory().write_slice(&buf, GuestAddress(0x5ffc)).unwrap();
    ram.memory().write_obj(1u8, GuestAddress((4 << 30) + 0x2000)).unwrap();
    ram.memory().store(1u32, GuestAddress(0x8000), std::sync::atomic::Ordering::Relaxed).unwrap();
    let slice = ram.memory().get_slice(GuestAddress(0xa000), 0x2000).unwrap();
    slice.subslice(0x1800, 8).unwrap().copy_from(&[1u8; 8]);
    let taken: Vec<u64> = ram.dirty().take(0..u64::MAX).collect();
    assert_eq!(taken, [0x5000, 0x6000, 0x8000, 0xb000, (4 << 30) + 0x2000]);
}

#[test]
fn processors_writes_come_from_ept_dirty_flags() {
    let ram = GuestRam::new(&RamConfig::new(8 << 20)).unwrap();
    let mut tables = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), true).unwrap();
    ram.map_ept(&mut tables).unwrap();
    let mode = EptMode::new(tables.eptp(), 46);
    let write = |gpa| ept::walk(ram.arena(), &mode, gpa, EptAccess::WRITE).unwrap();
    assert_eq!(write(0x1000).page_size, PageSize::Size2M);

    ram.dirty().start_ept(&mut tables, 0, ram.size()).unwrap();
    assert_eq!(ram.dirty().take(0..u64::MAX).count(), 0, "what was written before does not count");
    write(0x1234);
    write(0x7f_ffff);
    ept::walk(ram.arena(), &mode, 0x3000, EptAccess::READ).unwrap();
    ram.dirty().harvest_ept(&tables, 0, ram.size()).unwrap();
    assert_eq!(ram.dirty().take(0..u64::MAX).collect::<Vec<_>>(), [0x1000, 0x7f_f000]);
    ram.dirty().harvest_ept(&tables, 0, ram.size()).unwrap();
    assert_eq!(ram.dirty().take(0..u64::MAX).count(), 0);
}

#[test]
fn memory_without_a_tracker_can_be_made_for_tests() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    memory.write_obj(7u32, GuestAddress(4)).unwrap();
    assert_eq!(memory.read_obj::<u32>(GuestAddress(4)).unwrap(), 7);
}
