//! Host code of one block, from its operations.
//!
//! While it runs, RBX points into the processor's state; every guest register, and the flags, are in memory
//! between operations. RAX, RCX, RDX and R8 to R11 are free. What host code does not do itself, such as an
//! access that misses the TLB, it leaves to the operation's handler: nothing of the operation may have happened
//! then. A handler that goes on with the next operation is called alone; one that goes elsewhere, a branch's,
//! is jumped to.

use std::mem::offset_of;

use super::asm::{Arith, Asm, Jump, One, R8, R9, R10, R11, RAX, RBX, RCX, RDI, RDX, RSI, Reg, Rm, Turn, cc};
use super::template::{self, Binary, Source, Template};
use super::{BIAS, Places};
use crate::cpu::{Cpu, RBLOCK, reg};
use crate::flags::Flags;
use crate::int::HIGH_BYTE;
use crate::lower::form;
use crate::mmu::TlbPlaces;
use crate::op::{Op, OpRef};
use crate::ops::SEGMENT_BASE;

/// The processor's field at `offset`.
pub(super) fn field(offset: usize) -> Rm {
    Rm::Mem(RBX, offset as i32 - BIAS)
}

/// The register operand `r`, of which `size` bytes count.
pub(super) fn slot(size: u8, r: u8) -> Rm {
    let high = usize::from(size == 1 && r & HIGH_BYTE != 0);
    field(offset_of!(Cpu, regs) + 8 * usize::from(r & 31) + high)
}

fn sp() -> Rm {
    slot(8, reg::RSP)
}

fn block_start() -> Rm {
    slot(8, RBLOCK)
}

pub(super) fn result() -> Rm {
    field(offset_of!(Cpu, flags) + Flags::RESULT)
}

pub(super) fn aux() -> Rm {
    field(offset_of!(Cpu, flags) + Flags::AUX)
}

pub(super) fn adjust() -> Rm {
    field(offset_of!(Cpu, flags) + Flags::ADJUST)
}

/// Whether an access wants the TLB's tag for reading or writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A block's code under construction.
pub(super) struct Emitter<'a> {
    pub asm: Asm,
    places: &'a Places,
    /// Jumps to the handler of an operation, to be laid down behind the code.
    bails: Vec<(Jump, OpRef)>,
    /// Jumps to calls of the operation's handler, to be laid down behind the code.
    misses: Vec<Miss>,
    /// Operations to be called alone: where the code wants the address of a copy of this one.
    calls: Vec<Call>,
    /// The operation at hand.
    now: Now,
}

/// Numbers of operations in the block.
#[derive(Clone, Copy, Default)]
pub(super) struct Now {
    pub first: usize,
    /// How many belong to it.
    pub count: usize,
}

struct Miss {
    jump: Jump,
    op: Now,
    /// Where the code goes on, once it is known.
    resume: Option<u64>,
}

/// See [`Emitter::calls`].
pub(super) struct Call {
    /// Where in the code the copy's address is wanted.
    pub at: usize,
    pub op: Now,
}

impl<'a> Emitter<'a> {
    pub fn new(base: u64, places: &'a Places) -> Self {
        Self {
            asm: Asm::new(base),
            places,
            bails: Vec::new(),
            misses: Vec::new(),
            calls: Vec::new(),
            now: Now::default(),
        }
    }

    /// Lays down the code of a block whose operations are `ops`, at `first` and behind it. Returns the operations
    /// that are called.
    pub fn block(&mut self, first: OpRef, ops: &[Op]) -> Vec<Call> {
        let mut n = 0;
        while let Some(op) = ops.get(n) {
            n += self.operation(first.ahead(n), op, n, ops.len());
            let here = self.asm.here();
            for miss in self.misses.iter_mut().rev().take_while(|miss| miss.resume.is_none()) {
                miss.resume = Some(here);
            }
        }
        let mut last = None;
        for miss in std::mem::take(&mut self.misses) {
            match last {
                Some((op, place)) if op == miss.op.first => self.asm.bind_to(miss.jump, place),
                _ => {
                    last = Some((miss.op.first, self.asm.here()));
                    self.asm.bind(miss.jump);
                    self.call_alone(miss.op);
                    let resume = self.asm.jump();
                    self.asm.bind_to(resume, miss.resume.unwrap_or(self.places.back));
                }
            }
        }
        let mut last = None;
        for (jump, op) in std::mem::take(&mut self.bails) {
            match last {
                Some((other, place)) if other == op => self.asm.bind_to(jump, place),
                _ => {
                    last = Some((op, self.asm.here()));
                    self.asm.bind(jump);
                    self.asm.constant(RSI, op.addr());
                    let away = self.asm.jump();
                    self.asm.bind_to(away, self.places.leave);
                }
            }
        }
        std::mem::take(&mut self.calls)
    }

