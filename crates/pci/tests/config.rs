//! Configuration space as PCI Local Bus 3.0, chapter 6, has it.

mod common;

use common::{Example, placed, plugged};
use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_device::SaveRestore;
use trapline_device::test::Recorder;
use trapline_pci::test::{Bench, ecam_address};
use trapline_pci::{
    AddressRange, BarKind, Bdf, Command, ConfigError, ConfigSpace, Effect, ROM_REGION, Space, regs,
};

const DECODE: u32 = 0b011;

#[test]
fn the_header_says_who_it_is() {
    let (mut bench, _) = plugged();
    assert_eq!(bench.read(0x00, Dword), 0x10ff_1af4);
    assert_eq!(bench.read(0x08, Dword), 0xff12_3442);
    assert_eq!(bench.read(0x0e, Byte), 0);
    assert_eq!(bench.read(0x2c, Dword), 0xbabe_cafe);
    assert_eq!(bench.read(0x3d, Byte), 2);
    assert_eq!(bench.read(0x06, Word) & 1 << 4, 1 << 4);
}

#[test]
fn every_width_at_every_offset() {
    let (mut bench, _) = plugged();
    let bytes: Vec<u32> = (0..0x100).map(|at| bench.read(at, Byte)).collect();
    for at in 0..0x100 {
        let expect = |n| (0..n).rev().fold(0, |value, i| value << 8 | bytes[usize::from(at) + i]);
        if at % 4 != 3 {
            assert_eq!(bench.read(at, Word), expect(2), "word at {at:#x}");
        }
        if at % 4 == 0 {
            assert_eq!(bench.read(at, Dword), expect(4), "doubleword at {at:#x}");
        }
    }
    // Byte and word writes touch their bytes only.
    bench.write(regs::BAR0 + 4, Dword, 0xaabb_c000);
    bench.write(regs::BAR0 + 6, Byte, 0x11);
    assert_eq!(bench.read(regs::BAR0 + 4, Dword), 0xaa11_c000);
    bench.write(regs::BAR0 + 6, Word, 0x2233);
    assert_eq!(bench.read(regs::BAR0 + 4, Dword), 0x2233_c000);
}

#[test]
fn absent_functions_read_all_ones() {
    let (mut bench, _) = plugged();
    for function in [Bdf::new(0, 1, 1), Bdf::new(0, 2, 0), Bdf::new(1, 1, 0), Bdf::new(255, 31, 7)] {
        assert_eq!(bench.read_of(function, 0, Dword), 0xffff_ffff);
        assert_eq!(bench.read_of(function, 0, Word), 0xffff);
        bench.write_of(function, 0x3c, Byte, 5);
        assert_eq!(bench.memory_read(ecam_address(function, 0x100), Qword), u64::MAX);
    }
}

#[test]
fn read_only_registers_stay() {
    let (mut bench, _) = plugged();
    for at in [0x00, 0x08, 0x28, 0x2c, 0x34, 0x38] {
        let before = bench.read(at, Dword);
        bench.write(at, Dword, !before);
        assert_eq!(bench.read(at, Dword), before, "at {at:#x}");
    }
    bench.write(regs::INTERRUPT_LINE, Word, 0xff0b);
    assert_eq!(bench.read(regs::INTERRUPT_LINE, Word), 0x020b);
}

#[test]
fn status_bits_are_cleared_by_ones() {
    let (mut bench, device) = plugged();
    let errors = regs::Status::RECEIVED_MASTER_ABORT | regs::Status::DETECTED_PARITY_ERROR;
    device.lock().unwrap().config.raise_status(errors);
    assert_eq!(bench.read(regs::STATUS, Word), 0xa010);
    bench.write(regs::STATUS, Word, 0x2000);
    assert_eq!(bench.read(regs::STATUS, Word), 0x8010);
    // A doubleword write to command and status clears too.
    bench.write(regs::COMMAND, Dword, 0x8000_0004);
    assert_eq!(bench.read(regs::COMMAND, Dword), 0x0010_0004);
}

#[test]
fn bars_say_their_size() {
    let (mut bench, _) = plugged();
    for at in (0x10..0x28).step_by(4) {
        bench.write(at, Dword, 0xffff_ffff);
    }
    bench.write(regs::ROM, Dword, 0xffff_f800);
    let bars: Vec<u32> = (0x10..0x28).step_by(4).map(|at| bench.read(at, Dword)).collect();
    let expect = [0xffff_ffe1, 0xffff_f000, 0xffff_000c, 0xffff_ffff, 0xffff_f000, 0x0000_0000];
    assert_eq!(bars, expect);
    assert_eq!(bench.read(regs::ROM, Dword), 0xffff_0000);
}

