//! The x87 unit (SDM volume 1, chapter 8).
//!
//! Instructions are methods. Those that can read or write memory take and give values, so that the
//! caller can fault before anything changes: it reads first, calls, and for a store writes what it
//! got and only then pops ([`X87::pop`]). Waiting instructions must ask
//! [`X87::pending_exception`] first and raise #MF. The last instruction and data pointers are the
//! caller's to set.

mod arith;
mod image;
mod memory;
mod misc;

pub use arith::Arith;
pub use image::EnvForm;
pub use memory::Constant;

use super::env::{Compare, Env, Flags, Precision, Rounding};
use super::f80::F80;

/// Status word: stack fault.
const SF: u16 = 1 << 6;
/// Status word: an unmasked exception is pending.
const ES: u16 = 1 << 7;
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
/// Status word: busy, a copy of ES.
const BUSY: u16 = 1 << 15;
const CODES: u16 = C0 | C1 | C2 | C3;
/// What of the status word is kept: TOP, ES and B follow from other state.
const KEPT: u16 = Flags::ALL as u16 | SF | CODES;

/// The x87 unit's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X87 {
    /// Significands of R0 to R7: the MMX registers. Apart from the exponents, so that each half is
    /// loaded as it was stored and the host forwards it.
    significands: [u64; 8],
    /// Signs and exponents of R0 to R7.
    sign_exps: [u16; 8],
    /// Which of them are in use: the abridged tag word.
    full: u8,
    /// TOP, 0 to 7.
    top: u8,
    control: u16,
    /// What `control` says about computing, decoded.
    env: Env,
    status: u16,
    /// Opcode of the last non-control instruction, 11 bits.
    pub opcode: u16,
    /// Its address.
    pub ip: u64,
    /// Its code segment.
    pub cs: u16,
    /// The address of its memory operand.
    pub dp: u64,
    /// The segment of its memory operand.
    pub ds: u16,
}

impl Default for X87 {
    /// As FNINIT leaves it, registers zero.
    fn default() -> Self {
        Self {
            significands: [0; 8],
            sign_exps: [0; 8],
            full: 0,
            top: 0,
            control: 0x37f,
            env: Env::default(),
            status: 0,
            opcode: 0,
            ip: 0,
            cs: 0,
            dp: 0,
            ds: 0,
        }
    }
}

impl X87 {
    /// FNINIT. The data registers keep their contents.
    pub fn fninit(&mut self) {
        let (significands, sign_exps) = (self.significands, self.sign_exps);
        *self = Self { significands, sign_exps, ..Self::default() };
    }

    /// The control word (FNSTCW).
    #[inline]
    pub const fn control_word(&self) -> u16 {
        self.control
    }

    /// FLDCW. Reserved bits keep their fixed values.
    #[inline]
    pub fn set_control_word(&mut self, value: u16) {
        self.control = value & 0x1f3f | 0x40;
        self.env = Env {
            rounding: Rounding::from_bits(u32::from(value) >> 10),
            precision: match value >> 8 & 3 {
                0 => Precision::Single,
                2 => Precision::Double,
                _ => Precision::Extended,
            },
            masks: value as u8 & Flags::ALL,
            ..Env::default()
        };
    }

    /// The status word (FNSTSW).
    #[inline]
    pub const fn status_word(&self) -> u16 {
        let summary = if self.pending_exception() { ES | BUSY } else { 0 };
        self.status | (self.top as u16) << 11 | summary
    }

    /// Loads the status word, as FLDENV does: ES and B follow from the exceptions and their masks.
    pub fn set_status_word(&mut self, value: u16) {
        self.status = value & KEPT;
        self.top = (value >> 11 & 7) as u8;
    }

    /// Whether an unmasked exception is pending: the next waiting instruction raises #MF.
    #[inline]
    pub const fn pending_exception(&self) -> bool {
        self.status & !self.control & Flags::ALL as u16 != 0
    }

    /// FNCLEX.
    pub fn fnclex(&mut self) {
        self.status &= CODES;
    }

    /// Which physical registers are in use, a bit each: the tag word as FXSAVE stores it.
    #[inline]
    pub const fn abridged_tag(&self) -> u8 {
        self.full
    }

    /// Sets which physical registers are in use.
    #[inline]
    pub fn set_abridged_tag(&mut self, full: u8) {
        self.full = full;
    }

