//! Programs of 64-bit code made of arbitrary bytes: valid instructions, most of them ones that compilers use, in
//! units that jump to each other, with operands that mostly are where there is memory.

/// What decides: bytes, and zeros when they have run out.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Less than `n`, which is at most 256.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Values that matter: small, near the sign bits of every width, or anything.
    pub fn value(&mut self) -> u64 {
        let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
        match self.below(4) {
            0 => self.pick(&edges),
            1 => u64::wrapping_neg(self.pick(&edges)),
            2 => self.byte().into(),
            _ => self.word(),
        }
    }
}

// Linear and guest-physical places.
/// Three pages of code.
pub const CODE: u64 = 0x4_0000;
/// The same three pages again.
pub const ALIAS: u64 = 0x4_8000;
/// Two pages of data, one that is read-only, one of the supervisor's, and one that is not there.
pub const DATA: u64 = 0x5_0000;
/// Two pages of stack.
pub const STACK: u64 = 0x5_8000;
/// What handlers count in, and where they find places to go on.
pub const TABLE: u64 = 0x6_0000;
pub const HANDLERS: u64 = 0x6_1000;
/// Supervisor's stacks.
pub const SYSTEM_STACK: u64 = 0x6_3000;
/// Linear address of a device.
pub const DEVICE: u64 = 0x7_0000;

/// Units of a program.
pub const UNITS: usize = 16;
const ROOM: u64 = 0x1c0;

const RCX: u8 = 1;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Registers that hold addresses, and what they do after an exception.
pub const POINTERS: [(u8, u64); 3] = [(RSI, DATA + 0x800), (RDI, DATA + 0xffc), (RBP, STACK + 0x1000)];
/// RSP, at the start and after some exceptions.
pub const STACK_TOP: u64 = STACK + 0x1010;

/// Where a unit starts: eight in a page, the last of which runs into the next page.
pub fn unit(n: usize) -> u64 {
    let (page, n) = ((n % UNITS / 8) as u64, (n % 8) as u64);
    CODE + page * 0x1000 + if n == 7 { 0xfd0 } else { 0x200 + n * ROOM }
}

/// A memory operand, or a register.
#[derive(Clone, Copy)]
enum Rm {
    Reg(u8),
    /// Base, index and scale, displacement.
    Mem(Option<u8>, Option<(u8, u8)>, i32),
    /// RIP-relative: the address.
    Rip(u64),
}

/// Code under construction.
struct Code<'a, 'b> {
    at: u64,
    bytes: Vec<u8>,
    c: &'a mut Choices<'b>,
}

/// The bytes of unit `n`.
pub fn make(n: usize, c: &mut Choices<'_>) -> Vec<u8> {
    let mut code = Code { at: unit(n), bytes: Vec::new(), c };
    // Something that others can change.
    code.load_constant();
    for _ in 0..code.c.below(24) {
        if code.bytes.len() as u64 > ROOM - 0x60 {
            break;
        }
        code.instruction();
    }
    code.end(n);
    code.bytes
}

