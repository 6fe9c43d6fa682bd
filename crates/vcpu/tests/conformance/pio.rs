//! Port I/O: every width, single and repeated.

use iced_x86::code_asm::*;
use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_vcpu::{Answer, Engine, Error, Exit};

use crate::harness::*;

#[test]
fn in_of_every_width_leaves_the_rest_as_the_architecture_says() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(dx, 0x3f8)?;
            a.mov(rax, -1i64)?;
            a.in_(al, dx)?;
            a.mov(rbx, rax)?;
            a.mov(rax, -1i64)?;
            a.in_(ax, dx)?;
            a.mov(rcx, rax)?;
            a.mov(rax, -1i64)?;
            a.in_(eax, 0x80)?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::PioRead { port: 0x3f8, size: Byte });
        assert_eq!(machine.run(Answer::Value(0xffff_ff12)), Exit::PioRead { port: 0x3f8, size: Word });
        assert_eq!(machine.run(Answer::Value(0x1234)), Exit::PioRead { port: 0x80, size: Dword });
        let exit = machine.run(Answer::Value(0x1234_5678));
        let regs = machine.done(exit);
        assert_eq!(regs.rbx, 0xffff_ffff_ffff_ff12);
        assert_eq!(regs.rcx, 0xffff_ffff_ffff_1234);
        assert_eq!(regs.rax, 0x1234_5678, "a 32-bit IN clears the upper half");
    });
}

#[test]
fn out_of_every_width() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(eax, 0x8765_4321u32)?;
            a.mov(dx, 0xcf8)?;
            a.out(dx, al)?;
            a.out(dx, ax)?;
            a.out(dx, eax)?;
            a.out(0x70, al)?;
            a.done()
        });
        assert_eq!(machine.step(), Exit::PioWrite { port: 0xcf8, size: Byte, value: 0x21 });
        assert_eq!(machine.step(), Exit::PioWrite { port: 0xcf8, size: Word, value: 0x4321 });
        assert_eq!(machine.step(), Exit::PioWrite { port: 0xcf8, size: Dword, value: 0x8765_4321 });
        assert_eq!(machine.step(), Exit::PioWrite { port: 0x70, size: Byte, value: 0x21 });
        machine.finish();
    });
}

/// What REP INS and REP OUTS hand over, however the engine cuts it: (port, width, bytes).
fn served(machine: &mut Machine, source: &mut impl Iterator<Item = u8>) -> (Vec<u8>, Exit) {
    let mut written = Vec::new();
    let mut answer = Answer::None;
    loop {
        let exit = machine.run(std::mem::take(&mut answer));
        match exit {
            Exit::PioRead { size, port: 0x1f0 } => {
                let mut value = [0; 8];
                value.iter_mut().take(size.bytes()).for_each(|b| *b = source.next().unwrap());
                answer = Answer::Value(u64::from_le_bytes(value));
            }
            Exit::PioReadBlock { size, port: 0x1f0, count } => {
                let data = machine.vcpu.io_data();
                assert_eq!(data.len(), size.bytes() * count as usize);
                data.iter_mut().for_each(|b| *b = source.next().unwrap());
                answer = Answer::Block;
            }
            Exit::PioWrite { size, port: 0x1f0, value } => {
                written.extend_from_slice(&value.to_le_bytes()[..size.bytes()]);
            }
            Exit::PioWriteBlock { size, port: 0x1f0, count } => {
                let data = machine.vcpu.io_data();
                assert_eq!(data.len(), size.bytes() * count as usize);
                written.extend_from_slice(data);
            }
            exit => return (written, exit),
        }
    }
}

fn string_io(size: AccessSize, read: impl Fn(&mut Asm) -> AsmResult, write: impl Fn(&mut Asm) -> AsmResult) {
    const BYTES: u32 = 512;
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(dx, 0x1f0)?;
            a.mov(edi, DATA as u32)?;
            a.mov(ecx, BYTES / size.bytes() as u32)?;
            read(a)?;
            a.mov(rbx, rdi)?;
            a.mov(esi, DATA as u32)?;
            a.mov(ecx, BYTES / size.bytes() as u32)?;
            write(a)?;
            a.done()
        });
        let pattern = || (0..BYTES).map(|n| (n * 7 + n / 256) as u8);
        let (written, exit) = served(&mut machine, &mut pattern());
        let regs = machine.done(exit);
        assert_eq!((regs.rcx, regs.rbx, regs.rsi), (0, DATA + u64::from(BYTES), DATA + u64::from(BYTES)));
        assert_eq!(machine.read::<{ BYTES as usize }>(DATA).to_vec(), pattern().collect::<Vec<_>>());
        assert_eq!(written, pattern().collect::<Vec<_>>());
    });
}

