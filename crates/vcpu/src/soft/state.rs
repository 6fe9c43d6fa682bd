//! Registers as KVM's structures.

use kvm_bindings::*;
use trapline_softcpu::cpu::{cr0, cr4, efer, reg};
use trapline_vmx::Field;
use trapline_vmx::state::{AccessRights, Segment};

use super::memory::Memory;
use super::setup::segment_fields;
use super::vcpu::{Pending, SoftVcpu};
use crate::{Error, Result};

impl SoftVcpu {
    pub(super) fn general(&self) -> kvm_regs {
        let r = &self.root.cpu.regs;
        kvm_regs {
            rax: r[0],
            rcx: r[1],
            rdx: r[2],
            rbx: r[3],
            rsp: self.reg(reg::RSP),
            rbp: r[5],
            rsi: r[6],
            rdi: r[7],
            r8: r[8],
            r9: r[9],
            r10: r[10],
            r11: r[11],
            r12: r[12],
            r13: r[13],
            r14: r[14],
            r15: r[15],
            rip: self.rip(),
            rflags: self.root.cpu.vmcs_read(Field::GuestRflags),
        }
    }

    pub(super) fn set_general(&mut self, regs: &kvm_regs) {
        let cpu = &mut self.root.cpu;
        let values = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        cpu.regs[..16].copy_from_slice(&values);
        cpu.vmcs_write(Field::GuestRsp, regs.rsp);
        cpu.vmcs_write(Field::GuestRip, regs.rip);
        cpu.vmcs_write(Field::GuestRflags, regs.rflags & 0x3f_7fd7 | 2);
        self.abandon_instruction();
    }

    /// The state is another one now: what was under way is not finished.
    fn abandon_instruction(&mut self) {
        self.root.cpu.drop_device_accesses();
        (self.pending, self.second, self.replaying) = (Pending::Nothing, None, false);
    }

    fn segment(&self, segment: Segment) -> kvm_segment {
        let fields = segment_fields(segment);
        let read = |field: Field| self.root.cpu.vmcs_read(field);
        let rights = AccessRights::from_bits(read(fields.rights) as u32);
        kvm_segment {
            base: read(fields.base),
            limit: read(fields.limit) as u32,
            selector: read(fields.selector) as u16,
            type_: rights.segment_type(),
            present: (rights.present() && rights.usable()).into(),
            dpl: rights.dpl(),
            db: rights.default_big().into(),
            s: rights.code_or_data().into(),
            l: rights.long().into(),
            g: rights.granularity().into(),
            avl: rights.available().into(),
            unusable: rights.unusable().into(),
            padding: 0,
        }
    }

    fn set_segment(&mut self, segment: Segment, value: &kvm_segment) {
        let fields = segment_fields(segment);
        let unusable = value.unusable != 0 || value.present == 0;
        let rights = AccessRights::new()
            .with_segment_type(value.type_ & 15)
            .with_code_or_data(value.s != 0)
            .with_dpl(value.dpl & 3)
            .with_present(value.present != 0)
            .with_available(value.avl != 0)
            .with_long(value.l != 0)
            .with_default_big(value.db != 0)
            .with_granularity(value.g != 0)
            .with_unusable(unusable);
        let cpu = &mut self.root.cpu;
        cpu.vmcs_write(fields.selector, value.selector.into());
        cpu.vmcs_write(fields.base, value.base);
        cpu.vmcs_write(fields.limit, value.limit.into());
        cpu.vmcs_write(fields.rights, rights.into_bits().into());
    }

    pub(super) fn special(&self) -> kvm_sregs {
        let read = |field: Field| self.root.cpu.vmcs_read(field);
        let table = |base: Field, limit: Field| kvm_dtable {
            base: read(base),
            limit: read(limit) as u16,
            padding: [0; 3],
        };
        let mut sregs = kvm_sregs {
            cs: self.segment(Segment::Cs),
            ds: self.segment(Segment::Ds),
            es: self.segment(Segment::Es),
            fs: self.segment(Segment::Fs),
            gs: self.segment(Segment::Gs),
            ss: self.segment(Segment::Ss),
            tr: self.segment(Segment::Tr),
            ldt: self.segment(Segment::Ldtr),
            gdt: table(Field::GuestGdtrBase, Field::GuestGdtrLimit),
            idt: table(Field::GuestIdtrBase, Field::GuestIdtrLimit),
            cr0: self.guest_cr0(),
            cr2: self.root.cpu.cr2,
            cr3: self.guest_cr3(),
            cr4: self.guest_cr4(),
            cr8: self.cr8(),
            efer: self.guest_efer(),
            apic_base: self.apic_base(),
            interrupt_bitmap: [0; 4],
        };
        let events = self.event_state().interrupt;
        if events.injected != 0
            && events.soft == 0
            && let Some(word) = sregs.interrupt_bitmap.get_mut(usize::from(events.nr >> 6))
        {
            *word |= 1 << (events.nr & 63);
        }
        sregs
    }

