//! The VMCS as data.
#![no_std]
#![forbid(unsafe_code)]

pub mod caps;
pub mod checks;
pub mod controls;
pub mod exit;
pub mod field;
pub mod region;
pub mod state;

pub use caps::Capabilities;
pub use field::Field;
pub use region::{LaunchState, REGION_SIZE, Vmcs};
