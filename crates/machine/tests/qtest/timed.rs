//! Scripts in which time passes: interval timer, real-time clock, power management timer.
//!
//! QEMU's protocol can move time only in builds that not everybody has. So here a guest runs on QEMU, with time
//! that is the count of its instructions: a program that accesses the ports of the script, waits, and notes when
//! it accessed what and what it read. Then the script is repeated on our devices at the same times.

use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use proptest::prelude::*;

use crate::bench::Bench;
use crate::machine::{AccessSize, Byte, Dword, Machine, Word};
use crate::qemu::Qemu;

/// An instruction takes 2^7 nanoseconds of QEMU's time.
const SHIFT: u32 = 7;
/// From the note of the time to the access, in instructions.
const TO_ACCESS: u64 = 5;
/// Where the program is, and where its notes are, 16 bytes for each access.
const PROGRAM: u64 = 0x1_0000;
const NOTES: u64 = 0x2_0000;
/// Set by the program at its end.
const DONE: u64 = 0x3_0000;
/// The real-time clock at time 0: 2026-02-28, 23:59:50, a Saturday.
const TODAY: Duration = Duration::from_secs(1_772_323_190);
const TODAY_TEXT: &str = "2026-02-28T23:59:50";
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    In(u16, AccessSize),
    Out(u16, AccessSize, u32),
    /// Time passes: twice as many instructions.
    Wait(u32),
}

/// The program that carries out a script.
fn program(script: &[Step]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.mov(ax, (NOTES >> 4) as i32)?;
    a.mov(ds, ax)?;
    a.xor(di, di)?;
    for step in script {
        if let Step::Wait(n) = *step {
            let mut again = a.create_label();
            a.mov(ecx, n.max(1))?;
            a.set_label(&mut again)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            continue;
        }
        a.rdtsc()?;
        a.mov(dword_ptr(di), eax)?;
        a.mov(dword_ptr(di + 4), edx)?;
        let (Step::In(port, size) | Step::Out(port, size, _)) = *step else { continue };
        a.mov(dx, i32::from(port))?;
        a.mov(eax, if let Step::Out(_, _, value) = *step { value } else { 0 })?;
        match (step, size) {
            (Step::In(..), Byte) => a.in_(al, dx)?,
            (Step::In(..), Word) => a.in_(ax, dx)?,
            (Step::In(..), _) => a.in_(eax, dx)?,
            (_, Byte) => a.out(dx, al)?,
            (_, Word) => a.out(dx, ax)?,
            _ => a.out(dx, eax)?,
        }
        a.mov(dword_ptr(di + 8), eax)?;
        a.add(di, 16)?;
    }
    a.mov(ax, (DONE >> 4) as i32)?;
    a.mov(ds, ax)?;
    a.mov(dword_ptr(0), 1)?;
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.jmp(end)?;
    a.assemble(0)
}

/// A ROM that jumps to the program.
fn rom() -> Vec<u8> {
    let mut rom = vec![0xf4; 0x1_0000];
    // JMP far 1000h:0000h, at the reset vector.
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, (PROGRAM >> 4) as u8, (PROGRAM >> 12) as u8]);
    rom
}

/// When each access happened on QEMU, and what it read.
fn on_qemu(script: &[Step]) -> Vec<(u64, u32)> {
    let folder = tempfile::tempdir().unwrap();
    let bios = folder.path().join("rom");
    std::fs::write(&bios, rom()).unwrap();
    let arguments = ["-bios", bios.to_str().unwrap(), "-icount", &format!("shift={SHIFT},align=off"), "-rtc"]
        .map(str::to_owned);
    let mut arguments = arguments.to_vec();
    arguments.push(format!("base={TODAY_TEXT},clock=vm"));
    let mut qemu = Qemu::start(&arguments);
    qemu.write(PROGRAM, &program(script).unwrap());
    qemu.monitor(r#"{"execute":"cont"}"#);
    let start = Instant::now();
    let mut done = [0; 4];
    while done == [0; 4] {
        assert!(start.elapsed() < PATIENCE, "QEMU does not come to the end of the program");
        std::thread::sleep(Duration::from_millis(1));
        qemu.read(DONE, &mut done);
    }
    let accesses = script.iter().filter(|step| !matches!(step, Step::Wait(_))).count();
    let mut notes = vec![0; 16 * accesses];
    qemu.read(NOTES, &mut notes);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    notes
        .chunks(16)
        .map(|note| (word(&note[..8]) + (TO_ACCESS << SHIFT), word(&note[8..12]) as u32))
        .collect()
}

/// What may differ between our devices and QEMU's.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Whether a read is the same: the script, the step, what our devices read at the time and a little earlier
    /// and later, what QEMU's read.
    pub agree: fn(&[Step], usize, &[u32], u32) -> bool,
    /// How much earlier and later: so many times half a pulse of the interval timer's clock.
    pub slack: i64,
}