    /// One operation, and those that belong to it; says how many.
    fn operation(&mut self, at: OpRef, op: &Op, n: usize, all: usize) -> usize {
        let template = Self::chosen(op);
        let pair = matches!(template, Some(Template::PushPair | Template::PopPair));
        self.now = Now { first: n, count: if pair { 2 } else { 1 } };
        match template {
            Some(Template::Chooses) => {
                self.go_to(at);
                all - n
            }
            Some(template) => self.template(at, op, template),
            // What follows an exit's work is in the handler's hands.
            None if n + 1 == all => {
                self.go_to(at);
                1
            }
            None => {
                self.call_alone(self.now);
                1
            }
        }
    }

    /// The template for an operation, if there is one that does for its operands.
    pub fn chosen(op: &Op) -> Option<Template> {
        template::of(op.run).filter(|t| Self::suits(op, *t))
    }

    /// Whether host code can do what the template says with these operands.
    fn suits(op: &Op, template: Template) -> bool {
        use Template as T;
        let address = match template {
            T::Load { form, .. }
            | T::Store { form, .. }
            | T::StoreConstant { form, .. }
            | T::Lea { form, .. } => Some(form),
            T::Extend { form, .. } | T::Unary { form, .. } => form,
            T::Binary { source, .. } => match source {
                Source::Memory(form) | Source::ToMemory(form) | Source::ImmediateToMemory(form) => Some(form),
                Source::Register | Source::Immediate => None,
            },
            T::JumpMemory { form } | T::CallMemory { form } => Some(form),
            T::Vector(vector) => vector.form(),
            // Counts that leave nothing of a narrow operand have flags of their own.
            T::Shift { size, .. } => return op.imm < u64::from(size) * 8,
            _ => None,
        };
        address != Some(form::FULL) || op.scale & SEGMENT_BASE != 0 && !matches!(template, T::Lea { .. })
    }

    fn template(&mut self, at: OpRef, op: &Op, template: Template) -> usize {
        use Template as T;
        match template {
            T::Nothing => {}
            T::Copy { size } => {
                self.get(size, RAX, op.r2);
                self.put(size, op.r1, RAX);
            }
            T::Constant { size } => self.constant(size, op),
            T::Load { size, form } => {
                self.access(op, form, size, Access::Read);
                self.asm.load(size, RAX, Rm::Mem(RAX, 0));
                self.put(size, op.r1, RAX);
            }
            T::Store { size, form } => {
                self.access(op, form, size, Access::Write);
                self.get(size, RCX, op.r2);
                self.asm.store(size, Rm::Mem(RAX, 0), RCX);
            }
            T::StoreConstant { size, form } => {
                self.access(op, form, size, Access::Write);
                self.immediate(size, RCX, op.imm);
                self.asm.store(size, Rm::Mem(RAX, 0), RCX);
            }
            T::Extend { signed, to, from, form } => self.extend(op, (signed, to, from), form),
            T::Lea { size, form } => {
                self.address(op, form);
                if size == 4 {
                    // Only the lower half counts, and the upper one is cleared.
                    self.asm.load(4, RAX, Rm::Reg(RAX));
                }
                self.put(size, op.r1, RAX);
            }
            T::Binary { what, size, source } => self.binary(op, what, size, source),
            T::Unary { op: one, size, form, quiet } => self.unary(op, one, size, form, quiet),
            T::Shift { op: turn, size, quiet } => self.shift(op, turn, size, quiet),
            T::Multiply { size, immediate, quiet } => {
                if immediate {
                    self.get(size, RCX, op.r2);
                    self.immediate(size, RAX, op.imm);
                } else {
                    self.get(size, RAX, op.r1);
                    self.get(size, RCX, op.r2);
                }
                self.asm.multiply(size, RAX, Rm::Reg(RCX));
                if !quiet {
                    // Carry is overflow: CF xor OF is clear.
                    self.asm.arith(Arith::Sbb, 8, R8, Rm::Reg(R8));
                    self.asm.turn(Turn::Shl, 8, R8, 63);
                    self.asm.store(8, aux(), R8);
                    self.result_flags(size);
                    self.asm.store(8, adjust(), if size == 8 { RAX } else { RDX });
                }
                self.put(size, op.r1, RAX);
            }
            T::Widen { to } => {
                self.asm.load_signed(to / 2, if to == 8 { 8 } else { 4 }, RAX, slot(to / 2, reg::RAX));
                self.put(to, reg::RAX, RAX);
            }
            T::SignToDx { size } => {
                self.asm.load_signed(size, 8, RAX, slot(size, reg::RAX));
                self.asm.turn(Turn::Sar, 8, RAX, 63);
                if size == 4 {
                    self.asm.load(4, RAX, Rm::Reg(RAX));
                }
                self.put(size, reg::RDX, RAX);
            }
            T::Set { cc } => {
                let host = self.condition(cc);
                self.asm.set(host, RAX);
                self.put(1, op.r1, RAX);
            }
            T::Move { cc, size } => {
                let host = self.condition(cc);
                self.get(size, RAX, op.r1);
                self.get(size, RCX, op.r2);
                // Loads leave the host's flags alone.
                self.asm.cmov(host, 8, RAX, Rm::Reg(RCX));
                self.put(size, op.r1, RAX);
            }
            T::Vector(vector) => self.vector(op, vector),
            T::Push | T::PushConstant | T::PushPair | T::Pop | T::PopPair => {
                return self.stack(op, template);
            }
            _ => return self.branch(at, op, template),
        }
        1
    }

