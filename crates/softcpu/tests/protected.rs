//! Legacy protected mode: segmentation, call gates, virtual-8086 mode, task switches.

mod common;

use common::{CODE, DATA, GDT, Machine, STACK, TABLES, TSS, USER_STACK, rights, sel};
use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{cr0, cr4, reg, seg};
use trapline_softcpu::flags::bits;

const HANDLER: u64 = 0x5100;
const USER: u64 = 0xc000;
const KERNEL: u64 = 0xd000;

fn run_user(m: &mut Machine, flags: u64) {
    m.run_code(|a| {
        a.push(i32::from(sel::USER_DATA))?;
        a.push(USER_STACK as i32)?;
        a.push(flags as i32)?;
        a.push(i32::from(sel::USER_CODE32))?;
        a.push(USER as i32)?;
        a.iretd()
    });
}

#[test]
fn segment_limits() {
    let mut m = Machine::protected();
    m.descriptor(sel::FREE, DATA, 0x0f, 0x4093);
    m.gate(13, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    m.write(DATA + 0xc, 0x1234_5678u32);
    m.run_code(|a| {
        a.mov(eax, i32::from(sel::FREE))?;
        a.mov(ds, eax)?;
        a.mov(ebx, dword_ptr(0xc))?;
        a.mov(ecx, dword_ptr(0xd))
    });
    assert_eq!(m.reg(reg::RBX), 0x1234_5678);
    assert_eq!(m.cpu.rip, HANDLER + 1);
    // MOV imm 5, MOV sreg 2, MOV 6.
    assert_eq!(m.stack::<u32>(3), [0, CODE as u32 + 13, 8]);
}

#[test]
fn segment_loads_that_fault() {
    // Selector, handler vector, error code.
    for (selector, vector) in [(0x78u16, 13), (0x48, 11), (sel::CODE, 0)] {
        let mut m = Machine::protected();
        m.descriptor(0x48, 0, 0xfffff, rights::DATA & !0x80);
        for v in [11, 13] {
            m.gate(v, sel::CODE, HANDLER, 0x8e);
        }
        m.halt_at(HANDLER);
        m.run_code(|a| {
            a.mov(eax, i32::from(selector))?;
            a.mov(es, eax)?;
            a.hlt()
        });
        if vector == 0 {
            assert_eq!(m.cpu.seg[seg::ES].selector, selector, "readable code is data, too");
        } else {
            assert_eq!(m.cpu.rip, HANDLER + 1);
            assert_eq!(m.stack::<u32>(1), [u32::from(selector)]);
        }
    }
}

#[test]
fn questions_about_descriptors() {
    let mut m = Machine::protected();
    m.descriptor(0x48, 0x1000, 0x123, 0x4091);
    m.run_code(|a| {
        a.mov(edi, 0x48)?;
        a.lsl(eax, edi)?;
        a.lar(ebx, edi)?;
        a.verr(di)?;
        a.setz(cl)?;
        a.verw(di)?;
        a.setz(ch)?;
        a.mov(edi, 0x79)?;
        a.lsl(esi, edi)?;
        a.setz(dl)?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RAX), 0x123);
    assert_eq!(m.reg(reg::RBX), 0x40_9100);
    assert_eq!(m.reg(reg::RCX) & 0xffff, 1, "readable, not writable");
    assert_eq!(m.reg(reg::RDX) & 0xff, 0, "outside the table");
}

#[test]
fn arpl_raises_the_requested_level() {
    let mut m = Machine::protected();
    m.run_code(|a| {
        a.mov(ax, 0x40)?;
        a.mov(bx, 3)?;
        a.arpl(ax, bx)?;
        a.setz(cl)?;
        a.arpl(ax, bx)?;
        a.setz(ch)?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RAX) & 0xffff, 0x43);
    assert_eq!(m.reg(reg::RCX) & 0xffff, 1);
}

#[test]
fn call_gate_copies_parameters() {
    let mut m = Machine::protected();
    // Two parameters, 32-bit, DPL 3.
    m.write(GDT + u64::from(sel::FREE), KERNEL & 0xffff | u64::from(sel::CODE) << 16 | 0xec02 << 32);
    m.code_at(USER, 32, |a| {
        a.push(0x11)?;
        a.push(0x22)?;
        // CALL far FREE|3:0.
        a.db(&[0x9a, 0, 0, 0, 0, sel::FREE as u8 | 3, 0])?;
        a.int3()
    });
    m.code_at(KERNEL, 32, |a| {
        a.mov(eax, dword_ptr(esp + 8))?;
        a.mov(ebx, dword_ptr(esp + 12))?;
        a.mov(ecx, cs)?;
        a.retf_1(8)
    });
    m.gate(3, sel::CODE, HANDLER, 0xee);
    m.halt_at(HANDLER);
    run_user(&mut m, bits::FIXED);
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!((m.reg(reg::RAX), m.reg(reg::RBX), m.reg(reg::RCX)), (0x22, 0x11, 8));
    // RET took the parameters off both stacks.
    let frame = m.stack::<u32>(5);
    assert_eq!(frame[..2], [USER as u32 + 12, u32::from(sel::USER_CODE32)]);
    assert_eq!(frame[3..], [USER_STACK as u32, u32::from(sel::USER_DATA)]);
}

#[test]
fn returning_outward_drops_inner_segments() {
    let mut m = Machine::protected();
    m.code_at(USER, 32, |a| {
        a.mov(eax, ds)?;
        a.int3()
    });
    m.gate(3, sel::CODE, HANDLER, 0xee);
    m.halt_at(HANDLER);
    m.set(reg::RAX, 0x1234);
    run_user(&mut m, bits::FIXED);
    assert_eq!(m.reg(reg::RAX), 0);
    assert!(m.cpu.seg[seg::DS].unusable());
}

#[test]
fn virtual_8086_mode() {
    let mut m = Machine::protected();
    m.gate(13, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    m.write(0x12345, 0x5au8);
    m.code_at(0xa010, 16, |a| {
        a.mov(al, byte_ptr(5))?;
        a.cli()
    });
    let flags = bits::FIXED | bits::VM | bits::IF;
    let words = [0x10u32, 0x0a00, flags as u32, 0x100, 0x0500, 0, 0x1234, 0, 0];
    for (i, w) in words.into_iter().enumerate() {
        m.write(STACK - 0x100 + 4 * i as u64, w);
    }
    m.set(reg::RSP, STACK - 0x100);
    m.run_code(|a| a.iretd());
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.reg(reg::RAX) & 0xff, 0x5a);
    // CLI without IOPL or VME faults; the frame has all segments.
    let frame = m.stack::<u32>(10);
    assert_eq!(frame[..3], [0, 0x13, 0x0a00]);
    assert_eq!(frame[3] & !(bits::RF as u32), flags as u32);
    assert_eq!(frame[4..], [0x100, 0x0500, 0, 0x1234, 0, 0]);
    assert_eq!((m.cpu.cpl, m.cpu.v86()), (0, false));
    assert!(m.cpu.seg[seg::DS].unusable());
    assert_eq!(m.reg(reg::RSP), STACK - 40);
}

#[test]
fn pushes_and_interrupts_in_virtual_8086_mode_with_vme() {
    let mut m = Machine::protected();
    m.cpu.set_cr4(cr4::VME).unwrap();
    // Redirection bitmap below the I/O bitmap: INT 0x21 stays in virtual-8086 mode.
    m.write(TSS + 0x66, 0x88u16);
    for i in 0..32 {
        m.write(TSS + 0x68 + i, 0u8);
    }
    m.cpu.seg[seg::TR].limit = 0x90;
    m.gate(13, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    m.write(0x21 * 4, 0x0b00_0000u32);
    m.code_at(0xb000, 16, |a| {
        a.mov(bl, 7)?;
        a.iret()
    });
    m.code_at(0xa000, 16, |a| {
        a.sti()?;
        a.int(0x21)?;
        a.hlt()
    });
    let flags = bits::FIXED | bits::VM | bits::IF;
    for (i, w) in [0u32, 0x0a00, flags as u32, 0x100, 0x0500, 0, 0, 0, 0].into_iter().enumerate() {
        m.write(STACK - 0x100 + 4 * i as u64, w);
    }
    m.set(reg::RSP, STACK - 0x100);
    m.run_code(|a| a.iretd());
    assert_eq!(m.reg(reg::RBX) & 0xff, 7);
    let frame = m.stack::<u32>(4);
    assert_eq!(frame[1..3], [3, 0x0a00]);
    assert_ne!(frame[3] & bits::VIF as u32, 0, "STI set VIF");
}

/// A TSS with everything flat, at `at`, entered at `eip`.
fn task(m: &mut Machine, at: u64, eip: u64) {
    for i in 0..26 {
        m.write(at + 4 * i, 0u32);
    }
    m.write(at + 0x1c, TABLES as u32);
    m.write(at + 0x20, eip as u32);
    m.write(at + 0x24, bits::FIXED as u32);
    m.write(at + 0x38, 0x6800u32);
    for (i, s) in [sel::DATA, sel::CODE, sel::DATA, sel::DATA, 0, 0].into_iter().enumerate() {
        m.write(at + 0x48 + 4 * i as u64, u32::from(s));
    }
    m.write(at + 0x66, 0x68u16);
}

#[test]
fn task_call_and_return() {
    let mut m = Machine::protected();
    task(&mut m, DATA, KERNEL);
    m.descriptor(sel::FREE, DATA, 0x67, 0x89);
    m.code_at(KERNEL, 32, |a| {
        a.mov(dword_ptr(0xe000), esp)?;
        a.iretd()
    });
    m.run_code(|a| {
        a.mov(ebx, 5)?;
        a.db(&[0x9a, 0, 0, 0, 0, sel::FREE as u8, 0])?;
        a.inc(ebx)?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RBX), 6, "registers come back with the task");
    assert_eq!(m.read::<u32>(0xe000), 0x6800);
    assert_eq!(m.cpu.seg[seg::TR].selector, sel::TSS);
    assert_eq!(m.read::<u16>(DATA), sel::TSS, "back link");
    let busy = |m: &Machine, s: u16| m.read::<u8>(GDT + u64::from(s) + 5) & 2 != 0;
    assert!(busy(&m, sel::TSS) && !busy(&m, sel::FREE));
    assert_ne!(m.cpu.cr0 & cr0::TS, 0);
    assert_eq!(m.cpu.rflags & bits::NT, 0);
}

#[test]
fn task_jump_leaves_the_old_task() {
    let mut m = Machine::protected();
    task(&mut m, DATA, KERNEL);
    m.descriptor(sel::FREE, DATA, 0x67, 0x89);
    m.halt_at(KERNEL);
    m.run_code(|a| a.db(&[0xea, 0, 0, 0, 0, sel::FREE as u8, 0]));
    assert_eq!(m.cpu.rip, KERNEL + 1);
    assert_eq!(m.read::<u8>(GDT + u64::from(sel::TSS) + 5), 0x89);
    assert_eq!(m.read::<u32>(TSS + 0x20), CODE as u32 + 7);
    assert_eq!(m.cpu.rflags & bits::NT, 0);
}

#[test]
fn task_with_the_trap_bit() {
    let mut m = Machine::protected();
    task(&mut m, DATA, KERNEL);
    m.write(DATA + 0x64, 1u8);
    m.descriptor(sel::FREE, DATA, 0x67, 0x89);
    m.gate(1, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    m.run_code(|a| a.db(&[0xea, 0, 0, 0, 0, sel::FREE as u8, 0]));
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u32>(2), [KERNEL as u32, u32::from(sel::CODE)]);
    assert_eq!(m.cpu.dr[6], 0xffff_0ff0 | 1 << 15);
}

#[test]
fn task_gate_for_a_double_fault() {
    let mut m = Machine::protected();
    task(&mut m, DATA, KERNEL);
    m.descriptor(sel::FREE, DATA, 0x67, 0x89);
    m.gate(8, sel::FREE, 0, 0x85);
    m.halt_at(KERNEL);
    // The handler of #GP is in a segment that is not there.
    m.gate(13, 0x78, HANDLER, 0x8e);
    m.run_code(|a| {
        a.mov(eax, 0x70)?;
        a.mov(ds, eax)
    });
    assert_eq!(m.cpu.rip, KERNEL + 1);
    assert_eq!(m.stack::<u32>(1), [0], "the error code is on the new task's stack");
    assert_ne!(m.cpu.rflags & bits::NT, 0);
    assert_eq!(m.read::<u32>(TSS + 0x20), CODE as u32 + 5);
}

#[test]
fn a_task_with_a_bad_segment_faults_in_the_new_task() {
    let mut m = Machine::protected();
    task(&mut m, DATA, KERNEL);
    m.write(DATA + 0x54, 0x78u32);
    m.descriptor(sel::FREE, DATA, 0x67, 0x89);
    m.gate(10, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    m.run_code(|a| a.db(&[0xea, 0, 0, 0, 0, sel::FREE as u8, 0]));
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u32>(2), [0x78, KERNEL as u32]);
    assert_eq!(m.cpu.seg[seg::TR].selector, sel::FREE);
}

#[test]
fn paging_with_4_mib_pages() {
    let mut m = Machine::protected();
    m.write(TABLES, 0x0000_0083u32);
    // 4 MiB at 0xc0000000 is the same memory.
    m.write(TABLES + 0x300 * 4, 0x0000_0083u32);
    m.gate(14, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    m.write(DATA, 0x77u8);
    m.run_code(|a| {
        a.mov(eax, cr4::PSE as i32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, cr0::PG as u32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(bl, byte_ptr(0xc000_0000u32 + DATA as u32))?;
        a.mov(cl, byte_ptr(0xd000_0000u32))
    });
    assert_eq!(m.reg(reg::RBX) & 0xff, 0x77);
    assert_eq!((m.cpu.rip, m.cpu.cr2), (HANDLER + 1, 0xd000_0000));
    assert_eq!(m.stack::<u32>(1), [0]);
}

#[test]
fn pae_paging_checks_its_directory_pointers() {
    let mut m = Machine::protected();
    m.write(TABLES, (TABLES + 0x1000) | 1);
    m.write(TABLES + 0x1000, 0x83u64);
    // Reserved bits in the second pointer.
    m.write(TABLES + 8, 7u64);
    m.gate(13, sel::CODE, HANDLER, 0x8e);
    m.halt_at(HANDLER);
    let program = |a: &mut CodeAssembler| {
        a.mov(eax, cr4::PAE as i32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, cr0::PG as u32 as i32)?;
        a.mov(cr0, eax)?;
        a.hlt()
    };
    m.run_code(program);
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.cpu.cr0 & cr0::PG, 0);
    m.write(TABLES + 8, 0u64);
    m.set(reg::RSP, STACK);
    m.run_code(program);
    assert_ne!(m.cpu.cr0 & cr0::PG, 0);
    assert_eq!(m.cpu.rip, CODE + 28);
}

#[test]
fn bound_and_into() {
    let mut m = Machine::protected();
    m.gate(5, sel::CODE, HANDLER, 0x8e);
    m.gate(4, sel::CODE, KERNEL, 0xee);
    m.halt_at(HANDLER);
    m.halt_at(KERNEL);
    m.write(DATA, (-2i32) as u32);
    m.write(DATA + 4, 2u32);
    m.run_code(|a| {
        a.mov(eax, -2)?;
        a.bound(eax, qword_ptr(DATA as u32))?;
        a.mov(eax, 3)?;
        a.bound(eax, qword_ptr(DATA as u32))
    });
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u32>(1), [CODE as u32 + 16]);
    m.run_code(|a| {
        a.mov(eax, i32::MAX)?;
        a.inc(eax)?;
        a.into()
    });
    assert_eq!(m.cpu.rip, KERNEL + 1);
}

#[test]
fn string_port_input_gives_all_ones() {
    let mut m = Machine::protected();
    m.run_code(|a| {
        a.cld()?;
        a.mov(edi, DATA as i32)?;
        a.mov(ecx, 3)?;
        a.mov(edx, 0x1f0)?;
        a.rep().insw()?;
        a.hlt()
    });
    assert_eq!(m.read::<u64>(DATA), 0xffff_ffff_ffff);
    assert_eq!((m.reg(reg::RCX), m.reg(reg::RDI)), (0, DATA + 6));
}
