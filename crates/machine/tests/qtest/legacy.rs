//! Scripts for the devices of byte-wide ports: interrupt controllers, keyboard controller, serial port, system
//! control ports. Time stands still in them.

use proptest::prelude::*;

use crate::machine::{Log, Machine};

/// An access, or two that belong together.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    In(u16),
    Out(u16, u8),
    /// The serial port's FIFO control register is written, and interrupts are enabled anew. In QEMU's a reset of
    /// the empty transmitter FIFO makes it empty once more.
    Fifo(u8, u8),
    /// The keyboard controller's output buffer is read until it is empty.
    Drain,
    /// The master is polled, and the slave if its turn has come.
    Poll,
    /// The serial port asks for an interrupt because it can send, or asks no more: IRQ 4.
    Serial(bool),
    /// A byte comes into the keyboard controller's output buffer, or is taken from it: IRQ 1.
    Keyboard(bool),
    /// The same, as if from the mouse: IRQ 12.
    Mouse(bool),
}

fn do_step(machine: &mut dyn Machine, step: &Step, log: &mut Log) {
    let asks = |on| if on { 2 } else { 0 };
    match *step {
        Step::In(port) => log.see("read", port, machine.inb(port)),
        Step::Out(port, value) => machine.outb(port, value),
        Step::Fifo(control, enable) => {
            for (port, value) in [(0x3fb, 0x03), (0x3fa, control), (0x3f9, 0), (0x3f9, enable)] {
                machine.outb(port, value);
            }
        }
        Step::Drain => {
            for i in 0..32_u32 {
                if machine.inb(0x64) & 1 == 0 {
                    break;
                }
                log.see("scan code or answer", i, machine.inb(0x60));
            }
        }
        Step::Poll => {
            machine.outb(0x20, 0x0c);
            let master = machine.inb(0x20);
            log.see("master polled", 0_u32, master);
            if master == 0x82 {
                machine.outb(0xa0, 0x0c);
                log.see("slave polled", 0_u32, machine.inb(0xa0));
            }
        }
        Step::Serial(on) => machine.outb(0x3f9, asks(on)),
        Step::Keyboard(true) | Step::Mouse(true) => {
            // One byte at a time: in QEMU's controller a second replaces the first.
            do_step(machine, &Step::Drain, log);
            machine.outb(0x64, if matches!(step, Step::Keyboard(_)) { 0xd2 } else { 0xd3 });
            machine.outb(0x60, 0x55);
        }
        Step::Keyboard(false) | Step::Mouse(false) => {
            machine.inb(0x60);
        }
    }
}

/// One of `steps` each time.
fn script(steps: impl Strategy<Value = Step>, longest: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(steps, 1..longest)
}

/// The 8259A pair.
pub mod pic {
    use super::*;

    pub fn scripts() -> impl Strategy<Value = Vec<Step>> {
        any::<bool>().prop_flat_map(script_with)
    }

    /// In special mask mode, which QEMU's has, an unspecific EOI passes over masked levels, in QEMU's it does not.
    fn script_with(special_mask: bool) -> impl Strategy<Value = Vec<Step>> {
        let chip = || prop::sample::select(&[0x20_u16, 0xa0][..]);
        let ends: &[u8] = if special_mask {
            &[0x60, 0x60, 0xe0, 0xc0, 0x80, 0x00, 0x40]
        } else {
            &[0x20, 0x20, 0x60, 0xa0, 0xe0, 0xc0, 0x80, 0x00, 0x40]
        };
        let modes: &[u8] = if special_mask { &[0x0a, 0x0b, 0x68, 0x48, 0x08] } else { &[0x0a, 0x0b, 0x08] };
        let ocw2 = (chip(), prop::sample::select(ends), 0..8_u8)
            .prop_map(|(port, command, level)| Step::Out(port, command | level));
        let ocw3 = (chip(), prop::sample::select(modes)).prop_map(|(port, value)| Step::Out(port, value));
        let mask = any::<u8>().prop_map(|value| Step::Out(0x21, value));
        let read = (chip(), 0..2_u16).prop_map(|(port, a0)| Step::In(port + a0));
        // What is level-triggered is settled first: QEMU looks at it again only when a line changes. At the slave
        // nothing is, and its mask is settled too: its INT does not fall before the master was polled, which
        // QEMU's master would not see.
        let first =
            any::<[u8; 2]>().prop_map(|[levels, mask]| vec![Step::Out(0x4d0, levels), Step::Out(0xa1, mask)]);
        let source = (0..3_u8, any::<bool>()).prop_map(|(which, on)| match which {
            0 => Step::Serial(on),
            1 => Step::Keyboard(on),
            _ => Step::Mouse(on),
        });
        let rest = script(
            prop_oneof![4 => ocw2, 4 => ocw3, 2 => mask, 5 => read, 5 => source, 3 => Just(Step::Poll)],
            120,
        );
        (first, rest).prop_map(|(first, rest)| [first, rest].concat())
    }

    pub fn prepare(machine: &mut dyn Machine) {
        for (port, base) in [(0x20, 0x08), (0xa0, 0x70)] {
            let icw3 = if port == 0x20 { 4 } else { 2 };
            [0x11, base, icw3, 0x01]
                .into_iter()
                .zip([0, 1, 1, 1])
                .for_each(|(v, a)| machine.outb(port + a, v));
        }
        machine.outb(0x64, 0x60);
        machine.outb(0x60, 0x03); // both devices of the keyboard controller interrupt
    }

    pub fn perform(machine: &mut dyn Machine, step: &Step, log: &mut Log) {
        do_step(machine, step, log);
        log.see("lines", 0_u32, machine.lines());
        for port in [0x21, 0xa1, 0x4d0, 0x4d1] {
            log.see("register", port, machine.inb(port));
        }
    }
}

