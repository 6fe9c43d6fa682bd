//! Task switches (SDM vol. 3 chapter 8).

use trapline_vmx::exit::{TaskSwitch, TaskSwitchSource};

use super::Landed;
use crate::cpu::{Cpu, Event, EventKind, ExitInfo, Pending, Segment, Stop, attr, cr0, cr4, reg, seg, vector};
use crate::flags::bits;
use crate::seg::{Descriptor, system_type};
use crate::vmx::reason;

/// DR6.BT: a task with the trap bit in its TSS was entered.
const DR6_BT: u64 = 1 << 15;
/// Segment registers in the order of a TSS.
const ORDER: [usize; 6] = [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS];

/// What a TSS holds of a task.
#[derive(Default)]
struct Image {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    regs: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// An interrupt through a task gate.
    pub(crate) fn enter_task(&mut self, selector: u16, event: &Event) -> Result<(), Stop> {
        let back = self.wrap_ip(self.rip.wrapping_add(u64::from(event.len)));
        match self.task_switch(selector, TaskSwitchSource::TaskGate, back, event.error)? {
            Landed::Well => Ok(()),
            Landed::Faulting => Err(Stop),
        }
    }

    /// Switches to the task of the TSS that `selector` names; `back` is where the old one goes on.
    pub(crate) fn task_switch(
        &mut self,
        selector: u16,
        source: TaskSwitchSource,
        back: u64,
        error: Option<u32>,
    ) -> Result<Landed, Stop> {
        let (at, d) = self.new_tss(selector, source)?;
        if self.nonroot && !std::mem::take(&mut self.task_switch_granted) {
            let q = TaskSwitch::new().with_selector(selector).with_source(source);
            return Err(self.vm_exit(ExitInfo {
                reason: reason::TASK_SWITCH,
                qualification: q.into_bits(),
                by_instruction: source != TaskSwitchSource::TaskGate,
                ..ExitInfo::default()
            }));
        }
        let nests = matches!(source, TaskSwitchSource::Call | TaskSwitchSource::TaskGate);
        let wide = d.kind() & 8 != 0;
        let old = self.seg[seg::TR];
        self.save_task(source, back)?;
        let mut image = self.read_task(d.base(), wide)?;
        if nests {
            self.store_system(d.base(), old.selector)?;
            image.flags |= bits::NT;
        } else {
            let old_at = self.descriptor_at(old.selector, 8, vector::TS)?;
            let rights: u8 = self.load_system(old_at + 5)?;
            self.store_system(old_at + 5, rights & !2)?;
        }
        if source != TaskSwitchSource::Iret {
            self.store_system(at + 5, (d.0 >> 40) as u8 | 2)?;
        }
        // From here on everything happens in the new task.
        let mut tr = d.segment(selector);
        tr.attr |= 2;
        self.seg[seg::TR] = tr;
        self.load_image(&image);
        if self.finish_task(&image, wide, error).is_err() {
            return Ok(Landed::Faulting);
        }
        if image.trap {
            // Delivered before the task's first instruction.
            let Stop = self.raise_debug(DR6_BT);
            return Ok(Landed::Faulting);
        }
        Ok(Landed::Well)
    }

