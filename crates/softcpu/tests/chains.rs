//! What blocks do behind the program's back: links between pages, pairs of stack operations, the shadow of STI.

mod common;

use common::{CODE, DATA, Machine, STACK, TABLES, sel};
use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::{self, Activity, Signals, efer, reg};
use trapline_softcpu::flags::bits;

const PAGE: u64 = 0x1000;
const HANDLER: u64 = 0xa000;
/// Two pages of code, one after the other in linear addresses.
const FIRST: u64 = 0x2_0000;
const SECOND: u64 = FIRST + PAGE;
/// Where else the second may be.
const OTHER: u64 = 0x3_0000;

/// Maps the page of linear address `lin` to `place`.
fn map(m: &mut Machine, lin: u64, place: u64) {
    m.write(TABLES + 0x3000 + (lin >> 12) * 8, place | 7);
}

/// A function at `at` that gives `answer`.
fn answer(m: &mut Machine, at: u64, answer: u32) {
    m.code_at(at, 64, |a| {
        a.mov(eax, answer)?;
        a.ret()
    });
}

/// A program that sums what `SECOND` answers, three calls before and three after `change`, the sum of the
/// former in the upper half of RBX.
fn sums(m: &mut Machine, change: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (u64, u64) {
    m.code_at(FIRST, 64, |a| {
        let (mut before, mut after) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.mov(ecx, 3)?;
        a.set_label(&mut before)?;
        a.call(SECOND)?;
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(before)?;
        a.shl(rbx, 32)?;
        change(a)?;
        a.mov(ecx, 3)?;
        a.set_label(&mut after)?;
        a.call(SECOND)?;
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(after)?;
        a.hlt()
    });
    m.cpu.rip = FIRST;
    m.run();
    (m.reg(reg::RBX) >> 32, m.reg(reg::RBX) & 0xffff_ffff)
}

/// Two answers: at `SECOND`, and at `OTHER`, which `SECOND` will be mapped to.
fn two_answers() -> Machine {
    let mut m = Machine::long();
    answer(&mut m, SECOND, 1);
    answer(&mut m, OTHER, 10);
    m
}

/// Writes the entry that maps `SECOND` to `OTHER`.
fn remap(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(TABLES + 0x3000 + (SECOND >> 12) * 8), OTHER as i32 | 7)
}

#[test]
fn a_call_to_another_page_follows_invlpg() {
    let sums = sums(&mut two_answers(), |a| {
        remap(a)?;
        a.invlpg(byte_ptr(SECOND))
    });
    assert_eq!(sums, (3, 30));
}

#[test]
fn a_call_to_another_page_follows_cr3() {
    let sums = sums(&mut two_answers(), |a| {
        remap(a)?;
        a.mov(rdx, cr3)?;
        a.mov(cr3, rdx)
    });
    assert_eq!(sums, (3, 30));
}

#[test]
fn address_spaces_have_links_of_their_own() {
    let mut m = two_answers();
    // A second set of tables, PCID 2, where only `SECOND` differs.
    let tables = TABLES + 0x10_000;
    for level in 0..4 {
        for i in 0..512 {
            let entry: u64 = m.read(TABLES + level * PAGE + i * 8);
            let moved = if level < 3 && entry != 0 { entry + 0x10_000 } else { entry };
            m.write(tables + level * PAGE + i * 8, moved);
        }
    }
    m.write(tables + 0x3000 + (SECOND >> 12) * 8, OTHER | 7);
    m.cpu.set_cr4(m.cpu.cr4 | cpu::cr4::PCIDE).unwrap();
    for _ in 0..3 {
        let sums = sums(&mut m, |a| {
            a.mov(rdx, cr3)?;
            a.mov(r8, tables | 2 | 1 << 63)?;
            a.mov(cr3, r8)
        });
        assert_eq!(sums, (3, 30));
        m.cpu.set_cr3(TABLES | 1 << 63).unwrap();
    }
}

