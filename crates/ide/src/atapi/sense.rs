//! Sense data (SPC-3 §4.5).

use serde::{Deserialize, Serialize};

/// Key, additional code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sense {
    pub key: u8,
    pub code: u8,
    pub qualifier: u8,
}

impl Sense {
    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    pub const NONE: Self = Self::new(0, 0, 0);
    /// Not ready: no medium, tray closed.
    pub const NO_DISC: Self = Self::new(2, 0x3a, 1);
    /// Not ready: no medium, tray open.
    pub const TRAY_OPEN: Self = Self::new(2, 0x3a, 2);
    /// Medium error: unrecovered read error.
    pub const READ_ERROR: Self = Self::new(3, 0x11, 0);
    /// Illegal request: invalid command operation code.
    pub const BAD_COMMAND: Self = Self::new(5, 0x20, 0);
    /// Illegal request: logical block address out of range.
    pub const OUT_OF_RANGE: Self = Self::new(5, 0x21, 0);
    /// Illegal request: invalid field in the packet.
    pub const BAD_FIELD: Self = Self::new(5, 0x24, 0);
    /// Illegal request: saving parameters is not supported.
    pub const NOT_SAVED: Self = Self::new(5, 0x39, 0);
    /// Illegal request: medium removal prevented.
    pub const LOCKED: Self = Self::new(5, 0x53, 2);
    /// Illegal request: illegal mode for this track.
    pub const BAD_MODE: Self = Self::new(5, 0x64, 0);
    /// Unit attention: the medium may have changed.
    pub const CHANGED: Self = Self::new(6, 0x28, 0);
    /// Unit attention: power on or reset.
    pub const RESET: Self = Self::new(6, 0x29, 0);

    /// Fixed format.
    pub fn bytes(self) -> [u8; 18] {
        [0x70, 0, self.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, self.code, self.qualifier, 0, 0, 0, 0]
    }
}
