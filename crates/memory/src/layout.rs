//! The layout of guest-physical memory: RAM around the PCI hole, ROMs, devices' memory, and the hypervisor's
//! own pages.

use crate::arena::{Arena, ArenaError, ArenaOptions};
use crate::device::DeviceMemory;
use crate::dirty::{DeviceWrites, DirtyTracker};
use crate::ept::{EptAttributes, EptBuilder, EptPerms, MapError};
use crate::table::{PageAllocator, TableMemory};
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

const PAGE: u64 = 4 << 10;
const HUGE_PAGE: u64 = 2 << 20;
const FOUR_GIB: u64 = 1 << 32;

/// Guest RAM as vm-memory sees it: what devices are given for DMA, and loaders to load into. Cloning is
/// cheap; the pages stay mapped as long as any clone lives. Writes through it are recorded in
/// [`GuestRam::dirty`].
///
/// Tests that need no hypervisor can make one with `GuestMemory::from_ranges`.
pub type GuestMemory = GuestMemoryMmap<DeviceWrites>;

/// What guest memory is wanted. All sizes and addresses in bytes, multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamConfig {
    /// Size of RAM. As much as fits lies below the hole, the rest from 4 GiB on.
    pub size: u64,
    /// Where the PCI hole starts, which ends at 4 GiB. A multiple of 1 GiB lets the largest pages fit.
    pub hole_start: u64,
    /// How much can be used for ROMs and for the memory of devices.
    pub device_area: u64,
    /// Size of the root area: the hypervisor's pages.
    pub root_area: u64,
    /// How it is backed.
    pub arena: ArenaOptions,
}

impl RamConfig {
    /// `size` bytes of RAM, the hole from 3 GiB, 48 MiB for ROMs and devices' memory, and a root area of
    /// 16 MiB and a 64th of RAM: pages take memory when touched, and tables grow with what they map.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            hole_start: 0xc000_0000,
            device_area: 48 << 20,
            root_area: (16 << 20) + size / 64 / HUGE_PAGE * HUGE_PAGE,
            arena: ArenaOptions { huge_pages: false },
        }
    }
}

