//! The 8254, through its ports, mode by mode.

use std::sync::Arc;

use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{AccessSize, Clock, Device, IrqLine, SaveRestore};
use trapline_irqchip::pit::{FREQUENCY, MAX_OWED, MIN_SPACING, Pit, PitState};

struct Timer {
    pit: Pit,
    clock: Arc<FakeClock>,
    irq: Arc<Recorder>,
    tick: u64,
}

impl Timer {
    fn new() -> Self {
        let clock = Arc::new(FakeClock::default());
        let irq = Arc::new(Recorder::default());
        let pit = Pit::new(clock.clone(), IrqLine::new(irq.clone(), 0));
        Self { pit, clock, irq, tick: 0 }
    }

    /// Lets `ticks` of the input clock pass.
    fn pass(&mut self, ticks: u64) {
        self.tick += ticks;
        let due = (u128::from(self.tick) * 1_000_000_000).div_ceil(FREQUENCY.into()) as u64;
        self.clock.advance(due - self.clock.now());
    }

    fn out(&mut self, port: u16, value: u8) {
        let (region, offset) = if port == 0x61 { (1, 0) } else { (0, port - 0x40) };
        self.pit.pio().unwrap().write(region, offset, AccessSize::Byte, value.into());
    }

    fn inb(&mut self, port: u16) -> u8 {
        let (region, offset) = if port == 0x61 { (1, 0) } else { (0, port - 0x40) };
        self.pit.pio().unwrap().read(region, offset, AccessSize::Byte) as u8
    }

    /// Programs channel 2 for two-byte counts and lets the count reach the counting element.
    fn program(&mut self, mode: u8, count: u16) {
        self.out(0x43, 0xb0 | mode << 1);
        self.count(count);
        self.pass(1);
    }

    fn count(&mut self, count: u16) {
        count.to_le_bytes().into_iter().for_each(|byte| self.out(0x42, byte));
    }

    /// Channel 2's counting element, latched.
    fn value(&mut self) -> u16 {
        self.out(0x43, 0x80);
        u16::from_le_bytes([self.inb(0x42), self.inb(0x42)])
    }

    fn gate(&mut self, gate: bool) {
        self.out(0x61, gate.into());
    }

    fn output(&mut self) -> bool {
        self.inb(0x61) & 0x20 != 0
    }

    /// OUT over the next ticks, as a string of H and L.
    fn wave(&mut self, ticks: u64) -> String {
        let step = |t: &mut Self| {
            let level = if t.output() { 'H' } else { 'L' };
            t.pass(1);
            level
        };
        (0..ticks).map(|_| step(self)).collect()
    }

    /// Serves channel 0 like a board does, up to `until`, and says when it interrupted.
    fn serve(&mut self, until: u64) -> Vec<u64> {
        let mut at = Vec::new();
        while let Some(due) = self.pit.poll().unwrap().deadline().filter(|due| *due <= until) {
            self.clock.advance(due.saturating_sub(self.clock.now()));
            let (now, before) = (self.clock.now(), self.irq.rising_edges(0));
            self.pit.poll().unwrap().poll(now);
            at.extend((before..self.irq.rising_edges(0)).map(|_| now));
        }
        at
    }
}

#[test]
fn mode_0_interrupt_on_terminal_count() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(0, 3);
    assert_eq!(t.value(), 3);
    assert_eq!(t.wave(5), "LLLHH");
    assert_eq!(t.value(), 0xfffe, "it goes on after zero");
    // GATE low stops the count, but changes nothing in OUT.
    t.program(0, 4);
    t.pass(1);
    t.gate(false);
    t.pass(10);
    assert_eq!((t.value(), t.output()), (3, false));
    t.gate(true);
    assert_eq!(t.wave(4), "LLLH");
    // The first byte of a new count stops it, OUT low.
    t.out(0x42, 2);
    assert!(!t.output());
    t.pass(100);
    assert!(!t.output());
    t.out(0x42, 0);
    t.pass(1);
    assert_eq!(t.wave(3), "LLH");
}

#[test]
fn mode_1_retriggerable_one_shot() {
    let mut t = Timer::new();
    t.program(1, 3);
    assert_eq!(t.wave(5), "HHHHH", "it waits for the trigger");
    t.gate(true);
    t.pass(1);
    assert_eq!(t.wave(5), "LLLHH");
    t.gate(false);
    t.gate(true);
    t.pass(1);
    assert_eq!(t.wave(2), "LL");
    // A trigger while it runs starts it anew; a new count waits for that.
    t.count(2);
    t.gate(false);
    t.gate(true);
    t.pass(1);
    assert_eq!(t.wave(3), "LLH");
}

