//! Data movement: MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, PUSH, POP, conversions, and the stack.

use super::{ea, fast_ea, offset};
use crate::cpu::{Cpu, Stop, attr, reg, seg};
use crate::int::{HIGH_BYTE, Int};
use crate::mmu::{HostPtr, Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

impl Cpu {
    /// All-ones of the stack pointer's width.
    #[inline(always)]
    fn stack_mask(&self) -> u64 {
        if self.long64 {
            u64::MAX
        } else if self.seg[seg::SS].attr & attr::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Writes RSP, ESP or SP, by the stack's width.
    #[inline(always)]
    pub fn set_sp(&mut self, v: u64) {
        let mask = self.stack_mask();
        let sp = &mut self.regs[usize::from(reg::RSP)];
        *sp = if mask == 0xffff { *sp & !mask | v & mask } else { v & mask };
    }

    /// Stack pointer cut to the stack's width.
    #[inline(always)]
    pub fn sp(&self) -> u64 {
        self.regs[usize::from(reg::RSP)] & self.stack_mask()
    }

    /// Pushes `v`. The stack pointer moves only if the store succeeds.
    ///
    /// # Errors
    /// What the store raises.
    #[inline(always)]
    pub fn push<T: Int + Plain>(&mut self, v: T) -> Result<(), Stop> {
        if self.long64 {
            let sp = self.regs[usize::from(reg::RSP)].wrapping_sub(T::BYTES as u64);
            if let Err(s) = self.store(sp, v) {
                return Err(self.at_stack(s));
            }
            self.regs[usize::from(reg::RSP)] = sp;
            return Ok(());
        }
        let sp = self.sp().wrapping_sub(T::BYTES as u64) & self.stack_mask();
        let lin = self.linear(seg::SS, sp, T::BYTES as u64, Kind::Write)?;
        self.store(lin, v)?;
        self.set_sp(sp);
        Ok(())
    }

    /// In 64-bit mode: the stack pointer after a push of a `T`, and where it goes if the TLB knows.
    #[inline(always)]
    pub(crate) fn fast_push<T: Int + Plain>(&self) -> Option<(u64, HostPtr)> {
        let sp = self.regs[usize::from(reg::RSP)].wrapping_sub(T::BYTES as u64);
        if !self.long64 {
            return None;
        }
        Some((sp, self.hit_write::<T>(sp)?))
    }

    /// In 64-bit mode: where the top of the stack is, if the TLB knows.
    #[inline(always)]
    pub(crate) fn fast_peek<T: Int + Plain>(&self) -> Option<HostPtr> {
        if self.long64 { self.hit_read::<T>(self.regs[usize::from(reg::RSP)]) } else { None }
    }

    /// Reads the stack `at` bytes above its top.
    ///
    /// # Errors
    /// What the load raises.
    #[inline(always)]
    pub fn peek<T: Int + Plain>(&mut self, at: u64) -> Result<T, Stop> {
        if self.long64 {
            let sp = self.regs[usize::from(reg::RSP)].wrapping_add(at);
            return self.load(sp).map_err(|s| self.at_stack(s));
        }
        let sp = self.sp().wrapping_add(at) & self.stack_mask();
        let lin = self.linear(seg::SS, sp, T::BYTES as u64, Kind::Read)?;
        self.load(lin)
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub fn release(&mut self, bytes: u64) {
        let sp = self.regs[usize::from(reg::RSP)].wrapping_add(bytes);
        self.set_sp(sp);
    }
}

/// MOV register, register.
pub extern "C-unwind" fn mov_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    T::get(cpu, op.r2).put(cpu, op.r1);
    next(cpu, op)
}

/// MOV register, immediate.
pub extern "C-unwind" fn mov_ri<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    T::of(op.imm).put(cpu, op.r1);
    next(cpu, op)
}

/// MOV register, memory.
pub extern "C-unwind" fn load<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_read::<T>(lin)) {
        p.read::<T>().put(cpu, op.r1);
        return next(cpu, op);
    }
    load_slow::<T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn load_slow<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(v) => v.put(cpu, op.r1),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// MOV memory, register.
