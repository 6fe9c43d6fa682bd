//! Ways between modes beyond the one a boot loader goes: compatibility mode and back, long mode and back,
//! unreal mode, virtual-8086 mode, legacy paging, system calls, call gates, task switches.

use iced_x86::code_asm::*;
use trapline_vcpu::Exit;

use crate::harness::*;
use crate::world::{self, Scenario, USER_CODE32, USER_CODE64, USER_DATA};

const EFER: u32 = 0xc000_0080;
/// Second and third pieces of code.
const THERE: u64 = 0xa000;
const BACK: u64 = 0xb000;
/// Entries of the descriptor table behind those of the harness.
const FREE: u16 = 0x20;

/// A protected-mode machine with more descriptors.
fn protected(engine: Subject, descriptors: &[u64], code: impl FnOnce(&mut Asm) -> AsmResult) -> Machine {
    let mut machine = Machine::new(engine, Mode::Protected, code);
    for (n, descriptor) in (0..).zip(descriptors) {
        machine.write_u64(GDT + u64::from(FREE) + 8 * n, *descriptor);
    }
    let mut sregs = machine.vcpu.sregs().unwrap();
    sregs.gdt.limit = 0x7f;
    machine.vcpu.set_sregs(&sregs).unwrap();
    machine
}

fn put(machine: &Machine, bits: u32, at: u64, code: impl FnOnce(&mut Asm) -> AsmResult) {
    machine.write(at, &assemble(bits, at, code).0);
}

/// A descriptor of a base, a limit in bytes and attributes (bits 40 to 55, less the limit).
fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | attributes << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24) << 56
}

#[test]
fn compatibility_mode_and_back() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, 0x1_2345_6789u64)?;
            a.push(i32::from(CODE32))?;
            a.push(THERE as i32)?;
            a.db(&[0x48, 0xcb]) // far return
        });
        put(&machine, 32, THERE, |a| {
            // INC EBX in one byte, and the upper half of a register that is not there any more.
            a.db(&[0x43])?;
            a.mov(ecx, esp)?;
            a.push(i32::from(CODE64))?;
            a.push(BACK as i32)?;
            a.retf()
        });
        put(&machine, 64, BACK, |a| {
            a.mov(rdx, cs)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!((regs.rbx, regs.rcx, regs.rdx), (0x2345_678a, CODE, u64::from(CODE64)));
    });
}

#[test]
fn long_mode_is_left_and_entered_again() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.push(i32::from(CODE32))?;
            a.push(THERE as i32)?;
            a.db(&[0x48, 0xcb])
        });
        put(&machine, 32, THERE, |a| {
            a.mov(eax, cr0)?;
            a.and(eax, 0x7fff_ffff)?;
            a.mov(cr0, eax)?;
            a.mov(ecx, EFER)?;
            a.rdmsr()?;
            a.mov(esi, eax)?; // LMA is clear
            a.and(eax, !0x100)?;
            a.wrmsr()?;
            a.out(0x80, al)?;
            a.or(eax, 0x100)?;
            a.wrmsr()?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8000_0000u32)?;
            a.mov(cr0, eax)?;
            a.push(i32::from(CODE64))?;
            a.push(BACK as i32)?;
            a.retf()
        });
        put(&machine, 64, BACK, |a| {
            a.mov(r8, -1i64)?;
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        let sregs = machine.vcpu.sregs().unwrap();
        assert_eq!((sregs.efer & 0x500, sregs.cr0 >> 31, sregs.cs.selector), (0, 0, CODE32));
        let regs = machine.finish();
        assert_eq!((regs.r8, regs.rsi & 0x500), (u64::MAX, 0x100));
        assert_eq!(machine.vcpu.sregs().unwrap().efer & 0x500, 0x500);
    });
}

