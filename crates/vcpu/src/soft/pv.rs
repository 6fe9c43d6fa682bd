//! What KVM offers its guests beyond a processor, with the same leaves, registers and hypercalls (Linux
//! Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst): a clock, interrupts that end without an exit, IPIs to
//! many processors at once, and to know who is not running.
//!
//! | what | by |
//! |---|---|
//! | wall clock at zero of the clock below | MSR 0x4b56_4d00, 0x11 |
//! | clock: the TSC with what to make nanoseconds of it | MSR 0x4b56_4d01, 0x12 |
//! | steal time; a halted processor is marked, and may be told to flush its TLB instead of getting an IPI | MSR 0x4b56_4d03 |
//! | end of interrupt by clearing a bit | MSR 0x4b56_4d04 |
//! | to wake a halted processor, IPIs | VMCALL, on AMD's processors VMMCALL |
//!
//! Left out: asynchronous page faults, polling control, clock pairing, yielding to another processor,
//! migration control.
//!
//! The guest says where in its memory the structures are. What is not within one slot of RAM is left alone.

use std::time::{Duration, SystemTime};

use kvm_bindings::kvm_cpuid_entry2;
use trapline_irqchip::lapic::LocalApic;
use trapline_irqchip::message::DeliveryMode;
use trapline_memory::shadow::ShadowRam;
use trapline_softcpu::cpu::reg;
use trapline_softcpu::cpuid::Vendor;
use trapline_vmx::Field;

use super::memory::Memory;
use super::msr::GeneralProtection;
use super::vcpu::SoftVcpu;
use super::vm::Machine;

/// Leaf 0x4000_0001, EAX.
mod feature {
    pub const CLOCK_OLD: u32 = 1;
    pub const NO_IO_DELAY: u32 = 1 << 1;
    pub const CLOCK: u32 = 1 << 3;
    pub const STEAL_TIME: u32 = 1 << 5;
    pub const EOI: u32 = 1 << 6;
    pub const UNHALT: u32 = 1 << 7;
    pub const TLB_FLUSH: u32 = 1 << 9;
    pub const SEND_IPI: u32 = 1 << 11;
    pub const CLOCK_STABLE: u32 = 1 << 24;
}

/// First of the leaves.
const LEAF: u32 = 0x4000_0000;

/// Model-specific registers.
pub(super) mod msr {
    pub const WALL_CLOCK_OLD: u32 = 0x11;
    pub const SYSTEM_TIME_OLD: u32 = 0x12;
    pub const WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub const STEAL_TIME: u32 = 0x4b56_4d03;
    pub const EOI: u32 = 0x4b56_4d04;
    /// Those that belong to the saved state.
    pub const SAVED: [u32; 4] = [WALL_CLOCK, SYSTEM_TIME, STEAL_TIME, EOI];
    /// What KVM has beside: it is saved there with these values by guests that were not told of it.
    pub const ASYNC_PF: u32 = 0x4b56_4d02;
    pub const LAST: u32 = 0x4b56_4d08;
}

/// Hypercalls, and what they return.
mod call {
    pub const POLL_IRQ: u64 = 1;
    pub const KICK_CPU: u64 = 5;
    pub const SEND_IPI: u64 = 10;
    pub const EPERM: i64 = 1;
    pub const EINVAL: i64 = 22;
    pub const ENOSYS: i64 = 1000;
}

/// Bit 0 of all registers but the wall clock's.
const ENABLED: u64 = 1;
/// Bits of the steal-time register that must be zero.
const STEAL_RESERVED: u64 = 0x3e;
/// Offsets and sizes of the structures.
const CLOCK_SIZE: u64 = 32;
const WALL_CLOCK_SIZE: u64 = 12;
const STEAL_SIZE: u64 = 64;
const STEAL_VERSION: u64 = 8;
const STEAL_PREEMPTED: u64 = 16;
/// Bits of the byte there: the processor does not run; it is to flush its TLB before it does.
const PREEMPTED: u64 = 1;
const FLUSH_TLB: u64 = 2;
/// Flag of the clock: reads of different processors never go back.
const TSC_STABLE: u8 = 1;
/// How often steal time is looked at.
const STEAL_PERIOD: u64 = 100_000_000;

