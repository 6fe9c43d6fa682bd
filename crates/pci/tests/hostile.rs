//! Whatever a guest writes: no panic, and what is read-only stays.

mod common;

use std::sync::{Arc, Mutex};

use common::Example;
use proptest::prelude::*;
use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_device::{AccessSize, SaveRestore};
use trapline_pci::test::Bench;
use trapline_pci::{
    BusId, ClassCode, ConfigSpace, DevFn, I440Fx, Identity, IntxRouter, PciBridge, Piix3, Piix4Pm, regs,
};

/// A PC's functions at the places that the script reaches, a bridge with an example behind it.
fn machine() -> Bench {
    let mut bench = Bench::new();
    let lines = (0..16).map(|_| bench.line()).collect();
    let router = IntxRouter::new(lines);
    let host = Arc::new(Mutex::new(I440Fx::new((0, 0), bench.effects())));
    let isa = Arc::new(Mutex::new(Piix3::new((0, 0), router)));
    let pm = Arc::new(Mutex::new(Piix4Pm::new((0, 0), bench.line())));
    let class = ClassCode::PCI_BRIDGE;
    let id = Identity { vendor: 0x1b36, device: 1, revision: 0, class, subsystem: (0, 0) };
    let bridge = Arc::new(Mutex::new(PciBridge::root_port("port", id).unwrap()));
    let example = || Arc::new(Mutex::new(Example::new(bench.line(), bench.sink())));
    let (near, far) = (example(), example());
    {
        let mut root = bench.root().lock().unwrap();
        root.add(BusId::ROOT, DevFn::new(0, 0), host).unwrap();
        root.add(BusId::ROOT, DevFn::new(0, 1), isa).unwrap();
        root.add(BusId::ROOT, DevFn::new(0, 3), pm).unwrap();
        let behind = root.add_bridge(BusId::ROOT, DevFn::new(2, 0), bridge).unwrap();
        root.add(behind, DevFn::new(0, 0), far).unwrap();
    }
    bench.plug(near);
    bench.place().unwrap();
    bench
}

fn size() -> impl Strategy<Value = AccessSize> {
    prop_oneof![Just(Byte), Just(Word), Just(Dword)]
}

fn writes(end: u16) -> impl Strategy<Value = Vec<(u16, AccessSize, u32)>> {
    let value = prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)];
    prop::collection::vec((0..end, size(), value), 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_script_panics(script in prop::collection::vec(any::<u8>(), 0..6000)) {
        let mut bench = machine();
        bench.run_script(&script);
        // What never changes, of each function.
        let ids = [(0, 0x1237_8086), (1, 0x7000_8086), (3, 0x7113_8086), (8, 0x10ff_1af4), (16, 0x0001_1b36)];
        for (place, id) in ids {
            let function = trapline_pci::Bdf { bus: 0, devfn: DevFn::from_byte(place) };
            prop_assert_eq!(bench.read_of(function, 0, Dword), id);
        }
    }

    #[test]
    fn read_only_bits_stay(script in writes(0x110)) {
        let mut device = ConfigSpaceModel::new();
        for (offset, size, value) in script {
            device.write(offset, size, value);
            device.check()?;
        }
    }

    #[test]
    fn any_saved_state_restores_to_itself(script in writes(0x100)) {
        let (mut bench, device) = common::placed();
        for (offset, size, value) in script {
            bench.write(offset, size, value);
        }
        let state = device.lock().unwrap().save();
        let (_, twin) = common::plugged();
        twin.lock().unwrap().restore(state.clone()).unwrap();
        prop_assert_eq!(twin.lock().unwrap().save(), state);
    }
}

/// The example's header and what of each doubleword a guest can change, from the specification.
struct ConfigSpaceModel {
    config: ConfigSpace,
    /// Offset, value of the bits that stay, mask of those.
    fixed: Vec<(u16, u32, u32)>,
    commands: u32,
}

impl ConfigSpaceModel {
    fn new() -> Self {
        let bench = Bench::new();
        let example = Example::new(bench.line(), bench.sink());
        let config = example.config;
        let masks = [
            (0x00, u32::MAX),
            // Command: I/O, memory, master, parity, SERR, interrupt disable. Status: none is set.
            (0x04, !0x0547),
            (0x08, u32::MAX),
            (0x0c, 0xffff_0000),
            (0x10, 0x1f),
            (0x14, 0xfff),
            (0x18, 0xffff),
            (0x1c, 0),
            (0x20, 0xfff),
            (0x24, u32::MAX),
            (0x28, u32::MAX),
            (0x2c, u32::MAX),
            (0x30, 0xfffe),
            (0x34, u32::MAX),
            (0x38, u32::MAX),
            (0x3c, 0xffff_ff00),
        ];
        let fixed = masks.map(|(at, mask)| (at, config.read(at, Dword) & mask, mask)).to_vec();
        Self { config, fixed, commands: 0 }
    }

    /// Writes, and remembers what the command register must be.
    fn write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.config.write(offset, size, value);
        for (at, byte) in (offset..).zip(value.to_le_bytes()).take(size.bytes()) {
            let shift = match at {
                regs::COMMAND => 0,
                5 => 8,
                _ => continue,
            };
            self.commands = self.commands & !(0xff << shift) | u32::from(byte) << shift & 0x547;
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (at, value, mask) in &self.fixed {
            prop_assert_eq!(self.config.read(*at, Dword) & mask, *value, "at {:#x}", at);
        }
        prop_assert_eq!(self.config.read(regs::COMMAND, Word), self.commands);
        Ok(())
    }
}
