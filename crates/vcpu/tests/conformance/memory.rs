//! Memory-mapped I/O, read-only slots, and dirty pages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iced_x86::code_asm::*;
use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_vcpu::{Answer, Exit, VmConfig};

use crate::harness::*;

#[test]
fn mmio_reads_of_every_width() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            a.mov(al, byte_ptr(rbx + 1))?;
            a.movzx(ecx, word_ptr(rbx + 2))?;
            a.mov(edx, dword_ptr(rbx + 4))?;
            a.mov(rsi, qword_ptr(rbx + 8))?;
            a.movsx(rdi, byte_ptr(rbx))?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO + 1, size: Byte });
        assert_eq!(machine.run(Answer::Value(0x11)), Exit::MmioRead { addr: MMIO + 2, size: Word });
        assert_eq!(machine.run(Answer::Value(0x2222)), Exit::MmioRead { addr: MMIO + 4, size: Dword });
        assert_eq!(machine.run(Answer::Value(0x8333_3333)), Exit::MmioRead { addr: MMIO + 8, size: Qword });
        assert_eq!(machine.run(Answer::Value(u64::MAX - 1)), Exit::MmioRead { addr: MMIO, size: Byte });
        let exit = machine.run(Answer::Value(0x80));
        let regs = machine.done(exit);
        assert_eq!((regs.rax & 0xff, regs.rcx, regs.rdx), (0x11, 0x2222, 0x8333_3333));
        assert_eq!((regs.rsi, regs.rdi as i64), (u64::MAX - 1, -128));
    });
}

#[test]
fn mmio_writes_of_every_width() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            a.mov(rax, 0x1122_3344_5566_7788u64)?;
            a.mov(byte_ptr(rbx), al)?;
            a.mov(word_ptr(rbx + 2), ax)?;
            a.mov(dword_ptr(rbx + 4), eax)?;
            a.mov(qword_ptr(rbx + 8), rax)?;
            a.mov(dword_ptr(rbx), 0x1234u32)?;
            a.done()
        });
        for (addr, size, value) in [
            (MMIO, Byte, 0x88),
            (MMIO + 2, Word, 0x7788),
            (MMIO + 4, Dword, 0x5566_7788),
            (MMIO + 8, Qword, 0x1122_3344_5566_7788),
            (MMIO, Dword, 0x1234),
        ] {
            assert_eq!(machine.step(), Exit::MmioWrite { addr, size, value });
        }
        machine.finish();
    });
}

/// An access that crosses a page reaches the bus in parts, whose widths are powers of two.
#[test]
fn mmio_across_a_page_comes_in_parts() {
    on_every_engine(|engine| {
        let at = MMIO + 0x1000 - 3;
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, at)?;
            a.mov(rax, 0x8877_6655_4433_2211u64)?;
            a.mov(qword_ptr(rbx), rax)?;
            a.mov(rcx, qword_ptr(rbx))?;
            a.done()
        });
        let mut memory = [0u8; 8];
        let mut answer = Answer::None;
        let exit = loop {
            match machine.run(std::mem::take(&mut answer)) {
                Exit::MmioWrite { addr, size, value } => {
                    let from = (addr - at) as usize;
                    memory[from..from + size.bytes()].copy_from_slice(&value.to_le_bytes()[..size.bytes()]);
                }
                Exit::MmioRead { addr, size } => {
                    let mut value = [0; 8];
                    let from = (addr - at) as usize;
                    value[..size.bytes()].copy_from_slice(&memory[from..from + size.bytes()]);
                    answer = Answer::Value(u64::from_le_bytes(value));
                }
                exit => break exit,
            }
        };
        assert_eq!(u64::from_le_bytes(memory), 0x8877_6655_4433_2211);
        assert_eq!(machine.done(exit).rcx, 0x8877_6655_4433_2211);
    });
}

#[test]
fn read_modify_write_of_mmio_reads_and_writes() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            a.add(dword_ptr(rbx), 5)?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::MmioRead { addr: MMIO, size: Dword });
        let exit = machine.run(Answer::Value(10));
        assert_eq!(exit, Exit::MmioWrite { addr: MMIO, size: Dword, value: 15 });
        machine.finish();
    });
}