/// Real mode keeps the limit that a segment was given in protected mode.
#[test]
fn unreal_mode_reaches_beyond_a_mebibyte() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Real, |a| {
            let (mut inside, mut outside) = (a.create_label(), a.create_label());
            a.mov(bx, (DATA >> 4) as u32)?;
            a.mov(ds, bx)?;
            a.lgdt(fword_ptr(0))?;
            a.mov(eax, cr0)?;
            a.or(al, 1)?;
            a.mov(cr0, eax)?;
            a.jmp(inside)?;
            a.set_label(&mut inside)?;
            a.mov(bx, u32::from(DATA32))?;
            a.mov(ds, bx)?;
            a.and(al, 0xfe)?;
            a.mov(cr0, eax)?;
            a.jmp(outside)?;
            a.set_label(&mut outside)?;
            a.mov(ebx, 0x12_0000)?;
            a.mov(dword_ptr(ebx), 0x1234_5678)?;
            a.mov(ecx, dword_ptr(ebx))?;
            a.done()
        });
        let mut pseudo = [0u8; 6];
        pseudo[..2].copy_from_slice(&0x1fu16.to_le_bytes());
        pseudo[2..].copy_from_slice(&(GDT as u32).to_le_bytes());
        machine.write(DATA, &pseudo);
        assert_eq!(machine.finish().rcx, 0x1234_5678);
        assert_eq!(machine.read_u32(0x12_0000), 0x1234_5678);
    });
}

