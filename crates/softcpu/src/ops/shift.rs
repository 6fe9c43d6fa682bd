//! Shifts and rotates.

use super::ea;
use crate::cpu::{Cpu, Stop, reg};
use crate::flags::Flags;
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

/// A shift or rotate by `n`, already masked to 5 or 6 bits and not 0.
pub trait Shift {
    /// Computes it.
    fn exec<T: Int>(flags: &mut Flags, a: T, n: u32) -> T;
}

fn top<T: Int>(v: u64) -> bool {
    v & T::SIGN != 0
}

macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident($flags:ident, $t:ident, $a:ident, $n:ident) => $body:block)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn exec<$t: Int>($flags: &mut Flags, $a: $t, $n: u32) -> $t $body
        }
    )*};
}

shifts! {
    /// SHL.
    Shl(f, T, a, n) => {
        // 8- and 16-bit operands can be shifted by more than their width.
        let wide = u128::from(a.zx()) << n;
        let r = T::of(wide as u64);
        let cf = wide >> T::BITS & 1 != 0;
        f.set_result(r, cf, top::<T>(r.zx()) ^ cf);
        r
    }
    /// SHR.
    Shr(f, T, a, n) => {
        let r = T::of(a.zx() >> n);
        f.set_result(r, a.zx() >> (n - 1) & 1 != 0, n == 1 && top::<T>(a.zx()));
        r
    }
    /// SAR.
    Sar(f, T, a, n) => {
        let r = T::of((a.sx() as i64 >> n) as u64);
        f.set_result(r, a.sx() as i64 >> (n - 1) & 1 != 0, false);
        r
    }
    /// ROL.
    Rol(f, T, a, n) => {
        let k = n % T::BITS;
        let v = a.zx();
        let r = T::of(if k == 0 { v } else { v << k | v >> (T::BITS - k) });
        rotated::<T>(f, r, r.zx() & 1 != 0);
        r
    }
    /// ROR.
    Ror(f, T, a, n) => {
        let k = n % T::BITS;
        let v = a.zx();
        let r = T::of(if k == 0 { v } else { v >> k | v << (T::BITS - k) });
        let (cf, second) = (top::<T>(r.zx()), r.zx() >> (T::BITS - 2) & 1 != 0);
        set_cf_of(f, cf, cf ^ second);
        r
    }
    /// RCL.
    Rcl(f, T, a, n) => {
        let k = n % (T::BITS + 1);
        let mut v = u128::from(a.zx()) | u128::from(f.cf()) << T::BITS;
        let all = T::BITS + 1;
        if k != 0 {
            v = (v << k | v >> (all - k)) & ((1 << all) - 1);
        }
        let r = T::of(v as u64);
        let cf = v >> T::BITS & 1 != 0;
        set_cf_of(f, cf, cf ^ top::<T>(r.zx()));
        r
    }
    /// RCR.
    Rcr(f, T, a, n) => {
        let k = n % (T::BITS + 1);
        let mut v = u128::from(a.zx()) | u128::from(f.cf()) << T::BITS;
        let all = T::BITS + 1;
        if k != 0 {
            v = (v >> k | v << (all - k)) & ((1 << all) - 1);
        }
        let r = T::of(v as u64);
        let cf = v >> T::BITS & 1 != 0;
        set_cf_of(f, cf, top::<T>(r.zx()) ^ (r.zx() >> (T::BITS - 2) & 1 != 0));
        r
    }
}

fn rotated<T: Int>(f: &mut Flags, r: T, cf: bool) {
    set_cf_of(f, cf, cf ^ top::<T>(r.zx()));
}

/// Rotates change CF and OF alone. (OF is undefined for counts above 1; this is what processors do.)
fn set_cf_of(f: &mut Flags, cf: bool, of: bool) {
    use crate::flags::bits;
    let keep = f.get() & !(bits::CF | bits::OF);
    f.set(keep | (u64::from(cf) * bits::CF) | (u64::from(of) * bits::OF));
}

#[inline(always)]
fn masked<T: Int>(n: u64) -> u32 {
    (n & if T::BITS == 64 { 63 } else { 31 }) as u32
}

/// Register by an immediate that is not 0 after masking.
pub extern "C-unwind" fn ri<S: Shift, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r1);
    S::exec(&mut cpu.flags, a, op.imm as u32).put(cpu, op.r1);
    next(cpu, op)
}

/// [`ri`] whose flags nobody looks at.
pub extern "C-unwind" fn ri_quiet<S: Shift, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r1);
    let mut unused = cpu.flags;
    S::exec(&mut unused, a, op.imm as u32).put(cpu, op.r1);
    next(cpu, op)
}

/// Register by CL.
pub extern "C-unwind" fn rc<S: Shift, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let n = masked::<T>(cpu.regs[usize::from(reg::RCX)]);
    let a = T::get(cpu, op.r1);
    if n == 0 {
        // A 32-bit destination is still zero-extended.
        a.put(cpu, op.r1);
    } else {
        S::exec(&mut cpu.flags, a, n).put(cpu, op.r1);
    }
    next(cpu, op)
}

/// Memory by an immediate (`aux` 0) or CL (`aux` 1).
pub extern "C-unwind" fn m<S: Shift, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match m_work::<S, T, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn m_work<S: Shift, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let by_cl = op.aux & 1 != 0;
    let n = masked::<T>(if by_cl { cpu.regs[usize::from(reg::RCX)] } else { op.imm });
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify::<T>(lin, |cpu, a| if n == 0 { a } else { S::exec(&mut cpu.flags, a, n) })
}

/// SHLD (LEFT) and SHRD: shifts `a`, bits come in from `b`.
fn double<T: Int, const LEFT: bool>(flags: &mut Flags, a: T, b: T, n: u32) -> T {
    if n == 0 {
        return a;
    }
    let (a, b, w) = (u128::from(a.zx()), u128::from(b.zx()), T::BITS);
    let (r, cf) = if LEFT {
        // For 16-bit operands and counts above 16, bits of the destination come in again.
        let all = if w == 16 { (a << 32 | b << 16 | a) << n >> 32 } else { (a << w | b) << n >> w };
        let cf = if w == 16 { (a << 32 | b << 16 | a) >> (48 - n) } else { (a << w | b) >> (2 * w - n) };
        (all, cf)
    } else {
        let all = if w == 16 { a << 32 | b << 16 | a } else { b << w | a };
        (all >> n, all >> (n - 1))
    };
    let r = T::of(r as u64);
    flags.set_result(r, cf & 1 != 0, top::<T>(r.zx() ^ a as u64));
    r
}

fn double_count<T: Int>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<T>(if op.aux & 1 != 0 { cpu.regs[usize::from(reg::RCX)] } else { op.imm })
}

/// SHLD, SHRD with a register destination; the count is `imm`, or CL if `aux` is 1.
pub extern "C-unwind" fn double_r<T: Int, const LEFT: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let n = double_count::<T>(cpu, &op);
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    double::<T, LEFT>(&mut cpu.flags, a, b, n).put(cpu, op.r1);
    next(cpu, op)
}

/// SHLD with a memory destination.
pub extern "C-unwind" fn shld_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match double_m_work::<T, true, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// SHRD with a memory destination.
pub extern "C-unwind" fn shrd_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match double_m_work::<T, false, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn double_m_work<T: Int + Plain, const LEFT: bool, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = double_count::<T>(cpu, op);
    let b = T::get(cpu, op.r2);
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify::<T>(lin, |cpu, a| double::<T, LEFT>(&mut cpu.flags, a, b, n))
}
