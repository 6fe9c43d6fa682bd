//! Events: the exception bitmap, injection, IDT-vectoring information, windows, NMIs and interrupts,
//! activity states, priorities.

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{Signals, reg, shadow};
use trapline_vmx::controls::{ExitControls, PinControls, PrimaryControls as P};
use trapline_vmx::exit::{InterruptionInfo, InterruptionType as T};
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

const STI: u64 = shadow::STI as u64;
const MOV_SS: u64 = shadow::MOV_SS as u64;
const NMI: u64 = shadow::NMI as u64;
/// RFLAGS.TF and RF.
const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;

fn end(m: &mut Machine, vector: u64) {
    m.handler(vector, |a| {
        a.vmcall().unwrap();
    });
}

#[test]
fn exception_bitmap_and_interruption_information() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 6 | 1 << 3 | 1 << 13);
    m.code(|a| {
        a.ud2().unwrap();
        a.int3().unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(rbx, 1u64 << 50).unwrap();
        a.mov(al, byte_ptr(rbx)).unwrap();
    });
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | HARDWARE | 6);
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestRflags) & RF), (CODE, RF));
    m.set(F::GuestRip, CODE + 2);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | 6 << 8 | 3, "software exception");
    assert_eq!((m.get(F::ExitInstructionLength), m.get(F::GuestRip)), (1, CODE + 2));
    m.skip();
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | HARDWARE | HAS_ERROR | 13);
    assert_eq!(m.get(F::ExitInterruptionErrorCode), 0);
}

#[test]
fn page_faults_exit_by_mask_and_match() {
    for (bitmap, mask, matching, exits) in [
        (1u64 << 14, 0, 0, true),
        (0, 0, 0, false),
        (1 << 14, 2, 0, false),
        (1 << 14, 2, 2, true),
        (0, 2, 0, true),
        (0, 0, u32::MAX.into(), true),
    ] {
        let mut m = long();
        end(&mut m, 14);
        m.set(F::ExceptionBitmap, bitmap);
        m.set(F::PageFaultErrorCodeMask, mask);
        m.set(F::PageFaultErrorCodeMatch, matching);
        m.code(|a| {
            a.mov(dword_ptr(HOLE + 8), 1).unwrap();
        });
        if exits {
            assert_eq!(m.run(), R::ExceptionOrNmi, "{bitmap:#x} {mask} {matching}");
            assert_eq!((m.qualification(), m.get(F::ExitInterruptionErrorCode)), (HOLE + 8, 2));
            assert_eq!(m.cpu.cr2, 0, "an intercepted fault does not write CR2");
        } else {
            m.finish();
            assert_eq!((m.cpu.cr2, m.get(F::GuestRip)), (HOLE + 8, Machine::handler_at(14)));
        }
    }
}

#[test]
fn injection_of_every_type() {
    for (info, error, len, frame_rip, rf) in [
        (InterruptionInfo::external(0x30), 0, 0, CODE, 0),
        (InterruptionInfo::nmi(), 0, 0, CODE, 0),
        (InterruptionInfo::exception(6, false), 0, 0, CODE, RF),
        (InterruptionInfo::exception(13, true), 0x18, 0, CODE, RF),
        (InterruptionInfo::event(T::SoftwareInterrupt, 0x80), 0, 2, CODE + 2, 0),
        (InterruptionInfo::event(T::SoftwareException, 3), 0, 1, CODE + 1, 0),
        (InterruptionInfo::event(T::PrivilegedSoftwareException, 1), 0, 1, CODE + 1, 0),
    ] {
        let mut m = long();
        end(&mut m, info.vector().into());
        m.code(|a| {
            a.nop().unwrap();
        });
        m.inject(info, error, len);
        m.set(F::GuestRflags, 0x202);
        m.finish();
        assert_eq!(m.get(F::GuestRip), Machine::handler_at(info.vector().into()), "{info:?}");
        let mut at = STACK - 40;
        if info.error_code() {
            assert_eq!(m.read(at - 8), u64::from(error));
        }
        assert_eq!(m.read(at), frame_rip, "{info:?}");
        at += 16;
        assert_eq!(m.read(at), 0x202 | rf, "{info:?}");
        assert_eq!(m.get(F::GuestRflags) & 0x200, 0, "interrupt gates clear IF");
        assert_eq!(m.get(F::EntryInterruptionInfo) >> 31, 0, "spent");
        let nmi = info.kind() == Some(T::Nmi);
        assert_eq!(m.get(F::GuestInterruptibility), if nmi { NMI } else { 0 });
    }
}

