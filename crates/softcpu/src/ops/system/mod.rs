//! System instructions.
//!
//! In VMX non-root operation each asks for its VM exit after the checks of mode and privilege and before
//! anything else (SDM vol. 3 §26.1).

pub mod calls;
pub mod control;
pub mod io;
pub mod misc;
pub mod segments;
pub mod tables;
pub mod vmx;
pub mod xcr;

use trapline_vmx::exit::InstructionInfo;

use super::ea;
use crate::cpu::{Cpu, RBLOCK, RZERO, Stop, cr4};
use crate::int::Int;
use crate::lower::form;
use crate::mmu::Kind;
use crate::op::Op;

/// `Op::aux`: the operand that could be in memory is register `r1`.
pub const REGISTER: u16 = 1 << 14;
/// `Op::aux`: log2 of the operand size is in bits 13–12.
pub const SIZE_SHIFT: u16 = 12;

impl Op {
    /// Whether the operand that could be in memory is a register.
    #[inline(always)]
    pub(crate) fn is_register(&self) -> bool {
        self.aux & REGISTER != 0
    }

    /// Operand size in bytes: 2, 4 or 8.
    #[inline(always)]
    pub(crate) fn operand_size(&self) -> u64 {
        1 << (self.aux >> SIZE_SHIFT & 3)
    }
}

/// Linear address of the memory operand, whatever its form.
fn operand_linear(cpu: &mut Cpu, op: &Op, size: u64, kind: Kind) -> Result<u64, Stop> {
    ea::<{ form::FULL }>(cpu, op, size, kind)
}

/// The operand of 16 bits, from memory or a register.
fn load_selector(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.is_register() {
        return Ok(u16::get(cpu, op.r1));
    }
    let lin = operand_linear(cpu, op, 2, Kind::Read)?;
    cpu.load(lin)
}

/// Stores 16 bits to memory, or as much as the operand size asks for to a register.
fn store_selector(cpu: &mut Cpu, op: &Op, v: u64) -> Result<(), Stop> {
    if op.is_register() {
        put_sized(cpu, op, v);
        return Ok(());
    }
    let lin = operand_linear(cpu, op, 2, Kind::Write)?;
    cpu.store(lin, v as u16)
}

/// Writes register `r1` at the operand size.
fn put_sized(cpu: &mut Cpu, op: &Op, v: u64) {
    match op.operand_size() {
        2 => (v as u16).put(cpu, op.r1),
        4 => (v as u32).put(cpu, op.r1),
        _ => v.put(cpu, op.r1),
    }
}

/// The VM-exit instruction information of an operand, and its displacement as exit qualification.
fn operand_information(cpu: &Cpu, op: &Op) -> (InstructionInfo, u64) {
    let size = (op.scale >> 4).saturating_sub(1);
    let operand = op.operand_size().trailing_zeros() as u8 - 1;
    if op.is_register() {
        let info = InstructionInfo::new().with_register_operand(true).with_reg1(op.r1 & 15);
        return (info.with_operand_size(operand & 3), 0);
    }
    let relative = op.base == RBLOCK;
    let info = InstructionInfo::new()
        .with_scaling(op.scale & 3)
        .with_address_size_number(size)
        .with_operand_size(operand & 3)
        .with_segment_number(op.seg)
        .with_index_register(if op.index < RZERO { op.index } else { 0 })
        .with_index_invalid(op.index >= RZERO)
        .with_base_register(if op.base < RZERO { op.base } else { 0 })
        .with_base_invalid(op.base >= RZERO);
    let displacement = i64::from(op.disp) as u64;
    let base = if relative { cpu.regs[usize::from(RBLOCK)] } else { 0 };
    (info, base.wrapping_add(displacement))
}

impl Cpu {
    /// #GP(0) if CR4.UMIP keeps user code from reading system registers.
    fn need_no_umip(&mut self) -> Result<(), Stop> {
        if self.cpl > 0 && self.cr4 & cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// #UD outside protected mode.
    fn need_protected(&mut self) -> Result<(), Stop> {
        if self.protected() { Ok(()) } else { Err(self.ud()) }
    }
}
