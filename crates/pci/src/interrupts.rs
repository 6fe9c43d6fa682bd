//! How a function interrupts: its pin, MSI, MSI-X.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use trapline_device::{AccessSize, IrqLine, Msi, MsiSink};

use crate::function::lock;
use crate::msix::{MsixLayout, MsixTable};

/// How the guest wants to be interrupted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptMode {
    /// By the pin.
    Intx,
    /// By messages from the MSI capability.
    Msi,
    /// By messages from the MSI-X table.
    Msix,
}

/// A handle on a function's interrupts: [`ConfigSpace::interrupts`](crate::ConfigSpace::interrupts)
/// gives one out. It may be used from any thread, without the function's lock.
///
/// The pin is level-triggered: [`Interrupts::set_intx`] holds the function's request, which is the
/// status register's interrupt bit. The line follows it only while the command register does not
/// disable it and neither MSI nor MSI-X is enabled.
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<State>>);

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts").field("mode", &self.mode()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    line: Option<IrqLine>,
    sink: Option<Arc<dyn MsiSink>>,
    /// The function asks for the pin.
    request: bool,
    /// The level last driven on the line.
    driven: bool,
    /// Command register: interrupt disable.
    intx_disabled: bool,
    /// Command register: bus master. A message is a write to memory, and waits while this is clear.
    bus_master: bool,
    msi: MsiRegisters,
    msi_pending: u32,
    msix: Option<MsixTable>,
}

/// What the MSI capability says now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MsiRegisters {
    pub(crate) enabled: bool,
    pub(crate) address: u64,
    pub(crate) data: u16,
    /// Vectors the guest allows: a power of two of at most 32, or zero without the capability.
    pub(crate) vectors: u8,
    pub(crate) mask: u32,
}

/// Saved state of the interrupts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InterruptsState {
    request: bool,
    msi_pending: u32,
    msix: Option<(Vec<u8>, Vec<u8>)>,
}

impl Interrupts {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Requests the pin, or no longer.
    pub fn set_intx(&self, level: bool) {
        let mut state = lock(&self.0);
        state.request = level;
        state.drive();
    }

    /// Whether the pin is requested: the status register's interrupt bit.
    pub fn intx(&self) -> bool {
        lock(&self.0).request
    }

    /// How the guest wants to be interrupted. MSI-X goes before MSI where a guest enabled both.
    pub fn mode(&self) -> InterruptMode {
        lock(&self.0).mode()
    }

    /// Sends vector `vector` as a message, by MSI-X or MSI, whichever is enabled. A masked vector, or
    /// any while the function may not master the bus,
    /// becomes pending. False where neither is enabled or the vector does not exist: interrupt by
    /// the pin instead.
    ///
    /// By MSI, a vector beyond what the guest allowed is folded into the allowed ones.
    pub fn signal(&self, vector: u16) -> bool {
        let mut state = lock(&self.0);
        match state.mode() {
            InterruptMode::Intx => false,
            InterruptMode::Msi => {
                let vector = u32::from(vector) % u32::from(state.msi.vectors.max(1));
                state.msi_pending |= 1 << vector;
                state.deliver();
                true
            }
            InterruptMode::Msix => {
                let known = state.msix.as_mut().is_some_and(|table| table.set_pending(vector));
                state.deliver();
                known
            }
        }
    }

    /// The message of MSI-X vector `vector`: `None` where there is none, or while it is masked. For
    /// a hypervisor's own interrupt routes.
    pub fn msix_message(&self, vector: u16) -> Option<Msi> {
        let state = lock(&self.0);
        state.msix.as_ref().filter(|table| !table.masked(vector))?.message(vector)
    }

    pub(crate) fn wire(&self, line: IrqLine) {
        lock(&self.0).line = Some(line);
    }

    pub(crate) fn set_sink(&self, sink: Arc<dyn MsiSink>) {
        lock(&self.0).sink = Some(sink);
    }

    pub(crate) fn set_msix(&self, layout: MsixLayout) {
        lock(&self.0).msix = Some(MsixTable::new(layout));
    }

