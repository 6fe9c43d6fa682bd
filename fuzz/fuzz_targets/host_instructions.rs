//! Bytes as user-mode instructions on the host processor and on ours, as far as `crates/softcpu/tests/host` can run
//! them on both: the same registers, defined flags and memory.
#![no_main]

#[path = "../../crates/softcpu/tests/host/rig.rs"]
mod rig;

use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use trapline_softcpu::Cpu;
use trapline_softcpu::cpuid::Model;

use rig::{DATA, HOST_CODE, Host, Rng, compare, processor};

thread_local! {
    /// The interpreter, a processor that makes host code at once, and the host.
    static ALL: RefCell<([Cpu; 2], Arc<Model>, Host)> = RefCell::new({
        let ([mut interpreter, mut native], model) = ([processor().0, processor().0], processor().1);
        interpreter.translate_after(None);
        native.translate_after(Some(0));
        ([interpreter, native], model, Host::new(HOST_CODE, DATA))
    });
}

/// Bytes of one instruction in the input, with what its state is made of.
const STEP: usize = 8 + 15;

fuzz_target!(|input: &[u8]| {
    ALL.with_borrow_mut(|(processors, model, host)| {
        for step in input.chunks_exact(STEP).take(64) {
            let (seed, bytes) = step.split_at(8);
            let seed = u64::from_le_bytes(seed.try_into().unwrap_or([1; 8]));
            let cpu = &mut processors[(seed >> 63) as usize];
            // The generator's state must not be zero.
            if let Some(Err(difference)) = compare(cpu, host, model, bytes, &mut Rng(seed | 1)) {
                panic!("{difference}");
            }
        }
    });
});
