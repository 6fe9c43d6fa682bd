//! Which operations have a template of host code, by their handlers.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::asm::{Arith, One, Turn};
use crate::lower::{by_cc, by_ea, by_width, by_width_ea};
use crate::op::Handler;
use crate::ops::sse::{self, M32, M64, M128, U128, gpr, mov};
use crate::ops::{alu, branch, flow, mem, muldiv, shift};
use crate::sse as o;

/// The source, or for one operand the place, of an arithmetic operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Register with register.
    Register,
    /// Register with immediate.
    Immediate,
    /// Register with memory, by the form of its address.
    Memory(u8),
    /// Memory with register.
    ToMemory(u8),
    /// Memory with immediate.
    ImmediateToMemory(u8),
}

/// An arithmetic operation: what the host is to compute, whether the result is kept, and whether flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub op: Arith,
    pub writes: bool,
    pub quiet: bool,
}

/// What a handler does, so that host code can do the same. Sizes are in bytes; `form` is that of
/// [`crate::lower::form`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Template {
    Nothing,
    Copy {
        size: u8,
    },
    Constant {
        size: u8,
    },
    Load {
        size: u8,
        form: u8,
    },
    Store {
        size: u8,
        form: u8,
    },
    StoreConstant {
        size: u8,
        form: u8,
    },
    /// MOVZX, MOVSX; from memory with the form of its address.
    Extend {
        signed: bool,
        to: u8,
        from: u8,
        form: Option<u8>,
    },
    Lea {
        size: u8,
        form: u8,
    },
    Binary {
        what: Binary,
        size: u8,
        source: Source,
    },
    Unary {
        op: One,
        size: u8,
        form: Option<u8>,
        quiet: bool,
    },
    Shift {
        op: Turn,
        size: u8,
        quiet: bool,
    },
    Multiply {
        size: u8,
        immediate: bool,
        quiet: bool,
    },
    Push,
    PushConstant,
    PushPair,
    Pop,
    PopPair,
    /// CBW, CWDE, CDQE.
    Widen {
        to: u8,
    },
    /// CWD, CDQ, CQO.
    SignToDx {
        size: u8,
    },
    Set {
        cc: u8,
    },
    Move {
        cc: u8,
        size: u8,
    },
    Jump {
        cc: u8,
    },
    CompareJump {
        cc: u8,
        size: u8,
        immediate: bool,
    },
    TestJump {
        cc: u8,
        size: u8,
        immediate: bool,
    },
    Call,
    Return,
    JumpRegister,
    CallRegister,
    JumpMemory {
        form: u8,
    },
    CallMemory {
        form: u8,
    },
    /// Exit to the same page.
    ExitLink,
    /// Exit to another page.
    ExitFar,
    /// A handler that chooses between the exits behind it.
    Chooses,
    Vector(Vector),
}

/// What a handler of SSE instructions does. Encodings are those of [`super::asm::Asm::sse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vector {
    /// Whether SSE can be used.
    Check,
    Load {
        size: u8,
        aligned: bool,
        form: u8,
    },
    Store {
        size: u8,
        aligned: bool,
        form: u8,
    },
    /// The low `size` bytes from register to register; the others are cleared or kept.
    Move {
        size: u8,
        clears: bool,
    },
    /// Packed integers: prefix 66H, the opcode; from memory, with the form of its address.
    Packed {
        opcode: u8,
        form: Option<u8>,
    },
    /// Packed integers by an immediate: the opcode and its number in ModRM.
    Shift {
        opcode: u8,
        number: u8,
    },
    /// Two registers and an immediate.
    Shuffle {
        prefix: u8,
        opcode: u8,
    },
    /// One number of `size` bytes; from memory, with the form of its address.
    Float {
        opcode: u8,
        size: u8,
        form: Option<u8>,
    },
    /// From a general register.
    FromGeneral {
        size: u8,
    },
    ToGeneral {
        size: u8,
    },
    /// From a signed integer of `from` bytes to a number of `to`.
    FromInteger {
        from: u8,
        to: u8,
    },
    /// To a signed integer of `to` bytes, truncated, from a number of `from`.
    ToInteger {
        from: u8,
        to: u8,
    },
    /// UCOMISS, UCOMISD, COMISS, COMISD.
    Compare {
        size: u8,
    },
}

