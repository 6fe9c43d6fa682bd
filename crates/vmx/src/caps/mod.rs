//! Capability reporting: MSRs 480H–493H (Intel SDM vol. 3, Appendix A).

mod bits;
mod fields;

pub use bits::{basic, ept_vpid, misc, msr};

use crate::controls::{
    EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls, SecondaryExitControls,
    TertiaryControls, VmFunctions,
};
use crate::field::Field;
use crate::region::{REGION_SIZE, Vmcs};

/// Default1 class of the pin-based controls (A.3.1).
pub const DEFAULT1_PIN: u32 = 0x0000_0016;
/// Default1 class of the primary processor-based controls (A.3.2).
pub const DEFAULT1_PRIMARY: u32 = 0x0401_e172;
/// Default1 class of the VM-exit controls (A.4).
pub const DEFAULT1_EXIT: u32 = 0x0003_6dff;
/// Default1 class of the VM-entry controls (A.5).
pub const DEFAULT1_ENTRY: u32 = 0x0000_11ff;

/// Which settings of 32 controls are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Allowed {
    /// Allowed 0-settings: a bit that is 1 here must be 1 in the control (MSR bits 31:0).
    pub must_be_one: u32,
    /// Allowed 1-settings: a bit that is 0 here must be 0 in the control (MSR bits 63:32).
    pub may_be_one: u32,
}

impl Allowed {
    /// Controls that must be one, and those that are optional.
    pub const fn new(must_be_one: u32, optional: u32) -> Self {
        Allowed { must_be_one, may_be_one: must_be_one | optional }
    }

    /// The value of the capability MSR.
    pub const fn msr(self) -> u64 {
        (self.may_be_one as u64) << 32 | self.must_be_one as u64
    }

    /// What the value of a capability MSR says.
    pub const fn from_msr(value: u64) -> Self {
        Allowed { must_be_one: value as u32, may_be_one: (value >> 32) as u32 }
    }

    /// Whether a setting of the controls is allowed.
    #[inline]
    pub const fn allows(self, controls: u32) -> bool {
        controls & self.must_be_one == self.must_be_one && controls & !self.may_be_one == 0
    }

    /// The allowed setting nearest to the one that is asked for.
    pub const fn adjust(self, controls: u32) -> u32 {
        controls & self.may_be_one | self.must_be_one
    }

    const fn with_default1(self, default1: u32) -> Self {
        Allowed { must_be_one: self.must_be_one | default1, may_be_one: self.may_be_one | default1 }
    }

    const fn with(self, controls: u32) -> Self {
        Allowed { may_be_one: self.may_be_one | controls, ..self }
    }

    const fn without(self, controls: u32) -> Self {
        Allowed { may_be_one: self.may_be_one & (!controls | self.must_be_one), ..self }
    }
}

/// What a processor's VMX can do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// VMCS revision identifier.
    pub revision: u32,
    /// IA32_VMX_BASIC bits 63:32 but for the region size: [`basic`].
    pub basic: u64,
    /// Pin-based controls (the TRUE MSR).
    pub pin: Allowed,
    /// Primary processor-based controls (the TRUE MSR).
    pub primary: Allowed,
    /// Secondary processor-based controls.
    pub secondary: Allowed,
    /// Tertiary processor-based controls that may be 1.
    pub tertiary: u64,
    /// VM-exit controls (the TRUE MSR).
    pub exit: Allowed,
    /// Secondary VM-exit controls that may be 1.
    pub secondary_exit: u64,
    /// VM-entry controls (the TRUE MSR).
    pub entry: Allowed,
    /// IA32_VMX_MISC: [`misc`].
    pub misc: u64,
    /// IA32_VMX_CR0_FIXED0: bits that must be 1 in CR0.
    pub cr0_fixed0: u64,
    /// IA32_VMX_CR0_FIXED1: bits that may be 1 in CR0.
    pub cr0_fixed1: u64,
    /// IA32_VMX_CR4_FIXED0: bits that must be 1 in CR4.
    pub cr4_fixed0: u64,
    /// IA32_VMX_CR4_FIXED1: bits that may be 1 in CR4.
    pub cr4_fixed1: u64,
    /// IA32_VMX_EPT_VPID_CAP: [`ept_vpid`].
    pub ept_vpid: u64,
    /// IA32_VMX_VMFUNC: VM functions that may be enabled.
    pub vm_functions: u64,
}

