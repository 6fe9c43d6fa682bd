//! The I/O APIC (Intel 82093AA), version 0x20: with an EOI register.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, IrqLine, IrqSink, MmioIo, Msi, MsiSink, Poll, PortIo, RestoreError, SaveRestore,
};

use crate::lock;
use crate::message::DeliveryMode;

/// Number of interrupt pins.
pub const PINS: usize = 24;

/// Register offsets in the page.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

/// Indirect registers.
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;

const VERSION: u32 = 0x20 | ((PINS as u32 - 1) << 16);

/// Redirection entry bits.
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// All but delivery status and remote IRR.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// One redirection table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64);

impl Entry {
    fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn delivery(self) -> Option<DeliveryMode> {
        DeliveryMode::from_bits((self.0 >> 8) as u32)
    }

    /// Level-triggered in effect: all but fixed and lowest priority are edges, whatever bit 15 says.
    fn is_level(self) -> bool {
        self.has(LEVEL) && self.delivery().is_some_and(DeliveryMode::has_vector)
    }

    /// The message that this entry sends (SDM vol. 3 §11.11).
    fn message(self) -> Msi {
        let destination = self.0 >> 56;
        let logical = u64::from(self.has(LOGICAL));
        let hint = u64::from(self.delivery() == Some(DeliveryMode::LowestPriority));
        let trigger = if self.is_level() { 0b11 << 14 } else { 0 };
        Msi {
            address: 0xfee0_0000 | destination << 12 | hint << 3 | logical << 2,
            data: (self.0 & 0x7ff) as u32 | trigger,
        }
    }

    /// Writes one half of the entry; the read-only bits stay.
    fn write(&mut self, high: bool, value: u32) {
        let (shift, half) = if high { (32, !0 << 32) } else { (0, 0xffff_ffff) };
        let writable = WRITABLE & half;
        self.0 = self.0 & !writable | u64::from(value) << shift & writable;
        if !self.is_level() {
            self.0 &= !REMOTE_IRR;
        }
    }
}

#[derive(Clone, Debug)]
struct State {
    select: u8,
    id: u8,
    arbitration: u8,
    lines: u32,
    entries: [Entry; PINS],
}

impl State {
    fn new() -> Self {
        Self { select: 0, id: 0, arbitration: 0, lines: 0, entries: [Entry(MASKED); PINS] }
    }

    /// The entry that a register belongs to, and whether the register is its upper half.
    fn entry(&mut self, register: u8) -> Option<(usize, bool)> {
        let index = register.checked_sub(REG_REDIRECTION)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index % 2 == 1))
    }

    fn read_selected(&mut self) -> u32 {
        match self.select {
            REG_ID => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            REG_ARBITRATION => u32::from(self.arbitration) << 24,
            register => {
                let Some((pin, high)) = self.entry(register) else { return 0 };
                let entry = self.entries.get(pin).map_or(0, |e| e.0);
                (if high { entry >> 32 } else { entry }) as u32
            }
        }
    }

    fn asserted(&self, pin: usize) -> bool {
        self.lines >> pin & 1 != 0
    }
}

struct Shared {
    state: Mutex<State>,
    messages: Arc<dyn MsiSink>,
    /// Counts writes to redirection entries.
    routes: AtomicU64,
}

impl Shared {
    /// Sends the message of `pin`, for a level-triggered entry only while its line asks for it.
    /// Messages go out under the lock, so that an EOI finds the remote IRR bit it belongs to.
    fn deliver(&self, state: &mut State, pin: usize, edge: bool) {
        let asserted = state.asserted(pin);
        let Some(entry) = state.entries.get_mut(pin) else { return };
        if entry.has(MASKED) || entry.delivery().is_none_or(|mode| mode == DeliveryMode::StartUp) {
            return;
        }
        if entry.is_level() {
            if !asserted || entry.has(REMOTE_IRR) {
                return;
            }
            entry.0 |= REMOTE_IRR;
        } else if !edge {
            return;
        }
        self.messages.signal(entry.message());
    }

