//! Model-specific registers.

/// Registers that are only storage.
#[derive(Clone, Debug, Default)]
pub struct Msrs {}
