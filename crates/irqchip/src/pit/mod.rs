//! The programmable interval timer (Intel 8254), with the port 0x61 of a PC.
//!
//! Channel 0 drives IRQ 0, channel 1 drives nothing (it was memory refresh), channel 2 is gated and
//! observed through port 0x61.
//!
//! # Late ticks
//!
//! A host that is late owes the guest interrupts: a kernel that counts ticks would lose time. Each
//! rising edge of OUT0 that has passed is owed, up to [`MAX_OWED`]; what is beyond is forgotten, so
//! that a machine that was stopped does not storm when it goes on. Owed edges are paid one a
//! [`Poll::poll`], half a period apart, never closer than [`MIN_SPACING`]: the guest catches up at
//! twice the pace at most.

mod channel;

use std::sync::Arc;

use channel::Channel;
use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Clock, Device, IrqLine, MmioIo, Nanos, Poll, PortIo, RestoreError, SaveRestore, read_each,
    write_each,
};

/// Frequency of the input clock, in hertz.
pub const FREQUENCY: u64 = 1_193_182;
/// The most edges owed to a guest that is being served late.
pub const MAX_OWED: u64 = 64;
/// The least time between two interrupts: 50 µs. Guests that program shorter periods get fewer.
pub const MIN_SPACING: Nanos = 50_000;

/// Half a period of the refresh request that port 0x61 bit 4 shows: it toggles each 15.085 µs.
const REFRESH_TOGGLE: Nanos = 15_085;
/// Port 0x61 bits that can be written: gate 2, speaker, and the NMI enables.
const PORT_61_WRITABLE: u8 = 0x0f;
const GATE_2: u8 = 0x01;

fn ticks(now: Nanos) -> i64 {
    (u128::from(now) * u128::from(FREQUENCY) / 1_000_000_000) as i64
}

/// The first nanosecond at which `tick` has come.
fn nanos(tick: i64) -> Nanos {
    let tick = u128::try_from(tick).unwrap_or(0);
    let nanos = (tick * 1_000_000_000).div_ceil(u128::from(FREQUENCY));
    Nanos::try_from(nanos).unwrap_or(Nanos::MAX)
}

/// The timer.
///
/// Its port regions: 0 is the counters and the control word (four ports, 0x40), 1 is port 0x61.
pub struct Pit {
    channels: [Channel; 3],
    /// Port 0x61, the bits that are written.
    port_61: u8,
    /// Edges of OUT0 not yet paid.
    owed: u64,
    /// When the last one was.
    paid: Option<Nanos>,
    /// What IRQ 0 was last driven to.
    irq_level: bool,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
}

impl Pit {
    /// A timer whose OUT0 drives `irq0`.
    pub fn new(clock: Arc<dyn Clock>, irq0: IrqLine) -> Self {
        Self { channels: power_on(), port_61: 0, owed: 0, paid: None, irq_level: false, irq: irq0, clock }
    }

    /// Drives IRQ 0 to the level of OUT0, and owes the edges that have passed.
    fn update(&mut self, now: Nanos) {
        let tick = ticks(now);
        let [channel, ..] = &mut self.channels;
        let edges = channel.take_edges(tick);
        let out = channel.out(tick);
        if edges > 0 {
            // The line stays as it is: it moves when the edge is paid.
            self.owed = self.owed.saturating_add(edges).min(MAX_OWED);
        } else if self.owed == 0 {
            self.drive(out);
        }
    }

    fn drive(&mut self, level: bool) {
        if std::mem::replace(&mut self.irq_level, level) != level {
            self.irq.set(level);
        }
    }

    /// When the next owed edge may be paid.
    fn due(&self) -> Option<Nanos> {
        let paid = match self.paid {
            _ if self.owed == 0 => return None,
            Some(paid) => paid,
            None => return Some(0),
        };
        let [channel, ..] = &self.channels;
        let half = channel.period().map_or(0, |period| nanos(i64::from(period)) / 2);
        Some(paid.saturating_add(half.max(MIN_SPACING)))
    }

    fn read_port(&mut self, region: usize, offset: u16) -> u8 {
        let now = self.clock.now();
        match (region, self.channels.get_mut(usize::from(offset))) {
            (0, Some(channel)) => channel.read(ticks(now)),
            (1, _) if offset == 0 => self.read_61(now),
            _ => 0xff, // the control word cannot be read
        }
    }

    fn read_61(&mut self, now: Nanos) -> u8 {
        let [.., channel] = &mut self.channels;
        let out = u8::from(channel.out(ticks(now)));
        let refresh = u8::from(now / REFRESH_TOGGLE % 2 == 1);
        self.port_61 | refresh << 4 | out << 5
    }

