//! What is particular about shadow paging: which exits it has, and what a processor on shadow tables cannot do by
//! itself.

use std::sync::Arc;

use iced_x86::code_asm::*;
use kvm_bindings::{kvm_regs, kvm_segment};
use trapline_memory::{GuestRam, RamConfig};
use trapline_vcpu::{CpuModel, Engine, Entry, Exit, Paging, Vcpu, Vm, VmConfig, create_vm};
use vm_memory::{Bytes, GuestAddress};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
const PD: u64 = 0x5000;
const PT: u64 = 0x6000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x2_0000;
/// Nothing is there.
const DEVICE: u64 = 0x100_0000;
const RAM: u64 = 8 << 20;
/// A write here ends a test.
const DONE: u16 = 0xf4;
const CODE64: u16 = 8;

type Result = std::result::Result<(), iced_x86::IcedError>;
type Code = fn(&mut CodeAssembler) -> Result;

struct Machine {
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    ram: GuestRam,
}

impl Machine {
    /// A vCPU in 64-bit mode that is about to execute `code`. The first 2 MiB are mapped one to one by pages of
    /// 4 KiB, for users too, the rest up to 32 MiB by pages of 2 MiB.
    fn new(code: impl FnOnce(&mut CodeAssembler) -> Result) -> Self {
        Self::with(VmConfig::default(), RamConfig::new(RAM), code)
    }

    fn with(config: VmConfig, ram: RamConfig, code: impl FnOnce(&mut CodeAssembler) -> Result) -> Self {
        let vm = create_vm(Engine::Soft, &VmConfig { paging: Paging::Shadow, ..config }).unwrap();
        let ram = GuestRam::new(&ram).unwrap();
        vm.set_memory(ram.arena(), ram.slots()).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut machine = Self { vm, vcpu, ram };
        machine.vcpu.set_cpuid(&machine.vm.supported_cpuid().unwrap()).unwrap();
        for (n, descriptor) in [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
            machine.write(GDT + 8 * n as u64, descriptor);
        }
        machine.write(PML4, PDPT | 7);
        machine.write(PDPT, PD | 7);
        machine.write(PD, PT | 7);
        for large in 1..16 {
            machine.write(PD + 8 * large, large << 21 | 0x87);
        }
        for page in 0..512 {
            machine.write(PT + 8 * page, page << 12 | 7);
        }
        machine.code_at(CODE, code);
        machine.long_mode();
        machine
    }

    fn long_mode(&mut self) {
        let mut sregs = self.vcpu.sregs().unwrap();
        let flat = kvm_segment { limit: u32::MAX, g: 1, s: 1, present: 1, ..Default::default() };
        sregs.cs = kvm_segment { selector: CODE64, type_: 11, l: 1, ..flat };
        let data = kvm_segment { selector: 0x10, type_: 3, db: 1, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit) = (GDT, 0x3f, IDT, 0xfff);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, PML4, 0x620, 0xd00);
        self.vcpu.set_sregs(&sregs).unwrap();
        self.vcpu.set_regs(&kvm_regs { rip: CODE, rsp: CODE, rflags: 2, ..Default::default() }).unwrap();
    }

    fn write(&self, gpa: u64, value: u64) {
        self.ram.arena().write_u64(gpa, value).unwrap();
    }

    fn read(&self, gpa: u64) -> u64 {
        self.ram.arena().read_u64(gpa).unwrap()
    }

    /// The handler of a vector lies at an address in the first page of code.
    fn gate(&self, vector: u64, at: u64) {
        self.write(IDT + 16 * vector, at & 0xffff | u64::from(CODE64) << 16 | 0x8e00 << 32);
        self.write(IDT + 16 * vector + 8, 0);
    }

    /// Puts code elsewhere.
    fn code_at(&self, at: u64, code: impl FnOnce(&mut CodeAssembler) -> Result) {
        let mut a = CodeAssembler::new(64).unwrap();
        code(&mut a).unwrap();
        self.ram.arena().write_bytes(at, &a.assemble(at).unwrap()).unwrap();
    }

    fn step(&mut self) -> Exit {
        self.vcpu.run(Entry::default()).unwrap()
    }

    /// Runs to a write to a port, without any other exit.
    fn run_to(&mut self, expected: u16) -> kvm_regs {
        let exit = self.step();
        let regs = self.vcpu.regs().unwrap();
        assert!(matches!(exit, Exit::PioWrite { port, .. } if port == expected), "{exit:x?} {regs:#x?}");
        regs
    }

    /// Runs to the end of the test.
    fn finish(&mut self) -> kvm_regs {
        self.run_to(DONE)
    }

    fn count(&self, name: &str) -> u64 {
        self.vcpu.detail().iter().find(|(other, _)| other.contains(name)).map_or(0, |(_, n)| *n)
    }
}