/// The template of a handler. Where the compiler made one function of two handlers, they do the same.
pub(super) fn of(run: Handler) -> Option<Template> {
    static TABLE: LazyLock<HashMap<usize, Template>> = LazyLock::new(table);
    TABLE.get(&(run as usize)).copied()
}

/// The table under construction.
struct Table(HashMap<usize, Template>);

const SIZES: [u8; 4] = [1, 2, 4, 8];
const FORMS: [u8; 3] = [0, 1, 2];

impl Table {
    fn put(&mut self, run: Handler, template: Template) {
        self.0.insert(run as usize, template);
    }

    fn moves(&mut self) {
        for size in SIZES {
            self.put(by_width!(size, mem::mov_rr), Template::Copy { size });
            self.put(by_width!(size, mem::mov_ri), Template::Constant { size });
            for form in FORMS {
                self.put(by_width_ea!(size, form, mem::load), Template::Load { size, form });
                self.put(by_width_ea!(size, form, mem::store), Template::Store { size, form });
                self.put(by_width_ea!(size, form, mem::store_imm), Template::StoreConstant { size, form });
                if size > 1 {
                    self.put(by_width_ea!(size, form, mem::lea), Template::Lea { size, form });
                }
            }
        }
        self.put(mem::widen::<u16, u8>, Template::Widen { to: 2 });
        self.put(mem::widen::<u32, u16>, Template::Widen { to: 4 });
        self.put(mem::widen::<u64, u32>, Template::Widen { to: 8 });
        self.put(mem::sign_to_dx::<u16>, Template::SignToDx { size: 2 });
        self.put(mem::sign_to_dx::<u32>, Template::SignToDx { size: 4 });
        self.put(mem::sign_to_dx::<u64>, Template::SignToDx { size: 8 });
        self.put(flow::nop, Template::Nothing);
        self.put(mem::push_r::<u64>, Template::Push);
        self.put(mem::push_i::<u64>, Template::PushConstant);
        self.put(mem::push_pair, Template::PushPair);
        self.put(mem::pop_r::<u64>, Template::Pop);
        self.put(mem::pop_pair, Template::PopPair);
    }

    fn extensions(&mut self) {
        macro_rules! extend {
            ($($signed:literal $to:ty, $from:ty: $r:ident $m:ident;)*) => {$(
                let (signed, to, from) = ($signed, size_of::<$to>() as u8, size_of::<$from>() as u8);
                self.put(mem::$r::<$to, $from>, Template::Extend { signed, to, from, form: None });
                for form in FORMS {
                    let run = by_ea!(form, mem::$m::<$to, $from>) as Handler;
                    self.put(run, Template::Extend { signed, to, from, form: Some(form) });
                }
            )*};
        }
        extend! {
            false u16, u8: movzx_rr movzx_rm;
            false u32, u8: movzx_rr movzx_rm;
            false u32, u16: movzx_rr movzx_rm;
            true u16, u8: movsx_rr movsx_rm;
            true u32, u8: movsx_rr movsx_rm;
            true u32, u16: movsx_rr movsx_rm;
            true u32, u32: movsx_rr movsx_rm;
            true u64, u8: movsx_rr movsx_rm;
            true u64, u16: movsx_rr movsx_rm;
            true u64, u32: movsx_rr movsx_rm;
        }
    }

