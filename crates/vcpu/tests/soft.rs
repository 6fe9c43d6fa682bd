//! What only the soft engine promises: deadlines, counts by exit reason, task switches, entry failures.

use std::sync::Arc;

use iced_x86::code_asm::*;
use kvm_bindings::kvm_regs;
use trapline_device::{Clock, HostClock};
use trapline_memory::{GuestRam, RamConfig};
use trapline_vcpu::{Engine, Entry, Exit, InstructionClock, Vcpu, VcpuState, Vm, VmConfig, create_vm};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x7000;
const DATA: u64 = 0x9000;
const GDT: u64 = 0x1000;

struct Machine {
    vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    ram: GuestRam,
    clock: Arc<dyn Clock>,
}

type Code = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

/// A vCPU in flat 32-bit protected mode that is about to execute `code`.
fn machine(local_apic: bool, code: Code) -> Machine {
    let clock: Arc<dyn Clock> = Arc::new(HostClock::new());
    let config = VmConfig { local_apic, clock: clock.clone(), ..VmConfig::default() };
    let vm = create_vm(Engine::Soft, &config).unwrap();
    let ram = GuestRam::new(&RamConfig::new(1 << 20)).unwrap();
    // Before the memory is there: a vCPU may be made first.
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid(&vm.supported_cpuid().unwrap()).unwrap();
    vm.set_memory(ram.arena(), ram.slots()).unwrap();
    let descriptor = |rights: u64, base: u64, limit: u64| {
        rights << 40 | base << 16 | limit & 0xffff | (limit >> 16 & 15) << 48
    };
    for (n, value) in [0, descriptor(0xc09b, 0, 0xf_ffff), descriptor(0xc093, 0, 0xf_ffff)].iter().enumerate()
    {
        ram.arena().write_u64(GDT + 8 * n as u64, *value).unwrap();
    }
    let mut a = CodeAssembler::new(32).unwrap();
    code(&mut a).unwrap();
    ram.arena().write_bytes(CODE, &a.assemble(CODE).unwrap()).unwrap();
    let mut sregs = vcpu.sregs().unwrap();
    let mut flat = sregs.ds;
    (flat.limit, flat.g, flat.db, flat.type_, flat.selector) = (u32::MAX, 1, 1, 3, 0x10);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (flat, flat, flat, flat, flat);
    (flat.type_, flat.selector) = (11, 8);
    (sregs.cs, sregs.cr0) = (flat, 0x11);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x3f);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: CODE, rsp: CODE, rflags: 2, ..Default::default() }).unwrap();
    Machine { vm, vcpu, ram, clock }
}

impl Machine {
    fn step(&mut self) -> Exit {
        self.vcpu.run(Entry::default()).unwrap()
    }

    /// Runs to a moment from now.
    fn step_until(&mut self, from_now: u64) -> Exit {
        let deadline = Some(self.clock.now() + from_now);
        self.vcpu.run(Entry { deadline, ..Entry::default() }).unwrap()
    }

    fn count(&self, reason: &str) -> u64 {
        self.vcpu.detail().iter().find(|(name, _)| name == reason).map_or(0, |(_, n)| *n)
    }
}

#[test]
fn a_deadline_ends_a_loop_and_a_wait() {
    let mut looping = machine(true, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(again)
    });
    let before = looping.clock.now();
    assert_eq!(looping.step_until(5_000_000), Exit::Deadline);
    assert!(looping.clock.now() >= before + 5_000_000);
    assert!(looping.vcpu.regs().unwrap().rax > 0);
    assert!(looping.count("VMX-preemption timer expired") >= 1, "{:?}", looping.vcpu.detail());

    let mut halted = machine(true, |a| a.hlt());
    let before = halted.clock.now();
    assert_eq!(halted.step_until(5_000_000), Exit::Deadline);
    assert!(halted.clock.now() >= before + 5_000_000);
    assert_eq!(halted.count("HLT"), 1);
    // A moment in the past comes before anything else.
    assert_eq!(halted.step_until(0), Exit::Deadline);
}

