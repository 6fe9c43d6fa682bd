//! Instructions that the kernel's emulator does not know, where it meets them: `softcpu` executes them
//! then, with the same faults, exits and traps as everywhere.

use iced_x86::code_asm::*;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug, kvm_msr_entry,
};
use trapline_device::AccessSize::{Dword, Qword};
use trapline_vcpu::{Accel, Answer, CpuModel, Engine, Exit, IoEvent, IoEventAddress, VmConfig, choose};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::harness::*;

/// How many instructions the vCPU had executed by `softcpu`.
fn helped(machine: &Machine) -> u64 {
    let detail = machine.vcpu.detail();
    detail.iter().filter(|(what, _)| what.ends_with("by softcpu")).map(|(_, n)| n).sum()
}

/// On a KVM that emulates everything, as many instructions were executed by `softcpu`; elsewhere none, for
/// they touch no device.
fn check_help(machine: &Machine, expected: u64) {
    let emulates = machine.engine == Engine::Kvm && choose(Accel::Auto).unwrap().engine != Engine::Kvm;
    assert_eq!(helped(machine), if emulates { expected } else { 0 }, "{:?}", machine.vcpu.detail());
}

#[test]
fn vector_instructions_are_executed() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            a.movdqu(xmm0, xmmword_ptr(rbx))?;
            a.movdqu(xmm1, xmmword_ptr(rbx + 16))?;
            a.pxor(xmm0, xmm1)?;
            a.paddb(xmm0, xmm1)?;
            a.movdqu(xmmword_ptr(rbx + 32), xmm0)?;
            a.done()
        });
        let (one, two) = (0x0123_4567_89ab_cdef_0011_2233_4455_6677u128, 0x0101_0101_0202_0202_0303u128);
        machine.write(DATA, &one.to_le_bytes());
        machine.write(DATA + 16, &two.to_le_bytes());
        machine.finish();
        let mut expected = (one ^ two).to_le_bytes();
        expected.iter_mut().zip(two.to_le_bytes()).for_each(|(to, by)| *to = to.wrapping_add(by));
        assert_eq!(machine.read::<16>(DATA + 32), expected);
        check_help(&machine, 2);
    });
}

/// Registers that an image holds come back from it, and those of the host's view are the same.
#[test]
fn xsave_and_xrstor_move_the_registers() {
    let config = VmConfig { cpu: Some(CpuModel::max()), ..VmConfig::default() };
    on_every_engine(|engine| {
        let mut machine = Machine::with_config(engine, &config, Mode::Long, |a| {
            a.mov(rax, cr4)?;
            a.or(eax, 1 << 18)?;
            a.mov(cr4, rax)?;
            a.xor(ecx, ecx)?;
            a.mov(eax, 3)?;
            a.xor(edx, edx)?;
            a.xsetbv()?;
            a.xgetbv()?;
            a.mov(r8d, eax)?;
            a.mov(ebx, DATA as u32)?;
            a.movdqu(xmm5, xmmword_ptr(rbx + 0x800))?;
            a.xsave64(ptr(rbx))?;
            a.pxor(xmm5, xmm5)?;
            a.out(0x80, al)?;
            a.xrstor64(ptr(rbx))?;
            a.movdqu(xmmword_ptr(rbx + 0x810), xmm5)?;
            a.done()
        });
        let value = 0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00u128.to_le_bytes();
        machine.write(DATA + 0x800, &value);
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        assert_eq!(machine.vcpu.xcrs().unwrap().xcrs[0].value, 3);
        assert_eq!(machine.vcpu.fpu().unwrap().xmm[5], [0; 16]);
        assert_eq!(machine.read::<16>(DATA + 160 + 5 * 16), value, "in the image");
        assert_eq!(machine.read_u64(DATA + 512) & !3, 0, "XSTATE_BV");
        assert_eq!(machine.finish().r8, 3);
        assert_eq!(machine.read::<16>(DATA + 0x810), value);
        assert_eq!(machine.vcpu.fpu().unwrap().xmm[5], value);
    });
}

#[test]
fn x87_state_is_the_vcpus() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            a.fninit()?;
            a.fldcw(word_ptr(rbx))?;
            a.fldpi()?;
            a.fstp(qword_ptr(rbx + 8))?;
            a.fld1()?;
            a.fnstcw(word_ptr(rbx + 2))?;
            a.done()
        });
        machine.write(DATA, &0x0f7fu16.to_le_bytes()); // round towards zero
        machine.finish();
        assert_eq!(machine.read::<2>(DATA + 2), 0x0f7fu16.to_le_bytes());
        assert_eq!(f64::from_bits(machine.read_u64(DATA + 8)), std::f64::consts::PI);
        let fpu = machine.vcpu.fpu().unwrap();
        assert_eq!((fpu.fcw, fpu.fsw >> 11 & 7), (0x0f7f, 7), "one value on the stack");
        let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        assert_eq!(fpu.fpr[0][..10], one);
    });
}

