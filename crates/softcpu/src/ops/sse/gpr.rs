//! Between SSE registers and general registers or flags.
//!
//! Memory operands go through the slot [`super::GPR_SCRATCH`], by the loads and stores of
//! [`crate::ops::mem`].

use crate::cpu::{Cpu, Stop, reg};
use crate::flags::bits;
use crate::handler;
use crate::int::Int;
use crate::op::{Flow, Op, OpRef, next, stop};
use crate::sse::{self, Compare, Mxcsr, SimdException, StringCompare, Xmm};

/// MOVD, MOVQ to an SSE register, the rest of which becomes zero.
pub extern "C-unwind" fn from_gpr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = Xmm::from([T::get(cpu, op.r2).zx(), 0]);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// MOVD, MOVQ to a general register.
pub extern "C-unwind" fn to_gpr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    T::of(cpu.xmm_get(op.r2).low64()).put(cpu, op.r1);
    next(cpu, op)
}

/// What turns a register into an integer.
pub trait ToInteger {
    /// The integer; the immediate may choose a lane.
    fn get(src: Xmm, imm: u8) -> u64;
}

/// What puts a part of a general register into a lane that the immediate chooses.
pub trait Insert {
    /// What becomes of `dst`.
    fn insert(dst: Xmm, value: u64, imm: u8) -> Xmm;
}

macro_rules! to_integer {
    ($($(#[$doc:meta])* $name:ident: |$src:ident, $imm:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl ToInteger for $name {
            #[inline(always)]
            fn get($src: Xmm, $imm: u8) -> u64 {
                u64::from($value)
            }
        }
    )*};
}

to_integer! {
    /// PMOVMSKB.
    Pmovmskb: |src, _imm| sse::pmovmskb(src);
    /// MOVMSKPS.
    Movmskps: |src, _imm| sse::movmskps(src);
    /// MOVMSKPD.
    Movmskpd: |src, _imm| sse::movmskpd(src);
    /// PEXTRB.
    Pextrb: |src, imm| sse::pextrb(src, imm);
    /// PEXTRW.
    Pextrw: |src, imm| sse::pextrw(src, imm);
    /// PEXTRD and EXTRACTPS.
    Pextrd: |src, imm| sse::pextrd(src, imm);
    /// PEXTRQ.
    Pextrq: |src, imm| sse::pextrq(src, imm);
}

macro_rules! insert {
    ($($(#[$doc:meta])* $name:ident: $function:ident, $t:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Insert for $name {
            #[inline(always)]
            fn insert(dst: Xmm, value: u64, imm: u8) -> Xmm {
                sse::$function(dst, value as $t, imm)
            }
        }
    )*};
}

insert! {
    /// PINSRB.
    Pinsrb: pinsrb, u8;
    /// PINSRW.
    Pinsrw: pinsrw, u16;
    /// PINSRD.
    Pinsrd: pinsrd, u32;
    /// PINSRQ.
    Pinsrq: pinsrq, u64;
}

/// A general register, zero-extended, from an SSE register.
pub extern "C-unwind" fn to_integer<O: ToInteger>(cpu: &mut Cpu, op: OpRef) -> Flow {
    O::get(cpu.xmm_get(op.r2), op.imm as u8).put(cpu, op.r1);
    next(cpu, op)
}

