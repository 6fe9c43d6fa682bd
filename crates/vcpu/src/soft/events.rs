//! Events: what is injected when, and what an exit during delivery leaves to do.

use kvm_bindings::*;
use trapline_irqchip::lapic::{LocalApic, Time};
use trapline_softcpu::cpu::{cr0, shadow, vector};
use trapline_vmx::Field;
use trapline_vmx::exit::{InterruptionInfo, InterruptionType};

use super::vcpu::{Pending, SoftVcpu};

const RFLAGS_IF: u64 = 1 << 9;

/// An event for the VM-entry fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Injection {
    pub info: InterruptionInfo,
    pub error: u32,
    /// Instruction length of software interrupts and exceptions.
    pub len: u32,
}

impl Injection {
    fn external(vector: u8) -> Self {
        Self { info: InterruptionInfo::external(vector), error: 0, len: 0 }
    }
}

/// How to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Enter, and exit as soon as these windows open.
    Enter { interrupt_window: bool, nmi_window: bool },
    /// The board waits for the window, and it is open.
    WindowOpen,
}

impl SoftVcpu {
    /// Interruptibility state of the guest.
    pub(super) fn blocking(&self) -> u32 {
        self.root.cpu.vmcs_read(Field::GuestInterruptibility) as u32
    }

    /// Whether an external interrupt could be injected now.
    pub(super) fn interrupts_open(&self) -> bool {
        let enabled = self.root.cpu.vmcs_read(Field::GuestRflags) & RFLAGS_IF != 0;
        enabled
            && self.blocking() & (shadow::STI | shadow::MOV_SS) == 0
            && self.injection.is_none()
            && !self.replaying
    }

    /// Whether the 8259A's interrupts get through to this processor.
    pub(super) fn accepts_extint(&self) -> bool {
        self.mailbox.inbox().lapic.as_ref().is_none_or(LocalApic::accepts_extint)
    }

    /// Decides what is injected next.
    pub(super) fn prepare_events(&mut self, time: Time) -> Due {
        let extint = self.wanted.extint.take();
        let open = self.interrupts_open();
        let mailbox = self.mailbox.clone();
        let mut inbox = mailbox.inbox();
        if let Some(lapic) = &mut inbox.lapic {
            lapic.tick(time);
        }
        let mut free = open;
        if self.nmi_in_progress() {
            inbox.nmi = inbox.nmi.min(1);
        }
        if inbox.nmi > 0 && self.nmi_open() {
            inbox.nmi -= 1;
            self.injection = Some(Injection { info: InterruptionInfo::nmi(), error: 0, len: 0 });
            free = false;
        }
        let nmi_window = inbox.nmi > 0;
        if let Some(vector) = extint {
            if free {
                self.injection = Some(Injection::external(vector));
                free = false;
            } else {
                self.wanted.extint = Some(vector);
            }
        }
        let accepts_extint = inbox.lapic.as_ref().is_none_or(LocalApic::accepts_extint);
        if free
            && let Some(lapic) = &mut inbox.lapic
            && let Some(vector) = lapic.pending()
        {
            lapic.ack(vector);
            self.injection = Some(Injection::external(vector));
            free = false;
        }
        let board_waits = self.wanted.window && accepts_extint;
        if board_waits && free {
            return Due::WindowOpen;
        }
        let pending = inbox.lapic.as_ref().is_some_and(|lapic| lapic.pending().is_some());
        let interrupt_window = board_waits || pending || self.wanted.extint.is_some();
        Due::Enter { interrupt_window, nmi_window }
    }

    /// Whether the guest handles an NMI, or is about to: the processor remembers one more, not two
    /// (SDM vol. 3 §7.7.1).
    fn nmi_in_progress(&self) -> bool {
        let injected = self.injection.is_some_and(|i| i.info.kind() == Some(InterruptionType::Nmi));
        injected || self.blocking() & shadow::NMI != 0
    }

    fn nmi_open(&self) -> bool {
        self.blocking() & (shadow::STI | shadow::MOV_SS | shadow::NMI) == 0
            && self.injection.is_none()
            && !self.replaying
    }

    /// Writes the VM-entry fields. While an instruction is run on, only what it was exited from goes in.
    pub(super) fn write_injection(&mut self) {
        let Some(injection) = self.injection.take() else { return };
        let cpu = &mut self.root.cpu;
        cpu.vmcs_write(Field::EntryInterruptionInfo, injection.info.into_bits().into());
        cpu.vmcs_write(Field::EntryExceptionErrorCode, injection.error.into());
        cpu.vmcs_write(Field::EntryInstructionLength, injection.len.into());
        let blocked = self.blocking();
        if injection.info.kind() == Some(InterruptionType::Nmi) && blocked & shadow::NMI != 0 {
            // It is the blocked one that is delivered again.
            let blocked = blocked & !shadow::NMI;
            self.root.cpu.vmcs_write(Field::GuestInterruptibility, blocked.into());
        }
    }

