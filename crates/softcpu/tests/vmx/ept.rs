//! EPT violations and misconfigurations, accessed and dirty flags, the page-modification log,
//! virtualization exceptions, mode-based execute control.

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::reg;
use trapline_vmx::controls::SecondaryControls as S;
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

const READ: u64 = 1;
const WRITE: u64 = 2;
const FETCH: u64 = 4;
const LINEAR: u64 = 1 << 7;
const FINAL: u64 = 1 << 8;
const SUPPRESS_VE: u64 = 1 << 63;

fn load_from(m: &mut Machine, at: u64) {
    m.code(|a| {
        a.mov(rbx, at).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.vmcall().unwrap();
    });
}

fn store_to(m: &mut Machine, at: u64) {
    m.code(|a| {
        a.mov(rbx, at).unwrap();
        a.mov(dword_ptr(rbx), 0x55).unwrap();
        a.vmcall().unwrap();
    });
}

#[test]
fn violations_tell_access_rights_and_addresses() {
    let mut m = long();
    load_from(&mut m, DATA + 0x10);
    m.set_ept(DATA, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), READ | LINEAR | FINAL);
    assert_eq!((m.get(F::GuestPhysicalAddress), m.get(F::GuestLinearAddress)), (DATA + 0x10, DATA + 0x10));
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestRflags) >> 16 & 1), (CODE + 10, 1), "RF is set");
    m.set_ept(DATA, (GUEST + DATA) | 0x35);
    m.finish();
    assert_eq!(m.get(F::GuestRflags) >> 16 & 1, 0, "RF lasts one instruction");
    store_to(&mut m, DATA);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), WRITE | LINEAR | FINAL | 5 << 3);
    m.set_ept(DATA, (GUEST + DATA) | EPT_RWX);
    m.finish();
    assert_eq!(m.read(DATA) as u32, 0x55);
}

#[test]
fn fetches_violate_too() {
    let mut m = long();
    m.code(|a| {
        a.jmp(DATA).unwrap();
    });
    m.set_ept(DATA, (GUEST + DATA) | 0x33);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), FETCH | LINEAR | FINAL | 3 << 3);
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestPhysicalAddress)), (DATA, DATA));
}

#[test]
fn violations_of_the_guests_own_tables() {
    let mut m = long();
    load_from(&mut m, DATA);
    m.set_ept(PT, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), READ | LINEAR, "not the final access");
    assert_eq!((m.get(F::GuestPhysicalAddress), m.get(F::GuestLinearAddress)), (PT + 8 * (CODE >> 12), CODE));
    // Readable is not enough where the accessed flag has to be set.
    m.set_ept(PT, (GUEST + PT) | 0x31);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), READ | WRITE | LINEAR | 1 << 3);
    m.set_ept(PT, (GUEST + PT) | EPT_RWX);
    m.finish();
    // With accessed and dirty flags, every access to a table is a write.
    let mut m = long();
    load_from(&mut m, DATA);
    m.or(F::EptPointer, 1 << 6);
    m.set_ept(PT, (GUEST + PT) | 0x31);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), READ | WRITE | LINEAR | 1 << 3);
}

#[test]
fn misconfigurations() {
    for entry in [(GUEST + DATA) | 0x32, (GUEST + DATA) | 0x17, (GUEST + DATA) | EPT_RWX | 1 << 51] {
        let mut m = long();
        load_from(&mut m, DATA + 4);
        m.set_ept(DATA, entry);
        assert_eq!(m.run(), R::EptMisconfiguration, "{entry:#x}");
        assert_eq!((m.qualification(), m.get(F::GuestPhysicalAddress)), (0, DATA + 4));
    }
}

#[test]
fn violations_come_after_page_faults_and_below_them() {
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 14);
    load_from(&mut m, HOLE);
    m.set_ept(HOLE, 0);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.qualification(), HOLE);
}

