//! IRET.

use trapline_vmx::exit::TaskSwitchSource;

use super::{Landed, flow};
use crate::cpu::{Cpu, Segment, Stop, reg, seg};
use crate::flags::bits;
use crate::op::{Flow, OpRef};

/// IRET, IRETD, IRETQ.
pub(crate) extern "C-unwind" fn iret(cpu: &mut Cpu, op: OpRef) -> Flow {
    let back = cpu.ip_after(&op);
    cpu.iret_unblocks_nmi();
    let done = cpu.interrupt_return(op.operand_size(), back);
    if done.is_ok() {
        cpu.iret_done();
    }
    flow(cpu, op, done)
}

impl Cpu {
    fn interrupt_return(&mut self, size: u64, next: u64) -> Result<Landed, Stop> {
        if !self.protected() {
            return self.return_real(size).map(|()| Landed::Well);
        }
        if self.rflags & bits::NT != 0 {
            if self.lma() {
                return Err(self.gp(0));
            }
            let link: u16 = self.load_system(self.seg[seg::TR].base)?;
            return self.task_switch(link, TaskSwitchSource::Iret, next, None);
        }
        let ip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, size)? as u16;
        let flags = self.peek_sized(size, 2 * size)?;
        if flags & bits::VM != 0 && self.cpl == 0 && !self.lma() && size == 4 {
            return self.return_v86(ip, selector, flags).map(|()| Landed::Well);
        }
        let code = self.return_segment(selector)?;
        let rpl = (selector & 3) as u8;
        let outer = rpl != self.cpl;
        let old_cpl = self.cpl;
        if !outer && !self.long64 {
            self.check_target(&code, ip)?;
            self.release(3 * size);
            self.set_code(code, rpl, ip);
        } else {
            let sp = self.peek_sized(size, 3 * size)?;
            let ss = self.peek_sized(size, 4 * size)? as u16;
            let stack = self.return_stack(ss, rpl, &code)?;
            self.check_target(&code, ip)?;
            self.seg[seg::SS] = stack;
            self.set_code(code, rpl, ip);
            self.set_sp(sp);
            if outer {
                self.drop_inner_segments();
            }
        }
        self.return_flags(flags, size, old_cpl);
        Ok(Landed::Well)
    }

    /// RFLAGS from an image on the stack, as far as the level that executed IRET may change them.
    fn return_flags(&mut self, image: u64, size: u64, cpl: u8) {
        let mut may = bits::ARITH | bits::TF | bits::DF | bits::NT;
        if size > 2 {
            may |= bits::RF | bits::AC | bits::ID;
        }
        if cpl <= self.iopl() {
            may |= bits::IF;
        }
        if cpl == 0 {
            may |= bits::IOPL;
            if size > 2 {
                may |= bits::VIF | bits::VIP;
            }
        }
        let flags = self.get_rflags() & !may | image & may;
        self.set_rflags(flags);
    }

    /// In real mode, and in virtual-8086 mode.
    fn return_real(&mut self, size: u64) -> Result<(), Stop> {
        let virtual_if = self.v86() && self.iopl() < 3;
        if virtual_if && (size != 2 || !self.virtual_interrupts()) {
            return Err(self.gp(0));
        }
        let ip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, size)? as u16;
        let image = self.peek_sized(size, 2 * size)?;
        self.check_real_target(ip)?;
        let mut may = bits::ARITH | bits::TF | bits::IF | bits::DF | bits::NT;
        if !self.v86() {
            may |= bits::IOPL;
        }
        if size > 2 {
            may |= bits::RF | bits::AC | bits::ID;
        }
        if virtual_if {
            let pending = self.rflags & bits::VIP != 0 && image & bits::IF != 0;
            if pending || image & bits::TF != 0 {
                return Err(self.gp(0));
            }
            may &= !bits::IF;
            self.rflags = self.rflags & !bits::VIF | if image & bits::IF != 0 { bits::VIF } else { 0 };
        }
        self.release(3 * size);
        let flags = self.get_rflags() & !may | image & may;
        self.set_rflags(flags);
        self.load_real_code(selector, ip);
        Ok(())
    }

    /// From protected mode to virtual-8086 mode.
    fn return_v86(&mut self, ip: u64, cs: u16, flags: u64) -> Result<(), Stop> {
        let mut words = [0u64; 6];
        for (i, w) in words.iter_mut().enumerate() {
            *w = self.peek_sized(4, 12 + 4 * i as u64)?;
        }
        if ip > 0xffff {
            return Err(self.gp(0));
        }
        let [sp, ss, es, ds, fs, gs] = words;
        let selectors = [
            (seg::CS, u64::from(cs)),
            (seg::SS, ss),
            (seg::ES, es),
            (seg::DS, ds),
            (seg::FS, fs),
            (seg::GS, gs),
        ];
        for (s, selector) in selectors {
            self.seg[s] = Segment { attr: 0xf3, ..Segment::real(selector as u16) };
        }
        self.regs[usize::from(reg::RSP)] = sp;
        self.cpl = 3;
        self.rip = ip;
        self.set_rflags(flags);
        self.mode_changed();
        Ok(())
    }
}