    // ---- registers and constants

    /// Loads the register operand `r`, zero-extended.
    pub(super) fn get(&mut self, size: u8, to: Reg, r: u8) {
        self.asm.load(size, to, slot(size, r));
    }

    /// Writes the register operand `r`. A 32-bit value is zero-extended already.
    pub(super) fn put(&mut self, size: u8, r: u8, from: Reg) {
        self.asm.store(if size == 4 { 8 } else { size }, slot(size, r), from);
    }

    /// An operation's immediate, cut to `size` bytes.
    fn immediate(&mut self, size: u8, to: Reg, v: u64) {
        self.asm.constant(to, v & u64::MAX >> (64 - 8 * u32::from(size)));
    }

    fn constant(&mut self, size: u8, op: &Op) {
        let v = if size == 4 { op.imm & 0xffff_ffff } else { op.imm };
        match i32::try_from(v as i64) {
            Ok(v) => self.asm.store_imm(if size == 4 { 8 } else { size }, slot(size, op.r1), v),
            Err(_) => {
                self.asm.constant(RAX, v);
                self.put(size, op.r1, RAX);
            }
        }
    }

    // ---- memory

    /// The linear address of the memory operand, in RAX.
    fn address(&mut self, op: &Op, form: u8) {
        self.asm.load(8, RAX, slot(8, op.base));
        let indexed = form != form::BASE && op.index & 31 != crate::cpu::RZERO;
        if indexed {
            self.asm.load(8, RCX, slot(8, op.index));
            self.asm.lea(8, RAX, Rm::Sib(RAX, RCX, op.scale & 3, op.disp));
        } else if op.disp != 0 {
            self.asm.arith_imm(Arith::Add, 8, Rm::Reg(RAX), op.disp);
        }
        if form == form::FULL {
            let base = field(offset_of!(Cpu, ea_base) + 8 * usize::from(op.seg & 7));
            self.asm.arith(Arith::Add, 8, RAX, base);
        }
    }

    /// If the host's condition holds, the handler does all of the operation instead.
    pub(super) fn instead_if(&mut self, host: u8) {
        let jump = self.asm.jump_if(host);
        self.misses.push(Miss { jump, op: self.now, resume: None });
    }

    /// Makes the host address in RAX of the linear address there. If the TLB does not know it, the handler does all of
    /// the operation instead; that of `branch`, which does not come back, if there is one.
    fn translate(&mut self, branch: Option<OpRef>, size: u8, access: Access) {
        let tag = match access {
            Access::Read => TlbPlaces::READ,
            Access::Write => TlbPlaces::WRITE,
        };
        tlb_entry(&mut self.asm, RCX, RAX);
        self.asm.lea(8, RDX, Rm::Mem(RAX, i32::from(size) - 1));
        self.asm.arith_imm(Arith::And, 8, Rm::Reg(RDX), -4096);
        self.asm.arith(Arith::Xor, 8, RDX, Rm::Mem(RCX, tag as i32));
        self.asm.arith(Arith::Cmp, 8, RDX, field(TlbPlaces::ASID));
        match branch {
            Some(at) => {
                let jump = self.asm.jump_if(cc::NE);
                self.bails.push((jump, at));
            }
            None => self.instead_if(cc::NE),
        }
        self.asm.arith(Arith::Add, 8, RAX, Rm::Mem(RCX, TlbPlaces::ADDEND as i32));
    }

    /// The host address of the memory operand, in RAX.
    pub(super) fn access(&mut self, op: &Op, form: u8, size: u8, access: Access) {
        self.address(op, form);
        self.translate(None, size, access);
    }

    fn extend(&mut self, op: &Op, (signed, to, from): (bool, u8, u8), form: Option<u8>) {
        let source = match form {
            Some(form) => {
                self.access(op, form, from, Access::Read);
                Rm::Mem(RAX, 0)
            }
            None => slot(from, op.r2),
        };
        if signed {
            self.asm.load_signed(from, to.max(4), RAX, source);
        } else {
            self.asm.load(from, RAX, source);
        }
        self.put(to, op.r1, RAX);
    }

