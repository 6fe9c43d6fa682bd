//! Programs that do the same on every engine, access by access, and leave the same behind.

use iced_x86::code_asm::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_vcpu::VmConfig;

use crate::harness::*;
use crate::world::{Event, Scenario, caught, same_everywhere, to_user};

/// Instructions of many kinds on device memory: what reaches the bus, and in which order.
#[test]
fn every_form_of_access_reaches_a_device() {
    let program = |a: &mut Asm| {
        a.mov(rbx, MMIO)?;
        a.mov(rdi, MMIO + 0x40)?;
        a.xor(eax, eax)?;
        a.add(eax, dword_ptr(rbx))?;
        a.sub(dword_ptr(rbx + 4), eax)?;
        a.not(word_ptr(rbx + 8))?;
        a.xchg(byte_ptr(rbx + 10), al)?;
        a.mov(ecx, 7)?;
        a.lock().xadd(dword_ptr(rbx + 12), ecx)?;
        a.lock().cmpxchg(dword_ptr(rbx + 16), ecx)?;
        a.bts(dword_ptr(rbx + 20), 3)?;
        a.push(qword_ptr(rbx + 24))?;
        a.pop(qword_ptr(rbx + 32))?;
        a.test(dword_ptr(rbx + 40), 1)?;
        a.sete(byte_ptr(rbx + 44))?;
        a.shl(byte_ptr(rbx + 45), 1)?;
        a.movzx(esi, byte_ptr(rbx + 46))?;
        a.movsx(rsi, word_ptr(rbx + 48))?;
        a.imul_2(rdx, qword_ptr(rbx + 56))?;
        a.stosd()?;
        a.mov(rsi, MMIO + 0x80)?;
        a.mov(edi, DATA as u32)?;
        a.movsq()?;
        a.mov(rsi, MMIO + 0x88)?;
        a.lodsw()?;
        a.mov(rdi, MMIO + 0x90)?;
        a.mov(al, 0x20)?;
        a.mov(ecx, 3)?;
        a.rep().stosb()?;
        a.test(ebx, ebx)?; // IMUL has left flags undefined
        a.done()
    };
    same_everywhere(&VmConfig::default(), program, |run| {
        let expected = [Event::Read(MMIO, Dword), Event::Read(MMIO + 4, Dword)];
        assert_eq!(run.events[..2], expected, "{}", run.engine);
        let stores = [0x90, 0x91, 0x92].map(|at| Event::Write(MMIO + at, Byte, 0x20));
        assert_eq!(run.events[run.events.len() - 3..], stores, "{}", run.engine);
        let widths = |wanted| {
            let of =
                |e: &Event| matches!(e, Event::Read(_, size) | Event::Write(_, size, _) if *size == wanted);
            run.events.iter().filter(|e| of(e)).count()
        };
        assert_eq!(
            [Byte, Word, Dword, Qword].map(widths),
            [9, 4, 11, 4],
            "{}: {:x?}",
            run.engine,
            run.events
        );
    });
}

/// OUTS stops at a page that is not there and goes on when it is. (INS has the device read before KVM looks
/// at where the data goes.)
#[test]
fn string_output_stops_at_a_fault_and_goes_on() {
    const EDGE: u64 = 0x4000_0000 + 0x20_0000;
    let prepare = |machine: &mut Machine| machine.write_u64(PD + (EDGE >> 21) * 8, 0);
    let program = |a: &mut Asm| {
        a.mov(dx, 0x1f0)?;
        a.mov(esi, EDGE as u32 - 6)?;
        a.mov(ecx, 5)?;
        caught(a, |a| a.rep().outsw())?;
        a.mov(r8, rsi)?;
        a.mov(r9, rcx)?;
        a.mov(dword_ptr(PD + (EDGE >> 21) * 8), 0x87)?;
        a.rep().outsw()?;
        a.std()?;
        a.mov(edi, DATA as u32 + 12)?;
        a.mov(ecx, 3)?;
        a.rep().insd()?;
        a.cld()?;
        a.mov(ecx, 4)?;
        a.mov(esi, DATA as u32 + 6)?;
        a.rep().outsb()?;
        a.done()
    };
    Scenario { prepare: &prepare, ..Scenario::new() }.run(program, |run| {
        let fault = &run.caught[0];
        assert_eq!((fault.vector, fault.error, fault.address), (14, 0, Some(EDGE as u32)), "{}", run.engine);
        assert_eq!((run.regs.r8, run.regs.r9), (EDGE, 2), "{}", run.engine);
        let outs = |wanted| {
            run.events.iter().filter(|e| matches!(e, Event::Out(_, size, _) if *size == wanted)).count()
        };
        assert_eq!((outs(Word), outs(Byte)), (5, 4), "{}", run.engine);
        assert_eq!(run.events.iter().filter(|e| matches!(e, Event::In(0x1f0, Dword))).count(), 3);
    });
}

