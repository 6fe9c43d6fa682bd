//! Segment descriptors: reading, checking and loading them (SDM vol. 3 chapters 3 and 5).

use crate::cpu::{Cpu, Segment, Stop, attr, seg, vector};

/// A descriptor as it stands in a table (its first eight bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor(pub u64);

impl Descriptor {
    /// Access rights in the format of [`Segment::attr`].
    pub fn attr(self) -> u32 {
        (self.0 >> 40) as u32 & 0xf0ff
    }

    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }

    /// The limit in bytes.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.attr() & attr::G != 0 { raw << 12 | 0xfff } else { raw }
    }

    pub fn dpl(self) -> u8 {
        (self.attr() >> 5 & 3) as u8
    }

    /// Type field with the S bit: 0–15 system, 16–31 code and data.
    pub fn kind(self) -> u32 {
        self.attr() & 0x1f
    }

    pub fn present(self) -> bool {
        self.attr() & attr::P != 0
    }

    pub fn is_code(self) -> bool {
        self.kind() & 0x18 == 0x18
    }

    pub fn conforming(self) -> bool {
        self.kind() & 0x1c == 0x1c
    }

    pub fn segment(self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), attr: self.attr() }
    }
}

/// System descriptor types.
#[allow(missing_docs)]
pub(crate) mod system_type {
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL16: u32 = 4;
    pub const TASK: u32 = 5;
    pub const INT16: u32 = 6;
    pub const TRAP16: u32 = 7;
    pub const TSS32: u32 = 9;
    pub const TSS32_BUSY: u32 = 11;
    pub const CALL32: u32 = 12;
    pub const INT32: u32 = 14;
    pub const TRAP32: u32 = 15;
}

impl Cpu {
    /// An error code that names a selector, with EXT when an event is being delivered that is no
    /// software interrupt.
    pub(crate) fn selector_error(&self, selector: u16) -> u32 {
        use crate::cpu::EventKind as K;
        let software = [K::SoftwareInterrupt, K::SoftwareException];
        let external = self.delivering.is_some_and(|e| !software.contains(&e.kind));
        u32::from(selector & !3) | u32::from(external)
    }

    /// #GP, #NP, #SS or #TS about a selector.
    pub(crate) fn selector_fault(&mut self, vector: u8, selector: u16) -> Stop {
        let error = self.selector_error(selector);
        self.raise(vector, Some(error))
    }

