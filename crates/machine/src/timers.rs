//! The devices that time drives, and who calls them when their time has come.
//!
//! On an engine that keeps deadlines (soft) vCPU 0 does, between two entries: nothing is handed from thread
//! to thread. On one that does not (KVM) the event loop does, by a timerfd.
//!
//! Deadlines change when registers are accessed. [`Timed`] marks each access of such a device, and only
//! after a mark are the deadlines asked for again.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use trapline_device::bus::{SharedDevice, lock};
use trapline_device::{Clock, Device, MmioIo, Nanos, Poll, PortIo};
use trapline_vcpu::Kicker;
use vmm_sys_util::timerfd::TimerFd;

use crate::trace::{Arg, Track};
use crate::{Error, Result};

/// Set by whoever may have changed a deadline.
pub(crate) type Touched = Arc<AtomicBool>;

/// A device that time drives; each access through its ports or by the board is marked. The mark is made with
/// the device locked: whoever takes the mark and then locks the device sees the access done.
pub(crate) struct Timed<D> {
    device: D,
    touched: Touched,
}

impl<D> Timed<D> {
    pub(crate) fn new(device: D, touched: &Touched) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { device, touched: touched.clone() }))
    }
}

impl<D> Deref for Timed<D> {
    type Target = D;
    fn deref(&self) -> &D {
        &self.device
    }
}

impl<D> DerefMut for Timed<D> {
    fn deref_mut(&mut self) -> &mut D {
        self.touched.store(true, Ordering::Release);
        &mut self.device
    }
}

impl<D: Device> Device for Timed<D> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        (**self).pio()
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        (**self).mmio()
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        self.device.poll()
    }

    fn reset(&mut self) {
        (**self).reset();
    }
}

/// Who calls the devices.
enum Keeper {
    /// vCPU 0, which is kicked when it should come back earlier than it said.
    Vcpu0(Kicker),
    /// The event loop.
    Timer(TimerFd),
}

struct Schedule {
    keeper: Keeper,
    /// The earliest deadline.
    next: Option<Nanos>,
    /// The one that the keeper waits for.
    awaited: Option<Nanos>,
}

/// The time-driven devices of a machine.
pub(crate) struct Timers {
    clock: Arc<dyn Clock>,
    devices: Vec<SharedDevice>,
    touched: Touched,
    schedule: Mutex<Schedule>,
    timer: Option<RawFd>,
    track: Option<Track>,
}

impl Timers {
    /// Devices that `vcpu0` looks after, on the way from an exit to the next entry.
    pub(crate) fn on_vcpu0(
        clock: Arc<dyn Clock>,
        devices: Vec<SharedDevice>,
        touched: Touched,
        vcpu0: Kicker,
    ) -> Self {
        Self::new(clock, devices, touched, Keeper::Vcpu0(vcpu0), None)
    }

    /// Devices that the event loop looks after, when [`Timers::timer`] is readable.
    pub(crate) fn on_timer(
        clock: Arc<dyn Clock>,
        devices: Vec<SharedDevice>,
        touched: Touched,
    ) -> Result<Self> {
        let timer = TimerFd::new().map_err(|e| Error::host("timerfd")(e.into()))?;
        let fd = timer.as_raw_fd();
        Ok(Self::new(clock, devices, touched, Keeper::Timer(timer), Some(fd)))
    }

    fn new(
        clock: Arc<dyn Clock>,
        devices: Vec<SharedDevice>,
        touched: Touched,
        keeper: Keeper,
        timer: Option<RawFd>,
    ) -> Self {
        touched.store(true, Ordering::Release);
        let schedule = Mutex::new(Schedule { keeper, next: None, awaited: None });
        Self { clock, devices, touched, schedule, timer, track: None }
    }

    /// The same; calls of devices go to `track`.
    pub(crate) fn traced(self, track: Option<Track>) -> Self {
        Self { track, ..self }
    }

    /// The descriptor to wait on, if the event loop looks after the devices.
    pub(crate) fn timer(&self) -> Option<RawFd> {
        self.timer
    }

