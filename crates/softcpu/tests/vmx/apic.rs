//! TPR shadow, APIC-access page, virtualized x2APIC accesses (SDM vol. 3 chapter 30).

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::reg;
use trapline_vmx::controls::{PrimaryControls as P, SecondaryControls as S};
use trapline_vmx::exit::InterruptionInfo;
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

/// Host-physical address of the APIC-access page, mapped at DATA in the guest.
const ACCESS: u64 = 0xb000;

fn with_shadow() -> Machine {
    let mut m = long();
    m.primary(P::TPR_SHADOW);
    m
}

fn with_page() -> Machine {
    let mut m = with_shadow();
    m.secondary(S::VIRTUALIZE_APIC_ACCESSES);
    m.set(F::ApicAccessAddress, ACCESS);
    m.set_ept(DATA, ACCESS | EPT_RWX);
    m
}

fn vtpr(m: &Machine) -> u64 {
    m.arena.read_u64(VIRTUAL_APIC + 0x80).unwrap()
}

#[test]
fn cr8_is_the_shadow() {
    let mut m = with_shadow();
    m.arena.write_u64(VIRTUAL_APIC + 0x80, 0x35).unwrap();
    m.code(|a| {
        a.mov(rbx, cr8).unwrap();
        a.mov(eax, 7).unwrap();
        a.mov(cr8, rax).unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!((m.reg(reg::RBX), vtpr(&m)), (3, 0x70));
    assert_eq!(m.cpu.cr8, 0, "the real one is left alone");
}

#[test]
fn below_the_threshold_exits_after_the_instruction() {
    let mut m = with_shadow();
    m.arena.write_u64(VIRTUAL_APIC + 0x80, 0x50).unwrap();
    m.set(F::TprThreshold, 4);
    m.code(|a| {
        a.mov(eax, 4).unwrap();
        a.mov(cr8, rax).unwrap();
        a.mov(eax, 3).unwrap();
        a.mov(cr8, rax).unwrap();
        a.mov(eax, 9).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::TprBelowThreshold);
    assert_eq!((vtpr(&m), m.rax()), (0x30, 3));
    assert_eq!(m.get(F::GuestRip), CODE + 5 + 4 + 5 + 4, "trap-like");
    m.set(F::TprThreshold, 0);
    m.finish();
}

#[test]
fn a_threshold_above_vtpr_refuses_or_exits() {
    let mut m = with_shadow();
    m.set(F::TprThreshold, 1);
    assert!(m.cpu.vmlaunch().is_err(), "without virtualized APIC accesses the entry fails");
    let mut m = with_page();
    m.set(F::TprThreshold, 1);
    m.code(|a| {
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::TprBelowThreshold);
    assert_eq!(m.get(F::GuestRip), CODE);
    // After an injected event, and before anything else.
    m.handler(0x30, |a| {
        a.vmcall().unwrap();
    });
    m.cpu.signals.raise(trapline_softcpu::cpu::Signals::NMI);
    m.inject(InterruptionInfo::external(0x30), 0, 0);
    m.set(F::GuestRflags, 0x202);
    assert_eq!(m.run(), R::TprBelowThreshold);
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(0x30));
}

#[test]
fn accesses_to_vtpr_are_virtualized_and_others_exit() {
    let mut m = with_page();
    m.arena.write_u64(VIRTUAL_APIC + 0x80, 0x40).unwrap();
    m.code(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(eax, dword_ptr(rbx + 0x80)).unwrap();
        a.mov(dword_ptr(rbx + 0x80), 0x61).unwrap();
        a.mov(ecx, dword_ptr(rbx + 0x20)).unwrap();
        a.mov(dword_ptr(rbx + 0xb0), 0).unwrap();
        a.mov(rdx, qword_ptr(rbx + 0x80)).unwrap();
        a.jmp(rbx).unwrap();
    });
    assert_eq!(m.run(), R::ApicAccess);
    assert_eq!((m.rax(), vtpr(&m)), (0x40, 0x61));
    assert_eq!(m.qualification(), 0x20, "read at 20h");
    let access = m.cpu.device_access().unwrap();
    assert_eq!((access.gpa, access.size, access.write), (DATA + 0x20, 4, None));
    m.cpu.complete_device_access(0x0102_0304);
    assert_eq!(m.run(), R::ApicAccess);
    assert_eq!((m.reg(reg::RCX), m.qualification()), (0x0102_0304, 1 << 12 | 0xb0));
    assert_eq!(m.cpu.device_access().unwrap().write, Some(0));
    m.cpu.complete_device_access(0);
    assert_eq!(m.run(), R::ApicAccess);
    assert_eq!(m.qualification(), 0x80, "wider than 32 bits: not virtualized");
    m.cpu.complete_device_access(7);
    assert_eq!(m.run(), R::ApicAccess);
    assert_eq!((m.qualification(), m.reg(reg::RDX)), (2 << 12, 7), "fetch");
}

#[test]
fn a_write_to_vtpr_exits_right_after_it() {
    let mut m = with_page();
    m.arena.write_u64(VIRTUAL_APIC + 0x80, 0x50).unwrap();
    m.set(F::TprThreshold, 3);
    m.code(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(byte_ptr(rbx + 0x80), 0x20).unwrap();
        a.mov(eax, 1).unwrap();
        a.mov(ecx, 2).unwrap();
        a.vmcall().unwrap();
    });
    m.set_reg(reg::RAX, 0);
    assert_eq!(m.run(), R::TprBelowThreshold);
    assert_eq!((vtpr(&m), m.rax()), (0x20, 0), "nothing after the write has run");
}

#[test]
fn without_the_shadow_everything_exits() {
    let mut m = with_page();
    m.no_primary(P::TPR_SHADOW);
    m.code(|a| {
        a.mov(eax, dword_ptr(DATA + 0x80)).unwrap();
    });
    assert_eq!(m.run(), R::ApicAccess);
    assert_eq!(m.qualification(), 0x80);
}

#[test]
fn during_event_delivery() {
    let mut m = with_page();
    m.handler(6, |a| {
        a.vmcall().unwrap();
    });
    m.set(F::GuestRsp, DATA + 0x90);
    m.code(|a| {
        a.ud2().unwrap();
    });
    assert_eq!(m.run(), R::ApicAccess);
    assert_eq!(m.qualification(), 3 << 12 | 0x88);
    assert_eq!(m.vectoring(), VALID | HARDWARE | 6);
}

#[test]
fn x2apic_tpr() {
    let mut m = with_shadow();
    m.secondary(S::VIRTUALIZE_X2APIC);
    m.arena.write_u64(VIRTUAL_APIC + 0x80, 0x42).unwrap();
    m.set(F::TprThreshold, 2);
    m.handler(13, |a| {
        a.vmcall().unwrap();
    });
    m.code(|a| {
        a.mov(ecx, 0x808).unwrap();
        a.rdmsr().unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(eax, 0x15).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
    });
    assert_eq!(m.run(), R::TprBelowThreshold);
    assert_eq!((m.reg(reg::RBX), vtpr(&m)), (0x42, 0x15));
    m.set(F::TprThreshold, 0);
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(13), "reserved bits: #GP");
}

#[test]
fn read_modify_write_and_strings_on_vtpr() {
    let mut m = with_page();
    m.arena.write_u64(VIRTUAL_APIC + 0x80, 0x40).unwrap();
    m.write(DATA + 0x1000, 0x72);
    m.code(|a| {
        a.mov(rdi, DATA + 0x80).unwrap();
        a.mov(rsi, DATA + 0x1000).unwrap();
        a.stc().unwrap();
        a.adc(dword_ptr(rdi), 1).unwrap();
        a.mov(ebx, dword_ptr(rdi)).unwrap();
        a.lock().or(byte_ptr(rdi), 0x10).unwrap();
        a.mov(ecx, dword_ptr(rdi)).unwrap();
        a.movsd().unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!((m.reg(reg::RBX), m.reg(reg::RCX), vtpr(&m)), (0x42, 0x52, 0x72));
    assert_eq!(m.reg(reg::RDI), DATA + 0x84);
}
