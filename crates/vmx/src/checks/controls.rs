//! VM-execution control fields (27.2.1.1).

use super::{CheckResult, Env, Rule, require};
use crate::caps::ept_vpid;
use crate::controls::{
    EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
    VmFunctions,
};
use crate::field::Field;
use crate::region::Vmcs;

/// VTPR's offset in the virtual-APIC page.
const VTPR: u64 = 0x80;

pub(super) fn check(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    settings(vmcs, env)?;
    bitmaps(vmcs, env)?;
    nmis(vmcs)?;
    apic(vmcs, env)?;
    posted_interrupts(vmcs, env)?;
    translation(vmcs, env)?;
    secondary_features(vmcs, env)?;
    if vmcs.primary_controls().contains(PrimaryControls::TERTIARY_CONTROLS) {
        tertiary_features(vmcs, env)?;
    }
    Ok(())
}

/// Allowed settings, and the count of CR3-target values.
fn settings(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let caps = env.caps;
    let primary = vmcs.primary_controls();
    require(caps.pin.allows(vmcs.read32(Field::PinControls)), Rule::PinControls, vmcs, Field::PinControls)?;
    require(caps.primary.allows(primary.bits()), Rule::PrimaryControls, vmcs, Field::PrimaryControls)?;
    if primary.contains(PrimaryControls::SECONDARY_CONTROLS) {
        let ok = caps.secondary.allows(vmcs.read32(Field::SecondaryControls));
        require(ok, Rule::SecondaryControls, vmcs, Field::SecondaryControls)?;
    }
    if primary.contains(PrimaryControls::TERTIARY_CONTROLS) {
        let ok = vmcs.read(Field::TertiaryControls) & !caps.tertiary == 0;
        require(ok, Rule::TertiaryControls, vmcs, Field::TertiaryControls)?;
    }
    let count = vmcs.read32(Field::Cr3TargetCount);
    require(count <= caps.cr3_targets(), Rule::Cr3TargetCount, vmcs, Field::Cr3TargetCount)
}

fn page(vmcs: &Vmcs, env: &Env<'_>, field: Field, rule: Rule) -> CheckResult {
    require(env.is_page(vmcs.read(field)), rule, vmcs, field)
}

fn bitmaps(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let primary = vmcs.primary_controls();
    if primary.contains(PrimaryControls::IO_BITMAPS) {
        page(vmcs, env, Field::IoBitmapA, Rule::IoBitmapAddress)?;
        page(vmcs, env, Field::IoBitmapB, Rule::IoBitmapAddress)?;
    }
    if primary.contains(PrimaryControls::MSR_BITMAPS) {
        page(vmcs, env, Field::MsrBitmap, Rule::MsrBitmapAddress)?;
    }
    Ok(())
}

fn nmis(vmcs: &Vmcs) -> CheckResult {
    let pin = vmcs.pin_controls();
    let virtual_nmis = pin.contains(PinControls::VIRTUAL_NMIS);
    let ok = pin.contains(PinControls::NMI_EXITING) || !virtual_nmis;
    require(ok, Rule::VirtualNmisNeedNmiExiting, vmcs, Field::PinControls)?;
    let ok = virtual_nmis || !vmcs.primary_controls().contains(PrimaryControls::NMI_WINDOW_EXITING);
    require(ok, Rule::NmiWindowNeedsVirtualNmis, vmcs, Field::PrimaryControls)
}

