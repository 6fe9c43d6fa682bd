//! What the guest sends, on its way out.
//!
//! A system request for each byte would cost more than the guest's own work: bytes are collected, and go out
//! when there are many or when the first has waited for two milliseconds. The wait is a deadline like those
//! of the devices.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trapline_device::{Clock, Device, MmioIo, Nanos, Poll, PortIo};

use crate::control::{Control, Outcome};
use crate::host;
use crate::timers::Touched;

/// A moment that does not come.
const NEVER: u64 = u64::MAX;
/// Bytes that go out at once. A pipe that is ready for output takes as many without blocking.
const FULL: usize = 1024;
/// How long a byte waits for others.
const PATIENCE: Nanos = 2_000_000;
/// How often a blocked output looks whether the run is to end, in milliseconds.
const LOOK: i32 = 50;

/// The host's end of the output.
pub(crate) enum Sink {
    /// Blocks the guest while the reader is slow, but not the end of the run.
    Patient(File),
    /// Blocks as it pleases; what it does not take is dropped.
    Other(Box<dyn Write + Send>),
}

struct Buffer {
    bytes: Vec<u8>,
    sink: Sink,
    lost: u64,
    control: Arc<Control>,
}

impl Buffer {
    /// Whether the host takes output now.
    fn ready(&self) -> bool {
        match &self.sink {
            Sink::Patient(file) => host::wait_writable(file, 0).unwrap_or(true),
            Sink::Other(_) => true,
        }
    }

    fn flush(&mut self) {
        let mut left = self.bytes.as_slice();
        while !left.is_empty() {
            match write(&mut self.sink, left, &self.control) {
                Ok(n) => left = left.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    if e.kind() == ErrorKind::BrokenPipe {
                        // Nobody will ever read: as `yes | head` ends quietly.
                        self.control.finish(Ok(Outcome::UserQuit));
                    } else if self.lost == 0 && !self.control.stopping() {
                        tracing::warn!("serial output is dropped: {e}");
                    }
                    self.lost = self.lost.saturating_add(left.len() as u64);
                    break;
                }
            }
        }
        self.bytes.clear();
    }
}

/// Writes a part of `bytes`.
fn write(sink: &mut Sink, bytes: &[u8], control: &Control) -> io::Result<usize> {
    let written = match sink {
        Sink::Patient(file) => {
            while !host::wait_writable(file, LOOK)? {
                if control.stopping() {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            file.write(bytes)
        }
        Sink::Other(writer) => writer.write(bytes).and_then(|n| writer.flush().map(|()| n)),
    };
    match written {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        other => other,
    }
}

/// The writer that a UART is given; clones are the same.
#[derive(Clone)]
pub(crate) struct Console {
    buffer: Arc<Mutex<Buffer>>,
    /// When bytes that wait are to go out; [`NEVER`] if there are none. Not in the buffer, which is locked
    /// while output blocks.
    due: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
    touched: Touched,
}

impl Console {
    pub(crate) fn new(sink: Sink, control: Arc<Control>, clock: Arc<dyn Clock>, touched: Touched) -> Self {
        let buffer = Buffer { bytes: Vec::new(), sink, lost: 0, control };
        let due = Arc::new(AtomicU64::new(NEVER));
        Self { buffer: Arc::new(Mutex::new(buffer)), due, clock, touched }
    }

    /// What sends out bytes that have waited long enough.
    pub(crate) fn flusher(&self) -> Flusher {
        Flusher(self.clone())
    }

    /// Sends out everything.
    pub(crate) fn flush_now(&self) {
        self.due.store(NEVER, Ordering::Release);
        self.lock().flush();
    }

    fn wait(&self, now: Nanos) {
        self.due.store(now.saturating_add(PATIENCE), Ordering::Release);
        self.touched.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.lock();
        let room = FULL.saturating_sub(buffer.bytes.len()).min(bytes.len());
        buffer.bytes.extend(bytes.iter().take(room));
        if buffer.bytes.len() >= FULL {
            self.due.store(NEVER, Ordering::Release);
            buffer.flush();
        } else if self.due.load(Ordering::Acquire) == NEVER {
            self.wait(self.clock.now());
        }
        Ok(room)
    }

    /// A UART flushes each byte: that is what the buffer is there to avoid.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The deadline of a [`Console`]: a device with nothing but a time-driven face.
pub(crate) struct Flusher(Console);

impl Poll for Flusher {
    /// Never blocks: the event loop may be the one who calls.
    fn poll(&mut self, now: Nanos) {
        self.0.due.store(NEVER, Ordering::Release);
        match self.0.buffer.try_lock() {
            Ok(mut buffer) if buffer.ready() => buffer.flush(),
            _ => self.0.wait(now),
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        let due = self.0.due.load(Ordering::Acquire);
        (due != NEVER).then_some(due)
    }
}

impl Device for Flusher {
    fn name(&self) -> &str {
        "console"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        Some(self)
    }

    fn reset(&mut self) {
        self.0.flush_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trapline_device::test::FakeClock;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_out_together_and_in_order() {
        let (log, clock, touched) = (Log::default(), Arc::new(FakeClock::default()), Touched::default());
        let sink = Sink::Other(Box::new(log.clone()));
        let mut console = Console::new(sink, Control::new().unwrap(), clock.clone(), touched.clone());
        let mut flusher = console.flusher();
        assert_eq!(flusher.deadline(), None);
        clock.advance(5);
        console.write_all(b"he").unwrap();
        console.write_all(b"llo").unwrap();
        assert!(touched.swap(false, Ordering::SeqCst));
        assert_eq!(flusher.deadline(), Some(5 + PATIENCE));
        assert!(log.0.lock().unwrap().is_empty());
        Poll::poll(&mut flusher, 5 + PATIENCE);
        assert_eq!(flusher.deadline(), None);
        assert_eq!(*log.0.lock().unwrap(), [b"hello"]);

        let long: Vec<u8> = (0..5000_u32).map(|i| i as u8).collect();
        console.write_all(&long).unwrap();
        console.flush_now();
        assert_eq!(log.0.lock().unwrap()[1..].concat(), long);
    }

    #[test]
    fn a_reader_that_went_away_ends_the_run() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let control = Control::new().unwrap();
        let clock = Arc::new(FakeClock::default());
        let sink = Sink::Other(Box::new(Gone));
        let mut console = Console::new(sink, control.clone(), clock, Touched::default());
        console.write_all(b"x").unwrap();
        console.flush_now();
        assert_eq!(control.take().unwrap().unwrap(), Outcome::UserQuit);
    }
}