#[test]
fn injection_leaves_cr2_and_dr6_alone() {
    let mut m = long();
    end(&mut m, 14);
    end(&mut m, 1);
    m.code(|a| {
        a.nop().unwrap();
    });
    m.cpu.cr2 = 0x1234_5000;
    m.cpu.dr[6] = 0xffff_4ff1;
    m.inject(InterruptionInfo::exception(14, true), 2, 0);
    m.finish();
    assert_eq!(m.cpu.cr2, 0x1234_5000);
    m.inject(InterruptionInfo::exception(1, false), 0, 0);
    m.finish();
    assert_eq!(m.cpu.dr[6], 0xffff_4ff1);
}

#[test]
fn injection_is_not_subject_to_the_exception_bitmap() {
    let mut m = long();
    end(&mut m, 6);
    m.set(F::ExceptionBitmap, 1 << 6);
    m.inject(InterruptionInfo::exception(6, false), 0, 0);
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(6));
}

#[test]
fn injection_into_a_real_mode_guest() {
    let mut m = real();
    m.code16(|a| {
        a.nop().unwrap();
    });
    m.write(0x40 * 4, 0x2000 << 16 | 0x100);
    m.arena.write_bytes(GUEST + 0x2_0100, &[0xf4]).unwrap();
    m.set(F::GuestRflags, 0x202);
    m.inject(InterruptionInfo::external(0x40), 0, 0);
    assert_eq!(m.run(), R::Hlt);
    assert_eq!((m.get(F::GuestCsSelector), m.get(F::GuestRip)), (0x2000, 0x100));
    assert_eq!(m.read(STACK - 6) & 0xffff_ffff_ffff, 0x0202_2000_0000);
}

#[test]
fn an_ept_violation_in_the_stack_push_has_vectoring_information() {
    let mut m = long();
    end(&mut m, 0x80);
    m.gate(0x80, Machine::handler_at(0x80), 0);
    m.code(|a| {
        a.int(0x80).unwrap();
    });
    let stack = STACK - 0x1000;
    m.set_ept(stack, 0);
    m.set(F::GuestRflags, 0x202);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.vectoring(), VALID | 4 << 8 | 0x80, "software interrupt");
    assert_eq!((m.get(F::ExitInstructionLength), m.get(F::GuestRip)), (2, CODE));
    assert_eq!((m.get(F::GuestRsp), m.get(F::GuestRflags) & 0x10200), (STACK, 0x200), "as before delivery");
    assert_eq!((m.get(F::GuestPhysicalAddress), m.qualification() & 7), (STACK - 8, 2));
    // Mapped now, and delivered again as software would.
    m.set_ept(stack, (GUEST + stack) | EPT_RWX);
    m.inject(InterruptionInfo::event(T::SoftwareInterrupt, 0x80), 0, 2);
    m.finish();
    assert_eq!((m.read(STACK - 40), m.read(STACK - 24)), (CODE + 2, 0x202));
}

#[test]
fn an_ept_violation_while_a_fault_is_delivered() {
    let mut m = long();
    end(&mut m, 14);
    m.code(|a| {
        a.mov(eax, dword_ptr(HOLE)).unwrap();
    });
    m.set_ept(STACK - 0x1000, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.vectoring(), VALID | HARDWARE | HAS_ERROR | 14);
    assert_eq!((m.get(F::IdtVectoringErrorCode), m.cpu.cr2), (0, HOLE));
    assert_eq!(m.get(F::GuestRflags) & RF, RF);
}