    /// An event whose delivery the exit broke off is delivered again.
    pub(super) fn keep_vectoring(&mut self) {
        let cpu = &self.root.cpu;
        let info = cpu.vmcs_read(Field::IdtVectoringInfo) as u32;
        if info & 1 << 31 == 0 {
            return;
        }
        self.injection = Some(Injection {
            // Bit 12 (NMI unblocking) is not part of the entry field.
            info: InterruptionInfo::from_bits(info & !(1 << 12)),
            error: cpu.vmcs_read(Field::IdtVectoringErrorCode) as u32,
            len: cpu.vmcs_read(Field::ExitInstructionLength) as u32,
        });
    }

    /// Makes the guest see a fault. Real mode has no error codes.
    pub(super) fn inject_fault(&mut self, vector: u8, error: Option<u32>) {
        let protected = self.root.cpu.vmcs_read(Field::GuestCr0) & cr0::PE != 0;
        let error = error.filter(|_| protected);
        self.injection = Some(Injection {
            info: InterruptionInfo::exception(vector, error.is_some()),
            error: error.unwrap_or(0),
            len: 0,
        });
    }

    /// #GP(0).
    pub(super) fn inject_gp(&mut self) {
        self.inject_fault(vector::GP, Some(0));
    }

    /// `KVM_GET_VCPU_EVENTS`.
    pub(super) fn event_state(&self) -> kvm_vcpu_events {
        let inbox = self.mailbox.inbox();
        let mut events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            ..Default::default()
        };
        let blocking = self.blocking();
        events.nmi.pending = inbox.nmi.min(1);
        events.nmi.masked = (blocking & shadow::NMI != 0).into();
        if blocking & shadow::STI != 0 {
            events.interrupt.shadow |= KVM_X86_SHADOW_INT_STI as u8;
        }
        if blocking & shadow::MOV_SS != 0 {
            events.interrupt.shadow |= KVM_X86_SHADOW_INT_MOV_SS as u8;
        }
        let extint = self.wanted.extint.map(Injection::external);
        if let Some(Injection { info, error, .. }) = self.injection.or(extint) {
            match info.kind() {
                Some(InterruptionType::Nmi) => events.nmi.injected = 1,
                Some(InterruptionType::External) => {
                    (events.interrupt.injected, events.interrupt.nr) = (1, info.vector());
                }
                Some(InterruptionType::SoftwareInterrupt) => {
                    (events.interrupt.injected, events.interrupt.nr) = (1, info.vector());
                    events.interrupt.soft = 1;
                }
                _ => {
                    (events.exception.injected, events.exception.nr) = (1, info.vector());
                    events.exception.has_error_code = info.error_code().into();
                    events.exception.error_code = error;
                }
            }
        }
        events
    }

    /// `KVM_SET_VCPU_EVENTS`.
    pub(super) fn set_event_state(&mut self, events: &kvm_vcpu_events) {
        self.pending = Pending::Nothing;
        self.wanted.extint = None;
        self.injection = None;
        let nr = events.exception.nr;
        if events.exception.injected != 0 || events.exception.pending != 0 {
            let error = (events.exception.has_error_code != 0).then_some(events.exception.error_code);
            if matches!(nr, vector::BP | vector::OF) {
                let info = InterruptionInfo::event(InterruptionType::SoftwareException, nr);
                self.injection = Some(Injection { info, error: 0, len: 1 });
            } else {
                self.inject_fault(nr, error);
            }
        } else if events.nmi.injected != 0 {
            self.injection = Some(Injection { info: InterruptionInfo::nmi(), error: 0, len: 0 });
        } else if events.interrupt.injected != 0 {
            let nr = events.interrupt.nr;
            self.injection = Some(if events.interrupt.soft != 0 {
                // KVM does not keep the length: INT n has two bytes.
                let info = InterruptionInfo::event(InterruptionType::SoftwareInterrupt, nr);
                Injection { info, error: 0, len: 2 }
            } else {
                Injection::external(nr)
            });
        }
        let mut blocking = self.blocking();
        if events.flags & KVM_VCPUEVENT_VALID_SHADOW != 0 {
            let on = |bit: u32| u32::from(events.interrupt.shadow) & bit != 0;
            blocking &= !(shadow::STI | shadow::MOV_SS);
            if on(KVM_X86_SHADOW_INT_MOV_SS) {
                blocking |= shadow::MOV_SS;
            } else if on(KVM_X86_SHADOW_INT_STI) {
                blocking |= shadow::STI;
            }
        }
        blocking = blocking & !shadow::NMI | if events.nmi.masked != 0 { shadow::NMI } else { 0 };
        self.root.cpu.vmcs_write(Field::GuestInterruptibility, blocking.into());
        let mut inbox = self.mailbox.inbox();
        if events.flags & KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
            inbox.nmi = events.nmi.pending.min(1);
        }
        if events.flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR != 0 {
            inbox.sipi = Some(events.sipi_vector as u8);
        }
    }

    /// A debug trap of an instruction that an exit completed: pending if RFLAGS.TF or the
    /// host says so.
    pub(super) fn trap_after_exit(&mut self) {
        const TF: u64 = 1 << 8;
        const BS: u64 = 1 << 14;
        let host_steps = self.steps();
        let cpu = &mut self.root.cpu;
        if host_steps || cpu.vmcs_read(Field::GuestRflags) & TF != 0 {
            let pending = cpu.vmcs_read(Field::GuestPendingDebug);
            cpu.vmcs_write(Field::GuestPendingDebug, pending | BS);
        }
    }
}
