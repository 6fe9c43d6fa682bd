//! One 8259A.

use serde::{Deserialize, Serialize};

/// Where the chip is in its initialisation sequence: which command word it expects next at A0 = 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Init {
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A, without the other.
///
/// An edge stays latched when its line falls before the acknowledge cycle, so that a pulse is never
/// lost; the data sheet asks devices to hold the line. The cascade inputs do follow their line, as
/// the chip has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic8259 {
    /// Interrupt request, in-service and mask registers.
    irr: u8,
    isr: u8,
    imr: u8,
    /// The input pins.
    lines: u8,
    /// Edge/level control: a set bit makes the pin level-triggered.
    elcr: u8,
    /// Pins to which a slave is wired.
    cascade: u8,
    init: Init,
    /// ICW1 bit 0: ICW4 follows.
    icw4_needed: bool,
    /// ICW1 bit 1: no slaves, no ICW3.
    single: bool,
    /// ICW2: bits 7:3 of the vectors.
    vector_base: u8,
    /// ICW4 bit 1.
    auto_eoi: bool,
    /// ICW4 bit 4.
    special_fully_nested: bool,
    /// OCW3.
    special_mask: bool,
    poll: bool,
    read_isr: bool,
    /// OCW2: rotate priorities at each automatic EOI.
    rotate_on_auto_eoi: bool,
    /// The level that has the lowest priority; 7 but for rotations.
    lowest: u8,
}

impl Pic8259 {
    /// A chip after power-on, with slaves wired to the pins in `cascade`.
    pub fn new(cascade: u8) -> Self {
        Self {
            irr: 0,
            isr: 0,
            imr: 0,
            lines: 0,
            elcr: 0,
            cascade,
            init: Init::Done,
            icw4_needed: false,
            single: false,
            vector_base: 0,
            auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            poll: false,
            read_isr: false,
            rotate_on_auto_eoi: false,
            lowest: 7,
        }
    }

    /// Power-on state; the input pins stay as they are driven.
    pub(super) fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.cascade) };
    }

    /// Why the chip cannot be in this state, if so.
    pub(super) fn invalid(&self, cascade: u8, elcr_mask: u8) -> Option<String> {
        if self.lowest > 7 {
            return Some(format!("lowest priority level is {}, at most 7", self.lowest));
        }
        if self.cascade != cascade {
            return Some(format!("cascade pins are {:#x}, not {cascade:#x}", self.cascade));
        }
        if self.elcr & !elcr_mask != 0 {
            return Some(format!("pins {:#x} cannot be level-triggered", self.elcr & !elcr_mask));
        }
        (self.vector_base & 7 != 0).then(|| format!("vector base {:#x}", self.vector_base))
    }

    /// Drives pin `pin` (0 to 7; others do not exist).
    pub fn set_line(&mut self, pin: u32, level: bool) {
        let bit = 1_u8.checked_shl(pin).unwrap_or(0);
        let rises = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if rises {
            self.irr |= bit;
        } else if !level && (self.elcr | self.cascade) & bit != 0 {
            self.irr &= !bit;
        }
    }

    /// The output pin INT.
    pub fn int(&self) -> bool {
        self.highest_request().is_some()
    }

    /// The level that is to be served next, if any.
    fn highest_request(&self) -> Option<u8> {
        let requests = self.irr & !self.imr;
        if requests == 0 {
            return None;
        }
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        for level in self.by_priority() {
            let bit = 1 << level;
            let served = in_service & bit != 0;
            // A slave in service may ask again for a request that has priority within the slave.
            let nests = self.special_fully_nested && self.cascade & bit != 0;
            if requests & bit != 0 && (!served || nests) {
                return Some(level);
            }
            if served {
                return None;
            }
        }
        None
    }

    /// The levels from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8).map(move |n| (lowest + n) & 7)
    }

    /// The acknowledge cycle: takes the highest request into service. `None` if it has gone: a
    /// spurious interrupt, which is level 7 to the processor but never in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let level = self.highest_request()?;
        let bit = 1 << level;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = level;
        }
        Some(level)
    }

    /// The vector that stands for `level`.
    pub fn vector(&self, level: u8) -> u8 {
        self.vector_base | level & 7
    }

    /// The next read is a poll: an acknowledge cycle.
    pub(super) fn is_polled(&self) -> bool {
        self.poll
    }

    /// Reads port A0 = `a0`.
    pub fn read(&mut self, a0: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.acknowledge().map_or(0, |level| 0x80 | level);
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    /// Writes port A0 = `a0`.
    pub fn write(&mut self, a0: bool, value: u8) {
        match (a0, self.init) {
            (false, _) if value & 0x10 != 0 => self.icw1(value),
            (false, _) if value & 0x08 != 0 => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, Init::Done) => self.imr = value,
            (true, Init::Icw2) => {
                self.vector_base = value & 0xf8;
                self.init = if self.single { self.after_icw3() } else { Init::Icw3 };
            }
            // The wiring is fixed: which pins have slaves, and which pin a slave is at, is known.
            (true, Init::Icw3) => self.init = self.after_icw3(),
            (true, Init::Icw4) => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.init = Init::Done;
            }
        }
    }

    fn after_icw3(&self) -> Init {
        if self.icw4_needed { Init::Icw4 } else { Init::Done }
    }

    /// Starts the initialisation: forgets edges, masks, services and modes.
    fn icw1(&mut self, value: u8) {
        *self = Self {
            irr: self.lines & self.elcr,
            lines: self.lines,
            elcr: self.elcr,
            vector_base: self.vector_base,
            init: Init::Icw2,
            icw4_needed: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::new(self.cascade)
        };
    }

    /// End of interrupt and priorities.
    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(level) = self.end_highest() {
                    self.lowest = level;
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            0b110 => self.lowest = level,
            _ => {} // 0b010: no operation
        }
    }

    /// Non-specific EOI. In special mask mode it passes over levels that are masked.
    fn end_highest(&mut self) -> Option<u8> {
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let level = self.by_priority().find(|level| in_service & 1 << level != 0)?;
        self.isr &= !(1 << level);
        Some(level)
    }

    /// Special mask mode, poll command, choice of the register to read.
    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
    }

    /// The edge/level control register.
    pub fn elcr(&self) -> u8 {
        self.elcr
    }

    /// Sets the edge/level control register. Level pins follow their line at once.
    pub fn set_elcr(&mut self, value: u8) {
        let changed = self.elcr ^ value;
        self.elcr = value;
        self.irr = self.irr & !changed | self.lines & value & changed;
    }
}