/// Why a layout is not possible.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// RAM of size zero.
    #[error("guest memory size is zero; a Debian kernel needs 128 MiB or more")]
    Empty,
    /// Not a multiple of 4 KiB.
    #[error("{what} {value:#x} is not a multiple of 4 KiB")]
    Misaligned {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The hole must start above 0 and end at 4 GiB.
    #[error("pci hole start {0:#x} is not between 4 KiB and 4 GiB")]
    HoleStart(u64),
    /// More RAM than the host has.
    #[error("guest memory of {requested} MiB is more than the {host} MiB that this host has")]
    ExceedsHost {
        /// Size asked for, in MiB.
        requested: u64,
        /// Memory of the host, in MiB.
        host: u64,
    },
    /// A region reaches into another one, or beyond the address space.
    #[error("region {gpa:#x}+{size:#x} is in use or out of range")]
    Overlap {
        /// Guest-physical address of the region.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// The area for ROMs and devices' memory is used up.
    #[error("rom or device memory of {size:#x} bytes does not fit: {left:#x} bytes of device area are left")]
    DeviceArea {
        /// Size asked for.
        size: u64,
        /// What is left.
        left: u64,
    },
    /// The memory could not be had.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// vm-memory did not take the regions.
    #[error("guest memory regions are not accepted")]
    Regions(#[from] vm_memory::GuestRegionCollectionError),
}

/// A range of guest-physical memory that is one range of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Guest-physical address.
    pub gpa: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the arena. The host's address is [`Arena::base`] plus this.
    pub hpa: u64,
    /// The guest cannot write it: ROM.
    pub read_only: bool,
    /// Writes of the guest are to be recorded.
    pub log_dirty: bool,
}

impl Slot {
    /// The first address after it.
    pub const fn end(&self) -> u64 {
        self.gpa + self.size
    }

    const fn overlaps(&self, start: u64, end: u64) -> bool {
        self.gpa < end && start < self.end()
    }

    /// The part of it from `start` to `end`, which lie within it.
    const fn part(&self, start: u64, end: u64) -> Self {
        Self { gpa: start, size: end - start, hpa: self.hpa + (start - self.gpa), ..*self }
    }
}

/// Guest memory: one [`Arena`] that holds RAM from address 0 on, then ROMs and devices' memory, then the
/// root area, and the [slots](Self::slots) in which the guest sees RAM and ROMs.
#[derive(Debug)]
pub struct GuestRam {
    arena: Arc<Arena>,
    slots: Vec<Slot>,
    memory: GuestMemory,
    dirty: Arc<DirtyTracker>,
    root: Arc<RootPages>,
    /// Where the next ROM or device's memory goes.
    device_next: u64,
    device_end: u64,
    size: u64,
}

impl GuestRam {
    /// Lays out and maps guest memory.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(config: &RamConfig) -> Result<Self, LayoutError> {
        let slots = ram_slots(config)?;
        if let Some(host) = host_memory()
            && config.size > host
        {
            return Err(LayoutError::ExceedsHost { requested: config.size >> 20, host: host >> 20 });
        }
        // The areas begin on huge-page borders, so that the pages of the one are not the other's.
        let up = |at: u64| {
            at.checked_next_multiple_of(HUGE_PAGE).ok_or(ArenaError::Size { size: at, page: HUGE_PAGE })
        };
        let sum = |at: u64, size: u64| {
            up(at.checked_add(size).ok_or(ArenaError::Size { size, page: HUGE_PAGE })?)
        };
        let device_next = up(config.size)?;
        let root_start = sum(device_next, config.device_area)?;
        let size = sum(root_start, config.root_area)?;
        let root = root_start..root_start + config.root_area;
        let arena = Arc::new(Arena::with_root_area(size, root, &config.arena)?);
        let dirty = Arc::new(DirtyTracker::new(slots.iter().map(|slot| slot.gpa..slot.end())));
        let mut regions = Vec::new();
        for slot in &slots {
            let overlap = LayoutError::Overlap { gpa: slot.gpa, size: slot.size };
            let writes = DeviceWrites::new(dirty.clone(), slot.gpa);
            let region = arena
                .region(slot.hpa, slot.size, writes)
                .and_then(|mapping| GuestRegionMmap::new(mapping, GuestAddress(slot.gpa)));
            regions.push(region.ok_or(overlap)?);
        }
        let memory = GuestMemory::from_regions(regions)?;
        let root = Arc::new(RootPages { arena: arena.clone() });
        Ok(Self {
            arena,
            slots,
            memory,
            dirty,
            root,
            device_next,
            device_end: device_next + config.device_area,
            size: config.size,
        })
    }

    /// Adds a ROM at `gpa`, filled with `image` and zeroes up to a whole page, where no RAM is.
    ///
    /// # Errors
    /// An address that is no multiple of 4 KiB or in use; an empty image, or one that the device
    /// area has no room for.
    pub fn add_rom(&mut self, gpa: u64, image: &[u8]) -> Result<(), LayoutError> {
        aligned("rom address", gpa)?;
        let size = (image.len() as u64).next_multiple_of(PAGE);
        let end = gpa.checked_add(size).filter(|&end| end <= 1 << 52 && size != 0);
        let Some(end) = end.filter(|&end| !self.slots.iter().any(|slot| slot.overlaps(gpa, end))) else {
            return Err(LayoutError::Overlap { gpa, size });
        };
        let hpa = self.reserve(size, PAGE)?;
        let full = LayoutError::DeviceArea { size, left: 0 };
        self.arena.write_bytes(hpa, image).ok_or(full)?;
        let slot = Slot { gpa, size: end - gpa, hpa, read_only: true, log_dirty: false };
        self.slots.push(slot);
        self.slots.sort_by_key(|slot| slot.gpa);
        Ok(())
    }

    /// Reserves `size` bytes, whole pages, for a device: memory that is neither RAM nor in any of the
    /// [slots](Self::slots). [`DeviceMemory::map`] makes a slot of it.
    ///
    /// # Errors
    /// A size that is zero or not whole pages, or that the device area has no room for.
    pub fn add_device_memory(&mut self, size: u64) -> Result<DeviceMemory, LayoutError> {
        aligned("device memory size", size)?;
        if size == 0 {
            return Err(LayoutError::Arena(ArenaError::Empty));
        }
        // Where large pages can map it, let them.
        let hpa = self.reserve(size, if size < HUGE_PAGE { PAGE } else { HUGE_PAGE })?;
        let memory = DeviceMemory::new(self.arena.clone(), hpa, size);
        self.dirty.add_device(memory.pages().clone());
        Ok(memory)
    }

    /// The address in the arena of `size` free bytes of the device area, aligned to `align`.
    fn reserve(&mut self, size: u64, align: u64) -> Result<u64, LayoutError> {
        let hpa = self.device_next.next_multiple_of(align);
        let left = self.device_end.saturating_sub(hpa);
        if size > left {
            return Err(LayoutError::DeviceArea { size, left });
        }
        self.device_next = hpa + size;
        Ok(hpa)
    }

    /// Makes a range of RAM or ROM writable or not for the guest, splitting slots where needed: shadowed
    /// BIOS areas (PAM). Devices' DMA is not held back by it.
    ///
    /// # Errors
    /// A range that is not whole pages.
    pub fn set_read_only(&mut self, gpa: u64, size: u64, read_only: bool) -> Result<(), LayoutError> {
        self.change_slots(gpa, size, |slot| slot.read_only = read_only)
    }

    /// Turns the recording of the guest's writes to a range on or off, splitting slots where needed. Only
    /// the slots change: an engine must be told, and [`dirty`](Self::dirty) be enabled.
    ///
    /// # Errors
    /// A range that is not whole pages.
    pub fn set_log_dirty(&mut self, gpa: u64, size: u64, log_dirty: bool) -> Result<(), LayoutError> {
        self.change_slots(gpa, size, |slot| slot.log_dirty = log_dirty)
    }

    fn change_slots(&mut self, gpa: u64, size: u64, change: impl Fn(&mut Slot)) -> Result<(), LayoutError> {
        aligned("region address", gpa)?;
        aligned("region size", size)?;
        let end = gpa.checked_add(size).ok_or(LayoutError::Overlap { gpa, size })?;
        let mut slots: Vec<Slot> = Vec::with_capacity(self.slots.len() + 2);
        for slot in &self.slots {
            let cut = |at: u64| at.clamp(slot.gpa, slot.end());
            let (from, to) = (cut(gpa), cut(end));
            for (start, stop) in [(slot.gpa, from), (from, to), (to, slot.end())] {
                if start == stop {
                    continue;
                }
                let mut part = slot.part(start, stop);
                if start >= gpa && stop <= end {
                    change(&mut part);
                }
                push_merged(&mut slots, part);
            }
        }
        self.slots = slots;
        Ok(())
    }

    /// Maps every slot in an EPT, in the largest leaves that fit: write-back, ROMs without write
    /// permission. What lies between the slots is left alone.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map_ept<M: TableMemory, A: PageAllocator>(
        &self,
        ept: &mut EptBuilder<M, A>,
    ) -> Result<(), MapError<M::Error>> {
        for slot in &self.slots {
            let perms = if slot.read_only { EptPerms::RX } else { EptPerms::RWX };
            ept.map(slot.gpa, slot.hpa, slot.size, EptAttributes::new(perms))?;
        }
        Ok(())
    }

    /// Size of RAM in bytes, without ROMs.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The "host-physical" memory.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// What the guest sees where, in ascending order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot of an address.
    pub fn slot_at(&self, gpa: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.gpa <= gpa && gpa < slot.end())
    }

    /// The address in the arena of a guest-physical address.
    pub fn hpa(&self, gpa: u64) -> Option<u64> {
        self.slot_at(gpa).map(|slot| slot.hpa + (gpa - slot.gpa))
    }

    /// RAM for devices and loaders. ROMs are not part of it.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Which pages of RAM were written.
    pub fn dirty(&self) -> &Arc<DirtyTracker> {
        &self.dirty
    }

    /// The hypervisor's pages, which no slot shows to the guest.
    pub fn root_pages(&self) -> &Arc<RootPages> {
        &self.root
    }
}

