//! VT-x by hand: VMXON, a VMCS written field by field, a guest that exits for four reasons, an entry that
//! the processor refuses, VMXOFF. The processor is `softcpu`, so it runs anywhere.
//!
//! ```text
//! cargo run --example vmx_lab
//! ```

use std::fmt;
use std::sync::Arc;

use anyhow::Context;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapline::memory::ept::{EptAttributes, EptBuilder, EptPerms};
use trapline::memory::{Arena, ArenaOptions, PageAllocator};
use trapline::softcpu::Cpu;
use trapline::softcpu::cpu::reg;
use trapline::softcpu::cpuid::Model;
use trapline::vmx::controls::{ExitControls, PrimaryControls, SecondaryControls};
use trapline::vmx::exit::{BasicReason, EptViolation, ExitReason, IoAccess};
use trapline::vmx::state::AccessRights;
use trapline::vmx::{Field, Vmcs};

/// "Host-physical" memory: the guest's 64 KiB, then the root area that this program takes its pages from.
const GUEST_MEMORY: u64 = 64 << 10;
const MEMORY: u64 = 1 << 20;
/// Where the guest's code is.
const CODE: u64 = 0x1000;
/// A guest-physical address that the EPT does not map.
const HOLE: u64 = 0x2_0000;

/// A VM exit, decoded.
#[derive(Debug)]
pub struct Decoded {
    /// What the guest did.
    pub what: &'static str,
    /// The exit reason.
    pub reason: ExitReason,
    /// Fields of the VMCS that say more, and their meaning.
    pub rows: Vec<(&'static str, String)>,
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "  {:<24} {} ({:#x})", "exit reason", self.reason, self.reason.into_bits())?;
        self.rows.iter().try_for_each(|(name, value)| writeln!(f, "  {name:<24} {value}"))
    }
}

/// The guest, in real mode: CPUID, OUT, HLT, a write to the hole.
fn guest() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.mov(al, 0x5a)?;
    a.out(0x80, al)?;
    a.hlt()?;
    a.mov(ax, (HOLE >> 4) as u32)?;
    a.mov(ds, ax)?;
    a.mov(word_ptr(0x10), 0x1234)?;
    a.hlt()?;
    a.assemble(CODE)
}

/// A processor in VMX root operation with a guest that is ready to run.
fn set_up() -> anyhow::Result<Cpu> {
    let arena = Arc::new(Arena::with_root_area(MEMORY, GUEST_MEMORY..MEMORY, &ArenaOptions::default())?);
    arena.write_bytes(CODE, &guest()?).context("no memory for the guest's code")?;
    let page = || arena.alloc_page().context("no page left");

    // VMXON, with the revision identifier in the region. Root operation needs paging: CR3 is any page here,
    // because no instruction is ever executed in it.
    let mut cpu = Cpu::new(arena.clone(), Arc::new(Model::default()));
    let (vmxon, vmcs) = (page()?, page()?);
    for region in [vmxon, vmcs] {
        arena.write_bytes(region, &Vmcs::REVISION.to_le_bytes()).context("no memory")?;
    }
    cpu.enter_root_mode(page()?);
    cpu.vmxon(vmxon)?;
    cpu.vmclear(vmcs)?;
    cpu.vmptrld(vmcs)?;

    // Guest-physical memory is the first 64 KiB of the arena.
    let mut ept = EptBuilder::new(arena.clone(), arena.clone(), true)?;
    ept.map(0, 0, GUEST_MEMORY, EptAttributes::new(EptPerms::RWX))?;

    let caps = cpu.vmx.caps.clone();
    let primary = PrimaryControls::HLT_EXITING
        | PrimaryControls::UNCONDITIONAL_IO_EXITING
        | PrimaryControls::SECONDARY_CONTROLS;
    // Unrestricted: the guest may run without paging and protection.
    let secondary = SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST;
    for (field, value) in [
        (Field::PinControls, caps.pin.adjust(0).into()),
        (Field::PrimaryControls, caps.primary.adjust(primary.bits()).into()),
        (Field::SecondaryControls, caps.secondary.adjust(secondary.bits()).into()),
        (Field::ExitControls, caps.exit.adjust(ExitControls::HOST_ADDRESS_SPACE_SIZE.bits()).into()),
        (Field::EntryControls, caps.entry.adjust(0).into()),
        (Field::EptPointer, ept.eptp()),
        (Field::VmcsLinkPointer, u64::MAX),
        (Field::HostCr0, cpu.cr0),
        (Field::HostCr3, cpu.cr3),
        (Field::HostCr4, cpu.cr4),
        (Field::HostCsSelector, 0x08),
        (Field::HostSsSelector, 0x10),
        (Field::HostTrSelector, 0x18),
        (Field::GuestCr0, 0x30),
        (Field::GuestCr4, 0x2000),
        (Field::GuestRip, CODE),
        (Field::GuestRsp, CODE),
        (Field::GuestRflags, 2),
        (Field::GuestDr7, 0x400),
    ] {
        cpu.vmwrite(field.encoding().into(), value)?;
    }
    real_mode_segments(&mut cpu)?;
    Ok(cpu)
}

