//! Interrupt pins: INTA to INTD, swizzled through bridges, wired together, routed by the PIIX3.

use std::sync::{Arc, Mutex};

use trapline_device::{IrqLine, IrqSink};

use crate::function::lock;

/// An interrupt pin of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntxPin {
    /// INTA#.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl IntxPin {
    /// All four.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// 0 for INTA#, to 3.
    pub const fn index(self) -> u8 {
        self as u8
    }

    /// The pin of the low two bits of `index`.
    pub const fn from_index(index: u8) -> Self {
        match index & 3 {
            0 => Self::A,
            1 => Self::B,
            2 => Self::C,
            _ => Self::D,
        }
    }

    /// The interrupt pin register's value: 1 for INTA#, to 4.
    pub const fn register(self) -> u8 {
        self.index() + 1
    }

    /// The pin of the bus above to which this pin of device `device` leads through a bridge: the
    /// device number is added (PCI-to-PCI Bridge 1.2 §9.1).
    pub const fn swizzle(self, device: u8) -> Self {
        Self::from_index(self.index() + (device & 3))
    }
}

/// The PIIX3's input PIRQ 0 (A) to 3 (D) to which pin `pin` of device `device` on the first bus
/// leads: the wiring that firmware for the i440FX expects, INTA# of device 1 on PIRQA.
pub const fn pirq_of(device: u8, pin: IntxPin) -> u8 {
    (pin.index() + (device & 3) + 3) & 3
}

/// Where the PIRQ inputs lead.
pub struct IntxRouter {
    /// ISA interrupts 0 to 15, through the PIRQ route registers.
    isa: Vec<IrqLine>,
    /// Lines that follow PIRQ A to D directly, such as IOAPIC inputs 16 to 19.
    direct: Vec<IrqLine>,
    state: Mutex<Routes>,
}

struct Routes {
    /// How many inputs hold each PIRQ.
    holders: [u32; 4],
    /// PIRQRC A to D.
    registers: [u8; 4],
    /// The ISA interrupts that are asserted.
    driven: u16,
}

/// PIRQRC: the PIRQ is not routed.
pub const PIRQ_DISABLED: u8 = 0x80;
/// ISA interrupts that a PIRQ can be routed to: all but 0, 1, 2, 8 and 13.
pub const ROUTABLE: u16 = 0xdef8;

impl IntxRouter {
    /// A router to ISA interrupts 0 to 15, the lines of `isa` in this order; interrupts beyond its
    /// end do not exist. A board connects each line to both the PIC and the IOAPIC.
    pub fn new(isa: Vec<IrqLine>) -> Arc<Self> {
        Self::with_direct(isa, Vec::new())
    }

    /// As [`IntxRouter::new`], with four more lines that follow PIRQ A to D whatever the registers
    /// say.
    pub fn with_direct(isa: Vec<IrqLine>, direct: Vec<IrqLine>) -> Arc<Self> {
        let state = Routes { holders: [0; 4], registers: [PIRQ_DISABLED; 4], driven: 0 };
        Arc::new(Self { isa, direct, state: Mutex::new(state) })
    }

    /// A line for pin `pin` of a device. `path` holds device numbers, from the first bus down
    /// through the bridges to the device itself: `&[3]` for device 3 on the first bus. Functions
    /// that share a pin take a line each; all lines of a PIRQ are wired together. A line lets go when
    /// its last clone is dropped.
    pub fn line(self: &Arc<Self>, path: &[u8], pin: IntxPin) -> IrqLine {
        let (first, behind) = path.split_first().map_or((0, path), |(first, behind)| (*first, behind));
        let pin = behind.iter().rev().fold(pin, |pin, device| pin.swizzle(*device));
        let pirq = pirq_of(first, pin);
        IrqLine::new(Arc::new(Input { router: self.clone(), pirq, level: Mutex::new(false) }), pirq.into())
    }

    /// Sets PIRQRC `pirq` (0 for A): bit 7 disables, bits 3:0 are the ISA interrupt. Reserved
    /// interrupts act as disabled.
    pub fn set_route(&self, pirq: u8, register: u8) {
        let mut routes = lock(&self.state);
        if let Some(route) = routes.registers.get_mut(usize::from(pirq)) {
            *route = register;
        }
        self.drive(&mut routes);
    }

    /// The ISA interrupt that PIRQ `pirq` (0 for A) is routed to.
    pub fn route(&self, pirq: u8) -> Option<u8> {
        let register = lock(&self.state).registers.get(usize::from(pirq)).copied()?;
        routed(register)
    }

    fn set(&self, pirq: u8, level: bool) {
        let mut routes = lock(&self.state);
        if let Some(holders) = routes.holders.get_mut(usize::from(pirq)) {
            let before = *holders;
            *holders = if level { before.saturating_add(1) } else { before.saturating_sub(1) };
            if (before == 0) == (*holders == 0) {
                return;
            }
        }
        if let Some(line) = self.direct.get(usize::from(pirq)) {
            line.set(level);
        }
        self.drive(&mut routes);
    }

    /// Drives the ISA interrupts whose level changes.
    fn drive(&self, routes: &mut Routes) {
        let held = routes.holders.iter().zip(routes.registers).filter(|(holders, _)| **holders != 0);
        let asserted =
            held.filter_map(|(_, register)| routed(register)).fold(0, |all, irq| all | 1_u16 << irq);
        let changed = asserted ^ routes.driven;
        routes.driven = asserted;
        for (irq, line) in self.isa.iter().enumerate().take(16).filter(|(irq, _)| changed >> irq & 1 != 0) {
            line.set(asserted >> irq & 1 != 0);
        }
    }
}

fn routed(register: u8) -> Option<u8> {
    let irq = register & 0xf;
    (register & PIRQ_DISABLED == 0 && ROUTABLE >> irq & 1 != 0).then_some(irq)
}

/// One function's connection to a PIRQ.
struct Input {
    router: Arc<IntxRouter>,
    pirq: u8,
    level: Mutex<bool>,
}

impl IrqSink for Input {
    fn set(&self, _: u32, level: bool) {
        let mut now = lock(&self.level);
        if *now != level {
            *now = level;
            self.router.set(self.pirq, level);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        IrqSink::set(self, 0, false);
    }
}
