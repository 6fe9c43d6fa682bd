//! ACPI fixed hardware (ACPI 6.5 §4.8), laid out as on the PIIX4.
//!
//! | region | block | length | registers |
//! |---|---|---|---|
//! | [`PM1A_EVT`] | PM1a_EVT_BLK | 4 | PM1 status, PM1 enable, 16 bits each |
//! | [`PM1A_CNT`] | PM1a_CNT_BLK | 2 | PM1 control |
//! | [`PM_TMR`] | PM_TMR_BLK | 4 | power management timer, 3.579545 MHz |
//! | [`GPE0`] | GPE0_BLK | 4 | general-purpose status, enable, 16 bits each |
//! | [`SMI_CMD`] | SMI_CMD | 2 | SMI command, and the latch that follows it |
//!
//! Events: the power and sleep buttons, the timer's carry, general-purpose events. While SCI_EN is set
//! an enabled event holds the SCI, a level interrupt; while it is clear events wait for it (there is no
//! SMM to take them as SMIs).
//!
//! S5 raises [`SystemEvent::PowerOff`]; any other sleeping state raises [`SystemEvent::Sleep`], and
//! the board calls [`AcpiPm::wake`] when it is over, or [`AcpiPm::reset_by_wake`] where it lost its state
//! (S3). What ends a sleep is up to the board, which may ask [`AcpiPm::wakes`].
//!
//! Left out: PM1b, PM2 control, processor blocks, bus-master status, BIOS_STS/GBL_RLS (no SMM
//! handler would see it).

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Clock, Device, IrqLine, MmioIo, Nanos, Poll, PortIo, RestoreError, SaveRestore, read_each,
    write_each,
};

use crate::bytewise::{self, check};
use crate::events::{SystemEvent, SystemEvents};
use crate::stopwatch::{LONGEST, Stopwatch};

/// Region index of the PM1a event block.
pub const PM1A_EVT: usize = 0;
/// Region index of the PM1a control block.
pub const PM1A_CNT: usize = 1;
/// Region index of the power management timer block.
pub const PM_TMR: usize = 2;
/// Region index of general-purpose event block 0.
pub const GPE0: usize = 3;
/// Region index of the SMI command port (0xb2 on a PC).
pub const SMI_CMD: usize = 4;

/// The timer's frequency in hertz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// General-purpose events in block 0.
pub const GPE_COUNT: u8 = 16;

const SECOND: Nanos = 1_000_000_000;

bitflags! {
    /// Bits of the PM1 status and enable registers.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Pm1: u16 {
        const TIMER = 1 << 0;
        const GLOBAL = 1 << 5;
        const POWER_BUTTON = 1 << 8;
        const SLEEP_BUTTON = 1 << 9;
        const RTC = 1 << 10;
        /// Status only.
        const WAKE = 1 << 15;
        const ENABLES = Self::TIMER.bits()
            | Self::GLOBAL.bits()
            | Self::POWER_BUTTON.bits()
            | Self::SLEEP_BUTTON.bits()
            | Self::RTC.bits();
    }

    /// PM1 control.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Control: u16 {
        const SCI_EN = 1 << 0;
        const BM_RLD = 1 << 1;
        const SLP_TYP = 7 << 10;
        const SLP_EN = 1 << 13;
        /// What is kept; SLP_EN reads as zero.
        const STORED = Self::SCI_EN.bits() | Self::BM_RLD.bits() | Self::SLP_TYP.bits();
    }
}

/// What the ACPI tables must say too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiPmConfig {
    /// The timer has 32 bits (FADT flag TMR_VAL_EXT), not 24.
    pub timer_32bit: bool,
    /// SCI_EN is always set, as when the FADT has no SMI_CMD; otherwise the guest sets it through
    /// `acpi_enable`.
    pub always_enabled: bool,
    /// FADT ACPI_ENABLE: what to write to the SMI command port to set SCI_EN.
    pub acpi_enable: u8,
    /// FADT ACPI_DISABLE: what to write to the SMI command port to clear SCI_EN.
    pub acpi_disable: u8,
    /// SLP_TYP of the DSDT's `\_S5` package, 0 to 7.
    pub slp_typ_s5: u8,
}

