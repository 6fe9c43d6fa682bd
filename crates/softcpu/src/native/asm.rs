//! An encoder of the few host instructions that native code is made of (SDM vol. 2 §2.1 and appendix B).

/// A host register, by its number in encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reg(u8);

pub(super) const RAX: Reg = Reg(0);
pub(super) const RCX: Reg = Reg(1);
pub(super) const RDX: Reg = Reg(2);
pub(super) const RBX: Reg = Reg(3);
pub(super) const RSI: Reg = Reg(6);
pub(super) const RDI: Reg = Reg(7);
pub(super) const R8: Reg = Reg(8);
pub(super) const R9: Reg = Reg(9);
pub(super) const R10: Reg = Reg(10);
pub(super) const R11: Reg = Reg(11);

/// An operand that a ModRM byte names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rm {
    Reg(Reg),
    /// Base and displacement.
    Mem(Reg, i32),
    /// Base, index, log2 of the scale, displacement.
    Sib(Reg, Reg, u8, i32),
}

/// Two-operand arithmetic, by its number in encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Arith {
    Add = 0,
    Or = 1,
    Adc = 2,
    Sbb = 3,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotates, by their number in encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Turn {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// Operations on one operand: opcode without its lowest bit, and the number in ModRM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum One {
    Inc,
    Dec,
    Not,
    Neg,
}

/// Condition codes of the host's own checks.
pub(super) mod cc {
    pub const O: u8 = 0;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const S: u8 = 8;
    pub const P: u8 = 10;
}

/// The place of a jump's distance, to be filled in by [`Asm::bind`] or [`Asm::bind_to`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// Code under construction, which will lie at a known address.
pub(super) struct Asm {
    pub code: Vec<u8>,
    /// Where the first byte will be.
    base: u64,
}

impl Asm {
    pub fn new(base: u64) -> Self {
        Self { code: Vec::with_capacity(1024), base }
    }

    /// The address of the next instruction.
    pub fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    fn byte(&mut self, b: u8) {
        self.code.push(b);
    }

    fn imm32(&mut self, v: i32) {
        self.code.extend_from_slice(&v.to_le_bytes());
    }

    /// Prefixes, opcode, ModRM, SIB and displacement. `size` is the operand's in bytes; `opcode` has its bytes in
    /// order from the most significant one that is not 0.
    fn form(&mut self, size: u8, opcode: u32, reg: u8, rm: Rm) {
        self.prefixed(if size == 2 { 0x66 } else { 0 }, size == 8, opcode, reg, rm);
    }

    /// [`Asm::form`] with a prefix, 0 for none, and REX.W or not.
    fn prefixed(&mut self, prefix: u8, wide: bool, opcode: u32, reg: u8, rm: Rm) {
        if prefix != 0 {
            self.byte(prefix);
        }
        let (index, base) = match rm {
            Rm::Reg(r) | Rm::Mem(r, _) => (0, r.0),
            Rm::Sib(b, i, _, _) => (i.0, b.0),
        };
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0x40 {
            self.byte(rex);
        }
        let bytes = opcode.to_be_bytes();
        let first = (opcode.leading_zeros() / 8).min(3) as usize;
        self.code.extend_from_slice(&bytes[first..]);
        let reg = (reg & 7) << 3;
        match rm {
            Rm::Reg(r) => self.byte(0xc0 | reg | r.0 & 7),
            Rm::Mem(b, disp) => {
                debug_assert!(b.0 & 7 != 4, "needs a SIB byte");
                self.displaced(reg | b.0 & 7, None, b, disp);
            }
            Rm::Sib(b, i, scale, disp) => {
                debug_assert!(i.0 != 4, "is no index");
                self.displaced(reg | 4, Some(scale << 6 | (i.0 & 7) << 3 | b.0 & 7), b, disp);
            }
        }
    }

