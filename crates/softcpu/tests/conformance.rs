//! Mistakes that public test suites have found.

mod common;

use common::{DATA, Machine, sel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{attr, cr0, cr4, efer, reg, seg};
use trapline_softcpu::msr::index;

/// Runs a program at [`common::CODE`] to the HLT behind it.
fn run(m: &mut Machine, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let end = m.code(|a| {
        f(a)?;
        a.hlt()
    });
    m.cpu.rip = common::CODE;
    m.run_to(end - 1);
}

#[test]
fn loop_with_an_address_size_prefix_counts_in_ecx() {
    let mut m = Machine::long();
    run(&mut m, |a| {
        let mut again = a.create_label();
        a.mov(rcx, 0x1_0000_0001u64)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.db(&[0x67, 0xe2, 0xfb])
    });
    assert_eq!((m.reg(reg::RAX), m.reg(reg::RCX)), (1, 0));
}

#[test]
fn a_shift_by_a_zero_cl_keeps_the_flags_of_the_instruction_before() {
    let mut m = Machine::long();
    run(&mut m, |a| {
        a.xor(ecx, ecx)?;
        a.mov(eax, 0xff)?;
        a.add(al, 1)?;
        a.shl(rdx, cl)?;
        a.pushfq()?;
        a.pop(rbx)
    });
    assert_eq!(m.reg(reg::RBX) & 0x8d5, 0x55, "CF, ZF, AF and PF");
}

/// A handler that halts for each of these exceptions, and where it is.
fn handler(m: &mut Machine, vector: u8) -> u64 {
    let at = 0x5100 + u64::from(vector) * 16;
    m.gate64(vector, at, 0x8e, 0);
    m.halt_at(at)
}

#[test]
fn an_address_through_the_stack_segment_that_is_not_canonical_is_a_stack_fault() {
    const FAR: u64 = 0x8000_0000_0000;
    for (n, code) in [
        // mov rax, [rsp]; mov rax, [rbp]; push rax; pop rax; call $+5; ret; leave; mov rax, ss:[rbx]
        &[0x48, 0x8b, 0x04, 0x24][..],
        &[0x48, 0x8b, 0x45, 0x00],
        &[0x50],
        &[0x58],
        &[0xe8, 0, 0, 0, 0],
        &[0xc3],
        &[0xc9],
        &[0xc8, 0, 0, 2],
    ]
    .iter()
    .enumerate()
    {
        let mut m = Machine::long();
        // The handler needs a stack of its own.
        m.write(common::TSS + 0x24, common::STACK);
        m.gate64(12, 0x5200, 0x8e, 1);
        m.halt_at(0x5200);
        m.set(reg::RSP, FAR + 0x100);
        m.set(reg::RBP, FAR + 0x100);
        m.code(|a| a.db(code));
        m.cpu.rip = common::CODE;
        m.run();
        assert_eq!(m.cpu.rip, 0x5201, "case {n}");
        assert_eq!(m.stack::<u64>(2), [0, common::CODE], "case {n}");
    }
    // Other segments: #GP.
    let mut m = Machine::long();
    let gp = handler(&mut m, 13);
    m.set(reg::RBX, FAR);
    m.code(|a| a.mov(rax, qword_ptr(rbx)));
    m.cpu.rip = common::CODE;
    m.run_to(gp);
}

#[test]
fn a_debug_exception_after_mov_ss_takes_what_was_held_back() {
    let mut m = Machine::long();
    let db = handler(&mut m, 1);
    // A watched load of SS, then INT1: one debug exception, of INT1.
    m.write(DATA, u64::from(sel::DATA));
    m.cpu.dr[0] = DATA;
    m.cpu.dr[7] = 0x000f_0403;
    m.cpu.dr[6] = 0xffff_0ff0;
    m.code(|a| {
        a.mov(ss, word_ptr(DATA))?;
        a.db(&[0xf1])?;
        a.hlt()
    });
    m.cpu.rip = common::CODE;
    m.run_to(db);
    assert_eq!((m.cpu.dr[6], m.cpu.pending_debug), (0xffff_0ff0, 0));
}

#[test]
fn protection_keys_restrict_user_and_supervisor_pages() {
    let mut m = Machine::long();
    let pf = handler(&mut m, 14);
    let ud = handler(&mut m, 6);
    // Without CR4.PKE the instructions do not exist.
    m.code(|a| a.db(&[0x0f, 0x01, 0xee]));
    m.cpu.rip = common::CODE;
    m.run_to(ud);

    m.cpu.set_cr4(m.cpu.cr4 | cr4::PKE | cr4::PKS).unwrap();
    let entry = common::TABLES + 0x3000 + (DATA >> 12) * 8;
    for (user, kind) in [(4u64, "user"), (0, "supervisor")] {
        // Key 3 for the page.
        m.write(entry, DATA | 3 | user | 3 << 59);
        m.cpu.mmu.flush_all();
        for (rights, write, allowed) in
            [(0u32, true, true), (1, false, false), (2, false, true), (2, true, false), (1, true, false)]
        {
            let (pkru, pkrs) = if user != 0 { (rights << 6, 0) } else { (0, rights << 6) };
            m.cpu.write_msr(index::PKRS, pkrs.into()).unwrap();
            m.set(reg::RAX, pkru.into());
            m.set(reg::RCX, 0);
            m.set(reg::RDX, 0);
            m.code(|a| {
                a.db(&[0x0f, 0x01, 0xef])?;
                if write {
                    a.mov(dword_ptr(DATA), ebx)?
                } else {
                    a.mov(ebx, dword_ptr(DATA))?
                }
                a.db(&[0x0f, 0x01, 0xee])
            });
            m.cpu.rip = common::CODE;
            m.run();
            let what = format!("{kind} page, rights {rights}, write {write}");
            if allowed {
                assert_eq!((m.reg(reg::RAX), m.reg(reg::RDX)), (pkru.into(), 0), "{what}");
            } else {
                assert_eq!((m.cpu.rip, m.cpu.cr2), (pf + 1, DATA), "{what}");
                // PK, present, and whether it was a write.
                assert_eq!(m.stack::<u64>(1), [0x21 | u64::from(write) << 1], "{what}");
            }
        }
    }
    // The registers take what they have bits for.
    assert!(m.cpu.write_msr(index::PKRS, 1 << 32).is_err());
    let gp = handler(&mut m, 13);
    m.set(reg::RCX, 1);
    m.code(|a| a.db(&[0x0f, 0x01, 0xef]));
    m.cpu.rip = common::CODE;
    m.run_to(gp);
}

#[test]
fn xsave_and_xsaves_move_pkru() {
    let mut m = Machine::long();
    m.cpu.set_cr4(m.cpu.cr4 | cr4::OSXSAVE | cr4::PKE).unwrap();
    m.cpu.set_xcr0(0x203).unwrap();
    m.cpu.set_pkru(0x5555_5550);
    m.set(reg::RBX, DATA);
    run(&mut m, |a| {
        a.mov(eax, 0x203)?;
        a.xor(edx, edx)?;
        a.xsave(ptr(rbx))?;
        a.xsaves(ptr(rbx + 0x1000))?;
        a.xor(ecx, ecx)?;
        a.mov(eax, 4)?;
        a.db(&[0x0f, 0x01, 0xef])?; // wrpkru
        a.mov(eax, 0x200)?;
        a.xrstors(ptr(rbx + 0x1000))
    });
    assert_eq!(m.read::<u64>(DATA + 2688), 0x5555_5550);
    assert_eq!(m.read::<u64>(DATA + 0x1000 + 576), 0x5555_5550);
    assert_eq!(m.read::<u64>(DATA + 0x1000 + 520), 1 << 63 | 0x203);
    assert_eq!(m.read::<u64>(DATA + 512) & 0x200, 0x200);
    assert_eq!(m.cpu.pkru, 0x5555_5550);
    // XRSTORS takes no standard image, and is not for user code.
    let gp = handler(&mut m, 13);
    m.code(|a| a.xrstors(ptr(rbx)));
    m.cpu.rip = common::CODE;
    m.run_to(gp);
}

#[test]
fn five_level_paging_translates_57_bits() {
    let mut m = Machine::long();
    // LA57 changes outside long mode alone.
    assert!(m.cpu.set_cr4(m.cpu.cr4 | cr4::LA57).is_err());
    const TOP: u64 = common::TABLES + 0x8000;
    m.write(TOP, common::TABLES | 7);
    m.write(TOP + 8, common::TABLES | 7);
    m.cpu.efer &= !efer::LMA;
    m.cpu.cr0 &= !cr0::PG;
    m.cpu.set_cr4(m.cpu.cr4 | cr4::LA57).unwrap();
    m.cpu.set_cr3(TOP).unwrap();
    m.cpu.seg[seg::CS].attr &= !attr::L;
    m.cpu.set_cr0(m.cpu.cr0 | cr0::PG).unwrap();
    m.cpu.seg[seg::CS].attr |= attr::L;
    m.cpu.mode_changed();
    m.set(reg::RSP, common::STACK);
    m.write(DATA, 0x1234_5678u32);
    m.set(reg::RBX, 1 << 48 | DATA);
    run(&mut m, |a| a.mov(eax, dword_ptr(rbx)));
    assert_eq!(m.reg(reg::RAX), 0x1234_5678);
}

#[test]
fn a_near_return_that_faults_leaves_the_stack_pointer() {
    let mut m = Machine::protected();
    m.gate(13, sel::CODE, 0x5100, 0x8e);
    m.halt_at(0x5100);
    m.cpu.seg[seg::CS].limit = 0xffff;
    m.cpu.mode_changed();
    m.write(common::STACK - 4, 0x10_0000u32);
    m.set(reg::RSP, common::STACK - 4);
    m.code(|a| a.ret());
    m.cpu.rip = common::CODE;
    m.run();
    assert_eq!(m.cpu.rip, 0x5101);
    assert_eq!(m.reg(reg::RSP), common::STACK - 4 - 16, "error code, EIP, CS and EFLAGS");
}

#[test]
fn registers_hold_57_bit_addresses_in_four_level_paging_too() {
    let (wide, wider) = (0x00aa_aaaa_aaaa_aaaau64, 0x0aaa_aaaa_aaaa_aaaau64);
    let mut m = Machine::long();
    for msr in [index::FS_BASE, index::KERNEL_GS_BASE, index::LSTAR] {
        assert!(m.cpu.write_msr(msr, wide).is_ok() && m.cpu.write_msr(msr, wider).is_err(), "{msr:#x}");
    }
    m.write(DATA + 2, wide);
    run(&mut m, |a| a.lidt(ptr(DATA)));
    assert_eq!(m.cpu.idtr.base, wide);
    let mut old = Machine::long_model(trapline_softcpu::cpuid::Model::default());
    assert!(old.cpu.write_msr(index::FS_BASE, wide).is_err());
}

#[test]
fn arpl_writes_only_what_changes() {
    let mut m = Machine::protected();
    m.gate(13, sel::CODE, 0x5100, 0x8e);
    m.halt_at(0x5100);
    m.cpu.seg[seg::DS].attr &= !attr::WRITABLE;
    m.write(DATA, 3u16);
    run(&mut m, |a| {
        a.mov(bx, 1)?;
        a.arpl(word_ptr(DATA), bx)?;
        a.setz(cl)?;
        a.mov(edx, 1)
    });
    assert_eq!((m.reg(reg::RCX) & 0xff, m.reg(reg::RDX)), (0, 1));
    m.write(DATA, 0u16);
    m.code(|a| a.arpl(word_ptr(DATA), bx));
    m.cpu.rip = common::CODE;
    m.run();
    assert_eq!(m.cpu.rip, 0x5101, "what changes must be writable");
}

#[test]
fn enter_with_a_32_bit_operand_keeps_all_of_esp_on_a_16_bit_stack() {
    let mut m = Machine::protected();
    m.cpu.seg[seg::SS].attr &= !attr::DB;
    m.cpu.mode_changed();
    m.set(reg::RSP, 0x1_7000);
    m.set(reg::RBP, 0x1_6ff0);
    run(&mut m, |a| a.enter(8, 0));
    assert_eq!((m.reg(reg::RSP), m.reg(reg::RBP)), (0x1_6ff4, 0x1_6ffc));
}

#[test]
fn a_16_bit_task_starts_with_the_upper_halves_all_ones() {
    const NEW: u64 = 0x3800;
    let mut m = Machine::protected();
    m.descriptor(sel::FREE, NEW, 0x2b, 0x81);
    let word = |m: &mut Machine, at: u64, v: u16| m.write(NEW + at, v);
    word(&mut m, 0x0e, 0x9800);
    word(&mut m, 0x10, 2);
    word(&mut m, 0x12, 0x1234);
    word(&mut m, 0x1a, 0x6f00);
    for (at, selector) in [(0x22, sel::DATA), (0x24, sel::CODE), (0x26, sel::DATA), (0x28, sel::DATA)] {
        word(&mut m, at, selector);
    }
    m.halt_at(0x9800);
    m.set(reg::RAX, 0x5555_5555);
    m.code(|a| a.db(&[0xea, 0, 0, 0, 0, sel::FREE as u8, 0]));
    m.cpu.rip = common::CODE;
    m.run();
    assert_eq!((m.cpu.rip, m.reg(reg::RAX)), (0x9801, 0xffff_1234));
}

#[test]
fn bmi_needs_protected_mode() {
    // andn eax, ebx, ecx
    let andn = [0xc4, 0xe2, 0x60, 0xf2, 0xc1];
    let mut m = Machine::protected();
    m.set(reg::RBX, 0xf0);
    m.set(reg::RCX, 0xff);
    run(&mut m, |a| a.db(&andn));
    assert_eq!(m.reg(reg::RAX), 0x0f);
    let mut m = Machine::real();
    m.write(6 * 4, 0x5100u32);
    m.halt_at(0x5100);
    m.code(|a| a.db(&andn));
    m.cpu.rip = common::CODE;
    m.run();
    assert_eq!(m.cpu.rip, 0x5101);
}
