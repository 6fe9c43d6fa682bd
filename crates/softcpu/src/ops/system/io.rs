//! Port I/O: IN, OUT, INS, OUTS.
//!
//! Outside VMX operation no port answers: reads give all-ones, writes go nowhere.

use trapline_vmx::exit::{InstructionInfo, IoAccess};

use crate::cpu::{Cpu, Pending, Stop, cr0, reg, seg};
use crate::flags::bits;
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, jumped, next, stop};
use crate::ops::address_mask;
use crate::vmx::reason;

/// `Op::aux`: the port is DX, not an immediate.
pub const DX: u16 = 1;
/// `Op::aux`: REP.
pub const REP: u16 = 2;

/// Elements of a repeated instruction between looks at asynchronous events.
const SLICE: u32 = 1 << 12;

impl Cpu {
    /// #GP(0) unless IOPL or the I/O permission bitmap allows `size` bytes at `port` (SDM vol. 1 §20.5).
    fn check_io(&mut self, port: u16, size: u64) -> Result<(), Stop> {
        if self.cr0 & cr0::PE == 0 || !self.v86() && self.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = self.seg[seg::TR];
        let limit = u64::from(tr.limit);
        if tr.unusable() || tr.attr & 8 == 0 || limit < 103 {
            return Err(self.gp(0));
        }
        let map: u16 = self.load_system(tr.base.wrapping_add(102))?;
        let at = u64::from(map) + u64::from(port / 8);
        if at + 1 > limit {
            return Err(self.gp(0));
        }
        let allowed: u16 = self.load_system(tr.base.wrapping_add(at))?;
        let wanted = (1u16 << size) - 1;
        if allowed >> (port & 7) & wanted != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// The VM exit of an I/O instruction, if there is one.
    fn io_exit(&mut self, port: u16, access: IoAccess, info: u32, linear: u64) -> Result<(), Stop> {
        let size = access.size_minus_one() + 1;
        if !self.nonroot || !self.intercepts_io(port, u16::from(size)) {
            return Ok(());
        }
        let q = access.with_port(port).into_bits();
        let s = self.instruction_exit(reason::IO, q, info);
        if let Pending::Exit(e) = &mut self.pending {
            e.linear = linear;
        }
        Err(s)
    }
}

/// The port of IN and OUT.
fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.aux & DX != 0 { cpu.regs[usize::from(reg::RDX)] as u16 } else { op.imm as u16 }
}

/// What IN and OUT have in common: checks and VM exits.
fn access<T: Int>(cpu: &mut Cpu, op: &Op, input: bool) -> Result<(), Stop> {
    let port = port(cpu, op);
    cpu.check_io(port, T::BYTES as u64)?;
    let q = IoAccess::new().with_size(T::BYTES as u8).with_input(input).with_immediate(op.aux & DX == 0);
    cpu.io_exit(port, q, 0, 0)
}

fn in_work<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    access::<T>(cpu, op, true)?;
    T::of(u64::MAX).put(cpu, reg::RAX);
    Ok(())
}

fn out_work<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    access::<T>(cpu, op, false)
}

/// IN.
pub extern "C-unwind" fn input<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match in_work::<T>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// OUT.
pub extern "C-unwind" fn output<T: Int>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match out_work::<T>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// INS (`IN`) and OUTS, repeated or not.
pub extern "C-unwind" fn string<T: Int + Plain, const IN: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match string_work::<T, IN>(cpu, &op) {
        Ok(true) => next(cpu, op),
        Ok(false) => {
            cpu.rip = cpu.ip(&op);
            cpu.mmu.replay.clear();
            jumped(cpu, op, Flow::Lookup)
        }
        Err(s) => stop(cpu, op, s),
    }
}

/// `false` if the repetition is not finished.
#[inline(never)]
fn string_work<T: Int + Plain, const IN: bool>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    if op.aux & REP == 0 {
        element::<T, IN>(cpu, op)?;
        return Ok(true);
    }
    let mask = address_mask(op);
    // Traps come after each element.
    for _ in 0..if cpu.single() { 1 } else { SLICE } {
        let rcx = cpu.regs[usize::from(reg::RCX)];
        if rcx & mask == 0 {
            return Ok(true);
        }
        element::<T, IN>(cpu, op)?;
        cpu.mmu.replay.clear();
        cpu.regs[usize::from(reg::RCX)] = merge(rcx, (rcx & mask).wrapping_sub(1), mask);
    }
    Ok(false)
}

/// `new` cut to the address size, written over `old`.
fn merge(old: u64, new: u64, mask: u64) -> u64 {
    if mask == 0xffff { old & !mask | new & mask } else { new & mask }
}

fn element<T: Int + Plain, const IN: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let port = cpu.regs[usize::from(reg::RDX)] as u16;
    cpu.check_io(port, T::BYTES as u64)?;
    let mask = address_mask(op);
    let (r, s, kind) =
        if IN { (reg::RDI, seg::ES, Kind::Write) } else { (reg::RSI, usize::from(op.seg), Kind::Read) };
    let index = cpu.regs[usize::from(r)];
    let lin = cpu.linear(s, index & mask, T::BYTES as u64, kind)?;
    if cpu.nonroot {
        let q = IoAccess::new()
            .with_size(T::BYTES as u8)
            .with_input(IN)
            .with_string(true)
            .with_rep(op.aux & REP != 0);
        let info = InstructionInfo::new()
            .with_address_size_number((op.scale >> 4).saturating_sub(1))
            .with_segment_number(s as u8);
        cpu.io_exit(port, q, info.into_bits(), lin)?;
    }
    if IN {
        cpu.store(lin, T::of(u64::MAX))?;
    } else {
        cpu.load::<T>(lin)?;
    }
    let step = T::BYTES as u64;
    let step = if cpu.rflags & bits::DF != 0 { step.wrapping_neg() } else { step };
    cpu.regs[usize::from(r)] = merge(index, index.wrapping_add(step), mask);
    Ok(())
}
