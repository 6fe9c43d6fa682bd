//! The 8259A pair, through its ports, in the order of the data sheet.

use std::sync::Arc;

use trapline_device::test::Recorder;
use trapline_device::{AccessSize, Device, IrqLine, SaveRestore};
use trapline_irqchip::pic::PicPair;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;

struct Pic {
    pic: PicPair,
    cpu: Arc<Recorder>,
}

impl Pic {
    /// A pair after power-on.
    fn raw() -> Self {
        let cpu = Arc::new(Recorder::default());
        Self { pic: PicPair::new(IrqLine::new(cpu.clone(), 0)), cpu }
    }

    /// Initialised as Linux does: vectors 0x20 and 0x28, all unmasked; `icw4` for the master.
    fn new(icw4: u8) -> Self {
        let mut pic = Self::raw();
        pic.init(MASTER, &[0x11, 0x20, 0x04, icw4]);
        pic.init(SLAVE, &[0x11, 0x28, 0x02, 0x01]);
        pic
    }

    fn init(&mut self, base: u16, words: &[u8]) {
        self.out(base, words[0]);
        words[1..].iter().for_each(|word| self.out(base + 1, *word));
    }

    fn place(port: u16) -> (usize, u16) {
        match port {
            0x20..=0x21 => (0, port - 0x20),
            0xa0..=0xa1 => (1, port - 0xa0),
            _ => (2, port - 0x4d0),
        }
    }

    fn out(&mut self, port: u16, value: u8) {
        let (region, offset) = Self::place(port);
        self.pic.pio().unwrap().write(region, offset, AccessSize::Byte, value.into());
    }

    fn inb(&mut self, port: u16) -> u8 {
        let (region, offset) = Self::place(port);
        self.pic.pio().unwrap().read(region, offset, AccessSize::Byte) as u8
    }

    fn irr(&mut self, base: u16) -> u8 {
        self.out(base, 0x0a);
        self.inb(base)
    }

    fn isr(&mut self, base: u16) -> u8 {
        self.out(base, 0x0b);
        self.inb(base)
    }

    fn pulse(&self, irq: u32) {
        self.pic.line(irq).pulse();
    }

    fn intr(&self) -> bool {
        assert_eq!(self.cpu.level(0), self.pic.intr());
        self.pic.intr()
    }
}

#[test]
fn a_request_is_acknowledged_and_ended() {
    let mut p = Pic::new(0x01);
    assert!(!p.intr());
    p.pulse(4);
    assert!(p.intr());
    assert_eq!(p.irr(MASTER), 0x10);
    assert_eq!(p.pic.ack(), 0x24);
    assert!(!p.intr());
    assert_eq!((p.irr(MASTER), p.isr(MASTER)), (0, 0x10));
    p.out(MASTER, 0x20);
    assert_eq!(p.isr(MASTER), 0);
}

#[test]
fn the_slave_comes_through_ir2() {
    let mut p = Pic::new(0x01);
    p.pulse(12);
    assert!(p.intr());
    assert_eq!(p.irr(MASTER), 0x04);
    assert_eq!(p.pic.ack(), 0x2c);
    assert_eq!((p.isr(MASTER), p.isr(SLAVE)), (0x04, 0x10));
    // The slave counts as IR2: IR1 interrupts it, IR3 does not.
    p.pulse(3);
    assert!(!p.intr());
    p.pulse(1);
    assert_eq!(p.pic.ack(), 0x21);
    p.out(MASTER, 0x20);
    p.out(SLAVE, 0x20);
    p.out(MASTER, 0x20);
    assert_eq!(p.pic.ack(), 0x23);
    // IRQ 2 itself has no pin.
    p.out(MASTER, 0x20);
    p.pulse(2);
    assert!(!p.intr());
}

#[test]
fn what_waits_in_the_slave_comes_after_both_eois() {
    let mut p = Pic::new(0x01);
    p.pulse(10);
    p.pulse(9);
    assert_eq!(p.pic.ack(), 0x29);
    assert!(!p.intr());
    p.out(SLAVE, 0x20);
    assert!(!p.intr(), "IR2 is in service at the master");
    p.out(MASTER, 0x20);
    assert_eq!(p.pic.ack(), 0x2a);
}

#[test]
fn ir0_has_the_highest_priority_and_nests() {
    let mut p = Pic::new(0x01);
    p.pulse(5);
    assert_eq!(p.pic.ack(), 0x25);
    p.pulse(6);
    assert!(!p.intr());
    p.pulse(5);
    assert!(!p.intr(), "its own level is blocked too");
    p.pulse(0);
    assert_eq!(p.pic.ack(), 0x20);
    assert_eq!(p.isr(MASTER), 0x21);
    // Non-specific EOI ends the highest.
    p.out(MASTER, 0x20);
    assert_eq!(p.isr(MASTER), 0x20);
    p.out(MASTER, 0x20);
    assert_eq!(p.pic.ack(), 0x25);
    // Specific EOI names the level.
    p.out(MASTER, 0x65);
    assert_eq!(p.pic.ack(), 0x26);
}