#[test]
fn accessed_and_dirty_flags() {
    let mut m = long();
    m.or(F::EptPointer, 1 << 6);
    load_from(&mut m, DATA);
    m.finish();
    let entry = m.arena.read_u64(Machine::ept_entry(DATA)).unwrap();
    assert_eq!(entry >> 8 & 3, 1, "read: accessed");
    store_to(&mut m, DATA);
    m.finish();
    let entry = m.arena.read_u64(Machine::ept_entry(DATA)).unwrap();
    assert_eq!(entry >> 8 & 3, 3, "written: dirty, although the TLB knew the page for reading");
}

/// The pages in the log, first logged first.
fn logged(m: &Machine) -> Vec<u64> {
    let index = m.get(F::PmlIndex) as u16;
    let first = index.wrapping_add(1);
    (u64::from(first)..512).rev().map(|i| m.arena.read_u64(PML + 8 * i).unwrap()).collect()
}

fn with_pml() -> Machine {
    let mut m = long();
    m.or(F::EptPointer, 1 << 6);
    m.secondary(S::ENABLE_PML);
    m.set(F::PmlIndex, 511);
    m
}

#[test]
fn the_log_has_each_dirty_page_once() {
    let mut m = with_pml();
    m.code(|a| {
        for at in [DATA, DATA + 8, DATA + 0x1000, DATA] {
            a.mov(rbx, at).unwrap();
            a.mov(qword_ptr(rbx), 1).unwrap();
        }
        a.mov(rax, qword_ptr(rbx + 0x2000)).unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    let pages = logged(&m);
    let data: Vec<u64> = pages.iter().copied().filter(|p| *p >= DATA).collect();
    assert_eq!(data, [DATA, DATA + 0x1000]);
    assert!(pages.contains(&PT), "setting accessed flags writes to the page table");
    let count = pages.len();
    m.set(F::GuestRip, CODE);
    m.finish();
    assert_eq!(logged(&m).len(), count, "dirty already");
}

#[test]
fn a_full_log_exits_before_the_write() {
    let mut m = with_pml();
    load_from(&mut m, DATA);
    m.finish();
    store_to(&mut m, DATA);
    m.set(F::PmlIndex, 0xffff);
    assert_eq!(m.run(), R::PmlFull);
    assert_eq!((m.get(F::GuestRip), m.read(DATA) as u32), (CODE + 10, 0));
    assert_eq!(m.arena.read_u64(Machine::ept_entry(DATA)).unwrap() >> 9 & 1, 0, "not dirty yet");
    m.set(F::PmlIndex, 0);
    m.finish();
    assert_eq!(
        (m.get(F::PmlIndex), m.arena.read_u64(PML).unwrap(), m.read(DATA) as u32),
        (0xffff, DATA, 0x55)
    );
}

fn with_ve() -> Machine {
    let mut m = long();
    m.secondary(S::EPT_VIOLATION_VE);
    m.handler(20, |a| {
        a.vmcall().unwrap();
    });
    m
}

#[test]
fn violations_become_exceptions() {
    let mut m = with_ve();
    load_from(&mut m, DATA + 8);
    m.set_ept(DATA, 0);
    m.finish();
    assert_eq!((m.get(F::GuestRip), m.read(STACK - 40)), (Machine::handler_at(20), CODE + 10));
    let area: Vec<u64> = (0..5).map(|i| m.arena.read_u64(VE_AREA + 8 * i).unwrap()).collect();
    assert_eq!(area, [0xffff_ffff_0000_0030, READ | LINEAR | FINAL, DATA + 8, DATA + 8, 0]);
    // The area is in use until the guest clears its second word.
    m.set(F::GuestRip, CODE);
    assert_eq!(m.run(), R::EptViolation);
    m.arena.write_u64(VE_AREA, 0x30).unwrap();
    m.finish();
    // The exception bitmap applies.
    m.arena.write_u64(VE_AREA, 0).unwrap();
    m.set(F::GuestRip, CODE);
    m.set(F::ExceptionBitmap, 1 << 20);
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption(), VALID | HARDWARE | 20);
}

#[test]
fn violations_that_stay_exits() {
    // Suppressed in the entry.
    let mut m = with_ve();
    load_from(&mut m, DATA);
    m.set_ept(DATA, SUPPRESS_VE);
    assert_eq!(m.run(), R::EptViolation);
    // Suppressed in a leaf that lacks a right.
    store_to(&mut m, DATA);
    m.set_ept(DATA, (GUEST + DATA) | 0x31 | SUPPRESS_VE);
    assert_eq!(m.run(), R::EptViolation);
    m.set_ept(DATA, (GUEST + DATA) | 0x31);
    m.finish();
    // A misconfiguration.
    m.arena.write_u64(VE_AREA, 0).unwrap();
    load_from(&mut m, DATA + 0x1000);
    m.set_ept(DATA + 0x1000, (GUEST + DATA) | 0x32);
    assert_eq!(m.run(), R::EptMisconfiguration);
    // While an event is delivered.
    let mut m = with_ve();
    m.handler(6, |a| {
        a.vmcall().unwrap();
    });
    m.code(|a| {
        a.ud2().unwrap();
    });
    m.set_ept(STACK - 0x1000, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.vectoring(), VALID | HARDWARE | 6);
}

#[test]
fn mode_based_execute_control() {
    // Pages of the guest's table are user-mode addresses here: bit 10 decides.
    let mut m = long();
    m.secondary(S::MODE_BASED_EPT_EXECUTE);
    load_from(&mut m, DATA);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), FETCH | LINEAR | FINAL | 7 << 3);
    m.set_ept(CODE, (GUEST + CODE) | 0x33 | 1 << 10);
    m.finish();
    // A supervisor-mode address: bit 2.
    m.write(PT + 8 * (CODE >> 12), CODE | 3);
    m.cpu.invvpid(2, 0, 0).unwrap();
    m.set(F::GuestRip, CODE);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!(m.qualification(), FETCH | LINEAR | FINAL | 3 << 3 | 1 << 6);
    m.set_ept(CODE, (GUEST + CODE) | 0x37);
    m.finish();
}

