//! Execution modes and the ways between them.

use iced_x86::code_asm::*;
use trapline_device::AccessSize;
use trapline_vcpu::{Exit, ExitKind};

use crate::harness::*;

/// Collects what the guest writes to port 0xE9, to the end of the test.
fn text(machine: &mut Machine) -> String {
    let mut text = String::new();
    loop {
        match machine.step() {
            Exit::PioWrite { port: 0xe9, size: AccessSize::Byte, value } => text.push(value as u8 as char),
            exit => {
                machine.done(exit);
                return text;
            }
        }
    }
}

#[test]
fn real_mode_says_hello() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Real, |a| {
            a.mov(dx, 0xe9)?;
            for byte in b"hello" {
                a.mov(al, u32::from(*byte))?;
                a.out(dx, al)?;
            }
            a.done()
        });
        assert_eq!(text(&mut machine), "hello");
        assert_eq!(machine.vcpu.stats().count(ExitKind::PioWrite), 6);
        assert_eq!(machine.vcpu.stats().total(), 6);
    });
}

#[test]
fn real_mode_segments_shift_by_four() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Real, |a| {
            a.mov(ax, 0x2345)?;
            a.mov(ds, ax)?;
            a.mov(bx, 0x10)?;
            a.mov(word_ptr(bx), 0xbeefu32)?;
            a.done()
        });
        machine.finish();
        assert_eq!(machine.read::<2>(0x2_3460), [0xef, 0xbe]);
        assert_eq!(machine.vcpu.sregs().unwrap().ds.base, 0x2_3450);
    });
}

#[test]
fn protected_mode_has_32_bits() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Protected, |a| {
            a.mov(eax, 0x1234_5678)?;
            a.mov(ebx, DATA as u32)?;
            a.mov(dword_ptr(ebx + 4), eax)?;
            a.push(eax)?;
            a.pop(ecx)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!(regs.rcx, 0x1234_5678);
        assert_eq!(machine.read_u32(DATA + 4), 0x1234_5678);
    });
}

#[test]
fn long_mode_has_64_bits_and_16_registers() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(r15, 0x1122_3344_5566_7788u64)?;
            a.mov(rbx, DATA)?;
            a.mov(qword_ptr(rbx), r15)?;
            a.mov(r8, -1i64)?;
            // A 32-bit result clears the upper half.
            a.mov(r8d, r15d)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!((regs.r15, regs.r8), (0x1122_3344_5566_7788, 0x5566_7788));
        assert_eq!(machine.read_u64(DATA), regs.r15);
    });
}

/// The whole way that a boot loader goes: real mode, protected mode, paging with PAE and LME, long mode.
#[test]
fn guest_switches_from_real_to_long_mode() {
    const STEP32: u64 = CODE + 0x200;
    const STEP64: u64 = CODE + 0x400;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Real, |a| {
            a.mov(bx, (DATA >> 4) as u32)?;
            a.mov(ds, bx)?;
            a.lgdt(fword_ptr(0))?;
            a.mov(eax, cr0)?;
            a.or(eax, 1)?;
            a.mov(cr0, eax)?;
            a.push(i32::from(CODE32))?;
            a.push(STEP32 as i32)?;
            a.retf()
        });
        let mut pseudo = [0u8; 6];
        pseudo[..2].copy_from_slice(&0x1fu16.to_le_bytes());
        pseudo[2..].copy_from_slice(&(GDT as u32).to_le_bytes());
        machine.write(DATA, &pseudo);
        let (to_long, _) = assemble(32, STEP32, |a| {
            a.mov(ax, u32::from(DATA32))?;
            a.mov(ds, ax)?;
            a.mov(ss, ax)?;
            a.mov(eax, 0x20)?;
            a.mov(cr4, eax)?;
            a.mov(eax, PML4 as u32)?;
            a.mov(cr3, eax)?;
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.or(eax, 0x100)?;
            a.wrmsr()?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8000_0000u32)?;
            a.mov(cr0, eax)?;
            a.push(i32::from(CODE64))?;
            a.push(STEP64 as i32)?;
            a.retf()
        });
        machine.write(STEP32, &to_long);
        let (in_long, _) = assemble(64, STEP64, |a| {
            a.mov(rax, 0x0123_4567_89ab_cdefu64)?;
            a.done()
        });
        machine.write(STEP64, &in_long);
        let regs = machine.finish();
        assert_eq!(regs.rax, 0x0123_4567_89ab_cdef);
        let sregs = machine.vcpu.sregs().unwrap();
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.efer & 0x500), (CODE64, 1, 0x500));
    });
}
