//! The MC146818, as firmware and Linux's rtc-cmos drive it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use trapline_chipset::Rtc;
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{Clock, Device, IrqLine, Poll, SaveRestore};

use crate::{Ports, through_a_file};

const IRQ: u32 = 8;
const SECOND: u64 = 1_000_000_000;
/// 2026-11-23 03:26:21 UTC, a Monday.
const START: u64 = 1_795_392_000 + 3 * 3600 + 26 * 60 + 21;

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const UIP: u8 = 0x80;
const SET: u8 = 0x80;
const PIE: u8 = 0x40;
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
const IRQF: u8 = 0x80;
const PF: u8 = 0x40;
const AF: u8 = 0x20;
const UF: u8 = 0x10;
const ANY: u8 = 0xc0;

struct Bench {
    rtc: Rtc,
    clock: Arc<FakeClock>,
    pic: Arc<Recorder>,
}

impl Bench {
    fn at(since_1970: Duration) -> Self {
        let clock = Arc::new(FakeClock::default());
        let pic = Arc::new(Recorder::default());
        let rtc = Rtc::new(IrqLine::new(pic.clone(), IRQ), clock.clone(), since_1970);
        Self { rtc, clock, pic }
    }

    fn new() -> Self {
        Self::at(Duration::from_secs(START))
    }

    fn get(&mut self, index: u8) -> u8 {
        self.rtc.outb(0, 0, index);
        self.rtc.inb(0, 1)
    }

    fn set(&mut self, index: u8, value: u8) {
        self.rtc.outb(0, 0, index);
        self.rtc.outb(0, 1, value);
    }

    /// Century, year, month, day, weekday, hours, minutes, seconds: as they are in the registers.
    fn time(&mut self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.get(index))
    }

    fn set_time(&mut self, time: [u8; 8]) {
        for (index, value) in [0x32, 9, 8, 7, 6, 4, 2, 0].into_iter().zip(time) {
            self.set(index, value);
        }
    }

    fn pass(&mut self, by: u64) {
        self.clock.advance(by);
        Poll::poll(&mut self.rtc, self.clock.now());
    }

    fn irq(&self) -> bool {
        self.pic.level(IRQ)
    }

    /// Goes to the next deadline, checking that it is not early, and says how long it took.
    fn next_interrupt(&mut self) -> u64 {
        let wait = self.rtc.deadline().unwrap() - self.clock.now();
        self.pass(wait - 1);
        assert!(!self.irq(), "interrupt before its deadline");
        self.pass(1);
        assert!(self.irq(), "no interrupt at its deadline");
        wait
    }
}

#[test]
fn starts_at_the_time_given_in_bcd_and_24_hours() {
    let mut b = Bench::new();
    assert_eq!(b.get(B), HOURS_24);
    assert_eq!(b.get(A) & 0x7f, 0x26);
    assert_eq!(b.get(D), 0x80);
    assert_eq!(b.time(), [0x20, 0x26, 0x11, 0x23, 2, 0x03, 0x26, 0x21]);
    b.pass(38 * SECOND);
    assert_eq!(b.time()[5..], [0x03, 0x26, 0x59]);
    b.pass(SECOND);
    assert_eq!(b.time()[5..], [0x03, 0x27, 0x00]);
}

#[test]
fn the_host_s_part_of_a_second_counts() {
    let mut b = Bench::at(Duration::new(START, 600_000_000));
    b.pass(399_999_999);
    assert_eq!(b.time()[7], 0x21);
    b.pass(1);
    assert_eq!(b.time()[7], 0x22);
}

#[test]
fn formats() {
    let mut b = Bench::new();
    b.pass(12 * 3600 * SECOND);
    for (format, hours, minutes) in
        [(HOURS_24, 0x15, 0x26), (HOURS_24 | BINARY, 15, 26), (BINARY, 0x80 | 3, 26), (0, 0x80 | 0x03, 0x26)]
    {
        b.set(B, format);
        assert_eq!(b.get(4), hours, "register B {format:#x}");
        assert_eq!(b.get(2), minutes);
    }
    // Midnight and noon in 12-hour mode, both ways.
    for (hour, twelve) in [(0x00, 0x12), (0x01, 0x01), (0x11, 0x11), (0x12, 0x92), (0x13, 0x81), (0x23, 0x91)]
    {
        b.set(B, HOURS_24);
        b.set(4, hour);
        b.set(B, 0);
        assert_eq!(b.get(4), twelve);
        b.set(4, twelve);
        b.set(B, HOURS_24);
        assert_eq!(b.get(4), hour);
    }
}

