//! The MC146818 real-time clock and its CMOS memory (Motorola MC146818 datasheet; ports as in the IBM
//! PC AT Technical Reference).
//!
//! One region of two ports: 0 is the index (write only; bit 7 masks the NMI), 1 the data.
//!
//! | index | register |
//! |---|---|
//! | 0x00, 0x02, 0x04 | seconds, minutes, hours |
//! | 0x01, 0x03, 0x05 | alarm: seconds, minutes, hours; 0xc0 to 0xff match any |
//! | 0x06 to 0x09 | day of the week (Sunday is 1), day, month, year |
//! | 0x0a to 0x0d | registers A to D |
//! | 0x0e to 0x7f | memory, kept over resets; 0x32 is the century, which the clock advances |
//!
//! Time starts at the moment given to [`Rtc::new`] and goes on with the machine's clock. The time base
//! is 32.768 kHz: the divider runs while DV is 010 and is held otherwise; the first update comes half a
//! second after it is released. Update in progress shows for the 2228 µs (244 before the update cycle,
//! 1984 of it) before a new second. The time can be set at any moment, but a date that does not exist
//! is brought into range as soon as the clock runs.
//!
//! The interrupt is the IRQF bit of register C as a level; reading register C clears it. Flags are
//! worked out when a register is read, and timers are asked for only while an enabled interrupt can
//! happen, so that an idle clock costs nothing. Periodic interrupts that a guest is too slow to
//! acknowledge merge into one, as on the chip.
//!
//! Left out: the square wave output, daylight saving (the DSE bit is kept, without effect) and loss of
//! battery power (register D always says valid).

use std::sync::Arc;
use std::time::Duration;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{Clock, Device, IrqLine, MmioIo, Nanos, Poll, PortIo, RestoreError, SaveRestore};

use crate::bytewise::{byte_ports, check};
use crate::stopwatch::{LONGEST, Stopwatch};

mod calendar;
mod pc;

use calendar::{DAY, Date};
pub use pc::{BootClass, DiskTranslation};

/// Bytes of CMOS memory, clock registers included.
pub const CMOS_SIZE: usize = 128;

const SECOND: Nanos = 1_000_000_000;
/// How long before a new second an update shows as in progress.
const UPDATE: Nanos = 244_000 + 1_984_000;
/// Frequency of the time base.
const HZ: u64 = 32_768;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: update in progress.
const UIP: u8 = 1 << 7;
/// Register A at power-on: divider running, 1024 Hz.
const DEFAULT_A: u8 = DV_RUN << 4 | 0b0110;
const DV_RUN: u8 = 0b010;
/// Register D: valid RAM and time.
const VRT: u8 = 1 << 7;
/// Hours register in 12-hour mode.
const PM: u8 = 1 << 7;

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct B: u8 {
        const DSE = 1 << 0;
        const HOURS_24 = 1 << 1;
        const BINARY = 1 << 2;
        const SQWE = 1 << 3;
        const UIE = 1 << 4;
        const AIE = 1 << 5;
        const PIE = 1 << 6;
        const SET = 1 << 7;
    }

    /// Register C; a flag and its enable in register B are at the same place.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct C: u8 {
        const UPDATE = 1 << 4;
        const ALARM = 1 << 5;
        const PERIODIC = 1 << 6;
        const IRQF = 1 << 7;
    }
}

/// A real-time clock.
pub struct Rtc {
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    /// Memory; the clock's own registers are in it while time stands still.
    cmos: [u8; CMOS_SIZE],
    index: u8,
    nmi_masked: bool,
    a: u8,
    b: B,
    /// Flags, without IRQF.
    c: C,
    /// The divider chain; while it is held, what it will start from.
    divider: Stopwatch,
    /// The time in seconds since 1970 when the divider shows zero, while time runs.
    epoch: i64,
    /// What the guest's day of the week is ahead of the calendar's, 0 to 6.
    weekday_lead: u8,
    /// Whole seconds and periods of the divider that the flags know of.
    seen_seconds: u64,
    seen_periods: u64,
    irq_level: bool,
    /// Called at each alarm that interrupts.
    alarm_hook: Option<Box<dyn Fn() + Send>>,
}

