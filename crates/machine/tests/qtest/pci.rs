//! Scripts for configuration space: the four functions of the chipset, through ports 0xcf8 to 0xcff.

use proptest::prelude::*;

use crate::machine::{AccessSize, Byte, Dword, Log, Machine, Word};

pub const HOST: u8 = 0;
pub const ISA: u8 = 1 << 3;
pub const IDE: u8 = 1 << 3 | 1;
pub const PM: u8 = 1 << 3 | 3;
const FUNCTIONS: [u8; 4] = [HOST, ISA, IDE, PM];

#[derive(Clone, Debug)]
pub enum Step {
    /// A register is read.
    Read { function: u8, offset: u8, size: AccessSize },
    /// A register is written, and the whole function looked at.
    Write { function: u8, offset: u8, size: AccessSize, value: u32 },
    /// The ports of CONFIG_ADDRESS are written with any width, and read back. Only a doubleword is one: what a
    /// narrower read gives is not the host bridge's, though QEMU's answers.
    Address { offset: u16, size: AccessSize, value: u32 },
}

fn size() -> impl Strategy<Value = AccessSize> {
    prop::sample::select(&[Byte, Word, Dword][..])
}

/// A register, of which the access crosses no doubleword.
fn place(offsets: std::ops::Range<u8>) -> impl Strategy<Value = (u8, AccessSize)> {
    (offsets, size()).prop_map(|(offset, size)| (offset & !(size.bytes() as u8 - 1), size))
}

/// Registers behind the header that both machines store, with the bits that the datasheets say are stored (Intel
/// 82441FX, 82371SB, 82371AB). QEMU stores all bits of all registers, and starts most of them with zero; so they
/// are compared once they were written. The lock bit of SMRAM, at 0x72, locks nothing in QEMU.
const STORED: [(u8, &[(u8, u8)]); 4] = [
    (
        HOST,
        &[
            (0x50, 0x77),
            (0x51, 0xff),
            (0x59, 0x30),
            (0x5a, 0x33),
            (0x5b, 0x33),
            (0x5c, 0x33),
            (0x5d, 0x33),
            (0x5e, 0x33),
            (0x5f, 0x33),
            (0x60, 0xff),
            (0x63, 0xff),
            (0x67, 0xff),
            (0x68, 0xc0),
            (0x72, 0x68),
        ],
    ),
    (
        ISA,
        &[(0x60, 0x8f), (0x61, 0x8f), (0x62, 0x8f), (0x63, 0x8f), (0x69, 0xfe), (0x76, 0x8f), (0x77, 0x8f)],
    ),
    (IDE, &[(0x40, 0xff), (0x41, 0xf3), (0x42, 0xff), (0x43, 0xf3), (0x44, 0xff)]),
    (PM, &[(0x40, 0xc0), (0x41, 0xff), (0x80, 0x01), (0x90, 0xf0), (0x91, 0xff), (0xd2, 0x0f)]),
];

/// Bits of the header that may differ. QEMU has all commands of the specification in every function, no latency
/// timers but cache line sizes, an empty status in the host bridge, and no interrupt line for power management
/// before it is written.
fn header_mask(function: u8, offset: u8) -> u32 {
    match (offset, function) {
        (0x04, HOST) => 0x0000_0100,
        (0x04, ISA) => 0xffff_0000,
        (0x04, IDE) => 0xffff_0005,
        (0x04, _) => 0xffff_0001,
        (0x0c, _) => 0xffff_0000,
        (0x3c, PM) => 0xffff_ff00,
        _ => u32::MAX,
    }
}

/// Which registers behind the header were written: function and offset.
#[derive(Default)]
pub struct State {
    written: std::collections::BTreeSet<(u8, u8)>,
}

pub fn script() -> impl Strategy<Value = Vec<Step>> {
    let function = || prop::sample::select(&FUNCTIONS[..]);
    let anywhere = prop_oneof![4 => function(), 1 => any::<u8>()];
    let read = (anywhere, place(0..0x40)).prop_map(|(function, (offset, size))| Step::Read {
        function,
        offset,
        size,
    });
    let header = (function(), place(0..0x40), any::<u32>())
        .prop_map(|(function, (offset, size), value)| Step::Write { function, offset, size, value });
    let stored = prop::sample::select(&STORED[..]);
    let own = stored.prop_flat_map(|(function, registers)| {
        let place = (prop::sample::select(registers), size());
        (place, any::<u32>()).prop_map(move |(((offset, _), size), value)| {
            let offset = offset & !(size.bytes() as u8 - 1);
            // SMRAM is not locked.
            let value = if offset == 0x70 || offset == 0x72 { value & !0x0010_0010 } else { value };
            Step::Write { function, offset, size, value }
        })
    });
    // A byte at 0xcf9, also of a word, would reach the reset control register.
    let places = [(0_u16, Byte), (0, Dword), (0, Dword), (2, Byte), (2, Word), (3, Byte)];
    let ports = (prop::sample::select(places.to_vec()), any::<u32>())
        .prop_map(|((offset, size), value)| Step::Address { offset, size, value });
    prop::collection::vec(prop_oneof![2 => read, 3 => header, 5 => own, 1 => ports], 1..50)
}

/// The whole configuration space of a function.
fn look(machine: &mut dyn Machine, state: &State, function: u8, log: &mut Log) {
    for offset in (0..0x40).step_by(4) {
        let value = machine.config_read(function, offset, Dword) & header_mask(function, offset);
        log.see("register", u32::from(function) << 8 | u32::from(offset), value);
    }
    for (function, registers) in STORED {
        for (offset, bits) in
            registers.iter().filter(|(offset, _)| state.written.contains(&(function, *offset)))
        {
            let value = machine.config_read(function, *offset, Byte) as u8 & bits;
            log.see("register", u32::from(function) << 8 | u32::from(*offset), value);
        }
    }
}

pub fn perform(machine: &mut dyn Machine, state: &mut State, step: &Step, log: &mut Log) {
    match *step {
        Step::Read { function, offset, size } => {
            let mask = header_mask(function, offset & !3) >> (8 * (offset & 3));
            let mask = if FUNCTIONS.contains(&function) { mask } else { u32::MAX };
            let value = machine.config_read(function, offset, size) & mask;
            log.see("read", u32::from(function) << 8 | u32::from(offset), value);
        }
        Step::Write { function, offset, size, value } => {
            machine.config_write(function, offset, size, value);
            state.written.extend((offset..=0xff).take(size.bytes()).map(|offset| (function, offset)));
            look(machine, state, function, log);
        }
        Step::Address { offset, size, value } => {
            machine.out(0xcf8 + offset, size, value);
            // Bits 30:24 and 1:0 are reserved (PCI Local Bus 3.0 §3.2.2.3.2); QEMU keeps them.
            let address = machine.inp(0xcf8, Dword) & 0x80ff_fffc;
            log.see("address", 0_u32, address);
            let present = address >> 31 != 0 && address >> 16 & 0xff == 0;
            if !(present && FUNCTIONS.contains(&((address >> 8) as u8))) {
                for (port, size) in [(0xcfc, Dword), (0xcfd, Byte), (0xcfe, Word)] {
                    log.see("nobody", port, machine.inp(port, size));
                }
            }
        }
    }
}