pub extern "C-unwind" fn store<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_write::<T>(lin)) {
        p.write(T::get(cpu, op.r2));
        return next(cpu, op);
    }
    store_slow::<T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn store_slow<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = T::get(cpu, op.r2);
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// MOV memory, immediate.
pub extern "C-unwind" fn store_imm<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_write::<T>(lin)) {
        p.write(T::of(op.imm));
        return next(cpu, op);
    }
    store_imm_slow::<T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn store_imm_slow<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = T::of(op.imm);
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// MOVZX register, register: from `S` to `D`.
pub extern "C-unwind" fn movzx_rr<D: Int, S: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    D::of(S::get(cpu, op.r2).zx()).put(cpu, op.r1);
    next(cpu, op)
}

/// MOVSX, MOVSXD register, register.
pub extern "C-unwind" fn movsx_rr<D: Int, S: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    D::of(S::get(cpu, op.r2).sx()).put(cpu, op.r1);
    next(cpu, op)
}

/// MOVZX register, memory.
pub extern "C-unwind" fn movzx_rm<D: Int, S: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_read::<S>(lin)) {
        D::of(p.read::<S>().zx()).put(cpu, op.r1);
        return next(cpu, op);
    }
    movzx_rm_slow::<D, S, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn movzx_rm_slow<D: Int, S: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, S::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<S>(lin)) {
        Ok(v) => D::of(v.zx()).put(cpu, op.r1),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// MOVSX, MOVSXD register, memory.
pub extern "C-unwind" fn movsx_rm<D: Int, S: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_read::<S>(lin)) {
        D::of(p.read::<S>().sx()).put(cpu, op.r1);
        return next(cpu, op);
    }
    movsx_rm_slow::<D, S, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn movsx_rm_slow<D: Int, S: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, S::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<S>(lin)) {
        Ok(v) => D::of(v.sx()).put(cpu, op.r1),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// LEA in 64-bit mode with 64-bit addresses.
pub extern "C-unwind" fn lea<T: Int, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = if E == crate::lower::form::FULL {
        offset(cpu, &op)
    } else {
        // The forms without a segment cannot fail.
        ea::<E>(cpu, &op, 1, Kind::Read).unwrap_or(0)
    };
    T::of(v).put(cpu, op.r1);
    next(cpu, op)
}

/// CMOVcc register, register. A 32-bit destination is zero-extended either way.
pub extern "C-unwind" fn cmov_rr<T: Int, const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = if cpu.flags.cond(CC) { T::get(cpu, op.r2) } else { T::get(cpu, op.r1) };
    v.put(cpu, op.r1);
    next(cpu, op)
}

/// CMOVcc register, memory: the load happens either way. The condition is `aux & 15`.
pub extern "C-unwind" fn cmov_rm<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load::<T>(lin)) {
        Ok(v) => {
            let v = if cpu.flags.cond(op.aux as u8 & 15) { v } else { T::get(cpu, op.r1) };
            v.put(cpu, op.r1);
        }
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// SETcc register.
pub extern "C-unwind" fn setcc_r<const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    u8::from(cpu.flags.cond(CC)).put(cpu, op.r1);
    next(cpu, op)
}

/// SETcc memory. The condition is `aux & 15`.
pub extern "C-unwind" fn setcc_m<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = u8::from(cpu.flags.cond(op.aux as u8 & 15));
    match ea::<E>(cpu, &op, 1, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// PUSH register.
pub extern "C-unwind" fn push_r<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some((sp, p)) = cpu.fast_push::<T>() {
        p.write(T::get(cpu, op.r2));
        cpu.regs[usize::from(reg::RSP)] = sp;
        return next(cpu, op);
    }
    push_r_slow::<T>(cpu, op)
}

