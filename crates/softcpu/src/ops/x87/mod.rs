//! x87 instructions: handlers around [`crate::fpu::X87`] (SDM volume 1, chapter 8).
//!
//! CR0.EM and CR0.TS are looked at once a block, by [`check`] before the first x87 instruction: what
//! changes those bits ends a block. Waiting instructions then ask for pending exceptions themselves. With
//! CR0.NE clear a pending exception raises #MF too: FERR# and the interrupt that a PC makes of it are not
//! modelled.
//!
//! Of the last instruction, its address, opcode and data pointer are kept. The selectors of both pointers
//! are not, and read as zero, as on processors with CPUID.(7,0):EBX.\[13\] set.

mod control;

pub use control::*;

use std::marker::PhantomData;

use super::{ea, fast_ea, offset};
use crate::cpu::{Cpu, RBLOCK, Stop, cr0, vector};
use crate::fpu::{Arith, Constant, X87};
use crate::handler;
use crate::int::Int;
use crate::lower::form;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

/// The bits of `Op::aux` with the instruction's opcode, as the last-opcode register has it.
pub const OPCODE: u16 = 0x7ff;

fn check_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.cr0 & (cr0::EM | cr0::TS) == 0 { Ok(()) } else { Err(cpu.raise(vector::NM, None)) }
}
handler!(next: check_work => check);

/// A pending exception stops a waiting instruction.
#[cold]
#[inline(never)]
extern "C-unwind" fn pending(cpu: &mut Cpu, op: OpRef) -> Flow {
    let s = cpu.raise(vector::MF, None);
    stop(cpu, op, s)
}

/// As [`pending`], where `?` is at hand.
fn wait(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.x87.pending_exception() { Err(cpu.raise(vector::MF, None)) } else { Ok(()) }
}

/// Keeps instruction pointer and opcode.
#[inline(always)]
fn note(cpu: &mut Cpu, op: &Op) {
    cpu.x87.ip = cpu.regs[usize::from(RBLOCK)].wrapping_add(u64::from(op.off));
    cpu.x87.opcode = op.aux & OPCODE;
}

/// [`note`], and the data pointer: an offset in its segment.
#[inline(always)]
fn note_mem<const E: u8>(cpu: &mut Cpu, op: &Op, lin: u64) {
    note(cpu, op);
    cpu.x87.dp = if E == form::FULL { offset(cpu, op) } else { lin };
}

/// An instruction without memory operand; `r1` is the stack register it names.
pub trait RegOp {
    /// Executes it.
    fn run(x87: &mut X87, i: usize);
}

/// Handler of [`RegOp`]s.
pub extern "C-unwind" fn reg<O: RegOp>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.x87.pending_exception() {
        return pending(cpu, op);
    }
    note(cpu, &op);
    O::run(&mut cpu.x87, usize::from(op.r1 & 7));
    next(cpu, op)
}

/// Defines [`RegOp`]s. Those that keep a local variable's address are a function that their handler calls.
macro_rules! reg_ops {
    ($inline:ident: $($name:ident($x:ident, $i:pat) => $body:expr;)*) => {$(
        #[doc = concat!("The instruction of this name: `", stringify!($body), "`.")]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl RegOp for $name {
            #[inline($inline)]
            fn run($x: &mut X87, $i: usize) {
                $body
            }
        }
    )*};
}

reg_ops! {
    always:
    Fnop(_x, _) => {};
    FldSt(x, i) => x.fld_st(i);
    FstSt(x, i) => x.fst_st(i, false);
    FstpSt(x, i) => x.fst_st(i, true);
    Fstpnce(x, i) => fstpnce(x, i);
    Fxch(x, i) => x.fxch(i);
    Ffree(x, i) => x.ffree(i, false);
    Ffreep(x, i) => x.ffree(i, true);
    Fincstp(x, _) => x.fincstp();
    Fdecstp(x, _) => x.fdecstp();
}

