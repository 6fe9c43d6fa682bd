//! The PCI function (Intel 82371SB datasheet §2.3 and §2.7).

use std::sync::Arc;

use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_device::{Device, DmaMemory, IrqLine, MmioIo, Poll, PortIo, read_each, write_each};
use trapline_pci::{
    AddressRange, BarKind, ClassCode, Command, ConfigError, ConfigSpace, FIRST_OWN_REGION, Identity,
    PciFunction, Space, Status, VENDOR_INTEL,
};

use crate::channel::Channel;
use crate::drive::Drive;
use crate::io::Io;
use crate::regs::DATA;

/// Region of the bus master registers, BAR 4: 16 ports.
pub const BUS_MASTER: usize = 4;
/// Region of the primary channel's command block, 8 ports from 0x1f0.
pub const PRIMARY_COMMAND: usize = FIRST_OWN_REGION;
/// Region of the primary channel's alternate status and device control, port 0x3f6.
pub const PRIMARY_CONTROL: usize = FIRST_OWN_REGION + 1;
/// Region of the secondary channel's command block, 8 ports from 0x170.
pub const SECONDARY_COMMAND: usize = FIRST_OWN_REGION + 2;
/// Region of the secondary channel's alternate status and device control, port 0x376.
pub const SECONDARY_CONTROL: usize = FIRST_OWN_REGION + 3;

/// Offset of IDETIM, the timing register of the primary channel; the secondary's follows.
pub const IDETIM: u16 = 0x40;
/// IDETIM: the channel's ports are decoded.
pub const IDETIM_DECODE: u16 = 0x8000;

const IDETIM_WRITABLE: u32 = 0xf3ff;

/// Compatibility ports: command block and control block of each channel.
const PORTS: [(u16, u16); 2] = [(0x1f0, 0x3f6), (0x170, 0x376)];

/// What a controller is made of.
pub struct IdeConfig {
    /// Subsystem vendor and subsystem number.
    pub subsystem: (u16, u16),
    /// Guest memory for DMA.
    pub memory: Arc<dyn DmaMemory>,
    /// Interrupt lines of the primary and the secondary channel: ISA interrupts 14 and 15.
    pub irqs: [IrqLine; 2],
    /// Primary and secondary channel, drive 0 and 1 of each.
    pub drives: [[Option<Drive>; 2]; 2],
}

/// The IDE function of the PIIX3, 8086:7010: function 1 of device 1.
pub struct PiixIde {
    pub(crate) config: ConfigSpace,
    pub(crate) channels: [Channel; 2],
    pub(crate) memory: Arc<dyn DmaMemory>,
}

impl PiixIde {
    /// A controller after power-on: it decodes nothing until firmware sets IDETIM's decode enable
    /// bits, BAR 4 and the command register's I/O bit.
    ///
    /// # Errors
    /// Never in fact: BAR 4 is a valid one.
    pub fn new(parts: IdeConfig) -> Result<Self, ConfigError> {
        let IdeConfig { subsystem, memory, irqs, drives } = parts;
        let class = ClassCode::IDE;
        let identity = Identity { vendor: VENDOR_INTEL, device: 0x7010, revision: 0, class, subsystem };
        let mut config = ConfigSpace::new(identity);
        config.define_command(Command::empty(), Command::IO | Command::BUS_MASTER);
        config.define_status(Status::FAST_BACK_TO_BACK | Status::DEVSEL_MEDIUM);
        config.define_bus_timing(0, 0xf0);
        config.add_bar(BUS_MASTER, BarKind::Io, 16)?;
        // IDETIM of both channels: timing is stored, and only the decode enable bits act. SIDETIM.
        config.define(IDETIM, Word, 0, IDETIM_WRITABLE);
        config.define(IDETIM + 2, Word, 0, IDETIM_WRITABLE);
        config.define(IDETIM + 4, Byte, 0, 0xff);
        let [irq0, irq1] = irqs;
        let [drives0, drives1] = drives;
        let channels = [Channel::new(drives0, irq0), Channel::new(drives1, irq1)];
        Ok(Self { config, channels, memory })
    }

    /// The same with IDETIM's decode enable bits set from reset on. Firmware for virtual machines, which have no
    /// chip to set up, relies on it: OVMF does.
    pub fn with_decode_enabled(mut self) -> Self {
        for channel in 0..2 {
            self.config.define(IDETIM + 2 * channel, Word, IDETIM_DECODE.into(), IDETIM_WRITABLE);
        }
        self.follow_config();
        self
    }

    /// Takes what the engines of the drives have done: to be called when an engine's event is
    /// readable.
    pub fn complete(&mut self) {
        for channel in &mut self.channels {
            channel.complete(self.memory.as_ref());
        }
    }

    /// Waits until no operation is under way: to be called before
    /// [`save`](trapline_device::SaveRestore::save).
    pub fn quiesce(&mut self) {
        for channel in &mut self.channels {
            // What one operation leads to may be the next.
            while channel.drives.iter().flatten().any(Drive::in_flight) {
                channel.drives.iter_mut().flatten().for_each(Drive::quiesce);
                channel.pump(self.memory.as_ref());
            }
        }
    }

