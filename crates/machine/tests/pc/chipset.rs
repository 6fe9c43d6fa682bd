//! The chipset through its ports, with no processor running.

use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_machine::pc::{Firmware, GuestAccess, Start};
use trapline_machine::{MachineConfig, Pc, PcConfig, Serial};
use trapline_vcpu::Accel;

use crate::harness::*;

/// A machine whose firmware is a pattern: each byte of the last 128 KiB tells its place.
fn board() -> Pc {
    board_with(|_| ())
}

fn board_with(change: impl FnOnce(&mut PcConfig)) -> Pc {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("rom");
    let pattern: Vec<u8> = (0..0x4_0000_u32).map(|at| (at >> 12) as u8).collect();
    std::fs::write(&image, pattern).unwrap();
    let mut config = PcConfig::new(Start::Firmware(Firmware::new(image)));
    config.machine =
        MachineConfig { memory: 16 * MIB, accel: Accel::Soft, serial: Serial::Null, ..Default::default() };
    change(&mut config);
    Pc::new(config).unwrap()
}

fn config_read(access: &mut GuestAccess<'_>, function: u32, register: u32) -> u32 {
    access.port_write(0xcf8, Dword, 1 << 31 | function << 8 | register).unwrap();
    access.port_read(0xcfc, Dword)
}

fn config_write(access: &mut GuestAccess<'_>, function: u32, register: u32, value: u8) {
    access.port_write(0xcf8, Dword, 1 << 31 | function << 8 | register & !3).unwrap();
    access.port_write(0xcfc + (register & 3) as u16, Byte, value.into()).unwrap();
}

const PIIX3: u32 = 1 << 3;

#[test]
fn the_functions_are_those_of_an_i440fx() {
    let mut pc = board();
    let mut access = pc.access();
    let found: Vec<(u32, u32)> = (0..256)
        .map(|function| (function, config_read(&mut access, function, 0)))
        .filter(|(_, id)| *id != u32::MAX)
        .collect();
    let expected = [
        (0, 0x1237_8086),
        (PIIX3, 0x7000_8086),
        (PIIX3 | 1, 0x7010_8086),
        (PIIX3 | 3, 0x7113_8086),
        (2 << 3, 0x1111_1234),
    ];
    assert_eq!(found, expected);
    // No SMM: firmware is told that SMIs are set up.
    assert_eq!(config_read(&mut access, PIIX3 | 3, 0x58), 1 << 25);
}

