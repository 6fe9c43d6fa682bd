//! Guest-physical memory: where it lies, how it is translated, and which of it was written.
//!
//! - [`arena`]: one shared mapping, the "host-physical" memory of a machine. [`layout`]: guest RAM around
//!   the PCI hole, ROMs and the hypervisor's own pages in such an arena, with a vm-memory view for
//!   devices' DMA. [`device`]: memory that is a device's, such as video memory.
//! - [`ept`]: extended page tables in the architectural format: builder and walker. [`paging`]: walker for
//!   the guest's own tables in all modes. [`nested`]: both together. They work over any [`TableMemory`],
//!   which can itself be a translation, and use nothing but `core`.
//! - [`shadow`]: linear to host-physical tables for where there is no EPT.
//! - [`dirty`]: pages written by processors (EPT dirty flags, KVM's log) and by devices.
//!
//! Tables that walkers read are hostile: every walk ends after as many steps as there are levels, times a
//! fixed number of tries if entries change under it.
//!
//! Left out: hot-plug of RAM, NUMA, memory encryption; each module names what of its format it leaves out.
//! The `unsafe` code is in [`arena`], all of it.
//!
//! ```
//! use trapline_memory::{GuestRam, PageSize, RamConfig};
//! use trapline_memory::ept::{self, EptAccess, EptBuilder, EptMode};
//! use vm_memory::{Bytes, GuestAddress};
//!
//! // 4 GiB of RAM: 3 GiB below the PCI hole, the rest from 4 GiB on. Pages take memory when touched.
//! let ram = GuestRam::new(&RamConfig::new(4 << 30))?;
//! let mut tables = EptBuilder::new(ram.arena().clone(), ram.root_pages().clone(), true)?;
//! ram.map_ept(&mut tables)?;
//!
//! // A device writes; the processor finds the bytes where the EPT says they are.
//! ram.memory().write_obj(0x1234_5678_u32, GuestAddress((4 << 30) + 0x20))?;
//! let mode = EptMode::new(tables.eptp(), 46);
//! let leaf = ept::walk(ram.arena(), &mode, (4 << 30) + 0x20, EptAccess::READ)?;
//! assert_eq!(leaf.page_size, PageSize::Size1G);
//! assert_eq!(ram.arena().read_u64(leaf.hpa), Some(0x1234_5678));
//!
//! // Nothing is mapped in the hole.
//! assert!(ept::walk(ram.arena(), &mode, 0xfee0_0000, EptAccess::READ).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod arena;
pub mod device;
pub mod dirty;
pub mod ept;
pub mod layout;
pub mod nested;
pub mod paging;
mod root;
pub mod shadow;
pub mod table;
pub mod test;

pub use arena::{Arena, ArenaError, ArenaOptions, OutOfArena};
pub use device::DeviceMemory;
pub use dirty::DirtyTracker;
pub use layout::{GuestMemory, GuestRam, LayoutError, RamConfig, RootPages, Slot};
pub use table::{PageAllocator, PageSize, TableMemory};