/// What Linux's mc146818_set_time does: SET, divider reset, registers, then both back.
#[test]
fn linux_sets_the_time() {
    let mut b = Bench::new();
    b.pass(123_456_789);
    let (control, rate) = (b.get(B), b.get(A));
    b.set(B, control | SET);
    b.set(A, rate | 0x70);
    b.set_time([0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]);
    b.pass(5 * SECOND);
    assert_eq!(b.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58], "time stands still");
    b.set(B, control);
    b.set(A, rate);
    // The first second takes half of one.
    b.pass(SECOND / 2 - 1);
    assert_eq!(b.time()[7], 0x58);
    b.pass(1);
    assert_eq!(b.time()[7], 0x59);
    b.pass(SECOND);
    assert_eq!(b.time(), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]);
}

#[test]
fn set_keeps_the_divider_going() {
    let mut b = Bench::new();
    b.pass(300_000_000);
    b.set(B, HOURS_24 | SET);
    b.pass(10 * SECOND);
    b.set(0, 0x30);
    b.set(B, HOURS_24);
    b.pass(699_999_999);
    assert_eq!(b.get(0), 0x30);
    b.pass(1);
    assert_eq!(b.get(0), 0x31);
}

#[test]
fn a_running_clock_can_be_set_a_register_at_a_time() {
    let mut b = Bench::new();
    b.set(7, 0x28);
    b.set(8, 0x02);
    b.set(9, 0x24);
    b.set(4, 0x23);
    b.set(2, 0x59);
    b.set(0, 0x59);
    b.pass(SECOND);
    assert_eq!(b.time()[..4], [0x20, 0x24, 0x02, 0x29], "2024 is a leap year");
    // The weekday is the guest's own affair, and goes on from what it says.
    b.set(6, 7);
    b.pass(24 * 3600 * SECOND);
    assert_eq!(b.get(6), 1);
}

#[test]
fn nonsense_is_brought_into_range() {
    let mut b = Bench::new();
    b.set(B, HOURS_24 | SET);
    b.set_time([0xff; 8]);
    assert_eq!(b.time(), [0xff; 8]);
    b.set(B, HOURS_24);
    assert_eq!(b.time(), [0x99, 0x99, 0x12, 0x31, 7, 0x23, 0x59, 0x59]);
    b.pass(1000 * SECOND); // the end of the calendar
    assert_eq!(b.time()[..4], [0x99, 0x99, 0x12, 0x31]);
}

#[test]
fn update_in_progress_before_each_second() {
    let mut b = Bench::new();
    b.pass(SECOND - 2_228_001);
    assert_eq!(b.get(A) & UIP, 0);
    b.pass(1);
    assert_eq!(b.get(A) & UIP, UIP);
    b.set(A, 0x26);
    assert_eq!(b.get(A) & UIP, UIP, "it cannot be written");
    b.set(B, HOURS_24 | SET);
    assert_eq!(b.get(A) & UIP, 0, "SET stops updates");
    b.set(B, HOURS_24);
    assert_eq!(b.get(A) & UIP, UIP);
    b.pass(2_228_000);
    assert_eq!(b.get(A) & UIP, 0);
    assert_eq!(b.get(0), 0x22);
}

#[test]
fn update_ended_interrupt() {
    let mut b = Bench::new();
    assert_eq!(b.rtc.deadline(), None);
    b.set(A, 0x20); // no periodic flag
    b.set(B, HOURS_24 | UIE);
    b.pass(250_000_000);
    assert_eq!(b.next_interrupt(), 750_000_000);
    assert_eq!(b.rtc.deadline(), None, "until register C is read");
    b.pass(5 * SECOND);
    assert_eq!(b.get(C), IRQF | UF);
    assert!(!b.irq());
    assert_eq!(b.get(C), 0, "reading clears");
    assert_eq!(b.next_interrupt(), SECOND);
    b.get(C);
    b.set(B, HOURS_24 | UIE | SET);
    assert_eq!(b.get(B), HOURS_24 | SET, "SET clears UIE");
    b.pass(5 * SECOND);
    assert_eq!(b.get(C) & UF, 0);
}

