//! What the host does to a vCPU: kicks, state, debugging, translation.

use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use trapline_device::AccessSize;
use trapline_vcpu::{Answer, Exit, ExitKind, VcpuState};

use crate::harness::*;

fn forever(a: &mut Asm) -> AsmResult {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.inc(rax)?;
    a.jmp(again)
}

#[test]
fn kick_ends_an_endless_loop() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, forever);
        let kicker = machine.vcpu.kicker();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        assert_eq!(machine.step(), Exit::Interrupted);
        other.join().unwrap();
        assert!(machine.vcpu.regs().unwrap().rax > 0, "it did run");
    });
}

#[test]
fn kick_before_the_run_is_not_lost_and_counts_once() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.inc(rax)?;
            a.done()
        });
        machine.vcpu.kicker().kick();
        machine.vcpu.kicker().kick();
        assert_eq!(machine.step(), Exit::Interrupted);
        assert_eq!(machine.vcpu.regs().unwrap().rax, 0, "nothing was executed");
        assert_eq!(machine.finish().rax, 1);
        assert_eq!(machine.vcpu.stats().count(ExitKind::Interrupted), 1);
    });
}

#[test]
fn kick_ends_the_wait_of_a_halted_vcpu() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| a.hlt());
        let kicker = machine.vcpu.kicker();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        assert_eq!(machine.step(), Exit::Interrupted);
        other.join().unwrap();
    });
}

/// Many kicks at random moments of short runs: each must come out, or the test hangs.
#[test]
fn no_kick_is_lost_in_a_race() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, forever);
        let kicker = machine.vcpu.kicker();
        let (taken, next) = std::sync::mpsc::sync_channel::<()>(0);
        let other = thread::spawn(move || {
            let mut kicks = 0u32;
            while next.recv().is_ok() {
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(u64::from(kicks * 37 % 200)) {
                    std::hint::spin_loop();
                }
                kicker.kick();
                kicks += 1;
            }
            kicks
        });
        for _ in 0..300 {
            taken.send(()).unwrap();
            assert_eq!(machine.step(), Exit::Interrupted);
        }
        drop(taken);
        assert_eq!(other.join().unwrap(), 300);
    });
}

#[test]
fn complete_finishes_the_read_and_no_more() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.in_(al, 0x60)?;
            a.inc(rbx)?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::PioRead { port: 0x60, size: AccessSize::Byte });
        machine.vcpu.kicker().kick();
        assert_eq!(machine.vcpu.complete(Answer::Value(0x99)).unwrap(), None);
        let regs = machine.vcpu.regs().unwrap();
        assert_eq!((regs.rax, regs.rbx, regs.rip), (0x99, 0, CODE + 2));
        assert_eq!(machine.vcpu.complete(Answer::None).unwrap(), None, "nothing left to finish");
        assert_eq!(machine.step(), Exit::Interrupted, "the kick is still there");
        assert_eq!(machine.finish().rbx, 1);
    });
}

#[test]
fn complete_goes_through_every_part_of_an_access() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO + 0xffe)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO + 0xffe, size: AccessSize::Word });
        let second = machine.vcpu.complete(Answer::Value(0x2211)).unwrap();
        assert_eq!(second, Some(Exit::MmioRead { addr: MMIO + 0x1000, size: AccessSize::Word }));
        assert_eq!(machine.vcpu.complete(Answer::Value(0x4433)).unwrap(), None);
        assert_eq!(machine.vcpu.regs().unwrap().rax, 0x4433_2211);
    });
}

/// A machine is stopped in the middle, saved, and goes on as another one.
#[test]
fn state_restores_on_a_fresh_vcpu_which_continues() {
    on_every_engine(|engine| {
        let code = |a: &mut Asm| {
            a.mov(rax, 0x1111_2222_3333_4444u64)?;
            a.mov(r15, 0x5555_6666_7777_8888u64)?;
            a.mov(ecx, 0xc000_0102u32)?;
            a.mov(edx, 0)?;
            a.push(rax)?;
            a.mov(eax, 0xabcd)?;
            a.wrmsr()?;
            a.mov(ebp, 0xfee0_0000u32)?;
            a.mov(dword_ptr(rbp + 0xf0), 0x1ffu32)?;
            a.mov(dword_ptr(rbp + 0x80), 0x30u32)?;
            a.mov(rbx, DATA)?;
            a.mov(dr0, rbx)?;
            a.in_(al, 0x60)?;
            a.mov(r14b, al)?;
            a.pop(r13)?;
            a.rdmsr()?;
            a.mov(r12d, eax)?;
            a.mov(r11d, dword_ptr(rbp + 0x80))?;
            a.mov(r10, dr0)?;
            a.done()
        };
        let mut machine = Machine::new(engine, Mode::Long, code);
        assert_eq!(machine.step(), Exit::PioRead { port: 0x60, size: AccessSize::Byte });
        assert_eq!(machine.vcpu.complete(Answer::Value(0x42)).unwrap(), None);
        let msrs = machine.vm.saved_msrs().unwrap();
        let saved = VcpuState::save(&*machine.vcpu, &msrs).unwrap();
        let clock = machine.vm.clock().unwrap();
        let bytes = serde_json::to_vec(&saved).unwrap();
        let mut ram = vec![0; RAM as usize];
        machine.ram.arena().read_bytes(0, &mut ram).unwrap();
        drop(machine);

        let mut machine = Machine::new(engine, Mode::Real, |a| a.ud2());
        machine.write(0, &ram);
        let saved: VcpuState = serde_json::from_slice(&bytes).unwrap();
        saved.restore(&mut *machine.vcpu).unwrap();
        machine.vm.set_clock(&clock).unwrap();
        let again = VcpuState::save(&*machine.vcpu, &msrs).unwrap();
        assert_eq!((again.regs, again.sregs, again.events), (saved.regs, saved.sregs, saved.events));
        let regs = machine.finish();
        assert_eq!((regs.r14, regs.r13), (0x42, 0x1111_2222_3333_4444));
        assert_eq!((regs.r15, regs.r12), (0x5555_6666_7777_8888, 0xabcd));
        assert_eq!((regs.r11, regs.r10), (0x30, DATA), "task priority, DR0");
    });
}

