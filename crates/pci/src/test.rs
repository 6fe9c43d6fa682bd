//! Test doubles: a bus to plug a function into, without a machine.

use std::sync::{Arc, Mutex};

use trapline_device::bus::{MmioBus, PioBus, Swap};
use trapline_device::test::Recorder;
use trapline_device::{AccessSize, IrqLine, Msi, MsiSink};

use crate::function::lock;
use crate::ports::SharedRoot;
use crate::{
    AddressRange, AddressWindows, AssignError, Bdf, BusId, BusLayout, CONFIG_PORTS, CONFIG_PORTS_LEN,
    Command, ConfigPorts, DevFn, Ecam, Effect, Effects, PciFunction, PciRoot, SharedFunction, Space, regs,
};

/// Where the bench has its ECAM region, for all 256 buses.
pub const ECAM: u64 = 0xe000_0000;

/// A bench with one bus: the real topology, configuration mechanisms and buses of the device crate,
/// with a recorder for interrupts and effects.
///
/// [`Bench::plug`] puts a function at 00:01.0. Read and write its registers as a driver does:
/// [`Bench::read`] and [`Bench::write`] for configuration, [`Bench::bar_read`] and
/// [`Bench::bar_write`] behind its BARs.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use trapline_device::AccessSize::Word;
/// use trapline_pci::{ClassCode, Identity, PciBridge, regs, test::Bench};
///
/// let class = ClassCode::PCI_BRIDGE;
/// let id = Identity { vendor: 0x1b36, device: 1, revision: 0, class, subsystem: (0, 0) };
/// let mut bench = Bench::new();
/// bench.plug_bridge(Arc::new(Mutex::new(PciBridge::new("bridge", id))));
/// assert_eq!(bench.read(regs::VENDOR_ID, Word), 0x1b36);
/// ```
pub struct Bench {
    root: SharedRoot,
    layout: BusLayout,
    pio: Swap<PioBus>,
    mmio: Swap<MmioBus>,
    recorder: Arc<Recorder>,
    effects: Vec<Effect>,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// The place of the function that [`Bench::plug`] plugs.
    pub const PLACE: Bdf = Bdf::new(0, 1, 0);

    /// An empty bench.
    ///
    /// # Panics
    /// Never in fact: its own regions do not overlap.
    pub fn new() -> Self {
        let root = Arc::new(Mutex::new(PciRoot::new(Effects::new())));
        let mut layout = BusLayout::default();
        let ports = Arc::new(Mutex::new(ConfigPorts::new(root.clone())));
        let ecam = Arc::new(Mutex::new(Ecam::new(root.clone())));
        let added = layout.pio.register(CONFIG_PORTS, CONFIG_PORTS_LEN, ports, 0, "pci-config");
        let added = added.and(layout.mmio.register(ECAM, Ecam::len(256), ecam, 0, "pci-ecam"));
        assert!(added.is_ok(), "the bench's own regions fit: {added:?}");
        let (pio, mmio) = (Swap::new(layout.build_pio(&[])), Swap::new(layout.build_mmio(&[])));
        Self { root, layout, pio, mmio, recorder: Arc::default(), effects: Vec::new() }
    }

    /// A pin for the function: see [`Bench::intx`].
    pub fn line(&self) -> IrqLine {
        IrqLine::new(self.recorder.clone(), 0)
    }

    /// A sink for the function's messages: see [`Bench::take_messages`].
    pub fn sink(&self) -> Arc<dyn MsiSink> {
        self.recorder.clone()
    }

    /// The level of the pin.
    pub fn intx(&self) -> bool {
        self.recorder.level(0)
    }

    /// Takes the messages sent so far.
    pub fn take_messages(&self) -> Vec<Msi> {
        self.recorder.take_messages()
    }

    /// The topology.
    pub fn root(&self) -> &SharedRoot {
        &self.root
    }

    /// The effects queue, for a host bridge.
    pub fn effects(&self) -> Effects {
        lock(&self.root).effects().clone()
    }

