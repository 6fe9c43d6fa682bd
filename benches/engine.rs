//! What a vCPU costs in 64-bit mode, through [`Vcpu::run`], on each engine and with each kind of paging.
//!
//! - *TLB miss*: a loop that touches one byte of each of 8,192 pages, four times what the TLB holds. With EPT
//!   every load walks two dimensions, four levels of the guest's tables, each found through the EPT; with
//!   shadow paging it walks the engine's four levels. One element is one load with the loop around it.
//! - *Exit and entry*: a write to a port, seen by the caller, and the way back into the guest.
//! - *Interrupt*: what a board does for one of the 8259A's: it asks for the window, which IRETQ of the last one
//!   opens, gets an exit, injects, and the handler found through the IDT writes to a port. Less twice the row
//!   above, this is what the interrupt itself costs.
//!
//! Where there is no KVM, or one that executes guest code far too slowly for a loop, its rows are left out.

use std::sync::Arc;

use criterion::{Criterion, Throughput};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, eax, rcx, rsi};
use kvm_bindings::{kvm_regs, kvm_segment};
use trapline::memory::{GuestRam, RamConfig};
use trapline::vcpu::{Engine, Entry, Exit, Paging, Vcpu, Vm, VmConfig, create_vm};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const STACK: u64 = 0x8000;
const CODE: u64 = 0x8000;
const HANDLER: u64 = 0x9000;
const PAGE_TABLES: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
/// Linear addresses from here are mapped by 4 KiB pages, all to [`DATA`].
const PAGES: u64 = 0x20_0000;
const PAGE_COUNT: u64 = 8192;
const VECTOR: u8 = 0x20;
const CODE64: u16 = 8;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What runs the guest.
#[derive(Clone, Copy)]
struct Subject {
    name: &'static str,
    engine: Engine,
    paging: Paging,
}

const SUBJECTS: [Subject; 3] = [
    Subject { name: "soft, EPT", engine: Engine::Soft, paging: Paging::Ept },
    Subject { name: "soft, shadow paging", engine: Engine::Soft, paging: Paging::Shadow },
    Subject { name: "KVM", engine: Engine::Kvm, paging: Paging::Ept },
];

struct Guest {
    vcpu: Box<dyn Vcpu>,
    _vm: Arc<dyn Vm>,
    ram: GuestRam,
}

impl Guest {
    /// A guest that is about to execute `code`; its handler of [`VECTOR`] writes to a port and returns.
    /// `None`: this machine does not have the engine.
    fn new(subject: Subject, code: Code) -> Option<Self> {
        let config = VmConfig { local_apic: false, paging: subject.paging, ..VmConfig::default() };
        let vm = match create_vm(subject.engine, &config) {
            Ok(vm) => vm,
            Err(e) => {
                eprintln!("skipped: {}: {e}", subject.name);
                return None;
            }
        };
        let ram = GuestRam::new(&RamConfig::new(8 << 20)).expect("8 MiB");
        vm.set_memory(ram.arena(), ram.slots()).expect("one slot");
        let mut vcpu = vm.create_vcpu(0).expect("the first one");
        vcpu.set_cpuid(&vm.supported_cpuid().expect("leaves")).expect("its own leaves");
        let mut guest = Self { vcpu, _vm: vm, ram };
        guest.tables();
        guest.state();
        guest.assemble(CODE, code);
        guest.assemble(HANDLER, |a| {
            a.out(0x80, al)?;
            a.iretq()
        });
        Some(guest)
    }

    fn put(&self, at: u64, value: u64) {
        self.ram.arena().write_u64(at, value).expect("inside");
    }

    fn assemble(&self, at: u64, code: Code) {
        let mut assembler = CodeAssembler::new(64).expect("64 is a bitness");
        code(&mut assembler).expect("instructions that exist");
        let bytes = assembler.assemble(at).expect("labels in reach");
        self.ram.arena().write_bytes(at, &bytes).expect("inside");
    }

