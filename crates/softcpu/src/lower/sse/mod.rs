//! MMX and SSE.
//!
//! Most instructions are a destination register, a register or memory source and perhaps an immediate:
//! [`table`] says for each what executes it. The rest is here.

mod table;
#[cfg(all(test, target_arch = "x86_64", unix))]
mod tests;

use iced_x86::{Code, Instruction, MemorySize, Mnemonic, OpKind, Register};

use super::{Lowering, Next, by_ea, reg, segment};
use crate::op::{Handler, Op};
use crate::ops::mem;
use crate::ops::sse::gpr::{self, Double, Single};
use crate::ops::sse::{
    self, GPR_SCRATCH, M16, M32, M64, M128, SCRATCH, U128, check_sse,
    mmx::{self, check as check_mmx},
    mov,
};
use table::{From, Plan};

/// Lays down the operations of MMX and SSE instructions.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let first = l.ops.len();
    let plan = table::plan(i.code());
    let next = match &plan {
        Some(plan) => {
            planned(l, i, plan);
            Some(Next::Continue)
        }
        None => None.or_else(|| moves(l, i)).or_else(|| general(l, i)).or_else(|| mmx_only(l, i)),
    };
    // A lone operation: nothing was checked or loaded.
    l.pure = l.ops.len() == first + 1
        && i.memory_size() == MemorySize::Unknown
        && !plan.map_or_else(|| raises(i.mnemonic()), |plan| plan.raises);
    next
}

/// Floating-point instructions that are not in the table.
fn raises(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Comiss
            | Comisd
            | Ucomiss
            | Ucomisd
            | Cvtsi2ss
            | Cvtsi2sd
            | Cvtss2si
            | Cvtsd2si
            | Cvttss2si
            | Cvttsd2si
    )
}

/// The number of an SSE or MMX register.
fn number(r: Register) -> u8 {
    r.number() as u8
}

fn is_mem(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Memory
}

/// The 8-bit immediate, which is always the last operand.
fn imm(i: &Instruction) -> u64 {
    let last = i.op_count().saturating_sub(1);
    if i.op_kind(last) == OpKind::Immediate8 { i.immediate8().into() } else { 0 }
}

impl Lowering<'_> {
    /// The instruction needs SSE: checked once a block.
    fn need_sse(&mut self) {
        let checked = self.ops.iter().any(|op| std::ptr::fn_addr_eq(op.run, check_sse as Handler));
        if !checked {
            self.simple(check_sse);
        }
    }

    /// The instruction needs MMX.
    fn need_mmx(&mut self) {
        self.simple(check_mmx);
    }

    /// An operation with a memory operand: `run` chooses the handler by the form of the address.
    fn with_mem(&mut self, i: &Instruction, (r1, r2): (u8, u8), run: impl FnOnce(u8) -> Handler) {
        let mut op = self.op(check_sse);
        let ea = self.mem(i, &mut op);
        (op.r1, op.r2, op.run) = (r1, r2, run(ea));
        self.push(op);
    }

    /// Loads the memory operand into SSE register slot `r`.
    fn load(&mut self, i: &Instruction, from: From, r: u8) {
        self.with_mem(i, (r, 0), |ea| match from {
            From::M128 => by_ea!(ea, mov::load::<M128>),
            From::U128 => by_ea!(ea, mov::load::<U128>),
            From::M64 => by_ea!(ea, mov::load::<M64>),
            From::M32 => by_ea!(ea, mov::load::<M32>),
            From::M16 => by_ea!(ea, mov::load::<M16>),
        });
    }

    /// Loads the memory operand, of `bytes`, into a general register slot.
    fn load_gpr(&mut self, i: &Instruction, bytes: usize) {
        self.with_mem(i, (GPR_SCRATCH, 0), |ea| super::by_width_ea!(bytes, ea, mem::load));
    }

    /// Stores a general register slot, `bytes` wide, into the memory operand.
    fn store_gpr(&mut self, i: &Instruction, bytes: usize, r: u8) {
        self.with_mem(i, (0, r), |ea| super::by_width_ea!(bytes, ea, mem::store));
    }

    /// An operation on registers.
    fn regs(&mut self, run: Handler, r1: u8, r2: u8, imm: u64) -> Option<Next> {
        let op = Op { r1, r2, imm, ..self.op(run) };
        self.push(op);
        Some(Next::Continue)
    }

    /// Operand `n`, an SSE register or memory: its register slot, once it is loaded.
    fn xmm_source(&mut self, i: &Instruction, n: u32, from: From) -> u8 {
        if is_mem(i, n) {
            self.load(i, from, SCRATCH);
            return SCRATCH;
        }
        number(i.op_register(n))
    }

    /// Operand `n`, a general register or memory of `bytes`.
    fn gpr_source(&mut self, i: &Instruction, n: u32, bytes: usize) -> u8 {
        if is_mem(i, n) {
            self.load_gpr(i, bytes);
            return GPR_SCRATCH;
        }
        reg(i.op_register(n))
    }
}

