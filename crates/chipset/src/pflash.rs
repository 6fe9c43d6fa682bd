//! Parallel NOR flash with the Intel command set 0001, one byte wide (Intel 28F128J3 datasheet; JEDEC JEP137 and
//! JESD68, Common Flash Interface): where UEFI firmware keeps its variables.
//!
//! One memory region, as long as the chip. While it shows its cells ("read array") a board maps them as
//! read-only memory, from which code runs at full speed; the guest's writes come here as commands. In the other
//! states reads come here too: they give status, identifiers or the query table. [`FlashView`] hears of the
//! changes.
//!
//! | command | then |
//! |---|---|
//! | ffh, f0h, 00h | read array |
//! | 70h, 50h | read status; clear status and read array |
//! | 90h, 98h | read identifiers; read the query table |
//! | 10h, 40h | program: the next write's bytes |
//! | 20h | erase a block: D0h confirms |
//! | e8h | write to buffer: the count less one, the bytes, D0h |
//! | 60h | lock or unlock a block: accepted, without effect |
//!
//! Commands are the low byte of a write of any width. Programming clears bits, erasing sets them. All is done at
//! once, so that the chip is never busy. What was changed goes to the [`FlashStore`] when the chip shows its
//! array again, and when the board calls [`Pflash::flush`].
//!
//! Deviations: cleared status is 00h, not 80h, until the next operation, as QEMU's chip has it: by that OVMF
//! knows a flash. Left out: block locks, suspending, protection registers, a chip's own erase and program
//! times.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::{AccessSize, Device, DmaMemory, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::check;

/// Size of an erase block in bytes. A chip is a whole number of blocks.
pub const BLOCK: u64 = 4096;
/// The most bytes of a write to buffer, and what they are aligned to.
const BUFFER: usize = 256;

// Status register.
const READY: u8 = 1 << 7;
const ERASE_ERROR: u8 = 1 << 5;
const PROGRAM_ERROR: u8 = 1 << 4;
/// Both: the commands made no sense.
const SEQUENCE_ERROR: u8 = ERASE_ERROR | PROGRAM_ERROR;

const CONFIRM: u8 = 0xd0;
const READ_ARRAY: u8 = 0xff;

/// Manufacturer (Intel) and device, as the identifiers read.
const IDENTIFIERS: [u8; 2] = [0x89, 0x18];

/// Where a board hears what the guest is to see of a chip. `set_array` is called with the device locked and must
/// not call back.
pub trait FlashView: Send + Sync {
    /// Reads show the cells from now on (true), or come to the device (false).
    fn set_array(&self, array: bool);
}

/// Where the cells of a chip are kept: the file of a firmware's variables.
pub trait FlashStore: Send {
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// When the host cannot write.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes what was written durable.
    ///
    /// # Errors
    /// When the host cannot.
    fn flush(&mut self) -> io::Result<()>;
}

impl FlashStore for File {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What writes and reads mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Array,
    Status,
    Identifiers,
    Query,
    /// The next write is programmed.
    Program,
    /// The next write confirms.
    Erase,
    Lock,
    /// Write to buffer: the count comes, this many bytes come, D0h comes.
    Count,
    Buffer(u16),
    Confirm,
}

/// A flash chip.
pub struct Pflash {
    name: &'static str,
    /// The cells, from address 0 on.
    cells: Arc<dyn DmaMemory>,
    size: u64,
    writable: bool,
    view: Arc<dyn FlashView>,
    store: Option<Box<dyn FlashStore>>,
    state: State,
    status: u8,
    /// Bytes of a write to buffer, with their offsets.
    buffer: Vec<(u64, u8)>,
    /// Blocks that the store does not have yet, in no order.
    unsaved: Vec<u64>,
}

/// What a chip is made from.
pub struct PflashConfig {
    /// For logs.
    pub name: &'static str,
    /// The cells, which hold the chip's content: memory from address 0 on that the board also shows to the
    /// guest.
    pub cells: Arc<dyn DmaMemory>,
    /// Size in bytes, a multiple of [`BLOCK`].
    pub size: u64,
    /// Whether it can be programmed and erased.
    pub writable: bool,
    /// What hears of the changes of state. It is told nothing at first: the chip shows its array.
    pub view: Arc<dyn FlashView>,
    /// Where changes are kept.
    pub store: Option<Box<dyn FlashStore>>,
}

impl Pflash {
    /// A chip that shows its array. What `size` has beyond whole blocks is left out.
    pub fn new(config: PflashConfig) -> Self {
        let PflashConfig { name, cells, size, writable, view, store } = config;
        Self {
            name,
            cells,
            size: size - size % BLOCK,
            writable,
            view,
            store,
            state: State::Array,
            status: READY,
            buffer: Vec::new(),
            unsaved: Vec::new(),
        }
    }

