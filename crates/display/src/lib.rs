//! A display: VGA with the Bochs VBE extensions, as the PCI function 1234:1111.
//!
//! [`Vga`] is what PC firmware and operating systems take for a VGA: registers and memory window of the
//! IBM VGA, and a linear framebuffer of up to 4096 by 4096 dots through the registers that Bochs began
//! with. Video memory is a [`DeviceMemory`](trapline_memory::DeviceMemory): a board maps it where BAR 0
//! says, so that a driver's writes to the framebuffer do not exit.
//!
//! [`Vga::text`] returns what a text screen says, for tests. [`Vga::render`] returns the picture of any
//! mode, and [`Frame::write_png`] a file of it. [`Vga::take_damage`] tells a server, which this crate has
//! none of, which lines have changed.
//!
//! # Where it answers
//!
//! | region | where | what |
//! |---|---|---|
//! | [`FRAMEBUFFER`] | BAR 0, prefetchable | video memory |
//! | [`REGISTERS`] | BAR 2, 4 KiB | 0x000: the monitor's EDID; 0x400: ports 0x3c0 to 0x3df; 0x500: VBE registers; 0x600: extended registers |
//! | [`ROM`] | expansion ROM | the video BIOS |
//! | [`MONO_PORTS`], [`PORTS`] | 0x3b0 to 0x3bb, 0x3c0 to 0x3df | the VGA's registers |
//! | [`VBE_PORTS`] | 0x1ce index, 0x1cf or 0x1d0 data | VBE registers, in words |
//! | [`WINDOW`] | 0xa0000, 128 KiB | the memory window |
//!
//! What is no BAR is claimed while the command register enables ports, or memory. The memory window lies
//! where a PC also has RAM, which a board leaves out of its slots.
//!
//! # What is modelled
//!
//! - **VGA** (IBM VGA/XGA Technical Reference; the FreeVGA project): all registers but those that tests
//!   of the hardware use; write protection of the CRTC; read modes 0 and 1, write modes 0 to 3 with
//!   latches; odd/even and chain-4 addressing; text of 8 and 9 dots with two fonts, underline, cursor and
//!   blinking; 2, 4, 16 and 256 colours, unchained too; panning, split screen, preset row scan, CGA and
//!   Hercules line order; DAC of six or eight bits. Retrace in status register 1 follows the clock, at the
//!   rate that the CRTC is programmed to.
//! - **Bochs VBE**, version 0xb0c5: 4, 8, 15, 16, 24 and 32 bits a dot, virtual screen and offsets, the
//!   banked window, eight-bit DAC, capabilities.
//! - **QEMU's standard VGA** (docs/specs/standard-vga.rst): BAR 2.
//!
//! # Deviations and what is left out
//!
//! - The framebuffer is little-endian; the byte order register is read-only.
//! - Where VBE is on, packed dots are at consecutive bytes of the window whatever the VGA's registers
//!   say, and status register 1 shows the retrace of 640 by 480 at 60 Hz.
//! - Interrupts of vertical retrace, light pen, the border, cursor and display enable skew, interlace,
//!   blinking in graphics modes, 256 colours at full dot rate, the odd/even page bit, memory of less than
//!   256 KiB, the adapter's enable bit at port 0x3c3, DDC by I²C.
//!
//! # Example
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use trapline_device::AccessSize::{Byte, Word};
//! use trapline_device::test::FakeClock;
//! use trapline_display::{Vga, VgaConfig};
//! use trapline_memory::DeviceMemory;
//! use trapline_pci::test::Bench;
//!
//! let vga = Arc::new(Mutex::new(Vga::new(VgaConfig {
//!     memory: DeviceMemory::standalone(16 << 20)?,
//!     rom: None,
//!     monitor: (1024, 768),
//!     clock: Arc::new(FakeClock::default()),
//! })?));
//! let mut bench = Bench::new();
//! bench.plug(vga.clone());
//! bench.place()?; // and its ports and memory are enabled
//!
//! // A framebuffer of 640 by 480 dots, 32 bits each, is all it takes to draw.
//! for (register, value) in [(1, 640), (2, 480), (3, 32), (4, 0x41)] {
//!     bench.io_write(0x1ce, Word, register);
//!     bench.io_write(0x1cf, Word, value);
//! }
//! bench.io_write(0x3c0, Byte, 0x20); // the screen is not blank
//! let bar0 = bench.range(0).ok_or("not placed")?.start;
//! bench.memory_write(bar0 + 4 * 640, trapline_device::AccessSize::Dword, 0x00ff_8000);
//! let frame = vga.lock().map_err(|_| "poisoned")?.render();
//! assert_eq!((frame.width(), frame.height()), (640, 480));
//! assert_eq!(frame.pixel(0, 1), Some([0xff, 0x80, 0x00]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod damage;
mod edid;
mod firmware;
mod frame;
mod mmio;
mod ports;
mod registers;
mod render;
mod state;
mod text;
mod timing;
mod vbe;
mod vga;
mod window;

pub use damage::Damage;
pub use frame::Frame;
pub use state::VgaState;
pub use text::{Cell, TextScreen};
pub use vga::{FRAMEBUFFER, MONO_PORTS, PORTS, REGISTERS, ROM, VBE_PORTS, Vga, VgaConfig, VgaError, WINDOW};