    fn write_selected(&self, state: &mut State, value: u32) {
        match state.select {
            REG_ID => {
                state.id = (value >> 24) as u8 & 0xf;
                // The bus arbitration register is loaded with the ID.
                state.arbitration = state.id;
            }
            register => {
                let Some((pin, high)) = state.entry(register) else { return };
                if let Some(entry) = state.entries.get_mut(pin) {
                    entry.write(high, value);
                }
                self.routes.fetch_add(1, Ordering::Release);
                self.deliver(state, pin, false);
            }
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        let mut state = lock(&self.state);
        for pin in 0..PINS {
            let Some(entry) = state.entries.get_mut(pin) else { continue };
            if entry.vector() == vector && entry.has(REMOTE_IRR) {
                entry.0 &= !REMOTE_IRR;
                self.deliver(&mut state, pin, false);
            }
        }
    }
}

impl IrqSink for Shared {
    fn set(&self, pin: u32, level: bool) {
        if pin >= PINS as u32 {
            return;
        }
        let mut state = lock(&self.state);
        let bit = 1 << pin;
        let rises = level && state.lines & bit == 0;
        if level {
            state.lines |= bit;
        } else {
            state.lines &= !bit;
        }
        if rises {
            self.deliver(&mut state, pin as usize, true);
        }
    }
}

/// An I/O APIC with 24 pins, a handle to share: clones are the same controller.
///
/// As a device it has one memory region, 0, of 4 KiB. Registers are 32 bits wide; narrower writes
/// are ignored but for the 8-bit register select. Edges on a masked pin are lost, as the data sheet
/// has it; a level-triggered line that is still asserted is delivered when its entry is unmasked or
/// its interrupt ended.
#[derive(Clone)]
pub struct IoApic(Arc<Shared>);

impl IoApic {
    /// A controller after reset, all entries masked, that sends to `messages`.
    pub fn new(messages: Arc<dyn MsiSink>) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(State::new()), messages, routes: AtomicU64::new(0) }))
    }

    /// The line to pin `pin`, 0 to 23; others do nothing.
    pub fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(self.0.clone(), pin)
    }

    /// All pins.
    pub fn sink(&self) -> Arc<dyn IrqSink> {
        self.0.clone()
    }

    /// An EOI message from a local APIC: a level-triggered interrupt with this vector has been
    /// served. Delivers again what is still asserted; the caller must not hold what the message
    /// sink locks.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.0.end_of_interrupt(vector);
    }

    /// The message that each pin would send, masked (`None`) or not. KVM's split irqchip wants these
    /// as routes, to know which vectors to exit for on EOI. A pin that was masked while its interrupt is in
    /// service still waits for that EOI, and counts as not masked.
    pub fn routes(&self) -> [Option<Msi>; PINS] {
        lock(&self.0.state).entries.map(|entry| {
            let wanted = !entry.has(MASKED) || entry.has(REMOTE_IRR);
            wanted.then(|| entry.message())
        })
    }

    /// A number that changes with each write to a redirection entry: when to ask for
    /// [`IoApic::routes`] again.
    pub fn routes_generation(&self) -> u64 {
        self.0.routes.load(Ordering::Acquire)
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IoApic").field(&*lock(&self.0.state)).finish()
    }
}

impl Device for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        let mut state = lock(&self.0.state);
        *state = State { lines: state.lines, ..State::new() };
        self.0.routes.fetch_add(1, Ordering::Release);
    }
}

impl MmioIo for IoApic {
    fn read(&mut self, _region: usize, offset: u64, _size: AccessSize) -> u64 {
        let mut state = lock(&self.0.state);
        let register = match offset & !3 {
            IOREGSEL => state.select.into(),
            IOWIN => state.read_selected(),
            _ => 0,
        };
        u64::from(register) >> (8 * (offset & 3))
    }

    fn write(&mut self, _region: usize, offset: u64, size: AccessSize, value: u64) {
        match offset {
            IOREGSEL => lock(&self.0.state).select = value as u8,
            IOWIN if size >= AccessSize::Dword => {
                self.0.write_selected(&mut lock(&self.0.state), value as u32);
            }
            EOI if size >= AccessSize::Dword => self.0.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

/// Saved state of an [`IoApic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u8,
    arbitration: u8,
    lines: u32,
    entries: [u64; PINS],
}

impl SaveRestore for IoApic {
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        let State { select, id, arbitration, lines, entries } = lock(&self.0.state).clone();
        IoApicState { select, id, arbitration, lines, entries: entries.map(|entry| entry.0) }
    }

    fn restore(&mut self, state: IoApicState) -> Result<(), RestoreError> {
        let IoApicState { select, id, arbitration, lines, entries } = state;
        let refuse = |what| Err(RestoreError { device: "ioapic", what });
        if id > 0xf || arbitration > 0xf {
            return refuse(format!("id {id:#x}, arbitration {arbitration:#x}, at most 0xf"));
        }
        if lines >> PINS != 0 {
            return refuse(format!("lines {lines:#x}, there are {PINS}"));
        }
        if let Some(entry) = entries.iter().find(|entry| **entry & !(WRITABLE | REMOTE_IRR) != 0) {
            return refuse(format!("redirection entry {entry:#x} has reserved bits set"));
        }
        *lock(&self.0.state) = State { select, id, arbitration, lines, entries: entries.map(Entry) };
        self.0.routes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}
