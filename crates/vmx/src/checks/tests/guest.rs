//! Guest state: 27.3.1.

use super::*;
use crate::exit::{InterruptionInfo, InterruptionType, vector};
use EntryControls as N;
use Field as F;
use SecondaryControls as S;

const STI: u64 = 1;
const MOV_SS: u64 = 2;
const SMI: u64 = 4;
const NMI: u64 = 8;
const ENCLAVE: u64 = 16;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const HLT: u64 = 1;
const SHUTDOWN: u64 = 2;
const WAIT_FOR_SIPI: u64 = 3;
const LINKED: u64 = 0x10_2000;

fn inject(world: &mut World, event: InterruptionInfo) -> &mut World {
    world.set(F::EntryInterruptionInfo, event.into_bits().into())
}

/// A shadow VMCS at the link pointer.
fn linked() -> World {
    let mut world = long_mode();
    world.secondary(S::VMCS_SHADOWING).set(F::VmcsLinkPointer, LINKED);
    let first_word = u64::from(Vmcs::REVISION) | 1 << 31;
    for page in [LINKED, CURRENT, EXECUTIVE] {
        world.memory.insert(page, first_word);
    }
    world
}

/// A 32-bit guest with a usable DS and LDTR, in ring 3.
fn ring_3() -> World {
    let mut world = pae();
    world
        .set(F::GuestCsSelector, 0x0b)
        .set(F::GuestSsSelector, 0x13)
        .set(F::GuestDsSelector, 0x13)
        .set(F::GuestCsAccessRights, 0xc0fb)
        .set(F::GuestSsAccessRights, 0xc0f3)
        .set(F::GuestDsAccessRights, 0xc0f3)
        .set(F::GuestDsLimit, 0xffff_ffff)
        .set(F::GuestLdtrAccessRights, 0x82)
        .set(F::GuestLdtrLimit, 0xff);
    world
}

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    (Rule::GuestCr0, F::GuestCr0, long_mode, |w| { w.clear(F::GuestCr0, 1 << 5); }),
    (Rule::GuestCr0, F::GuestCr0, long_mode, |w| { w.clear(F::GuestCr0, cr::CR0_PG); }),
    (Rule::GuestCr0, F::GuestCr0, real_mode, |w| { w.or(F::GuestCr0, 1 << 40); }),
    (Rule::GuestPagingNeedsProtection, F::GuestCr0, real_mode, |w| { w.or(F::GuestCr0, cr::CR0_PG); }),
    (Rule::GuestCr4, F::GuestCr4, real_mode, |w| { w.set(F::GuestCr4, 0); }),
    (Rule::GuestCr4, F::GuestCr4, long_mode, |w| { w.or(F::GuestCr4, 1 << 31); }),
    (Rule::GuestCetNeedsWp, F::GuestCr0, long_mode, |w| {
        w.everything().or(F::GuestCr4, cr::CR4_CET).clear(F::GuestCr0, cr::CR0_WP);
    }),
    (Rule::GuestDebugctl, F::GuestDebugctl, long_mode, |w| { w.set(F::GuestDebugctl, 1 << 5); }),
    (Rule::GuestIa32eNeedsPaging, F::GuestCr4, long_mode, |w| { w.clear(F::GuestCr4, cr::CR4_PAE); }),
    (Rule::GuestIa32eNeedsPaging, F::GuestCr0, real_mode, |w| { w.entry(N::IA32E_MODE_GUEST); }),
    (Rule::GuestPcide, F::GuestCr4, pae, |w| { w.or(F::GuestCr4, cr::CR4_PCIDE); }),
    (Rule::GuestCr3, F::GuestCr3, long_mode, |w| { w.or(F::GuestCr3, BEYOND); }),
    (Rule::GuestDr7, F::GuestDr7, long_mode, |w| { w.or(F::GuestDr7, 1 << 32); }),
    (Rule::GuestSysenter, F::GuestSysenterEsp, long_mode, |w| { w.set(F::GuestSysenterEsp, NOT_CANONICAL); }),
    (Rule::GuestSysenter, F::GuestSysenterEip, long_mode, |w| { w.set(F::GuestSysenterEip, NOT_CANONICAL); }),
    (Rule::GuestPerfGlobalCtrl, F::GuestPerfGlobalCtrl, long_mode, |w| {
        w.everything().entry(N::LOAD_PERF_GLOBAL_CTRL).set(F::GuestPerfGlobalCtrl, 1 << 63);
    }),
    (Rule::GuestPat, F::GuestPat, long_mode, |w| { w.set(F::GuestPat, 3); }),
    (Rule::GuestEferReserved, F::GuestEfer, long_mode, |w| { w.or(F::GuestEfer, 1 << 12); }),
    (Rule::GuestEferLma, F::GuestEfer, long_mode, |w| { w.clear(F::GuestEfer, efer::LMA); }),
    (Rule::GuestEferLma, F::GuestEfer, pae, |w| { w.or(F::GuestEfer, efer::LMA | efer::LME); }),
    (Rule::GuestEferLme, F::GuestEfer, long_mode, |w| { w.clear(F::GuestEfer, efer::LME); }),
    (Rule::GuestBndcfgs, F::GuestBndcfgs, long_mode, |w| {
        w.everything().entry(N::LOAD_BNDCFGS).set(F::GuestBndcfgs, 4);
    }),
    (Rule::GuestRtitCtl, F::GuestRtitCtl, long_mode, |w| {
        w.everything().entry(N::LOAD_RTIT_CTL).set(F::GuestRtitCtl, 1);
    }),
    (Rule::GuestCet, F::GuestSCet, long_mode, |w| { w.everything().entry(N::LOAD_CET_STATE).set(F::GuestSCet, 0x40); }),
    (Rule::GuestCet, F::GuestInterruptSspTable, long_mode, |w| {
        w.everything().entry(N::LOAD_CET_STATE).set(F::GuestInterruptSspTable, NOT_CANONICAL);
    }),
    (Rule::GuestLbrCtl, F::GuestLbrCtl, long_mode, |w| {
        w.everything().entry(N::LOAD_LBR_CTL).set(F::GuestLbrCtl, 1);
    }),
    (Rule::GuestPkrs, F::GuestPkrs, long_mode, |w| { w.everything().entry(N::LOAD_PKRS).set(F::GuestPkrs, 1 << 32); }),
    (Rule::GuestUinv, F::GuestUinv, long_mode, |w| { w.everything().entry(N::LOAD_UINV).set(F::GuestUinv, 0x100); }),

    (Rule::TableBase, F::GuestGdtrBase, long_mode, |w| { w.set(F::GuestGdtrBase, NOT_CANONICAL); }),
    (Rule::TableBase, F::GuestIdtrBase, long_mode, |w| { w.set(F::GuestIdtrBase, NOT_CANONICAL); }),
    (Rule::TableLimit, F::GuestGdtrLimit, long_mode, |w| { w.set(F::GuestGdtrLimit, 0x1_0000); }),
    (Rule::TableLimit, F::GuestIdtrLimit, real_mode, |w| { w.set(F::GuestIdtrLimit, 0x1_0000); }),
    (Rule::GuestRip, F::GuestRip, long_mode, |w| { w.set(F::GuestRip, 1 << 48); }),
    (Rule::GuestRip, F::GuestRip, real_mode, |w| { w.set(F::GuestRip, 1 << 32); }),
    (Rule::GuestRip, F::GuestRip, long_mode, |w| { w.set(F::GuestCsAccessRights, 0xc09b); }),
    (Rule::RflagsReserved, F::GuestRflags, long_mode, |w| { w.clear(F::GuestRflags, 2); }),
    (Rule::RflagsReserved, F::GuestRflags, long_mode, |w| { w.or(F::GuestRflags, 1 << 3); }),
    (Rule::RflagsReserved, F::GuestRflags, long_mode, |w| { w.or(F::GuestRflags, 1 << 22); }),
    (Rule::RflagsVm, F::GuestRflags, virtual_8086, |w| {
        w.secondary(S::ENABLE_EPT | S::UNRESTRICTED_GUEST).set(F::GuestCr0, 0x30);
    }),
    (Rule::RflagsVm, F::GuestRflags, virtual_8086, |w| {
        w.entry(N::IA32E_MODE_GUEST).set(F::GuestEfer, 0xd00);
    }),
    (Rule::RflagsIf, F::GuestRflags, long_mode, |w| {
        inject(w, InterruptionInfo::external(0x20)).clear(F::GuestRflags, IF);
    }),
    (Rule::GuestSsp, F::GuestSsp, long_mode, |w| {
        w.everything().entry(N::LOAD_CET_STATE).set(F::GuestSsp, 1 << 48);
    }),
    (Rule::GuestSsp, F::GuestSsp, long_mode, |w| { w.everything().entry(N::LOAD_CET_STATE).set(F::GuestSsp, 1); }),

    (Rule::ActivityState, F::GuestActivity, long_mode, |w| { w.set(F::GuestActivity, 4); }),
    (Rule::ActivityState, F::GuestActivity, long_mode, |w| {
        w.set(F::GuestActivity, HLT).caps.misc &= !crate::caps::misc::ACTIVITY_HLT;
    }),
    (Rule::HltNeedsDplZero, F::GuestActivity, ring_3, |w| { w.set(F::GuestActivity, HLT); }),
    (Rule::ActiveWhileBlocking, F::GuestActivity, long_mode, |w| {
        w.set(F::GuestActivity, HLT).set(F::GuestInterruptibility, STI);
    }),
    (Rule::ActivityEvent, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::exception(vector::INVALID_OPCODE, false)).set(F::GuestActivity, HLT);
    }),
    (Rule::ActivityEvent, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::external(0x20)).set(F::GuestActivity, SHUTDOWN);
    }),
    (Rule::ActivityEvent, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::nmi()).set(F::GuestActivity, WAIT_FOR_SIPI);
    }),
    (Rule::WaitForSipiInSmm, F::GuestActivity, long_mode, |w| {
        w.in_smm().entry(N::ENTRY_TO_SMM).set(F::GuestInterruptibility, SMI).set(F::GuestActivity, WAIT_FOR_SIPI);
    }),
    (Rule::InterruptibilityReserved, F::GuestInterruptibility, long_mode, |w| {
        w.set(F::GuestInterruptibility, 1 << 5);
    }),
    (Rule::StiAndMovSs, F::GuestInterruptibility, long_mode, |w| { w.set(F::GuestInterruptibility, STI | MOV_SS); }),
    (Rule::StiNeedsIf, F::GuestInterruptibility, long_mode, |w| {
        w.set(F::GuestInterruptibility, STI).clear(F::GuestRflags, IF);
    }),
    (Rule::ExternalInterruptBlocked, F::GuestInterruptibility, long_mode, |w| {
        inject(w, InterruptionInfo::external(0x20)).set(F::GuestInterruptibility, MOV_SS);
    }),
    (Rule::NmiBlockedByMovSs, F::GuestInterruptibility, long_mode, |w| {
        inject(w, InterruptionInfo::nmi()).set(F::GuestInterruptibility, MOV_SS);
    }),
    (Rule::NmiBlockedBySti, F::GuestInterruptibility, long_mode, |w| {
        inject(w, InterruptionInfo::nmi()).set(F::GuestInterruptibility, STI);
    }),
    (Rule::NmiBlocked, F::GuestInterruptibility, long_mode, |w| {
        inject(w, InterruptionInfo::nmi()).pin(PinControls::VIRTUAL_NMIS).set(F::GuestInterruptibility, NMI);
    }),
    (Rule::SmiBlocking, F::GuestInterruptibility, long_mode, |w| { w.set(F::GuestInterruptibility, SMI); }),
    (Rule::SmiBlocking, F::GuestInterruptibility, long_mode, |w| { w.in_smm().entry(N::ENTRY_TO_SMM); }),
    (Rule::EnclaveInterruption, F::GuestInterruptibility, long_mode, |w| { w.set(F::GuestInterruptibility, ENCLAVE); }),
    (Rule::PendingDebugReserved, F::GuestPendingDebug, long_mode, |w| { w.set(F::GuestPendingDebug, 1 << 13); }),
    (Rule::PendingDebugSingleStep, F::GuestPendingDebug, long_mode, |w| {
        w.set(F::GuestInterruptibility, MOV_SS).or(F::GuestRflags, TF);
    }),
    (Rule::PendingDebugSingleStep, F::GuestPendingDebug, long_mode, |w| {
        w.set(F::GuestInterruptibility, STI).set(F::GuestPendingDebug, 1 << 14);
    }),
    (Rule::PendingDebugSingleStep, F::GuestPendingDebug, long_mode, |w| {
        w.set(F::GuestActivity, HLT).or(F::GuestRflags, TF).set(F::GuestDebugctl, 2)
            .set(F::GuestPendingDebug, 1 << 14);
    }),
    (Rule::PendingDebugRtm, F::GuestPendingDebug, long_mode, |w| { w.set(F::GuestPendingDebug, 1 << 16 | 1 << 12); }),
    (Rule::LinkPointerAddress, F::VmcsLinkPointer, linked, |w| { w.or(F::VmcsLinkPointer, 1); }),
    (Rule::LinkPointerAddress, F::VmcsLinkPointer, linked, |w| { w.or(F::VmcsLinkPointer, BEYOND); }),
    (Rule::LinkPointerRevision, F::VmcsLinkPointer, linked, |w| { w.memory.insert(LINKED, 1 << 31); }),
    (Rule::LinkPointerRevision, F::VmcsLinkPointer, linked, |w| { w.without(S::VMCS_SHADOWING); }),
    (Rule::LinkPointerIsCurrent, F::VmcsLinkPointer, linked, |w| { w.set(F::VmcsLinkPointer, CURRENT); }),
    (Rule::LinkPointerIsCurrent, F::VmcsLinkPointer, linked, |w| { w.in_smm().set(F::VmcsLinkPointer, EXECUTIVE); }),
    (Rule::Pdpte, F::GuestPdpte0, pae, |w| { w.memory.insert(0x30_0020, 0x40_0003); }),
    (Rule::Pdpte, F::GuestPdpte3, pae, |w| { w.memory.insert(0x30_0038, BEYOND | 1); }),
    (Rule::Pdpte, F::GuestPdpte2, pae, |w| { w.secondary(S::ENABLE_EPT).set(F::GuestPdpte2, 0x21); }),
];

