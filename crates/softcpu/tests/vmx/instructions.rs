//! VMXON to VMXOFF, and how they fail (SDM vol. 3 chapter 31).

use trapline_softcpu::cpu::{cr0, cr4, shadow, vector};
use trapline_softcpu::vmx::VmFail;
use trapline_vmx::exit::VmInstructionError as E;
use trapline_vmx::{BasicReason, Field};

use super::harness::{self, VMCS, VMXON};

const UD: VmFail = VmFail::Exception(vector::UD);
const GP: VmFail = VmFail::Exception(vector::GP);

#[test]
fn nothing_but_vmxon_outside_vmx_operation() {
    let mut m = harness::bare();
    m.cpu.enter_root_mode(0);
    assert_eq!(m.cpu.vmclear(VMCS), Err(UD));
    assert_eq!(m.cpu.vmptrld(VMCS), Err(UD));
    assert_eq!(m.cpu.vmptrst(), Err(UD));
    assert_eq!(m.cpu.vmread(0x681e), Err(UD));
    assert_eq!(m.cpu.vmwrite(0x681e, 0), Err(UD));
    assert_eq!(m.cpu.vmlaunch(), Err(UD));
    assert_eq!(m.cpu.vmresume(), Err(UD));
    assert_eq!(m.cpu.invept(2, 0), Err(UD));
    assert_eq!(m.cpu.invvpid(2, 0, 0), Err(UD));
    assert_eq!(m.cpu.vmxoff(), Err(UD));
}

#[test]
fn vmxon_checks_mode_registers_and_region() {
    let mut m = harness::bare();
    assert_eq!(m.cpu.vmxon(VMXON), Err(UD), "real mode");
    m.cpu.enter_root_mode(0);
    m.cpu.cr4 &= !cr4::VMXE;
    assert_eq!(m.cpu.vmxon(VMXON), Err(UD), "CR4.VMXE is clear");
    m.cpu.cr4 |= cr4::VMXE;
    m.cpu.cr0 &= !cr0::NE;
    assert_eq!(m.cpu.vmxon(VMXON), Err(GP), "CR0.NE is fixed to 1");
    m.cpu.cr0 |= cr0::NE;
    m.cpu.cpl = 3;
    assert_eq!(m.cpu.vmxon(VMXON), Err(GP), "privilege level 3");
    m.cpu.cpl = 0;
    assert_eq!(m.cpu.vmxon(VMXON), Err(VmFail::Invalid), "no revision identifier");
    let revision = u64::from(m.cpu.vmx.caps.revision);
    m.arena.write_u64(VMXON, revision | 1 << 31).unwrap();
    assert_eq!(m.cpu.vmxon(VMXON), Err(VmFail::Invalid), "bit 31");
    m.arena.write_u64(VMXON, revision).unwrap();
    assert_eq!(m.cpu.vmxon(VMXON + 8), Err(VmFail::Invalid), "not aligned");
    assert_eq!(m.cpu.vmxon(1 << 60), Err(VmFail::Invalid), "beyond the address width");
    assert_eq!(m.cpu.vmxon(VMXON), Ok(()));
    assert_eq!(m.cpu.vmxon(VMXON), Err(VmFail::Invalid), "in root operation, no current VMCS");
    assert_eq!(m.cpu.vmptrst(), Ok(u64::MAX));
    assert_eq!(m.cpu.vmxoff(), Ok(()));
    assert_eq!(m.cpu.vmxoff(), Err(UD));
}