/// PUSH of the 64-bit registers `r2` and `r1`, one after the other. The operation that follows is the second
/// PUSH alone, for when they do not go at once.
pub extern "C-unwind" fn push_pair(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.regs[usize::from(reg::RSP)].wrapping_sub(16);
    if let Some(p) = cpu.hit_write::<u128>(sp) {
        let (first, second) = (u64::get(cpu, op.r2), u64::get(cpu, op.r1));
        p.write(u128::from(first) << 64 | u128::from(second));
        cpu.regs[usize::from(reg::RSP)] = sp;
        let after = op.ahead(2);
        return (after.run)(cpu, after);
    }
    push_r_slow::<u64>(cpu, op)
}

/// POP of the 64-bit registers `r1` and `r2`; see [`push_pair`].
pub extern "C-unwind" fn pop_pair(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.regs[usize::from(reg::RSP)];
    if let Some(p) = cpu.hit_read::<u128>(sp) {
        let both = p.read::<u128>();
        (both as u64).put(cpu, op.r1);
        ((both >> 64) as u64).put(cpu, op.r2);
        cpu.regs[usize::from(reg::RSP)] = sp.wrapping_add(16);
        let after = op.ahead(2);
        return (after.run)(cpu, after);
    }
    pop_r_slow::<u64>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn push_r_slow<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = T::get(cpu, op.r2);
    match cpu.push(v) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// PUSH immediate.
pub extern "C-unwind" fn push_i<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some((sp, p)) = cpu.fast_push::<T>() {
        p.write(T::of(op.imm));
        cpu.regs[usize::from(reg::RSP)] = sp;
        return next(cpu, op);
    }
    push_i_slow::<T>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn push_i_slow<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cpu.push(T::of(op.imm)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// PUSH memory.
pub extern "C-unwind" fn push_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let done = ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read)
        .and_then(|lin| cpu.load::<T>(lin))
        .and_then(|v| cpu.push(v));
    match done {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// POP register.
pub extern "C-unwind" fn pop_r<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = cpu.fast_peek::<T>() {
        let sp = &mut cpu.regs[usize::from(reg::RSP)];
        *sp = sp.wrapping_add(T::BYTES as u64);
        p.read::<T>().put(cpu, op.r1);
        return next(cpu, op);
    }
    pop_r_slow::<T>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn pop_r_slow<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cpu.peek::<T>(0) {
        Ok(v) => {
            cpu.release(T::BYTES as u64);
            v.put(cpu, op.r1);
            next(cpu, op)
        }
        Err(s) => stop(cpu, op, s),
    }
}

/// POP memory: an address that uses RSP sees it after the pop.
pub extern "C-unwind" fn pop_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.regs[usize::from(reg::RSP)];
    let done = cpu.peek::<T>(0).and_then(|v| {
        cpu.release(T::BYTES as u64);
        let lin = ea::<E>(cpu, &op, T::BYTES as u64, Kind::Write)?;
        cpu.store(lin, v)
    });
    match done {
        Ok(()) => next(cpu, op),
        Err(s) => {
            cpu.regs[usize::from(reg::RSP)] = sp;
            stop(cpu, op, s)
        }
    }
}

/// PUSHA, PUSHAD.
pub extern "C-unwind" fn pusha<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.regs[usize::from(reg::RSP)];
    for r in 0..8 {
        let v = if r == reg::RSP { T::of(sp) } else { T::get(cpu, r) };
        if let Err(s) = cpu.push(v) {
            cpu.regs[usize::from(reg::RSP)] = sp;
            return stop(cpu, op, s);
        }
    }
    next(cpu, op)
}

/// POPA, POPAD: the image of the stack pointer is skipped.
pub extern "C-unwind" fn popa<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match popa_work::<T>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn popa_work<T: Int + Plain>(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let mut image = [T::default(); 8];
    for (i, slot) in image.iter_mut().enumerate() {
        *slot = cpu.peek(i as u64 * T::BYTES as u64)?;
    }
    for (i, v) in image.iter().rev().enumerate().filter(|(i, _)| *i != usize::from(reg::RSP)) {
        v.put(cpu, i as u8);
    }
    cpu.release(8 * T::BYTES as u64);
    Ok(())
}

