//! Decoded operations and how one follows another.
//!
//! A block is a run of [`Op`]s in an arena ([`crate::code`]). Each handler does its work and calls the
//! next operation's handler as its last act; with optimisation that is a jump, so that a block runs as
//! threaded code. Without, the stack grows by one frame an operation, and the length of a chain bounds that.
//!
//! A handler must therefore not lend out the address of a local variable before it calls [`next`]: work
//! that needs this goes into a function of its own.

use std::ops::Deref;
use std::ptr::NonNull;

use crate::cpu::{Cpu, RBLOCK, Stop, seg};

/// Executes one operation and those after it; says why it came back.
pub type Handler = extern "C-unwind" fn(&mut Cpu, OpRef) -> Flow;

/// Why a chain of operations ended. `Cpu::rip` is then the next instruction's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// An operation that host code called is done. Only host code sees this.
    Native = 0,
    /// Find the block at `rip` (indirect branch, end of a long block, asynchronous event pending).
    Lookup,
    /// As `Lookup`, and the exit operation in `Cpu::code.patch` may be linked to what is found.
    Link,
    /// Mode, privilege, interrupt flag or address space may have changed: look at everything anew.
    Sync,
    /// An exception or a VM exit is in `Cpu::stop`; `rip` is that of the instruction that caused it.
    Stop,
}

/// One decoded operation: 32 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    /// What executes it.
    pub run: Handler,
    /// Immediate operand; in exit operations, the address of the linked block's first operation, or 0; in a block's
    /// head, where host code goes that comes to the block.
    pub imm: u64,
    /// Displacement. RIP-relative ones are relative to the block's start. In exit operations, the
    /// target relative to the block's start.
    pub disp: i32,
    /// First register operand (usually the destination).
    pub r1: u8,
    /// Second register operand.
    pub r2: u8,
    /// Base register, [`crate::cpu::RZERO`] for none, [`RBLOCK`] for RIP-relative.
    pub base: u8,
    /// Index register, [`crate::cpu::RZERO`] for none.
    pub index: u8,
    /// Offset of the instruction from the block's start.
    pub off: u16,
    /// Shift of the index (0–3); bits 7–4: address size as log2 bytes (1, 2, 3). In exit operations, [`Op::ON`] or 0.
    pub scale: u8,
    /// Segment of the memory operand ([`crate::cpu::seg`]).
    pub seg: u8,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// Instructions of the block before this one.
    pub nth: u8,
    /// Whatever else the handler needs (a condition, flags, a width).
    pub aux: u16,
}

impl Op {
    /// Of an exit operation: it leads to the instruction that follows, not to the target of a branch.
    pub const ON: u8 = 0xff;
}

/// A place in the operation arena. Only [`crate::code`] makes them, of operations that stay where they
/// are until the arena is flushed, which happens between chains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct OpRef(NonNull<Op>);

#[allow(unsafe_code)]
impl OpRef {
    /// # Safety
    /// `p` points into an operation arena, at an operation of a block that ends after it, and that
    /// stays there as long as the result is used.
    pub(crate) unsafe fn new(p: NonNull<Op>) -> Self {
        Self(p)
    }

    /// The operation `n` places further in the same block.
    #[inline(always)]
    pub fn ahead(self, n: usize) -> Self {
        // SAFETY: blocks end with operations that do not look ahead, and handlers that do (`next`,
        // conditional branches to their exit operations) are laid down with what they look at.
        Self(unsafe { self.0.add(n) })
    }

    /// The address, for a link.
    #[inline(always)]
    pub(crate) fn addr(self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// # Safety
    /// `addr` came from [`OpRef::addr`] of an operation that is still in place.
    #[inline(always)]
    pub(crate) unsafe fn from_addr(addr: u64) -> Self {
        // SAFETY: by the contract, the address is that of an operation, never null.
        Self(unsafe { NonNull::new_unchecked(addr as *mut Op) })
    }

    /// The raw place, for the arena's own writes.
    pub(crate) fn as_ptr(self) -> *mut Op {
        self.0.as_ptr()
    }
}

#[allow(unsafe_code)]
impl Deref for OpRef {
    type Target = Op;
    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: see the type: the place is valid while the chain runs, and nothing writes to it then
        // but link fields, between the loads of handlers on the same thread.
        unsafe { self.0.as_ref() }
    }
}

