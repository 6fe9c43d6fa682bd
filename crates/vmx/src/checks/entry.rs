//! VM-exit and VM-entry control fields (27.2.1.2 and 27.2.1.3).

use super::{CheckResult, Env, Rule, cr, require};
use crate::caps::{basic, misc};
use crate::controls::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use crate::exit::{InterruptionInfo, InterruptionType, vector};
use crate::field::Field;
use crate::region::Vmcs;

pub(super) fn exit_controls(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let exit = vmcs.exit_controls();
    require(env.caps.exit.allows(exit.bits()), Rule::ExitControls, vmcs, Field::ExitControls)?;
    if exit.contains(ExitControls::SECONDARY_CONTROLS) {
        let ok = vmcs.read(Field::SecondaryExitControls) & !env.caps.secondary_exit == 0;
        require(ok, Rule::SecondaryExitControls, vmcs, Field::SecondaryExitControls)?;
    }
    let ok = !exit.contains(ExitControls::SAVE_PREEMPTION_TIMER)
        || vmcs.pin_controls().contains(PinControls::PREEMPTION_TIMER);
    require(ok, Rule::SavePreemptionTimerNeedsTimer, vmcs, Field::ExitControls)?;
    let store = (Field::ExitMsrStoreCount, Field::ExitMsrStoreAddress);
    msr_area(vmcs, env, store, Rule::ExitMsrStoreArea)?;
    let load = (Field::ExitMsrLoadCount, Field::ExitMsrLoadAddress);
    msr_area(vmcs, env, load, Rule::ExitMsrLoadArea)
}

/// A list of `count` entries of 16 bytes, aligned, wholly within physical memory.
fn msr_area(vmcs: &Vmcs, env: &Env<'_>, (count, address): (Field, Field), rule: Rule) -> CheckResult {
    let count = vmcs.read(count);
    if count == 0 {
        return Ok(());
    }
    let start = vmcs.read(address);
    let last = start.checked_add(16 * count - 1);
    // The last byte is of no alignment: only its address is checked.
    let ok = env.is_aligned(start, 16) && last.is_some_and(|last| env.is_aligned(last, 1));
    require(ok, rule, vmcs, address)
}

pub(super) fn entry_controls(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let entry = vmcs.entry_controls();
    require(env.caps.entry.allows(entry.bits()), Rule::EntryControls, vmcs, Field::EntryControls)?;
    let event = vmcs.entry_interruption();
    if event.valid() {
        injection(vmcs, env, event)?;
    }
    let load = (Field::EntryMsrLoadCount, Field::EntryMsrLoadAddress);
    msr_area(vmcs, env, load, Rule::EntryMsrLoadArea)?;
    let smm = EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR;
    let ok = env.smm || !entry.intersects(smm);
    require(ok, Rule::EntryToSmmOutsideSmm, vmcs, Field::EntryControls)?;
    require(!entry.contains(smm), Rule::EntryToSmmExcludesDeactivate, vmcs, Field::EntryControls)
}

fn injection(vmcs: &Vmcs, env: &Env<'_>, event: InterruptionInfo) -> CheckResult {
    use InterruptionType as T;
    let field = Field::EntryInterruptionInfo;
    let kind = match event.kind() {
        // An "other event" is a pending MTF VM exit: there is none without the monitor trap flag.
        Some(T::Other) if !env.caps.allows_primary(PrimaryControls::MONITOR_TRAP_FLAG) => None,
        kind => kind,
    };
    require(kind.is_some(), Rule::EventType, vmcs, field)?;
    let vector = event.vector();
    let vector_ok = match kind {
        Some(T::Nmi) => vector == vector::NMI,
        Some(T::HardwareException) => vector <= 31,
        Some(T::Other) => vector == 0,
        _ => true,
    };
    require(vector_ok, Rule::EventVector, vmcs, field)?;
    require(error_code_is_consistent(vmcs, env, event), Rule::EventErrorCode, vmcs, field)?;
    require(event.reserved_is_zero(), Rule::EventReserved, vmcs, field)?;
    if event.error_code() {
        let ok = vmcs.read(Field::EntryExceptionErrorCode) >> 16 == 0;
        require(ok, Rule::EventErrorCodeReserved, vmcs, Field::EntryExceptionErrorCode)?;
    }
    if kind.is_some_and(T::is_software) {
        let length = vmcs.read(Field::EntryInstructionLength);
        let ok = length <= 15 && (length != 0 || env.caps.misc & misc::ZERO_LENGTH_INJECTION != 0);
        require(ok, Rule::EventInstructionLength, vmcs, Field::EntryInstructionLength)?;
    }
    Ok(())
}

/// Only hardware exceptions in protected mode have error codes; and exactly those that deliver one, unless
/// the processor takes any.
fn error_code_is_consistent(vmcs: &Vmcs, env: &Env<'_>, event: InterruptionInfo) -> bool {
    let unrestricted = vmcs.secondary_controls().contains(SecondaryControls::UNRESTRICTED_GUEST);
    let real_mode = unrestricted && vmcs.read(Field::GuestCr0) & cr::CR0_PE == 0;
    if real_mode || event.kind() != Some(InterruptionType::HardwareException) {
        return !event.error_code();
    }
    env.caps.basic & basic::ANY_ERROR_CODE != 0 || event.error_code() == delivers(event.vector(), env)
}

/// #CP exists only on a processor with CET.
fn delivers(vector: u8, env: &Env<'_>) -> bool {
    vector::has_error_code(vector)
        && (vector != vector::CONTROL_PROTECTION || env.caps.cr4_fixed1 & cr::CR4_CET != 0)
}