fn done(a: &mut CodeAssembler) -> Result {
    a.out(u32::from(DONE), al)
}

/// Writes of the kernel may go to read-only pages.
fn clear_wp(a: &mut CodeAssembler) -> Result {
    a.mov(rax, cr0)?;
    a.and(eax, !(1 << 16))?;
    a.mov(cr0, rax)
}

/// Reads [`DATA`] so often that nobody expects its tables to change.
fn use_often(a: &mut CodeAssembler) -> Result {
    a.mov(rdi, DATA)?;
    for _ in 0..6 {
        a.mov(rbx, qword_ptr(rdi))?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
    }
    Ok(())
}

fn wrmsr(a: &mut CodeAssembler, index: u32, value: u32) -> Result {
    a.mov(ecx, index)?;
    a.mov(eax, value)?;
    a.mov(edx, 0)?;
    a.wrmsr()
}

#[test]
fn tables_are_filled_by_page_faults_and_kept_across_cr3_loads() {
    let mut m = Machine::new(|a| {
        let mut again = a.create_label();
        a.mov(ebx, 1000)?;
        a.mov(rsi, DATA)?;
        a.set_label(&mut again)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(qword_ptr(rsi), rbx)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.mov(rdi, rax)?;
        done(a)
    });
    assert_eq!(m.finish().rdi, PML4, "the guest reads its own CR3");
    assert_eq!(m.count("control-register access"), 2000);
    let filled = m.count("filled");
    assert!((1..10).contains(&filled), "{filled} faults");
    assert_eq!(m.count("injected"), 0);
}

/// Control registers are the guest's own, whatever the processor runs with.
#[test]
fn control_registers_read_back() {
    let mut m = Machine::new(|a| {
        clear_wp(a)?;
        a.mov(r8, cr0)?;
        a.mov(rax, cr4)?;
        a.or(eax, 0x80)?;
        a.mov(cr4, rax)?;
        a.mov(r9, cr4)?;
        wrmsr(a, 0xc000_0080, 0xd01)?;
        a.rdmsr()?;
        a.mov(r10, rax)?;
        a.smsw(r11)?;
        done(a)
    });
    let regs = m.finish();
    assert_eq!((regs.r8, regs.r9, regs.r10), (0x8000_0033, 0x6a0, 0xd01));
    assert_eq!(regs.r11, regs.r8);
    let sregs = m.vcpu.sregs().unwrap();
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (regs.r8, PML4, regs.r9, 0xd01));
}

/// MOV to control registers is checked as the processor would.
#[test]
fn impossible_control_registers_are_refused() {
    let cases: &[(&str, Code)] = &[
        ("CR0.PG without PE", |a| a.mov(cr0, rbx)),
        ("reserved bit of CR3", |a| a.mov(cr3, rdx)),
        ("reserved bit of CR4", |a| a.mov(cr4, rdx)),
        ("CR4.PAE cleared in long mode", |a| {
            a.mov(eax, 0x600)?;
            a.mov(cr4, rax)
        }),
        ("CR4.PCIDE with a PCID in CR3", |a| {
            a.mov(rax, PML4 | 5)?;
            a.mov(cr3, rax)?;
            a.mov(eax, 0x2_0620)?;
            a.mov(cr4, rax)
        }),
        ("paging off in 64-bit code", |a| {
            a.mov(eax, 0x1_0033)?;
            a.mov(cr0, rax)
        }),
        ("LME changed while paging", |a| wrmsr(a, 0xc000_0080, 0xc00)),
        ("reserved bit of EFER", |a| wrmsr(a, 0xc000_0080, 0x8d00)),
    ];
    for (what, code) in cases {
        let mut m = Machine::new(|a| {
            a.mov(rbx, 0x8000_0030u64)?;
            a.mov(rdx, 1u64 << 60)?;
            code(a)?;
            done(a)
        });
        m.gate(13, 0x9000);
        m.code_at(0x9000, |a| {
            a.mov(r15d, 13)?;
            done(a)
        });
        assert_eq!(m.finish().r15, 13, "{what}");
        let sregs = m.vcpu.sregs().unwrap();
        assert_eq!((sregs.cr0, sregs.efer), (0x8001_0033, 0xd00), "{what}");
    }
}

