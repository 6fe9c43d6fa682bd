//! Which operations have a template of host code, by their handlers.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::asm::{Arith, One, Turn};
use crate::lower::{by_cc, by_ea, by_width, by_width_ea};
use crate::op::Handler;
use crate::ops::{alu, branch, flow, mem, muldiv, shift};

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
            let of = |immediate| Template::Multiply { size, immediate };
            self.put(by_width!(size, muldiv::imul_rr_quiet), of(false));
            self.put(by_width!(size, muldiv::imul_rri_quiet), of(true));
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

fn table() -> HashMap<usize, Template> {
    let mut table = Table(HashMap::new());
    table.moves();
    table.extensions();
    table.arithmetic();
    table.shifts();
    table.conditions();
    table.branches();
    table.0
}
