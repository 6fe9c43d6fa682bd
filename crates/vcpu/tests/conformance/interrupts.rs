//! Interrupts: by message through the local APIC, from the 8259A, non-maskable; windows and shadows.

use std::thread;
use std::time::Duration;

use iced_x86::code_asm::*;
use trapline_device::Msi;
use trapline_vcpu::{Entry, Exit, Vcpu};

use crate::harness::*;

const APIC: u64 = 0xfee0_0000;
const SVR: u32 = 0xf0;
const EOI: u32 = 0xb0;
const IRR: usize = 0x200;
const PPR: i32 = 0xa0;
const ICR: u32 = 0x300;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_DIVIDE: u32 = 0x3e0;

/// A fixed, edge-triggered message to APIC ID 0.
fn msi(vector: u8) -> Msi {
    Msi { address: APIC, data: vector.into() }
}

/// Writes a register of the local APIC; leaves its base in RBP.
fn write_apic(a: &mut Asm, register: u32, value: u32) -> AsmResult {
    a.mov(ebp, APIC as u32)?;
    a.mov(dword_ptr(rbp + register as i32), value)
}

/// Enables the local APIC, says so at port 0x80, and waits; the handler of `vector` ends the interrupt
/// and the test.
fn wait_for(a: &mut Asm, vector: u8) -> AsmResult {
    write_apic(a, SVR, 0x1ff)?;
    a.out(0x80, al)?;
    sti_and_wait(a)?;
    a.handler(vector)?;
    a.mov(ebx, 0x1234)?;
    write_apic(a, EOI, 0)?;
    a.done()
}

fn sti_and_wait(a: &mut Asm) -> AsmResult {
    let mut again = a.create_label();
    a.sti()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

/// Where the in-service bit of a vector is.
fn isr(vector: u8) -> i32 {
    0x100 + i32::from(vector / 32) * 16
}

/// Whether a vector is pending in the saved state.
fn requested(vcpu: &dyn Vcpu, vector: u8) -> bool {
    let page = vcpu.lapic().unwrap().regs;
    let byte = page[IRR + usize::from(vector) / 32 * 16 + usize::from(vector) % 32 / 8];
    byte as u8 & 1 << (vector % 8) != 0
}

#[test]
fn message_is_delivered_once_interrupts_are_enabled() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| wait_for(a, 0x41));
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vm.signal_msi(msi(0x41)).unwrap();
        assert_eq!(machine.finish().rbx, 0x1234);
        assert!(!requested(&*machine.vcpu, 0x41));
    });
}

#[test]
fn message_through_the_sink_wakes_a_halted_vcpu() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| wait_for(a, 0x52));
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        let sink = machine.vm.msi_sink();
        let device = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            sink.signal(msi(0x52));
        });
        assert_eq!(machine.finish().rbx, 0x1234);
        device.join().unwrap();
    });
}

#[test]
fn message_stays_pending_while_interrupts_are_off() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            a.out(0x80, al)?;
            a.settle()?;
            a.out(0x81, al)?;
            a.sti()?;
            a.settle()?;
            a.done()?;
            a.handler(0x41)?;
            a.mov(ebx, 1)?;
            a.iretq()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vm.signal_msi(msi(0x41)).unwrap();
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x81, .. }));
        assert_eq!(machine.vcpu.regs().unwrap().rbx, 0);
        assert!(requested(&*machine.vcpu, 0x41));
        assert_eq!(machine.finish().rbx, 1);
    });
}

/// Until its EOI, an interrupt holds back those of its priority class and below.
#[test]
fn end_of_interrupt_lets_the_next_one_in() {
    on_native_engines("it leaves the in-service register empty for edge-triggered messages", |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            a.sti()?;
            a.out(0x80, al)?;
            a.settle()?;
            a.out(0x81, al)?;
            a.settle()?;
            a.mov(ebx, dword_ptr(rbp + isr(0x41)))?;
            a.mov(edx, dword_ptr(rbp + PPR))?;
            a.out(0x82, al)?;
            write_apic(a, EOI, 0)?;
            a.settle()?;
            a.out(0x83, al)?;
            a.handler(0x41)?;
            a.iretq()?;
            a.handler(0x40)?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vm.signal_msi(msi(0x41)).unwrap();
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x81, .. }));
        machine.vm.signal_msi(msi(0x40)).unwrap();
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x82, .. }));
        let regs = machine.finish();
        assert_eq!((regs.rbx, regs.rdx), (2, 0x40), "in service, and its priority");
    });
}

