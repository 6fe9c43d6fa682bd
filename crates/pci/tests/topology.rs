//! Buses, bridges, hot plug, address assignment (PCI-to-PCI Bridge 1.2).

mod common;

use std::sync::{Arc, Mutex};

use common::Example;
use proptest::prelude::*;
use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_device::SaveRestore;
use trapline_pci::test::Bench;
use trapline_pci::{
    AddressWindows, AssignError, BarKind, Bdf, BridgeWindows, BusId, ClassCode, Command, ConfigSpace, DevFn,
    Effect, Identity, IntxPin, PciBridge, PciFunction, PciRoot, Space, TopologyError, regs,
};

const BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 1, revision: 0, class: ClassCode::PCI_BRIDGE, subsystem: (0, 0) };

fn bridge() -> Arc<Mutex<PciBridge>> {
    Arc::new(Mutex::new(PciBridge::new("bridge", BRIDGE)))
}

fn example(bench: &Bench) -> Arc<Mutex<Example>> {
    Arc::new(Mutex::new(Example::new(bench.line(), bench.sink())))
}

/// A bridge at 00:01.0 with a bridge at device 2 behind it, with an example at device 3 behind that.
fn two_deep() -> (Bench, Arc<Mutex<Example>>, BusId) {
    let mut bench = Bench::new();
    let first = bench.plug_bridge(bridge());
    let root = bench.root().clone();
    let second = root.lock().unwrap().add_bridge(first, DevFn::new(2, 0), bridge()).unwrap();
    let device = example(&bench);
    root.lock().unwrap().add(second, DevFn::new(3, 0), device.clone()).unwrap();
    (bench, device, second)
}

#[test]
fn bus_numbers_lead_the_way() {
    let (mut bench, _, second) = two_deep();
    let far = Bdf::new(7, 3, 0);
    assert_eq!(bench.read(0x0e, Byte), 1, "a type 1 header");
    assert_eq!(bench.read_of(far, 0, Dword), 0xffff_ffff);
    bench.write(regs::PRIMARY_BUS, Dword, 0x0007_0500);
    assert_eq!(bench.read_of(Bdf::new(5, 2, 0), 0, Dword), 0x0001_1b36);
    bench.write_of(Bdf::new(5, 2, 0), regs::PRIMARY_BUS, Dword, 0x0007_0705);
    assert_eq!(bench.read_of(far, 0, Dword), 0x10ff_1af4);
    assert_eq!(bench.read_of(Bdf::new(6, 3, 0), 0, Dword), 0xffff_ffff, "no bus has number 6");
    let root = bench.root().lock().unwrap();
    assert_eq!((root.bus_number(second), root.bus_by_number(7)), (7, Some(second)));
    assert_eq!(root.path(second, 3), [1, 2, 3]);
}

#[test]
fn assigned_addresses_reach_through_bridges() {
    let (mut bench, device, _) = two_deep();
    bench.place().unwrap();
    let far = Bdf::new(2, 3, 0);
    assert_eq!(bench.read(regs::SECONDARY_BUS, Word), 0x0201);
    device.lock().unwrap().latches[1] = 0x4711;
    let bar = bench.read_of(far, regs::BAR0 + 4, Dword);
    assert_eq!(bench.memory_read(bar.into(), Dword), 0x4711);
    let ports = bench.read_of(far, regs::BAR0, Dword) as u16 & !3;
    bench.io_write(ports, Byte, 0x55);
    assert_eq!(bench.io_read(ports + 9, Byte), 0x55);
    let wide = bench.read_of(far, regs::BAR0 + 12, Dword);
    assert_eq!(wide, 0, "behind a bridge 64-bit bars stay below 4 GiB");

    // A closed window, or a bridge that does not forward, cuts it off.
    bench.write(regs::IO_BASE, Word, 0x00f0);
    assert_eq!(bench.io_read(ports, Byte), 0xff);
    bench.write(regs::COMMAND, Word, 0);
    assert_eq!(bench.memory_read(bar.into(), Dword), 0xffff_ffff);
    let gone = bench.take_effects();
    assert!(gone.iter().all(|e| matches!(e, Effect::Bar(c) if c.function == far && c.new.is_none())));
    assert_eq!(gone.len(), 4, "{gone:?}");
    bench.write(regs::COMMAND, Word, 7);
    assert_eq!(bench.memory_read(bar.into(), Dword), 0x4711);
}