/// Instructions of the table.
fn planned(l: &mut Lowering<'_>, i: &Instruction, plan: &Plan) {
    if plan.mmx {
        l.need_mmx();
    } else {
        l.need_sse();
    }
    let r1 = number(i.op0_register());
    let mut imm = imm(i);
    if is_mem(i, 1) {
        if let Some(direct) = plan.direct {
            return l.with_mem(i, (r1, 0), |ea| direct[usize::from(ea) % 3]);
        }
        if i.code() == Code::Insertps_xmm_xmmm32_imm8 {
            // From memory, the field that chooses the source's lane does not count.
            imm &= 0x3f;
        }
    }
    // Shifts by immediate have no second register.
    let r2 = if i.op_kind(1) == OpKind::Immediate8 { r1 } else { l.xmm_source(i, 1, plan.from) };
    l.regs(plan.run, r1, r2, imm);
}

/// Moves among SSE registers and memory.
fn moves(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    let code = i.code();
    // Destination in memory.
    let store: Option<fn(u8) -> Handler> = match code {
        Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movntps_m128_xmm
        | Movntpd_m128_xmm | Movntdq_m128_xmm => Some(|ea| match ea {
            0 => mov::store128::<true, 0>,
            1 => mov::store128::<true, 1>,
            _ => mov::store128::<true, 2>,
        }),
        Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => Some(|ea| match ea {
            0 => mov::store128::<false, 0>,
            1 => mov::store128::<false, 1>,
            _ => mov::store128::<false, 2>,
        }),
        Movsd_xmmm64_xmm | Movq_xmmm64_xmm | Movlps_m64_xmm | Movlpd_m64_xmm => Some(|ea| match ea {
            0 => mov::store64::<false, 0>,
            1 => mov::store64::<false, 1>,
            _ => mov::store64::<false, 2>,
        }),
        Movhps_m64_xmm | Movhpd_m64_xmm => Some(|ea| match ea {
            0 => mov::store64::<true, 0>,
            1 => mov::store64::<true, 1>,
            _ => mov::store64::<true, 2>,
        }),
        Movss_xmmm32_xmm => Some(|ea| by_ea!(ea, mov::store32)),
        _ => None,
    };
    if let (Some(store), true) = (store, is_mem(i, 0)) {
        l.need_sse();
        l.with_mem(i, (0, number(i.op1_register())), store);
        return Some(Next::Continue);
    }
    // What a load reads, and what moves between registers. Loads that keep a part of the destination go
    // through the scratch slot and that move.
    let (from, move_rr, merges): (From, Handler, bool) = match code {
        Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 | Movntdqa_xmm_m128
        | Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm => (From::M128, mov::mov_rr, false),
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 | Lddqu_xmm_m128
        | Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => (From::U128, mov::mov_rr, false),
        Movss_xmm_xmmm32 | Movss_xmmm32_xmm => (From::M32, mov::movss_rr, false),
        Movsd_xmm_xmmm64 | Movsd_xmmm64_xmm => (From::M64, mov::movsd_rr, false),
        Movq_xmm_xmmm64 | Movq_xmmm64_xmm => (From::M64, mov::movq_rr, false),
        Movlps_xmm_m64 | Movlpd_xmm_m64 => (From::M64, mov::movsd_rr, true),
        Movhps_xmm_m64 | Movhpd_xmm_m64 | Movlhps_xmm_xmm => {
            (From::M64, sse::op2::<crate::sse::Punpcklqdq>, true)
        }
        Movhlps_xmm_xmm => (From::M64, mov::movhlps, true),
        _ => return None,
    };
    l.need_sse();
    let r1 = number(i.op0_register());
    if is_mem(i, 1) && !merges {
        l.load(i, from, r1);
        return Some(Next::Continue);
    }
    let r2 = l.xmm_source(i, 1, from);
    l.regs(move_rr, r1, r2, 0)
}

