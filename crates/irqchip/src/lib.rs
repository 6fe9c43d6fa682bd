//! Interrupt controllers and the interval timer of a PC.
//!
//! | module | models | specification |
//! |---|---|---|
//! | [`pic`] | two cascaded 8259A with ELCR | Intel 8259A data sheet; 82371SB (PIIX3) §3.5 |
//! | [`ioapic`] | I/O APIC with 24 pins, version 0x20 | Intel 82093AA data sheet |
//! | [`lapic`] | local APIC, xAPIC and x2APIC | Intel SDM vol. 3, chapter 11 (APIC) |
//! | [`message`] | interrupt messages and who they reach | Intel SDM vol. 3 §11.6.2, §11.11 |
//! | [`pit`] | 8254 with port 0x61 | Intel 8254 data sheet; PIIX3 "NMI status and control" |
//!
//! [`PicPair`](pic::PicPair) and [`IoApic`](ioapic::IoApic) are cheap handles that are cloned: one
//! clone goes on the bus, others give out [`IrqLine`](trapline_device::IrqLine)s. Locks are always
//! taken in the order device, interrupt controller, local APIC; an owner of a
//! [`LocalApic`](lapic::LocalApic) therefore performs the effects that it returns only after it has
//! let go of it.
//!
//! Left out: MCS-80 mode and buffered mode of the 8259A; interrupt polarity (a line is asserted or
//! not, whatever its voltage) and the serial APIC bus; remote reads and focus checking of the local
//! APIC; sound from the speaker.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use trapline_device::bus::PioBus;
//! use trapline_device::test::Recorder;
//! use trapline_device::{AccessSize::Byte, IrqLine};
//! use trapline_irqchip::pic::PicPair;
//!
//! let cpu = Arc::new(Recorder::default());
//! let pic = PicPair::new(IrqLine::new(cpu.clone(), 0));
//! let mut ports = PioBus::builder();
//! let device = Arc::new(Mutex::new(pic.clone()));
//! ports.register(0x20, 2, device.clone(), 0, "pic0")?;
//! ports.register(0xa0, 2, device.clone(), 1, "pic1")?;
//! ports.register(0x4d0, 2, device, 2, "elcr")?;
//! let ports = ports.build();
//!
//! // ICW1 to ICW4 for the master: vectors from 0x20, a slave at IR2, 8086 mode.
//! for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01)] {
//!     ports.write(port, Byte, value);
//! }
//! pic.line(1).pulse();
//! assert!(cpu.level(0));
//! assert_eq!(pic.ack(), 0x21);
//! # Ok::<(), trapline_device::bus::BusError>(())
//! ```
#![forbid(unsafe_code)]

pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod pic;
pub mod pit;

use std::sync::{Mutex, MutexGuard, PoisonError};

use trapline_device::AccessSize;

/// Locks; the state of an earlier user that panicked is used on as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a device of 8-bit ports with an access of any width: one port for each byte.
fn read_bytes(offset: u16, size: AccessSize, mut read: impl FnMut(u16) -> u8) -> u32 {
    let ports = (0..size.bytes().min(4) as u16).map(|i| offset.saturating_add(i));
    let bytes = ports.map(|port| u32::from(read(port)));
    bytes.zip([0, 8, 16, 24]).fold(0, |value, (byte, shift)| value | byte << shift)
}

/// Writes a device of 8-bit ports with an access of any width: one port for each byte.
fn write_bytes(offset: u16, size: AccessSize, value: u32, mut write: impl FnMut(u16, u8)) {
    for (i, byte) in (0..).zip(value.to_le_bytes().into_iter().take(size.bytes())) {
        write(offset.saturating_add(i), byte);
    }
}
