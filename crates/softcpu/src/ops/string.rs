//! String instructions: MOVS, STOS, LODS, SCAS, CMPS. (INS and OUTS are I/O: see `system`.)
//!
//! A repeated instruction works through memory a page at a time where both sides are plain memory and
//! the direction is up. It goes back to the dispatcher after [`SLICE`] elements, with its registers
//! advanced, so that interrupts are not held up.

use super::address_mask;
use super::alu::{Alu, Cmp};
use crate::cpu::{Cpu, Stop, reg, seg};
use crate::flags::bits;
use crate::int::Int;
use crate::mmu::{Kind, PAGE, Plain, copy_span, fill_span};
use crate::op::{Flow, Op, OpRef, jumped, next, stop};

/// Elements between looks at asynchronous events.
const SLICE: u64 = 1 << 16;

/// `Op::aux` of string operations.
#[allow(missing_docs)]
pub mod rep {
    pub const NONE: u16 = 0;
    /// REP, REPE.
    pub const E: u16 = 1;
    /// REPNE.
    pub const NE: u16 = 2;
}

/// Which string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum What {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

impl What {
    const fn from(n: u8) -> Self {
        match n {
            0 => Self::Movs,
            1 => Self::Stos,
            2 => Self::Lods,
            3 => Self::Scas,
            _ => Self::Cmps,
        }
    }
    const fn uses_si(self) -> bool {
        matches!(self, Self::Movs | Self::Lods | Self::Cmps)
    }
    const fn uses_di(self) -> bool {
        !matches!(self, Self::Lods)
    }
    const fn compares(self) -> bool {
        matches!(self, Self::Scas | Self::Cmps)
    }
}

/// Adds to an index register at the address size.
#[inline(always)]
fn advance(cpu: &mut Cpu, r: u8, mask: u64, by: u64) {
    let v = &mut cpu.regs[usize::from(r)];
    let new = v.wrapping_add(by) & mask;
    *v = if mask == 0xffff { *v & !mask | new } else { new };
}

/// One string instruction, repeated or not. `W` numbers [`What`].
pub extern "C-unwind" fn string<T: Int + Plain, const W: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if op.aux == rep::NONE {
        return match element::<T, W>(cpu, &op) {
            Ok(()) => next(cpu, op),
            Err(s) => stop(cpu, op, s),
        };
    }
    match repeat::<T, W>(cpu, &op) {
        Ok(true) => next(cpu, op),
        Ok(false) => {
            cpu.rip = cpu.ip(&op);
            cpu.mmu.replay.clear();
            // A slice counts as the instructions that would take as long, so that timers are looked at.
            cpu.icount += SLICE / 32;
            jumped(cpu, op, Flow::Lookup)
        }
        Err(s) => stop(cpu, op, s),
    }
}

/// Runs the repetition; `false` if it is not finished.
#[inline(never)]
fn repeat<T: Int + Plain, const W: u8>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let what = What::from(W);
    let mask = address_mask(op);
    // Traps come after each element.
    let mut left = if cpu.single() { 1 } else { SLICE };
    loop {
        let count = cpu.regs[usize::from(reg::RCX)] & mask;
        if count == 0 {
            // The address size decides how the registers look even if nothing is done.
            return Ok(true);
        }
        if left == 0 {
            return Ok(false);
        }
        let bulk = if what.compares() { 0 } else { bulk::<T, W>(cpu, op, count.min(left), mask) };
        let done = if bulk > 0 {
            bulk
        } else {
            element::<T, W>(cpu, op)?;
            cpu.mmu.replay.clear();
            1
        };
        advance(cpu, reg::RCX, mask, 0u64.wrapping_sub(done));
        left = left.saturating_sub(done);
        if what.compares() && cpu.flags.zf() != (op.aux == rep::E) {
            return Ok(true);
        }
    }
}

/// One element.
#[inline(always)]
fn element<T: Int + Plain, const W: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let what = What::from(W);
    let mask = address_mask(op);
    let size = T::BYTES as u64;
    let si = cpu.regs[usize::from(reg::RSI)] & mask;
    let di = cpu.regs[usize::from(reg::RDI)] & mask;
    let mut from = T::default();
    if what.uses_si() {
        let lin = cpu.linear(usize::from(op.seg), si, size, Kind::Read)?;
        from = cpu.load(lin)?;
    }
    match what {
        What::Movs | What::Stos => {
            let v = if what == What::Movs { from } else { T::get(cpu, reg::RAX) };
            let lin = cpu.linear(seg::ES, di, size, Kind::Write)?;
            cpu.store(lin, v)?;
        }
        What::Lods => from.put(cpu, reg::RAX),
        What::Scas | What::Cmps => {
            let lin = cpu.linear(seg::ES, di, size, Kind::Read)?;
            let to: T = cpu.load(lin)?;
            let a = if what == What::Cmps { from } else { T::get(cpu, reg::RAX) };
            Cmp::exec(&mut cpu.flags, a, to);
        }
    }
    let step = if cpu.rflags & bits::DF != 0 { size.wrapping_neg() } else { size };
    if what.uses_si() {
        advance(cpu, reg::RSI, mask, step);
    }
    if what.uses_di() {
        advance(cpu, reg::RDI, mask, step);
    }
    Ok(())
}

/// As many elements as lie in one page on both sides, if they are plain memory; else 0.
fn bulk<T: Int + Plain, const W: u8>(cpu: &mut Cpu, op: &Op, count: u64, mask: u64) -> u64 {
    let what = What::from(W);
    let size = T::BYTES as u64;
    if cpu.rflags & bits::DF != 0 || matches!(what, What::Lods) {
        return 0;
    }
    let si = cpu.regs[usize::from(reg::RSI)] & mask;
    let di = cpu.regs[usize::from(reg::RDI)] & mask;
    let mut n = count.min((mask - di) / size);
    if what.uses_si() {
        n = n.min((mask - si) / size);
    }
    if n < 2 {
        return 0;
    }
    // With segments, the whole run must pass the limit check; 0 leaves it to the single step to fault.
    let Some(to) = run(cpu, seg::ES, di, &mut n, size, Kind::Write) else { return 0 };
    let Some(dst) = cpu.span(to, Kind::Write) else { return 0 };
    if what == What::Movs {
        let Some(from) = run(cpu, usize::from(op.seg), si, &mut n, size, Kind::Read) else { return 0 };
        let Some(src) = cpu.span(from, Kind::Read) else { return 0 };
        copy_span(src, dst, (n * size) as usize, T::BYTES);
        advance(cpu, reg::RSI, mask, n * size);
    } else {
        let pattern = T::get(cpu, reg::RAX).zx();
        fill_span(dst, (n * size) as usize, pattern, T::BYTES);
    }
    advance(cpu, reg::RDI, mask, n * size);
    n
}

/// The linear address of a run, with `n` cut to what stays in the page; `None` if there is no such run.
fn run(cpu: &mut Cpu, s: usize, offset: u64, n: &mut u64, size: u64, kind: Kind) -> Option<u64> {
    let lin = if cpu.long64 {
        cpu.ea_base[s & 7].wrapping_add(offset)
    } else {
        let first = cpu.seg[s & 7].base.wrapping_add(offset) & 0xffff_ffff;
        *n = (*n).min((PAGE - first % PAGE) / size);
        if *n == 0 {
            return None;
        }
        let pending = cpu.pending;
        let Ok(lin) = cpu.linear(s, offset, *n * size, kind) else {
            cpu.pending = pending;
            return None;
        };
        lin
    };
    *n = (*n).min((PAGE - lin % PAGE) / size);
    (*n > 0).then_some(lin)
}
