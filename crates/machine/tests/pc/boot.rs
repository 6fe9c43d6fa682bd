//! SeaBIOS starts a boot sector from a disk, and a kernel from fw_cfg.

use std::path::Path;

use iced_x86::code_asm::*;
use trapline_machine::pc::{Firmware, Start};
use trapline_machine::{KernelConfig, Outcome};

use crate::harness::*;

/// Where the guest reads its sectors to.
const BUFFER: u32 = 0x9000;
const READ_CHS: u32 = 0x0201;
const READ_LBA: u32 = 0x4200;

/// Guest, in real mode: all segments zero, a stack below the boot sector. DL is the drive, and is kept in BP.
fn start(a: &mut CodeAssembler) -> AsmResult {
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, BOOT as u32)?;
    a.movzx(bp, dl)
}

/// Guest: the second sector by cylinder, head and sector, the third by its number; sends what both hold.
fn read_two_sectors(a: &mut CodeAssembler) -> AsmResult {
    let (mut failed, mut packet) = (a.create_label(), a.create_label());
    start(a)?;
    a.mov(ax, READ_CHS)?;
    a.mov(bx, BUFFER)?;
    a.mov(cx, 2)?; // cylinder 0, sector 2
    a.mov(dx, bp)?;
    a.int(0x13)?;
    a.jc(failed)?;
    a.call(packet)?; // pushes the address of what follows
    a.db(&[16, 0, 1, 0])?; // one sector
    a.dw(&[BUFFER as u16 + 0x200, 0])?; // to here
    a.dd(&[2, 0])?; // of this number
    a.set_label(&mut packet)?;
    a.pop(si)?;
    a.mov(ax, READ_LBA)?;
    a.mov(dx, bp)?;
    a.int(0x13)?;
    a.jc(failed)?;
    a.cli()?; // the firmware's timer sends its own screen to the serial port
    a.mov(si, BUFFER)?;
    print(a)?;
    a.mov(si, BUFFER + 0x200)?;
    print(a)?;
    exit16(a, 1)?;

    a.set_label(&mut failed)?;
    a.shr(ax, 8)?; // the status
    a.mov(dx, DEBUG_EXIT)?;
    a.out(dx, al)
}

/// Two sectors with a text each.
fn texts() -> Vec<u8> {
    let mut sectors = vec![0; 2 * SECTOR];
    for (at, text) in [(0, "the second sector\n"), (SECTOR, "the third sector\n")] {
        sectors[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    sectors
}

#[test]
fn a_boot_sector_reads_further_sectors() {
    if seabios().is_none() {
        return;
    }
    on_every_engine(|accel| {
        let made = machine(
            accel,
            |_| seabios().unwrap(),
            |config, dir| config.drives.push(raw(disk(dir, read_two_sectors, &texts()))),
        );
        let log = made.log.clone();
        let ran = finish(made);
        assert_eq!(ran.outcome, Outcome::DebugExit(3), "{accel}: {}", log.text());
        assert!(ran.output.ends_with("the second sector\nthe third sector\n"), "{accel}: {}", ran.output);
        for line in ["Running on QEMU (i440fx)", "ata0-0: TRAPLINE DISK", "Booting from Hard Disk..."] {
            assert!(log.text().contains(line), "{accel}: no {line:?} in {}", log.text());
        }
    });
}

/// A bzImage of protocol 2.15 whose setup code is `code`, with a text for its protected-mode kernel.
fn bzimage(code: impl FnOnce(&mut CodeAssembler) -> AsmResult) -> Vec<u8> {
    /// Behind the header.
    const CODE: usize = 0x26c;
    let mut asm = CodeAssembler::new(16).unwrap();
    code(&mut asm).unwrap();
    let code = asm.assemble(CODE as u64 - 0x200).unwrap();
    let mut image = vec![0; 1024];
    for (at, bytes) in [
        (0x1f1, [1].as_slice()),                // one sector of setup code
        (0x1f4, &1u32.to_le_bytes()),           // 16 bytes of kernel
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),     // jump over the header
        (0x202, b"HdrS\x0f\x02"),               // version
        (0x211, &[1]),                          // loaded high
        (0x22c, &0x7fff_ffffu32.to_le_bytes()), // limit of the initrd
        (0x236, &3u16.to_le_bytes()),           // xloadflags
        (0x238, &2047u32.to_le_bytes()),        // longest command line
        (CODE, &code),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image.extend(b"kernel at 1 MiB\0");
    image
}

/// Guest: sends its command line and the text at 1 MiB, and exits with the size of its initrd.
fn tell_what_was_loaded(a: &mut CodeAssembler) -> AsmResult {
    /// Where the text goes.
    const TEXT: u32 = 0x9000;
    let (mut descriptors, mut failed) = (a.create_label(), a.create_label());
    a.cli()?;
    a.mov(bp, word_ptr(0x21c))?;
    a.mov(esi, dword_ptr(0x228))?;
    a.mov(eax, esi)?;
    a.shr(eax, 4)?;
    a.and(si, 15)?;
    a.mov(ds, ax)?;
    print(a)?;
    a.call(descriptors)?; // pushes the address of what follows
    a.dd(&[0; 4])?;
    a.dd(&[0x0000_ffff, 0x0000_9310])?; // from 1 MiB
    a.dd(&[TEXT << 16 | 0xffff, 0x0000_9300])?; // to here
    a.dd(&[0; 4])?;
    a.set_label(&mut descriptors)?;
    a.pop(si)?;
    a.push(cs)?;
    a.pop(es)?;
    a.mov(cx, 8)?;
    a.mov(ah, 0x87)?;
    a.int(0x15)?;
    a.jc(failed)?;
    a.cli()?;
    a.mov(ax, TEXT >> 4)?;
    a.mov(ds, ax)?;
    a.xor(si, si)?;
    print(a)?;
    a.set_label(&mut failed)?;
    a.mov(ax, bp)?;
    a.mov(dx, DEBUG_EXIT)?;
    a.out(dx, al)
}

#[test]
fn seabios_starts_a_kernel_from_fw_cfg() {
    let Some(Start::Firmware(firmware)) = seabios() else { return };
    on_every_engine(|accel| {
        let start = |dir: &Path| {
            let (kernel, initrd) = (dir.join("kernel"), dir.join("initrd"));
            std::fs::write(&kernel, bzimage(tell_what_was_loaded)).unwrap();
            std::fs::write(&initrd, [0; 77]).unwrap();
            let kernel = KernelConfig { kernel, initrd: Some(initrd), cmdline: "one two\n".into() };
            Start::Firmware(Firmware { kernel: Some(kernel), ..firmware.clone() })
        };
        // The disk's boot sector is not what is started.
        let made = machine(accel, start, |config, dir| {
            config.drives.push(raw(disk(dir, |a| exit16(a, 1), &[])));
        });
        let log = made.log.clone();
        let ran = finish(made);
        assert_eq!(ran.outcome, Outcome::DebugExit(77 << 1 | 1), "{accel}: {}", log.text());
        assert!(ran.output.ends_with("one two\nkernel at 1 MiB"), "{accel}: {}", ran.output);
    });
}