impl Capabilities {
    /// A full modern VT-x processor in software. Features that the processor at hand does not model are
    /// taken away with the `without_…` methods; CR4 bits that it has are set with
    /// [`Capabilities::with_cr4`].
    ///
    /// Not advertised: APIC-register virtualization, virtual-interrupt delivery, posted interrupts, VM functions, Intel PT, SGX, SPP, CET, FRED, tertiary controls,
    /// dual-monitor treatment.
    pub fn software() -> Self {
        let pin = PinControls::EXTERNAL_INTERRUPT_EXITING
            | PinControls::NMI_EXITING
            | PinControls::VIRTUAL_NMIS
            | PinControls::PREEMPTION_TIMER;
        Capabilities {
            revision: Vmcs::REVISION,
            basic: basic::MEMORY_TYPE_WB
                | basic::INS_OUTS_INFORMATION
                | basic::TRUE_CONTROLS
                | basic::ANY_ERROR_CODE,
            pin: Allowed::new(DEFAULT1_PIN, pin.bits()),
            primary: Allowed::new(0x0400_6172, software_primary().bits()),
            secondary: Allowed::new(0, software_secondary().bits()),
            tertiary: 0,
            exit: Allowed::new(0x0003_6dfb, software_exit().bits()),
            secondary_exit: 0,
            entry: Allowed::new(0x0000_11fb, software_entry().bits()),
            // The preemption timer counts every 2^5 TSC ticks; 4 CR3-target values; 512 MSRs a list.
            misc: 5
                | misc::STORE_LMA
                | misc::ACTIVITY_HLT
                | misc::ACTIVITY_SHUTDOWN
                | misc::ACTIVITY_WAIT_FOR_SIPI
                | 4 << 16
                | misc::VMWRITE_ANY_FIELD
                | misc::ZERO_LENGTH_INJECTION,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: 0xffff_ffff,
            cr4_fixed0: CR4_VMXE,
            // VME to OSXMMEXCPT, UMIP, LA57, VMXE, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE, PKS.
            cr4_fixed1: 0x0177_3fff,
            ept_vpid: ept_vpid::EXECUTE_ONLY
                | ept_vpid::WALK_4
                | ept_vpid::MEMORY_TYPE_UC
                | ept_vpid::MEMORY_TYPE_WB
                | ept_vpid::PAGE_2M
                | ept_vpid::PAGE_1G
                | ept_vpid::INVEPT
                | ept_vpid::ACCESSED_DIRTY
                | ept_vpid::INVEPT_SINGLE
                | ept_vpid::INVEPT_ALL
                | ept_vpid::INVVPID
                | ept_vpid::INVVPID_ADDRESS
                | ept_vpid::INVVPID_SINGLE
                | ept_vpid::INVVPID_ALL
                | ept_vpid::INVVPID_RETAIN_GLOBALS,
            vm_functions: 0,
        }
    }