    /// Whether reads show the cells.
    pub fn shows_array(&self) -> bool {
        self.state == State::Array
    }

    /// Makes everything that was programmed and erased durable.
    ///
    /// # Errors
    /// When the store fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.save_blocks()?;
        self.store.as_mut().map_or(Ok(()), |store| store.flush())
    }

    fn save_blocks(&mut self) -> io::Result<()> {
        let Some(store) = &mut self.store else {
            self.unsaved.clear();
            return Ok(());
        };
        let mut block = [0; BLOCK as usize];
        while let Some(offset) = self.unsaved.last() {
            if self.cells.read(*offset, &mut block) {
                store.write(*offset, &block)?;
            }
            self.unsaved.pop();
        }
        Ok(())
    }

    fn enter(&mut self, state: State) {
        let before = self.shows_array();
        self.state = state;
        if before != self.shows_array() {
            self.view.set_array(self.shows_array());
        }
    }

    fn read_array(&mut self) {
        if let Err(error) = self.save_blocks() {
            // They stay marked, and are tried again.
            tracing::warn!(name = self.name, %error, "flash content cannot be written to its file");
            self.status |= PROGRAM_ERROR;
        }
        self.enter(State::Array);
    }

    /// Writes cells, and marks their blocks.
    fn change(&mut self, offset: u64, data: &[u8]) -> bool {
        let inside = offset.checked_add(data.len() as u64).is_some_and(|end| end <= self.size);
        if !self.writable || !inside || data.is_empty() || !self.cells.write(offset, data) {
            return false;
        }
        let mut block = offset - offset % BLOCK;
        while block < offset + data.len() as u64 {
            if !self.unsaved.contains(&block) {
                self.unsaved.push(block);
            }
            block += BLOCK;
        }
        true
    }

    /// Clears the bits that are clear in `data`.
    fn program(&mut self, offset: u64, data: &[u8]) {
        let mut cells = [0; BUFFER];
        let ok = cells.get_mut(..data.len()).is_some_and(|cells| {
            let ok = self.cells.read(offset, cells);
            cells.iter_mut().zip(data).for_each(|(cell, byte)| *cell &= byte);
            ok && self.change(offset, cells)
        });
        self.status |= if ok { READY } else { READY | PROGRAM_ERROR };
    }

    fn erase(&mut self, offset: u64) {
        let ok = self.change(offset - offset % BLOCK, &[0xff; BLOCK as usize]);
        self.status |= if ok { READY } else { READY | ERASE_ERROR };
    }

    fn program_buffer(&mut self) {
        for (offset, byte) in std::mem::take(&mut self.buffer) {
            self.program(offset, &[byte]);
        }
    }

    fn command(&mut self, command: u8) {
        match command {
            0x10 | 0x40 => self.enter(State::Program),
            0x20 => self.enter(State::Erase),
            0x50 => {
                self.status = 0;
                self.read_array();
            }
            0x60 => self.enter(State::Lock),
            0x70 => self.enter(State::Status),
            0x90 => self.enter(State::Identifiers),
            0x98 => self.enter(State::Query),
            0xe8 => {
                self.status |= READY;
                self.enter(State::Count);
            }
            _ => self.read_array(),
        }
    }

    /// A write that is not what the command before it needs.
    fn out_of_sequence(&mut self) {
        self.buffer.clear();
        self.status |= READY | SEQUENCE_ERROR;
        self.enter(State::Status);
    }

    fn write_bytes(&mut self, offset: u64, data: &[u8]) {
        let Some(&low) = data.first() else { return };
        match (self.state, low) {
            (State::Array | State::Status | State::Identifiers | State::Query, _) => self.command(low),
            (State::Program, _) => {
                self.program(offset, data);
                self.enter(State::Status);
            }
            (State::Erase | State::Lock | State::Confirm, READ_ARRAY) => {
                self.buffer.clear();
                self.read_array();
            }
            (State::Erase, CONFIRM) => {
                self.erase(offset);
                self.enter(State::Status);
            }
            (State::Lock, CONFIRM | 0x01 | 0x2f) => {
                self.status |= READY;
                self.enter(State::Status);
            }
            (State::Count, count) => {
                self.buffer.clear();
                self.enter(State::Buffer(u16::from(count) + 1));
            }
            (State::Buffer(left), _) => self.fill_buffer(offset, data, left),
            (State::Confirm, CONFIRM) => {
                self.program_buffer();
                self.enter(State::Status);
            }
            (State::Erase | State::Lock | State::Confirm, _) => self.out_of_sequence(),
        }
    }

    fn fill_buffer(&mut self, offset: u64, data: &[u8], left: u16) {
        let window = |offset: u64| offset / BUFFER as u64;
        let first = self.buffer.first().map_or(offset, |(first, _)| *first);
        let last = offset.saturating_add(data.len() as u64 - 1);
        let fits = window(first) == window(offset) && window(first) == window(last);
        match left.checked_sub(data.len() as u16).filter(|_| fits) {
            Some(left) => {
                self.buffer.extend((offset..).zip(data.iter().copied()));
                self.enter(if left == 0 { State::Confirm } else { State::Buffer(left) });
            }
            None => self.out_of_sequence(),
        }
    }

    fn read_byte(&self, offset: u64) -> u8 {
        match self.state {
            State::Array => {
                let mut byte = [0xff];
                if offset < self.size && !self.cells.read(offset, &mut byte) {
                    return 0xff;
                }
                let [byte] = byte;
                byte
            }
            // Repeated in each block; the third byte says that a block is not locked.
            State::Identifiers => match offset % BLOCK {
                at @ (0 | 1) => IDENTIFIERS.get(at as usize).copied().unwrap_or(0),
                _ => 0,
            },
            State::Query => self.query(offset % BLOCK),
            _ => self.status,
        }
    }

    /// The Common Flash Interface's table (JESD68, 2.2).
    fn query(&self, offset: u64) -> u8 {
        let blocks = (self.size / BLOCK).saturating_sub(1);
        let (low, high) = (blocks as u8, (blocks >> 8) as u8);
        let units = BLOCK / 256;
        let size = self.size.next_power_of_two().trailing_zeros() as u8;
        let table = [
            // Command set 0001, its own table at 31h; no alternative.
            b'Q',
            b'R',
            b'Y',
            0x01,
            0x00,
            0x31,
            0x00,
            0x00,
            0x00,
            0x00,
            0x00,
            // 4.5 to 5.5 V, no programming voltage; typical and largest times, powers of two: byte, buffer,
            // block, no chip.
            0x45,
            0x55,
            0x00,
            0x00,
            0x07,
            0x07,
            0x0a,
            0x00,
            0x04,
            0x04,
            0x04,
            0x00,
            // Size, one byte wide, buffer; one region of blocks.
            size,
            0x00,
            0x00,
            BUFFER.trailing_zeros() as u8,
            0x00,
            0x01,
            low,
            high,
            units as u8,
            (units >> 8) as u8,
            // The command set's table, version 1.0, without options.
            b'P',
            b'R',
            b'I',
            b'1',
            b'0',
            0x00,
            0x00,
            0x00,
            0x00,
        ];
        let at = offset.checked_sub(0x10).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| table.get(at)).copied().unwrap_or(0)
    }
}

