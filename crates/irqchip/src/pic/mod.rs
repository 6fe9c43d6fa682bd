//! The pair of 8259A programmable interrupt controllers, with the edge/level control registers of
//! PIIX3 in place of ICW1's LTIM bit.

mod chip;

use std::fmt;
use std::sync::{Arc, Mutex};

pub use chip::Pic8259;
use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, IrqLine, IrqSink, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each,
    write_each,
};

use crate::lock;

/// The slave's INT is wired to the master's IR2.
const CASCADE_PIN: u32 = 2;
const CASCADE: u8 = 1 << CASCADE_PIN;
/// IRQ 0, 1, 2 and IRQ 8, 13 are always edge-triggered.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Both chips.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chips {
    master: Pic8259,
    slave: Pic8259,
    /// What INTR was last driven to.
    intr: bool,
}

impl Chips {
    fn new() -> Self {
        Self { master: Pic8259::new(CASCADE), slave: Pic8259::new(0), intr: false }
    }

    fn read(&mut self, region: usize, offset: u16) -> u8 {
        match (region, offset) {
            (0, 0..=1) => self.master.read(offset == 1),
            (1, 0..=1) => {
                let polled = self.slave.is_polled();
                let value = self.slave.read(offset == 1);
                if polled {
                    self.slave_acknowledged();
                }
                value
            }
            (2, 0) => self.master.elcr(),
            (2, 1) => self.slave.elcr(),
            _ => 0xff,
        }
    }

    fn write(&mut self, region: usize, offset: u16, value: u8) {
        let [master_mask, slave_mask] = ELCR_MASK;
        match (region, offset) {
            (0, 0..=1) => self.master.write(offset == 1, value),
            (1, 0..=1) => self.slave.write(offset == 1, value),
            (2, 0) => self.master.set_elcr(value & master_mask),
            (2, 1) => self.slave.set_elcr(value & slave_mask),
            _ => {}
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        self.master.set_line(CASCADE_PIN, self.slave.int());
    }

    /// The slave's INT falls with the acknowledge: what is pending behind it is a new edge.
    fn slave_acknowledged(&mut self) {
        self.master.set_line(CASCADE_PIN, false);
        self.cascade();
    }

    fn ack(&mut self) -> u8 {
        match self.master.acknowledge() {
            Some(level) if level == CASCADE_PIN as u8 => {
                let level = self.slave.acknowledge().unwrap_or(7);
                self.slave_acknowledged();
                self.slave.vector(level)
            }
            level => self.master.vector(level.unwrap_or(7)),
        }
    }
}

struct Shared {
    chips: Mutex<Chips>,
    intr: IrqLine,
}

impl Shared {
    /// Does `f` to the chips and drives INTR. The line is driven under the lock, so that levels
    /// arrive in the order in which they arose.
    fn with<T>(&self, f: impl FnOnce(&mut Chips) -> T) -> T {
        let mut chips = lock(&self.chips);
        let result = f(&mut chips);
        let intr = chips.master.int();
        if std::mem::replace(&mut chips.intr, intr) != intr {
            self.intr.set(intr);
        }
        result
    }
}

impl IrqSink for Shared {
    fn set(&self, pin: u32, level: bool) {
        self.with(|chips| match pin {
            CASCADE_PIN => {}
            0..8 => chips.master.set_line(pin, level),
            8..16 => {
                chips.slave.set_line(pin - 8, level);
                chips.cascade();
            }
            _ => {}
        });
    }
}

/// Master and slave, a handle to share: clones are the same pair.
///
/// As a device it has three regions of two ports each: 0 is the master (0x20), 1 the slave (0xa0),
/// 2 the edge/level control registers (0x4d0).
#[derive(Clone)]
pub struct PicPair(Arc<Shared>);

impl PicPair {
    /// A pair after power-on that drives `intr`, which leads to LINT0 of the boot processor or to
    /// the INTR pin of a processor without local APIC. The sink behind it must not call back.
    pub fn new(intr: IrqLine) -> Self {
        Self(Arc::new(Shared { chips: Mutex::new(Chips::new()), intr }))
    }

    /// The line to IRQ `pin`, 0 to 15. IRQ 2 is taken by the cascade: its line does nothing.
    pub fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(self.0.clone(), pin)
    }

    /// All 16 pins.
    pub fn sink(&self) -> Arc<dyn IrqSink> {
        self.0.clone()
    }

    /// The level of INTR.
    pub fn intr(&self) -> bool {
        lock(&self.0.chips).intr
    }

    /// The interrupt acknowledge cycle: the vector of the highest request, which is now in service.
    /// A request that has gone meanwhile is a spurious IRQ 7, as on the chip. (A spurious IRQ 15 takes
    /// a line that falls between the two pulses of the cycle, which are one moment here; only a saved
    /// state in which master and slave disagree brings one about.)
    ///
    /// Drives INTR: the caller must not hold what INTR's sink locks.
    pub fn ack(&self) -> u8 {
        self.0.with(Chips::ack)
    }
}

impl fmt::Debug for PicPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PicPair").field(&*lock(&self.0.chips)).finish()
    }
}

impl Device for PicPair {
    fn name(&self) -> &str {
        "pic"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        self.0.with(|chips| {
            chips.master.reset();
            chips.slave.reset();
        });
    }
}

impl PortIo for PicPair {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        self.0.with(|chips| crate::read_bytes(offset, size, |port| chips.read(region, port)))
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        self.0.with(|chips| {
            crate::write_bytes(offset, size, value, |port, byte| chips.write(region, port, byte));
        });
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

/// Saved state of a [`PicPair`]: all registers, modes and input levels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    master: Pic8259,
    slave: Pic8259,
}

impl SaveRestore for PicPair {
    type State = PicState;

    fn save(&self) -> PicState {
        // INTR follows from the rest.
        let Chips { master, slave, intr: _ } = lock(&self.0.chips).clone();
        PicState { master, slave }
    }

    fn restore(&mut self, state: PicState) -> Result<(), RestoreError> {
        let PicState { master, slave } = state;
        let [master_mask, slave_mask] = ELCR_MASK;
        let invalid = master.invalid(CASCADE, master_mask).or_else(|| slave.invalid(0, slave_mask));
        if let Some(what) = invalid {
            return Err(RestoreError { device: "pic", what });
        }
        self.0.with(|chips| {
            chips.master = master;
            chips.slave = slave;
        });
        Ok(())
    }
}