/// Segments as real mode has them: base 0, limit 64 KiB.
fn real_mode_segments(cpu: &mut Cpu) -> anyhow::Result<()> {
    let data = AccessRights::new().with_segment_type(3).with_code_or_data(true).with_present(true);
    let code = data.with_segment_type(11);
    let task = AccessRights::new().with_segment_type(11).with_present(true);
    let none = AccessRights::new().with_unusable(true);
    for (limit, rights, value) in [
        (Field::GuestCsLimit, Field::GuestCsAccessRights, code),
        (Field::GuestSsLimit, Field::GuestSsAccessRights, data),
        (Field::GuestDsLimit, Field::GuestDsAccessRights, data),
        (Field::GuestEsLimit, Field::GuestEsAccessRights, data),
        (Field::GuestFsLimit, Field::GuestFsAccessRights, data),
        (Field::GuestGsLimit, Field::GuestGsAccessRights, data),
        (Field::GuestTrLimit, Field::GuestTrAccessRights, task),
        (Field::GuestLdtrLimit, Field::GuestLdtrAccessRights, none),
    ] {
        cpu.vmwrite(limit.encoding().into(), 0xffff)?;
        cpu.vmwrite(rights.encoding().into(), value.into_bits().into())?;
    }
    Ok(())
}

/// Reads what the last exit left in the VMCS.
fn decode(cpu: &mut Cpu, what: &'static str) -> anyhow::Result<Decoded> {
    let mut read = |field: Field| cpu.vmread(field.encoding().into());
    let reason = ExitReason::from_bits(read(Field::ExitReason)? as u32);
    let qualification = read(Field::ExitQualification)?;
    let mut rows = vec![("guest RIP", format!("{:#x}", read(Field::GuestRip)?))];
    match reason.basic() {
        Some(BasicReason::Io) => {
            let io = IoAccess::from_bits(qualification);
            let (direction, size) = (if io.input() { "in" } else { "out" }, io.size_minus_one() + 1);
            rows.push(("exit qualification", format!("{direction}, port {:#x}, {size} byte", io.port())));
        }
        Some(BasicReason::EptViolation) => {
            let violation = EptViolation::from_bits(qualification);
            let access = if violation.write() { "write" } else { "read or fetch" };
            let mapped = if violation.readable() { "mapped" } else { "not mapped" };
            rows.push(("exit qualification", format!("{access}, {mapped}")));
            rows.push(("guest-physical address", format!("{:#x}", read(Field::GuestPhysicalAddress)?)));
        }
        _ => {}
    }
    if !reason.entry_failure() {
        rows.push(("instruction length", read(Field::ExitInstructionLength)?.to_string()));
    }
    Ok(Decoded { what, reason, rows })
}

/// Goes on behind the instruction that exited.
fn skip_instruction(cpu: &mut Cpu) -> anyhow::Result<()> {
    let rip = cpu.vmread(Field::GuestRip.encoding().into())?;
    let len = cpu.vmread(Field::ExitInstructionLength.encoding().into())?;
    Ok(cpu.vmwrite(Field::GuestRip.encoding().into(), rip + len)?)
}

/// The whole session: the exits, in order.
pub fn lab() -> anyhow::Result<Vec<Decoded>> {
    let mut cpu = set_up()?;
    let mut exits = Vec::new();

    cpu.vmlaunch()?;
    exits.push(decode(&mut cpu, "CPUID always exits")?);
    let [highest_leaf, ..] = cpu.model.cpuid(0, 0, &Default::default());
    cpu.regs[usize::from(reg::RAX)] = highest_leaf.into();
    skip_instruction(&mut cpu)?;

    cpu.vmresume()?;
    exits.push(decode(&mut cpu, "OUT exits unconditionally, by the primary controls")?);
    skip_instruction(&mut cpu)?;

    cpu.vmresume()?;
    exits.push(decode(&mut cpu, "HLT exits, by the primary controls")?);
    skip_instruction(&mut cpu)?;

    cpu.vmresume()?;
    let mut violation = decode(&mut cpu, "a write where the EPT maps nothing")?;
    let access = cpu.device_access().context("no access")?;
    let written = access.write.context("no write")?;
    violation.rows.push(("what softcpu adds", format!("{written:#x}, {} bytes", access.size)));
    exits.push(violation);
    // The device took it: the instruction goes on as if the access had been made.
    cpu.complete_device_access(0);

    cpu.vmresume()?;
    exits.push(decode(&mut cpu, "HLT again: the guest went on behind the write")?);

    // A guest state that no processor can be in: RFLAGS bit 1 is always one.
    cpu.vmwrite(Field::GuestRflags.encoding().into(), 0)?;
    cpu.vmresume()?;
    let mut refused = decode(&mut cpu, "VM entry with bit 1 of RFLAGS clear")?;
    let broken = cpu.explain_entry().context("the entry was to be refused")?;
    refused.rows.push(("the check that failed", broken.to_string()));
    exits.push(refused);

    cpu.vmxoff()?;
    Ok(exits)
}

#[allow(dead_code, reason = "the test of this example has a main of its own")]
fn main() -> anyhow::Result<()> {
    for exit in lab()? {
        println!("{exit}");
    }
    Ok(())
}
