//! Far branches, far returns, IRET.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::int::imm;
use super::{Lowering, Next};
use crate::far;
use crate::op::Handler;
use crate::ops::system::SIZE_SHIFT;

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let size = size(i)?;
    let pointer = matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    let run: Handler = match i.mnemonic() {
        Mnemonic::Retf => far::ret,
        Mnemonic::Jmp if pointer => far::direct::<false>,
        Mnemonic::Jmp => far::indirect::<false>,
        Mnemonic::Call if pointer => far::direct::<true>,
        Mnemonic::Call => far::indirect::<true>,
        _ => far::iret::iret,
    };
    let mut op = l.op(run);
    op.aux = size << SIZE_SHIFT;
    if pointer {
        let offset = if size == 1 { u64::from(i.far_branch16()) } else { u64::from(i.far_branch32()) };
        (op.imm, op.disp) = (offset, i32::from(i.far_branch_selector()));
    } else if matches!(i.mnemonic(), Mnemonic::Jmp | Mnemonic::Call) {
        // The handlers take every form of address.
        let _ = l.mem(i, &mut op);
    } else {
        op.imm = imm(i, 0).unwrap_or(0) & 0xffff;
    }
    l.push(op);
    Some(Next::End)
}

/// log2 of the operand size in bytes.
fn size(i: &Instruction) -> Option<u16> {
    use Code as C;
    Some(match i.code() {
        C::Jmp_ptr1616
        | C::Jmp_m1616
        | C::Call_ptr1616
        | C::Call_m1616
        | C::Retfw
        | C::Retfw_imm16
        | C::Iretw => 1,
        C::Jmp_ptr1632
        | C::Jmp_m1632
        | C::Call_ptr1632
        | C::Call_m1632
        | C::Retfd
        | C::Retfd_imm16
        | C::Iretd => 2,
        C::Jmp_m1664 | C::Call_m1664 | C::Retfq | C::Retfq_imm16 | C::Iretq => 3,
        _ => return None,
    })
}
