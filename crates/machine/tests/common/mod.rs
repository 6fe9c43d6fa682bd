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
/// Where the guest's code is.
pub const CODE: u64 = MIB;
/// Where the guest may have its interrupt descriptor table, below its stack.
pub const IDT: u32 = 0x30_0000;
const STACK: u32 = 0x38_0000;

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

/// A 32-bit ELF file in `dir` whose code, starting with a stack and interrupts off, is what `code` says.
pub fn kernel(
    dir: &std::path::Path,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> std::path::PathBuf {
    let mut asm = CodeAssembler::new(32).unwrap();
    asm.mov(esp, STACK).unwrap();
    code(&mut asm).unwrap();
    let code = asm.assemble(CODE).unwrap();

    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    let half = |elf: &mut Vec<u8>, values: &[u16]| elf.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, values: &[u32]| elf.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let (start, size) = (CODE as u32, code.len() as u32);
    half(&mut elf, &[2, 3]); // executable, 386
    word(&mut elf, &[1, start, 52, 0, 0]);
    half(&mut elf, &[52, 32, 1, 40, 0, 0]);
    word(&mut elf, &[1, 84, start, start, size, size, 5, 4]); // one segment to load
    elf.extend(code);
    let path = dir.join("kernel");
    std::fs::write(&path, elf).unwrap();
    path
}

/// Guest: sets the gate of `vector` to `handler` and loads IDTR.
pub fn gate(a: &mut CodeAssembler, vector: u32, handler: CodeLabel) -> AsmResult {
    let entry = IDT + 8 * vector;
    let mut after = a.create_label();
    a.call(after)?; // pushes the address of the jump
    a.jmp(handler)?;
    a.set_label(&mut after)?;
    a.pop(eax)?;
    a.mov(ebx, eax)?;
    a.and(ebx, 0xffff)?;
    a.or(ebx, 0x10 << 16)?; // the kernel's code segment
    a.mov(dword_ptr(entry), ebx)?;
    a.and(eax, 0xffff_0000_u32 as i32)?;
    a.or(eax, 0x8e00)?;
    a.mov(dword_ptr(entry + 4), eax)?;
    let pointer = IDT - 8;
    a.mov(word_ptr(pointer), 0x7ff)?;
    a.mov(dword_ptr(pointer + 2), IDT)?;
    a.lidt(dword_ptr(pointer))
}

/// Guest: starts channel 0 as a rate generator of `divisor` ticks.
pub fn start_pit(a: &mut CodeAssembler, divisor: u32) -> AsmResult {
    for (port, value) in [(0x43, 0x34), (0x40, divisor & 0xff), (0x40, divisor >> 8)] {
        out(a, port, value)?;
    }
    Ok(())
}

/// Guest: ICW1 to ICW4 of both chips, vectors from 0x20 and 0x28, and the masks.
pub fn start_pic(a: &mut CodeAssembler, mask: u32) -> AsmResult {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, 0x01),
        (0x21, mask & 0xff),
        (0xa1, mask >> 8),
    ] {
        out(a, port, value)?;
    }
    Ok(())
}

/// Guest: waits for interrupts, halted. Handlers come back here without IRET: `esp` is set anew.
pub fn wait(a: &mut CodeAssembler, wait: &mut CodeLabel) -> AsmResult {
    a.set_label(wait)?;
    a.mov(esp, 0x38_0000)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(*wait)
}

/// Guest: counts in EDI, and ends when it is `n`.
pub fn count_to(a: &mut CodeAssembler, n: i32, wait: CodeLabel) -> AsmResult {
    a.inc(edi)?;
    a.cmp(edi, n)?;
    a.jb(wait)?;
    exit(a, n as u32)
}

/// Guest: sends a letter for each timer interrupt, 10 ms apart, and ends after the last.
pub fn alphabet(a: &mut CodeAssembler) -> AsmResult {
    let (mut handler, mut idle) = (a.create_label(), a.create_label());
    a.xor(edi, edi)?;
    gate(a, 0x20, handler)?;
    start_pic(a, 0xfffe)?;
    start_pit(a, 11932)?;
    wait(a, &mut idle)?;
    a.set_label(&mut handler)?;
    a.mov(edx, COM1)?;
    a.lea(eax, ptr(edi + u32::from(b'a')))?;
    a.out(dx, al)?;
    out(a, 0x20, 0x20)?;
    count_to(a, 26, idle)
}
