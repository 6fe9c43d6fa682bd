//! eventfds: guest writes that signal one, and ones that send a message.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use trapline_device::{AccessSize, Msi};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::lock;
use super::vm::Machine;
use crate::{Error, IoEvent, IoEventAddress, IrqfdId, Result};

/// Guest writes that signal an eventfd.
#[derive(Default)]
pub(crate) struct IoEvents(Vec<(IoEvent, EventFd)>);

impl IoEvents {
    /// See [`Vm::register_ioeventfd`](crate::Vm::register_ioeventfd).
    pub fn add(&mut self, fd: &EventFd, event: IoEvent) -> Result<()> {
        let clash = |other: &IoEvent| {
            other.address == event.address
                && (other.matches.is_none() || event.matches.is_none() || other.matches == event.matches)
        };
        if self.0.iter().any(|(other, _)| clash(other)) {
            return Err(os("ioeventfd")(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        self.0.push((event, fd.try_clone().map_err(os("dup of an eventfd"))?));
        Ok(())
    }

    /// See [`Vm::unregister_ioeventfd`](crate::Vm::unregister_ioeventfd).
    pub fn remove(&mut self, event: IoEvent) -> Result<()> {
        let at = self.0.iter().position(|(other, _)| *other == event);
        let id = match event.address {
            IoEventAddress::Pio(port) => port.into(),
            IoEventAddress::Mmio(addr) => addr,
        };
        self.0.remove(at.ok_or(Error::NotFound { what: "ioeventfd", id })?);
        Ok(())
    }

    /// Signals the eventfd of a write, if there is one.
    pub fn signal(&self, address: IoEventAddress, size: AccessSize, value: u64) -> bool {
        let wanted = |event: &IoEvent| {
            event.address == address && event.matches.is_none_or(|m| m == (size, value & size.ones()))
        };
        let Some((_, fd)) = self.0.iter().find(|(event, _)| wanted(event)) else { return false };
        if let Err(e) = fd.write(1) {
            // The counter is full: whoever reads it has been told often enough.
            tracing::debug!("ioeventfd: {e}");
        }
        true
    }
}

/// The eventfds that send messages, and the thread that watches them.
pub(super) struct Irqfds {
    table: Mutex<BTreeMap<u32, (EventFd, Msi)>>,
    epoll: Epoll,
    /// Ends the thread.
    stop: EventFd,
}

/// The epoll key of [`Irqfds::stop`].
const STOP: u64 = u64::MAX;
/// As many as KVM has routes.
const MOST: u32 = 4096;

impl Irqfds {
    /// Starts the thread for a machine.
    pub fn start(machine: &Arc<Machine>) -> Result<Arc<Self>> {
        let irqfds = Arc::new(Self {
            table: Mutex::default(),
            epoll: Epoll::new().map_err(os("epoll_create"))?,
            stop: EventFd::new(EFD_NONBLOCK).map_err(os("eventfd"))?,
        });
        irqfds.watch(ControlOperation::Add, &irqfds.stop, STOP)?;
        let (shared, machine) = (irqfds.clone(), Arc::downgrade(machine));
        let thread = thread::Builder::new().name("irqfd".into());
        thread.spawn(move || shared.run(&machine)).map_err(os("thread"))?;
        Ok(irqfds)
    }

    /// Ends the thread, soon.
    pub fn stop(&self) {
        if let Err(e) = self.stop.write(1) {
            tracing::warn!("irqfd thread: {e}");
        }
    }

    pub fn add(&self, fd: &EventFd, msi: Msi) -> Result<IrqfdId> {
        let mut table = lock(&self.table);
        let id = (0..MOST).find(|id| !table.contains_key(id));
        let id = id.ok_or(Error::NotFound { what: "free interrupt route below", id: MOST.into() })?;
        let fd = fd.try_clone().map_err(os("dup of an eventfd"))?;
        self.watch(ControlOperation::Add, &fd, id.into())?;
        table.insert(id, (fd, msi));
        Ok(IrqfdId(id))
    }

    pub fn set(&self, id: IrqfdId, msi: Msi) -> Result<()> {
        let mut table = lock(&self.table);
        let entry = table.get_mut(&id.0).ok_or(Error::NotFound { what: "irqfd", id: id.0.into() })?;
        entry.1 = msi;
        Ok(())
    }

    pub fn remove(&self, id: IrqfdId) -> Result<()> {
        let mut table = lock(&self.table);
        let (fd, _) = table.get(&id.0).ok_or(Error::NotFound { what: "irqfd", id: id.0.into() })?;
        self.watch(ControlOperation::Delete, fd, id.0.into())?;
        table.remove(&id.0);
        Ok(())
    }

    fn watch(&self, operation: ControlOperation, fd: &EventFd, key: u64) -> Result<()> {
        let event = EpollEvent::new(EventSet::IN, key);
        self.epoll.ctl(operation, fd.as_raw_fd(), event).map_err(os("epoll_ctl"))
    }

    fn run(&self, machine: &Weak<Machine>) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let n = match self.epoll.wait(-1, &mut events) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return tracing::error!("irqfd thread: {e}"),
            };
            for event in events.iter().take(n) {
                let Some(machine) = machine.upgrade() else { return };
                if event.data() == STOP {
                    return;
                }
                // Consumed under the lock: nothing is taken from an eventfd that was removed.
                let signalled = {
                    let table = lock(&self.table);
                    let entry = u32::try_from(event.data()).ok().and_then(|id| table.get(&id));
                    entry.and_then(|(fd, msi)| fd.read().ok().map(|_| *msi))
                };
                if let Some(msi) = signalled {
                    machine.send(msi);
                }
            }
        }
    }
}

/// Wraps an error of the operating system.
fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Os { what, source }
}