#[test]
fn device_memory_is_read_and_written() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            a.pxor(xmm0, xmm0)?;
            a.paddd(xmm0, xmmword_ptr(rbx + 16))?;
            a.movq(qword_ptr(rbx + 8), xmm0)?;
            a.cvtsi2sd(xmm1, dword_ptr(rbx + 4))?;
            a.mov(ebx, DATA as u32)?;
            a.movdqu(xmmword_ptr(rbx), xmm0)?;
            a.movdqu(xmmword_ptr(rbx + 16), xmm1)?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO + 16, size: Qword });
        assert!(machine.vcpu.run(Answer::None.into()).is_err(), "an answer is wanted");
        assert!(!machine.vcpu.ready_for_extint(), "an instruction is under way");
        let (low, high) = (0x1111_2222_3333_4444, 0x5555_6666_7777_8888);
        assert_eq!(machine.run(Answer::Value(low)), Exit::MmioRead { addr: MMIO + 24, size: Qword });
        let written = Exit::MmioWrite { addr: MMIO + 8, size: Qword, value: low };
        assert_eq!(machine.run(Answer::Value(high)), written);
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO + 4, size: Dword });
        let exit = machine.run(Answer::Value(u64::from(-7i32 as u32)));
        machine.done(exit);
        assert_eq!((machine.read_u64(DATA), machine.read_u64(DATA + 8)), (low, high));
        assert_eq!(f64::from_bits(machine.read_u64(DATA + 16)), -7.0);
    });
}

/// The vCPU is stopped in the middle of an instruction's accesses: it is finished, and no more.
#[test]
fn complete_finishes_an_instruction_of_several_accesses() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            a.paddd(xmm0, xmmword_ptr(rbx))?;
            a.inc(ecx)?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO, size: Qword });
        let next = machine.vcpu.complete(Answer::Value(1)).unwrap();
        assert_eq!(next, Some(Exit::MmioRead { addr: MMIO + 8, size: Qword }));
        assert_eq!(machine.vcpu.complete(Answer::Value(2)).unwrap(), None);
        let regs = machine.vcpu.regs().unwrap();
        assert_eq!((regs.rip, regs.rcx), (CODE + 14, 0));
        assert_eq!(machine.vcpu.fpu().unwrap().xmm[0], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(machine.finish().rcx, 1);
    });
}

#[test]
fn local_apic_registers_are_refused() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, 0xfee0_0020u32)?;
            a.paddd(xmm0, xmmword_ptr(rbx))?;
            a.done()
        });
        match (engine.engine, machine.step()) {
            // KVM_INTERNAL_ERROR_EMULATION: the kernel gave up, and what it has is not softcpu's.
            (Engine::Kvm, Exit::InternalError { suberror: 1, .. }) => {}
            (Engine::Soft, exit) => drop(machine.done(exit)),
            (engine, exit) => panic!("{engine}: {exit:x?}"),
        }
    });
}