/// Between SSE registers and general registers, flags, MXCSR.
fn general(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    None.or_else(|| to_general(l, i))
        .or_else(|| from_general(l, i))
        .or_else(|| compares(l, i))
        .or_else(|| control(l, i))
}

/// To a general register or memory of its width.
fn to_general(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    let to_int = match i.code() {
        Cvtss2si_r32_xmmm32 => Some((From::M32, gpr::to_int::<Single, u32, false> as Handler)),
        Cvtss2si_r64_xmmm32 => Some((From::M32, gpr::to_int::<Single, u64, false> as Handler)),
        Cvttss2si_r32_xmmm32 => Some((From::M32, gpr::to_int::<Single, u32, true> as Handler)),
        Cvttss2si_r64_xmmm32 => Some((From::M32, gpr::to_int::<Single, u64, true> as Handler)),
        Cvtsd2si_r32_xmmm64 => Some((From::M64, gpr::to_int::<Double, u32, false> as Handler)),
        Cvtsd2si_r64_xmmm64 => Some((From::M64, gpr::to_int::<Double, u64, false> as Handler)),
        Cvttsd2si_r32_xmmm64 => Some((From::M64, gpr::to_int::<Double, u32, true> as Handler)),
        Cvttsd2si_r64_xmmm64 => Some((From::M64, gpr::to_int::<Double, u64, true> as Handler)),
        _ => None,
    };
    if let Some((from, run)) = to_int {
        l.need_sse();
        let r2 = l.xmm_source(i, 1, from);
        return l.regs(run, reg(i.op0_register()), r2, 0);
    }
    // The width is that of a memory destination.
    let (run, bytes): (Handler, usize) = match i.code() {
        Movd_rm32_xmm => (gpr::to_gpr::<u32>, 4),
        Movq_rm64_xmm => (gpr::to_gpr::<u64>, 8),
        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => (gpr::to_integer::<gpr::Pmovmskb>, 4),
        Movmskps_r32_xmm | Movmskps_r64_xmm => (gpr::to_integer::<gpr::Movmskps>, 4),
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => (gpr::to_integer::<gpr::Movmskpd>, 4),
        Pextrb_r32m8_xmm_imm8 | Pextrb_r64m8_xmm_imm8 => (gpr::to_integer::<gpr::Pextrb>, 1),
        Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8 | Pextrw_r32m16_xmm_imm8 | Pextrw_r64m16_xmm_imm8 => {
            (gpr::to_integer::<gpr::Pextrw>, 2)
        }
        Pextrd_rm32_xmm_imm8 | Extractps_rm32_xmm_imm8 | Extractps_r64m32_xmm_imm8 => {
            (gpr::to_integer::<gpr::Pextrd>, 4)
        }
        Pextrq_rm64_xmm_imm8 => (gpr::to_integer::<gpr::Pextrq>, 8),
        _ => return None,
    };
    l.need_sse();
    let r2 = number(i.op1_register());
    let r1 = if is_mem(i, 0) { GPR_SCRATCH } else { reg(i.op0_register()) };
    l.regs(run, r1, r2, imm(i));
    if is_mem(i, 0) {
        l.store_gpr(i, bytes, GPR_SCRATCH);
    }
    Some(Next::Continue)
}

