//! User-mode instructions on the host processor and on ours: random encodings with random registers,
//! flags and memory must leave the same registers, defined flags and memory. Needs an x86-64 Linux host.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code)]

#[path = "../common/mode.rs"]
mod mode;
mod rig;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use trapline_softcpu::cpuid::Model;

use rig::*;

impl Rng {
    /// Bytes that may be an instruction. Most of one-byte space is prefixes and jumps: the two-byte map and
    /// what VEX encodes get their shares.
    fn code(&mut self) -> [u8; 15] {
        let mut bytes = [0u8; 15];
        bytes.iter_mut().for_each(|b| *b = self.next() as u8);
        match self.below(6) {
            0 | 1 => bytes[0] = 0x0f,
            2 => {
                bytes[0] = 0xc4;
                bytes[1] = bytes[1] & 0xe0 | (2 + (bytes[1] & 1));
                bytes[3] = 0xf0 + bytes[3] % 8;
            }
            _ => {}
        }
        bytes
    }
}

#[test]
fn integer_instructions_agree_with_the_host() {
    let (mut cpu, model) = processor();
    mode::apply(&mut cpu);
    let mut host = Host::new(HOST_CODE, DATA);
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    // What the fuzz target `host_instructions` found: MOVZX r16, r/m16.
    let rare: [&[u8]; 2] = [&[0x66, 0x0f, 0xb7, 0xf3], &[0x66, 0x0f, 0xb7, 0xb3, 0xb3, 0x2f, 0x0f, 0x4a]];
    for bytes in rare.into_iter().cycle().take(100) {
        let result = compare(&mut cpu, &mut host, &model, bytes, &mut rng);
        assert_eq!(result, Some(Ok(())));
    }
    let (mut tried, mut ran) = (0u32, 0u32);
    let mut wrong = Vec::new();
    while ran < 80_000 && tried < 20_000_000 && wrong.len() <= 12 {
        tried += 1;
        let bytes = rng.code();
        let Some(result) = compare(&mut cpu, &mut host, &model, &bytes, &mut rng) else { continue };
        ran += 1;
        wrong.extend(result.err());
    }
    assert!(wrong.is_empty(), "after {ran} instructions:\n{}", wrong.join("\n"));
    assert!(ran > 20_000, "only {ran} of {tried} encodings could be run");
}

/// Several instructions are one block, in which flags that nobody seems to need are not worked out.
#[test]
fn integer_sequences_agree_with_the_host() {
    let (mut cpu, model) = processor();
    mode::apply(&mut cpu);
    let mut host = Host::new(HOST_CODE + 0x10_0000, DATA + 0x10_0000);
    let mut rng = Rng(0x2545_f491_4f6c_dd1d);
    let mut ran = 0u32;
    while ran < 20_000 {
        let (mut bytes, mut text, mut unknown) = (Vec::new(), Vec::new(), 0);
        for _ in 0..2 + rng.below(5) {
            let Some((i, code)) = register_instruction(&model, &mut rng, unknown) else { continue };
            let by_cl = i.op_count() > 1 && i.op1_register() == Register::CL;
            let known = if by_cl { 0 } else { arith(i.rflags_modified()) & !undefined(&i) };
            unknown = unknown & !known | undefined(&i);
            bytes.extend(code);
            text.push(i.to_string());
        }
        let mut s = State { regs: [0; 16], flags: rng.next() & ARITH, data: vec![0; DATA_LEN] };
        s.regs.iter_mut().for_each(|r| *r = rng.value());
        let (before, mut ours) = (s.clone(), s.clone());
        assert!(run_ours(&mut cpu, &bytes, &mut ours), "{text:?}");
        host.run(&bytes, &mut s);
        s.regs[4] = ours.regs[4];
        let flags_agree = (s.flags ^ ours.flags) & ARITH & !u64::from(unknown) == 0;
        assert!(
            s.regs == ours.regs && flags_agree,
            "{text:?}: flags {:x} host {:x} ours {:x}\n  before {:x?}\n  host   {:x?}\n  ours   {:x?}",
            before.flags,
            s.flags,
            ours.flags,
            before.regs,
            s.regs,
            ours.regs
        );
        ran += 1;
    }
}

/// A random instruction without memory operand that always completes, whose result is defined and depends
/// on no flag in `unknown`.
fn register_instruction(model: &Model, rng: &mut Rng, unknown: u32) -> Option<(Instruction, Vec<u8>)> {
    let bytes = rng.code();
    let i = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
    let stack = |n| i.op_kind(n) == OpKind::Register && i.op_register(n).full_register() == Register::RSP;
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let special = |n| {
        let r = i.op_register(n);
        i.op_kind(n) == OpKind::Register && (r.is_segment_register() || r.is_cr() || r.is_dr())
    };
    use Mnemonic as M;
    let odd = matches!(i.mnemonic(), M::Div | M::Idiv | M::Shld | M::Shrd | M::Bsf | M::Bsr)
        || i.mnemonic() == M::Bswap && operand_bytes(&i) == 2;
    let usable = !i.is_invalid()
        && integer(i.mnemonic())
        && model.supports(&i)
        && !memory
        && !odd
        && !(0..i.op_count()).any(|n| stack(n) || special(n))
        && arith(i.rflags_read()) & unknown == 0;
    usable.then(|| (i, bytes[..i.len()].to_vec()))
}
