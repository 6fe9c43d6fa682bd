//! Model-specific registers (SDM vol. 4).
//!
//! [`Cpu::read_msr`] and [`Cpu::write_msr`] are what RDMSR and WRMSR do after their checks of privilege
//! and interception. The local APIC's registers (IA32_TSC_DEADLINE, x2APIC) belong to whoever models the
//! APIC, who intercepts them.

use crate::cpu::{Cpu, cr0, efer, seg};
use crate::cpuid::Vendor;

/// Register numbers.
#[allow(missing_docs)]
pub mod index {
    pub const PLATFORM_ID: u32 = 0x17;
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const SMI_COUNT: u32 = 0x34;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const UCODE_WRITE: u32 = 0x79;
    pub const UCODE_REV: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const MISC_FEATURES: u32 = 0x140;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const LAST_BRANCH_FROM: u32 = 0x1db;
    pub const LAST_INT_TO: u32 = 0x1de;
    pub const MTRR_BASE0: u32 = 0x200;
    pub const MTRR_MASK7: u32 = 0x20f;
    pub const MTRR_FIX_64K: u32 = 0x250;
    pub const PAT: u32 = 0x277;
    pub const PKRS: u32 = 0x6e1;
    pub const XSS: u32 = 0xda0;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const K7_EVNTSEL0: u32 = 0xc001_0000;
    pub const K7_PERFCTR3: u32 = 0xc001_0007;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const INT_PENDING: u32 = 0xc001_0055;
    pub const VM_CR: u32 = 0xc001_0114;
    pub const DE_CFG: u32 = 0xc001_1029;
}

/// IA32_ARCH_CAPABILITIES: not susceptible to any of the attacks on speculative execution, because
/// nothing is speculated. RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, FB_CLEAR, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
const ARCH_CAPABILITIES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 17
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;
/// Branch trace storage and PEBS unavailable.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// Kept as written, without effect: fast strings, thermal control, SpeedStep, MONITOR, limited CPUID, xTPR
/// messages off, execute-disable off.
const MISC_ENABLE_KEPT: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// Numbers of the fixed-range registers after the first.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// Why RDMSR or WRMSR is refused: either way #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsrError {
    /// The register does not exist.
    #[error("no such msr: {0:#x}")]
    Unknown(u32),
    /// The register does not take this value: reserved bits, a bad type, an address that is not canonical.
    #[error("msr {0:#x} does not take {1:#x}")]
    Value(u32, u64),
}

/// Registers that are only storage, or nearly so.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Msrs {
    pub apic_base: u64,
    pub tsc_adjust: u64,
    pub spec_ctrl: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub mcg_status: u64,
    /// IA32_MISC_ENABLE: the bits that can be written.
    pub misc_enable: u64,
    pub debugctl: u64,
    pub pat: u64,
    /// Protection-key rights for supervisor pages.
    pub pkrs: u32,
    pub mtrr_def_type: u64,
    /// Base and mask of the variable ranges.
    pub mtrr_variable: [u64; 16],
    pub mtrr_fixed: [u64; 11],
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    /// AMD: event selects and counters, which do not count.
    pub k7_perf: [u64; 8],
    /// AMD: SYSCFG.
    pub syscfg: u64,
    /// AMD: HWCR.
    pub hwcr: u64,
    /// AMD: decode configuration.
    pub de_cfg: u64,
    /// AMD: interrupt pending message.
    pub int_pending: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            // Enabled, bootstrap processor.
            apic_base: 0xfee0_0000 | 1 << 11 | 1 << 8,
            tsc_adjust: 0,
            spec_ctrl: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            mcg_status: 0,
            misc_enable: 1,
            debugctl: 0,
            pat: 0x0007_0406_0007_0406,
            pkrs: 0,
            mtrr_def_type: 0,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0; 11],
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            k7_perf: [0; 8],
            syscfg: 0,
            hwcr: 0,
            // LFENCE is serialising.
            de_cfg: 1 << 1,
            int_pending: 0,
        }
    }
}