    // ---- arithmetic

    fn binary(&mut self, op: &Op, what: Binary, size: u8, source: Source) {
        // RAX is the first operand, RCX the second, R10 the address of a destination in memory.
        match source {
            Source::Register => {
                self.get(size, RAX, op.r1);
                self.get(size, RCX, op.r2);
            }
            Source::Immediate => {
                self.get(size, RAX, op.r1);
                self.immediate(size, RCX, op.imm);
            }
            Source::Memory(form) => {
                self.access(op, form, size, Access::Read);
                self.asm.load(size, RCX, Rm::Mem(RAX, 0));
                self.get(size, RAX, op.r1);
            }
            Source::ToMemory(form) | Source::ImmediateToMemory(form) => {
                let access = if what.writes { Access::Write } else { Access::Read };
                self.access(op, form, size, access);
                self.asm.copy(R10, RAX);
                self.asm.load(size, RAX, Rm::Mem(R10, 0));
                match source {
                    Source::ToMemory(_) => self.get(size, RCX, op.r2),
                    _ => self.immediate(size, RCX, op.imm),
                }
            }
        }
        if what.quiet && !what.writes {
            return;
        }
        self.compute(what, size);
        if what.writes {
            match source {
                Source::ToMemory(_) | Source::ImmediateToMemory(_) => {
                    self.asm.store(size, Rm::Mem(R10, 0), RAX);
                }
                _ => self.put(size, op.r1, RAX),
            }
        }
    }

    /// RAX = RAX op RCX, and the flags.
    fn compute(&mut self, what: Binary, size: u8) {
        let logic = matches!(what.op, Arith::And | Arith::Or | Arith::Xor);
        let carry = matches!(what.op, Arith::Adc | Arith::Sbb);
        if !logic && !what.quiet {
            self.asm.copy(R11, RAX);
            self.asm.arith(Arith::Xor, 8, R11, Rm::Reg(RCX));
        }
        if carry {
            self.asm.load(8, R8, aux());
            self.asm.arith(Arith::Add, 8, R8, Rm::Reg(R8));
        }
        let host = if what.op == Arith::Cmp { Arith::Sub } else { what.op };
        self.asm.arith(host, size, RAX, Rm::Reg(RCX));
        if what.quiet {
            return;
        }
        if logic {
            self.logic_flags(size);
        } else {
            self.carries();
            self.asm.store(8, adjust(), R11);
            self.result_flags(size);
        }
    }

    /// Carry and overflow of the host into the guest's flags.
    fn carries(&mut self) {
        self.asm.set(cc::O, R9);
        self.asm.arith(Arith::Sbb, 8, R8, Rm::Reg(R8));
        self.asm.widen(R9);
        self.asm.turn(Turn::Shl, 8, R9, 62);
        self.asm.turn(Turn::Shl, 8, R8, 62);
        self.asm.arith(Arith::Xor, 8, R8, Rm::Reg(R9));
        self.asm.store(8, aux(), R8);
    }

    /// The result in RAX, for zero, sign and parity; RDX is its sign-extension then.
    fn result_flags(&mut self, size: u8) {
        if size == 8 {
            self.asm.store(8, result(), RAX);
        } else {
            self.asm.load_signed(size, 8, RDX, Rm::Reg(RAX));
            self.asm.store(8, result(), RDX);
        }
    }

    /// The flags after a logical operation with its result in RAX.
    fn logic_flags(&mut self, size: u8) {
        self.asm.store_imm(8, aux(), 0);
        self.result_flags(size);
        self.asm.store(8, adjust(), if size == 8 { RAX } else { RDX });
    }

    fn unary(&mut self, op: &Op, one: One, size: u8, form: Option<u8>, quiet: bool) {
        match form {
            Some(form) => {
                self.access(op, form, size, Access::Write);
                self.asm.copy(R10, RAX);
                self.asm.load(size, RAX, Rm::Mem(R10, 0));
            }
            None => self.get(size, RAX, op.r1),
        }
        let flags = !quiet && one != One::Not;
        if flags {
            // Of INC and DEC, bit 4 of the operand and the result differ where there was a carry; of NEG, the
            // other operand is 0.
            self.asm.store(8, adjust(), RAX);
        }
        self.asm.one(one, size, RAX);
        match one {
            _ if !flags => {}
            One::Neg => self.carries(),
            _ => self.overflow_beside_carry(),
        }
        if flags {
            self.result_flags(size);
        }
        match form {
            Some(_) => self.asm.store(size, Rm::Mem(R10, 0), RAX),
            None => self.put(size, op.r1, RAX),
        }
    }