#[test]
fn one_page_mapped_twice_leads_to_two_places() {
    // The same code page at two linear addresses, each followed by another page.
    let mut m = two_answers();
    let alias = 0x4_0000;
    map(&mut m, alias, FIRST);
    map(&mut m, alias + PAGE, OTHER);
    m.code_at(FIRST + 0x100, 64, |a| {
        a.call(SECOND)?;
        a.ret()
    });
    m.run_code(|a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 4)?;
        a.set_label(&mut again)?;
        for at in [FIRST, alias] {
            a.call(at + 0x100)?;
            a.add(rbx, rax)?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    assert_eq!(m.reg(reg::RBX), 4 * 11);
}

#[test]
fn links_outlast_their_counter() {
    // More INVLPGs of a linked page than there are epochs of links.
    let mut m = two_answers();
    m.code(|a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 17_000)?;
        a.set_label(&mut again)?;
        a.call(SECOND)?;
        a.add(rbx, rax)?;
        a.call(SECOND)?;
        a.add(rbx, rax)?;
        a.invlpg(byte_ptr(SECOND))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    m.cpu.run_for(1_000_000);
    assert_eq!((m.reg(reg::RCX), m.reg(reg::RBX)), (0, 34_000));
}

#[test]
fn two_pushes_and_the_second_faults() {
    let mut m = Machine::long();
    m.gate64(14, HANDLER, 0x8e, 1);
    m.halt_at(HANDLER);
    m.write(common::TSS + 0x24, STACK); // IST 1
    // The first push fills the first word of a page, and the page below is not there.
    m.write(TABLES + 0x3000 + (OTHER >> 12) * 8, 0u64);
    let top = OTHER + PAGE + 8;
    m.set(reg::RAX, 0x1111);
    m.set(reg::RBX, 0x2222);
    m.set(reg::RSP, top);
    m.run_code(|a| {
        a.push(rax)?;
        a.push(rbx)?;
        a.hlt()
    });
    assert_eq!((m.cpu.rip, m.cpu.cr2), (HANDLER + 1, top - 16));
    assert_eq!(m.read::<u64>(top - 8), 0x1111);
    // Error code, RIP of the second push, CS, RFLAGS, RSP after the first.
    let frame = m.stack::<u64>(5);
    assert_eq!((frame[1], frame[4]), (CODE + 1, top - 8));
}

#[test]
fn pairs_push_and_pop_in_order() {
    let mut m = Machine::long();
    for r in [reg::RAX, reg::RBX, reg::RCX, reg::RDX, reg::RSI] {
        m.set(r, 0x100 + u64::from(r));
    }
    m.run_code(|a| {
        for r in [rax, rbx, rcx, rdx, rsi] {
            a.push(r)?;
        }
        for r in [r8, r9, r10, r11, r12] {
            a.pop(r)?;
        }
        a.push(rsp)?;
        a.push(rax)?;
        a.pop(r13)?;
        a.pop(r14)?;
        a.push(rbx)?;
        a.pop(rsp)?;
        a.hlt()
    });
    let popped: Vec<u64> = (8..13).map(|r| m.reg(r)).collect();
    assert_eq!(popped, [reg::RSI, reg::RDX, reg::RCX, reg::RBX, reg::RAX].map(|r| 0x100 + u64::from(r)));
    assert_eq!((m.reg(13), m.reg(14)), (0x100, STACK));
    assert_eq!(m.reg(reg::RSP), 0x100 + u64::from(reg::RBX));
}

#[test]
fn a_trap_falls_between_two_pushes() {
    let mut m = Machine::long();
    m.gate64(1, HANDLER, 0x8e, 0);
    m.halt_at(HANDLER);
    m.code(|a| {
        a.push(rax)?;
        a.push(rbx)
    });
    // Decoded as a pair first, then stepped through.
    m.code_at(CODE + 2, 64, |a| a.hlt());
    m.cpu.rip = CODE;
    m.run();
    m.set(reg::RSP, STACK);
    m.cpu.rip = CODE;
    m.cpu.rflags |= bits::TF;
    m.run();
    assert_eq!(m.cpu.rip, HANDLER + 1);
    let frame = m.stack::<u64>(4);
    assert_eq!((frame[0], frame[1], frame[3]), (CODE + 1, u64::from(sel::CODE), STACK - 8));
}

/// With host code at once, and without.
const WAYS: [Option<u32>; 2] = [Some(0), None];

#[test]
fn a_block_dropped_by_its_last_instruction_goes_on_behind_it() {
    for way in WAYS {
        let mut m = Machine::long();
        m.cpu.translate_after(way);
        // 31 instructions of one byte and the store make a block; what it adds to lies in the same line.
        m.code(|a| {
            for _ in 0..31 {
                a.nop()?;
            }
            a.inc(dword_ptr(CODE + 60))?;
            a.hlt()
        });
        m.write(CODE + 60, 0u32);
        m.cpu.rip = CODE;
        let before = m.cpu.icount;
        m.run();
        assert_eq!((m.read::<u32>(CODE + 60), m.cpu.icount - before), (1, 33), "{way:?}");
    }
}

#[test]
fn a_call_that_drops_its_block_calls_once() {
    for way in WAYS {
        let mut m = Machine::long();
        m.cpu.translate_after(way);
        m.halt_at(HANDLER);
        m.code(|a| a.call(HANDLER));
        m.set(reg::RSP, CODE + 60);
        m.cpu.rip = CODE;
        let before = m.cpu.icount;
        m.run();
        assert_eq!((m.cpu.rip, m.reg(reg::RSP)), (HANDLER + 1, CODE + 52), "{way:?}");
        assert_eq!((m.read::<u64>(CODE + 52), m.cpu.icount - before), (CODE + 5, 2), "{way:?}");
    }
}

#[test]
fn a_jump_that_is_overwritten_is_not_taken_nor_counted() {
    for way in WAYS {
        let mut m = Machine::long();
        m.cpu.translate_after(way);
        m.halt_at(HANDLER);
        m.halt_at(HANDLER + PAGE);
        // The store makes the jump behind it one to the other page.
        let end = m.code(|a| {
            a.add(dword_ptr(CODE + 32), 0x1000)?;
            for _ in 0..(31 - 11) {
                a.nop()?;
            }
            a.jmp(HANDLER)
        });
        assert_eq!(end, CODE + 36, "the distance lies where it is changed");
        m.cpu.rip = CODE;
        let before = m.cpu.icount;
        m.run();
        assert_eq!((m.cpu.rip, m.cpu.icount - before), (HANDLER + PAGE + 1, 23), "{way:?}");
    }
}

#[test]
fn a_jump_alone_in_its_block_counts_once_when_the_block_was_dropped() {
    for way in WAYS {
        let mut m = Machine::long();
        m.cpu.translate_after(way);
        // Rounds, of which the last writes to the line of a jump that the link leads to.
        m.code_at(SECOND, 64, |a| a.jmp(SECOND + 256));
        m.code_at(SECOND + 256, 64, |a| {
            a.dec(ecx)?;
            a.cmp(ecx, 1)?;
            a.cmove(rdx, rsi)?;
            a.test(ecx, ecx)?;
            a.jnz(FIRST)?;
            a.hlt()
        });
        m.code_at(FIRST, 64, |a| {
            a.mov(byte_ptr(rdx), cl)?;
            a.jmp(SECOND)
        });
        m.set(reg::RCX, 5);
        m.set(reg::RDX, DATA);
        m.set(reg::RSI, SECOND + 32);
        m.cpu.rip = FIRST;
        let before = m.cpu.icount;
        m.run();
        assert_eq!(m.cpu.icount - before, 5 * 8 + 1, "{way:?}");
    }
}

#[test]
fn a_block_that_changes_itself_in_each_round_fills_all_room() {
    // Each round is decoded and translated anew, which fills the memory for host code some times over.
    const ROUNDS: u32 = 40_000;
    let mut m = Machine::long();
    let flushes = m.cpu.code.stats.flushes;
    m.code_at(FIRST, 64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, 0)?;
        a.add(rbx, rax)?;
        for n in 0..26 {
            a.add(dword_ptr(rdi + 4 * n), eax)?;
        }
        a.inc(dword_ptr(FIRST + 1))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    m.set(reg::RBX, 0);
    m.set(reg::RCX, ROUNDS.into());
    m.set(reg::RDI, DATA);
    m.cpu.rip = FIRST;
    m.run();
    let sum = u64::from(ROUNDS) * u64::from(ROUNDS - 1) / 2;
    assert_eq!(
        (m.reg(reg::RBX), m.read::<u32>(DATA), m.read::<u32>(DATA + 100)),
        (sum, sum as u32, sum as u32)
    );
    assert_eq!(m.cpu.code.stats.flushes - flushes > 1, common::mode::NATIVE);
}

#[test]
fn another_processor_changes_a_function() {
    let mut m = Machine::long();
    answer(&mut m, SECOND, 1);
    // Sums answers without end.
    m.code_at(FIRST, 64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(SECOND)?;
        a.add(rbx, rax)?;
        a.inc(rdx)?;
        a.jmp(again)
    });
    // Adds 1 to the answer in one go.
    m.code_at(OTHER, 64, |a| {
        a.add(byte_ptr(SECOND + 1), 1)?;
        a.hlt()
    });
    let cpu = &m.cpu;
    let signals = Arc::new(Signals::default());
    let mut other = Cpu::with_signals(m.arena.clone(), cpu.model.clone(), cpu.shared.clone(), signals);
    common::mode::apply(&mut other);
    other.set_cr4(cpu.cr4).unwrap();
    other.set_cr3(cpu.cr3).unwrap();
    other.set_efer(efer::LME).unwrap();
    other.set_cr0(cpu.cr0).unwrap();
    (other.seg, other.gdtr, other.idtr) = (cpu.seg, cpu.gdtr, cpu.idtr);
    other.mode_changed();
    for r in [reg::RBX, reg::RDX] {
        m.set(r, 0);
    }
    m.cpu.rip = FIRST;
    let mut expected = 0;
    for round in 1..=100 {
        let calls = m.reg(reg::RDX);
        m.cpu.run_for(1000);
        let more = m.reg(reg::RDX) - calls;
        assert!(more > 100);
        expected += more * round;
        // What a call that is under way will add is not seen yet.
        let open = expected - m.reg(reg::RBX);
        assert!(open <= round, "{open} in round {round}");
        (other.rip, other.activity) = (OTHER, Activity::Active);
        other.run_for(10);
        assert_eq!(other.activity, Activity::Hlt);
    }
}