/// The higher vector comes first; the other one after its EOI.
#[test]
fn higher_vectors_have_priority() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            a.out(0x80, al)?;
            sti_and_wait(a)?;
            a.handler(0x71)?;
            a.out(0x71, al)?;
            write_apic(a, EOI, 0)?;
            a.iretq()?;
            a.handler(0x31)?;
            a.out(0x31, al)?;
            write_apic(a, EOI, 0)?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vm.signal_msi(msi(0x31)).unwrap();
        machine.vm.signal_msi(msi(0x71)).unwrap();
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x71, .. }));
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x31, .. }));
        machine.finish();
    });
}

#[test]
fn message_to_nobody_is_dropped() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            a.sti()?;
            a.out(0x80, al)?;
            a.settle()?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vm.signal_msi(Msi { address: APIC | 7 << 12, data: 0x41 }).unwrap();
        machine.finish();
    });
}

#[test]
fn self_ipi_interrupts() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            write_apic(a, ICR, 0b01 << 18 | 0x61)?;
            sti_and_wait(a)?;
            a.handler(0x61)?;
            a.done()
        });
        machine.finish();
    });
}

#[test]
fn apic_timer_wakes_a_halted_vcpu() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            write_apic(a, TIMER_DIVIDE, 0b1011)?;
            write_apic(a, LVT_TIMER, 0x62)?;
            write_apic(a, TIMER_INITIAL, 100_000)?;
            sti_and_wait(a)?;
            a.handler(0x62)?;
            a.done()
        });
        machine.finish();
    });
}

/// A level-triggered message of the IOAPIC's: the board learns of its end, and only of that one's.
#[test]
fn end_of_a_level_triggered_interrupt_exits() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            a.out(0x80, al)?;
            sti_and_wait(a)?;
            a.handler(0x41)?;
            write_apic(a, EOI, 0)?;
            a.iretq()?;
            a.handler(0x51)?;
            write_apic(a, EOI, 0)?;
            a.settle()?;
            a.done()
        });
        let level = Msi { address: APIC, data: 0xc051 };
        machine.vm.set_ioapic_route(5, Some(level)).unwrap();
        machine.vm.set_ioapic_route(6, Some(msi(0x41))).unwrap();
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vm.signal_msi(msi(0x41)).unwrap();
        machine.vm.signal_msi(level).unwrap();
        assert_eq!(machine.step(), Exit::IoapicEoi { vector: 0x51 });
        machine.finish();
        machine.vm.set_ioapic_route(5, None).unwrap();
        assert!(machine.vm.set_ioapic_route(24, None).is_err());
    });
}

/// CLI, then STI: an ExtINT waits for the window. How many bytes behind the STI it comes.
fn extint_waits_for_the_window(mut machine: Machine) -> u64 {
    assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
    assert!(!machine.vcpu.ready_for_extint(), "RFLAGS.IF is clear");
    let window = Entry { want_window: true, ..Entry::default() };
    assert_eq!(machine.run(window), Exit::InterruptWindow);
    assert!(machine.vcpu.ready_for_extint());
    let exit = machine.run(Entry { extint: Some(0x28), ..Entry::default() });
    let regs = machine.done(exit);
    assert!(regs.rbx > regs.r8 + 1, "STI lets one more instruction through");
    regs.rbx - regs.r8
}

fn extint_guest(a: &mut Asm) -> AsmResult {
    let mut at_sti = a.create_label();
    a.lea(r8, ptr(at_sti))?;
    a.out(0x80, al)?;
    a.set_label(&mut at_sti)?;
    a.sti()?;
    a.nop()?;
    a.settle()?;
    a.out(0x81, al)?;
    a.handler(0x28)?;
    a.mov(rbx, qword_ptr(rsp))?;
    a.done()
}

#[test]
fn extint_waits_for_the_window_without_local_apics() {
    on_every_engine(|engine| {
        extint_waits_for_the_window(Machine::without_apic(engine, Mode::Long, extint_guest));
    });
}

#[test]
fn extint_waits_for_the_window_with_lint0_open() {
    on_every_engine(|engine| {
        extint_waits_for_the_window(Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            write_apic(a, LVT_LINT0, 0x700)?;
            extint_guest(a)
        }));
    });
}

