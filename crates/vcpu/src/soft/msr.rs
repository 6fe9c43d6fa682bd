//! Model-specific registers: which ones exit, and where each is kept.

use trapline_irqchip::message::ApicMode;
use trapline_memory::Arena;
use trapline_softcpu::cpu::efer;
use trapline_vmx::Field;

use super::vcpu::SoftVcpu;
use crate::Paging;

/// IA32_PAT after power-on.
pub(super) const POWER_ON_PAT: u64 = 0x0007_0406_0007_0406;

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const SPEC_CTRL: u32 = 0x48;
const TSC_ADJUST: u32 = 0x3b;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const DEBUGCTL: u32 = 0x1d9;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const TSC_DEADLINE: u32 = 0x6e0;
const PKRS: u32 = 0x6e1;
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;
pub(super) const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// What a guest reads and writes without an exit: what is the processor's alone, and hot.
const PASSED_THROUGH: [u32; 15] = [
    SPEC_CTRL,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    PAT,
    EFER,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    TSC_AUX,
    MISC_ENABLE,
];

/// What belongs to the saved state, those of time last. FS and GS base and EFER are there already as parts
/// of the segments and special registers.
pub(super) fn saved() -> Vec<u32> {
    [&IN_PROCESSOR[..], &[TSC, TSC_ADJUST, TSC_DEADLINE]].concat()
}

/// What of [`saved`] the processor keeps: not time and the local APIC. At the end, MTRRs: the default type,
/// fixed ranges, eight variable ranges.
pub(super) const IN_PROCESSOR: [u32; 41] = [
    SPEC_CTRL,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    MISC_ENABLE,
    PAT,
    PKRS,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
    0x2ff,
    0x250,
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
    0x200,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
];

/// Fills the MSR bitmap at `page`: everything exits but [`PASSED_THROUGH`], and reading the TSC. With shadow
/// paging, IA32_EFER is the engine's.
pub(super) fn write_bitmap(arena: &Arena, page: u64, paging: Paging) {
    let mut bitmap = [0xffu8; 4096];
    let mut pass = |index: u32, write: bool| {
        let quarter = usize::from(index >= 0xc000_0000) * 1024 + usize::from(write) * 2048;
        let bit = index as usize & 0x1fff;
        if let Some(byte) = bitmap.get_mut(quarter + bit / 8) {
            *byte &= !(1 << (bit % 8));
        }
    };
    pass(TSC, false);
    let own = |index: &u32| paging == Paging::Ept || *index != EFER;
    for index in PASSED_THROUGH.into_iter().filter(own) {
        pass(index, false);
        pass(index, true);
    }
    arena.write_bytes(page, &bitmap);
}

/// RDMSR or WRMSR raises #GP.
#[derive(Debug)]
pub(super) struct GeneralProtection;

type MsrResult<T = ()> = Result<T, GeneralProtection>;

impl From<trapline_irqchip::lapic::GeneralProtection> for GeneralProtection {
    fn from(_: trapline_irqchip::lapic::GeneralProtection) -> Self {
        Self
    }
}

/// The VMCS field that holds an MSR while the processor is in root operation.
fn field(index: u32) -> Option<Field> {
    Some(match index {
        SYSENTER_CS => Field::GuestSysenterCs,
        SYSENTER_ESP => Field::GuestSysenterEsp,
        SYSENTER_EIP => Field::GuestSysenterEip,
        PAT => Field::GuestPat,
        EFER => Field::GuestEfer,
        FS_BASE => Field::GuestFsBase,
        GS_BASE => Field::GuestGsBase,
        DEBUGCTL => Field::GuestDebugctl,
        _ => return None,
    })
}

impl SoftVcpu {
    /// RDMSR as the guest sees it.
    pub(super) fn read_msr(&self, index: u32) -> MsrResult<u64> {
        if index == EFER {
            return Ok(self.guest_efer());
        }
        if let Some(value) = self.read_paravirtual(index) {
            return Ok(value);
        }
        if let Some(field) = field(index) {
            return Ok(self.root.cpu.vmcs_read(field));
        }
        let time = self.time();
        match index {
            TSC => Ok(time.tsc),
            TSC_ADJUST => Ok(self.tsc.adjust),
            APIC_BASE => Ok(self.apic_base()),
            TSC_DEADLINE | 0x800..=0x8ff => {
                let mut inbox = self.mailbox.inbox();
                let lapic = inbox.lapic.as_mut().ok_or(GeneralProtection)?;
                lapic.tick(time);
                if index == TSC_DEADLINE {
                    Ok(lapic.tsc_deadline())
                } else {
                    Ok(lapic.msr_read(index, time)?)
                }
            }
            _ => self.root.cpu.read_msr(index).map_err(|_| GeneralProtection),
        }
    }

