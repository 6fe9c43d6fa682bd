//! Interrupt handles.

use std::fmt;
use std::sync::Arc;

/// Where interrupt pins end: an interrupt controller, a router, or a test double.
///
/// `set` takes `&self`: an implementation has interior mutability and must never call back into the
/// device that calls it (lock order: device, then interrupt controller, then local APIC).
pub trait IrqSink: Send + Sync {
    /// Drives input `pin` to `level` (true: asserted).
    fn set(&self, pin: u32, level: bool);
}

/// One interrupt pin, as a device sees it: it has no number.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    pin: u32,
}

impl IrqLine {
    /// The line that drives `pin` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self { sink, pin }
    }

    /// Drives the line (true: asserted). Repeating a level is harmless.
    pub fn set(&self, level: bool) {
        self.sink.set(self.pin, level);
    }

    /// Asserts and deasserts: an edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// A message-signalled interrupt: a write of `data` to `address` (PCI Local Bus 3.0 §6.8; SDM vol. 3
/// §11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Msi {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Where messages end: the local APICs, through the engine.
pub trait MsiSink: Send + Sync {
    /// Delivers one message. A message to nobody is dropped, as on a bus.
    fn signal(&self, msi: Msi);
}
