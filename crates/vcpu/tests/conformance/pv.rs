//! KVM's paravirtual interface: leaves, clock, end of interrupt, hypercalls, steal time.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iced_x86::code_asm::*;
use kvm_bindings::kvm_msr_entry;
use trapline_device::Msi;
use trapline_vcpu::{CpuModel, Engine, Exit, VcpuState, VmConfig};

use crate::harness::*;

const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ASYNC_PF: u32 = 0x4b56_4d02;
const STEAL_TIME: u32 = 0x4b56_4d03;
const EOI: u32 = 0x4b56_4d04;
const APIC: u64 = 0xfee0_0000;
/// Bits of leaf 0x4000_0001, EAX.
const CLOCK: u32 = 1 << 3;
const HAS_STEAL_TIME: u32 = 1 << 5;
const HAS_EOI: u32 = 1 << 6;
const UNHALT: u32 = 1 << 7;
const TLB_FLUSH: u32 = 1 << 9;
const SEND_IPI: u32 = 1 << 11;

/// Runs a test where the engine offers all of `features`.
fn where_offered(features: u32, test: impl Fn(Subject)) {
    on_every_engine(|engine| {
        let leaves = engine.create_vm(&VmConfig::default()).unwrap().supported_cpuid().unwrap();
        let leaf = leaves.as_slice().iter().find(|leaf| leaf.function == 0x4000_0001);
        match leaf.map_or(0, |leaf| leaf.eax) & features {
            found if found == features => test(engine),
            _ if engine == Engine::Soft => panic!("{engine} does not offer {features:#x}"),
            _ => eprintln!("skipped on {engine}: it does not offer {features:#x}"),
        }
    });
}

fn wrmsr(a: &mut Asm, index: u32, value: u64) -> AsmResult {
    a.mov(ecx, index)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// A structure of the clock: version, TSC, nanoseconds, fraction, shift, flags.
#[derive(Debug)]
struct Clock {
    version: u32,
    tsc: u64,
    nanos: u64,
    fraction: u32,
    shift: i8,
    flags: u8,
}

impl Clock {
    fn read(machine: &Machine, at: u64) -> Self {
        let [_, _, _, _, shift, flags, _, _] = machine.read::<8>(at + 24);
        Self {
            version: machine.read_u32(at),
            tsc: machine.read_u64(at + 8),
            nanos: machine.read_u64(at + 16),
            fraction: machine.read_u32(at + 24),
            shift: shift as i8,
            flags,
        }
    }

    /// Nanoseconds at a reading of the time-stamp counter.
    fn at(&self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.wrapping_sub(self.tsc));
        let ticks = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift };
        self.nanos + ((ticks * u128::from(self.fraction)) >> 32) as u64
    }
}

#[test]
fn leaves_say_so() {
    where_offered(CLOCK, |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, 0x4000_0000)?;
            a.cpuid()?;
            a.mov(r8d, eax)?;
            a.mov(r9d, ebx)?;
            a.mov(r10d, ecx)?;
            a.mov(r11d, edx)?;
            a.mov(eax, 0x4000_0001)?;
            a.cpuid()?;
            a.done()
        });
        let regs = machine.finish();
        let text: Vec<u8> =
            [regs.r9, regs.r10, regs.r11].iter().flat_map(|r| (*r as u32).to_le_bytes()).collect();
        assert_eq!((regs.r8, &*text), (0x4000_0001, b"KVMKVMKVM\0\0\0".as_slice()));
        assert_ne!(regs.rax as u32 & CLOCK, 0);
    });
}

/// What the guest makes of the clock is what [`Vm::clock`](trapline_vcpu::Vm::clock) says.
#[test]
fn the_clock_counts_the_machines_time() {
    where_offered(CLOCK, |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            wrmsr(a, SYSTEM_TIME, DATA | 1)?;
            // Up to date at the next entry.
            a.out(0x80, al)?;
            for _ in 0..2 {
                a.rdtsc()?;
                a.shl(rdx, 32)?;
                a.or(rax, rdx)?;
                a.mov(rbx, rax)?;
                a.out(0x80, al)?;
            }
            wrmsr(a, SYSTEM_TIME, 0)?;
            a.mov(ecx, SYSTEM_TIME)?;
            a.rdmsr()?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        // An emulating KVM takes long for a few instructions.
        let slack = 2_000_000_000;
        let mut last = 0;
        for at in [0, 5_000_000_000_000u64] {
            if at != 0 {
                machine
                    .vm
                    .set_clock(&kvm_bindings::kvm_clock_data { clock: at, ..Default::default() })
                    .unwrap();
            }
            let before = machine.vm.clock().unwrap().clock;
            assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
            let tsc = machine.vcpu.regs().unwrap().rbx;
            let clock = Clock::read(&machine, DATA);
            assert!(clock.version > 0 && clock.version.is_multiple_of(2), "{engine}: {clock:?}");
            let now = clock.at(tsc);
            assert!(
                now + slack > before && now < machine.vm.clock().unwrap().clock + slack,
                "{now} {clock:?}"
            );
            assert!(now > last);
            last = now;
            if engine == Engine::Soft {
                assert_eq!(clock.flags & 1, 1, "stable");
            }
        }
        assert_eq!(machine.finish().rax as u32, 0, "switched off");
    });
}

