//! Multiplication and division.

use super::ea;
use crate::cpu::{Cpu, Stop, reg, vector};
use crate::int::{HIGH_BYTE, Int};
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, OpRef, next, stop};

/// The source operand: register `r2`, or memory.
#[inline(always)]
fn source<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Result<T, Stop> {
    let lin = ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read)?;
    cpu.load(lin)
}

/// Writes a product or dividend's halves: AX for bytes, else rDX:rAX.
#[inline(always)]
fn put_pair<T: Int>(cpu: &mut Cpu, high: u64, low: u64) {
    T::of(low).put(cpu, reg::RAX);
    T::of(high).put(cpu, if T::BITS == 8 { reg::RAX | HIGH_BYTE } else { reg::RDX });
}

#[inline(always)]
fn get_pair<T: Int>(cpu: &Cpu) -> u128 {
    let high = T::get(cpu, if T::BITS == 8 { reg::RAX | HIGH_BYTE } else { reg::RDX });
    u128::from(high.zx()) << T::BITS | u128::from(T::get(cpu, reg::RAX).zx())
}

#[inline(always)]
fn mul<T: Int, const SIGNED: bool>(cpu: &mut Cpu, b: T) {
    let a = T::get(cpu, reg::RAX);
    let (high, low, over);
    if SIGNED {
        let p = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
        (high, low) = ((p >> T::BITS) as u64, p as u64);
        over = i128::from(T::of(low).sx() as i64) != p;
    } else {
        let p = u128::from(a.zx()) * u128::from(b.zx());
        (high, low) = ((p >> T::BITS) as u64, p as u64);
        over = T::of(high).zx() != 0;
    }
    put_pair::<T>(cpu, high, low);
    cpu.flags.set_result(T::of(low), over, over);
}

/// MUL, IMUL of the accumulator by a register.
pub extern "C-unwind" fn mul_r<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let b = T::get(cpu, op.r2);
    mul::<T, SIGNED>(cpu, b);
    next(cpu, op)
}

/// MUL by memory.
pub extern "C-unwind" fn mul_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match source::<T, E>(cpu, op) {
        Ok(b) => mul::<T, false>(cpu, b),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// IMUL by memory.
pub extern "C-unwind" fn imul_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match source::<T, E>(cpu, op) {
        Ok(b) => mul::<T, true>(cpu, b),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

#[inline(always)]
fn imul2<T: Int>(cpu: &mut Cpu, op: OpRef, a: T, b: T) {
    let p = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    let r = T::of(p as u64);
    let over = i128::from(r.sx() as i64) != p;
    cpu.flags.set_result(r, over, over);
    r.put(cpu, op.r1);
}

/// IMUL r1, r2.
pub extern "C-unwind" fn imul_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    imul2(cpu, op, a, b);
    next(cpu, op)
}

/// [`imul_rr`] whose flags nobody looks at.
pub extern "C-unwind" fn imul_rr_quiet<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    T::of(a.zx().wrapping_mul(b.zx())).put(cpu, op.r1);
    next(cpu, op)
}

/// [`imul_rri`] whose flags nobody looks at.
pub extern "C-unwind" fn imul_rri_quiet<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r2);
    T::of(a.zx().wrapping_mul(op.imm)).put(cpu, op.r1);
    next(cpu, op)
}

/// IMUL r1, r2, imm.
pub extern "C-unwind" fn imul_rri<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r2);
    imul2(cpu, op, a, T::of(op.imm));
    next(cpu, op)
}

/// IMUL r1, m.
pub extern "C-unwind" fn imul_rm<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match source::<T, E>(cpu, op) {
        Ok(b) => {
            let a = T::get(cpu, op.r1);
            imul2(cpu, op, a, b);
        }
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// IMUL r1, m, imm.
pub extern "C-unwind" fn imul_rmi<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match source::<T, E>(cpu, op) {
        Ok(a) => imul2(cpu, op, a, T::of(op.imm)),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

#[inline(always)]
fn div<T: Int>(cpu: &mut Cpu, b: T) -> Result<(), Stop> {
    let d = u128::from(b.zx());
    let n = get_pair::<T>(cpu);
    if d == 0 {
        return Err(cpu.raise(vector::DE, None));
    }
    // The common case does not need 128 bits.
    let (q, r) = if n >> 64 == 0 {
        let (n, d) = (n as u64, d as u64);
        (u128::from(n / d), n % d)
    } else {
        (n / d, (n % d) as u64)
    };
    if q >> T::BITS != 0 {
        return Err(cpu.raise(vector::DE, None));
    }
    put_pair::<T>(cpu, r, q as u64);
    Ok(())
}

#[inline(always)]
fn idiv<T: Int>(cpu: &mut Cpu, b: T) -> Result<(), Stop> {
    let d = i128::from(b.sx() as i64);
    let shift = 128 - 2 * T::BITS;
    let n = (get_pair::<T>(cpu) << shift) as i128 >> shift;
    if d == 0 {
        return Err(cpu.raise(vector::DE, None));
    }
    let small = n as i64;
    let (q, r) = match i128::from(small) == n && small != i64::MIN {
        true => (i128::from(small / d as i64), i128::from(small % d as i64)),
        false => (n.wrapping_div(d), n.wrapping_rem(d)),
    };
    if i128::from(T::of(q as u64).sx() as i64) != q {
        return Err(cpu.raise(vector::DE, None));
    }
    put_pair::<T>(cpu, r as u64, q as u64);
    Ok(())
}

/// DIV, IDIV by a register.
pub extern "C-unwind" fn div_r<T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let b = T::get(cpu, op.r2);
    match if SIGNED { idiv(cpu, b) } else { div(cpu, b) } {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// DIV by memory.
pub extern "C-unwind" fn div_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match source::<T, E>(cpu, op).and_then(|b| div(cpu, b)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// IDIV by memory.
pub extern "C-unwind" fn idiv_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match source::<T, E>(cpu, op).and_then(|b| idiv(cpu, b)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}
