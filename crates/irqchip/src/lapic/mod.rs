//! The local APIC (Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller").
//!
//! [`LocalApic`] is state that the owner of a virtual processor owns; it touches nothing else. What a
//! register write means for the outside comes back as an [`Effect`], what a message means for the
//! processor as [`Delivered`]: the owner performs them. Time is handed in with each call.
//!
//! The bus clock that the timer divides is 1 GHz ([`BUS_HZ`]): one count at divisor one is a
//! nanosecond. The version register says 0x14, seven LVT entries, EOI-broadcast suppression.
//!
//! ```
//! use trapline_irqchip::lapic::{Effect, LocalApic, Time, reg};
//! use trapline_irqchip::message::DeliveryMode;
//!
//! let mut apic = LocalApic::new(0, true);
//! let time = Time { ns: 0, tsc: 0 };
//! apic.write(reg::SVR, 0x1ff, time); // software enable, spurious vector 0xff
//! apic.accept(0x41, true);
//! assert_eq!(apic.pending(), Some(0x41));
//! apic.ack(0x41);
//! assert_eq!(apic.pending(), None);
//! assert_eq!(apic.write(reg::EOI, 0, time), Some(Effect::Eoi(0x41)));
//! ```

mod base;
mod ipi;
mod kvm;
mod lvt;
mod regs;
mod state;
mod timer;
mod vectors;

pub use ipi::{Ipi, IpiTarget};
pub use lvt::LvtEntry;
pub use regs::reg;
pub use state::LapicState;
pub use timer::{BUS_HZ, Deadline, Time};

use serde::{Deserialize, Serialize};

use crate::message::{ApicAddress, ApicMode, DeliveryMode};
use lvt::Lvt;
use timer::Timer;
use vectors::Vectors;

/// A general-protection exception: what a faulty MSR access raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("general protection")]
pub struct GeneralProtection;

/// What a register write asks the owner to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send this interrupt; see [`Ipi::reaches`].
    Ipi(Ipi),
    /// Tell the I/O APICs that the level-triggered interrupt with this vector was served.
    Eoi(u8),
    /// [`LocalApic::deadline`] has changed.
    TimerChanged,
    /// [`LocalApic::address`] may have changed.
    AddressChanged,
}

/// What an interrupt that was delivered means for the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivered {
    /// Nobody took it: masked, disabled or an illegal vector.
    Dropped,
    /// It is requested; [`LocalApic::pending`] tells when it may be taken.
    Requested,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT: the owner resets the processor and calls [`LocalApic::init`].
    Init,
    /// Start-up at this page.
    StartUp(u8),
    /// External interrupt: the vector comes from the 8259A.
    ExtInt,
}

/// Error status register bits.
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Spurious-interrupt vector register bits.
mod svr {
    pub const ENABLED: u32 = 1 << 8;
    pub const SUPPRESS_EOI: u32 = 1 << 12;
    pub const WRITABLE: u32 = 0x11ff;
}

const DFR_FLAT: u32 = 0xffff_ffff;

/// One local APIC. It is data: [`LapicState`] is what to keep it in, as [`LocalApic::restore`] checks that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApic {
    id: u32,
    /// The ID in xAPIC mode, which software may change.
    xapic_id: u8,
    /// IA32_APIC_BASE.
    base: u64,
    tpr: u8,
    /// Logical destination, as the register reads in xAPIC mode; in x2APIC mode it follows from the
    /// ID.
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// What ESR reads, and what its next write will make it read.
    esr: u32,
    esr_pending: u32,
    icr: u64,
    lvt: Lvt,
    timer: Timer,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
}

