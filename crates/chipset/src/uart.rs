//! The PC16550D UART (National Semiconductor datasheet TL/C/8652, June 1995).
//!
//! One region of eight ports:
//!
//! | offset | read | write | with DLAB |
//! |---|---|---|---|
//! | 0 | receiver buffer | transmitter holding | divisor low |
//! | 1 | interrupt enable | interrupt enable | divisor high |
//! | 2 | interrupt identification | FIFO control | as without |
//! | 3 | line control | line control | as without |
//! | 4 | modem control | modem control | as without |
//! | 5 | line status | ignored | as without |
//! | 6 | modem status | ignored | as without |
//! | 7 | scratch | scratch | as without |
//!
//! The line is infinitely fast. A byte written to the transmitter holding register is at its
//! destination before the write returns, so that the transmitter is always empty; and four character
//! times pass at once, so that a received byte below the FIFO's trigger level raises the character
//! time-out interrupt immediately.
//!
//! MCR.OUT2 is a modem line and no more: on a PC's card it also gates the interrupt, but under QEMU it does
//! not, and small systems that were written there (xv6 among them) never set it.
//!
//! Left out: parity and framing errors (but for the framing error that is part of a break), word
//! lengths (all 8 bits always travel), baud rates, DMA signalling.

use std::io::Write;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, IrqLine, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

use crate::bytewise::{self, check};
use crate::output::Output;

/// Receive FIFO size in bytes.
pub const FIFO_SIZE: usize = 16;

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR_FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

/// Divisor for 9600 baud, what firmware leaves.
const DEFAULT_DIVISOR: [u8; 2] = [12, 0];

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Ier: u8 {
        const RECEIVED = 1 << 0;
        const THR_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Fcr: u8 {
        const ENABLE = 1 << 0;
        const RESET_RX = 1 << 1;
        const DMA_MODE = 1 << 3;
        const TRIGGER = 3 << 6;
        /// What is kept; the reset bits clear themselves.
        const STORED = Self::ENABLE.bits() | Self::DMA_MODE.bits() | Self::TRIGGER.bits();
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Lcr: u8 {
        const SET_BREAK = 1 << 6;
        const DLAB = 1 << 7;
        const _ = !0;
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Lsr: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const FRAMING = 1 << 3;
        const BREAK = 1 << 4;
        const THR_EMPTY = 1 << 5;
        const TX_EMPTY = 1 << 6;
        const FIFO_ERROR = 1 << 7;
        /// What came in with a character.
        const IN_FIFO = Self::FRAMING.bits() | Self::BREAK.bits();
        /// What raises the line status interrupt, and reading LSR clears.
        const ERRORS = Self::OVERRUN.bits() | Self::IN_FIFO.bits();
    }

    /// The modem status register's delta bits.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Deltas: u8 {
        const CTS = 1 << 0;
        const DSR = 1 << 1;
        const TRAILING_RI = 1 << 2;
        const DCD = 1 << 3;
    }

    /// The modem's signals to the UART, at their places in the modem status register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ModemInputs: u8 {
        /// Clear to send.
        const CTS = 1 << 4;
        /// Data set ready.
        const DSR = 1 << 5;
        /// Ring indicator.
        const RI = 1 << 6;
        /// Data carrier detect.
        const DCD = 1 << 7;
    }
}

/// What is on the line while a peer is connected and ready.
const CONNECTED: ModemInputs = ModemInputs::CTS.union(ModemInputs::DSR).union(ModemInputs::DCD);

/// Interrupt identification codes (datasheet table III), highest priority first.
mod iir {
    pub(super) const LINE_STATUS: u8 = 0b0110;
    pub(super) const RECEIVED: u8 = 0b0100;
    pub(super) const TIME_OUT: u8 = 0b1100;
    pub(super) const THR_EMPTY: u8 = 0b0010;
    pub(super) const MODEM_STATUS: u8 = 0b0000;
    pub(super) const NONE: u8 = 0b0001;
    pub(super) const FIFOS_ENABLED: u8 = 0b1100_0000;
}

/// The receive FIFO; in 16450 mode, of one byte.
#[derive(Clone, Copy, Default)]
struct Fifo {
    bytes: [u8; FIFO_SIZE],
    /// A bit for each slot of `bytes`: the byte is a break that has not reached the top yet.
    breaks: u16,
    head: usize,
    len: usize,
}

