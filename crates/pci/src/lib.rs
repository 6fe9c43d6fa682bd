//! PCI: configuration space, BARs, capabilities, MSI and MSI-X, host and ISA bridges
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
