//! Floating-point arithmetic.

use super::{FpOp2, FpOp2Imm, Lanes, Mxcsr, Op2, SimdException, Xmm, commit};
use crate::fpu::sse::{double, reciprocal, reciprocal_sqrt, single};

/// An operation on one pair of lanes, for both formats.
macro_rules! packed_and_scalar {
    ($($(#[$doc:meta])* $ps:ident, $pd:ident, $ss:ident, $sd:ident: $f32:path, $f64:path;)*) => {$(
        $(#[$doc])* ///
        /// Four binary32 lanes.
        #[derive(Clone, Copy, Debug)]
        pub struct $ps;

        impl FpOp2 for $ps {
            #[inline]
            fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                let (d, s) = (dst.u32s(), src.u32s());
                commit(mxcsr, |m| Xmm::build(|i| $f32(d[i], s[i], m)))
            }
        }

        $(#[$doc])* ///
        /// Two binary64 lanes.
        #[derive(Clone, Copy, Debug)]
        pub struct $pd;

        impl FpOp2 for $pd {
            #[inline]
            fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                let (d, s) = (dst.u64s(), src.u64s());
                commit(mxcsr, |m| Xmm::build(|i| $f64(d[i], s[i], m)))
            }
        }

        $(#[$doc])* ///
        /// The low binary32 lane.
        #[derive(Clone, Copy, Debug)]
        pub struct $ss;

        impl FpOp2 for $ss {
            #[inline(always)]
            fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                commit(mxcsr, |m| dst.with_low32($f32(dst.low32(), src.low32(), m)))
            }
        }

        $(#[$doc])* ///
        /// The low binary64 lane.
        #[derive(Clone, Copy, Debug)]
        pub struct $sd;

        impl FpOp2 for $sd {
            #[inline(always)]
            fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                commit(mxcsr, |m| dst.with_low64($f64(dst.low64(), src.low64(), m)))
            }
        }
    )*};
}

packed_and_scalar! {
    /// Adds.
    Addps, Addpd, Addss, Addsd: single::add, double::add;
    /// Subtracts.
    Subps, Subpd, Subss, Subsd: single::sub, double::sub;
    /// Multiplies.
    Mulps, Mulpd, Mulss, Mulsd: single::mul, double::mul;
    /// Divides.
    Divps, Divpd, Divss, Divsd: single::div, double::div;
    /// The lesser; the source if either is a NaN or both are zeros.
    Minps, Minpd, Minss, Minsd: single::min, double::min;
    /// The greater; the source if either is a NaN or both are zeros.
    Maxps, Maxpd, Maxss, Maxsd: single::max, double::max;
    /// Square root of the source.
    Sqrtps, Sqrtpd, Sqrtss, Sqrtsd: second_root32, second_root64;
}

#[inline(always)]
fn second_root32(_: u32, b: u32, m: &mut Mxcsr) -> u32 {
    single::sqrt(b, m)
}

#[inline(always)]
fn second_root64(_: u64, b: u64, m: &mut Mxcsr) -> u64 {
    double::sqrt(b, m)
}

/// Subtracts in even lanes, adds in odd ones; binary32.
#[derive(Clone, Copy, Debug)]
pub struct Addsubps;

impl FpOp2 for Addsubps {
    #[inline]
    fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        let (d, s) = (dst.u32s(), src.u32s());
        commit(mxcsr, |m| {
            Xmm::build(|i| if i % 2 == 0 { single::sub(d[i], s[i], m) } else { single::add(d[i], s[i], m) })
        })
    }
}

/// Subtracts in the low lane, adds in the high one; binary64.
#[derive(Clone, Copy, Debug)]
pub struct Addsubpd;

impl FpOp2 for Addsubpd {
    #[inline]
    fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        let (d, s) = (dst.u64s(), src.u64s());
        commit(mxcsr, |m| Xmm::from([double::sub(d[0], s[0], m), double::add(d[1], s[1], m)]))
    }
}