    fn displaced(&mut self, modrm: u8, sib: Option<u8>, base: Reg, disp: i32) {
        let short = i8::try_from(disp);
        let mode = match short {
            Ok(0) if base.0 & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        self.byte(mode | modrm);
        self.code.extend(sib);
        match short {
            _ if mode == 0 => {}
            Ok(d) => self.byte(d as u8),
            Err(_) => self.imm32(disp),
        }
    }

    /// Loads `size` bytes, zero-extended.
    pub fn load(&mut self, size: u8, to: Reg, from: Rm) {
        match size {
            1 => self.form(4, 0x0fb6, to.0, from),
            2 => self.form(4, 0x0fb7, to.0, from),
            _ => self.form(size, 0x8b, to.0, from),
        }
    }

    /// Loads `size` bytes, sign-extended to `wide` (4 or 8) bytes.
    pub fn load_signed(&mut self, size: u8, wide: u8, to: Reg, from: Rm) {
        match size {
            1 => self.form(wide, 0x0fbe, to.0, from),
            2 => self.form(wide, 0x0fbf, to.0, from),
            4 if wide == 8 => self.form(8, 0x63, to.0, from),
            _ => self.form(wide, 0x8b, to.0, from),
        }
    }

    /// Stores `size` bytes.
    pub fn store(&mut self, size: u8, to: Rm, from: Reg) {
        debug_assert!(size > 1 || !(4..8).contains(&from.0), "needs a REX prefix");
        self.form(size, if size == 1 { 0x88 } else { 0x89 }, from.0, to);
    }

    /// Stores a constant of `size` bytes, sign-extended from 32 bits.
    pub fn store_imm(&mut self, size: u8, to: Rm, v: i32) {
        self.form(size, if size == 1 { 0xc6 } else { 0xc7 }, 0, to);
        self.immediate(size, v);
    }

    fn immediate(&mut self, size: u8, v: i32) {
        match size {
            1 => self.byte(v as u8),
            2 => self.code.extend_from_slice(&(v as u16).to_le_bytes()),
            _ => self.imm32(v),
        }
    }

    /// 64 bits from register to register.
    pub fn copy(&mut self, to: Reg, from: Reg) {
        self.form(8, 0x8b, to.0, Rm::Reg(from));
    }

    /// A constant, in the shortest way.
    pub fn constant(&mut self, to: Reg, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            if to.0 > 7 {
                self.byte(0x41);
            }
            self.byte(0xb8 | to.0 & 7);
            self.imm32(v as i32);
        } else if let Ok(v) = i32::try_from(v as i64) {
            self.store_imm(8, Rm::Reg(to), v);
        } else {
            self.byte(0x48 | to.0 >> 3);
            self.byte(0xb8 | to.0 & 7);
            self.code.extend_from_slice(&v.to_le_bytes());
        }
    }

    /// `to` = `to` op `from`.
    pub fn arith(&mut self, op: Arith, size: u8, to: Reg, from: Rm) {
        self.form(size, u32::from((op as u8) << 3 | if size == 1 { 2 } else { 3 }), to.0, from);
    }

    /// `to` = `to` op constant.
    pub fn arith_imm(&mut self, op: Arith, size: u8, to: Rm, v: i32) {
        match i8::try_from(v) {
            _ if size == 1 => {
                self.form(1, 0x80, op as u8, to);
                self.byte(v as u8);
            }
            Ok(v) => {
                self.form(size, 0x83, op as u8, to);
                self.byte(v as u8);
            }
            Err(_) => {
                self.form(size, 0x81, op as u8, to);
                self.immediate(size, v);
            }
        }
    }

    pub fn test(&mut self, size: u8, a: Reg, b: Reg) {
        self.form(size, if size == 1 { 0x84 } else { 0x85 }, b.0, Rm::Reg(a));
    }

    pub fn turn(&mut self, op: Turn, size: u8, to: Reg, n: u8) {
        self.form(size, if size == 1 { 0xc0 } else { 0xc1 }, op as u8, Rm::Reg(to));
        self.byte(n);
    }

    pub fn one(&mut self, op: One, size: u8, to: Reg) {
        let (opcode, number) = match op {
            One::Inc => (0xfe, 0),
            One::Dec => (0xfe, 1),
            One::Not => (0xf6, 2),
            One::Neg => (0xf6, 3),
        };
        self.form(size, opcode | u32::from(size != 1), number, Rm::Reg(to));
    }

    /// Signed product of two registers; not of bytes.
    pub fn multiply(&mut self, size: u8, to: Reg, from: Rm) {
        self.form(size, 0x0faf, to.0, from);
    }

    pub fn lea(&mut self, size: u8, to: Reg, from: Rm) {
        self.form(size, 0x8d, to.0, from);
    }

    pub fn set(&mut self, cc: u8, to: Reg) {
        debug_assert!(!(4..8).contains(&to.0), "needs a REX prefix");
        self.form(1, 0x0f90 | u32::from(cc), 0, Rm::Reg(to));
    }

    /// Zero-extends a byte register.
    pub fn widen(&mut self, to: Reg) {
        self.form(4, 0x0fb6, to.0, Rm::Reg(to));
    }

    pub fn cmov(&mut self, cc: u8, size: u8, to: Reg, from: Rm) {
        self.form(size, 0x0f40 | u32::from(cc), to.0, from);
    }

