//! What a VM entry and exit costs on KVM, through `vcpu` and without it.
//!
//! The guest writes to a port for ever, or reads a word where no memory is. Each element is one round: entry,
//! the instruction, exit, and for the read the answer.
//!
//! - *bare*: `kvm-ioctls` alone, as thin as a program can be: `KVM_RUN`, and a look at the exit.
//! - *vcpu*: the same guest through `trapline_vcpu::Vcpu::run`, which counts exits, hands them over by value
//!   and can be kicked from other threads.
//!
//! The difference is what the abstraction costs. The last group reads 16 bytes of a device by a vector
//! instruction, which KVM's emulator does not know and `softcpu` executes: two exits, and the state of the vCPU
//! there and back. Skipped, with a word why, where there is no KVM.
#![allow(unsafe_code)]

use std::sync::Arc;

use criterion::Criterion;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use trapline::memory::{GuestRam, RamConfig};
use trapline::vcpu::{Answer, Engine, Entry, Exit, Vcpu, Vm, VmConfig, create_vm};

const CODE: u64 = 0x1000;
/// again: out 0x80, al; jmp again
const WRITES: &[u8] = &[0xe6, 0x80, 0xeb, 0xfc];
/// Where no memory is, as far as real mode reaches.
const DEVICE: u64 = 0xa_0000;
/// again: mov ax, [0]; jmp again
const READS: &[u8] = &[0xa1, 0, 0, 0xeb, 0xfb];

/// again: paddd xmm0, [0]; jmp again
const VECTOR_READS: &[u8] = &[0x66, 0x0f, 0xfe, 0x06, 0, 0, 0xeb, 0xf8];
/// CR4.OSFXSR: there are vector instructions.
const OSFXSR: u64 = 1 << 9;

fn ram(code: &[u8]) -> GuestRam {
    let ram = GuestRam::new(&RamConfig::new(0x1_0000)).expect("64 KiB");
    ram.arena().write_bytes(CODE, code).expect("inside");
    ram
}

/// Real mode at [`CODE`], the data segment at [`DEVICE`].
fn start(mut sregs: kvm_sregs) -> (kvm_sregs, kvm_regs) {
    sregs.cr4 |= OSFXSR;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.base, sregs.ds.selector) = (DEVICE, (DEVICE >> 4) as u16);
    (sregs, kvm_regs { rip: CODE, rflags: 2, ..Default::default() })
}

/// A guest with nothing between it and the kernel.
struct Bare {
    vcpu: VcpuFd,
    _vm: VmFd,
    _ram: GuestRam,
}

impl Bare {
    fn new(kvm: &Kvm, code: &[u8]) -> Self {
        let ram = ram(code);
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        vm.set_identity_map_address(0xfeff_c000).expect("KVM_SET_IDENTITY_MAP_ADDR");
        vm.set_tss_address(0xfeff_d000).expect("KVM_SET_TSS_ADDR");
        let region = kvm_userspace_memory_region {
            memory_size: 0x1_0000,
            userspace_addr: ram.arena().base() as u64,
            ..Default::default()
        };
        // SAFETY: the arena is longer than the slot, and dropped after the machine.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
        let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        let (sregs, regs) = start(vcpu.get_sregs().expect("KVM_GET_SREGS"));
        vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
        vcpu.set_regs(&regs).expect("KVM_SET_REGS");
        Self { vcpu, _vm: vm, _ram: ram }
    }

    fn write(&mut self) {
        match self.vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoOut(0x80, [_]) => {}
            exit => panic!("{exit:?}"),
        }
    }

    fn read(&mut self) {
        match self.vcpu.run().expect("KVM_RUN") {
            VcpuExit::MmioRead(DEVICE, data) => data.fill(0x5a),
            exit => panic!("{exit:?}"),
        }
    }
}

/// The same guest through this project's engine.
struct Engined {
    vcpu: Box<dyn Vcpu>,
    _vm: Arc<dyn Vm>,
    _ram: GuestRam,
}

impl Engined {
    fn new(code: &[u8]) -> Self {
        let ram = ram(code);
        let vm = create_vm(Engine::Kvm, &VmConfig { local_apic: false, ..VmConfig::default() });
        let vm = vm.expect("it was there before");
        vm.set_memory(ram.arena(), ram.slots()).expect("one slot");
        let mut vcpu = vm.create_vcpu(0).expect("the first one");
        let (sregs, regs) = start(vcpu.sregs().expect("a state"));
        vcpu.set_sregs(&sregs).expect("a state");
        vcpu.set_regs(&regs).expect("a state");
        Self { vcpu, _vm: vm, _ram: ram }
    }

    fn write(&mut self) {
        match self.vcpu.run(Entry::default()).expect("a run") {
            Exit::PioWrite { port: 0x80, .. } => {}
            exit => panic!("{exit:?}"),
        }
    }

    fn read(&mut self, answer: &mut Answer) {
        match self.vcpu.run(std::mem::take(answer).into()).expect("a run") {
            Exit::MmioRead { .. } => *answer = Answer::Value(0x5a5a),
            exit => panic!("{exit:?}"),
        }
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let kvm = match (Kvm::new(), create_vm(Engine::Kvm, &VmConfig::default())) {
        (Ok(kvm), Ok(_)) => kvm,
        (Err(e), _) => return eprintln!("skipped: /dev/kvm: {e}"),
        (_, Err(e)) => return eprintln!("skipped: {e}"),
    };
    eprintln!("{}", trapline::vcpu::choose(Default::default()).expect("never fails").why);

    let mut group = c.benchmark_group("kvm exit: port write");
    let mut guest = Bare::new(&kvm, WRITES);
    group.bench_function("bare", |b| b.iter(|| guest.write()));
    let mut guest = Engined::new(WRITES);
    group.bench_function("vcpu", |b| b.iter(|| guest.write()));
    group.finish();

    let mut group = c.benchmark_group("kvm exit: device read");
    let mut guest = Bare::new(&kvm, READS);
    group.bench_function("bare", |b| b.iter(|| guest.read()));
    let (mut guest, mut answer) = (Engined::new(READS), Answer::None);
    group.bench_function("vcpu", |b| b.iter(|| guest.read(&mut answer)));
    group.finish();

    let (mut guest, mut answer) = (Engined::new(VECTOR_READS), Answer::None);
    c.bench_function("kvm exit: device read that softcpu executes", |b| {
        b.iter(|| {
            guest.read(&mut answer);
            guest.read(&mut answer);
        });
    });

    c.final_summary();
}
