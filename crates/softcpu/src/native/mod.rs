//! Host code for blocks that run often.
//!
//! A block of 64-bit code starts with one more operation, its *head*, that counts. When the count is full, the
//! block gets host code: templates for common operations (`template`, `emit`), calls of the handlers for
//! others. The head is then replaced by the code itself, which is entered like a handler, so that links between
//! blocks, their invalidation, and everything else about them stay as they are. What a template does not do it leaves
//! to the interpreter's handler of the operation: for a miss of the TLB or a page with decoded code it calls it and
//! goes on behind the operation; for a branch without a link, a signal or the end of the chain it goes there for good.
//!
//! The interpreter is the reference: code that is made must leave registers, flags, memory and instruction count as
//! the handlers do at every operation where it can be left. Guest registers are in memory between
//! operations. Nothing changes a block's code once it is made: links are looked up in the operations, and a block
//! that is dropped is left at its head or at the next return from a handler.
//!
//! Host code is only made on x86-64 hosts that allow memory to be both written and executed.
#![allow(unsafe_code)]

mod asm;
mod buffer;
mod emit;
mod template;
#[cfg(test)]
mod tests;
mod vector;

use std::mem::offset_of;
use std::sync::Arc;

use self::asm::{Asm, RBX, RDI, Rm};
use self::buffer::Buffer;
use crate::code::CodeCache;
use crate::cpu::{Cpu, Signals};
use crate::op::{Flow, Handler, Op, OpRef, next};
use crate::ops::branch;

/// The key of blocks that get host code: 64-bit, nothing special.
pub(crate) const KEY: u32 = 2;

/// Entries of a block into its head before host code is made for it.
pub(crate) const THRESHOLD: u32 = 16;

/// Host code of one processor at most, in bytes.
const SIZE: usize = 64 << 20;

/// Host code of one block at most, in bytes: 32 instructions, and the code to leave them.
const BLOCK: usize = 32 << 10;

/// RBX points this far into the processor's state, so that all registers are within reach of a displacement of 8
/// bits.
const BIAS: i32 = 128;

/// Addresses that code refers to.
struct Places {
    /// Leaves the code to the handler of the operation in RSI.
    leave: u64,
    /// Returns what a handler returned.
    back: u64,
    /// Looks up a block.
    look_up: u64,
    /// The word of signals.
    signals: u64,
    /// The first operation of the arena.
    ops: u64,
    /// The table of recent blocks.
    recent: u64,
    /// Host-physical memory.
    memory: u64,
}

/// The host code of one processor.
pub(crate) struct Native {
    buffer: Buffer,
    places: Places,
    /// What the code looks at between blocks stays for as long as the code.
    _signals: Arc<Signals>,
    /// Bytes of the buffer that routines for all blocks take.
    common: usize,
    /// See [`Cpu::translate_after`].
    threshold: u32,
    /// Room has run out: everything is to be dropped when nothing runs.
    full: bool,
}

impl Native {
    /// Where host code goes that comes to a head without host code: out of host code, to the head's handler.
    pub fn outside(&self) -> u64 {
        self.places.leave
    }

    /// Forgets all blocks' code. Not while a chain runs.
    pub fn flush(&mut self) {
        self.buffer.truncate(self.common);
        self.full = false;
    }

    /// Whether room has run out.
    pub fn full(&self) -> bool {
        self.full
    }

