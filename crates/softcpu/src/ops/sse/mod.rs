//! MMX and SSE: handlers around the operations of [`crate::sse`].
//!
//! A memory operand is loaded by an operation of its own ([`mov::load`]) into the register slot
//! [`SCRATCH`], or one of a general register's width into the slot [`GPR_SCRATCH`], so that an instruction
//! needs a single handler for both of its forms. The most frequent instructions have a handler for the
//! memory form too ([`op2_m`], [`fp2_m`]).
//!
//! Whether SSE can be used (CR0.EM, CR0.TS, CR4.OSFXSR) is looked at once a block, by [`check_sse`] before
//! the first instruction that wants to know: what changes those bits ends a block. MMX instructions look
//! each time ([`mmx::check`]), because a pending x87 exception stops them too.

pub mod gpr;
pub mod mmx;
pub mod mov;

use super::ea;
use crate::cpu::{Cpu, Stop, cr0, cr4, vector};
use crate::mmu::Kind;
use crate::op::{Flow, Op, OpRef, next, stop};
use crate::sse::{FpOp2, FpOp2Imm, Op2, Op2Imm, Op3, Shift, SimdException, Xmm};

/// Slot of [`Cpu::xmm`] that memory operands are loaded into.
pub const SCRATCH: u8 = 16;
/// Slot of [`Cpu::regs`] that memory operands of a general register's width go through.
pub const GPR_SCRATCH: u8 = 31;

impl Cpu {
    /// SSE register operand `r`.
    #[inline(always)]
    pub(crate) fn xmm_get(&self, r: u8) -> Xmm {
        self.xmm[usize::from(r & 31)]
    }

    /// Writes SSE register operand `r`.
    #[inline(always)]
    pub(crate) fn xmm_set(&mut self, r: u8, v: Xmm) {
        self.xmm[usize::from(r & 31)] = v;
    }

    /// Whether an SSE instruction can execute (SDM volume 3, table 15-1).
    #[inline(always)]
    fn sse_usable(&mut self) -> Result<(), Stop> {
        if self.cr0 & (cr0::EM | cr0::TS) == 0 && self.cr4 & cr4::OSFXSR != 0 {
            return Ok(());
        }
        let off = self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0;
        Err(self.raise(if off { vector::UD } else { vector::NM }, None))
    }

    /// An unmasked floating-point exception: #XM, or #UD where the system does not know of that.
    #[cold]
    #[inline(never)]
    fn simd_exception(&mut self, _: SimdException) -> Stop {
        let known = self.cr4 & cr4::OSXMMEXCPT != 0;
        self.raise(if known { vector::XM } else { vector::UD }, None)
    }

    /// 128-bit operands of legacy SSE instructions are aligned, but for those named unaligned.
    #[inline(always)]
    fn aligned16(&mut self, lin: u64) -> Result<u64, Stop> {
        if lin & 15 == 0 { Ok(lin) } else { Err(self.gp(0)) }
    }
}

/// Before the first SSE instruction of a block.
pub extern "C-unwind" fn check_sse(cpu: &mut Cpu, op: OpRef) -> Flow {
    match cpu.sse_usable() {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// A memory operand: its width, and how it fills a register.
pub trait Operand {
    /// Width in bytes.
    const BYTES: u64;
    /// Loads the operand; the rest of the register is zero.
    ///
    /// # Errors
    /// What the load raises.
    fn load(cpu: &mut Cpu, lin: u64) -> Result<Xmm, Stop>;
}

/// 16 bytes, aligned.
#[derive(Clone, Copy, Debug)]
pub struct M128;
/// 16 bytes anywhere.
#[derive(Clone, Copy, Debug)]
pub struct U128;
/// 8 bytes.
#[derive(Clone, Copy, Debug)]
pub struct M64;
/// 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct M32;
/// 2 bytes.
#[derive(Clone, Copy, Debug)]
pub struct M16;

impl Operand for M128 {
    const BYTES: u64 = 16;
    #[inline(always)]
    fn load(cpu: &mut Cpu, lin: u64) -> Result<Xmm, Stop> {
        let lin = cpu.aligned16(lin)?;
        cpu.load(lin)
    }
}

impl Operand for U128 {
    const BYTES: u64 = 16;
    #[inline(always)]
    fn load(cpu: &mut Cpu, lin: u64) -> Result<Xmm, Stop> {
        cpu.load(lin)
    }
}

impl Operand for M64 {
    const BYTES: u64 = 8;
    #[inline(always)]
    fn load(cpu: &mut Cpu, lin: u64) -> Result<Xmm, Stop> {
        Ok(Xmm::from([cpu.load::<u64>(lin)?, 0]))
    }
}

impl Operand for M32 {
    const BYTES: u64 = 4;
    #[inline(always)]
    fn load(cpu: &mut Cpu, lin: u64) -> Result<Xmm, Stop> {
        Ok(Xmm::from([cpu.load::<u32>(lin)?, 0, 0, 0]))
    }
}

impl Operand for M16 {
    const BYTES: u64 = 2;
    #[inline(always)]
    fn load(cpu: &mut Cpu, lin: u64) -> Result<Xmm, Stop> {
        Ok(Xmm::from([u32::from(cpu.load::<u16>(lin)?), 0, 0, 0]))
    }
}

/// `r1 = O(r1, r2)`.
pub extern "C-unwind" fn op2<O: Op2<Xmm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = O::op(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2));
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// [`op2`] for what takes many instructions: they keep out of the handler, which then stays a jump.
pub extern "C-unwind" fn op2_far<O: Op2<Xmm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<O: Op2<Xmm>>(cpu: &mut Cpu, op: &Op) {
        let v = O::op(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2));
        cpu.xmm_set(op.r1, v);
    }
    work::<O>(cpu, &op);
    next(cpu, op)
}

