//! The cache of decoded blocks.
//!
//! A block is keyed by the host-physical address of its first byte and by the modes that decoding
//! depends on, so that it serves every virtual mapping of the same code. Its operations lie in an arena
//! and stay in place until the arena is full, when everything is dropped. Invalidating a block replaces
//! the handlers of all its operations by one that goes back to the dispatcher: links into the block need
//! not be found, and a block that overwrites itself notices at its next instruction.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use trapline_memory::arena::Arena;

use crate::cpu::{Cpu, Stop, attr, cr0, seg};
use crate::lower::{self, Decoded};
use crate::mmu::PAGE;
use crate::native::{self, Native};
use crate::op::{Flow, Handler, Op, OpRef};
use crate::ops::branch;
use crate::shared::Shared;

/// Bits of a block's key beside its address.
#[allow(missing_docs)]
pub mod key {
    /// Code size: 0 16-bit, 1 32-bit, 2 64-bit.
    pub const SIZE: u32 = 3;
    /// The stack segment is 32-bit (SS.B). Unused in 64-bit code.
    pub const STACK32: u32 = 1 << 2;
    /// Only one instruction: single-step, interrupt shadow.
    pub const SINGLE: u32 = 1 << 3;
    /// Real or virtual-8086 mode.
    pub const REAL: u32 = 1 << 4;
    /// The code segment has a limit that jumps inside a page could cross.
    pub const LIMITED: u32 = 1 << 5;
}

/// Operations the arena holds before it is dropped and filled anew. The host gives memory to those that are used.
const ARENA_OPS: usize = 1 << 21;
const BUCKETS: usize = 1 << 16;
/// Blocks that returns and indirect branches find at once.
pub(crate) const RECENT: usize = 1 << 12;
/// Writes to a page without code after which it is no longer watched.
const IDLE_WRITES: u32 = 64;
/// Sub-page grain of write detection.
const LINE: u64 = 64;

struct Block {
    hpa: u64,
    /// Page of the last byte, if the last instruction crosses into another page.
    tail: Option<u64>,
    key: u32,
    first: u32,
    ops: u16,
    bytes: u16,
    /// Next block in the bucket.
    next: u32,
    valid: bool,
    /// Operations that only its host code calls.
    extra: Option<(u32, u16)>,
}

/// A block that can be entered without a look at its `Block`. It may be invalid by now: its operations
/// say so themselves.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Recent {
    /// Address and key: see [`Recent::tag`].
    tag: u64,
    op: Option<OpRef>,
}

impl Recent {
    const NONE: Self = Self { tag: u64::MAX, op: None };
    /// Low bits of a tag that are the block's key.
    pub const KEY_BITS: u8 = 6;
    /// Address bits this far up are part of an entry's number too.
    pub const SHIFT: u8 = 12;
    /// Where the fields lie, for host code.
    pub const TAG: usize = std::mem::offset_of!(Self, tag);
    pub const OP: usize = std::mem::offset_of!(Self, op);

    #[inline(always)]
    fn slot(hpa: u64) -> usize {
        (hpa ^ hpa >> Self::SHIFT) as usize & (RECENT - 1)
    }

    #[inline(always)]
    fn tag(hpa: u64, key: u32) -> u64 {
        hpa << Self::KEY_BITS | u64::from(key)
    }
}

/// The blocks of one page.
#[derive(Default)]
struct CodePage {
    /// Which lines of the page blocks lie in.
    lines: u64,
    blocks: Vec<u32>,
    /// Writes seen since there was code here: a page that is only data by now is let go.
    idle: u32,
}

/// Figures about the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeStats {
    /// Blocks decoded.
    pub blocks: u64,
    /// Blocks invalidated by writes to their code.
    pub invalidated: u64,
    /// Times the whole cache was dropped.
    pub flushes: u64,
    /// Chains started by the dispatcher.
    pub dispatches: u64,
}