#[rustfmt::skip]
pub(super) const SEGMENT_CASES: &[Case] = &[
    (Rule::TrSelectorTi, F::GuestTrSelector, long_mode, |w| { w.or(F::GuestTrSelector, 4); }),
    (Rule::LdtrSelectorTi, F::GuestLdtrSelector, ring_3, |w| { w.set(F::GuestLdtrSelector, 4); }),
    (Rule::SsRpl, F::GuestSsSelector, long_mode, |w| { w.set(F::GuestSsSelector, 0x13); }),
    (Rule::Virtual8086Base, F::GuestFsBase, virtual_8086, |w| { w.set(F::GuestFsBase, 0x1_2350); }),
    (Rule::SegmentBaseCanonical, F::GuestTrBase, long_mode, |w| { w.set(F::GuestTrBase, NOT_CANONICAL); }),
    (Rule::SegmentBaseCanonical, F::GuestGsBase, long_mode, |w| { w.set(F::GuestGsBase, NOT_CANONICAL); }),
    (Rule::SegmentBaseCanonical, F::GuestLdtrBase, ring_3, |w| { w.set(F::GuestLdtrBase, NOT_CANONICAL); }),
    (Rule::SegmentBaseHigh, F::GuestCsBase, long_mode, |w| { w.set(F::GuestCsBase, 1 << 32); }),
    (Rule::SegmentBaseHigh, F::GuestDsBase, ring_3, |w| { w.set(F::GuestDsBase, 1 << 32); }),
    (Rule::Virtual8086Limit, F::GuestSsLimit, virtual_8086, |w| { w.set(F::GuestSsLimit, 0xfff); }),
    (Rule::Virtual8086AccessRights, F::GuestEsAccessRights, virtual_8086, |w| { w.set(F::GuestEsAccessRights, 0x93); }),
    (Rule::CsType, F::GuestCsAccessRights, long_mode, |w| { w.clear(F::GuestCsAccessRights, 1); }),
    (Rule::CsType, F::GuestCsAccessRights, long_mode, |w| { w.set(F::GuestCsAccessRights, 0xa093); }),
    (Rule::SsType, F::GuestSsAccessRights, long_mode, |w| { w.set(F::GuestSsAccessRights, 0xc091); }),
    (Rule::DataSegmentType, F::GuestDsAccessRights, ring_3, |w| { w.set(F::GuestDsAccessRights, 0xc0f2); }),
    (Rule::DataSegmentType, F::GuestDsAccessRights, ring_3, |w| { w.set(F::GuestDsAccessRights, 0xc0f9); }),
    (Rule::SegmentS, F::GuestCsAccessRights, long_mode, |w| { w.clear(F::GuestCsAccessRights, 1 << 4); }),
    (Rule::SegmentS, F::GuestDsAccessRights, ring_3, |w| { w.clear(F::GuestDsAccessRights, 1 << 4); }),
    (Rule::SegmentS, F::GuestTrAccessRights, long_mode, |w| { w.or(F::GuestTrAccessRights, 1 << 4); }),
    (Rule::SegmentS, F::GuestLdtrAccessRights, ring_3, |w| { w.or(F::GuestLdtrAccessRights, 1 << 4); }),
    (Rule::CsDpl, F::GuestCsAccessRights, ring_3, |w| { w.set(F::GuestCsAccessRights, 0xc09b); }),
    (Rule::CsDpl, F::GuestCsAccessRights, long_mode, |w| { w.set(F::GuestCsAccessRights, 0xa0ff); }),
    (Rule::CsDpl, F::GuestCsAccessRights, real_mode, |w| { w.set(F::GuestCsAccessRights, 0xf3); }),
    (Rule::SsDpl, F::GuestSsAccessRights, ring_3, |w| {
        w.set(F::GuestCsAccessRights, 0xc09b).set(F::GuestSsAccessRights, 0xc093);
    }),
    (Rule::SsDpl, F::GuestSsAccessRights, real_mode, |w| {
        w.set(F::GuestCsAccessRights, 0xfb).set(F::GuestSsAccessRights, 0xf3);
    }),
    (Rule::DataSegmentDpl, F::GuestDsAccessRights, ring_3, |w| { w.set(F::GuestDsAccessRights, 0xc093); }),
    (Rule::DataSegmentDpl, F::GuestDsAccessRights, ring_3, |w| { w.set(F::GuestDsAccessRights, 0xc09b); }),
    (Rule::SegmentPresent, F::GuestCsAccessRights, long_mode, |w| { w.clear(F::GuestCsAccessRights, 1 << 7); }),
    (Rule::SegmentPresent, F::GuestTrAccessRights, long_mode, |w| { w.clear(F::GuestTrAccessRights, 1 << 7); }),
    (Rule::SegmentReserved, F::GuestCsAccessRights, long_mode, |w| { w.or(F::GuestCsAccessRights, 1 << 8); }),
    (Rule::SegmentReserved, F::GuestSsAccessRights, real_mode, |w| { w.or(F::GuestSsAccessRights, 1 << 17); }),
    (Rule::SegmentReserved, F::GuestLdtrAccessRights, ring_3, |w| { w.or(F::GuestLdtrAccessRights, 1 << 31); }),
    (Rule::CsLongAndBig, F::GuestCsAccessRights, long_mode, |w| { w.or(F::GuestCsAccessRights, 1 << 14); }),
    (Rule::SegmentGranularity, F::GuestCsAccessRights, long_mode, |w| { w.set(F::GuestCsLimit, 0xffff_fffe); }),
    (Rule::SegmentGranularity, F::GuestSsAccessRights, real_mode, |w| { w.set(F::GuestSsLimit, 0x10_0000); }),
    (Rule::SegmentGranularity, F::GuestTrAccessRights, long_mode, |w| { w.or(F::GuestTrAccessRights, 1 << 15); }),
    (Rule::TrType, F::GuestTrAccessRights, long_mode, |w| { w.set(F::GuestTrAccessRights, 0x89); }),
    (Rule::TrType, F::GuestTrAccessRights, long_mode, |w| { w.set(F::GuestTrAccessRights, 0x83); }),
    (Rule::TrUnusable, F::GuestTrAccessRights, long_mode, |w| { w.or(F::GuestTrAccessRights, 1 << 16); }),
    (Rule::LdtrType, F::GuestLdtrAccessRights, ring_3, |w| { w.set(F::GuestLdtrAccessRights, 0x83); }),
];

