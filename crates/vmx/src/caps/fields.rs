//! Which fields a processor has (Intel SDM vol. 3, Appendix B, notes to the tables).

use super::{Capabilities, basic};
use crate::controls::{
    EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls, SecondaryExitControls,
    TertiaryControls, VmFunctions,
};
use crate::field::Field;

impl Capabilities {
    /// Whether the processor has this field: most came with the control that uses them.
    #[inline]
    pub fn supports_field(&self, field: Field) -> bool {
        use Field as F;
        use SecondaryControls as S;
        use TertiaryControls as T;
        match field {
            F::Vpid => self.allows_secondary(S::ENABLE_VPID),
            F::PostedInterruptVector | F::PostedInterruptDescriptor => {
                self.allows_pin(PinControls::POSTED_INTERRUPTS)
            }
            F::EptpIndex => self.allows_secondary(S::EPT_VIOLATION_VE),
            F::VirtualizationExceptionAddress => self.allows_secondary(S::EPT_VIOLATION_VE),
            F::HlatPrefixSize | F::HlatPointer => self.allows_tertiary(T::ENABLE_HLAT),
            F::LastPidPointerIndex | F::PidPointerTable => self.allows_tertiary(T::IPI_VIRTUALIZATION),
            F::GuestInterruptStatus
            | F::EoiExitBitmap0
            | F::EoiExitBitmap1
            | F::EoiExitBitmap2
            | F::EoiExitBitmap3 => self.allows_secondary(S::VIRTUAL_INTERRUPT_DELIVERY),
            F::PmlIndex | F::PmlAddress => self.allows_secondary(S::ENABLE_PML),
            F::GuestUinv => {
                self.allows_entry(EntryControls::LOAD_UINV) || self.allows_exit(ExitControls::CLEAR_UINV)
            }
            F::MsrBitmap => self.allows_primary(PrimaryControls::MSR_BITMAPS),
            F::VirtualApicAddress | F::TprThreshold => self.allows_primary(PrimaryControls::TPR_SHADOW),
            F::ApicAccessAddress => self.allows_secondary(S::VIRTUALIZE_APIC_ACCESSES),
            F::VmFunctionControls => self.allows_secondary(S::ENABLE_VM_FUNCTIONS),
            F::EptpListAddress => self.allows_vm_functions(VmFunctions::EPTP_SWITCHING),
            F::EptPointer
            | F::GuestPhysicalAddress
            | F::GuestPdpte0
            | F::GuestPdpte1
            | F::GuestPdpte2
            | F::GuestPdpte3 => self.allows_secondary(S::ENABLE_EPT),
            F::VmreadBitmap | F::VmwriteBitmap => self.allows_secondary(S::VMCS_SHADOWING),
            F::XssExitingBitmap => self.allows_secondary(S::ENABLE_XSAVES),
            F::EnclsExitingBitmap => self.allows_secondary(S::ENCLS_EXITING),
            F::SppTablePointer => self.allows_secondary(S::SUB_PAGE_WRITE_PERMISSIONS),
            F::TscMultiplier => self.allows_secondary(S::TSC_SCALING),
            F::SecondaryControls => self.allows_primary(PrimaryControls::SECONDARY_CONTROLS),
            F::TertiaryControls => self.allows_primary(PrimaryControls::TERTIARY_CONTROLS),
            F::EnclvExitingBitmap => self.allows_secondary(S::ENCLV_EXITING),
            F::LowPasidDirectory | F::HighPasidDirectory => self.allows_secondary(S::PASID_TRANSLATION),
            // Shared EPT is TDX's: no control that is modelled brings it.
            F::SharedEptPointer => false,
            F::PconfigExitingBitmap => self.allows_secondary(S::ENABLE_PCONFIG),
            F::SecondaryExitControls => self.allows_exit(ExitControls::SECONDARY_CONTROLS),
            F::SpecCtrlMask | F::SpecCtrlShadow => self.allows_tertiary(T::VIRTUALIZE_SPEC_CTRL),
            F::PleGap | F::PleWindow => self.allows_secondary(S::PAUSE_LOOP_EXITING),
            F::InstructionTimeout => self.allows_secondary(S::INSTRUCTION_TIMEOUT),
            F::PreemptionTimer => self.allows_pin(PinControls::PREEMPTION_TIMER),
            F::GuestPat => {
                self.allows_entry(EntryControls::LOAD_PAT) || self.allows_exit(ExitControls::SAVE_PAT)
            }
            F::HostPat => self.allows_exit(ExitControls::LOAD_PAT),
            F::GuestEfer => {
                self.allows_entry(EntryControls::LOAD_EFER) || self.allows_exit(ExitControls::SAVE_EFER)
            }
            F::HostEfer => self.allows_exit(ExitControls::LOAD_EFER),
            F::GuestPerfGlobalCtrl => {
                self.allows_entry(EntryControls::LOAD_PERF_GLOBAL_CTRL)
                    || self.allows_exit(ExitControls::SAVE_PERF_GLOBAL_CTRL)
            }
            F::HostPerfGlobalCtrl => self.allows_exit(ExitControls::LOAD_PERF_GLOBAL_CTRL),
            F::GuestBndcfgs => {
                self.allows_entry(EntryControls::LOAD_BNDCFGS)
                    || self.allows_exit(ExitControls::CLEAR_BNDCFGS)
            }
            F::GuestRtitCtl => {
                self.allows_entry(EntryControls::LOAD_RTIT_CTL)
                    || self.allows_exit(ExitControls::CLEAR_RTIT_CTL)
            }
            F::GuestLbrCtl => {
                self.allows_entry(EntryControls::LOAD_LBR_CTL)
                    || self.allows_exit(ExitControls::CLEAR_LBR_CTL)
            }
            F::GuestPkrs => self.allows_entry(EntryControls::LOAD_PKRS),
            F::HostPkrs => self.allows_exit(ExitControls::LOAD_PKRS),
            F::GuestSCet | F::GuestSsp | F::GuestInterruptSspTable => {
                self.allows_entry(EntryControls::LOAD_CET_STATE)
            }
            F::HostSCet | F::HostSsp | F::HostInterruptSspTable => {
                self.allows_exit(ExitControls::LOAD_CET_STATE)
            }
            F::InjectedEventData
            | F::OriginalEventData
            | F::GuestFredConfig
            | F::GuestFredRsp1
            | F::GuestFredRsp2
            | F::GuestFredRsp3
            | F::GuestFredStklvls
            | F::GuestFredSsp1
            | F::GuestFredSsp2
            | F::GuestFredSsp3 => self.allows_entry(EntryControls::LOAD_FRED),
            F::HostFredConfig
            | F::HostFredRsp1
            | F::HostFredRsp2
            | F::HostFredRsp3
            | F::HostFredStklvls
            | F::HostFredSsp1
            | F::HostFredSsp2
            | F::HostFredSsp3 => self.allows_secondary_exit(SecondaryExitControls::LOAD_FRED),
            F::ExecutiveVmcsPointer => self.basic & basic::DUAL_MONITOR != 0,
            F::Cr3Target0 | F::Cr3Target1 | F::Cr3Target2 | F::Cr3Target3 => {
                self.cr3_targets() > (field.slot() - F::Cr3Target0.slot()) as u32
            }
            _ => true,
        }
    }
}
