//! Integer arithmetic and logic with two operands, and INC, DEC, NEG, NOT, XADD, CMPXCHG, XCHG.

use super::{ea, fast_ea};
use crate::cpu::{Cpu, Stop, reg};
use crate::flags::Flags;
use crate::int::Int;
use crate::mmu::{HostPtr, Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

/// An operation on two integers that sets the flags.
pub trait Alu {
    /// Whether the result is kept.
    const WRITES: bool = true;
    /// Computes it.
    fn exec<T: Int>(flags: &mut Flags, a: T, b: T) -> T;
    /// Computes the result alone, where the flags are not needed.
    #[inline(always)]
    fn value<T: Int>(flags: &Flags, a: T, b: T) -> T {
        // What `exec` stores is dropped, and the compiler drops the work for it.
        let mut unused = *flags;
        Self::exec(&mut unused, a, b)
    }
}

macro_rules! alu {
    ($($(#[$doc:meta])* $name:ident($flags:ident, $t:ident, $a:ident, $b:ident) $(writes $w:literal)? => $body:block)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Alu for $name {
            $(const WRITES: bool = $w;)?
            #[inline(always)]
            fn exec<$t: Int>($flags: &mut Flags, $a: $t, $b: $t) -> $t $body
        }
    )*};
}

alu! {
    /// ADD.
    Add(f, T, a, b) => {
        let r = T::of(a.zx().wrapping_add(b.zx()));
        f.set_add(a, b, r);
        r
    }
    /// ADC.
    Adc(f, T, a, b) => {
        let r = T::of(a.zx().wrapping_add(b.zx()).wrapping_add(u64::from(f.cf())));
        f.set_add(a, b, r);
        r
    }
    /// SUB.
    Sub(f, T, a, b) => {
        let r = T::of(a.zx().wrapping_sub(b.zx()));
        f.set_sub(a, b, r);
        r
    }
    /// SBB.
    Sbb(f, T, a, b) => {
        let r = T::of(a.zx().wrapping_sub(b.zx()).wrapping_sub(u64::from(f.cf())));
        f.set_sub(a, b, r);
        r
    }
    /// CMP.
    Cmp(f, T, a, b) writes false => {
        let r = T::of(a.zx().wrapping_sub(b.zx()));
        f.set_sub(a, b, r);
        r
    }
    /// AND.
    And(f, T, a, b) => {
        let r = T::of(a.zx() & b.zx());
        f.set_logic(r);
        r
    }
    /// OR.
    Or(f, T, a, b) => {
        let r = T::of(a.zx() | b.zx());
        f.set_logic(r);
        r
    }
    /// XOR.
    Xor(f, T, a, b) => {
        let r = T::of(a.zx() ^ b.zx());
        f.set_logic(r);
        r
    }
    /// TEST.
    Test(f, T, a, b) writes false => {
        let r = T::of(a.zx() & b.zx());
        f.set_logic(r);
        r
    }
}

/// Register with register.
pub extern "C-unwind" fn rr<A: Alu, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    let r = A::exec(&mut cpu.flags, a, b);
    if A::WRITES {
        r.put(cpu, op.r1);
    }
    next(cpu, op)
}

/// Register with immediate.
pub extern "C-unwind" fn ri<A: Alu, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r1);
    let r = A::exec(&mut cpu.flags, a, T::of(op.imm));
    if A::WRITES {
        r.put(cpu, op.r1);
    }
    next(cpu, op)
}

/// [`rr`] whose flags nobody looks at.
pub extern "C-unwind" fn rr_quiet<A: Alu, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    if A::WRITES {
        A::value(&cpu.flags, a, b).put(cpu, op.r1);
    }
    next(cpu, op)
}

/// [`ri`] whose flags nobody looks at.
pub extern "C-unwind" fn ri_quiet<A: Alu, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r1);
    if A::WRITES {
        A::value(&cpu.flags, a, T::of(op.imm)).put(cpu, op.r1);
    }
    next(cpu, op)
}

/// [`rm`] whose flags nobody looks at, where the TLB hits; else as [`rm`].
pub extern "C-unwind" fn rm_quiet<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_read::<T>(lin)) {
        let a = T::get(cpu, op.r1);
        if A::WRITES {
            A::value(&cpu.flags, a, p.read()).put(cpu, op.r1);
        }
        return next(cpu, op);
    }
    rm_slow::<A, T, E>(cpu, op)
}

