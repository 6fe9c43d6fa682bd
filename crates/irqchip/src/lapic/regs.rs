//! The registers, in the memory page (SDM vol. 3 §11.4.1) and as MSRs (§11.12.1).

use trapline_device::AccessSize;

use super::lvt::{LEVEL, MASKED, REMOTE_IRR};
use super::{Effect, GeneralProtection, LocalApic, LvtEntry, Time, error, svr};
use crate::message::{ApicMode, DeliveryMode};

/// Register offsets in the page; MSR 0x800 + offset / 16 in x2APIC mode.
pub mod reg {
    /// APIC ID.
    pub const ID: u32 = 0x020;
    /// Version.
    pub const VERSION: u32 = 0x030;
    /// Task priority.
    pub const TPR: u32 = 0x080;
    /// Arbitration priority; xAPIC only.
    pub const APR: u32 = 0x090;
    /// Processor priority.
    pub const PPR: u32 = 0x0a0;
    /// End of interrupt.
    pub const EOI: u32 = 0x0b0;
    /// Remote read; xAPIC only.
    pub const RRD: u32 = 0x0c0;
    /// Logical destination.
    pub const LDR: u32 = 0x0d0;
    /// Destination format; xAPIC only.
    pub const DFR: u32 = 0x0e0;
    /// Spurious-interrupt vector.
    pub const SVR: u32 = 0x0f0;
    /// In-service, the first of eight.
    pub const ISR: u32 = 0x100;
    /// Trigger mode, the first of eight.
    pub const TMR: u32 = 0x180;
    /// Interrupt request, the first of eight.
    pub const IRR: u32 = 0x200;
    /// Error status.
    pub const ESR: u32 = 0x280;
    /// LVT corrected machine check.
    pub const LVT_CMCI: u32 = 0x2f0;
    /// Interrupt command; 64 bits wide in x2APIC mode.
    pub const ICR: u32 = 0x300;
    /// Interrupt command, upper half; xAPIC only.
    pub const ICR_HIGH: u32 = 0x310;
    /// LVT timer.
    pub const LVT_TIMER: u32 = 0x320;
    /// LVT thermal sensor.
    pub const LVT_THERMAL: u32 = 0x330;
    /// LVT performance counters.
    pub const LVT_PERFORMANCE: u32 = 0x340;
    /// LVT LINT0.
    pub const LVT_LINT0: u32 = 0x350;
    /// LVT LINT1.
    pub const LVT_LINT1: u32 = 0x360;
    /// LVT error.
    pub const LVT_ERROR: u32 = 0x370;
    /// Initial count.
    pub const INITIAL_COUNT: u32 = 0x380;
    /// Current count.
    pub const CURRENT_COUNT: u32 = 0x390;
    /// Divide configuration.
    pub const DIVIDE: u32 = 0x3e0;
    /// Self IPI; x2APIC only.
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Version 0x14, seven LVT entries, EOI-broadcast suppression.
pub(super) const VERSION: u32 = 0x14 | 6 << 16 | 1 << 24;
pub(super) const DIVIDE_WRITABLE: u32 = 0xb;
/// ICR bits that exist; bits 31:20, 17:16 and 13 are reserved.
const ICR_LOW: u64 = 0x000c_dfff;
/// The first MSR of x2APIC mode.
const MSR_BASE: u32 = 0x800;

/// A register that does not exist, or not for this direction.
struct Illegal;

pub(super) fn lvt_entry(register: u32) -> Option<LvtEntry> {
    Some(match register {
        reg::LVT_CMCI => LvtEntry::Cmci,
        reg::LVT_TIMER => LvtEntry::Timer,
        reg::LVT_THERMAL => LvtEntry::Thermal,
        reg::LVT_PERFORMANCE => LvtEntry::Performance,
        reg::LVT_LINT0 => LvtEntry::Lint0,
        reg::LVT_LINT1 => LvtEntry::Lint1,
        reg::LVT_ERROR => LvtEntry::Error,
        _ => return None,
    })
}

/// The place of a register in one of the vector sets that starts at `first`.
pub(super) fn set_index(register: u32, first: u32) -> u8 {
    (register.saturating_sub(first) >> 4) as u8 & 7
}

impl LocalApic {
    /// Reads the register at an offset of the page, in xAPIC mode. The timer is as of `time`.
    pub fn read(&mut self, register: u32, time: Time) -> u32 {
        let value = match register {
            reg::ID => Ok(u32::from(self.xapic_id) << 24),
            reg::APR => Ok(self.arbitration_priority().into()),
            reg::EOI | reg::RRD => Ok(0),
            reg::LDR => Ok(self.ldr),
            reg::DFR => Ok(self.dfr),
            reg::ICR_HIGH => Ok((self.icr >> 32) as u32),
            _ => self.read_common(register, time),
        };
        value.unwrap_or_else(|Illegal| {
            self.raise_error(error::ILLEGAL_REGISTER);
            0
        })
    }

