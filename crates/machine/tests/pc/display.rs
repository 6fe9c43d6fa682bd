//! The screen: text and graphics, as a guest gets them from the video BIOS.

use std::path::Path;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use trapline_machine::pc::{BootDevice, DriveConfig, Screen, Start, VgaOptions};
use trapline_machine::{KernelConfig, Outcome, Remote};
use trapline_vcpu::Accel;

use crate::harness::*;

/// Where the guest keeps what the video BIOS tells it.
const INFO: u32 = 0x9000;
/// 640 by 480 dots of 32 bits, and the bit that asks for the linear framebuffer.
const MODE: u32 = 0x142;
const LINEAR: u32 = 0x4000;

/// SeaBIOS with its video BIOS, or a word on why there is no test.
fn firmware() -> Option<Start> {
    let firmware = seabios()?;
    let there = VgaOptions::default().bios.is_some();
    if !there {
        eprintln!("skipped: no video BIOS (package seabios)");
    }
    there.then_some(firmware)
}

/// SeaBIOS, which boots `code` from a disk, and the machine's screen.
fn boots(
    accel: Accel,
    firmware: &Start,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> (Machine, Screen) {
    let machine = machine(
        accel,
        |_| firmware.clone(),
        |config, dir| {
            config.drives.push(raw(disk(dir, code, &[])));
        },
    );
    let screen = machine.pc.screen().unwrap();
    (machine, screen)
}

/// Guest in real mode: ends with `(value << 1) | 1`.
fn exit16(a: &mut CodeAssembler, value: u32) -> AsmResult {
    a.mov(dx, DEBUG_EXIT)?;
    a.mov(ax, value)?;
    a.out(dx, al)
}

/// Guest: prints `text` in an attribute at the upper left, by writing to the screen's memory.
fn poke_text(a: &mut CodeAssembler, text: &str, attribute: u8) -> AsmResult {
    a.mov(ax, 0xb800_u32)?;
    a.mov(es, ax)?;
    for (at, byte) in (0..).step_by(2).zip(text.bytes()) {
        a.mov(word_ptr(at).es(), u32::from(byte) | u32::from(attribute) << 8)?;
    }
    Ok(())
}

/// Guest: says hello through the video BIOS and by itself.
fn hello(a: &mut CodeAssembler) -> AsmResult {
    for byte in "\r\nhello by int 10h".bytes() {
        a.mov(ax, 0x0e00 | u32::from(byte))?;
        a.mov(bx, 7)?;
        a.int(0x10)?;
    }
    poke_text(a, "hello by hand", 0x4e)?;
    exit16(a, 1)
}

#[test]
fn the_screen_shows_what_firmware_and_guest_say() {
    let Some(firmware) = firmware() else { return };
    on_every_engine(|accel| {
        let (machine, screen) = boots(accel, &firmware, hello);
        let ran = finish(machine);
        let text = screen.text().unwrap();
        assert_eq!(ran.outcome, Outcome::DebugExit(3), "{accel}: {text}");
        assert!(text.lines().next().unwrap().starts_with("hello by hand"), "{accel}: {text}");
        assert_eq!(text.cell(0, 0).map(|cell| cell.attribute), Some(0x4e));
        for line in ["Booting from Hard Disk...", "hello by int 10h"] {
            assert!(text.contains(line), "{accel}: no {line:?} on\n{text}");
        }
        let picture = screen.picture();
        assert_eq!((picture.width(), picture.height()), (720, 400));
        // Yellow on red, and the letter h begins with its left line.
        let seen = |x, y| picture.pixel(x, y).unwrap();
        assert_eq!((seen(8, 0), seen(1, 4)), ([0xaa, 0, 0], [0xff, 0xff, 0x55]), "{accel}");
    });
}

/// Guest: asks where the framebuffer is, sets a mode, and draws a dot with a segment of 4 GiB.
fn draw(a: &mut CodeAssembler) -> AsmResult {
    let (mut failed, mut flat) = (a.create_label(), a.create_label());
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(di, INFO)?;
    a.mov(cx, MODE)?;
    a.mov(ax, 0x4f01)?;
    a.int(0x10)?;
    a.cmp(ax, 0x004f)?;
    a.jne(failed)?;
    a.mov(bx, MODE | LINEAR)?;
    a.mov(ax, 0x4f02)?;
    a.int(0x10)?;
    a.cmp(ax, 0x004f)?;
    a.jne(failed)?;

    a.cli()?;
    a.call(flat)?; // pushes the address of what follows: a table's limit and address, and the table
    let table = a.instructions().len();
    a.dw(&[15, 0, 0])?;
    a.dq(&[0, 0x00cf_9300_0000_ffff])?;
    assert_eq!(a.instructions().len(), table + 2);
    a.set_label(&mut flat)?;
    a.pop(si)?;
    a.lea(ax, word_ptr(si + 6))?;
    a.mov(word_ptr(si + 2), ax)?;
    a.lgdt(fword_ptr(si))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.mov(bx, 8)?;
    a.mov(fs, bx)?;
    a.and(al, !1)?;
    a.mov(cr0, eax)?;
    a.mov(edi, dword_ptr(INFO + 0x28))?;
    a.mov(dword_ptr(edi + 4 * (640 * 10 + 20)).fs(), 0x00ff_8000_u32)?;
    exit16(a, 1)?;

    a.set_label(&mut failed)?;
    exit16(a, 2)
}

#[test]
fn a_guest_draws_into_the_framebuffer_without_exits() {
    let Some(firmware) = firmware() else { return };
    on_every_engine(|accel| {
        let (machine, screen) = boots(accel, &firmware, draw);
        let ran = finish(machine);
        assert_eq!(ran.outcome, Outcome::DebugExit(3), "{accel}");
        assert!(screen.text().is_none());
        let picture = screen.picture();
        assert_eq!((picture.width(), picture.height()), (640, 480));
        assert_eq!(picture.pixel(20, 10), Some([0xff, 0x80, 0x00]), "{accel}");
        let accesses: Vec<_> = ran.stats.mmio.iter().filter(|region| region.name == "vga:0").collect();
        assert!(matches!(accesses[..], [region] if region.writes == 0 && region.reads == 0), "{accesses:?}");
    });
}

/// Debian's memtest86+: a CD, and a file that starts like a Linux kernel.
const MEMTEST_CD: &str = "/usr/lib/memtest86+/memtest86+x64.iso";
const MEMTEST_KERNEL: &str = "/boot/memtest86+x64.bin";

/// Watches a memory test's screen until its first pass ends; returns what it says last.
fn first_pass(screen: &Screen, remote: &Remote, patience: Duration) -> String {
    let start = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let text = screen.text().map(|text| text.to_string()).unwrap_or_default();
        let field = |name: &str| {
            let (_, behind) = text.split_once(name)?;
            behind.split_whitespace().next()?.parse::<u64>().ok()
        };
        let ended = field("Pass:").is_some_and(|passes| passes > 0);
        let errors = field("Errors:").is_some_and(|errors| errors > 0);
        if ended || errors || start.elapsed() > patience {
            remote.quit();
            return text;
        }
    }
}