#[test]
fn exits_are_counted_by_reason() {
    let mut m = machine(false, |a| {
        a.cpuid()?;
        a.out(0x80, al)?;
        a.cpuid()?;
        a.hlt()
    });
    assert!(matches!(m.step(), Exit::PioWrite { port: 0x80, .. }));
    assert_eq!(m.step(), Exit::Halt);
    assert_eq!((m.count("CPUID"), m.count("I/O instruction"), m.count("HLT")), (2, 1, 1));
    assert_eq!(m.vcpu.stats().total(), 2, "what the board saw");
}

/// Who spins with PAUSE gives its core away now and then: the processor that it waits for may need it.
#[test]
fn long_loops_of_pause_exit() {
    let mut m = machine(false, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 200_000)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    assert_eq!(m.step(), Exit::Halt);
    let exits = m.count("PAUSE");
    assert!((1..100_000).contains(&exits), "{exits}");
    assert_eq!(m.vcpu.regs().unwrap().rcx, 0);
}

/// The task switch is a VM exit that the engine answers by letting it happen.
#[test]
fn a_far_jump_to_a_tss_switches_the_task() {
    const OLD_TSS: u64 = 0x2000;
    const NEW_TSS: u64 = 0x3000;
    const NEW_CODE: u64 = 0x8000;
    let mut m = machine(false, |a| {
        // LTR 0x18; JMP 0x20:0
        a.mov(ax, 0x18)?;
        a.ltr(ax)?;
        a.db(&[0xea, 0, 0, 0, 0, 0x20, 0])
    });
    for (n, tss) in [(3, OLD_TSS), (4, NEW_TSS)] {
        m.ram.arena().write_u64(GDT + 8 * n, 0x89 << 40 | tss << 16 | 0x67).unwrap();
    }
    let field = |at: u64, value: u32| m.ram.arena().write_bytes(NEW_TSS + at, &value.to_le_bytes()).unwrap();
    field(0x20, NEW_CODE as u32);
    field(0x24, 2);
    field(0x28, 0x1234_5678);
    field(0x38, CODE as u32);
    for (at, selector) in [(0x48, 0x10), (0x4c, 0x08), (0x50, 0x10), (0x54, 0x10), (0x58, 0x10), (0x5c, 0x10)]
    {
        field(at, selector);
    }
    m.ram.arena().write_bytes(NEW_CODE, &[0xf4]).unwrap();
    assert_eq!(m.step(), Exit::Halt);
    let (regs, sregs) = (m.vcpu.regs().unwrap(), m.vcpu.sregs().unwrap());
    assert_eq!((regs.rip, regs.rax, sregs.tr.selector), (NEW_CODE + 1, 0x1234_5678, 0x20));
    assert_eq!(m.count("task switch"), 1);
}

#[test]
fn a_state_that_no_processor_is_in_fails_the_entry() {
    let mut m = machine(false, |a| a.hlt());
    let mut sregs = m.vcpu.sregs().unwrap();
    // A code segment that is a data segment.
    sregs.cs.type_ = 2;
    m.vcpu.set_sregs(&sregs).unwrap();
    assert_eq!(m.step(), Exit::FailEntry { reason: 0x8000_0021 });
}

/// A device overwrites code that has run, through its own view of memory.
#[test]
fn dma_into_code_is_seen() {
    let mut m = machine(false, |a| {
        a.mov(al, 1)?;
        a.hlt()
    });
    assert_eq!(m.step(), Exit::Halt);
    assert_eq!(m.vcpu.regs().unwrap().rax, 1);
    m.ram.memory().write_slice(&[0xb0, 2, 0xf4], GuestAddress(CODE)).unwrap();
    m.vcpu.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..Default::default() }).unwrap();
    assert_eq!(m.step(), Exit::Halt);
    assert_eq!(m.vcpu.regs().unwrap().rax, 2);
}

/// Memory is replaced by another arena: the vCPU goes on where it was.
#[test]
fn a_vcpu_moves_to_another_arena() {
    let mut m = machine(true, |a| {
        a.mov(eax, 0x1234)?;
        a.mov(dword_ptr(DATA as u32), eax)?;
        a.out(0x80, al)?;
        a.add(eax, dword_ptr(DATA as u32))?;
        a.out(0x80, al)
    });
    assert!(matches!(m.step(), Exit::PioWrite { value: 0x34, .. }));
    let msrs = m.vm.saved_msrs().unwrap();
    let before = VcpuState::save(&*m.vcpu, &msrs).unwrap();
    let other = GuestRam::new(&RamConfig::new(1 << 20)).unwrap();
    let mut bytes = vec![0; 1 << 20];
    m.ram.arena().read_bytes(0, &mut bytes).unwrap();
    other.arena().write_bytes(0, &bytes).unwrap();
    m.vm.set_memory(other.arena(), other.slots()).unwrap();
    assert!(matches!(m.step(), Exit::PioWrite { value: 0x68, .. }));
    let after = VcpuState::save(&*m.vcpu, &msrs).unwrap();
    assert_eq!(after.sregs, before.sregs);
}