reg_ops! {
    never:
    Fchs(x, _) => x.fchs();
    Fabs(x, _) => x.fabs();
    Fsqrt(x, _) => x.fsqrt();
    Frndint(x, _) => x.frndint();
    Fscale(x, _) => x.fscale();
    Fprem(x, _) => x.fprem(false);
    Fprem1(x, _) => x.fprem(true);
    Fxtract(x, _) => x.fxtract();
    Fxam(x, _) => x.fxam();
    Ftst(x, _) => x.ftst();
    F2xm1(x, _) => x.f2xm1();
    Fyl2x(x, _) => x.fyl2x();
    Fyl2xp1(x, _) => x.fyl2xp1();
    Fpatan(x, _) => x.fpatan();
    Fptan(x, _) => x.fptan();
    Fsin(x, _) => x.fsin();
    Fcos(x, _) => x.fcos();
    Fsincos(x, _) => x.fsincos();
    Fld1(x, _) => x.fld_constant(Constant::One);
    Fldl2t(x, _) => x.fld_constant(Constant::Log2Of10);
    Fldl2e(x, _) => x.fld_constant(Constant::Log2OfE);
    Fldpi(x, _) => x.fld_constant(Constant::Pi);
    Fldlg2(x, _) => x.fld_constant(Constant::Log10Of2);
    Fldln2(x, _) => x.fld_constant(Constant::LnOf2);
    Fldz(x, _) => x.fld_constant(Constant::Zero);
    Fcom(x, i) => x.fcom_st(i, false, 0);
    Fcomp(x, i) => x.fcom_st(i, false, 1);
    Fcompp(x, _) => x.fcom_st(1, false, 2);
    Fucom(x, i) => x.fcom_st(i, true, 0);
    Fucomp(x, i) => x.fcom_st(i, true, 1);
    Fucompp(x, _) => x.fcom_st(1, true, 2);
}

/// FSTPNCE, undocumented: FSTP ST(i) that stores nothing, and raises nothing, if ST(0) is empty.
fn fstpnce(x87: &mut X87, i: usize) {
    if x87.is_empty(0) {
        x87.fincstp();
    } else {
        x87.fst_st(i, true);
    }
}

/// A two-operand arithmetic operation.
pub trait Operation {
    /// Which.
    const OP: Arith;
}

macro_rules! operations {
    ($($name:ident)*) => {$(
        #[doc = concat!("[`Arith::", stringify!($name), "`].")]
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl Operation for $name {
            const OP: Arith = Arith::$name;
        }
    )*};
}
operations!(Add Mul Sub SubR Div DivR);

/// ST(0) = ST(0) `A` ST(i).
pub struct ToSt0<A>(PhantomData<A>);
/// ST(i) = ST(i) `A` ST(0), and a pop.
pub struct ToSti<A, const POP: bool>(PhantomData<A>);

impl<A: Operation> RegOp for ToSt0<A> {
    #[inline(never)]
    fn run(x87: &mut X87, i: usize) {
        x87.arith_st(A::OP, 0, i, false);
    }
}

impl<A: Operation, const POP: bool> RegOp for ToSti<A, POP> {
    #[inline(never)]
    fn run(x87: &mut X87, i: usize) {
        x87.arith_st(A::OP, i, 0, POP);
    }
}

/// FCMOVcc of condition `CC`.
pub extern "C-unwind" fn fcmov<const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.x87.pending_exception() {
        return pending(cpu, op);
    }
    note(cpu, &op);
    let condition = cpu.flags.cond(CC);
    cpu.x87.fcmov(usize::from(op.r1 & 7), condition);
    next(cpu, op)
}

/// FCOMI and FUCOMI, popping or not.
pub extern "C-unwind" fn fcomi<const UNORDERED: bool, const POP: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.x87.pending_exception() {
        return pending(cpu, op);
    }
    note(cpu, &op);
    fcomi_work::<UNORDERED, POP>(cpu, &op);
    next(cpu, op)
}

#[inline(never)]
fn fcomi_work<const UNORDERED: bool, const POP: bool>(cpu: &mut Cpu, op: &Op) {
    if let Some(outcome) = cpu.x87.fcomi(usize::from(op.r1 & 7), UNORDERED, POP) {
        cpu.flags.set(u64::from(outcome.eflags()));
    }
}

/// An instruction that reads memory.
pub trait MemOp {
    /// What it reads.
    type T: Plain;
    /// Executes it.
    fn run(x87: &mut X87, v: Self::T);
}

/// Handler of [`MemOp`]s.
pub extern "C-unwind" fn mem<O: MemOp, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !cpu.x87.pending_exception()
        && let Some(lin) = fast_ea::<E>(cpu, &op)
        && let Some(p) = cpu.hit_read::<O::T>(lin)
    {
        let v = p.read();
        note_mem::<E>(cpu, &op, lin);
        O::run(&mut cpu.x87, v);
        return next(cpu, op);
    }
    mem_slow::<O, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn mem_slow<O: MemOp, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<O: MemOp, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        wait(cpu)?;
        let lin = ea::<E>(cpu, op, size_of::<O::T>() as u64, Kind::Read)?;
        let v = cpu.load(lin)?;
        note_mem::<E>(cpu, op, lin);
        O::run(&mut cpu.x87, v);
        Ok(())
    }
    match work::<O, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// A type of memory operand.
