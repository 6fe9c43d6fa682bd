//! The board `pc`.

mod boot;
mod chipset;
mod display;
mod firmware;
mod harness;
mod hostile;
mod kernel;
mod keyboard;
mod outputs;
mod refusals;
mod saved;
mod suspend;
mod uefi;
