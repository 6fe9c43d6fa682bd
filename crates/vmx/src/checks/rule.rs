//! The rules of VM entry, each with the section of the SDM that states it.

use crate::exit::{EntryFailure, VmInstructionError};
use crate::field::Field;

/// Which part of the VMCS a rule is about, and so how its violation shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// VM-execution, VM-exit and VM-entry controls: VMfailValid with error 7.
    Controls,
    /// Host-state area: VMfailValid with error 8.
    HostState,
    /// Guest-state area: a VM exit with reason 33.
    GuestState,
}

macro_rules! rules {
    ($($group:ident { $($section:literal { $($rule:ident: $text:literal,)* })* })*) => {
        /// A rule that VM entry checks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Rule {
            $($($(#[doc = concat!("Section ", $section, ". Broken: ", $text, ".")] $rule,)*)*)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Rule] = &[$($($(Rule::$rule),*),*),*];

            /// The part of the VMCS that the rule is about.
            pub const fn group(self) -> Group {
                match self {
                    $($($(Rule::$rule => Group::$group,)*)*)*
                }
            }

            /// The section of Intel SDM vol. 3 that states the rule.
            pub const fn section(self) -> &'static str {
                match self {
                    $($($(Rule::$rule => $section,)*)*)*
                }
            }

            /// What is wrong when the rule is broken.
            pub const fn text(self) -> &'static str {
                match self {
                    $($($(Rule::$rule => $text,)*)*)*
                }
            }
        }
    };
}

