//! The function: what it consists of, and where it answers.

use std::sync::Arc;

use trapline_device::{AccessSize, Clock, Device, MmioIo, Poll, PortIo};
use trapline_memory::DeviceMemory;
use trapline_pci::{
    AddressRange, BarKind, ClassCode, Command, ConfigError, ConfigSpace, FIRST_OWN_REGION, Identity,
    PciFunction, ROM_REGION, VENDOR_BOCHS, VENDOR_RED_HAT,
};

use crate::damage::Picture;
use crate::edid::Edid;
use crate::frame::Frame;
use crate::registers::Registers;
use crate::render;
use crate::text::TextScreen;
use crate::timing::{Phase, Timing};
use crate::vbe::Vbe;

/// Region of the framebuffer: BAR 0. A board maps it as [`Vga::memory`].
pub const FRAMEBUFFER: usize = 0;
/// Region of the registers in memory space: BAR 2.
pub const REGISTERS: usize = 2;
/// Region of the video BIOS: the expansion ROM.
pub const ROM: usize = ROM_REGION;
/// Region of the ports that a monochrome adapter has: 12 ports from 0x3b0.
pub const MONO_PORTS: usize = FIRST_OWN_REGION;
/// Region of the VGA's other ports: 32 ports from 0x3c0.
pub const PORTS: usize = FIRST_OWN_REGION + 1;
/// Region of the ports of the VBE extensions: 4 ports from 0x1ce.
pub const VBE_PORTS: usize = FIRST_OWN_REGION + 2;
/// Region of the memory window: 128 KiB from 0xa0000.
pub const WINDOW: usize = FIRST_OWN_REGION + 3;

/// Where the regions are that are no BARs: ports, and the memory window.
const FIXED_PORTS: [(usize, u64, u64); 3] =
    [(MONO_PORTS, 0x3b0, 12), (PORTS, 0x3c0, 32), (VBE_PORTS, 0x1ce, 4)];
const FIXED_MEMORY: (usize, u64, u64) = (WINDOW, 0xa_0000, 0x2_0000);

/// Length of BAR 2.
const REGISTERS_LEN: u64 = 0x1000;
/// The smallest video memory: four planes of 64 KiB.
const SMALLEST: u64 = 256 << 10;
/// The largest.
const LARGEST: u64 = 256 << 20;

/// What a [`Vga`] is made of.
pub struct VgaConfig {
    /// Video memory: a power of two from 256 KiB to 256 MiB; 16 MiB is usual.
    pub memory: DeviceMemory,
    /// The video BIOS, up to 16 MiB. Without one the function has no expansion ROM, and the screen stays
    /// blank until a driver sets a mode.
    pub rom: Option<Vec<u8>>,
    /// The resolution that the monitor asks for, in dots: see [`Vga`].
    pub monitor: (u16, u16),
    /// Time: for retrace and blinking.
    pub clock: Arc<dyn Clock>,
}

/// Why a VGA cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VgaError {
    /// The size of the memory is not possible.
    #[error("video memory of {0:#x} bytes is not a power of two from 256 KiB to 256 MiB")]
    Memory(u64),
    /// The video BIOS is empty or too large.
    #[error("video bios of {0} bytes is empty or larger than 16 MiB")]
    Rom(usize),
    /// The monitor's resolution is not possible.
    #[error("monitor resolution {0}x{1} is not from 640x480 to 4088x4088 in a width of eights")]
    Monitor(u16, u16),
    /// The configuration space does not take its BARs.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A VGA with the Bochs VBE extensions: PCI function 1234:1111.
///
/// See the crate for what it models.
pub struct Vga {
    pub(crate) config: ConfigSpace,
    pub(crate) memory: DeviceMemory,
    pub(crate) rom: Vec<u8>,
    pub(crate) edid: Edid,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) registers: Registers,
    pub(crate) vbe: Vbe,
    pub(crate) latches: u32,
    /// What was taken as damage last.
    pub(crate) seen: Option<Picture>,
}

