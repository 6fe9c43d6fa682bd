//! Entries that fail after the checks of controls, and MSR areas.

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::Activity;
use trapline_softcpu::vmx::VmFail;
use trapline_vmx::Field as F;
use trapline_vmx::controls::SecondaryControls;
use trapline_vmx::exit::{InterruptionInfo, VmInstructionError as E};

use super::harness::*;

const STAR: u64 = 0xc000_0081;
const LSTAR: u64 = 0xc000_0082;

fn nothing(m: &mut Machine) {
    m.code(|a| {
        a.vmcall().unwrap();
    });
}

fn msr(m: &mut Machine, n: u64, head: u64, value: u64) {
    m.arena.write_u64(MSR_AREA + 16 * n, head).unwrap();
    m.arena.write_u64(MSR_AREA + 16 * n + 8, value).unwrap();
}

#[test]
fn bad_controls_and_host_state_fail_the_instruction() {
    let mut m = long();
    m.set(F::Vpid, 0);
    assert_eq!(m.cpu.vmlaunch(), Err(VmFail::Valid(E::InvalidControls)));
    m.set(F::Vpid, 1);
    m.set(F::HostRip, 1 << 56);
    assert_eq!(m.cpu.vmlaunch(), Err(VmFail::Valid(E::InvalidHostState)));
    assert!(!m.cpu.nonroot);
}

#[test]
fn bad_guest_state_is_exit_33() {
    for (field, value, qualification) in
        [(F::GuestRflags, 0, 0), (F::VmcsLinkPointer, 0x1001, 4), (F::GuestRip, 1 << 57, 0)]
    {
        let mut m = long();
        nothing(&mut m);
        m.inject(InterruptionInfo::external(0x20), 0, 0);
        m.set(F::GuestRflags, 0x202);
        let good = m.get(field);
        m.set(field, value);
        m.set(F::ExitMsrLoadAddress, MSR_AREA);
        m.set(F::ExitMsrLoadCount, 1);
        msr(&mut m, 0, STAR, 0x77);
        assert_eq!(m.run_raw(), 1 << 31 | 33);
        assert_eq!(m.get(F::ExitQualification), qualification, "{field:?}");
        assert_eq!(m.get(F::EntryInterruptionInfo) >> 31, 1, "not spent");
        assert_eq!((m.cpu.rip, m.cpu.nonroot), (0xffff_8000_0000_0000, false), "host state is loaded");
        assert_eq!(m.cpu.msr.star, 0x77, "and the host's MSRs");
        m.set(field, good);
        m.inject(InterruptionInfo::new(), 0, 0);
        m.finish();
    }
}

#[test]
fn nmi_injection_into_blocking_by_mov_ss() {
    let mut m = long();
    m.inject(InterruptionInfo::nmi(), 0, 0);
    m.set(F::GuestInterruptibility, 2);
    assert_eq!(m.run_raw(), 1 << 31 | 33);
}

#[test]
fn msr_loading_fails_with_the_number_of_the_entry() {
    for (head, value) in [
        (0xc000_0100, 0),
        (0xc000_0101, 0),
        (0x808, 0),
        (LSTAR, 1 << 56),
        (0xdead_beef, 0),
        (STAR | 1 << 32, 0),
    ] {
        let mut m = long();
        nothing(&mut m);
        m.set(F::EntryMsrLoadAddress, MSR_AREA);
        m.set(F::EntryMsrLoadCount, 2);
        msr(&mut m, 0, STAR, 0x1234);
        msr(&mut m, 1, head, value);
        assert_eq!(m.run_raw(), 1 << 31 | 34, "{head:#x}");
        assert_eq!(m.get(F::ExitQualification), 2);
        assert_eq!(m.cpu.vmresume(), Err(VmFail::Valid(E::VmresumeNotLaunched)));
    }
}