/// A lane from a general register.
pub extern "C-unwind" fn insert<O: Insert>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = O::insert(cpu.xmm_get(op.r1), u64::get(cpu, op.r2), op.imm as u8);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// Which format a conversion or comparison is of.
pub trait Format {
    /// From a signed integer.
    ///
    /// # Errors
    /// An unmasked exception.
    fn from_int(dst: Xmm, value: i64, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException>;
    /// To a signed integer.
    ///
    /// # Errors
    /// An unmasked exception.
    fn to_int(src: Xmm, bits: u32, truncate: bool, mxcsr: &mut Mxcsr) -> Result<i64, SimdException>;
    /// Compares the low lanes.
    ///
    /// # Errors
    /// An unmasked exception.
    fn compare(dst: Xmm, src: Xmm, signal: bool, mxcsr: &mut Mxcsr) -> Result<Compare, SimdException>;
}

macro_rules! format {
    ($($(#[$doc:meta])* $name:ident: $from:ident, $to:ident, $compare:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Format for $name {
            #[inline(always)]
            fn from_int(dst: Xmm, value: i64, mxcsr: &mut Mxcsr) -> Result<Xmm, SimdException> {
                sse::$from(dst, value, mxcsr)
            }
            #[inline(always)]
            fn to_int(src: Xmm, bits: u32, truncate: bool, mxcsr: &mut Mxcsr) -> Result<i64, SimdException> {
                sse::$to(src, bits, truncate, mxcsr)
            }
            #[inline(always)]
            fn compare(dst: Xmm, src: Xmm, signal: bool, mxcsr: &mut Mxcsr) -> Result<Compare, SimdException> {
                sse::$compare(dst, src, signal, mxcsr)
            }
        }
    )*};
}

format! {
    /// binary32.
    Single: cvtsi2ss, cvtss2si, comiss;
    /// binary64.
    Double: cvtsi2sd, cvtsd2si, comisd;
}

/// CVTSI2SS, CVTSI2SD.
pub extern "C-unwind" fn from_int<F: Format, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<F: Format, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        let value = T::get(cpu, op.r2).sx() as i64;
        match F::from_int(cpu.xmm_get(op.r1), value, &mut cpu.mxcsr) {
            Ok(v) => {
                cpu.xmm_set(op.r1, v);
                Ok(())
            }
            Err(e) => Err(cpu.simd_exception(e)),
        }
    }
    match work::<F, T>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// CVTSS2SI, CVTSD2SI and, if `TRUNCATE`, CVTTSS2SI, CVTTSD2SI.
pub extern "C-unwind" fn to_int<F: Format, T: Int, const TRUNCATE: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<F: Format, T: Int, const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        match F::to_int(cpu.xmm_get(op.r2), T::BITS, TRUNCATE, &mut cpu.mxcsr) {
            Ok(v) => {
                T::of(v as u64).put(cpu, op.r1);
                Ok(())
            }
            Err(e) => Err(cpu.simd_exception(e)),
        }
    }
    match work::<F, T, TRUNCATE>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// UCOMISS, UCOMISD and, if `SIGNAL`, COMISS, COMISD.
pub extern "C-unwind" fn compare<F: Format, const SIGNAL: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<F: Format, const SIGNAL: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        match F::compare(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2), SIGNAL, &mut cpu.mxcsr) {
            Ok(outcome) => {
                cpu.flags.set(u64::from(outcome.eflags()));
                Ok(())
            }
            Err(e) => Err(cpu.simd_exception(e)),
        }
    }
    match work::<F, SIGNAL>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// PTEST.
pub extern "C-unwind" fn ptest(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (zero, carry) = sse::ptest(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2));
    cpu.flags.set(if zero { bits::ZF } else { 0 } | if carry { bits::CF } else { 0 });
    next(cpu, op)
}

fn string_flags(cpu: &mut Cpu, r: &StringCompare) {
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    cpu.flags.set(
        flag(r.carry, bits::CF)
            | flag(r.zero, bits::ZF)
            | flag(r.sign, bits::SF)
            | flag(r.overflow, bits::OF),
    );
}

/// Lengths in EAX and EDX (`aux` 0) or RAX and RDX (`aux` 1).
fn explicit(cpu: &Cpu, op: &Op) -> StringCompare {
    let length = |r: u8| {
        let v = cpu.regs[usize::from(r)];
        if op.aux == 0 { v as i32 as i64 } else { v as i64 }
    };
    let (a, b) = (cpu.xmm_get(op.r1), cpu.xmm_get(op.r2));
    sse::pcmpestr(a, b, op.imm as u8, length(reg::RAX), length(reg::RDX))
}

fn implicit(cpu: &Cpu, op: &Op) -> StringCompare {
    sse::pcmpistr(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2), op.imm as u8)
}

fn index(cpu: &mut Cpu, r: &StringCompare) {
    string_flags(cpu, r);
    r.index().put(cpu, reg::RCX);
}

fn mask(cpu: &mut Cpu, r: &StringCompare) {
    string_flags(cpu, r);
    cpu.xmm_set(0, r.mask());
}

fn pcmpistri_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let r = implicit(cpu, op);
    index(cpu, &r);
    Ok(())
}
handler!(next: pcmpistri_work => pcmpistri);

fn pcmpistrm_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let r = implicit(cpu, op);
    mask(cpu, &r);
    Ok(())
}
handler!(next: pcmpistrm_work => pcmpistrm);

fn pcmpestri_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let r = explicit(cpu, op);
    index(cpu, &r);
    Ok(())
}
handler!(next: pcmpestri_work => pcmpestri);

fn pcmpestrm_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let r = explicit(cpu, op);
    mask(cpu, &r);
    Ok(())
}
handler!(next: pcmpestrm_work => pcmpestrm);
