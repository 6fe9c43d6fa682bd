//! SSE in host code.
//!
//! Scalar arithmetic is the host's own where nothing can happen but rounding to nearest: the operands are normal
//! numbers, the result is normal and clear of the smallest, and the guest has precision recorded and masked.
//! The handlers do everything else, zeros too (see [`crate::fpu`]).

use std::mem::offset_of;

use super::asm::{Arith, R8, RAX, RCX, Reg, Rm, Turn, cc};
use super::emit::{Access, Emitter, adjust, aux, field, result, slot};
use super::template::Vector;
use crate::cpu::{Cpu, cr0, cr4};
use crate::op::Op;
use crate::sse::Mxcsr;

/// Opcodes of the map 0FH.
mod opcode {
    /// MOVUPS, MOVSS, MOVSD from memory or register.
    pub const LOAD: u8 = 0x10;
    /// To memory.
    pub const STORE: u8 = 0x11;
    pub const FROM_INTEGER: u8 = 0x2a;
    pub const TRUNCATE: u8 = 0x2c;
    pub const COMPARE: u8 = 0x2e;
    pub const SQUARE_ROOT: u8 = 0x51;
    /// MOVD, MOVQ from and to a general register, with prefix 66H.
    pub const FROM_GENERAL: u8 = 0x6e;
    pub const TO_GENERAL: u8 = 0x7e;
}

/// The prefix for scalars of `size` bytes.
fn scalar(size: u8) -> u8 {
    if size == 8 { 0xf2 } else { 0xf3 }
}

/// The guest's SSE register `r`.
fn xmm(r: u8) -> Rm {
    field(offset_of!(Cpu, xmm) + 16 * usize::from(r & 31))
}

/// A half of the guest's SSE register `r`.
fn half(r: u8, high: bool) -> Rm {
    field(offset_of!(Cpu, xmm) + 16 * usize::from(r & 31) + 8 * usize::from(high))
}

fn mxcsr() -> Rm {
    field(offset_of!(Cpu, mxcsr) + Mxcsr::VALUE)
}

impl Vector {
    /// The form of the memory operand's address, if there is one.
    pub fn form(self) -> Option<u8> {
        match self {
            Self::Load { form, .. } | Self::Store { form, .. } => Some(form),
            Self::Packed { form, .. } | Self::Float { form, .. } => form,
            _ => None,
        }
    }
}

