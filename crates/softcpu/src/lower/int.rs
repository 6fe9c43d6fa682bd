//! Integer arithmetic, logic, shifts, bits, multiplication and division.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Lowering, Next, by_ea, by_width, by_width_ea, reg, width};
use crate::op::Handler;
use crate::ops::alu::{self, Adc, Add, Alu, And, Cmp, Dec, Inc, Neg, Not, Or, Sbb, Sub, Test, Unary, Xor};
use crate::ops::bits::{self, scan};
use crate::ops::shift::{self, Rcl, Rcr, Rol, Ror, Sar, Shift, Shl, Shr};
use crate::ops::{mem, muldiv};

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Add => binary::<Add>(l, i),
        M::Or => binary::<Or>(l, i),
        M::Adc => binary::<Adc>(l, i),
        M::Sbb => binary::<Sbb>(l, i),
        M::And => binary::<And>(l, i),
        M::Sub => binary::<Sub>(l, i),
        M::Xor => binary::<Xor>(l, i),
        M::Cmp => binary::<Cmp>(l, i),
        M::Test => binary::<Test>(l, i),
        M::Inc => unary::<Inc>(l, i),
        M::Dec => unary::<Dec>(l, i),
        M::Neg => unary::<Neg>(l, i),
        M::Not => unary::<Not>(l, i),
        M::Rol => shifted::<Rol>(l, i),
        M::Ror => shifted::<Ror>(l, i),
        M::Rcl => shifted::<Rcl>(l, i),
        M::Rcr => shifted::<Rcr>(l, i),
        M::Shl | M::Sal => shifted::<Shl>(l, i),
        M::Shr => shifted::<Shr>(l, i),
        M::Sar => shifted::<Sar>(l, i),
        M::Shld | M::Shrd => double(l, i),
        M::Xchg | M::Xadd | M::Cmpxchg => exchange(l, i),
        M::Cmpxchg8b | M::Cmpxchg16b => exchange_wide(l, i),
        M::Mul | M::Imul | M::Div | M::Idiv => multiply(l, i),
        M::Bt | M::Bts | M::Btr | M::Btc => bit_test(l, i),
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt => scans(l, i),
        M::Bswap => {
            let mut op = l.op(by_width!(width(i, 0), bits::bswap));
            op.r1 = reg(i.op0_register());
            l.push(op);
            Some(Next::Continue)
        }
        M::Movbe => {
            let load = i.op0_kind() == OpKind::Register;
            with_mem(l, i, if load { 0 } else { 1 }, |n, ea| {
                if load {
                    by_width_ea!(n, ea, bits::movbe_load)
                } else {
                    by_width_ea!(n, ea, bits::movbe_store)
                }
            })
        }
        M::Crc32 => {
            let n = width(i, 1);
            register_or_mem(
                l,
                i,
                n,
                by_width!(n, bits::crc32_r),
                |n, ea| by_width_ea!(n, ea, bits::crc32_m),
                0,
            )
        }
        M::Adcx | M::Adox => {
            let n = width(i, 0);
            let aux = u16::from(i.mnemonic() == M::Adox);
            register_or_mem(l, i, n, by_width!(n, bits::adx_r), |n, ea| by_width_ea!(n, ea, bits::adx_m), aux)
        }
        _ => None,
    }
}

/// Whether operand `n` is memory.
pub(super) fn is_mem(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Memory
}

/// The immediate operand `n`, sign-extended as the instruction does.
pub(super) fn imm(i: &Instruction, n: u32) -> Option<u64> {
    i.try_immediate(n).ok()
}

/// An operation with one register (operand `r`, as both `r1` and `r2`) and one memory operand.
fn with_mem(
    l: &mut Lowering<'_>,
    i: &Instruction,
    r: u32,
    run: impl Fn(usize, u8) -> Handler,
) -> Option<Next> {
    let mut op = l.op(alu::xchg_rr::<u8>);
    let ea = l.mem(i, &mut op);
    op.run = run(width(i, r), ea);
    (op.r1, op.r2) = (reg(i.op_register(r)), reg(i.op_register(r)));
    l.push(op);
    Some(Next::Continue)
}

/// Destination register, source register or memory of `n` bytes.
fn register_or_mem(
    l: &mut Lowering<'_>,
    i: &Instruction,
    n: usize,
    from_register: Handler,
    from_mem: impl Fn(usize, u8) -> Handler,
    aux: u16,
) -> Option<Next> {
    let mut op = l.op(from_register);
    op.r1 = reg(i.op0_register());
    op.aux = aux;
    if is_mem(i, 1) {
        let ea = l.mem(i, &mut op);
        op.run = from_mem(n, ea);
    } else {
        op.r2 = reg(i.op1_register());
    }
    l.push(op);
    Some(Next::Continue)
}

