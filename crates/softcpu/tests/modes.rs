//! From reset to 64-bit mode and around, by the instructions that do it.

mod common;

use common::{CODE, DATA, GDT, Machine, STACK, TABLES, rights, sel};
use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{Segment, cr0, cr4, efer, reg, seg};

#[test]
fn reset_state() {
    let mut m = Machine::real();
    m.cpu.reset();
    assert_eq!((m.cpu.rip, m.cpu.seg[seg::CS].base), (0xfff0, 0xffff_0000));
    assert_eq!(m.cpu.cr0, cr0::CD | cr0::NW | cr0::ET);
    assert_eq!(m.reg(reg::RDX), u64::from(m.cpu.model.signature()));
}

#[test]
fn real_mode_segments_and_stack() {
    let mut m = Machine::real();
    m.write(0x12345, 0xbeefu16);
    m.run_code(|a| {
        a.mov(ax, 0x1234)?;
        a.mov(ds, ax)?;
        a.mov(bx, word_ptr(5))?;
        a.push(ds)?;
        a.pop(es)?;
        a.mov(dx, es)?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RBX) & 0xffff, 0xbeef);
    assert_eq!(m.reg(reg::RDX) & 0xffff, 0x1234);
    assert_eq!(m.reg(reg::RSP), STACK);
}

#[test]
fn real_mode_far_calls_and_interrupts() {
    let mut m = Machine::real();
    // INT 0x21 at 0x0900:0x0010 adds one to AX; the far procedure at 0x0a00:0 calls it.
    m.write(0x21 * 4, 0x0900_0010u32);
    m.code_at(0x9010, 16, |a| {
        a.inc(ax)?;
        a.iret()
    });
    m.code_at(0xa000, 16, |a| {
        a.int(0x21)?;
        a.add(ax, 0x10)?;
        a.retf()
    });
    m.write(DATA, 0x0a00_0000u32);
    m.run_code(|a| {
        a.mov(ax, 0x100)?;
        // A far call: 16-bit code, 32-bit pointer.
        a.call(dword_ptr(DATA as i32))?;
        a.pushf()?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RAX), 0x111);
    assert_eq!(m.reg(reg::RSP), STACK - 2);
}

#[test]
fn real_mode_limit_fault_and_divide_error() {
    let mut m = Machine::real();
    m.write(13 * 4, u32::from(0x9100u16));
    m.write(0, u32::from(0x9200u16));
    m.halt_at(0x9100);
    m.halt_at(0x9200);
    m.run_code(|a| {
        a.mov(bx, 0xffff)?;
        a.mov(ax, word_ptr(bx))?;
        a.nop()
    });
    assert_eq!(m.cpu.rip, 0x9101);
    // A fault: the saved IP is that of the access.
    assert_eq!(u64::from(m.stack::<u16>(1)[0]), CODE + 3);
    m.set(reg::RSP, STACK);
    m.run_code(|a| {
        a.xor(cx, cx)?;
        a.div(cx)?;
        a.nop()
    });
    assert_eq!(m.cpu.rip, 0x9201);
}

#[test]
fn from_real_to_protected_to_long_mode() {
    let mut m = Machine::real();
    // Descriptors: 32-bit code, data, 64-bit code.
    m.descriptor(sel::CODE, 0, 0xfffff, rights::CODE32);
    m.descriptor(sel::DATA, 0, 0xfffff, rights::DATA);
    m.descriptor(0x18, 0, 0xfffff, rights::CODE64);
    m.write(DATA, 0x1fu16);
    m.write(DATA + 2, GDT as u32);
    // One 1 GiB page.
    m.write(TABLES, (TABLES + 0x1000) | 3);
    m.write(TABLES + 0x1000, 0x83u64);
    m.code_at(0xa000, 32, |a| {
        a.mov(ax, i32::from(sel::DATA))?;
        a.mov(ds, ax)?;
        a.mov(ss, ax)?;
        a.mov(eax, cr4)?;
        a.or(eax, cr4::PAE as i32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, efer::LME as i32)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        // Far jump to 0x18:0xb000.
        a.db(&[0xea, 0, 0xb0, 0, 0, 0x18, 0])
    });
    m.code_at(0xb000, 64, |a| {
        a.mov(rax, 0x1234_5678_9abc_def0u64)?;
        a.push(rax)?;
        a.hlt()
    });
    m.run_code(|a| {
        a.cli()?;
        a.db(&[0x0f, 0x01, 0x16])?;
        a.dw(&[DATA as u16])?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // Far jump to 8:0xa000.
        a.db(&[0xea, 0, 0xa0, 8, 0])
    });
    assert!(m.cpu.long64);
    assert_eq!(m.cpu.efer & efer::LMA, efer::LMA);
    assert_eq!(m.reg(reg::RAX), 0x1234_5678_9abc_def0);
    assert_eq!(m.stack::<u64>(1), [0x1234_5678_9abc_def0]);
}

