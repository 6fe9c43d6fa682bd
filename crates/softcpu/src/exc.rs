//! Delivery of exceptions and interrupts (SDM vol. 3 chapter 6).

use crate::cpu::{
    Activity, Cpu, Event, EventKind, ExitInfo, Pending, Segment, Stop, attr, cr4, seg, shadow, vector,
};
use crate::flags::bits;
use crate::mmu::Kind;
use crate::op::Op;
use crate::seg::{Descriptor, system_type};
use crate::vmx::reason;

/// An IDT gate.
struct Gate {
    kind: u32,
    selector: u16,
    offset: u64,
    ist: u8,
}

impl Cpu {
    /// Delivers an event, or says which VM exit it causes. Exceptions on the way are delivered in turn:
    /// as themselves, as double fault, or as shutdown.
    pub(crate) fn deliver(&mut self, event: Event) -> Option<ExitInfo> {
        if let Some(exit) = self.intercept_event(&event) {
            return Some(exit);
        }
        self.leave_traces(&event);
        self.inject(event)
    }

    /// As [`Cpu::deliver`], but the event itself causes no VM exit: VM entry injects it, with its traces in
    /// CR2 and DR6 or without.
    pub(crate) fn inject(&mut self, event: Event) -> Option<ExitInfo> {
        let mut event = event;
        self.activity = Activity::Active;
        loop {
            self.delivering = Some(event);
            if self.enter_handler(&event).is_ok() {
                self.delivered(&event);
                // Timers are looked at by the count: a handler that faults at once must not stop it.
                self.icount += 1;
                return None;
            }
            let second = match std::mem::replace(&mut self.pending, Pending::None) {
                Pending::Event(second) => second,
                // `delivering` stays: it is what the IDT-vectoring information tells.
                Pending::Exit(exit) => return Some(exit),
                Pending::None => return None,
            };
            // The exception bitmap is asked for the second exception before the two become one.
            if let Some(exit) = self.intercept_event(&second) {
                return Some(exit);
            }
            self.leave_traces(&second);
            match after(&event, second) {
                Some(next) => {
                    if next.vector == vector::DF {
                        // A double fault that exits is no exit during delivery.
                        self.delivering = None;
                        if let Some(exit) = self.intercept_event(&next) {
                            return Some(exit);
                        }
                    }
                    event = next;
                }
                None => {
                    self.delivering = None;
                    return self.shutdown();
                }
            }
        }
    }

    /// What an exception that comes about (rather than being injected) leaves in registers.
    fn leave_traces(&mut self, event: &Event) {
        match event.vector {
            vector::PF if event.kind == EventKind::HardwareException => self.cr2 = event.payload,
            vector::DB if event.kind == EventKind::HardwareException => self.record_debug(event.payload),
            _ => {}
        }
    }

    /// The handler of an event is entered.
    fn delivered(&mut self, event: &Event) {
        self.delivering = None;
        self.nmi_unblocked = false;
        self.shadow &= !(shadow::STI | shadow::MOV_SS);
        if event.vector == vector::DB && event.kind != EventKind::SoftwareInterrupt {
            // What MOV SS has held back goes with the debug exception of the instruction after it.
            self.pending_debug = 0;
        }
        if event.kind == EventKind::Nmi {
            self.shadow |= shadow::NMI;
        }
        self.vmx.trap_pending |= self.vmx.monitor_trap;
    }

    /// A fault during the delivery of a double fault: shutdown, a VM exit in non-root operation.
    fn shutdown(&mut self) -> Option<ExitInfo> {
        if self.nonroot {
            return Some(ExitInfo { reason: reason::TRIPLE_FAULT, ..ExitInfo::default() });
        }
        self.activity = Activity::Shutdown;
        None
    }

    fn enter_handler(&mut self, event: &Event) -> Result<(), Stop> {
        if self.cr0 & crate::cpu::cr0::PE == 0 {
            self.enter_real(event)
        } else if self.lma() {
            self.enter_long(event)
        } else {
            self.enter_protected(event)
        }
    }

    /// RIP to come back to: after a software interrupt, else where we are.
    fn return_rip(&self, event: &Event) -> u64 {
        self.wrap_ip(self.rip.wrapping_add(u64::from(event.len)))
    }

    /// RFLAGS to save: faults set RF, so that an instruction breakpoint is not hit again.
    fn saved_flags(&self, event: &Event) -> u64 {
        self.get_rflags() | if event.is_fault() { bits::RF } else { 0 }
    }