#[test]
fn mode_2_rate_generator() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(2, 4);
    assert_eq!(t.wave(9), "HHHLHHHLH");
    assert_eq!(t.value(), 3);
    // A new count takes effect at the end of the cycle.
    t.count(3);
    assert_eq!(t.wave(9), "HHLHHLHHL");
    // GATE low raises OUT at once; its rising edge reloads.
    t.pass(2);
    assert!(!t.output());
    t.gate(false);
    assert!(t.output());
    t.pass(5);
    t.gate(true);
    t.pass(1);
    assert_eq!(t.wave(6), "HHLHHL");
}

#[test]
fn mode_3_square_wave() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(3, 4);
    assert_eq!(t.wave(8), "HHLLHHLL");
    t.program(3, 5);
    assert_eq!(t.wave(10), "HHHLLHHHLL");
    // It counts by two; an odd count as the even one below it.
    t.program(3, 6);
    let values: Vec<_> = (0..7).map(|_| (t.value(), t.pass(1)).0).collect();
    assert_eq!(values, [6, 4, 2, 6, 4, 2, 6]);
    t.program(3, 5);
    let values: Vec<_> = (0..6).map(|_| (t.value(), t.pass(1)).0).collect();
    assert_eq!(values, [4, 2, 0, 4, 2, 4]);
    // A new count takes effect at the end of the half cycle.
    t.program(3, 8);
    t.pass(1);
    t.count(4);
    assert_eq!(t.wave(9), "HHHLLHHLL");
}

#[test]
fn mode_4_software_strobe() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(4, 3);
    assert_eq!(t.wave(6), "HHHLHH");
    t.count(1);
    t.pass(1);
    assert_eq!(t.wave(3), "HLH");
}

#[test]
fn mode_5_hardware_strobe() {
    let mut t = Timer::new();
    t.program(5, 2);
    assert_eq!(t.wave(4), "HHHH");
    t.gate(true);
    t.pass(1);
    assert_eq!(t.wave(4), "HHLH");
}

#[test]
fn modes_6_and_7_are_2_and_3() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(6, 3);
    assert_eq!(t.wave(6), "HHLHHL");
    t.program(7, 2);
    assert_eq!(t.wave(4), "HLHL");
}

#[test]
fn zero_is_the_highest_count() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(2, 0);
    assert_eq!(t.value(), 0);
    t.pass(1);
    assert_eq!(t.value(), 0xffff);
    // In BCD, 10,000.
    t.out(0x43, 0xb5);
    t.count(0);
    t.pass(2);
    assert_eq!(t.value(), 0x9999);
}

#[test]
fn bcd_counts_in_decimal() {
    let mut t = Timer::new();
    t.gate(true);
    t.out(0x43, 0xb1);
    t.count(0x1000);
    t.pass(2);
    assert_eq!(t.value(), 0x0999);
    t.pass(999);
    assert_eq!((t.value(), t.output()), (0, true));
    t.pass(1);
    assert_eq!(t.value(), 0x9999);
}

#[test]
fn single_byte_access() {
    let mut t = Timer::new();
    t.gate(true);
    t.out(0x43, 0x94); // channel 2, low byte only, mode 2
    t.out(0x42, 0x40);
    t.pass(2);
    assert_eq!((t.inb(0x42), t.inb(0x42)), (0x3f, 0x3f));
    t.out(0x43, 0xa4); // high byte only
    t.out(0x42, 0x40);
    t.pass(2);
    assert_eq!((t.inb(0x42), t.inb(0x42)), (0x3f, 0x3f));
}

#[test]
fn a_latched_count_stands_until_read() {
    let mut t = Timer::new();
    t.gate(true);
    t.program(2, 0x1234);
    t.out(0x43, 0x80);
    t.pass(0x100);
    t.out(0x43, 0x80); // ignored
    assert_eq!((t.inb(0x42), t.inb(0x42)), (0x34, 0x12));
    assert_eq!((t.inb(0x42), t.inb(0x42)), (0x34, 0x11), "live");
}

#[test]
fn read_back_latches_status_then_count() {
    let mut t = Timer::new();
    t.gate(true);
    t.out(0x43, 0xb6);
    t.out(0x43, 0xe8); // status of channel 2
    assert_eq!(t.inb(0x42), 0xf6, "OUT high, null count, two bytes, mode 3");
    t.count(4);
    t.pass(1);
    t.out(0x43, 0xc8); // both
    t.pass(3);
    assert_eq!(t.inb(0x42), 0xb6);
    assert_eq!((t.inb(0x42), t.inb(0x42)), (4, 0));
    t.out(0x43, 0xe8);
    assert_eq!(t.inb(0x42), 0x36, "OUT low");
    // A new count is null until it is loaded.
    t.count(6);
    t.out(0x43, 0xe8);
    assert_eq!(t.inb(0x42) & 0x40, 0x40);
    t.pass(1);
    t.out(0x43, 0xe8);
    assert_eq!(t.inb(0x42) & 0x40, 0);
}

