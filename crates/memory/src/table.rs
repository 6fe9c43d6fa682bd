//! What every table walker needs of memory: eight-byte entries, read and updated atomically.

use core::ops::Deref;

/// Physical memory that holds translation tables.
///
/// Addresses are multiples of 8; the entry is little-endian. Each operation is one atomic access of
/// eight bytes. An error (an address with no memory behind it, an EPT violation of the access) passes
/// through a walker unchanged.
pub trait TableMemory {
    /// Why an access failed.
    type Error;

    /// The entry at `pa`.
    fn read(&self, pa: u64) -> Result<u64, Self::Error>;

    /// Replaces the entry at `pa`.
    fn write(&self, pa: u64, value: u64) -> Result<(), Self::Error>;

    /// Replaces the entry at `pa` by `new` if it is `current`. The inner result holds what was there:
    /// `Ok` if it was replaced, `Err` if it was something else.
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Self::Error>;

    /// Sets `bits` in the entry at `pa` and returns what was there before.
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, Self::Error>;
}

impl<P: Deref> TableMemory for P
where
    P::Target: TableMemory,
{
    type Error = <P::Target as TableMemory>::Error;

    #[inline]
    fn read(&self, pa: u64) -> Result<u64, Self::Error> {
        (**self).read(pa)
    }

    #[inline]
    fn write(&self, pa: u64, value: u64) -> Result<(), Self::Error> {
        (**self).write(pa, value)
    }

    #[inline]
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Self::Error> {
        (**self).compare_exchange(pa, current, new)
    }

    #[inline]
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, Self::Error> {
        (**self).fetch_or(pa, bits)
    }
}

/// Where the pages of translation tables come from.
pub trait PageAllocator {
    /// The address of a free 4 KiB page, aligned to its size, or `None` if there is no more.
    fn alloc_page(&self) -> Option<u64>;

    /// Gives back a page that [`alloc_page`](Self::alloc_page) returned.
    fn free_page(&self, pa: u64);
}

impl<P: Deref> PageAllocator for P
where
    P::Target: PageAllocator,
{
    fn alloc_page(&self) -> Option<u64> {
        (**self).alloc_page()
    }

    fn free_page(&self, pa: u64) {
        (**self).free_page(pa)
    }
}

/// The size of a page that a leaf entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 12,
    /// 2 MiB.
    Size2M = 21,
    /// 4 MiB: 32-bit paging only.
    Size4M = 22,
    /// 1 GiB.
    Size1G = 30,
}

impl PageSize {
    /// The number of address bits that are the offset in the page.
    #[inline]
    pub const fn shift(self) -> u32 {
        self as u32
    }

    /// The size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The bits of an address that are the offset in the page.
    #[inline]
    pub const fn offset_mask(self) -> u64 {
        self.bytes() - 1
    }

    /// The size of a leaf at `level` of tables with 512 entries: 0 for the lowest, 1, else 2.
    #[inline]
    pub(crate) const fn at_level(level: usize) -> Self {
        match level {
            0 => Self::Size4K,
            1 => Self::Size2M,
            _ => Self::Size1G,
        }
    }
}

/// Bits 51:12, the address field of an entry.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How often a walk starts again because an entry changed under it. Then accessed and dirty flags are
/// set without the check, so that processors that fight over an entry cannot hold each other up forever.
pub(crate) const RETRIES: u32 = 16;

/// The bits of 51:0 at and above the physical-address width.
#[inline]
pub(crate) const fn beyond(phys_bits: u8) -> u64 {
    if phys_bits >= 52 { 0 } else { 0x000f_ffff_ffff_ffff & !((1 << phys_bits) - 1) }
}

/// Sets `bits` in the entry at `pa` that read as `seen`. `false` if it reads differently now; with
/// `force`, it is not looked at.
#[inline]
pub(crate) fn set_bits<M: TableMemory>(
    mem: &M,
    pa: u64,
    seen: u64,
    bits: u64,
    force: bool,
) -> Result<bool, M::Error> {
    if seen & bits == bits {
        return Ok(true);
    }
    if force {
        mem.fetch_or(pa, bits)?;
        return Ok(true);
    }
    Ok(mem.compare_exchange(pa, seen, seen | bits)?.is_ok())
}
