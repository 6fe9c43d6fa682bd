//! Which operations have templates: one whose handler is another than the table says is called alone, which is right
//! but slow, and nobody would notice.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions};

use super::emit::Emitter;
use crate::cpuid::Model;
use crate::lower;

/// Asserts that host code does all of a block itself.
#[track_caller]
fn all_have_templates(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    let code = a.assemble(0x1000).unwrap();
    let ops = lower::operations(&Model::max(), &code);
    assert!(!ops.is_empty());
    let called: Vec<String> = ops
        .iter()
        .filter(|op| Emitter::chosen(op).is_none())
        .map(|op| Decoder::new(64, &code[usize::from(op.off)..], DecoderOptions::NONE).decode().to_string())
        .collect();
    assert!(called.is_empty(), "no templates: {called:?}");
}

#[test]
fn a_loop_that_copies_bytes() {
    all_have_templates(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.movzx(ecx, byte_ptr(rsi + rdx))?;
        a.mov(byte_ptr(rdi + rdx), cl)?;
        a.add(rdx, 1)?;
        a.cmp(rdx, rax)?;
        a.jne(again)
    });
}

#[test]
fn a_loop_that_hashes_a_string() {
    all_have_templates(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.imul_3(eax, eax, 31)?;
        a.movsx(edx, byte_ptr(rdi))?;
        a.add(rdi, 1)?;
        a.add(eax, edx)?;
        a.rol(eax, 5)?;
        a.xor(eax, edx)?;
        a.test(dl, dl)?;
        a.jne(again)
    });
}

#[test]
fn a_loop_that_sorts() {
    all_have_templates(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(rbx + rcx * 4))?;
        a.mov(edx, dword_ptr(rbx + rcx * 4 + 4))?;
        a.cmp(eax, edx)?;
        a.cmovg(r8d, eax)?;
        a.setle(r9b)?;
        a.mov(dword_ptr(rbx + rcx * 4), edx)?;
        a.mov(dword_ptr(rbx + rcx * 4 + 4), eax)?;
        a.inc(rcx)?;
        a.dec(r10d)?;
        a.jg(again)
    });
}

#[test]
fn the_start_and_the_end_of_a_function() {
    all_have_templates(|a| {
        let mut callee = a.create_label();
        for r in [rbp, r15, r14, rbx] {
            a.push(r)?;
        }
        a.mov(rbp, rsp)?;
        a.sub(rsp, 0x28)?;
        a.mov(rax, qword_ptr(0x28).fs())?;
        a.mov(qword_ptr(rsp + 0x20), rax)?;
        a.xor(eax, eax)?;
        a.lea(rdi, qword_ptr(rsp + 8))?;
        a.mov(dword_ptr(rsp + 8), 1)?;
        a.and(qword_ptr(rsp + 0x10), 0)?;
        a.call(callee)?;
        a.set_label(&mut callee)?;
        a.ret()
    });
    all_have_templates(|a| {
        a.mov(rax, qword_ptr(rsp + 0x20))?;
        a.xor(rax, qword_ptr(0x28).fs())?;
        a.add(rsp, 0x28)?;
        for r in [rbx, r14, r15, rbp] {
            a.pop(r)?;
        }
        a.ret()
    });
}

#[test]
fn an_interpreter_of_its_own() {
    all_have_templates(|a| {
        a.movzx(eax, word_ptr(rsi))?;
        a.add(rsi, 2)?;
        a.mov(ecx, eax)?;
        a.shr(ecx, 8)?;
        a.and(eax, 0xff)?;
        a.movsxd(rdx, dword_ptr(rbx + rax * 4))?;
        a.neg(rcx)?;
        a.sar(rcx, 3)?;
        a.adc(r8, qword_ptr(rdi))?;
        a.sbb(r9, r9)?;
        a.not(r9d)?;
        a.cdqe()?;
        a.cqo()?;
        a.add(rdx, rbx)?;
        a.jmp(rdx)
    });
    all_have_templates(|a| a.jmp(qword_ptr(rbx + rax * 8)));
    all_have_templates(|a| a.call(qword_ptr(rdi + 0x18)));
    all_have_templates(|a| a.call(rax));
}

#[test]
fn a_loop_that_sums_numbers() {
    all_have_templates(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.movsd_2(xmm0, qword_ptr(rsi + rax * 8))?;
        a.mulsd(xmm0, qword_ptr(rdi + rax * 8))?;
        a.addsd(xmm1, xmm0)?;
        a.movups(xmm2, xmmword_ptr(rsi))?;
        a.pxor(xmm3, xmm3)?;
        a.paddd(xmm3, xmm2)?;
        a.cvttsd2si(ecx, xmm1)?;
        a.ucomisd(xmm1, xmm0)?;
        a.cmp(rax, rdx)?;
        a.jb(again)
    });
}