/// A vCPU's part.
#[derive(Debug, Default)]
pub(super) struct Paravirtual {
    /// What the guest was told of, as in leaf 0x4000_0001.
    features: u32,
    system_time: u64,
    /// The structure must be written; else it is good for this setting of the machine's clock.
    clock_stale: bool,
    clock_setting: u64,
    steal_time: u64,
    /// When steal time was looked at last, and what it was: nanoseconds.
    stolen: Option<(u64, u64)>,
    /// The guest has been told that this vCPU does not run.
    preempted: bool,
    eoi: u64,
    /// The bit is set: clearing it ends the interrupt in service.
    eoi_offered: bool,
}

/// The leaves, in a machine with or without local APICs.
pub(super) fn leaves(local_apic: bool) -> [kvm_cpuid_entry2; 2] {
    let [ebx, ecx, edx] = [*b"KVMK", *b"VMKV", *b"M\0\0\0"].map(u32::from_le_bytes);
    let mut eax = feature::CLOCK_OLD
        | feature::CLOCK
        | feature::CLOCK_STABLE
        | feature::NO_IO_DELAY
        | feature::STEAL_TIME;
    if local_apic {
        eax |= feature::EOI | feature::UNHALT | feature::TLB_FLUSH | feature::SEND_IPI;
    }
    [
        kvm_cpuid_entry2 { function: LEAF, eax: LEAF + 1, ebx, ecx, edx, ..Default::default() },
        kvm_cpuid_entry2 { function: LEAF + 1, eax, ..Default::default() },
    ]
}

/// 2^`shift` and a fraction of 32 bits that make nanoseconds of ticks at `khz`.
fn scale(khz: u32) -> (i8, u32) {
    let khz = u128::from(khz.max(1));
    // 10^6 / khz, so that the fraction has its highest bit set.
    let fraction = |shift: i8| (1_000_000u128 << (32 - i32::from(shift))) / khz;
    let shift = (-31..=21).find(|&shift| fraction(shift) >> 32 == 0).unwrap_or(21);
    (shift, fraction(shift) as u32)
}

impl Machine {
    /// The wall clock when the paravirtual clock was zero.
    fn wall_clock_at_zero(&self) -> Duration {
        let offset = self.clock_offset();
        let shifted = |at: Duration| {
            let nanos = i128::try_from(at.as_nanos()).unwrap_or(0) - i128::from(offset);
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
        };
        match self.config.wall_clock {
            Some(at_zero) => shifted(at_zero),
            None => {
                let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                shifted(today.saturating_sub(Duration::from_nanos(self.ticks())))
            }
        }
    }
}

impl SoftVcpu {
    fn has(&self, feature: u32) -> bool {
        self.pv.features & feature != 0
    }

    /// The guest's CPUID leaves were set.
    pub(super) fn paravirtual_leaves_set(&mut self) {
        let signature = self.leaf(LEAF, 0).is_some_and(|leaf| leaf.ebx == u32::from_le_bytes(*b"KVMK"));
        let leaf = if signature { self.leaf(LEAF + 1, 0).map_or(0, |leaf| leaf.eax) } else { 0 };
        let offered =
            if self.machine.paravirtual() { leaves(self.machine.config.local_apic)[1].eax } else { 0 };
        self.pv.features = leaf & offered;
    }

    /// Whether VMCALL is a hypercall.
    pub(super) fn has_hypercalls(&self) -> bool {
        self.pv.features != 0
    }

    /// Whether VMMCALL, which raises #UD on this processor, is to be a hypercall: a guest takes the
    /// instruction that its processor's maker has.
    pub(super) fn traps_vmmcall(&self) -> bool {
        self.has_hypercalls() && self.machine.model.vendor == Vendor::Amd
    }

    /// INIT: everything is switched off.
    pub(super) fn reset_paravirtual(&mut self) {
        self.pv = Paravirtual { features: self.pv.features, ..Paravirtual::default() };
    }