impl Vga {
    /// A VGA in its power-on state.
    ///
    /// # Errors
    /// See [`VgaError`].
    pub fn new(config: VgaConfig) -> Result<Self, VgaError> {
        let VgaConfig { memory, rom, monitor, clock } = config;
        let size = memory.size();
        if !size.is_power_of_two() || !(SMALLEST..=LARGEST).contains(&size) {
            return Err(VgaError::Memory(size));
        }
        let rom_len = rom.as_ref().map(|rom| rom_len(rom.len())).transpose()?;
        let edid = Edid::new(monitor).ok_or(VgaError::Monitor(monitor.0, monitor.1))?;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR_BOCHS,
            device: 0x1111,
            // From 2 on there are the extended registers in BAR 2.
            revision: 2,
            class: ClassCode::VGA,
            subsystem: (VENDOR_RED_HAT, 0x1100),
        });
        config.add_bar(FRAMEBUFFER, BarKind::Memory32 { prefetchable: true }, size)?;
        config.add_bar(REGISTERS, BarKind::Memory32 { prefetchable: false }, REGISTERS_LEN)?;
        let mut image = rom.unwrap_or_default();
        if let Some(len) = rom_len {
            config.add_rom(len)?;
            image.resize(len as usize, 0);
        }
        let registers = Registers::default();
        // The largest fits in 32 bits.
        let vbe = Vbe::new(size as u32);
        Ok(Self { config, memory, rom: image, edid, clock, registers, vbe, latches: 0, seen: None })
    }

    /// Video memory. A board maps it where region [`FRAMEBUFFER`] is; until it does, accesses there work as
    /// accesses to registers.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// The text on the screen; `None` in a graphics mode. Also if the screen is blank.
    pub fn text(&self) -> Option<TextScreen> {
        let text = !self.registers.graphics.graphics_mode() && !self.vbe.enabled();
        text.then(|| TextScreen::read(&self.memory, &self.registers))
    }

    /// The picture on the screen.
    pub fn render(&self) -> Frame {
        let mut frame = Frame::default();
        self.render_into(&mut frame);
        frame
    }

    /// The picture on the screen, in the memory of an older one.
    pub fn render_into(&self, frame: &mut Frame) {
        render::render(self, frame);
    }

    pub(crate) fn phase(&self) -> Phase {
        Timing::of(&self.registers, self.vbe.enabled()).phase(self.clock.now())
    }

    /// Claims what is no BAR, as far as the command register enables ports and memory.
    pub(crate) fn claim(&mut self) {
        let command = self.config.command();
        let on = |enable| command.contains(enable);
        for (region, start, len) in FIXED_PORTS {
            let range = AddressRange::io(start, len).filter(|_| on(Command::IO));
            self.config.set_fixed_range(region, range);
        }
        let (region, start, len) = FIXED_MEMORY;
        let range = AddressRange::memory(start, len).filter(|_| on(Command::MEMORY));
        self.config.set_fixed_range(region, range);
    }
}

/// The size of the expansion ROM for a BIOS of `len` bytes.
fn rom_len(len: usize) -> Result<u32, VgaError> {
    let room = u32::try_from(len).ok().filter(|len| (1..=16 << 20).contains(len));
    Ok(room.ok_or(VgaError::Rom(len))?.next_power_of_two().max(0x800))
}

impl PciFunction for Vga {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.config.write(offset, size, value);
        self.claim();
    }
}

impl Device for Vga {
    fn name(&self) -> &str {
        "vga"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    /// Registers go to their power-on values; the memory keeps what it holds.
    fn reset(&mut self) {
        self.config.reset();
        self.claim();
        self.registers = Registers::default();
        self.vbe = Vbe::new(self.memory.size() as u32);
        self.latches = 0;
    }
}
