//! Decoding: from instruction bytes (iced-x86) to operations.
//!
//! [`block`] decodes up to a branch, a page's end or a fixed number of instructions. Each group of
//! instructions has a file here with a function `lower(&mut Lowering, &Instruction) -> Option<Next>` that
//! lays down the operations of the instructions it knows ([`Lowering::push`]), and a file in `ops` with
//! their handlers. An instruction nobody knows, or that the model does not advertise, becomes #UD.
//!
//! Memory operands: [`Lowering::mem`] fills in an operation's address fields and returns the form of the
//! address, for which the handler is chosen with `by_ea!`. Handlers turn it into a linear address with
//! [`crate::ops::ea`].

mod bmi;
mod branch;
mod far;
mod flow;
mod int;
mod mem;
mod sse;
mod string;
mod system;
mod x87;

use iced_x86::{Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::code::key;
use crate::cpu::{Cpu, RBLOCK, RZERO, Stop, seg};
use crate::cpuid::Model;
use crate::int::HIGH_BYTE;
use crate::mmu::PAGE;
use crate::op::{Handler, Op};
use crate::ops;

/// Instructions of one block at most.
const MAX_INSTRUCTIONS: usize = 32;
/// Operations of one block at most: instructions take one to three, and a block ends with an exit.
pub(crate) const MAX_OPS: usize = MAX_INSTRUCTIONS * 4 + 8;

/// What [`block`] found out beside the operations.
pub(crate) struct Decoded {
    /// Length of the code.
    pub bytes: usize,
    /// Host-physical address of the page that the last instruction runs into.
    pub tail: Option<u64>,
}

/// Whether a block goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It does.
    Continue,
    /// The instruction ends the block, and its operations have left it on every path.
    End,
}

/// How the address of a memory operand is formed; the const parameter of handlers with one.
pub(crate) mod form {
    /// 64-bit mode, base + displacement, no segment base.
    pub const BASE: u8 = 0;
    /// 64-bit mode, base + index × scale + displacement, no segment base.
    pub const INDEX: u8 = 1;
    /// Everything else: segment base and checks, 16- and 32-bit addresses.
    pub const FULL: u8 = 2;
}

/// Chooses the instance of a handler by the form of the address: `by_ea!(ea, load::<u32>)`.
macro_rules! by_ea {
    ($ea:expr, $($f:ident)::+ $(:: <$($t:ty),*>)?) => {
        match $ea {
            $crate::lower::form::BASE => $($f)::+ ::<$($($t,)*)? { $crate::lower::form::BASE }>,
            $crate::lower::form::INDEX => $($f)::+ ::<$($($t,)*)? { $crate::lower::form::INDEX }>,
            _ => $($f)::+ ::<$($($t,)*)? { $crate::lower::form::FULL }>,
        }
    };
}
pub(crate) use by_ea;

/// Chooses the instance of a handler by operand width in bytes: `by_width!(4, add_rr)`.
macro_rules! by_width {
    ($n:expr, $($f:ident)::+ $(:: <$($t:ty),*>)?) => {
        match $n {
            1 => $($f)::+ ::<$($($t,)*)? u8> as $crate::op::Handler,
            2 => $($f)::+ ::<$($($t,)*)? u16>,
            4 => $($f)::+ ::<$($($t,)*)? u32>,
            _ => $($f)::+ ::<$($($t,)*)? u64>,
        }
    };
}
pub(crate) use by_width;

/// As `by_width!`, with the address form too: `by_width_ea!(4, ea, load)`.
macro_rules! by_width_ea {
    ($n:expr, $ea:expr, $($f:ident)::+ $(:: <$($t:ty),*>)?) => {
        match $n {
            1 => $crate::lower::by_ea!($ea, $($f)::+ ::<$($($t,)*)? u8>) as $crate::op::Handler,
            2 => $crate::lower::by_ea!($ea, $($f)::+ ::<$($($t,)*)? u16>),
            4 => $crate::lower::by_ea!($ea, $($f)::+ ::<$($($t,)*)? u32>),
            _ => $crate::lower::by_ea!($ea, $($f)::+ ::<$($($t,)*)? u64>),
        }
    };
}
pub(crate) use by_width_ea;