    /// The time-stamp counter or the clock has been set.
    pub(super) fn clock_changed(&mut self) {
        self.pv.clock_stale = true;
    }

    /// RDMSR, if the register is one of these.
    pub(super) fn read_paravirtual(&self, index: u32) -> Option<u64> {
        Some(match index {
            msr::WALL_CLOCK_OLD if self.has(feature::CLOCK_OLD) => self.machine.wall_clock_register(),
            msr::WALL_CLOCK if self.has(feature::CLOCK) => self.machine.wall_clock_register(),
            msr::SYSTEM_TIME_OLD if self.has(feature::CLOCK_OLD) => self.pv.system_time,
            msr::SYSTEM_TIME if self.has(feature::CLOCK) => self.pv.system_time,
            msr::STEAL_TIME if self.has(feature::STEAL_TIME) => self.pv.steal_time,
            msr::EOI if self.has(feature::EOI) => self.pv.eoi,
            _ => return None,
        })
    }

    /// WRMSR, if the register is one of these. The structures themselves are written before VM entry.
    pub(super) fn write_paravirtual(
        &mut self,
        index: u32,
        value: u64,
    ) -> Option<Result<(), GeneralProtection>> {
        self.read_paravirtual(index)?;
        let checked = match index {
            msr::STEAL_TIME => value & STEAL_RESERVED == 0,
            msr::EOI => value & !ENABLED & 3 == 0,
            _ => true,
        };
        if !checked {
            return Some(Err(GeneralProtection));
        }
        match index {
            msr::WALL_CLOCK_OLD | msr::WALL_CLOCK => self.machine.set_wall_clock_register(value),
            msr::SYSTEM_TIME_OLD | msr::SYSTEM_TIME => {
                (self.pv.system_time, self.pv.clock_stale) = (value, true);
            }
            msr::STEAL_TIME => {
                // Counted from here on.
                (self.pv.steal_time, self.pv.stolen, self.pv.preempted) = (value, None, false);
            }
            _ => (self.pv.eoi, self.pv.eoi_offered) = (value, false),
        }
        Some(Ok(()))
    }

    /// Registers that KVM saves and that do nothing here, with the values that they have for a guest that was
    /// not told of them.
    pub(super) fn restores_as_nothing(&self, index: u32, value: u64) -> bool {
        let other = (msr::ASYNC_PF..=msr::LAST).contains(&index) && !msr::SAVED.contains(&index);
        let switched_off =
            msr::SAVED.contains(&index) || matches!(index, msr::WALL_CLOCK_OLD | msr::SYSTEM_TIME_OLD);
        other && value & !ENABLED == 0 || switched_off && value == 0
    }

    /// The guest asks for the wall clock at `gpa`.
    pub(super) fn write_wall_clock(&mut self, gpa: u64, memory: &Memory) {
        let Some(hpa) = memory.ram(gpa, WALL_CLOCK_SIZE).filter(|_| gpa != 0) else { return };
        let at_zero = self.machine.wall_clock_at_zero();
        let mut data = [0; 8];
        let (seconds, nanos) = data.split_at_mut(4);
        seconds.copy_from_slice(&(at_zero.as_secs() as u32).to_le_bytes());
        nanos.copy_from_slice(&at_zero.subsec_nanos().to_le_bytes());
        write_versioned(memory, hpa, hpa + 4, &data);
        memory.record(gpa, WALL_CLOCK_SIZE);
    }

    /// Before VM entry: brings the guest's structures up to date.
    pub(super) fn enter_paravirtual(&mut self, memory: &Memory) {
        if self.pv.features == 0 {
            return;
        }
        if self.pv.system_time & ENABLED != 0 {
            self.write_clock(memory);
        }
        if self.pv.steal_time & ENABLED != 0 {
            self.write_steal_time(memory);
        }
        if self.pv.eoi & ENABLED != 0 {
            self.offer_eoi(memory);
        }
    }