#[test]
fn an_nmi_whose_delivery_exits_blocks_nmis() {
    let mut m = long();
    m.pin(PinControls::VIRTUAL_NMIS);
    end(&mut m, 2);
    m.set_ept(STACK - 0x1000, 0);
    m.inject(InterruptionInfo::nmi(), 0, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!((m.vectoring(), m.get(F::GuestInterruptibility)), (VALID | 2 << 8 | 2, NMI));
}

#[test]
fn a_second_exception_is_asked_for_before_the_two_become_a_double_fault() {
    let mut m = long();
    // No gate for #GP: #NP while it is delivered, which is a double fault.
    m.set(F::ExceptionBitmap, 1 << 11 | 1 << 8);
    m.code(|a| {
        a.mov(rbx, 1u64 << 50).unwrap();
        a.mov(al, byte_ptr(rbx)).unwrap();
    });
    m.write(IDT + 16 * 13, 0x0000_0e00_0008_0000);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | HARDWARE | HAS_ERROR | 11);
    assert_eq!(m.get(F::ExitInterruptionErrorCode), 13 << 3 | 2 | 1);
    assert_eq!(m.vectoring(), VALID | HARDWARE | HAS_ERROR | 13);
    m.set(F::ExceptionBitmap, 1 << 8);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | HARDWARE | HAS_ERROR | 8);
    assert_eq!(m.vectoring() >> 31, 0, "the double fault causes the exit directly");
    end(&mut m, 8);
    m.set(F::ExceptionBitmap, 0);
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(8));
    assert_eq!(m.read(STACK - 48), 0);
}

#[test]
fn triple_fault() {
    let mut m = long();
    m.set(F::GuestIdtrLimit, 0);
    m.code(|a| {
        a.ud2().unwrap();
    });
    assert_eq!(m.run(), R::TripleFault);
    assert_eq!((m.vectoring() >> 31, m.get(F::GuestRip), m.get(F::GuestActivity)), (0, CODE, 0));
}

#[test]
fn interrupt_window() {
    let mut m = long();
    m.primary(P::INTERRUPT_WINDOW_EXITING);
    m.code(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    assert_eq!(m.run(), R::InterruptWindow);
    assert_eq!(m.get(F::GuestRip), CODE + 3, "not in the shadow of STI");
    assert_eq!((m.get(F::GuestInterruptibility), m.vectoring()), (0, 0));
    m.set(F::GuestInterruptibility, STI);
    assert_eq!(m.run(), R::InterruptWindow);
    assert_eq!(m.get(F::GuestRip), CODE + 4, "the entry's blocking lasts one instruction");
}

#[test]
fn interrupt_window_opens_after_an_injected_event_only_if_its_handler_allows() {
    let mut m = long();
    m.primary(P::INTERRUPT_WINDOW_EXITING);
    m.set(F::GuestRflags, 0x202);
    end(&mut m, 0x30);
    m.inject(InterruptionInfo::external(0x30), 0, 0);
    m.finish();
}

#[test]
fn external_interrupts_exit_whatever_if_is() {
    let mut m = long();
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.jmp(again).unwrap();
    });
    m.cpu.signals.raise(Signals::INTERRUPT);
    assert_eq!(m.run(), R::ExternalInterrupt);
    assert_eq!(m.interruption(), 0, "not acknowledged: no information");
    assert_eq!(m.cpu.signals.get(), Signals::INTERRUPT);
    m.cpu.signals.clear(Signals::INTERRUPT);
    let signals = m.cpu.signals.clone();
    let other = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        signals.raise_interrupt(0x41);
    });
    m.exit_controls(ExitControls::ACKNOWLEDGE_INTERRUPT);
    assert_eq!(m.run(), R::ExternalInterrupt);
    other.join().unwrap();
    assert_eq!(m.interruption(), VALID | 0x41);
    assert_eq!(m.cpu.signals.get(), 0, "acknowledged");
}

#[test]
fn external_interrupts_are_delivered_where_they_do_not_exit() {
    let mut m = long();
    m.clear(F::PinControls, PinControls::EXTERNAL_INTERRUPT_EXITING.bits().into());
    end(&mut m, 0x41);
    m.code(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    m.cpu.signals.raise_interrupt(0x41);
    m.finish();
    assert_eq!((m.get(F::GuestRip), m.read(STACK - 40)), (Machine::handler_at(0x41), CODE + 3));
}

#[test]
fn nmis_exit_or_are_delivered_and_blocked_until_iret() {
    let mut m = long();
    m.code(|a| {
        a.nop().unwrap();
        a.vmcall().unwrap();
    });
    m.cpu.signals.raise(Signals::NMI);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.interruption(), m.get(F::GuestRip)), (VALID | 2 << 8 | 2, CODE));
    // Delivered.
    m.clear(F::PinControls, PinControls::NMI_EXITING.bits().into());
    m.handler(2, |a| {
        a.vmcall().unwrap();
        a.iretq().unwrap();
    });
    m.cpu.signals.raise(Signals::NMI);
    m.finish();
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestInterruptibility)), (Machine::handler_at(2), NMI));
    m.cpu.signals.raise(Signals::NMI);
    m.skip();
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(2), "IRET opened for the second NMI");
    assert_eq!(m.read(STACK - 40), CODE);
}

