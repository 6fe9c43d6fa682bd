//! Instructions: identification, registers, arithmetic flags, self-modifying code, locked operations.

use iced_x86::code_asm::*;
use kvm_bindings::{CpuId, kvm_msr_entry};
use trapline_vcpu::{CpuModel, Exit, VmConfig};

use crate::harness::*;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

#[test]
fn cpuid_shows_the_leaves_that_were_set() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(r8d, ebx)?;
            a.mov(r9d, ecx)?;
            a.mov(r10d, edx)?;
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.done()
        });
        let leaves = machine.vcpu.cpuid().unwrap();
        let leaf = |n| *leaves.as_slice().iter().find(|l| l.function == n).unwrap();
        let regs = machine.finish();
        assert_eq!([regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|r| r as u32), {
            let l = leaf(0);
            [l.eax, l.ebx, l.ecx, l.edx]
        });
        assert_eq!(regs.r8 >> 24, 0, "APIC ID");
        assert_ne!(regs.r9 & 1 << 31, 0, "hypervisor present");
        assert_eq!(regs.r9 & 1 << 5, 0, "no VMX unless asked for");
        let fpu_tsc_msr_pae_sse2 = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 26;
        assert_eq!(regs.r10 & fpu_tsc_msr_pae_sse2, fpu_tsc_msr_pae_sse2);
    });
}

/// Features beyond the model are hidden, and their instructions do not exist.
#[test]
fn a_processor_model_hides_what_it_does_not_have() {
    let v1 = CpuModel::named("x86-64-v1").unwrap();
    let config = VmConfig { cpu: Some(v1), ..VmConfig::default() };
    on_every_engine(|engine| {
        let mut machine = Machine::with_config(engine, &config, Mode::Long, |a| {
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(r8d, ecx)?;
            a.mov(r9d, edx)?;
            a.mov(eax, 7)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            a.done()
        });
        let leaf1 = |leaves: CpuId| leaves.as_slice().iter().find(|leaf| leaf.function == 1).map(|l| l.ecx);
        if leaf1(machine.vcpu.cpuid().unwrap()) != leaf1(machine.vm.supported_cpuid().unwrap()) {
            eprintln!("skipped on {engine}: it shows the host's features whatever leaves are set");
            return;
        }
        let regs = machine.finish();
        let (sse3, sse42, xsave, avx) = (1, 1 << 20, 1 << 26, 1 << 28);
        assert_eq!(regs.r8 & (sse3 | sse42 | xsave | avx), 0);
        assert_ne!(regs.r9 & 1 << 26, 0, "SSE2");
        let (bmi1, avx2, smap) = (1 << 3, 1 << 5, 1 << 20);
        assert_eq!(regs.rbx & (bmi1 | avx2 | smap), 0);
    });
}

#[test]
fn msrs_written_by_the_guest_are_read_by_guest_and_host() {
    const LSTAR: u32 = 0xc000_0082;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ecx, LSTAR)?;
            a.mov(eax, 0x8765_4321u32)?;
            a.mov(edx, 0xffff_8000u32)?;
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.rdmsr()?;
            a.mov(r8d, eax)?;
            a.mov(r9d, edx)?;
            a.mov(ecx, KERNEL_GS_BASE)?;
            a.rdmsr()?;
            a.done()
        });
        let set = kvm_msr_entry { index: KERNEL_GS_BASE, data: 0x1122_3344, ..Default::default() };
        machine.vcpu.set_msrs(&[set]).unwrap();
        let regs = machine.finish();
        assert_eq!((regs.r8, regs.r9, regs.rax), (0x8765_4321, 0xffff_8000, 0x1122_3344));
        let unknown = 0x4000_0fff;
        let read = machine.vcpu.msrs(&[unknown, LSTAR, unknown, KERNEL_GS_BASE]).unwrap();
        let read: Vec<_> = read.iter().map(|m| (m.index, m.data)).collect();
        assert_eq!(read, [(LSTAR, 0xffff_8000_8765_4321), (KERNEL_GS_BASE, 0x1122_3344)]);
        let refused = kvm_msr_entry { index: unknown, ..Default::default() };
        assert!(machine.vcpu.set_msrs(&[set, refused]).is_err());
    });
}

