//! System instructions.

use iced_x86::Instruction;

use super::{Lowering, Next};

pub(crate) fn lower(_l: &mut Lowering<'_>, _i: &Instruction) -> Option<Next> {
    None
}