    /// The value of a capability MSR; `None` where the processor has no such MSR.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let true_controls = self.basic & basic::TRUE_CONTROLS != 0;
        let secondary = self.secondary.may_be_one;
        Some(match index {
            msr::BASIC => self.basic | (REGION_SIZE as u64) << 32 | u64::from(self.revision),
            msr::PIN => self.pin.with_default1(DEFAULT1_PIN).msr(),
            msr::PRIMARY => self.primary.with_default1(DEFAULT1_PRIMARY).msr(),
            msr::EXIT => self.exit.with_default1(DEFAULT1_EXIT).msr(),
            msr::ENTRY => self.entry.with_default1(DEFAULT1_ENTRY).msr(),
            msr::MISC => self.misc,
            msr::CR0_FIXED0 => self.cr0_fixed0,
            msr::CR0_FIXED1 => self.cr0_fixed1,
            msr::CR4_FIXED0 => self.cr4_fixed0,
            msr::CR4_FIXED1 => self.cr4_fixed1,
            msr::VMCS_ENUM => self.highest_index() << 1,
            msr::SECONDARY if self.allows_primary(PrimaryControls::SECONDARY_CONTROLS) => {
                self.secondary.msr()
            }
            msr::EPT_VPID_CAP
                if secondary & (SecondaryControls::ENABLE_EPT | SecondaryControls::ENABLE_VPID).bits()
                    != 0 =>
            {
                self.ept_vpid
            }
            msr::TRUE_PIN if true_controls => self.pin.msr(),
            msr::TRUE_PRIMARY if true_controls => self.primary.msr(),
            msr::TRUE_EXIT if true_controls => self.exit.msr(),
            msr::TRUE_ENTRY if true_controls => self.entry.msr(),
            msr::VMFUNC if self.allows_secondary(SecondaryControls::ENABLE_VM_FUNCTIONS) => self.vm_functions,
            msr::TERTIARY if self.allows_primary(PrimaryControls::TERTIARY_CONTROLS) => self.tertiary,
            msr::SECONDARY_EXIT if self.allows_exit(ExitControls::SECONDARY_CONTROLS) => self.secondary_exit,
            _ => return None,
        })
    }

    /// Without these pin-based controls.
    pub fn without_pin(mut self, controls: PinControls) -> Self {
        self.pin = self.pin.without(controls.bits());
        self
    }

    /// Without these primary processor-based controls.
    pub fn without_primary(mut self, controls: PrimaryControls) -> Self {
        self.primary = self.primary.without(controls.bits());
        self
    }

    /// Without these secondary processor-based controls.
    pub fn without_secondary(mut self, controls: SecondaryControls) -> Self {
        self.secondary = self.secondary.without(controls.bits());
        self
    }

    /// With these secondary processor-based controls as well.
    pub fn with_secondary(mut self, controls: SecondaryControls) -> Self {
        self.secondary = self.secondary.with(controls.bits());
        self
    }

    /// Without these VM-exit controls.
    pub fn without_exit(mut self, controls: ExitControls) -> Self {
        self.exit = self.exit.without(controls.bits());
        self
    }

    /// Without these VM-entry controls.
    pub fn without_entry(mut self, controls: EntryControls) -> Self {
        self.entry = self.entry.without(controls.bits());
        self
    }

    /// Without these bits of IA32_VMX_EPT_VPID_CAP: [`ept_vpid`].
    pub fn without_ept_vpid(mut self, bits: u64) -> Self {
        self.ept_vpid &= !bits;
        self
    }

    /// VMWRITE to VM-exit information fields fails.
    pub fn without_vmwrite_any_field(mut self) -> Self {
        self.misc &= !misc::VMWRITE_ANY_FIELD;
        self
    }

    /// With these bits of CR4 supported, and VMXE.
    pub fn with_cr4(mut self, supported: u64) -> Self {
        self.cr4_fixed1 = supported | self.cr4_fixed0;
        self
    }

    /// Whether all these pin-based controls may be 1.
    pub const fn allows_pin(&self, controls: PinControls) -> bool {
        self.pin.may_be_one & controls.bits() == controls.bits()
    }

    /// Whether all these primary processor-based controls may be 1.
    pub const fn allows_primary(&self, controls: PrimaryControls) -> bool {
        self.primary.may_be_one & controls.bits() == controls.bits()
    }

    /// Whether all these secondary processor-based controls may be 1.
    pub const fn allows_secondary(&self, controls: SecondaryControls) -> bool {
        self.allows_primary(PrimaryControls::SECONDARY_CONTROLS)
            && self.secondary.may_be_one & controls.bits() == controls.bits()
    }

    /// Whether all these tertiary processor-based controls may be 1.
    pub const fn allows_tertiary(&self, controls: TertiaryControls) -> bool {
        self.allows_primary(PrimaryControls::TERTIARY_CONTROLS)
            && self.tertiary & controls.bits() == controls.bits()
    }

    /// Whether all these VM-exit controls may be 1.
    pub const fn allows_exit(&self, controls: ExitControls) -> bool {
        self.exit.may_be_one & controls.bits() == controls.bits()
    }

    /// Whether all these secondary VM-exit controls may be 1.
    pub const fn allows_secondary_exit(&self, controls: SecondaryExitControls) -> bool {
        self.allows_exit(ExitControls::SECONDARY_CONTROLS)
            && self.secondary_exit & controls.bits() == controls.bits()
    }

    /// Whether all these VM-entry controls may be 1.
    pub const fn allows_entry(&self, controls: EntryControls) -> bool {
        self.entry.may_be_one & controls.bits() == controls.bits()
    }

    /// Whether all these VM functions may be enabled.
    pub const fn allows_vm_functions(&self, functions: VmFunctions) -> bool {
        self.vm_functions & functions.bits() == functions.bits()
    }

    /// Whether VMWRITE reaches VM-exit information fields: IA32_VMX_MISC\[29\].
    pub const fn vmwrite_any_field(&self) -> bool {
        self.misc & misc::VMWRITE_ANY_FIELD != 0
    }

    /// How many CR3-target values there are: IA32_VMX_MISC\[24:16\].
    pub const fn cr3_targets(&self) -> u32 {
        (self.misc >> 16 & 0x1ff) as u32
    }

    /// How many MSRs a VM-entry or VM-exit list should have at most: IA32_VMX_MISC\[27:25\].
    pub const fn recommended_msr_count(&self) -> u32 {
        512 * ((self.misc >> 25 & 7) as u32 + 1)
    }

    /// The VMX-preemption timer counts down when this bit of the TSC changes: IA32_VMX_MISC\[4:0\].
    pub const fn preemption_timer_shift(&self) -> u32 {
        (self.misc & 0x1f) as u32
    }

    /// The highest index of a field there is.
    fn highest_index(&self) -> u64 {
        let known = Field::all().filter(|&field| self.supports_field(field));
        known.map(|field| u64::from(field.index())).max().unwrap_or(0)
    }
}