#[test]
fn siblings_have_their_own_ranges_of_numbers() {
    let mut root = PciRoot::new(trapline_pci::Effects::new());
    let first = root.add_bridge(BusId::ROOT, DevFn::new(1, 0), bridge()).unwrap();
    let second = root.add_bridge(BusId::ROOT, DevFn::new(2, 0), bridge()).unwrap();
    let below = root.add_bridge(first, DevFn::new(0, 0), bridge()).unwrap();
    root.config_write(Bdf::new(0, 1, 0), regs::PRIMARY_BUS, Dword, 0x0004_0300);
    root.config_write(Bdf::new(0, 2, 0), regs::PRIMARY_BUS, Dword, 0x0006_0500);
    root.config_write(Bdf::new(3, 0, 0), regs::PRIMARY_BUS, Dword, 0x0004_0403);
    let buses = [2, 3, 4, 5, 6].map(|number| root.bus_by_number(number));
    assert_eq!(buses, [None, Some(first), Some(below), Some(second), None]);
}

#[test]
fn a_window_is_aligned_for_the_largest_bar_behind_it() {
    let mut root = PciRoot::new(trapline_pci::Effects::new());
    let behind = root.add_bridge(BusId::ROOT, DevFn::new(1, 0), bridge()).unwrap();
    let function = Bars::new(&[(1, 0), (1, 20), (1, 4)]);
    root.add(behind, DevFn::new(0, 0), Arc::new(Mutex::new(function))).unwrap();
    let windows =
        AddressWindows { io: (0x1000, 0xf000), memory: (0x8010_0000, 0x4000_0000), memory_high: None };
    root.assign_addresses(&windows).unwrap();
    let bars = [0x10, 0x14, 0x18].map(|at| root.config_read(Bdf::new(1, 0, 0), at, Dword));
    assert_eq!(bars, [0x8200_0100, 0x8100_0000, 0x8200_0000]);
    assert_eq!(root.config_read(Bdf::new(0, 1, 0), regs::MEMORY_BASE, Dword), 0x8200_8100);
}

#[test]
fn a_sleeping_bridge_forwards_configuration_only() {
    let mut bench = Bench::new();
    let port = Arc::new(Mutex::new(PciBridge::root_port("port", BRIDGE).unwrap()));
    let behind = bench.plug_bridge(port);
    let root = bench.root().clone();
    root.lock().unwrap().add(behind, DevFn::new(0, 0), example(&bench)).unwrap();
    bench.place().unwrap();
    assert_eq!(root.lock().unwrap().mappings().len(), 4);
    let power = bench.capability(trapline_pci::capability::id::POWER_MANAGEMENT).unwrap() + 4;
    bench.write(power, Word, 3);
    assert!(root.lock().unwrap().mappings().is_empty());
    assert_eq!(bench.read_of(Bdf::new(1, 0, 0), 0, Dword), 0x10ff_1af4);
    bench.write(power, Word, 0);
    assert_eq!(root.lock().unwrap().mappings().len(), 4);
}

#[test]
fn windows_have_their_granularity() {
    let mut config = ConfigSpace::bridge(BRIDGE);
    config.write(regs::IO_BASE, Word, 0xffff);
    config.write(regs::MEMORY_BASE, Dword, 0xffff_ffff);
    config.write(regs::PREFETCHABLE_BASE, Dword, 0xffff_ffff);
    assert_eq!(config.read(regs::IO_BASE, Word), 0xf1f1);
    assert_eq!(config.read(regs::MEMORY_BASE, Dword), 0xfff0_fff0);
    assert_eq!(config.read(regs::PREFETCHABLE_BASE, Dword), 0xfff1_fff1);
    let windows = BridgeWindows {
        io: Some((0x1_4000, 0x1_7fff)),
        memory: Some((0x8010_0000, 0x801f_ffff)),
        prefetchable: Some((0x12_3450_0000, 0x13_ffff_ffff)),
    };
    config.set_bridge_windows(windows);
    assert_eq!(config.bridge_windows(), windows);
    config.set_bridge_windows(BridgeWindows::default());
    assert_eq!(config.bridge_windows(), BridgeWindows::default());
}

#[test]
fn secondary_bus_reset_resets_what_is_behind() {
    let (mut bench, device, _) = two_deep();
    bench.place().unwrap();
    bench.write(regs::BRIDGE_CONTROL, Word, 0x40);
    bench.write(regs::BRIDGE_CONTROL, Word, 0x40);
    assert_eq!(device.lock().unwrap().resets, 1, "on the edge");
    assert_eq!(device.lock().unwrap().config.command(), Command::empty());
    assert!(bench.root().lock().unwrap().mappings().is_empty());
    assert_eq!(bench.read(regs::SECONDARY_BUS, Byte), 1, "the bridge itself goes on");
}

