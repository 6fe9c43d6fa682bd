//! ACPI fixed hardware, as ACPICA drives it.

use std::sync::Arc;

use trapline_chipset::acpi_pm::{GPE0, PM_TIMER_HZ, PM_TMR, PM1A_CNT, PM1A_EVT, SMI_CMD};
use trapline_chipset::{AcpiPm, AcpiPmConfig, SystemEvent};
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{AccessSize, Clock, Device, IrqLine, Poll, PortIo, SaveRestore};

use crate::{Events, Ports, through_a_file};

const SCI: u32 = 9;
const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const TMR: u32 = 1 << 0;
const PWRBTN: u32 = 1 << 8;
const SLPBTN: u32 = 1 << 9;
const WAK: u32 = 1 << 15;
const SCI_EN: u32 = 1;
const SLP_EN: u32 = 1 << 13;

struct Bench {
    pm: AcpiPm,
    clock: Arc<FakeClock>,
    irqs: Arc<Recorder>,
    events: Arc<Events>,
}

impl Bench {
    fn with(config: AcpiPmConfig) -> Self {
        let clock = Arc::new(FakeClock::default());
        let irqs = Arc::new(Recorder::default());
        let events = Arc::new(Events::default());
        let sci = IrqLine::new(irqs.clone(), SCI);
        let pm = AcpiPm::new(config, sci, clock.clone(), events.clone());
        Self { pm, clock, irqs, events }
    }

    /// In ACPI mode.
    fn enabled() -> Self {
        let mut bench = Self::with(AcpiPmConfig::default());
        bench.pm.outb(SMI_CMD, 0, 0xf1);
        bench
    }

    fn inw(&mut self, region: usize, offset: u16) -> u32 {
        self.pm.read(region, offset, AccessSize::Word)
    }

    fn outw(&mut self, region: usize, offset: u16, value: u32) {
        self.pm.write(region, offset, AccessSize::Word, value);
    }

    fn sci(&self) -> bool {
        self.irqs.level(SCI)
    }
}

#[test]
fn acpi_mode_is_entered_and_left_by_the_smi_command_port() {
    let mut b = Bench::with(AcpiPmConfig::default());
    assert_eq!(b.inw(PM1A_CNT, 0) & SCI_EN, 0);
    b.pm.outb(SMI_CMD, 0, 0xf1);
    assert_eq!(b.inw(PM1A_CNT, 0) & SCI_EN, SCI_EN);
    assert!(b.pm.acpi_enabled());
    assert_eq!(b.pm.inb(SMI_CMD, 0), 0xf1);
    b.pm.outb(SMI_CMD, 0, 0xf0);
    assert_eq!(b.inw(PM1A_CNT, 0) & SCI_EN, 0);
    assert_eq!(b.events.take(), []);
    b.pm.outb(SMI_CMD, 1, 0x77);
    b.pm.outb(SMI_CMD, 0, 0x01);
    assert_eq!(b.events.take(), [SystemEvent::SoftwareSmi(1)]);
    assert_eq!(b.pm.inb(SMI_CMD, 1), 0x77);
}

#[test]
fn always_enabled_stays_enabled() {
    let mut b = Bench::with(AcpiPmConfig { always_enabled: true, ..AcpiPmConfig::default() });
    assert_eq!(b.inw(PM1A_CNT, 0), SCI_EN);
    b.outw(PM1A_CNT, 0, 0);
    b.pm.outb(SMI_CMD, 0, 0xf0);
    b.pm.reset();
    assert_eq!(b.inw(PM1A_CNT, 0), SCI_EN);
}

#[test]
fn the_power_button_holds_the_sci_until_its_status_is_cleared() {
    let mut b = Bench::enabled();
    b.outw(PM1A_EVT, ENABLE, PWRBTN);
    assert!(!b.sci());
    b.pm.press_power_button();
    assert!(b.sci());
    assert_eq!(b.inw(PM1A_EVT, STATUS), PWRBTN);
    assert!(b.sci(), "reading clears nothing");
    b.outw(PM1A_EVT, STATUS, !PWRBTN & 0xffff);
    assert!(b.sci(), "nor do zeros");
    b.outw(PM1A_EVT, STATUS, PWRBTN);
    assert!(!b.sci());
    assert_eq!(b.inw(PM1A_EVT, STATUS), 0);
}

