//! The smallest virtual machine: a guest in real mode says hello through a port.
//!
//! ```text
//! cargo run --example hello [auto|kvm|soft]
//! ```

use std::io::Write;

use iced_x86::code_asm::*;
use trapline::memory::{GuestRam, RamConfig};
use trapline::vcpu::{Accel, Answer, Exit, VmConfig, choose, cpuid, create_vm};

/// The port that the guest writes to.
const PORT: u16 = 0xe9;
/// Where the guest's code is.
const CODE: u64 = 0x1000;

/// Writes each byte of a text to the port, and halts.
fn guest() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let (mut next, mut end, mut text) = (a.create_label(), a.create_label(), a.create_label());
    a.call(text)?; // pushes the address of the text
    a.db(b"Hello from the guest!\n\0")?;
    a.set_label(&mut text)?;
    a.pop(si)?;
    a.mov(dx, u32::from(PORT))?;
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(end)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.hlt()?;
    a.assemble(CODE)
}

fn main() -> anyhow::Result<()> {
    let accel = std::env::args().nth(1).map_or(Ok(Accel::Auto), |name| name.parse())?;
    let choice = choose(accel)?;
    println!("{}", choice.why);

    // A machine with 1 MiB of memory and one processor, without local APIC: so HLT exits.
    let vm = create_vm(choice.engine, &VmConfig { local_apic: false, ..VmConfig::default() })?;
    let ram = GuestRam::new(&RamConfig::new(1 << 20))?;
    vm.set_memory(ram.arena(), ram.slots())?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid(&cpuid::for_vcpu(&vm.supported_cpuid()?, &cpuid::Topology::flat(1), 0)?)?;

    // The code, and a processor in real mode that is about to execute it.
    ram.arena().write_bytes(CODE, &guest()?).ok_or_else(|| anyhow::anyhow!("no memory at {CODE:#x}"))?;
    let mut sregs = vcpu.sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.regs()?;
    (regs.rip, regs.rsp) = (CODE, CODE);
    vcpu.set_regs(&regs)?;

    while let exit = vcpu.run(Answer::None.into())?
        && exit != Exit::Halt
    {
        match exit {
            Exit::PioWrite { port: PORT, value, .. } => std::io::stdout().write_all(&[value as u8])?,
            other => anyhow::bail!("unexpected exit: {other:?}"),
        }
    }
    println!("{} exits", vcpu.stats().total());
    Ok(())
}
