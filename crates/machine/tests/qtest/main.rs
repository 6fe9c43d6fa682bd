//! Our devices against QEMU's, register by register: random scripts of port accesses are run on both, and
//! everything that a guest can see must be the same. Where it may differ, `docs/differential.md` says why.
//!
//! The tests skip where there is no QEMU.

mod bench;
mod differ;
mod ide;
mod machine;
mod qemu;
mod scripts;

use ide::Place::{Cd, Disk, Empty, EmptyCd};
use ide::{Places, Setup};
use proptest::strategy::Strategy;

/// Runs scripts for the IDE function on machines with these drives.
fn ide(cases: u32, places: Places, steps: impl Strategy<Value = Vec<ide::Step>>) {
    if !qemu::is_installed() {
        return;
    }
    let setup = Setup::new(places);
    differ::run(
        cases,
        steps,
        || setup.machines(),
        |machine, state: &mut ide::State, step, log| ide::perform(machine, state, step, &setup, log),
    );
}

#[test]
fn a_disk_by_pio() {
    ide(6, [[Disk, Empty], [Empty, Empty]], scripts::disk(0, 1, false));
}

#[test]
fn two_disks_by_pio() {
    ide(6, [[Empty, Empty], [Disk, Disk]], scripts::disk(1, 2, false));
}

#[test]
fn a_disk_against_the_rules() {
    ide(6, [[Disk, Empty], [Cd, Empty]], scripts::disk(0, 1, true));
}

#[test]
fn disks_by_dma() {
    ide(6, [[Disk, Disk], [Empty, Empty]], scripts::dma(0, 2, false));
}

#[test]
fn dma_with_any_table() {
    ide(6, [[Empty, Empty], [Disk, Cd]], scripts::dma(1, 1, true));
}

#[test]
fn a_cdrom() {
    ide(6, [[Empty, Empty], [Cd, Empty]], scripts::cdrom(1, 0));
}

#[test]
fn a_cdrom_beside_a_disk() {
    ide(6, [[Disk, EmptyCd], [Empty, Empty]], scripts::cdrom(0, 1));
}