#[test]
fn the_wall_clock_is_the_hosts() {
    where_offered(CLOCK, |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            wrmsr(a, WALL_CLOCK, DATA + 0x40)?;
            a.done()
        });
        machine.finish();
        assert!(machine.read_u32(DATA + 0x40).is_multiple_of(2), "version");
        let at_zero = u64::from(machine.read_u32(DATA + 0x44));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let running = machine.vm.clock().unwrap().clock / 1_000_000_000;
        assert!(now.abs_diff(at_zero + running) < 10, "{at_zero} + {running} is not {now}");
    });
}

/// The handler clears the bit if it is set, else it writes to the local APIC; a second interrupt of the same
/// vector comes all the same.
#[test]
fn an_interrupt_ends_by_clearing_a_bit() {
    where_offered(HAS_EOI, |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebp, APIC as u32)?;
            a.mov(dword_ptr(rbp + 0xf0), 0x1ffu32)?;
            wrmsr(a, EOI, DATA | 1)?;
            a.mov(rdi, DATA)?;
            a.xor(r8d, r8d)?;
            a.xor(r9d, r9d)?;
            a.out(0x80, al)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)?;
            a.handler(0x41)?;
            a.inc(r8d)?;
            a.btr(dword_ptr(rdi), 0)?;
            let mut ended = a.create_label();
            a.jc(ended)?;
            a.inc(r9d)?;
            a.mov(dword_ptr(rbp + 0xb0), 0u32)?;
            a.set_label(&mut ended)?;
            a.out(0x81, al)?;
            a.iretq()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        for count in 1..=3 {
            machine.vm.signal_msi(Msi { address: APIC, data: 0x41 }).unwrap();
            assert!(matches!(machine.step(), Exit::PioWrite { port: 0x81, .. }), "{engine}: {count}");
            let regs = machine.vcpu.regs().unwrap();
            assert_eq!(regs.r8, count);
            if engine == Engine::Soft {
                assert_eq!(regs.r9, 0, "no end of interrupt needed telling");
                // Nothing is in service.
                let lapic = machine.vcpu.lapic().unwrap();
                assert!(lapic.regs[0x100..0x180].iter().all(|byte| *byte == 0));
            }
        }
        // While another one waits, its end is to be told: it is what lets the other one in.
        machine.vm.signal_msi(Msi { address: APIC, data: 0x41 }).unwrap();
        machine.vm.signal_msi(Msi { address: APIC, data: 0x35 }).unwrap();
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x81, .. }));
        let regs = machine.vcpu.regs().unwrap();
        assert_eq!((regs.r8, regs.r9), (4, if engine == Engine::Soft { 1 } else { regs.r9 }));
    });
}

#[test]
fn hypercalls_are_answered() {
    where_offered(UNHALT | SEND_IPI, |engine| {
        let call = |a: &mut Asm, number: u64, args: [u64; 4]| -> AsmResult {
            a.mov(rax, number)?;
            for (register, value) in [rbx, rcx, rdx, rsi].into_iter().zip(args) {
                a.mov(register, value)?;
            }
            a.vmcall()
        };
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebp, APIC as u32)?;
            a.mov(dword_ptr(rbp + 0xf0), 0x1ffu32)?;
            a.xor(edi, edi)?;
            a.sti()?;
            call(a, 4711, [1, 2, 3, 4])?;
            a.mov(r8, rax)?;
            call(a, 1, [0; 4])?;
            a.mov(r9, rax)?;
            // To APIC IDs 0 and 3, of which there is one.
            call(a, 10, [0b1001, 0, 0, 0x41])?;
            a.mov(r10, rax)?;
            a.settle()?;
            // With a shorthand.
            call(a, 10, [1, 0, 0, 0x4_0041])?;
            a.mov(r11, rax)?;
            // A kick of itself ends the next halt.
            call(a, 5, [0, 0, 0, 0])?;
            a.mov(r12, rax)?;
            a.cli()?;
            a.hlt()?;
            a.done()?;
            a.handler(0x41)?;
            a.inc(edi)?;
            a.mov(dword_ptr(rbp + 0xb0), 0u32)?;
            a.iretq()
        });
        let regs = machine.finish();
        assert_eq!((regs.r8 as i64, regs.r9), (-1000, 0), "ENOSYS; poll");
        assert_eq!((regs.r10, regs.rdi, regs.r11 as i64), (1, 1, -22), "one interrupt; EINVAL");
        assert_eq!(regs.r12, 0);
    });
}

