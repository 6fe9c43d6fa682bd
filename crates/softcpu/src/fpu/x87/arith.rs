//! Arithmetic and comparison.

use super::{C0, C1, C2, C3, X87};
use crate::fpu::convert;
use crate::fpu::env::{Compare, Env, Flags};
use crate::fpu::ext;
use crate::fpu::f80::F80;
use crate::fpu::soft::{Binary32, Binary64, Format};

/// The two-operand arithmetic instructions. The destination is the first operand; the reversed
/// forms take the source first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arith {
    /// FADD.
    Add,
    /// FMUL.
    Mul,
    /// FSUB.
    Sub,
    /// FSUBR.
    SubR,
    /// FDIV.
    Div,
    /// FDIVR.
    DivR,
}

impl Arith {
    #[inline]
    fn apply(self, dst: F80, src: F80, env: &mut Env) -> F80 {
        match self {
            Self::Add => ext::add(dst, src, env),
            Self::Mul => ext::mul(dst, src, env),
            Self::Sub => ext::sub(dst, src, env),
            Self::SubR => ext::sub(src, dst, env),
            Self::Div => ext::div(dst, src, env),
            Self::DivR => ext::div(src, dst, env),
        }
    }
}

impl X87 {
    /// FADD to FDIVR and their popping forms on registers: ST(`dst`) = ST(`dst`) op ST(`src`). Note
    /// that the assembler mnemonics of the ST(i)-destination forms name this operation, whatever the
    /// encoding's reversal bit.
    #[inline]
    pub fn arith_st(&mut self, op: Arith, dst: usize, src: usize, pop: bool) {
        if self.is_empty(dst) || self.is_empty(src) {
            if self.stack_underflow() {
                self.set_st(dst, F80::INDEFINITE);
                if pop {
                    self.pop();
                }
            }
            return;
        }
        let mut env = self.env;
        let result = op.apply(self.st(dst), self.st(src), &mut env);
        if self.conclude(&env) {
            self.set_st(dst, result);
            if pop {
                self.pop();
            }
        }
    }