impl Rtc {
    /// A clock that stands at `since_1970` now (UTC for most guests) and interrupts on `irq`.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, since_1970: Duration) -> Self {
        let divider = Stopwatch::showing(since_1970.subsec_nanos().into(), clock.now());
        let mut rtc = Self {
            irq,
            clock,
            cmos: [0; CMOS_SIZE],
            index: 0,
            nmi_masked: false,
            a: DEFAULT_A,
            b: B::HOURS_24,
            c: C::empty(),
            divider,
            epoch: i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX).min(calendar::LAST_SECOND),
            weekday_lead: 0,
            seen_seconds: 0,
            seen_periods: 0,
            irq_level: false,
            alarm_hook: None,
        };
        rtc.forget_periods();
        rtc
    }

    /// Memory byte `index` (modulo 128), as the guest would read it, but without side effects.
    pub fn cmos(&self, index: u8) -> u8 {
        let index = index % CMOS_SIZE as u8;
        let now = self.clock.now();
        match index {
            REG_A => self.a | if self.update_in_progress(now) { UIP } else { 0 },
            REG_B => self.b.bits(),
            REG_C => self.register_c().bits(),
            REG_D => VRT,
            _ => match Field::at(index) {
                Some(field) if self.time_runs() => self.encode(field, &self.date(now)),
                _ => self.cmos.get(usize::from(index)).copied().unwrap_or(0),
            },
        }
    }

    /// Sets a memory byte, for the board: boot order, disk types, shutdown code. Does nothing below
    /// 0x0e, where the clock is, and from 0x80 up.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        if index > REG_D {
            self.write_register(index, value);
        }
    }

    /// Has `hook` called at each alarm that interrupts, with the clock locked: an ACPI board notes the event by
    /// [`AcpiPm::rtc_alarm`](crate::AcpiPm::rtc_alarm).
    pub fn set_alarm_hook(&mut self, hook: Box<dyn Fn() + Send>) {
        self.alarm_hook = Some(hook);
    }

    /// Whether the guest masks the NMI, by bit 7 of the index port.
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// Sets the time, as after a restore, when the machine has stood still for a while. Does nothing
    /// while the guest itself is setting it.
    pub fn set_time(&mut self, since_1970: Duration) {
        if self.time_runs() {
            let now = self.clock.now();
            self.catch_up(now);
            self.divider = Stopwatch::showing(since_1970.subsec_nanos().into(), now);
            self.epoch = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX).min(calendar::LAST_SECOND);
            self.seen_seconds = 0;
            self.forget_periods();
        }
    }

    fn divider_runs(&self) -> bool {
        self.a >> 4 & 7 == DV_RUN
    }

    fn time_runs(&self) -> bool {
        self.divider_runs() && !self.b.contains(B::SET)
    }

    fn unix_time(&self, now: Nanos) -> i64 {
        let elapsed = (self.divider.elapsed(now) / SECOND) as i64; // below 2^35
        self.epoch.saturating_add(elapsed).min(calendar::LAST_SECOND)
    }

    fn date(&self, now: Nanos) -> Date {
        Date::from_unix(self.unix_time(now), self.weekday_lead)
    }

    fn update_in_progress(&self, now: Nanos) -> bool {
        self.time_runs() && self.divider.elapsed(now) % SECOND >= SECOND - UPDATE
    }

    /// Time base ticks between periodic interrupts, while there are any (datasheet table 5).
    fn period(&self) -> Option<u64> {
        match self.a & 0xf {
            _ if !self.divider_runs() => None,
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn periods(&self, now: Nanos) -> u64 {
        let elapsed = self.divider.elapsed(now);
        let ticks = elapsed / SECOND * HZ + elapsed % SECOND * HZ / SECOND;
        self.period().map_or(0, |period| ticks / period)
    }

    /// Starts counting periods from now.
    fn forget_periods(&mut self) {
        self.seen_periods = self.periods(self.clock.now());
    }

    /// Sets the flags of everything that happened up to `now`.
    fn catch_up(&mut self, now: Nanos) {
        if !self.divider_runs() {
            return;
        }
        let periods = self.periods(now);
        if periods != self.seen_periods {
            self.seen_periods = periods;
            self.c |= C::PERIODIC;
        }
        let seconds = self.divider.elapsed(now) / SECOND;
        let passed = seconds.saturating_sub(self.seen_seconds);
        if passed > 0 && !self.b.contains(B::SET) {
            self.c |= C::UPDATE;
            if self.seconds_to_alarm().is_some_and(|alarm| alarm <= passed) {
                self.c |= C::ALARM;
                if let Some(hook) = self.alarm_hook.as_ref().filter(|_| self.b.contains(B::AIE)) {
                    hook();
                }
            }
        }
        self.seen_seconds = seconds;
        self.update_irq();
    }

    /// Seconds from the last second seen to the next that the alarm matches, 1 to 86,400.
    fn seconds_to_alarm(&self) -> Option<u64> {
        let seen = self.epoch.saturating_add(self.seen_seconds as i64);
        let matches = |field: Field, alarm: u8, value: u8| {
            let alarm = self.cmos.get(usize::from(alarm)).copied().unwrap_or(0);
            alarm & 0xc0 == 0xc0 || alarm == self.encode_value(field, value)
        };
        calendar::next_match(
            seen.rem_euclid(DAY) as u32,
            |hour| matches(Field::Hours, HOURS_ALARM, hour),
            |minute| matches(Field::Minutes, MINUTES_ALARM, minute),
            |second| matches(Field::Seconds, SECONDS_ALARM, second),
        )
        .map(u64::from)
    }

    fn register_c(&self) -> C {
        let requested = self.c.bits() & self.b.bits() != 0;
        if requested { self.c | C::IRQF } else { self.c }
    }

    fn update_irq(&mut self) {
        let level = self.register_c().contains(C::IRQF);
        if level != self.irq_level {
            self.irq_level = level;
            self.irq.set(level);
        }
    }

    fn encode_value(&self, field: Field, value: u8) -> u8 {
        let digits = |v: u8| if self.b.contains(B::BINARY) { v } else { ((v / 10) << 4) | (v % 10) };
        if field == Field::Hours && !self.b.contains(B::HOURS_24) {
            let hour = (value + 11) % 12 + 1; // 12, 1, 2, … 11
            return digits(hour) | if value >= 12 { PM } else { 0 };
        }
        digits(value)
    }

    fn decode_value(&self, field: Field, raw: u8) -> u8 {
        let digits = |v: u8| if self.b.contains(B::BINARY) { v } else { (v >> 4) * 10 + (v & 0xf) };
        if field == Field::Hours && !self.b.contains(B::HOURS_24) {
            return digits(raw & !PM) % 12 + if raw & PM != 0 { 12 } else { 0 };
        }
        digits(raw)
    }

    fn encode(&self, field: Field, date: &Date) -> u8 {
        self.encode_value(field, field.of(date))
    }

    /// Puts the running time into the registers, where the guest can change it.
    fn stop_time(&mut self, now: Nanos) {
        let date = self.date(now);
        for field in Field::ALL {
            let value = self.encode(field, &date);
            self.store(field.index(), value);
        }
    }

    /// Takes the time from the registers, and lets it run from what the divider shows.
    fn start_time(&mut self, now: Nanos) {
        let field = |field: Field| {
            self.decode_value(field, self.cmos.get(usize::from(field.index())).copied().unwrap_or(0))
        };
        let (unix, lead) = Date {
            second: field(Field::Seconds),
            minute: field(Field::Minutes),
            hour: field(Field::Hours),
            weekday: field(Field::Weekday),
            day: field(Field::Day),
            month: field(Field::Month),
            year: field(Field::Year),
            century: field(Field::Century),
        }
        .to_unix();
        self.weekday_lead = lead;
        self.seen_seconds = self.divider.elapsed(now) / SECOND;
        self.epoch = unix.saturating_sub(self.seen_seconds as i64);
    }

    fn store(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.cmos.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn write_register(&mut self, index: u8, value: u8) {
        let now = self.clock.now();
        self.catch_up(now);
        match index {
            REG_A => self.write_a(value & !UIP, now),
            REG_B => self.write_b(B::from_bits_retain(value), now),
            REG_C | REG_D => {}
            _ if Field::at(index).is_some() && self.time_runs() => {
                self.stop_time(now);
                self.store(index, value);
                self.start_time(now);
            }
            _ => self.store(index, value),
        }
        self.update_irq();
    }

    /// Makes `change`, which may stop time or let it run.
    fn switch_time(&mut self, now: Nanos, change: impl FnOnce(&mut Self)) {
        if self.time_runs() {
            self.stop_time(now);
        }
        change(self);
        if self.time_runs() {
            self.start_time(now);
        }
    }

    fn write_a(&mut self, a: u8, now: Nanos) {
        let ran = self.divider_runs();
        let run = a >> 4 & 7 == DV_RUN;
        if ran == run {
            self.a = a;
        } else {
            self.switch_time(now, |rtc| {
                rtc.a = a;
                // A divider that is released comes to the next second in half of one.
                rtc.divider = Stopwatch::showing(SECOND / 2, now);
                rtc.seen_seconds = 0;
            });
        }
        self.forget_periods();
    }

    fn write_b(&mut self, b: B, now: Nanos) {
        if b.contains(B::SET) == self.b.contains(B::SET) {
            // A change of format shows at once: time is kept in seconds, not in digits.
            self.b = b;
        } else {
            // A guest that ends SET wrote the registers in the format of register B from now on.
            self.switch_time(now, |rtc| rtc.b = b);
        }
        if self.b.contains(B::SET) {
            self.b.remove(B::UIE);
        }
    }

    fn read_byte(&mut self, _region: usize, offset: u16) -> u8 {
        if offset != 1 {
            return 0xff; // the index is for writing
        }
        self.catch_up(self.clock.now());
        let value = self.cmos(self.index);
        if self.index == REG_C {
            self.c = C::empty();
            self.update_irq();
        }
        value
    }

    fn write_byte(&mut self, _region: usize, offset: u16, value: u8) {
        match offset {
            0 => {
                self.index = value & 0x7f;
                self.nmi_masked = value & 0x80 != 0;
            }
            1 => self.write_register(self.index, value),
            _ => {}
        }
    }
}

/// The registers that hold the time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Seconds,
    Minutes,
    Hours,
    Weekday,
    Day,
    Month,
    Year,
    Century,
}

impl Field {
    const ALL: [Self; 8] = [
        Self::Seconds,
        Self::Minutes,
        Self::Hours,
        Self::Weekday,
        Self::Day,
        Self::Month,
        Self::Year,
        Self::Century,
    ];

    fn index(self) -> u8 {
        match self {
            Self::Seconds => SECONDS,
            Self::Minutes => MINUTES,
            Self::Hours => HOURS,
            Self::Weekday => WEEKDAY,
            Self::Day => DAY_OF_MONTH,
            Self::Month => MONTH,
            Self::Year => YEAR,
            Self::Century => CENTURY,
        }
    }

    fn at(index: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.index() == index)
    }

    fn of(self, date: &Date) -> u8 {
        match self {
            Self::Seconds => date.second,
            Self::Minutes => date.minute,
            Self::Hours => date.hour,
            Self::Weekday => date.weekday,
            Self::Day => date.day,
            Self::Month => date.month,
            Self::Year => date.year,
            Self::Century => date.century,
        }
    }
}

