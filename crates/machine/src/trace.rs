//! What a machine does, written to a file that Perfetto and `chrome://tracing` open.
//!
//! The format is that of the Chrome trace events, as a JSON array with one event a line. Time stamps are the
//! machine's clock, in microseconds; with [`icount`](crate::MachineConfig::icount), two runs write the same
//! bytes. Each vCPU has a track, with a slice for each VM exit: from the exit to when it has been served. The
//! gaps between them are the guest's. What devices do has tracks of its own:
//!
//! | track | events |
//! |---|---|
//! | interrupts | an ISA line rises; a message goes to the local APICs; the 8259A is acknowledged |
//! | timers | a device is called because its time has come |
//! | a drive | its disk's transfers, from request to completion |
//!
//! Events go through one buffer of fixed size. A file that cannot be written to any more ends the trace, not
//! the guest.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use trapline_device::{Clock, IrqSink, Msi, MsiSink, Nanos};
use trapline_disk::{Observer, Op};
use trapline_vcpu::{Answer, Exit};

use crate::chassis::lock;
use crate::{Error, OutputFile, Result};

/// Bytes of the buffer in front of the file.
const BUFFER: usize = 256 << 10;

/// The trace of a machine, and the tracks that every board has.
pub(crate) struct Tracks {
    trace: Arc<Trace>,
    vcpus: Vec<Track>,
    pub(crate) interrupts: Track,
    pub(crate) timers: Track,
}

impl Tracks {
    /// A trace to a file, and tracks for so many processors.
    pub(crate) fn open(path: &Path, clock: Arc<dyn Clock>, cpus: u32) -> Result<Self> {
        let failed = |source| Error::Trace { path: path.to_owned(), source };
        let trace = Trace::open(path, clock).map_err(failed)?;
        let vcpus = (0..cpus).map(|id| trace.track(&format!("vcpu {id}"))).collect();
        let (interrupts, timers) = (trace.track("interrupts"), trace.track("timers"));
        Ok(Self { trace, vcpus, interrupts, timers })
    }

    /// The track of a vCPU.
    pub(crate) fn vcpu(&self, id: u32) -> Option<&Track> {
        self.vcpus.get(id as usize)
    }

    /// A track for a drive.
    pub(crate) fn drive(&self, index: usize) -> Track {
        self.trace.track(&format!("drive {index}"))
    }

    /// Begins the trace, unless it has begun: until now there was nothing but names of tracks.
    pub(crate) fn start(&self) -> Result<()> {
        lock(&self.trace.out).start().map_err(Error::host("cannot empty the trace's file"))
    }

    /// Ends the trace. Later events are dropped.
    pub(crate) fn close(&self) {
        self.trace.close();
    }
}

/// A file of events.
struct Trace {
    clock: Arc<dyn Clock>,
    out: Mutex<Output>,
    tracks: AtomicU32,
}

struct Output {
    /// `None`: the trace has ended.
    file: Option<BufWriter<OutputFile>>,
    /// The file is the trace's: what was in it before is gone.
    started: bool,
    /// The line under construction.
    line: String,
    any: bool,
}

impl Output {
    fn start(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| !self.started) {
            file.get_ref().empty()?;
            self.started = true;
        }
        Ok(())
    }

    /// Adds an event that is in `line`.
    fn put(&mut self) {
        let Some(file) = &mut self.file else { return };
        let separator = if std::mem::replace(&mut self.any, true) { ",\n" } else { "[\n" };
        let written =
            file.write_all(separator.as_bytes()).and_then(|()| file.write_all(self.line.as_bytes()));
        if let Err(e) = written {
            tracing::warn!("the trace ends here: {e}");
            self.file = None;
        }
    }

    fn close(&mut self) {
        let Some(mut file) = self.file.take() else { return };
        if !self.started {
            // Not even what is in the buffer.
            let _ = file.into_parts();
            return;
        }
        let end = if self.any { "\n]\n" } else { "[]\n" };
        if let Err(e) = file.write_all(end.as_bytes()).and_then(|()| file.flush()) {
            tracing::warn!("the end of the trace is lost: {e}");
        }
    }
}

