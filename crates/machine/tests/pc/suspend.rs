//! Suspend to RAM: the machine sleeps, and wakes by its clock or the power button.

use std::time::Duration;

use iced_x86::code_asm::*;
use trapline_machine::Outcome;
use trapline_vcpu::Accel;

use crate::harness::*;

const PM1_STATUS: u32 = 0x600;
const PM1_ENABLE: u32 = 0x602;
const PM1_CONTROL: u32 = 0x604;
/// PM1 control: SLP_EN, SLP_TYP 1.
const S3: u32 = 1 << 13 | 1 << 10;
/// The FACS's waking vector, in the tables of a kernel without firmware.
const WAKING_VECTOR: u32 = 0xe_004c;
/// Where the guest wants to go on.
const RESUME: u32 = 0x1234;
/// PM1 events, as the upper byte of status and enable has them.
const RTC: u32 = 1 << 2;
const POWER_BUTTON: u32 = 1 << 0;
const WAKE: u32 = 1 << 7;

/// What is executed in real mode when the machine wakes: sends the upper byte of PM1 status to the exit port,
/// if power management is where it was.
fn resume() -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    a.mov(dx, COM1).unwrap();
    a.mov(al, u32::from(b'w')).unwrap();
    a.out(dx, al).unwrap();
    a.mov(dx, PM1_STATUS + 1).unwrap();
    a.in_(al, dx).unwrap();
    a.mov(dx, DEBUG_EXIT).unwrap();
    a.out(dx, al).unwrap();
    a.assemble(u64::from(RESUME & 0xf)).unwrap()
}

/// Guest: an alarm at the next second, which wakes.
fn alarm(a: &mut CodeAssembler) -> AsmResult {
    // Any second, minute, hour; 24 hours, alarm interrupt.
    for (index, value) in [(1, 0xff), (3, 0xff), (5, 0xff), (0x0b, 0x22)] {
        out(a, 0x70, index)?;
        out(a, 0x71, value)?;
    }
    out(a, PM1_ENABLE + 1, RTC)
}

/// Guest: suspends, and goes on at [`RESUME`].
fn suspend(a: &mut CodeAssembler) -> AsmResult {
    for (address, byte) in (RESUME..).zip(resume()) {
        a.mov(byte_ptr(address), u32::from(byte))?;
    }
    a.mov(dword_ptr(WAKING_VECTOR), RESUME)?;
    say(a, "s")?;
    a.mov(edx, PM1_CONTROL)?;
    a.mov(eax, S3)?;
    a.out(dx, ax)?;
    exit(a, 0x55)
}

#[test]
fn the_clocks_alarm_wakes_a_kernel() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            alarm(a)?;
            suspend(a)
        });
        let ran = finish(machine(accel, guest, |_, _| {}));
        assert_eq!(ran.output, "sw", "{accel}");
        assert_eq!(ran.outcome, Outcome::DebugExit((WAKE | RTC) << 1 | 1), "{accel}");
    });
}

#[test]
fn the_power_button_wakes_a_kernel() {
    on_every_engine(|accel| {
        let machine = machine(accel, direct(suspend), |_, _| {});
        let (remote, output) = (machine.pc.remote(), machine.serial.clone());
        let finger = std::thread::spawn(move || {
            while output.text().is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(50));
            remote.press_power_button();
        });
        let ran = finish(machine);
        assert_eq!(ran.output, "sw", "{accel}");
        assert_eq!(ran.outcome, Outcome::DebugExit((WAKE | POWER_BUTTON) << 1 | 1), "{accel}");
        finger.join().unwrap();
    });
}

#[test]
fn a_sleeping_machine_can_be_ended() {
    on_every_engine(|accel| {
        let machine = machine(accel, direct(suspend), |_, _| {});
        let (remote, output) = (machine.pc.remote(), machine.serial.clone());
        let user = std::thread::spawn(move || {
            while output.text().is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(50));
            remote.quit();
        });
        assert_eq!(finish(machine).outcome, Outcome::UserQuit, "{accel}");
        user.join().unwrap();
    });
}

/// Firmware starts at the reset vector, finds shutdown code FEh in CMOS memory, RAM as it was, and its shadow in place
/// of the ROM.
#[test]
fn firmware_learns_that_the_machine_wakes() {
    on_every_engine(|accel| {
        let guest = rom(|a| {
            let (mut cold, mut wrong) = (a.create_label(), a.create_label());
            a.xor(ax, ax)?;
            a.mov(ds, ax)?;
            a.mov(al, 0x0f)?;
            a.out(0x70, al)?;
            a.in_(al, 0x71)?;
            a.cmp(al, 0xfe)?;
            a.jne(cold)?;
            a.mov(bl, 2)?;
            a.cmp(word_ptr(0x500), 0x1234)?;
            a.jne(wrong)?;
            a.mov(bl, 4)?;
            a.mov(ax, 0xc000)?;
            a.mov(es, ax)?;
            a.cmp(word_ptr(0).es(), 0x1234)?;
            a.jne(wrong)?;
            // Power management is nowhere until firmware places it again.
            a.mov(bl, 3)?;
            a.mov(dx, PM1_CONTROL)?;
            a.in_(ax, dx)?;
            a.cmp(ax, -1)?;
            a.jne(wrong)?;
            place_power_management(a)?;
            a.mov(dx, PM1_STATUS + 1)?;
            a.in_(al, dx)?;
            a.mov(dx, DEBUG_EXIT)?;
            a.out(dx, al)?;
            a.set_label(&mut wrong)?;
            a.mov(al, bl)?;
            a.mov(dx, DEBUG_EXIT)?;
            a.out(dx, al)?;

            a.set_label(&mut cold)?;
            a.mov(word_ptr(0x500), 0x1234)?;
            // PAM1: RAM from 0xc0000.
            config(a, 0, 0x5a)?;
            a.mov(al, 0x33)?;
            a.out(dx, al)?;
            a.mov(ax, 0xc000)?;
            a.mov(es, ax)?;
            a.mov(word_ptr(0).es(), 0x1234)?;
            place_power_management(a)?;
            alarm(a)?;
            a.mov(dx, PM1_CONTROL)?;
            a.mov(ax, S3)?;
            a.out(dx, ax)?;
            exit16(a, 0x55)
        });
        let ran = finish(machine(accel, guest, |_, _| {}));
        assert_eq!(ran.outcome, Outcome::DebugExit((WAKE | RTC) << 1 | 1), "{accel}");
    });
}

/// Guest: PMBASE 0x600, and decoding.
fn place_power_management(a: &mut CodeAssembler) -> AsmResult {
    config(a, PM, 0x40)?;
    a.mov(eax, 0x601)?;
    a.out(dx, eax)?;
    config(a, PM, 0x80)?;
    a.mov(al, 1)?;
    a.out(dx, al)
}

#[test]
fn where_time_counts_instructions_a_sleep_is_over_at_once() {
    let guest = direct(|a| {
        a.mov(edx, PM1_CONTROL)?;
        a.mov(eax, S3)?;
        a.out(dx, ax)?;
        a.mov(edx, PM1_STATUS + 1)?;
        a.in_(al, dx)?;
        a.mov(edx, DEBUG_EXIT)?;
        a.out(dx, al)
    });
    let ran = finish(machine(Accel::Soft, guest, |config, _| config.machine.icount = Some(0)));
    assert_eq!(ran.outcome, Outcome::DebugExit(WAKE << 1 | 1));
}
