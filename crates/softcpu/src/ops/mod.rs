//! Handlers of operations, one file a group of instructions.

pub mod alu;
pub mod bits;
pub mod bmi;
pub mod branch;
pub mod flow;
pub mod fxsave;
pub mod mem;
pub mod muldiv;
pub mod shift;
pub mod sse;
pub mod string;
pub mod system;
pub mod x87;

use crate::cpu::{Cpu, Stop, seg};
use crate::lower::form;
use crate::mmu::Kind;
use crate::op::Op;

/// `Op::aux`: the displacement is 64 bits wide and in `imm`.
pub const WIDE_DISP: u16 = 1 << 15;

/// `Op::scale`: of the form `FULL`, an address in 64-bit code that only lacks a segment base, FS's or GS's.
pub const SEGMENT_BASE: u8 = 1 << 2;

/// The linear address of an operation's memory operand, `size` bytes wide.
///
/// # Errors
/// In legacy modes, #GP or #SS where the segment does not allow the access.
#[inline(always)]
pub fn ea<const E: u8>(cpu: &mut Cpu, op: &Op, size: u64, kind: Kind) -> Result<u64, Stop> {
    match E {
        form::BASE => Ok(cpu.regs[usize::from(op.base & 31)].wrapping_add(i64::from(op.disp) as u64)),
        form::INDEX => {
            let index = cpu.regs[usize::from(op.index & 31)] << (op.scale & 3);
            let base = cpu.regs[usize::from(op.base & 31)];
            Ok(base.wrapping_add(index).wrapping_add(i64::from(op.disp) as u64))
        }
        _ if op.scale & SEGMENT_BASE != 0 => Ok(based_ea(cpu, op)),
        _ => {
            let offset = offset(cpu, op);
            cpu.linear(usize::from(op.seg), offset, size, kind)
        }
    }
}

/// See [`SEGMENT_BASE`].
#[inline(always)]
fn based_ea(cpu: &Cpu, op: &Op) -> u64 {
    let index = cpu.regs[usize::from(op.index & 31)] << (op.scale & 3);
    let base = cpu.ea_base[usize::from(op.seg & 7)].wrapping_add(cpu.regs[usize::from(op.base & 31)]);
    base.wrapping_add(index).wrapping_add(i64::from(op.disp) as u64)
}

/// As [`ea`], where it takes no checks and little work: `None` in legacy modes and with 32-bit addresses.
#[inline(always)]
pub fn fast_ea<const E: u8>(cpu: &Cpu, op: &Op) -> Option<u64> {
    let base = cpu.regs[usize::from(op.base & 31)].wrapping_add(i64::from(op.disp) as u64);
    match E {
        form::BASE => Some(base),
        form::INDEX => Some(base.wrapping_add(cpu.regs[usize::from(op.index & 31)] << (op.scale & 3))),
        _ if op.scale & SEGMENT_BASE != 0 => Some(based_ea(cpu, op)),
        _ => None,
    }
}

/// The offset of a memory operand in its segment, cut to the address size.
#[inline]
pub fn offset(cpu: &Cpu, op: &Op) -> u64 {
    let disp = if op.aux & WIDE_DISP != 0 { op.imm } else { i64::from(op.disp) as u64 };
    let index = cpu.regs[usize::from(op.index & 31)] << (op.scale & 3);
    let sum = cpu.regs[usize::from(op.base & 31)].wrapping_add(index).wrapping_add(disp);
    sum & address_mask(op)
}

/// All-ones of the operation's address size.
#[inline(always)]
pub fn address_mask(op: &Op) -> u64 {
    match op.scale >> 4 {
        1 => 0xffff,
        2 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Cpu {
    /// The linear address of `size` bytes at `offset` in segment `s`.
    ///
    /// # Errors
    /// In legacy modes, #GP or #SS where the segment does not allow the access.
    #[inline]
    pub fn linear(&mut self, s: usize, offset: u64, size: u64, kind: Kind) -> Result<u64, Stop> {
        let s = s & 7;
        if self.long64 {
            return Ok(self.ea_base[s].wrapping_add(offset));
        }
        self.linear_legacy(s, offset, size, kind)
    }

    fn linear_legacy(&mut self, s: usize, offset: u64, size: u64, kind: Kind) -> Result<u64, Stop> {
        use crate::cpu::attr;
        let d = self.seg[s];
        let last = offset.wrapping_add(size - 1);
        let limit = u64::from(d.limit);
        let code = d.attr & attr::CODE != 0;
        let writable = !code && d.attr & attr::WRITABLE != 0;
        let readable = !code || d.attr & attr::READABLE != 0;
        let real = !self.protected();
        let allowed = match kind {
            Kind::Write => writable || real,
            Kind::Read => readable || real,
            Kind::Fetch => code,
        };
        let inside = if !code && d.attr & attr::EXPAND_DOWN != 0 {
            let top = if d.attr & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit && offset <= last
        };
        if !allowed || !inside || d.unusable() {
            let v = if s == seg::SS { crate::cpu::vector::SS } else { crate::cpu::vector::GP };
            return Err(self.raise(v, Some(0)));
        }
        Ok(d.base.wrapping_add(offset) & 0xffff_ffff)
    }
}