#[test]
fn functions_come_and_go() {
    let mut bench = Bench::new();
    bench.plug(example(&bench));
    bench.place().unwrap();
    assert_eq!(bench.read(regs::HEADER_TYPE, Byte), 0);
    let root = bench.root().clone();
    root.lock().unwrap().add(BusId::ROOT, DevFn::new(1, 5), example(&bench)).unwrap();
    assert_eq!(bench.read(regs::HEADER_TYPE, Byte), 0x80, "more than one function now");
    assert_eq!(bench.read(regs::CACHE_LINE_SIZE, Dword), 0x0080_0000);
    assert_eq!(bench.read_of(Bdf::new(0, 1, 5), 0x0e, Word), 0, "told by function 0 alone");
    let taken = root.lock().unwrap().add(BusId::ROOT, DevFn::new(1, 5), example(&bench));
    assert_eq!(taken, Err(TopologyError::Taken(DevFn::new(1, 5))));

    let claim = bench.range(1).unwrap();
    let removed = root.lock().unwrap().remove(BusId::ROOT, DevFn::new(1, 0)).unwrap();
    bench.settle();
    assert_eq!(bench.take_effects().len(), 4, "its ranges went");
    assert_eq!(bench.memory_read(claim.start, Dword), 0xffff_ffff);
    assert_eq!(bench.read(0, Dword), 0xffff_ffff);
    // It comes back with what it was programmed to.
    root.lock().unwrap().add(BusId::ROOT, DevFn::new(1, 0), removed).unwrap();
    bench.settle();
    assert_eq!(bench.range(1), Some(claim));
    assert_eq!(bench.memory_read(claim.start, Dword), 0);
    let absent = root.lock().unwrap().remove(BusId::ROOT, DevFn::new(9, 0));
    assert_eq!(absent.err(), Some(TopologyError::Absent(DevFn::new(9, 0))));
}

#[test]
fn a_bridge_goes_with_all_behind_it() {
    let (mut bench, _, second) = two_deep();
    bench.place().unwrap();
    let root = bench.root().clone();
    let wrong = root.lock().unwrap().add(BusId::ROOT, DevFn::new(9, 0), bridge());
    assert_eq!(wrong, Err(TopologyError::HeaderType(DevFn::new(9, 0))));
    root.lock().unwrap().remove(BusId::ROOT, DevFn::new(1, 0)).unwrap();
    bench.settle();
    assert_eq!(bench.take_effects().len(), 4);
    let mut root = root.lock().unwrap();
    assert_eq!(root.functions().count(), 0);
    assert_eq!(root.add(second, DevFn::new(0, 0), example(&bench)), Err(TopologyError::NoBus));
}

#[test]
fn a_bar_that_returns_is_no_change() {
    let mut bench = Bench::new();
    bench.plug(example(&bench));
    bench.place().unwrap();
    let mut root = bench.root().lock().unwrap();
    let old = root.config_read(Bench::PLACE, 0x14, Dword);
    root.config_write(Bench::PLACE, 0x14, Dword, 0xc000_0000);
    assert!(root.effects().pending());
    root.config_write(Bench::PLACE, 0x14, Dword, old);
    assert!(!root.effects().pending());
    assert!(root.effects().take().is_empty());
}

#[test]
fn interrupt_lines_are_written_for_the_kernel() {
    let (mut bench, _, _) = two_deep();
    let root = bench.root().clone();
    bench.place().unwrap();
    let mut asked = Vec::new();
    root.lock().unwrap().assign_interrupt_lines(|path, pin| {
        asked.push((path.to_vec(), pin));
        Some(11)
    });
    assert_eq!(asked, [(vec![1, 2, 3], IntxPin::B)], "bridges have no pin");
    assert_eq!(bench.read_of(Bdf::new(2, 3, 0), regs::INTERRUPT_LINE, Byte), 11);
}

