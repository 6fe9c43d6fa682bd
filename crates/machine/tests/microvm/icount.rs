//! Deterministic mode: time that counts instructions. And processor models, which like it only the soft
//! engine has.

use std::path::PathBuf;

use iced_x86::code_asm::*;
use trapline_machine::{MachineConfig, Microvm, MicrovmConfig, Outcome, Serial};
use trapline_vcpu::{Accel, CpuModel};

use crate::harness::*;

/// Runs a guest with one processor on the soft engine.
fn run_soft(
    icount: Option<u8>,
    cpu: Option<CpuModel>,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> Ran {
    run_traced(icount, cpu, None, code)
}

/// The same, with a trace.
fn run_traced(
    icount: Option<u8>,
    cpu: Option<CpuModel>,
    trace: Option<PathBuf>,
    code: impl FnOnce(&mut CodeAssembler) -> AsmResult,
) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let output = Output::default();
    let mut config = MicrovmConfig::new(kernel(dir.path(), code));
    config.machine = MachineConfig {
        memory: 4 * MIB,
        accel: Accel::Soft,
        cpu,
        icount,
        serial: Serial::Custom { output: Box::new(output.clone()), input: None },
        trace,
        ..MachineConfig::default()
    };
    finish(Microvm::new(config).unwrap(), output)
}

/// Guest: sends EAX to COM1, as eight hexadecimal digits and a space. Changes EAX to EDX.
fn say_hex(a: &mut CodeAssembler) -> AsmResult {
    let (mut next, mut digit) = (a.create_label(), a.create_label());
    a.mov(ebx, eax)?;
    a.mov(ecx, 8)?;
    a.mov(edx, COM1)?;
    a.set_label(&mut next)?;
    a.rol(ebx, 4)?;
    a.mov(eax, ebx)?;
    a.and(eax, 15)?;
    a.cmp(eax, 10)?;
    a.jb(digit)?;
    a.add(eax, 39)?; // from behind '9' to 'a'
    a.set_label(&mut digit)?;
    a.add(eax, 48)?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jne(next)?;
    a.mov(eax, 32)?;
    a.out(dx, al)
}

/// Guest: 20 interrupts of a timer of 1 ms. Between them it is busy or halted, in turns, and each handler
/// says what the time-stamp counter and the timer's channel say.
fn timer_talk(a: &mut CodeAssembler) -> AsmResult {
    let (mut main, mut after, mut handler) = (a.create_label(), a.create_label(), a.create_label());
    let (mut busy, mut halt) = (a.create_label(), a.create_label());
    a.jmp(main)?;

    a.set_label(&mut handler)?;
    a.rdtsc()?;
    say_hex(a)?;
    a.in_(al, 0x40)?;
    a.mov(ah, al)?;
    a.in_(al, 0x40)?;
    a.movzx(eax, ax)?;
    say_hex(a)?;
    a.rdrand(eax)?;
    say_hex(a)?;
    out(a, 0x20, 0x20)?; // end of interrupt
    a.inc(edi)?;
    a.mov(esp, 0x38_0000)?;
    a.jmp(after)?;

    a.set_label(&mut main)?;
    a.xor(edi, edi)?;
    gate(a, 0x20, handler)?;
    start_pic(a, 0xfffe)?;
    start_pit(a, 1193)?;
    a.set_label(&mut after)?;
    a.cmp(edi, 20)?;
    let mut done = a.create_label();
    a.je(done)?;
    a.sti()?;
    a.test(edi, 1)?;
    a.je(halt)?;
    a.set_label(&mut busy)?;
    a.inc(esi)?;
    a.jmp(busy)?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)?;
    a.set_label(&mut done)?;
    a.cli()?;
    a.mov(eax, esi)?;
    say_hex(a)?;
    exit(a, 1)
}

#[test]
fn two_runs_are_equal() {
    let runs = [0, 0, 3].map(|shift| run_soft(Some(shift), None, timer_talk));
    for ran in &runs {
        assert_eq!(ran.outcome, Outcome::DebugExit(3));
        assert_eq!(ran.output.len(), (20 * 3 + 1) * 9, "{}", ran.output);
    }
    assert_eq!(runs[0].output, runs[1].output);
    assert_ne!(runs[0].output, runs[2].output, "other instructions are under way when the timer is due");
    let exits = runs.each_ref().map(|ran| format!("{:?}", ran.stats.exits));
    assert_eq!(exits[0], exits[1]);
}

