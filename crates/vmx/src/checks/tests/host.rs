//! Host state: 27.2.2 to 27.2.4.

use super::*;
use ExitControls as X;
use Field as F;

/// A 32-bit host: legacy protected mode, no IA-32e mode guest.
fn host_32() -> World {
    let mut world = pae();
    world.ia32e_mode = false;
    world
        .clear(F::ExitControls, X::HOST_ADDRESS_SPACE_SIZE.bits().into())
        .set(F::HostEfer, 0)
        .set(F::HostRip, 0x1000);
    world
}

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    (Rule::HostCr0, F::HostCr0, long_mode, |w| { w.clear(F::HostCr0, 1 << 5); }),
    (Rule::HostCr0, F::HostCr0, long_mode, |w| { w.or(F::HostCr0, 1 << 32); }),
    (Rule::HostCr4, F::HostCr4, long_mode, |w| { w.clear(F::HostCr4, 1 << 13); }),
    (Rule::HostCr4, F::HostCr4, long_mode, |w| { w.or(F::HostCr4, 1 << 19); }),
    (Rule::HostCetNeedsWp, F::HostCr0, long_mode, |w| {
        w.everything().or(F::HostCr4, cr::CR4_CET).clear(F::HostCr0, cr::CR0_WP);
    }),
    (Rule::HostCr3, F::HostCr3, long_mode, |w| { w.set(F::HostCr3, BEYOND); }),
    (Rule::HostSysenter, F::HostSysenterEsp, long_mode, |w| { w.set(F::HostSysenterEsp, NOT_CANONICAL); }),
    (Rule::HostSysenter, F::HostSysenterEip, long_mode, |w| { w.set(F::HostSysenterEip, NOT_CANONICAL); }),
    (Rule::HostPerfGlobalCtrl, F::HostPerfGlobalCtrl, long_mode, |w| {
        w.everything().exit(X::LOAD_PERF_GLOBAL_CTRL).set(F::HostPerfGlobalCtrl, 1 << 63);
    }),
    (Rule::HostPat, F::HostPat, long_mode, |w| { w.set(F::HostPat, 0x02 << 56); }),
    (Rule::HostEferReserved, F::HostEfer, long_mode, |w| { w.or(F::HostEfer, 2); }),
    (Rule::HostEferMode, F::HostEfer, long_mode, |w| { w.clear(F::HostEfer, efer::LMA); }),
    (Rule::HostEferMode, F::HostEfer, long_mode, |w| { w.clear(F::HostEfer, efer::LME); }),
    (Rule::HostCet, F::HostSCet, long_mode, |w| {
        w.everything().exit(X::LOAD_CET_STATE).set(F::HostSCet, 0xc00);
    }),
    (Rule::HostCet, F::HostSsp, long_mode, |w| {
        w.everything().exit(X::LOAD_CET_STATE).set(F::HostSsp, 1 << 47);
    }),
    (Rule::HostCet, F::HostSsp, long_mode, |w| { w.everything().exit(X::LOAD_CET_STATE).set(F::HostSsp, 2); }),
    (Rule::HostCet, F::HostInterruptSspTable, long_mode, |w| {
        w.everything().exit(X::LOAD_CET_STATE).set(F::HostInterruptSspTable, NOT_CANONICAL);
    }),
    (Rule::HostPkrs, F::HostPkrs, long_mode, |w| {
        w.everything().exit(X::LOAD_PKRS).set(F::HostPkrs, 1 << 32);
    }),
    (Rule::HostSelectorRplTi, F::HostDsSelector, long_mode, |w| { w.set(F::HostDsSelector, 4); }),
    (Rule::HostSelectorRplTi, F::HostTrSelector, long_mode, |w| { w.set(F::HostTrSelector, 0x1b); }),
    (Rule::HostSelectorNull, F::HostCsSelector, long_mode, |w| { w.set(F::HostCsSelector, 0); }),
    (Rule::HostSelectorNull, F::HostTrSelector, long_mode, |w| { w.set(F::HostTrSelector, 0); }),
    (Rule::HostSsNull, F::HostSsSelector, host_32, |w| { w.set(F::HostSsSelector, 0); }),
    (Rule::HostBase, F::HostFsBase, long_mode, |w| { w.set(F::HostFsBase, NOT_CANONICAL); }),
    (Rule::HostBase, F::HostIdtrBase, long_mode, |w| { w.set(F::HostIdtrBase, NOT_CANONICAL); }),
    (Rule::HostModeSwitch, F::ExitControls, long_mode, |w| { w.ia32e_mode = false; }),
    (Rule::HostModeSwitch, F::ExitControls, host_32, |w| { w.ia32e_mode = true; }),
    (Rule::HostGuestIa32e, F::EntryControls, host_32, |w| { w.entry(EntryControls::IA32E_MODE_GUEST); }),
    (Rule::HostPcide, F::HostCr4, host_32, |w| { w.or(F::HostCr4, cr::CR4_PCIDE); }),
    (Rule::HostPae, F::HostCr4, long_mode, |w| { w.clear(F::HostCr4, cr::CR4_PAE); }),
    (Rule::HostRip, F::HostRip, long_mode, |w| { w.set(F::HostRip, NOT_CANONICAL); }),
    (Rule::HostRip, F::HostRip, host_32, |w| { w.set(F::HostRip, 1 << 32); }),
];

#[test]
fn each_rule_of_the_host_state() {
    run(CASES);
}

#[test]
#[rustfmt::skip]
fn what_host_state_allows() {
    pass(&[
        ("SS may be null in 64-bit mode", long_mode, |w| { w.set(F::HostSsSelector, 0); }),
        ("IA32_EFER is not checked unless loaded", long_mode, |w| {
            w.clear(F::ExitControls, X::LOAD_EFER.bits().into()).set(F::HostEfer, u64::MAX);
        }),
        ("PCIDE in 64-bit mode", long_mode, |w| { w.or(F::HostCr4, cr::CR4_PCIDE); }),
        ("CR0.WP may be 0 without CET", long_mode, |w| { w.clear(F::HostCr0, cr::CR0_WP); }),
        ("IA32_PKRS within 32 bits", long_mode, |w| {
            w.everything().exit(X::LOAD_PKRS).set(F::HostPkrs, 0xffff_ffff);
        }),
    ]);
}