impl Fifo {
    fn push(&mut self, byte: u8, is_break: bool) {
        let slot = (self.head + self.len) % FIFO_SIZE;
        self.bytes[slot] = byte;
        self.breaks = self.breaks & !(1 << slot) | u16::from(is_break) << slot;
        self.len = (self.len + 1).min(FIFO_SIZE);
    }

    fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let byte = self.bytes[self.head % FIFO_SIZE];
        self.breaks &= !(1 << (self.head % FIFO_SIZE));
        self.head = (self.head + 1) % FIFO_SIZE;
        Some(byte)
    }

    /// Whether the top byte is a break; says so once.
    fn take_break(&mut self) -> bool {
        let top = 1 << (self.head % FIFO_SIZE);
        let is_break = self.breaks & top != 0;
        self.breaks &= !top;
        is_break
    }
}

/// A 16550A serial port.
pub struct Uart {
    name: String,
    irq: IrqLine,
    output: Output,
    room_hook: Option<Box<dyn Fn() + Send>>,
    /// The host had more bytes than there was room for, and waits for the hook.
    host_waits: bool,
    divisor: [u8; 2],
    ier: Ier,
    fcr: Fcr,
    lcr: Lcr,
    mcr: Mcr,
    /// The error bits; the others are computed.
    errors: Lsr,
    deltas: Deltas,
    inputs: ModemInputs,
    scratch: u8,
    rx: Fifo,
    /// The transmitter-empty interrupt is pending: set when the transmitter becomes empty, cleared by
    /// reading its identification.
    thr_empty: bool,
    irq_level: bool,
}

impl Uart {
    /// A serial port that interrupts on `irq` and sends to `output`.
    ///
    /// Each write is flushed. Bytes that `output` refuses, with `WouldBlock` or any other error, are
    /// dropped and counted. A writer that blocks stops the guest for as long: hand in one that does
    /// not, such as a non-blocking pipe or a bounded channel.
    pub fn new(name: impl Into<String>, irq: IrqLine, output: Box<dyn Write + Send>) -> Self {
        Self {
            name: name.into(),
            irq,
            output: Output::new(output),
            room_hook: None,
            host_waits: false,
            divisor: DEFAULT_DIVISOR,
            ier: Ier::empty(),
            fcr: Fcr::empty(),
            lcr: Lcr::empty(),
            mcr: Mcr::empty(),
            errors: Lsr::empty(),
            deltas: Deltas::empty(),
            inputs: CONNECTED,
            scratch: 0,
            rx: Fifo::default(),
            thr_empty: false,
            irq_level: false,
        }
    }

    /// Calls `hook` when there is room again after [`Uart::receive`] could not take everything. The
    /// hook runs on a vCPU's thread with the device locked: it wakes the host reader, no more.
    pub fn set_room_hook(&mut self, hook: Box<dyn Fn() + Send>) {
        self.room_hook = Some(hook);
    }

    /// Bytes that [`Uart::receive`] would take now: none in loop-back mode.
    pub fn room(&self) -> usize {
        if self.mcr.contains(Mcr::LOOP) { 0 } else { self.capacity().saturating_sub(self.rx.len) }
    }