    pub(super) fn set_special(&mut self, sregs: &kvm_sregs, memory: &Memory) -> Result<()> {
        if !possible(sregs) {
            return Self::unsupported("these control registers");
        }
        self.set_efer(sregs.efer).map_err(|_| Error::Msr { index: 0xc000_0080 })?;
        self.set_apic_base(sregs.apic_base).map_err(|_| Error::Msr { index: 0x1b })?;
        for (segment, value) in [
            (Segment::Cs, &sregs.cs),
            (Segment::Ds, &sregs.ds),
            (Segment::Es, &sregs.es),
            (Segment::Fs, &sregs.fs),
            (Segment::Gs, &sregs.gs),
            (Segment::Ss, &sregs.ss),
            (Segment::Tr, &sregs.tr),
            (Segment::Ldtr, &sregs.ldt),
        ] {
            self.set_segment(segment, value);
        }
        let cpu = &mut self.root.cpu;
        for (field, value) in [
            (Field::GuestGdtrBase, sregs.gdt.base),
            (Field::GuestGdtrLimit, sregs.gdt.limit.into()),
            (Field::GuestIdtrBase, sregs.idt.base),
            (Field::GuestIdtrLimit, sregs.idt.limit.into()),
        ] {
            cpu.vmcs_write(field, value);
        }
        self.set_guest_cr0(sregs.cr0);
        self.set_guest_cr3(sregs.cr3);
        self.set_guest_cr4(sregs.cr4);
        let cpu = &mut self.root.cpu;
        cpu.cr2 = sregs.cr2;
        cpu.cr8 = sregs.cr8;
        cpu.mmu.flush_all();
        if let Some(lapic) = &mut self.mailbox.inbox().lapic {
            lapic.set_cr8(sregs.cr8 as u8 & 15);
        }
        let pae = sregs.cr0 & cr0::PG != 0 && sregs.cr4 & cr4::PAE != 0 && sregs.efer & efer::LMA == 0;
        if pae {
            self.load_pdptes(sregs.cr3, memory);
        }
        self.flush_translations(memory);
        let pending = sregs.interrupt_bitmap.iter().zip(0u8..).find(|(word, _)| **word != 0);
        if let Some((word, n)) = pending {
            self.wanted.extint = Some(n << 6 | word.trailing_zeros() as u8);
        }
        self.abandon_instruction();
        Ok(())
    }

    pub(super) fn xsave_area(&self) -> kvm_xsave {
        let mut area = kvm_xsave::default();
        let image = self.root.cpu.xsave_image();
        for (word, bytes) in area.region.iter_mut().zip(image.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        area
    }

    /// Components that XCR0 does not enable are left out: the guest cannot see them.
    pub(super) fn set_xsave_area(&mut self, area: &kvm_xsave) -> Result<()> {
        const XSTATE_BV: usize = 512;
        const X87_AND_SSE: u64 = 3;
        let mut image = [0; 4096];
        for (bytes, word) in image.chunks_exact_mut(4).zip(area.region) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let enabled = (self.root.cpu.xcr0 | X87_AND_SSE).to_le_bytes();
        image[XSTATE_BV..].iter_mut().zip(enabled).for_each(|(byte, mask)| *byte &= mask);
        self.root.cpu.load_xsave_image(&image).map_err(bad_image)
    }

    pub(super) fn apic_page(&self) -> kvm_lapic_state {
        let time = self.time();
        let mut state = kvm_lapic_state::default();
        if let Some(lapic) = &mut self.mailbox.inbox().lapic {
            lapic.tick(time);
            for (to, from) in state.regs.iter_mut().zip(lapic.kvm_state(time, false)) {
                *to = from as _;
            }
        }
        state
    }

    pub(super) fn set_apic_page(&mut self, state: &kvm_lapic_state) -> Result<()> {
        let time = self.time();
        let page = state.regs.map(|byte| byte as u8);
        let mut inbox = self.mailbox.inbox();
        let Some(lapic) = &mut inbox.lapic else { return Ok(()) };
        lapic.set_kvm_state(&page, time).map_err(|e| invalid("local APIC state", e))
    }
}

fn bad_image(error: impl std::error::Error) -> Error {
    invalid("x87 and SSE state", error)
}

/// State that no processor can be in.
fn invalid(what: &'static str, error: impl std::error::Error) -> Error {
    Error::Os { what, source: std::io::Error::new(std::io::ErrorKind::InvalidInput, error.to_string()) }
}

/// Whether a processor can be in this state (SDM vol. 3 §2.5, §5.5).
fn possible(sregs: &kvm_sregs) -> bool {
    let (paging, protected) = (sregs.cr0 & cr0::PG != 0, sregs.cr0 & cr0::PE != 0);
    let (lme, lma) = (sregs.efer & efer::LME != 0, sregs.efer & efer::LMA != 0);
    let long_ok = lma == (lme && paging) && (!lma || sregs.cr4 & cr4::PAE != 0);
    let caches_ok = sregs.cr0 & cr0::NW == 0 || sregs.cr0 & cr0::CD != 0;
    (!paging || protected) && long_ok && caches_ok && sregs.cr0 >> 32 == 0 && sregs.cr8 < 16
}
