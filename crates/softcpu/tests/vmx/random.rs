//! Guests of random bytes under random controls: nothing panics, every entry ends in an exit, and what an
//! exit has saved can be entered again.

use trapline_softcpu::cpu::Signals;
use trapline_vmx::checks::Rule;
use trapline_vmx::controls::SecondaryControls as S;
use trapline_vmx::controls::{EntryControls, ExitControls, PinControls, PrimaryControls as P};
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Random controls that go together.
fn controls(m: &mut Machine, rng: &mut Rng, unrestricted: bool) {
    let caps = m.cpu.vmx.caps.clone();
    let virtual_nmis = rng.next() & 1 != 0;
    let mut pin = PinControls::EXTERNAL_INTERRUPT_EXITING | PinControls::PREEMPTION_TIMER;
    pin.set(PinControls::NMI_EXITING, virtual_nmis || rng.next() & 1 != 0);
    pin.set(PinControls::VIRTUAL_NMIS, virtual_nmis);
    m.set(F::PinControls, caps.pin.adjust(pin.bits()).into());
    let mut primary = P::from_bits_retain(rng.next() as u32) | P::SECONDARY_CONTROLS;
    primary.set(P::NMI_WINDOW_EXITING, virtual_nmis && rng.next() & 1 != 0);
    let mut secondary = S::from_bits_retain(rng.next() as u32) | S::ENABLE_EPT;
    secondary.set(S::UNRESTRICTED_GUEST, unrestricted);
    if !primary.contains(P::TPR_SHADOW) {
        secondary.remove(S::VIRTUALIZE_X2APIC);
    }
    if secondary.contains(S::VIRTUALIZE_APIC_ACCESSES) {
        secondary.remove(S::VIRTUALIZE_X2APIC);
    }
    m.set(F::PrimaryControls, caps.primary.adjust(primary.bits()).into());
    m.set(F::SecondaryControls, caps.secondary.adjust(secondary.bits()).into());
    m.set(F::ApicAccessAddress, 0xb000);
    m.set(F::PmlIndex, rng.next() & 0x3ff);
    m.set(F::EptPointer, EPT | 0x1e | rng.next() & 0x40);
    m.set(F::PreemptionTimer, 400);
    m.set(F::ExceptionBitmap, rng.next() & rng.next());
    m.set(F::PleGap, 100);
    m.set(F::PleWindow, 1000);
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE | ExitControls::SAVE_DEBUG_CONTROLS;
    let exit = exit | ExitControls::LOAD_EFER | ExitControls::SAVE_EFER | ExitControls::SAVE_PREEMPTION_TIMER;
    m.set(F::ExitControls, caps.exit.adjust(exit.bits()).into());
    let entry = EntryControls::LOAD_EFER | EntryControls::LOAD_DEBUG_CONTROLS;
    let long = m.get(F::EntryControls) as u32 & EntryControls::IA32E_MODE_GUEST.bits();
    m.set(F::EntryControls, caps.entry.adjust(entry.bits() | long).into());
}

/// Answers or passes over what the guest exited for.
fn handle(m: &mut Machine, rng: &mut Rng, reason: R) {
    match reason {
        R::EptViolation | R::ApicAccess if m.cpu.device_access().is_some() => {
            m.cpu.complete_device_access(rng.next());
        }
        R::PmlFull => m.set(F::PmlIndex, 511),
        R::ExternalInterrupt => {
            m.cpu.signals.clear(Signals::INTERRUPT);
        }
        _ => {
            m.cpu.drop_device_accesses();
            let by = m.get(F::ExitInstructionLength).clamp(1, 15);
            let ip = m.get(F::GuestRip).wrapping_add(by);
            let wide = m.get(F::GuestCsAccessRights) >> 13 & 1 != 0;
            m.set(F::GuestRip, if wide { ip } else { ip & 0xffff_ffff });
        }
    }
    m.set(F::GuestInterruptibility, 0);
    m.set(F::GuestPendingDebug, 0);
    m.set(F::GuestActivity, 0);
    m.set(F::PreemptionTimer, 400);
}

fn run_many(make: fn() -> Machine, unrestricted: bool, seed: u64) {
    let mut rng = Rng(seed);
    let mut reasons = std::collections::BTreeMap::new();
    for _ in 0..40 {
        let mut m = make();
        m.primary(P::HLT_EXITING);
        for vector in 0..32 {
            m.gate(vector, CODE + (rng.next() & 0x7f), 0);
        }
        for word in 0..64 {
            let bytes = rng.next();
            m.write(CODE + 8 * word, bytes);
        }
        for r in 0..16 {
            let near = [DATA, DEVICE, HOLE, CODE, 0, u64::MAX];
            m.set_reg(r, near[rng.next() as usize % near.len()].wrapping_add(rng.next() & 0xff));
        }
        for _ in 0..30 {
            controls(&mut m, &mut rng, unrestricted);
            let signals = [0, 0, 0, Signals::INTERRUPT, Signals::NMI, Signals::INIT];
            m.cpu.signals.raise(signals[rng.next() as usize % signals.len()]);
            if m.cpu.explain_entry().is_some() {
                // What was written by `handle` does not fit the guest's mode: the entry must fail cleanly.
                if m.enter().is_ok() {
                    assert_eq!(m.get(F::ExitReason), 1 << 31 | 33);
                }
                break;
            }
            let reason = m.run();
            assert!(!m.cpu.nonroot);
            *reasons.entry(reason.number()).or_insert(0) += 1;
            if let Some(e) = m.cpu.explain_entry() {
                // A #DB that exits in the shadow of STI leaves no pending trap behind.
                let debug = reason == R::ExceptionOrNmi && m.interruption() & 0xff == 1;
                assert!(debug && e.rule == Rule::PendingDebugSingleStep, "{reason:?}: {e}, {}", m.describe());
            }
            handle(&mut m, &mut rng, reason);
        }
    }
    let entries: u32 = reasons.values().sum();
    println!("exits by reason: {reasons:?}");
    assert!(entries > 500 && reasons.len() > 8, "{entries} entries, {reasons:?}");
}

#[test]
fn random_guests_in_64_bit_mode() {
    run_many(long, false, 0x1234_5678_9abc_def1);
}

#[test]
fn random_guests_in_real_mode() {
    run_many(real, true, 0x3456_789a_bcde_f123);
}

#[test]
fn random_guests_in_protected_mode() {
    run_many(protected, true, 0x5678_9abc_def1_2345);
}