impl Default for AcpiPmConfig {
    /// The PIIX4 as firmware programs it: 24-bit timer, 0xf1 and 0xf0, S5 is 0.
    fn default() -> Self {
        Self {
            timer_32bit: false,
            always_enabled: false,
            acpi_enable: 0xf1,
            acpi_disable: 0xf0,
            slp_typ_s5: 0,
        }
    }
}

/// ACPI fixed hardware.
pub struct AcpiPm {
    config: AcpiPmConfig,
    sci: IrqLine,
    clock: Arc<dyn Clock>,
    events: Arc<dyn SystemEvents>,
    /// How long the timer has run.
    running: Stopwatch,
    /// How often the timer's highest bit had toggled when last looked at.
    carries: u64,
    status: Pm1,
    enable: Pm1,
    control: Control,
    gpe_status: u16,
    gpe_enable: u16,
    smi_command: u8,
    smi_latch: u8,
    sci_level: bool,
}

impl AcpiPm {
    /// Fixed hardware that interrupts on `sci` and tells `events` about sleep.
    pub fn new(
        config: AcpiPmConfig,
        sci: IrqLine,
        clock: Arc<dyn Clock>,
        events: Arc<dyn SystemEvents>,
    ) -> Self {
        let running = Stopwatch::showing(0, clock.now());
        let mut pm = Self {
            config,
            sci,
            clock,
            events,
            running,
            carries: 0,
            status: Pm1::empty(),
            enable: Pm1::empty(),
            control: Control::empty(),
            gpe_status: 0,
            gpe_enable: 0,
            smi_command: 0,
            smi_latch: 0,
            sci_level: false,
        };
        pm.set_control(Control::empty());
        pm
    }

    /// The power button is pressed: a guest that listens shuts down.
    pub fn press_power_button(&mut self) {
        self.raise(Pm1::POWER_BUTTON);
    }

    /// The sleep button is pressed.
    pub fn press_sleep_button(&mut self) {
        self.raise(Pm1::SLEEP_BUTTON);
    }

    /// The real-time clock's alarm interrupts: sets RTC_STS.
    pub fn rtc_alarm(&mut self) {
        self.raise(Pm1::RTC);
    }

    /// Whether something has happened that ends a sleep: a button was pressed, or an event that the guest has
    /// enabled.
    pub fn wakes(&self) -> bool {
        self.status.intersects(Pm1::POWER_BUTTON | Pm1::SLEEP_BUTTON)
            || self.status.intersects(self.enable & Pm1::RTC)
            || self.gpe_status & self.gpe_enable != 0
    }

    /// Puts the device into the state at the end of S3: that of a reset, but with WAK_STS and the events
    /// that woke the machine.
    pub fn reset_by_wake(&mut self) {
        let events = self.status & (Pm1::POWER_BUTTON | Pm1::SLEEP_BUTTON | Pm1::RTC);
        self.reset();
        self.raise(events | Pm1::WAKE);
    }

    /// The machine wakes from a sleeping state: sets WAK_STS.
    pub fn wake(&mut self) {
        self.raise(Pm1::WAKE);
    }

    /// General-purpose event `number` happens; numbers from [`GPE_COUNT`] up do not exist, and do
    /// nothing.
    pub fn raise_gpe(&mut self, number: u8) {
        self.gpe_status |= 1u16.checked_shl(number.into()).unwrap_or(0);
        self.update_sci();
    }

    /// Whether the guest is in ACPI mode (SCI_EN).
    pub fn acpi_enabled(&self) -> bool {
        self.control.contains(Control::SCI_EN)
    }

    fn raise(&mut self, event: Pm1) {
        self.status |= event;
        self.update_sci();
    }

    fn set_control(&mut self, control: Control) {
        self.control = control & Control::STORED;
        self.control.set(Control::SCI_EN, self.config.always_enabled || control.contains(Control::SCI_EN));
    }