    fn arithmetic(&mut self) {
        macro_rules! binary {
            ($($t:ident $op:ident $writes:literal;)*) => {$(
                for size in SIZES {
                    let all = |quiet| Binary { op: Arith::$op, writes: $writes, quiet };
                    let of = |quiet, source| Template::Binary { what: all(quiet), size, source };
                    self.put(by_width!(size, alu::rr::<alu::$t>), of(false, Source::Register));
                    self.put(by_width!(size, alu::ri::<alu::$t>), of(false, Source::Immediate));
                    self.put(by_width!(size, alu::rr_quiet::<alu::$t>), of(true, Source::Register));
                    self.put(by_width!(size, alu::ri_quiet::<alu::$t>), of(true, Source::Immediate));
                    for form in FORMS {
                        let memory = Source::Memory(form);
                        self.put(by_width_ea!(size, form, alu::rm::<alu::$t>), of(false, memory));
                        self.put(by_width_ea!(size, form, alu::rm_quiet::<alu::$t>), of(true, memory));
                        self.put(by_width_ea!(size, form, alu::mr::<alu::$t>), of(false, Source::ToMemory(form)));
                        let immediate = Source::ImmediateToMemory(form);
                        self.put(by_width_ea!(size, form, alu::mi::<alu::$t>), of(false, immediate));
                    }
                }
            )*};
        }
        binary! {
            Add Add true;
            Or Or true;
            Adc Adc true;
            Sbb Sbb true;
            And And true;
            Sub Sub true;
            Xor Xor true;
            Cmp Cmp false;
            Test And false;
        }
        macro_rules! unary {
            ($($t:ident)*) => {$(
                for size in SIZES {
                    let of = |form, quiet| Template::Unary { op: One::$t, size, form, quiet };
                    self.put(by_width!(size, alu::r::<alu::$t>), of(None, false));
                    self.put(by_width!(size, alu::r_quiet::<alu::$t>), of(None, true));
                    for form in FORMS {
                        self.put(by_width_ea!(size, form, alu::m::<alu::$t>), of(Some(form), false));
                    }
                }
            )*};
        }
        unary!(Inc Dec Neg Not);
        for size in [2, 4, 8] {
            let of = |immediate, quiet| Template::Multiply { size, immediate, quiet };
            self.put(by_width!(size, muldiv::imul_rr), of(false, false));
            self.put(by_width!(size, muldiv::imul_rri), of(true, false));
            self.put(by_width!(size, muldiv::imul_rr_quiet), of(false, true));
            self.put(by_width!(size, muldiv::imul_rri_quiet), of(true, true));
        }
    }

    fn shifts(&mut self) {
        macro_rules! shift {
            ($($t:ident)*) => {$(
                for size in SIZES {
                    let of = |quiet| Template::Shift { op: Turn::$t, size, quiet };
                    self.put(by_width!(size, shift::ri_quiet::<shift::$t>), of(true));
                    if !matches!(Turn::$t, Turn::Rol | Turn::Ror) {
                        self.put(by_width!(size, shift::ri::<shift::$t>), of(false));
                    }
                }
            )*};
        }
        shift!(Shl Shr Sar Rol Ror);
    }

    fn conditions(&mut self) {
        for cc in 0..16 {
            self.put(by_cc!(cc, mem::setcc_r), Template::Set { cc });
            self.put(by_cc!(cc, mem::cmov_rr::<u16>), Template::Move { cc, size: 2 });
            self.put(by_cc!(cc, mem::cmov_rr::<u32>), Template::Move { cc, size: 4 });
            self.put(by_cc!(cc, mem::cmov_rr::<u64>), Template::Move { cc, size: 8 });
            self.put(by_cc!(cc, branch::jcc), Template::Jump { cc });
            macro_rules! pairs {
                ($($t:ty)*) => {$(
                    let size = size_of::<$t>() as u8;
                    let compare = |immediate| Template::CompareJump { cc, size, immediate };
                    let test = |immediate| Template::TestJump { cc, size, immediate };
                    self.put(by_cc!(cc, branch::cmp_rr_jcc::<$t>), compare(false));
                    self.put(by_cc!(cc, branch::cmp_ri_jcc::<$t>), compare(true));
                    self.put(by_cc!(cc, branch::test_rr_jcc::<$t>), test(false));
                    self.put(by_cc!(cc, branch::test_ri_jcc::<$t>), test(true));
                )*};
            }
            pairs!(u8 u16 u32 u64);
        }
    }