    fn enter_real(&mut self, event: &Event) -> Result<(), Stop> {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(0));
        }
        let entry: u32 = self.load_system(self.idtr.base.wrapping_add(at))?;
        let (flags, cs, ip) = (self.get_rflags(), self.seg[seg::CS].selector, self.return_rip(event));
        let sp = self.regs[usize::from(crate::cpu::reg::RSP)];
        let pushed = self.push(flags as u16).and_then(|()| self.push(cs)).and_then(|()| self.push(ip as u16));
        if let Err(s) = pushed {
            self.regs[usize::from(crate::cpu::reg::RSP)] = sp;
            return Err(s);
        }
        self.rflags &= !(bits::IF | bits::TF | bits::AC | bits::RF);
        let selector = (entry >> 16) as u16;
        let code = &mut self.seg[seg::CS];
        (code.selector, code.base) = (selector, u64::from(selector) << 4);
        self.rip = u64::from(entry & 0xffff);
        self.mode_changed();
        Ok(())
    }

    /// Reads and checks the gate of `event`.
    fn gate(&mut self, event: &Event) -> Result<Gate, Stop> {
        let long = self.lma();
        let size = if long { 16 } else { 8 };
        let at = u64::from(event.vector) * size;
        let software = matches!(event.kind, EventKind::SoftwareInterrupt | EventKind::SoftwareException);
        // Bit 1 says that the index is one of the IDT; bit 0 (EXT) that no software asked for it.
        let error = u32::from(event.vector) << 3 | 2 | u32::from(!software);
        if at + size - 1 > u64::from(self.idtr.limit) {
            return Err(self.gp(error));
        }
        let at = self.idtr.base.wrapping_add(at);
        let low = Descriptor(self.load_system(at)?);
        let kind = low.kind();
        let known = if long {
            matches!(kind, system_type::INT32 | system_type::TRAP32)
        } else {
            matches!(
                kind,
                system_type::TASK
                    | system_type::INT16
                    | system_type::TRAP16
                    | system_type::INT32
                    | system_type::TRAP32
            )
        };
        if !known || software && low.dpl() < self.cpl {
            return Err(self.gp(error));
        }
        if !low.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        let mut offset = low.0 & 0xffff | low.0 >> 32 & 0xffff_0000;
        if kind & 8 == 0 {
            offset &= 0xffff;
        }
        let mut ist = 0;
        if long {
            let high: u64 = self.load_system(at + 8)?;
            offset |= high << 32;
            ist = (low.0 >> 32 & 7) as u8;
        }
        Ok(Gate { kind, selector: (low.0 >> 16) as u16, offset, ist })
    }

    /// The code segment a gate leads to, and the privilege level it runs at.
    fn gate_target(&mut self, gate: &Gate) -> Result<(Segment, u8), Stop> {
        if gate.selector & !3 == 0 {
            let error = self.selector_error(0);
            return Err(self.gp(error));
        }
        let mut d = self.descriptor(gate.selector, vector::GP)?;
        if !d.is_code() || d.dpl() > self.cpl {
            return Err(self.selector_fault(vector::GP, gate.selector));
        }
        let long = d.attr() & (attr::L | attr::DB) == attr::L;
        if self.lma() && !long {
            return Err(self.selector_fault(vector::GP, gate.selector));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, gate.selector));
        }
        let cpl = if d.conforming() { self.cpl } else { d.dpl() };
        if self.v86() && cpl != 0 {
            return Err(self.selector_fault(vector::GP, gate.selector));
        }
        self.set_accessed(gate.selector, &mut d)?;
        Ok((d.segment(gate.selector), cpl))
    }

    fn enter_long(&mut self, event: &Event) -> Result<(), Stop> {
        let gate = self.gate(event)?;
        let (code, cpl) = self.gate_target(&gate)?;
        if !self.canonical(gate.offset) {
            let error = self.selector_error(0);
            return Err(self.gp(error));
        }
        let old_sp = self.regs[usize::from(crate::cpu::reg::RSP)];
        let top = if gate.ist != 0 {
            self.tss_stack64(28 + 8 * u64::from(gate.ist))?
        } else if cpl < self.cpl {
            self.tss_stack64(4 + 8 * u64::from(cpl))?
        } else {
            old_sp
        } & !15;
        let mut frame = [0u64; 6];
        let ss = u64::from(self.seg[seg::SS].selector);
        let cs = u64::from(self.seg[seg::CS].selector);
        let words = [ss, old_sp, self.saved_flags(event), cs, self.return_rip(event)];
        frame[..5].copy_from_slice(&words);
        let mut n = 5;
        if let Some(error) = event.error {
            frame[5] = u64::from(error);
            n = 6;
        }
        let new_sp = top.wrapping_sub(8 * n as u64);
        if !self.canonical(new_sp) {
            let error = self.selector_error(0);
            return Err(self.raise(vector::SS, Some(error)));
        }
        for (i, word) in frame[..n].iter().enumerate() {
            let at = top.wrapping_sub(8 * (i as u64 + 1));
            // Supervisor rights for a supervisor's stack, whoever was interrupted.
            if cpl < 3 { self.store_system(at, *word)? } else { self.store(at, *word)? }
        }
        if cpl < self.cpl {
            self.seg[seg::SS] = Segment {
                selector: u16::from(cpl),
                base: 0,
                limit: 0,
                attr: attr::UNUSABLE | u32::from(cpl) << 5,
            };
        }
        self.regs[usize::from(crate::cpu::reg::RSP)] = new_sp;
        self.handler_flags(gate.kind);
        self.set_code(code, cpl, gate.offset);
        Ok(())
    }

    /// RFLAGS of a handler: interrupt gates clear IF, all gates clear TF, NT, RF and VM.
    fn handler_flags(&mut self, kind: u32) {
        self.rflags &= !(bits::TF | bits::NT | bits::RF | bits::VM);
        if kind & 1 == 0 {
            self.rflags &= !bits::IF;
        }
    }

    /// A stack pointer of the 64-bit TSS.
    pub(crate) fn tss_stack64(&mut self, at: u64) -> Result<u64, Stop> {
        let tr = self.seg[seg::TR];
        if at + 7 > u64::from(tr.limit) {
            return Err(self.selector_fault(vector::TS, tr.selector));
        }
        let sp: u64 = self.load_system(tr.base.wrapping_add(at))?;
        if !self.canonical(sp) {
            let error = self.selector_error(0);
            return Err(self.raise(vector::SS, Some(error)));
        }
        Ok(sp)
    }

    /// Stack segment and pointer for privilege level `cpl` from the current 16- or 32-bit TSS.
    pub(crate) fn tss_stack(&mut self, cpl: u8) -> Result<(Segment, u64), Stop> {
        let tr = self.seg[seg::TR];
        let wide = tr.attr & 8 != 0;
        let at = if wide { 4 + 8 * u64::from(cpl) } else { 2 + 4 * u64::from(cpl) };
        if at + if wide { 5 } else { 3 } > u64::from(tr.limit) {
            return Err(self.selector_fault(vector::TS, tr.selector));
        }
        let base = tr.base.wrapping_add(at);
        let (sp, selector) = if wide {
            (u64::from(self.load_system::<u32>(base)?), self.load_system::<u16>(base + 4)?)
        } else {
            (u64::from(self.load_system::<u16>(base)?), self.load_system::<u16>(base + 2)?)
        };
        if selector & !3 == 0 {
            let error = self.selector_error(0);
            return Err(self.raise(vector::TS, Some(error)));
        }
        let mut d = self.descriptor(selector, vector::TS)?;
        let writable = d.kind() & 0x1a == 0x12;
        if selector & 3 != u16::from(cpl) || d.dpl() != cpl || !writable {
            return Err(self.selector_fault(vector::TS, selector));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::SS, selector));
        }
        self.set_accessed(selector, &mut d)?;
        Ok((d.segment(selector), sp))
    }

    fn enter_protected(&mut self, event: &Event) -> Result<(), Stop> {
        let gate = self.gate(event)?;
        if gate.kind == system_type::TASK {
            return self.enter_task(gate.selector, event);
        }
        let (code, cpl) = self.gate_target(&gate)?;
        let wide = gate.kind & 8 != 0;
        let v86 = self.v86();
        let old_ss = self.seg[seg::SS].selector;
        let old_sp = self.regs[usize::from(crate::cpu::reg::RSP)];
        let mut frame = Vec::with_capacity(10);
        let (stack, sp) = if cpl < self.cpl {
            let new = self.tss_stack(cpl)?;
            if v86 {
                frame.extend([seg::GS, seg::FS, seg::DS, seg::ES].map(|s| u64::from(self.seg[s].selector)));
            }
            frame.extend([u64::from(old_ss), old_sp]);
            new
        } else {
            (self.seg[seg::SS], self.sp())
        };
        frame.extend([
            self.saved_flags(event),
            u64::from(self.seg[seg::CS].selector),
            self.return_rip(event),
        ]);
        frame.extend(event.error.map(u64::from));
        self.check_target(&code, gate.offset)?;
        let new_sp = self.push_frame(&stack, sp, &frame, wide, cpl)?;
        if cpl < self.cpl {
            self.seg[seg::SS] = stack;
        }
        if v86 {
            for s in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.seg[s] = Segment { attr: attr::UNUSABLE, ..Segment::default() };
            }
        }
        self.handler_flags(gate.kind);
        self.set_code(code, cpl, gate.offset);
        self.set_sp(new_sp);
        Ok(())
    }

    /// Writes `words` below `sp` of a stack segment that is not loaded yet; returns the new pointer.
    pub(crate) fn push_frame(
        &mut self,
        stack: &Segment,
        sp: u64,
        words: &[u64],
        wide: bool,
        cpl: u8,
    ) -> Result<u64, Stop> {
        let size = if wide { 4 } else { 2 };
        let mask = if stack.attr & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
        let mut at = sp;
        let (old_ss, old_base) = (self.seg[seg::SS], self.ea_base[seg::SS]);
        for word in words {
            at = at.wrapping_sub(size) & mask;
            // The limit check looks at SS: lend it the new one.
            self.seg[seg::SS] = *stack;
            let lin = self.linear(seg::SS, at, size, Kind::Write);
            (self.seg[seg::SS], self.ea_base[seg::SS]) = (old_ss, old_base);
            let lin = lin?;
            match (wide, cpl < 3) {
                (true, true) => self.store_system(lin, *word as u32)?,
                (true, false) => self.store(lin, *word as u32)?,
                (false, true) => self.store_system(lin, *word as u16)?,
                (false, false) => self.store(lin, *word as u16)?,
            }
        }
        Ok(at)
    }

    /// INT n in virtual-8086 mode with IOPL below 3: through the virtual-mode interrupt table if VME and
    /// the redirection bitmap say so, else #GP.
    pub(crate) fn int_v86(&mut self, op: &Op, vector: u8) -> Result<(), Stop> {
        if self.cr4 & cr4::VME == 0 {
            return Err(self.gp(0));
        }
        let tr = self.seg[seg::TR];
        let map: u16 = self.load_system(tr.base.wrapping_add(102))?;
        let at = u64::from(map).wrapping_sub(32) + u64::from(vector / 8);
        if at > u64::from(tr.limit) {
            return Err(self.gp(0));
        }
        let byte: u8 = self.load_system(tr.base.wrapping_add(at))?;
        if byte >> (vector & 7) & 1 != 0 {
            return Err(self.gp(0));
        }
        let entry: u32 = self.load(u64::from(vector) * 4)?;
        let vif = self.rflags & bits::VIF != 0;
        let flags = self.get_rflags() & !bits::IF | bits::IOPL | if vif { bits::IF } else { 0 };
        let back = self.ip_after(op);
        let sp = self.regs[usize::from(crate::cpu::reg::RSP)];
        let cs = self.seg[seg::CS].selector;
        let pushed =
            self.push(flags as u16).and_then(|()| self.push(cs)).and_then(|()| self.push(back as u16));
        if let Err(s) = pushed {
            self.regs[usize::from(crate::cpu::reg::RSP)] = sp;
            return Err(s);
        }
        self.rflags &= !(bits::VIF | bits::TF);
        let selector = (entry >> 16) as u16;
        let code = Segment { attr: 0xf3, ..Segment::real(selector) };
        self.seg[seg::CS] = code;
        self.rip = u64::from(entry & 0xffff);
        self.mode_changed();
        Ok(())
    }
}

/// What to deliver when `second` was raised while `first` was delivered; `None` is shutdown (SDM vol. 3
/// table 6-5).
fn after(first: &Event, second: Event) -> Option<Event> {
    if first.kind != EventKind::HardwareException {
        return Some(second);
    }
    if first.vector == vector::DF {
        return None;
    }
    let contributory = |v: u8| matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
    let page = |v: u8| matches!(v, vector::PF | vector::VE);
    let double = contributory(first.vector) && contributory(second.vector)
        || page(first.vector) && (page(second.vector) || contributory(second.vector));
    if !double {
        return Some(second);
    }
    Some(Event { vector: vector::DF, kind: EventKind::HardwareException, error: Some(0), len: 0, payload: 0 })
}