#[test]
fn masked_requests_wait() {
    let mut p = Pic::new(0x01);
    p.out(MASTER + 1, 0x10);
    assert_eq!(p.inb(MASTER + 1), 0x10);
    p.pulse(4);
    assert!(!p.intr());
    assert_eq!(p.irr(MASTER), 0x10);
    p.out(MASTER + 1, 0);
    assert!(p.intr());
}

#[test]
fn icw1_clears_masks_requests_and_services() {
    let mut p = Pic::new(0x01);
    p.out(MASTER + 1, 0xf0);
    p.pulse(1);
    p.pic.ack();
    p.pulse(3);
    p.init(MASTER, &[0x11, 0x40, 0x04, 0x01]);
    assert_eq!((p.irr(MASTER), p.isr(MASTER), p.inb(MASTER + 1)), (0, 0, 0));
    p.pulse(7);
    assert_eq!(p.pic.ack(), 0x47);
}

#[test]
fn icw3_and_icw4_are_left_out_as_icw1_says() {
    let mut p = Pic::raw();
    // Single, no ICW4: after ICW2 the next byte is a mask.
    p.init(MASTER, &[0x12, 0x50]);
    p.out(MASTER + 1, 0xfe);
    assert_eq!(p.inb(MASTER + 1), 0xfe);
    // Cascaded, no ICW4.
    p.init(MASTER, &[0x10, 0x50, 0x04]);
    p.out(MASTER + 1, 0x7f);
    assert_eq!(p.inb(MASTER + 1), 0x7f);
    // ICW2 bits 2:0 are the level's.
    p.init(MASTER, &[0x13, 0x57, 0x01]);
    p.pulse(0);
    assert_eq!(p.pic.ack(), 0x50);
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let mut p = Pic::new(0x03);
    p.pulse(3);
    p.pulse(5);
    assert_eq!(p.pic.ack(), 0x23);
    assert_eq!(p.isr(MASTER), 0);
    assert_eq!(p.pic.ack(), 0x25);
    // Rotating in automatic EOI mode: the level served is the lowest next.
    p.out(MASTER, 0x80);
    p.pulse(3);
    assert_eq!(p.pic.ack(), 0x23);
    p.pulse(3);
    p.pulse(4);
    assert_eq!(p.pic.ack(), 0x24);
    assert_eq!(p.pic.ack(), 0x23);
    p.out(MASTER, 0x00);
    p.pulse(4);
    p.pulse(5);
    assert_eq!(p.pic.ack(), 0x24, "IR3 is still the lowest");
    p.pulse(4);
    assert_eq!(p.pic.ack(), 0x24, "and no rotation any more");
}

#[test]
fn priorities_rotate() {
    let mut p = Pic::new(0x01);
    // Set priority: IR4 lowest, so IR5 is highest.
    p.out(MASTER, 0xc4);
    p.pulse(4);
    p.pulse(5);
    assert_eq!(p.pic.ack(), 0x25);
    // Rotate on non-specific EOI: IR5 is the lowest now.
    p.out(MASTER, 0xa0);
    p.pulse(5);
    p.pulse(7);
    assert_eq!(p.pic.ack(), 0x27);
    // Rotate on specific EOI: IR7 lowest, the power-on order.
    p.out(MASTER, 0xe7);
    assert_eq!(p.pic.ack(), 0x24);
    assert_eq!(p.isr(MASTER), 0x10);
}

#[test]
fn special_mask_mode_lets_lower_levels_in() {
    let mut p = Pic::new(0x01);
    p.pulse(1);
    assert_eq!(p.pic.ack(), 0x21);
    p.pulse(6);
    assert!(!p.intr());
    p.out(MASTER, 0x68);
    assert!(!p.intr(), "only masked levels do not block");
    p.out(MASTER + 1, 0x02);
    assert_eq!(p.pic.ack(), 0x26);
    // A non-specific EOI passes over the masked level.
    p.out(MASTER, 0x20);
    assert_eq!(p.isr(MASTER), 0x02);
    p.out(MASTER, 0x20);
    assert_eq!(p.isr(MASTER), 0x02);
    p.out(MASTER, 0x61);
    assert_eq!(p.isr(MASTER), 0);
    p.out(MASTER, 0x48);
    p.out(MASTER + 1, 0);
    p.pulse(1);
    p.pic.ack();
    p.out(MASTER + 1, 0x02);
    p.pulse(6);
    assert!(!p.intr(), "normal mask mode again");
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    for (icw4, nests) in [(0x01, false), (0x11, true)] {
        let mut p = Pic::new(icw4);
        p.pulse(14);
        assert_eq!(p.pic.ack(), 0x2e);
        p.pulse(8);
        assert_eq!(p.intr(), nests);
        p.pulse(3);
        if nests {
            assert_eq!(p.pic.ack(), 0x28);
            assert_eq!(p.isr(SLAVE), 0x41);
        }
        assert!(!p.intr(), "IR3 is below the slave in any case");
    }
}

