//! Guest state other than segment registers (27.3.1.1 and 27.3.1.3 to 27.3.1.6).

use super::segments::rights;
use super::{CheckResult, Env, Rule, broken, cr, efer, is_pat, is_s_cet, require};
use crate::caps::misc;
use crate::controls::{EntryControls, PinControls, SecondaryControls};
use crate::exit::{InterruptionInfo, InterruptionType, vector};
use crate::field::Field;
use crate::region::{SHADOW_INDICATOR, Vmcs};
use crate::state::{Activity, Interruptibility, PendingDebug, Segment};

const RFLAGS_FIXED_1: u64 = 1 << 1;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_VM: u64 = 1 << 17;
/// Bits 63:22, 15, 5 and 3.
const RFLAGS_RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
const DEBUGCTL_BTF: u64 = 1 << 1;

/// Control registers, debug registers and MSRs.
pub(super) fn registers(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    control_registers(vmcs, env)?;
    msrs(vmcs, env)?;
    optional_msrs(vmcs, env)
}

fn control_registers(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let caps = env.caps;
    let entry = vmcs.entry_controls();
    let cr0 = vmcs.read(Field::GuestCr0);
    let mut fixed0 = caps.cr0_fixed0;
    if vmcs.secondary_controls().contains(SecondaryControls::UNRESTRICTED_GUEST) {
        fixed0 &= !(cr::CR0_PE | cr::CR0_PG);
    }
    let ok = cr0 & fixed0 == fixed0 && cr0 & !caps.cr0_fixed1 == 0;
    require(ok, Rule::GuestCr0, vmcs, Field::GuestCr0)?;
    let paging = cr0 & cr::CR0_PG != 0;
    let ok = !paging || cr0 & cr::CR0_PE != 0;
    require(ok, Rule::GuestPagingNeedsProtection, vmcs, Field::GuestCr0)?;
    let cr4 = vmcs.read(Field::GuestCr4);
    let ok = cr4 & caps.cr4_fixed0 == caps.cr4_fixed0 && cr4 & !caps.cr4_fixed1 == 0;
    require(ok, Rule::GuestCr4, vmcs, Field::GuestCr4)?;
    let ok = cr4 & cr::CR4_CET == 0 || cr0 & cr::CR0_WP != 0;
    require(ok, Rule::GuestCetNeedsWp, vmcs, Field::GuestCr0)?;
    if entry.contains(EntryControls::IA32E_MODE_GUEST) {
        require(paging, Rule::GuestIa32eNeedsPaging, vmcs, Field::GuestCr0)?;
        require(cr4 & cr::CR4_PAE != 0, Rule::GuestIa32eNeedsPaging, vmcs, Field::GuestCr4)?;
    } else {
        require(cr4 & cr::CR4_PCIDE == 0, Rule::GuestPcide, vmcs, Field::GuestCr4)?;
    }
    require(env.is_physical(vmcs.read(Field::GuestCr3)), Rule::GuestCr3, vmcs, Field::GuestCr3)?;
    if entry.contains(EntryControls::LOAD_DEBUG_CONTROLS) {
        let ok = vmcs.read(Field::GuestDebugctl) & !env.debugctl_mask == 0;
        require(ok, Rule::GuestDebugctl, vmcs, Field::GuestDebugctl)?;
        require(vmcs.read(Field::GuestDr7) >> 32 == 0, Rule::GuestDr7, vmcs, Field::GuestDr7)?;
    }
    Ok(())
}

fn msrs(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let entry = vmcs.entry_controls();
    for field in [Field::GuestSysenterEsp, Field::GuestSysenterEip] {
        require(env.is_canonical(vmcs.read(field)), Rule::GuestSysenter, vmcs, field)?;
    }
    if entry.contains(EntryControls::LOAD_PERF_GLOBAL_CTRL) {
        let ok = vmcs.read(Field::GuestPerfGlobalCtrl) & !env.perf_global_ctrl_mask == 0;
        require(ok, Rule::GuestPerfGlobalCtrl, vmcs, Field::GuestPerfGlobalCtrl)?;
    }
    if entry.contains(EntryControls::LOAD_PAT) {
        require(is_pat(vmcs.read(Field::GuestPat)), Rule::GuestPat, vmcs, Field::GuestPat)?;
    }
    if entry.contains(EntryControls::LOAD_EFER) {
        let value = vmcs.read(Field::GuestEfer);
        require(value & !env.efer_mask == 0, Rule::GuestEferReserved, vmcs, Field::GuestEfer)?;
        let lma = value & efer::LMA != 0;
        let ok = lma == entry.contains(EntryControls::IA32E_MODE_GUEST);
        require(ok, Rule::GuestEferLma, vmcs, Field::GuestEfer)?;
        let paging = vmcs.read(Field::GuestCr0) & cr::CR0_PG != 0;
        let ok = !paging || lma == (value & efer::LME != 0);
        require(ok, Rule::GuestEferLme, vmcs, Field::GuestEfer)?;
    }
    Ok(())
}