fn apic(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    use SecondaryControls as S;
    let secondary = vmcs.secondary_controls();
    let accesses = secondary.contains(S::VIRTUALIZE_APIC_ACCESSES);
    if vmcs.primary_controls().contains(PrimaryControls::TPR_SHADOW) {
        page(vmcs, env, Field::VirtualApicAddress, Rule::VirtualApicAddress)?;
        if !secondary.contains(S::VIRTUAL_INTERRUPT_DELIVERY) {
            let threshold = vmcs.read(Field::TprThreshold);
            require(threshold >> 4 == 0, Rule::TprThresholdReserved, vmcs, Field::TprThreshold)?;
            if !accesses && threshold != 0 {
                let vtpr = (env.read_physical)(vmcs.read(Field::VirtualApicAddress) + VTPR);
                let ok = threshold <= vtpr >> 4 & 0xf;
                require(ok, Rule::TprThresholdAboveVtpr, vmcs, Field::TprThreshold)?;
            }
        }
    } else {
        let virtualizing =
            S::VIRTUALIZE_X2APIC | S::APIC_REGISTER_VIRTUALIZATION | S::VIRTUAL_INTERRUPT_DELIVERY;
        require(!secondary.intersects(virtualizing), Rule::NeedsTprShadow, vmcs, Field::SecondaryControls)?;
        let ipis = vmcs.tertiary_controls().contains(TertiaryControls::IPI_VIRTUALIZATION);
        require(!ipis, Rule::NeedsTprShadow, vmcs, Field::TertiaryControls)?;
    }
    if accesses {
        page(vmcs, env, Field::ApicAccessAddress, Rule::ApicAccessAddress)?;
        let ok = !secondary.contains(S::VIRTUALIZE_X2APIC);
        require(ok, Rule::X2ApicExcludesApicAccesses, vmcs, Field::SecondaryControls)?;
    }
    let ok = !secondary.contains(S::VIRTUAL_INTERRUPT_DELIVERY)
        || vmcs.pin_controls().contains(PinControls::EXTERNAL_INTERRUPT_EXITING);
    require(ok, Rule::VirtualInterruptsNeedExternalInterruptExiting, vmcs, Field::PinControls)
}

fn posted_interrupts(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    if !vmcs.pin_controls().contains(PinControls::POSTED_INTERRUPTS) {
        return Ok(());
    }
    let ok = vmcs.secondary_controls().contains(SecondaryControls::VIRTUAL_INTERRUPT_DELIVERY);
    require(ok, Rule::PostedInterruptsNeedVirtualInterruptDelivery, vmcs, Field::SecondaryControls)?;
    let ok = vmcs.exit_controls().contains(ExitControls::ACKNOWLEDGE_INTERRUPT);
    require(ok, Rule::PostedInterruptsNeedAcknowledge, vmcs, Field::ExitControls)?;
    let ok = vmcs.read(Field::PostedInterruptVector) <= 0xff;
    require(ok, Rule::PostedInterruptVector, vmcs, Field::PostedInterruptVector)?;
    let ok = env.is_aligned(vmcs.read(Field::PostedInterruptDescriptor), 64);
    require(ok, Rule::PostedInterruptDescriptor, vmcs, Field::PostedInterruptDescriptor)
}

/// VPID, and EPT with what builds on it.
fn translation(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    use SecondaryControls as S;
    let secondary = vmcs.secondary_controls();
    let ok = !secondary.contains(S::ENABLE_VPID) || vmcs.read(Field::Vpid) != 0;
    require(ok, Rule::VpidZero, vmcs, Field::Vpid)?;
    if secondary.contains(S::ENABLE_EPT) {
        eptp(vmcs, env)?;
    } else {
        let need_ept = S::UNRESTRICTED_GUEST
            | S::ENABLE_PML
            | S::MODE_BASED_EPT_EXECUTE
            | S::SUB_PAGE_WRITE_PERMISSIONS
            | S::PT_GUEST_PHYSICAL;
        require(!secondary.intersects(need_ept), Rule::NeedsEpt, vmcs, Field::SecondaryControls)?;
        let need_ept = TertiaryControls::ENABLE_HLAT
            | TertiaryControls::EPT_PAGING_WRITE
            | TertiaryControls::GUEST_PAGING_VERIFICATION;
        let ok = !vmcs.tertiary_controls().intersects(need_ept);
        require(ok, Rule::NeedsEpt, vmcs, Field::TertiaryControls)?;
    }
    if secondary.contains(S::ENABLE_PML) {
        page(vmcs, env, Field::PmlAddress, Rule::PmlAddress)?;
    }
    if secondary.contains(S::SUB_PAGE_WRITE_PERMISSIONS) {
        page(vmcs, env, Field::SppTablePointer, Rule::SppTablePointer)?;
    }
    Ok(())
}