    /// WRMSR as the guest does it.
    pub(super) fn write_msr(&mut self, index: u32, value: u64) -> MsrResult {
        if let Some(done) = self.write_paravirtual(index, value) {
            return done;
        }
        match index {
            // These check and act where they are.
            TSC | TSC_ADJUST | TSC_DEADLINE => self.write_time(index, value),
            APIC_BASE => {
                let x2apic = self.leaf(1, 0).is_some_and(|leaf| leaf.ecx & 1 << 21 != 0);
                if value & 1 << 10 != 0 && !x2apic {
                    return Err(GeneralProtection);
                }
                let bits = self.root.cpu.model.phys_bits();
                let mut inbox = self.mailbox.inbox();
                let lapic = inbox.lapic.as_mut().ok_or(GeneralProtection)?;
                lapic.set_apic_base(value, bits)?;
                Ok(())
            }
            _ if X2APIC.contains(&index) => {
                let time = self.time();
                let effect = {
                    let mut inbox = self.mailbox.inbox();
                    inbox.lapic.as_mut().ok_or(GeneralProtection)?.msr_write(index, value, time)?
                };
                self.perform(effect);
                Ok(())
            }
            DEBUGCTL if value == 0 => Ok(()),
            _ => match field(index) {
                // Passed through: only the host gets here.
                Some(_) => self.set_field_msr(index, value),
                None => self.root.cpu.write_msr(index, value).map_err(|_| GeneralProtection),
            },
        }
    }

    /// Writes an MSR as the host does: without what only binds the guest.
    pub(super) fn set_msr(&mut self, index: u32, value: u64) -> MsrResult {
        match index {
            APIC_BASE => self.set_apic_base(value),
            _ if self.read_paravirtual(index).is_none() && self.restores_as_nothing(index, value) => Ok(()),
            _ => self.write_msr(index, value),
        }
    }

    fn write_time(&mut self, index: u32, value: u64) -> MsrResult {
        let time = self.time();
        match index {
            TSC => self.shift_tsc(value.wrapping_sub(time.tsc)),
            TSC_ADJUST => self.shift_tsc(value.wrapping_sub(self.tsc.adjust)),
            _ => {
                let mut inbox = self.mailbox.inbox();
                inbox.lapic.as_mut().ok_or(GeneralProtection)?.set_tsc_deadline(value, time);
            }
        }
        Ok(())
    }

    /// Moves the time-stamp counter, which IA32_TSC_ADJUST keeps account of.
    fn shift_tsc(&mut self, by: u64) {
        self.tsc.offset = self.tsc.offset.wrapping_add(by);
        self.tsc.adjust = self.tsc.adjust.wrapping_add(by);
        self.clock_changed();
        self.root.cpu.vmcs_write(Field::TscOffset, self.tsc.offset);
    }

    fn set_field_msr(&mut self, index: u32, value: u64) -> MsrResult {
        if index == EFER {
            return self.set_efer(value);
        }
        let canonical = self.root.cpu.canonical_in_register(value);
        let pat = value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7));
        let allowed = match index {
            PAT => pat,
            SYSENTER_CS => value >> 32 == 0,
            _ => canonical,
        };
        match field(index) {
            Some(field) if allowed => {
                self.root.cpu.vmcs_write(field, value);
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }

    /// IA32_EFER, LMA included.
    pub(super) fn set_efer(&mut self, value: u64) -> MsrResult {
        if value & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) != 0 {
            return Err(GeneralProtection);
        }
        self.set_guest_efer(value);
        Ok(())
    }

    /// IA32_APIC_BASE. Without local APICs it is what it is after power-on, but disabled.
    pub(super) fn apic_base(&self) -> u64 {
        self.mailbox.inbox().lapic.as_ref().map_or(0xfee0_0100, |lapic| lapic.apic_base())
    }

    /// Sets IA32_APIC_BASE, whatever the mode before.
    pub(super) fn set_apic_base(&mut self, value: u64) -> MsrResult {
        const ENABLED: u64 = 1 << 11;
        const X2APIC: u64 = 1 << 10;
        let bits = self.root.cpu.model.phys_bits();
        let mut inbox = self.mailbox.inbox();
        let Some(lapic) = inbox.lapic.as_mut() else { return Ok(()) };
        if lapic.apic_base() == value {
            return Ok(());
        }
        if lapic.mode() == ApicMode::X2Apic && value & X2APIC == 0 {
            lapic.set_apic_base(value & !(ENABLED | X2APIC), bits)?;
        }
        if lapic.mode() == ApicMode::Disabled && value & X2APIC != 0 {
            lapic.set_apic_base(value & !X2APIC | ENABLED, bits)?;
        }
        lapic.set_apic_base(value, bits)?;
        Ok(())
    }
}