#[test]
fn memory_beyond_the_host_is_a_violation_too() {
    let mut m = long();
    load_from(&mut m, DATA);
    m.set_ept(DATA, 0x4000_0000 | EPT_RWX);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!((m.get(F::GuestPhysicalAddress), m.qualification() & 7), (DATA, READ));
    m.set_reg(reg::RAX, 0);
}

#[test]
fn loading_pdptes_violates_without_a_linear_address() {
    let mut m = protected();
    m.or(F::GuestCr4, 1 << 5);
    m.set(F::GuestCr3, 0x5000);
    m.write(0x5000, 0x6001);
    m.write(0x6000, 0x83);
    m.code32(|a| {
        a.mov(eax, cr0).unwrap();
        a.bts(eax, 31).unwrap();
        a.mov(cr0, eax).unwrap();
        a.mov(ebx, 0x77).unwrap();
        a.vmcall().unwrap();
    });
    m.set_ept(0x5000, 0);
    assert_eq!(m.run(), R::EptViolation);
    assert_eq!((m.get(F::GuestPhysicalAddress), m.qualification()), (0x5000, READ));
    assert_eq!((m.get(F::GuestRip), m.get(F::GuestCr0) >> 31), (CODE + 7, 0), "{}", m.describe());
    m.set_ept(0x5000, (GUEST + 0x5000) | EPT_RWX);
    m.finish();
    assert_eq!((m.reg(reg::RBX), m.get(F::GuestPdpte0)), (0x77, 0x6001));
}

#[test]
fn a_violation_of_a_page_table_becomes_an_exception() {
    let mut m = with_ve();
    // The second half of the page directory's reach has a table of its own.
    m.write(PML4 + 0x2000 + 8, 0x4_0007);
    m.set_ept(0x4_0000, 0);
    load_from(&mut m, 0x20_0000);
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(20));
    let area: Vec<u64> = (1..4).map(|i| m.arena.read_u64(VE_AREA + 8 * i).unwrap()).collect();
    assert_eq!(area, [READ | LINEAR, 0x20_0000, 0x4_0000]);
}
