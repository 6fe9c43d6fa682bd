//! BMI1 and BMI2: bit manipulation on general registers (SDM volume 1, section 5.1.16), encoded with VEX.

use super::ea;
use crate::cpu::{Cpu, reg};
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

/// What [`r`] and [`m`] compute, in `Op::aux`.
#[allow(missing_docs)]
pub mod what {
    pub const ANDN: u16 = 0;
    pub const BEXTR: u16 = 1;
    pub const BLSI: u16 = 2;
    pub const BLSMSK: u16 = 3;
    pub const BLSR: u16 = 4;
    pub const BZHI: u16 = 5;
    pub const MULX: u16 = 6;
    pub const PDEP: u16 = 7;
    pub const PEXT: u16 = 8;
    pub const RORX: u16 = 9;
    pub const SARX: u16 = 10;
    pub const SHLX: u16 = 11;
    pub const SHRX: u16 = 12;
}

/// The low `n` bits.
fn low(n: u32) -> u64 {
    1u64.checked_shl(n).map_or(u64::MAX, |bit| bit - 1)
}

/// PDEP: the low bits of `v` go where `mask` has ones.
fn deposit(v: u64, mut mask: u64) -> u64 {
    let (mut r, mut nth) = (0, 0);
    while mask != 0 {
        r |= (v >> nth & 1) << mask.trailing_zeros();
        mask &= mask - 1;
        nth += 1;
    }
    r
}

/// PEXT: the bits of `v` where `mask` has ones go to the low end.
fn extract(v: u64, mut mask: u64) -> u64 {
    let (mut r, mut nth) = (0, 0);
    while mask != 0 {
        r |= (v >> mask.trailing_zeros() & 1) << nth;
        mask &= mask - 1;
        nth += 1;
    }
    r
}

/// `r1` is the destination; `a` the operand that may be memory; the other source, or MULX's second
/// destination, is the register in `imm`; RORX has its count there.
fn compute<T: Int>(cpu: &mut Cpu, op: &Op, a: T) {
    let (a, mask) = (a.zx(), T::MASK);
    let other = if op.aux == what::RORX { op.imm } else { T::get(cpu, op.imm as u8).zx() };
    let count = (other & u64::from(T::BITS - 1)) as u32;
    let mut flags = None;
    let r = match op.aux {
        what::ANDN => {
            flags = Some(false);
            !other & a
        }
        what::BEXTR => {
            let (start, len) = (other as u8, (other >> 8) as u8);
            flags = Some(false);
            a.checked_shr(u32::from(start)).unwrap_or(0) & low(u32::from(len))
        }
        what::BLSI => {
            flags = Some(a != 0);
            a & a.wrapping_neg()
        }
        what::BLSMSK => {
            flags = Some(a == 0);
            a ^ a.wrapping_sub(1)
        }
        what::BLSR => {
            flags = Some(a == 0);
            a & a.wrapping_sub(1)
        }
        what::BZHI => {
            let n = u32::from(other as u8);
            flags = Some(n >= T::BITS);
            a & low(n)
        }
        what::MULX => {
            let product = u128::from(a) * u128::from(T::get(cpu, reg::RDX).zx());
            T::of(product as u64).put(cpu, op.imm as u8);
            (product >> T::BITS) as u64
        }
        what::PDEP => deposit(other, a),
        what::PEXT => extract(other, a),
        what::RORX if count == 0 => a,
        what::RORX => a >> count | a << (T::BITS - count),
        what::SARX => (T::of(a).sx() as i64 >> count) as u64,
        what::SHLX => a << count,
        _ => a >> count,
    };
    let r = T::of(r & mask);
    if let Some(cf) = flags {
        cpu.flags.set_result(r, cf, false);
    }
    r.put(cpu, op.r1);
}

/// The operand is a register.
pub extern "C-unwind" fn r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r2);
    compute(cpu, &op, a);
    next(cpu, op)
}

/// The operand is memory.
pub extern "C-unwind" fn m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(a) => compute(cpu, &op, a),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}