/// Chooses the instance of a handler by condition code 0–15.
macro_rules! by_cc {
    ($cc:expr, $($f:ident)::+ $(:: <$($t:ty),*>)?) => {
        match $cc & 15 {
            0 => $($f)::+ ::<$($($t,)*)? 0> as $crate::op::Handler,
            1 => $($f)::+ ::<$($($t,)*)? 1>,
            2 => $($f)::+ ::<$($($t,)*)? 2>,
            3 => $($f)::+ ::<$($($t,)*)? 3>,
            4 => $($f)::+ ::<$($($t,)*)? 4>,
            5 => $($f)::+ ::<$($($t,)*)? 5>,
            6 => $($f)::+ ::<$($($t,)*)? 6>,
            7 => $($f)::+ ::<$($($t,)*)? 7>,
            8 => $($f)::+ ::<$($($t,)*)? 8>,
            9 => $($f)::+ ::<$($($t,)*)? 9>,
            10 => $($f)::+ ::<$($($t,)*)? 10>,
            11 => $($f)::+ ::<$($($t,)*)? 11>,
            12 => $($f)::+ ::<$($($t,)*)? 12>,
            13 => $($f)::+ ::<$($($t,)*)? 13>,
            14 => $($f)::+ ::<$($($t,)*)? 14>,
            _ => $($f)::+ ::<$($($t,)*)? 15>,
        }
    };
}
pub(crate) use by_cc;

/// The block under construction.
pub(crate) struct Lowering<'a> {
    /// What the processor advertises.
    pub model: &'a Model,
    /// 16, 32 or 64.
    pub bits: u32,
    /// Modes ([`key`]).
    pub key: u32,
    /// RIP of the block's start.
    pub start: u64,
    /// Its linear address.
    pub lin: u64,
    /// Offset of the current instruction.
    pub off: u16,
    /// Its length.
    pub len: u8,
    /// Instructions before it.
    pub nth: u8,
    /// The instruction before it, if this one may be fused with it: index of its first operation.
    pub previous: Option<(Instruction, usize)>,
    /// The current instruction cannot stop: no memory, no checks.
    pub pure: bool,
    /// The handler to use for the current instruction's only operation if its flags are not needed.
    pub quiet: Option<Handler>,
    /// The code that is decoded, from the block's start.
    pub bytes: &'a [u8],
    /// The operations so far.
    pub ops: &'a mut Vec<Op>,
}

/// What an instruction does with the arithmetic flags.
#[derive(Clone, Copy)]
struct FlagUse {
    /// Its first operation.
    op: usize,
    quiet: Option<Handler>,
    /// The flags before it are needed: it reads some, or may stop.
    needs: bool,
    /// It replaces all of them.
    replaces: bool,
}

/// Puts in the quiet handlers of instructions whose flags are replaced before anybody can see them.
fn drop_dead_flags(uses: &[FlagUse], ops: &mut [Op]) {
    let mut live = true;
    for u in uses.iter().rev() {
        if let (false, Some(quiet), Some(op)) = (live, u.quiet, ops.get_mut(u.op)) {
            op.run = quiet;
        }
        live = u.needs || live && !u.replaces;
    }
}

fn flag_use(l: &Lowering<'_>, i: &Instruction, op: usize) -> FlagUse {
    use iced_x86::RflagsBits as R;
    let all = R::OF | R::SF | R::ZF | R::AF | R::CF | R::PF;
    FlagUse {
        op,
        quiet: l.quiet,
        needs: !l.pure || i.rflags_read() & all != 0,
        replaces: i.rflags_modified() & all == all,
    }
}

