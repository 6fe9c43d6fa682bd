//! Getting a vCPU out of KVM_RUN.
//!
//! A kick sets `immediate_exit`, which KVM looks at before it enters the guest, and then signals the
//! thread that is between announcing itself and returning. Whether the signal comes before the request,
//! in it or after it, the flag is there or the request is interrupted: nothing is lost.

use std::cell::OnceCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::sys::{self, ImmediateExit};
use crate::vcpu::Kick;
use crate::{Error, Result};

/// What a vCPU and its kickers share.
pub(super) struct KickState {
    flag: ImmediateExit,
    /// A kick that no run has reported yet.
    pending: AtomicBool,
    /// The vCPU was to leave the guest for a moment, which is not to be reported.
    expelled: AtomicBool,
    /// The thread in KVM_RUN, or 0.
    runner: AtomicI32,
}

impl KickState {
    pub(super) fn new(flag: ImmediateExit) -> Result<Self> {
        install_handler()?;
        Ok(Self {
            flag,
            pending: AtomicBool::new(false),
            expelled: AtomicBool::new(false),
            runner: AtomicI32::new(0),
        })
    }

    /// Runs `request` (a KVM_RUN) so that a kick from now on interrupts it.
    pub(super) fn around<T>(&self, request: impl FnOnce() -> T) -> T {
        self.runner.store(this_thread(), Ordering::SeqCst);
        // A kick that did not see the runner yet must be seen here.
        if self.pending.load(Ordering::SeqCst) {
            self.flag.set(true);
        }
        let result = request();
        self.runner.store(0, Ordering::SeqCst);
        result
    }

    /// Runs `request` so that it finishes pending I/O and does not enter the guest; kicks stay pending.
    pub(super) fn without_entering<T>(&self, request: impl FnOnce() -> T) -> T {
        self.flag.set(true);
        let result = request();
        self.flag.set(false);
        if self.pending.load(Ordering::SeqCst) {
            self.flag.set(true);
        }
        result
    }

    /// The run was interrupted: takes the kicks so far as reported. True if there is nothing to report,
    /// because the vCPU was only expelled.
    pub(super) fn acknowledge(&self) -> bool {
        // In this order: a kick in between leaves the flag up, and at worst one more Interrupted follows.
        self.flag.set(false);
        let kicked = self.pending.swap(false, Ordering::SeqCst);
        self.expelled.swap(false, Ordering::SeqCst) && !kicked
    }

    /// Makes the vCPU leave the guest, and come back by itself when it can.
    pub(super) fn expel(&self) {
        self.expelled.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    fn interrupt(&self) {
        self.flag.set(true);
        let runner = self.runner.load(Ordering::SeqCst);
        if runner != 0 {
            sys::signal_thread(runner, SIGRTMIN());
        }
    }
}

impl Kick for KickState {
    fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        self.interrupt();
    }
}

/// The handler does nothing: that it runs is what interrupts the request.
extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn install_handler() -> Result<()> {
    static INSTALLED: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), on_signal).map_err(|e| e.errno()))
        .map_err(|e| Error::Os { what: "sigaction", source: std::io::Error::from_raw_os_error(e) })
}

/// This thread's id; the first call makes sure that the signal gets through to it.
fn this_thread() -> libc::pid_t {
    thread_local!(static TID: OnceCell<libc::pid_t> = const { OnceCell::new() });
    TID.with(|tid| {
        *tid.get_or_init(|| {
            if let Err(e) = unblock_signal(SIGRTMIN()) {
                tracing::warn!("cannot unblock the kick signal: {e:?}");
            }
            sys::gettid()
        })
    })
}
