//! Flags, BCD, software interrupts, hints.

use iced_x86::{Code, Decoder, Instruction, Mnemonic};

use super::{Lowering, Next};
use crate::op::Handler;
use crate::ops::flow;

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let with = |l: &mut Lowering<'_>, run: Handler, aux: u16, imm: u64| {
        let mut op = l.op(run);
        (op.aux, op.imm) = (aux, imm);
        l.push(op);
        Some(Next::Continue)
    };
    match i.mnemonic() {
        M::Clc => with(l, flow::carry, 0, 0),
        M::Stc => with(l, flow::carry, 1, 0),
        M::Cmc => with(l, flow::carry, 2, 0),
        M::Cld => with(l, flow::direction, 0, 0),
        M::Std => with(l, flow::direction, 1, 0),
        M::Salc => l.simple(flow::salc),
        M::Cli => l.simple(flow::cli),
        M::Sti => l.ending(flow::sti),
        M::Pushf => l.simple(flow::pushf::<u16>),
        M::Pushfd => l.simple(flow::pushf::<u32>),
        M::Pushfq => l.simple(flow::pushf::<u64>),
        M::Popf => l.simple(flow::popf::<u16>),
        M::Popfd => l.simple(flow::popf::<u32>),
        M::Popfq => l.simple(flow::popf::<u64>),
        M::Int => {
            with(l, flow::int, 0, u64::from(i.immediate8()));
            Some(Next::End)
        }
        M::Int3 => {
            with(l, flow::int, 1, 0);
            Some(Next::End)
        }
        M::Into => with(l, flow::int, 2, 0),
        M::Int1 => {
            with(l, flow::int, 3, 0);
            Some(Next::End)
        }
        M::Daa => with(l, flow::daa, 0, 0),
        M::Das => with(l, flow::daa, 1, 0),
        M::Aaa => with(l, flow::aaa, 0, 0),
        M::Aas => with(l, flow::aaa, 1, 0),
        M::Aam => with(l, flow::aam, 0, u64::from(i.immediate8())),
        M::Aad => with(l, flow::aad, 0, u64::from(i.immediate8())),
        // Hints: what they hint at does not exist here.
        M::Prefetchw
        | M::Prefetch
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchwt1
        | M::Endbr64
        | M::Endbr32
        | M::Lfence
        | M::Sfence
        | M::Mfence
        | M::Fnop
            if i.code() != Code::Fnop =>
        {
            l.simple(flow::nop)
        }
        _ if matches!(i.mnemonic(), M::Reservednop) => l.simple(flow::nop),
        _ => None,
    }
}

/// Whether the instruction that follows an STI is one of the frequent ones that always go on with the block. Then
/// the shadow of the STI can end in its block, without single-stepping through it.
pub(super) fn fits_shadow(decoder: &mut Decoder<'_>) -> bool {
    use Mnemonic as M;
    let (position, ip) = (decoder.position(), decoder.ip());
    let i = if decoder.can_decode() { decoder.decode() } else { Instruction::default() };
    let back = decoder.set_position(position);
    decoder.set_ip(ip);
    let plain = match i.mnemonic() {
        M::Mov => i.op0_register().is_gpr() || i.op1_register().is_gpr() || i.op0_kind() != i.op1_kind(),
        M::Nop | M::Lea | M::Test | M::Cmp | M::Add | M::Sub | M::And | M::Or | M::Xor => true,
        M::Push | M::Pop => i.op0_register().is_gpr(),
        _ => false,
    };
    let system = |r: iced_x86::Register| r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr();
    back.is_ok() && plain && !i.has_lock_prefix() && !system(i.op0_register()) && !system(i.op1_register())
}

/// Makes the STI that was laid down last leave its shadow open: [`end_shadow`] follows after the next instruction.
pub(super) fn open_shadow(l: &mut Lowering<'_>) {
    if let Some(op) = l.ops.last_mut() {
        op.run = flow::sti_open;
    }
}

/// Lays down the end of an STI's shadow, and of the block, after the current instruction.
pub(super) fn end_shadow(l: &mut Lowering<'_>) {
    let mut op = l.op(flow::shadow_end);
    (op.off, op.len, op.nth) = (l.off + u16::from(l.len), 0, l.nth + 1);
    l.push(op);
}