/// MSRs of features that few guests have.
fn optional_msrs(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let entry = vmcs.entry_controls();
    if entry.contains(EntryControls::LOAD_BNDCFGS) {
        let value = vmcs.read(Field::GuestBndcfgs);
        let ok = value & 0xffc == 0 && env.is_canonical(value & !0xfff);
        require(ok, Rule::GuestBndcfgs, vmcs, Field::GuestBndcfgs)?;
    }
    if entry.contains(EntryControls::LOAD_RTIT_CTL) {
        let ok = vmcs.read(Field::GuestRtitCtl) & !env.rtit_ctl_mask == 0;
        require(ok, Rule::GuestRtitCtl, vmcs, Field::GuestRtitCtl)?;
    }
    if entry.contains(EntryControls::LOAD_CET_STATE) {
        require(is_s_cet(vmcs.read(Field::GuestSCet), env), Rule::GuestCet, vmcs, Field::GuestSCet)?;
        let ok = env.is_canonical(vmcs.read(Field::GuestInterruptSspTable));
        require(ok, Rule::GuestCet, vmcs, Field::GuestInterruptSspTable)?;
    }
    if entry.contains(EntryControls::LOAD_LBR_CTL) {
        let ok = vmcs.read(Field::GuestLbrCtl) & !env.lbr_ctl_mask == 0;
        require(ok, Rule::GuestLbrCtl, vmcs, Field::GuestLbrCtl)?;
    }
    if entry.contains(EntryControls::LOAD_PKRS) {
        require(vmcs.read(Field::GuestPkrs) >> 32 == 0, Rule::GuestPkrs, vmcs, Field::GuestPkrs)?;
    }
    let ok = !entry.contains(EntryControls::LOAD_UINV) || vmcs.read(Field::GuestUinv) <= 0xff;
    require(ok, Rule::GuestUinv, vmcs, Field::GuestUinv)
}

/// Descriptor-table registers; RIP, RFLAGS and SSP.
pub(super) fn tables_and_rip(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    for field in [Field::GuestGdtrBase, Field::GuestIdtrBase] {
        require(env.is_canonical(vmcs.read(field)), Rule::TableBase, vmcs, field)?;
    }
    for field in [Field::GuestGdtrLimit, Field::GuestIdtrLimit] {
        require(vmcs.read(field) <= 0xffff, Rule::TableLimit, vmcs, field)?;
    }
    let entry = vmcs.entry_controls();
    let ia32e = entry.contains(EntryControls::IA32E_MODE_GUEST);
    let mode_64 = ia32e && rights(vmcs, Segment::Cs).long();
    let rip = vmcs.read(Field::GuestRip);
    let within = if mode_64 { env.is_within_width(rip) } else { rip >> 32 == 0 };
    require(within, Rule::GuestRip, vmcs, Field::GuestRip)?;
    let rflags = vmcs.read(Field::GuestRflags);
    let ok = rflags & RFLAGS_RESERVED == 0 && rflags & RFLAGS_FIXED_1 != 0;
    require(ok, Rule::RflagsReserved, vmcs, Field::GuestRflags)?;
    let protected = vmcs.read(Field::GuestCr0) & cr::CR0_PE != 0;
    let ok = rflags & RFLAGS_VM == 0 || !ia32e && protected;
    require(ok, Rule::RflagsVm, vmcs, Field::GuestRflags)?;
    let ok = rflags & RFLAGS_IF != 0 || injected(vmcs) != Some(InterruptionType::External);
    require(ok, Rule::RflagsIf, vmcs, Field::GuestRflags)?;
    if entry.contains(EntryControls::LOAD_CET_STATE) {
        let ssp = vmcs.read(Field::GuestSsp);
        require(ssp & 3 == 0 && env.is_within_width(ssp), Rule::GuestSsp, vmcs, Field::GuestSsp)?;
    }
    Ok(())
}

