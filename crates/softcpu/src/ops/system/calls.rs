//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT.

use crate::cpu::{Cpu, Segment, Stop, attr, cr0, efer, reg, seg};
use crate::flags::bits;
use crate::op::{Flow, Op, OpRef, stop};
use crate::ops::branch::jumped_on;

/// Flags that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

/// A flat code segment, as the fast system calls load it.
fn flat_code(selector: u16, cpl: u8, long: bool) -> Segment {
    let mode = if long { attr::L } else { attr::DB };
    let dpl = u32::from(cpl) << 5;
    Segment { selector: selector & !3 | u16::from(cpl), base: 0, limit: u32::MAX, attr: 0x809b | mode | dpl }
}

/// A flat stack segment.
fn flat_stack(selector: u16, cpl: u8) -> Segment {
    let dpl = u32::from(cpl) << 5;
    Segment { selector: selector & !3 | u16::from(cpl), base: 0, limit: u32::MAX, attr: 0xc093 | dpl }
}

/// SYSCALL. In compatibility mode it is AMD's alone.
pub extern "C-unwind" fn syscall(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.efer & efer::SCE == 0 || !(cpu.long64 || cpu.lma() && !cpu.intel()) {
        let s = cpu.ud();
        return stop(cpu, op, s);
    }
    let back = cpu.ip_after(&op);
    enter_kernel(cpu, back);
    jumped_on(cpu, op)
}

fn enter_kernel(cpu: &mut Cpu, back: u64) {
    let flags = cpu.get_rflags();
    cpu.regs[usize::from(reg::RCX)] = back;
    cpu.regs[usize::from(reg::R11)] = flags;
    let from_long = cpu.long64;
    let selector = (cpu.msr.star >> 32) as u16;
    cpu.seg[seg::CS] = flat_code(selector & !3, 0, true);
    cpu.seg[seg::SS] = flat_stack((selector & !3).wrapping_add(8), 0);
    set_flags(cpu, flags & !cpu.msr.fmask & !bits::RF);
    cpu.cpl = 0;
    if from_long {
        cpu.rip = cpu.msr.lstar;
        // Still 64-bit code: nothing but the privilege level and AC has changed.
        cpu.mmu_context_changed();
    } else {
        cpu.rip = cpu.msr.cstar;
        cpu.mode_changed();
    }
}

/// RFLAGS, where the caller sees to what follows. SYSCALL and SYSRET trap by the TF that they leave behind, not
/// by that which they started with.
fn set_flags(cpu: &mut Cpu, v: u64) {
    cpu.flags.set(v);
    cpu.rflags = v & bits::SYSTEM | bits::FIXED;
    cpu.step_pending = false;
    if v & bits::TF != 0 {
        cpu.pending_debug |= 1 << 14; // BS of DR6
    }
}

/// SYSRET; `aux` 1 to 64-bit code.
pub extern "C-unwind" fn sysret(cpu: &mut Cpu, op: OpRef) -> Flow {
    match sysret_work(cpu, &op) {
        Ok(()) => jumped_on(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn sysret_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.efer & efer::SCE == 0 || !cpu.long64 {
        return Err(cpu.ud());
    }
    cpu.need_cpl0()?;
    let long = op.aux != 0;
    let rcx = cpu.regs[usize::from(reg::RCX)];
    let rip = if long { rcx } else { rcx & 0xffff_ffff };
    if !cpu.canonical(rip) {
        return Err(cpu.gp(0));
    }
    let selector = (cpu.msr.star >> 48) as u16;
    cpu.seg[seg::CS] = flat_code(if long { selector.wrapping_add(16) } else { selector }, 3, long);
    cpu.seg[seg::SS] = flat_stack(selector.wrapping_add(8), 3);
    let flags = cpu.regs[usize::from(reg::R11)] & SYSRET_FLAGS & !bits::RF;
    set_flags(cpu, flags);
    cpu.cpl = 3;
    cpu.rip = rip;
    if long {
        cpu.mmu_context_changed();
    } else {
        cpu.mode_changed();
    }
    Ok(())
}

fn sysenter_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let selector = cpu.msr.sysenter_cs as u16;
    if cpu.cr0 & cr0::PE == 0 || selector & !3 == 0 {
        return Err(cpu.gp(0));
    }
    let long = cpu.lma();
    let cut = if long { u64::MAX } else { 0xffff_ffff };
    cpu.rflags &= !(bits::VM | bits::IF | bits::RF);
    cpu.seg[seg::CS] = flat_code(selector, 0, long);
    cpu.seg[seg::SS] = flat_stack((selector & !3).wrapping_add(8), 0);
    cpu.regs[usize::from(reg::RSP)] = cpu.msr.sysenter_esp & cut;
    cpu.rip = cpu.msr.sysenter_eip & cut;
    cpu.cpl = 0;
    cpu.mode_changed();
    Ok(())
}
crate::handler!(jump: sysenter_work => sysenter);

/// SYSEXIT; `aux` 1 to 64-bit code.
fn sysexit_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let selector = cpu.msr.sysenter_cs as u16;
    if cpu.cr0 & cr0::PE == 0 || selector & !3 == 0 || cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let long = op.aux != 0;
    let (rip, rsp) = (cpu.regs[usize::from(reg::RDX)], cpu.regs[usize::from(reg::RCX)]);
    if long && !(cpu.canonical(rip) && cpu.canonical(rsp)) {
        return Err(cpu.gp(0));
    }
    let (cut, by) = if long { (u64::MAX, 32) } else { (0xffff_ffff, 16) };
    cpu.seg[seg::CS] = flat_code((selector & !3).wrapping_add(by), 3, long);
    cpu.seg[seg::SS] = flat_stack((selector & !3).wrapping_add(by + 8), 3);
    cpu.regs[usize::from(reg::RSP)] = rsp & cut;
    cpu.rip = rip & cut;
    cpu.cpl = 3;
    cpu.mode_changed();
    Ok(())
}
crate::handler!(jump: sysexit_work => sysexit);