byte_ports!(Rtc);

impl Poll for Rtc {
    fn poll(&mut self, now: Nanos) {
        self.catch_up(now);
    }

    fn deadline(&self) -> Option<Nanos> {
        // A flag that is up already brings no new edge: its interrupt waits for register C.
        let wants = |enable: B, flag: C| self.b.contains(enable) && !self.c.contains(flag);
        let mut next: Option<Nanos> = None;
        let mut at = |elapsed: Nanos| next = Some(next.map_or(elapsed, |other| other.min(elapsed)));
        if wants(B::PIE, C::PERIODIC)
            && let Some(period) = self.period()
        {
            let tick = (self.seen_periods + 1).saturating_mul(period);
            at((tick / HZ).saturating_mul(SECOND).saturating_add((tick % HZ * SECOND).div_ceil(HZ)));
        }
        if self.time_runs() {
            if wants(B::UIE, C::UPDATE) {
                at((self.seen_seconds + 1).saturating_mul(SECOND));
            }
            if wants(B::AIE, C::ALARM)
                && let Some(seconds) = self.seconds_to_alarm()
            {
                at((self.seen_seconds + seconds).saturating_mul(SECOND));
            }
        }
        next.map(|elapsed| self.divider.when(elapsed))
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
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

    /// The RESET pin: interrupts go, time and memory have a battery.
    fn reset(&mut self) {
        self.catch_up(self.clock.now());
        self.index = 0;
        self.nmi_masked = false;
        self.b.remove(B::PIE | B::AIE | B::UIE | B::SQWE);
        self.c = C::empty();
        self.update_irq();
    }
}

/// Saved state of an [`Rtc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    cmos: Vec<u8>,
    index: u8,
    nmi_masked: bool,
    a: u8,
    b: u8,
    c: u8,
    /// What the divider shows, in nanoseconds.
    divider: u64,
    epoch: i64,
    weekday_lead: u8,
    seen_seconds: u64,
    seen_periods: u64,
}

