//! XCR0 and PKRU: XGETBV, XSETBV, RDPKRU, WRPKRU.

use crate::cpu::{Cpu, Stop, cr4, reg};
use crate::handler;
use crate::int::Int;
use crate::op::Op;
use crate::vmx::reason;

fn need_osxsave(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr4 & cr4::OSXSAVE != 0 { Ok(()) } else { Err(cpu.ud()) }
}

/// XGETBV: XCR0, or which of its components are in use.
fn xgetbv_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    need_osxsave(cpu)?;
    let v = match u32::get(cpu, reg::RCX) {
        0 => cpu.xcr0,
        1 => cpu.xcr0 & cpu.in_use(),
        _ => return Err(cpu.gp(0)),
    };
    (v as u32).put(cpu, reg::RAX);
    ((v >> 32) as u32).put(cpu, reg::RDX);
    Ok(())
}
handler!(next: xgetbv_work => xgetbv);

fn xsetbv_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    need_osxsave(cpu)?;
    cpu.need_cpl0()?;
    if cpu.nonroot {
        return Err(cpu.instruction_exit(reason::XSETBV, 0, 0));
    }
    let v = u64::from(u32::get(cpu, reg::RDX)) << 32 | u64::from(u32::get(cpu, reg::RAX));
    if u32::get(cpu, reg::RCX) != 0 {
        return Err(cpu.gp(0));
    }
    cpu.set_xcr0(v)
}
handler!(next: xsetbv_work => xsetbv);

fn need_pke(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr4 & cr4::PKE == 0 {
        return Err(cpu.ud());
    }
    if u32::get(cpu, reg::RCX) != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

fn rdpkru_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    need_pke(cpu)?;
    cpu.pkru.put(cpu, reg::RAX);
    0u32.put(cpu, reg::RDX);
    Ok(())
}
handler!(next: rdpkru_work => rdpkru);

fn wrpkru_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    need_pke(cpu)?;
    if u32::get(cpu, reg::RDX) != 0 {
        return Err(cpu.gp(0));
    }
    let v = u32::get(cpu, reg::RAX);
    cpu.set_pkru(v);
    Ok(())
}
handler!(next: wrpkru_work => wrpkru);

impl Cpu {
    /// Writes XCR0 with the checks of XSETBV.
    ///
    /// # Errors
    /// #GP(0) for components that do not exist, or without x87 state.
    pub fn set_xcr0(&mut self, v: u64) -> Result<(), Stop> {
        if v & !self.model.xcr0_bits() != 0 || v & 1 == 0 {
            return Err(self.gp(0));
        }
        self.xcr0 = v;
        Ok(())
    }
}
