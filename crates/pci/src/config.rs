//! Configuration space: registers as bytes with masks that say what a guest can do to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_device::{IrqLine, MsiSink, RestoreError};

use crate::bar::Bar;
use crate::capability::Capabilities;
use crate::interrupts::{Interrupts, InterruptsState};
use crate::intx::IntxPin;
use crate::regs::{
    BRIDGE_CONTROL, CACHE_LINE_SIZE, CAPABILITIES, COMMAND, Command, DEVICE_ID, HEADER_TYPE, INTERRUPT_LINE,
    INTERRUPT_PIN, IO_BASE, IO_BASE_UPPER, LATENCY_TIMER, MEMORY_BASE, PREFETCHABLE_BASE,
    PREFETCHABLE_BASE_UPPER, PREFETCHABLE_LIMIT_UPPER, PRIMARY_BUS, REVISION, SECONDARY_BUS,
    SECONDARY_STATUS, STATUS, SUBORDINATE_BUS, SUBSYSTEM_ID, SUBSYSTEM_VENDOR_ID, Status, VENDOR_ID,
};
use crate::{AddressRange, Identity};

/// Length of a conventional function's configuration space.
pub const CONVENTIONAL_SIZE: usize = 256;
/// Length of a PCI Express function's configuration space.
pub const EXPRESS_SIZE: usize = 4096;

/// Why a configuration space cannot be built so: a mistake in the device's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is no such BAR in this header type, or it is taken.
    #[error("there is no bar {index}, or it is taken")]
    BarTaken {
        /// Which BAR.
        index: usize,
    },
    /// The size is not a power of two within what the specification allows.
    #[error("bar {index} cannot have a size of {size:#x}")]
    BarSize {
        /// Which BAR.
        index: usize,
        /// The size asked for.
        size: u64,
    },
    /// The capability does not fit, or what it asks for does not exist.
    #[error("capability {id:#x}: {why}")]
    Capability {
        /// The capability's number.
        id: u16,
        /// Why it was refused.
        why: &'static str,
    },
}

/// The layout of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderType {
    /// Type 0: a function.
    Function,
    /// Type 1: a PCI-to-PCI bridge.
    Bridge,
}

impl HeaderType {
    /// How many BARs there are.
    pub const fn bars(self) -> usize {
        match self {
            Self::Function => 6,
            Self::Bridge => 2,
        }
    }
}

/// A function's configuration space.
///
/// Each bit is read-only, writable, or cleared by writing a one; each register has a reset value.
/// The standard header is made by [`ConfigSpace::new`] or [`ConfigSpace::bridge`], BARs and
/// capabilities are added, the function's own registers (0x40 and up) are declared by
/// [`ConfigSpace::define`].
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    reset: Vec<u8>,
    writable: Vec<u8>,
    clearable: Vec<u8>,
    /// Bits that never change: identities, BAR types, capability headers.
    fixed: Vec<u8>,
    /// Bytes that are part of some register.
    pub(crate) used: Vec<bool>,
    header: HeaderType,
    pub(crate) bars: [Option<Bar>; 6],
    pub(crate) rom: Option<u32>,
    pub(crate) fixed_ranges: BTreeMap<usize, AddressRange>,
    pub(crate) capabilities: Capabilities,
    interrupts: Interrupts,
}

/// Saved state of a [`ConfigSpace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    bytes: Vec<u8>,
    /// Sizes of the BARs and the ROM, zero for none: to tell functions apart.
    sizes: [u64; 7],
    fixed_ranges: Vec<(usize, AddressRange)>,
    interrupts: InterruptsState,
}

impl ConfigSpace {
    /// A conventional function (type 0, 256 bytes) without BARs.
    pub fn new(identity: Identity) -> Self {
        Self::with_size(identity, HeaderType::Function, CONVENTIONAL_SIZE)
    }

    /// A PCI Express function (type 0, 4,096 bytes). It needs a PCI Express capability, see
    /// [`ConfigSpace::add_express`].
    pub fn express(identity: Identity) -> Self {
        Self::with_size(identity, HeaderType::Function, EXPRESS_SIZE)
    }

    /// A PCI-to-PCI bridge (type 1, 256 bytes) that forwards 32-bit I/O, and 64-bit prefetchable
    /// memory.
    pub fn bridge(identity: Identity) -> Self {
        Self::with_size(identity, HeaderType::Bridge, CONVENTIONAL_SIZE)
    }

    /// A bridge with 4,096 bytes: a PCI Express port.
    pub fn express_bridge(identity: Identity) -> Self {
        Self::with_size(identity, HeaderType::Bridge, EXPRESS_SIZE)
    }

