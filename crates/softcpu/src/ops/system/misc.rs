//! CPUID, counters, MSRs, HLT, cache and TLB control, random numbers, and the rest.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};

use trapline_vmx::controls::{PrimaryControls, SecondaryControls};

use super::{operand_information, operand_linear, put_sized};
use crate::cpu::{Activity, Cpu, Stop, cr4, reg, vector};
use crate::cpuid::{CpuidContext, Vendor};
use crate::flags::bits;
use crate::handler;
use crate::int::Int;
use crate::mmu::Kind;
use crate::op::{Flow, Op, OpRef, next, stop, sync};
use crate::vmx::reason;

fn cpuid_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.nonroot {
        return Err(cpu.instruction_exit(reason::CPUID, 0, 0));
    }
    let context = CpuidContext { cr4: cpu.cr4, xcr0: cpu.xcr0, ..CpuidContext::default() };
    let (leaf, subleaf) = (u32::get(cpu, reg::RAX), u32::get(cpu, reg::RCX));
    let [eax, ebx, ecx, edx] = cpu.model.cpuid(leaf, subleaf, &context);
    eax.put(cpu, reg::RAX);
    ebx.put(cpu, reg::RBX);
    ecx.put(cpu, reg::RCX);
    edx.put(cpu, reg::RDX);
    Ok(())
}
handler!(next: cpuid_work => cpuid);

/// A 64-bit value into EDX:EAX.
fn put_pair(cpu: &mut Cpu, v: u64) {
    (v as u32).put(cpu, reg::RAX);
    ((v >> 32) as u32).put(cpu, reg::RDX);
}

fn need_tsc(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn rdtsc_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    need_tsc(cpu)?;
    if cpu.primary(PrimaryControls::RDTSC_EXITING) {
        return Err(cpu.instruction_exit(reason::RDTSC, 0, 0));
    }
    let tsc = cpu.tsc();
    put_pair(cpu, tsc);
    Ok(())
}
handler!(next: rdtsc_work => rdtsc);

/// #UD where VMX non-root operation has RDTSCP and RDPID switched off.
fn need_rdtscp(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.nonroot && !cpu.secondary(SecondaryControls::ENABLE_RDTSCP) { Err(cpu.ud()) } else { Ok(()) }
}

fn rdtscp_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    need_rdtscp(cpu)?;
    need_tsc(cpu)?;
    if cpu.primary(PrimaryControls::RDTSC_EXITING) {
        return Err(cpu.instruction_exit(reason::RDTSCP, 0, 0));
    }
    let tsc = cpu.tsc();
    put_pair(cpu, tsc);
    (cpu.msr.tsc_aux as u32).put(cpu, reg::RCX);
    Ok(())
}
handler!(next: rdtscp_work => rdtscp);

fn rdpid_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    need_rdtscp(cpu)?;
    cpu.msr.tsc_aux.put(cpu, op.r1);
    Ok(())
}
handler!(next: rdpid_work => rdpid);

fn rdpmc_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.cpl != 0 && cpu.cr4 & cr4::PCE == 0 {
        return Err(cpu.gp(0));
    }
    if cpu.primary(PrimaryControls::RDPMC_EXITING) {
        return Err(cpu.instruction_exit(reason::RDPMC, 0, 0));
    }
    // An Intel processor without architectural performance monitoring has no counters; an AMD one of family
    // 15 has four, whatever CPUID says. They do not count.
    let n = cpu.regs[usize::from(reg::RCX)] as u32;
    if cpu.model.vendor != Vendor::Amd || n > 3 {
        return Err(cpu.gp(0));
    }
    let counter = cpu.msr.k7_perf[4 + n as usize];
    put_pair(cpu, counter);
    Ok(())
}
handler!(next: rdpmc_work => rdpmc);

fn rdmsr_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    let index = u32::get(cpu, reg::RCX);
    if cpu.nonroot && cpu.intercepts_msr(index, false) {
        return Err(cpu.instruction_exit(reason::RDMSR, 0, 0));
    }
    let value = match cpu.read_virtual_x2apic(index) {
        Some(v) => Ok(v),
        None => cpu.read_msr(index),
    };
    match value {
        Ok(v) => {
            put_pair(cpu, v);
            Ok(())
        }
        Err(_) => Err(cpu.gp(0)),
    }
}
handler!(next: rdmsr_work => rdmsr);

fn wrmsr_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    let index = u32::get(cpu, reg::RCX);
    if cpu.nonroot && cpu.intercepts_msr(index, true) {
        return Err(cpu.instruction_exit(reason::WRMSR, 0, 0));
    }
    let v = u64::from(u32::get(cpu, reg::RDX)) << 32 | u64::from(u32::get(cpu, reg::RAX));
    let done = cpu.write_virtual_x2apic(index, v).unwrap_or_else(|| cpu.write_msr(index, v));
    done.map_err(|_| cpu.gp(0))
}

/// WRMSR. The bases of FS and GS change nothing that the block depends on; the rest ends it.
pub extern "C-unwind" fn wrmsr(cpu: &mut Cpu, op: OpRef) -> Flow {
    use crate::msr::index::{FS_BASE, KERNEL_GS_BASE};
    match wrmsr_work(cpu, &op) {
        Ok(()) if (FS_BASE..=KERNEL_GS_BASE).contains(&u32::get(cpu, reg::RCX)) => next(cpu, op),
        Ok(()) => sync(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

fn hlt_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    if cpu.primary(PrimaryControls::HLT_EXITING) {
        return Err(cpu.instruction_exit(reason::HLT, 0, 0));
    }
    cpu.activity = Activity::Hlt;
    Ok(())
}
handler!(sync: hlt_work => hlt);

fn pause_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.primary(PrimaryControls::PAUSE_EXITING) || cpu.nonroot && cpu.pause_loops() {
        return Err(cpu.instruction_exit(reason::PAUSE, 0, 0));
    }
    std::hint::spin_loop();
    Ok(())
}
handler!(next: pause_work => pause);

fn invd_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    if cpu.nonroot {
        return Err(cpu.instruction_exit(reason::INVD, 0, 0));
    }
    Ok(())
}
handler!(next: invd_work => invd);

