//! Moves between SSE registers and memory, MXCSR, and masked stores.

use super::{M128, Operand};
use crate::cpu::{Cpu, Stop};
use crate::handler;
use crate::mmu::Kind;
use crate::op::{Flow, Op, OpRef, next, stop};
use crate::ops::{ea, offset};
use crate::sse::{Mxcsr, Xmm, mask_bytes};

/// Register from memory, the rest of it zero.
pub extern "C-unwind" fn load<W: Operand, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match ea::<E>(cpu, &op, W::BYTES, Kind::Read).and_then(|lin| W::load(cpu, lin)) {
        Ok(v) => cpu.xmm_set(op.r1, v),
        Err(s) => return stop(cpu, op, s),
    }
    next(cpu, op)
}

/// 16 bytes of memory from a register, aligned if `A`.
pub extern "C-unwind" fn store128<const A: bool, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.xmm_get(op.r2);
    let done = ea::<E>(cpu, &op, M128::BYTES, Kind::Write)
        .and_then(|lin| if A { cpu.aligned16(lin) } else { Ok(lin) })
        .and_then(|lin| cpu.store(lin, v));
    match done {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// 8 bytes of memory from a register: its lower half, or its upper if `HIGH`.
pub extern "C-unwind" fn store64<const HIGH: bool, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.xmm_get(op.r2).u64s()[usize::from(HIGH)];
    match ea::<E>(cpu, &op, 8, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// 4 bytes of memory from a register.
pub extern "C-unwind" fn store32<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.xmm_get(op.r2).low32();
    match ea::<E>(cpu, &op, 4, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// A whole register.
pub extern "C-unwind" fn mov_rr(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.xmm_get(op.r2);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// MOVSS between registers.
pub extern "C-unwind" fn movss_rr(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.xmm_get(op.r1).with_low32(cpu.xmm_get(op.r2).low32());
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// MOVSD between registers; MOVLPS and MOVLPD after their load.
pub extern "C-unwind" fn movsd_rr(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.xmm_get(op.r1).with_low64(cpu.xmm_get(op.r2).low64());
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// MOVQ between registers: the upper half becomes zero.
pub extern "C-unwind" fn movq_rr(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = Xmm::from([cpu.xmm_get(op.r2).low64(), 0]);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// MOVHLPS.
pub extern "C-unwind" fn movhlps(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = Xmm::from([cpu.xmm_get(op.r2).u64s()[1], cpu.xmm_get(op.r1).u64s()[1]]);
    cpu.xmm_set(op.r1, v);
    next(cpu, op)
}

/// LDMXCSR from the general register slot `r2`.
fn ldmxcsr_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.regs[usize::from(op.r2 & 31)] as u32;
    if v & !Mxcsr::MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.mxcsr = Mxcsr::new(v);
    Ok(())
}
handler!(next: ldmxcsr_work => ldmxcsr);

/// STMXCSR into the general register slot `r1`.
pub extern "C-unwind" fn stmxcsr(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.regs[usize::from(op.r1 & 31)] = u64::from(cpu.mxcsr.value());
    next(cpu, op)
}

/// MASKMOVDQU.
fn maskmovdqu_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (data, mask) = (cpu.xmm_get(op.r1), cpu.xmm_get(op.r2));
    store_bytes(cpu, op, data.0, mask_bytes(mask.0))
}
handler!(next: maskmovdqu_work => maskmovdqu);

/// Stores the chosen bytes at the operation's address, or none if one of them cannot be stored.
pub(super) fn store_bytes<const N: usize>(
    cpu: &mut Cpu,
    op: &Op,
    data: [u8; N],
    chosen: [bool; N],
) -> Result<(), Stop> {
    let (Some(first), Some(last)) = (chosen.iter().position(|c| *c), chosen.iter().rposition(|c| *c)) else {
        return Ok(());
    };
    let at = offset(cpu, op);
    let lin = cpu.linear(usize::from(op.seg), at, N as u64, Kind::Write)?;
    cpu.probe_write(lin.wrapping_add(first as u64), (last - first + 1) as u64)?;
    for (i, byte) in data.into_iter().enumerate().filter(|(i, _)| chosen[*i]) {
        cpu.store(lin.wrapping_add(i as u64), byte)?;
    }
    Ok(())
}
