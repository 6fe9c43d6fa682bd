//! Flags, BCD, software interrupts, and instructions that do nothing.

use crate::cpu::{Cpu, Event, EventKind, Pending, Stop, reg, shadow, vector};
use crate::flags::bits;
use crate::handler;
use crate::int::{HIGH_BYTE, Int};
use crate::mmu::Plain;
use crate::op::{Flow, Op, OpRef, next, stop};

/// NOP and hints.
pub extern "C-unwind" fn nop(cpu: &mut Cpu, op: OpRef) -> Flow {
    next(cpu, op)
}

/// An instruction that does not exist, or is not advertised.
pub extern "C-unwind" fn undefined(cpu: &mut Cpu, op: OpRef) -> Flow {
    let s = cpu.ud();
    stop(cpu, op, s)
}

/// CLC, STC, CMC as `aux` 0, 1, 2.
pub extern "C-unwind" fn carry(cpu: &mut Cpu, op: OpRef) -> Flow {
    let cf = match op.aux {
        0 => false,
        1 => true,
        _ => !cpu.flags.cf(),
    };
    cpu.flags.set_cf(cf);
    next(cpu, op)
}

/// CLD, STD as `aux` 0, 1.
pub extern "C-unwind" fn direction(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.rflags = cpu.rflags & !bits::DF | if op.aux != 0 { bits::DF } else { 0 };
    next(cpu, op)
}

/// SALC.
pub extern "C-unwind" fn salc(cpu: &mut Cpu, op: OpRef) -> Flow {
    (if cpu.flags.cf() { 0xffu8 } else { 0 }).put(cpu, reg::RAX);
    next(cpu, op)
}

fn cli_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.iopl() >= cpu.cpl || !cpu.protected() && !cpu.v86() {
        cpu.rflags &= !bits::IF;
    } else if cpu.virtual_interrupts() {
        cpu.rflags &= !bits::VIF;
    } else {
        return Err(cpu.gp(0));
    }
    Ok(())
}
handler!(next: cli_work => cli);

fn sti_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.iopl() >= cpu.cpl || !cpu.protected() && !cpu.v86() {
        if cpu.rflags & bits::IF == 0 {
            cpu.shadow |= shadow::STI;
            cpu.shadow_is_new = true;
        }
        cpu.rflags |= bits::IF;
    } else if cpu.virtual_interrupts() && cpu.rflags & bits::VIP == 0 {
        cpu.rflags |= bits::VIF;
    } else {
        return Err(cpu.gp(0));
    }
    Ok(())
}
handler!(sync: sti_work => sti);
// The shadow stays open over the next instruction, and `shadow_end` follows that.
handler!(next: sti_work => sti_open);

/// After the instruction behind an STI: its shadow ends, and with it the block, as interrupts may be due.
pub extern "C-unwind" fn shadow_end(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.shadow &= !shadow::STI;
    cpu.shadow_is_new = false;
    cpu.rip = cpu.ip(&op);
    cpu.icount += u64::from(op.nth);
    super::branch::go_on(cpu)
}

impl Cpu {
    /// Whether CLI and STI act on VIF: VME in virtual-8086 mode, PVI at privilege level 3.
    pub(crate) fn virtual_interrupts(&self) -> bool {
        use crate::cpu::cr4;
        if self.v86() { self.cr4 & cr4::VME != 0 } else { self.cpl == 3 && self.cr4 & cr4::PVI != 0 }
    }
}

/// PUSHF, PUSHFD, PUSHFQ.
pub extern "C-unwind" fn pushf<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match pushf_work::<T>(cpu) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(always)]
fn pushf_work<T: Int + Plain>(cpu: &mut Cpu) -> Result<(), Stop> {
    let mut image = cpu.get_rflags() & !(bits::VM | bits::RF);
    if cpu.v86() && cpu.iopl() < 3 {
        if T::BITS != 16 || !cpu.virtual_interrupts() {
            return Err(cpu.gp(0));
        }
        let vif = image & bits::VIF != 0;
        image = image & !bits::IF | bits::IOPL | if vif { bits::IF } else { 0 };
    }
    cpu.push(T::of(image))
}

/// POPF, POPFD, POPFQ.
pub extern "C-unwind" fn popf<T: Int + Plain>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let before = cpu.rflags;
    match popf_work::<T>(cpu) {
        // Only what the dispatcher looks at ends the block.
        Ok(())
            if (before ^ cpu.rflags) & (bits::IF | bits::TF | bits::AC) == 0
                && cpu.rflags & bits::TF == 0 =>
        {
            next(cpu, op)
        }
        Ok(()) => {
            cpu.rip = cpu.ip_after(&op);
            super::branch::jumped_on(cpu, op)
        }
        Err(s) => stop(cpu, op, s),
    }
}