    fn with_size(identity: Identity, header: HeaderType, size: usize) -> Self {
        let mut config = Self {
            bytes: vec![0; size],
            reset: vec![0; size],
            writable: vec![0; size],
            clearable: vec![0; size],
            fixed: vec![0; size],
            used: vec![false; size],
            header,
            bars: [None; 6],
            rom: None,
            fixed_ranges: BTreeMap::new(),
            capabilities: Capabilities::default(),
            interrupts: Interrupts::new(),
        };
        config.used.iter_mut().take(0x40).for_each(|used| *used = true);
        config.define_fixed(VENDOR_ID, Word, identity.vendor.into(), 0);
        config.define_fixed(DEVICE_ID, Word, identity.device.into(), 0);
        let class = identity.class;
        let class = [identity.revision, class.interface, class.sub, class.base];
        config.define_fixed(REVISION, Dword, u32::from_le_bytes(class), 0);
        config.define_fixed(HEADER_TYPE, Byte, u32::from(header == HeaderType::Bridge), 0);
        let command = Command::IO
            | Command::MEMORY
            | Command::BUS_MASTER
            | Command::PARITY
            | Command::SERR
            | Command::INTX_DISABLE;
        config.define_command(Command::empty(), command);
        config.define_status(Status::empty());
        config.define(CACHE_LINE_SIZE, Byte, 0, 0xff);
        config.define(LATENCY_TIMER, Byte, 0, 0xff);
        config.define(INTERRUPT_LINE, Byte, 0, 0xff);
        match header {
            HeaderType::Function => {
                config.define_fixed(SUBSYSTEM_VENDOR_ID, Word, identity.subsystem.0.into(), 0);
                config.define_fixed(SUBSYSTEM_ID, Word, identity.subsystem.1.into(), 0);
            }
            HeaderType::Bridge => config.define_bridge_header(),
        }
        config
    }

    /// The bridge's part of a type 1 header (PCI-to-PCI Bridge 1.2 §3.2.5).
    fn define_bridge_header(&mut self) {
        self.define(PRIMARY_BUS, Byte, 0, 0xff);
        self.define(SECONDARY_BUS, Byte, 0, 0xff);
        self.define(SUBORDINATE_BUS, Byte, 0, 0xff);
        self.define(SUBORDINATE_BUS + 1, Byte, 0, 0xff);
        // The low bits say that I/O addresses have 32 bits and prefetchable memory 64.
        self.define_fixed(IO_BASE, Word, 0x0101, 0xf0f0);
        self.define_fixed(MEMORY_BASE, Dword, 0, 0xfff0_fff0);
        self.define_fixed(PREFETCHABLE_BASE, Dword, 0x0001_0001, 0xfff0_fff0);
        self.define(PREFETCHABLE_BASE_UPPER, Dword, 0, 0xffff_ffff);
        self.define(PREFETCHABLE_LIMIT_UPPER, Dword, 0, 0xffff_ffff);
        self.define(IO_BASE_UPPER, Dword, 0, 0xffff_ffff);
        self.define_clearable(SECONDARY_STATUS, Word, Status::ERRORS.bits().into());
        // Parity response, SERR, ISA, VGA, VGA 16-bit decode, master abort mode, bus reset.
        self.define(BRIDGE_CONTROL, Word, 0, 0x007f);
    }

    /// Length in bytes: 256 or 4,096.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: there is always a header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The layout of the header.
    pub fn header_type(&self) -> HeaderType {
        self.header
    }

    /// Declares a register of the function's own: its reset value, and the bits that a guest can
    /// write. The others are read-only to the guest; [`ConfigSpace::set`] changes them.
    pub fn define(&mut self, offset: u16, size: AccessSize, reset: u32, writable: u32) {
        let (reset, writable) = (reset.to_le_bytes(), writable.to_le_bytes());
        for (i, (reset, writable)) in reset.into_iter().zip(writable).enumerate().take(size.bytes()) {
            let at = usize::from(offset) + i;
            put(&mut self.bytes, at, reset);
            put(&mut self.reset, at, reset);
            put(&mut self.writable, at, writable);
            put(&mut self.clearable, at, 0);
            put(&mut self.fixed, at, 0);
            if let Some(used) = self.used.get_mut(at) {
                *used = true;
            }
        }
    }