    /// Plugs a function in at [`Bench::PLACE`].
    ///
    /// # Panics
    /// When the place is taken or the function is a bridge.
    pub fn plug(&mut self, function: SharedFunction) {
        let added = lock(&self.root).add(BusId::ROOT, Self::PLACE.devfn, function);
        assert_eq!(added, Ok(()));
        self.settle();
    }

    /// Plugs a bridge in at [`Bench::PLACE`]; returns the bus behind it.
    ///
    /// # Panics
    /// When the place is taken or the function is no bridge.
    pub fn plug_bridge(&mut self, bridge: Arc<Mutex<dyn PciFunction>>) -> BusId {
        let added = lock(&self.root).add_bridge(BusId::ROOT, Self::PLACE.devfn, bridge);
        self.settle();
        match added {
            Ok(bus) => bus,
            Err(error) => panic!("{error}"),
        }
    }

    /// Assigns addresses, as firmware does, enables bus mastering, and forgets the effects so far.
    ///
    /// # Errors
    /// When there is not enough room: 48 KiB of ports, 1 GiB of memory below and 1 TiB above 4 GiB.
    pub fn place(&mut self) -> Result<(), AssignError> {
        let memory_high = Some((0x80_0000_0000, 0x100_0000_0000));
        let windows =
            AddressWindows { io: (0x4000, 0xc000), memory: (0x8000_0000, 0x4000_0000), memory_high };
        lock(&self.root).assign_addresses(&windows)?;
        let command = self.read(regs::COMMAND, AccessSize::Word);
        self.write(regs::COMMAND, AccessSize::Word, command | u32::from(Command::BUS_MASTER.bits()));
        self.settle();
        self.effects.clear();
        Ok(())
    }

    /// Takes what the accesses so far changed outside of PCI.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What a board does after each access.
    pub fn settle(&mut self) {
        let effects = self.effects();
        if effects.pending() {
            let effects = effects.take();
            self.layout.apply(&effects, &self.root, &self.pio, &self.mmio);
            self.effects.extend(effects);
        }
    }

    /// A configuration read of the plugged function through ports 0xcf8 and 0xcfc.
    pub fn read(&mut self, offset: u16, size: AccessSize) -> u32 {
        self.read_of(Self::PLACE, offset, size)
    }