/// `r1 = O(r1, memory)`, aligned.
pub extern "C-unwind" fn op2_m<O: Op2<Xmm>, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, 16, Kind::Read).and_then(|lin| M128::load(cpu, lin)) {
        Ok(src) => {
            let v = O::op(cpu.xmm_get(op.r1), src);
            cpu.xmm_set(op.r1, v);
        }
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// `r1 = O(r1, r2, imm)`.
pub extern "C-unwind" fn op2_imm<O: Op2Imm<Xmm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<O: Op2Imm<Xmm>>(cpu: &mut Cpu, op: &Op) {
        let v = O::op(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2), op.imm as u8);
        cpu.xmm_set(op.r1, v);
    }
    work::<O>(cpu, &op);
    next(cpu, op)
}

/// `r1 = O(r1, r2, XMM0)`.
pub extern "C-unwind" fn op3<O: Op3>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<O: Op3>(cpu: &mut Cpu, op: &Op) {
        let v = O::op(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2), cpu.xmm_get(0));
        cpu.xmm_set(op.r1, v);
    }
    work::<O>(cpu, &op);
    next(cpu, op)
}

/// `r1` shifted by `r2`.
pub extern "C-unwind" fn shift_r<S: Shift<Xmm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = S::shift(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2).low64());
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// `r1` shifted by the immediate.
pub extern "C-unwind" fn shift_i<S: Shift<Xmm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = S::shift(cpu.xmm_get(op.r1), op.imm & 0xff);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

#[inline(never)]
fn fp2_work<O: FpOp2>(cpu: &mut Cpu, op: &Op, src: u8) -> Result<(), Stop> {
    match O::op(cpu.xmm_get(op.r1), cpu.xmm_get(src), &mut cpu.mxcsr) {
        Ok(v) => {
            cpu.xmm_set(op.r1, v);
            Ok(())
        }
        Err(e) => Err(cpu.simd_exception(e)),
    }
}

/// `r1 = O(r1, r2)`, floating point.
pub extern "C-unwind" fn fp2<O: FpOp2>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match fp2_work::<O>(cpu, &op, op.r2) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// `r1 = O(r1, memory)`, floating point.
pub extern "C-unwind" fn fp2_m<O: FpOp2, W: Operand, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let done = ea::<E>(cpu, &op, W::BYTES, Kind::Read).and_then(|lin| W::load(cpu, lin)).and_then(|src| {
        cpu.xmm_set(SCRATCH, src);
        fp2_work::<O>(cpu, &op, SCRATCH)
    });
    match done {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// `r1 = O(r1, r2, imm)`, floating point.
pub extern "C-unwind" fn fp2_imm<O: FpOp2Imm>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<O: FpOp2Imm>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        match O::op(cpu.xmm_get(op.r1), cpu.xmm_get(op.r2), op.imm as u8, &mut cpu.mxcsr) {
            Ok(v) => {
                cpu.xmm_set(op.r1, v);
                Ok(())
            }
            Err(e) => Err(cpu.simd_exception(e)),
        }
    }
    match work::<O>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}
