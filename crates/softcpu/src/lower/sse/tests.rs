//! Instructions executed on the processor and on the host: the same bytes, the same result.

use std::sync::Arc;

use iced_x86::{Code, Encoder, EncodingKind, Instruction, OpCodeOperandKind as Kind, Register};
use trapline_memory::arena::{Arena, ArenaOptions};

use crate::cpu::{Cpu, Pending, cr0, cr4, reg, vector};
use crate::cpuid::Model;
use crate::op::Flow;
use crate::sse::tests::host::{FLAGS, Host, MEMORY, MXCSR_DEFAULT, Operand, State, instruction};
use crate::sse::tests::operands::Random;
use crate::sse::{Mxcsr, Xmm};

/// Guest address that RBX points to.
const BASE: u64 = 0x4000;

/// Guest address of the code.
const CODE: u64 = 0x1000;

struct Machine {
    cpu: Cpu,
    arena: Arc<Arena>,
}

impl Machine {
    /// A processor in flat 64-bit mode without paging, SSE switched on.
    fn new() -> Self {
        Self::running(false)
    }

    /// As [`Machine::new`], which has the interpreter alone, or with host code at once.
    fn running(native: bool) -> Self {
        let arena = Arc::new(Arena::new(1 << 20, &ArenaOptions::default()).unwrap());
        let mut cpu = Cpu::new(arena.clone(), Arc::new(Model::max()));
        cpu.translate_after(native.then_some(0));
        cpu.long64 = true;
        cpu.ip_mask = u64::MAX;
        cpu.ea_base = [0; 8];
        cpu.cr0 = cr0::PE | cr0::NE;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        Self { cpu, arena }
    }

    /// Puts the instructions into memory, an INT3 after them.
    fn assemble(&mut self, instructions: &[Instruction]) {
        let mut encoder = Encoder::new(64);
        let mut ip = CODE;
        for i in instructions {
            ip += encoder.encode(i, ip).unwrap() as u64;
        }
        let mut bytes = encoder.take_buffer();
        bytes.push(0xcc);
        self.arena.write_bytes(CODE, &bytes).unwrap();
        self.cpu.memory_changed(CODE, bytes.len() as u64);
    }

    /// Runs what was assembled; the vector of the exception that stopped it, if one did.
    fn run(&mut self) -> Option<u8> {
        self.cpu.pending = Pending::None;
        self.cpu.mmu.replay.clear();
        self.cpu.icount = 0;
        let key = self.cpu.code_key();
        let first = self.cpu.block_at(CODE, key).expect("code cannot be fetched");
        let flow = (first.run)(&mut self.cpu, first);
        match self.cpu.pending {
            Pending::Event(e) if flow == Flow::Stop => (e.vector != vector::BP).then_some(e.vector),
            other => panic!("{flow:?}, {other:?}"),
        }
    }

    fn execute(&mut self, instructions: &[Instruction]) -> Option<u8> {
        self.assemble(instructions);
        self.run()
    }

    fn load(&mut self, s: &State) {
        let at = BASE + MEMORY as u64;
        for i in 0..3 {
            self.cpu.xmm[i] = Xmm(s.xmm[i]);
            self.cpu.x87.set_mmx(i, s.mm[i]);
        }
        self.cpu.x87.enter_mmx();
        for (r, v) in
            [(reg::RAX, s.rax), (reg::RCX, s.rcx), (reg::RDX, s.rdx), (reg::RBX, BASE), (reg::RDI, at)]
        {
            self.cpu.regs[usize::from(r)] = v;
        }
        self.cpu.flags.set(s.rflags & FLAGS);
        self.cpu.mxcsr = Mxcsr::new(s.mxcsr);
        self.arena.write_bytes(at, &s.memory).unwrap();
    }

    /// The state afterwards, over the state before.
    fn store(&self, before: &State) -> State {
        let mut s = *before;
        for i in 0..3 {
            s.xmm[i] = self.cpu.xmm[i].0;
            s.mm[i] = self.cpu.x87.mmx(i);
        }
        let get = |r: u8| self.cpu.regs[usize::from(r)];
        (s.rax, s.rcx, s.rdx) = (get(reg::RAX), get(reg::RCX), get(reg::RDX));
        s.rflags = self.cpu.flags.get();
        s.mxcsr = self.cpu.mxcsr.value();
        self.arena.read_bytes(BASE + MEMORY as u64, &mut s.memory).unwrap();
        s
    }
}