#[test]
fn hlt_exits_where_there_is_no_local_apic() {
    on_every_engine(|engine| {
        let mut machine = Machine::without_apic(engine, Mode::Long, |a| {
            a.mov(eax, 7)?;
            a.hlt()?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::Halt);
        assert_eq!(machine.finish().rax, 7);
    });
}

#[test]
fn time_stamp_counter_goes_forward() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.lea(r8, qword_ptr(rax + rdx))?;
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.add(rax, rdx)?;
            a.done()
        });
        let regs = machine.finish();
        assert!(regs.rax > regs.r8, "{:#x} then {:#x}", regs.r8, regs.rax);
    });
}

/// An operation on two values with a carry in: result, and status flags by the definition in SDM vol. 1
/// §3.4.3.1. Flags that are undefined are left out by `defined`.
struct Alu {
    name: &'static str,
    code: fn(&mut Asm) -> AsmResult,
    /// Result and flags of `(a, b, carry, bits)`; only CF, OF and AF, the others follow from the result.
    expected: fn(u64, u64, u64, u32) -> (u64, u64),
    bits: u32,
    defined: u64,
}

/// CF is bit 0: a carry is its flag.
fn flags(carry: bool, overflow: bool, half: bool) -> u64 {
    [(carry, CF), (overflow, OF), (half, AF)].iter().filter(|f| f.0).map(|f| f.1).sum()
}

fn add(a: u64, b: u64, carry: u64, bits: u32) -> (u64, u64) {
    let mask = u64::MAX >> (64 - bits);
    let wide = u128::from(a & mask) + u128::from(b & mask) + u128::from(carry);
    let result = wide as u64 & mask;
    let overflow = (a ^ result) & (b ^ result) & 1 << (bits - 1) != 0;
    let half = (a & 15) + (b & 15) + carry > 15;
    (result, flags(wide > u128::from(mask), overflow, half))
}

fn sub(a: u64, b: u64, borrow: u64, bits: u32) -> (u64, u64) {
    let mask = u64::MAX >> (64 - bits);
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask;
    let overflow = (a ^ b) & (a ^ result) & 1 << (bits - 1) != 0;
    let below = u128::from(a & mask) < u128::from(b & mask) + u128::from(borrow);
    let half = (a & 15) < (b & 15) + borrow;
    (result, flags(below, overflow, half))
}

fn shl(a: u64, b: u64, carry: u64, bits: u32) -> (u64, u64) {
    let mask = u64::MAX >> (64 - bits);
    // The test uses counts of 0 and 1 alone, for which all flags but AF are defined.
    let (result, flags) = if b & 1 == 0 { (a & mask, carry) } else { add(a, a, 0, bits) };
    (result, flags)
}

const ALU: &[Alu] = &[
    Alu {
        name: "add al",
        code: |a| a.add(al, bl),
        expected: |a, b, _, n| add(a, b, 0, n),
        bits: 8,
        defined: STATUS,
    },
    Alu {
        name: "add eax",
        code: |a| a.add(eax, ebx),
        expected: |a, b, _, n| add(a, b, 0, n),
        bits: 32,
        defined: STATUS,
    },
    Alu {
        name: "add rax",
        code: |a| a.add(rax, rbx),
        expected: |a, b, _, n| add(a, b, 0, n),
        bits: 64,
        defined: STATUS,
    },
    Alu { name: "adc ax", code: |a| a.adc(ax, bx), expected: add, bits: 16, defined: STATUS },
    Alu { name: "adc rax", code: |a| a.adc(rax, rbx), expected: add, bits: 64, defined: STATUS },
    Alu {
        name: "sub al",
        code: |a| a.sub(al, bl),
        expected: |a, b, _, n| sub(a, b, 0, n),
        bits: 8,
        defined: STATUS,
    },
    Alu {
        name: "sub eax",
        code: |a| a.sub(eax, ebx),
        expected: |a, b, _, n| sub(a, b, 0, n),
        bits: 32,
        defined: STATUS,
    },
    Alu { name: "sbb rax", code: |a| a.sbb(rax, rbx), expected: sub, bits: 64, defined: STATUS },
    Alu {
        name: "neg eax",
        code: |a| a.neg(eax),
        expected: |a, _, _, n| sub(0, a, 0, n),
        bits: 32,
        defined: STATUS,
    },
    Alu {
        name: "and eax",
        code: |a| a.and(eax, ebx),
        expected: |a, b, _, _| (a & b & 0xffff_ffff, 0),
        bits: 32,
        defined: STATUS & !AF,
    },
    Alu {
        name: "or rax",
        code: |a| a.or(rax, rbx),
        expected: |a, b, _, _| (a | b, 0),
        bits: 64,
        defined: STATUS & !AF,
    },
    Alu {
        name: "xor al",
        code: |a| a.xor(al, bl),
        expected: |a, b, _, _| ((a ^ b) & 0xff, 0),
        bits: 8,
        defined: STATUS & !AF,
    },
    Alu {
        name: "inc rax",
        code: |a| a.inc(rax),
        expected: |a, _, c, n| {
            let (r, f) = add(a, 1, 0, n);
            (r, f & !CF | c)
        },
        bits: 64,
        defined: STATUS,
    },
    Alu {
        name: "dec eax",
        code: |a| a.dec(eax),
        expected: |a, _, c, n| {
            let (r, f) = sub(a, 1, 0, n);
            (r, f & !CF | c)
        },
        bits: 32,
        defined: STATUS,
    },
    Alu {
        name: "shl eax",
        code: |a| a.shl(eax, 1),
        expected: |a, _, c, n| shl(a, 1, c, n),
        bits: 32,
        defined: STATUS & !AF,
    },
    Alu {
        name: "bt rax",
        code: |a| a.bt(rax, rbx),
        expected: |a, b, _, _| (a, (a >> (b & 63) & 1) * CF),
        bits: 64,
        defined: CF,
    },
];

