//! The host's side of a running machine, on the thread that called `run`: input, the timer of engines
//! without deadlines, and the end.

use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::Result;
use crate::console::Input;
use crate::control::Control;
use crate::timers::Timers;

/// How long to wait before input is offered again to a UART that was in use, in milliseconds.
const AGAIN: i32 = 1;

const WAKE: u32 = 0;
const TIMER: u32 = 1;
const INPUT: u32 = 2;
const ROOM: u32 = 3;

/// Where the watches of the board begin.
const WATCHES: u32 = 0x100;

/// Something that the event loop does for a board when a descriptor is readable.
pub(crate) struct Watch {
    /// The descriptor, which `ready` keeps open.
    pub(crate) fd: RawFd,
    /// It has to make the descriptor unreadable.
    pub(crate) ready: Box<dyn Fn() + Send + Sync>,
}

/// Serves the host's side until the run ends.
pub(crate) fn serve(
    control: &Control,
    timers: &Timers,
    watches: &[Watch],
    input: Option<&mut Input>,
) -> Result<()> {
    let mut manager = EventManager::new()?;
    let host = HostSide { control, timers, watches, input, reading: Reading::No, failed: None };
    let id = manager.add_subscriber(host);
    while !control.stopping() {
        let deferred = {
            let host = manager.subscriber_mut(id)?;
            if let Some(error) = host.failed.take() {
                return Err(error.into());
            }
            host.offer_again()
        };
        manager.run_with_timeout(if deferred { AGAIN } else { -1 })?;
    }
    Ok(())
}

/// How input is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Not now.
    No,
    /// By epoll.
    Waiting,
    /// Not at all: it is a file, always ready.
    AlwaysReady,
}

struct HostSide<'a> {
    control: &'a Control,
    timers: &'a Timers,
    watches: &'a [Watch],
    input: Option<&'a mut Input>,
    reading: Reading,
    failed: Option<event_manager::Error>,
}

impl HostSide<'_> {
    fn offer_again(&mut self) -> bool {
        let Some(input) = self.input.as_mut().filter(|input| input.deferred()) else { return false };
        input.offer();
        input.deferred()
    }

    fn add(&mut self, ops: &mut EventOps, fd: RawFd, data: u32) {
        if let Err(e) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
            self.failed.get_or_insert(e);
        }
    }

    /// Starts or stops waiting for input.
    fn update_input(&mut self, ops: &mut EventOps) {
        let Some(input) = self.input.as_mut() else { return };
        let events = Events::with_data_raw(input.fd(), INPUT, EventSet::IN);
        match (self.reading, input.wanted()) {
            (Reading::No, true) => match ops.add(events) {
                Ok(()) => self.reading = Reading::Waiting,
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EPERM => {
                    self.reading = Reading::AlwaysReady;
                    self.read(Input::read_ahead);
                }
                Err(e) => self.failed = Some(e),
            },
            (Reading::Waiting, false) => {
                self.reading = Reading::No;
                if let Err(e) = ops.remove(events) {
                    self.failed = Some(e);
                }
            }
            _ => {}
        }
    }

    /// Reads, and ends the run if the user says so.
    fn read(&mut self, how: fn(&mut Input) -> bool) {
        if self.input.as_mut().is_some_and(|input| how(input)) {
            self.control.user_quit();
        }
    }
}

impl MutEventSubscriber for HostSide<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        self.add(ops, self.control.wake().as_raw_fd(), WAKE);
        if let Some(timer) = self.timers.timer() {
            self.add(ops, timer, TIMER);
        }
        for (watch, data) in self.watches.iter().zip(WATCHES..) {
            self.add(ops, watch.fd, data);
        }
        if let Some(room) = self.input.as_ref().map(|input| input.room().as_raw_fd()) {
            self.add(ops, room, ROOM);
            self.update_input(ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE => self.control.woken(),
            TIMER => self.timers.timer_expired(),
            INPUT => self.read(Input::read),
            ROOM => {
                if let Some(input) = self.input.as_mut() {
                    input.room_made();
                }
                if self.reading == Reading::AlwaysReady {
                    self.read(Input::read_ahead);
                }
            }
            data => {
                let at = data.checked_sub(WATCHES).and_then(|at| self.watches.get(at as usize));
                if let Some(watch) = at {
                    (watch.ready)();
                }
            }
        }
        self.update_input(ops);
    }
}
