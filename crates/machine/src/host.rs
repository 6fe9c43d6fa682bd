//! The few requests to the operating system that no safe crate at hand makes: the one module with `unsafe`
//! code.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn attributes(fd: &impl AsRawFd) -> io::Result<libc::termios> {
    let mut termios = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to memory of the right type.
    check(unsafe { libc::tcgetattr(fd.as_raw_fd(), termios.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, and then it has filled the structure.
    Ok(unsafe { termios.assume_init() })
}

fn set_attributes(fd: &impl AsRawFd, termios: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is to a structure of the right type, which is only read.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, termios) }).map(drop)
}

/// A terminal in raw mode, and back in the mode it was in when this is dropped.
///
/// Keys come one by one, unechoed, and none makes a signal. Output is still processed, so that messages
/// of the host look right.
pub(crate) struct RawTerminal {
    fd: OwnedFd,
    before: libc::termios,
}

impl RawTerminal {
    /// Switches `fd`, which must be a terminal.
    pub(crate) fn enter(fd: &impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let before = attributes(&fd)?;
        let mut raw = before;
        raw.c_iflag &= !(libc::IGNBRK
            | libc::BRKINT
            | libc::PARMRK
            | libc::ISTRIP
            | libc::INLCR
            | libc::IGNCR
            | libc::ICRNL
            | libc::IXON);
        raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        set_attributes(&fd, &raw)?;
        Ok(Self { fd, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = set_attributes(&self.fd, &self.before);
    }
}

/// A pseudo-terminal: the host side, which does not block, the other end, raw, and that one's path.
pub(crate) fn open_pty() -> io::Result<(File, File, String)> {
    let options = libc::O_NOCTTY | libc::O_NONBLOCK;
    let master = OpenOptions::new().read(true).write(true).custom_flags(options).open("/dev/ptmx")?;
    let (unlock, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    // SAFETY: the request writes one unsigned int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    let path = format!("/dev/pts/{number}");
    let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
    let mut raw = attributes(&slave)?;
    // SAFETY: the structure is a valid one, and is changed in place.
    unsafe { libc::cfmakeraw(&mut raw) };
    set_attributes(&slave, &raw)?;
    Ok((master, slave, path))
}

/// Waits until `fd` takes output (or has an error to tell), but no longer than `milliseconds`.
pub(crate) fn wait_writable(fd: &impl AsRawFd, milliseconds: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure of the right type.
    Ok(check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) })? > 0)
}

/// Processor time that this process has used so far, in user and kernel mode.
pub(crate) fn cpu_time() -> Duration {
    usage_of(libc::RUSAGE_SELF)
}

/// Processor time that this thread has used so far.
pub(crate) fn thread_cpu_time() -> Duration {
    usage_of(libc::RUSAGE_THREAD)
}

fn usage_of(whose: libc::c_int) -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to memory of the right type.
    let result = unsafe { libc::getrusage(whose, usage.as_mut_ptr()) };
    if result != 0 {
        return Duration::ZERO;
    }
    // SAFETY: all-zeroes is a valid value of the structure, if the call did not fill it.
    let usage = unsafe { usage.assume_init() };
    let time = |t: libc::timeval| Duration::new(t.tv_sec.max(0) as u64, t.tv_usec.max(0) as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