#[test]
fn single_steps_stop_behind_each_instruction() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, 1)?;
            a.inc(eax)?;
            a.nop()?;
            a.done()
        });
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        machine.vcpu.set_guest_debug(&kvm_guest_debug { control, ..Default::default() }).unwrap();
        for (length, value) in [(5, 1), (7, 2), (8, 2)] {
            match machine.step() {
                Exit::Debug { exception: 1, pc, .. } => assert_eq!(pc, CODE + length),
                exit => panic!("{exit:?}"),
            }
            assert_eq!(machine.vcpu.regs().unwrap().rax, value);
        }
        machine.vcpu.set_guest_debug(&kvm_guest_debug::default()).unwrap();
        machine.finish();
    });
}

#[test]
fn fpu_registers_are_set_and_read_as_a_whole() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.stmxcsr(dword_ptr(DATA))?;
            a.fnstcw(word_ptr(DATA + 4))?;
            a.movdqu(xmmword_ptr(DATA + 16), xmm7)?;
            a.fstp(tbyte_ptr(DATA + 32))?;
            a.ldmxcsr(dword_ptr(DATA + 8))?;
            a.done()
        });
        machine.write(DATA + 8, &0x1fa0u32.to_le_bytes());
        let mut fpu = machine.vcpu.fpu().unwrap();
        (fpu.mxcsr, fpu.fcw, fpu.fsw, fpu.ftwx) = (0x7f80, 0x27f, 7 << 11, 0x80);
        fpu.xmm[7] = [0x5a; 16];
        fpu.fpr[0][..10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0x40]);
        machine.vcpu.set_fpu(&fpu).unwrap();
        assert_eq!(machine.vcpu.fpu().unwrap(), fpu);
        machine.finish();
        assert_eq!((machine.read_u32(DATA), machine.read::<2>(DATA + 4)), (0x7f80, [0x7f, 2]));
        assert_eq!(machine.read::<16>(DATA + 16), [0x5a; 16]);
        assert_eq!(machine.read::<10>(DATA + 32), [0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0x40], "3.0");
        assert_eq!(machine.vcpu.fpu().unwrap().mxcsr, 0x1fa0);
    });
}

#[test]
fn translation_follows_the_page_tables() {
    on_every_engine(|engine| {
        let machine = Machine::new(engine, Mode::Long, |a| a.done());
        machine.write_u64(PD + 8 * 512, 0x20_0000 | 0x87);
        machine.write_u64(PD + 8 * 513, 0);
        assert_eq!(machine.vcpu.translate(DATA + 5).unwrap(), Some(DATA + 5));
        assert_eq!(machine.vcpu.translate(0x4000_1234).unwrap(), Some(0x20_1234));
        assert_eq!(machine.vcpu.translate(0x4020_0000).unwrap(), None);
        let real = Machine::new(engine, Mode::Real, |a| a.done());
        assert_eq!(real.vcpu.translate(0x1_2345).unwrap(), Some(0x1_2345));
    });
}

#[test]
fn power_on_state_is_that_of_the_manual() {
    on_every_engine(|engine| {
        let vm = engine.create_vm(&Default::default()).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let (regs, sregs) = (vcpu.regs().unwrap(), vcpu.sregs().unwrap());
        assert_eq!((regs.rip, regs.rflags, sregs.cs.base), (0xfff0, 2, 0xffff_0000));
        assert_eq!((sregs.cs.selector, sregs.cr0, sregs.cr4), (0xf000, 0x6000_0010, 0));
        assert_eq!(sregs.apic_base, 0xfee0_0900, "enabled, bootstrap processor");
        assert!(vm.create_vcpu(0).is_err(), "the number is taken");
        assert!(vm.create_vcpu(255).is_err());
    });
}
