//! BMI1 and BMI2.

use iced_x86::{Instruction, Mnemonic};

use super::int::{imm, is_mem};
use super::{Lowering, Next, by_width, by_width_ea, reg, width};
use crate::ops::bmi::{self, what};

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    // Which operands are the one that may be memory, and the other source (or the second destination).
    let (aux, memory, other) = match i.mnemonic() {
        M::Andn => (what::ANDN, 2, Some(1)),
        M::Bextr => (what::BEXTR, 1, Some(2)),
        M::Blsi => (what::BLSI, 1, None),
        M::Blsmsk => (what::BLSMSK, 1, None),
        M::Blsr => (what::BLSR, 1, None),
        M::Bzhi => (what::BZHI, 1, Some(2)),
        M::Mulx => (what::MULX, 2, Some(1)),
        M::Pdep => (what::PDEP, 2, Some(1)),
        M::Pext => (what::PEXT, 2, Some(1)),
        M::Rorx => (what::RORX, 1, None),
        M::Sarx => (what::SARX, 1, Some(2)),
        M::Shlx => (what::SHLX, 1, Some(2)),
        M::Shrx => (what::SHRX, 1, Some(2)),
        _ => return None,
    };
    let n = width(i, 0);
    let mut op = l.op(by_width!(n, bmi::r));
    op.aux = aux;
    if is_mem(i, memory) {
        let ea = l.mem(i, &mut op);
        op.run = by_width_ea!(n, ea, bmi::m);
    } else {
        op.r2 = reg(i.op_register(memory));
        l.pure = true;
    }
    op.r1 = reg(i.op0_register());
    op.imm = match other {
        Some(other) => u64::from(reg(i.op_register(other))),
        None => imm(i, 2).unwrap_or(0),
    };
    l.push(op);
    Some(Next::Continue)
}
