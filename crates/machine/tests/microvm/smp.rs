//! Several processors.

use crate::harness::*;
use iced_x86::code_asm::*;
use trapline_machine::Outcome;

const ICR: u32 = 0xfee0_0300;
/// Delivery modes of the interrupt command register, to all but the sender, level asserted.
const INIT: u32 = 0x000c_4500;
const STARTUP: u32 = 0x000c_4600;
/// Where the other processors start: start-up vector 0x40.
const START: u32 = 0x4_0000;
const CPUS: u32 = 3;

/// What a processor does when it is started: counts itself, and waits for ever.
fn started() -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    let mut here = a.create_label();
    a.mov(ax, 0x5000).unwrap();
    a.mov(ds, ax).unwrap();
    a.lock().inc(byte_ptr(0)).unwrap();
    a.mov(dx, COM1).unwrap();
    a.mov(al, u32::from(b'+')).unwrap();
    a.out(dx, al).unwrap();
    a.cli().unwrap();
    a.set_label(&mut here).unwrap();
    a.hlt().unwrap();
    a.jmp(here).unwrap();
    a.assemble(0).unwrap()
}

#[test]
fn processors_start_by_init_and_startup() {
    on_every_engine(|accel| {
        let (machine, output) = machine_with_cpus(CPUS, accel, None, |a| {
            let mut wait = a.create_label();
            for (address, byte) in (START..).zip(started()) {
                a.mov(byte_ptr(address), u32::from(byte))?;
            }
            a.mov(dword_ptr(0x5_0000), 0)?;
            a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
            a.mov(dword_ptr(ICR), INIT)?;
            a.mov(dword_ptr(ICR), STARTUP | START >> 12)?;
            a.set_label(&mut wait)?;
            a.mov(eax, dword_ptr(0x5_0000))?;
            a.cmp(eax, CPUS as i32 - 1)?;
            a.jb(wait)?;
            // Time for their output, which comes after they have counted themselves.
            a.mov(ecx, 200_000)?;
            let mut delay = a.create_label();
            a.set_label(&mut delay)?;
            a.dec(ecx)?;
            a.jnz(delay)?;
            exit(a, CPUS)
        });
        let ran = finish(machine, output);
        assert_eq!(ran.outcome, Outcome::DebugExit(CPUS << 1 | 1), "{accel}");
        assert_eq!(ran.stats.exits.len(), CPUS as usize);
        assert_eq!(ran.output, "++", "{accel}");
    });
}
