//! What non-root operation intercepts: instructions, events, and what is due between instructions.

use trapline_vmx::controls::{ExitControls, PinControls, PrimaryControls};

use super::{Vmx, reason};
use crate::cpu::{Activity, Cpu, Event, EventKind, ExitInfo, Signals, Stop, shadow, vector};
use crate::exec::Due;
use crate::flags::bits;

/// Instructions between looks at the preemption timer.
const TIMER_GRAIN: u64 = 2000;

/// What PAUSE-loop exiting remembers of the PAUSEs at privilege level 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PauseLoop {
    /// PLE_Gap and PLE_Window, if the control is on.
    limits: Option<(u64, u64)>,
    /// TSC at the first PAUSE of the loop.
    first: u64,
    /// TSC at the last PAUSE since VM entry.
    last: Option<u64>,
}

impl PauseLoop {
    pub fn new(limits: Option<(u64, u64)>) -> Self {
        Self { limits, ..Self::default() }
    }
}

impl Vmx {
    /// Arms the watch after a VM entry, or when something that it depends on changed.
    pub(super) fn arm(&mut self, icount: u64) {
        let p = self.ctl.primary;
        let windows = PrimaryControls::INTERRUPT_WINDOW_EXITING | PrimaryControls::NMI_WINDOW_EXITING;
        self.windows = p.intersects(windows) || self.monitor_trap || self.trap_pending || self.apic.below;
        self.next_look = if self.preemption_deadline.is_some() { icount } else { u64::MAX };
    }

    /// Out of non-root operation nothing is watched.
    pub(super) fn disarm(&mut self) {
        (self.windows, self.monitor_trap, self.trap_pending) = (false, false, false);
        self.apic = super::apic::Apic::default();
        self.next_look = u64::MAX;
        self.preemption_deadline = None;
    }
}

impl Cpu {
    /// A VM exit that an instruction causes. The instruction has had no effect.
    #[cold]
    pub(crate) fn instruction_exit(&mut self, reason: u16, qualification: u64, info: u32) -> Stop {
        self.vm_exit(ExitInfo {
            reason,
            qualification,
            instruction_info: info,
            by_instruction: true,
            ..ExitInfo::default()
        })
    }

    /// Whether IN or OUT of `size` bytes at `port` exits. Non-root operation only.
    pub(crate) fn intercepts_io(&self, port: u16, size: u16) -> bool {
        let p = self.vmx.ctl.primary;
        if !p.contains(PrimaryControls::IO_BITMAPS) {
            return p.contains(PrimaryControls::UNCONDITIONAL_IO_EXITING);
        }
        // An access that wraps around the end of the port space always exits.
        (0..size).any(|i| match port.checked_add(i) {
            Some(port) => {
                let map = self.vmx.io_bitmaps[usize::from(port >> 15)];
                self.bitmap_bit(map, u64::from(port & 0x7fff))
            }
            None => true,
        })
    }

    /// Whether RDMSR or WRMSR of `index` exits. Non-root operation only.
    pub(crate) fn intercepts_msr(&self, index: u32, write: bool) -> bool {
        if !self.vmx.ctl.primary.contains(PrimaryControls::MSR_BITMAPS) {
            return true;
        }
        let (quarter, bit) = match index {
            0..=0x1fff => (0, index),
            0xc000_0000..=0xc000_1fff => (1, index - 0xc000_0000),
            _ => return true,
        };
        let map = self.vmx.msr_bitmap + quarter * 1024 + u64::from(write) * 2048;
        self.bitmap_bit(map, u64::from(bit))
    }

    fn bitmap_bit(&self, map: u64, bit: u64) -> bool {
        // Outside memory a bus reads all-ones.
        self.arena.read_u64(map + (bit >> 6) * 8).unwrap_or(u64::MAX) >> (bit & 63) & 1 != 0
    }

    /// The VM exit that an event causes instead of being delivered (exception bitmap, NMI exiting).
    pub(crate) fn intercept_event(&mut self, event: &Event) -> Option<ExitInfo> {
        if !self.nonroot {
            return None;
        }
        let exits = match event.kind {
            EventKind::External | EventKind::SoftwareInterrupt => false,
            EventKind::Nmi => self.vmx.ctl.pin.contains(PinControls::NMI_EXITING),
            _ => {
                let bit = self.vmx.exception_bitmap >> (event.vector & 31) & 1 != 0;
                if event.vector == vector::PF {
                    let (mask, matching) = self.vmx.page_fault;
                    bit == (event.error.unwrap_or(0) & mask == matching)
                } else {
                    bit
                }
            }
        };
        if !exits {
            return None;
        }
        let information = u32::from(event.vector)
            | (event.kind as u32) << 8
            | u32::from(event.error.is_some()) << 11
            | 1 << 31;
        let qualification = if matches!(event.vector, vector::PF | vector::DB) { event.payload } else { 0 };
        self.last_len = event.len;
        Some(ExitInfo {
            reason: reason::EXCEPTION_OR_NMI,
            qualification,
            interruption: information,
            error: event.error.unwrap_or(0),
            by_instruction: event.len != 0,
            ..ExitInfo::default()
        })
    }