#[test]
fn periodic_rates() {
    for rate in 0..16u8 {
        let mut b = Bench::new();
        b.set(A, 0x20 | rate);
        b.set(B, HOURS_24 | PIE);
        // Datasheet table 5, for a 32.768 kHz time base.
        let hertz = match rate {
            0 => {
                assert_eq!(b.rtc.deadline(), None);
                b.pass(10 * SECOND);
                assert_eq!(b.get(C) & (IRQF | PF), 0);
                continue;
            }
            1 => 256,
            2 => 128,
            _ => 65536 >> rate,
        };
        let start = b.clock.now();
        for n in 1..=2 * hertz {
            b.next_interrupt();
            assert_eq!(b.clock.now() - start, (n * SECOND).div_ceil(hertz), "rate {rate}, interrupt {n}");
            assert_eq!(b.get(C) & !UF, IRQF | PF);
        }
        assert_eq!(b.pic.rising_edges(IRQ) as u64, 2 * hertz);
    }
}

#[test]
fn periods_missed_merge() {
    let mut b = Bench::new();
    b.set(B, HOURS_24 | PIE);
    b.pass(SECOND / 10);
    assert_eq!(b.pic.rising_edges(IRQ), 1);
    assert_eq!(b.get(C), IRQF | PF);
    assert_eq!(b.get(C), 0);
}

#[test]
fn flags_rise_without_their_enables() {
    let mut b = Bench::new();
    [1, 3, 5].into_iter().for_each(|alarm| b.set(alarm, ANY));
    b.pass(SECOND);
    assert!(!b.irq());
    assert_eq!(b.get(C), PF | AF | UF, "and do not request an interrupt");
    b.pass(SECOND);
    b.set(B, HOURS_24 | AIE);
    assert!(b.irq(), "enabling an interrupt whose flag is up raises it");
}

#[test]
fn alarms() {
    // Now it is 03:26:21.
    for (format, alarm, wait) in [
        (HOURS_24, [0x22, 0x26, 0x03], 1),
        (HOURS_24, [0x21, 0x26, 0x03], 24 * 3600),
        (HOURS_24, [0x00, 0x30, 0x04], 3600 + 3 * 60 + 39),
        (HOURS_24, [0x15, ANY, ANY], 54),
        (HOURS_24, [ANY, ANY, 0xff], 1),
        (HOURS_24 | BINARY, [0, 30, 4], 3600 + 3 * 60 + 39),
        (0, [0x00, 0x00, 0x81], 9 * 3600 + 33 * 60 + 39),
    ] {
        let mut b = Bench::new();
        b.set(B, format | AIE);
        for (index, value) in [1, 3, 5].into_iter().zip(alarm) {
            b.set(index, value);
        }
        assert_eq!(b.next_interrupt(), wait * SECOND, "alarm {alarm:x?}");
        assert_eq!(b.get(C) & (IRQF | AF), IRQF | AF);
    }
}

#[test]
fn an_alarm_that_is_no_time_never_comes() {
    let mut b = Bench::new();
    b.set(1, 0x60);
    b.set(B, HOURS_24 | AIE);
    assert_eq!(b.rtc.deadline(), None);
    b.pass(200_000 * SECOND);
    assert_eq!(b.get(C) & AF, 0);
}

#[test]
fn an_alarm_within_a_long_sleep_is_not_missed() {
    let mut b = Bench::new();
    [(1, 0x00), (3, 0x00), (5, 0x12)].into_iter().for_each(|(index, value)| b.set(index, value));
    b.pass(3 * 24 * 3600 * SECOND);
    assert_eq!(b.get(C) & AF, AF);
}

#[test]
fn memory_and_index() {
    let mut b = Bench::new();
    for index in (0x0e..0x80).filter(|&index| index != 0x32) {
        b.set(index, index ^ 0x5a);
    }
    for index in (0x0e..0x80).filter(|&index| index != 0x32) {
        assert_eq!(b.get(index), index ^ 0x5a);
        assert_eq!(b.rtc.cmos(index), index ^ 0x5a);
    }
    assert!(!b.rtc.nmi_masked());
    assert_eq!(b.get(0x80 | 0x10), 0x10 ^ 0x5a);
    assert!(b.rtc.nmi_masked());
    assert_eq!(b.rtc.inb(0, 0), 0xff, "the index is for writing");
    b.set(C, 0xff);
    b.set(D, 0x00);
    assert_eq!((b.get(C), b.get(D)), (0, 0x80), "C and D are for reading");
}

