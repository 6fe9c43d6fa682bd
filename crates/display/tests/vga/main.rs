//! The VGA, driven through its ports and its memory.

mod bench;
mod graphics;
mod pci;
mod random;
mod registers;
mod state;
mod text;
mod vbe;
mod window;