#[test]
fn protected_mode_with_16_bit_code_and_back_to_real_mode() {
    const CODE16: u16 = FREE;
    on_every_engine(|engine| {
        let mut machine =
            protected(engine, &[descriptor(0, 0xffff, 0x9b), descriptor(0, 0xffff, 0x93)], |a| {
                a.push(i32::from(CODE16))?;
                a.push(THERE as i32)?;
                a.retf()
            });
        put(&machine, 16, THERE, |a| {
            a.mov(ax, u32::from(CODE16) + 8)?;
            a.mov(ds, ax)?;
            a.mov(es, ax)?;
            a.mov(ss, ax)?;
            a.mov(sp, CODE as u32)?;
            a.mov(word_ptr(BACK), 0x1111u32)?;
            a.mov(eax, cr0)?;
            a.and(al, 0xfe)?;
            a.mov(cr0, eax)?;
            a.db(&[0xea, 0x00, 0x00])?; // far jump to 0c00:0000
            a.db(&[0x00, 0x0c])
        });
        put(&machine, 16, 0xc000, |a| {
            a.mov(ax, cs)?;
            a.mov(ds, ax)?;
            a.mov(word_ptr(0x800), 0x2222u32)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!(regs.rax & 0xffff, 0xc00);
        assert_eq!((machine.read::<2>(BACK), machine.read::<2>(0xc800)), ([0x11; 2], [0x22; 2]));
    });
}

/// Instructions follow each other there as everywhere, whether after a block of many, a load of SS or a branch that
/// is not taken; a branch of 16 bits leads into the first 64 KiB. OVMF goes that way when it wakes a machine from S3.
#[test]
fn code_of_16_bits_lies_beyond_64_kib_of_its_segment() {
    const CODE16: u16 = FREE;
    const FAR: u64 = 0x1_c000;
    on_every_engine(|engine| {
        let flat = |kind: u64| descriptor(0, 0xf_ffff, kind | 0x8000);
        let mut machine = protected(engine, &[flat(0x9b), flat(0x93)], |a| {
            a.push(i32::from(CODE16))?;
            a.push(FAR as i32)?;
            a.retf()
        });
        put(&machine, 16, FAR, |a| {
            let (mut never, mut near) = (a.create_label(), a.create_label());
            a.mov(ax, u32::from(CODE16) + 8)?;
            a.mov(ss, ax)?;
            a.mov(eax, cr0)?;
            a.test(al, 1)?;
            a.jz(never)?;
            (0..300).try_for_each(|_| a.inc(ecx))?;
            a.jmp(near)?;
            a.set_label(&mut never)?;
            a.hlt()?;
            a.set_label(&mut near)?;
            a.hlt()
        });
        // Where the last branch leads: after what is at the same place 64 KiB further on.
        put(&machine, 16, FAR & 0xffff, |a| {
            (0..0x3ff).try_for_each(|_| a.inc(bx))?;
            a.done()
        });
        let mut regs = machine.vcpu.regs().unwrap();
        (regs.rbx, regs.rcx) = (0, 0);
        machine.vcpu.set_regs(&regs).unwrap();
        let regs = machine.finish();
        assert_eq!(regs.rcx, 300, "{engine}");
        assert!((1..0x3ff).contains(&regs.rbx), "{engine}: {:#x}", regs.rbx);
    });
}

/// 32-bit paging with 4 MiB pages and with tables, then PAE: the same linear page at different places.
#[test]
fn legacy_paging_translates() {
    const DIRECTORY: u64 = 0x4_0000;
    const TABLE: u64 = 0x4_1000;
    const POINTERS: u64 = 0x4_2000;
    const LINEAR: u32 = 0x80_0000;
    on_native_engines("it shuts down where 32-bit paging is switched on", |engine| {
        let mut machine = Machine::new(engine, Mode::Protected, |a| {
            let read = |a: &mut Asm| a.mov(eax, dword_ptr(u64::from(LINEAR)));
            a.mov(eax, 0x10)?; // PSE
            a.mov(cr4, eax)?;
            a.mov(eax, DIRECTORY as u32)?;
            a.mov(cr3, eax)?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8001_0000u32)?;
            a.mov(cr0, eax)?;
            read(a)?;
            a.mov(esi, eax)?;
            // Its directory entry points to a table now.
            a.mov(dword_ptr(DIRECTORY + 8), (TABLE | 7) as u32)?;
            a.mov(eax, cr3)?;
            a.mov(cr3, eax)?;
            read(a)?;
            a.mov(edi, eax)?;
            // PAE can only be switched with paging off.
            a.mov(eax, cr0)?;
            a.and(eax, 0x7fff_ffff)?;
            a.mov(cr0, eax)?;
            a.mov(eax, 0x20)?;
            a.mov(cr4, eax)?;
            a.mov(eax, POINTERS as u32)?;
            a.mov(cr3, eax)?;
            a.mov(eax, cr0)?;
            a.or(eax, 0x8000_0000u32)?;
            a.mov(cr0, eax)?;
            read(a)?;
            a.mov(ebp, eax)?;
            a.done()
        });
        let entry = |at: u64, value: u32| machine.write(at, &value.to_le_bytes());
        entry(DIRECTORY, 0x87);
        entry(DIRECTORY + 8, 0x87); // 4 MiB at 8 MiB: the first 4 MiB again
        entry(TABLE, DATA as u32 | 7);
        machine.write_u64(POINTERS, PD | 1);
        machine.write_u64(PD + 8 * 4, 0x20_0087 & !0x20_0000);
        entry(0, 0x1111);
        entry(DATA, 0x2222);
        let regs = machine.finish();
        assert_eq!((regs.rsi, regs.rdi, regs.rbp), (0x1111, 0x2222, 0x1111));
        let dirty_and_accessed = machine.read_u32(TABLE) & 0x60;
        assert_eq!(dirty_and_accessed, 0x20, "accessed, not written");
    });
}

#[test]
fn syscall_and_sysret_go_there_and_back() {
    let program = |a: &mut Asm| {
        let (mut kernel, mut end) = (a.create_label(), a.create_label());
        for (msr, value) in
            [(0xc000_0081u32, (0x18 | 3) << 48 | u64::from(CODE64) << 32), (0xc000_0084, 0x200)]
        {
            a.mov(ecx, msr)?;
            a.mov(eax, value as u32)?;
            a.mov(edx, (value >> 32) as u32)?;
            a.wrmsr()?;
        }
        a.mov(ecx, 0xc000_0082u32)?;
        a.lea(rax, ptr(kernel))?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, EFER)?;
        a.rdmsr()?;
        a.or(eax, 1)?;
        a.wrmsr()?;
        a.xor(ebx, ebx)?;
        world::to_user(a)?;
        a.mov(eax, 0x77)?;
        a.syscall()?;
        a.mov(rsi, cs)?;
        a.mov(rdi, ss)?;
        a.mov(eax, 0x88)?;
        a.syscall()?;
        a.set_label(&mut kernel)?;
        a.cmp(eax, 0x88)?;
        a.je(end)?;
        a.mov(r8, cs)?;
        a.mov(r9, ss)?;
        a.pushfq()?;
        a.pop(r10)?;
        a.mov(r12, r11)?;
        a.mov(rbp, rcx)?;
        a.inc(ebx)?;
        a.sysretq()?;
        a.set_label(&mut end)?;
        a.done()
    };
    let emulation = Some("it executes programs itself, and leaves them at their privilege after SYSCALL");
    Scenario { emulation, ..Scenario::new() }.run(program, |run| {
        let regs = &run.regs;
        assert_eq!(
            (regs.rbx, regs.r8, regs.r9),
            (1, u64::from(CODE64), u64::from(CODE64) + 8),
            "{}",
            run.engine
        );
        assert_eq!((regs.rsi, regs.rdi), (u64::from(USER_CODE64), u64::from(USER_DATA)), "{}", run.engine);
        assert_eq!((regs.r12 & 0x200, regs.r10 & 0x200), (0x200, 0), "{}: IF is masked", run.engine);
    });
}

