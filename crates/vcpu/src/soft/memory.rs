//! Guest memory: the tables that all vCPUs share, and how it is changed under them.
//!
//! There is always an EPT hierarchy. With shadow paging, processors use it only where they need unrestricted
//! guest mode; the engine itself translates by it, and it keeps account of written pages.

use std::sync::{Arc, Mutex, MutexGuard};

use trapline_device::AccessSize;
use trapline_memory::ept::{self, EptAccess, EptAttributes, EptBuilder, EptMode, EptPerms, MapError};
use trapline_memory::shadow::{Shadow, ShadowRam, Watch};
use trapline_memory::{Arena, ArenaOptions, DirtyTracker, OutOfArena, PageSize, Slot};
use trapline_softcpu::Shared;

use super::lock;
use crate::slots::{PAGE_SIZE, check_layout};
use crate::{Engine, Error, Paging, Result};

/// Bytes of an arena that holds nothing but a hypervisor's pages: there is no guest memory yet.
const EMPTY_ARENA: u64 = 1 << 20;
/// Pages of the root area that shadow tables leave to other things, and the fewest that they can do with.
const OTHER_PAGES: u64 = 128;
const FEWEST_SHADOW_PAGES: u64 = 64;

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
    shadow: Option<Shadowed>,
    /// Sorted by address.
    slots: Vec<Slot>,
    /// Written pages of slots that do not log any more.
    left_behind: Vec<u64>,
}

/// What shadow paging adds.
struct Shadowed {
    tables: Mutex<Shadow<Arc<Arena>>>,
    watch: Arc<Watch>,
}

impl Shadowed {
    fn new(arena: &Arc<Arena>) -> Result<Self> {
        let pages = arena.root_pages().saturating_sub(OTHER_PAGES);
        if pages < FEWEST_SHADOW_PAGES {
            let what = "shadow paging with so small a root area of the arena";
            return Err(Error::Unsupported { engine: Engine::Soft, what });
        }
        let tables = Shadow::new(arena.clone(), arena.clone(), pages as usize);
        let watch = tables.watch().clone();
        Ok(Self { tables: Mutex::new(tables), watch })
    }
}

impl Memory {
    /// None yet.
    pub fn empty(paging: Paging) -> Result<Self> {
        let arena = Arena::with_root_area(EMPTY_ARENA, 0..EMPTY_ARENA, &ArenaOptions::default());
        let arena = arena.map_err(|e| Error::Os { what: "memory", source: std::io::Error::other(e) })?;
        Self::on(Arc::new(arena), 0, paging)
    }

    fn on(arena: Arc<Arena>, epoch: u64, paging: Paging) -> Result<Self> {
        let ept = EptBuilder::new(arena.clone(), arena.clone(), true).map_err(|e| refused(0, e))?;
        let shared = Shared::new(arena.len());
        let shadow = match paging {
            Paging::Ept => None,
            Paging::Shadow => Some(Shadowed::new(&arena)?),
        };
        let processors = shared.clone();
        let watch = shadow.as_ref().map(|shadow| shadow.watch.clone());
        arena.watch_device_writes(move |hpa, len| {
            processors.device_wrote(hpa, len);
            if let Some(watch) = &watch {
                watch.wrote(hpa, len);
            }
        });
        Ok(Self { arena, shared, epoch, ept, shadow, slots: Vec::new(), left_behind: Vec::new() })
    }