#[test]
fn events_wait_for_their_enable_and_for_acpi_mode() {
    let mut b = Bench::with(AcpiPmConfig::default());
    b.pm.press_sleep_button();
    b.outw(PM1A_EVT, ENABLE, SLPBTN);
    assert!(!b.sci());
    b.pm.outb(SMI_CMD, 0, 0xf1);
    assert!(b.sci());
    b.outw(PM1A_EVT, ENABLE, 0);
    assert!(!b.sci());
}

#[test]
fn only_events_that_exist_can_be_enabled() {
    let mut b = Bench::enabled();
    b.outw(PM1A_EVT, ENABLE, 0xffff);
    assert_eq!(b.inw(PM1A_EVT, ENABLE), 0x0721);
    // A dword reads status and enable together; bytes work as well.
    b.pm.press_power_button();
    assert_eq!(b.pm.read(PM1A_EVT, 0, AccessSize::Dword), 0x0721 << 16 | PWRBTN);
    b.pm.outb(PM1A_EVT, 1, 0x01);
    assert_eq!(b.inw(PM1A_EVT, STATUS), 0);
    b.pm.outb(PM1A_EVT, 3, 0x00);
    assert_eq!(b.inw(PM1A_EVT, ENABLE), 0x0021);
}

#[test]
fn s5_powers_off_and_other_states_sleep() {
    let mut b = Bench::with(AcpiPmConfig { slp_typ_s5: 5, ..AcpiPmConfig::default() });
    // ACPICA writes SLP_TYP first, then both.
    b.outw(PM1A_CNT, 0, 5 << 10 | SCI_EN);
    assert_eq!(b.events.take(), []);
    b.outw(PM1A_CNT, 0, 5 << 10 | SLP_EN | SCI_EN);
    assert_eq!(b.events.take(), [SystemEvent::PowerOff]);
    assert_eq!(b.inw(PM1A_CNT, 0), 5 << 10 | SCI_EN, "SLP_EN reads as zero");
    // In bytes, too.
    b.pm.outb(PM1A_CNT, 1, 0x20 | 1 << 2);
    assert_eq!(b.events.take(), [SystemEvent::Sleep(1)]);
    b.pm.wake();
    assert_eq!(b.inw(PM1A_EVT, STATUS), WAK);
    b.outw(PM1A_EVT, STATUS, WAK);
    assert_eq!(b.inw(PM1A_EVT, STATUS), 0);
}

#[test]
fn general_purpose_events() {
    let mut b = Bench::enabled();
    b.outw(GPE0, ENABLE, 1 << 3);
    b.pm.raise_gpe(9);
    assert!(!b.sci());
    b.pm.raise_gpe(3);
    assert!(b.sci());
    b.pm.raise_gpe(16);
    b.pm.raise_gpe(255);
    assert_eq!(b.inw(GPE0, STATUS), 1 << 3 | 1 << 9);
    b.pm.outb(GPE0, 0, 0xff);
    assert!(!b.sci());
    assert_eq!(b.inw(GPE0, STATUS), 1 << 9);
}

#[test]
fn the_timer_counts_at_its_rate_and_wraps() {
    for (timer_32bit, bits) in [(false, 24), (true, 32)] {
        let mut b = Bench::with(AcpiPmConfig { timer_32bit, ..AcpiPmConfig::default() });
        assert_eq!(b.pm.read(PM_TMR, 0, AccessSize::Dword), 0);
        b.clock.advance(1_000_000_000);
        assert_eq!(b.pm.read(PM_TMR, 0, AccessSize::Dword), PM_TIMER_HZ as u32);
        assert_eq!(b.pm.inb(PM_TMR, 1), (PM_TIMER_HZ >> 8) as u8);
        b.pm.write(PM_TMR, 0, AccessSize::Dword, 0);
        b.clock.advance(9_999_000_000_000);
        let ticks = PM_TIMER_HZ * 10_000;
        assert_eq!(u64::from(b.pm.read(PM_TMR, 0, AccessSize::Dword)), ticks % (1 << bits));
    }
}

