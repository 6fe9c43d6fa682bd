//! What is typed, on its way to the guest.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use trapline_chipset::Uart;
use vmm_sys_util::eventfd::EventFd;

use super::InputFile;
use super::escape::Escapes;
use crate::Result;
use crate::control::event_fd;

/// Bytes that may wait for the guest. What is typed beyond it on a terminal is lost, so that Ctrl-A X is
/// still seen; other inputs are not read meanwhile.
const BACKLOG: usize = 4096;

/// An input and the UART that it goes to.
pub(crate) struct Input {
    file: InputFile,
    terminal: bool,
    escapes: Escapes,
    backlog: VecDeque<u8>,
    uart: Arc<Mutex<Uart>>,
    /// The UART has room again.
    room: EventFd,
    at_end: bool,
    /// The UART was in use when something was to be handed on.
    deferred: bool,
}

impl Input {
    pub(crate) fn new(file: InputFile, uart: Arc<Mutex<Uart>>) -> Result<Self> {
        let room = event_fd()?;
        let ring = event_fd_clone(&room)?;
        let hook = Box::new(move || drop(ring.write(1)));
        uart.lock().unwrap_or_else(PoisonError::into_inner).set_room_hook(hook);
        let terminal = file.file.is_terminal();
        let escapes = Escapes::default();
        Ok(Self {
            file,
            terminal,
            escapes,
            backlog: VecDeque::new(),
            uart,
            room,
            at_end: false,
            deferred: false,
        })
    }

    /// Readable when the guest has made room.
    pub(crate) fn room(&self) -> &EventFd {
        &self.room
    }

    /// Where input comes from.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.file.as_raw_fd()
    }

    pub(crate) fn raw_mode(&self) -> Result<Option<crate::host::RawTerminal>> {
        self.file.raw_mode()
    }

    /// Whether more should be read now.
    pub(crate) fn wanted(&self) -> bool {
        !self.at_end && (self.terminal || self.backlog.len() < BACKLOG)
    }

    /// Takes back that there is room, and offers the UART what waits.
    pub(crate) fn room_made(&mut self) {
        let _ = self.room.read();
        self.offer();
    }

    /// Reads what is there, once, and hands it on. True if the user ends the run.
    pub(crate) fn read(&mut self) -> bool {
        let mut bytes = [0; BACKLOG];
        let n = match self.file.file.read(&mut bytes) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => return false,
            Err(e) => {
                tracing::debug!("serial input ends: {e}");
                0
            }
        };
        self.at_end = n == 0;
        let typed = bytes.get(..n).unwrap_or_default();
        let mut keys = Vec::new();
        let quit = match self.file.escapes {
            true => self.escapes.filter(typed, &mut keys),
            false => {
                keys.extend(typed);
                false
            }
        };
        if self.terminal {
            keys.truncate(BACKLOG.saturating_sub(self.backlog.len()));
        }
        self.backlog.extend(keys);
        if !quit {
            self.offer();
        }
        quit
    }

    /// For a file that cannot be waited for, because it is always ready: reads while nothing waits for the
    /// guest. True if the user ends the run.
    pub(crate) fn read_ahead(&mut self) -> bool {
        while !self.at_end && self.backlog.is_empty() {
            if self.read() {
                return true;
            }
        }
        false
    }

    /// Whether [`Input::offer`] should be called again soon.
    pub(crate) fn deferred(&self) -> bool {
        self.deferred
    }

    /// Hands on what waits. A UART that is in use is not waited for: its user may be blocked by output,
    /// and Ctrl-A X must still be seen.
    pub(crate) fn offer(&mut self) {
        self.deferred = false;
        if self.backlog.is_empty() {
            return;
        }
        let mut uart = match self.uart.try_lock() {
            Ok(uart) => uart,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.deferred = true,
        };
        let taken = uart.receive(self.backlog.make_contiguous());
        drop(uart);
        self.backlog.drain(..taken.min(self.backlog.len()));
    }
}

fn event_fd_clone(fd: &EventFd) -> Result<EventFd> {
    fd.try_clone().map_err(|e: io::Error| crate::Error::host("eventfd")(e))
}