#[test]
fn a_bar_answers_where_it_is_and_while_it_may() {
    let (mut bench, _) = placed();
    bench.bar_write(1, 8, Dword, 0x1234);
    let old = bench.range(1).unwrap();
    assert_eq!(bench.memory_read(old.start + 0xffc, Dword), 0x1234);

    // It moves while decoding is enabled.
    bench.write(regs::BAR0 + 4, Dword, 0xc123_4000);
    assert_eq!(bench.memory_read(old.start, Dword), 0xffff_ffff);
    assert_eq!(bench.memory_read(0xc123_4000, Dword), 0x1234);
    let new = AddressRange::memory(0xc123_4000, 0x1000);
    let effects = bench.take_effects();
    let [Effect::Bar(change)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((change.function, change.region), (Bench::PLACE, 1));
    assert_eq!((change.old, change.new), (Some(old), new));

    // Memory decoding off: nobody answers, ports still do.
    bench.io_write(bench.range(0).unwrap().start as u16, Byte, 0x77);
    let ports = bench.range(0).unwrap().start as u16;
    bench.write(regs::COMMAND, Word, 0b101);
    assert_eq!(bench.memory_read(0xc123_4000, Dword), 0xffff_ffff);
    assert_eq!(bench.io_read(ports + 31, Byte), 0x77);
    assert!(bench.take_effects().len() >= 3, "three memory bars went");

    // It moves while decoding is disabled: seen only when it is enabled again.
    bench.write(regs::BAR0 + 4, Dword, 0xd000_0000);
    assert!(bench.take_effects().is_empty());
    bench.write(regs::COMMAND, Word, 0b111);
    assert_eq!(bench.memory_read(0xd000_0000, Dword), 0x1234);
}

#[test]
fn a_wide_bar_moves_in_halves() {
    let (mut bench, _) = placed();
    bench.write(regs::BAR0 + 8, Dword, 0x4000_0000);
    bench.write(regs::BAR0 + 12, Dword, 0x12);
    assert_eq!(bench.range(2), AddressRange::memory(0x12_4000_0000, 0x1_0000));
    bench.bar_write(2, 0, Qword, 0x1122_3344_5566_7788);
    assert_eq!(bench.memory_read(0x12_4000_fff8, Qword), 0x1122_3344_5566_7788);
    assert_eq!(bench.read(regs::BAR0 + 8, Dword), 0x4000_000c);
}

#[test]
fn sizing_does_not_move_a_bar_over_others() {
    let (mut bench, _) = placed();
    let old = bench.range(1).unwrap();
    bench.write(regs::BAR0 + 4, Dword, 0xffff_ffff);
    assert_eq!(bench.range(1), None);
    bench.write(regs::BAR0 + 4, Dword, old.start as u32);
    assert_eq!(bench.range(1), Some(old));
    // Ports beyond 0xffff do not exist, and address zero is a bar that nobody has placed.
    bench.write(regs::BAR0, Dword, 0x0001_0000);
    assert_eq!(bench.range(0), None);
    bench.write(regs::BAR0 + 4, Dword, 0);
    assert_eq!(bench.range(1), None);
}

#[test]
fn of_two_at_one_address_one_answers() {
    let (mut bench, device) = placed();
    let at = bench.range(1).unwrap().start;
    bench.write(regs::BAR0 + 16, Dword, at as u32);
    device.lock().unwrap().latches[1] = 0x1111;
    assert_eq!(bench.memory_read(at, Dword), 0x1111);
    // Over the configuration ports: those stay.
    bench.write(regs::BAR0, Dword, 0xce0);
    assert_eq!(bench.read(0, Dword), 0x10ff_1af4);
    bench.write(regs::BAR0, Dword, 0x5000);
    bench.write(regs::BAR0 + 4, Dword, 0xc000_0000);
    assert_eq!(bench.memory_read(0xc000_0000, Dword), 0x1111);
    assert_eq!(bench.memory_read(at, Dword), 0, "the msi-x table now");
}

#[test]
fn the_rom_has_its_own_enable() {
    let (mut bench, device) = placed();
    device.lock().unwrap().latches[ROM_REGION] = 0xaa55;
    assert_eq!(bench.range(ROM_REGION), None);
    let register = bench.read(regs::ROM, Dword);
    bench.write(regs::ROM, Dword, register | 1);
    assert_eq!(bench.memory_read(register.into(), Word), 0xaa55);
    bench.write(regs::COMMAND, Word, 1);
    assert_eq!(bench.range(ROM_REGION), None);
}

#[test]
fn d3hot_silences_all_but_configuration() {
    let (mut bench, _) = placed();
    let power = bench.capability(1).unwrap() + 4;
    bench.write(power, Word, 3);
    assert_eq!(bench.read(power, Byte), 3 | 1 << 3);
    assert_eq!(bench.range(0), None);
    assert_eq!(bench.read(regs::COMMAND, Word) & DECODE, DECODE);
    // D1 and D2 are not supported: the write does not change the state.
    for state in [1, 2] {
        bench.write(power, Word, state);
        assert_eq!(bench.read(power, Byte) & 3, 3);
    }
    bench.write(power, Word, 0);
    assert_eq!(bench.range(0).unwrap().space, Space::Io);
}

#[test]
fn ecam_reaches_the_same_registers() {
    let (mut bench, _) = plugged();
    let at = |offset| ecam_address(Bench::PLACE, offset);
    assert_eq!(bench.memory_read(at(0), Dword), 0x10ff_1af4);
    assert_eq!(bench.memory_read(at(0), Qword), 0x0010_0000_10ff_1af4);
    assert_eq!(bench.memory_read(at(2), Word), 0x10ff);
    assert_eq!(bench.memory_read(at(3), Word), 0x0010, "across a doubleword: bytes");
    bench.memory_write(at(0x3c), Byte, 0x0b);
    assert_eq!(bench.read(0x3c, Byte), 0x0b);
    // A conventional function has 256 bytes.
    assert_eq!(bench.memory_read(at(0x100), Dword), 0xffff_ffff);
    assert_eq!(bench.memory_read(at(0xffc), Qword), u64::MAX);
}

#[test]
fn reset_is_power_on() {
    let (mut bench, device) = placed();
    bench.write(regs::INTERRUPT_LINE, Byte, 9);
    device.lock().unwrap().config.interrupts().set_intx(true);
    assert!(bench.intx());
    bench.root().clone().lock().unwrap().reset();
    bench.settle();
    assert!(!bench.intx());
    assert_eq!(bench.read(regs::COMMAND, Dword), 0x0010_0000);
    assert_eq!(bench.read(regs::BAR0 + 8, Dword), 0xc);
    assert_eq!(bench.read(regs::INTERRUPT_LINE, Word), 0x0200);
    assert_eq!(bench.range(1), None);
    assert!(!bench.take_effects().is_empty());
}

#[test]
fn state_survives_and_is_checked() {
    let (mut bench, device) = placed();
    bench.bar_write(4, 0, Qword, 0xfee0_0000);
    device.lock().unwrap().config.interrupts().set_intx(true);
    let state = device.lock().unwrap().save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    let state: <Example as SaveRestore>::State = postcard::from_bytes(&bytes).unwrap();

    let (mut other, twin) = plugged();
    twin.lock().unwrap().restore(state.clone()).unwrap();
    other.root().clone().lock().unwrap().refresh();
    other.settle();
    assert_eq!(twin.lock().unwrap().save(), state);
    assert!(other.intx(), "the pin is driven again");
    for at in 0..0x100 {
        assert_eq!(other.read(at, Byte), bench.read(at, Byte), "at {at:#x}");
    }
    assert_eq!(other.bar_read(4, 0, Qword), 0xfee0_0000);

    // Another function's state is refused, and changes nothing.
    let mut stranger = ConfigSpace::new(common::ID);
    stranger.add_bar(0, BarKind::Io, 32).unwrap();
    let before = stranger.save();
    assert!(stranger.restore(state.0).is_err());
    assert_eq!(stranger.save(), before);
    let mut larger = ConfigSpace::new(common::ID);
    larger.add_bar(0, BarKind::Io, 64).unwrap();
    let mut revised = ConfigSpace::new(trapline_pci::Identity { revision: 0x43, ..common::ID });
    revised.add_bar(0, BarKind::Io, 32).unwrap();
    for mut other in [larger, revised] {
        other.write(regs::BAR0, Dword, 0x1000);
        let error = other.restore(before.clone()).unwrap_err();
        let same_bars = other.bar(0).unwrap().size == 32;
        assert_eq!(error.to_string().contains("register 0x8 "), same_bars);
    }
    stranger.restore(before).unwrap();
}

#[test]
fn what_cannot_be_is_refused() {
    let mut config = ConfigSpace::new(common::ID);
    let memory = BarKind::Memory32 { prefetchable: false };
    let wide = BarKind::Memory64 { prefetchable: true };
    assert_eq!(config.add_bar(6, memory, 16), Err(ConfigError::BarTaken { index: 6 }));
    assert_eq!(config.add_bar(5, wide, 16), Err(ConfigError::BarTaken { index: 5 }));
    assert_eq!(config.add_bar(0, memory, 24), Err(ConfigError::BarSize { index: 0, size: 24 }));
    assert_eq!(config.add_bar(0, memory, 8), Err(ConfigError::BarSize { index: 0, size: 8 }));
    assert_eq!(
        config.add_bar(0, BarKind::Io, 1 << 17),
        Err(ConfigError::BarSize { index: 0, size: 1 << 17 })
    );
    config.add_bar(2, wide, 1 << 40).unwrap();
    for taken in [2, 3] {
        assert_eq!(config.add_bar(taken, memory, 16), Err(ConfigError::BarTaken { index: taken }));
    }
    assert_eq!(config.add_bar(1, wide, 16), Err(ConfigError::BarTaken { index: 1 }));
    let mut bridge = ConfigSpace::bridge(common::ID);
    assert_eq!(bridge.add_bar(2, memory, 16), Err(ConfigError::BarTaken { index: 2 }));
    assert!(config.add_extended_capability(1, 1, &[0; 8], &[]).is_err(), "256 bytes only");
    let sink = std::sync::Arc::new(Recorder::default());
    let layout = trapline_pci::MsixLayout::in_bar(0, 4);
    assert!(config.add_msix(layout, sink).is_err(), "no such bar");
}

#[test]
fn extended_capabilities_are_linked_from_0x100() {
    let mut config = ConfigSpace::express(common::ID);
    config.add_express(trapline_pci::ExpressKind::RootComplexEndpoint).unwrap();
    assert_eq!(config.add_extended_capability(0x0003, 1, &[1; 8], &[]), Ok(0x100));
    assert_eq!(config.add_extended_capability(0x000b, 1, &[2; 4], &[0xff]), Ok(0x10c));
    assert_eq!(config.read(0x100, Dword), 0x10c1_0003);
    assert_eq!(config.read(0x10c, Dword), 0x0001_000b);
    config.write(0x110, Dword, 0xffff_ffff);
    assert_eq!(config.read(0x110, Dword), 0x0202_02ff);
    assert_eq!(config.read(0xffe, Dword), 0xffff_0000, "nothing is behind the end");
    assert_eq!(config.command(), Command::empty());
}

#[test]
fn accesses_that_straddle_the_ports() {
    let (mut bench, _) = plugged();
    bench.io_write(0xcf8, Dword, 0x8000_0800 | u32::from(regs::LATENCY_TIMER) & 0xfc);
    bench.io_write(0xcfc, Dword, 0x0000_4020);
    assert_eq!(bench.io_read(0xcfb, Dword), 0x0040_20ff);
    assert_eq!(bench.io_read(0xcf9, Dword), 0x20ff_ffff);
    assert_eq!(bench.io_read(0xcfd, Dword), 0xff00_0040);
    assert_eq!(bench.io_read(0xcfd, Word), 0x0040);
    bench.io_write(0xcfb, Word, 0x7755);
    assert_eq!(bench.io_read(0xcfc, Word), 0x4077);
    bench.io_write(0xcfd, Dword, 0xffff_ff66);
    assert_eq!(bench.io_read(0xcfc, Word), 0x6677);
    assert_eq!(bench.io_read(0xcf8, Dword), 0x8000_080c, "the address did not change");
}

#[test]
fn cf8_is_a_doubleword_and_cf9_is_the_reset_register() {
    use std::sync::{Arc, Mutex};
    use trapline_device::PortIo;
    use trapline_pci::{ConfigPorts, Effects, PciRoot};

    let root = Arc::new(Mutex::new(PciRoot::new(Effects::new())));
    let mut ports = ConfigPorts::new(root);
    let bench = Bench::new();
    let reset_control = Arc::new(Mutex::new(Example::new(bench.line(), bench.sink())));
    ports.write(0, 0, Dword, 0xffff_ffff);
    assert_eq!(ports.read(0, 0, Dword), 0x80ff_fffc, "reserved bits read zero");
    assert_eq!(ports.read(0, 1, Byte) as u8, 0xff, "nobody is at 0xcf9");
    ports.set_reset_control(reset_control.clone(), 3);
    ports.write(0, 1, Byte, 0x06);
    assert_eq!(reset_control.lock().unwrap().latches[3], 0x06);
    assert_eq!(ports.read(0, 1, Byte), 0x06);
    assert_eq!(ports.read(0, 0, Dword), 0x80ff_fffc, "a byte does not reach the address");
    for (offset, size) in [(0, Byte), (0, Word), (1, Word), (2, Word), (3, Byte)] {
        ports.write(0, offset, size, 0);
        assert_eq!(ports.read(0, offset, size) & size.ones() as u32, size.ones() as u32);
    }
    assert_eq!(reset_control.lock().unwrap().latches[3], 0x06);
    assert_eq!(ports.read(0, 0, Dword), 0x80ff_fffc);
    // Without the enable bit the data port is nobody.
    ports.write(0, 0, Dword, 0x0000_0800);
    assert_eq!(ports.read(0, 4, Dword), 0xffff_ffff);
    let state = ports.save();
    ports.write(0, 0, Dword, 0x8000_0000);
    ports.restore(state).unwrap();
    assert_eq!(ports.read(0, 0, Dword), 0x0000_0800);
}
