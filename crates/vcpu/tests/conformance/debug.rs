//! Debug registers and traps, the guest's own and the host's (SDM vol. 3 chapter 18).

use iced_x86::code_asm::*;
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug};
use trapline_vcpu::Exit;

use crate::harness::*;
use crate::world::{Run, Scenario, caught};

const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
/// Why the kinds of breakpoints that watch data are left out where all code is emulated.
const NO_DATA: Option<&str> = Some("it does not watch data");

fn vectors(run: &Run) -> Vec<u8> {
    run.caught.iter().map(|c| c.vector).collect()
}

#[test]
fn an_instruction_breakpoint_is_a_fault() {
    let program = |a: &mut Asm| {
        let mut here = a.create_label();
        a.lea(rax, ptr(here))?;
        a.mov(dr0, rax)?;
        a.mov(eax, 0x402)?;
        a.mov(dr7, rax)?;
        caught(a, |a| {
            a.inc(ebx)?;
            a.set_label(&mut here)?;
            a.inc(ecx)
        })?;
        a.mov(rsi, dr6)?;
        a.done()
    };
    Scenario::new().run(program, |run| {
        assert_eq!(vectors(run), [1], "{}", run.engine);
        assert_eq!((run.regs.rbx, run.regs.rcx & 0xff, run.regs.rsi & 0xf), (1, 0, 1), "{}", run.engine);
    });
}

/// RFLAGS.RF lets one instruction through.
#[test]
fn the_resume_flag_passes_a_breakpoint() {
    let program = |a: &mut Asm| {
        let (mut here, mut there) = (a.create_label(), a.create_label());
        a.lea(rax, ptr(here))?;
        a.mov(dr3, rax)?;
        a.mov(eax, 0x480)?;
        a.mov(dr7, rax)?;
        a.push(i32::from(DATA32))?;
        a.push(CODE as i32)?;
        a.push(0x1_0002)?;
        a.push(i32::from(CODE64))?;
        a.lea(rax, ptr(here))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut here)?;
        a.inc(ebx)?;
        a.cmp(ebx, 2)?;
        a.je(there)?;
        caught(a, |a| a.jmp(here))?;
        a.set_label(&mut there)?;
        a.mov(rsi, dr6)?;
        a.done()
    };
    Scenario::new().run(program, |run| {
        assert_eq!((vectors(run), run.regs.rbx), (vec![1], 1), "{}", run.engine);
        assert_eq!(run.regs.rsi & 0xf, 8, "{}", run.engine);
    });
}

#[test]
fn a_data_breakpoint_is_a_trap() {
    for (kind, touch) in [(0b01, "write"), (0b11, "read")] {
        let program = |a: &mut Asm| {
            a.mov(eax, DATA as u32)?;
            a.mov(dr1, rax)?;
            a.mov(eax, 0x404 | kind << 20 | 0b11 << 22)?;
            a.mov(dr7, rax)?;
            a.mov(dword_ptr(DATA + 4), eax)?; // behind it
            caught(a, |a| {
                if touch == "write" {
                    a.mov(byte_ptr(DATA + 3), al)?;
                } else {
                    a.mov(al, byte_ptr(DATA + 3))?;
                }
                a.inc(ebx)
            })?;
            a.mov(rsi, dr6)?;
            a.done()
        };
        Scenario { emulation: NO_DATA, ..Scenario::new() }.run(program, |run| {
            assert_eq!((vectors(run), run.regs.rbx), (vec![1], 0), "{touch}, {}", run.engine);
            assert_eq!(run.regs.rsi & 0xf, 2, "{touch}, {}", run.engine);
        });
    }
}

/// DR7.GD guards the debug registers themselves.
#[test]
fn general_detect_guards_the_debug_registers() {
    let program = |a: &mut Asm| {
        a.mov(eax, 0x400 | 1 << 13)?;
        a.mov(dr7, rax)?;
        caught(a, |a| a.mov(rbx, dr0))?;
        // The handler's entry has cleared it.
        a.mov(rcx, dr7)?;
        a.mov(rsi, dr6)?;
        a.done()
    };
    Scenario::new().run(program, |run| {
        assert_eq!((vectors(run), run.regs.rsi & BD), (vec![1], BD), "{}", run.engine);
        assert_eq!(run.regs.rcx & 1 << 13, 0, "{}", run.engine);
    });
}

/// Each instruction of a sequence traps behind itself; REP counts as one an iteration.
#[test]
fn single_steps_are_traps() {
    let program = |a: &mut Asm| {
        let (mut again, mut end) = (a.create_label(), a.create_label());
        a.lea(r15, ptr(again))?;
        a.mov(edi, DATA as u32)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.nop()?;
        a.cmp(ebx, 3)?;
        a.je(end)?;
        a.inc(ebx)?;
        a.mov(ecx, 2)?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.stosb()?;
        a.ud2()?;
        a.set_label(&mut end)?;
        a.mov(rsi, dr6)?;
        a.done()
    };
    Scenario::new().run(program, |run| {
        assert_eq!((vectors(run), run.regs.rbx), (vec![1; 3], 3), "{}", run.engine);
        assert_eq!((run.regs.rdi, run.regs.rsi & BS), (DATA + 3, BS), "{}", run.engine);
    });
}

#[test]
fn breakpoints_of_the_host_do_not_show_to_the_guest() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, 0x1234)?;
            a.mov(dr0, rax)?;
            a.nop()?;
            a.mov(rbx, dr0)?;
            a.done()
        });
        let mut debug =
            kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, ..Default::default() };
        debug.arch.debugreg[0] = CODE + 8;
        debug.arch.debugreg[7] = 0x402;
        machine.vcpu.set_guest_debug(&debug).unwrap();
        match machine.step() {
            Exit::Debug { exception: 1, pc, dr6: hit, .. } => {
                assert_eq!((pc, hit & 0xf), (CODE + 8, 1), "{engine}");
            }
            exit => panic!("{engine}: {exit:x?}"),
        }
        machine.vcpu.set_guest_debug(&kvm_guest_debug::default()).unwrap();
        assert_eq!(machine.finish().rbx, 0x1234, "{engine}");
    });
}