/// The decoded code of one processor.
pub struct CodeCache {
    ops: NonNull<Op>,
    used: usize,
    blocks: Vec<Block>,
    buckets: Box<[u32; BUCKETS]>,
    pages: HashMap<u64, CodePage>,
    /// In front of `buckets`: the blocks that chains went to lately.
    recent: Box<[Recent; RECENT]>,
    /// The key of the blocks that run now.
    pub(crate) key: u32,
    /// The block that `block_at` found last.
    latest: u32,
    /// The exit operation that [`Flow::Link`] is about.
    pub(crate) patch: Option<OpRef>,
    /// Counts.
    pub stats: CodeStats,
    scratch: Vec<Op>,
    /// Host code, if any is made.
    pub(crate) native: Option<Native>,
}

// SAFETY: the arena is owned; the pointers into it are used by whoever runs the processor, one thread
// at a time.
unsafe impl Send for CodeCache {}

impl Drop for CodeCache {
    fn drop(&mut self) {
        let ops = self.ops.cast::<MaybeUninit<Op>>().as_ptr();
        // SAFETY: `ops` came from a boxed slice of this length, and `Op` needs no dropping.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(ops, ARENA_OPS)) });
    }
}

fn stale_filler() -> Op {
    Op {
        run: stale,
        imm: 0,
        disp: 0,
        r1: 0,
        r2: 0,
        base: 0,
        index: 0,
        off: 0,
        scale: 0,
        seg: 0,
        len: 0,
        nth: 0,
        aux: 0,
    }
}

// Handlers that are told by their addresses must have one each: small functions that call nothing are otherwise
// copied to wherever they are named, where the compiler does not work incrementally.

/// The handler of every operation of an invalidated block.
#[inline(never)]
extern "C-unwind" fn stale(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.rip = cpu.ip(&op);
    cpu.icount += u64::from(op.nth);
    Flow::Lookup
}

/// [`stale`] of an exit operation. What it belongs to is done, and execution goes on at the exit's target; but a JMP is
/// an instruction that is still to come.
#[inline(never)]
extern "C-unwind" fn stale_exit(cpu: &mut Cpu, op: OpRef) -> Flow {
    if op.len != 0 {
        cpu.rip = cpu.ip(&op);
        cpu.icount += u64::from(op.nth) - 1;
    } else {
        cpu.rip = branch::target(cpu, &op);
        cpu.icount += u64::from(op.nth);
    }
    Flow::Lookup
}

/// The handler of an operation with this one once its block is invalidated.
fn stale_of(run: Handler) -> Handler {
    let before_exit = std::ptr::fn_addr_eq(run, native::come_back_to_exit as Handler);
    if before_exit || branch::is_exit(run) { stale_exit } else { stale }
}

impl CodeCache {
    pub(crate) fn new(_arena: &Arena) -> Self {
        let ops = Box::<[Op]>::new_uninit_slice(ARENA_OPS);
        let Some(ops) = NonNull::new(Box::into_raw(ops).cast::<Op>()) else {
            unreachable!("a box is never null")
        };
        let buckets = vec![0u32; BUCKETS].into_boxed_slice();
        let Ok(buckets) = buckets.try_into() else { unreachable!("the length is the array's") };
        // Block 0 stands for "none".
        let none = Block {
            hpa: u64::MAX,
            tail: None,
            key: 0,
            first: 0,
            ops: 0,
            bytes: 0,
            next: 0,
            valid: false,
            extra: None,
        };
        Self {
            ops,
            used: 0,
            blocks: vec![none],
            buckets,
            pages: HashMap::new(),
            recent: Box::new([Recent::NONE; RECENT]),
            key: 0,
            latest: 0,
            patch: None,
            stats: CodeStats::default(),
            scratch: Vec::new(),
            native: None,
        }
    }

    #[inline(always)]
    fn bucket(hpa: u64, key: u32) -> usize {
        (hpa ^ hpa >> 16 ^ u64::from(key) << 10) as usize & (BUCKETS - 1)
    }

    fn op(&self, index: usize) -> OpRef {
        debug_assert!(index < ARENA_OPS);
        // SAFETY: the index is inside the arena: it comes from a block that was laid down there.
        unsafe { OpRef::new(self.ops.add(index)) }
    }

