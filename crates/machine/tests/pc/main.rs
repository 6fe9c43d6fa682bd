//! The board `pc`.

mod boot;
mod chipset;
mod harness;
