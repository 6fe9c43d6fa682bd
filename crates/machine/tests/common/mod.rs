//! What the tests of all boards have in common: engines, a guest's output, patience, pieces of guests.
#![allow(dead_code)] // not every board's tests use all of it

use std::io::{self, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapline_machine::{Outcome, Remote, Stats};
use trapline_vcpu::Accel;

/// The engines that tests run on.
const ENGINES: &[Accel] = &[Accel::Kvm, Accel::Soft];

pub const MIB: u64 = 1 << 20;

pub const COM1: u32 = 0x3f8;
pub const DEBUG_EXIT: u32 = 0x501;

/// Runs a test once for each engine that this host has.
pub fn on_every_engine(test: impl Fn(Accel)) {
    for &engine in ENGINES {
        match trapline_vcpu::choose(engine)
            .and_then(|choice| trapline_vcpu::create_vm(choice.engine, &trapline_vcpu::VmConfig::default()))
        {
            Ok(_) => test(engine),
            Err(trapline_vcpu::Error::Unavailable { why, .. }) => eprintln!("skipped on {engine}: {why}"),
            Err(e) => panic!("{engine}: {e}"),
        }
    }
}

pub type AsmResult = std::result::Result<(), IcedError>;

/// What a guest sent.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a guest ended.
pub struct Ran {
    pub outcome: Outcome,
    pub output: String,
    pub stats: Stats,
}

/// Guest: sends `text` to COM1, byte by byte.
pub fn say(a: &mut CodeAssembler, text: &str) -> AsmResult {
    a.mov(dx, COM1)?;
    for byte in text.bytes() {
        a.mov(al, u32::from(byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// Guest: writes a byte to a port.
pub fn out(a: &mut CodeAssembler, port: u32, value: u32) -> AsmResult {
    a.mov(edx, port)?;
    a.mov(eax, value)?;
    a.out(dx, al)
}

/// Guest: ends with `(value << 1) | 1`.
pub fn exit(a: &mut CodeAssembler, value: u32) -> AsmResult {
    a.mov(edx, DEBUG_EXIT)?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

/// Runs a machine to its end, or until `patience` ends, which is a failure. `remote` is a hand on it.
pub fn watched<T>(remote: Remote, patience: Duration, run: impl FnOnce() -> T) -> (T, bool) {
    let (alive, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            remote.quit();
        }
        late
    });
    let result = run();
    drop(alive);
    (result, watchdog.join().unwrap())
}
