//! The kernel's memory slots and what their dirty logs or rings bring.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use trapline_memory::{Arena, DirtyTracker, Slot};

use super::sys::{self, DirtyRing};
use crate::slots::{PAGE_SIZE, check_layout};
use crate::soft::Assistant;
use crate::{Error, Result};

/// The slots that the kernel has.
#[derive(Default)]
pub(super) struct Slots {
    slots: BTreeMap<u32, KernelSlot>,
    /// One for each vCPU; `None` if the kernel keeps dirty bitmaps.
    rings: Option<Vec<DirtyRing>>,
    /// Logs of slots that are gone: guest-physical address and bits.
    left_behind: Vec<(u64, Vec<u64>)>,
    /// Writes to the same memory.
    assistant: Option<Arc<Assistant>>,
}

struct KernelSlot {
    slot: Slot,
    /// Keeps mapped what the guest can write to.
    arena: Arc<Arena>,
    /// What the dirty rings brought: one bit a page.
    dirty: Vec<u64>,
}

impl KernelSlot {
    fn is(&self, arena: &Arc<Arena>, slot: &Slot) -> bool {
        Arc::ptr_eq(&self.arena, arena) && Slot { log_dirty: slot.log_dirty, ..self.slot } == *slot
    }
}

impl Slots {
    /// None yet. With `rings`, the kernel reports written pages there.
    pub(super) fn new(rings: bool) -> Self {
        Self { rings: rings.then(Vec::new), ..Self::default() }
    }

    /// See [`Vm::set_memory`](crate::Vm::set_memory).
    pub(super) fn set(&mut self, vm: &VmFd, max: u32, arena: &Arc<Arena>, wanted: &[Slot]) -> Result<()> {
        check_layout(arena, wanted)?;
        let gone = |old: &KernelSlot| !wanted.iter().any(|new| old.is(arena, new));
        while let Some(id) = self.slots.iter().find_map(|(id, old)| gone(old).then_some(*id)) {
            self.leave_log(vm, id)?;
            sys::remove_slot(vm, id).map_err(Error::os("KVM_SET_USER_MEMORY_REGION"))?;
            self.slots.remove(&id);
        }
        for new in wanted {
            let present = self.slots.iter().find_map(|(id, old)| old.is(arena, new).then_some(*id));
            if present.is_some_and(|id| self.slots.get(&id).is_some_and(|old| old.slot == *new)) {
                continue;
            }
            let id = present.or_else(|| (0..max).find(|id| !self.slots.contains_key(id)));
            let id = id.ok_or(Error::Slot { gpa: new.gpa, what: "no slot is free for it" })?;
            if present.is_some() {
                self.leave_log(vm, id)?;
            }
            sys::set_slot(vm, id, arena, new).map_err(Error::os("KVM_SET_USER_MEMORY_REGION"))?;
            let words = if new.log_dirty { (new.size / PAGE_SIZE).div_ceil(64) } else { 0 };
            let dirty = vec![0; words as usize];
            self.slots.insert(id, KernelSlot { slot: *new, arena: Arc::clone(arena), dirty });
        }
        self.assistant.as_ref().map_or(Ok(()), |assistant| assistant.set_memory(arena, wanted))
    }

    /// The machine that executes what the kernel gives up on; made with `make` at the first call.
    pub(super) fn assistant(
        &mut self,
        make: impl FnOnce(&Arc<Arena>, &[Slot]) -> Result<Assistant>,
    ) -> Result<Arc<Assistant>> {
        if let Some(assistant) = &self.assistant {
            return Ok(Arc::clone(assistant));
        }
        let first = self.slots.values().next().ok_or(Error::NotFound { what: "memory slot", id: 0 })?;
        let slots: Vec<_> = self.slots.values().map(|slot| slot.slot).collect();
        let assistant = Arc::new(make(&first.arena, &slots)?);
        self.assistant = Some(Arc::clone(&assistant));
        Ok(assistant)
    }

    /// Starts collecting the ring of a new vCPU.
    pub(super) fn add_ring(&mut self, vcpu: &VcpuFd, entries: u32) -> Result<()> {
        let ring = DirtyRing::map(vcpu, entries);
        let ring = ring.map_err(|source| Error::Os { what: "mmap of the dirty ring", source })?;
        self.rings.get_or_insert_default().push(ring);
        Ok(())
    }

    /// See [`Vm::collect_dirty`](crate::Vm::collect_dirty).
    pub(super) fn collect_dirty(&mut self, vm: &VmFd, tracker: &DirtyTracker) -> Result<()> {
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            self.leave_log(vm, id)?;
        }
        for (gpa, log) in self.left_behind.drain(..) {
            tracker.merge(gpa, &log);
        }
        self.assistant.as_ref().map_or(Ok(()), |assistant| assistant.collect_dirty(tracker))
    }

    /// Takes a slot's log and puts it with those to be collected.
    fn leave_log(&mut self, vm: &VmFd, id: u32) -> Result<()> {
        self.harvest_rings(vm)?;
        let Some(KernelSlot { slot, dirty, .. }) = self.slots.get_mut(&id).filter(|s| s.slot.log_dirty)
        else {
            return Ok(());
        };
        let log = if self.rings.is_none() {
            vm.get_dirty_log(id, slot.size as usize).map_err(Error::os("KVM_GET_DIRTY_LOG"))?
        } else {
            let clean = vec![0; dirty.len()];
            std::mem::replace(dirty, clean)
        };
        self.left_behind.push((slot.gpa, log));
        Ok(())
    }

    /// Moves what is in the rings into the slots' bitmaps.
    pub(super) fn harvest_rings(&mut self, vm: &VmFd) -> Result<()> {
        let Self { rings, slots, .. } = self;
        let mut harvested = 0;
        for ring in rings.iter_mut().flatten() {
            harvested += ring.harvest(|id, page| {
                // The upper half numbers address spaces: SMM has one, which this crate does not use.
                let slot = slots.get_mut(&(id & 0xffff));
                if let Some(word) = slot.and_then(|s| s.dirty.get_mut((page / 64) as usize)) {
                    *word |= 1 << (page % 64);
                }
            });
        }
        if harvested > 0 {
            sys::reset_dirty_rings(vm).map_err(Error::os("KVM_RESET_DIRTY_RINGS"))?;
        }
        Ok(())
    }
}
