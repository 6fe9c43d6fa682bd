//! Loads, constants and stores.

use super::{C1, X87};
use crate::fpu::convert;
use crate::fpu::env::{Env, Flags, Rounding};
use crate::fpu::f80::F80;
use crate::fpu::soft::{Binary32, Binary64, Format};

/// The constants of FLD1 to FLDZ, in the order of their encodings (D9 E8 to D9 EE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Constant {
    /// FLD1.
    One = 0,
    /// FLDL2T: log2(10).
    Log2Of10 = 1,
    /// FLDL2E: log2(e).
    Log2OfE = 2,
    /// FLDPI.
    Pi = 3,
    /// FLDLG2: log10(2).
    Log10Of2 = 4,
    /// FLDLN2: ln(2).
    LnOf2 = 5,
    /// FLDZ.
    Zero = 6,
}

impl X87 {
    /// Pushes what `load` makes, unless the stack is full.
    #[inline]
    fn load(&mut self, load: impl FnOnce(&mut Env) -> F80) {
        if !self.is_empty(7) {
            if self.stack_overflow() {
                self.push(F80::INDEFINITE);
            }
            return;
        }
        let mut env = self.env;
        let value = load(&mut env);
        // A load completes even when the denormal exception is unmasked.
        if self.conclude(&env) || env.flags & Flags::IE == 0 {
            self.push(value);
        }
    }

    /// As [`Self::load`], of a value that raises nothing. Short enough to be part of what calls it.
    #[inline]
    fn load_value(&mut self, value: F80) {
        if self.is_empty(7) {
            self.status &= !C1;
            self.push(value);
        } else if self.stack_overflow() {
            self.push(F80::INDEFINITE);
        }
    }

    /// FLD of a binary32.
    #[inline]
    pub fn fld_f32(&mut self, value: u32) {
        match convert::widen_normal::<Binary32>(value.into()) {
            Some(value) => self.load_value(value),
            None => self.fld_other::<Binary32>(value.into()),
        }
    }

    /// FLD of a binary64.
    #[inline]
    pub fn fld_f64(&mut self, value: u64) {
        match convert::widen_normal::<Binary64>(value) {
            Some(value) => self.load_value(value),
            None => self.fld_other::<Binary64>(value),
        }
    }

    /// FLD of what is no normal number.
    #[inline(never)]
    fn fld_other<F: Format>(&mut self, value: u64) {
        self.load(|env| convert::to_f80::<F>(value, env));
    }

    /// FLD of an 80-bit number, which raises nothing.
    #[inline]
    pub fn fld_f80(&mut self, bytes: [u8; 10]) {
        self.load_value(F80::from_bytes(bytes));
    }

    /// FLD ST(`i`).
    #[inline]
    pub fn fld_st(&mut self, i: usize) {
        if !self.is_empty(i) {
            self.load_value(self.st(i));
        } else if self.stack_underflow() {
            self.push(F80::INDEFINITE);
        }
    }

    /// FILD; narrower operands come sign-extended.
    #[inline]
    pub fn fild(&mut self, value: i64) {
        self.load_value(convert::int_to_f80(value));
    }

    /// FBLD.
    pub fn fbld(&mut self, bytes: [u8; 10]) {
        self.load(|_| convert::bcd_to_f80(bytes));
    }

    /// FLD1 to FLDZ.
    pub fn fld_constant(&mut self, constant: Constant) {
        // Each as rounded to nearest, and what the other rounding modes make of it: the first five
        // are rounded from more bits that the unit holds.
        let (sign_exp, nearest, exact_is_above) = match constant {
            Constant::One => (0x3fff, 0x8000_0000_0000_0000u64, None),
            Constant::Log2Of10 => (0x4000, 0xd49a_784b_cd1b_8afe, Some(true)),
            Constant::Log2OfE => (0x3fff, 0xb8aa_3b29_5c17_f0bc, Some(false)),
            Constant::Pi => (0x4000, 0xc90f_daa2_2168_c235, Some(false)),
            Constant::Log10Of2 => (0x3ffd, 0x9a20_9a84_fbcf_f799, Some(false)),
            Constant::LnOf2 => (0x3ffe, 0xb172_17f7_d1cf_79ac, Some(false)),
            Constant::Zero => (0, 0, None),
        };
        self.load(|env| {
            let mantissa = match (env.rounding, exact_is_above) {
                (Rounding::Up, Some(true)) => nearest + 1,
                (Rounding::Down | Rounding::Zero, Some(false)) => nearest - 1,
                _ => nearest,
            };
            F80::new(sign_exp, mantissa)
        });
    }

    /// What a store of ST(0) puts in memory: `f`'s result, or `empty` if there is no ST(0), or
    /// `None` if an unmasked exception leaves memory and stack as they were.
    #[inline]
    fn store<T>(&mut self, empty: T, f: impl FnOnce(F80, &mut Env) -> T) -> Option<T> {
        if self.is_empty(0) {
            return self.stack_underflow().then_some(empty);
        }
        let mut env = self.env;
        let value = f(self.st(0), &mut env);
        self.conclude_store(&env).then_some(value)
    }

    /// FST to a binary32. Gives what goes to memory, or `None` if an unmasked exception leaves
    /// memory and stack as they were; after FSTP's write the caller pops. So do the other stores.
    #[inline]
    pub fn fst_f32(&mut self) -> Option<u32> {
        self.store(0xffc0_0000, convert::f80_to_f32)
    }

    /// FST to a binary64.
    #[inline]
    pub fn fst_f64(&mut self) -> Option<u64> {
        self.store(0xfff8_0000_0000_0000, convert::f80_to_f64)
    }

    /// FSTP to 80 bits.
    #[inline]
    pub fn fst_f80(&mut self) -> Option<[u8; 10]> {
        self.store(F80::INDEFINITE.to_bytes(), |x, _| x.to_bytes())
    }

    /// FIST to 16, 32 or 64 `bits`, and FISTTP if `truncate`. The result is sign-extended.
    #[inline]
    pub fn fist(&mut self, bits: u32, truncate: bool) -> Option<i64> {
        self.store(i64::MIN >> (64 - bits), |x, env| {
            if truncate {
                env.rounding = Rounding::Zero;
            }
            convert::f80_to_int(x, bits, env)
        })
    }

    /// FBSTP.
    pub fn fbst(&mut self) -> Option<[u8; 10]> {
        self.store(convert::BCD_INDEFINITE, convert::f80_to_bcd)
    }

    /// FST and FSTP to ST(`i`).
    #[inline]
    pub fn fst_st(&mut self, i: usize, pop: bool) {
        let value = if self.is_empty(0) {
            if !self.stack_underflow() {
                return;
            }
            F80::INDEFINITE
        } else {
            self.status &= !C1;
            self.st(0)
        };
        self.set_st(i, value);
        if pop {
            self.pop();
        }
    }
}