#[test]
fn nmi_window_and_virtual_nmis() {
    let mut m = long();
    m.pin(PinControls::VIRTUAL_NMIS);
    m.primary(P::NMI_WINDOW_EXITING);
    m.handler(2, |a| {
        a.iretq().unwrap();
    });
    m.code(|a| {
        a.nop().unwrap();
        a.vmcall().unwrap();
    });
    m.inject(InterruptionInfo::nmi(), 0, 0);
    assert_eq!(m.run(), R::NmiWindow);
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestInterruptibility)), (CODE, 0), "after IRET");
    m.set(F::GuestInterruptibility, MOV_SS);
    assert_eq!(m.run(), R::NmiWindow);
    assert_eq!(m.get(F::GuestRip), CODE + 1);
    m.no_primary(P::NMI_WINDOW_EXITING);
    // Virtual blocking does not hold off real NMIs.
    m.set(F::GuestInterruptibility, NMI);
    m.cpu.signals.raise(Signals::NMI);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.get(F::GuestInterruptibility), NMI);
}

#[test]
fn an_iret_that_faults_has_unblocked_nmis() {
    let mut m = long();
    m.pin(PinControls::VIRTUAL_NMIS);
    m.code(|a| {
        a.iretq().unwrap();
    });
    m.set(F::GuestInterruptibility, NMI);
    m.set(F::GuestRsp, HOLE);
    m.set(F::ExceptionBitmap, 1 << 14);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | HARDWARE | HAS_ERROR | 14 | 1 << 12);
    assert_eq!(m.get(F::GuestInterruptibility), 0);
    // The same with an EPT violation, whose qualification tells.
    m.set(F::GuestInterruptibility, NMI);
    m.set(F::GuestRsp, DEVICE);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification() >> 12 & 1, 1);
}

#[test]
fn halted_guests_wake_up() {
    let mut m = long();
    m.no_primary(P::HLT_EXITING);
    m.code(|a| {
        a.hlt().unwrap();
        a.vmcall().unwrap();
    });
    let signals = m.cpu.signals.clone();
    let other = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        signals.raise(Signals::INTERRUPT);
    });
    assert_eq!(m.run(), R::ExternalInterrupt);
    other.join().unwrap();
    assert_eq!((m.get(F::GuestActivity), m.get(F::GuestRip)), (1, CODE + 1));
    m.cpu.signals.clear(Signals::INTERRUPT);
    // Entered halted: an injected event wakes it.
    end(&mut m, 0x30);
    m.set(F::GuestRflags, 0x202);
    m.inject(InterruptionInfo::external(0x30), 0, 0);
    m.finish();
    assert_eq!((m.get(F::GuestActivity), m.read(STACK - 40)), (0, CODE + 1));
}

#[test]
fn init_and_sipi() {
    let mut m = long();
    m.code(|a| {
        a.nop().unwrap();
        a.vmcall().unwrap();
    });
    m.cpu.signals.raise(Signals::INIT | Signals::NMI);
    assert_eq!(m.run(), R::Init, "INIT goes first");
    assert_eq!(m.run(), R::ExceptionOrNmi);
    m.set(F::GuestActivity, 3);
    m.cpu.signals.raise(Signals::INTERRUPT | Signals::NMI | Signals::INIT);
    m.cpu.signals.raise_sipi(0x9a);
    assert_eq!(m.run(), R::Sipi);
    assert_eq!((m.qualification(), m.get(F::GuestActivity)), (0x9a, 3));
    m.set(F::GuestActivity, 2);
    assert_eq!(m.run(), R::Init);
    m.cpu.signals.clear(Signals::INTERRUPT);
    m.cpu.signals.raise_sipi(0x9a);
    m.cpu.signals.clear(Signals::NMI);
    m.set(F::GuestActivity, 0);
    m.finish();
    assert_eq!(m.cpu.signals.get(), 0, "a SIPI is lost on a processor that does not wait for it");
}

