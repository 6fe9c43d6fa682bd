//! Tiny guests on the board `microvm`.

mod harness;
mod hostile;
mod icount;
mod input;
mod interrupts;
mod refusals;
mod saved;
mod smp;

use harness::*;
use iced_x86::code_asm::*;
use trapline_machine::Outcome;

#[test]
fn a_guest_says_hello_through_the_uart_and_powers_off() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            say(a, "hello\r\n")?;
            a.mov(edx, 0x604)?; // PM1a control: SLP_EN, SLP_TYP 5
            a.mov(eax, 1 << 13 | 5 << 10)?;
            a.out(dx, ax)?;
            say(a, "too late")
        });
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::PowerOff, "hello\r\n"), "{accel}");
        let uart = ran.stats.ports.iter().find(|region| region.name == "serial0").unwrap();
        assert_eq!((uart.reads, uart.writes), (0, 7));
    });
}

#[test]
fn a_string_instruction_sends_a_block() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let mut after = a.create_label();
            a.call(after)?; // pushes the address of the text
            a.db(b"string block")?;
            a.set_label(&mut after)?;
            a.pop(esi)?;
            a.mov(ecx, 12)?;
            a.mov(dx, COM1)?;
            a.cld()?;
            a.rep().outsb()?;
            exit(a, 3)
        });
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(7), "string block"), "{accel}");
    });
}

#[test]
fn every_way_to_reset_ends_the_run() {
    for (port, value) in [(0x64, 0xfe), (0x92, 1), (0xcf9, 6)] {
        on_every_engine(|accel| {
            let ran = run(accel, |a| {
                out(a, port, value)?;
                exit(a, 0)
            });
            assert_eq!(ran.outcome, Outcome::Reset, "{accel}, port {port:#x}");
        });
    }
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| a.ud2()); // the interrupt descriptor table is empty
        assert_eq!(ran.outcome, Outcome::Shutdown, "{accel}");
    });
}

#[test]
fn a_sleep_other_than_s5_wakes_at_once() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            a.mov(edx, 0x604)?;
            a.mov(eax, 1 << 13 | 1 << 10)?;
            a.out(dx, ax)?;
            a.mov(edx, 0x600)?; // PM1 status: WAK_STS
            a.in_(ax, dx)?;
            a.shr(eax, 15)?;
            a.mov(edx, DEBUG_EXIT)?;
            a.out(dx, al)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(3), "{accel}");
    });
}

#[test]
fn cmos_tells_the_memory_size() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            out(a, 0x70, 0x30)?; // extended memory in KiB, low byte
            a.in_(al, 0x71)?;
            a.mov(ebx, eax)?;
            out(a, 0x70, 0x31)?;
            a.in_(al, 0x71)?;
            a.shl(eax, 8)?;
            a.mov(al, bl)?;
            a.shr(eax, 10)?; // MiB above the first
            a.and(eax, 0x3f)?;
            a.mov(edx, DEBUG_EXIT)?;
            a.out(dx, al)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(3 << 1 | 1), "{accel}");
    });
}

#[test]
fn exit_codes_are_distinct() {
    let outcomes = [
        Outcome::PowerOff,
        Outcome::Reset,
        Outcome::Shutdown,
        Outcome::UserQuit,
        Outcome::Stuck(String::new()),
        Outcome::DebugExit(0x103),
    ];
    assert_eq!(outcomes.map(|outcome| outcome.exit_code()), [0, 2, 4, 6, 8, 3]);
}