impl Lowering<'_> {
    /// An operation of the current instruction.
    pub fn op(&self, run: Handler) -> Op {
        Op {
            run,
            imm: 0,
            disp: 0,
            r1: RZERO,
            r2: RZERO,
            base: RZERO,
            index: RZERO,
            off: self.off,
            scale: 0,
            seg: seg::DS as u8,
            len: self.len,
            nth: self.nth,
            aux: 0,
        }
    }

    /// Lays an operation down.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Lays down an operation without operands.
    pub fn simple(&mut self, run: Handler) -> Option<Next> {
        let op = self.op(run);
        self.push(op);
        Some(Next::Continue)
    }

    /// Lays down an operation without operands that ends the block.
    pub fn ending(&mut self, run: Handler) -> Option<Next> {
        self.simple(run);
        Some(Next::End)
    }

    /// In 64-bit code.
    pub fn long(&self) -> bool {
        self.bits == 64
    }

    /// Fills in the address of the memory operand; returns its form.
    pub fn mem(&self, i: &Instruction, op: &mut Op) -> u8 {
        op.seg = segment(i.memory_segment());
        let (mut base, index) = (i.memory_base(), i.memory_index());
        let mut disp = i.memory_displacement64();
        let size = if matches!(base, Register::RIP | Register::EIP) {
            // iced has added the next instruction's address; the block may run elsewhere.
            disp = disp.wrapping_sub(self.start);
            let eip = base == Register::EIP;
            base = Register::None;
            op.base = RBLOCK;
            if eip { 2 } else { 3 }
        } else {
            address_size(i, self.bits)
        };
        if base != Register::None {
            op.base = reg(base);
        }
        if index != Register::None {
            op.index = reg(index);
            op.scale = i.memory_index_scale().trailing_zeros() as u8;
        }
        op.scale |= size << 4;
        op.disp = disp as i32;
        // Only a moffs (MOV AL–RAX) in 64-bit mode has a displacement wider than 32 bits.
        if size == 3 && i64::from(op.disp) as u64 != disp && self.long() {
            op.aux |= ops::WIDE_DISP;
            op.imm = disp;
            return form::FULL;
        }
        let plain = self.long() && size == 3;
        let flat = plain && usize::from(op.seg) < seg::FS;
        if plain && !flat {
            op.scale |= ops::SEGMENT_BASE;
        }
        match (flat, index != Register::None) {
            (true, false) => form::BASE,
            (true, true) => form::INDEX,
            _ => form::FULL,
        }
    }

    /// An exit operation that is all there is of the current instruction, a JMP to `target`. If the block is dropped
    /// before it, the instruction is still to come, and may have become another.
    pub fn jump_exit(&mut self, target: u64) {
        self.exit(target, self.nth + 1);
        if let Some(op) = self.ops.last_mut() {
            op.len = self.len;
        }
    }

    /// Lays down an exit operation to what follows, at `next`.
    pub fn exit_on(&mut self, next: u64, executed: u8) {
        self.exit(next, executed);
        if let Some(op) = self.ops.last_mut() {
            op.scale = Op::ON;
        }
    }

    /// Lays down an exit operation to a branch's `target` (an address in the code segment).
    pub fn exit(&mut self, target: u64, executed: u8) {
        let place = self.lin.wrapping_add(target.wrapping_sub(self.start));
        let same_page = place & !(PAGE - 1) == self.lin & !(PAGE - 1);
        let linkable = same_page && self.key & (key::SINGLE | key::LIMITED) == 0;
        let run: Handler = if linkable { ops::branch::exit_link } else { ops::branch::exit_far };
        let mut op = self.op(run);
        // No link yet: where there is one to another page, this is no page's address.
        op.imm = if linkable { 0 } else { u64::MAX };
        op.disp = target.wrapping_sub(self.start) as i32;
        op.nth = executed;
        // The work of the instructions is done by the operations before it: see `jump_exit`.
        (op.len, op.scale) = (0, 0);
        self.push(op);
    }
}

/// log2 of the address size in bytes.
pub(crate) fn address_size(i: &Instruction, bits: u32) -> u8 {
    let named = [i.memory_base(), i.memory_index()].into_iter().find(|r| *r != Register::None);
    match named.map(|r| r.size()) {
        Some(8) => 3,
        Some(4) => 2,
        Some(2) => 1,
        _ => match i.memory_displ_size() {
            8 => 3,
            4 => 2,
            2 => 1,
            _ => [1, 2, 3][(bits / 32) as usize],
        },
    }
}

/// Operand number of a general register.
pub(crate) fn reg(r: Register) -> u8 {
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    r.full_register().number() as u8 | if high { HIGH_BYTE } else { 0 }
}

/// Number of a segment register.
pub(crate) fn segment(r: Register) -> u8 {
    let n = match r {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    };
    n as u8
}

/// Width in bytes of register or memory operand `n`.
pub(crate) fn width(i: &Instruction, n: u32) -> usize {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        _ => i.memory_size().size(),
    }
}

/// Decodes the block at `lin`.
///
/// # Errors
/// A fault of the instruction fetch, if not even one instruction could be fetched.
pub(crate) fn block(
    cpu: &mut Cpu,
    rip: u64,
    lin: u64,
    hpa: u64,
    block_key: u32,
    ops: &mut Vec<Op>,
) -> Result<Decoded, Stop> {
    let mut bytes = [0u8; 512];
    let head = bytes.len().min((PAGE - hpa % PAGE) as usize);
    cpu.code_bytes(hpa, &mut bytes[..head]);
    let bits = [16, 32, 64][(block_key & key::SIZE) as usize % 3];
    let max = if block_key & key::SINGLE != 0 { 1 } else { MAX_INSTRUCTIONS };
    let model = cpu.model.clone();
    let decoded = lower_bytes(&model, &bytes[..head], bits, (rip, lin), block_key, max, ops);
    if decoded > 0 {
        return Ok(Decoded { bytes: decoded, tail: None });
    }
    // The first instruction runs past the page's end.
    let next_lin = (lin & !(PAGE - 1)).wrapping_add(PAGE);
    let tail = cpu.fetch_hpa(next_lin)?;
    cpu.watch_code(tail);
    let more = 15.min(bytes.len() - head.min(bytes.len() - 15));
    let (_, rest) = bytes.split_at_mut(head);
    cpu.code_bytes(tail, &mut rest[..more]);
    ops.clear();
    let bytes = lower_bytes(&model, &bytes[..head + more], bits, (rip, lin), block_key, 1, ops);
    Ok(Decoded { bytes, tail: Some(tail) })
}

