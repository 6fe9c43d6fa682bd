//! Basic exit reasons that the processor gives (SDM vol. 3 appendix C).
#![allow(missing_docs)]

pub const EPT_VIOLATION: u16 = 48;
pub const EPT_MISCONFIG: u16 = 49;
pub const TRIPLE_FAULT: u16 = 2;
