//! Two processors of one machine, each on a thread of its own.

use std::thread;

use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;
use trapline_vcpu::{Entry, Exit, Vcpu};

use crate::harness::*;

const APIC: u32 = 0xfee0_0000;
const SVR: i32 = 0xf0;
const EOI: i32 = 0xb0;
const ICR: i32 = 0x300;
/// Words that both use, each in a cache line of its own.
const COUNTER: u64 = DATA;
const READY: u64 = DATA + 0x40;
const FLAG: u64 = DATA + 0x80;
const RESULT: u64 = DATA + 0xc0;

/// Runs both to the end of the test; returns their registers.
fn run_both(machine: &mut Machine, mut second: Box<dyn Vcpu>) -> (kvm_regs, kvm_regs) {
    let _watchdog = watchdog(&*second);
    let engine = machine.engine;
    let other = thread::spawn(move || {
        let exit = second.run(Entry::default()).unwrap();
        let regs = second.regs().unwrap();
        assert!(matches!(exit, Exit::PioWrite { port: DONE, .. }), "{engine}, second: {exit:x?} {regs:#x?}");
        regs
    });
    let first = machine.finish();
    (first, other.join().unwrap())
}

fn enable_apic(a: &mut Asm) -> AsmResult {
    a.mov(ebp, APIC)?;
    a.mov(dword_ptr(rbp + SVR), 0x1ff)
}

/// Sends `command` (the low word of the ICR) to the processor `to`.
fn send(a: &mut Asm, to: u32, command: u32) -> AsmResult {
    a.mov(dword_ptr(rbp + ICR + 0x10), to << 24)?;
    a.mov(dword_ptr(rbp + ICR), command)
}

/// Waits until a word has this value.
fn wait_for(a: &mut Asm, at: u64, value: i32) -> AsmResult {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(dword_ptr(at), value)?;
    a.jne(again)
}

fn locked(step: impl Fn(&mut Asm) -> AsmResult + Copy, rounds: u32) -> impl Fn(&mut Asm) -> AsmResult {
    move |a| {
        let mut again = a.create_label();
        a.lock().inc(dword_ptr(READY))?;
        wait_for(a, READY, 2)?;
        a.mov(esi, rounds)?;
        a.set_label(&mut again)?;
        a.nop()?;
        step(a)?;
        a.dec(esi)?;
        a.jnz(again)?;
        a.done()
    }
}

/// Both count the same word up: with LOCK no step is lost.
fn counts_to(name: &str, rounds: u32, step: impl Fn(&mut Asm) -> AsmResult + Copy) {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, locked(step, rounds));
        let second = machine.second(locked(step, rounds));
        run_both(&mut machine, second);
        assert_eq!(machine.read_u64(COUNTER), u64::from(rounds) * 2, "{name} on {engine}");
    });
}

#[test]
fn locked_steps_are_not_lost() {
    counts_to("lock inc", 3000, |a| a.lock().inc(qword_ptr(COUNTER)));
    counts_to("lock add", 3000, |a| a.lock().add(dword_ptr(COUNTER), 1));
    counts_to("lock xadd", 3000, |a| {
        a.mov(eax, 1)?;
        a.lock().xadd(word_ptr(COUNTER), ax)
    });
    counts_to("lock sub", 3000, |a| a.lock().sub(qword_ptr(COUNTER), -1));
    counts_to("lock cmpxchg", 1000, |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(COUNTER))?;
        a.set_label(&mut again)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lock().cmpxchg(qword_ptr(COUNTER), rbx)?;
        a.jnz(again)
    });
    counts_to("lock cmpxchg16b", 300, |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(COUNTER))?;
        a.mov(rdx, qword_ptr(COUNTER + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lea(rcx, qword_ptr(rdx + 2))?;
        a.lock().cmpxchg16b(xmmword_ptr(COUNTER))?;
        a.jnz(again)
    });
    counts_to("a spin lock of xchg", 300, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, 1)?;
        a.xchg(dword_ptr(FLAG), eax)?;
        a.test(eax, eax)?;
        a.jnz(again)?;
        a.mov(rax, qword_ptr(COUNTER))?;
        a.inc(rax)?;
        a.mov(qword_ptr(COUNTER), rax)?;
        a.mov(dword_ptr(FLAG), 0)
    });
}

/// An IPI wakes the other one from HLT, which answers with another.
#[test]
fn interrupts_between_processors_go_back_and_forth() {
    const ROUNDS: i32 = 50;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let (mut wait, mut end) = (a.create_label(), a.create_label());
            enable_apic(a)?;
            wait_for(a, READY, 1)?;
            a.xor(ebx, ebx)?;
            send(a, 1, 0x4041)?;
            a.set_label(&mut wait)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.cmp(ebx, ROUNDS)?;
            a.jb(wait)?;
            a.jmp(end)?;
            a.set_label(&mut end)?;
            a.done()?;
            a.handler(0x42)?;
            a.mov(dword_ptr(rbp + EOI), 0)?;
            a.inc(ebx)?;
            send(a, 1, 0x4041)?;
            a.iretq()
        });
        let second = machine.second(|a| {
            let mut wait = a.create_label();
            enable_apic(a)?;
            a.xor(ebx, ebx)?;
            a.mov(dword_ptr(READY), 1)?;
            a.set_label(&mut wait)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.cmp(ebx, ROUNDS + 1)?;
            a.jb(wait)?;
            a.done()?;
            a.handler(0x41)?;
            a.mov(dword_ptr(rbp + EOI), 0)?;
            a.inc(ebx)?;
            send(a, 0, 0x4042)?;
            a.iretq()
        });
        let (first, second) = run_both(&mut machine, second);
        assert_eq!(second.rbx, ROUNDS as u64 + 1, "{engine}");
        assert!((ROUNDS as u64..=ROUNDS as u64 + 1).contains(&first.rbx), "{engine}: {}", first.rbx);
    });
}