impl Emitter<'_> {
    /// An operation of SSE. XMM0 and XMM1 are free.
    pub(super) fn vector(&mut self, op: &Op, vector: Vector) {
        use Vector as V;
        match vector {
            V::Check => {
                let off = (cr0::EM | cr0::TS) as i32;
                self.asm.test_imm(4, field(offset_of!(Cpu, cr0)), off);
                self.instead_if(cc::NE);
                self.asm.test_imm(4, field(offset_of!(Cpu, cr4)), cr4::OSFXSR as i32);
                self.instead_if(cc::E);
            }
            V::Load { size, aligned, form } => self.load_vector(op, size, aligned, form),
            V::Store { size, aligned, form } => self.store_vector(op, size, aligned, form),
            V::Move { size, clears } => self.move_vector(op, size, clears),
            V::Packed { opcode, form } => {
                match form {
                    Some(form) => {
                        self.aligned_operand(op, form);
                        self.asm.sse(0, opcode::LOAD, 1, Rm::Mem(RAX, 0));
                    }
                    None => self.asm.sse(0, opcode::LOAD, 1, xmm(op.r2)),
                }
                self.asm.sse(0, opcode::LOAD, 0, xmm(op.r1));
                self.asm.sse(0x66, opcode, 0, Rm::Reg(XMM1));
                self.asm.sse(0, opcode::STORE, 0, xmm(op.r1));
            }
            V::Shift { opcode, number } => {
                self.asm.sse(0, opcode::LOAD, 0, xmm(op.r1));
                self.asm.sse(0x66, opcode, number, Rm::Reg(XMM0));
                self.asm.with(op.imm as u8);
                self.asm.sse(0, opcode::STORE, 0, xmm(op.r1));
            }
            V::Shuffle { prefix, opcode } => {
                self.asm.sse(0, opcode::LOAD, 1, xmm(op.r2));
                self.asm.sse(0, opcode::LOAD, 0, xmm(op.r1));
                self.asm.sse(prefix, opcode, 0, Rm::Reg(XMM1));
                self.asm.with(op.imm as u8);
                self.asm.sse(0, opcode::STORE, 0, xmm(op.r1));
            }
            V::Float { opcode, size, form } => self.float(op, opcode, size, form),
            V::FromGeneral { size } => {
                self.get(size, RAX, op.r2);
                self.asm.store(8, half(op.r1, false), RAX);
                self.asm.store_imm(8, half(op.r1, true), 0);
            }
            V::ToGeneral { size } => {
                self.asm.load(size, RAX, half(op.r2, false));
                self.put(size, op.r1, RAX);
            }
            V::FromInteger { from, to } => {
                self.rounds();
                self.asm.load_signed(from, 8, RAX, slot(from, op.r2));
                self.asm.sse_wide(scalar(to), opcode::FROM_INTEGER, 0, Rm::Reg(RAX));
                self.asm.sse(scalar(to), opcode::STORE, 0, xmm(op.r1));
            }
            V::ToInteger { from, to } => {
                self.rounds();
                self.asm.sse(scalar(from), opcode::LOAD, 0, xmm(op.r2));
                if to == 8 {
                    self.asm.sse_wide(scalar(from), opcode::TRUNCATE, RAX_NUMBER, Rm::Reg(XMM0));
                } else {
                    self.asm.sse(scalar(from), opcode::TRUNCATE, RAX_NUMBER, Rm::Reg(XMM0));
                }
                // The indefinite integer may stand for an invalid operation.
                self.asm.constant(RCX, 1 << (8 * to - 1));
                self.asm.arith(Arith::Cmp, to, RAX, Rm::Reg(RCX));
                self.instead_if(cc::E);
                self.put(to, op.r1, RAX);
            }
            V::Compare { size } => self.compare_floats(op, size),
        }
    }

    /// The host address of a memory operand of 16 bytes that must be aligned, in RAX.
    fn aligned_operand(&mut self, op: &Op, form: u8) {
        self.access(op, form, 16, Access::Read);
        self.asm.test_imm(1, Rm::Reg(RAX), 15);
        self.instead_if(cc::NE);
    }

    fn load_vector(&mut self, op: &Op, size: u8, aligned: bool, form: u8) {
        if aligned {
            self.aligned_operand(op, form);
        } else {
            self.access(op, form, size, Access::Read);
        }
        let prefix = if size == 16 { 0 } else { scalar(size) };
        self.asm.sse(prefix, opcode::LOAD, 0, Rm::Mem(RAX, 0));
        self.asm.sse(0, opcode::STORE, 0, xmm(op.r1));
    }

    fn store_vector(&mut self, op: &Op, size: u8, aligned: bool, form: u8) {
        self.access(op, form, size, Access::Write);
        if aligned {
            self.asm.test_imm(1, Rm::Reg(RAX), 15);
            self.instead_if(cc::NE);
        }
        let prefix = if size == 16 { 0 } else { scalar(size) };
        self.asm.sse(prefix, opcode::LOAD, 0, xmm(op.r2));
        self.asm.sse(prefix, opcode::STORE, 0, Rm::Mem(RAX, 0));
    }

    fn move_vector(&mut self, op: &Op, size: u8, clears: bool) {
        let prefix = if size == 16 { 0 } else { scalar(size) };
        self.asm.sse(prefix, opcode::LOAD, 0, xmm(op.r2));
        let whole = size == 16 || clears;
        self.asm.sse(if whole { 0 } else { prefix }, opcode::STORE, 0, xmm(op.r1));
    }

    // ---- floating point

    /// The handler does it unless the guest rounds to nearest with precision recorded and masked.
    fn rounds(&mut self) {
        self.asm.load(4, RCX, mxcsr());
        self.asm.arith_imm(Arith::And, 4, Rm::Reg(RCX), Mxcsr::DECIDES as i32);
        self.asm.arith_imm(Arith::Cmp, 4, Rm::Reg(RCX), Mxcsr::ROUNDS as i32);
        self.instead_if(cc::NE);
    }

    /// The handler does it unless the number in `r` is normal, not above `least` times the smallest. `r` and RDX
    /// are used up.
    fn normal(&mut self, size: u8, r: Reg, least: u64) {
        let (fraction, exponents) = if size == 8 { (52, 0x7ff) } else { (23, 0xff) };
        self.asm.turn(Turn::Shl, size, r, 1);
        self.asm.turn(Turn::Shr, size, r, fraction + 1);
        self.asm.arith_imm(Arith::Sub, 4, Rm::Reg(r), least as i32);
        self.asm.arith_imm(Arith::Cmp, 4, Rm::Reg(r), exponents - least as i32);
        self.instead_if(cc::AE);
    }

    /// The second operand, in XMM1, with its bits in RAX.
    fn second(&mut self, op: &Op, size: u8, form: Option<u8>) {
        match form {
            Some(form) => {
                self.access(op, form, size, Access::Read);
                self.asm.load(size, RAX, Rm::Mem(RAX, 0));
            }
            None => self.asm.load(size, RAX, xmm(op.r2)),
        }
        if size == 8 {
            self.asm.sse_wide(0x66, opcode::FROM_GENERAL, 1, Rm::Reg(RAX));
        } else {
            self.asm.sse(0x66, opcode::FROM_GENERAL, 1, Rm::Reg(RAX));
        }
    }

    fn float(&mut self, op: &Op, opcode: u8, size: u8, form: Option<u8>) {
        self.second(op, size, form);
        self.rounds();
        self.normal(size, RAX, 1);
        if opcode != opcode::SQUARE_ROOT {
            self.asm.load(size, RAX, xmm(op.r1));
            self.normal(size, RAX, 1);
            self.asm.sse(scalar(size), opcode::LOAD, 0, xmm(op.r1));
        }
        self.asm.sse(scalar(size), opcode, 0, Rm::Reg(XMM1));
        if size == 8 {
            self.asm.sse_wide(0x66, opcode::TO_GENERAL, 0, Rm::Reg(RAX));
        } else {
            self.asm.sse(0x66, opcode::TO_GENERAL, 0, Rm::Reg(RAX));
        }
        self.asm.copy(R8, RAX);
        self.normal(size, RAX, 2);
        self.asm.store(size, xmm(op.r1), R8);
    }

    /// Compares numbers that are normal or zero.
    fn compare_floats(&mut self, op: &Op, size: u8) {
        for r in [op.r1, op.r2] {
            // Zero, with either sign, is as good as a normal number here.
            self.asm.load(size, RAX, xmm(r));
            self.asm.copy(R8, RAX);
            self.asm.turn(Turn::Shl, size, R8, 1);
            let zero = self.asm.jump_if(cc::E);
            self.normal(size, RAX, 1);
            self.asm.bind(zero);
        }
        self.asm.sse(scalar(size), opcode::LOAD, 0, xmm(op.r1));
        let prefix = if size == 8 { 0x66 } else { 0 };
        self.asm.sse(prefix, opcode::COMPARE, 0, xmm(op.r2));
        // See `Flags::set`: a result for ZF, and what corrects its parity; OF, SF and AF are clear.
        self.asm.set(cc::NE, RAX);
        self.asm.arith(Arith::Sbb, 8, RCX, Rm::Reg(RCX));
        self.asm.widen(RAX);
        self.asm.turn(Turn::Shl, 8, RAX, 9);
        self.asm.turn(Turn::Shl, 8, RCX, 62);
        self.asm.arith_imm(Arith::Or, 8, Rm::Reg(RCX), 1);
        self.asm.store(8, result(), RAX);
        self.asm.store(8, adjust(), RAX);
        self.asm.store(8, aux(), RCX);
    }
}

// Encodings name SSE registers by the same numbers as general ones.
const XMM0: Reg = RAX;
const XMM1: Reg = RCX;
const RAX_NUMBER: u8 = 0;