/// Neighbouring lanes of the destination, then of the source.
macro_rules! horizontal {
    ($($(#[$doc:meta])* $ps:ident, $pd:ident: $f32:path, $f64:path;)*) => {$(
        $(#[$doc])* ///
        /// binary32.
        #[derive(Clone, Copy, Debug)]
        pub struct $ps;

        impl FpOp2 for $ps {
            #[inline]
            fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                let (d, s) = (dst.u32s(), src.u32s());
                commit(mxcsr, |m| {
                    Xmm::from([
                        $f32(d[0], d[1], m),
                        $f32(d[2], d[3], m),
                        $f32(s[0], s[1], m),
                        $f32(s[2], s[3], m),
                    ])
                })
            }
        }

        $(#[$doc])* ///
        /// binary64.
        #[derive(Clone, Copy, Debug)]
        pub struct $pd;

        impl FpOp2 for $pd {
            #[inline]
            fn op(dst: Xmm, src: Xmm, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                let (d, s) = (dst.u64s(), src.u64s());
                commit(mxcsr, |m| Xmm::from([$f64(d[0], d[1], m), $f64(s[0], s[1], m)]))
            }
        }
    )*};
}

horizontal! {
    /// Adds neighbouring lanes.
    Haddps, Haddpd: single::add, double::add;
    /// Subtracts the upper of neighbouring lanes from the lower.
    Hsubps, Hsubpd: single::sub, double::sub;
}

/// Dot product of binary32 lanes: immediate bits 7:4 choose the products, 3:0 where the sum goes.
#[derive(Clone, Copy, Debug)]
pub struct Dpps;

impl FpOp2Imm for Dpps {
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        let (d, s) = (dst.u32s(), src.u32s());
        // Unmasked exceptions are looked at after every step.
        let products = commit(mxcsr, |m| {
            std::array::from_fn::<u32, 4, _>(|i| {
                if imm >> (4 + i) & 1 != 0 { single::mul(d[i], s[i], m) } else { 0 }
            })
        })?;
        let halves = commit(mxcsr, |m| {
            [single::add(products[0], products[1], m), single::add(products[2], products[3], m)]
        })?;
        let sum = commit(mxcsr, |m| single::add(halves[0], halves[1], m))?;
        Ok(Xmm::build(|i| if imm >> i & 1 != 0 { sum } else { 0 }))
    }
}

/// Dot product of binary64 lanes: immediate bits 5:4 choose the products, 1:0 where the sum goes.
#[derive(Clone, Copy, Debug)]
pub struct Dppd;

impl FpOp2Imm for Dppd {
    fn op(dst: Xmm, src: Xmm, imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
        let (d, s) = (dst.u64s(), src.u64s());
        let products = commit(mxcsr, |m| {
            std::array::from_fn::<u64, 2, _>(|i| {
                if imm >> (4 + i) & 1 != 0 { double::mul(d[i], s[i], m) } else { 0 }
            })
        })?;
        let sum = commit(mxcsr, |m| double::add(products[0], products[1], m))?;
        Ok(Xmm::build(|i| if imm >> i & 1 != 0 { sum } else { 0 }))
    }
}

/// Immediate bits 1:0 say how to round unless bit 2 leaves it to MXCSR; bit 3 keeps precision quiet.
macro_rules! rounds {
    ($($(#[$doc:meta])* $name:ident: |$dst:pat_param, $src:ident, $imm:ident, $m:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl FpOp2Imm for $name {
            #[inline]
            fn op($dst: Xmm, $src: Xmm, $imm: u8, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                commit(mxcsr, |$m| $value)
            }
        }
    )*};
}

rounds! {
    /// Rounds binary32 lanes to integers as the immediate says.
    Roundps: |_, src, imm, m| {
        let s = src.u32s();
        Xmm::build(|i| single::round(s[i], imm, m))
    };
    /// Rounds binary64 lanes to integers as the immediate says.
    Roundpd: |_, src, imm, m| {
        let s = src.u64s();
        Xmm::build(|i| double::round(s[i], imm, m))
    };
    /// Rounds the low binary32 lane to an integer as the immediate says.
    Roundss: |dst, src, imm, m| dst.with_low32(single::round(src.low32(), imm, m));
    /// Rounds the low binary64 lane to an integer as the immediate says.
    Roundsd: |dst, src, imm, m| dst.with_low64(double::round(src.low64(), imm, m));
}

/// Approximations have no exceptions, take denormals for zeros and give zeros for them.
macro_rules! approximate {
    ($($(#[$doc:meta])* $ps:ident, $ss:ident: $f:path;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $ps;

        impl Op2<Xmm> for $ps {
            #[inline]
            fn op(_dst: Xmm, src: Xmm) -> Xmm {
                src.map($f)
            }
        }

        $(#[$doc])* ///
        /// The low lane.
        #[derive(Clone, Copy, Debug)]
        pub struct $ss;

        impl Op2<Xmm> for $ss {
            #[inline]
            fn op(dst: Xmm, src: Xmm) -> Xmm {
                dst.with_low32($f(src.low32()))
            }
        }
    )*};
}

approximate! {
    /// Reciprocals, within 1.5 × 2^-12.
    Rcpps, Rcpss: reciprocal;
    /// Reciprocals of square roots, within 1.5 × 2^-12.
    Rsqrtps, Rsqrtss: reciprocal_sqrt;
}
