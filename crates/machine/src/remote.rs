//! A hand on a running machine, from other threads and from signals.

use std::sync::{Arc, Mutex, OnceLock};

use trapline_chipset::{AcpiPm, I8042, Key};
use vmm_sys_util::signal::register_signal_handler;

use crate::chassis::lock;
use crate::control::Control;
use crate::run::Shared;
use crate::timers::Timed;
use crate::{Error, Result};

/// Acts on a machine while it runs. Clones are the same.
#[derive(Clone)]
pub struct Remote {
    control: Arc<Control>,
    shared: Arc<Shared>,
    pm: Arc<Mutex<Timed<AcpiPm>>>,
    i8042: Arc<Mutex<I8042>>,
}

/// Whose run a signal ends.
static SIGNALLED: OnceLock<Arc<Control>> = OnceLock::new();

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(control) = SIGNALLED.get() {
        control.quit_from_signal();
    }
}

impl Remote {
    pub(crate) fn new(
        control: Arc<Control>,
        shared: Arc<Shared>,
        pm: Arc<Mutex<Timed<AcpiPm>>>,
        i8042: Arc<Mutex<I8042>>,
    ) -> Self {
        Self { control, shared, pm, i8042 }
    }

    /// Ends the run, whatever the guest is doing: [`Outcome::UserQuit`](crate::Outcome::UserQuit). If the machine does not run, its
    /// next run ends at once.
    pub fn quit(&self) {
        self.control.user_quit();
    }

    /// Presses the ACPI power button: a guest that listens shuts down, one that sleeps wakes.
    pub fn press_power_button(&self) {
        lock(&self.pm).press_power_button();
        self.shared.timers.settle();
        self.control.button_pressed();
    }

    /// A key of the PS/2 keyboard goes down (or repeats), or up. Returns false, with no effect, when the
    /// keyboard's buffer has no room: the guest has to read first.
    #[must_use]
    pub fn key(&self, key: Key, pressed: bool) -> bool {
        lock(&self.i8042).key(key, pressed)
    }

    /// From now on SIGHUP, SIGINT and SIGTERM end the run as [`Remote::quit`] does, so that the terminal
    /// gets its mode back. For the one machine of a process: later calls for another one do nothing.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn quit_on_signals(&self) -> Result<()> {
        let _ = SIGNALLED.set(self.control.clone());
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
            register_signal_handler(signal, on_signal).map_err(|e| Error::host("sigaction")(e.into()))?;
        }
        Ok(())
    }
}