    /// TOP: the physical register that is ST(0).
    #[inline]
    pub const fn top(&self) -> u8 {
        self.top
    }

    /// The contents of ST(`i`), in use or not. `i` counts modulo 8.
    #[inline]
    pub fn st(&self, i: usize) -> F80 {
        let i = self.physical(i);
        F80::new(self.sign_exps[i], self.significands[i])
    }

    /// Overwrites the contents of ST(`i`), leaving its tag alone.
    #[inline]
    pub fn set_st_raw(&mut self, i: usize, value: F80) {
        let i = self.physical(i);
        self.significands[i] = value.mantissa;
        self.sign_exps[i] = value.sign_exp;
    }

    /// Whether ST(`i`) is empty.
    #[inline]
    pub fn is_empty(&self, i: usize) -> bool {
        self.full >> self.physical(i) & 1 == 0
    }

    /// MMX register `i`: the significand of physical register `i`.
    #[inline]
    pub fn mmx(&self, i: usize) -> u64 {
        self.significands[i & 7]
    }

    /// Writes MMX register `i`, which sets the sign and exponent bits of its alias.
    #[inline]
    pub fn set_mmx(&mut self, i: usize, value: u64) {
        self.significands[i & 7] = value;
        self.sign_exps[i & 7] = 0xffff;
    }

    /// What any MMX instruction but EMMS does first: TOP is 0, all registers are in use.
    #[inline]
    pub fn enter_mmx(&mut self) {
        self.top = 0;
        self.full = 0xff;
    }

    /// EMMS: all registers are empty.
    #[inline]
    pub fn emms(&mut self) {
        self.top = 0;
        self.full = 0;
    }

    /// Takes ST(0) off the stack. After a store-and-pop, once the value is in memory.
    #[inline]
    pub fn pop(&mut self) {
        self.full &= !(1 << self.top);
        self.top = (self.top + 1) & 7;
    }

    #[inline]
    fn physical(&self, i: usize) -> usize {
        (usize::from(self.top) + i) & 7
    }

    /// Writes ST(`i`) and marks it in use.
    #[inline]
    fn set_st(&mut self, i: usize, value: F80) {
        self.set_st_raw(i, value);
        self.full |= 1 << self.physical(i);
    }

    #[inline]
    fn push(&mut self, value: F80) {
        self.top = self.top.wrapping_sub(1) & 7;
        self.set_st(0, value);
    }

    /// Stack underflow. Whether the masked response is called for.
    #[cold]
    fn stack_underflow(&mut self) -> bool {
        self.status = self.status & !C1 | SF | u16::from(Flags::IE);
        self.control & u16::from(Flags::IE) != 0
    }

    /// Stack overflow. Whether the masked response is called for.
    #[cold]
    fn stack_overflow(&mut self) -> bool {
        self.status |= C1 | SF | u16::from(Flags::IE);
        self.control & u16::from(Flags::IE) != 0
    }

    /// Records what an instruction raised. Whether its result, in a register, may be written:
    /// exceptions found before computing leave everything as it was when unmasked.
    #[inline]
    fn conclude(&mut self, env: &Env) -> bool {
        self.status &= !C1;
        env.flags == 0 || self.record(env, false)
    }

    /// [`Self::conclude`] for a result in memory, which an unmasked overflow or underflow leaves
    /// unwritten too.
    #[inline]
    fn conclude_store(&mut self, env: &Env) -> bool {
        self.status &= !C1;
        env.flags == 0 || self.record(env, true)
    }

    fn record(&mut self, env: &Env, store: bool) -> bool {
        let unmasked = env.flags & !(self.control as u8);
        if unmasked & Flags::BEFORE != 0 {
            self.status |= u16::from(env.flags & Flags::BEFORE);
            return false;
        }
        if store && unmasked & (Flags::OE | Flags::UE) != 0 {
            self.status |= u16::from(env.flags & !Flags::PE);
            return false;
        }
        self.status |= u16::from(env.flags);
        if env.rounded_up && env.flags & Flags::PE != 0 {
            self.status |= C1;
        }
        true
    }

    /// Sets C3, C2 and C0 to the outcome of a comparison.
    #[inline]
    fn set_compare(&mut self, outcome: Compare) {
        self.status = self.status & !CODES
            | match outcome {
                Compare::Greater => 0,
                Compare::Less => C0,
                Compare::Equal => C3,
                Compare::Unordered => C3 | C2 | C0,
            };
    }
}