/// Operands for a code, its memory operand in memory or not; `None` if it has no such form.
fn operands(code: Code, memory: bool, imm: u8) -> Option<Vec<Operand>> {
    let info = code.op_code();
    let mut vectors = [Register::XMM1, Register::XMM2].into_iter();
    let mut mmx = [Register::MM1, Register::MM2].into_iter();
    let mut has_memory = false;
    let mut out = Vec::new();
    for kind in info.op_kinds() {
        let may_be_memory = matches!(
            kind,
            Kind::mem | Kind::xmm_or_mem | Kind::mm_or_mem | Kind::r32_or_mem | Kind::r64_or_mem
        );
        let operand = match kind {
            _ if may_be_memory && memory => {
                has_memory = true;
                Operand::Memory
            }
            Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_or_mem => Operand::Reg(vectors.next()?),
            Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem => Operand::Reg(mmx.next()?),
            Kind::r32_reg | Kind::r32_rm | Kind::r32_or_mem => Operand::Reg(Register::EAX),
            Kind::r64_reg | Kind::r64_rm | Kind::r64_or_mem => Operand::Reg(Register::RAX),
            Kind::imm8 => Operand::Imm(imm),
            Kind::seg_rDI => Operand::Rdi,
            _ => return None,
        };
        out.push(operand);
    }
    (has_memory == memory).then_some(out)
}

/// Whether the instruction is lowered here. Of the same features, other files have x87, FXSAVE, CRC32, and what
/// is no operation.
fn is_ours(code: Code) -> bool {
    use iced_x86::{CpuidFeature as F, Mnemonic as M};
    let elsewhere = matches!(
        code.mnemonic(),
        M::Fisttp
            | M::Crc32
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
    );
    let feature = |f: &F| {
        matches!(f, F::MMX | F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2)
            || matches!(f, F::AES | F::PCLMULQDQ | F::SHA | F::CLFSH | F::CLFLUSHOPT | F::CLWB)
    };
    let legacy = code.encoding() == EncodingKind::Legacy && code.op_code().mode64();
    legacy && !elsewhere && code.cpuid_features().iter().any(feature)
}

/// Every form that the processor knows, and whether it is that with a memory operand.
fn forms(machine: &mut Machine) -> Vec<(Code, bool)> {
    let mut known = Vec::new();
    for (code, memory) in Code::values().filter(|c| is_ours(*c)).flat_map(|c| [(c, false), (c, true)]) {
        let Some(i) = operands(code, memory, 0).map(|o| instruction(code, &o)) else { continue };
        if Encoder::new(64).encode(&i, CODE).is_ok() {
            machine.load(&State::default());
            if machine.execute(&[i]) != Some(vector::UD) {
                known.push((code, memory));
            }
        }
    }
    known
}

#[test]
fn nothing_is_left_out() {
    let known = forms(&mut Machine::new());
    for code in Code::values().filter(|c| is_ours(*c)) {
        assert!(known.iter().any(|(c, _)| *c == code), "{code:?}");
    }
}

fn random_state(random: &mut Random) -> State {
    let mut s = State::default();
    let kind = random.below(4);
    let value = |random: &mut Random| match kind {
        0 => random.floats(),
        1 => random.doubles(),
        2 => random.text(),
        _ => random.integers(),
    };
    s.xmm = std::array::from_fn(|_| value(random));
    s.memory = value(random);
    s.mm = std::array::from_fn(|_| random.u64());
    s.rax = random.u64();
    s.rcx = random.u64();
    s.rdx = random.below(20) as u64;
    s.mxcsr = MXCSR_DEFAULT | (random.below(4) as u32) << 13 | random.below(64) as u32;
    if random.below(4) == 0 {
        s.mxcsr &= !((random.below(64) as u32) << 7);
    }
    s
}

/// Where processors differ: tested against the error bound in [`crate::sse`].
fn is_approximate(code: Code) -> bool {
    use Code::*;
    matches!(code, Rcpps_xmm_xmmm128 | Rcpss_xmm_xmmm32 | Rsqrtps_xmm_xmmm128 | Rsqrtss_xmm_xmmm32)
}

#[test]
fn every_instruction_does_what_the_host_does() {
    [false, true].into_iter().for_each(compare_every_instruction);
}

fn compare_every_instruction(native: bool) {
    let mut machine = Machine::running(native);
    let forms = forms(&mut machine);
    assert!(forms.len() > 600, "only {} forms are known", forms.len());
    let mut random = Random::new(3);
    for (code, memory) in forms {
        if !is_on_host(code) || is_approximate(code) {
            continue;
        }
        let has_imm = code.op_code().op_kinds().contains(&Kind::imm8);
        let imms = if has_imm { 24 } else { 1 };
        for _ in 0..imms {
            let operands = operands(code, memory, random.u64() as u8).unwrap();
            let i = instruction(code, &operands);
            let host = Host::new(&i);
            machine.assemble(&[i]);
            for _ in 0..240 / imms {
                compare(&mut machine, &host, &mut random, &format!("{i} ({code:?})"));
            }
        }
    }
}