/// Where RAM goes.
fn ram_slots(config: &RamConfig) -> Result<Vec<Slot>, LayoutError> {
    let RamConfig { size, hole_start, device_area, root_area, arena: _ } = *config;
    if size == 0 {
        return Err(LayoutError::Empty);
    }
    aligned("guest memory size", size)?;
    aligned("pci hole start", hole_start)?;
    aligned("device area", device_area)?;
    aligned("root area", root_area)?;
    if hole_start == 0 || hole_start > FOUR_GIB {
        return Err(LayoutError::HoleStart(hole_start));
    }
    let slot = |gpa, size, hpa| Slot { gpa, size, hpa, read_only: false, log_dirty: false };
    let low = size.min(hole_start);
    let high = size - low;
    if FOUR_GIB.checked_add(high).is_none_or(|end| end > 1 << 48) {
        return Err(LayoutError::Overlap { gpa: FOUR_GIB, size: high });
    }
    let mut slots = vec![slot(0, low, 0)];
    if high != 0 {
        push_merged(&mut slots, slot(FOUR_GIB, high, low));
    }
    Ok(slots)
}

/// Appends a slot, or lets the last one grow if it goes on where that ends.
fn push_merged(slots: &mut Vec<Slot>, slot: Slot) {
    if let Some(last) = slots.last_mut()
        && last.end() == slot.gpa
        && last.hpa + last.size == slot.hpa
        && (last.read_only, last.log_dirty) == (slot.read_only, slot.log_dirty)
    {
        last.size += slot.size;
        return;
    }
    slots.push(slot);
}

fn aligned(what: &'static str, value: u64) -> Result<(), LayoutError> {
    if value.is_multiple_of(PAGE) { Ok(()) } else { Err(LayoutError::Misaligned { what, value }) }
}

/// MemTotal of /proc/meminfo in bytes, where there is one.
fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The pages of the root area: VMCS, EPT tables, bitmaps of the hypervisor. Shared by threads, and by all
/// who use the [`Arena`] itself as a [`PageAllocator`].
#[derive(Debug)]
pub struct RootPages {
    arena: Arc<Arena>,
}

impl RootPages {
    /// The host-physical address of a zeroed 4 KiB page, or `None` if all are in use.
    pub fn alloc_page(&self) -> Option<u64> {
        self.arena.alloc_page()
    }

    /// Gives back a page that [`alloc_page`](Self::alloc_page) returned. Others are ignored.
    pub fn free_page(&self, pa: u64) {
        self.arena.free_page(pa);
    }

    /// The memory that the pages lie in.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }
}

impl PageAllocator for RootPages {
    fn alloc_page(&self) -> Option<u64> {
        RootPages::alloc_page(self)
    }

    fn free_page(&self, pa: u64) {
        RootPages::free_page(self, pa);
    }
}