/// Faults of the instruction, and of the delivery of a software interrupt.
#[test]
fn faults_are_the_guests() {
    type Case = (&'static str, u8, Option<u64>, fn(&mut Asm) -> AsmResult);
    let cases: [Case; 6] = [
        ("no page", 14, Some(0), |a| a.mulsd(xmm0, qword_ptr(0x4000_0008u64))),
        ("not aligned", 13, Some(0), |a| a.pxor(xmm0, xmmword_ptr(DATA + 8))),
        ("not aligned for cmpxchg16b", 13, Some(0), |a| a.lock().cmpxchg16b(xmmword_ptr(DATA + 8))),
        ("no gate", 13, Some(0x55 << 3 | 2), |a| a.int(0x55)),
        ("vector instruction after CR0.TS was set", 7, None, |a| a.pxor(xmm0, xmm1)),
        ("undefined: no AVX", 6, None, |a| a.vxorps(xmm0, xmm0, xmm0)),
    ];
    on_every_engine(|engine| {
        for (what, vector, error, code) in cases {
            let mut machine = Machine::new(engine, Mode::Long, |a| {
                if vector == 7 {
                    a.mov(rax, cr0)?;
                    a.or(eax, 8)?;
                    a.mov(cr0, rax)?;
                }
                let mut here = a.create_label();
                a.lea(rbx, ptr(here))?;
                a.set_label(&mut here)?;
                code(a)?;
                a.out(0x80, al)?;
                a.handler(vector)?;
                if error.is_some() {
                    a.pop(r8)?;
                }
                a.mov(r9, qword_ptr(rsp))?;
                a.mov(r10, cr2)?;
                a.done()
            });
            machine.write_u64(PD + (0x4000_0000u64 >> 21) * 8, 0);
            let mut sregs = machine.vcpu.sregs().unwrap();
            sregs.idt.limit = 0x55 * 16 - 1;
            machine.vcpu.set_sregs(&sregs).unwrap();
            if vector == 6 && engine == Engine::Kvm {
                // A host's processor may have AVX, and its XCR0 is the guest's to set.
                let cpuid = machine.vcpu.cpuid().unwrap();
                let leaf = cpuid.as_slice().iter().find(|leaf| leaf.function == 1).unwrap();
                if leaf.ecx & 1 << 28 != 0 {
                    continue;
                }
            }
            let regs = machine.finish();
            assert_eq!(regs.r8, error.unwrap_or(0), "error code: {what}");
            assert_eq!(regs.r9, regs.rbx, "return address: {what}");
            if vector == 14 {
                assert_eq!(regs.r10, 0x4000_0008, "CR2: {what}");
            }
        }
    });
}

#[test]
fn software_interrupts_and_returns_keep_the_flags() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.sti()?;
            a.int(0x30)?;
            a.pushfq()?;
            a.pop(r8)?;
            a.done()?;
            a.handler(0x30)?;
            a.pushfq()?;
            a.pop(r9)?;
            a.iretq()
        });
        let regs = machine.finish();
        assert_eq!((regs.r8 & 0x200, regs.r9 & 0x200), (0x200, 0), "an interrupt gate clears IF");
    });
}

/// Ordinary instructions have changed its code.
#[test]
fn code_may_have_changed_since_the_last_time() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let mut patched = a.create_label();
            a.mov(ebx, DATA as u32)?;
            a.movdqu(xmm1, xmmword_ptr(rbx))?;
            a.lea(rdi, ptr(patched))?;
            a.mov(ecx, 2)?;
            a.set_label(&mut patched)?;
            a.paddd(xmm0, xmm1)?; // 66 0f fe c1
            a.mov(byte_ptr(rdi + 2), 0xfa)?; // psubd
            a.dec(ecx)?;
            a.jnz(patched)?;
            a.movdqu(xmmword_ptr(rbx + 16), xmm0)?;
            a.done()
        });
        machine.write(DATA, &7u32.to_le_bytes());
        machine.finish();
        assert_eq!(machine.read_u32(DATA + 16), 0, "added, then subtracted");
    });
}

#[test]
fn invpcid_makes_new_mappings_visible() {
    let config = VmConfig { cpu: Some(CpuModel::default()), ..VmConfig::default() };
    on_every_engine(|engine| {
        let mut machine = Machine::with_config(engine, &config, Mode::Long, |a| {
            a.mov(ebx, 0x4000_0000 + DATA as u32)?;
            a.mov(r8d, dword_ptr(rbx))?;
            a.mov(edi, (PD + (0x4000_0000u64 >> 21) * 8) as u32)?;
            a.mov(qword_ptr(rdi), 0x87)?;
            a.mov(eax, 2)?;
            a.mov(edx, DATA as u32 + 16)?;
            a.invpcid(rax, xmmword_ptr(rdx))?;
            a.mov(r9d, dword_ptr(rbx))?;
            a.done()
        });
        machine.write_u64(PD + (0x4000_0000u64 >> 21) * 8, MMIO & !0x1f_ffff | 0x87);
        machine.write(DATA, &5u32.to_le_bytes());
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO + DATA, size: Dword });
        let exit = machine.run(Answer::Value(4));
        let regs = machine.done(exit);
        assert_eq!((regs.r8, regs.r9), (4, 5));
    });
}

#[test]
fn pages_written_are_logged() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            a.movq(qword_ptr(rbx + 0x3000), xmm0)?;
            a.done()
        });
        machine.ram.dirty().set_enabled(true);
        machine.ram.set_log_dirty(DATA, RAM - DATA, true).unwrap();
        machine.vm.set_memory(machine.ram.arena(), machine.ram.slots()).unwrap();
        machine.finish();
        machine.vm.collect_dirty(machine.ram.dirty()).unwrap();
        assert_eq!(machine.ram.dirty().take(DATA..RAM).collect::<Vec<_>>(), [DATA + 0x3000]);
        machine.vm.collect_dirty(machine.ram.dirty()).unwrap();
        assert_eq!(machine.ram.dirty().take(DATA..RAM).count(), 0, "taken is clean");
    });
}