    /// Flags of `rm` AND a constant.
    pub fn test_imm(&mut self, size: u8, rm: Rm, v: i32) {
        self.form(size, if size == 1 { 0xf6 } else { 0xf7 }, 0, rm);
        self.immediate(size, v);
    }

    /// An SSE instruction of the map 0FH: its prefix (0 for none), opcode, register and second operand, where
    /// [`Rm::Reg`] is an SSE register too.
    pub fn sse(&mut self, prefix: u8, opcode: u8, xmm: u8, rm: Rm) {
        self.prefixed(prefix, false, 0x0f00 | u32::from(opcode), xmm, rm);
    }

    /// [`Asm::sse`] with REX.W: the general register is one of 64 bits.
    pub fn sse_wide(&mut self, prefix: u8, opcode: u8, xmm: u8, rm: Rm) {
        self.prefixed(prefix, true, 0x0f00 | u32::from(opcode), xmm, rm);
    }

    /// The immediate byte of an instruction that has one more operand.
    pub fn with(&mut self, v: u8) {
        self.byte(v);
    }

    pub fn jump_if(&mut self, cc: u8) -> Jump {
        self.code.extend_from_slice(&[0x0f, 0x80 | cc]);
        self.distance()
    }

    pub fn jump(&mut self) -> Jump {
        self.byte(0xe9);
        self.distance()
    }

    pub fn call(&mut self) -> Jump {
        self.byte(0xe8);
        self.distance()
    }

    fn distance(&mut self) -> Jump {
        self.imm32(0);
        Jump(self.code.len() - 4)
    }

    /// `jump` leads here.
    pub fn bind(&mut self, jump: Jump) {
        self.bind_to(jump, self.here());
    }

    /// `jump` leads to `target`, at most 2 GiB away.
    pub fn bind_to(&mut self, Jump(at): Jump, target: u64) {
        let from = self.base + at as u64 + 4;
        let distance = target.wrapping_sub(from) as i32;
        if let Some(place) = self.code.get_mut(at..at + 4) {
            place.copy_from_slice(&distance.to_le_bytes());
        }
    }

    pub fn jump_to_mem(&mut self, target: Rm) {
        self.form(4, 0xff, 4, target);
    }

    pub fn call_mem(&mut self, target: Rm) {
        self.form(4, 0xff, 2, target);
    }

    pub fn push(&mut self, r: Reg) {
        debug_assert!(r.0 < 8);
        self.byte(0x50 | r.0);
    }

    pub fn pop(&mut self, r: Reg) {
        debug_assert!(r.0 < 8);
        self.byte(0x58 | r.0);
    }

