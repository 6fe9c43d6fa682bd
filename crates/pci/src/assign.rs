//! Addresses and bus numbers without firmware: what firmware does at start, for a board that enters
//! a kernel directly.

use trapline_device::AccessSize::{Byte, Dword, Word};
use vm_allocator::{AddressAllocator, AllocPolicy};

use crate::bar::{BarKind, bar_offset};
use crate::bridge::{BridgeWindows, BusNumbers};
use crate::function::lock;
use crate::regs::{COMMAND, INTERRUPT_LINE, PRIMARY_BUS, REVISION, SECONDARY_BUS, SUBORDINATE_BUS};
use crate::root::{BusId, PciRoot};
use crate::{ClassCode, Command, DevFn, IntxPin, Space};

/// What a board has to give away: what neither RAM nor other devices use.
#[derive(Clone, Copy, Debug)]
pub struct AddressWindows {
    /// Ports, as first port and length.
    pub io: (u64, u64),
    /// Memory below 4 GiB, as first address and length.
    pub memory: (u64, u64),
    /// Memory above 4 GiB, for 64-bit BARs. Without it, or where it is full, they go below.
    pub memory_high: Option<(u64, u64)>,
}

/// Why addresses cannot be assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// There is not enough room.
    #[error("no room for {size:#x} bytes of {space:?} space for the function at {at}")]
    NoRoom {
        /// Which function wants it.
        at: DevFn,
        /// In which space.
        space: Space,
        /// How much.
        size: u64,
    },
    /// A window is empty or passes the end of its space.
    #[error("the window at {start:#x}+{len:#x} is empty or passes the end of its space")]
    BadWindow {
        /// First address.
        start: u64,
        /// Length.
        len: u64,
    },
    /// There are more than 256 buses.
    #[error("there are too many buses")]
    TooManyBuses,
}

/// What an address is for.
#[derive(Clone, Copy, Debug)]
enum Want {
    Bar(usize),
    Rom,
    /// A window of the bridge there, to the bus behind it.
    Window(BusId),
}

/// One address to assign.
#[derive(Clone, Copy, Debug)]
struct Request {
    at: DevFn,
    want: Want,
    size: u64,
    align: u64,
    /// May go above 4 GiB.
    high: bool,
}

/// Room to assign from, in one space.
struct Room {
    low: AddressAllocator,
    high: Option<AddressAllocator>,
}

impl Room {
    fn take(&mut self, request: &Request) -> Option<u64> {
        let high = self.high.as_mut().filter(|_| request.high);
        let policy = AllocPolicy::FirstMatch;
        let range = high.and_then(|high| high.allocate(request.size, request.align, policy).ok());
        let range = range.or_else(|| self.low.allocate(request.size, request.align, policy).ok());
        range.map(|range| range.start())
    }
}

fn allocator(start: u64, len: u64, top: u64) -> Result<AddressAllocator, AssignError> {
    let bad = AssignError::BadWindow { start, len };
    let last = len.checked_sub(1).and_then(|rest| start.checked_add(rest)).ok_or(bad)?;
    if last > top {
        return Err(bad);
    }
    AddressAllocator::new(start, len).map_err(|_| bad)
}

impl PciRoot {
    /// Numbers the buses, places every BAR and expansion ROM inside `windows`, programs the bridges,
    /// and enables decoding. Large ranges go first, so that alignment wastes nothing.
    ///
    /// Behind a bridge all memory goes through the window below 4 GiB. ROMs are placed but stay
    /// disabled. Bus mastering is left for drivers to enable, but bridges get it: they forward what
    /// their functions master.
    ///
    /// # Errors
    /// When a window is unusable or there is not enough room. Some addresses may have been assigned
    /// then.
    pub fn assign_addresses(&mut self, windows: &AddressWindows) -> Result<(), AssignError> {
        self.number_buses(BusId::ROOT, 0)?;
        let io = allocator(windows.io.0, windows.io.1, 0xffff)?;
        let low = allocator(windows.memory.0, windows.memory.1, u32::MAX.into())?;
        let high = windows.memory_high.map(|(start, len)| allocator(start, len, u64::MAX)).transpose()?;
        self.place(BusId::ROOT, Space::Io, &mut Room { low: io, high: None })?;
        self.place(BusId::ROOT, Space::Memory, &mut Room { low, high })?;
        self.enable_decoding();
        self.refresh();
        Ok(())
    }

    /// Writes the interrupt line registers: `line_of` is asked with the path of a function's device
    /// (see [`IntxRouter::line`](crate::IntxRouter::line)) and its pin.
    pub fn assign_interrupt_lines(&mut self, mut line_of: impl FnMut(&[u8], IntxPin) -> Option<u8>) {
        for (bus, at, function) in self.functions() {
            let mut function = lock(&**function);
            let pin = function.config().get(crate::regs::INTERRUPT_PIN, Byte) as u8;
            let Some(pin) = pin.checked_sub(1).map(IntxPin::from_index) else { continue };
            if let Some(line) = line_of(&self.path(bus, at.device()), pin) {
                function.config_write(INTERRUPT_LINE, Byte, line.into());
            }
        }
    }

    /// Numbers what is behind `bus`, which has number `number`; returns the highest number used.
    fn number_buses(&self, bus: BusId, number: u8) -> Result<u8, AssignError> {
        let mut last = number;
        for at in self.places_on(bus) {
            let Some((slot, behind)) = self.slot(bus, at).and_then(|slot| Some((slot, slot.secondary?)))
            else {
                continue;
            };
            let secondary = last.checked_add(1).ok_or(AssignError::TooManyBuses)?;
            last = self.number_buses(behind, secondary)?;
            let numbers = BusNumbers { primary: number, secondary, subordinate: last };
            let mut bridge = lock(&*slot.function);
            bridge.config_write(PRIMARY_BUS, Byte, numbers.primary.into());
            bridge.config_write(SECONDARY_BUS, Byte, numbers.secondary.into());
            bridge.config_write(SUBORDINATE_BUS, Byte, numbers.subordinate.into());
        }
        Ok(last)
    }

