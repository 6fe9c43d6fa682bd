//! Stack management and transcendental instructions.

use super::{C1, C2, X87};
use crate::fpu::env::{Env, Flags};
use crate::fpu::ext;
use crate::fpu::f80::F80;
use crate::fpu::transcendental as function;

impl X87 {
    /// FXCH.
    #[inline]
    pub fn fxch(&mut self, i: usize) {
        if self.is_empty(0) || self.is_empty(i) {
            return self.fxch_empty(i);
        }
        self.status &= !C1;
        self.exchange(i);
    }

    #[inline]
    fn exchange(&mut self, i: usize) {
        let (a, b) = (self.st(0), self.st(i));
        self.set_st_raw(0, b);
        self.set_st_raw(i, a);
    }

    #[cold]
    fn fxch_empty(&mut self, i: usize) {
        if !self.stack_underflow() {
            return;
        }
        for i in [0, i] {
            if self.is_empty(i) {
                self.set_st(i, F80::INDEFINITE);
            }
        }
        self.exchange(i);
    }

    /// FCMOVcc: ST(0) = ST(`i`) if `condition`.
    pub fn fcmov(&mut self, i: usize, condition: bool) {
        if self.is_empty(0) || self.is_empty(i) {
            if self.stack_underflow() {
                self.set_st(0, F80::INDEFINITE);
            }
            return;
        }
        if condition {
            self.set_st(0, self.st(i));
        }
    }

    /// FINCSTP.
    pub fn fincstp(&mut self) {
        self.status &= !C1;
        self.top = (self.top + 1) & 7;
    }

    /// FDECSTP.
    pub fn fdecstp(&mut self) {
        self.status &= !C1;
        self.top = self.top.wrapping_sub(1) & 7;
    }

    /// FFREE, and the undocumented FFREEP if `pop`.
    pub fn ffree(&mut self, i: usize, pop: bool) {
        self.status &= !C1;
        self.full &= !(1 << self.physical(i));
        if pop {
            self.pop();
        }
    }

    /// ST(1) = `f`(ST(1), ST(0)), then pop.
    fn binary_pop(&mut self, f: impl FnOnce(F80, F80, &mut Env) -> F80) {
        if self.is_empty(0) || self.is_empty(1) {
            if self.stack_underflow() {
                self.set_st(1, F80::INDEFINITE);
                self.pop();
            }
            return;
        }
        let mut env = self.env;
        let result = f(self.st(1), self.st(0), &mut env);
        if self.conclude(&env) {
            self.set_st(1, result);
            self.pop();
        }
    }

    /// Replaces ST(0) by the first result of `f` and pushes the second; C2 and nothing else if there
    /// is none.
    fn unary_push(&mut self, f: impl FnOnce(F80, &mut Env) -> Option<(F80, F80)>) {
        self.status &= !C2;
        let (underflow, overflow) = (self.is_empty(0), !self.is_empty(7));
        if underflow || overflow {
            let masked = if underflow { self.stack_underflow() } else { self.stack_overflow() };
            if masked {
                self.set_st(0, F80::INDEFINITE);
                self.push(F80::INDEFINITE);
            }
            return;
        }
        let mut env = self.env;
        match f(self.st(0), &mut env) {
            Some((result, pushed)) => {
                if self.conclude(&env) {
                    self.set_st(0, result);
                    self.push(pushed);
                }
            }
            None => self.status = self.status & !C1 | C2,
        }
    }

    /// ST(0) = `f`(ST(0)); C2 and nothing else if there is no result.
    fn unary_ranged(&mut self, f: impl FnOnce(F80, &mut Env) -> Option<F80>) {
        self.status &= !C2;
        let mut in_range = true;
        self.unary(|x, env| {
            f(x, env).unwrap_or_else(|| {
                in_range = false;
                x
            })
        });
        if !in_range {
            self.status |= C2;
        }
    }

    /// FXTRACT.
    pub fn fxtract(&mut self) {
        let c2 = self.status & C2;
        self.unary_push(|x, env| Some(ext::extract(x, env)));
        self.status |= c2;
    }

    /// F2XM1.
    pub fn f2xm1(&mut self) {
        self.unary(function::exp2_m1);
    }

    /// FYL2X.
    pub fn fyl2x(&mut self) {
        self.binary_pop(function::y_log2);
    }

    /// FYL2XP1.
    pub fn fyl2xp1(&mut self) {
        self.binary_pop(function::y_log2_p1);
    }

    /// FPATAN.
    pub fn fpatan(&mut self) {
        self.binary_pop(function::atan2);
    }

    /// FSIN.
    pub fn fsin(&mut self) {
        self.unary_ranged(function::sin);
    }

    /// FCOS.
    pub fn fcos(&mut self) {
        self.unary_ranged(function::cos);
    }

    /// FSINCOS.
    pub fn fsincos(&mut self) {
        self.unary_push(function::sincos);
    }

    /// FPTAN.
    pub fn fptan(&mut self) {
        self.unary_push(function::tan);
    }

    /// FNSTENV's after-effect, once its image is in memory: all exceptions are masked.
    pub fn mask_all(&mut self) {
        self.set_control_word(self.control | u16::from(Flags::ALL));
    }
}
