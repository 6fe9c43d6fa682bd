//! The register page in the form of `struct kvm_lapic_state`.

use trapline_device::RestoreError;

use super::regs::{DIVIDE_WRITABLE, VERSION, lvt_entry, set_index};
use super::timer::{Mode, Run};
use super::{LocalApic, LvtEntry, Time, reg, svr};
use crate::message::ApicMode;

/// Bytes of the page that KVM knows.
const LEN: usize = 1024;

/// The registers that are in the page, first to last.
fn registers() -> impl Iterator<Item = u32> {
    (0..LEN as u32).step_by(16)
}

impl LocalApic {
    /// The register page as `KVM_GET_LAPIC` has it. `x2apic_ids` tells the form of the ID in x2APIC
    /// mode: 32 bits wide, as with `KVM_X2APIC_API_USE_32BIT_IDS`, or in bits 31:24 as without.
    ///
    /// IA32_APIC_BASE and IA32_TSC_DEADLINE are MSRs and not in it, nor are errors that ESR does not
    /// show yet and the levels of the pins.
    pub fn kvm_state(&self, time: Time, x2apic_ids: bool) -> [u8; LEN] {
        let mut page = [0; LEN];
        for register in registers() {
            let value = self.kvm_register(register, time, x2apic_ids).to_le_bytes();
            let place = page.iter_mut().skip(register as usize);
            place.zip(value).for_each(|(to, from)| *to = from);
        }
        page
    }

    fn kvm_register(&self, register: u32, time: Time, x2apic_ids: bool) -> u32 {
        let x2apic = self.mode() == ApicMode::X2Apic;
        if let Some(entry) = lvt_entry(register) {
            return self.lvt.get(entry);
        }
        match register {
            reg::ID if x2apic && x2apic_ids => self.id,
            reg::ID if x2apic => self.id << 24,
            reg::ID => u32::from(self.xapic_id) << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::APR if !x2apic => self.arbitration_priority().into(),
            reg::PPR => self.ppr().into(),
            reg::LDR if x2apic => self.x2apic_ldr(),
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.register(set_index(register, reg::ISR)),
            reg::TMR..reg::IRR => self.tmr.register(set_index(register, reg::TMR)),
            reg::IRR..reg::ESR => self.irr.register(set_index(register, reg::IRR)),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::INITIAL_COUNT => self.timer.initial,
            reg::CURRENT_COUNT => self.timer.count(time.ns),
            reg::DIVIDE => self.timer.divide,
            _ => 0,
        }
    }

    /// Takes the registers from a page as `KVM_SET_LAPIC` does. IA32_APIC_BASE must have been set
    /// before, IA32_TSC_DEADLINE must be set after.
    ///
    /// # Errors
    /// When the page belongs to another APIC ID in x2APIC mode, or requests or serves a vector below 16.
    pub fn set_kvm_state(&mut self, page: &[u8; LEN], time: Time) -> Result<(), RestoreError> {
        let mut new = Self { lint: self.lint, base: self.base, ..Self::new(self.id, false) };
        for register in registers() {
            let mut bytes = [0; 4];
            let from = page.iter().skip(register as usize);
            bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            new.set_kvm_register(register, u32::from_le_bytes(bytes), time)?;
        }
        if new.irr.has_illegal() || new.isr.has_illegal() {
            return Err(refuse("a vector below 16 is requested or in service".to_owned()));
        }
        *self = new;
        Ok(())
    }

    fn set_kvm_register(&mut self, register: u32, value: u32, time: Time) -> Result<(), RestoreError> {
        let x2apic = self.mode() == ApicMode::X2Apic;
        if let Some(entry) = lvt_entry(register) {
            self.lvt.set(entry, value & entry.writable());
        }
        match register {
            reg::ID if x2apic && value != self.id << 24 && value != self.id => {
                return Err(refuse(format!("ID register is {value:#x}, APIC ID {}", self.id)));
            }
            reg::ID if x2apic => {}
            reg::ID => self.xapic_id = (value >> 24) as u8,
            reg::TPR => self.tpr = value as u8,
            reg::LDR if !x2apic => self.ldr = value & 0xff00_0000,
            reg::DFR => self.dfr = value | 0x0fff_ffff,
            reg::SVR => self.svr = value & svr::WRITABLE,
            reg::ISR..reg::TMR => self.isr.set_register(set_index(register, reg::ISR), value),
            reg::TMR..reg::IRR => self.tmr.set_register(set_index(register, reg::TMR), value),
            reg::IRR..reg::ESR => self.irr.set_register(set_index(register, reg::IRR), value),
            reg::ESR => self.esr = value,
            reg::ICR => self.icr = self.icr & !0xffff_ffff | u64::from(value & !(1 << 12)),
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            reg::INITIAL_COUNT => self.timer.initial = value,
            // The divisor comes last in the page: the count starts with it.
            reg::CURRENT_COUNT => self.timer.run = Run::Counting(value.into()),
            reg::DIVIDE => {
                let Run::Counting(count) = self.timer.run else { return Ok(()) };
                self.timer.divide = value & DIVIDE_WRITABLE;
                let deadline = Mode::of(self.lvt.get(LvtEntry::Timer)) == Mode::TscDeadline;
                self.timer.start(if deadline { 0 } else { count as u32 }, time.ns);
            }
            _ => {}
        }
        Ok(())
    }
}

fn refuse(what: String) -> RestoreError {
    RestoreError { device: "lapic", what }
}
