//! The TPR shadow, the APIC-access page and virtualized x2APIC accesses (SDM vol. 3 chapter 30).

use trapline_vmx::controls::{PrimaryControls, SecondaryControls};
use trapline_vmx::exit::{ApicAccess, ApicAccessKind};
use trapline_vmx::{Field, Vmcs};

use super::{Controls, reason};
use crate::cpu::{Cpu, ExitInfo, Stop};
use crate::mmu::{Kind, PAGE};
use crate::msr::MsrError;

/// Offset of the task-priority register in an APIC page.
const TPR: u64 = 0x80;
/// The x2APIC's task-priority register.
const X2APIC_TPR: u32 = 0x808;

/// What is virtualized of the guest's APIC, as the controls of the VM entry say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Apic {
    /// The virtual-APIC page, with the TPR shadow.
    virtual_page: Option<u64>,
    /// The APIC-access page.
    pub access_page: Option<u64>,
    x2apic: bool,
    threshold: u8,
    /// VTPR is below the threshold: a VM exit before the next instruction.
    pub below: bool,
}

impl Apic {
    pub fn new(vmcs: &Vmcs, ctl: &Controls) -> Self {
        let shadow = ctl.primary.contains(PrimaryControls::TPR_SHADOW);
        let has = |c| ctl.secondary.contains(c);
        let accesses = has(SecondaryControls::VIRTUALIZE_APIC_ACCESSES);
        Self {
            virtual_page: shadow.then(|| vmcs.read(Field::VirtualApicAddress)),
            access_page: accesses.then(|| vmcs.read(Field::ApicAccessAddress) & !(PAGE - 1)),
            x2apic: has(SecondaryControls::VIRTUALIZE_X2APIC),
            threshold: vmcs.read(Field::TprThreshold) as u8 & 15,
            below: false,
        }
    }
}

impl Cpu {
    /// After VM entry: a VM exit if VTPR is below the threshold already. Without virtualized APIC accesses
    /// the entry would have failed.
    pub(super) fn check_threshold_on_entry(&mut self) {
        if self.vmx.apic.access_page.is_some() && self.vmx.apic.virtual_page.is_some() {
            self.tpr_virtualization();
        }
    }

    /// A VM exit before the next instruction if VTPR is below the threshold.
    fn tpr_virtualization(&mut self) {
        let below = self.virtual_tpr().is_some_and(|v| v >> 4 < self.vmx.apic.threshold);
        self.vmx.apic.below = below;
        self.vmx.arm(self.icount);
    }

    /// VTPR, in non-root operation with the TPR shadow.
    pub(crate) fn virtual_tpr(&self) -> Option<u8> {
        let page = self.vmx.apic.virtual_page.filter(|_| self.nonroot)?;
        Some(self.arena.read_u64(page + TPR).unwrap_or(0) as u8)
    }

    /// Writes VTPR (the other three bytes become zero); a VM exit follows if it is below the threshold.
    pub(crate) fn set_virtual_tpr(&mut self, v: u8) {
        if let Some(page) = self.vmx.apic.virtual_page {
            // Its address has been checked against the physical-address width; beyond memory the write
            // is lost, as on a bus.
            let _ = self.arena.write_bytes(page + TPR, &u32::from(v).to_le_bytes());
            self.tpr_virtualization();
        }
    }

    /// RDMSR of an x2APIC register that is virtualized.
    pub(crate) fn read_virtual_x2apic(&self, msr: u32) -> Option<u64> {
        (msr == X2APIC_TPR && self.vmx.apic.x2apic).then(|| self.virtual_tpr().map(u64::from))?
    }

    /// WRMSR to an x2APIC register that is virtualized.
    pub(crate) fn write_virtual_x2apic(&mut self, msr: u32, v: u64) -> Option<Result<(), MsrError>> {
        self.read_virtual_x2apic(msr)?;
        if v >> 8 != 0 {
            return Some(Err(MsrError::Value(msr, v)));
        }
        self.set_virtual_tpr(v as u8);
        Some(Ok(()))
    }

    /// Whether host-physical `hpa` lies in the APIC-access page.
    #[inline]
    pub(crate) fn in_apic_page(&self, hpa: u64) -> bool {
        self.vmx.apic.access_page == Some(hpa & !(PAGE - 1))
    }

    /// A read of the APIC-access page that is virtualized: of VTPR, inside the register's four bytes.
    pub(crate) fn read_apic_page(&self, offset: u64, size: usize) -> Option<u32> {
        let inside = (TPR..TPR + 4).contains(&offset) && offset + size as u64 <= TPR + 4;
        if !inside || self.delivering.is_some() {
            return None;
        }
        let page = self.vmx.apic.virtual_page?;
        let v = self.arena.read_u64(page + TPR)? as u32;
        Some(v >> (8 * (offset - TPR)))
    }

    /// A write to the APIC-access page. `Ok(false)`: it is not virtualized. A virtualized one may cause a
    /// VM exit after its instruction, so that the instruction must run alone: if it does not, it is
    /// stopped, to start over.
    pub(crate) fn write_apic_page(&mut self, offset: u64, from: &[u8]) -> Result<bool, Stop> {
        let inside = (TPR..TPR + 4).contains(&offset) && offset + from.len() as u64 <= TPR + 4;
        let Some(page) = self.vmx.apic.virtual_page.filter(|_| inside && self.delivering.is_none()) else {
            return Ok(false);
        };
        if !self.mmu.replay.alone() {
            self.mmu.replay.run_alone();
            self.pending = crate::cpu::Pending::None;
            return Err(Stop);
        }
        let _ = self.arena.write_bytes(page + offset, from);
        let v = self.virtual_tpr().unwrap_or(0);
        self.set_virtual_tpr(v);
        Ok(true)
    }

    /// The VM exit of an access to the APIC-access page.
    pub(crate) fn apic_exit(&self, offset: u64, kind: Kind) -> ExitInfo {
        let kind = match kind {
            _ if self.delivering.is_some() => ApicAccessKind::EventDelivery,
            Kind::Read => ApicAccessKind::Read,
            Kind::Write => ApicAccessKind::Write,
            Kind::Fetch => ApicAccessKind::Fetch,
        };
        let q = ApicAccess::new().with_offset(offset as u16 & 0xfff).with_kind_number(kind as u8);
        ExitInfo { reason: reason::APIC_ACCESS, qualification: q.into_bits(), ..ExitInfo::default() }
    }
}
