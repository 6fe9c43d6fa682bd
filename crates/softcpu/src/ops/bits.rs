//! Bit tests, scans and counts, BSWAP, MOVBE, CRC32, ADCX and ADOX.

use super::{address_mask, ea, offset};
use crate::cpu::{Cpu, Stop};
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

/// BT, BTS, BTR, BTC as `aux & 3` 0, 1, 2, 3.
#[inline(always)]
fn change<T: Int>(what: u16, v: T, bit: u64) -> T {
    let m = 1 << bit;
    T::of(match what & 3 {
        1 => v.zx() | m,
        2 => v.zx() & !m,
        3 => v.zx() ^ m,
        _ => v.zx(),
    })
}

/// BT family on a register; the bit number is `imm` (`aux` bit 2) or `r2`.
pub extern "C-unwind" fn bt_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let n = if op.aux & 4 != 0 { op.imm } else { T::get(cpu, op.r2).zx() };
    let bit = n & u64::from(T::BITS - 1);
    let v = T::get(cpu, op.r1);
    cpu.flags.set_cf(v.zx() >> bit & 1 != 0);
    if op.aux & 3 != 0 {
        change(op.aux, v, bit).put(cpu, op.r1);
    }
    next(cpu, op)
}

/// BT family on memory: a register bit number reaches beyond the operand. `aux` bit 3: LOCK.
pub extern "C-unwind" fn bt_m<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match bt_m_work::<T>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn bt_m_work<T: Int + Plain>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let mut at = offset(cpu, op);
    let bit = if op.aux & 4 != 0 {
        op.imm & u64::from(T::BITS - 1)
    } else {
        let n = T::get(cpu, op.r2).sx() as i64;
        let whole = n.div_euclid(i64::from(T::BITS)) * T::BYTES as i64;
        at = at.wrapping_add(whole as u64) & address_mask(op);
        n.rem_euclid(i64::from(T::BITS)) as u64
    };
    let kind = if op.aux & 3 == 0 { Kind::Read } else { Kind::Write };
    let lin = cpu.linear(usize::from(op.seg), at, T::BYTES as u64, kind)?;
    let mut old = T::default();
    if op.aux & 3 == 0 {
        old = cpu.load(lin)?;
    } else if op.aux & 8 != 0 {
        cpu.modify_atomic::<T>(lin, |_, v| {
            old = v;
            change(op.aux, v, bit)
        })?;
    } else {
        cpu.modify::<T>(lin, |_, v| {
            old = v;
            change(op.aux, v, bit)
        })?;
    }
    cpu.flags.set_cf(old.zx() >> bit & 1 != 0);
    Ok(())
}

/// What [`scan_r`] and [`scan_m`] compute, in `aux`.
#[allow(missing_docs)]
pub mod scan {
    pub const BSF: u16 = 0;
    pub const BSR: u16 = 1;
    pub const TZCNT: u16 = 2;
    pub const LZCNT: u16 = 3;
    pub const POPCNT: u16 = 4;
}

#[inline(always)]
fn do_scan<T: Int>(cpu: &mut Cpu, op: &Op, v: T) {
    let v = v.zx();
    match op.aux {
        scan::BSF | scan::BSR => {
            // With a zero source the destination stays as it is, on every known processor.
            if v != 0 {
                let n = if op.aux == scan::BSF { v.trailing_zeros() } else { 63 - v.leading_zeros() };
                T::of(u64::from(n)).put(cpu, op.r1);
            }
            cpu.flags.set_result(T::of(v), false, false);
            // Only ZF is defined; the sign and parity follow the source as in `set_result`.
        }
        scan::TZCNT | scan::LZCNT => {
            let n = match (v, op.aux) {
                (0, _) => T::BITS,
                (_, scan::TZCNT) => v.trailing_zeros(),
                _ => v.leading_zeros() - (64 - T::BITS),
            };
            let r = T::of(u64::from(n));
            r.put(cpu, op.r1);
            cpu.flags.set_result(r, v == 0, false);
        }
        _ => {
            let r = T::of(u64::from(v.count_ones()));
            r.put(cpu, op.r1);
            // Every flag but ZF is cleared.
            cpu.flags.set(if v == 0 { crate::flags::bits::ZF } else { 0 });
        }
    }
}

/// BSF, BSR, TZCNT, LZCNT, POPCNT of a register.
pub extern "C-unwind" fn scan_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = T::get(cpu, op.r2);
    do_scan(cpu, &op, v);
    next(cpu, op)
}

/// … of memory.
pub extern "C-unwind" fn scan_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(v) => do_scan(cpu, &op, v),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

fn swapped<T: Int>(v: T) -> T {
    T::of(v.zx().swap_bytes() >> (64 - T::BITS))
}

/// BSWAP. Of a 16-bit register it gives zero.
pub extern "C-unwind" fn bswap<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = T::get(cpu, op.r1);
    if T::BITS == 16 { T::default() } else { swapped(v) }.put(cpu, op.r1);
    next(cpu, op)
}

/// MOVBE from memory.
pub extern "C-unwind" fn movbe_load<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(v) => swapped(v).put(cpu, op.r1),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// MOVBE to memory.
pub extern "C-unwind" fn movbe_store<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = swapped(T::get(cpu, op.r2));
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// CRC-32C of `v` added to `crc`, as CRC32 computes it.
fn crc32c<T: Int>(crc: u32, v: T) -> u32 {
    let mut r = u64::from(crc) ^ v.zx();
    for _ in 0..T::BITS {
        r = r >> 1 ^ if r & 1 != 0 { 0x82f6_3b78 } else { 0 };
    }
    // A narrow operand leaves the upper part of the old remainder, shifted down.
    r as u32
}

/// CRC32 of a register.
pub extern "C-unwind" fn crc32_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (crc, v) = (u32::get(cpu, op.r1), T::get(cpu, op.r2));
    crc32c(crc, v).put(cpu, op.r1);
    next(cpu, op)
}

/// CRC32 of memory.
pub extern "C-unwind" fn crc32_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(v) => {
            let crc = u32::get(cpu, op.r1);
            crc32c(crc, v).put(cpu, op.r1);
        }
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// ADCX (`aux` 0) and ADOX (`aux` 1).
fn add_one_carry<T: Int>(cpu: &mut Cpu, op: &Op, b: T) {
    use crate::flags::bits::{CF, OF};
    let flag = if op.aux & 1 != 0 { OF } else { CF };
    let old = cpu.flags.get();
    let a = T::get(cpu, op.r1);
    let sum = u128::from(a.zx()) + u128::from(b.zx()) + u128::from(old & flag != 0);
    T::of(sum as u64).put(cpu, op.r1);
    cpu.flags.set(if sum >> T::BITS != 0 { old | flag } else { old & !flag });
}

/// ADCX, ADOX with a register.
pub extern "C-unwind" fn adx_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let b = T::get(cpu, op.r2);
    add_one_carry(cpu, &op, b);
    next(cpu, op)
}

/// ADCX, ADOX with memory.
pub extern "C-unwind" fn adx_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(b) => add_one_carry(cpu, &op, b),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}
