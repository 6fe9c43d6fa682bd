//! SMBIOS tables, read the way operating systems and dmidecode read them.

mod common;

use std::process::Command;

use common::*;
use proptest::prelude::*;
use trapline_boot::smbios::{self, Processors, SmbiosConfig, Version};
use trapline_boot::{Error, RamRange, layout};

const GIB: u64 = 1 << 30;

fn machine() -> SmbiosConfig {
    SmbiosConfig {
        serial: "S-0815".to_owned(),
        uuid: Some([
            0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        ]),
        processors: Processors {
            sockets: 2,
            cores: 2,
            threads: 4,
            signature: 0x0006_06c1,
            ..SmbiosConfig::default().processors
        },
        ram: vec![RamRange { base: 0, size: 3 * GIB }, RamRange { base: 4 * GIB, size: 17 * GIB }],
        ..SmbiosConfig::default()
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// A structure's formatted area and strings.
struct Found {
    kind: u8,
    handle: u16,
    area: Vec<u8>,
    strings: Vec<String>,
}

impl Found {
    /// The string whose number is at `at`.
    fn text(&self, at: usize) -> Option<&str> {
        usize::from(self.area[at]).checked_sub(1).map(|number| &*self.strings[number])
    }

    fn number(&self, at: usize, size: usize) -> u64 {
        self.area[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

fn structures(mut rest: &[u8]) -> Vec<Found> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        let area = rest[..rest[1].into()].to_vec();
        rest = &rest[area.len()..];
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = match end {
            0 => Vec::new(),
            _ => rest[..end].split(|b| *b == 0).map(|s| String::from_utf8(s.to_vec()).unwrap()).collect(),
        };
        rest = &rest[end + 2..];
        let handle = u16::from_le_bytes([area[2], area[3]]);
        out.push(Found { kind: area[0], handle, area, strings });
    }
    out
}

#[test]
fn the_entry_points_lead_to_the_tables() {
    let files = smbios::firmware(&machine()).unwrap();
    let count = structures(&files.tables).len() as u16;

    let blob = smbios::build(&machine(), 0xf_0000).unwrap();
    let anchor = &blob[..0x1f];
    assert_eq!((&anchor[..4], anchor[5], sum(anchor)), (&b"_SM_"[..], 0x1f, 0));
    assert_eq!((&anchor[0x10..0x15], sum(&anchor[0x10..])), (&b"_DMI_"[..], 0));
    assert_eq!((anchor[6], anchor[7], anchor[0x1e]), (2, 8, 0x28));
    assert_eq!(anchor[0x16..0x18], (files.tables.len() as u16).to_le_bytes());
    assert_eq!(anchor[0x18..0x1c], 0xf_0020u32.to_le_bytes());
    assert_eq!(anchor[0x1c..0x1e], count.to_le_bytes());
    assert_eq!(blob[32..], files.tables);
    // Firmware fills in the address and the checksums.
    assert_eq!(files.anchor.len(), 0x1f);
    assert_eq!((files.anchor[4], files.anchor[0x15], &files.anchor[0x18..0x1c]), (0, 0, &[0; 4][..]));

    let wide = SmbiosConfig { version: Version::V3_0, ..machine() };
    let blob = smbios::build(&wide, 0x1_0000_0000).unwrap();
    let anchor = &blob[..0x18];
    assert_eq!((&anchor[..5], anchor[6], sum(anchor)), (&b"_SM3_"[..], 0x18, 0));
    assert_eq!((anchor[7], anchor[8]), (3, 0));
    assert_eq!(anchor[0x10..], 0x1_0000_0020u64.to_le_bytes());
    assert!(smbios::build(&machine(), 0x1_0000_0000).is_err());
    assert!(smbios::build(&machine(), 8).is_err());
}

#[test]
fn the_structures_tell_what_the_machine_is() {
    let files = smbios::firmware(&machine()).unwrap();
    let found = structures(&files.tables);
    let kinds: Vec<u8> = found.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [0, 1, 3, 4, 4, 16, 17, 17, 19, 19, 32, 127]);
    let mut handles: Vec<u16> = found.iter().map(|one| one.handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), found.len());
    let of = |kind: u8| found.iter().filter(move |one| one.kind == kind);

    let system = of(1).next().unwrap();
    assert_eq!(
        (system.area.len(), system.text(4), system.text(5)),
        (0x1b, Some("Trapline"), Some("Trapline PC"))
    );
    assert_eq!(system.text(7), Some("S-0815"));
    assert_eq!(system.area[8..16], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);

    let processor = of(4).nth(1).unwrap();
    assert_eq!((processor.area.len(), processor.text(4)), (0x2a, Some("CPU 1")));
    assert_eq!((processor.number(8, 4), &processor.area[0x23..0x26]), (0x0006_06c1, &[2, 2, 4][..]));

    // 20 GiB: 16 and 4.
    let array = of(16).next().unwrap();
    assert_eq!((array.number(7, 4), array.number(0xd, 2)), (20 << 20, 2));
    let sizes: Vec<u64> = of(17).map(|dimm| dimm.number(0xc, 2)).collect();
    assert_eq!(sizes, [16 << 10, 4 << 10]);
    assert!(of(17).all(|dimm| dimm.area.len() == 0x28));
    let ranges: Vec<_> = of(19).map(|range| (range.number(4, 4), range.number(8, 4))).collect();
    assert_eq!(ranges, [(0, (3 << 20) - 1), (4 << 20, (21 << 20) - 1)]);
}

#[test]
fn large_memory_uses_the_extended_fields() {
    let ram = vec![RamRange { base: 0, size: GIB }, RamRange { base: 4 * GIB, size: 64 << 40 }];
    let files = smbios::firmware(&SmbiosConfig { ram, ..machine() }).unwrap();
    let found = structures(&files.tables);
    let of = |kind: u8| found.iter().filter(move |one| one.kind == kind);
    let array = of(16).next().unwrap();
    assert_eq!((array.number(7, 4), array.number(0xf, 8)), (1 << 31, (64 << 40) + GIB));
    assert_eq!(of(17).count(), 513);
    let dimm = of(17).next().unwrap();
    assert_eq!((dimm.number(0xc, 2), dimm.number(0x1c, 4)), (0x7fff, 128 << 10));
    let range = of(19).nth(1).unwrap();
    assert_eq!((range.number(4, 4), range.number(8, 4)), (0xffff_ffff, 0xffff_ffff));
    assert_eq!((range.number(0xf, 8), range.number(0x17, 8)), (4 * GIB, 4 * GIB + (64 << 40) - 1));
}

#[test]
fn they_are_written_where_systems_search() {
    let (memory, _) = memory(2 * MIB);
    assert_eq!(smbios::write(&memory, &machine()).unwrap(), layout::SMBIOS);
    assert_eq!(read::<[u8; 4]>(&memory, layout::SMBIOS), *b"_SM_");
}

#[test]
fn impossible_machines_are_refused() {
    let refused = |change: fn(&mut SmbiosConfig)| {
        let mut config = machine();
        change(&mut config);
        match smbios::firmware(&config) {
            Err(Error::Tables(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(|config| config.serial = "a\0b".to_owned()),
        "smbios text \"a\\0b\": at most 255 bytes without control characters are possible"
    );
    refused(|config| config.product = "x".repeat(256));
    refused(|config| config.processors.sockets = 256);
    refused(|config| config.processors.threads = 1);
    refused(|config| config.ram = vec![RamRange { base: 0, size: 1 }]);
    refused(|config| config.ram = vec![RamRange { base: u64::MAX, size: 4096 }]);
    refused(|config| config.ram = vec![RamRange { base: 0, size: u64::MAX }; 2]);
    refused(|config| {
        config.processors.sockets = 255;
        config.processors.version = "x".repeat(255);
    });
}

#[test]
fn dmidecode_reads_them() {
    for version in [Version::V2_8, Version::V3_0] {
        let dump = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(dump.path(), smbios::build(&SmbiosConfig { version, ..machine() }, 0).unwrap())
            .unwrap();
        let run = Command::new("dmidecode").arg("--from-dump").arg(dump.path()).output();
        let output = match run {
            Ok(output) => output,
            Err(error) => return eprintln!("skipped: dmidecode cannot be started ({error})"),
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{text}");
        for line in [
            "Product Name: Trapline PC",
            "UUID: 00112233-4455-6677-8899-aabbccddeeff",
            "Socket Designation: CPU 1",
            "Core Count: 2",
            "Maximum Capacity: 20 GB",
            "Size: 16 GB",
            "Range Size: 17 GB",
            "System Boot Information",
            "End Of Table",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        for complaint in ["BROKEN", "broken", "Wrong", "Invalid", "<OUT OF SPEC>", "<BAD INDEX>", "TRUNCATED"]
        {
            assert!(!text.contains(complaint), "{complaint}: {text}");
        }
    }
}

proptest! {
    #[test]
    fn tables_of_any_machine_hold_together(
        sizes in prop::collection::vec((0..1u64 << 47, 1 << 10..1u64 << 44), 0..8),
        sockets in 1..256u16,
        cores in 1..300u16,
        threads in 0..300u16,
        text in "[ -~äé]{0,40}",
        wide in any::<bool>(),
    ) {
        let config = SmbiosConfig {
            version: if wide { Version::V3_0 } else { Version::V2_8 },
            serial: text.clone(),
            product: text,
            processors: Processors { sockets, cores, threads: cores + threads, ..machine().processors },
            ram: sizes.into_iter().map(|(base, size)| RamRange { base, size }).collect(),
            ..machine()
        };
        match smbios::firmware(&config) {
            Ok(files) => {
                let found = structures(&files.tables);
                prop_assert_eq!(found.iter().filter(|one| one.kind == 4).count(), usize::from(sockets));
                prop_assert_eq!(found.last().unwrap().kind, 127);
            }
            Err(error) => prop_assert!(!wide && error.to_string().contains("version 2.8 allows"), "{error}"),
        }
    }
}