#[test]
fn failures_leave_their_number_in_the_current_vmcs() {
    let mut m = harness::root();
    let fail = |m: &mut harness::Machine, got: Result<(), VmFail>, want: E| {
        assert_eq!(got, Err(VmFail::Valid(want)));
        assert_eq!(m.get(Field::InstructionError), u64::from(want.number()), "{want}");
    };
    let r = m.cpu.vmxon(VMXON);
    fail(&mut m, r, E::VmxonInRoot);
    let r = m.cpu.vmclear(VMCS + 1);
    fail(&mut m, r, E::VmclearInvalidAddress);
    let r = m.cpu.vmclear(1 << 60);
    fail(&mut m, r, E::VmclearInvalidAddress);
    let r = m.cpu.vmclear(VMXON);
    fail(&mut m, r, E::VmclearVmxonPointer);
    let r = m.cpu.vmptrld(VMCS + 0x10);
    fail(&mut m, r, E::VmptrldInvalidAddress);
    let r = m.cpu.vmptrld(VMXON);
    fail(&mut m, r, E::VmptrldVmxonPointer);
    let r = m.cpu.vmptrld(0x5000);
    fail(&mut m, r, E::VmptrldIncorrectRevision);
    let r = m.cpu.vmwrite(0x7ffe, 0);
    fail(&mut m, r, E::UnsupportedComponent);
    let r = m.cpu.vmread(u64::MAX).map(|_| ());
    fail(&mut m, r, E::UnsupportedComponent);
    let r = m.cpu.vmresume();
    fail(&mut m, r, E::VmresumeNotLaunched);
    let r = m.cpu.vmlaunch();
    fail(&mut m, r, E::InvalidControls);
    for (kind, eptp) in [(0, 0x1_001e), (3, 0), (1, 0x1_001f), (1, 0x1_081e)] {
        let r = m.cpu.invept(kind, eptp);
        fail(&mut m, r, E::InvalidOperand);
    }
    for (kind, vpid, address) in [(4, 1, 0), (0, 0, 0), (1, 0, 0), (3, 0, 0), (0, 1, 1 << 56)] {
        let r = m.cpu.invvpid(kind, vpid, address);
        fail(&mut m, r, E::InvalidOperand);
    }
    assert_eq!(m.cpu.vmptrst(), Ok(VMCS));
}

#[test]
fn without_a_current_vmcs_failures_are_invalid() {
    let mut m = harness::root();
    m.cpu.vmclear(VMCS).unwrap();
    assert_eq!(m.cpu.vmptrst(), Ok(u64::MAX));
    assert_eq!(m.cpu.vmread(0x681e), Err(VmFail::Invalid));
    assert_eq!(m.cpu.vmwrite(0x681e, 1), Err(VmFail::Invalid));
    assert_eq!(m.cpu.vmlaunch(), Err(VmFail::Invalid));
    assert_eq!(m.cpu.vmclear(VMXON), Err(VmFail::Invalid));
}

#[test]
fn fields_survive_vmclear_and_come_back_with_vmptrld() {
    let mut m = harness::root();
    m.cpu.vmwrite(0x681e, 0x1234_5678_9abc_def0).unwrap();
    m.cpu.vmwrite(0x2011, 0xdead_beef).unwrap();
    assert_eq!(m.cpu.vmread(0x681e), Ok(0x1234_5678_9abc_def0));
    assert_eq!(m.cpu.vmread(0x2010), Ok(0xdead_beef << 32), "the high half alone was written");
    m.cpu.vmclear(VMCS).unwrap();
    let other = 0xa000;
    m.arena.write_u64(other, u64::from(m.cpu.vmx.caps.revision)).unwrap();
    m.cpu.vmptrld(other).unwrap();
    assert_eq!(m.cpu.vmread(0x681e), Ok(0));
    m.cpu.vmptrld(VMCS).unwrap();
    assert_eq!(m.cpu.vmread(0x681e), Ok(0x1234_5678_9abc_def0));
}

#[test]
fn launch_state() {
    let mut m = harness::long();
    m.code(|a| {
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!(m.cpu.vmlaunch(), Err(VmFail::Valid(E::VmlaunchNotClear)));
    assert_eq!(m.run(), BasicReason::Vmcall);
    m.cpu.vmclear(VMCS).unwrap();
    m.cpu.vmptrld(VMCS).unwrap();
    assert_eq!(m.cpu.vmresume(), Err(VmFail::Valid(E::VmresumeNotLaunched)));
    assert_eq!(m.cpu.vmlaunch(), Ok(()));
}

#[test]
fn entry_is_blocked_by_mov_ss_and_by_privilege() {
    let mut m = harness::long();
    m.cpu.shadow = shadow::MOV_SS;
    assert_eq!(m.cpu.vmlaunch(), Err(VmFail::Valid(E::EntryBlockedByMovSs)));
    m.cpu.shadow = 0;
    m.cpu.cpl = 3;
    assert_eq!(m.cpu.vmlaunch(), Err(GP));
}

#[test]
fn vmcs_shadowing_is_not_advertised() {
    let m = harness::root();
    let caps = &m.cpu.vmx.caps;
    assert!(!caps.allows_secondary(trapline_vmx::controls::SecondaryControls::VMCS_SHADOWING));
}
