//! One test body, every engine: the same guest, the same exits.

mod control;
mod cpu;
mod debug;
mod equal;
mod events;
mod exceptions;
mod harness;
mod interrupts;
mod memory;
mod modes;
mod moved;
mod pio;
mod protection;
mod pv;
mod rare;
mod smp;
mod transitions;
mod world;