    /// Linear address of a selector's descriptor, `bytes` long; `fault` is raised if it is outside its
    /// table.
    pub(crate) fn descriptor_at(&mut self, selector: u16, bytes: u64, fault: u8) -> Result<u64, Stop> {
        let index = u64::from(selector & !7);
        let (base, limit, usable) = if selector & 4 != 0 {
            let ldt = &self.seg[seg::LDTR];
            (ldt.base, u64::from(ldt.limit), !ldt.unusable())
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit), true)
        };
        if !usable || index + bytes - 1 > limit {
            return Err(self.selector_fault(fault, selector));
        }
        Ok(base.wrapping_add(index))
    }

    /// Reads the descriptor of a selector that is not null.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8) -> Result<Descriptor, Stop> {
        let at = self.descriptor_at(selector, 8, fault)?;
        Ok(Descriptor(self.load_system(at)?))
    }

    /// Sets the accessed bit of a code or data descriptor in its table, and in `d`.
    pub(crate) fn set_accessed(&mut self, selector: u16, d: &mut Descriptor) -> Result<(), Stop> {
        if d.kind() & 0x11 == 0x10 {
            let at = self.descriptor_at(selector, 8, vector::GP)?;
            d.0 |= 1 << 40;
            self.store_system(at + 5, (d.0 >> 40) as u8)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS (MOV, POP, LDS …).
    ///
    /// # Errors
    /// #GP, #NP, #SS as the descriptor deserves, or a fault of reading it.
    pub(crate) fn load_segment(&mut self, s: usize, selector: u16) -> Result<(), Stop> {
        if !self.protected() {
            // Real mode keeps limit and rights: that is what unreal mode is made of.
            let v86 = self.v86();
            let d = &mut self.seg[s];
            (d.selector, d.base) = (selector, u64::from(selector) << 4);
            if v86 {
                *d = Segment { attr: 0xf3, ..Segment::real(selector) };
            } else {
                d.attr &= !attr::UNUSABLE;
            }
            self.segment_changed(s);
            return Ok(());
        }
        let new = self.checked_data_segment(s, selector, self.cpl)?;
        self.seg[s] = new;
        self.segment_changed(s);
        Ok(())
    }

    /// The checks of a data or stack segment load at privilege level `cpl`.
    pub(crate) fn checked_data_segment(&mut self, s: usize, selector: u16, cpl: u8) -> Result<Segment, Stop> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            let stack_ok = self.long64 && cpl < 3 && rpl == cpl;
            if s == seg::SS && !stack_ok {
                return Err(self.selector_fault(vector::GP, 0));
            }
            let dpl = if s == seg::SS { u32::from(cpl) << 5 } else { 0 };
            return Ok(Segment { selector, base: 0, limit: 0, attr: attr::UNUSABLE | dpl });
        }
        let mut d = self.descriptor(selector, vector::GP)?;
        let writable = d.kind() & 0x1a == 0x12;
        let allowed = if s == seg::SS {
            writable && rpl == cpl && d.dpl() == cpl
        } else {
            let readable = d.kind() & 0x18 == 0x10 || d.kind() & 0x1a == 0x1a;
            readable && (d.conforming() || d.dpl() >= rpl.max(cpl))
        };
        if !allowed {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.present() {
            let v = if s == seg::SS { vector::SS } else { vector::NP };
            return Err(self.selector_fault(v, selector));
        }
        self.set_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// What follows from a changed segment register. Cheap for data segments.
    pub(crate) fn segment_changed(&mut self, s: usize) {
        if s == seg::CS || s == seg::SS {
            self.mode_changed();
        } else {
            let flat = self.long64 && s < seg::FS;
            self.ea_base[s & 7] = if flat { 0 } else { self.seg[s & 7].base };
        }
    }

    /// Loads CS and RIP, and with them the privilege level `cpl`.
    pub(crate) fn set_code(&mut self, mut code: Segment, cpl: u8, rip: u64) {
        code.selector = code.selector & !3 | u16::from(cpl);
        self.seg[seg::CS] = code;
        self.cpl = cpl;
        self.rip = rip;
        self.mode_changed();
    }

    /// Checks that `rip` lies in the code segment to be loaded.
    pub(crate) fn check_target(&mut self, code: &Segment, rip: u64) -> Result<(), Stop> {
        let long = self.lma() && code.attr & attr::L != 0;
        let inside = if long { self.canonical(rip) } else { rip <= u64::from(code.limit) };
        if inside { Ok(()) } else { Err(self.gp(0)) }
    }

    /// LLDT.
    pub(crate) fn load_ldt(&mut self, selector: u16) -> Result<(), Stop> {
        if selector & !3 == 0 {
            self.seg[seg::LDTR] = Segment { selector, attr: attr::UNUSABLE | 0x82, ..Segment::default() };
            return Ok(());
        }
        self.seg[seg::LDTR] = self.system_segment(selector, &[system_type::LDT])?;
        Ok(())
    }

    /// LTR: the descriptor becomes busy.
    pub(crate) fn load_task_register(&mut self, selector: u16) -> Result<(), Stop> {
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let allowed: &[u32] =
            if self.lma() { &[system_type::TSS32] } else { &[system_type::TSS16, system_type::TSS32] };
        let mut tr = self.system_segment(selector, allowed)?;
        let at = self.descriptor_at(selector, 8, vector::GP)?;
        tr.attr |= 2;
        self.store_system(at + 5, tr.attr as u8)?;
        self.seg[seg::TR] = tr;
        Ok(())
    }

    /// A system segment of one of `types`: eight bytes, sixteen in IA-32e mode.
    fn system_segment(&mut self, selector: u16, types: &[u32]) -> Result<Segment, Stop> {
        if selector & 4 != 0 {
            return Err(self.selector_fault(vector::GP, selector));
        }
        let bytes = if self.lma() { 16 } else { 8 };
        let at = self.descriptor_at(selector, bytes, vector::GP)?;
        let d = Descriptor(self.load_system(at)?);
        if !types.contains(&d.kind()) {
            return Err(self.selector_fault(vector::GP, selector));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let mut s = d.segment(selector);
        if bytes == 16 {
            let high: u64 = self.load_system(at + 8)?;
            s.base |= high << 32;
            if !self.canonical_in_register(s.base) {
                return Err(self.selector_fault(vector::GP, selector));
            }
        }
        Ok(s)
    }
}