    /// Makes bits of a register cleared by writing ones, and read-only otherwise.
    pub fn define_clearable(&mut self, offset: u16, size: AccessSize, bits: u32) {
        for (i, bits) in bits.to_le_bytes().into_iter().enumerate().take(size.bytes()) {
            let at = usize::from(offset) + i;
            let writable = self.writable.get(at).copied().unwrap_or(0);
            put(&mut self.writable, at, writable & !bits);
            put(&mut self.clearable, at, bits);
            if let Some(used) = self.used.get_mut(at) {
                *used = true;
            }
        }
    }

    /// A register whose read-only bits never change: neither the guest nor a saved state can.
    pub(crate) fn define_fixed(&mut self, offset: u16, size: AccessSize, reset: u32, writable: u32) {
        self.define(offset, size, reset, writable);
        for (i, writable) in writable.to_le_bytes().into_iter().enumerate().take(size.bytes()) {
            put(&mut self.fixed, usize::from(offset) + i, !writable);
        }
    }

    /// Declares the command register anew: its reset value, and which bits a guest can write. Without
    /// this the decode, bus master, parity, SERR and interrupt disable bits are writable and clear.
    pub fn define_command(&mut self, reset: Command, writable: Command) {
        self.define(COMMAND, Word, reset.bits().into(), writable.bits().into());
    }

    /// Declares the cache line size and the latency timer anew: which bits a guest can write. Without this all
    /// of both are writable.
    pub fn define_bus_timing(&mut self, cache_line_size: u8, latency_timer: u8) {
        self.define(CACHE_LINE_SIZE, Byte, 0, cache_line_size.into());
        self.define(LATENCY_TIMER, Byte, 0, latency_timer.into());
    }

    /// Declares the status register's reset value. The interrupt bit and the capabilities bit are
    /// kept apart from it.
    pub fn define_status(&mut self, reset: Status) {
        let capabilities = self.get(STATUS, Word) as u16 & Status::CAPABILITIES.bits();
        let reset = reset.difference(Status::INTERRUPT | Status::CAPABILITIES).bits() | capabilities;
        self.define(STATUS, Word, reset.into(), 0);
        self.define_clearable(STATUS, Word, Status::ERRORS.bits().into());
    }

    /// Gives the function interrupt pin `pin`, which drives `line`.
    pub fn wire_intx(&mut self, pin: IntxPin, line: IrqLine) {
        self.define_fixed(INTERRUPT_PIN, Byte, pin.register().into(), 0);
        self.interrupts.wire(line);
    }

    pub(crate) fn set_sink(&mut self, sink: Arc<dyn MsiSink>) {
        self.interrupts.set_sink(sink);
    }