    #[inline(always)]
    fn find(&self, hpa: u64, key: u32) -> u32 {
        let mut at = self.buckets[Self::bucket(hpa, key)];
        while at != 0 {
            let b = &self.blocks[at as usize];
            if b.hpa == hpa && b.key == key {
                return at;
            }
            at = b.next;
        }
        0
    }

    /// The block at `hpa` for the running modes, if a chain may go to it; remembered for next time.
    #[inline(never)]
    fn find_linkable(&mut self, hpa: u64) -> Option<OpRef> {
        let id = self.find(hpa, self.key);
        let b = self.blocks.get(id as usize)?;
        if id == 0 || b.tail.is_some() {
            return None;
        }
        let first = self.op(b.first as usize);
        self.recent[Recent::slot(hpa)] = Recent { tag: Recent::tag(hpa, self.key), op: Some(first) };
        Some(first)
    }

    /// Drops everything. Not while a chain runs.
    fn flush(&mut self, shared: &Shared) {
        for page in self.pages.keys() {
            shared.unwatch(page * PAGE);
        }
        self.pages.clear();
        self.blocks.truncate(1);
        self.buckets.fill(0);
        self.used = 0;
        self.patch = None;
        self.latest = 0;
        self.recent.fill(Recent::NONE);
        if let Some(native) = &mut self.native {
            native.flush();
        }
        self.stats.flushes += 1;
    }

    fn insert(&mut self, hpa: u64, tail: Option<u64>, key: u32, ops: &[Op], bytes: usize) -> u32 {
        let first = self.used;
        let id = self.blocks.len() as u32;
        let head = self.native.as_ref().filter(|_| headed(key, tail));
        let head = head.map(|native| Op {
            run: native::warm,
            imm: native.outside(),
            disp: id as i32,
            ..stale_filler()
        });
        let all = head.iter().chain(ops);
        let count = all.clone().count();
        self.lay_down(all);
        let bucket = Self::bucket(hpa, key);
        self.blocks.push(Block {
            hpa,
            tail,
            key,
            first: first as u32,
            ops: count as u16,
            bytes: bytes as u16,
            next: self.buckets[bucket],
            valid: true,
            extra: None,
        });
        self.buckets[bucket] = id;
        let here = bytes.min((PAGE - hpa % PAGE) as usize) as u64;
        self.note(hpa, here, id);
        if let Some(tail) = tail {
            self.note(tail, bytes as u64 - here, id);
        }
        self.stats.blocks += 1;
        id
    }

