//! Near branches, calls and returns; compare-and-branch pairs become one operation.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};

use super::int::{imm, is_mem};
use super::{Lowering, Next, by_cc, by_ea, reg, width};
use crate::op::Handler;
use crate::ops::branch;

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    if i.is_jcc_short_or_near() {
        return jcc(l, i);
    }
    match i.mnemonic() {
        M::Jmp if i.is_jmp_short_or_near() => {
            l.jump_exit(i.near_branch_target());
            Some(Next::End)
        }
        M::Jmp if i.is_jmp_near_indirect() => indirect(l, i, false),
        M::Call if i.is_call_near() => {
            let run: Handler = match stack_width(l, i) {
                2 => branch::call_rel::<u16>,
                4 => branch::call_rel::<u32>,
                _ => branch::call_rel::<u64>,
            };
            let op = l.op(run);
            l.push(op);
            l.exit(i.near_branch_target(), l.nth + 1);
            Some(Next::End)
        }
        M::Call if i.is_call_near_indirect() => indirect(l, i, true),
        M::Ret => {
            let run: Handler = match stack_width(l, i) {
                2 => branch::ret::<u16>,
                4 => branch::ret::<u32>,
                _ => branch::ret::<u64>,
            };
            let mut op = l.op(run);
            op.imm = imm(i, 0).unwrap_or(0) & 0xffff;
            l.push(op);
            Some(Next::End)
        }
        M::Loop => counted(l, i, 0),
        M::Loope => counted(l, i, 1),
        M::Loopne => counted(l, i, 2),
        M::Jcxz | M::Jecxz | M::Jrcxz => counted(l, i, 3),
        _ => None,
    }
}

/// Width in bytes of what a near call or return pushes or pops: its operand size.
fn stack_width(l: &Lowering<'_>, i: &Instruction) -> usize {
    if l.long() {
        return 8;
    }
    // The stack pointer moves by the operand size, and by the arguments of RET.
    let moved = i.stack_pointer_increment().unsigned_abs() as usize;
    let arguments = if i.mnemonic() == Mnemonic::Ret { imm(i, 0).unwrap_or(0) as usize & 0xffff } else { 0 };
    if moved.wrapping_sub(arguments) == 2 { 2 } else { 4 }
}

fn condition(i: &Instruction) -> u8 {
    match i.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        _ => 15,
    }
}

pub(super) fn cc(i: &Instruction) -> u8 {
    condition(i)
}

fn jcc(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let cc = condition(i);
    let (taken, not) = (i.near_branch_target(), l.start.wrapping_add(u64::from(l.off) + u64::from(l.len)));
    if let Some(run) = fused(l, cc) {
        // The pair is one operation, in the place of the compare; it cannot fault.
        if let Some(op) = l.ops.last_mut() {
            op.run = run;
        }
    } else {
        let op = l.op(by_cc!(cc, branch::jcc));
        l.push(op);
    }
    let executed = l.nth + 1;
    l.exit(taken, executed);
    l.exit_on(not, executed);
    Some(Next::End)
}

/// The handler for the previous instruction and this condition together, if there is one.
fn fused(l: &Lowering<'_>, cc: u8) -> Option<Handler> {
    let (previous, first) = l.previous?;
    if first + 1 != l.ops.len() || is_mem(&previous, 0) || previous.op_count() != 2 || is_mem(&previous, 1) {
        return None;
    }
    let immediate = imm(&previous, 1).is_some();
    let n = width(&previous, 0);
    Some(match (previous.mnemonic(), immediate, n) {
        (Mnemonic::Cmp, false, 1) => by_cc!(cc, branch::cmp_rr_jcc::<u8>),
        (Mnemonic::Cmp, false, 2) => by_cc!(cc, branch::cmp_rr_jcc::<u16>),
        (Mnemonic::Cmp, false, 4) => by_cc!(cc, branch::cmp_rr_jcc::<u32>),
        (Mnemonic::Cmp, false, _) => by_cc!(cc, branch::cmp_rr_jcc::<u64>),
        (Mnemonic::Cmp, true, 1) => by_cc!(cc, branch::cmp_ri_jcc::<u8>),
        (Mnemonic::Cmp, true, 2) => by_cc!(cc, branch::cmp_ri_jcc::<u16>),
        (Mnemonic::Cmp, true, 4) => by_cc!(cc, branch::cmp_ri_jcc::<u32>),
        (Mnemonic::Cmp, true, _) => by_cc!(cc, branch::cmp_ri_jcc::<u64>),
        (Mnemonic::Test, false, 1) => by_cc!(cc, branch::test_rr_jcc::<u8>),
        (Mnemonic::Test, false, 2) => by_cc!(cc, branch::test_rr_jcc::<u16>),
        (Mnemonic::Test, false, 4) => by_cc!(cc, branch::test_rr_jcc::<u32>),
        (Mnemonic::Test, false, _) => by_cc!(cc, branch::test_rr_jcc::<u64>),
        (Mnemonic::Test, true, 1) => by_cc!(cc, branch::test_ri_jcc::<u8>),
        (Mnemonic::Test, true, 2) => by_cc!(cc, branch::test_ri_jcc::<u16>),
        (Mnemonic::Test, true, 4) => by_cc!(cc, branch::test_ri_jcc::<u32>),
        (Mnemonic::Test, true, _) => by_cc!(cc, branch::test_ri_jcc::<u64>),
        _ => return None,
    })
}

fn counted(l: &mut Lowering<'_>, i: &Instruction, what: u16) -> Option<Next> {
    let mut op = l.op(branch::loop_cx);
    op.aux = what;
    // The address size picks CX, ECX or RCX.
    let size = match i.op_code().address_size() {
        16 => 1,
        32 => 2,
        _ => 3,
    };
    op.scale = size << 4;
    l.push(op);
    let (taken, not) = (i.near_branch_target(), l.start.wrapping_add(u64::from(l.off) + u64::from(l.len)));
    let executed = l.nth + 1;
    l.exit(taken, executed);
    l.exit_on(not, executed);
    Some(Next::End)
}

fn indirect(l: &mut Lowering<'_>, i: &Instruction, call: bool) -> Option<Next> {
    let n = width(i, 0);
    let mut op = l.op(branch::jmp_r::<u64>);
    if i.op0_kind() == OpKind::Register {
        op.r1 = reg(i.op0_register());
        op.run = match (n, call) {
            (2, false) => branch::jmp_r::<u16>,
            (4, false) => branch::jmp_r::<u32>,
            (_, false) => branch::jmp_r::<u64>,
            (2, true) => branch::call_r::<u16>,
            (4, true) => branch::call_r::<u32>,
            (_, true) => branch::call_r::<u64>,
        };
    } else {
        let ea = l.mem(i, &mut op);
        op.run = match (n, call) {
            (2, false) => by_ea!(ea, branch::jmp_m::<u16>) as Handler,
            (4, false) => by_ea!(ea, branch::jmp_m::<u32>),
            (_, false) => by_ea!(ea, branch::jmp_m::<u64>),
            (2, true) => by_ea!(ea, branch::call_m::<u16>),
            (4, true) => by_ea!(ea, branch::call_m::<u32>),
            (_, true) => by_ea!(ea, branch::call_m::<u64>),
        };
    }
    l.push(op);
    Some(Next::End)
}
