//! A guest that goes on on the other engine: its state is saved on one and restored on the other, again and
//! again, and nothing is different.

use iced_x86::code_asm::*;
use trapline_device::Msi;
use trapline_vcpu::{Answer, CpuModel, Engine, Exit, VmConfig};

use crate::harness::*;
use crate::world;

const APIC: u32 = 0xfee0_0000;

/// What both engines can show a guest.
fn config() -> VmConfig {
    VmConfig { cpu: Some(CpuModel::default()), ..VmConfig::default() }
}

fn there_are_two_engines() -> bool {
    match Subject::KVM.create_vm(&config()) {
        Ok(_) => true,
        Err(e) => {
            eprintln!("skipped: {e}");
            false
        }
    }
}

/// Runs to the end; at each write to port 0x80 the machine moves to the next of `engines`.
fn run_moving(mut machine: Machine, engines: &[Subject], at_each: impl Fn(&mut Machine)) -> (Machine, u32) {
    let mut moves = 0;
    if machine.engine == Engine::Soft {
        // A frequency that a processor without TSC scaling can run at: its own.
        let kvm = Machine::with_config(Subject::KVM, &config(), Mode::Real, |a| a.done());
        machine.vcpu.set_tsc_khz(kvm.vcpu.tsc_khz().unwrap()).unwrap();
    }
    loop {
        match machine.step() {
            Exit::PioWrite { port: 0x80, .. } => {
                assert_eq!(machine.vcpu.complete(Answer::None).unwrap(), None);
                at_each(&mut machine);
                let to = engines[moves as usize % engines.len()];
                machine = world::move_to(machine, to, &config());
                moves += 1;
            }
            exit => {
                machine.done(exit);
                return (machine, moves);
            }
        }
    }
}

/// From each engine to the other and back.
fn in_both_directions(
    program: impl Fn(&mut Asm) -> AsmResult,
    at_each: impl Fn(&mut Machine),
    check: impl Fn(&Machine, u32),
) {
    if !there_are_two_engines() {
        return;
    }
    for (first, then) in [
        (Subject::KVM, [Subject::SOFT, Subject::KVM]),
        (Subject::SOFT, [Subject::KVM, Subject::SOFT]),
        (Subject::SHADOW, [Subject::KVM, Subject::SHADOW]),
    ] {
        let machine = world::machine(first, &config(), &program);
        let (machine, moves) = run_moving(machine, &then, &at_each);
        check(&machine, moves);
    }
}

