//! x87, FXSAVE and XSAVE as a program sees them: availability, pending exceptions, faults, images.

mod common;

use common::{CODE, DATA, Machine, STACK};
use iced_x86::code_asm::*;
use iced_x86::{IcedError, code_asm};
use trapline_softcpu::cpu::{cr0, cr4, reg, vector};
use trapline_softcpu::cpuid::Model;
use trapline_softcpu::fpu::{F80, Mxcsr};
use trapline_softcpu::sse::Xmm;

/// One HLT for each exception.
const HANDLERS: u64 = 0x4000;

/// A machine in 64-bit mode whose exceptions can be told apart.
fn machine() -> Machine {
    let mut m = Machine::long();
    for v in 0..32 {
        let at = m.halt_at(HANDLERS + u64::from(v));
        m.gate64(v, at, 0x8e, 0);
    }
    m.set(reg::RDI, DATA);
    m.cpu.set_cr4(m.cpu.cr4 | cr4::OSXSAVE).unwrap();
    m.cpu.xcr0 = 3;
    m
}

/// Runs a program: the vector of the exception that ended it and the address of what raised it.
fn run(m: &mut Machine, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Option<(u8, u64)> {
    m.set(reg::RSP, STACK);
    m.run_code(|a| {
        f(a)?;
        a.hlt()
    });
    let v = m.cpu.rip.wrapping_sub(HANDLERS + 1);
    if v >= 32 {
        return None;
    }
    let with_error = matches!(v as u8, vector::GP | vector::PF | vector::SS | vector::AC);
    Some((v as u8, m.stack::<u64>(2)[usize::from(with_error)]))
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

#[test]
fn not_available() {
    let waiting: [Program; 6] = [
        |a| a.fld1(),
        |a| a.fadd(qword_ptr(rdi)),
        |a| a.fstp(tword_ptr(rdi)),
        |a| a.fnstsw(ax),
        |a| a.fninit(),
        |a| a.fnsave(ptr(rdi)),
    ];
    let images: [Program; 2] = [|a| a.fxsave(ptr(rdi)), |a| a.fxrstor64(ptr(rdi))];
    for f in waiting.into_iter().chain(images) {
        for (bits, expected) in [(cr0::EM, true), (cr0::TS, true), (cr0::MP, false)] {
            let mut m = machine();
            m.cpu.set_cr0(m.cpu.cr0 | bits).unwrap();
            let stopped = run(&mut m, |a| {
                a.nop()?;
                f(a)
            });
            assert_eq!(stopped, expected.then_some((vector::NM, CODE + 1)));
        }
    }
    // WAIT looks at TS only together with MP.
    for (bits, expected) in [(cr0::TS, false), (cr0::MP, false), (cr0::EM, false), (cr0::TS | cr0::MP, true)]
    {
        let mut m = machine();
        m.cpu.set_cr0(m.cpu.cr0 | bits).unwrap();
        assert_eq!(run(&mut m, |a| a.wait()), expected.then_some((vector::NM, CODE)));
    }
}

/// A handler that clears TS restarts the instruction in the middle of its block.
#[test]
fn lazy_switch() {
    let mut m = machine();
    m.code_at(0x4100, 64, |a| {
        a.clts()?;
        a.inc(ebx)?;
        a.iretq()
    });
    m.gate64(vector::NM, 0x4100, 0x8e, 0);
    m.cpu.set_cr0(m.cpu.cr0 | cr0::TS).unwrap();
    let stopped = run(&mut m, |a| {
        a.xor(ebx, ebx)?;
        a.fninit()?;
        a.fld1()?;
        a.fistp(dword_ptr(rdi))
    });
    assert_eq!(stopped, None);
    assert_eq!((m.reg(reg::RBX), m.read::<u32>(DATA)), (1, 1));
}

/// Divides one by zero with that exception unmasked; leaves 0xabcd in AX.
fn divide(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fninit()?;
    a.mov(word_ptr(rdi), 0x37b)?;
    a.fldcw(word_ptr(rdi))?;
    a.mov(eax, 0xabcd)?;
    a.fld1()?;
    a.fldz()?;
    a.fdivp(st1, st0)
}

#[test]
fn pending_exceptions_stop_waiting_instructions() {
    let waiting: [Program; 8] = [
        |a| a.wait(),
        |a| a.fnop(),
        |a| a.fxch(st0, st1),
        |a| a.fld(qword_ptr(rdi)),
        |a| a.fstp(tword_ptr(rdi)),
        |a| a.fcomi(st0, st1),
        |a| a.fldcw(word_ptr(rdi)),
        |a| a.frstor(ptr(rdi)),
    ];
    let others: [Program; 8] = [
        |a| a.fnclex(),
        |a| a.fninit(),
        |a| a.fnstsw(ax),
        |a| a.fnstcw(word_ptr(rdi)),
        |a| a.fnstenv(ptr(rdi)),
        |a| a.fnsave(ptr(rdi)),
        |a| a.fxsave64(ptr(rdi)),
        |a| a.fxrstor64(ptr(rdi + 512)),
    ];
    for (programs, expected) in [(waiting, true), (others, false)] {
        for f in programs {
            // Numeric errors are reported in the processor's own way whatever CR0.NE says.
            for ne in [0, cr0::NE] {
                let mut m = machine();
                m.cpu.set_cr0(m.cpu.cr0 & !cr0::NE | ne).unwrap();
                m.write(DATA + 512 + 24, 0x1f80u32);
                let mut at = 0;
                let mut a = code_asm::CodeAssembler::new(64).unwrap();
                divide(&mut a).unwrap();
                at += a.assemble(CODE).unwrap().len() as u64;
                let stopped = run(&mut m, |a| {
                    divide(a)?;
                    f(a)
                });
                assert_eq!(stopped, expected.then_some((vector::MF, CODE + at)));
                if expected {
                    // The division has changed nothing but the status: ZE, ES and B.
                    assert_eq!(m.cpu.x87.status_word() & 0x80bf, 0x8084);
                    assert_eq!((m.cpu.x87.st(0), m.cpu.x87.st(1)), (F80::ZERO, F80::ONE));
                    assert_eq!(m.cpu.x87.opcode, 0x6f9);
                    assert_eq!(m.cpu.x87.ip, CODE + at - 2);
                }
            }
        }
    }
}

#[test]
fn stores_fault_before_they_pop() {
    let stores: [Program; 7] = [
        |a| a.fstp(dword_ptr(rdi)),
        |a| a.fstp(qword_ptr(rdi)),
        |a| a.fstp(tword_ptr(rdi)),
        |a| a.fistp(dword_ptr(rdi)),
        |a| a.fisttp(qword_ptr(rdi)),
        |a| a.fbstp(tword_ptr(rdi)),
        |a| a.fnsave(ptr(rdi)),
    ];
    for f in stores {
        let mut m = machine();
        assert_eq!(run(&mut m, |a| a.fninit()), None);
        // 1/3: a store rounds, and would set PE.
        run(&mut m, |a| {
            a.fld1()?;
            a.fld(st0)?;
            a.fadd_2(st0, st1)?;
            a.fadd_2(st0, st1)?;
            a.fdivp(st1, st0)?;
            a.fnclex()
        });
        let before = m.cpu.x87.clone();
        // The last bytes of the only page that is mapped; the next is not there.
        m.write(common::TABLES + 0x3000 + 8 * (DATA / 4096 + 1), 0u64);
        m.cpu.mmu.flush_all();
        m.set(reg::RDI, DATA + 0xffe);
        m.write(DATA + 0xffe, 0x5555u16);
        assert_eq!(run(&mut m, f), Some((vector::PF, CODE)));
        assert_eq!(m.cpu.x87, before);
        assert_eq!(m.cpu.cr2, DATA + 0x1000);
        assert_eq!(m.read::<u16>(DATA + 0xffe), 0x5555);
    }
}

#[test]
fn comparisons_and_conditional_moves_use_eflags() {
    let mut m = machine();
    let stopped = run(&mut m, |a| {
        a.fninit()?;
        a.fldpi()?;
        a.fld1()?;
        a.stc()?;
        // 1 < pi: CF, and OF, SF and AF are cleared.
        a.fcomi(st0, st1)?;
        a.pushfq()?;
        a.pop(rbx)?;
        a.fcmovnb(st0, st1)?;
        a.fcmovb(st0, st1)?;
        a.fucomip(st0, st1)?;
        a.pushfq()?;
        a.pop(rcx)
    });
    assert_eq!(stopped, None);
    assert_eq!(m.reg(reg::RBX) & 0x8d5, 1);
    assert_eq!(m.reg(reg::RCX) & 0x8d5, 0x40);
    assert_eq!(m.cpu.x87.top(), 7);
}

/// The address of the last instruction that was not a control instruction, in 32-bit code.
#[test]
fn environment_names_the_last_instruction() {
    let mut m = Machine::protected();
    m.run_code(|a| {
        a.fninit()?;
        a.mov(edi, DATA as u32)?;
        a.fld(dword_ptr(edi + 0x40))?;
        a.fnstcw(word_ptr(edi + 0x44))?;
        a.fnstenv(ptr(edi))?;
        a.hlt()
    });
    // FNINIT is 2 bytes long and the MOV 5.
    assert_eq!(m.read::<u32>(DATA + 12), CODE as u32 + 7);
    assert_eq!(m.read::<u32>(DATA + 16) >> 16, 0x147);
    assert_eq!(m.read::<u32>(DATA + 20), DATA as u32 + 0x40);
    assert_eq!(m.read::<u32>(DATA), 0xffff_037f);
    // Register 7 holds zero.
    assert_eq!(m.read::<u32>(DATA + 8), 0xffff_7fff);
}

#[test]
fn real_mode_images() {
    let mut m = Machine::real();
    m.run_code(|a| {
        a.fninit()?;
        a.fldpi()?;
        a.fnsave(ptr(bx + 0x600))?;
        a.fld1()?;
        a.frstor(ptr(bx + 0x600))?;
        a.hlt()
    });
    assert_eq!(m.read::<u16>(0x600), 0x37f);
    assert_eq!(m.read::<u16>(0x602), 7 << 11);
    assert_eq!(m.read::<u16>(0x604), 0x3fff);
    assert_eq!(m.read::<u16>(0x606), CODE as u16 + 2);
    assert_eq!(m.read::<u16>(0x608), 0x1eb);
    assert_eq!(m.read::<u64>(0x60e), 0xc90f_daa2_2168_c235);
    assert_eq!(m.cpu.x87.st(0), F80::new(0x4000, 0xc90f_daa2_2168_c235));
    assert_eq!(m.cpu.x87.abridged_tag(), 0x80);
}

#[test]
fn fxsave_layout() {
    let mut m = machine();
    for at in 0..64 {
        m.write(DATA + at * 8, 0x4141_4141_4141_4141u64);
    }
    for i in 0..16 {
        m.cpu.xmm[i] = Xmm([i as u8 + 1; 16]);
    }
    m.cpu.mxcsr = Mxcsr::new(0x9fc0);
    let stopped = run(&mut m, |a| {
        a.fninit()?;
        a.fld1()?;
        a.fldpi()?;
        a.fild(word_ptr(rdi + 0x1f0))?;
        a.fxsave64(ptr(rdi))
    });
    assert_eq!(stopped, None);
    let word = |at: u64| m.read::<u16>(DATA + at);
    assert_eq!((word(0), word(2), word(4), word(6)), (0x37f, 5 << 11, 0xe0, 0x787));
    assert_eq!(m.read::<u64>(DATA + 8), CODE + 6);
    assert_eq!(m.read::<u64>(DATA + 16), DATA + 0x1f0);
    assert_eq!(m.read::<u32>(DATA + 24), 0x9fc0);
    assert_eq!(m.read::<u32>(DATA + 28), 0xffff);
    // ST(0) to ST(2), whatever TOP is.
    assert_eq!(m.read::<u64>(DATA + 32), 0x4141 << 49);
    assert_eq!(m.read::<u64>(DATA + 48), 0xc90f_daa2_2168_c235);
    assert_eq!((m.read::<u64>(DATA + 64), word(72), word(74)), (1 << 63, 0x3fff, 0));
    for i in 0..16 {
        assert_eq!(m.read::<u8>(DATA + 160 + 16 * i + 15), i as u8 + 1);
    }
    // What FXSAVE does not use stays.
    assert!((416..512).all(|at| m.read::<u8>(DATA + at) == 0x41));
    let mut image = m.cpu.fxsave_image();
    let mut stored = [0; 512];
    m.arena.read_bytes(DATA, &mut stored).unwrap();
    assert_eq!(image[..416], stored[..416]);

    // The other way: into a fresh processor, and back through an instruction.
    let mut other = machine();
    other.cpu.load_fxsave_image(&image).unwrap();
    assert_eq!(other.cpu.x87, m.cpu.x87);
    assert_eq!((other.cpu.xmm, other.cpu.mxcsr.value()), (m.cpu.xmm, 0x9fc0));
    let mut third = machine();
    third.arena.write_bytes(DATA, &image).unwrap();
    assert_eq!(run(&mut third, |a| a.fxrstor64(ptr(rdi))), None);
    assert_eq!(third.cpu.x87, m.cpu.x87);
    assert_eq!(third.cpu.xmm, m.cpu.xmm);
    // Reserved bits of MXCSR.
    image[26] = 1;
    other.cpu.x87.fninit();
    other.cpu.load_fxsave_image(&image).unwrap_err();
    assert_eq!(other.cpu.x87.abridged_tag(), 0);
}

#[test]
fn fxsave_of_32_bit_code_has_eight_registers() {
    let mut m = Machine::protected();
    m.cpu.set_cr4(cr4::OSFXSR).unwrap();
    m.cpu.xmm = [Xmm([0x77; 16]); 32];
    m.run_code(|a| {
        a.fxsave(ptr(DATA as u32))?;
        a.fxrstor(ptr(DATA as u32 + 512))?;
        a.hlt()
    });
    assert_eq!((m.read::<u8>(DATA + 287), m.read::<u8>(DATA + 288)), (0x77, 0));
    assert_eq!((m.cpu.xmm[7], m.cpu.xmm[8]), (Xmm([0; 16]), Xmm([0x77; 16])));
    // Without CR4.OSFXSR neither the registers nor MXCSR take part in FXRSTOR, nor are they checked.
    m.cpu.set_cr4(0).unwrap();
    m.write(DATA + 512 + 24, u32::MAX);
    m.write(DATA + 512 + 160, 1u8);
    m.run_code(|a| {
        a.fxrstor(ptr(DATA as u32 + 512))?;
        a.hlt()
    });
    assert_eq!((m.cpu.xmm[0], m.cpu.mxcsr.value()), (Xmm([0; 16]), 0));
}

#[test]
fn images_that_are_refused() {
    let bad: [Program; 5] = [
        |a| a.fxsave(ptr(rdi + 8)),
        |a| a.fxrstor(ptr(rdi + 4)),
        |a| a.xsave(ptr(rdi + 32)),
        |a| a.xrstor64(ptr(rdi + 16)),
        // MXCSR's reserved bits.
        |a| a.fxrstor64(ptr(rdi + 0x800)),
    ];
    for f in bad {
        let mut m = machine();
        m.write(DATA + 0x800 + 24, 0x10000u32);
        let before = m.cpu.fxsave_image();
        assert_eq!(run(&mut m, f), Some((vector::GP, CODE)));
        assert_eq!(m.stack::<u64>(1), [0]);
        assert_eq!(m.cpu.fxsave_image(), before);
    }
}

#[test]
fn xsave_is_there_if_the_system_says_so() {
    let mut m = machine();
    m.cpu.set_cr4(m.cpu.cr4 & !cr4::OSXSAVE).unwrap();
    assert_eq!(run(&mut m, |a| a.xsave(ptr(rdi))), Some((vector::UD, CODE)));
    let mut m = machine();
    m.cpu.set_cr0(m.cpu.cr0 | cr0::TS).unwrap();
    assert_eq!(run(&mut m, |a| a.xrstor(ptr(rdi))), Some((vector::NM, CODE)));
    // And if the model has it.
    let mut m = Machine::real_model(Model::v1());
    m.cpu.idtr.limit = 0x3ff;
    m.write(4 * u64::from(vector::UD), 0x5000u32);
    m.halt_at(0x5000);
    m.code(|a| a.xsave(ptr(bx)));
    m.run_to(0x5000);
}

/// Sets EDX:EAX, the components that are asked for.
fn ask(m: &mut Machine, components: u64) {
    m.set(reg::RAX, components);
    m.set(reg::RDX, 0xffff_ffff);
}

const XSTATE_BV: u64 = DATA + 512;
const XCOMP_BV: u64 = DATA + 520;

#[test]
fn xsave_formats() {
    // State: x87 in use, XMM not.
    let mut m = machine();
    run(&mut m, |a| a.fld1());
    m.write(XSTATE_BV, 6u64);
    m.write(XCOMP_BV, 0x1234u64);
    m.write(DATA + 160, 0x99u8);
    ask(&mut m, u64::MAX);
    run(&mut m, |a| a.xsaveopt(ptr(rdi)));
    // Bits that are not enabled stay; the rest of the header too, and what is in its initial state.
    assert_eq!((m.read::<u64>(XSTATE_BV), m.read::<u64>(XCOMP_BV)), (5, 0x1234));
    assert_eq!((m.read::<u8>(DATA + 160), m.read::<u32>(DATA + 24)), (0x99, 0x1f80));
    run(&mut m, |a| a.xsave(ptr(rdi)));
    assert_eq!((m.read::<u64>(XSTATE_BV), m.read::<u8>(DATA + 160)), (5, 0));
    // Only what is asked for.
    m.write(DATA + 24, 0u32);
    ask(&mut m, 1);
    run(&mut m, |a| a.xsave(ptr(rdi)));
    assert_eq!(m.read::<u32>(DATA + 24), 0);
    // Compacted: the header says which, and MXCSR makes SSE state one in use.
    ask(&mut m, 3);
    run(&mut m, |a| a.xsavec64(ptr(rdi)));
    assert_eq!((m.read::<u64>(XSTATE_BV), m.read::<u64>(XCOMP_BV)), (1, 1 << 63 | 3));
    m.cpu.mxcsr = Mxcsr::new(0x1f00);
    run(&mut m, |a| a.xsavec64(ptr(rdi)));
    assert_eq!((m.read::<u64>(XSTATE_BV), m.read::<u32>(DATA + 24)), (3, 0x1f00));
}

#[test]
fn xrstor_restores_or_initialises() {
    let mut saved = machine();
    run(&mut saved, |a| a.fldpi());
    saved.cpu.xmm[3] = Xmm([3; 16]);
    saved.cpu.mxcsr = Mxcsr::new(0x5f80);
    let image = saved.cpu.xsave_image();
    let fresh = |xstate_bv: u64, xcomp_bv: u64, components: u64| {
        let mut m = machine();
        run(&mut m, |a| a.fld1());
        m.cpu.xmm[5] = Xmm([5; 16]);
        m.cpu.mxcsr = Mxcsr::new(0x3f80);
        m.arena.write_bytes(DATA, &image[..1024]).unwrap();
        m.write(XSTATE_BV, xstate_bv);
        m.write(XCOMP_BV, xcomp_bv);
        ask(&mut m, components);
        assert_eq!(run(&mut m, |a| a.xrstor64(ptr(rdi))), None);
        m
    };
    let m = fresh(3, 0, u64::MAX);
    assert_eq!((&m.cpu.x87, m.cpu.xmm, m.cpu.mxcsr.value()), (&saved.cpu.x87, saved.cpu.xmm, 0x5f80));
    // Components that are not asked for stay.
    let m = fresh(3, 0, 1);
    assert_eq!((m.cpu.xmm[5], m.cpu.mxcsr.value()), (Xmm([5; 16]), 0x3f80));
    assert_eq!(m.cpu.x87, saved.cpu.x87);
    // Initial state; the standard format loads MXCSR nevertheless, the compacted one does not.
    for (xcomp_bv, mxcsr) in [(0, 0x5f80), (1 << 63 | 3, 0x1f80)] {
        let m = fresh(0, xcomp_bv, 3);
        assert_eq!(m.cpu.x87, trapline_softcpu::fpu::X87::default());
        assert_eq!((m.cpu.xmm[5], m.cpu.mxcsr.value()), (Xmm([0; 16]), mxcsr));
    }
    // The same through the hypervisor's side.
    let mut m = machine();
    m.cpu.load_xsave_image(&image).unwrap();
    assert_eq!((&m.cpu.x87, m.cpu.xmm), (&saved.cpu.x87, saved.cpu.xmm));
    let mut foreign = image;
    foreign[512] = 7;
    m.cpu.load_xsave_image(&foreign).unwrap_err();
}

#[test]
fn xsave_headers_that_are_refused() {
    // XSTATE_BV, XCOMP_BV, a byte further on in the header.
    let headers: [(u64, u64, Option<u64>); 9] = [
        (4, 0, None),
        (1 << 63, 0, None),
        (3, 1, None),
        (3, 0, Some(16)),
        (3, 0, Some(23)),
        (1, 1 << 63 | 4, None),
        (3, 1 << 63 | 1, None),
        (1 << 63 | 1, 1 << 63 | 1, None),
        (3, 1 << 63 | 3, Some(63)),
    ];
    for (xstate_bv, xcomp_bv, byte) in headers {
        let mut m = machine();
        m.write(DATA + 24, 0x1f80u32);
        m.write(XSTATE_BV, xstate_bv);
        m.write(XCOMP_BV, xcomp_bv);
        if let Some(at) = byte {
            m.write(XSTATE_BV + at, 1u8);
        }
        ask(&mut m, 3);
        let before = m.cpu.xsave_image();
        assert_eq!(run(&mut m, |a| a.xrstor(ptr(rdi))), Some((vector::GP, CODE)));
        assert_eq!(m.cpu.xsave_image(), before);
    }
    // The standard format does not look at the rest.
    let mut m = machine();
    m.write(DATA + 24, 0x1f80u32);
    m.write(XSTATE_BV + 24, 1u8);
    ask(&mut m, 3);
    assert_eq!(run(&mut m, |a| a.xrstor(ptr(rdi))), None);
}
