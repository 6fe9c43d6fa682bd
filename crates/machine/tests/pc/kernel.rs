//! Kernels without firmware: what the board has set up for them, disks, interrupts, processors.

use iced_x86::code_asm::*;
use trapline_machine::Outcome;
use trapline_machine::pc::DriveConfig;
use trapline_vcpu::Accel;

use crate::harness::*;

const IDE: u32 = 0x1f0;
const STATUS: u32 = IDE + 7;
/// Where the guest has buffers, below its code.
const BUFFER: u32 = 0x2_0000;
const LAPIC_EOI: u32 = 0xfee0_00b0;
const LAPIC_SVR: u32 = 0xfee0_00f0;

/// Guest: waits until the primary channel's drive is not busy. Status is in AL.
fn wait_ready(a: &mut CodeAssembler) -> AsmResult {
    let mut again = a.create_label();
    a.mov(edx, STATUS)?;
    a.set_label(&mut again)?;
    a.in_(al, dx)?;
    a.test(al, 0x80)?;
    a.jne(again)
}

/// Guest: a command for the primary master, on one sector from 0.
fn command(a: &mut CodeAssembler, code: u32) -> AsmResult {
    for (port, value) in [(2, 1), (3, 0), (4, 0), (5, 0), (6, 0xe0), (7, code)] {
        out(a, IDE + port, value)?;
    }
    Ok(())
}

/// A disk whose first sector says so.
fn with_disk(config: &mut trapline_machine::PcConfig, dir: &std::path::Path) {
    let path = dir.join("disk.img");
    let mut image = vec![0; 1 << 20];
    image[..11].copy_from_slice(b"first block");
    std::fs::write(&path, image).unwrap();
    config.drives.push(DriveConfig { index: Some(0), ..raw(path) });
}

#[test]
fn a_kernel_powers_the_machine_off() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            say(a, "hello")?;
            a.mov(edx, 0x604)?; // PM1a control: SLP_EN, SLP_TYP 0
            a.mov(eax, 1 << 13)?;
            a.out(dx, ax)?;
            say(a, "too late")
        });
        let ran = finish(machine(accel, guest, |_, _| {}));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::PowerOff, "hello"), "{accel}");
    });
}

#[test]
fn a_reset_loads_the_kernel_again() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            let (mut flag, mut again) = (a.create_label(), a.create_label());
            a.call(flag)?; // pushes the address of the byte
            a.db(b"\0")?;
            a.set_label(&mut flag)?;
            a.pop(esi)?;
            a.cmp(byte_ptr(0x3_0000), 1)?; // RAM that the kernel is not loaded to
            a.je(again)?;
            a.mov(byte_ptr(0x3_0000), 1)?;
            a.mov(byte_ptr(esi), 1)?;
            out(a, 0xcf9, 6)?;
            a.set_label(&mut again)?;
            a.movzx(eax, byte_ptr(esi))?;
            a.mov(edx, DEBUG_EXIT)?;
            a.out(dx, al)
        });
        assert_eq!(finish(machine(accel, guest, |_, _| {})).outcome, Outcome::DebugExit(1), "{accel}");
    });
}

#[test]
fn a_sector_is_read_by_words_and_interrupts_through_the_pic() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            gate(a, 0x2e, handler)?;
            start_pic(a, 0xbffb)?; // IRQ 14 and the cascade
            command(a, 0x20)?; // READ SECTORS
            wait(a, &mut idle)?;
            a.set_label(&mut handler)?;
            a.mov(edi, BUFFER)?;
            a.mov(ecx, 256)?;
            a.mov(edx, IDE)?;
            a.cld()?;
            a.rep().insw()?;
            a.mov(esi, BUFFER)?;
            a.mov(ecx, 11)?;
            a.mov(edx, COM1)?;
            a.rep().outsb()?;
            exit(a, 1)
        });
        let trace = tempfile::NamedTempFile::new().unwrap();
        let ran = finish(machine(accel, guest, |config, dir| {
            config.machine.trace = Some(trace.path().to_owned());
            with_disk(config, dir);
        }));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(3), "first block"), "{accel}");
        let events = std::fs::read_to_string(trace.path()).unwrap();
        let drive = events.lines().find(|line| line.contains("\"drive 0\"")).expect("a track of its own");
        let track = &drive[drive.find("\"tid\"").unwrap()..drive.find(",\"args\"").unwrap()];
        let on_track = |what: &str| events.lines().any(|line| line.contains(track) && line.contains(what));
        assert!(on_track("\"name\":\"read\",\"ph\":\"b\""), "{accel}: {events}");
        assert!(on_track("\"bytes\":512") && on_track("\"ph\":\"e\""), "{accel}: {events}");
        assert!(events.contains("\"name\":\"irq\"") && events.contains("\"line\":14"), "{accel}: {events}");
    });
}

/// FLUSH CACHE is never done on the thread that asks for it: the event loop takes its end, and the drive
/// interrupts then.
#[test]
fn a_flush_interrupts_through_the_ioapic_when_it_is_done() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            gate(a, 0x4e, handler)?;
            start_pic(a, 0xffff)?;
            a.mov(dword_ptr(LAPIC_SVR), 0x1ff)?;
            for (register, value) in [(0x10 + 14 * 2 + 1, 0), (0x10 + 14 * 2, 0x4e)] {
                a.mov(dword_ptr(0xfec0_0000_u32), register)?;
                a.mov(dword_ptr(0xfec0_0010_u32), value)?;
            }
            a.xor(edi, edi)?;
            command(a, 0xe7)?;
            wait(a, &mut idle)?;
            a.set_label(&mut handler)?;
            wait_ready(a)?; // and the interrupt is acknowledged
            a.mov(dword_ptr(LAPIC_EOI), 0)?;
            command(a, 0xe7)?;
            a.inc(edi)?;
            a.cmp(edi, 10)?;
            a.jb(idle)?;
            exit(a, 10)
        });
        assert_eq!(finish(machine(accel, guest, with_disk)).outcome, Outcome::DebugExit(21), "{accel}");
    });
}