#[test]
fn arithmetic_sets_the_status_flags_by_definition() {
    const VALUES: &[u64] = &[
        0,
        1,
        0xf,
        0x10,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX,
        0x0123_4567_89ab_cdef,
    ];
    on_every_engine(|engine| {
        for op in ALU {
            let mut machine = Machine::new(engine, Mode::Long, |a| {
                (op.code)(a)?;
                a.done()
            });
            for (&a, &b) in VALUES.iter().flat_map(|a| VALUES.iter().map(move |b| (a, b))) {
                let carry = (a ^ b) & 1;
                machine.jump(CODE, |regs| {
                    (regs.rax, regs.rbx, regs.rflags) = (a, b, 2 | carry);
                });
                let regs = machine.finish();
                let (result, mut flags) = (op.expected)(a, b, carry, op.bits);
                flags |= u64::from((result as u8).count_ones().is_multiple_of(2)) * PF;
                flags |= u64::from(result == 0) * ZF;
                flags |= (result >> (op.bits - 1)) * SF;
                let mask = u64::MAX >> (64 - op.bits);
                let context = format!("{} of {a:#x}, {b:#x}, carry {carry} on {engine}", op.name);
                assert_eq!(regs.rax & mask, result, "result of {context}");
                assert_eq!(regs.rflags & op.defined, flags & op.defined, "flags of {context}");
            }
        }
    });
}

#[test]
fn multiplication_and_division_have_double_width() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rax, 0xfedc_ba98_7654_3210u64)?;
            a.mov(rbx, 0x1234_5678_9abc_def1u64)?;
            a.mul(rbx)?;
            a.mov(r8, rax)?;
            a.mov(r9, rdx)?;
            a.add(rax, 5)?;
            a.adc(rdx, 0)?;
            a.div(rbx)?;
            a.done()
        });
        let product = 0xfedc_ba98_7654_3210u128 * 0x1234_5678_9abc_def1;
        let regs = machine.finish();
        assert_eq!((regs.r8, regs.r9), (product as u64, (product >> 64) as u64));
        assert_eq!((regs.rax, regs.rdx), (0xfedc_ba98_7654_3210, 5));
    });
}

#[test]
fn loops_calls_and_conditions() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let (mut again, mut double) = (a.create_label(), a.create_label());
            a.mov(ecx, 10)?;
            a.xor(eax, eax)?;
            a.set_label(&mut again)?;
            a.inc(eax)?;
            a.call(double)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.cmp(eax, 2046)?;
            a.sete(bl)?;
            a.done()?;
            a.set_label(&mut double)?;
            a.add(eax, eax)?;
            a.ret()
        });
        let regs = machine.finish();
        assert_eq!((regs.rax, regs.rbx, regs.rsp), (2046, 1, CODE));
    });
}