#[test]
fn a_call_to_another_page_follows_a_way_out_of_long_mode() {
    // Out, on to five levels of tables under which the page is another one, and back.
    const OUT: u64 = 0xb000;
    const BACK: u64 = 0xc000;
    const PML5: u64 = TABLES + 0x10_000;
    let mut m = two_answers();
    m.descriptor(sel::FREE, 0, 0xfffff, common::rights::CODE32);
    m.write(PML5, TABLES | 7);
    m.code_at(OUT, 32, |a| {
        a.mov(eax, cr0)?;
        a.btr(eax, 31)?;
        a.mov(cr0, eax)?;
        a.mov(dword_ptr(TABLES + 0x3000 + (SECOND >> 12) * 8), OTHER as i32 | 7)?;
        a.mov(eax, cr4)?;
        a.or(eax, cpu::cr4::LA57 as i32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML5 as i32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.bts(eax, 31)?;
        a.mov(cr0, eax)?;
        a.push(i32::from(sel::CODE))?;
        a.push(BACK as i32)?;
        a.retf()
    });
    m.code_at(BACK, 64, |a| a.jmp(rbp));
    let sums = sums(&mut m, |a| {
        let mut back = a.create_label();
        a.lea(rbp, qword_ptr(back))?;
        a.push(i32::from(sel::FREE))?;
        a.push(OUT as i32)?;
        a.db(&[0x48, 0xcb])?; // RETFQ
        a.set_label(&mut back)?;
        a.nop()
    });
    assert_eq!(sums, (3, 30));
    assert!(m.cpu.cr4 & cpu::cr4::LA57 != 0);
}