    /// What is wanted on `bus` in `space`, the largest alignment first.
    fn requests(&self, bus: BusId, space: Space) -> Vec<Request> {
        let mut requests = Vec::new();
        for at in self.places_on(bus) {
            let Some(slot) = self.slot(bus, at) else { continue };
            {
                let function = lock(&*slot.function);
                let config = function.config();
                for index in 0..config.header_type().bars() {
                    let Some(bar) = config.bar(index) else { continue };
                    if (space == Space::Io) == (bar.kind == BarKind::Io) {
                        let high = matches!(bar.kind, BarKind::Memory64 { .. });
                        let want = Want::Bar(index);
                        requests.push(Request { at, want, size: bar.size, align: bar.size, high });
                    }
                }
                if let Some(size) = config.rom_size().filter(|_| space == Space::Memory).map(u64::from) {
                    requests.push(Request { at, want: Want::Rom, size, align: size, high: false });
                }
            }
            if let Some(behind) = slot.secondary
                && let Some((size, align)) = self.window(behind, space)
            {
                requests.push(Request { at, want: Want::Window(behind), size, align, high: false });
            }
        }
        requests.sort_by_key(|request| std::cmp::Reverse((request.align, request.size)));
        requests
    }

    /// The size and alignment of a window for everything on `bus`; `None` if nothing is wanted.
    fn window(&self, bus: BusId, space: Space) -> Option<(u64, u64)> {
        let step = window_step(space);
        let requests = self.requests(bus, space);
        let align = requests.first()?.align.max(step);
        // Alignments fall, but a nested window's size need not be a multiple of the next one's.
        let end = requests.iter().try_fold(0_u64, |end, request| {
            end.checked_next_multiple_of(request.align)?.checked_add(request.size)
        });
        Some((end?.checked_next_multiple_of(step)?, align))
    }

    /// Places everything on `bus` in `space`, and what is behind its bridges.
    fn place(&mut self, bus: BusId, space: Space, room: &mut Room) -> Result<(), AssignError> {
        let requests = self.requests(bus, space);
        for at in self.places_on(bus) {
            self.set_window(bus, at, space, None);
        }
        for request in requests {
            let Request { at, want, size, .. } = request;
            let start = room.take(&request).ok_or(AssignError::NoRoom { at, space, size })?;
            match want {
                Want::Bar(index) => self.program(bus, at, index, start),
                Want::Rom => self.program_rom(bus, at, start),
                Want::Window(behind) => {
                    self.set_window(bus, at, space, Some((start, start + (size - 1))));
                    let low = allocator(start, size, u64::MAX)?;
                    self.place(behind, space, &mut Room { low, high: None })?;
                }
            }
        }
        Ok(())
    }

    fn program(&self, bus: BusId, at: DevFn, index: usize, start: u64) {
        let Some(function) = self.function(bus, at) else { return };
        let mut function = lock(&**function);
        let wide = function.config().bar(index).is_some_and(|b| matches!(b.kind, BarKind::Memory64 { .. }));
        function.config_write(bar_offset(index), Dword, start as u32);
        if wide {
            function.config_write(bar_offset(index + 1), Dword, (start >> 32) as u32);
        }
    }

    fn program_rom(&self, bus: BusId, at: DevFn, start: u64) {
        let Some(function) = self.function(bus, at) else { return };
        let mut function = lock(&**function);
        let offset = function.config().rom_offset();
        function.config_write(offset, Dword, start as u32);
    }

    /// Sets the window in `space` of the bridge at a place, if there is one.
    fn set_window(&self, bus: BusId, at: DevFn, space: Space, window: Option<(u64, u64)>) {
        let Some(slot) = self.slot(bus, at).filter(|slot| slot.secondary.is_some()) else { return };
        let mut bridge = lock(&*slot.function);
        let old = bridge.config().bridge_windows();
        bridge.config_mut().set_bridge_windows(match space {
            Space::Io => BridgeWindows { io: window, ..old },
            Space::Memory => BridgeWindows { memory: window, prefetchable: None, ..old },
        });
    }

    fn enable_decoding(&self) {
        for (bus, at, function) in self.functions() {
            let mut function = lock(&**function);
            let mut enable = Command::empty();
            for bar in (0..6).filter_map(|index| function.config().bar(index)) {
                enable |= if bar.kind == BarKind::Io { Command::IO } else { Command::MEMORY };
            }
            if function.config().rom_size().is_some() {
                enable |= Command::MEMORY;
            }
            // What a VGA decodes is mostly no BARs.
            if function.config().get(REVISION, Dword) >> 8 == VGA {
                enable |= Command::IO | Command::MEMORY;
            }
            if self.secondary(bus, at).is_some() {
                enable |= Command::IO | Command::MEMORY | Command::BUS_MASTER;
            }
            let command = function.config().command() | enable;
            function.config_write(COMMAND, Word, command.bits().into());
        }
    }
}

/// The class of a VGA, as the class register has it.
const VGA: u32 = {
    let ClassCode { base, sub, interface } = ClassCode::VGA;
    u32::from_be_bytes([0, base, sub, interface])
};

fn window_step(space: Space) -> u64 {
    match space {
        Space::Io => 0x1000,
        Space::Memory => 0x10_0000,
    }
}