    fn write_port(&mut self, region: usize, offset: u16, value: u8) {
        let now = self.clock.now();
        // Edges that have passed belong to the old programming.
        self.update(now);
        match (region, self.channels.get_mut(usize::from(offset))) {
            (0, Some(channel)) => channel.write(value, ticks(now)),
            (0, None) if offset == 3 => self.control(value, ticks(now)),
            (1, _) if offset == 0 => {
                self.port_61 = value & PORT_61_WRITABLE;
                let [.., channel] = &mut self.channels;
                channel.set_gate(value & GATE_2 != 0, ticks(now));
            }
            _ => return,
        }
        self.update(now);
    }

    /// Control word, latch command or read-back command.
    fn control(&mut self, value: u8, tick: i64) {
        let select = value >> 6;
        if let Some(channel) = self.channels.get_mut(usize::from(select)) {
            if value & 0x30 == 0 {
                channel.latch_count(tick);
                return;
            }
            channel.control(value);
            if select == 0 {
                // What the old programming owes is not for the new one.
                self.owed = 0;
            }
            return;
        }
        for (channel, bit) in self.channels.iter_mut().zip([0x02, 0x04, 0x08]) {
            if value & bit == 0 {
                continue;
            }
            // COUNT and STATUS are active low.
            if value & 0x20 == 0 {
                channel.latch_count(tick);
            }
            if value & 0x10 == 0 {
                channel.latch_status(tick);
            }
        }
    }
}

/// GATE0 and GATE1 are tied high.
fn power_on() -> [Channel; 3] {
    [Channel::new(true), Channel::new(true), Channel::new(false)]
}

impl Device for Pit {
    fn name(&self) -> &str {
        "pit"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        Some(self)
    }

    fn reset(&mut self) {
        self.channels = power_on();
        self.port_61 = 0;
        self.owed = 0;
        self.paid = None;
        self.drive(false);
    }
}

impl Poll for Pit {
    fn poll(&mut self, now: Nanos) {
        self.update(now);
        if self.due().is_some_and(|due| due <= now) {
            self.owed -= 1;
            self.paid = Some(now);
            self.drive(false);
            self.drive(true);
            let [channel, ..] = &mut self.channels;
            let out = channel.out(ticks(now));
            self.drive(out);
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        if let Some(due) = self.due() {
            return Some(due);
        }
        let [channel, ..] = &self.channels;
        let edge = nanos(channel.next_edge()?);
        Some(edge.max(self.paid.map_or(0, |paid| paid.saturating_add(MIN_SPACING))))
    }
}

impl PortIo for Pit {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        crate::read_bytes(offset, size, |port| self.read_port(region, port))
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        crate::write_bytes(offset, size, value, |port, byte| self.write_port(region, port, byte));
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

/// Saved state of a [`Pit`]. Times are relative to the moment of saving: time does not pass for a
/// machine that is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    channels: [Channel; 3],
    port_61: u8,
    owed: u64,
    /// Nanoseconds since the last interrupt.
    paid_ago: Option<Nanos>,
    irq_level: bool,
}

impl SaveRestore for Pit {
    type State = PitState;

    fn save(&self) -> PitState {
        let Self { channels, port_61, owed, paid, irq_level, irq: _, clock } = self;
        let now = clock.now();
        let mut channels = channels.clone();
        channels.iter_mut().for_each(|channel| channel.rebase(-ticks(now)));
        PitState {
            channels,
            port_61: *port_61,
            owed: *owed,
            paid_ago: paid.map(|paid| now.saturating_sub(paid)),
            irq_level: *irq_level,
        }
    }

    fn restore(&mut self, state: PitState) -> Result<(), RestoreError> {
        let PitState { mut channels, port_61, owed, paid_ago, irq_level } = state;
        let refuse = |what| Err(RestoreError { device: "pit", what });
        if let Some(what) = channels.iter().find_map(Channel::invalid) {
            return refuse(what);
        }
        if port_61 & !PORT_61_WRITABLE != 0 || owed > MAX_OWED {
            return refuse(format!("port 0x61 holds {port_61:#x}, {owed} interrupts owed"));
        }
        let now = self.clock.now();
        channels.iter_mut().for_each(|channel| channel.rebase(ticks(now)));
        self.channels = channels;
        self.port_61 = port_61;
        self.owed = owed;
        self.paid = paid_ago.map(|ago| now.saturating_sub(ago));
        self.drive(irq_level);
        Ok(())
    }
}

impl std::fmt::Debug for Pit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pit").field("channels", &self.channels).finish_non_exhaustive()
    }
}
