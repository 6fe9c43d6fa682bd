//! Firmware tables, read the way an operating system reads them: by signature, pointer and checksum.

mod common;

use common::*;
use proptest::prelude::*;
use trapline_boot::acpi::{self, AcpiConfig, IoApic, SmiCommand, VirtioMmio};
use trapline_boot::{Error, layout, mptable};
use vm_memory::{Bytes, GuestAddress};

/// A board with everything on it.
fn full() -> AcpiConfig {
    AcpiConfig {
        apic_ids: vec![0, 1, 300],
        io_apic: Some(IoApic { id: 3, address: 0xfec0_0000, gsi_base: 0 }),
        pic: true,
        timer_override: true,
        gpe0: Some((0x620, 4)),
        smi: Some(SmiCommand { port: 0xb2, enable: 0xf1, disable: 0xf0 }),
        reset: Some((0xcf9, 6)),
        i8042: true,
        rtc: Some(0x32),
        serial: vec![(0x3f8, 4), (0x2f8, 3)],
        virtio_mmio: vec![
            VirtioMmio { address: 0xd000_0000, size: 0x1000, gsi: 16 },
            VirtioMmio { address: 0xd000_1000, size: 0x1000, gsi: 17 },
        ],
        ..AcpiConfig::default()
    }
}

fn bytes(memory: &Memory, address: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    memory.read_slice(&mut out, GuestAddress(address)).unwrap();
    out
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Reads a table, checking its signature, length and checksum.
fn table(memory: &Memory, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let table = bytes(memory, address, read::<u32>(memory, address + 4) as usize);
    assert_eq!(&table[..4], signature);
    if signature != b"FACS" {
        assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(signature));
        assert_eq!(&table[10..24], b"TRAPLNTRAPLINE");
    }
    table
}

/// The tables a guest finds.
struct Found {
    fadt: Vec<u8>,
    madt: Vec<u8>,
    dsdt: Vec<u8>,
}

/// Walks from the RSDP to every table.
fn walk(config: &AcpiConfig) -> Found {
    let (memory, _) = memory(2 * MIB);
    let rsdp_address = acpi::write(&memory, config).unwrap();
    assert!((0xe_0000..0x10_0000).contains(&rsdp_address) && rsdp_address % 16 == 0);
    let rsdp = bytes(&memory, rsdp_address, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp), rsdp[15]), (0, 0, 2));

    let rsdt = table(&memory, u32_at(&rsdp, 16).into(), b"RSDT");
    let xsdt = table(&memory, u64_at(&rsdp, 24), b"XSDT");
    let narrow: Vec<u64> = (36..rsdt.len()).step_by(4).map(|at| u32_at(&rsdt, at).into()).collect();
    let wide: Vec<u64> = (36..xsdt.len()).step_by(8).map(|at| u64_at(&xsdt, at)).collect();
    assert_eq!(narrow, wide);
    assert_eq!(wide.len(), 2);

    let fadt = table(&memory, wide[0], b"FACP");
    let madt = table(&memory, wide[1], b"APIC");
    let facs_address = u32_at(&fadt, 36);
    assert_eq!(facs_address % 64, 0);
    assert_eq!(table(&memory, facs_address.into(), b"FACS").len(), 64);
    assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140));
    let dsdt = table(&memory, u64_at(&fadt, 140), b"DSDT");
    Found { fadt, madt, dsdt }
}

/// Type and content of each MADT structure.
fn structures(madt: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &madt[44..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (one, next) = rest.split_at(rest[1] as usize);
        out.push(one.to_vec());
        rest = next;
    }
    out
}

#[test]
fn the_fadt_describes_the_fixed_hardware() {
    let Found { fadt, .. } = walk(&full());
    assert_eq!(fadt.len(), 276);
    let half = |at: usize| u16::from_le_bytes([fadt[at], fadt[at + 1]]);
    assert_eq!(half(46), 9); // SCI_INT
    assert_eq!((u32_at(&fadt, 48), fadt[52], fadt[53]), (0xb2, 0xf1, 0xf0)); // SMI_CMD, enable, disable
    assert_eq!([56, 64, 76, 80].map(|at| u32_at(&fadt, at)), [0x600, 0x604, 0x608, 0x620]);
    assert_eq!((fadt[88], fadt[89], fadt[91], fadt[92]), (4, 2, 4, 4)); // lengths of the same
    assert_eq!(fadt[108], 0x32); // CENTURY
    assert_eq!(half(109), 0b0111); // legacy devices, 8042, no VGA
    let flags = u32_at(&fadt, 112);
    assert_eq!(flags >> 20 & 1, 0); // not hardware-reduced
    assert_eq!(flags >> 4 & 1, 0); // power button is fixed hardware
    assert_eq!((flags >> 10 & 1, fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 1, 0xcf9, 6)); // reset
    for (at, port, bits) in [(148, 0x600, 32), (172, 0x604, 16), (208, 0x608, 32), (220, 0x620, 32)] {
        assert_eq!((fadt[at], fadt[at + 1], u64_at(&fadt, at + 4)), (1, bits, port));
    }
}

#[test]
fn a_board_without_smi_is_always_in_acpi_mode() {
    let Found { fadt, .. } = walk(&AcpiConfig::default());
    assert_eq!((u32_at(&fadt, 48), fadt[52], fadt[53]), (0, 0, 0));
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b10_0100); // no VGA, no RTC
    assert_eq!(u32_at(&fadt, 112) >> 10 & 1, 0); // no reset register
}