/// Goes on with the next operation.
#[inline(always)]
pub fn next(cpu: &mut Cpu, op: OpRef) -> Flow {
    let n = op.ahead(1);
    (n.run)(cpu, n)
}

/// The instruction did not complete: an exception or a VM exit is pending in `Cpu::stop`.
#[cold]
#[inline(never)]
pub fn stop(cpu: &mut Cpu, op: OpRef, why: Stop) -> Flow {
    if op.seg == seg::SS as u8 {
        cpu.at_stack(why);
    }
    cpu.mmu.not_canonical = false;
    cpu.rip = cpu.ip(&op);
    cpu.last_len = op.len;
    cpu.icount += u64::from(op.nth);
    Flow::Stop
}

/// The instruction completed, and ends the block because the processor's mode may have changed.
#[inline(always)]
pub fn sync(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.rip = cpu.ip_after(&op);
    cpu.icount += u64::from(op.nth) + 1;
    Flow::Sync
}

/// The instruction completed and has set `Cpu::rip` itself.
#[inline(always)]
pub fn jumped(cpu: &mut Cpu, op: OpRef, flow: Flow) -> Flow {
    cpu.icount += u64::from(op.nth) + 1;
    flow
}

impl Cpu {
    /// RIP of `op`'s instruction.
    #[inline(always)]
    pub fn ip(&self, op: &Op) -> u64 {
        self.wrap_ip(self.regs[RBLOCK as usize].wrapping_add(u64::from(op.off)))
    }

    /// RIP of the instruction after `op`'s.
    #[inline(always)]
    pub fn ip_after(&self, op: &Op) -> u64 {
        self.wrap_ip(self.regs[RBLOCK as usize].wrapping_add(u64::from(op.off) + u64::from(op.len)))
    }
}

/// Makes a [`Handler`] of a function `fn(&mut Cpu, &Op) -> Result<(), Stop>`: `next: f => name` goes on
/// with the block afterwards, `sync: f => name` ends it (mode, IF or address space may have changed).
#[macro_export]
macro_rules! handler {
    (next: $body:path => $name:ident) => {
        #[doc = concat!("Handler of [`", stringify!($body), "`].")]
        pub extern "C-unwind" fn $name(
            cpu: &mut $crate::cpu::Cpu,
            op: $crate::op::OpRef,
        ) -> $crate::op::Flow {
            match $body(cpu, &op) {
                Ok(()) => $crate::op::next(cpu, op),
                Err(s) => $crate::op::stop(cpu, op, s),
            }
        }
    };
    (sync: $body:path => $name:ident) => {
        #[doc = concat!("Handler of [`", stringify!($body), "`]; ends the block.")]
        pub extern "C-unwind" fn $name(
            cpu: &mut $crate::cpu::Cpu,
            op: $crate::op::OpRef,
        ) -> $crate::op::Flow {
            match $body(cpu, &op) {
                Ok(()) => $crate::op::sync(cpu, op),
                Err(s) => $crate::op::stop(cpu, op, s),
            }
        }
    };
    (jump: $body:path => $name:ident) => {
        #[doc = concat!("Handler of [`", stringify!($body), "`], which sets `Cpu::rip`.")]
        pub extern "C-unwind" fn $name(
            cpu: &mut $crate::cpu::Cpu,
            op: $crate::op::OpRef,
        ) -> $crate::op::Flow {
            match $body(cpu, &op) {
                Ok(()) => $crate::op::jumped(cpu, op, $crate::op::Flow::Sync),
                Err(s) => $crate::op::stop(cpu, op, s),
            }
        }
    };
}