/// From a general register or memory of its width.
fn from_general(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    let (run, bytes): (Handler, usize) = match i.code() {
        Movd_xmm_rm32 => (gpr::from_gpr::<u32>, 4),
        Movq_xmm_rm64 => (gpr::from_gpr::<u64>, 8),
        Cvtsi2ss_xmm_rm32 => (gpr::from_int::<Single, u32>, 4),
        Cvtsi2ss_xmm_rm64 => (gpr::from_int::<Single, u64>, 8),
        Cvtsi2sd_xmm_rm32 => (gpr::from_int::<Double, u32>, 4),
        Cvtsi2sd_xmm_rm64 => (gpr::from_int::<Double, u64>, 8),
        Pinsrb_xmm_r32m8_imm8 | Pinsrb_xmm_r64m8_imm8 => (gpr::insert::<gpr::Pinsrb>, 1),
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => (gpr::insert::<gpr::Pinsrw>, 2),
        Pinsrd_xmm_rm32_imm8 => (gpr::insert::<gpr::Pinsrd>, 4),
        Pinsrq_xmm_rm64_imm8 => (gpr::insert::<gpr::Pinsrq>, 8),
        _ => return None,
    };
    l.need_sse();
    let r1 = number(i.op0_register());
    if is_mem(i, 1) && matches!(i.code(), Movd_xmm_rm32 | Movq_xmm_rm64) {
        l.load(i, if bytes == 4 { From::M32 } else { From::M64 }, r1);
        return Some(Next::Continue);
    }
    let r2 = l.gpr_source(i, 1, bytes);
    l.regs(run, r1, r2, imm(i))
}

/// Results in flags.
fn compares(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    let (from, run): (From, Handler) = match i.code() {
        Ucomiss_xmm_xmmm32 => (From::M32, gpr::compare::<Single, false>),
        Comiss_xmm_xmmm32 => (From::M32, gpr::compare::<Single, true>),
        Ucomisd_xmm_xmmm64 => (From::M64, gpr::compare::<Double, false>),
        Comisd_xmm_xmmm64 => (From::M64, gpr::compare::<Double, true>),
        Ptest_xmm_xmmm128 => (From::M128, gpr::ptest),
        Pcmpistri_xmm_xmmm128_imm8 => (From::U128, gpr::pcmpistri),
        Pcmpistrm_xmm_xmmm128_imm8 => (From::U128, gpr::pcmpistrm),
        Pcmpestri_xmm_xmmm128_imm8 | Pcmpestri64_xmm_xmmm128_imm8 => (From::U128, gpr::pcmpestri),
        Pcmpestrm_xmm_xmmm128_imm8 | Pcmpestrm64_xmm_xmmm128_imm8 => (From::U128, gpr::pcmpestrm),
        _ => return None,
    };
    l.need_sse();
    let r2 = l.xmm_source(i, 1, from);
    let wide = matches!(i.code(), Pcmpestri64_xmm_xmmm128_imm8 | Pcmpestrm64_xmm_xmmm128_imm8);
    let op = Op { r1: number(i.op0_register()), r2, imm: imm(i), aux: wide.into(), ..l.op(run) };
    l.push(op);
    Some(Next::Continue)
}

/// MXCSR, masked and non-temporal stores.
fn control(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    match i.code() {
        Code::Ldmxcsr_m32 => {
            l.need_sse();
            l.load_gpr(i, 4);
            l.regs(mov::ldmxcsr, 0, GPR_SCRATCH, 0)
        }
        Code::Stmxcsr_m32 => {
            l.need_sse();
            l.regs(mov::stmxcsr, GPR_SCRATCH, 0, 0);
            l.store_gpr(i, 4, GPR_SCRATCH);
            Some(Next::Continue)
        }
        Code::Maskmovdqu_rDI_xmm_xmm => {
            l.need_sse();
            masked_store(l, i, mov::maskmovdqu)
        }
        // Needs no SSE state.
        Code::Movnti_m32_r32 | Code::Movnti_m64_r64 => {
            let bytes = i.op1_register().size();
            l.store_gpr(i, bytes, reg(i.op1_register()));
            Some(Next::Continue)
        }
        // There are no caches: what remains is the access.
        Code::Clflush_m8 | Code::Clflushopt_m8 | Code::Clwb_m8 => {
            l.load_gpr(i, 1);
            Some(Next::Continue)
        }
        _ => None,
    }
}

