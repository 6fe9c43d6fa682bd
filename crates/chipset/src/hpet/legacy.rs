//! Legacy replacement: two interrupts that have two owners.

use std::sync::{Arc, Mutex, PoisonError};

use trapline_device::{IrqLine, IrqSink};

/// Interrupts 0 and 8 of a PC: the PIT's and the RTC's, until software sets the HPET's LEG_RT_CNF; then they are
/// timer 0's and timer 1's (IA-PC HPET 1.0a, 2.3.5).
///
/// A board makes it from the lines to the interrupt controllers, gives the PIT and the RTC
/// [`line`](LegacyLines::line)s of it, and gives it to [`Hpet::new`](super::Hpet::new).
pub struct LegacyLines {
    outputs: [IrqLine; 2],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The HPET has them.
    replaced: bool,
    /// The levels of the PIT and the RTC.
    original: [bool; 2],
    /// The levels of timers 0 and 1.
    hpet: [bool; 2],
    /// The levels driven.
    driven: [bool; 2],
}

impl LegacyLines {
    /// Interrupts 0 and 8, on these lines.
    pub fn new(irq0: IrqLine, irq8: IrqLine) -> Arc<Self> {
        Arc::new(Self { outputs: [irq0, irq8], state: Mutex::default() })
    }

    /// The line for the original owner of an interrupt: 0 for the PIT, 1 for the RTC.
    pub fn line(self: &Arc<Self>, owner: u32) -> IrqLine {
        IrqLine::new(self.clone(), owner)
    }

    /// The HPET takes the interrupts over, or gives them back.
    pub(super) fn set_replaced(&self, replaced: bool) {
        self.change(|state| state.replaced = replaced);
    }

    /// The HPET's timer drives its interrupt.
    pub(super) fn set_hpet(&self, timer: usize, level: bool) {
        self.change(|state| set(&mut state.hpet, timer, level));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let levels = if state.replaced { state.hpet } else { state.original };
        for ((output, level), driven) in self.outputs.iter().zip(levels).zip(&mut state.driven) {
            if level != *driven {
                *driven = level;
                output.set(level);
            }
        }
    }
}

fn set(levels: &mut [bool; 2], at: usize, level: bool) {
    if let Some(now) = levels.get_mut(at) {
        *now = level;
    }
}

impl IrqSink for LegacyLines {
    fn set(&self, pin: u32, level: bool) {
        self.change(|state| set(&mut state.original, pin as usize, level));
    }
}
