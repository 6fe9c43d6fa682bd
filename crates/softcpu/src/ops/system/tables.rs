//! Descriptor tables, the task register, and questions about descriptors.

use trapline_vmx::controls::SecondaryControls;
use trapline_vmx::exit::{DescriptorTableInstruction as T, SystemSegmentInstruction as S};

use super::{load_selector, operand_information, operand_linear, put_sized, store_selector};
use crate::cpu::{Cpu, Stop, Table, attr, seg, vector};
use crate::handler;
use crate::int::Int;
use crate::mmu::Kind;
use crate::op::Op;
use crate::seg::{Descriptor, system_type};
use crate::vmx::reason;

/// Descriptor-table exiting, for GDTR and IDTR.
fn table_exit(cpu: &mut Cpu, op: &Op, which: T) -> Result<(), Stop> {
    if !cpu.secondary(SecondaryControls::DESCRIPTOR_TABLE_EXITING) {
        return Ok(());
    }
    let (info, displacement) = operand_information(cpu, op);
    let info = info.with_descriptor_table(which).into_bits();
    Err(cpu.instruction_exit(reason::GDTR_IDTR_ACCESS, displacement, info))
}

/// Descriptor-table exiting, for LDTR and TR.
fn segment_exit(cpu: &mut Cpu, op: &Op, which: S) -> Result<(), Stop> {
    if !cpu.secondary(SecondaryControls::DESCRIPTOR_TABLE_EXITING) {
        return Ok(());
    }
    let (info, displacement) = operand_information(cpu, op);
    let info = info.with_system_segment(which).into_bits();
    Err(cpu.instruction_exit(reason::LDTR_TR_ACCESS, displacement, info))
}

/// LGDT (`aux` bit 0 clear) and LIDT.
fn load_table_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let idt = op.aux & 1 != 0;
    cpu.need_cpl0()?;
    table_exit(cpu, op, if idt { T::Lidt } else { T::Lgdt })?;
    let size = op.operand_size();
    let bytes = if size == 8 { 10 } else { 6 };
    let lin = operand_linear(cpu, op, bytes, Kind::Read)?;
    let limit: u16 = cpu.load(lin)?;
    let at = lin.wrapping_add(2);
    let base = match size {
        8 => cpu.load(at)?,
        4 => u64::from(cpu.load::<u32>(at)?),
        _ => u64::from(cpu.load::<u32>(at)? & 0xff_ffff),
    };
    if !cpu.canonical_in_register(base) {
        return Err(cpu.gp(0));
    }
    let table = Table { base, limit };
    if idt {
        cpu.idtr = table;
    } else {
        cpu.gdtr = table;
    }
    Ok(())
}
handler!(next: load_table_work => load_table);

/// SGDT (`aux` bit 0 clear) and SIDT.
fn store_table_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let idt = op.aux & 1 != 0;
    cpu.need_no_umip()?;
    table_exit(cpu, op, if idt { T::Sidt } else { T::Sgdt })?;
    let table = if idt { cpu.idtr } else { cpu.gdtr };
    let bytes = if op.operand_size() == 8 { 10 } else { 6 };
    let lin = operand_linear(cpu, op, bytes, Kind::Write)?;
    cpu.probe_write(lin, bytes)?;
    cpu.store(lin, table.limit)?;
    let at = lin.wrapping_add(2);
    if bytes == 10 { cpu.store(at, table.base) } else { cpu.store(at, table.base as u32) }
}
handler!(next: store_table_work => store_table);

fn lldt_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    cpu.need_cpl0()?;
    segment_exit(cpu, op, S::Lldt)?;
    let selector = load_selector(cpu, op)?;
    cpu.load_ldt(selector)
}
handler!(next: lldt_work => lldt);

fn ltr_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    cpu.need_cpl0()?;
    segment_exit(cpu, op, S::Ltr)?;
    let selector = load_selector(cpu, op)?;
    cpu.load_task_register(selector)
}
handler!(next: ltr_work => ltr);

