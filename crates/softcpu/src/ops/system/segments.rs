//! Segment registers, and the bases of FS and GS.

use super::{load_selector, operand_linear, store_selector};
use crate::cpu::{Cpu, Stop, cr4, reg, seg, shadow};
use crate::handler;
use crate::int::Int;
use crate::mmu::{Kind, Plain};
use crate::op::{Flow, Op, OpRef, next, stop};

/// Interrupts wait for the instruction after a load of SS, which is about to load the stack pointer.
fn shadow_stack_load(cpu: &mut Cpu) {
    cpu.shadow |= shadow::MOV_SS;
    cpu.shadow_is_new = true;
}

/// MOV to ES, DS, FS, GS (`r2`).
fn mov_to_data_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let selector = load_selector(cpu, op)?;
    cpu.load_segment(usize::from(op.r2 & 7), selector)
}
handler!(next: mov_to_data_work => mov_to_data);

fn mov_to_ss_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let selector = load_selector(cpu, op)?;
    cpu.load_segment(seg::SS, selector)?;
    shadow_stack_load(cpu);
    Ok(())
}
handler!(sync: mov_to_ss_work => mov_to_ss);

/// MOV from segment register `r2`.
fn mov_from_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let selector = cpu.seg[usize::from(op.r2 & 7)].selector;
    store_selector(cpu, op, u64::from(selector))
}
handler!(next: mov_from_work => mov_from);

/// PUSH segment register `r2`.
pub extern "C-unwind" fn push<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let selector = cpu.seg[usize::from(op.r2 & 7)].selector;
    match cpu.push(T::of(u64::from(selector))) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn pop_into(cpu: &mut Cpu, op: &Op) -> Result<usize, Stop> {
    let s = usize::from(op.r2 & 7);
    let selector: u16 = cpu.peek(0)?;
    let sp = cpu.regs[usize::from(reg::RSP)];
    // The width of the stack pointer is that of the old stack segment.
    cpu.release(op.operand_size());
    if let Err(e) = cpu.load_segment(s, selector) {
        cpu.regs[usize::from(reg::RSP)] = sp;
        return Err(e);
    }
    Ok(s)
}

fn pop_data_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    pop_into(cpu, op).map(|_| ())
}
handler!(next: pop_data_work => pop_data);

fn pop_ss_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    pop_into(cpu, op)?;
    shadow_stack_load(cpu);
    Ok(())
}
handler!(sync: pop_ss_work => pop_ss);

/// LDS, LES, LFS, LGS, LSS: segment register `r2`, general register `r1`.
fn load_pointer_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.operand_size();
    let lin = operand_linear(cpu, op, size + 2, Kind::Read)?;
    let offset = match size {
        2 => u64::from(cpu.load::<u16>(lin)?),
        4 => u64::from(cpu.load::<u32>(lin)?),
        _ => cpu.load::<u64>(lin)?,
    };
    let selector: u16 = cpu.load(lin.wrapping_add(size))?;
    cpu.load_segment(usize::from(op.r2 & 7), selector)?;
    super::put_sized(cpu, op, offset);
    Ok(())
}
handler!(sync: load_pointer_work => load_pointer);

fn swapgs_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if !cpu.long64 {
        return Err(cpu.ud());
    }
    cpu.need_cpl0()?;
    let base = std::mem::replace(&mut cpu.msr.kernel_gs_base, cpu.seg[seg::GS].base);
    cpu.set_base(seg::GS, base);
    Ok(())
}
handler!(next: swapgs_work => swapgs);

/// RDFSBASE, RDGSBASE: of segment `r2`.
fn read_base_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let base = cpu.seg[usize::from(op.r2 & 7)].base;
    super::put_sized(cpu, op, base);
    Ok(())
}
handler!(next: read_base_work => read_base);

/// WRFSBASE, WRGSBASE: of segment `r2`.
fn write_base_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let base = if op.operand_size() == 4 { u32::get(cpu, op.r1).zx() } else { u64::get(cpu, op.r1) };
    if !cpu.canonical_in_register(base) {
        return Err(cpu.gp(0));
    }
    cpu.set_base(usize::from(op.r2 & 7), base);
    Ok(())
}
handler!(next: write_base_work => write_base);
