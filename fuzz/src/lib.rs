//! What the fuzz targets share: scripts for devices, and a machine for the processor.

pub mod rig;
pub mod script;