/// Stores change instructions that ran already, on the same page, a loop later and right ahead.
#[test]
fn self_modifying_code_runs_as_modified() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let (mut again, mut patched) = (a.create_label(), a.create_label());
            a.lea(rbx, ptr(patched))?;
            a.mov(ecx, 3)?;
            a.xor(edx, edx)?;
            a.set_label(&mut again)?;
            a.nop()?;
            // The instruction that adds has its operand grow by one each time round.
            a.set_label(&mut patched)?;
            a.add(dl, 1)?;
            a.inc(byte_ptr(rbx + 2))?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.done()
        });
        assert_eq!(machine.finish().rdx, 1 + 2 + 3);
    });
}

#[test]
fn locked_operations_exchange_and_add() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            a.mov(qword_ptr(rbx), 100)?;
            a.mov(eax, 11)?;
            a.lock().xadd(qword_ptr(rbx), rax)?;
            a.mov(r8, rax)?;
            a.mov(eax, 111)?;
            a.mov(ecx, 500)?;
            a.lock().cmpxchg(qword_ptr(rbx), rcx)?;
            a.setz(r9b)?;
            a.mov(eax, 1)?;
            a.lock().cmpxchg(qword_ptr(rbx), rcx)?;
            a.setz(r10b)?;
            a.mov(r11, rax)?;
            a.lock().inc(dword_ptr(rbx))?;
            a.lock().bts(dword_ptr(rbx + 8), 5)?;
            a.setc(r12b)?;
            a.mov(edx, 9)?;
            a.xchg(dword_ptr(rbx + 12), edx)?;
            a.done()
        });
        machine.write(DATA + 12, &7u32.to_le_bytes());
        let regs = machine.finish();
        assert_eq!(regs.r8, 100, "xadd returns what was there");
        assert_eq!((regs.r9, regs.r10, regs.r11), (1, 0, 500), "cmpxchg succeeds, then fails and loads");
        assert_eq!((machine.read_u64(DATA), machine.read_u32(DATA + 8), regs.r12), (501, 32, 0));
        assert_eq!((machine.read_u32(DATA + 12), regs.rdx), (9, 7));
    });
}

#[test]
fn cmpxchg16b_compares_both_halves() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(edi, DATA as u32)?;
            a.mov(eax, 1)?;
            a.mov(edx, 2)?;
            a.mov(ebx, 3)?;
            a.mov(ecx, 4)?;
            a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
            a.setz(r8b)?;
            a.done()
        });
        machine.write_u64(DATA, 1);
        machine.write_u64(DATA + 8, 2);
        assert_eq!(machine.finish().r8, 1);
        assert_eq!((machine.read_u64(DATA), machine.read_u64(DATA + 8)), (3, 4));
    });
}

#[test]
fn string_instructions_move_scan_and_compare() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(edi, DATA as u32)?;
            a.mov(al, 0x5a)?;
            a.mov(ecx, 64)?;
            a.rep().stosb()?;
            a.mov(byte_ptr(rdi - 4), 0u32)?;
            a.mov(esi, DATA as u32)?;
            a.mov(edi, DATA as u32 + 0x100)?;
            a.mov(ecx, 8)?;
            a.rep().movsq()?;
            a.mov(edi, DATA as u32 + 0x100)?;
            a.xor(eax, eax)?;
            a.mov(ecx, 64)?;
            a.repne().scasb()?;
            a.mov(r8d, ecx)?;
            a.mov(esi, DATA as u32)?;
            a.mov(edi, DATA as u32 + 0x100)?;
            a.mov(ecx, 64)?;
            a.repe().cmpsb()?;
            a.sete(r9b)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!((regs.r8, regs.r9, regs.rcx), (3, 1, 0));
    });
}

#[test]
fn sse_and_x87_compute() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            a.movsd_2(xmm0, qword_ptr(rbx))?;
            a.mulsd(xmm0, qword_ptr(rbx + 8))?;
            a.movsd_2(qword_ptr(rbx + 16), xmm0)?;
            a.fld(qword_ptr(rbx))?;
            a.fadd(qword_ptr(rbx + 8))?;
            a.fstp(qword_ptr(rbx + 24))?;
            a.done()
        });
        machine.write_u64(DATA, 1.5f64.to_bits());
        machine.write_u64(DATA + 8, (-2.25f64).to_bits());
        machine.finish();
        assert_eq!(f64::from_bits(machine.read_u64(DATA + 16)), -3.375);
        assert_eq!(f64::from_bits(machine.read_u64(DATA + 24)), -0.75);
    });
}
