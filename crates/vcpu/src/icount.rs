//! Time that counts instructions.

use std::sync::atomic::{AtomicU64, Ordering};

use trapline_device::{Clock, Nanos};

use crate::{Engine, Error, Result};

/// A clock that a vCPU of the soft engine drives: 2^`shift` nanoseconds for each instruction. While the
/// vCPU waits in HLT it goes forward to the next deadline at once. It stands still between two exits, as
/// far as devices can tell.
///
/// What a guest does then depends on nothing but its memory, its registers and its input: two runs are
/// equal, exit by exit.
#[derive(Debug)]
pub struct InstructionClock {
    shift: u8,
    now: AtomicU64,
}

impl InstructionClock {
    /// The largest shift: a microsecond for each instruction.
    pub const MAX_SHIFT: u8 = 10;

    /// A clock that starts at zero.
    ///
    /// # Errors
    /// When `shift` is above [`InstructionClock::MAX_SHIFT`].
    pub fn new(shift: u8) -> Result<Self> {
        if shift > Self::MAX_SHIFT {
            let what = "more than 2^10 nanoseconds an instruction";
            return Err(Error::Unsupported { engine: Engine::Soft, what });
        }
        Ok(Self { shift, now: AtomicU64::new(0) })
    }

    /// The binary logarithm of the nanoseconds that an instruction takes.
    pub fn shift(&self) -> u8 {
        self.shift
    }

    /// It is `now`. Only the vCPU says so.
    pub(crate) fn set(&self, now: Nanos) {
        self.now.store(now, Ordering::Release);
    }
}

impl Clock for InstructionClock {
    fn now(&self) -> Nanos {
        self.now.load(Ordering::Acquire)
    }
}