/// The type of the injected event, if there is one.
fn injected(vmcs: &Vmcs) -> Option<InterruptionType> {
    let event = vmcs.entry_interruption();
    if event.valid() { event.kind() } else { None }
}

/// Activity, interruptibility, pending debug exceptions, VMCS link pointer.
pub(super) fn non_register_state(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let blocking = Interruptibility::from_bits_retain(vmcs.read32(Field::GuestInterruptibility));
    let activity = activity(vmcs, env, blocking)?;
    interruptibility(vmcs, env, blocking)?;
    pending_debug(vmcs, env, blocking, activity)?;
    link_pointer(vmcs, env)
}

fn activity(vmcs: &Vmcs, env: &Env<'_>, blocking: Interruptibility) -> Result<Activity, super::CheckError> {
    let field = Field::GuestActivity;
    let state = Activity::from_u32(vmcs.read32(field));
    let supported = |state: &Activity| match state {
        Activity::Active => true,
        Activity::Hlt => env.caps.misc & misc::ACTIVITY_HLT != 0,
        Activity::Shutdown => env.caps.misc & misc::ACTIVITY_SHUTDOWN != 0,
        Activity::WaitForSipi => env.caps.misc & misc::ACTIVITY_WAIT_FOR_SIPI != 0,
    };
    let Some(state) = state.filter(supported) else {
        return Err(broken(Rule::ActivityState, field, vmcs.read(field)));
    };
    if state == Activity::Active {
        return Ok(state);
    }
    let ok = state != Activity::Hlt || rights(vmcs, Segment::Ss).dpl() == 0;
    require(ok, Rule::HltNeedsDplZero, vmcs, field)?;
    let ok = !blocking.intersects(Interruptibility::STI | Interruptibility::MOV_SS);
    require(ok, Rule::ActiveWhileBlocking, vmcs, field)?;
    let event = vmcs.entry_interruption();
    let ok = !event.valid() || event_fits(state, event);
    require(ok, Rule::ActivityEvent, vmcs, Field::EntryInterruptionInfo)?;
    let ok = state != Activity::WaitForSipi || !vmcs.entry_controls().contains(EntryControls::ENTRY_TO_SMM);
    require(ok, Rule::WaitForSipiInSmm, vmcs, field)?;
    Ok(state)
}

/// Whether an event can be injected into a processor in this activity state.
fn event_fits(state: Activity, event: InterruptionInfo) -> bool {
    use InterruptionType as T;
    let (kind, vector) = (event.kind(), event.vector());
    match state {
        Activity::Active => true,
        Activity::Hlt => match kind {
            Some(T::External | T::Nmi) => true,
            Some(T::HardwareException) => matches!(vector, vector::DEBUG | vector::MACHINE_CHECK),
            Some(T::Other) => vector == 0,
            _ => false,
        },
        Activity::Shutdown => match kind {
            Some(T::Nmi) => true,
            Some(T::HardwareException) => vector == vector::MACHINE_CHECK,
            _ => false,
        },
        Activity::WaitForSipi => false,
    }
}

fn interruptibility(vmcs: &Vmcs, env: &Env<'_>, blocking: Interruptibility) -> CheckResult {
    use Interruptibility as I;
    let check = |ok, rule| require(ok, rule, vmcs, Field::GuestInterruptibility);
    check(I::all().contains(blocking), Rule::InterruptibilityReserved)?;
    let sti = blocking.contains(I::STI);
    let mov_ss = blocking.contains(I::MOV_SS);
    check(!(sti && mov_ss), Rule::StiAndMovSs)?;
    check(!sti || vmcs.read(Field::GuestRflags) & RFLAGS_IF != 0, Rule::StiNeedsIf)?;
    match injected(vmcs) {
        Some(InterruptionType::External) => check(!sti && !mov_ss, Rule::ExternalInterruptBlocked)?,
        Some(InterruptionType::Nmi) => {
            check(!mov_ss, Rule::NmiBlockedByMovSs)?;
            check(!sti, Rule::NmiBlockedBySti)?;
            let virtual_nmis = vmcs.pin_controls().contains(PinControls::VIRTUAL_NMIS);
            check(!(virtual_nmis && blocking.contains(I::NMI)), Rule::NmiBlocked)?;
        }
        _ => {}
    }
    let smi = blocking.contains(I::SMI);
    let to_smm = vmcs.entry_controls().contains(EntryControls::ENTRY_TO_SMM);
    check((env.smm || !smi) && (smi || !to_smm), Rule::SmiBlocking)?;
    check(!blocking.contains(I::ENCLAVE) || env.sgx && !mov_ss, Rule::EnclaveInterruption)
}