const BUS_MASTER: u32 = 0xc000;
const TABLE: u32 = 0x1_0000;

/// Guest: reads the first sector by DMA and says what it begins with.
fn read_by_dma(a: &mut CodeAssembler) -> AsmResult {
    let (mut wait, mut wrong) = (a.create_label(), a.create_label());
    // The board has placed BAR 4 and enabled it.
    config(a, SOUTH | 1, 0x20)?;
    a.in_(eax, dx)?;
    a.cmp(eax, (BUS_MASTER | 1) as i32)?;
    a.jne(wrong)?;
    a.mov(dword_ptr(TABLE), BUFFER)?;
    a.mov(dword_ptr(TABLE + 4), 1 << 31 | SECTOR as u32)?;
    a.mov(edx, BUS_MASTER + 4)?;
    a.mov(eax, TABLE)?;
    a.out(dx, eax)?;
    command(a, 0xc8)?; // READ DMA
    out(a, BUS_MASTER, 0x09)?; // to memory, start
    a.mov(edx, BUS_MASTER + 2)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 4)?; // interrupt
    a.je(wait)?;
    a.mov(esi, BUFFER)?;
    a.mov(ecx, 11)?;
    a.mov(edx, COM1)?;
    a.rep().outsb()?;
    exit(a, 1)?;
    a.set_label(&mut wrong)?;
    exit(a, 2)
}

/// The transfer and its interrupt are in the trace.
#[test]
fn a_sector_comes_by_dma() {
    on_every_engine(|accel| {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let ran = finish(machine(accel, direct(read_by_dma), |config, dir| {
            config.machine.trace = Some(trace.path().to_owned());
            with_disk(config, dir);
        }));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(3), "first block"), "{accel}");
        let events = std::fs::read_to_string(trace.path()).unwrap();
        let drive = events.lines().find(|line| line.contains("\"drive 0\"")).expect("a track of its own");
        let track = &drive[drive.find("\"tid\"").unwrap()..drive.find(",\"args\"").unwrap()];
        let on_track = |what: &str| events.lines().any(|line| line.contains(track) && line.contains(what));
        assert!(on_track("\"name\":\"read\",\"ph\":\"b\""), "{accel}: {events}");
        assert!(on_track("\"bytes\":512") && on_track("\"ph\":\"e\""), "{accel}: {events}");
        assert!(events.contains("\"name\":\"irq\"") && events.contains("\"line\":14"), "{accel}: {events}");
    });
}

/// Two runs that count instructions do the same at the same time, transfers of disks included.
#[test]
fn counted_time_does_not_depend_on_the_disk() {
    let traces = [(); 2].map(|()| {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let ran = finish(machine(Accel::Soft, direct(read_by_dma), |config, dir| {
            config.machine.icount = Some(0);
            config.machine.trace = Some(trace.path().to_owned());
            with_disk(config, dir);
        }));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(3), "first block"));
        std::fs::read_to_string(trace.path()).unwrap()
    });
    assert!(traces[0].contains("\"name\":\"read\""), "{}", traces[0]);
    assert_eq!(traces[0], traces[1]);
}

/// One processor turns 0xf0000 from RAM to ROM and back while the other executes elsewhere and writes.
#[test]
fn memory_changes_under_another_processor() {
    const ICR: u32 = 0xfee0_0300;
    const START: u32 = 0x4_0000;
    const TURNS: u32 = 200;
    on_every_engine(|accel| {
        let guest = direct(|a| {
            let (mut other, mut begin, mut wait, mut turn) =
                (a.create_label(), a.create_label(), a.create_label(), a.create_label());
            let mut wrong = a.create_label();
            a.mov(dword_ptr(0x5_0000), 0)?;
            a.call(begin)?; // pushes the address of the other processor's code
            a.set_label(&mut other)?;
            // Real mode: mov ax, 5000h; mov ds, ax; again: inc dword [0]; jmp again
            a.db(&[0xb8, 0x00, 0x50, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x00, 0xeb, 0xf9])?;
            a.set_label(&mut begin)?;
            a.pop(esi)?;
            a.mov(edi, START)?;
            a.mov(ecx, 12)?;
            a.cld()?;
            a.rep().movsb()?;
            a.mov(dword_ptr(LAPIC_SVR), 0x1ff)?;
            a.mov(dword_ptr(ICR), 0x000c_4500)?;
            a.mov(dword_ptr(ICR), 0x000c_4600 | START >> 12)?;
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(0x5_0000), 0)?;
            a.je(wait)?;
            a.mov(dword_ptr(0xf_0000), 0x1234)?;
            a.mov(ecx, TURNS)?;
            a.set_label(&mut turn)?;
            config(a, 0, PAM0)?;
            a.mov(al, PAM_ROM)?;
            a.out(dx, al)?;
            a.cmp(dword_ptr(0xf_0000), -1)?; // there is no firmware
            a.jne(wrong)?;
            a.mov(al, PAM_RAM)?;
            a.out(dx, al)?;
            a.cmp(dword_ptr(0xf_0000), 0x1234)?;
            a.jne(wrong)?;
            a.dec(ecx)?;
            a.jne(turn)?;
            exit(a, 1)?;
            a.set_label(&mut wrong)?;
            exit(a, 2)
        });
        let ran = finish(machine(accel, guest, |config, _| config.machine.cpus = 2));
        assert_eq!(ran.outcome, Outcome::DebugExit(3), "{accel}");
    });
}