impl LocalApic {
    /// The local APIC with this ID after power-on, of the boot processor or another. It is enabled
    /// at 0xfee0_0000 in xAPIC mode.
    pub fn new(id: u32, boot_processor: bool) -> Self {
        Self {
            id,
            xapic_id: id as u8,
            base: base::DEFAULT | if boot_processor { base::BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: Lvt::default(),
            timer: Timer::default(),
            lint: [false; 2],
        }
    }

    /// Power-on reset. The levels of LINT0 and LINT1 are kept: they are driven from outside.
    pub fn reset(&mut self) {
        *self = Self { lint: self.lint, ..Self::new(self.id, self.base & base::BSP != 0) };
    }

    /// What INIT does: as reset, but IA32_APIC_BASE and the ID stay (SDM vol. 3 §11.4.7.3).
    pub fn init(&mut self) {
        let Self { lint, base, xapic_id, .. } = *self;
        *self = Self { lint, base, xapic_id, ..Self::new(self.id, false) };
    }

    /// Brings the local APIC into virtual wire mode, as firmware leaves it (MultiProcessor
    /// Specification 1.4 §3.6.2.2): software enabled, LINT0 the 8259A's, LINT1 NMI. For boards
    /// that enter a kernel without firmware.
    pub fn virtual_wire(&mut self) {
        self.svr = svr::ENABLED | 0xff;
        self.lvt.virtual_wire();
    }

    /// The APIC ID that the processor has from power-on.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// All that decides what reaches this local APIC; changes with [`Effect::AddressChanged`].
    pub fn address(&self) -> ApicAddress {
        let mode = self.mode();
        let x2 = mode == ApicMode::X2Apic;
        ApicAddress {
            mode,
            id: if x2 { self.id } else { self.xapic_id.into() },
            logical_id: if x2 { self.x2apic_ldr() } else { self.ldr >> 24 },
            cluster: !x2 && self.dfr >> 28 == 0,
            software_enabled: self.software_enabled(),
        }
    }

    fn x2apic_ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xf)
    }

    fn software_enabled(&self) -> bool {
        self.svr & svr::ENABLED != 0
    }

    /// The task priority, as CR8 shows it: 0 to 15.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8. Bits above the fourth are ignored: the processor raises #GP for them.
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = value << 4;
    }

    /// The processor priority.
    pub fn ppr(&self) -> u8 {
        let served = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= served >> 4 { self.tpr } else { served & 0xf0 }
    }

    /// The priority by which a lowest-priority message chooses its receiver.
    pub fn arbitration_priority(&self) -> u8 {
        let requested = self.irr.highest().unwrap_or(0) >> 4;
        let served = self.isr.highest().unwrap_or(0) >> 4;
        let task = self.tpr >> 4;
        if task >= requested && task > served { self.tpr } else { (task & served).max(requested) << 4 }
    }

    /// The vector that the processor would be given now: the highest one requested, if its class is
    /// above the processor priority.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4 && self.base & base::ENABLED != 0).then_some(vector)
    }

    /// The highest vector requested, whether the processor priority lets it through or not: what a
    /// TPR threshold is computed from.
    pub fn requested(&self) -> Option<u8> {
        self.irr.highest()
    }

    /// The highest vector in service.
    pub fn in_service(&self) -> Option<u8> {
        self.isr.highest()
    }

    /// The processor takes `vector`, which [`LocalApic::pending`] named: from requested to in
    /// service.
    pub fn ack(&mut self, vector: u8) {
        self.irr.clear(vector);
        self.isr.set(vector);
    }

    /// Requests a fixed interrupt. Vectors below 16 are illegal and noted in ESR.
    pub fn accept(&mut self, vector: u8, level: bool) -> Delivered {
        if !self.address().accepts(DeliveryMode::Fixed) {
            return Delivered::Dropped;
        }
        if vector < 16 {
            self.raise_error(error::RECEIVED_ILLEGAL_VECTOR);
            return Delivered::Dropped;
        }
        self.irr.set(vector);
        if level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
        Delivered::Requested
    }

    /// Delivers a message or an IPI that reaches this local APIC.
    pub fn deliver(&mut self, delivery: DeliveryMode, vector: u8, level: bool) -> Delivered {
        if !self.address().accepts(delivery) {
            return Delivered::Dropped;
        }
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.accept(vector, level),
            DeliveryMode::Smi => Delivered::Smi,
            DeliveryMode::Nmi => Delivered::Nmi,
            DeliveryMode::Init => Delivered::Init,
            DeliveryMode::StartUp => Delivered::StartUp(vector),
            DeliveryMode::ExtInt => Delivered::ExtInt,
        }
    }

    /// End of interrupt: the highest vector leaves service. Returns it if it was level-triggered and
    /// is to be broadcast.
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.clear(vector);
        let level = self.tmr.get(vector);
        self.end_lint(vector);
        (level && self.svr & svr::SUPPRESS_EOI == 0).then_some(vector)
    }

    /// Notes an error, and requests the error interrupt.
    fn raise_error(&mut self, bits: u32) {
        self.esr_pending |= bits;
        let entry = self.lvt.get(LvtEntry::Error);
        // An illegal vector here would be the next error: it is noted, and that is the end of it.
        match entry as u8 {
            _ if entry & lvt::MASKED != 0 => {}
            0..16 => self.esr_pending |= error::RECEIVED_ILLEGAL_VECTOR,
            vector => {
                let _ = self.accept(vector, false);
            }
        }
    }
}
