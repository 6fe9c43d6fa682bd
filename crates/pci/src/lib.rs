//! PCI for virtual machine monitors: configuration space, BARs, capabilities, MSI and MSI-X,
//! interrupt pins, bridges, and the bridges of an i440FX PC.
//!
//! The crate knows no hypervisor, no guest memory and no event loop. It has two users:
//!
//! - who writes a **device** needs [`ConfigSpace`], [`PciFunction`], [`Interrupts`], and
//!   [`test::Bench`] to try it without a machine;
//! - who writes a **VMM** needs [`PciRoot`], [`ConfigPorts`] or [`Ecam`], [`Effects`] with
//!   [`BusLayout`], and for interrupts [`IntxRouter`].
//!
//! # Concepts
//!
//! A **function** is a [`trapline_device::Device`] that also implements [`PciFunction`]: it has a
//! [`ConfigSpace`]. BAR `n` is region `n` of its port or memory face, so that one device trait serves
//! both ISA and PCI. A function never learns its addresses.
//!
//! The **configuration space** is bytes with masks: each bit is read-only, writable, or cleared by
//! writing a one. Sizing a BAR with all-ones follows from its mask. What has a meaning beyond that is
//! carried out here: decoding and the interrupt bits of command and status, power states, MSI and
//! MSI-X masking with pending bits.
//!
//! The **topology**, [`PciRoot`], holds the functions by bus, device and function number, and takes
//! configuration accesses. It is changed at any time: hot plugging is [`PciRoot::add`] and
//! [`PciRoot::remove`], and telling the guest is the board's part.
//!
//! **Effects** are returned, not performed. When an access moves a BAR, makes RAM of ROM (PAM) or
//! opens system management RAM, that is noted in [`Effects`]. A board asks [`Effects::pending`] after
//! each access, and then rebuilds its buses with [`BusLayout::apply`], or does as it likes with the
//! [`Effect`]s: a VMM with other buses than those of `trapline-device` needs nothing else.
//!
//! **Interrupts** leave by an [`IrqLine`](trapline_device::IrqLine) or an
//! [`MsiSink`](trapline_device::MsiSink) that were handed in. [`Interrupts`] is a handle for any
//! thread; it honours whatever the guest enabled, masked or disabled.
//!
//! Locks are taken in this order: topology, function, its interrupts, router or sink. A board's sink
//! must not call back.
//!
//! # A device
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use trapline_device::{AccessSize, Device, MmioIo, MsiSink, Poll, PortIo};
//! use trapline_pci::{
//!     BarKind, ClassCode, ConfigError, ConfigSpace, Identity, MsixLayout, PciFunction, capability::id,
//!     test::Bench,
//! };
//!
//! /// A doorbell: a write to the first register of BAR 0 sends vector 0.
//! struct Doorbell {
//!     config: ConfigSpace,
//!     rings: u32,
//! }
//!
//! impl Doorbell {
//!     fn new(sink: Arc<dyn MsiSink>) -> Result<Self, ConfigError> {
//!         let mut config = ConfigSpace::new(Identity {
//!             vendor: 0x1234,
//!             device: 0x0001,
//!             revision: 1,
//!             class: ClassCode::UNASSIGNED,
//!             subsystem: (0, 0),
//!         });
//!         config.add_bar(0, BarKind::Memory32 { prefetchable: false }, 0x1000)?;
//!         config.add_bar(1, BarKind::Memory32 { prefetchable: false }, MsixLayout::bar_size(1))?;
//!         config.add_msix(MsixLayout::in_bar(1, 1), sink)?;
//!         Ok(Self { config, rings: 0 })
//!     }
//! }
//!
//! impl PciFunction for Doorbell {
//!     fn config(&self) -> &ConfigSpace {
//!         &self.config
//!     }
//!     fn config_mut(&mut self) -> &mut ConfigSpace {
//!         &mut self.config
//!     }
//! }
//!
//! impl Device for Doorbell {
//!     fn name(&self) -> &str {
//!         "doorbell"
//!     }
//!     fn pio(&mut self) -> Option<&mut dyn PortIo> {
//!         None
//!     }
//!     fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
//!         Some(self)
//!     }
//!     fn poll(&mut self) -> Option<&mut dyn Poll> {
//!         None
//!     }
//!     fn reset(&mut self) {
//!         self.config.reset();
//!         self.rings = 0;
//!     }
//! }
//!
//! impl MmioIo for Doorbell {
//!     fn read(&mut self, bar: usize, offset: u64, size: AccessSize) -> u64 {
//!         let msix = self.config.msix_read(bar, offset, size);
//!         msix.unwrap_or(if (bar, offset) == (0, 0) { self.rings.into() } else { 0 })
//!     }
//!     fn write(&mut self, bar: usize, offset: u64, size: AccessSize, value: u64) {
//!         if !self.config.msix_write(bar, offset, size, value) && (bar, offset) == (0, 0) {
//!             self.rings = self.rings.wrapping_add(1);
//!             self.config.interrupts().signal(0);
//!         }
//!     }
//! }
//!
//! // Without a machine: a bench gives it an address, and the test is its driver.
//! use trapline_device::AccessSize::{Dword, Qword, Word};
//! let mut bench = Bench::new();
//! bench.plug(Arc::new(Mutex::new(Doorbell::new(bench.sink())?)));
//! bench.place()?;
//! bench.bar_write(1, 0, Qword, 0xfee0_0000); // the vector's address
//! bench.bar_write(1, 8, Qword, 0x0000_0000_0000_0041); // its data; not masked
//! let msix = bench.capability(id::MSIX).ok_or("no msi-x")?;
//! bench.write(msix + 2, Word, 0x8000); // enable
//! bench.bar_write(0, 0, Dword, 1);
//! assert_eq!(bench.bar_read(0, 0, Dword), 1);
//! assert_eq!(bench.take_messages()[0].data, 0x41);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Registers of a device's own in configuration space are declared with [`ConfigSpace::define`];
//! where a write to one acts, override [`PciFunction::config_write`]. Ranges that are no BARs, such
//! as the compatibility ports of an IDE function, are [`ConfigSpace::set_fixed_range`]. A device that
//! uses its pin calls [`ConfigSpace::wire_intx`] and then [`Interrupts::set_intx`].
//!
//! # A machine
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use trapline_device::bus::Swap;
//! use trapline_device::{AccessSize, IrqLine, test::Recorder};
//! use trapline_pci::{
//!     AddressWindows, BusId, BusLayout, CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, DevFn, Effect, Effects,
//!     I440Fx, IntxRouter, PciRoot, Piix3,
//! };
//!
//! // Interrupts: lines to the PIC (and IOAPIC), here to a recorder.
//! let pic = Arc::new(Recorder::default());
//! let isa = (0..16).map(|irq| IrqLine::new(pic.clone(), irq)).collect();
//! let router = IntxRouter::new(isa);
//!
//! // The topology. A device at 00:03.0 with INTA# would take `router.line(&[3], IntxPin::A)`.
//! let effects = Effects::new();
//! let mut root = PciRoot::new(effects.clone());
//! let host = Arc::new(Mutex::new(I440Fx::new((0x1af4, 0x1100), effects.clone())));
//! root.add(BusId::ROOT, DevFn::new(0, 0), host)?;
//! root.add(BusId::ROOT, DevFn::new(1, 0), Arc::new(Mutex::new(Piix3::new((0, 0), router))))?;
//!
//! // Without firmware the board assigns addresses; with firmware it leaves that out.
//! root.assign_addresses(&AddressWindows {
//!     io: (0xc000, 0x4000),
//!     memory: (0xe000_0000, 0x1000_0000),
//!     memory_high: None,
//! })?;
//! let root = Arc::new(Mutex::new(root));
//!
//! // The buses: what is always there, and what functions claim.
//! let mut layout = BusLayout::default();
//! let ports = Arc::new(Mutex::new(ConfigPorts::new(root.clone())));
//! layout.pio.register(CONFIG_PORTS, CONFIG_PORTS_LEN, ports, 0, "pci-config")?;
//! let mappings = root.lock().unwrap().mappings();
//! let pio = Arc::new(Swap::new(layout.build_pio(&mappings)));
//! let mmio = Arc::new(Swap::new(layout.build_mmio(&mappings)));
//!
//! // On a vCPU thread: an access, then its effects. Here the guest makes 0xf0000 RAM.
//! let mut view = pio.view();
//! view.get().write(0xcf8, AccessSize::Dword, 0x8000_0058);
//! view.get().write(0xcfd, AccessSize::Byte, 0x30);
//! if effects.pending() {
//!     // With several vCPUs: take and apply under one lock.
//!     let taken = effects.take();
//!     layout.apply(&taken, &root, &pio, &mmio);
//!     for effect in taken {
//!         match effect {
//!             Effect::Shadow(shadow) => assert!(shadow.start == 0xf_0000 && shadow.read_ram),
//!             Effect::Smram(_) | Effect::Bar(_) | Effect::Memory => unreachable!(),
//!         }
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A saved machine saves each function, [`ConfigPorts`], and nothing of the topology. After
//! restoring its functions a board calls [`PciRoot::refresh`] and applies the effects.
//!
//! # Deviations and what is left out
//!
//! - A BAR at address zero, or at the all-ones address that sizing leaves, is not claimed even where
//!   decoding is enabled.
//! - Bits of CONFIG_ADDRESS that are reserved read zero; accesses to it narrower than a doubleword read
//!   all-ones (see [`ConfigPorts`] for port 0xcf9).
//! - Special cycles, configuration mechanism #2, the VGA and ISA modes of bridges, subtractive
//!   decoding, DMA through bridges (bus mastering of a bridge is not checked).
//! - Of PCI Express: native hot plug, slots, AER, function-level reset, ARI, SR-IOV.
//! - Power states D1 and D2, and power management events.
//! - A mask change of an MSI-X vector is not announced: a VMM that binds eventfds to messages looks at
//!   [`Interrupts::msix_message`] when it needs one.
//! - Access counters of a PCI range start anew when a bus is rebuilt.
#![forbid(unsafe_code)]

