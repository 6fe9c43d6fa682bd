//! A guest with handlers for all exceptions, and what it does on each engine: the same exits, the same
//! state in the end.
//!
//! A handler reports vector, error code, return address, privilege level and CR2 at ports, and goes on, at
//! privilege level 0, at the address in R15.

use iced_x86::code_asm::*;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use trapline_device::AccessSize;
use trapline_vcpu::{Answer, Exit, VcpuState, VmConfig};

use crate::harness::*;

pub const TSS: u64 = 0x1800;
/// The stack that an exception at privilege level 3 gets; that of IST 1.
pub const STACK0: u64 = 0x1_e000;
const STACK_IST: u64 = 0x1_d000;
pub const USER_STACK: u64 = 0x1_f000;
const HANDLERS: u64 = 0x1_8000;
/// Selectors beyond those of the harness: user data, 64-bit and 32-bit user code, TSS, one not present.
pub const USER_DATA: u16 = 0x20 | 3;
pub const USER_CODE64: u16 = 0x28 | 3;
pub const USER_CODE32: u16 = 0x30 | 3;
pub const TASK: u16 = 0x38;
pub const ABSENT: u16 = 0x48;
/// The last one.
const GDT_LIMIT: u16 = 0x4f;

const REPORT: u16 = 0xe0;
/// Vectors that push an error code.
const WITH_ERROR: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];

/// An exception as its handler reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    pub vector: u8,
    pub error: u32,
    /// From the start of the code.
    pub at: u32,
    pub cpl: u8,
    /// CR2 of a page fault.
    pub address: Option<u32>,
}

/// An access of the guest, however the engine cut it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    In(u16, AccessSize),
    Out(u16, AccessSize, u32),
    Read(u64, AccessSize),
    Write(u64, AccessSize, u64),
    Ended(Exit),
}

/// All that an engine shows of a run.
#[derive(Debug)]
pub struct Run {
    pub engine: Subject,
    pub caught: Vec<Caught>,
    pub events: Vec<Event>,
    pub regs: kvm_regs,
    segments: Vec<(u16, u64, u32, [u8; 6])>,
    control: [u64; 5],
    fpu: (u16, u16, u8, u32, [[u8; 16]; 16]),
    pub debug: ([u64; 4], u64, u64),
    ram: Vec<u8>,
}

impl Run {
    /// What memory holds in the end.
    pub fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.ram[at as usize..at as usize + 8].try_into().unwrap())
    }
}

/// A machine in long mode in this world.
pub fn machine(engine: Subject, config: &VmConfig, code: impl FnOnce(&mut Asm) -> AsmResult) -> Machine {
    let mut machine = Machine::with_config(engine, config, Mode::Long, code);
    let descriptor = |attributes: u64| attributes << 40 | 0xf_0000 << 32 | 0xffff;
    let task = 0x8b << 40 | TSS << 16 | 0x67;
    let more = [descriptor(0xc0f3), descriptor(0xa0fb), descriptor(0xc0fb), task, 0, descriptor(0xc013)];
    for (n, value) in (4..).zip(more) {
        machine.write_u64(GDT + 8 * n, value);
    }
    machine.write_u64(TSS + 4, STACK0);
    machine.write_u64(TSS + 0x24, STACK_IST);
    machine.write(TSS + 0x66, &0x68u16.to_le_bytes()); // no I/O permission map
    let (bytes, handlers) = assemble(64, HANDLERS, handlers);
    machine.write(HANDLERS, &bytes);
    for (vector, at) in handlers {
        // INT3 and INTO may be used by programs.
        let rights: u64 = if matches!(vector, 3 | 4) { 0xee00 } else { 0x8e00 };
        let ist = u64::from(vector == 8);
        let low = at & 0xffff | (rights | ist) << 32 | (at & 0xffff_0000) << 32 | u64::from(CODE64) << 16;
        machine.write_u64(IDT + u64::from(vector) * 16, low);
        machine.write_u64(IDT + u64::from(vector) * 16 + 8, 0);
    }
    let mut sregs = machine.vcpu.sregs().unwrap();
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.limit = 32 * 16 - 1;
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: TASK,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    machine.vcpu.set_sregs(&sregs).unwrap();
    machine
}

