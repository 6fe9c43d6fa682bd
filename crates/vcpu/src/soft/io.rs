//! I/O instructions: single accesses, and string instructions in blocks.

use std::sync::Arc;

use trapline_device::AccessSize;
use trapline_memory::ept::{EptFault, EptMode};
use trapline_memory::paging::{Access, WalkError};
use trapline_memory::{OutOfArena, nested};
use trapline_softcpu::cpu::{attr, cr0, cr4, reg, vector};
use trapline_vmx::Field;
use trapline_vmx::exit::{InstructionInfo, IoAccess};
use trapline_vmx::state::Segment;

use super::memory::Memory;
use super::setup::segment_fields;
use super::vcpu::{Pending, SoftVcpu};
use crate::{Exit, IoEventAddress};

const PAGE: u64 = 4096;
const RFLAGS_DF: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;
pub(super) const RFLAGS_AC: u64 = 1 << 18;

/// Where a string instruction works, for as many elements as go at once.
struct Run {
    linear: u64,
    count: u32,
    mask: u64,
}

/// A fault that the guest is to see.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    Page {
        linear: u64,
        code: u32,
    },
    Vector(u8),
    /// No RAM there, or not for writing: nothing is read or written.
    NoMemory,
}

impl SoftVcpu {
    /// IN, OUT, INS or OUTS. `None`: done, or a fault is injected.
    pub(super) fn io_exit(&mut self, memory: &Memory) -> Option<Exit> {
        let io = IoAccess::from_bits(self.root.cpu.vmcs_read(Field::ExitQualification));
        let size = io.size().and_then(|n| AccessSize::from_bytes(n.into())).unwrap_or(AccessSize::Byte);
        let port = io.port();
        if io.string() {
            return match self.string_io(memory, io, size) {
                Ok(exit) => exit,
                Err(fault) => {
                    self.inject(fault);
                    None
                }
            };
        }
        if io.input() {
            self.pending = Pending::In { size };
            return Some(Exit::PioRead { port, size });
        }
        let value = (self.reg(reg::RAX) & size.ones()) as u32;
        self.skip_instruction();
        self.write_port(port, size, value)
    }

