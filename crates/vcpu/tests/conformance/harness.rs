//! A machine small enough to set up for each test: 2 MiB of RAM, one vCPU, a guest assembled on the spot.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs};
use trapline_memory::{GuestRam, RamConfig};
use trapline_vcpu::{
    Accel, Answer, Engine, Entry, Error, Exit, Paging, Vcpu, Vm, VmConfig, choose, cpuid, create_vm,
};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
/// The stack grows down from the code.
pub const CODE: u64 = 0x7000;
/// The second processor's code; its stack grows down from there.
pub const SECOND: u64 = 0xa000;
/// Four page directories of 2 MiB pages: 4 GiB, identity-mapped.
pub const PD: u64 = 0x1_0000;
/// Free for tests, up to the end of RAM.
pub const DATA: u64 = 0x2_0000;
pub const RAM: u64 = 2 << 20;
/// Nothing but exits here.
pub const MMIO: u64 = 0xd000_0000;
/// A write here ends a test.
pub const DONE: u16 = 0xf4;

pub const CODE64: u16 = 0x08;
pub const DATA32: u16 = 0x10;
pub const CODE32: u16 = 0x18;

/// What the suite runs on: an engine, how guest addresses are translated there, and how code runs.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub engine: Engine,
    paging: Paging,
    /// The soft engine makes no host code.
    interpret: bool,
}

const SUBJECTS: &[Subject] = &[Subject::KVM, Subject::SOFT, Subject::SHADOW, Subject::INTERPRETER];

impl Subject {
    pub const KVM: Self = Self { engine: Engine::Kvm, paging: Paging::Ept, interpret: false };
    pub const SOFT: Self = Self { engine: Engine::Soft, ..Self::KVM };
    pub const SHADOW: Self = Self { paging: Paging::Shadow, ..Self::SOFT };
    const INTERPRETER: Self = Self { interpret: true, ..Self::SOFT };

    pub fn create_vm(self, config: &VmConfig) -> Result<Arc<dyn Vm>, Error> {
        create_vm(self.engine, &VmConfig { paging: self.paging, interpret: self.interpret, ..config.clone() })
    }
}

impl PartialEq<Engine> for Subject {
    fn eq(&self, engine: &Engine) -> bool {
        self.engine == *engine
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.paging {
            Paging::Ept if self.interpret => write!(f, "{} without host code", self.engine),
            Paging::Ept => self.engine.fmt(f),
            Paging::Shadow => write!(f, "{} with shadow paging", self.engine),
        }
    }
}

/// Runs a test body on every engine that this machine has, and says which one it could not run on.
pub fn on_every_engine(test: impl Fn(Subject)) {
    for &subject in SUBJECTS {
        match subject.create_vm(&VmConfig::default()) {
            Ok(_) => test(subject),
            Err(Error::Unavailable { why, .. }) => eprintln!("skipped on {subject}: {why}"),
            Err(e) => panic!("{subject}: {e}"),
        }
    }
}

/// The same, but not on a KVM that emulates all guest code, and why not.
pub fn on_native_engines(why: &str, test: impl Fn(Subject)) {
    let auto = choose(Accel::Auto).unwrap();
    on_every_engine(|engine| {
        if engine == Engine::Kvm && auto.engine != Engine::Kvm {
            eprintln!("skipped on {engine}: {why} ({})", auto.why);
        } else {
            test(engine);
        }
    });
}

/// The mode a guest starts in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Long,
}

/// An assembler that knows which vectors its code handles.
pub struct Asm {
    code: CodeAssembler,
    handlers: Vec<(u8, CodeLabel)>,
}

pub type AsmResult = Result<(), IcedError>;

impl Asm {
    /// The handler of a vector starts here.
    pub fn handler(&mut self, vector: u8) -> AsmResult {
        let mut label = self.code.create_label();
        self.code.set_label(&mut label)?;
        self.handlers.push((vector, label));
        Ok(())
    }

    /// Keeps the guest busy long enough for any engine to look at events: not all do so at each
    /// instruction. Leaves RCX zero.
    pub fn settle(&mut self) -> AsmResult {
        let mut again = self.code.create_label();
        self.code.mov(ecx, 1000)?;
        self.code.set_label(&mut again)?;
        self.code.dec(ecx)?;
        self.code.jnz(again)
    }

