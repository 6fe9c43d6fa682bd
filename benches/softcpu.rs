//! The three speeds of the software processor that everything else is made of.
//!
//! - *Block execution*: a hot loop of integer instructions with a load and a store. Divide by the element
//!   count to get the time of one instruction; QEMU TCG needs about 2 ns for one in a boot of Linux.
//! - *TLB miss*: a loop that touches one byte of each of 8,192 pages, four times what the TLB holds, so that
//!   every load walks two dimensions: four levels of the guest's tables, each found through the EPT. One
//!   element is one load with the loop around it.
//! - *VM entry and exit*: a guest that executes CPUID for ever; the host resumes it, reads the exit reason and
//!   the length, and moves RIP on, by the VMX instructions. A processor with VT-x needs 0.5 to 1 µs.
//!
//! All of it runs as a 64-bit guest behind EPT, as guests of the soft engine do.

use std::sync::Arc;

use criterion::{Criterion, Throughput};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, byte_ptr, eax, qword_ptr, rax, rbx, rcx, rdx, rsi};
use trapline::memory::ept::EptBuilder;
use trapline::memory::{GuestRam, RamConfig};
use trapline::softcpu::Cpu;
use trapline::softcpu::cpuid::Model;
use trapline::vm_memory::{Bytes, GuestAddress};
use trapline::vmx::controls::{EntryControls, ExitControls, PrimaryControls, SecondaryControls};
use trapline::vmx::{BasicReason, Field as F};

// Guest-physical places.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const PAGE_TABLES: u64 = 0x10_0000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x20_0000;
/// Linear addresses from here are mapped by 4 KiB pages, all to [`DATA`].
const PAGES: u64 = 0x20_0000;
const PAGE_COUNT: u64 = 8192;
/// Iterations of the hot loop, and instructions in each.
const ITERATIONS: u64 = 100_000;
const LOOP: u64 = 10;

/// A processor in VMX root operation, with the VMCS of a guest that has been launched.
struct Guest {
    cpu: Cpu,
    ram: GuestRam,
}

impl Guest {
    fn new(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let ram = GuestRam::new(&RamConfig::new(8 << 20)).expect("8 MiB");
        let mut cpu = Cpu::new(ram.arena().clone(), Arc::new(Model::max()));
        cpu.enter_root_mode(0);
        let revision = u64::from(cpu.vmx.caps.revision);
        let [vmxon, vmcs] = [(); 2].map(|()| {
            let page = ram.root_pages().alloc_page().expect("there is room");
            ram.arena().write_u64(page, revision).expect("inside");
            page
        });
        cpu.vmxon(vmxon).expect("the state is right for it");
        cpu.vmclear(vmcs).expect("a region");
        cpu.vmptrld(vmcs).expect("a region");
        let mut guest = Self { cpu, ram };
        guest.tables();
        guest.controls();
        guest.state();
        let mut assembler = CodeAssembler::new(64).expect("64 is a bitness");
        code(&mut assembler).expect("instructions that exist");
        let bytes = assembler.assemble(CODE).expect("labels in reach");
        guest.ram.memory().write_slice(&bytes, GuestAddress(CODE)).expect("inside");
        guest.cpu.vmlaunch().expect("the controls are right");
        let failed = guest.cpu.vmcs_read(F::ExitReason) >> 31 != 0;
        assert!(!failed, "{:?}", guest.cpu.explain_entry());
        guest
    }

    fn put(&self, gpa: u64, entry: u64) {
        self.ram.memory().write_obj(entry, GuestAddress(gpa)).expect("inside");
    }

    fn tables(&mut self) {
        self.put(PML4, PDPT | 3);
        self.put(PDPT, PAGE_DIRECTORY | 3);
        self.put(PAGE_DIRECTORY, 0x83);
        for table in 0..PAGE_COUNT / 512 {
            self.put(PAGE_DIRECTORY + 8 * (table + 1), (PAGE_TABLES + table * 0x1000) | 3);
        }
        for page in 0..PAGE_COUNT {
            self.put(PAGE_TABLES + 8 * page, DATA | 3);
        }
        let pages = self.ram.root_pages().clone();
        let mut ept = EptBuilder::new(self.ram.arena().clone(), pages, true).expect("there is room");
        self.ram.map_ept(&mut ept).expect("there is room");
        self.cpu.vmcs_write(F::EptPointer, ept.eptp());
    }

