//! How a processor reaches configuration space: ports 0xcf8 and 0xcfc, and ECAM.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use trapline_device::bus::SharedDevice;
use trapline_device::{
    AccessSize, Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

use crate::function::lock;
use crate::{Bdf, DevFn, PciRoot};

/// A topology that configuration mechanisms and the board share.
pub type SharedRoot = Arc<Mutex<PciRoot>>;

/// The first port of the configuration mechanism.
pub const CONFIG_PORTS: u16 = 0xcf8;
/// How many ports it has.
pub const CONFIG_PORTS_LEN: u32 = 8;

const ENABLE: u32 = 1 << 31;
/// Bits 30:24 and 1:0 are reserved and read zero.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
const DATA: u16 = 4;
/// The offset of the reset control register, port 0xcf9.
const RESET_CONTROL: u16 = 1;

/// Configuration mechanism #1 (PCI Local Bus 3.0 §3.2.2.3.2): one region of eight ports, at 0xcf8.
///
/// CONFIG_ADDRESS at 0xcf8 is a register for doubleword accesses only. Anything narrower there is
/// not for the host bridge but goes on to the bus; on a PC, a byte at 0xcf9 reaches the reset
/// control register. A board's port bus gives a device whole regions, so this device plays the bus:
/// it passes the byte at 0xcf9 to the device named by [`ConfigPorts::set_reset_control`], and
/// everything else narrow reads all-ones.
///
/// CONFIG_DATA at 0xcfc takes bytes, words and doublewords at each of its four ports; the port's low
/// bits are the register's. While the enable bit of CONFIG_ADDRESS is clear it is nobody.
pub struct ConfigPorts {
    root: SharedRoot,
    address: u32,
    reset_control: Option<(SharedDevice, usize)>,
}

impl ConfigPorts {
    /// The mechanism for `root`.
    pub fn new(root: SharedRoot) -> Self {
        Self { root, address: 0, reset_control: None }
    }

    /// Passes byte accesses at 0xcf9 to offset 0 of region `region` of `device`. Do not register
    /// that device on the port bus as well.
    pub fn set_reset_control(&mut self, device: SharedDevice, region: usize) {
        self.reset_control = Some((device, region));
    }

    /// The function and the register that CONFIG_DATA stands for, at its port `port`.
    fn target(&self, port: u16) -> Option<(Bdf, u16)> {
        let [register, devfn, bus, _] = self.address.to_le_bytes();
        let function = Bdf { bus, devfn: DevFn::from_byte(devfn) };
        (self.address & ENABLE != 0).then(|| (function, u16::from(register) + (port & 3)))
    }

    /// The reset control register, for an access that is one to it.
    fn reset_access(&self, offset: u16, size: AccessSize) -> Option<&(SharedDevice, usize)> {
        self.reset_control.as_ref().filter(|_| offset == RESET_CONTROL && size == AccessSize::Byte)
    }
}

/// Whether an access reaches from CONFIG_ADDRESS into CONFIG_DATA. A processor carries such a one out
/// in two cycles, of which the first is too narrow for CONFIG_ADDRESS.
fn straddles(offset: u16, size: AccessSize) -> bool {
    offset < DATA && usize::from(offset) + size.bytes() > usize::from(DATA)
}

fn bytes_of(offset: u16, size: AccessSize) -> std::ops::Range<u16> {
    offset..offset.saturating_add(size.bytes() as u16)
}

impl PortIo for ConfigPorts {
    fn read(&mut self, _region: usize, offset: u16, size: AccessSize) -> u32 {
        if straddles(offset, size) {
            return bytes_of(offset, size).rev().fold(0, |value, at| {
                let byte = if at < DATA { 0xff } else { self.read(0, at, AccessSize::Byte) };
                value << 8 | byte & 0xff
            });
        }
        if let Some(port) = offset.checked_sub(DATA) {
            let target = self.target(port);
            return target
                .map_or(u32::MAX, |(function, at)| lock(&self.root).config_read(function, at, size));
        }
        if (offset, size) == (0, AccessSize::Dword) {
            return self.address;
        }
        let Some((device, region)) = self.reset_access(offset, size) else { return u32::MAX };
        lock(device).pio().map_or(u32::MAX, |device| device.read(*region, 0, size))
    }

    fn write(&mut self, _region: usize, offset: u16, size: AccessSize, value: u32) {
        if straddles(offset, size) {
            for (at, byte) in bytes_of(offset, size).zip(value.to_le_bytes()).filter(|(at, _)| *at >= DATA) {
                self.write(0, at, AccessSize::Byte, byte.into());
            }
        } else if let Some(port) = offset.checked_sub(DATA) {
            if let Some((function, at)) = self.target(port) {
                lock(&self.root).config_write(function, at, size, value);
            }
        } else if (offset, size) == (0, AccessSize::Dword) {
            self.address = value & ADDRESS_BITS;
        } else if let Some((device, region)) = self.reset_access(offset, size)
            && let Some(device) = lock(device).pio()
        {
            device.write(*region, 0, size, value);
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl Device for ConfigPorts {
    fn name(&self) -> &str {
        "pci-config"
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

    /// The address register only; a board resets the functions by [`PciRoot::reset`].
    fn reset(&mut self) {
        self.address = 0;
    }
}

/// Saved state of [`ConfigPorts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPortsState {
    address: u32,
}

impl SaveRestore for ConfigPorts {
    type State = ConfigPortsState;

    fn save(&self) -> ConfigPortsState {
        let Self { root: _, address, reset_control: _ } = self;
        ConfigPortsState { address: *address }
    }

    fn restore(&mut self, state: ConfigPortsState) -> Result<(), RestoreError> {
        if state.address & !ADDRESS_BITS != 0 {
            let what = format!("address register is {:#x}", state.address);
            return Err(RestoreError { device: "pci-config", what });
        }
        self.address = state.address;
        Ok(())
    }
}

/// The enhanced configuration access mechanism (PCI Express Base 3.0 §7.2.2): memory, 4 KiB a
/// function, 1 MiB a bus, from bus 0 on.
///
/// An access that crosses a doubleword, which the specification does not define, is carried out in
/// its bytes; one of eight bytes at a multiple of four, in its two doublewords.
pub struct Ecam {
    root: SharedRoot,
}

impl Ecam {
    /// Length of the region for `buses` buses.
    pub const fn len(buses: u16) -> u64 {
        (buses as u64) << 20
    }

    /// The mechanism for `root`.
    pub fn new(root: SharedRoot) -> Self {
        Self { root }
    }
}

fn ecam_target(offset: u64) -> Option<(Bdf, u16)> {
    let bus = u8::try_from(offset >> 20).ok()?;
    let devfn = DevFn::from_byte((offset >> 12) as u8);
    Some((Bdf { bus, devfn }, (offset & 0xfff) as u16))
}

/// The width of the parts in which an access is carried out.
fn part(offset: u64, size: AccessSize) -> AccessSize {
    match size {
        AccessSize::Qword if offset.is_multiple_of(4) => AccessSize::Dword,
        _ if offset % 4 + size.bytes() as u64 <= 4 => size,
        _ => AccessSize::Byte,
    }
}

impl MmioIo for Ecam {
    fn read(&mut self, _region: usize, offset: u64, size: AccessSize) -> u64 {
        let root = lock(&self.root);
        let part = part(offset, size);
        let parts = (0..size.bytes()).step_by(part.bytes());
        parts.rev().fold(0, |value, at| {
            let target = offset.checked_add(at as u64).and_then(ecam_target);
            let read = target.map_or(part.ones() as u32, |(bdf, at)| root.config_read(bdf, at, part));
            value << (8 * part.bytes()) | u64::from(read)
        })
    }

    fn write(&mut self, _region: usize, offset: u64, size: AccessSize, value: u64) {
        let mut root = lock(&self.root);
        let part = part(offset, size);
        for at in (0..size.bytes()).step_by(part.bytes()) {
            if let Some((bdf, register)) = offset.checked_add(at as u64).and_then(ecam_target) {
                root.config_write(bdf, register, part, (value >> (8 * at)) as u32);
            }
        }
    }
}

impl Device for Ecam {
    fn name(&self) -> &str {
        "pci-ecam"
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

    /// There is nothing to reset; a board resets the functions by [`PciRoot::reset`].
    fn reset(&mut self) {}
}
