//! VMCS fields and their encodings (Intel SDM vol. 3, 25.11.2 and Appendix B).
//!
//! A [`Field`] is a dense number, so that a VMCS is an array; its 32-bit encoding is what VMREAD and
//! VMWRITE take:
//!
//! | bits  | meaning                                             |
//! |-------|-----------------------------------------------------|
//! | 0     | access type: 0 full, 1 high (64-bit fields only)    |
//! | 9:1   | index                                               |
//! | 11:10 | area: 0 control, 1 exit information, 2 guest, 3 host|
//! | 14:13 | width: 0 16-bit, 1 64-bit, 2 32-bit, 3 natural      |
//!
//! All other bits are zero.

use core::fmt;

use crate::state::Segment;

/// Width of a field: bits 14:13 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 16 bits.
    W16 = 0,
    /// 64 bits, whatever the mode.
    W64 = 1,
    /// 32 bits.
    W32 = 2,
    /// 64 bits on a processor with Intel 64 architecture.
    Natural = 3,
}

impl Width {
    /// The bits a field of this width has.
    pub const fn mask(self) -> u64 {
        match self {
            Width::W16 => 0xffff,
            Width::W32 => 0xffff_ffff,
            Width::W64 | Width::Natural => u64::MAX,
        }
    }
}

/// Area of the VMCS a field is in: bits 11:10 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Area {
    /// VM-execution, VM-exit and VM-entry controls.
    Control = 0,
    /// VM-exit information: read-only data.
    ExitInformation = 1,
    /// Guest state.
    Guest = 2,
    /// Host state.
    Host = 3,
}

impl Area {
    /// The four areas, in the order of their encoding.
    pub const ALL: [Area; 4] = [Area::Control, Area::ExitInformation, Area::Guest, Area::Host];

    /// What the SDM calls the area.
    pub const fn name(self) -> &'static str {
        match self {
            Area::Control => "control fields",
            Area::ExitInformation => "VM-exit information fields",
            Area::Guest => "guest-state area",
            Area::Host => "host-state area",
        }
    }
}

/// Which part of a field an encoding names: bit 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AccessType {
    /// The whole field.
    Full = 0,
    /// Bits 63:32 of a 64-bit field.
    High = 1,
}

macro_rules! fields {
    ($($name:ident = $encoding:literal, $text:literal;)*) => {
        /// A field of the VMCS.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Field {
            $(#[doc = concat!($text, ": encoding ", stringify!($encoding), ".")] $name,)*
        }

        impl Field {
            /// How many fields there are; slots are below it.
            pub const COUNT: usize = [$(Field::$name),*].len();
            /// Every field, in the order of encodings (and of slots).
            pub const ALL: [Field; Field::COUNT] = [$(Field::$name),*];
        }

        const ENCODINGS: [u16; Field::COUNT] = [$($encoding),*];
        const NAMES: [&str; Field::COUNT] = [$($text),*];
    };
}