    fn write_clock(&mut self, memory: &Memory) {
        let setting = self.machine.clock_setting();
        if !self.pv.clock_stale && self.pv.clock_setting == setting {
            return;
        }
        (self.pv.clock_stale, self.pv.clock_setting) = (false, setting);
        let gpa = self.pv.system_time & !ENABLED;
        let Some(hpa) = memory.ram(gpa, CLOCK_SIZE) else { return };
        let ticks = self.root.cpu.raw_tsc();
        let (shift, fraction) = scale(self.tsc.khz);
        let mut data = [0; 28];
        let fields: [&[u8]; 5] = [
            &[0; 4],
            &self.tsc.at(ticks).to_le_bytes(),
            &self.machine.clock_at(ticks).to_le_bytes(),
            &fraction.to_le_bytes(),
            &[shift as u8, TSC_STABLE, 0, 0],
        ];
        data.iter_mut().zip(fields.concat()).for_each(|(to, from)| *to = from);
        write_versioned(memory, hpa, hpa + 4, &data);
        memory.record(gpa, CLOCK_SIZE);
    }

    fn write_steal_time(&mut self, memory: &Memory) {
        let gpa = self.pv.steal_time & !0x3f;
        let Some(hpa) = memory.ram(gpa, STEAL_SIZE) else { return };
        if std::mem::take(&mut self.pv.preempted) {
            let flags = memory.take_byte(hpa + STEAL_PREEMPTED);
            memory.record(gpa, STEAL_SIZE);
            if flags & FLUSH_TLB != 0 {
                self.flush_translations(memory);
            }
        }
        // Where time counts instructions, none is stolen.
        let now = self.machine.now();
        let due = self.pv.stolen.is_none_or(|(last, _)| now.saturating_sub(last) >= STEAL_PERIOD);
        if !due || self.machine.config.icount.is_some() {
            return;
        }
        let total = run_delay();
        let (_, before) = self.pv.stolen.replace((now, total)).unwrap_or((now, total));
        // Another thread may run the vCPU by now, with a count of its own.
        let more = total.saturating_sub(before);
        if more > 0 {
            let steal = memory.arena.read_u64(hpa).unwrap_or(0).wrapping_add(more);
            write_versioned(memory, hpa + STEAL_VERSION, hpa, &steal.to_le_bytes());
            memory.record(gpa, STEAL_SIZE);
        }
    }

    /// The vCPU is about to wait: others need not send it IPIs to flush its TLB.
    pub(super) fn mark_preempted(&mut self) {
        if self.pv.preempted || self.pv.steal_time & ENABLED == 0 || !self.has(feature::TLB_FLUSH) {
            return;
        }
        let machine = self.machine.clone();
        let memory = machine.gate.enter();
        let gpa = self.pv.steal_time & !0x3f;
        if let Some(hpa) = memory.ram(gpa, STEAL_SIZE) {
            memory.write(hpa + STEAL_PREEMPTED, &[PREEMPTED as u8]);
            memory.record(gpa, STEAL_SIZE);
            self.pv.preempted = true;
        }
    }

    /// Lets the guest end the interrupt in service without an exit, if there is nothing to do at its end:
    /// no other interrupt waits, and no I/O APIC is to be told.
    fn offer_eoi(&mut self, memory: &Memory) {
        let in_service = {
            let inbox = self.mailbox.inbox();
            let idle = |lapic: &&LocalApic| lapic.requested().is_none();
            inbox.lapic.as_ref().filter(idle).and_then(LocalApic::in_service)
        };
        let Some(vector) = in_service else { return };
        if self.machine.is_ioapic_level(vector) {
            return;
        }
        let gpa = self.pv.eoi & !ENABLED;
        if let Some(hpa) = memory.ram(gpa, 4) {
            memory.write(hpa, &1u32.to_le_bytes());
            memory.record(gpa, 4);
            self.pv.eoi_offered = true;
        }
    }

    /// After VM exit: if the guest has ended its interrupt, it has ended.
    pub(super) fn leave_paravirtual(&mut self, memory: &Memory) {
        if !std::mem::take(&mut self.pv.eoi_offered) {
            return;
        }
        let Some(hpa) = memory.ram(self.pv.eoi & !ENABLED, 4) else { return };
        if memory.arena.read_u32(hpa).unwrap_or(1) & 1 == 0 {
            let ended = self.mailbox.inbox().lapic.as_mut().and_then(LocalApic::eoi);
            debug_assert!(ended.is_none_or(|vector| !self.machine.is_ioapic_level(vector)));
        } else {
            // From here on the end is to be told.
            memory.write(hpa, &0u32.to_le_bytes());
        }
    }