#[test]
fn port_61() {
    let mut t = Timer::new();
    t.out(0x61, 0xff);
    assert_eq!(t.inb(0x61) & 0xcf, 0x0f, "bits 0 to 3 are writable");
    let refresh = t.inb(0x61) & 0x10;
    t.clock.advance(15_085);
    assert_ne!(t.inb(0x61) & 0x10, refresh);
    t.clock.advance(15_085);
    assert_eq!(t.inb(0x61) & 0x10, refresh);
    assert_eq!(t.inb(0x43), 0xff, "the control word cannot be read");
}

#[test]
fn channel_0_interrupts_periodically() {
    let mut t = Timer::new();
    assert!(t.serve(1_000_000_000).is_empty());
    // 100 Hz: count 11932 is 10.000150 ms.
    t.out(0x43, 0x34);
    t.out(0x40, 0x9c);
    t.out(0x40, 0x2e);
    let edges = t.irq.rising_edges(0);
    let at = t.serve(t.clock.now() + 100_100_000);
    assert_eq!(at.len(), 10);
    for pair in at.windows(2) {
        let gap = pair[1] - pair[0];
        assert!((10_000_149..=10_000_152).contains(&gap), "{gap}");
    }
    assert_eq!(t.irq.rising_edges(0), edges + 10);
}

#[test]
fn channel_0_in_mode_0_interrupts_once() {
    let mut t = Timer::new();
    t.out(0x43, 0x30);
    t.out(0x40, 100);
    t.out(0x40, 0);
    assert_eq!(t.serve(1_000_000_000).len(), 1);
    assert!(t.irq.level(0));
}

#[test]
fn late_ticks_are_caught_up_without_a_storm() {
    let mut t = Timer::new();
    t.out(0x43, 0x34);
    t.out(0x40, 0x9c);
    t.out(0x40, 0x2e);
    let start = t.irq.rising_edges(0);
    // The host sleeps for ten periods.
    t.clock.advance(100_100_000);
    let now = t.clock.now();
    t.pit.poll().unwrap().poll(now);
    assert_eq!(t.irq.rising_edges(0), start + 1, "one a call");
    let at = t.serve(now + 100_100_000);
    assert_eq!(t.irq.rising_edges(0), start + 20, "none is lost");
    assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= 5_000_000), "{at:?}");
    // A day later only so many are owed.
    t.clock.advance(86_400_000_000_000);
    let now = t.clock.now();
    let caught_up = t.serve(now + 1_000_000_000).len() as u64;
    assert!((100 + MAX_OWED - 2..=100 + MAX_OWED + 2).contains(&caught_up), "{caught_up}");
}

#[test]
fn no_tick_is_lost_where_the_count_changes() {
    let mut t = Timer::new();
    t.out(0x43, 0x34);
    t.out(0x40, 0x00);
    t.out(0x40, 0x40);
    t.pass(0x2000);
    t.out(0x40, 0x00);
    t.out(0x40, 0x80);
    // The old cycle ends; then the counter is read, before anyone served the interrupt.
    t.pass(0x2800);
    t.out(0x43, 0x00);
    assert_eq!((t.inb(0x40), t.inb(0x40)), (0x01, 0x78));
    let before = t.irq.rising_edges(0);
    let now = t.clock.now();
    assert_eq!(t.serve(now).len(), 1);
    assert_eq!(t.irq.rising_edges(0), before + 1);
}

#[test]
fn a_period_too_short_is_stretched() {
    let mut t = Timer::new();
    t.out(0x43, 0x14);
    t.out(0x40, 2);
    let at = t.serve(10_000_000);
    assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= MIN_SPACING));
    assert!((150..=200).contains(&at.len()), "{}", at.len());
    // A count of one is illegal: no edges.
    let mut t = Timer::new();
    t.out(0x43, 0x14);
    t.out(0x40, 1);
    assert!(t.serve(10_000_000).is_empty());
}

#[test]
fn state_moves_to_a_machine_with_another_clock() {
    let mut t = Timer::new();
    t.clock.advance(3_000_000_000);
    t.tick = 3 * FREQUENCY;
    t.gate(true);
    t.program(3, 50);
    t.pass(7);
    let state: PitState = postcard::from_bytes(&postcard::to_stdvec(&t.pit.save()).unwrap()).unwrap();
    let mut u = Timer::new();
    u.pit.restore(state).unwrap();
    assert_eq!(u.value(), t.value());
    assert_eq!(u.wave(120), t.wave(120));
}
