//! Far transfers: JMP, CALL, RET and IRET between segments, call gates, task switches (SDM vol. 3
//! chapters 5 and 8).

pub(crate) mod iret;
pub(crate) mod task;

use trapline_vmx::exit::TaskSwitchSource;

use crate::cpu::{Cpu, Segment, Stop, attr, reg, seg, vector};
use crate::int::Int;
use crate::lower::form;
use crate::mmu::Kind;
use crate::op::{Flow, Op, OpRef, jumped, stop};
use crate::ops::branch::jumped_on;
use crate::ops::ea;
use crate::seg::{Descriptor, system_type};

/// How a far transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    /// At its target.
    Well,
    /// In a new task with an exception before its first instruction: it is pending, and RIP is that of
    /// the new task.
    Faulting,
}

/// What a far transfer's [`Landed`] means for the chain.
fn flow(cpu: &mut Cpu, op: OpRef, done: Result<Landed, Stop>) -> Flow {
    match done {
        Ok(Landed::Well) => jumped_on(cpu, op),
        Ok(Landed::Faulting) => jumped(cpu, op, Flow::Stop),
        Err(s) => stop(cpu, op, s),
    }
}

/// JMP (`CALL` false) and CALL to a far pointer: offset in `imm`, selector in `disp`.
pub(crate) extern "C-unwind" fn direct<const CALL: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let done = cpu.far_transfer(&op, op.disp as u16, op.imm, CALL);
    flow(cpu, op, done)
}

/// JMP and CALL through a far pointer in memory.
pub(crate) extern "C-unwind" fn indirect<const CALL: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let done = load_pointer(cpu, &op).and_then(|(sel, offset)| cpu.far_transfer(&op, sel, offset, CALL));
    flow(cpu, op, done)
}

fn load_pointer(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    let size = op.operand_size();
    let lin = ea::<{ form::FULL }>(cpu, op, size + 2, Kind::Read)?;
    let offset = match size {
        2 => u64::from(cpu.load::<u16>(lin)?),
        4 => u64::from(cpu.load::<u32>(lin)?),
        _ => cpu.load::<u64>(lin)?,
    };
    Ok((cpu.load(lin.wrapping_add(size))?, offset))
}

/// Far RET; `imm` bytes of arguments are released.
pub(crate) extern "C-unwind" fn ret(cpu: &mut Cpu, op: OpRef) -> Flow {
    let done = cpu.far_return(op.operand_size(), op.imm).map(|()| Landed::Well);
    flow(cpu, op, done)
}

impl Cpu {
    /// Reads the stack `at` bytes above its top, `size` bytes.
    fn peek_sized(&mut self, size: u64, at: u64) -> Result<u64, Stop> {
        Ok(match size {
            2 => self.peek::<u16>(at)?.zx(),
            4 => self.peek::<u32>(at)?.zx(),
            _ => self.peek::<u64>(at)?,
        })
    }

    fn push_sized(&mut self, size: u64, v: u64) -> Result<(), Stop> {
        match size {
            2 => self.push(v as u16),
            4 => self.push(v as u32),
            _ => self.push(v),
        }
    }

    /// Pushes all of `words`, or none.
    fn push_all(&mut self, size: u64, words: &[u64]) -> Result<(), Stop> {
        let sp = self.regs[usize::from(reg::RSP)];
        for w in words {
            if let Err(s) = self.push_sized(size, *w) {
                self.regs[usize::from(reg::RSP)] = sp;
                return Err(s);
            }
        }
        Ok(())
    }

    /// Loads CS:IP as real and virtual-8086 mode do, after the limit check.
    fn load_real_code(&mut self, selector: u16, ip: u64) {
        let v86 = self.v86();
        let code = &mut self.seg[seg::CS];
        (code.selector, code.base) = (selector, u64::from(selector) << 4);
        if v86 {
            *code = Segment { attr: 0xf3, ..Segment::real(selector) };
        }
        self.rip = ip;
        self.mode_changed();
    }

    fn check_real_target(&mut self, ip: u64) -> Result<(), Stop> {
        if ip > u64::from(self.seg[seg::CS].limit) { Err(self.gp(0)) } else { Ok(()) }
    }

