//! Kernels that firmware starts: the items of fw_cfg, and the option ROM.

mod common;

use common::*;
use trapline_boot::firmware::{FirmwareKernel, option_rom};
use trapline_boot::{Error, Request};

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn a_bzimage_is_taken_apart_and_its_header_filled_in() {
    let files = Files::new();
    let (kernel, initrd) = (files.file("kernel", &bzimage()), files.file("initrd", &[7; 5000]));
    let mut request = Request::new(&kernel);
    (request.initrd, request.command_line) = (Some(initrd.as_path()), "console=ttyS0");
    let (_, ram) = memory(32 * MIB);
    let FirmwareKernel { setup, kernel, initrd, command_line } =
        FirmwareKernel::load(&request, &ram).unwrap();
    assert_eq!((setup.data.len(), kernel.data.as_slice()), (1024, [0xaa; 4096].as_slice()));
    assert_eq!(kernel.address, MIB as u32);
    assert_eq!(command_line.data, b"console=ttyS0\0");
    assert_eq!(initrd.data, [7; 5000]);
    // As high as the firmware's own memory, the last MiB, lets it be, and not where the kernel unpacks itself.
    let address = u64::from(initrd.address);
    assert!(address % 4096 == 0 && address + 5000 <= 31 * MIB && address > 30 * MIB, "{address:#x}");
    assert_eq!((u32_at(&setup.data, 0x218), u32_at(&setup.data, 0x21c)), (initrd.address, 5000));
    assert_eq!(u32_at(&setup.data, 0x228), command_line.address);
    assert_eq!((setup.data[0x210], setup.data[0x211]), (0xff, 0x81));
    // Setup code, its heap and its stack end before the command line.
    assert!(setup.address + 0x1_0000 <= command_line.address);
    // What is not the loader's is as in the file.
    let mut same = setup.data.clone();
    for field in [0x210..0x212, 0x218..0x220, 0x224..0x226, 0x228..0x22c] {
        same[field.clone()].copy_from_slice(&bzimage()[field]);
    }
    assert_eq!(same, bzimage()[..1024]);
}

#[test]
fn an_old_kernel_keeps_what_follows_its_short_header() {
    let files = Files::new();
    let mut image = bzimage();
    image[0x201] = 0x2e; // the header ends at 0x230
    image[0x206..0x208].copy_from_slice(&0x204u16.to_le_bytes());
    image[0x230..0x264].fill(0x90);
    let kernel = files.file("kernel", &image);
    let (_, ram) = memory(32 * MIB);
    let loaded = FirmwareKernel::load(&Request::new(&kernel), &ram).unwrap();
    assert_eq!(loaded.setup.data[0x230..0x264], [0x90; 0x34]);
    assert!(loaded.initrd.data.is_empty());
}

#[test]
fn what_firmware_cannot_start_is_refused_in_one_line() {
    let files = Files::new();
    let (_, ram) = memory(8 * MIB);
    let refused = |content: &[u8], initrd: Option<&[u8]>, command_line: &str| {
        let kernel = files.file("kernel", content);
        let initrd = initrd.map(|content| files.file("initrd", content));
        let mut request = Request::new(&kernel);
        (request.initrd, request.command_line) = (initrd.as_deref(), command_line);
        let error: Error = FirmwareKernel::load(&request, &ram).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        error.to_string()
    };
    let mut elf = vmlinux(None);
    elf.resize(1024, 0);
    assert!(refused(&elf, None, "").contains("bzImage"));
    assert!(refused(b"", None, "").contains("kernel"));
    assert!(refused(&bzimage()[..0x208], None, "").contains("kernel"));
    assert!(refused(&bzimage()[..1024], None, "").contains("kernel"));
    let mut long = bzimage();
    long[0x1f1] = 0xff;
    long.resize(1 << 20, 0);
    assert!(refused(&long, None, "").contains("setup code"));
    assert!(refused(&bzimage(), Some(b""), "").contains("empty"));
    assert!(refused(&bzimage(), Some(&[1; 7 << 20]), "").contains("initrd"));
    assert!(refused(&bzimage(), None, &"x".repeat(3000)).contains("command line"));
}

#[test]
fn the_option_rom_is_a_plug_and_play_boot_device() {
    let rom = option_rom();
    assert_eq!(rom.len(), usize::from(rom[2]) * 512);
    assert_eq!(rom[..2], [0x55, 0xaa]);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum(&rom), 0);
    let pnp = &rom[usize::from(u16_at(&rom, 0x1a))..];
    assert_eq!(&pnp[..5], b"$PnP\x01");
    assert_eq!(sum(&pnp[..usize::from(pnp[5]) * 16]), 0);
    assert_eq!(u16_at(pnp, 6), 0); // no further header
    let name = &rom[usize::from(u16_at(pnp, 0x10))..];
    assert!(name.starts_with(b"Linux from fw_cfg\0"));
    let entry = usize::from(u16_at(pnp, 0x1a));
    assert!(entry > 0x60 && entry < rom.len());
}
