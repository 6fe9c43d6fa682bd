//! Every x87 instruction on the host processor and on ours: the same registers, status and memory. Needs an
//! x86-64 Linux host.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code)]

mod common;

use common::{CODE, DATA, Machine};
use iced_x86::{
    Code, CpuidFeature, Encoder, Instruction, MemoryOperand, OpCodeOperandKind as Kind, Register,
};
use trapline_softcpu::cpu::reg;

/// Places in the data block: the state before, the operand, the state after, EFLAGS and AX after.
const OPERAND: usize = 512;
const AFTER: usize = 1024;
const FLAGS: usize = 1536;
const LEN: usize = 2048;
type Block = [u8; LEN];

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An 80-bit number: most often one of ordinary size.
    fn number(&mut self) -> [u8; 10] {
        let (exp, mantissa) = match self.below(8) {
            0 => (0, 0),
            1 => (0x7fff, 1 << 63),
            2 => (0x7fff, 1 << 63 | self.next() >> 1),
            3 => (0x3fff + self.below(8), (self.below(32) | 32) << 58),
            4 => (self.below(0x8000), self.next()),
            _ => (0x3ff0 + self.below(32), self.next() | 1 << 63),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(exp as u16 | (self.next() as u16 & 0x8000)).to_le_bytes());
        bytes
    }

    /// A state to begin with: all exceptions masked, and a memory operand.
    fn block(&mut self, size: usize) -> Block {
        let mut b = [0; LEN];
        let control = 0x7f | (self.next() & 0xf00);
        b[..2].copy_from_slice(&(control as u16).to_le_bytes());
        b[2..4].copy_from_slice(&(self.next() as u16 & 0x7f3f).to_le_bytes());
        b[4] = if self.below(4) == 0 { self.next() as u8 } else { 0xff << self.below(4) };
        b[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        for i in 0..8 {
            b[32 + 16 * i..42 + 16 * i].copy_from_slice(&self.number());
        }
        let n = self.number();
        let value = match self.below(3) {
            0 => (f64::from(self.next() as i32) / 64.0).to_bits(),
            1 => u64::from((self.next() as i16 as f32 / 8.0).to_bits()),
            _ => self.next(),
        };
        b[OPERAND..OPERAND + 8].copy_from_slice(&value.to_le_bytes());
        if size >= 10 {
            b[OPERAND..OPERAND + 10].copy_from_slice(&n);
            // An environment: masked again, and FSAVE's registers.
            b[OPERAND + 10..OPERAND + 128].fill_with(|| self.next() as u8);
        }
        b
    }
}

/// The instruction between loading and storing of a state at RDI.
fn program(i: &Instruction) -> Vec<u8> {
    let state =
        |code, at: i64| Instruction::with1(code, MemoryOperand::with_base_displ(Register::RDI, at)).unwrap();
    let flags = MemoryOperand::with_base_displ(Register::RDI, FLAGS as i64);
    let ax = MemoryOperand::with_base_displ(Register::RDI, FLAGS as i64 + 8);
    let list = [
        state(Code::Fxrstor_m512byte, 0),
        Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 0).unwrap(),
        Instruction::with2(Code::Cmp_rm32_imm8, Register::ESI, 5).unwrap(),
        *i,
        Instruction::with2(Code::Mov_rm16_r16, ax, Register::AX).unwrap(),
        Instruction::with(Code::Pushfq),
        Instruction::with1(Code::Pop_rm64, flags).unwrap(),
        state(Code::Fxsave_m512byte, AFTER as i64),
        Instruction::with(Code::Fninit),
    ];
    let mut encoder = Encoder::new(64);
    for i in list {
        encoder.encode(&i, 0).unwrap();
    }
    encoder.take_buffer()
}

/// Executable memory on the host.
struct Host(*mut u8);

impl Host {
    fn new() -> Self {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a fresh anonymous mapping.
        let p = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(p, libc::MAP_FAILED);
        Self(p.cast())
    }

    /// Runs `code` with RDI pointing to the block and `esi`.
    fn run(&self, code: &[u8], block: &mut Block, esi: u32) {
        #[repr(align(16))]
        struct Aligned(Block);
        let mut aligned = Aligned(*block);
        // SAFETY: the page is ours; the code changes RAX, flags and x87 state only, which it leaves empty,
        // and writes inside the block.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len());
            self.0.add(code.len()).write(0xc3);
            let f: extern "C" fn(*mut u8, u32) = std::mem::transmute(self.0);
            f(aligned.0.as_mut_ptr(), esi);
        }
        *block = aligned.0;
    }
}