    /// A far JMP or CALL.
    fn far_transfer(&mut self, op: &Op, selector: u16, offset: u64, call: bool) -> Result<Landed, Stop> {
        let size = op.operand_size();
        let back = self.ip_after(op);
        if !self.protected() {
            self.check_real_target(offset)?;
            if call {
                let cs = u64::from(self.seg[seg::CS].selector);
                self.push_all(size, &[cs, back])?;
            }
            self.load_real_code(selector, offset);
            return Ok(Landed::Well);
        }
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let d = self.descriptor(selector, vector::GP)?;
        if d.is_code() {
            self.direct_transfer(selector, d, offset, call.then_some((size, back)))?;
            return Ok(Landed::Well);
        }
        let source = if call { TaskSwitchSource::Call } else { TaskSwitchSource::Jmp };
        match d.kind() {
            system_type::CALL16 | system_type::CALL32 if !self.lma() || d.kind() == system_type::CALL32 => {
                self.gate_transfer(selector, d, call.then_some(back))?;
                Ok(Landed::Well)
            }
            system_type::TSS16 | system_type::TSS32 if !self.lma() => {
                self.check_gate_rights(selector, d)?;
                self.task_switch(selector, source, back, None)
            }
            system_type::TASK if !self.lma() => {
                self.check_gate_rights(selector, d)?;
                if !d.present() {
                    return Err(self.selector_fault(vector::NP, selector));
                }
                self.task_switch((d.0 >> 16) as u16, source, back, None)
            }
            _ => Err(self.selector_fault(vector::GP, selector)),
        }
    }

    /// A far JMP or CALL straight to a code segment.
    fn direct_transfer(
        &mut self,
        selector: u16,
        mut d: Descriptor,
        offset: u64,
        call: Option<(u64, u64)>,
    ) -> Result<(), Stop> {
        let rpl = (selector & 3) as u8;
        let allowed =
            if d.conforming() { d.dpl() <= self.cpl } else { rpl <= self.cpl && d.dpl() == self.cpl };
        if !allowed || self.both_sizes(d) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let code = d.segment(selector);
        self.check_target(&code, offset)?;
        self.set_accessed(selector, &mut d)?;
        if let Some((size, back)) = call {
            let cs = u64::from(self.seg[seg::CS].selector);
            self.push_all(size, &[cs, back])?;
        }
        self.set_code(d.segment(selector), self.cpl, offset);
        Ok(())
    }

    /// L and D both set in IA-32e mode: reserved.
    fn both_sizes(&self, d: Descriptor) -> bool {
        self.lma() && d.attr() & (attr::L | attr::DB) == attr::L | attr::DB
    }

    /// A gate or TSS may be used from levels up to its DPL.
    fn check_gate_rights(&mut self, selector: u16, d: Descriptor) -> Result<(), Stop> {
        let rpl = (selector & 3) as u8;
        if d.dpl() < self.cpl || d.dpl() < rpl {
            return Err(self.selector_fault(vector::GP, selector));
        }
        Ok(())
    }