    /// Appends to the arena, in which the caller has made room.
    fn lay_down<'a>(&mut self, ops: impl Iterator<Item = &'a Op>) {
        for op in ops {
            // SAFETY: inside the arena, by the caller; nothing refers to this place yet.
            unsafe { self.op(self.used).as_ptr().write(*op) };
            self.used += 1;
        }
    }

    /// The addresses of the arena and of the recent blocks, for host code.
    pub(crate) fn places(&self) -> (u64, u64) {
        (self.ops.as_ptr() as u64, self.recent.as_ptr() as u64)
    }

    /// Puts host code in place of a block's head, as `make` makes it of the operations behind the head: the entry
    /// for handlers, and the one for host code. `make` is told where operations of its own will lie. Says
    /// whether there was room.
    pub(crate) fn translate(
        &mut self,
        head: OpRef,
        make: impl FnOnce(OpRef, &[Op], u64, &mut Vec<Op>) -> Option<(Handler, u64)>,
    ) -> bool {
        let Some(block) = self.blocks.get(head.disp as u32 as usize) else { return false };
        let (first, ops) = (block.first as usize + 1, usize::from(block.ops) - 1);
        if self.used + 2 * ops > ARENA_OPS {
            return false;
        }
        // SAFETY: the block's operations are in the arena, and nothing writes to them while this is read.
        let list = unsafe { std::slice::from_raw_parts(self.op(first).as_ptr(), ops) };
        let mut extra = Vec::new();
        let made = make(self.op(first), list, self.op(self.used).addr(), &mut extra);
        // Room was made for two operations of each; whoever wants more gets none.
        let made = made.filter(|_| self.used + extra.len() <= ARENA_OPS);
        let (run, body) = made.unwrap_or((native::cold, head.imm));
        if made.is_some() {
            self.blocks[head.disp as u32 as usize].extra = Some((self.used as u32, extra.len() as u16));
            self.lay_down(extra.iter());
        }
        // SAFETY: the head is in the arena, and a chain reads it only when it comes to the block.
        unsafe {
            (&raw mut (*head.as_ptr()).run).write(run);
            (&raw mut (*head.as_ptr()).imm).write(body);
        }
        made.is_some()
    }

    fn note(&mut self, hpa: u64, bytes: u64, id: u32) {
        let page = self.pages.entry(hpa / PAGE).or_default();
        page.lines |= lines(hpa, bytes);
        page.idle = 0;
        page.blocks.push(id);
    }

    /// Invalidates the blocks that share a line with `bytes` bytes at `hpa` (inside one page).
    fn invalidate(&mut self, hpa: u64, bytes: u64, shared: &Shared) {
        let hit = lines(hpa, bytes);
        let Some(page) = self.pages.get_mut(&(hpa / PAGE)) else { return };
        if page.lines == 0 {
            page.idle += 1;
            if page.idle > IDLE_WRITES && shared.unwatch(hpa) {
                self.pages.remove(&(hpa / PAGE));
            }
            return;
        }
        if page.lines & hit == 0 {
            return;
        }
        let base = hpa & !(PAGE - 1);
        let mut left = 0;
        let (mut gone, mut keep) = (Vec::new(), Vec::new());
        for id in page.blocks.drain(..) {
            let b = &self.blocks[id as usize];
            let covers = block_lines(b, base);
            if !b.valid {
                continue;
            }
            if covers & hit != 0 {
                gone.push(id);
            } else {
                left |= covers;
                keep.push(id);
            }
        }
        page.lines = left;
        page.blocks = keep;
        for id in gone {
            self.drop_block(id);
        }
    }

    fn drop_block(&mut self, id: u32) {
        let b = &mut self.blocks[id as usize];
        b.valid = false;
        let recent = &mut self.recent[Recent::slot(b.hpa)];
        if recent.tag == Recent::tag(b.hpa, b.key) {
            *recent = Recent::NONE;
        }
        let (first, ops, next) = (b.first as usize, b.ops as usize, b.next);
        let bucket = Self::bucket(b.hpa, b.key);
        let (extra, extras) = b.extra.take().unwrap_or_default();
        if let Some(native) = self.native.as_ref().filter(|_| headed(b.key, b.tail)) {
            // Host code that comes to the head leaves to its handler.
            // SAFETY: the head is in the arena, and a chain reads it only when it comes to the block.
            unsafe { (&raw mut (*self.op(first).as_ptr()).imm).write(native.outside()) };
        }
        let extra = extra as usize..extra as usize + usize::from(extras);
        for i in (first..first + ops).chain(extra) {
            // SAFETY: inside the arena. A chain may be in this block: it reads the handler of the next
            // operation only after the store that brought us here, and finds `stale`.
            unsafe { (&raw mut (*self.op(i).as_ptr()).run).write(stale_of(self.op(i).run)) };
        }
        let mut at = self.buckets[bucket];
        if at == id {
            self.buckets[bucket] = next;
        } else {
            while at != 0 {
                let n = self.blocks[at as usize].next;
                if n == id {
                    self.blocks[at as usize].next = next;
                    break;
                }
                at = n;
            }
        }
        self.stats.invalidated += 1;
    }

    /// Whether chains may go to this first operation of a block without looking it up.
    pub(crate) fn linkable(&self, first: OpRef) -> bool {
        // The block that was found or decoded last is at hand: its number is in `latest`.
        let b = &self.blocks[self.latest as usize];
        b.valid && b.tail.is_none() && self.op(b.first as usize) == first
    }

    /// Whether an exit operation is still part of a valid block.
    pub(crate) fn alive(&self, exit: OpRef) -> bool {
        !std::ptr::fn_addr_eq(exit.run, stale_exit as Handler)
    }

    /// Links the exit operation `from` to `to`.
    pub(crate) fn link(&mut self, from: OpRef, to: OpRef) {
        // SAFETY: both are in the arena, which has not been flushed since `from` ran (a flush takes
        // `patch` back).
        unsafe { (&raw mut (*from.as_ptr()).imm).write(to.addr()) };
    }

    /// Links the exit operation `from` to the operation `to`, for as long as `key` is right: see
    /// [`CodeCache::far_linked`] for where what is kept.
    fn link_far(&mut self, from: OpRef, to: OpRef, key: (u64, u16)) {
        // SAFETY: both are in the arena; the difference is that between two of its elements.
        let index = unsafe { to.as_ptr().offset_from(self.ops.as_ptr()) } as u32;
        let [r1, r2, base, of_index] = index.to_ne_bytes();
        let p = from.as_ptr();
        // SAFETY: as for `link`.
        unsafe {
            (&raw mut (*p).r1).write(r1);
            (&raw mut (*p).r2).write(r2);
            (&raw mut (*p).base).write(base);
            (&raw mut (*p).index).write(of_index);
            (&raw mut (*p).imm).write(key.0);
            (&raw mut (*p).aux).write(key.1);
        }
    }

    /// Where an exit operation leads whose link to another page is good: such a link has its key in `imm` and
    /// `aux`, and the number of its target's first operation in place of the register operands.
    #[inline(always)]
    pub(crate) fn far_linked(&self, exit: &Op) -> OpRef {
        let index = u32::from_ne_bytes([exit.r1, exit.r2, exit.base, exit.index]);
        self.op(index as usize)
    }
}