fields! {
    // 16-bit control fields (B.1.1)
    Vpid = 0x0000, "virtual-processor identifier (VPID)";
    PostedInterruptVector = 0x0002, "posted-interrupt notification vector";
    EptpIndex = 0x0004, "EPTP index";
    HlatPrefixSize = 0x0006, "HLAT prefix size";
    LastPidPointerIndex = 0x0008, "last PID-pointer index";
    // 16-bit guest-state fields (B.1.2)
    GuestEsSelector = 0x0800, "guest ES selector";
    GuestCsSelector = 0x0802, "guest CS selector";
    GuestSsSelector = 0x0804, "guest SS selector";
    GuestDsSelector = 0x0806, "guest DS selector";
    GuestFsSelector = 0x0808, "guest FS selector";
    GuestGsSelector = 0x080a, "guest GS selector";
    GuestLdtrSelector = 0x080c, "guest LDTR selector";
    GuestTrSelector = 0x080e, "guest TR selector";
    GuestInterruptStatus = 0x0810, "guest interrupt status";
    PmlIndex = 0x0812, "PML index";
    GuestUinv = 0x0814, "guest UINV";
    // 16-bit host-state fields (B.1.3)
    HostEsSelector = 0x0c00, "host ES selector";
    HostCsSelector = 0x0c02, "host CS selector";
    HostSsSelector = 0x0c04, "host SS selector";
    HostDsSelector = 0x0c06, "host DS selector";
    HostFsSelector = 0x0c08, "host FS selector";
    HostGsSelector = 0x0c0a, "host GS selector";
    HostTrSelector = 0x0c0c, "host TR selector";
    // 64-bit control fields (B.2.1)
    IoBitmapA = 0x2000, "address of I/O bitmap A";
    IoBitmapB = 0x2002, "address of I/O bitmap B";
    MsrBitmap = 0x2004, "address of MSR bitmaps";
    ExitMsrStoreAddress = 0x2006, "VM-exit MSR-store address";
    ExitMsrLoadAddress = 0x2008, "VM-exit MSR-load address";
    EntryMsrLoadAddress = 0x200a, "VM-entry MSR-load address";
    ExecutiveVmcsPointer = 0x200c, "executive-VMCS pointer";
    PmlAddress = 0x200e, "PML address";
    TscOffset = 0x2010, "TSC offset";
    VirtualApicAddress = 0x2012, "virtual-APIC address";
    ApicAccessAddress = 0x2014, "APIC-access address";
    PostedInterruptDescriptor = 0x2016, "posted-interrupt descriptor address";
    VmFunctionControls = 0x2018, "VM-function controls";
    EptPointer = 0x201a, "EPT pointer (EPTP)";
    EoiExitBitmap0 = 0x201c, "EOI-exit bitmap 0";
    EoiExitBitmap1 = 0x201e, "EOI-exit bitmap 1";
    EoiExitBitmap2 = 0x2020, "EOI-exit bitmap 2";
    EoiExitBitmap3 = 0x2022, "EOI-exit bitmap 3";
    EptpListAddress = 0x2024, "EPTP-list address";
    VmreadBitmap = 0x2026, "VMREAD-bitmap address";
    VmwriteBitmap = 0x2028, "VMWRITE-bitmap address";
    VirtualizationExceptionAddress = 0x202a, "virtualization-exception information address";
    XssExitingBitmap = 0x202c, "XSS-exiting bitmap";
    EnclsExitingBitmap = 0x202e, "ENCLS-exiting bitmap";
    SppTablePointer = 0x2030, "sub-page-permission-table pointer";
    TscMultiplier = 0x2032, "TSC multiplier";
    TertiaryControls = 0x2034, "tertiary processor-based VM-execution controls";
    EnclvExitingBitmap = 0x2036, "ENCLV-exiting bitmap";
    LowPasidDirectory = 0x2038, "low PASID directory address";
    HighPasidDirectory = 0x203a, "high PASID directory address";
    SharedEptPointer = 0x203c, "shared EPT pointer";
    PconfigExitingBitmap = 0x203e, "PCONFIG-exiting bitmap";
    HlatPointer = 0x2040, "hypervisor-managed linear-address translation pointer (HLATP)";
    PidPointerTable = 0x2042, "PID-pointer table address";
    SecondaryExitControls = 0x2044, "secondary VM-exit controls";
    SpecCtrlMask = 0x204a, "IA32_SPEC_CTRL mask";
    SpecCtrlShadow = 0x204c, "IA32_SPEC_CTRL shadow";
    InjectedEventData = 0x2052, "injected-event data";
    // 64-bit read-only data fields (B.2.2)
    GuestPhysicalAddress = 0x2400, "guest-physical address";
    OriginalEventData = 0x2404, "original-event data";
    // 64-bit guest-state fields (B.2.3)
    VmcsLinkPointer = 0x2800, "VMCS link pointer";
    GuestDebugctl = 0x2802, "guest IA32_DEBUGCTL";
    GuestPat = 0x2804, "guest IA32_PAT";
    GuestEfer = 0x2806, "guest IA32_EFER";
    GuestPerfGlobalCtrl = 0x2808, "guest IA32_PERF_GLOBAL_CTRL";
    GuestPdpte0 = 0x280a, "guest PDPTE0";
    GuestPdpte1 = 0x280c, "guest PDPTE1";
    GuestPdpte2 = 0x280e, "guest PDPTE2";
    GuestPdpte3 = 0x2810, "guest PDPTE3";
    GuestBndcfgs = 0x2812, "guest IA32_BNDCFGS";
    GuestRtitCtl = 0x2814, "guest IA32_RTIT_CTL";
    GuestLbrCtl = 0x2816, "guest IA32_LBR_CTL";
    GuestPkrs = 0x2818, "guest IA32_PKRS";
    GuestFredConfig = 0x281a, "guest IA32_FRED_CONFIG";
    GuestFredRsp1 = 0x281c, "guest IA32_FRED_RSP1";
    GuestFredRsp2 = 0x281e, "guest IA32_FRED_RSP2";
    GuestFredRsp3 = 0x2820, "guest IA32_FRED_RSP3";
    GuestFredStklvls = 0x2822, "guest IA32_FRED_STKLVLS";
    GuestFredSsp1 = 0x2824, "guest IA32_FRED_SSP1";
    GuestFredSsp2 = 0x2826, "guest IA32_FRED_SSP2";
    GuestFredSsp3 = 0x2828, "guest IA32_FRED_SSP3";
    // 64-bit host-state fields (B.2.4)
    HostPat = 0x2c00, "host IA32_PAT";
    HostEfer = 0x2c02, "host IA32_EFER";
    HostPerfGlobalCtrl = 0x2c04, "host IA32_PERF_GLOBAL_CTRL";
    HostPkrs = 0x2c06, "host IA32_PKRS";
    HostFredConfig = 0x2c08, "host IA32_FRED_CONFIG";
    HostFredRsp1 = 0x2c0a, "host IA32_FRED_RSP1";
    HostFredRsp2 = 0x2c0c, "host IA32_FRED_RSP2";
    HostFredRsp3 = 0x2c0e, "host IA32_FRED_RSP3";
    HostFredStklvls = 0x2c10, "host IA32_FRED_STKLVLS";
    HostFredSsp1 = 0x2c12, "host IA32_FRED_SSP1";
    HostFredSsp2 = 0x2c14, "host IA32_FRED_SSP2";
    HostFredSsp3 = 0x2c16, "host IA32_FRED_SSP3";
    // 32-bit control fields (B.3.1)
    PinControls = 0x4000, "pin-based VM-execution controls";
    PrimaryControls = 0x4002, "primary processor-based VM-execution controls";
    ExceptionBitmap = 0x4004, "exception bitmap";
    PageFaultErrorCodeMask = 0x4006, "page-fault error-code mask";
    PageFaultErrorCodeMatch = 0x4008, "page-fault error-code match";
    Cr3TargetCount = 0x400a, "CR3-target count";
    ExitControls = 0x400c, "primary VM-exit controls";
    ExitMsrStoreCount = 0x400e, "VM-exit MSR-store count";
    ExitMsrLoadCount = 0x4010, "VM-exit MSR-load count";
    EntryControls = 0x4012, "VM-entry controls";
    EntryMsrLoadCount = 0x4014, "VM-entry MSR-load count";
    EntryInterruptionInfo = 0x4016, "VM-entry interruption-information field";
    EntryExceptionErrorCode = 0x4018, "VM-entry exception error code";
    EntryInstructionLength = 0x401a, "VM-entry instruction length";
    TprThreshold = 0x401c, "TPR threshold";
    SecondaryControls = 0x401e, "secondary processor-based VM-execution controls";
    PleGap = 0x4020, "PLE_Gap";
    PleWindow = 0x4022, "PLE_Window";
    InstructionTimeout = 0x4024, "instruction-timeout control";
    // 32-bit read-only data fields (B.3.2)
    InstructionError = 0x4400, "VM-instruction error";
    ExitReason = 0x4402, "exit reason";
    ExitInterruptionInfo = 0x4404, "VM-exit interruption information";
    ExitInterruptionErrorCode = 0x4406, "VM-exit interruption error code";
    IdtVectoringInfo = 0x4408, "IDT-vectoring information field";
    IdtVectoringErrorCode = 0x440a, "IDT-vectoring error code";
    ExitInstructionLength = 0x440c, "VM-exit instruction length";
    ExitInstructionInfo = 0x440e, "VM-exit instruction information";
    // 32-bit guest-state fields (B.3.3)
    GuestEsLimit = 0x4800, "guest ES limit";
    GuestCsLimit = 0x4802, "guest CS limit";
    GuestSsLimit = 0x4804, "guest SS limit";
    GuestDsLimit = 0x4806, "guest DS limit";
    GuestFsLimit = 0x4808, "guest FS limit";
    GuestGsLimit = 0x480a, "guest GS limit";
    GuestLdtrLimit = 0x480c, "guest LDTR limit";
    GuestTrLimit = 0x480e, "guest TR limit";
    GuestGdtrLimit = 0x4810, "guest GDTR limit";
    GuestIdtrLimit = 0x4812, "guest IDTR limit";
    GuestEsAccessRights = 0x4814, "guest ES access rights";
    GuestCsAccessRights = 0x4816, "guest CS access rights";
    GuestSsAccessRights = 0x4818, "guest SS access rights";
    GuestDsAccessRights = 0x481a, "guest DS access rights";
    GuestFsAccessRights = 0x481c, "guest FS access rights";
    GuestGsAccessRights = 0x481e, "guest GS access rights";
    GuestLdtrAccessRights = 0x4820, "guest LDTR access rights";
    GuestTrAccessRights = 0x4822, "guest TR access rights";
    GuestInterruptibility = 0x4824, "guest interruptibility state";
    GuestActivity = 0x4826, "guest activity state";
    GuestSmbase = 0x4828, "guest SMBASE";
    GuestSysenterCs = 0x482a, "guest IA32_SYSENTER_CS";
    PreemptionTimer = 0x482e, "VMX-preemption timer value";
    // 32-bit host-state field (B.3.4)
    HostSysenterCs = 0x4c00, "host IA32_SYSENTER_CS";
    // Natural-width control fields (B.4.1)
    Cr0GuestHostMask = 0x6000, "CR0 guest/host mask";
    Cr4GuestHostMask = 0x6002, "CR4 guest/host mask";
    Cr0ReadShadow = 0x6004, "CR0 read shadow";
    Cr4ReadShadow = 0x6006, "CR4 read shadow";
    Cr3Target0 = 0x6008, "CR3-target value 0";
    Cr3Target1 = 0x600a, "CR3-target value 1";
    Cr3Target2 = 0x600c, "CR3-target value 2";
    Cr3Target3 = 0x600e, "CR3-target value 3";
    // Natural-width read-only data fields (B.4.2)
    ExitQualification = 0x6400, "exit qualification";
    IoRcx = 0x6402, "I/O RCX";
    IoRsi = 0x6404, "I/O RSI";
    IoRdi = 0x6406, "I/O RDI";
    IoRip = 0x6408, "I/O RIP";
    GuestLinearAddress = 0x640a, "guest-linear address";
    // Natural-width guest-state fields (B.4.3)
    GuestCr0 = 0x6800, "guest CR0";
    GuestCr3 = 0x6802, "guest CR3";
    GuestCr4 = 0x6804, "guest CR4";
    GuestEsBase = 0x6806, "guest ES base";
    GuestCsBase = 0x6808, "guest CS base";
    GuestSsBase = 0x680a, "guest SS base";
    GuestDsBase = 0x680c, "guest DS base";
    GuestFsBase = 0x680e, "guest FS base";
    GuestGsBase = 0x6810, "guest GS base";
    GuestLdtrBase = 0x6812, "guest LDTR base";
    GuestTrBase = 0x6814, "guest TR base";
    GuestGdtrBase = 0x6816, "guest GDTR base";
    GuestIdtrBase = 0x6818, "guest IDTR base";
    GuestDr7 = 0x681a, "guest DR7";
    GuestRsp = 0x681c, "guest RSP";
    GuestRip = 0x681e, "guest RIP";
    GuestRflags = 0x6820, "guest RFLAGS";
    GuestPendingDebug = 0x6822, "guest pending debug exceptions";
    GuestSysenterEsp = 0x6824, "guest IA32_SYSENTER_ESP";
    GuestSysenterEip = 0x6826, "guest IA32_SYSENTER_EIP";
    GuestSCet = 0x6828, "guest IA32_S_CET";
    GuestSsp = 0x682a, "guest SSP";
    GuestInterruptSspTable = 0x682c, "guest IA32_INTERRUPT_SSP_TABLE_ADDR";
    // Natural-width host-state fields (B.4.4)
    HostCr0 = 0x6c00, "host CR0";
    HostCr3 = 0x6c02, "host CR3";
    HostCr4 = 0x6c04, "host CR4";
    HostFsBase = 0x6c06, "host FS base";
    HostGsBase = 0x6c08, "host GS base";
    HostTrBase = 0x6c0a, "host TR base";
    HostGdtrBase = 0x6c0c, "host GDTR base";
    HostIdtrBase = 0x6c0e, "host IDTR base";
    HostSysenterEsp = 0x6c10, "host IA32_SYSENTER_ESP";
    HostSysenterEip = 0x6c12, "host IA32_SYSENTER_EIP";
    HostRsp = 0x6c14, "host RSP";
    HostRip = 0x6c16, "host RIP";
    HostSCet = 0x6c18, "host IA32_S_CET";
    HostSsp = 0x6c1a, "host SSP";
    HostInterruptSspTable = 0x6c1c, "host IA32_INTERRUPT_SSP_TABLE_ADDR";
}