#[test]
fn rep_ins_and_outs_of_bytes() {
    string_io(Byte, |a| a.rep().insb(), |a| a.rep().outsb());
}

#[test]
fn rep_ins_and_outs_of_words() {
    string_io(Word, |a| a.rep().insw(), |a| a.rep().outsw());
}

#[test]
fn rep_ins_and_outs_of_doublewords() {
    string_io(Dword, |a| a.rep().insd(), |a| a.rep().outsd());
}

#[test]
fn rep_ins_goes_down_with_the_direction_flag() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.std()?;
            a.mov(dx, 0x1f0)?;
            a.mov(edi, DATA as u32 + 7)?;
            a.mov(ecx, 8)?;
            a.rep().insb()?;
            a.cld()?;
            a.done()
        });
        let (_, exit) = served(&mut machine, &mut (1..=8));
        let regs = machine.done(exit);
        assert_eq!(regs.rdi, DATA - 1);
        assert_eq!(machine.read::<8>(DATA), [8, 7, 6, 5, 4, 3, 2, 1]);
    });
}

#[test]
fn rep_with_a_count_of_zero_does_nothing() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(dx, 0x1f0)?;
            a.mov(edi, DATA as u32)?;
            a.xor(ecx, ecx)?;
            a.rep().insw()?;
            a.done()
        });
        assert_eq!(machine.finish().rdi, DATA);
    });
}

#[test]
fn an_answer_of_the_wrong_kind_is_refused_and_changes_nothing() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.in_(al, 0x60)?;
            a.done()
        });
        assert!(matches!(machine.vcpu.run(Answer::Value(1).into()), Err(Error::Answer { .. })));
        assert_eq!(machine.step(), Exit::PioRead { port: 0x60, size: Byte });
        assert!(matches!(machine.vcpu.run(Answer::None.into()), Err(Error::Answer { .. })));
        assert!(matches!(machine.vcpu.run(Answer::Block.into()), Err(Error::Answer { .. })));
        let exit = machine.run(Answer::Value(0x5a));
        assert_eq!(machine.done(exit).rax, 0x5a);
    });
}

#[test]
fn rep_ins_stores_to_a_device() {
    on_every_engine(|engine| {
        if engine == Engine::Kvm {
            return; // it may read ahead
        }
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(dx, 0x1f0)?;
            a.mov(rdi, MMIO + 0xfff)?;
            a.mov(ecx, 2)?;
            a.rep().insb()?;
            a.done()
        });
        let mut exit = machine.step();
        for (n, value) in (0..).zip([0x11, 0x22]) {
            assert!(matches!(exit, Exit::PioRead { port: 0x1f0, size: Byte }), "{exit:?}");
            exit = machine.run(Answer::Value(value));
            assert!(
                matches!(exit, Exit::MmioWrite { addr, size: Byte, value: v } if (addr, v) == (MMIO + 0xfff + n, value)),
                "{exit:?}"
            );
            exit = machine.step();
        }
        let regs = machine.done(exit);
        assert_eq!((regs.rcx, regs.rdi), (0, MMIO + 0x1001));
    });
}

#[test]
fn rep_outs_loads_from_a_device() {
    on_every_engine(|engine| {
        if engine == Engine::Kvm {
            return; // it may read ahead
        }
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(dx, 0x1f0)?;
            a.mov(rsi, MMIO + 8)?;
            a.mov(ecx, 2)?;
            a.rep().outsw()?;
            a.done()
        });
        let mut exit = machine.step();
        for (n, value) in (0..).zip([0x1122, 0x3344]) {
            assert!(
                matches!(exit, Exit::MmioRead { addr, size: Word } if addr == MMIO + 8 + 2 * n),
                "{exit:?}"
            );
            exit = machine.run(Answer::Value(value));
            assert!(
                matches!(exit, Exit::PioWrite { port: 0x1f0, size: Word, value: v } if u64::from(v) == value),
                "{exit:?}"
            );
            exit = machine.step();
        }
        let regs = machine.done(exit);
        assert_eq!((regs.rcx, regs.rsi), (0, MMIO + 12));
    });
}