    fn branches(&mut self) {
        self.put(branch::call_rel::<u64>, Template::Call);
        self.put(branch::ret::<u64>, Template::Return);
        self.put(branch::jmp_r::<u64>, Template::JumpRegister);
        self.put(branch::call_r::<u64>, Template::CallRegister);
        for form in FORMS {
            self.put(by_ea!(form, branch::jmp_m::<u64>), Template::JumpMemory { form });
            self.put(by_ea!(form, branch::call_m::<u64>), Template::CallMemory { form });
        }
        self.put(branch::exit_link, Template::ExitLink);
        self.put(branch::exit_far, Template::ExitFar);
        self.put(branch::loop_cx, Template::Chooses);
    }
}

impl Table {
    fn vector(&mut self, run: Handler, vector: Vector) {
        self.put(run, Template::Vector(vector));
    }

    fn vector_moves(&mut self) {
        use Vector as V;
        self.vector(sse::check_sse, V::Check);
        for form in FORMS {
            let load = |size, aligned| V::Load { size, aligned, form };
            self.vector(by_ea!(form, mov::load::<M128>), load(16, true));
            self.vector(by_ea!(form, mov::load::<U128>), load(16, false));
            self.vector(by_ea!(form, mov::load::<M64>), load(8, false));
            self.vector(by_ea!(form, mov::load::<M32>), load(4, false));
            let store = |size, aligned| V::Store { size, aligned, form };
            let [aligned, unaligned, low]: [Handler; 3] = match form {
                0 => [mov::store128::<true, 0>, mov::store128::<false, 0>, mov::store64::<false, 0>],
                1 => [mov::store128::<true, 1>, mov::store128::<false, 1>, mov::store64::<false, 1>],
                _ => [mov::store128::<true, 2>, mov::store128::<false, 2>, mov::store64::<false, 2>],
            };
            self.vector(aligned, store(16, true));
            self.vector(unaligned, store(16, false));
            self.vector(low, store(8, false));
            self.vector(by_ea!(form, mov::store32), store(4, false));
        }
        self.vector(mov::mov_rr, V::Move { size: 16, clears: false });
        self.vector(mov::movq_rr, V::Move { size: 8, clears: true });
        self.vector(mov::movsd_rr, V::Move { size: 8, clears: false });
        self.vector(mov::movss_rr, V::Move { size: 4, clears: false });
        self.vector(gpr::from_gpr::<u32>, V::FromGeneral { size: 4 });
        self.vector(gpr::from_gpr::<u64>, V::FromGeneral { size: 8 });
        self.vector(gpr::to_gpr::<u32>, V::ToGeneral { size: 4 });
        self.vector(gpr::to_gpr::<u64>, V::ToGeneral { size: 8 });
    }

