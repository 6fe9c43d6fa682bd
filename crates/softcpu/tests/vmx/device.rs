//! Device accesses: an instruction exits at each, is answered, and starts over.

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{Signals, reg};
use trapline_softcpu::mmu::DeviceAccess;
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

/// Runs until VMCALL. Reads are answered from the list; returns the accesses that were made.
fn serve(m: &mut Machine, answers: &[u64]) -> Vec<DeviceAccess> {
    let mut made = Vec::new();
    let mut answers = answers.iter();
    loop {
        match m.run() {
            R::Vmcall => return made,
            R::EptViolation => {
                let access = m.cpu.device_access().unwrap();
                assert_eq!(access.gpa, m.get(F::GuestPhysicalAddress));
                made.push(access);
                let value = if access.write.is_none() { *answers.next().unwrap() } else { 0 };
                m.cpu.complete_device_access(value);
            }
            other => panic!("{other:?}: {}", m.describe()),
        }
    }
}

fn read(gpa: u64, size: u8) -> DeviceAccess {
    DeviceAccess { gpa, size, write: None }
}

fn write(gpa: u64, size: u8, value: u64) -> DeviceAccess {
    DeviceAccess { gpa, size, write: Some(value) }
}

#[test]
fn loads_and_stores_of_every_width() {
    let mut m = long();
    m.code(|a| {
        a.mov(rbx, DEVICE).unwrap();
        a.mov(al, byte_ptr(rbx)).unwrap();
        a.mov(cx, word_ptr(rbx + 2)).unwrap();
        a.mov(edx, dword_ptr(rbx + 4)).unwrap();
        a.mov(rsi, qword_ptr(rbx + 8)).unwrap();
        a.mov(byte_ptr(rbx + 1), al).unwrap();
        a.mov(qword_ptr(rbx + 16), rsi).unwrap();
        a.vmcall().unwrap();
    });
    let made = serve(&mut m, &[0x11, 0x2222, 0x3333_3333, 0x4444_4444_4444_4444]);
    assert_eq!(
        made,
        [
            read(DEVICE, 1),
            read(DEVICE + 2, 2),
            read(DEVICE + 4, 4),
            read(DEVICE + 8, 8),
            write(DEVICE + 1, 1, 0x11),
            write(DEVICE + 16, 8, 0x4444_4444_4444_4444),
        ]
    );
    assert_eq!((m.reg(reg::RCX) as u16, m.reg(reg::RDX)), (0x2222, 0x3333_3333));
}

#[test]
fn read_modify_write_keeps_the_flags_it_started_with() {
    let mut m = long();
    m.code(|a| {
        a.mov(rbx, DEVICE).unwrap();
        a.mov(eax, 0xffff_ffffu32).unwrap();
        a.stc().unwrap();
        a.adc(dword_ptr(rbx), 0).unwrap();
        a.adc(dword_ptr(rbx), 0).unwrap();
        a.setc(cl).unwrap();
        a.lock().inc(dword_ptr(rbx + 4)).unwrap();
        a.vmcall().unwrap();
    });
    let made = serve(&mut m, &[0xffff_ffff, 5, 9]);
    assert_eq!(
        made,
        [
            read(DEVICE, 4),
            write(DEVICE, 4, 0),
            read(DEVICE, 4),
            write(DEVICE, 4, 6),
            read(DEVICE + 4, 4),
            write(DEVICE + 4, 4, 10),
        ]
    );
    assert_eq!(m.reg(reg::RCX) & 0xff, 0);
}

#[test]
fn exchange_and_compare() {
    let mut m = long();
    m.code(|a| {
        a.mov(rbx, DEVICE).unwrap();
        a.mov(ecx, 7).unwrap();
        a.xchg(dword_ptr(rbx), ecx).unwrap();
        a.mov(eax, 1).unwrap();
        a.mov(edx, 2).unwrap();
        a.lock().cmpxchg(dword_ptr(rbx), edx).unwrap();
        a.xadd(dword_ptr(rbx), edx).unwrap();
        a.vmcall().unwrap();
    });
    let made = serve(&mut m, &[0x50, 1, 0x60]);
    assert_eq!(
        made,
        [
            read(DEVICE, 4),
            write(DEVICE, 4, 7),
            read(DEVICE, 4),
            write(DEVICE, 4, 2),
            read(DEVICE, 4),
            write(DEVICE, 4, 0x62),
        ]
    );
    assert_eq!((m.reg(reg::RCX), m.reg(reg::RDX), m.rax()), (0x50, 0x60, 1));
}

#[test]
fn device_to_device_and_the_stack() {
    let mut m = long();
    m.code(|a| {
        a.mov(rsi, DEVICE).unwrap();
        a.mov(rdi, DEVICE + 0x100).unwrap();
        a.mov(ecx, 2).unwrap();
        a.rep().movsd().unwrap();
        a.push(qword_ptr(rsi)).unwrap();
        a.pop(qword_ptr(rdi)).unwrap();
        a.cmpsb().unwrap();
        a.vmcall().unwrap();
    });
    let made = serve(&mut m, &[0x11, 0x22, 0x33, 1, 1]);
    assert_eq!(
        made,
        [
            read(DEVICE, 4),
            write(DEVICE + 0x100, 4, 0x11),
            read(DEVICE + 4, 4),
            write(DEVICE + 0x104, 4, 0x22),
            read(DEVICE + 8, 8),
            write(DEVICE + 0x108, 8, 0x33),
            read(DEVICE + 8, 1),
            read(DEVICE + 0x108, 1),
        ]
    );
    assert_eq!((m.reg(reg::RCX), m.get(F::GuestRsp)), (0, STACK));
    assert_eq!(m.get(F::GuestRflags) >> 6 & 1, 1, "equal");
}

