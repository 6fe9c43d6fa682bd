//! From what the kernel left in `struct kvm_run` to an [`Exit`], and an answer back.

use kvm_bindings::*;
use trapline_device::AccessSize;

use super::sys::RunPage;
use crate::{Answer, Error, Exit, Result};

/// An exit as the kernel says it.
pub(super) enum RawExit {
    Io(kvm_run__bindgen_ty_1__bindgen_ty_4),
    Mmio(kvm_run__bindgen_ty_1__bindgen_ty_6),
    Debug(kvm_debug_exit_arch),
    FailEntry(u64),
    Internal(kvm_run__bindgen_ty_1__bindgen_ty_13),
    SystemEvent(u32),
    Eoi(u8),
    Plain(u32),
}

/// What the last exit left to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Pending {
    /// Nothing.
    #[default]
    Nothing,
    /// The port instruction retires at the next KVM_RUN. `answer`: it reads.
    Pio { offset: u64, len: usize, answer: Answer },
    /// Part `done..` of a memory access of `len` bytes is not served yet; then as for `Pio`.
    Mmio { addr: u64, data: [u8; 8], len: usize, done: usize, write: bool },
}

impl Pending {
    /// What the next entry must bring.
    pub(super) fn expects(&self) -> Answer {
        match self {
            Self::Pio { answer, .. } => *answer,
            Self::Mmio { write: false, .. } => Answer::Value(0),
            _ => Answer::None,
        }
    }

    /// Takes the answer in. `Some` when the access has another part, to be reported before the kernel
    /// goes on.
    pub(super) fn answer(&mut self, answer: Answer, page: &mut RunPage) -> Result<Option<Exit>> {
        let expected = self.expects();
        if std::mem::discriminant(&expected) != std::mem::discriminant(&answer) {
            return Err(Error::Answer { expected: expected.name(), got: answer.name() });
        }
        match (&mut *self, answer) {
            (Self::Pio { offset, len, .. }, Answer::Value(value)) => {
                if let Some(data) = page.io_data(*offset, *len) {
                    copy(data, &value.to_le_bytes());
                }
                Ok(None)
            }
            (Self::Mmio { data, len, done, write, .. }, answer) => {
                let size = part(*len - *done);
                if let Answer::Value(value) = answer {
                    copy(&mut data[*done..*done + size.bytes()], &value.to_le_bytes());
                }
                *done += size.bytes();
                if *done < *len {
                    return Ok(self.next_part());
                }
                if !*write {
                    page.set_mmio_data(*data);
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The exit for the part of a memory access that is next.
    fn next_part(&self) -> Option<Exit> {
        let Self::Mmio { addr, data, len, done, write } = *self else { return None };
        let size = part(len - done);
        let addr = addr.wrapping_add(done as u64);
        if !write {
            return Some(Exit::MmioRead { addr, size });
        }
        let mut value = [0; 8];
        copy(&mut value[..size.bytes()], &data[done..]);
        Some(Exit::MmioWrite { addr, size, value: u64::from_le_bytes(value) })
    }

    /// Translates an exit. `None`: nothing that the board has to know, run on.
    pub(super) fn from_raw(raw: RawExit, page: &mut RunPage) -> (Self, Option<Exit>) {
        let plain = |exit| (Self::Nothing, Some(exit));
        match raw {
            RawExit::Io(io) => Self::from_io(io, page),
            RawExit::Mmio(mmio) => {
                let (len, write) = (mmio.len as usize, mmio.is_write != 0);
                if len == 0 || len > 8 {
                    return plain(unknown(KVM_EXIT_MMIO));
                }
                let pending = Self::Mmio { addr: mmio.phys_addr, data: mmio.data, len, done: 0, write };
                (pending, pending.next_part())
            }
            RawExit::Debug(d) => {
                plain(Exit::Debug { exception: d.exception, pc: d.pc, dr6: d.dr6, dr7: d.dr7 })
            }
            RawExit::FailEntry(reason) => plain(Exit::FailEntry { reason }),
            RawExit::Internal(e) => {
                let mut data = [0; 4];
                let said = e.data.iter().take(e.ndata as usize);
                data.iter_mut().zip(said).for_each(|(to, from)| *to = *from);
                plain(Exit::InternalError { suberror: e.suberror, data })
            }
            RawExit::SystemEvent(kind) => plain(Exit::SystemEvent { kind }),
            RawExit::Eoi(vector) => plain(Exit::IoapicEoi { vector }),
            RawExit::Plain(KVM_EXIT_HLT) => plain(Exit::Halt),
            RawExit::Plain(KVM_EXIT_SHUTDOWN) => plain(Exit::Shutdown),
            RawExit::Plain(KVM_EXIT_INTR) => plain(Exit::Interrupted),
            RawExit::Plain(KVM_EXIT_IRQ_WINDOW_OPEN) => plain(Exit::InterruptWindow),
            // The guest lowered CR8 in a machine without local APICs: nobody there to care.
            RawExit::Plain(KVM_EXIT_SET_TPR) => (Self::Nothing, None),
            RawExit::Plain(other) => plain(unknown(other)),
        }
    }

    fn from_io(io: kvm_run__bindgen_ty_1__bindgen_ty_4, page: &mut RunPage) -> (Self, Option<Exit>) {
        let (offset, len) = (io.data_offset, io.size as usize * io.count as usize);
        let (Some(size), Some(data)) = (AccessSize::from_bytes(io.size.into()), page.io_data(offset, len))
        else {
            return (Self::Nothing, Some(unknown(KVM_EXIT_IO)));
        };
        let (port, count, read) = (io.port, io.count, u32::from(io.direction) == KVM_EXIT_IO_IN);
        let (answer, exit) = match (read, count) {
            (true, 1) => (Answer::Value(0), Exit::PioRead { port, size }),
            (true, _) => (Answer::Block, Exit::PioReadBlock { port, size, count }),
            (false, 1) => {
                let mut value = [0; 4];
                copy(&mut value, data);
                (Answer::None, Exit::PioWrite { port, size, value: u32::from_le_bytes(value) })
            }
            (false, _) => (Answer::None, Exit::PioWriteBlock { port, size, count }),
        };
        (Self::Pio { offset, len, answer }, Some(exit))
    }
}

/// An exit reason that this crate does not know: suberror 0.
fn unknown(reason: u32) -> Exit {
    Exit::InternalError { suberror: 0, data: [reason.into(), 0, 0, 0] }
}

/// The widest access that fits into `left` bytes: the kernel cuts an access at a page's edge, so that a
/// part of it can have any length up to 8.
fn part(left: usize) -> AccessSize {
    match left {
        8.. => AccessSize::Qword,
        4..8 => AccessSize::Dword,
        2..4 => AccessSize::Word,
        _ => AccessSize::Byte,
    }
}

/// As many bytes as both have.
fn copy(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}
