//! The way to a disk: at once on the caller's thread, or through an engine.

use std::sync::Arc;

use trapline_disk::{Completion, Disk, Engine, Op, Request, Result};

/// How a drive reaches its disk.
#[derive(Clone)]
pub enum Io {
    /// Each operation runs on the thread that touched the register: for tests, fuzzing, small tools.
    Blocking(Arc<dyn Disk>),
    /// Operations run on an engine: the drive is busy meanwhile. When [`Engine::event`] is readable,
    /// call [`PiixIde::complete`](crate::PiixIde::complete). An engine belongs to one drive.
    Engine(Arc<Engine>),
}

impl Io {
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        match self {
            Self::Blocking(disk) => disk,
            Self::Engine(engine) => engine.disk(),
        }
    }

    /// Starts an operation. `Some`: it is done already.
    pub(crate) fn submit(&self, request: Request) -> Option<Completion> {
        match self {
            Self::Engine(engine) => engine.submit(request),
            Self::Blocking(disk) => {
                let mut request = request;
                let result = run(disk.as_ref(), &mut request.op);
                Some(Completion { request, result })
            }
        }
    }

    pub(crate) fn reap(&self) -> Vec<Completion> {
        match self {
            Self::Engine(engine) => engine.reap(),
            Self::Blocking(_) => Vec::new(),
        }
    }

    pub(crate) fn wait_idle(&self) {
        if let Self::Engine(engine) = self {
            engine.wait_idle();
        }
    }
}

fn run(disk: &dyn Disk, op: &mut Op) -> Result<()> {
    match op {
        Op::Read { offset, buffer } => disk.read(*offset, buffer),
        Op::Write { offset, buffer, fua } => {
            disk.write(*offset, buffer)?;
            if *fua { disk.flush() } else { Ok(()) }
        }
        Op::Flush => disk.flush(),
        Op::Discard { offset, len } => disk.discard(*offset, *len),
        Op::WriteZeroes { offset, len, unmap } => disk.write_zeroes(*offset, *len, *unmap),
    }
}
