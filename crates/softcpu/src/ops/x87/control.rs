//! Control instructions: control and status word, environment, FSAVE and FRSTOR. None of them sets the last
//! instruction's pointers and opcode.

use super::wait;
use crate::cpu::{Cpu, Stop, cr0, reg, vector};
use crate::fpu::{EnvForm, X87};
use crate::handler;
use crate::int::Int;
use crate::lower::form;
use crate::mmu::Kind;
use crate::op::{Flow, Op, OpRef, next, stop};
use crate::ops::ea;

fn fwait_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.raise(vector::NM, None));
    }
    wait(cpu)
}
handler!(next: fwait_work => fwait);

/// FNINIT.
pub extern "C-unwind" fn fninit(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.fninit();
    next(cpu, op)
}

/// FNCLEX.
pub extern "C-unwind" fn fnclex(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.x87.fnclex();
    next(cpu, op)
}

/// FNSTSW AX.
pub extern "C-unwind" fn fnstsw_ax(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.x87.status_word();
    v.put(cpu, reg::RAX);
    next(cpu, op)
}

/// A register of 16 bits.
pub trait Word {
    /// Its value.
    fn get(x87: &X87) -> u16;
}

/// The status word.
pub struct Status;
/// The control word.
pub struct Control;

impl Word for Status {
    fn get(x87: &X87) -> u16 {
        x87.status_word()
    }
}

impl Word for Control {
    fn get(x87: &X87) -> u16 {
        x87.control_word()
    }
}

/// FNSTSW and FNSTCW to memory.
pub extern "C-unwind" fn store_word<W: Word, const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = W::get(&cpu.x87);
    match ea::<E>(cpu, &op, 2, Kind::Write).and_then(|lin| cpu.store(lin, v)) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

/// FLDCW.
pub extern "C-unwind" fn fldcw<const E: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    fn work<const E: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        wait(cpu)?;
        let lin = ea::<E>(cpu, op, 2, Kind::Read)?;
        let v = cpu.load(lin)?;
        cpu.x87.set_control_word(v);
        Ok(())
    }
    match work::<E>(cpu, &op) {
        Ok(()) => next(cpu, op),
        Err(s) => stop(cpu, op, s),
    }
}

impl Cpu {
    /// The layout of an environment image; `imm` is its width in bytes.
    fn env_form(&self, op: &Op) -> EnvForm {
        match (self.protected(), op.imm == 14) {
            (true, true) => EnvForm::Protected16,
            (true, false) => EnvForm::Protected32,
            (false, true) => EnvForm::Real16,
            (false, false) => EnvForm::Real32,
        }
    }

    /// The linear address of an image of `size` bytes.
    pub(in crate::ops) fn image_ea(&mut self, op: &Op, size: usize, kind: Kind) -> Result<u64, Stop> {
        ea::<{ form::FULL }>(self, op, size as u64, kind)
    }

    /// Reads an image.
    pub(in crate::ops) fn read_image(&mut self, lin: u64, to: &mut [u8]) -> Result<(), Stop> {
        let mut at = lin;
        let mut words = to.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.load::<u64>(at)?.to_le_bytes());
            at = at.wrapping_add(8);
        }
        for halves in words.into_remainder().chunks_exact_mut(2) {
            halves.copy_from_slice(&self.load::<u16>(at)?.to_le_bytes());
            at = at.wrapping_add(2);
        }
        Ok(())
    }

    /// Writes an image (of an even length), or nothing if a part of it cannot be written.
    pub(in crate::ops) fn write_image(&mut self, lin: u64, from: &[u8]) -> Result<(), Stop> {
        self.probe_write(lin, from.len() as u64)?;
        let (words, rest) = from.as_chunks::<8>();
        let mut at = lin;
        for word in words {
            self.store(at, u64::from_le_bytes(*word))?;
            at = at.wrapping_add(8);
        }
        for half in rest.as_chunks::<2>().0 {
            self.store(at, u16::from_le_bytes(*half))?;
            at = at.wrapping_add(2);
        }
        Ok(())
    }
}

fn fnstenv_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let form = cpu.env_form(op);
    let lin = cpu.image_ea(op, form.size(), Kind::Write)?;
    let image = cpu.x87.environment(form);
    cpu.write_image(lin, &image[..form.size()])?;
    cpu.x87.mask_all();
    Ok(())
}
handler!(next: fnstenv_work => fnstenv);

fn fnsave_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let form = cpu.env_form(op);
    let size = form.size() + 80;
    let lin = cpu.image_ea(op, size, Kind::Write)?;
    let image = cpu.x87.save(form);
    cpu.write_image(lin, &image[..size])?;
    cpu.x87.fninit();
    Ok(())
}
handler!(next: fnsave_work => fnsave);

fn fldenv_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    wait(cpu)?;
    let form = cpu.env_form(op);
    let lin = cpu.image_ea(op, form.size(), Kind::Read)?;
    let mut image = [0; 28];
    cpu.read_image(lin, &mut image[..form.size()])?;
    cpu.x87.set_environment(&image, form);
    (cpu.x87.cs, cpu.x87.ds) = (0, 0);
    Ok(())
}
handler!(next: fldenv_work => fldenv);

fn frstor_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    wait(cpu)?;
    let form = cpu.env_form(op);
    let size = form.size() + 80;
    let lin = cpu.image_ea(op, size, Kind::Read)?;
    let mut image = [0; 108];
    cpu.read_image(lin, &mut image[..size])?;
    cpu.x87.restore(&image, form);
    (cpu.x87.cs, cpu.x87.ds) = (0, 0);
    Ok(())
}
handler!(next: frstor_work => frstor);