fn pending_debug(vmcs: &Vmcs, env: &Env<'_>, blocking: Interruptibility, activity: Activity) -> CheckResult {
    let field = Field::GuestPendingDebug;
    let pending = PendingDebug::from_bits_retain(vmcs.read(field));
    require(PendingDebug::all().contains(pending), Rule::PendingDebugReserved, vmcs, field)?;
    let held = blocking.intersects(Interruptibility::STI | Interruptibility::MOV_SS);
    if held || activity == Activity::Hlt {
        // After an instruction that TF traps, and only then, a single step is pending.
        let tf = vmcs.read(Field::GuestRflags) & RFLAGS_TF != 0;
        let btf = vmcs.read(Field::GuestDebugctl) & DEBUGCTL_BTF != 0;
        let ok = pending.contains(PendingDebug::BS) == (tf && !btf);
        require(ok, Rule::PendingDebugSingleStep, vmcs, field)?;
    }
    if pending.contains(PendingDebug::RTM) {
        let ok = pending == PendingDebug::RTM | PendingDebug::ENABLED_BREAKPOINT
            && env.rtm
            && !blocking.contains(Interruptibility::MOV_SS);
        require(ok, Rule::PendingDebugRtm, vmcs, field)?;
    }
    Ok(())
}

fn link_pointer(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let field = Field::VmcsLinkPointer;
    let pointer = vmcs.read(field);
    if pointer == u64::MAX {
        return Ok(());
    }
    require(env.is_page(pointer), Rule::LinkPointerAddress, vmcs, field)?;
    let shadowing = vmcs.secondary_controls().contains(SecondaryControls::VMCS_SHADOWING);
    let expected = env.caps.revision | if shadowing { SHADOW_INDICATOR } else { 0 };
    let found = (env.read_physical)(pointer) as u32;
    if found != expected {
        return Err(broken(Rule::LinkPointerRevision, field, found.into()));
    }
    let to_smm = vmcs.entry_controls().contains(EntryControls::ENTRY_TO_SMM);
    let other = if env.smm && !to_smm { env.executive_vmcs } else { env.current_vmcs };
    require(pointer != other, Rule::LinkPointerIsCurrent, vmcs, field)
}

/// PDPTEs of PAE paging: from the VMCS with EPT, from memory without.
pub(super) fn pdptes(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    const FIELDS: [Field; 4] =
        [Field::GuestPdpte0, Field::GuestPdpte1, Field::GuestPdpte2, Field::GuestPdpte3];
    let pae_paging = vmcs.read(Field::GuestCr0) & cr::CR0_PG != 0
        && vmcs.read(Field::GuestCr4) & cr::CR4_PAE != 0
        && !vmcs.entry_controls().contains(EntryControls::IA32E_MODE_GUEST);
    if !pae_paging {
        return Ok(());
    }
    let ept = vmcs.secondary_controls().contains(SecondaryControls::ENABLE_EPT);
    let table = vmcs.read(Field::GuestCr3) & 0xffff_ffe0;
    for (offset, field) in (0..).step_by(8).zip(FIELDS) {
        let pdpte = if ept { vmcs.read(field) } else { (env.read_physical)(table + offset) };
        // Bits 2:1 and 8:5 are reserved.
        if pdpte & 1 != 0 && (pdpte & 0x1e6 != 0 || !env.is_physical(pdpte)) {
            return Err(broken(Rule::Pdpte, field, pdpte));
        }
    }
    Ok(())
}
