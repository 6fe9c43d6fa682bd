//! Debugging by the host: single steps, INT3, hardware breakpoints (`KVM_SET_GUEST_DEBUG`).

use kvm_bindings::*;
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::vector;
use trapline_vmx::Field;
use trapline_vmx::controls::PrimaryControls;
use trapline_vmx::exit::MovDr;

use super::vcpu::SoftVcpu;
use crate::Exit;

const RFLAGS_TF: u64 = 1 << 8;
/// Bits of DR6 that read as one.
const DR6_FIXED: u64 = 0xffff_0ff0;
/// Bits of DR7 that do.
const DR7_FIXED: u64 = 0x400;

/// What the host wants to see of the guest's execution.
#[derive(Debug, Default)]
pub(super) struct Debugger {
    control: u32,
    /// While hardware breakpoints are the host's: what the guest thinks it has, DR0–DR3 and DR7.
    guest: Option<[u64; 5]>,
    /// RFLAGS.TF is the host's.
    stepping: bool,
}

impl Debugger {
    fn has(&self, bit: u32) -> bool {
        self.control & (bit | KVM_GUESTDBG_ENABLE) == bit | KVM_GUESTDBG_ENABLE
    }

    /// Whether #DB is the host's to see.
    pub fn sees_debug_exceptions(&self) -> bool {
        self.has(KVM_GUESTDBG_SINGLESTEP) || self.has(KVM_GUESTDBG_USE_HW_BP)
    }

    /// Sets RFLAGS.TF where the host steps.
    pub fn before_entry(&mut self, cpu: &mut Cpu) {
        let rflags = cpu.vmcs_read(Field::GuestRflags);
        self.stepping = self.has(KVM_GUESTDBG_SINGLESTEP) && rflags & RFLAGS_TF == 0;
        if self.stepping {
            cpu.vmcs_write(Field::GuestRflags, rflags | RFLAGS_TF);
        }
    }

    /// Undoes it.
    pub fn after_exit(&mut self, cpu: &mut Cpu) {
        if std::mem::take(&mut self.stepping) {
            let rflags = cpu.vmcs_read(Field::GuestRflags);
            cpu.vmcs_write(Field::GuestRflags, rflags & !RFLAGS_TF);
        }
    }
}

impl SoftVcpu {
    /// See [`Vcpu::set_guest_debug`](crate::Vcpu::set_guest_debug).
    pub(super) fn debug_with(&mut self, debug: &kvm_guest_debug) {
        // The guest's own registers first.
        if let Some(guest) = self.debugger.guest.take() {
            self.load_breakpoints(&guest);
        }
        self.debugger.control = debug.control;
        if self.debugger.has(KVM_GUESTDBG_USE_HW_BP) {
            self.debugger.guest = Some(self.breakpoints());
            let wanted = &debug.arch.debugreg;
            self.load_breakpoints(&[wanted[0], wanted[1], wanted[2], wanted[3], wanted[7]]);
        }
        self.write_exceptions();
        let cpu = &mut self.root.cpu;
        let mut primary = PrimaryControls::from_bits_retain(cpu.vmcs_read(Field::PrimaryControls) as u32);
        primary.set(PrimaryControls::MOV_DR_EXITING, self.debugger.guest.is_some());
        cpu.vmcs_write(Field::PrimaryControls, primary.bits().into());
    }

    /// Which exceptions exit: those that the host's debugger wants, and those that the engine needs.
    pub(super) fn write_exceptions(&mut self) {
        let on = |bit: u32, vector: u8| if self.debugger.has(bit) { 1u64 << vector } else { 0 };
        let bitmap = on(KVM_GUESTDBG_SINGLESTEP, vector::DB)
            | on(KVM_GUESTDBG_USE_HW_BP, vector::DB)
            | on(KVM_GUESTDBG_USE_SW_BP, vector::BP)
            | self.paging_exceptions()
            | if self.traps_vmmcall() { 1 << vector::UD } else { 0 };
        self.root.cpu.vmcs_write(Field::ExceptionBitmap, bitmap);
    }

