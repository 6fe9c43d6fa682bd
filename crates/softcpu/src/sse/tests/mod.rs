//! Every operation against the host processor executing the same instruction.

pub(crate) mod host;
mod integer;
pub(crate) mod operands;
mod scalar;
mod special;