impl Trace {
    /// A trace to a file.
    fn open(path: &Path, clock: Arc<dyn Clock>) -> io::Result<Arc<Self>> {
        let file = Some(BufWriter::with_capacity(BUFFER, OutputFile::open(path)?));
        let out = Mutex::new(Output { file, started: false, line: String::new(), any: false });
        Ok(Arc::new(Self { clock, out, tracks: AtomicU32::new(0) }))
    }

    /// A new track.
    fn track(self: &Arc<Self>, name: &str) -> Track {
        let number = self.tracks.fetch_add(1, Ordering::Relaxed);
        let track = Track { trace: self.clone(), number };
        track.put("thread_name", "M", None, |line| {
            line.push_str(",\"args\":{\"name\":");
            put_text(line, name);
            line.push('}');
        });
        track
    }

    /// Ends it. Later events are dropped.
    fn close(&self) {
        lock(&self.out).close();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.close();
    }
}

/// A track of a [`Trace`].
#[derive(Clone)]
pub(crate) struct Track {
    trace: Arc<Trace>,
    number: u32,
}

/// An argument of an event.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    Number(u64),
    /// Shown as a hexadecimal string.
    Hex(u64),
    Text(&'a str),
}

type Args<'a> = [(&'a str, Arg<'a>)];

impl Track {
    /// The time, for [`Track::slice`].
    pub(crate) fn now(&self) -> Nanos {
        self.trace.clock.now()
    }

    /// Something that has lasted from `start` until now.
    fn slice(&self, name: &str, start: Nanos, args: &Args<'_>) {
        let lasted = self.now().saturating_sub(start);
        self.put(name, "X", Some(start), |line| {
            line.push_str(",\"dur\":");
            put_micros(line, lasted);
            put_args(line, args);
        });
    }

    /// Something that happens now.
    pub(crate) fn instant(&self, name: &str, args: &Args<'_>) {
        self.put(name, "i", Some(self.now()), |line| {
            line.push_str(",\"s\":\"t\"");
            put_args(line, args);
        });
    }

    /// Something begins (`b`) or ends (`e`) now; `id` tells it from others that go on meanwhile.
    fn overlapping(&self, name: &str, phase: &str, id: u64, args: &Args<'_>) {
        self.put(name, phase, Some(self.now()), |line| {
            // Writing to a string cannot fail.
            let _ = write!(line, ",\"cat\":\"disk{}\",\"id\":{id}", self.number);
            put_args(line, args);
        });
    }

    fn put(&self, name: &str, phase: &str, at: Option<Nanos>, rest: impl FnOnce(&mut String)) {
        let mut out = lock(&self.trace.out);
        if out.file.is_none() {
            return;
        }
        let line = &mut out.line;
        line.clear();
        line.push_str("{\"name\":");
        put_text(line, name);
        let _ = write!(line, ",\"ph\":\"{phase}\",\"pid\":1,\"tid\":{}", self.number);
        if let Some(at) = at {
            line.push_str(",\"ts\":");
            put_micros(line, at);
        }
        rest(line);
        line.push('}');
        out.put();
    }

