//! MMX. A register number with [`super::SCRATCH`] in it is a memory operand that was loaded there.

use super::SCRATCH;
use super::mov::store_bytes;
use crate::cpu::{Cpu, Stop, cr0, vector};
use crate::handler;
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};
use crate::ops::ea;
use crate::sse::{self, Mm, Op2, Op2Imm, Shift, SimdException, Xmm, mask_bytes};

impl Cpu {
    #[inline(always)]
    fn mm_get(&self, r: u8) -> Mm {
        if r & SCRATCH != 0 {
            Mm::from(self.xmm_get(SCRATCH).low64())
        } else {
            Mm::from(self.x87.mmx(usize::from(r)))
        }
    }

    /// Writes an MMX register; the x87 unit goes over to MMX.
    #[inline(always)]
    fn mm_set(&mut self, r: u8, v: Mm) {
        self.x87.enter_mmx();
        self.x87.set_mmx(usize::from(r & 7), v.get());
    }
}

/// Before every MMX instruction (SDM volume 3, section 13.1 and table 13-1).
fn check_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let why = match () {
        _ if cpu.cr0 & cr0::EM != 0 => vector::UD,
        _ if cpu.cr0 & cr0::TS != 0 => vector::NM,
        _ if cpu.x87.pending_exception() => vector::MF,
        _ => return Ok(()),
    };
    Err(cpu.raise(why, None))
}
handler!(next: check_work => check);

/// `r1 = O(r1, r2)`.
pub extern "C-unwind" fn op2<O: Op2<Mm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<O: Op2<Mm>>(cpu: &mut Cpu, op: &Op) {
        let v = O::op(cpu.mm_get(op.r1), cpu.mm_get(op.r2));
        cpu.mm_set(op.r1, v);
    }
    work::<O>(cpu, &op);
    next(cpu, op)
}

/// `r1 = O(r1, r2, imm)`.
pub extern "C-unwind" fn op2_imm<O: Op2Imm<Mm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    #[inline(never)]
    fn work<O: Op2Imm<Mm>>(cpu: &mut Cpu, op: &Op) {
        let v = O::op(cpu.mm_get(op.r1), cpu.mm_get(op.r2), op.imm as u8);
        cpu.mm_set(op.r1, v);
    }
    work::<O>(cpu, &op);
    next(cpu, op)
}

/// `r1` shifted by `r2`.
pub extern "C-unwind" fn shift_r<S: Shift<Mm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = S::shift(cpu.mm_get(op.r1), cpu.mm_get(op.r2).get());
    cpu.mm_set(op.r1, v);
    next(cpu, op)
}

/// `r1` shifted by the immediate.
pub extern "C-unwind" fn shift_i<S: Shift<Mm>>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = S::shift(cpu.mm_get(op.r1), op.imm & 0xff);
    cpu.mm_set(op.r1, v);
    next(cpu, op)
}

/// MOVQ.
pub extern "C-unwind" fn mov(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.mm_get(op.r2);
    cpu.mm_set(op.r1, v);
    next(cpu, op)
}

/// MOVD, MOVQ to memory, MOVNTQ.
pub extern "C-unwind" fn store<T: Int + Plain, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = T::of(cpu.mm_get(op.r2).get());
    match ea::<E>(cpu, &op, T::BYTES as u64, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => cpu.x87.enter_mmx(),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// MOVD, MOVQ from a general register.
pub extern "C-unwind" fn from_gpr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = Mm::from(T::get(cpu, op.r2).zx());
    cpu.mm_set(op.r1, v);
    next(cpu, op)
}

/// MOVD, MOVQ to a general register.
pub extern "C-unwind" fn to_gpr<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.enter_mmx();
    T::of(cpu.mm_get(op.r2).get()).put(cpu, op.r1);
    next(cpu, op)
}

/// MOVQ2DQ.
pub extern "C-unwind" fn movq2dq(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.enter_mmx();
    let v = Xmm::from([cpu.mm_get(op.r2).get(), 0]);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// MOVDQ2Q.
pub extern "C-unwind" fn movdq2q(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = Mm::from(cpu.xmm_get(op.r2).low64());
    cpu.mm_set(op.r1, v);
    next(cpu, op)
}

/// PMOVMSKB.
pub extern "C-unwind" fn pmovmskb(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.enter_mmx();
    sse::pmovmskb_mm(cpu.mm_get(op.r2)).put(cpu, op.r1);
    next(cpu, op)
}

/// PEXTRW.
pub extern "C-unwind" fn pextrw(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.enter_mmx();
    u32::from(sse::pextrw_mm(cpu.mm_get(op.r2), op.imm as u8)).put(cpu, op.r1);
    next(cpu, op)
}

/// PINSRW from a general register.
pub extern "C-unwind" fn pinsrw(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = sse::pinsrw_mm(cpu.mm_get(op.r1), u16::get(cpu, op.r2), op.imm as u8);
    cpu.mm_set(op.r1, v);
    next(cpu, op)
}

/// EMMS.
pub extern "C-unwind" fn emms(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.emms();
    next(cpu, op)
}

/// MASKMOVQ.
fn maskmovq_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (data, mask) = (cpu.mm_get(op.r1), cpu.mm_get(op.r2));
    store_bytes(cpu, op, data.0, mask_bytes(mask.0))?;
    cpu.x87.enter_mmx();
    Ok(())
}
handler!(next: maskmovq_work => maskmovq);

fn settle<T>(cpu: &mut Cpu, result: Result<T, SimdException>) -> Result<T, Stop> {
    result.map_err(|e| cpu.simd_exception(e))
}

fn cvtpi2ps_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.x87.enter_mmx();
    let result = sse::cvtpi2ps(cpu.xmm_get(op.r1), cpu.mm_get(op.r2), &mut cpu.mxcsr);
    let v = settle(cpu, result)?;
    cpu.xmm_set(op.r1, v);
    Ok(())
}
handler!(next: cvtpi2ps_work => cvtpi2ps);

/// CVTPI2PD. From memory it leaves the x87 unit alone.
fn cvtpi2pd_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if op.r2 & SCRATCH == 0 {
        cpu.x87.enter_mmx();
    }
    let v = sse::cvtpi2pd(cpu.mm_get(op.r2));
    cpu.xmm_set(op.r1, v);
    Ok(())
}
handler!(next: cvtpi2pd_work => cvtpi2pd);

/// CVTPS2PI, CVTTPS2PI.
pub extern "C-unwind" fn cvtps2pi<const TRUNCATE: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        cpu.x87.enter_mmx();
        let result = sse::cvtps2pi(cpu.xmm_get(op.r2), TRUNCATE, &mut cpu.mxcsr);
        let v = settle(cpu, result)?;
        cpu.mm_set(op.r1, v);
        Ok(())
    }
    match work::<TRUNCATE>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// CVTPD2PI, CVTTPD2PI.
pub extern "C-unwind" fn cvtpd2pi<const TRUNCATE: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<const TRUNCATE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        cpu.x87.enter_mmx();
        let result = sse::cvtpd2pi(cpu.xmm_get(op.r2), TRUNCATE, &mut cpu.mxcsr);
        let v = settle(cpu, result)?;
        cpu.mm_set(op.r1, v);
        Ok(())
    }
    match work::<TRUNCATE>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}