    /// Ends the test.
    pub fn done(&mut self) -> AsmResult {
        self.code.out(u32::from(DONE), al)
    }
}

impl Deref for Asm {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.code
    }
}

impl DerefMut for Asm {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.code
    }
}

/// Assembles for `bits` at `at`; returns the bytes and the address of each vector's handler.
pub fn assemble(bits: u32, at: u64, code: impl FnOnce(&mut Asm) -> AsmResult) -> (Vec<u8>, Vec<(u8, u64)>) {
    let mut asm = Asm { code: CodeAssembler::new(bits).unwrap(), handlers: Vec::new() };
    code(&mut asm).unwrap();
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let block = asm.code.assemble_options(at, options).unwrap();
    let handlers = asm.handlers.iter().map(|(vector, label)| (*vector, block.label_ip(label).unwrap()));
    let handlers = handlers.collect();
    (block.inner.code_buffer, handlers)
}

pub struct Machine {
    pub engine: Subject,
    pub vm: Arc<dyn Vm>,
    pub vcpu: Box<dyn Vcpu>,
    pub ram: GuestRam,
    /// Ends with the machine; kicks the vCPU if that takes too long.
    _watchdog: mpsc::Sender<()>,
}

impl Machine {
    /// A machine whose vCPU is about to execute `code` in `mode`.
    pub fn new(engine: Subject, mode: Mode, code: impl FnOnce(&mut Asm) -> AsmResult) -> Self {
        Self::with_config(engine, &VmConfig::default(), mode, code)
    }

    /// One in which HLT exits.
    pub fn without_apic(engine: Subject, mode: Mode, code: impl FnOnce(&mut Asm) -> AsmResult) -> Self {
        Self::with_config(engine, &VmConfig { local_apic: false, ..VmConfig::default() }, mode, code)
    }

    pub fn with_config(
        engine: Subject,
        config: &VmConfig,
        mode: Mode,
        code: impl FnOnce(&mut Asm) -> AsmResult,
    ) -> Self {
        let vm = engine.create_vm(config).unwrap();
        let ram = GuestRam::new(&RamConfig { device_area: 0x1_0000, ..RamConfig::new(RAM) }).unwrap();
        vm.set_memory(ram.arena(), ram.slots()).unwrap();
        let vcpu = new_vcpu(&*vm, mode);
        let machine = Self { engine, vm, _watchdog: watchdog(&*vcpu), vcpu, ram };
        let bits = match mode {
            Mode::Real => 16,
            Mode::Protected => 32,
            Mode::Long => 64,
        };
        let (bytes, handlers) = assemble(bits, CODE, code);
        machine.write(CODE, &bytes);
        machine.write_tables(mode, &handlers);
        machine
    }

    fn write_tables(&self, mode: Mode, handlers: &[(u8, u64)]) {
        for (i, descriptor) in
            [0, descriptor(0xa09b), descriptor(0xc093), descriptor(0xc09b)].iter().enumerate()
        {
            self.write_u64(GDT + 8 * i as u64, *descriptor);
        }
        self.write_u64(PML4, PDPT | 7);
        for gib in 0..4 {
            self.write_u64(PDPT + 8 * gib, (PD + gib * 4096) | 7);
        }
        for page in 0..2048 {
            self.write_u64(PD + 8 * page, page << 21 | 0x87);
        }
        self.write_gates(mode, handlers);
    }

    fn write_gates(&self, mode: Mode, handlers: &[(u8, u64)]) {
        for &(vector, at) in handlers {
            let low = at & 0xffff | 0x8e00 << 32 | (at & 0xffff_0000) << 32;
            match mode {
                Mode::Real => self.write(u64::from(vector) * 4, &(at as u32).to_le_bytes()),
                Mode::Protected => {
                    self.write_u64(IDT + u64::from(vector) * 8, low | u64::from(CODE32) << 16);
                }
                Mode::Long => {
                    self.write_u64(IDT + u64::from(vector) * 16, low | u64::from(CODE64) << 16);
                    self.write_u64(IDT + u64::from(vector) * 16 + 8, at >> 32);
                }
            }
        }
    }

    pub fn write(&self, pa: u64, bytes: &[u8]) {
        self.ram.arena().write_bytes(pa, bytes).unwrap();
    }