#[test]
fn across_the_edge_of_memory() {
    let mut m = long();
    m.code(|a| {
        a.mov(rbx, DEVICE - 4).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.mov(rcx, qword_ptr(rbx)).unwrap();
        a.mov(rdx, qword_ptr(rbx + 0x1000)).unwrap();
        a.vmcall().unwrap();
    });
    m.write(DEVICE + 0x1000, 0x9999);
    let made = serve(&mut m, &[0xaabb_ccdd, 0xeeee_eeee]);
    assert_eq!(made, [write(DEVICE, 4, 0x1122_3344), read(DEVICE, 4), read(DEVICE + 0xffc, 4)]);
    assert_eq!(m.read(DEVICE - 4) as u32, 0x5566_7788);
    assert_eq!(m.reg(reg::RCX), 0xaabb_ccdd_5566_7788);
    assert_eq!(m.reg(reg::RDX), 0x9999_eeee_eeee);
}

#[test]
fn an_instruction_under_way_comes_before_interrupts() {
    let mut m = long();
    m.code(|a| {
        a.mov(rbx, DEVICE).unwrap();
        a.inc(dword_ptr(rbx)).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::EptViolation);
    m.cpu.complete_device_access(4);
    m.cpu.signals.raise(Signals::INTERRUPT);
    assert_eq!(m.run(), R::EptViolation, "the write of the same instruction");
    assert_eq!(m.cpu.device_access().unwrap().write, Some(5));
    m.cpu.complete_device_access(0);
    assert_eq!(m.run(), R::ExternalInterrupt);
    assert_eq!(m.get(F::GuestRip), CODE + 10 + 2, "the instruction is complete");
    m.cpu.signals.clear(Signals::INTERRUPT);
    m.finish();
}

#[test]
fn dropped_answers_are_asked_for_again() {
    let mut m = long();
    m.code(|a| {
        a.mov(eax, dword_ptr(DEVICE)).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::EptViolation);
    m.cpu.complete_device_access(4);
    m.cpu.drop_device_accesses();
    assert_eq!(serve(&mut m, &[5]), [read(DEVICE, 4)]);
    assert_eq!(m.rax(), 5);
}

#[test]
fn single_step_traps_once_the_instruction_is_complete() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 2);
    m.set(F::GuestRflags, 0x102);
    m.code(|a| {
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.vmcall().unwrap();
    });
    m.set_reg(reg::RBX, DEVICE);
    assert_eq!(m.run(), R::EptViolation);
    m.cpu.complete_device_access(4);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!((m.rax(), m.qualification(), m.get(F::GuestRip)), (4, 1 << 14, CODE + 2));
}

/// A hypervisor that keeps a page from the guest and emulates what the guest does there: the page is RAM, the
/// guest's entry for it is read-only, page faults exit.
#[test]
fn one_instruction_uses_a_page_as_a_device() {
    let mut m = long();
    m.guest_tables();
    m.set(F::ExceptionBitmap, 1 << 14);
    m.write(DATA, 0x1111);
    m.or(F::GuestCr0, 1 << 16);
    m.write(PT + 8 * (DATA >> 12), DATA | 1);
    m.code(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.xadd(qword_ptr(rbx), rax).unwrap();
        a.mov(rcx, qword_ptr(rbx)).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.qualification(), DATA);
    m.cpu.emulate_page(DATA, DATA);
    // What was cached for reading is not used: the instruction is the same each time it starts over.
    assert_eq!(serve_one(&mut m), read(DATA, 8));
    m.cpu.complete_device_access(0x5000);
    assert_eq!(serve_one(&mut m), write(DATA, 8, 0x6111));
    assert!(m.cpu.device_accesses_made());
    m.cpu.complete_device_access(0);
    assert_eq!(m.run(), R::Vmcall);
    // The next instruction reads memory again.
    assert_eq!((m.rax(), m.reg(reg::RCX)), (0x5000, 0x1111));
    assert!(!m.cpu.device_accesses_made());
}

fn serve_one(m: &mut Machine) -> DeviceAccess {
    assert_eq!(m.run(), R::EptViolation);
    m.cpu.device_access().unwrap()
}

/// A page fault that exits is nothing to the guest: what a device has answered stays answered.
#[test]
fn a_fault_that_exits_does_not_repeat_device_accesses() {
    let mut m = long();
    m.guest_tables();
    m.set(F::ExceptionBitmap, 1 << 14);
    m.write(PT + 8 * (DATA >> 12), 0);
    m.code(|a| {
        a.mov(rsi, DEVICE).unwrap();
        a.mov(rdi, DATA).unwrap();
        a.movsq().unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(serve_one(&mut m), read(DEVICE, 8));
    m.cpu.complete_device_access(0x1234);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert!(m.cpu.device_accesses_made());
    m.write(PT + 8 * (DATA >> 12), DATA | 3);
    assert_eq!(m.run(), R::Vmcall, "{}", m.describe());
    assert_eq!(m.read(DATA), 0x1234);
}
