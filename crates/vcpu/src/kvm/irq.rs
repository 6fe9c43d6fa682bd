//! Routes: which message an IOAPIC pin or an irqfd sends.

use std::collections::BTreeMap;

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use trapline_device::Msi;
use vmm_sys_util::eventfd::EventFd;

use crate::{Error, IOAPIC_PINS, IrqfdId, Result};

/// GSIs in all: `KVM_MAX_IRQ_ROUTES`.
const MAX_ROUTES: u32 = 4096;

/// The VM's routing table, and what is registered on it. GSIs below [`IOAPIC_PINS`] are the pins.
#[derive(Default)]
pub(super) struct Routes {
    messages: BTreeMap<u32, Msi>,
    irqfds: BTreeMap<u32, EventFd>,
}

impl Routes {
    pub(super) fn set_pin(&mut self, vm: &VmFd, pin: u32, msi: Option<Msi>) -> Result<()> {
        if pin >= IOAPIC_PINS {
            return Err(Error::NotFound { what: "ioapic pin", id: pin.into() });
        }
        self.change(vm, pin, msi)
    }

    pub(super) fn add(&mut self, vm: &VmFd, fd: &EventFd, msi: Msi) -> Result<IrqfdId> {
        let gsi = (IOAPIC_PINS..MAX_ROUTES).find(|gsi| !self.irqfds.contains_key(gsi));
        let gsi = gsi.ok_or(Error::NotFound { what: "free interrupt route below", id: MAX_ROUTES.into() })?;
        // Kept to be able to unregister by id alone.
        let kept = fd.try_clone().map_err(|source| Error::Os { what: "dup of an eventfd", source })?;
        self.change(vm, gsi, Some(msi))?;
        if let Err(e) = vm.register_irqfd(fd, gsi) {
            self.change(vm, gsi, None)?;
            return Err(Error::os("KVM_IRQFD")(e));
        }
        self.irqfds.insert(gsi, kept);
        Ok(IrqfdId(gsi))
    }

    pub(super) fn set(&mut self, vm: &VmFd, id: IrqfdId, msi: Msi) -> Result<()> {
        if !self.irqfds.contains_key(&id.0) {
            return Err(Error::NotFound { what: "irqfd", id: id.0.into() });
        }
        self.change(vm, id.0, Some(msi))
    }

    pub(super) fn remove(&mut self, vm: &VmFd, id: IrqfdId) -> Result<()> {
        let fd = self.irqfds.get(&id.0).ok_or(Error::NotFound { what: "irqfd", id: id.0.into() })?;
        vm.unregister_irqfd(fd, id.0).map_err(Error::os("KVM_IRQFD"))?;
        self.irqfds.remove(&id.0);
        self.change(vm, id.0, None)
    }

    /// Changes one route. Where the kernel refuses, all stays as it was.
    fn change(&mut self, vm: &VmFd, gsi: u32, msi: Option<Msi>) -> Result<()> {
        let before = self.put(gsi, msi);
        if before == msi {
            return Ok(());
        }
        self.commit(vm).inspect_err(|_| {
            self.put(gsi, before);
        })
    }

    fn put(&mut self, gsi: u32, msi: Option<Msi>) -> Option<Msi> {
        match msi {
            Some(msi) => self.messages.insert(gsi, msi),
            None => self.messages.remove(&gsi),
        }
    }

    /// Hands the whole table to the kernel, which knows no smaller change.
    fn commit(&self, vm: &VmFd) -> Result<()> {
        let entries: Vec<_> = self.messages.iter().map(|(&gsi, &msi)| entry(gsi, msi)).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| Error::NotFound { what: "room for interrupt route", id: entries.len() as u64 })?;
        vm.set_gsi_routing(&table).map_err(Error::os("KVM_SET_GSI_ROUTING"))
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}
