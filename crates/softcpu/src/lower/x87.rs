//! x87, FXSAVE and XSAVE.

use iced_x86::{Instruction, MemorySize, Mnemonic, Register};

use super::{Lowering, Next, by_ea};
use crate::op::{Handler, Op};
use crate::ops::fxsave;
use crate::ops::x87::{self as ops, *};

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let run: Handler = match i.mnemonic() {
        M::Wait => return l.simple(ops::fwait),
        M::Fxsave | M::Fxsave64 => fxsave::fxsave,
        M::Fxrstor | M::Fxrstor64 => fxsave::fxrstor,
        M::Xsave | M::Xsave64 => fxsave::xsave,
        M::Xsaveopt | M::Xsaveopt64 => fxsave::xsaveopt,
        M::Xsavec | M::Xsavec64 => fxsave::xsavec,
        M::Xsaves | M::Xsaves64 => fxsave::xsaves,
        M::Xrstor | M::Xrstor64 => fxsave::xrstor,
        M::Xrstors | M::Xrstors64 => fxsave::xrstors,
        _ => return x87(l, i),
    };
    let mut op = l.op(run);
    // The handlers take every form of address.
    let _ = l.mem(i, &mut op);
    let wide = [MemorySize::Fxsave64_512Byte, MemorySize::Xsave64].contains(&i.memory_size());
    op.aux |= if wide { fxsave::WIDE } else { 0 };
    l.push(op);
    Some(Next::Continue)
}

fn x87(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let mut op = l.op(ops::check);
    op.aux = l.x87_opcode()?;
    op.r1 = stack_register(i);
    let ea = if i.memory_size() == MemorySize::Unknown { 0 } else { l.mem(i, &mut op) };
    op.run = None
        .or_else(|| memory(i, ea))
        .or_else(|| control(i, ea, &mut op))
        .or_else(|| arithmetic(i, ea))
        .or_else(|| register(i))?;
    let checked = l.ops.iter().any(|op| std::ptr::fn_addr_eq(op.run, ops::check as Handler));
    if !checked {
        l.simple(ops::check);
    }
    l.push(op);
    Some(Next::Continue)
}

/// The stack register that an instruction names beside ST(0).
fn stack_register(i: &Instruction) -> u8 {
    let number = |r: Register| if r.is_st() { r.number() as u8 } else { 0 };
    number(i.op0_register()).max(number(i.op1_register()))
}