#[test]
fn pam_registers_show_rom_or_ram() {
    const PAM0: u32 = 0x59;
    const F: u64 = 0xf_0000;
    let mut pc = board();
    let mut access = pc.access();
    // After power-on, ROM: the last 64 KiB of it, which is also at the end of 4 GiB.
    assert_eq!(access.memory_read(F, Byte), 0x30);
    assert_eq!(access.memory_read(0xffff_fff0, Dword), 0x3f3f_3f3f);
    access.memory_write(F, Byte, 1).unwrap();
    assert_eq!(access.memory_read(F, Byte), 0x30);
    // Read ROM, write RAM.
    config_write(&mut access, 0, PAM0, 0x20);
    access.memory_write(F, Qword, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(access.memory_read(F, Byte), 0x30);
    // Read RAM, write nowhere.
    config_write(&mut access, 0, PAM0, 0x10);
    assert_eq!(access.memory_read(F, Qword), 0x1122_3344_5566_7788);
    access.memory_write(F, Byte, 0).unwrap();
    assert_eq!(access.memory_read(F, Byte), 0x88);
    // RAM.
    config_write(&mut access, 0, PAM0, 0x30);
    access.memory_write(F, Byte, 0x99).unwrap();
    assert_eq!(access.memory_read(F, Word), 0x7799);
    // Other segments are as they were.
    assert_eq!(access.memory_read(0xe_f000, Byte), 0x2f);
    assert_eq!(access.memory_read(0xc_8000, Byte), 0xff);
}

#[test]
fn power_management_is_where_the_piix4_says() {
    let mut pc = board();
    let mut access = pc.access();
    assert_eq!(access.port_read(0x608, Dword), u32::MAX);
    config_write(&mut access, PIIX3 | 3, 0x41, 0x06); // PMBASE 0x600
    config_write(&mut access, PIIX3 | 3, 0x80, 0x01);
    assert_ne!(access.port_read(0x608, Dword), u32::MAX);
    assert_eq!(access.port_read(0x604, Word), 1, "always in ACPI mode");
    config_write(&mut access, PIIX3 | 3, 0x41, 0xb0);
    assert_eq!(access.port_read(0x604, Word), 0xffff);
    assert_eq!(access.port_read(0xb004, Word), 1);
}

#[test]
fn the_hpet_counts_and_takes_interrupt_0_over() {
    const HPET: u64 = 0xfed0_0000;
    let mut pc = board();
    let mut access = pc.access();
    assert_eq!(access.memory_read(HPET, Dword), 0x8086_a201);
    // Lines 16 to 23 of the I/O APIC.
    assert_eq!(access.memory_read(HPET + 0x104, Dword), 0x00ff_0000);
    access.memory_write(HPET + 0x100, Qword, 1 << 2).unwrap(); // timer 0: enabled, edge
    access.memory_write(HPET + 0x108, Qword, 1000).unwrap();
    assert_eq!(access.port_read(0x20, Byte) & 1, 0); // IRR of the first 8259A
    access.memory_write(HPET + 0x10, Qword, 3).unwrap(); // run, legacy replacement
    while access.memory_read(HPET + 0xf0, Qword) < 1000 {}
    access.poll();
    assert_eq!(access.port_read(0x20, Byte) & 1, 1);
}

#[test]
fn the_smbus_is_where_the_piix4_says_and_empty() {
    let mut pc = board();
    let mut access = pc.access();
    assert_eq!(access.port_read(0x700, Byte), 0xff);
    config_write(&mut access, PIIX3 | 3, 0x91, 0x07); // SMBBA 0x700
    config_write(&mut access, PIIX3 | 3, 0xd2, 0x01);
    assert_eq!(access.port_read(0x700, Byte), 0);
    access.port_write(0x704, Byte, 0xa1).unwrap();
    access.port_write(0x702, Byte, 0x48).unwrap();
    assert_eq!(access.port_read(0x700, Byte), 4); // nobody acknowledges
}

#[test]
fn the_parallel_port_prints() {
    let paper = Output::default();
    let printer = Box::new(paper.clone());
    let mut pc = board_with(|config| config.printer = Some(printer));
    let mut access = pc.access();
    for byte in *b"hello, world\n" {
        access.port_write(0x378, Byte, byte.into()).unwrap();
        access.port_write(0x37a, Byte, 0x0d).unwrap();
        access.port_write(0x37a, Byte, 0x0c).unwrap();
    }
    assert_eq!(paper.text(), "hello, world\n");
}

#[test]
fn dma_controllers_have_registers_and_nothing_more() {
    let mut pc = board();
    let mut access = pc.access();
    for port in [0x00, 0xc4, 0x81, 0x8f] {
        access.port_write(port, Byte, 0x5a).unwrap();
    }
    access.port_write(0x0c, Byte, 0).unwrap();
    access.port_write(0xd8, Byte, 0).unwrap();
    assert_eq!([0x00, 0xc4, 0x81, 0x8f].map(|port| access.port_read(port, Byte)), [0x5a; 4]);
}

#[test]
fn what_a_pc_need_not_have_reads_all_ones() {
    let mut pc = board();
    let mut access = pc.access();
    // Floppy, super-I/O, COM2, COM3, COM4.
    for port in [0x3f0, 0x3f5, 0x2e, 0x4e, 0x2f8, 0x3e8, 0x2e8] {
        access.port_write(port, Byte, 0x55).unwrap();
        assert_eq!(access.port_read(port, Byte), 0xff, "{port:#x}");
    }
}
