//! PCI-to-PCI bridges (PCI-to-PCI Bridge Architecture 1.2).

use serde::{Deserialize, Serialize};
use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::capability::ExpressKind;
use crate::config::{ConfigError, ConfigSpace, ConfigState, HeaderType};
use crate::regs::{
    Command, IO_BASE, IO_BASE_UPPER, MEMORY_BASE, PREFETCHABLE_BASE, PREFETCHABLE_BASE_UPPER,
    PREFETCHABLE_LIMIT_UPPER, PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS,
};
use crate::{AddressRange, Identity, PciFunction, Space};

/// The bus numbers of a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusNumbers {
    /// The bus it is on.
    pub primary: u8,
    /// The bus behind it.
    pub secondary: u8,
    /// The highest number behind it.
    pub subordinate: u8,
}

/// Which windows a bridge forwards, as first and last address; `None` for a closed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeWindows {
    /// Ports, in steps of 4 KiB.
    pub io: Option<(u64, u64)>,
    /// Memory below 4 GiB, in steps of 1 MiB.
    pub memory: Option<(u64, u64)>,
    /// Prefetchable memory, in steps of 1 MiB.
    pub prefetchable: Option<(u64, u64)>,
}

impl ConfigSpace {
    /// A bridge's bus numbers; zero for what is no bridge.
    pub fn bus_numbers(&self) -> BusNumbers {
        if self.header_type() != HeaderType::Bridge {
            return BusNumbers::default();
        }
        let number = |offset| self.get(offset, Byte) as u8;
        BusNumbers {
            primary: number(PRIMARY_BUS),
            secondary: number(SECONDARY_BUS),
            subordinate: number(SUBORDINATE_BUS),
        }
    }

    /// A bridge's windows as its registers say, whether or not the command register opens them.
    pub fn bridge_windows(&self) -> BridgeWindows {
        if self.header_type() != HeaderType::Bridge {
            return BridgeWindows::default();
        }
        let get = |offset, size| u64::from(self.get(offset, size));
        let window = |base: u64, limit: u64, step: u64| (base <= limit).then_some((base, limit | (step - 1)));
        let io = |low: u16, high: u16| get(low, Byte) >> 4 << 12 | get(high, Word) << 16;
        let memory = |low: u16| get(low, Word) >> 4 << 20;
        let wide = |low: u16, high: u16| memory(low) | get(high, Dword) << 32;
        BridgeWindows {
            io: window(io(IO_BASE, IO_BASE_UPPER), io(IO_BASE + 1, IO_BASE_UPPER + 2), 0x1000),
            memory: window(memory(MEMORY_BASE), memory(MEMORY_BASE + 2), 0x10_0000),
            prefetchable: window(
                wide(PREFETCHABLE_BASE, PREFETCHABLE_BASE_UPPER),
                wide(PREFETCHABLE_BASE + 2, PREFETCHABLE_LIMIT_UPPER),
                0x10_0000,
            ),
        }
    }

    /// Sets a bridge's windows; `None` closes one. Bits that a window has no room for are dropped.
    pub fn set_bridge_windows(&mut self, windows: BridgeWindows) {
        // A base above its limit is a closed window.
        let or_closed = |window: Option<(u64, u64)>| window.unwrap_or((u64::from(u32::MAX), 0));
        let (base, limit) = or_closed(windows.io);
        self.set(IO_BASE, Byte, (base >> 8) as u32 & 0xf0);
        self.set(IO_BASE + 1, Byte, (limit >> 8) as u32 & 0xf0);
        self.set(IO_BASE_UPPER, Word, (base >> 16) as u32);
        self.set(IO_BASE_UPPER + 2, Word, (limit >> 16) as u32);
        let (base, limit) = or_closed(windows.memory);
        self.set(MEMORY_BASE, Word, (base >> 16) as u32 & 0xfff0);
        self.set(MEMORY_BASE + 2, Word, (limit >> 16) as u32 & 0xfff0);
        let (base, limit) = or_closed(windows.prefetchable);
        self.set(PREFETCHABLE_BASE, Word, (base >> 16) as u32 & 0xfff0);
        self.set(PREFETCHABLE_BASE + 2, Word, (limit >> 16) as u32 & 0xfff0);
        self.set(PREFETCHABLE_BASE_UPPER, Dword, (base >> 32) as u32);
        self.set(PREFETCHABLE_LIMIT_UPPER, Dword, (limit >> 32) as u32);
    }

    /// Whether a bridge passes accesses to `range` down: it lies in one of the windows, and the
    /// command register opens it.
    pub fn forwards(&self, range: &AddressRange) -> bool {
        let windows = self.bridge_windows();
        let inside = |window: Option<(u64, u64)>| {
            window.is_some_and(|(first, last)| first <= range.start && range.last() <= last)
        };
        !self.in_d3()
            && match range.space {
                Space::Io => self.command().contains(Command::IO) && inside(windows.io),
                Space::Memory => {
                    let open = self.command().contains(Command::MEMORY);
                    open && (inside(windows.memory) || inside(windows.prefetchable))
                }
            }
    }
}

/// A bridge without registers of its own: bus numbers, windows, secondary bus reset. Behind it the
/// interrupt pins are swizzled, see [`IntxRouter::line`](crate::IntxRouter::line).
///
/// Left out: the VGA and ISA modes of bridge control, which are stored but do not forward.
#[derive(Debug)]
pub struct PciBridge {
    name: String,
    config: ConfigSpace,
}

impl PciBridge {
    /// A conventional bridge.
    pub fn new(name: impl Into<String>, identity: Identity) -> Self {
        Self { name: name.into(), config: ConfigSpace::bridge(identity) }
    }

    /// A PCI Express root port. It says nothing of hot plug: a board announces that in its own way,
    /// such as ACPI.
    ///
    /// # Errors
    /// Never in fact: the capabilities fit.
    pub fn root_port(name: impl Into<String>, identity: Identity) -> Result<Self, ConfigError> {
        let mut config = ConfigSpace::express_bridge(identity);
        config.add_express(ExpressKind::RootPort)?;
        config.add_power_management()?;
        Ok(Self { name: name.into(), config })
    }
}

impl PciFunction for PciBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

impl Device for PciBridge {
    fn name(&self) -> &str {
        &self.name
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        self.config.reset();
    }
}

/// Saved state of a [`PciBridge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBridgeState {
    config: ConfigState,
}

impl SaveRestore for PciBridge {
    type State = PciBridgeState;

    fn save(&self) -> PciBridgeState {
        let Self { name: _, config } = self;
        PciBridgeState { config: config.save() }
    }

    fn restore(&mut self, state: PciBridgeState) -> Result<(), RestoreError> {
        self.config.restore(state.config)
    }
}