    /// A configuration write to the plugged function through ports 0xcf8 and 0xcfc.
    pub fn write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.write_of(Self::PLACE, offset, size, value);
    }

    /// A configuration read of any function; registers from 0x100 on are read through ECAM.
    pub fn read_of(&mut self, function: Bdf, offset: u16, size: AccessSize) -> u32 {
        if offset < 0x100 {
            let port = self.select(function, offset);
            self.io_read(port, size)
        } else {
            self.memory_read(ecam_address(function, offset), size) as u32
        }
    }

    /// A configuration write to any function; registers from 0x100 on are written through ECAM.
    pub fn write_of(&mut self, function: Bdf, offset: u16, size: AccessSize, value: u32) {
        if offset < 0x100 {
            let port = self.select(function, offset);
            self.io_write(port, size, value);
        } else {
            self.memory_write(ecam_address(function, offset), size, value.into());
        }
    }

    /// Writes CONFIG_ADDRESS; returns the data port.
    fn select(&mut self, function: Bdf, offset: u16) -> u16 {
        let register = u32::from(function.bus) << 16 | u32::from(function.devfn.to_byte()) << 8;
        let address = 1 << 31 | register | u32::from(offset & 0xfc);
        self.io_write(CONFIG_PORTS, AccessSize::Dword, address);
        CONFIG_PORTS + 4 + (offset & 3)
    }

    /// IN.
    pub fn io_read(&mut self, port: u16, size: AccessSize) -> u32 {
        let value = self.pio.load().read(port, size);
        self.settle();
        value
    }

    /// OUT.
    pub fn io_write(&mut self, port: u16, size: AccessSize, value: u32) {
        self.pio.load().write(port, size, value);
        self.settle();
    }

    /// A memory read.
    pub fn memory_read(&mut self, address: u64, size: AccessSize) -> u64 {
        let value = self.mmio.load().read(address, size);
        self.settle();
        value
    }

    /// A memory write.
    pub fn memory_write(&mut self, address: u64, size: AccessSize, value: u64) {
        self.mmio.load().write(address, size, value);
        self.settle();
    }

    /// Where region `region` of the plugged function is now.
    pub fn range(&self, region: usize) -> Option<AddressRange> {
        let root = lock(&self.root);
        let function = root.function(BusId::ROOT, Self::PLACE.devfn)?;
        let claims = lock(&**function).config().claims();
        claims.iter().find(|claim| claim.region == region).map(|claim| claim.range)
    }

    /// Reads at `offset` of BAR `region`, at the address it has now; all-ones if it has none.
    pub fn bar_read(&mut self, region: usize, offset: u64, size: AccessSize) -> u64 {
        match self.range(region) {
            None => size.ones(),
            Some(AddressRange { space: Space::Io, start, .. }) => {
                u64::from(self.io_read(start.wrapping_add(offset) as u16, size))
            }
            Some(AddressRange { start, .. }) => self.memory_read(start.wrapping_add(offset), size),
        }
    }

    /// Writes at `offset` of BAR `region`, at the address it has now; nowhere if it has none.
    pub fn bar_write(&mut self, region: usize, offset: u64, size: AccessSize, value: u64) {
        match self.range(region) {
            None => {}
            Some(AddressRange { space: Space::Io, start, .. }) => {
                self.io_write(start.wrapping_add(offset) as u16, size, value as u32);
            }
            Some(AddressRange { start, .. }) => self.memory_write(start.wrapping_add(offset), size, value),
        }
    }

    /// The offset of the plugged function's first capability with number `id`.
    pub fn capability(&mut self, id: u8) -> Option<u16> {
        let mut at = self.read(regs::CAPABILITIES, AccessSize::Byte);
        // A list longer than there is room for is a circle.
        for _ in 0..48 {
            if at == 0 {
                return None;
            }
            let header = self.read(at as u16, AccessSize::Word);
            if header & 0xff == u32::from(id) {
                return Some(at as u16);
            }
            at = header >> 8;
        }
        None
    }

    /// Carries out a script of arbitrary bytes, a fuzzer's input, as accesses of a guest: 12 bytes
    /// each, of which the first chooses what to do and how wide.
    pub fn run_script(&mut self, script: &[u8]) {
        for step in script.chunks_exact(12) {
            let ([kind, place, a, b, ..], Some(value)) = (step, step.last_chunk::<8>()) else { continue };
            let size = match kind >> 4 & 3 {
                0 => AccessSize::Byte,
                1 => AccessSize::Word,
                _ => AccessSize::Dword,
            };
            let wide = if kind & 0x80 != 0 { AccessSize::Qword } else { size };
            let (value, register) = (u64::from_le_bytes(*value), u16::from_le_bytes([*a, *b]));
            let function = Bdf { bus: place >> 6, devfn: DevFn::from_byte(place & 0x1f) };
            let region = usize::from(*place % 8);
            let ecam = ecam_address(function, register & 0xfff);
            match kind & 0xf {
                0 | 1 => drop(self.read_of(function, register & 0xff, size)),
                2..=5 => self.write_of(function, register & 0xff, size, value as u32),
                6 => drop(self.io_read(CONFIG_PORTS.wrapping_add(register & 7), size)),
                7 => self.io_write(CONFIG_PORTS.wrapping_add(register & 7), size, value as u32),
                8 => drop(self.memory_read(ecam, wide)),
                9 => self.memory_write(ecam, wide, value),
                10 => drop(self.bar_read(region, u64::from(register) & 0xff8, wide)),
                11 => self.bar_write(region, u64::from(register) & 0xff8, wide, value),
                12 => drop(self.memory_read(value, wide)),
                13 => self.io_write(register, size, value as u32),
                14 => lock(&self.root).reset(),
                _ => drop(self.take_messages()),
            }
            self.settle();
        }
        self.effects.clear();
    }
}

/// The address of a register of `function` in the bench's ECAM region.
pub fn ecam_address(function: Bdf, offset: u16) -> u64 {
    let function = u64::from(function.bus) << 20 | u64::from(function.devfn.to_byte()) << 12;
    ECAM | function | u64::from(offset & 0xfff)
}
