//! The PS/2 keyboard: typed on from outside, read through the BIOS.

use std::process::Command;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use trapline_machine::pc::{BootDevice, DriveConfig, Screen, Start};
use trapline_machine::{Key, Outcome, Remote};
use trapline_vcpu::Accel;

use crate::harness::*;

/// Scan codes of set 1.
const H: u16 = 0x23;
const I: u16 = 0x17;
const SHIFT: u16 = 0x2a;
const ENTER: u16 = 0x1c;
const DOWN: u16 = 0xe050;

/// Longer than any guest takes to show what is waited for.
const PATIENCE: Duration = Duration::from_secs(150);

/// Waits until the screen says `text`; false if it never does.
fn shows(screen: &Screen, text: &str) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if screen.text().is_some_and(|screen| screen.contains(text)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Presses keys down or lets them go, as fast as the guest reads them.
fn strike(remote: &Remote, keys: impl IntoIterator<Item = (u16, bool)>) {
    for (code, pressed) in keys {
        let key = Key::from_set1(code).unwrap();
        while !remote.key(key, pressed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Presses a key and lets it go.
fn tap(key: u16) -> [(u16, bool); 2] {
    [(key, true), (key, false)]
}

/// Starts a machine, and once its screen says `prompt`, does `then` with it. Returns how it ended.
fn converse(
    mut machine: Machine,
    prompt: &'static str,
    then: impl FnOnce(&Remote) + Send + 'static,
) -> Outcome {
    let (screen, remote) = (machine.pc.screen().unwrap(), machine.pc.remote());
    let last = screen.clone();
    let user = std::thread::spawn(move || {
        if shows(&screen, prompt) {
            then(&remote);
        } else {
            remote.quit();
        }
    });
    let (outcome, late) = watched(machine.pc.remote(), 2 * PATIENCE, || machine.pc.run().unwrap());
    user.join().unwrap();
    assert!(!late, "{}", last.text().unwrap());
    outcome
}

/// Guest: a prompt, and then each character back by the serial port, until Enter.
fn echo(a: &mut CodeAssembler) -> AsmResult {
    let mut next = a.create_label();
    for byte in "keys?".bytes() {
        a.mov(ax, 0x0e00 | u32::from(byte))?;
        a.mov(bx, 7)?;
        a.int(0x10)?;
    }
    a.set_label(&mut next)?;
    a.xor(ax, ax)?;
    a.int(0x16)?;
    a.mov(dx, COM1)?;
    a.out(dx, al)?;
    a.cmp(al, 0x0d)?;
    a.jne(next)?;
    a.mov(dx, DEBUG_EXIT)?;
    a.mov(al, 1)?;
    a.out(dx, al)
}

#[test]
fn what_is_typed_arrives_through_the_bios() {
    let Some(firmware) = seabios() else { return };
    on_every_engine(|accel| {
        let machine = machine(
            accel,
            |_| firmware.clone(),
            |config, dir| {
                config.drives.push(raw(disk(dir, echo, &[])));
            },
        );
        let serial = machine.serial.clone();
        let outcome = converse(machine, "keys?", |remote| {
            let shifted = [(SHIFT, true), (H, true), (H, false), (SHIFT, false)];
            strike(remote, shifted.into_iter().chain(tap(I)).chain(tap(ENTER)));
        });
        assert_eq!(outcome, Outcome::DebugExit(3), "{accel}");
        assert!(serial.text().ends_with("Hi\r"), "{accel}: {:?}", serial.text());
    });
}

/// A menu whose second entry switches the machine off.
const MENU: &str = "set timeout=-1\nmenuentry \"nothing\" { true }\nmenuentry \"power off\" { halt }\n";

#[test]
fn an_entry_is_chosen_from_grubs_menu() {
    let Some(firmware) = seabios() else { return };
    if Command::new("grub-mkrescue").arg("--version").output().is_err() {
        eprintln!("skipped: no grub-mkrescue (packages grub-common, grub-pc-bin, xorriso, mtools)");
        return;
    }
    let start = |_: &std::path::Path| -> Start { firmware };
    let machine = machine(Accel::Soft, start, |config, dir| {
        let (files, disc) = (dir.join("files/boot/grub"), dir.join("grub.iso"));
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("grub.cfg"), MENU).unwrap();
        let made =
            Command::new("grub-mkrescue").arg("-o").arg(&disc).arg(dir.join("files")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        config.drives.push(DriveConfig::cdrom(disc));
        config.boot = vec![BootDevice::Cdrom];
    });
    let outcome =
        converse(machine, "*nothing", |remote| strike(remote, tap(DOWN).into_iter().chain(tap(ENTER))));
    assert_eq!(outcome, Outcome::PowerOff);
}