/// Loads, stores and comparisons of memory.
fn memory(i: &Instruction, ea: u8) -> Option<Handler> {
    use MemorySize as S;
    use Mnemonic as M;
    Some(match (i.mnemonic(), i.memory_size()) {
        (M::Fld, S::Float32) => by_ea!(ea, ops::mem::<Load<F32>>) as Handler,
        (M::Fld, S::Float64) => by_ea!(ea, ops::mem::<Load<F64>>),
        (M::Fld, S::Float80) => by_ea!(ea, ops::fld80),
        (M::Fild, S::Int16) => by_ea!(ea, ops::mem::<Load<I16>>),
        (M::Fild, S::Int32) => by_ea!(ea, ops::mem::<Load<I32>>),
        (M::Fild, _) => by_ea!(ea, ops::mem::<Fild64>),
        (M::Fbld, _) => by_ea!(ea, ops::fbld),
        (M::Fst, S::Float32) => by_ea!(ea, store::<Fst32<false>>),
        (M::Fst, S::Float64) => by_ea!(ea, store::<Fst64<false>>),
        (M::Fstp, S::Float32) => by_ea!(ea, store::<Fst32<true>>),
        (M::Fstp, S::Float64) => by_ea!(ea, store::<Fst64<true>>),
        (M::Fstp, S::Float80) => by_ea!(ea, ops::fstp80),
        (M::Fist, S::Int16) => by_ea!(ea, store::<Fist<u16, false, false>>),
        (M::Fist, _) => by_ea!(ea, store::<Fist<u32, false, false>>),
        (M::Fistp, S::Int16) => by_ea!(ea, store::<Fist<u16, false, true>>),
        (M::Fistp, S::Int32) => by_ea!(ea, store::<Fist<u32, false, true>>),
        (M::Fistp, _) => by_ea!(ea, store::<Fist<u64, false, true>>),
        (M::Fisttp, S::Int16) => by_ea!(ea, store::<Fist<u16, true, true>>),
        (M::Fisttp, S::Int32) => by_ea!(ea, store::<Fist<u32, true, true>>),
        (M::Fisttp, _) => by_ea!(ea, store::<Fist<u64, true, true>>),
        (M::Fbstp, _) => by_ea!(ea, ops::fbstp),
        (M::Fcom, S::Float32) => by_ea!(ea, ops::mem::<Compare<F32, false>>),
        (M::Fcom, S::Float64) => by_ea!(ea, ops::mem::<Compare<F64, false>>),
        (M::Fcomp, S::Float32) => by_ea!(ea, ops::mem::<Compare<F32, true>>),
        (M::Fcomp, S::Float64) => by_ea!(ea, ops::mem::<Compare<F64, true>>),
        (M::Ficom, S::Int16) => by_ea!(ea, ops::mem::<Compare<I16, false>>),
        (M::Ficom, _) => by_ea!(ea, ops::mem::<Compare<I32, false>>),
        (M::Ficomp, S::Int16) => by_ea!(ea, ops::mem::<Compare<I16, true>>),
        (M::Ficomp, _) => by_ea!(ea, ops::mem::<Compare<I32, true>>),
        _ => return None,
    })
}

/// Control instructions.
fn control(i: &Instruction, ea: u8, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    op.imm = i.memory_size().size() as u64;
    Some(match i.mnemonic() {
        M::Fninit => ops::fninit as Handler,
        M::Fnclex => ops::fnclex,
        // Of the 8087 and the 287: no operations since.
        M::Fneni | M::Fndisi | M::Fnsetpm => crate::ops::flow::nop,
        M::Fnstsw if i.memory_size() == MemorySize::Unknown => ops::fnstsw_ax,
        M::Fnstsw => by_ea!(ea, store_word::<Status>),
        M::Fnstcw => by_ea!(ea, store_word::<Control>),
        M::Fldcw => by_ea!(ea, ops::fldcw),
        M::Fldenv => ops::fldenv,
        M::Fnstenv => ops::fnstenv,
        M::Frstor => {
            op.imm -= 80;
            ops::frstor
        }
        M::Fnsave => {
            op.imm -= 80;
            ops::fnsave
        }
        _ => return None,
    })
}

fn arithmetic(i: &Instruction, ea: u8) -> Option<Handler> {
    use Mnemonic as M;
    Some(match i.mnemonic() {
        M::Fadd | M::Faddp | M::Fiadd => operation::<Add>(i, ea),
        M::Fmul | M::Fmulp | M::Fimul => operation::<Mul>(i, ea),
        M::Fsub | M::Fsubp | M::Fisub => operation::<Sub>(i, ea),
        M::Fsubr | M::Fsubrp | M::Fisubr => operation::<SubR>(i, ea),
        M::Fdiv | M::Fdivp | M::Fidiv => operation::<Div>(i, ea),
        M::Fdivr | M::Fdivrp | M::Fidivr => operation::<DivR>(i, ea),
        _ => return None,
    })
}

fn operation<A: Operation>(i: &Instruction, ea: u8) -> Handler {
    use MemorySize as S;
    use Mnemonic as M;
    let pops = matches!(i.mnemonic(), M::Faddp | M::Fmulp | M::Fsubp | M::Fsubrp | M::Fdivp | M::Fdivrp);
    match i.memory_size() {
        S::Float32 => by_ea!(ea, ops::mem::<With<A, F32>>),
        S::Float64 => by_ea!(ea, ops::mem::<With<A, F64>>),
        S::Int16 => by_ea!(ea, ops::mem::<With<A, I16>>),
        S::Int32 => by_ea!(ea, ops::mem::<With<A, I32>>),
        _ if pops => reg::<ToSti<A, true>>,
        _ if i.op0_register() == Register::ST0 => reg::<ToSt0<A>>,
        _ => reg::<ToSti<A, false>>,
    }
}