    pub fn write_u64(&self, pa: u64, value: u64) {
        self.write(pa, &value.to_le_bytes());
    }

    pub fn read<const N: usize>(&self, pa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.arena().read_bytes(pa, &mut bytes).unwrap();
        bytes
    }

    pub fn read_u32(&self, pa: u64) -> u32 {
        u32::from_le_bytes(self.read(pa))
    }

    pub fn read_u64(&self, pa: u64) -> u64 {
        u64::from_le_bytes(self.read(pa))
    }

    /// Runs to the next exit.
    pub fn run(&mut self, entry: impl Into<Entry>) -> Exit {
        self.vcpu.run(entry.into()).unwrap()
    }

    /// Runs to the next exit, which answers nothing.
    pub fn step(&mut self) -> Exit {
        self.run(Answer::None)
    }

    /// Runs to the end of the test, without any other exit, and returns the registers.
    pub fn finish(&mut self) -> kvm_regs {
        let exit = self.step();
        self.done(exit)
    }

    /// `exit` must be the end of the test.
    pub fn done(&mut self, exit: Exit) -> kvm_regs {
        if !matches!(exit, Exit::PioWrite { port: DONE, .. }) {
            panic!("{}: {exit:x?}\n{:#x?}", self.engine, self.vcpu.regs().unwrap());
        }
        assert_eq!(self.vcpu.complete(Answer::None).unwrap(), None);
        self.vcpu.regs().unwrap()
    }

    /// A second vCPU, about to execute `code` at [`SECOND`] in long mode; it shares tables and handlers.
    pub fn second(&self, code: impl FnOnce(&mut Asm) -> AsmResult) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(1).unwrap();
        set_up(&*self.vm, &mut *vcpu, Mode::Long, SECOND);
        vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
        let (bytes, handlers) = assemble(64, SECOND, code);
        self.write(SECOND, &bytes);
        self.write_gates(Mode::Long, &handlers);
        vcpu
    }

    /// Lets the vCPU go on at another place, in the same mode.
    pub fn jump(&mut self, to: u64, change: impl FnOnce(&mut kvm_regs)) {
        let mut regs = self.vcpu.regs().unwrap();
        regs.rip = to;
        change(&mut regs);
        self.vcpu.set_regs(&regs).unwrap();
    }
}

/// The first vCPU of `vm`, about to execute at [`CODE`] in `mode`, its stack below.
fn new_vcpu(vm: &dyn Vm, mode: Mode) -> Box<dyn Vcpu> {
    let mut vcpu = vm.create_vcpu(0).unwrap();
    set_up(vm, &mut *vcpu, mode, CODE);
    vcpu
}

fn set_up(vm: &dyn Vm, vcpu: &mut dyn Vcpu, mode: Mode, at: u64) {
    let (id, leaves) = (vcpu.id(), vm.supported_cpuid().unwrap());
    vcpu.set_cpuid(&cpuid::for_vcpu(&leaves, &cpuid::Topology::flat(id + 1), id).unwrap()).unwrap();
    let mut sregs = vcpu.sregs().unwrap();
    match mode {
        Mode::Real => {
            sregs.cs.base = 0;
            sregs.cs.selector = 0;
        }
        Mode::Protected => {
            set_segments(&mut sregs, segment(CODE32, 11, false));
            sregs.cr0 = 0x31;
        }
        Mode::Long => {
            set_segments(&mut sregs, segment(CODE64, 11, true));
            sregs.cr3 = PML4;
            sregs.cr4 = 0x620;
            sregs.efer = 0x500;
            sregs.cr0 = 0x8001_0033;
        }
    }
    if mode != Mode::Real {
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 0x1f;
        sregs.idt.base = IDT;
        sregs.idt.limit = 0xfff;
    }
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: at, rsp: at, rflags: 2, ..Default::default() }).unwrap();
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment) {
    sregs.cs = code;
    let data = segment(DATA32, 3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

/// A descriptor of base 0 and limit 4 GiB with these attributes (bits 40 to 55, less the limit).
fn descriptor(attributes: u64) -> u64 {
    attributes << 40 | 0xf_0000 << 32 | 0xffff
}

/// Kicks the vCPU when a test hangs, which then sees an exit that it does not expect.
pub fn watchdog(vcpu: &dyn Vcpu) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel();
    let kicker = vcpu.kicker();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    alive
}