    /// The function's interrupts: a handle for any thread.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.get(COMMAND, Word) as u16)
    }

    /// Sets bits of the status register, such as a received master abort.
    pub fn raise_status(&mut self, bits: Status) {
        let status = self.get(STATUS, Word) | u32::from(bits.bits());
        self.set(STATUS, Word, status);
    }

    /// The bytes of a register as they are stored, without what a guest's read adds.
    pub fn get(&self, offset: u16, size: AccessSize) -> u32 {
        let at = usize::from(offset);
        let bytes = self.bytes.iter().skip(at).take(size.bytes().min(4));
        bytes.rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// Sets a register as the function itself does: read-only bits too, but for those that never
    /// change, such as identities and the types of BARs.
    pub fn set(&mut self, offset: u16, size: AccessSize, value: u32) {
        for (i, new) in value.to_le_bytes().into_iter().enumerate().take(size.bytes()) {
            let at = usize::from(offset) + i;
            let fixed = self.fixed.get(at).copied().unwrap_or(0xff);
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte = *byte & fixed | new & !fixed;
            }
        }
        self.update_interrupts();
    }

    /// A guest's read of `size` (at most four bytes) at `offset`. What lies beyond the end reads
    /// all-ones.
    pub fn read(&self, offset: u16, size: AccessSize) -> u32 {
        (0..size.bytes().min(4) as u16).rev().fold(0, |value, i| {
            let at = offset.checked_add(i);
            value << 8 | u32::from(at.map_or(0xff, |at| self.read_byte(at)))
        })
    }

    fn read_byte(&self, offset: u16) -> u8 {
        let Some(stored) = self.bytes.get(usize::from(offset)).copied() else { return 0xff };
        if offset == STATUS {
            let request = if self.interrupts.intx() { Status::INTERRUPT.bits() as u8 } else { 0 };
            return stored | request;
        }
        let pending = self.capabilities.msi.and_then(|msi| msi.pending_byte(offset));
        match pending {
            Some(byte) => self.interrupts.msi_pending().to_le_bytes().get(byte).copied().unwrap_or(0),
            None => stored,
        }
    }

    /// A guest's write of the low `size` (at most four bytes) of `value` at `offset`.
    pub fn write(&mut self, offset: u16, size: AccessSize, value: u32) {
        let power = self.power_state();
        for (i, new) in value.to_le_bytes().into_iter().enumerate().take(size.bytes()) {
            let at = usize::from(offset) + i;
            let writable = self.writable.get(at).copied().unwrap_or(0);
            let clear = self.clearable.get(at).copied().unwrap_or(0) & new;
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte = (*byte & !writable | new & writable) & !clear;
            }
        }
        self.check_power_state(power);
        self.update_interrupts();
    }

    fn update_interrupts(&self) {
        let command = self.command();
        self.interrupts.update(
            command.contains(Command::INTX_DISABLE),
            command.contains(Command::BUS_MASTER),
            self.msi_registers(),
            self.msix_control(),
        );
    }

    /// The MSI-X table's and pending bits' part in region `region` of the memory face. A function
    /// with MSI-X asks here first; `None` means that the access is none of MSI-X's.
    pub fn msix_read(&self, region: usize, offset: u64, size: AccessSize) -> Option<u64> {
        self.interrupts.msix_read(region, offset, size)
    }

    /// The writing counterpart of [`ConfigSpace::msix_read`]; false means that the access is none
    /// of MSI-X's.
    pub fn msix_write(&self, region: usize, offset: u64, size: AccessSize, value: u64) -> bool {
        self.interrupts.msix_write(region, offset, size, value)
    }

    /// Every register goes to its reset value, the pin is released, vectors are masked. Fixed
    /// ranges stay: who set them knows what reset means to them.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.reset);
        self.interrupts.reset();
        self.update_interrupts();
    }

    /// Takes the state.
    pub fn save(&self) -> ConfigState {
        let Self {
            bytes,
            reset: _,
            writable: _,
            clearable: _,
            fixed: _,
            used: _,
            header: _,
            bars,
            rom,
            fixed_ranges,
            capabilities: _,
            interrupts,
        } = self;
        ConfigState {
            bytes: bytes.clone(),
            sizes: sizes(bars, *rom),
            fixed_ranges: fixed_ranges.iter().map(|(region, range)| (*region, *range)).collect(),
            interrupts: interrupts.save(),
        }
    }

    /// Puts a state back. The pin is driven again, and messages that are pending go out where the
    /// guest allows them.
    ///
    /// # Errors
    /// When the state is of a function with another identity, other BARs or other capabilities.
    pub fn restore(&mut self, state: ConfigState) -> Result<(), RestoreError> {
        let refuse = |what: String| Err(RestoreError { device: "pci function", what });
        if state.bytes.len() != self.bytes.len() {
            return refuse(format!("{} bytes, not {}", state.bytes.len(), self.bytes.len()));
        }
        if state.sizes != sizes(&self.bars, self.rom) {
            return refuse("other bars".to_owned());
        }
        let pairs = state.bytes.iter().zip(&self.reset).zip(&self.fixed);
        if let Some(at) = pairs.map(|((new, own), fixed)| (new ^ own) & fixed).position(|differ| differ != 0)
        {
            return refuse(format!("register {at:#x} is another function's"));
        }
        let valid = |range: &AddressRange| match range.space {
            crate::Space::Io => AddressRange::io(range.start, range.len).is_some(),
            crate::Space::Memory => AddressRange::memory(range.start, range.len).is_some(),
        };
        if let Some((_, range)) = state.fixed_ranges.iter().find(|(_, range)| !valid(range)) {
            return refuse(format!("range {:#x}+{:#x}", range.start, range.len));
        }
        if !self.interrupts.accepts(&state.interrupts) {
            return refuse("another msi-x table".to_owned());
        }
        self.bytes = state.bytes;
        self.fixed_ranges = state.fixed_ranges.into_iter().collect();
        self.interrupts.restore(state.interrupts);
        self.update_interrupts();
        Ok(())
    }

    /// Links the first capability.
    pub(crate) fn set_capabilities_pointer(&mut self, offset: u8) {
        self.define_fixed(CAPABILITIES, Byte, offset.into(), 0);
        let at = usize::from(STATUS);
        let bit = Status::CAPABILITIES.bits() as u8;
        for bytes in [&mut self.bytes, &mut self.reset, &mut self.fixed] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte |= bit;
            }
        }
    }
}

fn sizes(bars: &[Option<Bar>; 6], rom: Option<u32>) -> [u64; 7] {
    let [a, b, c, d, e, f] = bars.map(|bar| bar.map_or(0, |bar| bar.size));
    [a, b, c, d, e, f, rom.map_or(0, u64::from)]
}

fn put(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}