#[test]
fn nmis_reach_a_processor_with_interrupts_off() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            enable_apic(a)?;
            wait_for(a, READY, 1)?;
            send(a, 1, 0x4400)?;
            wait_for(a, READY, 2)?;
            a.done()
        });
        let second = machine.second(|a| {
            let mut forever = a.create_label();
            enable_apic(a)?;
            a.mov(dword_ptr(READY), 1)?;
            a.set_label(&mut forever)?;
            a.inc(rax)?;
            a.jmp(forever)?;
            a.handler(2)?;
            a.mov(dword_ptr(READY), 2)?;
            a.done()
        });
        run_both(&mut machine, second);
    });
}

/// One unmaps a page that the other reads all the time, and tells it by an IPI: from its answer on, the
/// other sees the new page.
#[test]
fn translations_are_shot_down() {
    const LINEAR: u64 = 0x4000_0000;
    const TABLE: u64 = 0x4_0000;
    const OLD: u64 = 0x5_0000;
    const NEW: u64 = 0x5_1000;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            enable_apic(a)?;
            wait_for(a, READY, 1)?;
            a.settle()?;
            a.mov(qword_ptr(TABLE), (NEW | 7) as i32)?;
            send(a, 1, 0x4041)?;
            wait_for(a, READY, 2)?;
            a.mov(dword_ptr(FLAG), 1)?;
            a.done()
        });
        let second = machine.second(|a| {
            let (mut again, mut after) = (a.create_label(), a.create_label());
            enable_apic(a)?;
            a.mov(ebx, LINEAR as u32)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(dword_ptr(READY), 1)?;
            a.sti()?;
            a.set_label(&mut again)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.cmp(dword_ptr(READY), 2)?;
            a.jne(again)?;
            a.cli()?;
            a.mov(ecx, 1000)?;
            a.set_label(&mut after)?;
            // A stale read would be seen here.
            a.mov(eax, dword_ptr(rbx))?;
            a.or(dword_ptr(RESULT), eax)?;
            a.dec(ecx)?;
            a.jnz(after)?;
            a.done()?;
            a.handler(0x41)?;
            a.mov(dword_ptr(rbp + EOI), 0)?;
            a.invlpg(byte_ptr(rbx))?;
            a.mov(dword_ptr(READY), 2)?;
            a.iretq()
        });
        machine.write_u64(PD + (LINEAR >> 21) * 8, TABLE | 7);
        machine.write_u64(TABLE, OLD | 7);
        machine.write(OLD, &1u32.to_le_bytes());
        machine.write(NEW, &2u32.to_le_bytes());
        run_both(&mut machine, second);
        assert_eq!(machine.read_u32(RESULT), 2, "{engine}");
    });
}

/// One writes code that the other executes, and says so (SDM vol. 3 §9.1.3: the other serializes).
#[test]
fn code_written_by_another_processor_is_executed() {
    const ROUNDS: i32 = 20;
    const ROUTINE: u64 = 0x6_0000;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let mut again = a.create_label();
            a.mov(ebx, 1)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(ROUTINE + 1), ebx)?; // the operand of MOV EAX, imm32
            a.mov(dword_ptr(FLAG), ebx)?;
            let mut answered = a.create_label();
            a.set_label(&mut answered)?;
            a.pause()?;
            a.cmp(dword_ptr(RESULT), ebx)?;
            a.jne(answered)?;
            a.inc(ebx)?;
            a.cmp(ebx, ROUNDS)?;
            a.jbe(again)?;
            a.done()
        });
        let second = machine.second(|a| {
            let mut again = a.create_label();
            a.mov(edi, 1)?;
            a.mov(esi, ROUTINE as u32)?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.cmp(dword_ptr(FLAG), edi)?;
            a.jne(again)?;
            a.xor(eax, eax)?;
            a.cpuid()?; // serializes
            a.call(rsi)?;
            a.add(ebp, eax)?;
            a.mov(dword_ptr(RESULT), eax)?;
            a.inc(edi)?;
            a.cmp(edi, ROUNDS)?;
            a.jbe(again)?;
            a.done()
        });
        machine.write(ROUTINE, &[0xb8, 0, 0, 0, 0, 0xc3]);
        let (_, second) = run_both(&mut machine, second);
        assert_eq!(second.rbp, (1..=ROUNDS as u64).sum::<u64>(), "{engine}");
    });
}