    pub fn ret(&mut self) {
        self.byte(0xc3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

    /// What the decoder that guests' code goes through makes of it.
    fn read(asm: &Asm) -> Vec<String> {
        let mut formatter = NasmFormatter::new();
        let decoder = Decoder::with_ip(64, &asm.code, asm.base, DecoderOptions::NONE);
        decoder
            .into_iter()
            .map(|i| {
                let mut text = String::new();
                formatter.format(&i, &mut text);
                text
            })
            .collect()
    }

    fn check(build: impl FnOnce(&mut Asm), expected: &[&str]) {
        let mut asm = Asm::new(0x1000);
        build(&mut asm);
        assert_eq!(read(&asm), expected);
    }

    #[test]
    fn moves() {
        check(
            |a| {
                a.load(1, RAX, Rm::Mem(RBX, -128));
                a.load(2, R9, Rm::Mem(RBX, 0));
                a.load(4, RCX, Rm::Mem(RAX, 0x1234));
                a.load(8, R8, Rm::Sib(RAX, RCX, 3, -4));
                a.load_signed(1, 8, RAX, Rm::Reg(RCX));
                a.load_signed(2, 4, RAX, Rm::Mem(R8, 8));
                a.load_signed(4, 8, RDX, Rm::Reg(RAX));
                a.store(1, Rm::Mem(RAX, 0), R9);
                a.store(2, Rm::Mem(RAX, 0), RDX);
                a.store(8, Rm::Mem(RBX, 120), RSI);
                a.store_imm(1, Rm::Mem(RAX, 0), -1);
                a.store_imm(2, Rm::Mem(RAX, 0), 0x1234);
                a.store_imm(8, Rm::Mem(RAX, 0), -2);
                a.copy(R11, RAX);
            },
            &[
                "movzx eax,byte [rbx-80h]",
                "movzx r9d,word [rbx]",
                "mov ecx,[rax+1234h]",
                "mov r8,[rax+rcx*8-4]",
                "movsx rax,cl",
                "movsx eax,word [r8+8]",
                "movsxd rdx,eax",
                "mov [rax],r9b",
                "mov [rax],dx",
                "mov [rbx+78h],rsi",
                "mov byte [rax],0FFh",
                "mov word [rax],1234h",
                "mov qword [rax],0FFFFFFFFFFFFFFFEh",
                "mov r11,rax",
            ],
        );
    }

    #[test]
    fn constants_in_the_shortest_way() {
        check(
            |a| {
                a.constant(R10, 7);
                a.constant(RAX, 0xffff_ffff);
                a.constant(RDX, (-2i64) as u64);
                a.constant(RSI, 0x1122_3344_5566_7788);
            },
            &["mov r10d,7", "mov eax,0FFFFFFFFh", "mov rdx,0FFFFFFFFFFFFFFFEh", "mov rsi,1122334455667788h"],
        );
    }

    #[test]
    fn arithmetic() {
        check(
            |a| {
                a.arith(Arith::Sub, 1, RAX, Rm::Reg(RCX));
                a.arith(Arith::Xor, 8, RCX, Rm::Mem(RBX, 0x200));
                a.arith_imm(Arith::Add, 1, Rm::Reg(RCX), -1);
                a.arith_imm(Arith::And, 8, Rm::Reg(RDX), -4096);
                a.arith_imm(Arith::Cmp, 2, Rm::Mem(RDX, 28), 0x1234);
                a.test(4, RAX, RAX);
                a.turn(Turn::Shl, 8, R8, 62);
                a.turn(Turn::Sar, 1, RAX, 3);
                a.one(One::Neg, 1, RAX);
                a.one(One::Inc, 8, RAX);
                a.multiply(4, RAX, Rm::Mem(RBX, 8));
                a.lea(8, RAX, Rm::Sib(RAX, RCX, 0, 16));
                a.set(cc::O, R9);
                a.widen(R9);
                a.cmov(cc::NE, 8, RAX, Rm::Mem(RBX, 0));
            },
            &[
                "sub al,cl",
                "xor rcx,[rbx+200h]",
                "add cl,0FFh",
                "and rdx,0FFFFFFFFFFFFF000h",
                "cmp word [rdx+1Ch],1234h",
                "test eax,eax",
                "shl r8,3Eh",
                "sar al,3",
                "neg al",
                "inc rax",
                "imul eax,[rbx+8]",
                "lea rax,[rax+rcx+10h]",
                "seto r9b",
                "movzx r9d,r9b",
                "cmovne rax,[rbx]",
            ],
        );
    }

    #[test]
    fn vectors() {
        check(
            |a| {
                a.test_imm(1, Rm::Reg(RAX), 15);
                a.test_imm(4, Rm::Mem(RBX, 0x200), 12);
                a.sse(0, 0x10, 0, Rm::Mem(RBX, 0x400));
                a.sse(0x66, 0xfe, 0, Rm::Reg(Reg(1)));
                a.sse(0xf2, 0x58, 1, Rm::Mem(RBX, 0x410));
                a.sse(0x66, 0x72, 6, Rm::Reg(Reg(0)));
                a.with(5);
                a.sse_wide(0xf2, 0x2a, 0, Rm::Reg(RCX));
                a.sse_wide(0x66, 0x7e, 0, Rm::Reg(R9));
            },
            &[
                "test al,0Fh",
                "test dword [rbx+200h],0Ch",
                "movups xmm0,[rbx+400h]",
                "paddd xmm0,xmm1",
                "addsd xmm1,[rbx+410h]",
                "pslld xmm0,5",
                "cvtsi2sd xmm0,rcx",
                "movq r9,xmm0",
            ],
        );
    }

    #[test]
    fn jumps() {
        check(
            |a| {
                let over = a.jump_if(cc::E);
                let away = a.call();
                a.bind(over);
                a.bind_to(away, 0x2000);
                a.jump_to_mem(Rm::Mem(RSI, 8));
                a.call_mem(Rm::Mem(RSI, 0));
                let back = a.jump();
                a.bind_to(back, 0x1000);
                a.push(RBX);
                a.pop(RBX);
                a.ret();
            },
            &[
                "je near 000000000000100Bh",
                "call 0000000000002000h",
                "jmp qword [rsi+8]",
                "call qword [rsi]",
                "jmp 0000000000001000h",
                "push rbx",
                "pop rbx",
                "ret",
            ],
        );
    }
}