#[test]
fn each_rule_of_the_guest_state() {
    run(CASES);
}

#[test]
fn each_rule_of_segment_registers() {
    run(SEGMENT_CASES);
}

#[test]
#[rustfmt::skip]
fn what_guest_state_allows() {
    pass(&[
        ("64-bit guest", long_mode, |_| {}),
        ("real mode", real_mode, |_| {}),
        ("PAE paging without EPT", pae, |_| {}),
        ("virtual-8086 mode", virtual_8086, |_| {}),
        ("ring 3", ring_3, |_| {}),
        ("linked shadow VMCS", linked, |_| {}),
        ("data segment as CS in real mode", real_mode, |w| { w.set(F::GuestCsAccessRights, 0x93); }),
        ("16-bit TSS outside IA-32e mode", pae, |w| { w.set(F::GuestTrAccessRights, 0x83); }),
        ("PDPTEs that are not present", pae, |w| { w.memory.insert(0x30_0028, 0x1e6); }),
        ("the executive VMCS is linked outside SMM", linked, |w| { w.set(F::VmcsLinkPointer, EXECUTIVE); }),
        ("NMI into HLT", long_mode, |w| { inject(w, InterruptionInfo::nmi()).set(F::GuestActivity, HLT); }),
        ("machine check into shutdown", long_mode, |w| {
            inject(w, InterruptionInfo::exception(vector::MACHINE_CHECK, false)).set(F::GuestActivity, SHUTDOWN);
        }),
        ("pending MTF into HLT", long_mode, |w| {
            inject(w, InterruptionInfo::event(InterruptionType::Other, 0)).set(F::GuestActivity, HLT);
        }),
        ("single step pending after MOV SS", long_mode, |w| {
            w.set(F::GuestInterruptibility, MOV_SS).or(F::GuestRflags, TF).set(F::GuestPendingDebug, 1 << 14);
        }),
        ("NMI while NMIs are blocked, but not virtually", long_mode, |w| {
            inject(w, InterruptionInfo::nmi()).set(F::GuestInterruptibility, NMI);
        }),
        ("unusable segments hold anything", long_mode, |w| {
            w.set(F::GuestDsBase, u64::MAX).set(F::GuestDsLimit, 0x1234_5678).set(F::GuestLdtrBase, NOT_CANONICAL);
        }),
        ("RIP one step past the lower half", long_mode, |w| { w.set(F::GuestRip, 1 << 47); }),
        ("SSP there too", long_mode, |w| { w.everything().entry(N::LOAD_CET_STATE).set(F::GuestSsp, 1 << 47); }),
        ("compatibility mode", long_mode, |w| { w.set(F::GuestCsAccessRights, 0xc09b).set(F::GuestRip, 0x1000); }),
        ("entry to SMM", long_mode, |w| { w.in_smm().entry(N::ENTRY_TO_SMM).set(F::GuestInterruptibility, SMI); }),
        ("wait-for-SIPI outside SMM", long_mode, |w| { w.set(F::GuestActivity, WAIT_FOR_SIPI); }),
        ("the highest UINV", long_mode, |w| { w.everything().entry(N::LOAD_UINV).set(F::GuestUinv, 0xff); }),
        ("the highest table limit", long_mode, |w| { w.set(F::GuestIdtrLimit, 0xffff); }),
        ("conforming code of SS's DPL", long_mode, |w| { w.set(F::GuestCsAccessRights, 0xa09f); }),
        ("conforming readable code as DS below its RPL", ring_3, |w| { w.set(F::GuestDsAccessRights, 0xc09f); }),
        ("DS below its RPL in an unrestricted guest", ring_3, |w| {
            w.secondary(S::ENABLE_EPT | S::UNRESTRICTED_GUEST).set(F::GuestDsAccessRights, 0xc093);
        }),
        ("SS's RPL in an unrestricted guest", real_mode, |w| { w.set(F::GuestSsSelector, 3); }),
        ("SS's RPL in virtual-8086 mode", virtual_8086, |w| {
            w.set(F::GuestSsSelector, 0x1235).set(F::GuestSsBase, 0x1_2350);
        }),
        ("no PDPTEs with 32-bit paging", pae, |w| {
            w.clear(F::GuestCr4, cr::CR4_PAE).memory.insert(0x30_0020, u64::MAX);
        }),
        ("no PDPTEs in IA-32e mode", long_mode, |w| {
            w.without(S::ENABLE_EPT).memory.insert(0x30_0000, u64::MAX);
        }),
    ]);
}
