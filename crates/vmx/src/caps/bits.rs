//! Numbers of the capability MSRs, and the bits in them.

/// Numbers of the capability MSRs.
pub mod msr {
    /// IA32_VMX_BASIC.
    pub const BASIC: u32 = 0x480;
    /// IA32_VMX_PINBASED_CTLS.
    pub const PIN: u32 = 0x481;
    /// IA32_VMX_PROCBASED_CTLS.
    pub const PRIMARY: u32 = 0x482;
    /// IA32_VMX_EXIT_CTLS.
    pub const EXIT: u32 = 0x483;
    /// IA32_VMX_ENTRY_CTLS.
    pub const ENTRY: u32 = 0x484;
    /// IA32_VMX_MISC.
    pub const MISC: u32 = 0x485;
    /// IA32_VMX_CR0_FIXED0.
    pub const CR0_FIXED0: u32 = 0x486;
    /// IA32_VMX_CR0_FIXED1.
    pub const CR0_FIXED1: u32 = 0x487;
    /// IA32_VMX_CR4_FIXED0.
    pub const CR4_FIXED0: u32 = 0x488;
    /// IA32_VMX_CR4_FIXED1.
    pub const CR4_FIXED1: u32 = 0x489;
    /// IA32_VMX_VMCS_ENUM.
    pub const VMCS_ENUM: u32 = 0x48a;
    /// IA32_VMX_PROCBASED_CTLS2.
    pub const SECONDARY: u32 = 0x48b;
    /// IA32_VMX_EPT_VPID_CAP.
    pub const EPT_VPID_CAP: u32 = 0x48c;
    /// IA32_VMX_TRUE_PINBASED_CTLS.
    pub const TRUE_PIN: u32 = 0x48d;
    /// IA32_VMX_TRUE_PROCBASED_CTLS.
    pub const TRUE_PRIMARY: u32 = 0x48e;
    /// IA32_VMX_TRUE_EXIT_CTLS.
    pub const TRUE_EXIT: u32 = 0x48f;
    /// IA32_VMX_TRUE_ENTRY_CTLS.
    pub const TRUE_ENTRY: u32 = 0x490;
    /// IA32_VMX_VMFUNC.
    pub const VMFUNC: u32 = 0x491;
    /// IA32_VMX_PROCBASED_CTLS3.
    pub const TERTIARY: u32 = 0x492;
    /// IA32_VMX_EXIT_CTLS2.
    pub const SECONDARY_EXIT: u32 = 0x493;
}

/// Bits of IA32_VMX_EPT_VPID_CAP (A.10).
pub mod ept_vpid {
    /// Execute-only translations.
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    /// Page-walk length 4.
    pub const WALK_4: u64 = 1 << 6;
    /// Page-walk length 5.
    pub const WALK_5: u64 = 1 << 7;
    /// Uncacheable paging structures.
    pub const MEMORY_TYPE_UC: u64 = 1 << 8;
    /// Write-back paging structures.
    pub const MEMORY_TYPE_WB: u64 = 1 << 14;
    /// 2-MByte pages.
    pub const PAGE_2M: u64 = 1 << 16;
    /// 1-GByte pages.
    pub const PAGE_1G: u64 = 1 << 17;
    /// INVEPT.
    pub const INVEPT: u64 = 1 << 20;
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    /// Advanced exit information for EPT violations.
    pub const ADVANCED_EXIT_INFORMATION: u64 = 1 << 22;
    /// Supervisor shadow-stack control.
    pub const SUPERVISOR_SHADOW_STACK: u64 = 1 << 23;
    /// Single-context INVEPT.
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    /// All-context INVEPT.
    pub const INVEPT_ALL: u64 = 1 << 26;
    /// INVVPID.
    pub const INVVPID: u64 = 1 << 32;
    /// Individual-address INVVPID.
    pub const INVVPID_ADDRESS: u64 = 1 << 40;
    /// Single-context INVVPID.
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    /// All-context INVVPID.
    pub const INVVPID_ALL: u64 = 1 << 42;
    /// Single-context-retaining-globals INVVPID.
    pub const INVVPID_RETAIN_GLOBALS: u64 = 1 << 43;
}

/// Bits of IA32_VMX_MISC (A.6).
pub mod misc {
    /// VM exits store IA32_EFER.LMA into "IA-32e mode guest".
    pub const STORE_LMA: u64 = 1 << 5;
    /// Activity state HLT.
    pub const ACTIVITY_HLT: u64 = 1 << 6;
    /// Activity state shutdown.
    pub const ACTIVITY_SHUTDOWN: u64 = 1 << 7;
    /// Activity state wait-for-SIPI.
    pub const ACTIVITY_WAIT_FOR_SIPI: u64 = 1 << 8;
    /// Intel PT in VMX operation.
    pub const INTEL_PT: u64 = 1 << 14;
    /// RDMSR reads IA32_SMBASE in SMM.
    pub const SMBASE_MSR: u64 = 1 << 15;
    /// IA32_SMM_MONITOR_CTL\[2\] can be set.
    pub const SMM_MONITOR_UNBLOCK: u64 = 1 << 28;
    /// VMWRITE reaches VM-exit information fields.
    pub const VMWRITE_ANY_FIELD: u64 = 1 << 29;
    /// Injection of a software event with an instruction length of 0.
    pub const ZERO_LENGTH_INJECTION: u64 = 1 << 30;
}

/// Bits of IA32_VMX_BASIC (A.1) above the region size.
pub mod basic {
    /// Physical addresses of VMX structures are limited to 32 bits.
    pub const ADDRESS_32: u64 = 1 << 48;
    /// Dual-monitor treatment of SMIs and SMM.
    pub const DUAL_MONITOR: u64 = 1 << 49;
    /// Write-back memory type for the VMCS and what it points at.
    pub const MEMORY_TYPE_WB: u64 = 6 << 50;
    /// VM exits report information for INS and OUTS.
    pub const INS_OUTS_INFORMATION: u64 = 1 << 54;
    /// The TRUE control MSRs exist.
    pub const TRUE_CONTROLS: u64 = 1 << 55;
    /// A hardware exception can be injected with or without an error code, whatever its vector.
    pub const ANY_ERROR_CODE: u64 = 1 << 56;
}
