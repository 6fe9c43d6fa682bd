//! Capabilities: power management, MSI, MSI-X, PCI Express, vendor-specific (PCI Local Bus 3.0 §6.7
//! and §6.8, PCI Bus Power Management 1.2, PCI Express Base 3.0 §7.8).

use std::sync::Arc;

use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_device::MsiSink;

use crate::bar::BarKind;
use crate::config::{ConfigError, ConfigSpace, EXPRESS_SIZE};
use crate::interrupts::MsiRegisters;
use crate::msix::MsixLayout;

/// Numbers of capabilities.
pub mod id {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// What an MSI capability offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiConfig {
    /// Vectors asked for: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// Addresses of 64 bits.
    pub wide: bool,
    /// A mask and a pending bit for each vector.
    pub maskable: bool,
}

/// What kind of PCI Express function it is (PCI Express Base 3.0 §7.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpressKind {
    /// An endpoint below a port.
    Endpoint,
    /// A root port: a bridge.
    RootPort,
    /// An endpoint on the root complex's own bus.
    RootComplexEndpoint,
}

/// Where the MSI capability is and what it offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MsiAt {
    offset: u16,
    config: MsiConfig,
}

impl MsiAt {
    fn data(&self) -> u16 {
        self.offset + if self.config.wide { 12 } else { 8 }
    }

    fn mask(&self) -> Option<u16> {
        self.config.maskable.then_some(self.data() + 4)
    }

    /// Which byte of the pending bits lies at `offset`.
    pub(crate) fn pending_byte(&self, offset: u16) -> Option<usize> {
        let byte = offset.checked_sub(self.mask()? + 4)?;
        (byte < 4).then_some(byte.into())
    }
}

/// The capabilities that the configuration space itself gives a meaning to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Capabilities {
    last: Option<u16>,
    last_extended: Option<u16>,
    pub(crate) msi: Option<MsiAt>,
    msix: Option<u16>,
    power: Option<u16>,
}

const D1: u8 = 1;
const D2: u8 = 2;
const D3_HOT: u8 = 3;