#[test]
fn programs_run_32_bit_code() {
    let prepare = |machine: &mut Machine| {
        put(machine, 32, THERE, |a| {
            a.db(&[0x40])?; // inc eax
            a.mov(ebx, cs)?;
            a.int3()
        });
    };
    let program = |a: &mut Asm| {
        a.mov(eax, i32::from(USER_DATA))?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(fs, eax)?;
        a.mov(gs, eax)?;
        a.mov(eax, 6)?;
        world::caught(a, |a| {
            a.push(i32::from(USER_DATA))?;
            a.push(world::USER_STACK as i32)?;
            a.push(0x202)?;
            a.push(i32::from(USER_CODE32))?;
            a.push(THERE as i32)?;
            a.iretq()
        })?;
        a.done()
    };
    let emulation = Some("it does not execute 32-bit programs");
    Scenario { prepare: &prepare, emulation, ..Scenario::new() }.run(program, |run| {
        assert_eq!((run.regs.rax, run.regs.rbx), (7, u64::from(USER_CODE32)), "{}", run.engine);
        assert_eq!((run.caught[0].vector, run.caught[0].cpl), (3, 3), "{}", run.engine);
    });
}

/// A call gate to more privilege switches the stack and copies the parameters.
#[test]
fn call_gates_switch_the_stack() {
    const USER32: u64 = FREE as u64 | 3;
    const USER_DATA32: u64 = USER32 + 8;
    const TASK: u16 = FREE + 16;
    const GATE: u16 = FREE + 24;
    const TSS: u64 = 0x1800;
    on_native_engines("it does not know call gates", |engine| {
        let gate = BACK & 0xffff | u64::from(CODE32) << 16 | 2 << 32 | 0xec00 << 32;
        let descriptors = [
            descriptor(0, 0xf_ffff, 0xc0fb),
            descriptor(0, 0xf_ffff, 0xc0f3),
            descriptor(TSS, 0x67, 0x89),
            gate,
        ];
        let mut machine = protected(engine, &descriptors, |a| {
            a.mov(ax, u32::from(TASK))?;
            a.ltr(ax)?;
            a.push(USER_DATA32 as i32)?;
            a.push(CODE as i32 - 0x400)?;
            a.push(USER32 as i32)?;
            a.push(THERE as i32)?;
            a.retf()
        });
        machine.write(TSS + 4, &(CODE as u32 - 0x800).to_le_bytes());
        machine.write(TSS + 8, &u32::from(DATA32).to_le_bytes());
        put(&machine, 32, THERE, |a| {
            a.push(0x1111)?;
            a.push(0x2222)?;
            a.db(&[0x9a, 0, 0, 0, 0, GATE as u8 | 3, 0]) // far call
        });
        put(&machine, 32, BACK, |a| {
            a.mov(esi, dword_ptr(esp + 8))?;
            a.mov(edi, dword_ptr(esp + 12))?;
            a.mov(ebx, dword_ptr(esp + 4))?;
            a.mov(ecx, ss)?;
            a.done()
        });
        let regs = machine.finish();
        assert_eq!((regs.rsi, regs.rdi, regs.rbx), (0x2222, 0x1111, USER32), "{engine}");
        assert_eq!((regs.rcx, regs.rsp), (u64::from(DATA32), CODE - 0x800 - 24), "{engine}");
    });
}

