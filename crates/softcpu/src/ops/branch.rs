//! Near branches, calls and returns, and how blocks follow each other.

use super::ea;
use crate::cpu::{Cpu, RBLOCK, Stop, reg};
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Handler, Op, OpRef, stop};

/// Counts the block's instructions, and says whether the chain may go on.
#[inline(always)]
fn leave(cpu: &mut Cpu, executed: u8) -> bool {
    cpu.icount += u64::from(executed);
    cpu.icount < cpu.chain_end && cpu.signals.get() == 0
}

/// Where an exit operation leads. 16-bit code can lie beyond 64 KiB of its segment: branches are cut to 16 bits there,
/// what follows is not.
#[inline(always)]
pub(crate) fn target(cpu: &Cpu, exit: &Op) -> u64 {
    // All ones for `Op::ON`.
    let on = u64::from(i32::from(exit.scale as i8) as u32);
    cpu.regs[usize::from(RBLOCK)].wrapping_add(i64::from(exit.disp) as u64) & (cpu.ip_mask | on)
}

/// Leaves the block to a target in the same page, through the link if there is one.
#[inline(always)]
fn take_link(cpu: &mut Cpu, exit: OpRef) -> Flow {
    let rip = target(cpu, &exit);
    let go_on = leave(cpu, exit.nth);
    if go_on && exit.imm != 0 {
        cpu.regs[usize::from(RBLOCK)] = rip;
        let to = crate::code::linked(exit);
        return (to.run)(cpu, to);
    }
    cpu.rip = rip;
    if !go_on {
        return Flow::Lookup;
    }
    cpu.code.patch = Some(exit);
    Flow::Link
}

/// Leaves the block to `rip` by looking its block up.
#[inline(always)]
fn take_lookup(cpu: &mut Cpu, rip: u64, executed: u8) -> Flow {
    if leave(cpu, executed)
        && let Some(to) = cpu.cached_block(rip)
    {
        return (to.run)(cpu, to);
    }
    cpu.rip = rip;
    Flow::Lookup
}

/// Whether a handler is that of an exit operation.
pub(crate) fn is_exit(run: Handler) -> bool {
    let exits: [Handler; 2] = [exit_link, exit_far];
    exits.into_iter().any(|exit| std::ptr::fn_addr_eq(run, exit))
}

/// Exit operation to a target in the same page.
pub extern "C-unwind" fn exit_link(cpu: &mut Cpu, op: OpRef) -> Flow {
    take_link(cpu, op)
}

/// Exit operation to a target in another page: through the link if it was made from here under the mapping that
/// is in force.
pub extern "C-unwind" fn exit_far(cpu: &mut Cpu, op: OpRef) -> Flow {
    let rip = target(cpu, &op);
    if leave(cpu, op.nth) {
        if (op.imm, op.aux) == cpu.mmu.link_key(cpu.code_place(rip)) {
            cpu.regs[usize::from(RBLOCK)] = rip;
            let to = cpu.code.far_linked(&op);
            return (to.run)(cpu, to);
        }
        if let Some(to) = cpu.link_far(op, rip) {
            return (to.run)(cpu, to);
        }
    }
    cpu.rip = rip;
    Flow::Lookup
}

/// Goes on with the chain after an instruction that has set `Cpu::rip` and may have changed privilege level,
/// RFLAGS or stack, but in 64-bit mode nothing that decoding depends on.
#[inline(always)]
pub(crate) fn go_on(cpu: &mut Cpu) -> Flow {
    if cpu.long64
        && cpu.code.key == cpu.code_key()
        && cpu.icount < cpu.chain_end
        && !cpu.needs_boundary()
        && let Some(to) = cpu.cached_block(cpu.rip)
    {
        return (to.run)(cpu, to);
    }
    Flow::Sync
}

/// The instruction completed, has set `Cpu::rip`, and may have changed what [`go_on`] allows.
#[inline(always)]
pub(crate) fn jumped_on(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.icount += u64::from(op.nth) + 1;
    go_on(cpu)
}

/// Goes through the exit operation `n` places ahead.
#[inline(always)]
fn exit_at(cpu: &mut Cpu, op: OpRef, n: usize) -> Flow {
    let e = op.ahead(n);
    (e.run)(cpu, e)
}

/// Jcc: the exit operations for taken and not taken follow.
pub extern "C-unwind" fn jcc<const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let n = if cpu.flags.cond(CC) { 1 } else { 2 };
    exit_at(cpu, op, n)
}

/// The condition that `r = a - b` gives, without going through the flags.
#[inline(always)]
fn cmp_cond<const CC: u8, T: Int>(cpu: &Cpu, a: T, b: T, r: T) -> bool {
    let (sa, sb) = (a.sx() as i64, b.sx() as i64);
    let v = match CC >> 1 {
        1 => a < b,
        2 => a == b,
        3 => a <= b,
        4 => (r.sx() as i64) < 0,
        6 => sa < sb,
        7 => sa <= sb,
        _ => return cpu.flags.cond(CC),
    };
    v ^ (CC & 1 != 0)
}

/// The condition that a logical result gives.
#[inline(always)]
fn logic_cond<const CC: u8, T: Int>(cpu: &Cpu, r: T) -> bool {
    let s = r.sx() as i64;
    let v = match CC >> 1 {
        0 | 1 => false,
        2 | 3 => s == 0,
        4 | 6 => s < 0,
        7 => s <= 0,
        _ => return cpu.flags.cond(CC),
    };
    v ^ (CC & 1 != 0)
}