fn handlers(a: &mut Asm) -> AsmResult {
    let mut common = a.create_label();
    for vector in 0..32u8 {
        a.handler(vector)?;
        if !WITH_ERROR.contains(&vector) {
            a.push(0)?;
        }
        a.push(i32::from(vector))?;
        a.jmp(common)?;
    }
    a.set_label(&mut common)?;
    a.push(rax)?;
    // RAX, vector, error code, RIP, CS, RFLAGS, RSP, SS.
    for (port, offset) in [(0, 8), (1, 16), (2, 24), (3, 32)] {
        a.mov(eax, dword_ptr(rsp + offset))?;
        a.out(u32::from(REPORT) + port, eax)?;
    }
    a.mov(rax, cr2)?;
    a.out(u32::from(REPORT) + 4, eax)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.mov(qword_ptr(rsp), r15)?;
    a.mov(qword_ptr(rsp + 8), i32::from(CODE64))?;
    a.mov(qword_ptr(rsp + 16), 2)?;
    a.mov(qword_ptr(rsp + 24), CODE as i32)?;
    a.mov(qword_ptr(rsp + 32), i32::from(DATA32))?;
    a.iretq()
}

/// Goes to privilege level 3, 64-bit, at what follows. The data segments are those of programs already:
/// that IRET takes the kernel's away is not for every engine's emulator.
pub fn to_user(a: &mut Asm) -> AsmResult {
    let mut there = a.create_label();
    a.mov(eax, i32::from(USER_DATA))?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(fs, eax)?;
    a.mov(gs, eax)?;
    a.push(i32::from(USER_DATA))?;
    a.push(USER_STACK as i32)?;
    a.push(0x202)?;
    a.push(i32::from(USER_CODE64))?;
    a.lea(rax, ptr(there))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut there)?;
    a.nop()
}

/// Emits `code` so that an exception in it goes on behind it.
pub fn caught(a: &mut Asm, code: impl FnOnce(&mut Asm) -> AsmResult) -> AsmResult {
    let mut next = a.create_label();
    a.lea(r15, ptr(next))?;
    code(a)?;
    a.set_label(&mut next)?;
    a.nop()
}

/// What a device answers: something that depends on nothing but the address.
fn answer(address: u64, size: AccessSize) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20) & size.ones()
}

/// Runs to the end, or to an exit that nobody can answer.
pub fn run(machine: &mut Machine) -> Run {
    let (mut events, mut caught) = (Vec::new(), Vec::new());
    let mut reported = [0; 5];
    let mut next = Answer::None;
    loop {
        let exit = machine.run(std::mem::take(&mut next));
        match exit {
            Exit::PioWrite { port: DONE, .. } => break,
            Exit::PioWrite { port, value, .. } if (REPORT..REPORT + 5).contains(&port) => {
                reported[usize::from(port - REPORT)] = value;
                if port == REPORT + 4 {
                    let [vector, error, rip, selector, page] = reported;
                    let (vector, cpl) = (vector as u8, selector as u8 & 3);
                    let at = rip.wrapping_sub(CODE as u32);
                    let address = (vector == 14).then_some(page);
                    caught.push(Caught { vector, error, at, cpl, address });
                }
            }
            Exit::PioWrite { port, size, value } => events.push(Event::Out(port, size, value)),
            Exit::PioWriteBlock { port, size, .. } => {
                for element in machine.vcpu.io_data().chunks(size.bytes()) {
                    let mut value = [0; 4];
                    value[..element.len()].copy_from_slice(element);
                    events.push(Event::Out(port, size, u32::from_le_bytes(value)));
                }
            }
            Exit::PioRead { port, size } => {
                events.push(Event::In(port, size));
                next = Answer::Value(answer(port.into(), size));
            }
            Exit::PioReadBlock { port, size, .. } => {
                for element in machine.vcpu.io_data().chunks_mut(size.bytes()) {
                    events.push(Event::In(port, size));
                    let value = answer(port.into(), size).to_le_bytes();
                    element.copy_from_slice(&value[..element.len()]);
                }
                next = Answer::Block;
            }
            Exit::MmioRead { addr, size } => {
                events.push(Event::Read(addr, size));
                next = Answer::Value(answer(addr, size));
            }
            Exit::MmioWrite { addr, size, value } => events.push(Event::Write(addr, size, value)),
            exit => {
                events.push(Event::Ended(exit));
                return finished(machine, events, caught);
            }
        }
    }
    assert_eq!(machine.vcpu.complete(Answer::None).unwrap(), None);
    finished(machine, events, caught)
}

const SEGMENTS: [fn(&kvm_sregs) -> kvm_segment; 7] =
    [|s| s.cs, |s| s.ds, |s| s.es, |s| s.fs, |s| s.gs, |s| s.ss, |s| s.tr];

