//! Guest-physical memory: RAM layout, EPT, guest page-table walkers, dirty tracking
pub mod arena;
pub mod dirty;
pub mod ept;
pub mod layout;
pub mod nested;
pub mod paging;
pub mod table;
pub mod test;

pub use arena::{Arena, ArenaError, ArenaOptions, OutOfArena};
pub use dirty::DirtyTracker;
pub use layout::{GuestMemory, GuestRam, LayoutError, RamConfig, RootPages, Slot};
pub use table::{PageAllocator, PageSize, TableMemory};