const CR4_VMXE: u64 = 1 << 13;

fn software_primary() -> PrimaryControls {
    use PrimaryControls as P;
    P::INTERRUPT_WINDOW_EXITING
        | P::TSC_OFFSETTING
        | P::HLT_EXITING
        | P::INVLPG_EXITING
        | P::MWAIT_EXITING
        | P::RDPMC_EXITING
        | P::RDTSC_EXITING
        | P::CR3_LOAD_EXITING
        | P::CR3_STORE_EXITING
        | P::CR8_LOAD_EXITING
        | P::CR8_STORE_EXITING
        | P::TPR_SHADOW
        | P::NMI_WINDOW_EXITING
        | P::MOV_DR_EXITING
        | P::UNCONDITIONAL_IO_EXITING
        | P::IO_BITMAPS
        | P::MONITOR_TRAP_FLAG
        | P::MSR_BITMAPS
        | P::MONITOR_EXITING
        | P::PAUSE_EXITING
        | P::SECONDARY_CONTROLS
}

fn software_secondary() -> SecondaryControls {
    use SecondaryControls as S;
    S::VIRTUALIZE_APIC_ACCESSES
        | S::ENABLE_EPT
        | S::DESCRIPTOR_TABLE_EXITING
        | S::ENABLE_RDTSCP
        | S::VIRTUALIZE_X2APIC
        | S::ENABLE_VPID
        | S::WBINVD_EXITING
        | S::UNRESTRICTED_GUEST
        | S::PAUSE_LOOP_EXITING
        | S::RDRAND_EXITING
        | S::ENABLE_INVPCID
        | S::VMCS_SHADOWING
        | S::RDSEED_EXITING
        | S::ENABLE_PML
        | S::EPT_VIOLATION_VE
        | S::ENABLE_XSAVES
        | S::TSC_SCALING
}