fn finished(machine: &Machine, events: Vec<Event>, caught: Vec<Caught>) -> Run {
    let (sregs, fpu, debug) =
        (machine.vcpu.sregs().unwrap(), machine.vcpu.fpu().unwrap(), machine.vcpu.debugregs().unwrap());
    let segment = |s: kvm_segment| {
        // What an unusable segment looks like is the engine's business.
        if s.unusable != 0 || s.present == 0 {
            return (s.selector, 0, 0, [0; 6]);
        }
        (s.selector, s.base, s.limit, [s.type_ | 1, s.dpl, s.db, s.s, s.l, s.g])
    };
    let mut ram = vec![0; RAM as usize];
    machine.ram.arena().read_bytes(0, &mut ram).unwrap();
    // Processors may set accessed bits of their own accord.
    let tables = (PML4..PML4 + 0x2000).chain(PD..PD + 0x4000).step_by(8);
    tables.for_each(|at| ram[at as usize] &= !0x60);
    Run {
        engine: machine.engine,
        caught,
        events,
        regs: machine.vcpu.regs().unwrap(),
        segments: SEGMENTS.map(|of| segment(of(&sregs))).to_vec(),
        control: [sregs.cr0, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer],
        fpu: (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr, fpu.xmm),
        debug: (debug.db, debug.dr6, debug.dr7),
        ram,
    }
}

/// Runs a program on every engine: each must do and leave the same. Shows each run to `check`.
pub fn same_everywhere(config: &VmConfig, program: impl Fn(&mut Asm) -> AsmResult, check: impl Fn(&Run)) {
    Scenario { config, ..Scenario::new() }.run(program, check);
}

/// How a program is run.
pub struct Scenario<'a> {
    pub config: &'a VmConfig,
    /// What is done to each machine before it runs.
    pub prepare: &'a dyn Fn(&mut Machine),
    /// What a KVM that emulates all guest code does wrong: it is left out.
    pub emulation: Option<&'a str>,
}

impl Scenario<'_> {
    pub fn new() -> Self {
        static DEFAULT: std::sync::LazyLock<VmConfig> = std::sync::LazyLock::new(VmConfig::default);
        Self { config: &DEFAULT, prepare: &|_| {}, emulation: None }
    }

    /// See [`same_everywhere`].
    pub fn run(&self, program: impl Fn(&mut Asm) -> AsmResult, check: impl Fn(&Run)) {
        let runs = std::cell::RefCell::new(Vec::<Run>::new());
        let on = |engine| {
            let mut machine = machine(engine, self.config, &program);
            (self.prepare)(&mut machine);
            let run = run(&mut machine);
            check(&run);
            runs.borrow_mut().push(run);
        };
        match self.emulation {
            Some(why) => on_native_engines(why, on),
            None => on_every_engine(on),
        }
        let runs = runs.into_inner();
        let Some((first, others)) = runs.split_first() else { return };
        for other in others {
            compare(first, other);
        }
    }
}

/// Fails with what differs, not with two megabytes of memory.
fn compare(a: &Run, b: &Run) {
    let (one, other) = (a.engine, b.engine);
    assert_eq!(a.caught, b.caught, "exceptions, {one} and {other}");
    assert_eq!(a.events, b.events, "accesses, {one} and {other}");
    assert_eq!(a.regs, b.regs, "registers, {one} and {other}");
    assert_eq!(a.segments, b.segments, "segments, {one} and {other}");
    assert_eq!(a.control, b.control, "control registers, {one} and {other}");
    assert_eq!(a.fpu, b.fpu, "x87 and SSE, {one} and {other}");
    assert_eq!(a.debug, b.debug, "debug registers, {one} and {other}");
    if a.ram != b.ram {
        let bytes = (0..).zip(a.ram.iter().zip(&b.ram));
        let differ: Vec<_> = bytes.filter(|(_, (x, y))| x != y).take(16).collect();
        panic!("memory, {one} and {other}: {differ:x?}");
    }
}

/// Moves a run from one machine to a fresh one of another engine: all of the state, and the memory.
pub fn move_to(machine: Machine, engine: Subject, config: &VmConfig) -> Machine {
    let msrs = machine.vm.saved_msrs().unwrap();
    let state = VcpuState::save(&*machine.vcpu, &msrs).unwrap();
    let bytes = serde_json::to_vec(&state).unwrap();
    let mut ram = vec![0; RAM as usize];
    machine.ram.arena().read_bytes(0, &mut ram).unwrap();
    let clock = machine.vm.clock().unwrap();
    drop(machine);
    let mut there = Machine::with_config(engine, config, Mode::Real, |a| a.ud2());
    there.write(0, &ram);
    let state: VcpuState = serde_json::from_slice(&bytes).unwrap();
    state.restore(&mut *there.vcpu).unwrap();
    there.vm.set_clock(&clock).unwrap();
    let again = VcpuState::save(&*there.vcpu, &[]).unwrap();
    assert_eq!(
        (again.regs, again.debugregs, again.events.interrupt),
        (state.regs, state.debugregs, state.events.interrupt)
    );
    assert_eq!(
        (again.sregs.cr0, again.sregs.cr3, again.sregs.cr4, again.sregs.efer, again.sregs.apic_base),
        (state.sregs.cr0, state.sregs.cr3, state.sregs.cr4, state.sregs.efer, state.sregs.apic_base)
    );
    there
}