/// Whether a block starts with a head, where host code is made at all.
fn headed(key: u32, tail: Option<u64>) -> bool {
    key == native::KEY && tail.is_none()
}

/// The lines that `bytes` bytes at `hpa` touch, inside their page.
fn lines(hpa: u64, bytes: u64) -> u64 {
    let first = hpa % PAGE / LINE;
    let last = ((hpa % PAGE + bytes.max(1) - 1) / LINE).min(63);
    (u64::MAX >> (63 - (last - first))) << first
}

/// The lines of the page at `base` that a block touches.
fn block_lines(b: &Block, base: u64) -> u64 {
    let head = u64::from(b.bytes).min(PAGE - b.hpa % PAGE);
    if b.hpa & !(PAGE - 1) == base { lines(b.hpa, head) } else { lines(base, u64::from(b.bytes) - head) }
}

impl Cpu {
    /// The modes that decoding depends on now.
    pub(crate) fn code_key(&self) -> u32 {
        if self.long64 {
            return 2;
        }
        let mut k = u32::from(self.seg[seg::CS].attr & attr::DB != 0);
        if self.seg[seg::SS].attr & attr::DB != 0 {
            k |= key::STACK32;
        }
        if self.cr0 & cr0::PE == 0 || self.v86() {
            k |= key::REAL;
        }
        let whole = if k & key::SIZE == 0 { 0xffff } else { 0xffff_ffff };
        if self.seg[seg::CS].limit != whole {
            k |= key::LIMITED;
        }
        k
    }

    /// The block at `rip`, decoded now if need be, with its first operation. `RBLOCK` is set.
    #[inline]
    pub(crate) fn block_at(&mut self, rip: u64, key: u32) -> Result<OpRef, Stop> {
        let lin = self.code_linear(rip)?;
        let hpa = self.fetch_hpa(lin)?;
        self.regs[usize::from(crate::cpu::RBLOCK)] = rip;
        let id = self.code.find(hpa, key);
        if id != 0 {
            self.code.latest = id;
            let b = &self.code.blocks[id as usize];
            let (first, tail) = (b.first as usize, b.tail);
            match tail {
                None => return Ok(self.code.op(first)),
                Some(tail) => {
                    // The last instruction runs into the next page, which may be another one now.
                    let next_page = (lin & !(PAGE - 1)).wrapping_add(PAGE);
                    if self.fetch_hpa(next_page)? == tail {
                        return Ok(self.code.op(first));
                    }
                    self.code.drop_block(id);
                }
            }
        }
        self.decode_block(rip, lin, hpa, key)
    }