impl SaveRestore for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        let Self {
            irq: _,
            clock,
            cmos,
            index,
            nmi_masked,
            a,
            b,
            c,
            divider,
            epoch,
            weekday_lead,
            seen_seconds,
            seen_periods,
            irq_level: _, // follows from the rest
            alarm_hook: _,
        } = self;
        RtcState {
            cmos: cmos.to_vec(),
            index: *index,
            nmi_masked: *nmi_masked,
            a: *a,
            b: b.bits(),
            c: c.bits(),
            divider: divider.elapsed(clock.now()),
            epoch: *epoch,
            weekday_lead: *weekday_lead,
            seen_seconds: *seen_seconds,
            seen_periods: *seen_periods,
        }
    }

    /// Time goes on from the moment it was saved at; [`Rtc::set_time`] makes up for the pause.
    fn restore(&mut self, state: RtcState) -> Result<(), RestoreError> {
        let refuse = |ok, what: &str| check("rtc", ok, || what.to_owned());
        let cmos = <[u8; CMOS_SIZE]>::try_from(state.cmos.as_slice());
        let c = C::from_bits(state.c).filter(|c| !c.contains(C::IRQF));
        let (Ok(cmos), Some(c)) = (cmos, c) else {
            return refuse(false, "memory is not 128 bytes, or register c has bits that do not exist");
        };
        refuse(state.index < CMOS_SIZE as u8, "index is beyond the memory")?;
        refuse(state.a & UIP == 0, "update in progress is never kept")?;
        refuse(state.weekday_lead < 7, "a week has seven days")?;
        refuse(state.divider <= LONGEST, "divider has run for centuries")?;
        refuse(state.seen_seconds <= state.divider / SECOND, "seconds seen lie in the future")?;
        refuse(state.seen_periods <= (state.divider / SECOND + 1) * HZ, "periods seen lie in the future")?;
        let epochs = calendar::FIRST_SECOND - LONGEST as i64 / SECOND as i64..=calendar::LAST_SECOND;
        refuse(epochs.contains(&state.epoch), "time is beyond the calendar")?;

        self.cmos = cmos;
        self.index = state.index;
        self.nmi_masked = state.nmi_masked;
        self.a = state.a;
        self.b = B::from_bits_retain(state.b);
        self.c = c;
        self.divider = Stopwatch::showing(state.divider, self.clock.now());
        self.epoch = state.epoch;
        self.weekday_lead = state.weekday_lead;
        self.seen_seconds = state.seen_seconds;
        self.seen_periods = state.seen_periods;
        self.update_irq();
        Ok(())
    }
}