    fn update_sci(&mut self) {
        let pending = self.status.intersects(self.enable) || self.gpe_status & self.gpe_enable != 0;
        let level = pending && self.acpi_enabled();
        if level != self.sci_level {
            self.sci_level = level;
            self.sci.set(level);
        }
    }

    /// Ticks of the timer at `now`, as if it had 64 bits.
    fn ticks(&self, now: Nanos) -> u64 {
        let elapsed = self.running.elapsed(now);
        (elapsed / SECOND) * PM_TIMER_HZ + (elapsed % SECOND) * PM_TIMER_HZ / SECOND
    }

    /// The timer's highest bit: 23 or 31. TMR_STS is set whenever it changes (ACPI §4.8.3.3).
    fn high_bit(&self) -> u32 {
        if self.config.timer_32bit { 31 } else { 23 }
    }

    fn timer(&self) -> u32 {
        let mask = (2u64 << self.high_bit()) - 1;
        (self.ticks(self.clock.now()) & mask) as u32
    }

    /// Sets TMR_STS if the timer carried since last looked at.
    fn catch_up(&mut self, now: Nanos) {
        let carries = self.ticks(now) >> self.high_bit();
        if carries != self.carries {
            self.carries = carries;
            self.raise(Pm1::TIMER);
        }
    }

    fn read_byte(&self, region: usize, offset: u16) -> u8 {
        let registers: &[u8] = match region {
            PM1A_EVT => &pair(self.status.bits(), self.enable.bits()),
            PM1A_CNT => &self.control.bits().to_le_bytes(),
            GPE0 => &pair(self.gpe_status, self.gpe_enable),
            SMI_CMD => &[self.smi_command, self.smi_latch],
            _ => &[],
        };
        registers.get(usize::from(offset)).copied().unwrap_or(0xff)
    }

    fn write_byte(&mut self, region: usize, offset: u16, value: u8) {
        match (region, offset) {
            // Writing a one clears a status bit.
            (PM1A_EVT, 0 | 1) => self.status &= !Pm1::from_bits_retain(with_byte(0, offset, value)),
            (PM1A_EVT, 2 | 3) => {
                let enable = with_byte(self.enable.bits(), offset - 2, value);
                self.enable = Pm1::from_bits_retain(enable) & Pm1::ENABLES;
            }
            (PM1A_CNT, 0 | 1) => self.write_control(with_byte(self.control.bits(), offset, value)),
            (GPE0, 0 | 1) => self.gpe_status &= !with_byte(0, offset, value),
            (GPE0, 2 | 3) => self.gpe_enable = with_byte(self.gpe_enable, offset - 2, value),
            (SMI_CMD, 0) => self.write_smi_command(value),
            (SMI_CMD, 1) => self.smi_latch = value,
            _ => {} // the timer is for reading
        }
    }

    fn write_control(&mut self, value: u16) {
        let control = Control::from_bits_truncate(value);
        self.set_control(control);
        if control.contains(Control::SLP_EN) {
            let slp_typ = ((control & Control::SLP_TYP).bits() >> 10) as u8;
            self.events.raise(if slp_typ == self.config.slp_typ_s5 {
                SystemEvent::PowerOff
            } else {
                SystemEvent::Sleep(slp_typ)
            });
        }
    }

    fn write_smi_command(&mut self, command: u8) {
        self.smi_command = command;
        if command == self.config.acpi_enable {
            self.set_control(self.control | Control::SCI_EN);
        } else if command == self.config.acpi_disable {
            self.set_control(self.control - Control::SCI_EN);
        } else {
            self.events.raise(SystemEvent::SoftwareSmi(command));
        }
    }
}

fn pair(low: u16, high: u16) -> [u8; 4] {
    (u32::from(high) << 16 | u32::from(low)).to_le_bytes()
}

/// `register` with byte 0 or 1 replaced.
fn with_byte(register: u16, byte: u16, value: u8) -> u16 {
    let [low, high] = register.to_le_bytes();
    u16::from_le_bytes(if byte == 0 { [value, high] } else { [low, value] })
}