/// `NO_FIELD` in [`SLOTS`] says that no field has this width, area and index.
const NO_FIELD: u8 = u8::MAX;

/// Slot by width (2 bits), area (2 bits) and the low 6 bits of the index: no known index is higher.
const SLOTS: [u8; 1024] = {
    let mut slots = [NO_FIELD; 1024];
    let mut slot = 0;
    while slot < Field::COUNT {
        let encoding = ENCODINGS[slot] as usize;
        assert!(encoding >> 1 & 0x1ff < 64, "the table has 6 bits of index");
        let key = compact(encoding);
        assert!(slots[key] == NO_FIELD, "two fields with one encoding");
        slots[key] = slot as u8;
        slot += 1;
    }
    slots
};

/// Width, area and index of a well-formed encoding as a number below 1024.
const fn compact(encoding: usize) -> usize {
    encoding >> 13 << 8 | (encoding >> 10 & 3) << 6 | encoding >> 1 & 0x3f
}

impl Field {
    /// The highest index of any field: bits 9:1 of IA32_VMX_VMCS_ENUM.
    pub const HIGHEST_INDEX: u16 = {
        let mut highest = 0;
        let mut slot = 0;
        while slot < Field::COUNT {
            let index = ENCODINGS[slot] >> 1 & 0x1ff;
            if index > highest {
                highest = index;
            }
            slot += 1;
        }
        highest
    };