    /// The linear address of `rip`, without a limit check.
    #[inline(always)]
    pub(crate) fn code_place(&self, rip: u64) -> u64 {
        if self.long64 { rip } else { self.seg[seg::CS].base.wrapping_add(rip) & 0xffff_ffff }
    }

    /// The linear address of `rip`, after the limit check of the code segment.
    #[inline(always)]
    fn code_linear(&mut self, rip: u64) -> Result<u64, Stop> {
        if self.long64 {
            return Ok(rip);
        }
        let cs = &self.seg[seg::CS];
        if rip > u64::from(cs.limit) {
            return Err(self.gp(0));
        }
        let lin = cs.base.wrapping_add(rip);
        Ok(lin & 0xffff_ffff)
    }

    #[cold]
    #[inline(never)]
    fn decode_block(&mut self, rip: u64, lin: u64, hpa: u64, key: u32) -> Result<OpRef, Stop> {
        // Decoding needs at most this many operations for a block; see `lower`.
        let full = self.code.native.as_ref().is_some_and(Native::full);
        if full || self.code.used + lower::MAX_OPS + 1 > ARENA_OPS {
            self.flush_code();
        }
        // Watched before it is read, so that no write in between is missed.
        self.watch_code(hpa);
        let mut ops = std::mem::take(&mut self.code.scratch);
        ops.clear();
        let decoded = lower::block(self, rip, lin, hpa, key, &mut ops);
        let result = decoded.map(|Decoded { bytes, tail }| {
            let id = self.code.insert(hpa, tail, key, &ops, bytes);
            self.code.latest = id;
            self.code.op(self.code.blocks[id as usize].first as usize)
        });
        self.code.scratch = ops;
        result
    }

    /// Memory was changed from outside (DMA, another processor, a restored snapshot): drops all decoded
    /// code of `len` bytes at host-physical `hpa`. Not while the guest runs on this processor.
    pub fn memory_changed(&mut self, hpa: u64, len: u64) {
        self.drop_code(hpa, len);
    }

    pub(crate) fn drop_code(&mut self, hpa: u64, len: u64) {
        let end = hpa.saturating_add(len);
        let mut at = hpa;
        while at < end {
            let n = (PAGE - at % PAGE).min(end - at);
            self.code.invalidate(at, n, &self.shared);
            at += n;
        }
    }

    /// Drops all decoded code.
    pub fn flush_code(&mut self) {
        self.code.flush(&self.shared);
        self.mmu.links_dropped();
    }
}

/// What an exit operation is linked to; its `imm` is not 0.
#[inline(always)]
pub(crate) fn linked(exit: OpRef) -> OpRef {
    // SAFETY: `link` put the address of an operation there, and the arena has not been flushed since:
    // that would have dropped the exit operation too.
    unsafe { OpRef::from_addr(exit.imm) }
}

impl Cpu {
    /// The block at `rip` under the modes of the running one, if it is decoded and mapped; `RBLOCK` is
    /// set then.
    #[inline(always)]
    pub(crate) fn cached_block(&mut self, rip: u64) -> Option<OpRef> {
        let hpa = self.mmu.cached_fetch(self.code_place(rip))?;
        let recent = self.code.recent[Recent::slot(hpa)];
        if recent.tag == Recent::tag(hpa, self.code.key) {
            self.regs[usize::from(crate::cpu::RBLOCK)] = rip;
            return recent.op;
        }
        let first = self.code.find_linkable(hpa)?;
        self.regs[usize::from(crate::cpu::RBLOCK)] = rip;
        Some(first)
    }

    /// As [`Cpu::cached_block`], and the exit operation `from` is linked to it.
    #[inline(never)]
    pub(crate) fn link_far(&mut self, from: OpRef, rip: u64) -> Option<OpRef> {
        let to = self.cached_block(rip)?;
        if let Some(key) = self.mmu.new_link(self.code_place(rip)) {
            self.code.link_far(from, to, key);
        }
        Some(to)
    }
}