impl Cpu {
    /// Reads a model-specific register.
    ///
    /// # Errors
    /// The register does not exist.
    pub fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        use index as i;
        let m = &self.msr;
        Ok(match msr {
            i::FS_BASE => self.seg[seg::FS].base,
            i::GS_BASE => self.seg[seg::GS].base,
            i::KERNEL_GS_BASE => m.kernel_gs_base,
            i::TSC => self.tsc(),
            i::PLATFORM_ID | i::SMI_COUNT | i::PERF_STATUS | i::MISC_FEATURES | i::MCG_CAP => 0,
            i::LAST_BRANCH_FROM..=i::LAST_INT_TO => 0,
            i::APIC_BASE => m.apic_base,
            // Locked, VMX off.
            i::FEATURE_CONTROL => 1,
            i::TSC_ADJUST if self.model.has("tsc-adjust") => m.tsc_adjust,
            i::SPEC_CTRL if self.model.has("spec-ctrl") => m.spec_ctrl,
            i::UCODE_REV => {
                if self.intel() {
                    1 << 32
                } else {
                    1
                }
            }
            // Ratio 10 of 100 MHz.
            i::PLATFORM_INFO => 10 << 8 | 10 << 40,
            i::MTRR_CAP => MTRR_CAP,
            i::ARCH_CAPABILITIES if self.model.has("arch-capabilities") => ARCH_CAPABILITIES,
            i::SYSENTER_CS => m.sysenter_cs,
            i::SYSENTER_ESP => m.sysenter_esp,
            i::SYSENTER_EIP => m.sysenter_eip,
            i::MCG_STATUS => m.mcg_status,
            i::MISC_ENABLE => m.misc_enable | MISC_ENABLE_FIXED,
            i::DEBUGCTL => m.debugctl,
            i::MTRR_BASE0..=i::MTRR_MASK7 => m.mtrr_variable[(msr & 15) as usize],
            i::MTRR_FIX_64K..=0x26f => m.mtrr_fixed[fixed_range(msr).ok_or(MsrError::Unknown(msr))?],
            i::PAT => m.pat,
            i::PKRS if self.model.has("pks") => m.pkrs.into(),
            // No supervisor state is there to be enabled.
            i::XSS if self.model.has("xsaves") => 0,
            i::MTRR_DEF_TYPE => m.mtrr_def_type,
            i::EFER => self.efer,
            i::STAR => m.star,
            i::LSTAR => m.lstar,
            i::CSTAR => m.cstar,
            i::FMASK => m.fmask,
            i::TSC_AUX => m.tsc_aux,
            _ if self.intel() => return Err(MsrError::Unknown(msr)),
            i::K7_EVNTSEL0..=i::K7_PERFCTR3 => m.k7_perf[(msr & 7) as usize],
            i::SYSCFG => m.syscfg,
            i::HWCR => m.hwcr,
            i::NB_CFG => 0,
            i::INT_PENDING => m.int_pending,
            // SVM disabled and locked.
            i::VM_CR => 1 << 3 | 1 << 4,
            i::DE_CFG => m.de_cfg,
            _ => return Err(MsrError::Unknown(msr)),
        })
    }

    /// Writes a model-specific register.
    ///
    /// # Errors
    /// The register does not exist or does not take the value.
    pub fn write_msr(&mut self, msr: u32, v: u64) -> Result<(), MsrError> {
        use index as i;
        let bad = MsrError::Value(msr, v);
        let need = |ok: bool| if ok { Ok(()) } else { Err(bad) };
        match msr {
            i::FS_BASE | i::GS_BASE => {
                need(self.canonical_in_register(v))?;
                self.set_base(if msr == i::FS_BASE { seg::FS } else { seg::GS }, v);
            }
            i::KERNEL_GS_BASE | i::LSTAR | i::CSTAR | i::SYSENTER_ESP | i::SYSENTER_EIP => {
                need(self.canonical_in_register(v))?;
                match msr {
                    i::KERNEL_GS_BASE => self.msr.kernel_gs_base = v,
                    i::LSTAR => self.msr.lstar = v,
                    i::CSTAR => self.msr.cstar = v,
                    i::SYSENTER_ESP => self.msr.sysenter_esp = v,
                    _ => self.msr.sysenter_eip = v,
                }
            }
            i::STAR => self.msr.star = v,
            i::FMASK => self.msr.fmask = v & 0xffff_ffff,
            i::TSC_AUX => {
                need(v >> 32 == 0)?;
                self.msr.tsc_aux = v;
            }
            i::EFER => self.set_efer(v).map_err(|()| bad)?,
            i::TSC => {
                let by = v.wrapping_sub(self.raw_tsc());
                self.adjust_tsc(by);
            }
            i::TSC_ADJUST if self.model.has("tsc-adjust") => {
                let by = v.wrapping_sub(self.msr.tsc_adjust);
                self.adjust_tsc(by);
            }
            i::APIC_BASE => {
                let flags = 1 << 8 | 1 << 10 | 1 << 11;
                need(v & 0xfff & !flags == 0 && v >> self.model.phys_bits() == 0)?;
                self.msr.apic_base = v;
            }
            i::SPEC_CTRL if self.model.has("spec-ctrl") => {
                need(v & !7 == 0)?;
                self.msr.spec_ctrl = v;
            }
            i::PRED_CMD if self.model.has("spec-ctrl") => need(v & !1 == 0)?,
            // No microcode to update; the revision is not writable either, but software clears it.
            i::UCODE_WRITE | i::UCODE_REV => {}
            i::MISC_FEATURES => need(v == 0)?,
            i::XSS if self.model.has("xsaves") => need(v == 0)?,
            i::PKRS if self.model.has("pks") => {
                need(v >> 32 == 0)?;
                self.msr.pkrs = v as u32;
                self.protection_keys_changed();
            }
            i::SYSENTER_CS => self.msr.sysenter_cs = v & 0xffff_ffff,
            i::MCG_STATUS => {
                need(v & !7 == 0)?;
                self.msr.mcg_status = v;
            }
            i::MISC_ENABLE => self.msr.misc_enable = v & MISC_ENABLE_KEPT,
            i::DEBUGCTL => {
                need(v & !3 == 0)?;
                self.msr.debugctl = v;
            }
            i::MTRR_BASE0..=i::MTRR_MASK7 | i::MTRR_FIX_64K..=0x26f | i::PAT | i::MTRR_DEF_TYPE => {
                self.write_memory_types(msr, v)?;
            }
            _ => self.write_amd_msr(msr, v)?,
        }
        Ok(())
    }

    /// MTRRs and the PAT.
    fn write_memory_types(&mut self, msr: u32, v: u64) -> Result<(), MsrError> {
        use index as i;
        let bad = MsrError::Value(msr, v);
        let need = |ok: bool| if ok { Ok(()) } else { Err(bad) };
        let types = |v: u64, pat: bool| {
            v.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4 | 5 | 6) || pat && *t == 7)
        };
        match msr {
            i::MTRR_BASE0..=i::MTRR_MASK7 => {
                let reserved = !((1u64 << self.model.phys_bits()) - 1);
                if msr & 1 == 0 {
                    need(v & (reserved | 0xf00) == 0 && types(v & 0xff, false))?;
                } else {
                    need(v & (reserved | 0x7ff) == 0)?;
                }
                self.msr.mtrr_variable[(msr & 15) as usize] = v;
            }
            i::PAT => {
                need(types(v, true))?;
                self.msr.pat = v;
            }
            i::MTRR_DEF_TYPE => {
                need(v & !0xcff == 0 && types(v & 0xff, false))?;
                self.msr.mtrr_def_type = v;
            }
            _ => {
                let n = fixed_range(msr).ok_or(MsrError::Unknown(msr))?;
                need(types(v, false))?;
                self.msr.mtrr_fixed[n] = v;
            }
        }
        Ok(())
    }

    fn write_amd_msr(&mut self, msr: u32, v: u64) -> Result<(), MsrError> {
        use index as i;
        if self.intel() {
            return Err(MsrError::Unknown(msr));
        }
        match msr {
            i::K7_EVNTSEL0..=i::K7_PERFCTR3 => self.msr.k7_perf[(msr & 7) as usize] = v,
            i::SYSCFG => self.msr.syscfg = v,
            i::HWCR => self.msr.hwcr = v,
            i::INT_PENDING => self.msr.int_pending = v,
            i::DE_CFG => self.msr.de_cfg = v,
            i::NB_CFG => {}
            _ => return Err(MsrError::Unknown(msr)),
        }
        Ok(())
    }

    pub(crate) fn intel(&self) -> bool {
        self.model.vendor == Vendor::Intel
    }

    /// Moves the time-stamp counter.
    fn adjust_tsc(&mut self, by: u64) {
        self.time.offset = self.time.offset.wrapping_add(by);
        self.msr.tsc_adjust = self.msr.tsc_adjust.wrapping_add(by);
    }

    /// The base of FS or GS.
    #[inline]
    pub(crate) fn set_base(&mut self, s: usize, base: u64) {
        self.seg[s & 7].base = base;
        self.ea_base[s & 7] = base;
    }

    /// IA32_EFER, with the checks of WRMSR; LMA is not writable.
    ///
    /// # Errors
    /// A reserved bit, or a change of LME while paging is on.
    #[allow(clippy::result_unit_err)]
    pub fn set_efer(&mut self, v: u64) -> Result<(), ()> {
        let mut allowed = efer::LME | efer::LMA;
        if self.model.has("syscall") {
            allowed |= efer::SCE;
        }
        if self.model.has("nx") {
            allowed |= efer::NXE;
        }
        let changed = v ^ self.efer;
        if v & !allowed != 0 || changed & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            return Err(());
        }
        self.efer = v & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.paging_changed();
            self.forget_translations();
        }
        Ok(())
    }
}

/// Which fixed-range register this is.
fn fixed_range(msr: u32) -> Option<usize> {
    MTRR_FIXED.iter().position(|m| *m == msr)
}