    /// VM exits that come before any debug exception: TPR below threshold, INIT, SIPI, monitor trap flag
    /// (§26.5.2, §27.7.7).
    pub(crate) fn urgent_exit(&mut self) -> Option<ExitInfo> {
        if !self.nonroot {
            return None;
        }
        let simple = |reason| Some(ExitInfo { reason, ..ExitInfo::default() });
        let waits = self.activity == Activity::WaitForSipi;
        if self.vmx.apic.below && !matches!(self.activity, Activity::Shutdown | Activity::WaitForSipi) {
            return simple(reason::TPR_BELOW_THRESHOLD);
        }
        let signals = self.signals.get();
        if signals & Signals::INIT != 0 && !waits {
            self.signals.clear(Signals::INIT);
            return simple(reason::INIT);
        }
        // A startup IPI for a processor that does not wait for one is lost.
        if signals & Signals::SIPI != 0
            && let Some(vector) = self.signals.take_sipi()
            && waits
        {
            let qualification = u64::from(vector);
            return Some(ExitInfo { reason: reason::SIPI, qualification, ..ExitInfo::default() });
        }
        if self.vmx.trap_pending && !matches!(self.activity, Activity::Shutdown | Activity::WaitForSipi) {
            return simple(reason::MONITOR_TRAP_FLAG);
        }
        None
    }

    /// NMIs, interrupts, windows and timers that are due before the next instruction.
    pub(crate) fn asynchronous(&mut self) -> Due {
        if !self.nonroot || self.activity == Activity::WaitForSipi {
            return Due::Nothing;
        }
        let simple = |reason| Due::Exit(ExitInfo { reason, ..ExitInfo::default() });
        if self.preemption_timer_expired() {
            return simple(reason::PREEMPTION_TIMER);
        }
        let blocked = self.shadow & (shadow::STI | shadow::MOV_SS) != 0;
        let nmi_blocked = self.shadow & shadow::NMI != 0;
        let (pin, p) = (self.vmx.ctl.pin, self.vmx.ctl.primary);
        if p.contains(PrimaryControls::NMI_WINDOW_EXITING) && !nmi_blocked && !blocked {
            return simple(reason::NMI_WINDOW);
        }
        let signals = self.signals.get();
        // With virtual NMIs, what is blocked are virtual ones only.
        let nmi_open = !blocked && (!nmi_blocked || pin.contains(PinControls::VIRTUAL_NMIS));
        if signals & Signals::NMI != 0 && nmi_open {
            self.signals.clear(Signals::NMI);
            let nmi = Event { vector: vector::NMI, kind: EventKind::Nmi, error: None, len: 0, payload: 0 };
            return self.deliver(nmi).map_or(Due::Delivered, Due::Exit);
        }
        if self.activity == Activity::Shutdown {
            return Due::Nothing;
        }
        let open = self.rflags & bits::IF != 0 && !blocked;
        if p.contains(PrimaryControls::INTERRUPT_WINDOW_EXITING) && open {
            return simple(reason::INTERRUPT_WINDOW);
        }
        if signals & Signals::INTERRUPT != 0 {
            if pin.contains(PinControls::EXTERNAL_INTERRUPT_EXITING) {
                return Due::Exit(self.interrupt_exit());
            }
            if open {
                let vector = self.signals.take_interrupt();
                let event = Event { vector, kind: EventKind::External, error: None, len: 0, payload: 0 };
                return self.deliver(event).map_or(Due::Delivered, Due::Exit);
            }
        }
        Due::Nothing
    }

    /// The VM exit of an external interrupt; with "acknowledge interrupt on exit" it is acknowledged, and
    /// its vector is told.
    fn interrupt_exit(&mut self) -> ExitInfo {
        let mut interruption = 0;
        if self.vmx.ctl.exit.contains(ExitControls::ACKNOWLEDGE_INTERRUPT) {
            interruption = u32::from(self.signals.take_interrupt()) | 1 << 31;
        }
        ExitInfo { reason: reason::EXTERNAL_INTERRUPT, interruption, ..ExitInfo::default() }
    }

    fn preemption_timer_expired(&mut self) -> bool {
        let Some(deadline) = self.vmx.preemption_deadline else { return false };
        if self.icount < self.vmx.next_look && self.activity == Activity::Active {
            return false;
        }
        self.vmx.next_look = self.icount + TIMER_GRAIN;
        self.raw_tsc() >= deadline
    }

    /// Whether this PAUSE at privilege level 0 exits because it is one of a long loop (§26.1.3).
    pub(crate) fn pause_loops(&mut self) -> bool {
        let now = self.raw_tsc();
        let p = &mut self.vmx.pause_loop;
        let Some((gap, window)) = p.limits.filter(|_| self.nonroot && self.cpl == 0) else { return false };
        if p.last.is_none_or(|last| now.wrapping_sub(last) > gap) {
            p.first = now;
        }
        p.last = Some(now);
        now.wrapping_sub(p.first) > window
    }

    /// IRET ends blocking by NMI, even if it faults afterwards (§26.3). To be called when it begins;
    /// [`Cpu::iret_done`] when it is complete.
    pub(crate) fn iret_unblocks_nmi(&mut self) {
        let (nmi, virtual_nmi) = (PinControls::NMI_EXITING, PinControls::VIRTUAL_NMIS);
        let pin = self.vmx.ctl.pin;
        let unblocks = !self.nonroot || !pin.contains(nmi) || pin.contains(virtual_nmi);
        if unblocks && self.shadow & shadow::NMI != 0 {
            self.shadow &= !shadow::NMI;
            self.nmi_unblocked = true;
        }
    }

    /// See [`Cpu::iret_unblocks_nmi`].
    pub(crate) fn iret_done(&mut self) {
        self.nmi_unblocked = false;
    }
}