    fn breakpoints(&self) -> [u64; 5] {
        let dr = &self.root.cpu.dr;
        [dr[0], dr[1], dr[2], dr[3], self.root.cpu.vmcs_read(Field::GuestDr7)]
    }

    fn load_breakpoints(&mut self, values: &[u64; 5]) {
        let [dr0, dr1, dr2, dr3, dr7] = *values;
        self.root.cpu.dr[..4].copy_from_slice(&[dr0, dr1, dr2, dr3]);
        self.root.cpu.vmcs_write(Field::GuestDr7, dr7 & 0xffff_2fff | DR7_FIXED);
    }

    /// #DB or #BP that the exception bitmap caught.
    pub(super) fn debug_exit(&mut self, exception: u8) -> Option<Exit> {
        let cpu = &self.root.cpu;
        let code = if self.mode64() { 0 } else { cpu.vmcs_read(Field::GuestCsBase) };
        let pc = code.wrapping_add(self.rip());
        let qualification = cpu.vmcs_read(Field::ExitQualification);
        let dr6 = if exception == vector::DB { qualification & 0x600f | DR6_FIXED } else { cpu.dr[6] };
        let dr7 = cpu.vmcs_read(Field::GuestDr7);
        Some(Exit::Debug { exception: exception.into(), pc, dr6, dr7 })
    }

    /// Whether an instruction that the engine has completed is to be reported as a step.
    pub(super) fn steps(&self) -> bool {
        self.debugger.has(KVM_GUESTDBG_SINGLESTEP)
    }

    /// MOV DR while the host has the breakpoints: the guest sees and sets its own.
    pub(super) fn mov_dr(&mut self) {
        let access = MovDr::from_bits(self.root.cpu.vmcs_read(Field::ExitQualification));
        let cr4_de = self.root.cpu.vmcs_read(Field::GuestCr4) & 1 << 3 != 0;
        let number = match access.dr() {
            4 | 5 if cr4_de => return self.inject_fault(vector::UD, None),
            4 => 6,
            5 => 7,
            n => n,
        };
        let mut guest = self.debugger.guest.unwrap_or_else(|| self.breakpoints());
        let place = match number {
            6 => &mut self.root.cpu.dr[6],
            7 => &mut guest[4],
            n => &mut guest[usize::from(n & 3)],
        };
        let old = *place;
        if access.from_dr() {
            self.set_reg(access.register(), old);
        } else {
            let value = self.root.cpu.regs.get(usize::from(access.register())).copied().unwrap_or(0);
            let place = match number {
                6 => &mut self.root.cpu.dr[6],
                7 => &mut guest[4],
                n => &mut guest[usize::from(n & 3)],
            };
            *place = match number {
                6 => value & 0x1_e00f | DR6_FIXED,
                7 => value & 0xffff_2fff | DR7_FIXED,
                _ => value,
            };
            self.debugger.guest = Some(guest);
        }
        self.skip_instruction();
    }

    /// `KVM_GET_DEBUGREGS`.
    pub(super) fn debug_registers(&self) -> kvm_debugregs {
        let [a, b, c, d, dr7] = self.debugger.guest.unwrap_or_else(|| self.breakpoints());
        kvm_debugregs { db: [a, b, c, d], dr6: self.root.cpu.dr[6], dr7, ..Default::default() }
    }

    /// `KVM_SET_DEBUGREGS`.
    pub(super) fn set_debug_registers(&mut self, regs: &kvm_debugregs) {
        let [a, b, c, d] = regs.db;
        let values = [a, b, c, d, regs.dr7 & 0xffff_2fff | DR7_FIXED];
        self.root.cpu.dr[6] = regs.dr6 & 0x1_e00f | DR6_FIXED;
        match &mut self.debugger.guest {
            Some(guest) => *guest = values,
            None => self.load_breakpoints(&values),
        }
    }
}