#[test]
fn the_timer_interrupts_when_its_high_bit_changes() {
    for (timer_32bit, half) in [(false, 1u64 << 23), (true, 1 << 31)] {
        let mut b = Bench::with(AcpiPmConfig { timer_32bit, ..AcpiPmConfig::default() });
        assert_eq!(b.pm.deadline(), None);
        b.pm.outb(SMI_CMD, 0, 0xf1);
        b.outw(PM1A_EVT, ENABLE, TMR);
        for n in 1..=3u64 {
            let due = b.pm.deadline().unwrap();
            assert_eq!(due, (n * half * 1_000_000_000).div_ceil(PM_TIMER_HZ));
            b.clock.advance(due - b.clock.now() - 1);
            Poll::poll(&mut b.pm, b.clock.now());
            assert!(!b.sci(), "not a nanosecond early");
            b.clock.advance(1);
            Poll::poll(&mut b.pm, b.clock.now());
            assert!(b.sci());
            assert_eq!(b.pm.deadline(), None, "until the status is cleared");
            assert_eq!(b.inw(PM1A_EVT, STATUS), TMR);
            b.outw(PM1A_EVT, STATUS, TMR);
            assert!(!b.sci());
        }
    }
}

#[test]
fn a_carry_shows_without_polling() {
    let mut b = Bench::enabled();
    b.clock.advance(3_000_000_000);
    assert_eq!(b.inw(PM1A_EVT, STATUS), TMR);
    b.clock.advance(3_000_000_000);
    b.outw(PM1A_EVT, STATUS, TMR);
    assert_eq!(b.inw(PM1A_EVT, STATUS), 0, "the carry came before the write that cleared it");
}

#[test]
fn a_saved_block_goes_on_elsewhere() {
    let mut b = Bench::enabled();
    b.clock.advance(1_234_567_890);
    b.outw(PM1A_EVT, ENABLE, TMR | PWRBTN);
    b.pm.press_power_button();
    let mut other = Bench::with(AcpiPmConfig::default());
    other.clock.advance(77);
    other.pm.restore(through_a_file(&b.pm.save())).unwrap();
    assert!(other.sci());
    for _ in 0..3 {
        b.clock.advance(1_000_000_001);
        other.clock.advance(1_000_000_001);
        let at = |b: &Bench| b.pm.deadline().map(|t| t.saturating_sub(b.clock.now()));
        assert_eq!(at(&other), at(&b));
        for (region, size) in
            [(PM_TMR, AccessSize::Dword), (PM1A_EVT, AccessSize::Dword), (PM1A_CNT, AccessSize::Word)]
        {
            assert_eq!(other.pm.read(region, 0, size), b.pm.read(region, 0, size));
        }
    }
    b.pm.reset();
    assert!(!b.sci());
    assert_eq!(b.inw(PM1A_EVT, ENABLE), 0);
}

const RTC: u32 = 1 << 10;

#[test]
fn buttons_and_enabled_events_end_a_sleep() {
    let mut b = Bench::enabled();
    assert!(!b.pm.wakes());
    b.pm.rtc_alarm();
    assert!(!b.pm.wakes());
    b.outw(PM1A_EVT, ENABLE, RTC);
    assert!(b.pm.wakes() && b.sci());
    b.outw(PM1A_EVT, STATUS, RTC);
    assert!(!b.pm.wakes() && !b.sci());
    // A button does, whatever is enabled.
    b.pm.press_sleep_button();
    assert!(b.pm.wakes() && !b.sci());
    b.outw(PM1A_EVT, STATUS, SLPBTN);
    b.pm.raise_gpe(3);
    assert!(!b.pm.wakes());
    b.outw(GPE0, ENABLE, 1 << 3);
    assert!(b.pm.wakes());
}

#[test]
fn after_suspend_to_ram_only_what_woke_the_machine_is_left() {
    let mut b = Bench::enabled();
    b.outw(PM1A_EVT, ENABLE, RTC | PWRBTN);
    b.outw(GPE0, ENABLE, 1);
    b.pm.raise_gpe(0);
    b.pm.rtc_alarm();
    b.pm.reset_by_wake();
    assert_eq!(b.inw(PM1A_EVT, STATUS), WAK | RTC);
    assert_eq!(b.inw(PM1A_EVT, ENABLE), 0);
    assert_eq!((b.inw(GPE0, STATUS), b.inw(GPE0, ENABLE)), (0, 0));
    assert!(!b.pm.acpi_enabled() && !b.sci());
}