pub trait Source {
    /// Its bits.
    type T: Plain;
    /// FLD or FILD.
    fn load(x87: &mut X87, v: Self::T);
    /// FADD to FIDIVR.
    fn arith(x87: &mut X87, op: Arith, v: Self::T);
    /// FCOM or FICOM.
    fn compare(x87: &mut X87, v: Self::T, pop: bool);
}

/// binary32.
pub struct F32;
/// binary64.
pub struct F64;
/// A 16-bit integer.
pub struct I16;
/// A 32-bit integer.
pub struct I32;

macro_rules! sources {
    ($($name:ident: $t:ty as $as:ty, $load:ident, $arith:ident, $compare:ident;)*) => {$(
        impl Source for $name {
            type T = $t;
            #[inline(always)]
            fn load(x87: &mut X87, v: $t) {
                x87.$load((v as $as).into());
            }
            #[inline(always)]
            fn arith(x87: &mut X87, op: Arith, v: $t) {
                x87.$arith(op, (v as $as).into());
            }
            #[inline(always)]
            fn compare(x87: &mut X87, v: $t, pop: bool) {
                x87.$compare((v as $as).into(), pop);
            }
        }
    )*};
}
sources! {
    F32: u32 as u32, fld_f32, arith_f32, fcom_f32;
    F64: u64 as u64, fld_f64, arith_f64, fcom_f64;
    I16: u16 as i16, fild, arith_int, fcom_int;
    I32: u32 as i32, fild, arith_int, fcom_int;
}

/// FLD and FILD.
pub struct Load<S>(PhantomData<S>);
/// FILD of 64 bits.
pub struct Fild64;
/// ST(0) = ST(0) `A` memory.
pub struct With<A, S>(PhantomData<(A, S)>);
/// FCOM and FICOM, popping or not.
pub struct Compare<S, const POP: bool>(PhantomData<S>);

impl<S: Source> MemOp for Load<S> {
    type T = S::T;
    #[inline(always)]
    fn run(x87: &mut X87, v: S::T) {
        S::load(x87, v);
    }
}

impl MemOp for Fild64 {
    type T = u64;
    #[inline(always)]
    fn run(x87: &mut X87, v: u64) {
        x87.fild(v as i64);
    }
}

impl<A: Operation, S: Source> MemOp for With<A, S> {
    type T = S::T;
    #[inline(never)]
    fn run(x87: &mut X87, v: S::T) {
        S::arith(x87, A::OP, v);
    }
}

impl<S: Source, const POP: bool> MemOp for Compare<S, POP> {
    type T = S::T;
    #[inline(never)]
    fn run(x87: &mut X87, v: S::T) {
        S::compare(x87, v, POP);
    }
}

/// An instruction that writes memory; `None` if an unmasked exception keeps it from that.
pub trait StoreOp {
    /// What it writes.
    type T: Plain;
    /// Whether it pops.
    const POP: bool;
    /// What there is to write.
    fn value(x87: &mut X87) -> Option<Self::T>;
}

/// Handler of [`StoreOp`]s.
pub extern "C-unwind" fn store<O: StoreOp, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !cpu.x87.pending_exception()
        && let Some(lin) = fast_ea::<E>(cpu, &op)
        && let Some(p) = cpu.hit_write::<O::T>(lin)
    {
        note_mem::<E>(cpu, &op, lin);
        if let Some(v) = O::value(&mut cpu.x87) {
            p.write(v);
            if O::POP {
                cpu.x87.pop();
            }
        }
        return next(cpu, op);
    }
    store_slow::<O, E>(cpu, op)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn store_slow<O: StoreOp, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<O: StoreOp, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        wait(cpu)?;
        let lin = ea::<E>(cpu, op, size_of::<O::T>() as u64, Kind::Write)?;
        storing(cpu, |cpu| {
            note_mem::<E>(cpu, op, lin);
            let Some(v) = O::value(&mut cpu.x87) else { return Ok(()) };
            cpu.store(lin, v)?;
            if O::POP {
                cpu.x87.pop();
            }
            Ok(())
        })
    }
    match work::<O, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// Leaves the x87 unit as it was if a store faults.
fn storing(cpu: &mut Cpu, f: impl FnOnce(&mut Cpu) -> Result<(), Stop>) -> Result<(), Stop> {
    let before = cpu.x87.clone();
    f(cpu).inspect_err(|_| cpu.x87 = before)
}