    /// Through a call gate; a call says where to come back to.
    fn gate_transfer(&mut self, selector: u16, gate: Descriptor, call: Option<u64>) -> Result<(), Stop> {
        self.check_gate_rights(selector, gate)?;
        if !gate.present() {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let long = self.lma();
        let size = if long {
            8
        } else if gate.kind() == system_type::CALL32 {
            4
        } else {
            2
        };
        let mut offset = gate.0 & 0xffff | if size > 2 { gate.0 >> 32 & 0xffff_0000 } else { 0 };
        if long {
            let at = self.descriptor_at(selector, 16, vector::GP)?;
            let high: u64 = self.load_system(at + 8)?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.selector_fault(vector::GP, selector));
            }
            offset |= high << 32;
        }
        let target = (gate.0 >> 16) as u16;
        if target & !3 == 0 {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(target, vector::GP)?;
        let inner = call.is_some() && !d.conforming() && d.dpl() < self.cpl;
        let allowed = d.is_code() && (inner || d.conforming() && d.dpl() <= self.cpl || d.dpl() == self.cpl);
        let wrong_size = long && d.attr() & (attr::L | attr::DB) != attr::L;
        if !allowed || wrong_size {
            return Err(self.selector_fault(vector::GP, target));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, target));
        }
        let code = d.segment(target);
        self.check_target(&code, offset)?;
        self.set_accessed(target, &mut d)?;
        let code = d.segment(target);
        match call {
            Some(back) if inner => {
                let parameters = if long { 0 } else { gate.0 >> 32 & 31 };
                self.enter_inner(d.dpl(), size, back, parameters)?;
                self.set_code(code, d.dpl(), offset);
            }
            Some(back) => {
                let cs = u64::from(self.seg[seg::CS].selector);
                self.push_all(size, &[cs, back])?;
                self.set_code(code, self.cpl, offset);
            }
            None => self.set_code(code, self.cpl, offset),
        }
        Ok(())
    }

    /// Switches to the stack of an inner level and pushes the frame of a call there.
    fn enter_inner(&mut self, cpl: u8, size: u64, back: u64, parameters: u64) -> Result<(), Stop> {
        let old_ss = u64::from(self.seg[seg::SS].selector);
        let old_sp = self.regs[usize::from(reg::RSP)];
        let cs = u64::from(self.seg[seg::CS].selector);
        if size == 8 {
            let sp = self.tss_stack64(4 + 8 * u64::from(cpl))?;
            for (i, word) in [old_ss, old_sp, cs, back].into_iter().enumerate() {
                self.store_system(sp.wrapping_sub(8 * (i as u64 + 1)), word)?;
            }
            let attr = attr::UNUSABLE | u32::from(cpl) << 5;
            self.seg[seg::SS] = Segment { selector: u16::from(cpl), attr, ..Segment::default() };
            self.regs[usize::from(reg::RSP)] = sp.wrapping_sub(32);
            return Ok(());
        }
        let (stack, sp) = self.tss_stack(cpl)?;
        let mut frame = vec![old_ss, old_sp];
        for i in (0..parameters).rev() {
            frame.push(self.peek_sized(size, i * size)?);
        }
        frame.extend([cs, back]);
        let new_sp = self.push_frame(&stack, sp, &frame, size == 4, cpl)?;
        self.seg[seg::SS] = stack;
        self.set_sp(new_sp);
        Ok(())
    }

    /// A far RET that releases `extra` bytes of arguments.
    fn far_return(&mut self, size: u64, extra: u64) -> Result<(), Stop> {
        let ip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, size)? as u16;
        if !self.protected() {
            self.check_real_target(ip)?;
            self.release(2 * size + extra);
            self.load_real_code(selector, ip);
            return Ok(());
        }
        let code = self.return_segment(selector)?;
        let rpl = (selector & 3) as u8;
        if rpl == self.cpl {
            self.check_target(&code, ip)?;
            self.release(2 * size + extra);
            self.set_code(code, rpl, ip);
            return Ok(());
        }
        let sp = self.peek_sized(size, 2 * size + extra)?;
        let ss = self.peek_sized(size, 3 * size + extra)? as u16;
        let stack = self.return_stack(ss, rpl, &code)?;
        self.check_target(&code, ip)?;
        self.seg[seg::SS] = stack;
        self.set_code(code, rpl, ip);
        self.set_sp(sp.wrapping_add(extra));
        self.drop_inner_segments();
        Ok(())
    }

    /// The code segment that RET or IRET goes back to, with all checks but that of the offset.
    fn return_segment(&mut self, selector: u16) -> Result<Segment, Stop> {
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        let level = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !d.is_code() || rpl < self.cpl || !level || self.both_sizes(d) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, selector));
        }
        self.set_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// The stack segment that RET or IRET goes back to.
    fn return_stack(&mut self, selector: u16, cpl: u8, code: &Segment) -> Result<Segment, Stop> {
        let long = self.lma() && code.attr & attr::L != 0;
        if selector & !3 == 0 {
            if !long || cpl == 3 || (selector & 3) as u8 != cpl {
                return Err(self.gp(0));
            }
            let attr = attr::UNUSABLE | u32::from(cpl) << 5;
            return Ok(Segment { selector, attr, ..Segment::default() });
        }
        self.checked_data_segment(seg::SS, selector, cpl)
    }

    /// After a return to an outer level: data segments that it may not use become null. As processors do, only
    /// the selector goes; the base stays, which for FS and GS counts in 64-bit mode.
    fn drop_inner_segments(&mut self) {
        for s in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let d = &mut self.seg[s];
            let conforming = d.attr & 0x1c == 0x1c;
            if !d.unusable() && d.dpl() < self.cpl && !conforming {
                *d = Segment { selector: 0, base: d.base, attr: attr::UNUSABLE, ..Segment::default() };
                self.segment_changed(s);
            }
        }
    }
}
