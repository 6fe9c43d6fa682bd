//! How a run ends, and who may end it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use trapline_chipset::{SystemEvent, SystemEvents};
use trapline_vcpu::Kicker;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::chassis::lock;
use crate::{Error, Result};

/// How the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It switched the machine off (ACPI S5).
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// Triple fault: the processor went into shutdown.
    Shutdown,
    /// It wrote to the exit port of test guests; the value is `(v << 1) | 1`.
    DebugExit(u32),
    /// The user ended it: Ctrl-A X, a signal, [`Remote::quit`](crate::Remote::quit), or nobody reads its
    /// output any more.
    UserQuit,
    /// It suspended itself to RAM (ACPI S3). A [`Pc`](crate::Pc) sleeps and wakes again, and does not end so.
    Suspended,
    /// The engine could not go on with what the guest did.
    Stuck(String),
}

impl Outcome {
    /// An exit code for a process: 0 powered off, 2 reset, 4 triple fault, 6 ended by the user, 8 stuck,
    /// 10 suspended, and odd values are those of the debug exit port, cut to 8 bits. (A process says 1 itself, for
    /// errors of the host or the user; the debug exit code 1 is the same number.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset => 2,
            Self::Shutdown => 4,
            Self::UserQuit => 6,
            Self::Suspended => 10,
            Self::Stuck(_) => 8,
            Self::DebugExit(code) => *code as u8,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Shutdown => f.write_str("triple fault: the processor is in shutdown"),
            Self::DebugExit(code) => write!(f, "the guest ended with debug exit code {code}"),
            Self::UserQuit => f.write_str("ended by the user"),
            Self::Suspended => f.write_str("the guest suspended itself to RAM"),
            Self::Stuck(why) => write!(f, "the engine cannot go on: {why}"),
        }
    }
}

/// No sleeping state: those have three bits.
const AWAKE: u8 = u8::MAX;

/// What all threads of a machine share to end it.
pub(crate) struct Control {
    ended: Mutex<Option<Result<Outcome>>>,
    stop: AtomicBool,
    /// Asked for by a signal handler, which may do no more than this.
    quit: AtomicBool,
    /// The user ends the run, whatever the guest did meanwhile.
    user_quit: AtomicBool,
    /// The sleeping state that the guest has entered and the board does not know of yet, or [`AWAKE`].
    asleep: AtomicU8,
    /// The machine sleeps, and no processor runs.
    sleeping: Mutex<bool>,
    kickers: OnceLock<Vec<Kicker>>,
    wake: EventFd,
}

impl Control {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            ended: Mutex::new(None),
            stop: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            user_quit: AtomicBool::new(false),
            asleep: AtomicU8::new(AWAKE),
            sleeping: Mutex::new(false),
            kickers: OnceLock::new(),
            wake: event_fd()?,
        }))
    }

    /// The vCPUs to be stopped; called once.
    pub(crate) fn set_kickers(&self, kickers: Vec<Kicker>) {
        let _ = self.kickers.set(kickers);
    }

    /// Ends the run; the first call decides how.
    pub(crate) fn finish(&self, how: Result<Outcome>) {
        {
            let mut ended = lock(&self.ended);
            ended.get_or_insert(how);
            self.stop.store(true, Ordering::SeqCst);
        }
        self.kickers.get().into_iter().flatten().for_each(Kicker::kick);
        self.ring();
    }

    /// Ends the run because the user says so: also a run that the guest has ended already, if the machine
    /// would go on.
    pub(crate) fn user_quit(&self) {
        self.user_quit.store(true, Ordering::SeqCst);
        self.finish(Ok(Outcome::UserQuit));
    }

    /// Whether no vCPU is to be entered any more.
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Takes how the run ended; the machine can be run again then.
    pub(crate) fn take(&self) -> Option<Result<Outcome>> {
        let mut ended = lock(&self.ended);
        self.stop.store(false, Ordering::SeqCst);
        let user_quit = self.user_quit.swap(false, Ordering::SeqCst);
        match ended.take() {
            Some(Ok(Outcome::Reset | Outcome::Shutdown | Outcome::Suspended)) if user_quit => {
                Some(Ok(Outcome::UserQuit))
            }
            ended => ended,
        }
    }

    /// Takes the sleeping state that the guest wants to enter.
    pub(crate) fn take_sleep(&self) -> Option<u8> {
        if self.asleep.load(Ordering::Relaxed) == AWAKE {
            return None;
        }
        Some(self.asleep.swap(AWAKE, Ordering::SeqCst)).filter(|slp_typ| *slp_typ != AWAKE)
    }

    /// From here on a button ends a sleep.
    pub(crate) fn fall_asleep(&self) {
        *lock(&self.sleeping) = true;
    }

    /// The sleep is over: a button that came late does not end the next one.
    pub(crate) fn awake(&self) {
        let mut sleeping = lock(&self.sleeping);
        *sleeping = false;
        let mut ended = lock(&self.ended);
        if matches!(*ended, Some(Ok(Outcome::Suspended))) {
            let user_quit = self.user_quit.load(Ordering::SeqCst);
            *ended = user_quit.then_some(Ok(Outcome::UserQuit));
            self.stop.store(user_quit, Ordering::SeqCst);
        }
    }

    /// Somebody has pressed a button: ends a sleep.
    pub(crate) fn button_pressed(&self) {
        let sleeping = lock(&self.sleeping);
        if *sleeping {
            self.finish(Ok(Outcome::Suspended));
        }
    }

    /// From a signal handler: only atomics and one write(2).
    pub(crate) fn quit_from_signal(&self) {
        self.quit.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// What the event loop does when [`Control::wake`] is readable.
    pub(crate) fn woken(&self) {
        let _ = self.wake.read();
        if self.quit.swap(false, Ordering::SeqCst) {
            self.user_quit();
        }
    }

    /// Readable when the event loop should look here.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }

    fn ring(&self) {
        // It fails only when the counter is at its end, and then it is readable anyway.
        let _ = self.wake.write(1);
    }
}

impl SystemEvents for Control {
    fn raise(&self, event: SystemEvent) {
        match event {
            SystemEvent::PowerOff => self.finish(Ok(Outcome::PowerOff)),
            SystemEvent::Reset => self.finish(Ok(Outcome::Reset)),
            SystemEvent::DebugExit(code) => self.finish(Ok(Outcome::DebugExit(code))),
            SystemEvent::Sleep(slp_typ) => self.asleep.store(slp_typ, Ordering::SeqCst),
            // Address line 20 always works here, and there is no SMM.
            SystemEvent::A20(_) | SystemEvent::SoftwareSmi(_) => {}
        }
    }
}

/// An eventfd that never blocks.
pub(crate) fn event_fd() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK).map_err(|e: io::Error| Error::host("eventfd")(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_button_ends_this_sleep_and_not_the_next() {
        let control = Control::new().unwrap();
        control.button_pressed();
        assert!(!control.stopping());
        control.fall_asleep();
        control.button_pressed();
        assert_eq!(control.take().unwrap().unwrap(), Outcome::Suspended);
        control.button_pressed(); // once more, before the machine is awake
        control.awake();
        assert!(!control.stopping() && control.take().is_none());
    }

    #[test]
    fn the_user_ends_a_sleep_that_a_button_has_ended() {
        let control = Control::new().unwrap();
        control.fall_asleep();
        control.button_pressed();
        control.user_quit();
        control.awake();
        assert!(control.stopping());
        assert_eq!(control.take().unwrap().unwrap(), Outcome::UserQuit);
    }
}