/// FST to binary32.
pub struct Fst32<const POP: bool>;
/// FST to binary64.
pub struct Fst64<const POP: bool>;
/// FIST of `T`, FISTTP if `TRUNCATE`.
pub struct Fist<T, const TRUNCATE: bool, const POP: bool>(PhantomData<T>);

impl<const POP: bool> StoreOp for Fst32<POP> {
    type T = u32;
    const POP: bool = POP;
    #[inline(never)]
    fn value(x87: &mut X87) -> Option<u32> {
        x87.fst_f32()
    }
}

impl<const POP: bool> StoreOp for Fst64<POP> {
    type T = u64;
    const POP: bool = POP;
    #[inline(never)]
    fn value(x87: &mut X87) -> Option<u64> {
        x87.fst_f64()
    }
}

impl<T: Int + Plain, const TRUNCATE: bool, const POP: bool> StoreOp for Fist<T, TRUNCATE, POP> {
    type T = T;
    const POP: bool = POP;
    #[inline(never)]
    fn value(x87: &mut X87) -> Option<T> {
        x87.fist(T::BITS, TRUNCATE).map(|v| T::of(v as u64))
    }
}

/// FLD of 80 bits.
pub extern "C-unwind" fn fld80<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !cpu.x87.pending_exception()
        && let Some(lin) = fast_ea::<E>(cpu, &op)
        && let Some(low) = cpu.hit_read::<u64>(lin)
        && let Some(high) = cpu.hit_read::<u16>(lin.wrapping_add(8))
    {
        note_mem::<E>(cpu, &op, lin);
        let bytes = join80(low.read(), high.read());
        cpu.x87.fld_f80(bytes);
        return next(cpu, op);
    }
    load80_slow::<false, E>(cpu, op)
}

#[inline(always)]
fn join80(low: u64, high: u16) -> [u8; 10] {
    let ([a, b, c, d, e, f, g, h], [i, j]) = (low.to_le_bytes(), high.to_le_bytes());
    [a, b, c, d, e, f, g, h, i, j]
}

#[inline(always)]
fn split80(bytes: [u8; 10]) -> (u64, u16) {
    let [a, b, c, d, e, f, g, h, i, j] = bytes;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u16::from_le_bytes([i, j]))
}

/// FBLD.
pub extern "C-unwind" fn fbld<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    load80_slow::<true, E>(cpu, op)
}

#[inline(never)]
extern "C-unwind" fn load80_slow<const BCD: bool, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<const BCD: bool, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        wait(cpu)?;
        let lin = ea::<E>(cpu, op, 10, Kind::Read)?;
        let bytes = join80(cpu.load(lin)?, cpu.load(lin.wrapping_add(8))?);
        note_mem::<E>(cpu, op, lin);
        if BCD {
            cpu.x87.fbld(bytes)
        } else {
            cpu.x87.fld_f80(bytes)
        }
        Ok(())
    }
    match work::<BCD, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// FSTP to 80 bits.
pub extern "C-unwind" fn fstp80<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !cpu.x87.pending_exception()
        && !cpu.x87.is_empty(0)
        && let Some(lin) = fast_ea::<E>(cpu, &op)
        && let Some(low) = cpu.hit_write::<u64>(lin)
        && let Some(high) = cpu.hit_write::<u16>(lin.wrapping_add(8))
    {
        note_mem::<E>(cpu, &op, lin);
        if let Some(bytes) = cpu.x87.fst_f80() {
            let (mantissa, sign_exp) = split80(bytes);
            low.write(mantissa);
            high.write(sign_exp);
            cpu.x87.pop();
        }
        return next(cpu, op);
    }
    store80_slow::<false, E>(cpu, op)
}

/// FBSTP.
pub extern "C-unwind" fn fbstp<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    store80_slow::<true, E>(cpu, op)
}

#[inline(never)]
extern "C-unwind" fn store80_slow<const BCD: bool, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<const BCD: bool, const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        wait(cpu)?;
        let lin = ea::<E>(cpu, op, 10, Kind::Write)?;
        // Both parts, or neither.
        cpu.probe_write(lin, 10)?;
        storing(cpu, |cpu| {
            note_mem::<E>(cpu, op, lin);
            let value = if BCD { cpu.x87.fbst() } else { cpu.x87.fst_f80() };
            let Some(bytes) = value else { return Ok(()) };
            let (low, high) = split80(bytes);
            cpu.store(lin, low)?;
            cpu.store(lin.wrapping_add(8), high)?;
            cpu.x87.pop();
            Ok(())
        })
    }
    match work::<BCD, E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}
