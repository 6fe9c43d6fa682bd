//! The asynchronous form of a disk.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Buffer;
use crate::contract::{Access, Disk, DiskError, Result};
use crate::uring::Ring;

/// What to do. The range is `offset` and the buffer's length.
#[derive(Debug)]
pub enum Op {
    /// Fill the buffer.
    Read {
        /// First byte.
        offset: u64,
        /// Comes back filled.
        buffer: Buffer,
    },
    /// Write the buffer.
    Write {
        /// First byte.
        offset: u64,
        /// Comes back as it was, for the next request.
        buffer: Buffer,
        /// Forced unit access: complete only when durable.
        fua: bool,
    },
    /// [`Disk::flush`]. It covers writes whose completion was *seen* before it is submitted.
    Flush,
    /// [`Disk::discard`].
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// [`Disk::write_zeroes`].
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Whether the room may be freed.
        unmap: bool,
    },
}

/// An operation and the caller's name for it.
#[derive(Debug)]
pub struct Request {
    /// Whatever the caller likes: it comes back in the [`Completion`].
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// A request that is done.
#[derive(Debug)]
pub struct Completion {
    /// The request, with its buffer.
    pub request: Request,
    /// How it went.
    pub result: Result<()>,
}

/// How an [`Engine`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Whether [`Engine::submit`] serves everything itself, however long it takes: for machines whose course
    /// must not depend on how fast a disk is.
    pub blocking: bool,
    /// Whether [`Engine::submit`] serves itself what concerns the page cache alone: reads of what it
    /// holds, and small writes under the cache modes `writeback` and `unsafe`.
    pub inline: bool,
    /// Whether to use io_uring where the kernel has it.
    pub io_uring: bool,
    /// Threads at most for everything else, at least 1. They start when first needed.
    pub threads: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { blocking: false, inline: true, io_uring: true, threads: 4 }
    }
}

/// Learns of what an [`Engine`] does, such as for a trace. Called by whoever submits and reaps.
pub trait Observer: Send + Sync {
    /// A request begins.
    fn submitted(&self, id: u64, op: &Op);
    /// It is done, and its completion is about to be handed out.
    fn completed(&self, id: u64, op: &Op, failed: bool);
}

/// Runs requests on a disk off the caller's thread.
///
/// [`submit`](Self::submit) either serves a request at once, when the page cache has its bytes or takes
/// them, and returns its completion, or takes it: then [`event`](Self::event) becomes readable when it is
/// done, and [`reap`](Self::reap) hands the completion out. Transfers whose place in the host file
/// is known go to io_uring, all else to a small pool of threads that use the blocking [`Disk`]
/// calls; the pool also takes over where io_uring is missing, full, or answered with an error or
/// less than all bytes, so that errors are the same either way.
///
/// Requests in flight are in no order. Dropping the engine waits for them; completions not reaped
/// are lost.
pub struct Engine {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    ring: Option<Mutex<Ring>>,
    options: EngineOptions,
    workers: Mutex<Vec<JoinHandle<()>>>,
    observer: OnceLock<Arc<dyn Observer>>,
}

struct Shared {
    event: EventFd,
    queue: Mutex<Queue>,
    /// A request was queued, or the engine stops.
    work: Condvar,
    /// The pool may have run empty.
    idle: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Requests that a worker has taken.
    running: usize,
    /// Workers that wait for a request.
    resting: usize,
    done: VecDeque<Completion>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        // Non-blocking: fails only if the counter is full, and then it is readable anyway.
        let _ = self.event.write(1);
    }
}

impl Engine {
    /// An engine for `disk`. Without io_uring in the kernel it works with threads alone.
    pub fn new(disk: Arc<dyn Disk>, options: EngineOptions) -> Result<Self> {
        if options.threads == 0 {
            return Err(DiskError::InvalidOption("an engine needs at least one thread".into()));
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|e| DiskError::io("eventfd", e))?;
        let ring = (options.io_uring && !options.blocking).then(|| Ring::new(&event)).and_then(|ring| {
            ring.map_err(|e| tracing::debug!("no io_uring, threads instead: {e}")).ok().map(Mutex::new)
        });
        let queue = Mutex::new(Queue::default());
        let shared = Shared { event, queue, work: Condvar::new(), idle: Condvar::new() };
        let (shared, workers) = (Arc::new(shared), Mutex::default());
        Ok(Self { disk, shared, ring, options, workers, observer: OnceLock::new() })
    }

    /// From here on `observer` learns of requests and completions. There can be one: later ones do not.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether io_uring is in use.
    pub fn uses_io_uring(&self) -> bool {
        self.ring.is_some()
    }

    /// Becomes readable when a completion waits. [`reap`](Self::reap) resets it.
    pub fn event(&self) -> &EventFd {
        &self.shared.event
    }

    /// Starts a request. `Some`: it is already done, and will not be reaped.
    pub fn submit(&self, mut request: Request) -> Option<Completion> {
        if let Some(observer) = self.observer.get() {
            observer.submitted(request.id, &request.op);
        }
        if self.options.blocking {
            let completion = run(&*self.disk, request);
            self.tell_completed(&completion);
            return Some(completion);
        }
        if self.options.inline
            && let Some(result) = try_now(&*self.disk, &mut request.op)
        {
            let completion = Completion { request, result };
            self.tell_completed(&completion);
            return Some(completion);
        }
        if let Err(request) = self.submit_to_ring(request) {
            self.enqueue(request);
        }
        None
    }

