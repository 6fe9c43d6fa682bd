//! IA32_APIC_BASE (SDM vol. 3 §11.4.4, §11.12.5).

use super::{Effect, GeneralProtection, LocalApic};
use crate::message::ApicMode;

/// The boot processor.
pub(super) const BSP: u64 = 1 << 8;
pub(super) const X2APIC: u64 = 1 << 10;
pub(super) const ENABLED: u64 = 1 << 11;
/// After reset: enabled, registers at 0xfee0_0000.
pub(super) const DEFAULT: u64 = 0xfee0_0000 | ENABLED;
const RESERVED: u64 = 0x2ff;
const PAGE: u64 = !0xfff;

/// The mode that a value of the MSR means; `None` for the combination that does not exist.
pub(super) fn mode(base: u64) -> Option<ApicMode> {
    match (base & ENABLED != 0, base & X2APIC != 0) {
        (false, false) => Some(ApicMode::Disabled),
        (true, false) => Some(ApicMode::XApic),
        (true, true) => Some(ApicMode::X2Apic),
        (false, true) => None,
    }
}

impl LocalApic {
    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// The mode that IA32_APIC_BASE has put the local APIC into.
    pub fn mode(&self) -> ApicMode {
        mode(self.base).unwrap_or(ApicMode::Disabled)
    }

    /// The physical address of the register page, in xAPIC mode.
    pub fn page(&self) -> Option<u64> {
        (self.mode() == ApicMode::XApic).then_some(self.base & PAGE)
    }

    /// Writes IA32_APIC_BASE on a processor with `physical_bits` address bits. The owner refuses bit
    /// 10 itself where its CPUID does not name x2APIC. Bit 8, which tells the boot processor, does
    /// not change. Switching off resets all registers.
    ///
    /// # Errors
    /// [`GeneralProtection`] for reserved bits and for the mode changes that are not allowed.
    pub fn set_apic_base(
        &mut self,
        value: u64,
        physical_bits: u8,
    ) -> Result<Option<Effect>, GeneralProtection> {
        let beyond = u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
        if value & (RESERVED | beyond) != 0 {
            return Err(GeneralProtection);
        }
        let new = mode(value).ok_or(GeneralProtection)?;
        let old = self.mode();
        match (old, new) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => {
                return Err(GeneralProtection);
            }
            (ApicMode::Disabled, _) | (_, ApicMode::XApic) => {}
            // All is as after power-on, the ID too.
            (_, ApicMode::Disabled) => {
                self.init();
                self.xapic_id = self.id as u8;
            }
            // Interrupts stay as they are; the destination half of ICR is cleared.
            (_, ApicMode::X2Apic) if old == ApicMode::XApic => self.icr &= 0xffff_ffff,
            (_, ApicMode::X2Apic) => {}
        }
        let base = value & !BSP | self.base & BSP;
        let changed = std::mem::replace(&mut self.base, base) != base;
        Ok(changed.then_some(Effect::AddressChanged))
    }
}
