//! Controls: 27.2.1.

use super::*;
use crate::exit::{InterruptionInfo, InterruptionType, vector};
use Field as F;
use PinControls as Pin;
use PrimaryControls as P;
use SecondaryControls as S;
use TertiaryControls as T;

fn inject(world: &mut World, event: InterruptionInfo) -> &mut World {
    world.set(F::EntryInterruptionInfo, event.into_bits().into())
}

fn strict_error_codes(world: &mut World) -> &mut World {
    world.caps.basic &= !basic::ANY_ERROR_CODE;
    world
}

/// Virtual-interrupt delivery with posted interrupts, complete.
fn posted() -> World {
    let mut world = long_mode();
    world
        .everything()
        .primary(P::TPR_SHADOW)
        .secondary(S::VIRTUAL_INTERRUPT_DELIVERY)
        .pin(Pin::POSTED_INTERRUPTS)
        .exit(ExitControls::ACKNOWLEDGE_INTERRUPT)
        .set(F::PostedInterruptVector, 0xf2)
        .set(F::PostedInterruptDescriptor, 0x5040);
    world
}

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    (Rule::PinControls, F::PinControls, long_mode, |w| { w.pin(Pin::POSTED_INTERRUPTS); }),
    (Rule::PinControls, F::PinControls, long_mode, |w| { w.clear(F::PinControls, 2); }),
    (Rule::PrimaryControls, F::PrimaryControls, long_mode, |w| { w.or(F::PrimaryControls, 1); }),
    (Rule::PrimaryControls, F::PrimaryControls, long_mode, |w| { w.clear(F::PrimaryControls, 2); }),
    (Rule::SecondaryControls, F::SecondaryControls, long_mode, |w| { w.secondary(S::ENCLS_EXITING); }),
    (Rule::TertiaryControls, F::TertiaryControls, long_mode, |w| {
        w.everything().tertiary(T::ENABLE_HLAT).caps.tertiary = 0;
    }),
    (Rule::Cr3TargetCount, F::Cr3TargetCount, long_mode, |w| { w.set(F::Cr3TargetCount, 5); }),
    (Rule::IoBitmapAddress, F::IoBitmapA, long_mode, |w| { w.primary(P::IO_BITMAPS).set(F::IoBitmapA, 0x800); }),
    (Rule::IoBitmapAddress, F::IoBitmapB, long_mode, |w| { w.primary(P::IO_BITMAPS).set(F::IoBitmapB, BEYOND); }),
    (Rule::IoBitmapAddress, F::IoBitmapB, long_mode, |w| {
        w.primary(P::IO_BITMAPS).set(F::IoBitmapB, 1 << 32).caps.basic |= basic::ADDRESS_32;
    }),
    (Rule::MsrBitmapAddress, F::MsrBitmap, long_mode, |w| { w.primary(P::MSR_BITMAPS).set(F::MsrBitmap, 1); }),
    (Rule::VirtualApicAddress, F::VirtualApicAddress, long_mode, |w| {
        w.primary(P::TPR_SHADOW).set(F::VirtualApicAddress, BEYOND);
    }),
    (Rule::TprThresholdReserved, F::TprThreshold, long_mode, |w| {
        w.primary(P::TPR_SHADOW).set(F::TprThreshold, 0x10);
    }),
    (Rule::TprThresholdAboveVtpr, F::TprThreshold, long_mode, |w| {
        w.primary(P::TPR_SHADOW).set(F::VirtualApicAddress, 0x4000).set(F::TprThreshold, 6);
        w.memory.insert(0x4080, 0x5f);
    }),
    (Rule::VirtualNmisNeedNmiExiting, F::PinControls, long_mode, |w| {
        w.pin(Pin::VIRTUAL_NMIS).clear(F::PinControls, Pin::NMI_EXITING.bits().into());
    }),
    (Rule::NmiWindowNeedsVirtualNmis, F::PrimaryControls, long_mode, |w| { w.primary(P::NMI_WINDOW_EXITING); }),
    (Rule::ApicAccessAddress, F::ApicAccessAddress, long_mode, |w| {
        w.secondary(S::VIRTUALIZE_APIC_ACCESSES).set(F::ApicAccessAddress, 0xfee0_0010);
    }),
    (Rule::NeedsTprShadow, F::SecondaryControls, long_mode, |w| { w.secondary(S::VIRTUALIZE_X2APIC); }),
    (Rule::NeedsTprShadow, F::TertiaryControls, long_mode, |w| { w.everything().tertiary(T::IPI_VIRTUALIZATION); }),
    (Rule::X2ApicExcludesApicAccesses, F::SecondaryControls, long_mode, |w| {
        w.primary(P::TPR_SHADOW).secondary(S::VIRTUALIZE_X2APIC | S::VIRTUALIZE_APIC_ACCESSES);
    }),
    (Rule::VirtualInterruptsNeedExternalInterruptExiting, F::PinControls, posted, |w| {
        w.clear(F::PinControls, Pin::EXTERNAL_INTERRUPT_EXITING.bits().into());
    }),
    (Rule::PostedInterruptsNeedVirtualInterruptDelivery, F::SecondaryControls, posted, |w| {
        w.without(S::VIRTUAL_INTERRUPT_DELIVERY);
    }),
    (Rule::PostedInterruptsNeedAcknowledge, F::ExitControls, posted, |w| {
        w.clear(F::ExitControls, ExitControls::ACKNOWLEDGE_INTERRUPT.bits().into());
    }),
    (Rule::PostedInterruptVector, F::PostedInterruptVector, posted, |w| { w.set(F::PostedInterruptVector, 0x100); }),
    (Rule::PostedInterruptDescriptor, F::PostedInterruptDescriptor, posted, |w| {
        w.set(F::PostedInterruptDescriptor, 0x5020);
    }),
    (Rule::VpidZero, F::Vpid, long_mode, |w| { w.set(F::Vpid, 0); }),
    (Rule::EptpMemoryType, F::EptPointer, long_mode, |w| { w.set(F::EptPointer, 0x20_0019); }),
    (Rule::EptpWalkLength, F::EptPointer, long_mode, |w| { w.set(F::EptPointer, 0x20_0026); }),
    (Rule::EptpAccessedDirty, F::EptPointer, long_mode, |w| { w.caps.ept_vpid &= !(1 << 21); }),
    (Rule::EptpShadowStack, F::EptPointer, long_mode, |w| { w.or(F::EptPointer, 1 << 7); }),
    (Rule::EptpReserved, F::EptPointer, long_mode, |w| { w.or(F::EptPointer, 1 << 8); }),
    (Rule::EptpReserved, F::EptPointer, long_mode, |w| { w.or(F::EptPointer, BEYOND); }),
    (Rule::NeedsEpt, F::SecondaryControls, real_mode, |w| { w.without(S::ENABLE_EPT); }),
    (Rule::NeedsEpt, F::SecondaryControls, pae, |w| { w.secondary(S::ENABLE_PML); }),
    (Rule::NeedsEpt, F::TertiaryControls, pae, |w| { w.everything().tertiary(T::ENABLE_HLAT); }),
    (Rule::PmlAddress, F::PmlAddress, long_mode, |w| { w.secondary(S::ENABLE_PML).set(F::PmlAddress, 8); }),
    (Rule::SppTablePointer, F::SppTablePointer, long_mode, |w| {
        w.everything().secondary(S::SUB_PAGE_WRITE_PERMISSIONS).set(F::SppTablePointer, 8);
    }),
    (Rule::PtGuestPhysicalNeedsRtitControls, F::EntryControls, long_mode, |w| {
        w.everything().secondary(S::PT_GUEST_PHYSICAL);
    }),
    (Rule::PtGuestPhysicalNeedsRtitControls, F::ExitControls, long_mode, |w| {
        w.everything().secondary(S::PT_GUEST_PHYSICAL).entry(EntryControls::LOAD_RTIT_CTL);
    }),
    (Rule::VmFunctions, F::VmFunctionControls, long_mode, |w| {
        w.everything().secondary(S::ENABLE_VM_FUNCTIONS).set(F::VmFunctionControls, 2);
    }),
    (Rule::EptpSwitchingNeedsEpt, F::SecondaryControls, pae, |w| {
        w.everything().secondary(S::ENABLE_VM_FUNCTIONS).set(F::VmFunctionControls, 1);
    }),
    (Rule::EptpListAddress, F::EptpListAddress, long_mode, |w| {
        w.everything().secondary(S::ENABLE_VM_FUNCTIONS).set(F::VmFunctionControls, 1).set(F::EptpListAddress, 8);
    }),
    (Rule::VmcsShadowingBitmap, F::VmreadBitmap, long_mode, |w| {
        w.secondary(S::VMCS_SHADOWING).set(F::VmreadBitmap, 8);
    }),
    (Rule::VmcsShadowingBitmap, F::VmwriteBitmap, long_mode, |w| {
        w.secondary(S::VMCS_SHADOWING).set(F::VmwriteBitmap, BEYOND);
    }),
    (Rule::VirtualizationExceptionAddress, F::VirtualizationExceptionAddress, long_mode, |w| {
        w.secondary(S::EPT_VIOLATION_VE).set(F::VirtualizationExceptionAddress, 8);
    }),
    (Rule::TscMultiplierZero, F::TscMultiplier, long_mode, |w| { w.secondary(S::TSC_SCALING); }),
    (Rule::HlatPointer, F::HlatPointer, long_mode, |w| {
        w.everything().tertiary(T::ENABLE_HLAT).set(F::HlatPointer, 1);
    }),
    (Rule::HlatPrefixSize, F::HlatPrefixSize, long_mode, |w| {
        w.everything().tertiary(T::ENABLE_HLAT).set(F::HlatPrefixSize, 1);
    }),
    (Rule::PasidDirectory, F::HighPasidDirectory, long_mode, |w| {
        w.everything().secondary(S::PASID_TRANSLATION).set(F::HighPasidDirectory, 8);
    }),
    (Rule::PidPointerTable, F::PidPointerTable, posted, |w| {
        w.tertiary(T::IPI_VIRTUALIZATION).set(F::PidPointerTable, 4);
    }),
    (Rule::PidPointerTable, F::PidPointerTable, posted, |w| {
        w.tertiary(T::IPI_VIRTUALIZATION).set(F::PidPointerTable, BEYOND - 8).set(F::LastPidPointerIndex, 1);
    }),
    (Rule::ExitControls, F::ExitControls, long_mode, |w| { w.exit(ExitControls::CLEAR_BNDCFGS); }),
    (Rule::ExitControls, F::ExitControls, long_mode, |w| { w.clear(F::ExitControls, 1); }),
    (Rule::SecondaryExitControls, F::SecondaryExitControls, long_mode, |w| {
        w.everything().exit(ExitControls::SECONDARY_CONTROLS).set(F::SecondaryExitControls, 1);
        w.caps.secondary_exit = 0;
    }),
    (Rule::SavePreemptionTimerNeedsTimer, F::ExitControls, long_mode, |w| {
        w.exit(ExitControls::SAVE_PREEMPTION_TIMER);
    }),
    (Rule::ExitMsrStoreArea, F::ExitMsrStoreAddress, long_mode, |w| {
        w.set(F::ExitMsrStoreCount, 1).set(F::ExitMsrStoreAddress, 8);
    }),
    (Rule::ExitMsrLoadArea, F::ExitMsrLoadAddress, long_mode, |w| {
        w.set(F::ExitMsrLoadCount, 2).set(F::ExitMsrLoadAddress, BEYOND - 16);
    }),
    (Rule::ExitMsrLoadArea, F::ExitMsrLoadAddress, long_mode, |w| {
        w.set(F::ExitMsrLoadCount, u64::MAX).set(F::ExitMsrLoadAddress, !15);
    }),
    (Rule::EntryControls, F::EntryControls, long_mode, |w| { w.entry(EntryControls::LOAD_PKRS); }),
    (Rule::EntryControls, F::EntryControls, long_mode, |w| { w.clear(F::EntryControls, 1); }),
    (Rule::EventType, F::EntryInterruptionInfo, long_mode, |w| { w.set(F::EntryInterruptionInfo, 0x8000_0120); }),
    (Rule::EventType, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::event(InterruptionType::Other, 0));
        w.caps = w.caps.clone().without_primary(P::MONITOR_TRAP_FLAG);
    }),
    (Rule::EventVector, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::event(InterruptionType::Nmi, 3));
    }),
    (Rule::EventVector, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::exception(32, false));
    }),
    (Rule::EventVector, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::event(InterruptionType::Other, 1));
    }),
    (Rule::EventErrorCode, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::external(0x20).with_error_code(true));
    }),
    (Rule::EventErrorCode, F::EntryInterruptionInfo, real_mode, |w| {
        inject(w, InterruptionInfo::exception(vector::GENERAL_PROTECTION, true));
    }),
    (Rule::EventErrorCode, F::EntryInterruptionInfo, long_mode, |w| {
        inject(strict_error_codes(w), InterruptionInfo::exception(vector::PAGE_FAULT, false));
    }),
    (Rule::EventErrorCode, F::EntryInterruptionInfo, long_mode, |w| {
        inject(strict_error_codes(w), InterruptionInfo::exception(vector::INVALID_OPCODE, true));
    }),
    (Rule::EventErrorCode, F::EntryInterruptionInfo, long_mode, |w| {
        inject(strict_error_codes(w), InterruptionInfo::exception(vector::CONTROL_PROTECTION, true));
    }),
    (Rule::EventReserved, F::EntryInterruptionInfo, long_mode, |w| {
        inject(w, InterruptionInfo::external(0x20).with_nmi_unblocking(true));
    }),
    (Rule::EventReserved, F::EntryInterruptionInfo, long_mode, |w| { w.set(F::EntryInterruptionInfo, 0xc000_0020); }),
    (Rule::EventErrorCodeReserved, F::EntryExceptionErrorCode, long_mode, |w| {
        inject(w, InterruptionInfo::exception(vector::PAGE_FAULT, true)).set(F::EntryExceptionErrorCode, 0x1_0000);
    }),
    (Rule::EventInstructionLength, F::EntryInstructionLength, long_mode, |w| {
        inject(w, InterruptionInfo::event(InterruptionType::SoftwareInterrupt, 0x80))
            .set(F::EntryInstructionLength, 16);
    }),
    (Rule::EventInstructionLength, F::EntryInstructionLength, long_mode, |w| {
        inject(w, InterruptionInfo::event(InterruptionType::SoftwareException, 3));
        w.caps.misc &= !crate::caps::misc::ZERO_LENGTH_INJECTION;
    }),
    (Rule::EntryMsrLoadArea, F::EntryMsrLoadAddress, long_mode, |w| {
        w.set(F::EntryMsrLoadCount, 1).set(F::EntryMsrLoadAddress, BEYOND);
    }),
    (Rule::EntryToSmmOutsideSmm, F::EntryControls, long_mode, |w| {
        w.everything().entry(EntryControls::ENTRY_TO_SMM);
    }),
    (Rule::EntryToSmmExcludesDeactivate, F::EntryControls, long_mode, |w| {
        w.in_smm().entry(EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR);
    }),
];

