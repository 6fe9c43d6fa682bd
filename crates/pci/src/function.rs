//! The PCI face of a device.

use std::sync::{Arc, Mutex, MutexGuard};

use trapline_device::{AccessSize, Device};

use crate::ConfigSpace;

/// A function: a [`Device`] that has a configuration space.
///
/// Its BARs are regions of its port and memory faces: an access to offset `o` of BAR `n` arrives as
/// `PortIo::read(n, o, …)` or `MmioIo::read(n, o, …)`. [`Device::reset`] must reset the configuration
/// space too ([`ConfigSpace::reset`]).
///
/// The two hooks have useful defaults; a function whose registers act when they are touched
/// overrides them, and calls the configuration space itself.
pub trait PciFunction: Device {
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads `size` (at most four bytes, never across a doubleword) at `offset`.
    fn config_read(&mut self, offset: u16, size: AccessSize) -> u32 {
        self.config().read(offset, size)
    }

    /// The guest writes `size` (at most four bytes, never across a doubleword) at `offset`.
    fn config_write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.config_mut().write(offset, size, value);
    }
}

/// A function in the topology. It coerces to a
/// [`SharedDevice`](trapline_device::bus::SharedDevice).
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// Locks a function. One whose earlier user panicked is used on as it is.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