#[test]
fn window_opens_one_instruction_behind_sti() {
    on_native_engines("it looks at events only every so many instructions", |engine| {
        let machine = Machine::without_apic(engine, Mode::Long, extint_guest);
        assert_eq!(extint_waits_for_the_window(machine), 2, "sti; nop");
    });
}

#[test]
fn masked_lint0_keeps_the_8259a_out() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            write_apic(a, LVT_LINT0, 0x1_0000)?;
            a.sti()?;
            a.settle()?;
            a.out(0x80, al)?;
            a.settle()?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        assert!(!machine.vcpu.ready_for_extint());
        let exit = machine.run(Entry { want_window: true, ..Entry::default() });
        machine.done(exit);
    });
}

#[test]
fn extint_wakes_a_halted_vcpu_after_a_kick() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            write_apic(a, SVR, 0x1ff)?;
            write_apic(a, LVT_LINT0, 0x700)?;
            sti_and_wait(a)?;
            a.handler(0x28)?;
            a.done()
        });
        let kicker = machine.vcpu.kicker();
        let pic = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            kicker.kick();
        });
        assert_eq!(machine.step(), Exit::Interrupted);
        assert!(machine.vcpu.ready_for_extint());
        let exit = machine.run(Entry { extint: Some(0x28), ..Entry::default() });
        machine.done(exit);
        pic.join().unwrap();
    });
}

#[test]
fn nmi_ignores_the_interrupt_flag() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.out(0x80, al)?;
            a.settle()?;
            a.out(0x81, al)?;
            a.handler(2)?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        machine.vcpu.complete(Default::default()).unwrap();
        machine.vcpu.inject_nmi().unwrap();
        machine.finish();
    });
}

/// A processor that handles an NMI remembers one more, however many come (SDM vol. 3 §7.7.1).
#[test]
fn one_nmi_waits_behind_the_one_that_is_handled() {
    on_native_engines("it remembers two", |engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let (mut wait, mut leave) = (a.create_label(), a.create_label());
            write_apic(a, SVR, 0x1ff)?;
            a.xor(ebx, ebx)?;
            write_apic(a, ICR, 0x4400)?;
            a.set_label(&mut wait)?;
            a.cmp(ebx, 2)?;
            a.jb(wait)?;
            a.settle()?;
            a.done()?;
            a.handler(2)?;
            a.inc(ebx)?;
            a.cmp(ebx, 1)?;
            a.jne(leave)?;
            for _ in 0..3 {
                write_apic(a, ICR, 0x4400)?;
            }
            a.set_label(&mut leave)?;
            a.iretq()
        });
        assert_eq!(machine.finish().rbx, 2, "{engine}");
    });
}

/// INIT and SIPI start the second processor in real mode, at the page that the vector names.
#[test]
fn second_processor_starts_by_init_and_sipi() {
    on_every_engine(|engine| {
        const START: u64 = 0x9000;
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let mut wait = a.create_label();
            write_apic(a, SVR, 0x1ff)?;
            write_apic(a, ICR + 0x10, 1 << 24)?;
            write_apic(a, ICR, 0x4500)?;
            write_apic(a, ICR, 0x4600 | (START >> 12) as u32)?;
            a.mov(ebx, DATA as u32)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(word_ptr(rbx), 0x77)?;
            a.jne(wait)?;
            a.done()
        });
        let (code, _) = assemble(16, START, |a| {
            a.mov(ax, (DATA >> 4) as u32)?;
            a.mov(ds, ax)?;
            a.mov(word_ptr(0), 0x77u32)?;
            a.mov(ax, cs)?;
            a.done()
        });
        machine.write(START, &code);
        let mut second = machine.vm.create_vcpu(1).unwrap();
        let leaves = machine.vm.supported_cpuid().unwrap();
        let two = trapline_vcpu::cpuid::Topology::flat(2);
        second.set_cpuid(&trapline_vcpu::cpuid::for_vcpu(&leaves, &two, 1).unwrap()).unwrap();
        let second = thread::spawn(move || {
            let exit = second.run(Entry::default()).unwrap();
            (exit, second.regs().unwrap().rax)
        });
        machine.finish();
        let (exit, code_segment) = second.join().unwrap();
        assert!(matches!(exit, Exit::PioWrite { port: DONE, .. }), "{exit:?}");
        assert_eq!(code_segment & 0xffff, START >> 4);
    });
}