    /// The host's overflow into the guest's flags; carry stays.
    fn overflow_beside_carry(&mut self) {
        self.asm.set(cc::O, R9);
        self.asm.widen(R9);
        self.asm.load(8, R8, aux());
        self.asm.turn(Turn::Sar, 8, R8, 63);
        self.asm.turn(Turn::Shl, 8, R9, 62);
        self.asm.turn(Turn::Shl, 8, R8, 62);
        self.asm.arith(Arith::Xor, 8, R8, Rm::Reg(R9));
        self.asm.store(8, aux(), R8);
    }

    fn shift(&mut self, op: &Op, turn: Turn, size: u8, quiet: bool) {
        let n = op.imm as u8;
        self.get(size, RAX, op.r1);
        self.asm.turn(turn, size, RAX, n);
        if !quiet {
            match turn {
                // CF xor OF is the result's sign for every count, not for 1 alone.
                Turn::Shl => {
                    self.asm.arith(Arith::Sbb, 8, R8, Rm::Reg(R8));
                    self.asm.turn(Turn::Shl, 8, R8, 63);
                    self.asm.load_signed(size, 8, R9, Rm::Reg(RAX));
                    self.asm.turn(Turn::Shr, 8, R9, 63);
                    self.asm.turn(Turn::Shl, 8, R9, 62);
                    self.asm.arith(Arith::Or, 8, R8, Rm::Reg(R9));
                    self.asm.store(8, aux(), R8);
                }
                Turn::Shr if n == 1 => self.carries(),
                _ => {
                    self.asm.arith(Arith::Sbb, 8, R8, Rm::Reg(R8));
                    self.asm.turn(Turn::Shl, 8, R8, 62);
                    self.asm.store(8, aux(), R8);
                }
            }
            self.result_flags(size);
            self.asm.store(8, adjust(), if size == 8 { RAX } else { RDX });
        }
        self.put(size, op.r1, RAX);
    }

    // ---- conditions

    /// Works out the guest's condition `cc`; returns the host's that says so. Uses RAX, RCX.
    fn condition(&mut self, cc: u8) -> u8 {
        let when = match cc >> 1 {
            0 => {
                self.overflow();
                cc::S
            }
            1 => {
                self.asm.arith_imm(Arith::Cmp, 8, aux(), 0);
                cc::S
            }
            2 => {
                self.asm.arith_imm(Arith::Cmp, 8, result(), 0);
                cc::E
            }
            3 => {
                self.asm.load(8, RCX, aux());
                self.or_zero()
            }
            4 => {
                self.sign();
                self.asm.test(8, RCX, RCX);
                cc::S
            }
            5 => {
                self.asm.load(1, RAX, result());
                self.asm.arith(Arith::Xor, 1, RAX, aux());
                cc::P
            }
            6 => {
                self.less();
                cc::S
            }
            _ => {
                self.less();
                self.or_zero()
            }
        };
        when ^ cc & 1
    }

    /// Bit 63 of RCX: overflow.
    fn overflow(&mut self) {
        self.asm.load(8, RCX, aux());
        self.asm.lea(8, RAX, Rm::Sib(RCX, RCX, 0, 0));
        self.asm.arith(Arith::Xor, 8, RCX, Rm::Reg(RAX));
    }

    /// Bit 63 of RCX: sign.
    fn sign(&mut self) {
        self.asm.load(8, RCX, aux());
        self.asm.turn(Turn::Shl, 8, RCX, 55);
        self.asm.arith(Arith::Xor, 8, RCX, result());
    }

    /// Bit 63 of RCX, and the host's sign flag: whether sign and overflow differ.
    fn less(&mut self) {
        self.sign();
        self.asm.load(8, RAX, aux());
        self.asm.arith(Arith::Xor, 8, RCX, Rm::Reg(RAX));
        self.asm.arith(Arith::Add, 8, RAX, Rm::Reg(RAX));
        self.asm.arith(Arith::Xor, 8, RCX, Rm::Reg(RAX));
    }

    /// Bit 63 of RCX, or zero; returns the condition.
    fn or_zero(&mut self) -> u8 {
        self.asm.turn(Turn::Shr, 8, RCX, 63);
        self.asm.arith_imm(Arith::Cmp, 8, result(), 0);
        self.asm.set(cc::E, RAX);
        self.asm.arith(Arith::Or, 1, RCX, Rm::Reg(RAX));
        cc::NE
    }

    // ---- the stack

