//! The time-stamp counter, the preemption timer, PAUSE loops.

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::reg;
use trapline_vmx::controls::{ExitControls, PinControls, PrimaryControls as P, SecondaryControls as S};
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

fn tsc(m: &Machine) -> u64 {
    m.reg(reg::RDX) << 32 | m.rax()
}

#[test]
fn tsc_offset_and_scaling() {
    let mut m = long();
    // One nanosecond an instruction, so that nothing depends on the clock.
    m.cpu.time.icount_shift = Some(0);
    m.cpu.time.offset = 1_000_000;
    m.primary(P::TSC_OFFSETTING);
    m.set(F::TscOffset, 0x5000_0000_0000);
    m.code(|a| {
        a.rdtsc().unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    let seen = tsc(&m) - 0x5000_0000_0000;
    assert!((1_000_000..1_000_100).contains(&seen), "{seen}");
    m.secondary(S::TSC_SCALING);
    m.set(F::TscMultiplier, 3 << 47);
    m.set(F::TscOffset, (-7i64) as u64);
    m.set(F::GuestRip, CODE);
    m.finish();
    let seen = tsc(&m) + 7;
    assert!((1_500_000..1_500_150).contains(&seen), "{seen}");
    // IA32_TIME_STAMP_COUNTER reads the same way.
    m.code(|a| {
        a.mov(ecx, 0x10).unwrap();
        a.rdmsr().unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert!((1_500_000..1_500_150).contains(&(tsc(&m) + 7)));
}

fn spinning() -> Machine {
    let mut m = long();
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.jmp(again).unwrap();
    });
    m.pin(PinControls::PREEMPTION_TIMER);
    m.exit_controls(ExitControls::SAVE_PREEMPTION_TIMER);
    m
}

#[test]
fn the_preemption_timer_runs_out() {
    let mut m = spinning();
    m.set_reg(reg::RAX, 0);
    m.set(F::PreemptionTimer, 0);
    assert_eq!(m.run(), R::PreemptionTimer);
    assert_eq!((m.rax(), m.get(F::GuestRip)), (0, CODE), "before the first instruction");
    m.set(F::PreemptionTimer, 1000);
    let before = m.cpu.raw_tsc();
    assert_eq!(m.run(), R::PreemptionTimer);
    assert!(m.cpu.raw_tsc() - before >= 1000 << m.cpu.vmx.caps.preemption_timer_shift());
    assert!(m.rax() > 0);
    assert_eq!(m.get(F::PreemptionTimer), 0);
}

#[test]
fn the_rest_of_the_preemption_timer_is_saved() {
    let mut m = spinning();
    m.code(|a| {
        a.vmcall().unwrap();
    });
    m.set(F::PreemptionTimer, 0x1000_0000);
    m.finish();
    let left = m.get(F::PreemptionTimer);
    assert!((0x0f00_0000..=0x1000_0000).contains(&left), "{left:#x}");
}

#[test]
fn the_preemption_timer_wakes_a_halted_guest() {
    let mut m = spinning();
    m.no_primary(P::HLT_EXITING);
    m.code(|a| {
        a.hlt().unwrap();
    });
    m.set(F::PreemptionTimer, 10_000);
    assert_eq!(m.run(), R::PreemptionTimer);
    assert_eq!((m.get(F::GuestActivity), m.get(F::GuestRip)), (1, CODE + 1));
}

#[test]
fn pause_loops_exit() {
    let mut m = long();
    m.cpu.time.icount_shift = Some(0);
    m.secondary(S::PAUSE_LOOP_EXITING);
    m.set(F::PleGap, 100);
    m.set(F::PleWindow, 5000);
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.pause().unwrap();
        a.jmp(again).unwrap();
    });
    m.set_reg(reg::RAX, 0);
    assert_eq!(m.run(), R::Pause);
    assert_eq!(m.get(F::ExitInstructionLength), 2);
    let rounds = m.rax();
    assert!((1500..3000).contains(&rounds), "{rounds} rounds of 3 instructions in a window of 5000");
    // PAUSEs far apart are no loop.
    m.set(F::PleGap, 10);
    m.code(|a| {
        a.mov(ecx, 1000).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.pause().unwrap();
        for _ in 0..40 {
            a.inc(rax).unwrap();
        }
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
}