/// A far jump to a task state segment and what is saved and loaded.
#[test]
fn task_switches_save_and_load_registers() {
    const OLD: u16 = FREE;
    const NEW: u16 = FREE + 8;
    const OLD_TSS: u64 = 0x1800;
    const NEW_TSS: u64 = 0x1900;
    on_every_engine(|engine| {
        let descriptors = [descriptor(OLD_TSS, 0x67, 0x89), descriptor(NEW_TSS, 0x67, 0x89)];
        let mut machine = protected(engine, &descriptors, |a| {
            a.mov(ax, u32::from(OLD))?;
            a.ltr(ax)?;
            a.mov(ebx, 0x1234_5678)?;
            a.db(&[0xea, 0, 0, 0, 0, NEW as u8, 0])
        });
        let field = |at: u64, value: u32| machine.write(NEW_TSS + at, &value.to_le_bytes());
        for (at, value) in [(0x20, THERE as u32), (0x24, 2), (0x28, 0x77), (0x38, CODE as u32 - 0x100)] {
            field(at, value);
        }
        for at in [0x48, 0x50, 0x54, 0x58, 0x5c] {
            field(at, DATA32.into());
        }
        field(0x4c, CODE32.into());
        put(&machine, 32, THERE, |a| a.done());
        let regs = machine.finish();
        assert_eq!((regs.rax, regs.rsp), (0x77, CODE - 0x100), "{engine}");
        assert_eq!(machine.read_u32(OLD_TSS + 0x34), 0x1234_5678, "EBX of the old task");
        let sregs = machine.vcpu.sregs().unwrap();
        assert_eq!((sregs.tr.selector, sregs.cr0 & 8), (NEW, 8), "{engine}: CR0.TS is set");
        assert_eq!(machine.read_u64(GDT + u64::from(OLD)) >> 40 & 0xff, 0x89, "not busy any more");
        assert_eq!(machine.read_u64(GDT + u64::from(NEW)) >> 40 & 0xff, 0x8b, "busy");
    });
}

/// Virtual-8086 mode: real-mode addressing, and what it must not do goes to the monitor.
#[test]
fn virtual_8086_mode_has_a_monitor() {
    const TASK: u16 = FREE;
    const TSS: u64 = 0x1800;
    const VM: i32 = 1 << 17;
    on_native_engines("it does not enter virtual-8086 mode", |engine| {
        let mut machine = protected(engine, &[descriptor(TSS, 0x67, 0x89)], |a| {
            a.mov(ax, u32::from(TASK))?;
            a.ltr(ax)?;
            // GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP
            for value in [0, 0, (DATA >> 4) as i32, 0, 0, CODE as i32 - 0x400, VM | 2, 0xa00, 0] {
                a.push(value)?;
            }
            a.iretd()?;
            a.handler(13)?;
            a.pop(edx)?;
            a.mov(ecx, dword_ptr(esp))?; // EIP
            a.mov(ebp, dword_ptr(esp + 4))?; // CS
            a.mov(edi, dword_ptr(esp + 8))?; // EFLAGS
            a.mov(esi, ds)?;
            a.done()
        });
        machine.write(TSS + 4, &(CODE as u32 - 0x800).to_le_bytes());
        machine.write(TSS + 8, &u32::from(DATA32).to_le_bytes());
        put(&machine, 16, 0xa000, |a| {
            a.mov(ax, word_ptr(4))?;
            a.add(ax, 1)?;
            a.mov(word_ptr(6), ax)?;
            a.cli()
        });
        // The code lies at linear a000h, but at offset 0 of its segment.
        machine.write(DATA + 4, &0x41u16.to_le_bytes());
        let regs = machine.finish();
        assert_eq!(machine.read::<2>(DATA + 6), [0x42, 0], "{engine}");
        assert_eq!((regs.rax & 0xffff, regs.rdx, regs.rbp), (0x42, 0, 0xa00), "{engine}");
        assert_ne!(regs.rdi as i32 & VM, 0, "{engine}");
        assert_eq!(regs.rsi, 0, "{engine}: data segments are null in the monitor");
    });
}
