//! Mistakes that public test suites have found.

mod common;

use common::Machine;
use iced_x86::code_asm::*;
use trapline_softcpu::cpu::reg;

#[test]
fn loop_with_an_address_size_prefix_counts_in_ecx() {
    let mut m = Machine::long();
    m.run_code(|a| {
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
    m.run_code(|a| {
        a.xor(ecx, ecx)?;
        a.mov(eax, 0xff)?;
        a.add(al, 1)?;
        a.shl(rdx, cl)?;
        a.pushfq()?;
        a.pop(rbx)
    });
    assert_eq!(m.reg(reg::RBX) & 0x8d5, 0x55, "CF, ZF, AF and PF");
}