/// ENTER: frame size in `imm` bits 15–0, nesting level in bits 20–16.
pub extern "C-unwind" fn enter<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let saved = cpu.regs;
    match enter_work::<T>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => {
            cpu.regs = saved;
            stop(cpu, op, s)
        }
    }
}

#[inline(never)]
fn enter_work<T: Int + Plain>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (size, level) = (op.imm & 0xffff, op.imm >> 16 & 31);
    cpu.push(T::get(cpu, reg::RBP))?;
    // All of ESP, on a 16-bit stack too: the operand size decides how much of it counts.
    let frame = cpu.regs[usize::from(reg::RSP)];
    let mask = cpu.stack_mask();
    let mut bp = cpu.regs[usize::from(reg::RBP)];
    for _ in 1..level {
        bp = bp.wrapping_sub(T::BYTES as u64);
        let lin = cpu.linear(seg::SS, bp & mask, T::BYTES as u64, Kind::Read)?;
        let v: T = cpu.load(lin).map_err(|s| cpu.at_stack(s))?;
        cpu.push(v)?;
    }
    if level > 0 {
        cpu.push(T::of(frame))?;
    }
    let sp = cpu.sp().wrapping_sub(size) & mask;
    let lin = cpu.linear(seg::SS, sp, 1, Kind::Write)?;
    cpu.probe_write(lin, 1).map_err(|s| cpu.at_stack(s))?;
    cpu.set_sp(sp);
    // The frame pointer is written at the operand's width.
    T::of(frame).put(cpu, reg::RBP);
    Ok(())
}

/// LEAVE.
pub extern "C-unwind" fn leave<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.regs[usize::from(reg::RSP)];
    let bp = cpu.regs[usize::from(reg::RBP)];
    cpu.set_sp(bp);
    match cpu.peek::<T>(0) {
        Ok(v) => {
            cpu.release(T::BYTES as u64);
            v.put(cpu, reg::RBP);
            next(cpu, op)
        }
        Err(s) => {
            cpu.regs[usize::from(reg::RSP)] = sp;
            stop(cpu, op, s)
        }
    }
}

/// XLAT.
pub extern "C-unwind" fn xlat(cpu: &mut Cpu, op: OpRef) -> Flow {
    let mask = super::address_mask(&op);
    let al = u64::from(u8::get(cpu, reg::RAX));
    let at = cpu.regs[usize::from(reg::RBX)].wrapping_add(al) & mask;
    match cpu.linear(usize::from(op.seg), at, 1, Kind::Read).and_then(|lin| cpu.load::<u8>(lin)) {
        Ok(v) => v.put(cpu, reg::RAX),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// CBW, CWDE, CDQE: `S` to `D` in the accumulator.
pub extern "C-unwind" fn widen<D: Int, S: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    D::of(S::get(cpu, reg::RAX).sx()).put(cpu, reg::RAX);
    next(cpu, op)
}

/// CWD, CDQ, CQO.
pub extern "C-unwind" fn sign_to_dx<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sign = (T::get(cpu, reg::RAX).sx() as i64 >> 63) as u64;
    T::of(sign).put(cpu, reg::RDX);
    next(cpu, op)
}

/// LAHF.
pub extern "C-unwind" fn lahf(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = (cpu.flags.get() | crate::flags::bits::FIXED) as u8;
    v.put(cpu, reg::RAX | HIGH_BYTE);
    next(cpu, op)
}

/// SAHF: OF stays.
pub extern "C-unwind" fn sahf(cpu: &mut Cpu, op: OpRef) -> Flow {
    let of = cpu.flags.get() & crate::flags::bits::OF;
    let ah = u64::from(u8::get(cpu, reg::RAX | HIGH_BYTE)) & crate::flags::bits::ARITH;
    cpu.flags.set(ah | of);
    next(cpu, op)
}
