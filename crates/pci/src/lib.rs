//! PCI: configuration space, BARs, capabilities, MSI and MSI-X, host and ISA bridges
#![forbid(unsafe_code)]

mod address;
mod bar;
pub mod capability;
mod config;
mod function;
mod ids;
mod interrupts;
mod intx;
mod msix;
pub mod regs;

pub use address::{AddressRange, Bdf, Claim, DevFn, Space};
pub use bar::{Bar, BarKind, FIRST_OWN_REGION, ROM_REGION};
pub use capability::{ExpressKind, MsiConfig};
pub use config::{CONVENTIONAL_SIZE, ConfigError, ConfigSpace, ConfigState, EXPRESS_SIZE, HeaderType};
pub use function::{PciFunction, SharedFunction};
pub use ids::{ClassCode, Identity, VENDOR_BOCHS, VENDOR_INTEL, VENDOR_NONE, VENDOR_RED_HAT};
pub use interrupts::{InterruptMode, Interrupts};
pub use intx::{IntxPin, IntxRouter, PIRQ_DISABLED, ROUTABLE, pirq_of};
pub use msix::MsixLayout;
pub use regs::{Command, Status};