    fn stack(&mut self, op: &Op, template: Template) -> usize {
        match template {
            Template::Push => {
                self.below(None, 8);
                self.get(8, RCX, op.r2);
                self.asm.store(8, Rm::Mem(RAX, 0), RCX);
                self.asm.arith_imm(Arith::Sub, 8, sp(), 8);
            }
            Template::PushConstant => {
                self.below(None, 8);
                self.asm.constant(RCX, op.imm);
                self.asm.store(8, Rm::Mem(RAX, 0), RCX);
                self.asm.arith_imm(Arith::Sub, 8, sp(), 8);
            }
            Template::PushPair => {
                self.below(None, 16);
                self.get(8, RCX, op.r2);
                self.asm.store(8, Rm::Mem(RAX, 8), RCX);
                self.get(8, RCX, op.r1);
                self.asm.store(8, Rm::Mem(RAX, 0), RCX);
                self.asm.arith_imm(Arith::Sub, 8, sp(), 16);
                return 2;
            }
            Template::Pop => {
                self.top(None, 8);
                self.asm.load(8, RAX, Rm::Mem(RAX, 0));
                // POP RSP: what was popped counts.
                self.asm.arith_imm(Arith::Add, 8, sp(), 8);
                self.put(8, op.r1, RAX);
            }
            _ => {
                self.top(None, 16);
                self.asm.load(8, RCX, Rm::Mem(RAX, 0));
                self.put(8, op.r1, RCX);
                self.asm.load(8, RCX, Rm::Mem(RAX, 8));
                self.put(8, op.r2, RCX);
                self.asm.arith_imm(Arith::Add, 8, sp(), 16);
                return 2;
            }
        }
        1
    }

    /// The host address of the `size` bytes below the stack's top, in RAX.
    fn below(&mut self, branch: Option<OpRef>, size: u8) {
        self.asm.load(8, RAX, sp());
        self.asm.arith_imm(Arith::Sub, 8, Rm::Reg(RAX), size.into());
        self.translate(branch, size, Access::Write);
    }

    /// The host address of the stack's top, in RAX.
    fn top(&mut self, branch: Option<OpRef>, size: u8) {
        self.asm.load(8, RAX, sp());
        self.translate(branch, size, Access::Read);
    }

    // ---- branches

    fn branch(&mut self, at: OpRef, op: &Op, template: Template) -> usize {
        use Template as T;
        match template {
            T::Jump { cc } => {
                let host = self.condition(cc);
                self.exits(at, host)
            }
            T::CompareJump { cc, size, immediate } => {
                self.operands(op, size, immediate);
                self.asm.copy(R10, RAX);
                self.compute(Binary { op: Arith::Cmp, writes: false, quiet: false }, size);
                self.asm.arith(Arith::Cmp, size, R10, Rm::Reg(RCX));
                self.exits(at, cc)
            }
            T::TestJump { cc, size, immediate } => {
                self.operands(op, size, immediate);
                self.compute(Binary { op: Arith::And, writes: false, quiet: false }, size);
                self.asm.test(size, RAX, RAX);
                self.exits(at, cc)
            }
            T::Call => {
                self.below(Some(at), 8);
                self.return_address(op, RCX);
                self.asm.store(8, Rm::Mem(RAX, 0), RCX);
                self.asm.arith_imm(Arith::Sub, 8, sp(), 8);
                1
            }
            T::Return => {
                self.top(Some(at), 8);
                self.asm.load(8, RAX, Rm::Mem(RAX, 0));
                self.look_up(at, op);
                self.asm.arith_imm(Arith::Add, 8, sp(), (op.imm & 0xffff) as i32 + 8);
                self.enter_found();
                1
            }
            T::JumpRegister => {
                self.get(8, RAX, op.r1);
                self.look_up(at, op);
                self.enter_found();
                1
            }
            T::JumpMemory { form } => {
                self.address(op, form);
                self.translate(Some(at), 8, Access::Read);
                self.asm.load(8, RAX, Rm::Mem(RAX, 0));
                self.look_up(at, op);
                self.enter_found();
                1
            }
            T::CallRegister | T::CallMemory { .. } => {
                if let T::CallMemory { form } = template {
                    self.address(op, form);
                    self.translate(Some(at), 8, Access::Read);
                    self.asm.load(8, RAX, Rm::Mem(RAX, 0));
                } else {
                    self.get(8, RAX, op.r1);
                }
                self.look_up(at, op);
                self.below(Some(at), 8);
                self.return_address(op, RCX);
                self.asm.store(8, Rm::Mem(RAX, 0), RCX);
                self.asm.arith_imm(Arith::Sub, 8, sp(), 8);
                self.enter_found();
                1
            }
            T::ExitFar => {
                self.exit_far(at);
                1
            }
            _ => {
                self.exit_link(at);
                1
            }
        }
    }

    fn operands(&mut self, op: &Op, size: u8, immediate: bool) {
        self.get(size, RAX, op.r1);
        if immediate {
            self.immediate(size, RCX, op.imm);
        } else {
            self.get(size, RCX, op.r2);
        }
    }