#[inline(always)]
fn cmp_jump<const CC: u8, T: Int>(cpu: &mut Cpu, op: OpRef, a: T, b: T) -> Flow {
    let r = T::of(a.zx().wrapping_sub(b.zx()));
    cpu.flags.set_sub(a, b, r);
    let n = if cmp_cond::<CC, T>(cpu, a, b, r) { 1 } else { 2 };
    exit_at(cpu, op, n)
}

/// CMP register, register and Jcc.
pub extern "C-unwind" fn cmp_rr_jcc<T: Int, const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    cmp_jump::<CC, T>(cpu, op, a, b)
}

/// CMP register, immediate and Jcc.
pub extern "C-unwind" fn cmp_ri_jcc<T: Int, const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::of(op.imm));
    cmp_jump::<CC, T>(cpu, op, a, b)
}

/// TEST register, register and Jcc.
pub extern "C-unwind" fn test_rr_jcc<T: Int, const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let r = T::of(T::get(cpu, op.r1).zx() & T::get(cpu, op.r2).zx());
    cpu.flags.set_logic(r);
    let n = if logic_cond::<CC, T>(cpu, r) { 1 } else { 2 };
    exit_at(cpu, op, n)
}

/// TEST register, immediate and Jcc.
pub extern "C-unwind" fn test_ri_jcc<T: Int, const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let r = T::of(T::get(cpu, op.r1).zx() & op.imm);
    cpu.flags.set_logic(r);
    let n = if logic_cond::<CC, T>(cpu, r) { 1 } else { 2 };
    exit_at(cpu, op, n)
}

/// LOOP, LOOPE, LOOPNE, JCXZ: `aux` 0, 1, 2, 3; the address size counts.
pub extern "C-unwind" fn loop_cx(cpu: &mut Cpu, op: OpRef) -> Flow {
    let mask = super::address_mask(&op);
    let rcx = &mut cpu.regs[usize::from(reg::RCX)];
    let mut count = *rcx & mask;
    if op.aux != 3 {
        count = count.wrapping_sub(1) & mask;
        // A 32-bit count clears the upper half, a 16-bit one keeps the rest.
        *rcx = if mask == 0xffff { *rcx & !mask | count } else { count };
    }
    let taken = match op.aux {
        0 => count != 0,
        1 => count != 0 && cpu.flags.zf(),
        2 => count != 0 && !cpu.flags.zf(),
        _ => count == 0,
    };
    exit_at(cpu, op, if taken { 1 } else { 2 })
}

/// CALL relative: pushes the return address, then the exit operation follows.
pub extern "C-unwind" fn call_rel<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some((sp, p)) = cpu.fast_push::<T>() {
        p.write(T::of(cpu.ip_after(&op)));
        cpu.regs[usize::from(reg::RSP)] = sp;
        return exit_at(cpu, op, 1);
    }
    call_rel_slow::<T>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn call_rel_slow<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let back = cpu.ip_after(&op);
    match cpu.push(T::of(back)) {
        Ok(()) => exit_at(cpu, op, 1),
        Err(s) => stop(cpu, op, s),
    }
}

/// Whether a near branch may go to `target`.
#[inline(always)]
fn inside_code(cpu: &Cpu, target: u64) -> bool {
    if cpu.long64 { cpu.canonical(target) } else { target <= u64::from(cpu.seg[crate::cpu::seg::CS].limit) }
}

#[inline(always)]
fn jump_to(cpu: &mut Cpu, op: OpRef, target: u64) -> Flow {
    if !inside_code(cpu, target) {
        let s = cpu.gp(0);
        return stop(cpu, op, s);
    }
    take_lookup(cpu, target, op.nth + 1)
}

/// JMP register.
pub extern "C-unwind" fn jmp_r<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let target = T::get(cpu, op.r1).zx();
    jump_to(cpu, op, target)
}

/// JMP memory.
pub extern "C-unwind" fn jmp_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match load_target::<T, E>(cpu, &op) {
        Ok(target) => jump_to(cpu, op, target.zx()),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(always)]
fn load_target<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Read)?;
    cpu.load(lin)
}

#[inline(always)]
fn call_to<T: Int + Plain>(cpu: &mut Cpu, op: OpRef, target: u64) -> Flow {
    if !inside_code(cpu, target) {
        let s = cpu.gp(0);
        return stop(cpu, op, s);
    }
    let back = cpu.ip_after(&op);
    match cpu.push(T::of(back)) {
        Ok(()) => jump_to(cpu, op, target),
        Err(s) => stop(cpu, op, s),
    }
}

/// CALL register.
pub extern "C-unwind" fn call_r<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let target = T::get(cpu, op.r1).zx();
    call_to::<T>(cpu, op, target)
}

/// CALL memory.
pub extern "C-unwind" fn call_m<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match load_target::<T, E>(cpu, &op) {
        Ok(target) => call_to::<T>(cpu, op, target.zx()),
        Err(s) => stop(cpu, op, s),
    }
}

/// RET, with `imm` bytes of arguments to release.
pub extern "C-unwind" fn ret<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = cpu.fast_peek::<T>() {
        let target = p.read::<T>().zx();
        if cpu.canonical(target) {
            let sp = &mut cpu.regs[usize::from(reg::RSP)];
            *sp = sp.wrapping_add(T::BYTES as u64 + op.imm);
            return take_lookup(cpu, target, op.nth + 1);
        }
    }
    ret_slow::<T>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn ret_slow<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cpu.peek::<T>(0) {
        Ok(target) => {
            let target = target.zx();
            if !inside_code(cpu, target) {
                let s = cpu.gp(0);
                return stop(cpu, op, s);
            }
            cpu.release(T::BYTES as u64 + op.imm);
            jump_to(cpu, op, target)
        }
        Err(s) => stop(cpu, op, s),
    }
}