    /// The field an encoding names, and whether it names its high half. `None`: there is no such field,
    /// reserved bits are set, or the access type is high and the field does not have 64 bits.
    #[inline]
    pub const fn from_encoding(encoding: u32) -> Option<(Field, bool)> {
        if encoding & !0x6fff != 0 || encoding >> 1 & 0x1ff >= 64 {
            return None;
        }
        let slot = SLOTS[compact(encoding as usize)];
        if slot == NO_FIELD {
            return None;
        }
        let field = Field::ALL[slot as usize];
        let high = encoding & 1 != 0;
        if high && !matches!(field.width(), Width::W64) { None } else { Some((field, high)) }
    }

    /// The field with this slot.
    #[inline]
    pub const fn from_slot(slot: usize) -> Option<Field> {
        if slot < Field::COUNT { Some(Field::ALL[slot]) } else { None }
    }

    /// Every field, in the order of encodings.
    pub fn all() -> impl ExactSizeIterator<Item = Field> {
        Field::ALL.into_iter()
    }

    /// The encoding of a full access.
    #[inline]
    pub const fn encoding(self) -> u32 {
        ENCODINGS[self as usize] as u32
    }

    /// The encoding of an access to bits 63:32, if the field has 64 bits.
    pub const fn high_encoding(self) -> Option<u32> {
        if matches!(self.width(), Width::W64) { Some(self.encoding() | 1) } else { None }
    }

