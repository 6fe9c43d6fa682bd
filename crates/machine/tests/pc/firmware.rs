//! Machines whose firmware is a few instructions in a ROM: power-on, and every way to reset.

use iced_x86::code_asm::*;
use trapline_machine::Outcome;

use crate::harness::*;

/// Guest: all segments zero, and a stack.
fn start(a: &mut CodeAssembler) -> AsmResult {
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7000)
}

/// Guest: an exception in protected mode, with an interrupt descriptor table without entries.
fn triple_fault(a: &mut CodeAssembler) -> AsmResult {
    a.mov(dword_ptr(0x600), 0)?;
    a.mov(dword_ptr(0x604), 0)?;
    a.lidt(fword_ptr(0x600))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.ud2()
}

/// How many times the machine has started is kept here in RAM.
const STARTS: u32 = 0x500;

#[test]
fn a_processor_starts_at_the_end_of_the_rom() {
    on_every_engine(|accel| {
        let ran = finish(machine(
            accel,
            rom(|a| {
                a.mov(dx, COM1)?;
                a.mov(al, u32::from(b'R'))?;
                a.out(dx, al)?;
                exit16(a, 1)
            }),
            |_, _| {},
        ));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(3), "R"), "{accel}");
    });
}

/// Guest: counts its starts, and checks what a start finds. Then it changes that, and resets in another way
/// each time.
fn reset_in_every_way(a: &mut CodeAssembler) -> AsmResult {
    let mut ways = [(); 4].map(|()| a.create_label());
    let (mut wrong, mut first) = (a.create_label(), a.create_label());
    start(a)?;
    a.inc(byte_ptr(STARTS))?;
    a.mov(bl, byte_ptr(STARTS))?;
    a.lea(ax, word_ptr(bx + i32::from(b'0')))?;
    a.mov(dx, COM1)?;
    a.out(dx, al)?;

    // The PAM registers are cleared, and ROM is seen below 1 MiB.
    a.mov(bh, 1)?;
    config(a, 0, PAM0)?;
    a.in_(al, dx)?;
    a.test(al, al)?;
    a.jne(wrong)?;
    a.mov(bh, 2)?;
    a.mov(ax, 0xf000)?;
    a.mov(es, ax)?;
    a.cmp(byte_ptr(0).es(), i32::from(ROM_FILL))?;
    a.jne(wrong)?;
    // Power management is nowhere.
    a.mov(bh, 3)?;
    a.mov(dx, 0x604)?;
    a.in_(ax, dx)?;
    a.cmp(ax, -1)?;
    a.jne(wrong)?;
    // CONFIG_ADDRESS, the PIC's mask, the UART's scratch register.
    a.mov(bh, 4)?;
    a.in_(al, 0x21)?;
    a.cmp(al, 0x5a)?;
    a.je(wrong)?;
    a.mov(dx, COM1 + 7)?;
    a.in_(al, dx)?;
    a.cmp(al, 0x5a)?;
    a.je(wrong)?;
    // The processor: protected mode is off, no debug register is set, APIC disabled by software.
    a.mov(bh, 5)?;
    a.mov(eax, cr0)?;
    a.test(al, 1)?;
    a.jne(wrong)?;
    a.mov(eax, dr3)?;
    a.test(eax, eax)?;
    a.jne(wrong)?;

    config(a, 0, PAM0)?;
    a.mov(al, PAM_RAM)?;
    a.out(dx, al)?;
    a.mov(bh, 6)?;
    a.cmp(bl, 1)?;
    a.je(first)?;
    a.cmp(byte_ptr(0).es(), 0x11)?; // memory keeps its contents
    a.jne(wrong)?;
    a.set_label(&mut first)?;
    a.mov(byte_ptr(0).es(), 0x11)?;
    config(a, PM, 0x40)?;
    a.mov(eax, 0x601)?;
    a.out(dx, eax)?;
    config(a, PM, 0x80)?;
    a.mov(al, 1)?;
    a.out(dx, al)?;
    a.mov(al, 0x5a)?;
    a.out(0x21, al)?;
    a.mov(dx, COM1 + 7)?;
    a.out(dx, al)?;
    a.mov(eax, 0x5a)?;
    a.mov(dr3, eax)?;

    for (number, way) in (1..).zip(&ways) {
        a.cmp(bl, number)?;
        a.je(*way)?;
    }
    exit16(a, 1)?;
    let [reset_control, port92, keyboard, shutdown] = &mut ways;
    a.set_label(reset_control)?;
    a.mov(dx, 0xcf9)?;
    a.mov(al, 0x06)?;
    a.out(dx, al)?;
    exit16(a, 0x41)?;
    a.set_label(port92)?;
    a.mov(al, 0x01)?;
    a.out(0x92, al)?;
    exit16(a, 0x42)?;
    a.set_label(keyboard)?;
    a.mov(al, 0xfe)?;
    a.out(0x64, al)?;
    exit16(a, 0x43)?;
    a.set_label(shutdown)?;
    triple_fault(a)?;
    exit16(a, 0x44)?;

    a.set_label(&mut wrong)?;
    a.mov(al, bh)?;
    a.mov(dx, DEBUG_EXIT)?;
    a.out(dx, al)
}

#[test]
fn every_way_to_reset_starts_the_machine_again() {
    on_every_engine(|accel| {
        let ran = finish(machine(accel, rom(reset_in_every_way), |_, _| {}));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(3), "12345"), "{accel}");
    });
}

#[test]
fn a_reset_ends_the_run_if_it_is_to() {
    on_every_engine(|accel| {
        let ran = finish(machine(accel, rom(reset_in_every_way), |config, _| config.reboot = false));
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::Reset, "1"), "{accel}");
        let shutdown = rom(|a| {
            start(a)?;
            triple_fault(a)
        });
        let ran = finish(machine(accel, shutdown, |config, _| config.reboot = false));
        assert_eq!(ran.outcome, Outcome::Shutdown, "{accel}");
    });
}

#[test]
fn a_guest_that_resets_for_ever_can_be_ended() {
    on_every_engine(|accel| {
        let machine = machine(
            accel,
            rom(|a| {
                a.mov(dx, 0xcf9)?;
                a.mov(al, 0x06)?;
                a.out(dx, al)
            }),
            |_, _| {},
        );
        let remote = machine.pc.remote();
        let quit = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            remote.quit();
        });
        assert_eq!(finish(machine).outcome, Outcome::UserQuit, "{accel}");
        quit.join().unwrap();
    });
}
