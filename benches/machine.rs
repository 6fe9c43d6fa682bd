//! What a device access costs from instruction to instruction: the guest exits, the run loop finds the device
//! on its bus, the device answers, the guest goes on. One figure is one turn of a loop of three instructions in
//! the guest, so that the processor's own work in it is the same everywhere.

use std::time::{Duration, Instant};

use criterion::Criterion;
use iced_x86::code_asm::*;
use trapline::machine::{Microvm, MicrovmConfig, Outcome, Serial};
use trapline::vcpu::Accel;

const CODE: u32 = 0x10_0000;

/// A 32-bit ELF file that does `access` as often as `count` says, and ends.
fn kernel(count: u32, access: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut again = a.create_label();
    a.mov(ecx, count)?;
    a.set_label(&mut again)?;
    access(&mut a)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.mov(edx, 0x501)?;
    a.out(dx, al)?;
    let code = a.assemble(CODE.into())?;

    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, 3].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend([1, CODE, 52, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend([52u16, 32, 1, 40, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    let size = code.len() as u32;
    elf.extend([1, 84, CODE, CODE, size, size, 5, 4].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(code);
    Ok(elf)
}

/// How long the machine takes for `count` accesses.
fn run(count: u64, access: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Duration {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("kernel");
    let elf = kernel(count.min(u32::MAX.into()) as u32, access).expect("a guest");
    std::fs::write(&path, elf).expect("a kernel file");
    let mut config = MicrovmConfig::new(path);
    let machine = &mut config.machine;
    (machine.memory, machine.accel, machine.serial) = (16 << 20, Accel::Soft, Serial::Null);
    let mut machine = Microvm::new(config).expect("a machine");
    let start = Instant::now();
    let outcome = machine.run().expect("a run");
    let took = start.elapsed();
    assert!(matches!(outcome, Outcome::DebugExit(_)), "{outcome}");
    took
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("access through the run loop");
    group.bench_function("port, read: POST code", |b| b.iter_custom(|n| run(n, |a| a.in_(al, 0x80))));
    group.bench_function("port, written: POST code", |b| b.iter_custom(|n| run(n, |a| a.out(0x80, al))));
    group.bench_function("port, read: nobody", |b| b.iter_custom(|n| run(n, |a| a.in_(al, 0xe0))));
    let ioapic = |a: &mut CodeAssembler| a.mov(eax, dword_ptr(0xfec0_0000_u32));
    group.bench_function("memory, read: IOAPIC", |b| b.iter_custom(|n| run(n, ioapic)));
    group.bench_function("memory, written: IOAPIC", |b| {
        b.iter_custom(|n| run(n, |a| a.mov(dword_ptr(0xfec0_0000_u32), eax)))
    });
    group.finish();
    c.final_summary();
}