    /// ST(0) = ST(0) op `value`; `denormal` if the value was one in memory.
    #[inline]
    fn arith_value(&mut self, op: Arith, value: F80, denormal: bool) {
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.set_st(0, F80::INDEFINITE);
            }
            return;
        }
        let mut env = self.env;
        let st0 = self.st(0);
        let result = op.apply(st0, value, &mut env);
        note_denormal(denormal, st0, &mut env);
        if self.conclude(&env) {
            self.set_st(0, result);
        }
    }

    /// FADD to FDIVR with a binary32 operand.
    #[inline]
    pub fn arith_f32(&mut self, op: Arith, value: u32) {
        match convert::widen_normal::<Binary32>(value.into()) {
            Some(value) => self.arith_value(op, value, false),
            None => self.arith_other::<Binary32>(op, value.into()),
        }
    }

    /// FADD to FDIVR with a binary64 operand.
    #[inline]
    pub fn arith_f64(&mut self, op: Arith, value: u64) {
        match convert::widen_normal::<Binary64>(value) {
            Some(value) => self.arith_value(op, value, false),
            None => self.arith_other::<Binary64>(op, value),
        }
    }

    /// FADD to FDIVR with an operand that is no normal number.
    #[inline(never)]
    fn arith_other<F: Format>(&mut self, op: Arith, value: u64) {
        let (value, denormal) = convert::widen::<F>(value);
        self.arith_value(op, value, denormal);
    }

    /// FIADD to FIDIVR; a 16-bit operand comes sign-extended.
    #[inline]
    pub fn arith_int(&mut self, op: Arith, value: i32) {
        self.arith_value(op, convert::int_to_f80(value.into()), false);
    }

    /// Compares ST(0) with `value` into the condition codes, which an unmasked invalid operation
    /// leaves as they were. Whether to go on (and pop).
    #[inline]
    fn compare_value(&mut self, value: F80, denormal: bool, signal_quiet: bool) -> bool {
        let mut env = self.env;
        let st0 = self.st(0);
        let outcome = ext::compare(st0, value, signal_quiet, &mut env);
        note_denormal(denormal, st0, &mut env);
        let go_on = self.conclude(&env);
        if go_on || env.flags & Flags::IE == 0 {
            self.set_compare(outcome);
        }
        go_on
    }

    /// Stack underflow of a comparison. Whether to pop.
    fn compare_underflow(&mut self) -> bool {
        let masked = self.stack_underflow();
        if masked {
            self.set_compare(Compare::Unordered);
        }
        masked
    }

    /// FCOM and FUCOM (`unordered`) with ST(`i`), popping `pops` (0 to 2) registers.
    pub fn fcom_st(&mut self, i: usize, unordered: bool, pops: u8) {
        let go_on = if self.is_empty(0) || self.is_empty(i) {
            self.compare_underflow()
        } else {
            self.compare_value(self.st(i), false, !unordered)
        };
        if go_on {
            (0..pops).for_each(|_| self.pop());
        }
    }

    fn fcom_value(&mut self, value: F80, denormal: bool, pop: bool) {
        let go_on = if self.is_empty(0) {
            self.compare_underflow()
        } else {
            self.compare_value(value, denormal, true)
        };
        if go_on && pop {
            self.pop();
        }
    }

    /// FCOM and FCOMP with a binary32 operand.
    pub fn fcom_f32(&mut self, value: u32, pop: bool) {
        let (value, denormal) = convert::widen::<Binary32>(value.into());
        self.fcom_value(value, denormal, pop);
    }

    /// FCOM and FCOMP with a binary64 operand.
    pub fn fcom_f64(&mut self, value: u64, pop: bool) {
        let (value, denormal) = convert::widen::<Binary64>(value);
        self.fcom_value(value, denormal, pop);
    }

    /// FICOM and FICOMP; a 16-bit operand comes sign-extended.
    pub fn fcom_int(&mut self, value: i32, pop: bool) {
        self.fcom_value(convert::int_to_f80(value.into()), false, pop);
    }

    /// FTST.
    pub fn ftst(&mut self) {
        self.fcom_value(F80::ZERO, false, false);
    }

    /// FCOMI, FUCOMI (`unordered`) and their popping forms. Gives what goes into EFLAGS (see
    /// [`Compare::eflags`]; OF, SF and AF become 0), or `None` if an unmasked invalid operation
    /// leaves it be.
    pub fn fcomi(&mut self, i: usize, unordered: bool, pop: bool) -> Option<Compare> {
        let (outcome, go_on) = if self.is_empty(0) || self.is_empty(i) {
            (self.stack_underflow().then_some(Compare::Unordered)?, true)
        } else {
            let mut env = self.env;
            let outcome = ext::compare(self.st(0), self.st(i), !unordered, &mut env);
            // C1 stays, unlike in FCOM.
            let c1 = self.status & C1;
            let go_on = self.conclude(&env);
            self.status |= c1;
            ((go_on || env.flags & Flags::IE == 0).then_some(outcome)?, go_on)
        };
        if pop && go_on {
            self.pop();
        }
        Some(outcome)
    }

    /// ST(0) = `f`(ST(0)).
    #[inline]
    pub(super) fn unary(&mut self, f: impl FnOnce(F80, &mut Env) -> F80) {
        if self.is_empty(0) {
            if self.stack_underflow() {
                self.set_st(0, F80::INDEFINITE);
            }
            return;
        }
        let mut env = self.env;
        let result = f(self.st(0), &mut env);
        if self.conclude(&env) {
            self.set_st(0, result);
        }
    }

    /// FCHS.
    #[inline]
    pub fn fchs(&mut self) {
        self.unary(|x, _| x.negate());
    }

    /// FABS.
    #[inline]
    pub fn fabs(&mut self) {
        self.unary(|x, _| x.abs());
    }

    /// FSQRT.
    pub fn fsqrt(&mut self) {
        self.unary(ext::sqrt);
    }

    /// FRNDINT.
    pub fn frndint(&mut self) {
        self.unary(ext::round_to_integral);
    }

    /// FSCALE.
    pub fn fscale(&mut self) {
        if self.is_empty(1) {
            if self.stack_underflow() {
                self.set_st(0, F80::INDEFINITE);
            }
            return;
        }
        let by = self.st(1);
        self.unary(|x, env| ext::scale(x, by, env));
    }

    /// FPREM, and FPREM1 if `nearest`.
    pub fn fprem(&mut self, nearest: bool) {
        self.status &= !C2;
        if self.is_empty(0) || self.is_empty(1) {
            if self.stack_underflow() {
                self.set_st(0, F80::INDEFINITE);
            }
            return;
        }
        let mut env = self.env;
        let result = ext::remainder(self.st(0), self.st(1), nearest, &mut env);
        if !self.conclude(&env) {
            return;
        }
        self.set_st(0, result.value);
        if env.flags & Flags::IE != 0 || result.value.is_nan() {
            return;
        }
        self.status &= !(C0 | C1 | C3);
        if result.partial {
            self.status |= C2;
        }
        for (bit, code) in [(1, C1), (2, C3), (4, C0)] {
            if result.quotient & bit != 0 {
                self.status |= code;
            }
        }
    }

    /// FXAM: the class of ST(0) into the condition codes.
    pub fn fxam(&mut self) {
        let x = self.st(0);
        let class = match () {
            _ if self.is_empty(0) => C3 | C0,
            _ if x.is_zero() => C3,
            _ if x.is_denormal() => C3 | C2,
            _ if x.is_infinite() => C2 | C0,
            _ if x.is_nan() => C0,
            _ if x.is_invalid() => 0,
            _ => C2,
        };
        let sign = if x.is_negative() { C1 } else { 0 };
        self.status = self.status & !(C0 | C1 | C2 | C3) | class | sign;
    }
}

/// Raises a denormal memory operand, unless something of higher priority came up.
#[inline]
fn note_denormal(denormal: bool, st0: F80, env: &mut Env) {
    if denormal && env.flags & (Flags::IE | Flags::ZE) == 0 && !st0.is_nan() {
        env.raise(Flags::DE);
    }
}