    fn tables(&self) {
        self.put(PML4, PDPT | 3);
        self.put(PDPT, PAGE_DIRECTORY | 3);
        self.put(PAGE_DIRECTORY, 0x83);
        for table in 0..PAGE_COUNT / 512 {
            self.put(PAGE_DIRECTORY + 8 * (table + 1), (PAGE_TABLES + table * 0x1000) | 3);
        }
        for page in 0..PAGE_COUNT {
            self.put(PAGE_TABLES + 8 * page, DATA | 3);
        }
        self.put(GDT + u64::from(CODE64), 0x00af_9b00_0000_ffff);
        self.put(GDT + 16, 0x00cf_9300_0000_ffff);
        let gate = IDT + 16 * u64::from(VECTOR);
        self.put(gate, 0x8e00 << 32 | u64::from(CODE64) << 16 | HANDLER);
        self.put(gate + 8, 0);
    }

    fn state(&mut self) {
        let mut sregs = self.vcpu.sregs().expect("a state");
        let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
        sregs.cs = kvm_segment { selector: CODE64, type_: 11, l: 1, ..flat };
        let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x17);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, PML4, 0x620, 0x500);
        self.vcpu.set_sregs(&sregs).expect("a state");
        let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..Default::default() };
        self.vcpu.set_regs(&regs).expect("a state");
    }

    fn run(&mut self, entry: Entry) -> Exit {
        self.vcpu.run(entry).expect("a run")
    }

    /// Runs to the next write to the port.
    fn round(&mut self) {
        let exit = self.run(Entry::default());
        assert!(matches!(exit, Exit::PioWrite { port: 0x80, .. }), "{exit:?}");
    }

    /// Waits until an interrupt can be injected, injects it, and runs to the port that its handler writes to.
    fn interrupt(&mut self) {
        let exit = self.run(Entry { want_window: true, ..Entry::default() });
        assert_eq!(exit, Exit::InterruptWindow);
        let exit = self.run(Entry { extint: Some(VECTOR), ..Entry::default() });
        assert!(matches!(exit, Exit::PioWrite { port: 0x80, .. }), "{exit:?}");
    }
}

fn touch_pages(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut next) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(rsi, PAGES)?;
    a.mov(rcx, PAGE_COUNT)?;
    a.set_label(&mut next)?;
    a.movzx(eax, byte_ptr(rsi))?;
    a.add(rsi, 0x1000)?;
    a.dec(rcx)?;
    a.jnz(next)?;
    a.out(0x80, al)?;
    a.jmp(again)
}

fn write_port(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.out(0x80, al)?;
    a.jmp(again)
}

fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.sti()?;
    a.set_label(&mut again)?;
    a.jmp(again)
}

fn main() {
    let mut c = Criterion::default().configure_from_args();

    let mut group = c.benchmark_group("tlb miss");
    group.throughput(Throughput::Elements(PAGE_COUNT)).sample_size(20);
    for subject in SUBJECTS.into_iter().filter(|subject| subject.engine == Engine::Soft) {
        let Some(mut guest) = Guest::new(subject, touch_pages) else { continue };
        guest.round();
        group.bench_function(subject.name, |b| b.iter(|| guest.round()));
    }
    group.finish();

    let mut group = c.benchmark_group("exit and entry: port write");
    for subject in SUBJECTS {
        let Some(mut guest) = Guest::new(subject, write_port) else { continue };
        group.bench_function(subject.name, |b| b.iter(|| guest.round()));
    }
    group.finish();

    let mut group = c.benchmark_group("interrupt: window, injection, delivery");
    for subject in SUBJECTS {
        let Some(mut guest) = Guest::new(subject, spin) else { continue };
        group.bench_function(subject.name, |b| b.iter(|| guest.interrupt()));
    }
    group.finish();
    c.final_summary();
}