    /// Writes the register at an offset of the page, in xAPIC mode.
    pub fn write(&mut self, register: u32, value: u32, time: Time) -> Option<Effect> {
        let effect = match register {
            reg::ID => {
                self.xapic_id = (value >> 24) as u8;
                Ok(Some(Effect::AddressChanged))
            }
            reg::LDR => {
                self.ldr = value & 0xff00_0000;
                Ok(Some(Effect::AddressChanged))
            }
            reg::DFR => {
                self.dfr = value | 0x0fff_ffff;
                Ok(Some(Effect::AddressChanged))
            }
            reg::ICR => {
                let high = self.icr & !0xffff_ffff;
                Ok(self.write_icr(high | u64::from(value) & ICR_LOW))
            }
            reg::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                Ok(None)
            }
            _ => self.write_common(register, value, time),
        };
        effect.unwrap_or_else(|Illegal| {
            self.raise_error(error::ILLEGAL_REGISTER);
            None
        })
    }

    /// A read of any width from the page. Registers are the first four bytes of each sixteen; the
    /// others read zero. All-ones where there is no page, outside xAPIC mode.
    pub fn mmio_read(&mut self, offset: u64, size: AccessSize, time: Time) -> u64 {
        if self.mode() != ApicMode::XApic {
            return size.ones();
        }
        let byte = offset & 0xf;
        if byte >= 4 {
            return 0;
        }
        u64::from(self.read(offset as u32 & 0xff0, time)) >> (8 * byte) & size.ones()
    }

    /// A write of any width to the page. Only aligned ones of 32 bits (or more: the rest is
    /// dropped) reach a register, as the SDM demands them.
    pub fn mmio_write(&mut self, offset: u64, size: AccessSize, value: u64, time: Time) -> Option<Effect> {
        let aligned = offset & 0xf == 0 && size >= AccessSize::Dword;
        if self.mode() != ApicMode::XApic || !aligned {
            return None;
        }
        self.write(offset as u32 & 0xff0, value as u32, time)
    }

    /// RDMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// [`GeneralProtection`] outside x2APIC mode, and for registers that do not exist or cannot be
    /// read.
    pub fn msr_read(&mut self, msr: u32, time: Time) -> Result<u64, GeneralProtection> {
        match self.msr_register(msr)? {
            reg::ID => Ok(self.id.into()),
            reg::LDR => Ok(self.x2apic_ldr().into()),
            reg::ICR => Ok(self.icr),
            register => self.read_common(register, time).map(u64::from).map_err(|Illegal| GeneralProtection),
        }
    }