#[test]
fn rep_movs_fetches_from_mmio() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rsi, MMIO)?;
            a.mov(edi, DATA as u32)?;
            a.mov(ecx, 4)?;
            a.rep().movsd()?;
            a.done()
        });
        let mut exit = machine.step();
        for n in 0..4 {
            assert_eq!(exit, Exit::MmioRead { addr: MMIO + 4 * n, size: Dword });
            exit = machine.run(Answer::Value(0x100 + n));
        }
        machine.done(exit);
        assert_eq!([0, 4, 8, 12].map(|at| machine.read_u32(DATA + at)), [0x100, 0x101, 0x102, 0x103]);
    });
}

#[test]
fn rom_reads_and_executes_but_its_writes_exit() {
    const ROM: u64 = 0xfffe_0000;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, ROM as u32)?;
            a.jmp(rax)
        });
        let (code, _) = assemble(64, ROM, |a| {
            a.mov(ebx, ROM as u32)?;
            a.mov(dword_ptr(rbx), 0x55u32)?;
            a.mov(ecx, dword_ptr(rbx))?;
            a.done()
        });
        machine.ram.add_rom(ROM, &code).unwrap();
        machine.vm.set_memory(machine.ram.arena(), machine.ram.slots()).unwrap();
        assert_eq!(machine.step(), Exit::MmioWrite { addr: ROM, size: Dword, value: 0x55 });
        let first = u32::from_le_bytes(code[..4].try_into().unwrap());
        assert_eq!(machine.finish().rcx, u64::from(first), "the write changed nothing");
    });
}

/// Like a chipset's PAM registers: the same range is RAM, then ROM, then RAM again, with data kept.
#[test]
fn slots_can_be_made_read_only_and_back() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(ebx, DATA as u32)?;
            for value in 1..=3u32 {
                a.mov(dword_ptr(rbx), value)?;
                a.out(0x80, al)?;
            }
            a.done()
        });
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
        for (read_only, value) in [(true, 1), (false, 3)] {
            machine.ram.set_read_only(DATA, 0x1000, read_only).unwrap();
            machine.vm.set_memory(machine.ram.arena(), machine.ram.slots()).unwrap();
            if read_only {
                assert_eq!(machine.step(), Exit::MmioWrite { addr: DATA, size: Dword, value: 2 });
            }
            assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
            assert_eq!(machine.read_u32(DATA), value);
        }
        machine.finish();
    });
}

/// The slot that the guest executes from is split and joined by another thread, as for a BAR that another
/// vCPU moves: the guest must not find it absent.
#[test]
fn slots_change_while_the_guest_runs_in_them() {
    const TURNS: u32 = 60_000;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let mut again = a.create_label();
            a.mov(ebx, DATA as u32)?;
            a.mov(ecx, TURNS)?;
            a.set_label(&mut again)?;
            a.inc(dword_ptr(rbx))?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.done()
        });
        let whole = machine.ram.slots().to_vec();
        machine.ram.set_read_only(RAM - 0x1000, 0x1000, true).unwrap();
        let split = machine.ram.slots().to_vec();
        let (vm, arena, done) = (machine.vm.clone(), machine.ram.arena().clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    vm.set_memory(&arena, &split).unwrap();
                    vm.set_memory(&arena, &whole).unwrap();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            let mut exit = machine.step();
            while exit == Exit::Interrupted {
                exit = machine.step();
            }
            done.store(true, Ordering::SeqCst);
            machine.done(exit);
        });
        assert_eq!(machine.read_u32(DATA), TURNS, "{engine}");
    });
}

