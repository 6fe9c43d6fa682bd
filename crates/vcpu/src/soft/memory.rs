//! Guest memory: the EPT hierarchy that all vCPUs share, and how it is changed under them.

use std::sync::Arc;

use trapline_memory::ept::{EptAttributes, EptBuilder, EptPerms, MapError};
use trapline_memory::{Arena, ArenaOptions, DirtyTracker, OutOfArena, PageSize, Slot};
use trapline_softcpu::Shared;

use crate::slots::check_layout;
use crate::{Error, Result};

/// Bytes of an arena that holds nothing but a hypervisor's pages: there is no guest memory yet.
const EMPTY_ARENA: u64 = 256 << 10;

/// What a guest-physical range is mapped to: difference of addresses, and whether it is read-only.
type Mapping = (u64, bool);

/// The memory of a machine.
pub(super) struct Memory {
    /// "Host-physical" memory.
    pub arena: Arc<Arena>,
    /// What the processors tell each other about code.
    pub shared: Arc<Shared>,
    /// Goes up with each change that processors must forget cached translations for.
    pub epoch: u64,
    ept: EptBuilder<Arc<Arena>, Arc<Arena>>,
    slots: Vec<Slot>,
    /// Written pages of slots that do not log any more.
    left_behind: Vec<u64>,
}

impl Memory {
    /// None yet.
    pub fn empty() -> Result<Self> {
        let arena = Arena::with_root_area(EMPTY_ARENA, 0..EMPTY_ARENA, &ArenaOptions::default());
        let arena = arena.map_err(|e| Error::Os { what: "memory", source: std::io::Error::other(e) })?;
        Self::on(Arc::new(arena), 0)
    }

    fn on(arena: Arc<Arena>, epoch: u64) -> Result<Self> {
        let ept = EptBuilder::new(arena.clone(), arena.clone(), true).map_err(|e| refused(0, e))?;
        let shared = Shared::new(arena.len());
        let processors = shared.clone();
        arena.watch_device_writes(move |hpa, len| processors.device_wrote(hpa, len));
        Ok(Self { arena, shared, epoch, ept, slots: Vec::new(), left_behind: Vec::new() })
    }

    /// The EPT pointer.
    pub fn eptp(&self) -> u64 {
        self.ept.eptp()
    }

    /// See [`Vm::set_memory`](crate::Vm::set_memory).
    pub fn set(&mut self, arena: &Arc<Arena>, wanted: &[Slot]) -> Result<()> {
        check_layout(arena, wanted)?;
        if let Some(slot) = wanted.iter().find(|slot| slot.end() > 1 << 48) {
            return Err(Error::Slot { gpa: slot.gpa, what: "ends beyond 48 bits of physical address" });
        }
        if !Arc::ptr_eq(arena, &self.arena) {
            *self = Self::on(arena.clone(), self.epoch)?;
        }
        self.epoch += 1;
        let old = std::mem::take(&mut self.slots);
        let mut edges: Vec<u64> = old.iter().chain(wanted).flat_map(|s| [s.gpa, s.end()]).collect();
        edges.sort_unstable();
        edges.dedup();
        for (&from, &to) in edges.iter().zip(edges.iter().skip(1)) {
            let at = |slots: &[Slot]| slots.iter().find(|s| s.gpa <= from && from < s.end()).copied();
            self.change(from, to - from, at(&old), at(wanted)).map_err(|e| refused(from, e))?;
        }
        self.slots = wanted.to_vec();
        Ok(())
    }

    /// Changes a range that lies in one slot at most, before and after.
    fn change(
        &mut self,
        gpa: u64,
        size: u64,
        old: Option<Slot>,
        new: Option<Slot>,
    ) -> std::result::Result<(), MapError<OutOfArena>> {
        let mapping = |slot: &Slot| -> Mapping { (slot.hpa.wrapping_sub(slot.gpa), slot.read_only) };
        let same = old.as_ref().map(mapping) == new.as_ref().map(mapping);
        let logged = old.is_some_and(|s| s.log_dirty);
        let logs = new.is_some_and(|s| s.log_dirty);
        if logged && !(same && logs) {
            let left = &mut self.left_behind;
            // Logging slots have leaves of one page.
            self.ept.take_dirty(gpa, size, |leaf| left.push(leaf.gpa))?;
        }
        if !same {
            match new {
                Some(slot) => {
                    let perms = if slot.read_only { EptPerms::RX } else { EptPerms::RWX };
                    let hpa = slot.hpa + (gpa - slot.gpa);
                    self.ept.map(gpa, hpa, size, EptAttributes::new(perms))?;
                }
                None => self.ept.unmap(gpa, size)?,
            }
        }
        if logs && !(same && logged) {
            self.ept.split(gpa, size, PageSize::Size4K)?;
            self.ept.take_dirty(gpa, size, |_| {})?;
        }
        Ok(())
    }

    /// See [`Vm::collect_dirty`](crate::Vm::collect_dirty).
    pub fn collect_dirty(&mut self, tracker: &DirtyTracker) -> Result<()> {
        self.epoch += 1;
        for gpa in self.left_behind.drain(..) {
            tracker.merge(gpa, &[1]);
        }
        for slot in self.slots.iter().filter(|slot| slot.log_dirty) {
            tracker.harvest_ept(&self.ept, slot.gpa, slot.size).map_err(|e| refused(slot.gpa, e))?;
        }
        Ok(())
    }
}

/// Why tables could not be changed.
fn refused(gpa: u64, error: MapError<OutOfArena>) -> Error {
    let what = match error {
        MapError::NoPage => "the arena's root area is used up",
        _ => "cannot be mapped",
    };
    Error::Slot { gpa, what }
}