    /// WRMSR of 0x800 to 0x8ff.
    ///
    /// # Errors
    /// [`GeneralProtection`] outside x2APIC mode, for registers that do not exist or cannot be
    /// written, and for reserved bits.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        time: Time,
    ) -> Result<Option<Effect>, GeneralProtection> {
        let register = self.msr_register(msr)?;
        let writable = match register {
            reg::ICR => ICR_LOW | !0xffff_ffff,
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => svr::WRITABLE.into(),
            reg::INITIAL_COUNT => 0xffff_ffff,
            reg::DIVIDE => DIVIDE_WRITABLE.into(),
            // Delivery status and remote IRR are read-only, not reserved.
            _ => lvt_entry(register).map_or(0, |entry| u64::from(entry.writable() | 1 << 12 | REMOTE_IRR)),
        };
        if value & !writable != 0 {
            return Err(GeneralProtection);
        }
        match register {
            reg::ICR => Ok(self.write_icr(value)),
            reg::SELF_IPI => Ok(self.write_icr(1 << 18 | value)),
            _ => self.write_common(register, value as u32, time).map_err(|Illegal| GeneralProtection),
        }
    }

    fn msr_register(&self, msr: u32) -> Result<u32, GeneralProtection> {
        let index = msr.checked_sub(MSR_BASE).filter(|index| *index < 0x100);
        match index {
            Some(index) if self.mode() == ApicMode::X2Apic => Ok(index << 4),
            _ => Err(GeneralProtection),
        }
    }

    /// Registers that both modes have.
    fn read_common(&mut self, register: u32, time: Time) -> Result<u32, Illegal> {
        if let Some(entry) = lvt_entry(register) {
            return Ok(self.lvt.get(entry));
        }
        Ok(match register {
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::SVR => self.svr,
            reg::ISR..reg::TMR if register & 0xf == 0 => self.isr.register(set_index(register, reg::ISR)),
            reg::TMR..reg::IRR if register & 0xf == 0 => self.tmr.register(set_index(register, reg::TMR)),
            reg::IRR..reg::ESR if register & 0xf == 0 => self.irr.register(set_index(register, reg::IRR)),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::INITIAL_COUNT => self.timer.initial,
            reg::CURRENT_COUNT => {
                self.tick(time);
                self.timer.count(time.ns)
            }
            reg::DIVIDE => self.timer.divide,
            _ => return Err(Illegal),
        })
    }

    fn write_common(&mut self, register: u32, value: u32, time: Time) -> Result<Option<Effect>, Illegal> {
        if let Some(entry) = lvt_entry(register) {
            return Ok(self.write_lvt(entry, value, time));
        }
        Ok(match register {
            reg::TPR => {
                self.tpr = value as u8;
                None
            }
            reg::EOI => self.eoi().map(Effect::Eoi),
            reg::SVR => self.write_svr(value),
            reg::ESR => {
                self.esr = std::mem::take(&mut self.esr_pending);
                None
            }
            reg::INITIAL_COUNT => {
                self.set_initial_count(value, time);
                Some(Effect::TimerChanged)
            }
            reg::DIVIDE => {
                self.tick(time);
                self.timer.set_divide(value & DIVIDE_WRITABLE, time.ns);
                Some(Effect::TimerChanged)
            }
            _ => return Err(Illegal),
        })
    }

    fn write_svr(&mut self, value: u32) -> Option<Effect> {
        let was_enabled = self.software_enabled();
        self.svr = value & svr::WRITABLE;
        if !self.software_enabled() {
            self.lvt.mask_all();
        }
        (was_enabled != self.software_enabled()).then_some(Effect::AddressChanged)
    }

    fn write_lvt(&mut self, entry: LvtEntry, value: u32, time: Time) -> Option<Effect> {
        let mut value = value & entry.writable();
        if !self.software_enabled() {
            value |= MASKED;
        }
        match entry {
            LvtEntry::Timer => {
                self.set_timer_entry(value, time);
                return Some(Effect::TimerChanged);
            }
            LvtEntry::Lint0 => {
                // Remote IRR means something in a level-triggered fixed entry only.
                let fixed = DeliveryMode::from_bits(value >> 8) == Some(DeliveryMode::Fixed);
                if fixed && value & LEVEL != 0 {
                    value |= self.lvt.get(entry) & REMOTE_IRR;
                }
                self.lvt.set(entry, value);
                self.reassert_lint0();
            }
            _ => self.lvt.set(entry, value),
        }
        None
    }
}
