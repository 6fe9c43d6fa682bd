//! The whole state of a vCPU at once, to save and to restore.

use kvm_bindings::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Vcpu};

/// IA32_TSC_DEADLINE: arms the local APIC's timer, so it goes last.
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers that say what the host or its engine is, and no guest can change: IA32_BIOS_SIGN_ID,
/// MSR_PLATFORM_INFO, IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, and whether KVM polls before it halts.
const OF_THE_HOST: [u32; 5] = [0x8b, 0xce, 0x10a, 0x345, 0x4b56_4d05];

/// Everything that a vCPU is made of, in KVM's structures, whichever the engine: it restores on either.
///
/// Not in it: guest memory, an exit that is not finished ([`Vcpu::complete`] first), and which debug
/// events the host asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// CPUID leaves.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of the time-stamp counter, in kHz.
    pub tsc_khz: u32,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
    /// x87, SSE and AVX registers.
    pub xsave: kvm_xsave,
    /// XCR0.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// The local APIC, if the machine has them.
    pub lapic: Option<kvm_lapic_state>,
    /// Model-specific registers.
    pub msrs: Vec<kvm_msr_entry>,
    /// Pending events.
    pub events: kvm_vcpu_events,
    /// Running, halted, waiting for SIPI.
    pub mp_state: kvm_mp_state,
}

impl VcpuState {
    /// Takes the state; `msrs` from [`Vm::saved_msrs`](crate::Vm::saved_msrs).
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn save(vcpu: &dyn Vcpu, msrs: &[u32]) -> Result<Self> {
        // Reading the run state first lets the kernel settle INIT and SIPI that are on their way.
        let mp_state = vcpu.mp_state()?;
        let lapic = match vcpu.lapic() {
            Err(Error::Unsupported { .. }) => None,
            other => Some(other?),
        };
        let mut msrs = vcpu.msrs(msrs)?;
        msrs.sort_by_key(|msr| msr.index == TSC_DEADLINE);
        Ok(Self {
            cpuid: vcpu.cpuid()?.as_slice().to_vec(),
            tsc_khz: vcpu.tsc_khz()?,
            regs: vcpu.regs()?,
            sregs: vcpu.sregs()?,
            xsave: vcpu.xsave()?,
            xcrs: vcpu.xcrs()?,
            debugregs: vcpu.debugregs()?,
            lapic,
            msrs,
            events: vcpu.events()?,
            mp_state,
        })
    }

    /// Puts the state into a vCPU of the same number that has not run yet. On another engine, the guest must
    /// not have been shown more than that one has (see [`VmConfig::cpu`](crate::VmConfig::cpu)), and the
    /// time-stamp counter must have a frequency that it can run at ([`Vcpu::set_tsc_khz`]).
    ///
    /// # Errors
    /// When the engine refuses a part of it; the vCPU is of no use then.
    pub fn restore(&self, vcpu: &mut dyn Vcpu) -> Result<()> {
        // A register exists only once its CPUID leaf does; the APIC base decides how the APIC page is
        // read; the APIC's timer mode decides what the deadline means; pending events go in last.
        let cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| Error::NotFound { what: "room for cpuid leaf", id: self.cpuid.len() as u64 })?;
        vcpu.set_cpuid(&cpuid)?;
        if vcpu.tsc_khz()? != self.tsc_khz {
            vcpu.set_tsc_khz(self.tsc_khz)?;
        }
        vcpu.set_sregs(&self.sregs)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_xcrs(&self.xcrs)?;
        vcpu.set_xsave(&self.xsave)?;
        vcpu.set_debugregs(&self.debugregs)?;
        if let Some(lapic) = &self.lapic {
            vcpu.set_lapic(lapic)?;
        }
        restore_msrs(&self.msrs, vcpu)?;
        vcpu.set_mp_state(self.mp_state)?;
        vcpu.set_events(&self.events)
    }
}

/// Writes the registers that the vCPU has. One that it does not have, as on another engine, must be zero, or
/// not the guest's.
fn restore_msrs(msrs: &[kvm_msr_entry], vcpu: &mut dyn Vcpu) -> Result<()> {
    let mut left = msrs;
    loop {
        let index = match vcpu.set_msrs(left) {
            Err(Error::Msr { index }) => index,
            done => return done,
        };
        let at = left.iter().position(|msr| msr.index == index);
        let rest = at.and_then(|at| left.get(at..)).and_then(<[_]>::split_first);
        let (refused, behind) = rest.ok_or(Error::Msr { index })?;
        let there = vcpu.msrs(&[index])?.first().map_or(0, |msr| msr.data);
        if refused.data != there && !OF_THE_HOST.contains(&index) {
            return Err(Error::Msr { index });
        }
        left = behind;
    }
}