    /// The shadow tables, on a machine that has them.
    pub fn shadow(&self) -> Option<MutexGuard<'_, Shadow<Arc<Arena>>>> {
        self.shadow.as_ref().map(|shadow| lock(&shadow.tables))
    }

    /// Drops all shadow tables.
    pub fn drop_shadow(&mut self) {
        if let Some(mut tables) = self.shadow() {
            tables.flush_all();
        }
    }

    /// The engine writes to memory of the guest: whoever keeps something that was made of it is told. Pages
    /// are not recorded as written.
    pub fn write(&self, hpa: u64, bytes: &[u8]) {
        self.arena.write_bytes(hpa, bytes);
        self.written(hpa, bytes.len() as u64);
    }

    fn written(&self, hpa: u64, len: u64) {
        self.shared.device_wrote(hpa, len);
        if let Some(shadow) = &self.shadow {
            shadow.watch.wrote(hpa, len);
        }
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
            let paging = if self.shadow.is_some() { Paging::Shadow } else { Paging::Ept };
            *self = Self::on(arena.clone(), self.epoch, paging)?;
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
        self.slots.sort_unstable_by_key(|slot| slot.gpa);
        self.drop_shadow();
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
            let Some(mut shadow) = self.shadow() else {
                tracker.harvest_ept(&self.ept, slot.gpa, slot.size).map_err(|e| refused(slot.gpa, e))?;
                continue;
            };
            let collected = self.ept.take_dirty(slot.gpa, slot.size, |leaf| {
                tracker.merge(leaf.gpa, &[1]);
                shadow.write_protect(slot.hpa + (leaf.gpa - slot.gpa));
            });
            collected.map_err(|e| refused(slot.gpa, e))?;
        }
        Ok(())
    }
}

/// For what the engine itself writes to the guest's memory.
impl Memory {
    /// The host-physical address of `len` bytes of RAM, where the guest could write them.
    pub fn ram(&self, gpa: u64, len: u64) -> Option<u64> {
        let slot = self.slot_at(gpa).filter(|slot| !slot.read_only)?;
        (slot.end() - gpa >= len).then(|| slot.hpa + (gpa - slot.gpa))
    }

    /// Records that bytes were written, where that is wanted.
    pub fn record(&self, gpa: u64, len: u64) {
        let first = gpa & !(PAGE_SIZE - 1);
        for page in (first..gpa.saturating_add(len)).step_by(PAGE_SIZE as usize) {
            if self.slot_at(page).is_some_and(|slot| slot.log_dirty) {
                self.wrote(page);
            }
        }
    }

    /// Atomically takes the byte at a host-physical address that is a multiple of 8, leaving zero.
    pub fn take_byte(&self, hpa: u64) -> u64 {
        let mut old = self.arena.read_u64(hpa).unwrap_or(0);
        while let Some(Err(now)) = self.arena.compare_exchange_u64(hpa, old, old & !0xff) {
            old = now;
        }
        self.written(hpa, 1);
        old & 0xff
    }
}

impl Memory {
    /// An access to RAM that a processor may not make itself: writes that its shadow tables cannot allow, and
    /// reads in the same instruction. `None`: it is none to RAM.
    pub fn emulate(&self, gpa: u64, size: AccessSize, write: Option<u64>) -> Option<u64> {
        self.shadow.as_ref()?;
        let slot = self.slot_at(gpa).filter(|slot| write.is_none() || !slot.read_only)?;
        let hpa = slot.hpa + (gpa - slot.gpa);
        let mut bytes = [0; 8];
        let len = size.bytes();
        if let Some(value) = write {
            bytes = value.to_le_bytes();
            self.write(hpa, bytes.get(..len)?);
            if slot.log_dirty {
                self.wrote(gpa);
            }
        } else {
            self.arena.read_bytes(hpa, bytes.get_mut(..len)?)?;
        }
        Some(u64::from_le_bytes(bytes))
    }
}

impl ShadowRam for Memory {
    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn slot_at(&self, gpa: u64) -> Option<&Slot> {
        let after = self.slots.partition_point(|slot| slot.gpa <= gpa);
        self.slots.get(after.checked_sub(1)?).filter(|slot| gpa < slot.end())
    }

    /// As a processor with EPT would: in the dirty flag of the leaf.
    fn wrote(&self, gpa: u64) {
        // Guest-physical addresses have been checked by whoever walked to this one.
        let mode = EptMode::new(self.eptp(), 52);
        let _ = ept::walk(&*self.arena, &mode, gpa, EptAccess::WRITE);
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
