//! One instruction, or a few, on the host processor and on ours.

use std::sync::Arc;

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use trapline_memory::{Arena, ArenaOptions};
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::Activity;
use trapline_softcpu::cpuid::Model;

/// Where data lies on the host and, identity-mapped, in the guest.
pub const DATA: u64 = 0x1000_0000;
pub const DATA_LEN: usize = 0x2000;
/// Where the host executes, low enough for 32-bit displacements.
pub const HOST_CODE: u64 = 0x3000_0000;
/// Where the code under test lies in the guest.
pub const CODE: u64 = 0x20_0000;
pub const ARITH: u64 = 0x8d5;

/// xorshift64*.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Values that matter: small, near the sign bits of every width, or anything.
    pub fn value(&mut self) -> u64 {
        let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
        match self.below(4) {
            0 => edges[self.below(edges.len() as u64) as usize],
            1 => (edges[self.below(edges.len() as u64) as usize] as i64).wrapping_neg() as u64,
            2 => self.below(70),
            _ => self.next(),
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub regs: [u64; 16],
    pub flags: u64,
    pub data: Vec<u8>,
}

fn map(at: u64, len: usize, prot: i32) -> *mut u8 {
    // SAFETY: a fresh anonymous mapping; NOREPLACE keeps it from hitting an existing one.
    let p = unsafe {
        libc::mmap(
            at as *mut _,
            len,
            prot,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if at != 0 { libc::MAP_FIXED_NOREPLACE } else { 0 },
            -1,
            0,
        )
    };
    assert_ne!(p, libc::MAP_FAILED);
    p.cast()
}

/// Executes instructions on the host.
pub struct Host {
    code: *mut u8,
    data: *mut u8,
    regs: *mut u64,
}

const REGS: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

impl Host {
    /// Each test has its own places.
    pub fn new(code: u64, data: u64) -> Self {
        let code = map(code, 8192, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        let data = map(data, DATA_LEN, libc::PROT_READ | libc::PROT_WRITE);
        // The register file lies in the second page of the code mapping.
        Self { code, data, regs: code.wrapping_add(4096).cast() }
    }

    pub fn run(&mut self, bytes: &[u8], s: &mut State) {
        let base = self.code as u64;
        let at = |n: usize| qword_ptr(base + 4096 + 8 * n as u64);
        let mut a = CodeAssembler::new(64).unwrap();
        let saved = [rbx, rbp, r12, r13, r14, r15];
        for r in saved {
            a.push(r).unwrap();
        }
        a.push(at(16)).unwrap();
        a.popfq().unwrap();
        for (n, r) in REGS.iter().enumerate().filter(|(n, _)| *n != 4) {
            a.mov(*r, at(n)).unwrap();
        }
        a.db(bytes).unwrap();
        for (n, r) in REGS.iter().enumerate().filter(|(n, _)| *n != 4) {
            a.mov(at(n), *r).unwrap();
        }
        a.pushfq().unwrap();
        a.pop(at(16)).unwrap();
        for r in saved.iter().rev() {
            a.pop(*r).unwrap();
        }
        a.cld().unwrap();
        a.ret().unwrap();
        let code = a.assemble(base).unwrap();
        // SAFETY: both pages are ours; the code is what was assembled above and keeps the C ABI: it
        // restores the callee-saved registers and RSP, and `bytes` is one instruction that only
        // computes, or accesses the data page.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.code, code.len());
            std::ptr::copy_nonoverlapping(s.data.as_ptr(), self.data, DATA_LEN);
            std::ptr::copy_nonoverlapping(s.regs.as_ptr(), self.regs, 16);
            self.regs.add(16).write(s.flags | 0x202);
            let f: extern "C" fn() = std::mem::transmute(self.code);
            f();
            std::ptr::copy_nonoverlapping(self.data, s.data.as_mut_ptr(), DATA_LEN);
            std::ptr::copy_nonoverlapping(self.regs, s.regs.as_mut_ptr(), 16);
            s.flags = self.regs.add(16).read() & ARITH;
        }
    }
}

/// Executes instructions on our processor; `false` if it raised an exception.
pub fn run_ours(cpu: &mut Cpu, bytes: &[u8], s: &mut State) -> bool {
    let mut code = bytes.to_vec();
    code.extend([0xeb, 0xfe]);
    cpu.arena.write_bytes(CODE, &code).unwrap();
    cpu.memory_changed(CODE, 32);
    cpu.arena.write_bytes(DATA, &s.data).unwrap();
    cpu.regs[..16].copy_from_slice(&s.regs);
    cpu.set_rflags(s.flags | 2);
    cpu.rip = CODE;
    cpu.activity = Activity::Active;
    cpu.run_for(1);
    cpu.arena.read_bytes(DATA, &mut s.data).unwrap();
    s.regs.copy_from_slice(&cpu.regs[..16]);
    s.flags = cpu.get_rflags() & ARITH;
    cpu.activity == Activity::Active && cpu.rip == CODE + bytes.len() as u64
}

pub fn integer(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Sal
            | M::Shld
            | M::Shrd
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Mul
            | M::Imul
            | M::Div
            | M::Idiv
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Bswap
            | M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Lahf
            | M::Sahf
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Movbe
            | M::Popcnt
            | M::Crc32
            | M::Adcx
            | M::Adox
            | M::Tzcnt
            | M::Lzcnt
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
    ) || m.to_string_conditional()
}

trait Conditional {
    fn to_string_conditional(self) -> bool;
}

impl Conditional for Mnemonic {
    fn to_string_conditional(self) -> bool {
        let name = format!("{self:?}");
        name.starts_with("Set") && name != "Setssbsy" || name.starts_with("Cmov")
    }
}