    /// The field's dense number, below [`Field::COUNT`].
    #[inline]
    pub const fn slot(self) -> usize {
        self as usize
    }

    /// Width: bits 14:13 of the encoding.
    #[inline]
    pub const fn width(self) -> Width {
        match self.encoding() >> 13 & 3 {
            0 => Width::W16,
            1 => Width::W64,
            2 => Width::W32,
            _ => Width::Natural,
        }
    }

    /// Area: bits 11:10 of the encoding.
    #[inline]
    pub const fn area(self) -> Area {
        match self.encoding() >> 10 & 3 {
            0 => Area::Control,
            1 => Area::ExitInformation,
            2 => Area::Guest,
            _ => Area::Host,
        }
    }

    /// Index: bits 9:1 of the encoding.
    pub const fn index(self) -> u16 {
        (self.encoding() >> 1 & 0x1ff) as u16
    }

    /// Access type of [`Field::encoding`]: always full. Bit 0 of an encoding chooses it.
    pub const fn access_type(self) -> AccessType {
        AccessType::Full
    }

    /// Whether the field is VM-exit information, which VMWRITE reaches only where IA32_VMX_MISC\[29\] is 1.
    #[inline]
    pub const fn is_read_only(self) -> bool {
        matches!(self.area(), Area::ExitInformation)
    }