impl Code<'_, '_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn here(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// An instruction with a ModRM byte; `size` 1 is that of byte registers.
    fn modrm(&mut self, size: u8, prefixes: &[u8], opcode: &[u8], reg: u8, rm: Rm, imm: &[u8]) {
        let segment = self.c.pick(&[0u8, 0, 0, 0, 0, 0, 0x64, 0x65]);
        if !matches!(rm, Rm::Reg(_)) && segment != 0 {
            self.put(&[segment]);
        }
        if !matches!(rm, Rm::Reg(_)) && self.c.one_in(40) {
            self.put(&[0x67]);
        }
        if size == 2 {
            self.put(&[0x66]);
        }
        self.put(prefixes);
        let (base, index) = match rm {
            Rm::Reg(r) => (r, 0),
            Rm::Mem(b, i, _) => (b.unwrap_or(0), i.map_or(0, |i| i.0)),
            Rm::Rip(_) => (0, 0),
        };
        let w = u8::from(size == 8);
        let rex = 0x40 | w << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        // Without REX, byte registers 4 to 7 are AH to BH.
        if rex != 0x40 || size == 1 && self.c.one_in(2) {
            self.put(&[rex]);
        }
        self.put(opcode);
        let reg = (reg & 7) << 3;
        match rm {
            Rm::Reg(r) => self.put(&[0xc0 | reg | r & 7]),
            Rm::Rip(to) => {
                let end = self.here() + 5 + imm.len() as u64;
                self.put(&[reg | 5]);
                self.put(&(to.wrapping_sub(end) as u32).to_le_bytes());
            }
            Rm::Mem(base, index, disp) => {
                let (mode, short) = match (base, i8::try_from(disp)) {
                    (None, _) => (0, None),
                    (_, Ok(d)) => (0x40, Some(d)),
                    _ => (0x80, None),
                };
                match (base, index) {
                    (Some(b), None) if b & 7 != RSP => self.put(&[mode | reg | b & 7]),
                    _ => {
                        let (i, scale) = index.unwrap_or((RSP, 0));
                        self.put(&[mode | reg | 4, scale << 6 | (i & 7) << 3 | base.unwrap_or(RBP) & 7]);
                    }
                }
                match short {
                    Some(d) => self.put(&[d as u8]),
                    None => self.put(&disp.to_le_bytes()),
                }
            }
        }
        self.put(imm);
    }

    /// A register to be written: seldom one that holds an address.
    fn target(&mut self) -> u8 {
        let r = self.c.below(16) as u8;
        let address = matches!(r, RSP | RBP | RSI | RDI);
        if address && !self.c.one_in(12) { r ^ 8 } else { r }
    }

    fn any(&mut self) -> u8 {
        self.c.below(16) as u8
    }

    fn size(&mut self) -> u8 {
        self.c.pick(&[1, 2, 4, 8, 4, 8])
    }

    fn memory(&mut self) -> Rm {
        let disp = match self.c.below(8) {
            0 => 0,
            1 => self.c.pick(&[0x7fc, 0x7f9, 0x800, 0x1000, -0x801, -0x1000, 0x1800, 0x2800, 0x3800]),
            2 => self.c.pick(&[1, 2, 3, 4, 5, 7]),
            _ => i32::from(self.c.byte() as i8),
        };
        let base = match self.c.below(32) {
            0..10 => RSI,
            10..18 => RDI,
            18..22 => RBP,
            22..26 => RSP,
            26 => return Rm::Rip(DATA + u64::from(self.c.byte()) * 16),
            27 => return Rm::Rip(self.c.pick(&[CODE, ALIAS]) + self.c.word() % 0x2100),
            28 => return Rm::Mem(None, None, (DATA as i32) + disp),
            29 => return Rm::Mem(None, None, (DEVICE as i32) + i32::from(self.c.byte())),
            30 => self.any(),
            _ => return Rm::Rip(unit(self.c.below(UNITS)) + self.c.pick(&[1, 1, 2, 8, 13])),
        };
        let index = match self.c.below(6) {
            0 => Some((self.any(), self.c.below(4) as u8)).filter(|i| i.0 != RSP),
            // An index that is small.
            1 => Some((14, self.c.below(4) as u8)),
            _ => None,
        };
        Rm::Mem(Some(base), index, disp)
    }

    fn rm(&mut self, written: bool) -> Rm {
        match self.c.below(5) {
            0 | 1 => self.memory(),
            _ if written => Rm::Reg(self.target()),
            _ => Rm::Reg(self.any()),
        }
    }

    /// An immediate of `size` bytes, at most 4.
    fn imm(&mut self, size: u8) -> Vec<u8> {
        let bytes = self.c.value().to_le_bytes();
        bytes[..usize::from(size.min(4))].to_vec()
    }

    fn load_constant(&mut self) {
        let r = self.target() & 7;
        let v = self.imm(4);
        self.put(&[0xb8 | if r == RSP { 0 } else { r }]);
        self.put(&v);
    }

    fn instruction(&mut self) {
        match self.c.below(32) {
            0..6 => self.arithmetic(),
            6..10 => self.moves(),
            10..12 => self.shift(),
            12..14 => self.one_operand(),
            14..17 => self.condition(),
            17..20 => self.stack(),
            20 => self.multiply(),
            21..23 => self.vector(),
            23..25 => self.called(),
            25 => self.string(),
            26 => self.system(),
            27 => self.change_code(),
            28 => self.pointer(),
            29 => self.put(&[0x90]),
            30 => self.small_index(),
            _ => self.branch_inside(),
        }
    }

    /// Operands that arithmetic and its flags are tried on.
    fn arithmetic(&mut self) {
        let (op, size) = (self.c.below(9) as u8, self.size());
        let wide = u8::from(size != 1);
        match self.c.below(3) {
            _ if op == 8 => {
                let (reg, rm) = (self.any(), self.rm(false));
                if self.c.one_in(2) {
                    self.modrm(size, &[], &[0x84 | wide], reg, rm, &[]);
                } else {
                    let imm = self.imm(size);
                    self.modrm(size, &[], &[0xf6 | wide], 0, rm, &imm);
                }
            }
            0 => {
                let (reg, rm) = (self.any(), self.rm(op != 7));
                self.modrm(size, &[], &[op << 3 | wide], reg, rm, &[]);
            }
            1 => {
                let (reg, rm) = (self.target(), self.rm(false));
                self.modrm(size, &[], &[op << 3 | 2 | wide], reg, rm, &[]);
            }
            _ => {
                let rm = self.rm(op != 7);
                let short = size == 1 || self.c.one_in(2);
                let imm = self.imm(if short { 1 } else { size });
                let opcode = if size == 1 {
                    0x80
                } else if short {
                    0x83
                } else {
                    0x81
                };
                self.modrm(size, &[], &[opcode], op, rm, &imm);
            }
        }
    }

    fn one_operand(&mut self) {
        let (size, rm) = (self.size(), self.rm(true));
        let wide = u8::from(size != 1);
        let (opcode, number) = self.c.pick(&[(0xfe, 0), (0xfe, 1), (0xf6, 2), (0xf6, 3)]);
        self.modrm(size, &[], &[opcode | wide], number, rm, &[]);
    }

    fn moves(&mut self) {
        let size = self.size();
        let wide = u8::from(size != 1);
        match self.c.below(8) {
            0 | 1 => {
                let (reg, rm) = (self.any(), self.rm(true));
                self.modrm(size, &[], &[0x88 | wide], reg, rm, &[]);
            }
            2 | 3 => {
                let (reg, rm) = (self.target(), self.rm(false));
                self.modrm(size, &[], &[0x8a | wide], reg, rm, &[]);
            }
            4 => {
                let (rm, imm) = (self.rm(true), self.imm(size));
                self.modrm(size, &[], &[0xc6 | wide], 0, rm, &imm);
            }
            5 => {
                // MOVZX, MOVSX, MOVSXD.
                let (reg, rm) = (self.target(), self.rm(false));
                let size = self.c.pick(&[2, 4, 8]);
                match self.c.below(5) {
                    4 => self.modrm(size, &[], &[0x63], reg, rm, &[]),
                    n => self.modrm(size, &[], &[0x0f, [0xb6, 0xb7, 0xbe, 0xbf][n]], reg, rm, &[]),
                }
            }
            6 => {
                let (reg, rm) = (self.target(), self.memory());
                let size = self.c.pick(&[2, 4, 8, 8]);
                self.modrm(size, &[], &[0x8d], reg, rm, &[]);
            }
            _ => {
                // All 64 bits.
                let (r, v) = (self.target(), self.c.value());
                self.put(&[0x48 | r >> 3, 0xb8 | r & 7]);
                self.put(&v.to_le_bytes());
            }
        }
    }

    fn shift(&mut self) {
        let (size, rm, number) = (self.size(), self.rm(true), self.c.below(8) as u8);
        let wide = u8::from(size != 1);
        match self.c.below(4) {
            0 => self.modrm(size, &[], &[0xd0 | wide], number, rm, &[]),
            1 => self.modrm(size, &[], &[0xd2 | wide], number, rm, &[]),
            _ => {
                let n = self.c.byte();
                let n = if n < 0xe0 { n & 0x3f } else { n };
                self.modrm(size, &[], &[0xc0 | wide], number, rm, &[n]);
            }
        }
    }

    /// SETcc and CMOVcc.
    fn condition(&mut self) {
        let cc = self.c.below(16) as u8;
        match self.c.below(3) {
            0 => {
                let rm = self.rm(true);
                self.modrm(1, &[], &[0x0f, 0x90 | cc], 0, rm, &[]);
            }
            _ => {
                let (size, reg, rm) = (self.c.pick(&[2, 4, 8]), self.target(), self.rm(false));
                self.modrm(size, &[], &[0x0f, 0x40 | cc], reg, rm, &[]);
            }
        }
    }

    fn push_pop(&mut self, opcode: u8, r: u8) {
        if r > 7 {
            self.put(&[0x41]);
        }
        self.put(&[opcode | r & 7]);
    }

    fn stack(&mut self) {
        match self.c.below(10) {
            0..3 => {
                for _ in 0..1 + self.c.below(3) {
                    let r = self.any();
                    self.push_pop(0x50, r);
                }
            }
            3..6 => {
                for _ in 0..1 + self.c.below(3) {
                    let r = self.target();
                    self.push_pop(0x58, r);
                }
            }
            6 => {
                let v = self.imm(4);
                self.put(&[0x68]);
                self.put(&v);
            }
            7 => {
                let (push, rm) = (self.c.one_in(2), self.memory());
                let (opcode, number) = if push { (0xff, 6) } else { (0x8f, 0) };
                self.modrm(4, &[], &[opcode], number, rm, &[]);
            }
            // PUSHFQ, LEAVE
            8 => self.put(&[0x9c]),
            _ => {
                let adjust = self.c.pick(&[8u8, 0xf8, 0x10, 0xf0]);
                self.put(&[0x48, 0x83, 0xc4, adjust]);
            }
        }
    }

    fn multiply(&mut self) {
        let (size, reg, rm) = (self.c.pick(&[2, 4, 8]), self.target(), self.rm(false));
        match self.c.below(5) {
            0 | 1 => self.modrm(size, &[], &[0x0f, 0xaf], reg, rm, &[]),
            2 => {
                let imm = self.imm(size);
                self.modrm(size, &[], &[0x69], reg, rm, &imm);
            }
            3 => {
                let imm = self.imm(1);
                self.modrm(size, &[], &[0x6b], reg, rm, &imm);
            }
            _ => {
                let (size, number) = (self.size(), 4 + self.c.below(4) as u8);
                self.modrm(size, &[], &[0xf6 | u8::from(size != 1)], number, rm, &[]);
            }
        }
    }

    /// SSE: moves, and a few that compute.
    fn vector(&mut self) {
        let (reg, rm) = (self.any(), self.rm(false));
        if self.c.one_in(6) {
            // Shifts by an immediate, and shuffles.
            let (opcode, imm) = (self.c.pick(&[0x71u8, 0x72, 0x73, 0x70, 0xc6]), self.c.byte());
            let prefix = self.c.pick(&[&[0x66][..], &[0x66], &[], &[0xf2], &[0xf3]]);
            return match opcode {
                0x71..=0x73 => self.modrm(4, prefix, &[0x0f, opcode], imm & 7, Rm::Reg(reg), &[imm & 0x1f]),
                _ => self.modrm(4, prefix, &[0x0f, opcode], reg, rm, &[imm]),
            };
        }
        let prefixes: &[u8] = self.c.pick(&[&[][..], &[0x66], &[0xf2], &[0xf3]]);
        let opcodes = [
            0x10, 0x11, 0x10, 0x11, 0x28, 0x29, 0x6e, 0x7e, 0x6f, 0x7f, 0xd6, 0x12, 0x13, 0x16, 0x17, 0x14,
            0x58, 0x59, 0x5c, 0x5e, 0x51, 0x54, 0x57, 0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x5a, 0x5b, 0xe6, 0xef,
            0xdb, 0xeb, 0xfe, 0xd4, 0xfa, 0xfb, 0x60, 0x62, 0x6c, 0x6d, 0x74, 0x76, 0xd7, 0x50, 0xf4, 0xda,
        ];
        let (opcode, size) = (self.c.pick(&opcodes), self.c.pick(&[4, 8]));
        self.modrm(size, prefixes, &[0x0f, opcode], reg, rm, &[]);
    }

    /// Instructions that have no template, between those that do.
    fn called(&mut self) {
        let (size, reg) = (self.size(), self.target());
        let wide = u8::from(size != 1);
        match self.c.below(12) {
            0 => {
                let rm = self.rm(true);
                self.modrm(size, &[], &[0x86 | wide], reg, rm, &[]);
            }
            1 => {
                let (rm, opcode) = (self.rm(true), self.c.pick(&[0xb0, 0xc0]));
                self.modrm(size, &[], &[0x0f, opcode | wide], reg, rm, &[]);
            }
            2 => {
                let (rm, opcode) = (self.rm(true), self.c.pick(&[0xa3, 0xab, 0xb3, 0xbb, 0xbc, 0xbd]));
                self.modrm(size.max(2), &[], &[0x0f, opcode], reg, rm, &[]);
            }
            3 => {
                let (rm, number, bit) = (self.rm(true), 4 + self.c.below(4) as u8, self.c.byte());
                self.modrm(size.max(2), &[], &[0x0f, 0xba], number, rm, &[bit]);
            }
            4 => {
                let (rm, opcode, n) = (self.rm(true), self.c.pick(&[0xa4, 0xac]), self.c.byte());
                self.modrm(size.max(2), &[], &[0x0f, opcode], reg, rm, &[n]);
            }
            5 => {
                // With LOCK prefix.
                let rm = self.memory();
                let op = self.c.below(7) as u8;
                self.put(&[0xf0]);
                let imm = self.imm(1);
                self.modrm(size, &[], &[if size == 1 { 0x80 } else { 0x83 }], op, rm, &imm);
            }
            // BSWAP, and the widening ones.
            6 => self.put(&[0x48 | reg >> 3, 0x0f, 0xc8 | reg & 7]),
            7 => {
                let (prefix, opcode) =
                    (self.c.pick(&[&[][..], &[0x66], &[0x48]]), self.c.pick(&[0x98, 0x99]));
                self.put(prefix);
                self.put(&[opcode]);
            }
            8 | 9 => {
                let flags = self.c.pick(&[0xf8u8, 0xf9, 0xf5, 0x9e, 0x9f, 0xfc, 0xfd]);
                self.put(&[flags]);
            }
            10 => {
                // TZCNT, LZCNT, POPCNT.
                let (rm, opcode) = (self.rm(false), self.c.pick(&[0xb8, 0xbc, 0xbd]));
                self.put(&[0xf3]);
                self.modrm(size.max(4), &[], &[0x0f, opcode], reg, rm, &[]);
            }
            _ => self.put(&[0xc9]),
        }
    }

    fn string(&mut self) {
        if self.c.one_in(2) {
            // A count that is small, for REP.
            let n = self.c.byte();
            self.put(&[0xb9, n, 0, 0, 0]);
            let prefix = self.c.pick(&[0xf3u8, 0xf2]);
            self.put(&[prefix]);
        }
        let prefix = self.c.pick(&[&[][..], &[0x66], &[0x48]]);
        let opcode = self.c.pick(&[0xa4u8, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xa6, 0xa7, 0xae, 0xaf]);
        self.put(prefix);
        self.put(&[opcode]);
        if self.c.one_in(2) {
            self.pointer();
        }
    }

    /// What changes privilege, translations, segment bases, or waits.
    fn system(&mut self) {
        match self.c.below(20) {
            0 => {
                let rm = self.memory();
                self.modrm(4, &[], &[0x0f, 0x01], 7, rm, &[]);
            }
            // CR3 to itself.
            1 | 2 => self.put(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]),
            3 | 4 => {
                let last = self.c.pick(&[0xcau8, 0xcb]);
                self.put(&[0x0f, 0x01, last]);
            }
            5 => {
                let opcode = self.c.pick(&[0xfau8, 0xfb, 0xfb]);
                self.put(&[opcode]);
            }
            6 | 7 => {
                // WRFSBASE, WRGSBASE, RDFSBASE, RDGSBASE.
                let (number, r) = (self.c.below(4) as u8, self.any());
                self.put(&[0xf3, 0x48 | r >> 3, 0x0f, 0xae, 0xc0 | number << 3 | r & 7]);
            }
            8 => self.put(&[0x0f, 0x01, 0xf8]),
            9 | 10 => {
                let n = self.c.pick(&[0x80u8, 0x81, 0x20, 3]);
                self.put(&[0xcd, n]);
            }
            // SYSCALL, SYSRET.
            11 => self.put(&[0x0f, 0x05]),
            12 => {
                let to = unit(self.c.below(UNITS));
                self.put(&[0x48, 0xc7, 0xc1]);
                self.put(&(to as u32).to_le_bytes());
                self.put(&[0x48, 0x0f, 0x07]);
            }
            // An entry of a page table becomes what another one is, and back.
            13 => {
                let (to, from) = (self.c.below(8) as u8, self.c.below(8) as u8);
                self.remap(to, from);
            }
            14 => {
                let bit = self.c.pick(&[1u8 << 2, 1 << 5, 1 << 6]);
                // PUSHFQ, XOR of a byte of the image, POPFQ: AC; or the flags and IF.
                self.put(&[0x9c, 0x80, 0x74, 0x24]);
                match self.c.below(3) {
                    0 => self.put(&[2, 4]),
                    1 => self.put(&[1, 2]),
                    _ => self.put(&[0, bit | 1]),
                }
                self.put(&[0x9d]);
            }
            15 => self.put(&[0xf4]),
            16 => self.iret(),
            // CPUID, RDTSC, PAUSE, MFENCE, UD2.
            17 => self.put(&[0x0f, 0xa2]),
            18 => self.put(&[0x0f, 0x31]),
            _ => {
                let bytes =
                    self.c.pick(&[&[0xf3, 0x90][..], &[0x0f, 0xae, 0xf0], &[0x0f, 0x0b], &[0xcc], &[0x9d]]);
                self.put(bytes);
            }
        }
    }

    /// Copies the entry of one page of code, data or stack over another's.
    fn remap(&mut self, to: u8, from: u8) {
        // The base of the last level's table is at TABLE + 0x800.
        let place = |n: u8| {
            let page = match n {
                0..3 => (CODE >> 12) + u64::from(n),
                3..6 => (DATA >> 12) + u64::from(n - 3),
                _ => (STACK >> 12) + u64::from(n - 6),
            };
            8 * page as u32
        };
        // mov rax, [TABLE + 0x800]; mov rcx, [rax + from]; mov [rax + to], rcx; maybe invlpg
        self.put(&[0x48, 0x8b, 0x04, 0x25]);
        self.put(&(TABLE as u32 + 0x800).to_le_bytes());
        self.put(&[0x48, 0x8b, 0x88]);
        self.put(&place(from).to_le_bytes());
        self.put(&[0x48, 0x89, 0x88]);
        self.put(&place(to).to_le_bytes());
        if !self.c.one_in(4) {
            self.put(&[0x0f, 0x01, 0x3c, 0x25]);
            self.put(&(place(to) << 9).to_le_bytes());
        }
    }

    /// IRETQ to a unit, on this stack, at this privilege level or the user's.
    fn iret(&mut self) {
        let user = self.c.one_in(2);
        let (ss, cs) = if user { (0x23, 0x2b) } else { (0x10, 0x08) };
        // push ss; push rsp; pushfq; push cs; push target; iretq
        self.put(&[0x6a, ss, 0x54, 0x9c, 0x6a, cs, 0x68]);
        let to = unit(self.c.below(UNITS)) as u32;
        self.put(&to.to_le_bytes());
        self.put(&[0x48, 0xcf]);
    }

    /// A store to where a unit begins, of this page or another, by one of its two addresses.
    fn change_code(&mut self) {
        let alias = self.c.pick(&[0, 0, 0, ALIAS - CODE]);
        let other = unit(self.c.below(UNITS));
        let base = if self.c.one_in(2) { self.at } else { other };
        let offset = if self.c.one_in(6) { self.c.byte().into() } else { self.c.pick(&[1u64, 1, 2, 3]) };
        let to = Rm::Rip(base + offset + alias);
        match self.c.below(4) {
            0 => {
                let imm = self.imm(4);
                self.modrm(4, &[], &[0xc7], 0, to, &imm);
            }
            1 => {
                let r = self.any();
                self.modrm(1, &[], &[0x88], r, to, &[]);
            }
            2 => self.modrm(1, &[], &[0xfe], 0, to, &[]),
            _ => {
                let imm = self.imm(1);
                self.modrm(4, &[], &[0x83], 0, to, &imm);
            }
        }
    }

    /// A register that holds an address gets one again.
    fn pointer(&mut self) {
        let (r, value) = self.c.pick(&[POINTERS[0], POINTERS[1], POINTERS[2], (RSP, STACK_TOP)]);
        let near = u64::from(self.c.byte() & 0x1f);
        self.put(&[0x48, 0xc7, 0xc0 | r]);
        self.put(&((value + near) as u32).to_le_bytes());
    }

    fn small_index(&mut self) {
        let n = self.c.byte();
        self.put(&[0x41, 0xbe, n, 0, 0, 0]);
    }

    /// A branch over the next few bytes.
    fn branch_inside(&mut self) {
        let cc = self.c.below(16) as u8;
        self.put(&[0x70 | cc, 5]);
        self.load_constant();
    }

    fn rel(&mut self, opcode: &[u8], to: u64) {
        self.put(opcode);
        let end = self.here() + 4;
        self.put(&(to.wrapping_sub(end) as u32).to_le_bytes());
    }

    /// How a unit ends: on to another one.
    fn end(&mut self, n: usize) {
        let (to, cc) = (unit(self.c.below(UNITS)), self.c.below(16) as u8);
        // Loops are more fun than what is far.
        let to = if self.c.one_in(3) { self.at } else { to };
        match self.c.below(13) {
            0..3 => self.rel(&[0x0f, 0x80 | cc], to),
            // A compare, and the branch that goes with it.
            3..5 => {
                let (size, a, b) = (self.size(), self.any(), self.any());
                let opcode = self.c.pick(&[0x38, 0x84]) | u8::from(size != 1);
                self.modrm(size, &[], &[opcode], a, Rm::Reg(b), &[]);
                self.rel(&[0x0f, 0x80 | cc], to);
            }
            5 => {
                let (size, a) = (self.size(), self.any());
                let imm = self.imm(size);
                let (opcode, number) = self.c.pick(&[(0x80, 7), (0xf6, 0)]);
                self.modrm(size, &[], &[opcode | u8::from(size != 1)], number, Rm::Reg(a), &imm);
                self.rel(&[0x0f, 0x80 | cc], to);
            }
            6 | 7 => self.rel(&[0xe8], to),
            8 => {
                let n = self.c.pick(&[0u8, 0, 8]);
                self.put(if n == 0 { &[0xc3] } else { &[0xc2, 8, 0] });
            }
            // mov ecx, target; jmp or call
            9 => {
                let how = self.c.pick(&[0xe0u8, 0xd0]);
                self.put(&[0xb8 | RCX]);
                self.put(&(to as u32).to_le_bytes());
                self.put(&[0xff, how | RCX]);
            }
            // jmp or call [TABLE + ...]
            10 => {
                let (how, n) = (self.c.pick(&[4u8, 2]), self.c.below(UNITS) as i32);
                // The handlers' table is the supervisor's; this is another copy.
                self.modrm(4, &[], &[0xff], how, Rm::Mem(None, None, DATA as i32 + 0x400 + 8 * n), &[]);
            }
            // dec r15d; jnz; LOOP and the like are short
            11 => {
                self.put(&[0x41, 0xff, 0xcf]);
                self.rel(&[0x0f, 0x85], to);
                self.put(&[0x41, 0xbf, 20, 0, 0, 0]);
            }
            _ => {
                let opcode = self.c.pick(&[0xe0u8, 0xe1, 0xe2, 0xe3]);
                self.put(&[opcode, 5]);
                self.rel(&[0xe9], to);
            }
        }
        self.rel(&[0xe9], unit(n + 1));
    }
}