    /// Bytes arrive on the line. Takes as many as there is room for, and returns how many; when that is
    /// fewer than all, the room hook says when to try again. Nothing is ever overrun from here.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.room().min(bytes.len());
        for &byte in bytes.iter().take(taken) {
            self.accept(byte, false);
        }
        self.host_waits = taken < bytes.len();
        self.update_irq();
        taken
    }

    /// A break arrives on the line. Returns false, with no effect, when there is no room.
    pub fn receive_break(&mut self) -> bool {
        let room = self.room() > 0;
        if room {
            self.accept(0, true);
            self.update_irq();
        }
        room
    }

    /// Drives the modem's signals. They are CTS, DSR and DCD at first, as of a peer that is ready.
    pub fn set_modem_inputs(&mut self, inputs: ModemInputs) {
        self.change_lines(|uart| uart.inputs = inputs);
        self.update_irq();
    }

    /// Bytes the output refused so far.
    pub fn lost_bytes(&self) -> u64 {
        self.output.lost()
    }

    fn fifos_enabled(&self) -> bool {
        self.fcr.contains(Fcr::ENABLE)
    }

    fn dlab(&self) -> bool {
        self.lcr.contains(Lcr::DLAB)
    }

    fn capacity(&self) -> usize {
        if self.fifos_enabled() { FIFO_SIZE } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        match self.fcr.bits() >> 6 {
            _ if !self.fifos_enabled() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// A character leaves the receiver's shift register.
    fn accept(&mut self, byte: u8, is_break: bool) {
        if self.rx.len >= self.capacity() {
            self.errors |= Lsr::OVERRUN;
            if self.fifos_enabled() {
                return; // the FIFO is kept, the character is lost
            }
            self.rx.pop(); // the receiver buffer is overwritten
        }
        self.rx.push(byte, is_break);
        self.reveal_break();
    }

    /// A break is reported when it reaches the top of the FIFO.
    fn reveal_break(&mut self) {
        if self.rx.len > 0 && self.rx.take_break() {
            self.errors |= Lsr::IN_FIFO;
        }
    }

    fn read_rbr(&mut self) -> u8 {
        let byte = self.rx.pop().unwrap_or(0);
        self.reveal_break();
        byte
    }

    fn clear_rx(&mut self) {
        self.rx = Fifo::default();
    }

    fn transmit(&mut self, bytes: &[u8]) {
        // The holding register is full for no time at all; the edge is there all the same.
        self.thr_empty = false;
        self.update_irq();
        if self.mcr.contains(Mcr::LOOP) {
            bytes.iter().for_each(|&byte| self.accept(byte, false));
        } else {
            self.output.send(bytes);
        }
        self.thr_empty = true;
        self.update_irq();
    }

    /// The modem lines as MSR shows them: in loop-back mode, MCR's outputs.
    fn lines(&self) -> ModemInputs {
        if !self.mcr.contains(Mcr::LOOP) {
            return self.inputs;
        }
        let mut lines = ModemInputs::empty();
        lines.set(ModemInputs::CTS, self.mcr.contains(Mcr::RTS));
        lines.set(ModemInputs::DSR, self.mcr.contains(Mcr::DTR));
        lines.set(ModemInputs::RI, self.mcr.contains(Mcr::OUT1));
        lines.set(ModemInputs::DCD, self.mcr.contains(Mcr::OUT2));
        lines
    }

    /// Makes `change`, and notes in the delta bits what it did to the modem lines.
    fn change_lines(&mut self, change: impl FnOnce(&mut Self)) {
        let old = self.lines();
        change(self);
        let new = self.lines();
        let toggled = old ^ new;
        let mut deltas = Deltas::empty();
        deltas.set(Deltas::CTS, toggled.contains(ModemInputs::CTS));
        deltas.set(Deltas::DSR, toggled.contains(ModemInputs::DSR));
        deltas.set(Deltas::TRAILING_RI, (old - new).contains(ModemInputs::RI));
        deltas.set(Deltas::DCD, toggled.contains(ModemInputs::DCD));
        self.deltas |= deltas;
    }

    fn line_status(&self) -> Lsr {
        let mut lsr = self.errors | Lsr::THR_EMPTY | Lsr::TX_EMPTY;
        lsr.set(Lsr::DATA_READY, self.rx.len > 0);
        let error_in_fifo = self.errors.intersects(Lsr::IN_FIFO) || self.rx.breaks != 0;
        lsr.set(Lsr::FIFO_ERROR, self.fifos_enabled() && error_in_fifo);
        lsr
    }

    /// The pending interrupt of the highest priority.
    fn interrupt(&self) -> u8 {
        if self.ier.contains(Ier::LINE_STATUS) && !self.errors.is_empty() {
            iir::LINE_STATUS
        } else if self.ier.contains(Ier::RECEIVED) && self.rx.len > 0 {
            if self.rx.len >= self.trigger_level() { iir::RECEIVED } else { iir::TIME_OUT }
        } else if self.ier.contains(Ier::THR_EMPTY) && self.thr_empty {
            iir::THR_EMPTY
        } else if self.ier.contains(Ier::MODEM_STATUS) && !self.deltas.is_empty() {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn update_irq(&mut self) {
        let level = self.interrupt() != iir::NONE;
        if level != self.irq_level {
            self.irq_level = level;
            self.irq.set(level);
        }
    }

    /// Wakes the waiting host. Not before the FIFO is empty, so that it wakes once for a FIFO's worth
    /// of bytes: while there are any, the guest has reason to read them.
    fn offer_room(&mut self) {
        if self.host_waits && self.rx.len == 0 && self.room() > 0 {
            self.host_waits = false;
            if let Some(hook) = &self.room_hook {
                hook();
            }
        }
    }

    fn read_iir(&mut self) -> u8 {
        let source = self.interrupt();
        if source == iir::THR_EMPTY {
            self.thr_empty = false;
        }
        source | if self.fifos_enabled() { iir::FIFOS_ENABLED } else { 0 }
    }

    fn read_byte(&mut self, offset: u16) -> u8 {
        let value = match offset {
            DATA if self.dlab() => self.divisor[0],
            DATA => self.read_rbr(),
            IER if self.dlab() => self.divisor[1],
            IER => self.ier.bits(),
            IIR_FCR => self.read_iir(),
            LCR => self.lcr.bits(),
            MCR => self.mcr.bits(),
            LSR => {
                let lsr = self.line_status();
                self.errors = Lsr::empty();
                lsr.bits()
            }
            MSR => {
                let deltas = std::mem::replace(&mut self.deltas, Deltas::empty());
                self.lines().bits() | deltas.bits()
            }
            SCR => self.scratch,
            _ => 0xff,
        };
        self.update_irq();
        self.offer_room();
        value
    }

    fn write_byte(&mut self, offset: u16, value: u8) {
        match offset {
            DATA if self.dlab() => self.divisor[0] = value,
            DATA => return self.transmit(&[value]),
            IER if self.dlab() => self.divisor[1] = value,
            IER => self.write_ier(Ier::from_bits_truncate(value)),
            IIR_FCR => self.write_fcr(Fcr::from_bits_truncate(value)),
            LCR => self.write_lcr(Lcr::from_bits_retain(value)),
            MCR => self.change_lines(|uart| uart.mcr = Mcr::from_bits_truncate(value)),
            SCR => self.scratch = value,
            // LSR and MSR are for reading (writing them is for factory tests); others do not exist.
            _ => {}
        }
        self.update_irq();
        self.offer_room();
    }

    fn write_ier(&mut self, ier: Ier) {
        // Enabling the interrupt while the transmitter is empty raises it at once.
        if (ier - self.ier).contains(Ier::THR_EMPTY) {
            self.thr_empty = true;
        }
        self.ier = ier;
    }

    fn write_fcr(&mut self, fcr: Fcr) {
        if (fcr ^ self.fcr).contains(Fcr::ENABLE) || fcr.contains(Fcr::RESET_RX) {
            self.clear_rx();
        }
        // The other bits are only programmed together with the enable bit.
        self.fcr = if fcr.contains(Fcr::ENABLE) { fcr & Fcr::STORED } else { Fcr::empty() };
    }

    fn write_lcr(&mut self, lcr: Lcr) {
        let starts_break = (lcr - self.lcr).contains(Lcr::SET_BREAK);
        self.lcr = lcr;
        if starts_break && self.mcr.contains(Mcr::LOOP) {
            self.accept(0, true);
        }
    }
}

impl PortIo for Uart {
    fn read(&mut self, _region: usize, offset: u16, size: AccessSize) -> u32 {
        bytewise::read(offset, size, |offset| self.read_byte(offset))
    }

    fn write(&mut self, _region: usize, offset: u16, size: AccessSize, value: u32) {
        bytewise::write(offset, size, value, |offset, v| self.write_byte(offset, v));
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        if offset != DATA || size != AccessSize::Byte || self.dlab() {
            return read_each(self, region, offset, size, data);
        }
        data.iter_mut().for_each(|to| *to = self.read_rbr());
        self.update_irq();
        self.offer_room();
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        if offset != DATA || size != AccessSize::Byte || self.dlab() || data.is_empty() {
            return write_each(self, region, offset, size, data);
        }
        self.transmit(data);
    }
}

impl Device for Uart {
    fn name(&self) -> &str {
        &self.name
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    /// Master reset (datasheet table I). The divisor and the scratch register are not specified; they
    /// take their initial values. The modem's signals are not the UART's, and stay.
    fn reset(&mut self) {
        self.divisor = DEFAULT_DIVISOR;
        self.ier = Ier::empty();
        self.fcr = Fcr::empty();
        self.lcr = Lcr::empty();
        self.mcr = Mcr::empty();
        self.errors = Lsr::empty();
        self.deltas = Deltas::empty();
        self.scratch = 0;
        self.thr_empty = false;
        self.clear_rx();
        self.update_irq();
        self.offer_room();
    }
}

/// Saved state of a [`Uart`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    divisor: [u8; 2],
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    errors: u8,
    deltas: u8,
    inputs: u8,
    scratch: u8,
    rx: Vec<u8>,
    /// Bit n: byte n of `rx` is a break not yet reported.
    breaks: u16,
    thr_empty: bool,
}

impl SaveRestore for Uart {
    type State = UartState;

    fn save(&self) -> UartState {
        let Self {
            name: _,
            irq: _,
            output: _,
            room_hook: _,
            host_waits: _, // the host's state, not the guest's
            divisor,
            ier,
            fcr,
            lcr,
            mcr,
            errors,
            deltas,
            inputs,
            scratch,
            rx,
            thr_empty,
            irq_level: _, // follows from the rest
        } = self;
        let slot = |i: usize| (rx.head + i) % FIFO_SIZE;
        UartState {
            divisor: *divisor,
            ier: ier.bits(),
            fcr: fcr.bits(),
            lcr: lcr.bits(),
            mcr: mcr.bits(),
            errors: errors.bits(),
            deltas: deltas.bits(),
            inputs: inputs.bits(),
            scratch: *scratch,
            rx: (0..rx.len).map(|i| rx.bytes[slot(i)]).collect(),
            breaks: (0..rx.len).fold(0, |bits, i| bits | (rx.breaks >> slot(i) & 1) << i),
            thr_empty: *thr_empty,
        }
    }

    fn restore(&mut self, state: UartState) -> Result<(), RestoreError> {
        let refuse = |ok, what: &str| check("uart", ok, || what.to_owned());
        let ier = Ier::from_bits(state.ier);
        let fcr = Fcr::from_bits(state.fcr).filter(|f| (*f - Fcr::STORED).is_empty());
        let mcr = Mcr::from_bits(state.mcr);
        let errors = Lsr::from_bits(state.errors).filter(|e| (*e - Lsr::ERRORS).is_empty());
        let (deltas, inputs) = (Deltas::from_bits(state.deltas), ModemInputs::from_bits(state.inputs));
        let (Some(ier), Some(fcr), Some(mcr), Some(errors), Some(deltas), Some(inputs)) =
            (ier, fcr, mcr, errors, deltas, inputs)
        else {
            return refuse(false, "a register has bits that do not exist");
        };
        let enabled = fcr.contains(Fcr::ENABLE);
        refuse(enabled || fcr.is_empty(), "fifo control bits without fifos")?;
        let capacity = if enabled { FIFO_SIZE } else { 1 };
        check("uart", state.rx.len() <= capacity, || {
            format!("fifo holds {} bytes, at most {capacity}", state.rx.len())
        })?;
        // A break at the top is in the line status register already.
        let possible = ((1u32 << state.rx.len()) - 1) & !1;
        refuse(u32::from(state.breaks) & !possible == 0, "a break where there is no byte")?;

        self.divisor = state.divisor;
        self.ier = ier;
        self.fcr = fcr;
        self.lcr = Lcr::from_bits_retain(state.lcr);
        self.mcr = mcr;
        self.errors = errors;
        self.deltas = deltas;
        self.inputs = inputs;
        self.scratch = state.scratch;
        self.thr_empty = state.thr_empty;
        self.clear_rx();
        for (i, &byte) in state.rx.iter().enumerate() {
            self.rx.push(byte, state.breaks >> i & 1 != 0);
        }
        self.update_irq();
        self.offer_room();
        Ok(())
    }
}