    /// The descriptor of the TSS to switch to, and its address.
    fn new_tss(&mut self, selector: u16, source: TaskSwitchSource) -> Result<(u64, Descriptor), Stop> {
        let back = source == TaskSwitchSource::Iret;
        let fault = if back { vector::TS } else { vector::GP };
        if selector & 4 != 0 || selector & !3 == 0 {
            return Err(self.selector_fault(fault, selector));
        }
        let at = self.descriptor_at(selector, 8, fault)?;
        let d = Descriptor(self.load_system(at)?);
        let wanted = if back {
            [system_type::TSS16_BUSY, system_type::TSS32_BUSY]
        } else {
            [system_type::TSS16, system_type::TSS32]
        };
        if !wanted.contains(&d.kind()) {
            return Err(self.selector_fault(fault, selector));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, selector));
        }
        let least = if d.kind() & 8 != 0 { 0x67 } else { 0x2b };
        if d.limit() < least {
            return Err(self.selector_fault(vector::TS, selector));
        }
        Ok((at, d))
    }

    /// Writes the state of the task that is left into its TSS.
    fn save_task(&mut self, source: TaskSwitchSource, back: u64) -> Result<(), Stop> {
        let tr = self.seg[seg::TR];
        let mut flags = self.get_rflags();
        if source == TaskSwitchSource::Iret {
            flags &= !bits::NT;
        }
        let regs = self.regs;
        let selectors = ORDER.map(|s| self.seg[s].selector);
        if tr.attr & 8 != 0 {
            self.store_system(tr.base + 0x20, back as u32)?;
            self.store_system(tr.base + 0x24, flags as u32)?;
            for (i, r) in regs.iter().take(8).enumerate() {
                self.store_system(tr.base + 0x28 + 4 * i as u64, *r as u32)?;
            }
            for (i, s) in selectors.iter().enumerate() {
                self.store_system(tr.base + 0x48 + 4 * i as u64, *s)?;
            }
        } else {
            self.store_system(tr.base + 0x0e, back as u16)?;
            self.store_system(tr.base + 0x10, flags as u16)?;
            for (i, r) in regs.iter().take(8).enumerate() {
                self.store_system(tr.base + 0x12 + 2 * i as u64, *r as u16)?;
            }
            for (i, s) in selectors.iter().take(4).enumerate() {
                self.store_system(tr.base + 0x22 + 2 * i as u64, *s)?;
            }
        }
        Ok(())
    }

    fn read_task(&mut self, base: u64, wide: bool) -> Result<Image, Stop> {
        let mut t = Image::default();
        if wide {
            t.cr3 = Some(u64::from(self.load_system::<u32>(base + 0x1c)?));
            t.ip = u64::from(self.load_system::<u32>(base + 0x20)?);
            t.flags = u64::from(self.load_system::<u32>(base + 0x24)?);
            for (i, r) in t.regs.iter_mut().enumerate() {
                *r = u64::from(self.load_system::<u32>(base + 0x28 + 4 * i as u64)?);
            }
            for (i, s) in t.selectors.iter_mut().enumerate() {
                *s = self.load_system(base + 0x48 + 4 * i as u64)?;
            }
            t.ldt = self.load_system(base + 0x60)?;
            t.trap = self.load_system::<u8>(base + 0x64)? & 1 != 0;
        } else {
            t.ip = u64::from(self.load_system::<u16>(base + 0x0e)?);
            t.flags = u64::from(self.load_system::<u16>(base + 0x10)?);
            for (i, r) in t.regs.iter_mut().enumerate() {
                // A 16-bit TSS leaves the upper halves all-ones, as processors since the 80386 do.
                *r = 0xffff_0000 | u64::from(self.load_system::<u16>(base + 0x12 + 2 * i as u64)?);
            }
            for (i, s) in t.selectors.iter_mut().take(4).enumerate() {
                *s = self.load_system(base + 0x22 + 2 * i as u64)?;
            }
            t.ldt = self.load_system(base + 0x2a)?;
        }
        Ok(t)
    }

    /// Loads what needs no checks: registers, flags, and selectors without their descriptors.
    fn load_image(&mut self, t: &Image) {
        self.cr0 |= cr0::TS;
        self.dr[7] &= !0x155;
        self.rip = t.ip;
        for (r, v) in self.regs.iter_mut().zip(t.regs) {
            *r = v;
        }
        for (s, selector) in ORDER.into_iter().zip(t.selectors) {
            self.seg[s] = Segment { selector, attr: attr::UNUSABLE, ..Segment::default() };
        }
        self.seg[seg::LDTR] = Segment { selector: t.ldt, attr: attr::UNUSABLE | 0x82, ..Segment::default() };
        self.cpl = if t.flags & bits::VM != 0 { 3 } else { (t.selectors[1] & 3) as u8 };
        self.set_rflags(t.flags);
        self.mode_changed();
    }

    /// CR3, LDTR and the segments, whose faults are those of the new task; then the error code.
    fn finish_task(&mut self, t: &Image, wide: bool, error: Option<u32>) -> Result<(), Stop> {
        if let Some(cr3) = t.cr3.filter(|_| self.cr0 & cr0::PG != 0) {
            self.set_cr3(cr3 & if self.cr4 & cr4::PCIDE != 0 { !0xfff } else { u64::MAX })?;
        }
        if t.ldt & 4 != 0 {
            return Err(self.selector_fault(vector::TS, t.ldt));
        }
        self.load_ldt(t.ldt).map_err(|s| self.as_task_fault(s))?;
        if t.flags & bits::VM != 0 {
            for (s, selector) in ORDER.into_iter().zip(t.selectors) {
                self.seg[s] = Segment { attr: 0xf3, ..Segment::real(selector) };
            }
            self.mode_changed();
        } else {
            self.load_task_segments(t)?;
        }
        if t.ip > u64::from(self.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        match error {
            Some(e) if wide => self.push(e),
            Some(e) => self.push(e as u16),
            None => Ok(()),
        }
    }

    fn load_task_segments(&mut self, t: &Image) -> Result<(), Stop> {
        let [es, cs, ss, ds, fs, gs] = t.selectors;
        let rpl = (cs & 3) as u8;
        if cs & !3 == 0 {
            return Err(self.selector_fault(vector::TS, cs));
        }
        let mut d = self.descriptor(cs, vector::TS)?;
        let level = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !d.is_code() || !level {
            return Err(self.selector_fault(vector::TS, cs));
        }
        if !d.present() {
            return Err(self.selector_fault(vector::NP, cs));
        }
        self.set_accessed(cs, &mut d)?;
        self.set_code(d.segment(cs), rpl, t.ip);
        for (s, selector) in [(seg::SS, ss), (seg::ES, es), (seg::DS, ds), (seg::FS, fs), (seg::GS, gs)] {
            let new = self.checked_data_segment(s, selector, rpl).map_err(|s| self.as_task_fault(s))?;
            self.seg[s] = new;
            self.segment_changed(s);
        }
        Ok(())
    }

    /// A #GP or, for the LDT, #NP of a segment load is #TS in a task switch.
    fn as_task_fault(&mut self, s: Stop) -> Stop {
        if let Pending::Event(Event { vector: v @ vector::GP, kind: EventKind::HardwareException, .. }) =
            &mut self.pending
        {
            *v = vector::TS;
        }
        s
    }
}

const _: () = assert!(reg::RAX == 0 && reg::RDI == 7, "a TSS holds the registers in their order");