    /// Goes through one of the two exits behind `at`: the first if the host's condition holds.
    fn exits(&mut self, at: OpRef, host: u8) -> usize {
        let taken = self.asm.jump_if(host);
        self.exit(at.ahead(2));
        self.asm.bind(taken);
        self.exit(at.ahead(1));
        3
    }

    fn exit(&mut self, exit: OpRef) {
        match template::of(exit.run) {
            Some(Template::ExitLink) => self.exit_link(exit),
            Some(Template::ExitFar) => self.exit_far(exit),
            _ => self.go_to(exit),
        }
    }

    fn return_address(&mut self, op: &Op, to: Reg) {
        self.asm.load(8, to, block_start());
        self.asm.arith_imm(Arith::Add, 8, Rm::Reg(to), i32::from(op.off) + i32::from(op.len));
    }

    /// The instruction count after `executed` more, in `to`; where the chain may not go on, `at` is left to the
    /// interpreter.
    fn count(&mut self, at: OpRef, executed: u8, to: Reg) {
        let (late, signal) = count(&mut self.asm, self.places, to, Executed::Constant(executed));
        self.bails.push((late, at));
        self.bails.push((signal, at));
    }

    /// See [`crate::ops::branch::exit_link`].
    fn exit_link(&mut self, exit: OpRef) {
        self.count(exit, exit.nth, R10);
        self.asm.constant(RDX, exit.addr());
        self.asm.load(8, RSI, Rm::Mem(RDX, offset_of!(Op, imm) as i32));
        self.asm.test(8, RSI, RSI);
        let unlinked = self.asm.jump_if(cc::E);
        self.bails.push((unlinked, exit));
        self.asm.arith_imm(Arith::Add, 8, block_start(), exit.disp);
        self.asm.store(8, field(offset_of!(Cpu, icount)), R10);
        self.asm.jump_to_mem(Rm::Mem(RSI, offset_of!(Op, imm) as i32));
    }

    /// See [`crate::ops::branch::exit_far`].
    fn exit_far(&mut self, exit: OpRef) {
        self.count(exit, exit.nth, R10);
        self.asm.load(8, RAX, block_start());
        self.asm.arith_imm(Arith::Add, 8, Rm::Reg(RAX), exit.disp);
        self.asm.constant(RDX, exit.addr());
        self.asm.copy(RCX, RAX);
        self.asm.arith_imm(Arith::And, 8, Rm::Reg(RCX), -4096);
        self.asm.arith(Arith::Or, 8, RCX, field(TlbPlaces::ASID));
        self.asm.arith(Arith::Cmp, 8, RCX, Rm::Mem(RDX, offset_of!(Op, imm) as i32));
        let other = self.asm.jump_if(cc::NE);
        self.bails.push((other, exit));
        self.asm.load(2, RCX, Rm::Mem(RDX, offset_of!(Op, aux) as i32));
        self.asm.arith(Arith::Cmp, 2, RCX, field(TlbPlaces::ERA));
        let over = self.asm.jump_if(cc::NE);
        self.bails.push((over, exit));
        // The number of the target's first operation is in place of the register operands.
        self.asm.load(4, RSI, Rm::Mem(RDX, offset_of!(Op, r1) as i32));
        self.asm.turn(Turn::Shl, 8, RSI, size_of::<Op>().trailing_zeros() as u8);
        self.asm.constant(RCX, self.places.ops);
        self.asm.arith(Arith::Add, 8, RSI, Rm::Reg(RCX));
        self.asm.store(8, block_start(), RAX);
        self.asm.store(8, field(offset_of!(Cpu, icount)), R10);
        self.asm.jump_to_mem(Rm::Mem(RSI, offset_of!(Op, imm) as i32));
    }

    /// Looks up the block at the address in RAX; leaves `at` to the interpreter if there is none at hand. RSI is its
    /// first operation then, R10 the instruction count, R11 the address.
    fn look_up(&mut self, at: OpRef, op: &Op) {
        self.asm.constant(RDX, u64::from(op.nth) + 1);
        let call = self.asm.call();
        self.asm.bind_to(call, self.places.look_up);
        self.asm.test(8, RSI, RSI);
        let none = self.asm.jump_if(cc::E);
        self.bails.push((none, at));
    }

    /// Enters what [`Emitter::look_up`] found.
    fn enter_found(&mut self) {
        self.asm.store(8, block_start(), R11);
        self.asm.store(8, field(offset_of!(Cpu, icount)), R10);
        self.asm.jump_to_mem(Rm::Mem(RSI, offset_of!(Op, imm) as i32));
    }

    // ---- handlers

    /// Leaves the code to `at`'s handler.
    fn go_to(&mut self, at: OpRef) {
        self.asm.constant(RSI, at.addr());
        leave(&mut self.asm);
    }