fn eptp(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let eptp = vmcs.read(Field::EptPointer);
    let caps = env.caps.ept_vpid;
    let type_ok = match eptp & 7 {
        0 => caps & ept_vpid::MEMORY_TYPE_UC != 0,
        6 => caps & ept_vpid::MEMORY_TYPE_WB != 0,
        _ => false,
    };
    require(type_ok, Rule::EptpMemoryType, vmcs, Field::EptPointer)?;
    let walk_ok = match eptp >> 3 & 7 {
        3 => caps & ept_vpid::WALK_4 != 0,
        4 => caps & ept_vpid::WALK_5 != 0,
        _ => false,
    };
    require(walk_ok, Rule::EptpWalkLength, vmcs, Field::EptPointer)?;
    let ok = eptp & 1 << 6 == 0 || caps & ept_vpid::ACCESSED_DIRTY != 0;
    require(ok, Rule::EptpAccessedDirty, vmcs, Field::EptPointer)?;
    let ok = eptp & 1 << 7 == 0 || caps & ept_vpid::SUPERVISOR_SHADOW_STACK != 0;
    require(ok, Rule::EptpShadowStack, vmcs, Field::EptPointer)?;
    let ok = eptp & 0xf00 == 0 && env.is_physical(eptp);
    require(ok, Rule::EptpReserved, vmcs, Field::EptPointer)
}

fn secondary_features(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    use SecondaryControls as S;
    let secondary = vmcs.secondary_controls();
    if secondary.contains(S::PT_GUEST_PHYSICAL) {
        let ok = vmcs.entry_controls().contains(EntryControls::LOAD_RTIT_CTL);
        require(ok, Rule::PtGuestPhysicalNeedsRtitControls, vmcs, Field::EntryControls)?;
        let ok = vmcs.exit_controls().contains(ExitControls::CLEAR_RTIT_CTL);
        require(ok, Rule::PtGuestPhysicalNeedsRtitControls, vmcs, Field::ExitControls)?;
    }
    if secondary.contains(S::ENABLE_VM_FUNCTIONS) {
        let functions = vmcs.vm_functions();
        let ok = env.caps.allows_vm_functions(functions);
        require(ok, Rule::VmFunctions, vmcs, Field::VmFunctionControls)?;
        if functions.contains(VmFunctions::EPTP_SWITCHING) {
            let ept = secondary.contains(S::ENABLE_EPT);
            require(ept, Rule::EptpSwitchingNeedsEpt, vmcs, Field::SecondaryControls)?;
            page(vmcs, env, Field::EptpListAddress, Rule::EptpListAddress)?;
        }
    }
    if secondary.contains(S::VMCS_SHADOWING) {
        page(vmcs, env, Field::VmreadBitmap, Rule::VmcsShadowingBitmap)?;
        page(vmcs, env, Field::VmwriteBitmap, Rule::VmcsShadowingBitmap)?;
    }
    if secondary.contains(S::EPT_VIOLATION_VE) {
        page(vmcs, env, Field::VirtualizationExceptionAddress, Rule::VirtualizationExceptionAddress)?;
    }
    if secondary.contains(S::PASID_TRANSLATION) {
        page(vmcs, env, Field::LowPasidDirectory, Rule::PasidDirectory)?;
        page(vmcs, env, Field::HighPasidDirectory, Rule::PasidDirectory)?;
    }
    let ok = !secondary.contains(S::TSC_SCALING) || vmcs.read(Field::TscMultiplier) != 0;
    require(ok, Rule::TscMultiplierZero, vmcs, Field::TscMultiplier)
}

fn tertiary_features(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let tertiary = vmcs.tertiary_controls();
    if tertiary.contains(TertiaryControls::ENABLE_HLAT) {
        let pointer = vmcs.read(Field::HlatPointer);
        // PWT and PCD are bits 3 and 4.
        let ok = pointer & 0xfe7 == 0 && env.is_physical(pointer);
        require(ok, Rule::HlatPointer, vmcs, Field::HlatPointer)?;
        let maximum = env.caps.ept_vpid >> 48 & 0x3f;
        let ok = vmcs.read(Field::HlatPrefixSize) <= maximum;
        require(ok, Rule::HlatPrefixSize, vmcs, Field::HlatPrefixSize)?;
    }
    if tertiary.contains(TertiaryControls::IPI_VIRTUALIZATION) {
        let table = vmcs.read(Field::PidPointerTable);
        let last = table.checked_add(8 * vmcs.read(Field::LastPidPointerIndex) + 7);
        let ok = table & 7 == 0 && last.is_some_and(|last| env.is_physical(last));
        require(ok, Rule::PidPointerTable, vmcs, Field::PidPointerTable)?;
    }
    Ok(())
}
