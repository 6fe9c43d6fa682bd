//! The state in which processors start, as the engines take it.

use kvm_bindings::{kvm_dtable, kvm_lapic_state, kvm_regs, kvm_segment};
use trapline_boot::{DescriptorTable, EntryPoint, Segment};
use trapline_vcpu::{Result, Vcpu};

/// Puts the boot processor at the kernel's first instruction.
pub(crate) fn set_entry(vcpu: &mut dyn Vcpu, entry: &EntryPoint) -> Result<()> {
    let mut sregs = vcpu.sregs()?;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (entry.cr0, entry.cr3, entry.cr4, entry.efer);
    sregs.gdt = table(entry.gdt);
    sregs.idt = kvm_dtable::default();
    sregs.cs = segment(entry.code);
    let data = segment(entry.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(entry.task);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.rip,
        rax: entry.rax,
        rbx: entry.rbx,
        rsi: entry.rsi,
        rflags: 2,
        ..Default::default()
    })
}

fn segment(segment: Segment) -> kvm_segment {
    let Segment { selector, base, limit, type_, code_or_data, long, default_big, granularity } = segment;
    kvm_segment {
        selector,
        base,
        limit,
        type_,
        present: 1,
        s: code_or_data.into(),
        l: long.into(),
        db: default_big.into(),
        g: granularity.into(),
        ..Default::default()
    }
}

fn table(DescriptorTable { base, limit }: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base, limit, ..Default::default() }
}

/// Sets up the boot processor's local APIC as firmware leaves it: enabled, in virtual wire mode. LINT0 passes
/// on the 8259A's INTR, LINT1 is the NMI (MultiProcessor Specification 1.4 §3.6.2.2).
pub(crate) fn set_virtual_wire(vcpu: &mut dyn Vcpu) -> Result<()> {
    const SPURIOUS: usize = 0xf0;
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const ENABLED: u32 = 1 << 8 | 0xff;
    const EXTINT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;

    let mut lapic = vcpu.lapic()?;
    for (register, value) in [(SPURIOUS, ENABLED), (LVT_LINT0, EXTINT), (LVT_LINT1, NMI)] {
        set_register(&mut lapic, register, value);
    }
    vcpu.set_lapic(&lapic)
}

fn set_register(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    let bytes = lapic.regs.iter_mut().skip(register);
    bytes.zip(value.to_le_bytes()).for_each(|(to, from)| *to = from as _);
}