#[inline(always)]
fn popf_work<T: Int + Plain>(cpu: &mut Cpu) -> Result<(), Stop> {
    let image = cpu.peek::<T>(0)?.zx();
    let mut may = bits::ARITH | bits::TF | bits::DF | bits::NT;
    if T::BITS > 16 {
        may |= bits::AC | bits::ID | bits::RF;
    }
    let iopl = cpu.iopl();
    if cpu.v86() && iopl < 3 {
        if T::BITS != 16 || !cpu.virtual_interrupts() {
            return Err(cpu.gp(0));
        }
        if image & bits::TF != 0 || image & bits::IF != 0 && cpu.rflags & bits::VIP != 0 {
            return Err(cpu.gp(0));
        }
        cpu.release(T::BYTES as u64);
        let vif = if image & bits::IF != 0 { bits::VIF } else { 0 };
        let old = cpu.get_rflags() & !bits::VIF | vif;
        cpu.set_rflags(old & !may | image & may);
        return Ok(());
    }
    if cpu.cpl == 0 || cpu.cr0 & crate::cpu::cr0::PE == 0 {
        may |= bits::IOPL | bits::IF;
    } else if cpu.cpl <= iopl {
        may |= bits::IF;
    }
    cpu.release(T::BYTES as u64);
    let new = cpu.get_rflags() & !may | image & may & !bits::RF;
    cpu.set_rflags(new & !bits::RF);
    Ok(())
}

/// Makes a software interrupt pending, which [`Flow::Stop`] then delivers.
#[cold]
fn software(cpu: &mut Cpu, op: &Op, vector: u8, kind: EventKind) -> Stop {
    cpu.pending = Pending::Event(Event { vector, kind, error: None, len: op.len, payload: 0 });
    Stop
}

/// INT n (`aux` 0, vector in `imm`), INT3 (1), INTO (2), INT1 (3).
pub extern "C-unwind" fn int(cpu: &mut Cpu, op: OpRef) -> Flow {
    let s = match op.aux {
        0 => {
            if cpu.v86() && cpu.iopl() < 3 {
                return match cpu.int_v86(&op, op.imm as u8) {
                    Ok(()) => crate::op::jumped(cpu, op, Flow::Sync),
                    Err(s) => stop(cpu, op, s),
                };
            }
            software(cpu, &op, op.imm as u8, EventKind::SoftwareInterrupt)
        }
        1 => software(cpu, &op, vector::BP, EventKind::SoftwareException),
        2 if !cpu.flags.of() => return next(cpu, op),
        2 => software(cpu, &op, vector::OF, EventKind::SoftwareException),
        _ => software(cpu, &op, vector::DB, EventKind::PrivilegedSoftwareException),
    };
    stop(cpu, op, s)
}

/// DAA (`aux` 0) and DAS (1).
pub extern "C-unwind" fn daa(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (al, cf, af) = (u8::get(cpu, reg::RAX), cpu.flags.cf(), cpu.flags.af());
    let low = al & 15 > 9 || af;
    let high = al > 0x99 || cf;
    let adjust = u8::from(low) * 6 + u8::from(high) * 0x60;
    let r = if op.aux == 0 { al.wrapping_add(adjust) } else { al.wrapping_sub(adjust) };
    // DAS also borrows when the low correction goes below zero.
    let carry = high || op.aux != 0 && low && al < 6;
    r.put(cpu, reg::RAX);
    cpu.flags.set_result(r, carry, false);
    let flags = cpu.flags.get() | if low { bits::AF } else { 0 };
    cpu.flags.set(flags);
    next(cpu, op)
}

/// AAA (`aux` 0) and AAS (1).
pub extern "C-unwind" fn aaa(cpu: &mut Cpu, op: OpRef) -> Flow {
    let ax = u16::get(cpu, reg::RAX);
    let adjust = ax & 15 > 9 || cpu.flags.af();
    let r = match (adjust, op.aux) {
        (false, _) => ax,
        (true, 0) => ax.wrapping_add(0x106),
        (true, _) => ax.wrapping_sub(0x106),
    } & 0xff0f;
    r.put(cpu, reg::RAX);
    cpu.flags.set_result(r as u8, adjust, false);
    let flags = cpu.flags.get() | if adjust { bits::AF } else { 0 };
    cpu.flags.set(flags);
    next(cpu, op)
}

/// AAM with base `imm`.
pub extern "C-unwind" fn aam(cpu: &mut Cpu, op: OpRef) -> Flow {
    let base = op.imm as u8;
    if base == 0 {
        let s = cpu.raise(vector::DE, None);
        return stop(cpu, op, s);
    }
    let al = u8::get(cpu, reg::RAX);
    (al / base).put(cpu, reg::RAX | HIGH_BYTE);
    (al % base).put(cpu, reg::RAX);
    cpu.flags.set_result(al % base, false, false);
    next(cpu, op)
}

/// AAD with base `imm`.
pub extern "C-unwind" fn aad(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (al, ah) = (u8::get(cpu, reg::RAX), u8::get(cpu, reg::RAX | HIGH_BYTE));
    let r = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    u16::from(r).put(cpu, reg::RAX);
    cpu.flags.set_result(r, false, false);
    next(cpu, op)
}
