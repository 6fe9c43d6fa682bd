//! From a device's interrupt line to the processors.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use trapline_device::IrqSink;
use trapline_vcpu::Kicker;

/// The ISA interrupt lines: each drives an input of the 8259A pair and one of the IOAPIC. IRQ 0 arrives at
/// the IOAPIC's pin 2, the others at the pin of their number.
pub(crate) struct IsaLines {
    pub(crate) pic: Arc<dyn IrqSink>,
    pub(crate) ioapic: Arc<dyn IrqSink>,
}

impl IrqSink for IsaLines {
    fn set(&self, pin: u32, level: bool) {
        self.pic.set(pin, level);
        self.ioapic.set(if pin == 0 { 2 } else { pin }, level);
    }
}

thread_local! {
    /// Whether this thread runs a vCPU 0: it looks at INTR before each entry by itself.
    static RUNS_VCPU0: Cell<bool> = const { Cell::new(false) };
}

/// Says that this thread runs vCPU 0.
pub(crate) fn this_thread_runs_vcpu0() {
    RUNS_VCPU0.set(true);
}

/// The wire from the 8259A pair's INTR to LINT0 of vCPU 0.
#[derive(Default)]
pub(crate) struct Intr {
    level: AtomicBool,
    vcpu0: OnceLock<Kicker>,
}

impl Intr {
    pub(crate) fn connect(&self, vcpu0: Kicker) {
        let _ = self.vcpu0.set(vcpu0);
    }

    pub(crate) fn asserted(&self) -> bool {
        self.level.load(Ordering::Acquire)
    }
}

impl IrqSink for Intr {
    fn set(&self, _pin: u32, level: bool) {
        self.level.store(level, Ordering::Release);
        if level
            && !RUNS_VCPU0.get()
            && let Some(vcpu0) = self.vcpu0.get()
        {
            vcpu0.kick();
        }
    }
}