fn wbinvd_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    if cpu.secondary(SecondaryControls::WBINVD_EXITING) {
        return Err(cpu.instruction_exit(reason::WBINVD, 0, 0));
    }
    Ok(())
}
handler!(next: wbinvd_work => wbinvd);

fn invlpg_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    // No segment check: the address is only a name of a page.
    let offset = crate::ops::offset(cpu, op);
    let lin = cpu.ea_base[usize::from(op.seg & 7)].wrapping_add(offset);
    let lin = if cpu.long64 { lin } else { lin & 0xffff_ffff };
    if cpu.primary(PrimaryControls::INVLPG_EXITING) {
        return Err(cpu.instruction_exit(reason::INVLPG, lin, 0));
    }
    if cpu.canonical(lin) {
        cpu.mmu.forget_page(lin);
    }
    Ok(())
}
handler!(sync: invlpg_work => invlpg);

fn invpcid_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.nonroot && !cpu.secondary(SecondaryControls::ENABLE_INVPCID) {
        return Err(cpu.ud());
    }
    if cpu.v86() {
        return Err(cpu.gp(0));
    }
    cpu.need_cpl0()?;
    if cpu.primary(PrimaryControls::INVLPG_EXITING) {
        let (info, displacement) = operand_information(cpu, op);
        let info = info.with_reg2(op.r1 & 15).into_bits();
        return Err(cpu.instruction_exit(reason::INVPCID, displacement, info));
    }
    let kind = if cpu.long64 { u64::get(cpu, op.r1) } else { u32::get(cpu, op.r1).zx() };
    let lin = operand_linear(cpu, op, 16, Kind::Read)?;
    let pcid: u64 = cpu.load(lin)?;
    let address: u64 = cpu.load(lin.wrapping_add(8))?;
    let no_pcids = cpu.cr4 & cr4::PCIDE == 0;
    let bad = kind > 3
        || pcid >> 12 != 0
        || kind < 2 && no_pcids && pcid != 0
        || kind == 0 && !cpu.canonical_in_register(address);
    if bad {
        return Err(cpu.gp(0));
    }
    let vpid = u32::from(cpu.vmx.vpid);
    match kind {
        0 => cpu.mmu.forget_page(address),
        1 => cpu.mmu.forget_spaces(|key| key == vpid << 12 | pcid as u32),
        _ => cpu.forget_translations(),
    }
    Ok(())
}
handler!(sync: invpcid_work => invpcid);

/// CLFLUSH, CLFLUSHOPT, CLWB: there is no cache, but the address must be readable.
fn clflush_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let lin = operand_linear(cpu, op, 1, Kind::Read)?;
    cpu.load::<u8>(lin).map(|_| ())
}
handler!(next: clflush_work => clflush);

/// Where RDRAND takes its numbers from: a keyed hash of a counter, under a key from the operating system.
#[derive(Debug, Default)]
pub struct Entropy {
    key: RandomState,
    count: u64,
}

impl Cpu {
    fn random(&mut self) -> u64 {
        self.entropy.count += 1;
        // When time is deterministic, so is this.
        let mut h = match self.time.icount_shift {
            Some(_) => DefaultHasher::new(),
            None => self.entropy.key.build_hasher(),
        };
        h.write_u64(self.entropy.count);
        h.finish()
    }
}

/// RDRAND (`aux` bit 0 clear) and RDSEED.
fn rdrand_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let seed = op.aux & 1 != 0;
    let (control, reason) = if seed {
        (SecondaryControls::RDSEED_EXITING, reason::RDSEED)
    } else {
        (SecondaryControls::RDRAND_EXITING, reason::RDRAND)
    };
    if cpu.secondary(control) {
        let (info, _) = operand_information(cpu, op);
        return Err(cpu.instruction_exit(reason, 0, info.into_bits()));
    }
    let v = cpu.random();
    put_sized(cpu, op, v);
    cpu.flags.set(bits::CF);
    Ok(())
}
handler!(next: rdrand_work => rdrand);

/// BOUND: #BR unless register `r1` lies between the two values in memory.
fn bound_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.operand_size();
    let lin = operand_linear(cpu, op, size * 2, Kind::Read)?;
    let high = lin.wrapping_add(size);
    let (low, high, index) = if size == 2 {
        let low = cpu.load::<u16>(lin)?.sx();
        (low, cpu.load::<u16>(high)?.sx(), u16::get(cpu, op.r1).sx())
    } else {
        let low = cpu.load::<u32>(lin)?.sx();
        (low, cpu.load::<u32>(high)?.sx(), u32::get(cpu, op.r1).sx())
    };
    let inside = (low as i64..=high as i64).contains(&(index as i64));
    if inside { Ok(()) } else { Err(cpu.raise(vector::BR, None)) }
}
handler!(next: bound_work => bound);

/// CLAC (`aux` 0) and STAC (1).
fn access_flag_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.rflags = cpu.rflags & !bits::AC | if op.aux != 0 { bits::AC } else { 0 };
    cpu.mmu_context_changed();
    Ok(())
}
handler!(next: access_flag_work => access_flag);
