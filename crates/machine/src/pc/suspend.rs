//! Suspend to RAM (ACPI S3): the machine sleeps without processors, and wakes through a reset.
//!
//! The power button and the real-time clock's alarm wake it. Firmware finds shutdown code FEh in CMOS memory and
//! jumps to the waking vector in the FACS; where there is no firmware the board does.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trapline_boot::acpi;
use trapline_device::Poll;
use trapline_vcpu::Vcpu;
use vmm_sys_util::timerfd::TimerFd;

use super::{Pc, Start};
use crate::chassis::lock;
use crate::control::Outcome;
use crate::event_loop::Watch;
use crate::{Error, Result};

/// SLP_TYP of S3, as QEMU's tables have it.
pub(crate) const SLP_TYP_S3: u8 = 1;
/// CMOS memory: the shutdown status, and what it says at the end of S3.
const SHUTDOWN_STATUS: u8 = 0x0f;
const S3_RESUME: u8 = 0xfe;
/// How often the clock is looked at, at most: an alarm has a resolution of a second.
const PATIENCE: Duration = Duration::from_millis(50);

impl Pc {
    /// Sleeps until something wakes the machine ([`Outcome::Suspended`]), or the user ends the run.
    pub(super) fn sleep(&mut self) -> Result<Outcome> {
        let control = self.chassis.shared.control.clone();
        // Whoever presses the button from here on ends the sleep; the first look at the clock sees a button that was
        // pressed before.
        control.fall_asleep();
        let outcome = self.alarm().and_then(|alarm| self.chassis.serve_without_vcpus(&[alarm]));
        control.awake();
        outcome
    }

    /// Looks at the real-time clock while no processor does, and ends the sleep at its alarm.
    fn alarm(&self) -> Result<Watch> {
        let failed = |e: vmm_sys_util::errno::Error| Error::host("timerfd")(e.into());
        let timer = Arc::new(Mutex::new(TimerFd::new().map_err(failed)?));
        let fd = lock(&timer).as_raw_fd();
        let (rtc, pm) = (self.chassis.devices.rtc.clone(), self.chassis.devices.pm.clone());
        let (control, clock) = (self.chassis.shared.control.clone(), self.clock.clone());
        let look = move || {
            let next = {
                let mut rtc = lock(&rtc);
                rtc.poll(clock.now());
                rtc.deadline()
            };
            if lock(&pm).wakes() {
                control.finish(Ok(Outcome::Suspended));
            }
            let mut timer = lock(&timer);
            let armed = match next {
                Some(next) => {
                    let left = Duration::from_nanos(next.saturating_sub(clock.now()));
                    timer.reset(left.max(PATIENCE), None)
                }
                None => timer.clear(),
            };
            if let Err(e) = armed {
                tracing::warn!("timerfd_settime: {e}");
            }
        };
        look();
        Ok(Watch { fd, ready: Box::new(look) })
    }

    /// Wakes the machine from S3.
    pub(super) fn wake(&mut self) -> Result<()> {
        self.power_on(true)?;
        match self.start {
            Start::Firmware(_) => {
                lock(&self.chassis.devices.rtc).set_cmos(SHUTDOWN_STATUS, S3_RESUME);
                Ok(())
            }
            Start::Kernel(_) => {
                let vector = acpi::waking_vector(self.ram.memory())?;
                jump_to_waking_vector(self.chassis.vcpu0()?, vector)
            }
        }
    }
}

/// Goes on in real mode at a physical address below 1 MiB (ACPI 6.5, 5.2.10): its paragraph is the segment. Of an
/// address beyond, which is a guest's mistake, the lower part is taken.
fn jump_to_waking_vector(vcpu: &mut dyn Vcpu, vector: u32) -> Result<()> {
    let mut sregs = vcpu.sregs()?;
    sregs.cs.selector = (vector >> 4) as u16;
    sregs.cs.base = u64::from(sregs.cs.selector) << 4;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.regs()?;
    regs.rip = u64::from(vector & 0xf);
    Ok(vcpu.set_regs(&regs)?)
}
