//! SeaBIOS starts a boot sector from a disk.

use iced_x86::code_asm::*;
use trapline_machine::Outcome;

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
