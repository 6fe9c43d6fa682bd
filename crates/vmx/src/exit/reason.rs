//! Exit reasons (Intel SDM vol. 3, 25.9.1 and Appendix C) and VM-instruction errors (31.4).

use core::fmt;

use bitfield_struct::bitfield;

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident: $repr:ident { $($variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name {
            $(#[doc = concat!($text, ".")] $variant = $number,)*
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// What has this number.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number {
                    $($number => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// What the SDM calls it.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

numbered! {
    /// Basic exit reason: why a VM exit happened.
    BasicReason: u16 {
        ExceptionOrNmi = 0, "exception or NMI";
        ExternalInterrupt = 1, "external interrupt";
        TripleFault = 2, "triple fault";
        Init = 3, "INIT signal";
        Sipi = 4, "start-up IPI";
        IoSmi = 5, "I/O SMI";
        OtherSmi = 6, "other SMI";
        InterruptWindow = 7, "interrupt window";
        NmiWindow = 8, "NMI window";
        TaskSwitch = 9, "task switch";
        Cpuid = 10, "CPUID";
        Getsec = 11, "GETSEC";
        Hlt = 12, "HLT";
        Invd = 13, "INVD";
        Invlpg = 14, "INVLPG";
        Rdpmc = 15, "RDPMC";
        Rdtsc = 16, "RDTSC";
        Rsm = 17, "RSM";
        Vmcall = 18, "VMCALL";
        Vmclear = 19, "VMCLEAR";
        Vmlaunch = 20, "VMLAUNCH";
        Vmptrld = 21, "VMPTRLD";
        Vmptrst = 22, "VMPTRST";
        Vmread = 23, "VMREAD";
        Vmresume = 24, "VMRESUME";
        Vmwrite = 25, "VMWRITE";
        Vmxoff = 26, "VMXOFF";
        Vmxon = 27, "VMXON";
        CrAccess = 28, "control-register access";
        MovDr = 29, "MOV DR";
        Io = 30, "I/O instruction";
        Rdmsr = 31, "RDMSR";
        Wrmsr = 32, "WRMSR";
        InvalidGuestState = 33, "VM-entry failure due to invalid guest state";
        MsrLoading = 34, "VM-entry failure due to MSR loading";
        Mwait = 36, "MWAIT";
        MonitorTrapFlag = 37, "monitor trap flag";
        Monitor = 39, "MONITOR";
        Pause = 40, "PAUSE";
        MachineCheckOnEntry = 41, "VM-entry failure due to machine-check event";
        TprBelowThreshold = 43, "TPR below threshold";
        ApicAccess = 44, "APIC access";
        VirtualizedEoi = 45, "virtualized EOI";
        GdtrIdtrAccess = 46, "access to GDTR or IDTR";
        LdtrTrAccess = 47, "access to LDTR or TR";
        EptViolation = 48, "EPT violation";
        EptMisconfiguration = 49, "EPT misconfiguration";
        Invept = 50, "INVEPT";
        Rdtscp = 51, "RDTSCP";
        PreemptionTimer = 52, "VMX-preemption timer expired";
        Invvpid = 53, "INVVPID";
        Wbinvd = 54, "WBINVD or WBNOINVD";
        Xsetbv = 55, "XSETBV";
        ApicWrite = 56, "APIC write";
        Rdrand = 57, "RDRAND";
        Invpcid = 58, "INVPCID";
        Vmfunc = 59, "VMFUNC";
        Encls = 60, "ENCLS";
        Rdseed = 61, "RDSEED";
        PmlFull = 62, "page-modification log full";
        Xsaves = 63, "XSAVES";
        Xrstors = 64, "XRSTORS";
        Pconfig = 65, "PCONFIG";
        SppEvent = 66, "SPP-related event";
        Umwait = 67, "UMWAIT";
        Tpause = 68, "TPAUSE";
        Loadiwkey = 69, "LOADIWKEY";
        Enclv = 70, "ENCLV";
        EnqcmdPasid = 72, "ENQCMD PASID translation failure";
        EnqcmdsPasid = 73, "ENQCMDS PASID translation failure";
        BusLock = 74, "bus lock";
        InstructionTimeout = 75, "instruction timeout";
        Seamcall = 76, "SEAMCALL";
        Tdcall = 77, "TDCALL";
        Rdmsrlist = 78, "RDMSRLIST";
        Wrmsrlist = 79, "WRMSRLIST";
        Urdmsr = 80, "URDMSR";
        Uwrmsr = 81, "UWRMSR";
        RdmsrImmediate = 84, "RDMSR with immediate";
        WrmsrImmediate = 85, "WRMSR with immediate";
    }
}

numbered! {
    /// VM-instruction error number: why a VMX instruction failed (VMfailValid).
    VmInstructionError: u32 {
        VmcallInRoot = 1, "VMCALL executed in VMX root operation";
        VmclearInvalidAddress = 2, "VMCLEAR with invalid physical address";
        VmclearVmxonPointer = 3, "VMCLEAR with VMXON pointer";
        VmlaunchNotClear = 4, "VMLAUNCH with non-clear VMCS";
        VmresumeNotLaunched = 5, "VMRESUME with non-launched VMCS";
        VmresumeAfterVmxoff = 6, "VMRESUME after VMXOFF";
        InvalidControls = 7, "VM entry with invalid control field(s)";
        InvalidHostState = 8, "VM entry with invalid host-state field(s)";
        VmptrldInvalidAddress = 9, "VMPTRLD with invalid physical address";
        VmptrldVmxonPointer = 10, "VMPTRLD with VMXON pointer";
        VmptrldIncorrectRevision = 11, "VMPTRLD with incorrect VMCS revision identifier";
        UnsupportedComponent = 12, "VMREAD/VMWRITE from/to unsupported VMCS component";
        VmwriteReadOnly = 13, "VMWRITE to read-only VMCS component";
        VmxonInRoot = 15, "VMXON executed in VMX root operation";
        InvalidExecutiveVmcs = 16, "VM entry with invalid executive-VMCS pointer";
        ExecutiveVmcsNotLaunched = 17, "VM entry with non-launched executive VMCS";
        ExecutiveVmcsNotVmxonPointer = 18, "VM entry with executive-VMCS pointer not VMXON pointer";
        VmcallNotClear = 19, "VMCALL with non-clear VMCS";
        VmcallInvalidExitControls = 20, "VMCALL with invalid VM-exit control fields";
        VmcallIncorrectMseg = 22, "VMCALL with incorrect MSEG revision identifier";
        VmxoffDualMonitor = 23, "VMXOFF under dual-monitor treatment of SMIs and SMM";
        VmcallInvalidSmmMonitor = 24, "VMCALL with invalid SMM-monitor features";
        InvalidExecutiveControls = 25, "VM entry with invalid VM-execution control fields in executive VMCS";
        EntryBlockedByMovSs = 26, "VM entry with events blocked by MOV SS";
        InvalidOperand = 28, "invalid operand to INVEPT/INVVPID";
    }
}

impl core::error::Error for VmInstructionError {}

impl VmInstructionError {
    /// The error with this number; same as [`VmInstructionError::from_number`].
    pub const fn from_u32(number: u32) -> Option<Self> {
        Self::from_number(number)
    }

    /// The number: what the VM-instruction error field holds.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl BasicReason {
    /// The number: bits 15:0 of the exit reason.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The exit reason of a VM exit for this.
    pub const fn exit(self) -> ExitReason {
        ExitReason::new().with_basic_number(self as u16)
    }

    /// The exit reason of a failed VM entry: with bit 31.
    pub const fn entry_failure(self) -> ExitReason {
        self.exit().with_entry_failure(true)
    }
}

/// The exit reason field (table 25-18).
#[bitfield(u32, debug = false)]
#[derive(PartialEq, Eq)]
pub struct ExitReason {
    /// Bits 15:0: number of the basic reason.
    pub basic_number: u16,
    #[bits(9)]
    __: u16,
    /// Bit 25: the exit left a shadow stack prematurely busy.
    pub shadow_stack_busy: bool,
    /// Bit 26: a bus lock was asserted while "VMM bus-lock detection" was 1.
    pub bus_lock: bool,
    /// Bit 27: the exit came in enclave mode.
    pub enclave: bool,
    /// Bit 28: an MTF VM exit was pending.
    pub pending_mtf: bool,
    /// Bit 29: the exit came from VMX root operation (SMM).
    pub from_root: bool,
    __: bool,
    /// Bit 31: the VM entry failed.
    pub entry_failure: bool,
}

impl ExitReason {
    /// The basic exit reason, if the number is a known one.
    pub const fn basic(self) -> Option<BasicReason> {
        BasicReason::from_number(self.basic_number())
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.basic() {
            Some(basic) => f.write_str(basic.name())?,
            None => write!(f, "unknown exit reason {}", self.basic_number())?,
        }
        for (set, text) in [
            (self.entry_failure(), "VM-entry failure"),
            (self.shadow_stack_busy(), "shadow stack prematurely busy"),
            (self.bus_lock(), "bus lock asserted"),
            (self.enclave(), "enclave mode"),
            (self.pending_mtf(), "pending MTF"),
            (self.from_root(), "from VMX root operation"),
        ] {
            if set {
                write!(f, ", {text}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitReason({:#010x}: {self})", self.into_bits())
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn numbers_and_names_go_both_ways() {
        for number in 0..=u16::MAX {
            if let Some(reason) = BasicReason::from_number(number) {
                assert_eq!(reason.number(), number);
            }
        }
        assert_eq!(BasicReason::from_number(48), Some(BasicReason::EptViolation));
        for gap in [35, 38, 42, 71, 82, 86] {
            assert_eq!(BasicReason::from_number(gap), None);
        }
        for &error in VmInstructionError::ALL {
            assert_eq!(VmInstructionError::from_u32(error.number()), Some(error));
        }
        for gap in [0, 14, 21, 27, 29] {
            assert_eq!(VmInstructionError::from_u32(gap), None);
        }
    }

    #[test]
    fn a_failed_entry_has_bit_31() {
        assert_eq!(BasicReason::Hlt.exit().into_bits(), 12);
        let failed = BasicReason::InvalidGuestState.entry_failure();
        assert_eq!(failed.into_bits(), 0x8000_0021);
        assert_eq!(failed.basic(), Some(BasicReason::InvalidGuestState));
        assert_eq!(BasicReason::MsrLoading.entry_failure().into_bits(), 0x8000_0022);
        assert_eq!(failed.to_string(), "VM-entry failure due to invalid guest state, VM-entry failure");
    }
}