/// Nothing.
pub const NONE: Tolerance = Tolerance { agree: |_, _, ours, theirs| ours == [theirs], slack: 0 };

const HALF_PULSE: i64 = 419;

/// Whether a step looks at a device, and does not change what will be seen later.
fn looks(step: &Step) -> bool {
    match *step {
        Step::In(..) => true,
        // The interval timer's latch and read-back commands.
        Step::Out(0x43, _, command) => command & 0x30 == 0 || command >= 0xc0,
        _ => false,
    }
}

/// Runs a script on both. On a busy host QEMU runs a timer late, rarely: what differs must differ twice.
pub fn compare(script: &[Step], tolerance: Tolerance) -> Result<(), String> {
    compare_once(script, tolerance).or_else(|_| compare_once(script, tolerance))
}

fn compare_once(script: &[Step], tolerance: Tolerance) -> Result<(), String> {
    let seen = on_qemu(script);
    // Time is not turned back: what is read earlier and later is read from devices of their own.
    let shifts = -tolerance.slack..=tolerance.slack;
    let mut benches: Vec<_> = shifts.map(|shift| (shift, Bench::new(Default::default(), TODAY))).collect();
    let accesses = script.iter().enumerate().filter(|(_, step)| !matches!(step, Step::Wait(_)));
    for ((i, step), (now, theirs)) in accesses.zip(seen) {
        let ours: Vec<_> = benches
            .iter_mut()
            .map(|(shift, bench)| {
                let shift = if looks(step) { *shift * HALF_PULSE } else { 0 };
                bench.advance_to(now.saturating_add_signed(shift));
                match *step {
                    Step::In(port, size) => return bench.inp(port, size),
                    Step::Out(port, size, value) => bench.out(port, size, value),
                    Step::Wait(_) => {}
                }
                0
            })
            .collect();
        if let Step::In(_, size) = *step {
            let theirs = theirs & size.ones() as u32;
            if !(tolerance.agree)(script, i, &ours, theirs) {
                return Err(format!("step {i} at {now} ns: ours {ours:x?}, qemu {theirs:x}"));
            }
        }
    }
    Ok(())
}

fn wait(longest: u32) -> impl Strategy<Value = Step> {
    prop_oneof![1_u32..200, 1..longest].prop_map(Step::Wait)
}

/// The power management timer and the status that its carry sets.
pub mod pm {
    use super::*;

    const PM: u32 = 1 << 31 | 0xb << 8;
    const BASE: u16 = 0x600;

    fn prepare() -> Vec<Step> {
        let write =
            |register: u32, value| [Step::Out(0xcf8, Dword, PM | register), Step::Out(0xcfc, Dword, value)];
        // QEMU's timer has carried at power-on. ACPI mode; IRQ 9 is level-triggered, and the slave's request
        // register is read from then on.
        let clear = vec![
            Step::Out(BASE, Word, 1),
            Step::Out(0xb2, Byte, 0xf1),
            Step::Out(0x4d1, Byte, 0x02),
            Step::Out(0xa0, Byte, 0x0a),
        ];
        [write(0x40, u32::from(BASE) | 1).to_vec(), write(0x04, 1).to_vec(), write(0x80, 1).to_vec(), clear]
            .concat()
    }

    pub fn scripts() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::In(BASE + 8, Dword)),
            1 => Just(Step::In(BASE, Word)),
            1 => Just(Step::In(0xa0, Byte)),
            1 => Just(Step::Out(BASE, Word, 1)),
            1 => (0..2_u32).prop_map(|enable| Step::Out(BASE + 2, Word, enable)),
            // The carry comes each 2.3 seconds: 9 million waits.
            3 => wait(200),
            2 => wait(6_000_000),
        ];
        prop::collection::vec(step, 1..60).prop_map(|steps| [prepare(), steps].concat())
    }
}