#[test]
fn hypercalls_are_the_kernels() {
    where_offered(SEND_IPI, |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, 1)?;
            a.vmcall()?;
            a.done()
        });
        let mut sregs = machine.vcpu.sregs().unwrap();
        for segment in [&mut sregs.cs, &mut sregs.ss] {
            (segment.dpl, segment.selector) = (3, segment.selector | 3);
        }
        machine.vcpu.set_sregs(&sregs).unwrap();
        let mut regs = machine.vcpu.regs().unwrap();
        // For OUT.
        regs.rflags |= 3 << 12;
        machine.vcpu.set_regs(&regs).unwrap();
        assert_eq!(machine.finish().rax as i64, -1, "EPERM");
    });
}

/// A halted processor is marked; told to flush its TLB, it does so before it runs on.
#[test]
fn a_halted_processor_flushes_when_told_in_memory() {
    const VIRTUAL: u64 = 0x4000_0000;
    where_offered(HAS_STEAL_TIME | TLB_FLUSH, |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            wrmsr(a, STEAL_TIME, DATA | 1)?;
            a.mov(ebp, APIC as u32)?;
            a.mov(dword_ptr(rbp + 0xf0), 0x1ffu32)?;
            a.mov(rdi, VIRTUAL + DATA)?;
            a.mov(rbx, qword_ptr(rdi + 0x1000))?;
            a.out(0x80, al)?;
            a.sti()?;
            a.hlt()?;
            a.mov(rdx, qword_ptr(rdi + 0x1000))?;
            a.done()?;
            a.handler(0x41)?;
            a.iretq()
        });
        // The second GiB begins with the same 2 MiB, by 4 KiB pages.
        let table = DATA + 0x4000;
        machine.write_u64(PD + 8 * 512, table | 7);
        for page in 0..512 {
            machine.write_u64(table + 8 * page, page << 12 | 7);
        }
        let entry = table + 8 * ((DATA + 0x1000) >> 12);
        machine.write_u64(DATA + 0x1000, 0x1111);
        machine.write_u64(DATA + 0x2000, 0x2222);
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        // It waits, and the kick ends that.
        let kicker = machine.vcpu.kicker();
        let kick = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            kicker.kick();
        });
        assert_eq!(machine.step(), Exit::Interrupted);
        kick.join().unwrap();
        // KVM marks it only when its thread gives the host's processor away.
        if engine == Engine::Soft {
            assert_eq!(machine.read::<1>(DATA + 16), [1], "{engine}: away");
        }
        // What another processor of the guest does.
        machine.write_u64(entry, (DATA + 0x2000) | 7);
        machine.write(DATA + 16, &[3]);
        machine.vm.signal_msi(Msi { address: APIC, data: 0x41 }).unwrap();
        let regs = machine.finish();
        assert_eq!((regs.rbx, regs.rdx), (0x1111, 0x2222), "{engine}");
        assert_eq!(machine.read::<1>(DATA + 16), [0]);
    });
}

#[test]
fn registers_are_part_of_the_state() {
    where_offered(CLOCK | HAS_STEAL_TIME | HAS_EOI, |engine| {
        let registers =
            [(WALL_CLOCK, DATA), (SYSTEM_TIME, DATA + 0x41), (STEAL_TIME, DATA + 0x81), (EOI, DATA + 0xc1)];
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            for (index, value) in registers {
                wrmsr(a, index, value)?;
            }
            a.done()
        });
        machine.finish();
        let indices = machine.vm.saved_msrs().unwrap();
        let saved = VcpuState::save(&*machine.vcpu, &indices).unwrap();
        let mut other = Machine::new(engine, Mode::Real, |a| a.nop());
        saved.restore(&mut *other.vcpu).unwrap();
        for (index, data) in registers {
            let wanted = kvm_msr_entry { index, data, ..Default::default() };
            assert!(saved.msrs.contains(&wanted), "{engine}: {index:#x}");
            assert_eq!(other.vcpu.msrs(&[index]).unwrap(), [wanted], "{engine}");
        }
    });
}