fn binary<A: Alu>(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = width(i, 0);
    let mut op = l.op(by_width!(n, alu::rr::<A>));
    match (is_mem(i, 0), is_mem(i, 1)) {
        (false, false) => {
            op.r1 = reg(i.op0_register());
            l.pure = true;
            match imm(i, 1) {
                Some(v) => {
                    op.imm = v;
                    op.run = by_width!(n, alu::ri::<A>);
                    l.quiet = Some(by_width!(n, alu::ri_quiet::<A>));
                }
                None => {
                    op.r2 = reg(i.op1_register());
                    l.quiet = Some(by_width!(n, alu::rr_quiet::<A>));
                }
            }
        }
        (false, true) => {
            op.r1 = reg(i.op0_register());
            let ea = l.mem(i, &mut op);
            op.run = by_width_ea!(n, ea, alu::rm::<A>);
            l.quiet = Some(by_width_ea!(n, ea, alu::rm_quiet::<A>));
        }
        (true, _) => {
            let ea = l.mem(i, &mut op);
            let immediate = imm(i, 1);
            match immediate {
                Some(v) => op.imm = v,
                None => op.r2 = reg(i.op1_register()),
            }
            op.run = if i.has_lock_prefix() {
                op.aux |= u16::from(immediate.is_some());
                by_width_ea!(n, ea, alu::locked::<A>)
            } else if immediate.is_some() {
                by_width_ea!(n, ea, alu::mi::<A>)
            } else {
                by_width_ea!(n, ea, alu::mr::<A>)
            };
        }
    }
    l.push(op);
    Some(Next::Continue)
}

fn unary<U: Unary>(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = width(i, 0);
    let mut op = l.op(by_width!(n, alu::r::<U>));
    if is_mem(i, 0) {
        let ea = l.mem(i, &mut op);
        op.run = if i.has_lock_prefix() {
            by_width_ea!(n, ea, alu::m_locked::<U>)
        } else {
            by_width_ea!(n, ea, alu::m::<U>)
        };
    } else {
        op.r1 = reg(i.op0_register());
        l.pure = true;
        l.quiet = Some(by_width!(n, alu::r_quiet::<U>));
    }
    l.push(op);
    Some(Next::Continue)
}

fn shifted<S: Shift>(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = width(i, 0);
    let by_cl = i.op1_kind() == OpKind::Register;
    let count = imm(i, 1).unwrap_or(1) & if n == 8 { 63 } else { 31 };
    let mut op = l.op(by_width!(n, shift::ri::<S>));
    op.imm = count;
    if is_mem(i, 0) {
        op.aux = u16::from(by_cl);
        let ea = l.mem(i, &mut op);
        op.imm = count;
        op.run = by_width_ea!(n, ea, shift::m::<S>);
    } else {
        op.r1 = reg(i.op0_register());
        // A count of 0 leaves the flags as they were: those before are needed.
        l.pure = !by_cl && count != 0;
        if l.pure {
            l.quiet = Some(by_width!(n, shift::ri_quiet::<S>));
        }
        if by_cl {
            op.run = by_width!(n, shift::rc::<S>);
        } else if count == 0 {
            // Nothing changes but the upper half of a 32-bit destination.
            op.r2 = op.r1;
            op.run = by_width!(n, mem::mov_rr);
        }
    }
    l.push(op);
    Some(Next::Continue)
}

fn double(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = width(i, 0);
    let left = i.mnemonic() == Mnemonic::Shld;
    let mut op = l.op(match (n, left) {
        (2, true) => shift::double_r::<u16, true>,
        (4, true) => shift::double_r::<u32, true>,
        (_, true) => shift::double_r::<u64, true>,
        (2, false) => shift::double_r::<u16, false>,
        (4, false) => shift::double_r::<u32, false>,
        (_, false) => shift::double_r::<u64, false>,
    });
    op.r1 = reg(i.op0_register());
    if is_mem(i, 0) {
        let ea = l.mem(i, &mut op);
        op.run = match (n, left) {
            (2, true) => by_ea!(ea, shift::shld_m::<u16>) as Handler,
            (4, true) => by_ea!(ea, shift::shld_m::<u32>),
            (_, true) => by_ea!(ea, shift::shld_m::<u64>),
            (2, false) => by_ea!(ea, shift::shrd_m::<u16>),
            (4, false) => by_ea!(ea, shift::shrd_m::<u32>),
            (_, false) => by_ea!(ea, shift::shrd_m::<u64>),
        };
    }
    op.r2 = reg(i.op1_register());
    match imm(i, 2) {
        Some(v) => op.imm = v,
        None => op.aux |= 1,
    }
    l.push(op);
    Some(Next::Continue)
}