/// CR8 is the local APIC's task priority; x2APIC and TSC deadline work through MSRs.
#[test]
fn x2apic_and_tsc_deadline() {
    let mut m = machine(true, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        a.mov(ecx, 0x80f)?;
        a.mov(eax, 0x1ff)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, 0x832)?;
        a.mov(eax, 0x4_0041)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.add(eax, 1_000_000)?;
        a.adc(edx, 0)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    });
    // An interrupt gate for vector 0x41 that leads to HLT with interrupts off, behind an OUT.
    const IDT: u64 = 0x4000;
    const HANDLER: u64 = 0x8000;
    m.ram.arena().write_u64(IDT + 8 * 0x41, HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32).unwrap();
    m.ram.arena().write_bytes(HANDLER, &[0xe6, 0x80]).unwrap();
    let mut sregs = m.vcpu.sregs().unwrap();
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0x7ff);
    m.vcpu.set_sregs(&sregs).unwrap();
    let before = m.clock.now();
    assert!(matches!(m.step(), Exit::PioWrite { port: 0x80, .. }), "{:?}", m.vcpu.regs());
    assert!(m.clock.now() - before >= 1_000_000, "not before its time");
    assert_eq!(m.vcpu.sregs().unwrap().apic_base, 0xfee0_0d00);
}

/// The shadow of STI reaches over HLT, so that the window is not seen before.
#[test]
fn the_window_opens_behind_hlt() {
    let mut m = machine(true, |a| {
        a.sti()?;
        a.hlt()?;
        a.hlt()
    });
    let mut sregs = m.vcpu.sregs().unwrap();
    sregs.apic_base = 0xfee0_0100; // disabled: INTR comes to the processor itself
    m.vcpu.set_sregs(&sregs).unwrap();
    let deadline = Some(m.clock.now() + 5_000_000_000);
    let window = Entry { want_window: true, deadline, ..Entry::default() };
    assert_eq!(m.vcpu.run(window).unwrap(), Exit::InterruptWindow);
    assert_eq!((m.count("HLT"), m.vcpu.regs().unwrap().rip), (1, CODE + 2));
    assert!(m.vcpu.ready_for_extint());
}

#[test]
fn counted_time_has_one_vcpu_and_no_kvm() {
    let icount = Arc::new(InstructionClock::new(3).unwrap());
    let config = VmConfig { icount: Some(icount.clone()), ..VmConfig::default() };
    let vm = create_vm(Engine::Soft, &config).unwrap();
    vm.create_vcpu(0).unwrap();
    let refused = vm.create_vcpu(1).err().unwrap();
    assert!(refused.to_string().contains("second vcpu"), "{refused}");
    assert_eq!((icount.now(), vm.clock().unwrap().clock), (0, 0), "nothing was executed");
    let refused = create_vm(Engine::Kvm, &config).err().unwrap();
    assert!(refused.to_string().contains("not supported by the kvm engine"), "{refused}");
    assert!(InstructionClock::new(InstructionClock::MAX_SHIFT + 1).is_err());
}

/// State that XCR0 does not let the guest see may be in an XSAVE area of another engine's.
#[test]
fn components_that_are_not_enabled_are_left_out() {
    let mut m = machine(false, |a| a.hlt());
    let mut xsave = m.vcpu.xsave().unwrap();
    let (xstate_bv, avx) = (512 / 4, 1 << 2);
    xsave.region[160 / 4] = 0x1234_5678; // XMM0
    xsave.region[xstate_bv] |= avx;
    m.vcpu.set_xsave(&xsave).unwrap();
    let there = m.vcpu.xsave().unwrap();
    assert_eq!((there.region[160 / 4], there.region[xstate_bv] & avx), (0x1234_5678, 0));
}
