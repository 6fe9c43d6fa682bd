//! Any bytes as code, in any mode and register state, executed bare and as a VMX guest under any controls: no
//! panic, no hang, and whatever a VM exit has saved, a VM entry says why it does not take it.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use trapline_fuzz::rig::{CODE, DATA, DEVICE, HOLE, Mode, Rig};
use trapline_softcpu::cpu::Signals;
use trapline_softcpu::cpuid::Model;
use trapline_vmx::{BasicReason, Field as F};

/// Entries of one guest.
const ENTRIES: usize = 20;
/// Instructions of a bare run, each of a few.
const INSTRUCTIONS: u64 = 500;

#[derive(arbitrary::Arbitrary, Debug)]
struct Input<'a> {
    mode: Mode,
    guest: bool,
    model: u8,
    registers: [(u8, i16); 16],
    values: [u64; 3],
    flags: u32,
    controls: [u32; 4],
    events: [u8; 4],
    gates: [(u8, u8); 4],
    descriptors: [u64; 3],
    vector_state: &'a [u8],
    code: &'a [u8],
}

static MODELS: LazyLock<[Arc<Model>; 3]> = LazyLock::new(|| {
    ["max", "x86-64-v1", "max,vendor=amd"].map(|name| Arc::new(Model::named(name).expect("it exists")))
});

fn prepare(input: &Input<'_>) -> Rig {
    let model = &MODELS[usize::from(input.model) % MODELS.len()];
    let make = if input.guest { Rig::guest } else { Rig::bare };
    let mut rig = make(model, input.mode);
    // The interpreter alone, or host code soon or at once.
    rig.cpu.translate_after([None, Some(3), Some(0), Some(0)][usize::from(input.model >> 6)]);
    rig.write(CODE, &input.code[..input.code.len().min(2048)]);
    // What comes after the code is data, and ends at an unmapped page.
    rig.write(DATA, input.code);
    rig.write(HOLE - 64, &input.code[..input.code.len().min(64)]);
    for vector in 0..32 {
        let (_, to) = input.gates[usize::from(vector % 4)];
        rig.gate(vector, u16::from(to) * 4);
    }
    for (vector, to) in input.gates {
        rig.gate(vector, to.into());
    }
    for (n, bits) in (0..).zip(input.descriptors) {
        rig.descriptor(n, bits);
    }
    let [a, b, c] = input.values;
    let near = [DATA, DEVICE, HOLE, CODE, 0, a, b, c];
    for (n, (base, offset)) in input.registers.into_iter().enumerate() {
        // The stack stays, mostly.
        if n != 4 || base & 0x80 != 0 {
            rig.cpu.regs[n] = near[usize::from(base) % near.len()].wrapping_add_signed(offset.into());
        }
    }
    let mut image = rig.cpu.fxsave_image();
    image.iter_mut().zip(input.vector_state).for_each(|(to, from)| *to = *from);
    let _ = rig.cpu.load_fxsave_image(&image);
    rig
}

fn raise(rig: &Rig, event: u8) {
    let signals = &rig.cpu.signals;
    match event % 16 {
        0 => signals.raise_interrupt(event | 0x20),
        1 => signals.raise(Signals::NMI),
        2 => signals.raise(Signals::INIT),
        3 => signals.raise_sipi(event),
        _ => {}
    }
}

fn bare(rig: &mut Rig, input: &Input<'_>) {
    let flags = rig.cpu.get_rflags() | u64::from(input.flags) & 0x24_0fd5;
    rig.cpu.set_rflags(flags);
    for event in input.events {
        raise(rig, event);
        let before = rig.cpu.icount;
        let exit = rig.cpu.run_for(INSTRUCTIONS);
        assert!(!rig.cpu.nonroot);
        // Where there is no memory, there are devices.
        assert!(exit.is_none_or(|exit| exit.reason == BasicReason::EptViolation.number()), "{exit:?}");
        if rig.cpu.device_access().is_some() {
            rig.cpu.complete_device_access(input.values[1]);
        }
        assert!(rig.cpu.icount - before < 100_000, "one chain, not many");
    }
}

/// Answers or passes over what the guest exited for.
fn handle(rig: &mut Rig, value: u64) {
    let reason = rig.cpu.current_vmcs().and_then(|vmcs| vmcs.exit_reason().basic());
    match reason {
        Some(BasicReason::EptViolation | BasicReason::ApicAccess) if rig.cpu.device_access().is_some() => {
            rig.cpu.complete_device_access(value);
        }
        Some(BasicReason::PmlFull) => rig.set(F::PmlIndex, 511u32),
        Some(BasicReason::TaskSwitch) if value & 1 != 0 => rig.cpu.task_switch_granted = true,
        Some(BasicReason::ExternalInterrupt) => drop(rig.cpu.signals.clear(Signals::INTERRUPT)),
        _ => {
            rig.cpu.drop_device_accesses();
            let ip = rig.get(F::GuestRip).wrapping_add(rig.get(F::ExitInstructionLength).clamp(1, 15));
            let wide = rig.get(F::GuestCsAccessRights) >> 13 & 1 != 0;
            rig.set(F::GuestRip, if wide { ip } else { ip & 0xffff_ffff });
        }
    }
    rig.set(F::GuestInterruptibility, 0u32);
    rig.set(F::GuestPendingDebug, 0u32);
    rig.set(F::GuestActivity, 0u32);
    rig.set(F::PreemptionTimer, 100u32);
}

fn guest(rig: &mut Rig, input: &Input<'_>) {
    let flags = rig.get(F::GuestRflags) | u64::from(input.flags) & 0x24_0fd5;
    rig.set(F::GuestRflags, flags);
    for n in 0..ENTRIES {
        rig.controls(input.controls.map(|bits| bits.rotate_left(7 * n as u32)));
        raise(rig, input.events[n % 4].rotate_left(n as u32));
        let refused = rig.cpu.explain_entry().is_some();
        let entered = if n == 0 { rig.cpu.vmlaunch() } else { rig.cpu.vmresume() };
        assert!(!rig.cpu.nonroot);
        let failed = entered.is_err() || rig.get(F::ExitReason) >> 31 != 0;
        assert!(failed || !refused);
        if failed {
            return;
        }
        handle(rig, input.values[0].rotate_left(n as u32));
    }
}

fuzz_target!(|input: Input<'_>| {
    let mut rig = prepare(&input);
    if input.guest { guest(&mut rig, &input) } else { bare(&mut rig, &input) }
});