    pub(crate) fn msi_pending(&self) -> u32 {
        lock(&self.0).msi_pending
    }

    /// Takes over what the guest wrote.
    pub(crate) fn update(
        &self,
        intx_disabled: bool,
        bus_master: bool,
        msi: MsiRegisters,
        msix: (bool, bool),
    ) {
        let mut state = lock(&self.0);
        state.intx_disabled = intx_disabled;
        state.bus_master = bus_master;
        if !msi.enabled {
            state.msi_pending = 0;
        }
        state.msi = msi;
        if let Some(table) = &mut state.msix {
            table.set_control(msix.0, msix.1);
        }
        state.drive();
        state.deliver();
    }

    pub(crate) fn reset(&self) {
        let mut state = lock(&self.0);
        state.request = false;
        state.msi_pending = 0;
        if let Some(table) = &mut state.msix {
            table.reset();
        }
        state.drive();
    }

    pub(crate) fn msix_read(&self, region: usize, offset: u64, size: AccessSize) -> Option<u64> {
        lock(&self.0).msix.as_ref()?.read(region, offset, size)
    }

    pub(crate) fn msix_write(&self, region: usize, offset: u64, size: AccessSize, value: u64) -> bool {
        let mut state = lock(&self.0);
        let hit = state.msix.as_mut().is_some_and(|table| table.write(region, offset, size, value));
        if hit {
            state.deliver();
        }
        hit
    }

    pub(crate) fn save(&self) -> InterruptsState {
        let state = lock(&self.0);
        // The line and the registers are wiring and copies of configuration registers.
        let State {
            line: _,
            sink: _,
            request,
            driven: _,
            intx_disabled: _,
            bus_master: _,
            msi: _,
            msi_pending,
            msix,
        } = &*state;
        InterruptsState {
            request: *request,
            msi_pending: *msi_pending,
            msix: msix.as_ref().map(MsixTable::save),
        }
    }

    /// Whether [`Interrupts::restore`] would take `saved`.
    pub(crate) fn accepts(&self, saved: &InterruptsState) -> bool {
        match (&lock(&self.0).msix, &saved.msix) {
            (Some(table), Some(saved)) => table.accepts(saved),
            (None, None) => true,
            _ => false,
        }
    }

    /// Puts back a state that was accepted. Nothing is delivered before the next
    /// [`Interrupts::update`].
    pub(crate) fn restore(&self, saved: InterruptsState) {
        let mut state = lock(&self.0);
        state.request = saved.request;
        state.msi_pending = saved.msi_pending;
        if let (Some(table), Some(saved)) = (&mut state.msix, saved.msix) {
            table.restore(saved);
        }
    }
}

impl State {
    fn mode(&self) -> InterruptMode {
        if self.msix.as_ref().is_some_and(MsixTable::enabled) {
            InterruptMode::Msix
        } else if self.msi.enabled {
            InterruptMode::Msi
        } else {
            InterruptMode::Intx
        }
    }

    /// Drives the line where its level changes.
    fn drive(&mut self) {
        let level = self.request && !self.intx_disabled && self.mode() == InterruptMode::Intx;
        if level != self.driven {
            self.driven = level;
            if let Some(line) = &self.line {
                line.set(level);
            }
        }
    }

    /// Sends what is pending and not masked.
    fn deliver(&mut self) {
        let Some(sink) = self.sink.as_ref().filter(|_| self.bus_master) else { return };
        if let Some(table) = &mut self.msix {
            table.deliver(&**sink);
        }
        if !self.msi.enabled {
            return;
        }
        let ready = self.msi_pending & !self.msi.mask;
        self.msi_pending &= self.msi.mask;
        // The low bits of the data say which of the vectors it is (§6.8.1.6).
        let low = u16::from(self.msi.vectors.max(1)) - 1;
        for vector in (0..32_u16).filter(|vector| ready >> vector & 1 != 0) {
            let data = u32::from(self.msi.data & !low | vector & low);
            sink.signal(Msi { address: self.msi.address, data });
        }
    }
}