#[test]
fn the_poll_command_acknowledges() {
    let mut p = Pic::new(0x01);
    p.out(MASTER, 0x0c);
    assert_eq!(p.inb(MASTER), 0x00);
    p.pulse(3);
    p.out(MASTER, 0x0c);
    assert_eq!(p.inb(MASTER), 0x83);
    assert!(!p.intr());
    assert_eq!(p.isr(MASTER), 0x08);
    // The slave polled by itself lets go of IR2.
    p.out(MASTER, 0x20);
    p.pulse(9);
    assert!(p.intr());
    p.out(SLAVE, 0x0c);
    assert_eq!(p.inb(SLAVE), 0x81);
    assert!(!p.intr());
}

#[test]
fn polled_through_both_chips() {
    let mut p = Pic::raw();
    p.init(MASTER, &[0x11, 0x20, 0x04, 0x03]);
    p.init(SLAVE, &[0x11, 0x28, 0x02, 0x03]);
    p.pulse(9);
    p.pulse(10);
    for level in [0x81, 0x82] {
        assert!(p.intr());
        p.out(MASTER, 0x0c);
        assert_eq!(p.inb(MASTER), 0x82);
        p.out(SLAVE, 0x0c);
        assert_eq!(p.inb(SLAVE), level);
    }
    assert!(!p.intr());
}

#[test]
fn a_request_that_has_gone_is_spurious() {
    let mut p = Pic::new(0x01);
    p.pulse(3);
    p.out(MASTER + 1, 0x08);
    assert_eq!(p.pic.ack(), 0x27);
    assert_eq!(p.isr(MASTER), 0, "a spurious IRQ 7 is not in service");
    // The same through the slave: IR2 follows the slave's INT, so the master has no request left.
    p.out(0x4d1, 0x02);
    p.pic.line(9).set(true);
    p.pic.line(9).set(false);
    assert!(!p.intr());
    assert_eq!(p.pic.ack(), 0x27);
    assert_eq!(p.isr(MASTER), 0);
}

#[test]
fn level_triggered_pins_follow_their_line() {
    let mut p = Pic::new(0x01);
    p.out(0x4d0, 0xff);
    p.out(0x4d1, 0xff);
    assert_eq!((p.inb(0x4d0), p.inb(0x4d1)), (0xf8, 0xde), "IRQ 0, 1, 2, 8 and 13 stay edges");
    p.pic.line(11).set(true);
    assert_eq!(p.pic.ack(), 0x2b);
    assert!(!p.intr());
    p.out(SLAVE, 0x20);
    p.out(MASTER, 0x20);
    assert!(p.intr(), "still asserted");
    p.pic.line(11).set(false);
    assert!(!p.intr());
    // ELCR survives ICW1, and an asserted level is requested at once.
    p.pic.line(5).set(true);
    p.init(MASTER, &[0x11, 0x20, 0x04, 0x01]);
    assert!(p.intr());
    p.out(0x4d0, 0);
    assert!(!p.intr(), "as an edge it was not seen");
}

#[test]
fn an_asserted_edge_is_one_request() {
    let mut p = Pic::new(0x01);
    p.pic.line(6).set(true);
    p.pic.line(6).set(true);
    assert_eq!(p.pic.ack(), 0x26);
    p.out(MASTER, 0x20);
    assert!(!p.intr());
    p.pic.line(6).set(false);
    p.pic.line(6).set(true);
    assert!(p.intr());
}

#[test]
fn wide_accesses_are_bytes() {
    let mut p = Pic::new(0x01);
    let pio = p.pic.pio().unwrap();
    pio.write(0, 0, AccessSize::Word, 0xab0b);
    assert_eq!(pio.read(0, 0, AccessSize::Word), 0xab00);
    assert_eq!(pio.read(2, 0, AccessSize::Word), 0);
}

#[test]
fn reset_and_bad_states() {
    let mut p = Pic::new(0x01);
    let fresh = Pic::raw().pic.save();
    p.pulse(1);
    p.pic.reset();
    assert!(!p.intr());
    assert_eq!(p.pic.save(), fresh);
    // A lowest level of eight does not exist.
    let mut bytes = postcard::to_stdvec(&fresh).unwrap();
    let half = bytes.len() / 2;
    assert_eq!(bytes[half - 1], 7);
    bytes[half - 1] = 8;
    let bad = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(
        p.pic.restore(bad).unwrap_err().to_string(),
        "saved state of pic: lowest priority level is 8, at most 7"
    );
}