    /// The drive at `channel` (0: primary) and `position`.
    fn drive_mut(&mut self, channel: usize, position: usize) -> Option<&mut Drive> {
        self.channels.get_mut(channel)?.drives.get_mut(position)?.as_mut()
    }

    /// Puts another disc into a CD-ROM, or takes it out. The guest learns by unit attention and media
    /// event. A command under way fails as for a missing disc.
    ///
    /// False where there is no CD-ROM.
    pub fn change_disc(&mut self, channel: usize, position: usize, disc: Option<Io>) -> bool {
        let changed = self.drive_mut(channel, position).is_some_and(|drive| drive.change_disc(disc));
        self.channels.iter_mut().for_each(Channel::drive_line);
        changed
    }

    /// Whether the guest has locked the tray of a CD-ROM.
    pub fn tray_locked(&mut self, channel: usize, position: usize) -> bool {
        self.drive_mut(channel, position).is_some_and(|drive| drive.tray_locked())
    }

    /// Claims the compatibility ports as IDETIM says, and lets the channels master the bus.
    pub(crate) fn follow_config(&mut self) {
        let command = self.config.command();
        let (io, mastering) = (command.contains(Command::IO), command.contains(Command::BUS_MASTER));
        for (i, ((command, control), channel)) in PORTS.into_iter().zip(&mut self.channels).enumerate() {
            let idetim = self.config.get(IDETIM + 2 * i as u16, Word) as u16;
            let decode = io && idetim & IDETIM_DECODE != 0;
            let range = |start: u16, len| AddressRange { space: Space::Io, start: start.into(), len };
            let region = PRIMARY_COMMAND + 2 * i;
            self.config.set_fixed_range(region, decode.then(|| range(command, 8)));
            self.config.set_fixed_range(region + 1, decode.then(|| range(control, 1)));
            channel.mastering = mastering;
        }
    }
}

impl PciFunction for PiixIde {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.config.write(offset, size, value);
        self.follow_config();
        for channel in &mut self.channels {
            channel.pump(self.memory.as_ref());
        }
    }
}

impl Device for PiixIde {
    fn name(&self) -> &str {
        "piix3-ide"
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

    fn reset(&mut self) {
        self.config.reset();
        self.channels.iter_mut().for_each(Channel::power_on);
        self.follow_config();
    }
}

/// What a region is.
enum Block {
    Command(usize),
    Control(usize),
    BusMaster,
}

fn block(region: usize) -> Option<Block> {
    match region {
        BUS_MASTER => Some(Block::BusMaster),
        PRIMARY_COMMAND => Some(Block::Command(0)),
        PRIMARY_CONTROL => Some(Block::Control(0)),
        SECONDARY_COMMAND => Some(Block::Command(1)),
        SECONDARY_CONTROL => Some(Block::Control(1)),
        _ => None,
    }
}

impl PortIo for PiixIde {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        let memory = self.memory.as_ref();
        match block(region) {
            Some(Block::Command(i)) => {
                self.channels.get_mut(i).map_or(0, |channel| channel.read_port(offset, size, memory))
            }
            Some(Block::Control(i)) => self.channels.get_mut(i).map_or(0, |c| c.alternate_status().into()),
            Some(Block::BusMaster) => (0..size.bytes() as u16).rev().fold(0, |value, i| {
                let at = offset + i;
                let channel = self.channels.get(usize::from(at >> 3));
                value << 8 | channel.map_or(0, |channel| u32::from(channel.bus_master.read(at & 7)))
            }),
            None => size.ones() as u32,
        }
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        let memory = self.memory.as_ref();
        match block(region) {
            Some(Block::Command(i)) => {
                if let Some(channel) = self.channels.get_mut(i) {
                    channel.write_port(offset, size, value, memory);
                }
            }
            Some(Block::Control(i)) => {
                if let Some(channel) = self.channels.get_mut(i) {
                    channel.write_control(value as u8);
                }
            }
            Some(Block::BusMaster) => {
                for (at, byte) in (offset..).zip(value.to_le_bytes()).take(size.bytes()) {
                    if let Some(channel) = self.channels.get_mut(usize::from(at >> 3)) {
                        channel.write_bus_master(at & 7, byte, memory);
                    }
                }
            }
            None => {}
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        match block(region) {
            Some(Block::Command(i)) if offset == DATA && matches!(size, Word | Dword) => {
                if let Some(channel) = self.channels.get_mut(i) {
                    channel.read_data(data, self.memory.as_ref());
                }
            }
            _ => read_each(self, region, offset, size, data),
        }
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        match block(region) {
            Some(Block::Command(i)) if offset == DATA && matches!(size, Word | Dword) => {
                if let Some(channel) = self.channels.get_mut(i) {
                    channel.write_data(data, self.memory.as_ref());
                }
            }
            _ => write_each(self, region, offset, size, data),
        }
    }
}
