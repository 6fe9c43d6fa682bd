//! What a device asks of the machine around it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Something that concerns the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// The guest switched the machine off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest entered a sleeping state other than S5; the value is SLP_TYP (3 bits).
    Sleep(u8),
    /// The A20 gate opened (true: address line 20 works) or closed.
    A20(bool),
    /// The guest wrote a command other than ACPI enable and disable to the SMI command port.
    SoftwareSmi(u8),
    /// A test guest ended with this exit code, which is always odd.
    DebugExit(u32),
}

/// Where system events end: the board.
///
/// `raise` is called on the thread of the vCPU that accessed the device, with the device locked. An
/// implementation notes the event and returns; it must not call the device.
pub trait SystemEvents: Send + Sync {
    /// Notes `event`.
    fn raise(&self, event: SystemEvent);
}

impl<F: Fn(SystemEvent) + Send + Sync> SystemEvents for F {
    fn raise(&self, event: SystemEvent) {
        self(event);
    }
}

/// Who can open the A20 gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum A20Source {
    /// The keyboard controller's output port.
    Keyboard = 1,
    /// System control port A (0x92).
    Port92 = 2,
}

/// The A20 gate: open while any source holds it open. The keyboard controller opens it at power-on.
pub struct A20Gate {
    open: AtomicU8,
    events: Arc<dyn SystemEvents>,
}

impl A20Gate {
    /// A gate that nobody has opened yet; changes are told to `events`.
    pub fn new(events: Arc<dyn SystemEvents>) -> Self {
        Self { open: AtomicU8::new(0), events }
    }

    /// Whether address line 20 works.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) != 0
    }

    /// `source` holds the gate open, or lets go of it.
    pub fn set(&self, source: A20Source, open: bool) {
        let bit = source as u8;
        let old = if open {
            self.open.fetch_or(bit, Ordering::SeqCst)
        } else {
            self.open.fetch_and(!bit, Ordering::SeqCst)
        };
        let new = if open { old | bit } else { old & !bit };
        if (old != 0) != (new != 0) {
            self.events.raise(SystemEvent::A20(new != 0));
        }
    }
}