/// MASKMOVQ and MASKMOVDQU: to (R)DI, in a segment that can be overridden.
fn masked_store(l: &mut Lowering<'_>, i: &Instruction, run: Handler) -> Option<Next> {
    let size: u8 = match i.op0_kind() {
        OpKind::MemorySegDI => 1,
        OpKind::MemorySegEDI => 2,
        _ => 3,
    };
    let op = Op {
        r1: number(i.op1_register()),
        r2: number(i.op2_register()),
        base: crate::cpu::reg::RDI,
        scale: size << 4,
        seg: segment(i.memory_segment()),
        ..l.op(run)
    };
    l.push(op);
    Some(Next::Continue)
}

/// MMX instructions that are not in the table.
fn mmx_only(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    let code = i.code();
    match code {
        Emms => {
            l.need_mmx();
            return l.simple(mmx::emms);
        }
        Movq_mm_mmm64 | Movq_mmm64_mm if !is_mem(i, 0) => {
            l.need_mmx();
            let r2 = l.xmm_source(i, 1, From::M64);
            return l.regs(mmx::mov, number(i.op0_register()), r2, 0);
        }
        _ => {}
    }
    None.or_else(|| mmx_moves(l, i)).or_else(|| mmx_mixed(l, i))
}

/// MMX registers with memory and general registers.
fn mmx_moves(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    match i.code() {
        Movd_rm32_mm | Movq_rm64_mm | Movq_mmm64_mm | Movntq_m64_mm if is_mem(i, 0) => {
            l.need_mmx();
            let narrow = i.code() == Movd_rm32_mm;
            l.with_mem(i, (0, number(i.op1_register())), |ea| {
                if narrow { by_ea!(ea, mmx::store::<u32>) } else { by_ea!(ea, mmx::store::<u64>) }
            });
            return Some(Next::Continue);
        }
        _ => {}
    }
    let general = match i.code() {
        Movd_rm32_mm => Some(mmx::to_gpr::<u32> as Handler),
        Movq_rm64_mm => Some(mmx::to_gpr::<u64> as Handler),
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => Some(mmx::pmovmskb as Handler),
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => Some(mmx::pextrw as Handler),
        _ => None,
    };
    if let Some(run) = general {
        l.need_mmx();
        return l.regs(run, reg(i.op0_register()), number(i.op1_register()), imm(i));
    }
    let (run, bytes): (Handler, usize) = match i.code() {
        Movd_mm_rm32 => (mmx::from_gpr::<u32>, 4),
        Movq_mm_rm64 => (mmx::from_gpr::<u64>, 8),
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => (mmx::pinsrw, 2),
        _ => return None,
    };
    l.need_mmx();
    let r2 = l.gpr_source(i, 1, bytes);
    l.regs(run, number(i.op0_register()), r2, imm(i))
}

/// MMX registers with SSE registers, and MASKMOVQ.
fn mmx_mixed(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Code::*;
    let (from, run): (From, Handler) = match i.code() {
        Movq2dq_xmm_mm => (From::M64, mmx::movq2dq),
        Movdq2q_mm_xmm => (From::M64, mmx::movdq2q),
        Cvtpi2ps_xmm_mmm64 => (From::M64, mmx::cvtpi2ps),
        Cvtpi2pd_xmm_mmm64 => (From::M64, mmx::cvtpi2pd),
        Cvtps2pi_mm_xmmm64 => (From::M64, mmx::cvtps2pi::<false>),
        Cvttps2pi_mm_xmmm64 => (From::M64, mmx::cvtps2pi::<true>),
        Cvtpd2pi_mm_xmmm128 => (From::M128, mmx::cvtpd2pi::<false>),
        Cvttpd2pi_mm_xmmm128 => (From::M128, mmx::cvtpd2pi::<true>),
        Maskmovq_rDI_mm_mm => {
            l.need_mmx();
            return masked_store(l, i, mmx::maskmovq);
        }
        _ => return None,
    };
    l.need_sse();
    if i.code() != Cvtpi2pd_xmm_mmm64 || !is_mem(i, 1) {
        l.need_mmx();
    }
    let r2 = l.xmm_source(i, 1, from);
    l.regs(run, number(i.op0_register()), r2, 0)
}