#[test]
fn single_step_across_exits() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 1);
    m.set(F::GuestRflags, TF | 2);
    m.code(|a| {
        a.nop().unwrap();
        a.cpuid().unwrap();
        a.nop().unwrap();
    });
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.interruption(), m.qualification()), (VALID | HARDWARE | 1, 1 << 14));
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestPendingDebug)), (CODE + 1, 0));
    assert_eq!(m.cpu.dr[6], 0xffff_0ff0, "an intercepted #DB does not write DR6");
    assert_eq!(m.run(), R::Cpuid);
    assert_eq!(m.get(F::GuestPendingDebug), 0, "CPUID did not complete");
    m.skip();
    // Software that emulates the instruction makes its trap pending.
    m.set(F::GuestPendingDebug, 1 << 14);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.qualification(), m.get(F::GuestRip)), (1 << 14, CODE + 3));
}

#[test]
fn mov_ss_holds_the_trap_of_a_single_step_off() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 1);
    m.set(F::GuestRflags, TF | 2);
    m.code(|a| {
        a.mov(eax, 0x10).unwrap();
        a.mov(ss, eax).unwrap();
        a.cpuid().unwrap();
    });
    m.set(F::GuestRip, CODE + 5);
    assert_eq!(m.run(), R::Cpuid);
    assert_eq!((m.get(F::GuestInterruptibility), m.get(F::GuestPendingDebug)), (MOV_SS, 1 << 14));
    m.set(F::ExceptionBitmap, 0);
    m.set(F::GuestInterruptibility, 0);
    end(&mut m, 1);
    m.skip();
    m.finish();
    assert_eq!((m.cpu.dr[6], m.read(STACK - 40)), (0xffff_4ff0, CODE + 9));
}

#[test]
fn data_and_instruction_breakpoints() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 1);
    m.code(|a| {
        a.mov(dword_ptr(DATA), eax).unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    m.cpu.dr[0] = DATA;
    m.cpu.dr[1] = CODE + 8;
    // DR0: writes of 4 bytes; DR1: execution.
    m.set(F::GuestDr7, 0x400 | 0xd << 16 | 1 | 4);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    let after = m.get(F::GuestRip);
    assert_eq!(m.qualification(), 1, "the trap comes after the instruction");
    assert!(after > CODE);
    m.cpu.dr[1] = after;
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.qualification(), m.get(F::GuestRip)), (2, after));
    m.set(F::GuestRflags, RF | 2);
    m.cpu.dr[0] = 0;
    m.no_primary(P::HLT_EXITING);
    m.primary(P::MONITOR_TRAP_FLAG);
    assert_eq!(m.run(), R::MonitorTrapFlag, "RF lets the instruction pass");
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestRflags) & RF), (after + 1, 0));
}

#[test]
fn monitor_trap_flag() {
    let mut m = long();
    m.primary(P::MONITOR_TRAP_FLAG);
    end(&mut m, 0x30);
    end(&mut m, 6);
    m.code(|a| {
        a.nop().unwrap();
        a.mov(ecx, 3).unwrap();
        a.mov(rdi, DATA).unwrap();
        a.rep().stosb().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(m.run(), R::MonitorTrapFlag);
    assert_eq!(m.get(F::GuestRip), CODE + 1);
    assert_eq!(m.run(), R::MonitorTrapFlag);
    assert_eq!(m.run(), R::MonitorTrapFlag);
    let string = m.get(F::GuestRip);
    for left in [2, 1] {
        assert_eq!(m.run(), R::MonitorTrapFlag, "after each element of a string");
        assert_eq!((m.reg(reg::RCX), m.get(F::GuestRip)), (left, string));
    }
    while m.get(F::GuestRip) == string {
        assert_eq!(m.run(), R::MonitorTrapFlag);
    }
    assert_eq!(m.run(), R::MonitorTrapFlag, "before the first instruction of the #UD handler");
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(6));
    m.set(F::GuestRip, CODE);
    m.set(F::GuestRflags, 0x202);
    m.inject(InterruptionInfo::external(0x30), 0, 0);
    assert_eq!(m.run(), R::MonitorTrapFlag, "after an injected event");
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(0x30));
    // Injected by itself.
    m.no_primary(P::MONITOR_TRAP_FLAG);
    m.set(F::GuestRip, CODE);
    m.inject(InterruptionInfo::event(T::Other, 0), 0, 0);
    assert_eq!(m.run(), R::MonitorTrapFlag);
    assert_eq!(m.get(F::GuestRip), CODE);
    m.set(F::GuestRip, Machine::handler_at(6));
    m.finish();
}

