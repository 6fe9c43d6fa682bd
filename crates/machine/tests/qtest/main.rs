//! Our devices against QEMU's, register by register: random scripts of port accesses are run on both, and
//! everything that a guest can see must be the same. Where it may differ, `docs/differential.md` says why.
//!
//! The tests skip where there is no QEMU.

mod bench;
mod board;
mod differ;
mod ide;
mod legacy;
mod machine;
mod pci;
mod qemu;
mod scripts;
mod timed;

use std::time::Duration;

use proptest::strategy::Strategy;

use crate::bench::Bench;
use crate::board::Board;
use crate::ide::Place::{Cd, Disk, Empty, EmptyCd};
use crate::ide::{Places, Setup};
use crate::machine::{Log, Machine};
use crate::qemu::Qemu;

/// Runs scripts for the IDE function on machines with these drives.
fn ide(cases: u32, setup: &Setup, steps: impl Strategy<Value = Vec<ide::Step>>) {
    if qemu::is_installed() {
        differ::run(
            cases,
            steps,
            || setup.machines(),
            |machine, state: &mut ide::State, step, log| ide::perform(machine, state, step, setup, log),
        );
    }
}

/// Devices of the bench.
fn bench(places: Places) -> Setup {
    Setup::new(places, false)
}

/// The board `pc`.
fn board(places: Places) -> Setup {
    Setup::new(places, true)
}

#[test]
fn a_disk_by_pio() {
    ide(6, &bench([[Disk, Empty], [Empty, Empty]]), scripts::disk(0, 1, false));
}

#[test]
fn two_disks_by_pio() {
    ide(6, &bench([[Empty, Empty], [Disk, Disk]]), scripts::disk(1, 2, false));
}

#[test]
fn a_disk_against_the_rules() {
    ide(6, &bench([[Disk, Empty], [Cd, Empty]]), scripts::disk(0, 1, true));
}

#[test]
fn disks_by_dma() {
    ide(6, &bench([[Disk, Disk], [Empty, Empty]]), scripts::dma(0, 2, false));
}

#[test]
fn dma_with_any_table() {
    ide(6, &bench([[Empty, Empty], [Disk, Cd]]), scripts::dma(1, 1, true));
}

#[test]
fn disks_of_the_board_by_pio() {
    ide(4, &board([[Disk, Empty], [Disk, Empty]]), scripts::disk(0, 1, true));
}

#[test]
fn disks_of_the_board_by_dma() {
    ide(4, &board([[Disk, Disk], [Empty, Empty]]), scripts::dma(0, 2, true));
}

#[test]
fn a_cdrom() {
    ide(6, &bench([[Empty, Empty], [Cd, Empty]]), scripts::cdrom(1, 0));
}

#[test]
fn a_cdrom_beside_a_disk() {
    ide(6, &bench([[Disk, EmptyCd], [Empty, Empty]]), scripts::cdrom(0, 1));
}

#[test]
fn configuration_space() {
    if qemu::is_installed() {
        differ::run(
            4,
            pci::script(),
            || (Box::new(Board::new(&[])), Box::new(Qemu::start(&[]))),
            |machine, state: &mut pci::State, step, log| pci::perform(machine, state, step, log),
        );
    }
}

/// Runs scripts for devices of the bench that `prepare` brings to where both machines are the same.
fn legacy(
    cases: u32,
    steps: impl Strategy<Value = Vec<legacy::Step>>,
    prepare: impl Fn(&mut dyn Machine),
    perform: impl Fn(&mut dyn Machine, &legacy::Step, &mut Log),
) {
    let serial = ["-serial".to_owned(), "null".to_owned()];
    if qemu::is_installed() {
        differ::run(
            cases,
            steps,
            || {
                let mut ours = Bench::new(Default::default(), Duration::ZERO);
                let mut qemu = Qemu::start(&serial);
                prepare(&mut ours);
                prepare(&mut qemu);
                (Box::new(ours), Box::new(qemu))
            },
            |machine, (), step, log| perform(machine, step, log),
        );
    }
}

#[test]
fn interrupt_controllers() {
    legacy(6, legacy::pic::scripts(), legacy::pic::prepare, legacy::pic::perform);
}

#[test]
fn keyboard_controller() {
    legacy(6, legacy::i8042::scripts(), legacy::i8042::prepare, legacy::i8042::perform);
}

#[test]
fn serial_port() {
    legacy(6, legacy::uart::scripts(), legacy::uart::prepare, legacy::uart::perform);
}

/// Runs scripts in which time passes.
fn timed(cases: u32, steps: impl Strategy<Value = Vec<timed::Step>>, tolerance: timed::Tolerance) {
    if qemu::is_installed() {
        differ::check(cases, steps, |script| timed::compare(script, tolerance));
    }
}

#[test]
fn power_management_timer() {
    timed(4, timed::pm::scripts(), timed::NONE);
}

#[test]
fn real_time_clock() {
    timed(4, timed::rtc::scripts(), timed::rtc::TOLERANCE);
}

#[test]
fn interval_timer() {
    timed(4, timed::pit::scripts(), timed::pit::TOLERANCE);
}