/// Every exit, interrupt and timer is in the trace, at the same time in both runs.
#[test]
fn two_runs_write_the_same_trace() {
    let dir = tempfile::tempdir().unwrap();
    let traces = [0, 1].map(|run| {
        let path = dir.path().join(run.to_string());
        let ran = run_traced(Some(0), None, Some(path.clone()), timer_talk);
        let text = std::fs::read_to_string(path).unwrap();
        let [exits] = &ran.stats.exits[..] else { panic!("one processor") };
        for (kind, count) in exits.iter() {
            let events = text.matches(&format!("{{\"name\":\"{kind}\",")).count() as u64;
            assert_eq!(events, count, "{kind}");
        }
        text
    });
    assert_eq!(traces[0], traces[1]);
    let text = &traces[0];
    assert!(text.starts_with("[\n{\"name\":\"thread_name\"") && text.ends_with("}\n]\n"));
    for (event, at_least) in [("\"irq\"", 20), ("\"8259a\"", 20), ("\"due\"", 20), ("\"device\":\"pit\"", 40)]
    {
        assert!(text.matches(event).count() >= at_least, "{event}");
    }
    assert!(text.contains("\"port\":\"0x3f8\",\"size\":1"), "the serial port");
    // Time goes forward on each track.
    let mut last = [0.0; 3];
    for line in text.lines().filter(|line| line.contains("\"ts\":")) {
        let field = |name: &str| -> f64 {
            let rest = &line[line.find(name).unwrap() + name.len()..];
            rest[..rest.find([',', '}']).unwrap()].parse().unwrap()
        };
        let (track, at) = (field("\"tid\":") as usize, field("\"ts\":"));
        assert!(last[track] <= at, "{line}");
        last[track] = at;
    }
}

/// Guest: reads the time-stamp counter to EAX.
fn nanoseconds(a: &mut CodeAssembler, code: impl FnOnce(&mut CodeAssembler) -> AsmResult) -> AsmResult {
    a.rdtsc()?;
    a.mov(ebp, eax)?;
    code(a)?;
    a.rdtsc()?;
    a.sub(eax, ebp)?;
    say_hex(a)?;
    exit(a, 0)
}

#[test]
fn an_instruction_takes_two_to_the_shift_nanoseconds() {
    for shift in [0, 4, 10] {
        let ran = run_soft(Some(shift), None, |a| {
            nanoseconds(a, |a| {
                let mut again = a.create_label();
                a.mov(ecx, 10_000)?;
                a.set_label(&mut again)?;
                a.dec(ecx)?;
                a.jne(again)
            })
        });
        let ns = u64::from_str_radix(ran.output.trim(), 16).unwrap();
        // Besides the loop: MOV twice and RDTSC, give or take.
        let instructions = ns >> shift;
        assert!((20_001..=20_004).contains(&instructions), "{shift}: {instructions}");
    }
}

#[test]
fn a_halted_processor_does_not_wait_for_the_host() {
    let start = std::time::Instant::now();
    let ran = run_soft(Some(0), None, |a| {
        let (mut main, mut handler, mut again) = (a.create_label(), a.create_label(), a.create_label());
        a.jmp(main)?;
        a.set_label(&mut handler)?;
        out(a, 0x20, 0x20)?;
        a.inc(edi)?;
        a.jmp(again)?;
        a.set_label(&mut main)?;
        a.xor(edi, edi)?;
        gate(a, 0x20, handler)?;
        start_pic(a, 0xfffe)?;
        start_pit(a, 0)?; // 54.9 ms
        nanoseconds(a, |a| {
            // The counter has 32 bits here: four seconds.
            let mut done = a.create_label();
            a.set_label(&mut again)?;
            a.mov(esp, 0x38_0000)?;
            a.cmp(edi, 72)?;
            a.jae(done)?;
            a.sti()?;
            a.hlt()?;
            a.jmp(again)?;
            a.set_label(&mut done)?;
            a.nop()
        })
    });
    let ns = u64::from_str_radix(ran.output.trim(), 16).unwrap();
    assert!((3_800_000_000..4_000_000_000).contains(&ns), "{ns}");
    assert!(start.elapsed().as_nanos() < u128::from(ns));
}

#[test]
fn the_real_time_clock_starts_in_2000() {
    let ran = run_soft(Some(0), None, |a| {
        for register in [9, 8, 7, 4] {
            out(a, 0x70, register)?;
            a.in_(al, 0x71)?;
            a.movzx(eax, al)?;
            say_hex(a)?;
        }
        exit(a, 0)
    });
    assert_eq!(ran.output, "00000000 00000001 00000001 00000000 ", "year, month, day, hour");
}

#[test]
fn the_guest_sees_the_processor_model() {
    let says = |model: &str| {
        let model = CpuModel::named(model).unwrap();
        let ran = run_soft(None, Some(model), |a| {
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.mov(eax, ebx)?;
            say_hex(a)?;
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(eax, ecx)?;
            say_hex(a)?;
            exit(a, 0)
        });
        let words: Vec<_> =
            ran.output.split_whitespace().map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
        (words[0], words[1])
    };
    let (genu, auth) = (u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"Auth"));
    let (hypervisor, sse42, aes, x2apic) = (1 << 31, 1 << 20, 1 << 25, 1 << 21);
    assert_eq!(says("x86-64-v1"), (genu, hypervisor), "SSE3 is the first that it has not");
    assert_eq!(says("x86-64-v1,vendor=amd,-hypervisor"), (auth, 0));
    assert_eq!(says("default").1 & (sse42 | aes | x2apic), sse42 | x2apic);
    assert_eq!(says("max,-x2apic").1 & (sse42 | aes | x2apic), sse42 | aes);
}
