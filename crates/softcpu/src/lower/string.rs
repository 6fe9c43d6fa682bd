//! String instructions.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Lowering, Next, segment};
use crate::op::Handler;
use crate::ops::string::{rep, string};

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let (what, size) = match i.mnemonic() {
        M::Movsb => (0, 1),
        M::Movsw => (0, 2),
        M::Movsd if i.is_string_instruction() => (0, 4),
        M::Movsq => (0, 8),
        M::Stosb => (1, 1),
        M::Stosw => (1, 2),
        M::Stosd => (1, 4),
        M::Stosq => (1, 8),
        M::Lodsb => (2, 1),
        M::Lodsw => (2, 2),
        M::Lodsd => (2, 4),
        M::Lodsq => (2, 8),
        M::Scasb => (3, 1),
        M::Scasw => (3, 2),
        M::Scasd => (3, 4),
        M::Scasq => (3, 8),
        M::Cmpsb => (4, 1),
        M::Cmpsw => (4, 2),
        M::Cmpsd if i.is_string_instruction() => (4, 4),
        M::Cmpsq => (4, 8),
        _ => return None,
    };
    let run: Handler = match what {
        0 => by_string::<0>(size),
        1 => by_string::<1>(size),
        2 => by_string::<2>(size),
        3 => by_string::<3>(size),
        _ => by_string::<4>(size),
    };
    let mut op = l.op(run);
    op.aux = if i.has_repne_prefix() {
        // MOVS, STOS and LODS repeat with either prefix.
        if what < 3 { rep::E } else { rep::NE }
    } else if i.has_rep_prefix() {
        rep::E
    } else {
        rep::NONE
    };
    op.seg = segment(i.memory_segment());
    op.scale = string_address_size(i) << 4;
    l.push(op);
    Some(Next::Continue)
}

fn by_string<const W: u8>(size: usize) -> Handler {
    match size {
        1 => string::<u8, W>,
        2 => string::<u16, W>,
        4 => string::<u32, W>,
        _ => string::<u64, W>,
    }
}

/// log2 of the address size, from the operand kinds of a string instruction.
pub(crate) fn string_address_size(i: &Instruction) -> u8 {
    let kinds = (0..i.op_count()).map(|n| i.op_kind(n));
    for k in kinds {
        match k {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 1,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 2,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 3,
            _ => {}
        }
    }
    3
}