fn software_exit() -> ExitControls {
    use ExitControls as X;
    X::SAVE_DEBUG_CONTROLS
        | X::HOST_ADDRESS_SPACE_SIZE
        | X::ACKNOWLEDGE_INTERRUPT
        | X::SAVE_PAT
        | X::LOAD_PAT
        | X::SAVE_EFER
        | X::LOAD_EFER
        | X::SAVE_PREEMPTION_TIMER
}

fn software_entry() -> EntryControls {
    use EntryControls as N;
    N::LOAD_DEBUG_CONTROLS | N::IA32E_MODE_GUEST | N::LOAD_PAT | N::LOAD_EFER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_480_to_491_read_as_on_a_processor() {
        let caps = Capabilities::software();
        let basic = caps.msr(0x480).unwrap();
        assert_eq!(basic as u32, Vmcs::REVISION);
        assert_eq!(basic >> 31 & 1, 0);
        assert_eq!(basic >> 32 & 0x1fff, 4096);
        assert_eq!(basic >> 50 & 0xf, 6);
        for index in (0x480..=0x490).filter(|&i| i != msr::VMFUNC) {
            assert!(caps.msr(index).is_some(), "{index:#x}");
        }
        for index in [0x47f, 0x491, 0x492, 0x493, 0x494] {
            assert_eq!(caps.msr(index), None, "{index:#x}");
        }
    }

    #[test]
    fn control_msrs_are_consistent() {
        let caps = Capabilities::software();
        for (old, new, default1) in [
            (msr::PIN, msr::TRUE_PIN, DEFAULT1_PIN),
            (msr::PRIMARY, msr::TRUE_PRIMARY, DEFAULT1_PRIMARY),
            (msr::EXIT, msr::TRUE_EXIT, DEFAULT1_EXIT),
            (msr::ENTRY, msr::TRUE_ENTRY, DEFAULT1_ENTRY),
        ] {
            let old = Allowed::from_msr(caps.msr(old).unwrap());
            let new = Allowed::from_msr(caps.msr(new).unwrap());
            for allowed in [old, new] {
                assert_eq!(allowed.must_be_one & !allowed.may_be_one, 0);
            }
            assert_eq!(old.must_be_one, default1);
            assert_eq!(new.must_be_one & !default1, 0, "only default1 controls are ever forced");
            assert_eq!(old.may_be_one, new.may_be_one);
        }
    }

    #[test]
    fn allowed_settings() {
        let allowed = Allowed::new(0b0001, 0b0110);
        assert_eq!(allowed.msr(), 0b0111 << 32 | 0b0001);
        assert_eq!(Allowed::from_msr(allowed.msr()), allowed);
        for (controls, ok) in [(0b0001, true), (0b0111, true), (0b0000, false), (0b1001, false)] {
            assert_eq!(allowed.allows(controls), ok, "{controls:#b}");
            assert!(allowed.allows(allowed.adjust(controls)));
        }
    }

    #[test]
    fn features_go_with_their_fields_and_msrs() {
        use SecondaryControls as S;
        let caps = Capabilities::software().without_secondary(S::ENABLE_EPT | S::ENABLE_VPID);
        assert_eq!(caps.msr(msr::EPT_VPID_CAP), None);
        assert!(!caps.supports_field(Field::EptPointer));
        let caps = caps.without_primary(PrimaryControls::SECONDARY_CONTROLS);
        assert_eq!(caps.msr(msr::SECONDARY), None);
        assert!(!caps.supports_field(Field::SecondaryControls));
        assert!(caps.supports_field(Field::GuestRip));
        let pin = Capabilities::software().without_pin(PinControls::all());
        assert_eq!(pin.pin, Allowed::new(DEFAULT1_PIN, 0), "what must be one stays allowed");
    }
}