impl PortIo for AcpiPm {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        if region == PM_TMR {
            // Guests poll the timer in loops: nothing else is looked at on this path.
            return self.timer().checked_shr(8 * u32::from(offset)).unwrap_or(u32::MAX);
        }
        self.catch_up(self.clock.now());
        bytewise::read(offset, size, |offset| self.read_byte(region, offset))
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        // A carry that came before this write must not outlive the write that clears it.
        self.catch_up(self.clock.now());
        bytewise::write(offset, size, value, |offset, v| self.write_byte(region, offset, v));
        self.update_sci();
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl Poll for AcpiPm {
    fn poll(&mut self, now: Nanos) {
        self.catch_up(now);
    }

    fn deadline(&self) -> Option<Nanos> {
        let wanted = self.acpi_enabled() && self.enable.contains(Pm1::TIMER);
        if !wanted || self.status.contains(Pm1::TIMER) {
            return None;
        }
        let tick = self.carries.checked_add(1)?.checked_mul(1 << self.high_bit())?;
        let elapsed = (tick / PM_TIMER_HZ)
            .checked_mul(SECOND)?
            .checked_add((tick % PM_TIMER_HZ * SECOND).div_ceil(PM_TIMER_HZ))?;
        Some(self.running.when(elapsed))
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &str {
        "acpi-pm"
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

    /// Clears everything but the timer, which nothing resets.
    fn reset(&mut self) {
        self.catch_up(self.clock.now());
        self.status = Pm1::empty();
        self.enable = Pm1::empty();
        self.set_control(Control::empty());
        self.gpe_status = 0;
        self.gpe_enable = 0;
        self.smi_command = 0;
        self.smi_latch = 0;
        self.update_sci();
    }
}

/// Saved state of an [`AcpiPm`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    /// How long the timer has run, in nanoseconds.
    elapsed: u64,
    carries: u64,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    smi_command: u8,
    smi_latch: u8,
}

impl SaveRestore for AcpiPm {
    type State = AcpiPmState;

    fn save(&self) -> AcpiPmState {
        let Self {
            config: _,
            sci: _,
            clock,
            events: _,
            running,
            carries,
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            smi_command,
            smi_latch,
            sci_level: _, // follows from the rest
        } = self;
        AcpiPmState {
            elapsed: running.elapsed(clock.now()),
            carries: *carries,
            status: status.bits(),
            enable: enable.bits(),
            control: control.bits(),
            gpe_status: *gpe_status,
            gpe_enable: *gpe_enable,
            smi_command: *smi_command,
            smi_latch: *smi_latch,
        }
    }

    /// The timer goes on from where it was saved, however the clock stands.
    fn restore(&mut self, state: AcpiPmState) -> Result<(), RestoreError> {
        let refuse = |ok, what: &str| check("acpi-pm", ok, || what.to_owned());
        let control = Control::from_bits(state.control).unwrap_or(Control::SLP_EN);
        refuse((control - Control::STORED).is_empty(), "control register has bits that are never kept")?;
        let (status, enable) = (Pm1::from_bits(state.status), Pm1::from_bits(state.enable));
        let enable = enable.filter(|e| (*e - Pm1::ENABLES).is_empty());
        let (Some(status), Some(enable)) = (status, enable) else {
            return refuse(false, "pm1 registers have bits that do not exist");
        };
        refuse(state.elapsed <= LONGEST, "timer has run for centuries")?;
        let running = Stopwatch::showing(state.elapsed, self.clock.now());
        let carries = ((state.elapsed / SECOND + 1) * PM_TIMER_HZ) >> self.high_bit();
        refuse(state.carries <= carries, "timer carries lie in the future")?;

        self.running = running;
        self.carries = state.carries;
        self.status = status;
        self.enable = enable;
        self.set_control(control);
        self.gpe_status = state.gpe_status;
        self.gpe_enable = state.gpe_enable;
        self.smi_command = state.smi_command;
        self.smi_latch = state.smi_latch;
        self.update_sci();
        Ok(())
    }
}