    /// A VM exit that came at `start` and is served now. `device`: who was accessed.
    pub(crate) fn exit(&self, start: Nanos, exit: &Exit, answer: Answer, device: Option<&str>) {
        use Arg::{Hex, Number, Text};
        let device = ("device", Text(device.unwrap_or("nobody")));
        let value = ("value", Hex(if let Answer::Value(value) = answer { value } else { 0 }));
        let width = |size: trapline_device::AccessSize| ("size", Number(size.bytes() as u64));
        let put = |args: &Args<'_>| self.slice(exit.kind().name(), start, args);
        match *exit {
            Exit::PioRead { port, size } => put(&[("port", Hex(port.into())), width(size), value, device]),
            Exit::PioWrite { port, size, value } => {
                put(&[("port", Hex(port.into())), width(size), ("value", Hex(value.into())), device]);
            }
            Exit::PioReadBlock { port, size, count } | Exit::PioWriteBlock { port, size, count } => {
                put(&[("port", Hex(port.into())), width(size), ("count", Number(count.into())), device]);
            }
            Exit::MmioRead { addr, size } => put(&[("address", Hex(addr)), width(size), value, device]),
            Exit::MmioWrite { addr, size, value } => {
                put(&[("address", Hex(addr)), width(size), ("value", Hex(value)), device]);
            }
            Exit::IoapicEoi { vector } => put(&[("vector", Hex(vector.into()))]),
            Exit::SystemEvent { kind } => put(&[("kind", Number(kind.into()))]),
            Exit::FailEntry { reason } => put(&[("reason", Hex(reason))]),
            Exit::InternalError { suberror, .. } => put(&[("suberror", Number(suberror.into()))]),
            Exit::Debug { exception, pc, .. } => {
                put(&[("exception", Number(exception.into())), ("pc", Hex(pc))]);
            }
            Exit::Halt | Exit::Shutdown | Exit::Interrupted | Exit::Deadline | Exit::InterruptWindow => {
                put(&[]);
            }
        }
    }
}

/// Nanoseconds as microseconds, exactly.
fn put_micros(line: &mut String, at: Nanos) {
    let _ = write!(line, "{}.{:03}", at / 1000, at % 1000);
}

fn put_args(line: &mut String, args: &Args<'_>) {
    if args.is_empty() {
        return;
    }
    line.push_str(",\"args\":{");
    for (n, (name, value)) in args.iter().enumerate() {
        line.push_str(if n == 0 { "\"" } else { ",\"" });
        line.push_str(name);
        line.push_str("\":");
        match *value {
            Arg::Number(number) => {
                let _ = write!(line, "{number}");
            }
            Arg::Hex(number) => {
                let _ = write!(line, "\"{number:#x}\"");
            }
            Arg::Text(text) => put_text(line, text),
        }
    }
    line.push('}');
}

/// A JSON string.
fn put_text(line: &mut String, text: &str) {
    line.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => line.extend(['\\', letter]),
            '\0'..='\u{1f}' => {
                let _ = write!(line, "\\u{:04x}", u32::from(letter));
            }
            _ => line.push(letter),
        }
    }
    line.push('"');
}

/// Interrupt lines whose rising edges are traced.
pub(crate) struct TracedLines {
    lines: Arc<dyn IrqSink>,
    /// One flag a line.
    levels: [AtomicBool; 32],
    track: Track,
}

impl TracedLines {
    pub(crate) fn new(lines: Arc<dyn IrqSink>, track: Track) -> Self {
        Self { lines, levels: Default::default(), track }
    }
}

impl IrqSink for TracedLines {
    fn set(&self, pin: u32, level: bool) {
        let was = self.levels.get(pin as usize).is_some_and(|line| line.swap(level, Ordering::Relaxed));
        if level && !was {
            self.track.instant("irq", &[("line", Arg::Number(pin.into()))]);
        }
        self.lines.set(pin, level);
    }
}

/// Messages that are traced.
pub(crate) struct TracedMessages {
    pub(crate) sink: Arc<dyn MsiSink>,
    pub(crate) track: Track,
}

impl MsiSink for TracedMessages {
    fn signal(&self, msi: Msi) {
        let args = [("address", Arg::Hex(msi.address)), ("data", Arg::Hex(msi.data.into()))];
        self.track.instant("message", &args);
        self.sink.signal(msi);
    }
}

