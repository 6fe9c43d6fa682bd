//! One test body, every engine: the same guest, the same exits.

mod control;
mod cpu;
mod events;
mod exceptions;
mod harness;
mod interrupts;
mod memory;
mod modes;
mod pio;
mod rare;