    /// A write to a port, unless an eventfd takes it.
    fn write_port(&mut self, port: u16, size: AccessSize, value: u32) -> Option<Exit> {
        if self.signal_io_event(IoEventAddress::Pio(port), size, value.into()) {
            return None;
        }
        Some(Exit::PioWrite { port, size, value })
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Page { linear, code } => {
                self.root.cpu.cr2 = linear;
                self.inject_fault(vector::PF, Some(code));
            }
            Fault::Vector(vector) => self.inject_fault(vector, Some(0)),
            // The guest's own tables have changed meanwhile.
            Fault::NoMemory => self.skip_instruction(),
        }
    }

    fn string_io(&mut self, memory: &Memory, io: IoAccess, size: AccessSize) -> Result<Option<Exit>, Fault> {
        let info = InstructionInfo::from_bits(self.root.cpu.vmcs_read(Field::ExitInstructionInfo) as u32);
        let mask = info.address_size().map_or(u64::MAX, |a| a.mask());
        let left = if io.rep() { self.reg(reg::RCX) & mask } else { 1 };
        if left == 0 {
            self.skip_instruction();
            return Ok(None);
        }
        let port = io.port();
        if io.input() {
            let run = self.string_run(Segment::Es, reg::RDI, mask, size, left, true)?;
            // The device is read only if there is where to put it.
            let bytes = u64::from(run.count) * size.bytes() as u64;
            match self.for_each_part(memory, run.linear, bytes, true, |_, _| {}) {
                Err(Fault::NoMemory) => {
                    let gpa = self.guest_physical(memory, run.linear).ok_or(Fault::NoMemory)?;
                    self.pending = Pending::InsToDevice { size, gpa };
                    return Ok(Some(Exit::PioRead { port, size }));
                }
                placed => placed?,
            }
            let (count, single) = (run.count, run.count == 1);
            self.pending = Pending::Ins { size, count, single };
            if single {
                return Ok(Some(Exit::PioRead { port, size }));
            }
            self.block.clear();
            self.block.resize(count as usize * size.bytes(), 0);
            return Ok(Some(Exit::PioReadBlock { port, size, count }));
        }
        let segment = info.segment().unwrap_or(Segment::Ds);
        let run = self.string_run(segment, reg::RSI, mask, size, left, false)?;
        let Run { linear, count, mask } = run;
        let mut bytes = std::mem::take(&mut self.block);
        bytes.clear();
        bytes.resize(count as usize * size.bytes(), 0);
        let mut at = 0;
        let arena = memory.arena.clone();
        let read = self.for_each_part(memory, linear, bytes.len() as u64, false, |hpa, len| {
            if let Some(part) = bytes.get_mut(at..at + len) {
                arena.read_bytes(hpa, part);
            }
            at += len;
        });
        self.block = bytes;
        if let Err(Fault::NoMemory) = read {
            return self.outs_from_device(memory, linear, size, port);
        }
        read?;
        self.advance(reg::RSI, mask, size, count, io.rep());
        if count > 1 {
            self.pending = Pending::Outs;
            return Ok(Some(Exit::PioWriteBlock { port, size, count }));
        }
        let mut value = [0; 4];
        value.iter_mut().zip(&self.block).for_each(|(to, from)| *to = *from);
        Ok(self.write_port(port, size, u32::from_le_bytes(value)))
    }

    /// An element of OUTS that lies where no memory is: a device has it.
    fn outs_from_device(
        &mut self,
        memory: &Memory,
        linear: u64,
        size: AccessSize,
        port: u16,
    ) -> Result<Option<Exit>, Fault> {
        let gpa = self.guest_physical(memory, linear).ok_or(Fault::NoMemory)?;
        if let Some(value) = self.apic_access(gpa, size, None) {
            return Ok(self.send_outs(size, port, value));
        }
        self.pending = Pending::OutsFromDevice { size, port };
        Ok(Some(Exit::MmioRead { addr: gpa, size }))
    }

    /// Sends the element of OUTS that a device's memory had, and moves on.
    pub(super) fn send_outs(&mut self, size: AccessSize, port: u16, value: u64) -> Option<Exit> {
        let (mask, rep) = self.string_instruction();
        self.advance(reg::RSI, mask, size, 1, rep);
        self.write_port(port, size, (value & size.ones()) as u32)
    }

    /// Stores an element of INS to a device's memory, and moves on.
    pub(super) fn store_ins(&mut self, size: AccessSize, gpa: u64, value: u64) -> Option<Exit> {
        let (mask, rep) = self.string_instruction();
        self.advance(reg::RDI, mask, size, 1, rep);
        let value = value & size.ones();
        if self.apic_access(gpa, size, Some(value)).is_some()
            || self.signal_io_event(IoEventAddress::Mmio(gpa), size, value)
        {
            return None;
        }
        Some(Exit::MmioWrite { addr: gpa, size, value })
    }

    /// Address mask of the string instruction that exited, and whether it is repeated.
    fn string_instruction(&self) -> (u64, bool) {
        let cpu = &self.root.cpu;
        let io = IoAccess::from_bits(cpu.vmcs_read(Field::ExitQualification));
        let info = InstructionInfo::from_bits(cpu.vmcs_read(Field::ExitInstructionInfo) as u32);
        (info.address_size().map_or(u64::MAX, |a| a.mask()), io.rep())
    }

    /// How far a string instruction gets in one go: to the page's end, upwards.
    fn string_run(
        &self,
        segment: Segment,
        index: u8,
        mask: u64,
        size: AccessSize,
        left: u64,
        write: bool,
    ) -> Result<Run, Fault> {
        let cpu = &self.root.cpu;
        let bytes = size.bytes() as u64;
        let offset = self.reg(index) & mask;
        let (linear, room) = self.operand(segment, offset, bytes, write)?;
        let down = cpu.vmcs_read(Field::GuestRflags) & RFLAGS_DF != 0;
        let mut count = if down { 1 } else { left.min(PAGE / bytes) };
        count = count.min((room / bytes).max(1));
        // The index register wraps at the address size.
        count = count.min(((mask - offset) / bytes).max(1));
        count = count.min(((PAGE - linear % PAGE) / bytes).max(1));
        Ok(Run { linear, count: count as u32, mask })
    }

    /// The linear address of an operand of `bytes`, and how many bytes the segment has from there on.
    pub(super) fn operand(
        &self,
        segment: Segment,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> Result<(u64, u64), Fault> {
        let cpu = &self.root.cpu;
        let fault = Fault::Vector(if segment == Segment::Ss { vector::SS } else { vector::GP });
        let fields = segment_fields(segment);
        let (base, limit, rights) =
            (cpu.vmcs_read(fields.base), cpu.vmcs_read(fields.limit), cpu.vmcs_read(fields.rights) as u32);
        if self.mode64() {
            let base = if matches!(segment, Segment::Fs | Segment::Gs) { base } else { 0 };
            let linear = base.wrapping_add(offset);
            let unused = if self.guest_cr4() & cr4::LA57 != 0 { 7 } else { 16 };
            let canonical = ((linear << unused) as i64 >> unused) as u64 == linear;
            return if canonical { Ok((linear, u64::MAX)) } else { Err(fault) };
        }
        let virtual_8086 = cpu.vmcs_read(Field::GuestRflags) & RFLAGS_VM != 0;
        let protected = self.guest_cr0() & cr0::PE != 0 && !virtual_8086;
        let code = rights & attr::CODE != 0;
        let allowed = !protected
            || if write {
                !code && rights & attr::WRITABLE != 0
            } else {
                !code || rights & attr::READABLE != 0
            };
        let last = offset.saturating_add(bytes - 1);
        let expand_down = !code && rights & attr::EXPAND_DOWN != 0;
        let top = if rights & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
        let (inside, room) = if expand_down {
            (offset > limit && last <= top, top.saturating_sub(offset))
        } else {
            (last <= limit, (limit + 1).saturating_sub(offset))
        };
        if rights & attr::UNUSABLE != 0 || !allowed || !inside {
            return Err(fault);
        }
        Ok((base.wrapping_add(offset) & 0xffff_ffff, room))
    }

    /// Moves the index register, and RCX of a repeated instruction, by `count` elements. The instruction
    /// is over when none are left, else it starts over.
    fn advance(&mut self, index: u8, mask: u64, size: AccessSize, count: u32, rep: bool) {
        let down = self.root.cpu.vmcs_read(Field::GuestRflags) & RFLAGS_DF != 0;
        let bytes = u64::from(count) * size.bytes() as u64;
        let by = if down { bytes.wrapping_neg() } else { bytes };
        let put = |vcpu: &mut Self, n: u8, by: u64| {
            let old = vcpu.reg(n);
            let new = old.wrapping_add(by) & mask;
            // A 16-bit address size keeps the upper bits, a 32-bit one clears them.
            vcpu.set_reg(n, if mask == 0xffff { old & !mask | new } else { new });
            new
        };
        put(self, index, by);
        let left = if rep { put(self, reg::RCX, u64::from(count).wrapping_neg()) } else { 0 };
        if left == 0 {
            self.skip_instruction();
        }
    }

    /// Stores what INS read, and moves on.
    pub(super) fn finish_ins(&mut self, size: AccessSize, count: u32) {
        let io = IoAccess::from_bits(self.root.cpu.vmcs_read(Field::ExitQualification));
        let info = InstructionInfo::from_bits(self.root.cpu.vmcs_read(Field::ExitInstructionInfo) as u32);
        let mask = info.address_size().map_or(u64::MAX, |a| a.mask());
        let machine = self.machine.clone();
        let memory = machine.gate.enter();
        let Ok(run) = self.string_run(Segment::Es, reg::RDI, mask, size, count.into(), true) else { return };
        let bytes = std::mem::take(&mut self.block);
        let mut at = 0;
        let stored = self.for_each_part(&memory, run.linear, bytes.len() as u64, true, |hpa, len| {
            if let Some(part) = bytes.get(at..at + len) {
                memory.write(hpa, part);
            }
            at += len;
        });
        drop(memory);
        self.block = bytes;
        match stored {
            // Where memory was when the device was read, none is now: the data is lost.
            Ok(()) | Err(_) => self.advance(reg::RDI, mask, size, count, io.rep()),
        }
    }

    /// Walks `len` bytes at `linear`, shows each part that is contiguous in the arena.
    pub(super) fn for_each_part(
        &self,
        memory: &Memory,
        linear: u64,
        len: u64,
        write: bool,
        mut show: impl FnMut(u64, usize),
    ) -> Result<(), Fault> {
        let first = (PAGE - linear % PAGE).min(len);
        // Both parts are looked at before either is used.
        let a = self.place(memory, linear, write)?;
        let b = if first < len { Some(self.place(memory, linear.wrapping_add(first), write)?) } else { None };
        show(a, first as usize);
        if let Some(b) = b {
            show(b, (len - first) as usize);
        }
        Ok(())
    }

    /// The host-physical address of a linear one.
    pub(super) fn place(&self, memory: &Memory, linear: u64, write: bool) -> Result<u64, Fault> {
        let cpu = &self.root.cpu;
        let ac = cpu.vmcs_read(Field::GuestRflags) & RFLAGS_AC != 0;
        let access = Access { write, fetch: false, user: self.cpl() == 3, implicit: false, ac };
        let ept = EptMode::new(memory.eptp(), cpu.model.phys_bits());
        match nested::translate(&memory.arena, &ept, &self.paging(), linear, access) {
            Ok(t) => Ok(t.hpa),
            Err(WalkError::PageFault(code)) => Err(Fault::Page { linear, code: code.bits() }),
            Err(WalkError::Memory(fault)) => {
                let _: EptFault<OutOfArena> = fault;
                Err(Fault::NoMemory)
            }
        }
    }

    /// See [`Vcpu::translate`](crate::Vcpu::translate).
    pub(super) fn guest_physical(&self, memory: &Memory, linear: u64) -> Option<u64> {
        let ept = EptMode::new(memory.eptp(), self.root.cpu.model.phys_bits());
        let arena = Arc::clone(&memory.arena);
        let tables = nested::GuestTables::new(&arena, &ept);
        let access = Access { ac: true, ..Access::READ };
        trapline_memory::paging::walk(&tables, &self.paging(), linear, access).ok().map(|leaf| leaf.gpa)
    }
}
