//! Packed shifts.
//!
//! A count of the lane's width or more gives zero (logical) or copies of the sign (arithmetic). The count
//! in a register is its low 64 bits, whole.

use super::{Lanes, Op2Imm, Xmm};

/// A shift of every lane by one count.
pub trait Shift<V> {
    /// `value` shifted by `count`.
    fn shift(value: V, count: u64) -> V;
}

macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident: $t:ty, $op:tt, $clamp:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl<V: Lanes<$t>> Shift<V> for $name {
            #[inline(always)]
            fn shift(value: V, count: u64) -> V {
                let top = u64::from(<$t>::BITS - 1);
                if shifts!(@$clamp count, top) {
                    return V::build(|_| 0);
                }
                let count = count.min(top) as u32;
                value.map(|lane: $t| lane $op count)
            }
        }
    )*};
    (@logical $count:ident, $top:ident) => { $count > $top };
    (@arithmetic $count:ident, $top:ident) => { false };
}

shifts! {
    /// Shifts words left.
    Psllw: u16, <<, logical;
    /// Shifts doublewords left.
    Pslld: u32, <<, logical;
    /// Shifts quadwords left.
    Psllq: u64, <<, logical;
    /// Shifts words right, filling with zeros.
    Psrlw: u16, >>, logical;
    /// Shifts doublewords right, filling with zeros.
    Psrld: u32, >>, logical;
    /// Shifts quadwords right, filling with zeros.
    Psrlq: u64, >>, logical;
    /// Shifts words right, filling with the sign.
    Psraw: i16, >>, arithmetic;
    /// Shifts doublewords right, filling with the sign.
    Psrad: i32, >>, arithmetic;
}

/// Shifts the register left by bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pslldq;

impl Shift<Xmm> for Pslldq {
    #[inline(always)]
    fn shift(value: Xmm, count: u64) -> Xmm {
        let n = count.min(16) as usize;
        let mut wide = [0; 32];
        wide[16..].copy_from_slice(&value.0);
        window(&wide, 16 - n)
    }
}

/// Shifts the register right by bytes.
#[derive(Clone, Copy, Debug)]
pub struct Psrldq;

impl Shift<Xmm> for Psrldq {
    #[inline(always)]
    fn shift(value: Xmm, count: u64) -> Xmm {
        let mut wide = [0; 32];
        wide[..16].copy_from_slice(&value.0);
        window(&wide, count.min(16) as usize)
    }
}

/// Sixteen bytes of `wide` from `at`, which is 16 at most.
#[inline(always)]
fn window(wide: &[u8; 32], at: usize) -> Xmm {
    let mut out = [0; 16];
    out.copy_from_slice(&wide[at..at + 16]);
    Xmm(out)
}

/// The destination above the source, shifted right by bytes.
#[derive(Clone, Copy, Debug)]
pub struct Palignr;

impl<V: Lanes<u8>> Op2Imm<V> for Palignr {
    #[inline(always)]
    fn op(dst: V, src: V, imm: u8) -> V {
        let mut wide = [0; 64];
        let (low, high) = (src.lanes(), dst.lanes());
        for i in 0..V::LEN {
            wide[i] = low[i];
            wide[V::LEN + i] = high[i];
        }
        let from = usize::from(imm).min(2 * V::LEN);
        V::build(|i| wide[from + i])
    }
}