rules! {
    Controls {
        "27.2.1.1" {
            PinControls: "pin-based controls have a setting that is not allowed",
            PrimaryControls: "primary processor-based controls have a setting that is not allowed",
            SecondaryControls: "secondary processor-based controls have a setting that is not allowed",
            TertiaryControls: "tertiary processor-based controls have a setting that is not allowed",
            Cr3TargetCount: "more CR3-target values than there are",
            IoBitmapAddress: "address of an I/O bitmap is not a page's",
            MsrBitmapAddress: "address of the MSR bitmaps is not a page's",
            VirtualApicAddress: "virtual-APIC address is not a page's",
            TprThresholdReserved: "TPR threshold has reserved bits set",
            TprThresholdAboveVtpr: "TPR threshold is above VTPR",
            VirtualNmisNeedNmiExiting: "virtual NMIs without NMI exiting",
            NmiWindowNeedsVirtualNmis: "NMI-window exiting without virtual NMIs",
            ApicAccessAddress: "APIC-access address is not a page's",
            NeedsTprShadow: "APIC virtualization without the TPR shadow",
            X2ApicExcludesApicAccesses: "x2APIC mode and APIC accesses are both virtualized",
            VirtualInterruptsNeedExternalInterruptExiting: "virtual-interrupt delivery without external-interrupt exiting",
            PostedInterruptsNeedVirtualInterruptDelivery: "posted interrupts without virtual-interrupt delivery",
            PostedInterruptsNeedAcknowledge: "posted interrupts without acknowledge interrupt on exit",
            PostedInterruptVector: "posted-interrupt notification vector is above 255",
            PostedInterruptDescriptor: "posted-interrupt descriptor address is not a 64-byte line's",
            VpidZero: "VPID is enabled and zero",
            EptpMemoryType: "EPTP names a memory type that is not supported",
            EptpWalkLength: "EPTP names a page-walk length that is not supported",
            EptpAccessedDirty: "EPTP enables accessed and dirty flags that are not supported",
            EptpShadowStack: "EPTP enables supervisor shadow-stack control that is not supported",
            EptpReserved: "EPTP has reserved bits set",
            NeedsEpt: "a control that needs EPT is 1 without EPT",
            PmlAddress: "PML address is not a page's",
            SppTablePointer: "sub-page-permission-table pointer is not a page's",
            PtGuestPhysicalNeedsRtitControls: "Intel PT uses guest-physical addresses, and IA32_RTIT_CTL is not loaded and cleared",
            VmFunctions: "VM-function controls have a setting that is not allowed",
            EptpSwitchingNeedsEpt: "EPTP switching without EPT",
            EptpListAddress: "EPTP-list address is not a page's",
            VmcsShadowingBitmap: "VMREAD- or VMWRITE-bitmap address is not a page's",
            VirtualizationExceptionAddress: "virtualization-exception information address is not a page's",
            TscMultiplierZero: "TSC scaling with a multiplier of zero",
            HlatPointer: "HLATP has reserved bits set",
            HlatPrefixSize: "HLAT prefix size is above the maximum",
            PasidDirectory: "PASID directory address is not a page's",
            PidPointerTable: "PID-pointer table is not aligned or not within physical memory",
        }
        "27.2.1.2" {
            ExitControls: "VM-exit controls have a setting that is not allowed",
            SecondaryExitControls: "secondary VM-exit controls have a setting that is not allowed",
            SavePreemptionTimerNeedsTimer: "the preemption timer is saved and not active",
            ExitMsrStoreArea: "VM-exit MSR-store area is not aligned or not within physical memory",
            ExitMsrLoadArea: "VM-exit MSR-load area is not aligned or not within physical memory",
        }
        "27.2.1.3" {
            EntryControls: "VM-entry controls have a setting that is not allowed",
            EventType: "injected event has a reserved type",
            EventVector: "injected event's vector does not go with its type",
            EventErrorCode: "injected event's error code does not go with its type and vector",
            EventReserved: "injected event's information has reserved bits set",
            EventErrorCodeReserved: "injected error code has bits 31:16 set",
            EventInstructionLength: "injected software event's instruction length is out of range",
            EntryMsrLoadArea: "VM-entry MSR-load area is not aligned or not within physical memory",
            EntryToSmmOutsideSmm: "entry to SMM or deactivation of dual-monitor treatment outside SMM",
            EntryToSmmExcludesDeactivate: "entry to SMM and deactivation of dual-monitor treatment at once",
        }
    }
    HostState {
        "27.2.2" {
            HostCr0: "host CR0 has a bit that is not supported in VMX operation",
            HostCr4: "host CR4 has a bit that is not supported in VMX operation",
            HostCetNeedsWp: "host CR4.CET is 1 and CR0.WP is 0",
            HostCr3: "host CR3 is beyond the physical-address width",
            HostSysenter: "host SYSENTER address is not canonical",
            HostPerfGlobalCtrl: "host IA32_PERF_GLOBAL_CTRL has reserved bits set",
            HostPat: "host IA32_PAT has a reserved memory type",
            HostEferReserved: "host IA32_EFER has reserved bits set",
            HostEferMode: "host IA32_EFER does not go with the host address-space size",
            HostCet: "host CET state is not valid",
            HostPkrs: "host IA32_PKRS has bits 63:32 set",
        }
        "27.2.3" {
            HostSelectorRplTi: "host selector has its RPL or TI not zero",
            HostSelectorNull: "host CS or TR selector is null",
            HostSsNull: "host SS selector is null outside 64-bit mode",
            HostBase: "host base address is not canonical",
        }
        "27.2.4" {
            HostModeSwitch: "VM entry from this mode with this host address-space size",
            HostGuestIa32e: "IA-32e mode guest for a host that is not in 64-bit mode",
            HostPcide: "host CR4.PCIDE is 1 outside 64-bit mode",
            HostPae: "host CR4.PAE is 0 in 64-bit mode",
            HostRip: "host RIP is not within the address space",
        }
    }
    GuestState {
        "27.3.1.1" {
            GuestCr0: "CR0 has a bit that is not supported in VMX operation",
            GuestPagingNeedsProtection: "CR0.PG is 1 and CR0.PE is 0",
            GuestCr4: "CR4 has a bit that is not supported in VMX operation",
            GuestCetNeedsWp: "CR4.CET is 1 and CR0.WP is 0",
            GuestDebugctl: "IA32_DEBUGCTL has reserved bits set",
            GuestIa32eNeedsPaging: "IA-32e mode without CR0.PG and CR4.PAE",
            GuestPcide: "CR4.PCIDE is 1 outside IA-32e mode",
            GuestCr3: "CR3 is beyond the physical-address width",
            GuestDr7: "DR7 has bits 63:32 set",
            GuestSysenter: "SYSENTER address is not canonical",
            GuestPerfGlobalCtrl: "IA32_PERF_GLOBAL_CTRL has reserved bits set",
            GuestPat: "IA32_PAT has a reserved memory type",
            GuestEferReserved: "IA32_EFER has reserved bits set",
            GuestEferLma: "IA32_EFER.LMA is not the IA-32e mode guest control",
            GuestEferLme: "IA32_EFER.LME is not LMA while paging is on",
            GuestBndcfgs: "IA32_BNDCFGS is not valid",
            GuestRtitCtl: "IA32_RTIT_CTL has reserved bits set",
            GuestCet: "CET state is not valid",
            GuestLbrCtl: "IA32_LBR_CTL has reserved bits set",
            GuestPkrs: "IA32_PKRS has bits 63:32 set",
            GuestUinv: "UINV has bits 15:8 set",
        }
        "27.3.1.2" {
            TrSelectorTi: "TR selector's TI is not zero",
            LdtrSelectorTi: "LDTR selector's TI is not zero",
            SsRpl: "SS selector's RPL is not CS's",
            Virtual8086Base: "base is not the selector times 16 in virtual-8086 mode",
            SegmentBaseCanonical: "segment base is not canonical",
            SegmentBaseHigh: "segment base has bits 63:32 set",
            Virtual8086Limit: "segment limit is not ffff in virtual-8086 mode",
            Virtual8086AccessRights: "access rights are not f3 in virtual-8086 mode",
            CsType: "CS is not accessed code",
            SsType: "SS is not accessed writable data",
            DataSegmentType: "segment is not accessed and readable",
            SegmentS: "segment's S does not go with the register",
            CsDpl: "CS's DPL does not go with its type and SS",
            SsDpl: "SS's DPL does not go with its RPL, CS or CR0.PE",
            DataSegmentDpl: "segment's DPL is below its RPL",
            SegmentPresent: "usable segment is not present",
            SegmentReserved: "access rights have reserved bits set",
            CsLongAndBig: "CS's L and D/B are both 1 in IA-32e mode",
            SegmentGranularity: "segment's G does not go with its limit",
            TrType: "TR is not a busy task-state segment of the mode",
            TrUnusable: "TR is unusable",
            LdtrType: "LDTR is not a local descriptor table",
        }
        "27.3.1.3" {
            TableBase: "GDTR or IDTR base is not canonical",
            TableLimit: "GDTR or IDTR limit has bits 31:16 set",
        }
        "27.3.1.4" {
            GuestRip: "RIP is not within the address space",
            RflagsReserved: "RFLAGS has a reserved bit set, or bit 1 clear",
            RflagsVm: "RFLAGS.VM is 1 in IA-32e mode or without protection",
            RflagsIf: "RFLAGS.IF is 0 and an external interrupt is injected",
            GuestSsp: "SSP is not aligned or not within the address space",
        }
        "27.3.1.5" {
            ActivityState: "activity state is not supported",
            HltNeedsDplZero: "activity state is HLT and SS's DPL is not zero",
            ActiveWhileBlocking: "activity state is not active while STI or MOV SS blocks",
            ActivityEvent: "injected event does not go with the activity state",
            WaitForSipiInSmm: "activity state is wait-for-SIPI on an entry to SMM",
            InterruptibilityReserved: "interruptibility state has reserved bits set",
            StiAndMovSs: "STI and MOV SS both block",
            StiNeedsIf: "STI blocks and RFLAGS.IF is 0",
            ExternalInterruptBlocked: "external interrupt is injected while STI or MOV SS blocks",
            NmiBlockedByMovSs: "NMI is injected while MOV SS blocks",
            NmiBlockedBySti: "NMI is injected while STI blocks",
            NmiBlocked: "NMI is injected while virtual NMIs are blocked",
            SmiBlocking: "blocking by SMI does not go with SMM",
            EnclaveInterruption: "enclave interruption with MOV SS blocking, or without SGX",
            PendingDebugReserved: "pending debug exceptions have reserved bits set",
            PendingDebugSingleStep: "pending single step does not go with RFLAGS.TF and BTF",
            PendingDebugRtm: "pending debug exceptions with RTM are not consistent",
            LinkPointerAddress: "VMCS link pointer is not a page's",
            LinkPointerRevision: "VMCS link pointer's region has another revision or shadow indicator",
            LinkPointerIsCurrent: "VMCS link pointer is the current or executive VMCS",
        }
        "27.3.1.6" {
            Pdpte: "present PDPTE has reserved bits set",
        }
    }
}

