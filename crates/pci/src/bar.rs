//! Base address registers (PCI Local Bus 3.0 §6.2.5).

use trapline_device::AccessSize::Dword;

use crate::config::{ConfigError, ConfigSpace, HeaderType};
use crate::regs::{BAR0, Command, ROM, ROM_TYPE1};
use crate::{AddressRange, Claim};

/// The region of the expansion ROM in a function's memory face.
pub const ROM_REGION: usize = 6;
/// The first region that is neither a BAR nor the expansion ROM: the function's own to use, see
/// [`ConfigSpace::set_fixed_range`].
pub const FIRST_OWN_REGION: usize = 8;

/// What a BAR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere. Takes the next BAR's register too.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The read-only low bits of the register.
    const fn flags(self) -> u32 {
        match self {
            Self::Io => 0b0001,
            Self::Memory32 { prefetchable } => (prefetchable as u32) << 3,
            Self::Memory64 { prefetchable } => 0b0100 | (prefetchable as u32) << 3,
        }
    }

    /// The smallest and the largest size.
    const fn sizes(self) -> (u64, u64) {
        match self {
            Self::Io => (4, 0x1_0000),
            Self::Memory32 { .. } => (16, 1 << 31),
            Self::Memory64 { .. } => (16, 1 << 62),
        }
    }
}

/// A BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// What it asks for.
    pub kind: BarKind,
    /// How much of it: a power of two.
    pub size: u64,
}

/// The offset of BAR `index`'s register.
pub(crate) const fn bar_offset(index: usize) -> u16 {
    BAR0 + 4 * index as u16
}

impl ConfigSpace {
    /// Adds BAR `index`: `size` bytes of `kind`. A guest that writes all-ones to it reads the size
    /// back; where it is placed is the guest's, or
    /// [`PciRoot::assign_addresses`](crate::PciRoot::assign_addresses)', business.
    ///
    /// # Errors
    /// When there is no such BAR in this header, it or its upper half is taken, or the size is not
    /// a power of two within what the specification allows.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) -> Result<(), ConfigError> {
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let count = self.header_type().bars();
        let last = index + usize::from(wide);
        let taken = |bars: &[Option<Bar>; 6], index: usize| {
            let below = index.checked_sub(1).and_then(|below| bars.get(below).copied().flatten());
            let upper = matches!(below, Some(Bar { kind: BarKind::Memory64 { .. }, .. }));
            upper || bars.get(index).is_none_or(Option::is_some)
        };
        if index >= count || last >= count || (index..=last).any(|i| taken(&self.bars, i)) {
            return Err(ConfigError::BarTaken { index });
        }
        let (smallest, largest) = kind.sizes();
        if !size.is_power_of_two() || size < smallest || size > largest {
            return Err(ConfigError::BarSize { index, size });
        }
        let mask = !(size - 1);
        self.define_fixed(bar_offset(index), Dword, kind.flags(), mask as u32);
        if wide {
            self.define_fixed(bar_offset(last), Dword, 0, (mask >> 32) as u32);
        }
        if let Some(bar) = self.bars.get_mut(index) {
            *bar = Some(Bar { kind, size });
        }
        Ok(())
    }

    /// Adds an expansion ROM of `size` bytes: region [`ROM_REGION`] of the memory face. It answers
    /// while its enable bit and the command register's memory bit are set.
    ///
    /// # Errors
    /// When there is one, or the size is not a power of two from 2 KiB to 16 MiB.
    pub fn add_rom(&mut self, size: u32) -> Result<(), ConfigError> {
        if self.rom.is_some() {
            return Err(ConfigError::BarTaken { index: ROM_REGION });
        }
        if !size.is_power_of_two() || !(0x800..=0x100_0000).contains(&size) {
            return Err(ConfigError::BarSize { index: ROM_REGION, size: size.into() });
        }
        self.define_fixed(self.rom_offset(), Dword, 0, !(size - 1) | 1);
        self.rom = Some(size);
        Ok(())
    }

    /// BAR `index`, if the function has it.
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// The size of the expansion ROM, if the function has one.
    pub fn rom_size(&self) -> Option<u32> {
        self.rom
    }

    pub(crate) fn rom_offset(&self) -> u16 {
        match self.header_type() {
            HeaderType::Function => ROM,
            HeaderType::Bridge => ROM_TYPE1,
        }
    }

    /// The range that BAR `index` is programmed to, whether or not the function answers there now.
    ///
    /// `None` for a BAR that cannot be placed: at address zero, where it is before firmware has set
    /// it, at the all-ones address that a guest writes to learn its size, or beyond port 0xffff.
    pub fn bar_range(&self, index: usize) -> Option<AddressRange> {
        let Bar { kind, size } = self.bar(index)?;
        let low = u64::from(self.get(bar_offset(index), Dword));
        let (address, top) = match kind {
            BarKind::Io => (low, u64::from(u32::MAX)),
            BarKind::Memory32 { .. } => (low, u64::from(u32::MAX)),
            BarKind::Memory64 { .. } => {
                (low | u64::from(self.get(bar_offset(index + 1), Dword)) << 32, u64::MAX)
            }
        };
        let address = address & !(size - 1);
        if address == 0 || address == top & !(size - 1) {
            return None;
        }
        match kind {
            BarKind::Io => AddressRange::io(address, size),
            _ => AddressRange::memory(address, size),
        }
    }

    fn rom_range(&self) -> Option<AddressRange> {
        let size = u64::from(self.rom?);
        let register = u64::from(self.get(self.rom_offset(), Dword));
        let address = register & !(size - 1);
        let placed = address != 0 && address != u64::from(u32::MAX) & !(size - 1);
        AddressRange::memory(address, size).filter(|_| register & 1 != 0 && placed)
    }

    /// The ranges that the function answers to now: its BARs and ROM as far as the command register
    /// enables them, and its fixed ranges. In power state D3hot none but the fixed ranges.
    pub fn claims(&self) -> Vec<Claim> {
        let command = match self.in_d3() {
            true => Command::empty(),
            false => self.command(),
        };
        let mut claims = Vec::new();
        for (region, bar) in self.bars.iter().enumerate() {
            let enable = match bar {
                Some(Bar { kind: BarKind::Io, .. }) => Command::IO,
                Some(_) => Command::MEMORY,
                None => continue,
            };
            let range = self.bar_range(region).filter(|_| command.contains(enable));
            claims.extend(range.map(|range| Claim { region, range }));
        }
        let rom = self.rom_range().filter(|_| command.contains(Command::MEMORY));
        claims.extend(rom.map(|range| Claim { region: ROM_REGION, range }));
        claims
            .extend(self.fixed_ranges.iter().map(|(region, range)| Claim { region: *region, range: *range }));
        claims
    }

    /// Claims `range` for region `region`, or no longer: for what is not a BAR, such as the
    /// compatibility ports of an IDE function or the power management block of a PIIX4. The function
    /// decides under which of its registers the range is decoded, and calls this again from its
    /// [`config_write`](crate::PciFunction::config_write) hook and its reset.
    ///
    /// Regions below 6 are for functions whose BARs stand for fixed ranges in one of their modes.
    pub fn set_fixed_range(&mut self, region: usize, range: Option<AddressRange>) {
        match range {
            Some(range) => self.fixed_ranges.insert(region, range),
            None => self.fixed_ranges.remove(&region),
        };
    }
}
