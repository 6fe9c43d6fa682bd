//! A bare processor with memory, set up in one of its modes, for tests that run small programs on it.
//!
//! Code is assembled with iced-x86 and runs outside VMX operation until it halts at privilege level 0.
#![allow(dead_code)]

pub mod mode;

use std::sync::Arc;

use iced_x86::code_asm::{CodeAssembler, IcedError};
use trapline_memory::arena::{Arena, ArenaOptions};
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::{Activity, Segment, Table, cr0, cr4, efer, reg, seg};
use trapline_softcpu::cpuid::Model;

/// Where programs go unless they say otherwise.
pub const CODE: u64 = 0x8000;
/// Top of the stack at privilege level 0.
pub const STACK: u64 = 0x7000;
/// Top of the stack at privilege level 3.
pub const USER_STACK: u64 = 0x6000;
/// Page for data.
pub const DATA: u64 = 0x9000;
/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x2000;
/// Task-state segment.
pub const TSS: u64 = 0x3000;
/// Level-4 (or PAE, or 32-bit) table; the others follow.
pub const TABLES: u64 = 0x10_0000;
/// Where an unexpected exception ends.
pub const UNEXPECTED: u64 = 0x5000;

/// Selectors of the descriptor table that [`Machine::protected`] and [`Machine::long`] set up.
#[allow(missing_docs)]
pub mod sel {
    pub const CODE: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_CODE32: u16 = 0x1b;
    pub const USER_DATA: u16 = 0x23;
    /// 64-bit code in long mode, as SYSRET wants it.
    pub const USER_CODE: u16 = 0x2b;
    pub const TSS: u16 = 0x30;
    /// Free for the test's own.
    pub const FREE: u16 = 0x40;
}

/// Access rights of a present descriptor, in the layout of the VMCS.
#[allow(missing_docs)]
pub mod rights {
    pub const CODE32: u32 = 0xc09b;
    pub const CODE16: u32 = 0x009b;
    pub const CODE64: u32 = 0xa09b;
    pub const DATA: u32 = 0xc093;
    pub const USER: u32 = 0x60;
}

/// A processor and its memory.
pub struct Machine {
    /// The processor.
    pub cpu: Cpu,
    /// Its memory.
    pub arena: Arc<Arena>,
    bits: u32,
}

impl Machine {
    /// In real mode with all segments at 0.
    pub fn real() -> Self {
        Self::real_model(Model::max())
    }

    /// As [`Machine::real`], of this model.
    pub fn real_model(model: Model) -> Self {
        let arena = Arc::new(Arena::new(8 << 20, &ArenaOptions::default()).unwrap());
        let mut cpu = Cpu::new(arena.clone(), Arc::new(model));
        mode::apply(&mut cpu);
        let mut m = Self { cpu, arena, bits: 16 };
        m.become_real();
        m
    }