/// The real-time clock: registers and memory, its three interrupts, IRQ 8.
pub mod rtc {
    use super::*;

    /// Register A at its usual value, an empty register C, the slave's request register to be read.
    fn prepare() -> Vec<Step> {
        let [a, c] = [write(0x0a, 0x26), read(0x0c)];
        let [memory, alarm] =
            [write(0x32, 0x20), [write(0x01, 0xff), write(0x03, 0xff), write(0x05, 0xff)].concat()];
        [a, c, memory, alarm, vec![Step::Out(0xa0, Byte, 0x0a)]].concat()
    }

    fn read(index: u8) -> Vec<Step> {
        vec![Step::Out(0x70, Byte, index.into()), Step::In(0x71, Byte)]
    }

    fn write(index: u8, value: u8) -> Vec<Step> {
        vec![Step::Out(0x70, Byte, index.into()), Step::Out(0x71, Byte, value.into())]
    }

    /// Values that a time or an alarm can have, in either format.
    fn digits(most: u8) -> impl Strategy<Value = u8> {
        (0..=most).prop_map(|n| ((n / 10) << 4) | (n % 10))
    }

    pub fn scripts() -> impl Strategy<Value = Vec<Step>> {
        let registers: &[u8] = &[0, 2, 4, 6, 7, 8, 9, 0x0a, 0x0b, 0x0c, 0x0c, 0x0d, 0x32, 0x40];
        let any_read = prop::sample::select(registers).prop_map(read);
        // The interrupts in BCD, 24 hours: QEMU keeps the time in the registers' format, ours in seconds.
        let enable = (0..4_u8).prop_map(|bits| write(0x0b, bits << 4 | 2));
        // The periodic interrupt, for two periods: QEMU's come a period after they were enabled, the chip's when
        // the divider says. QEMU has no periodic flag while they are not enabled.
        let periodic = (3..16_u8).prop_map(|rate| {
            let period = 1_000_000_000_u64 << (rate - 1) >> 15;
            let wait = Step::Wait(((2 * period) >> (SHIFT + 1)) as u32);
            let asked = vec![wait, Step::In(0xa0, Byte)];
            [
                write(0x0a, 0x20 | rate),
                read(0x0c),
                write(0x0b, 0x42),
                asked,
                read(0x0c),
                write(0x0b, 0x02),
                read(0x0c),
            ]
            .concat()
        });
        let alarm = (prop::sample::select(&[1_u8, 3, 5][..]), prop_oneof![digits(59), 0xc0..=0xff_u8])
            .prop_map(|(index, value)| {
                write(index, if index == 5 && value < 0xc0 { value & 0x1f } else { value })
            });
        let set = (digits(59), digits(59), digits(23)).prop_map(|(second, minute, hour)| {
            [write(0x0b, 0x82), write(0, second), write(2, minute), write(4, hour), write(0x0b, 0x02)]
                .concat()
        });
        let memory = any::<u8>().prop_map(|value| write(0x40, value));
        let request = Just(vec![Step::In(0xa0, Byte)]);
        let time = prop_oneof![2 => wait(2_000), 2 => wait(400_000), 3 => wait(6_000_000)]
            .prop_map(|step| vec![step]);
        let step = prop_oneof![
            6 => any_read, 2 => enable, 1 => periodic, 1 => alarm, 1 => set, 1 => memory, 2 => request, 6 => time
        ];
        prop::collection::vec(step, 1..80).prop_map(|steps| [prepare(), steps.concat()].concat())
    }

    /// The register behind the last index, and what was last written to register B.
    fn context(script: &[Step], step: usize) -> (u8, u8) {
        let (mut index, mut b) = (0, 0);
        for step in script.iter().take(step) {
            match *step {
                Step::Out(0x70, _, value) => index = value as u8,
                Step::Out(0x71, _, value) if index == 0x0b => b = value as u8,
                _ => {}
            }
        }
        (index, b)
    }

    /// QEMU's update in progress shows for 244 µs, not for the 2228 of the data sheet, and its periodic flag only
    /// while the periodic interrupt is enabled.
    pub const TOLERANCE: Tolerance = Tolerance { agree, slack: 0 };

    fn agree(script: &[Step], step: usize, ours: &[u32], theirs: u32) -> bool {
        let (index, b) = context(script, step);
        let seen = match (script[step], index) {
            (Step::In(0x71, _), 0x0a) => 0x7f,
            (Step::In(0x71, _), 0x0c) if b & 0x40 == 0 => !0x40,
            _ => u32::MAX,
        };
        ours.iter().all(|ours| ours & seen == theirs & seen)
    }
}