/// With CR0.WP clear the kernel writes to read-only pages of users, in every way that there is. Page tables used
/// with CR0.WP set cannot allow that: the engine does it.
#[test]
fn kernels_without_write_protection_write_to_read_only_pages() {
    let mut m = Machine::new(|a| {
        clear_wp(a)?;
        a.mov(rdi, DATA)?;
        a.mov(rbx, qword_ptr(rdi))?;
        a.mov(qword_ptr(rdi), 0x11)?;
        a.add(qword_ptr(rdi), 0x22)?;
        a.mov(eax, 0x44)?;
        a.lock().xadd(qword_ptr(rdi), rax)?;
        a.mov(r8, rax)?;
        a.mov(ecx, 5)?;
        a.xchg(qword_ptr(rdi + 8), rcx)?;
        a.mov(r9, rcx)?;
        a.mov(rax, 5i64)?;
        a.mov(edx, 6)?;
        a.lock().cmpxchg(qword_ptr(rdi + 8), rdx)?;
        // Push and pop with the stack there, and a copy that overlaps itself.
        a.lea(rsp, qword_ptr(rdi + 0x100))?;
        a.push(0x77)?;
        a.pop(r10)?;
        a.mov(rsi, rdi)?;
        a.lea(rdi, qword_ptr(rdi + 0x10))?;
        a.mov(ecx, 4)?;
        a.cld()?;
        a.rep().movsq()?;
        // Across the border to a page that is not there yet.
        a.mov(qword_ptr(DATA + 0xffc), 0x1234_5678)?;
        done(a)
    });
    m.write(DATA, 0x99);
    m.write(DATA + 8, 0x88);
    m.write(PT + 8 * (DATA >> 12), DATA | 5);
    let regs = m.finish();
    assert_eq!((regs.rbx, regs.r8, regs.r9, regs.r10), (0x99, 0x33, 0x88, 0x77));
    assert_eq!((m.read(DATA), m.read(DATA + 8), m.read(DATA + 0xf8)), (0x77, 6, 0x77));
    assert_eq!([0x10, 0x18, 0x20, 0x28].map(|at| m.read(DATA + at)), [0x77, 6, 0x77, 6]);
    assert_eq!((m.read(DATA + 0xff8) >> 32, m.read(DATA + 0x1000) as u32), (0x1234_5678, 0));
    assert!(m.count("emulated") >= 10, "{:?}", m.vcpu.detail());
}

/// A store of the emulated kind into a table of the guest's is noticed.
#[test]
fn tables_in_read_only_pages_are_followed() {
    let mut m = Machine::new(|a| {
        clear_wp(a)?;
        use_often(a)?;
        a.mov(rdx, (DATA + 0x1000) | 5)?;
        a.mov(qword_ptr(PT + 8 * (DATA >> 12)), rdx)?;
        a.invlpg(byte_ptr(rdi))?;
        a.mov(rcx, qword_ptr(rdi))?;
        done(a)
    });
    m.write(PT + 8 * (PT >> 12), PT | 5);
    m.write(DATA, 1);
    m.write(DATA + 0x1000, 2);
    let regs = m.finish();
    assert_eq!((regs.rbx, regs.rcx), (1, 2));
}

/// A device writes to the guest's tables.
#[test]
fn dma_into_tables_is_seen_after_a_flush() {
    let mut m = Machine::new(|a| {
        use_often(a)?;
        a.out(0x80, al)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rcx, qword_ptr(rdi))?;
        done(a)
    });
    m.write(DATA, 1);
    m.write(DATA + 0x1000, 2);
    m.run_to(0x80);
    let entry = (DATA + 0x1000) | 7;
    m.ram.memory().write_obj(entry, GuestAddress(PT + 8 * (DATA >> 12))).unwrap();
    let regs = m.finish();
    assert_eq!((regs.rbx, regs.rcx), (1, 2));
}

/// An instruction that reads from a device and writes to a page that is not in the shadow tables yet: the device
/// sees one access.
#[test]
fn no_device_sees_an_access_twice() {
    let mut m = Machine::new(|a| {
        a.mov(rsi, DEVICE)?;
        a.mov(rdi, DATA + 0x7_0ffc)?;
        a.cld()?;
        a.movsq()?;
        a.movsq()?;
        a.lock().inc(dword_ptr(DEVICE + 0x100))?;
        done(a)
    });
    let mut seen = Vec::new();
    let mut entry = Entry::default();
    loop {
        match m.vcpu.run(entry).unwrap() {
            Exit::MmioRead { addr, .. } => {
                seen.push((addr, None));
                entry = trapline_vcpu::Answer::Value(0x1_0000 + seen.len() as u64).into();
            }
            Exit::MmioWrite { addr, value, .. } => {
                seen.push((addr, Some(value)));
                entry = Entry::default();
            }
            Exit::PioWrite { port: DONE, .. } => break,
            exit => panic!("{exit:x?}"),
        }
    }
    let expected =
        [(DEVICE, None), (DEVICE + 8, None), (DEVICE + 0x100, None), (DEVICE + 0x100, Some(0x1_0004))];
    assert_eq!(seen, expected);
    assert_eq!(m.read(DATA + 0x7_1000) >> 32, 0x1_0002);
}

