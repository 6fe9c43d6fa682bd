//! What is typed, and the keys that end a run.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::harness::*;
use iced_x86::code_asm::*;
use trapline_machine::{MachineConfig, Microvm, MicrovmConfig, Outcome, Serial};

/// Guest: sends back what it receives, until a dot.
fn echo(a: &mut CodeAssembler) -> AsmResult {
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.mov(edx, COM1 + 5)?; // line status: data ready
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(next)?;
    a.mov(edx, COM1)?;
    a.in_(al, dx)?;
    a.out(dx, al)?;
    a.cmp(al, i32::from(b'.'))?;
    a.jne(next)?;
    exit(a, 0x2e)
}

/// Guest: spins with interrupts off.
fn spin(a: &mut CodeAssembler) -> AsmResult {
    let mut here = a.create_label();
    a.cli()?;
    a.set_label(&mut here)?;
    a.jmp(here)
}

#[test]
fn a_file_is_typed_without_a_loss() {
    on_every_engine(|accel| {
        let text: String = (0..300).map(|i| format!("{i} ")).chain(["\u{1}\u{1}.".into()]).collect();
        let ran = run_with_input(accel, text.as_bytes(), echo);
        assert_eq!(ran.outcome, Outcome::DebugExit(0x2e << 1 | 1), "{accel}");
        assert_eq!(ran.output, text.replace("\u{1}\u{1}", "\u{1}"), "{accel}");
    });
}

#[test]
fn a_pipe_is_typed_without_a_loss() {
    on_every_engine(|accel| {
        let (reader, mut writer) = io::pipe().unwrap();
        let (machine, output) = machine(accel, Some(OwnedFd::from(reader)), echo);
        let text: String = (0..2000).map(|i| format!("{i} ")).chain([".".into()]).collect();
        let typed = text.clone();
        let typist = std::thread::spawn(move || {
            for piece in typed.as_bytes().chunks(97) {
                writer.write_all(piece).unwrap();
            }
        });
        let ran = finish(machine, output);
        typist.join().unwrap();
        assert_eq!(ran.outcome, Outcome::DebugExit(0x2e << 1 | 1), "{accel}");
        assert_eq!(ran.output, text, "{accel}");
    });
}

#[test]
fn a_socket_is_typed_and_read() {
    on_every_engine(|accel| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let user = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(b"typed \x01x.").unwrap();
            let mut said = String::new();
            socket.read_to_string(&mut said).unwrap();
            said
        });
        let mut config = MicrovmConfig::new(kernel(dir.path(), echo));
        config.machine =
            MachineConfig { memory: 4 * MIB, accel, serial: Serial::Unix(path), ..MachineConfig::default() };
        let ran = finish(Microvm::new(config).unwrap(), Output::default());
        assert_eq!(ran.outcome, Outcome::DebugExit(0x2e << 1 | 1), "{accel}");
        assert_eq!(user.join().unwrap(), "typed \x01x.", "{accel}");
    });
}

#[test]
fn ctrl_a_x_ends_a_guest_that_spins_with_interrupts_off() {
    on_every_engine(|accel| {
        let (reader, mut writer) = io::pipe().unwrap();
        let (machine, output) = machine(accel, Some(OwnedFd::from(reader)), spin);
        let typist = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            writer.write_all(b"more keys than the receiver has room for\x01x").unwrap();
        });
        let ran = finish(machine, output);
        typist.join().unwrap();
        assert_eq!(ran.outcome, Outcome::UserQuit, "{accel}");
    });
}

#[test]
fn a_closed_input_is_no_end() {
    on_every_engine(|accel| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (machine, output) = machine(accel, Some(null.into()), |a| say(a, "on").and_then(|()| exit(a, 1)));
        let ran = finish(machine, output);
        assert_eq!((ran.outcome, ran.output.as_str()), (Outcome::DebugExit(3), "on"), "{accel}");
    });
}

#[test]
fn a_remote_quit_ends_a_halt_and_the_guest_can_be_run_on() {
    on_every_engine(|accel| {
        let (mut machine, output) = machine(accel, None, |a| {
            let mut here = a.create_label();
            say(a, "halting")?;
            a.cli()?;
            a.set_label(&mut here)?;
            a.hlt()?;
            a.jmp(here)
        });
        for _ in 0..3 {
            let remote = machine.remote();
            let hand = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                remote.quit();
            });
            assert_eq!(machine.run().unwrap(), Outcome::UserQuit, "{accel}");
            hand.join().unwrap();
        }
        assert_eq!(output.text(), "halting", "{accel}");
    });
}