/// The interval timer, its port 0x61, IRQ 0.
///
/// QEMU counts from the moment of the write, the chip from the next pulse of its clock on, and loads the count
/// with it: reads may differ by that much.
pub mod pit {
    use super::*;

    /// The gate of counter 2 is open; the master's request register is read from then on, IRQ 0 masked.
    fn prepare() -> Vec<Step> {
        vec![Step::Out(0x61, Byte, 1), Step::Out(0x21, Byte, 1), Step::Out(0x20, Byte, 0x0a)]
    }

    fn counter() -> impl Strategy<Value = u16> {
        prop::sample::select(&[0_u16, 2, 2][..])
    }

    /// A mode and a count, low byte and high byte.
    fn program(counter: impl Strategy<Value = u16>) -> impl Strategy<Value = Vec<Step>> {
        let count = prop_oneof![2 => 3_u32..200, 3 => 200_u32..0x1_0000];
        (counter, prop::sample::select(&[0_u32, 2, 3, 4][..]), count).prop_map(|(counter, mode, count)| {
            // QEMU takes long over a short period of IRQ 0, and counts down by two from odd counts too.
            let count = if counter == 0 { count.max(2000) } else { count };
            let count = if mode == 3 { count.max(4) & !1 } else { count };
            let port = 0x40 + counter;
            vec![
                Step::Out(0x43, Byte, u32::from(counter) << 6 | 0x30 | mode << 1),
                Step::Out(port, Byte, count & 0xff),
                Step::Out(port, Byte, count >> 8),
                // Not while the count is being loaded.
                Step::Wait(20),
            ]
        })
    }

    pub fn scripts() -> impl Strategy<Value = Vec<Step>> {
        let latched = counter().prop_map(|counter| {
            let read = Step::In(0x40 + counter, Byte);
            vec![Step::Out(0x43, Byte, u32::from(counter) << 6), read, read]
        });
        let status = counter().prop_map(|counter| {
            vec![Step::Out(0x43, Byte, 0xe0 | 2 << counter), Step::In(0x40 + counter, Byte)]
        });
        let port_61 = Just(vec![Step::In(0x61, Byte)]);
        let request = Just(vec![Step::In(0x20, Byte)]);
        let time =
            prop_oneof![2 => wait(400), 3 => wait(100_000)].prop_map(|step| vec![step, Step::Wait(20)]);
        let step = prop_oneof![2 => program(counter()), 4 => latched, 2 => status, 1 => port_61, 1 => request, 5 => time];
        let first = (program(Just(0)), program(Just(2)));
        (first, prop::collection::vec(step, 1..60))
            .prop_map(|((zero, two), steps)| [prepare(), zero, two, steps.concat()].concat())
    }

    pub const TOLERANCE: Tolerance = Tolerance { agree, slack: 6 };

    /// The modes that a counter was given before a step.
    fn modes(script: &[Step], step: usize, counter: u16) -> impl Iterator<Item = u32> {
        script.iter().take(step).rev().filter_map(move |step| match *step {
            Step::Out(0x43, _, command) if command >> 6 == u32::from(counter) && command & 0x30 != 0 => {
                Some(command >> 1 & 7)
            }
            _ => None,
        })
    }

    /// Modes whose OUT is compared: in modes 2 and 4 QEMU's has it upside down.
    fn has_true_out(mode: u32) -> bool {
        matches!(mode, 0 | 3)
    }

    fn agree(script: &[Step], step: usize, ours: &[u32], theirs: u32) -> bool {
        let Step::In(port, _) = script[step] else { return true };
        let status = matches!(script[step - 1], Step::Out(0x43, _, 0xe0..));
        let out = |counter| modes(script, step, counter).next().is_some_and(has_true_out);
        let seen = match port {
            // The gate and the speaker, and OUT; the refresh toggle is not the timer's.
            0x61 if out(2) => 0x2f,
            0x61 => 0x0f,
            0x20 if modes(script, step, 0).all(has_true_out) => 0x01,
            0x20 => 0x00,
            _ if status && !out(port - 0x40) => 0x7f,
            _ => 0xff,
        };
        ours.iter().any(|ours| (ours ^ theirs) & seen == 0)
    }
}