/// The keyboard controller with its two devices.
pub mod i8042 {
    use super::*;

    /// Commands, each with its parameter. Answers are read before anything else is asked: in QEMU's controller
    /// they replace each other.
    pub fn scripts() -> impl Strategy<Value = Vec<Step>> {
        let alone: &[u8] = &[0x20, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xae];
        let with_byte: &[u8] = &[0x60, 0xd1, 0xd2, 0xd3];
        let controller = prop_oneof![
            prop::sample::select(alone).prop_map(|command| vec![Step::Out(0x64, command)]),
            (prop::sample::select(with_byte), any::<u8>()).prop_map(|(command, byte)| {
                // Never a reset of the processor by the output port.
                // The system flag of the command byte is not seen in QEMU's status. While the keyboard is off
                // QEMU's controller does not interrupt for its own answers either.
                let byte = match command {
                    0xd1 => byte | 0x01,
                    0x60 => byte & !0x10 | 0x04,
                    _ => byte,
                };
                vec![Step::Out(0x64, command), Step::Out(0x60, byte)]
            }),
        ];
        let keyboard: &[(u8, Option<u8>)] = &[
            (0xed, Some(0x02)),
            (0xed, Some(0x07)),
            (0xee, None),
            (0xf0, Some(0)),
            (0xf0, Some(1)),
            (0xf0, Some(2)),
            (0xf2, None),
            (0xf3, Some(0x20)),
            (0xf4, None),
            (0xf5, None),
            (0xf6, None),
            (0xff, None),
        ];
        let mouse: &[(u8, Option<u8>)] = &[
            (0xe6, None),
            (0xe7, None),
            (0xe8, Some(0)),
            (0xe8, Some(3)),
            (0xe9, None),
            (0xea, None),
            (0xeb, None),
            (0xf0, None),
            (0xf2, None),
            (0xf3, Some(200)),
            (0xf3, Some(100)),
            (0xf3, Some(80)),
            (0xf4, None),
            (0xf5, None),
            (0xf6, None),
            (0xff, None),
        ];
        let to_keyboard = prop::sample::select(keyboard).prop_map(|(command, byte)| {
            let bytes = [command].into_iter().chain(byte);
            bytes.flat_map(|byte| [Step::Out(0x60, byte), Step::Drain]).collect::<Vec<_>>()
        });
        let to_mouse = prop::sample::select(mouse).prop_map(|(command, byte)| {
            let bytes = [command].into_iter().chain(byte);
            bytes.flat_map(|byte| [Step::Out(0x64, 0xd4), Step::Out(0x60, byte), Step::Drain]).collect()
        });
        let any = prop_oneof![3 => controller, 4 => to_keyboard, 4 => to_mouse];
        let step = any.prop_map(|steps| [steps, vec![Step::Drain]].concat());
        prop::collection::vec(step, 1..40).prop_map(|steps| steps.concat())
    }

    /// The self test has passed, both interrupts are on, scan codes are translated.
    pub fn prepare(machine: &mut dyn Machine) {
        machine.outb(0x64, 0xaa);
        machine.inb(0x60);
        machine.outb(0x64, 0x60);
        machine.outb(0x60, 0x47);
        machine.outb(0x64, 0xd4);
        machine.outb(0x60, 0xff);
        do_step(machine, &Step::Drain, &mut Log::default());
    }

    pub fn perform(machine: &mut dyn Machine, step: &Step, log: &mut Log) {
        do_step(machine, step, log);
        // QEMU's bit 3 does not tell commands from data.
        log.see("status", 0_u32, machine.inb(0x64) & !0x08);
        log.see("lines", 0_u32, machine.lines() & (1 << 1 | 1 << 12));
    }
}

/// The serial port, with nothing at its other end.
pub mod uart {
    use super::*;

    pub fn scripts() -> impl Strategy<Value = Vec<Step>> {
        let read = (0x3f8..0x400_u16).prop_map(Step::In);
        let write = (0x3f8..0x400_u16, any::<u8>()).prop_map(|(port, value)| {
            // In QEMU's, loop-back changes no modem line, so no interrupt for that, and has no break.
            // The FIFO's trigger level is one: below others QEMU's waits for the time-out.
            match port {
                0x3f9 => Step::Out(port, value & !0x08),
                0x3fa => Step::Fifo(value & 0x3f, value >> 3 & !0x08),
                0x3fb => Step::Out(port, value & !0x40),
                _ => Step::Out(port, value),
            }
        });
        script(prop_oneof![read, write], 120)
    }

    /// A divisor, and the modem lines that QEMU starts with.
    pub fn prepare(machine: &mut dyn Machine) {
        for (port, value) in [(0x3fb, 0x83), (0x3f8, 12), (0x3f9, 0), (0x3fb, 0x03), (0x3fc, 0x08)] {
            machine.outb(port, value);
        }
    }

    pub fn perform(machine: &mut dyn Machine, step: &Step, log: &mut Log) {
        match step {
            // An empty receiver has the last character in QEMU's.
            Step::In(0x3f8) if machine.inb(0x3fb) & 0x80 == 0 => {
                let status = machine.inb(0x3fd);
                log.see("line status", 0_u32, status);
                if status & 1 != 0 {
                    log.see("received", 0_u32, machine.inb(0x3f8));
                }
            }
            Step::In(0x3fe) => log.see("modem", 0_u32, machine.inb(0x3fe) & 0xf0),
            _ => do_step(machine, step, log),
        }
        log.see("lines", 0_u32, machine.lines() & 1 << 4);
        for port in [0x3fb, 0x3fc, 0x3ff] {
            log.see("register", port, machine.inb(port));
        }
    }
}
