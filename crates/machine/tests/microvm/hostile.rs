//! A guest that touches everything.

use crate::harness::*;
use iced_x86::code_asm::*;
use trapline_machine::Outcome;

/// Ports where a write, as wide as four bytes, ends the run by design.
const ENDS: [(i32, i32); 5] = [(0x61, 0x64), (0x8f, 0x92), (0x4fe, 0x504), (0x601, 0x605), (0xcf6, 0xcf9)];

#[test]
fn every_port_can_be_read_and_written() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
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
        assert_eq!(ran.outcome, Outcome::DebugExit(0x42 << 1 | 1), "{accel}");
    });
}

#[test]
fn unclaimed_ports_and_memory_read_all_ones() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let mut wrong = a.create_label();
            for port in [0x2f8, 0x3e8, 0x1f0, 0xcfc, 0xfffc] {
                a.mov(edx, port)?;
                a.in_(eax, dx)?;
                a.cmp(eax, -1)?;
                a.jne(wrong)?;
            }
            for address in [0xc000_0000_u32, 0xe000_0ffc, 0xfed0_0000, 0xffff_fff0] {
                a.mov(dword_ptr(address), 0x1234)?;
                a.cmp(dword_ptr(address), -1)?;
                a.jne(wrong)?;
            }
            exit(a, 1)?;
            a.set_label(&mut wrong)?;
            exit(a, 2)
        });
        assert_eq!(ran.outcome, Outcome::DebugExit(3), "{accel}");
    });
}

#[test]
fn the_hole_and_the_ioapic_can_be_written_all_over() {
    on_every_engine(|accel| {
        let ran = run(accel, |a| {
            let (mut hole, mut page) = (a.create_label(), a.create_label());
            a.mov(edi, 0xc000_0000_u32)?;
            a.set_label(&mut hole)?;
            a.mov(dword_ptr(edi), edi)?;
            a.mov(eax, dword_ptr(edi))?;
            a.mov(byte_ptr(edi + 7), al)?;
            a.add(edi, 0x0010_0000)?;
            a.cmp(edi, 0xfec0_0000_u32 as i32)?;
            a.jb(hole)?;
            a.xor(ecx, ecx)?;
            a.set_label(&mut page)?; // all registers with all sorts of values, at all offsets
            a.imul_3(eax, ecx, 0x9e37_79b1_u32 as i32)?;
            a.mov(dword_ptr(0xfec0_0000_u32), ecx)?;
            a.mov(dword_ptr(0xfec0_0010_u32), eax)?;
            a.mov(dword_ptr(ecx * 4 + 0xfec0_0000_u32 as i32), eax)?;
            a.mov(word_ptr(ecx * 4 + 0xfec0_0001_u32 as i32), ax)?;
            a.inc(ecx)?;
            a.cmp(ecx, 0x400)?;
            a.jb(page)?;
            exit(a, 0x43)
        });
        // The IOAPIC may well have been told to send INIT or NMI to this very processor.
        assert!(
            matches!(ran.outcome, Outcome::DebugExit(0x87) | Outcome::Shutdown | Outcome::Stuck(_)),
            "{accel}: {:?}",
            ran.outcome
        );
    });
}
