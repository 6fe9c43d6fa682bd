//! Guest memory, as devices that master the bus reach it.

use vm_memory::{Bytes, GuestAddress};

/// Guest memory as a bus master sees it. Whatever is [`Bytes`] of guest addresses is one, such as
/// `vm_memory::GuestMemoryMmap`.
pub trait DmaMemory: Send + Sync {
    /// Fills `data` from `address` on. False: not all of it is memory.
    fn read(&self, address: u64, data: &mut [u8]) -> bool;
    /// Writes `data` from `address` on. False: not all of it is memory.
    fn write(&self, address: u64, data: &[u8]) -> bool;
}

impl<M: Bytes<GuestAddress> + Send + Sync> DmaMemory for M {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.read_slice(data, GuestAddress(address)).is_ok()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.write_slice(data, GuestAddress(address)).is_ok()
    }
}