fn run_ours(m: &mut Machine, code: &[u8], block: &mut Block, esi: u32) {
    m.arena.write_bytes(CODE, code).unwrap();
    m.arena.write_bytes(CODE + code.len() as u64, &[0xf4]).unwrap();
    m.cpu.memory_changed(CODE, code.len() as u64 + 1);
    m.arena.write_bytes(DATA, block).unwrap();
    m.set(reg::RDI, DATA);
    m.set(reg::RSI, u64::from(esi));
    m.set(reg::RAX, 0);
    m.cpu.rip = CODE;
    m.run();
    assert_eq!(m.cpu.rip, CODE + code.len() as u64 + 1);
    m.arena.read_bytes(DATA, block).unwrap();
}

fn is_x87(code: Code) -> bool {
    use CpuidFeature as F;
    let info = code.op_code();
    let ours = |f: &F| matches!(f, F::FPU | F::FPU287 | F::FPU387);
    // The forms with a WAIT before them are two instructions.
    info.mode64() && !info.fwait() && code.cpuid_features().iter().any(ours)
}

/// All forms of an instruction: with each stack register, or memory.
fn forms(code: Code) -> Vec<Instruction> {
    let info = code.op_code();
    let kinds = info.op_kinds();
    let memory = MemoryOperand::with_base_displ(Register::RDI, OPERAND as i64);
    match kinds {
        [] => vec![Instruction::with(code)],
        [Kind::mem] => vec![Instruction::with1(code, memory).unwrap()],
        [Kind::ax] => vec![Instruction::with1(code, Register::AX).unwrap()],
        _ => (0..8)
            .map(|n| {
                let operand = |k: &Kind| match k {
                    Kind::st0 => Register::ST0,
                    Kind::sti_opcode => Register::ST0 + n,
                    other => panic!("{code:?}: {other:?}"),
                };
                match kinds {
                    [a] => Instruction::with1(code, operand(a)),
                    [a, b] => Instruction::with2(code, operand(a), operand(b)),
                    _ => panic!("{code:?}"),
                }
                .unwrap()
            })
            .collect(),
    }
}

/// What does not have to agree: system flags, and the last instruction's pointers and opcode, which processors keep in
/// different ways and of which the addresses differ here.
fn forget(code: Code, b: &mut Block) {
    b[AFTER + 6..AFTER + 24].fill(0);
    let flags = b[FLAGS + 1] & 0x08;
    (b[FLAGS], b[FLAGS + 1]) = (b[FLAGS] & 0xd5, flags);
    // MXCSR_MASK is the model's.
    b[AFTER + 28..AFTER + 32].fill(0);
    let at = match code {
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => OPERAND + 6..OPERAND + 14,
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => OPERAND + 12..OPERAND + 28,
        _ => return,
    };
    b[at].fill(0);
}

/// Within an ulp of the exact value, but not the same on every processor.
fn is_approximate(code: Code) -> bool {
    use Code::*;
    matches!(code, F2xm1 | Fyl2x | Fyl2xp1 | Fpatan | Fptan | Fsin | Fcos | Fsincos)
}

#[test]
fn every_instruction_does_what_the_host_does() {
    let (mut rng, host, mut m) = (Rng(7), Host::new(), Machine::long());
    let mut seen = 0;
    for code in Code::values().filter(|c| is_x87(*c)) {
        for i in forms(code) {
            let bytes = program(&i);
            seen += 1;
            for n in 0..120 {
                let mut before = rng.block(i.memory_size().size());
                if is_approximate(code) {
                    // Nothing but an empty stack has one right answer.
                    before[4] = 0;
                }
                let esi = rng.below(10) as u32;
                let (mut theirs, mut ours) = (before, before);
                host.run(&bytes, &mut theirs, esi);
                run_ours(&mut m, &bytes, &mut ours, esi);
                forget(code, &mut theirs);
                forget(code, &mut ours);
                if ours != theirs {
                    let at = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap();
                    panic!(
                        "{i} ({code:?}) try {n}: differs at {at}\nbefore {:x?} {:x?}\nours   {:x?} {:x?}\ntheirs {:x?} {:x?}",
                        &before[..160],
                        &before[OPERAND..OPERAND + 16],
                        &ours[AFTER..AFTER + 160],
                        &ours[OPERAND..OPERAND + 16],
                        &theirs[AFTER..AFTER + 160],
                        &theirs[OPERAND..OPERAND + 16]
                    );
                }
            }
        }
    }
    assert!(seen > 300, "{seen}");
}