#[test]
fn the_madt_names_processors_and_interrupt_routes() {
    let Found { madt, .. } = walk(&full());
    assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 1));
    assert_eq!(
        structures(&madt),
        [
            vec![0, 8, 0, 0, 1, 0, 0, 0],
            vec![0, 8, 1, 1, 1, 0, 0, 0],
            vec![9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
            vec![1, 12, 3, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            vec![2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0],
            vec![4, 6, 0xff, 0, 0, 1],
            vec![0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        ]
    );
}

#[test]
fn the_dsdt_names_the_devices_that_are_there() {
    let count = |dsdt: &[u8], id: &[u8]| dsdt.windows(id.len()).filter(|window| *window == id).count();
    // Compressed EISA IDs of PNP0501, PNP0B00, PNP0303 and PNP0F13.
    let ids: [&[u8]; 4] =
        [b"\x41\xd0\x05\x01", b"\x41\xd0\x0b\x00", b"\x41\xd0\x03\x03", b"\x41\xd0\x0f\x13"];
    let Found { dsdt, .. } = walk(&full());
    assert_eq!(ids.map(|id| count(&dsdt, id)), [2, 1, 1, 1]);
    assert_eq!(count(&dsdt, b"LNRO0005"), 2);
    assert_eq!(count(&dsdt, b"ACPI0007"), 3);
    assert_eq!(count(&dsdt, b"_S5_\x12\x08\x04\x0a\x05\x0a\x05"), 1);
    let Found { dsdt, .. } = walk(&AcpiConfig::default());
    assert_eq!(ids.map(|id| count(&dsdt, id)), [0; 4]);
    assert_eq!(count(&dsdt, b"LNRO0005"), 0);
}

#[test]
fn impossible_boards_are_refused() {
    let fail = |config: AcpiConfig| match acpi::build(&config, 0xe_0000) {
        Err(Error::Tables(reason)) => reason,
        other => panic!("{other:?}"),
    };
    fail(AcpiConfig { apic_ids: vec![], ..full() });
    fail(AcpiConfig { s5_sleep_type: 8, ..full() });
    fail(AcpiConfig { virtio_mmio: vec![full().virtio_mmio[0]; 257], ..full() });
    assert!(acpi::build(&full(), 0xe_0001).is_err());
    assert!(acpi::build(&full(), 1 << 32).is_err());
    let (memory, _) = memory(MIB / 2);
    assert!(matches!(acpi::write(&memory, &full()), Err(Error::Memory { address: 0xe_0000, .. })));
}

#[test]
fn the_mp_table_holds_together() {
    let (memory, _) = memory(2 * MIB);
    let config = AcpiConfig { apic_ids: vec![0, 1], ..full() };
    let address = mptable::write(&memory, &config).unwrap();
    assert_eq!(address, layout::EBDA);
    let pointer = bytes(&memory, address, 16);
    assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
    let base = u64::from(u32_at(&pointer, 4));
    let table = bytes(&memory, base, read::<u16>(&memory, base + 4).into());
    assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
    assert_eq!(u32_at(&table, 36), 0xfee0_0000);

    let mut rest = &table[44..];
    let mut kinds = [0u16; 5];
    let mut timer_pin = None;
    while let Some(&kind) = rest.first() {
        kinds[usize::from(kind)] += 1;
        if kind == 3 && rest[5] == 0 {
            timer_pin = Some(rest[7]);
        }
        rest = &rest[if kind == 0 { 20 } else { 8 }..];
    }
    assert_eq!(kinds, [2, 1, 1, 15, 2]);
    assert_eq!(kinds.iter().sum::<u16>(), u16::from_le_bytes([table[34], table[35]]));
    assert_eq!(timer_pin, Some(2));
    assert!(mptable::build(&full(), 0x9_fc00).is_err()); // APIC ID 300
}

proptest! {
    #[test]
    fn tables_of_any_board_hold_together(
        apic_ids in prop::collection::vec(any::<u32>(), 1..64),
        ports in any::<[u16; 4]>(),
        sci in any::<u8>(),
        gpe0 in prop::option::of(any::<(u16, u8)>()),
        reset in prop::option::of(any::<(u16, u8)>()),
        serial in prop::collection::vec(any::<(u16, u8)>(), 0..5),
        virtio in prop::collection::vec(any::<(u32, u32, u32)>(), 0..32),
        flags in any::<[bool; 4]>(),
    ) {
        let config = AcpiConfig {
            apic_ids, sci, gpe0, reset, serial,
            pm1a_event: ports[0], pm1a_control: ports[1], pm_timer: flags[0].then_some(ports[2]),
            pic: flags[1], vga: flags[2], timer_override: flags[3],
            io_apic: flags[0].then_some(IoApic { id: 1, address: 0xfec0_0000, gsi_base: 0 }),
            virtio_mmio: virtio.iter().map(|&(address, size, gsi)| VirtioMmio { address, size, gsi }).collect(),
            ..AcpiConfig::default()
        };
        let processors = config.apic_ids.len();
        let found = walk(&config);
        let named = structures(&found.madt).iter().filter(|entry| matches!(entry[0], 0 | 9)).count();
        prop_assert_eq!(named, processors);
    }
}