#[test]
fn msrs_keep_what_fits_and_refuse_the_rest() {
    /// Index, a value that is taken, one that is refused.
    const MSRS: [(u32, u64, u64); 8] = [
        (0x174, 0x10, 0), // IA32_SYSENTER_CS takes anything
        (0x175, 0xffff_8000_0000_1000, 0x8000_0000_0000_0000),
        (0x176, 0x7fff_ffff_f000, 0x8000_0000_0000_0000),
        (0xc000_0081, 0x23_0010_0000_0000, 0),
        (0xc000_0082, 0xffff_ffff_8000_0000, 0x1_0000_0000_0000),
        (0xc000_0100, 0x1234_5678, 0x8000_0000_0000_0000),
        (0xc000_0101, 0xffff_8765_0000_0000, 0x8000_0000_0000_0000),
        (0xc000_0102, 0x5555, 0x8000_0000_0000_0000),
    ];
    let program = |a: &mut Asm| {
        for (n, (msr, taken, refused)) in (0..).zip(MSRS) {
            for value in [taken, refused] {
                if value == 0 {
                    continue;
                }
                caught(a, |a| {
                    a.mov(ecx, msr)?;
                    a.mov(eax, value as u32)?;
                    a.mov(edx, (value >> 32) as u32)?;
                    a.wrmsr()
                })?;
            }
            a.mov(ecx, msr)?;
            a.rdmsr()?;
            a.mov(dword_ptr(DATA + 8 * n), eax)?;
            a.mov(dword_ptr(DATA + 8 * n + 4), edx)?;
        }
        a.done()
    };
    let emulation = Some("it takes addresses that are not canonical");
    Scenario { emulation, ..Scenario::new() }.run(program, |run| {
        let refused = MSRS.iter().filter(|msr| msr.2 != 0).count();
        assert_eq!(run.caught.len(), refused, "{}: {:x?}", run.engine, run.caught);
        assert!(run.caught.iter().all(|c| (c.vector, c.error) == (13, 0)), "{}", run.engine);
        for (n, (msr, taken, _)) in (0..).zip(MSRS) {
            assert_eq!(run.word(DATA + 8 * n), taken, "{msr:#x} on {}", run.engine);
        }
    });
}

/// A program between two privilege levels, by gates and back, many times.
#[test]
fn programs_and_kernel_take_turns() {
    let program = |a: &mut Asm| {
        let (mut again, mut end) = (a.create_label(), a.create_label());
        a.mov(ebx, 20)?;
        a.mov(esi, DATA as u32)?;
        a.set_label(&mut again)?;
        a.nop()?;
        to_user(a)?;
        caught(a, |a| {
            a.mov(dword_ptr(rsi), ebx)?;
            a.add(esi, 4)?;
            a.int3()
        })?;
        a.dec(ebx)?;
        a.jz(end)?;
        a.jmp(again)?;
        a.set_label(&mut end)?;
        a.done()
    };
    same_everywhere(&VmConfig::default(), program, |run| {
        assert_eq!(run.caught.len(), 20, "{}", run.engine);
        assert!(run.caught.iter().all(|c| (c.vector, c.cpl) == (3, 3)), "{}", run.engine);
        assert_eq!(run.regs.rsi, DATA + 80, "{}", run.engine);
    });
}

/// Instructions that leave no flag undefined but AF, which is masked.
fn instruction(a: &mut Asm, kind: u8, x: u8, y: u8, value: u32) -> AsmResult {
    const R64: [AsmRegister64; 6] = [rax, rbx, rcx, rdx, r8, r9];
    const R32: [AsmRegister32; 6] = [eax, ebx, ecx, edx, r8d, r9d];
    const R16: [AsmRegister16; 6] = [ax, bx, cx, dx, r8w, r9w];
    const R8: [AsmRegister8; 6] = [al, bl, cl, dl, r8b, r9b];
    let (n, m) = (usize::from(x) % 6, usize::from(y) % 6);
    let place = u64::from(value % 0x100);
    match kind % 30 {
        0 => a.add(R64[n], R64[m]),
        1 => a.sub(R32[n], R32[m]),
        2 => a.adc(R16[n], R16[m]),
        3 => a.sbb(R8[n], R8[m]),
        4 => a.cmp(R64[n], value as i32),
        5 => a.inc(R32[n]),
        6 => a.dec(R64[n]),
        7 => a.neg(R16[n]),
        8 => a.not(R64[n]),
        9 => a.mov(R32[n], value),
        10 => a.lea(R64[n], qword_ptr(R64[m] + value as i32 % 1000)),
        11 => a.xchg(R64[n], R64[m]),
        12 => a.bswap(R64[n]),
        13 => a.movsx(R64[n], R8[m]),
        14 => a.movzx(R32[n], R16[m]),
        15 => a.mov(qword_ptr(DATA + place), R64[n]),
        16 => a.mov(R32[n], dword_ptr(DATA + place)),
        17 => a.add(word_ptr(DATA + place), R16[n]),
        18 => a.sub(R8[n], byte_ptr(DATA + place)),
        19 => a.push(R64[n]).and_then(|()| a.pop(R64[m])),
        20 => a.setg(R8[n]),
        21 => a.cmovb(R64[n], R64[m]),
        22 => a.rol(R64[n], 1),
        23 => a.ror(R32[n], 1),
        24 => a.shl(R64[n], 1),
        25 => a.sar(R16[n], 1),
        26 => a.rcl(R32[n], 1),
        27 => a.xadd(R64[n], R64[m]),
        28 => a.cmpxchg(dword_ptr(DATA + place), R32[n]),
        _ => a.stc(),
    }
}

/// Random sequences end in the same registers, flags and memory.
#[test]
fn random_programs_end_the_same() {
    let one = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u32>());
    let programs = proptest::collection::vec(one, 1..200);
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&programs, |program| {
        let code = |a: &mut Asm| {
            for &(kind, x, y, value) in &program {
                instruction(a, kind, x, y, value)?;
            }
            // AF is undefined after the shifts.
            a.pushfq()?;
            a.pop(r10)?;
            a.and(r10d, 0x8c5)?;
            a.xor(edi, edi)?;
            a.mov(qword_ptr(CODE - 8), rdi)?;
            a.cmp(edi, edi)?;
            a.done()
        };
        same_everywhere(&VmConfig::default(), code, |_| {});
        Ok(())
    });
    result.unwrap();
}