    /// Takes the completions that wait.
    pub fn reap(&self) -> Vec<Completion> {
        // First the counter, then the queues: what completes in between makes it readable again.
        let _ = self.shared.event.read();
        if let Some(ring) = &self.ring {
            self.reap_ring(&mut ring.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let done: Vec<_> = self.shared.lock().done.drain(..).collect();
        done.iter().for_each(|completion| self.tell_completed(completion));
        done
    }

    fn tell_completed(&self, Completion { request, result }: &Completion) {
        if let Some(observer) = self.observer.get() {
            observer.completed(request.id, &request.op, result.is_err());
        }
    }

    /// Waits until nothing is in flight, as before a snapshot. The completions are left to
    /// [`reap`](Self::reap), and the event is readable if there are any.
    pub fn wait_idle(&self) {
        if let Some(ring) = &self.ring {
            let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            while !ring.is_idle() {
                if let Err(e) = ring.wait() {
                    tracing::error!("io_uring: {e}");
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                self.reap_ring(&mut ring);
            }
        }
        let mut queue = self.shared.lock();
        while queue.running > 0 || !queue.waiting.is_empty() {
            queue = self.shared.idle.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if !queue.done.is_empty() {
            self.shared.signal();
        }
    }

    fn submit_to_ring(&self, request: Request) -> Result<(), Request> {
        let Some(ring) = &self.ring else { return Err(request) };
        let (access, offset, len) = match &request.op {
            Op::Read { offset, buffer } => (Access::Read, *offset, buffer.len()),
            Op::Write { offset, buffer, fua: false } => (Access::Write, *offset, buffer.len()),
            _ => return Err(request),
        };
        match self.disk.extent(access, offset, len as u64) {
            Some(extent) => ring.lock().unwrap_or_else(PoisonError::into_inner).submit(request, extent),
            None => Err(request),
        }
    }

    fn reap_ring(&self, ring: &mut Ring) {
        ring.reap(|request, moved| {
            let (Op::Read { buffer, .. } | Op::Write { buffer, .. }) = &request.op else { return };
            if moved.is_ok_and(|n| n == buffer.len()) {
                self.shared.lock().done.push_back(Completion { request, result: Ok(()) });
            } else {
                self.enqueue(request);
            }
        });
    }

    /// Gives a request to the pool.
    fn enqueue(&self, request: Request) {
        let mut queue = self.shared.lock();
        queue.waiting.push_back(request);
        let busy = queue.resting < queue.waiting.len();
        drop(queue);
        self.shared.work.notify_one();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if busy && workers.len() < self.options.threads {
            let (disk, shared) = (self.disk.clone(), self.shared.clone());
            match std::thread::Builder::new().name("disk".into()).spawn(move || work(&*disk, &shared)) {
                Ok(handle) => workers.push(handle),
                Err(e) if workers.is_empty() => {
                    // Nobody else would ever serve it.
                    tracing::error!("cannot start a disk thread: {e}");
                    drop(workers);
                    self.serve_here();
                }
                Err(_) => {}
            }
        }
    }

    fn serve_here(&self) {
        while let Some(request) = {
            let mut queue = self.shared.lock();
            queue.waiting.pop_front()
        } {
            let completion = run(&*self.disk, request);
            self.shared.lock().done.push_back(completion);
            self.shared.signal();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.wait_idle();
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = worker.join();
        }
    }
}

/// A worker's life.
fn work(disk: &dyn Disk, shared: &Shared) {
    let mut queue = shared.lock();
    loop {
        if let Some(request) = queue.waiting.pop_front() {
            queue.running += 1;
            drop(queue);
            let completion = run(disk, request);
            queue = shared.lock();
            queue.running -= 1;
            queue.done.push_back(completion);
            shared.signal();
            if queue.running == 0 && queue.waiting.is_empty() {
                shared.idle.notify_all();
            }
        } else if queue.stop {
            return;
        } else {
            queue.resting += 1;
            queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.resting -= 1;
        }
    }
}

/// Serves a request from the page cache if that can be done; an error is left to the long way.
fn try_now(disk: &dyn Disk, op: &mut Op) -> Option<Result<()>> {
    let served = match op {
        Op::Read { offset, buffer } => disk.try_read_at(*offset, &mut [IoSliceMut::new(buffer)]),
        Op::Write { offset, buffer, fua: false } => disk.try_write_at(*offset, &[IoSlice::new(buffer)]),
        _ => return None,
    };
    match served {
        Ok(true) => Some(Ok(())),
        Ok(false) | Err(DiskError::Io { .. }) => None,
        Err(e) => Some(Err(e)),
    }
}

fn run(disk: &dyn Disk, mut request: Request) -> Completion {
    let result = match &mut request.op {
        Op::Read { offset, buffer } => disk.read(*offset, buffer),
        Op::Write { offset, buffer, fua } => {
            let durable = !*fua || !disk.info().volatile_cache;
            disk.write(*offset, buffer).and_then(|()| if durable { Ok(()) } else { disk.flush() })
        }
        Op::Flush => disk.flush(),
        Op::Discard { offset, len } => disk.discard(*offset, *len),
        Op::WriteZeroes { offset, len, unmap } => disk.write_zeroes(*offset, *len, *unmap),
    };
    Completion { request, result }
}