#[test]
fn memory_sizes() {
    let mut b = Bench::new();
    b.rtc.set_memory_size(128 << 20, 0);
    let mut word = |low: u8, high: u8| u16::from(b.get(low)) | u16::from(b.get(high)) << 8;
    assert_eq!(word(0x15, 0x16), 640);
    assert_eq!(word(0x17, 0x18), 0xffff, "127 MiB do not fit");
    assert_eq!(word(0x30, 0x31), 0xffff);
    assert_eq!(word(0x34, 0x35), 112 * 16);
    assert_eq!(word(0x5b, 0x5c), 0);
    b.rtc.set_memory_size(3 << 30, 5 << 30);
    assert_eq!((b.get(0x5b), b.get(0x5c), b.get(0x5d)), (0x00, 0x40, 0x01));
    assert_eq!((b.get(0x34), b.get(0x35)), (0x00, 0xbf));
    b.rtc.set_memory_size(8 << 20, u64::MAX);
    assert_eq!((b.get(0x17), b.get(0x18)), (0x00, 0x1c));
    assert_eq!((b.get(0x5b), b.get(0x5c), b.get(0x5d)), (0xff, 0xff, 0xff));
}

#[test]
fn what_the_firmware_of_a_pc_reads() {
    use trapline_chipset::rtc::{BootClass, DiskTranslation as To};
    let mut b = Bench::new();
    for (count, field) in [(1, 0), (4, 3), (256, 255), (1000, 255)] {
        b.rtc.set_processors(count);
        assert_eq!(b.get(0x5f), field);
    }
    // CD first, then disk, then network.
    b.rtc.set_boot_order(&[BootClass::Cdrom, BootClass::Disk, BootClass::Network]);
    assert_eq!((b.get(0x3d), b.get(0x38)), (0x23, 0x40));
    b.rtc.set_boot_order(&[BootClass::Floppy]);
    assert_eq!((b.get(0x3d), b.get(0x38)), (0x01, 0x00));
    b.rtc.set_disk_translations([To::Lba, To::None, To::Large, To::Lba]);
    assert_eq!(b.get(0x39), 0b01_10_00_01);
}

#[test]
fn reset_spares_what_the_battery_keeps() {
    let mut b = Bench::new();
    b.set(0x40, 0x77);
    b.set(B, HOURS_24 | UIE | PIE | AIE | 0x08);
    b.pass(SECOND);
    assert!(b.irq());
    b.rtc.reset();
    assert!(!b.irq());
    assert_eq!((b.get(B), b.get(C)), (HOURS_24, 0));
    assert_eq!((b.get(0x40), b.get(0)), (0x77, 0x22));
}

#[test]
fn a_saved_clock_goes_on_elsewhere() {
    let mut b = Bench::new();
    b.set(B, HOURS_24 | PIE | UIE);
    b.set(A, 0x2f);
    b.pass(1_700_000_000);
    b.get(C);
    let mut other = Bench::at(Duration::ZERO);
    other.clock.advance(31_415);
    other.rtc.restore(through_a_file(&b.rtc.save())).unwrap();
    for _ in 0..4 {
        assert_eq!(other.next_interrupt(), b.next_interrupt());
        assert_eq!(other.get(C), b.get(C));
        assert_eq!(other.time(), b.time());
    }
    // The host makes up for the time the machine was away.
    other.rtc.set_time(Duration::from_secs(951_782_400));
    assert_eq!(other.time(), [0x20, 0x00, 0x02, 0x29, 3, 0, 0, 0]);
    assert_eq!(other.next_interrupt(), SECOND / 2);
}

#[test]
fn impossible_states_are_refused() {
    let mut b = Bench::new();
    let good = postcard::to_stdvec(&b.rtc.save()).unwrap();
    let mut short = good.clone();
    short[0] = 0x7f; // a varint of 128 is 80 01
    short.remove(1);
    short.remove(1);
    let error = b.rtc.restore(postcard::from_bytes(&short).unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("saved state of rtc: memory is not 128 bytes"), "{error}");
    b.rtc.restore(postcard::from_bytes(&good).unwrap()).unwrap();
}

#[test]
fn the_alarm_hook_hears_alarms_that_interrupt() {
    let mut b = Bench::new();
    let heard = Arc::new(AtomicU32::new(0));
    let counter = heard.clone();
    b.rtc.set_alarm_hook(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    [1, 3, 5].into_iter().for_each(|alarm| b.set(alarm, ANY));
    b.clock.advance(SECOND);
    Poll::poll(&mut b.rtc, b.clock.now());
    assert_eq!(heard.load(Ordering::Relaxed), 0);
    b.set(B, HOURS_24 | AIE);
    b.clock.advance(SECOND);
    Poll::poll(&mut b.rtc, b.clock.now());
    assert_eq!(heard.load(Ordering::Relaxed), 1);
}
