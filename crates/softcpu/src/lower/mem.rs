//! Data movement.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::branch::cc;
use super::int::{imm, is_mem};
use super::{Lowering, Next, by_cc, by_ea, by_width, by_width_ea, reg, segment, width};
use crate::cpu::reg::RSP;
use crate::op::{Handler, Op};
use crate::ops::mem;

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Mov => mov(l, i),
        M::Movzx | M::Movsx | M::Movsxd => extend(l, i),
        M::Lea => {
            let n = width(i, 0);
            let mut op = l.op(mem::mov_rr::<u64>);
            op.r1 = reg(i.op0_register());
            let ea = l.mem(i, &mut op);
            // Segments do not count: only the address size keeps an address from the short forms.
            let ea = if op.scale >> 4 == 3 && op.aux & crate::ops::WIDE_DISP == 0 {
                if i.memory_index() == Register::None { 0 } else { 1 }
            } else {
                ea
            };
            op.run = by_width_ea!(n, ea, mem::lea);
            l.pure = true;
            l.push(op);
            Some(Next::Continue)
        }
        M::Push | M::Pop => stack(l, i),
        M::Pusha => l.simple(mem::pusha::<u16>),
        M::Pushad => l.simple(mem::pusha::<u32>),
        M::Popa => l.simple(mem::popa::<u16>),
        M::Popad => l.simple(mem::popa::<u32>),
        M::Enter => {
            let run: Handler = match stack_operand(i) {
                2 => mem::enter::<u16>,
                4 => mem::enter::<u32>,
                _ => mem::enter::<u64>,
            };
            let mut op = l.op(run);
            op.imm = u64::from(i.immediate16()) | u64::from(i.immediate8_2nd()) << 16;
            l.push(op);
            Some(Next::Continue)
        }
        M::Leave => {
            let run: Handler = match i.code() {
                iced_x86::Code::Leavew => mem::leave::<u16>,
                iced_x86::Code::Leaved => mem::leave::<u32>,
                _ => mem::leave::<u64>,
            };
            l.simple(run)
        }
        M::Xlatb => {
            let mut op = l.op(mem::xlat);
            op.seg = segment(i.memory_segment());
            op.scale = super::address_size(i, l.bits) << 4;
            l.push(op);
            Some(Next::Continue)
        }
        M::Cbw => l.simple(mem::widen::<u16, u8>),
        M::Cwde => l.simple(mem::widen::<u32, u16>),
        M::Cdqe => l.simple(mem::widen::<u64, u32>),
        M::Cwd => l.simple(mem::sign_to_dx::<u16>),
        M::Cdq => l.simple(mem::sign_to_dx::<u32>),
        M::Cqo => l.simple(mem::sign_to_dx::<u64>),
        M::Lahf => l.simple(mem::lahf),
        M::Sahf => l.simple(mem::sahf),
        _ if is_conditional(i) && i.op_count() == 1 => setcc(l, i),
        _ if is_conditional(i) && i.op0_register().is_gpr() => cmov(l, i),
        _ => None,
    }
}

/// SETcc and CMOVcc; the branches were lowered before.
fn is_conditional(i: &Instruction) -> bool {
    i.condition_code() != ConditionCode::None
}

fn mov(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let special = |r: Register| r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr();
    if special(i.op0_register()) || special(i.op1_register()) {
        // See `system`.
        return None;
    }
    let n = width(i, 0);
    let mut op = l.op(by_width!(n, mem::mov_rr));
    match (is_mem(i, 0), is_mem(i, 1)) {
        (false, false) => {
            op.r1 = reg(i.op0_register());
            l.pure = true;
            match imm(i, 1) {
                Some(v) => {
                    op.imm = v;
                    op.run = by_width!(n, mem::mov_ri);
                }
                None => op.r2 = reg(i.op1_register()),
            }
        }
        (false, true) => {
            op.r1 = reg(i.op0_register());
            let ea = l.mem(i, &mut op);
            op.run = by_width_ea!(n, ea, mem::load);
        }
        (true, _) => {
            let ea = l.mem(i, &mut op);
            match imm(i, 1) {
                Some(v) => {
                    op.imm = v;
                    op.run = by_width_ea!(n, ea, mem::store_imm);
                }
                None => {
                    op.r2 = reg(i.op1_register());
                    op.run = by_width_ea!(n, ea, mem::store);
                }
            }
        }
    }
    l.push(op);
    Some(Next::Continue)
}