/// Everything else on the stack.
fn register(i: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match i.mnemonic() {
        M::Fnop => reg::<Fnop> as Handler,
        M::Fld => reg::<FldSt>,
        M::Fst => reg::<FstSt>,
        M::Fstp => reg::<FstpSt>,
        M::Fstpnce => reg::<Fstpnce>,
        M::Fxch => reg::<Fxch>,
        M::Ffree => reg::<Ffree>,
        M::Ffreep => reg::<Ffreep>,
        M::Fincstp => reg::<Fincstp>,
        M::Fdecstp => reg::<Fdecstp>,
        M::Fchs => reg::<Fchs>,
        M::Fabs => reg::<Fabs>,
        M::Fsqrt => reg::<Fsqrt>,
        M::Frndint => reg::<Frndint>,
        M::Fscale => reg::<Fscale>,
        M::Fprem => reg::<Fprem>,
        M::Fprem1 => reg::<Fprem1>,
        M::Fxtract => reg::<Fxtract>,
        M::Fxam => reg::<Fxam>,
        M::Ftst => reg::<Ftst>,
        M::F2xm1 => reg::<F2xm1>,
        M::Fyl2x => reg::<Fyl2x>,
        M::Fyl2xp1 => reg::<Fyl2xp1>,
        M::Fpatan => reg::<Fpatan>,
        M::Fptan => reg::<Fptan>,
        M::Fsin => reg::<Fsin>,
        M::Fcos => reg::<Fcos>,
        M::Fsincos => reg::<Fsincos>,
        M::Fld1 => reg::<Fld1>,
        M::Fldl2t => reg::<Fldl2t>,
        M::Fldl2e => reg::<Fldl2e>,
        M::Fldpi => reg::<Fldpi>,
        M::Fldlg2 => reg::<Fldlg2>,
        M::Fldln2 => reg::<Fldln2>,
        M::Fldz => reg::<Fldz>,
        M::Fcom => reg::<Fcom>,
        M::Fcomp => reg::<Fcomp>,
        M::Fcompp => reg::<Fcompp>,
        M::Fucom => reg::<Fucom>,
        M::Fucomp => reg::<Fucomp>,
        M::Fucompp => reg::<Fucompp>,
        M::Fcomi => fcomi::<false, false>,
        M::Fcomip => fcomi::<false, true>,
        M::Fucomi => fcomi::<true, false>,
        M::Fucomip => fcomi::<true, true>,
        M::Fcmovb => fcmov::<2>,
        M::Fcmovnb => fcmov::<3>,
        M::Fcmove => fcmov::<4>,
        M::Fcmovne => fcmov::<5>,
        M::Fcmovbe => fcmov::<6>,
        M::Fcmovnbe => fcmov::<7>,
        M::Fcmovu => fcmov::<10>,
        M::Fcmovnu => fcmov::<11>,
        _ => return None,
    })
}

impl Lowering<'_> {
    /// The last-opcode register's value for the current instruction, if it is one of the x87 unit: the
    /// low bits of the first opcode byte and the second.
    fn x87_opcode(&self) -> Option<u16> {
        let bytes = self.bytes.get(usize::from(self.off)..)?;
        let prefix = |b: u8| {
            matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
                || self.long() && b & 0xf0 == 0x40
        };
        let at = bytes.iter().take(usize::from(self.len)).position(|b| !prefix(*b))?;
        match (bytes.get(at)?, bytes.get(at + 1)) {
            (escape @ 0xd8..=0xdf, Some(second)) => Some(u16::from(escape & 7) << 8 | u16::from(*second)),
            _ => None,
        }
    }
}
