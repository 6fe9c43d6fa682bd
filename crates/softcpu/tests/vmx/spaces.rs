//! Address spaces: what VPID, PCID and EPT pointers keep apart, and what invalidations reach.

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::reg;
use trapline_vmx::Field as F;
use trapline_vmx::controls::SecondaryControls as S;

use super::harness::*;

const OLD: u64 = 0x1111;
const NEW: u64 = 0x2222;
/// The page that DATA is mapped to later.
const OTHER: u64 = DATA + 0x1000;

/// A guest that reads DATA into RAX.
fn reader() -> Machine {
    let mut m = long();
    m.write(DATA, OLD);
    m.write(OTHER, NEW);
    m.code(|a| {
        a.mov(rax, qword_ptr(rbp)).unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.vmcall().unwrap();
    });
    m.set_reg(reg::RBP, DATA);
    m
}

fn value(m: &mut Machine) -> u64 {
    m.set(F::GuestRip, CODE);
    m.finish();
    m.rax()
}

/// Changes the guest's own translation of DATA.
fn remap(m: &mut Machine) {
    m.write(PT + 8 * (DATA >> 12), OTHER | 7);
}

#[test]
fn invvpid_of_every_type_reaches_its_vpid_alone() {
    for (kind, vpid, address, reaches) in [
        (0, 1, DATA, true),
        (1, 1, 0, true),
        (2, 0, 0, true),
        (3, 1, 0, true),
        (1, 2, 0, false),
        (3, 2, 0, false),
    ] {
        let mut m = reader();
        assert_eq!(value(&mut m), OLD);
        remap(&mut m);
        assert_eq!(value(&mut m), OLD, "cached across exits");
        m.cpu.invvpid(kind, vpid, address).unwrap();
        assert_eq!(value(&mut m), if reaches { NEW } else { OLD }, "type {kind}, vpid {vpid}");
    }
}

#[test]
fn without_vpids_every_entry_starts_anew() {
    let mut m = reader();
    m.clear(F::SecondaryControls, S::ENABLE_VPID.bits().into());
    assert_eq!(value(&mut m), OLD);
    remap(&mut m);
    assert_eq!(value(&mut m), NEW);
}

#[test]
fn vpids_are_kept_apart() {
    let mut m = reader();
    assert_eq!(value(&mut m), OLD);
    remap(&mut m);
    m.set(F::Vpid, 2);
    m.set(F::GuestRip, CODE + 8);
    m.finish();
    m.set(F::Vpid, 1);
    assert_eq!(value(&mut m), OLD, "the entries of the first survive");
    m.set(F::Vpid, 2);
    assert_eq!(value(&mut m), NEW, "the second has none of them");
}

#[test]
fn invept_reaches_its_tables_alone() {
    let mut m = reader();
    m.tables(EPT2, GUEST);
    assert_eq!(value(&mut m), OLD);
    m.set_ept(DATA, (GUEST + OTHER) | EPT_RWX);
    assert_eq!(value(&mut m), OLD);
    m.cpu.invept(1, EPT2 | 0x1e).unwrap();
    assert_eq!(value(&mut m), OLD, "other tables");
    m.cpu.invept(1, EPT | 0x1e).unwrap();
    assert_eq!(value(&mut m), NEW);
    m.set_ept(DATA, (GUEST + DATA) | EPT_RWX);
    m.cpu.invept(2, 0).unwrap();
    assert_eq!(value(&mut m), OLD);
}

#[test]
fn ept_pointers_are_kept_apart_under_one_vpid() {
    let mut m = reader();
    m.tables(EPT2, GUEST + 0x40_0000);
    // The second guest-physical space: a copy of the first with another value.
    for page in 0..0x200u64 {
        for word in 0..512 {
            let at = (page << 12) + word * 8;
            let v = m.read(at);
            if v != 0 {
                m.arena.write_u64(GUEST + 0x40_0000 + at, v).unwrap();
            }
        }
    }
    m.arena.write_u64(GUEST + 0x40_0000 + DATA, 0x3333).unwrap();
    assert_eq!(value(&mut m), OLD);
    m.set(F::EptPointer, EPT2 | 0x1e);
    assert_eq!(value(&mut m), 0x3333);
    // Its own page tables, too: cached places of tables are not mixed up.
    m.arena.write_u64(GUEST + 0x40_0000 + PT + 8 * (DATA >> 12), OTHER | 7).unwrap();
    m.cpu.invvpid(1, 1, 0).unwrap();
    assert_eq!(value(&mut m), NEW);
    m.set(F::EptPointer, EPT | 0x1e);
    assert_eq!(value(&mut m), OLD);
}

#[test]
fn a_repaired_ept_violation_needs_no_invept() {
    let mut m = reader();
    m.set_ept(DATA, 0);
    assert_eq!(m.run(), trapline_vmx::BasicReason::EptViolation);
    m.set_ept(DATA, (GUEST + DATA) | EPT_RWX);
    assert_eq!(value(&mut m), OLD);
}

#[test]
fn the_guests_own_invalidations() {
    for kind in 0..3 {
        let mut m = reader();
        m.code(|a| {
            a.mov(rax, qword_ptr(DATA)).unwrap();
            a.mov(qword_ptr(PT + 8 * (DATA >> 12)), (OTHER | 7) as i32).unwrap();
            match kind {
                0 => a.invlpg(byte_ptr(DATA)).unwrap(),
                1 => {
                    a.mov(rcx, cr3).unwrap();
                    a.mov(cr3, rcx).unwrap();
                }
                _ => {
                    a.mov(ecx, 2).unwrap();
                    a.invpcid(rcx, xmmword_ptr(DATA + 0x2000)).unwrap();
                }
            }
            a.mov(rbx, qword_ptr(DATA)).unwrap();
            a.vmcall().unwrap();
        });
        m.finish();
        assert_eq!((m.rax(), m.reg(reg::RBX)), (OLD, NEW), "{kind}");
    }
}

#[test]
fn pcids_are_kept_apart() {
    let mut m = reader();
    m.or(F::GuestCr4, 1 << 17);
    m.code(|a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(PT + 8 * (DATA >> 12)), (OTHER | 7) as i32).unwrap();
        // PCID 5, and back to PCID 0 without invalidating: what it had cached may be used, and is.
        a.mov(rcx, PML4 | 5).unwrap();
        a.mov(cr3, rcx).unwrap();
        a.mov(rcx, PML4 | 1 << 63).unwrap();
        a.mov(cr3, rcx).unwrap();
        a.mov(rdx, qword_ptr(DATA)).unwrap();
        // PCID 5 has nothing of it cached.
        a.mov(rcx, PML4 | 5).unwrap();
        a.mov(cr3, rcx).unwrap();
        a.mov(rbx, qword_ptr(DATA)).unwrap();
        // And with invalidating.
        a.mov(rcx, PML4).unwrap();
        a.mov(cr3, rcx).unwrap();
        a.mov(rsi, qword_ptr(DATA)).unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!(m.rax(), OLD);
    assert_eq!(m.reg(reg::RBX), NEW);
    assert_eq!(m.reg(reg::RDX), OLD);
    assert_eq!(m.reg(reg::RSI), NEW);
}
