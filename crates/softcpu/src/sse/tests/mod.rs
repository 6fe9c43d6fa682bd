//! Every operation against the host processor executing the same instruction.

mod host;
mod integer;
mod operands;
mod scalar;
mod special;
