//! What non-root operation intercepts: instructions, events, and what is due between instructions.

use trapline_vmx::controls::{PinControls, PrimaryControls};

use super::{Vmx, reason};
use crate::cpu::{Activity, Cpu, Event, EventKind, ExitInfo, Signals, Stop, shadow, vector};
use crate::flags::bits;

/// Instructions between looks at the preemption timer.
const TIMER_GRAIN: u64 = 2000;

impl Vmx {
    /// Arms the watch after a VM entry, or when something that it depends on changed.
    pub(super) fn arm(&mut self, icount: u64) {
        let p = self.ctl.primary;
        self.windows =
            p.intersects(PrimaryControls::INTERRUPT_WINDOW_EXITING | PrimaryControls::NMI_WINDOW_EXITING);
        self.next_look = if self.preemption_deadline.is_some() { icount } else { u64::MAX };
    }

    /// Out of non-root operation nothing is watched.
    pub(super) fn disarm(&mut self) {
        self.windows = false;
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

    /// NMIs, interrupts, windows and timers that are due before the next instruction.
    pub(crate) fn asynchronous(&mut self) -> Option<ExitInfo> {
        if !self.nonroot {
            return None;
        }
        let simple = |reason| Some(ExitInfo { reason, ..ExitInfo::default() });
        if let Some(deadline) = self.vmx.preemption_deadline
            && self.icount >= self.vmx.next_look
        {
            if self.raw_tsc() >= deadline {
                return simple(reason::PREEMPTION_TIMER);
            }
            self.vmx.next_look = self.icount + TIMER_GRAIN;
        }
        let blocked = self.shadow & (shadow::STI | shadow::MOV_SS) != 0;
        let nmi_open = self.shadow & (shadow::NMI | shadow::MOV_SS | shadow::STI) == 0;
        let p = self.vmx.ctl.primary;
        if p.contains(PrimaryControls::NMI_WINDOW_EXITING) && nmi_open {
            return simple(reason::NMI_WINDOW);
        }
        let signals = self.signals.get();
        if signals & Signals::NMI != 0 && nmi_open {
            self.signals.clear(Signals::NMI);
            let nmi = Event { vector: vector::NMI, kind: EventKind::Nmi, error: None, len: 0, payload: 0 };
            return self.deliver(nmi);
        }
        let open = self.rflags & bits::IF != 0 && !blocked;
        if p.contains(PrimaryControls::INTERRUPT_WINDOW_EXITING)
            && open
            && self.activity != Activity::WaitForSipi
        {
            return simple(reason::INTERRUPT_WINDOW);
        }
        if signals & Signals::INTERRUPT != 0
            && (self.vmx.ctl.pin.contains(PinControls::EXTERNAL_INTERRUPT_EXITING))
        {
            return simple(reason::EXTERNAL_INTERRUPT);
        }
        None
    }
}
