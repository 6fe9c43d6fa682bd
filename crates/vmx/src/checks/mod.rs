//! The checks of VM entry (Intel SDM vol. 3, 27.2 and 27.3.1).
//!
//! VMLAUNCH and VMRESUME run [`controls`] and [`host_state`] first: a failure is VMfailValid with the
//! number of [`CheckError::instruction_error`]. Then [`guest_state`]: a failure is a VM exit with reason
//! 33 ([`crate::exit::BasicReason::InvalidGuestState`]) and the qualification of
//! [`CheckError::entry_failure`].
//!
//! The SDM leaves the order of checks within each part open. Where it lets a processor choose, this is
//! the choice: injecting an NMI while STI blocks fails; the VTPR check reads the virtual-APIC page.
//!
//! Checks of what is not in the VMCS stay with the processor: the launch state, blocking by MOV SS at the
//! instruction (error 26), the executive-VMCS pointer, and the entries of the MSR-load area. FRED state has
//! no checks here: do not advertise FRED.

mod controls;
mod entry;
mod guest;
mod host;
mod rule;
mod segments;
#[cfg(test)]
mod tests;

pub use rule::{CheckError, Group, Rule};

use crate::caps::{Capabilities, basic};
use crate::field::Field;
use crate::region::Vmcs;

/// Outcome of a check.
pub type CheckResult = Result<(), CheckError>;

/// Checks VM-execution, VM-exit and VM-entry controls (27.2.1).
pub fn controls(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    controls::check(vmcs, env)?;
    entry::exit_controls(vmcs, env)?;
    entry::entry_controls(vmcs, env)
}

/// Checks the host-state area (27.2.2 to 27.2.4).
pub fn host_state(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    host::check(vmcs, env)
}

/// Checks the guest-state area (27.3.1).
pub fn guest_state(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    guest::registers(vmcs, env)?;
    segments::check(vmcs, env)?;
    guest::tables_and_rip(vmcs, env)?;
    guest::non_register_state(vmcs, env)?;
    guest::pdptes(vmcs, env)
}

/// What the checks need to know of the processor.
///
/// [`Env::new`] is a processor in IA-32e mode, outside SMM, with 48-bit linear addresses; the masks are
/// the bits that the processor's MSRs have, all others being reserved.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// VMX capabilities.
    pub caps: &'a Capabilities,
    /// Physical-address width.
    pub maxphyaddr: u8,
    /// Linear-address width: 48, or 57 with 5-level paging.
    pub linear_width: u8,
    /// The processor is in IA-32e mode: IA32_EFER.LMA is 1.
    pub ia32e_mode: bool,
    /// The processor is in SMM.
    pub smm: bool,
    /// Current-VMCS pointer.
    pub current_vmcs: u64,
    /// Executive-VMCS pointer's value to compare the link pointer with, in SMM.
    pub executive_vmcs: u64,
    /// The processor has SGX: an enclave can be interrupted.
    pub sgx: bool,
    /// The processor has RTM.
    pub rtm: bool,
    /// Bits of IA32_EFER.
    pub efer_mask: u64,
    /// Bits of IA32_DEBUGCTL.
    pub debugctl_mask: u64,
    /// Bits of IA32_PERF_GLOBAL_CTRL.
    pub perf_global_ctrl_mask: u64,
    /// Bits of IA32_RTIT_CTL.
    pub rtit_ctl_mask: u64,
    /// Bits of IA32_LBR_CTL.
    pub lbr_ctl_mask: u64,
    /// Reads 8 bytes of physical memory at an 8-byte boundary: VTPR, the region of the VMCS link pointer,
    /// PDPTEs without EPT. Where there is no memory, all ones.
    pub read_physical: &'a dyn Fn(u64) -> u64,
}

impl<'a> Env<'a> {
    /// A processor with these capabilities and this physical-address width.
    pub fn new(caps: &'a Capabilities, maxphyaddr: u8, read_physical: &'a dyn Fn(u64) -> u64) -> Self {
        Env {
            caps,
            maxphyaddr,
            linear_width: 48,
            ia32e_mode: true,
            smm: false,
            current_vmcs: u64::MAX,
            executive_vmcs: u64::MAX,
            sgx: false,
            rtm: false,
            // SCE, LME, LMA, NXE.
            efer_mask: 0xd01,
            // LBR, BTF, TR, BTS, BTINT, BTS_OFF_OS, BTS_OFF_USR, both FREEZE bits, FREEZE_WHILE_SMM.
            debugctl_mask: 0x5fc3,
            // Eight general-purpose and four fixed-function counters.
            perf_global_ctrl_mask: 0xf_0000_00ff,
            rtit_ctl_mask: 0,
            lbr_ctl_mask: 0,
            read_physical,
        }
    }

    /// Whether bits above the linear-address width repeat the highest bit within.
    #[inline]
    fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - u32::from(self.linear_width.clamp(1, 64));
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// Whether bits above the linear-address width are all alike. The highest bit within need not be: RIP and
    /// SSP may be one step past the end of the lower half (SDM vol. 3 §27.3.1.4).
    #[inline]
    fn is_within_width(&self, address: u64) -> bool {
        let above = (address as i64).checked_shr(self.linear_width.into()).unwrap_or(0);
        matches!(above, 0 | -1)
    }

    /// Whether an address is within the physical-address width.
    #[inline]
    fn is_physical(&self, address: u64) -> bool {
        address.checked_shr(self.maxphyaddr.into()).unwrap_or(0) == 0
    }

    /// Whether an address in the VMCS is aligned and within the width of addresses of VMX structures.
    #[inline]
    fn is_aligned(&self, address: u64, alignment: u64) -> bool {
        let limited = self.caps.basic & basic::ADDRESS_32 != 0;
        address & (alignment - 1) == 0 && self.is_physical(address) && !(limited && address >> 32 != 0)
    }

    /// Whether an address in the VMCS is a page's.
    #[inline]
    fn is_page(&self, address: u64) -> bool {
        self.is_aligned(address, 4096)
    }
}

/// Fails with the rule and the field's value unless `ok`.
#[inline(always)]
fn require(ok: bool, rule: Rule, vmcs: &Vmcs, field: Field) -> CheckResult {
    if ok { Ok(()) } else { Err(broken(rule, field, vmcs.read(field))) }
}

#[cold]
fn broken(rule: Rule, field: Field, value: u64) -> CheckError {
    CheckError { rule, field, value }
}

/// Whether every byte of IA32_PAT is a memory type: UC, WC, WT, WP, WB or UC-.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|&byte| matches!(byte, 0 | 1 | 4..=7))
}

/// Whether IA32_S_CET is valid: reserved bits 9:6 clear, not both SUPPRESS and TRACKER, legacy bitmap
/// canonical.
fn is_s_cet(value: u64, env: &Env<'_>) -> bool {
    value & 0x3c0 == 0 && value & 0xc00 != 0xc00 && env.is_canonical(value & !0xfff)
}

/// CR0 and CR4 bits that checks name.
mod cr {
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_CET: u64 = 1 << 23;
}

/// IA32_EFER bits that checks name.
mod efer {
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
}
