//! Guests that touch everything.

use iced_x86::code_asm::*;
use trapline_device::AccessSize::{self, Byte, Dword, Qword, Word};
use trapline_machine::{MachineState, Outcome};
use trapline_vcpu::Accel;

use crate::harness::*;

/// Ports where a write, as wide as four bytes, ends the run or moves memory by design: keyboard controller,
/// 0x92, debug exit, DMA of fw_cfg, PM1 control, reset control.
const ENDS: [(i32, i32); 6] =
    [(0x61, 0x64), (0x8f, 0x92), (0x4fe, 0x504), (0x511, 0x51b), (0x601, 0x605), (0xcf6, 0xcf9)];

#[test]
fn every_port_can_be_read_and_written() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            let (mut next, mut skip) = (a.create_label(), a.create_label());
            a.xor(edi, edi)?;
            a.set_label(&mut next)?;
            a.mov(edx, edi)?;
            a.in_(eax, dx)?;
            for (first, last) in ENDS {
                let mut outside = a.create_label();
                a.cmp(edi, first)?;
                a.jb(outside)?;
                a.cmp(edi, last)?;
                a.jbe(skip)?;
                a.set_label(&mut outside)?;
            }
            a.imul_3(eax, edi, 0x9e37_79b1_u32 as i32)?;
            a.out(dx, eax)?;
            a.set_label(&mut skip)?;
            a.inc(edi)?;
            a.cmp(edi, 0x1_0000)?;
            a.jb(next)?;
            exit(a, 0x42)
        });
        let ran = finish(machine(accel, guest, |_, _| {}));
        assert_eq!(ran.outcome, Outcome::DebugExit(0x42 << 1 | 1), "{accel}");
    });
}

/// Writes all-ones, and then something, to each doubleword of the first 64 functions' configuration space, and
/// touches memory where BARs may be now.
#[test]
fn configuration_space_can_be_written_all_over() {
    on_every_engine(|accel| {
        let guest = direct(|a| {
            let mut next = a.create_label();
            a.xor(edi, edi)?;
            a.set_label(&mut next)?;
            a.lea(eax, ptr(edi * 4 + 0x8000_0000_u32 as i32))?;
            a.mov(edx, 0xcf8)?;
            a.out(dx, eax)?;
            a.mov(dl, 0xfc)?;
            a.mov(eax, -1)?;
            a.out(dx, eax)?;
            a.imul_3(eax, edi, 0x9e37_79b1_u32 as i32)?;
            a.out(dx, eax)?;
            a.in_(eax, dx)?;
            a.and(eax, 0x0fff_fffc)?;
            a.or(eax, 0xe000_0000_u32 as i32)?;
            a.mov(ebx, dword_ptr(eax))?;
            a.mov(dword_ptr(eax), ebx)?;
            a.inc(edi)?;
            a.cmp(edi, 64 * 64)?;
            a.jb(next)?;
            exit(a, 0x44)
        });
        let ran = finish(machine(accel, guest, |_, _| {}));
        // It may well have switched off the RAM that it does not know to be in, or the PIC's way to it.
        assert!(
            matches!(ran.outcome, Outcome::DebugExit(0x89) | Outcome::Stuck(_)),
            "{accel}: {:?}",
            ran.outcome
        );
    });
}

/// xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()]
    }
}

/// Random accesses, most of them where devices are, with the machine's state taken and put back now and then:
/// whatever it is, the machine takes it.
#[test]
fn random_accesses_are_taken_and_any_state_can_be_restored() {
    const PORTS: [(u16, u16); 14] = [
        (0x0, 0x100),
        (0x1f0, 8),
        (0x170, 8),
        (0x3f6, 1),
        (0x3c0, 32),
        (0x1ce, 3),
        (0x3f8, 8),
        (0x510, 2),
        (0x600, 64),
        (0x700, 16),
        (0xc000, 64),
        (0xcf8, 8),
        (0xcfc, 4),
        (0xafe0, 4),
    ];
    const MEMORY: [(u64, u64); 6] = [
        (0xa_0000, 0x6_0000),
        (0xfec0_0000, 0x40),
        (0xfed0_0000, 0x400),
        (0x8000_0000, 0x200_0000),
        (0xe000_0000, 0x100_0000),
        (0, 0x1_0000_0000),
    ];
    let mut here = machine(Accel::Soft, rom(|a| a.hlt()), |_, _| {}).pc;
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..40 {
        let mut access = here.access();
        for _ in 0..500 {
            let size: AccessSize = random.of(&[Byte, Word, Dword]);
            let (base, len) = random.of(&PORTS);
            let port = base + random.next() as u16 % len;
            let value = random.next() as u32;
            // Configuration addresses are of functions that are there.
            let value = if port == 0xcf8 { 0x8000_0000 | value & 0x1fff } else { value };
            let (base, len) = random.of(&MEMORY);
            let address = base + random.next() % len;
            let wide = random.of(&[Byte, Word, Dword, Qword]);
            match random.next() % 4 {
                0 => drop(access.port_read(port, size)),
                1 => access.port_write(port, size, value).unwrap(),
                2 => drop(access.memory_read(address, wide)),
                _ => access.memory_write(address, wide, random.next()).unwrap(),
            }
        }
        access.poll();
        let state = postcard::to_stdvec(&here.save().unwrap()).unwrap();
        let mut there = machine(Accel::Soft, rom(|a| a.hlt()), |_, _| {}).pc;
        there
            .restore(postcard::from_bytes::<MachineState>(&state).unwrap())
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        here = there;
        if round % 8 == 7 {
            here.reset().unwrap();
        }
    }
}
