//! Interrupts through the 8259A and through the IOAPIC.

use crate::harness::*;
use iced_x86::code_asm::*;
use trapline_machine::Outcome;

const LAPIC_EOI: u32 = 0xfee0_00b0;
const LAPIC_SVR: u32 = 0xfee0_00f0;
const IOAPIC_SELECT: u32 = 0xfec0_0000;
const IOAPIC_WINDOW: u32 = 0xfec0_0010;

/// Guest: writes an IOAPIC register.
fn ioapic(a: &mut CodeAssembler, register: u32, value: u32) -> AsmResult {
    a.mov(dword_ptr(IOAPIC_SELECT), register)?;
    a.mov(dword_ptr(IOAPIC_WINDOW), value)
}

#[test]
fn the_pit_interrupts_through_the_pic() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            a.xor(edi, edi)?;
            gate(a, 0x20, handler)?;
            start_pic(a, 0xfffe)?;
            start_pit(a, 2000)?;
            wait(a, &mut idle)?;
            a.set_label(&mut handler)?;
            out(a, 0x20, 0x20)?; // EOI
            count_to(a, 5, idle)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(5 << 1 | 1), "{accel}");
    });
}

#[test]
fn an_interrupt_waits_for_the_window() {
    // The interrupt comes while IF is clear and the guest polls the PIT; it must be taken after STI.
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let (mut handler, mut poll, mut spin) = (a.create_label(), a.create_label(), a.create_label());
            gate(a, 0x20, handler)?;
            start_pic(a, 0xfffe)?;
            // Mode 0, 1000 ticks: OUT rises once, at the end.
            for (port, value) in [(0x43, 0x30), (0x40, 0xe8), (0x40, 0x03)] {
                out(a, port, value)?;
            }
            a.set_label(&mut poll)?;
            out(a, 0x20, 0x0a)?; // OCW3: read IRR
            a.in_(al, 0x20)?;
            a.test(al, 1)?;
            a.jz(poll)?;
            a.sti()?;
            a.set_label(&mut spin)?;
            a.jmp(spin)?;
            a.set_label(&mut handler)?;
            exit(a, 9)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(9 << 1 | 1), "{accel}");
    });
}

#[test]
fn the_pit_interrupts_through_the_ioapic() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            a.xor(edi, edi)?;
            gate(a, 0x40, handler)?;
            start_pic(a, 0xffff)?;
            a.mov(dword_ptr(LAPIC_SVR), 0x1ff)?;
            ioapic(a, 0x10 + 2 * 2 + 1, 0)?; // pin 2: to APIC ID 0
            ioapic(a, 0x10 + 2 * 2, 0x40)?; // fixed, edge, vector 0x40
            start_pit(a, 2000)?;
            wait(a, &mut idle)?;
            a.set_label(&mut handler)?;
            a.mov(dword_ptr(LAPIC_EOI), 0)?;
            count_to(a, 5, idle)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(5 << 1 | 1), "{accel}");
    });
}

#[test]
fn a_level_interrupt_comes_again_until_its_cause_is_gone() {
    // The UART's "transmitter empty" holds IRQ 4. The first two handlers leave the cause and end the
    // interrupt; the third takes it away, and no fourth may come.
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            let (mut third, mut delay) = (a.create_label(), a.create_label());
            a.xor(edi, edi)?;
            gate(a, 0x44, handler)?;
            start_pic(a, 0xffff)?;
            a.mov(dword_ptr(LAPIC_SVR), 0x1ff)?;
            ioapic(a, 0x10 + 4 * 2 + 1, 0)?;
            ioapic(a, 0x10 + 4 * 2, 1 << 15 | 0x44)?; // fixed, level
            out(a, COM1 + 1, 0x02)?; // interrupt when the holding register is empty
            a.set_label(&mut idle)?;
            a.mov(esp, 0x38_0000)?;
            a.sti()?;
            // However long the third takes: the time is for a fourth.
            a.set_label(&mut third)?;
            a.cmp(edi, 3)?;
            a.jb(third)?;
            a.mov(ecx, 20_000)?;
            a.set_label(&mut delay)?;
            a.dec(ecx)?;
            a.jnz(delay)?;
            a.mov(eax, edi)?;
            a.mov(edx, DEBUG_EXIT)?;
            a.out(dx, al)?;
            a.set_label(&mut handler)?;
            a.inc(edi)?;
            let mut leave = a.create_label();
            a.cmp(edi, 3)?;
            a.jb(leave)?;
            out(a, COM1 + 1, 0)?;
            a.set_label(&mut leave)?;
            a.mov(dword_ptr(LAPIC_EOI), 0)?;
            a.jmp(idle)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(3 << 1 | 1), "{accel}");
    });
}

#[test]
fn the_clock_interrupts_on_irq_8() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            a.xor(edi, edi)?;
            gate(a, 0x28, handler)?;
            start_pic(a, 0xfefb)?;
            for (index, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
                out(a, 0x70, index)?; // register B: periodic interrupt, 24 hours
                out(a, 0x71, value)?;
            }
            wait(a, &mut idle)?;
            a.set_label(&mut handler)?;
            out(a, 0x70, 0x0c)?;
            a.in_(al, 0x71)?;
            out(a, 0xa0, 0x20)?;
            out(a, 0x20, 0x20)?;
            count_to(a, 3, idle)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(3 << 1 | 1), "{accel}");
    });
}

#[test]
fn the_power_button_raises_the_sci() {
    on_every_engine(|accel| {
        let (machine, output) = machine(accel, None, |a| {
            let (mut handler, mut idle) = (a.create_label(), a.create_label());
            gate(a, 0x29, handler)?;
            start_pic(a, 0xfdfb)?;
            out(a, 0x602 + 1, 1)?; // PM1 enable: power button
            wait(a, &mut idle)?;
            a.set_label(&mut handler)?;
            a.mov(edx, 0x600)?;
            a.in_(ax, dx)?;
            a.shr(eax, 8)?;
            a.and(eax, 1)?;
            a.add(eax, 0x10)?;
            a.mov(edx, DEBUG_EXIT)?;
            a.out(dx, al)
        });
        let remote = machine.remote();
        let press = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            remote.press_power_button();
        });
        let ran = finish(machine, output);
        press.join().unwrap();
        assert_eq!(ran.outcome, Outcome::DebugExit(0x11 << 1 | 1), "{accel}");
    });
}