/// Lowers up to `max` instructions. Returns the bytes used: 0 if the first instruction is cut off.
fn lower_bytes(
    model: &Model,
    bytes: &[u8],
    bits: u32,
    (rip, lin): (u64, u64),
    block_key: u32,
    max: usize,
    ops: &mut Vec<Op>,
) -> usize {
    let mut decoder = Decoder::with_ip(bits, bytes, rip, model.decoder_options());
    let mut l = Lowering {
        model,
        bits,
        key: block_key,
        start: rip,
        lin,
        off: 0,
        len: 0,
        nth: 0,
        previous: None,
        pure: false,
        quiet: None,
        bytes,
        ops,
    };
    let mut uses = [None; MAX_INSTRUCTIONS];
    let end = lower_all(&mut l, &mut decoder, bytes.len(), max, &mut uses);
    let known = uses.iter().flatten().count();
    let uses: Vec<FlagUse> = uses.into_iter().take(known).flatten().collect();
    drop_dead_flags(&uses, l.ops);
    mem::pair_stack_ops(l.ops);
    end
}

/// The operations of a block of 64-bit code.
#[cfg(test)]
pub(crate) fn operations(model: &Model, code: &[u8]) -> Vec<Op> {
    let mut ops = Vec::new();
    lower_bytes(model, code, 64, (0x1000, 0x1000), crate::native::KEY, MAX_INSTRUCTIONS, &mut ops);
    ops
}

fn lower_all(
    l: &mut Lowering<'_>,
    decoder: &mut Decoder<'_>,
    available: usize,
    max: usize,
    uses: &mut [Option<FlagUse>; MAX_INSTRUCTIONS],
) -> usize {
    let rip = l.start;
    // The instruction before is an STI whose shadow ends with this one, within the block.
    let mut shadow = false;
    let mut insn = Instruction::default();
    let mut count = 0;
    loop {
        let at = decoder.position();
        if count == max || !decoder.can_decode() {
            // A decoder at the end of 15 bytes or the page: whatever follows is another block.
            if count == 0 {
                return 0;
            }
            l.exit_on(rip.wrapping_add(at as u64), count as u8);
            return at;
        }
        decoder.decode_out(&mut insn);
        let cut_off = insn.is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes;
        if cut_off {
            if count == 0 && available - at < 15 {
                return 0;
            }
            if count > 0 {
                l.exit_on(rip.wrapping_add(at as u64), count as u8);
                return at;
            }
        }
        l.off = at as u16;
        l.len = (decoder.position() - at) as u8;
        l.nth = count as u8;
        let first = l.ops.len();
        (l.pure, l.quiet) = (false, None);
        let mut next = if insn.is_invalid() { None } else { lower_one(l, &insn) };
        if shadow {
            flow::end_shadow(l);
            next = next.and(Some(Next::End));
        } else if insn.mnemonic() == Mnemonic::Sti && count + 1 < max && flow::fits_shadow(decoder) {
            shadow = true;
            flow::open_shadow(l);
            next = Some(Next::Continue);
        }
        if let (Some(Next::Continue), Some(slot)) = (next, uses.get_mut(count)) {
            *slot = Some(flag_use(l, &insn, first));
        }
        count += 1;
        match next {
            Some(Next::Continue) => l.previous = Some((insn, first)),
            Some(Next::End) => return decoder.position(),
            None => {
                l.ops.truncate(first);
                let op = l.op(ops::flow::undefined);
                l.push(op);
                return decoder.position().max(1);
            }
        }
    }
}

fn lower_one(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    // What is encoded with VEX does not exist in real and virtual-8086 mode.
    let vex = i.encoding() != EncodingKind::Legacy;
    if !l.model.supports(i) || vex && l.key & key::REAL != 0 {
        return None;
    }
    if i.mnemonic() == Mnemonic::Nop {
        return l.simple(ops::flow::nop);
    }
    None.or_else(|| int::lower(l, i))
        .or_else(|| branch::lower(l, i))
        .or_else(|| mem::lower(l, i))
        .or_else(|| sse::lower(l, i))
        .or_else(|| string::lower(l, i))
        .or_else(|| flow::lower(l, i))
        .or_else(|| x87::lower(l, i))
        .or_else(|| system::lower(l, i))
        .or_else(|| far::lower(l, i))
        .or_else(|| bmi::lower(l, i))
}

/// The decoder options of a model.
pub(crate) fn options(tzcnt: bool, lzcnt: bool) -> u32 {
    let mut o = DecoderOptions::NONE;
    if !tzcnt {
        o |= DecoderOptions::NO_MPFX_0FBC;
    }
    if !lzcnt {
        o |= DecoderOptions::NO_MPFX_0FBD;
    }
    o
}