/// SMAP does not let accesses to descriptor tables through, whatever RFLAGS.AC is. On shadow tables such an access
/// looks like any other.
#[test]
fn descriptor_tables_in_pages_of_users_fault_with_smap() {
    let cpu = Some(CpuModel::named("max").unwrap());
    let config = VmConfig { cpu, ..VmConfig::default() };
    let mut m = Machine::with(config, RamConfig::new(RAM), |a| {
        // Accessed and so in the tables, by an access that RFLAGS.AC allows.
        a.mov(rsi, GDT)?;
        a.mov(rbx, qword_ptr(rsi))?;
        a.mov(qword_ptr(rsi + 0x38), 0)?;
        a.mov(eax, 0x10)?;
        a.mov(ds, ax)?;
        done(a)
    });
    for page in 0..512 {
        let user = if page << 12 == GDT { 4 } else { 0 };
        m.write(PT + 8 * page, page << 12 | 3 | user);
    }
    // Not accessed: loading it would write.
    m.write(GDT + 0x10, 0x00cf_9200_0000_ffff);
    m.gate(14, 0x9000);
    m.code_at(0x9000, |a| {
        a.mov(r8, cr2)?;
        a.pop(r9)?;
        done(a)
    });
    let mut sregs = m.vcpu.sregs().unwrap();
    sregs.cr4 |= 1 << 21;
    m.vcpu.set_sregs(&sregs).unwrap();
    let mut regs = m.vcpu.regs().unwrap();
    regs.rflags |= 1 << 18;
    m.vcpu.set_regs(&regs).unwrap();
    // The handler's gate needs its code segment, which is read from the same table.
    m.write(GDT, 0);
    let exit = m.step();
    // #PF, whose delivery reads the table again: #PF, #DF, shutdown.
    assert_eq!(exit, Exit::Shutdown, "{:#x?}", m.vcpu.regs().unwrap());
}

/// The guest's own page fault during the delivery of a page fault is a double fault.
#[test]
fn a_page_fault_for_a_page_fault_is_a_double_fault() {
    let mut m = Machine::new(|a| {
        a.mov(rsp, DATA)?;
        a.mov(rbx, qword_ptr(0x7fff_0000u64))?;
        done(a)
    });
    // A TSS with a good stack for #DF.
    const TSS: u64 = 0xa000;
    m.write(GDT + 0x20, 0x0000_8b00_0000_0067 | TSS << 16);
    m.write(GDT + 0x28, 0);
    let mut sregs = m.vcpu.sregs().unwrap();
    sregs.tr =
        kvm_segment { base: TSS, limit: 0x67, selector: 0x20, type_: 11, present: 1, ..Default::default() };
    m.vcpu.set_sregs(&sregs).unwrap();
    m.ram.arena().write_bytes(TSS + 36, &0x7000u64.to_le_bytes()).unwrap();
    m.gate(14, 0x9000);
    m.gate(8, 0x9100);
    m.write(IDT + 16 * 8, m.read(IDT + 16 * 8) | 1 << 32);
    m.code_at(0x9000, |a| {
        a.mov(r8d, 14)?;
        done(a)
    });
    m.code_at(0x9100, |a| {
        a.mov(r8d, 8)?;
        a.mov(r9, cr2)?;
        a.pop(r10)?;
        done(a)
    });
    // The stack grows into a page that is not there.
    m.write(PT + 8 * ((DATA >> 12) - 1), 0);
    let regs = m.finish();
    assert_eq!((regs.r8, regs.r10), (8, 0));
    assert_eq!(regs.r9, DATA - 8);
}

/// IRET that faults only on shadow tables does not end blocking by NMI early.
#[test]
fn nmis_stay_blocked_through_a_fault_of_iret() {
    let mut m = Machine::new(|a| {
        a.out(0x80, al)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(r8d, 2)?;
        a.jne(wait)?;
        done(a)
    });
    m.gate(2, 0x9000);
    m.code_at(0x9000, |a| {
        a.inc(r8d)?;
        a.mov(r9, rsp)?;
        // An interrupt frame in a page never touched.
        a.mov(rsi, rsp)?;
        a.mov(rsp, DATA + 0x3_0000)?;
        a.out(0x81, al)?;
        a.iretq()
    });
    m.run_to(0x80);
    m.vcpu.inject_nmi().unwrap();
    let stack = m.run_to(0x81).r9;
    let mut frame = [0; 40];
    m.ram.arena().read_bytes(stack, &mut frame).unwrap();
    m.ram.arena().write_bytes(DATA + 0x3_0000, &frame).unwrap();
    // It waits for the first to end.
    m.vcpu.inject_nmi().unwrap();
    let before = m.count("filled");
    let regs = m.run_to(0x81);
    assert!(m.count("filled") > before, "the frame was read");
    assert_eq!((regs.r8, regs.r9), (2, stack), "the second one came behind IRET");
}