    /// For the keeper, if it is vCPU 0: until when to run.
    pub(crate) fn deadline_for_entry(&self) -> Option<Nanos> {
        let mut schedule = self.refreshed();
        schedule.awaited = schedule.next;
        schedule.next
    }

    /// For everybody else, after an access that may have touched a device: sees to it that the keeper
    /// knows of an earlier deadline.
    pub(crate) fn settle(&self) {
        if !self.touched.load(Ordering::Acquire) {
            return;
        }
        let mut schedule = self.refreshed();
        let Schedule { keeper, next, awaited } = &mut *schedule;
        match keeper {
            Keeper::Vcpu0(kicker) => {
                if next.unwrap_or(Nanos::MAX) < awaited.unwrap_or(Nanos::MAX) {
                    kicker.kick();
                }
            }
            Keeper::Timer(timer) if next != awaited => {
                *awaited = *next;
                let armed = match next {
                    Some(next) => {
                        let left = next.saturating_sub(self.clock.now()).max(1);
                        timer.reset(Duration::from_nanos(left), None)
                    }
                    None => timer.clear(),
                };
                if let Err(e) = armed {
                    tracing::warn!("timerfd_settime: {e}");
                }
            }
            Keeper::Timer(_) => {}
        }
    }

    /// For the keeper: calls every device that is due.
    pub(crate) fn poll_due(&self) {
        let now = self.clock.now();
        for device in &self.devices {
            let mut device = lock(device);
            let name = self.track.as_ref().map(|track| (track, device.name().to_owned()));
            if let Some(poll) = device.poll()
                && poll.deadline().is_some_and(|due| due <= now)
            {
                if let Some((track, name)) = name {
                    track.instant("due", &[("device", Arg::Text(&name))]);
                }
                poll.poll(now);
            }
        }
        self.touched.store(true, Ordering::Release);
    }

    /// For the event loop, when the timer is readable.
    pub(crate) fn timer_expired(&self) {
        {
            let mut schedule = self.schedule();
            schedule.awaited = None;
            if let Keeper::Timer(timer) = &mut schedule.keeper {
                // Disarms it and takes the expiry back; it may have been armed anew in between.
                let _ = timer.clear();
            }
        }
        self.poll_due();
        self.settle();
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedule, with the earliest deadline worked out again if a device was touched.
    fn refreshed(&self) -> MutexGuard<'_, Schedule> {
        let mut schedule = self.schedule();
        if self.touched.swap(false, Ordering::AcqRel) {
            let deadline = |device| lock(device).poll().and_then(|poll| poll.deadline());
            schedule.next = self.devices.iter().filter_map(deadline).min();
        }
        schedule
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trapline_device::AccessSize::Byte;
    use trapline_device::IrqLine;
    use trapline_device::bus::PioBus;
    use trapline_device::test::{FakeClock, Recorder};
    use trapline_irqchip::pit::Pit;

    #[test]
    fn an_access_brings_a_deadline_forward() {
        let clock = Arc::new(FakeClock::default());
        let irq = Arc::new(Recorder::default());
        let touched = Touched::default();
        let pit = Timed::new(Pit::new(clock.clone(), IrqLine::new(irq.clone(), 0)), &touched);
        let timers = Timers::on_timer(clock.clone(), vec![pit.clone()], touched).unwrap();
        let mut ports = PioBus::builder();
        ports.register(0x40, 4, pit, 0, "pit").unwrap();
        let ports = ports.build();
        assert_eq!(timers.deadline_for_entry(), None);

        // Channel 0, rate generator, 11932 ticks: 10 ms.
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
            ports.write(port, Byte, value);
        }
        let due = timers.deadline_for_entry().unwrap();
        assert!((9_900_000..10_100_000).contains(&due), "{due}");
        clock.advance(due - 1);
        timers.poll_due();
        assert_eq!(irq.rising_edges(0), 1); // rate generation starts with OUT high
        clock.advance(1);
        timers.poll_due();
        assert_eq!(irq.rising_edges(0), 2);
        assert!(timers.deadline_for_entry().unwrap() > due);
    }
}