/// Runs a memory test from power-on to the end of its first pass. Time counts instructions, so that a test
/// that waits for 80 seconds does not take so long.
fn memtest(start: Start, disc: Option<&str>) {
    let mut machine = machine(
        Accel::Soft,
        |_| start,
        |config, _| {
            config.machine.memory = 5 * MIB; // it moves itself to above 4 MiB
            config.machine.icount = Some(8);
            config.drives.extend(disc.map(DriveConfig::cdrom));
            config.boot = vec![BootDevice::Cdrom];
        },
    );
    let (screen, remote) = (machine.pc.screen().unwrap(), machine.pc.remote());
    let watch = std::thread::spawn(move || first_pass(&screen, &remote, Duration::from_secs(1200)));
    assert_eq!(machine.pc.run().unwrap(), Outcome::UserQuit);
    let text = watch.join().unwrap();
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeezed.contains("Memtest86+"), "{text}");
    assert!(squeezed.contains("Pass: 1 Errors: 0"), "{text}");
}

/// Whether a file of Debian's memtest86+ is there, or a word on why there is no test.
fn there(path: &str) -> bool {
    let there = Path::new(path).exists();
    if !there {
        eprintln!("skipped: no {path} (package memtest86+)");
    }
    there
}

#[test]
fn memtest86_from_a_cd_finds_no_errors() {
    if let Some(firmware) = firmware().filter(|_| there(MEMTEST_CD)) {
        memtest(firmware, Some(MEMTEST_CD));
    }
}

#[test]
fn memtest86_as_a_kernel_finds_no_errors() {
    if there(MEMTEST_KERNEL) {
        memtest(Start::Kernel(KernelConfig::new(MEMTEST_KERNEL)), None);
    }
}