/// A rule of VM entry that the VMCS breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {} is {value:#x} (sdm vol. 3, {})", .rule.text(), .field.name(), .rule.section())]
pub struct CheckError {
    /// The rule.
    pub rule: Rule,
    /// The field that breaks it.
    pub field: Field,
    /// The value of the field, or what it names in memory: a PDPTE, a revision identifier.
    pub value: u64,
}

impl CheckError {
    /// The VM-instruction error of the failed VMLAUNCH or VMRESUME; `None` for guest state, which makes
    /// a VM exit.
    pub const fn instruction_error(&self) -> Option<VmInstructionError> {
        match self.rule.group() {
            Group::Controls => Some(VmInstructionError::InvalidControls),
            Group::HostState => Some(VmInstructionError::InvalidHostState),
            Group::GuestState => None,
        }
    }

    /// For guest state: the exit qualification of the VM exit with reason 33.
    pub const fn entry_failure(&self) -> EntryFailure {
        match self.rule {
            Rule::Pdpte => EntryFailure::Pdpte,
            Rule::NmiBlockedBySti => EntryFailure::NmiInjection,
            Rule::LinkPointerAddress | Rule::LinkPointerRevision | Rule::LinkPointerIsCurrent => {
                EntryFailure::LinkPointer
            }
            _ => EntryFailure::General,
        }
    }
}