#[test]
fn each_rule_of_the_controls() {
    run(CASES);
}

#[test]
#[rustfmt::skip]
fn what_controls_allow() {
    pass(&[
        ("secondary controls that are not activated are not checked", long_mode, |w| {
            w.clear(F::PrimaryControls, P::SECONDARY_CONTROLS.bits().into()).set(F::SecondaryControls, 0xffff_ffff);
        }),
        ("VTPR is not compared while APIC accesses are virtualized", long_mode, |w| {
            w.primary(P::TPR_SHADOW).secondary(S::VIRTUALIZE_APIC_ACCESSES).set(F::TprThreshold, 15);
        }),
        ("the threshold may equal VTPR", long_mode, |w| {
            w.primary(P::TPR_SHADOW).set(F::VirtualApicAddress, 0x4000).set(F::TprThreshold, 5);
            w.memory.insert(0x4080, 0x50);
        }),
        ("an MSR area may end with memory", long_mode, |w| {
            w.set(F::ExitMsrLoadCount, 1).set(F::ExitMsrLoadAddress, BEYOND - 16);
        }),
        ("addresses of unused structures are not checked", long_mode, |w| {
            w.set(F::IoBitmapA, 1).set(F::MsrBitmap, 1).set(F::PmlAddress, 1).set(F::ExitMsrLoadAddress, 1);
        }),
        ("an event that is not valid is not checked", long_mode, |w| {
            w.set(F::EntryInterruptionInfo, 0x7fff_ffff);
        }),
        ("a page fault with an error code", long_mode, |w| {
            inject(strict_error_codes(w), InterruptionInfo::exception(vector::PAGE_FAULT, true));
        }),
        ("an exception without error code in real mode", real_mode, |w| {
            inject(strict_error_codes(w), InterruptionInfo::exception(vector::GENERAL_PROTECTION, false));
        }),
        ("NMI-window exiting with virtual NMIs", long_mode, |w| {
            w.pin(Pin::VIRTUAL_NMIS).primary(P::NMI_WINDOW_EXITING);
        }),
        ("the highest vector for posted interrupts", posted, |w| { w.set(F::PostedInterruptVector, 0xff); }),
        ("all CR3-target values", long_mode, |w| { w.set(F::Cr3TargetCount, 4); }),
        ("the highest exception vector", long_mode, |w| { inject(w, InterruptionInfo::exception(31, false)); }),
        ("the longest instruction", long_mode, |w| {
            inject(w, InterruptionInfo::event(InterruptionType::SoftwareInterrupt, 0x80))
                .set(F::EntryInstructionLength, 15);
            w.caps.misc &= !crate::caps::misc::ZERO_LENGTH_INJECTION;
        }),
        ("HLAT with the highest prefix size", long_mode, |w| {
            w.everything().tertiary(T::ENABLE_HLAT).set(F::HlatPrefixSize, 1).caps.ept_vpid |= 1 << 48;
        }),
        ("uncacheable EPT structures", long_mode, |w| { w.set(F::EptPointer, 0x20_0058); }),
        ("an error code for an unrestricted guest in protected mode", long_mode, |w| {
            w.secondary(S::UNRESTRICTED_GUEST);
            inject(strict_error_codes(w), InterruptionInfo::exception(vector::PAGE_FAULT, true));
        }),
    ]);
}