    /// A hypercall: number in RAX, arguments in RBX, RCX, RDX and RSI, result in RAX.
    pub(super) fn hypercall(&mut self) {
        let wide = self.mode64();
        let argument = |n| if wide { self.reg(n) } else { self.reg(n) & 0xffff_ffff };
        let [number, a, b, c, d] = [reg::RAX, reg::RBX, reg::RCX, reg::RDX, reg::RSI].map(argument);
        let result = if self.cpl() != 0 {
            Err(call::EPERM)
        } else {
            match number {
                call::POLL_IRQ => Ok(0),
                call::KICK_CPU if self.has(feature::UNHALT) => {
                    self.machine.unhalt(b as u32);
                    Ok(0)
                }
                call::SEND_IPI if self.has(feature::SEND_IPI) => self.send_ipis([a, b], c as u32, d as u32),
                _ => Err(call::ENOSYS),
            }
        };
        let value = result.unwrap_or_else(|error| (-error) as u64);
        self.set_reg(reg::RAX, if wide { value } else { value & 0xffff_ffff });
        self.skip_instruction();
    }

    /// Sends an IPI to the processors of a bitmap from APIC ID `first` on. How many it reached.
    fn send_ipis(&self, bitmap: [u64; 2], first: u32, icr: u32) -> Result<u64, i64> {
        // A destination of its own makes no sense.
        const LOGICAL: u32 = 1 << 11;
        const SHORTHAND: u32 = 3 << 18;
        let delivery = DeliveryMode::from_bits(icr >> 8).ok_or(call::EINVAL)?;
        if icr & (LOGICAL | SHORTHAND) != 0 {
            return Err(call::EINVAL);
        }
        let width = if self.mode64() { 64 } else { 32 };
        let mut reached = 0;
        for (word, base) in bitmap.into_iter().zip([0, width]) {
            for bit in (0..width).filter(|bit| word >> bit & 1 != 0) {
                let id = first.saturating_add(base + bit);
                reached += u64::from(self.machine.send_to(id, delivery, icr as u8));
            }
        }
        Ok(reached)
    }

    /// Whether the instruction at RIP is VMMCALL, where it raises #UD.
    pub(super) fn at_vmmcall(&self, memory: &Memory) -> bool {
        const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
        let code = if self.mode64() { 0 } else { self.root.cpu.vmcs_read(Field::GuestCsBase) };
        let linear = code.wrapping_add(self.rip());
        let linear = if self.mode64() { linear } else { linear & 0xffff_ffff };
        let mut bytes = [0; VMMCALL.len()];
        bytes.iter_mut().zip(0..).all(|(byte, n)| {
            let gpa = self.guest_physical(memory, linear.wrapping_add(n));
            let slot = gpa.and_then(|gpa| memory.slot_at(gpa).map(|slot| slot.hpa + (gpa - slot.gpa)));
            slot.and_then(|hpa| memory.arena.read_bytes(hpa, std::slice::from_mut(byte))).is_some()
        }) && bytes == VMMCALL
    }
}

/// Whether WRMSR to [`msr::EOI`] names memory that is there. Of the other structures nobody asks.
pub(super) fn eoi_in_memory(value: u64, memory: &Memory) -> bool {
    value & ENABLED == 0 || memory.ram(value & !ENABLED, 4).is_some()
}

/// Writes data that the guest reads again if the version, odd while it changes, is not the same afterwards.
fn write_versioned(memory: &Memory, version_at: u64, data_at: u64, data: &[u8]) {
    let version = memory.arena.read_u32(version_at).unwrap_or(0) | 1;
    memory.write(version_at, &version.to_le_bytes());
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    memory.write(data_at, data);
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    memory.write(version_at, &version.wrapping_add(1).to_le_bytes());
}

/// How long this thread has been runnable without running, in nanoseconds.
fn run_delay() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}