fn exchange(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let n = width(i, 0);
    let mut op = l.op(alu::xchg_rr::<u64>);
    // XCHG is encoded either way round.
    let (m, r) = if is_mem(i, 1) { (1, 0) } else { (0, 1) };
    op.r2 = reg(i.op_register(r));
    if is_mem(i, m) {
        let ea = l.mem(i, &mut op);
        op.run = match i.mnemonic() {
            Mnemonic::Xchg => by_width_ea!(n, ea, alu::xchg_mr),
            Mnemonic::Xadd => by_width_ea!(n, ea, alu::xadd_mr),
            _ => by_width_ea!(n, ea, alu::cmpxchg_mr),
        };
    } else {
        op.r1 = reg(i.op0_register());
        op.run = match i.mnemonic() {
            Mnemonic::Xchg => by_width!(n, alu::xchg_rr),
            Mnemonic::Xadd => by_width!(n, alu::xadd_rr),
            _ => by_width!(n, alu::cmpxchg_rr),
        };
    }
    l.push(op);
    Some(Next::Continue)
}

fn exchange_wide(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let mut op = l.op(alu::xchg_rr::<u64>);
    let ea = l.mem(i, &mut op);
    op.run = if i.mnemonic() == Mnemonic::Cmpxchg8b {
        by_ea!(ea, alu::cmpxchg8b)
    } else {
        by_ea!(ea, alu::cmpxchg16b)
    };
    l.push(op);
    Some(Next::Continue)
}

fn multiply(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let n = width(i, 0);
    let mut op = l.op(alu::xchg_rr::<u64>);
    if i.op_count() == 1 {
        if is_mem(i, 0) {
            let ea = l.mem(i, &mut op);
            op.run = match i.mnemonic() {
                M::Mul => by_width_ea!(n, ea, muldiv::mul_m),
                M::Imul => by_width_ea!(n, ea, muldiv::imul_m),
                M::Div => by_width_ea!(n, ea, muldiv::div_m),
                _ => by_width_ea!(n, ea, muldiv::idiv_m),
            };
        } else {
            op.r2 = reg(i.op0_register());
            op.run = match i.mnemonic() {
                M::Mul => by_signed::<false>(n, true),
                M::Imul => by_signed::<true>(n, true),
                M::Div => by_signed::<false>(n, false),
                _ => by_signed::<true>(n, false),
            };
        }
        l.push(op);
        return Some(Next::Continue);
    }
    op.r1 = reg(i.op0_register());
    let third = (i.op_count() == 3).then(|| imm(i, 2)).flatten();
    if is_mem(i, 1) {
        let ea = l.mem(i, &mut op);
        op.run = match third {
            Some(_) => by_width_ea!(n, ea, muldiv::imul_rmi),
            None => by_width_ea!(n, ea, muldiv::imul_rm),
        };
    } else {
        op.r2 = reg(i.op1_register());
        op.run = match third {
            Some(_) => by_width!(n, muldiv::imul_rri),
            None => by_width!(n, muldiv::imul_rr),
        };
        l.pure = true;
        l.quiet = Some(match third {
            Some(_) => by_width!(n, muldiv::imul_rri_quiet),
            None => by_width!(n, muldiv::imul_rr_quiet),
        });
    }
    if let Some(v) = third {
        op.imm = v;
    }
    l.push(op);
    Some(Next::Continue)
}

fn by_signed<const S: bool>(n: usize, mul: bool) -> Handler {
    match (n, mul) {
        (1, true) => muldiv::mul_r::<u8, S>,
        (2, true) => muldiv::mul_r::<u16, S>,
        (4, true) => muldiv::mul_r::<u32, S>,
        (_, true) => muldiv::mul_r::<u64, S>,
        (1, false) => muldiv::div_r::<u8, S>,
        (2, false) => muldiv::div_r::<u16, S>,
        (4, false) => muldiv::div_r::<u32, S>,
        (_, false) => muldiv::div_r::<u64, S>,
    }
}

fn bit_test(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let n = width(i, 0);
    let mut op = l.op(by_width!(n, bits::bt_r));
    if is_mem(i, 0) {
        l.mem(i, &mut op);
        op.run = by_width!(n, bits::bt_m);
    } else {
        op.r1 = reg(i.op0_register());
    }
    match imm(i, 1) {
        Some(v) => {
            op.imm = v;
            op.aux |= 4;
        }
        None => op.r2 = reg(i.op1_register()),
    }
    op.aux |= match i.mnemonic() {
        M::Bt => 0,
        M::Bts => 1,
        M::Btr => 2,
        _ => 3,
    };
    if i.has_lock_prefix() {
        op.aux |= 8;
    }
    l.push(op);
    Some(Next::Continue)
}

fn scans(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let aux = match i.mnemonic() {
        M::Bsf => scan::BSF,
        M::Bsr => scan::BSR,
        M::Tzcnt => scan::TZCNT,
        M::Lzcnt => scan::LZCNT,
        _ => scan::POPCNT,
    };
    let n = width(i, 0);
    register_or_mem(l, i, n, by_width!(n, bits::scan_r), |n, ea| by_width_ea!(n, ea, bits::scan_m), aux)
}
