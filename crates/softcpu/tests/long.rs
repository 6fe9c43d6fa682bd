//! 64-bit mode: system calls, exceptions, interrupt returns, paging, MSRs.

mod common;

use common::{CODE, DATA, Machine, STACK, TABLES, TSS, USER_STACK, rights, sel};
use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{attr, cr4, reg, seg};
use trapline_softcpu::cpuid::Model;
use trapline_softcpu::flags::bits;
use trapline_softcpu::msr::index;

const HANDLER: u64 = 0x5100;
const USER: u64 = 0xc000;
const KERNEL: u64 = 0xd000;

/// Goes to user code at [`USER`] by IRETQ with these flags, and runs until something halts.
fn run_user(m: &mut Machine, flags: u64) {
    m.run_code(|a| {
        a.push(i32::from(sel::USER_DATA))?;
        a.push(USER_STACK as i32)?;
        a.push(flags as i32)?;
        a.push(i32::from(sel::USER_CODE))?;
        a.push(USER as i32)?;
        a.iretq()
    });
}

#[test]
fn syscall_and_sysret() {
    let mut m = Machine::long();
    // SYSRET: 64-bit code is the base plus 16, data the base plus 8.
    m.cpu.write_msr(index::STAR, 0x001b << 48 | 0x0008 << 32).unwrap();
    m.cpu.write_msr(index::LSTAR, KERNEL).unwrap();
    m.cpu.write_msr(index::FMASK, bits::IF | bits::DF).unwrap();
    m.code_at(USER, 64, |a| {
        a.std()?;
        a.stc()?;
        a.mov(eax, 7)?;
        a.syscall()?;
        a.pushfq()?;
        a.pop(rdi)?;
        a.mov(eax, 8)?;
        a.syscall()
    });
    m.code_at(KERNEL, 64, |a| {
        let mut done = a.create_label();
        a.mov(r8, cs)?;
        a.mov(r9, ss)?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.cmp(eax, 8)?;
        a.je(done)?;
        a.sysretq()?;
        a.set_label(&mut done)?;
        a.hlt()
    });
    run_user(&mut m, bits::FIXED | bits::IF);
    assert_eq!((m.reg(8), m.reg(9)), (0x08, 0x10));
    let flags = bits::FIXED | bits::IF | bits::DF | bits::CF;
    assert_eq!(m.reg(reg::RDI), flags, "SYSRET gives the flags back");
    assert_eq!(m.reg(reg::RSI) & (bits::IF | bits::DF), 0, "FMASK clears flags");
    assert_eq!(m.reg(reg::R11), flags);
    assert_eq!(m.cpu.cpl, 0);
    // R11 and RCX are the second call's.
    assert_eq!(m.reg(reg::RSP), USER_STACK);
    assert_eq!(m.cpu.seg[seg::CS].attr, 0xa09b);
}

#[test]
fn sysenter_and_sysexit() {
    let mut m = Machine::long();
    m.cpu.write_msr(index::SYSENTER_CS, 0x08).unwrap();
    m.cpu.write_msr(index::SYSENTER_ESP, STACK).unwrap();
    m.cpu.write_msr(index::SYSENTER_EIP, KERNEL).unwrap();
    m.code_at(USER, 64, |a| a.sysenter());
    m.code_at(KERNEL, 64, |a| a.hlt());
    run_user(&mut m, bits::FIXED | bits::IF);
    assert_eq!((m.cpu.rip, m.cpu.cpl, m.reg(reg::RSP)), (KERNEL + 1, 0, STACK));
    assert_eq!(m.cpu.rflags & bits::IF, 0);
    // SYSEXIT to 64-bit code: CS is the base plus 32, SS the base plus 40.
    m.cpu.write_msr(index::SYSENTER_CS, 0x0b).unwrap();
    m.gate64(3, HANDLER, 0xee, 0);
    m.halt_at(HANDLER);
    m.code_at(USER + 2, 64, |a| a.int3());
    m.set(reg::RDX, USER + 2);
    m.set(reg::RCX, USER_STACK);
    m.code_at(KERNEL + 1, 64, |a| a.sysexitq());
    m.run_to(HANDLER);
    let frame = m.stack::<u64>(5);
    assert_eq!((frame[0], frame[1], frame[3], frame[4]), (USER + 3, 0x2b, USER_STACK, 0x33));
    // Without a code segment, #GP.
    m.cpu.write_msr(index::SYSENTER_CS, 0).unwrap();
    m.gate64(13, HANDLER, 0x8e, 0);
    m.code_at(HANDLER + 1, 64, |a| a.sysexitq());
    m.run_to(HANDLER);
}