#[test]
fn impossible_layouts_are_refused() {
    on_every_engine(|engine| {
        let machine = Machine::new(engine, Mode::Long, |a| a.done());
        let slot = machine.ram.slots()[0];
        let arena = machine.ram.arena();
        for bad in [
            vec![trapline_memory::Slot { gpa: 1, ..slot }],
            vec![trapline_memory::Slot { size: 0, ..slot }],
            vec![trapline_memory::Slot { hpa: arena.len(), ..slot }],
            vec![slot, trapline_memory::Slot { gpa: slot.gpa + slot.size - 4096, ..slot }],
        ] {
            assert!(machine.vm.set_memory(arena, &bad).is_err(), "{bad:?}");
        }
    });
}

fn dirty_pages(engine: Subject, config: &VmConfig) {
    let mut machine = Machine::with_config(engine, config, Mode::Long, |a| {
        a.mov(ebx, DATA as u32)?;
        a.mov(dword_ptr(rbx), 1u32)?;
        a.mov(dword_ptr(rbx + 0x5000), 1u32)?;
        a.out(0x80, al)?;
        a.mov(dword_ptr(rbx + 0x7ffe), 1u32)?;
        a.mov(eax, dword_ptr(rbx + 0x3000))?;
        a.done()
    });
    machine.ram.dirty().set_enabled(true);
    machine.ram.set_log_dirty(DATA, RAM - DATA, true).unwrap();
    machine.vm.set_memory(machine.ram.arena(), machine.ram.slots()).unwrap();
    let taken = |machine: &Machine| {
        machine.vm.collect_dirty(machine.ram.dirty()).unwrap();
        machine.ram.dirty().take(DATA..RAM).map(|gpa| gpa - DATA).collect::<Vec<_>>()
    };
    assert_eq!(taken(&machine), [0u64; 0], "nothing yet");
    assert!(matches!(machine.step(), Exit::PioWrite { port: 0x80, .. }));
    assert_eq!(taken(&machine), [0, 0x5000]);
    assert_eq!(taken(&machine), [0u64; 0], "taken is clean");
    machine.finish();
    assert_eq!(taken(&machine), [0x7000, 0x8000], "across a page");
}

#[test]
fn pages_that_the_guest_writes_are_logged() {
    on_every_engine(|engine| dirty_pages(engine, &VmConfig::default()));
}

#[test]
fn pages_that_the_guest_writes_are_in_the_dirty_ring() {
    on_every_engine(|engine| {
        let config = VmConfig { dirty_ring: Some(4096), ..VmConfig::default() };
        match engine.create_vm(&config) {
            Ok(_) => dirty_pages(engine, &config),
            Err(e) => eprintln!("skipped on {engine}: {e}"),
        }
    });
}

/// More pages than the smallest ring has entries: the engine empties it on the way.
#[test]
fn full_dirty_ring_loses_nothing() {
    // An emulating KVM runs many instructions between two looks at the ring and writes over entries that
    // nobody has taken: seen as a ring whose every entry is new.
    on_native_engines("it lets the ring overflow", |engine| {
        let config = |entries| VmConfig { dirty_ring: Some(entries), ..VmConfig::default() };
        // Processors with page-modification logging need a larger ring, which these pages do not fill.
        let works = |entries: &u32| engine.create_vm(&config(*entries)).is_ok();
        let Some(entries) = [256, 1024].into_iter().find(works) else {
            eprintln!("skipped on {engine}: no dirty ring");
            return;
        };
        let mut machine = Machine::with_config(engine, &config(entries), Mode::Long, |a| {
            let mut again = a.create_label();
            a.mov(ebx, DATA as u32)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(rbx), 1u32)?;
            a.add(ebx, 0x1000)?;
            a.cmp(ebx, RAM as u32)?;
            a.jb(again)?;
            a.done()
        });
        machine.ram.set_log_dirty(DATA, RAM - DATA, true).unwrap();
        machine.vm.set_memory(machine.ram.arena(), machine.ram.slots()).unwrap();
        machine.finish();
        machine.vm.collect_dirty(machine.ram.dirty()).unwrap();
        let pages: Vec<_> = machine.ram.dirty().take(DATA..RAM).collect();
        assert_eq!(pages, (DATA..RAM).step_by(0x1000).collect::<Vec<_>>());
    });
}