impl ConfigSpace {
    /// Adds a capability: `body` is what follows its number and link, `writable` says which of its
    /// bits a guest can write (a shorter mask means zeros). Returns the offset of the capability.
    ///
    /// # Errors
    /// When there is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, ConfigError> {
        let offset = self.free_room(body.len() + 2, 0x40..0x100);
        let offset = offset.ok_or(ConfigError::Capability { id: id.into(), why: "no room" })?;
        self.define_fixed(offset, Byte, id.into(), 0);
        self.define_fixed(offset + 1, Byte, 0, 0);
        self.define_body(offset + 2, body, writable);
        match self.capabilities.last {
            None => self.set_capabilities_pointer(offset as u8),
            Some(last) => self.define_fixed(last + 1, Byte, offset.into(), 0),
        }
        self.capabilities.last = Some(offset);
        Ok(offset)
    }

    /// Adds an extended capability, at 0x100 and up: `body` is what follows its header doubleword.
    /// Returns the offset of the capability.
    ///
    /// # Errors
    /// When there is no room left, as in a configuration space of 256 bytes.
    pub fn add_extended_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        // The list starts at 0x100, always.
        let offset = self.free_room(body.len() + 4, 0x100..EXPRESS_SIZE);
        let offset = offset.ok_or(ConfigError::Capability { id, why: "no room" })?;
        if self.capabilities.last_extended.is_none() && offset != 0x100 {
            return Err(ConfigError::Capability { id, why: "the list must start at 0x100" });
        }
        self.define_fixed(offset, Dword, u32::from(id) | u32::from(version & 0xf) << 16, 0);
        self.define_body(offset + 4, body, writable);
        if let Some(last) = self.capabilities.last_extended {
            let header = self.get(last, Dword) & 0xf_ffff | u32::from(offset) << 20;
            self.define_fixed(last, Dword, header, 0);
        }
        self.capabilities.last_extended = Some(offset);
        Ok(offset)
    }

    fn define_body(&mut self, offset: u16, body: &[u8], writable: &[u8]) {
        let writable = writable.iter().copied().chain(std::iter::repeat(0));
        for (at, (byte, writable)) in (offset..).zip(body.iter().zip(writable)) {
            self.define_fixed(at, Byte, (*byte).into(), writable.into());
        }
    }

    /// Room for `len` bytes that no register uses, on a doubleword.
    fn free_room(&self, len: usize, within: std::ops::Range<usize>) -> Option<u16> {
        let end = within.end.min(self.len());
        let start = (within.start..end)
            .step_by(4)
            .find(|start| start + len <= end && self.used.iter().skip(*start).take(len).all(|used| !used))?;
        u16::try_from(start).ok()
    }

    /// Adds a vendor-specific capability: its length byte is added here.
    ///
    /// # Errors
    /// When there is no room left.
    pub fn add_vendor_capability(&mut self, body: &[u8], writable: &[u8]) -> Result<u16, ConfigError> {
        let mut whole = vec![u8::try_from(body.len() + 3).unwrap_or(u8::MAX)];
        whole.extend_from_slice(body);
        let mut mask = vec![0];
        mask.extend_from_slice(writable);
        self.add_capability(id::VENDOR, &whole, &mask)
    }

    /// Adds power management, version 1.2: states D0 and D3hot, no power management events, no reset
    /// on the way back to D0. In D3hot the function answers to configuration accesses only.
    ///
    /// # Errors
    /// When there is one, or no room left.
    pub fn add_power_management(&mut self) -> Result<u16, ConfigError> {
        let why = "there is one";
        if self.capabilities.power.is_some() {
            return Err(ConfigError::Capability { id: id::POWER_MANAGEMENT.into(), why });
        }
        let body = [3, 0, 1 << 3, 0, 0, 0];
        let offset = self.add_capability(id::POWER_MANAGEMENT, &body, &[0, 0, 0b11])?;
        self.capabilities.power = Some(offset);
        Ok(offset)
    }

    pub(crate) fn power_state(&self) -> u8 {
        self.capabilities.power.map_or(0, |offset| self.get(offset + 4, Byte) as u8 & 0b11)
    }

    pub(crate) fn in_d3(&self) -> bool {
        self.power_state() == D3_HOT
    }

    /// Undoes a write of a power state that there is not.
    pub(crate) fn check_power_state(&mut self, before: u8) {
        if let (Some(offset), D1 | D2) = (self.capabilities.power, self.power_state()) {
            let register = self.get(offset + 4, Byte) & !0b11 | u32::from(before);
            self.set(offset + 4, Byte, register);
        }
    }

    /// Adds MSI. Messages go to `sink`: [`Interrupts::signal`](crate::Interrupts::signal).
    ///
    /// # Errors
    /// When there is one, the number of vectors is none of the allowed, or there is no room left.
    pub fn add_msi(&mut self, config: MsiConfig, sink: Arc<dyn MsiSink>) -> Result<u16, ConfigError> {
        let refuse = |why| Err(ConfigError::Capability { id: id::MSI.into(), why });
        if self.capabilities.msi.is_some() {
            return refuse("there is one");
        }
        if !config.vectors.is_power_of_two() || config.vectors > 32 {
            return refuse("vectors are 1, 2, 4, 8, 16 or 32");
        }
        let multiple = u32::from(config.vectors.trailing_zeros() as u8) << 1;
        let control = multiple | u32::from(config.wide) << 7 | u32::from(config.maskable) << 8;
        let len = 8 + 4 * usize::from(config.wide) + if config.maskable { 10 } else { 0 };
        let offset = self.add_capability(id::MSI, &vec![0; len], &[])?;
        let at = MsiAt { offset, config };
        self.define_fixed(offset + 2, Word, control, 0x71);
        self.define_fixed(offset + 4, Dword, 0, !0b11);
        if config.wide {
            self.define_fixed(offset + 8, Dword, 0, u32::MAX);
        }
        self.define_fixed(at.data(), Word, 0, 0xffff);
        if let Some(mask) = at.mask() {
            let vectors = u32::MAX >> (32 - u32::from(config.vectors));
            self.define_fixed(mask, Dword, 0, vectors);
        }
        self.capabilities.msi = Some(at);
        self.set_sink(sink);
        Ok(offset)
    }

    /// What the guest wrote to the MSI capability.
    pub(crate) fn msi_registers(&self) -> MsiRegisters {
        let Some(at) = self.capabilities.msi else { return MsiRegisters::default() };
        let control = self.get(at.offset + 2, Word);
        let upper = if at.config.wide { self.get(at.offset + 8, Dword) } else { 0 };
        // A guest that allows more than was asked for gets what was asked for.
        let allowed = 1_u8 << (control >> 4 & 7).min(5);
        MsiRegisters {
            enabled: control & 1 != 0,
            address: u64::from(self.get(at.offset + 4, Dword)) | u64::from(upper) << 32,
            data: self.get(at.data(), Word) as u16,
            vectors: allowed.min(at.config.vectors),
            mask: at.mask().map_or(0, |mask| self.get(mask, Dword)),
        }
    }

    /// Adds MSI-X. Messages go to `sink`: [`Interrupts::signal`](crate::Interrupts::signal). The
    /// function passes accesses to its BARs through [`ConfigSpace::msix_read`] and
    /// [`ConfigSpace::msix_write`].
    ///
    /// # Errors
    /// When there is one, the table or the pending bits do not lie inside memory BARs that were
    /// added before or overlap each other, or there is no room left.
    pub fn add_msix(&mut self, layout: MsixLayout, sink: Arc<dyn MsiSink>) -> Result<u16, ConfigError> {
        let refuse = |why| Err(ConfigError::Capability { id: id::MSIX.into(), why });
        if self.capabilities.msix.is_some() {
            return refuse("there is one");
        }
        if !(1..=2048).contains(&layout.vectors) {
            return refuse("vectors are 1 to 2048");
        }
        let MsixLayout { vectors, table_bar, table_offset, pba_bar, pba_offset } = layout;
        let (table_end, pba_end) =
            (u64::from(table_offset) + layout.table_len(), u64::from(pba_offset) + layout.pba_len());
        let inside = |bar: u8, offset: u32, end: u64| {
            let bar = self.bar(bar.into()).filter(|bar| bar.kind != BarKind::Io);
            offset.is_multiple_of(8) && bar.is_some_and(|bar| end <= bar.size)
        };
        if !inside(table_bar, table_offset, table_end) || !inside(pba_bar, pba_offset, pba_end) {
            return refuse("the table or the pending bits are not inside a memory bar");
        }
        let apart = table_end <= pba_offset.into() || pba_end <= table_offset.into();
        if table_bar == pba_bar && !apart {
            return refuse("the table and the pending bits overlap");
        }
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table_offset | u32::from(table_bar)).to_le_bytes());
        body.extend((pba_offset | u32::from(pba_bar)).to_le_bytes());
        let offset = self.add_capability(id::MSIX, &body, &[0, 0xc0])?;
        self.capabilities.msix = Some(offset);
        self.interrupts().set_msix(layout);
        self.set_sink(sink);
        Ok(offset)
    }

    /// MSI-X enable and function mask.
    pub(crate) fn msix_control(&self) -> (bool, bool) {
        let control = self.capabilities.msix.map_or(0, |offset| self.get(offset + 2, Word));
        (control & 1 << 15 != 0, control & 1 << 14 != 0)
    }

    /// Adds the PCI Express capability, version 2, of a 2.5 GT/s link of one lane that is up; a
    /// function on the root complex's own bus has no link. Slots (native hot plug), function-level
    /// reset and error reporting are not offered.
    ///
    /// # Errors
    /// When there is no room left.
    pub fn add_express(&mut self, kind: ExpressKind) -> Result<u16, ConfigError> {
        let (number, link) = match kind {
            ExpressKind::Endpoint => (0x0, true),
            ExpressKind::RootPort => (0x4, true),
            ExpressKind::RootComplexEndpoint => (0x9, false),
        };
        let mut body = [0_u8; 58];
        let mut writable = [0_u8; 58];
        let mut set = |at: usize, value: u32, mask: u32| {
            let both = body.iter_mut().zip(&mut writable).skip(at - 2);
            for ((body, writable), (value, mask)) in
                both.zip(value.to_le_bytes().into_iter().zip(mask.to_le_bytes()))
            {
                *body = value;
                *writable = mask;
            }
        };
        set(0x02, 2 | number << 4, 0);
        // Device: role-based error reporting; relaxed ordering and no snoop are on at reset.
        set(0x04, 1 << 15, 0);
        set(0x08, 1 << 4 | 1 << 11, 0x7eff);
        if link {
            // Speed 1, width 1; the status says the same.
            set(0x0c, 0x11, 0);
            set(0x10, 0x11 << 16, 0x03fb);
            set(0x30, 1, 0x000f);
        }
        self.add_capability(id::EXPRESS, &body, &writable)
    }
}