#[test]
fn unreal_mode_keeps_limits() {
    let mut m = Machine::protected();
    m.write(0x20_0000, 0x55u8);
    m.descriptor(sel::FREE, 0, 0xffff, rights::CODE16);
    m.code_at(0xa000, 16, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, -2)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, 0, 0xb0, 0, 0])
    });
    m.code_at(0xb000, 16, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(ebx, 0x20_0000)?;
        a.mov(cl, byte_ptr(ebx))?;
        a.hlt()
    });
    m.run_code(|a| a.db(&[0xea, 0, 0xa0, 0, 0, sel::FREE as u8, 0]));
    assert_eq!(m.reg(reg::RCX) & 0xff, 0x55);
    assert_eq!(m.cpu.seg[seg::DS], Segment { selector: 0, base: 0, limit: u32::MAX, attr: rights::DATA });
}

#[test]
fn control_register_rules() {
    use trapline_softcpu::cpu::Stop;
    let mut m = Machine::long();
    let cpu = &mut m.cpu;
    assert_eq!(cpu.set_cr0(cpu.cr0 & !cr0::PG), Err(Stop), "paging off in 64-bit mode");
    assert_eq!(cpu.set_cr0(cr0::PG | cr0::ET), Err(Stop), "paging without protection");
    assert_eq!(cpu.set_cr0(cpu.cr0 | cr0::NW), Err(Stop), "NW without CD");
    assert_eq!(cpu.set_cr4(cpu.cr4 & !cr4::PAE), Err(Stop), "PAE off in IA-32e mode");
    assert_eq!(cpu.set_cr4(cpu.cr4 | 1 << 12), Err(Stop), "LA57 is not there");
    assert_eq!(cpu.set_cr3(1 << 50), Err(Stop), "beyond the physical-address width");
    assert_eq!(cpu.set_cr8(16), Err(Stop));
    assert!(cpu.set_efer(cpu.efer & !efer::LME).is_err(), "LME while paging is on");
    assert_eq!(cpu.set_cr4(cpu.cr4 | cr4::PCIDE), Ok(()));
    assert_eq!(cpu.set_cr3(TABLES | 5 | 1 << 63), Ok(()));
    assert_eq!(cpu.cr3, TABLES | 5);
    assert_eq!(cpu.set_cr4(cpu.cr4 & !cr4::PCIDE), Ok(()));
    assert_eq!(cpu.set_cr4(cpu.cr4 | cr4::PCIDE), Err(Stop), "PCID must be 0");
}

#[test]
fn a_handler_that_faults_at_once_does_not_stop_the_count() {
    let mut m = Machine::real();
    m.write(6 * 4, CODE as u32);
    m.code(|a| a.ud2());
    m.cpu.rip = CODE;
    // 6 bytes of stack each time; timers are looked at by the count, so it must go on.
    m.cpu.run_for(500);
    assert!(m.cpu.icount >= 500);
    assert!(m.reg(reg::RSP) < STACK - 2000);
}

#[test]
fn a_long_repetition_counts_and_can_be_interrupted() {
    let mut m = Machine::protected();
    m.code(|a| {
        a.mov(ecx, 0x4000_0000)?;
        a.mov(esi, DATA as u32)?;
        a.mov(edi, DATA as u32)?;
        a.std()?;
        a.repe().cmpsb()
    });
    m.cpu.rip = CODE;
    m.cpu.run_for(5000);
    assert!(m.cpu.icount >= 5000);
    assert!(m.reg(reg::RCX) > 0, "the repetition is under way, not finished");
}