/// Register with memory.
pub extern "C-unwind" fn rm<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_read::<T>(lin)) {
        let a = T::get(cpu, op.r1);
        let r = A::exec(&mut cpu.flags, a, p.read());
        if A::WRITES {
            r.put(cpu, op.r1);
        }
        return next(cpu, op);
    }
    rm_slow::<A, T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn rm_slow<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let b: T = match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Read).and_then(|lin| cpu.load(lin)) {
        Ok(b) => b,
        Err(s) => return stop(cpu, op, s),
    };
    let a = T::get(cpu, op.r1);
    let r = A::exec(&mut cpu.flags, a, b);
    if A::WRITES {
        r.put(cpu, op.r1);
    }
    next(cpu, op)
}

#[inline(always)]
fn mem_with<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op, b: T) -> Result<(), Stop> {
    if A::WRITES {
        let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
        cpu.modify::<T>(lin, |cpu, a| A::exec(&mut cpu.flags, a, b))
    } else {
        let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Read)?;
        let a = cpu.load::<T>(lin)?;
        A::exec(&mut cpu.flags, a, b);
        Ok(())
    }
}

/// The destination, if the TLB has it for what the operation does.
#[inline(always)]
fn hit<A: Alu, T: Int + Plain>(cpu: &Cpu, lin: u64) -> Option<HostPtr> {
    if A::WRITES { cpu.hit_write::<T>(lin) } else { cpu.hit_read::<T>(lin) }
}

/// Memory with register.
pub extern "C-unwind" fn mr<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| hit::<A, T>(cpu, lin)) {
        let b = T::get(cpu, op.r2);
        let r = A::exec(&mut cpu.flags, p.read::<T>(), b);
        if A::WRITES {
            p.write(r);
        }
        return next(cpu, op);
    }
    mr_slow::<A, T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn mr_slow<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let b = T::get(cpu, op.r2);
    match mem_with::<A, T, E>(cpu, &op, b) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// Memory with immediate.
pub extern "C-unwind" fn mi<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| hit::<A, T>(cpu, lin)) {
        let b = T::of(op.imm);
        let r = A::exec(&mut cpu.flags, p.read::<T>(), b);
        if A::WRITES {
            p.write(r);
        }
        return next(cpu, op);
    }
    mi_slow::<A, T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn mi_slow<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let b = T::of(op.imm);
    match mem_with::<A, T, E>(cpu, &op, b) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// Memory with register or immediate, with LOCK prefix. The register is `r2`, or none if `aux` is 1.
pub extern "C-unwind" fn locked<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match locked_work::<A, T, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn locked_work<A: Alu, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = if op.aux & 1 != 0 { T::of(op.imm) } else { T::get(cpu, op.r2) };
    let before = cpu.flags;
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify_atomic::<T>(lin, |cpu, a| {
        cpu.flags = before;
        A::exec(&mut cpu.flags, a, b)
    })
}

/// An operation on one integer.
pub trait Unary {
    /// Computes it.
    fn exec<T: Int>(flags: &mut Flags, a: T) -> T;
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident($flags:ident, $t:ident, $a:ident) => $body:block)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn exec<$t: Int>($flags: &mut Flags, $a: $t) -> $t $body
        }
    )*};
}

unary! {
    /// INC.
    Inc(f, T, a) => {
        let r = T::of(a.zx().wrapping_add(1));
        f.set_inc(r);
        r
    }
    /// DEC.
    Dec(f, T, a) => {
        let r = T::of(a.zx().wrapping_sub(1));
        f.set_dec(r);
        r
    }
    /// NEG.
    Neg(f, T, a) => {
        let r = T::of(0u64.wrapping_sub(a.zx()));
        f.set_sub(T::default(), a, r);
        r
    }
    /// NOT.
    Not(_f, T, a) => { T::of(!a.zx()) }
}

/// Register.
pub extern "C-unwind" fn r<U: Unary, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r1);
    U::exec(&mut cpu.flags, a).put(cpu, op.r1);
    next(cpu, op)
}

/// [`r`] whose flags nobody looks at.
pub extern "C-unwind" fn r_quiet<U: Unary, T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = T::get(cpu, op.r1);
    let mut unused = cpu.flags;
    U::exec(&mut unused, a).put(cpu, op.r1);
    next(cpu, op)
}

/// Memory.
pub extern "C-unwind" fn m<U: Unary, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if let Some(p) = fast_ea::<E>(cpu, &op).and_then(|lin| cpu.hit_write::<T>(lin)) {
        let r = U::exec(&mut cpu.flags, p.read::<T>());
        p.write(r);
        return next(cpu, op);
    }
    m_slow::<U, T, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn m_slow<U: Unary, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let done = ea::<E>(cpu, &op, T::BYTES as u64, Kind::Write)
        .and_then(|lin| cpu.modify::<T>(lin, |cpu, a| U::exec(&mut cpu.flags, a)));
    match done {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// Memory, with LOCK prefix.
pub extern "C-unwind" fn m_locked<U: Unary, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match m_locked_work::<U, T, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn m_locked_work<U: Unary, T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let before = cpu.flags;
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify_atomic::<T>(lin, |cpu, a| {
        cpu.flags = before;
        U::exec(&mut cpu.flags, a)
    })
}

