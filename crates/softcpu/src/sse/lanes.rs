//! Register values and their lanes.
//!
//! A register is a byte array, never a `u128`: LLVM keeps a byte array in memory and turns a loop over its
//! lanes into one host vector instruction, but takes a 128-bit integer apart lane by lane.

use std::ops::Index;

use serde::{Deserialize, Serialize};

/// The 128 bits of an XMM register, in memory order (byte 0 is bits 7:0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(16))]
pub struct Xmm(pub [u8; 16]);

/// The 64 bits of an MMX register, in memory order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(8))]
pub struct Mm(pub [u8; 8]);

/// A register seen as lanes of `T`, lane 0 the least significant.
pub trait Lanes<T: Copy>: Copy {
    /// How many lanes there are.
    const LEN: usize;
    /// The array of lanes.
    type Array: Index<usize, Output = T> + Copy;

    /// The lanes of this value.
    fn lanes(self) -> Self::Array;

    /// A value whose lane `i` is `f(i)`.
    fn build(f: impl FnMut(usize) -> T) -> Self;

    /// Lane by lane.
    #[inline(always)]
    fn map(self, f: impl Fn(T) -> T) -> Self {
        let a = self.lanes();
        Self::build(|i| f(a[i]))
    }

    /// Lane by lane, with the lanes of `other`.
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(T, T) -> T) -> Self {
        let (a, b) = (self.lanes(), other.lanes());
        Self::build(|i| f(a[i], b[i]))
    }
}

/// Keeps LLVM from taking `value` apart: it goes through memory, as a whole. Where an operation leaves some
/// bytes in place, or reads bytes as wider lanes, this is what keeps it in vector registers.
#[inline(always)]
pub(super) fn whole<V>(value: V) -> V {
    std::hint::black_box(value)
}

macro_rules! lanes {
    ($reg:ident, $bytes:literal: $($t:ty, $n:literal);*) => {$(
        impl Lanes<$t> for $reg {
            const LEN: usize = $n;
            type Array = [$t; $n];

            #[inline(always)]
            fn lanes(self) -> [$t; $n] {
                const SIZE: usize = $bytes / $n;
                std::array::from_fn(|i| {
                    let mut lane = [0; SIZE];
                    lane.copy_from_slice(&self.0[SIZE * i..SIZE * i + SIZE]);
                    <$t>::from_le_bytes(lane)
                })
            }

            #[inline(always)]
            fn build(mut f: impl FnMut(usize) -> $t) -> Self {
                const SIZE: usize = $bytes / $n;
                let mut bytes = [0; $bytes];
                for i in 0..$n {
                    bytes[SIZE * i..SIZE * i + SIZE].copy_from_slice(&f(i).to_le_bytes());
                }
                $reg(bytes)
            }
        }

        impl From<[$t; $n]> for $reg {
            #[inline(always)]
            fn from(lanes: [$t; $n]) -> Self {
                Self::build(|i| lanes[i])
            }
        }
    )*};
}

lanes!(Xmm, 16: u8, 16; i8, 16; u16, 8; i16, 8; u32, 4; i32, 4; u64, 2; i64, 2);
lanes!(Mm, 8: u8, 8; i8, 8; u16, 4; i16, 4; u32, 2; i32, 2; u64, 1; i64, 1);

impl Xmm {
    /// The lanes as four 32-bit values.
    #[inline(always)]
    pub fn u32s(self) -> [u32; 4] {
        <Self as Lanes<u32>>::lanes(self)
    }

    /// The lanes as two 64-bit values.
    #[inline(always)]
    pub fn u64s(self) -> [u64; 2] {
        <Self as Lanes<u64>>::lanes(self)
    }

    /// Bits 31:0.
    #[inline(always)]
    pub fn low32(self) -> u32 {
        self.u32s()[0]
    }

    /// Bits 63:0.
    #[inline(always)]
    pub fn low64(self) -> u64 {
        self.u64s()[0]
    }

    /// This value with bits 31:0 replaced.
    #[inline(always)]
    pub fn with_low32(mut self, low: u32) -> Self {
        self.0[..4].copy_from_slice(&low.to_le_bytes());
        self
    }

    /// This value with bits 63:0 replaced.
    #[inline(always)]
    pub fn with_low64(mut self, low: u64) -> Self {
        self.0[..8].copy_from_slice(&low.to_le_bytes());
        self
    }
}

impl Mm {
    /// The value as an integer.
    #[inline(always)]
    pub fn get(self) -> u64 {
        u64::from_le_bytes(self.0)
    }
}

impl From<u128> for Xmm {
    #[inline(always)]
    fn from(value: u128) -> Self {
        Self(value.to_le_bytes())
    }
}

impl From<Xmm> for u128 {
    #[inline(always)]
    fn from(value: Xmm) -> Self {
        u128::from_le_bytes(value.0)
    }
}

impl From<u64> for Mm {
    #[inline(always)]
    fn from(value: u64) -> Self {
        Self(value.to_le_bytes())
    }
}