/// So few pages that tables are dropped all the time.
#[test]
fn tables_are_dropped_when_pages_run_out() {
    let ram = RamConfig { root_area: 1 << 20, ..RamConfig::new(16 << 20) };
    let mut m = Machine::with(VmConfig::default(), ram, |a| {
        // One page of each 2 MiB, three times over, 400 times.
        let (mut page, mut round) = (a.create_label(), a.create_label());
        a.mov(edi, 3)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut round)?;
        a.mov(rsi, 0x4000_0000u64)?;
        a.mov(ecx, 400)?;
        a.set_label(&mut page)?;
        a.add(rbx, qword_ptr(rsi))?;
        a.inc(qword_ptr(rsi + 8))?;
        a.add(rsi, 0x20_0000)?;
        a.dec(ecx)?;
        a.jnz(page)?;
        a.dec(edi)?;
        a.jnz(round)?;
        done(a)
    });
    // The second GiB: 512 tables, each of which maps one page of data, the same for all.
    let (directory, tables) = (0x10_0000, 0x20_0000u64);
    m.write(PDPT + 8, directory | 7);
    for n in 0..400 {
        m.write(directory + 8 * n, (tables + n * 0x1000) | 7);
        m.write(tables + n * 0x1000, DATA | 7);
    }
    m.write(DATA, 1);
    assert_eq!(m.finish().rbx, 1200);
    assert_eq!(m.read(DATA + 8), 1200);
}

#[test]
fn too_small_a_root_area_is_refused() {
    let vm = create_vm(Engine::Soft, &VmConfig { paging: Paging::Shadow, ..VmConfig::default() }).unwrap();
    let ram = GuestRam::new(&RamConfig { root_area: 0x4_0000, ..RamConfig::new(RAM) }).unwrap();
    let error = vm.set_memory(ram.arena(), ram.slots()).unwrap_err();
    assert!(error.to_string().contains("root area"), "{error}");
}

/// The guest leaves paging and protection, and comes back: what it changed meanwhile, unseen, is seen.
#[test]
fn changes_made_without_paging_are_seen() {
    let mut m = Machine::new(|a| {
        use_often(a)?;
        a.out(0x80, al)?;
        a.mov(rcx, qword_ptr(rdi))?;
        done(a)
    });
    m.write(DATA, 1);
    m.write(DATA + 0x1000, 2);
    m.run_to(0x80);
    assert_eq!(m.vcpu.complete(trapline_vcpu::Answer::None).unwrap(), None);
    let (regs, sregs) = (m.vcpu.regs().unwrap(), m.vcpu.sregs().unwrap());
    // In real mode, at another place.
    let mut real = sregs;
    (real.cr0, real.cr4, real.efer) = (0x10, 0, 0);
    let segment = |selector: u16| kvm_segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        type_: 3,
        s: 1,
        present: 1,
        ..Default::default()
    };
    (real.ds, real.es, real.ss) = (segment(0), segment(0), segment(0));
    (real.fs, real.gs) = (segment(0), segment(0));
    real.cs = kvm_segment { type_: 11, ..segment(0) };
    let mut a = CodeAssembler::new(16).unwrap();
    a.mov(dword_ptr(bx), eax).unwrap();
    a.out(u32::from(DONE), al).unwrap();
    m.ram.arena().write_bytes(0xb000, &a.assemble(0xb000).unwrap()).unwrap();
    m.vcpu.set_sregs(&real).unwrap();
    let entry = PT + 8 * (DATA >> 12);
    let change =
        kvm_regs { rip: 0xb000, rax: (DATA + 0x1000) | 7, rbx: entry, rflags: 2, ..Default::default() };
    m.vcpu.set_regs(&change).unwrap();
    m.finish();
    assert_eq!(m.read(entry), (DATA + 0x1000) | 7);
    m.vcpu.set_sregs(&sregs).unwrap();
    m.vcpu.set_regs(&regs).unwrap();
    assert_eq!(m.finish().rcx, 2);
}