/// XCHG register, register.
pub extern "C-unwind" fn xchg_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    b.put(cpu, op.r1);
    a.put(cpu, op.r2);
    next(cpu, op)
}

/// XCHG memory, register: always locked.
pub extern "C-unwind" fn xchg_mr<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match xchg_work::<T, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn xchg_work<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = T::get(cpu, op.r2);
    let mut old = T::default();
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify_atomic::<T>(lin, |_, a| {
        old = a;
        b
    })?;
    old.put(cpu, op.r2);
    Ok(())
}

/// XADD register, register.
pub extern "C-unwind" fn xadd_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (T::get(cpu, op.r1), T::get(cpu, op.r2));
    let sum = Add::exec(&mut cpu.flags, a, b);
    a.put(cpu, op.r2);
    sum.put(cpu, op.r1);
    next(cpu, op)
}

/// XADD memory, register, locked or not.
pub extern "C-unwind" fn xadd_mr<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match xadd_work::<T, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn xadd_work<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = T::get(cpu, op.r2);
    let mut old = T::default();
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify_atomic::<T>(lin, |cpu, a| {
        old = a;
        Add::exec(&mut cpu.flags, a, b)
    })?;
    old.put(cpu, op.r2);
    Ok(())
}

/// CMPXCHG register, register.
pub extern "C-unwind" fn cmpxchg_rr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b, acc) = (T::get(cpu, op.r1), T::get(cpu, op.r2), T::get(cpu, reg::RAX));
    Cmp::exec(&mut cpu.flags, acc, a);
    if acc == a {
        b.put(cpu, op.r1);
    } else {
        a.put(cpu, reg::RAX);
    }
    next(cpu, op)
}

/// CMPXCHG memory, register, locked or not. The destination is written in either case.
pub extern "C-unwind" fn cmpxchg_mr<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cmpxchg_work::<T, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn cmpxchg_work<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (b, acc) = (T::get(cpu, op.r2), T::get(cpu, reg::RAX));
    let mut old = T::default();
    let lin = ea::<E>(cpu, op, T::BYTES as u64, Kind::Write)?;
    cpu.modify_atomic::<T>(lin, |_, a| {
        old = a;
        if a == acc { b } else { a }
    })?;
    Cmp::exec(&mut cpu.flags, acc, old);
    if old != acc {
        old.put(cpu, reg::RAX);
    }
    Ok(())
}

/// CMPXCHG8B.
pub extern "C-unwind" fn cmpxchg8b<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cmpxchg8b_work::<E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn pair(cpu: &Cpu, high: u8, low: u8) -> u64 {
    cpu.regs[usize::from(high)] << 32 | cpu.regs[usize::from(low)] & 0xffff_ffff
}

#[inline(never)]
fn cmpxchg8b_work<const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (acc, new) = (pair(cpu, reg::RDX, reg::RAX), pair(cpu, reg::RCX, reg::RBX));
    let mut old = 0u64;
    let lin = ea::<E>(cpu, op, 8, Kind::Write)?;
    cpu.modify_atomic::<u64>(lin, |_, a| {
        old = a;
        if a == acc { new } else { a }
    })?;
    cpu.flags.set_zf(old == acc);
    if old != acc {
        (old as u32).put(cpu, reg::RAX);
        ((old >> 32) as u32).put(cpu, reg::RDX);
    }
    Ok(())
}

/// CMPXCHG16B.
pub extern "C-unwind" fn cmpxchg16b<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cmpxchg16b_work::<E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(never)]
fn cmpxchg16b_work<const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let wide = |cpu: &Cpu, high: u8, low: u8| {
        u128::from(cpu.regs[usize::from(high)]) << 64 | u128::from(cpu.regs[usize::from(low)])
    };
    let (acc, new) = (wide(cpu, reg::RDX, reg::RAX), wide(cpu, reg::RCX, reg::RBX));
    let lin = ea::<E>(cpu, op, 16, Kind::Write)?;
    if lin & 15 != 0 {
        return Err(cpu.gp(0));
    }
    let old = cpu.compare_exchange_128(lin, acc, new)?;
    cpu.flags.set_zf(old == acc);
    if old != acc {
        (old as u64).put(cpu, reg::RAX);
        ((old >> 64) as u64).put(cpu, reg::RDX);
    }
    Ok(())
}