    fn controls(&mut self) {
        let caps = self.cpu.vmx.caps.clone();
        let primary = PrimaryControls::SECONDARY_CONTROLS | PrimaryControls::HLT_EXITING;
        let secondary = SecondaryControls::ENABLE_EPT | SecondaryControls::ENABLE_VPID;
        let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE | ExitControls::LOAD_EFER | ExitControls::SAVE_EFER;
        let entry = EntryControls::LOAD_EFER | EntryControls::IA32E_MODE_GUEST;
        for (field, value) in [
            (F::PinControls, caps.pin.adjust(0)),
            (F::PrimaryControls, caps.primary.adjust(primary.bits())),
            (F::SecondaryControls, caps.secondary.adjust(secondary.bits())),
            (F::ExitControls, caps.exit.adjust(exit.bits())),
            (F::EntryControls, caps.entry.adjust(entry.bits())),
        ] {
            self.cpu.vmcs_write(field, value.into());
        }
    }

    fn state(&mut self) {
        for (field, value) in [
            (F::VmcsLinkPointer, u64::MAX),
            (F::Vpid, 1),
            (F::HostCr0, 0x8001_0033),
            (F::HostCr4, 0x2620),
            (F::HostEfer, 0xd01),
            (F::HostCsSelector, 0x08),
            (F::HostSsSelector, 0x10),
            (F::HostTrSelector, 0x18),
            (F::HostRip, 0xffff_8000_0000_0000),
            (F::GuestCr0, 0x8001_0033),
            (F::GuestCr3, PML4),
            (F::GuestCr4, 0x26a0),
            (F::GuestEfer, 0xd01),
            (F::GuestCsSelector, 0x08),
            (F::GuestCsAccessRights, 0xa09b),
            (F::GuestCsLimit, 0xffff_ffff),
            (F::GuestSsSelector, 0x10),
            (F::GuestSsAccessRights, 0xc093),
            (F::GuestSsLimit, 0xffff_ffff),
            (F::GuestTrSelector, 0x18),
            (F::GuestTrAccessRights, 0x8b),
            (F::GuestTrLimit, 0x67),
            (F::GuestDsAccessRights, 1 << 16),
            (F::GuestEsAccessRights, 1 << 16),
            (F::GuestFsAccessRights, 1 << 16),
            (F::GuestGsAccessRights, 1 << 16),
            (F::GuestLdtrAccessRights, 1 << 16),
            (F::GuestRip, CODE),
            (F::GuestRsp, 0x9000),
            (F::GuestRflags, 2),
            (F::GuestDr7, 0x400),
        ] {
            self.cpu.vmcs_write(field, value);
        }
    }

    /// Resumes the guest behind the instruction that exited; says what it exits for next.
    fn step_over(&mut self) -> u64 {
        let rip = self.cpu.vmcs_read(F::GuestRip) + self.cpu.vmcs_read(F::ExitInstructionLength);
        self.cpu.vmcs_write(F::GuestRip, rip);
        self.cpu.vmresume().expect("the state is what an exit saved");
        self.cpu.vmcs_read(F::ExitReason)
    }
}

/// The guest does `body` between two VMCALLs, for ever.
fn between_calls(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    Guest::new(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        body(a)?;
        a.vmcall()?;
        a.jmp(again)
    })
}

fn measure(c: &mut Criterion, name: &str, elements: u64, mut guest: Guest, reason: BasicReason) {
    let mut group = c.benchmark_group("softcpu");
    group.throughput(Throughput::Elements(elements));
    group.sample_size(20);
    group.bench_function(name, |b| {
        b.iter(|| assert_eq!(guest.step_over(), u64::from(reason.number())));
    });
    group.finish();
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let hot = between_calls(|a| {
        let mut next = a.create_label();
        a.mov(rsi, DATA)?;
        a.mov(rcx, ITERATIONS)?;
        a.set_label(&mut next)?;
        a.add(rax, rcx)?;
        a.lea(rdx, qword_ptr(rax + rcx * 4))?;
        a.xor(rdx, rax)?;
        a.shr(rdx, 3)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.add(rbx, rdx)?;
        a.mov(qword_ptr(rsi), rbx)?;
        a.and(rax, 0xffff)?;
        a.dec(rcx)?;
        a.jnz(next)
    });
    measure(&mut c, "block execution", ITERATIONS * LOOP, hot, BasicReason::Vmcall);

    let walk = between_calls(|a| {
        let mut next = a.create_label();
        a.mov(rsi, PAGES)?;
        a.mov(rcx, PAGE_COUNT)?;
        a.set_label(&mut next)?;
        a.movzx(eax, byte_ptr(rsi))?;
        a.add(rsi, 0x1000)?;
        a.dec(rcx)?;
        a.jnz(next)
    });
    measure(&mut c, "tlb miss, two-dimensional walk", PAGE_COUNT, walk, BasicReason::Vmcall);

    let cpuid = Guest::new(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cpuid()?;
        a.jmp(again)
    });
    measure(&mut c, "vm entry and exit, cpuid", 1, cpuid, BasicReason::Cpuid);
    c.final_summary();
}
