//! Port and memory buses.
/// The port bus.
pub struct PioBus;
