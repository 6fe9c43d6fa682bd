//! Access to host memory through pointers that the TLB vouches for.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Host address of guest memory that a TLB entry, or the bounce buffer, vouched for. Only `mmu` makes
/// them, each valid for the access size that was asked for, until the next TLB change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HostPtr(*mut u8);

impl HostPtr {
    /// # Safety
    /// `p` is valid for reads and writes of as many bytes as the holder will access, and stays so until
    /// the access. Other threads may access the same bytes: guest memory is shared by nature, so only
    /// raw and atomic accesses are made.
    #[inline(always)]
    pub(super) unsafe fn new(p: *mut u8) -> Self {
        Self(p)
    }

    /// Reads a value.
    #[inline(always)]
    pub fn read<T: Plain>(self) -> T {
        // SAFETY: by `new`, the bytes are readable; `T` is plain data, valid for any bit pattern.
        unsafe { self.0.cast::<T>().read_unaligned() }
    }

    /// Writes a value.
    #[inline(always)]
    pub fn write<T: Plain>(self, v: T) {
        // SAFETY: by `new`, the bytes are writable.
        unsafe { self.0.cast::<T>().write_unaligned(v) }
    }

    /// Copies `n` bytes from `self` to `to` in ascending order, `unit` bytes at a time where the ranges
    /// overlap, as REP MOVS does.
    #[inline]
    pub(super) fn copy_to(self, to: HostPtr, n: usize, unit: usize) {
        let (s, d) = (self.0 as usize, to.0 as usize);
        if d.wrapping_sub(s) >= n {
            // The destination does not start inside the source: any order that reads first will do.
            // SAFETY: both are valid for `n` bytes by `new`; `copy` allows overlap.
            unsafe { std::ptr::copy(self.0, to.0, n) }
        } else {
            let mut i = 0;
            while i < n {
                // SAFETY: `i + unit <= n`, inside both.
                unsafe { std::ptr::copy(self.0.add(i), to.0.add(i), unit) };
                i += unit;
            }
        }
    }

    /// Fills `n` bytes with `pattern`, `unit` bytes of it at a time.
    #[inline]
    pub(super) fn fill(self, n: usize, pattern: u64, unit: usize) {
        // SAFETY: valid for `n` bytes by `new`; `unit` divides `n`.
        unsafe {
            match unit {
                1 => self.0.write_bytes(pattern as u8, n),
                _ => {
                    let bytes = pattern.to_le_bytes();
                    let mut i = 0;
                    while i < n {
                        std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(i), unit);
                        i += unit;
                    }
                }
            }
        }
    }

    /// The bytes, copied out.
    pub(super) fn read_bytes(self, to: &mut [u8]) {
        // SAFETY: valid for `to.len()` bytes by `new`; `to` is the caller's own memory.
        unsafe { std::ptr::copy(self.0, to.as_mut_ptr(), to.len()) }
    }

    /// The bytes, copied in.
    pub(super) fn write_bytes(self, from: &[u8]) {
        // SAFETY: as `read_bytes`.
        unsafe { std::ptr::copy(from.as_ptr(), self.0, from.len()) }
    }

    /// Whether an atomic access of `T` can be made here.
    #[inline(always)]
    pub fn aligned<T>(self) -> bool {
        (self.0 as usize).is_multiple_of(size_of::<T>())
    }

    /// Atomically replaces `current` by `new`; tells what was there. The address must be aligned.
    #[inline(always)]
    pub fn compare_exchange<T: Plain>(self, current: T, new: T) -> Result<T, T> {
        debug_assert!(self.aligned::<T>());
        // SAFETY: valid by `new`, aligned by the caller's check (`aligned`).
        unsafe { T::compare_exchange(self.0.cast(), current, new) }
    }
}

/// Integers that host memory can hold.
pub trait Plain: Copy {
    /// # Safety
    /// `p` is valid and aligned.
    unsafe fn compare_exchange(p: *mut Self, current: Self, new: Self) -> Result<Self, Self>;
}

macro_rules! plain {
    ($($t:ty, $a:ty);*) => {$(
        impl Plain for $t {
            #[inline(always)]
            unsafe fn compare_exchange(p: *mut Self, current: Self, new: Self) -> Result<Self, Self> {
                // SAFETY: by the contract.
                unsafe { <$a>::from_ptr(p) }.compare_exchange(
                    current, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        }
    )*};
}
plain!(u8, AtomicU8; u16, AtomicU16; u32, AtomicU32; u64, AtomicU64);

impl Plain for crate::sse::Xmm {
    unsafe fn compare_exchange(p: *mut Self, current: Self, new: Self) -> Result<Self, Self> {
        // SAFETY: same size, alignment and validity; by the contract.
        unsafe { u128::compare_exchange(p.cast(), current.into(), new.into()) }
            .map(Self::from)
            .map_err(Self::from)
    }
}

impl Plain for u128 {
    unsafe fn compare_exchange(p: *mut Self, current: Self, new: Self) -> Result<Self, Self> {
        // There is no portable 16-byte atomic: a lock makes processors of this program agree.
        static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _guard = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: by the contract.
        unsafe {
            let old = p.read_volatile();
            if old == current {
                p.write_volatile(new);
                Ok(old)
            } else {
                Err(old)
            }
        }
    }
}

impl HostPtr {
    /// The address that a TLB entry maps `lin` to.
    #[inline(always)]
    pub(super) fn mapped(lin: u64, addend: u64) -> Self {
        // SAFETY: entries are filled with addresses inside the arena, whole pages at a time, and their
        // tags are compared before the pointer is used.
        unsafe { Self::new(lin.wrapping_add(addend) as *mut u8) }
    }

    /// Inside the arena that is mapped at `base`.
    #[inline(always)]
    pub(super) fn in_arena(base: u64, hpa: u64) -> Self {
        // SAFETY: the caller has compared `hpa` and the size with the arena's length.
        unsafe { Self::new(base.wrapping_add(hpa) as *mut u8) }
    }

    /// The bounce buffer: 64 bytes.
    #[inline(always)]
    pub(super) fn bounce(buffer: &mut [u64; 8]) -> Self {
        // SAFETY: accesses are at most 64 bytes, and the buffer lives as long as the MMU.
        unsafe { Self::new(buffer.as_mut_ptr().cast()) }
    }
}