/// SLDT (`aux` bit 0 clear) and STR.
fn store_segment_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    cpu.need_no_umip()?;
    let task = op.aux & 1 != 0;
    segment_exit(cpu, op, if task { S::Str } else { S::Sldt })?;
    let selector = cpu.seg[if task { seg::TR } else { seg::LDTR }].selector;
    store_selector(cpu, op, u64::from(selector))
}
handler!(next: store_segment_work => store_segment);

/// The descriptor of a selector, if the instructions that ask about descriptors may see it: one inside its
/// table, whose privilege level does not forbid it. Faults of reading the table are raised.
fn visible_descriptor(cpu: &mut Cpu, selector: u16) -> Result<Option<(Descriptor, u64)>, Stop> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    let Ok(at) = cpu.descriptor_at(selector, 8, vector::GP) else {
        cpu.pending = crate::cpu::Pending::None;
        return Ok(None);
    };
    let d = Descriptor(cpu.load_system(at)?);
    let rpl = (selector & 3) as u8;
    let visible = d.conforming() || d.dpl() >= cpu.cpl.max(rpl);
    Ok(visible.then_some((d, at)))
}

fn lar_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    let selector = source_selector(cpu, op)?;
    let found = visible_descriptor(cpu, selector)?.filter(|(d, _)| match d.kind() {
        system_type::TSS16 | system_type::TSS16_BUSY | system_type::CALL16 | system_type::TASK => !cpu.lma(),
        system_type::LDT | system_type::TSS32 | system_type::TSS32_BUSY | system_type::CALL32 => true,
        kind => kind >= 16,
    });
    if let Some((d, _)) = found {
        let size = op.operand_size();
        let rights = d.0 >> 32 & if size == 2 { 0xff00 } else { 0xf0_ff00 };
        // Bits 19–16 are undefined; processors leave the limit's there out.
        put_sized(cpu, op, rights);
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}
handler!(next: lar_work => lar);

fn lsl_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    let selector = source_selector(cpu, op)?;
    let found = visible_descriptor(cpu, selector)?.filter(|(d, _)| match d.kind() {
        system_type::TSS16 | system_type::TSS16_BUSY => !cpu.lma(),
        system_type::LDT | system_type::TSS32 | system_type::TSS32_BUSY => true,
        kind => kind >= 16,
    });
    if let Some((d, _)) = found {
        put_sized(cpu, op, u64::from(d.limit()));
    }
    cpu.flags.set_zf(found.is_some());
    Ok(())
}
handler!(next: lsl_work => lsl);

/// The source of LAR and LSL: register `r2` or memory.
fn source_selector(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.is_register() {
        return Ok(u16::get(cpu, op.r2));
    }
    let lin = operand_linear(cpu, op, 2, Kind::Read)?;
    cpu.load(lin)
}

/// VERR (`aux` bit 0 clear) and VERW.
fn verify_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    let selector = load_selector(cpu, op)?;
    let write = op.aux & 1 != 0;
    let found = visible_descriptor(cpu, selector)?.is_some_and(|(d, _)| {
        let code = d.is_code();
        d.kind() >= 16
            && if write {
                !code && d.attr() & attr::WRITABLE != 0
            } else {
                !code || d.attr() & attr::READABLE != 0
            }
    });
    cpu.flags.set_zf(found);
    Ok(())
}
handler!(next: verify_work => verify);

/// ARPL: raises the requested privilege level of the destination to that of register `r2`.
fn arpl_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_protected()?;
    let rpl = u16::get(cpu, op.r2) & 3;
    if op.is_register() {
        let v = u16::get(cpu, op.r1);
        let lower = v & 3 < rpl;
        if lower {
            (v & !3 | rpl).put(cpu, op.r1);
        }
        cpu.flags.set_zf(lower);
        return Ok(());
    }
    // What need not change is not written: it may lie in a read-only segment or page.
    let lin = operand_linear(cpu, op, 2, Kind::Read)?;
    let v: u16 = cpu.load(lin)?;
    let lower = v & 3 < rpl;
    if lower {
        let lin = operand_linear(cpu, op, 2, Kind::Write)?;
        cpu.store(lin, v & !3 | rpl)?;
    }
    cpu.flags.set_zf(lower);
    Ok(())
}
handler!(next: arpl_work => arpl);