/// The memory changes between two instructions that need help.
#[test]
fn memory_layouts_are_followed() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            for _ in 0..2 {
                a.movq(qword_ptr(rbx), xmm0)?;
                a.out(0x80, al)?;
            }
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.ram.set_read_only(DATA, 0x1000, true).unwrap();
        machine.vm.set_memory(machine.ram.arena(), machine.ram.slots()).unwrap();
        assert_eq!(machine.step(), Exit::MmioWrite { addr: DATA, size: Qword, value: 0 });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.finish();
    });
}

#[test]
fn eventfds_are_signalled() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            for _ in 0..2 {
                a.movq(qword_ptr(rbx + 0x50), xmm0)?;
            }
            a.done()
        });
        let fd = EventFd::new(EFD_NONBLOCK).unwrap();
        let event = IoEvent { address: IoEventAddress::Mmio(MMIO + 0x50), matches: Some((Qword, 0)) };
        machine.vm.register_ioeventfd(&fd, event).unwrap();
        machine.finish();
        assert_eq!(fd.read().unwrap(), 2);
        machine.vm.unregister_ioeventfd(&fd, event).unwrap();
        machine.jump(CODE, |_| {});
        assert!(matches!(machine.step(), Exit::MmioWrite { .. }));
    });
}

#[test]
fn single_steps_stop_behind_it() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.nop()?;
            a.pxor(xmm0, xmm1)?;
            a.nop()?;
            a.done()
        });
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        machine.vcpu.set_guest_debug(&kvm_guest_debug { control, ..Default::default() }).unwrap();
        for length in [1, 5, 6] {
            match machine.step() {
                Exit::Debug { exception: 1, pc, dr6: hit, .. } => {
                    assert_eq!((pc, hit & 1 << 14), (CODE + length, 1 << 14));
                }
                exit => panic!("{exit:x?}"),
            }
        }
        machine.vcpu.set_guest_debug(&kvm_guest_debug::default()).unwrap();
        machine.finish();
    });
}

/// RFLAGS.TF is the guest's: its handler sees each instruction.
#[test]
fn the_guests_own_single_steps_go_on() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let mut at = a.create_label();
            a.lea(r9, ptr(at))?;
            a.pushfq()?;
            a.or(dword_ptr(rsp), 0x100)?;
            a.popfq()?;
            a.set_label(&mut at)?;
            a.pxor(xmm0, xmm1)?;
            a.nop()?;
            a.handler(1)?;
            a.mov(r8, qword_ptr(rsp))?;
            a.mov(r10, dr6)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!(regs.r8 - regs.r9, 4, "behind pxor");
        assert_eq!(regs.r10 & 1 << 14, 1 << 14, "DR6.BS");
    });
}

#[test]
fn breakpoints_of_the_host_stop_at_them() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.nop()?;
            a.int3()?;
            a.done()
        });
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
        machine.vcpu.set_guest_debug(&kvm_guest_debug { control, ..Default::default() }).unwrap();
        match machine.step() {
            Exit::Debug { exception: 3, pc, .. } => assert_eq!(pc, CODE + 1),
            exit => panic!("{exit:x?}"),
        }
        assert_eq!(machine.vcpu.regs().unwrap().rip, CODE + 1);
        machine.jump(CODE + 2, |_| {});
        machine.finish();
    });
}

#[test]
fn rdtscp_reads_the_time_that_rdtsc_reads() {
    const TSC_AUX: u32 = 0xc000_0103;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.rdtsc()?;
            a.mov(r8d, eax)?;
            a.mov(r9d, edx)?;
            a.rdtscp()?;
            a.mov(r10d, ecx)?;
            a.mov(r11d, eax)?;
            a.mov(r12d, edx)?;
            a.rdtsc()?;
            a.done()
        });
        let aux = kvm_msr_entry { index: TSC_AUX, data: 0x77, ..Default::default() };
        machine.vcpu.set_msrs(&[aux]).unwrap();
        let regs = machine.finish();
        let time = |low: u64, high: u64| low | high << 32;
        let times = [time(regs.r8, regs.r9), time(regs.r11, regs.r12), time(regs.rax, regs.rdx)];
        assert!(times.is_sorted(), "{times:x?}");
        assert_eq!(regs.r10, 0x77);
    });
}