#[test]
fn priorities() {
    let mut m = long();
    m.pin(PinControls::VIRTUAL_NMIS | PinControls::PREEMPTION_TIMER);
    m.primary(P::MONITOR_TRAP_FLAG | P::NMI_WINDOW_EXITING | P::INTERRUPT_WINDOW_EXITING);
    m.set(F::ExceptionBitmap, 1 << 1);
    m.set(F::GuestRflags, 0x202);
    m.set(F::GuestPendingDebug, 1 << 12 | 1);
    m.set(F::PreemptionTimer, 0);
    m.code(|a| {
        a.nop().unwrap();
    });
    m.cpu.signals.raise(Signals::INIT | Signals::NMI | Signals::INTERRUPT);
    m.inject(InterruptionInfo::event(T::Other, 0), 0, 0);
    assert_eq!(m.run(), R::Init);
    m.inject(InterruptionInfo::event(T::Other, 0), 0, 0);
    assert_eq!(m.run(), R::MonitorTrapFlag);
    assert_eq!(m.get(F::GuestPendingDebug), 1 << 12 | 1, "still pending");
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.interruption() & 0xff, m.qualification()), (1, 1));
    assert_eq!(m.run(), R::PreemptionTimer);
    m.clear(F::PinControls, PinControls::PREEMPTION_TIMER.bits().into());
    assert_eq!(m.run(), R::NmiWindow);
    m.no_primary(P::NMI_WINDOW_EXITING);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption() & 0xff, 2);
    assert_eq!(m.run(), R::InterruptWindow);
    m.no_primary(P::INTERRUPT_WINDOW_EXITING);
    assert_eq!(m.run(), R::ExternalInterrupt);
    m.cpu.signals.clear(Signals::INTERRUPT);
    assert_eq!(m.run(), R::MonitorTrapFlag);
    assert_eq!(m.get(F::GuestRip), CODE + 1);
}

#[test]
fn a_task_gate_exits_with_vectoring_information() {
    let mut m = protected();
    m.write(IDT + 8 * 0x30, 0x0000_8500_0020_0000);
    // A 32-bit TSS at selector 20h.
    m.write(GDT + 0x20, 0x0000_8900_3800_0067);
    m.code32(|a| {
        a.int(0x30).unwrap();
    });
    assert_eq!(m.run(), R::TaskSwitch);
    assert_eq!(m.qualification(), 3 << 30 | 0x20);
    assert_eq!(m.vectoring(), VALID | 4 << 8 | 0x30);
    assert_eq!((m.get(F::GuestRip), m.get(F::ExitInstructionLength)), (CODE, 2));
    m.set(F::GuestRflags, 0x202);
    m.inject(InterruptionInfo::external(0x30), 0, 0);
    assert_eq!(m.run(), R::TaskSwitch);
    assert_eq!(m.vectoring(), VALID | 0x30);
}

#[test]
fn injection_into_a_32_bit_guest() {
    let mut m = protected();
    m.write(IDT + 8 * 13, 0x0002_8e00_0008_0100);
    m.arena.write_bytes(GUEST + 0x2_0100, &[0x0f, 0x01, 0xc1]).unwrap();
    m.inject(InterruptionInfo::exception(13, true), 0x50, 0);
    m.finish();
    assert_eq!(m.get(F::GuestRsp), STACK - 16);
    assert_eq!(m.read(STACK - 16), CODE << 32 | 0x50, "error code, EIP");
    assert_eq!(m.read(STACK - 8), (RF | 2) << 32 | 8, "CS, EFLAGS");
}

#[test]
fn a_real_mode_vector_table_that_is_not_mapped() {
    let mut m = real();
    m.code16(|a| {
        a.int(0x21).unwrap();
    });
    m.set_ept(0, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.vectoring(), VALID | 4 << 8 | 0x21);
    assert_eq!((m.get(F::GuestPhysicalAddress), m.get(F::GuestRip)), (0x84, 0));
    assert_eq!((m.get(F::GuestRsp), m.get(F::ExitInstructionLength)), (STACK, 2));
}

#[test]
fn mov_ss_holds_instruction_breakpoints_off() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 1);
    m.code(|a| {
        a.mov(ss, eax).unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    m.set_reg(reg::RAX, 0x10);
    m.cpu.dr[0] = CODE + 2;
    m.cpu.dr[1] = CODE + 3;
    m.set(F::GuestDr7, 0x400 | 1 | 4);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.qualification(), m.get(F::GuestRip)), (2, CODE + 3));
}