mod address;
mod assign;
mod bar;
mod bridge;
pub mod capability;
mod config;
mod effects;
mod function;
mod i440fx;
mod ids;
mod interrupts;
mod intx;
mod layout;
mod msix;
pub mod piix;
mod ports;
pub mod regs;
mod root;
pub mod test;

pub use address::{AddressRange, Bdf, Claim, DevFn, Space};
pub use assign::{AddressWindows, AssignError};
pub use bar::{Bar, BarKind, FIRST_OWN_REGION, ROM_REGION};
pub use bridge::{BridgeWindows, BusNumbers, PciBridge, PciBridgeState};
pub use capability::{ExpressKind, MsiConfig};
pub use config::{CONVENTIONAL_SIZE, ConfigError, ConfigSpace, ConfigState, EXPRESS_SIZE, HeaderType};
pub use effects::{BarChange, Effect, Effects, Shadow, Smram};
pub use function::{PciFunction, SharedFunction};
pub use i440fx::{I440Fx, I440FxState, PAM0, SMRAM};
pub use ids::{ClassCode, Identity, VENDOR_BOCHS, VENDOR_INTEL, VENDOR_NONE, VENDOR_RED_HAT};
pub use interrupts::{InterruptMode, Interrupts};
pub use intx::{IntxPin, IntxRouter, PIRQ_DISABLED, ROUTABLE, pirq_of};
pub use layout::BusLayout;
pub use msix::MsixLayout;
pub use piix::{Piix3, Piix3State, Piix4Pm, Piix4PmState};
pub use ports::{CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, ConfigPortsState, Ecam, SharedRoot};
pub use regs::{Command, Status};
pub use root::{BusId, Mapping, PciRoot, TopologyError};