    /// What the SDM calls the field.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Selector of a guest segment register.
    #[inline]
    pub const fn guest_selector(segment: Segment) -> Field {
        Field::ALL[Field::GuestEsSelector as usize + segment as usize]
    }

    /// Limit of a guest segment register.
    #[inline]
    pub const fn guest_limit(segment: Segment) -> Field {
        Field::ALL[Field::GuestEsLimit as usize + segment as usize]
    }

    /// Access rights of a guest segment register.
    #[inline]
    pub const fn guest_access_rights(segment: Segment) -> Field {
        Field::ALL[Field::GuestEsAccessRights as usize + segment as usize]
    }

    /// Base address of a guest segment register.
    #[inline]
    pub const fn guest_base(segment: Segment) -> Field {
        Field::ALL[Field::GuestEsBase as usize + segment as usize]
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_names_its_field() {
        for (slot, field) in Field::all().enumerate() {
            assert_eq!(field.slot(), slot);
            assert_eq!(Field::from_slot(slot), Some(field));
            assert_eq!(Field::from_encoding(field.encoding()), Some((field, false)), "{field}");
            let high = Field::from_encoding(field.encoding() | 1);
            assert_eq!(high, field.high_encoding().map(|_| (field, true)), "{field}");
        }
    }

    #[test]
    fn unknown_encodings_name_nothing() {
        let known = (0..=0x1_ffffu32).filter(|&e| Field::from_encoding(e).is_some()).count();
        let wide = Field::all().filter(|f| f.width() == Width::W64).count();
        assert_eq!(known, Field::COUNT + wide);
        for bit in [12, 15, 16, 31] {
            assert_eq!(Field::from_encoding(Field::GuestRip.encoding() | 1 << bit), None);
        }
    }

    #[test]
    fn encodings_decompose_as_in_the_sdm() {
        use Area::*;
        use Width::*;
        let rows = [
            (Field::Vpid, 0x0000, W16, Control, 0),
            (Field::HostTrSelector, 0x0c0c, W16, Host, 6),
            (Field::EptPointer, 0x201a, W64, Control, 13),
            (Field::GuestPhysicalAddress, 0x2400, W64, ExitInformation, 0),
            (Field::PreemptionTimer, 0x482e, W32, Guest, 23),
            (Field::ExitQualification, 0x6400, Natural, ExitInformation, 0),
            (Field::GuestRip, 0x681e, Natural, Guest, 15),
            (Field::HostRip, 0x6c16, Natural, Host, 11),
        ];
        for (field, encoding, width, area, index) in rows {
            assert_eq!(
                (field.encoding(), field.width(), field.area(), field.index()),
                (encoding, width, area, index)
            );
            assert_eq!(field.is_read_only(), area == ExitInformation);
        }
    }

    #[test]
    fn segments_choose_their_fields() {
        assert_eq!(Field::guest_selector(Segment::Tr), Field::GuestTrSelector);
        assert_eq!(Field::guest_limit(Segment::Cs), Field::GuestCsLimit);
        assert_eq!(Field::guest_access_rights(Segment::Ldtr), Field::GuestLdtrAccessRights);
        assert_eq!(Field::guest_base(Segment::Gs), Field::GuestGsBase);
    }
}