    fn new(signals: Arc<Signals>, ops: u64, recent: u64, memory: u64) -> Option<Self> {
        if !cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
            return None;
        }
        let mut buffer = Buffer::new(SIZE)?;
        let mut asm = Asm::new(buffer.next());
        let leave = asm.here();
        emit::leave(&mut asm);
        let back = asm.here();
        asm.pop(RBX);
        asm.ret();
        let word = Arc::as_ptr(&signals) as u64;
        let places = Places { leave, back, look_up: asm.here(), signals: word, ops, recent, memory };
        emit::look_up(&mut asm, &places);
        buffer.append(&asm.code);
        let common = buffer.used();
        Some(Self { buffer, places, _signals: signals, common, threshold: THRESHOLD, full: false })
    }

    /// Makes the code of a block whose operations, without the head, are `ops` at `first`. Gives its address, the
    /// address behind its prologue, and the operations that lie behind each other in the arena at `extra`.
    fn compile(
        &mut self,
        first: OpRef,
        ops: &[Op],
        extra: u64,
        extra_ops: &mut Vec<Op>,
    ) -> Option<(u64, u64)> {
        if self.buffer.left() < BLOCK {
            self.full = true;
            return None;
        }
        let entry = self.buffer.next();
        let mut emitter = emit::Emitter::new(entry, &self.places);
        emitter.asm.push(RBX);
        emitter.asm.lea(8, RBX, Rm::Mem(RDI, BIAS));
        let body = emitter.asm.here();
        let calls = emitter.block(first, ops);
        let mut code = emitter.asm.code;
        for call in calls {
            let end = call.op.first + call.op.count;
            let (called, after) = (ops.get(call.op.first..end)?, ops.get(end)?);
            let address = extra + (extra_ops.len() * size_of::<Op>()) as u64;
            code.get_mut(call.at..call.at + 8)?.copy_from_slice(&address.to_le_bytes());
            // If the handler drops the block, what follows it becomes a place to go on from.
            extra_ops.extend(called);
            extra_ops.push(Op {
                run: if branch::is_exit(after.run) { come_back_to_exit } else { come_back },
                ..*after
            });
        }
        self.buffer.append(&code).then_some((entry, body))
    }
}

/// Follows an operation that was called alone.
#[inline(never)]
extern "C-unwind" fn come_back(_cpu: &mut Cpu, _op: OpRef) -> Flow {
    Flow::Native
}

/// [`come_back`] where an exit operation is next. Never copied: `code` tells it by its address.
#[inline(never)]
pub(crate) extern "C-unwind" fn come_back_to_exit(_cpu: &mut Cpu, _op: OpRef) -> Flow {
    // Not the same code as `come_back`, lest the compiler makes one function of the two.
    std::hint::black_box(Flow::Native)
}

/// The head of a block that has no host code yet: `imm` is where host code goes that comes here, `disp` the block's
/// number, `aux` counts.
pub(crate) extern "C-unwind" fn warm(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.code.count_head(op) {
        cpu.make_native(op);
        // Whatever is there now: host code, or `cold`. Where there was no room it is this handler still.
        let run = op.run;
        if !std::ptr::fn_addr_eq(run, warm as Handler) {
            return run(cpu, op);
        }
    }
    next(cpu, op)
}

/// The head of a block that gets no host code.
pub(crate) extern "C-unwind" fn cold(cpu: &mut Cpu, op: OpRef) -> Flow {
    next(cpu, op)
}

impl Cpu {
    /// Blocks of 64-bit code get host code when they are entered after `entries` times, 0 to 65,534 (more is never);
    /// `None` leaves all to the interpreter. All decoded code is dropped. Says whether host code is made at all: not on
    /// hosts that are no x86-64, or forbid memory that is both written and executed.
    pub fn translate_after(&mut self, entries: Option<u32>) -> bool {
        self.code.native = entries.and_then(|threshold| {
            let (ops, recent) = self.code.places();
            let native = Native::new(self.signals.clone(), ops, recent, self.arena.base() as u64)?;
            Some(Native { threshold, ..native })
        });
        self.flush_code();
        self.code.native.is_some()
    }

    #[cold]
    #[inline(never)]
    fn make_native(&mut self, head: OpRef) {
        let code = &mut self.code;
        let Some(mut native) = code.native.take() else { return };
        let done = code.translate(head, |first, ops, extra, extra_ops| {
            let (entry, body) = native.compile(first, ops, extra, extra_ops)?;
            // SAFETY: `compile` has just laid it down, and a flush of the buffer comes with one of all operations.
            Some((unsafe { buffer::handler(entry) }, body))
        });
        native.full |= !done;
        code.native = Some(native);
    }
}

impl CodeCache {
    /// Whether the count of a head is full.
    #[inline(always)]
    fn count_head(&mut self, head: OpRef) -> bool {
        let Some(native) = &self.native else { return false };
        let count = u32::from(head.aux) + 1;
        // SAFETY: the operation is in the arena, and this field is read here alone.
        unsafe { (&raw mut (*head.as_ptr()).aux).write(count.min(0xffff) as u16) };
        count > native.threshold
    }
}

/// The head's field where host code finds what to go to.
const _: () = assert!(offset_of!(Op, imm) == 8 && offset_of!(Op, run) == 0);
