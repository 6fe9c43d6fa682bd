//! Accesses to a machine that does not run: for tests and tools.

use std::sync::{Arc, Mutex};

use trapline_device::AccessSize;
use trapline_ide::PiixIde;
use trapline_memory::Slot;

use crate::Result;
use crate::chassis::lock;
use crate::pc::host::Host;
use crate::run::{Access, Shared};

/// Accesses a machine's ports and physical memory as its processors do, with all that follows from an access:
/// BARs that move, ROM that becomes RAM. No processor runs meanwhile, and time-driven devices are called by
/// [`GuestAccess::poll`].
pub struct GuestAccess<'a> {
    access: Access<'a>,
    shared: &'a Shared,
    host: &'a Host,
    ide: &'a Mutex<PiixIde>,
}

impl<'a> GuestAccess<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, host: &'a Host, ide: &'a Mutex<PiixIde>) -> Self {
        Self { access: Access::new(shared), shared, host, ide }
    }

    /// IN. Reads at most four bytes.
    pub fn port_read(&mut self, port: u16, size: AccessSize) -> u32 {
        self.access.pio_read(port, size)
    }

    /// OUT.
    ///
    /// # Errors
    /// When the engine refuses what follows from it.
    pub fn port_write(&mut self, port: u16, size: AccessSize, value: u32) -> Result<()> {
        self.access.pio_write(port, size, value)
    }

    /// REP INS.
    pub fn port_read_block(&mut self, port: u16, size: AccessSize, data: &mut [u8]) {
        self.access.pio_read_block(port, size, data);
    }

    /// REP OUTS.
    ///
    /// # Errors
    /// When the engine refuses what follows from it.
    pub fn port_write_block(&mut self, port: u16, size: AccessSize, data: &[u8]) -> Result<()> {
        self.access.pio_write_block(port, size, data)
    }

    /// Reads memory: RAM, ROM or a device's registers, whatever is there.
    pub fn memory_read(&mut self, address: u64, size: AccessSize) -> u64 {
        let mut bytes = [0; 8];
        let memory = self.slot(address, size).and_then(|slot| {
            let bytes = bytes.get_mut(..size.bytes())?;
            self.host.arena.read_bytes(slot.hpa + (address - slot.gpa), bytes)
        });
        match memory {
            Some(()) => u64::from_le_bytes(bytes),
            None => self.access.mmio_read(address, size),
        }
    }

    /// Writes memory.
    ///
    /// # Errors
    /// When the engine refuses what follows from it.
    pub fn memory_write(&mut self, address: u64, size: AccessSize, value: u64) -> Result<()> {
        let bytes = value.to_le_bytes();
        let memory = self.slot(address, size).filter(|slot| !slot.read_only).and_then(|slot| {
            let bytes = bytes.get(..size.bytes())?;
            self.host.arena.write_bytes(slot.hpa + (address - slot.gpa), bytes)
        });
        match memory {
            Some(()) => Ok(()),
            None => self.access.mmio_write(address, size, value),
        }
    }

    /// The slot that holds an access as a whole.
    fn slot(&self, address: u64, size: AccessSize) -> Option<Slot> {
        let holds = |slot: &Slot| {
            slot.gpa <= address && address < slot.end() && slot.end() - address >= size.bytes() as u64
        };
        self.host.slots().into_iter().find(holds)
    }

    /// Waits until no disk operation is under way, and lets the controller take the results.
    pub fn wait_for_disks(&mut self) {
        lock(self.ide).quiesce();
    }

    /// Calls the devices whose time has come.
    pub fn poll(&mut self) {
        self.shared.timers.poll_due();
    }
}