#[test]
fn registers_of_all_kinds_move() {
    let program = |a: &mut Asm| {
        for (n, register) in
            [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15].into_iter().enumerate()
        {
            a.mov(register, 0x1111_2222_3333_0000u64 + n as u64)?;
        }
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        for (msr, value) in
            [(0xc000_0082u32, 0x7777u64), (0xc000_0102, 0x8888), (0x174, 0x10), (0x175, 0x9999)]
        {
            a.mov(ecx, msr)?;
            a.mov(eax, value as u32)?;
            a.mov(edx, 0)?;
            a.wrmsr()?;
        }
        a.mov(eax, 0x1234)?;
        a.mov(dr1, rax)?;
        a.mov(eax, 5)?;
        a.mov(cr8, rax)?;
        a.fninit()?;
        a.fldpi()?;
        a.movdqu(xmm3, xmmword_ptr(DATA))?;
        a.lidt(fword_ptr(DATA + 32))?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.stc()?;
        a.out(0x80, al)?;
        a.std()?;
        a.out(0x80, al)?;
        a.cld()?;
        // What is left of it, in memory.
        a.pushfq()?;
        a.pop(qword_ptr(DATA + 0x100))?;
        a.movdqu(xmmword_ptr(DATA + 0x110), xmm3)?;
        a.fstp(tbyte_ptr(DATA + 0x120))?;
        a.sidt(fword_ptr(DATA + 0x130))?;
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        for (n, msr) in [0xc000_0082u32, 0xc000_0102, 0x174, 0x175].into_iter().enumerate() {
            a.mov(ecx, msr)?;
            a.rdmsr()?;
            a.mov(dword_ptr(DATA + 0x140 + 4 * n as u64), eax)?;
        }
        a.mov(rax, dr1)?;
        a.mov(dword_ptr(DATA + 0x150), eax)?;
        a.mov(rax, cr8)?;
        a.mov(dword_ptr(DATA + 0x154), eax)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.done()
    };
    let prepare = |machine: &mut Machine| {
        machine.write(DATA, &[0x5a; 16]);
    };
    let program = |a: &mut Asm| {
        a.mov(dword_ptr(DATA + 32), 0x2000_0fff)?; // limit, and the base's lower half
        a.mov(dword_ptr(DATA + 36), 0)?;
        a.mov(qword_ptr(DATA), 0x5a5a_5a5a)?;
        program(a)
    };
    in_both_directions(program, prepare, |machine, moves| {
        assert_eq!(moves, 2);
        let regs = machine.vcpu.regs().unwrap();
        let values = [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        for (n, value) in (0..).zip(values) {
            assert_eq!(value, 0x1111_2222_3333_0000 + n, "general register {n}");
        }
        assert_eq!(machine.read_u64(DATA + 0x100) & 0x401, 1, "CF is set, DF is clear");
        assert_eq!(machine.read_u64(DATA + 0x110), 0x5a5a_5a5a, "XMM3");
        assert_eq!(
            machine.read::<10>(DATA + 0x120),
            [0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0, 0x40]
        );
        assert_eq!(machine.read::<6>(DATA + 0x130), [0xff, 0x0f, 0, 0x20, 0, 0]);
        let msrs = [0x140, 0x144, 0x148, 0x14c].map(|at| machine.read_u32(DATA + at));
        assert_eq!(msrs, [0x7777, 0x8888, 0x10, 0x9999]);
        assert_eq!((machine.read_u32(DATA + 0x150), machine.read_u32(DATA + 0x154)), (0x1234, 5));
    });
}

/// The local APIC: an interrupt that waits, its priority, its timer.
#[test]
fn pending_interrupts_move() {
    let program = |a: &mut Asm| {
        a.mov(ebp, APIC)?;
        a.mov(dword_ptr(rbp + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(rbp + 0x320), 0x1_0042)?; // the timer, masked
        a.mov(dword_ptr(rbp + 0x3e0), 0xb)?;
        a.out(0x80, al)?;
        a.out(0x80, al)?;
        a.mov(ebx, dword_ptr(rbp + 0x210))?; // IRR, vectors 32 to 63
        a.mov(esi, dword_ptr(rbp + 0x320))?;
        a.sti()?;
        a.settle()?;
        a.cli()?;
        a.done()?;
        a.handler(0x41)?;
        a.inc(edi)?;
        a.mov(dword_ptr(rbp + 0xb0), 0)?;
        a.iretq()
    };
    if !there_are_two_engines() {
        return;
    }
    for (first, second) in [(Subject::KVM, Subject::SOFT), (Subject::SOFT, Subject::KVM)] {
        let mut machine = Machine::with_config(first, &config(), Mode::Long, program);
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        assert_eq!(machine.vcpu.complete(Answer::None).unwrap(), None);
        machine.vm.signal_msi(Msi { address: APIC.into(), data: 0x41 }).unwrap();
        let (machine, moves) = run_moving(machine, &[second], |_| {});
        assert_eq!(moves, 1);
        let regs = machine.vcpu.regs().unwrap();
        assert_eq!((regs.rdi, regs.rsi), (1, 0x1_0042), "from {first} to {second}");
    }
}

/// A loop that is interrupted at many places and goes on elsewhere each time computes the same.
#[test]
fn a_computation_moves_at_any_moment() {
    const ROUNDS: u32 = 40;
    let program = |a: &mut Asm| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.mov(rax, 0x9e37_79b9_7f4a_7c15u64)?;
        a.cvtsi2sd(xmm1, ecx)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.imul_2(rax, rax)?;
        a.add(rax, rcx)?;
        a.adc(rbx, 0)?;
        a.rol(rax, 13)?;
        a.movq(xmm0, rax)?;
        a.paddq(xmm2, xmm0)?;
        a.sqrtsd(xmm1, xmm1)?;
        a.addsd(xmm1, xmm1)?;
        a.push(rax)?;
        a.pop(qword_ptr(DATA))?;
        a.out(0x80, al)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.movdqu(xmmword_ptr(DATA + 16), xmm1)?;
        a.movdqu(xmmword_ptr(DATA + 32), xmm2)?;
        a.done()
    };
    let mut alone = world::machine(Subject::SOFT, &config(), program);
    let expected = loop {
        match alone.step() {
            Exit::PioWrite { port: 0x80, .. } => {}
            exit => break alone.done(exit),
        }
    };
    in_both_directions(
        program,
        |_| {},
        |machine, moves| {
            assert_eq!(moves, ROUNDS);
            let regs = machine.vcpu.regs().unwrap();
            assert_eq!((regs.rax, regs.rbx, regs.rip), (expected.rax, expected.rbx, expected.rip));
            for at in (DATA..DATA + 48).step_by(8) {
                assert_eq!(machine.read_u64(at), alone.read_u64(at), "{at:#x}");
            }
        },
    );
}

/// Real mode, and a processor that waits in HLT.
#[test]
fn other_modes_move() {
    if !there_are_two_engines() {
        return;
    }
    for (first, second) in [(Subject::KVM, Subject::SOFT), (Subject::SOFT, Subject::KVM)] {
        let real = Machine::with_config(first, &config(), Mode::Real, |a| {
            a.mov(ax, 0x2345)?;
            a.mov(ds, ax)?;
            a.out(0x80, al)?;
            a.mov(byte_ptr(0x10), 0x77u32)?;
            a.done()
        });
        let (machine, _) = run_moving(real, &[second], |_| {});
        assert_eq!(machine.read::<1>(0x2_3460), [0x77], "from {first} to {second}");

        let protected = Machine::with_config(first, &config(), Mode::Protected, |a| {
            a.mov(eax, 0x7777_7777)?;
            a.out(0x80, al)?;
            a.inc(eax)?;
            a.done()
        });
        let before = protected.vcpu.sregs().unwrap().cs;
        let (machine, _) = run_moving(protected, &[second], |_| {});
        assert_eq!(machine.vcpu.regs().unwrap().rax, 0x7777_7778, "from {first} to {second}");
        assert_eq!(machine.vcpu.sregs().unwrap().cs.selector, before.selector);
    }
}