    fn packed(&mut self) {
        macro_rules! packed {
            ($($shape:ident { $($op:ident $opcode:literal)* })*) => {$($(
                self.vector(sse::$shape::<o::$op>, Vector::Packed { opcode: $opcode, form: None });
            )*)*};
        }
        macro_rules! from_memory {
            ($($op:ident $opcode:literal)*) => {$(
                for form in FORMS {
                    let run = by_ea!(form, sse::op2_m::<o::$op>) as Handler;
                    self.vector(run, Vector::Packed { opcode: $opcode, form: Some(form) });
                }
            )*};
        }
        // Opcodes of SSE2 (SDM vol. 2 appendix A), which every host has.
        packed! {
            op2_far {
                Punpcklbw 0x60 Punpcklwd 0x61 Punpckldq 0x62 Pmaddwd 0xf5 Psadbw 0xf6
            }
            op2 {
                Packsswb 0x63 Pcmpgtb 0x64 Pcmpgtw 0x65 Pcmpgtd 0x66 Packuswb 0x67 Punpckhbw 0x68 Punpckhwd 0x69
                Punpckhdq 0x6a Packssdw 0x6b Punpcklqdq 0x6c Punpckhqdq 0x6d Pcmpeqb 0x74 Pcmpeqw 0x75
                Pcmpeqd 0x76 Paddq 0xd4 Pmullw 0xd5 Psubusb 0xd8 Psubusw 0xd9 Pminub 0xda Pand 0xdb
                Paddusb 0xdc Paddusw 0xdd Pmaxub 0xde Pandn 0xdf Pavgb 0xe0 Pavgw 0xe3 Pmulhuw 0xe4 Pmulhw 0xe5
                Psubsb 0xe8 Psubsw 0xe9 Pminsw 0xea Por 0xeb Paddsb 0xec Paddsw 0xed Pmaxsw 0xee Pxor 0xef
                Pmuludq 0xf4 Psubb 0xf8 Psubw 0xf9 Psubd 0xfa Psubq 0xfb Paddb 0xfc Paddw 0xfd Paddd 0xfe
            }
        }
        from_memory! {
            Pand 0xdb Pandn 0xdf Por 0xeb Pxor 0xef Pcmpeqb 0x74 Pcmpeqw 0x75 Pcmpeqd 0x76 Paddq 0xd4 Pminub 0xda
            Pmaxub 0xde Psubb 0xf8 Psubw 0xf9 Psubd 0xfa Psubq 0xfb Paddb 0xfc Paddw 0xfd Paddd 0xfe
        }
        macro_rules! shifts {
            ($($op:ident $opcode:literal $number:literal;)*) => {$(
                self.vector(sse::shift_i::<o::$op>, Vector::Shift { opcode: $opcode, number: $number });
            )*};
        }
        shifts! {
            Psrlw 0x71 2; Psraw 0x71 4; Psllw 0x71 6; Psrld 0x72 2; Psrad 0x72 4; Pslld 0x72 6; Psrlq 0x73 2;
            Psrldq 0x73 3; Psllq 0x73 6; Pslldq 0x73 7;
        }
        macro_rules! shuffles {
            ($($op:ident $prefix:literal $opcode:literal;)*) => {$(
                self.vector(sse::op2_imm::<o::$op>, Vector::Shuffle { prefix: $prefix, opcode: $opcode });
            )*};
        }
        shuffles! {
            Pshufd 0x66 0x70; Pshufhw 0xf3 0x70; Pshuflw 0xf2 0x70; Shufps 0 0xc6; Shufpd 0x66 0xc6;
        }
    }

    fn floats(&mut self) {
        macro_rules! floats {
            ($($op:ident $size:ident $opcode:literal;)*) => {$(
                let size = <$size as sse::Operand>::BYTES as u8;
                let of = |form| Vector::Float { opcode: $opcode, size, form };
                self.vector(sse::fp2::<o::$op>, of(None));
                for form in FORMS {
                    let run: Handler = match form {
                        0 => sse::fp2_m::<o::$op, $size, 0>,
                        1 => sse::fp2_m::<o::$op, $size, 1>,
                        _ => sse::fp2_m::<o::$op, $size, 2>,
                    };
                    self.vector(run, of(Some(form)));
                }
            )*};
        }
        floats! {
            Addsd M64 0x58; Mulsd M64 0x59; Subsd M64 0x5c; Divsd M64 0x5e;
            Addss M32 0x58; Mulss M32 0x59; Subss M32 0x5c; Divss M32 0x5e;
        }
        self.vector(sse::fp2::<o::Sqrtsd>, Vector::Float { opcode: 0x51, size: 8, form: None });
        self.vector(sse::fp2::<o::Sqrtss>, Vector::Float { opcode: 0x51, size: 4, form: None });
        macro_rules! formats {
            ($($format:ident $size:literal;)*) => {$(
                let size = $size;
                self.vector(gpr::from_int::<gpr::$format, u32>, Vector::FromInteger { from: 4, to: size });
                self.vector(gpr::from_int::<gpr::$format, u64>, Vector::FromInteger { from: 8, to: size });
                self.vector(gpr::to_int::<gpr::$format, u32, true>, Vector::ToInteger { from: size, to: 4 });
                self.vector(gpr::to_int::<gpr::$format, u64, true>, Vector::ToInteger { from: size, to: 8 });
                self.vector(gpr::compare::<gpr::$format, false>, Vector::Compare { size });
                self.vector(gpr::compare::<gpr::$format, true>, Vector::Compare { size });
            )*};
        }
        formats! { Single 4; Double 8; }
    }
}

fn table() -> HashMap<usize, Template> {
    let mut table = Table(HashMap::new());
    table.moves();
    table.extensions();
    table.arithmetic();
    table.shifts();
    table.conditions();
    table.branches();
    table.vector_moves();
    table.packed();
    table.floats();
    table.0
}