    fn become_real(&mut self) {
        let cpu = &mut self.cpu;
        cpu.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0) };
        cpu.set_cr0(cr0::ET | cr0::NE).unwrap();
        cpu.mode_changed();
        cpu.rip = CODE;
        cpu.regs[usize::from(reg::RSP)] = STACK;
    }

    /// In flat 32-bit protected mode without paging, at privilege level 0; every exception leads to
    /// [`UNEXPECTED`].
    pub fn protected() -> Self {
        let mut m = Self::real();
        m.bits = 32;
        m.tables();
        m.descriptor(sel::CODE, 0, 0xfffff, rights::CODE32);
        m.descriptor(sel::TSS, TSS, 0x67, 0x89);
        m.write(TSS + 4, STACK as u32);
        m.write(TSS + 8, u32::from(sel::DATA));
        // No I/O permission bitmap.
        m.write(TSS + 0x66, 0x68u16);
        for v in 0..32 {
            m.gate(v, sel::CODE, UNEXPECTED, 0x8e);
        }
        m.cpu.set_cr0(cr0::ET | cr0::NE | cr0::PE).unwrap();
        m.load_segments(rights::CODE32);
        m
    }

    /// In 64-bit mode at privilege level 0. The first 8 MiB are identity-mapped with 4 KiB pages that
    /// user code may access; every exception leads to [`UNEXPECTED`].
    pub fn long() -> Self {
        Self::long_model(Model::max())
    }

    /// As [`Machine::long`], of this model.
    pub fn long_model(model: Model) -> Self {
        let mut m = Self::real_model(model);
        m.become_long();
        m
    }

    /// From [`Machine::long`] to there again, with what memory holds beside tables.
    pub fn restart_long(&mut self) {
        self.cpu.reset();
        self.become_real();
        self.become_long();
    }

    fn become_long(&mut self) {
        let m = self;
        m.bits = 64;
        m.tables();
        m.descriptor(sel::CODE, 0, 0xfffff, rights::CODE64);
        m.descriptor(sel::USER_CODE, 0, 0xfffff, rights::CODE64 | rights::USER);
        m.descriptor(sel::TSS, TSS, 0x67, 0x89);
        m.write(TSS + 4, STACK);
        m.write(TSS + 0x66, 0x68u16);
        for v in 0..32 {
            m.gate64(v, UNEXPECTED, 0x8e, 0);
        }
        for (level, n) in [(0, 1), (1, 1), (2, 4)] {
            for i in 0..n {
                m.write(TABLES + level * 0x1000 + i * 8, (TABLES + (level + 1 + i) * 0x1000) | 7);
            }
        }
        for page in 0..2048 {
            m.write(TABLES + 0x3000 + page * 8, page << 12 | 7);
        }
        m.cpu.set_cr4(cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT).unwrap();
        m.cpu.set_cr3(TABLES).unwrap();
        m.cpu.set_efer(efer::LME | efer::NXE | efer::SCE).unwrap();
        m.cpu.set_cr0(cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP).unwrap();
        m.load_segments(rights::CODE64);
    }

    fn tables(&mut self) {
        self.cpu.gdtr = Table { base: GDT, limit: 0x7f };
        self.cpu.idtr = Table { base: IDT, limit: 0xfff };
        self.descriptor(sel::DATA, 0, 0xfffff, rights::DATA);
        self.descriptor(sel::USER_CODE32, 0, 0xfffff, rights::CODE32 | rights::USER);
        self.descriptor(sel::USER_DATA, 0, 0xfffff, rights::DATA | rights::USER);
        self.descriptor(sel::USER_CODE, 0, 0xfffff, rights::CODE32 | rights::USER);
        self.write(UNEXPECTED, 0xf4u8);
    }

    fn load_segments(&mut self, code: u32) {
        let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
        for s in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.cpu.seg[s] = flat(sel::DATA, rights::DATA);
        }
        self.cpu.seg[seg::CS] = flat(sel::CODE, code);
        self.cpu.seg[seg::TR] = Segment { selector: sel::TSS, base: TSS, limit: 0x67, attr: 0x8b };
        self.write(GDT + u64::from(sel::TSS) + 5, 0x8bu8);
        self.cpu.mode_changed();
    }

    /// Writes a descriptor; `limit` is the raw 20-bit field.
    pub fn descriptor(&mut self, selector: u16, base: u64, limit: u32, attr: u32) {
        let limit = u64::from(limit);
        let d = limit & 0xffff
            | (base & 0xff_ffff) << 16
            | (limit & 0xf_0000) << 32
            | u64::from(attr & 0xf0ff) << 40
            | (base >> 24 & 0xff) << 56;
        self.write(GDT + u64::from(selector & !7), d);
        if self.bits == 64 && attr & 0x10 == 0 {
            self.write(GDT + u64::from(selector & !7) + 8, base >> 32);
        }
    }

    /// Writes an 8-byte IDT gate with access byte `kind`.
    pub fn gate(&mut self, vector: u8, selector: u16, offset: u64, kind: u8) {
        let g = gate(selector, offset, kind, 0);
        self.write(IDT + u64::from(vector) * 8, g);
    }

    /// Writes a 16-byte IDT gate to the kernel's code segment.
    pub fn gate64(&mut self, vector: u8, offset: u64, kind: u8, ist: u8) {
        let g = gate(sel::CODE, offset, kind, ist);
        self.write(IDT + u64::from(vector) * 16, g);
        self.write(IDT + u64::from(vector) * 16 + 8, offset >> 32);
    }

    /// Assembles a program at [`CODE`], in the mode's own code size.
    pub fn code(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.code_at(CODE, self.bits, f)
    }

    /// Assembles `bits`-bit code; returns where it ends.
    pub fn code_at(
        &mut self,
        at: u64,
        bits: u32,
        f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> u64 {
        let mut a = CodeAssembler::new(bits).unwrap();
        f(&mut a).unwrap();
        let bytes = a.assemble(at).unwrap();
        self.arena.write_bytes(at, &bytes).unwrap();
        self.cpu.memory_changed(at, bytes.len() as u64);
        at + bytes.len() as u64
    }

    /// Assembles a program at [`CODE`] and runs it from there.
    pub fn run_code(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.code(f);
        self.cpu.rip = CODE;
        self.run();
    }

    /// Runs until HLT, and leaves the processor active after it. Panics if that takes long.
    pub fn run(&mut self) {
        for _ in 0..100_000 {
            assert!(self.cpu.run_for(1).is_none(), "VM exit outside VMX operation");
            match self.cpu.activity {
                Activity::Active => {}
                Activity::Hlt => {
                    self.cpu.activity = Activity::Active;
                    return;
                }
                other => panic!("{other:?} at {:#x}", self.cpu.rip),
            }
        }
        panic!("no HLT; at {:#x}", self.cpu.rip);
    }

    /// Runs until the code at `handler` halts: the place where an exception is expected to lead.
    pub fn run_to(&mut self, handler: u64) {
        self.run();
        assert_eq!(self.cpu.rip, handler + 1, "cr2 {:#x}, stack {:x?}", self.cpu.cr2, self.stack::<u64>(6));
    }

    /// A general register.
    pub fn reg(&self, r: u8) -> u64 {
        self.cpu.regs[usize::from(r)]
    }

    /// Sets a general register.
    pub fn set(&mut self, r: u8, v: u64) {
        self.cpu.regs[usize::from(r)] = v;
    }

    /// Writes memory.
    pub fn write<T: Value>(&mut self, at: u64, v: T) {
        let bytes = v.word().to_le_bytes();
        self.arena.write_bytes(at, &bytes[..size_of::<T>()]).unwrap();
        self.cpu.memory_changed(at, size_of::<T>() as u64);
    }

    /// Reads memory.
    pub fn read<T: Value>(&self, at: u64) -> T {
        let mut bytes = [0; 8];
        self.arena.read_bytes(at, &mut bytes[..size_of::<T>()]).unwrap();
        T::of(u64::from_le_bytes(bytes))
    }

    /// The top of the stack, for stacks at their linear address.
    pub fn stack<T: Value>(&self, words: usize) -> Vec<T> {
        let sp = self.reg(reg::RSP);
        (0..words).map(|i| self.read(sp + (i * size_of::<T>()) as u64)).collect()
    }

    /// Puts a HLT somewhere: a place for a handler or an end.
    pub fn halt_at(&mut self, at: u64) -> u64 {
        self.write(at, 0xf4u8);
        at
    }
}

fn gate(selector: u16, offset: u64, kind: u8, ist: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(ist) << 32
        | u64::from(kind) << 40
        | (offset >> 16 & 0xffff) << 48
}

/// Integers in guest memory.
pub trait Value: Copy {
    /// Zero-extended.
    fn word(self) -> u64;
    /// Truncated.
    fn of(v: u64) -> Self;
}

macro_rules! value {
    ($($t:ty),*) => {$(
        impl Value for $t {
            fn word(self) -> u64 {
                self as u64
            }
            fn of(v: u64) -> Self {
                v as $t
            }
        }
    )*};
}
value!(u8, u16, u32, u64);