/// Whether the instruction can be run on both sides with its memory operand in the data page; sets the
/// registers so that it is.
fn prepare(i: &Instruction, s: &mut State, rng: &mut Rng) -> bool {
    let special =
        |r: Register| r.is_segment_register() || r.is_cr() || r.is_dr() || r.full_register() == Register::RSP;
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && special(i.op_register(n))) {
        return false;
    }
    if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) || i.mnemonic() == Mnemonic::Lea {
        return !matches!(i.memory_base(), Register::RIP | Register::EIP)
            && i.memory_base() != Register::RSP
            && i.memory_base() != Register::ESP;
    }
    let (base, index) = (i.memory_base(), i.memory_index());
    let plain = !matches!(i.segment_prefix(), Register::FS | Register::GS);
    if !plain || !base.is_gpr64() || base == Register::RSP || base == index || index.is_gpr32() {
        return false;
    }
    let mut offset = i.memory_displacement64();
    if index != Register::None {
        let n = rng.below(16);
        s.regs[index.number()] = n;
        offset = offset.wrapping_add(n * u64::from(i.memory_index_scale()));
    }
    // A bit number in a register reaches far: keep it inside.
    if matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && i.op1_kind() == OpKind::Register
    {
        if i.op1_register().full_register() == base {
            return false;
        }
        let n = rng.below(4096).wrapping_sub(2048);
        s.regs[i.op1_register().full_register().number()] = n;
        if index != Register::None && index == i.op1_register().full_register() {
            return false;
        }
    }
    let aligned = i.mnemonic() == Mnemonic::Cmpxchg16b;
    let place = 0x800 + if aligned { rng.below(64) * 16 } else { rng.below(0x1000) };
    s.regs[base.number()] = (DATA + place).wrapping_sub(offset);
    true
}

/// Ours, in 64-bit mode with the first GiB mapped, and what it can do.
pub fn processor() -> (Cpu, Arc<Model>) {
    let arena = Arc::new(Arena::new(DATA + (1 << 20), &ArenaOptions::default()).unwrap());
    arena.write_u64(0x1000, 0x2007).unwrap();
    arena.write_u64(0x2000, 0x87).unwrap();
    let model = Arc::new(Model::named("max").unwrap());
    let mut cpu = Cpu::new(arena, model.clone());
    cpu.enter_root_mode(0x1000);
    (cpu, model)
}

/// Runs one instruction, in a state made of `rng`, on both. `None` where it is none of the integer ones that both
/// can execute; otherwise how they differ.
pub fn compare(
    cpu: &mut Cpu,
    host: &mut Host,
    model: &Model,
    bytes: &[u8],
    rng: &mut Rng,
) -> Option<Result<(), String>> {
    let i = Decoder::with_ip(64, bytes, CODE, DecoderOptions::NONE).decode();
    if i.is_invalid() || !integer(i.mnemonic()) || !model.supports(&i) {
        return None;
    }
    let bytes = &bytes[..i.len()];
    let mut s = State { regs: [0; 16], flags: rng.next() & ARITH, data: vec![0; DATA_LEN] };
    s.regs.iter_mut().for_each(|r| *r = rng.value());
    s.data.iter_mut().for_each(|b| *b = rng.next() as u8);
    let undefined_result = matches!(i.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && operand_bytes(&i) == 2;
    if undefined_result || !prepare(&i, &mut s, rng) {
        return None;
    }
    let before = s.clone();
    let mut ours = s.clone();
    if !run_ours(cpu, bytes, &mut ours) {
        // Division errors are the only exceptions these instructions have.
        return match i.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv => None,
            _ => Some(Err(format!("{i} {bytes:02x?}: exception\n  before {:x?}", before.regs))),
        };
    }
    host.run(bytes, &mut s);
    s.regs[4] = ours.regs[4];
    let defined = ARITH & !u64::from(undefined(&i));
    let flags_agree = (s.flags ^ ours.flags) & defined == 0;
    if s.regs == ours.regs && flags_agree && s.data == ours.data {
        return Some(Ok(()));
    }
    Some(Err(format!(
        "{i} {bytes:02x?}: flags {:x} host {:x} ours {:x} data {}\n  before {:x?}\n  host   {:x?}\n  ours   {:x?}",
        before.flags,
        s.flags,
        ours.flags,
        s.data == ours.data,
        before.regs,
        s.regs,
        ours.regs
    )))
}

/// The arithmetic flags of iced's set, as in RFLAGS.
pub fn arith(flags: u32) -> u32 {
    use iced_x86::RflagsBits as R;
    let pairs = [(R::OF, 0x800), (R::SF, 0x80), (R::ZF, 0x40), (R::AF, 0x10), (R::CF, 1), (R::PF, 4)];
    pairs.iter().filter(|(f, _)| flags & f != 0).fold(0, |m, (_, b)| m | b)
}

pub fn operand_bytes(i: &Instruction) -> usize {
    match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    }
}

/// RFLAGS bits that the instruction leaves undefined.
pub fn undefined(i: &Instruction) -> u32 {
    let mut mask = arith(i.rflags_undefined());
    use Mnemonic as M;
    match i.mnemonic() {
        // Counts above one, and above the width of narrow operands.
        M::Rol | M::Ror | M::Rcl | M::Rcr => mask |= 0x800,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd => {
            mask |= if operand_bytes(i) < 4 { 0x811 } else { 0x810 };
        }
        M::Bsf | M::Bsr => mask |= 0x895,
        _ => {}
    }
    mask
}
