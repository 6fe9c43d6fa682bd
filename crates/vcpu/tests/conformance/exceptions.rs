//! Exceptions through the interrupt descriptor table: vector, error code, return address (SDM vol. 3
//! chapter 6).

use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;
use trapline_vcpu::Exit;

use crate::harness::*;

fn caught(vector: u8, error_code: bool, faulting: impl Fn(&mut Asm) -> AsmResult) {
    caught_with(vector, error_code, faulting, |_| {});
}

fn caught_with(
    vector: u8,
    error_code: bool,
    faulting: impl Fn(&mut Asm) -> AsmResult,
    check: impl Fn(&kvm_regs),
) {
    on_every_engine(|engine| catch(engine, vector, error_code, &faulting, &check));
}

/// Runs `faulting` in long mode with a handler for `vector`, and hands over the registers with R8 = error
/// code (if there is one), R9 = return address, R10 = CR2, R11 = RFLAGS pushed.
fn catch(
    engine: Subject,
    vector: u8,
    error_code: bool,
    faulting: impl Fn(&mut Asm) -> AsmResult,
    check: impl Fn(&kvm_regs),
) {
    let mut machine = Machine::new(engine, Mode::Long, |a| {
        faulting(a)?;
        a.out(0x80, al)?;
        a.handler(vector)?;
        if error_code {
            a.pop(r8)?;
        }
        a.mov(r9, qword_ptr(rsp))?;
        a.mov(r10, cr2)?;
        a.mov(r11, qword_ptr(rsp + 16))?;
        a.done()
    });
    let regs = machine.finish();
    assert_eq!(regs.rsp, (CODE & !0xf) - 40, "five words, on an aligned stack");
    check(&regs);
}

#[test]
fn undefined_opcode_returns_to_itself() {
    caught_with(6, false, |a| a.ud2(), |regs| assert_eq!(regs.r9, CODE));
}

#[test]
fn divide_error_returns_to_the_division() {
    caught_with(
        0,
        false,
        |a| {
            a.xor(ecx, ecx)?;
            a.div(ecx)
        },
        |regs| assert_eq!(regs.r9, CODE + 2),
    );
    // The quotient does not fit.
    caught(0, false, |a| {
        a.mov(edx, 5)?;
        a.mov(ecx, 5)?;
        a.div(ecx)
    });
}

#[test]
fn breakpoint_returns_behind_itself() {
    on_every_engine(|engine| {
        catch(engine, 3, false, |a| a.int3(), |regs| assert_eq!(regs.r9, CODE + 1));
    });
}

#[test]
fn software_interrupt_returns_behind_itself() {
    on_every_engine(|engine| {
        catch(engine, 0x30, false, |a| a.int(0x30), |regs| assert_eq!(regs.r9, CODE + 2));
    });
}

#[test]
fn general_protection_names_the_selector() {
    caught_with(
        13,
        true,
        |a| {
            a.mov(ax, 0x58)?;
            a.mov(es, ax)
        },
        |regs| assert_eq!((regs.r8, regs.r9), (0x58, CODE + 4)),
    );
}

#[test]
fn non_canonical_address_is_a_general_protection_fault() {
    caught_with(
        13,
        true,
        |a| {
            a.mov(rax, 0x8000_0000_0000_0000u64)?;
            a.mov(ecx, dword_ptr(rax))
        },
        |regs| assert_eq!((regs.r8, regs.r9), (0, CODE + 10)),
    );
}

#[test]
fn unknown_msr_is_a_general_protection_fault() {
    caught_with(
        13,
        true,
        |a| {
            a.mov(ecx, 0x4000_0fffu32)?;
            a.rdmsr()
        },
        |regs| assert_eq!(regs.r8, 0),
    );
}

#[test]
fn page_fault_on_a_read_of_nothing() {
    caught_with(
        14,
        true,
        |a| {
            a.mov(rax, 0x12_3456_7890u64)?;
            a.mov(ecx, dword_ptr(rax))
        },
        |regs| assert_eq!((regs.r8, regs.r10, regs.r9), (0, 0x12_3456_7890, CODE + 10)),
    );
}

#[test]
fn page_fault_on_a_write_to_nothing() {
    caught_with(
        14,
        true,
        |a| {
            a.mov(rax, 0x12_3456_7890u64)?;
            a.mov(dword_ptr(rax), ecx)
        },
        |regs| assert_eq!((regs.r8, regs.r10), (2, 0x12_3456_7890)),
    );
}

#[test]
fn page_fault_on_a_write_to_a_read_only_page() {
    let entry = PD + (0x4000_0000u64 >> 21) * 8;
    caught_with(
        14,
        true,
        |a| {
            // CR0.WP is set: supervisor writes obey the R/W bit.
            a.mov(ebx, entry as u32)?;
            a.mov(qword_ptr(rbx), 0x85)?;
            a.mov(eax, 0x4000_0010)?;
            a.invlpg(byte_ptr(rax))?;
            a.mov(dword_ptr(rax), ecx)
        },
        |regs| assert_eq!((regs.r8, regs.r10), (3, 0x4000_0010)),
    );
}

#[test]
fn page_fault_handler_can_map_the_page_and_return() {
    on_every_engine(|engine| {
        let entry = PD + (0x4000_0000u64 >> 21) * 8;
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, 0x4000_0000)?;
            a.mov(ecx, dword_ptr(rbx + DATA as i32))?;
            a.done()?;
            a.handler(14)?;
            a.push(rax)?;
            a.mov(eax, entry as u32)?;
            a.mov(qword_ptr(rax), 0x87)?;
            a.pop(rax)?;
            a.add(rsp, 8)?;
            a.iretq()
        });
        machine.write_u64(entry, 0);
        machine.write(DATA, &0x1234_5678u32.to_le_bytes());
        assert_eq!(machine.finish().rcx, 0x1234_5678);
    });
}

#[test]
fn protected_mode_exceptions_push_32_bits() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Protected, |a| {
            a.mov(ax, 0x58)?;
            a.mov(es, ax)?;
            a.handler(13)?;
            a.pop(esi)?;
            a.pop(edi)?;
            a.pop(ebx)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!((regs.rsi, regs.rdi, regs.rbx), (0x58, CODE + 4, u64::from(CODE32)));
    });
}

#[test]
fn real_mode_interrupts_go_through_the_vector_table() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Real, |a| {
            a.mov(ax, 1)?;
            a.int(0x21)?;
            a.done()?;
            a.handler(0x21)?;
            a.inc(ax)?;
            a.iret()
        });
        assert_eq!(machine.finish().rax, 2);
    });
}

/// No handler for the fault, none for the double fault: shutdown.
#[test]
fn triple_fault_is_a_shutdown() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| a.ud2());
        assert_eq!(machine.step(), Exit::Shutdown);
    });
}

#[test]
fn double_fault_has_error_code_zero() {
    // #GP without a descriptor of its own.
    caught_with(
        8,
        true,
        |a| {
            a.mov(rax, 0x8000_0000_0000_0000u64)?;
            a.mov(ecx, dword_ptr(rax))
        },
        |regs| assert_eq!(regs.r8, 0),
    );
}
