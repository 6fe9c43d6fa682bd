//! Host state (27.2.2 to 27.2.4).

use super::{CheckResult, Env, Rule, cr, efer, is_pat, is_s_cet, require};
use crate::controls::{EntryControls, ExitControls};
use crate::field::Field;
use crate::region::Vmcs;

pub(super) fn check(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    control_registers(vmcs, env)?;
    msrs(vmcs, env)?;
    segments(vmcs, env)?;
    address_space(vmcs, env)
}

fn canonical(vmcs: &Vmcs, env: &Env<'_>, field: Field, rule: Rule) -> CheckResult {
    require(env.is_canonical(vmcs.read(field)), rule, vmcs, field)
}

fn control_registers(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let caps = env.caps;
    let cr0 = vmcs.read(Field::HostCr0);
    let ok = cr0 & caps.cr0_fixed0 == caps.cr0_fixed0 && cr0 & !caps.cr0_fixed1 == 0;
    require(ok, Rule::HostCr0, vmcs, Field::HostCr0)?;
    let cr4 = vmcs.read(Field::HostCr4);
    let ok = cr4 & caps.cr4_fixed0 == caps.cr4_fixed0 && cr4 & !caps.cr4_fixed1 == 0;
    require(ok, Rule::HostCr4, vmcs, Field::HostCr4)?;
    let ok = cr4 & cr::CR4_CET == 0 || cr0 & cr::CR0_WP != 0;
    require(ok, Rule::HostCetNeedsWp, vmcs, Field::HostCr0)?;
    require(env.is_physical(vmcs.read(Field::HostCr3)), Rule::HostCr3, vmcs, Field::HostCr3)
}

fn msrs(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let exit = vmcs.exit_controls();
    canonical(vmcs, env, Field::HostSysenterEsp, Rule::HostSysenter)?;
    canonical(vmcs, env, Field::HostSysenterEip, Rule::HostSysenter)?;
    if exit.contains(ExitControls::LOAD_PERF_GLOBAL_CTRL) {
        let ok = vmcs.read(Field::HostPerfGlobalCtrl) & !env.perf_global_ctrl_mask == 0;
        require(ok, Rule::HostPerfGlobalCtrl, vmcs, Field::HostPerfGlobalCtrl)?;
    }
    if exit.contains(ExitControls::LOAD_PAT) {
        require(is_pat(vmcs.read(Field::HostPat)), Rule::HostPat, vmcs, Field::HostPat)?;
    }
    if exit.contains(ExitControls::LOAD_EFER) {
        let value = vmcs.read(Field::HostEfer);
        require(value & !env.efer_mask == 0, Rule::HostEferReserved, vmcs, Field::HostEfer)?;
        let long = exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        let ok = (value & efer::LMA != 0) == long && (value & efer::LME != 0) == long;
        require(ok, Rule::HostEferMode, vmcs, Field::HostEfer)?;
    }
    if exit.contains(ExitControls::LOAD_CET_STATE) {
        // A host in 32-bit mode has no more than 32 bits of either.
        let long = exit.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
        let fits = |value: u64| if long { env.is_canonical(value) } else { value >> 32 == 0 };
        let (s_cet, ssp) = (vmcs.read(Field::HostSCet), vmcs.read(Field::HostSsp));
        require(is_s_cet(s_cet, env) && fits(s_cet), Rule::HostCet, vmcs, Field::HostSCet)?;
        require(ssp & 3 == 0 && fits(ssp), Rule::HostCet, vmcs, Field::HostSsp)?;
        canonical(vmcs, env, Field::HostInterruptSspTable, Rule::HostCet)?;
    }
    let ok = !exit.contains(ExitControls::LOAD_PKRS) || vmcs.read(Field::HostPkrs) >> 32 == 0;
    require(ok, Rule::HostPkrs, vmcs, Field::HostPkrs)
}

fn segments(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    const SELECTORS: [Field; 7] = [
        Field::HostEsSelector,
        Field::HostCsSelector,
        Field::HostSsSelector,
        Field::HostDsSelector,
        Field::HostFsSelector,
        Field::HostGsSelector,
        Field::HostTrSelector,
    ];
    const BASES: [Field; 5] =
        [Field::HostFsBase, Field::HostGsBase, Field::HostTrBase, Field::HostGdtrBase, Field::HostIdtrBase];
    for field in SELECTORS {
        require(vmcs.read(field) & 7 == 0, Rule::HostSelectorRplTi, vmcs, field)?;
    }
    for field in [Field::HostCsSelector, Field::HostTrSelector] {
        require(vmcs.read(field) != 0, Rule::HostSelectorNull, vmcs, field)?;
    }
    let ok = vmcs.exit_controls().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        || vmcs.read(Field::HostSsSelector) != 0;
    require(ok, Rule::HostSsNull, vmcs, Field::HostSsSelector)?;
    for field in BASES {
        canonical(vmcs, env, field, Rule::HostBase)?;
    }
    Ok(())
}

fn address_space(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let host_64 = vmcs.exit_controls().contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    let guest_ia32e = vmcs.entry_controls().contains(EntryControls::IA32E_MODE_GUEST);
    let cr4 = vmcs.read(Field::HostCr4);
    let rip = vmcs.read(Field::HostRip);
    require(host_64 == env.ia32e_mode, Rule::HostModeSwitch, vmcs, Field::ExitControls)?;
    if host_64 {
        require(cr4 & cr::CR4_PAE != 0, Rule::HostPae, vmcs, Field::HostCr4)?;
        require(env.is_canonical(rip), Rule::HostRip, vmcs, Field::HostRip)
    } else {
        require(!guest_ia32e, Rule::HostGuestIa32e, vmcs, Field::EntryControls)?;
        require(cr4 & cr::CR4_PCIDE == 0, Rule::HostPcide, vmcs, Field::HostCr4)?;
        require(rip >> 32 == 0, Rule::HostRip, vmcs, Field::HostRip)
    }
}