#[test]
fn page_fault_from_user_code() {
    let mut m = Machine::long();
    m.gate64(14, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    // The data page becomes read-only for everybody.
    m.write(TABLES + 0x3000 + (DATA >> 12) * 8, DATA | 5);
    m.code_at(USER, 64, |a| {
        a.mov(rbx, DATA + 8)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(rbx), rax)
    });
    run_user(&mut m, bits::FIXED | bits::IF);
    assert_eq!((m.cpu.rip, m.cpu.cr2), (HANDLER + 1, DATA + 8));
    let frame = m.stack::<u64>(6);
    assert_eq!(frame[0], 7, "present, write, user");
    assert_eq!(frame[2..4], [u64::from(sel::USER_CODE), bits::FIXED | bits::IF | bits::RF]);
    assert_eq!(frame[4..], [USER_STACK, u64::from(sel::USER_DATA)]);
    assert_eq!(m.reg(reg::RSP), STACK - 48);
    // RBX is ten bytes of MOV, the load three.
    assert_eq!(frame[1], USER + 13);
    // After the page is made writable and its translation forgotten, the same instruction works.
    m.write(TABLES + 0x3000 + (DATA >> 12) * 8, DATA | 7);
    m.gate64(3, KERNEL, 0xee, 0);
    m.halt_at(KERNEL);
    m.code_at(USER + 16, 64, |a| a.int3());
    m.code_at(HANDLER + 1, 64, |a| {
        a.invlpg(byte_ptr(rbx))?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    m.run_to(KERNEL);
    assert_eq!(m.stack::<u64>(2), [USER + 17, u64::from(sel::USER_CODE)]);
}

#[test]
fn supervisor_page_protection() {
    let mut m = Machine::long();
    m.gate64(14, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.cpu.set_cr4(m.cpu.cr4 | cr4::SMAP | cr4::SMEP).unwrap();
    // All pages are the user's: nothing but the page of the code and the stacks may be touched.
    for page in [CODE >> 12, HANDLER >> 12, (STACK - 8) >> 12, 0, 1, 2, 3] {
        m.write(TABLES + 0x3000 + page * 8, page << 12 | 3);
    }
    for table in [TABLES >> 12, (TABLES >> 12) + 1, (TABLES >> 12) + 2, (TABLES >> 12) + 3] {
        m.write(TABLES + 0x3000 + table * 8, table << 12 | 3);
    }
    m.run_code(|a| {
        a.stac()?;
        a.mov(rax, qword_ptr(DATA))?;
        a.clac()?;
        a.mov(rax, qword_ptr(DATA))
    });
    assert_eq!((m.cpu.rip, m.cpu.cr2), (HANDLER + 1, DATA));
    assert_eq!(m.stack::<u64>(1), [1]);
    m.set(reg::RSP, STACK);
    m.run_code(|a| {
        a.mov(eax, DATA as i32)?;
        a.jmp(rax)
    });
    assert_eq!((m.cpu.rip, m.cpu.cr2), (HANDLER + 1, DATA));
    assert_eq!(m.stack::<u64>(1), [0x11], "present, instruction fetch");
}

#[test]
fn interrupt_stack_table_and_software_interrupts() {
    let mut m = Machine::long();
    m.write(TSS + 36, 0x4ff8u64);
    m.gate64(0x80, HANDLER, 0xef, 1);
    m.halt_at(HANDLER);
    m.code_at(USER, 64, |a| a.int(0x80));
    run_user(&mut m, bits::FIXED | bits::IF);
    assert_eq!(m.cpu.rip, HANDLER + 1);
    // The stack is aligned to 16 bytes, and a trap gate leaves IF alone.
    assert_eq!(m.reg(reg::RSP), 0x4ff0 - 40);
    assert_ne!(m.cpu.rflags & bits::IF, 0);
    assert_eq!(m.stack::<u64>(1), [USER + 2]);
    assert!(m.cpu.seg[seg::SS].unusable());
    assert_eq!(m.cpu.seg[seg::SS].selector, 0);
}

#[test]
fn user_code_may_not() {
    type Program = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let programs: [Program; 10] = [
        |a| a.hlt(),
        |a| a.cli(),
        |a| a.mov(rax, cr0),
        |a| a.mov(cr3, rax),
        |a| a.mov(rax, dr7),
        |a| a.rdmsr(),
        |a| a.lgdt(tbyte_ptr(DATA)),
        |a| a.invlpg(byte_ptr(DATA)),
        |a| a.in_(al, dx),
        |a| a.swapgs(),
    ];
    for (i, p) in programs.into_iter().enumerate() {
        let mut m = Machine::long();
        m.gate64(13, HANDLER, 0x8e, 0);
        m.halt_at(HANDLER);
        m.code_at(USER, 64, p);
        run_user(&mut m, bits::FIXED);
        assert_eq!(m.cpu.rip, HANDLER + 1, "program {i}");
        assert_eq!(m.stack::<u64>(2), [0, USER], "program {i}");
    }
}

#[test]
fn io_permission_bitmap() {
    let mut m = Machine::long();
    // 32 bytes of bitmap at the TSS's end, port 0x41 allowed; a terminating byte after it.
    let map = 0x68u16;
    m.write(TSS + 0x66, map);
    for i in 0..33 {
        m.write(TSS + u64::from(map) + i, 0xffu8);
    }
    m.write(TSS + u64::from(map) + 8, 0xfdu8);
    m.cpu.seg[seg::TR].limit = 0x68 + 32;
    m.gate64(13, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.code_at(USER, 64, |a| {
        a.xor(eax, eax)?;
        a.in_(al, 0x41)?;
        a.mov(ebx, eax)?;
        a.in_(ax, 0x41)
    });
    run_user(&mut m, bits::FIXED);
    assert_eq!(m.reg(reg::RBX), 0xff, "no device: all-ones");
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u64>(2), [0, USER + 6]);
}

#[test]
fn fs_and_gs_bases() {
    let mut m = Machine::long();
    m.cpu.set_cr4(m.cpu.cr4 | cr4::FSGSBASE).unwrap();
    m.write(DATA + 8, 0x1111_2222_3333_4444u64);
    m.cpu.write_msr(index::KERNEL_GS_BASE, 0xffff_8000_0000_0000).unwrap();
    m.run_code(|a| {
        a.mov(ecx, index::FS_BASE as i32)?;
        a.mov(eax, DATA as i32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(rsi, qword_ptr(8).fs())?;
        a.mov(rdi, DATA + 4)?;
        a.wrgsbase(rdi)?;
        a.mov(rbx, qword_ptr(4).gs())?;
        a.swapgs()?;
        a.rdgsbase(r8)?;
        a.rdfsbase(r9)?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RSI), 0x1111_2222_3333_4444);
    assert_eq!(m.reg(reg::RBX), 0x1111_2222_3333_4444);
    assert_eq!((m.reg(8), m.reg(9)), (0xffff_8000_0000_0000, DATA));
    assert_eq!(m.cpu.read_msr(index::KERNEL_GS_BASE), Ok(DATA + 4));
}

#[test]
fn msr_rules() {
    let mut m = Machine::long();
    let cpu = &mut m.cpu;
    assert!(cpu.read_msr(0x1234_5678).is_err());
    assert!(cpu.write_msr(index::LSTAR, 1 << 60).is_err(), "not canonical");
    assert!(cpu.write_msr(index::PAT, 2).is_err(), "no such memory type");
    assert!(cpu.write_msr(index::EFER, 1 << 12).is_err(), "SVME");
    assert!(cpu.write_msr(index::ARCH_CAPABILITIES, 0).is_err());
    assert_eq!(cpu.write_msr(0x268, 0x0606_0606_0606_0606), Ok(()));
    assert_eq!(cpu.read_msr(0x268), Ok(0x0606_0606_0606_0606));
    assert!(cpu.write_msr(0x268, 2).is_err());
    assert!(cpu.read_msr(0x260).is_err(), "between the fixed ranges");
    cpu.write_msr(index::TSC, 1 << 40).unwrap();
    let tsc = cpu.read_msr(index::TSC).unwrap();
    assert!((1 << 40..1 << 41).contains(&tsc));
    assert!(cpu.read_msr(index::TSC_ADJUST).unwrap() > 1 << 39);
    assert!(cpu.read_msr(index::HWCR).is_err(), "AMD's");
}

#[test]
fn general_protection_for_unknown_msr() {
    let mut m = Machine::long();
    m.gate64(13, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.run_code(|a| {
        a.mov(ecx, 0x1234)?;
        a.rdmsr()
    });
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u64>(2), [0, CODE + 5]);
}

#[test]
fn cpuid_and_counters() {
    let mut m = Machine::long();
    m.run_code(|a| {
        a.mov(eax, 0x8000_0001u32)?;
        a.cpuid()?;
        a.mov(edi, edx)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rsi, rax)?;
        a.rdtscp()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.hlt()
    });
    assert_ne!(m.reg(reg::RDI) & 1 << 29, 0, "long mode");
    assert!(m.reg(reg::RAX) >= m.reg(reg::RSI));
    assert_eq!(m.reg(reg::RCX), 0, "TSC_AUX");
}

#[test]
fn random_numbers_differ() {
    let mut m = Machine::long();
    m.run_code(|a| {
        a.rdrand(rax)?;
        a.setc(cl)?;
        a.rdseed(rdx)?;
        a.rdrand(ebx)?;
        a.hlt()
    });
    assert_ne!(m.reg(reg::RAX), m.reg(reg::RDX));
    assert_eq!(m.reg(reg::RBX) >> 32, 0);
    assert_eq!(m.reg(reg::RCX) & 0xff, 1);
}

#[test]
fn descriptor_tables_round_trip() {
    let mut m = Machine::long();
    m.run_code(|a| {
        a.sgdt(tbyte_ptr(DATA))?;
        a.lidt(tbyte_ptr(DATA))?;
        a.str(ax)?;
        a.sldt(ecx)?;
        a.smsw(rdx)?;
        a.hlt()
    });
    assert_eq!(m.cpu.idtr, m.cpu.gdtr);
    assert_eq!(m.reg(reg::RAX) & 0xffff, u64::from(sel::TSS));
    assert_eq!(m.reg(reg::RCX), 0);
    assert_eq!(m.reg(reg::RDX), m.cpu.cr0);
}

#[test]
fn far_jump_to_compatibility_mode_and_back() {
    let mut m = Machine::long();
    m.descriptor(sel::FREE, 0, 0xfffff, rights::CODE32);
    m.write(DATA, 0xa000u32);
    m.write(DATA + 4, sel::FREE);
    m.code_at(0xa000, 32, |a| {
        a.mov(eax, -1)?;
        a.inc(eax)?;
        a.mov(ecx, esp)?;
        a.push(i32::from(sel::CODE))?;
        a.push(0xb000)?;
        a.retf()
    });
    m.code_at(0xb000, 64, |a| {
        a.dec(rax)?;
        a.hlt()
    });
    m.run_code(|a| a.jmp(fword_ptr(DATA)));
    assert!(m.cpu.long64);
    assert_eq!(m.cpu.rip, 0xb004);
    assert_eq!((m.reg(reg::RAX), m.reg(reg::RCX)), (u64::MAX, STACK));
}

#[test]
fn call_gate_to_inner_level() {
    let mut m = Machine::long();
    let gate = KERNEL & 0xffff | u64::from(sel::CODE) << 16 | 0xec00 << 32;
    m.write(0x1000 + u64::from(sel::FREE), gate);
    m.write(0x1000 + u64::from(sel::FREE) + 8, 0u64);
    m.write(DATA, 0u32);
    m.write(DATA + 4, sel::FREE | 3);
    m.code_at(USER, 64, |a| a.call(fword_ptr(DATA)));
    m.halt_at(KERNEL);
    run_user(&mut m, bits::FIXED);
    assert_eq!((m.cpu.rip, m.cpu.cpl), (KERNEL + 1, 0));
    let frame = m.stack::<u64>(4);
    assert_eq!(frame, [USER + 7, u64::from(sel::USER_CODE), USER_STACK, u64::from(sel::USER_DATA)]);
    // And back by a far return.
    m.code_at(KERNEL + 1, 64, |a| a.retf());
    m.gate64(3, HANDLER, 0xee, 0);
    m.halt_at(HANDLER);
    m.code_at(USER + 7, 64, |a| a.int3());
    m.run_to(HANDLER);
    assert_eq!(m.stack::<u64>(4)[3], USER_STACK);
}

#[test]
fn bad_returns_fault_at_the_return() {
    // (RIP, CS, SS), and the error code.
    let cases = [
        (1 << 60, sel::USER_CODE, sel::USER_DATA, 0),
        (USER, 0, sel::USER_DATA, 0),
        (USER, sel::USER_DATA, sel::USER_DATA, u64::from(sel::USER_DATA & !3)),
        (USER, sel::USER_CODE, sel::DATA, u64::from(sel::DATA)),
        (USER, sel::USER_CODE, 3, 0),
        (USER, 0x7b, sel::USER_DATA, 0x78),
    ];
    for (rip, code, stack, error) in cases {
        let mut m = Machine::long();
        m.gate64(13, HANDLER, 0x8e, 0);
        m.halt_at(HANDLER);
        for (i, w) in
            [rip, u64::from(code), bits::FIXED, USER_STACK, u64::from(stack)].into_iter().enumerate()
        {
            m.write(STACK - 0x100 + 8 * i as u64, w);
        }
        m.set(reg::RSP, STACK - 0x100);
        m.run_code(|a| a.iretq());
        assert_eq!(m.cpu.rip, HANDLER + 1);
        assert_eq!(m.stack::<u64>(2), [error, CODE], "{rip:#x} {code:#x} {stack:#x}");
        assert_eq!(m.stack::<u64>(5)[4], STACK - 0x100, "the stack pointer is as before");
    }
}

#[test]
fn double_fault_when_the_page_fault_handler_is_missing() {
    let mut m = Machine::long();
    m.gate64(14, HANDLER, 0x0e, 0);
    m.gate64(8, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.run_code(|a| a.mov(al, byte_ptr(0x4000_0000)));
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u64>(2), [0, CODE]);
}

#[test]
fn interrupt_shadow_after_mov_ss() {
    let mut m = Machine::long();
    m.code(|a| {
        a.mov(eax, i32::from(sel::DATA))?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.hlt()
    });
    for _ in 0..2 {
        m.cpu.run_for(1);
    }
    // The load may have run in one chain with the move before it.
    while m.cpu.rip < CODE + 7 {
        m.cpu.run_for(1);
    }
    if m.cpu.rip == CODE + 7 {
        assert_ne!(m.cpu.shadow, 0);
    }
    m.run();
    assert_eq!(m.cpu.shadow, 0);
    assert_eq!(m.cpu.seg[seg::SS].attr & attr::UNUSABLE, 0);
}

#[test]
fn no_execute() {
    let mut m = Machine::long();
    m.gate64(14, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.write(TABLES + 0x3000 + (DATA >> 12) * 8, DATA | 7 | 1 << 63);
    m.halt_at(DATA);
    m.run_code(|a| {
        a.mov(eax, DATA as i32)?;
        a.jmp(rax)
    });
    assert_eq!((m.cpu.rip, m.cpu.cr2), (HANDLER + 1, DATA));
    assert_eq!(m.stack::<u64>(1), [0x11]);
}

#[test]
fn address_spaces_by_pcid() {
    let mut m = Machine::long();
    m.cpu.set_cr4(m.cpu.cr4 | cr4::PCIDE).unwrap();
    // A second set of tables maps the data page elsewhere.
    let other = TABLES + 0x10000;
    let mut bytes = vec![0; 0x7000];
    m.arena.read_bytes(TABLES, &mut bytes).unwrap();
    m.arena.write_bytes(other, &bytes).unwrap();
    for (level, n) in [(0, 1), (1, 1), (2, 4)] {
        for i in 0..n {
            m.write(other + level * 0x1000 + i * 8, (other + (level + 1 + i) * 0x1000) | 7);
        }
    }
    m.write(other + 0x3000 + (DATA >> 12) * 8, 0xe007u64);
    m.write(DATA, 1u64);
    m.write(0xe000, 2u64);
    m.run_code(|a| {
        a.mov(rax, qword_ptr(DATA))?;
        a.mov(rcx, other | 1)?;
        a.mov(cr3, rcx)?;
        a.mov(rbx, qword_ptr(DATA))?;
        a.mov(rcx, TABLES | 1 << 63)?;
        a.mov(cr3, rcx)?;
        a.mov(rdx, qword_ptr(DATA))?;
        a.mov(rcx, other | 1 | 1 << 63)?;
        a.mov(cr3, rcx)?;
        a.mov(rsi, qword_ptr(DATA))?;
        a.hlt()
    });
    assert_eq!([reg::RAX, reg::RBX, reg::RDX, reg::RSI].map(|r| m.reg(r)), [1, 2, 1, 2]);
}

#[test]
fn extended_control_register() {
    let mut m = Machine::long();
    m.cpu.set_cr4(m.cpu.cr4 | cr4::OSXSAVE).unwrap();
    m.run_code(|a| {
        a.mov(eax, 3)?;
        a.xor(edx, edx)?;
        a.xor(ecx, ecx)?;
        a.xsetbv()?;
        a.mov(eax, 0)?;
        a.xgetbv()?;
        a.mov(esi, eax)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.hlt()
    });
    assert_eq!((m.cpu.xcr0, m.reg(reg::RSI)), (3, 3));
    assert_ne!(m.reg(reg::RCX) & 1 << 27, 0, "OSXSAVE");
    assert!(m.cpu.set_xcr0(2).is_err() && m.cpu.set_xcr0(7).is_err());
}

#[test]
fn code_goes_on_after_wrmsr() {
    let mut m = Machine::long();
    m.run_code(|a| {
        a.mov(ecx, index::STAR as i32)?;
        a.mov(eax, 5)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, index::GS_BASE as i32)?;
        a.wrmsr()?;
        a.inc(edx)?;
        a.hlt()
    });
    assert_eq!((m.cpu.msr.star, m.cpu.seg[seg::GS].base, m.reg(reg::RDX)), (5, 5, 1));
}

#[test]
fn a_segment_dropped_on_the_way_to_user_mode_keeps_its_base() {
    let mut m = Machine::long();
    m.gate64(3, HANDLER, 0xee, 0);
    m.halt_at(HANDLER);
    m.write(DATA + 0x40, 0x1234_5678_9abc_def0_u64);
    m.code_at(USER, 64, |a| {
        a.mov(ebx, gs)?;
        a.mov(rax, qword_ptr(0x40).gs())?;
        a.int3()
    });
    let base = m.cpu.seg[seg::GS].base;
    m.cpu.seg[seg::GS].base = DATA;
    assert_ne!(base, DATA);
    assert_eq!(m.cpu.seg[seg::GS].dpl(), 0);
    assert!(!m.cpu.seg[seg::GS].unusable());
    run_user(&mut m, bits::FIXED);
    assert_eq!(m.reg(reg::RBX) as u16, 0, "the selector is null");
    assert_eq!(m.reg(reg::RAX), 0x1234_5678_9abc_def0);
}

#[test]
fn misc_enable_keeps_what_can_be_written() {
    let mut m = Machine::long();
    m.cpu.write_msr(index::MISC_ENABLE, 0x4_00c5_1889).unwrap();
    assert_eq!(m.cpu.read_msr(index::MISC_ENABLE).unwrap(), 0x4_00c5_1809);
    m.cpu.write_msr(index::MISC_ENABLE, 0).unwrap();
    assert_eq!(m.cpu.read_msr(index::MISC_ENABLE).unwrap(), 0x1800);
}

#[test]
fn syscall_from_compatibility_mode_is_amds() {
    for (model, amd) in [("max,vendor=amd", true), ("max", false)] {
        let mut m = Machine::long();
        m.cpu.model = std::sync::Arc::new(Model::named(model).unwrap());
        m.cpu.write_msr(index::STAR, 0x0008 << 32).unwrap();
        m.cpu.write_msr(index::CSTAR, KERNEL).unwrap();
        m.gate64(6, HANDLER, 0x8e, 0);
        m.halt_at(HANDLER);
        m.halt_at(KERNEL);
        m.code_at(USER, 32, |a| a.syscall());
        m.run_code(|a| {
            a.push(i32::from(sel::USER_DATA))?;
            a.push(USER_STACK as i32)?;
            a.push(bits::FIXED as i32)?;
            a.push(i32::from(sel::USER_CODE32))?;
            a.push(USER as i32)?;
            a.iretq()
        });
        assert_eq!(m.cpu.rip, if amd { KERNEL } else { HANDLER } + 1, "{model}");
        if amd {
            assert_eq!((m.reg(reg::RCX), m.cpu.seg[seg::CS].selector), (USER + 2, 0x08));
        }
    }
}

#[test]
fn syscall_and_sysret_trap_by_the_flag_they_leave_behind() {
    let mut m = Machine::long();
    m.cpu.write_msr(index::STAR, 0x001b << 48 | 0x0008 << 32).unwrap();
    m.cpu.write_msr(index::LSTAR, KERNEL).unwrap();
    m.cpu.write_msr(index::FMASK, bits::TF).unwrap();
    m.gate64(1, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.code_at(USER, 64, |a| {
        a.syscall()?;
        a.nop()
    });
    // SYSCALL itself does not trap, as FMASK clears TF; SYSRET, which sets it again, does at once.
    m.code_at(KERNEL, 64, |a| {
        a.or(r11d, bits::TF as i32)?;
        a.sysretq()
    });
    run_user(&mut m, bits::FIXED);
    assert_eq!(m.cpu.rip, HANDLER + 1);
    assert_eq!(m.stack::<u64>(2), [USER + 2, u64::from(sel::USER_CODE)]);
}