/// Where a guest says that its structures are is not to be trusted.
#[test]
fn structures_outside_memory_are_left_alone() {
    where_offered(CLOCK | HAS_STEAL_TIME | HAS_EOI, |engine| {
        for base in [RAM - 4, RAM - 1, RAM, 0xffff_ffff_ffff_f000, MMIO, APIC, 1 << 51] {
            let mut machine = Machine::new(engine, Mode::Long, |a| {
                a.mov(ebp, APIC as u32)?;
                a.mov(dword_ptr(rbp + 0xf0), 0x1ffu32)?;
                wrmsr(a, WALL_CLOCK, base)?;
                wrmsr(a, SYSTEM_TIME, base | 1)?;
                wrmsr(a, STEAL_TIME, base & !0x3f | 1)?;
                a.mov(ebx, 0)?;
                wrmsr(a, EOI, base & !3 | 1)?;
                a.out(0x80, al)?;
                a.sti()?;
                a.hlt()?;
                a.done()?;
                a.handler(0x41)?;
                a.mov(dword_ptr(rbp + 0xb0), 0u32)?;
                a.iretq()?;
                // Behind WRMSR.
                a.handler(13)?;
                a.inc(ebx)?;
                a.add(rsp, 8)?;
                a.add(qword_ptr(rsp), 2)?;
                a.iretq()
            });
            let before: [u8; 64] = machine.read(RAM - 64);
            assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }), "{engine}: {base:#x}");
            machine.vm.signal_msi(Msi { address: APIC, data: 0x41 }).unwrap();
            let refused = u64::from(base >= RAM);
            assert_eq!(machine.finish().rbx, refused, "{engine}: {base:#x}");
            if engine == Engine::Soft && base >= RAM {
                assert_eq!(machine.read::<64>(RAM - 64), before);
            }
        }
    });
}

#[test]
fn bits_that_must_be_zero_are_refused() {
    where_offered(HAS_STEAL_TIME | HAS_EOI, |engine| {
        for (index, value) in [(STEAL_TIME, DATA | 3), (EOI, DATA | 3), (EOI, DATA | 2)] {
            let mut machine = Machine::new(engine, Mode::Long, |a| {
                a.mov(ebx, 0)?;
                wrmsr(a, index, value)?;
                a.done()?;
                a.handler(13)?;
                a.mov(ebx, 13)?;
                a.done()
            });
            assert_eq!(machine.finish().rbx, 13, "{engine}: {index:#x} {value:#x}");
        }
    });
}

/// A guest that is not offered it does not have it.
#[test]
fn without_the_feature_there_is_nothing() {
    on_every_engine(|engine| {
        let cpu = Some(CpuModel::named("default,-kvm").unwrap());
        let config = VmConfig { cpu, ..VmConfig::default() };
        if engine == Engine::Kvm {
            let leaves = engine.create_vm(&config).unwrap().supported_cpuid().unwrap();
            assert!(leaves.as_slice().iter().all(|leaf| leaf.function != 0x4000_0000));
            return;
        }
        for index in [WALL_CLOCK, SYSTEM_TIME, ASYNC_PF, STEAL_TIME, EOI, 0x11, 0x12] {
            let mut machine = Machine::with_config(engine, &config, Mode::Long, |a| {
                a.mov(ebx, 0)?;
                a.mov(ecx, index)?;
                a.rdmsr()?;
                a.done()?;
                a.handler(13)?;
                a.mov(ebx, 13)?;
                a.done()
            });
            assert_eq!(machine.finish().rbx, 13, "{index:#x}");
        }
        for vendor in ["intel", "amd"] {
            let cpu = Some(CpuModel::named(&format!("default,-kvm,vendor={vendor}")).unwrap());
            let config = VmConfig { cpu, ..VmConfig::default() };
            let mut machine = Machine::with_config(engine, &config, Mode::Long, |a| {
                a.mov(eax, 1)?;
                if vendor == "amd" {
                    a.vmmcall()?
                } else {
                    a.vmcall()?
                }
                a.done()?;
                a.handler(6)?;
                a.mov(ebx, 6)?;
                a.done()
            });
            assert_eq!(machine.finish().rbx, 6);
        }
    });
}

/// AMD's processors have another instruction, which is undefined here.
#[test]
fn vmmcall_is_a_hypercall_on_amds_processors() {
    on_every_engine(|engine| {
        if engine == Engine::Kvm {
            return;
        }
        let cpu = Some(CpuModel::named("default,vendor=amd").unwrap());
        let config = VmConfig { cpu, ..VmConfig::default() };
        let mut machine = Machine::with_config(engine, &config, Mode::Long, |a| {
            a.mov(eax, 1)?;
            a.vmmcall()?;
            a.mov(rbx, rax)?;
            a.mov(eax, 4711)?;
            a.vmmcall()?;
            a.mov(r8, rax)?;
            // Others are what they were.
            a.ud2()?;
            a.done()?;
            a.handler(6)?;
            a.mov(r9d, 6)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!((regs.rbx, regs.r8 as i64, regs.r9), (0, -1000, 6));
    });
}