impl MmioIo for Pflash {
    fn read(&mut self, _region: usize, offset: u64, size: AccessSize) -> u64 {
        let mut value = [0; 8];
        for (at, byte) in (offset..).zip(&mut value).take(size.bytes()) {
            *byte = self.read_byte(at);
        }
        u64::from_le_bytes(value)
    }

    fn write(&mut self, _region: usize, offset: u64, size: AccessSize, value: u64) {
        self.write_bytes(offset, value.to_le_bytes().get(..size.bytes()).unwrap_or_default());
    }
}

impl Device for Pflash {
    fn name(&self) -> &str {
        self.name
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

    /// Shows the array. Cells keep what they hold.
    fn reset(&mut self) {
        self.buffer.clear();
        self.read_array();
        self.status = READY;
    }
}

/// Saved state of a [`Pflash`]: not its cells, which are in its file and in the machine's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PflashState {
    state: State,
    status: u8,
    buffer: Vec<(u64, u8)>,
    unsaved: Vec<u64>,
}

impl SaveRestore for Pflash {
    type State = PflashState;

    fn save(&self) -> PflashState {
        let Self {
            name: _,
            cells: _,
            size: _,
            writable: _,
            view: _,
            store: _,
            state,
            status,
            buffer,
            unsaved,
        } = self;
        PflashState { state: *state, status: *status, buffer: buffer.clone(), unsaved: unsaved.clone() }
    }

    fn restore(&mut self, state: PflashState) -> Result<(), RestoreError> {
        let PflashState { state, status, buffer, unsaved } = state;
        let refuse = |ok, what: &str| check("pflash", ok, || what.to_owned());
        refuse(status & !(READY | SEQUENCE_ERROR) == 0, "status has bits that are never set")?;
        let left = match state {
            State::Buffer(left) => usize::from(left),
            _ => 0,
        };
        refuse(left + buffer.len() <= BUFFER, "more bytes than the buffer holds")?;
        refuse(state != State::Buffer(0), "buffer waits for no bytes")?;
        let blocks = self.size / BLOCK;
        let known = unsaved.iter().all(|at| at.is_multiple_of(BLOCK) && at / BLOCK < blocks);
        refuse(known && unsaved.len() as u64 <= blocks, "unsaved blocks that do not exist")?;
        (self.status, self.buffer, self.unsaved) = (status, buffer, unsaved);
        self.enter(state);
        Ok(())
    }
}