fn extend(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let (d, s) = (width(i, 0), width(i, 1));
    let sign = i.mnemonic() != Mnemonic::Movzx;
    let mut op = l.op(mem::mov_rr::<u64>);
    op.r1 = reg(i.op0_register());
    if is_mem(i, 1) {
        let ea = l.mem(i, &mut op);
        op.run = match (sign, d, s) {
            (false, 2, 1) => by_ea!(ea, mem::movzx_rm::<u16, u8>) as Handler,
            (false, 2, _) => by_ea!(ea, mem::movzx_rm::<u16, u16>),
            // A 64-bit destination is a 32-bit one that is zero-extended.
            (false, _, 1) => by_ea!(ea, mem::movzx_rm::<u32, u8>),
            (false, _, _) => by_ea!(ea, mem::movzx_rm::<u32, u16>),
            (true, 2, 1) => by_ea!(ea, mem::movsx_rm::<u16, u8>),
            (true, 2, _) => by_ea!(ea, mem::movsx_rm::<u16, u16>),
            (true, 4, 1) => by_ea!(ea, mem::movsx_rm::<u32, u8>),
            (true, 4, 2) => by_ea!(ea, mem::movsx_rm::<u32, u16>),
            (true, 4, _) => by_ea!(ea, mem::movsx_rm::<u32, u32>),
            (true, _, 1) => by_ea!(ea, mem::movsx_rm::<u64, u8>),
            (true, _, 2) => by_ea!(ea, mem::movsx_rm::<u64, u16>),
            (true, _, _) => by_ea!(ea, mem::movsx_rm::<u64, u32>),
        };
    } else {
        op.r2 = reg(i.op1_register());
        l.pure = true;
        op.run = match (sign, d, s) {
            (false, 2, 1) => mem::movzx_rr::<u16, u8>,
            (false, 2, _) => mem::movzx_rr::<u16, u16>,
            (false, _, 1) => mem::movzx_rr::<u32, u8>,
            (false, _, _) => mem::movzx_rr::<u32, u16>,
            (true, 2, 1) => mem::movsx_rr::<u16, u8>,
            (true, 2, _) => mem::movsx_rr::<u16, u16>,
            (true, 4, 1) => mem::movsx_rr::<u32, u8>,
            (true, 4, 2) => mem::movsx_rr::<u32, u16>,
            (true, 4, _) => mem::movsx_rr::<u32, u32>,
            (true, _, 1) => mem::movsx_rr::<u64, u8>,
            (true, _, 2) => mem::movsx_rr::<u64, u16>,
            (true, _, _) => mem::movsx_rr::<u64, u32>,
        };
    }
    l.push(op);
    Some(Next::Continue)
}

/// Width in bytes of what an instruction pushes.
fn stack_operand(i: &Instruction) -> usize {
    use iced_x86::Code;
    match i.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        Code::Enterq_imm16_imm8 => 8,
        _ => i.stack_pointer_increment().unsigned_abs() as usize,
    }
}

fn stack(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = stack_operand(i);
    let push = i.mnemonic() == Mnemonic::Push;
    let mut op = l.op(mem::mov_rr::<u64>);
    match i.op0_kind() {
        OpKind::Register if i.op0_register().is_segment_register() => return None,
        OpKind::Register => {
            (op.r1, op.r2) = (reg(i.op0_register()), reg(i.op0_register()));
            op.run = match (push, n) {
                (true, 2) => mem::push_r::<u16>,
                (true, 4) => mem::push_r::<u32>,
                (true, _) => mem::push_r::<u64>,
                (false, 2) => mem::pop_r::<u16>,
                (false, 4) => mem::pop_r::<u32>,
                (false, _) => mem::pop_r::<u64>,
            };
        }
        OpKind::Memory => {
            let ea = l.mem(i, &mut op);
            op.run = match (push, n) {
                (true, 2) => by_ea!(ea, mem::push_m::<u16>) as Handler,
                (true, 4) => by_ea!(ea, mem::push_m::<u32>),
                (true, _) => by_ea!(ea, mem::push_m::<u64>),
                (false, 2) => by_ea!(ea, mem::pop_m::<u16>),
                (false, 4) => by_ea!(ea, mem::pop_m::<u32>),
                (false, _) => by_ea!(ea, mem::pop_m::<u64>),
            };
        }
        _ => {
            op.imm = imm(i, 0)?;
            op.run = match n {
                2 => mem::push_i::<u16>,
                4 => mem::push_i::<u32>,
                _ => mem::push_i::<u64>,
            };
        }
    }
    l.push(op);
    Some(Next::Continue)
}

/// Lets two PUSHes or POPs of 64-bit registers in a row go at once. RSP itself is not among them.
pub(super) fn pair_stack_ops(ops: &mut [Op]) {
    let runs = |op: &Op, run: Handler| std::ptr::fn_addr_eq(op.run, run) && op.r1 != RSP && op.r2 == op.r1;
    let mut rest = ops;
    while let [first, second, ..] = rest {
        let push = runs(first, mem::push_r::<u64>) && runs(second, mem::push_r::<u64>);
        let pop = runs(first, mem::pop_r::<u64>) && runs(second, mem::pop_r::<u64>);
        if push {
            (first.run, first.r1) = (mem::push_pair, second.r1);
        } else if pop {
            (first.run, first.r2) = (mem::pop_pair, second.r1);
        }
        let done = if push || pop { 2 } else { 1 };
        rest = rest.get_mut(done..).unwrap_or_default();
    }
}

fn setcc(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let mut op = l.op(by_cc!(cc(i), mem::setcc_r));
    if is_mem(i, 0) {
        let ea = l.mem(i, &mut op);
        op.aux |= u16::from(cc(i));
        op.run = by_ea!(ea, mem::setcc_m);
    } else {
        l.pure = true;
        op.r1 = reg(i.op0_register());
    }
    l.push(op);
    Some(Next::Continue)
}

fn cmov(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = width(i, 0);
    let cond = cc(i);
    let mut op = l.op(match n {
        2 => by_cc!(cond, mem::cmov_rr::<u16>),
        4 => by_cc!(cond, mem::cmov_rr::<u32>),
        _ => by_cc!(cond, mem::cmov_rr::<u64>),
    });
    op.r1 = reg(i.op0_register());
    if is_mem(i, 1) {
        let ea = l.mem(i, &mut op);
        op.aux |= u16::from(cond);
        op.run = by_width_ea!(n, ea, mem::cmov_rm);
    } else {
        l.pure = true;
        op.r2 = reg(i.op1_register());
    }
    l.push(op);
    Some(Next::Continue)
}