/// What a drive asks of its disk.
impl Observer for Track {
    fn submitted(&self, id: u64, op: &Op) {
        use Arg::{Hex, Number};
        match op {
            Op::Read { offset, buffer } => {
                let args = [("offset", Hex(*offset)), ("bytes", Number(buffer.len() as u64))];
                self.overlapping("read", "b", id, &args);
            }
            Op::Write { offset, buffer, .. } => {
                let args = [("offset", Hex(*offset)), ("bytes", Number(buffer.len() as u64))];
                self.overlapping("write", "b", id, &args);
            }
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                let args = [("offset", Hex(*offset)), ("bytes", Number(*len))];
                self.overlapping(name(op), "b", id, &args);
            }
            Op::Flush => self.overlapping("flush", "b", id, &[]),
        }
    }

    fn completed(&self, id: u64, op: &Op, failed: bool) {
        let result = if failed { "error" } else { "ok" };
        self.overlapping(name(op), "e", id, &[("result", Arg::Text(result))]);
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Read { .. } => "read",
        Op::Write { .. } => "write",
        Op::Flush => "flush",
        Op::Discard { .. } => "discard",
        Op::WriteZeroes { .. } => "write zeroes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trapline_device::AccessSize;
    use trapline_device::test::{FakeClock, Recorder};

    fn written(work: impl FnOnce(&Arc<Trace>, &FakeClock)) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let clock = Arc::new(FakeClock::default());
        let trace = Trace::open(file.path(), clock.clone()).unwrap();
        lock(&trace.out).start().unwrap();
        work(&trace, &clock);
        trace.close();
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn an_exit_is_a_slice_in_microseconds() {
        let text = written(|trace, clock| {
            let track = trace.track("vcpu 0");
            clock.advance(1_234_567);
            let start = track.now();
            clock.advance(89);
            let exit = Exit::PioRead { port: 0x3fd, size: AccessSize::Byte };
            track.exit(start, &exit, Answer::Value(0x60), Some("serial0"));
        });
        let expected = "[\n\
            {\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":0,\"args\":{\"name\":\"vcpu 0\"}},\n\
            {\"name\":\"pio_read\",\"ph\":\"X\",\"pid\":1,\"tid\":0,\"ts\":1234.567,\"dur\":0.089,\
            \"args\":{\"port\":\"0x3fd\",\"size\":1,\"value\":\"0x60\",\"device\":\"serial0\"}}\n]\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn rising_edges_and_messages_are_instants_that_pass_through() {
        let (pic, text) = (Arc::new(Recorder::default()), written(|_, _| {}));
        assert_eq!(text, "[]\n");
        let text = written(|trace, _| {
            let lines = TracedLines::new(pic.clone(), trace.track("interrupts"));
            for level in [true, true, false, true] {
                lines.set(4, level);
            }
        });
        assert_eq!(pic.rising_edges(4), 2);
        assert_eq!(text.matches("\"name\":\"irq\",\"ph\":\"i\"").count(), 2, "{text}");
        assert!(text.contains("\"args\":{\"line\":4}"), "{text}");
    }

    #[test]
    fn requests_of_a_disk_overlap() {
        let text = written(|trace, clock| {
            let track = trace.track("disk \"0\"");
            let op = Op::Discard { offset: 512, len: 4096 };
            track.submitted(7, &op);
            clock.advance(1000);
            track.completed(7, &op, true);
        });
        assert!(text.contains("\"name\":\"disk \\\"0\\\"\""), "{text}");
        let (begin, end) = (
            "\"ph\":\"b\",\"pid\":1,\"tid\":0,\"ts\":0.000",
            "\"ph\":\"e\",\"pid\":1,\"tid\":0,\"ts\":1.000",
        );
        assert!(text.contains(begin) && text.contains(end), "{text}");
        assert_eq!(text.matches("\"cat\":\"disk0\",\"id\":7").count(), 2, "{text}");
        assert!(text.contains("\"result\":\"error\""), "{text}");
    }

    #[test]
    fn what_comes_after_the_end_is_dropped() {
        let text = written(|trace, _| {
            let track = trace.track("x");
            trace.close();
            track.instant("late", &[]);
        });
        assert!(!text.contains("late") && text.ends_with("]\n"), "{text}");
    }
}