/// Whether the host has the instruction, and it can be compared.
fn is_on_host(code: Code) -> bool {
    use iced_x86::CpuidFeature as F;
    // MXCSR's are compared in a test of their own: the host must not load a random one.
    if matches!(code, Code::Ldmxcsr_m32) {
        return false;
    }
    code.cpuid_features().iter().all(|f| match f {
        F::SHA => is_x86_feature_detected!("sha"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SSE4_1 | F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::CLFLUSHOPT | F::CLWB => false,
        _ => true,
    })
}

fn compare(machine: &mut Machine, host: &Host, random: &mut Random, what: &str) {
    let before = random_state(random);
    let mut theirs = host.run(&before);
    machine.load(&before);
    let stopped = machine.run();
    let ours = machine.store(&before);
    assert_eq!(stopped, (theirs.faulted != 0).then_some(vector::XM), "{what}: {before:x?}");
    if stopped.is_some() {
        // The handler of the host's signal masked everything.
        theirs.mxcsr = theirs.mxcsr & 0x3f | before.mxcsr & !0x3f;
        theirs.rflags = before.rflags;
    }
    theirs.rflags &= FLAGS;
    theirs.faulted = 0;
    assert_eq!(ours, theirs, "{what}: {before:x?}");
}

fn simple(code: Code, memory: bool) -> Instruction {
    instruction(code, &operands(code, memory, 0).unwrap())
}

/// SDM volume 2: a 128-bit memory operand of a legacy SSE instruction not aligned raises #GP(0), but for the
/// unaligned moves and the string comparisons.
#[test]
fn alignment() {
    [false, true].into_iter().for_each(check_alignment);
}

fn check_alignment(native: bool) {
    use Code::*;
    let mut machine = Machine::running(native);
    let unaligned = [
        Movups_xmm_xmmm128,
        Movups_xmmm128_xmm,
        Movupd_xmm_xmmm128,
        Movupd_xmmm128_xmm,
        Movdqu_xmm_xmmm128,
        Movdqu_xmmm128_xmm,
        Lddqu_xmm_m128,
        Pcmpistri_xmm_xmmm128_imm8,
        Pcmpistrm_xmm_xmmm128_imm8,
        Pcmpestri_xmm_xmmm128_imm8,
        Pcmpestrm_xmm_xmmm128_imm8,
        Pcmpestri64_xmm_xmmm128_imm8,
        Pcmpestrm64_xmm_xmmm128_imm8,
    ];
    let mut seen = 0;
    for (code, memory) in forms(&mut machine) {
        if !memory {
            continue;
        }
        let i = simple(code, true);
        let wide = i.memory_size().size() == 16;
        let aligned = wide && !unaligned.contains(&code);
        seen += usize::from(aligned);
        machine.load(&State::default());
        machine.cpu.regs[usize::from(reg::RBX)] = BASE + 1;
        let expected = aligned.then_some(vector::GP);
        assert_eq!(machine.execute(&[i]), expected, "{code:?}");
        assert_eq!(machine.cpu.rip == CODE, aligned, "{code:?}");
    }
    assert!(seen > 150, "{seen}");
}

/// SDM volume 3, table 15-1 and table 13-1: CR0.EM, CR0.TS, CR4.OSFXSR.
#[test]
fn availability() {
    [false, true].into_iter().for_each(check_availability);
}

fn check_availability(native: bool) {
    use Code::*;
    let mut machine = Machine::running(native);
    for (code, memory) in forms(&mut machine) {
        let features = code.cpuid_features();
        let stateless =
            matches!(code, Movnti_m32_r32 | Movnti_m64_r64 | Clflush_m8 | Clflushopt_m8 | Clwb_m8);
        let info = code.op_code();
        let mmx = code == Emms
            || info.op_kinds().iter().any(|k| matches!(k, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem));
        let xmm =
            info.op_kinds().iter().any(|k| matches!(k, Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_or_mem))
                || matches!(code, Ldmxcsr_m32 | Stmxcsr_m32);
        for (cr0, cr4, expected) in [
            (cr0::PE, cr4::OSFXSR, None),
            (cr0::PE | cr0::TS, cr4::OSFXSR, Some(vector::NM)),
            (cr0::PE | cr0::EM, cr4::OSFXSR, Some(vector::UD)),
            (cr0::PE | cr0::EM | cr0::TS, cr4::OSFXSR, Some(vector::UD)),
            (cr0::PE, 0, xmm.then_some(vector::UD)),
            (cr0::PE | cr0::TS, 0, Some(if xmm { vector::UD } else { vector::NM })),
        ] {
            machine.load(&State::default());
            (machine.cpu.cr0, machine.cpu.cr4) = (cr0, cr4);
            let expected = if stateless { None } else { expected };
            assert_eq!(
                machine.execute(&[simple(code, memory)]),
                expected,
                "{code:?} {features:?} {cr0:x} {cr4:x}"
            );
        }
        // A pending x87 exception stops MMX instructions only.
        machine.load(&State::default());
        (machine.cpu.cr0, machine.cpu.cr4) = (cr0::PE | cr0::NE, cr4::OSFXSR);
        machine.cpu.x87.set_control_word(0x37e);
        machine.cpu.x87.set_status_word(1);
        let spared = code == Cvtpi2pd_xmm_mmm64 && memory;
        let expected = (mmx && !spared).then_some(vector::MF);
        assert_eq!(machine.execute(&[simple(code, memory)]), expected, "{code:?}");
        machine.cpu.x87.fninit();
    }
}

/// The check stands before the first instruction of a block that needs it.
#[test]
fn the_check_stops_the_first_instruction_that_needs_sse() {
    let mut machine = Machine::new();
    let (add, store) = (simple(Code::Paddb_xmm_xmmm128, false), simple(Code::Movnti_m32_r32, true));
    let mut state = State::default();
    state.rax = 7;
    machine.load(&state);
    machine.cpu.cr0 |= cr0::TS;
    assert_eq!(machine.execute(&[store, add, add]), Some(vector::NM));
    // After the seven bytes of the store.
    assert_eq!(machine.cpu.rip, CODE + 7);
    assert_eq!(machine.cpu.icount, 1);
    assert_eq!(machine.store(&state).memory[0], 7);
}

/// #XM becomes #UD where CR4.OSXMMEXCPT is clear; the destination stays.
#[test]
fn unmasked_exceptions() {
    let mut machine = Machine::new();
    let divide = simple(Code::Divsd_xmm_xmmm64, false);
    for (osxmmexcpt, expected) in [(cr4::OSXMMEXCPT, vector::XM), (0, vector::UD)] {
        let mut state = State::default();
        state.xmm[1] = [0x3f; 16];
        state.mxcsr = MXCSR_DEFAULT & !0x200;
        machine.load(&state);
        machine.cpu.cr4 = cr4::OSFXSR | osxmmexcpt;
        assert_eq!(machine.execute(&[divide]), Some(expected));
        assert_eq!(machine.cpu.xmm[1], Xmm([0x3f; 16]));
        assert_eq!(machine.cpu.mxcsr.value(), state.mxcsr | 4);
    }
}

#[test]
fn ldmxcsr() {
    let mut machine = Machine::new();
    let mut state = State::default();
    state.memory[..4].copy_from_slice(&0x5fffu32.to_le_bytes());
    machine.load(&state);
    assert_eq!(machine.execute(&[simple(Code::Ldmxcsr_m32, true)]), None);
    assert_eq!(machine.cpu.mxcsr.value(), 0x5fff);
    // Reserved bits.
    state.memory[2] = 1;
    machine.load(&state);
    assert_eq!(machine.execute(&[simple(Code::Ldmxcsr_m32, true)]), Some(vector::GP));
    assert_eq!(machine.cpu.mxcsr.value(), MXCSR_DEFAULT);
}

/// MMX instructions set TOP to 0 and all tags to valid, EMMS empties them.
#[test]
fn x87_goes_over_to_mmx() {
    let mut machine = Machine::new();
    machine.cpu.x87.set_status_word(3 << 11);
    machine.cpu.x87.set_abridged_tag(0);
    assert_eq!(machine.execute(&[simple(Code::Paddb_mm_mmm64, false)]), None);
    assert_eq!((machine.cpu.x87.top(), machine.cpu.x87.abridged_tag()), (0, 0xff));
    assert_eq!(machine.execute(&[simple(Code::Emms, false)]), None);
    assert_eq!((machine.cpu.x87.top(), machine.cpu.x87.abridged_tag()), (0, 0));
    // From memory, CVTPI2PD leaves the x87 unit alone.
    machine.cpu.x87.set_status_word(3 << 11);
    assert_eq!(machine.execute(&[simple(Code::Cvtpi2pd_xmm_mmm64, true)]), None);
    assert_eq!((machine.cpu.x87.top(), machine.cpu.x87.abridged_tag()), (3, 0));
}
