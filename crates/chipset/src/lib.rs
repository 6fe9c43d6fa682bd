//! The small devices that every PC-compatible machine has, each a plain struct that another VMM can
//! use alone.
//!
//! | type | models | ports on a PC |
//! |---|---|---|
//! | [`Uart`] | National Semiconductor PC16550D serial port | 0x3f8, 8 ports |
//! | [`Parallel`] | standard parallel port with a printer | 0x378, 8 ports |
//! | [`Rtc`] | Motorola MC146818 real-time clock with 128 bytes of CMOS | 0x70, 2 ports |
//! | [`I8042`] | PS/2 controller with a keyboard and an IntelliMouse | 0x60 and 0x64 |
//! | [`Port92`] | system control port A: fast A20, fast reset | 0x92 |
//! | [`AcpiPm`] | ACPI fixed hardware: PM1, PM timer, GPE0, SMI command | by the board |
//! | [`Smbus`] | PIIX4 SMBus host controller, nothing on the bus | by firmware, 16 ports |
//! | [`ResetControl`] | reset control register | 0xcf9 |
//! | [`DebugExit`] | exit port for test guests | 0x501, 4 ports |
//! | [`DebugCon`] | debug console | 0x402 or 0xe9 |
//! | [`FwCfg`] | QEMU's firmware configuration: selector, data and DMA ports | 0x510, 0x514 |
//! | [`Hpet`] | high precision event timer, three comparators | 0xfed0_0000 in memory |
//! | [`PcTestdev`] | QEMU's pc-testdev: latches and interrupt lines for test guests | 0xe0, 0xe4, 0xe8, 0x2000 |
//! | [`Pflash`] | parallel NOR flash with the Intel command set | below 4 GiB in memory |
//! | [`Dma`] | registers of two 8237A DMA controllers | 0x00, 0xc0, 0x81 |
//! | [`PostCode`] | power-on self-test code latch | 0x80 |
//!
//! What a device cannot do by itself (switch the machine off, reset it, open the A20 gate) it tells a
//! [`SystemEvents`] sink. What a device sends, it writes to a `Box<dyn Write + Send>`.
//!
//! Accesses wider than a byte to a device of byte-wide registers are split into byte accesses at
//! consecutive offsets, as the ISA bus does. Offsets a device does not decode read all-ones.
//!
//! Left out: the floppy controller, which may read all-ones; interrupt controllers and the PIT are in
//! `trapline-irqchip`. What each device leaves out is said in its own module.
//!
//! ```
//! use std::sync::Arc;
//! use trapline_chipset::Uart;
//! use trapline_device::{AccessSize, IrqLine, PortIo, test::Recorder};
//!
//! const IER: u16 = 1; // interrupt enable register
//!
//! let pic = Arc::new(Recorder::default());
//! let mut uart = Uart::new("serial0", IrqLine::new(pic.clone(), 4), Box::new(std::io::sink()));
//!
//! // The guest enables the received-data interrupt.
//! uart.write(0, IER, AccessSize::Byte, 0x01);
//!
//! // Somebody types on the host.
//! assert_eq!(uart.receive(b"a"), 1);
//! assert!(pic.level(4));
//! assert_eq!(uart.read(0, 0, AccessSize::Byte), u32::from(b'a'));
//! assert!(!pic.level(4));
//! ```
#![forbid(unsafe_code)]

mod bytewise;
mod events;
mod output;
mod stopwatch;

pub mod acpi_pm;
pub mod debug_con;
pub mod debug_exit;
pub mod dma;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod parallel;
pub mod pc_testdev;
pub mod pflash;
pub mod port92;
pub mod post;
pub mod reset_control;
pub mod rtc;
pub mod smbus;
pub mod uart;

pub use acpi_pm::{AcpiPm, AcpiPmConfig};
pub use debug_con::DebugCon;
pub use debug_exit::DebugExit;
pub use dma::Dma;
pub use events::{A20Gate, A20Source, SystemEvent, SystemEvents};
pub use fw_cfg::FwCfg;
pub use hpet::Hpet;
pub use i8042::{I8042, Key, MouseButtons};
pub use parallel::Parallel;
pub use pc_testdev::PcTestdev;
pub use pflash::Pflash;
pub use port92::Port92;
pub use post::PostCode;
pub use reset_control::ResetControl;
pub use rtc::Rtc;
pub use smbus::Smbus;
pub use uart::{ModemInputs, Uart};