#[test]
fn msr_areas() {
    let mut m = long();
    m.set(F::EntryMsrLoadAddress, MSR_AREA);
    m.set(F::EntryMsrLoadCount, 1);
    m.set(F::ExitMsrStoreAddress, MSR_AREA + 0x100);
    m.set(F::ExitMsrStoreCount, 2);
    m.set(F::ExitMsrLoadAddress, MSR_AREA + 0x200);
    m.set(F::ExitMsrLoadCount, 1);
    msr(&mut m, 0, LSTAR, 0x1111);
    msr(&mut m, 16, LSTAR, 0);
    msr(&mut m, 17, STAR, 0);
    msr(&mut m, 32, LSTAR, 0x3333);
    m.code(|a| {
        a.mov(ecx, LSTAR as u32).unwrap();
        a.rdmsr().unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(eax, 0x2222).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, STAR as u32).unwrap();
        a.wrmsr().unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!(m.reg(3), 0x1111);
    assert_eq!(m.arena.read_u64(MSR_AREA + 0x108).unwrap(), 0x2222);
    assert_eq!(m.arena.read_u64(MSR_AREA + 0x118).unwrap(), 0x2222);
    assert_eq!(m.cpu.msr.lstar, 0x3333);
}

#[test]
fn areas_that_cannot_be_processed_at_an_exit_abort() {
    for (count, address, abort) in
        [(F::ExitMsrStoreCount, F::ExitMsrStoreAddress, 1), (F::ExitMsrLoadCount, F::ExitMsrLoadAddress, 4)]
    {
        let mut m = long();
        nothing(&mut m);
        m.set(count, 1);
        m.set(address, MSR_AREA);
        msr(&mut m, 0, 0xdead_beef, 0);
        m.cpu.vmlaunch().unwrap();
        assert_eq!(m.cpu.activity, Activity::Shutdown);
        m.cpu.vmclear(VMCS).unwrap();
        assert_eq!(m.arena.read_u64(VMCS).unwrap() >> 32, abort);
    }
}

#[test]
fn the_time_stamp_counter_is_stored_without_offset() {
    let mut m = long();
    nothing(&mut m);
    m.primary(trapline_vmx::controls::PrimaryControls::TSC_OFFSETTING);
    m.set(F::TscOffset, 1 << 60);
    m.set(F::ExitMsrStoreAddress, MSR_AREA);
    m.set(F::ExitMsrStoreCount, 1);
    msr(&mut m, 0, 0x10, 0);
    m.finish();
    assert!(m.arena.read_u64(MSR_AREA + 8).unwrap() < 1 << 60);
}

#[test]
fn cd_and_nw_are_not_loaded() {
    let mut m = long();
    nothing(&mut m);
    m.or(F::GuestCr0, 3 << 29);
    m.finish();
    assert_eq!(m.get(F::GuestCr0) >> 29 & 3, 0);
}

#[test]
fn pdptes_of_a_guest_without_ept_come_from_memory() {
    let mut m = protected();
    let tables = GUEST + 0x5000;
    let ept = SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST;
    m.clear(F::SecondaryControls, ept.bits().into());
    m.or(F::GuestCr4, 1 << 5);
    m.or(F::GuestCr0, 1 << 31);
    m.set(F::GuestCr3, tables);
    // One 2 MiB page for each of the first 8 MiB.
    m.arena.write_u64(tables, (GUEST + 0x6000) | 1).unwrap();
    for n in 0..4 {
        m.arena.write_u64(GUEST + 0x6000 + 8 * n, n << 21 | 0x83).unwrap();
    }
    m.arena.write_u64(tables + 8, 0x7).unwrap();
    m.set(F::GuestCsBase, GUEST);
    m.code32(|a| {
        a.mov(eax, 0x1234_5678).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run_raw(), 1 << 31 | 33);
    assert_eq!(m.get(F::ExitQualification), 2, "reserved bits in the second");
    m.arena.write_u64(tables + 8, 0).unwrap();
    m.finish();
    assert_eq!(m.rax(), 0x1234_5678);
}