#[test]
fn too_little_room_is_an_error() {
    let bench = Bench::new();
    let root = bench.root().clone();
    let at = DevFn::new(1, 0);
    root.lock().unwrap().add(BusId::ROOT, at, example(&bench)).unwrap();
    let assign = |io, memory| {
        let windows = AddressWindows { io, memory, memory_high: None };
        root.lock().unwrap().assign_addresses(&windows)
    };
    let no_room = |space, size| Err(AssignError::NoRoom { at, space, size });
    assert_eq!(assign((0x1000, 16), (0x8000_0000, 0x10_0000)), no_room(Space::Io, 32));
    assert_eq!(assign((0x1000, 64), (0x8000_0000, 0x8000)), no_room(Space::Memory, 0x1_0000));
    let bad = |start, len| Err(AssignError::BadWindow { start, len });
    assert_eq!(assign((0xff00, 0x200), (0, 1)), bad(0xff00, 0x200));
    assert_eq!(assign((0x1000, 0x100), (0, 0)), bad(0, 0));
    assert_eq!(assign((0x1000, 0x100), (0x8000_0000, 0x10_0000)), Ok(()));
}

#[test]
fn a_bridge_can_be_saved() {
    let (mut bench, _, _) = two_deep();
    bench.place().unwrap();
    let mut port = PciBridge::root_port("port", BRIDGE).unwrap();
    let other = bridge();
    other.lock().unwrap().config_write(regs::SECONDARY_BUS, Byte, 9);
    let state = other.lock().unwrap().save();
    assert!(port.restore(state.clone()).is_err(), "a root port has 4,096 bytes");
    let again = bridge();
    again.lock().unwrap().restore(state).unwrap();
    assert_eq!(again.lock().unwrap().config().bus_numbers().secondary, 9);
    port.config_write(regs::SECONDARY_BUS, Byte, 3);
    assert_eq!(port.config().bus_numbers().secondary, 3);
}

/// A function with BARs as given: kind and size, where there is room for them.
struct Bars(ConfigSpace);

impl Bars {
    fn new(bars: &[(u8, u32)]) -> Self {
        let mut config = ConfigSpace::new(common::ID);
        for (index, (kind, shift)) in bars.iter().enumerate() {
            let kind = match kind {
                0 => BarKind::Io,
                1 => BarKind::Memory32 { prefetchable: false },
                _ => BarKind::Memory64 { prefetchable: true },
            };
            let shift = if kind == BarKind::Io { 2 + shift % 7 } else { 4 + shift % 22 };
            // The upper half of a wide one is taken: then there is one less.
            let _ = config.add_bar(index, kind, 1 << shift);
        }
        Self(config)
    }
}

impl trapline_device::Device for Bars {
    fn name(&self) -> &str {
        "bars"
    }
    fn pio(&mut self) -> Option<&mut dyn trapline_device::PortIo> {
        None
    }
    fn mmio(&mut self) -> Option<&mut dyn trapline_device::MmioIo> {
        None
    }
    fn poll(&mut self) -> Option<&mut dyn trapline_device::Poll> {
        None
    }
    fn reset(&mut self) {
        self.0.reset();
    }
}

impl PciFunction for Bars {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

type Function = (u8, Vec<(u8, u32)>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever the topology, each BAR is placed, aligned, apart from all others, and reachable.
    #[test]
    fn assignment_is_sound(
        bridges in prop::collection::vec(any::<u8>(), 0..6),
        functions in prop::collection::vec::<BoxedStrategy<Function>>(
            (any::<u8>(), prop::collection::vec((0_u8..3, any::<u32>()), 0..5)).boxed(), 0..9),
        high in any::<bool>(),
    ) {
        let mut root = PciRoot::new(trapline_pci::Effects::new());
        let mut buses = vec![BusId::ROOT];
        for (device, parent) in (0..).zip(bridges) {
            let parent = buses[usize::from(parent) % buses.len()];
            buses.push(root.add_bridge(parent, DevFn::new(device, 0), bridge()).unwrap());
        }
        let mut wanted = 0;
        for (device, (bus, bars)) in (8..).zip(functions) {
            let function = Bars::new(&bars);
            wanted += (0..6).filter(|index| function.0.bar(*index).is_some()).count();
            let bus = buses[usize::from(bus) % buses.len()];
            root.add(bus, DevFn::new(device, 0), Arc::new(Mutex::new(function))).unwrap();
        }
        let memory_high = high.then_some((1 << 36, 1 << 34));
        let windows = AddressWindows { io: (0x1000, 0xf000), memory: (0x8000_0000, 0x6000_0000), memory_high };
        root.assign_addresses(&windows).unwrap();
        let mut ranges: Vec<_> = root.mappings().into_iter().map(|mapping| mapping.range).collect();
        prop_assert_eq!(ranges.len(), wanted);
        ranges.sort();
        for range in &ranges {
            prop_assert_eq!(range.start % range.len, 0);
        }
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].space != pair[1].space || pair[0].last() < pair[1].start, "{:?}", pair);
        }
    }
}