    /// Calls a handler for its operation alone: for a copy that is followed by one that comes back.
    fn call_alone(&mut self, op: Now) {
        self.asm.lea(8, RDI, Rm::Mem(RBX, -BIAS));
        // Too wide for a shorter form.
        self.asm.constant(RSI, u64::MAX >> 1);
        self.calls.push(Call { at: self.asm.code.len() - 8, op });
        self.asm.call_mem(Rm::Mem(RSI, offset_of!(Op, run) as i32));
        self.asm.test(1, RAX, RAX);
        let ended = self.asm.jump_if(cc::NE);
        self.asm.bind_to(ended, self.places.back);
    }
}

/// Leaves the code to the handler of the operation in RSI.
pub(super) fn leave(asm: &mut Asm) {
    asm.lea(8, RDI, Rm::Mem(RBX, -BIAS));
    asm.pop(RBX);
    asm.jump_to_mem(Rm::Mem(RSI, offset_of!(Op, run) as i32));
}

/// The address of the TLB entry for the linear address in `lin`.
fn tlb_entry(asm: &mut Asm, entry: Reg, lin: Reg) {
    let bits = TlbPlaces::ENTRY.trailing_zeros() as u8;
    asm.copy(entry, lin);
    asm.turn(Turn::Shr, 8, entry, 12 - bits);
    asm.arith_imm(Arith::And, 4, Rm::Reg(entry), ((TlbPlaces::ENTRIES - 1) << bits) as i32);
    asm.arith(Arith::Add, 8, entry, field(TlbPlaces::PART));
}

/// How many instructions were executed.
enum Executed {
    Constant(u8),
    Register(Reg),
}

/// See [`Emitter::count`]: the jumps for when the chain has run for long enough, and for a signal.
fn count(asm: &mut Asm, places: &Places, to: Reg, executed: Executed) -> (Jump, Jump) {
    asm.load(8, to, field(offset_of!(Cpu, icount)));
    match executed {
        Executed::Constant(n) => asm.arith_imm(Arith::Add, 8, Rm::Reg(to), n.into()),
        Executed::Register(r) => asm.arith(Arith::Add, 8, to, Rm::Reg(r)),
    }
    asm.arith(Arith::Cmp, 8, to, field(offset_of!(Cpu, chain_end)));
    let late = asm.jump_if(cc::AE);
    asm.constant(RCX, places.signals);
    asm.arith_imm(Arith::Cmp, 4, Rm::Mem(RCX, 0), 0);
    let signal = asm.jump_if(cc::NE);
    (late, signal)
}

/// The routine behind [`Emitter::look_up`]: RAX is an address, RDX the instructions executed.
pub(super) fn look_up(asm: &mut Asm, places: &Places) {
    asm.copy(R11, RAX);
    let (late, signal) = count(asm, places, R10, Executed::Register(RDX));
    tlb_entry(asm, RCX, RAX);
    asm.copy(RDX, RAX);
    asm.arith_imm(Arith::And, 8, Rm::Reg(RDX), -4096);
    asm.arith(Arith::Xor, 8, RDX, Rm::Mem(RCX, TlbPlaces::EXECUTE as i32));
    asm.arith(Arith::Cmp, 8, RDX, field(TlbPlaces::ASID));
    let unmapped = asm.jump_if(cc::NE);
    asm.arith(Arith::Add, 8, RAX, Rm::Mem(RCX, TlbPlaces::ADDEND as i32));
    asm.constant(RCX, places.memory);
    asm.arith(Arith::Sub, 8, RAX, Rm::Reg(RCX));
    // The host-physical address is in RAX: its place among the recent blocks.
    asm.copy(RCX, RAX);
    asm.turn(Turn::Shr, 8, RCX, crate::code::Recent::SHIFT);
    asm.arith(Arith::Xor, 8, RCX, Rm::Reg(RAX));
    asm.arith_imm(Arith::And, 4, Rm::Reg(RCX), crate::code::RECENT as i32 - 1);
    asm.turn(Turn::Shl, 8, RCX, size_of::<crate::code::Recent>().trailing_zeros() as u8);
    asm.constant(RDX, places.recent);
    asm.arith(Arith::Add, 8, RCX, Rm::Reg(RDX));
    asm.turn(Turn::Shl, 8, RAX, crate::code::Recent::KEY_BITS);
    asm.arith_imm(Arith::Or, 8, Rm::Reg(RAX), super::KEY as i32);
    asm.arith(Arith::Cmp, 8, RAX, Rm::Mem(RCX, crate::code::Recent::TAG as i32));
    let unknown = asm.jump_if(cc::NE);
    asm.load(8, RSI, Rm::Mem(RCX, crate::code::Recent::OP as i32));
    asm.ret();
    for jump in [late, signal, unmapped, unknown] {
        asm.bind(jump);
    }
    asm.constant(RSI, 0);
    asm.ret();
}
